//! System calls that no safe crate offers. Each wrapper makes one call and states what makes it sound.
//!
//! Must hold: PID 1 has one thread, so that a child of [`fork`] may go on as ordinary code.

#![expect(
    unsafe_code,
    reason = "vsock addresses, fork and exec, Landlock, seccomp, interface ioctls and ext4 growth have no safe wrapper"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// The host's context id (vsock(7), VMADDR_CID_HOST).
const HOST_CID: u32 = 2;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A vsock stream socket, close-on-exec.
pub fn vsock(nonblocking: bool) -> io::Result<OwnedFd> {
    let nonblocking = if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | nonblocking, 0) };
    check(fd.into())?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects a vsock socket to a port of the host. A non-blocking socket answers EINPROGRESS.
pub fn vsock_connect(socket: BorrowedFd<'_>, port: u32) -> io::Result<()> {
    // SAFETY: sockaddr_vm is plain old data; all zeros is a value of it.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = HOST_CID;
    address.svm_port = port;
    let length = mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: `address` lives across the call and `length` is its size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    check(result.into()).map(drop)
}

/// SIGCHLD as a descriptor, and every signal that could end or stop PID 1 blocked. Call once, at start.
pub fn signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain old data, filled by the next call.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a valid sigset_t.
    unsafe { libc::sigfillset(&raw mut set) };
    // Faults must stay deliverable: blocked, they would end the process without a word.
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
        // SAFETY: `set` is a valid sigset_t and the number is a signal.
        unsafe { libc::sigdelset(&raw mut set, signal) };
    }
    // SAFETY: `set` is initialised; the old set is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) }.into())?;
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd.into())?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// In a child before exec: no signal blocked, SIGPIPE as it is for programs (Rust ignores it).
pub fn default_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: sigset_t is plain old data, filled by the next call.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a valid sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: `set` is initialised; the old set is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) }.into()).map(drop)
}

/// fork(2): the child's pid in the parent, none in the child.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: this process has one thread (module rule), so no lock can be held by another one in the child.
    let pid = unsafe { libc::fork() };
    check(pid.into())?;
    Ok((pid > 0).then_some(pid))
}

/// Ends a child of [`fork`] at once, without the parent's exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// execve(2); returns only when it failed.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with null and point to NUL-terminated texts that live across the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Sends a signal to every process but this one. Legal in PID 1 only: elsewhere it reaches the whole machine.
pub fn signal_all(signal: i32) {
    // SAFETY: kill(2) takes no pointers. With nobody left it fails with ESRCH, which is no error here.
    unsafe { libc::kill(-1, signal) };
}

/// Sends any signal number to a process group. The leader must not have been reaped yet.
pub fn signal_group(leader: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes no pointers.
    check(unsafe { libc::kill(-leader, signal) }.into()).map(drop)
}

/// unshare(2): mounts and System V objects of this process are its own from here on. Legal with one thread.
pub fn unshare_mounts_and_ipc() -> io::Result<()> {
    // SAFETY: the call takes no pointers, and changes no descriptor table.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC) }.into()).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2)).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range(2) takes no pointers; close-on-exec does not change who owns a descriptor now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// In a child of [`fork`] that will not exec: closes every descriptor from `first` on but those in `keep` (close_range(2)).
/// Nothing of the parent's may be used afterwards: the child ends with [`exit_now`], so no owner closes a second time.
pub fn close_from(first: u32, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    keep.sort_unstable();
    let mut from = first;
    for until in keep.into_iter().chain([u32::MAX]) {
        if from < until {
            // SAFETY: close_range(2) takes no pointers; that the descriptors' owners are done is the caller's to hold.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, until - 1, 0) })?;
        }
        from = from.max(until.saturating_add(1));
    }
    Ok(())
}

/// The kernel's Landlock ABI (landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION).
pub fn landlock_abi() -> io::Result<i64> {
    // SAFETY: with this flag the kernel reads no attributes, so null and 0 are what it wants.
    check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0usize, 1u32) })
}

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// landlock_create_ruleset(2): a ruleset that refuses every handled right.
pub fn landlock_ruleset(handled: u64, scoped: u64) -> io::Result<OwnedFd> {
    let attr = RulesetAttr { handled_access_fs: handled, handled_access_net: 0, scoped };
    let size = mem::size_of::<RulesetAttr>();
    // SAFETY: `attr` lives across the call and `size` is its size.
    let fd = check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0u32) })?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// landlock_add_rule(2), LANDLOCK_RULE_PATH_BENEATH.
pub fn landlock_allow(ruleset: BorrowedFd<'_>, path: BorrowedFd<'_>, rights: u64) -> io::Result<()> {
    let attr = PathBeneathAttr { allowed_access: rights, parent_fd: path.as_raw_fd() };
    // SAFETY: `attr` lives across the call and has the layout of rule type 1.
    check(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), 1u32, &raw const attr, 0u32)
    })
    .map(drop)
}

/// landlock_restrict_self(2): this thread and its children, for ever. Needs no_new_privs.
pub fn landlock_enter(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) }).map(drop)
}

/// seccomp(2), SECCOMP_SET_MODE_FILTER: this thread and its children, for ever. Needs no_new_privs.
pub fn seccomp_enter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` and the instructions it points to live across the call; the kernel copies and does not write them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const program)
    })
    .map(drop)
}

/// EXT4_IOC_RESIZE_FS: grows a mounted ext4 to a number of blocks.
pub fn ext4_grow(mounted: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610; // _IOW('f', 16, __u64)
    // SAFETY: the request reads one u64, which lives across the call.
    check(unsafe { libc::ioctl(mounted.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) }.into())
        .map(drop)
}

/// mount_setattr(2): makes a mount read-only. Of a detached one it needs no more than its descriptor.
pub fn mount_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = mem::size_of::<libc::mount_attr>();
    // SAFETY: the path is an empty text, `attributes` lives across the call and `size` is its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    })
    .map(drop)
}

/// What an interface ioctl sets (netdevice(7)).
#[derive(Debug, Clone, Copy)]
pub enum InterfaceSetting {
    Address(Ipv4Addr),
    Netmask(Ipv4Addr),
    Mtu(i32),
    Up,
}

fn ipv4(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain old data of the same size; the kernel reads it by its family.
    unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

/// Changes one setting of an interface, through any IPv4 socket. A name above 15 bytes is cut.
pub fn set_interface(socket: BorrowedFd<'_>, name: &str, setting: InterfaceSetting) -> io::Result<()> {
    // SAFETY: ifreq is plain old data; all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    let call = match setting {
        InterfaceSetting::Address(address) => {
            request.ifr_ifru.ifru_addr = ipv4(address);
            libc::SIOCSIFADDR
        }
        InterfaceSetting::Netmask(mask) => {
            request.ifr_ifru.ifru_netmask = ipv4(mask);
            libc::SIOCSIFNETMASK
        }
        InterfaceSetting::Mtu(mtu) => {
            request.ifr_ifru.ifru_mtu = mtu;
            libc::SIOCSIFMTU
        }
        InterfaceSetting::Up => {
            request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
            libc::SIOCSIFFLAGS
        }
    };
    // SAFETY: `request` lives across the call and is filled as this request reads it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), call as _, &raw mut request) }.into()).map(drop)
}

/// Adds the default route (SIOCADDRT, rtentry of route(7)).
pub fn add_default_route(socket: BorrowedFd<'_>, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: rtentry is plain old data; all zeros is a value of it (null device: the kernel chooses by the gateway).
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = ipv4(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = ipv4(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = ipv4(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: `route` lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw mut route) }.into()).map(drop)
}

/// An IPv4 socket to pass interface requests through.
pub fn interface_socket() -> io::Result<OwnedFd> {
    std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.as_fd().try_clone_to_owned())
}
