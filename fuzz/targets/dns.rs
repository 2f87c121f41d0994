//! DNS messages: a guest's questions, and a resolver's answers.
//!
//! Looks for: a panic, an answer that cannot be read, is another's or is too long, an address for a name that is not granted, a
//! granted name without its address, and a quick answer that is not the considered one.

#![no_main]

use abi::ids::{AgentName, HostName};
use egress::dns::{self, Book, Resolved, Transport};
use egress::policy::Refused;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use libfuzzer_sys::fuzz_target;
use std::net::Ipv4Addr;

const GRANTED: &str = "api.exa.ai";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 4);
/// What fits a datagram without a word about it, and with one.
const DATAGRAM_BYTES: usize = 1232;

struct One;

impl Book for One {
    fn address(&self, name: &HostName) -> Result<Ipv4Addr, Refused> {
        match name.as_str() {
            GRANTED => Ok(ADDRESS),
            _ => Err(Refused { rule: "name-not-granted", because: String::new(), remedy: "r".repeat(300) }),
        }
    }

    fn name(&self, address: Ipv4Addr) -> Option<HostName> {
        (address == ADDRESS).then(|| GRANTED.parse().unwrap())
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else { return };
    match mode % 3 {
        0 => question(rest, Transport::Udp),
        1 => question(rest, Transport::Tcp),
        _ => answer(rest),
    }
});

fn question(bytes: &[u8], transport: Transport) {
    let agent: AgentName = "a".parse().unwrap();
    let considered = dns::considered(bytes, transport, &agent, &One);
    if let Some(quick) = dns::quick(bytes, &One) {
        assert_eq!(Some(quick), considered);
    }
    let Some(answer) = considered else { return };
    assert_eq!(answer.bytes[..2], bytes[..2], "another question's answer");
    if transport == Transport::Udp {
        assert!(answer.bytes.len() <= DATAGRAM_BYTES);
    }
    let reply = Message::from_vec(&answer.bytes).expect("an answer that can be read");
    for record in &reply.answers {
        match &record.data {
            RData::A(address) => {
                assert_eq!(address.0, ADDRESS);
                let asked = record.name.to_ascii().to_ascii_lowercase();
                assert_eq!(asked.trim_end_matches('.'), GRANTED, "an address for a name that is not granted");
            }
            RData::PTR(name) => assert_eq!(name.0.to_ascii(), format!("{GRANTED}.")),
            other => panic!("{other:?}"),
        }
    }
    assert!(answer.refused.is_none() || reply.answers.is_empty());
    assert!(answer.refused.is_none() || reply.metadata.response_code != ResponseCode::NoError);
}

fn answer(bytes: &[u8]) {
    let id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    match dns::resolved(bytes, id, &GRANTED.parse().unwrap()) {
        Some(Resolved::Addresses(addresses, _)) => assert!(addresses.len() <= 32),
        Some(Resolved::Failed(why)) => assert!(!why.is_empty()),
        Some(Resolved::Cut) | None => {}
    }
    assert_eq!(dns::resolved(bytes, id.wrapping_add(1), &GRANTED.parse().unwrap()), None);
}
