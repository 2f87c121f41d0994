//! Agents' memory: one writer thread with a bounded queue, readers beside it.
//!
//! Must hold: a write's receipt is durable in the ledger before the write is committed, and both before it is acknowledged.
//! Must never: commit a write without a receipt.

use abi::control::{Entries, Entry, MemoryHistory, MemoryQuery, MemoryUse};
use abi::identity::Service;
use abi::ids::{AgentName, Digest};
use abi::ledger::Event;
use abi::limits;
use serde_json::Value;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::canonical::{self, CanonicalError};
use crate::entry::Header;
use crate::ledger::{AppendError, Ledger, unix_ms};
use crate::store::{Quotas, Store, StoreError};
use ::ledger::frame::Source;

/// Why memory refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error("the key has {0} bytes, 1 to {max} are kept", max = limits::MEMORY_KEY_BYTES_MAX)]
    KeyLength(usize),
    #[error("the key has a control character")]
    KeyControl,
    #[error("the value has {0} bytes as canonical JSON, at most {max} are kept", max = limits::MEMORY_VALUE_BYTES_MAX)]
    ValueLength(usize),
    #[error(transparent)]
    Value(#[from] CanonicalError),
    #[error("{0}")]
    Quota(String),
    #[error("{max} writes are waiting already", max = limits::MEMORY_WRITES_WAITING_MAX)]
    Busy,
    #[error("the cursor `{0}` is not one that an answer gave")]
    Cursor(String),
    #[error("no receipt, so no write: {0}")]
    Receipt(AppendError),
    #[error("{0}")]
    Store(String),
    #[error("the writer has ended")]
    Closed,
}

impl From<StoreError> for MemoryError {
    fn from(error: StoreError) -> MemoryError {
        match error {
            StoreError::Quota { .. } => MemoryError::Quota(error.to_string()),
            StoreError::Canonical(error) => MemoryError::Value(error),
            other => MemoryError::Store(other.to_string()),
        }
    }
}

/// The memory of all agents. Shared by all threads.
#[derive(Debug)]
pub struct Memory {
    queue: Arc<Queue>,
    readers: [Mutex<Store>; 2],
}

#[derive(Debug, Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    closed: bool,
}

#[derive(Debug)]
struct Job {
    agent: AgentName,
    key: String,
    text: String,
    answer: SyncSender<Result<(Digest, Header), MemoryError>>,
}

/// Where memory.db is under a state directory.
pub fn database(state: &Path) -> PathBuf {
    state.join("memory.db")
}

impl Memory {
    /// Takes over an open store; `path` is its file.
    pub fn start(store: Store, path: &Path, ledger: Arc<Ledger>) -> Result<Memory, MemoryError> {
        let reader = || Store::open_reader(path).map(Mutex::new);
        let readers = [reader()?, reader()?];
        let queue = Arc::new(Queue::default());
        let on_thread = queue.clone();
        let spawned = std::thread::Builder::new()
            .name("writer".into())
            .stack_size(512 * 1024)
            .spawn(move || write_for_ever(store, &on_thread, &ledger));
        match spawned {
            Ok(_) => Ok(Memory { queue, readers }),
            Err(error) => Err(MemoryError::Store(error.to_string())),
        }
    }

    /// Adds an entry and returns it once it and its receipt are durable.
    pub fn write(&self, agent: &AgentName, key: &str, value: &Value) -> Result<Entry, MemoryError> {
        check_key(key)?;
        let text = canonical::text(value)?;
        if text.len() > limits::MEMORY_VALUE_BYTES_MAX {
            return Err(MemoryError::ValueLength(text.len()));
        }
        // What a reader will see: `1.0` is `1` from now on.
        let value = serde_json::from_str(&text).map_err(|error| MemoryError::Store(error.to_string()))?;
        let (answer, answered) = sync_channel(1);
        {
            let mut jobs = self.queue.lock();
            if jobs.closed {
                return Err(MemoryError::Closed);
            }
            if jobs.waiting.len() >= limits::MEMORY_WRITES_WAITING_MAX {
                return Err(MemoryError::Busy);
            }
            jobs.waiting.push_back(Job { agent: agent.clone(), key: key.to_owned(), text, answer });
        }
        self.queue.more.notify_one();
        let (hash, header) = answered.recv().map_err(|_| MemoryError::Closed)??;
        Ok(header.entry(hash, value))
    }

    /// An agent's own entry by its hash.
    pub fn by_hash(&self, agent: &AgentName, hash: &Digest) -> Result<Option<Entry>, MemoryError> {
        Ok(self.reader().by_hash(agent, hash)?)
    }

    /// Whether somebody else's entry has this hash: only for the record of a refusal.
    pub fn exists(&self, hash: &Digest) -> bool {
        self.reader().exists(hash).unwrap_or(false)
    }

    /// The newest entry of a key.
    pub fn newest(&self, agent: &AgentName, key: &str) -> Result<Option<Entry>, MemoryError> {
        Ok(self.reader().newest(agent, key)?)
    }

    /// A page of the newest entries of keys with a prefix, by key. The cursor is the last key.
    pub fn query(&self, agent: &AgentName, query: &MemoryQuery) -> Result<Entries, MemoryError> {
        let mut page = Page::new(query.limit);
        self.reader().query(agent, &query.prefix, query.cursor.as_deref(), |entry| page.take(entry))?;
        Ok(page.finish(|last| last.key.clone()))
    }

    /// A page of all entries of one key, newest first. The cursor is the last seq.
    pub fn history(&self, agent: &AgentName, query: &MemoryHistory) -> Result<Entries, MemoryError> {
        let before = match &query.cursor {
            None => None,
            Some(cursor) => Some(cursor.parse().map_err(|_| {
                let shown: String = cursor.chars().take(64).collect();
                MemoryError::Cursor(shown)
            })?),
        };
        let mut page = Page::new(query.limit);
        self.reader().history(agent, &query.key, before, |entry| page.take(entry))?;
        Ok(page.finish(|last| last.seq.to_string()))
    }

    /// Agents with memory.
    pub fn list(&self) -> Result<Vec<MemoryUse>, MemoryError> {
        Ok(self.reader().agents()?)
    }

    /// Takes no more writes; those waiting are finished.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.queue.more.notify_one();
    }

    fn reader(&self) -> MutexGuard<'_, Store> {
        let [first, second] = &self.readers;
        let free = first.try_lock().or_else(|_| second.try_lock());
        free.unwrap_or_else(|_| first.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch, oldest first; none when closed and empty.
    fn next_batch(&self) -> Option<Vec<Job>> {
        let mut jobs = self.lock();
        loop {
            if !jobs.waiting.is_empty() {
                let count = jobs.waiting.len().min(limits::MEMORY_WRITE_BATCH_MAX);
                return Some(jobs.waiting.drain(..count).collect());
            }
            if jobs.closed {
                return None;
            }
            jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn check_key(key: &str) -> Result<(), MemoryError> {
    if key.is_empty() || key.len() > limits::MEMORY_KEY_BYTES_MAX {
        return Err(MemoryError::KeyLength(key.len()));
    }
    if key.chars().any(char::is_control) {
        return Err(MemoryError::KeyControl);
    }
    Ok(())
}

fn write_for_ever(mut store: Store, queue: &Queue, ledger: &Ledger) {
    while let Some(jobs) = queue.next_batch() {
        let outcomes = write_batch(&mut store, &jobs, ledger);
        for (job, outcome) in jobs.into_iter().zip(outcomes) {
            let _ = job.answer.send(outcome); // the caller may be gone; the write stands
        }
    }
}

/// One transaction: entries, then their receipts, then the commit. Either all that were not refused stand, or none.
fn write_batch(
    store: &mut Store,
    jobs: &[Job],
    ledger: &Ledger,
) -> Vec<Result<(Digest, Header), MemoryError>> {
    let all = |error: MemoryError| jobs.iter().map(|_| Err(error.clone())).collect();
    if let Err(error) = ledger.health() {
        return all(MemoryError::Receipt(error));
    }
    let batch = match store.begin() {
        Ok(batch) => batch,
        Err(error) => return all(error.into()),
    };
    let now = unix_ms();
    let mut outcomes = Vec::with_capacity(jobs.len());
    let mut events = Vec::new();
    for job in jobs {
        match batch.write(&job.agent, &job.key, &job.text, now) {
            Ok((hash, header)) => {
                events.push(Event::MemoryWritten {
                    agent: job.agent.clone(),
                    key: job.key.clone(),
                    entry: hash,
                    writer: None,
                });
                outcomes.push(Ok((hash, header)));
            }
            // A refusal comes before the first change; anything else may have changed half of an entry.
            Err(error @ StoreError::Quota { .. }) => outcomes.push(Err(error.into())),
            Err(error) => return all(error.into()),
        }
    }
    if events.is_empty() {
        return outcomes;
    }
    let receipts = match ledger.append(Source::Service(Service::Ctxgraph), &events, true) {
        Ok(receipts) => receipts,
        Err(error) => return all(MemoryError::Receipt(error)),
    };
    match batch.commit(receipts.last()) {
        Ok(()) => outcomes,
        Err(error) => all(error.into()),
    }
}

/// A page under construction: bounded in entries, and in bytes so that the answer fits a line.
struct Page {
    entries: Vec<Entry>,
    bytes: usize,
    limit: usize,
    more: bool,
}

/// Bytes of entries in one answer; the rest of the line is for the answer around them.
const PAGE_BYTES_MAX: usize = limits::LINE_BYTES_MAX - 2048;

impl Page {
    fn new(limit: Option<u32>) -> Page {
        let limit = limit.map_or(limits::MEMORY_PAGE_MAX, |limit| limit as usize);
        Page { entries: Vec::new(), bytes: 0, limit: limit.clamp(1, limits::MEMORY_PAGE_MAX), more: false }
    }

    /// Takes an entry; false once the page is full.
    fn take(&mut self, entry: Entry) -> bool {
        let size = serde_json::to_vec(&entry).map_or(PAGE_BYTES_MAX, |json| json.len() + 1);
        if self.entries.len() == self.limit
            || (!self.entries.is_empty() && self.bytes + size > PAGE_BYTES_MAX)
        {
            self.more = true;
            return false;
        }
        self.bytes += size;
        self.entries.push(entry);
        true
    }

    fn finish(self, cursor: impl FnOnce(&Entry) -> String) -> Entries {
        let cursor = self.entries.last().filter(|_| self.more).map(cursor);
        Entries { entries: self.entries, cursor, ..Entries::default() }
    }
}

/// Opens memory.db and its ledger's witness.
pub fn open_store(state: &Path, quotas: Quotas) -> Result<Store, StoreError> {
    Store::open(&database(state), quotas)
}

/// Makes a state directory that only its owner may enter.
pub fn make_state(state: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state)
}

#[cfg(test)]
mod tests;
