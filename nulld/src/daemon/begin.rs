//! How the daemon begins: by booting the node, or, after a crash of its own, by taking over what runs.
//!
//! Must hold: after a crash nothing is mounted, configured or announced a second time; what cannot be verified is killed with
//! its cgroup. Must never: go on from a state that cannot be read.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use abi::ledger::Event as LedgerEvent;
use abi::log::Level;
use abi::node::{CONTROL_SOCKET, NodeConfig};
use nix::sys::signal::{SigSet, Signal};

use super::Daemon;
use crate::boot::{self, Record};
use crate::buttons::Buttons;
use crate::callers::Callers;
use crate::clock::{self, AtBoot};
use crate::clock_watch::ClockWatch;
use crate::crash::{self, Crash, History};
use crate::health::DiskWatch;
use crate::kernel_log::KernelLog;
use crate::logs::Logs;
use crate::phases::{Outcome, Phases};
use crate::power::{GoingDown, Order};
use crate::saved::{self, Kept, Saved, SavedOrder, StateFile, Taken};
use crate::service::{Around, is_listener};
use crate::supervisor::Supervisor;
use crate::watchdog::Watchdog;
use crate::{cgroup, config, mounts, sys};

/// The signals that the loop reads.
pub(super) fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// A daemon ready for its loop.
pub(super) fn begin(crash: Option<Crash>) -> io::Result<Daemon> {
    // Exactly these: a mask outlives exec, and the fault handler's has all signals in it.
    signals().thread_set_mask()?;
    let Some(crash) = crash else {
        let state = StateFile::create().ok();
        crash::arm(&History::default())?;
        sys::pass_on(state.as_ref().map(StateFile::number));
        let mut daemon = Daemon::new(state)?;
        daemon.save();
        daemon.boot();
        return Ok(daemon);
    };
    sys::pass_on(crash.state);
    crash::arm(&crash.history)?;
    std::thread::sleep(Duration::from_millis(crash.history.pause_ms()));
    let (past, state) = remember(&crash);
    sys::pass_on(state.as_ref().map(StateFile::number));
    let mut daemon = Daemon::new(state)?;
    daemon.resume(&crash, past);
    Ok(daemon)
}

/// What the nulld before this one wrote down, its descriptors, and the file to write on in.
fn remember(crash: &Crash) -> (io::Result<(Saved, Taken)>, Option<StateFile>) {
    let file = match crash.state.and_then(sys::take_inherited) {
        Some(_) if crash.history.is_hopeless() => {
            Err(io::Error::other("nulld crashed again and again with it"))
        }
        Some(fd) => StateFile::read(fd),
        None => Err(io::Error::other("there is none")),
    };
    match file {
        Ok((file, saved)) => {
            let taken = saved::take_over(&saved.kept, &file);
            (Ok((saved, taken)), Some(file))
        }
        Err(error) => {
            sys::close_all_but(&[]);
            (Err(error), StateFile::create().ok())
        }
    }
}

impl Daemon {
    fn boot(&mut self) {
        // SIGINT instead of a reboot by the kernel; not to be had in a PID namespace, where there is no such key either.
        if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::CadOff) {
            self.journal.quiet(Level::Info, "ctrl_alt_del_unchanged", &[("error", &error)]);
        }
        self.check_clock();
        let mut record = Record { phases: &mut self.phases, journal: &mut self.journal };
        let booted = boot::run(&mut record, &mut self.facts);
        self.open_devices(&mut Taken::default());
        self.open_door(None);
        let booted = match booted {
            Ok(booted) => booted,
            Err(halted) => {
                let (phase, why) = (halted.phase, halted.why);
                self.journal.console.raw(&format!("nullbox: halted in phase {phase}: {why}"));
                self.tell_status(clock::now_ms());
                return;
            }
        };
        self.ledger.note(LedgerEvent::NodeBooted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            root_hash: self.facts.root_hash.clone(),
            boot_id: self.facts.boot_id.clone(),
        });
        self.is_booted = true;
        self.phases.begin("services");
        let mut config = booted.config;
        let builtin = boot::services(&mut config, &self.facts);
        if let Some(why) = &self.facts.rescue {
            let why = crate::screen::plain(why, 400);
            self.journal.console.raw(&format!("nullbox: rescue: {why}"));
        }
        match Supervisor::new(&config, &builtin, &self.epoll, mounts::RUN_DIR) {
            Ok(supervisor) => self.supervisor = supervisor,
            Err(error) => {
                let outcome = Outcome::Failed(error.to_string());
                self.phases.end("services", &outcome, &mut self.journal);
                let text = format!("nullbox: halted in phase services: {error}");
                self.journal.console.raw(&text);
            }
        }
    }

    /// The wall clock is never before the image was built.
    fn check_clock(&mut self) {
        let at_boot = clock::raise_to_floor();
        match at_boot {
            AtBoot::Kept => {}
            AtBoot::Raised { from_unix_ms } => {
                let to = clock::unix_ms();
                self.journal.own(Level::Warning, "clock_raised", &[("from", &from_unix_ms), ("to", &to)]);
            }
            AtBoot::Low { from_unix_ms } => {
                self.journal.own(Level::Error, "clock_low", &[("unix_ms", &from_unix_ms)]);
            }
        }
        self.facts.clock = at_boot.words().to_owned();
    }

    /// What is there once /dev and /proc are.
    fn open_devices(&mut self, taken: &mut Taken) {
        self.kernel_log = KernelLog::open(&self.epoll, &self.journal);
        self.clock_watch = ClockWatch::open(&self.epoll);
        self.buttons = Buttons::open(&self.epoll);
        self.watchdog = Watchdog::open(taken.take(WATCHDOG));
        self.facts.watchdog = self.watchdog.describe();
        self.disks = DiskWatch::start();
    }

    /// Takes up the listening socket that a nulld before this one had, so that callers wait in its backlog; else binds one.
    fn open_door(&mut self, listener: Option<OwnedFd>) {
        let kept = listener.map(UnixListener::from).filter(|socket| is_listener(socket, CONTROL_SOCKET));
        let kept = kept.and_then(|socket| Callers::resume(socket, &self.epoll).ok());
        match kept.map_or_else(|| Callers::bind(CONTROL_SOCKET, &self.epoll), Ok) {
            Ok(callers) => self.callers = Some(callers),
            Err(error) => self.journal.own(
                Level::Error,
                "door_closed",
                &[("socket", &CONTROL_SOCKET), ("error", &error)],
            ),
        }
    }

    /// Goes on where a nulld that crashed has left off.
    fn resume(&mut self, crash: &Crash, past: io::Result<(Saved, Taken)>) {
        let count = crash.history.count;
        let (saved, mut taken, trouble) = match past {
            Ok((saved, taken)) => (Some(saved), taken, None),
            Err(error) => (None, Taken::default(), Some(error)),
        };
        let (logs, broken) = Logs::restore(taken.take_all("log."));
        self.journal.logs = logs;
        self.journal.own(Level::Error, "nulld_crashed", &[("reason", &crash.reason), ("count", &count)]);
        for (name, error) in broken {
            self.journal.own(Level::Error, "log_lost", &[("log", &name), ("error", &error)]);
        }
        if let Some(error) = trouble {
            self.journal.own(Level::Error, "state_lost", &[("error", &error)]);
        }
        self.journal.console.raw(&format!("nullbox: nulld crashed and begins again: {}", crash.reason));
        // Where nothing can be read, a boot that came far enough has left its configuration.
        self.is_booted = saved.as_ref().map_or_else(|| config::published().is_ok(), |saved| saved.booted);
        let saved = saved.unwrap_or_default();
        if !saved.phases.is_empty() {
            (self.facts, self.phases) = (saved.facts, Phases::restore(saved.phases));
        }
        (self.facts.crashes, self.facts.held) = (count, crash.history.held());
        if !self.is_booted {
            self.halt_boot(&crash.reason);
        }
        self.open_devices(&mut taken);
        self.open_door(taken.take(DOOR));
        if self.is_booted {
            self.take_over(&saved.units, &mut taken);
        }
        self.going_down = saved.going_down.and_then(|saved| {
            let order = Order::named(&saved.action, saved.by)?;
            Some(GoingDown::new(order, saved.since_ms))
        });
        if let Some(held) = &self.facts.held {
            self.journal.console.raw(&format!("nullbox: held: {held}"));
        }
        self.ledger.note(LedgerEvent::NulldCrashed { reason: crash.reason.clone(), count });
        self.supervisor.forgive_silence(clock::now_ms());
        self.reap();
        self.tell_status(clock::now_ms());
    }

    /// A crash in the middle of the boot: what was done and what was not is not known, and nothing is built on it but the door.
    fn halt_boot(&mut self, reason: &str) {
        let why = format!("nulld crashed: {reason}");
        if let Err(error) = mounts::mount_kernel() {
            self.journal.own(Level::Error, "mounts_failed", &[("error", &error)]);
        }
        self.phases.begin(BOOT);
        self.phases.end(BOOT, &Outcome::Failed(why.clone()), &mut self.journal);
        self.journal.console.raw(&format!("nullbox: halted in phase {BOOT}: {why}"));
    }

    /// The services that run, by the configuration that was published at boot.
    fn take_over(&mut self, units: &[saved::SavedUnit], taken: &mut Taken) {
        if units.is_empty()
            && let Err(error) = cgroup::kill_services()
        {
            self.journal.own(Level::Error, "cgroup_kill_failed", &[("error", &error)]);
        }
        let facts = &self.facts;
        let supervisor = config::published().and_then(|mut config: NodeConfig| {
            let builtin = boot::services(&mut config, facts);
            let mut around =
                Around { epoll: &self.epoll, journal: &mut self.journal, ledger: &mut self.ledger };
            Supervisor::adopt(&config, &builtin, mounts::RUN_DIR, units, taken, &mut around)
        });
        match supervisor {
            Ok((supervisor, adopted)) => {
                self.supervisor = supervisor;
                let names = adopted.join(" ");
                self.journal.own(Level::Info, "services_kept", &[("services", &names)]);
            }
            Err(error) => {
                let text = format!("nullbox: no service could be taken over: {error}");
                self.journal.own(Level::Error, "services_lost", &[("error", &error)]);
                self.journal.console.raw(&text);
            }
        }
    }

    /// Writes down what a crash must not lose.
    pub(super) fn save(&mut self) {
        let Some(state) = &mut self.state else { return };
        let mut kept = Kept::default();
        for (name, ring) in self.journal.logs.kept() {
            kept.keep(&format!("log.{name}"), ring);
        }
        if let Some(callers) = &self.callers {
            kept.keep(DOOR, callers.listener());
        }
        if let Some(device) = self.watchdog.device() {
            kept.keep(WATCHDOG, device);
        }
        let units = self.supervisor.save(&mut kept);
        let going_down = self.going_down.as_ref().map(|going| SavedOrder {
            action: going.order.action.name().to_owned(),
            by: going.order.by.clone(),
            since_ms: going.since_ms,
        });
        let saved = Saved {
            booted: self.is_booted,
            facts: self.facts.clone(),
            phases: self.phases.to_keep(),
            units,
            going_down,
            kept,
        };
        if let Err(error) = state.write(&saved) {
            self.state = None;
            sys::pass_on(None);
            self.journal.own(Level::Error, "state_not_written", &[("error", &error)]);
        }
    }
}

/// Names of kept descriptors. Those of services begin with what they are and a point.
const DOOR: &str = "control";
const WATCHDOG: &str = "watchdog";
/// The phase that a crash in the middle of the boot fails in.
const BOOT: &str = "boot";
