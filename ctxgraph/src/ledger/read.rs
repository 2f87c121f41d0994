//! Reading events: the newest, those that follow, those that are asked for; and the bytes and digests that proofs are made of.
//!
//! Must hold: only durable frames are shown, each whole in itself; of a damaged ledger all those that are.
//! Must never: hold the chain's lock while the disk is read.

use abi::control::{LedgerFound, LedgerQuery, Recorded};
use abi::ids::{AgentName, Digest, Instance};
use abi::{limits, log};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;

use super::head::{Segment, Shared, push_newest};
use super::scan::{self, Frames, Point, Window};
use super::storage::{Lenient, Storage, is_of_the_file};
use super::{Ledger, ReadError};
use ::ledger::frame::{self, Frame, FrameError, SegmentHeader};

impl Ledger {
    /// The newest durable events, oldest first: at most `count` of them and `bytes_max` of their JSON, and the point after them.
    pub fn tail(&self, count: usize, bytes_max: usize) -> Result<(Vec<Recorded>, Point), ReadError> {
        self.find_newest(count)?;
        let (points, end) = {
            let head = self.shared.lock();
            let points: Vec<Point> = head.newest.iter().rev().take(count).copied().collect();
            (points, head.end())
        };
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut file = Lenient::new(self.shared.open(end.segment)?);
        let mut opened = end.segment;
        for point in points {
            if point.segment != opened {
                file = Lenient::new(self.shared.open(point.segment)?);
                opened = point.segment;
            }
            // A frame that was changed behind our back is left out, as every reader leaves it out.
            let frame = read_frame(&file, point.offset)?.ok();
            let Some(event) = frame.as_ref().and_then(recorded) else {
                continue;
            };
            bytes += json_bytes(&event);
            if bytes > bytes_max {
                break;
            }
            events.push(event);
        }
        events.reverse();
        Ok((events, end))
    }

    /// After a start only the newest segment's frames are known: looks for those before them.
    fn find_newest(&self, count: usize) -> Result<(), ReadError> {
        loop {
            let (front, before) = {
                let head = self.shared.lock();
                if head.newest.len() >= count.min(limits::LEDGER_PAGE_MAX) {
                    return Ok(());
                }
                let front = head.newest.front().copied();
                let first = front.map_or(head.end().segment, |point| point.segment);
                let older = head.segments.iter().rev().find(|segment| segment.first_seq < first);
                (front, older.copied())
            };
            let Some(segment) = before else {
                return Ok(());
            };
            let mut found = VecDeque::new();
            let from = Point { segment: segment.first_seq, offset: 0, seq: segment.first_seq };
            let end = Point { offset: segment.bytes, ..from };
            walk(&self.shared, &[segment], from, end, |_, point| {
                push_newest(&mut found, point);
                true
            })?;
            if found.is_empty() {
                return Ok(());
            }
            let mut head = self.shared.lock();
            if head.newest.front().copied() != front {
                continue;
            }
            while let Some(point) = found.pop_back().filter(|_| head.newest.len() < limits::LEDGER_PAGE_MAX) {
                head.newest.push_front(point);
            }
        }
    }

    /// Hands on the durable events from `from` until `sink` says stop; returns the point after the last one handed on.
    pub fn read_from(&self, from: Point, mut sink: impl FnMut(Recorded) -> bool) -> Result<Point, ReadError> {
        let (segments, end) = self.extent();
        walk(&self.shared, &segments, from, end, |frame, _| recorded(frame).is_none_or(&mut sink))
    }

    /// The point before an event.
    pub fn point_of(&self, seq: u64) -> Point {
        let head = self.shared.lock();
        let segment = head.segments.iter().rev().find(|segment| segment.first_seq <= seq);
        Point { segment: segment.map_or(0, |segment| segment.first_seq), offset: 0, seq }
    }

    /// Events that meet all of what is asked, oldest first: at most `bytes_max` of JSON, out of at most
    /// [`limits::LEDGER_QUERY_BYTES_MAX`] of the ledger.
    pub fn query(&self, asked: &LedgerQuery, bytes_max: usize) -> Result<LedgerFound, ReadError> {
        let (mut segments, end) = self.extent();
        let (since, until) = (asked.since_unix_ms.unwrap_or(0), asked.until_unix_ms.unwrap_or(u64::MAX));
        // The clock may jump, so a segment is passed over only where its whole span is known to lie outside.
        segments.retain(|segment| segment.times.is_none_or(|(first, last)| first <= until && last >= since));
        let limit = asked.limit.map_or(100, |limit| limit as usize).clamp(1, limits::LEDGER_PAGE_MAX);
        let (mut events, mut bytes, mut looked, mut next_seq) = (Vec::new(), 0, 0, None);
        walk(&self.shared, &segments, self.point_of(asked.from_seq), end, |frame, _| {
            if events.len() == limit || looked >= limits::LEDGER_QUERY_BYTES_MAX {
                next_seq = Some(frame.seq);
                return false;
            }
            looked += scan::frame_bytes(frame);
            if !(since..=until).contains(&frame.unix_ms) || !is_asked(asked, frame) {
                return true;
            }
            let Some(event) = recorded(frame) else {
                return true;
            };
            bytes += json_bytes(&event);
            if bytes > bytes_max && !events.is_empty() {
                next_seq = Some(frame.seq);
                return false;
            }
            events.push(event);
            true
        })?;
        Ok(LedgerFound { events, next_seq })
    }

    /// Digests of the first `size` frames, in order. They are as the file has them: whoever uses them compares the root they make.
    pub fn digests(&self, size: u64, mut sink: impl FnMut(Digest)) -> Result<(), ReadError> {
        let (segments, end) = self.extent();
        for (index, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.first_seq < size) {
            let until = segments.get(index + 1).map_or(size, |next| next.first_seq.min(size));
            let bytes = if segment.first_seq == end.segment { end.offset } else { segment.bytes };
            self.outline(segment.first_seq, bytes, until, &mut sink)?;
        }
        Ok(())
    }

    /// The segments that hold the first `size` frames: first seq, and bytes as far as those frames.
    pub fn segments(&self, size: u64) -> Result<Vec<(u64, u64)>, ReadError> {
        let (segments, end) = self.extent();
        let mut held: Vec<(u64, u64)> = segments
            .iter()
            .filter(|segment| segment.first_seq < size || segment.first_seq == 0)
            .map(|segment| (segment.first_seq, segment.bytes))
            .collect();
        let after_last = segments.get(held.len()).map(|segment| segment.first_seq);
        if let Some((first_seq, bytes)) = held.last_mut() {
            match after_last {
                Some(next) if next == size => {}
                None if end.seq == size => *bytes = end.offset,
                _ => *bytes = self.outline(*first_seq, *bytes, size, &mut |_| {})?.offset,
            }
        }
        Ok(held)
    }

    /// Reads bytes of a segment; fewer at its end.
    pub fn read_segment(&self, first_seq: u64, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        scan::read_full(self.shared.open(first_seq)?.as_ref(), out, offset)
    }

    /// The frame of an event, as bytes.
    pub fn frame(&self, seq: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let (segments, end) = self.extent();
        let mut found = None;
        walk(&self.shared, &segments, self.point_of(seq), end, |frame, point| {
            found = (frame.seq == seq).then_some((point, scan::frame_bytes(frame)));
            false
        })?;
        let Some((point, length)) = found else {
            return Ok(None);
        };
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.read_segment(point.segment, point.offset, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn extent(&self) -> (Vec<Segment>, Point) {
        let head = self.shared.lock();
        (head.segments.clone(), head.end())
    }

    /// Goes over a segment's frames up to the seq `until` by their lengths alone.
    fn outline(
        &self,
        first_seq: u64,
        bytes: u64,
        until: u64,
        sink: &mut impl FnMut(Digest),
    ) -> Result<Point, ReadError> {
        let file = self.shared.open(first_seq)?;
        let mut window = Window::new(file.as_ref(), bytes);
        let wrong = |offset, error: FrameError| ReadError::Wrong(first_seq, offset, error.to_string());
        let header = SegmentHeader::length(window.at(0, 24)?).map_err(|error| wrong(0, error))?;
        let mut at = Point { segment: first_seq, offset: header as u64, seq: first_seq };
        while at.seq < until {
            let length =
                frame::frame_length(window.at(at.offset, 8)?).map_err(|error| wrong(at.offset, error))?;
            let frame = window.at(at.offset, length)?;
            let digest = frame.split_at_checked(length - frame::DIGEST_BYTES).map(|(_, digest)| digest);
            let digest: [u8; 32] = digest
                .and_then(|digest| digest.try_into().ok())
                .ok_or_else(|| wrong(at.offset, FrameError::Cut))?;
            sink(Digest(digest));
            at.offset += length as u64;
            at.seq += 1;
        }
        Ok(at)
    }
}

/// Hands on the frames between two points that are whole in themselves and in the order of their seqs, with their places, until `sink` says stop.
/// Returns the point after the last one that was handed on and wanted more; `end` where none is left.
fn walk(
    shared: &Shared,
    segments: &[Segment],
    from: Point,
    end: Point,
    mut sink: impl FnMut(&Frame, Point) -> bool,
) -> Result<Point, ReadError> {
    let mut at = from;
    let between = |segment: &&Segment| (from.segment..=end.segment).contains(&segment.first_seq);
    for segment in segments.iter().filter(between) {
        let first_seq = segment.first_seq;
        let file = match shared.open(first_seq) {
            Err(error) if is_of_the_file(&error) => continue, // verify tells
            file => Lenient::new(file?),
        };
        let length = if first_seq == end.segment { end.offset } else { segment.bytes };
        let start = if first_seq == from.segment { from.offset } else { 0 };
        let mut frames = Frames::new(&file, length, start)?;
        while let Some((frame, offset)) = frames.next_whole()? {
            if frame.seq < at.seq {
                continue;
            }
            let goes_on = sink(&frame, Point { segment: first_seq, offset, seq: frame.seq });
            at = Point { segment: first_seq, offset: frames.offset(), seq: frame.seq.saturating_add(1) };
            if !goes_on {
                return Ok(at);
            }
        }
    }
    // Where the last frames are not whole there is nothing more to wait for at their place.
    Ok(if at.seq < end.seq { end } else { at })
}

fn read_frame(file: &dyn Storage, offset: u64) -> io::Result<Result<Frame, FrameError>> {
    let mut head = [0; 8];
    let read = scan::read_full(file, &mut head, offset)?;
    let length = match frame::frame_length(head.get(..read).unwrap_or_default()) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    let mut bytes = vec![0; length];
    let read = scan::read_full(file, &mut bytes, offset)?;
    Ok(frame::decode(bytes.get(..read).unwrap_or_default()))
}

/// What a query looks at in an event's body.
#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(default)]
    agent: Option<AgentName>,
    #[serde(default)]
    instance: Option<Instance>,
    /// `agent NAME` where an agent wrote to another's memory.
    #[serde(default, borrow)]
    writer: Option<Cow<'a, str>>,
    /// `forgotten by agent NAME` where it let something of another's be forgotten.
    #[serde(default, borrow)]
    why: Option<Cow<'a, str>>,
}

fn is_asked(asked: &LedgerQuery, frame: &Frame) -> bool {
    if asked.source.as_ref().is_some_and(|source| source != frame.source.name()) {
        return false;
    }
    if asked.agent.is_none() && asked.events.is_empty() {
        return true;
    }
    let Ok(outline) = serde_json::from_slice::<Outline<'_>>(&frame.body) else {
        return false;
    };
    let of_agent = |agent: &AgentName| {
        outline.agent.as_ref() == Some(agent)
            || outline.instance.as_ref().is_some_and(|instance| instance.agent == *agent)
            || is_agent(outline.writer.as_deref(), agent)
            || is_agent(outline.why.as_deref().and_then(|why| why.strip_prefix("forgotten by ")), agent)
    };
    asked.agent.as_ref().is_none_or(of_agent)
        && (asked.events.is_empty() || asked.events.iter().any(|event| *event == outline.event))
}

/// Whether an author, in words, is this agent.
fn is_agent(author: Option<&str>, agent: &AgentName) -> bool {
    author.and_then(|author| author.strip_prefix("agent ")).is_some_and(|name| name == agent.as_str())
}

/// The event in a frame; none if its kind is of a later version of NullBox.
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

/// What an event takes in an answer.
fn json_bytes(event: &Recorded) -> usize {
    serde_json::to_vec(event).map_or(limits::LINE_BYTES_MAX, |json| json.len() + 1)
}
