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

/// A place among the values with a time to live: when it is over, and the row.
pub type Expiry = (i64, i64);

/// A place among the entries of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyCursor {
    seq: i64,
    id: i64,
    /// Later rows are not meant.
    last: i64,
}

/// In the order of the index: nothing is sorted, and nothing is looked at twice.
const DOOMED_KEY: &str = "SELECT id, agent, key, hash, seq, value IS NOT NULL FROM entry
     WHERE agent = ?1 AND key = ?2 AND (seq, id) > (?3, ?4) AND id <= ?5 ORDER BY seq, id LIMIT ?6";

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

    /// Where forgetting a key begins: before its first entry, and up to the newest row there is now.
    pub fn key_cursor(&self) -> Result<KeyCursor, StoreError> {
        Ok(KeyCursor { seq: -1, id: 0, last: self.newest_row()? })
    }

    /// Some entries of a key that have a value, the oldest first, and where to go on; none after the last. What it looks at is bounded too.
    pub fn doomed_key(
        &self,
        agent: &AgentName,
        key: &str,
        from: KeyCursor,
        why: &str,
    ) -> Result<(Vec<Doomed>, Option<KeyCursor>), StoreError> {
        let mut statement = self.db.prepare_cached(DOOMED_KEY)?;
        let looked = limits::MEMORY_RETENTION_LOOKED_MAX;
        let mut rows =
            statement.query(params![agent.as_str(), key, from.seq, from.id, from.last, looked as u64])?;
        let (mut doomed, mut count, mut next) = (Vec::new(), 0, from);
        while let Some(row) = rows.next()? {
            count += 1;
            (next.id, next.seq) = (row.get(0)?, row.get(4)?);
            if row.get(5)? {
                doomed.push(Doomed::of(row, why)?);
            }
            if doomed.len() == limits::MEMORY_WRITE_BATCH_MAX || count == looked {
                return Ok((doomed, Some(next)));
            }
        }
        Ok((doomed, None))
    }

    /// Some entries whose time is over after a place in their order, and where to go on; none after the last. An entry that cannot be
    /// read is passed over: it must not keep the others.
    pub fn doomed_expired(
        &self,
        now_unix_ms: u64,
        after: Expiry,
    ) -> Result<(Vec<Doomed>, Option<Expiry>), StoreError> {
        // The index alone, so that a damaged row does not end it.
        let mut statement = self.db.prepare_cached(
            "SELECT expires_unix_ms, id FROM entry WHERE expires_unix_ms <= ?1 AND (expires_unix_ms, id) > (?2, ?3)
             ORDER BY expires_unix_ms, id LIMIT ?4",
        )?;
        let most = limits::MEMORY_WRITE_BATCH_MAX;
        let found = statement
            .query_map(params![now_unix_ms, after.0, after.1, most as u64], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?
            .collect::<Result<Vec<Expiry>, _>>()?;
        let mut doomed = Vec::new();
        for (_, id) in &found {
            let sql = "SELECT id, agent, key, hash FROM entry WHERE id = ?1 AND value IS NOT NULL";
            match self.doomed(sql, [id], "its time to live is over") {
                Err(error) if error.is_damage() => {}
                other => doomed.append(&mut other?),
            }
        }
        Ok((doomed, found.last().filter(|_| found.len() == most).copied()))
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

    /// What policy no longer keeps among some entries after a row, and the row to go on after; zero after the last. An entry that
    /// cannot be read is passed over.
    pub fn doomed_by_policy(
        &self,
        policy: Retention,
        now_unix_ms: u64,
        after: i64,
    ) -> Result<(Vec<Doomed>, i64), StoreError> {
        let end = after.saturating_add(limits::MEMORY_RETENTION_LOOKED_MAX as i64);
        let found = match self.replaced(policy, now_unix_ms, after + 1, end) {
            Err(error) if error.is_damage() => {
                let (mut doomed, mut looked) = (Vec::new(), after);
                while looked < end && doomed.len() < limits::MEMORY_WRITE_BATCH_MAX {
                    looked += 1;
                    match self.replaced(policy, now_unix_ms, looked, looked) {
                        Err(error) if error.is_damage() => {}
                        other => doomed.append(&mut other?.0),
                    }
                }
                (doomed, looked)
            }
            other => other?,
        };
        let (doomed, looked) = found;
        let over = looked == end && end >= self.newest_row()?;
        Ok((doomed, if over { 0 } else { looked }))
    }

    /// Of the rows from `first` to `last`, those that policy does not keep, and the row that was looked at last.
    fn replaced(
        &self,
        policy: Retention,
        now_unix_ms: u64,
        first: i64,
        last: i64,
    ) -> Result<(Vec<Doomed>, i64), StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT e.id, e.agent, e.key, e.hash, e.seq, e.unix_ms FROM entry e WHERE e.id BETWEEN ?1 AND ?2 AND e.value IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM head h WHERE h.agent = e.agent AND h.key = e.key AND h.entry = e.id) ORDER BY e.id",
        )?;
        let mut rows = statement.query([first, last])?;
        let mut doomed = Vec::new();
        let (days, versions) = (policy.keep_days, policy.keep_versions);
        let oldest = now_unix_ms.saturating_sub(u64::from(days).saturating_mul(24 * 60 * 60 * 1000));
        while let Some(row) = rows.next()? {
            if days > 0 && row.get::<_, u64>(5)? < oldest {
                doomed.push(Doomed::of(row, &format!("the node keeps replaced values for {days} days"))?);
            } else if versions > 0 && self.is_followed_by(row, versions)? {
                doomed.push(Doomed::of(row, &format!("the node keeps {versions} values of a key"))?);
            }
            if doomed.len() == limits::MEMORY_WRITE_BATCH_MAX {
                return Ok((doomed, row.get(0)?));
            }
        }
        Ok((doomed, last))
    }

    /// The newest row's number; where the table's end cannot be read, about that.
    fn newest_row(&self) -> Result<i64, StoreError> {
        let ask = |sql: &str| self.db.prepare_cached(sql)?.query_row([], |row| row.get(0));
        let found = ask("SELECT coalesce(max(id), 0) FROM entry");
        Ok(found.or_else(|_| ask("SELECT coalesce(sum(entries), 0) FROM agent"))?)
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
        if self.log_holds_forgotten { self.empty_log() } else { Ok(()) }
    }

    /// Empties the write-ahead log where it is long: readers that overlap would let it grow for ever. Where one stands on it all the time, it
    /// is tried again once the log has grown as much more, or at once where `again`.
    pub fn trim_log(&mut self, again: bool) -> Result<(), StoreError> {
        let length = || std::fs::metadata(format!("{}-wal", self.db.path()?)).ok().map(|file| file.len());
        let length = length().unwrap_or_default();
        let tried = if again { 0 } else { self.log_tried };
        if length < tried.saturating_add(limits::MEMORY_LOG_BYTES_MAX) {
            return Ok(());
        }
        self.log_tried = length;
        self.empty_log()
    }

    fn empty_log(&mut self) -> Result<(), StoreError> {
        self.db.busy_timeout(std::time::Duration::from_millis(limits::MEMORY_LOG_WAIT_MS_MAX))?;
        let busy = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        self.db.busy_timeout(super::BUSY)?;
        if !busy? {
            (self.log_holds_forgotten, self.log_tried) = (false, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Quotas;

    #[test]
    fn the_entries_of_a_key_are_found_without_sorting() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("memory.db"), Quotas::default()).unwrap();
        let mut statement = store.db.prepare(&format!("EXPLAIN QUERY PLAN {DOOMED_KEY}")).unwrap();
        let rows = statement.query_map(params!["a", "k", 0, 0, 9, 9], |row| row.get::<_, String>(3)).unwrap();
        let plan: Vec<String> = rows.map(Result::unwrap).collect();
        assert!(plan.iter().any(|step| step.contains("entry_key (agent=? AND key=?")), "{plan:?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
    }
}
