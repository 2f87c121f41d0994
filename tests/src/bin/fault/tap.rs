//! A TAP in a network namespace of its own, as egress makes one for each VM.

#![expect(unsafe_code, reason = "the ioctls of /dev/net/tun and of interfaces have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::thread::UnshareFlags;

/// Makes a namespace with a persistent TAP of a uid, up, with an address if one is given, and gives the namespace. It lives as long as
/// the descriptor.
pub fn make(name: &'static str, uid: u32, address: Option<[u8; 4]>) -> Result<OwnedFd> {
    // A thread of its own: namespaces belong to threads.
    let made = std::thread::spawn(move || -> Result<OwnedFd> {
        cage::sys::leave_namespaces(UnshareFlags::NEWNET).context("namespace")?;
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
        configure(&tun, name, uid, address)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// As docs of the kernel say: Documentation/networking/tuntap.rst; netdevice(7) for the flags.
fn configure(tun: &File, name: &str, uid: u32, address: Option<[u8; 4]>) -> Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all bytes zero is a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) }, "TUNSETIFF")?;
    // SAFETY: both take a number.
    checked(
        unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOWNER as _, libc::c_ulong::from(uid)) },
        "TUNSETOWNER",
    )?;
    // SAFETY: as above.
    checked(
        unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST as _, 1 as libc::c_ulong) },
        "TUNSETPERSIST",
    )?;
    if let Some(address) = address {
        // struct sockaddr_in: family, port, address.
        let mut data = [0; 14];
        for (to, from) in data.iter_mut().skip(2).zip(address) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as _, sa_data: data };
        // SAFETY: SIOCSIFADDR reads one ifreq.
        checked(
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &raw const request) },
            "SIOCSIFADDR",
        )?;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    checked(
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) },
        "SIOCSIFFLAGS",
    )
}

fn checked(outcome: libc::c_int, what: &'static str) -> Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()).context(what) } else { Ok(()) }
}
