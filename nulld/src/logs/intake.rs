//! What comes in from a service: bytes of its pipe, cut into lines, at a bounded rate.
//!
//! A service may write SERVICE_LOG_LINES_PER_SECOND_MAX lines a second, and as many at once after a silence. More are taken
//! from the pipe, dropped and counted, so that a log does not stop its writer. But no more than [`INTERVAL_BYTES_MAX`] in
//! [`INTERVAL_MS`]: then the pipe is not looked at for the rest of the interval, it fills, and the writer waits that long. So a
//! flood costs nulld at most that many bytes looked at a second, and its writer at most an interval at a time.
//!
//! Must hold: what is dropped is counted, and the count stands in the log within a second or two.

use std::io;
use std::os::fd::OwnedFd;

use abi::limits;
use rustix::event::epoll::EventFlags;

use crate::clock;
use crate::journal::Journal;
use crate::poll::{self, Token};

/// How long a service's pipe is left alone at most.
pub const INTERVAL_MS: u64 = 50;
/// Bytes taken from one service in an interval.
pub const INTERVAL_BYTES_MAX: usize = 256 * 1024;
/// How often a count of dropped lines is written.
const TELL_MS: u64 = 1000;

/// Lets so many lines a second pass, as many at once after a silence, and counts the others.
#[derive(Debug)]
pub struct Gate {
    per_second: u64,
    /// Thousandths of lines that may pass now.
    allowance: u64,
    since_ms: u64,
    dropped: u64,
    tell_ms: u64,
}

impl Gate {
    /// A gate that has been silent.
    pub fn new(per_second: u32) -> Gate {
        let per_second = u64::from(per_second);
        Gate { per_second, allowance: per_second * 1000, since_ms: 0, dropped: 0, tell_ms: 0 }
    }

    /// Whether one more line may pass.
    pub fn pass(&mut self, now_ms: u64) -> bool {
        let earned = now_ms.saturating_sub(self.since_ms).saturating_mul(self.per_second);
        self.allowance = self.allowance.saturating_add(earned).min(self.per_second * 1000);
        self.since_ms = now_ms;
        if self.allowance >= 1000 {
            self.allowance -= 1000;
            return true;
        }
        if self.dropped == 0 {
            self.tell_ms = now_ms + TELL_MS;
        }
        self.dropped += 1;
        false
    }

    /// The count of dropped lines, when it is time to tell it.
    pub fn take_dropped(&mut self, now_ms: u64) -> Option<u64> {
        (self.dropped > 0 && now_ms >= self.tell_ms).then(|| std::mem::take(&mut self.dropped))
    }

    /// When there is something to tell.
    pub fn next_deadline(&self) -> Option<u64> {
        (self.dropped > 0).then_some(self.tell_ms)
    }
}

/// The log pipe's reading side of one service.
#[derive(Debug)]
pub struct Intake {
    cutter: LineCutter,
    gate: Gate,
    interval_ms: u64,
    taken: usize,
    /// The pipe is not watched until then.
    resume_ms: Option<u64>,
}

impl Default for Intake {
    fn default() -> Intake {
        let gate = Gate::new(limits::SERVICE_LOG_LINES_PER_SECOND_MAX);
        Intake { cutter: LineCutter::default(), gate, interval_ms: 0, taken: 0, resume_ms: None }
    }
}

impl Intake {
    /// Takes what a service wrote; at most one pipe full, so that the others have their turn.
    pub fn read(&mut self, pipe: &OwnedFd, name: &str, journal: &mut Journal) {
        let now = clock::now_ms();
        if now.saturating_sub(self.interval_ms) >= INTERVAL_MS {
            (self.interval_ms, self.taken) = (now, 0);
        }
        let mut chunk = [0u8; 8 * 1024];
        for _ in 0..8 {
            match rustix::io::read(pipe, &mut chunk) {
                Ok(count) if count > 0 => {
                    self.taken += count;
                    let (cutter, gate) = (&mut self.cutter, &mut self.gate);
                    cutter.feed(chunk.get(..count).unwrap_or_default(), |line| {
                        if gate.pass(now) {
                            journal.service(name, line);
                        }
                    });
                }
                _ => return,
            }
        }
    }

    /// Stops watching the pipe when its service has had its share. Call after [`Intake::read`].
    pub fn pause(&mut self, pipe: &OwnedFd, token: Token, epoll: &OwnedFd) -> io::Result<()> {
        if self.taken < INTERVAL_BYTES_MAX || self.resume_ms.is_some() {
            return Ok(());
        }
        poll::rewatch(epoll, pipe, token, EventFlags::empty())?;
        self.resume_ms = Some(self.interval_ms + INTERVAL_MS);
        Ok(())
    }

    /// What is due: watches the pipe again, tells what was dropped.
    pub fn tick(
        &mut self,
        pipe: &OwnedFd,
        token: Token,
        epoll: &OwnedFd,
        name: &str,
        journal: &mut Journal,
    ) -> io::Result<()> {
        let now = clock::now_ms();
        if let Some(dropped) = self.gate.take_dropped(now) {
            journal.dropped(name, dropped, "rate");
        }
        if self.resume_ms.is_some_and(|due| due <= now) {
            self.resume_ms = None;
            poll::rewatch(epoll, pipe, token, EventFlags::IN)?;
        }
        Ok(())
    }

    /// When [`Intake::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.resume_ms, self.gate.next_deadline()].into_iter().flatten().min()
    }

    /// Gives out an unfinished line and the count: the writer has gone.
    pub fn flush(&mut self, name: &str, journal: &mut Journal) {
        self.cutter.flush(|line| journal.service(name, line));
        if let Some(dropped) = self.gate.take_dropped(u64::MAX) {
            journal.dropped(name, dropped, "rate");
        }
    }
}

/// Cuts a byte stream into lines of bounded length.
#[derive(Debug, Default)]
pub struct LineCutter {
    partial: Vec<u8>,
    /// The present line is longer than allowed; its rest is skipped.
    skipping: bool,
}

impl LineCutter {
    /// Takes bytes; calls `line` for each whole line. Bytes that are not UTF-8 are replaced.
    pub fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = limits::LOG_LINE_BYTES_MAX.saturating_sub(self.partial.len());
            if text.len() > room {
                self.skipping = true;
            }
            self.partial.extend(text.iter().take(room));
            if ended {
                self.flush(&mut line);
            }
        }
    }

    /// Gives out an unfinished line: its writer has gone.
    pub fn flush(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            if self.skipping {
                self.partial.truncate(limits::LOG_LINE_BYTES_MAX - 6);
                self.partial.extend(b" cut=1");
            }
            line(&String::from_utf8_lossy(&self.partial));
        }
        self.partial.clear();
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn cutter_joins_pieces_and_bounds_lines() {
        let mut cutter = LineCutter::default();
        let mut seen = Vec::new();
        cutter.feed(b"one\ntw", |line| seen.push(line.to_owned()));
        cutter.feed(b"o\n\n\xff\n", |line| seen.push(line.to_owned()));
        cutter.feed(&[b'x'; 100_000], |line| seen.push(line.to_owned()));
        assert!(cutter.partial.len() <= limits::LOG_LINE_BYTES_MAX);
        cutter.feed(b"\nrest", |line| seen.push(line.to_owned()));
        cutter.flush(|line| seen.push(line.to_owned()));
        assert_eq!(seen[..3], ["one", "two", "\u{fffd}"]);
        assert!(seen[3].ends_with("x cut=1") && seen[3].len() == limits::LOG_LINE_BYTES_MAX);
        assert_eq!(seen[4], "rest");
    }

    #[test]
    fn a_gate_passes_its_rate_and_counts_the_rest() {
        let mut gate = Gate::new(100);
        let at = |gate: &mut Gate, now: u64| (0..1000).filter(|_| gate.pass(now)).count();
        assert_eq!(at(&mut gate, 1_000_000), 100);
        assert_eq!(at(&mut gate, 1_000_000), 0);
        assert_eq!(at(&mut gate, 1_000_100), 10);
        assert_eq!(gate.take_dropped(1_000_500), None);
        assert_eq!(gate.take_dropped(1_001_000), Some(900 + 1000 + 990));
        assert_eq!((gate.take_dropped(1_009_000), gate.next_deadline()), (None, None));
        // A clock that stands still or goes back grants nothing.
        assert_eq!(at(&mut gate, 1_000_000), 0);
        assert_eq!(at(&mut gate, 9_000_000), 100);
    }

    #[test]
    fn a_flood_is_dropped_counted_and_paused_and_the_pipe_is_read_again() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        poll::watch(&epoll, &read, Token::Log(0), EventFlags::IN).unwrap();
        let (mut intake, mut journal) = (Intake::default(), Journal::default());
        let mut write = std::fs::File::from(write);
        let mut written = 0u64;
        while intake.resume_ms.is_none() {
            while write.write(b"flood\n").is_ok() {
                written += 1;
            }
            intake.read(&read, "s", &mut journal);
            intake.pause(&read, Token::Log(0), &epoll).unwrap();
        }
        let mut events = [rustix::event::epoll::Event {
            flags: EventFlags::empty(),
            data: rustix::event::epoll::EventData::new_u64(0),
        }; 4];
        while write.write(b"flood\n").is_ok() {
            written += 1;
        }
        let none = rustix::time::Timespec::default();
        let ready = rustix::event::epoll::wait(&epoll, &mut events[..], Some(&none)).unwrap();
        assert_eq!(ready, 0, "a paused pipe wakes nobody");
        // Later: watched again, and what was dropped is told.
        intake.resume_ms = Some(0);
        intake.gate.tell_ms = 0;
        intake.tick(&read, Token::Log(0), &epoll, "s", &mut journal).unwrap();
        let ready = rustix::event::epoll::wait(&epoll, &mut events[..], Some(&none)).unwrap();
        assert_eq!(ready, 1);
        while intake.taken > 0 && rustix::io::ioctl_fionread(&read).unwrap() > 0 {
            intake.read(&read, "s", &mut journal);
        }
        intake.flush("s", &mut journal);
        let mut cursor = journal.logs.cursor(Some("s"), 0, usize::MAX);
        let (mut kept, mut dropped) = (0, 0);
        while let Some(line) = journal.logs.next(&mut cursor, None) {
            match line.line.strip_prefix("warning log_dropped lines=") {
                Some(rest) => dropped += rest.split(' ').next().unwrap().parse::<u64>().unwrap(),
                None => kept += 1,
            }
        }
        assert!(dropped > 0);
        // The ring's own bound takes further ones; none is lost uncounted.
        let turned_over = journal.logs.forgotten("s");
        assert_eq!(written, kept + dropped + turned_over);
    }
}
