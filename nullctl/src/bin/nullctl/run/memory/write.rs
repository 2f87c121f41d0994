//! `memory write` and `memory batch`.

use abi::control::{Entries, MemoryBatch, MemoryWrite};
use abi::memory::{Expected, Link, NoEntry};
use serde_json::Value;

use super::{entries, input, labels, owner, pairs, show_entry};
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::run::id;

pub fn write(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let text = match given.required(1) {
        "-" => input::text("-")?,
        text => text.to_owned(),
    };
    let value = if given.has("text") {
        Value::String(text)
    } else {
        serde_json::from_str(&text).map_err(|error| {
            Failure::usage(format!("VALUE is not JSON: {error}"), "quote it as JSON, or add --text")
        })?
    };
    let parent = match given.value("parent") {
        None => None,
        Some("none") => Some(Expected::None(NoEntry::None)),
        Some(hash) => Some(Expected::Entry(id(hash)?)),
    };
    let links = pairs(given, "link")?
        .into_iter()
        .map(|(kind, to)| Ok(Link { kind: kind.to_owned(), to: id(to)? }))
        .collect::<Result<_, Failure>>()?;
    let params = MemoryWrite {
        agent: Some(owner(given)?),
        key: given.required(0).to_owned(),
        value,
        parent,
        labels: labels(given)?,
        links,
        ttl_secs: given.number("ttl")?,
        vector: given.value("vector").map(input::vector).transpose()?,
    };
    show_entry(context.call("memory.write", &params)?)
}

pub fn batch(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let text = input::text(given.required(0))?;
    let mut writes = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut write: MemoryWrite = serde_json::from_str(line).map_err(|error| {
            Failure::usage(
                format!("line {}: not a write: {error}", number + 1),
                "write for example {\"key\":\"notes/1\",\"value\":1}",
            )
        })?;
        if write.agent.is_none() {
            write.agent = Some(owner(given)?);
        }
        writes.push(write);
    }
    if let Some(result) = context.call("memory.batch", &MemoryBatch { writes })? {
        let written: Entries = typed(&result)?;
        say(&entries(&written))?;
    }
    Ok(0)
}
