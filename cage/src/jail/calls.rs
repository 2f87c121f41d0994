//! The system calls a VMM may make: which of its threads makes each, and why.
//!
//! Data only. libkrun has a thread for each vCPU, each disk, the network device and vsock; each has a role, by its name, and may
//! make the calls of its role alone ([`super::seccomp`]).
//! Must hold: nothing here opens a way to another process, to the network or to new privileges; no memory is ever made
//! executable. A row that nothing in libkrun or libc leads to is dead and goes (tests/tests/system/jail.rs finds it).

use seccomp::When::{self, Always, Masked, OneOf};
use seccomp::{Line, THREAD, THREAD_MASK};

/// What a thread of a VMM is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The first thread until it starts its first vCPU: opens the VM's files, makes the VM and its devices.
    Setup,
    /// The first thread from then on: the event loop, with vsock's sending side, the balloon and the random numbers.
    Loop,
    /// Makes all other threads, so that no thread that a guest drives can make one.
    Spawner,
    /// A new thread that has not yet taken on its role.
    Start,
    Vcpu,
    Block,
    Net,
    /// vsock's receiving side.
    Vsock,
    /// Any other thread: it may wait, and clean up after a connection.
    Idle,
}

/// All of them.
pub const ROLES: [Role; 9] = [Setup, Loop, Spawner, Start, Vcpu, Block, Net, Vsock, Idle];
use Role::*;

/// The role of a thread, by the name it gives itself (at most 15 bytes of it count, prctl(2)).
pub fn role(thread: &str) -> Role {
    match thread {
        "spawner" => Spawner,
        "block worker" => Block,
        "virtio-net work" | "virtio-net worker" => Net,
        "vsock muxer" => Vsock,
        name if name.starts_with("fc_vcpu") => Vcpu,
        _ => Idle,
    }
}

/// Requests of the first thread while it makes the VM (linux/kvm.h).
const MAKE_VM: &[u64] = &[
    0xAE00,      // KVM_GET_API_VERSION
    0xAE01,      // KVM_CREATE_VM
    0xC004_AE02, // KVM_GET_MSR_INDEX_LIST
    0xAE03,      // KVM_CHECK_EXTENSION
    0xAE04,      // KVM_GET_VCPU_MMAP_SIZE
    0xC008_AE05, // KVM_GET_SUPPORTED_CPUID
    0xAE41,      // KVM_CREATE_VCPU
    0x4020_AE46, // KVM_SET_USER_MEMORY_REGION
    0xAE47,      // KVM_SET_TSS_ADDR
    0xAE60,      // KVM_CREATE_IRQCHIP
    0xAE71,      // KVM_REINJECT_CONTROL: the PIT's lost ticks
    0x4020_AE76, // KVM_IRQFD
    0x4040_AE77, // KVM_CREATE_PIT2
    0x4040_AE79, // KVM_IOEVENTFD
    0x4090_AE82, // KVM_SET_REGS
    0x8138_AE83, // KVM_GET_SREGS
    0x4138_AE84, // KVM_SET_SREGS
    0x4008_AE89, // KVM_SET_MSRS
    0x41A0_AE8D, // KVM_SET_FPU
    0x8400_AE8E, // KVM_GET_LAPIC
    0x4400_AE8F, // KVM_SET_LAPIC
    0x4008_AE90, // KVM_SET_CPUID2
];
const RUN_VCPU: &[u64] = &[0xAE80]; // KVM_RUN
/// linux/if_tun.h.
const OPEN_TAP: &[u64] = &[
    0x4004_54CA, // TUNSETIFF
    0x4004_54D0, // TUNSETOFFLOAD
    0x4004_54D8, // TUNSETVNETHDRSZ
];

const UNIX: &[u64] = &[libc::AF_UNIX as u64];
const ABORT: &[u64] = &[libc::SIGABRT as u64];
const NARROW: &[u64] = &[libc::SECCOMP_SET_MODE_FILTER as u64];
const NAME: &[u64] = &[libc::PR_SET_NAME as u64];
const GET_NAME: &[u64] = &[libc::PR_GET_NAME as u64];
const NO_NEW_PRIVILEGES: &[u64] = &[libc::PR_SET_NO_NEW_PRIVS as u64];
/// mmap(2) and mprotect(2), protection at argument 2: never to be executed.
const NO_CODE: When = Masked(2, libc::PROT_EXEC as u64, 0);

/// What any thread may need at any time.
pub const ANY: &[Role] = &[Setup, Loop, Spawner, Start, Vcpu, Block, Net, Vsock, Idle];
/// Threads that work for the guest; what they share opens nothing and makes nothing.
pub const WORK: &[Role] = &[Setup, Loop, Vcpu, Block, Net, Vsock, Idle];
/// Who takes on a role: the first thread, and each new one.
const NEW: &[Role] = &[Setup, Start];
/// The node's programs have musl; a developer's and the tests' have glibc, which makes other calls for the same.
const GLIBC: Use = Only("the C library is glibc");

/// In which lives a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// In every ordinary one. tests/tests/system/jail.rs lives one and finds a row that this is not true of.
    Ordinary,
    /// In one and not in the next: it hangs on how the threads meet.
    ByChance,
    /// In no ordinary one, but where this is so.
    Only(&'static str),
}
use Use::*;

/// One row: whose call, in which lives, and the line of the filter. The roles of [`ANY`] and [`WORK`] share a row; of any other
/// list each role needs the call.
pub type Row = (&'static [Role], Use, Line);

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    // A VM at work.
    (&[Vcpu], Ordinary, (libc::SYS_ioctl, OneOf(1, RUN_VCPU), "the guest runs")),
    (ANY, Ordinary, (libc::SYS_read, Always, "eventfds, TAP, the kernel's file")),
    (ANY, Ordinary, (libc::SYS_write, Always, "eventfds, TAP, console, log lines")),
    (ANY, Only("libc itself has something to say"), (libc::SYS_writev, Always, "messages of the C library")),
    (ANY, Ordinary, (libc::SYS_futex, Always, "locks, channels")),
    (WORK, Ordinary, (libc::SYS_epoll_pwait, Always, "wait for events")),
    (WORK, Ordinary, (libc::SYS_epoll_ctl, Always, "what to wait for")),
    (WORK, Ordinary, (libc::SYS_epoll_create1, Always, "a device's thread waits on its own")),
    (ANY, Ordinary, (libc::SYS_close, Always, "descriptors are dropped where their last user ends")),
    (WORK, Only("KVM_RUN fails for want of memory"), (libc::SYS_nanosleep, Always, "a kernel's error on KVM_RUN is waited out")),
    (WORK, Only("KVM_RUN fails for want of memory"), (libc::SYS_clock_nanosleep, Always, "a kernel's error on KVM_RUN is waited out")),
    // Disks.
    (&[Block], Ordinary, (libc::SYS_preadv, Always, "guest reads")),
    (&[Block], Ordinary, (libc::SYS_pwritev, Always, "guest writes")),
    (&[Block], Ordinary, (libc::SYS_fsync, Always, "guest's flush")),
    (&[Block], Ordinary, (libc::SYS_fallocate, Always, "zeroes without data, the guest's discard")),
    (WORK, Ordinary, (libc::SYS_lseek, Always, "a disk's size, when its device comes up")),
    // vsock: a guest's connection becomes a connection to cage or ctxgraph.
    (&[Loop], Ordinary, (libc::SYS_socket, OneOf(0, UNIX), "a guest connects")),
    (&[Loop], Ordinary, (libc::SYS_connect, Always, "only Unix sockets exist, and only the jail's own two are in reach")),
    (&[Setup, Loop], Ordinary, (libc::SYS_sendto, Always, "the jail is closed; guest to host")),
    (&[Vsock], Ordinary, (libc::SYS_recvfrom, Always, "host to guest")),
    (&[Loop], Ordinary, (libc::SYS_shutdown, Always, "one side is done")),
    (WORK, Ordinary, (libc::SYS_fcntl, Always, "non-blocking TAP and sockets, shared eventfds")),
    // Made once.
    (&[Setup], Ordinary, (libc::SYS_ioctl, OneOf(1, MAKE_VM), "the VM, its vCPUs and interrupts")),
    (&[Setup, Vcpu], GLIBC, (libc::SYS_openat, Always, "the VM's files; the TAP when the guest's driver comes up")),
    (&[Vcpu], Ordinary, (libc::SYS_ioctl, OneOf(1, OPEN_TAP), "the TAP, when the guest's driver comes up")),
    (WORK, Ordinary, (libc::SYS_fstat, Always, "disk and kernel size")),
    (WORK, GLIBC, (libc::SYS_newfstatat, Always, "disk and kernel size")),
    (WORK, Ordinary, (libc::SYS_fstatfs, Always, "alignment of a disk's file system")),
    (WORK, GLIBC, (libc::SYS_statx, Always, "disk and kernel size")),
    (WORK, Ordinary, (libc::SYS_eventfd2, Always, "device interrupts and queues")),
    (WORK, Ordinary, (libc::SYS_dup, Always, "eventfds shared by a device and its thread, made when the device comes up")),
    (WORK, GLIBC, (libc::SYS_sched_getaffinity, Always, "number of CPUs, for the allocator")),
    (&[Setup], Ordinary, (libc::SYS_prctl, OneOf(0, NAME), "the process's name")),
    // Threads.
    (&[Setup, Spawner], Ordinary, (libc::SYS_clone, Masked(0, THREAD_MASK, THREAD), "only the spawner makes threads, and only threads")),
    (&[Start], Ordinary, (libc::SYS_prctl, OneOf(0, NAME), "a thread takes its name, then its role")),
    (NEW, Ordinary, (libc::SYS_prctl, OneOf(0, NO_NEW_PRIVILEGES), "set already, and again by each filter")),
    (NEW, Ordinary, (libc::SYS_seccomp, OneOf(0, NARROW), "its role's filter: filters only narrow")),
    (ANY, GLIBC, (libc::SYS_set_robust_list, Always, "thread start and end")),
    (&[Start], GLIBC, (libc::SYS_rseq, Always, "thread start")),
    (ANY, Ordinary, (libc::SYS_rt_sigprocmask, Always, "thread start and end")),
    (ANY, Ordinary, (libc::SYS_sigaltstack, Always, "thread start and end")),
    (ANY, Ordinary, (libc::SYS_gettid, Always, "who makes a thread, abort, kick a vCPU")),
    (ANY, Ordinary, (libc::SYS_getpid, Always, "who makes a thread, abort, kick a vCPU")),
    (ANY, Ordinary, (libc::SYS_tkill, Always, "abort, kick a vCPU; no other process is in the PID namespace")),
    (ANY, GLIBC, (libc::SYS_tgkill, Always, "abort, kick a vCPU; no other process is in the PID namespace")),
    (&[Setup], Ordinary, (libc::SYS_rt_sigaction, Always, "the signal that kicks a vCPU; never SIGSYS")),
    (ANY, Only("it aborts"), (libc::SYS_rt_sigaction, OneOf(0, ABORT), "abort")),
    (ANY, ByChance, (libc::SYS_rt_sigreturn, Always, "the signal that kicks a vCPU")),
    (ANY, Ordinary, (libc::SYS_exit, Always, "thread end")),
    (ANY, Ordinary, (libc::SYS_exit_group, Always, "VM end")),
    (ANY, Only("a call is refused"), (libc::SYS_prctl, OneOf(0, GET_NAME), "a refused call is told with its thread")),
    (ANY, ByChance, (libc::SYS_restart_syscall, Always, "a stopped and continued jail")),
    // Memory.
    (ANY, Ordinary, (libc::SYS_mmap, NO_CODE, "guest memory, thread stacks, allocator")),
    (ANY, Ordinary, (libc::SYS_mprotect, NO_CODE, "guard pages of thread stacks")),
    (ANY, Ordinary, (libc::SYS_munmap, Always, "allocator, thread end")),
    (ANY, ByChance, (libc::SYS_mremap, Always, "allocator")),
    (ANY, Ordinary, (libc::SYS_madvise, Always, "balloon gives guest pages back, allocator")),
    (ANY, ByChance, (libc::SYS_brk, Always, "allocator")),
    (ANY, ByChance, (libc::SYS_sched_yield, Always, "locks")),
    (ANY, Only("the vDSO has no clock"), (libc::SYS_clock_gettime, Always, "the time")),
    (ANY, Ordinary, (libc::SYS_getrandom, Always, "the guest's virtio-rng, hash seeds")),
];

/// Calls that only older architectures have; libc makes them where they exist.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
pub const ROWS_OLD: &[Row] = &[
    (&[Setup, Vcpu], Ordinary, (libc::SYS_open, Always, "the VM's files; the TAP when the guest's driver comes up")),
    (WORK, GLIBC, (libc::SYS_epoll_wait, Always, "wait for events")),
];
#[cfg(not(target_arch = "x86_64"))]
pub const ROWS_OLD: &[Row] = &[];

/// All rows.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain(ROWS_OLD)
}

/// What a thread of a role may call. Before the roles are taken on, the first thread may all that any thread may, since filters
/// only narrow; likewise the spawner for all but the first.
pub fn lines(role: Role) -> impl Iterator<Item = &'static Line> {
    rows()
        .filter(move |(roles, _, _)| match role {
            Setup => true,
            Spawner | Start => roles.iter().any(|role| !matches!(role, Setup | Loop)),
            _ => roles.contains(&role),
        })
        .map(|(_, _, line)| line)
}
