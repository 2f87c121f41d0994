//! What each life of an agent has been exposed to.
//!
//! Must hold: it only grows; it is on disk and in the ledger, and cage has noted it, before what raised it goes out; a restart forgets nothing.

use abi::control::Entry;
use abi::exposure::Exposure;
use abi::identity::Service;
use abi::ids::{Digest, Instance};
use abi::ledger::Event;
use abi::log;
use abi::memory::LABEL_EXPOSURE;
use abi::rpc::{Code, RpcError};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::draft::Author;
use crate::ledger::Ledger;
use crate::memory::{Memory, MemoryError};
use crate::noted::Teller;
use crate::store::StoreError;
use ::ledger::frame::Source;

/// The generation that stands for all earlier lives of an agent. cage counts lives from 1.
const EARLIER: u64 = 0;

/// The exposures of all agents: at most two rows each, this life's and that of all earlier ones.
#[derive(Debug)]
pub struct Exposures {
    memory: Arc<Memory>,
    ledger: Arc<Ledger>,
}

impl Exposures {
    /// In the table `exposure` of memory.db.
    pub fn new(memory: Arc<Memory>, ledger: Arc<Ledger>) -> Exposures {
        Exposures { memory, ledger }
    }

    /// A life's exposure at the begin of a lease: what it has by its manifest and has had, and with `inherits` what its earlier lives had.
    fn begin(
        &self,
        instance: &Instance,
        manifest: Exposure,
        inherits: bool,
    ) -> Result<Exposure, MemoryError> {
        let life = instance.clone();
        let begun = self.memory.exclusively(&Author::Agent(instance.agent.clone()), move |store, _| {
            let batch = store.begin()?;
            let own = begin(batch.db(), &life, manifest, inherits)?;
            batch.commit(None)?;
            Ok::<_, StoreError>(own)
        })?;
        Ok(begun?)
    }

    fn keep(&self, instance: &Instance, exposure: Exposure) -> Result<(), MemoryError> {
        let life = instance.clone();
        let kept = self.memory.exclusively(&Author::Agent(instance.agent.clone()), move |store, _| {
            keep(store.db(), &life, life.generation, exposure)
        })?;
        Ok(kept.map_err(StoreError::from)?)
    }
}

/// Reads what was kept of an agent's lives, and folds all but this one into one row.
fn begin(
    db: &Connection,
    instance: &Instance,
    manifest: Exposure,
    inherits: bool,
) -> Result<Exposure, StoreError> {
    let (mut own, mut earlier) = (manifest, Exposure::NONE);
    let mut statement = db.prepare("SELECT generation, exposure FROM exposure WHERE agent = ?1")?;
    let mut rows = statement.query([instance.agent.as_str()])?;
    while let Some(row) = rows.next()? {
        // What cannot be read was an exposure to something.
        let kept = row.get::<_, String>(1)?.parse().unwrap_or(everything());
        match row.get::<_, u64>(0)? == instance.generation {
            true => own = own.and(kept),
            false => earlier = earlier.and(kept),
        }
    }
    if inherits {
        own = own.and(earlier);
    }
    db.execute("DELETE FROM exposure WHERE agent = ?1", [instance.agent.as_str()])?;
    for (generation, exposure) in [(EARLIER, earlier), (instance.generation, own)] {
        if !exposure.is_none() {
            keep(db, instance, generation, exposure)?;
        }
    }
    Ok(own)
}

fn keep(
    db: &Connection,
    instance: &Instance,
    generation: u64,
    exposure: Exposure,
) -> Result<(), rusqlite::Error> {
    // Joined with what is there: it only grows, whoever kept it last.
    let there: Option<String> = db
        .query_row(
            "SELECT exposure FROM exposure WHERE agent = ?1 AND generation = ?2",
            params![instance.agent.as_str(), generation],
            |row| row.get(0),
        )
        .optional()?;
    let exposure = there.map_or(exposure, |text| exposure.and(text.parse().unwrap_or(everything())));
    db.execute(
        "INSERT INTO exposure (agent, generation, exposure) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET exposure = excluded.exposure",
        params![instance.agent.as_str(), generation, exposure.to_string()],
    )?;
    Ok(())
}

/// All there is.
fn everything() -> Exposure {
    Exposure::ALL.into_iter().fold(Exposure::NONE, |all, (one, _)| all.and(one))
}

/// What an entry carries. A label that cannot be read (another node wrote it) may mean anything.
pub fn carried(entry: &Entry) -> Exposure {
    match entry.labels.get(LABEL_EXPOSURE) {
        None => entry.exposure,
        Some(text) => text.parse().unwrap_or(everything()).and(entry.exposure),
    }
}

/// One life's exposure while its lease lasts.
#[derive(Debug)]
pub struct Reader {
    instance: Instance,
    now: Mutex<Known>,
    /// One rise at a time. Held while cage is waited for, and `now` is not: cage may have something to say itself.
    turn: Mutex<()>,
    all: Arc<Exposures>,
    teller: Teller,
}

/// What is on record of a life, and how much of that cage goes by.
#[derive(Debug)]
struct Known {
    recorded: Exposure,
    noted: Exposure,
}

impl Reader {
    /// Begins a lease. Cage goes by what it says of the manifest; of the rest it is told when it matters.
    pub fn begin(
        all: Arc<Exposures>,
        instance: Instance,
        manifest: Exposure,
        inherits: bool,
        teller: Teller,
    ) -> Result<Reader, MemoryError> {
        let recorded = all.begin(&instance, manifest, inherits)?;
        let now = Mutex::new(Known { recorded, noted: manifest });
        Ok(Reader { instance, now, turn: Mutex::default(), all, teller })
    }

    /// The line to cage.
    pub fn teller(&self) -> &Teller {
        &self.teller
    }

    /// What the life is exposed to now.
    pub fn now(&self) -> Exposure {
        self.lock().recorded
    }

    /// Takes note that these are about to be read, and returns the exposure after it. On an error nothing of them may go out.
    pub fn reads<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Result<Exposure, RpcError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut to, mut all, mut by) = (self.now(), Exposure::NONE, None);
        for entry in entries {
            let carried = carried(entry);
            all = all.and(carried);
            if !to.has(carried) {
                by.get_or_insert(entry.hash);
                to = to.and(carried);
            }
        }
        if let Some(entry) = by {
            self.record(to, entry)?;
        }
        let noted = self.lock().noted;
        if !noted.has(all) {
            self.teller.tell(to).map_err(|error| failed(format!("not shown: {error}")))?;
            let mut now = self.lock();
            now.noted = now.noted.and(to);
        }
        Ok(to)
    }

    /// Cage says what the life has seen by other ways: what it writes carries it from now on.
    pub fn has_seen(&self, seen: Exposure) -> Result<(), RpcError> {
        if !self.now().has(seen) {
            self.keep(seen)?;
        }
        let mut now = self.lock();
        now.noted = now.noted.and(seen);
        Ok(())
    }

    fn keep(&self, more: Exposure) -> Result<(), RpcError> {
        self.all.keep(&self.instance, more).map_err(|error| failed(error.to_string()))?;
        let mut now = self.lock();
        now.recorded = now.recorded.and(more);
        Ok(())
    }

    fn record(&self, to: Exposure, entry: Digest) -> Result<(), RpcError> {
        let event = Event::ExposureRaised { instance: self.instance.clone(), to, entry };
        self.all
            .ledger
            .append(Source::Service(Service::Ctxgraph), &[event], true)
            .map_err(|error| failed(format!("no receipt, so no answer: {error}")))?;
        self.keep(to)?;
        log::info("exposure_raised", &[("instance", &self.instance), ("to", &to), ("entry", &entry)]);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(what: String) -> RpcError {
    RpcError::new(Code::FAILED, what).explained(
        "what raises an exposure is shown only when that is on record, and what bounds the agent goes by it",
        "try again; an operator sees the cause with nullctl ledger verify and in the logs of ctxgraph and cage",
    )
}
