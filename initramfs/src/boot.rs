//! The steps from a found medium to nulld's root: device mapper, the full check, mounts, switch of root.
//!
//! Must hold: the root is mounted read-only, without device nodes or set-uid, and every block of it was checked.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::mount::{MountFlags, mount, mount_move};
use thiserror::Error;

use crate::dm::{self, DeviceNumber, Request, Target};
use crate::image::{BLOCK_BYTES, Image, ImageError};
use crate::medium::{Medium, MediumError};
use crate::sys;

const NEW_ROOT: &str = "/newroot";
const DM_CONTROL: &str = "/dev/mapper/control";
const CHECK_CHUNK_BYTES: u64 = 1 << 20;
/// devtmpfs makes the node before the ioctl returns; this only bounds a kernel that does not.
const NODE_WAIT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum BootError {
    #[error("{0}")]
    Image(#[from] ImageError),
    #[error("{0}")]
    Medium(#[from] MediumError),
    #[error("cannot mount {what} on {at}: {error}")]
    Mount { what: String, at: &'static str, error: io::Error },
    #[error("device mapper refused to {what}: {error}")]
    DeviceMapper { what: String, error: io::Error },
    #[error("block {block} of the image (byte {}) does not match its hash in the tree under root hash {root_hash}", block * BLOCK_BYTES)]
    Corrupt { block: u64, root_hash: String },
    #[error("cannot read the image: {0}")]
    Read(io::Error),
    #[error("cannot {what}: {error}")]
    SwitchRoot { what: &'static str, error: io::Error },
    #[error("cannot start {path}: {error}")]
    Exec { path: &'static str, error: io::Error },
}

impl BootError {
    /// What a person at the console can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            BootError::Medium(_) => {
                "attach the medium that this boot image came from, or write the ISO again; if another image is listed, \
                 its boot partition and root partition do not belong together"
            }
            BootError::Corrupt { .. } => {
                "the medium is damaged or was changed: write the ISO again and compare its checksum"
            }
            BootError::Read(_) => "the medium fails to read: use another one, or another port",
            _ => {
                "this boot image does not fit this machine or is broken: build it again, or report this message"
            }
        }
    }
}

/// What the command line says to this program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CmdLine {
    /// Restart so many seconds after a failed boot; none: hold.
    pub reboot_s: Option<u64>,
}

pub fn command_line() -> io::Result<CmdLine> {
    Ok(parse_command_line(&fs::read_to_string("/proc/cmdline")?))
}

fn parse_command_line(text: &str) -> CmdLine {
    let value = text.split_whitespace().find_map(|word| word.strip_prefix("nullbox.reboot_s="));
    CmdLine { reboot_s: value.and_then(|seconds| seconds.parse().ok()).filter(|seconds| *seconds <= 3600) }
}

pub fn mount_kernel_file_systems() -> Result<(), BootError> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, at, flags, options) in [
        ("devtmpfs", "/dev", quiet, c"mode=0755"),
        ("proc", "/proc", quiet | MountFlags::NODEV, c""),
        ("sysfs", "/sys", quiet | MountFlags::NODEV, c""),
    ] {
        fs::create_dir_all(at).map_err(|error| BootError::Mount { what: kind.to_owned(), at, error })?;
        mount(kind, at, kind, flags, options).map_err(|errno| BootError::Mount {
            what: kind.to_owned(),
            at,
            error: errno.into(),
        })?;
    }
    Ok(())
}

/// An assembled device-mapper device.
#[derive(Debug)]
pub struct Mapped {
    pub path: PathBuf,
    number: DeviceNumber,
}

/// dm-verity over the image, with dm-linear below it where the kernel has no partition device of its own.
pub fn open_image(image: &Image, medium: &Medium) -> Result<Mapped, BootError> {
    let control = File::options().read(true).write(true).open(DM_CONTROL);
    let control =
        control.map_err(|error| BootError::DeviceMapper { what: format!("open {DM_CONTROL}"), error })?;
    let device = match medium.extent {
        None => medium.number,
        Some(extent) => {
            let sectors = image.total_blocks * BLOCK_BYTES / 512;
            map(&control, "image", &dm::linear(medium.number, extent.offset_bytes / 512, sectors))?.number
        }
    };
    map(
        &control,
        "root",
        &dm::verity(device, image.data_blocks, image.hash_start_block, &image.root_hash, &image.salt),
    )
}

fn map(control: &File, name: &'static str, target: &Target) -> Result<Mapped, BootError> {
    let fail = |error| BootError::DeviceMapper {
        what: format!("map `{name}` as {} `{}`", target.kind, target.parameters),
        error,
    };
    let call = |request, target| -> Result<Vec<u8>, BootError> {
        let mut message = dm::message(name, target);
        sys::device_mapper(control.as_fd(), request, &mut message).map_err(|errno| fail(errno.into()))?;
        Ok(message)
    };
    call(Request::Create, None)?;
    call(Request::LoadTable, Some(target))?;
    let answer = call(Request::Resume, None)?;
    let number =
        dm::device_number(&answer).ok_or_else(|| fail(io::Error::other("no device number in the answer")))?;
    let path = Path::new("/dev").join(format!("dm-{}", number.minor));
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > NODE_WAIT_MAX {
            return Err(fail(io::Error::other(format!("{} did not appear", path.display()))));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Mapped { path, number })
}

/// Reads every block once through dm-verity, so that a damaged image is refused now and not at some later read.
pub fn check_every_block(image: &Image, mapped: &Mapped) -> Result<(), BootError> {
    let device = File::open(&mapped.path).map_err(BootError::Read)?;
    // Only hints: the check is the same without them.
    let _ = rustix::fs::fadvise(&device, 0, None, Advice::Sequential);
    check(&device, image)?;
    // What the node does not use should not stay in its page cache.
    let _ = rustix::fs::fadvise(&device, 0, None, Advice::DontNeed);
    Ok(())
}

fn check(device: &File, image: &Image) -> Result<(), BootError> {
    let mut buffer = vec![0; CHECK_CHUNK_BYTES as usize];
    let mut at = 0;
    while at < image.data_bytes() {
        let length = CHECK_CHUNK_BYTES.min(image.data_bytes() - at);
        let chunk = buffer.get_mut(..length as usize).unwrap_or_default();
        if device.read_exact_at(chunk, at).is_err() {
            return Err(name_bad_block(device, image, at / BLOCK_BYTES));
        }
        at += length;
    }
    Ok(())
}

/// The first block from `from` on that cannot be read by itself.
fn name_bad_block(device: &File, image: &Image, from: u64) -> BootError {
    let mut block_buffer = vec![0; BLOCK_BYTES as usize];
    for block in from..image.data_blocks {
        if let Err(error) = device.read_exact_at(&mut block_buffer, block * BLOCK_BYTES) {
            // dm-verity's answer to a block that does not match is EIO (errno 5), as is a disk's to a bad sector.
            return match error.raw_os_error() {
                Some(5) => BootError::Corrupt { block, root_hash: image.root_hash.clone() },
                _ => BootError::Read(error),
            };
        }
    }
    BootError::Read(io::Error::other("a read failed and succeeded when tried again"))
}

pub fn mount_image(device: &Mapped) -> Result<(), BootError> {
    let fail = |error| BootError::Mount { what: device.path.display().to_string(), at: NEW_ROOT, error };
    fs::create_dir_all(NEW_ROOT).map_err(fail)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    mount(&device.path, NEW_ROOT, "squashfs", flags, c"").map_err(|errno| fail(errno.into()))
}

/// Makes the image the root. This program's own files go, so that they hold no memory.
pub fn switch_root() -> Result<(), BootError> {
    let fail = |what| move |errno: rustix::io::Errno| BootError::SwitchRoot { what, error: errno.into() };
    for at in ["/dev", "/proc", "/sys"] {
        mount_move(at, Path::new(NEW_ROOT).join(at.trim_start_matches('/')))
            .map_err(fail("move a kernel file system"))?;
    }
    for file in ["/init", "/image.verity"] {
        fs::remove_file(file)
            .map_err(|error| BootError::SwitchRoot { what: "remove the boot image's files", error })?;
    }
    rustix::process::chdir(NEW_ROOT).map_err(fail("enter the new root"))?;
    mount_move(".", "/").map_err(fail("move the new root"))?;
    rustix::process::chroot(".").map_err(fail("change root"))?;
    rustix::process::chdir("/").map_err(fail("enter the root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_holds_unless_a_bounded_restart_is_asked_for() {
        assert_eq!(parse_command_line("quiet console=ttyS0").reboot_s, None);
        assert_eq!(parse_command_line("quiet nullbox.reboot_s=60\n").reboot_s, Some(60));
        assert_eq!(parse_command_line("nullbox.reboot_s=soon").reboot_s, None);
        assert_eq!(parse_command_line("nullbox.reboot_s=999999").reboot_s, None);
    }

    #[test]
    fn every_failure_says_what_to_do() {
        let corrupt = BootError::Corrupt { block: 3, root_hash: "ab".to_owned() };
        assert_eq!(
            corrupt.to_string(),
            "block 3 of the image (byte 12288) does not match its hash in the tree under root hash ab"
        );
        assert!(corrupt.remedy().contains("write the ISO again"));
    }
}
