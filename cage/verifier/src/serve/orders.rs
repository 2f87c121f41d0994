//! What the host asks of a running guest, frame by frame.
//!
//! Must hold: a frame that only a host that lost count would send ends the guest; what crosses the end of a channel on its way is no
//! error.

use rustix::process::Pid;
use std::os::fd::AsFd;
use std::time::Duration;

use abi::guest::{
    Clock, Denied, Exec, Files, FilesJob, Frame, FrameError, Kind, Shutdown, Signal, TerminalSize,
    Window as Widened,
};
use abi::limits;
use verifier::call;
use verifier::channel::{Ended, Window};
use verifier::plan::{check_job, check_terminal};

use super::{Channel, ServeError, Server, Stop, spawn_on};
use crate::spawn::{SpawnError, Stdio, Work};
use crate::{clock, console, disks, sys};

/// A shutdown's grace is the host's to choose, within reason.
const GRACE_MAX: Duration = Duration::from_secs(600);

impl Server {
    /// Does what one frame says.
    pub(super) fn obey(&mut self, frame: Frame) -> Result<(), ServeError> {
        let unexpected = Err(FrameError::Unexpected { got: frame.kind }.into());
        let place = Channel::Host(frame.channel);
        let in_use = self.processes.contains_key(&place)
            || self.claim.is_some_and(|(claim, _)| claim == frame.channel);
        let known = self.processes.get_mut(&place);
        match frame.kind {
            // A channel in use, or the agent's own: the host has lost count, and nothing it says can be trusted to fit.
            Kind::Exec | Kind::Files if in_use || frame.channel == 0 => unexpected,
            Kind::Exec => self.exec(frame.channel, call::exec(&frame)?),
            Kind::Files => self.files(frame.channel, frame.parse()?),
            Kind::Stdin => match known.map(|process| process.input.push(&frame.payload)) {
                Some(false) => unexpected,
                _ => self.give_back(place),
            },
            Kind::Window if frame.channel == 0 => unexpected,
            Kind::Window => {
                let Widened { bytes } = frame.parse()?;
                if let Some(process) = known {
                    process.window.widen(bytes);
                }
                Ok(())
            }
            Kind::Resize => {
                let size: TerminalSize = frame.parse()?;
                if check_terminal(Some(size)).is_err() {
                    return unexpected;
                }
                if let Some(Err(error)) = known.map(|process| process.resize(size)) {
                    console::say_of_agent(format_args!("resize: {error}"));
                }
                Ok(())
            }
            Kind::Signal => {
                let Signal { signal } = frame.parse()?;
                if !(1..=31).contains(&signal) {
                    return unexpected;
                }
                if let Some(Err(error)) = known.map(|process| process.signal(signal)) {
                    console::say_of_agent(format_args!("signal {signal}: {error}"));
                }
                Ok(())
            }
            // What crosses the end of the agent on its way is no error.
            Kind::Answer | Kind::Value | Kind::Still if self.stop != Stop::No => Ok(()),
            Kind::Answer | Kind::Value | Kind::Still => self.relay_down(&frame),
            Kind::Sync => {
                self.write_out();
                Ok(())
            }
            Kind::Clock => {
                let Clock { unix_ns } = frame.parse()?;
                if let Err(error) = clock::correct(unix_ns) {
                    console::say(format_args!("clock: {error}"));
                }
                if let Some(probe) = &mut self.probe {
                    probe.restart();
                }
                Ok(())
            }
            Kind::Shutdown => {
                let Shutdown { grace_ms } = frame.parse()?;
                self.shut_down(Duration::from_millis(grace_ms).min(GRACE_MAX));
                Ok(())
            }
            _ => unexpected,
        }
    }

    fn exec(&mut self, channel: u32, exec: Exec) -> Result<(), ServeError> {
        if let Some(error) = self.no_more() {
            return Ok(self.control.send_failed(channel, "exec", error)?);
        }
        let stdio = exec.terminal.map_or(Stdio::Pipes, Stdio::Terminal);
        let window = Window::of(exec.window_bytes);
        let program = match self.plan.exec(exec) {
            Ok(program) => program,
            Err(error) => return Ok(self.control.send_failed(channel, "exec", error.to_string())?),
        };
        match spawn_on(self, Channel::Host(channel), Work::Program(&program), stdio, window) {
            Ok(()) => Ok(()),
            Err(SpawnError::Refused) => {
                let what = program.path().to_string_lossy().into_owned();
                let rule = self.plan.refusal(&what);
                self.control.send(Kind::Denied, channel, &Denied { what, rule: rule.clone() })?;
                Ok(self.control.send_failed(channel, "exec", rule)?)
            }
            Err(error) => Ok(self.control.send_failed(channel, "exec", error.to_string())?),
        }
    }

    fn files(&mut self, channel: u32, files: Files) -> Result<(), ServeError> {
        let refused = self.no_more().or_else(|| check_job(&files.job).err().map(|error| error.to_string()));
        if let Some(error) = refused {
            return Ok(self.control.send_failed(channel, "files", error)?);
        }
        let window = Window::of(files.window_bytes);
        let place = Channel::Host(channel);
        let started = match &files.job {
            FilesJob::Changes => {
                let view = self.world.view.try_clone();
                view.map_err(SpawnError::from).and_then(|view| {
                    let own = self.world.own.clone();
                    spawn_on(self, place, Work::Changes(&view, &own), Stdio::Outputs, window)
                })
            }
            FilesJob::Claim => self.claim(channel, window).map_err(SpawnError::Child),
            FilesJob::Read { .. } => spawn_on(self, place, Work::Files(&files.job), Stdio::Outputs, window),
            FilesJob::Write { .. } => spawn_on(self, place, Work::Files(&files.job), Stdio::Pipes, window),
        };
        match started {
            Ok(()) => Ok(()),
            Err(error) => Ok(self.control.send_failed(channel, "files", error.to_string())?),
        }
    }

    /// Why no further channel is opened now.
    fn no_more(&self) -> Option<String> {
        if self.stop != Stop::No {
            return Some(String::from("the agent is being stopped"));
        }
        if self.claim.is_some() && self.world.tools.is_none() {
            return Some(String::from("the task's tree is being read"));
        }
        let most = limits::EXECS_PER_AGENT_MAX;
        let hosts = Channel::Host(1)..=Channel::Host(u32::MAX);
        let full = self.processes.range(hosts).count() >= most;
        full.then(|| format!("{most} execs and copies are running: at most that many are allowed"))
    }

    /// Begins to write the disks out, in a child; or once more when that has ended.
    fn write_out(&mut self) {
        if self.sync.child.is_some() {
            self.sync.again = true;
            return;
        }
        match sys::fork() {
            Ok(Some(pid)) => {
                self.childless = false;
                self.sync.child = Pid::from_raw(pid);
            }
            Ok(None) => {
                // It may take long, and a copy of a pipe's end would keep a program's input from ending meanwhile.
                let keep: Vec<_> = self.world.disks.iter().map(AsFd::as_fd).collect();
                let synced = sys::close_from(3, &keep).and_then(|()| disks::sync(&self.world.disks));
                sys::exit_now(i32::from(synced.is_err()))
            }
            Err(error) => console::say(format_args!("sync: {error}")),
        }
    }

    /// That child has ended. A host that hears nothing goes on without.
    pub(super) fn synced(&mut self, ended: Ended) -> Result<(), ServeError> {
        self.sync.child = None;
        match ended {
            Ended::Code(0) => self.control.send_data(Kind::Synced, 0, &[])?,
            other => console::say(format_args!("sync: a disk could not be written out ({other:?})")),
        }
        if std::mem::take(&mut self.sync.again) {
            self.write_out();
        }
        Ok(())
    }

    fn shut_down(&mut self, grace: Duration) {
        if self.stop == Stop::No {
            sys::signal_all(libc::SIGTERM);
            self.stop = Stop::Asked(std::time::Instant::now() + grace);
        }
    }
}
