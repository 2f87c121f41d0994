//! The one door: who may come in, and to whom they are passed. Decisions only; [`crate::callers`] holds the sockets.
//!
//! Must hold: the identity is SO_PEERCRED's, or what nullgate (known by its uid) vouches for; nulld takes exactly the vouch
//! line out of the stream and leaves the request for its owner. Must never: act on a line that is not whole.

use abi::control::{self, Method};
use abi::door::Vouch;
use abi::identity::{Caller, Service};
use abi::limits;
use abi::rpc::{Code, Request, RpcError};

/// What to do with a connection, given what can be peeked at now.
#[derive(Debug, PartialEq)]
pub enum Turn {
    /// No whole line yet.
    Wait,
    /// The peer has gone.
    Close,
    /// Take so many bytes; the rest of the connection speaks for this operator.
    Vouched(usize, Caller),
    /// For this service; nothing is taken.
    Pass(&'static Method, Request),
    /// For nulld itself; so many bytes are the request line.
    Own(usize, Request),
    /// Answer with this and close. The method is empty where none could be read.
    Refuse(Option<u64>, String, RpcError),
}

/// What nulld knows of a connection before it reads.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From SO_PEERCRED.
    pub socket: Caller,
    /// From nullgate's vouch line.
    pub vouched: Option<Caller>,
    /// The connection has called nulld itself before, and so belongs to it.
    pub is_own: bool,
}

impl Peer {
    /// Who speaks.
    pub fn caller(&self) -> &Caller {
        self.vouched.as_ref().unwrap_or(&self.socket)
    }

    fn must_vouch(&self) -> bool {
        let is_gate = matches!(self.socket, Caller::Service { service: Service::Nullgate });
        is_gate && self.vouched.is_none()
    }
}

/// Decides. `peeked` is what the socket holds, at most one byte more than a line may have; `ended`: nothing follows it.
pub fn examine(peer: &Peer, peeked: &[u8], ended: bool) -> Turn {
    let end = peeked.iter().take(limits::LINE_BYTES_MAX).position(|byte| *byte == b'\n');
    let Some(end) = end else {
        return match (peeked.len() >= limits::LINE_BYTES_MAX, ended) {
            (true, _) => Turn::Refuse(None, String::new(), too_long()),
            (false, true) => Turn::Close,
            (false, false) => Turn::Wait,
        };
    };
    let line = peeked.get(..end).unwrap_or_default();
    if peer.must_vouch() {
        return vouch(line, end + 1);
    }
    request(peer, line, end + 1)
}

fn vouch(line: &[u8], bytes: usize) -> Turn {
    match serde_json::from_slice::<Vouch>(line) {
        Ok(Vouch { vouch: caller @ Caller::Operator { .. } }) => Turn::Vouched(bytes, caller),
        _ => Turn::Refuse(
            None,
            String::new(),
            RpcError::new(Code::INVALID_REQUEST, "the first line does not vouch for an operator").explained(
                "nullgate first says for whom it speaks",
                "send {\"vouch\":{\"kind\":\"operator\",...}} first",
            ),
        ),
    }
}

fn request(peer: &Peer, line: &[u8], bytes: usize) -> Turn {
    let refuse = |id, method: &str, error| Turn::Refuse(id, method.chars().take(64).collect(), error);
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(_) => return refuse(None, "", RpcError::new(Code::PARSE, "the request is not UTF-8")),
    };
    let request = match Request::parse(text) {
        Ok(request) => request,
        Err(error) => return refuse(None, "", error),
    };
    if request.id.is_none() {
        let error = RpcError::new(Code::INVALID_REQUEST, "a notification cannot open a connection")
            .explained("the first line must be a call", "add a numeric \"id\"");
        return refuse(None, &request.method, error);
    }
    let method = control::method(&request.method);
    let owner = match (method, peer.is_own) {
        (Some(method), false) => method.service,
        (_, true) | (None, _) => Service::Nulld,
    };
    if let Err(error) = abi::door::check(owner, peer.caller(), &request.method) {
        return refuse(request.id, &request.method, error);
    }
    match method {
        Some(method) if method.service != Service::Nulld => Turn::Pass(method, request),
        _ => Turn::Own(bytes, request),
    }
}

fn too_long() -> RpcError {
    RpcError::new(Code::LIMIT, format!("a line of more than {} bytes", limits::LINE_BYTES_MAX))
        .explained("every line of the control protocol is bounded", "send less in one call")
}

/// Why a call that was admitted cannot be passed on now.
pub fn unavailable(service: Service, state: &str) -> RpcError {
    RpcError::new(Code::UNAVAILABLE, format!("{service} is not running: it is {state}")).explained(
        format!("the call belongs to {service}"),
        format!(
            "see `nullctl system status` and `nullctl system logs {service}`; try again when it is ready"
        ),
    )
}

/// nulld crashed too often to hand anything over.
pub fn held() -> RpcError {
    RpcError::new(Code::UNAVAILABLE, "nulld crashed repeatedly and passes no call on").explained(
        "after repeated crashes only `system.*` is served",
        "see `nullctl system status` and `nullctl system logs nulld`, then `nullctl system reboot`",
    )
}

/// The service has as many connections waiting as its queue holds.
pub fn busy(service: Service) -> RpcError {
    RpcError::new(Code::LIMIT, format!("{service} is busy"))
        .explained("connections wait in a bounded queue", "try again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::identity::Role;

    fn peer(uid: u32) -> Peer {
        Peer { socket: Caller::from_uid(uid), vouched: None, is_own: false }
    }

    fn operator(role: Role) -> Caller {
        Caller::Operator { name: "alice".into(), key: "k".into(), role }
    }

    fn call(method: &str) -> Vec<u8> {
        format!("{{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"{method}\"}}\n").into_bytes()
    }

    fn code(turn: Turn) -> Code {
        match turn {
            Turn::Refuse(_, _, error) => error.code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_happens_before_a_whole_line() {
        let line = call("agent.list");
        for cut in 0..line.len() {
            assert_eq!(examine(&peer(0), &line[..cut], false), Turn::Wait);
            assert_eq!(examine(&peer(0), &line[..cut], true), Turn::Close);
        }
        assert!(matches!(
            examine(&peer(0), &line, false),
            Turn::Pass(method, _) if method.service == Service::Cage
        ));
    }

    #[test]
    fn a_line_above_the_limit_is_refused() {
        let long = vec![b'x'; limits::LINE_BYTES_MAX + 1];
        assert_eq!(code(examine(&peer(0), &long, false)), Code::LIMIT);
    }

    #[test]
    fn root_is_admin_and_other_users_are_refused() {
        assert!(matches!(examine(&peer(0), &call("system.reboot"), false), Turn::Own(_, _)));
        for uid in [1000, 201, 202, 100_000] {
            assert_eq!(code(examine(&peer(uid), &call("system.status"), false)), Code::DENIED, "{uid}");
        }
    }

    #[test]
    fn only_nullgate_vouches_and_it_must() {
        let vouch = serde_json::to_string(&Vouch { vouch: operator(Role::Reader) }).unwrap() + "\n";
        let both = [vouch.as_bytes(), &call("agent.list")].concat();
        assert_eq!(examine(&peer(203), &both, false), Turn::Vouched(vouch.len(), operator(Role::Reader)));
        assert_eq!(code(examine(&peer(203), &call("system.status"), false)), Code::INVALID_REQUEST);
        for uid in [0, 201, 1000] {
            assert_eq!(code(examine(&peer(uid), vouch.as_bytes(), false)), Code::INVALID_REQUEST);
        }
        for forged in [
            "{\"vouch\":{\"kind\":\"local\",\"uid\":0}}\n",
            "{\"vouch\":{\"kind\":\"service\",\"service\":\"cage\"}}\n",
        ] {
            assert_eq!(code(examine(&peer(203), forged.as_bytes(), false)), Code::INVALID_REQUEST);
        }
    }

    #[test]
    fn a_vouched_operator_has_the_role_of_the_key_and_no_more() {
        let vouched = Peer { vouched: Some(operator(Role::Reader)), ..peer(203) };
        assert!(matches!(examine(&vouched, &call("agent.list"), false), Turn::Pass(_, _)));
        assert_eq!(code(examine(&vouched, &call("agent.start"), false)), Code::DENIED);
        assert_eq!(code(examine(&vouched, &call("ledger.append"), false)), Code::DENIED);
        // A second vouch line is a request now, and not a valid one.
        let again = "{\"vouch\":{\"kind\":\"operator\",\"name\":\"m\",\"key\":\"k\",\"role\":\"admin\"}}\n";
        assert_eq!(code(examine(&vouched, again.as_bytes(), false)), Code::INVALID_REQUEST);
    }

    #[test]
    fn a_connection_that_called_nulld_stays_with_nulld() {
        let own = Peer { is_own: true, ..peer(0) };
        assert!(matches!(examine(&own, &call("system.status"), false), Turn::Own(_, _)));
        assert_eq!(code(examine(&own, &call("agent.list"), false)), Code::INVALID_REQUEST);
    }

    #[test]
    fn unknown_methods_and_notifications_are_refused() {
        assert_eq!(code(examine(&peer(0), &call("agent.fly"), false)), Code::UNKNOWN_METHOD);
        let note = b"{\"jsonrpc\":\"2.0\",\"method\":\"agent.list\"}\n";
        assert_eq!(code(examine(&peer(0), note, false)), Code::INVALID_REQUEST);
        assert_eq!(code(examine(&peer(0), b"\xff\xfe\n", false)), Code::PARSE);
    }
}
