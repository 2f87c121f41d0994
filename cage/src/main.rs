//! The cage daemon: opens its state, cleans up after its last life, serves the door.

use abi::door::{self, Inherited};
use abi::identity::Service;
use abi::log;
use cage::agents::Cage;
use cage::door::Door;
use cage::jail::cgroup::Delegated;
use cage::places::Places;
use cage::{clock, imports, recovery, tasks, watch};
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How long agents have when the node goes down; nulld waits a little longer for cage.
const LEAVE_MS_MAX: u64 = 8_000;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error("cage_failed", &[("error", &error)]);
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let inherited = Inherited::take()?;
    // Before any thread, so that each inherits it; std gives children an empty mask.
    let mut termination = SigSet::empty();
    termination.add(Signal::SIGTERM);
    termination.thread_block()?;
    let cgroups = Delegated::find()?;
    let places = Places::of_node();
    recovery::sweep(&places, &cgroups)?;
    let first = recovery::first_since_boot(&places)?;
    let (cage, before) = Cage::open(places, cgroups)?;
    let cage = Arc::new(cage);
    let leaving = cage.clone();
    thread("signals", move || leave_on(&termination, &leaving))?;
    let archives = imports::archives(&cage.places.config);
    cage.imports.announce(&archives);
    let importing = cage.clone();
    thread("imports", move || importing.imports.run(archives, &importing.store, &importing.ledger))?;
    let watching = cage.clone();
    thread("clock", move || {
        if let Err(error) = clock::watch(&watching) {
            log::error("clock_not_watched", &[("error", &error)]);
        }
    })?;
    let recovering = cage.clone();
    thread("recovery", move || recovery::resume(&recovering, before, first))?;
    let watching = cage.clone();
    thread("tasks", move || {
        watching.tasks.recover(&watching);
        tasks::watch(&watching);
    })?;
    let watching = cage.clone();
    thread("denials", move || watch::follow_denials(&watching))?;
    door::serve(Service::Cage, inherited, Arc::new(Door { cage }))
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(|_| ())
}

fn leave_on(termination: &SigSet, cage: &Cage) {
    match termination.wait() {
        Ok(_) => log::info("leaving", &[]),
        Err(error) => log::error("signals_failed", &[("error", &error)]),
    }
    cage.leave(Duration::from_millis(LEAVE_MS_MAX));
    std::process::exit(0);
}
