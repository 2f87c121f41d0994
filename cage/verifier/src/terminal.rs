//! A terminal for a channel: the verifier holds the master, the agent's process its other end (pty(7)).
//!
//! Must hold: the other end is taken from the master itself, not by a path that an agent could have a hand in; it belongs to the
//! agent's user, so that programs can open it again by name.

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use abi::guest::{GUEST_UID, TerminalSize};

/// devpts(5) of the guest, mounted before any agent code ran.
const MULTIPLEXER: &str = "/dev/pts/ptmx";
/// The group that owns terminals in every distribution.
const TTY_GROUP: u32 = 5;

/// Both ends of a new terminal: the verifier's, which does not block, and the agent's.
pub fn open(size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open(MULTIPLEXER, flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let agent = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::fs::fchown(&agent, Some(Uid::from_raw(GUEST_UID)), Some(Gid::from_raw(TTY_GROUP)))?;
    rustix::fs::fchmod(&agent, Mode::from_raw_mode(0o620))?;
    resize(&master, size)?;
    Ok((master, agent))
}

/// The foreground processes get SIGWINCH.
pub fn resize(master: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

/// What a user types for end of file, after a line that may be unfinished. Empty where the terminal is raw and nothing means that.
pub fn end_of_file(master: impl AsFd, unfinished: bool) -> Vec<u8> {
    match rustix::termios::tcgetattr(master) {
        Ok(modes) if modes.local_modes.contains(LocalModes::ICANON) => {
            // The first one ends the line, a second one then stands alone.
            vec![modes.special_codes[SpecialCodeIndex::VEOF]; 1 + usize::from(unfinished)]
        }
        _ => Vec::new(),
    }
}
