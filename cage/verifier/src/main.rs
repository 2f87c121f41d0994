//! PID 1 of every guest: makes the agent's world, runs it, reports to the host, ends the guest.
//!
//! Must hold: the control connection comes first and its end is the guest's end; whatever fails is told to the host by stage.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable
    )
)]

mod beneath;
mod cgroup;
mod changes;
mod clock;
mod console;
mod control;
mod copy;
mod disks;
mod few;
mod mounts;
mod network;
mod probe;
mod process;
mod relay;
mod sandbox;
mod serve;
mod spawn;
mod sys;
mod terminal;
mod tools;
#[cfg(test)]
mod world_tests;

use rustix::time::ClockId;
use std::fmt::Display;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use abi::guest::{FrameError, Hello, Kind, PROTOCOL, Ready, Start};
use abi::limits;
use verifier::plan::Plan;

use crate::control::Control;
use crate::disks::{Mounted, Places, View};
use crate::mounts::{Step, StepError};
use crate::serve::{Server, World};
use crate::spawn::SpawnError;

/// How long the host may take to say what to run.
const START_TIME: Duration = Duration::from_secs(60);
/// Descriptors of PID 1: four for each channel, two for each memory connection, one for each program with several names.
const OWN_NOFILE: u64 = 4096;
/// How long the host may take to read the last report.
const FINISH_TIME: Duration = Duration::from_secs(2);

/// What failed, and where.
#[derive(Debug)]
struct Failure {
    stage: &'static str,
    error: String,
}

const _: () =
    assert!(OWN_NOFILE as usize > limits::EXECS_PER_AGENT_MAX * 4 + limits::MANIFEST_LIST_MAX * 4 + 64);

/// Stages with the time each was reached, in microseconds since the kernel started.
#[derive(Debug, Default)]
struct Stages {
    reached: Vec<(String, u64)>,
}

impl Stages {
    /// Marks a stage as done, or says where it failed.
    fn done<T, E: Display>(&mut self, stage: &'static str, result: Result<T, E>) -> Result<T, Failure> {
        self.reached.push((stage.to_owned(), uptime_us()));
        result.map_err(|error| Failure { stage, error: error.to_string() })
    }
}

fn main() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        console::say("this is PID 1 of a NullBox guest; it has no other use");
        return ExitCode::from(2);
    }
    if let Err(error) = live() {
        console::say(error);
        // The serial port sends by interrupts, which the reset would not wait for. A console that cannot be drained is no terminal.
        let _ = rustix::termios::tcdrain(std::io::stderr());
    }
    // The way out of the VM: `reboot=t` on the kernel's command line makes this a triple fault, which the VMM takes as the end.
    let error = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    console::say(format_args!("reboot: {error:?}"));
    ExitCode::FAILURE // PID 1 ends, the kernel panics and, by panic=-1, restarts: the same end
}

/// The guest's whole life.
fn live() -> Result<(), String> {
    let nofile = rustix::process::Rlimit { current: Some(OWN_NOFILE), maximum: Some(sandbox::NOFILE_MAX) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, nofile)
        .map_err(|error| format!("limit on open files: {error}"))?;
    let signals = sys::signals().map_err(|error| format!("signals: {error}"))?;
    let mut control = Control::connect().map_err(|error| format!("control connection: {error}"))?;
    let start = greet(&mut control).map_err(|error| format!("control {error}"))?;
    let mut stages = Stages::default();
    stages.reached.push((String::from("start"), uptime_us()));
    let plan = match stages.done("plan", Plan::new(start)) {
        Ok(plan) => plan,
        Err(failure) => return Err(report(&mut control, failure)),
    };
    let places = Places::new("", plan.rootfs_disks);
    let mounted = stages
        .done("rootfs", disks::rootfs(&places))
        .and_then(|()| stages.done("scratch", disks::scratch(&places)))
        .and_then(|scratch| {
            Ok((scratch, stages.done("volumes", disks::volumes(&places, &plan.volumes, plan.files_uid()))?))
        });
    let (scratch, volumes) = match mounted {
        Ok(mounted) => mounted,
        Err(failure) => return Err(report(&mut control, failure)),
    };
    serve(control, signals, plan, stages, &places, scratch, volumes)
}

fn serve(
    mut control: Control,
    signals: OwnedFd,
    plan: Plan,
    mut stages: Stages,
    places: &Places,
    scratch: OwnedFd,
    volumes: Vec<Mounted>,
) -> Result<(), String> {
    let world = match make_world(&plan, &mut stages, places, scratch, volumes) {
        Ok(world) => world,
        Err(failure) => return Err(report(&mut control, failure)),
    };
    let mut server = Server::new(control, signals, plan, world);
    let served = run(&mut server, stages);
    // What the agent wrote reaches the disks before the VM ends. One that cannot be left clean was still written out.
    if let Err(error) = disks::close(&server.world.disks) {
        console::say(format_args!("disks: {error}"));
    }
    // Only now: when the host has heard the last report, it may end the VM.
    served?;
    server.control.finish(FINISH_TIME).map_err(|error| format!("last report: {error}"))
}

fn run(server: &mut Server, mut stages: Stages) -> Result<(), String> {
    let started = server.start_agent().map_err(|error| match error {
        SpawnError::Refused => {
            let path = server.plan.program.path();
            server.plan.refusal(&path.to_string_lossy())
        }
        other => other.to_string(),
    });
    if let Err(failure) = stages.done("agent", started) {
        return Err(report(&mut server.control, failure));
    }
    let ready = Ready { stages_us: stages.reached };
    server.control.send(Kind::Ready, 0, &ready).map_err(|error| error.to_string())?;
    server.run().map_err(|error| error.to_string())
}

fn greet(control: &mut Control) -> Result<Start, FrameError> {
    let hello = Hello { protocol: PROTOCOL, uptime_us: uptime_us() };
    control.send(Kind::Hello, 0, &hello)?;
    let frame = control.wait_for_frame(START_TIME)?;
    match frame.kind {
        Kind::Start => frame.parse(),
        got => Err(FrameError::Unexpected { got }),
    }
}

/// Tells the host, and gives the words for the console.
fn report(control: &mut Control, failure: Failure) -> String {
    let Failure { stage, error } = failure;
    let text = format!("{stage}: {error}");
    let told = control.send_failed(0, stage, error).and_then(|()| Ok(control.finish(FINISH_TIME)?));
    match told {
        Ok(()) => text,
        Err(error) => format!("{text} (the host was not told: {error})"),
    }
}

/// Root, names, network, sandbox: everything between the disks and the agent.
fn make_world(
    plan: &Plan,
    stages: &mut Stages,
    places: &Places,
    scratch: OwnedFd,
    volumes: Vec<Mounted>,
) -> Result<World, Failure> {
    let (root, volumes, view) = stages.done("root", enter_root(places, volumes))?;
    stages.done("clock", clock::set(plan.clock_unix_ns))?;
    stages.done("names", network::names(&root, plan))?;
    stages.done("network", network::interfaces(plan.network.as_ref()))?;
    stages.done("paths", grant_paths(&root, plan))?;
    let mut relay = stages.done("memory", relay::Relay::bind())?;
    stages.done("kernel", harden())?;
    let tree = stages.done("cgroup", cgroup::Tree::new(plan.pids_max, total_bytes()))?;
    let sandbox = stages.done("sandbox", sandbox::Sandbox::new(plan))?;
    sandbox::tell_missing(plan);
    let tools = match &plan.tools {
        Some(_) => Some(stages.done("tools", tools::start(&root, plan, &tree))?),
        None => None,
    };
    relay.tools = tools.as_ref().map(|tools| tools.leader);
    let own = changes::Own::new(plan, sandbox.sealed());
    let disks = std::iter::once(scratch).chain(volumes).collect();
    Ok(World { sandbox, tree, relay, disks, view, own, tools })
}

/// The agent's root with its volumes, and the view for diffs, which can only be made before.
fn enter_root(places: &Places, volumes: Vec<Mounted>) -> Result<(OwnedFd, Vec<OwnedFd>, View), StepError> {
    let view = View::new(places)?;
    let (root, volumes) = mounts::root(places, volumes)?;
    Ok((root, volumes, view))
}

fn grant_paths(root: &OwnedFd, plan: &Plan) -> Result<(), StepError> {
    for path in plan.written() {
        beneath::granted(root, path, plan.files_uid()).step(format_args!("filesystem.write `{path}`"))?;
    }
    Ok(())
}

/// Settings of the guest's kernel that an agent has no business without.
fn harden() -> Result<(), StepError> {
    for (name, value) in [
        // memfd_create makes files that are not executable, unless it is asked to (sysctl/vm.rst).
        ("vm/memfd_noexec", "1"),
        ("kernel/kptr_restrict", "2"),
        ("kernel/dmesg_restrict", "1"),
        ("fs/protected_symlinks", "1"),
        ("fs/protected_hardlinks", "1"),
        ("fs/protected_fifos", "2"),
        ("fs/protected_regular", "2"),
    ] {
        fs::write(format!("/proc/sys/{name}"), value).step(format_args!("sysctl {name}"))?;
    }
    Ok(())
}

fn total_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)))
}

fn uptime_us() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::Boottime);
    (time.tv_sec as u64).saturating_mul(1_000_000) + time.tv_nsec as u64 / 1000
}
