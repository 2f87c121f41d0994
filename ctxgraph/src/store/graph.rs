//! The graph of links: breadth first from an entry.
//!
//! Must hold: what the reader may not read is not there for it: not reached, not passed through.

use abi::control::{Direction, Entry, MemoryTraverse, Reached, Traversal};
use abi::ids::{AgentName, Digest};
use abi::limits;
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeSet;

use super::page::Room;
use super::{Store, StoreError};

/// Whether the reader may see keys like this one of an agent.
pub type MayRead<'a> = &'a dyn Fn(&AgentName, &str) -> bool;

/// A link that was followed, or will be.
struct Step {
    to: Digest,
    kind: String,
    backwards: bool,
}

impl Store {
    /// What is reached from an entry; none where that is not there for the reader.
    pub fn traverse(
        &self,
        ask: &MemoryTraverse,
        may_read: MayRead<'_>,
    ) -> Result<Option<Traversal>, StoreError> {
        let Some(start) = self.readable(&ask.hash, may_read)? else { return Ok(None) };
        let depth_max = ask.depth.unwrap_or(1).clamp(1, limits::MEMORY_TRAVERSE_DEPTH_MAX);
        let mut walk = Walk {
            store: self,
            ask,
            may_read,
            seen: BTreeSet::from([start.hash]),
            looked: 0,
            room: Room::new(ask.limit),
            reached: Vec::new(),
        };
        let mut frontier = vec![start];
        let mut truncated = false;
        for depth in 1..=depth_max {
            let mut next = Vec::new();
            for entry in &frontier {
                if !walk.step(entry, depth, &mut next)? {
                    truncated = true;
                    break;
                }
            }
            if truncated || next.is_empty() {
                break;
            }
            frontier = next;
        }
        Ok(Some(Traversal { reached: walk.reached, truncated, reader_exposure: Default::default() }))
    }

    /// An entry, where it is there and may be read.
    fn readable(&self, hash: &Digest, may_read: MayRead<'_>) -> Result<Option<Entry>, StoreError> {
        if self.may_see(hash, may_read)? { self.by_hash(hash) } else { Ok(None) }
    }

    /// Whether an entry is there and may be read. For agent and key alone no value is loaded.
    pub fn may_see(&self, hash: &Digest, may_read: MayRead<'_>) -> Result<bool, StoreError> {
        let mut statement = self.db.prepare_cached("SELECT agent, key FROM entry WHERE hash = ?1")?;
        let found: Option<(String, String)> =
            statement.query_row([hash.0], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((agent, key)) = found else { return Ok(false) };
        let agent = agent.parse().map_err(|_| StoreError::Damaged(0, "an agent's name"))?;
        Ok(may_read(&agent, &key))
    }
}

struct Walk<'a> {
    store: &'a Store,
    ask: &'a MemoryTraverse,
    may_read: MayRead<'a>,
    seen: BTreeSet<Digest>,
    looked: usize,
    room: Room,
    reached: Vec<Reached>,
}

impl Walk<'_> {
    /// Goes along the links of one entry; false where a bound was met.
    fn step(&mut self, entry: &Entry, depth: u32, next: &mut Vec<Entry>) -> Result<bool, StoreError> {
        let room = limits::MEMORY_TRAVERSE_LINKS_MAX - self.looked;
        let steps = self.links(entry, room + 1)?;
        let cut = steps.len() > room;
        self.looked += steps.len().min(room);
        for step in steps.into_iter().take(room) {
            let wanted = self.ask.types.is_empty() || self.ask.types.contains(&step.kind);
            if !wanted || self.seen.contains(&step.to) {
                continue;
            }
            let Some(found) = self.store.readable(&step.to, self.may_read)? else { continue };
            self.seen.insert(step.to);
            let reached = Reached {
                depth,
                from: entry.hash,
                kind: step.kind,
                backwards: step.backwards,
                entry: found.clone(),
            };
            if !self.room.take(&reached) {
                return Ok(false);
            }
            self.reached.push(reached);
            next.push(found);
        }
        Ok(!cut)
    }

    /// The links of an entry in the direction asked for: its own in their order, then those to it, oldest first.
    fn links(&self, entry: &Entry, count: usize) -> Result<Vec<Step>, StoreError> {
        let mut steps = Vec::new();
        if self.ask.direction != Direction::In {
            let own = entry.links.iter().take(count);
            steps.extend(own.map(|link| Step { to: link.to, kind: link.kind.clone(), backwards: false }));
        }
        if self.ask.direction != Direction::Out {
            let mut statement = self.store.db.prepare_cached(
                "SELECT e.hash, l.type FROM link l CROSS JOIN entry e ON e.id = l.source WHERE l.target = ?1
                 AND (?3 IS NULL OR l.type IN (SELECT value FROM json_each(?3))) ORDER BY l.source, l.type LIMIT ?2",
            )?;
            let left = count.saturating_sub(steps.len()) as u64;
            // Types that are not asked for do not count towards the bound.
            let types = (!self.ask.types.is_empty()).then(|| serde_json::json!(self.ask.types).to_string());
            let rows = statement.query_map(params![entry.hash.0, left, types], |row| {
                Ok(Step { to: Digest(row.get(0)?), kind: row.get(1)?, backwards: true })
            })?;
            for row in rows {
                steps.push(row?);
            }
        }
        Ok(steps)
    }
}
