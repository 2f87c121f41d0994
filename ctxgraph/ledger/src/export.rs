//! An export: the whole ledger as one stream that a stranger checks with the public key.
//!
//! Must hold: [`Opened::check`] is `Ok` only if every byte is as it was written and the tree is the one that was signed; else it says
//! the first place that is wrong; of one event that was made anew with its digest, that event. Holds one window, whatever the export's size.

use abi::ids::Digest;
use abi::limits;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};

use crate::chain::Chain;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::frame::{self, Frame, FrameError, SEGMENT_HEADER_BYTES_MAX, SegmentHeader};
use crate::keys::{PublicKey, Signer};
use crate::receipt;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    nullbox_export: u32,
    checkpoint: String,
    /// Base64 of the signature of COSE receipts with the checkpoint's root, so that they can be made without the node.
    receipts: String,
}

/// The first line of the export of a ledger as far as a checkpoint.
pub fn head(checkpoint: &Checkpoint, signer: &Signer) -> String {
    head_of(checkpoint.sign(signer), &receipt::sign(signer, &checkpoint.root))
}

fn head_of(note: String, receipts: &[u8]) -> String {
    let head = Head { nullbox_export: 1, checkpoint: note, receipts: STANDARD.encode(receipts) };
    // Two texts and a number are always JSON.
    serde_json::to_string(&head).unwrap_or_default() + "\n"
}

/// A place in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    /// Of the frame, segment header or first line in which the first wrong byte is, from the export's beginning.
    pub offset: u64,
    /// First seq of the segment.
    pub segment: u64,
    /// As `offset`, from the segment's beginning.
    pub segment_offset: u64,
    /// The event that is due there. All before it hold together; that they are right is shown only by an older checkpoint that covers them.
    pub seq: u64,
}

/// Why an export does not hold.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot read the export: {0}")]
    Read(#[from] io::Error),
    #[error("the export's first line is wrong: {0}")]
    Head(String),
    #[error("the export's first line: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "the export is wrong at byte {}, in segment {} at its byte {}, where event {} is due: {why}",
        place.offset, place.segment, place.segment_offset, place.seq
    )]
    Wrong { place: Place, why: String },
    #[error("the ledger was set back, or is another one: {0}")]
    Since(String),
}

impl ExportError {
    /// Where it is wrong; none where the export could not be read, or an older checkpoint speaks against it.
    pub fn place(&self) -> Option<Place> {
        match self {
            ExportError::Read(_) | ExportError::Since(_) => None,
            ExportError::Head(_) | ExportError::Checkpoint(_) => Some(Place::default()),
            ExportError::Wrong { place, .. } => Some(*place),
        }
    }
}

/// What was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub checkpoint: Checkpoint,
    pub segments: u64,
    pub bytes: u64,
}

/// An export of which the first line was read and its signatures checked.
#[derive(Debug)]
pub struct Opened<R> {
    input: Window<R>,
    checkpoint: Checkpoint,
    note: String,
    receipts: Vec<u8>,
}

impl<R: Read> Opened<R> {
    /// Reads the first line.
    pub fn open(input: R, key: &PublicKey) -> Result<Opened<R>, ExportError> {
        let mut input = Window { input, buffer: Vec::new(), from: 0, offset: 0, ended: false };
        let bytes = input.at(limits::LEDGER_EXPORT_HEAD_BYTES_MAX)?;
        let wrong = |why: &str| ExportError::Head(why.into());
        let length = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| wrong("it has no end"))? + 1;
        let line = bytes.get(..length).unwrap_or_default();
        let head: Head =
            serde_json::from_slice(line).map_err(|error| wrong(&format!("it is no export's: {error}")))?;
        let receipts = STANDARD.decode(&head.receipts).map_err(|_| wrong("`receipts` is not base64"))?;
        if head.nullbox_export != 1 || head_of(head.checkpoint.clone(), &receipts).as_bytes() != line {
            return Err(wrong("it is not written as exports of version 1 write it"));
        }
        let checkpoint = Checkpoint::open(&head.checkpoint, key)?;
        // Others may sign a checkpoint beside; of an export nobody could tell such a line from one that was put in.
        if head.checkpoint.split_once("\n\n").is_none_or(|(_, signatures)| signatures.lines().count() != 1) {
            return Err(wrong("its checkpoint has not one signature"));
        }
        if !receipt::has_signed(key, &checkpoint.root, &receipts) {
            return Err(wrong("`receipts` is not the key's signature over the checkpoint's root"));
        }
        input.skip(length);
        Ok(Opened { input, checkpoint, note: head.checkpoint, receipts })
    }

    /// As far as which it goes.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The checkpoint's text.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The signature of COSE receipts with the checkpoint's root.
    pub fn receipts(&self) -> &[u8] {
        &self.receipts
    }

    /// Reads and checks all of it, and that it goes on from an older checkpoint. `each` gets every frame, and its bytes, that is in
    /// its place; only the result says that they are the signed ones.
    pub fn check(
        self,
        since: Option<&Checkpoint>,
        mut each: impl FnMut(&Frame, &[u8]),
    ) -> Result<Checked, ExportError> {
        let Opened { mut input, checkpoint, .. } = self;
        if let Some(since) = since {
            can_go_on(since, &checkpoint)?;
        }
        let mut walk = Walk::begin(&mut input, &checkpoint)?;
        let mut sound = walk.place(input.offset);
        loop {
            if let Some(since) = since.filter(|since| since.size == walk.chain.seq()) {
                if !is_at(&walk.chain, since) {
                    return Err(ExportError::Since(format!(
                        "its first {} events are not those of the older checkpoint",
                        since.size
                    )));
                }
                sound = walk.place(input.offset);
            }
            if walk.chain.seq() == checkpoint.size {
                break;
            }
            walk.step(&mut input, &checkpoint, &mut each)?;
        }
        if !input.at(1)?.is_empty() {
            let why = "bytes follow after the last event of the checkpoint".into();
            return Err(ExportError::Wrong { place: walk.place(input.offset), why });
        }
        if !is_at(&walk.chain, &checkpoint) {
            if let Some(wrong) = walk.last_made_anew(&checkpoint) {
                return Err(wrong);
            }
            let why = "all events hold together, but they are not those that were signed: some event from here on is another";
            return Err(ExportError::Wrong { place: sound, why: why.into() });
        }
        Ok(Checked { checkpoint, segments: walk.segments, bytes: input.offset })
    }
}

/// Whether a checkpoint can be a later one of the same ledger.
pub fn can_go_on(since: &Checkpoint, checkpoint: &Checkpoint) -> Result<(), ExportError> {
    if since.ledger_id != checkpoint.ledger_id {
        return Err(ExportError::Since("the older checkpoint is of another ledger".into()));
    }
    if since.size > checkpoint.size {
        return Err(ExportError::Since(format!(
            "the older checkpoint has {} events, this one {}",
            since.size, checkpoint.size
        )));
    }
    if since.size == checkpoint.size && (since.root, since.head) != (checkpoint.root, checkpoint.head) {
        return Err(ExportError::Since("another ledger of the same size was signed".into()));
    }
    Ok(())
}

fn is_at(chain: &Chain, checkpoint: &Checkpoint) -> bool {
    let head = chain.head().unwrap_or(Digest([0; 32]));
    chain.tree().root() == checkpoint.root && head == checkpoint.head
}

/// How far the check has come.
struct Walk {
    chain: Chain,
    segments: u64,
    /// First seq of the segment, and where it begins in the export.
    segment: u64,
    begins: u64,
    /// Where the newest frame of this segment is.
    last: Option<Place>,
    /// Roots of the tree before it.
    roots: Vec<Digest>,
    spare: Vec<Digest>,
}

impl Walk {
    /// Reads the first segment's header.
    fn begin<R: Read>(input: &mut Window<R>, checkpoint: &Checkpoint) -> Result<Walk, ExportError> {
        let begins = input.offset;
        let wrong =
            |why: String| ExportError::Wrong { place: Place { offset: begins, ..Place::default() }, why };
        let (length, header) = next_header(input)?.map_err(|error| wrong(error.to_string()))?;
        input.skip(length);
        if header.first_seq != 0 {
            return Err(wrong("the first segment of a ledger begins with event 0".into()));
        }
        if header.ledger_id != checkpoint.ledger_id {
            return Err(wrong("the ledger's id is not that of the checkpoint".into()));
        }
        let chain = Chain::begin(&header).map_err(|error| wrong(error.to_string()))?;
        Ok(Walk { chain, segments: 1, segment: 0, begins, last: None, roots: Vec::new(), spare: Vec::new() })
    }

    fn place(&self, offset: u64) -> Place {
        Place { offset, segment: self.segment, segment_offset: offset - self.begins, seq: self.chain.seq() }
    }

    /// Takes the next frame, or the next segment's header.
    fn step<R: Read>(
        &mut self,
        input: &mut Window<R>,
        checkpoint: &Checkpoint,
        each: &mut impl FnMut(&Frame, &[u8]),
    ) -> Result<(), ExportError> {
        let mut place = self.place(input.offset);
        let seq = self.chain.seq();
        if input.at(8)?.is_empty() {
            let why = format!("the export ends here, and its checkpoint has {} events", checkpoint.size);
            return Err(ExportError::Wrong { place, why });
        }
        let taken = if seq > self.segment && frame::begins_segment(input.at(8)?) {
            place = Place { segment: seq, segment_offset: 0, ..place };
            self.header(input)?
        } else {
            self.frame(input, each)?
        };
        let Err(error) = taken else { return Ok(()) };
        if matches!(error, FrameError::Previous | FrameError::Segment(_))
            && let Some(wrong) = self.made_anew(input, checkpoint)?
        {
            return Err(wrong);
        }
        Err(ExportError::Wrong { place, why: error.to_string() })
    }

    fn header<R: Read>(&mut self, input: &mut Window<R>) -> io::Result<Result<(), FrameError>> {
        let begins = input.offset;
        let taken =
            next_header(input)?.and_then(|(length, header)| self.chain.go_on(&header).map(|()| length));
        Ok(taken.map(|length| {
            input.skip(length);
            (self.segment, self.begins, self.segments) = (self.chain.seq(), begins, self.segments + 1);
            self.last = None;
        }))
    }

    fn frame<R: Read>(
        &mut self,
        input: &mut Window<R>,
        each: &mut impl FnMut(&Frame, &[u8]),
    ) -> io::Result<Result<(), FrameError>> {
        let place = self.place(input.offset);
        let (length, frame) = match next_frame(input)? {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        self.spare.clear();
        self.spare.extend_from_slice(self.chain.tree().roots());
        if let Err(error) = self.chain.push(&frame) {
            return Ok(Err(error));
        }
        std::mem::swap(&mut self.roots, &mut self.spare);
        self.last = Some(place);
        each(&frame, input.at(length)?);
        input.skip(length);
        Ok(Ok(()))
    }

    /// The newest frame is not the one that the next piece, which does not follow it, was written after: where all pieces from that on hold
    /// together and end in the signed head, they are the signed ones, and so that frame was made anew. None where they do not.
    fn made_anew<R: Read>(
        &self,
        input: &mut Window<R>,
        checkpoint: &Checkpoint,
    ) -> io::Result<Option<ExportError>> {
        let read = if frame::begins_segment(input.at(8)?) {
            next_header(input)?.map(|(_, header)| (header.previous, self.chain.seq()))
        } else {
            next_frame(input)?.map(|(_, frame)| (frame.previous, frame.batch))
        };
        let Ok((digest, batch)) = read else { return Ok(None) };
        let Some(place) = self.last else {
            return self.header_made_anew(input, checkpoint, digest);
        };
        // A frame that was written after a segment's header: only that is missing.
        if digest == self.chain.next_header().digest() {
            return Ok(None);
        }
        let Some(chain) = self.chain.amended(self.roots.clone(), digest, batch) else {
            return Ok(None);
        };
        let Some(Rest { chain, adopted }) = Rest::read(input, chain, self.segment, checkpoint.size)? else {
            return Ok(None);
        };
        if chain.head() != Some(checkpoint.head) {
            return Ok(None);
        }
        let why = match !adopted && chain.tree().root() == checkpoint.root {
            true => "this event was made anew; all others are those that were signed",
            false => {
                "this event was made anew, and some before it; those after it are the ones that were signed"
            }
        };
        Ok(Some(ExportError::Wrong { place, why: why.into() }))
    }

    /// As [`Walk::made_anew`] of the first header, whose version only the first frame covers.
    fn header_made_anew<R: Read>(
        &self,
        input: &mut Window<R>,
        checkpoint: &Checkpoint,
        digest: Digest,
    ) -> io::Result<Option<ExportError>> {
        if self.chain.seq() > 0 {
            return Ok(None);
        }
        let rest = Rest::read(input, self.chain.after(digest), 0, checkpoint.size)?;
        let place = Place { offset: self.begins, ..Place::default() };
        let why = "the segment's header was made anew; all events are those that were signed".into();
        let is_signed = rest.is_some_and(|rest| is_at(&rest.chain, checkpoint));
        Ok(is_signed.then_some(ExportError::Wrong { place, why }))
    }

    /// As [`Walk::made_anew`] of the last frame of all, of which the checkpoint has the digest.
    fn last_made_anew(&self, checkpoint: &Checkpoint) -> Option<ExportError> {
        let chain = self.chain.amended(self.roots.clone(), checkpoint.head, self.chain.seq())?;
        let why = "this event was made anew; all others are those that were signed".into();
        let place = self.last.filter(|_| chain.tree().root() == checkpoint.root)?;
        Some(ExportError::Wrong { place, why })
    }
}

/// What follows a frame that was made anew.
struct Rest {
    chain: Chain,
    /// A header's word was taken for the tree before it.
    adopted: bool,
}

impl Rest {
    /// Goes on from a chain to the end, in the segment that begins with event `segment`. None where the pieces do not hold together.
    fn read<R: Read>(
        input: &mut Window<R>,
        chain: Chain,
        mut segment: u64,
        size: u64,
    ) -> io::Result<Option<Rest>> {
        let mut rest = Rest { chain, adopted: false };
        while rest.chain.seq() < size {
            let length = if rest.chain.seq() > segment && frame::begins_segment(input.at(8)?) {
                let Ok((length, header)) = next_header(input)? else { return Ok(None) };
                segment = rest.chain.seq();
                rest.header(&header).map(|()| length)
            } else {
                let Ok((length, frame)) = next_frame(input)? else { return Ok(None) };
                rest.chain.push(&frame).ok().map(|()| length)
            };
            let Some(length) = length else { return Ok(None) };
            input.skip(length);
        }
        Ok(Some(rest))
    }

    /// Where events before the last were made anew too, only the header has the tree that was signed; the frame after it covers the header.
    fn header(&mut self, header: &SegmentHeader) -> Option<()> {
        if self.chain.go_on(header).is_err() {
            let due = self.chain.next_header();
            let follows = SegmentHeader { frontier: header.frontier.clone(), ..due } == *header;
            self.chain = Chain::begin(header).ok().filter(|_| follows)?;
            self.adopted = true;
        }
        Some(())
    }
}

/// The segment header that is next, and its bytes.
fn next_header<R: Read>(input: &mut Window<R>) -> io::Result<Result<(usize, SegmentHeader), FrameError>> {
    let bytes = input.at(SEGMENT_HEADER_BYTES_MAX)?;
    Ok(SegmentHeader::length(bytes).and_then(|length| Ok((length, SegmentHeader::decode(bytes)?))))
}

/// The frame that is next, and its bytes.
fn next_frame<R: Read>(input: &mut Window<R>) -> io::Result<Result<(usize, Frame), FrameError>> {
    let length = match frame::frame_length(input.at(8)?) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    Ok(frame::decode(input.at(length)?).map(|frame| (length, frame)))
}

/// Bytes read at a time; the first line, any header and any frame fit.
const WINDOW_BYTES: usize = 128 * 1024;
const _: () = assert!(frame::FRAME_BYTES_MAX <= WINDOW_BYTES && SEGMENT_HEADER_BYTES_MAX <= WINDOW_BYTES);
const _: () = assert!(limits::LEDGER_EXPORT_HEAD_BYTES_MAX <= WINDOW_BYTES);

/// What was read ahead.
#[derive(Debug)]
struct Window<R> {
    input: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are done with.
    from: usize,
    /// Where the rest begins in the export.
    offset: u64,
    ended: bool,
}

impl<R: Read> Window<R> {
    /// The next `count` bytes (at most [`WINDOW_BYTES`]), or fewer where the export ends.
    fn at(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.buffer.len() - self.from < count && !self.ended {
            self.buffer.drain(..self.from);
            self.from = 0;
            let held = self.buffer.len();
            self.buffer.resize(WINDOW_BYTES, 0);
            let read = self.input.read(self.buffer.get_mut(held..).unwrap_or_default());
            self.buffer.truncate(held + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => self.ended = true,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        let held = self.buffer.get(self.from..).unwrap_or_default();
        Ok(held.get(..count).unwrap_or(held))
    }

    /// Goes on behind bytes that [`Window::at`] gave.
    fn skip(&mut self, count: usize) {
        self.from += count;
        self.offset += count as u64;
    }
}
