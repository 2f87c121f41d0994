//! The check of the whole chain, segment after segment: for `ledger.verify`, and once after the start for the older segments.
//!
//! Must hold: the first wrong place is told, and what is lost beyond it.
//! Must never: take the disk for itself after a start.

use abi::control::{Broken, Verified};
use abi::log;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ReadError;
use super::head::{Health, Segment, Shared, widened};
use super::scan::{self, Anchors, Frames};
use super::storage::{self, Directory, Lenient, Storage, segment_name};
use ::ledger::chain::Chain;
use ::ledger::frame::SEGMENT_HEADER_BYTES;

/// Bytes that the check after the start reads before it rests.
const STRIDE_BYTES: u64 = 1024 * 1024;
/// How long it rests, in multiples of how long it read.
const REST_TIMES: u32 = 3;
/// Ranges of lost events that are told apart.
const LOST_RANGES_MAX: usize = 16;

/// Events that cannot be read.
#[derive(Debug, Default)]
pub(super) struct Lost {
    expected: u64,
    ranges: Vec<(u64, u64)>,
    more: u64,
}

impl Lost {
    /// Nothing is lost before `seq`.
    pub(super) fn from(seq: u64) -> Lost {
        Lost { expected: seq, ..Lost::default() }
    }

    /// A frame was found: what lies between it and the one before is lost. False for one that was there before.
    pub(super) fn saw(&mut self, seq: u64) -> bool {
        if seq < self.expected {
            return false;
        }
        self.ends(seq);
        self.expected = seq.saturating_add(1);
        true
    }

    /// There is nothing more before `seq`.
    pub(super) fn ends(&mut self, seq: u64) {
        if seq > self.expected {
            if self.ranges.len() < LOST_RANGES_MAX {
                self.ranges.push((self.expected, seq - 1));
            } else {
                self.more += seq - self.expected;
            }
            self.expected = seq;
        }
    }

    /// The seq after the last frame that was found.
    pub(super) fn next(&self) -> u64 {
        self.expected
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (first, last) in &self.ranges {
            let separator = if text.is_empty() { "events " } else { ", " };
            // Writing to a string cannot fail.
            let _ = match first == last {
                true => write!(text, "{separator}{first}"),
                false => write!(text, "{separator}{first} to {last}"),
            };
        }
        if self.more > 0 {
            let _ = write!(text, " and {} more", self.more);
        }
        text
    }
}

/// A walk over the segments, from the first.
struct Survey<'a> {
    anchors: Anchors,
    /// Called with the bytes that were read.
    pace: &'a mut dyn FnMut(u64),
    /// After the last segment, where it holds.
    chain: Option<Chain>,
    begun: bool,
    first: Option<Broken>,
    lost: Lost,
}

impl<'a> Survey<'a> {
    fn new(anchors: Anchors, pace: &'a mut dyn FnMut(u64)) -> Survey<'a> {
        Survey { anchors, pace, chain: None, begun: false, first: None, lost: Lost::default() }
    }

    /// Checks `bytes` of the next segment, which has events below `until` only. Returns its span of time.
    fn segment(
        &mut self,
        file: io::Result<Arc<dyn Storage>>,
        first_seq: u64,
        bytes: u64,
        until: u64,
    ) -> io::Result<Option<(u64, u64)>> {
        let due = self.chain.as_ref().map_or(self.lost.next(), Chain::seq);
        let file = match file {
            Err(error) if storage::is_of_the_file(&error) => {
                let why = match error.kind() {
                    io::ErrorKind::NotFound => "the segment is missing".into(),
                    _ => format!("the segment cannot be opened: {error}"),
                };
                self.wrong(first_seq, 0, due, why);
                self.chain = None;
                return Ok(None);
            }
            file => Lenient::new(file?),
        };
        if !self.begun && first_seq != 0 {
            self.wrong(first_seq, 0, 0, "the segments before this one are missing".into());
        }
        self.begun = true;
        let (mut times, mut contradicted, mut taken) = (None, None, 0);
        let before = self.chain.take();
        let scanned = scan::scan(&file, bytes, first_seq, before, |frame, offset, chain| {
            self.lost.saw(frame.seq);
            times = Some(widened(times, frame.unix_ms));
            if contradicted.is_none() {
                contradicted = self.anchors.contradict(chain).map(|why| (offset, frame.seq, why));
            }
            taken += scan::frame_bytes(frame);
            if taken >= STRIDE_BYTES {
                (self.pace)(std::mem::take(&mut taken));
            }
        })?;
        (self.pace)(taken);
        if let Some((offset, seq, why)) = contradicted {
            self.wrong(first_seq, offset, seq, why);
        }
        let Some(error) = scanned.broken else {
            self.chain = scanned.chain;
            return Ok(times);
        };
        let seq = scanned.chain.as_ref().map_or(due, Chain::seq);
        let why = file.unreadable().unwrap_or_else(|| error.to_string());
        self.wrong(first_seq, scanned.offset, seq, why);
        let mut frames = Frames::new(&file, bytes, scanned.offset)?;
        while let Some((frame, _)) = frames.next_whole()? {
            if frame.seq < until {
                self.lost.saw(frame.seq);
            }
        }
        Ok(None)
    }

    fn wrong(&mut self, segment: u64, offset: u64, seq: u64, why: String) {
        self.first.get_or_insert(Broken { seq, segment, offset, why, lost: String::new() });
    }

    /// What is wrong first, with what was found lost.
    fn broken(&self) -> Option<Broken> {
        self.first.clone().map(|broken| Broken { lost: self.lost.text(), ..broken })
    }
}

/// Checks all segments as they are now.
pub(super) fn verify(shared: &Shared, anchors: Anchors) -> Result<Verified, ReadError> {
    let (segments, durable, end, known) = {
        let head = shared.lock();
        let known = match &head.health {
            Health::Damaged(broken) => Some(broken.clone()),
            _ => None,
        };
        (head.segments.clone(), head.durable.clone(), head.end(), known)
    };
    let mut pace = |_| {};
    let mut survey = Survey::new(anchors, &mut pace);
    let mut bytes = 0;
    for (index, segment) in segments.iter().enumerate() {
        let until = segments.get(index + 1).map_or(end.seq, |next| next.first_seq);
        let length = if segment.first_seq == end.segment { end.offset } else { segment.bytes };
        bytes += length;
        survey.segment(shared.open(segment.first_seq), segment.first_seq, length, until)?;
    }
    survey.lost.ends(end.seq);
    if survey.first.is_none() && known.is_none() && survey.chain.as_ref() != Some(&durable.chain) {
        let why = "the file is not the one that was written";
        survey.wrong(end.segment, end.offset, end.seq, why.into());
    }
    let found = survey.broken().map(|found| match &known {
        // What was known at the start of the end of the file is not in the file.
        Some(known) if found.lost.is_empty() && found.seq == known.seq => {
            Broken { lost: known.lost.clone(), ..found }
        }
        _ => found,
    });
    let broken = found.or(known);
    if let Some(broken) = &broken {
        damage(shared, broken);
    }
    Ok(Verified {
        events: broken.as_ref().map_or(end.seq, |broken| broken.seq),
        bytes,
        head: survey.chain.as_ref().and_then(Chain::head).filter(|_| broken.is_none()),
        broken,
    })
}

/// Checks the bytes in a directory as they are, before a ledger is opened on them.
pub fn survey(directory: &dyn Directory, anchors: Anchors) -> io::Result<Option<Broken>> {
    let segments = storage::segments(directory)?;
    let mut pace = |_| {};
    let mut survey = Survey::new(anchors, &mut pace);
    for (index, first_seq) in segments.iter().enumerate() {
        let until = segments.get(index + 1).copied().unwrap_or(u64::MAX);
        let file = directory.open(&segment_name(*first_seq));
        let bytes = file.as_ref().map_or(Ok(0), |file| file.length())?;
        survey.segment(file, *first_seq, bytes, until)?;
    }
    Ok(survey.broken())
}

/// No more events: durable frames are wrong.
fn damage(shared: &Shared, broken: &Broken) {
    let mut head = shared.lock();
    if !matches!(head.health, Health::Damaged(_) | Health::Closed) {
        log_damage(broken);
        head.fail(Health::Damaged(broken.clone()));
        shared.work.notify_one();
        shared.synced.notify_all();
    }
}

/// Tells of damage where it was found.
pub(super) fn log_damage(broken: &Broken) {
    log::error(
        "ledger_damaged",
        &[
            ("seq", &broken.seq),
            ("segment", &broken.segment),
            ("offset", &broken.offset),
            ("why", &broken.why),
            ("lost", &broken.lost),
            ("effect", &"no receipts, so no effects"),
        ],
    );
}

/// Checks the segments before the newest of now, in a thread, with a bounded share of the disk.
pub(super) fn spawn(shared: &Arc<Shared>, anchors: Anchors) -> io::Result<()> {
    let (segments, damaged) = {
        let head = shared.lock();
        (head.segments.clone(), matches!(head.health, Health::Damaged(_)))
    };
    if segments.len() < 2 || damaged {
        return Ok(());
    }
    let shared = shared.clone();
    let thread = std::thread::Builder::new().name("ledger-check".into()).stack_size(256 * 1024);
    thread.spawn(move || check_older(&shared, anchors, &segments)).map(|_| ())
}

fn check_older(shared: &Shared, anchors: Anchors, segments: &[Segment]) {
    let mut since = Instant::now();
    let mut pace = |bytes: u64| {
        if bytes >= STRIDE_BYTES {
            std::thread::sleep((since.elapsed() * REST_TIMES).min(Duration::from_secs(1)));
            since = Instant::now();
        }
    };
    let mut survey = Survey::new(anchors, &mut pace);
    let started = Instant::now();
    for (index, segment) in segments.iter().enumerate() {
        if matches!(shared.lock().health, Health::Closed | Health::Damaged(_)) {
            return;
        }
        let next = segments.get(index + 1);
        // Of the newest only the header: its frames were checked at the start.
        let bytes = match next {
            Some(_) => segment.bytes,
            None => SEGMENT_HEADER_BYTES as u64 + 32 * u64::from(segment.first_seq.count_ones()),
        };
        let until = next.map_or(segment.first_seq, |next| next.first_seq);
        match survey.segment(shared.open(segment.first_seq), segment.first_seq, bytes, until) {
            Ok(times) if next.is_some() && survey.first.is_none() => shared.learn(segment.first_seq, times),
            Ok(_) => {}
            Err(error) => {
                // A disk that cannot be read is not a ledger that was changed; verify tells the same.
                log::error("ledger_unreadable", &[("segment", &segment.first_seq), ("error", &error)]);
                return;
            }
        }
    }
    // The newest was read at the start: all before it have been there.
    survey.lost.ends(segments.last().map_or(0, |newest| newest.first_seq));
    match survey.broken() {
        Some(broken) => damage(shared, &broken),
        None => {
            let (segments, ms) = (segments.len() - 1, started.elapsed().as_millis());
            log::info("ledger_checked", &[("older_segments", &segments), ("ms", &ms)]);
        }
    }
}

impl Shared {
    /// Notes the span of time of a segment.
    fn learn(&self, first_seq: u64, times: Option<(u64, u64)>) {
        let mut head = self.lock();
        let known = head.segments.iter_mut().find(|segment| segment.first_seq == first_seq);
        if let Some(segment) = known {
            segment.times = times;
        }
    }
}
