//! Writing: a transaction of entries and tombstones.
//!
//! Must hold: heads, labels, links, words and use say what the entries say, in every transaction.
//! Must never: change an entry's header.

use abi::control::Entry;
use abi::ids::{AgentName, Digest};
use abi::ledger::Receipt;
use abi::limits;
use abi::memory::{Expected, LABEL_EXPIRES, LABEL_NODE, LINK_SUPERSEDES, Link, NODE_PREFIX};
use abi::node::Conflicts;
use rusqlite::{Connection, OptionalExtension, params};

use super::vector::{self, Vector};
use super::{Store, StoreError, row, search};
use crate::draft::Draft;
use crate::entry::{Header, sha256};

/// What holds for every write on this node.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The label `nullbox.node`.
    pub node: String,
    pub conflicts: Conflicts,
}

/// A transaction of several writes. Dropped without [`Batch::commit`] it never was.
#[derive(Debug)]
pub struct Batch<'a> {
    store: &'a mut Store,
    finished: bool,
}

/// A head of a key.
#[derive(Debug, Clone, Copy)]
struct Head {
    id: i64,
    hash: Digest,
    unix_ms: u64,
}

/// The row of `nullbox.link` in the table `label`: what a newest entry links to is found as its labels are.
pub const LABEL_LINK: &str = "nullbox.link";

impl<'a> Batch<'a> {
    pub(super) fn begin(store: &'a mut Store) -> Result<Batch<'a>, StoreError> {
        store.db.execute_batch("BEGIN IMMEDIATE")?;
        Ok(Batch { store, finished: false })
    }

    /// Adds what was drafted as a new entry. A refusal ([`StoreError::is_refusal`]) leaves the batch as it was.
    pub fn write(&self, draft: &Draft, rules: &Rules, unix_ms: u64) -> Result<(Digest, Header), StoreError> {
        let newest = self.newest_head(draft.agent.as_str(), &draft.key)?.map(|head| head.hash);
        let others = self.other_heads(&draft.agent, &draft.key)?;
        let met = match draft.expected {
            None => true,
            Some(Expected::None(_)) => newest.is_none(),
            Some(Expected::Entry(expected)) => newest == Some(expected),
        };
        if !met {
            return Err(StoreError::Conflict { key: draft.key.clone(), newest });
        }
        if !others.is_empty() && rules.conflicts == Conflicts::Refuse && draft.expected.is_none() {
            let heads = newest.into_iter().chain(others).collect();
            return Err(StoreError::Heads { key: draft.key.clone(), heads });
        }
        let mut labels = draft.labels.clone();
        labels.insert(LABEL_NODE.into(), rules.node.clone());
        if let Some(secs) = draft.ttl_secs {
            labels.insert(LABEL_EXPIRES.into(), unix_ms.saturating_add(secs * 1000).to_string());
        }
        let mut links = draft.links.clone();
        links.extend(others.into_iter().map(|to| Link { kind: LINK_SUPERSEDES.into(), to }));
        links.sort();
        let seq = self
            .db()
            .prepare_cached("SELECT next_seq FROM agent WHERE name = ?1")?
            .query_row([draft.agent.as_str()], |row| row.get(0))
            .optional()?;
        let header = Header {
            agent: draft.agent.clone(),
            key: draft.key.clone(),
            parent: newest,
            seq: seq.unwrap_or(0),
            unix_ms,
            labels,
            links,
            value: sha256(draft.text.as_bytes()),
        };
        let hash = header.hash()?;
        self.put(&header, hash, &Held::Value(&draft.text), draft.vector.as_ref())?;
        Ok((hash, header))
    }

    /// Adds an entry that has its hash, of this node or another; false if it is there already. The caller has checked that the value
    /// and the vector are the header's.
    pub fn put(
        &self,
        header: &Header,
        hash: Digest,
        held: &Held<'_>,
        vector: Option<&Vector>,
    ) -> Result<bool, StoreError> {
        let db = self.db();
        if db.prepare_cached("SELECT 1 FROM entry WHERE hash = ?1")?.exists([hash.0])? {
            return Ok(false);
        }
        if header.seq > limits::MEMORY_SEQ_MAX {
            return Err(StoreError::Seq(header.seq));
        }
        let (labels, links) = (header.labels_text(), header.links_text());
        let (value, forgotten) = match held {
            Held::Value(text) => (Some(*text), None),
            Held::Forgotten(why) => (None, Some(*why)),
        };
        let vector = vector.filter(|_| value.is_some());
        let texts = header.key.len() + labels.len() + links.len() + value.map_or(0, str::len);
        let size = (texts + vector.map_or(0, |vector| vector.bytes().len())) as u64;
        self.within_quotas(&header.agent, size)?;
        let expires = value.and_then(|_| header.labels.get(LABEL_EXPIRES)?.parse::<i64>().ok());
        db.prepare_cached(
            "INSERT INTO entry (hash, agent, seq, key, parent, unix_ms, links, labels, value_hash, value, forgotten, expires_unix_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            hash.0,
            header.agent.as_str(),
            header.seq,
            header.key,
            header.parent.map(|digest| digest.0),
            header.unix_ms,
            links,
            labels,
            header.value.0,
            value,
            forgotten,
            expires,
        ])?;
        let id = db.last_insert_rowid();
        for link in &header.links {
            db.prepare_cached("INSERT INTO link VALUES (?1, ?2, ?3)")?
                .execute(params![link.to.0, id, link.kind])?;
        }
        if let Some(vector) = vector {
            vector::keep(db, id, &header.agent, &header.key, vector)?;
            vector::retire(db, id)?; // until it is the newest
        }
        let first = self.move_heads(header, Head { id, hash, unix_ms: header.unix_ms })?;
        db.prepare_cached(
            "INSERT INTO agent VALUES (?1, 1, 1, ?2, ?4) ON CONFLICT DO UPDATE SET entries = entries + 1, keys = keys + ?3,
             bytes = bytes + ?2, next_seq = max(next_seq, ?4)",
        )?
        .execute(params![header.agent.as_str(), size, u64::from(first), header.seq + 1])?;
        Ok(true)
    }

    /// Brings the heads of a new entry's key up to date; true if the key is new. Of the heads only those are loaded that change: an import
    /// may bring thousands of them.
    fn move_heads(&self, header: &Header, new: Head) -> Result<bool, StoreError> {
        let (db, agent, key) = (self.db(), header.agent.as_str(), header.key.as_str());
        let was = self.newest_head(agent, key)?;
        let mut left = was;
        let superseded = header.links.iter().filter(|link| link.kind == LINK_SUPERSEDES).map(|link| &link.to);
        for hash in header.parent.iter().chain(superseded) {
            let gone: Option<i64> = db
                .prepare_cached(
                    "DELETE FROM head WHERE agent = ?1 AND key = ?2 AND entry = (SELECT id FROM entry WHERE hash = ?3) RETURNING entry",
                )?
                .query_row(params![agent, key, hash.0], |row| row.get(0))
                .optional()?;
            left = left.filter(|head| gone != Some(head.id));
        }
        if left.is_none() {
            left = self.largest_head(agent, key)?;
        }
        let is_head = !self.has_successor(agent, key, &new.hash)?;
        let newest =
            left.into_iter().chain(is_head.then_some(new)).max_by_key(|head| (head.unix_ms, head.hash));
        let (was, newest) = (was.map(|head| head.id), newest.map(|head| head.id));
        if was != newest {
            db.prepare_cached("UPDATE head SET newest = 0 WHERE agent = ?1 AND key = ?2 AND newest = 1")?
                .execute(params![agent, key])?;
        }
        if is_head {
            db.prepare_cached("INSERT OR REPLACE INTO head VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                agent,
                key,
                new.id,
                newest == Some(new.id)
            ])?;
        }
        if was != newest {
            if let Some(id) = was {
                index(db, id, false)?;
            }
            if let Some(id) = newest {
                db.prepare_cached(
                    "UPDATE head SET newest = 1 WHERE agent = ?1 AND key = ?2 AND entry = ?3 AND newest = 0",
                )?
                .execute(params![agent, key, id])?;
                index(db, id, true)?;
            }
        }
        Ok(was.is_none())
    }

    /// Whether an entry under the same key follows this one or supersedes it already. Only an import can come so late.
    fn has_successor(&self, agent: &str, key: &str, hash: &Digest) -> Result<bool, StoreError> {
        Ok(self
            .db()
            .prepare_cached(
                "SELECT 1 FROM entry WHERE parent = ?1 AND agent = ?2 AND key = ?3
                 UNION ALL SELECT 1 FROM link l JOIN entry e ON e.id = l.source
                 WHERE l.target = ?1 AND l.type = ?4 AND e.agent = ?2 AND e.key = ?3",
            )?
            .exists(params![hash.0, agent, key, LINK_SUPERSEDES])?)
    }

    fn newest_head(&self, agent: &str, key: &str) -> Result<Option<Head>, StoreError> {
        self.one_head(
            "SELECT e.id, e.hash, e.unix_ms FROM head h JOIN entry e ON e.id = h.entry
             WHERE h.agent = ?1 AND h.key = ?2 AND h.newest = 1",
            params![agent, key],
        )
    }

    /// What is to be the newest.
    fn largest_head(&self, agent: &str, key: &str) -> Result<Option<Head>, StoreError> {
        self.one_head(
            "SELECT e.id, e.hash, e.unix_ms FROM head h JOIN entry e ON e.id = h.entry
             WHERE h.agent = ?1 AND h.key = ?2 ORDER BY e.unix_ms DESC, e.hash DESC LIMIT 1",
            params![agent, key],
        )
    }

    fn one_head(&self, sql: &str, params: impl rusqlite::Params) -> Result<Option<Head>, StoreError> {
        let of = |row: &rusqlite::Row<'_>| {
            Ok(Head { id: row.get(0)?, hash: Digest(row.get(1)?), unix_ms: row.get(2)? })
        };
        Ok(self.db().prepare_cached(sql)?.query_row(params, of).optional()?)
    }

    /// The other heads of a key, as many as a write supersedes.
    fn other_heads(&self, agent: &AgentName, key: &str) -> Result<Vec<Digest>, StoreError> {
        let mut statement = self.db().prepare_cached(
            "SELECT e.hash FROM head h JOIN entry e ON e.id = h.entry WHERE h.agent = ?1 AND h.key = ?2 AND h.newest = 0 LIMIT ?3",
        )?;
        let most = limits::MEMORY_HEADS_SUPERSEDED_MAX as u64;
        let rows = statement.query_map(params![agent.as_str(), key, most], |row| Ok(Digest(row.get(0)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn within_quotas(&self, agent: &AgentName, size: u64) -> Result<(), StoreError> {
        let used = self
            .db()
            .prepare_cached("SELECT entries, bytes FROM agent WHERE name = ?1")?
            .query_row([agent.as_str()], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)))
            .optional()?;
        let (entries, bytes) = used.unwrap_or_default();
        let quotas = self.store.quotas;
        for (what, have, more, quota) in
            [("entries", entries, 1, quotas.entries), ("bytes", bytes, size, quotas.bytes)]
        {
            if have.saturating_add(more) > quota {
                return Err(StoreError::Quota { agent: agent.clone(), what, have, quota });
            }
        }
        Ok(())
    }

    /// Deletes a value, its words and its vector, and says why in their place; returns the bytes, or none where there was no value.
    pub fn erase(&self, id: i64, why: &str) -> Result<Option<u64>, StoreError> {
        let db = self.db();
        let found: Option<(String, u64, bool)> = db
            .prepare_cached(
                "SELECT e.agent, octet_length(e.value), coalesce(h.newest, 0) FROM entry e
                 LEFT JOIN head h ON h.agent = e.agent AND h.key = e.key AND h.entry = e.id WHERE e.id = ?1 AND e.value IS NOT NULL",
            )?
            .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((agent, length, newest)) = found else { return Ok(None) };
        if newest && let Some(entry) = sound(db, id)? {
            search::unindex(db, id, &entry.agent, &entry.key, &entry.labels, &entry.value)?;
        }
        let bytes = length + vector::forget(db, id)?;
        db.prepare_cached(
            "UPDATE entry SET value = NULL, forgotten = ?2, expires_unix_ms = NULL WHERE id = ?1",
        )?
        .execute(params![id, why])?;
        db.prepare_cached("UPDATE agent SET bytes = bytes - ?2 WHERE name = ?1")?
            .execute(params![agent, bytes])?;
        Ok(Some(bytes))
    }

    /// Does several things or none of them; what was done before them stands either way.
    pub fn together<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.db().execute_batch("SAVEPOINT together")?;
        let done = work();
        let end = if done.is_ok() { "RELEASE together" } else { "ROLLBACK TO together; RELEASE together" };
        self.db().execute_batch(end)?;
        done
    }

    /// Makes the batch durable, with the newest of its receipts.
    pub fn commit(mut self, newest: Option<&Receipt>) -> Result<(), StoreError> {
        if let Some(receipt) = newest {
            self.db()
                .prepare_cached("INSERT INTO witness VALUES (0, ?1, ?2) ON CONFLICT DO UPDATE SET seq = excluded.seq, digest = excluded.digest")?
                .execute(params![receipt.seq, receipt.digest.0])?;
        }
        self.db().execute_batch("COMMIT")?;
        self.finished = true;
        Ok(())
    }

    /// The connection of the transaction.
    pub fn db(&self) -> &Connection {
        &self.store.db
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only where SQLite has rolled back by itself.
            let _ = self.store.db.execute_batch("ROLLBACK");
        }
    }
}

/// What there is of an entry's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held<'a> {
    /// Its canonical text.
    Value(&'a str),
    /// Why it is not there any more.
    Forgotten(&'a str),
}

/// Adds the words and labels of a newest entry, or takes them out. A damaged entry is reported when it is read; it must not keep its
/// key from being written, so what it left in the indices stays there.
fn index(db: &Connection, id: i64, add: bool) -> Result<(), StoreError> {
    if add {
        vector::revive(db, id)?;
    } else {
        vector::retire(db, id)?;
    }
    let Some(entry) = sound(db, id)? else { return Ok(()) };
    if entry.forgotten.is_none() {
        let work = if add { search::index } else { search::unindex };
        work(db, id, &entry.agent, &entry.key, &entry.labels, &entry.value)?;
    }
    let own = entry.labels.into_iter().filter(|(name, _)| !name.starts_with(NODE_PREFIX));
    let targets = entry.links.into_iter().map(|link| (LABEL_LINK.to_owned(), link.to.to_string()));
    for (name, text) in own.chain(targets) {
        let sql = if add {
            "INSERT OR IGNORE INTO label VALUES (?1, ?2, ?3, ?4, ?5)"
        } else {
            "DELETE FROM label WHERE agent = ?1 AND name = ?2 AND value = ?3 AND key = ?4 AND entry = ?5"
        };
        db.prepare_cached(sql)?.execute(params![entry.agent.as_str(), name, text, entry.key, id])?;
    }
    Ok(())
}

/// A row's entry, if it is undamaged: words are counted out of FTS5's index only with the texts that they were counted in with.
fn sound(db: &Connection, id: i64) -> Result<Option<Entry>, StoreError> {
    match row::by_id(db, id) {
        Err(StoreError::Damaged(..)) => Ok(None),
        other => other,
    }
}
