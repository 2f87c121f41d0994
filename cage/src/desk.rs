//! The desk of one life: decides each call of a tool on the host, by `verdict`, from what the host knows by itself.
//!
//! Owns: what the life has seen, spent and still may do, and the calls that its guest has under way.
//! Must hold: nothing is answered with `Go` before its receipt; exposure is raised, and egress has answered, before a result that
//! raises it goes out; whatever fails refuses the call. Must never: take a guest's word for a target, a label or an amount.

mod bounds;
pub mod calls;
mod course;
pub mod house;
mod judging;
pub mod questions;
pub mod reading;
#[cfg(test)]
mod tests;

use abi::authority::{Amounts, PathPattern, Rules, Tool};
use abi::control::{ExposureStatus, Fetched, NetFetch};
use abi::exposure::Exposure;
use abi::ids::{Digest, Instance, Name};
use abi::ledger::{Client, Event};
use abi::rpc::{Code, RpcError};
use abi::{limits, log, tools};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use verdict::authority::Authority;
use verdict::budget::{Foreign, Purse, Reservation, named};
use verdict::decide::Policy;
use verdict::exposure::Exposed;

use crate::guest::Session;
use crate::output::unix_ms;
use bounds::Holds;
use questions::Questions;

/// Stack of each thread here: it parses JSON of a bounded depth.
const THREAD_STACK_BYTES: usize = 256 * 1024;
/// Receipts that `exposure.status` names.
const RAISED_BY_MAX: usize = 16;

/// What a life is to do beside its manifest. The default is that of an agent that somebody started by its name.
#[derive(Debug, Clone, Default)]
pub struct Mandate {
    /// The task that it works for; questions name it.
    pub task: Option<Name>,
    /// Met with the manifest's: a task's bounds, or what was delegated.
    pub rules: Vec<Rules>,
    /// What comes from there is private, beside what the manifest says.
    pub private: Vec<PathPattern>,
    /// The top layer holds a task's tree.
    pub has_tree: bool,
    /// Who hears of what the desk decides; without one `submit` is refused.
    pub follower: Option<Arc<dyn Follower>>,
}

/// A claim: the agent says that its tree is done. No tool runs in the guest until it is answered.
#[derive(Debug)]
pub struct Claim<'a> {
    pub instance: &'a Instance,
    /// For [`abi::guest::FilesJob::Claim`].
    pub session: &'a Arc<Session>,
    /// What the agent says it did; at most [`abi::limits::NOTE_BYTES_MAX`], advice and never evidence.
    pub note: &'a str,
    /// Place of the call's receipt.
    pub receipt: u64,
}

/// What a claim came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub verified: bool,
    pub why: String,
    /// The end of the verify command's output, for the agent.
    pub output: String,
}

/// How a life stands, for who follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It works.
    Works,
    /// So many calls of it wait for a human.
    Asks(usize),
    /// A bound is reached, and it stands still until [`Desk::more`]: which, in words.
    Exhausted(String),
}

/// Who follows a life: the task that it works for.
pub trait Follower: Debug + Send + Sync {
    /// Judges a claim. Runs on a thread of its own and may take as long as a verification; the life's end is seen on the session.
    fn judge(&self, claim: Claim<'_>) -> Judged;

    /// Tells of a change. Must return at once.
    fn stands(&self, instance: &Instance, standing: Standing);
}

/// What a desk needs of the node beside questions and receipts.
pub trait House: Debug + Send + Sync {
    /// Has the life's network go by this exposure. `Ok`: it does; and what the life has seen in all.
    fn raise(&self, to: Exposure) -> Result<Exposure, String>;
    /// Lets the VM stand still, for a reason that people are told. `Ok`: it does; true where it did not before.
    fn hold(&self, why: &str) -> Result<bool, String>;
    /// Lets it go on.
    fn release(&self, by: &str) -> Result<(), String>;
    /// An event for who watches.
    fn tell(&self, what: &str, detail: &str);
    /// What its VM has used; none when nobody knows.
    fn cpu_ms(&self) -> Option<u64>;
    /// Whether its time goes on.
    fn is_running(&self) -> bool;
    /// Has egress get a page.
    fn fetch(&self, want: &NetFetch) -> Result<(Vec<u8>, Fetched), RpcError>;
}

impl State {
    /// Whether calls under way hold some of a bound.
    fn has_reserved(&self, bound: &str) -> bool {
        named(self.purse.reserved()).any(|(name, reserved)| name == bound && reserved > 0)
    }

    /// A call took no more than this: the rest of what was reserved for it is there again.
    fn settle(&mut self, reservation: Reservation, used: &Amounts) {
        if let Err(Foreign) = self.purse.settle(reservation, used) {
            log::error("reservation_of_another_purse", &[]);
        }
        self.refills += 1;
    }
}

/// What computes, by its digest: approvals are bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// Programs of the agent's image.
    pub rootfs: Digest,
    /// The verifier's own tools: the guest's first program.
    pub verifier: Digest,
}

/// What a desk begins with.
#[derive(Debug)]
pub struct Beginning<'a> {
    pub instance: &'a Instance,
    /// Of the manifest.
    pub authority: &'a abi::authority::Authority,
    pub mandate: &'a Mandate,
    pub pinned: Pinned,
    pub questions: Arc<Questions>,
    /// Where receipts are had.
    pub ctxgraph: &'a str,
    pub house: Arc<dyn House>,
}

/// A call that may happen.
#[derive(Debug)]
struct Open {
    reservation: Reservation,
    /// Its result is shown to the agent, and may hold what is in files; none: it reads no file.
    shows_files: Option<bool>,
}

/// What of a life changes.
#[derive(Debug)]
struct State {
    authority: Authority,
    purse: Purse,
    exposed: Exposed,
    /// Calls that came and were not looked at yet; the session bounds how many.
    waiting: VecDeque<(u32, tools::Call)>,
    /// The calls that may happen and have not ended.
    open: BTreeMap<u32, Open>,
    declassified: BTreeSet<Digest>,
    /// Receipts of the calls that raised its exposure.
    raised_by: Vec<u64>,
    /// Questions that wait.
    asking: usize,
    /// The bound that is reached.
    exhausted: Option<&'static str>,
    /// How often there came to be more room, by an operator or by a call's end: what was found full before is to be looked at again.
    refills: u64,
    is_over: bool,
}

/// The desk of one life.
#[derive(Debug)]
pub struct Desk {
    instance: Instance,
    task: Option<Name>,
    pinned: Pinned,
    tools: BTreeMap<Name, Tool>,
    policy: Policy,
    follower: Option<Arc<dyn Follower>>,
    house: Arc<dyn House>,
    questions: Arc<Questions>,
    /// Chained at once; beside it those that are waited for, so that neither waits for the other.
    notes: Client,
    receipts: Client,
    state: Mutex<State>,
    changed: Condvar,
    /// What egress goes by; held while it is told.
    told: Mutex<Exposure>,
    holds: Mutex<Holds>,
    session: OnceLock<Arc<Session>>,
}

impl Desk {
    /// Begins a desk, and the thread that decides at it until [`Desk::close`].
    pub fn begin(beginning: Beginning<'_>) -> Result<Arc<Desk>, String> {
        let Beginning { instance, authority: policies, mandate, pinned, questions, ctxgraph, house } =
            beginning;
        let mut rules = policies.rules_of_life(unix_ms());
        rules.extend(mandate.rules.iter().cloned());
        rules.iter().try_for_each(enforced)?;
        let authority = Authority::of_all(&rules).map_err(|error| error.to_string())?;
        let policy = mandate
            .private
            .iter()
            .fold(Policy::of(policies), |policy, path| policy.with_private(path.clone()));
        let state = State {
            purse: Purse::new(instance.generation, *authority.budget()),
            authority,
            exposed: Exposed::default(),
            waiting: VecDeque::new(),
            open: BTreeMap::new(),
            declassified: BTreeSet::new(),
            raised_by: Vec::new(),
            asking: 0,
            exhausted: None,
            refills: 0,
            is_over: false,
        };
        let desk = Arc::new(Desk {
            instance: instance.clone(),
            task: mandate.task.clone(),
            pinned,
            tools: policies.tools.clone(),
            policy,
            follower: mandate.follower.clone(),
            house,
            questions,
            notes: Client::at(ctxgraph),
            receipts: Client::at(ctxgraph),
            state: Mutex::new(state),
            changed: Condvar::new(),
            told: Mutex::default(),
            holds: Mutex::default(),
            session: OnceLock::new(),
        });
        let serving = desk.clone();
        let thread = std::thread::Builder::new().name("desk".into()).stack_size(THREAD_STACK_BYTES);
        thread.spawn(move || serving.serve()).map_err(|error| format!("no thread for the desk: {error}"))?;
        Ok(desk)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest is there.
    pub fn open(&self, session: &Arc<Session>) {
        let _ = self.session.set(session.clone()); // a guest has one control connection
    }

    /// A call came.
    pub fn take(&self, channel: u32, call: tools::Call) {
        self.state().waiting.push_back((channel, call));
        self.changed.notify_all();
    }

    /// An answered call has ended.
    pub fn ended(&self, channel: u32, ended: &tools::Ended) {
        let mut state = self.state();
        if let Some(Open { reservation, .. }) = state.open.remove(&channel) {
            let used = Amounts { calls: Some(1), output_bytes: Some(ended.bytes), ..Amounts::default() };
            state.settle(reservation, &used);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The life is over: its questions are gone, and who waits here goes.
    pub fn close(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
        self.questions.withdraw(&self.instance.to_string());
    }

    fn is_over(&self) -> bool {
        self.state().is_over || self.session.get().is_some_and(|session| session.is_over())
    }

    /// How many calls wait for a human.
    pub fn asking(&self) -> usize {
        self.state().asking
    }

    /// What was spent so far.
    pub fn spent(&self) -> Amounts {
        *self.state().purse.spent()
    }

    /// The life has seen more, by other ways than tools. `Ok`: whatever bounds it goes by that.
    pub fn note(&self, seen: Exposure) -> Result<(), String> {
        self.raise(seen, None)
    }

    /// The life may do no more than these rules say, from now on.
    pub fn tighten(&self, rules: &Rules, by: &str) -> Result<(), RpcError> {
        let too_many = |error: verdict::authority::TooMany| {
            RpcError::new(Code::LIMIT, error.to_string()).explained(
                "an authority keeps each of the rules that were met",
                "stop the agent, and narrow its manifest",
            )
        };
        enforced(rules).map_err(|what| {
            RpcError::new(Code::INVALID_PARAMS, what)
                .explained("what the desk does not bound is bounded elsewhere", "leave it out here")
        })?;
        let tighter = Authority::of(rules.clone());
        self.state().authority.meet(&tighter).map_err(too_many)?;
        let text =
            serde_json::to_vec(rules).map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
        let (instance, rules, by) = (self.instance.clone(), digest_of(&text), by.to_owned());
        self.durable(Event::AuthorityTightened { instance, rules, by })?;
        let mut state = self.state();
        state.authority = state.authority.meet(&tighter).map_err(too_many)?;
        let bounds = *state.authority.budget();
        state.purse.tighten(&bounds);
        Ok(())
    }

    /// A human says that these bytes may leave.
    pub fn declassify(&self, arguments: Digest, by: &str, reason: &str) -> Result<(), RpcError> {
        let most = limits::DECLASSIFIED_MAX;
        let full =
            |state: &State| state.declassified.len() >= most && !state.declassified.contains(&arguments);
        let limit = || {
            RpcError::new(Code::LIMIT, format!("{most} arguments were declassified in this life"))
                .explained("so many in one life at most", "start the agent anew")
        };
        if full(&self.state()) {
            return Err(limit());
        }
        let (instance, by, reason) = (self.instance.clone(), by.to_owned(), reason.to_owned());
        self.durable(Event::Declassified { instance, arguments, by, reason })?;
        let mut state = self.state();
        if full(&state) {
            return Err(limit());
        }
        state.declassified.insert(arguments);
        Ok(())
    }

    fn durable(&self, event: Event) -> Result<u64, RpcError> {
        let receipt = self.receipts.append(event).map_err(|error| {
            RpcError::new(Code::FAILED, format!("no receipt, so nothing was done: {error}"))
                .explained("it takes effect when its receipt is durable", "see that ctxgraph is running")
        })?;
        Ok(receipt.seq)
    }

    /// How the life stands.
    pub fn status(&self) -> ExposureStatus {
        let state = self.state();
        ExposureStatus {
            instance: self.instance.clone(),
            seen: state.exposed.seen(),
            written: state.exposed.written(),
            raised_by: state.raised_by.clone(),
            spent: *state.purse.spent(),
            left: state.purse.left(),
            rules: state.authority.rules().to_vec(),
        }
    }

    /// Has what the agent is about to be shown in force everywhere: `call` is what raises it, if a tool does.
    fn raise(&self, labels: Exposure, call: Option<u32>) -> Result<(), String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.has(labels) {
            return Ok(());
        }
        // Before anything else, so that no call that is decided meanwhile goes by less.
        let to = {
            let mut state = self.state();
            let _ = state.exposed.see(labels); // whether egress knows is what counts
            state.exposed.seen()
        };
        if let Some(call) = call {
            let event = Event::ToolExposed { instance: self.instance.clone(), to, call };
            let receipt = self.receipts.append(event).map_err(|error| format!("no receipt: {error}"))?;
            let mut state = self.state();
            if state.raised_by.len() < RAISED_BY_MAX {
                state.raised_by.push(receipt.seq);
            }
        }
        let seen = self.house.raise(to)?;
        let _ = self.state().exposed.see(seen); // by its own connections
        *told = told.and(to).and(seen);
        Ok(())
    }

    fn stands(&self) {
        let Some(follower) = &self.follower else { return };
        let standing = {
            let state = self.state();
            match (state.exhausted, state.asking) {
                (Some(bound), _) => Standing::Exhausted(bound.to_owned()),
                (None, 0) => Standing::Works,
                (None, asking) => Standing::Asks(asking),
            }
        };
        follower.stands(&self.instance, standing);
    }
}

/// SHA-256.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// Rules bound what somebody bounds: of the rest the manifest's capabilities have their own fields.
fn enforced(rules: &Rules) -> Result<(), String> {
    let Amounts { memory_mib, disk_mib, tokens, micro_dollars, .. } = rules.budget;
    let elsewhere = [
        ("memory_mib", memory_mib),
        ("disk_mib", disk_mib),
        ("tokens", tokens),
        ("micro_dollars", micro_dollars),
    ];
    match elsewhere.into_iter().find(|(_, bound)| bound.is_some()) {
        Some((name, _)) => {
            Err(format!("`budget.{name}` is not a bound of tools: the manifest's capabilities have it"))
        }
        None => Ok(()),
    }
}
