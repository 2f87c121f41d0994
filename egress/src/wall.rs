//! The packet rules of a VM's namespace and of the node, as data. Decides nothing at run time: nftables does.
//!
//! Must hold: each hook's policy is drop; what may pass is listed, and nothing else is. A refused packet of a guest is
//! answered at once, so that the agent sees a refusal and not a hang.
//! Must never: name an address outside a VM's own link and 198.18.0.0/15 as something that may pass.

use abi::identity::{CLOCK_UID, FORWARD_UID, UPLINK_UID, VM_UID_BASE};
use abi::ids::Source;
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
    /// One byte: 0 for packets of who began the flow, 1 for the answers.
    FlowDirection,
    Ip4Source,
    Ip4Destination,
    SourcePort,
    DestinationPort,
    /// One byte (RFC 9293, 3.1).
    TcpFlags,
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
/// IP_CT_DIR_REPLY.
const REPLY: u8 = 1;
/// Flags of a TCP segment.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
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

fn from_range(range: &Source) -> Vec<Expr> {
    let mask = u32::MAX.checked_shl(32 - u32::from(range.prefix)).unwrap_or(0);
    let network = vec![Expr::Load(Load::Ip4Source), Expr::Mask(mask.to_be_bytes().into())];
    [is(Load::Family, [NFPROTO_IPV4]), network, vec![Expr::Equal(range.address.octets().into())]].concat()
}

fn uid(uid: u32) -> Vec<Expr> {
    is(Load::SocketUid, uid.to_ne_bytes())
}

/// The rules of a VM's namespace. `ports`: of the guest, which egress, and nobody else, may connect to.
pub fn of_vm(ports: &[u16], egress_uid: u32) -> Vec<Chain> {
    vec![
        flood(),
        from_guest(ports),
        to_proxy(),
        vm_input(ports),
        closed("forward", Hook::Forward),
        vm_output(ports, egress_uid),
    ]
}

/// Packets with which a guest answers on one of its published ports. They belong to a flow that the other side began: a guest
/// cannot begin one with them.
fn answer_of(port: u16) -> Vec<Expr> {
    [
        ip4(Load::Ip4Destination, GATEWAY),
        is(Load::Protocol, [TCP]),
        is(Load::SourcePort, port.to_be_bytes()),
        any_of(Load::FlowState, ESTABLISHED),
        is(Load::FlowDirection, [REPLY]),
    ]
    .concat()
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
fn from_guest(ports: &[u16]) -> Chain {
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
    let mut chain = Chain {
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
        ],
    };
    chain.rules.extend(ports.iter().map(|port| rule([answer_of(*port)], [Expr::Accept])));
    chain.rules.extend([
        vec![Expr::Count, some, log],
        rule([is(Load::Protocol, [TCP])], [Expr::RejectReset]),
        vec![Expr::RejectProhibited],
    ]);
    chain
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

fn vm_input(ports: &[u16]) -> Chain {
    let on_tap = || is(Load::InputName, padded(TAP));
    let through_nat = || any_of(Load::FlowStatus, DESTINATION_CHANGED);
    let mut rules = vec![
        rule([on_tap(), ip4(Load::Ip4Destination, GATEWAY), to_port(UDP, DNS_PORT)], [Expr::Accept]),
        rule([on_tap(), ip4(Load::Ip4Destination, GATEWAY), to_port(TCP, DNS_PORT)], [Expr::Accept]),
        rule([on_tap(), to_port(TCP, PROXY_PORT), through_nat()], [Expr::Accept]),
    ];
    rules.extend(ports.iter().map(|port| rule([on_tap(), answer_of(*port)], [Expr::Accept])));
    rules.push(vec![Expr::Count]);
    Chain { name: "input", base: Some((Hook::Input, FILTER, false)), rules }
}

/// Answers, and what egress begins towards a published port: whatever else a process in the namespace begins by itself, the VMM
/// first of all, ends here.
fn vm_output(ports: &[u16], egress_uid: u32) -> Chain {
    let on_tap = || is(Load::OutputName, padded(TAP));
    let mut rules = jails_send_nothing();
    rules.push(rule([on_tap(), any_of(Load::FlowState, ESTABLISHED | RELATED)], [Expr::Accept]));
    rules.extend(ports.iter().map(|port| {
        let to_guest = [ip4(Load::Ip4Destination, GUEST), to_port(TCP, *port)].concat();
        rule([on_tap(), uid(egress_uid), to_guest], [Expr::Accept])
    }));
    rules.push(vec![Expr::Count]);
    Chain { name: "output", base: Some((Hook::Output, FILTER, false)), rules }
}

/// Uids of jails are matched in blocks of this many, by a mask.
const JAIL_BLOCK: u32 = 32;
const _: () = assert!(
    VM_UID_BASE.is_multiple_of(JAIL_BLOCK) && (limits::AGENTS_RUNNING_MAX as u32).is_multiple_of(JAIL_BLOCK)
);

/// No socket of a VMM's sends a packet, to the loopback neither and in no namespace: a jail holds no such socket, so one
/// that does has been broken, and this wall stands though the jail fell.
fn jails_send_nothing() -> Vec<Vec<Expr>> {
    (0..limits::AGENTS_RUNNING_MAX as u32 / JAIL_BLOCK)
        .map(|block| {
            let first = VM_UID_BASE + block * JAIL_BLOCK;
            vec![
                Expr::Load(Load::SocketUid),
                Expr::Mask((!(JAIL_BLOCK - 1)).to_ne_bytes().to_vec()),
                Expr::Equal(first.to_ne_bytes().to_vec()),
                Expr::Count,
                Expr::Drop,
            ]
        })
        .collect()
}

fn closed(name: &'static str, hook: Hook) -> Chain {
    Chain { name, base: Some((hook, FILTER, false)), rules: vec![vec![Expr::Count]] }
}

/// A TCP port of the node and who may connect to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPort {
    pub port: u16,
    /// Empty: everybody.
    pub from: Vec<Source>,
}

/// What one node lets in and out beside what every node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doors {
    /// nullgate's ports: the gate, and where it is switched on the metrics listener.
    pub gate: Vec<OpenPort>,
    pub published: Vec<OpenPort>,
    pub egress_uid: u32,
    /// Where log lines are sent.
    pub logs: Option<(Transport, u16)>,
}

fn opened(door: &OpenPort) -> Vec<Vec<Expr>> {
    if door.from.is_empty() {
        return vec![rule([to_port(TCP, door.port)], [Expr::Accept])];
    }
    let from = |range| rule([from_range(range), to_port(TCP, door.port)], [Expr::Accept]);
    door.from.iter().map(from).collect()
}

/// What a listener says on a connection that is older than these rules, so that conntrack does not know it: a connection that
/// came in while egress started. It begins none, since the first segment of one has SYN alone.
fn answers(door: &OpenPort) -> Vec<Expr> {
    let begins_nothing =
        vec![Expr::Load(Load::TcpFlags), Expr::Mask(vec![SYN | ACK]), Expr::NotEqual(vec![SYN])];
    let from_port = [is(Load::Protocol, [TCP]), is(Load::SourcePort, door.port.to_be_bytes())].concat();
    rule([from_port, begins_nothing], [Expr::Accept])
}

/// The rules of the node's own namespace: nullgate's port and published ports come in, egress goes out, leases are kept, time
/// servers are asked, log lines go to the port they are to go to, nothing is forwarded.
pub fn of_node(doors: &Doors) -> Vec<Chain> {
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
    let mut enters = vec![
        rule([is(Load::InputName, padded("lo"))], [Expr::Accept]),
        rule([any_of(Load::FlowState, INVALID)], [Expr::Drop]),
        rule([known()], [Expr::Accept]),
    ];
    enters.extend(doors.gate.iter().chain(&doors.published).flat_map(opened));
    enters.extend([
        rule([lease(67, 68)], [Expr::Accept]),
        rule([echo], [pings, Expr::Accept]),
        vec![Expr::Count],
    ]);
    let egress = || uid(doors.egress_uid);
    let mut leaves = jails_send_nothing();
    leaves.extend([
        rule([is(Load::OutputName, padded("lo"))], [Expr::Accept]),
        rule([known()], [Expr::Accept]),
        rule([egress(), is(Load::Protocol, [TCP])], [Expr::Accept]),
        rule([egress(), to_port(UDP, DNS_PORT)], [Expr::Accept]),
        rule([uid(UPLINK_UID), lease(68, 67)], [Expr::Accept]),
        rule([uid(CLOCK_UID), to_port(UDP, NTP_PORT)], [Expr::Accept]),
    ]);
    if let Some((transport, port)) = doors.logs {
        let protocol = match transport {
            Transport::Udp => UDP,
            Transport::Tcp => TCP,
        };
        leaves.push(rule([uid(FORWARD_UID), to_port(protocol, port)], [Expr::Accept]));
    }
    leaves.extend(doors.gate.iter().map(answers));
    leaves.push(vec![Expr::Count, Expr::RejectProhibited]);
    vec![
        Chain { name: "input", base: Some((Hook::Input, FILTER, false)), rules: enters },
        closed("forward", Hook::Forward),
        Chain { name: "output", base: Some((Hook::Output, FILTER, false)), rules: leaves },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors() -> Doors {
        let gate = vec![OpenPort { port: 4466, from: vec![] }];
        let published = vec![OpenPort { port: 30_000, from: vec!["192.0.2.0/24".parse().unwrap()] }];
        Doors { gate, published, egress_uid: 201, logs: None }
    }

    #[test]
    fn every_hook_is_closed_by_default() {
        for wall in [of_vm(&[80], 201), of_node(&doors())] {
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
        for chain in of_vm(&[80, 8080], 201) {
            for rule in chain.rules.iter().filter(|rule| rule.contains(&Expr::Accept)) {
                let narrow =
                    rule.contains(&Expr::Load(Load::Protocol)) || rule.contains(&Expr::Load(Load::FlowState));
                assert!(narrow, "{}: {rule:?}", chain.name);
            }
        }
    }

    #[test]
    fn each_jails_packets_are_dropped_before_anything_passes_and_nobody_elses() {
        let dropped = |uid: u32, rules: &[Vec<Expr>]| {
            rules.iter().take_while(|rule| !rule.contains(&Expr::Accept)).any(|rule| match rule.as_slice() {
                [Expr::Load(Load::SocketUid), Expr::Mask(mask), Expr::Equal(value), .., Expr::Drop] => uid
                    .to_ne_bytes()
                    .iter()
                    .zip(mask)
                    .map(|(byte, mask)| byte & mask)
                    .eq(value.iter().copied()),
                _ => false,
            })
        };
        for wall in [of_vm(&[80], 201), of_node(&doors())] {
            let output = wall.iter().find(|chain| chain.name == "output").unwrap();
            let last = VM_UID_BASE + limits::AGENTS_RUNNING_MAX as u32 - 1;
            assert!((VM_UID_BASE..=last).all(|uid| dropped(uid, &output.rules)));
            for other in [0, 201, 1000, VM_UID_BASE - 1, last + 1, VM_UID_BASE << 8] {
                assert!(!dropped(other, &output.rules), "{other}");
            }
        }
    }

    #[test]
    fn jumps_reach_chains_that_exist() {
        let wall = of_vm(&[], 201);
        let names: Vec<_> = wall.iter().map(|chain| chain.name).collect();
        for expr in wall.iter().flat_map(|chain| chain.rules.iter().flatten()) {
            if let Expr::Jump(name) = expr {
                assert!(names.contains(name));
            }
        }
    }

    #[test]
    fn what_may_begin_towards_a_guest_is_named_by_user_address_and_port() {
        let wall = of_vm(&[80], 201);
        let output = wall.iter().find(|chain| chain.name == "output").unwrap();
        let begins: Vec<_> = output
            .rules
            .iter()
            .filter(|rule| rule.contains(&Expr::Accept) && !rule.contains(&Expr::Load(Load::FlowState)))
            .collect();
        let [rule] = begins.as_slice() else { panic!("{begins:?}") };
        for part in [Load::OutputName, Load::SocketUid, Load::Ip4Destination, Load::DestinationPort] {
            assert!(rule.contains(&Expr::Load(part)), "{part:?}");
        }
        assert!(rule.contains(&Expr::Equal(GUEST.octets().into())));
        assert_eq!(of_vm(&[], 201).iter().map(|c| c.rules.len()).sum::<usize>() + 3, {
            wall.iter().map(|c| c.rules.len()).sum::<usize>()
        });
    }

    #[test]
    fn each_source_of_a_port_has_a_rule_and_a_port_without_sources_one() {
        let port = |from: &[&str]| OpenPort {
            port: 30_000,
            from: from.iter().map(|r| r.parse().unwrap()).collect(),
        };
        assert_eq!(opened(&port(&[])).len(), 1);
        let rules = opened(&port(&["192.0.2.0/24", "0.0.0.0/0"]));
        let [first, second] = rules.as_slice() else { panic!("{rules:?}") };
        assert!(
            first.contains(&Expr::Mask(vec![255, 255, 255, 0])) && second.contains(&Expr::Mask(vec![0; 4]))
        );
    }
}
