//! `memory sync`: a node's memory and an S3 store become equal. The page is docs/memory-sync.md.
//!
//! Entries are immutable, so this is the union of two sets: what the store has and the node not is imported, the rest is
//! exported into new bundles. Must hold: a sync that was cut, or ran beside another, left nothing wrong behind.
//! Must never: take a bundle whose bytes do not have the digest in its name.

use abi::control::{Exported, Hashes, Imported, MemoryExport, MemoryHashes, Progress};
use abi::ids::Digest;
use abi::limits;
use abi::rpc::Code;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::bundle;
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{Meter, visible};

mod index;
mod store;

use index::Index;
use store::Store;

/// How long a node may be busy with another sync, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(250);

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Bundles and entries that the store did not have.
    sent: u64,
    sent_entries: u64,
    /// Bundles that were imported, and what was new in them.
    fetched: u64,
    entries: u64,
    /// Keys that have several newest entries on the node.
    conflicts: u64,
    refused: Vec<Refused>,
}

/// A bundle of the store that was not taken.
#[derive(Debug, Serialize)]
struct Refused {
    object: String,
    why: String,
}

pub fn run(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let store = Store::open(given.required(0), given.value("endpoint"), given.value("region"))?;
    let mut sync = Sync {
        context,
        from: given.values("from"),
        store,
        here: BTreeMap::new(),
        order: Vec::new(),
        there: Index::default(),
        summary: Summary::default(),
        meter: Meter::new(context.json),
    };
    let done = sync.run();
    sync.meter.done();
    done?;
    report(context, &sync.summary)
}

fn report(context: &Context, summary: &Summary) -> Result<u8, Failure> {
    if context.json {
        say(&format!("{}\n", serde_json::json!(summary)))?;
    } else {
        let Summary { sent, sent_entries, fetched, entries, conflicts, .. } = summary;
        say(&format!("sent {sent_entries} entries in {sent} bundles, fetched {entries} in {fetched}\n"))?;
        if *conflicts > 0 {
            say(&format!("{conflicts} keys have several newest entries: nullctl memory conflicts\n"))?;
        }
        for Refused { object, why } in &summary.refused {
            say(&format!("refused {object}: {}\n", visible(why)))?;
        }
    }
    if summary.refused.is_empty() {
        return Ok(0);
    }
    Err(Failure::local(
        status::FAILED,
        format!("{} bundles of the store were refused", summary.refused.len()),
        "a bundle has the digest in its name, and is signed by this node, a key of [memory] trust, or one given with --from",
        "all others were taken; see nullctl help memory sync",
    ))
}

/// A sync under way.
struct Sync<'a> {
    context: &'a Context,
    /// Signers that the operator vouches for.
    from: &'a [String],
    store: Store,
    /// The node's entries, and whether each is forgotten.
    here: BTreeMap<Digest, bool>,
    /// They as the node named them: an entry after its parent, and so they are sent. Whoever imports them finds few heads on the way.
    order: Vec<Digest>,
    /// Entries of the store's bundles that were not refused.
    there: Index,
    summary: Summary,
    meter: Meter,
}

impl Sync<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        self.read_node()?;
        self.fetch()?;
        self.send()
    }

    fn say(&mut self, stage: String) {
        self.meter.show("sync", &Progress { stage, done: None, total: None });
    }

    /// All hashes of the node, over one connection.
    fn read_node(&mut self) -> Result<(), Failure> {
        let mut params = MemoryHashes { cursor: None };
        let mut link = self.context.ask("memory.hashes", &params, Silence::AtMost(bundle::SILENCE))?;
        loop {
            let page: Hashes = typed(&link.result(&mut |_| Ok(()))?)?;
            let forgotten: BTreeSet<Digest> = page.forgotten.into_iter().collect();
            self.order.extend(&page.hashes);
            self.here.extend(page.hashes.into_iter().map(|hash| (hash, forgotten.contains(&hash))));
            params.cursor = page.cursor;
            if params.cursor.is_none() {
                return Ok(());
            }
            link.ask("memory.hashes", &params)?;
        }
    }

    fn fetch(&mut self) -> Result<(), Failure> {
        let listed = self.store.list()?;
        let total = listed.bundles.len();
        for (number, name) in listed.bundles.iter().enumerate() {
            self.say(format!("bundle {} of {total}", number + 1));
            let index = match listed.indices.contains(name) {
                true => self.store.index(name)?,
                false => None,
            };
            let (index, known) = match index {
                Some(index) => (index, true),
                None => (Index::default(), false),
            };
            if known && index.iter().all(|(hash, forgotten)| self.has(hash, forgotten)) {
                self.there.join(index);
                continue;
            }
            match self.fetch_one(name) {
                Ok(true_index) => {
                    if !known {
                        self.store.put_index(name, &true_index)?;
                    }
                    for (hash, forgotten) in true_index.iter() {
                        *self.here.entry(hash).or_default() |= forgotten;
                    }
                    self.there.join(true_index);
                }
                Err(Fetch::Refused(why)) => {
                    self.summary.refused.push(Refused { object: self.store.shown(name), why });
                }
                Err(Fetch::Failed(failure)) => return Err(failure),
            }
        }
        Ok(())
    }

    fn has(&self, hash: Digest, forgotten: bool) -> bool {
        self.here.get(&hash).is_some_and(|here| *here || !forgotten)
    }

    fn fetch_one(&mut self, name: &Digest) -> Result<Index, Fetch> {
        let bytes = self.store.bundle(name).map_err(|error| match error {
            store::GetError::TooLarge(bytes) => Fetch::Refused(format!("{bytes} bytes are too many")),
            store::GetError::Failed(failure) => Fetch::Failed(failure),
        })?;
        let digest = Digest(Sha256::digest(&bytes).into());
        if digest != *name {
            return Err(Fetch::Refused(format!("it was altered: its digest is {digest}")));
        }
        let index = Index::of_bundle(&bytes).map_err(Fetch::Refused)?;
        let signer = self.from.iter().find(|key| index::signed_by(&bytes, key)).map(String::as_str);
        match patiently(|| bundle::send(self.context, signer, &mut bytes.as_slice())) {
            Ok(Imported { entries, conflicts, .. }) => {
                self.summary.fetched += 1;
                self.summary.entries += entries;
                self.summary.conflicts = self.summary.conflicts.max(conflicts);
                Ok(index)
            }
            Err(failure) => Err(Fetch::of(failure)),
        }
    }

    /// What the store has not, in bundles that each fit one call.
    fn send(&mut self) -> Result<(), Failure> {
        let there = &self.there;
        let missing: Vec<Digest> = self
            .order
            .iter()
            .filter(|hash| !there.has(**hash, self.here.get(hash).copied().unwrap_or_default()))
            .copied()
            .collect();
        let (total, mut done) = (missing.len(), 0);
        for hashes in missing.chunks(limits::MEMORY_HASHES_MAX) {
            done += hashes.len();
            self.say(format!("entry {done} of {total}"));
            let params = MemoryExport { agent: None, prefix: String::new(), hashes: hashes.to_vec() };
            let (result, bytes) = patiently(|| {
                let mut bytes = Vec::new();
                let result = bundle::receive(self.context, &params, &mut |chunk| {
                    bytes.extend_from_slice(chunk);
                    Ok(())
                })?;
                Ok((result, bytes))
            })?;
            let exported: Exported = typed(&result)?;
            if exported.entries == 0 {
                continue; // all of them are damaged: nullctl memory verify names them
            }
            let index = Index::of_bundle(&bytes).map_err(|why| not_a_bundle(&why))?;
            let digest = Digest(Sha256::digest(&bytes).into());
            if digest != exported.digest {
                return Err(not_a_bundle("it has another digest than the node says"));
            }
            // First the bundle: an index never names what is not there.
            self.store.put_bundle(&digest, bytes)?;
            self.store.put_index(&digest, &index)?;
            self.summary.sent += 1;
            self.summary.sent_entries += exported.entries;
        }
        Ok(())
    }
}

/// Why a bundle was not fetched.
enum Fetch {
    /// It is wrong; others may be right.
    Refused(String),
    /// Nothing goes on.
    Failed(Failure),
}

impl Fetch {
    /// The node's answer: what it says of a bundle is about that bundle alone.
    fn of(failure: Failure) -> Fetch {
        match &failure.error {
            Some(error) if matches!(error.code, Code::INVALID_PARAMS | Code::LIMIT) => {
                Fetch::Refused(error.message.clone())
            }
            _ => Fetch::Failed(failure),
        }
    }
}

/// Tries again while the node does what another sync asked of it.
fn patiently<T>(mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        match call() {
            Err(Failure { exit: status::FAILED, error: Some(error) })
                if error.code == Code::UNAVAILABLE && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

fn not_a_bundle(why: &str) -> Failure {
    Failure::local(
        status::FAILED,
        format!("what the node sent is no bundle: {why}"),
        "",
        "try again; use a nullctl of the node's version",
    )
}
