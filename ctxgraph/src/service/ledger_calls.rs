//! The ledger's methods.
//!
//! Must never: let a reader of the ledger slow a writer of it.

use abi::control::{LedgerPage, LedgerQuery, LedgerTail, Nothing};
use abi::door::{Call, Outcome};
use abi::ledger::Append;
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::proof_calls::reader;
use super::{Ctxgraph, result};
use crate::counted::Counted;
use crate::ledger::scan::Point;
use crate::ledger::{AppendError, ReadError};
use ::ledger::frame::Source;

/// Serves one call of `ledger.*`.
pub(super) fn answer(service: &Ctxgraph, call: Call<'_>) -> Result<Outcome, RpcError> {
    match call.request.method.as_str() {
        "ledger.append" => service.append(&call),
        "ledger.verify" => service.verify(&call),
        "ledger.tail" => service.tail(call),
        "ledger.query" => service.query(&call),
        "ledger.checkpoint" => service.checkpoint(&call),
        "ledger.prove" => service.prove(&call),
        "ledger.consistency" => service.consistency(&call),
        "ledger.export" => service.export(call),
        "ledger.attest" => service.attest(&call),
        method => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("there is no method `{method}`"))),
    }
}

impl Ctxgraph {
    fn append(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let Append { event, durable } = call.request.params()?;
        let source = Source::of(call.caller, &event);
        let receipts = self.ledger.append(source, &[event], durable).map_err(|error| no_receipt(&error))?;
        result(receipts.first())
    }

    fn verify(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let Nothing {} = call.request.params()?;
        let _place = reader(&self.readers)?;
        result(self.ledger.verify().map_err(unreadable)?)
    }

    fn tail(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let params: LedgerTail = call.request.params()?;
        let count = params.limit.map_or(100, |limit| limit as usize).min(limits::LEDGER_PAGE_MAX);
        let (events, end) = self.ledger.tail(count, limits::LINE_BYTES_MAX - 2048).map_err(unreadable)?;
        let page = serde_json::to_value(LedgerPage { events })
            .map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
        if !params.follow {
            return Ok(Outcome::Result(page));
        }
        let _place = follower(&self.followers)?;
        let gone = |error: &dyn std::fmt::Display| log::info("follower_ended", &[("why", error)]);
        match call.answer(page, &[]) {
            Ok(()) => gone(&self.follow(&mut call, end)),
            Err(error) => gone(&error),
        }
        Ok(Outcome::Answered)
    }

    fn query(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let asked: LedgerQuery = call.request.params()?;
        if let Some(source) =
            asked.source.as_deref().filter(|name| !Source::names().any(|known| known == *name))
        {
            let known: Vec<&str> = Source::names().collect();
            return Err(RpcError::new(Code::INVALID_PARAMS, format!("no service writes as `{source}`"))
                .explained("`source` is a service that writes to the ledger", known.join(", ")));
        }
        result(self.ledger.query(&asked, limits::LINE_BYTES_MAX - 2048).map_err(unreadable)?)
    }

    /// Sends events as they become durable, from the file: a slow follower costs no memory. Returns why it ended.
    fn follow(&self, call: &mut Call<'_>, from: Point) -> String {
        let mut at = from;
        loop {
            let mut ended = None;
            let read = self.ledger.read_from(at, |recorded| {
                match send(call, &recorded) {
                    Ok(()) => {}
                    Err(why) => ended = Some(why),
                }
                ended.is_none()
            });
            match (ended, read) {
                (Some(why), _) => return why,
                (None, Err(error)) => return error.to_string(),
                (None, Ok(next)) => at = next,
            }
            if hung_up(call.connection.stream()) {
                return "the caller closed".into();
            }
            self.ledger.wait_beyond(at.seq, Duration::from_secs(1));
            if self.ledger.health() == Err(AppendError::Closed) {
                return "the ledger is closing".into();
            }
        }
    }
}

/// Sends one event, or tells a follower that reads too slowly that it is dropped.
fn send(call: &mut Call<'_>, recorded: &abi::control::Recorded) -> Result<(), String> {
    let writable = poll_one(call.connection.stream(), PollFlags::OUT, limits::LEDGER_FOLLOWER_STALL_MS_MAX);
    if !writable.contains(PollFlags::OUT) {
        let note = json!({ "next_seq": recorded.seq, "why": "the follower read too slowly" });
        // A stalled follower's socket has room for a short line, or it has gone.
        let _ = call.connection.set_timeout(Some(Duration::from_millis(100)));
        let _ = call.notify("dropped", note);
        return Err(format!("dropped before event {}: it read too slowly", recorded.seq));
    }
    let value = serde_json::to_value(recorded).map_err(|error| error.to_string())?;
    call.notify("event", value).map_err(|error| error.to_string())
}

fn poll_one(stream: &UnixStream, wanted: PollFlags, wait_ms: u64) -> PollFlags {
    let mut fds = [PollFd::new(stream, wanted)];
    let timeout = Timespec {
        tv_sec: i64::try_from(wait_ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(wait_ms % 1000 * 1_000_000).unwrap_or(0),
    };
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return PollFlags::empty(),
            Ok(_) => {
                let [fd] = &fds;
                return fd.revents();
            }
        }
    }
}

fn hung_up(stream: &UnixStream) -> bool {
    let seen = poll_one(stream, PollFlags::RDHUP, 0);
    seen.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

fn follower(count: &AtomicUsize) -> Result<Counted<'_>, RpcError> {
    Counted::take(count, limits::LEDGER_FOLLOWERS_MAX, || {
        RpcError::new(Code::LIMIT, "the ledger has enough followers").explained(
            format!("{} at a time", limits::LEDGER_FOLLOWERS_MAX),
            "close one, or ask without follow",
        )
    })
}

pub(super) fn unreadable(error: ReadError) -> RpcError {
    RpcError::new(Code::FAILED, error.to_string())
        .explained("what is read is checked first", "nullctl ledger verify tells the first wrong place")
}

pub(super) fn no_receipt(error: &AppendError) -> RpcError {
    let (code, rule, remedy) = match error {
        AppendError::TooLarge(_) | AppendError::Encode(_) => {
            (Code::INVALID_PARAMS, "an event is at most 16 KiB of JSON", "record a digest of what is large")
        }
        AppendError::Disk(_) | AppendError::Slow => (
            Code::FAILED,
            "no receipt, no effect",
            "free space on the state partition or replace its disk; it is tried again every second",
        ),
        AppendError::Damaged(_) => (
            Code::FAILED,
            "a damaged ledger takes no events, so no effect happens",
            "keep the state partition as evidence; start with a fresh one",
        ),
        AppendError::Closed => (Code::UNAVAILABLE, "ctxgraph is stopping", "try again"),
    };
    RpcError::new(code, error.to_string()).explained(rule, remedy)
}
