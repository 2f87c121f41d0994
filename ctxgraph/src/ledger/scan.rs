//! Reading a segment: the check of its chain, the verdict on one that ends badly, and the frames that are whole in one that is
//! damaged.
//!
//! Must hold: [`scan`] hands a frame on only after it was found whole and in its place.
//! Must never: take damage for a torn tail where anything shows that the frames had been durable.

use abi::ids::Digest;
use abi::limits;
use std::io;

use super::storage::Storage;
use ::ledger::chain::Chain;
use ::ledger::frame::{self, Frame, FrameError, MAGIC, SEGMENT_HEADER_BYTES_MAX, SegmentHeader};

/// A place between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// First seq of the segment it is in.
    pub segment: u64,
    /// Offset of the next frame in it.
    pub offset: u64,
    /// Seq of the next frame, and so the number of frames before.
    pub seq: u64,
}

/// A frame known to have been durable: its seq and digest.
pub type Witness = (u64, Digest);

/// What is known of the ledger from outside of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Anchors {
    /// The newest receipt that memory.db waited for.
    pub witness: Option<Witness>,
    /// Size and root of a tree that was signed.
    pub checkpoint: Option<(u64, Digest)>,
}

impl Anchors {
    /// What is wrong with a chain that has just taken a frame.
    pub fn contradict(&self, chain: &Chain) -> Option<String> {
        if let (Some((seq, seen)), Some(head)) = (self.witness, chain.head())
            && chain.seq() == seq + 1
            && head != seen
        {
            return Some(format!(
                "event {seq} is {head}, and memory.db has seen {seen}: another or a rewritten ledger"
            ));
        }
        match self.checkpoint {
            Some((size, signed)) if chain.seq() == size && chain.tree().root() != signed => {
                Some(format!("the tree of {size} events is not the one that was signed: a rewritten ledger"))
            }
            _ => None,
        }
    }

    /// Events there have been, at least.
    pub fn size(&self) -> u64 {
        let seen = self.witness.map_or(0, |(seq, _)| seq.saturating_add(1));
        seen.max(self.checkpoint.map_or(0, |(size, _)| size))
    }

    /// What is missing in a ledger of `size` events.
    fn beyond(&self, size: u64) -> Option<String> {
        match (self.witness, self.checkpoint) {
            (Some((seq, _)), _) if seq >= size => {
                Some(format!("memory.db has seen event {seq}: durable events are lost"))
            }
            (_, Some((signed, _))) if signed > size => {
                Some(format!("a tree of {signed} events was signed: durable events are lost"))
            }
            _ => None,
        }
    }
}

/// How far a segment's chain holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// After the last frame that holds; none where the header is wrong.
    pub chain: Option<Chain>,
    /// Where that is.
    pub offset: u64,
    pub broken: Option<FrameError>,
}

/// Checks the first `length` bytes of a segment, handing each good frame, its offset and the chain after it to `sink`. `before` is the chain
/// of the segment before; without one the header's word is taken for it. An error is the disk's; what is wrong in the bytes is in the result.
pub fn scan(
    storage: &dyn Storage,
    length: u64,
    first_seq: u64,
    before: Option<Chain>,
    mut sink: impl FnMut(&Frame, u64, &Chain),
) -> io::Result<Scanned> {
    let mut window = Window::new(storage, length);
    let begun = SegmentHeader::decode(window.at(0, SEGMENT_HEADER_BYTES_MAX)?)
        .and_then(|header| Ok((begin(&header, first_seq, before)?, header.encode().len() as u64)));
    let (mut chain, mut offset) = match begun {
        Ok(begun) => begun,
        Err(error) => return Ok(Scanned { chain: None, offset: 0, broken: Some(error) }),
    };
    while offset < length {
        let taken = frame_at(&mut window, offset)?.and_then(|frame| {
            chain.push(&frame)?;
            Ok(frame)
        });
        match taken {
            Ok(frame) => {
                sink(&frame, offset, &chain);
                offset += frame_bytes(&frame);
            }
            Err(error) => return Ok(Scanned { chain: Some(chain), offset, broken: Some(error) }),
        }
    }
    Ok(Scanned { chain: Some(chain), offset, broken: None })
}

fn begin(header: &SegmentHeader, first_seq: u64, before: Option<Chain>) -> Result<Chain, FrameError> {
    if header.first_seq != first_seq {
        return Err(FrameError::Segment("first seq than its name"));
    }
    match before {
        None => Chain::begin(header),
        Some(mut chain) => {
            chain.go_on(header)?;
            Ok(chain)
        }
    }
}

/// Bytes of a frame in its file.
pub fn frame_bytes(frame: &Frame) -> u64 {
    (frame::HEAD_BYTES + frame.body.len() + frame::DIGEST_BYTES) as u64
}

/// The frame at an offset, whole in itself.
pub fn frame_at(window: &mut Window<'_>, offset: u64) -> io::Result<Result<Frame, FrameError>> {
    let length = match frame::frame_length(window.at(offset, 8)?) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    Ok(frame::decode(window.at(offset, length)?))
}

/// The frames of a segment that are whole in themselves, whatever stands between them.
#[allow(missing_debug_implementations, reason = "storage is not Debug, and bytes tell nobody anything")]
pub struct Frames<'a> {
    window: Window<'a>,
    offset: u64,
}

impl<'a> Frames<'a> {
    /// Those that begin at `offset` or later and end within the first `length` bytes. Offset 0 is the header's.
    pub fn new(storage: &'a dyn Storage, length: u64, offset: u64) -> io::Result<Frames<'a>> {
        let mut window = Window::new(storage, length);
        let offset = match offset {
            0 => SegmentHeader::length(window.at(0, 24)?).map_or(0, |length| length as u64),
            offset => offset,
        };
        Ok(Frames { window, offset })
    }

    /// The next one, and its offset. A body cannot hold a frame: it is JSON text, which has no zero bytes.
    pub fn next_whole(&mut self) -> io::Result<Option<(Frame, u64)>> {
        loop {
            if self.offset >= self.window.length {
                return Ok(None);
            }
            if let Ok(frame) = frame_at(&mut self.window, self.offset)? {
                let at = self.offset;
                self.offset += frame_bytes(&frame);
                return Ok(Some((frame, at)));
            }
            self.skip()?;
        }
    }

    /// Where the next one is looked for.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Moves on to the next bytes that may begin a frame.
    fn skip(&mut self) -> io::Result<()> {
        let from = self.offset + 1;
        let ahead = self.window.at(from, SKIP_BYTES)?;
        if ahead.len() < MAGIC.len() {
            self.offset = self.window.length;
            return Ok(());
        }
        let found = ahead.windows(MAGIC.len()).position(|bytes| bytes == MAGIC);
        // A magic may lie across the end of what was looked at.
        let step = found.unwrap_or(ahead.len() + 1 - MAGIC.len());
        self.offset = from + step as u64;
        Ok(())
    }
}

/// What the end of the newest segment is, after [`scan`] found it wrong or short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// Nothing is wrong.
    Whole,
    /// Bytes of a batch that was never acknowledged, to be cut off at the scan's end.
    Torn { bytes: u64, why: String },
    /// Frames that had been durable are wrong or missing.
    Damaged(String),
}

/// Judges the end of the newest segment. The header was made whole or not at all; all else but the last batch had been durable.
pub fn judge(storage: &dyn Storage, length: u64, scanned: &Scanned, anchors: &Anchors) -> io::Result<Tail> {
    let broken = scanned.broken.as_ref().map_or("the file ends here".into(), ToString::to_string);
    let Some(chain) = &scanned.chain else {
        return Ok(Tail::Damaged(broken));
    };
    if let Some(missing) = anchors.beyond(chain.seq()) {
        return Ok(Tail::Damaged(format!("{broken}, and {missing}")));
    }
    if scanned.broken.is_none() {
        return Ok(Tail::Whole);
    }
    let bytes = length.saturating_sub(scanned.offset);
    if bytes > limits::LEDGER_UNSYNCED_BYTES_MAX as u64 {
        return Ok(Tail::Damaged(broken));
    }
    let mut frames = Frames::new(storage, length, scanned.offset)?;
    while let Some((frame, _)) = frames.next_whole()? {
        if frame.batch > chain.seq() {
            return Ok(Tail::Damaged(format!(
                "{broken}, and event {} was written after it had been durable",
                frame.seq
            )));
        }
    }
    Ok(Tail::Torn { bytes, why: broken })
}

/// Reads until `out` is full or the file ends; returns how many bytes there were.
pub fn read_full(storage: &dyn Storage, out: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match storage.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A moving window over a segment, so that reading forward costs one read for many frames.
#[allow(missing_debug_implementations, reason = "storage is not Debug, and bytes tell nobody anything")]
pub struct Window<'a> {
    storage: &'a dyn Storage,
    length: u64,
    buffer: Vec<u8>,
    start: u64,
}

/// Bytes read at a time; any frame fits.
const WINDOW_BYTES: usize = 128 * 1024;
/// Bytes searched for the next frame at a time.
const SKIP_BYTES: usize = 4096;
const _: () = assert!(frame::FRAME_BYTES_MAX <= WINDOW_BYTES && SKIP_BYTES <= WINDOW_BYTES);

impl<'a> Window<'a> {
    /// A window over the first `length` bytes.
    pub fn new(storage: &'a dyn Storage, length: u64) -> Window<'a> {
        Window { storage, length, buffer: Vec::new(), start: 0 }
    }

    /// Bytes at an offset: `count` of them (at most [`WINDOW_BYTES`]), or fewer where the segment ends.
    pub fn at(&mut self, offset: u64, count: usize) -> io::Result<&[u8]> {
        let count = usize::try_from(self.length.saturating_sub(offset)).map_or(count, |left| left.min(count));
        let inside = |start: u64, held: usize| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            (from + count <= held).then_some(from)
        };
        if inside(self.start, self.buffer.len()).is_none() {
            let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(WINDOW_BYTES);
            self.buffer.resize(left.min(WINDOW_BYTES), 0);
            let read = read_full(self.storage, &mut self.buffer, offset)?;
            self.buffer.truncate(read);
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let held = self.buffer.get(from..).unwrap_or_default();
        Ok(held.get(..count).unwrap_or(held))
    }
}
