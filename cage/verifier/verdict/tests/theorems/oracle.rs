//! What docs/authority.md says, written down a second time as plainly as can be: slow, recursive, rule after rule. The decision must agree.

use abi::authority::{
    Authority as Policies, Call, Level, Operation, PathPattern, Risk, Rules, Situation, Target, Verdict,
};
use abi::exposure::Exposure;

/// `*` in a word.
fn word(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['*', rest @ ..], _) => (0..=text.len()).any(|taken| word(rest, &text[taken..])),
        ([one, rest @ ..], [other, others @ ..]) => one == other && word(rest, others),
        _ => false,
    }
}

fn word_ok(pattern: &str, text: &str) -> bool {
    word(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

fn parts_ok(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**", rest @ ..], _) => (0..=path.len()).any(|taken| parts_ok(rest, &path[taken..])),
        ([one, rest @ ..], [other, others @ ..]) => word_ok(one, other) && parts_ok(rest, others),
        _ => false,
    }
}

pub fn path_ok(pattern: &PathPattern, path: &str) -> bool {
    parts_ok(&parts(pattern.as_str()), &parts(path))
}

/// The path or one above it.
pub fn covers(pattern: &PathPattern, path: &str) -> bool {
    let (pattern, path) = (parts(pattern.as_str()), parts(path));
    (0..=path.len()).any(|length| parts_ok(&pattern, &path[..length]))
}

fn command_ok(pattern: &str, command: &[String]) -> bool {
    let mut words: Vec<&str> = pattern.split(' ').collect();
    let open = words.last() == Some(&"**");
    if open {
        words.pop();
    }
    let length_ok = if open { command.len() >= words.len() } else { command.len() == words.len() };
    length_ok && words[0] == command[0] && words.iter().zip(command).all(|(one, other)| word_ok(one, other))
}

fn name_ok(pattern: &str, name: &str) -> bool {
    pattern == name
        || pattern.strip_prefix('*').is_some_and(|suffix| name.ends_with(suffix) && name != suffix)
}

fn plain(path: &str) -> bool {
    path == "/"
        || (path.starts_with('/')
            && !path.contains(|c: char| c.is_ascii_control())
            && path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")))
}

/// What one set of rules says of a call: the rules that refuse it.
fn refusals(rules: &Rules, policies: &Policies, situation: &Situation, call: &Call) -> Vec<&'static str> {
    use Operation::*;
    let mut refused = Vec::new();
    let own = policies.tools.iter().find(|(name, _)| name.as_str() == call.tool).map(|(_, tool)| tool);
    let built_in = match call.tool.as_str() {
        "read" => Some(ReadFiles),
        "write" | "remove" => Some(WriteFiles),
        "edit" => Some(EditFiles),
        "glob" => Some(GlobSearch),
        "grep" => Some(GrepSearch),
        "run" => Some(RunBash),
        "fetch" => Some(WebFetch),
        _ => None,
    };
    let is_own = own.is_some_and(|tool| tool.command.is_some());
    if rules.until_unix_ms.is_some_and(|until| situation.now_unix_ms >= until) {
        refused.push("expired");
    }
    if own.map(|tool| tool.operation).or(built_in) != Some(call.operation) {
        refused.push("tool");
    }
    if rules.levels.get(&call.operation).is_none_or(|level| *level == Level::Never) {
        refused.push("level");
    }
    match (call.operation, &call.target) {
        (_, Target::Arguments) if is_own => {}
        (ReadFiles | WriteFiles | EditFiles | GlobSearch | GrepSearch, Target::Path(path)) => {
            if !plain(path) {
                refused.push("path");
            } else if rules.never.iter().any(|one| covers(one, path)) {
                refused.push("never");
            } else {
                let list =
                    if matches!(call.operation, WriteFiles | EditFiles) { &rules.write } else { &rules.read };
                let deep = format!("{}/any/thing", path.trim_end_matches('/'));
                let ok = |one: &PathPattern| match call.operation {
                    GlobSearch | GrepSearch => {
                        path_ok(one, path) && path_ok(one, &deep) && one.as_str().ends_with("**")
                    }
                    _ => path_ok(one, path),
                };
                if !list.iter().any(ok) {
                    refused.push("path");
                }
            }
        }
        (RunBash, Target::Command(command)) => {
            if command.is_empty() || !rules.commands.iter().any(|one| command_ok(one.as_str(), command)) {
                refused.push("command");
            }
        }
        (WebFetch | WebSearch, Target::Page { name, .. }) => {
            if !rules.names.iter().any(|one| name_ok(one.as_str(), name.as_str())) {
                refused.push("name");
            }
        }
        (SpawnAgent, Target::Agent(agent)) => {
            if !rules.agents.contains(agent) {
                refused.push("agent");
            }
        }
        (ReadFiles | WriteFiles | EditFiles | GlobSearch | GrepSearch, _) => refused.push("path"),
        (RunBash, _) => refused.push("command"),
        (SpawnAgent, _) => refused.push("agent"),
        _ => refused.push("name"),
    }
    if call.operation == SpawnAgent && rules.depth == 0 {
        refused.push("depth");
    }
    let bounds = rules.budget.list().into_iter().zip(situation.left.list()).zip(situation.needs.list());
    if bounds.into_iter().any(|((bound, left), needs)| {
        needs.is_some_and(|needs| {
            bound.is_some_and(|bound| needs > bound) || left.is_some_and(|left| needs > left)
        })
    }) {
        refused.push("budget");
    }
    refused
}

/// Verdict and rules: those that refuse, else those that ask.
pub fn judge(
    all: &[Rules],
    policies: &Policies,
    situation: &Situation,
    call: &Call,
) -> (Verdict, Vec<&'static str>) {
    let refused: Vec<&str> =
        all.iter().flat_map(|rules| refusals(rules, policies, situation, call)).collect();
    if !refused.is_empty() {
        return (Verdict::Deny, refused);
    }
    let mut asks = Vec::new();
    if all.iter().any(|rules| rules.levels.get(&call.operation) == Some(&Level::Ask)) {
        asks.push("level");
    }
    let risk = policies.tools.iter().find(|(name, _)| name.as_str() == call.tool).map(|(_, tool)| tool.risk);
    if matches!(risk, Some(Risk::High | Risk::Critical)) {
        asks.push("risk");
    }
    if exposure_asks(policies, situation, call) {
        asks.push("exposure");
    }
    (if asks.is_empty() { Verdict::Allow } else { Verdict::Ask }, asks)
}

fn exposure_asks(policies: &Policies, situation: &Situation, call: &Call) -> bool {
    use Operation::*;
    let sink = matches!(call.operation, WebSearch | WebFetch | GitPush | CreatePr | ManagePods);
    let trusted = match &call.target {
        Target::Page { name, .. } => {
            policies.sources.trusted_names.iter().any(|one| name_ok(one.as_str(), name.as_str()))
        }
        _ => false,
    };
    let seen = |one| call.flows.has(one) || (!situation.is_declassified && situation.seen.has(one));
    sink && !trusted && seen(Exposure::PRIVATE_DATA) && seen(Exposure::UNTRUSTED_CONTENT)
}
