//! `approvals`, `approve`, `deny`: questions to people.
//!
//! Must hold: whatever a question shows was written by others; it is quoted, and no character of it steers a terminal.

use abi::control::{Approval, ApprovalDecide, ApprovalList, Approvals};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{facts, quoted, span, visible};

pub fn list(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let follow = given.has("follow");
    let silence = if follow { Silence::Unbounded } else { Silence::Ordinary };
    let mut link = context.ask("approval.list", &ApprovalList { follow }, silence)?;
    // A question that comes before the list has its answer is in the list too.
    let result = link.result(&mut |_| Ok(()))?;
    if let Some(result) = context.result_or_json(result)? {
        let list: Approvals = typed(&result)?;
        if list.approvals.is_empty() && !follow {
            say("no question waits\n")?;
        }
        say(&list.approvals.iter().map(in_words).collect::<Vec<_>>().join("\n"))?;
    }
    if !follow {
        return Ok(0);
    }
    link.follow(&mut |request| {
        if context.json {
            return context.note(request);
        }
        match note::<Approval>(request, "approval")? {
            Some(approval) => say(&format!("\n{}", in_words(&approval))),
            None => Ok(()),
        }
    })
}

pub fn approve(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    decide(context, given, true)
}

pub fn deny(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    decide(context, given, false)
}

fn decide(context: &Context, given: &Arguments, approve: bool) -> Result<u8, Failure> {
    let word = if approve { "approve" } else { "deny" };
    let reason = reason(given, word)?;
    let params = ApprovalDecide { id: id(given.required(0))?, approve, reason };
    if context.call("approval.decide", &params)?.is_some() {
        let done = if approve { "approved, for exactly this call, once" } else { "denied" };
        say(&format!("{} is {done}\n", params.id))?;
    }
    Ok(0)
}

/// `--reason`, which the ledger keeps.
pub fn reason(given: &Arguments, command: &str) -> Result<String, Failure> {
    given.value("reason").map(str::trim).filter(|reason| !reason.is_empty()).map(str::to_owned).ok_or_else(
        || {
            Failure::usage(
                format!("{command}: --reason is missing"),
                "say why, for those who read the ledger: --reason \"...\"",
            )
        },
    )
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A question as a person reads it.
fn in_words(approval: &Approval) -> String {
    let Approval { id, decision, .. } = approval;
    let who = match (&approval.instance, &approval.task) {
        (Some(instance), Some(task)) => format!("{instance}, task {task}"),
        (Some(instance), None) => instance.to_string(),
        (None, Some(task)) => format!("an operator, task {task}"),
        (None, None) => "an operator".to_owned(),
    };
    let left = match approval.until_unix_ms.checked_sub(now_unix_ms()) {
        Some(ms) => format!("{} left", span(ms)),
        None => "its time is over".to_owned(),
    };
    let exposure = match decision.exposure.is_none() {
        true => "none".to_owned(),
        false => decision.exposure.to_string(),
    };
    let frozen = if approval.is_frozen { ", its VM stands still meanwhile" } else { "" };
    let mut text = format!("{id}: may this happen? {left}{frozen}\n");
    text.push_str(&facts(&[
        ("  who", who),
        ("  tool", approval.tool.clone()),
        ("  what", approval.what.clone()),
        ("  rule", decision.rule.clone()),
        ("  why", decision.why.clone()),
        ("  exposure", exposure),
        ("  risk", super::word(&decision.risk)),
        ("  decides", format!("{} or above", approval.role)),
        ("  arguments", approval.arguments.to_string()),
        ("  pinned", approval.pinned.to_string()),
    ]));
    text.push_str(&quoted(&approval.shown, "  | "));
    if approval.is_cut {
        text.push_str("  (the rest is cut: do not approve what you have not seen)\n");
    }
    let id = visible(id.as_str());
    let _ = writeln!(text, "  nullctl approve {id} --reason ...   or   nullctl deny {id} --reason ..."); // a String takes everything
    text
}
