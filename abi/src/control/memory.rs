//! Shapes of `memory.*`.

use serde::{Deserialize, Serialize};

use crate::ids::{AgentName, Digest, Instance};

/// Parameters of `memory.write`. Result: [`Entry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryWrite {
    /// Operators name the agent; an agent leaves it out or names itself.
    #[serde(default)]
    pub agent: Option<AgentName>,
    pub key: String,
    pub value: serde_json::Value,
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

/// Parameters of `memory.query` (newest entry of each key with the prefix) and, with a whole key as `prefix`,
/// `memory.history` (all entries of that key, newest first). Result: [`Entries`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryQuery {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub prefix: String,
    #[serde(default)]
    pub limit: Option<u32>,
    /// From an earlier answer.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// A page of entries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    pub entries: Vec<Entry>,
    /// Present when there is more.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// One immutable entry of an agent's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub hash: Digest,
    pub agent: AgentName,
    pub key: String,
    pub value: serde_json::Value,
    /// The entry this one follows under its key; none for the first.
    pub parent: Option<Digest>,
    /// Position in the agent's memory, from 0.
    pub seq: u64,
    pub unix_ms: u64,
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

/// Parameters of `memory.attach`; the listening Unix socket of the VM's memory port stands beside it. Result: [`Nothing`].
/// Served as long as the connection lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryAttach {
    pub instance: Instance,
}
