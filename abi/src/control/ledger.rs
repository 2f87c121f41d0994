//! Shapes of `ledger.*`.

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
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

/// Where the ledger is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broken {
    pub seq: u64,
    /// Offset of the first wrong byte's frame in the file.
    pub offset: u64,
    pub why: String,
}
