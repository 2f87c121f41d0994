//! The shape that all engines decide: ten claims, ten calls.

use abi::authority::{
    Amounts, Authority as Policies, Call, Level, Operation, Rules, Situation, Target, Verdict,
};
use abi::exposure::Exposure;
use abi::ids::Digest;
use std::error::Error;
use verdict::authority::Authority;
use verdict::decide::{Policy, decide};

/// The library's own name in the table.
pub const OWN: &str = "decision, verdict";

/// One call, as every engine is asked it.
pub struct Case {
    pub action: &'static str,
    /// Path, words of the command, or host name.
    pub target: &'static str,
    pub is_allowed: bool,
}

const fn case(action: &'static str, target: &'static str, is_allowed: bool) -> Case {
    Case { action, target, is_allowed }
}

pub const CASES: [Case; 10] = [
    case("read", "/work/src/main.rs", true),
    case("read", "/data/notes/today.md", true),
    case("read", "/work/.env", false),
    case("read", "/etc/passwd", false),
    case("write", "/work/docs/page.md", true),
    case("write", "/work/Cargo.toml", false),
    case("run", "cargo test --all", true),
    case("run", "rm -rf /work", false),
    case("fetch", "static.crates.io", true),
    case("fetch", "evil.example.org", false),
];

/// The ten claims: what may be read, written, run and fetched, and what never.
pub const READ: [&str; 2] = ["/work/", "/data/notes/"];
pub const WRITE: [&str; 2] = ["/work/src/", "/work/docs/"];
pub const COMMANDS: [&str; 3] = ["cargo test", "git status", "pytest"];
pub const NAMES: [&str; 2] = ["docs.rs", "*.crates.io"];
pub const NEVER: &str = "/.env";

/// What decides.
pub trait Engine {
    fn name(&self) -> &'static str;
    /// Whether the call with this place in [`CASES`] is allowed. All that can be made ready before is.
    fn allows(&mut self, case: usize) -> bool;
}

pub struct Own {
    pub authority: Authority,
    pub policy: Policy,
    pub situation: Situation,
    pub calls: Vec<Call>,
}

impl Engine for Own {
    fn name(&self) -> &'static str {
        OWN
    }

    fn allows(&mut self, case: usize) -> bool {
        let call = &self.calls[case];
        decide(&self.authority, &self.policy, &self.situation, call).verdict() == Verdict::Allow
    }
}

fn parsed<T: std::str::FromStr<Err: ToString>>(
    texts: impl IntoIterator<Item = String>,
) -> Result<Vec<T>, String> {
    texts.into_iter().map(|text| text.parse().map_err(|error: T::Err| error.to_string())).collect()
}

fn call(case: &Case) -> Result<Call, Box<dyn Error>> {
    let (operation, target) = match case.action {
        "read" => (Operation::ReadFiles, Target::Path(case.target.into())),
        "write" => (Operation::WriteFiles, Target::Path(case.target.into())),
        "run" => (Operation::RunBash, Target::Command(case.target.split(' ').map(Into::into).collect())),
        _ => {
            let page = Target::Page { name: case.target.parse()?, port: 443, path: "/x".into() };
            (Operation::WebFetch, page)
        }
    };
    let (tool, digest) = (case.action.into(), Digest([7; 32]));
    Ok(Call {
        operation,
        tool,
        target,
        arguments: digest,
        pinned: digest,
        flows: Exposure::NONE,
        sealed: false,
    })
}

/// Beside the ten claims it also judges budget, end, risk and exposure, which the peers are not asked.
pub fn ready() -> Result<Own, String> {
    let always = [Operation::ReadFiles, Operation::WriteFiles, Operation::RunBash, Operation::WebFetch];
    let below = |texts: [&str; 2]| texts.map(|text| format!("{text}**"));
    let rules = Rules {
        levels: always.map(|operation| (operation, Level::Always)).into(),
        read: parsed(below(READ))?,
        write: parsed(below(WRITE))?,
        never: parsed([format!("/**{NEVER}")])?,
        commands: parsed(COMMANDS.map(|text| format!("{text} **")))?,
        names: parsed(NAMES.map(String::from))?,
        until_unix_ms: Some(u64::MAX),
        budget: Amounts { calls: Some(1000), output_bytes: Some(1 << 30), ..Amounts::default() },
        ..Rules::default()
    };
    let bound = Amounts { calls: Some(1), output_bytes: Some(1 << 18), ..Amounts::default() };
    Ok(Own {
        situation: Situation {
            now_unix_ms: 1_800_000_000_000,
            seen: Exposure::PRIVATE_DATA,
            written: Exposure::NONE,
            left: rules.budget,
            needs: bound,
            is_declassified: false,
        },
        authority: Authority::of(rules),
        policy: Policy::of(&Policies::default()),
        calls: CASES.iter().map(call).collect::<Result<_, _>>().map_err(|error| error.to_string())?,
    })
}

pub fn own() -> Result<Box<dyn Engine>, String> {
    Ok(Box::new(ready()?))
}
