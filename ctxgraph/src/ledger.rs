//! The ledger: one chain of events in segments, written by many and synced by one thread.
//!
//! Owns: the segment files and the chain's head. An append chains its event at once, under one lock; the sync thread writes
//! and syncs what gathered, and so one fsync serves all who wait (group commit).
//! Must hold: a durable append returns only after fsync; batches are written one after the other.
//! Must never: acknowledge after a failed sync (what the kernel then keeps is unknown: the chain goes back to the last durable
//! frame, and everybody since hears an error).

mod check;
mod head;
mod open;
mod read;
pub mod scan;
pub mod storage;

use abi::control::{Broken, Verified};
use abi::ids::Digest;
use abi::ledger::{Event, Receipt};
use abi::{limits, log};
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::canonical;
use ::ledger::frame::{self, Source};
pub use check::survey;
pub use head::unix_ms;
use head::{Health, Mark, Shared};
use scan::{Anchors, Point, Tail};
use storage::Directory;

/// Why there is no receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the event has {0} bytes, at most {max} are kept", max = limits::LEDGER_EVENT_BYTES_MAX)]
    TooLarge(usize),
    #[error("the event cannot be encoded: {0}")]
    Encode(String),
    #[error("the ledger's disk failed: {0}")]
    Disk(String),
    #[error("the ledger is damaged at event {}, segment {}, offset {}: {}", .0.seq, .0.segment, .0.offset, .0.why)]
    Damaged(Broken),
    #[error("the ledger's disk did not answer in {} ms", limits::PEER_CALL_MS_MAX)]
    Slow,
    #[error("the ledger is closing")]
    Closed,
}

/// Why the ledger cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read the ledger: {0}")]
    Io(#[from] io::Error),
    #[error("the ledger is wrong in segment {0}, offset {1}: {2}")]
    Wrong(u64, u64, String),
}

/// How a ledger is opened.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub anchors: Anchors,
    /// A segment that has so many bytes is followed by another.
    pub segment_bytes: u64,
    /// How often a failed disk is tried again.
    pub retry_every: Duration,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            anchors: Anchors::default(),
            segment_bytes: limits::LEDGER_SEGMENT_BYTES_MAX,
            retry_every: Duration::from_secs(1),
        }
    }
}

/// The durable ledger at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Events.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Digest,
    /// Digest of the last one; none before the first.
    pub head: Option<Digest>,
    pub ledger_id: [u8; 32],
    /// The node's clock when it was taken.
    pub unix_ms: u64,
}

impl Snapshot {
    fn of(mark: &Mark) -> Snapshot {
        let chain = &mark.chain;
        Snapshot {
            size: chain.seq(),
            root: chain.tree().root(),
            head: chain.head(),
            ledger_id: *chain.ledger_id(),
            unix_ms: unix_ms(),
        }
    }
}

/// The ledger of the node. Shared by all threads.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    anchors: Anchors,
}

impl Ledger {
    /// Opens a ledger, or makes one: checks the newest segment, cuts a torn tail and records that; the older segments are checked by a
    /// thread of its own. A damaged ledger opens too, and takes no events.
    pub fn open(directory: Box<dyn Directory>, setup: Setup) -> Result<Ledger, ReadError> {
        let (head, tail) = open::read(directory.as_ref(), &setup)?;
        let shared = Arc::new(Shared {
            directory,
            retry_every: setup.retry_every,
            head: Mutex::new(head),
            work: Condvar::new(),
            synced: Condvar::new(),
            rotated: Mutex::new(None),
        });
        let ledger = Ledger { shared, anchors: setup.anchors };
        ledger.spawn_sync()?;
        if let Tail::Torn { bytes, why } = tail {
            let source = Source::Service(abi::identity::Service::Ctxgraph);
            // A full disk must not keep the service down: it says so, and is tried again.
            if let Err(error) = ledger.append(source, &[Event::LedgerCut { bytes, why }], true) {
                log::error("ledger_cut_unrecorded", &[("error", &error)]);
            }
        }
        check::spawn(&ledger.shared, setup.anchors)?;
        Ok(ledger)
    }

    fn spawn_sync(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        std::thread::Builder::new()
            .name("ledger".into())
            .stack_size(128 * 1024)
            .spawn(move || shared.sync_for_ever())
            .map(|_| ())
    }

    /// Chains events, in order and without others between them; with `durable` returns after they are synced.
    pub fn append(
        &self,
        source: Source,
        events: &[Event],
        durable: bool,
    ) -> Result<Vec<Receipt>, AppendError> {
        let bodies: Vec<String> = events.iter().map(body_of).collect::<Result<_, _>>()?;
        let deadline = Instant::now() + Duration::from_millis(limits::PEER_CALL_MS_MAX);
        let mut head = self.shared.lock();
        let needed: usize =
            bodies.iter().map(|body| frame::HEAD_BYTES + body.len() + frame::DIGEST_BYTES).sum();
        let room =
            limits::LEDGER_UNSYNCED_BYTES_MAX.checked_sub(needed).ok_or(AppendError::TooLarge(needed))?;
        loop {
            head.refusal()?;
            if head.pending.len() <= room {
                break;
            }
            head = self.shared.wait_synced(head, deadline)?;
        }
        let failures = head.failures;
        let receipts: Vec<Receipt> = bodies.iter().map(|body| head.push(source, body.as_bytes())).collect();
        head.urgent |= durable;
        self.shared.work.notify_one();
        if durable {
            let end = head.next.chain.seq();
            while head.durable.chain.seq() < end || head.failures != failures {
                if head.failures != failures {
                    return Err(head
                        .refusal()
                        .err()
                        .unwrap_or_else(|| AppendError::Disk("the batch was lost".into())));
                }
                head = self.shared.wait_synced(head, deadline)?;
            }
        }
        Ok(receipts)
    }

    /// Whether events are taken at present.
    pub fn health(&self) -> Result<(), AppendError> {
        self.shared.lock().refusal()
    }

    /// The end of what is durable.
    pub fn durable(&self) -> Point {
        self.shared.lock().durable.point()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().segments.iter().map(|segment| segment.bytes).sum()
    }

    /// What is durable now, to be signed. A damaged ledger gives none.
    pub fn snapshot(&self) -> Result<Snapshot, AppendError> {
        let head = self.shared.lock();
        match &head.health {
            Health::Damaged(broken) => Err(AppendError::Damaged(broken.clone())),
            _ => Ok(Snapshot::of(&head.durable)),
        }
    }

    /// Calls `hook` each time a segment was followed by another, from the thread that syncs: appenders wait for it, and it must not
    /// append.
    pub fn on_rotated(&self, hook: impl Fn(&Snapshot) + Send + 'static) {
        *self.shared.rotated.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// Waits until more than `seq` events are durable, but not longer than `timeout`.
    pub fn wait_beyond(&self, seq: u64, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut head = self.shared.lock();
        while head.durable.chain.seq() <= seq && !matches!(head.health, Health::Closed) {
            match self.shared.wait_synced(head, deadline) {
                Ok(guard) => head = guard,
                Err(_) => return,
            }
        }
    }

    /// Reads and checks the whole chain, and goes on past what is wrong. Damage found here stops further events too.
    pub fn verify(&self) -> Result<Verified, ReadError> {
        check::verify(&self.shared, self.anchors)
    }

    /// Syncs what is chained and takes no more. For an orderly stop.
    pub fn close(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut head = self.shared.lock();
        head.urgent = true;
        self.shared.work.notify_one();
        while head.durable.chain.seq() < head.next.chain.seq() && matches!(head.health, Health::Good) {
            match self.shared.wait_synced(head, deadline) {
                Ok(guard) => head = guard,
                Err(_) => {
                    head = self.shared.lock();
                    break;
                }
            }
        }
        head.health = Health::Closed;
        self.shared.work.notify_one();
        self.shared.synced.notify_all();
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

fn body_of(event: &Event) -> Result<String, AppendError> {
    let value = serde_json::to_value(event).map_err(|error| AppendError::Encode(error.to_string()))?;
    let body = canonical::text(&value).map_err(|error| AppendError::Encode(error.to_string()))?;
    if body.len() > limits::LEDGER_EVENT_BYTES_MAX {
        return Err(AppendError::TooLarge(body.len()));
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
