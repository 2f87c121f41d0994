//! Shapes of `snapshot.*` and `volume.*`.

use serde::{Deserialize, Serialize};

use crate::ids::{AgentName, Digest, Name};

/// Parameters of `snapshot.create`: of a stopped agent with a kept workspace, or of a paused or quarantined one. Result:
/// [`Snapshot`]; notifications `progress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    pub agent: AgentName,
    pub name: Name,
}

/// Parameters of `snapshot.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRef {
    pub name: Name,
}

/// Result of `snapshot.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotList {
    pub snapshots: Vec<Snapshot>,
}

/// A copy of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub name: Name,
    /// Whose workspace it was.
    pub agent: AgentName,
    /// Below which it was written: it fits no other one.
    pub rootfs: Digest,
    pub unix_ms: u64,
    pub size_mib: u32,
    /// Taken on the node's disk.
    pub used_kib: u64,
    /// SHA-256 of the disk's file.
    pub disk: Digest,
}

/// Result of `volume.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeList {
    pub volumes: Vec<Volume>,
}

/// A volume on the node's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    pub agent: AgentName,
    pub name: Name,
    pub size_mib: u32,
    /// Taken on the node's disk.
    pub used_kib: u64,
    /// Its agent runs.
    pub in_use: bool,
}

/// Parameters of `volume.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRef {
    pub agent: AgentName,
    pub name: Name,
}
