//! The ledger's events, and the receipts of them. Owned by ctxgraph; written by every service.
//!
//! Must hold: an event says what a service knows, and whose word it is where it only repeats it.

mod client;

pub use client::{Client, LedgerError};

use serde::{Deserialize, Serialize};

use crate::exposure::Exposure;
use crate::ids::{AgentName, Digest, HostName, Instance, Name, SecretName};

/// One thing that happened or is about to. The service that says so is recorded by the ledger, from its uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    NodeBooted {
        version: String,
        root_hash: String,
        boot_id: String,
    },
    NodeStopping {
        action: String,
        by: String,
    },
    /// nulld crashed, began again and kept the services that were running.
    NulldCrashed {
        reason: String,
        /// In this boot.
        count: u32,
    },
    /// The wall clock jumped.
    ClockChanged {
        from_unix_ms: u64,
        to_unix_ms: u64,
    },
    ServiceStarted {
        service: String,
        restarts: u64,
    },
    ServiceExited {
        service: String,
        reason: String,
    },
    CallRefused {
        by: String,
        method: String,
        reason: String,
    },
    CallMade {
        by: String,
        method: String,
    },
    RootfsImported {
        name: String,
        digest: Digest,
        archive: Digest,
    },
    AgentStarting {
        instance: Instance,
        manifest: Digest,
        rootfs: Digest,
        by: String,
    },
    AgentReady {
        instance: Instance,
        boot_ms: u64,
    },
    AgentStopping {
        instance: Instance,
        by: String,
    },
    AgentExited {
        instance: Instance,
        reason: String,
        code: Option<i32>,
        signal: Option<i32>,
    },
    ExecStarted {
        instance: Instance,
        command: Vec<String>,
        by: String,
    },
    /// A stopped agent's workspace was made, empty or from a snapshot.
    AgentCreated {
        agent: AgentName,
        snapshot: Option<Name>,
        by: String,
    },
    AgentPaused {
        instance: Instance,
        by: String,
    },
    AgentResumed {
        instance: Instance,
        by: String,
    },
    /// Frozen, its network cut, everything of it kept.
    AgentQuarantined {
        instance: Instance,
        by: String,
        reason: String,
    },
    AgentKilled {
        instance: Instance,
        by: String,
    },
    /// Its restart policy starts it again.
    AgentRestarting {
        instance: Instance,
        reason: String,
        /// From 1, since it last ran for long.
        attempt: u32,
    },
    AgentUnhealthy {
        instance: Instance,
        detail: String,
    },
    /// Workspace, log and evidence were deleted.
    AgentRemoved {
        agent: AgentName,
        by: String,
    },
    /// Somebody copies all that is kept of a quarantined life off the node.
    EvidenceRead {
        instance: Instance,
        by: String,
    },
    /// All that was kept of a quarantined life was deleted.
    EvidenceRemoved {
        instance: Instance,
        by: String,
    },
    /// Somebody sees the command's output and writes its input.
    AgentAttached {
        instance: Instance,
        by: String,
    },
    FilesRead {
        instance: Instance,
        path: String,
        by: String,
    },
    FilesWritten {
        instance: Instance,
        path: String,
        by: String,
    },
    SnapshotTaken {
        agent: AgentName,
        snapshot: Name,
        /// SHA-256 of the disk's file.
        disk: Digest,
        by: String,
    },
    SnapshotRemoved {
        snapshot: Name,
        by: String,
    },
    VolumeCreated {
        agent: AgentName,
        volume: Name,
        size_mib: u32,
    },
    VolumeRemoved {
        agent: AgentName,
        volume: Name,
        by: String,
    },
    /// Names of an image were removed; with its last name, or none, the image itself.
    ImageRemoved {
        digest: Digest,
        names: Vec<String>,
        by: String,
    },
    /// A connection from outside to a published port.
    PortConnected {
        instance: Instance,
        node_port: u16,
        from: String,
    },
    NetAttached {
        instance: Instance,
        names: usize,
    },
    NetDetached {
        instance: Instance,
    },
    NetConnected {
        instance: Instance,
        name: HostName,
        port: u16,
        address: String,
        /// The grant that lets it through, in words.
        #[serde(default)]
        rule: String,
    },
    /// A connection of [`Event::NetConnected`], or the answer to a [`Event::BrokerCalled`], has ended.
    NetEnded {
        instance: Instance,
        name: HostName,
        port: u16,
        address: String,
        bytes_out: u64,
        bytes_in: u64,
        duration_ms: u64,
        rule: String,
        end: String,
        /// Place of the receipt that came before it.
        receipt: u64,
    },
    /// An operator changed what an agent may reach, or a live grant ended by its time.
    NetPolicyChanged {
        agent: AgentName,
        /// `allow`, `deny`, `revoke`, `lift` or `expire`.
        change: String,
        /// The entry, as a manifest writes it.
        entry: String,
        until_unix_ms: Option<u64>,
        by: String,
    },
    /// An operator let egress forget live changes that it could not read.
    NetPolicyForgotten {
        by: String,
    },
    /// Somebody else changed packet rules, and egress put its own back.
    FirewallRestored {
        /// Whose network it was; none: the node's own rules.
        instance: Option<Instance>,
        /// The process that changed them, as the kernel names it.
        by: String,
    },
    SecretSet {
        name: SecretName,
        host: HostName,
        by: String,
    },
    SecretRemoved {
        name: SecretName,
        by: String,
    },
    /// A request leaves through the broker, with a secret or without, and with this reserved.
    BrokerCalled {
        instance: Instance,
        name: HostName,
        port: u16,
        address: String,
        secret: Option<SecretName>,
        method: String,
        /// Without the query.
        path: String,
        model: Option<String>,
        reserved: crate::control::Spent,
        rule: String,
    },
    /// What the call used. Without a report of the host `usage_known` is false, and the reservation is what it used.
    BrokerSettled {
        instance: Instance,
        /// Place of the call's receipt.
        receipt: u64,
        status: Option<u16>,
        usage_known: bool,
        used: crate::control::Spent,
    },
    BudgetReset {
        agent: AgentName,
        by: String,
    },
    NetDenied {
        instance: Instance,
        what: String,
        rule: String,
    },
    /// Bytes after the last whole frame, left by a power cut before anybody was told that they were durable.
    LedgerCut {
        bytes: u64,
        why: String,
    },
    MemoryAttached {
        instance: Instance,
    },
    MemoryWritten {
        /// Whose memory it is in.
        agent: AgentName,
        key: String,
        entry: Digest,
        /// Who wrote it, where it was not that agent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        writer: Option<String>,
    },
    /// Values that are about to be deleted; the entries stay as tombstones.
    MemoryForgotten {
        agent: AgentName,
        key: String,
        entry: Digest,
        why: String,
    },
    /// An agent read what its exposure did not have.
    ExposureRaised {
        instance: Instance,
        to: Exposure,
        /// The entry that raised it.
        entry: Digest,
    },
    /// Entries leave the node in a bundle.
    MemoryExported {
        entries: u64,
        by: String,
    },
    /// Entries of a bundle are about to be stored.
    MemoryImported {
        entries: u64,
        /// The node that signed the bundle, by the public key of its ledger.
        signer: String,
        bundle: Digest,
        by: String,
    },
    /// memory.db is wrong somewhere.
    MemoryDamaged {
        place: String,
        why: String,
        lost: String,
    },
    /// The key that signs checkpoints was made.
    LedgerKeyMade {
        key: String,
    },
    MemoryDenied {
        agent: AgentName,
        what: String,
        rule: String,
    },
    /// A tool is about to be used, or was refused.
    ToolCalled {
        instance: Instance,
        /// Of the guest's choice, used once in a life.
        call: u32,
        tool: String,
        /// Absent where it is none that rules are written about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operation: Option<crate::authority::Operation>,
        /// The path, the program, the page; its first 512 bytes.
        target: String,
        arguments: Digest,
        verdict: crate::authority::Verdict,
        rule: String,
        /// What the sink was judged by, and what the result carries.
        exposure: Exposure,
        labels: Exposure,
        /// The approval that was used up by it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        approval: Option<Name>,
    },
    /// A question was put to people.
    ApprovalAsked {
        id: Name,
        instance: Option<Instance>,
        tool: String,
        arguments: Digest,
        pinned: Digest,
        rule: String,
        exposure: Exposure,
    },
    /// It was answered, or nobody did in time (`by` is then `clock`).
    ApprovalDecided {
        id: Name,
        approved: bool,
        by: String,
        reason: String,
    },
    /// What a life has seen is more now, by a tool's result.
    ToolExposed {
        instance: Instance,
        to: Exposure,
        call: u32,
    },
    /// A human said that exactly these arguments may leave.
    Declassified {
        instance: Instance,
        arguments: Digest,
        by: String,
        reason: String,
    },
    /// A life may do less from now on.
    AuthorityTightened {
        instance: Instance,
        rules: Digest,
        by: String,
    },
    /// A bound is reached; the agent stands still.
    BudgetExhausted {
        instance: Instance,
        what: String,
        bound: u64,
    },
    TaskAccepted {
        task: Name,
        agent: AgentName,
        goal: Digest,
        base: Digest,
        command: Vec<String>,
        by: String,
    },
    /// A candidate says that it is done. A claim.
    TaskClaimed {
        task: Name,
        instance: Instance,
        patch: Digest,
        files: u64,
    },
    /// A claim that is not legal; nothing of it was run.
    ClaimRefused {
        task: Name,
        instance: Instance,
        rule: String,
        path: String,
    },
    /// The verify command ran on the tree with the patch, and did not end well.
    VerifyFailed {
        task: Name,
        verifier: Instance,
        patch: Digest,
        reason: String,
    },
    /// It ended well. Only this makes a task done.
    PatchVerified {
        facts: Box<crate::control::PatchFacts>,
    },
    TaskPaused {
        task: Name,
        reason: String,
        by: String,
    },
    TaskResumed {
        task: Name,
        by: String,
    },
    TaskEnded {
        task: Name,
        state: crate::control::TaskState,
        reason: String,
        by: String,
    },
    /// A verified patch is given out for one step.
    TaskIntegrated {
        task: Name,
        patch: Digest,
        step: String,
        approval: Name,
        by: String,
    },
}

/// Parameters of `ledger.append`, legal for services only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Append {
    pub event: Event,
    /// True: answer after fsync. False: chained at once, durable within the batch delay (docs/ctxgraph.md).
    pub durable: bool,
}

/// What stands in the ledger for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Position, from 0, without gaps.
    pub seq: u64,
    /// Digest of the event's frame, which covers all frames before it.
    pub digest: Digest,
}
