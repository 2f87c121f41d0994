//! The ISO: one file that boots from optical media and from a USB stick, under UEFI and BIOS.
//!
//! GPT partitions: 2 the EFI system partition (also the El Torito UEFI image), 3 the root image, found by its type.
//! ISO 9660 holds only what GRUB needs for BIOS machines.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use crate::binaries::{self, Built};
use crate::cpio::Archive;
use crate::esp::{self, Boot};
use crate::kernel::{self, Kind};
use crate::process::{run, tool};
use crate::progress::Step;
use crate::root::{self, Input};
use crate::tree::Tree;
use crate::verity::Seal;

pub const LABEL: &str = "NULLBOX";
/// initramfs/src/gpt.rs has the same GUID.
const ROOT_TYPE: &str = "fab3b0bf-9d4b-4b05-8d3c-0a1e6f6e7862";
/// The last console is /dev/console; our programs write to every active one. A panic restarts the node after 5 s. What hardens the kernel
/// is in the kernel itself (CONFIG_CMDLINE in kernel-config/host/50-hardening.config), whoever boots it.
///
/// `watchdog.stop_on_reboot=0`: drivers switch their watchdog off as the first act of reboot(2), and what hangs after that would hang for
/// ever; left on, it ends a reboot that does not come about.
///
/// `kvm.tsc_tolerance_ppm`: KVM keeps the first, coarse calibration of the TSC as the rate of its guests, while the kernel refines its own a
/// second later (both must agree within 1 %). Where the two are more than 250 ppm apart, as under emulation, and the CPU cannot scale the TSC, guests would run in
/// KVM's catch-up mode, in which their timers stop. Guests take their time from the paravirtual clock, so the difference costs nothing.
///
/// `no_timer_check`: the kernel takes a timer whose first ticks are late, as under a loaded emulator, for a broken IO-APIC, and panics.
pub const COMMAND_LINE: &str = "console=tty0 console=ttyS0,115200 quiet loglevel=4 panic=5 watchdog.stop_on_reboot=0 kvm.tsc_tolerance_ppm=10000 no_timer_check";
const GRUB: &str = "/usr/lib/grub/i386-pc";
/// What it takes to load two files from ISO 9660; no menu, no command line.
const GRUB_MODULES: [&str; 7] = ["biosdisk", "iso9660", "search_label", "linux", "echo", "sleep", "reboot"];

/// Builds `out`; the files of `overlay`, which lie as on the node, replace or join those of the root.
pub fn build(tree: &Tree, out: &Path, overlay: Option<&Path>) -> Result<()> {
    // What ends on one processor, beside what takes all there are.
    let (binaries, kernels) = std::thread::scope(|scope| {
        let kernels =
            scope.spawn(|| anyhow::Ok((kernel::build(tree, Kind::Host)?, kernel::build(tree, Kind::Guest)?)));
        (binaries::build(tree), kernels.join())
    });
    let (host_kernel, guest_kernel) = kernels.map_err(|_| anyhow!("the build of the kernels panicked"))??;
    let input = Input {
        binaries: binaries?,
        host_kernel,
        guest_kernel,
        config: tree.path("image/config"),
        overlay: overlay.map(Path::to_owned),
    };
    assemble(tree, &input, out)
}

/// Everything behind the compilers; a function of `input` and the epoch.
fn assemble(tree: &Tree, input: &Input, out: &Path) -> Result<()> {
    let parts = parts(out);
    // Two builds of one ISO would clear each other's parts.
    fs::create_dir_all(out.parent().context("the ISO needs a folder")?)?;
    let lock = fs::File::create(out.with_extension("lock"))?;
    lock.lock().context("cannot lock the build")?;
    root::clear(&parts)?;
    let root_image = parts.join("root.img");
    let seal = root::build(tree, input, &parts.join("root"), &root_image)?;
    let step = Step::start("ISO");
    let initramfs = boot_initramfs(tree, &input.binaries, &seal, &parts)?;
    let boot = Boot { kernel: &input.host_kernel, initramfs: &initramfs, command_line: COMMAND_LINE };
    let uki = parts.join("nullbox.efi");
    esp::unified_kernel_image(tree, &boot, &parts, &uki)?;
    let esp = parts.join("esp.img");
    esp::system_partition(tree, &uki, &esp)?;
    let stage = bios_tree(tree, &boot, &parts)?;
    write_iso(tree, &stage, &esp, &root_image, out)?;
    step.done(&format!("{} ({:.1} MB)", out.display(), fs::metadata(out)?.len() as f64 / 1e6));
    Ok(())
}

/// What an ISO is put together from lies in a folder beside it.
pub fn parts(iso: &Path) -> PathBuf {
    iso.with_extension("parts")
}

/// initramfs binary and seal, zstd-packed (the host kernel unpacks nothing else).
fn boot_initramfs(tree: &Tree, built: &Built, seal: &Seal, parts: &Path) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "newroot"] {
        archive.folder(folder);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, &fs::read(root::binary(built, "initramfs")?)?);
    archive.file("image.verity", 0o444, seal.to_text().as_bytes());
    let (plain, packed) = (parts.join("initramfs.cpio"), parts.join("initramfs.cpio.zst"));
    fs::write(&plain, archive.finish())?;
    run(tool(tree, "zstd")
        .args(["-q", "-f", "-19", "-T1", "--no-progress"])
        .arg(&plain)
        .arg("-o")
        .arg(&packed))?;
    Ok(packed)
}

/// What BIOS machines boot: GRUB's core image with its whole script inside, the kernel, the initramfs.
fn bios_tree(tree: &Tree, boot: &Boot<'_>, parts: &Path) -> Result<PathBuf> {
    let stage = parts.join("iso");
    root::clear(&stage)?;
    fs::create_dir_all(stage.join("boot"))?;
    for (from, name) in [(boot.kernel, "vmlinuz"), (boot.initramfs, "initrd")] {
        fs::copy(from, stage.join("boot").join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let script = parts.join("grub.cfg");
    fs::write(&script, grub_script(boot.command_line))?;
    let mut mkimage = tool(tree, "grub-mkimage");
    mkimage.args(["-O", "i386-pc-eltorito", "-d", GRUB, "-p", "/boot", "-c"]).arg(&script);
    mkimage.arg("-o").arg(stage.join("boot/bios.img")).args(GRUB_MODULES);
    run(&mut mkimage)?;
    for path in ["boot/vmlinuz", "boot/initrd", "boot/bios.img", "boot", ""] {
        esp::set_time(tree, &stage.join(path))?;
    }
    Ok(stage)
}

/// Run line by line; when a line fails GRUB goes on with the next, so the end is a restart and never a prompt.
fn grub_script(command_line: &str) -> String {
    format!(
        "search.fs_label {LABEL} root\n\
         linux /boot/vmlinuz {command_line}\n\
         initrd /boot/initrd\n\
         boot\n\
         echo NullBox: the boot loader could not load /boot/vmlinuz and /boot/initrd from the medium labelled {LABEL}.\n\
         echo Write the ISO again, or use another drive or port. Restarting in 60 s.\n\
         sleep 60\n\
         reboot\n"
    )
}

fn write_iso(tree: &Tree, stage: &Path, esp: &Path, root_image: &Path, out: &Path) -> Result<()> {
    let partial = out.with_extension("iso.partial");
    let mut xorriso = tool(tree, "xorriso");
    xorriso.args([
        "-no_rc",
        "-as",
        "mkisofs",
        "-quiet",
        "-iso-level",
        "3",
        "-volid",
        LABEL,
        "-publisher",
        "NULLBOX",
    ]);
    xorriso.args(["-uid", "0", "-gid", "0", "-dir-mode", "0555", "-file-mode", "0444"]);
    // BIOS, from optical media and (grub2-mbr) from a stick.
    xorriso.args(["-c", "boot/boot.cat", "-b", "boot/bios.img", "-no-emul-boot", "-boot-load-size", "4"]);
    xorriso
        .args(["-boot-info-table", "--grub2-boot-info", "--grub2-mbr"])
        .arg(format!("{GRUB}/boot_hybrid.img"));
    // Some BIOSes boot only disks with an active partition.
    xorriso.args(["--mbr-force-bootable", "-appended_part_as_gpt", "-partition_offset", "16"]);
    xorriso.args(["-append_partition", "2", "0xef"]).arg(esp);
    xorriso.args(["-append_partition", "3", ROOT_TYPE]).arg(root_image);
    // UEFI boots the same partition by El Torito.
    xorriso.args(["-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot"]);
    xorriso.arg("-o").arg(&partial).arg(stage);
    run(&mut xorriso)?;
    ensure!(partial.exists(), "xorriso wrote no {}", partial.display());
    fs::rename(&partial, out).with_context(|| format!("cannot write {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_loader_never_ends_at_a_prompt() {
        assert!(grub_script("quiet").ends_with("sleep 60\nreboot\n"));
    }

    /// Stand-ins for what the compilers make; the stages behind them do not look inside.
    fn input(folder: &Path) -> Input {
        let file = |name: &str, bytes: usize| {
            let path = folder.join(name);
            let content: Vec<u8> = (0..bytes).map(|at| (at * at % 253) as u8).collect();
            fs::write(&path, content).unwrap();
            path
        };
        fs::create_dir_all(folder.join("config/agents")).unwrap();
        fs::write(folder.join("config/nulld.toml"), "# defaults\n").unwrap();
        let names = binaries::names().map(|name| (name, file(name, 50_000))).collect();
        Input {
            host_kernel: file("bzImage", 3_000_000),
            guest_kernel: file("vmlinux", 2_000_000),
            binaries: names,
            config: folder.join("config"),
            overlay: None,
        }
    }

    #[test]
    fn two_builds_at_two_times_in_two_places_are_the_same_bytes() {
        let tree = Tree::find().unwrap();
        let build = |name: &str| {
            let folder = std::env::temp_dir().join(format!("nullbox-iso-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let out = folder.join("nullbox.iso");
            assemble(&tree, &input(&folder), &out).unwrap();
            let (iso, root) = (fs::read(&out).unwrap(), fs::read(parts(&out).join("root.img")).unwrap());
            fs::remove_dir_all(folder).unwrap();
            (iso, root)
        };
        let (first, root) = build("a");
        // FAT counts in steps of two seconds.
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let (second, _) = build("b");
        let difference = first.iter().zip(&second).position(|(one, other)| one != other);
        assert_eq!((difference, first.len()), (None, second.len()), "first differing byte");
        assert_eq!(root_partition(&first), root);
    }

    /// The bytes of the partition with our type, found without this module's help.
    fn root_partition(iso: &[u8]) -> &[u8] {
        let number = |at: usize| u64::from_le_bytes(iso[at..at + 8].try_into().unwrap()) as usize;
        let entries = number(512 + 72) * 512;
        let guid =
            [0xbf, 0xb0, 0xb3, 0xfa, 0x4b, 0x9d, 0x05, 0x4b, 0x8d, 0x3c, 0x0a, 0x1e, 0x6f, 0x6e, 0x78, 0x62];
        let entry = (0..128).map(|index| entries + index * 128).find(|at| iso[*at..at + 16] == guid).unwrap();
        &iso[number(entry + 32) * 512..(number(entry + 40) + 1) * 512]
    }
}
