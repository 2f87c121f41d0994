//! Calls as a ledger holds them, and `policy replay`: what a manifest would decide on them.
//!
//! An event holds what was decided and by what, not all that was asked. What is not there is said, never guessed: a target that was cut is
//! passed over. Words of a command are parted at blanks.

use abi::authority::{Amounts, Call, Operation, Situation, Target, Verdict};
use abi::control::{LedgerFound, Recorded};
use abi::exposure::Exposure;
use abi::ids::Instance;
use abi::ledger::Event;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use verdict::decide::decide;

use super::explain::page;
use super::{Loaded, line_wrong, lines};
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::{Failure, status};
use crate::print::visible;

/// A target of so many bytes or more was cut.
const TARGET_BYTES: usize = 512;

/// One call of a ledger.
pub struct Past {
    pub seq: u64,
    pub unix_ms: u64,
    pub instance: Instance,
    pub call: Call,
    /// What was decided before a human was asked.
    pub verdict: Verdict,
    /// It was done.
    pub was_done: bool,
    pub rule: String,
}

/// Calls from standard input, in the order of the ledger; and how many were passed over, with why.
pub fn read() -> Result<(Vec<Past>, Vec<String>), Failure> {
    let (mut past, mut passed_over) = (Vec::new(), Vec::new());
    lines(&mut |number, line| {
        let wrong = |error: serde_json::Error| line_wrong(number, error);
        let value: Value = serde_json::from_str(line).map_err(wrong)?;
        let events = match &value {
            Value::Object(members) if members.contains_key("events") => {
                serde_json::from_value::<LedgerFound>(value).map_err(wrong)?.events
            }
            // A notification of ledger tail --follow --json.
            Value::Object(members) if members.len() == 1 && members.contains_key("event") => {
                vec![Recorded::of_value(&value["event"]).map_err(wrong)?]
            }
            _ => vec![Recorded::of_value(&value).map_err(wrong)?],
        };
        for event in events {
            // What has no operation (memory, submit, an unknown tool) is not decided by these rules.
            if let Event::ToolCalled { operation: Some(_), .. } = event.event {
                let seq = event.seq;
                match call(event) {
                    Ok(call) => past.push(call),
                    Err(why) => passed_over.push(format!("event {seq}: {why}")),
                }
            }
        }
        Ok(())
    })?;
    past.sort_by_key(|call: &Past| call.seq);
    Ok((past, passed_over))
}

/// As `serde_json::from_value`, by reference.
trait OfValue: Sized {
    fn of_value(value: &Value) -> Result<Self, serde_json::Error>;
}

impl OfValue for Recorded {
    fn of_value(value: &Value) -> Result<Recorded, serde_json::Error> {
        serde::Deserialize::deserialize(value)
    }
}

fn call(recorded: Recorded) -> Result<Past, &'static str> {
    let Event::ToolCalled {
        instance,
        tool,
        operation: Some(operation),
        target,
        arguments,
        verdict,
        rule,
        exposure,
        approval,
        ..
    } = recorded.event
    else {
        return Err("is no call");
    };
    if target.len() >= TARGET_BYTES {
        return Err("its target was cut");
    }
    let is_built_in = abi::tools::BUILT_IN.iter().any(|(name, _)| *name == tool);
    let target = if is_built_in {
        target_of(operation, &target).ok_or("its target cannot be read")?
    } else {
        Target::Arguments
    };
    // What a sink was judged by has the sink itself in it.
    let seen =
        [Exposure::PRIVATE_DATA, Exposure::UNTRUSTED_CONTENT].into_iter().filter(|one| exposure.has(*one));
    let flows = seen.fold(Exposure::NONE, Exposure::and);
    let call = Call { operation, tool, target, arguments, pinned: arguments, flows, sealed: false };
    let was_done = verdict == Verdict::Allow || approval.is_some();
    // `approval` refuses what was asked and not approved.
    let was_asked = approval.is_some() || rule == "approval";
    let verdict = if was_asked { Verdict::Ask } else { verdict };
    Ok(Past { seq: recorded.seq, unix_ms: recorded.unix_ms, instance, call, verdict, was_done, rule })
}

fn target_of(operation: Operation, text: &str) -> Option<Target> {
    use Operation::{
        EditFiles, GlobSearch, GrepSearch, ReadFiles, RunBash, SpawnAgent, WebFetch, WebSearch, WriteFiles,
    };
    match operation {
        ReadFiles | WriteFiles | EditFiles | GlobSearch | GrepSearch => Some(Target::Path(text.to_owned())),
        RunBash => Some(Target::Command(text.split(' ').map(str::to_owned).collect())),
        WebFetch | WebSearch => page(text),
        SpawnAgent => text.parse().ok().map(Target::Agent),
        _ => None,
    }
}

/// Decides past calls anew, life by life.
pub struct Anew<'a> {
    loaded: &'a Loaded,
    lives: BTreeMap<Instance, (u64, u64)>,
}

impl<'a> Anew<'a> {
    pub fn new(loaded: &'a Loaded) -> Anew<'a> {
        Anew { loaded, lives: BTreeMap::new() }
    }

    /// What the manifest decides. A life begins with its first call here; each call that is allowed is taken off its budget.
    pub fn decide(&mut self, past: &Past) -> Result<abi::authority::Decision, Failure> {
        let (began, calls) = self.lives.entry(past.instance.clone()).or_insert((past.unix_ms, 0));
        let authority = self.loaded.authority(*began)?;
        let left = Amounts {
            calls: authority.budget().calls.map(|most| most.saturating_sub(*calls)),
            ..Amounts::default()
        };
        let situation = Situation {
            now_unix_ms: past.unix_ms,
            seen: Exposure::NONE,
            written: Exposure::NONE,
            left,
            needs: verdict::decide::ONE_CALL,
            is_declassified: false,
        };
        let decision = decide(&authority, &self.loaded.policy, &situation, &past.call).explained();
        *calls += u64::from(decision.verdict != Verdict::Deny);
        Ok(decision)
    }
}

pub fn replay(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let loaded = super::manifest(given)?;
    let (past, passed_over) = read()?;
    let mut anew = Anew::new(&loaded);
    let mut differs = 0u64;
    for one in &past {
        let decision = anew.decide(one)?;
        let is_same = decision.verdict == one.verdict;
        differs += u64::from(!is_same);
        if context.json {
            let then = json!({ "verdict": one.verdict, "rule": one.rule });
            say(&format!("{}\n", json!({ "seq": one.seq, "same": is_same, "then": then, "now": decision })))?;
        } else if !is_same {
            let (then, now) = (super::super::word(&one.verdict), super::super::word(&decision.verdict));
            let (rule, why) = (visible(&one.rule), visible(&decision.why));
            say(&format!(
                "event {} {}: was {then} ({rule}), would be {now} ({}): {why}\n",
                one.seq, one.instance, decision.rule
            ))?;
        }
    }
    for line in &passed_over {
        eprintln!("passed over: {line}");
    }
    if !context.json {
        say(&format!("{} calls, {differs} decided differently\n", past.len()))?;
    }
    Ok(if differs == 0 { 0 } else { status::FAILED })
}
