//! The jail of one VMM: everything that stands between a VM that a guest has taken over and the node.
//!
//! Owns: the order in which a root process gives up what it has, from cgroup to seccomp filter. Runs in `cage-vmm`, which
//! is single-threaded until the VM starts. The host's side (what is made before, what is removed after) is `vmm`.
//! Must hold: after [`enter`] the process has its own uid and no capability, sees a file system with the VM's own files and
//! devices only, one network namespace with the VM's TAP or nothing, no other process, and may make only the system calls
//! of [`seccomp`]. Each step either happened or the VM does not start.
//! Must never: start the VM with a step left out.

pub mod access;
pub mod calls;
pub mod cgroup;
pub mod privileges;
pub mod root;
pub mod seccomp;

use abi::ids::Instance;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::sys;

/// What a VMM is told: one line of JSON on its standard input, the network namespace beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    pub instance: Instance,
    /// User and group of the VMM; nobody else's.
    pub uid: u32,
    /// The cgroup to join, with its limits set.
    pub cgroup: PathBuf,
    /// An empty directory; becomes the jail's root.
    pub root: PathBuf,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// SquashFS images, read-only, bottom to top.
    pub rootfs: Vec<PathBuf>,
    /// The VM's own disk, owned by `uid`.
    pub scratch: PathBuf,
    pub volumes: Vec<JailVolume>,
    /// Directory with the listening sockets `control` and `memory`, owned by `uid`.
    pub vsock: PathBuf,
    pub scratch_bytes: u64,
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Absent: a namespace of its own without any interface, and no network device in the guest.
    pub network: Option<JailNetwork>,
}

/// One more disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailVolume {
    /// Owned by the jail's uid.
    pub path: PathBuf,
    pub bytes: u64,
    pub read_only: bool,
}

/// The VM's network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailNetwork {
    /// Name of the TAP in the namespace; at most 15 bytes.
    pub tap: String,
    pub mac: [u8; 6],
}

/// What a VMM says before it starts its VM: one line, then the end of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Launch {
    /// The jail is closed; the VM starts.
    Entered,
    Failed {
        step: String,
        error: String,
    },
}

/// How the line of a VMM's console begins that names a refused system call.
pub const REFUSED: &str = "refused: system call";

/// Which step of closing the jail failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct JailError {
    pub step: &'static str,
    pub error: io::Error,
}

/// Names the step of an error.
pub(crate) fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { step, error: error.into() }
}

/// Proof that the jail around this process is closed but for the system call filter. Only [`enter`] makes it.
#[derive(Debug)]
pub struct Jailed {
    uid: u32,
}

impl Jailed {
    /// The uid of this jail.
    pub fn uid(&self) -> u32 {
        self.uid
    }
}

/// When the node's memory is out, VMs go before its services, which are all below 0 (proc_pid_oom_score_adj(5)).
const OOM_SCORE: &str = "500";

/// Closes the jail around the calling process, all but the filter. The order matters: the cgroup first, so that everything
/// after it is accounted and can be killed; the namespaces before the file system, which is only ours once private; the
/// identity last, because every step before it needs root.
pub fn enter(spec: &JailSpec, netns: Option<OwnedFd>) -> Result<Jailed, JailError> {
    cgroup::write(Path::new("/proc/self/oom_score_adj"), OOM_SCORE).map_err(at("oom score"))?;
    cgroup::write(&spec.cgroup.join("cgroup.procs"), "0").map_err(at("cgroup"))?;
    match (&spec.network, netns) {
        (Some(_), Some(netns)) => move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(at("network"))?,
        (None, None) => sys::leave_namespaces(UnshareFlags::NEWNET).map_err(at("network"))?,
        _ => {
            let error = io::Error::new(
                io::ErrorKind::InvalidInput,
                "a namespace and a TAP come together or not at all",
            );
            return Err(at("network")(error));
        }
    }
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    sys::leave_namespaces(own).map_err(at("namespaces"))?;
    rustix::system::sethostname(b"vm").map_err(at("namespaces"))?;
    root::enter(spec)?;
    privileges::limit(spec)?;
    privileges::drop(spec.uid)?;
    access::enter(spec)?;
    Ok(Jailed { uid: spec.uid })
}
