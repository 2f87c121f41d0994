//! One service: its place in the table, its process, its sockets and its log.
//!
//! Must hold: the log pipe and the peers' socket outlive the process; the door and the readiness pipe are new for each
//! process, so that nothing stale is inherited. Must never: wait for anything.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use abi::identity::Caller;
use abi::ledger;
use abi::limits;
use abi::log::Level;
use abi::node::ServiceConfig;
use nix::sys::wait::WaitStatus;
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

use crate::cgroup::Group;
use crate::journal::Journal;
use crate::launch::{self, Ends, Spec};
use crate::ledger::Queue;
use crate::table::{self, Action, Event, State};
use crate::{clock, poll};

/// What a service may use while it acts.
#[derive(Debug)]
pub struct Around<'a> {
    pub epoll: &'a OwnedFd,
    pub journal: &'a mut Journal,
    pub ledger: &'a mut Queue,
}

/// Why a hand-over failed.
#[derive(Debug, PartialEq, Eq)]
pub enum HandOver {
    Done,
    /// Its queue is full.
    Busy,
    /// It does not run.
    Down,
}

/// A supervised service.
#[derive(Debug)]
pub struct Unit {
    pub name: String,
    pub config: ServiceConfig,
    pub state: State,
    pub deadline: Option<u64>,
    pub pid: Option<u32>,
    pub restarts: u64,
    pub ready_ms: Option<u64>,
    pub detail: String,
    index: u32,
    spawned: u64,
    backoff_ms: u64,
    group: Group,
    log_read: OwnedFd,
    log_write: OwnedFd,
    intake: crate::logs::Intake,
    notify: Option<OwnedFd>,
    door: Option<OwnedFd>,
    peers: UnixListener,
}

impl Unit {
    /// Makes what outlives each process: cgroup, log pipe, peers' socket in `socket_dir`.
    pub fn new(
        index: u32,
        name: &str,
        config: &ServiceConfig,
        epoll: &OwnedFd,
        socket_dir: &str,
    ) -> io::Result<Unit> {
        let group = Group::make(name, config.delegate_cgroup, config.memory_mib_max)?;
        let (log_read, log_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&log_read, true)?;
        poll::watch(epoll, &log_read, poll::Token::Log(index), epoll::EventFlags::IN)?;
        let path = format!("{socket_dir}/{name}.sock");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let peers = UnixListener::bind(&path)?;
        // Anyone may connect: the service asks SO_PEERCRED who it is.
        std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        Ok(Unit {
            name: name.to_owned(),
            config: config.clone(),
            state: State::Waiting,
            deadline: None,
            pid: None,
            restarts: 0,
            ready_ms: None,
            detail: String::new(),
            index,
            spawned: 0,
            backoff_ms: limits::SERVICE_BACKOFF_MS_MIN,
            group,
            log_read,
            log_write,
            intake: crate::logs::Intake::default(),
            notify: None,
            door: None,
            peers,
        })
    }

    /// Takes an event through the table and does what it says.
    pub fn apply(&mut self, event: Event, around: &mut Around<'_>) {
        let (next, actions) = table::step(self.state, event, self.config.restart);
        let changed = next != self.state;
        self.state = next;
        if changed {
            self.enter(around);
        } else if event == Event::Timeout {
            self.deadline = None;
        }
        for action in actions {
            self.act(*action, around);
        }
    }

    fn enter(&mut self, around: &mut Around<'_>) {
        let now = clock::now_ms();
        let seconds = |count: u32| now + u64::from(count) * 1000;
        self.deadline = match self.state {
            State::Waiting | State::Stopped | State::Failed => None,
            State::Starting => Some(seconds(self.config.ready_secs_max)),
            State::Ready => Some(now + limits::SERVICE_BACKOFF_RESET_MS),
            State::Stopping => Some(seconds(self.config.stop_secs_max)),
            State::KillingLate | State::KillingStop => Some(now + limits::SERVICE_KILL_MS_MAX),
            State::Backoff => Some(now + self.backoff_ms),
        };
        match self.state {
            State::Ready => {
                self.ready_ms = Some(now);
                self.detail.clear();
                let event =
                    ledger::Event::ServiceStarted { service: self.name.clone(), restarts: self.restarts };
                around.ledger.note(event);
                self.say(around, Level::Info, "service_ready");
            }
            State::KillingLate => {
                self.detail = format!("not ready within {} s", self.config.ready_secs_max);
                self.say(around, Level::Error, "service_late");
            }
            State::KillingStop => self.say(around, Level::Warning, "service_ignored_sigterm"),
            State::Backoff => {
                self.say(around, Level::Warning, "service_ended");
                self.backoff_ms = table::next_backoff(self.backoff_ms);
            }
            State::Stopped => self.say(around, Level::Info, "service_stopped"),
            State::Failed => self.say(around, Level::Error, "service_failed"),
            State::Waiting | State::Starting | State::Stopping => {}
        }
        if self.state != State::Ready {
            self.ready_ms = None;
        }
    }

    fn say(&self, around: &mut Around<'_>, level: Level, event: &str) {
        let mut fields: Vec<(&str, &dyn std::fmt::Display)> = vec![("service", &self.name)];
        if !self.detail.is_empty() {
            fields.push(("detail", &self.detail));
        }
        let pause = self.backoff_ms;
        if self.state == State::Backoff {
            fields.push(("restart_in_ms", &pause));
        }
        around.journal.own(level, event, &fields);
    }

    fn act(&mut self, action: Action, around: &mut Around<'_>) {
        match action {
            Action::Spawn => {
                if let Err(error) = self.spawn(around.epoll) {
                    self.detail = error;
                    self.apply(Event::SpawnFailed, around);
                }
            }
            Action::Terminate => self.signal(Signal::TERM),
            Action::Kill => self.kill(around),
            Action::Clear => {
                self.read_log(around.epoll, around.journal);
                self.intake.flush(&self.name, around.journal);
                self.kill(around);
                (self.door, self.notify, self.pid) = (None, None, None);
            }
            Action::ResetBackoff => self.backoff_ms = limits::SERVICE_BACKOFF_MS_MIN,
            Action::Abandon => {
                self.detail =
                    "the kernel does not end its process; reboot the node to get rid of it".to_owned();
                (self.door, self.notify) = (None, None);
                self.say(around, Level::Error, "service_abandoned");
            }
        }
    }

    fn spawn(&mut self, epoll: &OwnedFd) -> Result<(), String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what}: {error}");
        let (door, far_door) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| failed("make a door", &error))?;
        // Only nulld's end: PID 1 must not wait for a service.
        rustix::io::ioctl_fionbio(&door, true).map_err(|error| failed("make a door", &error))?;
        let (notify, far_notify) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed("make a pipe", &error))?;
        rustix::io::ioctl_fionbio(&notify, true).map_err(|error| failed("make a pipe", &error))?;
        poll::watch(epoll, &notify, poll::Token::Notify(self.index), epoll::EventFlags::IN)
            .map_err(|error| failed("watch for readiness", &error))?;
        let spec = Spec {
            name: self.name.clone(),
            path: self.config.path.clone(),
            args: self.config.args.clone(),
            uid: self.config.uid,
            capabilities: self.config.capabilities.clone(),
            cgroup: self.group.seat(),
        };
        let ends = Ends { door: far_door, notify: far_notify, peers: &self.peers, log: &self.log_write };
        let pid = launch::spawn(&spec, ends).map_err(|error| error.to_string())?;
        self.restarts = self.spawned;
        self.spawned += 1;
        (self.pid, self.door, self.notify) = (Some(pid), Some(door), Some(notify));
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Nobody else reaps, so the pid is still this process; ESRCH means that its end is on its way to us.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn kill(&self, around: &mut Around<'_>) {
        if let Err(error) = self.group.kill() {
            self.signal(Signal::KILL);
            around.journal.own(
                Level::Error,
                "cgroup_kill_failed",
                &[("service", &self.name), ("error", &error)],
            );
        }
    }

    /// Its process ended.
    pub fn exited(&mut self, status: &WaitStatus, around: &mut Around<'_>) {
        let (clean, how) = describe(status);
        if self.state != State::KillingLate {
            self.detail = match self.state {
                State::Starting => format!("{how} before it was ready"),
                _ => how,
            };
        }
        around
            .ledger
            .note(ledger::Event::ServiceExited { service: self.name.clone(), reason: self.detail.clone() });
        self.apply(Event::Exited { clean }, around);
    }

    /// The time of its state is up. A group that still holds a process is given no second one.
    pub fn timed_out(&mut self, around: &mut Around<'_>) {
        if self.state == State::Backoff && self.group.is_populated() {
            self.kill(around);
            self.deadline = Some(clock::now_ms() + limits::SERVICE_BACKOFF_MS_MIN);
            return;
        }
        self.apply(Event::Timeout, around);
    }

    /// Something came on the readiness pipe.
    pub fn read_notify(&mut self, around: &mut Around<'_>) {
        let mut bytes = [0u8; 64];
        let Some(notify) = &self.notify else { return };
        match rustix::io::read(notify, &mut bytes) {
            Ok(count) if bytes.iter().take(count).any(|byte| *byte == b'\n') => {
                self.notify = None;
                self.apply(Event::Announced, around);
            }
            // Closed without a line: it will be late, or it is about to end.
            Ok(0) => self.notify = None,
            Ok(_) | Err(_) => {}
        }
    }

    /// Takes what it wrote; at most one pipe full, so that one service cannot keep nulld from the others.
    pub fn read_log(&mut self, epoll: &OwnedFd, journal: &mut Journal) {
        self.intake.read(&self.log_read, &self.name, journal);
        let paused = self.intake.pause(&self.log_read, poll::Token::Log(self.index), epoll);
        self.log_trouble(paused, journal);
    }

    /// What is due with its log: a pause that is over, a count of dropped lines.
    pub fn tick_log(&mut self, epoll: &OwnedFd, journal: &mut Journal) {
        let token = poll::Token::Log(self.index);
        let resumed = self.intake.tick(&self.log_read, token, epoll, &self.name, journal);
        self.log_trouble(resumed, journal);
    }

    fn log_trouble(&self, outcome: io::Result<()>, journal: &mut Journal) {
        if let Err(error) = outcome {
            journal.quiet(Level::Error, "log_not_watched", &[("service", &self.name), ("error", &error)]);
        }
    }

    /// When [`Unit::tick_log`] has something to do.
    pub fn log_deadline(&self) -> Option<u64> {
        self.intake.next_deadline()
    }

    /// Hands a connection over.
    pub fn hand_over(&self, caller: &Caller, connection: &impl AsFd) -> HandOver {
        let door = match (self.state, &self.door) {
            (State::Ready | State::Starting, Some(door)) => door,
            _ => return HandOver::Down,
        };
        let handoff = abi::door::Handoff { caller: caller.clone() };
        match abi::door::hand_over(door.as_fd(), &handoff, connection.as_fd()) {
            Ok(()) => HandOver::Done,
            // A full queue (unix(7)), or too many descriptors under way.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => HandOver::Busy,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error()) => {
                HandOver::Busy
            }
            Err(_) => HandOver::Down,
        }
    }

    /// Its line in `system.status`.
    pub fn status(&self) -> abi::control::ServiceStatus {
        abi::control::ServiceStatus {
            name: self.name.clone(),
            state: self.state.name().to_owned(),
            pid: self.pid,
            restarts: self.restarts,
            ready_ms: self.ready_ms,
            memory_kib: self.group.memory_kib(),
            detail: self.detail.clone(),
            says: String::new(),
        }
    }
}

/// How a process ended, and whether that is a clean end.
fn describe(status: &WaitStatus) -> (bool, String) {
    match status {
        WaitStatus::Exited(_, 0) => (true, "exited".to_owned()),
        WaitStatus::Exited(_, code) if *code == launch::LAUNCH_FAILED => {
            (false, "could not be started, see its log".to_owned())
        }
        WaitStatus::Exited(_, code) => (false, format!("exited with code {code}")),
        WaitStatus::Signaled(_, signal, _) => (false, format!("killed by {signal}")),
        _ => (false, "ended".to_owned()),
    }
}
