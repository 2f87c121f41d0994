//! `ledger`: what happened on the node, and whether the record still holds.

use abi::control::{LedgerPage, LedgerTail, Nothing, Recorded, Verified};
use serde_json::Value;
use std::time::Duration;

use super::note;
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{moment, size, visible};

/// A long ledger takes its time to check.
const VERIFY_SILENCE: Duration = Duration::from_secs(300);

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

fn line(recorded: &Recorded) -> String {
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

pub fn verify(context: &Context, _: &Arguments) -> Result<u8, Failure> {
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
            format!("the ledger is broken at event {}, byte {}: {}", broken.seq, broken.offset, broken.why),
            "each event's digest covers all before it",
            "keep the disk as evidence; what stands before that byte is sound",
        )),
    }
}
