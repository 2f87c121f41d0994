//! Hostile guests: starts the real `cage-vmm` in its real jail with [`crate::hostile`] in the place of Linux, and tells what came of it.
//!
//! Must hold: what is made here is gone when the answer is given; the VMM is killed when its time is over.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use abi::ids::Instance;
use anyhow::{Context, Result, bail, ensure};
use cage::jail::{JailNetwork, JailSpec};
use cage::vmm::{Console, JailDir, launch};

use crate::{hostile, tap};

/// The guest's memory.
pub const MEMORY_MIB: u32 = 64;
/// The program of a jail.
pub const VMM: &str = "/system/bin/cage-vmm";
const PLACE: &str = "/run/fault/guest";
/// The cgroup of a VM that the saboteur starts.
pub const CGROUP: &str = "/sys/fs/cgroup/services/hostile";
/// No agent's: slots are given from the lowest on.
pub const UID: u32 = abi::identity::VM_UID_BASE + abi::limits::AGENTS_RUNNING_MAX as u32 - 1;
const DISK_BYTES: u64 = 8 << 20;
/// What the read-only disk is full of.
const ROOTFS: [u8; 512] = [0x5a; 512];
const ROOTFS_BYTES: usize = 1 << 20;
/// Where an ELF header keeps the entry point (elf(5), e_entry of a 64-bit file).
const ELF_ENTRY: usize = 24;
const CONSOLE_LINES: usize = 40;
/// How long a killed VMM may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(10);

/// `attacks` names all attacks; `ATTACK SEED SECONDS` makes one and answers JSON: how the VMM ended, when, and what was said.
pub fn obey(order: &str) -> Result<String> {
    if order == "attacks" {
        return Ok(hostile::names().join(" "));
    }
    let words: Vec<&str> = order.split(' ').collect();
    let [attack, seed, seconds] = words.as_slice() else {
        bail!("guest attacks, or guest ATTACK SEED SECONDS");
    };
    let order = format!("{attack} {}", seed.parse::<u64>()?);
    let _ = fs::remove_dir_all(PLACE); // an attack before this one may have failed half way
    fs::create_dir_all(PLACE)?;
    let outcome = attack_node(&order, Duration::from_secs(seconds.parse()?));
    fs::remove_dir_all(PLACE)?;
    outcome
}

/// Files, jail, VMM, end.
fn attack_node(order: &str, limit: Duration) -> Result<String> {
    let place = Path::new(PLACE);
    let (rootfs, scratch) = (place.join("rootfs"), place.join("scratch"));
    write_program(&place.join("kernel"))?;
    fs::write(place.join("order"), order)?;
    fs::write(&rootfs, ROOTFS.repeat(ROOTFS_BYTES / ROOTFS.len()))?;
    for name in ["kernel", "order", "rootfs"] {
        fs::set_permissions(place.join(name), Permissions::from_mode(0o644))?;
    }
    File::create(&scratch)?.set_len(DISK_BYTES)?;
    chown(&scratch, Some(UID), Some(UID))?;
    let instance: Instance = serde_json::from_value(serde_json::json!("hostile.1"))?;
    let cgroup = Cgroup::create(MEMORY_MIB, 1, DISK_BYTES)?;
    let (jail, control, memory) = JailDir::create(place.join("jail"), UID)?;
    let netns = tap::make("hostile", UID, None).context("TAP")?;
    let spec = JailSpec {
        instance,
        uid: UID,
        cgroup: CGROUP.into(),
        root: jail.root(),
        kernel: place.join("kernel"),
        initramfs: place.join("order"),
        rootfs: vec![rootfs.clone()],
        scratch: scratch.clone(),
        volumes: Vec::new(),
        vsock: jail.vsock(),
        scratch_bytes: DISK_BYTES,
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        network: Some(JailNetwork { tap: "hostile".into(), mac: [2, 0, 0, 0, 0, 1] }),
    };
    let console = Arc::new(Console::default());
    let (sender, ended) = channel();
    let started = Instant::now();
    let launched = launch(Path::new(VMM), &spec, Some(&netns), &console, move |status| {
        let _ = sender.send(status); // nobody waits for one that came too late
    });
    let mut peer = Peer::new(control, memory)?;
    let mut status = None;
    while launched.is_ok() && status.is_none() && started.elapsed() < limit {
        status = ended.recv_timeout(Duration::from_millis(20)).ok();
        peer.hear()?;
    }
    let elapsed_ms = started.elapsed().as_millis();
    let out_of_memory = Cgroup::killed()?;
    Cgroup::kill()?;
    let last = status.or_else(|| ended.recv_timeout(KILL_TIME).ok());
    drop(cgroup);
    launched?;
    console.await_end(Duration::from_secs(1));
    ensure!(last.is_some(), "the VMM outlives SIGKILL");
    let is_intact = fs::read(&rootfs)?.chunks(ROOTFS.len()).all(|chunk| chunk == ROOTFS);
    let answer = serde_json::json!({
        "end": status.map_or_else(|| "killed".to_owned(), end),
        "ms": u64::try_from(elapsed_ms)?,
        "out_of_memory": out_of_memory,
        "console": console.tail(CONSOLE_LINES).0,
        "connections": peer.connections,
        "rootfs_intact": is_intact,
        "scratch_bytes": fs::metadata(&scratch)?.len(),
    });
    Ok(answer.to_string())
}

/// The guest's cgroup, with the bounds that cage sets; removed when dropped, which must be after its processes are gone.
pub struct Cgroup;

impl Cgroup {
    /// For a guest with so much memory, so many whole CPUs and so much of its disks in the node's memory.
    pub fn create(memory_mib: u32, cpus: u64, disk_bytes: u64) -> Result<Cgroup> {
        fs::create_dir_all(CGROUP)?;
        let memory_bytes = u64::from(memory_mib + abi::limits::VMM_OVERHEAD_MIB) * (1 << 20) + disk_bytes;
        for (file, value) in [
            ("cpu.max", format!("{} 100000", cpus * 100_000)),
            ("memory.max", memory_bytes.to_string()),
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", abi::limits::VMM_PIDS_MAX.to_string()),
        ] {
            fs::write(format!("{CGROUP}/{file}"), value).context(file)?;
        }
        Ok(Cgroup)
    }

    /// Kills all that is in it.
    pub fn kill() -> Result<()> {
        fs::write(format!("{CGROUP}/cgroup.kill"), "1").context("cgroup.kill")
    }

    /// Makes all that is in it stand still, or go on.
    pub fn freeze(is_still: bool) -> Result<()> {
        fs::write(format!("{CGROUP}/cgroup.freeze"), u8::from(is_still).to_string()).context("cgroup.freeze")
    }

    /// Whether the kernel killed it for taking more memory than it may.
    fn killed() -> Result<bool> {
        let events = fs::read_to_string(format!("{CGROUP}/memory.events"))?;
        Ok(events.lines().any(|line| line.starts_with("oom_kill ") && !line.ends_with(" 0")))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last task may take a moment to leave; what stays is found by the census.
        for _ in 0..200 {
            if fs::remove_dir(CGROUP).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn end(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}

/// This very program, made to begin where the hostile guest does.
fn write_program(path: &Path) -> Result<()> {
    let mut program = fs::read("/proc/self/exe")?;
    let field = program.get_mut(ELF_ENTRY..ELF_ENTRY + 8).context("no ELF header")?;
    field.copy_from_slice(&hostile::entry().to_le_bytes());
    Ok(fs::write(path, program)?)
}

/// The host's end of the guest's vsock ports: takes what comes, answers nothing.
struct Peer {
    listeners: [UnixListener; 2],
    open: Vec<std::os::unix::net::UnixStream>,
    connections: u64,
}

impl Peer {
    fn new(control: UnixListener, memory: UnixListener) -> Result<Peer> {
        let listeners = [control, memory];
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        Ok(Peer { listeners, open: Vec::new(), connections: 0 })
    }

    /// Reads what was sent; connections that ended are dropped.
    fn hear(&mut self) -> Result<()> {
        const OPEN_MAX: usize = 512;
        for listener in &self.listeners {
            while let Ok((stream, _)) = listener.accept() {
                self.connections += 1;
                stream.set_nonblocking(true)?;
                if self.open.len() < OPEN_MAX {
                    self.open.push(stream);
                }
            }
        }
        let mut chunk = [0u8; 65536];
        self.open.retain_mut(|stream| match stream.read(&mut chunk) {
            Ok(count) => count > 0 && stream.write_all(b"x").is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        Ok(())
    }
}
