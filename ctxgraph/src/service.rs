//! The service: which method goes where.
//!
//! Must hold: events carry the service they came from. Where memory.db cannot be opened the ledger is served all the same, and
//! where the ledger is damaged memory is read all the same.
//! Must never: let a reader of the ledger slow a writer of it.

use abi::control::{LedgerPage, LedgerTail};
use abi::door::{Call, Handler, Outcome};
use abi::ledger::Append;
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::calls::{self, Speaker};
use crate::lease::Leases;
use crate::ledger::storage::SegmentFile;
use crate::ledger::{AppendError, Ledger, ReadError};
use crate::memory::{self, Memory};
use crate::store::Quotas;
use ::ledger::frame::{SegmentHeader, Source};

/// ctxgraph's methods.
#[derive(Debug)]
pub struct Ctxgraph {
    ledger: Arc<Ledger>,
    memory: Result<(Arc<Memory>, Arc<Leases>), String>,
    followers: AtomicUsize,
}

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("state directory {0}: {1}")]
    State(String, std::io::Error),
    #[error("another ctxgraph works on {0}")]
    Locked(String),
    #[error(transparent)]
    Ledger(#[from] ReadError),
    #[error("ledger segment: {0}")]
    Segment(std::io::Error),
}

/// Opens the state. The lock is held as long as the file returned is open.
pub fn open(state: &Path) -> Result<(Ctxgraph, std::fs::File), StartError> {
    let shown = || state.display().to_string();
    memory::make_state(state).map_err(|error| StartError::State(shown(), error))?;
    let lock =
        std::fs::File::create(state.join("lock")).map_err(|error| StartError::State(shown(), error))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StartError::Locked(shown()))?;
    let store = memory::open_store(state, Quotas::default()).map_err(|error| error.to_string());
    let witness = match &store {
        Ok(store) => store.witness().unwrap_or_else(|error| {
            log::error("ledger_witness_unreadable", &[("error", &error)]);
            None
        }),
        Err(_) => None,
    };
    let segment =
        SegmentFile::open_or_create(&state.join("ledger"), new_header).map_err(StartError::Segment)?;
    let ledger = Arc::new(Ledger::open(Box::new(segment), witness)?);
    let memory = store.and_then(|store| {
        Memory::start(store, &memory::database(state), ledger.clone()).map_err(|error| error.to_string())
    });
    if let Err(error) = &memory {
        log::error(
            "memory_unusable",
            &[("error", error), ("effect", &"the ledger is served, memory is not")],
        );
    }
    let memory = memory.map(|memory| {
        let memory = Arc::new(memory);
        let leases = Arc::new(Leases::new(memory.clone(), ledger.clone()));
        (memory, leases)
    });
    let durable = ledger.durable();
    log::info("ctxgraph_opened", &[("events", &durable.seq), ("ledger_bytes", &durable.offset)]);
    let service = Ctxgraph { ledger, memory, followers: AtomicUsize::new(0) };
    Ok((service, lock))
}

fn new_header() -> Vec<u8> {
    let mut ledger_id = [0; 32];
    // The id only tells ledgers apart; a short answer of the kernel leaves zeros in it.
    if rustix::rand::getrandom(&mut ledger_id, rustix::rand::GetRandomFlags::empty()).is_err() {
        log::warning("ledger_id_not_random", &[]);
    }
    SegmentHeader::genesis(ledger_id).encode()
}

impl Handler for Ctxgraph {
    fn status(&self) -> Option<String> {
        if let Err(error) = self.ledger.health() {
            return Some(format!("the ledger takes no events: {error}"));
        }
        if let Err(why) = &self.memory {
            return Some(format!("no memory of agents: {why}"));
        }
        let durable = self.ledger.durable();
        Some(format!("{} events, {} KiB", durable.seq, durable.offset / 1024))
    }

    fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
        match call.request.method.as_str() {
            "ledger.append" => self.append(&call),
            "ledger.verify" => {
                let verified = self.ledger.verify().map_err(unreadable)?;
                result(verified)
            }
            "ledger.tail" => self.tail(call),
            "memory.attach" => {
                let (_, leases) = self.memory()?;
                leases.attach(call)
            }
            _ => {
                let (memory, _) = self.memory()?;
                let answered = calls::answer(memory, &Speaker::Operator, call.request);
                answered.map(Outcome::Result).map_err(|refusal| refusal.error)
            }
        }
    }
}

impl Ctxgraph {
    /// Finishes what is under way and syncs. For an orderly stop.
    pub fn close(&self) {
        if let Ok((memory, _)) = &self.memory {
            memory.close();
        }
        self.ledger.close();
    }

    fn memory(&self) -> Result<&(Arc<Memory>, Arc<Leases>), RpcError> {
        self.memory.as_ref().map_err(|error| {
            RpcError::new(Code::FAILED, format!("memory cannot be used: {error}")).explained(
                "memory.db is opened and checked at start",
                "see the log of ctxgraph; the ledger is served all the same",
            )
        })
    }

    fn append(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let Append { event, durable } = call.request.params()?;
        let source = Source::of(call.caller, &event);
        let receipts = self.ledger.append(source, &[event], durable).map_err(|error| no_receipt(&error))?;
        result(receipts.first())
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
        let _place = Place::take(&self.followers)?;
        let gone = |error: &dyn std::fmt::Display| log::info("follower_ended", &[("why", error)]);
        match call.answer(page, &[]) {
            Ok(()) => gone(&self.follow(&mut call, end.offset)),
            Err(error) => gone(&error),
        }
        Ok(Outcome::Answered)
    }

    /// Sends events as they become durable, from the file: a slow follower costs no memory. Returns why it ended.
    fn follow(&self, call: &mut Call<'_>, from: u64) -> String {
        let mut offset = from;
        loop {
            let mut ended = None;
            let read = self.ledger.read_from(offset, |recorded| {
                match send(call, &recorded) {
                    Ok(()) => {}
                    Err(why) => ended = Some(why),
                }
                ended.is_none()
            });
            match (ended, read) {
                (Some(why), _) => return why,
                (None, Err(error)) => return error.to_string(),
                (None, Ok(next)) => offset = next,
            }
            if hung_up(call.connection.stream()) {
                return "the caller closed".into();
            }
            self.ledger.wait_beyond(offset, Duration::from_secs(1));
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

/// A follower's place.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(count: &'a AtomicUsize) -> Result<Place<'a>, RpcError> {
        let place = Place(count);
        if count.fetch_add(1, Ordering::Relaxed) >= limits::LEDGER_FOLLOWERS_MAX {
            return Err(RpcError::new(Code::LIMIT, "the ledger has enough followers").explained(
                format!("{} at a time", limits::LEDGER_FOLLOWERS_MAX),
                "close one, or ask without follow",
            ));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn result(value: impl serde::Serialize) -> Result<Outcome, RpcError> {
    let value: Value = calls::value_of(value).map_err(|refusal| refusal.error)?;
    Ok(Outcome::Result(value))
}

fn unreadable(error: ReadError) -> RpcError {
    RpcError::new(Code::FAILED, error.to_string())
        .explained("what is read is checked first", "nullctl ledger verify tells the first wrong place")
}

fn no_receipt(error: &AppendError) -> RpcError {
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
