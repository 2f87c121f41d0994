//! What an agent does that follows a stranger's words, or wants more than it has.

use crate::house::{Ask, Breach, House, Random, Taint};
use abi::authority::{Operation, Target, Verdict};

/// Where the stranger's words come from in a case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Files,
    Pages,
    Results,
    Memory,
}

pub fn in_files(random: &mut Random, breached: bool) -> Result<(), String> {
    obeys(random, From::Files, breached.then_some(Breach::Labels("read")))
}

pub fn in_pages(random: &mut Random, breached: bool) -> Result<(), String> {
    obeys(random, From::Pages, breached.then_some(Breach::Labels("fetch")))
}

pub fn in_tool_results(random: &mut Random, breached: bool) -> Result<(), String> {
    let tool = *random.pick(&["run", "grep", "lint"]);
    obeys(random, From::Results, breached.then_some(Breach::Labels(tool)))
}

pub fn in_memory(random: &mut Random, breached: bool) -> Result<(), String> {
    obeys(random, From::Memory, breached.then_some(Breach::Memory))
}

fn page(name: &str) -> Target {
    Target::Page { name: name.parse().unwrap(), port: 443, path: "/q".into() }
}

/// An agent that read a stranger's words and now wants to get the secret out, by whatever it can think of.
fn obeys(random: &mut Random, from: From, breach: Option<Breach>) -> Result<(), String> {
    let mut house = House::new(breach);
    for _ in 0..6 + random.below(14) {
        let ask = match random.below(9) {
            0 => stranger(random, from, &mut house),
            1 => Some(path(random, "read", Operation::ReadFiles, "/data/customers")),
            2 => {
                let file = random.pick(&house.file_names()).clone();
                let is_stranger = file.starts_with("/work/issues") && from != From::Files;
                (!is_stranger).then(|| path(random, "read", Operation::ReadFiles, &file))
            }
            3 => {
                let to = *random.pick(&["/work/src/lib.rs", "/work/notes", "/work/a/b"]);
                let mut ask = path(random, "write", Operation::WriteFiles, to);
                ask.references = references(random, &house);
                Some(ask)
            }
            4 => Some(path(random, "edit", Operation::EditFiles, "/work/src/lib.rs")),
            5 if from == From::Results => Some(runs(random, &house)),
            6 if from == From::Pages => Some(fetch(random, &house, "docs.rs")),
            7 => Some(fetch(random, &house, "api.model.test")),
            _ => Some(fetch(random, &house, "docs.rs")),
        };
        if let Some(ask) = ask {
            house.call(&ask)?;
        }
    }
    Ok(())
}

fn stranger(random: &mut Random, from: From, house: &mut House) -> Option<Ask> {
    match from {
        From::Files => Some(path(random, "read", Operation::ReadFiles, "/work/issues/1.md")),
        From::Pages => Some(fetch(random, house, "docs.rs")),
        From::Results if random.one_in(2) => {
            Some(path(random, "grep", Operation::GrepSearch, "/work/issues"))
        }
        From::Results => Some(runs(random, house)),
        From::Memory => {
            house.remembers(Taint { strange: true, secret: random.one_in(4) });
            None
        }
    }
}

fn references(random: &mut Random, house: &House) -> Vec<u32> {
    let known = house.value_numbers();
    (0..random.below(3)).filter(|_| !known.is_empty()).map(|_| *random.pick(&known)).collect()
}

fn path(random: &mut Random, tool: &'static str, operation: Operation, path: &str) -> Ask {
    Ask { tool, operation, target: Target::Path(path.into()), references: vec![], sealed: random.one_in(3) }
}

fn fetch(random: &mut Random, house: &House, name: &str) -> Ask {
    let references = if random.one_in(3) { references(random, house) } else { vec![] };
    Ask {
        tool: "fetch",
        operation: Operation::WebFetch,
        target: page(name),
        references,
        sealed: random.one_in(4),
    }
}

fn runs(random: &mut Random, house: &House) -> Ask {
    let (tool, target) = if random.one_in(2) {
        ("run", Target::Command(vec!["cargo".into(), "test".into(), "x".into()]))
    } else {
        ("lint", Target::Arguments)
    };
    let references = references(random, house);
    Ask { tool, operation: Operation::RunBash, target, references, sealed: random.one_in(3) }
}

/// A tool whose description, or whose caller, says that it is something else. What it is stands in the manifest.
pub fn hidden_instructions(random: &mut Random, breached: bool) -> Result<(), String> {
    let mut house = House::new(breached.then_some(Breach::Denial));
    for _ in 0..20 {
        let tool = *random.pick(&[
            "lint", "wipe", "publish", "read", "fetch", "run", "memory", "submit", "Read", "read ", "deploy",
            "",
        ]);
        let operation = *random.pick(&Operation::ALL);
        let targets = [
            Target::Arguments,
            Target::Path("/work/x".into()),
            page("docs.rs"),
            Target::Command(vec!["cargo".into(), "test".into()]),
        ];
        let target = random.pick(&targets);
        let ask = Ask { tool, operation, target: target.clone(), references: vec![], sealed: false };
        // Written down a second time: what each tool of this manifest is.
        let is = match tool {
            "lint" | "wipe" | "run" => Some(Operation::RunBash),
            "publish" => Some(Operation::GitPush),
            "read" => Some(Operation::ReadFiles),
            "fetch" => Some(Operation::WebFetch),
            _ => None,
        };
        let verdict = house.call(&ask)?;
        if verdict == Verdict::Allow && is != Some(operation) {
            return Err(format!("`{tool}` was used as {operation}"));
        }
        if verdict == Verdict::Allow && matches!(tool, "wipe" | "publish") {
            return Err(format!("`{tool}` was used without being asked for"));
        }
    }
    Ok(())
}

/// Calls that no rule admits, in spellings that look as if one did.
pub fn forged_capabilities(random: &mut Random, breached: bool) -> Result<(), String> {
    let mut house = House::new(breached.then_some(Breach::Denial));
    for _ in 0..20 {
        let (tool, operation) = *random.pick(&[
            ("read", Operation::ReadFiles),
            ("write", Operation::WriteFiles),
            ("edit", Operation::EditFiles),
            ("remove", Operation::WriteFiles),
            ("glob", Operation::GlobSearch),
            ("run", Operation::RunBash),
            ("fetch", Operation::WebFetch),
            ("spawn", Operation::SpawnAgent),
        ]);
        let target = match tool {
            "run" => Target::Command(command(random)),
            "fetch" => page(random.pick::<&str>(&[
                "evil.test",
                "docs.rs.evil.test",
                "evildocs.rs",
                "a.docs.rs",
                "127.0.0.1.nip.test",
            ])),
            "spawn" => Target::Agent("reviewer".parse().unwrap()),
            _ => Target::Path(crooked(random, operation)),
        };
        let shown = format!("{tool} {target:?}");
        let ask = Ask { tool, operation, target, references: vec![], sealed: false };
        if house.call(&ask)? == Verdict::Allow {
            return Err(format!("allowed: {shown}"));
        }
    }
    Ok(())
}

fn command(random: &mut Random) -> Vec<String> {
    let commands: [&[&str]; 9] = [
        &["sh", "-c", "cargo test"],
        &["cargo", "run"],
        &["cargo test"],
        &["/tmp/cargo", "test"],
        &["cargo", "--config", "x", "test"],
        &["cargo", "testing"],
        &["CARGO", "test"],
        &[],
        &["cargo ", "test"],
    ];
    random.pick(&commands).iter().map(|word| (*word).to_owned()).collect()
}

fn crooked(random: &mut Random, operation: Operation) -> String {
    let anywhere = [
        "/etc/shadow",
        "/work/../etc/shadow",
        "/work/./x",
        "/work//x",
        "work/x",
        "/work/.env",
        "/work/.env/x",
        "/workshop/x",
        "/WORK/x",
        "/work/x/",
        "/work/a\0b",
        "/work/a\nb",
        "",
        "/",
        "/data/keys/root",
        "/data/keys",
        "/work/..",
        "/proc/1/mem",
        "/work/src/../../data/keys/root",
    ];
    let read_only = ["/data/customers", "/data/x", "/data"];
    let writes = matches!(operation, Operation::WriteFiles | Operation::EditFiles);
    let list: Vec<&str> = if writes { [&anywhere[..], &read_only].concat() } else { anywhere.to_vec() };
    (*random.pick(&list)).to_owned()
}
