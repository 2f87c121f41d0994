//! The disks of one life: made or found, lent to the jail, given back.
//!
//! Must hold: whatever happens, a disk that is lent is taken back or removed when the life's [`Disks`] are dropped, but for a VMM
//! that could not be killed: then nobody else gets them.

use abi::ids::{Digest, Instance};
use abi::log;
use abi::manifest::{Manifest, Workspace};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::custody::{LifeHold, Lived};
use super::error::{DiskError, at};
use super::kept::{self, Kept};
use super::{Depot, Receipt, WorkspaceRecord, calls, grows};
use crate::agents::Cage;
use crate::evidence;
use crate::jail::JailVolume;
use crate::places::Places;

/// What a workspace is called as evidence.
pub const EVIDENCE: &str = "workspace.ext4";

/// The disks of one life; what is ephemeral is removed when dropped.
#[derive(Debug)]
pub struct Disks {
    workspace: Lent,
    workspace_mib: u32,
    volumes: Vec<(Lent, JailVolume)>,
    /// Last: nobody else may have them before they are taken back.
    _hold: LifeHold,
}

/// A file that is a jail's until this is dropped.
#[derive(Debug)]
struct Lent {
    path: PathBuf,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Remove,
    TakeBack {
        kept: Kept,
        size_mib: u32,
    },
    /// It has moved.
    Nothing,
}

impl Disks {
    /// Makes or finds them all, each owned by the jail's uid. `rootfs`: below which the workspace is written.
    pub fn prepare(
        cage: &Cage,
        instance: &Instance,
        manifest: &Manifest,
        rootfs: Digest,
        uid: u32,
    ) -> Result<Disks, DiskError> {
        if manifest.workspace == Workspace::Kept {
            let owed = evidence::owed(&cage.places, &instance.agent)
                .map_err(at("list", &evidence::root(&cage.places)))?;
            owed.map_or(Ok(()), |life| Err(DiskError::IsEvidence(life)))?;
        }
        cage.disks.prepare(instance, manifest, rootfs, uid, &calls::receipt(cage))
    }

    /// The file behind the agent's root.
    pub fn workspace(&self) -> &Path {
        &self.workspace.path
    }

    /// Its size, in bytes.
    pub fn workspace_bytes(&self) -> u64 {
        u64::from(self.workspace_mib) << 20
    }

    /// The volumes, in the order of the manifest.
    pub fn volumes(&self) -> Vec<JailVolume> {
        self.volumes.iter().map(|(_, volume)| volume.clone()).collect()
    }

    /// All sizes together, in MiB: where disks live in memory, their pages count as the VM's.
    pub fn size_mib(&self) -> u32 {
        let volumes =
            self.volumes.iter().map(|(_, volume)| u32::try_from(volume.bytes >> 20).unwrap_or(u32::MAX));
        volumes.fold(self.workspace_mib, u32::saturating_add)
    }

    /// Moves the workspace into a directory of the same file system, as `workspace.ext4`: it is evidence, and no life goes on
    /// with it. A kept one's agent begins anew; its volumes stay. What cannot be moved stays where it is, for [`rescue`].
    pub fn keep_as_evidence(mut self, dir: &Path) -> io::Result<()> {
        let then = std::mem::replace(&mut self.workspace.then, Then::Nothing);
        move_to(&self.workspace.path, dir)?;
        match then {
            // The record goes after the disk: a power cut between the two leaves no disk without a record, which is a leftover.
            Then::TakeBack { kept, .. } => kept.remove().map_err(io::Error::other),
            Then::Remove | Then::Nothing => Ok(()),
        }
    }

    /// For a VMM that could not be killed: it may still write, so nobody gets these disks before the node restarts.
    pub fn abandon(self) {
        std::mem::forget(self);
    }
}

impl Depot {
    /// [`Disks::prepare`].
    pub(super) fn prepare(
        &self,
        instance: &Instance,
        manifest: &Manifest,
        rootfs: Digest,
        uid: u32,
        receipt: Receipt<'_>,
    ) -> Result<Disks, DiskError> {
        let size_mib = manifest.disk_mib;
        let disk = match manifest.workspace {
            Workspace::Ephemeral => self.scratch.join(format!("{instance}.ext4")),
            Workspace::Kept => self.kept_workspace(&instance.agent).disk(),
        };
        let hold = self.custody.begin_life(Lived { instance: instance.clone(), disk, size_mib, rootfs })?;
        let workspace = match manifest.workspace {
            Workspace::Ephemeral => self.ephemeral(instance, size_mib)?,
            Workspace::Kept => self.go_on(manifest, rootfs)?,
        };
        kept::give(&workspace.path, uid, false)?;
        let mut volumes = Vec::new();
        for (name, grant) in &manifest.volumes {
            let kept = self.volume(&instance.agent, name, grant.size_mib, receipt)?;
            let lent = Lent::kept(kept, grant.size_mib);
            kept::give(&lent.path, uid, grant.read_only)?;
            let (path, bytes) = (lent.path.clone(), u64::from(grant.size_mib) << 20);
            volumes.push((lent, JailVolume { path, bytes, read_only: grant.read_only }));
        }
        Ok(Disks { workspace, workspace_mib: size_mib, volumes, _hold: hold })
    }

    /// A new workspace for one life.
    fn ephemeral(&self, instance: &Instance, size_mib: u32) -> Result<Lent, DiskError> {
        let path = self.scratch.join(format!("{instance}.ext4"));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|error| at("make", &path)(error.into()))?);
        let lent = Lent { path, then: Then::Remove };
        let bytes = u64::from(size_mib) << 20;
        self.template.write_to(&file, bytes).map_err(at("write from", self.template.path()))?;
        Ok(lent)
    }

    /// The workspace that is kept, made if there is none.
    fn go_on(&self, manifest: &Manifest, rootfs: Digest) -> Result<Lent, DiskError> {
        let kept = self.kept_workspace(&manifest.name);
        match kept.read::<WorkspaceRecord>()? {
            None => self.make_workspace(manifest, rootfs)?,
            Some(record) if record.rootfs != rootfs => {
                let agent = manifest.name.clone();
                return Err(DiskError::OtherRootfs { agent, was: record.rootfs, now: rootfs });
            }
            Some(record) => {
                grows(|| format!("the workspace of {}", manifest.name), record.size_mib, manifest.disk_mib)?;
                if manifest.disk_mib > record.size_mib {
                    kept.write(&WorkspaceRecord { size_mib: manifest.disk_mib, rootfs })?;
                }
                kept.set_size(manifest.disk_mib)?;
            }
        }
        Ok(Lent::kept(kept, manifest.disk_mib))
    }
}

/// After a cage that died with a quarantined life: moves the disk of that life into its evidence, if that is not done. True if
/// there was one.
pub fn rescue(places: &Places, life: &Instance, dir: &Path) -> io::Result<bool> {
    let Some(disk) = left(places, life, dir) else { return Ok(false) };
    move_to(&disk, dir)?;
    let kept = kept_by(places, life);
    if disk == kept.disk() {
        kept.remove().map_err(io::Error::other)?;
    }
    Ok(true)
}

/// Whether the disk of a quarantined life that has ended is not with its evidence.
pub fn is_left(places: &Places, life: &Instance, dir: &Path) -> bool {
    left(places, life, dir).is_some()
}

/// Where that disk is.
fn left(places: &Places, life: &Instance, dir: &Path) -> Option<PathBuf> {
    let mut disks = [places.scratch(life), kept_by(places, life).disk()].into_iter();
    disks.find(|disk| stands(disk)).filter(|_| !stands(&dir.join(EVIDENCE)))
}

fn kept_by(places: &Places, life: &Instance) -> Kept {
    Kept::of(&places.workspaces(), life.agent.as_str())
}

/// Whether something has this name, as far as anybody can tell.
pub fn stands(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Moves a disk into a directory of evidence, durably.
fn move_to(disk: &Path, dir: &Path) -> io::Result<()> {
    kept::take_back(disk).map_err(io::Error::other)?;
    fs::rename(disk, dir.join(EVIDENCE))?;
    File::open(dir)?.sync_all()
}

impl Lent {
    fn kept(kept: Kept, size_mib: u32) -> Lent {
        Lent { path: kept.disk(), then: Then::TakeBack { kept, size_mib } }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let outcome = match &self.then {
            Then::Remove => fs::remove_file(&self.path).map_err(at("remove", &self.path)),
            // A VMM may have changed the length of its own file.
            Then::TakeBack { kept, size_mib } => {
                kept::take_back(&self.path).and_then(|()| kept.set_size(*size_mib))
            }
            Then::Nothing => Ok(()),
        };
        if let Err(error) = outcome {
            log::error("disk_not_taken_back", &[("path", &self.path.display()), ("error", &error)]);
        }
    }
}
