//! Whether memory.db still holds what was written: at start, in the background, and when somebody asks.
//!
//! Must hold: what is wrong is logged, recorded as `memory_damaged` and shown in the status line, each place once.
//! Must never: keep what is whole from being read.

use abi::control::{Damage, MemoryVerified, Progress};
use abi::door::{Call, Outcome};
use abi::identity::Service;
use abi::ledger::Event;
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ledger::Ledger;
use crate::memory;
use crate::store::whole::{Lost, damage};
use crate::store::{Store, StoreError};
use ::ledger::frame::Source;

/// Rows between two notes of progress.
const PROGRESS: u64 = 8192;

/// Watches over one memory.db.
#[derive(Debug)]
pub struct Scrub {
    path: PathBuf,
    ledger: Arc<Ledger>,
    found: Mutex<Found>,
    rest: Condvar,
}

/// What is known to be wrong.
#[derive(Debug, Default)]
struct Found {
    places: BTreeSet<String>,
    /// Places beyond those that are kept.
    more: u64,
    closed: bool,
}

impl Scrub {
    /// Checks the newest entries, then begins to check all of them, slowly, for ever.
    pub fn start(state: &Path, ledger: Arc<Ledger>) -> Result<Arc<Scrub>, StoreError> {
        let path = memory::database(state);
        let scrub = Arc::new(Scrub { path, ledger, found: Mutex::default(), rest: Condvar::new() });
        let store = Store::open_reader(&scrub.path)?;
        let last = store.last_row()?;
        let first = last.saturating_sub_unsigned(limits::MEMORY_START_CHECK_MAX).max(0) + 1;
        scrub.check(&store, first..=last)?;
        drop(store);
        let on_thread = scrub.clone();
        let thread = std::thread::Builder::new().name("scrub".into()).stack_size(256 * 1024);
        if let Err(error) = thread.spawn(move || on_thread.run()) {
            log::error("memory_scrub_not_started", &[("error", &error)]);
        }
        Ok(scrub)
    }

    /// For the status line: how many places are wrong.
    pub fn damaged(&self) -> u64 {
        let found = self.lock();
        found.places.len() as u64 + found.more
    }

    /// Ends the background check.
    pub fn close(&self) {
        self.lock().closed = true;
        self.rest.notify_all();
    }

    /// `memory.verify`: every entry, and what SQLite finds.
    pub fn verify(&self, call: &mut Call<'_>) -> Result<Outcome, RpcError> {
        let verified = self.verify_all(&mut |done, total| {
            let progress = Progress { stage: "entries".into(), done: Some(done), total: Some(total) };
            let gone = serde_json::to_value(progress).map(|note| call.notify("progress", note));
            matches!(gone, Ok(Ok(())))
        });
        let verified = verified.map_err(|error| {
            RpcError::new(Code::FAILED, error.to_string())
                .explained("every entry is read once", "see the log of ctxgraph; try again")
        })?;
        let value = serde_json::to_value(verified)
            .map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
        Ok(Outcome::Result(value))
    }

    /// Reads everything; `progress` gets rows done and all rows, and says whether to go on.
    pub fn verify_all(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<MemoryVerified, StoreError> {
        let store = Store::open_reader(&self.path)?;
        let last = store.last_row()?;
        let (mut lost, mut damaged, mut entries, mut bytes, mut done) = (Vec::new(), 0, 0, 0, 0);
        for rows in chunks(1..=last, PROGRESS) {
            done += PROGRESS;
            store.check_rows(
                rows,
                |damage| {
                    damaged += 1;
                    if lost.len() < limits::MEMORY_DAMAGES_MAX {
                        lost.push(damage);
                    }
                },
                |size| {
                    entries += 1;
                    bytes += size;
                    true
                },
            )?;
            let total = last.unsigned_abs();
            if !progress(done.min(total), total) {
                break;
            }
        }
        let mut damages = self.report(&store, &lost);
        for why in store.integrity(limits::MEMORY_DAMAGES_MAX)? {
            damaged += 1;
            damages.push(Damage {
                place: "memory.db".into(),
                why: why.chars().take(limits::MEMORY_LABEL_VALUE_BYTES_MAX).collect(),
                lost: "what the rows above name; an index alone loses no entry".into(),
            });
        }
        for (key, why) in store.strays(limits::MEMORY_DAMAGES_MAX)? {
            damaged += 1;
            damages.push(Damage {
                place: format!("memory.db, key `{key}`"),
                why: why.into(),
                lost: "no entry; but what is said to be its newest may not be".into(),
            });
        }
        self.record(&damages);
        damages.truncate(limits::MEMORY_DAMAGES_MAX);
        Ok(MemoryVerified { entries, bytes, damages, damaged })
    }

    fn run(&self) {
        loop {
            if let Err(error) = self.scrub_once() {
                log::error("memory_scrub_failed", &[("error", &error)]);
            }
            if self.rested(limits::MEMORY_SCRUB_EVERY_MS) {
                return;
            }
        }
    }

    fn scrub_once(&self) -> Result<(), StoreError> {
        let store = Store::open_reader(&self.path)?;
        for rows in chunks(1..=store.last_row()?, limits::MEMORY_SCRUB_ENTRIES) {
            if self.rested(limits::MEMORY_SCRUB_REST_MS) {
                return Ok(());
            }
            self.check(&store, rows)?;
        }
        Ok(())
    }

    fn check(&self, store: &Store, rows: std::ops::RangeInclusive<i64>) -> Result<(), StoreError> {
        let mut lost = Vec::new();
        store.check_rows(rows, |damage| lost.push(damage), |_| true)?;
        if !lost.is_empty() {
            self.record(&self.report(store, &lost));
        }
        Ok(())
    }

    /// The first of them in words.
    fn report(&self, store: &Store, lost: &[Lost]) -> Vec<Damage> {
        let first: Vec<&Lost> = lost.iter().take(limits::MEMORY_DAMAGES_MAX).collect();
        let known = match first.is_empty() {
            true => BTreeMap::new(),
            false => store.describe(&first.iter().map(|lost| lost.id).collect()),
        };
        first.into_iter().map(|lost| damage(lost, &known)).collect()
    }

    /// Logs and records what was not known yet.
    fn record(&self, damages: &[Damage]) {
        for Damage { place, why, lost } in damages {
            {
                let mut found = self.lock();
                let name = format!("{place}: {why}");
                if found.places.contains(&name) {
                    continue;
                }
                if found.places.len() >= limits::MEMORY_DAMAGES_MAX {
                    found.more += 1;
                    continue;
                }
                found.places.insert(name);
            }
            log::error("memory_damaged", &[("place", place), ("why", why), ("lost", lost)]);
            let event = Event::MemoryDamaged { place: place.clone(), why: why.clone(), lost: lost.clone() };
            if let Err(error) = self.ledger.append(Source::Service(Service::Ctxgraph), &[event], false) {
                log::error("memory_damage_not_recorded", &[("error", &error)]);
            }
        }
    }

    /// Rests; true once closed.
    fn rested(&self, ms: u64) -> bool {
        let rest = Duration::from_millis(ms);
        let waited = self.rest.wait_timeout_while(self.lock(), rest, |found| !found.closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range in pieces.
fn chunks(
    rows: std::ops::RangeInclusive<i64>,
    size: u64,
) -> impl Iterator<Item = std::ops::RangeInclusive<i64>> {
    let last = *rows.end();
    let step = usize::try_from(size).unwrap_or(usize::MAX);
    rows.step_by(step).map(move |first| first..=first.saturating_add_unsigned(size - 1).min(last))
}

#[cfg(test)]
mod tests;
