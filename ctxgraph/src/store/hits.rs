//! What a text or a vector finds, as entries: bounded so that the answer fits a line.

use abi::control::{Hit, Hits};
use abi::exposure::Exposure;
use abi::ids::AgentName;
use abi::limits;

use super::page::Room;
use super::search::{self, Query};
use super::vector::{self, Vector};
use super::{Store, StoreError, row};

impl Store {
    /// The newest entries of keys with a prefix that answer a query, best first.
    pub fn search(
        &self,
        agent: &AgentName,
        prefix: &str,
        query: &Query,
        limit: Option<u32>,
    ) -> Result<Hits, StoreError> {
        let found = search::find(&self.db, agent, prefix, query, hits_max(limit))?;
        self.hits(found.rows, found.truncated, limit)
    }

    /// The newest entries of keys with a prefix whose vectors are nearest, nearest first.
    pub fn nearest(
        &self,
        agent: &AgentName,
        prefix: &str,
        to: &Vector,
        limit: Option<u32>,
    ) -> Result<Hits, StoreError> {
        self.hits(vector::nearest(&self.db, agent, prefix, to, hits_max(limit))?, false, limit)
    }

    fn hits(
        &self,
        rows: Vec<(i64, f64)>,
        mut truncated: bool,
        limit: Option<u32>,
    ) -> Result<Hits, StoreError> {
        let mut room = Room::new(limit);
        let mut hits = Vec::new();
        for (id, distance) in rows {
            // Forgotten in between: no answer any more.
            let Some(entry) = row::by_id(&self.db, id)?.filter(|entry| entry.forgotten.is_none()) else {
                continue;
            };
            let hit = Hit { distance, entry };
            if !room.take(&hit) {
                truncated = true;
                break;
            }
            hits.push(hit);
        }
        Ok(Hits { hits, truncated, reader_exposure: Exposure::NONE })
    }
}

fn hits_max(limit: Option<u32>) -> usize {
    limit.map_or(limits::MEMORY_PAGE_MAX, |limit| limit as usize).clamp(1, limits::MEMORY_PAGE_MAX)
}
