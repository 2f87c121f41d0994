//! What a text or a vector finds, as entries: bounded so that the answer fits a line.

use abi::control::{Entry, Hit, Hits};
use abi::exposure::Exposure;
use abi::ids::AgentName;
use abi::limits;

use super::page::Room;
use super::search::{self, Found, Query};
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
        // One state of the file for what is found and what is shown.
        let _snapshot = self.db.unchecked_transaction()?;
        let found = search::find(&self.db, agent, prefix, query, hits_max(limit))?;
        self.hits(agent, prefix, found, limit)
    }

    /// The newest entries of keys with a prefix whose vectors are nearest, nearest first.
    pub fn nearest(
        &self,
        agent: &AgentName,
        prefix: &str,
        to: &Vector,
        limit: Option<u32>,
    ) -> Result<Hits, StoreError> {
        let _snapshot = self.db.unchecked_transaction()?;
        self.hits(agent, prefix, vector::nearest(&self.db, agent, prefix, to, hits_max(limit))?, limit)
    }

    fn hits(
        &self,
        agent: &AgentName,
        prefix: &str,
        found: Found,
        limit: Option<u32>,
    ) -> Result<Hits, StoreError> {
        let Found { rows, mut truncated, mut damaged } = found;
        let mut room = Room::new(limit);
        let mut hits = Vec::new();
        for (id, distance) in rows {
            let Some(read) = row::sound(row::by_id(&self.db, id))? else {
                damaged += 1;
                continue;
            };
            // An index that says what is not so is not believed.
            let asked = |entry: &Entry| {
                entry.forgotten.is_none() && entry.agent == *agent && entry.key.starts_with(prefix)
            };
            let Some(entry) = read.filter(asked) else { continue };
            let hit = Hit { distance, entry };
            if !room.take(&hit) {
                truncated = true;
                break;
            }
            hits.push(hit);
        }
        Ok(Hits { hits, truncated, damaged, reader_exposure: Exposure::NONE })
    }
}

fn hits_max(limit: Option<u32>) -> usize {
    limit.map_or(limits::MEMORY_PAGE_MAX, |limit| limit as usize).clamp(1, limits::MEMORY_PAGE_MAX)
}
