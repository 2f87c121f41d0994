//! Reads, pages and searches in one memory of many entries, which the store's own code writes without receipts.

use crate::figures::{Figures, rank};
use crate::{peers, writers};
use abi::control::MemoryQuery;
use abi::ids::{AgentName, Digest};
use abi::memory::LABEL_VECTOR;
use ctxgraph::entry::{Header, sha256};
use ctxgraph::store::search::Query;
use ctxgraph::store::vector::Vector;
use ctxgraph::store::{Held, Quotas, Store};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Entries of one transaction while the pile grows.
const STEP: u64 = 10_000;
/// Keys are spread over so many prefixes.
const SHELVES: u64 = 1000;
/// Every so manyeth entry has a vector.
const VECTORS_EVERY: u64 = 100;
const DIMENSIONS: usize = 256;
/// Questions of one kind in one round.
const ASKED: u64 = 200;

fn agent() -> AgentName {
    "reader".parse().expect("a name")
}

fn key(number: u64) -> String {
    format!("shelf-{:03}/{number:08}", number % SHELVES)
}

fn vector(number: u64) -> Vec<f32> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state % 2001) as f32 / 1000.0 - 1.0
    };
    (0..DIMENSIONS).map(next).collect()
}

/// Grows the pile to a number of entries and keeps every thousandth hash.
fn grow(store: &mut Store, from: u64, to: u64, hashes: &mut Vec<Digest>) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("the pile: {error}");
    for first in (from..to).step_by(STEP as usize) {
        let batch = store.begin().map_err(|error| wrong(&error))?;
        for number in first..(first + STEP).min(to) {
            let text = writers::value(number).to_string();
            let with_vector = number % VECTORS_EVERY == 0 && number < 1_000_000;
            let vector = with_vector.then(|| Vector::new(&vector(number)).expect("a vector"));
            let labels = vector
                .iter()
                .map(|vector| (LABEL_VECTOR.to_owned(), sha256(&vector.bytes()).to_string()))
                .collect::<BTreeMap<_, _>>();
            let header = Header {
                agent: agent(),
                key: key(number),
                parent: None,
                seq: number,
                unix_ms: 1_700_000_000_000 + number,
                labels,
                links: Vec::new(),
                value: sha256(text.as_bytes()),
            };
            let hash = header.hash().map_err(|error| wrong(&error))?;
            batch.put(&header, hash, &Held::Value(&text), vector.as_ref()).map_err(|error| wrong(&error))?;
            if number % 1000 == 500 {
                hashes.push(hash);
            }
        }
        batch.commit(None).map_err(|error| wrong(&error))?;
    }
    Ok(())
}

/// Each size in turn; the second pile is the first one grown.
pub fn measure(figures: &mut Figures, directory: &Path, piles: &[u64], rounds: usize) -> Result<(), String> {
    let path = directory.join("memory.db");
    let quotas = Quotas { entries: u64::MAX, bytes: u64::MAX };
    let mut store = Store::open(&path, quotas).map_err(|error| error.to_string())?;
    let (mut from, mut hashes) = (0, Vec::new());
    for (number, size) in piles.iter().enumerate() {
        eprintln!("a pile of {size} entries");
        let begun = Instant::now();
        grow(&mut store, from, *size, &mut hashes)?;
        eprintln!("  took {:.0} s", begun.elapsed().as_secs_f64());
        from = *size;
        let reader = Store::open_reader(&path).map_err(|error| error.to_string())?;
        let raw = peers::open(&path);
        for _ in 0..rounds {
            if number == 0 {
                reads(figures, &reader, &raw, &hashes)?;
            }
            pages(figures, &reader, *size)?;
            searches(figures, &reader, *size)?;
        }
    }
    Ok(())
}

/// The median time of one question in microseconds.
fn median_us(count: u64, mut ask: impl FnMut(u64) -> Result<(), String>) -> Result<f64, String> {
    let mut times = Vec::new();
    for number in 0..count {
        let begun = Instant::now();
        ask(number)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    rank(&times, 50).ok_or("nothing was asked".into())
}

/// By hash: the entry, checked; and the same row as SQLite gives it, into values of the same kinds.
fn reads(figures: &mut Figures, store: &Store, raw: &Connection, hashes: &[Digest]) -> Result<(), String> {
    let hash = |number: u64| hashes[number as usize * 7919 % hashes.len()];
    let ours = median_us(ASKED * 20, |number| {
        let found = store.by_hash(&hash(number)).map_err(|error| error.to_string())?;
        found.map(|entry| drop(std::hint::black_box(entry))).ok_or("an entry is not there".into())
    })?;
    figures.push("read by hash", "us", ours);
    let theirs = median_us(ASKED * 20, |number| {
        let row = raw
            .prepare_cached(
                "SELECT id, hash, agent, seq, key, parent, unix_ms, labels, links, value_hash, value FROM entry WHERE hash = ?1",
            )
            .and_then(|mut statement| statement.query_row([hash(number).0], row))
            .map_err(|error| error.to_string())?;
        drop(std::hint::black_box(row));
        Ok(())
    })?;
    figures.push("SQLite, the same row", "us", theirs);
    Ok(())
}

#[expect(clippy::type_complexity, reason = "a row as it is")]
fn row(
    row: &rusqlite::Row<'_>,
) -> rusqlite::Result<(
    i64,
    [u8; 32],
    String,
    u64,
    String,
    Option<[u8; 32]>,
    u64,
    String,
    String,
    [u8; 32],
    Option<String>,
)> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
        row.get(5)?,
        row.get(6)?,
        row.get(7)?,
        row.get(8)?,
        row.get(9)?,
        row.get(10)?,
    ))
}

/// A page of 100 of one shelf, from its beginning and from its middle.
fn pages(figures: &mut Figures, store: &Store, size: u64) -> Result<(), String> {
    let page = |shelf: u64, cursor: Option<String>| -> Result<(), String> {
        let query = MemoryQuery {
            prefix: format!("shelf-{:03}/", shelf % SHELVES),
            limit: Some(100),
            cursor,
            ..MemoryQuery::default()
        };
        let found = store.query(&agent(), &query).map_err(|error| error.to_string())?;
        let all = size / SHELVES;
        match found.entries.len() as u64 == 100.min(all) || query.cursor.is_some() {
            true => Ok(()),
            false => Err(format!("a page of {} entries, of {all}", found.entries.len())),
        }
    };
    let first = median_us(ASKED, |number| page(number * 37, None))?;
    figures.push(&format!("page of 100 by prefix, of {size} entries"), "us", first);
    let middle = median_us(ASKED, |number| {
        let shelf = number * 37 % SHELVES;
        page(shelf, Some(key(size / 2 / SHELVES * SHELVES + shelf)))
    })?;
    figures.push(&format!("page of 100 from the middle, of {size} entries"), "us", middle);
    Ok(())
}

/// Two words together, one word, and the ten nearest vectors.
fn searches(figures: &mut Figures, store: &Store, size: u64) -> Result<(), String> {
    for (what, words, asked) in [("two words", 2, ASKED / 4), ("one word", 1, 10)] {
        let us = median_us(asked, |number| {
            let query = Query::parse(&writers::text(number + 7, words)).map_err(|error| error.to_string())?;
            let found = store.search(&agent(), "", &query, Some(20)).map_err(|error| error.to_string())?;
            drop(std::hint::black_box(found));
            Ok(())
        })?;
        figures.push(&format!("search, {what}, of {size} entries"), "us", us);
    }
    let vectors = size.min(1_000_000) / VECTORS_EVERY;
    let us = median_us(10, |number| {
        let to = Vector::new(&vector(number + 3)).map_err(|error| error.to_string())?;
        let found = store.nearest(&agent(), "", &to, Some(10)).map_err(|error| error.to_string())?;
        match found.hits.len() as u64 == 10.min(vectors) {
            true => Ok(()),
            false => Err("fewer vectors than there are".into()),
        }
    })?;
    figures.push(&format!("nearest, of {vectors} vectors of {DIMENSIONS}, {size} entries"), "us", us);
    Ok(())
}
