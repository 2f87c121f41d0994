//! Full text: which entries have which words, in SQLite's FTS5; and how well an entry answers.
//!
//! Every word is indexed behind its agent's mark, so one agent's words, however many, are never looked at for another agent's question,
//! not even by `word*`; and no statistics of the index go into a distance, which depends on the entry and the query alone.
//!
//! Must hold: what comes from a query reaches FTS5 only as quoted words. Must never: look at more rows than the limits say.

use abi::ids::AgentName;
use abi::limits;
use rusqlite::{Connection, params};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::StoreError;
use crate::entry::sha256;
use crate::words::{self, Piece};

/// No positions: phrases are looked for in the entries themselves. The tokenizer cuts at ASCII marks only; words come to it made.
/// What is taken out is out of the file at once (`secure-delete`), not merely marked.
pub(crate) const SCHEMA: &str = "
CREATE VIRTUAL TABLE search USING fts5 (words, content = '', detail = none, tokenize = 'ascii');
INSERT INTO search (search, rank) VALUES ('secure-delete', 1);
";

/// BM25's usual constants, and a length of an entry, in words, that counts as middling. Fixed: so that others do not matter.
const K1: f64 = 1.2;
const B: f64 = 0.75;
const WORDS_MIDDLING: f64 = 64.0;

/// Why a query's text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("the text has no word to look for")]
    NoWord,
    #[error("the text has {0} words, at most {max} are looked for", max = limits::MEMORY_SEARCH_WORDS_MAX)]
    Words(usize),
    #[error("`{0}*` stands for too much: at least {min} characters go before the `*`", min = limits::MEMORY_SEARCH_PREFIX_CHARS_MIN)]
    ShortPrefix(String),
}

/// A query's text, parsed: all terms must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    terms: Vec<Term>,
}

/// Words in a row; the last may stand for all that begin so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    words: Vec<String>,
    begins: bool,
}

impl Query {
    /// Parses `word`, `begin*` and `"a phrase"`. Every text is a query or refused here: none reaches FTS5's own grammar.
    pub fn parse(text: &str) -> Result<Query, QueryError> {
        let mut terms = Vec::new();
        // Between quotes is every second piece.
        for (number, piece) in text.split('"').enumerate() {
            match number % 2 {
                1 => terms.extend(Term::of(piece, false)),
                _ => terms.extend(
                    piece.split_whitespace().filter_map(|chunk| Term::of(chunk, chunk.ends_with('*'))),
                ),
            }
        }
        let count = terms.iter().map(|term| term.words.len()).sum();
        if count == 0 {
            return Err(QueryError::NoWord);
        }
        if count > limits::MEMORY_SEARCH_WORDS_MAX {
            return Err(QueryError::Words(count));
        }
        for term in terms.iter().filter(|term| term.begins) {
            let short = |word: &&String| word.chars().count() < limits::MEMORY_SEARCH_PREFIX_CHARS_MIN;
            if let Some(word) = term.words.last().filter(short) {
                return Err(QueryError::ShortPrefix(word.clone()));
            }
        }
        Ok(Query { terms })
    }

    /// As FTS5 reads it: quoted words, joined by AND.
    fn expression(&self, agent: &AgentName) -> String {
        let mark = mark(agent);
        let mut quoted = BTreeSet::new();
        for term in &self.terms {
            let last = term.words.len().saturating_sub(1);
            for (number, word) in term.words.iter().enumerate() {
                let star = if term.begins && number == last { " *" } else { "" };
                quoted.insert(format!("\"{mark}{word}\"{star}"));
            }
        }
        quoted.into_iter().collect::<Vec<_>>().join(" AND ")
    }

    /// How far an entry is from the query; none if it does not answer it.
    fn distance(&self, key: &str, labels: &BTreeMap<String, String>, value: &Value) -> Option<f64> {
        let mut seen: Vec<Seen> = self.terms.iter().map(|_| Seen::default()).collect();
        let mut length = 0.0;
        words::of_entry(key, labels, value, &mut |piece| match piece {
            Piece::End => seen.iter_mut().for_each(|seen| seen.run = 0),
            Piece::Word(word) => {
                length += 1.0;
                for (term, seen) in self.terms.iter().zip(&mut seen) {
                    seen.step(term, word);
                }
            }
        });
        let norm = K1 * (1.0 - B + B * length / WORDS_MIDDLING);
        let mut score = 0.0;
        for Seen { times, .. } in seen {
            if times == 0.0 {
                return None;
            }
            score += times * (K1 + 1.0) / (times + norm);
        }
        Some(-score)
    }
}

impl Term {
    fn of(text: &str, begins: bool) -> Option<Term> {
        let mut words = Vec::new();
        words::of_text(text, |word| words.push(word.to_owned()));
        (!words.is_empty()).then_some(Term { words, begins })
    }

    fn is_at(&self, number: usize, word: &str) -> bool {
        let last = number + 1 == self.words.len();
        self.words.get(number).is_some_and(|wanted| match last && self.begins {
            true => word.starts_with(wanted.as_str()),
            false => word == wanted,
        })
    }
}

/// How often a term was met so far. Bit n of `run` is set when the last n + 1 words are the term's first n + 1 (Shift-And).
#[derive(Debug, Default)]
struct Seen {
    run: u32,
    times: f64,
}

const _: () = assert!(limits::MEMORY_SEARCH_WORDS_MAX <= 32, "a term's words are bits of a u32");

impl Seen {
    fn step(&mut self, term: &Term, word: &str) {
        let mut here = 0u32;
        for number in (0..term.words.len()).filter(|number| term.is_at(*number, word)) {
            here |= 1 << number;
        }
        self.run = (self.run << 1 | 1) & here;
        let whole = 1u32 << term.words.len().saturating_sub(1);
        if self.run & whole != 0 {
            self.times += 1.0;
        }
    }
}

/// What an agent's words begin with in the index: so long that no two agents share it, of a fixed length.
fn mark(agent: &AgentName) -> String {
    sha256(agent.as_str().as_bytes()).hex().chars().take(12).collect()
}

/// Takes an entry's words into the index. For the newest of a key, with a value.
pub(crate) fn index(
    db: &Connection,
    id: i64,
    agent: &AgentName,
    key: &str,
    labels: &BTreeMap<String, String>,
    value: &Value,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO search (rowid, words) VALUES (?1, ?2)")?
        .execute(params![id, marked(agent, key, labels, value)])?;
    Ok(())
}

/// Takes an entry's words out of the index, given what they were taken from: it is not the newest any more, or forgotten.
pub(crate) fn unindex(
    db: &Connection,
    id: i64,
    agent: &AgentName,
    key: &str,
    labels: &BTreeMap<String, String>,
    value: &Value,
) -> Result<(), StoreError> {
    // A damaged entry was never taken in; FTS5 would count it out all the same.
    db.prepare_cached(
        "INSERT INTO search (search, rowid, words) SELECT 'delete', ?1, ?2 WHERE EXISTS (SELECT 1 FROM search WHERE rowid = ?1)",
    )?
    .execute(params![id, marked(agent, key, labels, value)])?;
    Ok(())
}

/// An entry's words as they are in the index, each once.
fn marked(agent: &AgentName, key: &str, labels: &BTreeMap<String, String>, value: &Value) -> String {
    let (mark, mut marked) = (mark(agent), BTreeSet::new());
    words::of_entry(key, labels, value, &mut |piece| {
        if let Piece::Word(word) = piece {
            marked.insert(format!("{mark}{word}"));
        }
    });
    marked.into_iter().collect::<Vec<_>>().join(" ")
}

/// Rows of entries and their distances, best first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    pub rows: Vec<(i64, f64)>,
    /// More had the words than is looked at: the newest of them were.
    pub truncated: bool,
    /// Entries that could not be looked at: they are damaged.
    pub damaged: u64,
}

/// The best answers among the newest entries of keys with a prefix.
pub(crate) fn find(
    db: &Connection,
    agent: &AgentName,
    prefix: &str,
    query: &Query,
    limit: usize,
) -> Result<Found, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT e.id, e.agent, e.key, e.labels, e.value FROM search CROSS JOIN entry e ON e.id = search.rowid
         CROSS JOIN head h ON h.agent = e.agent AND h.key = e.key AND h.entry = e.id AND h.newest = 1
         WHERE search MATCH ?1 ORDER BY search.rowid DESC",
    )?;
    let mut rows = statement.query([query.expression(agent)])?;
    let (mut looked_at, mut bytes) = (0, 0);
    let mut found = Found::default();
    while let Some(row) = rows.next()? {
        if looked_at == limits::MEMORY_SEARCH_ROWS_MAX || bytes >= limits::MEMORY_SEARCH_BYTES_MAX {
            found.truncated = true;
            break;
        }
        looked_at += 1;
        let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
        let (owner, key) = (text(1)?, text(2)?);
        if owner != agent.as_str() || !key.starts_with(prefix) {
            continue;
        }
        let id = row.get(0)?;
        let value = row.get_ref(4)?.as_str_or_null();
        if value == Ok(None) {
            continue; // forgotten
        }
        let value = value.ok().flatten().unwrap_or_default();
        bytes += value.len();
        let labels = row.get_ref(3)?.as_str().ok().and_then(|labels| serde_json::from_str(labels).ok());
        let parsed = labels.zip(serde_json::from_str(value).ok());
        let Some((labels, value)) = parsed else {
            super::row::tell(&StoreError::Damaged(id, "its labels or its value are not JSON"));
            found.damaged += 1;
            continue;
        };
        found.rows.extend(query.distance(key, &labels, &value).map(|distance| (id, distance)));
    }
    // Of two that are as good, the newer.
    found.rows.sort_by(|(id, distance), (other_id, other)| distance.total_cmp(other).then(other_id.cmp(id)));
    found.rows.truncate(limit);
    Ok(found)
}

#[cfg(test)]
mod found;
#[cfg(test)]
mod tests;
