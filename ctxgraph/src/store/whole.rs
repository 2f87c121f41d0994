//! Memory as a whole: entry by entry, whatever became of the file around them.
//!
//! Rows are numbered from 1 without gaps, since none is ever deleted; so what cannot be read is known by its number.
//! Must never: let one damaged page hide what is on the others.

use abi::control::Damage;
use abi::ids::{AgentName, Digest};
use abi::memory::LABEL_VECTOR;
use rusqlite::{ErrorCode, OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};

use super::row::{Borrowed, select};
use super::{Store, StoreError};
use crate::entry::sha256;

/// Which entries are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    Hashes(Vec<Digest>),
    /// Of one agent or all, of keys with a prefix.
    Keys(Option<AgentName>, String),
}

/// A view of the file as it is at one moment; writes go on beside it.
#[derive(Debug)]
pub struct Snapshot<'a>(&'a Store);

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        // It only read: there is nothing to lose.
        let _ = self.0.db.execute_batch("ROLLBACK");
    }
}

/// What must hold between the tables, as queries for what breaks it: a key and why. An old entry that passes for the newest has its own
/// hash all the same.
const STRAYS: [(&str, &str); 5] = [
    (
        "SELECT h.key FROM head h LEFT JOIN entry e ON e.id = h.entry WHERE e.id IS NULL OR e.agent <> h.agent OR e.key <> h.key",
        "a head of it is no entry under it",
    ),
    ("SELECT key FROM head GROUP BY agent, key HAVING sum(newest) <> 1", "not one of its heads is its newest"),
    (
        "SELECT n.key FROM head n JOIN entry e ON e.id = n.entry JOIN head h ON h.agent = n.agent AND h.key = n.key AND h.newest = 0
         JOIN entry o ON o.id = h.entry WHERE n.newest = 1 AND (o.unix_ms, o.hash) > (e.unix_ms, e.hash)",
        "its newest entry is not the newest of its heads",
    ),
    (
        "SELECT e.key FROM entry e WHERE EXISTS (SELECT 1 FROM head h WHERE h.agent = e.agent AND h.key = e.key AND h.entry = e.id)
         = (EXISTS (SELECT 1 FROM entry s WHERE s.parent = e.hash AND s.agent = e.agent AND s.key = e.key)
            OR EXISTS (SELECT 1 FROM link l JOIN entry s ON s.id = l.source
               WHERE l.target = e.hash AND l.type = 'nullbox.supersedes' AND s.agent = e.agent AND s.key = e.key))",
        "an entry that was replaced is a head of it, or one that was not is none",
    ),
    (
        "SELECT l.key FROM label l WHERE NOT EXISTS
         (SELECT 1 FROM head h WHERE h.agent = l.agent AND h.key = l.key AND h.entry = l.entry AND h.newest = 1)",
        "a label of it is of an entry that is not its newest",
    ),
];

/// Why an entry is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub id: i64,
    pub why: String,
}

/// Hashes of some rows and whether each is forgotten; and the row to go on after, none after the last.
pub type HashPage = (Vec<(Digest, bool)>, Option<i64>);

impl Store {
    /// Begins a view.
    pub fn snapshot(&self) -> Result<Snapshot<'_>, StoreError> {
        self.db.execute_batch("BEGIN")?;
        let snapshot = Snapshot(self);
        // The view is of the first read, not of BEGIN.
        self.db.query_row("SELECT count(*) FROM witness", [], |row| row.get::<_, i64>(0))?;
        Ok(snapshot)
    }

    /// Hashes of the rows after one, in their order: an entry comes after its parent. Rows that cannot be read are left out.
    pub fn hashes(&self, after: i64, limit: usize) -> Result<HashPage, StoreError> {
        let end = after.saturating_add_unsigned(limit as u64);
        let page = match self.hashes_between(after.saturating_add(1), end) {
            Err(error) if is_damage(&error) => {
                let mut page = Vec::new();
                for id in after.saturating_add(1)..=end {
                    match self.hashes_between(id, id) {
                        Err(error) if is_damage(&error) => {}
                        other => page.extend(other?),
                    }
                }
                page
            }
            other => other?,
        };
        let more = page.len() == limit || end < self.last_row()?;
        Ok((page, more.then_some(end)))
    }

    fn hashes_between(&self, first: i64, last: i64) -> Result<Vec<(Digest, bool)>, rusqlite::Error> {
        let sql = "SELECT hash, value IS NULL FROM entry WHERE id BETWEEN ?1 AND ?2 ORDER BY id";
        let mut statement = self.db.prepare_cached(sql)?;
        let rows = statement.query_map([first, last], |row| Ok((Digest(row.get(0)?), row.get(1)?)))?;
        rows.collect()
    }

    /// How many keys have several heads.
    pub fn conflicting_keys(&self) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM (SELECT DISTINCT agent, key FROM head WHERE newest = 0)";
        Ok(self.db.query_row(sql, [], |row| row.get(0))?)
    }

    /// The number of the last row. Where the table's end cannot be read, an index or the agents' use still know it.
    pub fn last_row(&self) -> Result<i64, StoreError> {
        let sources = [
            "SELECT coalesce(max(id), 0) FROM entry",
            "SELECT count(*) FROM entry INDEXED BY entry_key",
            "SELECT coalesce(sum(entries), 0) FROM agent",
        ];
        let found: Vec<_> =
            sources.iter().map(|sql| self.db.query_row(sql, [], |row| row.get::<_, i64>(0))).collect();
        let best = found.iter().flatten().max().copied();
        best.map_or_else(|| found.into_iter().find_map(Result::err).map_or(Ok(0), |e| Err(e.into())), Ok)
    }

    /// One row, checked with its vector, if it is as it was written.
    fn with_row<T>(
        &self,
        id: i64,
        work: impl FnOnce(&Borrowed<'_>, Option<&[u8]>) -> T,
    ) -> Result<Result<T, Lost>, StoreError> {
        let lost = |why: &str| Ok(Err(Lost { id, why: why.to_owned() }));
        let vector = self
            .db
            .prepare_cached("SELECT data FROM vector WHERE entry = ?1")
            .and_then(|mut statement| statement.query_row([id], |row| row.get::<_, Vec<u8>>(0)).optional());
        let vector = match vector {
            Err(error) if is_damage(&error) => Err(()),
            other => Ok(other?),
        };
        let mut statement = self.db.prepare_cached(select!("WHERE e.id = ?1"))?;
        let read = statement.query_row([id], |row| {
            let borrowed = Borrowed::of(row)?;
            let entry = match borrowed.checked() {
                Ok(entry) => entry,
                Err(error) => return Ok(Err(error)),
            };
            let label = entry.labels.get(LABEL_VECTOR).filter(|_| entry.forgotten.is_none());
            // Of a damaged page only what has a vector lacks something.
            let vector = match &vector {
                Ok(vector) => vector,
                Err(()) if label.is_none() => &None,
                Err(()) => return Ok(Err(StoreError::Damaged(id, "its vector cannot be read"))),
            };
            if label.cloned() != vector.as_deref().map(|bytes| sha256(bytes).to_string()) {
                return Ok(Err(StoreError::Damaged(id, "its vector is not the one it was written with")));
            }
            Ok(Ok(work(&borrowed, vector.as_deref())))
        });
        match read {
            Ok(Ok(done)) => Ok(Ok(done)),
            Ok(Err(StoreError::Damaged(_, why))) => lost(why),
            Ok(Err(StoreError::Canonical(error))) => lost(&error.to_string()),
            Ok(Err(error)) => Err(error),
            Err(rusqlite::Error::QueryReturnedNoRows) => lost("it is not in the table"),
            Err(error) if is_damage(&error) => lost(&error.to_string()),
            Err(error) => Err(error.into()),
        }
    }

    /// Checks rows by their numbers; hands on what is lost, and the size of what is not.
    pub fn check_rows(
        &self,
        rows: impl Iterator<Item = i64>,
        mut lost: impl FnMut(Lost),
        mut whole: impl FnMut(u64) -> bool,
    ) -> Result<(), StoreError> {
        // One view: an entry and its vector are forgotten together. Without it, damage elsewhere must not end the check.
        let _view = self.snapshot().ok();
        for id in rows {
            match self.with_row(id, |row, vector| row.size() + vector.map_or(0, <[u8]>::len) as u64)? {
                Ok(size) if !whole(size) => return Ok(()),
                Ok(_) => {}
                Err(damage) => lost(damage),
            }
        }
        Ok(())
    }

    /// What SQLite itself finds wrong with the file, at most `limit` findings, each with its page or table.
    pub fn integrity(&self, limit: usize) -> Result<Vec<String>, StoreError> {
        let read = || -> Result<Vec<String>, rusqlite::Error> {
            let mut statement = self.db.prepare(&format!("PRAGMA integrity_check({limit})"))?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect()
        };
        match read() {
            Ok(found) => Ok(found
                .iter()
                .flat_map(|text| text.lines())
                .filter(|line| *line != "ok" && !line.starts_with("***"))
                .map(str::to_owned)
                .collect()),
            Err(error) if is_damage(&error) => Ok(vec![error.to_string()]),
            Err(error) => Err(error.into()),
        }
    }

    /// Keys whose heads or labels are not what their entries say, and why: at most `limit` for each way to be wrong.
    pub fn strays(&self, limit: usize) -> Result<Vec<(String, &'static str)>, StoreError> {
        let mut found = Vec::new();
        for (sql, why) in STRAYS {
            let mut statement = self.db.prepare(&format!("{sql} LIMIT {limit}"))?;
            let keys = statement.query_map([], |row| row.get::<_, String>(0))?;
            for key in keys {
                match key {
                    Ok(key) => found.push((key, why)),
                    // The damage itself is found row by row, and by SQLite.
                    Err(error) if is_damage(&error) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(found)
    }

    /// What is known of rows that cannot be read, from the indices, as far as those can be.
    pub fn describe(&self, lost: &BTreeSet<i64>) -> BTreeMap<i64, String> {
        let mut known: BTreeMap<i64, String> = BTreeMap::new();
        self.scan("SELECT id, agent, seq, key FROM entry INDEXED BY entry_key", lost, |id, row| {
            let (agent, seq, key): (String, u64, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
            known.insert(id, format!("entry {seq} of `{agent}`, under `{key}`"));
            Ok(())
        });
        self.scan("SELECT id, hash FROM entry INDEXED BY sqlite_autoindex_entry_1", lost, |id, row| {
            let hash = Digest(row.get(1)?);
            let text = known.entry(id).or_default();
            text.push_str(if text.is_empty() { "entry " } else { ", " });
            text.push_str(&hash.to_string());
            Ok(())
        });
        known
    }

    /// Reads an index from its beginning as far as it can be read.
    fn scan(
        &self,
        sql: &str,
        wanted: &BTreeSet<i64>,
        mut take: impl FnMut(i64, &rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) {
        let Ok(mut statement) = self.db.prepare(sql) else { return };
        let Ok(mut rows) = statement.query([]) else { return };
        while let Ok(Some(row)) = rows.next() {
            let Ok(id) = row.get::<_, i64>(0) else { continue };
            if wanted.contains(&id) && take(id, row).is_err() {
                continue; // that cell is damaged as well
            }
        }
    }
}

impl Snapshot<'_> {
    /// About how many entries are chosen: exactly, unless some are damaged or not there.
    pub fn count(&self, chosen: &Chosen) -> Result<u64, StoreError> {
        match chosen {
            Chosen::Hashes(hashes) => Ok(hashes.len() as u64),
            Chosen::Keys(agent, prefix) => {
                let agent = agent.as_ref().map(AgentName::as_str);
                let found = self.0.db.query_row(
                    "SELECT count(*) FROM entry WHERE (?1 IS NULL OR agent = ?1) AND substr(key, 1, length(?2)) = ?2",
                    params![agent, prefix],
                    |row| row.get(0),
                );
                match found {
                    // The agents' use knows it for all keys, and a number is no reason to keep the rest.
                    Err(error) if is_damage(&error) => {
                        let sql = "SELECT coalesce(sum(entries), 0) FROM agent WHERE ?1 IS NULL OR name = ?1";
                        Ok(self.0.db.query_row(sql, [agent], |row| row.get(0)).unwrap_or_default())
                    }
                    other => Ok(other?),
                }
            }
        }
    }

    /// Hands on the chosen entries that are whole, and returns how many are not.
    pub fn each<E: From<StoreError>>(
        &self,
        chosen: &Chosen,
        mut sink: impl FnMut(&Borrowed<'_>, Option<&[u8]>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut lost = 0;
        let mut one = |id: i64, agent: Option<&AgentName>, prefix: &str| -> Result<(), E> {
            let handed = self.0.with_row(id, |row, vector| {
                let meant = agent.is_none_or(|agent| row.agent() == agent.as_str());
                if meant && row.key().starts_with(prefix) { sink(row, vector) } else { Ok(()) }
            });
            match handed? {
                Ok(done) => done?,
                Err(_) => lost += 1,
            }
            Ok(())
        };
        match chosen {
            Chosen::Hashes(hashes) => {
                let mut sought = BTreeSet::new();
                for hash in hashes {
                    match self.id_of(hash) {
                        Ok(Some(id)) => one(id, None, "")?,
                        Ok(None) => {}
                        Err(error) if error.is_damage() => {
                            sought.insert(*hash);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                // The index is damaged where they are: the rows themselves still know them.
                let rows = if sought.is_empty() { 0 } else { self.0.last_row()? };
                for id in 1..=rows {
                    let found = self.0.hashes_between(id, id).unwrap_or_default();
                    if found.first().is_some_and(|(hash, _)| sought.remove(hash)) {
                        one(id, None, "")?;
                    }
                }
                lost += sought.len() as u64;
            }
            Chosen::Keys(agent, prefix) => {
                for id in 1..=self.0.last_row()? {
                    one(id, agent.as_ref(), prefix)?;
                }
            }
        }
        Ok(lost)
    }

    fn id_of(&self, hash: &Digest) -> Result<Option<i64>, StoreError> {
        let mut statement = self.0.db.prepare_cached("SELECT id FROM entry WHERE hash = ?1")?;
        Ok(statement.query_row([hash.0], |row| row.get(0)).optional()?)
    }
}

/// Whether SQLite says that the file is not what it wrote; a wrong type in a row says so too.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// A lost entry as it is reported.
pub fn damage(lost: &Lost, known: &BTreeMap<i64, String>) -> Damage {
    Damage {
        place: format!("memory.db, row {} of entry", lost.id),
        why: lost.why.clone(),
        lost: known.get(&lost.id).cloned().unwrap_or_else(|| "an entry whose key is not known".into()),
    }
}
