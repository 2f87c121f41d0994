//! nulld's stream of log lines.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use abi::control::LogLine;
use abi::limits;
use abi::rpc::Request;
use rustix::io::Errno;
use rustix::net::RecvFlags;

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;

/// The stream.
#[derive(Debug)]
pub struct Feed {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// What stands before it in the buffer is used.
    used: usize,
}

/// What came.
#[derive(Debug)]
pub enum Next {
    Line(LogLine),
    /// Nothing now.
    Nothing,
    /// nulld closed it, or sent what is no log line.
    Ended,
}

impl Feed {
    /// A connection that nulld handed over.
    pub fn new(stream: UnixStream) -> Feed {
        Feed { stream, buffer: Vec::new(), used: 0 }
    }

    /// The next line, without waiting.
    pub fn next_line(&mut self) -> Next {
        loop {
            let rest = self.buffer.get(self.used..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let request: Option<Request> =
                    rest.get(..end).and_then(|line| serde_json::from_slice(line).ok());
                self.used += end + 1;
                return match request.and_then(|note| serde_json::from_value(note.params).ok()) {
                    Some(line) => Next::Line(line),
                    None => Next::Ended,
                };
            }
            if rest.len() >= limits::LINE_BYTES_MAX {
                return Next::Ended;
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            let mut chunk = [0u8; CHUNK];
            match rustix::net::recv(&self.stream, &mut chunk, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Next::Ended,
                Ok((count, _)) => self.buffer.extend(chunk.iter().take(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Next::Nothing,
                Err(_) => return Next::Ended,
            }
        }
    }
}

impl AsFd for Feed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
