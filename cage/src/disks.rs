//! The disks of agents: workspaces, volumes, snapshots. Files of the node that only guests look into.
//!
//! Must hold: a disk belongs to one agent and is open in at most one VM. Must never: look at what a guest wrote.

use abi::control::DiskUse;
use abi::door::{Call, Outcome};
use abi::ids::{AgentName, Digest, Instance, Name};
use abi::manifest::Manifest;
use abi::rpc::{Code, RpcError};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::agents::Cage;
use crate::jail::JailVolume;
use crate::vmm::{VmmError, at};

/// The disks of one life; what is ephemeral is removed when dropped.
#[derive(Debug)]
pub struct Disks {
    scratch: Scratch,
    size_mib: u32,
}

impl Disks {
    /// Makes or finds them all, each owned by the jail's uid. `rootfs`: below which the workspace is written.
    pub fn prepare(
        cage: &Cage,
        instance: &Instance,
        manifest: &Manifest,
        rootfs: Digest,
        uid: u32,
    ) -> Result<Disks, VmmError> {
        let _ = rootfs;
        let template = cage.places.guest.join("scratch.ext4");
        let path = cage.places.scratch(instance);
        let scratch = Scratch::create(&template, path, manifest.disk_mib, uid)?;
        Ok(Disks { scratch, size_mib: manifest.disk_mib })
    }

    /// The file behind the agent's root.
    pub fn workspace(&self) -> &Path {
        self.scratch.path()
    }

    /// Its size, in bytes.
    pub fn workspace_bytes(&self) -> u64 {
        u64::from(self.size_mib) * 1024 * 1024
    }

    /// The volumes, in the order of the manifest.
    pub fn volumes(&self) -> Vec<JailVolume> {
        Vec::new()
    }

    /// All sizes together, in MiB: where disks live in memory, their pages count as the VM's.
    pub fn size_mib(&self) -> u32 {
        self.size_mib
    }
}

/// `agent.create`: makes the kept workspace of an agent that does not run.
pub fn create(
    cage: &Cage,
    manifest: &Manifest,
    rootfs: Digest,
    snapshot: Option<&Name>,
) -> Result<(), RpcError> {
    let _ = (cage, manifest, rootfs, snapshot);
    Err(RpcError::new(Code::UNKNOWN_METHOD, "cage has no kept workspaces"))
}

/// For `agent.remove`: deletes the kept workspace of an agent that does not run, if there is one.
pub fn remove_workspace(cage: &Cage, agent: &AgentName) -> io::Result<()> {
    let _ = (cage, agent);
    Ok(())
}

/// What an agent's disks take on the node's disk.
pub fn usage(cage: &Cage, agent: &AgentName) -> Vec<DiskUse> {
    let _ = (cage, agent);
    Vec::new()
}

/// Kept workspaces and snapshots by the rootfs they lie above.
pub fn above(cage: &Cage) -> io::Result<std::collections::BTreeMap<Digest, String>> {
    let _ = cage; // no workspace outlives its life yet
    Ok(Default::default())
}

/// Answers `snapshot.*` and `volume.*`.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let _ = cage;
    Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{}`", call.request.method)))
}

/// A VM's scratch disk; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes the disk: the template's file system, sparse, at the full size; the guest grows it.
    pub fn create(template: &Path, path: PathBuf, disk_mib: u32, uid: u32) -> Result<Scratch, VmmError> {
        let mut from = File::open(template).map_err(at("scratch template", template))?;
        let mut to = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(at("scratch disk", &path))?;
        let scratch = Scratch { path };
        copy_sparse(&mut from, &mut to)
            .and_then(|()| to.set_len(u64::from(disk_mib) * 1024 * 1024))
            .and_then(|()| {
                rustix::fs::fchown(
                    &to,
                    Some(rustix::fs::Uid::from_raw(uid)),
                    Some(rustix::fs::Gid::from_raw(uid)),
                )
                .map_err(io::Error::from)
            })
            .map_err(at("scratch disk", &scratch.path))?;
        Ok(scratch)
    }

    /// The disk's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            abi::log::error("scratch_not_removed", &[("path", &self.path.display()), ("error", &error)]);
        }
    }
}

/// Copies a file, leaving holes where it has only zeroes.
fn copy_sparse(from: &mut File, to: &mut File) -> io::Result<()> {
    let zeroes = vec![0u8; 64 * 1024];
    let mut block = zeroes.clone();
    loop {
        match from.read(&mut block)? {
            0 => return Ok(()),
            n if block[..n] == zeroes[..n] => {
                to.seek(SeekFrom::Current(n as i64))?;
            }
            n => to.write_all(&block[..n])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_disk_is_sparse_private_and_gone_after_use() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("template");
        let mut bytes = vec![0u8; 1 << 20];
        bytes[600_000] = 7;
        fs::write(&template, &bytes).unwrap();
        let uid = rustix::process::getuid().as_raw();
        let scratch = Scratch::create(&template, dir.path().join("s"), 64, uid).unwrap();
        let meta = fs::metadata(scratch.path()).unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 256 * 1024, "{}", meta.blocks());
        assert_eq!(meta.mode() & 0o7777, 0o600);
        assert_eq!(fs::read(scratch.path()).unwrap()[..1 << 20], bytes);
        let path = scratch.path().to_owned();
        assert!(Scratch::create(&template, path.clone(), 64, uid).is_err());
        drop(scratch);
        assert!(!path.exists());
    }
}
