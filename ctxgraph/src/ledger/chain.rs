//! The chain's head and the thread that syncs it.
//!
//! Must hold: one batch is written and synced before the next is written; a batch's frames name the batch's first.
//! Must never: go on after a failed write or sync but from the last durable frame.

use abi::control::Broken;
use abi::ledger::Receipt;
use abi::{limits, log};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::AppendError;
use super::scan::Point;
use super::storage::Storage;
use ::ledger::frame::{Draft, Source};

/// How often a failed disk is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Shared {
    pub(super) storage: Box<dyn Storage>,
    pub(super) chain: Mutex<Chain>,
    /// There is something to sync.
    pub(super) work: Condvar,
    /// The durable point, or the health, has changed.
    pub(super) synced: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

pub(super) enum Health {
    Good,
    /// The disk failed; tried again every [`RETRY_EVERY`].
    Failed(String),
    /// Durable frames are wrong. For good.
    Damaged(Broken),
    Closed,
}

pub(super) struct Chain {
    /// Where the next frame goes; all before it are chained.
    pub(super) next: Point,
    /// All before it are durable.
    pub(super) durable: Point,
    /// Frames chained and not yet given to the disk.
    pub(super) pending: Vec<u8>,
    /// Offsets of pending frames and of frames being synced.
    pub(super) pending_offsets: Vec<u64>,
    /// Seq of the first frame of the batch that gathers now.
    pub(super) batch: u64,
    /// Somebody waits for the batch that gathers now.
    pub(super) urgent: bool,
    /// Counts the failures; a receipt from before a failure is void.
    pub(super) failures: u64,
    pub(super) health: Health,
    /// Offsets of the newest durable frames, for `ledger.tail`.
    pub(super) newest: VecDeque<u64>,
}

impl Chain {
    pub(super) fn refusal(&self) -> Result<(), AppendError> {
        match &self.health {
            Health::Good => Ok(()),
            Health::Failed(why) => Err(AppendError::Disk(why.clone())),
            Health::Damaged(broken) => Err(AppendError::Damaged(broken.clone())),
            Health::Closed => Err(AppendError::Closed),
        }
    }

    pub(super) fn push(&mut self, source: Source, body: &[u8]) -> Receipt {
        let before = self.pending.len();
        let digest = Draft {
            seq: self.next.seq,
            batch: self.batch,
            unix_ms: unix_ms(),
            source,
            previous: self.next.head,
            body,
        }
        .encode(&mut self.pending);
        let receipt = Receipt { seq: self.next.seq, digest };
        self.pending_offsets.push(self.next.offset);
        self.next = Point {
            seq: self.next.seq + 1,
            head: digest,
            offset: self.next.offset + (self.pending.len() - before) as u64,
        };
        receipt
    }

    /// Goes back to the last durable frame: what was chained since is void.
    pub(super) fn fail(&mut self, health: Health) {
        self.failures += 1;
        self.next = self.durable;
        self.batch = self.durable.seq;
        self.pending.clear();
        self.pending_offsets.clear();
        self.health = health;
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_synced<'a>(
        &self,
        chain: MutexGuard<'a, Chain>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, Chain>, AppendError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AppendError::Slow);
        }
        let waited = self.synced.wait_timeout(chain, left);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(super) fn wait_work<'a>(
        &self,
        chain: MutexGuard<'a, Chain>,
        timeout: Duration,
    ) -> MutexGuard<'a, Chain> {
        let waited = self.work.wait_timeout(chain, timeout);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The sync thread.
    pub(super) fn sync_for_ever(&self) {
        let mut spare = Vec::new();
        let mut chain = self.lock();
        loop {
            match chain.health {
                Health::Closed | Health::Damaged(_) => return,
                Health::Failed(_) => {
                    drop(chain);
                    std::thread::sleep(RETRY_EVERY);
                    chain = self.repair();
                }
                Health::Good if chain.pending.is_empty() => {
                    chain = self.work.wait(chain).unwrap_or_else(PoisonError::into_inner);
                }
                Health::Good => {
                    chain = self.gather(chain);
                    if !chain.pending.is_empty() && matches!(chain.health, Health::Good) {
                        chain = self.sync_batch(chain, &mut spare);
                    }
                }
            }
        }
    }

    /// Lets events gather that nobody waits for. Half of the promised delay is left to the disk.
    pub(super) fn gather<'a>(&'a self, mut chain: MutexGuard<'a, Chain>) -> MutexGuard<'a, Chain> {
        let until = Instant::now() + Duration::from_millis(limits::LEDGER_SYNC_DELAY_MS_MAX / 2);
        while !chain.urgent && chain.pending.len() < limits::LEDGER_UNSYNCED_BYTES_MAX / 2 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !matches!(chain.health, Health::Good) {
                break;
            }
            chain = self.wait_work(chain, left);
        }
        chain
    }

    pub(super) fn sync_batch<'a>(
        &'a self,
        mut chain: MutexGuard<'a, Chain>,
        spare: &mut Vec<u8>,
    ) -> MutexGuard<'a, Chain> {
        let start = chain.durable.offset;
        let end = chain.next;
        let failures = chain.failures;
        std::mem::swap(&mut chain.pending, spare);
        let offsets = std::mem::take(&mut chain.pending_offsets);
        chain.batch = end.seq;
        chain.urgent = false;
        drop(chain);
        let outcome = self.storage.write_at(spare, start).and_then(|()| self.storage.sync());
        spare.clear();
        spare.shrink_to(64 * 1024); // an idle ledger holds no burst
        let mut chain = self.lock();
        match outcome {
            // Void when verify found damage meanwhile.
            Ok(()) if chain.failures == failures => {
                chain.durable = end;
                for offset in offsets {
                    push_newest(&mut chain.newest, offset);
                }
            }
            Ok(()) => {}
            Err(error) => {
                let lost = chain.next.seq - chain.durable.seq;
                log::error("ledger_disk_failed", &[("error", &error), ("events_lost", &lost)]);
                if matches!(chain.health, Health::Good) {
                    chain.fail(Health::Failed(error.to_string()));
                }
            }
        }
        self.synced.notify_all();
        chain
    }

    /// Cuts what a failed batch left behind; then events are taken again.
    pub(super) fn repair(&self) -> MutexGuard<'_, Chain> {
        let durable = self.lock().durable;
        let outcome = self.storage.cut(durable.offset).and_then(|()| self.storage.sync());
        let mut chain = self.lock();
        if matches!(chain.health, Health::Failed(_)) {
            match outcome {
                Ok(()) => {
                    log::info("ledger_disk_works_again", &[("seq", &durable.seq)]);
                    chain.health = Health::Good;
                }
                Err(error) => chain.health = Health::Failed(error.to_string()),
            }
        }
        chain
    }
}

pub(super) fn push_newest(newest: &mut VecDeque<u64>, offset: u64) {
    if newest.len() == limits::LEDGER_PAGE_MAX {
        newest.pop_front();
    }
    newest.push_back(offset);
}

/// The node's clock.
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
