//! The bytes of the ledger: segment header and frames. The format is docs/formats/ctxgraph.md.
//!
//! Must hold: a frame decodes only if every byte of it is as it was encoded.
//! Must never: panic on any bytes.

use abi::identity::{Caller, Service};
use abi::ids::Digest;
use abi::ledger::Event;
use abi::limits;
use sha2::{Digest as _, Sha256};

/// Bytes of the segment header before the roots of its tree.
pub const SEGMENT_HEADER_BYTES: usize = 96;
/// The largest segment header.
pub const SEGMENT_HEADER_BYTES_MAX: usize = SEGMENT_HEADER_BYTES + 64 * 32;
/// Bytes of a frame before its body.
pub const HEAD_BYTES: usize = 68;
/// Bytes of a frame after its body.
pub const DIGEST_BYTES: usize = 32;
/// The largest frame.
pub const FRAME_BYTES_MAX: usize = HEAD_BYTES + limits::LEDGER_EVENT_BYTES_MAX + DIGEST_BYTES;
/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"NBF1";

const SEGMENT_MAGIC: [u8; 8] = *b"NBLEDGER";
const KIND_EVENT: u8 = 1;

/// What is wrong with bytes that should be a frame or a segment header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the file ends within a segment header")]
    HeaderCut,
    #[error("not a ledger segment of version 1 or 2")]
    Header,
    #[error("the file ends within a frame")]
    Cut,
    #[error("no frame begins here")]
    Magic,
    #[error("the frame's length is {0}")]
    Length(u32),
    #[error("the frame's bytes do not have the frame's digest")]
    Digest,
    #[error("the frame has seq {found}, {expected} was due")]
    Seq { found: u64, expected: u64 },
    #[error("the frame does not follow the one before it")]
    Previous,
    #[error("the frame says batch {0}, which is not between the last frame's and its own seq")]
    Batch(u64),
    #[error("the frame has an unknown source, kind or reserved bytes")]
    Unknown,
    #[error("the segment does not go on from the one before it: another {0}")]
    Segment(&'static str),
}

/// Who wrote an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Root, and the event does not show which service.
    Root,
    Service(Service),
}

impl Source {
    /// The writer of an event that came from a caller. nulld and cage both run as root, so for root the kind of the event
    /// decides between them: it is what root said of itself, not what the ledger knows.
    pub fn of(caller: &Caller, event: &Event) -> Source {
        match caller {
            Caller::Service { service } => Source::Service(*service),
            _ => Source::of_root(event),
        }
    }

    /// No wildcard: whoever adds an event says here whose it is.
    #[rustfmt::skip]
    fn of_root(event: &Event) -> Source {
        match event {
            Event::NodeBooted { .. } | Event::NodeStopping { .. } | Event::NulldCrashed { .. } | Event::ClockChanged { .. }
            | Event::ServiceStarted { .. } | Event::ServiceExited { .. } | Event::CallRefused { .. } | Event::CallMade { .. } => Source::Service(Service::Nulld),
            Event::RootfsImported { .. } | Event::ImageRemoved { .. } | Event::AgentStarting { .. } | Event::AgentReady { .. }
            | Event::AgentStopping { .. } | Event::AgentExited { .. } | Event::AgentCreated { .. } | Event::AgentPaused { .. }
            | Event::AgentResumed { .. } | Event::AgentQuarantined { .. } | Event::AgentKilled { .. }
            | Event::AgentRestarting { .. } | Event::AgentUnhealthy { .. } | Event::AgentRemoved { .. }
            | Event::AgentAttached { .. } | Event::EvidenceRead { .. } | Event::EvidenceRemoved { .. } | Event::ExecStarted { .. }
            | Event::FilesRead { .. } | Event::FilesWritten { .. } | Event::SnapshotTaken { .. } | Event::SnapshotRemoved { .. }
            | Event::VolumeCreated { .. } | Event::VolumeRemoved { .. } | Event::PortConnected { .. } | Event::ToolCalled { .. }
            | Event::ApprovalAsked { .. } | Event::ApprovalDecided { .. } | Event::ToolExposed { .. } | Event::Declassified { .. }
            | Event::AuthorityTightened { .. } | Event::BudgetExhausted { .. }
            | Event::TaskAccepted { .. } | Event::TaskClaimed { .. } | Event::ClaimRefused { .. } | Event::VerifyFailed { .. }
            | Event::TaskPaused { .. } | Event::TaskResumed { .. } | Event::TaskEnded { .. } | Event::TaskIntegrated { .. } => Source::Service(Service::Cage),
            // Services with a uid of their own write these; root that does is nobody we know.
            Event::NetAttached { .. } | Event::NetDetached { .. } | Event::NetConnected { .. } | Event::NetEnded { .. }
            | Event::NetDenied { .. } | Event::NetPolicyChanged { .. } | Event::NetPolicyForgotten { .. }
            | Event::FirewallRestored { .. } | Event::SecretSet { .. } | Event::SecretRemoved { .. } | Event::BrokerCalled { .. }
            | Event::BrokerSettled { .. } | Event::BudgetReset { .. } | Event::MemoryAttached { .. } | Event::MemoryWritten { .. }
            | Event::MemoryForgotten { .. } | Event::MemoryExported { .. } | Event::MemoryImported { .. }
            | Event::MemoryDamaged { .. } | Event::MemoryDenied { .. } | Event::ExposureRaised { .. } | Event::LedgerCut { .. }
            | Event::LedgerKeyMade { .. } | Event::PatchVerified { .. } => Source::Root,
        }
    }

    /// The names of all sources.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Service::ALL.into_iter().map(Source::Service).chain([Source::Root]).map(Source::name)
    }

    /// The name in [`abi::control::Recorded`].
    pub fn name(self) -> &'static str {
        match self {
            Source::Root => "root",
            Source::Service(service) => service.name(),
        }
    }

    fn code(self) -> u8 {
        match self {
            Source::Root => 0,
            Source::Service(Service::Nulld) => 1,
            Source::Service(Service::Egress) => 2,
            Source::Service(Service::Ctxgraph) => 3,
            Source::Service(Service::Cage) => 4,
            Source::Service(Service::Nullgate) => 5,
        }
    }

    fn from_code(code: u8) -> Option<Source> {
        let all = Service::ALL.into_iter().map(Source::Service);
        all.chain([Source::Root]).find(|source| source.code() == code)
    }
}

/// A segment's first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// 1 (only a ledger's first segment) or 2.
    pub version: u32,
    pub first_seq: u64,
    pub ledger_id: [u8; 32],
    /// Digest of the last frame of the segment before; zero in the first.
    pub previous: Digest,
    /// Roots of the complete subtrees over all frames before, the largest first ([`crate::merkle::Frontier::roots`]).
    pub frontier: Vec<Digest>,
}

impl SegmentHeader {
    /// Of a new ledger's first segment.
    pub fn genesis(ledger_id: [u8; 32]) -> SegmentHeader {
        SegmentHeader { version: 2, first_seq: 0, ledger_id, previous: Digest([0; 32]), frontier: Vec::new() }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let length = SEGMENT_HEADER_BYTES + self.frontier.len() * DIGEST_BYTES;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(SEGMENT_MAGIC);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend(self.first_seq.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(self.ledger_id);
        bytes.extend(self.previous.0);
        for root in &self.frontier {
            bytes.extend(root.0);
        }
        bytes
    }

    /// The whole length of the header that begins with these bytes; needs the first 24.
    pub fn length(bytes: &[u8]) -> Result<usize, FrameError> {
        let mut fields = Fields(bytes);
        let (magic, version, length) = (fields.take::<8>(), fields.u32(), fields.u32());
        let first_seq = fields.u64().ok_or(FrameError::HeaderCut)?;
        let roots = if version == Some(1) { 0 } else { first_seq.count_ones() as usize };
        let due = SEGMENT_HEADER_BYTES + roots * DIGEST_BYTES;
        match (magic, version, length) {
            (Some(SEGMENT_MAGIC), Some(1 | 2), Some(length)) if length as usize == due => Ok(due),
            _ => Err(FrameError::Header),
        }
    }

    /// Parses and checks the header that `bytes` begins with.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, FrameError> {
        let length = SegmentHeader::length(bytes)?;
        let mut fields = Fields(bytes.get(..length).ok_or(FrameError::HeaderCut)?);
        let (_, version, _) = (fields.take::<8>(), fields.u32(), fields.u32()); // checked above
        let (first_seq, zero) = (fields.u64(), fields.u64());
        let (id, previous) = (fields.take::<32>(), fields.take::<32>());
        let mut frontier = Vec::new();
        while let Some(root) = fields.take::<32>() {
            frontier.push(Digest(root));
        }
        match (version, first_seq, zero, id, previous) {
            (Some(1), Some(1..), ..) => Err(FrameError::Header),
            (Some(version), Some(first_seq), Some(0), Some(ledger_id), Some(previous)) => {
                Ok(SegmentHeader { version, first_seq, ledger_id, previous: Digest(previous), frontier })
            }
            _ => Err(FrameError::Header),
        }
    }

    /// What the segment's first frame has as the digest before it.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.encode()).into())
    }
}

/// One frame, checked in itself but not yet against its neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub seq: u64,
    pub batch: u64,
    pub unix_ms: u64,
    pub source: Source,
    pub previous: Digest,
    pub body: Vec<u8>,
    pub digest: Digest,
}

/// What a frame is made of; its digest is made here.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    pub seq: u64,
    pub batch: u64,
    pub unix_ms: u64,
    pub source: Source,
    pub previous: Digest,
    /// 1 to [`limits::LEDGER_EVENT_BYTES_MAX`] bytes.
    pub body: &'a [u8],
}

impl Draft<'_> {
    /// Appends the frame to `out` and returns its digest.
    pub fn encode(&self, out: &mut Vec<u8>) -> Digest {
        let start = out.len();
        out.extend(MAGIC);
        out.extend((self.body.len() as u32).to_le_bytes());
        out.extend(self.seq.to_le_bytes());
        out.extend(self.batch.to_le_bytes());
        out.extend(self.unix_ms.to_le_bytes());
        out.extend([self.source.code(), KIND_EVENT, 0, 0]);
        out.extend(self.previous.0);
        out.extend(self.body);
        let digest: [u8; 32] = Sha256::digest(out.get(start..).unwrap_or_default()).into();
        out.extend(digest);
        Digest(digest)
    }
}

/// Whether a segment's header begins with these bytes, of which 8 are needed.
pub fn begins_segment(bytes: &[u8]) -> bool {
    bytes.starts_with(&SEGMENT_MAGIC)
}

/// The whole length of the frame that begins with these bytes; needs the first 8.
pub fn frame_length(bytes: &[u8]) -> Result<usize, FrameError> {
    let mut fields = Fields(bytes);
    match (fields.take::<4>(), fields.u32()) {
        (Some(MAGIC), Some(length)) => {
            let body = length as usize;
            if body == 0 || body > limits::LEDGER_EVENT_BYTES_MAX {
                return Err(FrameError::Length(length));
            }
            Ok(HEAD_BYTES + body + DIGEST_BYTES)
        }
        (Some(MAGIC), None) => Err(FrameError::Cut),
        (Some(_), _) => Err(FrameError::Magic),
        (None, _) => Err(FrameError::Cut),
    }
}

/// Decodes the frame that `bytes` begins with.
pub fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    let length = frame_length(bytes)?;
    let frame = bytes.get(..length).ok_or(FrameError::Cut)?;
    let (covered, digest) = frame.split_at_checked(length - DIGEST_BYTES).ok_or(FrameError::Cut)?;
    let actual: [u8; 32] = Sha256::digest(covered).into();
    if actual.as_slice() != digest {
        return Err(FrameError::Digest);
    }
    let mut fields = Fields(covered);
    let (_, _) = (fields.u32(), fields.u32()); // magic and length, checked above
    let (seq, batch, unix_ms) = (fields.u64(), fields.u64(), fields.u64());
    let (tail, previous) = (fields.take::<4>(), fields.take::<32>());
    match (seq, batch, unix_ms, tail, previous) {
        (Some(seq), Some(batch), Some(unix_ms), Some([source, KIND_EVENT, 0, 0]), Some(previous)) => {
            Ok(Frame {
                seq,
                batch,
                unix_ms,
                source: Source::from_code(source).ok_or(FrameError::Unknown)?,
                previous: Digest(previous),
                body: fields.0.to_vec(),
                digest: Digest(actual),
            })
        }
        _ => Err(FrameError::Unknown),
    }
}

/// Reads fixed fields from the front of bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        Draft {
            seq: 7,
            batch: 5,
            unix_ms: 1_700_000_000_000,
            source: Source::Service(Service::Egress),
            previous: Digest([9; 32]),
            body: b"{\"event\":\"net_detached\"}",
        }
        .encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_frame_reads_back() {
        let bytes = sample();
        let frame = decode(&bytes).unwrap();
        assert_eq!((frame.seq, frame.batch, frame.unix_ms), (7, 5, 1_700_000_000_000));
        assert_eq!(frame.source.name(), "egress");
        assert_eq!(frame.previous, Digest([9; 32]));
        assert_eq!(frame.body, b"{\"event\":\"net_detached\"}");
        assert_eq!(frame.digest.0, bytes[bytes.len() - 32..]);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let bytes = sample();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn a_segment_header_reads_back_and_no_byte_of_it_is_free() {
        let roots = vec![Digest([3; 32]), Digest([4; 32])];
        let later = SegmentHeader {
            first_seq: 3,
            previous: Digest([2; 32]),
            frontier: roots,
            ..SegmentHeader::genesis([1; 32])
        };
        for header in [
            SegmentHeader::genesis([1; 32]),
            SegmentHeader { version: 1, ..SegmentHeader::genesis([1; 32]) },
            later,
        ] {
            let bytes = header.encode();
            assert_eq!(SegmentHeader::length(&bytes), Ok(bytes.len()));
            assert_eq!(SegmentHeader::decode(&bytes), Ok(header.clone()));
            for index in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[index] ^= 1;
                // Either it is no header, or the first frame no longer follows it.
                match SegmentHeader::decode(&changed) {
                    Ok(other) => assert_ne!(other.digest(), header.digest()),
                    Err(error) => {
                        assert!(matches!(error, FrameError::Header | FrameError::HeaderCut), "{error}")
                    }
                }
            }
            assert_eq!(SegmentHeader::decode(&bytes[..bytes.len() - 1]), Err(FrameError::HeaderCut));
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        proptest!(|(tail in prop::collection::vec(any::<u8>(), 0..300))| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(&tail);
            assert!(decode(&bytes).is_err());
            assert!(decode(&tail).is_err());
        });
    }

    #[test]
    fn source_codes_are_distinct_and_read_back() {
        for service in Service::ALL {
            let source = Source::Service(service);
            assert_eq!(Source::from_code(source.code()), Some(source));
        }
        assert_eq!(Source::from_code(0), Some(Source::Root));
        assert_eq!(Source::from_code(6), None);
    }
}
