//! The loop of the tools process: one thread, one poll, everything non-blocking but work on single, bounded files.
//!
//! Must hold: at most [`limits::TOOL_CALLS_AT_ONCE_MAX`] calls are under way, those counted whose answer nobody took; each call that was put
//! to the host ends with one `Ended` and one answer; every wait but that for the host has an end.

mod runs;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use abi::guest::{FrameError, GUEST_MEMORY_SOCKET, GUEST_UID, Kind, Signal};
use abi::limits;
use abi::rpc::Code;
use abi::tools::{Answer, Done, Ended, Go};
use verifier::call::{self, Fault, Request, Work};
use verifier::plan::Plan;
use verifier::values::Values;

use super::calls::{Call, Inputs, Job, Outcome, Running, Stage, by_host};
use super::connection::{self, Connection};
use super::files;
use super::memory::Exchange;
use super::search::{Order, Search};
use crate::console;
use crate::control::Control;
use crate::few::Few;

/// Connections of the agent at a time. A further one waits in the backlog.
const CONNECTIONS_MAX: usize = 16;

/// Why the loop ended. PID 1 ends the guest in each case.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    #[error("PID 1: {0}")]
    Control(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Control,
    Listener,
    Connection(u32, PollFlags),
    Job(u32),
}

/// The tools of one agent.
#[derive(Debug)]
pub struct Server<'a> {
    plan: &'a Plan,
    control: Control,
    listener: UnixListener,
    root: OwnedFd,
    connections: Few<Connection>,
    calls: Few<Call>,
    values: Values,
    /// Numbers of the last connection and the last call.
    last_connection: u32,
    last_call: u32,
    /// The call for which the tree stands still.
    still: Option<u32>,
}

impl<'a> Server<'a> {
    /// Nothing was asked for yet.
    pub fn new(plan: &'a Plan, listener: UnixListener, control: OwnedFd) -> Result<Server<'a>, ToolsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).map_err(io::Error::from)?;
        Ok(Server {
            plan,
            control: Control::over(control)?,
            listener,
            root,
            connections: Few::default(),
            calls: Few::default(),
            values: Values::default(),
            last_connection: 0,
            last_call: 0,
            still: None,
        })
    }

    /// Runs until PID 1 is gone.
    pub fn run(&mut self) -> Result<(), ToolsError> {
        loop {
            self.control.flush()?;
            for token in self.poll()? {
                match token {
                    Token::Control if !self.hear()? => return Ok(()),
                    Token::Control => {}
                    Token::Listener => self.accept(),
                    Token::Connection(number, events) => {
                        let room = self.has_room();
                        if let Some(connection) = self.connections.of_mut(number) {
                            connection.serve(events, room);
                        }
                    }
                    Token::Job(channel) => self.advance(channel)?,
                }
            }
            self.expire()?;
            self.forget_gone()?;
            self.take_lines()?;
        }
    }

    /// Whether one more call may begin.
    fn has_room(&self) -> bool {
        let unsent: usize = self.connections.iter().map(|(_, connection)| connection.unsent()).sum();
        self.calls.len() + unsent < limits::TOOL_CALLS_AT_ONCE_MAX
    }

    fn poll(&self) -> Result<Vec<Token>, ToolsError> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.control.fd(), self.control.interest())];
        let mut tokens = vec![Token::Control];
        if self.connections.len() < CONNECTIONS_MAX {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
            tokens.push(Token::Listener);
        }
        let room = self.has_room();
        for (number, connection) in self.connections.iter() {
            fds.push(PollFd::from_borrowed_fd(connection.fd(), connection.interest(room)));
            tokens.push(Token::Connection(number, PollFlags::empty()));
        }
        for (channel, call) in self.calls.iter() {
            let Stage::Running(running) = &call.stage else { continue };
            let (fd, flags) = match &running.job {
                Job::Search(search) => (search.fd(), PollFlags::IN),
                Job::Memory(exchange) => (exchange.fd(), exchange.interest()),
                Job::Run(_) => continue,
            };
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            tokens.push(Token::Job(channel));
        }
        let timeout = self
            .deadline()
            .and_then(|until| Timespec::try_from(until.saturating_duration_since(Instant::now())).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ready = fds.iter().zip(tokens).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(ready
            .map(|(fd, token)| match token {
                Token::Connection(number, _) => Token::Connection(number, fd.revents()),
                other => other,
            })
            .collect())
    }

    fn deadline(&self) -> Option<Instant> {
        self.calls.iter().filter_map(|(_, call)| running(call)).map(|running| running.until).min()
    }

    fn accept(&mut self) {
        let accepted = self.listener.accept().and_then(|(socket, _)| {
            socket.set_nonblocking(true)?;
            match connection::is_of(&socket, GUEST_UID)? {
                true => Ok(Connection::new(socket)),
                false => Err(io::Error::other("it is not the agent's: only the agent is served")),
            }
        });
        match accepted {
            Ok(connection) => {
                // After four thousand million of them the first numbers are free again.
                self.last_connection = self.last_connection.wrapping_add(1);
                self.connections.add(self.last_connection, connection);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => console::say_of_agent(format_args!("tools connection: {error}")),
        }
    }

    /// Takes lines while there is room, one of each connection in turn.
    fn take_lines(&mut self) -> Result<(), ToolsError> {
        while self.has_room() {
            let numbers: Vec<u32> = self.connections.iter().map(|(number, _)| number).collect();
            let mut taken = false;
            for number in numbers {
                if !self.has_room() {
                    break;
                }
                let line = self.connections.of_mut(number).and_then(Connection::next_line);
                taken |= line.is_some();
                match line {
                    Some(Ok(line)) if line.is_empty() => {}
                    Some(Ok(line)) => self.ask(number, &line)?,
                    Some(Err(connection::TooLong)) => {
                        let most = limits::TOOL_LINE_BYTES_MAX;
                        let message = format!("a line has at most {most} bytes; nothing behind it is read");
                        self.answer(number, None, Err(Fault::new(Code::LIMIT, message)));
                    }
                    None => {}
                }
            }
            if !taken {
                break;
            }
        }
        Ok(())
    }

    /// Puts a call to the host, or says what is wrong with it.
    fn ask(&mut self, connection: u32, line: &[u8]) -> Result<(), ToolsError> {
        let programs = self.plan.tools.as_ref().map_or(&[][..], |tools| &tools.programs);
        let asked = call::parse(line, programs).and_then(|request| {
            let id = request.id;
            self.may_ask(request).map_err(|fault| (Some(id), fault))
        });
        match asked {
            Ok((request, inputs, channel)) => {
                self.last_call = channel;
                let asked = abi::tools::Call { tool: request.tool.clone(), params: request.params.clone() };
                self.control.send(Kind::Call, channel, &asked)?;
                let call = Call { connection, request, inputs, value: Vec::new(), stage: Stage::Asked };
                self.calls.add(channel, call);
            }
            Err((id, fault)) => self.answer(connection, id, Err(fault)),
        }
        Ok(())
    }

    /// A call with what it refers to and its channel.
    fn may_ask(&self, request: Request) -> Result<(Request, Inputs, u32), Fault> {
        let mut inputs = Inputs::default();
        for number in request.work.references() {
            let bytes = self.values.of(number).ok_or_else(|| {
                let message = format!("value {number}: there is no such result, or it is too old to be kept");
                Fault::new(Code::NOT_FOUND, message)
            })?;
            inputs.add(number, bytes);
        }
        if self.still.is_some() {
            return Err(Fault::new(Code::CONFLICT, STANDS_STILL));
        }
        let channel = self.last_call.checked_add(1);
        let channel = channel.ok_or_else(|| Fault::new(Code::LIMIT, "this life has no more calls"))?;
        Ok((request, inputs, channel))
    }

    fn answer(&mut self, connection: u32, id: Option<u64>, outcome: Result<Done, Fault>) {
        if let Some(connection) = self.connections.of_mut(connection) {
            connection.answer(&call::reply(id, &outcome));
        }
    }

    /// Reads what PID 1 says. `false`: it is gone.
    fn hear(&mut self) -> Result<bool, ToolsError> {
        if !self.control.receive()? {
            return Ok(false);
        }
        while let Some(frame) = self.control.next_frame()? {
            let channel = frame.channel;
            match frame.kind {
                Kind::Value => {
                    if let Some(call) = self.calls.of_mut(channel) {
                        call.value.extend_from_slice(&frame.payload);
                    }
                }
                Kind::Answer => self.answered(channel, call::answer(&frame)?)?,
                Kind::Still => {
                    // Whatever works on files does so between two frames; searches are ended, and PID 1 kills runs.
                    self.still = Some(channel);
                    self.end_searches()?;
                    self.control.send_data(Kind::Still, channel, &[])?;
                }
                Kind::Stdout | Kind::Window | Kind::Exit | Kind::Failed => self.run_said(frame)?,
                got => return Err(FrameError::Unexpected { got }.into()),
            }
        }
        Ok(true)
    }

    fn answered(&mut self, channel: u32, answer: Answer) -> Result<(), ToolsError> {
        if self.still == Some(channel) {
            self.still = None;
        }
        match answer {
            Answer::Refused(refused) => {
                self.end(channel, Err(Fault::refused(refused)), 0, 0, Some("refused".to_owned()))
            }
            Answer::Go(go) => self.begin(channel, go),
        }
    }

    /// Does what the host said may be done.
    fn begin(&mut self, channel: u32, go: Go) -> Result<(), ToolsError> {
        let Some(call) = self.calls.of_mut(channel) else { return Ok(()) };
        let has_waited = self.connections.of(call.connection).is_some();
        if self.still.is_some() || !has_waited {
            let why = if has_waited { STANDS_STILL } else { HUNG_UP };
            return self.finish(channel, &go, Instant::now(), Err(why.to_owned()));
        }
        let value = std::mem::take(&mut call.value);
        let began = Instant::now();
        let most = go.output_bytes_max.min(limits::TOOL_RESULT_BYTES_MAX);
        let outcome = match &call.request.work {
            Work::Host => Ok(by_host(go.result.clone(), value)),
            Work::Read(read) => files::read(&self.root, read, most),
            Work::Write(write) => files::write(&self.root, write, &call.text(&write.content)),
            Work::Edit(edit) => files::edit(&self.root, edit, &call.text(&edit.new)),
            Work::Remove(remove) => files::remove(&self.root, remove),
            Work::Glob(_) | Work::Grep(_) | Work::Memory(_) => {
                let started = started(&self.root, &call.request.work, &go, most);
                match started {
                    Ok(job) => {
                        call.stage = Stage::Running(Box::new(Running::new(go, None, job)));
                        return Ok(());
                    }
                    Err(error) => Err(error),
                }
            }
            Work::Run(_) | Work::Own { .. } => return self.begin_run(channel, go),
        };
        self.finish(channel, &go, began, outcome)
    }

    fn advance(&mut self, channel: u32) -> Result<(), ToolsError> {
        let Some(Call { stage: Stage::Running(running), .. }) = self.calls.of_mut(channel) else {
            return Ok(());
        };
        let outcome = match &mut running.job {
            Job::Search(search) => search.advance(),
            Job::Memory(exchange) => exchange.advance(),
            Job::Run(_) => None,
        };
        let Some(outcome) = outcome else { return Ok(()) };
        let (go, began) = (running.go.clone(), running.began);
        self.finish(channel, &go, began, outcome)
    }

    /// Ends what has had its time.
    fn expire(&mut self) -> Result<(), ToolsError> {
        let now = Instant::now();
        let is_late = |call| running(call).is_some_and(|running| running.until <= now);
        let late: Vec<u32> = self.calls.iter().filter(|(_, call)| is_late(call)).map(|(c, _)| c).collect();
        for channel in late {
            self.stop(channel, "it took longer than it may")?;
        }
        Ok(())
    }

    fn end_searches(&mut self) -> Result<(), ToolsError> {
        let is_search = |call| running(call).is_some_and(|running| matches!(running.job, Job::Search(_)));
        let searches: Vec<u32> =
            self.calls.iter().filter(|(_, call)| is_search(call)).map(|(channel, _)| channel).collect();
        searches.into_iter().try_for_each(|channel| self.stop(channel, STANDS_STILL))
    }

    /// Forgets connections that are gone, and ends what nobody waits for any more. A call that the host has not answered is ended at its
    /// answer: until then the host may do something for it, and it counts.
    fn forget_gone(&mut self) -> Result<(), ToolsError> {
        let calls = &self.calls;
        let waits = |number| calls.iter().any(|(_, call)| call.connection == number);
        self.connections
            .retain(|number, connection| !connection.is_idle() || (!connection.gone && waits(number)));
        let connections = &self.connections;
        let given_up: Vec<u32> = self
            .calls
            .iter()
            .filter(|(_, call)| connections.of(call.connection).is_none() && running(call).is_some())
            .map(|(channel, _)| channel)
            .collect();
        given_up.into_iter().try_for_each(|channel| self.stop(channel, HUNG_UP))
    }

    /// Ends what a call does before its time. A run ends when it was killed, with what it said.
    fn stop(&mut self, channel: u32, why: &str) -> Result<(), ToolsError> {
        let Some(Call { stage: Stage::Running(running), .. }) = self.calls.of_mut(channel) else {
            return Ok(());
        };
        if let Job::Run(run) = &mut running.job {
            run.timed_out = true;
            return Ok(self.control.send(Kind::Signal, channel, &Signal { signal: libc::SIGKILL })?);
        }
        let (go, began) = (running.go.clone(), running.began);
        self.finish(channel, &go, began, Err(why.to_owned()))
    }

    /// The end of a call that may be done: it was, or failed.
    fn finish(
        &mut self,
        channel: u32,
        go: &Go,
        began: Instant,
        outcome: Result<Outcome, String>,
    ) -> Result<(), ToolsError> {
        let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let sealed = self.calls.of(channel).is_some_and(|call| call.request.sealed);
        match outcome {
            Ok(Outcome { data, value, is_cut }) => {
                let bytes = value.len() as u64;
                self.values.keep(channel, value.into());
                let data: Option<Value> = (!sealed).then_some(data);
                let done = Done { value: channel, receipt: go.receipt, labels: go.labels, data, is_cut };
                self.end(channel, Ok(done), bytes, wall_ms, None)
            }
            // What went wrong may tell of what is in a file: it is said to who may see the result.
            Err(error) if sealed => {
                let fault = Fault::failed(go.receipt, "the sealed call failed".to_owned());
                self.end(channel, Err(fault), 0, wall_ms, Some(error))
            }
            Err(error) => {
                let fault = Fault::failed(go.receipt, error.clone());
                self.end(channel, Err(fault), 0, wall_ms, Some(error))
            }
        }
    }

    /// The end of every call that was put to the host.
    fn end(
        &mut self,
        channel: u32,
        outcome: Result<Done, Fault>,
        bytes: u64,
        wall_ms: u64,
        failed: Option<String>,
    ) -> Result<(), ToolsError> {
        let Some(call) = self.calls.remove(channel) else { return Ok(()) };
        if self.still == Some(channel) {
            self.still = None;
        }
        let failed = failed.map(|failed| failed.chars().take(limits::GUEST_REASON_CHARS_MAX).collect());
        self.control.send(Kind::Ended, channel, &Ended { bytes, wall_ms, failed })?;
        self.answer(call.connection, Some(call.request.id), outcome);
        Ok(())
    }
}

const HUNG_UP: &str = "the agent hung up";
const STANDS_STILL: &str = "the tree stands still until the submit is answered: no tool runs meanwhile";

fn started(root: &OwnedFd, work: &Work, go: &Go, most: u64) -> Result<Job, String> {
    let order = match work {
        Work::Glob(glob) => Order::Glob(glob),
        Work::Grep(grep) => Order::Grep(grep),
        Work::Memory(memory) => return Exchange::start(GUEST_MEMORY_SOCKET, memory).map(Job::Memory),
        _ => return Err("it is not done over time".to_owned()),
    };
    let search = Search::start(root, order, &go.pass_over, most);
    search.map(Job::Search).map_err(|error| format!("search: {error}"))
}

/// What a call does, as long as it was not told to end: from then on nothing is left but to hear of its end.
fn running(call: &Call) -> Option<&Running> {
    match &call.stage {
        Stage::Running(running) if !matches!(&running.job, Job::Run(run) if run.timed_out) => Some(running),
        _ => None,
    }
}
