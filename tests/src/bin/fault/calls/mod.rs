//! One whole life of a VM in its real jail, with each system call of its VMM watched: boot, disks, network, vsock, exec, files,
//! pause, an orderly end. What was called stands in [`RECORD`] afterwards.
//!
//! Must hold: what is made here is gone when it ends, and the VMM with it.

mod watch;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use abi::guest::{Clock, Exec, Exit, Files, FilesJob, Frame, GuestNetwork, Kind, Shutdown, Start, Volume};
use abi::ids::Instance;
use anyhow::{Context, Result, bail, ensure};
use cage::jail::{JailNetwork, JailSpec, JailVolume};
use cage::vmm::{Console, JailDir, launch};

use crate::guest::{CGROUP, Cgroup, UID, VMM};
use crate::{bench, tap};

/// Calls, one a line, as [`system_tests::rules::Made`] writes them; or `error: ` and why there are none.
const RECORD: &str = "/run/fault/calls.txt";
const PLACE: &str = "/run/fault/calls";
/// On the disk where cage's own are.
const DISKS: [&str; 2] = ["/state/cage/scratch/calls.ext4", "/state/cage/scratch/calls-volume.ext4"];
const DISK_BYTES: u64 = 64 << 20;
/// The guest reports free memory only above 32 blocks of 4 MiB (mm/page_reporting.c).
const MEMORY_MIB: u32 = 320;
const VCPUS: u8 = 2;
/// How long the guest may be silent, with every call of its VMM watched.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the agent does: both disks with flush and deletion, its memory, the network, much output.
const WORK: &str = r#"
import os, socket, sys, threading
for directory in ("/data", "/volume"):
    path = directory + "/blob"
    with open(path, "wb") as f:
        for _ in range(8): f.write(os.urandom(1 << 20))
        f.flush(); os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with open(path, "rb") as f:
        assert len(f.read()) == 8 << 20
    os.remove(path)
    with open(directory + "/kept", "w") as f: f.write("kept")
os.sync()
memory = socket.socket(socket.AF_UNIX); memory.connect("/run/nullbox/memory.sock")
memory.sendall(b"hello\n"); assert memory.recv(6) == b"hello\n"; memory.close()
near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); near.settimeout(20); near.connect(("10.200.0.1", 9))
try:
    near.send(b"x" * 1000); near.recv(1)
except ConnectionRefusedError: pass
threads = [threading.Thread(target=lambda: sum(range(200000))) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
sys.stdout.write("worked " * 8192)
"#;

/// In the place of cage-vmm: `watched` is how it is called (see `launch`, which gives no arguments).
pub fn is_watched() -> bool {
    std::env::args().next().is_some_and(|name| name == format!("{PLACE}/watched"))
}

/// Becomes a watched cage-vmm.
pub fn watched() -> Result<()> {
    watch::begin(VMM)
}

/// `--calls AGENT`: whose rootfs is used; it runs.
pub fn main(agent: &str) -> Result<()> {
    remove();
    let outcome = live(agent);
    remove();
    let text = match &outcome {
        Ok(text) => text.clone(),
        Err(error) => format!("error: {error:#}"),
    };
    fs::write(RECORD, text)?;
    outcome.map(drop)
}

/// What an earlier life or this one made. Much of it may not be there.
fn remove() {
    let _ = fs::remove_dir_all(PLACE);
    DISKS.iter().for_each(|disk| drop(fs::remove_file(disk)));
}

fn live(agent: &str) -> Result<String> {
    fs::create_dir_all(PLACE)?;
    let place = Path::new(PLACE);
    for disk in DISKS {
        fs::copy("/system/guest/scratch.ext4", disk).context("scratch")?;
        File::options().write(true).open(disk)?.set_len(DISK_BYTES)?;
        fs::set_permissions(disk, Permissions::from_mode(0o600))?;
        chown(disk, Some(UID), Some(UID))?;
    }
    symlink(std::env::current_exe()?, place.join("watched"))?;
    let instance: Instance = serde_json::from_value(serde_json::json!("calls.1"))?;
    let cgroup = Cgroup::create(MEMORY_MIB, u64::from(VCPUS), 0)?;
    let (jail, control, memory) = JailDir::create(place.join("jail"), UID)?;
    let netns = tap::make("calls", UID, Some([10, 200, 0, 1])).context("TAP")?;
    let rootfs: Vec<_> = bench::rootfs_of(agent)?.into_iter().map(Into::into).collect();
    let layers = u8::try_from(rootfs.len())?;
    let spec = JailSpec {
        instance,
        uid: UID,
        cgroup: CGROUP.into(),
        root: jail.root(),
        kernel: "/system/guest/vmlinux".into(),
        initramfs: "/system/guest/initramfs.cpio".into(),
        rootfs,
        scratch: DISKS[0].into(),
        volumes: vec![JailVolume { path: DISKS[1].into(), bytes: DISK_BYTES, read_only: false }],
        vsock: jail.vsock(),
        scratch_bytes: DISK_BYTES,
        vcpus: VCPUS,
        memory_mib: MEMORY_MIB,
        network: Some(JailNetwork { tap: "calls".into(), mac: [2, 0, 0, 0, 0, 1] }),
    };
    let socket = UnixListener::bind(watch::SOCKET)?;
    let watcher = std::thread::spawn(move || watch::watch(&socket));
    std::thread::spawn(move || echo(&memory));
    let console = Arc::new(Console::default());
    let (sender, ended) = channel();
    let launched = launch(&place.join("watched"), &spec, Some(&netns), &console, move |status| {
        let _ = sender.send(status); // nobody waits for one that came too late
    });
    let lived = launched.map_err(Into::into).and_then(|()| talk(&control, layers));
    let end = ended.recv_timeout(if lived.is_ok() { PATIENCE } else { Duration::ZERO });
    Cgroup::kill()?;
    drop(cgroup);
    console.await_end(Duration::from_secs(1));
    // Without a watcher all calls fail: its error is the first. It ends with the VMM, but waits for ever for one that never came.
    let record = match lived.is_ok() || watcher.is_finished() {
        true => watcher.join().ok().context("the watcher panicked")??,
        false => watch::Record::default(),
    };
    lived.with_context(|| console.tail(20).0.join(" | "))?;
    let end = end.context("the VM does not end")?;
    ensure!(end.success(), "the VMM ended with {end}: {}", console.tail(20).0.join(" | "));
    println!("calls: {} in all, {} distinct", record.total, record.made.len());
    Ok(record.made.iter().map(|made| format!("{made}\n")).collect())
}

/// The host's end of the agent's memory: what comes goes back.
fn echo(memory: &UnixListener) {
    for mut stream in memory.incoming().map_while(Result::ok) {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            if stream.write_all(&chunk[..count]).is_err() {
                break;
            }
        }
    }
}

/// Cage's part of the life.
fn talk(listener: &UnixListener, rootfs_disks: u8) -> Result<()> {
    listener.set_nonblocking(true)?;
    let began = Instant::now();
    let mut control = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error).context("no guest"),
        }
    };
    control.set_nonblocking(false)?;
    control.set_read_timeout(Some(PATIENCE))?;
    until(&mut control, Kind::Hello, 0)?;
    Frame::json(Kind::Start, 0, &start(rootfs_disks)?)?.write_to(&mut control)?;
    until(&mut control, Kind::Ready, 0)?;
    let command = vec!["/usr/bin/python3".into(), "-c".into(), WORK.into()];
    let window_bytes = abi::limits::EXEC_WINDOW_BYTES;
    let exec = Exec { command, env: Vec::new(), workdir: String::new(), terminal: None, window_bytes };
    Frame::json(Kind::Exec, 1, &exec)?.write_to(&mut control)?;
    ended_well(&mut control, 1, b"worked").context("exec")?;
    let files = Files { job: FilesJob::Read { path: "/data/kept".into() }, window_bytes };
    Frame::json(Kind::Files, 2, &files)?.write_to(&mut control)?;
    ended_well(&mut control, 2, b"kept").context("files")?;
    Frame::data(Kind::Sync, 0, b"").write_to(&mut control)?;
    until(&mut control, Kind::Synced, 0)?;
    Cgroup::freeze(true)?;
    std::thread::sleep(Duration::from_secs(1));
    Cgroup::freeze(false)?;
    Frame::json(Kind::Clock, 0, &Clock { unix_ns: unix_ns()? })?.write_to(&mut control)?;
    // The guest tells the balloon of free memory every two seconds (mm/page_reporting.c).
    std::thread::sleep(Duration::from_secs(5));
    Frame::json(Kind::Shutdown, 0, &Shutdown { grace_ms: 2000 })?.write_to(&mut control)?;
    until(&mut control, Kind::Exit, 0).map(drop)
}

/// Reads frames until one of a kind on a channel; gives all output of that channel, then its payload.
fn until(control: &mut UnixStream, kind: Kind, channel: u32) -> Result<Vec<u8>> {
    let mut said = Vec::new();
    while let Some(frame) = Frame::read_from(control)? {
        let is_here = frame.channel == channel;
        match frame.kind {
            got if got == kind && is_here => {
                said.extend(frame.payload);
                return Ok(said);
            }
            Kind::Stdout | Kind::Stderr if is_here => said.extend(frame.payload),
            Kind::Failed => bail!("the guest: {}", String::from_utf8_lossy(&frame.payload)),
            _ => {}
        }
    }
    bail!("the guest went away before its {kind:?}")
}

fn ended_well(control: &mut UnixStream, channel: u32, expected: &[u8]) -> Result<()> {
    let said = until(control, Kind::Exit, channel)?;
    let exit = Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 };
    let is_well = said.ends_with(&serde_json::to_vec(&exit)?);
    let is_said = said.windows(expected.len()).any(|part| part == expected);
    ensure!(is_well && is_said, "{}", String::from_utf8_lossy(&said[said.len().saturating_sub(800)..]));
    Ok(())
}

fn unix_ns() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

fn start(rootfs_disks: u8) -> Result<Start> {
    Ok(Start {
        tools: None,
        has_tree: false,
        instance: "calls.1".into(),
        command: vec!["/usr/bin/python3".into(), "/app/idle.py".into()],
        env: Vec::new(),
        workdir: "/".into(),
        network: Some(GuestNetwork {
            address: "10.200.0.2".into(),
            prefix: 24,
            gateway: "10.200.0.1".into(),
            mtu: 1500,
        }),
        authority: None,
        read: Vec::new(),
        write: vec!["/data".into()],
        shell: false,
        exec: Vec::new(),
        pids_max: abi::limits::GUEST_PIDS_DEFAULT,
        clock_unix_ns: unix_ns()?,
        rootfs_disks,
        volumes: vec![Volume { path: "/volume".into(), read_only: false }],
        stdin: false,
        terminal: None,
        health: None,
    })
}
