//! The file systems of the node, and the few kernel settings that belong to them.
//!
//! Must hold: nothing that can be written is also executable, or can hold a device node or a set-uid program; each tmpfs is
//! bounded. Must never: mount what a guest wrote.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use abi::node::{CONFIG_DIR, NodeConfig, STATE_DIR};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::cgroup;
use crate::volume::{Kind, Volume};

/// Where the configuration volume is mounted.
pub const CONFIG_VOLUME_DIR: &str = "/run/nullbox/config-volume";
/// Where services' sockets and nulld's files for them are.
pub const RUN_DIR: &str = "/run/nullbox";
/// Names at the top of a configuration volume that cannot be an overlay's layer. More are refused.
const TOP_NAMES_MAX: usize = 64;

const CLOSED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot mount {what} on {at}: {error}")]
    Mount { what: String, at: String, error: io::Error },
    #[error("cannot prepare {path}: {error}")]
    Prepare { path: String, error: io::Error },
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
    Ok(missing.into_iter().map(|name| format!("cgroup controller {name}")).collect())
}

/// Whether something is mounted at exactly this path, as far as /proc can say.
fn is_mounted(at: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(at))
}

/// Mounts the state volume; without one, a tmpfs that forgets.
pub fn mount_state(volume: Option<&Volume>) -> Result<(), MountError> {
    match volume {
        Some(volume) => mount(
            &volume.device.to_string_lossy(),
            STATE_DIR,
            volume.kind.name(),
            CLOSED | MountFlags::NOATIME,
            // After an error nothing more is written: receipts fail, and so do effects.
            if volume.kind == Kind::Ext4 { "errors=remount-ro" } else { "" },
        ),
        None => mount("tmpfs", STATE_DIR, "tmpfs", CLOSED, "size=50%,mode=0755"),
    }
}

/// Makes each service's own directory below /state, for its uid alone.
pub fn make_state_dirs(config: &NodeConfig) -> Result<(), MountError> {
    prepare(STATE_DIR, fs::set_permissions(STATE_DIR, Permissions::from_mode(0o755)))?;
    for (name, service) in &config.services {
        let path = format!("{STATE_DIR}/{name}");
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => prepare(&path, Err(error))?,
            _ => {}
        }
        prepare(&path, std::os::unix::fs::chown(&path, Some(service.uid), Some(service.uid)))?;
        prepare(&path, fs::set_permissions(&path, Permissions::from_mode(0o700)))?;
    }
    Ok(())
}

/// Mounts the configuration volume beside the image's configuration.
pub fn mount_config_volume(volume: &Volume) -> Result<(), MountError> {
    prepare(CONFIG_VOLUME_DIR, fs::create_dir_all(CONFIG_VOLUME_DIR))?;
    let data = match volume.kind {
        Kind::Vfat => "fmask=0333,dmask=0222,utf8",
        Kind::Ext4 | Kind::Iso9660 => "",
    };
    mount(
        &volume.device.to_string_lossy(),
        CONFIG_VOLUME_DIR,
        volume.kind.name(),
        CLOSED | MountFlags::RDONLY,
        data,
    )
}

/// Lays the configuration volume over the image's configuration, read-only.
pub fn overlay_config() -> Result<(), MountError> {
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
