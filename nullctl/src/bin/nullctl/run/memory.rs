//! `memory`: what agents remember.

use abi::control::{
    Entries, Entry, MemoryHistory, MemoryList, MemoryQuery, MemoryRead, MemoryWrite, Nothing,
};
use abi::ids::AgentName;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;

use super::id;
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Table, ago, facts, moment, size};

pub fn list(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("memory.list", &Nothing {})? else {
        return Ok(0);
    };
    let list: MemoryList = typed(&result)?;
    let mut table = Table::new(&["AGENT", "KEYS", "ENTRIES", "SIZE"]);
    for agent in &list.agents {
        table.row(&[
            agent.agent.as_str(),
            &agent.keys.to_string(),
            &agent.entries.to_string(),
            &size(agent.bytes),
        ]);
    }
    say(&table.render())?;
    Ok(0)
}

/// Whose memory is meant.
fn owner(given: &Arguments) -> Result<AgentName, Failure> {
    match given.value("agent") {
        Some(name) => id(name),
        None => Err(Failure::usage("--agent is missing", "nullctl memory list shows whose memory there is")),
    }
}

pub fn write(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let mut text = given.required(1).to_owned();
    if text == "-" {
        text.clear();
        std::io::stdin()
            .lock()
            .take(abi::limits::LINE_BYTES_MAX as u64)
            .read_to_string(&mut text)
            .map_err(|error| Failure::usage(format!("standard input: {error}"), "give a value"))?;
    }
    let value = if given.has("text") {
        Value::String(text)
    } else {
        serde_json::from_str(&text).map_err(|error| {
            Failure::usage(format!("VALUE is not JSON: {error}"), "quote it as JSON, or add --text")
        })?
    };
    let params = MemoryWrite {
        agent: Some(owner(given)?),
        key: given.required(0).to_owned(),
        value,
        parent: None,
        labels: BTreeMap::new(),
        links: Vec::new(),
        ttl_secs: None,
        vector: None,
    };
    show_entry(context.call("memory.write", &params)?)
}

pub fn read(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = MemoryRead {
        agent: given.value("agent").map(id).transpose()?,
        hash: given.value("hash").map(id).transpose()?,
        key: given.at(0).map(str::to_owned),
    };
    match (&params.hash, &params.key) {
        (None, None) => Err(Failure::usage(
            "memory read: neither a key nor --hash is given",
            "write nullctl memory read --agent NAME KEY, or --hash sha256:...",
        )),
        (Some(_), Some(_)) => {
            Err(Failure::usage("memory read: both a key and --hash are given", "give one of the two"))
        }
        (None, Some(_)) => {
            owner(given)?;
            show_entry(context.call("memory.read", &params)?)
        }
        (Some(_), None) => show_entry(context.call("memory.read", &params)?),
    }
}

fn show_entry(result: Option<Value>) -> Result<u8, Failure> {
    if let Some(result) = result {
        let entry: Entry = typed(&result)?;
        say(&facts(&[
            ("agent", entry.agent.to_string()),
            ("key", entry.key.clone()),
            ("value", entry.value.to_string()),
            ("hash", entry.hash.to_string()),
            (
                "parent",
                entry.parent.map_or("none: the first under its key".into(), |parent| parent.to_string()),
            ),
            ("written", format!("{} UTC, number {} of the agent", moment(entry.unix_ms), entry.seq)),
        ]))?;
    }
    Ok(0)
}

pub fn query(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = MemoryQuery {
        agent: Some(owner(given)?),
        prefix: given.at(0).unwrap_or_default().to_owned(),
        limit: given.number("limit")?,
        cursor: given.value("cursor").map(str::to_owned),
        ..MemoryQuery::default()
    };
    page(context, "memory.query", &params)
}

pub fn history(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = MemoryHistory {
        agent: Some(owner(given)?),
        key: given.required(0).to_owned(),
        limit: given.number("limit")?,
        cursor: given.value("cursor").map(str::to_owned),
    };
    page(context, "memory.history", &params)
}

fn page(context: &Context, method: &str, params: &impl serde::Serialize) -> Result<u8, Failure> {
    let Some(result) = context.call(method, params)? else {
        return Ok(0);
    };
    let page: Entries = typed(&result)?;
    let mut table = Table::new(&["KEY", "SEQ", "WRITTEN", "HASH", "VALUE"]);
    for entry in &page.entries {
        table.row(&[
            &entry.key,
            &entry.seq.to_string(),
            &ago(entry.unix_ms),
            &short(&entry.hash.to_string()),
            &short_value(&entry.value),
        ]);
    }
    let mut text = table.render();
    if let Some(cursor) = &page.cursor {
        text.push_str(&format!("there is more: add --cursor {cursor}\n"));
    }
    say(&text)?;
    Ok(0)
}

fn short(hash: &str) -> String {
    hash.chars().take("sha256:".len() + 16).collect()
}

fn short_value(value: &Value) -> String {
    let text = value.to_string();
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
