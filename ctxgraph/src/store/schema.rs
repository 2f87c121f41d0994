//! The tables of memory.db, and how a file of an older version becomes one of this. The page is docs/formats/ctxgraph.md.
//!
//! Must hold: a file is of one version or the next, never between; no entry's hash changes.

use rusqlite::Connection;

use super::{StoreError, row, search, vector};

/// `NBM1`.
pub const APPLICATION_ID: i32 = 0x4e42_4d31;
pub const SCHEMA_VERSION: i32 = 2;

const ENTRY: &str = "
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
    value TEXT,
    forgotten TEXT,
    expires_unix_ms INTEGER
) STRICT;
CREATE INDEX entry_key ON entry (agent, key, seq);
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

/// What version 2 added: beside version 1's tables after a migration, beside [`ENTRY`] in a new file.
const SINCE_2: &str = "
CREATE INDEX entry_parent ON entry (parent) WHERE parent IS NOT NULL;
CREATE INDEX entry_expires ON entry (expires_unix_ms) WHERE expires_unix_ms IS NOT NULL;
CREATE TABLE head (
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    entry INTEGER NOT NULL REFERENCES entry (id),
    newest INTEGER NOT NULL,
    PRIMARY KEY (agent, key, entry)
) STRICT, WITHOUT ROWID;
CREATE INDEX head_other ON head (agent, key) WHERE newest = 0;
CREATE TABLE label (
    agent TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    key TEXT NOT NULL,
    entry INTEGER NOT NULL REFERENCES entry (id),
    PRIMARY KEY (agent, name, value, key, entry)
) STRICT, WITHOUT ROWID;
CREATE TABLE link (
    target BLOB NOT NULL,
    source INTEGER NOT NULL REFERENCES entry (id),
    type TEXT NOT NULL,
    PRIMARY KEY (target, source, type)
) STRICT, WITHOUT ROWID;
CREATE TABLE exposure (
    agent TEXT NOT NULL,
    generation INTEGER NOT NULL,
    exposure TEXT NOT NULL,
    PRIMARY KEY (agent, generation)
) STRICT, WITHOUT ROWID;
";

/// Version 1 had one head of a key, no room for a tombstone's reason, and an index that nothing used. Bytes count labels and links now.
const FROM_1: &str = "
ALTER TABLE entry ADD COLUMN forgotten TEXT;
ALTER TABLE entry ADD COLUMN expires_unix_ms INTEGER;
DROP INDEX entry_seq;
ALTER TABLE head RENAME TO head_1;
";
const FROM_1_ROWS: &str = "
INSERT INTO head SELECT agent, key, entry, 1 FROM head_1;
DROP TABLE head_1;
UPDATE agent SET bytes = (
    SELECT sum(octet_length(key) + octet_length(value) + octet_length(labels) + octet_length(links)) FROM entry WHERE entry.agent = agent.name
);
";

/// Makes the tables, or brings them to this version, in one transaction: a crash leaves the file as it was, or whole.
pub fn prepare(db: &mut Connection) -> Result<(), StoreError> {
    let (application, version) = identity(db)?;
    match (application, version) {
        (APPLICATION_ID, SCHEMA_VERSION) => return Ok(()),
        (0, 0) | (APPLICATION_ID, 1) => {}
        _ => return Err(StoreError::Foreign(application, version)),
    }
    let transaction = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    if version == 0 {
        transaction.execute_batch(ENTRY)?;
        since_2(&transaction)?;
    } else {
        transaction.execute_batch(FROM_1)?;
        since_2(&transaction)?;
        transaction.execute_batch(FROM_1_ROWS)?;
        index_all(&transaction)?;
    }
    transaction.execute_batch(&format!(
        "PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};"
    ))?;
    transaction.commit()?;
    Ok(())
}

fn since_2(db: &Connection) -> Result<(), StoreError> {
    for tables in [SINCE_2, search::SCHEMA, vector::SCHEMA] {
        db.execute_batch(tables)?;
    }
    Ok(())
}

/// Indexes what is newest. A damaged entry is left out of the index and stays as it is, to be reported when it is read.
fn index_all(db: &Connection) -> Result<(), StoreError> {
    let mut heads = db.prepare("SELECT entry FROM head WHERE newest = 1")?;
    let mut rows = heads.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let Ok(Some(entry)) = row::by_id(db, id) else { continue };
        search::index(db, id, &entry.agent, &entry.key, &entry.labels, &entry.value)?;
    }
    Ok(())
}

fn identity(db: &Connection) -> Result<(i32, i32), StoreError> {
    let pragma = |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}
