//! One connection of the agent: lines in, lines out, neither ever blocking the loop.
//!
//! Must hold: a line is at most [`limits::TOOL_LINE_BYTES_MAX`]; what waits to be read by the agent counts as calls under way, so that a slow
//! reader runs out of them and of nothing else.

use rustix::event::PollFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use abi::limits;

const READ_BYTES: usize = 16 * 1024;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// Answers of which something may wait in `output`.
    unsent: usize,
    /// No further input comes, or none is taken.
    ended: bool,
    /// The agent is gone; nobody takes answers.
    pub gone: bool,
}

/// A line that is longer than one may be. Nothing behind it is read.
#[derive(Debug)]
pub struct TooLong;

impl Connection {
    /// Of an accepted, non-blocking socket.
    pub fn new(socket: UnixStream) -> Connection {
        let (input, output) = (Vec::new(), VecDeque::new());
        Connection { socket, input, output, unsent: 0, ended: false, gone: false }
    }

    /// The socket, to poll. A hang-up is told in any case.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to poll for. `room`: whether one more call may begin.
    pub fn interest(&self, room: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, room && !self.ended);
        flags.set(PollFlags::OUT, !self.output.is_empty());
        flags
    }

    /// Answers that the agent has not taken.
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Whether nothing more can come of it, but answers to calls under way.
    pub fn is_idle(&self) -> bool {
        self.gone || (self.ended && self.input.is_empty() && self.output.is_empty())
    }

    /// Does what poll said can be done. `room` as it was asked for.
    pub fn serve(&mut self, events: PollFlags, room: bool) {
        if events.contains(PollFlags::OUT) {
            self.flush();
        }
        if room && !self.ended && events.contains(PollFlags::IN) {
            self.receive();
        } else if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.gone = true;
        }
    }

    fn receive(&mut self) {
        let mut chunk = vec![0; READ_BYTES];
        match rustix::io::read(&self.socket, &mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.gone = true,
        }
    }

    /// The next whole line, without its end. One that a closed connection cut is dropped.
    pub fn next_line(&mut self) -> Option<Result<Vec<u8>, TooLong>> {
        let end = self.input.iter().take(limits::TOOL_LINE_BYTES_MAX + 1).position(|byte| *byte == b'\n');
        let Some(end) = end else {
            if self.input.len() > limits::TOOL_LINE_BYTES_MAX {
                self.input = Vec::new();
                self.ended = true;
                return Some(Err(TooLong));
            }
            if self.ended {
                self.input = Vec::new();
            }
            return None;
        };
        let mut line: Vec<u8> = self.input.drain(..=end).collect();
        line.pop();
        Some(Ok(line))
    }

    /// Queues an answer, and sends what the kernel takes of it.
    pub fn answer(&mut self, line: &[u8]) {
        self.unsent += 1;
        self.output.extend(line);
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            let (first, _) = self.output.as_slices();
            match rustix::net::send(&self.socket, first, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.gone = true;
                    self.output = VecDeque::new();
                }
            }
        }
        self.unsent = 0;
    }
}

/// Whether a connection is of this user.
pub fn is_of(socket: &UnixStream, uid: u32) -> io::Result<bool> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn pair() -> (UnixStream, Connection) {
        let (agent, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (agent, Connection::new(ours))
    }

    #[test]
    fn lines_come_whole_and_a_cut_one_not_at_all() {
        let (mut agent, mut connection) = pair();
        agent.write_all(b"one\ntwo\nthr").unwrap();
        connection.serve(PollFlags::IN, true);
        assert_eq!(connection.next_line().unwrap().unwrap(), b"one");
        assert_eq!(connection.next_line().unwrap().unwrap(), b"two");
        assert!(connection.next_line().is_none());
        drop(agent);
        connection.serve(PollFlags::IN, true);
        assert!(connection.next_line().is_none() && connection.is_idle());
    }

    #[test]
    fn a_line_beyond_its_bound_ends_the_input() {
        let (mut agent, mut connection) = pair();
        let long = vec![b'x'; limits::TOOL_LINE_BYTES_MAX];
        for extra in [&b"\n"[..], b"x\nnever\n"] {
            agent.write_all(&long).unwrap();
            agent.write_all(extra).unwrap();
        }
        for _ in 0..10 {
            connection.serve(PollFlags::IN, true);
        }
        assert_eq!(connection.next_line().unwrap().unwrap(), long, "exactly at the bound");
        assert!(connection.next_line().unwrap().is_err());
        assert!(connection.next_line().is_none() && connection.interest(true).is_empty());
    }

    #[test]
    fn answers_count_until_they_are_taken() {
        let (agent, mut connection) = pair();
        connection.answer(b"small\n");
        assert_eq!(connection.unsent(), 0, "the kernel took it");
        connection.answer(&vec![b'x'; 4 << 20]);
        connection.answer(b"after\n");
        assert_eq!((connection.unsent(), connection.interest(false)), (2, PollFlags::OUT));
        drop(agent);
        // A child that another test forks meanwhile holds the agent's end open for a moment.
        for _ in 0..1000 {
            connection.serve(PollFlags::OUT, false);
            if connection.gone {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(connection.gone && connection.is_idle());
    }
}
