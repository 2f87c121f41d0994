//! The loop of a running guest: one thread, one poll, everything non-blocking.
//!
//! Must hold: no channel waits for another; every wait has an end; each child is reaped here and nowhere else; a host that breaks the protocol, or is gone,
//! ends the guest. Must never: believe that an agent's process is what its pid once was (leaders are known until reaped).

mod calls;
mod orders;

pub use calls::Tools;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use abi::guest::{Frame, FrameError, Kind, Window as Widened};
use verifier::channel::{self, Act, Ended, Output, Window};
use verifier::plan::Plan;

use crate::cgroup::{Group, Tree};
use crate::changes::Own;
use crate::console;
use crate::control::Control;
use crate::disks::View;
use crate::probe::Probe;
use crate::process::{Process, Read};
use crate::relay::Relay;
use crate::sandbox::Sandbox;
use crate::spawn::{self, SpawnError, Stdio, Work};
use crate::sys;

/// How long killed processes may take to be gone before the guest ends without them.
const KILL_TIME: Duration = Duration::from_secs(2);
/// How often cgroups of ended channels are tried again.
const LEAVING_PAUSE: Duration = Duration::from_millis(100);

/// Why the loop ended: the guest halts in each case.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("control {0}")]
    Control(#[from] FrameError),
    #[error("the host closed the control connection")]
    Closed,
    #[error("the tools process {0}")]
    Tools(String),
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

/// Whose process it is, with the number of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// The command (0), an exec or a job on files.
    Host(u32),
    /// A run of a tool; the channel is its call's.
    Run(u32),
}

impl Channel {
    /// The agent's command.
    pub const COMMAND: Channel = Channel::Host(0);

    fn number(self) -> u32 {
        match self {
            Channel::Host(number) | Channel::Run(number) => number,
        }
    }

    /// Of its cgroup.
    fn name(self) -> String {
        match self {
            Channel::Host(number) => format!("channel-{number}"),
            Channel::Run(number) => format!("run-{number}"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    Control,
    Tools,
    Output(Channel, Output),
    Input(Channel),
    Listener,
    Link(usize),
    Health,
}

/// What was made for the agent before it starts.
#[derive(Debug)]
pub struct World {
    pub sandbox: Sandbox,
    pub tree: Tree,
    pub relay: Relay,
    /// The file systems of the workspace and the volumes.
    pub disks: Vec<OwnedFd>,
    pub view: View,
    pub own: Own,
    pub tools: Option<Tools>,
}

/// Everything that lives while the agent does.
#[derive(Debug)]
pub struct Server {
    pub control: Control,
    pub signals: OwnedFd,
    pub plan: Plan,
    pub world: World,
    processes: BTreeMap<Channel, Process>,
    /// The channel on which a task's tree is read, or will be.
    claim: Option<(u32, Window)>,
    /// The host went on before it was.
    abandoned_claim: bool,
    leaving: Vec<Group>,
    probe: Option<Probe>,
    sync: Sync,
    childless: bool,
    stop: Stop,
}

/// A child that writes the disks out, so that the loop does not wait for them.
#[derive(Debug, Default)]
struct Sync {
    child: Option<Pid>,
    /// The host asked again meanwhile.
    again: bool,
}

impl Server {
    /// A loop without processes.
    pub fn new(control: Control, signals: OwnedFd, plan: Plan, world: World) -> Server {
        Server {
            control,
            signals,
            plan,
            world,
            processes: BTreeMap::new(),
            claim: None,
            abandoned_claim: false,
            leaving: Vec::new(),
            probe: None,
            sync: Sync::default(),
            childless: false,
            stop: Stop::No,
        }
    }

    /// Starts the agent's command on channel 0.
    pub fn start_agent(&mut self) -> Result<(), SpawnError> {
        let program = self.plan.program.clone();
        let stdio = match (self.plan.terminal, self.plan.stdin) {
            (Some(size), _) => Stdio::Terminal(size),
            (None, true) => Stdio::Pipes,
            (None, false) => Stdio::Outputs,
        };
        spawn_on(self, Channel::COMMAND, Work::Program(&program), stdio, Window::OPEN)?;
        self.probe = self.plan.health.clone().map(Probe::new);
        Ok(())
    }

    /// Runs until a shutdown is complete or the host is lost.
    pub fn run(&mut self) -> Result<(), ServeError> {
        loop {
            self.control.flush()?;
            self.flush_tools();
            if self.advance_stop() {
                return Ok(());
            }
            self.expire()?;
            for token in self.poll()? {
                match token {
                    Token::Signals => self.reap()?,
                    Token::Control => self.hear()?,
                    Token::Tools => self.hear_tools()?,
                    Token::Output(channel, output) => self.pass_output(channel, output)?,
                    Token::Input(channel) => self.pass_input(channel)?,
                    Token::Listener => self.world.relay.accept(),
                    Token::Link(index) => self.world.relay.serve(index),
                    Token::Health => {} // looked after below, as when only its time has come
                }
            }
            self.check_health()?;
            self.world.relay.sweep();
            self.leaving.retain(|group| group.remove().is_err());
            self.look_after_claim()?;
        }
    }

    /// Waits for events, at most until the next deadline.
    fn poll(&self) -> Result<Vec<Token>, ServeError> {
        let mut tokens = vec![Token::Signals, Token::Control];
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.control.fd(), self.control.interest()),
        ];
        if let Some(tools) = self.world.tools.as_ref().filter(|tools| !tools.gone) {
            let mut flags = tools.control.interest();
            // What it says goes to the host: it waits for room there.
            flags.set(PollFlags::IN, self.control.has_room());
            tokens.push(Token::Tools);
            fds.push(PollFd::from_borrowed_fd(tools.control.fd(), flags));
        }
        for (channel, process) in &self.processes {
            if self.has_room(*channel) && process.has_window() {
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
        if let Some(fd) = self.world.relay.listening() {
            tokens.push(Token::Listener);
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        for (index, fd, flags) in self.world.relay.interests() {
            tokens.push(Token::Link(index));
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        // Not looked after without room for what it says, so not waited for either.
        if let Some((fd, flags)) =
            self.probe.as_ref().filter(|_| self.control.has_room()).and_then(Probe::interest)
        {
            tokens.push(Token::Health);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout = self.timeout();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ServeError::Poll(error.into())),
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
        let health = self.probe.as_ref().filter(|_| self.control.has_room()).map(Probe::deadline);
        let deadlines = self.processes.values().map(Process::drain_until);
        let next = deadlines.chain([stop, leaving, health]).flatten().min()?;
        Timespec::try_from(next.saturating_duration_since(Instant::now())).ok()
    }

    /// Deadlines of channels that passed.
    fn expire(&mut self) -> Result<(), ServeError> {
        let now = Instant::now();
        let (host, tools) = (self.has_room(Channel::COMMAND), self.has_room(Channel::Run(0)));
        let mut finished = Vec::new();
        for (channel, process) in &mut self.processes {
            let room = if matches!(channel, Channel::Host(_)) { host } else { tools };
            process.hold_up(!room || !process.has_window());
            if process.drain_until().is_some_and(|until| until <= now) {
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
        if self.sync.child == Some(pid) {
            return self.synced(ended);
        }
        if self.world.tools.as_ref().is_some_and(|tools| tools.leader == pid) {
            return self.tools_ended(ended);
        }
        let led = self.processes.iter_mut().find(|(_, process)| process.is_led_by(pid));
        let Some((channel, act)) = led.map(|(channel, process)| (*channel, process.leader_ended(ended)))
        else {
            return Ok(());
        };
        self.act(channel, act)
    }

    fn act(&mut self, channel: Channel, act: Act) -> Result<(), ServeError> {
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
                if self.claim.is_some_and(|(claim, _)| Channel::Host(claim) == channel) {
                    self.claim = None;
                }
                self.send(channel, |channel| Frame::json(Kind::Exit, channel, &exit))
            }
        }
    }

    fn pass_output(&mut self, channel: Channel, output: Output) -> Result<(), ServeError> {
        if !self.has_room(channel) {
            return Ok(());
        }
        let Some(process) = self.processes.get_mut(&channel) else { return Ok(()) };
        match process.read(output) {
            Read::Later => Ok(()),
            Read::Bytes(payload) => {
                let kind = Process::kind(output);
                self.send(channel, |channel| Ok(Frame { kind, channel, payload }))
            }
            Read::Closed(act) => self.act(channel, act),
        }
    }

    fn pass_input(&mut self, channel: Channel) -> Result<(), ServeError> {
        let Some(process) = self.processes.get_mut(&channel) else { return Ok(()) };
        process.input.write();
        self.give_back(channel)
    }

    /// Tells who feeds a channel how much more input it may send.
    fn give_back(&mut self, channel: Channel) -> Result<(), ServeError> {
        let taken = self.processes.get_mut(&channel).and_then(|process| process.input.give_back());
        match taken {
            Some(bytes) => {
                self.send(channel, |channel| Frame::json(Kind::Window, channel, &Widened { bytes }))
            }
            None => Ok(()),
        }
    }

    /// Whether output of a channel may be read: there is room where it goes.
    fn has_room(&self, channel: Channel) -> bool {
        match channel {
            Channel::Host(_) => self.control.has_room(),
            Channel::Run(_) => self.world.tools.as_ref().is_none_or(Tools::has_room),
        }
    }

    /// Says something about a channel to whom it belongs.
    fn send(
        &mut self,
        channel: Channel,
        frame: impl FnOnce(u32) -> Result<Frame, FrameError>,
    ) -> Result<(), ServeError> {
        let frame = frame(channel.number())?;
        match (channel, &mut self.world.tools) {
            (Channel::Host(_), _) => Ok(self.control.pass(&frame)?),
            (Channel::Run(_), Some(tools)) => Ok(tools.send(&frame)?),
            (Channel::Run(_), None) => Ok(()),
        }
    }

    fn flush_tools(&mut self) {
        if let Some(tools) = self.world.tools.as_mut().filter(|tools| !tools.gone) {
            // Its end is told by its exit, which says why.
            tools.gone = tools.control.flush().is_err();
        }
    }

    fn look_after_claim(&mut self) -> Result<(), ServeError> {
        if std::mem::take(&mut self.abandoned_claim)
            && let Some((channel, _)) = self.claim.take()
        {
            let error = "the tree was not read: the submit was answered before".to_owned();
            return Ok(self.control.send_failed(channel, "files", error)?);
        }
        self.begin_claim()
    }

    /// Takes the health check a step further, while the agent's command runs and the host listens.
    fn check_health(&mut self) -> Result<(), ServeError> {
        if self.stop != Stop::No || !self.processes.get(&Channel::COMMAND).is_some_and(Process::is_running) {
            self.probe = None;
        }
        if !self.control.has_room() {
            return Ok(());
        }
        match self.probe.as_mut().and_then(Probe::advance) {
            Some(health) => Ok(self.control.send(Kind::Health, 0, &health)?),
            None => Ok(()),
        }
    }

    /// Reads the host's frames.
    fn hear(&mut self) -> Result<(), ServeError> {
        if !self.control.receive()? {
            return Err(ServeError::Closed);
        }
        while let Some(frame) = self.control.next_frame()? {
            self.obey(frame)?;
        }
        Ok(())
    }

    /// Takes a shutdown one step further. `true`: the guest may end.
    fn advance_stop(&mut self) -> bool {
        let now = Instant::now();
        let quiet = self.childless && self.processes.is_empty() && self.control.is_flushed();
        match self.stop {
            Stop::No => false,
            Stop::Asked(_) | Stop::Killed(_) if quiet => true,
            Stop::Asked(until) if until <= now => {
                if let Err(error) = self.world.tree.kill() {
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

/// Starts a child on a new channel.
fn spawn_on(
    server: &mut Server,
    channel: Channel,
    work: Work<'_>,
    stdio: Stdio,
    window: Window,
) -> Result<(), SpawnError> {
    let group = server
        .world
        .tree
        .group(channel.name())
        .map_err(|error| SpawnError::Child(format!("cgroup {}: {error}", channel.name())))?;
    let tools = server.world.tools.as_ref().map(|tools| &tools.sandbox);
    let sandbox = match (channel, work, tools) {
        // The files are the tools': whoever copies them does it as their user.
        (Channel::Run(_), _, Some(tools)) | (_, Work::Files(_), Some(tools)) => tools,
        _ => &server.world.sandbox,
    };
    match spawn::spawn(work, sandbox, &group, stdio) {
        Ok(spawned) => {
            server.childless = false;
            server.processes.insert(channel, Process::new(spawned, group, window));
            Ok(())
        }
        Err(error) => {
            server.leaving.push(group);
            Err(error)
        }
    }
}

fn kill(group: &Group) {
    if let Err(error) = group.kill() {
        console::say(format_args!("cgroup.kill: {error}"));
    }
}
