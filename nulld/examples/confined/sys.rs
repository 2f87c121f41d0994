//! Any system call by its number, so that a filter can be tried with calls that no library makes.

#![expect(unsafe_code, reason = "syscall(2) by number is what is tried here")]

use std::io;

/// Makes the call. Only for calls that harm nothing in this process with these arguments.
pub fn call(number: i64, args: [u64; 4]) -> io::Result<i64> {
    // SAFETY: the tests pass small numbers, no addresses: a call that wants memory answers EFAULT.
    match unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], 0u64, 0u64) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}
