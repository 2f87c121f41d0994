//! What a VMM would try that its guest has taken over: each attempt by name, with the wall that refuses it.

#![expect(unsafe_code, reason = "attempts are system calls by their numbers")]

use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

/// Things of the host that exist, and what the attacker knows of them. Stands at the beginning of his own disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outside {
    /// A directory with a file for everybody, another jail's disk, and a socket that anybody may connect to.
    pub dir: String,
    pub tcp_port: u16,
    pub abstract_socket: String,
    /// The test itself, which has cage's part.
    pub cage: i32,
    /// The process of another jail.
    pub neighbour: i32,
}

/// Which walls refuse an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// Identity, namespaces, mounts, Landlock and limits; the filter has to let the call itself pass.
    Jail,
    /// Only the filter: without it the kernel would do it for anybody.
    Filter,
    /// Either alone.
    Both,
}
use Wall::{Both, Filter, Jail};

pub type Attempt = (&'static str, Wall, fn(&Outside) -> io::Result<()>);

fn text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap()
}

fn call<const N: usize>(number: i64, args: [usize; N]) -> io::Result<()> {
    let arg = |n: usize| args.get(n).copied().unwrap_or(0);
    // SAFETY: the callers give numbers and pointers that live across the call; what it does to this process, the test is about.
    match unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn open(path: &str, flags: i32) -> io::Result<()> {
    let path = text(path);
    call(libc::SYS_openat, [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags as usize, 0o600])
}

fn connect(path: String) -> io::Result<()> {
    UnixStream::connect(path).map(drop)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    call(libc::SYS_socket, [family as usize, kind as usize, protocol as usize])
}

/// A call with one path, and numbers after it.
fn with_path<const N: usize>(number: i64, path: &str, rest: [usize; N]) -> io::Result<()> {
    let path = text(path);
    let arg = |n: usize| rest.get(n).copied().unwrap_or(0);
    call(number, [path.as_ptr() as usize, arg(0), arg(1), arg(2), arg(3)])
}

const HERE: usize = libc::AT_FDCWD as usize;
const SCRATCH: &str = "/scratch.ext4";
const FAR: usize = 1 << 40;

fn scratch() -> i32 {
    let path = text(SCRATCH);
    // SAFETY: a NUL-terminated path.
    unsafe { libc::open(path.as_ptr(), libc::O_RDWR) }
}

/// struct sched_param of a real-time priority.
static PRIORITY: i32 = 10;
/// struct __user_cap_header_struct and all capabilities.
static CAPABILITIES: ([u32; 2], [u32; 6]) = ([0x2008_0522, 0], [u32::MAX; 6]);
static LIMIT: [u64; 2] = [u64::MAX, u64::MAX];
static ZEROS: [u64; 64] = [0; 64];

fn zeros() -> usize {
    ZEROS.as_ptr() as usize
}

/// struct iovec of eight bytes.
fn part() -> usize {
    static PART: [u64; 2] = [0x1000, 8];
    PART.as_ptr() as usize
}

/// By what is at stake.
#[rustfmt::skip]
pub const ATTEMPTS: &[Attempt] = &[
    // Files.
    ("read /proc", Jail, |_| open("/proc/1/mem", libc::O_RDWR)),
    ("read /sys", Jail, |_| open("/sys/kernel/notes", libc::O_RDONLY)),
    ("read /etc", Jail, |_| open("/etc/passwd", libc::O_RDONLY)),
    ("climb out by ..", Jail, |_| open("/../../../../etc/passwd", libc::O_RDONLY)),
    ("read a file that anybody may read", Jail, |o| open(&format!("{}/public", o.dir), libc::O_RDONLY)),
    ("read another jail's disk", Jail, |o| open(&format!("{}/neighbour", o.dir), libc::O_RDWR)),
    ("write the kernel", Jail, |_| open("/vmlinux", libc::O_WRONLY)),
    ("write the initramfs", Jail, |_| open("/initramfs.cpio", libc::O_RDWR)),
    ("write the lowest layer", Jail, |_| open("/rootfs0.squashfs", libc::O_RDWR)),
    ("write the highest layer", Jail, |_| open("/rootfs1.squashfs", libc::O_RDWR)),
    ("cut a layer off", Both, |_| with_path(libc::SYS_truncate, "/rootfs0.squashfs", [0])),
    ("write a volume that is only to be read", Jail, |_| open("/volume1.ext4", libc::O_RDWR)),
    ("list the root", Jail, |_| open("/", libc::O_RDONLY | libc::O_DIRECTORY)),
    ("fill the root", Jail, |_| open("/filler", libc::O_CREAT | libc::O_WRONLY)),
    ("fill /dev", Jail, |_| open("/dev/filler", libc::O_CREAT | libc::O_WRONLY)),
    ("make a nameless file", Jail, |_| open("/vsock", libc::O_TMPFILE | libc::O_RDWR)),
    ("grow the disk by writing behind its end", Both, |_| call(libc::SYS_pwrite64, [scratch() as usize, zeros(), 512, FAR])),
    ("grow the disk by reserving", Jail, |_| call(libc::SYS_fallocate, [scratch() as usize, 0, FAR, 4096])),
    ("grow the disk by setting its length", Both, |_| call(libc::SYS_ftruncate, [scratch() as usize, FAR])),
    ("remove the disk", Both, |_| with_path(libc::SYS_unlink, SCRATCH, [])),
    ("remove the control socket", Both, |_| with_path(libc::SYS_unlink, "/vsock/control", [])),
    ("make a directory", Both, |_| with_path(libc::SYS_mkdir, "/vsock/mine", [0o700])),
    ("make a link", Both, |_| { let to = text("/vsock/link"); with_path(libc::SYS_symlink, "/", [to.as_ptr() as usize]) }),
    ("rename a layer", Both, |_| { let to = text("/vmlinux"); with_path(libc::SYS_rename, "/rootfs0.squashfs", [to.as_ptr() as usize]) }),
    ("open a file by its handle", Both, |_| call(libc::SYS_open_by_handle_at, [HERE, [8u32, 1, 2, 0].as_ptr() as usize, 0])),
    ("change the owner of a layer", Both, |_| with_path(libc::SYS_chown, "/rootfs0.squashfs", [0, 0])),
    ("change the mode of a layer", Both, |_| with_path(libc::SYS_chmod, "/rootfs0.squashfs", [0o777])),
    ("make the disk set-user-id", Filter, |_| with_path(libc::SYS_chmod, SCRATCH, [0o4777])),
    ("watch files", Filter, |_| call(libc::SYS_inotify_init1, [0])),
    ("watch all files", Both, |_| call(libc::SYS_fanotify_init, [0, 0])),
    // Devices.
    ("open /dev/mem", Jail, |_| open("/dev/mem", libc::O_RDWR)),
    ("open a disk of the node", Jail, |_| open("/dev/vda", libc::O_RDWR)),
    ("open the TAP's device without a network", Jail, |_| open("/dev/net/tun", libc::O_RDWR)),
    ("make the node of /dev/mem", Both, |_| with_path(libc::SYS_mknod, "/vsock/mem", [(libc::S_IFCHR | 0o600) as usize, 0x101])),
    ("type into a terminal", Both, |_| call(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, zeros()])),
    ("take ports of the machine", Both, |_| call(libc::SYS_iopl, [3])),
    // Mounts and namespaces.
    ("mount", Both, |_| with_path(libc::SYS_mount, "none", [text("/vsock").as_ptr() as usize, text("tmpfs").as_ptr() as usize])),
    ("mount the cgroups", Both, |_| with_path(libc::SYS_mount, "none", [text("/vsock").as_ptr() as usize, text("cgroup2").as_ptr() as usize])),
    ("unmount a layer", Both, |_| with_path(libc::SYS_umount2, "/rootfs0.squashfs", [libc::MNT_DETACH as usize])),
    ("copy a mount", Both, |_| call(libc::SYS_open_tree, [HERE, text("/").as_ptr() as usize, 1])),
    ("open a file system", Both, |_| with_path(libc::SYS_fsopen, "tmpfs", [])),
    ("pivot the root", Both, |_| with_path(libc::SYS_pivot_root, "/", [text("/").as_ptr() as usize])),
    ("change the root", Both, |_| with_path(libc::SYS_chroot, "/vsock", [])),
    ("make mounts its own", Both, |_| call(libc::SYS_unshare, [libc::CLONE_NEWNS as usize])),
    ("make itself root of a user namespace", Filter, |_| call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize])),
    ("enter a namespace", Both, |_| call(libc::SYS_setns, [0, 0])),
    ("rename the host", Both, |_| with_path(libc::SYS_sethostname, "mine", [4])),
    // Processes.
    ("trace cage", Both, |o| call(libc::SYS_ptrace, [libc::PTRACE_ATTACH as usize, o.cage as usize])),
    ("trace the neighbour", Both, |o| call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, o.neighbour as usize])),
    ("read cage's memory", Both, |o| call(libc::SYS_process_vm_readv, [o.cage as usize, part(), 1, part(), 1])),
    ("write the neighbour's memory", Both, |o| call(libc::SYS_process_vm_writev, [o.neighbour as usize, part(), 1, part(), 1])),
    ("open cage's process", Both, |o| call(libc::SYS_pidfd_open, [o.cage as usize, 0])),
    ("take a descriptor of another's", Both, |_| call(libc::SYS_pidfd_getfd, [0, 0, 0])),
    ("compare with cage", Both, |o| call(libc::SYS_kcmp, [1, o.cage as usize, 0, 0, 0])),
    ("kill cage", Both, |o| call(libc::SYS_kill, [o.cage as usize, libc::SIGKILL as usize])),
    ("kill the neighbour", Both, |o| call(libc::SYS_kill, [o.neighbour as usize, libc::SIGKILL as usize])),
    ("kill everything", Both, |_| call(libc::SYS_kill, [usize::MAX, libc::SIGKILL as usize])),
    ("kill a thread of cage", Jail, |o| call(libc::SYS_tgkill, [o.cage as usize, o.cage as usize, libc::SIGKILL as usize])),
    ("kill by a number alone", Jail, |o| call(libc::SYS_tkill, [o.neighbour as usize, libc::SIGKILL as usize])),
    ("fork", Filter, |_| call(libc::SYS_fork, [])),
    ("clone a process", Filter, |_| call(libc::SYS_clone, [libc::SIGCHLD as usize])),
    ("clone in new namespaces", Both, |_| call(libc::SYS_clone, [(libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::SIGCHLD) as usize])),
    ("clone by the new call", Filter, |_| call(libc::SYS_clone3, [zeros(), 64])),
    ("execute a layer", Both, |_| with_path(libc::SYS_execve, "/rootfs0.squashfs", [zeros(), zeros()])),
    ("execute the disk", Both, |_| with_path(libc::SYS_execve, SCRATCH, [zeros(), zeros()])),
    ("make a file in memory", Filter, |_| with_path(libc::SYS_memfd_create, "code", [0])),
    ("execute by a descriptor", Both, |_| call(libc::SYS_execveat, [scratch() as usize, text("").as_ptr() as usize, zeros(), zeros(), libc::AT_EMPTY_PATH as usize])),
    ("map memory to execute", Filter, |_| call(libc::SYS_mmap, [0, 4096, 7, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize, usize::MAX, 0])),
    ("make memory executable", Filter, |_| call(libc::SYS_mprotect, [zeros() & !4095, 4096, 5])),
    // Network.
    ("connect to the host by TCP", Both, |o| {
        std::net::TcpStream::connect(("127.0.0.1", o.tcp_port)).map(drop)
    }),
    ("make a UDP socket", Filter, |_| socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
    ("make an IPv6 socket", Filter, |_| socket(libc::AF_INET6, libc::SOCK_STREAM, 0)),
    ("make a netlink socket", Filter, |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("make a packet socket", Both, |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0x300)),
    ("make a raw socket", Both, |_| socket(libc::AF_INET, libc::SOCK_RAW, 6)),
    ("make a vsock socket", Filter, |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("make a socket of the kernel's ciphers", Filter, |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("make a pair of sockets", Filter, |_| call(libc::SYS_socketpair, [1, 1, 0, zeros()])),
    ("connect to nulld", Jail, |_| connect("/run/nulld.sock".into())),
    ("connect to cage", Jail, |_| connect("/run/nulld/cage.sock".into())),
    ("connect to egress", Jail, |_| connect("/run/nulld/egress.sock".into())),
    ("connect to a socket that anybody may reach", Jail, |o| connect(format!("{}/public.sock", o.dir))),
    ("connect to an abstract socket", Jail, |o| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(&o.abstract_socket)?).map(drop)
    }),
    ("listen", Filter, |_| call(libc::SYS_listen, [0, 1])),
    ("pass a descriptor", Filter, |_| call(libc::SYS_sendmsg, [0, zeros(), 0])),
    // Privileges.
    ("become root", Both, |_| call(libc::SYS_setuid, [0])),
    ("become the neighbour", Both, |_| call(libc::SYS_setresuid, [100_062, 100_062, 100_062])),
    ("become root's group", Both, |_| call(libc::SYS_setgid, [0])),
    ("join root's group", Both, |_| call(libc::SYS_setgroups, [1, zeros()])),
    ("take capabilities", Both, |_| call(libc::SYS_capset, [&raw const CAPABILITIES.0 as usize, &raw const CAPABILITIES.1 as usize])),
    ("keep capabilities in new programs", Both, |_| call(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as usize, 2, 21, 0, 0])),
    ("be dumped", Filter, |_| call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1])),
    ("outlive cage", Filter, |_| call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, 0])),
    ("gain privileges again", Jail, |_| call(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 0, 0, 0, 0])),
    ("raise a limit", Both, |_| call(libc::SYS_setrlimit, [libc::RLIMIT_FSIZE as usize, LIMIT.as_ptr() as usize])),
    ("raise another's limit", Both, |o| call(libc::SYS_prlimit64, [o.neighbour as usize, 1, LIMIT.as_ptr() as usize, 0])),
    ("run in real time", Both, |_| call(libc::SYS_sched_setscheduler, [0, 1, &raw const PRIORITY as usize])),
    ("run before others", Both, |_| call(libc::SYS_setpriority, [0, 0, -10isize as usize])),
    ("write disks before others", Both, |_| call(libc::SYS_ioprio_set, [1, 0, 1 << 13])),
    ("take the handler of refused calls away", Filter, |_| call(libc::SYS_rt_sigaction, [libc::SIGSYS as usize, zeros(), 0, 8])),
    // The kernel's wide doors.
    ("use io_uring", Filter, |_| call(libc::SYS_io_uring_setup, [1, zeros()])),
    ("load a BPF program", Filter, |_| call(libc::SYS_bpf, [5, zeros(), 64])),
    ("handle page faults", Filter, |_| call(libc::SYS_userfaultfd, [0])),
    ("measure performance", Filter, |_| call(libc::SYS_perf_event_open, [zeros(), 0, usize::MAX, usize::MAX, 0])),
    ("use a keyring", Filter, |_| call(libc::SYS_keyctl, [1, 0])),
    ("add a key", Filter, |_| call(libc::SYS_add_key, [zeros(), zeros(), 0, 0, 0])),
    ("lay out memory as another system", Filter, |_| call(libc::SYS_personality, [0x0040_0000])),
    ("make segments", Filter, |_| call(libc::SYS_modify_ldt, [0, zeros(), 0])),
    ("copy between descriptors in the kernel", Filter, |_| call(libc::SYS_splice, [0, 0, 1, 0, 1, 0])),
    ("lock memory", Both, |_| call(libc::SYS_mlockall, [1])),
    ("use shared memory of System V", Filter, |_| call(libc::SYS_shmget, [0, 4096, 0o1600])),
    ("make a message queue", Filter, |_| with_path(libc::SYS_mq_open, "mine", [0o102, 0o600, 0])),
    ("load a module", Both, |_| call(libc::SYS_init_module, [zeros(), 0, zeros()])),
    ("load a kernel", Both, |_| call(libc::SYS_kexec_load, [0, 0, 0, 0])),
    ("restart the node", Both, |_| call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0x0123_4567, 0])),
    ("read the kernel's log", Both, |_| call(libc::SYS_syslog, [3, zeros(), 8])),
    ("set the clock", Both, |_| call(libc::SYS_clock_settime, [0, zeros()])),
    ("swap", Both, |_| with_path(libc::SYS_swapon, SCRATCH, [0])),
    ("count accounts", Both, |_| with_path(libc::SYS_acct, SCRATCH, [])),
    ("call by the numbers of x32", Filter, |_| call(0x4000_0000 | libc::SYS_getpid, [])),
];

/// A 32-bit call, which the filter's architecture refuses: getpid.
pub fn call_as_i386() {
    // SAFETY: takes no argument and changes but the one register.
    unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
}

/// Ignores a signal.
pub fn ignore(signal: rustix::process::Signal) -> bool {
    // SAFETY: SIG_IGN is no handler.
    unsafe { libc::signal(signal.as_raw(), libc::SIG_IGN) != libc::SIG_ERR }
}

/// Whether a descriptor is open.
pub fn is_open(fd: i32) -> bool {
    // SAFETY: asks for flags only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}
