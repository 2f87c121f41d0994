//! `policy diff`: what a change of a manifest newly permits, and what it newly refuses.
//!
//! Must hold: nothing that is newly permitted is missing from the list. Levels, risks, bounds, agents and names are compared exactly;
//! patterns of paths and commands by whether an old one certainly covers them, with a call that shows it where one is found.

use abi::authority::{Amounts, Call, Level, Operation, Risk, Rules, Situation, Target, Verdict};
use abi::exposure::Exposure;
use abi::ids::Digest;
use abi::tools::BUILT_IN;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::slice::from_ref;
use verdict::authority::Authority;
use verdict::decide::decide;

use super::Loaded;
use super::cover::{Pattern, examples, uncovered};
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::{Failure, status};
use crate::print::visible;
use crate::run::word;

/// One difference.
#[derive(Debug, Serialize)]
struct Change {
    kind: &'static str,
    what: String,
    /// A call that shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    example: Option<String>,
}

pub fn diff(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let old = Loaded::of(given.required(0))?;
    let new = Loaded::of(given.required(1))?;
    let permits = newly(&old, &new)?;
    let refuses = newly(&new, &old)?;
    if context.json {
        say(&format!("{}\n", json!({ "permits": permits, "refuses": refuses })))?;
    } else {
        say(&in_words("newly permitted", &permits))?;
        say(&in_words("no longer permitted", &refuses))?;
    }
    Ok(if permits.is_empty() { 0 } else { status::FAILED })
}

fn in_words(heading: &str, changes: &[Change]) -> String {
    let mut text = format!("{heading}:{}\n", if changes.is_empty() { " nothing" } else { "" });
    for Change { kind, what, example } in changes {
        let example =
            example.as_ref().map(|one| format!("   for example {}", visible(one))).unwrap_or_default();
        text.push_str(&format!("  {kind:<13} {}{example}\n", visible(what)));
    }
    text
}

/// What `new` permits and `old` does not. In the other direction: what is no longer permitted, said of what was.
fn newly(old: &Loaded, new: &Loaded) -> Result<Vec<Change>, Failure> {
    let (was, is) = (old.authority(0)?, new.authority(0)?);
    let mut changes = Vec::new();
    let mut add = |kind, what, example| changes.push(Change { kind, what, example });
    for operation in Operation::ALL {
        if is.level(operation) > was.level(operation) {
            add(
                "level",
                format!("{operation}: {} (else {})", word(&is.level(operation)), word(&was.level(operation))),
                None,
            );
        }
    }
    for what in tools(old, new) {
        add("tool", what, None);
    }
    for (name, (was, is)) in
        Amounts::NAMES.iter().zip(was.budget().list().into_iter().zip(is.budget().list()))
    {
        if is_more(was, is) {
            add("budget", format!("{name}: {} (else {})", bound(is), bound(was)), None);
        }
    }
    let (ends_was, ends_is) = (old.said.expires_secs.map(u64::from), new.said.expires_secs.map(u64::from));
    if is_more(ends_was, ends_is) {
        add("expires_secs", format!("{} (else {})", bound(ends_is), bound(ends_was)), None);
    }
    if is.depth() > was.depth() {
        add("depth", format!("{} (else {})", is.depth(), was.depth()), None);
    }
    let both = Both { old, new, was: &was, is: &is };
    both.lists(&mut changes);
    both.sources(&mut changes);
    Ok(changes)
}

fn bound(bound: Option<u64>) -> String {
    bound.map_or("no bound".into(), |bound| bound.to_string())
}

fn is_more(was: Option<u64>, is: Option<u64>) -> bool {
    match (was, is) {
        (Some(was), Some(is)) => is > was,
        (was, is) => was.is_some() && is.is_none(),
    }
}

/// Tools that are new, do something else, or ask less.
fn tools(old: &Loaded, new: &Loaded) -> Vec<String> {
    let own = old.said.tools.keys().chain(new.said.tools.keys()).map(|name| name.as_str());
    let names: BTreeSet<&str> = BUILT_IN.iter().map(|(name, _)| *name).chain(own).collect();
    let command = |loaded: &Loaded, name: &str| {
        loaded
            .said
            .tools
            .iter()
            .find(|(known, _)| known.as_str() == name)
            .and_then(|(_, tool)| tool.command.clone())
    };
    let ease = |risk: Risk| if risk >= Risk::High { 0 } else { 1 };
    let mut found = Vec::new();
    for name in names {
        let Some((operation, risk)) = new.policy.tool(name) else { continue };
        match old.policy.tool(name) {
            None => found.push(format!("{name}: {operation}, risk {}", word(&risk))),
            Some((other, _)) if other != operation => {
                found.push(format!("{name}: {operation} (else {other})"))
            }
            Some((_, was)) if ease(risk) > ease(was) || (was == Risk::Critical && risk < was) => {
                found.push(format!("{name}: risk {} (else {})", word(&risk), word(&was)));
            }
            Some(_) if command(new, name) != command(old, name) => {
                found.push(format!(
                    "{name}: runs {}",
                    crate::words::shown(&command(new, name).unwrap_or_default())
                ));
            }
            Some(_) => {}
        }
    }
    found
}

/// Two manifests, and what each comes to.
struct Both<'a> {
    old: &'a Loaded,
    new: &'a Loaded,
    was: &'a Authority,
    is: &'a Authority,
}

impl Both<'_> {
    fn lists(&self, changes: &mut Vec<Change>) {
        use Operation::{
            EditFiles, GlobSearch, GrepSearch, ReadFiles, RunBash, SpawnAgent, WebFetch, WebSearch,
            WriteFiles,
        };
        self.list(changes, "read", &[ReadFiles, GlobSearch, GrepSearch], |rules| &rules.read);
        self.list(changes, "write", &[WriteFiles, EditFiles], |rules| &rules.write);
        self.list(changes, "commands", &[RunBash], |rules| &rules.commands);
        self.list(changes, "names", &[WebFetch, WebSearch], |rules| &rules.names);
        self.list(changes, "agents", &[SpawnAgent], |rules| &rules.agents);
        let never = |authority: &Authority| {
            vec![authority.rules().iter().flat_map(|rules| rules.never.clone()).collect::<Vec<_>>()]
        };
        for pattern in uncovered(&never(self.is), &never(self.was)) {
            let example = self.example(&[ReadFiles, WriteFiles], pattern.as_str());
            changes.push(Change { kind: "never", what: format!("{pattern} may be touched"), example });
        }
    }

    fn list<T: Pattern>(
        &self,
        changes: &mut Vec<Change>,
        kind: &'static str,
        operations: &[Operation],
        of: impl Fn(&Rules) -> &Vec<T>,
    ) {
        if operations.iter().all(|operation| self.is.level(*operation) == Level::Never) {
            return;
        }
        let lists = |authority: &Authority| {
            authority.rules().iter().map(|rules| of(rules).clone()).collect::<Vec<_>>()
        };
        for pattern in uncovered(&lists(self.was), &lists(self.is)) {
            let what = pattern.to_string();
            let example = self.example(operations, &what);
            changes.push(Change { kind, what, example });
        }
    }

    /// What is private or of strangers no longer, and what is newly trusted.
    fn sources(&self, changes: &mut Vec<Change>) {
        let (old, new) = (&self.old.said.sources, &self.new.said.sources);
        for (kind, is, was) in
            [("private", &new.private, &old.private), ("untrusted", &new.untrusted, &old.untrusted)]
        {
            for pattern in uncovered(from_ref(is), from_ref(was)) {
                changes.push(Change { kind, what: format!("{pattern} is not {kind}"), example: None });
            }
        }
        for pattern in uncovered(from_ref(&old.trusted_names), from_ref(&new.trusted_names)) {
            changes.push(Change { kind: "trusted_names", what: pattern.to_string(), example: None });
        }
    }

    /// A call that the pattern admits, and that is decided more freely.
    fn example(&self, operations: &[Operation], pattern: &str) -> Option<String> {
        let tools = BUILT_IN.iter().filter_map(|(name, operation)| Some((*name, (*operation)?)));
        tools.filter(|(_, operation)| operations.contains(operation)).find_map(|(tool, operation)| {
            let by = if operation == Operation::RunBash { ' ' } else { '/' };
            let texts = match operation {
                Operation::WebFetch | Operation::WebSearch => vec![pattern.replace("*.", "example.")],
                Operation::SpawnAgent => vec![pattern.to_owned()],
                _ => examples(pattern.strip_prefix('/').unwrap_or(pattern), by),
            };
            texts.into_iter().find_map(|text| {
                let target = match operation {
                    Operation::RunBash => Target::Command(text.split(' ').map(str::to_owned).collect()),
                    _ => super::explain::target(operation, Some(&text)).ok()?,
                };
                let (was, is) = (
                    self.decided(self.was, self.old, tool, operation, &target),
                    self.decided(self.is, self.new, tool, operation, &target),
                );
                (is > was).then(|| format!("{tool} {text}: {} (else {})", word(&is), word(&was)))
            })
        })
    }

    fn decided(
        &self,
        authority: &Authority,
        loaded: &Loaded,
        tool: &str,
        operation: Operation,
        target: &Target,
    ) -> Verdict {
        let nothing = Digest([0; 32]);
        let call = Call {
            operation,
            tool: tool.to_owned(),
            target: target.clone(),
            arguments: nothing,
            pinned: nothing,
            flows: Exposure::NONE,
            sealed: false,
        };
        let situation = Situation {
            now_unix_ms: 0,
            seen: Exposure::NONE,
            written: Exposure::NONE,
            left: Amounts::default(),
            needs: Amounts::default(),
            is_declassified: false,
        };
        decide(authority, &loaded.policy, &situation, &call).verdict()
    }
}
