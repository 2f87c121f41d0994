//! Pipes for splice(2): bytes pass from one socket to another without being copied to this process.
//!
//! Must hold: a pipe that holds bytes is never used for another connection; an agent has a bounded number of them, so that
//! connections whose bytes nobody takes hold a bounded part of the kernel's memory.

use abi::limits;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::agent::Slot;

/// Bytes of one splice, and what the kernel gives a new pipe (pipe(7)). Larger pipes were measured: docs/egress.md.
const PIPE_BYTES: usize = 64 * 1024;

/// Pipes that nobody uses, kept for the next one.
#[derive(Debug, Default)]
pub struct Pipes {
    spare: Mutex<Vec<Pipe>>,
}

/// Both ends of a pipe. Empty, when it stands among the spare ones.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipes {
    /// A pipe for one direction of a connection, while bytes wait there; none when the kernel has none.
    pub fn take(&self, slot: Slot) -> Option<Taken<'_>> {
        let spare = self.spare().pop();
        let pipe = match spare {
            Some(pipe) => pipe,
            None => {
                let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                Pipe { out, into }
            }
        };
        Some(Taken { pipes: self, pipe: Some(pipe), waiting: 0, _slot: slot })
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Pipe>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe in use; given back when it is dropped empty, else closed with what is in it.
#[derive(Debug)]
pub struct Taken<'a> {
    pipes: &'a Pipes,
    pipe: Option<Pipe>,
    waiting: usize,
    _slot: Slot,
}

impl Taken<'_> {
    /// Bytes in it.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes bytes from a socket that does not block, into the empty pipe; 0 at the end.
    pub fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let pipe = self.pipe()?;
        let moved = move_bytes(from, &pipe.into, PIPE_BYTES)?;
        self.waiting += moved;
        Ok(moved)
    }

    /// Gives bytes to a socket that does not block.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<()> {
        let pipe = self.pipe()?;
        let moved = move_bytes(&pipe.out, to, self.waiting)?;
        if moved == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.waiting = self.waiting.saturating_sub(moved);
        Ok(())
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        self.pipe.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take().filter(|_| self.waiting == 0) else { return };
        let mut spare = self.pipes.spare();
        if spare.len() < limits::PROXY_PIPES_SPARE_MAX {
            spare.push(pipe);
        }
    }
}

fn move_bytes(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    loop {
        match splice(&from, None, &to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
            Err(Errno::INTR) => {}
            moved => return Ok(moved?),
        }
    }
}
