//! Random worlds: small alphabets, so that rules and calls meet often, and hostile texts among them.

use abi::authority::{
    Amounts, Authority as Policies, Call, Level, Operation, PathPattern, Risk, Rules, Situation, Sources,
    Target, Tool,
};
use abi::exposure::Exposure;
use abi::ids::{AgentName, Digest};
use std::collections::BTreeMap;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let place = self.below(all.len() as u64) as usize;
        &all[place]
    }

    pub fn some<T: Clone>(&mut self, all: &[T], most: u64) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| self.pick(all).clone()).collect()
    }
}

/// Runs a test over many seeds, and says which one failed.
pub fn each_seed(count: u64, test: impl Fn(&mut Random) + std::panic::RefUnwindSafe) {
    let only = std::env::var("NULLBOX_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..count, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let run = std::panic::catch_unwind(|| test(&mut Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))));
        if run.is_err() {
            panic!("failed with NULLBOX_SEED={seed}");
        }
    }
}

pub const EXPOSURES: [Exposure; 4] = [
    Exposure::NONE,
    Exposure::PRIVATE_DATA,
    Exposure::UNTRUSTED_CONTENT,
    Exposure::PRIVATE_DATA.and(Exposure::UNTRUSTED_CONTENT),
];
pub const LEVELS: [Level; 3] = [Level::Never, Level::Ask, Level::Always];
pub const RISKS: [Risk; 4] = [Risk::Low, Risk::Medium, Risk::High, Risk::Critical];

const PATTERNS: [&str; 12] = [
    "/**",
    "/work/**",
    "/work/src/**",
    "/work/*",
    "/work/*.rs",
    "/work/.env",
    "/**/.env",
    "/**/src/*",
    "/a/**/b/**",
    "/a/*b*",
    "/work/src/main.rs",
    "/a/**/b",
];
pub const PATHS: [&str; 16] = [
    "/",
    "/work",
    "/work/src",
    "/work/src/main.rs",
    "/work/.env",
    "/work/.env/x",
    "/work/a.rs",
    "/a",
    "/a/b",
    "/a/b/c/b",
    "/a/x/b",
    "/work/src/.env",
    "/workshop",
    "/work/src/deep/er",
    "/etc/passwd",
    "/a/xbx",
];
/// Not in their one spelling.
pub const CROOKED: [&str; 10] = [
    "",
    "work",
    "//work",
    "/work/",
    "/work//a.rs",
    "/work/../etc/passwd",
    "/work/.",
    "/work/src/..",
    "/work/\0",
    "/work/a\nb",
];
const COMMANDS: [&str; 6] =
    ["cargo test **", "cargo test", "cargo *", "git status", "git log --max-count=* **", "/app/bin/x **"];
const CALLED: [&[&str]; 9] = [
    &["cargo", "test"],
    &["cargo", "test", "--", "x"],
    &["cargo", "run"],
    &["git", "status"],
    &["git", "log", "--max-count=3"],
    &["git", "status", "; rm -rf /"],
    &[],
    &["cargo test"],
    &["/app/bin/x", ""],
];
const NAMES: [&str; 4] = ["docs.rs", "*.docs.rs", "evil.test", "api.openai.com"];
const HOSTS: [&str; 6] =
    ["docs.rs", "a.docs.rs", "a.b.docs.rs", "evildocs.rs", "evil.test", "api.openai.com"];
const AGENTS: [&str; 3] = ["reviewer", "writer", "evil"];
const TOOLS: [&str; 13] = [
    "read", "write", "edit", "remove", "glob", "grep", "run", "fetch", "spawn", "own", "deploy", "no-such",
    "memory",
];

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: Vec<&str>) -> Vec<T> {
    texts.into_iter().map(|text| text.parse().unwrap()).collect()
}

pub fn amounts(random: &mut Random, most: u64) -> Amounts {
    let mut amount = || (!random.one_in(3)).then(|| random.below(most));
    Amounts {
        wall_ms: amount(),
        output_bytes: amount(),
        calls: amount(),
        cpu_ms: amount(),
        ..Amounts::default()
    }
}

/// Rules that allow much or little.
pub fn rules(random: &mut Random) -> Rules {
    let mut levels = BTreeMap::new();
    for operation in Operation::ALL {
        if !random.one_in(5) {
            levels.insert(operation, *random.pick(&LEVELS));
        }
    }
    let wide = random.one_in(2);
    let mut paths = |most| -> Vec<PathPattern> {
        let mut texts = random.some(&PATTERNS, most);
        texts.extend(wide.then_some("/**"));
        parsed(texts)
    };
    let (read, write, never) = (paths(3), paths(3), vec![]);
    Rules {
        levels,
        read,
        write,
        never: if random.one_in(3) { parsed(random.some(&PATTERNS[3..], 2)) } else { never },
        commands: parsed(random.some(&COMMANDS, 4)),
        names: parsed(random.some(&NAMES, 3)),
        agents: parsed(random.some(&AGENTS, 2)),
        until_unix_ms: random.one_in(3).then(|| random.below(40)),
        budget: amounts(random, 30),
        depth: random.below(4) as u8,
    }
}

pub fn policies(random: &mut Random) -> Policies {
    let mut tools = BTreeMap::new();
    for name in ["own", "deploy"] {
        let operation = *random.pick(&Operation::ALL);
        let tool = Tool { operation, risk: *random.pick(&RISKS), command: Some(vec!["/app/bin/x".into()]) };
        tools.insert(name.parse().unwrap(), tool);
    }
    if random.one_in(2) {
        let tool = Tool { operation: Operation::RunBash, risk: *random.pick(&RISKS), command: None };
        tools.insert("run".parse().unwrap(), tool);
    }
    let sources = Sources {
        private: parsed(random.some(&PATTERNS, 2)),
        untrusted: parsed(random.some(&PATTERNS, 2)),
        trusted_names: parsed(random.some(&NAMES, 1)),
    };
    Policies { rules: vec![], sources, tools, profile: None, expires_secs: None }
}

pub fn target(random: &mut Random) -> Target {
    match random.below(6) {
        0 if random.one_in(4) => Target::Path((*random.pick(&CROOKED)).into()),
        0 | 1 => Target::Path((*random.pick(&PATHS)).into()),
        2 => Target::Command(random.pick(&CALLED).iter().map(|word| (*word).to_owned()).collect()),
        3 => Target::Page { name: random.pick(&HOSTS).parse().unwrap(), port: 443, path: "/x".into() },
        4 => Target::Agent(random.pick(&AGENTS).parse::<AgentName>().unwrap()),
        _ => Target::Arguments,
    }
}

/// The kind of target that an operation is about.
pub fn fitting(random: &mut Random, operation: Operation) -> Target {
    use Operation::{RunBash, SpawnAgent, WebFetch, WebSearch};
    loop {
        let target = target(random);
        let fits = match &target {
            Target::Path(_) => {
                operation.index() < 3
                    || operation.word().ends_with("b_search")
                    || operation.word().starts_with("grep")
            }
            Target::Command(_) => operation == RunBash,
            Target::Page { .. } => matches!(operation, WebFetch | WebSearch) || operation.index() > 7,
            Target::Agent(_) => operation == SpawnAgent,
            Target::Arguments => operation.index() > 7,
        };
        if fits {
            return target;
        }
    }
}

pub fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

/// A call; mostly one that fits its tool.
pub fn call(random: &mut Random, policies: &Policies) -> Call {
    let tool = *random.pick(&TOOLS);
    let known = verdict::decide::Policy::of(policies).tool(tool).map(|(operation, _)| operation);
    let operation = match known {
        Some(operation) if !random.one_in(10) => operation,
        _ => *random.pick(&Operation::ALL),
    };
    let target = match tool {
        "own" | "deploy" if !random.one_in(4) => Target::Arguments,
        _ if random.one_in(6) => target(random),
        _ => fitting(random, operation),
    };
    Call {
        operation,
        tool: tool.into(),
        target,
        arguments: digest(random.below(3) as u8),
        pinned: digest(random.below(2) as u8),
        flows: *random.pick(&EXPOSURES),
        sealed: random.one_in(4),
    }
}

pub fn situation(random: &mut Random) -> Situation {
    Situation {
        now_unix_ms: random.below(40),
        seen: *random.pick(&EXPOSURES),
        written: *random.pick(&EXPOSURES),
        left: amounts(random, 30),
        needs: amounts(random, 20),
        is_declassified: random.one_in(4),
    }
}
