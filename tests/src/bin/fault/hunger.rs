//! Processes that take all there is: of processes, memory and disk.
#![expect(unsafe_code, reason = "fork(2) has no safe wrapper")]

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::process::exit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::{ForkResult, fork};
use rustix::fs::FallocateFlags;

/// Children that one process leaves at a time.
const WAVE: usize = 500;
const CHUNK: usize = 8 << 20;
/// More than any test machine has.
const MEMORY_MAX: usize = 16 << 30;

fn split() -> nix::Result<ForkResult> {
    // SAFETY: this process has one thread, so the child may go on as it likes (fork(2)).
    unsafe { fork() }
}

/// Forks, and so do all that come of it, until the time is over.
pub fn bomb(time: Duration) -> Result<()> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        if split().is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Children that have ended and that nobody waited for: they become the first process's.
pub fn orphans(count: usize) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let wave = left.min(WAVE);
        match split()? {
            ForkResult::Child => {
                for _ in 0..wave {
                    match split() {
                        Ok(ForkResult::Child) => exit(0),
                        Ok(ForkResult::Parent { .. }) => {}
                        Err(_) => exit(1),
                    }
                }
                exit(0)
            }
            ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None)?;
                if !matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)) {
                    bail!("{} of {count} were made: {status:?}", count - left);
                }
            }
        }
        left -= wave;
    }
    Ok(())
}

/// Takes memory until it is killed. `node`: outside every service's cgroup, so that only the machine's own memory bounds it.
pub fn eat(whose: &str) -> Result<()> {
    if whose == "node" {
        fs::write("/sys/fs/cgroup/cgroup.procs", std::process::id().to_string()).context("root cgroup")?;
    }
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while eaten.len() * CHUNK < MEMORY_MAX {
        let mut chunk = Vec::new();
        chunk.try_reserve_exact(CHUNK)?;
        chunk.resize(CHUNK, 1); // each page is written
        eaten.push(chunk);
    }
    bail!("it was allowed all of it")
}

/// A file that leaves its file system no byte.
pub fn fill(path: &str) -> Result<String> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut step: u64 = 1 << 30;
    while step >= 4096 {
        let end = file.metadata()?.len();
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), end, step) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOSPC) => step /= 2,
            Err(error) => return Err(error).context("fallocate"),
        }
    }
    // What is left is less than a block, or not to be had by fallocate.
    loop {
        match file.write(&[0u8; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(File::open(path)?.metadata()?.len().to_string())
}
