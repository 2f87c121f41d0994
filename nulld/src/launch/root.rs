//! The file system of a service: a root of its own that holds its program, what nulld.toml grants, and nothing else.
//!
//! Must hold: no path leads out; only what is granted can be written, only its own programs can be executed, and no device
//! node works but the granted ones; what a service mounts stays with it. Must never: show one service another's state.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use abi::log;
use abi::node::{Proc, STATE_DIR, ServiceConfig};
use rustix::fs::Mode;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::{LaunchError, at};

/// Where the new root is put together. It covers the node's /tmp in the service's own mount namespace only.
const STAGE: &str = "/tmp";
/// What every service has: C libraries and Rust's standard library expect the first, SQLite the second.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
/// The root holds mount points only.
const ROOT_OPTIONS: &std::ffi::CStr = c"mode=0755,size=256k,nr_inodes=512";

/// How one path of the node comes into the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    pub path: PathBuf,
    pub kind: Kind,
}

/// What may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Read,
    Write,
    Execute,
    Device,
}

impl Kind {
    fn flags(self) -> MountFlags {
        let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match self {
            Kind::Read => closed | MountFlags::RDONLY,
            Kind::Write => closed,
            Kind::Execute => closed.difference(MountFlags::NOEXEC) | MountFlags::RDONLY,
            Kind::Device => closed.difference(MountFlags::NODEV),
        }
    }
}

/// Everything a service may see, parents before what is inside them. Of several grants of one path the widest stands last, and
/// so counts.
pub fn grants(name: &str, config: &ServiceConfig) -> Vec<Grant> {
    let lists = [
        (Kind::Read, &config.read),
        (Kind::Write, &config.write),
        (Kind::Execute, &config.execute),
        (Kind::Device, &config.devices),
    ];
    let listed = lists.into_iter().flat_map(|(kind, list)| list.iter().map(move |path| (kind, path.clone())));
    let own = [(Kind::Write, format!("{STATE_DIR}/{name}")), (Kind::Execute, config.path.clone())];
    let devices = DEVICES.map(|path| (Kind::Device, path.to_owned()));
    let mut all: Vec<Grant> =
        listed.chain(own).chain(devices).map(|(kind, path)| Grant { path: path.into(), kind }).collect();
    all.sort();
    all.dedup();
    all
}

/// Makes the root and moves into it. Call in a mount namespace of the service's own. Returns what was granted and is there.
pub fn enter(name: &str, config: &ServiceConfig) -> Result<Vec<Grant>, LaunchError> {
    // Mount points are for the service's user to pass through.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(at("make the mounts its own"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", STAGE, "tmpfs", flags, ROOT_OPTIONS).map_err(at("mount its root"))?;
    let mut present = Vec::new();
    for grant in grants(name, config) {
        if grant.kind == Kind::Write && grant.path.starts_with("/run") {
            make_directory(&grant.path, config.uid)
                .map_err(|error| LaunchError::Path { path: grant.path.clone(), error })?;
        }
        let place = |error: io::Error| LaunchError::Path { path: grant.path.clone(), error };
        if grant.kind == Kind::Device {
            lend(&grant.path, config.uid).map_err(place)?;
        }
        if bind(&grant).map_err(place)? {
            present.push(grant);
        } else if grant.path != Path::new(STATE_DIR).join(name) {
            log::warning("grant_absent", &[("path", &grant.path.display())]);
        }
    }
    mount_proc(config)?;
    leave_the_old_root()?;
    Ok(present)
}

/// A device that only root may use (a TPM) is for the service's group too; its owner and everybody else stay as they are.
fn lend(device: &Path, uid: u32) -> io::Result<()> {
    let mode = match fs::metadata(device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta?.permissions().mode(),
    };
    if uid == 0 || mode & 0o006 == 0o006 {
        return Ok(());
    }
    std::os::unix::fs::chown(device, None, Some(uid))?;
    fs::set_permissions(device, fs::Permissions::from_mode(mode | 0o060))
}

/// What a service may write below /run is its own: a directory that is not there is made, for its user alone.
fn make_directory(path: &Path, uid: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(path, Some(uid), Some(uid))
}

/// Binds a path to its place in the root; false if the node has no such path. A symbolic link is made again as it is, so it leads
/// to what is granted beside it, or nowhere.
fn bind(grant: &Grant) -> io::Result<bool> {
    let target = staged(&grant.path);
    let meta = match fs::symlink_metadata(&grant.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if meta.is_symlink() {
        if fs::symlink_metadata(&target).is_err() {
            std::os::unix::fs::symlink(fs::read_link(&grant.path)?, &target)?;
        }
        return Ok(true);
    }
    // Inside a granted directory the mount point is there already.
    if fs::symlink_metadata(&target).is_err() {
        if meta.is_dir() { fs::create_dir(&target)? } else { drop(fs::File::create_new(&target)?) }
    }
    match grant.kind {
        // The configuration may be made of several mounts.
        Kind::Read | Kind::Execute => mount_bind_recursive(&grant.path, &target)?,
        Kind::Write | Kind::Device => mount_bind(&grant.path, &target)?,
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for point in points_below(&mounts, &target) {
        mount_remount(&point, MountFlags::BIND | grant.kind.flags(), c"")?;
    }
    Ok(true)
}

fn staged(path: &Path) -> PathBuf {
    Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path))
}

/// The mount points at and below a path (proc_pid_mountinfo(5): the fifth word, blanks as `\040`).
fn points_below(mountinfo: &str, path: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<PathBuf> =
        points.map(|point| PathBuf::from(unescape(point))).filter(|point| point.starts_with(path)).collect();
    found.dedup();
    found
}

/// Puts characters in the place of `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                plain.push(char::from(code));
                plain.push_str(rest);
            }
            _ => plain.push_str(part),
        }
    }
    plain
}

/// proc(5): other users' processes are invisible; `own` hides all that is not a process. Read-only, but for the settings of
/// the network, and for a service that makes mounts and so could change that (cage's VMMs raise their oom_score_adj).
fn mount_proc(config: &ServiceConfig) -> Result<(), LaunchError> {
    let options = match config.proc {
        Proc::None => return Ok(()),
        Proc::Own => c"hidepid=invisible,subset=pid",
        Proc::Net => c"hidepid=invisible",
    };
    let target = staged(Path::new("/proc"));
    let fail = at("mount its /proc");
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    fs::create_dir_all(&target).map_err(|error| LaunchError::Step { step: "make its /proc", error })?;
    mount("proc", &target, "proc", closed, options).map_err(fail)?;
    if config.proc == Proc::Net {
        let settings = target.join("sys/net");
        mount_bind(&settings, &settings).map_err(at("bind its /proc/sys/net"))?;
    }
    if config.makes_mounts {
        return Ok(());
    }
    mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY | closed, c"")
        .map_err(at("make its /proc read-only"))
}

/// pivot_root(2), section "pivot_root(".", ".")": the old root ends up mounted over the new one and is detached at once.
fn leave_the_old_root() -> Result<(), LaunchError> {
    rustix::process::chdir(STAGE).map_err(at("change to its root"))?;
    rustix::process::pivot_root(".", ".").map_err(at("change the root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(at("let go of the node's root"))?;
    rustix::process::chdir("/").map_err(at("change to /"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount_remount("/", MountFlags::BIND | flags, c"").map_err(at("make its root read-only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_device_is_lent_to_the_services_group_and_an_open_one_is_left_alone() {
        let gid = rustix::process::getgid().as_raw().max(1);
        let path = std::env::temp_dir().join(format!("nulld-lend-{}", std::process::id()));
        let lent = |mode: u32| {
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            lend(&path, gid).unwrap();
            let meta = fs::metadata(&path).unwrap();
            fs::remove_file(&path).unwrap();
            (meta.permissions().mode() & 0o777, std::os::unix::fs::MetadataExt::gid(&meta) == gid)
        };
        assert_eq!(lent(0o600), (0o660, true));
        assert_eq!(lent(0o666).0, 0o666);
        lend(&path, gid).unwrap(); // a machine without it
    }

    #[test]
    fn parents_come_first_and_the_widest_grant_of_a_path_last() {
        let mut config = ServiceConfig::denied("/system/bin/x");
        config.read = vec!["/run/a/b".into(), "/run/a".into(), "/run/c".into()];
        config.write = vec!["/run/c".into()];
        let all = grants("x", &config);
        let at = |path: &str, kind| {
            all.iter().position(|grant| grant.path == Path::new(path) && grant.kind == kind).unwrap()
        };
        assert!(at("/run/a", Kind::Read) < at("/run/a/b", Kind::Read));
        assert!(at("/run/c", Kind::Read) < at("/run/c", Kind::Write));
        assert!(all.iter().any(|grant| grant.path == Path::new("/state/x") && grant.kind == Kind::Write));
        let executable: Vec<_> = all.iter().filter(|grant| grant.kind == Kind::Execute).collect();
        assert_eq!(executable.len(), 1);
    }

    #[test]
    fn nothing_that_can_be_written_can_be_executed() {
        for kind in [Kind::Read, Kind::Write, Kind::Execute, Kind::Device] {
            let flags = kind.flags();
            assert!(flags.contains(MountFlags::NOSUID));
            assert!(flags.intersects(MountFlags::RDONLY | MountFlags::NOEXEC), "{kind:?}");
            assert_eq!(flags.contains(MountFlags::NODEV), kind != Kind::Device);
        }
    }

    #[test]
    fn mount_points_are_found_by_whole_names() {
        let table = "1 0 0:1 / / rw - x x rw\n2 1 0:2 / /tmp/run rw - x x rw\n3 2 0:3 / /tmp/run/a\\040b rw - x x rw\n\
                     4 1 0:4 / /tmp/runner rw - x x rw\n";
        let found = points_below(table, Path::new("/tmp/run"));
        assert_eq!(found, [PathBuf::from("/tmp/run"), PathBuf::from("/tmp/run/a b")]);
        assert_eq!(
            (unescape("a\\134b"), unescape("a\\"), unescape("\\04")),
            ("a\\b".into(), "a".into(), "04".into())
        );
    }
}
