//! The system calls that have no safe wrapper elsewhere. One call each.

#![expect(unsafe_code, reason = "close_range(2) and unshare(2) have no safe wrapper")]

use rustix::thread::UnshareFlags;
use std::io;

/// Closes every descriptor from `first` on, close_range(2). Only for a process that is about to become something else:
/// whoever owned one of them must not touch it again.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: cage-vmm calls this once, first thing and single-threaded, when nothing in it owns a descriptor yet.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0u32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the given namespaces, unshare(2). Of the calling thread only: its file descriptors stay shared.
pub fn leave_namespaces(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)); // would split the descriptor table under safe code
    }
    // SAFETY: without FILES the call changes no memory and no descriptor of this process.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}
