//! Which system calls each thread of a VMM makes, by seccomp's user notifications (seccomp_unotify(2)): a node lets nobody trace.
//!
//! [`begin`] stands in the VMM's place, puts a filter on itself that makes every call wait for a word of the listener's, hands the
//! listener over and becomes the VMM. The VMM's own filters come on top, and their refusals count more than the wait: what is
//! seen here is what they let through. Must hold: the watcher shares no memory, and so no lock, with what it watches.

#![expect(unsafe_code, reason = "seccomp(2) with a listener and its ioctls have no safe wrapper")]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

use abi::wire::Connection;
use anyhow::{Context, Result};
use cage::jail::calls::{Role, role};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use system_tests::rules::Made;

/// Where the watcher waits for the listener.
pub const SOCKET: &str = "/run/fault/calls/watch";
/// _IOWR('!', 0, struct seccomp_notif) and _IOWR('!', 1, struct seccomp_notif_resp) of linux/seccomp.h.
const RECEIVE: u64 = 0xC050_2100;
const SEND: u64 = 0xC018_2101;
/// The first thread's filters, in the order in which cage-vmm installs them: the one that keeps the handler, Setup's, Loop's.
const FIRST_THREAD: [Option<Role>; 3] = [None, Some(Role::Setup), Some(Role::Loop)];

/// In the VMM's place. Between the filter and the hand-over nothing may be called but sendmsg(2), which no VMM may call.
pub fn begin(vmm: &str) -> Result<()> {
    let watcher = UnixStream::connect(SOCKET)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let listener = wait_at_each_call_but(libc::SYS_sendmsg)?;
    let passed = [listener.as_fd()];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    beside.push(SendAncillaryMessage::ScmRights(&passed));
    sendmsg(&watcher, &[IoSlice::new(b"\n")], &mut beside, SendFlags::empty())?;
    drop(listener);
    Err(Command::new(vmm).exec().into())
}

fn wait_at_each_call_but(free: i64) -> io::Result<OwnedFd> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The call's number is the first word of struct seccomp_data.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, free as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the program lives across the call, which copies it. It is root's, so no_new_privs need not be set.
    let fd =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match RawFd::try_from(fd) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What was seen, each distinct call once, and how many calls there were in all.
#[derive(Debug, Default)]
pub struct Record {
    threads: HashMap<u32, Thread>,
    pub made: BTreeSet<Made>,
    pub total: u64,
}

#[derive(Debug, Default)]
struct Thread {
    /// The process's first.
    is_first: bool,
    filters: usize,
    /// Of the filter that stands; none before there is one.
    role: Option<Role>,
}

/// Waits for one VMM on [`SOCKET`] and lets it do all it wants, until none of it is left.
pub fn watch(socket: &UnixListener) -> Result<Record> {
    let mut connection = Connection::new(socket.accept()?.0);
    connection.read_line()?;
    let listener = connection.take_fds().pop().context("no listener came")?;
    let mut record = Record::default();
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN)];
        poll(&mut fds, None)?;
        if !fds[0].revents().contains(PollFlags::IN) {
            return Ok(record); // all of it has ended
        }
        if let Some(call) = next(&listener)? {
            record.add(call.pid, call.data.nr.into(), call.data.args);
            let_go(&listener, call.id)?;
        }
    }
}

/// A call that waits; none if its thread was killed or interrupted meanwhile.
fn next(listener: &OwnedFd) -> io::Result<Option<libc::seccomp_notif>> {
    // SAFETY: all zeros is a valid `seccomp_notif`, and what the kernel asks for.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills one `seccomp_notif`, which lives across the call.
    let outcome = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut call) };
    if outcome == 0 { Ok(Some(call)) } else { gone().map(|()| None) }
}

fn let_go(listener: &OwnedFd, id: u64) -> io::Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: the kernel reads one `seccomp_notif_resp`, which lives across the call.
    let outcome = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const answer) };
    if outcome == 0 { Ok(()) } else { gone() }
}

/// ENOENT: the thread was killed, or a signal interrupted it; then it makes its call again.
fn gone() -> io::Result<()> {
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(()),
        error => Err(error),
    }
}

impl Record {
    fn add(&mut self, pid: u32, call: i64, args: [u64; 6]) {
        self.total += 1;
        let is_first = self.total == 1 || self.threads.get(&pid).is_some_and(|thread| thread.is_first);
        let thread = self.threads.entry(pid).or_insert_with(|| Thread {
            is_first,
            filters: 0,
            role: (!is_first).then_some(Role::Start),
        });
        if let Some(role) = thread.role {
            self.made.insert(Made::of(role, call, args));
        }
        match call {
            libc::SYS_seccomp => {
                // A thread takes its name before its filter.
                let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                thread.role = match is_first {
                    true => FIRST_THREAD.get(thread.filters).copied().flatten(),
                    false => Some(role(name().trim_end())),
                };
                thread.filters += 1;
            }
            libc::SYS_exit => drop(self.threads.remove(&pid)),
            _ => {}
        }
    }
}
