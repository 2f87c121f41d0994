//! A service over a crash of nulld: what is written down of it, and what is believed of that.
//!
//! Must hold: a running service is taken over only when the kernel confirms all of it: the process is a child of nulld and in
//! the service's cgroup, and each descriptor is what it was. Anything else is killed with its cgroup and started again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use abi::limits;
use abi::log::Level;
use rustix::fs::{FileType, OFlags};
use rustix::net::{SocketType, sockopt};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::{Around, Lasting, Unit};
use crate::clock;
use crate::saved::{Kept, SavedUnit, Taken};
use crate::service::notices::Notices;
use crate::table::{Event, State};

impl Lasting {
    /// What an earlier nulld had. Where one piece is not what it was, none is taken.
    pub fn adopt(name: &str, socket_dir: &str, taken: &mut Taken) -> Result<Lasting, String> {
        let mut take =
            |what: &str| taken.take(&format!("{what}.{name}")).ok_or(format!("its {what} is gone"));
        let (log_read, log_write, peers) = (take("output"), take("input"), take("peers"));
        let (log_read, log_write, peers) = (log_read?, log_write?, UnixListener::from(peers?));
        verify_pipe(&log_read, OFlags::RDONLY)?;
        verify_pipe(&log_write, OFlags::WRONLY)?;
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        if inode(&log_read) != inode(&log_write) {
            return Err("the ends of its log pipe do not belong together".to_owned());
        }
        match is_listener(&peers, &format!("{socket_dir}/{name}.sock")) {
            true => Ok(Lasting { log_read, log_write, peers }),
            false => Err("its socket is another".to_owned()),
        }
    }
}

impl Unit {
    /// What the next nulld has to know of it.
    pub fn save(&self, kept: &mut Kept) -> SavedUnit {
        let mut keep = |what: &str, fd: &dyn AsFd| kept.keep(&format!("{what}.{}", self.name), fd.as_fd());
        keep("output", &self.log_read);
        keep("input", &self.log_write);
        keep("peers", &self.peers);
        if let Some(door) = &self.door {
            keep("door", door);
        }
        if let Some(pipe) = self.notices.pipe() {
            keep("notices", &pipe);
        }
        SavedUnit {
            name: self.name.clone(),
            state: self.state,
            pid: self.pid,
            spawned: self.spawned,
            backoff_ms: self.backoff_ms,
            deadline: self.deadline,
            ready_ms: self.ready_ms,
            detail: self.detail.clone(),
            says: self.notices.says.clone(),
            notices: self.notices.pipe().is_some(),
        }
    }

    /// Takes itself over from what was written down. True: it runs on. False: there was nothing to take over, or it was
    /// killed and will be started again.
    pub fn adopt(
        &mut self,
        saved: Option<&SavedUnit>,
        outlived: Result<(), String>,
        taken: &mut Taken,
        around: &mut Around<'_>,
    ) -> bool {
        let Some(saved) = saved else {
            self.reset(around, "nothing is known of it", None);
            return false;
        };
        (self.spawned, self.restarts) = (saved.spawned, saved.spawned.saturating_sub(1));
        (self.backoff_ms, self.detail) = (saved.backoff_ms.max(1), saved.detail.clone());
        if !saved.state.has_process() && saved.state != State::Abandoned {
            (self.state, self.deadline) = (saved.state, saved.deadline);
            // A process that was made after the last state was written is nobody's.
            if self.group.is_populated() {
                self.kill(around);
            }
            return false;
        }
        let (index, epoll) = (self.index, around.epoll);
        let name = self.name.clone();
        let verified = outlived.and_then(|()| {
            let pid = saved.pid.ok_or("its process is not known")?;
            self.verify_process(pid)?;
            if saved.state == State::Abandoned {
                return Ok((None, Notices::default()));
            }
            let door = taken.take(&format!("door.{name}")).ok_or("its door is gone")?;
            verify_door(&door)?;
            let notices = match taken.take(&format!("notices.{name}")) {
                Some(pipe) if saved.notices => adopt_notices(pipe, index, epoll)?,
                None if !saved.notices => Notices::default(), // the service had closed it
                _ => return Err("its notice pipe is another".to_owned()),
            };
            Ok((Some(door), notices))
        });
        match verified {
            Ok((door, notices)) => {
                (self.door, self.notices) = (door, notices);
                self.notices.says.clone_from(&saved.says);
                (self.state, self.deadline) = (saved.state, saved.deadline);
                (self.pid, self.ready_ms) = (saved.pid, saved.ready_ms);
                true
            }
            Err(why) => {
                self.reset(around, &why, saved.pid);
                false
            }
        }
    }

    /// Kills what there may be of it. Where a process of nulld's was named, its end is awaited.
    fn reset(&mut self, around: &mut Around<'_>, why: &str, pid: Option<u32>) {
        self.say_not_kept(around, why);
        self.detail = format!("could not be taken over after a crash of nulld: {why}");
        match pid.filter(|pid| is_child(*pid)) {
            Some(pid) => {
                (self.pid, self.state) = (Some(pid), State::KillingFaulty);
                self.deadline = Some(clock::now_ms() + limits::SERVICE_KILL_MS_MAX);
                self.kill(around);
                // It may not have reached its cgroup yet.
                self.signal(Signal::KILL);
            }
            None => {
                self.state = State::Starting;
                self.apply(Event::SpawnFailed, around);
            }
        }
    }

    fn say_not_kept(&self, around: &mut Around<'_>, why: &str) {
        around.journal.own(Level::Error, "service_not_kept", &[("service", &self.name), ("why", &why)]);
    }

    /// The process is a child of nulld and in the service's cgroup. One that has ended is taken over too: it is reaped like any other.
    fn verify_process(&self, pid: u32) -> Result<(), String> {
        if !is_child(pid) {
            return Err(format!("process {pid} is no child of nulld"));
        }
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .map_err(|error| format!("the cgroup of process {pid} cannot be read: {error}"))?;
        let own = format!("0::/services/{}", self.name);
        let is_own = |line: &str| line == own || line.strip_prefix(&own).is_some_and(|rest| rest == "/self");
        match groups.lines().any(is_own) || has_ended(pid) {
            true => Ok(()),
            false => Err(format!("process {pid} is not in its cgroup")),
        }
    }
}

/// Whether a socket listens, and at this path.
pub fn is_listener(socket: &UnixListener, path: &str) -> bool {
    let address = socket.local_addr().ok();
    let is_there = address.as_ref().and_then(|address| address.as_pathname()) == Some(Path::new(path));
    is_there && sockopt::socket_acceptconn(socket).unwrap_or(false)
}

fn wait_for(pid: u32, options: WaitIdOptions) -> rustix::io::Result<Option<rustix::process::WaitIdStatus>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::CHILD)?;
    rustix::process::waitid(WaitId::Pid(pid), options | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG)
}

/// Whether a process is a child of nulld, running or waiting to be reaped (waitid(2), which leaves it as it is).
fn is_child(pid: u32) -> bool {
    wait_for(pid, WaitIdOptions::EXITED).is_ok()
}

fn has_ended(pid: u32) -> bool {
    wait_for(pid, WaitIdOptions::EXITED).is_ok_and(|status| status.is_some())
}

fn verify_pipe(fd: &OwnedFd, access: OFlags) -> Result<(), String> {
    let wrong = |error: rustix::io::Errno| format!("a pipe cannot be looked at: {error}");
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).map_err(wrong)?.st_mode);
    let flags = rustix::fs::fcntl_getfl(fd).map_err(wrong)?;
    match kind == FileType::Fifo && flags & OFlags::RWMODE == access {
        true => Ok(()),
        false => Err("a pipe is something else".to_owned()),
    }
}

fn verify_door(fd: &OwnedFd) -> Result<(), String> {
    match sockopt::socket_type(fd) {
        Ok(SocketType::SEQPACKET) => Ok(()),
        _ => Err("its door is something else".to_owned()),
    }
}

fn adopt_notices(pipe: OwnedFd, index: u32, epoll: &OwnedFd) -> Result<Notices, String> {
    if sockopt::socket_type(&pipe) != Ok(SocketType::STREAM) {
        return Err("its notice pipe is something else".to_owned());
    }
    Notices::watch(pipe, index, epoll).map_err(|error: io::Error| format!("no notices: {error}"))
}
