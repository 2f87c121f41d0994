//! The ledger: one chain of events, written by many and synced by one thread.
//!
//! Owns: the segment file and the chain's head. An append chains its event at once, under one lock; the sync thread writes
//! and syncs what gathered, and so one fsync serves all who wait (group commit).
//! Must hold: a durable append returns only after fsync; batches are written one after the other.
//! Must never: acknowledge after a failed sync (what the kernel then keeps is unknown: the chain goes back to the last durable
//! frame, and everybody since hears an error).

mod chain;
pub mod scan;
pub mod storage;

use abi::control::{Broken, Recorded, Verified};
use abi::ledger::{Event, Receipt};
use abi::{limits, log};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::canonical;
use ::ledger::frame::{self, Frame, Source};
pub use chain::unix_ms;
use chain::{Chain, Health, Shared, push_newest};
use scan::{Point, Tail, Window, Witness};
use storage::Storage;

/// Why there is no receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the event has {0} bytes, at most {max} are kept", max = limits::LEDGER_EVENT_BYTES_MAX)]
    TooLarge(usize),
    #[error("the event cannot be encoded: {0}")]
    Encode(String),
    #[error("the ledger's disk failed: {0}")]
    Disk(String),
    #[error("the ledger is damaged at event {}, offset {}: {}", .0.seq, .0.offset, .0.why)]
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
    #[error("the ledger is wrong at offset {0}: {1}")]
    Wrong(u64, String),
}

/// The ledger of the node. Shared by all threads.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
}

impl Ledger {
    /// Opens a ledger: checks the whole chain, cuts a torn tail and records that. A damaged ledger opens too, and takes no events.
    pub fn open(storage: Box<dyn Storage>, witness: Option<Witness>) -> Result<Ledger, ReadError> {
        let length = storage.length()?;
        let mut newest = VecDeque::new();
        let mut witnessed = None;
        let scanned = scan::scan(storage.as_ref(), length, |frame, offset| {
            push_newest(&mut newest, offset);
            if witness.is_some_and(|(seq, _)| seq == frame.seq) {
                witnessed = Some(frame.digest);
            }
        })?;
        let tail = scan::judge(storage.as_ref(), length, &scanned, witness, witnessed)?;
        let mut health = Health::Good;
        match &tail {
            Tail::Whole => {}
            Tail::Torn { bytes, why } => {
                log::error("ledger_cut", &[("seq", &scanned.end.seq), ("bytes", bytes), ("why", why)]);
                storage.cut(scanned.end.offset)?;
            }
            Tail::Damaged(broken) => {
                log_damage(broken);
                health = Health::Damaged(broken.clone());
            }
        }
        let shared = Arc::new(Shared {
            storage,
            chain: Mutex::new(Chain {
                next: scanned.end,
                durable: scanned.end,
                pending: Vec::new(),
                pending_offsets: Vec::new(),
                batch: scanned.end.seq,
                urgent: false,
                failures: 0,
                health,
                newest,
            }),
            work: Condvar::new(),
            synced: Condvar::new(),
        });
        let ledger = Ledger { shared };
        ledger.spawn_sync()?;
        if let Tail::Torn { bytes, why } = tail {
            let source = Source::Service(abi::identity::Service::Ctxgraph);
            // A full disk must not keep the service down: it says so, and is tried again.
            if let Err(error) = ledger.append(source, &[Event::LedgerCut { bytes, why }], true) {
                log::error("ledger_cut_unrecorded", &[("error", &error)]);
            }
        }
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
        let mut chain = self.shared.lock();
        let needed: usize =
            bodies.iter().map(|body| frame::HEAD_BYTES + body.len() + frame::DIGEST_BYTES).sum();
        let room =
            limits::LEDGER_UNSYNCED_BYTES_MAX.checked_sub(needed).ok_or(AppendError::TooLarge(needed))?;
        loop {
            chain.refusal()?;
            if chain.pending.len() <= room {
                break;
            }
            chain = self.shared.wait_synced(chain, deadline)?;
        }
        let failures = chain.failures;
        let receipts: Vec<Receipt> = bodies.iter().map(|body| chain.push(source, body.as_bytes())).collect();
        chain.urgent |= durable;
        self.shared.work.notify_one();
        if durable {
            let end = chain.next.seq;
            while chain.durable.seq < end || chain.failures != failures {
                if chain.failures != failures {
                    return Err(chain
                        .refusal()
                        .err()
                        .unwrap_or_else(|| AppendError::Disk("the batch was lost".into())));
                }
                chain = self.shared.wait_synced(chain, deadline)?;
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
        self.shared.lock().durable
    }

    /// Waits until more than `offset` is durable, but not longer than `timeout`.
    pub fn wait_beyond(&self, offset: u64, timeout: Duration) -> Point {
        let deadline = Instant::now() + timeout;
        let mut chain = self.shared.lock();
        while chain.durable.offset <= offset && !matches!(chain.health, Health::Closed) {
            match self.shared.wait_synced(chain, deadline) {
                Ok(guard) => chain = guard,
                Err(_) => return self.durable(),
            }
        }
        chain.durable
    }

    /// The newest durable events, oldest first: at most `count` of them and `bytes_max` of their JSON, and the point after them.
    pub fn tail(&self, count: usize, bytes_max: usize) -> Result<(Vec<Recorded>, Point), ReadError> {
        let (offsets, end) = {
            let chain = self.shared.lock();
            let offsets: Vec<u64> = chain.newest.iter().rev().take(count).copied().collect();
            (offsets, chain.durable)
        };
        let mut window = Window::new(self.shared.storage.as_ref(), end.offset);
        let (mut events, mut bytes) = (Vec::new(), 0);
        for offset in offsets {
            let recorded = match read_event(&mut window, offset)? {
                Some((recorded, _)) => recorded,
                None => continue,
            };
            bytes += serde_json::to_vec(&recorded).map_or(bytes_max, |json| json.len() + 1);
            if bytes > bytes_max {
                break;
            }
            events.push(recorded);
        }
        events.reverse();
        Ok((events, end))
    }

    /// Hands on the durable events from `from` (a frame's offset) until `sink` says stop; returns the offset after the last one handed on.
    pub fn read_from(&self, from: u64, mut sink: impl FnMut(Recorded) -> bool) -> Result<u64, ReadError> {
        let end = self.durable().offset;
        let mut window = Window::new(self.shared.storage.as_ref(), end);
        let mut offset = from;
        while offset < end {
            let length = match frame::frame_length(window.at(offset, 8)?) {
                Ok(length) => length as u64,
                Err(error) => return Err(ReadError::Wrong(offset, error.to_string())),
            };
            let goes_on = read_event(&mut window, offset)?.is_none_or(|(recorded, _)| sink(recorded));
            offset += length;
            if !goes_on {
                break;
            }
        }
        Ok(offset)
    }

    /// Reads and checks the whole chain. Damage found here stops further events too.
    pub fn verify(&self) -> Result<Verified, ReadError> {
        let durable = self.durable();
        let scanned = scan::scan(self.shared.storage.as_ref(), durable.offset, |_, _| {})?;
        let known = match &self.shared.lock().health {
            Health::Damaged(broken) => Some(broken.clone()),
            _ => None,
        };
        let broken = scanned.broken.or(known).or_else(|| {
            (scanned.end != durable).then(|| Broken {
                seq: scanned.end.seq,
                offset: scanned.end.offset,
                why: "the file is not the one that was written".into(),
            })
        });
        if let Some(broken) = &broken {
            let mut chain = self.shared.lock();
            if !matches!(chain.health, Health::Damaged(_)) {
                log_damage(broken);
                chain.fail(Health::Damaged(broken.clone()));
                self.shared.synced.notify_all();
            }
        }
        Ok(Verified {
            events: scanned.end.seq,
            bytes: scanned.end.offset,
            head: (scanned.end.seq > 0).then_some(scanned.end.head),
            broken,
        })
    }

    /// Syncs what is chained and takes no more. For an orderly stop.
    pub fn close(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut chain = self.shared.lock();
        chain.urgent = true;
        self.shared.work.notify_one();
        while chain.durable.seq < chain.next.seq && matches!(chain.health, Health::Good) {
            match self.shared.wait_synced(chain, deadline) {
                Ok(guard) => chain = guard,
                Err(_) => {
                    chain = self.shared.lock();
                    break;
                }
            }
        }
        chain.health = Health::Closed;
        self.shared.work.notify_one();
        self.shared.synced.notify_all();
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

fn log_damage(broken: &Broken) {
    log::error(
        "ledger_damaged",
        &[
            ("seq", &broken.seq),
            ("offset", &broken.offset),
            ("why", &broken.why),
            ("effect", &"no receipts, so no effects"),
        ],
    );
}

fn body_of(event: &Event) -> Result<String, AppendError> {
    let value = serde_json::to_value(event).map_err(|error| AppendError::Encode(error.to_string()))?;
    let body = canonical::text(&value).map_err(|error| AppendError::Encode(error.to_string()))?;
    if body.len() > limits::LEDGER_EVENT_BYTES_MAX {
        return Err(AppendError::TooLarge(body.len()));
    }
    Ok(body)
}

/// The event at an offset; none if its kind is of a later version of NullBox.
fn read_event(window: &mut Window<'_>, offset: u64) -> Result<Option<(Recorded, u64)>, ReadError> {
    let frame =
        scan::frame_at(window, offset)?.map_err(|error| ReadError::Wrong(offset, error.to_string()))?;
    Ok(recorded(&frame).map(|recorded| (recorded, offset)))
}

fn recorded(frame: &Frame) -> Option<Recorded> {
    let event = serde_json::from_slice(&frame.body)
        .inspect_err(|error| log::warning("ledger_event_unknown", &[("seq", &frame.seq), ("error", error)]))
        .ok()?;
    Some(Recorded {
        seq: frame.seq,
        digest: frame.digest,
        unix_ms: frame.unix_ms,
        source: frame.source.name().into(),
        event,
    })
}

#[cfg(test)]
mod tests;
