//! Writes packet rules to nf_tables over netlink (docs/decisions/0003).
//!
//! Must hold: all rules of a namespace are replaced in one transaction, so there is no moment without rules, and what anybody else
//! put there is gone, but for tables that only their owner's process can remove: [`others`] names these.

use netlink_bindings::nftables::{
    Chained, CmpOps, CtKeys, MetaKeys, NatRangeFlags, Nfgenmsg, OpNewchainDo, PayloadBase, PushExprListAttrs,
    PushRuleAttrs, Registers, RejectInetCode, RejectTypes, Request, VerdictCode,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{RequestBuf, finalize_nested_header, push_header, push_nested_header};
use netlink_socket2::NetlinkSocket;
use std::net::Ipv4Addr;

use crate::wall::{Chain, Expr, Hook, Load, TABLE};

/// NFPROTO_INET: rules for IPv4 and IPv6.
const INET: u8 = 1;
/// NFNL_SUBSYS_NFTABLES, which the batch messages name.
const SUBSYSTEM: u16 = 10;
const REGISTER: u32 = Registers::Reg1 as u32;
const REGISTER_PORT: u32 = Registers::Reg2 as u32;
/// NF_NAT_MANIP_DST.
const NAT_DESTINATION: u32 = 1;
/// NFPROTO_IPV4.
const IPV4: u32 = 2;
/// Characters of another's table name that are told.
const NAME_SHOWN_MAX: usize = 64;

type Exprs<'a> = PushExprListAttrs<PushRuleAttrs<RequestBuf<'a>>>;

/// The kernel refused a table.
#[derive(Debug, thiserror::Error)]
#[error("nftables refused table {TABLE}: {0}")]
pub struct NftError(String);

impl NftError {
    /// The kernel's word for it.
    pub fn of(error: impl std::fmt::Display) -> NftError {
        NftError(error.to_string())
    }
}

/// Replaces all rules in the calling thread's network namespace. `mark`: a new one of the [`crate::guard::Guard`] that
/// watches it; the transaction's first sequence number, which the kernel's notification repeats.
pub fn replace(chains: &[Chain], mark: u32) -> Result<(), NftError> {
    let mut socket = NetlinkSocket::new();
    let mut batch = Chained::new(mark);
    let mut edge = Nfgenmsg::new();
    edge.set_res_id(SUBSYSTEM);
    batch.request().op_batch_begin_do(&edge);
    let name = TABLE.as_bytes();
    // Of no family and without a name: all tables there are, or none.
    batch.request().op_deltable_do(&Nfgenmsg::new()).encode();
    batch.request().set_create().op_newtable_do(&family()).encode().push_name_bytes(name);
    for chain in chains {
        add_chain(batch.request().set_create().op_newchain_do(&family()), chain);
    }
    for chain in chains {
        for rule in &chain.rules {
            let mut exprs = batch
                .request()
                .set_create()
                .set_append()
                .op_newrule_do(&family())
                .into_encoder()
                .push_table_bytes(name)
                .push_chain_bytes(chain.name.as_bytes())
                .nested_expressions();
            for expr in rule {
                exprs = add(exprs, expr);
            }
        }
    }
    batch.request().op_batch_end_do(&edge);
    let batch = batch.finalize();
    socket.request_chained(&batch).map_err(NftError::of)?.recv_all().map_err(NftError::of)
}

/// Tables in the calling thread's network namespace that are not ours.
pub fn others() -> Result<Vec<String>, NftError> {
    let mut socket = NetlinkSocket::new();
    let request = Request::new().op_gettable_dump(&Nfgenmsg::new());
    let mut replies = socket.request(&request).map_err(NftError::of)?;
    let mut others = Vec::new();
    while let Some(reply) = replies.recv() {
        let (of, table) = reply.map_err(NftError::of)?;
        let name = table.get_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if (of.nfgen_family, name.as_str()) != (INET, TABLE) {
            let plain: String = name.chars().filter(char::is_ascii_graphic).take(NAME_SHOWN_MAX).collect();
            others.push(plain);
        }
    }
    Ok(others)
}

fn family() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: INET, ..Default::default() }
}

fn add_chain(mut message: OpNewchainDo<'_>, chain: &Chain) {
    let encoder = message.encode().push_table_bytes(TABLE.as_bytes()).push_name_bytes(chain.name.as_bytes());
    let Some((hook, priority, nat)) = chain.base else {
        return;
    };
    let number = match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
    };
    let policy = if nat { VerdictCode::Accept } else { VerdictCode::Drop };
    encoder
        .nested_hook()
        .push_num(number)
        .push_priority(priority)
        .end_nested()
        .push_policy(policy as u32)
        .push_type(if nat { c"nat" } else { c"filter" });
}

fn add<'a>(exprs: Exprs<'a>, expr: &Expr) -> Exprs<'a> {
    match expr {
        Expr::Load(load) => add_load(exprs, *load),
        Expr::Mask(mask) => add_mask(exprs, mask),
        Expr::Equal(value) => compare(exprs, CmpOps::Eq, value),
        Expr::NotEqual(value) => compare(exprs, CmpOps::Neq, value),
        Expr::Count => {
            exprs.nested_elem().nested_data_counter().push_bytes(0).push_packets(0).end_nested().end_nested()
        }
        Expr::Limit { rate, burst, over } => add_limit(exprs, *rate, *burst, *over),
        Expr::Log { group, prefix, bytes } => exprs
            .nested_elem()
            .nested_data_log()
            .push_group(*group)
            .push_prefix_bytes(prefix.as_bytes())
            .push_snaplen(*bytes)
            .end_nested()
            .end_nested(),
        Expr::Accept => verdict(exprs, VerdictCode::Accept, None),
        Expr::Drop => verdict(exprs, VerdictCode::Drop, None),
        Expr::Jump(chain) => verdict(exprs, VerdictCode::Jump, Some(chain)),
        Expr::RejectReset => reject(exprs, RejectTypes::TcpRst, 0),
        Expr::RejectProhibited => {
            reject(exprs, RejectTypes::IcmpxUnreach, RejectInetCode::IcmpxAdminProhibited as u8)
        }
        Expr::Dnat(address, port) => add_dnat(exprs, *address, *port),
    }
}

fn add_load(exprs: Exprs<'_>, load: Load) -> Exprs<'_> {
    match load {
        Load::Family => meta(exprs, MetaKeys::Nfproto),
        Load::Protocol => meta(exprs, MetaKeys::L4Proto),
        Load::InputName => meta(exprs, MetaKeys::Iifname),
        Load::OutputName => meta(exprs, MetaKeys::Oifname),
        Load::SocketUid => meta(exprs, MetaKeys::Skuid),
        Load::FlowState => flow(exprs, CtKeys::State),
        Load::FlowStatus => flow(exprs, CtKeys::Status),
        Load::FlowDirection => flow(exprs, CtKeys::Direction),
        Load::Ip4Source => payload(exprs, PayloadBase::NetworkHeader, 12, 4),
        Load::Ip4Destination => payload(exprs, PayloadBase::NetworkHeader, 16, 4),
        Load::SourcePort => payload(exprs, PayloadBase::TransportHeader, 0, 2),
        Load::DestinationPort => payload(exprs, PayloadBase::TransportHeader, 2, 2),
        Load::TcpFlags => payload(exprs, PayloadBase::TransportHeader, 13, 1),
        Load::IcmpType => payload(exprs, PayloadBase::TransportHeader, 0, 1),
    }
}

fn meta(exprs: Exprs<'_>, key: MetaKeys) -> Exprs<'_> {
    exprs.nested_elem().nested_data_meta().push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested()
}

fn flow(exprs: Exprs<'_>, key: CtKeys) -> Exprs<'_> {
    exprs.nested_elem().nested_data_ct().push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested()
}

fn payload(exprs: Exprs<'_>, base: PayloadBase, offset: u32, len: u32) -> Exprs<'_> {
    exprs
        .nested_elem()
        .nested_data_payload()
        .push_dreg(REGISTER)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(len)
        .end_nested()
        .end_nested()
}

fn add_mask<'a>(exprs: Exprs<'a>, mask: &[u8]) -> Exprs<'a> {
    exprs
        .nested_elem()
        .nested_data_bitwise()
        .push_sreg(REGISTER)
        .push_dreg(REGISTER)
        .push_len(u32::try_from(mask.len()).unwrap_or(0)) // the kernel refuses a length of 0
        .nested_mask()
        .push_value(mask)
        .end_nested()
        .nested_xor()
        .push_value(&vec![0; mask.len()])
        .end_nested()
        .end_nested()
        .end_nested()
}

fn compare<'a>(exprs: Exprs<'a>, op: CmpOps, value: &[u8]) -> Exprs<'a> {
    exprs
        .nested_elem()
        .nested_data_cmp()
        .push_sreg(REGISTER)
        .push_op(op as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn verdict<'a>(exprs: Exprs<'a>, code: VerdictCode, chain: Option<&str>) -> Exprs<'a> {
    let mut verdict = exprs
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32)
        .nested_data()
        .nested_verdict()
        .push_code(code as u32);
    if let Some(chain) = chain {
        verdict = verdict.push_chain_bytes(chain.as_bytes());
    }
    verdict.end_nested().end_nested().end_nested().end_nested()
}

fn reject(exprs: Exprs<'_>, kind: RejectTypes, code: u8) -> Exprs<'_> {
    exprs
        .nested_elem()
        .nested_data_reject()
        .push_type(kind as u32)
        .push_icmp_code(code)
        .end_nested()
        .end_nested()
}

fn immediate<'a>(exprs: Exprs<'a>, register: u32, value: &[u8]) -> Exprs<'a> {
    exprs
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(register)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn add_dnat(exprs: Exprs<'_>, address: Ipv4Addr, port: u16) -> Exprs<'_> {
    let exprs = immediate(exprs, REGISTER, &address.octets());
    immediate(exprs, REGISTER_PORT, &port.to_be_bytes())
        .nested_elem()
        .nested_data_nat()
        .push_type(NAT_DESTINATION)
        .push_family(IPV4)
        .push_reg_addr_min(REGISTER)
        .push_reg_proto_min(REGISTER_PORT)
        .push_flags(NatRangeFlags::ProtoSpecified as u32)
        .end_nested()
        .end_nested()
}

/// `limit` is not in the kernel's YAML specification that netlink-bindings is made from: written by hand, after
/// nft_limit_policy in net/netfilter/nft_limit.c (rate 1, unit 2, burst 3, type 4, flags 5, all big-endian).
fn add_limit(exprs: Exprs<'_>, rate: u32, burst: u32, over: bool) -> Exprs<'_> {
    const SECOND: u64 = 1;
    const PACKETS: u32 = 0;
    let mut expr = exprs.nested_elem().push_name(c"limit");
    let buffer = expr.as_vec_mut();
    let data = push_nested_header(buffer, 2);
    for (kind, value) in [(1, u64::from(rate)), (2, SECOND)] {
        push_header(buffer, kind, 8);
        buffer.extend(value.to_be_bytes());
    }
    for (kind, value) in [(3, burst), (4, PACKETS), (5, u32::from(over))] {
        push_header(buffer, kind, 4);
        buffer.extend(value.to_be_bytes());
    }
    finalize_nested_header(buffer, data);
    expr.end_nested()
}
