//! Refused packets, as nf_tables logs them (linux/netfilter/nfnetlink_log.h): one netlink socket per VM's namespace.
//!
//! Must hold: what a packet says is only described, never believed; a packet that cannot be read is skipped.
//! Must never: keep more than one datagram; the kernel drops what egress does not fetch in time.

use netlink_bindings::utils::{chop_header, push_header};
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use crate::wall::{FLOOD_PREFIX, GATEWAY};

/// NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG, and | NFULNL_MSG_PACKET.
const CONFIG: u16 = 4 << 8 | 1;
const PACKET: u16 = 4 << 8;
/// NLM_F_REQUEST | NLM_F_ACK.
const REQUEST: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;
/// NFULA_CFG_CMD with NFULNL_CFG_CMD_BIND; NFULA_CFG_MODE with NFULNL_COPY_PACKET; NFULA_CFG_QTHRESH.
const CFG_COMMAND: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_QUEUE: u16 = 5;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
/// NFULA_PAYLOAD and NFULA_PREFIX.
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
/// Bytes of a packet that are copied; the rules' own snaplen is smaller.
const COPY_BYTES: u32 = 128;

/// Opens a socket in the calling thread's namespace and binds it to a group. Needs CAP_NET_ADMIN there.
pub fn open(group: u16) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    configure(&socket, 1, group, |body| {
        push_header(body, CFG_COMMAND, 1);
        body.extend([BIND, 0, 0, 0]);
    })?;
    configure(&socket, 2, group, |body| {
        push_header(body, CFG_MODE, 6);
        body.extend(COPY_BYTES.to_be_bytes());
        body.extend([COPY_PACKET, 0, 0, 0]);
    })?;
    // One packet a message: a denial is told when it happens.
    configure(&socket, 3, group, |body| {
        push_header(body, CFG_QUEUE, 4);
        body.extend(1u32.to_be_bytes());
    })?;
    Ok(socket)
}

fn configure(
    socket: &OwnedFd,
    seq: u32,
    group: u16,
    attributes: impl FnOnce(&mut Vec<u8>),
) -> io::Result<()> {
    let mut body = vec![libc::AF_UNSPEC as u8, 0];
    body.extend(group.to_be_bytes());
    attributes(&mut body);
    let length = u32::try_from(NETLINK_HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(CONFIG.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend(seq.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    rustix::net::send(socket, &message, SendFlags::empty())?;
    acknowledged(socket, seq)
}

/// Netlink answers a configuration before send returns, so the answer is there to be read.
fn acknowledged(socket: &OwnedFd, seq: u32) -> io::Result<()> {
    let mut buffer = [0u8; 4096];
    for _ in 0..64 {
        let (read, _) = rustix::net::recv(socket, &mut buffer, RecvFlags::empty())?;
        let message = buffer.get(..read).unwrap_or_default();
        let field =
            |at: usize| message.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        if kind == Some(NLMSG_ERROR) && field(8) == Some(seq) {
            return match field(NETLINK_HEADER).map(u32::cast_signed) {
                Some(0) => Ok(()),
                Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
                None => Err(io::Error::new(io::ErrorKind::InvalidData, "a cut netlink answer")),
            };
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from nfnetlink_log"))
}

/// Reads what is there without waiting. `WouldBlock` when there is nothing.
pub fn receive(socket: impl AsFd) -> io::Result<Vec<Refused>> {
    let mut buffer = [0u8; 8192];
    let (read, _) = rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT)?;
    Ok(parse(buffer.get(..read).unwrap_or_default()))
}

/// A refused packet, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub what: String,
    pub rule: &'static str,
    pub remedy: &'static str,
}

fn parse(mut messages: &[u8]) -> Vec<Refused> {
    let mut refused = Vec::new();
    while let Some(length) = messages.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes) {
        let length = length as usize;
        let (Some(message), true) = (messages.get(..length), length >= NETLINK_HEADER) else {
            break;
        };
        let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        if kind == Some(PACKET) {
            refused.extend(message.get(NETLINK_HEADER + NETFILTER_HEADER..).and_then(packet));
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    refused
}

fn packet(attributes: &[u8]) -> Option<Refused> {
    let (mut payload, mut flood, mut position) = (None, false, 0);
    while let Some((header, value)) = chop_header(attributes, &mut position) {
        match header.r#type {
            PAYLOAD => payload = Some(value),
            PREFIX => flood = value.starts_with(FLOOD_PREFIX.as_bytes()),
            _ => {}
        }
    }
    describe(payload?, flood)
}

/// What an IPv4 packet tried, and why it may not.
pub fn describe(packet: &[u8], flood: bool) -> Option<Refused> {
    if packet.first()? >> 4 != 4 {
        return None;
    }
    let header_length = usize::from(packet.first()? & 0x0f) * 4;
    let protocol = *packet.get(9)?;
    let destination = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?);
    let port = || {
        packet
            .get(header_length + 2..header_length + 4)
            .and_then(|b| b.try_into().ok())
            .map(u16::from_be_bytes)
    };
    let what = match (protocol, port()) {
        (6, Some(port)) => format!("tcp {destination}:{port}"),
        (17, Some(port)) => format!("udp {destination}:{port}"),
        (1, _) => format!("icmp {destination}"),
        (number, _) => format!("ip protocol {number} {destination}"),
    };
    let (rule, remedy) = match protocol {
        _ if flood => ("limit", "open fewer connections at a time: there is no grant for more"),
        6 if destination == GATEWAY => ("raw-address", "the node's own ports cannot be granted"),
        6 => (
            "raw-address",
            "connect to a name and add it to capabilities.network.allow: addresses cannot be granted",
        ),
        _ => ("protocol", "only TCP to granted names and DNS to the node leave a VM: this cannot be granted"),
    };
    Some(Refused { what, rule, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(protocol: u8, destination: [u8; 4], port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, 100, 64, 0, 2];
        packet.extend(destination);
        packet.extend([0x80, 0]);
        packet.extend(port.to_be_bytes());
        packet
    }

    #[test]
    fn packets_are_told_apart_by_what_would_be_granted_instead() {
        let one = describe(&ip(6, [8, 8, 8, 8], 443), false).unwrap();
        assert_eq!((one.what.as_str(), one.rule), ("tcp 8.8.8.8:443", "raw-address"));
        let one = describe(&ip(17, [198, 18, 0, 9], 443), false).unwrap();
        assert_eq!((one.what.as_str(), one.rule), ("udp 198.18.0.9:443", "protocol"));
        let one = describe(&ip(1, [9, 9, 9, 9], 0), false).unwrap();
        assert_eq!((one.what.as_str(), one.rule), ("icmp 9.9.9.9", "protocol"));
        assert_eq!(describe(&ip(6, [198, 18, 0, 9], 443), true).unwrap().rule, "limit");
        assert!(describe(&ip(6, [100, 64, 0, 1], 22), false).unwrap().remedy.contains("own ports"));
    }

    #[test]
    fn cut_packets_and_messages_are_skipped() {
        let whole = ip(6, [8, 8, 8, 8], 443);
        for end in 0..whole.len() {
            let _ = describe(&whole[..end], false); // must not panic
        }
        assert_eq!(describe(&whole[..19], false), None);
        for bytes in [&[][..], &[1, 2, 3], &[0; 16], &[255; 64], &[16, 0, 0, 0, 0, 4, 0, 0]] {
            assert_eq!(parse(bytes), []);
        }
    }
}
