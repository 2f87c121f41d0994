//! What is to be forgotten: by a caller, because its time is over, or by the policy of the node.
//!
//! Must hold: a head is never forgotten by policy; what is found is bounded.

use abi::ids::{AgentName, Digest};
use abi::limits;
use rusqlite::{Row, params};

use super::{Store, StoreError};

/// How long values are kept that are no head of their key any more; 0: as long as the quota allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// So many of each key, the newest with them.
    pub keep_versions: u32,
    pub keep_days: u32,
}

/// An entry whose value is about to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    pub id: i64,
    pub agent: AgentName,
    pub key: String,
    pub hash: Digest,
    pub why: String,
}

impl Doomed {
    fn of(row: &Row<'_>, why: &str) -> Result<Doomed, StoreError> {
        let id = row.get(0)?;
        let agent: String = row.get(1)?;
        Ok(Doomed {
            id,
            agent: agent.parse().map_err(|_| StoreError::Damaged(id, "its agent's name"))?,
            key: row.get(2)?,
            hash: Digest(row.get(3)?),
            why: why.to_owned(),
        })
    }
}

impl Store {
    /// The entry of a hash, if it has a value.
    pub fn doomed_entry(&self, hash: &Digest, why: &str) -> Result<Vec<Doomed>, StoreError> {
        let sql = "SELECT id, agent, key, hash FROM entry WHERE hash = ?1 AND value IS NOT NULL";
        self.doomed(sql, [hash.0], why)
    }

    /// Some entries of a key that have a value, the oldest first, after a row.
    pub fn doomed_key(
        &self,
        agent: &AgentName,
        key: &str,
        after: i64,
        why: &str,
    ) -> Result<Vec<Doomed>, StoreError> {
        let sql = "SELECT id, agent, key, hash FROM entry
             WHERE agent = ?1 AND key = ?2 AND id > ?3 AND value IS NOT NULL ORDER BY id LIMIT ?4";
        self.doomed(sql, params![agent.as_str(), key, after, limits::MEMORY_WRITE_BATCH_MAX as u64], why)
    }

    /// Some entries whose time is over.
    pub fn doomed_expired(&self, now_unix_ms: u64) -> Result<Vec<Doomed>, StoreError> {
        let sql = "SELECT id, agent, key, hash FROM entry WHERE expires_unix_ms <= ?1 ORDER BY expires_unix_ms LIMIT ?2";
        self.doomed(
            sql,
            params![now_unix_ms, limits::MEMORY_WRITE_BATCH_MAX as u64],
            "its time to live is over",
        )
    }

    fn doomed(&self, sql: &str, params: impl rusqlite::Params, why: &str) -> Result<Vec<Doomed>, StoreError> {
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut doomed = Vec::new();
        while let Some(row) = rows.next()? {
            doomed.push(Doomed::of(row, why)?);
        }
        Ok(doomed)
    }

    /// What policy no longer keeps among some entries after a row, and the row to go on after; zero after the last.
    pub fn doomed_by_policy(
        &self,
        policy: Retention,
        now_unix_ms: u64,
        after: i64,
    ) -> Result<(Vec<Doomed>, i64), StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT e.id, e.agent, e.key, e.hash, e.seq, e.unix_ms FROM entry e WHERE e.id > ?1 AND e.value IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM head h WHERE h.agent = e.agent AND h.key = e.key AND h.entry = e.id)
             ORDER BY e.id LIMIT ?2",
        )?;
        let mut rows = statement.query(params![after, limits::MEMORY_RETENTION_LOOKED_MAX as u64])?;
        let (mut doomed, mut last, mut looked) = (Vec::new(), 0, 0);
        let (days, versions) = (policy.keep_days, policy.keep_versions);
        let oldest = now_unix_ms.saturating_sub(u64::from(days).saturating_mul(24 * 60 * 60 * 1000));
        while let Some(row) = rows.next()? {
            looked += 1;
            last = row.get(0)?;
            if days > 0 && row.get::<_, u64>(5)? < oldest {
                doomed.push(Doomed::of(row, &format!("the node keeps replaced values for {days} days"))?);
            } else if versions > 0 && self.is_followed_by(row, versions)? {
                doomed.push(Doomed::of(row, &format!("the node keeps {versions} values of a key"))?);
            }
            if doomed.len() == limits::MEMORY_WRITE_BATCH_MAX {
                return Ok((doomed, last));
            }
        }
        Ok((doomed, if looked == limits::MEMORY_RETENTION_LOOKED_MAX { last } else { 0 }))
    }

    /// Whether an entry's key has so many later ones.
    fn is_followed_by(&self, row: &Row<'_>, versions: u32) -> Result<bool, StoreError> {
        let (agent, key, seq): (String, String, u64) = (row.get(1)?, row.get(2)?, row.get(4)?);
        let later: u32 = self
            .db
            .prepare_cached(
                "SELECT count(*) FROM (SELECT 1 FROM entry WHERE agent = ?1 AND key = ?2 AND seq > ?3 LIMIT ?4)",
            )?
            .query_row(params![agent, key, seq, versions], |row| row.get(0))?;
        Ok(later >= versions)
    }

    /// Values were deleted, and [`Store::clear_log`] has something to do.
    pub fn forgot(&mut self) {
        self.log_holds_forgotten = true;
    }

    /// Takes what was forgotten out of the write-ahead log too. Where a reader stands on it, it stays for the next time.
    pub fn clear_log(&mut self) -> Result<(), StoreError> {
        if !self.log_holds_forgotten {
            return Ok(());
        }
        self.db.busy_timeout(std::time::Duration::from_millis(100))?;
        let busy = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        self.db.busy_timeout(super::BUSY)?;
        self.log_holds_forgotten = busy?;
        Ok(())
    }
}
