//! Agents' memory: one writer thread with a bounded queue, readers beside it.
//!
//! Must hold: a write's receipt is durable in the ledger before the write is committed, and both before it is acknowledged; likewise
//! before a value is forgotten.
//! Must never: commit a write without a receipt.

mod queue;
mod writer;

use abi::control::{
    Entries, Entry, Forgot, MemoryConflicts, MemoryForget, MemoryHistory, MemoryQuery, MemoryTraverse,
    MemoryUse, MemoryWrite, Traversal,
};
use abi::exposure::Exposure;
use abi::ids::{AgentName, Digest};
use abi::limits;
use abi::node::Conflicts;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::cursor::Seals;
use crate::draft::{Author, Draft, DraftError};
use crate::ledger::{AppendError, Ledger, unix_ms};
use crate::store::forget::Retention;
use crate::store::graph::MayRead;
use crate::store::row;
use crate::store::{Quotas, Store, StoreError};
use crate::watch::Watchers;
use queue::{Job, Queue, Write};
use writer::{Forget, Writer};

/// Why memory refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error(transparent)]
    Draft(#[from] DraftError),
    #[error("a batch has {0} writes, 1 to {max} are taken", max = limits::MEMORY_WRITE_BATCH_MAX)]
    BatchCount(usize),
    #[error("the answer to the batch would not fit a line")]
    BatchBytes,
    #[error("the link to {0} leads to no entry that you may read")]
    Link(Digest),
    #[error("{message}")]
    Conflict { message: String, newest: Option<Digest> },
    #[error("{0}")]
    Heads(String),
    #[error("{0}")]
    Quota(String),
    #[error("{0}")]
    Busy(String),
    #[error("give `hash`, or `agent` and `key`")]
    Target,
    #[error("the cursor `{0}` is not one that an answer gave")]
    Cursor(String),
    #[error("no receipt, so nothing changed: {0}")]
    Receipt(AppendError),
    #[error("{0}")]
    Store(String),
    #[error("the writer has ended")]
    Closed,
}

impl From<StoreError> for MemoryError {
    fn from(error: StoreError) -> MemoryError {
        let message = error.to_string();
        match error {
            StoreError::Quota { .. } => MemoryError::Quota(message),
            StoreError::Conflict { newest, .. } => MemoryError::Conflict { message, newest },
            StoreError::Heads { .. } => MemoryError::Heads(message),
            // Its number counts everybody's entries: the log has it, and memory.verify names what is lost.
            StoreError::Damaged(..) => {
                row::tell(&error);
                MemoryError::Store("an entry of memory.db is damaged".into())
            }
            StoreError::Cursor(cursor) => MemoryError::Cursor(cursor),
            _ => MemoryError::Store(message),
        }
    }
}

/// How this node's memory is kept.
#[derive(Debug)]
pub struct Settings {
    /// The label `nullbox.node`: the first 16 hex digits of the ledger's id.
    pub node: String,
    pub conflicts: Conflicts,
    pub retention: Retention,
    /// The node's clock, in milliseconds since 1970.
    pub clock: fn() -> u64,
    /// Told of each entry after its commit.
    pub watchers: Arc<Watchers>,
}

impl Settings {
    /// Defaults for a node.
    pub fn of(node: String) -> Settings {
        Settings {
            node,
            conflicts: Conflicts::default(),
            retention: Retention::default(),
            clock: unix_ms,
            watchers: Arc::default(),
        }
    }
}

/// The memory of all agents. Shared by all threads.
#[derive(Debug)]
pub struct Memory {
    queue: Arc<Queue>,
    /// Connections that only read and that nobody has now.
    readers: Mutex<Vec<Store>>,
    freed: Condvar,
    seals: Seals,
}

/// Connections for readers: each holds up to 1 MiB of pages.
const READERS: usize = 4;

/// Where memory.db is under a state directory.
pub fn database(state: &Path) -> PathBuf {
    state.join("memory.db")
}

impl Memory {
    /// Takes over an open store; `path` is its file.
    pub fn start(
        store: Store,
        path: &Path,
        ledger: Arc<Ledger>,
        settings: Settings,
    ) -> Result<Memory, MemoryError> {
        let readers = (0..READERS).map(|_| Store::open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        let seals =
            Seals::new().ok_or_else(|| MemoryError::Store("the kernel has no random numbers".into()))?;
        let queue = Arc::new(Queue::default());
        let on_thread = queue.clone();
        let writer = Writer::new(store, ledger, settings);
        let spawned = std::thread::Builder::new()
            .name("writer".into())
            .stack_size(512 * 1024)
            .spawn(move || writer.run(&on_thread));
        match spawned {
            Ok(_) => Ok(Memory { queue, readers: Mutex::new(readers), freed: Condvar::new(), seals }),
            Err(error) => Err(MemoryError::Store(error.to_string())),
        }
    }

    /// Adds an entry and returns it once it and its receipt are durable. The caller has decided that the author may write there;
    /// `may_read` says which entries it may link to, and `exposure` is its own.
    pub fn write(
        &self,
        author: &Author,
        exposure: Exposure,
        write: MemoryWrite,
        may_read: MayRead<'_>,
    ) -> Result<Entry, MemoryError> {
        let draft = Draft::new(author, exposure, write)?;
        let entries = self.submit(author, vec![draft], may_read)?;
        entries.into_iter().next().ok_or(MemoryError::Closed)
    }

    /// As [`Memory::write`], several: all of them or none.
    pub fn batch(
        &self,
        author: &Author,
        exposure: Exposure,
        writes: Vec<MemoryWrite>,
        may_read: MayRead<'_>,
    ) -> Result<Entries, MemoryError> {
        if writes.is_empty() || writes.len() > limits::MEMORY_WRITE_BATCH_MAX {
            return Err(MemoryError::BatchCount(writes.len()));
        }
        let drafts: Vec<Draft> =
            writes.into_iter().map(|write| Draft::new(author, exposure, write)).collect::<Result<_, _>>()?;
        if drafts.iter().map(Draft::answer_bytes_max).sum::<usize>() > limits::LINE_BYTES_MAX - 2048 {
            return Err(MemoryError::BatchBytes);
        }
        let entries = self.submit(author, drafts, may_read)?;
        Ok(Entries { entries, ..Entries::default() })
    }

    fn submit(
        &self,
        author: &Author,
        drafts: Vec<Draft>,
        may_read: MayRead<'_>,
    ) -> Result<Vec<Entry>, MemoryError> {
        let links = drafts.iter().flat_map(|draft| &draft.links);
        // An entry that is there now is there for ever, so this need not be asked again in the transaction.
        for link in links {
            if !self.read(|store| store.may_see(&link.to, may_read))? {
                return Err(MemoryError::Link(link.to));
            }
        }
        let (answer, answered) = sync_channel(1);
        self.queue.push(author.clone(), Job::Write(Write { drafts, author: author.clone(), answer }))?;
        answered.recv().map_err(|_| MemoryError::Closed)?
    }

    /// Does something on the writer's thread, between its transactions, in the author's turn.
    pub fn exclusively<T: Send + 'static>(
        &self,
        author: &Author,
        work: impl FnOnce(&mut Store, &Ledger) -> T + Send + 'static,
    ) -> Result<T, MemoryError> {
        let (answer, answered) = sync_channel(1);
        let task = move |store: &mut Store, ledger: &Ledger| {
            let _ = answer.send(work(store, ledger)); // the caller may be gone; what was done stands
        };
        self.queue.push(author.clone(), Job::Task(Box::new(task)))?;
        answered.recv().map_err(|_| MemoryError::Closed)
    }

    /// Forgets the value of one entry, or of all entries of a key that are there when it begins. The caller has decided that the author
    /// may. Each turn stands by itself; where one is refused, to ask again goes on.
    pub fn forget(&self, author: &Author, ask: &MemoryForget) -> Result<Forgot, MemoryError> {
        let what = match (&ask.hash, &ask.agent, &ask.key) {
            (Some(hash), _, None) => Forget::Entry(*hash),
            (None, Some(agent), Some(key)) => Forget::Key(agent.clone(), key.clone()),
            _ => return Err(MemoryError::Target),
        };
        let why = format!("forgotten by {author}");
        let (mut all, mut from) = (Forgot { values: 0, bytes: 0 }, None);
        loop {
            // A turn of the author's for each transaction: others write in between.
            let (what, why) = (what.clone(), why.clone());
            let turn =
                move |store: &mut Store, ledger: &Ledger| writer::forget(store, ledger, &what, from, &why);
            let (forgot, next) = self.exclusively(author, turn)??;
            all.values += forgot.values;
            all.bytes += forgot.bytes;
            if next.is_none() {
                return Ok(all);
            }
            from = next;
        }
    }

    /// An entry by its hash, whoever's it is: the caller decides who may see it, by its agent and key.
    pub fn by_hash(&self, hash: &Digest) -> Result<Option<Entry>, MemoryError> {
        self.read(|store| store.by_hash(hash))
    }

    /// The newest entry of a key, with its conflicts.
    pub fn newest(&self, agent: &AgentName, key: &str) -> Result<Option<Entry>, MemoryError> {
        self.read(|store| store.newest(agent, key))
    }

    /// A page of the newest entries of keys with a prefix that meet the query, by key.
    pub fn query(&self, agent: &AgentName, query: &MemoryQuery) -> Result<Entries, MemoryError> {
        self.read(|store| store.query(agent, query))
    }

    /// A page of all entries of one key, newest first.
    pub fn history(&self, agent: &AgentName, query: &MemoryHistory) -> Result<Entries, MemoryError> {
        self.read(|store| store.history(agent, query))
    }

    /// A page of the heads of keys that have several.
    pub fn conflicts(&self, agent: &AgentName, query: &MemoryConflicts) -> Result<Entries, MemoryError> {
        self.read(|store| store.conflicts(agent, query))
    }

    /// What is reached from an entry; none where that is not there for the reader.
    pub fn traverse(
        &self,
        ask: &MemoryTraverse,
        may_read: MayRead<'_>,
    ) -> Result<Option<Traversal>, MemoryError> {
        self.read(|store| store.traverse(ask, may_read))
    }

    /// Agents with memory.
    pub fn list(&self) -> Result<Vec<MemoryUse>, MemoryError> {
        self.read(Store::agents)
    }

    /// Reads with one of the connections that only read.
    pub fn read<T>(&self, work: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, MemoryError> {
        let mut free = self.free();
        let reader = loop {
            match free.pop() {
                Some(reader) => break reader,
                None => free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        let answer = work(&reader);
        self.free().push(reader);
        self.freed.notify_one();
        Ok(answer?)
    }

    /// Takes no more writes; those waiting are finished.
    pub fn close(&self) {
        self.queue.close();
    }

    /// What seals the cursors that are given out.
    pub(crate) fn seals(&self) -> &Seals {
        &self.seals
    }

    fn free(&self) -> MutexGuard<'_, Vec<Store>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.close();
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
