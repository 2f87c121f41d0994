//! A caller's end of a call that streams both ways: what he says meanwhile, and how he is told.
//!
//! Must hold: a caller who takes nothing for [`STALL_MAX`] is given up; what he says is one of [`Note`].

use abi::control::{Progress, StdinData, Stream};
use abi::door::Call;
use abi::guest::{Signal, TerminalSize};
use abi::limits;
use abi::rpc::{Code, Request, Response, RpcError};
use abi::wire::{LineWriter, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::output::{self, CHUNK_BYTES_MAX, Chunk};

/// How long a caller may take nothing.
pub const STALL_MAX: Duration = Duration::from_millis(limits::CALLER_STALL_MS_MAX);

/// What a caller may say after his request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Input; none of it is the end of the input.
    Stdin(Vec<u8>),
    /// 1 to 31.
    Signal(i32),
    Resize(TerminalSize),
}

impl Note {
    /// From a line.
    pub fn parse(line: &str) -> Result<Note, RpcError> {
        let request = Request::parse(line)?;
        let invalid = |what: String| RpcError::new(Code::INVALID_PARAMS, what);
        match request.method.as_str() {
            "stdin" => {
                let stdin: StdinData = request.params()?;
                let data = output::decode(&stdin.data).map_err(|error| invalid(format!("stdin: {error}")))?;
                Ok(Note::Stdin(data))
            }
            "signal" => match request.params()? {
                Signal { signal: signal @ 1..=31 } => Ok(Note::Signal(signal)),
                Signal { signal } => Err(invalid(format!("signal {signal} is not one of 1 to 31"))),
            },
            "resize" => terminal(request.params()?).map(Note::Resize),
            other => {
                Err(RpcError::new(Code::INVALID_REQUEST, format!("`{other}` is not legal during this call")))
            }
        }
    }
}

/// A size that a terminal may have.
pub fn terminal(size: TerminalSize) -> Result<TerminalSize, RpcError> {
    let legal = 1..=limits::TERMINAL_SIZE_MAX;
    if legal.contains(&size.rows) && legal.contains(&size.columns) {
        return Ok(size);
    }
    let what = format!("a terminal of {} rows and {} columns", size.rows, size.columns);
    let rule = format!("1 to {} of each", limits::TERMINAL_SIZE_MAX);
    Err(RpcError::new(Code::INVALID_PARAMS, what)
        .explained(rule, "give the size of the terminal in characters"))
}

/// The half that tells the caller.
#[derive(Debug)]
pub struct Teller {
    writer: LineWriter,
    stream: UnixStream,
    id: Option<u64>,
    seq: u64,
}

impl Teller {
    /// Of a call's connection; a caller who takes nothing for so long is given up.
    pub fn new(call: &Call<'_>, stall: Duration) -> Result<Teller, RpcError> {
        let make = || {
            let stream = call.connection.stream().try_clone()?;
            stream.set_write_timeout(Some(stall))?;
            io::Result::Ok(Teller { writer: call.connection.writer()?, stream, id: call.request.id, seq: 0 })
        };
        make().map_err(|error| RpcError::new(Code::FAILED, format!("the caller's connection: {error}")))
    }

    /// Passes bytes on, numbered from 0.
    pub fn output(&mut self, stream: Stream, data: &[u8]) -> Result<(), WireError> {
        for part in data.chunks(CHUNK_BYTES_MAX) {
            let chunk = Chunk { stream, seq: self.seq, unix_ms: output::unix_ms(), data: part.to_vec() };
            self.seq += 1;
            self.chunk(&chunk)?;
        }
        Ok(())
    }

    /// Passes a chunk of a log on, with its own number.
    pub fn chunk(&mut self, chunk: &Chunk) -> Result<(), WireError> {
        self.writer.write_line(&Request::notification("output", json!(chunk.to_output())))
    }

    /// Tells how far it is.
    pub fn progress(&mut self, progress: &Progress) -> Result<(), WireError> {
        self.writer.write_line(&Request::notification("progress", json!(progress)))
    }

    /// Answers, and ends the connection's reading side, which ends who reads it.
    pub fn answer(mut self, outcome: Option<Result<Value, RpcError>>) -> Result<(), WireError> {
        let answered = match outcome {
            Some(outcome) => self.writer.write_line(&Response::of(self.id, outcome)),
            None => Ok(()),
        };
        let _ = self.stream.shutdown(Shutdown::Read); // it may have ended by itself
        answered
    }
}

/// Whether the caller has closed his end.
pub fn hung_up(stream: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fd = [PollFd::new(stream, PollFlags::RDHUP)];
    match poll(&mut fd, Some(&now)) {
        Ok(_) => fd[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR),
        Err(_) => false,
    }
}

/// For tests: the caller's side of a call, in the test's hands.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use abi::door::Outcome;
    use abi::identity::Caller;
    use abi::rpc::Incoming;
    use abi::wire::Connection;
    use std::thread::JoinHandle;

    /// Has a call answered on a thread of its own; the caller's end of its connection, and how it ended.
    pub(crate) fn call(
        serve: impl FnOnce(Call<'_>) -> Result<Outcome, RpcError> + Send + 'static,
    ) -> (Connection, JoinHandle<Result<Outcome, RpcError>>) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(crate::guest::fake::SOON)).unwrap();
        let served = std::thread::spawn(move || {
            let request = Request::call(1, "agent.exec", json!({}));
            let mut connection = Connection::new(far);
            serve(Call { caller: &Caller::Local { uid: 0 }, request: &request, connection: &mut connection })
        });
        (Connection::new(near), served)
    }

    /// What the caller hears next: output, or the answer.
    pub(crate) fn heard(caller: &mut Connection) -> Result<Chunk, Result<Value, RpcError>> {
        match serde_json::from_str(&caller.read_line().unwrap().expect("an answer")).unwrap() {
            Incoming::Notification(note) => {
                let output: abi::control::Output = note.params().unwrap();
                let data = output::decode(&output.data).unwrap();
                Ok(Chunk { stream: output.stream, seq: output.seq, unix_ms: output.unix_ms, data })
            }
            Incoming::Response(Response { error: Some(error), .. }) => Err(Err(error)),
            Incoming::Response(Response { result, .. }) => Err(Ok(result.unwrap())),
        }
    }

    /// All that comes until the answer: bytes, and the answer.
    pub(crate) fn heard_out(caller: &mut Connection) -> (Vec<u8>, Result<Value, RpcError>) {
        let mut bytes = Vec::new();
        loop {
            match heard(caller) {
                Ok(chunk) => bytes.extend(chunk.data),
                Err(answer) => return (bytes, answer),
            }
        }
    }

    /// A note as a line's value.
    pub(crate) fn stdin(bytes: &[u8]) -> Request {
        use base64::Engine;
        let data = base64::engine::general_purpose::STANDARD.encode(bytes);
        Request::notification("stdin", json!({ "data": data }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(method: &str, params: Value) -> Result<Note, RpcError> {
        Note::parse(&serde_json::to_string(&Request::notification(method, params)).unwrap())
    }

    #[test]
    fn what_a_caller_says_is_checked() {
        assert_eq!(note("stdin", json!({"data": "aGk="})).unwrap(), Note::Stdin(b"hi".to_vec()));
        assert_eq!(note("stdin", json!({"data": ""})).unwrap(), Note::Stdin(vec![]));
        assert_eq!(note("signal", json!({"signal": 15})).unwrap(), Note::Signal(15));
        assert_eq!(
            note("resize", json!({"rows": 50, "columns": 132})).unwrap(),
            Note::Resize(TerminalSize { rows: 50, columns: 132 })
        );
        for (method, params) in [
            ("stdin", json!({"data": "?"})),
            ("stdin", json!({"data": "", "more": 1})),
            ("signal", json!({"signal": 0})),
            ("signal", json!({"signal": 32})),
            ("resize", json!({"rows": 0, "columns": 80})),
            ("resize", json!({"rows": 24, "columns": 1001})),
            ("agent.exec", json!({})),
        ] {
            assert!(note(method, params.clone()).is_err(), "{method} {params}");
        }
        assert!(Note::parse("garbage").is_err());
    }
}
