//! The freezer of a VM's cgroup (Documentation/admin-guide/cgroup-v2.rst, cgroup.freeze): its tasks stop where they are, and can
//! still be killed.
//!
//! Must hold: what is said to be frozen is, all of it, as the kernel says.

use abi::limits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::jail::cgroup;

/// Stops all tasks below a cgroup and waits until the kernel says so. On an error they go on.
pub fn freeze(cgroup: &Path) -> io::Result<()> {
    let stopped = set(cgroup, true);
    if stopped.is_err() {
        set(cgroup, false)?;
    }
    stopped
}

/// Lets them go on.
pub fn thaw(cgroup: &Path) -> io::Result<()> {
    set(cgroup, false)
}

fn set(dir: &Path, frozen: bool) -> io::Result<()> {
    cgroup::write(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let deadline = Instant::now() + Duration::from_millis(limits::FREEZE_MS_MAX);
    let path = dir.join("cgroup.events");
    loop {
        let file = File::open(&path)?;
        if is_frozen(&fs::read_to_string(&path)?) == Some(frozen) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = format!("{}: not {frozen} within {} ms", path.display(), limits::FREEZE_MS_MAX);
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        // The kernel marks a change as POLLPRI; one that came before the poll is seen in the next round.
        let patience = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What cgroup.events says.
fn is_frozen(events: &str) -> Option<bool> {
    match events.lines().find_map(|line| line.strip_prefix("frozen "))?.trim() {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A cgroup of its own with a process that counts in it; none where the machine lets nobody make one.
    struct Busy {
        dir: std::path::PathBuf,
        child: std::process::Child,
    }

    impl Busy {
        fn start(name: &str) -> Option<Busy> {
            let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
            let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists())?;
            let dir = root.join(format!("nullbox-test-{name}-{}", std::process::id()));
            fs::create_dir(&dir).ok()?;
            let child = Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
            cgroup::write(&dir.join("cgroup.procs"), &child.id().to_string()).unwrap();
            Some(Busy { dir, child })
        }

        fn cpu_ticks(&self) -> u64 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
            stat.rsplit(')').next().unwrap().split_whitespace().nth(11).unwrap().parse().unwrap()
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.child.kill(); // it may be gone already
            self.child.wait().unwrap();
            let deadline = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(&self.dir).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn a_frozen_process_does_no_work_and_a_thawed_one_goes_on() {
        let Some(busy) = Busy::start("freeze") else {
            eprintln!("skipped: no cgroup v2 to write to");
            return;
        };
        freeze(&busy.dir).unwrap();
        let before = busy.cpu_ticks();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(busy.cpu_ticks(), before);
        thaw(&busy.dir).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while busy.cpu_ticks() == before {
            assert!(Instant::now() < deadline, "it never went on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_frozen_process_can_be_killed() {
        let Some(mut busy) = Busy::start("kill") else {
            eprintln!("skipped: no cgroup v2 to write to");
            return;
        };
        freeze(&busy.dir).unwrap();
        cgroup::write(&busy.dir.join("cgroup.kill"), "1").unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(busy.child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_an_error() {
        assert!(freeze(Path::new("/nonexistent")).is_err());
        assert_eq!(is_frozen("populated 1\nfrozen 1\n"), Some(true));
        assert_eq!(is_frozen("populated 1\n"), None);
    }
}
