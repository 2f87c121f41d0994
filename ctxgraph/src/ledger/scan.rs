//! Reading the ledger from its beginning: the check of the whole chain, and the verdict on a file that ends badly.
//!
//! Must hold: a frame is handed on only after it was found whole and in its place.
//! Must never: take damage for a torn tail where anything shows that the frames had been durable.

use abi::control::Broken;
use abi::ids::Digest;
use abi::limits;
use std::io;

use super::storage::Storage;
use ::ledger::frame::{self, Frame, FrameError, MAGIC, SEGMENT_HEADER_BYTES, SegmentHeader};

/// A place between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Seq of the next frame, and so the number of frames before.
    pub seq: u64,
    /// Digest of the last frame, or of the segment header.
    pub head: Digest,
    /// Offset of the next frame.
    pub offset: u64,
}

/// How far the chain holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    pub end: Point,
    pub broken: Option<Broken>,
}

/// Checks a segment up to `length` bytes, handing each good frame and its offset to `sink`. An error is the disk's; what is wrong in
/// the bytes is in the result.
pub fn scan(storage: &dyn Storage, length: u64, mut sink: impl FnMut(&Frame, u64)) -> io::Result<Scanned> {
    let mut window = Window::new(storage, length);
    let mut end = Point { seq: 0, head: Digest([0; 32]), offset: 0 };
    let header = match SegmentHeader::decode(window.at(0, SEGMENT_HEADER_BYTES)?) {
        Ok(header) if header.first_seq == 0 && header.previous == Digest([0; 32]) => header,
        Ok(_) => return Ok(broken_at(end, &FrameError::Header)),
        Err(error) => return Ok(broken_at(end, &error)),
    };
    end.head = header.digest();
    end.offset = SEGMENT_HEADER_BYTES as u64;
    let mut batch = 0;
    while end.offset < length {
        let checked = frame_at(&mut window, end.offset)?.and_then(|frame| follows(&end, batch, frame));
        match checked {
            Ok(frame) => {
                sink(&frame, end.offset);
                batch = frame.batch;
                end = after(end, &frame);
            }
            Err(error) => return Ok(broken_at(end, &error)),
        }
    }
    Ok(Scanned { end, broken: None })
}

fn broken_at(end: Point, error: &FrameError) -> Scanned {
    let broken = Broken { seq: end.seq, offset: end.offset, why: error.to_string() };
    Scanned { end, broken: Some(broken) }
}

/// Whether a frame may stand at `end`, after one with `batch`.
fn follows(end: &Point, batch: u64, frame: Frame) -> Result<Frame, FrameError> {
    if frame.seq != end.seq {
        return Err(FrameError::Seq { found: frame.seq, expected: end.seq });
    }
    if frame.previous != end.head {
        return Err(FrameError::Previous);
    }
    // A batch begins with the frame that names itself; the rest of it repeats that number.
    if frame.batch != frame.seq && (frame.batch != batch || frame.seq == 0) {
        return Err(FrameError::Batch(frame.batch));
    }
    Ok(frame)
}

fn after(end: Point, frame: &Frame) -> Point {
    Point {
        seq: end.seq + 1,
        head: frame.digest,
        offset: end.offset + (frame::HEAD_BYTES + frame.body.len() + frame::DIGEST_BYTES) as u64,
    }
}

/// The frame at an offset, whole in itself.
pub fn frame_at(window: &mut Window<'_>, offset: u64) -> io::Result<Result<Frame, FrameError>> {
    let length = match frame::frame_length(window.at(offset, 8)?) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    Ok(frame::decode(window.at(offset, length)?))
}

/// What the end of a file is, after [`scan`] found it wrong or short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// Nothing is wrong.
    Whole,
    /// Bytes of a batch that was never acknowledged, to be cut off at the scan's end.
    Torn { bytes: u64, why: String },
    /// Frames that had been durable are wrong or missing.
    Damaged(Broken),
}

/// A frame known to have been durable: its seq and digest.
pub type Witness = (u64, Digest);

/// Judges the end of a file. `witnessed` is the digest found at the witness's seq, if the scan came that far.
pub fn judge(
    storage: &dyn Storage,
    length: u64,
    scanned: &Scanned,
    witness: Option<Witness>,
    witnessed: Option<Digest>,
) -> io::Result<Tail> {
    let damaged =
        |why: String| Ok(Tail::Damaged(Broken { seq: scanned.end.seq, offset: scanned.end.offset, why }));
    if let Some((seq, digest)) = witness {
        let found = scanned.broken.as_ref().map_or("the file ends here", |b| b.why.as_str());
        match witnessed {
            Some(found) if found == digest => {}
            Some(found) => {
                let why = format!(
                    "event {seq} is {found}, and memory.db has seen {digest}: another or a rewritten ledger"
                );
                return damaged(why);
            }
            None => {
                return damaged(format!(
                    "{found}, and memory.db has seen event {seq}: durable events are lost"
                ));
            }
        }
    }
    let Some(broken) = &scanned.broken else {
        return Ok(Tail::Whole);
    };
    if scanned.end.offset < SEGMENT_HEADER_BYTES as u64 {
        return Ok(Tail::Damaged(broken.clone())); // the header is made whole or not at all
    }
    let bytes = length.saturating_sub(scanned.end.offset);
    if bytes > limits::LEDGER_UNSYNCED_BYTES_MAX as u64 {
        return Ok(Tail::Damaged(broken.clone()));
    }
    let mut tail = vec![0; usize::try_from(bytes).unwrap_or(0)];
    let read = read_full(storage, &mut tail, scanned.end.offset)?;
    tail.truncate(read);
    let later = tail.windows(MAGIC.len()).enumerate().filter(|(_, w)| *w == MAGIC);
    for (at, _) in later {
        let whole = frame::decode(tail.get(at..).unwrap_or_default());
        if let Some(frame) = whole.ok().filter(|frame| frame.batch > scanned.end.seq) {
            return damaged(format!(
                "{}, and event {} was written after it had been durable",
                broken.why, frame.seq
            ));
        }
    }
    Ok(Tail::Torn { bytes, why: broken.why.clone() })
}

fn read_full(storage: &dyn Storage, out: &mut [u8], offset: u64) -> io::Result<usize> {
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
const _: () = assert!(frame::FRAME_BYTES_MAX <= WINDOW_BYTES);

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
