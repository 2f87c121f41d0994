//! The loop of a running guest: one thread, one poll, everything non-blocking.
//!
//! Must hold: every wait has an end; each child is reaped here and nowhere else; a host that breaks the protocol, or is gone,
//! ends the guest. Must never: believe that an agent's process is what its pid once was (leaders are known until reaped).

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use abi::guest::{Denied, Exec, Frame, FrameError, Kind, Shutdown, Signal};
use abi::limits;
use verifier::channel::{self, Act, Ended, Output};
use verifier::plan::Plan;

use crate::cgroup::{Group, Tree};
use crate::console;
use crate::control::Control;
use crate::process::{Process, Read};
use crate::relay::Relay;
use crate::sandbox::Sandbox;
use crate::spawn::{self, SpawnError, Stdin};
use crate::sys;

/// How long killed processes may take to be gone before the guest ends without them.
const KILL_TIME: Duration = Duration::from_secs(2);
/// How often cgroups of ended channels are tried again.
const LEAVING_PAUSE: Duration = Duration::from_millis(100);
/// A shutdown's grace is the host's to choose, within reason.
const GRACE_MAX: Duration = Duration::from_secs(600);

/// Why the loop ended: the guest halts in each case.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("control {0}")]
    Control(#[from] FrameError),
    #[error("the host closed the control connection")]
    Closed,
    #[error("poll: {0}")]
    Poll(io::Error),
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        ServeError::Control(error.into())
    }
}

/// How far a shutdown is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// SIGTERM was sent; SIGKILL follows then.
    Asked(Instant),
    /// SIGKILL was sent; the guest ends then, whatever still lives.
    Killed(Instant),
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    Control,
    Output(u32, Output),
    Input(u32),
    Listener,
    Link(usize),
}

/// Everything that lives while the agent does.
#[derive(Debug)]
pub struct Server {
    pub control: Control,
    pub signals: OwnedFd,
    pub plan: Plan,
    pub sandbox: Sandbox,
    pub tree: Tree,
    pub relay: Relay,
    processes: BTreeMap<u32, Process>,
    leaving: Vec<Group>,
    childless: bool,
    stop: Stop,
}

impl Server {
    /// A loop without processes.
    pub fn new(
        control: Control,
        signals: OwnedFd,
        plan: Plan,
        sandbox: Sandbox,
        tree: Tree,
        relay: Relay,
    ) -> Server {
        Server {
            control,
            signals,
            plan,
            sandbox,
            tree,
            relay,
            processes: BTreeMap::new(),
            leaving: Vec::new(),
            childless: false,
            stop: Stop::No,
        }
    }

    /// Starts the agent's command on channel 0.
    pub fn start_agent(&mut self) -> Result<(), SpawnError> {
        let program = self.plan.program.clone();
        self.start(0, &program, Stdin::Null)
    }

    /// Runs until a shutdown is complete or the host is lost.
    pub fn run(&mut self) -> Result<(), ServeError> {
        loop {
            self.control.flush()?;
            if self.advance_stop() {
                return Ok(());
            }
            self.expire()?;
            for token in self.poll()? {
                match token {
                    Token::Signals => self.reap()?,
                    Token::Control => self.hear()?,
                    Token::Output(channel, output) => self.pass_output(channel, output)?,
                    Token::Input(channel) => {
                        if let Some(process) = self.processes.get_mut(&channel) {
                            process.input.write();
                        }
                    }
                    Token::Listener => self.relay.accept(),
                    Token::Link(index) => self.relay.serve(index),
                }
            }
            self.relay.sweep();
            self.leaving.retain(|group| group.remove().is_err());
        }
    }

    /// Waits for events, at most until the next deadline.
    fn poll(&self) -> Result<Vec<Token>, ServeError> {
        let read_host = !self.processes.values().any(|process| process.input.is_full());
        let mut tokens = vec![Token::Signals, Token::Control];
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.control.fd(), self.control.interest(read_host)),
        ];
        for (channel, process) in &self.processes {
            if self.control.has_room() {
                for output in [Output::Stdout, Output::Stderr] {
                    if let Some(fd) = process.output(output) {
                        tokens.push(Token::Output(*channel, output));
                        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                    }
                }
            }
            if let Some(fd) = process.input.wants() {
                tokens.push(Token::Input(*channel));
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            }
        }
        if let Some(fd) = self.relay.listening() {
            tokens.push(Token::Listener);
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        for (index, fd, flags) in self.relay.interests() {
            tokens.push(Token::Link(index));
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout = self.timeout();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ServeError::Poll(error.into())),
        }
        // Unread while an input is full, the connection still says when it is gone.
        let gone = PollFlags::HUP | PollFlags::ERR;
        if !read_host && fds.get(1).is_some_and(|control| control.revents().intersects(gone)) {
            return Err(ServeError::Closed);
        }
        let ready = fds.iter().zip(tokens).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map(|(_, token)| token).collect())
    }

    fn timeout(&self) -> Option<Timespec> {
        let stop = match self.stop {
            Stop::No => None,
            Stop::Asked(until) | Stop::Killed(until) => Some(until),
        };
        let leaving = (!self.leaving.is_empty()).then(|| Instant::now() + LEAVING_PAUSE);
        let processes = self.processes.values();
        let room = self.control.has_room();
        let deadlines = processes.flat_map(|p| [p.drain_until().filter(|_| room), p.input.stalled_at()]);
        let next = deadlines.chain([stop, leaving]).flatten().min()?;
        Timespec::try_from(next.saturating_duration_since(Instant::now())).ok()
    }

    /// Deadlines of channels that passed.
    fn expire(&mut self) -> Result<(), ServeError> {
        let now = Instant::now();
        let mut finished = Vec::new();
        for (channel, process) in &mut self.processes {
            if process.input.stalled_at().is_some_and(|at| at <= now) {
                console::say_of_agent(format_args!(
                    "channel {channel}: ended, it did not read its input while the host waited"
                ));
                process.input.close();
                kill(&process.group);
            }
            // While the host takes nothing, outputs are not read, so an open one says nothing about survivors.
            if self.control.has_room() && process.drain_until().is_some_and(|until| until <= now) {
                finished.push((*channel, process.drain_expired()));
            }
        }
        finished.into_iter().try_for_each(|(channel, act)| self.act(channel, act))
    }

    /// Reaps every child that ended: leaders of channels, and orphans that nobody else can reap.
    fn reap(&mut self) -> Result<(), ServeError> {
        let mut drained = [0; 1024];
        while rustix::io::read(&self.signals, &mut drained).is_ok_and(|count| count > 0) {}
        self.childless = loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.reaped(pid, status)?,
                Ok(None) => break false,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break true,
            }
        };
        Ok(())
    }

    fn reaped(&mut self, pid: rustix::process::Pid, status: WaitStatus) -> Result<(), ServeError> {
        let ended = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Code(code),
            (None, Some(signal)) => Ended::Signal(signal),
            (None, None) => return Ok(()), // stopped or continued; not asked for
        };
        let led = self.processes.iter_mut().find(|(_, process)| process.is_led_by(pid));
        let Some((channel, act)) = led.map(|(channel, process)| (*channel, process.leader_ended(ended)))
        else {
            return Ok(());
        };
        self.act(channel, act)
    }

    fn act(&mut self, channel: u32, act: Act) -> Result<(), ServeError> {
        let Some(process) = self.processes.get(&channel) else { return Ok(()) };
        match act {
            Act::Nothing => Ok(()),
            Act::KillTree => {
                kill(&process.group);
                Ok(())
            }
            Act::Finish(ended) => {
                kill(&process.group);
                let exit = channel::exit(ended, process.group.oom_killed());
                if let Some(process) = self.processes.remove(&channel) {
                    self.leaving.push(process.group);
                }
                Ok(self.control.send(Kind::Exit, channel, &exit)?)
            }
        }
    }

    fn pass_output(&mut self, channel: u32, output: Output) -> Result<(), ServeError> {
        if !self.control.has_room() {
            return Ok(());
        }
        let Some(process) = self.processes.get_mut(&channel) else { return Ok(()) };
        match process.read(output) {
            Read::Later => Ok(()),
            Read::Bytes(bytes) => Ok(self.control.send_data(Process::kind(output), channel, &bytes)?),
            Read::Closed(act) => self.act(channel, act),
        }
    }

    /// Reads the host's frames.
    fn hear(&mut self) -> Result<(), ServeError> {
        if self.processes.values().any(|process| process.input.is_full()) {
            return Ok(()); // it was polled for writing
        }
        if !self.control.receive()? {
            return Err(ServeError::Closed);
        }
        while let Some(frame) = self.control.next_frame()? {
            self.obey(frame)?;
        }
        Ok(())
    }

    fn obey(&mut self, frame: Frame) -> Result<(), ServeError> {
        let known = self.processes.get_mut(&frame.channel);
        match frame.kind {
            Kind::Exec => {
                // A channel in use, or the agent's own: the host has lost count, and nothing it says can be trusted to fit.
                if known.is_some() || frame.channel == 0 {
                    return Err(FrameError::Unexpected { got: Kind::Exec }.into());
                }
                let exec = frame.parse()?;
                self.exec(frame.channel, exec)
            }
            // For a channel that has just ended the two cross each other on the way: no error.
            Kind::Stdin => {
                if let Some(process) = known {
                    process.input.push(&frame.payload);
                }
                Ok(())
            }
            Kind::Signal => {
                let Signal { signal } = frame.parse()?;
                if !(1..=31).contains(&signal) {
                    return Err(FrameError::Unexpected { got: Kind::Signal }.into());
                }
                if let Some(Err(error)) = known.map(|process| process.signal(signal)) {
                    console::say_of_agent(format_args!("signal {signal}: {error}"));
                }
                Ok(())
            }
            Kind::Shutdown => {
                let Shutdown { grace_ms } = frame.parse()?;
                self.shut_down(Duration::from_millis(grace_ms).min(GRACE_MAX));
                Ok(())
            }
            got => Err(FrameError::Unexpected { got }.into()),
        }
    }

    fn exec(&mut self, channel: u32, exec: Exec) -> Result<(), ServeError> {
        let refused = if self.stop != Stop::No {
            Some(String::from("the agent is being stopped"))
        } else if self.processes.range(1..).count() >= limits::EXECS_PER_AGENT_MAX {
            Some(format!("{} execs are running: at most that many are allowed", limits::EXECS_PER_AGENT_MAX))
        } else {
            None
        };
        if let Some(error) = refused {
            return Ok(self.control.send_failed(channel, "exec", error)?);
        }
        let program = match self.plan.exec(exec) {
            Ok(program) => program,
            Err(error) => return Ok(self.control.send_failed(channel, "exec", error.to_string())?),
        };
        match self.start(channel, &program, Stdin::Pipe) {
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

    fn start(
        &mut self,
        channel: u32,
        program: &verifier::plan::Program,
        stdin: Stdin,
    ) -> Result<(), SpawnError> {
        let group = self
            .tree
            .group(channel)
            .map_err(|error| SpawnError::Child(format!("cgroup of channel {channel}: {error}")))?;
        match spawn::spawn(program, &self.sandbox, &group, stdin) {
            Ok(spawned) => {
                self.childless = false;
                self.processes.insert(channel, Process::new(spawned, group));
                Ok(())
            }
            Err(error) => {
                self.leaving.push(group);
                Err(error)
            }
        }
    }

    fn shut_down(&mut self, grace: Duration) {
        if self.stop == Stop::No {
            sys::signal_all(libc::SIGTERM);
            self.stop = Stop::Asked(Instant::now() + grace);
        }
    }

    /// Takes a shutdown one step further. `true`: the guest may end.
    fn advance_stop(&mut self) -> bool {
        let now = Instant::now();
        let quiet = self.childless && self.processes.is_empty() && self.control.is_flushed();
        match self.stop {
            Stop::No => false,
            Stop::Asked(_) | Stop::Killed(_) if quiet => true,
            Stop::Asked(until) if until <= now => {
                if let Err(error) = self.tree.kill() {
                    console::say(format_args!("cgroup.kill: {error}"));
                    sys::signal_all(libc::SIGKILL);
                }
                self.stop = Stop::Killed(now + KILL_TIME);
                false
            }
            Stop::Asked(_) => false,
            Stop::Killed(until) => until <= now,
        }
    }
}

fn kill(group: &Group) {
    if let Err(error) = group.kill() {
        console::say(format_args!("cgroup.kill: {error}"));
    }
}
