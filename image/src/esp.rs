//! The UEFI side: one unified kernel image (stub, kernel, initramfs, command line) in a FAT EFI system partition.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::pe;
use crate::process::{run, tool};
use crate::tree::Tree;

const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const OS_RELEASE: &str = "ID=nullbox\nNAME=NullBox\nPRETTY_NAME=NullBox\n";
/// FAT wants a volume number; a fixed one keeps builds equal.
const VOLUME_ID: &str = "4e554c4c";

/// What the firmware starts.
#[derive(Debug)]
pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub command_line: &'a str,
}

/// Puts the parts into sections of the EFI stub (systemd-stub(7)).
pub fn unified_kernel_image(tree: &Tree, boot: &Boot<'_>, folder: &Path, out: &Path) -> Result<()> {
    let parts = folder.join("uki");
    crate::root::clear(&parts)?;
    fs::write(parts.join("osrel"), OS_RELEASE)?;
    fs::write(parts.join("cmdline"), format!("{}\0", boot.command_line))?;
    let sections = [
        (".osrel", parts.join("osrel")),
        (".cmdline", parts.join("cmdline")),
        (".initrd", boot.initramfs.to_owned()),
        // Last: the kernel unpacks itself into what lies behind it.
        (".linux", boot.kernel.to_owned()),
    ];
    let stub =
        fs::read(STUB).with_context(|| format!("{STUB} (package systemd-boot-efi); run scripts/deps.sh"))?;
    let mut lengths = Vec::new();
    for (_, file) in &sections {
        lengths.push(fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len());
    }
    let addresses = pe::layout(&stub)?.place(&lengths);
    let mut objcopy = tool(tree, "objcopy");
    for ((name, file), address) in sections.iter().zip(addresses) {
        objcopy.arg("--add-section").arg(format!("{name}={}", file.display()));
        objcopy.arg("--change-section-vma").arg(format!("{name}={address:#x}"));
    }
    run(objcopy.arg(STUB).arg(out)).context("the unified kernel image")?;
    // objcopy writes the time of day into the header.
    let mut image = fs::read(out)?;
    pe::clear_time(&mut image)?;
    Ok(fs::write(out, image)?)
}

/// A FAT file system just large enough for the unified kernel image as the default boot file.
pub fn system_partition(tree: &Tree, uki: &Path, out: &Path) -> Result<()> {
    let kib = fs::metadata(uki)?.len().div_ceil(1024);
    // FAT16 with 2 KiB clusters: at most 1 % tables, and at least the 4085 clusters that make it FAT16.
    let size_kib = (kib + kib / 50 + 256).max(9 * 1024).next_multiple_of(32);
    if out.exists() {
        fs::remove_file(out)?;
    }
    let mut mkfs = tool(tree, "/usr/sbin/mkfs.vfat");
    mkfs.args([
        "--invariant",
        "-F",
        "16",
        "-s",
        "4",
        "-S",
        "512",
        "-i",
        VOLUME_ID,
        "-n",
        "NULLBOX-ESP",
        "-C",
    ]);
    run(mkfs.arg(out).arg(size_kib.to_string()))?;
    for folder in ["::/EFI", "::/EFI/BOOT"] {
        run(tool(tree, "mmd").arg("-i").arg(out).arg(folder))?;
    }
    set_time(tree, uki)?;
    run(tool(tree, "mcopy").args(["-m", "-i"]).arg(out).arg(uki).arg("::/EFI/BOOT/BOOTX64.EFI"))?;
    Ok(())
}

/// mcopy -m and xorriso take a file's own time.
pub fn set_time(tree: &Tree, file: &Path) -> Result<()> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(tree.epoch_s);
    Ok(fs::File::open(file)?.set_modified(time)?)
}
