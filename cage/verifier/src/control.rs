//! The control connection: frames in, frames out, neither ever blocking the loop.
//!
//! Must hold: output waits here in a bounded queue. Above [`QUEUE_BYTES_HIGH`] no pipe of the agent is read, so its writes
//! block until the host takes what is there; only reports (exit, failure) may go above it.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;
use serde::Serialize;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use abi::guest::{CONTROL_PORT, Failed, Frame, FrameError, Kind};
use verifier::frames::FrameBuffer;

use crate::sys;

/// Where back-pressure begins.
pub const QUEUE_BYTES_HIGH: usize = 256 * 1024;
/// How long the host's end may take to be there when the guest starts.
const CONNECT_TIME: Duration = Duration::from_secs(20);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 64 * 1024;

/// The connection.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    input: FrameBuffer,
    output: VecDeque<u8>,
    closed: bool,
}

impl Control {
    /// Connects to the host. Before any agent code runs, so that this is the VM's first connection.
    pub fn connect() -> io::Result<Control> {
        let deadline = Instant::now() + CONNECT_TIME;
        loop {
            let socket = sys::vsock(false)?;
            match sys::vsock_connect(socket.as_fd(), CONTROL_PORT) {
                Ok(()) => return Control::over(socket),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(CONNECT_PAUSE),
            }
        }
    }

    /// Takes over a connected stream socket.
    pub fn over(socket: OwnedFd) -> io::Result<Control> {
        rustix::fs::fcntl_setfl(&socket, OFlags::NONBLOCK)?;
        Ok(Control { socket, input: FrameBuffer::default(), output: VecDeque::new(), closed: false })
    }

    /// The socket, to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to poll for.
    pub fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.output.is_empty());
        flags
    }

    /// Whether pipes may be read: their output has room here.
    pub fn has_room(&self) -> bool {
        self.output.len() < QUEUE_BYTES_HIGH
    }

    /// Whether everything was handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Queues a JSON frame.
    pub fn send<T: Serialize>(&mut self, kind: Kind, channel: u32, payload: &T) -> Result<(), FrameError> {
        Frame::json(kind, channel, payload)?.write_to(&mut self.output)
    }

    /// Queues a frame as it is.
    pub fn pass(&mut self, frame: &Frame) -> Result<(), FrameError> {
        frame.write_to(&mut self.output)
    }

    /// Queues a data frame.
    pub fn send_data(&mut self, kind: Kind, channel: u32, payload: &[u8]) -> Result<(), FrameError> {
        Frame::data(kind, channel, payload).write_to(&mut self.output)
    }

    /// Queues a failure.
    pub fn send_failed(&mut self, channel: u32, stage: &str, error: String) -> Result<(), FrameError> {
        let stage = stage.to_owned();
        self.send(Kind::Failed, channel, &Failed { stage, error })
    }

    /// Writes what the kernel takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let (first, _) = self.output.as_slices();
            match rustix::net::send(&self.socket, first, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there, once. `false`: the host closed the connection.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut chunk = vec![0; READ_BYTES];
        match rustix::io::read(&self.socket, &mut chunk) {
            Ok(0) => {
                self.closed = true;
                Ok(false)
            }
            Ok(count) => {
                self.input.push(chunk.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The next whole frame of what was received.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.input.next_frame()
    }

    /// Waits for one frame. For the time before the loop.
    pub fn wait_for_frame(&mut self, time: Duration) -> Result<Frame, FrameError> {
        let deadline = Instant::now() + time;
        loop {
            self.flush()?;
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            self.wait(PollFlags::IN, deadline)?;
            if !self.receive()? {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Writes everything, says that no more comes, and waits until the host has seen it or the time is over. What is still in
    /// the device when a guest ends is lost.
    pub fn finish(&mut self, time: Duration) -> io::Result<()> {
        let deadline = Instant::now() + time;
        while !self.output.is_empty() {
            self.flush()?;
            if !self.output.is_empty() {
                self.wait(PollFlags::OUT, deadline)?;
            }
        }
        rustix::net::shutdown(&self.socket, Shutdown::Write)?;
        while !self.closed {
            self.wait(PollFlags::IN, deadline)?;
            self.receive()?;
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::new(&self.socket, events)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
