//! memory.db: entries, heads and use, in SQLite. The schema is docs/formats/ctxgraph.md.
//!
//! Must hold: entries are only ever added; what is read is checked against its hash before it is shown.
//! Must never: show one agent's entry for another agent's question.

pub mod search;
pub mod vector;

use abi::control::{Entry, MemoryUse};
use abi::ids::{AgentName, Digest};
use abi::ledger::Receipt;
use abi::limits;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::canonical::CanonicalError;
use crate::entry::{Header, sha256};
use crate::ledger::scan::Witness;

/// `NBM1`.
const APPLICATION_ID: i32 = 0x4e42_4d31;
const SCHEMA_VERSION: i32 = 1;

const SCHEMA: &str = "
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    agent TEXT NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    parent BLOB,
    unix_ms INTEGER NOT NULL,
    links TEXT NOT NULL DEFAULT '[]',
    labels TEXT NOT NULL DEFAULT '{}',
    value_hash BLOB NOT NULL,
    value TEXT
) STRICT;
CREATE INDEX entry_key ON entry (agent, key, seq);
CREATE INDEX entry_seq ON entry (agent, seq);
CREATE TABLE head (
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    entry INTEGER NOT NULL REFERENCES entry (id),
    PRIMARY KEY (agent, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE agent (
    name TEXT PRIMARY KEY,
    entries INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    next_seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE witness (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    seq INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;
";

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("memory.db: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("memory.db belongs to something else, or to a later NullBox (application {0:#x}, version {1})")]
    Foreign(i32, i32),
    #[error("entry {0} of memory.db is damaged: {1}")]
    Damaged(i64, &'static str),
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    #[error(transparent)]
    Query(#[from] search::QueryError),
    #[error(transparent)]
    Vector(#[from] vector::VectorError),
    #[error("agent `{agent}` has {have} {what}, the quota is {quota}")]
    Quota { agent: AgentName, what: &'static str, have: u64, quota: u64 },
}

/// How much each agent may own.
#[derive(Debug, Clone, Copy)]
pub struct Quotas {
    pub entries: u64,
    pub bytes: u64,
}

impl Default for Quotas {
    fn default() -> Quotas {
        Quotas { entries: limits::MEMORY_ENTRIES_PER_AGENT_MAX, bytes: limits::MEMORY_BYTES_PER_AGENT_MAX }
    }
}

/// One connection to memory.db.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    quotas: Quotas,
}

impl Store {
    /// Opens for writing; makes the file and its tables if there are none.
    pub fn open(path: &Path, quotas: Quotas) -> Result<Store, StoreError> {
        let db = Connection::open(path)?;
        configure(&db)?;
        // Both are set in one transaction with the tables: a crash leaves an empty file or a whole one.
        let (application, version) = identity(&db)?;
        match (application, version) {
            (0, 0) => db.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
            ))?,
            (APPLICATION_ID, SCHEMA_VERSION) => {}
            _ => return Err(StoreError::Foreign(application, version)),
        }
        Ok(Store { db, quotas })
    }

    /// Opens a further connection that only reads.
    pub fn open_reader(path: &Path) -> Result<Store, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        configure(&db)?;
        Ok(Store { db, quotas: Quotas::default() })
    }

    /// The newest receipt that a committed write waited for.
    pub fn witness(&self) -> Result<Option<Witness>, StoreError> {
        let found = self
            .db
            .query_row("SELECT seq, digest FROM witness", [], |row| {
                Ok((row.get::<_, u64>(0)?, row.get::<_, [u8; 32]>(1)?))
            })
            .optional()?;
        Ok(found.map(|(seq, digest)| (seq, Digest(digest))))
    }

    /// Begins a batch of writes.
    pub fn begin(&mut self) -> Result<Batch<'_>, StoreError> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        Ok(Batch { store: self, finished: false })
    }

    /// An entry by its hash, if it is this agent's.
    pub fn by_hash(&self, agent: &AgentName, hash: &Digest) -> Result<Option<Entry>, StoreError> {
        let sql = format!("{SELECT} WHERE e.hash = ?1 AND e.agent = ?2");
        let mut statement = self.db.prepare_cached(&sql)?;
        let found = statement.query_row(params![hash.0, agent.as_str()], Stored::from_row).optional()?;
        found.map(Stored::checked).transpose()
    }

    /// Whether anybody has an entry with this hash: only for the record of a refusal.
    pub fn exists(&self, hash: &Digest) -> Result<bool, StoreError> {
        let mut statement = self.db.prepare_cached("SELECT 1 FROM entry WHERE hash = ?1")?;
        Ok(statement.exists([hash.0])?)
    }

    /// The newest entry of a key.
    pub fn newest(&self, agent: &AgentName, key: &str) -> Result<Option<Entry>, StoreError> {
        let sql = format!("{SELECT} JOIN head h ON h.entry = e.id WHERE h.agent = ?1 AND h.key = ?2");
        let mut statement = self.db.prepare_cached(&sql)?;
        let found = statement.query_row(params![agent.as_str(), key], Stored::from_row).optional()?;
        found.map(Stored::checked).transpose()
    }

    /// Newest entries of the keys with a prefix, by key, after a key; hands them on until `sink` says stop.
    pub fn query(
        &self,
        agent: &AgentName,
        prefix: &str,
        after: Option<&str>,
        mut sink: impl FnMut(Entry) -> bool,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "{SELECT} JOIN head h ON h.entry = e.id WHERE h.agent = ?1 AND h.key >= ?2 AND (?3 IS NULL OR h.key > ?3) ORDER BY h.key"
        );
        let mut statement = self.db.prepare_cached(&sql)?;
        // Starting at the cursor keeps a page's cost independent of the pages before it.
        let from = after.filter(|after| *after > prefix).unwrap_or(prefix);
        let mut rows = statement.query(params![agent.as_str(), from, after])?;
        while let Some(row) = rows.next()? {
            let stored = Stored::from_row(row)?;
            if !stored.key.starts_with(prefix) || !sink(stored.checked()?) {
                break;
            }
        }
        Ok(())
    }

    /// Entries of one key, newest first, before a seq; hands them on until `sink` says stop.
    pub fn history(
        &self,
        agent: &AgentName,
        key: &str,
        before: Option<u64>,
        mut sink: impl FnMut(Entry) -> bool,
    ) -> Result<(), StoreError> {
        let sql = format!("{SELECT} WHERE e.agent = ?1 AND e.key = ?2 AND e.seq < ?3 ORDER BY e.seq DESC");
        let mut statement = self.db.prepare_cached(&sql)?;
        let before = before.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![agent.as_str(), key, before])?;
        while let Some(row) = rows.next()? {
            if !sink(Stored::from_row(row)?.checked()?) {
                break;
            }
        }
        Ok(())
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

fn configure(db: &Connection) -> Result<(), StoreError> {
    db.busy_timeout(Duration::from_secs(10))?;
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-1024; PRAGMA foreign_keys=ON;
         PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF; PRAGMA journal_size_limit=4194304;",
    )?;
    Ok(())
}

fn identity(db: &Connection) -> Result<(i32, i32), StoreError> {
    let pragma = |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}

/// A transaction of several writes. Dropped without [`Batch::commit`] it never was.
#[derive(Debug)]
pub struct Batch<'a> {
    store: &'a mut Store,
    finished: bool,
}

impl Batch<'_> {
    /// Adds an entry. A refusal leaves the batch as it was.
    pub fn write(
        &self,
        agent: &AgentName,
        key: &str,
        value: &str,
        unix_ms: u64,
    ) -> Result<(Digest, Header), StoreError> {
        let db = &self.store.db;
        let known = db
            .prepare_cached("SELECT entries, bytes, next_seq FROM agent WHERE name = ?1")?
            .query_row([agent.as_str()], |row| {
                Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?, row.get::<_, u64>(2)?))
            })
            .optional()?;
        let (entries, bytes, seq) = known.unwrap_or_default();
        let size = (key.len() + value.len()) as u64;
        self.within_quota(agent, "entries", entries, 1, self.store.quotas.entries)?;
        self.within_quota(agent, "bytes", bytes, size, self.store.quotas.bytes)?;
        let parent = db
            .prepare_cached(
                "SELECT e.hash FROM head h JOIN entry e ON e.id = h.entry WHERE h.agent = ?1 AND h.key = ?2",
            )?
            .query_row(params![agent.as_str(), key], |row| row.get::<_, [u8; 32]>(0))
            .optional()?
            .map(Digest);
        let header = Header {
            agent: agent.clone(),
            key: key.to_owned(),
            parent,
            seq,
            unix_ms,
            labels: BTreeMap::new(),
            links: Vec::new(),
            value: sha256(value.as_bytes()),
        };
        let hash = header.hash()?;
        db.prepare_cached(
            "INSERT INTO entry (hash, agent, seq, key, parent, unix_ms, value_hash, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            hash.0,
            agent.as_str(),
            seq,
            key,
            parent.map(|digest| digest.0),
            unix_ms,
            header.value.0,
            value
        ])?;
        db.prepare_cached(
            "INSERT INTO head VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET entry = excluded.entry",
        )?
        .execute(params![agent.as_str(), key, db.last_insert_rowid()])?;
        db.prepare_cached(
            "INSERT INTO agent VALUES (?1, 1, 1, ?2, 1) ON CONFLICT DO UPDATE SET
             entries = entries + 1, keys = keys + ?3, bytes = bytes + ?2, next_seq = next_seq + 1",
        )?
        .execute(params![agent.as_str(), size, u64::from(parent.is_none())])?;
        Ok((hash, header))
    }

    fn within_quota(
        &self,
        agent: &AgentName,
        what: &'static str,
        have: u64,
        more: u64,
        quota: u64,
    ) -> Result<(), StoreError> {
        if have.saturating_add(more) <= quota {
            return Ok(());
        }
        Err(StoreError::Quota { agent: agent.clone(), what, have, quota })
    }

    /// Makes the batch durable, with the newest of its receipts.
    pub fn commit(mut self, newest: Option<&Receipt>) -> Result<(), StoreError> {
        if let Some(receipt) = newest {
            self.store
                .db
                .prepare_cached("INSERT INTO witness VALUES (0, ?1, ?2) ON CONFLICT DO UPDATE SET seq = excluded.seq, digest = excluded.digest")?
                .execute(params![receipt.seq, receipt.digest.0])?;
        }
        self.store.db.execute_batch("COMMIT")?;
        self.finished = true;
        Ok(())
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

const SELECT: &str = "SELECT e.id, e.hash, e.agent, e.seq, e.key, e.parent, e.unix_ms, e.labels, e.links, e.value_hash, e.value FROM entry e";

/// A row of `entry`, not yet checked against its hash.
struct Stored {
    id: i64,
    hash: Digest,
    agent: String,
    seq: u64,
    key: String,
    parent: Option<Digest>,
    unix_ms: u64,
    labels: String,
    links: String,
    value_hash: Digest,
    value: Option<String>,
}

impl Stored {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Stored> {
        Ok(Stored {
            id: row.get(0)?,
            hash: Digest(row.get(1)?),
            agent: row.get(2)?,
            seq: row.get(3)?,
            key: row.get(4)?,
            parent: row.get::<_, Option<[u8; 32]>>(5)?.map(Digest),
            unix_ms: row.get(6)?,
            labels: row.get(7)?,
            links: row.get(8)?,
            value_hash: Digest(row.get(9)?),
            value: row.get(10)?,
        })
    }

    fn checked(self) -> Result<Entry, StoreError> {
        let damaged = |what| StoreError::Damaged(self.id, what);
        let value = self.value.ok_or(damaged("it has no value"))?;
        if sha256(value.as_bytes()) != self.value_hash {
            return Err(damaged("its value does not have its digest"));
        }
        let header = Header {
            agent: self.agent.parse().map_err(|_| damaged("its agent's name"))?,
            key: self.key,
            parent: self.parent,
            seq: self.seq,
            unix_ms: self.unix_ms,
            labels: serde_json::from_str(&self.labels).map_err(|_| damaged("its labels"))?,
            links: serde_json::from_str(&self.links).map_err(|_| damaged("its links"))?,
            value: self.value_hash,
        };
        if header.hash()? != self.hash {
            return Err(damaged("it does not have its hash"));
        }
        let value = serde_json::from_str(&value).map_err(|_| damaged("its value is not JSON"))?;
        Ok(header.entry(self.hash, value))
    }
}
