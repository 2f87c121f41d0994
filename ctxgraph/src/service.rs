//! The service: which method goes where.
//!
//! Must hold: events carry the service they came from. Where memory.db cannot be opened the ledger is served all the same, and
//! where the ledger is damaged memory is read all the same.

use abi::door::{Call, Handler, Outcome};
use abi::ids::Digest;
use abi::log;
use abi::rpc::{Code, RpcError};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

mod ledger_calls;
mod proof_calls;
mod whole_calls;

use crate::calls::{self, result};
use crate::lease::Leases;
use crate::ledger::scan::Anchors;
use crate::ledger::storage::RealDirectory;
use crate::ledger::{Ledger, ReadError, Setup};
use crate::memory::{self, Memory, Settings};
use crate::notary::{Notary, NotaryError};
use crate::speaker::Speaker;
use crate::store::Quotas;
use crate::store::forget::Retention;
use crate::watch::Watchers;
use crate::watching;
use whole_calls::Whole;

/// ctxgraph's methods.
#[derive(Debug)]
pub struct Ctxgraph {
    ledger: Arc<Ledger>,
    memory: Result<(Arc<Memory>, Arc<Leases>), String>,
    watchers: Arc<Watchers>,
    followers: AtomicUsize,
    /// Proofs and exports under way.
    readers: AtomicUsize,
    /// Signs what the ledger is; else why it cannot.
    notary: Result<Arc<Notary>, String>,
    /// Export, import, hashes, verify; else why not.
    whole: Result<Whole, String>,
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
    #[error("ledger directory: {0}")]
    Directory(std::io::Error),
}

/// Opens the state. The lock is held as long as the file returned is open. A ledger segment of `segment_bytes` is full.
pub fn open(
    state: &Path,
    settings: &abi::node::Memory,
    segment_bytes: u64,
    quotas: Quotas,
) -> Result<(Ctxgraph, std::fs::File), StartError> {
    let shown = || state.display().to_string();
    memory::make_state(state).map_err(|error| StartError::State(shown(), error))?;
    let lock = lock_file(&state.join("lock")).map_err(|error| StartError::State(shown(), error))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StartError::Locked(shown()))?;
    let store = memory::open_store(state, quotas).map_err(|error| error.to_string());
    let witness = match &store {
        Ok(store) => store.witness().unwrap_or_else(|error| {
            log::error("ledger_witness_unreadable", &[("error", &error)]);
            None
        }),
        Err(_) => None,
    };
    let directory = RealDirectory::open_or_create(&state.join("ledger")).map_err(StartError::Directory)?;
    let notary = Notary::open(state);
    let checkpoint = notary.as_ref().ok().and_then(|notary| notary.as_ref()?.kept());
    let anchors = Anchors { witness, checkpoint };
    let ledger =
        Arc::new(Ledger::open(Box::new(directory), Setup { anchors, segment_bytes, ..Setup::default() })?);
    // A damaged ledger has no snapshot, and takes no writes that could bear the label.
    let id = ledger.snapshot().map(|snapshot| snapshot.ledger_id).unwrap_or_default();
    let node: String = Digest(id).hex().chars().take(16).collect();
    let notary = signs(notary, state, &ledger);
    let watchers = Arc::new(Watchers::default());
    let trust = settings.trust.clone();
    let settings = memory_settings(node, settings, watchers.clone());
    let memory = store.and_then(|store| {
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
        let leases = Arc::new(Leases::new(memory.clone(), ledger.clone(), watchers.clone()));
        (memory, leases)
    });
    let whole = memory
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|(memory, _)| Whole::start(state, memory.clone(), ledger.clone(), notary.clone(), trust));
    log::info("ctxgraph_opened", &[("events", &ledger.durable().seq), ("ledger_bytes", &ledger.bytes())]);
    let service = Ctxgraph {
        ledger,
        memory,
        watchers,
        followers: AtomicUsize::new(0),
        readers: AtomicUsize::new(0),
        notary,
        whole,
    };
    Ok((service, lock))
}

/// The file that is locked; it has no bytes. Of a file system that has become read-only the ledger is served all the same.
fn lock_file(path: &Path) -> std::io::Result<std::fs::File> {
    let made = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => std::fs::File::open(path),
        made => made,
    }
}

/// The key that was found, or a new one, ready to sign.
fn signs(
    found: Result<Option<Notary>, NotaryError>,
    state: &Path,
    ledger: &Ledger,
) -> Result<Arc<Notary>, String> {
    let notary = match found {
        Ok(Some(notary)) => Ok(notary),
        Ok(None) => Notary::make(state, ledger),
        Err(error) => Err(error),
    };
    let notary = notary.map(Arc::new).map_err(|error| {
        log::error("ledger_unsigned", &[("error", &error), ("effect", &"no checkpoints and no proofs")]);
        error.to_string()
    })?;
    // So that a key that is missing later is known to be lost, though nobody asked for a checkpoint.
    if notary.kept().is_none()
        && let Ok(snapshot) = ledger.snapshot()
        && let Err(error) = notary.sign(&snapshot)
    {
        log::error("ledger_checkpoint_unwritten", &[("error", &error)]);
    }
    sign_each_segment(ledger, notary.clone());
    Ok(notary)
}

/// So that a ledger that was set back is noticed, though nobody asks for checkpoints.
fn sign_each_segment(ledger: &Ledger, notary: Arc<Notary>) {
    ledger.on_rotated(move |snapshot| {
        if let Err(error) = notary.sign(snapshot) {
            log::error("ledger_checkpoint_unwritten", &[("error", &error)]);
        }
    });
}

/// How memory is kept: by nulld.toml.
fn memory_settings(node: String, told: &abi::node::Memory, watchers: Arc<Watchers>) -> Settings {
    Settings {
        conflicts: told.conflicts,
        retention: Retention { keep_versions: told.keep_versions, keep_days: told.keep_days },
        watchers,
        ..Settings::of(node)
    }
}

impl Handler for Ctxgraph {
    fn status(&self) -> Option<String> {
        if let Err(error) = self.ledger.health() {
            return Some(format!("the ledger takes no events: {error}"));
        }
        if let Err(why) = &self.memory {
            return Some(format!("no memory of agents: {why}"));
        }
        if let Some(damage) = self.whole.as_ref().ok().and_then(Whole::status) {
            return Some(damage);
        }
        let key = match &self.notary {
            Ok(notary) => notary.signer().public().fingerprint().to_string(),
            Err(_) => "none".into(),
        };
        Some(format!("{} events, {} KiB, key {key}", self.ledger.durable().seq, self.ledger.bytes() / 1024))
    }

    fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
        match call.request.method.as_str() {
            method if method.starts_with("ledger.") => ledger_calls::answer(self, call),
            method if Whole::has(method) => match &self.whole {
                Ok(whole) => whole.answer(call),
                Err(why) => Err(unusable(why)),
            },
            "memory.attach" => {
                let (_, leases) = self.memory()?;
                leases.attach(call)
            }
            "memory.expose" => {
                let (_, leases) = self.memory()?;
                leases.expose(&call)
            }
            "memory.watch" => self.watch(call),
            _ => {
                let (memory, _) = self.memory()?;
                let mut request = call.request.clone();
                let text = calls::answer(memory, Speaker::Operator(call.caller), &mut request)
                    .map_err(|refusal| refusal.error)?;
                let value = serde_json::from_str(&text);
                value.map(Outcome::Result).map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))
            }
        }
    }
}

impl Ctxgraph {
    /// Finishes what is under way and syncs. For an orderly stop.
    pub fn close(&self) {
        if let Ok(whole) = &self.whole {
            whole.close();
        }
        if let Ok((memory, _)) = &self.memory {
            memory.close();
        }
        self.watchers.close();
        self.ledger.close();
    }

    fn memory(&self) -> Result<&(Arc<Memory>, Arc<Leases>), RpcError> {
        self.memory.as_ref().map_err(|error| unusable(error))
    }

    fn watch(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let (memory, _) = self.memory()?;
        let speaker = Speaker::Operator(call.caller);
        let receiver =
            watching::begin(&self.watchers, speaker, call.request).map_err(|refusal| refusal.error)?;
        let why = match call.answer(json!({}), &[]) {
            Ok(()) => watching::stream(memory, None, speaker, &receiver, call.connection),
            Err(error) => error.to_string(),
        };
        log::info("memory_watch_ended", &[("by", call.caller), ("why", &why)]);
        Ok(Outcome::Answered)
    }
}

fn unusable(error: &str) -> RpcError {
    RpcError::new(Code::FAILED, format!("memory cannot be used: {error}")).explained(
        "memory.db is opened and checked at start; the ledger is served all the same",
        "docs/memory-sync.md says how a node begins anew from an export",
    )
}
