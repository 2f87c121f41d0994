//! The service: which method goes where.
//!
//! Must hold: events carry the service they came from. Where memory.db cannot be opened the ledger is served all the same, and
//! where the ledger is damaged memory is read all the same.

use abi::door::{Call, Handler, Outcome};
use abi::ids::Digest;
use abi::log;
use abi::rpc::{Code, RpcError};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

mod ledger_calls;

use crate::calls::{self, Speaker};
use crate::lease::Leases;
use crate::ledger::storage::{SegmentFile, Storage};
use crate::ledger::{Ledger, ReadError};
use crate::memory::{self, Memory, Settings};
use crate::store::Quotas;
use ::ledger::frame::{SEGMENT_HEADER_BYTES, SegmentHeader};

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
    let node = node_of(&segment);
    let ledger = Arc::new(Ledger::open(Box::new(segment), witness)?);
    let memory = store.and_then(|store| {
        let settings = Settings::of(node);
        Memory::start(store, &memory::database(state), ledger.clone(), settings)
            .map_err(|error| error.to_string())
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

/// The label `nullbox.node`. A header that cannot be read means a damaged ledger, and so no writes that could bear it.
fn node_of(segment: &SegmentFile) -> String {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let read = segment.read_at(&mut bytes, 0);
    let id = read.ok().and_then(|_| SegmentHeader::decode(&bytes).ok()).map(|header| header.ledger_id);
    Digest(id.unwrap_or_default()).hex().chars().take(16).collect()
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
            method if method.starts_with("ledger.") => ledger_calls::answer(self, call),
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
}

fn result(value: impl serde::Serialize) -> Result<Outcome, RpcError> {
    let value: Value = calls::value_of(value).map_err(|refusal| refusal.error)?;
    Ok(Outcome::Result(value))
}
