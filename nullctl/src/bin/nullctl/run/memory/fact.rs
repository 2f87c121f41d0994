//! `memory fact`: entries that keep to the convention of docs/facts.md.

use abi::control::{Entries, MemoryQuery, MemoryWrite};
use abi::facts::{self, Fact, Kind};
use std::collections::BTreeMap;

use super::{owner, show_entry};
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Table, ago};
use crate::run::id;

pub fn set(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let kind: Kind = id(given.required(0))?;
    let wrong =
        |why: &str| Failure::usage(format!("memory fact set: {why}"), "see nullctl memory fact set --help");
    let key = facts::key(kind, given.required(1)).map_err(wrong)?;
    let fact = Fact {
        fact: given.required(2).to_owned(),
        confidence: given.number("confidence")?.unwrap_or(100),
        source: given.value("source").map(str::to_owned),
    };
    fact.check().map_err(wrong)?;
    let value = serde_json::to_value(&fact).map_err(|error| wrong(&error.to_string()))?;
    let params = MemoryWrite {
        agent: Some(owner(given)?),
        key,
        value,
        parent: None,
        labels: BTreeMap::from([(facts::LABEL.to_owned(), kind.to_string())]),
        links: Vec::new(),
        ttl_secs: None,
        vector: None,
    };
    show_entry(context.call("memory.write", &params)?)
}

pub fn list(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let kind = given.at(0).map(id::<Kind>).transpose()?;
    let params = MemoryQuery {
        agent: Some(owner(given)?),
        prefix: kind.map_or(facts::PREFIX.to_owned(), |kind| format!("{}{kind}/", facts::PREFIX)),
        limit: given.number("limit")?,
        cursor: given.value("cursor").map(str::to_owned),
        ..MemoryQuery::default()
    };
    let Some(result) = context.call("memory.query", &params)? else {
        return Ok(0);
    };
    let page: Entries = typed(&result)?;
    let mut table = Table::new(&["KIND", "NAME", "SURE", "WRITTEN", "FACT"]);
    for entry in page.entries.iter().filter(|entry| entry.forgotten.is_none()) {
        let (kind, name) = match facts::parts(&entry.key) {
            Some((kind, name)) => (kind.to_string(), name),
            None => ("-".to_owned(), entry.key.as_str()),
        };
        let (sure, text) = match Fact::of(&entry.value) {
            Ok(fact) => (format!("{} %", fact.confidence), fact.fact),
            Err(why) => ("-".into(), format!("(no fact: {why})")),
        };
        table.row(&[&kind, name, &sure, &ago(entry.unix_ms), &text]);
    }
    let mut text = table.render();
    if let Some(cursor) = &page.cursor {
        text.push_str(&format!("there is more: add --cursor {cursor}\n"));
    }
    say(&text)?;
    Ok(0)
}
