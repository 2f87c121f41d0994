//! The chain's head and the thread that syncs it.
//!
//! Must hold: one batch is written and synced before the next is written; a batch's frames name the batch's first. A segment is
//! followed by another only after all its frames are durable.
//! Must never: go on after a failed write or sync but from the last durable frame.

use abi::control::Broken;
use abi::ledger::Receipt;
use abi::{limits, log};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::open;
use super::scan::Point;
use super::storage::{Directory, Storage, make_segment, segment_name};
use super::{AppendError, Snapshot};
use ::ledger::chain::Chain;
use ::ledger::frame::Source;

pub(super) struct Shared {
    pub(super) directory: Box<dyn Directory>,
    pub(super) retry_every: Duration,
    pub(super) head: Mutex<Head>,
    /// There is something to sync.
    pub(super) work: Condvar,
    /// The durable point, or the health, has changed.
    pub(super) synced: Condvar,
    pub(super) rotated: Mutex<Option<Hook>>,
}

/// What is called after a segment was followed by another.
pub(super) type Hook = Box<dyn Fn(&Snapshot) + Send>;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

pub(super) enum Health {
    Good,
    /// The disk failed; tried again from time to time.
    Failed(String),
    /// Durable frames are wrong. For good.
    Damaged(Broken),
    Closed,
}

/// A place in the chain, with all that is needed to go on from there.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) chain: Chain,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

impl Mark {
    pub(super) fn point(&self) -> Point {
        Point { segment: self.segment, offset: self.offset, seq: self.chain.seq() }
    }

    /// The same place in the chain at the beginning of the next segment, where this one is full, and that segment's header.
    pub(super) fn beyond(&self, segment_bytes: u64) -> Option<(Mark, Vec<u8>)> {
        if self.offset < segment_bytes || self.chain.seq() == self.segment {
            return None;
        }
        let header = self.chain.next_header();
        let bytes = header.encode();
        let mut chain = self.chain.clone();
        chain.go_on(&header).ok()?;
        Some((Mark { segment: chain.seq(), offset: bytes.len() as u64, chain }, bytes))
    }
}

/// A segment there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) first_seq: u64,
    /// Durable bytes of it.
    pub(super) bytes: u64,
    /// The earliest and the latest time in it, where all of it was read.
    pub(super) times: Option<(u64, u64)>,
}

impl Segment {
    pub(super) fn saw(&mut self, unix_ms: u64) {
        self.times = Some(widened(self.times, unix_ms));
    }
}

/// A span of time with one more moment in it.
pub(super) fn widened(times: Option<(u64, u64)>, unix_ms: u64) -> (u64, u64) {
    times.map_or((unix_ms, unix_ms), |(first, last)| (first.min(unix_ms), last.max(unix_ms)))
}

pub(super) struct Head {
    /// Where the next frame goes; all before it are chained.
    pub(super) next: Mark,
    /// All before it are durable.
    pub(super) durable: Mark,
    /// The newest segment is full: where the next one begins, and its header. It is made before more is written.
    pub(super) begun: Option<(Mark, Vec<u8>)>,
    /// A segment that has so many bytes is full.
    pub(super) segment_bytes: u64,
    /// The newest segment.
    pub(super) file: Arc<dyn Storage>,
    /// All segments, the newest last.
    pub(super) segments: Vec<Segment>,
    /// A damaged ledger is read to here, past what the chain holds.
    pub(super) readable: Option<Point>,
    /// Frames chained and not yet given to the disk.
    pub(super) pending: Vec<u8>,
    /// Places and times of pending frames.
    pub(super) pending_points: Vec<(Point, u64)>,
    /// Seq of the first frame of the batch that gathers now.
    pub(super) batch: u64,
    /// Somebody waits for the batch that gathers now.
    pub(super) urgent: bool,
    /// Counts the failures; a receipt from before a failure is void.
    pub(super) failures: u64,
    /// Where the batch begins that could not be made durable at the start.
    pub(super) unsettled: Option<u64>,
    pub(super) health: Health,
    /// Places of the newest durable frames, for `ledger.tail`.
    pub(super) newest: VecDeque<Point>,
}

impl Head {
    pub(super) fn refusal(&self) -> Result<(), AppendError> {
        match &self.health {
            Health::Good => Ok(()),
            Health::Failed(why) => Err(AppendError::Disk(why.clone())),
            Health::Damaged(broken) => Err(AppendError::Damaged(broken.clone())),
            Health::Closed => Err(AppendError::Closed),
        }
    }

    /// Where reading ends.
    pub(super) fn end(&self) -> Point {
        self.readable.unwrap_or_else(|| self.durable.point())
    }

    pub(super) fn push(&mut self, source: Source, body: &[u8]) -> Receipt {
        let (before, point, now) = (self.pending.len(), self.next.point(), unix_ms());
        let digest = self.next.chain.append(self.batch, now, source, body, &mut self.pending);
        self.pending_points.push((point, now));
        self.next.offset += (self.pending.len() - before) as u64;
        Receipt { seq: point.seq, digest }
    }

    /// Goes back to the last durable frame: what was chained since is void.
    pub(super) fn fail(&mut self, health: Health) {
        self.failures += 1;
        self.goes_on_from(self.durable.clone());
        self.pending.clear();
        self.pending_points.clear();
        self.health = health;
    }

    /// The next frame follows this one: in its segment, or in the next where that is full.
    pub(super) fn goes_on_from(&mut self, mark: Mark) {
        self.batch = mark.chain.seq();
        self.begun = mark.beyond(self.segment_bytes);
        self.next = self.begun.as_ref().map_or(mark, |(begun, _)| begun.clone());
    }

    fn is_synced(&mut self, end: Mark, points: &[(Point, u64)]) {
        if let Some(segment) = self.segments.last_mut() {
            segment.bytes = end.offset;
            points.iter().for_each(|(_, unix_ms)| segment.saw(*unix_ms));
        }
        self.durable = end;
        for (point, _) in points {
            push_newest(&mut self.newest, *point);
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_synced<'a>(
        &self,
        head: MutexGuard<'a, Head>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, Head>, AppendError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AppendError::Slow);
        }
        let waited = self.synced.wait_timeout(head, left);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The file of a segment, for reading.
    pub(super) fn open(&self, first_seq: u64) -> io::Result<Arc<dyn Storage>> {
        {
            let head = self.lock();
            if head.segments.last().is_some_and(|newest| newest.first_seq == first_seq) {
                return Ok(head.file.clone());
            }
        }
        self.directory.open(&segment_name(first_seq))
    }

    /// The sync thread.
    pub(super) fn sync_for_ever(&self) {
        let mut spare = Vec::new();
        let mut head = self.lock();
        loop {
            match head.health {
                Health::Closed | Health::Damaged(_) => return,
                Health::Failed(_) => {
                    let waited = self.work.wait_timeout(head, self.retry_every);
                    let waited = waited.unwrap_or_else(PoisonError::into_inner).0;
                    if matches!(waited.health, Health::Closed) {
                        return;
                    }
                    drop(waited);
                    head = self.repair();
                }
                Health::Good if head.begun.is_some() => head = self.rotate(head),
                Health::Good if head.pending.is_empty() => {
                    head = self.work.wait(head).unwrap_or_else(PoisonError::into_inner);
                }
                Health::Good => {
                    head = self.gather(head);
                    if !head.pending.is_empty() && matches!(head.health, Health::Good) {
                        head = self.sync_batch(head, &mut spare);
                    }
                }
            }
        }
    }

    /// Lets events gather that nobody waits for. Half of the promised delay is left to the disk.
    fn gather<'a>(&'a self, mut head: MutexGuard<'a, Head>) -> MutexGuard<'a, Head> {
        let until = Instant::now() + Duration::from_millis(limits::LEDGER_SYNC_DELAY_MS_MAX / 2);
        while !head.urgent && head.pending.len() < limits::LEDGER_UNSYNCED_BYTES_MAX / 2 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !matches!(head.health, Health::Good) {
                break;
            }
            head = self.work.wait_timeout(head, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        head
    }

    fn sync_batch<'a>(&'a self, mut head: MutexGuard<'a, Head>, spare: &mut Vec<u8>) -> MutexGuard<'a, Head> {
        let (start, end, failures) = (head.durable.offset, head.next.clone(), head.failures);
        let file = head.file.clone();
        std::mem::swap(&mut head.pending, spare);
        let points = std::mem::take(&mut head.pending_points);
        head.goes_on_from(end.clone());
        head.urgent = false;
        drop(head);
        let outcome = file.write_at(spare, start).and_then(|()| file.sync());
        spare.clear();
        spare.shrink_to(64 * 1024); // an idle ledger holds no burst
        let mut head = self.lock();
        match outcome {
            // Void when verify found damage meanwhile.
            Ok(()) if head.failures == failures => head.is_synced(end, &points),
            Ok(()) => {}
            Err(error) => disk_failed(&mut head, &error),
        }
        self.synced.notify_all();
        head
    }

    /// Makes the next segment. Everything before it is durable.
    fn rotate<'a>(&'a self, mut head: MutexGuard<'a, Head>) -> MutexGuard<'a, Head> {
        let Some((mark, header)) = head.begun.clone() else {
            return head;
        };
        let failures = head.failures;
        drop(head);
        let made = make_segment(self.directory.as_ref(), mark.segment, &header);
        head = self.lock();
        match made {
            Ok(file) if head.failures == failures => {
                head.begun = None;
                head.file = file;
                head.segments.push(Segment { first_seq: mark.segment, bytes: mark.offset, times: None });
                head.durable = mark;
            }
            Ok(_) => return head,
            Err(error) => {
                disk_failed(&mut head, &error);
                self.synced.notify_all();
                return head;
            }
        }
        let snapshot = Snapshot::of(&head.durable);
        drop(head);
        log::info("ledger_rotated", &[("segment", &snapshot.size)]);
        if let Some(hook) = self.rotated.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            hook(&snapshot);
        }
        self.lock()
    }

    /// Cuts what a failed batch left behind; then events are taken again.
    fn repair(&self) -> MutexGuard<'_, Head> {
        let (file, offset, unsettled) = {
            let head = self.lock();
            (head.file.clone(), head.durable.offset, head.unsettled)
        };
        let outcome = file.cut(offset).and_then(|()| match unsettled {
            Some(from) => open::settle(self.directory.as_ref(), file.as_ref(), from, offset),
            None => file.sync(),
        });
        let mut head = self.lock();
        if matches!(head.health, Health::Failed(_)) {
            match outcome {
                Ok(()) => {
                    log::info("ledger_disk_works_again", &[("seq", &head.durable.chain.seq())]);
                    (head.health, head.unsettled) = (Health::Good, None);
                }
                Err(error) => head.health = Health::Failed(error.to_string()),
            }
        }
        head
    }
}

fn disk_failed(head: &mut Head, error: &io::Error) {
    let lost = head.next.chain.seq() - head.durable.chain.seq();
    log::error("ledger_disk_failed", &[("error", error), ("events_lost", &lost)]);
    if matches!(head.health, Health::Good) {
        head.fail(Health::Failed(error.to_string()));
    }
}

pub(super) fn push_newest(newest: &mut VecDeque<Point>, point: Point) {
    if newest.len() == limits::LEDGER_PAGE_MAX {
        newest.pop_front();
    }
    newest.push_back(point);
}

/// The node's clock.
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
