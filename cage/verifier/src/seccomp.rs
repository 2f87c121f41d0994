//! The system calls that an agent may not make, as a classic BPF program (seccomp(2)).
//!
//! Must hold: a call of another architecture kills; what is refused answers EPERM (clone3: ENOSYS, so that C libraries fall
//! back to clone, whose flags can be seen). The rest is allowed: the virtual machine is the wall, this keeps agents off parts
//! of the guest kernel and off the verifier's vsock.

use libc::sock_filter;

use crate::arch;

/// Refused outright, each with its reason.
const REFUSED: &[(i64, &str)] = &[
    (libc::SYS_mount, "mounts are the verifier's"),
    (libc::SYS_umount2, "mounts are the verifier's"),
    (libc::SYS_pivot_root, "mounts are the verifier's"),
    (libc::SYS_chroot, "mounts are the verifier's"),
    (libc::SYS_move_mount, "mounts are the verifier's"),
    (libc::SYS_open_tree, "mounts are the verifier's"),
    (libc::SYS_fsopen, "mounts are the verifier's"),
    (libc::SYS_fsconfig, "mounts are the verifier's"),
    (libc::SYS_fsmount, "mounts are the verifier's"),
    (libc::SYS_fspick, "mounts are the verifier's"),
    (libc::SYS_mount_setattr, "mounts are the verifier's"),
    (libc::SYS_unshare, "namespaces are kernel attack surface"),
    (libc::SYS_setns, "namespaces are kernel attack surface"),
    (libc::SYS_ptrace, "one process must not become another"),
    (libc::SYS_process_vm_readv, "one process must not become another"),
    (libc::SYS_process_vm_writev, "one process must not become another"),
    (libc::SYS_pidfd_getfd, "one process must not become another"),
    (libc::SYS_kcmp, "tells kernel addresses apart"),
    (libc::SYS_bpf, "kernel attack surface"),
    (libc::SYS_userfaultfd, "widens kernel races"),
    (libc::SYS_io_uring_setup, "makes calls that no filter sees"),
    (libc::SYS_io_uring_enter, "makes calls that no filter sees"),
    (libc::SYS_io_uring_register, "makes calls that no filter sees"),
    (libc::SYS_perf_event_open, "kernel attack surface"),
    (libc::SYS_keyctl, "keyrings are not separated by user here"),
    (libc::SYS_add_key, "keyrings are not separated by user here"),
    (libc::SYS_request_key, "keyrings are not separated by user here"),
    (libc::SYS_kexec_load, "replaces the kernel"),
    (libc::SYS_kexec_file_load, "replaces the kernel"),
    (libc::SYS_init_module, "changes the kernel"),
    (libc::SYS_finit_module, "changes the kernel"),
    (libc::SYS_delete_module, "changes the kernel"),
    (libc::SYS_reboot, "power is the verifier's"),
    (libc::SYS_swapon, "memory is the verifier's"),
    (libc::SYS_swapoff, "memory is the verifier's"),
    (libc::SYS_settimeofday, "the clock is the host's"),
    (libc::SYS_clock_settime, "the clock is the host's"),
    (libc::SYS_clock_adjtime, "the clock is the host's"),
    (libc::SYS_adjtimex, "the clock is the host's"),
    (libc::SYS_sethostname, "names are the host's"),
    (libc::SYS_setdomainname, "names are the host's"),
    (libc::SYS_acct, "writes where no rule looks"),
    (libc::SYS_quotactl, "kernel attack surface"),
    (libc::SYS_syslog, "the kernel's log is the verifier's"),
    (libc::SYS_open_by_handle_at, "opens files around their paths"),
    (libc::SYS_name_to_handle_at, "opens files around their paths"),
    (libc::SYS_fanotify_init, "watches other users' files"),
    (libc::SYS_vhangup, "ends other users' terminals"),
];

/// Every flag of clone(2) that makes a namespace.
const CLONE_NEW: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// memfd_create(2): ask for an executable file without a path.
const MFD_EXEC: u32 = 0x10;

/// Selections of a virtual console (ioctl_console(2)): the other way to push input.
const TIOCLINUX: u32 = 0x541c;

// Offsets in struct seccomp_data; arguments are 64 bits, and the low half comes first on little-endian machines.
const NR: u32 = 0;
const ARCH: u32 = 4;
const fn arg(index: u32) -> u32 {
    16 + 8 * index
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

fn op(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// `if test(k) return value`, on the loaded word.
fn answer_if(program: &mut Vec<sock_filter>, test: u32, k: u32, value: u32) {
    program.extend([op(test, k, 0, 1), op(RETURN, value, 0, 0)]);
}

/// Who the filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtered {
    /// `shell` says whether files without a path may become programs (memfd_create with MFD_EXEC).
    Agent { shell: bool },
    /// Tools have no sockets but Unix ones, and may execute what they like.
    Tools,
}

/// For socket(2): Unix ones; with a network IPv4 and IPv6 too, and the netlink family that lists addresses. vsock above all stays the verifier's.
fn sockets(network: bool) -> Vec<sock_filter> {
    let refused = errno(libc::EPERM);
    match network {
        true => vec![
            op(LOAD, arg(0), 0, 0),
            op(IF_EQUAL, libc::AF_UNIX as u32, 6, 0),
            op(IF_EQUAL, libc::AF_INET as u32, 5, 0),
            op(IF_EQUAL, libc::AF_INET6 as u32, 4, 0),
            op(IF_EQUAL, libc::AF_NETLINK as u32, 0, 2),
            op(LOAD, arg(2), 0, 0),
            op(IF_EQUAL, libc::NETLINK_ROUTE as u32, 1, 0),
            op(RETURN, refused, 0, 0),
            op(RETURN, ALLOW, 0, 0),
        ],
        false => vec![
            op(LOAD, arg(0), 0, 0),
            op(IF_EQUAL, libc::AF_UNIX as u32, 1, 0),
            op(RETURN, refused, 0, 0),
            op(RETURN, ALLOW, 0, 0),
        ],
    }
}

/// The filter.
pub fn filter(who: Filtered) -> Vec<sock_filter> {
    let shell = who != Filtered::Agent { shell: false };
    let refused = errno(libc::EPERM);
    let mut program = vec![
        op(LOAD, ARCH, 0, 0),
        op(IF_EQUAL, arch::AUDIT_ARCH, 1, 0),
        op(RETURN, KILL, 0, 0),
        op(LOAD, NR, 0, 0),
    ];
    if arch::FOREIGN_CALLS_FROM > 0 {
        answer_if(&mut program, IF_AT_LEAST, arch::FOREIGN_CALLS_FROM, refused);
    }
    for (call, _reason) in REFUSED.iter().chain(arch::REFUSED_CALLS) {
        answer_if(&mut program, IF_EQUAL, *call as u32, refused);
    }
    answer_if(&mut program, IF_EQUAL, libc::SYS_clone3 as u32, errno(libc::ENOSYS));
    // Only for `call`: a body that always returns; jumped over otherwise.
    let mut only_for = |call: i64, body: Vec<sock_filter>| {
        program.push(op(IF_EQUAL, call as u32, 0, body.len() as u8));
        program.extend(body);
    };
    only_for(
        libc::SYS_clone,
        vec![
            op(LOAD, arg(0), 0, 0),
            op(IF_ANY_BIT, CLONE_NEW, 0, 1),
            op(RETURN, refused, 0, 0),
            op(RETURN, ALLOW, 0, 0),
        ],
    );
    only_for(libc::SYS_socket, sockets(matches!(who, Filtered::Agent { .. })));
    // A terminal's input comes from the host; a process that could push into it would type for whoever reads next.
    only_for(
        libc::SYS_ioctl,
        vec![
            op(LOAD, arg(1), 0, 0),
            op(IF_EQUAL, libc::TIOCSTI as u32, 1, 0),
            op(IF_EQUAL, TIOCLINUX, 0, 1),
            op(RETURN, refused, 0, 0),
            op(RETURN, ALLOW, 0, 0),
        ],
    );
    if !shell {
        only_for(
            libc::SYS_memfd_create,
            vec![
                op(LOAD, arg(1), 0, 0),
                op(IF_ANY_BIT, MFD_EXEC, 0, 1),
                op(RETURN, refused, 0, 0),
                op(RETURN, ALLOW, 0, 0),
            ],
        );
    }
    program.push(op(RETURN, ALLOW, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's machine, for the instructions used here.
    fn run(program: &[sock_filter], arch: u32, nr: i64, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend_from_slice(&(nr as u32).to_ne_bytes());
        data.extend_from_slice(&arch.to_ne_bytes());
        data.extend_from_slice(&[0; 8]);
        args.iter().for_each(|a| data.extend_from_slice(&a.to_ne_bytes()));
        let (mut pc, mut word) = (0usize, 0u32);
        loop {
            let op = program[pc];
            let jump = |yes: bool| usize::from(if yes { op.jt } else { op.jf });
            pc += 1;
            match u32::from(op.code) {
                LOAD => word = u32::from_ne_bytes(data[op.k as usize..][..4].try_into().unwrap()),
                RETURN => return op.k,
                IF_EQUAL => pc += jump(word == op.k),
                IF_AT_LEAST => pc += jump(word >= op.k),
                IF_ANY_BIT => pc += jump(word & op.k != 0),
                other => panic!("instruction {other}"),
            }
        }
    }

    fn here(nr: i64, args: [u64; 6]) -> u32 {
        run(&filter(Filtered::Agent { shell: false }), arch::AUDIT_ARCH, nr, args)
    }

    #[test]
    fn every_listed_call_is_refused_and_ordinary_ones_pass() {
        for (call, reason) in REFUSED.iter().chain(arch::REFUSED_CALLS) {
            assert_eq!(here(*call, [0; 6]), errno(libc::EPERM), "{call} {reason}");
        }
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_connect, libc::SYS_futex, libc::SYS_kill] {
            assert_eq!(here(call, [0; 6]), ALLOW, "{call}");
        }
    }

    #[test]
    fn another_architecture_kills_and_another_abi_is_refused() {
        assert_eq!(run(&filter(Filtered::Tools), 0x4000_0003, libc::SYS_read, [0; 6]), KILL);
        if arch::FOREIGN_CALLS_FROM > 0 {
            assert_eq!(here(i64::from(arch::FOREIGN_CALLS_FROM), [0; 6]), errno(libc::EPERM));
        }
    }

    #[test]
    fn sockets_are_local_or_ip() {
        let socket =
            |domain: i32, protocol: i32| here(libc::SYS_socket, [domain as u64, 1, protocol as u64, 0, 0, 0]);
        for domain in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
            assert_eq!(socket(domain, 0), ALLOW, "{domain}");
        }
        assert_eq!(socket(libc::AF_NETLINK, libc::NETLINK_ROUTE), ALLOW);
        assert_eq!(socket(libc::AF_NETLINK, libc::NETLINK_AUDIT), errno(libc::EPERM));
        for domain in [libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_BLUETOOTH, 0, 99] {
            assert_eq!(socket(domain, 0), errno(libc::EPERM), "{domain}");
        }
    }

    #[test]
    fn tools_have_no_sockets_but_unix_ones() {
        let socket = |domain: i32| {
            run(&filter(Filtered::Tools), arch::AUDIT_ARCH, libc::SYS_socket, [domain as u64, 1, 0, 0, 0, 0])
        };
        assert_eq!(socket(libc::AF_UNIX), ALLOW);
        for domain in
            [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK, libc::AF_PACKET, 0, 99]
        {
            assert_eq!(socket(domain), errno(libc::EPERM), "{domain}");
        }
    }

    #[test]
    fn threads_pass_and_namespaces_do_not() {
        let clone = |flags: i32| here(libc::SYS_clone, [flags as u32 as u64, 0, 0, 0, 0, 0]);
        assert_eq!(clone(libc::CLONE_VM | libc::CLONE_THREAD | libc::SIGCHLD), ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
            assert_eq!(clone(flag | libc::SIGCHLD), errno(libc::EPERM), "{flag:x}");
        }
        assert_eq!(here(libc::SYS_clone3, [0; 6]), errno(libc::ENOSYS));
    }

    #[test]
    fn nobody_types_into_a_terminal() {
        // The kernel reads 32 bits of the request: what stands above must not hide it.
        for request in [libc::TIOCSTI, 1 << 32 | libc::TIOCSTI, u64::from(TIOCLINUX)] {
            assert_eq!(here(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]), errno(libc::EPERM), "{request:x}");
        }
        for request in [libc::TIOCGWINSZ, libc::TCGETS, libc::FIONREAD] {
            assert_eq!(here(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]), ALLOW, "{request:x}");
        }
    }

    #[test]
    fn an_executable_memfd_needs_shell() {
        let args = [0, u64::from(MFD_EXEC) | 1, 0, 0, 0, 0];
        assert_eq!(here(libc::SYS_memfd_create, args), errno(libc::EPERM));
        assert_eq!(here(libc::SYS_memfd_create, [0, 1, 0, 0, 0, 0]), ALLOW);
        for who in [Filtered::Agent { shell: true }, Filtered::Tools] {
            assert_eq!(run(&filter(who), arch::AUDIT_ARCH, libc::SYS_memfd_create, args), ALLOW);
        }
    }
}
