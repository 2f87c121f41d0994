//! The same kernel and rootfs on libkrun without a jail, and on QEMU's microvm machine.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use abi::guest::{Frame, Kind, Start};
use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use super::{PATIENCE, init, plain, rootfs_of};

const PLACE: &str = "/run/fault/bench";
/// Where the disk with QEMU and its libraries is mounted.
const QEMU: &str = "/run/fault/qemu";
const INITRAMFS: &str = "/system/guest/initramfs.cpio";
const MEMORY_MIB: &str = "64";
const DISK_BYTES: u64 = 1 << 30;

/// A child that does not outlive its owner.
struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait();
    }
}

/// `plain AGENT`: to the verifier's hello and to the agent's program. `serial AGENT`, `microvm AGENT [DISK]`: to the program, told on the
/// serial port. AGENT runs: its rootfs is used. DISK holds QEMU, as scripts/microvm-disk.sh makes it.
pub fn obey(what: &str, rest: &str) -> Result<Value> {
    let (agent, disk) = rest.split_once(' ').unwrap_or((rest, ""));
    fs::create_dir_all(PLACE)?;
    let mut disks = rootfs_of(agent)?;
    let scratch = format!("/state/cage/scratch/bench-{}.ext4", std::process::id());
    fs::copy("/system/guest/scratch.ext4", &scratch).context("scratch")?;
    File::options().write(true).open(&scratch)?.set_len(DISK_BYTES)?;
    disks.push(scratch.clone());
    let outcome = match what {
        "plain" => by_protocol(&disks),
        "serial" => by_serial(of_krun(&format!("{PLACE}/init.cpio"), &disks)?),
        _ => {
            mount_qemu(disk)?;
            by_serial(of_qemu(&disks))
        }
    };
    fs::remove_file(&scratch)?;
    outcome
}

fn of_krun(initramfs: &str, disks: &[String]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--plain", MEMORY_MIB, initramfs, &format!("{PLACE}/control")]).args(disks);
    Ok(command)
}

fn mount_qemu(disk: &str) -> Result<()> {
    if Path::new(&format!("{QEMU}/qemu")).exists() {
        return Ok(());
    }
    ensure!(!disk.is_empty(), "which disk holds QEMU?");
    fs::create_dir_all(QEMU)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount(disk, QEMU, "ext4", flags, None).with_context(|| format!("mount {disk}"))
}

/// As QEMU's documentation (system/i386/microvm) has it for the shortest start.
fn of_qemu(disks: &[String]) -> Command {
    let mut command = Command::new(format!("{QEMU}/ld.so"));
    command.args([
        "--library-path",
        &format!("{QEMU}/lib"),
        &format!("{QEMU}/qemu"),
        "-L",
        &format!("{QEMU}/share"),
    ]);
    command.args([
        "-M",
        "microvm,acpi=off,rtc=off,x-option-roms=off,isa-serial=on",
        "-accel",
        "kvm",
        "-cpu",
        "host",
    ]);
    command.args([
        "-smp",
        "1",
        "-m",
        MEMORY_MIB,
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
    ]);
    command.args(["-kernel", "/system/guest/vmlinux", "-initrd", &format!("{PLACE}/init.cpio")]);
    command.args(["-append", &plain::COMMAND_LINE.to_string_lossy(), "-serial", "stdio"]);
    for (number, disk) in disks.iter().enumerate() {
        let mode = if number + 1 == disks.len() { "off" } else { "on" };
        command.arg("-drive").arg(format!("id=d{number},file={disk},format=raw,if=none,readonly={mode}"));
        command.arg("-device").arg(format!("virtio-blk-device,drive=d{number}"));
    }
    command
}

/// Until the guest's own program says on the serial port that the agent runs.
fn by_serial(mut command: Command) -> Result<Value> {
    write_initramfs(Path::new(&format!("{PLACE}/init.cpio")))?;
    let listener = listen()?;
    let began = Instant::now();
    let mut vm = Vm(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    let output = vm.0.stdout.take().context("no output")?;
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut said = String::new();
    while let Ok(line) = lines.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
        if line.contains(init::RUNS) {
            return Ok(json!({ "us": u64::try_from(began.elapsed().as_micros())? }));
        }
        said.push_str(&line);
        said.push('\n');
    }
    drop(listener);
    let _ = vm.0.kill(); // it may have ended by itself
    let mut errors = String::new();
    vm.0.stderr.take().context("no errors")?.read_to_string(&mut errors)?;
    bail!("the guest did not come up: {said} {errors}")
}

fn listen() -> Result<UnixListener> {
    let path = format!("{PLACE}/control");
    let _ = fs::remove_file(&path); // of the VM before
    Ok(UnixListener::bind(path)?)
}

/// With the product's initramfs: until the verifier says that the agent runs.
fn by_protocol(disks: &[String]) -> Result<Value> {
    let listener = listen()?;
    listener.set_nonblocking(true)?;
    let began = Instant::now();
    let mut command = of_krun(INITRAMFS, disks)?;
    let _vm = Vm(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let mut control = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(error) => return Err(error).context("no guest"),
        }
    };
    control.set_nonblocking(false)?;
    control.set_read_timeout(Some(PATIENCE))?;
    let hello = Frame::read_from(&mut control)?.context("no hello")?;
    ensure!(hello.kind == Kind::Hello, "{hello:?}");
    let hello_us = u64::try_from(began.elapsed().as_micros())?;
    let start = start(u8::try_from(disks.len() - 1)?)?;
    Frame::json(Kind::Start, 0, &start)?.write_to(&mut control)?;
    control.flush()?;
    let ready = Frame::read_from(&mut control)?.context("no answer")?;
    let us = u64::try_from(began.elapsed().as_micros())?;
    ensure!(ready.kind == Kind::Ready, "{}", String::from_utf8_lossy(&ready.payload));
    let ready: abi::guest::Ready = ready.parse()?;
    Ok(json!({ "us": us, "hello_us": hello_us, "guest": ready.stages_us }))
}

/// What cage would tell the guest of an agent that may do next to nothing.
fn start(rootfs_disks: u8) -> Result<Start> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(Start {
        tools: None,
        has_tree: false,
        instance: "plain.1".into(),
        command: vec!["/usr/bin/python3".into(), "/app/idle.py".into()],
        env: Vec::new(),
        workdir: "/".into(),
        authority: None,
        network: None,
        read: Vec::new(),
        write: Vec::new(),
        shell: false,
        exec: Vec::new(),
        pids_max: abi::limits::GUEST_PIDS_DEFAULT,
        clock_unix_ns: u64::try_from(clock.as_nanos())?,
        rootfs_disks,
        volumes: Vec::new(),
        stdin: false,
        terminal: None,
        health: None,
    })
}

/// A cpio with this very program as `init` (Documentation/driver-api/early-userspace/buffer-format.rst).
fn write_initramfs(path: &Path) -> Result<()> {
    let program = fs::read("/proc/self/exe")?;
    let mut archive = Vec::new();
    for (name, mode, data) in [("init", 0o100_755, program.as_slice()), ("TRAILER!!!", 0, &[])] {
        let numbers = [1, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        write!(archive, "070701")?;
        numbers.iter().try_for_each(|number| write!(archive, "{number:08x}"))?;
        write!(archive, "{name}\0")?;
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    Ok(fs::write(path, archive)?)
}
