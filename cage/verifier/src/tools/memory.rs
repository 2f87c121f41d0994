//! `tool.memory`: one call of the agent's memory, over the socket that the agent has too.
//!
//! Must hold: it never blocks the loop; an answer is at most [`limits::TOOL_RESULT_BYTES_MAX`]; what is no answer (a notification) is
//! passed over.

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::limits;
use abi::tools::Memory;

use super::calls::Outcome;

const CALL_ID: u64 = 1;
const READ_BYTES: usize = 16 * 1024;

/// A call under way.
#[derive(Debug)]
pub struct Exchange {
    socket: OwnedFd,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Exchange {
    /// Asks at a socket.
    pub fn start(path: &str, memory: &Memory) -> Result<Exchange, String> {
        let (method, params) = (&memory.method, &memory.params);
        let request = json!({ "jsonrpc": "2.0", "id": CALL_ID, "method": method, "params": params });
        let mut request = request.to_string().into_bytes();
        request.push(b'\n');
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let failed = |error: Errno| match error {
            Errno::AGAIN => "memory: all its connections are in use".to_owned(),
            error => format!("memory: {}", std::io::Error::from(error)),
        };
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
        Ok(Exchange { socket, request, answer: Vec::new() })
    }

    /// The socket, to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to poll for.
    pub fn interest(&self) -> PollFlags {
        if self.request.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Takes it as far as it goes now; the outcome when it is there.
    pub fn advance(&mut self) -> Option<Result<Outcome, String>> {
        while !self.request.is_empty() {
            match rustix::net::send(&self.socket, &self.request, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.request.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(error) => return Some(Err(format!("memory: {}", std::io::Error::from(error)))),
            }
        }
        let mut chunk = vec![0; READ_BYTES];
        match rustix::io::read(&self.socket, &mut chunk) {
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Ok(count) if count > 0 => self.answer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            _ => return Some(Err("memory: the connection ended without an answer".to_owned())),
        }
        while let Some(end) = self.answer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.answer.drain(..=end).collect();
            if let Ok(Value::Object(mut members)) = serde_json::from_slice(&line)
                && members.get("id").and_then(Value::as_u64) == Some(CALL_ID)
            {
                return Some(match members.remove("error") {
                    Some(error) => Err(format!("memory: {error}")),
                    None => {
                        let data = members.remove("result").unwrap_or(Value::Null);
                        Ok(Outcome { value: data.to_string().into_bytes(), data, is_cut: false })
                    }
                });
            }
        }
        let most = limits::TOOL_RESULT_BYTES_MAX;
        (self.answer.len() as u64 > most).then(|| Err(format!("memory: an answer above {most} bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    fn answered(answer: &'static [u8]) -> Result<Outcome, String> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("exchange-{number}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&socket).read_line(&mut line).unwrap();
            let asked = json!({"jsonrpc": "2.0", "id": 1, "method": "memory.get", "params": {"key": "k"}});
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), asked);
            // An oversized answer is not read to its end.
            let _ = socket.write_all(answer);
        });
        let memory =
            Memory { method: "memory.get".into(), params: serde_json::json!({"key": "k"}), sealed: false };
        let mut exchange = Exchange::start(path.to_str().unwrap(), &memory).unwrap();
        let outcome = loop {
            if let Some(outcome) = exchange.advance() {
                break outcome;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        drop(exchange);
        server.join().unwrap();
        std::fs::remove_file(path).unwrap();
        outcome
    }

    #[test]
    fn an_answer_is_taken_and_a_notification_passed_over() {
        let answer = b"{\"jsonrpc\":\"2.0\",\"method\":\"memory.event\",\"params\":{}}\n{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"v\":2}}\n";
        let outcome = answered(answer).unwrap();
        assert_eq!((outcome.data["v"].as_u64(), outcome.value), (Some(2), b"{\"v\":2}".to_vec()));
    }

    #[test]
    fn errors_ends_and_floods_are_failures_in_words() {
        let error = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32001,\"message\":\"no grant\"}}\n";
        assert!(answered(error).unwrap_err().contains("no grant"));
        assert!(answered(b"").unwrap_err().contains("without an answer"));
        assert!(answered(Box::leak(vec![b'x'; 1 << 20].into_boxed_slice())).unwrap_err().contains("above"));
    }
}
