//! Shapes of `memory.*`.
//!
//! `agent` is always whose memory is meant. An agent leaves it out for its own; an operator must give it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::exposure::Exposure;
use crate::ids::{AgentName, Digest, Instance};
use crate::memory::{Expected, Link, MemoryGrants, MemoryShares};

/// Parameters of `memory.write`. Result: [`Entry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryWrite {
    #[serde(default)]
    pub agent: Option<AgentName>,
    pub key: String,
    pub value: serde_json::Value,
    /// Compare and set: refused with `conflict` unless this is the key's newest entry. Absent: whatever is there.
    #[serde(default)]
    pub parent: Option<Expected>,
    /// At most [`crate::limits::MEMORY_LABELS_MAX`], name to value.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// At most [`crate::limits::MEMORY_LINKS_MAX`]. Each target must be an entry that the writer may read.
    #[serde(default)]
    pub links: Vec<Link>,
    /// The value is forgotten after this; the entry stays as a tombstone.
    #[serde(default)]
    pub ttl_secs: Option<u64>,
    /// For `memory.nearest`: 1 to [`crate::limits::MEMORY_VECTOR_DIMENSIONS_MAX`] finite numbers, not all zero.
    #[serde(default)]
    pub vector: Option<Vec<f32>>,
}

/// Parameters of `memory.batch`: all of them or none, in order. Result: [`Entries`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBatch {
    /// 1 to [`crate::limits::MEMORY_WRITE_BATCH_MAX`].
    pub writes: Vec<MemoryWrite>,
}

/// Parameters of `memory.read`: `hash`, or `key` for its newest entry. Result: [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRead {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub hash: Option<Digest>,
    #[serde(default)]
    pub key: Option<String>,
}

/// Parameters of `memory.query`: the newest entry of each key with the prefix that meets all of the rest, by key. Result: [`Entries`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryQuery {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub prefix: String,
    /// Written at this time or later, in milliseconds since 1970.
    #[serde(default)]
    pub since_unix_ms: Option<u64>,
    /// Written before this time.
    #[serde(default)]
    pub until_unix_ms: Option<u64>,
    /// Has all of these.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Has a link to this entry.
    #[serde(default)]
    pub linked_to: Option<Digest>,
    #[serde(default)]
    pub limit: Option<u32>,
    /// From an earlier answer.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// Parameters of `memory.history`: all entries of one key, newest first. Result: [`Entries`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHistory {
    #[serde(default)]
    pub agent: Option<AgentName>,
    pub key: String,
    #[serde(default)]
    pub limit: Option<u32>,
    #[serde(default)]
    pub cursor: Option<String>,
}

/// Parameters of `memory.conflicts`: the heads of keys that have several, by key. Result: [`Entries`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConflicts {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub prefix: String,
    #[serde(default)]
    pub limit: Option<u32>,
    #[serde(default)]
    pub cursor: Option<String>,
}

/// Which way a link is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the entry that has it to its target.
    #[default]
    Out,
    In,
    Both,
}

/// Parameters of `memory.neighbours` (depth 1) and `memory.traverse`: breadth first from an entry along links. What the speaker may
/// not read is left out, as if the link were not there. Result: [`Traversal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryTraverse {
    #[serde(default)]
    pub agent: Option<AgentName>,
    pub hash: Digest,
    #[serde(default)]
    pub direction: Direction,
    /// Links of these types; empty: of any.
    #[serde(default)]
    pub types: Vec<String>,
    /// 1 to [`crate::limits::MEMORY_TRAVERSE_DEPTH_MAX`]; none: 1.
    #[serde(default)]
    pub depth: Option<u32>,
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Result of `memory.neighbours` and `memory.traverse`, nearest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traversal {
    pub reached: Vec<Reached>,
    /// There was more within the depth than the limit, or a line, holds.
    pub truncated: bool,
    pub reader_exposure: Exposure,
}

/// An entry that a traversal came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    pub depth: u32,
    /// The entry it was come to from.
    pub from: Digest,
    /// The link's type, and whether it was followed backwards.
    #[serde(rename = "type")]
    pub kind: String,
    pub backwards: bool,
    pub entry: Entry,
}

/// Parameters of `memory.search`: words in the newest entries of keys with a prefix, best first. Result: [`Hits`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemorySearch {
    #[serde(default)]
    pub agent: Option<AgentName>,
    /// Words, all of which must be there; a word that ends in `*` stands for all that begin so, and `"two words"` for a phrase.
    pub text: String,
    #[serde(default)]
    pub prefix: String,
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Parameters of `memory.nearest`: newest entries with a vector of as many dimensions, by cosine distance. Result: [`Hits`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryNearest {
    #[serde(default)]
    pub agent: Option<AgentName>,
    pub vector: Vec<f32>,
    #[serde(default)]
    pub prefix: String,
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Result of `memory.search` and `memory.nearest`, best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hits {
    pub hits: Vec<Hit>,
    /// More entries had the words than one search looks at, or the hits did not fit a line.
    #[serde(default)]
    pub truncated: bool,
    /// Entries that were left out because they are damaged on the disk.
    #[serde(default, skip_serializing_if = "is_none")]
    pub damaged: u64,
    pub reader_exposure: Exposure,
}

/// A found entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hit {
    /// Smaller is better: BM25 with all words weighing alike, below 0; or the cosine distance, 0 to 2. Of the entry and the question
    /// alone: what else is in a memory does not move it.
    pub distance: f64,
    pub entry: Entry,
}

/// Parameters of `memory.watch`: each entry under the prefix from now on, as notification `entry` with [`Entry`], until the connection
/// ends. A watcher that reads too slowly gets `dropped` with [`Dropped`] and is closed. Result: [`Nothing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryWatch {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub prefix: String,
}

/// Why a watcher was let go: ask `memory.history` or `memory.query` for what it missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    pub why: String,
}

/// Parameters of `memory.forget`: the value of one entry (`hash`), or of all entries of a key. What stays proves the chain. Needs what a
/// write needs. Result: [`Forgot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryForget {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub hash: Option<Digest>,
    #[serde(default)]
    pub key: Option<String>,
}

/// Result of `memory.forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgot {
    /// Values that were there and are not any more.
    pub values: u64,
    pub bytes: u64,
}

/// A page of entries.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    pub entries: Vec<Entry>,
    /// Present when there is more. It says nothing to whom it is given, and holds until ctxgraph starts again.
    #[serde(default)]
    pub cursor: Option<String>,
    /// Entries that were left out because they are damaged on the disk.
    #[serde(default, skip_serializing_if = "is_none")]
    pub damaged: u64,
    /// The reader's, after this page.
    #[serde(default)]
    pub reader_exposure: Exposure,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// One immutable entry of an agent's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Zeros in the answer to a writer that may not read it.
    pub hash: Digest,
    /// Whose memory it is in.
    pub agent: AgentName,
    pub key: String,
    /// Null where [`Entry::forgotten`] is there.
    pub value: serde_json::Value,
    /// The entry this one follows under its key; none for the first.
    pub parent: Option<Digest>,
    /// Position in the agent's memory on the node that wrote it, from 0.
    pub seq: u64,
    pub unix_ms: u64,
    /// With the node's (`nullbox.*`): writer, exposure, node, expiry, vector (docs/formats/ctxgraph.md).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub links: Vec<Link>,
    /// The writer's, when it wrote.
    #[serde(default)]
    pub exposure: Exposure,
    /// Why the value is not there any more.
    #[serde(default)]
    pub forgotten: Option<String>,
    /// Other newest entries of the same key, from other nodes: only in an answer to `memory.read` by key.
    #[serde(default)]
    pub conflicts: Vec<Digest>,
    /// The reader's exposure after this answer: only in answers that are one entry.
    #[serde(default)]
    pub reader_exposure: Exposure,
}

/// Result of `memory.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryList {
    pub agents: Vec<MemoryUse>,
}

/// One agent's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryUse {
    pub agent: AgentName,
    pub entries: u64,
    pub keys: u64,
    pub bytes: u64,
}

/// Parameters of `memory.attach`; the listening Unix socket of the VM's memory port stands beside it. Result: [`MemoryAttached`].
/// Served as long as the connection lives. On it ctxgraph sends a notification `exposure` ([`MemoryExposure`]) before the agent is shown
/// what raises its exposure, and waits [`crate::limits::MEMORY_NOTED_MS_MAX`] for cage's `noted` ([`MemoryNoted`]); without it the agent is
/// shown nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryAttach {
    pub instance: Instance,
    /// What its manifest asks for and gives.
    #[serde(default)]
    pub grants: MemoryGrants,
    /// What other manifests let it have.
    #[serde(default)]
    pub shares: MemoryShares,
    /// What its manifest exposes it to from the beginning.
    #[serde(default)]
    pub exposure: Exposure,
    /// It finds files of its earlier lives (a kept workspace, a volume), and so what they were exposed to.
    #[serde(default)]
    pub inherits: bool,
}

/// Result of `memory.attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryAttached {
    /// What the life is exposed to at the begin of the lease, earlier leases of it and what it inherits included.
    #[serde(default)]
    pub exposure: Exposure,
}

/// Notification `exposure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryExposure {
    /// Counts up from 1 within a lease.
    pub number: u64,
    /// All that the life has seen once it is shown the answer.
    pub to: Exposure,
}

/// Notification `noted`: whatever bounds the life goes by that exposure now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryNoted {
    /// [`MemoryExposure::number`].
    pub number: u64,
}

/// Parameters of `memory.expose`, services only: what a life has seen by other ways than its memory. It only grows; answered with
/// [`super::Nothing`] when whatever the life writes carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryExpose {
    pub instance: Instance,
    pub seen: Exposure,
}

/// Parameters of `memory.export`: a bundle (docs/formats/ctxgraph.md) as notifications `output` with [`MemoryChunk`]. Result: [`Exported`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryExport {
    /// None: all agents.
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub prefix: String,
    /// Entries of these hashes only; empty: all.
    #[serde(default)]
    pub hashes: Vec<Digest>,
}

/// A piece of a bundle: both ways. An empty one ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryChunk {
    /// Base64, at most [`crate::limits::MEMORY_CHUNK_BYTES_MAX`] bytes decoded.
    pub data: String,
}

/// Result of `memory.export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    pub entries: u64,
    pub bytes: u64,
    /// SHA-256 of the bundle.
    pub digest: Digest,
}

/// Parameters of `memory.import`; the bundle follows as notifications `input` with [`MemoryChunk`]. The signer must be this node or one
/// that nulld.toml trusts, unless an admin names it. Result: [`Imported`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryImport {
    /// Public ledger key of the node that signed it, when nulld.toml does not name it.
    #[serde(default)]
    pub from: Option<String>,
}

/// Result of `memory.import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// That were not there.
    pub entries: u64,
    /// That were there.
    pub known: u64,
    /// Values that were forgotten here and stay so; entries that another node says this one wrote; entries beyond their agent's quota.
    pub refused: u64,
    /// Keys with several heads now.
    pub conflicts: u64,
}

/// Result of `memory.hashes`: all entries' hashes, a page of them, in the order in which they came: parents first. For a sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hashes {
    pub hashes: Vec<Digest>,
    /// Those of them whose values are forgotten.
    #[serde(default)]
    pub forgotten: Vec<Digest>,
    #[serde(default)]
    pub cursor: Option<String>,
}

/// Parameters of `memory.hashes`. Result: [`Hashes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHashes {
    #[serde(default)]
    pub cursor: Option<String>,
}

/// Result of `memory.verify`: every entry read and its hash computed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryVerified {
    pub entries: u64,
    pub bytes: u64,
    /// The first [`crate::limits::MEMORY_DAMAGES_MAX`] of them.
    pub damages: Vec<Damage>,
    /// How many there are.
    pub damaged: u64,
}

/// A place of memory.db that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damage {
    /// Row, or page of the file.
    pub place: String,
    pub why: String,
    /// What is lost by it, where that can be told.
    pub lost: String,
}
