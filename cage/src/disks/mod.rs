//! The disks of agents: workspaces, volumes, snapshots. Files of the node that only guests look into (docs/disks.md).
//!
//! Must hold: a disk belongs to one agent and is open in at most one VM; it is a jail's for one life and root's before and after.
//! Must never: look at what a guest wrote.

mod calls;
mod copy;
mod custody;
mod error;
mod kept;
mod life;
mod snapshots;
mod template;
mod volumes;

pub use calls::{above, create, remove_workspace, run, usage};
pub use custody::Custody;
pub use error::DiskError;
pub use life::{Disks, EVIDENCE, is_left, rescue, stands};

use abi::control::DiskUse;
use abi::ids::{AgentName, Digest, Name};
use abi::ledger::Event;
use abi::limits;
use abi::log;
use abi::manifest::{Manifest, Workspace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::places::Places;
use crate::turns::Turns;
use calls::Watch;
use copy::Broken;
use error::at;
use kept::{Kept, NewDisk};
use template::Template;

/// Stores a receipt; without it nothing is done.
type Receipt<'a> = &'a dyn Fn(Event) -> Result<(), DiskError>;

/// All disks of the node.
#[derive(Debug)]
pub struct Depot {
    scratch: PathBuf,
    workspaces: PathBuf,
    volumes: PathBuf,
    snapshots: PathBuf,
    /// What every disk begins as.
    template: Template,
    pub custody: Custody,
    copies: Turns,
}

/// What the node decided about a kept workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkspaceRecord {
    size_mib: u32,
    /// An overlay's upper part fits only the lower part it was written on.
    rootfs: Digest,
}

/// Of which file a snapshot is taken.
#[derive(Debug)]
struct Origin {
    agent: AgentName,
    disk: PathBuf,
    size_mib: u32,
    rootfs: Digest,
}

impl Depot {
    /// Opens the directories, when nothing runs: what a power cut left half made is removed, and all files are root's again. The
    /// ephemeral workspaces of earlier lives are gone already, but for those that are evidence (`recovery::sweep`).
    pub fn open(places: &Places) -> Result<Depot, DiskError> {
        let depot = Depot {
            scratch: places.scratch_dir(),
            workspaces: places.workspaces(),
            volumes: places.volumes(),
            snapshots: places.snapshots(),
            template: Template::at(places.guest.join("scratch.ext4")),
            custody: Custody::default(),
            copies: Turns::new(limits::DISK_COPIES_MAX),
        };
        for dir in [&depot.scratch, &depot.workspaces, &depot.volumes, &depot.snapshots] {
            kept::private_dir(dir)?;
        }
        for dir in [&depot.workspaces, &depot.snapshots] {
            kept::sweep(dir)?;
        }
        for dir in kept::entries(&depot.volumes)? {
            if let Err(error) = kept::private_dir(&dir).and_then(|()| kept::sweep(&dir)) {
                log::error("disk_damaged", &[("error", &error)]); // one agent's trouble
            }
        }
        Ok(depot)
    }

    fn kept_workspace(&self, agent: &AgentName) -> Kept {
        Kept::of(&self.workspaces, agent.as_str())
    }

    /// Makes a workspace that is kept, as empty as its template.
    fn make_workspace(&self, manifest: &Manifest, rootfs: Digest) -> Result<(), DiskError> {
        let kept = self.kept_workspace(&manifest.name);
        let new = kept.begin()?;
        fill(&self.template, &new, manifest.disk_mib)?;
        kept.keep(new, &WorkspaceRecord { size_mib: manifest.disk_mib, rootfs })
    }

    /// Makes a workspace that is kept as a copy of a snapshot.
    fn fork(
        &self,
        manifest: &Manifest,
        rootfs: Digest,
        snapshot: &Name,
        watch: Watch<'_>,
    ) -> Result<(), DiskError> {
        let (from, record) = self.snapshot(snapshot)?;
        if record.rootfs != rootfs {
            let snapshot = snapshot.clone();
            return Err(DiskError::SnapshotOfOtherRootfs { snapshot, was: record.rootfs, now: rootfs });
        }
        grows(|| format!("the snapshot `{snapshot}`"), record.size_mib, manifest.disk_mib)?;
        let kept = self.kept_workspace(&manifest.name);
        let new = kept.begin()?;
        let digest = self.copy(&from.open()?, &from.disk(), &new, record.size_mib, watch)?;
        if digest != record.disk {
            let why = format!("its bytes are {digest}, and {} were copied", record.disk);
            return Err(DiskError::Damaged { path: from.disk(), why });
        }
        new.file.set_len(u64::from(manifest.disk_mib) << 20).map_err(at("resize", &kept.disk()))?;
        kept.keep(new, &WorkspaceRecord { size_mib: manifest.disk_mib, rootfs })
    }

    /// `agent.create`, with the agent's disks held.
    fn create(
        &self,
        manifest: &Manifest,
        rootfs: Digest,
        snapshot: Option<&Name>,
        watch: Watch<'_>,
    ) -> Result<(), DiskError> {
        if manifest.workspace != Workspace::Kept {
            return Err(DiskError::NotKept(manifest.name.clone()));
        }
        if self.kept_workspace(&manifest.name).read::<WorkspaceRecord>()?.is_some() {
            return Err(DiskError::WorkspaceExists(manifest.name.clone()));
        }
        match snapshot {
            None => self.make_workspace(manifest, rootfs),
            Some(snapshot) => self.fork(manifest, rootfs, snapshot, watch),
        }
    }

    /// Copies a disk into a new one, if enough stays free.
    fn copy(
        &self,
        from: &File,
        path: &Path,
        to: &NewDisk,
        size_mib: u32,
        watch: Watch<'_>,
    ) -> Result<Digest, DiskError> {
        let needed = copy::used_bytes(from).map_err(at("look at", path))?;
        let space = rustix::fs::fstatvfs(&to.file).map_err(|error| at("look at", path)(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < needed.saturating_add(limits::DISK_RESERVE_MIB << 20) {
            return Err(DiskError::Space { needed, free });
        }
        let bytes = u64::from(size_mib) << 20;
        copy::copy(from, &to.file, bytes, &mut |done| watch(done, bytes)).map_err(|broken| match broken {
            Broken::Io(error) => at("copy", path)(error),
            Broken::Step(error) => error,
        })
    }

    /// What an agent's disks take.
    fn usage(&self, agent: &AgentName) -> Result<Vec<DiskUse>, DiskError> {
        let mut disks = Vec::new();
        let kept = self.kept_workspace(agent);
        let workspace = match self.custody.lived(agent) {
            Some(lived) => Some((lived.disk, lived.size_mib)),
            None => kept.read::<WorkspaceRecord>()?.map(|record| (kept.disk(), record.size_mib)),
        };
        if let Some((disk, size_mib)) = workspace
            && let Some(used_kib) = used_kib(&disk)?
        {
            disks.push(DiskUse { name: "workspace".into(), size_mib, used_kib });
        }
        for volume in self.volumes_of(agent)? {
            let (size_mib, used_kib) = (volume.size_mib, volume.used_kib);
            disks.push(DiskUse { name: volume.name.to_string(), size_mib, used_kib });
        }
        Ok(disks)
    }

    /// Above which rootfs something was written that is kept, and what.
    fn above(&self) -> Result<BTreeMap<Digest, String>, DiskError> {
        let mut above = BTreeMap::new();
        for name in kept::names(&self.workspaces)? {
            if let Some(record) = Kept::of(&self.workspaces, &name).read::<WorkspaceRecord>()? {
                above.insert(record.rootfs, format!("the workspace of {name}"));
            }
        }
        for snapshot in self.list_snapshots()? {
            above.insert(snapshot.rootfs, format!("the snapshot {}", snapshot.name));
        }
        Ok(above)
    }
}

/// Writes a template into a new disk.
fn fill(template: &Template, new: &NewDisk, size_mib: u32) -> Result<(), DiskError> {
    template.write_to(&new.file, u64::from(size_mib) << 20).map_err(at("write from", template.path()))
}

/// Refuses a disk that would have to shrink.
fn grows(disk: impl Fn() -> String, has_mib: u32, wants_mib: u32) -> Result<(), DiskError> {
    match wants_mib < has_mib {
        true => Err(DiskError::Smaller { disk: disk(), has_mib, wants_mib }),
        false => Ok(()),
    }
}

/// What a file takes on the node's disk; none: it has just been removed.
fn used_kib(path: &Path) -> Result<Option<u64>, DiskError> {
    use std::os::unix::fs::MetadataExt;
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta.blocks() / 2)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("look at", path)(error)),
    }
}

#[cfg(test)]
mod tests;
