//! The pipe on which a service says that it is ready, that it is alive, and how it is ([`abi::notice`]).
//!
//! It is one end of a socket pair, so that notices can be looked at first and taken later: a crash of nulld in between, before
//! it has written down what came of them, loses none.
//!
//! Must hold: whatever a service writes costs nulld a bounded time: one read a turn, and a pipe on which too much comes is
//! not watched for the rest of the second. What is not a notice is counted and ignored.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::limits;
use abi::notice::Notice;
use rustix::event::epoll;
use rustix::net::RecvFlags;

use crate::poll::{self, Token};

/// Lines taken in one second. More: the pipe is left alone until the next one.
const LINES_PER_SECOND_MAX: u32 = 50;

/// nulld's end of the pipe, and what came on it.
#[derive(Debug, Default)]
pub struct Notices {
    pipe: Option<OwnedFd>,
    lines: Lines,
    /// The second, and the lines that came in it.
    seen: (u64, u32),
    resumes_ms: Option<u64>,
    /// Bytes that were looked at and not taken yet.
    looked_at: usize,
    /// The latest status.
    pub says: String,
}

impl Notices {
    /// Watches a fresh pipe.
    pub fn watch(pipe: OwnedFd, index: u32, epoll: &OwnedFd) -> io::Result<Notices> {
        poll::watch(epoll, &pipe, Token::Notify(index), epoll::EventFlags::IN)?;
        Ok(Notices { pipe: Some(pipe), ..Notices::default() })
    }

    /// The pipe, while its writer has it open.
    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Lines that were no notices.
    pub fn junk(&self) -> u64 {
        self.lines.junk
    }

    /// What has come; at most so many bytes, so that one service cannot keep nulld from the others. They stay in the socket
    /// until the next call, before which the loop has written its state.
    pub fn read(&mut self, now_ms: u64, epoll: &OwnedFd) -> Vec<Notice> {
        let mut bytes = [0u8; 16 * 1024];
        let Some(pipe) = &self.pipe else { return Vec::new() };
        while self.looked_at > 0 {
            let most = self.looked_at.min(bytes.len());
            match rustix::net::recv(pipe, bytes.get_mut(..most).unwrap_or_default(), RecvFlags::DONTWAIT) {
                Ok((count, _)) if count > 0 => self.looked_at -= count,
                _ => self.looked_at = 0, // they were there; without them there is nothing to take
            }
        }
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let count = match rustix::net::recv(pipe, &mut bytes[..], flags).map(|(count, _)| count) {
            Ok(0) => {
                // Closed: it will be late, or silent, or it is about to end.
                (self.pipe, self.resumes_ms) = (None, None);
                return Vec::new();
            }
            Ok(count) => count,
            Err(_) => return Vec::new(),
        };
        self.looked_at = count;
        let (notices, lines) = self.lines.feed(bytes.get(..count).unwrap_or_default());
        let second = now_ms / 1000;
        if self.seen.0 != second {
            self.seen = (second, 0);
        }
        self.seen.1 = self.seen.1.saturating_add(lines);
        // One that cannot be taken out is watched on: it costs time, and stays bounded by the reads of a turn.
        if self.seen.1 > LINES_PER_SECOND_MAX
            && self.resumes_ms.is_none()
            && epoll::delete(epoll, pipe).is_ok()
        {
            self.resumes_ms = Some((second + 1) * 1000);
        }
        notices
    }

    /// When the pipe is watched again.
    pub fn resumes_ms(&self) -> Option<u64> {
        self.resumes_ms
    }

    /// Watches it again when it is time.
    pub fn resume(&mut self, now_ms: u64, index: u32, epoll: &OwnedFd) -> io::Result<()> {
        if let (Some(pipe), Some(when)) = (&self.pipe, self.resumes_ms)
            && when <= now_ms
        {
            self.resumes_ms = None;
            poll::watch(epoll, pipe, Token::Notify(index), epoll::EventFlags::IN)?;
        }
        Ok(())
    }
}

/// Cuts what comes into lines, and lines into notices.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    /// The present line is too long; its rest is skipped.
    skipping: bool,
    junk: u64,
}

impl Lines {
    /// The notices in these bytes, and how many lines there were. Of several statuses only the last one counts.
    fn feed(&mut self, bytes: &[u8]) -> (Vec<Notice>, u32) {
        let (mut notices, mut lines) = (Vec::new(), 0u32);
        for byte in bytes {
            if *byte != b'\n' {
                self.skipping |= self.partial.len() + 1 >= limits::NOTICE_BYTES_MAX;
                if !self.skipping {
                    self.partial.push(*byte);
                }
                continue;
            }
            lines = lines.saturating_add(1);
            let line = std::mem::take(&mut self.partial);
            let is_whole = !std::mem::take(&mut self.skipping);
            match std::str::from_utf8(&line).ok().filter(|_| is_whole).and_then(Notice::parse) {
                Some(notice) => {
                    notices.retain(|other| std::mem::discriminant(other) != std::mem::discriminant(&notice));
                    notices.push(notice);
                }
                None => self.junk = self.junk.saturating_add(1),
            }
        }
        (notices, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Notice {
        Notice::Status(text.to_owned())
    }

    #[test]
    fn notices_come_whole_however_they_are_cut() {
        let text = "ready\nstatus one\nalive\nstatus two\n";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                seen.extend(lines.feed(piece).0);
            }
            assert!(seen.contains(&Notice::Ready) && seen.contains(&Notice::Alive), "{size}");
            let last = seen.iter().rev().find(|notice| matches!(notice, Notice::Status(_)));
            assert_eq!(last, Some(&status("two")), "{size}");
            assert_eq!((lines.junk, lines.partial.len()), (0, 0));
        }
    }

    #[test]
    fn junk_is_counted_bounded_and_hides_nothing() {
        let mut lines = Lines::default();
        let mut bytes = vec![b'x'; 100_000];
        bytes.extend(b"\nREADY\n\xff\xfe\n\nstatus \x1b[2J\nready\n");
        let (seen, count) = lines.feed(&bytes);
        assert_eq!((seen, count, lines.junk), (vec![Notice::Ready], 6, 5));
        lines.feed(&[b'y'; 10_000]);
        assert!(lines.partial.len() < limits::NOTICE_BYTES_MAX);
    }

    #[test]
    fn what_was_looked_at_is_there_for_the_next_nulld_until_the_next_look() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (read, write) = std::os::unix::net::UnixStream::pair().unwrap();
        let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
        let copy = read.try_clone().unwrap();
        let mut notices = Notices::watch(read, 0, &epoll).unwrap();
        rustix::io::write(&write, b"ready\n").unwrap();
        assert_eq!(notices.read(0, &epoll), [Notice::Ready]);
        // A crash here: the next one sees it again.
        let mut next = Notices { pipe: Some(copy), ..Notices::default() };
        assert_eq!(next.read(0, &epoll), [Notice::Ready]);
        rustix::io::write(&write, b"alive\n").unwrap();
        assert_eq!(notices.read(0, &epoll), [Notice::Alive]);
        assert!(notices.read(0, &epoll).is_empty() && notices.pipe().is_some());
        drop(write);
        assert!(notices.read(0, &epoll).is_empty() && notices.pipe().is_none());
    }

    #[test]
    fn a_pipe_that_floods_is_left_alone_for_the_rest_of_the_second() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (read, write) = std::os::unix::net::UnixStream::pair().unwrap();
        let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
        let mut notices = Notices::watch(read, 0, &epoll).unwrap();
        let is_ready = || {
            let mut events = Vec::with_capacity(4);
            let none = rustix::time::Timespec::default();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&none)).unwrap() > 0
        };
        rustix::io::write(&write, &b"alive\n".repeat(5_000)).unwrap();
        assert!(is_ready());
        assert_eq!(notices.read(10_200, &epoll), [Notice::Alive]);
        assert!(!is_ready() && notices.resumes_ms() == Some(11_000));
        notices.resume(10_900, 0, &epoll).unwrap();
        assert!(!is_ready());
        notices.resume(11_000, 0, &epoll).unwrap();
        assert!(is_ready());
    }
}
