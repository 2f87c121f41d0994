//! The check of the chain, frame by frame: whoever reads frames, from a disk or from an export, asks here whether they belong.
//!
//! Must hold: a frame is taken only in its place, after the frame or the segment header before it.

use abi::ids::Digest;

use crate::frame::{Draft, Frame, FrameError, SegmentHeader, Source};
use crate::merkle::Frontier;

/// What must hold of the next frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    ledger_id: [u8; 32],
    /// Seq of the next frame, and so the number of frames before.
    seq: u64,
    /// Digest of the last frame; zero before the first.
    last: Digest,
    /// What the next frame has as the digest before it.
    before: Digest,
    batch: u64,
    tree: Frontier,
}

impl Chain {
    /// From a segment's beginning, taking its header's word for all before it. For a ledger's first segment there is nothing before.
    pub fn begin(header: &SegmentHeader) -> Result<Chain, FrameError> {
        let tree = Frontier::at(header.first_seq, header.frontier.clone()).ok_or(FrameError::Header)?;
        if header.first_seq == 0 && header.previous != Digest([0; 32]) {
            return Err(FrameError::Header);
        }
        Ok(Chain {
            ledger_id: header.ledger_id,
            seq: header.first_seq,
            last: header.previous,
            before: header.digest(),
            batch: header.first_seq,
            tree,
        })
    }

    /// Goes on in the next segment.
    pub fn go_on(&mut self, header: &SegmentHeader) -> Result<(), FrameError> {
        let due = self.next_header();
        let wrong = match () {
            () if header.ledger_id != due.ledger_id => "ledger id",
            () if header.first_seq != due.first_seq => "first seq",
            () if header.previous != due.previous => "last frame",
            () if header.frontier != due.frontier => "tree",
            () if header.version != due.version => "version",
            () => {
                self.before = header.digest();
                self.batch = self.seq; // a segment ends with its batch
                return Ok(());
            }
        };
        Err(FrameError::Segment(wrong))
    }

    /// The header of a segment that begins here.
    pub fn next_header(&self) -> SegmentHeader {
        SegmentHeader {
            version: 2,
            first_seq: self.seq,
            ledger_id: self.ledger_id,
            previous: self.last,
            frontier: self.tree.roots().to_vec(),
        }
    }

    /// Takes the next frame.
    pub fn push(&mut self, frame: &Frame) -> Result<(), FrameError> {
        if frame.seq != self.seq || frame.seq == u64::MAX {
            return Err(FrameError::Seq { found: frame.seq, expected: self.seq });
        }
        if frame.previous != self.before {
            return Err(FrameError::Previous);
        }
        // A batch begins with the frame that names itself; the rest of it repeats that number.
        if frame.batch != frame.seq && (frame.batch != self.batch || frame.seq == 0) {
            return Err(FrameError::Batch(frame.batch));
        }
        self.take(frame.batch, frame.digest);
        Ok(())
    }

    /// The same with another digest of the last frame, and another batch that the next one may belong to. `roots` are the tree's before the last
    /// frame. None where they are not.
    pub(crate) fn amended(&self, roots: Vec<Digest>, last: Digest, batch: u64) -> Option<Chain> {
        let mut tree = Frontier::at(self.seq.checked_sub(1)?, roots)?;
        tree.push(&last);
        Some(Chain { last, before: last, batch, tree, ..self.clone() })
    }

    /// The same with another digest before the next frame.
    pub(crate) fn after(&self, before: Digest) -> Chain {
        Chain { before, ..self.clone() }
    }

    /// Makes the next frame, adds its bytes to `out` and takes it. `batch` is the seq of the first frame of its batch; the body
    /// has 1 to [`abi::limits::LEDGER_EVENT_BYTES_MAX`] bytes.
    pub fn append(
        &mut self,
        batch: u64,
        unix_ms: u64,
        source: Source,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Digest {
        let draft = Draft { seq: self.seq, batch, unix_ms, source, previous: self.before, body };
        let digest = draft.encode(out);
        self.take(batch, digest);
        digest
    }

    fn take(&mut self, batch: u64, digest: Digest) {
        self.seq = self.seq.saturating_add(1);
        self.batch = batch;
        self.last = digest;
        self.before = digest;
        self.tree.push(&digest);
    }

    /// Seq of the next frame.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Digest of the last frame, none before the first.
    pub fn head(&self) -> Option<Digest> {
        (self.seq > 0).then_some(self.last)
    }

    /// What the next frame has as the digest before it.
    pub fn before(&self) -> Digest {
        self.before
    }

    /// The tree over all frames before.
    pub fn tree(&self) -> &Frontier {
        &self.tree
    }

    pub fn ledger_id(&self) -> &[u8; 32] {
        &self.ledger_id
    }
}
