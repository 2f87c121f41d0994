//! `ledger`: what happened on the node, and whether the record still holds.

use abi::control::{LedgerFound, LedgerPage, LedgerQuery, LedgerTail, Nothing, Recorded, Verified};
use serde_json::Value;
use std::time::Duration;

use super::{id, logs, note, offbox};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{moment, size, visible};

/// A long ledger takes its time to check.
pub const VERIFY_SILENCE: Duration = Duration::from_secs(300);

pub fn tail(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let follow = given.has("follow");
    let params = LedgerTail { limit: given.number("limit")?, follow };
    let silence = if follow { Silence::Unbounded } else { Silence::Ordinary };
    let mut link = context.ask("ledger.tail", &params, silence)?;
    let result = link.result(&mut |request| context.note(request))?;
    if let Some(result) = context.result_or_json(result)? {
        let page: LedgerPage = typed(&result)?;
        say(&page.events.iter().map(line).collect::<String>())?;
    }
    if !follow {
        return Ok(0);
    }
    link.follow(&mut |request| {
        if context.json {
            return context.note(request);
        }
        match note::<Recorded>(request, "event")? {
            Some(event) => say(&line(&event)),
            None => Ok(()),
        }
    })
}

/// An event on a line.
pub fn line(recorded: &Recorded) -> String {
    let event = serde_json::to_value(&recorded.event).unwrap_or_default();
    let name = event.get("event").and_then(Value::as_str).unwrap_or("-").to_owned();
    let mut text =
        format!("{:>6} {} {:<8} {name}", recorded.seq, moment(recorded.unix_ms), visible(&recorded.source));
    for (field, value) in event.as_object().into_iter().flatten() {
        if field != "event" && !value.is_null() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!(" {field}={}", visible(&value)));
        }
    }
    text.push('\n');
    text
}

pub fn query(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let mut left = given.number::<u32>("limit")?;
    let mut asked = LedgerQuery {
        agent: given.value("agent").map(id).transpose()?,
        events: given.values("event").to_vec(),
        source: given.value("source").map(str::to_owned),
        since_unix_ms: logs::time(given, "since")?,
        until_unix_ms: logs::time(given, "until")?,
        ..LedgerQuery::default()
    };
    while left != Some(0) {
        asked.limit = left;
        let result = context.ask("ledger.query", &asked, Silence::Ordinary)?.result(&mut |_| Ok(()))?;
        let found: LedgerFound = typed(&result)?;
        left = left.map(|left| left.saturating_sub(u32::try_from(found.events.len()).unwrap_or(left)));
        if context.result_or_json(result)?.is_some() {
            say(&found.events.iter().map(line).collect::<String>())?;
        }
        match found.next_seq {
            Some(next) if next > asked.from_seq => asked.from_seq = next,
            _ => break,
        }
    }
    Ok(0)
}

pub fn verify(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    match (given.value("export"), given.value("proof")) {
        (Some(_), Some(_)) => {
            return Err(Failure::usage("--export and --proof", "check one, then the other"));
        }
        (Some(export), None) => return offbox::verify_export(context, given, export),
        (None, Some(proof)) => return offbox::verify_proof(context, given, proof),
        (None, None) if given.has("since") => {
            return Err(Failure::usage("--since without --export or --proof", "export the ledger first"));
        }
        (None, None) => {}
    }
    let result = context
        .ask("ledger.verify", &Nothing {}, Silence::AtMost(VERIFY_SILENCE))?
        .result(&mut |request| context.note(request))?;
    let verified: Verified = typed(&result)?;
    let broken = verified.broken.clone();
    if context.result_or_json(result)?.is_some() {
        let head = verified.head.map_or("nothing".into(), |head| head.to_string());
        say(&format!("{} events, {}, head {head}\n", verified.events, size(verified.bytes)))?;
        say(if broken.is_none() { "the chain holds\n" } else { "" })?;
    }
    match broken {
        None => Ok(0),
        Some(broken) => Err(Failure::local(
            status::FAILED,
            format!(
                "the ledger is broken at event {}, segment {}, byte {}: {}{}{}",
                broken.seq,
                broken.segment,
                broken.offset,
                broken.why,
                if broken.lost.is_empty() { "" } else { "; lost: " },
                broken.lost
            ),
            "each event's digest covers all before it",
            "keep the disk as evidence; what stands before that byte holds together, but only what a checkpoint kept elsewhere covers is known to be right",
        )),
    }
}
