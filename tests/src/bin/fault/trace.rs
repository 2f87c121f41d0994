//! The system calls of VMMs, recorded from their first one under the filter: follows cage into every VMM it starts (ptrace(2)).
//!
//! Each distinct call stands once in the record: `THREAD<tab>NUMBER<tab>ARG0<tab>ARG1<tab>ARG2`, with those arguments only that
//! the filters look at. The VMM runs on as before when the tracer ends.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Write;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Where the record is.
pub const RECORD: &str = "/run/fault/trace";

/// What is known of a traced thread.
#[derive(Debug, Clone, Copy, Default)]
struct Traced {
    /// Of a VMM, not of cage.
    vmm: bool,
    /// Its filter stands: earlier calls are the jail's own.
    filtered: bool,
}

/// Follows the process and all that it starts, until it is killed.
pub fn main(cage: &str) -> Result<()> {
    let mut record = fs::File::create(RECORD)?;
    let follow = Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACESYSGOOD;
    let mut threads: HashMap<Pid, Traced> = HashMap::new();
    for entry in fs::read_dir(format!("/proc/{cage}/task"))?.flatten() {
        let thread = Pid::from_raw(entry.file_name().to_str().context("a number")?.parse()?);
        ptrace::seize(thread, follow).with_context(|| format!("thread {thread} of cage"))?;
        threads.insert(thread, Traced::default());
    }
    writeln!(record, "following\t{}\t0\t0\t0", threads.len())?;
    let (mut seen, mut made) = (BTreeSet::new(), HashSet::new());
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => return Ok(()),
            other => other?,
        };
        let Some(thread) = status.pid() else { continue };
        // The first stop of a new thread waits until it is known whose it is.
        let Some(known) = threads.get_mut(&thread) else {
            made.insert(thread);
            continue;
        };
        let mut pass = None;
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                threads.remove(&thread);
                continue;
            }
            WaitStatus::PtraceSyscall(_) if known.vmm => {
                let call = entered(thread);
                known.filtered |= call.is_some_and(|call| call.0 == libc::SYS_seccomp);
                if let Some(line) = call.filter(|_| known.filtered).map(|call| told(thread, call))
                    && seen.insert(line.clone())
                {
                    writeln!(record, "{line}")?;
                }
            }
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => {
                let program = fs::read_link(format!("/proc/{thread}/exe"));
                *known =
                    Traced { vmm: program.is_ok_and(|path| path.ends_with("cage-vmm")), filtered: false };
            }
            WaitStatus::PtraceEvent(
                _,
                _,
                libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK,
            ) => {
                // Its own first stop may come before this one or after.
                let (new, of) = (Pid::from_raw(ptrace::getevent(thread)? as i32), *known);
                threads.insert(new, of);
                if made.remove(&new) {
                    go_on(new, of, None)?;
                }
            }
            WaitStatus::Stopped(_, signal) => pass = Some(signal),
            _ => {}
        }
        let known = threads.get(&thread).copied().unwrap_or_default();
        go_on(thread, known, pass)?;
    }
}

fn go_on(thread: Pid, known: Traced, signal: Option<Signal>) -> Result<()> {
    let outcome = match known.vmm {
        true => ptrace::syscall(thread, signal),
        false => ptrace::cont(thread, signal),
    };
    match outcome {
        Err(Errno::ESRCH) => Ok(()), // killed meanwhile
        other => Ok(other?),
    }
}

/// The call and its first arguments, if the thread has just begun one: the kernel marks that by ENOSYS as its result so far.
fn entered(thread: Pid) -> Option<(i64, [u64; 3])> {
    let registers = ptrace::getregs(thread).ok()?;
    let begins = registers.rax.cast_signed() == -i64::from(libc::ENOSYS);
    begins.then(|| (registers.orig_rax.cast_signed(), [registers.rdi, registers.rsi, registers.rdx]))
}

fn told(thread: Pid, (call, args): (i64, [u64; 3])) -> String {
    let looked_at = match call {
        libc::SYS_ioctl => [0, args[1], 0],
        libc::SYS_mmap | libc::SYS_mprotect => [0, 0, args[2]],
        libc::SYS_clone | libc::SYS_prctl | libc::SYS_socket | libc::SYS_seccomp | libc::SYS_rt_sigaction => {
            [args[0], 0, 0]
        }
        _ => [0; 3],
    };
    let name = fs::read_to_string(format!("/proc/{thread}/comm")).unwrap_or_default();
    let [first, second, third] = looked_at;
    format!("{}\t{call}\t{first}\t{second}\t{third}", name.trim())
}
