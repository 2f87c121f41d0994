//! memory.db: entries, heads and use, in SQLite. The schema is docs/formats/ctxgraph.md.
//!
//! Must hold: entries are only ever added, and what goes is a value; what is read is checked against its hash before it is shown.
//! Must never: show one agent's entry for another agent's question.

pub mod batch;
pub mod forget;
pub mod graph;
mod hits;
mod page;
mod read;
pub mod row;
mod schema;
pub mod search;
pub mod vector;
pub mod whole;

use abi::ids::{AgentName, Digest};
use abi::limits;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::path::Path;
use std::time::Duration;

use crate::canonical::CanonicalError;
use crate::ledger::scan::Witness;
pub use batch::{Batch, Held, Rules};

/// How long one connection waits for another.
const BUSY: Duration = Duration::from_secs(10);

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
    #[error("the newest entry of `{key}` is not the one expected, but {}", newest.map_or("none".into(), |n| n.to_string()))]
    Conflict { key: String, newest: Option<Digest> },
    #[error("`{key}` has several heads: {}", heads.iter().map(Digest::to_string).collect::<Vec<_>>().join(", "))]
    Heads { key: String, heads: Vec<Digest> },
    #[error("the entry's position {0} is beyond {max}", max = limits::MEMORY_SEQ_MAX)]
    Seq(u64),
    #[error("the cursor `{0}` is not one that an answer gave")]
    Cursor(String),
}

impl StoreError {
    /// Whether the writer was refused, before anything was changed; every other error may have left half of an entry in the batch.
    pub fn is_refusal(&self) -> bool {
        use StoreError::{Conflict, Heads, Quota, Seq};
        matches!(self, Quota { .. } | Conflict { .. } | Heads { .. } | Seq(_))
    }

    /// Whether a row or a page is not what was written; others may be.
    pub fn is_damage(&self) -> bool {
        match self {
            StoreError::Damaged(..) => true,
            StoreError::Sqlite(error) => whole::is_damage(error),
            _ => false,
        }
    }
}

/// How much each agent may own.
#[derive(Debug, Clone, Copy)]
pub struct Quotas {
    pub entries: u64,
    /// Of keys, labels, links and of the values and vectors that are not forgotten.
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
    /// The write-ahead log may still hold what was forgotten.
    log_holds_forgotten: bool,
    /// How long the log was when a reader kept it from being emptied; else zero.
    log_tried: u64,
}

impl Store {
    /// Opens for writing; makes the file and its tables if there are none, and brings an older file to this version.
    pub fn open(path: &Path, quotas: Quotas) -> Result<Store, StoreError> {
        let mut db = Connection::open(path)?;
        configure(&db)?;
        // What is deleted is overwritten with zeros.
        db.execute_batch("PRAGMA secure_delete=ON;")?;
        schema::prepare(&mut db)?;
        // What an earlier run forgot may be in the log still.
        Ok(Store { db, quotas, log_holds_forgotten: true, log_tried: 0 })
    }

    /// Opens a further connection that only reads.
    pub fn open_reader(path: &Path) -> Result<Store, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        configure(&db)?;
        Ok(Store { db, quotas: Quotas::default(), log_holds_forgotten: false, log_tried: 0 })
    }

    /// The connection, for reading.
    pub fn db(&self) -> &Connection {
        &self.db
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
        Batch::begin(self)
    }
}

fn configure(db: &Connection) -> Result<(), StoreError> {
    db.busy_timeout(BUSY)?;
    db.set_prepared_statement_cache_capacity(64);
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-1024; PRAGMA foreign_keys=ON;
         PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF; PRAGMA journal_size_limit=4194304;",
    )?;
    Ok(())
}
