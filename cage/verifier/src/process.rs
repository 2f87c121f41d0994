//! One channel with its process: pipes to and from it, what waits for its input, how it ends.
//!
//! Must hold: what waits for a process's input is at most [`INPUT_BYTES_HIGH`] and what one read of the connection brings; above that the host is not
//! read, and a process that takes nothing for [`INPUT_STALL`] while the host waits is ended.

use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use abi::guest::Kind;
use verifier::channel::{Act, Ended, Life, Output};

use crate::cgroup::Group;
use crate::spawn::Spawned;
use crate::sys;

/// Above so many waiting bytes of input the control connection is not read.
pub const INPUT_BYTES_HIGH: usize = 128 * 1024;
/// How long a process may hold up the control connection by not reading its input.
pub const INPUT_STALL: Duration = Duration::from_secs(5);
/// How long survivors of a SIGKILL may hold an output open.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Bytes of one output frame.
const OUTPUT_BYTES: usize = 32 * 1024;

/// A channel.
#[derive(Debug)]
pub struct Process {
    pub group: Group,
    leader: rustix::process::Pid,
    life: Life,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    pub input: Feed,
    drain_until: Option<Instant>,
}

/// What waits for a process's standard input.
#[derive(Debug)]
pub struct Feed {
    pipe: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    ended: bool,
    moved: Instant,
}

/// What reading an output gave.
#[derive(Debug)]
pub enum Read {
    Bytes(Vec<u8>),
    Later,
    Closed(Act),
}

impl Process {
    /// A channel of what was just started.
    pub fn new(spawned: Spawned, group: Group) -> Process {
        Process {
            group,
            leader: spawned.leader,
            life: Life::default(),
            stdout: Some(spawned.stdout),
            stderr: Some(spawned.stderr),
            input: Feed::new(spawned.stdin),
            drain_until: None,
        }
    }

    /// Whether this pid is its leader, not yet reaped.
    pub fn is_led_by(&self, pid: rustix::process::Pid) -> bool {
        self.life.running() && self.leader == pid
    }

    /// The frame kind of an output.
    pub fn kind(output: Output) -> Kind {
        match output {
            Output::Stdout => Kind::Stdout,
            Output::Stderr => Kind::Stderr,
        }
    }

    /// An output, while it is open.
    pub fn output(&self, output: Output) -> Option<BorrowedFd<'_>> {
        match output {
            Output::Stdout => self.stdout.as_ref().map(AsFd::as_fd),
            Output::Stderr => self.stderr.as_ref().map(AsFd::as_fd),
        }
    }

    /// Reads one chunk of an output.
    pub fn read(&mut self, output: Output) -> Read {
        let Some(fd) = self.output(output) else { return Read::Later };
        let mut chunk = vec![0; OUTPUT_BYTES];
        match rustix::io::read(fd, &mut chunk) {
            Err(Errno::AGAIN | Errno::INTR) => Read::Later,
            // A pipe gives no other error; should one come, the output is over.
            Ok(0) | Err(_) => {
                match output {
                    Output::Stdout => self.stdout = None,
                    Output::Stderr => self.stderr = None,
                }
                Read::Closed(self.life.output_closed(output))
            }
            Ok(count) => {
                chunk.truncate(count);
                Read::Bytes(chunk)
            }
        }
    }

    /// The leader was reaped. Whatever it left is killed by whoever calls this with [`Act::KillTree`].
    pub fn leader_ended(&mut self, ended: Ended) -> Act {
        self.input.close();
        self.drain_until = Some(Instant::now() + DRAIN_TIME);
        self.life.leader_ended(ended)
    }

    /// When [`Process::drain_expired`] must be called; none while the leader runs.
    pub fn drain_until(&self) -> Option<Instant> {
        self.drain_until
    }

    /// Something that SIGKILL did not end holds an output: give it up.
    pub fn drain_expired(&mut self) -> Act {
        (self.stdout, self.stderr) = (None, None);
        self.life.drain_expired()
    }

    /// Sends a signal to the leader's process group, while the leader is there.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if !self.life.running() {
            return Ok(());
        }
        sys::signal_group(self.leader.as_raw_nonzero().get(), signal)
    }
}

impl Feed {
    /// Nothing waits yet.
    pub fn new(pipe: Option<OwnedFd>) -> Feed {
        Feed { pipe, waiting: VecDeque::new(), ended: false, moved: Instant::now() }
    }

    /// Queues input; empty is its end. Input after the end, or for a process without input, is dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.pipe.is_none() || self.ended {
            return;
        }
        if self.waiting.is_empty() {
            self.moved = Instant::now();
        }
        self.ended = bytes.is_empty();
        self.waiting.extend(bytes);
        self.write();
    }

    /// The pipe, while something waits for it.
    pub fn wants(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().filter(|_| !self.waiting.is_empty()).map(AsFd::as_fd)
    }

    /// Whether the host must wait before it may send more.
    pub fn is_full(&self) -> bool {
        self.waiting.len() > INPUT_BYTES_HIGH
    }

    /// When the process will have held up the host for too long.
    pub fn stalled_at(&self) -> Option<Instant> {
        self.is_full().then(|| self.moved + INPUT_STALL)
    }

    /// Writes what the pipe takes; closes it after the last byte. A process that closed its input loses the rest.
    pub fn write(&mut self) {
        while let Some(fd) = &self.pipe {
            let (first, _) = self.waiting.as_slices();
            if first.is_empty() {
                break;
            }
            match rustix::io::write(fd, first) {
                Ok(count) => {
                    self.waiting.drain(..count);
                    self.moved = Instant::now();
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.close(),
            }
        }
        if self.ended {
            self.close();
        }
    }

    /// Closes the pipe and forgets what waited for it.
    pub fn close(&mut self) {
        self.pipe = None;
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn feed() -> (Feed, std::fs::File) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        (Feed::new(Some(writer)), reader.into())
    }

    #[test]
    fn input_arrives_whole_and_its_end_follows() {
        let (mut feed, mut reader) = feed();
        let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        });
        for chunk in sent.chunks(60_000) {
            feed.push(chunk);
        }
        feed.push(b"");
        feed.push(b"after the end");
        while feed.wants().is_some() {
            feed.write();
            std::thread::yield_now();
        }
        assert_eq!(reading.join().unwrap(), sent);
    }

    #[test]
    fn a_process_that_does_not_read_makes_the_host_wait_and_then_stalls() {
        let (mut feed, reader) = feed();
        while !feed.is_full() {
            feed.push(&[0; 60_000]);
        }
        let stalled = feed.stalled_at().unwrap();
        assert!(stalled > Instant::now() && stalled <= Instant::now() + INPUT_STALL);
        drop(reader);
        feed.write();
        assert!(!feed.is_full() && feed.wants().is_none(), "a closed input holds nobody up");
    }
}
