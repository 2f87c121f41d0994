//! cgroups of VMMs below the one that nulld delegates to cage (Documentation/admin-guide/cgroup-v2.rst).
//!
//! Must hold: each VMM has a cgroup of its own with bounds on CPU, memory and tasks before it runs; removing it first kills
//! all that is in it, in a bounded time.

use abi::ids::Instance;
use abi::limits;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CGROUPS: &str = "/sys/fs/cgroup";
const VM_PREFIX: &str = "vm-";
/// Period of cpu.max, in microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// How long the kernel may take to end a killed cgroup's tasks.
const KILL_MS_MAX: u64 = 10_000;

/// The bounds of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub cpu_percent: u32,
    pub memory_mib: u32,
    /// The scratch disk's size where disks live in memory (an ephemeral node), else 0: such pages belong to who wrote them.
    pub disk_in_memory_mib: u32,
    /// Absent: as fast as the disk is.
    pub io: Option<IoBound>,
}

/// Reads and writes of a VM's disks, each at most so fast. Buffered writes count when they reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoBound {
    /// Numbers of the whole disk that the file system is on; the kernel bounds no partition.
    device: (u32, u32),
    bytes_per_sec: u64,
}

impl IoBound {
    /// Of the disk that holds `dir`. An error where there is none: files that live in memory have no speed to bound.
    pub fn of(dir: &Path, mb_per_sec: u32) -> io::Result<IoBound> {
        let device = rustix::fs::stat(dir)?.st_dev;
        let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
        let block = PathBuf::from(format!("/sys/dev/block/{}:{}", numbers.0, numbers.1));
        let no_disk = || {
            let rule =
                format!("{} is on no disk, so `max_disk_mb_per_sec` cannot be enforced", dir.display());
            io::Error::new(io::ErrorKind::Unsupported, rule)
        };
        if numbers.0 == 0 || !block.exists() {
            return Err(no_disk());
        }
        // A partition's directory lies in its disk's.
        let dev = match block.join("partition").exists() {
            true => fs::read_to_string(fs::canonicalize(&block)?.join("../dev"))?,
            false => format!("{}:{}", numbers.0, numbers.1),
        };
        let (major, minor) = dev.trim().split_once(':').ok_or_else(no_disk)?;
        match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => {
                let bytes_per_sec = u64::from(mb_per_sec) * 1024 * 1024;
                Ok(IoBound { device: (major, minor), bytes_per_sec })
            }
            _ => Err(no_disk()),
        }
    }

    fn line(&self) -> String {
        let (major, minor) = self.device;
        let rate = self.bytes_per_sec;
        format!("{major}:{minor} rbps={rate} wbps={rate}")
    }
}

impl Bounds {
    /// Files of the cgroup and what is written to them.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let quota_us = u64::from(self.cpu_percent) * CPU_PERIOD_US / 100;
        let memory_mib = u64::from(self.memory_mib)
            + u64::from(limits::VMM_OVERHEAD_MIB)
            + u64::from(self.disk_in_memory_mib);
        let mut files = vec![
            ("cpu.max", format!("{quota_us} {CPU_PERIOD_US}")),
            ("memory.max", (memory_mib * 1024 * 1024).to_string()),
            ("memory.swap.max", "0".into()),
            ("memory.oom.group", "1".into()),
            ("pids.max", limits::VMM_PIDS_MAX.to_string()),
        ];
        files.extend(self.io.map(|io| ("io.max", io.line())));
        files
    }
}

/// The cgroup that is cage's to divide.
#[derive(Debug, Clone)]
pub struct Delegated {
    dir: PathBuf,
    /// Whether the controller is there: only a manifest that bounds the disk's speed needs it.
    io: bool,
}

impl Delegated {
    /// Finds it from /proc/self/cgroup: cage runs in `.../cage/self`, so all of `.../cage` is its own.
    pub fn find() -> io::Result<Delegated> {
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let own = parse_own(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "/proc/self/cgroup has no cgroup v2 line")
        })?;
        let parent = delegated_of(own).ok_or_else(|| {
            let rule =
                format!("cage runs in cgroup {own}, not in a `self` below one of its own (delegate_cgroup)");
            io::Error::new(io::ErrorKind::InvalidData, rule)
        })?;
        Delegated::at(Path::new(CGROUPS).join(parent.trim_start_matches('/')))
    }

    /// Uses a cgroup directory without processes of its own.
    pub fn at(dir: PathBuf) -> io::Result<Delegated> {
        let offered = fs::read_to_string(dir.join("cgroup.controllers"))?;
        for needed in ["cpu", "memory", "pids"] {
            if !offered.split_whitespace().any(|controller| controller == needed) {
                let rule = format!("{}: controller {needed} is not available", dir.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, rule));
            }
        }
        let io = offered.split_whitespace().any(|controller| controller == "io");
        let wanted = if io { "+cpu +memory +pids +io" } else { "+cpu +memory +pids" };
        write(&dir.join("cgroup.subtree_control"), wanted)?;
        Ok(Delegated { dir, io })
    }

    /// Whether a VM's disks can be held to a speed.
    pub fn bounds_io(&self) -> bool {
        self.io
    }

    /// Makes the cgroup of one VM with its bounds set.
    pub fn create(&self, instance: &Instance, bounds: Bounds) -> io::Result<VmCgroup> {
        if bounds.io.is_some() && !self.io {
            let rule = "the kernel has no io controller, so `max_disk_mb_per_sec` cannot be enforced";
            return Err(io::Error::new(io::ErrorKind::Unsupported, rule));
        }
        let dir = self.dir.join(format!("{VM_PREFIX}{instance}"));
        fs::create_dir(&dir)?;
        let cgroup = VmCgroup { dir };
        for (file, value) in bounds.files() {
            let path = cgroup.dir.join(file);
            match write(&path, &value) {
                // A kernel without swap has no such file, and no swap.
                Err(error) if file == "memory.swap.max" && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                }
                Ok(()) => {}
            }
        }
        Ok(cgroup)
    }

    /// Cgroups that an earlier life of cage left behind.
    pub fn leftovers(&self) -> io::Result<Vec<VmCgroup>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(VM_PREFIX.as_bytes()) {
                found.push(VmCgroup { dir: entry.path() });
            }
        }
        Ok(found)
    }
}

/// The cgroup v2 path of /proc/PID/cgroup (cgroups(7): the line `0::PATH`).
fn parse_own(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn delegated_of(own: &str) -> Option<&str> {
    own.strip_suffix("/self").filter(|parent| parent.len() > 1)
}

/// What a VM's jail uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    pub memory_kib: u64,
    pub cpu_ms: u64,
}

/// One VM's cgroup.
#[derive(Debug)]
pub struct VmCgroup {
    dir: PathBuf,
}

impl VmCgroup {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Memory and CPU time used so far.
    pub fn usage(&self) -> Option<Use> {
        let memory: u64 = fs::read_to_string(self.dir.join("memory.current")).ok()?.trim().parse().ok()?;
        let cpu_us = field(&fs::read_to_string(self.dir.join("cpu.stat")).ok()?, "usage_usec")?;
        Some(Use { memory_kib: memory / 1024, cpu_ms: cpu_us / 1000 })
    }

    /// Whether the kernel killed it for using more than memory.max.
    pub fn out_of_memory(&self) -> bool {
        fs::read_to_string(self.dir.join("memory.events"))
            .ok()
            .and_then(|events| field(&events, "oom_kill"))
            .is_some_and(|kills| kills > 0)
    }

    /// Kills all tasks in it. They may take a moment to be gone.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.dir.join("cgroup.kill"), "1")
    }

    /// Kills what is left and removes the cgroup; an error after a bounded time if tasks do not go.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_millis(KILL_MS_MAX);
        loop {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    self.kill()?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => return other,
            }
        }
    }
}

/// Writes a file of the kernel's. Never makes one: cgroupfs answers that with EACCES, and what is missing must be seen as missing.
pub(crate) fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// A value of a flat keyed file.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_become_the_kernels_values() {
        let bounds = Bounds { cpu_percent: 40, memory_mib: 512, disk_in_memory_mib: 0, io: None };
        let files = bounds.files();
        assert_eq!(files[0], ("cpu.max", "40000 100000".into()));
        assert_eq!(files[1], ("memory.max", (576u64 << 20).to_string()));
        assert_eq!(files[3], ("memory.oom.group", "1".into()));
        let ephemeral = Bounds { disk_in_memory_mib: 1024, ..bounds };
        assert_eq!(ephemeral.files()[1].1, (1600u64 << 20).to_string());
        let io = Some(IoBound { device: (254, 16), bytes_per_sec: 20 << 20 });
        let slow = Bounds { io, ..bounds };
        assert_eq!(slow.files()[5], ("io.max", "254:16 rbps=20971520 wbps=20971520".into()));
    }

    #[test]
    fn a_speed_that_nothing_can_hold_to_is_refused() {
        let error = IoBound::of(Path::new("/proc"), 20).unwrap_err();
        assert!(error.to_string().contains("/proc is on no disk"), "{error}");
        assert!(IoBound::of(Path::new("/nonexistent"), 20).is_err());
    }

    #[test]
    fn only_a_delegated_cgroup_is_divided() {
        let own = parse_own("1:name=systemd:/x\n0::/services/cage/self\n").unwrap();
        assert_eq!(delegated_of(own), Some("/services/cage"));
        assert_eq!(delegated_of("/services/cage"), None);
        assert_eq!(delegated_of("/self"), None);
        assert_eq!(parse_own("1:cpu:/x\n"), None);
    }

    #[test]
    fn keyed_files_are_read_by_whole_keys() {
        assert_eq!(field("oom 3\noom_kill 1\n", "oom_kill"), Some(1));
        assert_eq!(field("oom_kill_x 1\n", "oom_kill"), None);
    }
}
