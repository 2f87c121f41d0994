//! One service: its place in the table, its process, its sockets and its log.
//!
//! Must hold: the log pipe and the peers' socket outlive the process; the door and the notice pipe are new for each process, so
//! that nothing stale is inherited; a process is started only when nothing of the last one is left. Must never: wait for
//! anything.
//!
//! A pid is used without a pidfd: nulld is the parent, and the kernel gives no pid again before nulld has reaped it, which
//! takes the pid out of its unit.

mod adopt;
mod notices;

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
use abi::notice::Notice;
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
pub use adopt::is_listener;
use notices::Notices;

/// What a service that was silent for too long is given beyond it: one that lives says so within this time.
const DOUBT_MS: u64 = limits::SERVICE_ALIVE_MS + 500;
/// How soon a service that waits for the end of its last run is looked at again.
const LEFTOVER_RETRY_MS: u64 = 100;

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
    /// When its last sign of life came.
    alive_ms: u64,
    /// It was silent for too long: until then it may still give one, as it may have been frozen together with nulld.
    doubt_ms: Option<u64>,
    /// Since when something of its last run keeps it from being started again.
    leftover_since_ms: Option<u64>,
    group: Group,
    log_read: OwnedFd,
    log_write: OwnedFd,
    intake: crate::logs::Intake,
    notices: Notices,
    door: Option<OwnedFd>,
    peers: UnixListener,
}

/// What outlives each process of a service.
#[derive(Debug)]
pub struct Lasting {
    log_read: OwnedFd,
    log_write: OwnedFd,
    peers: UnixListener,
}

impl Lasting {
    /// A log pipe and the peers' socket in `socket_dir`.
    pub fn make(name: &str, socket_dir: &str) -> io::Result<Lasting> {
        let (log_read, log_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&log_read, true)?;
        let path = format!("{socket_dir}/{name}.sock");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let peers = UnixListener::bind(&path)?;
        // Anyone may connect: the service asks SO_PEERCRED who it is.
        std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        Ok(Lasting { log_read, log_write, peers })
    }
}

impl Unit {
    /// A unit that waits, with a cgroup of its own.
    pub fn new(
        index: u32,
        name: &str,
        config: &ServiceConfig,
        epoll: &OwnedFd,
        lasting: Lasting,
    ) -> io::Result<Unit> {
        let group = Group::make(name, config)?;
        let Lasting { log_read, log_write, peers } = lasting;
        poll::watch(epoll, &log_read, poll::Token::Log(index), epoll::EventFlags::IN)?;
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
            backoff_ms: shortest_pause_ms(config),
            alive_ms: 0,
            doubt_ms: None,
            leftover_since_ms: None,
            group,
            log_read,
            log_write,
            intake: crate::logs::Intake::default(),
            notices: Notices::default(),
            door: None,
            peers,
        })
    }

    /// Its needs are met: starts it, unless something of its last run is still there.
    pub fn start(&mut self, around: &mut Around<'_>) {
        let now = clock::now_ms();
        if self.deadline.is_some_and(|next_look| next_look > now) {
            return;
        }
        if !self.group.is_populated() {
            self.leftover_since_ms = None;
            self.detail.clear();
            return self.apply(Event::NeedsMet, around);
        }
        self.kill(around);
        self.deadline = Some(now + LEFTOVER_RETRY_MS);
        let since = *self.leftover_since_ms.get_or_insert(now);
        let is_told = self.detail.starts_with(LEFTOVER);
        if now.saturating_sub(since) >= limits::SERVICE_KILL_MS_MAX && !is_told {
            self.detail = format!("{LEFTOVER} {}", processes_of(&self.group));
            self.say(around, Level::Error, "service_abandoned");
        }
    }

    /// What it waits for, for `system.status`.
    pub fn note_waiting(&mut self, waits_for: Option<String>) {
        match waits_for {
            Some(what) if self.detail != what => self.detail = what,
            _ => {}
        }
    }

    /// Takes an event through the table and does what it says.
    pub fn apply(&mut self, event: Event, around: &mut Around<'_>) {
        let before = self.state;
        let (next, actions) = table::step(before, event, self.config.restart);
        self.state = next;
        if next != before {
            self.enter(before, around);
        } else if event == Event::Timeout {
            self.deadline = None;
        }
        for action in actions {
            self.act(*action, around);
        }
    }

    fn enter(&mut self, before: State, around: &mut Around<'_>) {
        let now = clock::now_ms();
        let seconds = |count: u32| now + u64::from(count) * 1000;
        self.deadline = match self.state {
            State::Waiting | State::Stopped | State::Failed | State::Abandoned => None,
            State::Starting => Some(seconds(self.config.ready_secs_max)),
            State::Ready => Some(now + limits::SERVICE_BACKOFF_RESET_MS),
            State::Stopping | State::Pausing => Some(seconds(self.config.stop_secs_max)),
            State::KillingFaulty | State::KillingStop | State::KillingPause => {
                Some(now + limits::SERVICE_KILL_MS_MAX)
            }
            State::Backoff => Some(now + self.backoff_ms),
        };
        match self.state {
            State::Ready => {
                self.ready_ms = Some(now);
                self.forgive_silence(now);
                self.detail.clear();
                let event =
                    ledger::Event::ServiceStarted { service: self.name.clone(), restarts: self.restarts };
                around.ledger.note(event);
                self.say(around, Level::Info, "service_ready");
            }
            State::KillingFaulty if before == State::Starting => {
                self.detail = format!("not ready within {} s", self.config.ready_secs_max);
                self.say(around, Level::Error, "service_late");
            }
            State::KillingFaulty => {
                self.detail = format!("no sign of life for {} s", self.config.watchdog_secs_max);
                self.say(around, Level::Error, "service_hung");
            }
            State::Pausing => self.say(around, Level::Warning, "service_paused"),
            State::KillingStop | State::KillingPause if before.has_process() => {
                self.say(around, Level::Warning, "service_ignored_sigterm");
            }
            State::Backoff => {
                self.say(around, Level::Warning, "service_ended");
                self.backoff_ms = table::next_backoff(self.backoff_ms, shortest_pause_ms(&self.config));
            }
            State::Stopped => self.say(around, Level::Info, "service_stopped"),
            State::Failed => self.say(around, Level::Error, "service_failed"),
            State::KillingStop | State::KillingPause => {}
            State::Waiting | State::Starting | State::Stopping | State::Abandoned => {}
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
                (self.door, self.notices, self.pid) = (None, Notices::default(), None);
            }
            Action::ResetBackoff => self.backoff_ms = shortest_pause_ms(&self.config),
            Action::Abandon => {
                let process = self.pid.map(describe_process).unwrap_or_default();
                self.detail = format!("the kernel does not end {process}; reboot the node to get rid of it");
                (self.door, self.notices) = (None, Notices::default());
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
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|error| failed("make a pipe for notices", &error))?;
        let notices =
            Notices::watch(notify, self.index, epoll).map_err(|error| failed("watch for notices", &error))?;
        let spec = Spec { name: self.name.clone(), config: self.config.clone(), cgroup: self.group.seat() };
        let ends = Ends { door: far_door, notify: far_notify, peers: &self.peers, log: &self.log_write };
        let pid = launch::spawn(&spec, ends).map_err(|error| error.to_string())?;
        self.restarts = self.spawned;
        self.spawned += 1;
        (self.pid, self.door, self.notices) = (Some(pid), Some(door), notices);
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
        if self.state != State::KillingFaulty {
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

    /// What is due: the time of its state, its sign of life, its notices after a flood of them.
    pub fn time_out(&mut self, now_ms: u64, around: &mut Around<'_>) {
        if let Err(error) = self.notices.resume(now_ms, self.index, around.epoll) {
            around.journal.own(Level::Error, "notices_lost", &[("service", &self.name), ("error", &error)]);
        }
        if self.silence_deadline().is_some_and(|deadline| deadline <= now_ms) {
            // It may be waiting in the pipe.
            self.read_notices(around);
            match self.silence_deadline().filter(|deadline| *deadline <= now_ms) {
                Some(_) if self.doubt_ms.is_some() => self.apply(Event::Silent, around),
                Some(_) => self.doubt_ms = Some(now_ms + DOUBT_MS),
                None => {}
            }
        }
        if self.deadline.is_some_and(|deadline| deadline <= now_ms) {
            self.apply(Event::Timeout, around);
        }
    }

    /// When [`Unit::time_out`] has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.deadline, self.silence_deadline(), self.notices.resumes_ms()].into_iter().flatten().min()
    }

    fn silence_deadline(&self) -> Option<u64> {
        let seconds = u64::from(self.config.watchdog_secs_max);
        let silent_ms = self.alive_ms + seconds * 1000;
        (self.state == State::Ready && seconds > 0).then_some(self.doubt_ms.unwrap_or(silent_ms))
    }

    /// A sign of life, or nulld itself stood still: its silence counts from now.
    pub fn forgive_silence(&mut self, now_ms: u64) {
        (self.alive_ms, self.doubt_ms) = (now_ms, None);
    }

    /// Something came on the notice pipe.
    pub fn read_notices(&mut self, around: &mut Around<'_>) {
        let now = clock::now_ms();
        let had_junk = self.notices.junk() > 0;
        for notice in self.notices.read(now, around.epoll) {
            match notice {
                Notice::Ready => {
                    self.forgive_silence(now);
                    self.apply(Event::Announced, around);
                }
                Notice::Alive => self.forgive_silence(now),
                Notice::Status(text) => self.notices.says = text,
            }
        }
        if self.notices.junk() > 0 && !had_junk {
            around.journal.own(Level::Warning, "notice_unknown", &[("service", &self.name)]);
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
            says: self.notices.says.clone(),
        }
    }
}

/// Begins the detail of a service that cannot be started again.
const LEFTOVER: &str = "the kernel does not end what is left of its last run:";

/// The first pause after an end.
fn shortest_pause_ms(config: &ServiceConfig) -> u64 {
    u64::from(config.restart_ms_min).max(1)
}

/// A process and its state, as proc(5) names it.
fn describe_process(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("unknown");
    format!("process {pid} (state {state})")
}

/// Some processes of a group; deeper groups are not looked at.
fn processes_of(group: &Group) -> String {
    let pids = std::fs::read_to_string(group.seat().join("cgroup.procs")).unwrap_or_default();
    let pids = pids.lines().filter_map(|pid| pid.parse().ok()).take(3);
    let named: Vec<String> = pids.map(describe_process).collect();
    if named.is_empty() { "a process in a group of its own".to_owned() } else { named.join(", ") }
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
