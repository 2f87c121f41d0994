//! The system calls a service may make: one set that every program needs, and the named sets that nulld.toml grants.
//!
//! Must hold: nothing outside a service's sets reaches the kernel; such a call ends the process, and the kernel's log has its
//! number. In no set: ptrace, process_vm_*, pidfd_getfd, kcmp, bpf, io_uring, userfaultfd, perf_event_open, keyrings, modules,
//! kexec, open_by_handle_at, memfd_create, execve (but in `jails`). Memory is writable or executable, never first the one and
//! then the other.
//!
//! The sets serve programs of musl (the image) and of glibc (the tests). A call more is better than a service that ends on a
//! rare path, so they follow what the C library and the standard library may do, not only what was seen.

use abi::node::CallSet;
use seccomp::When::{All, Always, Masked, OneOf};
use seccomp::{Filter, FilterError, Line, THREAD, THREAD_MASK};

/// execveat(2) with AT_SYMLINK_NOFOLLOW: how `nulld launch` starts the program. Afterwards it leads nowhere: of all files a
/// service sees it may execute its own program only.
pub const START_FLAG: u64 = 0x100;

const UNIX: &[u64] = &[libc::AF_UNIX as u64];
/// A whole 32-bit argument; the upper half of the register is not defined.
const INT: u64 = 0xFFFF_FFFF;
/// The type in socket(2)'s second argument, without SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE: u64 = 0xF;
const INET: u64 = libc::AF_INET as u64;
const INET6: u64 = libc::AF_INET6 as u64;
const NETLINK: u64 = libc::AF_NETLINK as u64;
const STREAM: u64 = libc::SOCK_STREAM as u64;
const DGRAM: u64 = libc::SOCK_DGRAM as u64;
/// NETLINK_ROUTE and NETLINK_NETFILTER.
const ROUTE: u64 = 0;
const NETFILTER: u64 = 12;
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
const WRITABLE: u64 = libc::PROT_WRITE as u64;
const NEW_NETWORK: &[u64] = &[libc::CLONE_NEWNET as u64];

/// What libc and the standard library ask of any descriptor.
const IOCTLS: &[u64] = &[
    0x5401, // TCGETS: is it a terminal (glibc)
    0x5413, // TIOCGWINSZ: is it a terminal (musl)
    0x541B, // FIONREAD
    0x5421, // FIONBIO
    0x5450, // FIONCLEX
    0x5451, // FIOCLEX
    0x8933, // SIOCGIFINDEX: the number of an interface
];
/// Names of threads, names of mappings (glibc), and giving up being dumped.
const PRCTLS: &[u64] = &[
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_SET_DUMPABLE as u64,
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    0x5356_4D41, // PR_SET_VMA
    0x4155_5856, // PR_GET_AUXV: rustix looks for the vDSO with it
];
/// tun(4): make, own and keep a TAP.
const TUN_IOCTLS: &[u64] = &[
    0x4004_54CA, // TUNSETIFF
    0x4004_54CB, // TUNSETPERSIST
    0x4004_54CC, // TUNSETOWNER
    0x4004_54CE, // TUNSETGROUP
];

/// Every service's.
#[rustfmt::skip]
const BASE: &[Line] = &[
    (libc::SYS_execveat, Masked(4, INT, START_FLAG), "the start of the program itself"),
    (libc::SYS_read, Always, ""),
    (libc::SYS_readv, Always, ""),
    (libc::SYS_pread64, Always, ""),
    (libc::SYS_preadv, Always, ""),
    (libc::SYS_write, Always, ""),
    (libc::SYS_writev, Always, ""),
    (libc::SYS_pwrite64, Always, ""),
    (libc::SYS_pwritev, Always, ""),
    (libc::SYS_lseek, Always, ""),
    (libc::SYS_close, Always, ""),
    (libc::SYS_close_range, Always, "libc closes what is left"),
    (libc::SYS_dup, Always, ""),
    (libc::SYS_dup3, Always, ""),
    (libc::SYS_fcntl, Always, ""),
    (libc::SYS_ioctl, OneOf(1, IOCTLS), ""),
    (libc::SYS_pipe2, Always, ""),
    (libc::SYS_eventfd2, Always, "waking a loop"),
    (libc::SYS_timerfd_create, Always, "timers in a loop"),
    (libc::SYS_timerfd_settime, Always, "timers in a loop"),
    (libc::SYS_timerfd_gettime, Always, "timers in a loop"),
    (libc::SYS_signalfd4, Always, "signals in a loop"),
    (libc::SYS_epoll_create1, Always, ""),
    (libc::SYS_epoll_ctl, Always, ""),
    (libc::SYS_epoll_pwait, Always, ""),
    (libc::SYS_epoll_pwait2, Always, ""),
    (libc::SYS_ppoll, Always, ""),
    (libc::SYS_pselect6, Always, ""),
    (libc::SYS_openat, Always, "what there is to open is said by the service's file system and Landlock"),
    (libc::SYS_openat2, Always, "as openat"),
    (libc::SYS_fstat, Always, ""),
    (libc::SYS_newfstatat, Always, ""),
    (libc::SYS_statx, Always, ""),
    (libc::SYS_statfs, Always, "how full is the state"),
    (libc::SYS_fstatfs, Always, "how full is the state"),
    (libc::SYS_faccessat, Always, ""),
    (libc::SYS_faccessat2, Always, ""),
    (libc::SYS_readlinkat, Always, ""),
    (libc::SYS_getdents64, Always, ""),
    (libc::SYS_getcwd, Always, ""),
    (libc::SYS_mmap, Masked(2, EXECUTABLE, 0), "memory"),
    (libc::SYS_mmap, Masked(2, EXECUTABLE | WRITABLE, EXECUTABLE), "text of a program; what can be written is no text"),
    (libc::SYS_mprotect, Masked(2, EXECUTABLE, 0), "guard pages, relocations; nothing becomes executable"),
    (libc::SYS_munmap, Always, ""),
    (libc::SYS_mremap, Always, "realloc of much"),
    (libc::SYS_madvise, Always, "the allocator gives memory back"),
    (libc::SYS_mincore, Always, "backtraces look before they read"),
    (libc::SYS_msync, Always, "SQLite's shared index"),
    (libc::SYS_brk, Always, ""),
    (libc::SYS_membarrier, Always, "locks of some runtimes"),
    (libc::SYS_clone, Masked(0, THREAD_MASK, THREAD), "a thread; no process, no namespace"),
    (libc::SYS_clone3, Always, "answered ENOSYS: its flags cannot be seen, so libraries fall back to clone"),
    (libc::SYS_set_tid_address, Always, "start of a program"),
    (libc::SYS_set_robust_list, Always, "start of a thread"),
    (libc::SYS_get_robust_list, Always, ""),
    (libc::SYS_rseq, Always, "start of a thread (glibc)"),
    (libc::SYS_gettid, Always, ""),
    (libc::SYS_getpid, Always, ""),
    (libc::SYS_getppid, Always, ""),
    (libc::SYS_getuid, Always, ""),
    (libc::SYS_geteuid, Always, ""),
    (libc::SYS_getgid, Always, ""),
    (libc::SYS_getegid, Always, ""),
    (libc::SYS_getpgid, Always, ""),
    (libc::SYS_getsid, Always, ""),
    (libc::SYS_capget, Always, "what it was granted"),
    (libc::SYS_futex, Always, ""),
    (libc::SYS_sched_yield, Always, ""),
    (libc::SYS_sched_getaffinity, Always, "how many CPUs"),
    (libc::SYS_sched_getparam, Always, "start of a thread with attributes"),
    (libc::SYS_sched_getscheduler, Always, "start of a thread with attributes"),
    (libc::SYS_getcpu, Always, ""),
    (libc::SYS_nanosleep, Always, ""),
    (libc::SYS_clock_nanosleep, Always, ""),
    (libc::SYS_clock_gettime, Always, "where the vDSO has no clock"),
    (libc::SYS_clock_getres, Always, ""),
    (libc::SYS_gettimeofday, Always, "where the vDSO has no clock"),
    (libc::SYS_times, Always, ""),
    (libc::SYS_getrusage, Always, ""),
    (libc::SYS_sysinfo, Always, "SQLite and allocators ask how much memory there is"),
    (libc::SYS_uname, Always, ""),
    (libc::SYS_getrandom, Always, "keys, hash seeds"),
    (libc::SYS_prctl, OneOf(0, PRCTLS), "names, and not being dumped"),
    (libc::SYS_prlimit64, Always, "stack size of a thread; limits cannot be raised without a capability"),
    (libc::SYS_getrlimit, Always, "stack size of a thread"),
    (libc::SYS_rt_sigaction, Always, ""),
    (libc::SYS_rt_sigprocmask, Always, ""),
    (libc::SYS_rt_sigpending, Always, ""),
    (libc::SYS_rt_sigsuspend, Always, ""),
    (libc::SYS_rt_sigtimedwait, Always, "waiting for SIGTERM"),
    (libc::SYS_rt_sigreturn, Always, ""),
    (libc::SYS_sigaltstack, Always, "stack overflow is told"),
    (libc::SYS_tkill, Always, "abort(3); Landlock keeps signals within the service"),
    (libc::SYS_tgkill, Always, "abort(3); Landlock keeps signals within the service"),
    (libc::SYS_restart_syscall, Always, "a service that was stopped and continued"),
    (libc::SYS_exit, Always, ""),
    (libc::SYS_exit_group, Always, ""),
    (libc::SYS_socket, OneOf(0, UNIX), "the door, other services"),
    (libc::SYS_socketpair, Always, "only Unix sockets come in pairs"),
    (libc::SYS_connect, Always, "of the sockets it can make"),
    (libc::SYS_accept4, Always, ""),
    (libc::SYS_accept, Always, ""),
    (libc::SYS_sendto, Always, ""),
    (libc::SYS_recvfrom, Always, ""),
    (libc::SYS_sendmsg, Always, "descriptors travel beside a line"),
    (libc::SYS_recvmsg, Always, "descriptors travel beside a line"),
    (libc::SYS_shutdown, Always, ""),
    (libc::SYS_setsockopt, Always, ""),
    (libc::SYS_getsockopt, Always, "SO_PEERCRED, SO_ERROR"),
    (libc::SYS_getsockname, Always, ""),
    (libc::SYS_getpeername, Always, ""),
];

/// Every service's, where the architecture has them: libc makes the older call where it exists.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const BASE_OLD: &[Line] = &[
    (libc::SYS_arch_prctl, Always, "thread pointer at the start of a program"),
    (libc::SYS_open, Always, "as openat"),
    (libc::SYS_stat, Always, ""),
    (libc::SYS_lstat, Always, ""),
    (libc::SYS_access, Always, ""),
    (libc::SYS_readlink, Always, ""),
    (libc::SYS_poll, Always, ""),
    (libc::SYS_select, Always, ""),
    (libc::SYS_epoll_wait, Always, ""),
    (libc::SYS_epoll_create, Always, ""),
    (libc::SYS_eventfd, Always, ""),
    (libc::SYS_pipe, Always, ""),
    (libc::SYS_dup2, Always, ""),
    (libc::SYS_time, Always, ""),
    (libc::SYS_getpgrp, Always, ""),
];
#[cfg(not(target_arch = "x86_64"))]
const BASE_OLD: &[Line] = &[];

#[rustfmt::skip]
const FILES: &[Line] = &[
    (libc::SYS_mkdirat, Always, ""),
    (libc::SYS_unlinkat, Always, ""),
    (libc::SYS_renameat, Always, "whole files"),
    (libc::SYS_renameat2, Always, "whole files"),
    (libc::SYS_linkat, Always, ""),
    (libc::SYS_symlinkat, Always, ""),
    (libc::SYS_ftruncate, Always, ""),
    (libc::SYS_truncate, Always, ""),
    (libc::SYS_fallocate, Always, ""),
    (libc::SYS_fsync, Always, "receipts are durable"),
    (libc::SYS_fdatasync, Always, "receipts are durable"),
    (libc::SYS_sync_file_range, Always, ""),
    (libc::SYS_flock, Always, "one owner of a state"),
    (libc::SYS_fchmod, Always, ""),
    (libc::SYS_fchmodat, Always, ""),
    (libc::SYS_fchown, Always, "SQLite keeps its files' owner; no other is possible without a capability"),
    (libc::SYS_utimensat, Always, ""),
    (libc::SYS_umask, Always, ""),
    (libc::SYS_copy_file_range, Always, "copies of files"),
    (libc::SYS_sendfile, Always, "copies of files"),
    (libc::SYS_splice, Always, "copies of files"),
    (libc::SYS_fadvise64, Always, ""),
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const FILES_OLD: &[Line] = &[
    (libc::SYS_mkdir, Always, ""),
    (libc::SYS_rmdir, Always, ""),
    (libc::SYS_unlink, Always, ""),
    (libc::SYS_rename, Always, ""),
    (libc::SYS_link, Always, ""),
    (libc::SYS_symlink, Always, ""),
    (libc::SYS_chmod, Always, ""),
];
#[cfg(not(target_arch = "x86_64"))]
const FILES_OLD: &[Line] = &[];

#[rustfmt::skip]
const NETWORK: &[Line] = &[
    (libc::SYS_socket, All(&[(0, INT, INET), (1, TYPE, STREAM)]), "TCP"),
    (libc::SYS_socket, All(&[(0, INT, INET), (1, TYPE, DGRAM)]), "UDP; no raw sockets"),
    (libc::SYS_socket, All(&[(0, INT, INET6), (1, TYPE, STREAM)]), "refused by a node without IPv6, not by a signal"),
    (libc::SYS_socket, All(&[(0, INT, INET6), (1, TYPE, DGRAM)]), "refused by a node without IPv6, not by a signal"),
    (libc::SYS_bind, Always, ""),
    (libc::SYS_listen, Always, ""),
    (libc::SYS_sendmmsg, Always, ""),
    (libc::SYS_recvmmsg, Always, ""),
    (libc::SYS_splice, Always, "bytes from one connection to another"),
    (libc::SYS_sendfile, Always, ""),
];

#[rustfmt::skip]
const NETLINKS: &[Line] = &[
    (libc::SYS_socket, All(&[(0, INT, NETLINK), (2, INT, ROUTE)]), "links, addresses, routes"),
    (libc::SYS_socket, All(&[(0, INT, NETLINK), (2, INT, NETFILTER)]), "packet rules and their log"),
    (libc::SYS_bind, Always, ""),
];

#[rustfmt::skip]
const NAMESPACES: &[Line] = &[
    (libc::SYS_unshare, OneOf(0, NEW_NETWORK), "a VM's network namespace"),
    (libc::SYS_setns, OneOf(1, NEW_NETWORK), "a VM's network namespace"),
    (libc::SYS_ioctl, OneOf(1, TUN_IOCTLS), "a VM's TAP"),
];

#[rustfmt::skip]
const CLOCK: &[Line] = &[
    (libc::SYS_clock_settime, Always, "a step of the clock"),
    (libc::SYS_clock_adjtime, Always, "a slew of the clock"),
    (libc::SYS_adjtimex, Always, "a slew of the clock"),
];

/// cage's, and what its VMMs need before they take on their own filters (cage/src/jail/calls.rs), which can only narrow it.
#[rustfmt::skip]
const JAILS: &[Line] = &[
    (libc::SYS_clone, Always, "a VMM in a PID namespace of its own"),
    (libc::SYS_execve, Always, "cage-vmm; of all files cage sees only it and cage are executable"),
    (libc::SYS_wait4, Always, "the end of a VMM"),
    (libc::SYS_waitid, Always, "the end of a VMM"),
    (libc::SYS_kill, Always, "a VMM; the jail's PID namespace has no other"),
    (libc::SYS_pidfd_open, Always, "a VMM"),
    (libc::SYS_pidfd_send_signal, Always, "a VMM"),
    (libc::SYS_unshare, Always, "the jail's namespaces"),
    (libc::SYS_setns, OneOf(1, NEW_NETWORK), "the VM's network namespace, which egress made"),
    (libc::SYS_mount, Always, "the jail's root"),
    (libc::SYS_umount2, Always, "the jail's root"),
    (libc::SYS_pivot_root, Always, "the jail's root"),
    (libc::SYS_chdir, Always, "the jail's root"),
    (libc::SYS_fchdir, Always, "the jail's root"),
    (libc::SYS_mknodat, Always, "the jail's /dev/kvm and /dev/net/tun"),
    (libc::SYS_fchownat, Always, "disks and sockets belong to the jail's user"),
    (libc::SYS_sethostname, Always, "the jail's host name"),
    (libc::SYS_setsid, Always, "a VMM is its own session"),
    (libc::SYS_setpgid, Always, "a VMM is its own group"),
    (libc::SYS_setgroups, Always, "the jail's user"),
    (libc::SYS_setuid, Always, "the jail's user"),
    (libc::SYS_setgid, Always, "the jail's user"),
    (libc::SYS_setresuid, Always, "the jail's user"),
    (libc::SYS_setresgid, Always, "the jail's user"),
    (libc::SYS_capset, Always, "the jail has no capability"),
    (libc::SYS_prctl, Always, "bounding set, no_new_privs, parent's death"),
    (libc::SYS_setrlimit, Always, "the jail's limits"),
    (libc::SYS_seccomp, Always, "the jail's own filters"),
    (libc::SYS_landlock_create_ruleset, Always, "the jail's own rules of access"),
    (libc::SYS_landlock_add_rule, Always, "the jail's own rules of access"),
    (libc::SYS_landlock_restrict_self, Always, "the jail's own rules of access"),
    (libc::SYS_ioctl, Always, "KVM and TAP; the jail's own filter lists them one by one"),
    (libc::SYS_bind, Always, "the sockets behind a guest's vsock"),
    (libc::SYS_listen, Always, "the sockets behind a guest's vsock"),
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const JAILS_OLD: &[Line] = &[
    (libc::SYS_fork, Always, "a VMM (musl)"),
    (libc::SYS_vfork, Always, "a VMM (musl)"),
    (libc::SYS_chown, Always, "disks and sockets belong to the jail's user"),
    (libc::SYS_lchown, Always, "disks and sockets belong to the jail's user"),
    (libc::SYS_mknod, Always, "the jail's devices"),
];
#[cfg(not(target_arch = "x86_64"))]
const JAILS_OLD: &[Line] = &[];

/// The tables of a named set.
fn tables(set: CallSet) -> [&'static [Line]; 2] {
    match set {
        CallSet::Files => [FILES, FILES_OLD],
        CallSet::Network => [NETWORK, &[]],
        CallSet::Netlink => [NETLINKS, &[]],
        CallSet::Namespaces => [NAMESPACES, &[]],
        CallSet::Jails => [JAILS, JAILS_OLD],
        CallSet::Clock => [CLOCK, &[]],
    }
}

/// What a service with these sets may do, line by line.
pub fn lines(sets: &[CallSet]) -> impl Iterator<Item = &'static Line> {
    let named: Vec<&Line> = sets.iter().flat_map(|set| tables(*set)).flatten().collect();
    BASE.iter().chain(BASE_OLD).chain(named)
}

/// The filter of a service with these sets.
pub fn filter(sets: &[CallSet]) -> Result<Filter, FilterError> {
    Filter::of(lines(sets))?.without(&[libc::SYS_clone3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{builtin, config};
    use abi::node::ServiceConfig;
    use std::collections::{BTreeMap, BTreeSet};

    /// Calls by which a service that was taken over could reach another process, another service, the kernel or the clock.
    const DANGEROUS: &[i64] = &[
        libc::SYS_acct,
        libc::SYS_add_key,
        libc::SYS_adjtimex,
        libc::SYS_bpf,
        libc::SYS_capset,
        libc::SYS_chroot,
        libc::SYS_clock_adjtime,
        libc::SYS_clock_settime,
        libc::SYS_delete_module,
        libc::SYS_execve,
        libc::SYS_fanotify_init,
        libc::SYS_finit_module,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fsopen,
        libc::SYS_fspick,
        libc::SYS_init_module,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_setup,
        libc::SYS_kcmp,
        libc::SYS_kexec_file_load,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_kill,
        libc::SYS_memfd_create,
        libc::SYS_mknodat,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_move_pages,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_open_tree,
        libc::SYS_perf_event_open,
        libc::SYS_personality,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pivot_root,
        libc::SYS_process_madvise,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_remap_file_pages,
        libc::SYS_request_key,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_seccomp,
        libc::SYS_setdomainname,
        libc::SYS_setgid,
        libc::SYS_setgroups,
        libc::SYS_sethostname,
        libc::SYS_setns,
        libc::SYS_setresgid,
        libc::SYS_setresuid,
        libc::SYS_settimeofday,
        libc::SYS_setuid,
        libc::SYS_shmat,
        libc::SYS_shmget,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_syslog,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_userfaultfd,
        libc::SYS_vhangup,
    ];

    /// Which of them a service may make all the same, and why.
    #[rustfmt::skip]
    const EXCEPTIONS: &[(&str, &[i64], &str)] = &[
        ("clock", &[libc::SYS_clock_settime, libc::SYS_clock_adjtime, libc::SYS_adjtimex], "it sets the clock"),
        ("egress", &[libc::SYS_unshare, libc::SYS_setns], "VMs' networks; network namespaces only"),
        ("cage", &[libc::SYS_setns], "cage-vmm enters its network; network namespaces only"),
        ("cage", &[libc::SYS_unshare, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_mknodat,
            libc::SYS_sethostname], "the jail's namespaces and its root"),
        ("cage", &[libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setgroups, libc::SYS_setresuid, libc::SYS_setresgid,
            libc::SYS_capset, libc::SYS_seccomp], "the jail gives its privileges up"),
        ("cage", &[libc::SYS_execve, libc::SYS_kill, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal],
            "VMMs are processes that are started and ended"),
    ];

    /// The services of the image and those of nulld itself.
    fn services() -> BTreeMap<String, ServiceConfig> {
        let text = include_str!("../../../image/config/nulld.toml");
        let volume = "[logs]\nforward = \"udp://192.0.2.5:514\"\n";
        let config = config::merge(text, Some(volume)).unwrap().config;
        let mut all = builtin::services(&config);
        all.extend(config.services);
        all
    }

    fn allowed(service: &ServiceConfig) -> BTreeSet<i64> {
        lines(&service.system_calls).map(|(call, ..)| *call).collect()
    }

    #[test]
    fn every_dangerous_call_is_refused_to_every_service_but_for_a_reason() {
        let services = services();
        for (name, service) in &services {
            assert!(!service.unconfined, "{name}");
            let excepted: BTreeSet<i64> = EXCEPTIONS
                .iter()
                .filter(|(of, ..)| of == name)
                .flat_map(|(_, calls, _)| calls.iter().copied())
                .collect();
            let dangerous: BTreeSet<i64> = DANGEROUS.iter().copied().collect();
            let has: BTreeSet<i64> = allowed(service).intersection(&dangerous).copied().collect();
            assert_eq!(has, excepted, "{name}: allowed, and excepted");
        }
        for (name, ..) in EXCEPTIONS {
            assert!(services.contains_key(*name), "{name}");
        }
    }

    #[test]
    fn only_cage_makes_processes_and_mounts_and_only_network_services_have_internet_sockets() {
        for (name, service) in services() {
            let any_clone =
                lines(&service.system_calls).any(|line| line.0 == libc::SYS_clone && line.1 == Always);
            assert_eq!(any_clone, name == "cage", "{name}");
            assert_eq!(service.makes_mounts, name == "cage", "{name}");
            assert_eq!(service.uid == 0, name == "cage", "{name}");
            let inet = service.system_calls.contains(&CallSet::Network);
            assert_eq!(inet, service.network, "{name}: a network and the calls for it come together");
            assert_eq!(inet, !["cage", "ctxgraph"].contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn no_line_stands_twice_and_every_filter_fits_the_kernel() {
        let one_of_each = |table: &[Line]| {
            let mut seen = Vec::new();
            for (call, when, _) in table {
                assert!(!seen.contains(&(*call, *when)), "{call} {when:?}");
                seen.push((*call, *when));
            }
        };
        one_of_each(&[BASE, BASE_OLD].concat());
        CallSet::ALL.iter().for_each(|set| one_of_each(&tables(*set).concat()));
        for (name, service) in services() {
            let filter = filter(&service.system_calls).unwrap();
            assert!(filter.programs().iter().all(|program| program.len() < 4096), "{name}");
        }
        assert!(filter(&CallSet::ALL).unwrap().programs()[1].len() < 4096);
    }

    #[test]
    fn what_a_vmm_may_do_is_within_what_cage_may_do() {
        // A filter is inherited: what cage's lacks, no VMM can have.
        let names = |text: &str| -> BTreeSet<String> {
            let parts = text.split("libc::SYS_").skip(1);
            parts
                .map(|part| part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
                .collect()
        };
        let own = include_str!("calls.rs").split("#[cfg(test)]\nmod tests").next().unwrap();
        let table = |name: &str| {
            let from = own.split(&format!("const {name}: &[Line] = &[\n")).nth(1).unwrap();
            names(from.split("\n];").next().unwrap())
        };
        let tables = ["BASE", "BASE_OLD", "FILES", "FILES_OLD", "JAILS", "JAILS_OLD"];
        let cage: BTreeSet<String> = tables.iter().flat_map(|name| table(name)).collect();
        let jail = include_str!("../../../cage/src/jail/calls.rs");
        let vmm = names(jail.split("#[cfg(test)]").next().unwrap());
        assert!(vmm.len() > 50 && cage.len() > 100, "{} {}", vmm.len(), cage.len());
        let lacking: Vec<_> = vmm.difference(&cage).collect();
        assert!(lacking.is_empty(), "cage-vmm needs {lacking:?}");
    }
}
