//! One channel with its process: pipes to and from it, what waits for its input, how it ends.
//!
//! Must hold: what waits for a process's input is at most [`INPUT_BYTES_HIGH`] and one frame; above that the host is not
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
    stdin: Option<OwnedFd>,
    input: VecDeque<u8>,
    input_ended: bool,
    input_moved: Instant,
    drain_until: Option<Instant>,
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
            stdin: spawned.stdin,
            input: VecDeque::new(),
            input_ended: false,
            input_moved: Instant::now(),
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
        self.stdin = None;
        self.input.clear();
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

    /// Queues input; empty is its end. Input after the end, or for a process without input, is dropped.
    pub fn push_input(&mut self, bytes: &[u8]) {
        if self.stdin.is_none() || self.input_ended {
            return;
        }
        if self.input.is_empty() {
            self.input_moved = Instant::now();
        }
        self.input_ended = bytes.is_empty();
        self.input.extend(bytes);
        self.write_input();
    }

    /// The input, while something waits for it.
    pub fn wants_input(&self) -> Option<BorrowedFd<'_>> {
        self.stdin.as_ref().filter(|_| !self.input.is_empty()).map(AsFd::as_fd)
    }

    /// Whether the host must wait before it may send more.
    pub fn is_full(&self) -> bool {
        self.input.len() > INPUT_BYTES_HIGH
    }

    /// When the process will have held up the host for too long.
    pub fn stalled_at(&self) -> Option<Instant> {
        self.is_full().then(|| self.input_moved + INPUT_STALL)
    }

    /// Writes what the pipe takes; closes it after the last byte. A process that closed its input loses the rest.
    pub fn write_input(&mut self) {
        while let Some(fd) = &self.stdin {
            let (first, _) = self.input.as_slices();
            if first.is_empty() {
                break;
            }
            match rustix::io::write(fd, first) {
                Ok(count) => {
                    self.input.drain(..count);
                    self.input_moved = Instant::now();
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.input.clear();
                    self.input_ended = true;
                }
            }
        }
        if self.input_ended {
            self.stdin = None;
        }
    }

    /// Sends a signal to the leader's process group, while the leader is there.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if !self.life.running() {
            return Ok(());
        }
        sys::signal_group(self.leader.as_raw_nonzero().get(), signal)
    }
}
