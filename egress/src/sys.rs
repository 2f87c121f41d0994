//! The system calls of egress that have no safe wrapper elsewhere: tun(4) ioctls and unshare(2).
//!
//! Must hold: each function makes one system call and says what it needs.

#![expect(unsafe_code, reason = "tun(4) ioctls and unshare(2) have no safe wrapper in rustix")]

use rustix::thread::UnshareFlags;
use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// IFF_TAP | IFF_NO_PI | IFF_VNET_HDR (linux/if_tun.h): Ethernet frames with a virtio header, as libkrun wants them.
const TAP_FLAGS: libc::c_short = 0x0002 | 0x1000 | 0x4000;
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNSETOWNER: u64 = 0x4004_54cc;
const TUNSETGROUP: u64 = 0x4004_54ce;

/// Makes the TAP `name`, or attaches to it. `tun` is a fresh open of /dev/net/tun; the device belongs to the network
/// namespace in which it was opened.
pub fn tun_set_interface(tun: &File, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain old data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name `{name}` is too long"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = TAP_FLAGS;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &mut request) })
}

/// Lets the TAP outlive its descriptor; its namespace still ends it. `tun` is attached.
pub fn tun_set_persistent(tun: &File) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST as _, 1) })
}

/// Lets a user without capabilities attach to the TAP. `tun` is attached.
pub fn tun_set_owner(tun: &File, uid: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETOWNER as _, libc::c_ulong::from(uid)) })
}

/// Sets the group without which only the owner may attach. `tun` is attached.
pub fn tun_set_group(tun: &File, gid: u32) -> io::Result<()> {
    // SAFETY: TUNSETGROUP takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETGROUP as _, libc::c_ulong::from(gid)) })
}

/// Puts the calling thread into a new network namespace. Needs CAP_SYS_ADMIN.
pub fn new_network_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET changes neither memory nor the table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

fn check(returned: c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
