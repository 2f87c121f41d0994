//! Reading: by hash, by key, and pages of entries.
//!
//! Must hold: a page costs what it looks at, and that is bounded; where it looked at enough it ends with a cursor, full or not.

use abi::control::{Entries, Entry, MemoryConflicts, MemoryHistory, MemoryQuery, MemoryUse};
use abi::ids::{AgentName, Digest};
use abi::limits;
use abi::memory::NODE_PREFIX;
use rusqlite::params;
use std::collections::BTreeMap;

use super::batch::LABEL_LINK;
use super::page::Page;
use super::row::{self, Borrowed, select};
use super::{Store, StoreError};

impl Store {
    /// An entry by its hash, whoever's it is: the caller decides who may see it, by its agent and key.
    pub fn by_hash(&self, hash: &Digest) -> Result<Option<Entry>, StoreError> {
        const SQL: &str = select!("WHERE e.hash = ?1");
        row::one(&self.db, SQL, [hash.0])
    }

    /// The newest entry of a key, with the other heads: 64 of them, so that the answer fits a line; `conflicts` has all.
    pub fn newest(&self, agent: &AgentName, key: &str) -> Result<Option<Entry>, StoreError> {
        // One state of the file for both questions.
        let _snapshot = self.db.unchecked_transaction()?;
        const SQL: &str = select!(
            "JOIN head h ON h.entry = e.id AND +e.agent = h.agent AND +e.key = h.key
             WHERE h.agent = ?1 AND h.key = ?2 AND h.newest = 1"
        );
        let Some(mut entry) = row::one(&self.db, SQL, params![agent.as_str(), key])? else { return Ok(None) };
        let mut others = self.db.prepare_cached(
            "SELECT e.hash FROM head h JOIN entry e ON e.id = h.entry AND +e.agent = h.agent AND +e.key = h.key
             WHERE h.agent = ?1 AND h.key = ?2 AND h.newest = 0 ORDER BY e.hash LIMIT 64",
        )?;
        let hashes = others.query_map(params![agent.as_str(), key], |row| row.get(0).map(Digest))?;
        entry.conflicts = hashes.collect::<Result<_, _>>()?;
        Ok(Some(entry))
    }

    /// Newest entries of the keys with a prefix that meet all of the rest, by key. The cursor is the last key looked at.
    pub fn query(&self, agent: &AgentName, query: &MemoryQuery) -> Result<Entries, StoreError> {
        // What is looked up narrows most; the rest is checked on each entry.
        let own = query.labels.iter().find(|(name, _)| !name.starts_with(NODE_PREFIX));
        let looked_up = match (&query.linked_to, own) {
            (Some(target), _) => Some((LABEL_LINK, target.to_string())),
            (None, Some((name, value))) => Some((name.as_str(), value.clone())),
            (None, None) => None,
        };
        let after = query.cursor.as_deref();
        // Starting at the cursor keeps a page's cost independent of the pages before it.
        let from = after.filter(|after| *after > query.prefix.as_str()).unwrap_or(&query.prefix);
        let mut page = Page::new(query.limit);
        match looked_up {
            None => {
                const SQL: &str = select!(
                    "JOIN head h ON h.entry = e.id AND +e.agent = h.agent AND +e.key = h.key
                     WHERE h.agent = ?1 AND h.key >= ?2 AND h.newest = 1 ORDER BY h.key"
                );
                let mut statement = self.db.prepare_cached(SQL)?;
                fill(&mut page, query, after, statement.query(params![agent.as_str(), from])?)?;
            }
            Some((name, value)) => {
                const SQL: &str = select!(
                    "JOIN label l ON l.entry = e.id AND +e.agent = l.agent AND +e.key = l.key
                     WHERE l.agent = ?1 AND l.name = ?3 AND l.value = ?4 AND l.key >= ?2 ORDER BY l.key"
                );
                let mut statement = self.db.prepare_cached(SQL)?;
                let rows = statement.query(params![agent.as_str(), from, name, value])?;
                fill(&mut page, query, after, rows)?;
            }
        }
        Ok(page.finish())
    }

    /// All entries of one key, newest first. The cursor is the last entry's seq and row.
    pub fn history(&self, agent: &AgentName, query: &MemoryHistory) -> Result<Entries, StoreError> {
        const SQL: &str = select!(
            "WHERE e.agent = ?1 AND e.key = ?2 AND (e.seq, e.id) < (?3, ?4) ORDER BY e.seq DESC, e.id DESC"
        );
        let before = match &query.cursor {
            None => (i64::MAX, i64::MAX),
            Some(cursor) => numbers(cursor)?,
        };
        let mut page = Page::new(query.limit);
        let mut statement = self.db.prepare_cached(SQL)?;
        let mut rows = statement.query(params![agent.as_str(), query.key, before.0, before.1])?;
        let mut last = String::new();
        while let Some(row) = rows.next()? {
            let Some(entry) = row::whole(row)? else {
                page.damaged();
                continue;
            };
            let place = format!("{}.{}", entry.seq, row.get::<_, i64>(0)?);
            if !page.take(entry) {
                page.more(last);
                break;
            }
            last = place;
        }
        Ok(page.finish())
    }

    /// The heads of keys that have several, by key. The cursor is the last one's row and key.
    pub fn conflicts(&self, agent: &AgentName, query: &MemoryConflicts) -> Result<Entries, StoreError> {
        let _snapshot = self.db.unchecked_transaction()?;
        const SQL: &str = select!(
            "JOIN head h ON h.entry = e.id AND +e.agent = h.agent AND +e.key = h.key
             WHERE h.agent = ?1 AND h.key = ?2 AND h.entry > ?3 ORDER BY h.entry"
        );
        let (mut after, mut key) = match query.cursor.as_deref() {
            None => (0, self.conflict_from(agent, ">=", &query.prefix)?),
            Some(cursor) => {
                let (row, last) = cursor.split_once(':').ok_or_else(|| wrong_cursor(cursor))?;
                let row = row.parse().map_err(|_| wrong_cursor(cursor))?;
                let found = self.conflict_from(agent, ">=", last.max(query.prefix.as_str()))?;
                // Where the key has no conflict any more, all heads of the next one come after the cursor.
                (if found.as_deref() == Some(last) { row } else { 0 }, found)
            }
        };
        let mut page = Page::new(query.limit);
        let mut statement = self.db.prepare_cached(SQL)?;
        let mut last = String::new();
        while let Some(now) = key.filter(|key| key.starts_with(&query.prefix)) {
            let mut rows = statement.query(params![agent.as_str(), now, after])?;
            while let Some(row) = rows.next()? {
                let Some(entry) = row::whole(row)? else {
                    page.damaged();
                    continue;
                };
                let place = format!("{}:{now}", row.get::<_, i64>(0)?);
                if !page.take(entry) {
                    page.more(last);
                    return Ok(page.finish());
                }
                last = place;
            }
            after = 0;
            key = self.conflict_from(agent, ">", &now)?;
        }
        Ok(page.finish())
    }

    /// The first key from here on, or after it, with several heads.
    fn conflict_from(&self, agent: &AgentName, from: &str, key: &str) -> Result<Option<String>, StoreError> {
        let sql = format!(
            "SELECT key FROM head WHERE newest = 0 AND agent = ?1 AND key {from} ?2 ORDER BY key LIMIT 1"
        );
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut rows = statement.query(params![agent.as_str(), key])?;
        Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
    }

    /// All agents and their use, by name.
    pub fn agents(&self) -> Result<Vec<MemoryUse>, StoreError> {
        let mut statement =
            self.db.prepare_cached("SELECT name, entries, keys, bytes FROM agent ORDER BY name")?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        let mut agents = Vec::new();
        for row in rows {
            let (name, entries, keys, bytes) = row?;
            let agent = name.parse().map_err(|_| StoreError::Damaged(0, "an agent's name"))?;
            agents.push(MemoryUse { agent, entries, keys, bytes });
        }
        Ok(agents)
    }
}

/// Takes what meets the query from rows in the order of their keys, until the page is full or it looked at enough.
fn fill(
    page: &mut Page,
    query: &MemoryQuery,
    after: Option<&str>,
    mut rows: rusqlite::Rows<'_>,
) -> Result<(), StoreError> {
    let (mut last, mut looked, mut bytes) = (String::new(), 0, 0);
    while let Some(row) = rows.next()? {
        // The join compared it with the key of the index.
        let key = row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?;
        if !key.starts_with(&query.prefix) {
            break;
        }
        if after == Some(key) {
            continue;
        }
        if looked == limits::MEMORY_QUERY_LOOKED_MAX || bytes >= limits::MEMORY_SEARCH_BYTES_MAX as u64 {
            page.more(last);
            break;
        }
        looked += 1;
        match Borrowed::of(row) {
            Ok(stored) if !meets(&stored, query) => bytes += stored.size(),
            read => {
                bytes += read.map_or(0, |stored| stored.size());
                let Some(entry) = row::whole(row)? else {
                    page.damaged();
                    key.clone_into(&mut last);
                    continue;
                };
                if !page.take(entry) {
                    page.more(last);
                    break;
                }
            }
        }
        key.clone_into(&mut last);
    }
    Ok(())
}

/// Whether a row meets the query, by what stands there: it is checked before it is shown. One that is damaged does.
fn meets(stored: &Borrowed<'_>, query: &MemoryQuery) -> bool {
    let has = |labels: BTreeMap<String, String>| {
        query.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    };
    in_time(query, stored.unix_ms())
        && (query.labels.is_empty() || stored.labels().is_none_or(has))
        && query.linked_to.is_none_or(|target| {
            stored.links().is_none_or(|links| links.iter().any(|link| link.to == target))
        })
}

fn in_time(query: &MemoryQuery, unix_ms: u64) -> bool {
    query.since_unix_ms.is_none_or(|since| unix_ms >= since)
        && query.until_unix_ms.is_none_or(|until| unix_ms < until)
}

/// A history cursor.
fn numbers(cursor: &str) -> Result<(i64, i64), StoreError> {
    let parsed = cursor.split_once('.').and_then(|(seq, row)| Some((seq.parse().ok()?, row.parse().ok()?)));
    parsed.ok_or_else(|| wrong_cursor(cursor))
}

fn wrong_cursor(cursor: &str) -> StoreError {
    StoreError::Cursor(cursor.chars().take(64).collect())
}
