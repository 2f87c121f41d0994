//! `policy observe`: the smallest `[authority]` that allows the calls of a ledger that were done.
//!
//! Must hold: what it prints is a manifest's text, and decides every call that it does not name in a comment as allowed; both are checked
//! before it is printed, by the parser and the library of a node.

use abi::authority::{CommandPattern, Operation, PathPattern, Target, Verdict};
use abi::limits;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::Loaded;
use super::recorded::{Anew, Past, read};
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::{Failure, status};
use crate::print::visible;

/// What calls needed.
#[derive(Default)]
struct Needed {
    operations: BTreeSet<Operation>,
    read: BTreeSet<String>,
    write: BTreeSet<String>,
    commands: BTreeSet<String>,
    names: BTreeSet<String>,
    /// Of the life that made most.
    calls: u64,
}

pub fn observe(_: &Context, _: &Arguments) -> Result<u8, Failure> {
    let (past, mut comments) = read()?;
    let done: Vec<&Past> = past.iter().filter(|call| call.was_done).collect();
    let mut text = needed(&done, &mut comments).toml();
    let loaded = Loaded::parse("what was observed", text.clone())?;
    let mut anew = Anew::new(&loaded);
    let mut allowed = 0;
    for one in &done {
        let decision = anew.decide(one)?;
        match decision.verdict {
            Verdict::Allow => allowed += 1,
            _ => comments
                .push(format!("event {}, {}: {}: {}", one.seq, one.call.tool, decision.rule, decision.why)),
        }
    }
    let refused = past.len() - done.len();
    let mut head = format!(
        "# Allows {allowed} of {} calls as they were done; {refused} that were not done are left out.\n",
        done.len()
    );
    for comment in &comments {
        let _ = writeln!(head, "# Not allowed by this: {}", visible(comment)); // a String takes everything
    }
    text.insert_str(0, &head);
    say(&text)?;
    Ok(if comments.is_empty() { 0 } else { status::FAILED })
}

fn needed(done: &[&Past], comments: &mut Vec<String>) -> Needed {
    use Operation::{EditFiles, GlobSearch, GrepSearch, WriteFiles};
    let mut needed = Needed::default();
    let mut lives: BTreeMap<String, u64> = BTreeMap::new();
    for one in done {
        let operation = one.call.operation;
        let added = match &one.call.target {
            Target::Path(path) => {
                let is_search = matches!(operation, GlobSearch | GrepSearch);
                let list = if matches!(operation, WriteFiles | EditFiles) {
                    &mut needed.write
                } else {
                    &mut needed.read
                };
                of_path(path, is_search).map(|pattern| list.insert(pattern))
            }
            Target::Command(command) => of_command(command).map(|pattern| needed.commands.insert(pattern)),
            Target::Page { name, .. } => Some(needed.names.insert(name.to_string())),
            // A tool of the manifest's own, whose program is not in the ledger, or one that no manifest can have: no rule permits it, and the
            // check that follows names it.
            Target::Agent(_) | Target::Arguments => continue,
        };
        match added {
            Some(_) => {
                needed.operations.insert(operation);
                *lives.entry(one.instance.to_string()).or_default() += 1;
            }
            None => comments.push(format!("event {}: no pattern can be written for its target", one.seq)),
        }
    }
    needed.calls = lives.into_values().max().unwrap_or(0);
    for list in [&mut needed.read, &mut needed.write] {
        while list.len() > limits::RULES_LIST_MAX && fold(list) {}
    }
    // Commands and names have no directory that holds them: the check that follows names those that are left out.
    for list in [&mut needed.commands, &mut needed.names] {
        while list.len() > limits::RULES_LIST_MAX {
            list.pop_last();
        }
    }
    needed
}

/// A pattern of one path, or of a directory with all that is in it.
fn of_path(path: &str, and_below: bool) -> Option<String> {
    let text = match (and_below, path.trim_end_matches('/')) {
        (true, path) => format!("{path}/**"),
        (false, path) => path.to_owned(),
    };
    let pattern: PathPattern = text.parse().ok()?;
    (pattern.admits(path)).then_some(text)
}

/// The words themselves; where no pattern holds one of them, the words before it with whatever follows.
fn of_command(command: &[String]) -> Option<String> {
    let shorter =
        (1..=command.len()).rev().filter_map(|count| Some(format!("{} **", command.get(..count)?.join(" "))));
    std::iter::once(command.join(" "))
        .chain(shorter)
        .find(|text| text.parse::<CommandPattern>().is_ok_and(|pattern| pattern.admits(command)))
}

/// Puts the directory with the most entries of a list, the deepest of those, in their place.
fn fold(list: &mut BTreeSet<String>) -> bool {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for path in list.iter() {
        let plain = path.strip_suffix("/**").unwrap_or(path);
        if let Some((parent, _)) = plain.rsplit_once('/') {
            *counts.entry(parent.to_owned()).or_default() += 1;
        }
    }
    let best = counts
        .into_iter()
        .filter(|(_, count)| *count > 1)
        .max_by_key(|(dir, count)| (*count, dir.matches('/').count()));
    let dir = match best {
        Some((dir, _)) => dir,
        // No two lie in one directory: the deepest goes one up.
        None => match list.iter().max_by_key(|path| path.matches('/').count()) {
            Some(deepest) => {
                let plain = deepest.strip_suffix("/**").unwrap_or(deepest);
                plain.rsplit_once('/').map(|(parent, _)| parent.to_owned()).unwrap_or_default()
            }
            None => return false,
        },
    };
    let below = format!("{dir}/");
    list.retain(|path| !path.starts_with(&below) && *path != dir);
    list.insert(format!("{dir}/**"))
}

impl Needed {
    fn toml(&self) -> String {
        let quoted = |list: &BTreeSet<String>| {
            let all = list.iter().map(|text| toml::Value::String(text.clone()).to_string());
            all.collect::<Vec<_>>().join(", ")
        };
        let mut text = String::from("[authority]\n");
        for (field, list) in [
            ("read", &self.read),
            ("write", &self.write),
            ("commands", &self.commands),
            ("names", &self.names),
        ] {
            if !list.is_empty() {
                let _ = writeln!(text, "{field} = [{}]", quoted(list)); // a String takes everything
            }
        }
        let _ = writeln!(text, "budget = {{ calls = {} }}", self.calls); // a String takes everything
        text.push_str("[authority.operations]\n");
        for operation in &self.operations {
            let _ = writeln!(text, "{operation} = \"always\""); // a String takes everything
        }
        text
    }
}
