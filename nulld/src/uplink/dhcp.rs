//! DHCP messages (RFC 2131, options RFC 2132): what this client sends, and what it reads of a server's answer.
//!
//! A format of our own since the crates that have it bring Unicode tables and URL parsing for options a node does not read.
//!
//! Must hold: a message is read only if it answers this client (xid, hardware address, magic); every length is checked.
//! Must never: trust a value. [`Reply::lease`] says which answers make a lease.

use std::net::Ipv4Addr;

use super::lease::Lease;

/// Bytes of a message that are not options.
const FIXED_BYTES: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Resolvers and time servers taken from a lease.
const SERVERS_MAX: usize = 4;
/// A lease is renewed at least so often, and never more often than every minute, in seconds.
const LEASE_S_MIN: u32 = 60;
const LEASE_S_MAX: u32 = 7 * 24 * 3600;

const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_DNS: u8 = 6;
const OPTION_HOST_NAME: u8 = 12;
const OPTION_NTP: u8 = 42;
const OPTION_REQUESTED: u8 = 50;
const OPTION_LEASE: u8 = 51;
const OPTION_KIND: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_WANTED: u8 = 55;
const OPTION_SIZE: u8 = 57;
const OPTION_T1: u8 = 58;
const OPTION_T2: u8 = 59;
const OPTION_CLIENT: u8 = 61;
const OPTION_END: u8 = 255;

/// A hardware address.
pub type Mac = [u8; 6];

/// What a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Discover,
    /// Takes an offer.
    Take {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// Renews or rebinds a lease that is in use.
    Renew {
        address: Ipv4Addr,
    },
}

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Offer,
    Ack,
    Nak,
}

/// A server's answer to this client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub kind: Kind,
    pub address: Ipv4Addr,
    pub server: Option<Ipv4Addr>,
    mask: Option<Ipv4Addr>,
    router: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
    ntp: Vec<Ipv4Addr>,
    lease_s: Option<u32>,
    t1_s: Option<u32>,
    t2_s: Option<u32>,
}

/// Who this client is.
#[derive(Debug, Clone)]
pub struct Client {
    pub mac: Mac,
    pub host_name: String,
}

/// A message of this client. `elapsed_s`: since it began to ask.
pub fn encode(client: &Client, xid: u32, elapsed_s: u16, say: Say) -> Vec<u8> {
    let in_use = match say {
        Say::Renew { address } => address,
        Say::Discover | Say::Take { .. } => Ipv4Addr::UNSPECIFIED,
    };
    let kind = if say == Say::Discover { 1 } else { 3 };
    // BOOTREQUEST over Ethernet.
    let mut message = vec![1, 1, 6, 0];
    message.extend(xid.to_be_bytes());
    message.extend(elapsed_s.to_be_bytes());
    // A client without an address cannot be reached by it: ask for broadcast answers.
    let flags: u16 = if in_use.is_unspecified() { 0x8000 } else { 0 };
    message.extend(flags.to_be_bytes());
    message.extend(in_use.octets());
    message.resize(28, 0);
    message.extend(client.mac);
    message.resize(FIXED_BYTES - MAGIC.len(), 0);
    message.extend(MAGIC);
    let mut option = |number: u8, value: &[u8]| {
        if let Ok(length) = u8::try_from(value.len()) {
            message.extend([number, length]);
            message.extend(value);
        }
    };
    option(OPTION_KIND, &[kind]);
    let mut id = vec![1];
    id.extend(client.mac);
    option(OPTION_CLIENT, &id);
    if let Say::Take { address, server } = say {
        option(OPTION_REQUESTED, &address.octets());
        option(OPTION_SERVER, &server.octets());
    }
    option(OPTION_SIZE, &1500u16.to_be_bytes());
    option(OPTION_HOST_NAME, client.host_name.as_bytes());
    option(
        OPTION_WANTED,
        &[OPTION_MASK, OPTION_ROUTER, OPTION_DNS, OPTION_NTP, OPTION_LEASE, OPTION_T1, OPTION_T2],
    );
    message.push(OPTION_END);
    // Some servers drop messages shorter than BOOTP's.
    if message.len() < 300 {
        message.resize(300, 0);
    }
    message
}

/// A server's answer to this client's `xid`; none for everything else.
pub fn decode(bytes: &[u8], mac: &Mac, xid: u32) -> Option<Reply> {
    let is_ours = bytes.get(0..3)? == [2, 1, 6]
        && bytes.get(4..8)? == xid.to_be_bytes()
        && bytes.get(28..34)? == mac
        && bytes.get(236..FIXED_BYTES)? == MAGIC;
    is_ours.then_some(())?;
    let options = bytes.get(FIXED_BYTES..)?;
    let kind = match option(options, OPTION_KIND)? {
        [2] => Kind::Offer,
        [5] => Kind::Ack,
        [6] => Kind::Nak,
        _ => return None,
    };
    let address = |number| option(options, number).and_then(first_address);
    let seconds = |number| Some(u32::from_be_bytes(option(options, number)?.try_into().ok()?));
    Some(Reply {
        kind,
        address: first_address(bytes.get(16..20)?)?,
        server: address(OPTION_SERVER),
        mask: address(OPTION_MASK),
        router: address(OPTION_ROUTER),
        dns: hosts(option(options, OPTION_DNS)),
        ntp: hosts(option(options, OPTION_NTP)),
        lease_s: seconds(OPTION_LEASE),
        t1_s: seconds(OPTION_T1),
        t2_s: seconds(OPTION_T2),
    })
}

impl Reply {
    /// The lease in an offer or acknowledgement, from a time on; none if it lacks what a lease needs.
    pub fn lease(&self, now_ms: u64) -> Option<Lease> {
        let server = self.server.filter(|address| is_host(*address))?;
        let mask = self.mask?.to_bits();
        let prefix = u8::try_from(mask.leading_ones()).ok()?;
        let is_mask = mask.count_ones() == mask.leading_ones() && prefix >= 1;
        if !is_mask || !is_host(self.address) {
            return None;
        }
        let lease_s = self.lease_s?.clamp(LEASE_S_MIN, LEASE_S_MAX);
        let rebind_s = self.t2_s.filter(|t2| *t2 < lease_s).unwrap_or(lease_s / 8 * 7);
        let renew_s = self.t1_s.filter(|t1| *t1 < rebind_s).unwrap_or(lease_s / 2).min(rebind_s);
        let at = |seconds: u32| now_ms + u64::from(seconds) * 1000;
        Some(Lease {
            address: self.address,
            prefix,
            gateway: self.router.filter(|address| is_host(*address)),
            dns: self.dns.clone(),
            ntp: self.ntp.clone(),
            server,
            renew_ms: at(renew_s.max(LEASE_S_MIN / 2)),
            rebind_ms: at(rebind_s.max(LEASE_S_MIN / 2)),
            expire_ms: at(lease_s),
        })
    }
}

/// Whether an address can be a host's.
fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local())
}

/// The addresses of an option that holds several.
fn hosts(value: Option<&[u8]>) -> Vec<Ipv4Addr> {
    let all = value.unwrap_or_default().chunks_exact(4).filter_map(first_address);
    all.filter(|address| is_host(*address)).take(SERVERS_MAX).collect()
}

fn first_address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

/// The first value of an option.
fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match options {
            [0, rest @ ..] => options = rest,
            [OPTION_END, ..] | [] | [_] => return None,
            [number, length, rest @ ..] => {
                let value = rest.get(..usize::from(*length))?;
                if *number == wanted {
                    return Some(value);
                }
                options = rest.get(usize::from(*length)..)?;
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const MAC: Mac = [2, 0, 0, 0, 0, 7];

    pub fn client() -> Client {
        Client { mac: MAC, host_name: "node-1".into() }
    }

    /// A server's answer, for the tests of this module and of the lease.
    pub fn answer(kind: u8, xid: u32, address: [u8; 4], extra: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = encode(&client(), xid, 0, Say::Discover);
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&address);
        bytes.truncate(FIXED_BYTES);
        bytes.extend([0, OPTION_KIND, 1, kind]);
        for (number, value) in extra {
            bytes.extend([*number, value.len() as u8]);
            bytes.extend(*value);
        }
        bytes.push(OPTION_END);
        bytes
    }

    pub const USUAL: &[(u8, &[u8])] = &[
        (OPTION_SERVER, &[10, 0, 2, 2]),
        (OPTION_MASK, &[255, 255, 255, 0]),
        (OPTION_ROUTER, &[10, 0, 2, 2]),
        (OPTION_DNS, &[10, 0, 2, 3, 127, 0, 0, 1]),
        (OPTION_NTP, &[0, 0, 0, 0, 10, 0, 2, 4, 10, 0, 2, 5, 10, 0]),
        (OPTION_LEASE, &[0, 0, 2, 88]),
    ];

    #[test]
    fn a_usual_answer_makes_a_lease() {
        let reply = decode(&answer(5, 9, [10, 0, 2, 15], USUAL), &MAC, 9).unwrap();
        assert_eq!(reply.kind, Kind::Ack);
        let lease = reply.lease(1_000).unwrap();
        assert_eq!(
            (lease.address, lease.prefix, lease.gateway),
            (Ipv4Addr::new(10, 0, 2, 15), 24, Some(Ipv4Addr::new(10, 0, 2, 2)))
        );
        assert_eq!(lease.dns, [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(lease.ntp, [Ipv4Addr::new(10, 0, 2, 4), Ipv4Addr::new(10, 0, 2, 5)]);
        assert_eq!((lease.renew_ms, lease.rebind_ms, lease.expire_ms), (301_000, 526_000, 601_000));
    }

    #[test]
    fn answers_for_others_are_not_read() {
        let bytes = answer(5, 9, [10, 0, 2, 15], USUAL);
        assert!(decode(&bytes, &MAC, 8).is_none());
        assert!(decode(&bytes, &[2, 0, 0, 0, 0, 8], 9).is_none());
        let mut request = bytes.clone();
        request[0] = 1;
        assert!(decode(&request, &MAC, 9).is_none());
        for end in 0..bytes.len() {
            // Any cut must be read as nothing or as less, and never out of bounds.
            let _ = decode(&bytes[..end], &MAC, 9);
        }
    }

    #[test]
    fn wrong_values_make_no_lease() {
        let lease = |address: [u8; 4], extra: &[(u8, &[u8])]| {
            decode(&answer(2, 1, address, extra), &MAC, 1).unwrap().lease(0)
        };
        assert!(lease([10, 0, 2, 15], USUAL).is_some());
        for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [169, 254, 1, 1]] {
            assert!(lease(address, USUAL).is_none(), "{address:?}");
        }
        for (wrong, value) in [(OPTION_MASK, [255, 0, 255, 0]), (OPTION_SERVER, [0, 0, 0, 0])] {
            let mut extra: Vec<(u8, &[u8])> = USUAL.to_vec();
            extra.retain(|(number, _)| *number != wrong);
            extra.push((wrong, &value));
            assert!(lease([10, 0, 2, 15], &extra).is_none(), "{wrong}");
        }
    }

    #[test]
    fn times_are_in_order_whatever_the_server_says() {
        for times in [[0u32, 0, 0], [u32::MAX; 3], [60, 50, 40], [100, 99, 98], [3600, 7200, 1]] {
            let [lease, t1, t2] = times.map(u32::to_be_bytes);
            let mut extra: Vec<(u8, &[u8])> = USUAL.to_vec();
            extra.retain(|(number, _)| *number != OPTION_LEASE);
            extra.extend([(OPTION_LEASE, &lease[..]), (OPTION_T1, &t1), (OPTION_T2, &t2)]);
            let lease = decode(&answer(5, 1, [10, 0, 2, 15], &extra), &MAC, 1).unwrap().lease(0).unwrap();
            assert!(
                lease.renew_ms >= 30_000
                    && lease.renew_ms <= lease.rebind_ms
                    && lease.rebind_ms <= lease.expire_ms,
                "{times:?} {lease:?}"
            );
        }
    }

    #[test]
    fn a_request_carries_what_servers_expect() {
        let take = Say::Take { address: Ipv4Addr::new(10, 0, 2, 15), server: Ipv4Addr::new(10, 0, 2, 2) };
        let bytes = encode(&client(), 0x0102_0304, 3, take);
        assert_eq!(bytes[4..8], [1, 2, 3, 4]);
        assert_eq!(option(&bytes[FIXED_BYTES..], OPTION_KIND).unwrap(), [3]);
        assert_eq!(option(&bytes[FIXED_BYTES..], OPTION_REQUESTED).unwrap(), [10, 0, 2, 15]);
        assert_eq!(option(&bytes[FIXED_BYTES..], OPTION_HOST_NAME).unwrap(), b"node-1");
        let renew = Say::Renew { address: Ipv4Addr::new(10, 0, 2, 15) };
        let bytes = encode(&client(), 1, 0, renew);
        assert_eq!((bytes[10], &bytes[12..16]), (0, &[10, 0, 2, 15][..]));
        assert!(option(&bytes[FIXED_BYTES..], OPTION_REQUESTED).is_none());
    }
}
