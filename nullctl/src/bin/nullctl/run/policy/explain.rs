//! `policy explain`: one call in words, with what each rule says of it.
//!
//! Each rule's outcome is the library's own: the same decision, with every other rule opened as far as it can be.

use abi::authority::{
    Amounts, Call, CommandPattern, Level, NamePattern, Operation, Risk, Rules, Situation, Target, Verdict,
};
use abi::exposure::Exposure;
use abi::ids::Digest;
use serde_json::json;
use verdict::authority::Authority;
use verdict::decide::{Policy, decide};

use super::Loaded;
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::{Failure, status};
use crate::print::{Table, facts};
use crate::words;

/// The rules, in the order of docs/authority.md.
const RULES: &[&str] = &[
    "expired", "tool", "level", "never", "path", "command", "name", "agent", "depth", "budget", "risk",
    "exposure",
];

pub fn explain(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let loaded = super::manifest(given)?;
    let now = super::now_unix_ms();
    let (call, situation) = asked(&loaded, given, now)?;
    let authority = loaded.authority(now)?;
    let ruling = decide(&authority, &loaded.policy, &situation, &call);
    let decision = ruling.explained();
    let outcomes: Vec<(&str, &str, String)> =
        RULES.iter().map(|rule| outcome(&loaded, &authority, &situation, &call, rule)).collect();
    let code = if decision.verdict == Verdict::Deny { status::FAILED } else { 0 };
    if context.json {
        let rules: Vec<_> = outcomes
            .iter()
            .map(|(rule, says, why)| json!({ "rule": rule, "says": says, "why": why }))
            .collect();
        return say(&format!(
            "{}\n",
            json!({ "call": call, "situation": situation, "decision": decision, "rules": rules })
        ))
        .map(|()| code);
    }
    let set = |set: Exposure| if set.is_none() { "nothing".to_owned() } else { set.to_string() };
    let mut text = facts(&[
        ("verdict", super::super::word(&decision.verdict)),
        ("rule", decision.rule),
        ("why", decision.why),
        ("remedy", decision.remedy),
        ("risk", super::super::word(&decision.risk)),
        ("exposure", set(decision.exposure)),
        ("result carries", set(decision.labels)),
    ]);
    let mut table = Table::new(&["RULE", "SAYS", "WHY"]);
    for (rule, says, why) in &outcomes {
        table.row(&[rule, says, why]);
    }
    text.push('\n');
    text.push_str(&table.render());
    say(&text).map(|()| code)
}

/// The call that is asked about, and the moment it comes at.
fn asked(loaded: &Loaded, given: &Arguments, now: u64) -> Result<(Call, Situation), Failure> {
    let tool = given.required(0);
    let (operation, _) = loaded.policy.tool(tool).ok_or_else(|| {
        Failure::usage(
            format!("the manifest has no tool `{tool}` that is decided by rules"),
            "see docs/tools.md, or [tools] of the manifest",
        )
    })?;
    let is_own = !abi::tools::BUILT_IN.iter().any(|(name, _)| *name == tool);
    if given.at(1).is_some() == is_own {
        let why = if is_own { "is of the manifest's own, and has no target" } else { "needs a target" };
        return Err(Failure::usage(
            format!("policy explain: the tool `{tool}` {why}"),
            "write for example: read /work/a, run \"cargo test\", fetch https://docs.rs, and of a tool of [tools] its name alone",
        ));
    }
    let exposure = |option: &str| {
        let words = given.values(option).join(" ").replace(',', " ");
        words.parse::<Exposure>().map_err(|why| {
            Failure::usage(format!("--{option}: {why}"), "write for example --seen private_data")
        })
    };
    let call = Call {
        operation,
        tool: tool.to_owned(),
        target: target(operation, given.at(1))?,
        arguments: Digest([0; 32]),
        pinned: Digest([0; 32]),
        flows: exposure("flows")?,
        sealed: false,
    };
    let situation = Situation {
        now_unix_ms: now,
        seen: exposure("seen")?,
        written: exposure("written")?,
        left: Amounts::default(),
        needs: verdict::decide::ONE_CALL,
        is_declassified: given.has("declassified"),
    };
    Ok((call, situation))
}

/// A target as a person writes it.
pub fn target(operation: Operation, text: Option<&str>) -> Result<Target, Failure> {
    use Operation::{
        EditFiles, GlobSearch, GrepSearch, ReadFiles, RunBash, SpawnAgent, WebFetch, WebSearch, WriteFiles,
    };
    let Some(text) = text else { return Ok(Target::Arguments) };
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("`{text}`: {why}"), "write a path, a command in quotes, or a page")
    };
    Ok(match operation {
        ReadFiles | WriteFiles | EditFiles | GlobSearch | GrepSearch => Target::Path(text.to_owned()),
        RunBash => Target::Command(words::split(text).map_err(|why| wrong(&why))?),
        WebFetch | WebSearch => page(text).ok_or_else(|| wrong(&"is no page"))?,
        SpawnAgent => Target::Agent(text.parse().map_err(|why| wrong(&why))?),
        _ => return Err(wrong(&"this tool's rules are about no target")),
    })
}

/// `NAME[:PORT][/PATH]`, with or without `https://` or `http://` before it.
pub fn page(text: &str) -> Option<Target> {
    let (text, standard) = match text.strip_prefix("http://") {
        Some(text) => (text, 80),
        None => (text.strip_prefix("https://").unwrap_or(text), 443),
    };
    let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, port.parse().ok()?),
        None => (host, standard),
    };
    let path = if path.is_empty() { "/" } else { path };
    Some(Target::Page { name: name.parse().ok()?, port, path: path.to_owned() })
}

/// What one rule says: `allows`, `asks`, `denies`, or `-` where it is not about such calls.
fn outcome<'r>(
    loaded: &Loaded,
    authority: &Authority,
    situation: &Situation,
    call: &Call,
    rule: &'r str,
) -> (&'r str, &'static str, String) {
    let rules: Vec<Rules> = authority.rules().iter().map(|one| opened(one, call, rule)).collect();
    let mut said = loaded.said.clone();
    if rule != "risk" {
        said.tools.values_mut().for_each(|tool| tool.risk = Risk::Low);
    }
    let mut situation = situation.clone();
    let mut call = call.clone();
    if rule != "exposure" {
        (situation.seen, call.flows) = (Exposure::NONE, Exposure::NONE);
    }
    if rule != "budget" {
        situation.needs = Amounts::default();
    }
    let Ok(alone) = Authority::of_all(&rules) else { return (rule, "-", String::new()) };
    let decision = decide(&alone, &Policy::of(&said), &situation, &call).explained();
    let is_about = match rule {
        "never" | "path" => matches!(call.target, Target::Path(_)),
        "command" => call.operation == Operation::RunBash,
        "name" => matches!(call.target, Target::Page { .. }),
        "agent" | "depth" => call.operation == Operation::SpawnAgent,
        "exposure" => call.operation.is_sink(),
        _ => true,
    };
    match (decision.verdict, decision.rule == rule, is_about) {
        (Verdict::Deny, true, _) => (rule, "denies", decision.why),
        (Verdict::Ask, true, _) => (rule, "asks", decision.why),
        // A target that no list can hold is denied by the list's rule, whatever stands in it.
        (Verdict::Deny | Verdict::Ask, false, _) | (_, _, false) => (rule, "-", String::new()),
        (Verdict::Allow, _, true) => (rule, "allows", String::new()),
    }
}

/// Rules that admit the call in everything but what one rule looks at.
fn opened(rules: &Rules, call: &Call, rule: &str) -> Rules {
    let mut open = rules.clone();
    let all = || "/**".parse().map(|all| vec![all]).unwrap_or_default();
    if rule != "expired" {
        open.until_unix_ms = None;
    }
    if rule != "level" {
        open.levels.insert(call.operation, Level::Always);
    }
    if rule != "never" {
        open.never = Vec::new();
    }
    if rule != "path" {
        (open.read, open.write) = (all(), all());
    }
    match &call.target {
        Target::Command(command) if rule != "command" => {
            let program = command.first().map(|first| format!("{first} **").parse::<CommandPattern>());
            open.commands = program.into_iter().flatten().collect();
        }
        Target::Page { name, .. } if rule != "name" => {
            open.names = name.as_str().parse::<NamePattern>().into_iter().collect();
        }
        Target::Agent(agent) if rule != "agent" => open.agents = vec![agent.clone()],
        _ => {}
    }
    if rule != "depth" {
        open.depth = open.depth.max(1);
    }
    if rule != "budget" {
        open.budget = Amounts::default();
    }
    open
}
