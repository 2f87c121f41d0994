//! The whole control protocol: every method, who owns it, who may call it, and the shapes of what goes in and out.
//!
//! A method not in [`METHODS`] does not exist. The page is docs/control-protocol.md, and a test keeps the two equal.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::config_error::ConfigError;
use crate::identity::{Role, Service};
use crate::ids::{AgentName, Destination, Digest, HostName, Instance};
use crate::ledger::Event;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Operators with this role or a higher one.
    Operators(Role),
    /// Services of the node, over their own sockets.
    Services,
}

/// One method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub name: &'static str,
    pub service: Service,
    pub audience: Audience,
    /// One line for help and docs.
    pub about: &'static str,
}

const fn method_of(name: &'static str, service: Service, audience: Audience, about: &'static str) -> Method {
    Method { name, service, audience, about }
}

const READER: Audience = Audience::Operators(Role::Reader);
const OPERATOR: Audience = Audience::Operators(Role::Operator);
const ADMIN: Audience = Audience::Operators(Role::Admin);

/// All methods, by owner.
pub const METHODS: &[Method] = &[
    method_of("system.status", Service::Nulld, READER, "phases, services, addresses, memory"),
    method_of("system.logs", Service::Nulld, READER, "log of a service, from its ring; follow streams `log`"),
    method_of("system.reboot", Service::Nulld, ADMIN, "stop everything in order and reboot"),
    method_of("system.poweroff", Service::Nulld, ADMIN, "stop everything in order and power off"),
    method_of(
        "agent.list",
        Service::Cage,
        READER,
        "all agents with their state, and manifests that are wrong",
    ),
    method_of("agent.status", Service::Cage, READER, "one agent: state, grants, limits, use, boot stages"),
    method_of(
        "agent.start",
        Service::Cage,
        OPERATOR,
        "start an agent; streams `progress`, answers when it runs",
    ),
    method_of("agent.stop", Service::Cage, OPERATOR, "stop an agent: graceful, then bounded"),
    method_of("agent.logs", Service::Cage, READER, "output of an agent; follow streams `output`"),
    method_of("agent.exec", Service::Cage, OPERATOR, "run a program in an agent's sandbox; streams `output`"),
    method_of("image.list", Service::Cage, READER, "rootfs store"),
    method_of("image.import", Service::Cage, OPERATOR, "import an OCI archive that follows the request line"),
    method_of("net.grants", Service::Egress, READER, "names each running agent may reach"),
    method_of(
        "net.denials",
        Service::Egress,
        READER,
        "what was refused, to whom, by which rule; follow streams `denial`",
    ),
    method_of(
        "net.attach",
        Service::Egress,
        Audience::Services,
        "a network for one VM; lives as long as the connection",
    ),
    method_of("memory.write", Service::Ctxgraph, OPERATOR, "write a value under a key as an agent"),
    method_of("memory.read", Service::Ctxgraph, READER, "one entry, by digest or the newest of a key"),
    method_of("memory.query", Service::Ctxgraph, READER, "newest entries of keys with a prefix"),
    method_of("memory.history", Service::Ctxgraph, READER, "all entries of a key, newest first"),
    method_of("memory.list", Service::Ctxgraph, READER, "agents with memory, entries and bytes of each"),
    method_of(
        "memory.attach",
        Service::Ctxgraph,
        Audience::Services,
        "serve an agent's memory on a listening socket",
    ),
    method_of("ledger.tail", Service::Ctxgraph, READER, "newest events; follow streams `event`"),
    method_of("ledger.verify", Service::Ctxgraph, READER, "check the whole chain"),
    method_of(
        "ledger.append",
        Service::Ctxgraph,
        Audience::Services,
        "append an event, answer with its receipt",
    ),
];

/// The method of a name.
pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// Parameters of methods that take none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

// ---- system ------------------------------------------------------------------------------------------------------

/// Result of `system.status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemStatus {
    pub node: String,
    pub version: String,
    /// Root hash of the image's dm-verity tree, from the kernel command line; empty outside an image.
    pub root_hash: String,
    pub boot_id: String,
    pub uptime_ms: u64,
    /// Milliseconds from kernel start to all services ready; none while booting.
    pub ready_ms: Option<u64>,
    /// True: no NULLBOX-STATE partition, everything is lost at power-off.
    pub ephemeral: bool,
    pub phases: Vec<Phase>,
    pub services: Vec<ServiceStatus>,
    /// Interface to addresses in CIDR form.
    pub addresses: BTreeMap<String, Vec<String>>,
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    /// Resident memory of PID 1.
    pub nulld_rss_kib: u64,
    /// What is wrong with the configuration; the node runs without it.
    pub problems: Vec<ConfigError>,
}

/// One boot phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    /// Milliseconds after kernel start.
    pub started_ms: u64,
    pub took_ms: u64,
    /// `ok`, `degraded: why` or `failed: why`.
    pub outcome: String,
}

/// One supervised service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceStatus {
    pub name: String,
    /// `waiting`, `starting`, `ready`, `stopping`, `backoff`, `stopped` or `failed`.
    pub state: String,
    pub pid: Option<u32>,
    pub restarts: u64,
    pub ready_ms: Option<u64>,
    pub memory_kib: u64,
    /// Why it is not ready, or how it last ended.
    pub detail: String,
}

/// Parameters of `system.logs`. Lines come as notifications `log` with [`LogLine`], the result is [`Nothing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemLogs {
    /// None: all.
    #[serde(default)]
    pub service: Option<String>,
    /// Newest lines to begin with.
    #[serde(default)]
    pub lines: Option<u32>,
    #[serde(default)]
    pub follow: bool,
}

/// A line of a service's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    pub seq: u64,
    pub unix_ms: u64,
    pub service: String,
    pub line: String,
}

// ---- agents ------------------------------------------------------------------------------------------------------

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

// ---- network -----------------------------------------------------------------------------------------------------

/// Parameters of `net.attach`. Result: [`Attached`], with the VM's network namespace as a descriptor beside it. The network
/// lives as long as the connection: when cage closes it, or dies, all of it is torn down.
///
/// With one descriptor beside the request (a network namespace that an earlier attach returned) egress adopts it instead of
/// making one: that is how a network survives a restart of egress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAttach {
    pub instance: Instance,
    /// Owner of the TAP: the jail's uid.
    pub uid: u32,
    pub allow: Vec<Destination>,
}

/// Result of `net.attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// Name of the TAP inside the namespace, at most 15 bytes.
    pub tap: String,
    /// MAC address the guest must use, `xx:xx:xx:xx:xx:xx`.
    pub mac: String,
    pub guest: crate::guest::GuestNetwork,
}

/// Result of `net.grants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    pub agents: Vec<AgentGrants>,
}

/// What one running agent may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentGrants {
    pub instance: Instance,
    pub allow: Vec<Destination>,
    pub connections: u32,
    pub connections_total: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub denials: u64,
    /// Synthetic address of each name.
    pub synthetic: BTreeMap<HostName, String>,
}

/// Parameters of `net.denials`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetDenials {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub follow: bool,
}

/// Result of `net.denials`; with follow each later one comes as notification `denial` with [`Denial`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denials {
    pub denials: Vec<Denial>,
    /// Older ones no longer kept in memory, and repeats that the rate limit folded.
    pub dropped: u64,
}

/// Something egress refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    pub unix_ms: u64,
    pub instance: Instance,
    /// What was tried: `dns A evil.example`, `tcp 8.8.8.8:443`, `sni other.example on api.exa.ai:443`.
    pub what: String,
    /// Which rule refused it: `name-not-granted`, `raw-address`, `protocol`, `sni-mismatch`, `host-mismatch`, `no-sni`,
    /// `private-address`, `port-not-granted`, `limit`.
    pub rule: String,
    /// How to grant it, or that it cannot be granted.
    pub remedy: String,
    /// The same within a second, folded into this one.
    pub count: u64,
}

// ---- memory ------------------------------------------------------------------------------------------------------

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

// ---- ledger ------------------------------------------------------------------------------------------------------

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn method_names_are_distinct_and_belong_to_their_owner() {
        let names: BTreeSet<_> = METHODS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METHODS.len());
        for method in METHODS {
            let owner = match method.name.split('.').next().unwrap() {
                "system" => Service::Nulld,
                "agent" | "image" => Service::Cage,
                "net" => Service::Egress,
                "memory" | "ledger" => Service::Ctxgraph,
                other => panic!("{other}"),
            };
            assert_eq!(method.service, owner, "{}", method.name);
        }
    }
}
