//! Why a disk is not made, lent, copied or removed. Each variant says what is so, by which rule, and what to do.

use abi::ids::{AgentName, Digest, Instance, Name};
use abi::ledger::LedgerError;
use abi::limits;
use abi::rpc::{Code, RpcError};
use std::io;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// What went wrong with a disk.
#[derive(Debug)]
pub enum DiskError {
    // The operator's.
    OtherRootfs {
        agent: AgentName,
        was: Digest,
        now: Digest,
    },
    SnapshotOfOtherRootfs {
        snapshot: Name,
        was: Digest,
        now: Digest,
    },
    /// `disk` in words: `the workspace of a`, `the volume a/data`, `the snapshot s`.
    Smaller {
        disk: String,
        has_mib: u32,
        wants_mib: u32,
    },
    NotKept(AgentName),
    WorkspaceExists(AgentName),
    NoWorkspace(AgentName),
    /// It runs, starts or stops, so its disks change.
    Changing(AgentName),
    /// Something else is being done with the agent's disks.
    Busy {
        agent: AgentName,
        doing: &'static str,
    },
    UnknownSnapshot(Name),
    SnapshotExists(Name),
    SnapshotsMax,
    UnknownVolume {
        agent: AgentName,
        volume: Name,
    },
    VolumesMax,
    /// The agent's life went on or ended while its disk was copied.
    Moved(AgentName),
    CallerGone,
    // The node's.
    Space {
        needed: u64,
        free: u64,
    },
    /// A life has ended whose VMM could not be killed.
    StillOpen(Instance),
    /// The kept workspace is a quarantined life's, and could not be moved to its evidence.
    IsEvidence(Instance),
    /// A file of the state is not what cage wrote.
    Damaged {
        path: PathBuf,
        why: String,
    },
    NoReceipt(LedgerError),
    /// The image below the disk.
    Image(StoreError),
    Host {
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

/// Names operation and file of an error.
pub fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |error| DiskError::Host { doing, path: path.to_owned(), error }
}

impl DiskError {
    fn code(&self) -> Code {
        match self {
            DiskError::SnapshotsMax | DiskError::VolumesMax | DiskError::Space { .. } => Code::LIMIT,
            DiskError::UnknownSnapshot(_) | DiskError::UnknownVolume { .. } | DiskError::NoWorkspace(_) => {
                Code::NOT_FOUND
            }
            DiskError::CallerGone
            | DiskError::Damaged { .. }
            | DiskError::NoReceipt(_)
            | DiskError::Host { .. } => Code::FAILED,
            DiskError::OtherRootfs { .. }
            | DiskError::SnapshotOfOtherRootfs { .. }
            | DiskError::Smaller { .. }
            | DiskError::NotKept(_)
            | DiskError::WorkspaceExists(_)
            | DiskError::Changing(_)
            | DiskError::Busy { .. }
            | DiskError::SnapshotExists(_)
            | DiskError::Moved(_)
            | DiskError::StillOpen(_)
            | DiskError::Image(_)
            | DiskError::IsEvidence(_) => Code::CONFLICT,
        }
    }

    fn what(&self) -> String {
        match self {
            DiskError::OtherRootfs { agent, was, now } => {
                format!("the workspace was written below rootfs {was}, and {agent} asks for {now}")
            }
            DiskError::SnapshotOfOtherRootfs { snapshot, was, now } => {
                format!(
                    "the snapshot `{snapshot}` was written below rootfs {was}, and the manifest says {now}"
                )
            }
            DiskError::Smaller { disk, has_mib, wants_mib } => {
                format!("{disk} has {has_mib} MiB, and the manifest says {wants_mib}")
            }
            DiskError::NotKept(agent) => format!("the workspace of {agent} is not kept"),
            DiskError::WorkspaceExists(agent) => format!("{agent} has a workspace already"),
            DiskError::NoWorkspace(agent) => format!("there is no workspace of {agent}"),
            DiskError::Changing(agent) => format!("the disks of {agent} are in use"),
            DiskError::Busy { agent, doing } => format!("{agent}: {doing}"),
            DiskError::UnknownSnapshot(name) => format!("there is no snapshot `{name}`"),
            DiskError::SnapshotExists(name) => format!("there is a snapshot `{name}` already"),
            DiskError::SnapshotsMax => format!("the node holds {} snapshots", limits::SNAPSHOTS_MAX),
            DiskError::UnknownVolume { agent, volume } => format!("there is no volume `{agent}/{volume}`"),
            DiskError::VolumesMax => format!("the node holds {} volumes", limits::VOLUMES_MAX),
            DiskError::Moved(agent) => format!("{agent} went on or ended while its disk was copied"),
            DiskError::CallerGone => "the caller went away; nothing was kept".into(),
            DiskError::Space { needed, free } => {
                format!("the copy may take {} MiB, and {} MiB are free", needed >> 20, free >> 20)
            }
            DiskError::StillOpen(instance) => {
                format!("the VMM of {instance} could not be killed and may still write")
            }
            DiskError::IsEvidence(instance) => {
                format!("the workspace is evidence of {instance} and could not be moved to it")
            }
            DiskError::Damaged { path, why } => format!("{}: {why}", path.display()),
            DiskError::NoReceipt(error) => format!("no receipt, so nothing was done: {error}"),
            DiskError::Image(error) => error.to_string(),
            DiskError::Host { doing, path, error } => format!("{doing} {}: {error}", path.display()),
        }
    }

    fn rule(&self) -> String {
        match self {
            DiskError::OtherRootfs { .. } | DiskError::SnapshotOfOtherRootfs { .. } => {
                "a workspace fits only the rootfs it was written below".into()
            }
            DiskError::Smaller { .. } => "a disk grows and never shrinks".into(),
            DiskError::NotKept(_) => {
                "only a kept workspace outlives its life; any other one begins empty".into()
            }
            DiskError::WorkspaceExists(_) => "an agent has one workspace".into(),
            DiskError::NoWorkspace(_) => {
                "a kept workspace is made by the first start or by agent create".into()
            }
            DiskError::Changing(_) => "a disk is copied or removed while nothing writes to it".into(),
            DiskError::Busy { .. } | DiskError::StillOpen(_) => {
                "one thing at a time is done with an agent's disks".into()
            }
            DiskError::UnknownSnapshot(_) => "a snapshot is made by snapshot create".into(),
            DiskError::SnapshotExists(_) => "a snapshot's name is its own".into(),
            DiskError::SnapshotsMax => format!("at most {} snapshots", limits::SNAPSHOTS_MAX),
            DiskError::UnknownVolume { .. } => "a volume is made by the first start that asks for it".into(),
            DiskError::VolumesMax => format!("at most {} volumes", limits::VOLUMES_MAX),
            DiskError::Moved(_) => "a copy is of one moment".into(),
            DiskError::CallerGone => "a copy that nobody waits for is given up".into(),
            DiskError::Space { .. } => {
                format!("a copy leaves {} MiB of the node's disk free", limits::DISK_RESERVE_MIB)
            }
            DiskError::IsEvidence(_) => "no life goes on with what a quarantined one wrote".into(),
            DiskError::Damaged { .. } => "the node's state is written by the node alone".into(),
            DiskError::NoReceipt(_) => "every effect leaves a receipt first".into(),
            DiskError::Image(_) => "a workspace is of no use without its rootfs".into(),
            DiskError::Host { .. } => "disks live in the node's state".into(),
        }
    }

    fn remedy(&self) -> String {
        match self {
            DiskError::OtherRootfs { agent, was, .. } => {
                format!("set rootfs = \"{was}\" in its manifest, or begin anew with agent remove {agent}")
            }
            DiskError::SnapshotOfOtherRootfs { was, .. } => format!("set rootfs = \"{was}\" in the manifest"),
            DiskError::Smaller { has_mib, .. } => {
                format!("ask for at least {has_mib} MiB, or remove it and begin anew")
            }
            DiskError::NotKept(_) => "set workspace = \"kept\" in its manifest".into(),
            DiskError::WorkspaceExists(agent) => {
                format!("keep it with snapshot create, then agent remove {agent}")
            }
            DiskError::NoWorkspace(agent) => format!("start {agent} first, with workspace = \"kept\""),
            DiskError::Changing(agent) => {
                format!("agent stop {agent} or, for a snapshot, agent pause {agent}")
            }
            DiskError::Busy { .. } => "wait until that is done".into(),
            DiskError::UnknownSnapshot(_) => "see snapshot list".into(),
            DiskError::SnapshotExists(name) => format!("choose another name, or snapshot remove {name}"),
            DiskError::SnapshotsMax => "remove some with snapshot remove".into(),
            DiskError::UnknownVolume { .. } => "see volume list".into(),
            DiskError::VolumesMax => "remove some with volume remove".into(),
            DiskError::Moved(_) => "take it again".into(),
            DiskError::CallerGone => "stay until it is done".into(),
            DiskError::Space { .. } => "remove snapshots, volumes or images".into(),
            DiskError::StillOpen(_) => "restart the node".into(),
            DiskError::IsEvidence(Instance { agent, .. }) => {
                format!("see system logs cage, and restart the node; agent remove {agent} deletes both")
            }
            DiskError::Damaged { path, .. } => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                format!("look at the state disk on another machine, or remove {stem} and begin anew")
            }
            DiskError::NoReceipt(_) => "see system status: does ctxgraph run".into(),
            DiskError::Image(_) => "try again; see image list".into(),
            DiskError::Host { .. } => "is /state full, or its disk broken".into(),
        }
    }
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.what(), self.remedy())
    }
}

impl std::error::Error for DiskError {}

impl From<DiskError> for RpcError {
    fn from(error: DiskError) -> RpcError {
        RpcError::new(error.code(), error.what()).explained(error.rule(), error.remedy())
    }
}
