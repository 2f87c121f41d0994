//! Interfaces of the calling thread's network namespace: up, hardware address, addresses, neighbours, settings.
//!
//! Must hold: each step may be done twice (a namespace is adopted after a restart).

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, Ifinfomsg};
use netlink_bindings::rt_neigh::{self, Ndmsg};
use netlink_socket2::NetlinkSocket;
use rustix::net::{AddressFamily, SocketType};
use std::io;
use std::net::Ipv4Addr;

/// IFF_UP.
const UP: u32 = 1;
const AF_INET: u8 = 2;
/// NUD_PERMANENT.
const PERMANENT: u16 = 0x80;

/// A hardware address.
pub type Mac = [u8; 6];

/// Netlink in one namespace.
pub struct Links {
    netlink: NetlinkSocket,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Links")
    }
}

impl Links {
    /// For the calling thread's namespace.
    pub fn here() -> Links {
        Links { netlink: NetlinkSocket::new() }
    }

    /// Brings an interface up.
    pub fn up(&mut self, name: &str) -> io::Result<()> {
        let header =
            Ifinfomsg { ifi_index: index(name)?, ifi_flags: UP, ifi_change: UP, ..Default::default() };
        let request = rt_link::Request::new().op_setlink_do(&header);
        self.netlink.request(&request)?.recv_ack().map_err(refused)
    }

    /// Sets hardware address and MTU of an interface that is down.
    pub fn configure(&mut self, name: &str, mac: Mac, mtu: u16) -> io::Result<()> {
        let header = Ifinfomsg { ifi_index: index(name)?, ..Default::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_address(&mac).push_mtu(u32::from(mtu));
        self.netlink.request(&request)?.recv_ack().map_err(refused)
    }

    /// Gives an interface an address.
    pub fn address(&mut self, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let header = Ifaddrmsg {
            ifa_family: AF_INET,
            ifa_prefixlen: prefix,
            ifa_index: u32::try_from(index(name)?).map_err(io::Error::other)?,
            ..Default::default()
        };
        let mut request = rt_addr::Request::new().set_create().set_replace().op_newaddr_do(&header);
        request.encode().push_local(address.into()).push_address(address.into());
        self.netlink.request(&request)?.recv_ack().map_err(refused)
    }

    /// Fixes the hardware address behind an address, so that nobody has to be asked.
    pub fn neighbour(&mut self, name: &str, address: Ipv4Addr, mac: Mac) -> io::Result<()> {
        let header = Ndmsg {
            ndm_family: AF_INET,
            ndm_ifindex: index(name)?,
            ndm_state: PERMANENT,
            ..Default::default()
        };
        let mut request = rt_neigh::Request::new().set_create().set_replace().op_newneigh_do(&header);
        request.encode().push_dst(address.into()).push_lladdr(&mac);
        self.netlink.request(&request)?.recv_ack().map_err(refused)
    }
}

fn refused(error: netlink_socket2::ReplyError) -> io::Error {
    let kind = error.as_io_error().kind();
    io::Error::new(kind, error.to_string())
}

fn index(name: &str) -> io::Result<i32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let index = rustix::net::netdevice::name_to_index(&socket, name)?;
    i32::try_from(index).map_err(io::Error::other)
}

/// Writes a setting below /proc/sys/net of the calling thread's namespace. A kernel without the feature has no such file:
/// that counts as done, since all settings here switch something off.
pub fn setting(path: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{path}");
    match std::fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// `xx:xx:xx:xx:xx:xx`
pub fn mac_text(mac: Mac) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}
