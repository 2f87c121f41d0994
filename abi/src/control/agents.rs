//! Shapes of `agent.*` and `image.*`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::config_error::ConfigError;
use crate::ids::{AgentName, Digest, Instance};

/// Parameters of `agent.start`, `agent.stop` and `agent.status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentRef {
    pub name: AgentName,
}

/// Where an agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// Never started since the node booted, or stopped on request.
    Stopped,
    Starting,
    Running,
    Stopping,
    /// Ended by itself.
    Exited,
    /// Could not be started, or its VM broke.
    Failed,
}

/// Result of `agent.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentList {
    pub agents: Vec<AgentSummary>,
    /// Manifests that could not be loaded.
    pub rejected: Vec<ConfigError>,
}

/// One line of `agent.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSummary {
    pub name: AgentName,
    pub version: String,
    pub state: AgentState,
    /// The present or last life.
    pub instance: Option<Instance>,
    pub rootfs: String,
    /// Since the agent's command was started.
    pub uptime_ms: Option<u64>,
    /// How it ended or why it failed; empty while it runs.
    pub detail: String,
}

/// Result of `agent.status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentStatus {
    pub summary: AgentSummary,
    pub manifest: crate::manifest::Manifest,
    pub manifest_digest: Digest,
    pub rootfs_digest: Option<Digest>,
    /// Of the jail's cgroup; none when no VM runs.
    pub memory_kib: Option<u64>,
    pub cpu_ms: Option<u64>,
    /// Milliseconds from the request to each stage of the last start, in order.
    pub stages_ms: Vec<(String, u64)>,
    pub exit: Option<crate::guest::Exit>,
    pub execs_running: u32,
    /// What the sandbox inside the guest refused, as the guest tells it: counted, newest last, bounded.
    pub guest_denials: Vec<String>,
    /// The last lines of the console of a VM that broke, as the guest wrote them, without control characters; empty while
    /// it runs and after an orderly end.
    pub console: Vec<String>,
}

/// Result of `agent.start`. Notifications before it: `progress` with [`Progress`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    pub instance: Instance,
    /// Milliseconds from the request to the agent's command.
    pub took_ms: u64,
}

/// Notification `progress`: a stage of a long call was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    pub stage: String,
    /// Present when the amount of work is known: done and total, in the unit that `stage` names.
    #[serde(default)]
    pub done: Option<u64>,
    #[serde(default)]
    pub total: Option<u64>,
}

/// Parameters of `agent.logs`. Output comes as notifications `output` with [`Output`]; the result is [`Nothing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentLogs {
    pub name: AgentName,
    /// Newest lines to begin with; none: all that is kept.
    #[serde(default)]
    pub lines: Option<u32>,
    /// Of these only what came at this time or later, in milliseconds since 1970.
    #[serde(default)]
    pub since_unix_ms: Option<u64>,
    #[serde(default)]
    pub follow: bool,
}

/// Notification `output`: bytes an agent or an exec wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    pub stream: Stream,
    /// Position of the chunk in the agent's log, from 0 without gaps; a gap is what the ring dropped.
    pub seq: u64,
    pub unix_ms: u64,
    /// Base64 (RFC 4648 section 4) of at most 32 KiB.
    pub data: String,
}

/// Which stream bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Parameters of `agent.exec`. Notifications from the node: `output`. Notifications from the caller, after the
/// request: `stdin` with [`StdinData`] (empty data is end of file) and `signal` with [`crate::guest::Signal`]. The result is
/// [`crate::guest::Exit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentExec {
    pub name: AgentName,
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub workdir: Option<String>,
}

/// Notification `stdin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdinData {
    /// Base64 of at most 32 KiB.
    pub data: String,
}

/// Result of `image.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageList {
    pub images: Vec<Image>,
}

/// One rootfs of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// SHA-256 of the SquashFS.
    pub digest: Digest,
    pub names: Vec<String>,
    /// Bytes of the SquashFS.
    pub bytes: u64,
    /// SHA-256 of the OCI archive it was made from.
    pub archive: Digest,
    /// Environment and working directory the OCI image asks for.
    pub env: Vec<String>,
    pub workdir: Option<String>,
}

/// Parameters of `image.import`; `bytes` raw bytes of an OCI archive (OCI layout or docker save, tar) follow the request
/// line. Notifications: `progress`. Result: [`Image`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageImport {
    pub name: String,
    pub bytes: u64,
}
