//! Files in and out of the guest, as records of `abi::files`: what a child does behind the agent's sandbox.
//!
//! Must hold: every step is resolved beneath the directory that was asked for, and no symbolic link is followed there; what goes
//! wrong with one entry is said and the rest goes on. Must never: write through a file that exists.

mod read;
mod write;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fmt::Display;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};

use abi::files::FilesError;
use abi::guest::FilesJob;

pub use read::{join, kind, link_target, record, send};
pub use write::make;

/// Directories below one another. Deeper: said, and passed over.
pub const DEPTH_MAX: usize = abi::limits::ROOTFS_DEPTH_MAX;
/// Lines on standard error; the last says how many more there were.
const COMPLAINTS_MAX: u64 = 100;
const BUFFER_BYTES: usize = 32 * 1024;

/// Why a job ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{0}")]
    Stream(#[from] FilesError),
    /// What was announced cannot be sent any more.
    #[error("`{0}` became shorter while it was read: the copy ends here")]
    Shrunk(String),
    /// The place itself.
    #[error("{0}")]
    Place(String),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        CopyError::Stream(error.into())
    }
}

/// Runs a job over the standard streams; the answer is the exit code.
pub fn run(job: &FilesJob) -> i32 {
    let mut complaints = Complaints::new(io::stderr().lock());
    let ended = root().map_err(CopyError::from).and_then(|root| match job {
        FilesJob::Read { path } => {
            send(&root, path, BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock()), &mut complaints)
        }
        FilesJob::Write { path } => {
            make(&root, path, BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock()), &mut complaints)
        }
        FilesJob::Changes | FilesJob::Claim => Err(CopyError::Place("a diff is not made here".into())),
    });
    complaints.finish(ended)
}

fn root() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// What goes wrong, in lines, counted.
#[derive(Debug)]
pub struct Complaints<W: Write> {
    out: W,
    count: u64,
}

impl<W: Write> Complaints<W> {
    /// None yet.
    pub fn new(out: W) -> Complaints<W> {
        Complaints { out, count: 0 }
    }

    /// One entry could not be copied.
    pub fn say(&mut self, path: &str, what: impl Display) {
        self.count += 1;
        if self.count <= COMPLAINTS_MAX {
            // A name is the agent's: no control character of it reaches a terminal. Nobody is left to tell when it fails.
            let shown: String = path.chars().flat_map(char::escape_debug).collect();
            let _ = writeln!(self.out, "`{shown}`: {what}");
        }
    }

    /// The last words and the exit code.
    pub fn finish(mut self, ended: Result<(), CopyError>) -> i32 {
        let more = self.count.saturating_sub(COMPLAINTS_MAX);
        if more > 0 {
            let _ = writeln!(self.out, "and {more} more");
        }
        if let Err(error) = &ended {
            let _ = writeln!(self.out, "{error}");
        }
        i32::from(self.count > 0 || ended.is_err())
    }
}

/// Opens a path that was asked for: absolute, in this root; links on the way are the agent's own, the last one is not followed.
fn open_asked(root: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// Opens what lies beneath a directory, through no link at all.
pub fn open_beneath(dir: impl AsFd, path: impl rustix::path::Arg, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests;
