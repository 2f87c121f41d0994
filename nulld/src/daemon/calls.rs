//! The loop's part at the door: each decision of [`crate::door`] carried out.
//!
//! Must hold: every admitted and every refused call is in nulld's log, and in the ledger at a bounded rate.

use abi::control::Method;
use abi::ledger::Event;
use abi::log::Level;
use abi::rpc::{Request, RpcError};

use super::Daemon;
use crate::clock;
use crate::door::{self, Peer, Turn};
use crate::service::HandOver;
use crate::system::{self, Reply};

/// Requests of one connection served before the others have their turn.
const TURNS_MAX: usize = 16;
/// Calls that reach the ledger in one second. More are only in nulld's own log.
const CALLS_NOTED_PER_SECOND: u32 = 50;

impl Daemon {
    /// Serves what a connection has sent.
    pub(super) fn turns(&mut self, id: u32) {
        for _ in 0..TURNS_MAX {
            let Some(callers) = &mut self.callers else { return };
            let Some((peer, turn)) = callers.next_turn(id, &self.journal.logs) else {
                return;
            };
            match turn {
                Turn::Wait => return,
                Turn::Close => return callers.close(id),
                Turn::Vouched(bytes, caller) => callers.vouch(id, bytes, caller),
                Turn::Pass(method, request) => return self.pass(id, &peer, method, &request),
                Turn::Own(bytes, request) => {
                    if !callers.own(id, bytes) {
                        let error = door::busy(abi::identity::Service::Nulld);
                        return self.refuse(id, &peer, request.id, &request.method, error);
                    }
                    self.serve(id, &peer, &request);
                }
                Turn::Refuse(request_id, method, error) => {
                    return self.refuse(id, &peer, request_id, &method, error);
                }
            }
        }
        self.again.push(id);
    }

    fn pass(&mut self, id: u32, peer: &Peer, method: &Method, request: &Request) {
        if self.facts.held.is_some() {
            return self.refuse(id, peer, request.id, method.name, door::held());
        }
        let unit = self.supervisor.unit(method.service.name());
        let stream = self.callers.as_ref().and_then(|callers| callers.stream_of(id));
        let absent = if self.facts.rescue.is_some() { "not started: rescue" } else { "not configured" };
        let state = unit.map_or(absent, |unit| unit.state.name());
        let outcome = match (unit, stream) {
            (Some(unit), Some(stream)) => unit.hand_over(peer.caller(), stream),
            _ => HandOver::Down,
        };
        match outcome {
            HandOver::Done => {
                self.note_call(peer, method.name);
                if let Some(callers) = &mut self.callers {
                    callers.close(id);
                }
            }
            HandOver::Busy => self.refuse(id, peer, request.id, method.name, door::busy(method.service)),
            HandOver::Down => {
                let error = door::unavailable(method.service, state);
                self.refuse(id, peer, request.id, method.name, error);
            }
        }
    }

    fn serve(&mut self, id: u32, peer: &Peer, request: &Request) {
        self.note_call(peer, &request.method);
        let reply = system::call(request, peer.caller(), &self.view());
        let Some(callers) = &mut self.callers else { return };
        match reply {
            Ok(Reply::Result(value)) => callers.answer(id, request.id, Ok(value)),
            Ok(Reply::Logs(logs)) => callers.stream(id, logs),
            Ok(Reply::Power(order)) => {
                callers.answer(id, request.id, Ok(serde_json::Value::Object(Default::default())));
                self.order(order);
            }
            Err(error) => callers.answer(id, request.id, Err(error)),
        }
    }

    fn refuse(&mut self, id: u32, peer: &Peer, request_id: Option<u64>, method: &str, error: RpcError) {
        let by = peer.caller().to_string();
        self.journal.quiet(
            Level::Warning,
            "refused",
            &[("method", &method), ("by", &by), ("reason", &error.message)],
        );
        if self.may_note() {
            self.ledger.note(Event::CallRefused {
                by,
                method: method.to_owned(),
                reason: error.message.chars().take(256).collect(),
            });
        }
        if let Some(callers) = &mut self.callers {
            callers.refuse(id, request_id, error, &self.journal.logs);
        }
    }

    fn note_call(&mut self, peer: &Peer, method: &str) {
        let by = peer.caller().to_string();
        self.journal.quiet(Level::Info, "call", &[("method", &method), ("by", &by)]);
        if self.may_note() {
            self.ledger.note(Event::CallMade { by, method: method.to_owned() });
        }
    }

    /// Callers must not be able to fill the ledger.
    fn may_note(&mut self) -> bool {
        let second = clock::now_ms() / 1000;
        if self.noted.0 != second {
            self.noted = (second, 0);
        }
        self.noted.1 += 1;
        self.noted.1 <= CALLS_NOTED_PER_SECOND
    }
}
