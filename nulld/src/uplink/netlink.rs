//! The four requests to the kernel that an uplink needs, over rtnetlink (rtnetlink(7), linux/rtnetlink.h).
//!
//! Must hold: each request is acknowledged or refused by the kernel before the next one. Must never: listen to anyone but the
//! kernel; the socket is not bound to a group.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const REQUEST_ACK: u16 = 0x1 | 0x4;
const CREATE_REPLACE: u16 = 0x400 | 0x100;
const HEADER_BYTES: usize = 16;
const INET: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_DHCP: u8 = 16;
const TYPE_UNICAST: u8 = 1;
/// RTNH_F_ONLINK: a gateway need not be inside the prefix (leases with a /32 exist).
const ONLINK: u32 = 4;
const IFF_UP: u32 = 1;

/// A socket to the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens it. An answer is awaited for two seconds at most.
    pub fn open() -> io::Result<Netlink> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE is protocol 0
        )?;
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(2)))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sets an interface up.
    pub fn link_up(&mut self, index: u32) -> io::Result<()> {
        let mut body = vec![0, 0, 0, 0];
        for word in [index, IFF_UP, IFF_UP] {
            body.extend(word.to_ne_bytes());
        }
        self.request(RTM_NEWLINK, 0, body)
    }

    /// Gives an interface an address, or renews it.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut body = address_body(index, address, prefix);
        if prefix < 31 {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            let broadcast = Ipv4Addr::from_bits(address.to_bits() | host_bits);
            attribute(&mut body, IFA_BROADCAST, &broadcast.octets());
        }
        self.request(RTM_NEWADDR, CREATE_REPLACE, body)
    }

    /// Takes an address away.
    pub fn remove_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.request(RTM_DELADDR, 0, address_body(index, address, prefix))
    }

    /// Sends everything else to a gateway.
    pub fn set_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut body = vec![INET, 0, 0, 0, TABLE_MAIN, PROTOCOL_DHCP, 0, TYPE_UNICAST];
        body.extend(ONLINK.to_ne_bytes());
        attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        attribute(&mut body, RTA_GATEWAY, &gateway.octets());
        self.request(RTM_NEWROUTE, CREATE_REPLACE, body)
    }

    fn request(&mut self, kind: u16, flags: u16, body: Vec<u8>) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = encode(kind, REQUEST_ACK | flags, self.sequence, &body)?;
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        loop {
            let (count, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
            if let Some(outcome) = acknowledged(answer.get(..count).unwrap_or_default(), self.sequence) {
                return outcome;
            }
        }
    }
}

fn address_body(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![INET, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &address.octets());
    attribute(&mut body, IFA_ADDRESS, &address.octets());
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    Ok(message)
}

/// The kernel's verdict on a request, if this answer is one.
fn acknowledged(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let answered = u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?);
    if kind != NLMSG_ERROR || answered != sequence {
        return None;
    }
    let errno = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    Some(match errno {
        0 => Ok(()),
        negative => Err(io::Error::from_raw_os_error(negative.saturating_neg())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_and_refuses() {
        let mut netlink = Netlink::open().unwrap();
        // No interface has this index.
        let error = netlink.link_up(0x7fff_0000).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NODEV.raw_os_error()));
    }

    #[test]
    fn only_the_answer_to_the_last_request_counts() {
        let mut answer = encode(NLMSG_ERROR, 0, 7, &(-1i32).to_ne_bytes()).unwrap();
        assert!(acknowledged(&answer, 6).is_none());
        assert_eq!(acknowledged(&answer, 7).unwrap().unwrap_err().raw_os_error(), Some(1));
        answer.truncate(18);
        assert!(acknowledged(&answer, 7).is_none());
    }
}
