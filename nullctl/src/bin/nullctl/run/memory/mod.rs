//! `memory`: what agents remember.

use abi::control::{
    Direction, Dropped, Entries, Entry, Forgot, Hits, MemoryConflicts, MemoryForget, MemoryHistory,
    MemoryList, MemoryNearest, MemoryQuery, MemoryRead, MemorySearch, MemoryTraverse, MemoryWatch, Nothing,
    Traversal,
};
use abi::ids::AgentName;
use abi::memory::{LABEL_EXPOSURE, LABEL_WRITER, NODE_PREFIX};
use serde_json::Value;
use std::collections::BTreeMap;

use super::logs::time;
use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{Table, ago, facts, moment, size};

pub mod fact;
mod input;
pub mod write;

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

/// `NAME=VALUE`, as often as an option was given.
fn pairs<'a>(given: &'a Arguments, option: &str) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    let split = |text: &'a String| {
        text.split_once('=').ok_or_else(|| {
            Failure::usage(format!("--{option} {text}: no `=` in it"), format!("write --{option} NAME=VALUE"))
        })
    };
    given.values(option).iter().map(split).collect()
}

fn labels(given: &Arguments) -> Result<BTreeMap<String, String>, Failure> {
    Ok(pairs(given, "label")?.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// A key, or `--hash`: one of them.
fn key_or_hash(given: &Arguments, command: &str) -> Result<(), Failure> {
    match (given.at(0), given.value("hash")) {
        (None, None) => Err(Failure::usage(
            format!("{command}: neither a key nor --hash is given"),
            format!("write nullctl {command} --agent NAME KEY, or --hash sha256:..."),
        )),
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("{command}: both a key and --hash are given"), "give one of the two"))
        }
        (Some(_), None) => owner(given).map(|_| ()),
        (None, Some(_)) => Ok(()),
    }
}

pub fn read(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    key_or_hash(given, "memory read")?;
    let params = MemoryRead {
        agent: given.value("agent").map(id).transpose()?,
        hash: given.value("hash").map(id).transpose()?,
        key: given.at(0).map(str::to_owned),
    };
    show_entry(context.call("memory.read", &params)?)
}

fn show_entry(result: Option<Value>) -> Result<u8, Failure> {
    let Some(result) = result else {
        return Ok(0);
    };
    let entry: Entry = typed(&result)?;
    let value = match &entry.forgotten {
        None => entry.value.to_string(),
        Some(why) => format!("forgotten: {why}"),
    };
    let mut rows = vec![
        ("agent", entry.agent.to_string()),
        ("key", entry.key.clone()),
        ("value", value),
        ("hash", entry.hash.to_string()),
        ("parent", entry.parent.map_or("none: the first under its key".into(), |parent| parent.to_string())),
        ("written", format!("{} UTC, number {} of the agent", moment(entry.unix_ms), entry.seq)),
    ];
    if let Some(writer) = entry.labels.get(LABEL_WRITER) {
        rows.push(("writer", writer.clone()));
    }
    if let Some(exposure) = entry.labels.get(LABEL_EXPOSURE) {
        rows.push(("exposure", exposure.clone()));
    }
    for (name, value) in entry.labels.iter().filter(|(name, _)| !name.starts_with(NODE_PREFIX)) {
        rows.push(("label", format!("{name}={value}")));
    }
    rows.extend(entry.links.iter().map(|link| ("link", format!("{}={}", link.kind, link.to))));
    rows.extend(entry.conflicts.iter().map(|other| ("conflict", other.to_string())));
    say(&facts(&rows))?;
    Ok(0)
}

pub fn query(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = MemoryQuery {
        agent: Some(owner(given)?),
        prefix: given.at(0).unwrap_or_default().to_owned(),
        since_unix_ms: time(given, "since")?,
        until_unix_ms: time(given, "until")?,
        labels: labels(given)?,
        linked_to: given.value("linked-to").map(id).transpose()?,
        limit: given.number("limit")?,
        cursor: given.value("cursor").map(str::to_owned),
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

pub fn conflicts(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = MemoryConflicts {
        agent: Some(owner(given)?),
        prefix: given.at(0).unwrap_or_default().to_owned(),
        limit: given.number("limit")?,
        cursor: given.value("cursor").map(str::to_owned),
    };
    page(context, "memory.conflicts", &params)
}

fn page(context: &Context, method: &str, params: &impl serde::Serialize) -> Result<u8, Failure> {
    let Some(result) = context.call(method, params)? else {
        return Ok(0);
    };
    let page: Entries = typed(&result)?;
    say(&entries(&page))?;
    Ok(0)
}

fn entries(page: &Entries) -> String {
    let mut table = Table::new(&["KEY", "SEQ", "WRITTEN", "HASH", "VALUE"]);
    for entry in &page.entries {
        table.row(&[
            &entry.key,
            &entry.seq.to_string(),
            &ago(entry.unix_ms),
            &short(&entry.hash.to_string()),
            &short_value(entry),
        ]);
    }
    let mut text = table.render();
    text.push_str(&left_out(page.damaged));
    if let Some(cursor) = &page.cursor {
        text.push_str(&format!("there is more: add --cursor {cursor}\n"));
    }
    text
}

pub fn neighbours(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    walk(context, given, "memory.neighbours")
}

pub fn traverse(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    walk(context, given, "memory.traverse")
}

fn walk(context: &Context, given: &Arguments, method: &str) -> Result<u8, Failure> {
    let direction = match given.value("direction") {
        None | Some("out") => Direction::Out,
        Some("in") => Direction::In,
        Some("both") => Direction::Both,
        Some(other) => {
            return Err(Failure::usage(format!("--direction {other}"), "write out, in or both"));
        }
    };
    let params = MemoryTraverse {
        agent: None,
        hash: id(given.required(0))?,
        direction,
        types: given.values("type").to_vec(),
        depth: given.number("depth")?,
        limit: given.number("limit")?,
    };
    let Some(result) = context.call(method, &params)? else {
        return Ok(0);
    };
    let found: Traversal = typed(&result)?;
    let mut table = Table::new(&["DEPTH", "LINK", "AGENT", "KEY", "HASH", "VALUE"]);
    for reached in &found.reached {
        let arrow = if reached.backwards { "<-" } else { "->" };
        table.row(&[
            &reached.depth.to_string(),
            &format!("{arrow} {}", reached.kind),
            reached.entry.agent.as_str(),
            &reached.entry.key,
            &short(&reached.entry.hash.to_string()),
            &short_value(&reached.entry),
        ]);
    }
    let mut text = table.render();
    if found.truncated {
        text.push_str("there is more: raise --limit, or narrow it with --type or --depth\n");
    }
    say(&text)?;
    Ok(0)
}

pub fn search(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = MemorySearch {
        agent: Some(owner(given)?),
        text: given.required(0).to_owned(),
        prefix: given.at(1).unwrap_or_default().to_owned(),
        limit: given.number("limit")?,
    };
    hits(context, "memory.search", &params)
}

pub fn nearest(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = MemoryNearest {
        agent: Some(owner(given)?),
        vector: input::vector(given.required(0))?,
        prefix: given.at(1).unwrap_or_default().to_owned(),
        limit: given.number("limit")?,
    };
    hits(context, "memory.nearest", &params)
}

fn left_out(damaged: u64) -> String {
    match damaged {
        0 => String::new(),
        count => format!("{count} damaged entries are left out: nullctl memory verify names what is lost\n"),
    }
}

fn hits(context: &Context, method: &str, params: &impl serde::Serialize) -> Result<u8, Failure> {
    let Some(result) = context.call(method, params)? else {
        return Ok(0);
    };
    let found: Hits = typed(&result)?;
    let mut table = Table::new(&["DISTANCE", "KEY", "WRITTEN", "HASH", "VALUE"]);
    for hit in &found.hits {
        table.row(&[
            &format!("{:.4}", hit.distance),
            &hit.entry.key,
            &ago(hit.entry.unix_ms),
            &short(&hit.entry.hash.to_string()),
            &short_value(&hit.entry),
        ]);
    }
    say(&(table.render() + &left_out(found.damaged)))?;
    Ok(0)
}

pub fn watch(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params =
        MemoryWatch { agent: Some(owner(given)?), prefix: given.at(0).unwrap_or_default().to_owned() };
    let mut link = context.ask("memory.watch", &params, Silence::Unbounded)?;
    link.result(&mut |request| context.note(request))?;
    link.follow(&mut |request| {
        context.note(request)?;
        if let Some(dropped) = note::<Dropped>(request, "dropped")? {
            return Err(Failure::local(
                status::FAILED,
                format!("the node let go: {}", dropped.why),
                "a watcher that reads too slowly is dropped",
                "nullctl memory query shows what it missed",
            ));
        }
        match note::<Entry>(request, "entry")? {
            Some(entry) if !context.json => {
                say(&entries(&Entries { entries: vec![entry], ..Entries::default() })
                    .lines()
                    .skip(1)
                    .map(|line| format!("{line}\n"))
                    .collect::<String>())
            }
            _ => Ok(()),
        }
    })
}

pub fn forget(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    key_or_hash(given, "memory forget")?;
    let params = MemoryForget {
        agent: given.value("agent").map(id).transpose()?,
        hash: given.value("hash").map(id).transpose()?,
        key: given.at(0).map(str::to_owned),
    };
    if let Some(result) = context.call("memory.forget", &params)? {
        let forgot: Forgot = typed(&result)?;
        say(&format!("forgot {} values, {}\n", forgot.values, size(forgot.bytes)))?;
    }
    Ok(0)
}

fn short(hash: &str) -> String {
    hash.chars().take("sha256:".len() + 16).collect()
}

fn short_value(entry: &Entry) -> String {
    if let Some(why) = &entry.forgotten {
        return format!("forgotten: {why}");
    }
    let text = entry.value.to_string();
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
