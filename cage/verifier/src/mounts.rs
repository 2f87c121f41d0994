//! The agent's root: the overlay of its disks, its volumes, and the few system directories a program needs.
//!
//! Must hold: the agent's view holds no block device, no sysfs, no cgroup file system and nothing of the initramfs.

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount_move, move_mount,
};
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;

use abi::guest::GUEST_UID;
use abi::tools::TOOLS_UID;
use verifier::plan::TOOLS_HOME;

use crate::beneath;
use crate::disks::{self, Mounted, Places};

/// A step of setting up, in words, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub struct StepError {
    what: String,
    #[source]
    error: io::Error,
}

/// Names the step that failed.
pub trait Step<T> {
    /// Adds what was being done.
    fn step(self, what: impl Display) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl Display) -> Result<T, StepError> {
        self.map_err(|error| StepError { what: what.to_string(), error: error.into() })
    }
}

/// Makes the agent's root and moves into it, with the volumes in it. From here on `/` is what the agent sees. Gives the root,
/// and the volumes' file systems.
pub fn root(places: &Places, volumes: Vec<Mounted>) -> Result<(OwnedFd, Vec<OwnedFd>), StepError> {
    disks::overlay(places)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(places.root(), flags, Mode::empty()).step("the overlay")?;
    system_directories(&root)?;
    let volumes = volumes.into_iter().map(|volume| volume.place(&root)).collect::<Result<_, _>>()?;
    rustix::process::fchdir(&root).step("enter the root")?;
    mount_move(".", "/").step("move the root")?;
    rustix::process::chroot(".").step("change the root")?;
    rustix::process::chdir("/").step("enter the root")?;
    Ok((root, volumes))
}

fn system_directories(root: &OwnedFd) -> Result<(), StepError> {
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let data = plain | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach(root, "proc", "proc", &[("hidepid", "invisible")], data).step("mount /proc")?;
    attach(root, "run", "tmpfs", &[("mode", "755"), ("size", "1m")], data).step("mount /run")?;
    let device_attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach(root, "dev", "tmpfs", &[("mode", "755"), ("size", "64k")], device_attributes)
        .step("mount /dev")?;
    devices(root).step("make the devices")?;
    let terminals = [("mode", "620"), ("ptmxmode", "666"), ("gid", "5")];
    attach(root, "dev/pts", "devpts", &terminals, device_attributes).step("mount /dev/pts")?;
    attach(root, "dev/shm", "tmpfs", &[("mode", "1777"), ("size", "25%")], plain).step("mount /dev/shm")?;
    let tmp = beneath::directory(root, "tmp").step("make /tmp")?;
    set_mode(&tmp, 0o1777).step("make /tmp")?;
    let home = beneath::granted(root, verifier::plan::HOME, GUEST_UID).step("make the home directory")?;
    set_mode(&home, 0o700).step("make the home directory")?;
    let run = beneath::directory(root, "run/nullbox").step("make /run/nullbox")?;
    drop(run);
    Ok(())
}

/// The home of the tools, and what becomes their /tmp and /dev/shm.
pub fn tools_home(root: &OwnedFd) -> Result<(), StepError> {
    for (path, mode) in [(TOOLS_HOME.to_owned(), 0o700), (format!("{TOOLS_HOME}/tmp"), 0o1777)] {
        let place = beneath::granted(root, &path, TOOLS_UID).step(&path)?;
        set_mode(&place, mode).step(&path)?;
    }
    Ok(())
}

/// In the tools process, in mounts of its own: nothing that both can write is seen by tools and agent.
pub fn own_temporary() -> Result<(), StepError> {
    let own = format!("{TOOLS_HOME}/tmp");
    for place in ["/tmp", "/dev/shm"] {
        rustix::mount::mount_bind(&own, place).step(format_args!("the tools' own {place}"))?;
    }
    Ok(())
}

/// Hides a directory of the tools from the agent, under an empty one: a socket that a tool made there would be a way to it. A file is
/// left as it is; nobody but root can put something else in its place.
pub fn cover(root: &OwnedFd, path: &str) -> Result<(), StepError> {
    let place = beneath::granted_place(root, path).step(path)?;
    let stat = rustix::fs::fstat(&place).step(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(());
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    attach(root, path, "tmpfs", &[("mode", "555"), ("size", "4k")], attributes)
        .step(format_args!("cover {path}"))
}

/// Mounts a new file system on a directory that is reached without following links.
fn attach(
    root: &OwnedFd,
    at: &str,
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<()> {
    let place = beneath::directory(root, at)?;
    let mounted = detached(kind, options, attributes)?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&mounted, "", &place, "", how)?)
}

/// A new mount that stands nowhere in the tree: only its descriptor leads to it. An option without a value is a flag.
pub fn detached(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value.is_empty() {
            true => fsconfig_set_flag(&context, *key)?,
            false => fsconfig_set_string(&context, *key, *value)?,
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn set_mode(place: &OwnedFd, mode: u32) -> io::Result<()> {
    // fchmod(2) refuses O_PATH descriptors; reopening `.` through it does not leave the directory.
    let opened =
        rustix::fs::openat(place, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode))?)
}

/// Nodes and links of /dev (devices.txt). Nothing with a disk, a console or memory behind it.
fn devices(root: &OwnedFd) -> io::Result<()> {
    let dev = beneath::directory(root, "dev")?;
    let nodes =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in nodes {
        let device = rustix::fs::makedev(major, minor);
        // Made without permissions and opened up by chmod: mknod(2) obeys the umask.
        rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o600), device)?;
        rustix::fs::chmodat(&dev, name, Mode::from_raw_mode(0o666), AtFlags::empty())?;
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        rustix::fs::symlinkat(target, &dev, name)?;
    }
    rustix::fs::chownat(&dev, "tty", Some(Uid::ROOT), Some(Gid::from_raw(5)), AtFlags::empty())?;
    Ok(())
}
