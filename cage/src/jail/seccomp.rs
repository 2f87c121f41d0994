//! The system calls a VMM may make, each with the reason why. Any other one ends the process, and the kernel logs its number.
//!
//! Must hold: nothing here opens a way to another process, to the network or to new privileges. The filter is installed
//! after the jail is closed and before the VM starts, so it need not allow any of the jail's own steps.

use seccomp::When::{Always, Masked, OneOf};
use seccomp::{Filter, FilterError, Line, THREAD, THREAD_MASK};

/// KVM's requests (linux/kvm.h) and the TAP's (linux/if_tun.h) that libkrun makes, and what libc asks of any file.
const IOCTLS: &[u64] = &[
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
    0x4008_AE61, // KVM_IRQ_LINE
    0xAE71,      // KVM_REINJECT_CONTROL: the PIT's lost ticks
    0x4020_AE76, // KVM_IRQFD
    0x4040_AE77, // KVM_CREATE_PIT2
    0x4040_AE79, // KVM_IOEVENTFD
    0xAE80,      // KVM_RUN
    0x8090_AE81, // KVM_GET_REGS
    0x4090_AE82, // KVM_SET_REGS
    0x8138_AE83, // KVM_GET_SREGS
    0x4138_AE84, // KVM_SET_SREGS
    0xC008_AE88, // KVM_GET_MSRS
    0x4008_AE89, // KVM_SET_MSRS
    0x41A0_AE8D, // KVM_SET_FPU
    0x8400_AE8E, // KVM_GET_LAPIC
    0x4400_AE8F, // KVM_SET_LAPIC
    0x4008_AE90, // KVM_SET_CPUID2
    0x4068_AEA3, // KVM_ENABLE_CAP
    0x4004_54CA, // TUNSETIFF
    0x4004_54D0, // TUNSETOFFLOAD
    0x4004_54D8, // TUNSETVNETHDRSZ
    0x5413,      // TIOCGWINSZ: is a descriptor a terminal (musl)
    0x5421,      // FIONBIO: non-blocking sockets
];

const UNIX: &[u64] = &[libc::AF_UNIX as u64];

#[rustfmt::skip]
const ALLOWED: &[Line] = &[
    (libc::SYS_ioctl, OneOf(1, IOCTLS), "KVM, the TAP"),
    (libc::SYS_read, Always, "disks, TAP, eventfds, vsock"),
    (libc::SYS_readv, Always, "disks"),
    (libc::SYS_pread64, Always, "disks, kernel"),
    (libc::SYS_preadv, Always, "disks"),
    (libc::SYS_write, Always, "disks, TAP, eventfds, console, vsock"),
    (libc::SYS_writev, Always, "log lines"),
    (libc::SYS_pwrite64, Always, "scratch disk"),
    (libc::SYS_pwritev, Always, "scratch disk"),
    (libc::SYS_fsync, Always, "scratch disk, guest's flush"),
    (libc::SYS_fdatasync, Always, "scratch disk, guest's flush"),
    (libc::SYS_fallocate, Always, "scratch disk, guest's discard"),
    (libc::SYS_lseek, Always, "disk and kernel size"),
    (libc::SYS_openat, Always, "the jail holds nothing but the VM's files"),
    (libc::SYS_close, Always, ""),
    (libc::SYS_fstat, Always, "disk and kernel size"),
    (libc::SYS_newfstatat, Always, "disk and kernel size"),
    (libc::SYS_fstatfs, Always, "alignment of a disk's file system"),
    (libc::SYS_statx, Always, "disk and kernel size"),
    (libc::SYS_dup, Always, "eventfds shared by a device and its thread"),
    (libc::SYS_fcntl, Always, "non-blocking TAP and sockets, close-on-exec"),
    (libc::SYS_mmap, Always, "guest memory, thread stacks, allocator"),
    (libc::SYS_mremap, Always, "allocator"),
    (libc::SYS_munmap, Always, "allocator"),
    (libc::SYS_mprotect, Always, "guard pages of thread stacks"),
    (libc::SYS_madvise, Always, "balloon gives guest pages back"),
    (libc::SYS_brk, Always, "allocator"),
    (libc::SYS_eventfd2, Always, "device interrupts and queues"),
    (libc::SYS_epoll_create1, Always, "device threads"),
    (libc::SYS_epoll_ctl, Always, "device threads"),
    (libc::SYS_epoll_pwait, Always, "device threads"),
    (libc::SYS_timerfd_create, Always, "clock hints to the guest over vsock"),
    (libc::SYS_timerfd_settime, Always, "clock hints to the guest over vsock"),
    (libc::SYS_socket, OneOf(0, UNIX), "a guest's vsock connection becomes a connection to cage or ctxgraph"),
    (libc::SYS_connect, Always, "only Unix sockets exist, and only the jail's own two"),
    (libc::SYS_recvfrom, Always, "vsock"),
    (libc::SYS_sendto, Always, "vsock"),
    (libc::SYS_shutdown, Always, "vsock"),
    (libc::SYS_setsockopt, Always, "vsock"),
    (libc::SYS_getsockopt, Always, "vsock: outcome of a connect"),
    (libc::SYS_clone, Masked(0, THREAD_MASK, THREAD), "vCPU and device threads"),
    (libc::SYS_set_robust_list, Always, "new thread"),
    (libc::SYS_rseq, Always, "new thread (glibc)"),
    (libc::SYS_set_tid_address, Always, "new thread"),
    (libc::SYS_gettid, Always, "kick a vCPU"),
    (libc::SYS_getpid, Always, "kick a vCPU"),
    (libc::SYS_tkill, Always, "kick a vCPU; no other process is in the PID namespace"),
    (libc::SYS_tgkill, Always, "kick a vCPU; no other process is in the PID namespace"),
    (libc::SYS_sched_yield, Always, "locks"),
    (libc::SYS_sched_getaffinity, Always, "std: number of CPUs"),
    (libc::SYS_futex, Always, "locks"),
    (libc::SYS_nanosleep, Always, "device threads"),
    (libc::SYS_clock_nanosleep, Always, "device threads"),
    (libc::SYS_clock_gettime, Always, "log times where the vDSO has no clock"),
    (libc::SYS_rt_sigaction, Always, "the signal that kicks a vCPU"),
    (libc::SYS_rt_sigprocmask, Always, "thread start and end"),
    (libc::SYS_rt_sigreturn, Always, "the signal that kicks a vCPU"),
    (libc::SYS_sigaltstack, Always, "thread start and end"),
    (libc::SYS_prctl, OneOf(0, &[libc::PR_SET_NAME as u64]), "thread names"),
    (libc::SYS_getrandom, Always, "the guest's virtio-rng, hash seeds"),
    (libc::SYS_restart_syscall, Always, "a stopped and continued jail"),
    (libc::SYS_exit, Always, "thread end"),
    (libc::SYS_exit_group, Always, "VM end"),
];

/// Calls that only older architectures have; libc makes them where they exist.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_OLD: &[Line] = &[
    (libc::SYS_open, Always, "the jail holds nothing but the VM's files"),
    (libc::SYS_stat, Always, "disk and initramfs size"),
    (libc::SYS_readlink, Always, "path of a disk"),
    (libc::SYS_epoll_wait, Always, "device threads"),
    (libc::SYS_poll, Always, "std checks descriptors 0 to 2"),
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[Line] = &[];

/// The filter of every VMM.
pub fn filter() -> Result<Filter, FilterError> {
    Filter::of(ALLOWED.iter().chain(ALLOWED_OLD))
}

/// Installs the filter for this thread and all that it starts. There is no way back.
pub fn install(_jailed: &super::Jailed) -> Result<(), FilterError> {
    filter()?.install()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_call_stands_once() {
        let calls: BTreeSet<i64> = ALLOWED.iter().map(|(call, _, _)| *call).collect();
        assert_eq!(calls.len(), ALLOWED.len());
    }

    #[test]
    fn nothing_that_leads_out_is_allowed() {
        let calls: BTreeSet<i64> = ALLOWED.iter().map(|(call, _, _)| *call).collect();
        for refused in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept4,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_kill,
            libc::SYS_mknodat,
            libc::SYS_setuid,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
        ] {
            assert!(!calls.contains(&refused), "{refused}");
        }
    }

    #[test]
    fn the_program_fits_the_kernel() {
        assert!(filter().unwrap().programs()[0].len() < 4096);
    }
}
