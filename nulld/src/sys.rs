//! The system calls that no crate wraps safely: descriptors by number, and the way out of a fault.
//!
//! Must hold: what runs in the fault handler allocates nothing, takes no lock and touches no memory but its own stack and
//! what was prepared before (signal-safety(7)).

#![expect(
    unsafe_code,
    reason = "close_range(2), inherited descriptors, sigaction(2), execv(3), adjtimex(2) and ioctls have no safe wrapper"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::ioctl::{Getter, Updater, ioctl, opcode};

/// Descriptors of nulld are below this number: its own are bounded far below (docs/nulld.md, limits).
const NUMBER_MAX: RawFd = 4096;
/// Faults, and what sends them on purpose (signal(7)).
const FAULTS: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
/// Where nulld is in the image; the second is the same file where the first cannot be opened.
const PROGRAMS: [&CStr; 2] = [c"/system/bin/nulld", c"/proc/self/exe"];
const STACK_BYTES: usize = 64 * 1024;

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

/// Takes a descriptor that was inherited over exec, and marks it to be closed by the next one; none if it is not open. Once per
/// number, before any other is opened.
pub fn take_inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD takes no memory and fails for a number that is not open.
    let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: the descriptor is open and, by this function's contract, nobody else owns it.
    is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor above standard error but these, which are sorted. Only before anything else is opened.
pub fn close_all_but(kept: &[RawFd]) {
    let mut first = 3;
    for number in kept.iter().copied().chain([RawFd::MAX]) {
        if first < number {
            // SAFETY: by this function's contract nobody owns a descriptor in the gap; the call takes three integers.
            unsafe { libc::syscall(libc::SYS_close_range, first, number - 1, 0) };
        }
        first = number.saturating_add(1);
    }
}

/// How often nulld crashed before; [`crate::crash::parse`] reads it, and the handler adds the time.
static HISTORY: OnceLock<CString> = OnceLock::new();
/// Number of the state file's descriptor; -1: there is none.
static STATE: AtomicI32 = AtomicI32::new(-1);
/// The thread on its way out; 0: none.
static LEAVING: AtomicI32 = AtomicI32::new(0);

/// Names the descriptor of the state file to the nulld that may have to begin again.
pub fn pass_on(state: Option<RawFd>) {
    STATE.store(state.unwrap_or(-1), Ordering::SeqCst);
}

/// From now on a fault of any thread makes nulld begin again. Once.
pub fn catch_faults(history: CString) -> io::Result<()> {
    let _ = HISTORY.set(history); // a second call changes nothing
    // A stack of its own for this thread, as its usual one may be what is broken. Threads of std have one from std.
    let stack = Box::leak(vec![0u8; STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_BYTES };
    // SAFETY: the memory is never freed, and `stack` outlives the call.
    if unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in FAULTS {
        // SAFETY: all-zero is a valid sigaction; every field that matters is set below.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fault as *const () as usize;
        // Without SA_NODEFER: a fault inside the handler is the kernel's to end.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the set is valid memory; the handler has the signature that SA_SIGINFO asks for and keeps to
        // signal-safety(7).
        let outcome = unsafe {
            libc::sigfillset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Text of bounded length on the stack. What does not fit is cut; a control character becomes `?`.
#[derive(Debug)]
pub struct Text {
    bytes: [u8; 256],
    length: usize,
}

impl Text {
    pub const fn new() -> Text {
        Text { bytes: [0; 256], length: 0 }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        // The last byte stays zero: it ends the string.
        let room = self.bytes.len() - 1;
        for (byte, place) in bytes.iter().zip(self.bytes.iter_mut().take(room).skip(self.length)) {
            *place = if byte.is_ascii_control() { b'?' } else { *byte };
            self.length += 1;
        }
    }

    pub fn push_number(&mut self, mut number: u64, base: u64) {
        let mut digits = [0u8; 20];
        let mut first = digits.len();
        for (at, place) in digits.iter_mut().enumerate().rev() {
            let digit = (number % base) as u8;
            *place = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
            (number, first) = (number / base, at);
            if number == 0 {
                break;
            }
        }
        self.push(digits.get(first..).unwrap_or_default());
    }

    fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    #[cfg(test)]
    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap()
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let mut reason = Text::new();
    reason.push(match signal {
        libc::SIGSEGV => b"SIGSEGV",
        libc::SIGBUS => b"SIGBUS",
        libc::SIGILL => b"SIGILL",
        libc::SIGFPE => b"SIGFPE",
        libc::SIGABRT => b"SIGABRT",
        libc::SIGTRAP => b"SIGTRAP",
        _ => b"SIGSYS",
    });
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t; which fields hold is told by si_code (sigaction(2)).
    let (code, address, sender) = unsafe { ((*info).si_code, (*info).si_addr() as u64, (*info).si_pid()) };
    if code > 0 {
        reason.push(b" at address 0x");
        reason.push_number(address, 16);
    } else {
        reason.push(b" sent by process ");
        reason.push_number(u64::from(sender.cast_unsigned()), 10);
    }
    if let Some(instruction) = instruction(context) {
        reason.push(b", instruction 0x");
        reason.push_number(instruction, 16);
    }
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, the last one zero (prctl(2)).
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    reason.push(b", thread ");
    reason.push(name.split(|byte| *byte == 0).next().unwrap_or_default());
    begin_again(&reason)
}

/// Where the program was.
#[cfg(target_arch = "x86_64")]
fn instruction(context: *mut c_void) -> Option<u64> {
    // SAFETY: with SA_SIGINFO the third argument points to the thread's ucontext_t.
    let context = unsafe { context.cast::<libc::ucontext_t>().as_ref()? };
    context.uc_mcontext.gregs.get(libc::REG_RIP as usize).map(|address| address.cast_unsigned())
}

#[cfg(target_arch = "aarch64")]
fn instruction(context: *mut c_void) -> Option<u64> {
    // SAFETY: as above.
    let context = unsafe { context.cast::<libc::ucontext_t>().as_ref()? };
    Some(context.uc_mcontext.pc)
}

/// Replaces this process by a fresh nulld that is told why, and keeps all descriptors. Any thread may call it: execve(2) makes
/// the caller the leader and ends the others. Where it cannot, PID 1 ends, and the kernel restarts the node (`panic=5`).
pub fn begin_again(reason: &Text) -> ! {
    // SAFETY: none of these calls takes memory but the strings, which end with a zero byte and outlive them; all are
    // async-signal-safe. Descriptors stay open over exec for the nulld that begins again, which closes what it does not
    // know; nobody in this process uses them any more.
    unsafe {
        let own = libc::syscall(libc::SYS_gettid) as i32;
        match LEAVING.compare_exchange(0, own, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {}
            Err(other) if other == own => libc::_exit(1), // a fault on the way out
            // Another thread is on its way out and takes this one with it.
            Err(_) => loop {
                libc::pause();
            },
        }
        if let (Some(before), 1) = (HISTORY.get(), libc::getpid()) {
            let mut now: libc::timespec = std::mem::zeroed();
            libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
            let mut history = Text::new();
            history.push(before.to_bytes());
            history.push(b" ");
            let ms = now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000;
            history.push_number(ms, 10);
            let mut state = Text::new();
            // A number that is not one is read as none.
            state.push_number(u64::from(STATE.load(Ordering::SeqCst).cast_unsigned()), 10);
            for number in 3..NUMBER_MAX {
                libc::fcntl(number, libc::F_SETFD, 0);
            }
            let arguments = [
                c"nulld".as_ptr(),
                c"crashed".as_ptr(),
                reason.as_ptr(),
                history.as_ptr(),
                state.as_ptr(),
                std::ptr::null(),
            ];
            for program in PROGRAMS {
                libc::execv(program.as_ptr(), arguments.as_ptr());
            }
        }
        let words = b"\r\nnullbox: nulld crashed and cannot begin again, the kernel restarts the node: ";
        for part in [&words[..], reason.bytes.get(..reason.length).unwrap_or_default(), b"\r\n"] {
            libc::write(2, part.as_ptr().cast(), part.len());
        }
        libc::_exit(1)
    }
}

/// Sets a watchdog's time in seconds; the answer is the time that the driver took (WDIOC_SETTIMEOUT, kernel doc
/// watchdog/watchdog-api.rst).
pub fn watchdog_set_timeout(device: &OwnedFd, seconds: u32) -> io::Result<u32> {
    const REQUEST: u32 = opcode::read_write::<c_int>(b'W', 6);
    let mut value = c_int::try_from(seconds).map_err(io::Error::other)?;
    // SAFETY: linux/watchdog.h: WDIOC_SETTIMEOUT is _IOWR('W', 6, int): it reads and writes the one int it is given.
    unsafe { ioctl(device, Updater::<REQUEST, c_int>::new(&mut value)) }?;
    u32::try_from(value).map_err(io::Error::other)
}

/// A watchdog's time in seconds (WDIOC_GETTIMEOUT).
pub fn watchdog_timeout(device: &OwnedFd) -> io::Result<u32> {
    const REQUEST: u32 = opcode::read::<c_int>(b'W', 7);
    // SAFETY: linux/watchdog.h: WDIOC_GETTIMEOUT is _IOR('W', 7, int): it writes one int.
    let value = unsafe { ioctl(device, Getter::<REQUEST, c_int>::new()) }?;
    u32::try_from(value).map_err(io::Error::other)
}

/// What a watchdog's driver calls it (WDIOC_GETSUPPORT), without control characters.
pub fn watchdog_identity(device: &OwnedFd) -> io::Result<String> {
    /// struct watchdog_info of linux/watchdog.h.
    #[repr(C)]
    struct Info {
        _options: u32,
        _firmware_version: u32,
        identity: [u8; 32],
    }
    const REQUEST: u32 = opcode::read::<Info>(b'W', 0);
    // SAFETY: linux/watchdog.h: WDIOC_GETSUPPORT is _IOR('W', 0, struct watchdog_info): it writes one such struct, whose layout
    // is above and for which every bit pattern is valid.
    let info = unsafe { ioctl(device, Getter::<REQUEST, Info>::new()) }?;
    let name = info.identity.iter().take_while(|byte| **byte != 0);
    Ok(name.map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' }).collect())
}

/// Tells the kernel's clock discipline how far off the wall clock is: it slews, and drives the hardware clock from then on
/// (adjtimex(2)). `offset_ns`: what is to be added, at most half a second either way; `constant`: how gently, 0 to 10;
/// `error_us`: how wrong the source may be. Needs CAP_SYS_TIME.
pub fn discipline_clock(offset_ns: i64, constant: u8, error_us: u32) -> io::Result<()> {
    // SAFETY: struct timex holds integers only, for which zero is a value.
    let mut order: libc::timex = unsafe { std::mem::zeroed() };
    order.modes = libc::ADJ_OFFSET
        | libc::ADJ_STATUS
        | libc::ADJ_NANO
        | libc::ADJ_TIMECONST
        | libc::ADJ_MAXERROR
        | libc::ADJ_ESTERROR;
    // Without STA_UNSYNC the kernel writes the hardware clock every 11 minutes.
    order.status = libc::STA_PLL;
    order.offset = offset_ns;
    order.constant = i64::from(constant);
    order.maxerror = i64::from(error_us);
    order.esterror = i64::from(error_us);
    // SAFETY: the kernel reads and writes the one struct, which lives until the call is over.
    match unsafe { libc::adjtimex(&raw mut order) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_and_ends_with_a_zero() {
        let mut text = Text::new();
        text.push(b"a\x1b\n");
        text.push_number(0, 10);
        text.push_number(u64::MAX, 10);
        text.push_number(0xdead, 16);
        assert_eq!(text.text(), "a??018446744073709551615dead");
        for _ in 0..100 {
            text.push(b"0123456789");
        }
        assert_eq!((text.length, text.bytes[255]), (255, 0));
    }

    #[test]
    fn a_closed_number_is_not_taken() {
        assert!(take_inherited(-1).is_none() && take_inherited(4000).is_none());
    }
}
