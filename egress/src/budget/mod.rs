//! What agents may spend and have spent: one meter for each agent's name, kept over its lives and ours.
//!
//! Must hold: what a call can use is reserved, and where it is bounded the reservation is on the disk, before the call goes out; a
//! reservation that nobody settles stays spent, also after a crash; what was spent and cannot be read is not nothing.

mod book;
mod json;
mod prices;
mod request;
mod usage;

pub use book::{Book, Exhausted, Unit};
pub use prices::Tokens;
pub use request::{Plan, plan};
pub use usage::{Over, Usage};

use abi::control::{AgentBudget, Spent};
use abi::ids::AgentName;
use abi::log;
use abi::network::Budget;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::agent::unix_ms_now;
use crate::kept;

/// A meter's file, in bytes. Larger: damaged.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// The meters of all agents.
#[derive(Debug)]
pub struct Meters {
    dir: PathBuf,
    meters: Mutex<BTreeMap<AgentName, Arc<Meter>>>,
}

/// What one agent may spend and has spent.
#[derive(Debug)]
pub struct Meter {
    path: PathBuf,
    state: Mutex<State>,
    /// The change up to which the file has all. Held while it is written, so that those who wait share the next write.
    written: Mutex<u64>,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// None while the agent has no network.
    budget: Option<Budget>,
    /// Networks so far: the end of an old one does not end a newer one's budget.
    networks: u64,
    /// Changes since the meter was made.
    changes: u64,
    /// Why the file says nothing.
    damaged: Option<String>,
}

impl State {
    /// What the agent may spend now. Without a network it may have no second of one.
    fn running(&self) -> Result<Budget, Exhausted> {
        self.budget.ok_or_else(|| Exhausted {
            agent: self.book.agent.clone(),
            unit: Unit::WallSecs,
            most: 0,
            used: 0,
            reserved: 0,
            wanted: 1,
            ends_unix_ms: None,
        })
    }
}

/// Why a call may not go out.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The agent's: it has spent what it may.
    #[error("{0}")]
    Exhausted(Exhausted),
    /// The node's: what it spends cannot be kept.
    #[error("{0}")]
    Unkept(String),
}

impl BudgetError {
    /// How to put it right.
    pub fn remedy(&self) -> String {
        match self {
            BudgetError::Exhausted(exhausted) => exhausted.remedy(),
            BudgetError::Unkept(_) => "ask the operator: nullctl system logs egress says why".into(),
        }
    }
}

impl Meters {
    /// Reads the meters of a directory, which is made if it is not there.
    pub fn open(dir: &Path) -> io::Result<Meters> {
        kept::make_dir(dir)?;
        let meters = Meters { dir: dir.to_owned(), meters: Mutex::default() };
        for name in kept::names(dir)? {
            if let Ok(agent) = name.parse::<AgentName>() {
                meters.of(&agent);
            }
        }
        Ok(meters)
    }

    /// The meter of an agent.
    pub fn of(&self, agent: &AgentName) -> Arc<Meter> {
        let mut meters = lock(&self.meters);
        let fresh = || Arc::new(Meter::read(self.dir.join(format!("{agent}.json")), agent));
        meters.entry(agent.clone()).or_insert_with(fresh).clone()
    }

    /// The meter of an agent that has one.
    pub fn known(&self, agent: &AgentName) -> Option<Arc<Meter>> {
        lock(&self.meters).get(agent).cloned()
    }

    /// All meters that hold something, or one; those of running agents first.
    pub fn list(&self, agent: Option<&AgentName>) -> Vec<AgentBudget> {
        let wanted: Vec<Arc<Meter>> = lock(&self.meters)
            .iter()
            .filter(|(name, _)| agent.is_none_or(|agent| agent == *name))
            .map(|(_, meter)| meter.clone())
            .collect();
        let mut list: Vec<AgentBudget> = wanted.iter().map(|meter| meter.shown()).collect();
        list.retain(|one| one.budget.is_some() || !is_empty(one));
        list.sort_by_key(|one| one.budget.is_none());
        list
    }
}

fn is_empty(budget: &AgentBudget) -> bool {
    budget.used == Spent::default() && budget.reserved == Spent::default() && budget.damaged.is_none()
}

impl Meter {
    fn read(path: PathBuf, agent: &AgentName) -> Meter {
        let read = kept::read(&path, FILE_BYTES_MAX).and_then(|bytes| parse(&bytes));
        let (book, damaged) = match read {
            Ok(Book { agent: of, .. }) if of != *agent => {
                (None, Some(format!("{} is of another agent", path.display())))
            }
            Ok(book) => (Some(book), None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Err(error) => (None, Some(format!("{}: {error}", path.display()))),
        };
        let book = book.unwrap_or_else(|| Book::new(agent.clone()));
        let state = State { book, budget: None, networks: 0, changes: 0, damaged };
        Meter { path, state: Mutex::new(state), written: Mutex::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The agent has a network, and may spend this as long as the answer lives.
    pub fn begin(self: &Arc<Meter>, budget: Budget) -> Result<Running, BudgetError> {
        let mut state = self.state();
        if let Some(damaged) = &state.damaged {
            return Err(BudgetError::Unkept(format!("what was spent cannot be read: {damaged}")));
        }
        state.book.period = budget.period;
        state.budget = Some(budget);
        state.networks += 1;
        state.changes += 1;
        Ok(Running { meter: self.clone(), network: state.networks })
    }

    /// Whether calls must be planned: tokens or money are bounded.
    pub fn bounds_tokens(&self) -> bool {
        self.state().budget.is_none_or(|budget| bounds_tokens(&budget))
    }

    /// Reserves a call and the most it can use. Where calls, tokens or money are bounded it is on the disk when this returns: it
    /// blocks, and is not for an async task.
    pub fn reserve(self: &Arc<Meter>, wanted: Spent) -> Result<Hold, BudgetError> {
        let (when, change, bounded) = {
            let mut state = self.state();
            let budget = state.budget.ok_or_else(|| {
                BudgetError::Unkept("the agent has no network, and so no budget".to_owned())
            })?;
            let when = state.book.reserve(&budget, &wanted, unix_ms_now()).map_err(BudgetError::Exhausted)?;
            state.changes += 1;
            (when, state.changes, budget.calls_per_hour_max.is_some() || bounds_tokens(&budget))
        };
        let hold = Hold { meter: self.clone(), when, reserved: wanted };
        if !bounded {
            return Ok(hold); // the file has it with its next write
        }
        match self.write_up_to(change) {
            Ok(()) => Ok(hold),
            Err(error) => {
                hold.cancel();
                let why = format!("the reservation cannot be written: {}: {error}", self.path.display());
                Err(BudgetError::Unkept(why))
            }
        }
    }

    /// Takes bytes before they pass, or none of them.
    pub fn take_bytes(&self, bytes: u64) -> Result<(), Exhausted> {
        self.spend(|book, budget, now| book.take_bytes(budget, bytes, now))
    }

    /// Counts seconds with a network. Refused, they are over.
    pub fn tick(&self, secs: u64) -> Result<(), Exhausted> {
        self.spend(|book, budget, now| book.tick(budget, secs, now))
    }

    fn spend(
        &self,
        spend: impl FnOnce(&mut Book, &Budget, u64) -> Result<(), Exhausted>,
    ) -> Result<(), Exhausted> {
        let mut state = self.state();
        let budget = state.running()?;
        state.changes += 1;
        spend(&mut state.book, &budget, unix_ms_now())
    }

    /// Whether a connection may begin: a byte and a second are left.
    pub fn admits(&self) -> Result<(), Exhausted> {
        let mut state = self.state();
        let budget = state.running()?;
        state.book.roll(unix_ms_now());
        state.book.check(&budget, &Spent { bytes: 1, wall_secs: 1, ..Spent::default() })
    }

    /// Forgets what was spent; it is on the disk when this returns.
    pub fn reset(&self) -> io::Result<()> {
        {
            let mut state = self.state();
            state.book.reset();
            state.damaged = None;
            state.changes += 1;
        }
        self.write()
    }

    /// Writes what changed since the file was written.
    pub fn write(&self) -> io::Result<()> {
        let change = self.state().changes;
        self.write_up_to(change)
    }

    fn write_up_to(&self, change: u64) -> io::Result<()> {
        let mut written = lock(&self.written);
        if *written >= change {
            return Ok(());
        }
        let (bytes, changes) = {
            let state = self.state();
            (serde_json::to_vec(&state.book)?, state.changes)
        };
        kept::write(&self.path, &bytes)?;
        *written = changes;
        Ok(())
    }

    fn shown(&self) -> AgentBudget {
        let mut state = self.state();
        state.book.roll(unix_ms_now());
        let book = &state.book;
        AgentBudget {
            agent: book.agent.clone(),
            budget: state.budget,
            used: book.used,
            reserved: book.reserved,
            period_ends_unix_ms: book.period_ends_unix_ms(),
            hour_ends_unix_ms: book.hour_ends_unix_ms(),
            damaged: state.damaged.clone(),
        }
    }
}

/// A network whose agent spends. When it is dropped the file has all.
#[derive(Debug)]
pub struct Running {
    meter: Arc<Meter>,
    network: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        {
            let mut state = self.meter.state();
            if state.networks == self.network {
                state.budget = None;
            }
        }
        if let Err(error) = self.meter.write() {
            log::error("meter_unwritten", &[("path", &self.meter.path.display()), ("error", &error)]);
        }
    }
}

/// What a call has reserved. Dropped, it stays spent.
#[derive(Debug)]
#[must_use = "a dropped reservation stays spent"]
pub struct Hold {
    meter: Arc<Meter>,
    when: book::When,
    reserved: Spent,
}

impl Hold {
    /// The most the call can use.
    pub fn reserved(&self) -> Spent {
        self.reserved
    }

    /// The call is over and used this, whatever was reserved. The file has it with its next write: until then it has the
    /// reservation, which is no less.
    pub fn settle(self, used: Spent) {
        let mut state = self.meter.state();
        state.book.settle(self.when, &self.reserved, &used);
        state.changes += 1;
    }

    /// The call never left the node.
    pub fn cancel(self) {
        let mut state = self.meter.state();
        state.book.cancel(self.when, &self.reserved);
        state.changes += 1;
    }
}

/// A meter's file. Its version is looked at first: another one may have other members.
fn parse(bytes: &[u8]) -> io::Result<Book> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_slice(bytes)? {
        Versioned { version: book::VERSION } => Ok(serde_json::from_slice(bytes)?),
        Versioned { version } => Err(io::Error::other(format!(
            "it is of version {version}, and this egress reads {}",
            book::VERSION
        ))),
    }
}

fn bounds_tokens(budget: &Budget) -> bool {
    let Budget { input_tokens_max, cache_tokens_max, output_tokens_max, micro_dollars_max, .. } = budget;
    [input_tokens_max, cache_tokens_max, output_tokens_max, micro_dollars_max]
        .into_iter()
        .any(Option::is_some)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
