//! The guest's disks: the rootfs's layers, the workspace over them, the volumes; and the views of them that a diff needs.
//!
//! Must hold: nothing that an upper layer says about itself is trusted (no redirects, no metacopy); a volume that is read only is
//! mounted so. Disks come in the order of `Start`: layers bottom to top, workspace, volumes (vda...).

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{
    FsPickFlags, MountAttrFlags, MountFlags, OpenTreeFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick,
    mount, open_tree,
};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use abi::guest::Volume;

use crate::beneath;
use crate::mounts::{Step, StepError, detached};
use crate::sys;

/// A workspace may come from another life, so what its file system says of an overlay is data: a directory's redirect is not
/// followed, a file without data is not completed from below, inode numbers are the layers' own (overlayfs.rst).
const TRUST_NOTHING: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off")];

/// Where disks are mounted before the agent's root stands.
#[derive(Debug, Clone)]
pub struct Places {
    base: String,
    layers: u8,
}

impl Places {
    /// `base`: empty in a guest, whose `/` is the initramfs.
    pub fn new(base: &str, layers: u8) -> Places {
        Places { base: base.to_owned(), layers }
    }

    /// Of a layer, from 0 at the bottom.
    pub fn layer(&self, number: u8) -> String {
        format!("{}/rootfs{number}", self.base)
    }

    /// Of the workspace.
    pub fn scratch(&self) -> String {
        format!("{}/scratch", self.base)
    }

    /// Of the agent's root until it is moved to `/`.
    pub fn root(&self) -> String {
        format!("{}/root.agent", self.base)
    }

    /// All layers as overlayfs wants them: top first.
    fn lowers(&self) -> String {
        let layers: Vec<String> = (0..self.layers).rev().map(|number| self.layer(number)).collect();
        layers.join(":")
    }

    /// Makes the directories.
    pub fn make(&self) -> Result<(), StepError> {
        let layers = (0..self.layers).map(|number| self.layer(number));
        for directory in layers.chain([self.scratch(), self.root()]) {
            std::fs::create_dir_all(&directory).step(directory)?;
        }
        Ok(())
    }
}

/// The device of a disk. More than 26 do not happen: layers and volumes are bounded.
fn device(number: usize) -> String {
    let letter =
        u8::try_from(number).ok().filter(|number| *number < 26).map_or('?', |n| char::from(b'a' + n));
    format!("/dev/vd{letter}")
}

/// Mounts the rootfs's layers. The first thing done to the file system.
pub fn rootfs(places: &Places) -> Result<(), StepError> {
    places.make()?;
    std::fs::create_dir_all("/dev").step("/dev")?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None).step("mount /dev")?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::RDONLY;
    for number in 0..places.layers {
        let device = device(usize::from(number));
        mount(device.as_str(), places.layer(number), "squashfs", flags, None)
            .step(format_args!("mount layer {number} of the rootfs ({device}, squashfs)"))?;
    }
    Ok(())
}

/// Mounts the workspace and grows its file system to its disk.
pub fn scratch(places: &Places) -> Result<OwnedFd, StepError> {
    let scratch = workspace(places)?;
    grow(&scratch, &device(usize::from(places.layers)))
        .step("grow the workspace's file system to its disk")?;
    Ok(scratch)
}

/// Mounts the workspace.
pub fn workspace(places: &Places) -> Result<OwnedFd, StepError> {
    let device = device(usize::from(places.layers));
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    mount(device.as_str(), places.scratch(), "ext4", flags, None)
        .step(format_args!("mount the workspace ({device}, ext4)"))?;
    upper(places)
}

/// The directories that an overlay needs on a mounted workspace; gives the workspace itself, for the sync at the end.
pub fn upper(places: &Places) -> Result<OwnedFd, StepError> {
    let scratch = directory(&places.scratch()).step("the workspace")?;
    for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
        match rustix::fs::mkdirat(&scratch, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).step(name),
        }
    }
    Ok(scratch)
}

/// Mounts the agent's root where [`Places::root`] says.
pub fn overlay(places: &Places) -> Result<(), StepError> {
    let scratch = places.scratch();
    let mut options = format!("lowerdir={},upperdir={scratch}/upper,workdir={scratch}/work", places.lowers());
    TRUST_NOTHING.iter().for_each(|(key, value)| options += &format!(",{key}={value}"));
    let options = CString::new(options).step("overlay")?;
    mount("overlay", places.root(), "overlay", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())
        .step("mount the overlay")
}

/// What a diff compares: the rootfs as its layers make it, and the workspace's upper directory; neither can be written through this.
#[derive(Debug)]
pub struct View {
    pub lower: OwnedFd,
    pub upper: OwnedFd,
}

impl View {
    /// The same view, for a child.
    pub fn try_clone(&self) -> Result<View, StepError> {
        let copy = |fd: &OwnedFd| fd.try_clone().step("a view of the disks");
        Ok(View { lower: copy(&self.lower)?, upper: copy(&self.upper)? })
    }

    /// Before the agent's root is entered, since these places have no path there.
    pub fn new(places: &Places) -> Result<View, StepError> {
        let lower = match places.layers {
            1 => directory(&places.layer(0)).step("the rootfs")?,
            _ => {
                let lowers = places.lowers();
                let mut options = vec![("lowerdir", lowers.as_str()), ("ro", "")];
                options.extend(TRUST_NOTHING);
                let quiet = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
                let mounted = detached("overlay", &options, quiet | MountAttrFlags::MOUNT_ATTR_RDONLY)
                    .step("the rootfs")?;
                within(&mounted).step("the rootfs")?
            }
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let upper =
            open_tree(rustix::fs::CWD, places.scratch() + "/upper", flags).step("the upper directory")?;
        sys::mount_read_only(upper.as_fd()).step("a read-only view of the upper directory")?;
        Ok(View { lower, upper: within(&upper).step("the upper directory")? })
    }
}

/// A mounted volume, not yet at its place.
#[derive(Debug)]
pub struct Mounted {
    mount: OwnedFd,
    /// Its root, for the sync.
    root: OwnedFd,
    path: String,
    read_only: bool,
}

/// Mounts the volumes, and grows those that may be written.
pub fn volumes(places: &Places, volumes: &[Volume], owner: u32) -> Result<Vec<Mounted>, StepError> {
    let mounted = volumes_as_they_are(places, volumes, owner)?;
    for (index, volume) in mounted.iter().enumerate().filter(|(_, volume)| !volume.read_only) {
        grow(&volume.root, &volume_device(places, index))
            .step(format_args!("grow the volume of `{}` to its disk", volume.path))?;
    }
    Ok(mounted)
}

/// Mounts the volumes and gives the roots of those that may be written to their user.
pub fn volumes_as_they_are(
    places: &Places,
    volumes: &[Volume],
    owner: u32,
) -> Result<Vec<Mounted>, StepError> {
    volumes
        .iter()
        .enumerate()
        .map(|(index, volume)| volume_at(&volume_device(places, index), volume, owner))
        .collect()
}

fn volume_device(places: &Places, index: usize) -> String {
    device(usize::from(places.layers) + 1 + index)
}

fn volume_at(device: &str, volume: &Volume, owner: u32) -> Result<Mounted, StepError> {
    let path = &volume.path;
    let plain = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let (options, attributes): (&[_], _) = match volume.read_only {
        true => (&[("source", device), ("ro", "")], plain | MountAttrFlags::MOUNT_ATTR_RDONLY),
        false => (&[("source", device)], plain),
    };
    let mount = detached("ext4", options, attributes)
        .step(format_args!("mount the volume of `{path}` ({device}, ext4)"))?;
    let root = within(&mount).step(format_args!("the volume of `{path}`"))?;
    if !volume.read_only {
        drop_lost_and_found(&root);
        beneath::chown(&root, owner).step(format_args!("give the volume of `{path}` to its user"))?;
    }
    Ok(Mounted { mount, root, path: path.clone(), read_only: volume.read_only })
}

/// Programs that want an empty directory for their data refuse one with this in it. Only mkfs's own, and only while it is empty.
fn drop_lost_and_found(root: &OwnedFd) {
    let name = "lost+found";
    let stat = rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW);
    if stat.is_ok_and(|stat| stat.st_uid == 0) {
        // What a repair found stays, and so does the directory.
        let _ = rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR);
    }
}

impl Mounted {
    /// Puts it at its path, made where missing, through no symbolic link. The root of the file system is for [`close`].
    pub fn place(self, root: &OwnedFd) -> Result<OwnedFd, StepError> {
        let at =
            beneath::directory(root, &self.path).step(format_args!("the volume's path `{}`", self.path))?;
        let how = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
            | rustix::mount::MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&self.mount, "", &at, "", how)
            .step(format_args!("mount the volume at `{}`", self.path))?;
        Ok(self.root)
    }
}

/// Writes out everything on these file systems, on each even if another fails; the first failure is the answer.
pub fn sync(disks: &[OwnedFd]) -> io::Result<()> {
    let mut synced = Ok(());
    for disk in disks {
        synced = synced.and(rustix::fs::syncfs(disk).map_err(io::Error::from));
    }
    synced
}

/// At the end of the guest: writes everything out and leaves the file systems clean, so that a disk that is kept needs no repair.
/// With something still open for writing it is only written out.
pub fn close(disks: &[OwnedFd]) -> io::Result<()> {
    let mut closed = sync(disks);
    for disk in disks {
        closed = closed.and(remount_read_only(disk));
    }
    closed
}

fn remount_read_only(disk: &OwnedFd) -> io::Result<()> {
    let context = fspick(disk, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    fsconfig_set_flag(&context, "ro")?;
    Ok(fsconfig_reconfigure(&context)?)
}

/// The file system's size comes from a template; the disk's from the manifest.
fn grow(mounted: &OwnedFd, device: &str) -> io::Result<()> {
    let disk = rustix::fs::open(device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let disk_bytes = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0))?;
    let block_bytes = rustix::fs::fstatfs(mounted)?.f_bsize as u64;
    match disk_bytes.checked_div(block_bytes) {
        Some(blocks) if blocks > 0 => sys::ext4_grow(mounted.as_fd(), blocks),
        _ => Err(io::Error::other("the disk has no size")),
    }
}

fn directory(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The root of a mount that stands nowhere: its own descriptor only names it.
fn within(mounted: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(mounted, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_in_order_and_layers_stand_top_first() {
        assert_eq!(device(0), "/dev/vda");
        assert_eq!(device(9), "/dev/vdj");
        assert_eq!(Places::new("", 3).lowers(), "/rootfs2:/rootfs1:/rootfs0");
    }
}
