//! The system calls that have no safe wrapper elsewhere. One call each.

#![expect(unsafe_code, reason = "close_range(2), unshare(2) and a handler of SIGSYS have no safe wrapper")]

use libc::{c_int, c_void};
use rustix::thread::UnshareFlags;
use std::ffi::CStr;
use std::io::{self, Write};

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

/// What SIGSYS carries (sigaction(2), `si_call_addr` and after it).
#[repr(C)]
struct Refused {
    signal: c_int,
    error: c_int,
    code: c_int,
    _padding: c_int,
    address: *const c_void,
    call: c_int,
    architecture: u32,
}

/// Refused system calls are named on standard error from now on, and end the process (sigaction(2)). Call before the first
/// filter, after which nobody can change it.
pub fn name_refused_calls() -> io::Result<()> {
    // SAFETY: all zeros is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *const Refused, *const c_void) = refused;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature of SA_SIGINFO and does only what signal-safety(7) allows.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Must never allocate, lock or return.
extern "C" fn refused(_: c_int, info: *const Refused, _: *const c_void) {
    // SAFETY: SA_SIGINFO: the kernel gives a siginfo_t, which for SIGSYS begins as `Refused` does.
    let call = i64::from(unsafe { (*info).call });
    let mut thread = [0u8; 16];
    // SAFETY: PR_GET_NAME fills 16 bytes, NUL included.
    unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
    let thread = CStr::from_bytes_until_nul(&thread).ok().and_then(|name| name.to_str().ok()).unwrap_or("?");
    let mut line = [0u8; 160];
    let mut rest = &mut line[..];
    // It has room: the longest name of a call has 23 bytes. Numbers and texts are formatted without allocation.
    let _ = writeln!(
        rest,
        "\n{} {} ({call}) in thread {thread}",
        crate::jail::REFUSED,
        seccomp::names::name(call)
    );
    let length = 160 - rest.len();
    // SAFETY: `length` bytes of `line`. Then the call that its filter answers with death, so that the status tells SIGSYS.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        libc::syscall(libc::SYS_rt_sigaction, libc::SIGSYS, 0, 0, 8);
        libc::_exit(1)
    }
}
