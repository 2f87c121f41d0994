//! Where cage finds things. One value, so that tests can stand elsewhere.

use abi::identity::Service;
use abi::ids::Instance;
use abi::node;
use std::path::PathBuf;

/// Directories, files and sockets that cage uses.
#[derive(Debug, Clone)]
pub struct Places {
    /// Configuration: `agents/` and `rootfs/`.
    pub config: PathBuf,
    /// What outlives a boot: store, generation, logs, scratch disks.
    pub state: PathBuf,
    /// What does not: jails and their sockets.
    pub run: PathBuf,
    /// `vmlinux`, `initramfs.cpio` and `scratch.ext4`.
    pub guest: PathBuf,
    pub vmm: PathBuf,
    pub egress: String,
    pub ctxgraph: String,
}

impl Places {
    /// The places of a node (docs/ARCHITECTURE.md).
    pub fn of_node() -> Places {
        Places {
            config: node::CONFIG_DIR.into(),
            state: PathBuf::from(node::STATE_DIR).join(Service::Cage.name()),
            run: "/run/cage".into(),
            guest: "/system/guest".into(),
            vmm: "/system/bin/cage-vmm".into(),
            egress: Service::Egress.socket_path(),
            ctxgraph: Service::Ctxgraph.socket_path(),
        }
    }

    /// Directory of one VM's jail.
    pub fn jail(&self, instance: &Instance) -> PathBuf {
        self.run.join("jails").join(instance.to_string())
    }

    /// Ephemeral workspaces.
    pub fn scratch_dir(&self) -> PathBuf {
        self.state.join("scratch")
    }

    /// The ephemeral workspace of one life.
    pub fn scratch(&self, instance: &Instance) -> PathBuf {
        self.scratch_dir().join(format!("{instance}.ext4"))
    }

    /// Kept workspaces, `NAME.ext4` and `NAME.json`.
    pub fn workspaces(&self) -> PathBuf {
        self.state.join("workspaces")
    }

    /// A directory of volumes for each agent, like [`Places::workspaces`].
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// Copies of workspaces, like [`Places::workspaces`].
    pub fn snapshots(&self) -> PathBuf {
        self.state.join("snapshots")
    }
}
