//! Shapes of `agent.*` and `image.*`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::config_error::ConfigError;
use crate::guest::TerminalSize;
use crate::ids::{AgentName, Digest, Instance, Name};

/// Parameters of the methods that need no more than an agent.
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
    /// Frozen on request, to go on later.
    Paused,
    /// Frozen, its network cut; it never goes on. `agent.stop` ends it and keeps its evidence.
    Quarantined,
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
    /// How it ended or why it failed, and whether it will be started again; empty while it runs.
    pub detail: String,
    /// By its restart policy, since it last ran for long.
    pub restarts: u32,
    /// Of its last health check; none: there was none.
    pub healthy: Option<bool>,
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
    /// Microseconds since the guest's kernel started to each of the guest's own stages, as the guest says.
    pub guest_stages_us: Vec<(String, u64)>,
    /// Use of its workspace and volumes on the node's disk.
    pub disks: Vec<DiskUse>,
    /// Where the evidence of a quarantined life lies, by instance.
    pub evidence: Vec<Instance>,
    pub exit: Option<crate::guest::Exit>,
    pub execs_running: u32,
    /// What the sandbox inside the guest refused, as the guest tells it: counted, newest last, bounded.
    pub guest_denials: Vec<String>,
    /// The last lines of the console of a VM that broke, as the guest wrote them, without control characters; empty while
    /// it runs and after an orderly end.
    pub console: Vec<String>,
}

/// A disk of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskUse {
    /// `workspace`, or a volume's name.
    pub name: String,
    pub size_mib: u32,
    /// Taken on the node's disk.
    pub used_kib: u64,
}

/// Result of `agent.start` and `agent.restart`. Notifications before it: `progress` with [`Progress`].
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
    /// A terminal of this size instead of pipes; notification `resize` with another one changes it.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Then it is killed; at most [`crate::limits::EXEC_TIMEOUT_MS_MAX`].
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// Parameters of `agent.attach`: the command's own output as it comes, beginning with what the log still has if `replay`.
/// Notifications both ways as for `agent.exec`; `stdin` needs `stdin = true` in the manifest, `resize` `tty = true`. Ends with
/// the life, with [`crate::guest::Exit`] if the command ended, or when the caller goes away, which ends nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentAttach {
    pub name: AgentName,
    #[serde(default)]
    pub replay: bool,
    /// Size of the caller's terminal.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
}

/// Parameters of `agent.create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentCreate {
    pub name: AgentName,
    /// Its workspace begins as a copy of this one.
    #[serde(default)]
    pub snapshot: Option<Name>,
}

/// Parameters of `agent.quarantine`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentQuarantine {
    pub name: AgentName,
    pub reason: String,
}

/// Result of `agent.remove`: what was deleted. Volumes and snapshots are not its business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentRemoved {
    /// A kept workspace.
    pub workspace: bool,
    pub log: bool,
    /// Of these lives.
    pub evidence: Vec<Instance>,
}

/// Parameters of `agent.evidence`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceListing {
    /// Of this agent alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<AgentName>,
    /// Go on after this one: `next` of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Instance>,
}

/// Result of `agent.evidence`: oldest first, as many as fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceList {
    pub lives: Vec<Evidence>,
    /// There are more after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Instance>,
}

/// What is kept of one quarantined life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    pub instance: Instance,
    /// Absent where cage died before it had written it down.
    pub quarantine: Option<Quarantine>,
    /// Not yet: its VM stands still, and its disk comes when it ends.
    pub has_ended: bool,
    pub files: Vec<EvidenceFile>,
}

/// Why a life is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    pub by: String,
    pub reason: String,
    pub unix_ms: u64,
}

/// One file of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceFile {
    pub name: String,
    /// Its length; holes count.
    pub bytes: u64,
    /// SHA-256 of what was sent; absent in a listing, since nothing was read for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// Parameters of `agent.read_evidence` and `agent.remove_evidence`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceRef {
    pub instance: Instance,
}

/// Result of `agent.read_evidence`, after a gzipped tar archive as notifications `output` and how far it is as `progress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceSent {
    pub files: Vec<EvidenceFile>,
}

/// Parameters of `agent.read_files` and `agent.write_files`: records of [`crate::files`] as notifications `output` (read) or
/// `stdin` (write; an empty one ends it). Result: [`crate::guest::Exit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFiles {
    pub name: AgentName,
    /// Absolute, in the guest.
    pub path: String,
}

/// Result of `agent.top`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentTop {
    pub unix_ms: u64,
    pub agents: Vec<AgentUse>,
}

/// What one agent's present life has used, as the node measures it. Counters begin with the life, but for the one that says
/// otherwise. What cannot be had (egress does not answer, the kernel has no such counter) is 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentUse {
    pub name: String,
    pub state: String,
    pub cpu_ms: u64,
    /// Of one core.
    pub cpu_percent_max: u32,
    pub memory_kib: u64,
    pub memory_max_kib: u64,
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
    /// Through the proxy, from the agent and to it.
    pub net_out_bytes: u64,
    pub net_in_bytes: u64,
    pub connections: u32,
    pub net_denials: u64,
    /// Since cage began, as the guest says.
    pub guest_denials: u64,
    pub execs: u32,
    /// Execs and copies.
    pub execs_total: u64,
    pub restarts: u32,
    pub tasks: u32,
}

/// Parameters of `agent.events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentEvents {
    #[serde(default)]
    pub name: Option<AgentName>,
    #[serde(default)]
    pub follow: bool,
}

/// Result of `agent.events`: what is kept, oldest first; with follow each later one comes as notification `event` with
/// [`AgentEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentEventList {
    pub events: Vec<AgentEvent>,
    /// Those that are not here any more: older ones, and what the rate limit left out.
    pub dropped: u64,
}

/// Something that happened in an agent's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentEvent {
    /// Without gaps while cage runs.
    pub seq: u64,
    pub unix_ms: u64,
    pub agent: AgentName,
    /// `starting`, `ready`, `paused`, `ended`, `unhealthy`, `restarting`, `exec`, `denied`, ...
    pub what: String,
    pub detail: String,
}

/// Result of `agent.metrics`: the Prometheus text format, version 0.0.4. A text of more than
/// [`crate::limits::METRICS_PART_BYTES_MAX`] comes in parts, cut between lines: notifications `metrics`, and this is the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub text: String,
}

/// Notification `stdin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdinData {
    /// Base64 of at most 32 KiB.
    pub data: String,
}

/// Parameters of `image.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageListing {
    /// Go on after this one: `next` of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Digest>,
}

/// Result of `image.list`: by digest, as many as fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageList {
    pub images: Vec<Image>,
    /// There are more after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Digest>,
}

/// Parameters of `image.inspect` and `image.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// A name or a `sha256:` digest.
    pub image: String,
}

/// Result of `image.inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDetails {
    pub image: Image,
    /// Agents whose manifest asks for it.
    pub agents: Vec<AgentName>,
    /// Command of the OCI image, for who writes a manifest; nothing runs because of it.
    pub entrypoint: Vec<String>,
}

/// Result of `image.remove` and `image.prune`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesRemoved {
    pub images: Vec<Digest>,
    /// Given back on the node's disk.
    pub bytes: u64,
}

/// One disk of a rootfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// SHA-256 of the SquashFS.
    pub digest: Digest,
    pub bytes: u64,
    /// How many images of the store have it.
    pub images: u32,
}

/// One rootfs of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Names its content and how it wants to be run: SHA-256 over the digests of its layers, environment and working directory
    /// (docs/rootfs.md). Of an image that the first version of the store made, its one layer's digest.
    pub digest: Digest,
    pub names: Vec<String>,
    /// Bytes of all layers.
    pub bytes: u64,
    /// Bottom to top, 1 to [`crate::limits::ROOTFS_DISKS_MAX`].
    pub layers: Vec<Layer>,
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
