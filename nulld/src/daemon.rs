//! The first process: boot, then one loop over everything that can happen.
//!
//! Must hold: the loop never blocks but in epoll, whose timeout is the next deadline; every child that ends is reaped here
//! and nowhere else. Must never: end.

mod begin;
mod calls;
mod feed;
mod status;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use abi::ledger::{Client, Event as LedgerEvent};
use abi::limits;
use abi::log::Level;
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::epoll::{self, EventFlags};

use crate::builtin::UPLINK;
use crate::buttons::Buttons;
use crate::callers::Callers;
use crate::clock_watch::ClockWatch;
use crate::console::Console;
use crate::health::DiskWatch;
use crate::journal::Journal;
use crate::kernel_log::KernelLog;
use crate::ledger::Queue;
use crate::phases::{INITRAMFS_VARIABLE, Outcome, Phases};
use crate::poll::{self, Token};
use crate::power::{self, GoingDown, Order, Presses, Step};
use crate::saved::StateFile;
use crate::service::Around;
use crate::supervisor::Supervisor;
use crate::system::Facts;
use crate::table::State;
use crate::watchdog::Watchdog;
use crate::{cgroup, clock, crash, uplink};

/// The initramfs passes the root hash it checked the image against.
const ROOT_HASH_VARIABLE: &str = "NULLBOX_ROOT_HASH";
/// Longest sleep of the loop: a deadline that was missed would be seen then.
const SLEEP_MS_MAX: u64 = 60_000;
/// Woken so much later than asked for, nulld stood still itself (a frozen machine), and so may have the services.
const STALL_MS: u64 = 250;
/// Children reaped in one turn; the others have their turn in between.
const REAPED_PER_TURN_MAX: usize = 256;
/// Pause between reports of dropped ledger events.
const DROP_REPORT_MS: u64 = 10_000;

/// PID 1.
#[derive(Debug)]
struct Daemon {
    epoll: OwnedFd,
    signals: SignalFd,
    journal: Journal,
    ledger: Queue,
    phases: Phases,
    facts: Facts,
    supervisor: Supervisor,
    callers: Option<Callers>,
    going_down: Option<GoingDown>,
    presses: Presses,
    kernel_log: KernelLog,
    clock_watch: ClockWatch,
    buttons: Buttons,
    watchdog: Watchdog,
    disks: DiskWatch,
    /// Connections with more to do than one turn.
    again: Vec<u32>,
    seen_seq: u64,
    feed: feed::Feed,
    noted: (u64, u32),
    drops_reported_ms: u64,
    /// More may have ended than one turn reaps.
    has_children: bool,
    /// None: a crash would start every service anew.
    state: Option<StateFile>,
    /// The phases before `services` have ended well.
    is_booted: bool,
}

/// Entry. Returns only if not even the loop's own descriptors could be made; the kernel panics then, which reboots.
pub fn main() -> i32 {
    let arguments: Vec<String> = std::env::args().collect();
    match begin::begin(crash::parse(&arguments)) {
        Ok(mut daemon) => daemon.run(),
        Err(error) => {
            eprintln!("nullbox: nulld cannot begin: {error}");
            1
        }
    }
}

impl Daemon {
    fn new(state: Option<StateFile>) -> io::Result<Daemon> {
        let set = begin::signals();
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        poll::watch(&epoll, signals.as_fd(), Token::Signals, EventFlags::IN)?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let initramfs = std::env::var(INITRAMFS_VARIABLE).unwrap_or_default();
        let root_hash = std::env::var(ROOT_HASH_VARIABLE).unwrap_or_default();
        let is_hash = root_hash.len() == 64 && root_hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(Daemon {
            epoll,
            signals,
            journal: Journal { console: Console::open(), ..Journal::default() },
            ledger: Queue::default(),
            phases: Phases::new(&initramfs, clock::now_ms()),
            facts: Facts { root_hash: if is_hash { root_hash } else { String::new() }, ..Facts::default() },
            supervisor: Supervisor::default(),
            callers: None,
            going_down: None,
            presses: Presses::default(),
            kernel_log: KernelLog::default(),
            clock_watch: ClockWatch::default(),
            buttons: Buttons::default(),
            watchdog: Watchdog::default(),
            disks: DiskWatch::default(),
            again: Vec::new(),
            seen_seq: 0,
            feed: feed::Feed::default(),
            noted: (0, 0),
            drops_reported_ms: 0,
            has_children: false,
            state,
            is_booted: false,
        })
    }

    fn run(&mut self) -> ! {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        loop {
            self.tick();
            events.clear();
            self.save();
            let sleep_ms = self.sleep_ms();
            let wakes_ms = clock::now_ms() + sleep_ms;
            let sleep = Duration::from_millis(sleep_ms);
            let timeout = rustix::time::Timespec::try_from(sleep).ok();
            let waited =
                epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref());
            let now = clock::now_ms();
            if now.saturating_sub(wakes_ms) > STALL_MS {
                self.supervisor.forgive_silence(now);
            }
            if waited.is_err() {
                continue; // EINTR; anything else would come back and show as load, not as a hang
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data.u64());
                self.handle(Token::decode(data), flags);
                self.save();
            }
        }
    }

    fn sleep_ms(&self) -> u64 {
        let now = clock::now_ms();
        let mut next = now + SLEEP_MS_MAX;
        let deadlines = [
            // While nulld holds, no time of a service is acted on, so none may wake it.
            self.supervisor.next_deadline().filter(|_| self.facts.held.is_none()),
            self.next_log_deadline(now),
            self.callers.as_ref().and_then(Callers::next_deadline),
            self.journal.console.next_deadline(now),
            (!self.again.is_empty() || self.has_children).then_some(now),
            self.watchdog.next_deadline(),
            self.phases.is_running("network").then_some(now + 100),
            self.phases.is_running("services").then_some(now + 1000),
            self.going_down.as_ref().map(|going| now + going.pause_ms()),
        ];
        for deadline in deadlines.into_iter().flatten() {
            next = next.min(deadline);
        }
        // One millisecond more than the difference: deadlines are compared after rounding down.
        next.saturating_sub(now).saturating_add(u64::from(next > now))
    }

    fn handle(&mut self, token: Option<Token>, flags: EventFlags) {
        match token {
            Some(Token::Signals) => self.read_signals(),
            Some(Token::Door) => {
                let fresh = match &mut self.callers {
                    Some(callers) => callers.accept(&self.epoll),
                    None => Vec::new(),
                };
                for id in fresh {
                    self.turns(id);
                }
            }
            Some(Token::Log(index)) => {
                if let Some(unit) = self.supervisor.units.get_mut(index as usize) {
                    unit.read_log(&self.epoll, &mut self.journal);
                }
            }
            Some(Token::Notify(index)) => self.on_unit(index),
            Some(Token::Connection(id)) => {
                if let Some(callers) = &mut self.callers {
                    callers.note_events(id, flags);
                }
                self.turns(id);
            }
            Some(Token::Kernel) => {
                self.read_kernel_log();
                self.journal.console.disturbed();
            }
            Some(Token::Clock) => self.on_clock(),
            Some(Token::Button(index)) => {
                for _ in 0..self.buttons.read(index) {
                    self.press(Order::poweroff("power button".to_owned()));
                }
            }
            None => {}
        }
    }

    fn on_clock(&mut self) {
        if let Some((from_unix_ms, to_unix_ms)) = self.clock_watch.read() {
            self.facts.clock_jumps += 1;
            self.journal.own(Level::Warning, "clock_jumped", &[("from", &from_unix_ms), ("to", &to_unix_ms)]);
            self.ledger.note(LedgerEvent::ClockChanged { from_unix_ms, to_unix_ms });
        }
    }

    fn on_unit(&mut self, index: u32) {
        let mut around = Around { epoll: &self.epoll, journal: &mut self.journal, ledger: &mut self.ledger };
        if let Some(unit) = self.supervisor.units.get_mut(index as usize) {
            unit.read_notices(&mut around);
        }
    }

    /// What is due, whatever woke the loop.
    fn tick(&mut self) {
        let now = clock::now_ms();
        if self.has_children {
            self.reap();
        }
        if let Some(why) = self.watchdog.turn(now) {
            self.journal.own(Level::Error, "watchdog_failed", &[("watchdog", &why)]);
            self.facts.watchdog = why;
        }
        let mut around = Around { epoll: &self.epoll, journal: &mut self.journal, ledger: &mut self.ledger };
        if self.facts.held.is_none() {
            self.supervisor.time_out(now, &mut around);
        }
        match self.going_down {
            None if self.facts.held.is_some() => {}
            None => self.supervisor.run(&mut around),
            Some(_) => self.go_down(now),
        }
        self.conclude(now);
        for id in std::mem::take(&mut self.again) {
            self.turns(id);
        }
        self.tick_logs(now);
        self.serve_followers();
        if let Some(callers) = &mut self.callers {
            callers.expire(now);
        }
        self.report_drops(now);
        self.show_status(now);
    }

    fn serve_followers(&mut self) {
        let seq = self.journal.logs.next_seq();
        let is_hungry = self.callers.as_ref().is_some_and(Callers::is_hungry);
        if seq == self.seen_seq && !is_hungry {
            return;
        }
        self.seen_seq = seq;
        let followers = self.callers.as_ref().map(Callers::followers).unwrap_or_default();
        for id in followers {
            self.turns(id);
        }
    }

    fn report_drops(&mut self, now: u64) {
        if now.saturating_sub(self.drops_reported_ms) < DROP_REPORT_MS {
            return;
        }
        let ledger = self.ledger.take_dropped();
        self.facts.ledger_events_dropped += ledger;
        let door = self.callers.as_mut().map_or(0, |callers| std::mem::take(&mut callers.crowded_out));
        let unkept = self.journal.logs.take_unkept();
        if ledger + door + unkept > 0 {
            self.drops_reported_ms = now;
            self.journal.own(
                Level::Warning,
                "dropped",
                &[("ledger_events", &ledger), ("door_connections", &door), ("log_lines", &unkept)],
            );
        }
    }

    /// Ends the phases `network` and `services` when their time has come, and says `ready` once.
    fn conclude(&mut self, now: u64) {
        let over = |phases: &Phases, name: &str, limit: u64| {
            phases.started_ms(name).is_some_and(|since| now.saturating_sub(since) >= limit)
        };
        if self.phases.is_running("network") {
            let is_ready = self.supervisor.unit(UPLINK).is_some_and(|unit| unit.state == State::Ready);
            let late = over(&self.phases, "network", limits::UPLINK_WAIT_MS_MAX + 5_000);
            if is_ready || late {
                let outcome = match uplink::has_address() {
                    true => Outcome::Ok,
                    false => {
                        Outcome::Degraded("no address yet, the uplink goes on trying; see its log".to_owned())
                    }
                };
                self.phases.end("network", &outcome, &mut self.journal);
            }
        }
        let unready = self.supervisor.unready();
        let is_ready = unready.is_empty() && !self.supervisor.units.is_empty();
        if self.phases.is_running("services") {
            if is_ready {
                self.phases.end("services", &Outcome::Ok, &mut self.journal);
            } else if over(&self.phases, "services", limits::SERVICES_READY_MS_MAX) {
                let outcome = Outcome::Degraded(unready.join(", "));
                self.phases.end("services", &outcome, &mut self.journal);
            }
        }
        let is_ledger_ready = self.supervisor.unit("ctxgraph").is_some_and(|unit| unit.state == State::Ready);
        if is_ledger_ready && let Err(error) = self.ledger.open(Client::of_node()) {
            self.journal.own(Level::Error, "ledger_thread_failed", &[("error", &error)]);
        }
        if self.facts.ready_ms.is_none() && is_ready && !self.phases.is_running("network") {
            self.facts.ready_ms = Some(now);
            self.journal.console.raw(&format!("nullbox: ready {now} ms after kernel start"));
            self.tell_status(now);
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGTERM) => self.order(Order::poweroff("SIGTERM".to_owned())),
                Ok(Signal::SIGINT) => {
                    // The kernel's own signal is the keys (reboot(2), CAD_OFF); any other has a sender.
                    let by = match signal.ssi_code {
                        libc::SI_KERNEL => "ctrl-alt-del".to_owned(),
                        _ => format!("SIGINT of process {}", signal.ssi_pid),
                    };
                    self.press(Order::reboot(by));
                }
                _ => self.reap(),
            }
        }
    }

    /// Children that have ended: services, and orphans that PID 1 inherited.
    fn reap(&mut self) {
        self.has_children = true;
        for _ in 0..REAPED_PER_TURN_MAX {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(nix::errno::Errno::EINTR) => continue,
                Ok(WaitStatus::StillAlive) | Err(_) => {
                    self.has_children = false;
                    return;
                }
                Ok(status) => status,
            };
            let pid = status.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok());
            let mut around =
                Around { epoll: &self.epoll, journal: &mut self.journal, ledger: &mut self.ledger };
            if let Some(pid) = pid {
                self.supervisor.exited(pid, &status, &mut around);
            }
        }
    }

    fn order(&mut self, order: Order) {
        if self.going_down.is_some() {
            return;
        }
        let text = format!("nullbox: {} ordered by {}", order.action.name(), order.by);
        self.journal.console.raw(&text);
        self.ledger
            .note(LedgerEvent::NodeStopping { action: order.action.name().to_owned(), by: order.by.clone() });
        self.going_down = Some(GoingDown::new(order, clock::now_ms()));
    }

    /// A press of ctrl-alt-del or the power button: an order, and the seventh in a row an end at once, whatever hangs.
    fn press(&mut self, order: Order) {
        if !self.presses.count(clock::now_ms()) {
            return self.order(order);
        }
        let action = order.action;
        self.journal.console.raw(&format!("nullbox: {} forced by {}", action.name(), order.by));
        self.journal.console.flush();
        let refused = power::force(action);
        self.journal.console.raw(&format!("nullbox: the kernel refused to {}: {refused}", action.name()));
    }

    fn go_down(&mut self, now: u64) {
        // After repeated crashes nothing is asked of anyone any more: all are killed.
        let is_over = self.supervisor.is_over() || self.facts.held.is_some();
        let ledger_idle = self.ledger.is_empty();
        let Some(going) = &mut self.going_down else { return };
        self.watchdog.end_at(going.until_ms());
        match going.step(now, is_over, ledger_idle) {
            Step::Wait(_) => {}
            Step::Stop { keep_ledger } => {
                let mut around =
                    Around { epoll: &self.epoll, journal: &mut self.journal, ledger: &mut self.ledger };
                self.supervisor.stop_eligible(keep_ledger.then_some("ctxgraph"), &mut around);
            }
            Step::Finish { in_time } => {
                let took_ms = now.saturating_sub(going.since_ms);
                self.finish(in_time, took_ms);
            }
            Step::AwaitDisks => {
                if let Some(disks) = going.released(now) {
                    let action = going.order.action;
                    self.leave(action, &disks);
                }
            }
        }
    }

    /// Services have ended or are ended now; then disks are let go.
    fn finish(&mut self, in_time: bool, took_ms: u64) {
        if !in_time {
            let left = self.supervisor.unready().join(", ");
            self.journal.own(Level::Error, "stop_late", &[("services", &left)]);
        }
        if let Err(error) = cgroup::kill_services() {
            self.journal.own(Level::Error, "cgroup_kill_failed", &[("error", &error)]);
        }
        self.reap();
        self.journal.console.raw(&format!("nullbox: services stopped in {took_ms} ms"));
        if let Some(going) = &mut self.going_down {
            going.release_disks(clock::now_ms());
        }
    }

    fn leave(&mut self, action: power::Action, disks: &str) {
        self.journal.console.raw(&format!("nullbox: {disks}, {}", action.name()));
        self.journal.console.flush();
        let refused = power::go(action);
        self.journal.console.raw(&format!("nullbox: the kernel refused to {}: {refused}", action.name()));
        // Nothing is started again: /state may be gone. A watchdog ends what the kernel goes on refusing.
        if let Some(going) = &mut self.going_down {
            going.try_again(clock::now_ms());
        }
    }
}
