//! The one system call that no crate wraps safely.

#![expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]

use std::io;

/// Marks every descriptor from `first` on to be closed by exec (close_range(2), Linux 5.11).
pub fn close_on_exec_from(first: i32) -> io::Result<()> {
    let flags = libc::c_uint::from(4u8); // CLOSE_RANGE_CLOEXEC, which musl's headers lack
    // SAFETY: with CLOSE_RANGE_CLOEXEC no descriptor is closed, so no owner of one is left with a number that is not its
    // own; the call takes three integers and no memory.
    match unsafe { libc::syscall(libc::SYS_close_range, first.cast_unsigned(), libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
