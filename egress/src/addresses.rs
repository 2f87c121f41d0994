//! Which resolved addresses the proxy may dial. Pure.
//!
//! Must hold: checked after resolution and before each dial, whatever the name was; an IPv4 address in IPv6 clothes is
//! judged as what it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who said that a name has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// `[network.hosts]`: may be private.
    Operator,
    /// A resolver: public addresses only.
    Resolver,
}

/// Why an address is not dialled; the text names the range.
pub fn refusal(address: IpAddr, word: Word, own: &[IpAddr]) -> Option<&'static str> {
    let address = match address {
        IpAddr::V6(v6) => embedded(v6).map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    if own.contains(&address) {
        return Some("the node's own address");
    }
    let (never, private) = match address {
        IpAddr::V4(v4) => (never_v4(v4), private_v4(v4)),
        IpAddr::V6(v6) => (never_v6(v6), private_v6(v6)),
    };
    never.or(match word {
        Word::Operator => None,
        Word::Resolver => private,
    })
}

/// The IPv4 address inside a mapped (RFC 4291), NAT64 (RFC 6052) or 6to4 (RFC 3056) address.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let last = || {
        let [.., high, low] = segments;
        Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
    };
    match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(last()),
        [0x2002, high, low, ..] => Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        _ => None,
    }
}

fn within(address: Ipv4Addr, network: [u8; 4], prefix: u32) -> bool {
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    u32::from(address) & mask == u32::from_be_bytes(network)
}

/// Not even the operator can mean these.
fn never_v4(address: Ipv4Addr) -> Option<&'static str> {
    [
        ([0, 0, 0, 0], 8, "this network (0.0.0.0/8)"),
        ([127, 0, 0, 0], 8, "loopback (127.0.0.0/8)"),
        ([169, 254, 0, 0], 16, "link-local and metadata (169.254.0.0/16)"),
        ([168, 63, 129, 16], 32, "metadata (168.63.129.16)"),
        ([198, 18, 0, 0], 15, "synthetic (198.18.0.0/15)"),
        ([224, 0, 0, 0], 4, "multicast (224.0.0.0/4)"),
        ([240, 0, 0, 0], 4, "reserved and broadcast (240.0.0.0/4)"),
    ]
    .into_iter()
    .find_map(|(network, prefix, why)| within(address, network, prefix).then_some(why))
}

fn private_v4(address: Ipv4Addr) -> Option<&'static str> {
    [
        ([10, 0, 0, 0], 8, "private (10.0.0.0/8)"),
        ([100, 64, 0, 0], 10, "carrier and metadata (100.64.0.0/10)"),
        ([172, 16, 0, 0], 12, "private (172.16.0.0/12)"),
        ([192, 0, 0, 0], 24, "protocol assignments and metadata (192.0.0.0/24)"),
        ([192, 88, 99, 0], 24, "6to4 relays (192.88.99.0/24)"),
        ([192, 168, 0, 0], 16, "private (192.168.0.0/16)"),
    ]
    .into_iter()
    .find_map(|(network, prefix, why)| within(address, network, prefix).then_some(why))
}

fn never_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [first, ..] = address.segments();
    if u128::from(address) >> 32 == 0 {
        Some("unspecified, loopback and IPv4-compatible (::/96)")
    } else if first & 0xffc0 == 0xfe80 {
        Some("link-local (fe80::/10)")
    } else if first & 0xff00 == 0xff00 {
        Some("multicast (ff00::/8)")
    } else {
        None
    }
}

fn private_v6(address: Ipv6Addr) -> Option<&'static str> {
    // Global unicast is 2000::/3 (RFC 4291); Teredo in it wraps an IPv4 address of anybody's choice.
    let [first, second, ..] = address.segments();
    if first & 0xe000 != 0x2000 {
        Some("not global unicast (outside 2000::/3, unique local among them)")
    } else if (first, second) == (0x2001, 0) {
        Some("Teredo (2001::/32)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_cannot_lead_inside() {
        for inside in [
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "0.0.0.0",
            "0.1.2.3",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.0.192",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "2002:a00:1::",
            "::127.0.0.1",
            "2001:0:1:2::",
            "fec0::1",
        ] {
            assert!(refusal(inside.parse().unwrap(), Word::Resolver, &[]).is_some(), "{inside}");
        }
        for outside in [
            "8.8.8.8",
            "203.0.113.5",
            "172.32.0.1",
            "198.20.0.1",
            "198.17.255.255",
            "2606:4700::1",
            "1.1.1.1",
        ] {
            assert_eq!(refusal(outside.parse().unwrap(), Word::Resolver, &[]), None, "{outside}");
        }
    }

    #[test]
    fn the_operator_may_mean_a_private_address_but_never_the_node() {
        let own: [IpAddr; 1] = ["10.0.2.15".parse().unwrap()];
        assert_eq!(refusal("10.0.2.4".parse().unwrap(), Word::Operator, &own), None);
        assert_eq!(refusal("fd00::4".parse().unwrap(), Word::Operator, &own), None);
        for never in [
            "10.0.2.15",
            "::ffff:10.0.2.15",
            "127.0.0.1",
            "169.254.169.254",
            "198.18.0.1",
            "224.0.0.1",
            "::1",
        ] {
            assert!(refusal(never.parse().unwrap(), Word::Operator, &own).is_some(), "{never}");
        }
    }
}
