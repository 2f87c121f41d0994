//! The file systems of the node, and the few kernel settings that belong to them.
//!
//! Must hold: nothing that can be written is also executable, or can hold a device node or a set-uid program; each tmpfs is
//! bounded; a disk that does not answer holds the boot up for a bounded time. Must never: mount what a guest wrote, or leave
//! something half mounted.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use abi::limits;
use abi::node::{CONFIG_DIR, NodeConfig, STATE_DIR};
use rustix::fs::StatVfsMountFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags};

use crate::volume::{Kind, Volume};
use crate::{cgroup, config};

/// Where the configuration volume is mounted.
const CONFIG_VOLUME_DIR: &str = "/run/nullbox/config-volume";
/// Where services' sockets and nulld's files for them are.
pub const RUN_DIR: &str = "/run/nullbox";
/// Names at the top of a configuration volume that cannot be an overlay's layer. More are refused.
const TOP_NAMES_MAX: usize = 64;

const CLOSED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// The same for volumes.
const VOLUME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot mount {what} on {at}: {error}")]
    Mount { what: String, at: String, error: io::Error },
    #[error("cannot prepare {path}: {error}")]
    Prepare { path: String, error: io::Error },
    #[error("cannot mount {what}: {error}{words}")]
    Volume { what: String, error: io::Error, words: String },
    #[error("{0} has no file system that NullBox knows")]
    Unknown(String),
    #[error("{0} can only be read, not written")]
    ReadOnly(String),
    #[error("{what} was not mounted within {} s", limits::VOLUME_MOUNT_MS_MAX / 1000)]
    Late { what: String },
    #[error("cannot set up cgroups: {0}")]
    Cgroup(io::Error),
    #[error("the configuration volume has more than {TOP_NAMES_MAX} names at its top")]
    TooManyNames,
}

fn prepare<T>(path: &str, outcome: io::Result<T>) -> Result<T, MountError> {
    outcome.map_err(|error| MountError::Prepare { path: path.to_owned(), error })
}

fn mount(what: &str, at: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), MountError> {
    let fail = |error| MountError::Mount { what: what.to_owned(), at: at.to_owned(), error };
    let data = CString::new(data).map_err(|error| fail(io::Error::other(error)))?;
    rustix::mount::mount(what, at, kind, flags, data.as_c_str()).map_err(|errno| fail(errno.into()))
}

/// Mounts what every node has. The answer lists what this kernel lacks.
pub fn mount_kernel() -> Result<Vec<String>, MountError> {
    let table: [(&str, &str, MountFlags, &str); 7] = [
        ("proc", "/proc", CLOSED, ""),
        ("sysfs", "/sys", CLOSED, ""),
        ("devtmpfs", "/dev", MountFlags::NOSUID.union(MountFlags::NOEXEC), "mode=0755"),
        ("tmpfs", "/dev/shm", CLOSED, "size=16m,nr_inodes=1024,mode=1777"),
        ("tmpfs", "/run", CLOSED, "size=64m,nr_inodes=16384,mode=0755"),
        ("tmpfs", "/tmp", CLOSED, "size=16m,nr_inodes=4096,mode=1777"),
        ("cgroup2", cgroup::ROOT, CLOSED, ""),
    ];
    for (kind, at, flags, data) in table {
        if is_mounted(at) {
            continue;
        }
        if !Path::new(at).exists() {
            prepare(at, fs::create_dir_all(at))?;
        }
        mount(kind, at, kind, flags, data)?;
    }
    prepare(RUN_DIR, fs::create_dir_all(RUN_DIR))?;
    prepare(RUN_DIR, fs::set_permissions(RUN_DIR, Permissions::from_mode(0o755)))?;
    // A TAP can only be had with CAP_NET_ADMIN in its namespace, or by its owner: the device itself may be open to all.
    let tun = "/dev/net/tun";
    if Path::new(tun).exists() {
        prepare(tun, fs::set_permissions(tun, Permissions::from_mode(0o666)))?;
    }
    let missing = cgroup::prepare().map_err(MountError::Cgroup)?;
    let mut lacking: Vec<String> =
        missing.into_iter().map(|name| format!("cgroup controller {name}")).collect();
    // Where the kernel says which lockdown is in force.
    let security = "/sys/kernel/security";
    if Path::new(security).exists()
        && !is_mounted(security)
        && let Err(error) = mount("securityfs", security, "securityfs", CLOSED, "")
    {
        lacking.push(error.to_string());
    }
    Ok(lacking)
}

/// Whether something is mounted at exactly this path, as far as /proc can say.
fn is_mounted(at: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(at))
}

/// A file system that is mounted nowhere yet. Dropping it lets go of it.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// Its root, as a path for this process.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Mounts it at a place.
    fn attach(self, at: &str) -> Result<(), MountError> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(self.0.as_fd(), "", rustix::fs::CWD, at, flags).map_err(|errno| {
            MountError::Mount { what: "the volume".to_owned(), at: at.to_owned(), error: errno.into() }
        })
    }
}

/// Opens a volume with options of its file system (fsopen(2)).
fn open_volume(
    volume: &Volume,
    flags: &[&str],
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<Detached, MountError> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
    let what = volume.device.display().to_string();
    if volume.kind == Kind::Unknown {
        return Err(MountError::Unknown(what));
    }
    let opened = fsopen(volume.kind.name(), FsOpenFlags::FSOPEN_CLOEXEC);
    let context = opened.map_err(|errno| MountError::Volume {
        what: what.clone(),
        error: errno.into(),
        words: String::new(),
    })?;
    let configure = || -> rustix::io::Result<OwnedFd> {
        fsconfig_set_string(&context, "source", what.as_str())?;
        flags.iter().try_for_each(|flag| fsconfig_set_flag(&context, *flag))?;
        options.iter().try_for_each(|(key, value)| fsconfig_set_string(&context, *key, *value))?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let mounted = configure();
    mounted.map(Detached).map_err(|errno| MountError::Volume {
        what,
        error: errno.into(),
        words: words_of_kernel(&context),
    })
}

/// What the kernel says of a mount that failed; empty where the file system only speaks to the kernel's log.
fn words_of_kernel(context: &OwnedFd) -> String {
    let mut words = String::new();
    let mut message = [0u8; 256];
    for _ in 0..8 {
        let Ok(count) = rustix::io::read(context, &mut message) else { break };
        let text = String::from_utf8_lossy(message.get(..count).unwrap_or_default()).trim().to_owned();
        // Each begins with its kind: `e ` is an error.
        if let Some(text) = text.strip_prefix("e ") {
            words.push_str(&format!("; {text}"));
        }
    }
    words
}

/// Does something with a disk on a thread of its own. A disk that does not answer in time is left behind with it; what comes
/// later is dropped, and so lets go of the disk.
fn in_time<T: Send + 'static>(
    volume: &Volume,
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("volume".into()).stack_size(256 * 1024);
    let late = || MountError::Late { what: volume.device.display().to_string() };
    prepare("a thread", thread.spawn(move || drop(sender.send(work()))).map(drop))?;
    receiver.recv_timeout(Duration::from_millis(limits::VOLUME_MOUNT_MS_MAX)).map_err(|_| late())?
}

/// Mounts the state volume and makes each service's directory in it. When this fails, nothing is mounted.
pub fn mount_state(volume: &Volume, config: &NodeConfig) -> Result<(), MountError> {
    let (own, config) = (volume.clone(), config.clone());
    let state = in_time(volume, move || {
        // After an error nothing more is written: receipts fail, and so do effects.
        let options: &[(&str, &str)] = match own.kind {
            Kind::Ext4 => &[("errors", "remount-ro")],
            Kind::Vfat | Kind::Iso9660 | Kind::Unknown => &[],
        };
        let state = open_volume(&own, &[], options, VOLUME | MountAttrFlags::MOUNT_ATTR_NOATIME)?;
        make_state_dirs(&state.path(), &config)?;
        let what = own.device.display().to_string();
        let about = rustix::fs::statvfs(state.path()).map_err(io::Error::from);
        match prepare(&what, about)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            true => Err(MountError::ReadOnly(what)),
            false => Ok(state),
        }
    })?;
    state.attach(STATE_DIR)
}

/// Mounts a tmpfs that forgets on /state, with each service's directory.
pub fn mount_no_state(config: &NodeConfig) -> Result<(), MountError> {
    mount("tmpfs", STATE_DIR, "tmpfs", CLOSED, "size=50%,mode=0755")?;
    make_state_dirs(STATE_DIR, config)
}

/// Makes each service's own directory, for its uid alone.
fn make_state_dirs(root: &str, config: &NodeConfig) -> Result<(), MountError> {
    let shown = |name: &str| format!("{STATE_DIR}/{name}");
    prepare(STATE_DIR, fs::set_permissions(root, Permissions::from_mode(0o755)))?;
    for (name, service) in &config.services {
        let path = format!("{root}/{name}");
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => prepare(&shown(name), Err(error))?,
            _ => {}
        }
        prepare(&shown(name), std::os::unix::fs::chown(&path, Some(service.uid), Some(service.uid)))?;
        prepare(&shown(name), fs::set_permissions(&path, Permissions::from_mode(0o700)))?;
    }
    Ok(())
}

/// Lays the configuration volume over the image's configuration, read-only. The answer is the text of its nulld.toml, if it
/// has one. When this fails, the image's configuration is as it was.
pub fn mount_config(volume: &Volume) -> Result<Option<String>, MountError> {
    prepare(CONFIG_VOLUME_DIR, fs::create_dir_all(CONFIG_VOLUME_DIR))?;
    let own = volume.clone();
    let (mounted, text) = in_time(volume, move || {
        let (flags, options): (&[&str], &[(&str, &str)]) = match own.kind {
            Kind::Vfat => (&["ro", "utf8"], &[("fmask", "0333"), ("dmask", "0222")]),
            Kind::Ext4 | Kind::Iso9660 | Kind::Unknown => (&["ro"], &[]),
        };
        let mounted = open_volume(&own, flags, options, VOLUME | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        let path = format!("{}/nulld.toml", mounted.path());
        let text = match config::read(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => prepare("nulld.toml of the volume", Err(error))?,
        };
        Ok((mounted, text))
    })?;
    mounted.attach(CONFIG_VOLUME_DIR)?;
    if let Err(error) = overlay_config() {
        // Nothing uses it yet; if it stays mounted all the same, nothing reads it.
        let _ = rustix::mount::unmount(CONFIG_VOLUME_DIR, UnmountFlags::empty());
        return Err(error);
    }
    Ok(text)
}

/// The volume's layer over the image's.
fn overlay_config() -> Result<(), MountError> {
    let layers = format!("lowerdir={CONFIG_VOLUME_DIR}:{CONFIG_DIR}");
    let flags = CLOSED | MountFlags::RDONLY;
    match mount("overlay", CONFIG_DIR, "overlay", flags, &layers) {
        Ok(()) => Ok(()),
        // overlayfs takes no case-insensitive layer, such as vfat.
        Err(_) => bind_config(CONFIG_VOLUME_DIR, CONFIG_DIR),
    }
}

/// The same where there can be no overlay: each name at the top comes from the volume, else from the image.
fn bind_config(volume: &str, image: &str) -> Result<(), MountError> {
    let merged = format!("{RUN_DIR}/config-merged");
    prepare(&merged, fs::create_dir_all(&merged))?;
    mount("tmpfs", &merged, "tmpfs", CLOSED, "size=1m,mode=0755")?;
    let mut sources: std::collections::BTreeMap<std::ffi::OsString, PathBuf> = Default::default();
    for layer in [image, volume] {
        for entry in prepare(layer, fs::read_dir(layer))? {
            let entry = prepare(layer, entry)?;
            sources.insert(entry.file_name(), entry.path());
        }
    }
    if sources.len() > TOP_NAMES_MAX {
        return Err(MountError::TooManyNames);
    }
    for (name, source) in sources {
        let target = Path::new(&merged).join(&name);
        let shown = target.display().to_string();
        match source.is_dir() {
            true => prepare(&shown, fs::create_dir(&target))?,
            false => drop(prepare(&shown, fs::File::create(&target))?),
        }
        rustix::mount::mount_bind(&source, &target).map_err(|errno| MountError::Mount {
            what: source.display().to_string(),
            at: shown.clone(),
            error: errno.into(),
        })?;
    }
    rustix::mount::mount_bind_recursive(&merged, image).map_err(|errno| MountError::Mount {
        what: merged.clone(),
        at: image.to_owned(),
        error: errno.into(),
    })?;
    rustix::mount::mount_remount(image, MountFlags::BIND | MountFlags::RDONLY | CLOSED, c"").map_err(
        |errno| MountError::Mount {
            what: format!("{merged}, read-only"),
            at: image.to_owned(),
            error: errno.into(),
        },
    )
}

/// Takes /state away at the end; read-only where something still holds it.
pub fn release_state() -> io::Result<&'static str> {
    match rustix::mount::unmount(STATE_DIR, UnmountFlags::empty()) {
        Ok(()) => Ok("unmounted"),
        Err(_) => {
            rustix::mount::mount_remount(STATE_DIR, MountFlags::RDONLY | CLOSED, c"")?;
            Ok("made read-only")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs itself again as root of a fresh mount namespace.
    fn in_mount_namespace(test: &str) -> bool {
        if std::env::var_os("NULLD_TEST_NAMESPACE").is_some() {
            return true;
        }
        let output = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("NULLD_TEST_NAMESPACE", "1")
            .output()
            .expect("unshare of util-linux, as root");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        false
    }

    #[test]
    fn a_volume_that_cannot_be_overlaid_is_merged_by_name_and_read_only() {
        if !in_mount_namespace(
            "mounts::tests::a_volume_that_cannot_be_overlaid_is_merged_by_name_and_read_only",
        ) {
            return;
        }
        mount("tmpfs", "/run", "tmpfs", CLOSED, "size=4m").unwrap();
        let (volume, image) = ("/run/volume", "/run/image");
        for dir in ["/run/image/agents", "/run/volume/rootfs", RUN_DIR] {
            fs::create_dir_all(dir).unwrap();
        }
        for (path, text) in [
            ("/run/image/nulld.toml", "image"),
            ("/run/image/agents/a.toml", "a"),
            ("/run/volume/nulld.toml", "volume"),
            ("/run/volume/rootfs/x.tar", "x"),
        ] {
            fs::write(path, text).unwrap();
        }
        bind_config(volume, image).unwrap();
        let read = |name: &str| fs::read_to_string(format!("{image}/{name}")).unwrap();
        assert_eq!([read("nulld.toml"), read("agents/a.toml"), read("rootfs/x.tar")], ["volume", "a", "x"]);
        assert!(fs::write(format!("{image}/new"), "x").is_err());
        assert!(is_mounted("/run") && !is_mounted("/run/volume"));
    }
}
