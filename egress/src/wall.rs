//! The packet rules of a VM's namespace and of the node, as data. Decides nothing at run time: nftables does.
//!
//! Must hold: each hook's policy is drop; what may pass is listed, and nothing else is. A refused packet of a guest is
//! answered at once, so that the agent sees a refusal and not a hang.
//! Must never: name an address outside a VM's own link and 198.18.0.0/15 as something that may pass.

use abi::identity::{CLOCK_UID, FORWARD_UID, UPLINK_UID};
use abi::limits;
use abi::node::Transport;
use std::net::Ipv4Addr;

/// Name of the one table, in each namespace.
pub const TABLE: &str = "nullbox";
/// Name of a VM's TAP inside its namespace.
pub const TAP: &str = "nbtap0";
/// The node's end of a VM's link: gateway, DNS server, proxy.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// The guest's end.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// Prefix length of the link.
pub const LINK_PREFIX: u8 = 30;
/// First address of 198.18.0.0/15 (RFC 2544): synthetic addresses.
pub const SYNTHETIC: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Port of the proxy's listener. Reached only through the DNAT rule.
pub const PROXY_PORT: u16 = 15001;
/// Port of the DNS server.
pub const DNS_PORT: u16 = 53;
/// Port of time servers.
const NTP_PORT: u16 = 123;
/// NFLOG group of refused packets.
pub const LOG_GROUP: u16 = 1;
/// Log prefix of packets above the rate of new flows.
pub const FLOOD_PREFIX: &str = "flood";
/// Bytes of a refused packet that are logged: IP header with options, and ports.
const LOG_BYTES: u32 = 80;

/// Register 1 of nf_tables holds what was loaded; one match uses it at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Load(Load),
    /// Ands the loaded bytes, in the order they lie in memory.
    Mask(Vec<u8>),
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    Count,
    /// Packets per second: matches below the rate, or with `over` above it.
    Limit {
        rate: u32,
        burst: u32,
        over: bool,
    },
    Log {
        group: u16,
        prefix: &'static str,
        bytes: u32,
    },
    Accept,
    Drop,
    Jump(&'static str),
    RejectReset,
    RejectProhibited,
    Dnat(Ipv4Addr, u16),
}

/// What a match looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// NFPROTO_*, one byte.
    Family,
    /// IPPROTO_*, one byte.
    Protocol,
    InputName,
    OutputName,
    /// Owner of the sending socket.
    SocketUid,
    /// Bits of conntrack's state.
    FlowState,
    /// Bits of conntrack's status.
    FlowStatus,
    Ip4Source,
    Ip4Destination,
    SourcePort,
    DestinationPort,
    /// Type of an ICMP message.
    IcmpType,
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
}

/// One chain. Without a hook it is reached by a jump only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    /// Hook, priority and whether it is a nat chain. A filter chain's policy is drop.
    pub base: Option<(Hook, i32, bool)>,
    pub rules: Vec<Vec<Expr>>,
}

/// Priorities of nf_tables (linux/netfilter_ipv4.h): after conntrack, before and at destination NAT, filter.
const AFTER_CONNTRACK: i32 = -150;
const DESTINATION_NAT: i32 = -100;
const FILTER: i32 = 0;

const NFPROTO_IPV4: u8 = 2;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_ECHO_REQUEST: u8 = 8;
/// Conntrack state bits (linux/netfilter/nf_conntrack_common.h, NF_CT_STATE_BIT).
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
const NEW: u32 = 1 << 3;
/// IPS_DST_NAT.
const DESTINATION_CHANGED: u32 = 1 << 5;

fn is(load: Load, value: impl Into<Vec<u8>>) -> Vec<Expr> {
    vec![Expr::Load(load), Expr::Equal(value.into())]
}

fn is_not(load: Load, value: impl Into<Vec<u8>>) -> Vec<Expr> {
    vec![Expr::Load(load), Expr::NotEqual(value.into())]
}

fn any_of(load: Load, bits: u32) -> Vec<Expr> {
    let (bits, none) = (bits.to_ne_bytes().to_vec(), vec![0; 4]);
    vec![Expr::Load(load), Expr::Mask(bits), Expr::NotEqual(none)]
}

fn ip4(load: Load, address: Ipv4Addr) -> Vec<Expr> {
    [is(Load::Family, [NFPROTO_IPV4]), is(load, address.octets())].concat()
}

fn synthetic_tcp() -> Vec<Expr> {
    let network = vec![Expr::Load(Load::Ip4Destination), Expr::Mask(vec![255, 254, 0, 0])];
    let matches = Expr::Equal(SYNTHETIC.octets().into());
    [is(Load::Family, [NFPROTO_IPV4]), network, vec![matches], is(Load::Protocol, [TCP])].concat()
}

fn to_port(protocol: u8, port: u16) -> Vec<Expr> {
    [is(Load::Protocol, [protocol]), is(Load::DestinationPort, port.to_be_bytes())].concat()
}

/// An interface name as nf_tables compares it: padded with zeros to IFNAMSIZ.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn rule(matches: impl IntoIterator<Item = Vec<Expr>>, then: impl IntoIterator<Item = Expr>) -> Vec<Expr> {
    matches.into_iter().flatten().chain(then).collect()
}

/// The rules of a VM's namespace.
pub fn of_vm() -> Vec<Chain> {
    vec![flood(), from_guest(), to_proxy(), vm_input(), closed("forward", Hook::Forward), vm_output()]
}

/// Where new flows above the rate end.
fn flood() -> Chain {
    let log = Expr::Log { group: LOG_GROUP, prefix: FLOOD_PREFIX, bytes: LOG_BYTES };
    Chain {
        name: "flood",
        base: None,
        rules: vec![vec![Expr::Limit { rate: 1, burst: 1, over: false }, log], vec![Expr::Count, Expr::Drop]],
    }
}

/// All that comes into the namespace, judged by the destination the guest wrote.
fn from_guest() -> Chain {
    let flows = Expr::Limit {
        rate: limits::NET_FLOWS_PER_SECOND_MAX,
        burst: 2 * limits::NET_FLOWS_PER_SECOND_MAX,
        over: true,
    };
    let some = Expr::Limit {
        rate: limits::NET_REFUSALS_LOGGED_PER_SECOND_MAX,
        burst: 2 * limits::NET_REFUSALS_LOGGED_PER_SECOND_MAX,
        over: false,
    };
    let log = Expr::Log { group: LOG_GROUP, prefix: "refused", bytes: LOG_BYTES };
    Chain {
        name: "from_guest",
        base: Some((Hook::Prerouting, AFTER_CONNTRACK, false)),
        rules: vec![
            rule([is_not(Load::InputName, padded(TAP))], [Expr::Count, Expr::Drop]),
            rule([is_not(Load::Family, [NFPROTO_IPV4])], [Expr::Count, Expr::Drop]),
            rule(
                [is(Load::Family, [NFPROTO_IPV4]), is_not(Load::Ip4Source, GUEST.octets())],
                [Expr::Count, Expr::Drop],
            ),
            rule([any_of(Load::FlowState, INVALID)], [Expr::Count, Expr::Drop]),
            rule([any_of(Load::FlowState, NEW)], [flows, Expr::Jump("flood")]),
            // ICMP errors about our own answers: nothing to refuse, nothing to let in.
            rule([any_of(Load::FlowState, RELATED)], [Expr::Count, Expr::Drop]),
            rule([ip4(Load::Ip4Destination, GATEWAY), to_port(UDP, DNS_PORT)], [Expr::Accept]),
            rule([ip4(Load::Ip4Destination, GATEWAY), to_port(TCP, DNS_PORT)], [Expr::Accept]),
            rule([synthetic_tcp()], [Expr::Accept]),
            vec![Expr::Count, some, log],
            rule([is(Load::Protocol, [TCP])], [Expr::RejectReset]),
            vec![Expr::RejectProhibited],
        ],
    }
}

fn to_proxy() -> Chain {
    Chain {
        name: "to_proxy",
        base: Some((Hook::Prerouting, DESTINATION_NAT, true)),
        rules: vec![rule(
            [is(Load::InputName, padded(TAP)), synthetic_tcp()],
            [Expr::Dnat(GATEWAY, PROXY_PORT)],
        )],
    }
}

fn vm_input() -> Chain {
    let on_tap = || is(Load::InputName, padded(TAP));
    let through_nat = || any_of(Load::FlowStatus, DESTINATION_CHANGED);
    Chain {
        name: "input",
        base: Some((Hook::Input, FILTER, false)),
        rules: vec![
            rule([on_tap(), ip4(Load::Ip4Destination, GATEWAY), to_port(UDP, DNS_PORT)], [Expr::Accept]),
            rule([on_tap(), ip4(Load::Ip4Destination, GATEWAY), to_port(TCP, DNS_PORT)], [Expr::Accept]),
            rule([on_tap(), to_port(TCP, PROXY_PORT), through_nat()], [Expr::Accept]),
            vec![Expr::Count],
        ],
    }
}

/// Answers only: whatever a process in the namespace begins by itself, the VMM first of all, ends here.
fn vm_output() -> Chain {
    Chain {
        name: "output",
        base: Some((Hook::Output, FILTER, false)),
        rules: vec![
            rule(
                [is(Load::OutputName, padded(TAP)), any_of(Load::FlowState, ESTABLISHED | RELATED)],
                [Expr::Accept],
            ),
            vec![Expr::Count],
        ],
    }
}

fn closed(name: &'static str, hook: Hook) -> Chain {
    Chain { name, base: Some((hook, FILTER, false)), rules: vec![vec![Expr::Count]] }
}

/// The rules of the node's own namespace: nullgate's port comes in, egress goes out, leases are kept, time servers are asked, log
/// lines go to the port they are to go to, nothing is forwarded.
pub fn of_node(gate_port: u16, egress_uid: u32, logs: Option<(Transport, u16)>) -> Vec<Chain> {
    let known = || any_of(Load::FlowState, ESTABLISHED | RELATED);
    let lease = |from: u16, to: u16| {
        [
            is(Load::Protocol, [UDP]),
            is(Load::SourcePort, from.to_be_bytes()),
            is(Load::DestinationPort, to.to_be_bytes()),
        ]
        .concat()
    };
    let pings = Expr::Limit { rate: 10, burst: 20, over: false };
    let echo = [is(Load::Protocol, [ICMP]), is(Load::IcmpType, [ICMP_ECHO_REQUEST])].concat();
    let input = Chain {
        name: "input",
        base: Some((Hook::Input, FILTER, false)),
        rules: vec![
            rule([is(Load::InputName, padded("lo"))], [Expr::Accept]),
            rule([any_of(Load::FlowState, INVALID)], [Expr::Drop]),
            rule([known()], [Expr::Accept]),
            rule([to_port(TCP, gate_port)], [Expr::Accept]),
            rule([lease(67, 68)], [Expr::Accept]),
            rule([echo], [pings, Expr::Accept]),
            vec![Expr::Count],
        ],
    };
    let uid = |uid: u32| is(Load::SocketUid, uid.to_ne_bytes());
    let mut leaves = vec![
        rule([is(Load::OutputName, padded("lo"))], [Expr::Accept]),
        rule([known()], [Expr::Accept]),
        rule([uid(egress_uid), is(Load::Protocol, [TCP])], [Expr::Accept]),
        rule([uid(egress_uid), to_port(UDP, DNS_PORT)], [Expr::Accept]),
        rule([uid(UPLINK_UID), lease(68, 67)], [Expr::Accept]),
        rule([uid(CLOCK_UID), to_port(UDP, NTP_PORT)], [Expr::Accept]),
    ];
    if let Some((transport, port)) = logs {
        let protocol = match transport {
            Transport::Udp => UDP,
            Transport::Tcp => TCP,
        };
        leaves.push(rule([uid(FORWARD_UID), to_port(protocol, port)], [Expr::Accept]));
    }
    leaves.push(vec![Expr::Count, Expr::RejectProhibited]);
    let output = Chain { name: "output", base: Some((Hook::Output, FILTER, false)), rules: leaves };
    vec![input, closed("forward", Hook::Forward), output]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_is_closed_by_default() {
        for wall in [of_vm(), of_node(4466, 201, None)] {
            for hook in [Hook::Input, Hook::Forward, Hook::Output] {
                assert!(
                    wall.iter().any(|chain| matches!(chain.base, Some((h, _, false)) if h == hook)),
                    "{hook:?} has no filter chain"
                );
            }
        }
    }

    #[test]
    fn in_a_vm_namespace_nothing_passes_without_a_protocol_or_a_known_flow() {
        for chain in of_vm() {
            for rule in chain.rules.iter().filter(|rule| rule.contains(&Expr::Accept)) {
                let narrow =
                    rule.contains(&Expr::Load(Load::Protocol)) || rule.contains(&Expr::Load(Load::FlowState));
                assert!(narrow, "{}: {rule:?}", chain.name);
            }
        }
    }

    #[test]
    fn jumps_reach_chains_that_exist() {
        let wall = of_vm();
        let names: Vec<_> = wall.iter().map(|chain| chain.name).collect();
        for expr in wall.iter().flat_map(|chain| chain.rules.iter().flatten()) {
            if let Expr::Jump(name) = expr {
                assert!(names.contains(name));
            }
        }
    }
}
