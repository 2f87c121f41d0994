//! Shapes of `ledger.*`.

use serde::{Deserialize, Serialize};

use crate::ids::{AgentName, Digest};
use crate::ledger::Event;

/// Parameters of `ledger.tail`. Result: [`LedgerPage`]; with follow each later one comes as notification `event` with [`Recorded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerTail {
    /// Newest events; at most [`crate::limits::LEDGER_PAGE_MAX`]; none: 100.
    #[serde(default)]
    pub limit: Option<u32>,
    #[serde(default)]
    pub follow: bool,
}

/// Result of `ledger.tail`, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerPage {
    pub events: Vec<Recorded>,
}

/// An event as it stands in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    pub seq: u64,
    pub digest: Digest,
    pub unix_ms: u64,
    /// The service that wrote it, from its uid.
    pub source: String,
    pub event: Event,
}

/// Result of `ledger.verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    pub events: u64,
    pub bytes: u64,
    pub head: Option<Digest>,
    /// None: the chain holds.
    pub broken: Option<Broken>,
}

/// Where the ledger is wrong first, and what cannot be read because of it and of what is wrong further on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broken {
    pub seq: u64,
    /// First seq of the segment it is in: the name of its file.
    #[serde(default)]
    pub segment: u64,
    /// Offset of the first wrong byte's frame in that file.
    pub offset: u64,
    pub why: String,
    /// The events that are lost, in words; empty: none, or not known.
    #[serde(default)]
    pub lost: String,
}

/// Parameters of `ledger.query`: events that meet all of these, oldest first. Result: [`LedgerFound`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerQuery {
    /// Names this agent, or an instance of it.
    #[serde(default)]
    pub agent: Option<AgentName>,
    /// Of these kinds (`net_connected`, ..); empty: of any.
    #[serde(default)]
    pub events: Vec<String>,
    /// Written by this service (`egress`, ..).
    #[serde(default)]
    pub source: Option<String>,
    #[serde(default)]
    pub since_unix_ms: Option<u64>,
    #[serde(default)]
    pub until_unix_ms: Option<u64>,
    /// From this place on: 0, or the `next_seq` of an earlier answer.
    #[serde(default)]
    pub from_seq: u64,
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Result of `ledger.query`. One answer looks at a bounded part of the ledger: events may be fewer, or none, and there may be more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerFound {
    pub events: Vec<Recorded>,
    /// Where to go on; none: all was looked at.
    #[serde(default)]
    pub next_seq: Option<u64>,
}

/// Result of `ledger.checkpoint`: what the ledger is now, signed with its key. A C2SP signed note (docs/formats/ctxgraph.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub note: String,
    /// `ed25519:` and base64.
    pub key: String,
}

/// Parameters of `ledger.prove`. Result: [`Proof`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerProve {
    /// The event.
    pub seq: u64,
}

/// That one event stands in the ledger: enough to be checked with the ledger's public key alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// `inclusion`.
    pub nullbox_proof: String,
    pub seq: u64,
    /// Base64 of the event's frame.
    pub frame: String,
    pub checkpoint: String,
    /// RFC 9162 section 2.1.3, in the tree of the checkpoint; hex.
    pub path: Vec<String>,
    /// Base64 of a COSE receipt (RFC 9942) of the same.
    pub receipt: String,
}

/// Parameters of `ledger.consistency`. Result: [`Consistency`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerConsistency {
    /// Events in the older tree.
    pub size: u64,
}

/// That the ledger of now goes on from an older one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consistency {
    /// `consistency`.
    pub nullbox_proof: String,
    pub size: u64,
    pub checkpoint: String,
    /// RFC 9162 section 2.1.4; hex.
    pub path: Vec<String>,
}

/// Parameters of `ledger.export`: the ledger as notifications `output` with [`super::MemoryChunk`]. Result: [`super::Exported`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerExport {}
