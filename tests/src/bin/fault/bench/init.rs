//! The first program of a guest that has no vsock: makes the agent's root as the verifier does, less its walls, starts the agent's
//! program in it and says so on the serial port.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};

/// What it says when the agent's program runs.
pub const RUNS: &str = "bench: the agent runs";
const SERIAL: &str = "/dev/ttyS0";
/// The disks after the first one are the other layers; the last one is the scratch disk.
const DISKS_MAX: u8 = 8;

/// Entry, as PID 1.
pub fn main() -> Result<()> {
    let none = MountFlags::empty();
    fs::create_dir_all("/dev")?;
    mount("devtmpfs", "/dev", "devtmpfs", none, None).context("/dev")?;
    let outcome = run();
    if let Err(error) = outcome {
        writeln!(OpenOptions::new().write(true).open(SERIAL)?, "bench: {error:#}")?;
    }
    // Killed from outside; a PID 1 that ends would be a panic of the kernel.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn run() -> Result<()> {
    let read_only = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    let disks: Vec<String> = (b'a'..b'a' + DISKS_MAX)
        .map(|letter| format!("/dev/vd{}", letter as char))
        .filter(|disk| Path::new(disk).exists())
        .collect();
    let (scratch, layers) = disks.split_last().context("no disks")?;
    let mut lower = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let place = format!("/layer{number}");
        fs::create_dir_all(&place)?;
        mount(layer.as_str(), place.as_str(), "squashfs", read_only, None).with_context(|| layer.clone())?;
        lower.insert(0, place);
    }
    fs::create_dir_all("/scratch")?;
    mount(scratch.as_str(), "/scratch", "ext4", MountFlags::NODEV | MountFlags::NOSUID, None)
        .context("scratch")?;
    for place in ["/scratch/upper", "/scratch/work", "/root"] {
        fs::create_dir_all(place)?;
    }
    let options = format!("lowerdir={},upperdir=/scratch/upper,workdir=/scratch/work", lower.join(":"));
    let options = std::ffi::CString::new(options)?;
    mount("overlay", "/root", "overlay", MountFlags::empty(), options.as_c_str()).context("overlay")?;
    let mut serial = OpenOptions::new().write(true).open(SERIAL)?;
    std::os::unix::fs::chroot("/root")?;
    std::env::set_current_dir("/")?;
    // spawn(2) answers when the program was executed, as the verifier's.
    Command::new("/usr/bin/python3")
        .arg("/app/idle.py")
        .env_clear()
        .uid(1000)
        .gid(1000)
        .spawn()
        .context("agent")?;
    writeln!(serial, "{RUNS}")?;
    Ok(())
}
