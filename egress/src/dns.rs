//! What a guest's DNS question is answered with. Pure: bytes and grants in, bytes out.
//!
//! Must hold: an allowed name has its synthetic address and nothing else; any other name does not exist, and the answer says
//! why (RFC 8914). No question of a guest ever causes a question to a resolver, so names carry nothing out.

use abi::ids::{AgentName, HostName};
use abi::limits;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::Ipv4Addr;

use crate::denials::Rule;
use crate::policy::Refused as Refusal;

/// What an agent's names stand for.
pub trait Book {
    /// The synthetic address of a name, if the agent may ask for it.
    fn address(&self, name: &HostName) -> Result<Ipv4Addr, Refusal>;
    /// The name of a synthetic address.
    fn name(&self, address: Ipv4Addr) -> Option<HostName>;
}

/// EDNS option code of an extended error, and its info code Blocked (RFC 8914 sections 2 and 4.16).
const EXTENDED_ERROR: u16 = 15;
const BLOCKED: u16 = 15;
/// Bytes of a message over UDP when the question says nothing (RFC 1035 section 4.2.1).
const UDP_BYTES: usize = 512;
/// Bytes that fit any path (DNS flag day 2020).
const EDNS_BYTES: u16 = 1232;
/// Bytes of a DNS header.
const HEADER: usize = 12;

/// An answer, and what it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub refused: Option<Refused>,
}

/// A question that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `dns A evil.example`
    pub what: String,
    pub rule: Rule,
    pub remedy: String,
}

/// Over what the question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// Answers one message; `None`: not a question, dropped.
pub fn answer(question: &[u8], transport: Transport, agent: &AgentName, book: &dyn Book) -> Option<Answer> {
    quick(question, book).or_else(|| considered(question, transport, agent, book))
}

/// Answers what nearly every question is, one for the address of a granted name, without taking it apart: the answer is the question
/// with another head and a record behind it. `None`: it is not that, or it is refused. The same bytes as [`considered`] gives.
pub fn quick(question: &[u8], book: &dyn Book) -> Option<Answer> {
    let (head, rest) = question.split_at_checked(HEADER)?;
    let &[id0, id1, flags, _, 0, 1, 0, 0, 0, 0, 0, more @ (0 | 1)] = head else { return None };
    let recursion = flags & 1;
    if flags != recursion {
        return None; // an answer, another operation, or cut
    }
    let mut text = String::with_capacity(64);
    let mut rest = rest;
    loop {
        let (length, after) = rest.split_first()?;
        // Not a pointer either: those are above 63.
        let (label, after) = after.split_at_checked(usize::from(*length)).filter(|_| *length < 64)?;
        rest = after;
        if label.is_empty() {
            break;
        }
        if !text.is_empty() {
            text.push('.');
        }
        let plain = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
        text.extend(label.iter().all(plain).then_some(label)?.iter().map(|b| char::from(*b)));
    }
    let rest = rest.strip_prefix(&[0, 1, 0, 1])?; // A, IN
    let asked = question.get(HEADER..question.len() - rest.len())?;
    // No extension, or the plainest: an OPT record of version 0 without options.
    match (more, rest) {
        (0, []) | (1, [0, 0, 41, _, _, 0, 0, _, _, 0, 0]) => {}
        _ => return None,
    }
    let address = book.address(&text.parse().ok()?).ok()?;
    let mut bytes = Vec::with_capacity(question.len() + 16);
    bytes.extend([id0, id1, 0x80 | recursion, 0x80, 0, 1, 0, 1, 0, 0, 0, more]);
    bytes.extend_from_slice(asked);
    bytes.extend([0xc0, 0x0c, 0, 1, 0, 1]); // the name asked for, A, IN
    bytes.extend(limits::DNS_TTL_SECS.to_be_bytes());
    bytes.extend([0, 4]);
    bytes.extend(address.octets());
    if more == 1 {
        let [high, low] = EDNS_BYTES.to_be_bytes();
        bytes.extend([0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
    }
    Some(Answer { bytes, refused: None })
}

/// Answers any message; `None`: not a question.
pub fn considered(
    question: &[u8],
    transport: Transport,
    agent: &AgentName,
    book: &dyn Book,
) -> Option<Answer> {
    let is_answer = question.get(2)? & 0x80 != 0;
    if question.len() < HEADER || is_answer {
        return None;
    }
    let Ok(asked) = Message::from_vec(question) else {
        return malformed(question);
    };
    let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(asked.queries.iter().cloned());
    let mut explanation = None;
    let query = match asked.queries.as_slice() {
        _ if asked.metadata.op_code != OpCode::Query => Err(ResponseCode::NotImp),
        [query] if query.query_class == DNSClass::IN => Ok(query),
        [_] => Err(ResponseCode::Refused),
        _ => Err(ResponseCode::FormErr),
    };
    match query {
        Ok(query) => explanation = decide(query, agent, book, &mut reply),
        Err(code) => reply.metadata.response_code = code,
    }
    finish(reply, asked.edns.as_ref(), transport, explanation)
}

/// A message that cannot be parsed is answered by its number only.
fn malformed(question: &[u8]) -> Option<Answer> {
    let id = u16::from_be_bytes(question.get(..2)?.try_into().ok()?);
    let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Some(Answer { bytes: reply.to_vec().ok()?, refused: None })
}

/// Fills the reply; returns what was refused and why.
fn decide(query: &Query, agent: &AgentName, book: &dyn Book, reply: &mut Message) -> Option<Refused> {
    let text = query.name.to_ascii();
    if let Some(name) = reverse(&query.name, query.query_type, book) {
        let target = Name::from_ascii(format!("{name}.")).ok()?;
        reply.add_answer(Record::from_rdata(
            query.name.clone(),
            limits::DNS_TTL_SECS,
            RData::PTR(PTR(target)),
        ));
        return None;
    }
    let (rule, remedy) = match (text.parse::<HostName>().map(|name| book.address(&name)), query.query_type) {
        (Ok(Ok(address)), RecordType::A | RecordType::ANY) => {
            let data = RData::A(A(address));
            reply.add_answer(Record::from_rdata(query.name.clone(), limits::DNS_TTL_SECS, data));
            return None;
        }
        (Ok(Ok(_)), _) => {
            reply.add_authority(start_of_authority(&query.name)?);
            return None;
        }
        (Ok(Err(refusal)), _) => (refusal.rule, refusal.remedy),
        (Err(_), _) => {
            ("name-not-granted", format!("it is no host name, so agent {agent} cannot be granted it"))
        }
    };
    reply.metadata.response_code = ResponseCode::NXDomain;
    reply.add_authority(start_of_authority(&query.name)?);
    let name: String = text.trim_end_matches('.').chars().take(253).collect();
    Some(Refused { rule, remedy, what: format!("dns {} {name}", query.query_type) })
}

/// The name behind a synthetic address, for a question in in-addr.arpa.
fn reverse(name: &Name, kind: RecordType, book: &dyn Book) -> Option<HostName> {
    if kind != RecordType::PTR {
        return None;
    }
    let text = name.to_ascii().to_ascii_lowercase();
    let mut octets: Vec<&str> = text.strip_suffix(".in-addr.arpa.")?.split('.').collect();
    octets.reverse();
    book.name(octets.join(".").parse::<Ipv4Addr>().ok()?)
}

/// Bounds how long a guest may remember that there is nothing (RFC 2308).
fn start_of_authority(name: &Name) -> Option<Record> {
    let server = Name::from_ascii("egress.nullbox.").ok()?;
    let seconds = i32::try_from(limits::DNS_TTL_SECS).ok()?;
    let data = SOA::new(server.clone(), server, 1, seconds, seconds, seconds, limits::DNS_TTL_SECS);
    Some(Record::from_rdata(name.clone(), limits::DNS_TTL_SECS, RData::SOA(data)))
}

fn finish(
    mut reply: Message,
    asked: Option<&Edns>,
    transport: Transport,
    refused: Option<Refused>,
) -> Option<Answer> {
    let mut room = usize::from(u16::MAX);
    if transport == Transport::Udp {
        room = asked.map_or(UDP_BYTES, |edns| {
            usize::from(edns.max_payload()).clamp(UDP_BYTES, usize::from(EDNS_BYTES))
        });
    }
    if let Some(asked) = asked {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_BYTES).set_version(0);
        if asked.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
        }
        if let Some(refused) = &refused {
            let mut option = BLOCKED.to_be_bytes().to_vec();
            option.extend(refused.remedy.as_bytes());
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, option));
        }
        reply.set_edns(edns);
    }
    let mut bytes = reply.to_vec().ok()?;
    if bytes.len() > room {
        // The explanation is the only long part: better the bare answer than a cut one.
        reply.edns = reply.edns.take().map(|_| Edns::new());
        bytes = reply.to_vec().ok()?;
    }
    if bytes.len() > room {
        bytes = reply.truncate().to_vec().ok()?;
    }
    Some(Answer { bytes, refused })
}

/// A question for a resolver, as the proxy asks it.
pub fn question(id: u16, name: &HostName) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).ok()?, RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_BYTES).set_version(0);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// What a resolver said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// Perhaps none; and for how many seconds they hold.
    Addresses(Vec<Ipv4Addr>, u32),
    /// Ask again over TCP.
    Cut,
    /// The resolver could not, and says so.
    Failed(String),
}

/// Addresses taken from one answer.
const ADDRESSES_MAX: usize = 32;
/// Aliases followed in one answer.
const ALIASES_MAX: usize = 8;

/// Reads a resolver's answer; `None`: not the answer to this question.
pub fn resolved(bytes: &[u8], id: u16, name: &HostName) -> Option<Resolved> {
    let answer = Message::from_vec(bytes).ok()?;
    let mut wanted = Name::from_ascii(format!("{name}.")).ok()?;
    let [query] = answer.queries.as_slice() else {
        return None;
    };
    let ours = answer.metadata.id == id && answer.metadata.message_type == MessageType::Response;
    if !ours || query.name != wanted || query.query_type != RecordType::A {
        return None;
    }
    if answer.metadata.truncation {
        return Some(Resolved::Cut);
    }
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Some(Resolved::Failed(code.to_string())),
    }
    let mut seconds = u32::MAX;
    for _ in 0..ALIASES_MAX {
        let of_name = || answer.answers.iter().filter(|record| record.name == wanted);
        let alias = of_name().find_map(|record| match &record.data {
            RData::CNAME(alias) => Some((alias.0.clone(), record.ttl)),
            _ => None,
        });
        if let Some((alias, ttl)) = alias {
            seconds = seconds.min(ttl);
            wanted = alias;
            continue;
        }
        let addresses = of_name().filter_map(|record| match &record.data {
            RData::A(A(address)) => Some((*address, record.ttl)),
            _ => None,
        });
        let (addresses, ttls): (Vec<_>, Vec<_>) = addresses.take(ADDRESSES_MAX).unzip();
        let seconds = ttls.into_iter().fold(seconds, u32::min);
        return Some(Resolved::Addresses(addresses, if seconds == u32::MAX { 0 } else { seconds }));
    }
    Some(Resolved::Failed(format!("more than {ALIASES_MAX} aliases")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use crate::policy::Policy;
    use std::cell::RefCell;

    struct TestBook(RefCell<Names>);

    impl Book for TestBook {
        fn address(&self, name: &HostName) -> Result<Ipv4Addr, Refusal> {
            let policy = Policy { manifest: vec!["api.exa.ai:443".parse().unwrap()], ..Policy::default() };
            policy.resolves(&agent(), name, 0)?;
            Ok(self.0.borrow_mut().address(name))
        }

        fn name(&self, address: Ipv4Addr) -> Option<HostName> {
            self.0.borrow().at(address).cloned()
        }
    }

    fn agent() -> AgentName {
        "researcher".parse().unwrap()
    }

    fn names() -> TestBook {
        let mut names = Names::new(agent());
        names.address(&"api.exa.ai".parse().unwrap());
        TestBook(RefCell::new(names))
    }

    fn ask(name: &str, kind: RecordType, edns: bool) -> (Message, Option<Refused>) {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if edns {
            message.set_edns(Edns::new());
        }
        let answer = answer(&message.to_vec().unwrap(), Transport::Udp, &agent(), &names()).unwrap();
        (Message::from_vec(&answer.bytes).unwrap(), answer.refused)
    }

    #[test]
    fn an_allowed_name_has_its_synthetic_address_in_any_case() {
        let address = names().address(&"api.exa.ai".parse().unwrap()).unwrap();
        for spelling in ["api.exa.ai.", "API.Exa.AI."] {
            let (reply, refused) = ask(spelling, RecordType::A, false);
            assert_eq!(reply.answers[0].data, RData::A(A(address)));
            assert_eq!((reply.metadata.id, refused), (7, None));
        }
    }

    #[test]
    fn other_types_of_an_allowed_name_are_empty_and_not_refused() {
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB, RecordType::TXT, RecordType::MX] {
            let (reply, refused) = ask("api.exa.ai.", kind, true);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert!(reply.answers.is_empty() && reply.authorities.len() == 1 && refused.is_none());
        }
    }

    #[test]
    fn any_other_name_does_not_exist_and_says_why() {
        for name in ["evil.example.", "x.api.exa.ai.", "exa.ai.", "localhost.", "a_b.c-.example.", "8.8.8.8."]
        {
            let (reply, refused) = ask(name, RecordType::A, true);
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
            assert!(refused.unwrap().what.starts_with("dns A "), "{name}");
            let edns = reply.edns.unwrap();
            let option = edns.option(EXTENDED_ERROR.into()).unwrap();
            let EdnsOption::Unknown(_, bytes) = option else { panic!() };
            assert_eq!(bytes[..2], [0, 15]);
            let why = String::from_utf8_lossy(&bytes[2..]).into_owned();
            assert!(
                why.contains("add it to capabilities.network.allow") || why.contains("it is no host name"),
                "{why}"
            );
        }
        assert!(ask("evil.example.", RecordType::A, false).0.edns.is_none());
    }

    #[test]
    fn a_long_refused_name_still_gets_its_answer() {
        let label = "a".repeat(63);
        let name = format!("{label}.{label}.{label}.{}.", "b".repeat(61));
        for edns in [false, true] {
            let (reply, _) = ask(&name, RecordType::A, edns);
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        }
    }

    #[test]
    fn a_synthetic_address_has_its_name_back() {
        let [a, b, c, d] = names().address(&"api.exa.ai".parse().unwrap()).unwrap().octets();
        let (reply, _) = ask(&format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR, false);
        assert_eq!(reply.answers[0].data, RData::PTR(PTR(Name::from_ascii("api.exa.ai.").unwrap())));
        assert!(ask("1.0.64.100.in-addr.arpa.", RecordType::PTR, false).1.is_some());
    }

    #[test]
    fn the_quick_answer_is_the_considered_one() {
        let plain = question(9, &"api.exa.ai".parse().unwrap()).unwrap();
        let names = names();
        let mut quickly = 0;
        // Each byte bent in each way: what is still answered quickly must be the same.
        for at in 0..plain.len() {
            for value in 0..=255u8 {
                for end in [plain.len(), plain.len() - 11] {
                    let mut bent = plain[..end].to_vec();
                    if end < plain.len() {
                        bent[11] = 0;
                    }
                    if let Some(byte) = bent.get_mut(at) {
                        *byte = value;
                    }
                    if let Some(answer) = quick(&bent, &names) {
                        quickly += 1;
                        assert_eq!(
                            Some(answer),
                            considered(&bent, Transport::Udp, &agent(), &names),
                            "{bent:?}"
                        );
                    }
                }
            }
        }
        assert!(quickly > 1000, "{quickly}");
        for bad in ["evil.example", "api.exa.ai.x"] {
            assert_eq!(quick(&question(9, &bad.parse().unwrap()).unwrap(), &names), None);
        }
    }

    #[test]
    fn nonsense_is_answered_with_a_format_error_or_not_at_all() {
        let reply = |bytes: &[u8]| answer(bytes, Transport::Udp, &agent(), &names());
        assert_eq!(reply(&[]), None);
        assert_eq!(reply(&[1, 2, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0]), None);
        let garbage = reply(&[1, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 255]).unwrap();
        assert_eq!(Message::from_vec(&garbage.bytes).unwrap().metadata.response_code, ResponseCode::FormErr);
        let none = reply(&[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(Message::from_vec(&none.bytes).unwrap().metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let whole = question(9, &"api.exa.ai".parse().unwrap()).unwrap();
        for _ in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let mut bytes = whole.clone();
            let at = state as usize % bytes.len();
            bytes[at] = (state >> 32) as u8;
            bytes.truncate((state >> 16) as usize % (bytes.len() + 1) + at % 3);
            let _ = answer(&bytes, Transport::Udp, &agent(), &names());
            let _ = resolved(&bytes, 9, &"api.exa.ai".parse().unwrap());
        }
    }

    #[test]
    fn a_resolvers_answer_is_followed_through_aliases_and_no_further() {
        let name: HostName = "api.exa.ai".parse().unwrap();
        let asked = Message::from_vec(&question(3, &name).unwrap()).unwrap();
        let mut reply = Message::response(3, OpCode::Query);
        reply.add_queries(asked.queries.clone());
        let n = |text: &str| Name::from_ascii(text).unwrap();
        let alias = hickory_proto::rr::rdata::CNAME(n("cdn.example."));
        reply.add_answer(Record::from_rdata(n("api.exa.ai."), 1, RData::CNAME(alias)));
        reply.add_answer(Record::from_rdata(
            n("cdn.example."),
            1,
            RData::A(A(Ipv4Addr::new(203, 0, 113, 5))),
        ));
        reply.add_answer(Record::from_rdata(
            n("other.example."),
            1,
            RData::A(A(Ipv4Addr::new(203, 0, 113, 6))),
        ));
        let bytes = reply.to_vec().unwrap();
        let found = Resolved::Addresses(vec![Ipv4Addr::new(203, 0, 113, 5)], 1);
        assert_eq!(resolved(&bytes, 3, &name), Some(found));
        assert_eq!(resolved(&bytes, 4, &name), None, "another question's answer");
        assert_eq!(resolved(&bytes, 3, &"other.example".parse().unwrap()), None);
    }
}
