//! Calls of tools on their way between the tools process and the host, and what tools run.
//!
//! Must hold: a call's channel is above all before it; at most [`limits::TOOL_CALLS_AT_ONCE_MAX`] are open; an answer belongs to a call that has
//! none; nothing runs for a call before the host said `Go`. While a tree stands still nothing runs at all. Must never: decide anything, or
//! change what passes.

use rustix::process::Pid;

use abi::guest::{Exec, Frame, FrameError, Kind, Signal};
use abi::limits;
use abi::tools::{Answer, WORK_PATH};
use verifier::call;
use verifier::channel::{Ended, Window};

use super::{Channel, ServeError, Server, Stop, kill, spawn_on};
use crate::console;
use crate::control::Control;
use crate::few::Few;
use crate::sandbox::Sandbox;
use crate::spawn::{SpawnError, Stdio, Work};

/// PID 1's end of the tools process.
#[derive(Debug)]
pub struct Tools {
    pub control: Control,
    pub sandbox: Sandbox,
    pub leader: Pid,
    calls: Few<Open>,
    last: u32,
    still: Still,
    /// It ended with the guest's shutdown; what is said to it goes nowhere.
    pub gone: bool,
}

/// A call that has not ended.
#[derive(Debug, Default)]
struct Open {
    answer: Option<bool>,
    value_bytes: u64,
}

/// Whether tools stand still for a tree to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Still {
    No,
    /// The host asked, for this call.
    Asked(u32),
    /// The tools process does nothing any more; what it ran is being killed.
    Is(u32),
}

impl Tools {
    /// Of a tools process that is up.
    pub fn new(control: Control, sandbox: Sandbox, leader: Pid) -> Tools {
        let (calls, last, still) = (Few::default(), 0, Still::No);
        Tools { control, sandbox, leader, calls, last, still, gone: false }
    }

    /// Whether output of runs may be read.
    pub fn has_room(&self) -> bool {
        self.gone || self.control.has_room()
    }

    /// Says something to the tools process, while it is there.
    pub fn send(&mut self, frame: &Frame) -> Result<(), FrameError> {
        if self.gone { Ok(()) } else { self.control.pass(frame) }
    }
}

fn broken(what: &str) -> ServeError {
    ServeError::Tools(format!("broke the protocol: {what}"))
}

impl Server {
    /// Reads what the tools process says.
    pub(super) fn hear_tools(&mut self) -> Result<(), ServeError> {
        let Some(tools) = self.world.tools.as_mut().filter(|tools| !tools.gone) else { return Ok(()) };
        if !matches!(tools.control.receive(), Ok(true)) {
            // Its end is told by its exit, which says why.
            tools.gone = true;
            return Ok(());
        }
        while let Some(frame) = self.said_by_tools()? {
            self.relay_up(frame)?;
        }
        Ok(())
    }

    fn said_by_tools(&mut self) -> Result<Option<Frame>, ServeError> {
        let Some(tools) = self.world.tools.as_mut() else { return Ok(None) };
        tools.control.next_frame().map_err(|error| broken(&error.to_string()))
    }

    fn relay_up(&mut self, frame: Frame) -> Result<(), ServeError> {
        let Some(tools) = self.world.tools.as_mut() else { return Ok(()) };
        let channel = frame.channel;
        match frame.kind {
            Kind::Call => {
                if channel <= tools.last || tools.calls.len() >= limits::TOOL_CALLS_AT_ONCE_MAX {
                    return Err(broken("a call out of turn"));
                }
                tools.last = channel;
                tools.calls.add(channel, Open::default());
                Ok(self.control.pass(&frame)?)
            }
            Kind::Ended => {
                let ended = tools.calls.remove(channel).filter(|open| open.answer.is_some());
                ended.ok_or_else(|| broken("the end of no answered call"))?;
                Ok(self.control.pass(&frame)?)
            }
            Kind::Exec => {
                let may = tools.calls.of(channel).is_some_and(|open| open.answer == Some(true));
                let is_still = matches!(tools.still, Still::Is(_));
                // It may have been on its way when the tree was to stand still.
                let is_late = matches!(tools.still, Still::Asked(_));
                if !may || is_still || self.processes.contains_key(&Channel::Run(channel)) {
                    return Err(broken("a run that nobody allowed"));
                }
                let exec = call::exec(&frame).map_err(|error| broken(&error.to_string()))?;
                self.run_tool(channel, &exec, is_late)
            }
            Kind::Stdin | Kind::Signal => {
                let Some(process) = self.processes.get_mut(&Channel::Run(channel)) else { return Ok(()) };
                if frame.kind == Kind::Stdin {
                    let fits = process.input.push(&frame.payload);
                    return if fits { self.give_back(Channel::Run(channel)) } else { Err(broken("input")) };
                }
                let Signal { signal } = frame.parse().map_err(|error| broken(&error.to_string()))?;
                if let Err(error) = process.signal(signal) {
                    console::say_of_agent(format_args!("signal {signal} to a run: {error}"));
                }
                Ok(())
            }
            Kind::Still if tools.still == Still::Asked(channel) => {
                tools.still = Still::Is(channel);
                self.begin_claim()
            }
            Kind::Still => Ok(()), // the answer came first
            _ => Err(broken("a frame that is not its to send")),
        }
    }

    fn run_tool(&mut self, channel: u32, exec: &Exec, is_late: bool) -> Result<(), ServeError> {
        let started = match self.plan.run(&exec.command, &exec.workdir) {
            _ if self.stop != Stop::No => Err("the agent is being stopped".to_owned()),
            _ if is_late => Err("the tree stands still until the submit is answered".to_owned()),
            Err(error) => Err(error.to_string()),
            Ok(program) => {
                let place = Channel::Run(channel);
                match spawn_on(self, place, Work::Program(&program), Stdio::Merged, Window::OPEN) {
                    Ok(()) => Ok(()),
                    Err(SpawnError::Refused) => Err(format!(
                        "`{}` may not be executed: it is no program, or lies where none may",
                        program.path().to_string_lossy()
                    )),
                    Err(error) => Err(error.to_string()),
                }
            }
        };
        let Err(error) = started else { return Ok(()) };
        self.send(Channel::Run(channel), |channel| {
            let stage = "run".to_owned();
            Frame::json(Kind::Failed, channel, &abi::guest::Failed { stage, error })
        })
    }

    /// What the host says of a call.
    pub(super) fn relay_down(&mut self, frame: &Frame) -> Result<(), ServeError> {
        let unexpected = || Err(FrameError::Unexpected { got: frame.kind }.into());
        let Some(tools) = self.world.tools.as_mut() else { return unexpected() };
        let channel = frame.channel;
        let Some(open) = tools.calls.of_mut(channel).filter(|open| open.answer.is_none()) else {
            return unexpected();
        };
        match frame.kind {
            Kind::Value => {
                open.value_bytes = open.value_bytes.saturating_add(frame.payload.len() as u64);
                if open.value_bytes > limits::TOOL_RESULT_BYTES_MAX {
                    return unexpected();
                }
            }
            Kind::Still => {
                if tools.still != Still::No {
                    return unexpected();
                }
                tools.still = Still::Asked(channel);
                for (place, process) in &self.processes {
                    if matches!(place, Channel::Run(_)) {
                        kill(&process.group);
                    }
                }
            }
            _ => {
                open.answer = Some(matches!(call::answer(frame)?, Answer::Go(_)));
                if matches!(tools.still, Still::Asked(still) | Still::Is(still) if still == channel) {
                    tools.still = Still::No;
                    self.end_claim();
                }
            }
        }
        let Some(tools) = self.world.tools.as_mut() else { return Ok(()) };
        Ok(tools.send(frame)?)
    }

    /// The tools process has ended. Without one the agent can do nothing, and whatever is under way would never end.
    pub(super) fn tools_ended(&mut self, ended: Ended) -> Result<(), ServeError> {
        let Some(tools) = self.world.tools.as_mut() else { return Ok(()) };
        tools.gone = true;
        if self.stop != Stop::No {
            return Ok(());
        }
        Err(ServeError::Tools(format!("ended ({ended:?})")))
    }

    /// Takes the order to read the tree; it begins when nothing can write there.
    pub(super) fn claim(&mut self, channel: u32, window: Window) -> Result<(), String> {
        if !self.plan.has_tree {
            return Err("this guest has no task's tree".to_owned());
        }
        if self.claim.is_some() {
            return Err("the tree is already being read".to_owned());
        }
        let may = match &self.world.tools {
            Some(tools) => tools.still != Still::No,
            None => self.processes.is_empty(),
        };
        if !may {
            return Err(format!("{WORK_PATH} can still be written: no submit waits, or something runs"));
        }
        self.claim = Some((channel, window));
        Ok(())
    }

    /// Begins to read the tree, if that was asked for and nothing is left that could write there.
    pub(super) fn begin_claim(&mut self) -> Result<(), ServeError> {
        let Some((channel, window)) = self.claim else { return Ok(()) };
        let runs = self.processes.keys().any(|place| matches!(place, Channel::Run(_)));
        let still = self.world.tools.as_ref().is_none_or(|tools| matches!(tools.still, Still::Is(_)));
        let place = Channel::Host(channel);
        if self.processes.contains_key(&place) || runs || !still || !self.leaving.is_empty() {
            return Ok(());
        }
        let view = self.world.view.try_clone().map_err(SpawnError::from);
        let started = view.and_then(|view| spawn_on(self, place, Work::Claim(&view), Stdio::Outputs, window));
        if let Err(error) = started {
            self.claim = None;
            self.control.send_failed(channel, "files", error.to_string())?;
        }
        Ok(())
    }

    /// Tools go on: what was read of the tree until now is not all of it.
    fn end_claim(&mut self) {
        let Some((channel, _)) = self.claim else { return };
        match self.processes.get(&Channel::Host(channel)) {
            Some(process) => kill(&process.group),
            None => self.abandoned_claim = true,
        }
    }
}
