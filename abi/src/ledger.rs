//! The ledger's events and the client that waits for a receipt. Owned by ctxgraph; written by every service.
//!
//! Must hold: [`Client::append`] returns only after the event is durable, or with an error; a caller releases its
//! effect only on `Ok` (fail closed).

use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::exposure::Exposure;
use crate::identity::Service;
use crate::ids::{AgentName, Digest, HostName, Instance, Name, SecretName};
use crate::limits;
use crate::rpc::{Incoming, Request, RpcError};
use crate::wire::{Connection, WireError};

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

/// Why there is no receipt, and so no effect.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("ledger cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    #[error("ledger connection: {0}")]
    Wire(#[from] WireError),
    #[error("ledger refused the event: {0}")]
    Refused(RpcError),
    #[error("ledger answered what was not asked: {0}")]
    Protocol(String),
}

/// A connection to the ledger that is made when needed and remade once when it broke. Cheap to share.
#[derive(Debug)]
pub struct Client {
    path: String,
    /// With the moment of its last use.
    connection: Mutex<Option<(Connection, Instant)>>,
}

impl Client {
    /// The node's ledger.
    pub fn of_node() -> Client {
        Client::at(Service::Ctxgraph.socket_path())
    }

    /// A ledger at another socket, for tests outside a node.
    pub fn at(path: impl Into<String>) -> Client {
        Client { path: path.into(), connection: Mutex::new(None) }
    }

    /// Appends an event and waits until it is durable. At most two times [`limits::PEER_CALL_MS_MAX`].
    pub fn append(&self, event: Event) -> Result<Receipt, LedgerError> {
        self.send(Append { event, durable: true })
    }

    /// Chains an event; it becomes durable with the next batch.
    pub fn note(&self, event: Event) -> Result<Receipt, LedgerError> {
        self.send(Append { event, durable: false })
    }

    fn send(&self, append: Append) -> Result<Receipt, LedgerError> {
        let params = serde_json::to_value(&append).map_err(|e| LedgerError::Protocol(e.to_string()))?;
        let mut slot = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A kept connection may be one that a restarted ledger no longer knows: then one fresh try.
        if let Some((mut connection, _)) = slot.take()
            && let Ok(receipt) = exchange(&mut connection, params.clone())
        {
            *slot = Some((connection, Instant::now()));
            return receipt;
        }
        let mut connection = Connection::connect(&self.path)?;
        connection.set_timeout(Some(Duration::from_millis(limits::PEER_CALL_MS_MAX)))?;
        let receipt = exchange(&mut connection, params)?;
        *slot = Some((connection, Instant::now()));
        receipt
    }

    /// Closes the connection if it was not used for `idle`. One that is in use is left alone.
    pub fn rest(&self, idle: Duration) {
        if let Ok(mut slot) = self.connection.try_lock()
            && slot.as_ref().is_some_and(|(_, used)| used.elapsed() >= idle)
        {
            *slot = None;
        }
    }
}

/// Outer error: the connection is unusable. Inner error: the ledger's answer.
fn exchange(
    connection: &mut Connection,
    params: serde_json::Value,
) -> Result<Result<Receipt, LedgerError>, LedgerError> {
    connection.write_line(&Request::call(1, "ledger.append", params))?;
    let line = connection.read_line()?.ok_or(WireError::CutLine)?;
    match serde_json::from_str(&line) {
        Ok(Incoming::Response(response)) => Ok(match (response.result, response.error) {
            (Some(value), None) => {
                serde_json::from_value(value).map_err(|e| LedgerError::Protocol(e.to_string()))
            }
            (_, Some(error)) => Err(LedgerError::Refused(error)),
            (None, None) => Err(LedgerError::Protocol("neither result nor error".into())),
        }),
        _ => Err(LedgerError::Protocol(line.chars().take(200).collect())),
    }
}
