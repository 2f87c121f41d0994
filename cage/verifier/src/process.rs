//! One channel with its process: what it reads and writes, what waits for its input, how it ends.
//!
//! Must hold: what waits for a process's input is at most its window; output is read only as far as the host's window reaches, so
//! that a slow reader holds up its own channel alone.

use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use abi::guest::{Kind, TerminalSize};
use verifier::channel::{Act, Ended, Intake, Life, Output, Window};

use crate::cgroup::Group;
use crate::spawn::Spawned;
use crate::sys;
use crate::terminal;

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
    /// The master of a terminal that nobody has open: closing it would hang up on a process that only left it.
    abandoned: Option<OwnedFd>,
    pub input: Feed,
    pub window: Window,
    drain_until: Option<Instant>,
    held_up: bool,
}

/// What waits for a process's standard input.
#[derive(Debug)]
pub struct Feed {
    sink: Option<OwnedFd>,
    terminal: bool,
    waiting: VecDeque<u8>,
    ended: bool,
    /// The last byte of input.
    last: u8,
    intake: Intake,
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
    pub fn new(spawned: Spawned, group: Group, window: Window) -> Process {
        let terminal = spawned.terminal;
        Process {
            group,
            leader: spawned.leader,
            life: Life::new(spawned.stderr.is_some()),
            stdout: Some(spawned.stdout),
            stderr: spawned.stderr,
            abandoned: None,
            input: Feed::new(spawned.stdin, terminal),
            window,
            drain_until: None,
            held_up: false,
        }
    }

    /// Whether this pid is its leader, not yet reaped.
    pub fn is_led_by(&self, pid: rustix::process::Pid) -> bool {
        self.life.running() && self.leader == pid
    }

    /// Whether its leader has not ended.
    pub fn is_running(&self) -> bool {
        self.life.running()
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

    /// Whether the host takes output of this channel now.
    pub fn has_window(&self) -> bool {
        self.window.of_at_most(1) > 0
    }

    /// Reads one chunk of an output, as far as the window reaches.
    pub fn read(&mut self, output: Output) -> Read {
        let Some(fd) = self.output(output) else { return Read::Later };
        let mut chunk = vec![0; self.window.of_at_most(OUTPUT_BYTES)];
        if chunk.is_empty() {
            return Read::Later;
        }
        match rustix::io::read(fd, &mut chunk) {
            Err(Errno::AGAIN | Errno::INTR) => Read::Later,
            // The end of a pipe; or (EIO) nobody has the other end of the terminal any more.
            Ok(0) | Err(_) => {
                let closed = match output {
                    Output::Stdout => self.stdout.take(),
                    Output::Stderr => self.stderr.take(),
                };
                if self.input.terminal {
                    self.input.close(); // it would wake the loop for ever
                    self.abandoned = closed;
                }
                Read::Closed(self.life.output_closed(output))
            }
            Ok(count) => {
                chunk.truncate(count);
                self.window.sent(count);
                self.drain_until = self.drain_until.map(|_| Instant::now() + DRAIN_TIME);
                Read::Bytes(chunk)
            }
        }
    }

    /// Changes the size of its terminal; nothing where it has none.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match self.stdout.as_ref().filter(|_| self.input.terminal) {
            Some(master) => terminal::resize(master, size),
            None => Ok(()),
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
        self.drain_until.filter(|_| !self.held_up)
    }

    /// Whether its output is read now. An output that is not read says nothing about survivors: their time begins anew.
    pub fn hold_up(&mut self, held_up: bool) {
        if self.held_up && !held_up {
            self.drain_until = self.drain_until.map(|_| Instant::now() + DRAIN_TIME);
        }
        self.held_up = held_up;
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
    /// Nothing waits yet. `terminal`: the sink is a terminal's master.
    pub fn new(sink: Option<OwnedFd>, terminal: bool) -> Feed {
        Feed {
            sink,
            terminal,
            waiting: VecDeque::new(),
            ended: false,
            last: b'\n',
            intake: Intake::default(),
        }
    }

    /// Queues input; empty is its end. Input after the end, or for a process without input, is dropped. `false`: the host sent
    /// more than its window.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if !self.intake.receive(bytes.len()) {
            return false;
        }
        if self.sink.is_none() || self.ended {
            self.intake.take(bytes.len());
            return true;
        }
        self.waiting.extend(bytes);
        self.last = bytes.last().copied().unwrap_or(self.last);
        self.ended = bytes.is_empty();
        if let Some(master) = self.sink.as_ref().filter(|_| self.ended && self.terminal) {
            self.waiting.extend(terminal::end_of_file(master, self.last != b'\n'));
        }
        self.write();
        true
    }

    /// What the host may send again.
    pub fn give_back(&mut self) -> Option<u32> {
        self.intake.give_back()
    }

    /// Where input goes, while something waits for it.
    pub fn wants(&self) -> Option<BorrowedFd<'_>> {
        self.sink.as_ref().filter(|_| !self.waiting.is_empty()).map(AsFd::as_fd)
    }

    /// Writes what is taken; closes a pipe after the last byte. A process that closed its input loses the rest.
    pub fn write(&mut self) {
        while let Some(fd) = &self.sink {
            let (first, _) = self.waiting.as_slices();
            if first.is_empty() {
                break;
            }
            match rustix::io::write(fd, first) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(count) => {
                    self.waiting.drain(..count);
                    self.intake.take(count);
                }
                Err(Errno::INTR) => {}
                Err(_) => return self.close(),
            }
        }
        // A terminal stays: it was told the end of file, and its master is where its output comes from.
        if self.ended && !self.terminal {
            self.close();
        }
    }

    /// Closes the input and forgets what waited for it.
    pub fn close(&mut self) {
        self.sink = None;
        self.intake.take(self.waiting.len());
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
        (Feed::new(Some(writer), false), reader.into())
    }

    #[test]
    fn input_arrives_whole_within_its_window_and_its_end_follows() {
        let (mut feed, mut reader) = feed();
        let sent: Vec<u8> = (0..700_000u32).map(|n| n as u8).collect();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        });
        let mut window = abi::limits::EXEC_INPUT_WINDOW_BYTES as usize;
        for chunk in sent.chunks(60_000) {
            while window < chunk.len() {
                feed.write();
                window += feed.give_back().unwrap_or(0) as usize;
                std::thread::yield_now();
            }
            window -= chunk.len();
            assert!(feed.push(chunk));
        }
        assert!(feed.push(b""));
        assert!(feed.push(b"after the end"));
        while feed.wants().is_some() {
            feed.write();
            std::thread::yield_now();
        }
        assert_eq!(reading.join().unwrap(), sent);
    }

    #[test]
    fn a_host_that_overruns_its_window_is_found_out() {
        let (mut feed, reader) = feed();
        let window = abi::limits::EXEC_INPUT_WINDOW_BYTES as usize;
        // The pipe takes half of it, which is given back; the rest waits.
        assert!(feed.push(&vec![0; window]));
        assert_eq!(feed.give_back(), Some(window as u32 / 2));
        assert!(feed.push(&vec![0; window / 2]));
        assert!(!feed.push(b"x"));
        drop(reader);
        feed.write();
        assert!(feed.wants().is_none(), "a closed input keeps nothing");
        assert_eq!(feed.give_back(), Some(window as u32), "and what waited for it is given back");
    }

    #[test]
    fn input_for_nobody_is_given_back() {
        let mut feed = Feed::new(None, false);
        assert!(feed.push(&[0; 100_000]));
        assert_eq!(feed.give_back(), Some(100_000));
    }
}
