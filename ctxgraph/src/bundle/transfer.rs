//! `memory.export`, `memory.import`, `memory.hashes`: bundles through the door.
//!
//! Must hold: the receipt is durable before the first byte leaves, and before the first entry is stored; nothing is stored of a
//! bundle before all of it was checked and its signer is trusted.
//! Must never: bring back what was forgotten here.

use abi::control::{Exported, Hashes, Imported, MemoryChunk, MemoryExport, MemoryHashes, MemoryImport};
use abi::door::{Call, Outcome};
use abi::identity::Service;
use abi::ids::Digest;
use abi::ledger::{Event, Receipt};
use abi::memory::LABEL_NODE;
use abi::rpc::{Code, Request, RpcError};
use abi::{limits, log};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusqlite::OptionalExtension;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{BundleError, Content, Held, Item, Reader, Writer};
use crate::calls::result;
use crate::counted::Counted;
use crate::draft::Author;
use crate::ledger::Ledger;
use crate::memory::{self, Memory, MemoryError};
use crate::notary::Notary;
use crate::store::whole::Chosen;
use crate::store::{Batch, Store, StoreError, batch};
use ::ledger::frame::Source;
use ::ledger::keys::PublicKey;

/// Bytes of entries that are stored in one transaction.
const TRANSACTION_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What leads in and out of memory as a whole.
#[derive(Debug)]
pub struct Transfers {
    memory: Arc<Memory>,
    ledger: Arc<Ledger>,
    state: PathBuf,
    /// Signs; else why nothing can be signed.
    notary: Result<Arc<Notary>, String>,
    /// Public keys of `[memory] trust`.
    trust: Vec<String>,
    exports: AtomicUsize,
    importing: Mutex<()>,
}

/// What became of a bundle's entries.
#[derive(Debug, Default, Clone, Copy)]
struct Stored {
    new: u64,
    known: u64,
    refused: u64,
    /// Values of this node.
    forgotten: u64,
}

/// A bundle of which everything was checked, and that somebody signed who is trusted.
struct Trusted {
    spool: File,
    digest: Digest,
    entries: u64,
    signer: PublicKey,
}

impl Transfers {
    /// For one node's memory.
    pub fn new(
        memory: Arc<Memory>,
        ledger: Arc<Ledger>,
        state: &Path,
        notary: Result<Arc<Notary>, String>,
        trust: Vec<String>,
    ) -> Transfers {
        let (exports, importing) = (AtomicUsize::new(0), Mutex::new(()));
        Transfers { memory, ledger, state: state.to_owned(), notary, trust, exports, importing }
    }

    /// A page of all hashes.
    pub fn hashes(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let params: MemoryHashes = call.request.params()?;
        let after = match &params.cursor {
            None => 0,
            Some(text) => text
                .parse::<i64>()
                .ok()
                .filter(|row| *row > 0)
                .ok_or_else(|| failed(&MemoryError::Cursor(text.chars().take(64).collect())))?,
        };
        let page = self.memory.read(|store| store.hashes(after, limits::MEMORY_HASHES_MAX));
        let (page, next) = page.map_err(|error| failed(&error))?;
        result(Hashes {
            cursor: next.map(|row| row.to_string()),
            forgotten: page.iter().filter(|(_, forgotten)| *forgotten).map(|(hash, _)| *hash).collect(),
            hashes: page.into_iter().map(|(hash, _)| hash).collect(),
        })
    }

    fn ledger_id(&self) -> Result<[u8; 32], RpcError> {
        let snapshot = self.ledger.snapshot().map_err(|error| failed(&MemoryError::Receipt(error)))?;
        Ok(snapshot.ledger_id)
    }

    fn is_own(&self, signer: &PublicKey) -> bool {
        self.notary.as_ref().is_ok_and(|notary| notary.signer().public() == *signer)
    }

    /// Sends a bundle of one moment's memory; writes go on beside it.
    pub fn export(&self, call: &mut Call<'_>) -> Result<Outcome, RpcError> {
        let params: MemoryExport = call.request.params()?;
        if params.hashes.len() > limits::MEMORY_HASHES_MAX {
            let rule = format!("at most {} in one call", limits::MEMORY_HASHES_MAX);
            return Err(RpcError::new(Code::LIMIT, format!("{} hashes", params.hashes.len()))
                .explained(rule, "ask for them in parts"));
        }
        let _place = export_place(&self.exports)?;
        let notary = self.notary.as_ref().map_err(|why| {
            RpcError::new(Code::FAILED, format!("there is no key to sign a bundle: {why}"))
                .explained("a bundle is signed with the ledger's key", "see the log of ctxgraph")
        })?;
        let ledger_id = self.ledger_id()?;
        let chosen = match params.hashes.is_empty() {
            true => Chosen::Keys(params.agent, params.prefix),
            false => Chosen::Hashes(params.hashes),
        };
        let store_failed = |error: StoreError| failed(&error.into());
        let store = Store::open_reader(&memory::database(&self.state)).map_err(store_failed)?;
        let snapshot = store.snapshot().map_err(store_failed)?;
        let entries = snapshot.count(&chosen).map_err(store_failed)?;
        let event = Event::MemoryExported { entries, by: call.caller.to_string() };
        let receipt = self.ledger.append(Source::Service(Service::Ctxgraph), &[event], true);
        receipt.map_err(|error| failed(&MemoryError::Receipt(error)))?;
        let bounded =
            call.connection.set_timeout(Some(Duration::from_millis(limits::MEMORY_TRANSFER_STALL_MS_MAX)));
        bounded.map_err(|error| cut(&error))?;
        let until = Instant::now() + Duration::from_millis(limits::MEMORY_EXPORT_MS_MAX);
        let out = BufWriter::with_capacity(limits::MEMORY_CHUNK_BYTES_MAX, Chunks { call, until });
        let written = (|| -> Result<_, ExportError> {
            let mut writer = Writer::new(out, &ledger_id)?;
            let lost = snapshot.each(&chosen, |row, vector| -> Result<(), ExportError> {
                let held = match row.held() {
                    Ok(value) => Held::Value(value, vector),
                    Err(why) => Held::Forgotten(why),
                };
                Ok(writer.entry(&row.hash(), &row.header()?, held)?)
            })?;
            Ok((writer.finish(notary.signer())?, lost))
        })();
        let (written, lost) = written.map_err(|error| match error {
            ExportError::Io(error) => cut(&error),
            ExportError::Store(error) => store_failed(error),
        })?;
        // For requests that follow on this connection.
        call.connection.set_timeout(None).map_err(|error| cut(&error))?;
        if lost > 0 {
            log::error("memory_export_incomplete", &[("entries_damaged", &lost)]);
        }
        let super::Written { entries, bytes, digest } = written;
        result(Exported { entries, bytes, digest })
    }

    /// Takes a bundle, checks it, and stores what is new.
    pub fn import(&self, call: &mut Call<'_>) -> Result<Outcome, RpcError> {
        let alone = self.importing.try_lock();
        // Also what is refused is read to its end, since its sender reads no answer before; but nothing is kept of it.
        let spooled = self.spool(call, alone.is_ok())?;
        let _alone = alone.map_err(|_| {
            RpcError::new(Code::UNAVAILABLE, "another import is under way")
                .explained("one at a time", "try again")
        })?;
        let params: MemoryImport = call.request.params()?;
        let (spool, digest) = spooled.map_err(|error| refused(&error))?;
        let bundle = self.trusted(spool, digest, params.from.as_deref())?;
        let author = Author::Operator(call.caller.to_string());
        let stored = self.store(bundle, &author)?;
        let conflicts = self.memory.read(Store::conflicting_keys).map_err(|error| failed(&error))?;
        let Stored { new, known, refused, .. } = stored;
        log::info(
            "memory_imported",
            &[("new", &new), ("known", &known), ("refused", &refused), ("by", &author)],
        );
        result(Imported { entries: new, known, refused, conflicts })
    }

    /// Reads `input` until its end into a file without a name, or nowhere. The outer error is the connection's.
    fn spool(
        &self,
        call: &mut Call<'_>,
        keep: bool,
    ) -> Result<Result<(File, Digest), BundleError>, RpcError> {
        let stall = Duration::from_millis(limits::MEMORY_TRANSFER_STALL_MS_MAX);
        call.connection.set_timeout(Some(stall)).map_err(|error| cut(&error))?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let made = || rustix::fs::open(&self.state, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from);
        let none = || Err(io::Error::other("it is not kept"));
        let mut file = if keep { made() } else { none() }.map(File::from).map_err(BundleError::Io);
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        loop {
            let line = call.connection.read_line().map_err(|error| cut(&error))?;
            let line = line.ok_or_else(|| cut(&"it ended"))?;
            let request = Request::parse(&line)?;
            if request.method != "input" {
                return Err(RpcError::new(Code::INVALID_REQUEST, "not `input`").explained(
                    "a bundle comes as notifications `input`; an empty one ends it",
                    "use nullctl memory import",
                ));
            }
            let chunk: MemoryChunk = request.params()?;
            let data = STANDARD
                .decode(&chunk.data)
                .map_err(|error| RpcError::new(Code::INVALID_PARAMS, format!("`data`: {error}")))?;
            if data.is_empty() {
                break;
            }
            bytes += data.len() as u64;
            if bytes > limits::MEMORY_BUNDLE_BYTES_MAX {
                file = Err(BundleError::Bytes(bytes));
            }
            hasher.update(&data);
            if let Ok(out) = &mut file
                && let Err(error) = out.write_all(&data)
            {
                file = Err(BundleError::Io(error));
            }
        }
        call.connection.set_timeout(None).map_err(|error| cut(&error))?;
        Ok(file.map(|file| (file, Digest(hasher.finalize().into()))))
    }

    fn trusted(&self, mut spool: File, digest: Digest, from: Option<&str>) -> Result<Trusted, RpcError> {
        let mut check = || -> Result<(u64, Option<PublicKey>), BundleError> {
            spool.seek(SeekFrom::Start(0))?;
            let mut reader = Reader::new(BufReader::new(&spool))?;
            let mut entries = 0;
            while reader.item()?.is_some() {
                entries += 1;
            }
            Ok((entries, reader.signer()))
        };
        let (entries, signer) = check().map_err(|error| refused(&error))?;
        let signer = signer.ok_or_else(|| refused(&BundleError::Cut(entries)))?;
        let text = signer.to_string();
        if self.is_own(&signer) || self.trust.contains(&text) || from == Some(text.as_str()) {
            return Ok(Trusted { spool, digest, entries, signer });
        }
        Err(RpcError::new(Code::INVALID_PARAMS, format!("the bundle was signed by {text}, which is not trusted here")).explained(
            "a bundle's signer is this node, a key of [memory] trust in nulld.toml, or one that an admin names",
            format!("compare the key with the other node's nullctl ledger checkpoint; then import with --from {text}"),
        ))
    }

    /// Stores a bundle in transactions of bounded size, in its order; each stands by itself.
    fn store(&self, bundle: Trusted, author: &Author) -> Result<Stored, RpcError> {
        let Trusted { mut spool, digest, entries, signer } = bundle;
        let own = self.is_own(&signer);
        let node = Digest(self.ledger_id()?).hex().chars().take(16).collect::<String>();
        let mut receipts = vec![Event::MemoryImported {
            entries,
            signer: signer.to_string(),
            bundle: digest,
            by: author.to_string(),
        }];
        spool.seek(SeekFrom::Start(0)).map_err(|error| refused(&error.into()))?;
        let mut reader = Reader::new(BufReader::new(&spool)).map_err(|error| refused(&error))?;
        let mut stored = Stored::default();
        loop {
            let (mut items, mut bytes, mut forgotten) = (Vec::new(), 0, 0);
            while items.len() < limits::MEMORY_IMPORT_ENTRIES_MAX
                && bytes < TRANSACTION_BYTES_MAX
                && forgotten < limits::MEMORY_IMPORT_FORGOTTEN_MAX
            {
                let Some(item) = reader.item().map_err(|error| refused(&error))? else { break };
                bytes += item.size();
                forgotten += usize::from(matches!(item.content, Content::Forgotten(_)));
                items.push(item);
            }
            if items.is_empty() && receipts.is_empty() {
                return Ok(stored);
            }
            let (node, events) = (node.clone(), std::mem::take(&mut receipts));
            let part = self.memory.exclusively(author, move |store, ledger| {
                let allowed = |item: &Item| own || item.header.labels.get(LABEL_NODE) != Some(&node);
                store_part(store, ledger, items, events, &allowed)
            });
            let part = part.and_then(|part| part).map_err(|error| failed(&error))?;
            stored.new += part.new;
            stored.known += part.known;
            stored.refused += part.refused;
        }
    }
}

/// One transaction of an import: its receipts, then its commit.
fn store_part(
    store: &mut Store,
    ledger: &Ledger,
    items: Vec<Item>,
    mut events: Vec<Event>,
    allowed: &dyn Fn(&Item) -> bool,
) -> Result<Stored, MemoryError> {
    ledger.health().map_err(MemoryError::Receipt)?;
    let batch = store.begin()?;
    let mut stored = Stored::default();
    for item in items {
        store_one(&batch, item, allowed, &mut events, &mut stored)?;
    }
    let mut newest: Option<Receipt> = None;
    if !events.is_empty() {
        let receipts = ledger.append(Source::Service(Service::Ctxgraph), &events, true);
        newest = receipts.map_err(MemoryError::Receipt)?.pop();
    }
    batch.commit(newest.as_ref())?;
    if stored.forgotten > 0 {
        store.forgot();
        store.clear_log()?;
    }
    Ok(stored)
}

fn store_one(
    batch: &Batch<'_>,
    item: Item,
    allowed: &dyn Fn(&Item) -> bool,
    events: &mut Vec<Event>,
    stored: &mut Stored,
) -> Result<(), StoreError> {
    let here: Option<(i64, bool)> = batch
        .db()
        .prepare_cached("SELECT id, value IS NULL FROM entry WHERE hash = ?1")?
        .query_row([item.hash.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match (here, &item.content) {
        // Somebody else says that this node wrote what this node does not know.
        (None, _) if !allowed(&item) => stored.refused += 1,
        (None, content) => {
            let (held, vector) = match content {
                Content::Whole { value, vector } => (batch::Held::Value(value), vector.as_ref()),
                Content::Forgotten(why) => (batch::Held::Forgotten(why), None),
            };
            match batch.put(&item.header, item.hash, &held, vector) {
                Ok(_) => stored.new += 1,
                // One agent over its quota does not keep the others' entries out.
                Err(error) if error.is_refusal() => stored.refused += 1,
                Err(error) => return Err(error),
            }
        }
        (Some((_, true)), Content::Whole { .. }) => stored.refused += 1,
        // To forget wins, whichever of the two came first: so every order of imports ends alike.
        (Some((id, false)), Content::Forgotten(why)) => {
            batch.erase(id, why)?;
            stored.forgotten += 1;
            let agent = item.header.agent;
            events.push(Event::MemoryForgotten {
                agent,
                key: item.header.key,
                entry: item.hash,
                why: why.clone(),
            });
            stored.known += 1;
        }
        (Some(_), _) => stored.known += 1,
    }
    Ok(())
}

/// Bytes as notifications `output`.
struct Chunks<'a, 'b> {
    call: &'a mut Call<'b>,
    until: Instant,
}

impl Write for Chunks<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if Instant::now() > self.until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "an export takes at most an hour"));
        }
        for part in bytes.chunks(limits::MEMORY_CHUNK_BYTES_MAX) {
            let chunk = serde_json::to_value(MemoryChunk { data: STANDARD.encode(part) })?;
            self.call
                .notify("output", chunk)
                .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error.to_string()))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn export_place(count: &AtomicUsize) -> Result<Counted<'_>, RpcError> {
    Counted::take(count, limits::MEMORY_EXPORTS_MAX, || {
        let rule = format!("{} at a time", limits::MEMORY_EXPORTS_MAX);
        RpcError::new(Code::UNAVAILABLE, "other exports are under way").explained(rule, "try again")
    })
}

fn refused(error: &BundleError) -> RpcError {
    match error {
        BundleError::Io(_) => RpcError::new(Code::FAILED, error.to_string())
            .explained("a bundle lies on the state partition while it is checked", "free space there"),
        _ => RpcError::new(Code::INVALID_PARAMS, error.to_string()).explained(
            "a bundle is checked whole before anything of it is stored",
            "fetch or export it again",
        ),
    }
}

fn cut(error: &dyn std::fmt::Display) -> RpcError {
    RpcError::new(Code::FAILED, format!("the connection: {error}"))
        .explained("a bundle that did not come whole is forgotten", "try again")
}

fn failed(error: &MemoryError) -> RpcError {
    let (code, remedy) = match error {
        MemoryError::Quota(_) => {
            (Code::LIMIT, "forget values of that agent, here or where the bundle comes from")
        }
        MemoryError::Cursor(_) => (Code::INVALID_PARAMS, "start without a cursor"),
        MemoryError::Busy(_) => (Code::UNAVAILABLE, "try again"),
        _ => (
            Code::FAILED,
            "see the log of ctxgraph; what was stored before stays, and importing again goes on from there",
        ),
    };
    RpcError::new(code, error.to_string()).explained("what is imported obeys the rules of a write", remedy)
}

#[cfg(test)]
mod tests;
