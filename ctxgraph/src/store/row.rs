//! A row of `entry`, and the check of it against its hash: the way every entry leaves memory.db.

use abi::control::Entry;
use abi::ids::Digest;
use abi::log;
use abi::memory::{LABEL_EXPOSURE, Link};
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;
use crate::entry::{Parts, sha256};

/// A query of what [`Borrowed::of`] reads: the rest begins after `FROM entry e`.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT e.id, e.hash, e.agent, e.seq, e.key, e.parent, e.unix_ms, e.labels, e.links, e.value_hash, e.value, ",
            "e.forgotten FROM entry e ",
            $rest
        )
    };
}
pub(crate) use select;

/// A row, not yet checked, without copies of its texts.
#[derive(Debug)]
pub struct Borrowed<'a> {
    pub id: i64,
    hash: Digest,
    parts: Parts<'a>,
    value: Option<&'a str>,
    forgotten: Option<&'a str>,
}

impl<'a> Borrowed<'a> {
    /// Of a row of [`select`].
    pub fn of(row: &'a Row<'_>) -> Result<Borrowed<'a>, rusqlite::Error> {
        let text = |index: usize| -> Result<&'a str, rusqlite::Error> { Ok(row.get_ref(index)?.as_str()?) };
        let optional = |index: usize| -> Result<Option<&'a str>, rusqlite::Error> {
            Ok(row.get_ref(index)?.as_str_or_null()?)
        };
        Ok(Borrowed {
            id: row.get(0)?,
            hash: Digest(row.get(1)?),
            parts: Parts {
                agent: text(2)?,
                seq: row.get(3)?,
                key: text(4)?,
                parent: row.get::<_, Option<[u8; 32]>>(5)?.map(Digest),
                unix_ms: row.get(6)?,
                labels: text(7)?,
                links: text(8)?,
                value: Digest(row.get(9)?),
            },
            value: optional(10)?,
            forgotten: optional(11)?,
        })
    }

    pub fn hash(&self) -> Digest {
        self.hash
    }

    pub fn agent(&self) -> &str {
        self.parts.agent
    }

    /// The header's canonical text.
    pub fn header(&self) -> Result<String, StoreError> {
        Ok(self.parts.text()?)
    }

    /// The value's canonical text, or why it is not there; of a checked row it is one of the two.
    pub fn held(&self) -> Result<&str, &str> {
        self.value.ok_or(self.forgotten.unwrap_or_default())
    }

    /// Bytes of the header's texts and the value.
    pub fn size(&self) -> u64 {
        let Parts { key, labels, links, .. } = &self.parts;
        (key.len() + labels.len() + links.len() + self.value.map_or(0, str::len)) as u64
    }

    pub fn key(&self) -> &str {
        self.parts.key
    }

    /// The labels and links as they stand there, not yet checked: what is asked for by them is looked for here first.
    pub fn labels(&self) -> Option<BTreeMap<String, String>> {
        serde_json::from_str(self.parts.labels).ok()
    }

    pub fn links(&self) -> Option<Vec<Link>> {
        serde_json::from_str(self.parts.links).ok()
    }

    pub fn unix_ms(&self) -> u64 {
        self.parts.unix_ms
    }

    /// The entry, if the row still has its hash and its value its digest.
    pub fn checked(&self) -> Result<Entry, StoreError> {
        let damaged = |what| StoreError::Damaged(self.id, what);
        if self.parts.hash()? != self.hash {
            return Err(damaged("it does not have its hash"));
        }
        let value = match (self.value, self.forgotten) {
            (Some(text), None) => {
                if sha256(text.as_bytes()) != self.parts.value {
                    return Err(damaged("its value does not have its digest"));
                }
                serde_json::from_str(text).map_err(|_| damaged("its value is not JSON"))?
            }
            (None, Some(_)) => Value::Null,
            (None, None) => return Err(damaged("it has no value")),
            (Some(_), Some(_)) => return Err(damaged("it has a value that was forgotten")),
        };
        let labels: BTreeMap<String, String> =
            serde_json::from_str(self.parts.labels).map_err(|_| damaged("its labels"))?;
        let exposure = labels.get(LABEL_EXPOSURE).and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(Entry {
            hash: self.hash,
            agent: self.parts.agent.parse().map_err(|_| damaged("its agent's name"))?,
            key: self.parts.key.to_owned(),
            value,
            parent: self.parts.parent,
            seq: self.parts.seq,
            unix_ms: self.parts.unix_ms,
            labels,
            links: serde_json::from_str(self.parts.links).map_err(|_| damaged("its links"))?,
            exposure,
            forgotten: self.forgotten.map(str::to_owned),
            conflicts: Vec::new(),
            reader_exposure: Default::default(),
        })
    }
}

/// The entry of a row; none where that is damaged: then the log tells which, and what is asked goes on without it.
pub fn whole(row: &Row<'_>) -> Result<Option<Entry>, StoreError> {
    // What a row that was read cannot be read as is damage too: text that is no UTF-8.
    let damaged = |_| StoreError::Damaged(row.get(0).unwrap_or(0), "it is not text");
    sound(Borrowed::of(row).map_err(damaged).and_then(|stored| stored.checked()))
}

/// None for an error that is one entry's alone.
pub fn sound<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(entry) => Ok(Some(entry)),
        Err(error @ (StoreError::Damaged(..) | StoreError::Canonical(_))) => {
            tell(&error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Once a second at most: agents can read what is damaged as often as they like.
pub fn tell(error: &StoreError) {
    static TOLD: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *told {
        Some((at, untold)) if at.elapsed() < Duration::from_secs(1) => *untold += 1,
        other => {
            let untold = other.map_or(0, |(_, untold)| untold);
            *other = Some((Instant::now(), 0));
            log::error("memory_entry_damaged", &[("error", error), ("untold", &untold)]);
        }
    }
}

/// The entry with this row id, checked.
pub fn by_id(db: &Connection, id: i64) -> Result<Option<Entry>, StoreError> {
    one(db, select!("WHERE e.id = ?1"), [id])
}

/// The first row's entry of a [`select`], checked.
pub fn one(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Option<Entry>, StoreError> {
    let mut statement = db.prepare_cached(sql)?;
    let found = statement.query_row(params, |row| Ok(Borrowed::of(row)?.checked())).optional()?;
    found.transpose()
}
