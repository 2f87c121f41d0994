//! The writer's thread: batches of writes, tasks, and what is to be forgotten.
//!
//! Must hold: receipts first; a batch of somebody's stands whole or not at all.

use abi::control::{Entry, Forgot};
use abi::identity::Service;
use abi::ids::{AgentName, Digest};
use abi::ledger::Event;
use abi::{limits, log};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::{Next, Queue, TaskJob, Write};
use super::{MemoryError, Settings};
use crate::draft::{Author, Draft};
use crate::ledger::Ledger;
use crate::store::forget::{Doomed, Expiry, KeyCursor, Retention};
use crate::store::{Batch, Rules, Store, StoreError};
use crate::watch::Committed;
use ::ledger::frame::Source;

const SOURCE: Source = Source::Service(Service::Ctxgraph);
/// Transactions of forgetting before writes have their turn again.
const ROUNDS_MAX: usize = 8;

/// What the writer's thread owns.
pub struct Writer {
    store: Store,
    ledger: Arc<Ledger>,
    rules: Rules,
    settings: Settings,
    looked: Looked,
}

impl Writer {
    pub fn new(store: Store, ledger: Arc<Ledger>, settings: Settings) -> Writer {
        let rules = Rules { node: settings.node.clone(), conflicts: settings.conflicts };
        Writer { store, ledger, rules, settings, looked: Looked::default() }
    }

    /// Works until the queue is closed and empty.
    pub fn run(mut self, queue: &Queue) {
        let every = Duration::from_millis(limits::MEMORY_FORGET_EVERY_MS);
        let mut tick = Instant::now() + every;
        loop {
            match queue.next(tick) {
                Next::Writes(writes) => {
                    self.write_all(writes);
                    self.trim_log(false);
                }
                Next::Task(TaskJob(task)) => {
                    task(&mut self.store, &self.ledger);
                    self.trim_log(false);
                }
                Next::Tick => {
                    let more = self.tick().unwrap_or_else(|error| {
                        log::error("memory_not_forgotten", &[("error", &error), ("effect", &"tried again")]);
                        false
                    });
                    self.trim_log(true);
                    tick = Instant::now() + if more { Duration::from_millis(100) } else { every };
                }
                Next::Closed => return,
            }
        }
    }

    fn trim_log(&mut self, again: bool) {
        if let Err(error) = self.store.trim_log(again) {
            log::error("memory_log_not_emptied", &[("error", &error), ("effect", &"tried again")]);
        }
    }

    fn write_all(&mut self, writes: Vec<Write>) {
        let mut outcomes = self.write_batch(&writes);
        let failed = |outcome: &Result<_, _>| matches!(outcome, Err(MemoryError::Store(_)));
        if writes.len() > 1 && outcomes.iter().all(failed) {
            // Perhaps one of them met a damaged page: that is no reason to fail the others.
            outcomes =
                writes.iter().flat_map(|write| self.write_batch(std::slice::from_ref(write))).collect();
        }
        let entries = outcomes.iter().flatten().flatten();
        let dropped = self.settings.watchers.publish(entries.map(|entry| Committed {
            agent: &entry.agent,
            key: &entry.key,
            hash: entry.hash,
        }));
        if dropped > 0 {
            log::info("memory_watchers_dropped", &[("count", &dropped), ("why", &"they read too slowly")]);
        }
        for (write, outcome) in writes.into_iter().zip(outcomes) {
            let _ = write.answer.send(outcome); // the caller may be gone; the write stands
        }
    }

    /// One transaction: entries, then their receipts, then the commit. Either all that were not refused stand, or none.
    fn write_batch(&mut self, writes: &[Write]) -> Vec<Result<Vec<Entry>, MemoryError>> {
        let all = |error: MemoryError| writes.iter().map(|_| Err(error.clone())).collect();
        if let Err(error) = self.ledger.health() {
            return all(MemoryError::Receipt(error));
        }
        let batch = match self.store.begin() {
            Ok(batch) => batch,
            Err(error) => return all(error.into()),
        };
        let now = (self.settings.clock)();
        let mut outcomes = Vec::with_capacity(writes.len());
        let mut events = Vec::new();
        for write in writes {
            match write_one(&batch, write, &self.rules, now) {
                Ok(entries) => {
                    events.extend(entries.iter().map(|entry| written(entry, &write.author)));
                    outcomes.push(Ok(entries));
                }
                Err(error) if error.is_refusal() => outcomes.push(Err(error.into())),
                Err(error) => return all(error.into()),
            }
        }
        if events.is_empty() {
            return outcomes;
        }
        let receipts = match self.ledger.append(SOURCE, &events, true) {
            Ok(receipts) => receipts,
            Err(error) => return all(MemoryError::Receipt(error)),
        };
        match batch.commit(receipts.last()) {
            Ok(()) => outcomes,
            Err(error) => all(error.into()),
        }
    }

    fn tick(&mut self) -> Result<bool, MemoryError> {
        let now = (self.settings.clock)();
        let retention = self.settings.retention;
        let more = forget_due(&mut self.store, &self.ledger, retention, now, &mut self.looked)?;
        self.store.clear_log()?;
        Ok(more)
    }
}

fn write_one(batch: &Batch<'_>, write: &Write, rules: &Rules, now: u64) -> Result<Vec<Entry>, StoreError> {
    match write.drafts.as_slice() {
        [draft] => Ok(vec![entry(batch, draft, rules, now)?]),
        drafts => batch.together(|| drafts.iter().map(|draft| entry(batch, draft, rules, now)).collect()),
    }
}

fn entry(batch: &Batch<'_>, draft: &Draft, rules: &Rules, now: u64) -> Result<Entry, StoreError> {
    let (hash, header) = batch.write(draft, rules, now)?;
    // What a reader will see: `1.0` is `1` from now on.
    let value =
        serde_json::from_str(&draft.text).map_err(|_| StoreError::Damaged(0, "its value is not JSON"))?;
    Ok(header.entry(hash, value))
}

fn written(entry: &Entry, author: &Author) -> Event {
    let own = *author == Author::Agent(entry.agent.clone());
    Event::MemoryWritten {
        agent: entry.agent.clone(),
        key: entry.key.clone(),
        entry: entry.hash,
        writer: (!own).then(|| author.to_string()),
    }
}

/// What a caller wants forgotten.
#[derive(Debug, Clone)]
pub enum Forget {
    Entry(Digest),
    Key(AgentName, String),
}

/// What was forgotten in one turn, and where the next goes on; none where all is done.
pub type Turn = (Forgot, Option<KeyCursor>);

/// Forgets for a caller, in one transaction: the writer is not held for long, however much there is.
pub fn forget(
    store: &mut Store,
    ledger: &Ledger,
    what: &Forget,
    from: Option<KeyCursor>,
    why: &str,
) -> Result<Turn, MemoryError> {
    let (doomed, next) = match what {
        Forget::Entry(hash) => (store.doomed_entry(hash, why)?, None),
        Forget::Key(agent, key) => {
            let from = from.map_or_else(|| store.key_cursor(), Ok)?;
            store.doomed_key(agent, key, from, why)?
        }
    };
    let forgot = forget_some(store, ledger, &doomed)?;
    if next.is_none() {
        store.clear_log()?;
    }
    Ok((forgot, next))
}

/// How far what is due was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looked {
    /// The row that retention looked at last.
    row: i64,
    /// The last value whose time was over.
    expired: Expiry,
}

/// Forgets values whose time is over, and those that policy does not keep among the entries after `looked`; true if there is more.
pub fn forget_due(
    store: &mut Store,
    ledger: &Ledger,
    retention: Retention,
    now: u64,
    looked: &mut Looked,
) -> Result<bool, MemoryError> {
    let mut more = true;
    for _ in 0..ROUNDS_MAX {
        let (doomed, next) = store.doomed_expired(now, looked.expired)?;
        forget_readable(store, ledger, &doomed)?;
        looked.expired = next.unwrap_or_default();
        if next.is_none() {
            more = false;
            break;
        }
    }
    if retention == Retention::default() {
        return Ok(more);
    }
    for _ in 0..ROUNDS_MAX {
        let (doomed, last) = store.doomed_by_policy(retention, now, looked.row)?;
        forget_readable(store, ledger, &doomed)?;
        looked.row = last;
        if doomed.len() < limits::MEMORY_WRITE_BATCH_MAX {
            return Ok(more);
        }
    }
    Ok(true)
}

/// As [`forget_some`]; where one of them is damaged, the others are forgotten all the same.
fn forget_readable(store: &mut Store, ledger: &Ledger, doomed: &[Doomed]) -> Result<(), MemoryError> {
    match forget_some(store, ledger, doomed) {
        Err(MemoryError::Store(_)) => {}
        other => return other.map(|_| ()),
    }
    let (mut failed, mut why) = (0, None);
    for one in doomed.chunks(1) {
        match forget_some(store, ledger, one) {
            Err(MemoryError::Store(error)) => {
                failed += 1;
                why = Some(error);
            }
            other => {
                other?;
            }
        }
    }
    if let Some(why) = why {
        log::error(
            "memory_not_forgotten",
            &[("values", &failed), ("error", &why), ("effect", &"tried again")],
        );
    }
    Ok(())
}

/// One transaction: receipts, then the values go.
fn forget_some(store: &mut Store, ledger: &Ledger, doomed: &[Doomed]) -> Result<Forgot, MemoryError> {
    let mut forgot = Forgot { values: 0, bytes: 0 };
    if doomed.is_empty() {
        return Ok(forgot);
    }
    let batch = store.begin()?;
    for one in doomed {
        if let Some(bytes) = batch.erase(one.id, &one.why)? {
            forgot.values += 1;
            forgot.bytes += bytes;
        }
    }
    let events: Vec<Event> = doomed
        .iter()
        .map(|one| Event::MemoryForgotten {
            agent: one.agent.clone(),
            key: one.key.clone(),
            entry: one.hash,
            why: one.why.clone(),
        })
        .collect();
    let receipts = ledger.append(SOURCE, &events, true).map_err(MemoryError::Receipt)?;
    batch.commit(receipts.last())?;
    store.forgot();
    Ok(forgot)
}
