//! Stages the node's root tree and packs it: a SquashFS (zstd) with the dm-verity tree behind it.
//!
//! Must hold: the same inputs give the same bytes; there is no shell, no interpreter, nothing but our binaries.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::binaries::Built;
use crate::cpio::Archive;
use crate::process::{run, tool};
use crate::progress::Step;
use crate::tree::Tree;
use crate::verity::{self, Seal};

const NODE_BINARIES: [&str; 6] = ["nulld", "cage", "cage-vmm", "egress", "ctxgraph", "nullgate"];
/// Mount points, empty in the image.
const FOLDERS: [&str; 8] = ["dev", "proc", "sys", "run", "tmp", "state", "etc", "system/config-volume"];
/// The scratch template: small, grown by the guest to what its manifest allows (64 GiB at most).
const SCRATCH_MIB: u64 = 64;
const SCRATCH_MIB_MAX: u64 = 65_536;
const SCRATCH_UUID: &str = "6e756c6c-626f-4078-9363-726174636800";

/// What an image is made of.
#[derive(Debug)]
pub struct Input {
    pub host_kernel: PathBuf,
    pub guest_kernel: PathBuf,
    pub binaries: Built,
    /// Defaults of /system/config.
    pub config: PathBuf,
    /// More files, laid out as on the node: what a test image carries beside the product.
    pub overlay: Option<PathBuf>,
}

/// Puts the tree together in `stage` and packs it into `out`; the seal is for the boot image.
pub fn build(tree: &Tree, input: &Input, stage: &Path, out: &Path) -> Result<Seal> {
    let step = Step::start("root image");
    let binaries = &input.binaries;
    clear(stage)?;
    for folder in FOLDERS {
        make_folder(&stage.join(folder))?;
    }
    for name in NODE_BINARIES {
        install(binary(binaries, name)?, &stage.join("system/bin").join(name), 0o755)?;
    }
    install(&input.guest_kernel, &stage.join("system/guest/vmlinux"), 0o644)?;
    let guest = guest_initramfs(&fs::read(binary(binaries, "verifier")?)?);
    write(&stage.join("system/guest/initramfs.cpio"), &guest)?;
    scratch_template(tree, &stage.join("system/guest/scratch.ext4"))?;
    copy_folder(&input.config, &stage.join("system/config"))?;
    // Written by nulld when the uplink has a resolver.
    symlink("/run/resolv.conf", stage.join("etc/resolv.conf"))?;
    if let Some(overlay) = &input.overlay {
        copy_folder(overlay, stage)?;
    }
    fix_folder_modes(stage)?;

    squash(tree, stage, out)?;
    let seal = verity::seal(out)?;
    step.done(&format!("{} KiB, root hash {}", fs::metadata(out)?.len() / 1024, &seal.root_hash));
    Ok(seal)
}

pub fn binary<'a>(binaries: &'a Built, name: &str) -> Result<&'a Path> {
    binaries.get(name).map(PathBuf::as_path).with_context(|| format!("no binary `{name}` was built"))
}

/// The guest's initramfs is the verifier and nothing else; uncompressed, so that the guest kernel needs no unpacker.
fn guest_initramfs(verifier: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.folder("dev");
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, verifier);
    archive.finish()
}

/// An empty ext4 that a guest can grow while mounted: a small journal, since a disk may have to outlive a kill and a power cut; room
/// reserved for the block group descriptors of the largest disk.
fn scratch_template(tree: &Tree, path: &Path) -> Result<()> {
    fs::File::create(path)?.set_len(SCRATCH_MIB << 20)?;
    let blocks_max = SCRATCH_MIB_MAX * 256;
    let extended = format!(
        "resize={blocks_max},hash_seed={SCRATCH_UUID},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1"
    );
    let mut mke2fs = tool(tree, "/usr/sbin/mke2fs");
    // The file system's own time stamps; mke2fs of Debian 12 does not read SOURCE_DATE_EPOCH.
    mke2fs.env("E2FSPROGS_FAKE_TIME", tree.epoch_s.to_string());
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "scratch"]);
    mke2fs.args([
        "-J",
        "size=8",
        "-O",
        "resize_inode,^metadata_csum_seed,^orphan_file",
        "-U",
        SCRATCH_UUID,
        "-E",
        &extended,
    ]);
    run(mke2fs.arg(path)).context("the scratch template")?;
    Ok(())
}

fn squash(tree: &Tree, stage: &Path, out: &Path) -> Result<()> {
    if out.exists() {
        fs::remove_file(out)?;
    }
    let mut mksquashfs = tool(tree, "mksquashfs");
    // mksquashfs refuses -mkfs-time together with the variable.
    mksquashfs.env_remove("SOURCE_DATE_EPOCH");
    mksquashfs.arg(stage).arg(out);
    mksquashfs.args(["-comp", "zstd", "-Xcompression-level", "19", "-b", "131072"]);
    mksquashfs.args([
        "-all-root",
        "-no-xattrs",
        "-no-exports",
        "-noappend",
        "-no-progress",
        "-quiet",
        "-reproducible",
    ]);
    let epoch = tree.epoch_s.to_string();
    mksquashfs.args(["-mkfs-time", &epoch, "-all-time", &epoch]);
    run(&mut mksquashfs)?;
    Ok(())
}

/// A build folder is the builder's own; anything in it may go.
pub fn clear(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The builder's umask must not show in the image.
fn fix_folder_modes(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fix_folder_modes(&entry.path())?;
        }
    }
    Ok(())
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    make_folder(to.parent().context("a file has a folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

fn write(to: &Path, content: &[u8]) -> Result<()> {
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o644))?)
}

/// Plain files and folders only.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    make_folder(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        ensure!(kind.is_dir() || kind.is_file(), "{} is neither a file nor a folder", entry.path().display());
        if kind.is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            install(&entry.path(), &to.join(entry.file_name()), mode)?;
        }
    }
    Ok(())
}
