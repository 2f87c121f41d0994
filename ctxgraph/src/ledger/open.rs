//! Opening: what is read before the ledger takes events.
//!
//! Must hold: the time it takes is bounded by two segments, however long the ledger is; what was read is durable before anything is built on it.

use abi::control::Broken;
use abi::ids::Digest;
use abi::log;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::check::{Lost, log_damage};
use super::head::{Head, Health, Mark, Segment, push_newest};
use super::scan::{self, Frames, Point, Scanned, Tail};
use super::storage::{self, Directory, Lenient, Storage, make_segment, segment_name};
use super::{ReadError, Setup};
use ::ledger::chain::Chain;
use ::ledger::frame::{SEGMENT_HEADER_BYTES, SegmentHeader};

/// Reads the newest segment, and makes the first where there is none. A torn tail was cut.
pub(super) fn read(directory: &dyn Directory, setup: &Setup) -> Result<(Head, Tail), ReadError> {
    let mut first_seqs = storage::segments(directory)?;
    if first_seqs.is_empty() {
        make_segment(directory, 0, &SegmentHeader::genesis(new_id()).encode())?;
        first_seqs.push(0);
    }
    let mut segments: Vec<Segment> =
        first_seqs.into_iter().map(|first_seq| closed_segment(directory, first_seq)).collect();
    let mut newest = segments.pop().ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
    let file = directory.open(&segment_name(newest.first_seq))?;
    newest.bytes = file.length()?;
    let lenient = Lenient::new(file.clone());
    let mut read = read_newest(&lenient, &mut newest, setup)?;
    let prior = prior_damage(directory, &segments, &read.scanned, newest.first_seq)?;
    let (mut wrong, mut failed) = (prior.or(read.wrong.take()), None);
    let tail = scan::judge(&lenient, newest.bytes, &read.scanned, &setup.anchors)?;
    let end = read.end(newest.first_seq);
    match &tail {
        _ if wrong.is_some() => {}
        // What the disk cannot read was there, whatever the bytes beside it look like.
        _ if lenient.unreadable().is_some() => wrong = lenient.unreadable().map(|why| (end, why)),
        Tail::Whole => {}
        Tail::Torn { bytes, why } => {
            log::error("ledger_cut", &[("seq", &end.seq), ("bytes", bytes), ("why", why)]);
            failed = file.cut(end.offset).err();
            newest.bytes = end.offset;
        }
        Tail::Damaged(why) => wrong = Some((end, why.clone())),
    }
    let damaged = wrong.is_some();
    let (health, readable) = match wrong {
        None => {
            let settled = || settle(directory, file.as_ref(), read.last_batch, end.offset).err();
            (health_after(failed.or_else(settled)), None)
        }
        Some((at, why)) => {
            let (lost, readable) = salvage(&lenient, &newest, end, setup.anchors.size(), &mut read.points)?;
            let broken = Broken { seq: at.seq, segment: at.segment, offset: at.offset, why, lost };
            log_damage(&broken);
            newest.times = None;
            (Health::Damaged(broken), Some(readable))
        }
    };
    let chain = match read.scanned.chain {
        Some(chain) => chain,
        None => Chain::begin(&SegmentHeader::genesis([0; 32]))
            .map_err(|error| ReadError::Wrong(newest.first_seq, 0, error.to_string()))?,
    };
    let durable = Mark { chain, segment: newest.first_seq, offset: read.scanned.offset };
    segments.push(newest);
    let mut head = Head {
        next: durable.clone(),
        durable: durable.clone(),
        begun: None,
        segment_bytes: setup.segment_bytes,
        file,
        segments,
        readable,
        pending: Vec::new(),
        pending_points: Vec::new(),
        batch: 0,
        urgent: false,
        failures: 0,
        unsettled: matches!(health, Health::Failed(_)).then_some(read.last_batch),
        health,
        newest: read.points,
    };
    head.goes_on_from(durable);
    Ok((head, if damaged { Tail::Whole } else { tail }))
}

/// Makes durable what was read: whoever wrote it may have died before its sync, or after a sync that failed, and then the kernel takes what it
/// holds for written. So the last batch is written once more; all before it had been durable before it was written.
pub(super) fn settle(directory: &dyn Directory, file: &dyn Storage, from: u64, to: u64) -> io::Result<()> {
    let mut last = vec![0; usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?];
    let read = scan::read_full(file, &mut last, from)?;
    file.write_at(last.get(..read).unwrap_or_default(), from)?;
    file.sync()?;
    directory.sync()
}

/// A disk that cannot be written at the start is one that failed: the ledger is read, and writing is tried again.
fn health_after(failed: Option<io::Error>) -> Health {
    failed.map_or(Health::Good, |error| {
        log::error("ledger_disk_failed", &[("error", &error), ("events_lost", &0)]);
        Health::Failed(error.to_string())
    })
}

/// An older segment; where it cannot be opened, its check will tell.
fn closed_segment(directory: &dyn Directory, first_seq: u64) -> Segment {
    let opened = directory.open(&segment_name(first_seq)).and_then(|file: Arc<dyn Storage>| file.length());
    let bytes = opened.unwrap_or_else(|error| {
        log::error("ledger_segment_unreadable", &[("segment", &first_seq), ("error", &error)]);
        0
    });
    Segment { first_seq, bytes, times: None }
}

struct Newest {
    scanned: Scanned,
    points: VecDeque<Point>,
    /// Where its last batch begins.
    last_batch: u64,
    /// What the anchors contradict, and where.
    wrong: Option<(Point, String)>,
}

impl Newest {
    /// Where the chain ends.
    fn end(&self, segment: u64) -> Point {
        let seq = self.scanned.chain.as_ref().map_or(segment, Chain::seq);
        Point { segment, offset: self.scanned.offset, seq }
    }
}

fn read_newest(file: &dyn Storage, segment: &mut Segment, setup: &Setup) -> io::Result<Newest> {
    let (mut points, mut wrong) = (VecDeque::new(), None);
    let first_seq = segment.first_seq;
    let mut last_batch = None;
    let scanned = scan::scan(file, segment.bytes, first_seq, None, |frame, offset, chain| {
        let point = Point { segment: first_seq, offset, seq: frame.seq };
        push_newest(&mut points, point);
        if frame.batch == frame.seq {
            last_batch = Some(offset);
        }
        segment.saw(frame.unix_ms);
        if wrong.is_none() {
            wrong = setup.anchors.contradict(chain).map(|why| (point, why));
        }
    })?;
    // Without a frame there is nothing to write: a header is made whole and synced before it has its name.
    let last_batch = last_batch.unwrap_or(scanned.offset);
    Ok(Newest { scanned, points, last_batch, wrong })
}

/// What is wrong with the segments before the newest, as far as can be told from the last frame of the one before it; from all of that one
/// where the newest has no frame yet that would not follow a changed header.
fn prior_damage(
    directory: &dyn Directory,
    older: &[Segment],
    scanned: &Scanned,
    newest: u64,
) -> io::Result<Option<(Point, String)>> {
    let at = Point { segment: newest, offset: 0, seq: newest };
    let Some(first) = older.first().map(|segment| segment.first_seq).or(Some(newest)) else {
        return Ok(None);
    };
    if first != 0 {
        let at = Point { segment: first, offset: 0, seq: 0 };
        return Ok(Some((at, "the segments before this one are missing".into())));
    }
    let (Some(before), Some(chain)) = (older.last(), &scanned.chain) else {
        return Ok(None);
    };
    let mut last = [0; 32];
    let Some(offset) = before.bytes.checked_sub(last.len() as u64) else {
        return Ok(Some((at, "the segment before this one is empty or missing".into())));
    };
    let file = Lenient::new(directory.open(&segment_name(before.first_seq))?);
    scan::read_full(&file, &mut last, offset)?;
    let mut follows = previous_of(directory, newest)? == Some(Digest(last));
    if follows && chain.seq() == newest {
        let before = scan::scan(&file, before.bytes, before.first_seq, None, |_, _, _| {})?;
        // What is wrong in that segment itself, its check tells at its place.
        follows = before.broken.is_some()
            || before.chain.is_none_or(|before| before.next_header() == chain.next_header());
    }
    Ok((!follows).then(|| (at, "this segment does not follow the last frame of the one before it".into())))
}

/// What the header of a segment says of the last frame before it.
fn previous_of(directory: &dyn Directory, first_seq: u64) -> io::Result<Option<Digest>> {
    let file = Lenient::new(directory.open(&segment_name(first_seq))?);
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    scan::read_full(&file, &mut bytes, 0)?;
    let [.., previous] = bytes.as_chunks::<32>().0 else {
        return Ok(None);
    };
    Ok(Some(Digest(*previous)))
}

/// What can still be read beyond the place where the chain ends: adds the places of those frames, and tells what is lost, where there have been
/// `size` events at least.
fn salvage(
    file: &dyn Storage,
    segment: &Segment,
    end: Point,
    size: u64,
    points: &mut VecDeque<Point>,
) -> io::Result<(String, Point)> {
    let mut lost = Lost::from(end.seq);
    let mut frames = Frames::new(file, segment.bytes, end.offset)?;
    let mut whole_to = end.offset;
    while let Some((frame, offset)) = frames.next_whole()? {
        if lost.saw(frame.seq) {
            push_newest(points, Point { segment: segment.first_seq, offset, seq: frame.seq });
        }
        whole_to = frames.offset();
    }
    lost.ends(size);
    let mut text = lost.text();
    if text.is_empty() && whole_to < segment.bytes {
        text = format!("events from {} on", lost.next());
    }
    Ok((text, Point { segment: segment.first_seq, offset: segment.bytes, seq: lost.next() }))
}

fn new_id() -> [u8; 32] {
    let mut ledger_id = [0; 32];
    // The id only tells ledgers apart; a short answer of the kernel leaves zeros in it.
    if rustix::rand::getrandom(&mut ledger_id, rustix::rand::GetRandomFlags::empty()).is_err() {
        log::warning("ledger_id_not_random", &[]);
    }
    ledger_id
}
