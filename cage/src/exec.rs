//! `agent.exec`: a program in an agent's sandbox, its streams on the caller's connection.
//!
//! Must hold: the manifest lets it be executed and the receipt is durable before the guest hears of it; a caller that goes away
//! or does not read takes its exec with it.

use abi::control::{AgentExec, AgentState, Output, StdinData, Stream};
use abi::door::{Call, Outcome};
use abi::guest::{Exit, Signal};
use abi::ledger::Event;
use abi::log;
use abi::rpc::{Code, Request, Response, RpcError};
use abi::wire::{LineWriter, WireError};
use serde_json::{Value, json};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use crate::agents::Cage;
use crate::guest::{ExecSaid, Session, SessionError};
use crate::{order, output, state};

/// How long a caller may leave output unread. Then its exec is killed.
const CALLER_MS_MAX: u64 = 10_000;
const SIGKILL: i32 = 9;

impl From<SessionError> for RpcError {
    fn from(error: SessionError) -> RpcError {
        let code = if matches!(error, SessionError::TooManyExecs) { Code::LIMIT } else { Code::FAILED };
        RpcError::new(code, error.to_string())
    }
}

/// Runs it to its end.
pub fn run(cage: &Cage, call: Call<'_>) -> Result<Outcome, RpcError> {
    let want: AgentExec = call.request.params()?;
    let agent = cage.with_log(&want.name)?;
    let (state, running) = {
        let facts = agent.facts();
        (facts.state.now(), facts.session.clone().zip(facts.loaded.clone()).zip(facts.instance.clone()))
    };
    let Some(((session, loaded), instance)) = running else { return Err(not_running(state).into()) };
    let order = order::exec(&loaded.manifest, &want)?;
    let event =
        Event::ExecStarted { instance, command: recorded(&want.command), by: call.caller.to_string() };
    cage.ledger
        .append(event)
        .map_err(|error| RpcError::new(Code::FAILED, format!("no receipt, so no exec: {error}")))?;
    let (channel, said) = session.exec(&order)?;
    let caller = Caller::new(&call).map_err(|error| RpcError::new(Code::FAILED, error.to_string()))?;
    let outcome = std::thread::Builder::new().name("exec".into()).stack_size(128 * 1024).spawn({
        let session = session.clone();
        move || caller.pass_on(&said, &session, channel)
    });
    if let Err(error) = outcome {
        kill(&session, channel);
        return Err(RpcError::new(Code::FAILED, format!("no thread for the exec: {error}")));
    }
    listen(call, &session, channel);
    Ok(Outcome::Answered)
}

/// Why an agent in this state takes no exec.
fn not_running(state: AgentState) -> state::Illegal {
    match state {
        AgentState::Starting => state::Illegal::AlreadyStarting,
        AgentState::Stopping => state::Illegal::StillStopping,
        AgentState::Paused | AgentState::Quarantined => state::Illegal::Frozen,
        AgentState::Running | AgentState::Stopped | AgentState::Exited | AgentState::Failed => {
            state::Illegal::NotAlive
        }
    }
}

/// A command as the ledger keeps it: bounded.
fn recorded(command: &[String]) -> Vec<String> {
    command.iter().map(|part| part.chars().take(128).collect()).collect()
}

fn kill(session: &Session, channel: u32) {
    if let Err(error) = session.signal(channel, SIGKILL) {
        log::info("exec_not_killed", &[("error", &error)]); // its VM is gone
    }
}

/// Reads what the caller sends until the connection ends: its own end, or ours after the answer.
fn listen(call: Call<'_>, session: &Arc<Session>, channel: u32) {
    loop {
        let line = match call.connection.read_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(WireError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        let heard = Request::parse(&line).and_then(|request| hear(&request, session, channel));
        if let Err(error) = heard {
            log::info("exec_input_refused", &[("caller", call.caller), ("error", &error)]);
            break;
        }
    }
    kill(session, channel); // ignored by the guest when the exec has ended
}

fn hear(request: &Request, session: &Session, channel: u32) -> Result<(), RpcError> {
    match request.method.as_str() {
        "stdin" => {
            let stdin: StdinData = request.params()?;
            let data = output::decode(&stdin.data)
                .map_err(|error| RpcError::new(Code::INVALID_PARAMS, format!("stdin: {error}")))?;
            Ok(session.stdin(channel, &data)?)
        }
        "signal" => {
            let Signal { signal } = request.params()?;
            if !(1..=31).contains(&signal) {
                return Err(RpcError::new(
                    Code::INVALID_PARAMS,
                    format!("signal {signal} is not one of 1 to 31"),
                ));
            }
            Ok(session.signal(channel, signal)?)
        }
        other => Err(RpcError::new(Code::INVALID_REQUEST, format!("`{other}` is not legal during an exec"))),
    }
}

/// The caller's end, on the thread that speaks.
struct Caller {
    writer: LineWriter,
    stream: UnixStream,
    id: Option<u64>,
}

impl Caller {
    fn new(call: &Call<'_>) -> std::io::Result<Caller> {
        let stream = call.connection.stream().try_clone()?;
        stream.set_write_timeout(Some(Duration::from_millis(CALLER_MS_MAX)))?;
        Ok(Caller { writer: call.connection.writer()?, stream, id: call.request.id })
    }

    /// Passes output on, then the answer; ends the connection's reading side, which ends `listen`.
    fn pass_on(mut self, said: &Receiver<ExecSaid>, session: &Session, channel: u32) {
        let outcome = self.until_the_end(said, session, channel);
        if let Some(outcome) = outcome {
            let answered = self.writer.write_line(&Response::of(self.id, outcome));
            if let Err(error) = answered {
                log::info("exec_not_answered", &[("error", &error)]);
            }
        }
        let _ = self.stream.shutdown(Shutdown::Read); // it may have ended by itself
    }

    fn until_the_end(
        &mut self,
        said: &Receiver<ExecSaid>,
        session: &Session,
        channel: u32,
    ) -> Option<Result<Value, RpcError>> {
        let mut seq = 0;
        for said in said {
            match said {
                ExecSaid::Output(stream, data) => {
                    if let Err(error) = self.output(stream, &data, &mut seq) {
                        log::info("exec_caller_lost", &[("error", &error)]);
                        kill(session, channel);
                        return None;
                    }
                }
                ExecSaid::Exited(exit) => return Some(Ok(exit_value(&exit))),
                ExecSaid::Failed(failed) => {
                    let short: String = failed.error.chars().filter(|c| !c.is_control()).take(500).collect();
                    let error = RpcError::new(Code::FAILED, format!("{}: {short}", failed.stage));
                    return Some(Err(error.explained(
                        "the guest could not start the program",
                        "check its path and the agent's rootfs",
                    )));
                }
            }
        }
        Some(Err(RpcError::new(Code::FAILED, "the agent's VM has ended")))
    }

    fn output(&mut self, stream: Stream, data: &[u8], seq: &mut u64) -> Result<(), WireError> {
        for part in data.chunks(output::CHUNK_BYTES_MAX) {
            let chunk = output::Chunk { stream, seq: *seq, unix_ms: output::unix_ms(), data: part.to_vec() };
            *seq += 1;
            let output: Output = chunk.to_output();
            self.writer.write_line(&Request::notification("output", json!(output)))?;
        }
        Ok(())
    }
}

fn exit_value(exit: &Exit) -> Value {
    json!(exit)
}
