//! One JSON value a line over a Unix stream socket, with file descriptors beside a line (unix(7), SCM_RIGHTS).
//!
//! Must hold: a line is at most [`limits::LINE_BYTES_MAX`]; at most [`limits::FDS_PER_MESSAGE_MAX`] descriptors wait.
//! Must never: leave a descriptor open that nobody asked for.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

use crate::limits;

/// Why a line could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("a line of more than {} bytes", limits::LINE_BYTES_MAX)]
    LineTooLong,
    #[error("the connection ended within a line")]
    CutLine,
    #[error("the line is not UTF-8")]
    NotUtf8,
    #[error("cannot encode: {0}")]
    Encode(serde_json::Error),
}

/// What one read takes at most.
const CHUNK_BYTES: usize = 8192;

/// A buffered connection. Reading and writing may happen on two threads through [`Connection::writer`].
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    buffer: VecDeque<u8>,
    fds: VecDeque<OwnedFd>,
    /// What is being read must not stay in memory.
    is_secret: bool,
}

impl Connection {
    /// Wraps a connected stream.
    pub fn new(stream: UnixStream) -> Connection {
        Connection { stream, buffer: VecDeque::new(), fds: VecDeque::new(), is_secret: false }
    }

    /// Connects to a socket in the file system.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Connection> {
        UnixStream::connect(path).map(Connection::new)
    }

    /// The stream, for polling, time limits and peer credentials.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Bounds each read and write; `None` waits for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)?;
        self.stream.set_write_timeout(timeout)
    }

    /// A second handle that writes lines, for another thread.
    pub fn writer(&self) -> io::Result<LineWriter> {
        Ok(LineWriter { stream: self.stream.try_clone()? })
    }

    /// The next line without its end; `None` when the peer closed between lines.
    pub fn read_line(&mut self) -> Result<Option<String>, WireError> {
        let mut searched = 0;
        loop {
            if let Some(found) = self.buffer.iter().skip(searched).position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..searched + found).collect();
                self.buffer.pop_front();
                if !self.is_secret {
                    // One long line does not hold its room for the life of the connection.
                    self.buffer.shrink_to(CHUNK_BYTES);
                }
                return String::from_utf8(line).map(Some).map_err(|_| WireError::NotUtf8);
            }
            searched = self.buffer.len();
            if searched >= limits::LINE_BYTES_MAX {
                return Err(WireError::LineTooLong);
            }
            if self.fill()? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(WireError::CutLine) };
            }
        }
    }

    /// Whether a line was received that nobody read: it is there without waiting.
    pub fn has_line(&self) -> bool {
        self.buffer.contains(&b'\n')
    }

    /// The next line as [`Connection::read_line`], where it is a secret: nothing of it stays in the connection.
    pub fn read_secret_line(&mut self) -> Result<Option<Zeroizing<String>>, WireError> {
        // Room for all of it, so that growing leaves no copy behind.
        self.buffer.reserve(2 * limits::LINE_BYTES_MAX);
        self.is_secret = true;
        let line = self.read_line();
        self.is_secret = false;
        let rest: Vec<u8> = self.buffer.drain(..).collect();
        self.buffer.resize(self.buffer.capacity(), 0);
        self.buffer.as_mut_slices().0.zeroize();
        self.buffer.as_mut_slices().1.zeroize();
        self.buffer.clear();
        self.buffer.extend(rest);
        Ok(line?.map(Zeroizing::new))
    }

    /// Descriptors that came with what was read so far.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.fds.drain(..).collect()
    }

    /// Writes one value and its line end.
    pub fn write_line(&mut self, value: &impl Serialize) -> Result<(), WireError> {
        write_line(&self.stream, value, &[])
    }

    /// Writes a line that is encoded already, without its end: what it was made from need not be kept meanwhile.
    pub fn write_encoded(&mut self, line: Vec<u8>) -> Result<(), WireError> {
        write_bytes(&self.stream, line, &[])
    }

    /// Writes one value with descriptors beside it.
    pub fn write_line_with_fds(
        &mut self,
        value: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        write_line(&self.stream, value, fds)
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0u8; CHUNK_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::FDS_PER_MESSAGE_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match rustix::net::recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut chunk)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                other => break other?,
            }
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > limits::FDS_PER_MESSAGE_MAX {
            self.fds.clear();
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
        }
        self.buffer.extend(chunk.iter().take(received.bytes));
        if self.is_secret {
            chunk.zeroize();
        }
        Ok(received.bytes)
    }
}

impl Read for Connection {
    /// Raw bytes after the last line read: a body.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && self.fill()? == 0 {
            return Ok(0);
        }
        self.buffer.read(out)
    }
}

/// The writing half of a [`Connection`]. Each line goes out whole; share it behind a mutex.
#[derive(Debug)]
pub struct LineWriter {
    stream: UnixStream,
}

impl LineWriter {
    /// Writes one value and its line end.
    pub fn write_line(&mut self, value: &impl Serialize) -> Result<(), WireError> {
        write_line(&self.stream, value, &[])
    }

    /// A further handle.
    pub fn try_clone(&self) -> io::Result<LineWriter> {
        Ok(LineWriter { stream: self.stream.try_clone()? })
    }
}

fn write_line(stream: &UnixStream, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    write_bytes(stream, serde_json::to_vec(value).map_err(WireError::Encode)?, fds)
}

fn write_bytes(stream: &UnixStream, mut line: Vec<u8>, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    line.reserve_exact(1);
    line.push(b'\n');
    if line.len() > limits::LINE_BYTES_MAX {
        return Err(WireError::LineTooLong);
    }
    let mut rest = line.as_slice();
    let mut fds = fds;
    while !rest.is_empty() {
        let sent = send(stream.as_fd(), rest, fds)?;
        fds = &[];
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// One sendmsg(2) with descriptors beside the first byte; returns the bytes taken.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::FDS_PER_MESSAGE_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => continue,
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_and_a_body_come_in_order() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"{\"x\":1}\n[2]\nbody").unwrap();
        drop(a);
        let mut b = Connection::new(b);
        assert_eq!(b.read_line().unwrap().unwrap(), "{\"x\":1}");
        assert_eq!(b.read_line().unwrap().unwrap(), "[2]");
        let mut body = String::new();
        b.read_to_string(&mut body).unwrap();
        assert_eq!(body, "body");
        assert!(b.read_line().unwrap().is_none());
    }

    #[test]
    fn a_secret_line_is_read_whole_and_takes_nothing_along() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let secret = "s3cret-".repeat(1000);
        a.write_all(format!("first\n{secret}\nnext\nrest").as_bytes()).unwrap();
        drop(a);
        let mut b = Connection::new(b);
        assert_eq!(b.read_line().unwrap().unwrap(), "first");
        assert_eq!(b.read_secret_line().unwrap().unwrap().as_str(), secret);
        assert_eq!(b.read_line().unwrap().unwrap(), "next");
        let mut rest = String::new();
        b.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
    }

    #[test]
    fn a_line_above_the_limit_is_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || a.write_all(&vec![b'x'; limits::LINE_BYTES_MAX * 2]));
        assert!(matches!(Connection::new(b).read_line(), Err(WireError::LineTooLong)));
        let _ = writer.join().unwrap(); // the reader hung up: an error is expected
    }

    #[test]
    fn a_cut_line_is_an_error() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"{\"x\"").unwrap();
        drop(a);
        assert!(matches!(Connection::new(b).read_line(), Err(WireError::CutLine)));
    }

    #[test]
    fn descriptors_travel_with_their_line() {
        let (a, b) = UnixStream::pair().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        Connection::new(a).write_line_with_fds(&1, &[near.as_fd()]).unwrap();
        drop(near);
        let mut b = Connection::new(b);
        assert_eq!(b.read_line().unwrap().unwrap(), "1");
        let fds = b.take_fds();
        assert_eq!(fds.len(), 1);
        let mut passed = UnixStream::from(fds.into_iter().next().unwrap());
        passed.write_all(b"hi").unwrap();
        drop(passed);
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
    }
}
