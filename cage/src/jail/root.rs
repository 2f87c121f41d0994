//! The jail's file system: a private tmpfs with the VM's own files bound in, and nothing else.
//!
//! Must hold: no path leads out; nothing can be executed; only the scratch disk can be written.
//! Must never: mount anything that a guest wrote.

use rustix::fs::{CWD, FileType, Gid, Mode, Uid, chownat, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use std::fs;
use std::path::Path;

use super::{JailError, JailSpec, at};

/// Paths inside the jail. `cage-vmm` knows its files only by these.
pub const KERNEL: &str = "/vmlinux";
pub const INITRAMFS: &str = "/initramfs.cpio";
pub const SCRATCH: &str = "/scratch.ext4";
pub const CONTROL_SOCKET: &str = "/vsock/control";
pub const MEMORY_SOCKET: &str = "/vsock/memory";
pub const KVM: &str = "/dev/kvm";
pub const TUN: &str = "/dev/net/tun";

/// The path of a layer of the rootfs, from the bottom, inside the jail.
pub fn layer(number: usize) -> String {
    format!("/rootfs{number}.squashfs")
}

/// The path of a volume inside the jail.
pub fn volume(number: usize) -> String {
    format!("/volume{number}.ext4")
}

/// Misc devices of Documentation/admin-guide/devices.txt: /dev/kvm is 10:232, /dev/net/tun 10:200.
const MISC_MAJOR: u32 = 10;
const KVM_MINOR: u32 = 232;
const TUN_MINOR: u32 = 200;

/// Makes the jail's root and moves into it. Call after unsharing the mount namespace.
pub fn enter(spec: &JailSpec) -> Result<(), JailError> {
    // Folders of the jail are for its uid to pass through, whatever cage was started with.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(at("mounts: make private"))?;
    // The tmpfs holds only mount points and device nodes.
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", &spec.root, "tmpfs", flags, c"mode=0755,size=64k,nr_inodes=48")
        .map_err(at("mounts: root"))?;
    bind_file(&spec.kernel, &spec.root, KERNEL, MountFlags::RDONLY)?;
    bind_file(&spec.initramfs, &spec.root, INITRAMFS, MountFlags::RDONLY)?;
    for (number, image) in spec.rootfs.iter().enumerate() {
        bind_file(image, &spec.root, &layer(number), MountFlags::RDONLY)?;
    }
    bind_file(&spec.scratch, &spec.root, SCRATCH, MountFlags::empty())?;
    for (number, disk) in spec.volumes.iter().enumerate() {
        let access = if disk.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        bind_file(&disk.path, &spec.root, &volume(number), access)?;
    }
    let vsock = spec.root.join("vsock");
    fs::create_dir(&vsock).map_err(at("mounts: vsock"))?;
    bind(&spec.vsock, &vsock, MountFlags::RDONLY)?;
    device(spec, KVM, KVM_MINOR)?;
    if spec.network.is_some() {
        device(spec, TUN, TUN_MINOR)?;
    }
    leave_the_old_root(&spec.root)
}

fn bind_file(source: &Path, root: &Path, name: &str, access: MountFlags) -> Result<(), JailError> {
    let target = root.join(name.trim_start_matches('/'));
    fs::File::create_new(&target).map_err(at("mounts: mount point"))?;
    bind(source, &target, access)
}

fn bind(source: &Path, target: &Path, access: MountFlags) -> Result<(), JailError> {
    mount_bind(source, target).map_err(at("mounts: bind"))?;
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | access;
    mount_remount(target, flags, c"").map_err(at("mounts: restrict bind"))
}

fn device(spec: &JailSpec, name: &str, minor: u32) -> Result<(), JailError> {
    let path = spec.root.join(name.trim_start_matches('/'));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at("devices: directory"))?;
    }
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(MISC_MAJOR, minor))
        .map_err(at("devices: node"))?;
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.uid));
    chownat(CWD, &path, Some(uid), Some(gid), rustix::fs::AtFlags::empty()).map_err(at("devices: owner"))
}

/// pivot_root(2), section "pivot_root(".", ".")": the old root ends up mounted over the new one and is detached at once.
fn leave_the_old_root(root: &Path) -> Result<(), JailError> {
    std::env::set_current_dir(root).map_err(at("pivot: change directory"))?;
    rustix::process::pivot_root(".", ".").map_err(at("pivot: root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(at("pivot: detach the old root"))?;
    std::env::set_current_dir("/").map_err(at("pivot: change directory"))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_remount("/", flags, c"").map_err(at("pivot: make the root read-only"))
}
