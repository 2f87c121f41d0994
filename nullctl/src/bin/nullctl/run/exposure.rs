//! `agent exposure`, `agent declassify`, `agent tighten`: what a life has seen, and may still do.

use abi::authority::{Amounts, CommandPattern, Level, NamePattern, Operation, PathPattern, Rules};
use abi::control::{Declassify, ExposureOf, ExposureStatus, Tighten};
use abi::ids::AgentName;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{amounts, approvals, id, word};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{facts, moment, visible};

pub fn show(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = ExposureOf { agent: id(given.required(0))? };
    let Some(result) = context.call("exposure.status", &params)? else { return Ok(0) };
    let status: ExposureStatus = typed(&result)?;
    let set = |set: abi::exposure::Exposure| if set.is_none() { "nothing".into() } else { set.to_string() };
    let raised: Vec<String> = status.raised_by.iter().map(u64::to_string).collect();
    let mut text = facts(&[
        ("life", status.instance.to_string()),
        ("has seen", set(status.seen)),
        ("files it wrote carry", set(status.written)),
        ("raised by receipts", if raised.is_empty() { "-".into() } else { raised.join(" ") }),
        ("spent", amounts::in_words(&status.spent)),
        ("left", amounts::in_words(&status.left)),
    ]);
    for (place, rules) in status.rules.iter().enumerate() {
        let _ = write!(text, "\nrules {}, met with the others:\n{}", place + 1, rules_in_words(rules)); // a String takes everything
    }
    say(&text).map(|()| 0)
}

/// Rules as lines.
pub fn rules_in_words(rules: &Rules) -> String {
    let listed = |list: Vec<String>| if list.is_empty() { "-".to_owned() } else { list.join("  ") };
    let at = |level: Level| {
        let named = rules.levels.iter().filter(|(_, one)| **one == level);
        listed(named.map(|(operation, _)| operation.to_string()).collect())
    };
    let strings = |list: &[PathPattern]| listed(list.iter().map(ToString::to_string).collect());
    facts(&[
        ("  always", at(Level::Always)),
        ("  ask", at(Level::Ask)),
        ("  read", strings(&rules.read)),
        ("  write", strings(&rules.write)),
        ("  never", strings(&rules.never)),
        ("  commands", listed(rules.commands.iter().map(|one| format!("`{one}`")).collect())),
        ("  names", listed(rules.names.iter().map(ToString::to_string).collect())),
        ("  until", rules.until_unix_ms.map_or("-".into(), moment)),
        ("  budget", amounts::in_words(&rules.budget)),
    ])
}

pub fn declassify(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let arguments = given.value("arguments").ok_or_else(|| {
        Failure::usage(
            "agent declassify: --arguments is missing",
            "write the SHA-256 of the arguments, as the question or the refusal shows it",
        )
    })?;
    let prefix = if arguments.starts_with("sha256:") { "" } else { "sha256:" };
    let params = Declassify {
        agent: id(given.required(0))?,
        arguments: id(&format!("{prefix}{arguments}"))?,
        reason: approvals::reason(given, "agent declassify")?,
    };
    if context.call("exposure.declassify", &params)?.is_some() {
        say(&format!("calls of {} with exactly these arguments may leave, in this life\n", params.agent))?;
    }
    Ok(0)
}

/// What `--rules` holds: fields of `[authority]`. What is absent stays as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tightening {
    read: Option<Vec<PathPattern>>,
    write: Option<Vec<PathPattern>>,
    #[serde(default)]
    never: Vec<PathPattern>,
    commands: Option<Vec<CommandPattern>>,
    names: Option<Vec<NamePattern>>,
    expires_secs: Option<u64>,
    #[serde(default)]
    budget: BTreeMap<String, u64>,
    #[serde(default)]
    operations: BTreeMap<Operation, Level>,
}

impl Tightening {
    /// The rules to meet with: where nothing is said, what holds already, which a meet leaves as it is.
    fn rules(self, now: &Rules, now_unix_ms: u64) -> Result<Rules, String> {
        let mut rules = Rules {
            read: self.read.unwrap_or_else(|| now.read.clone()),
            write: self.write.unwrap_or_else(|| now.write.clone()),
            never: self.never,
            commands: self.commands.unwrap_or_else(|| now.commands.clone()),
            names: self.names.unwrap_or_else(|| now.names.clone()),
            agents: now.agents.clone(),
            until_unix_ms: self
                .expires_secs
                .map(|secs| now_unix_ms.saturating_add(secs.saturating_mul(1000))),
            depth: now.depth,
            levels: now.levels.clone(),
            budget: Amounts::default(),
        };
        rules.levels.extend(self.operations);
        for (name, value) in &self.budget {
            amounts::set(&mut rules.budget, amounts::OF_LIFE, name, *value)?;
        }
        Ok(rules)
    }
}

pub fn tighten(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let agent: AgentName = id(given.required(0))?;
    let path = given.value("rules").ok_or_else(|| {
        Failure::usage("agent tighten: --rules is missing", "name a TOML file with fields of [authority]")
    })?;
    let wrong = |error: &dyn std::fmt::Display| {
        let remedy = "write fields of [authority]: read, write, never, commands, names, expires_secs, budget, operations; no heading [authority] above them";
        Failure::usage(format!("{path}: {error}"), remedy)
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    let tightening: Tightening = toml::from_str(&text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        wrong(&format!("line {}: {}", before.matches('\n').count() + 1, error.message()))
    })?;
    let asked = context.ask("exposure.status", &ExposureOf { agent: agent.clone() }, Silence::Ordinary)?;
    let now: ExposureStatus = typed(&{ asked }.result(&mut |_| Ok(()))?)?;
    let ground = now.rules.first().ok_or_else(|| {
        Failure::local(
            status::FAILED,
            format!("{} has no rules to tighten", visible(agent.as_str())),
            "an agent without [authority] has no tools",
            "see nullctl agent exposure",
        )
    })?;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
    let rules = tightening.rules(ground, now_unix_ms).map_err(|error| wrong(&error))?;
    let params = Tighten { agent, rules };
    if context.call("agent.tighten", &params)?.is_some() {
        let levels =
            params.rules.levels.iter().map(|(operation, level)| format!("{operation} {}", word(level)));
        let levels: Vec<String> = levels.collect();
        say(&format!(
            "{}: what it may do is met with these rules now ({})\n",
            params.agent,
            levels.join(", ")
        ))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tightening_does_not_name_stays_as_it_is() {
        let now: Rules = serde_json::from_value(serde_json::json!({
            "levels": {"read_files": "always", "run_bash": "ask"}, "read": ["/work/**"], "depth": 2
        }))
        .unwrap();
        let file = "never = [\"/work/.env\"]\nexpires_secs = 5\nbudget = { calls = 3 }\n[operations]\nrun_bash = \"never\"\n";
        let rules = toml::from_str::<Tightening>(file).unwrap().rules(&now, 1000).unwrap();
        assert_eq!((&rules.read, rules.depth, rules.until_unix_ms), (&now.read, 2, Some(6000)));
        assert_eq!(rules.levels[&Operation::ReadFiles], Level::Always);
        assert_eq!(rules.levels[&Operation::RunBash], Level::Never);
        assert_eq!((rules.budget.calls, rules.never.len()), (Some(3), 1));
        for wrong in [
            "reed = []",
            "agents = []",
            "depth = 0",
            "[operations]\nfly = \"ask\"",
            "read = [\"work\"]",
            "profile = \"x\"",
        ] {
            assert!(toml::from_str::<Tightening>(wrong).is_err(), "{wrong}");
        }
        let wrong = toml::from_str::<Tightening>("budget = { call = 3 }").unwrap();
        assert!(wrong.rules(&now, 0).unwrap_err().contains("`call`"));
    }
}
