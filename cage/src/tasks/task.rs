//! One task: what is known of it, what happens to it, and who waits for a change. What follows from what is `verdict::step`'s.
//!
//! Must hold: its state changes only by [`Task::happen`], and is on disk before what follows from it is done; what is asked of its cages
//! is done in order. Must never: hold its record while it waits for a guest, a service or a disk of a guest.

use abi::authority::Amounts;
use abi::control::{PatchFacts, PatchSummary, TaskRun, TaskState};
use abi::ids::{Digest, Instance, Name};
use abi::limits;
use abi::log;
use abi::manifest::Manifest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use verdict::patch::{ChangeSet, VerifiedPatch};
use verdict::step::{Action, Actor, Event, Life, State, What, Why, step};

use super::base::Base;
use super::claim::Unread;
use super::records::Contents;
use super::{act, kept};
use crate::agents::Cage;
use crate::desk::Judged;
use crate::guest::Session;

/// What is fixed when a task is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixed {
    pub id: Name,
    pub run: TaskRun,
    pub by: String,
    pub base: Digest,
    /// Of the agent, with its rootfs by digest.
    pub manifest: Manifest,
    pub manifest_digest: Digest,
    pub rootfs: Digest,
    pub begun_unix_ms: u64,
}

/// What changes, and is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub state: State,
    pub revision: u64,
    pub reason: String,
    pub ended_unix_ms: Option<u64>,
    /// By candidate, the first is number 1.
    pub seats: Vec<Seat>,
    pub budget: Amounts,
    /// Of lives that are over, and the wall time.
    pub spent: Amounts,
    /// Its end has its receipt.
    #[serde(default)]
    pub is_told: bool,
    /// Somebody has its result.
    #[serde(default)]
    pub is_exported: bool,
    /// Of candidates whose patch was minted.
    pub minted: BTreeMap<u8, MintedPatch>,
}

impl Record {
    /// Its budget with so much more. What has no bound needs no more.
    pub fn raised(&self, more: &Amounts) -> Amounts {
        let sum = |bound: Option<u64>, more: Option<u64>| Some(bound?.saturating_add(more.unwrap_or(0)));
        let mut budget = self.budget.zip(more, sum);
        budget.wall_ms = budget.wall_ms.map(|wall| wall.min(limits::TASK_WALL_MS_MAX));
        budget
    }

    /// Notes why something is as it is, of a candidate or (0) of the task.
    pub fn because(&mut self, candidate: u8, reason: impl Into<String>) {
        let reason: String = reason.into().chars().take(REASON_CHARS_MAX).collect();
        match usize::from(candidate).checked_sub(1) {
            Some(place) => {
                if let Some(seat) = self.seats.get_mut(place) {
                    seat.reason = reason;
                }
            }
            None => self.reason = reason,
        }
    }
}

/// What people see of a candidate beside its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seat {
    pub instance: Option<Instance>,
    pub reason: String,
    pub note: Option<String>,
}

/// A patch that was verified, as it is told and attested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MintedPatch {
    pub summary: PatchSummary,
    pub facts: PatchFacts,
    pub envelope: String,
}

/// What is of this life of cage alone.
#[derive(Debug, Default)]
pub struct Now {
    /// The base, until the task is over.
    pub base: Option<Arc<Base>>,
    /// Claims that were read and are legal, by candidate.
    pub claims: BTreeMap<u8, Arc<ReadClaim>>,
    /// Submits that wait for an answer, by candidate.
    pub submits: BTreeMap<u8, Submit>,
    /// What candidates without tools left.
    pub left: BTreeMap<u8, Result<Vec<u8>, Unread>>,
    /// What the last judgement said, for the agent: why, and the end of the output.
    pub told: BTreeMap<u8, (String, String)>,
    /// Verify VMs that ended well and are to be minted, by run.
    pub proven: BTreeMap<u32, super::proof::Proven>,
    /// Whole patches, by candidate; taken by what integrates.
    pub patches: BTreeMap<u8, VerifiedPatch>,
    /// CPU time of lives under way, as last seen.
    pub cpu_ms: BTreeMap<Instance, u64>,
    /// Claims that were written, each to a file of its own until it counts.
    pub written: u64,
    /// Since when the wall time is not counted in `spent`.
    pub counted_ms: u64,
    /// When candidates were last asked for a sign of life.
    pub asked_ms: u64,
    /// The rootfs stays until the task is over.
    pub hold: Option<crate::store::Hold>,
}

/// A claim that was read.
#[derive(Debug)]
pub struct ReadClaim {
    pub changes: ChangeSet,
    pub contents: Contents,
    pub instance: Instance,
}

/// A `submit` that waits.
#[derive(Debug)]
pub struct Submit {
    pub life: Life,
    pub session: Arc<Session>,
    pub answer: Sender<Judged>,
}

/// One task.
#[derive(Debug)]
pub struct Task {
    pub fixed: Fixed,
    pub dir: PathBuf,
    record: Mutex<(Record, Now)>,
    changed: Condvar,
    orders: Mutex<Option<Sender<Action>>>,
    /// Held from a look at the state to the change that goes by it, where the ledger is told between the two.
    deciding: Mutex<()>,
}

/// Whether a task will not change by itself any more.
pub fn is_over(state: TaskState) -> bool {
    matches!(state, TaskState::Verified | TaskState::Integrated | TaskState::Failed | TaskState::Cancelled)
}

impl Task {
    /// One whose record is known.
    pub fn new(fixed: Fixed, dir: PathBuf, record: Record, now: Now) -> Task {
        Task {
            fixed,
            dir,
            record: Mutex::new((record, now)),
            changed: Condvar::new(),
            orders: Mutex::default(),
            deciding: Mutex::default(),
        }
    }

    /// Begins to do what follows from what happens, on a thread of its own, until the task is over.
    pub fn work(self: &Arc<Task>, cage: &Arc<Cage>) -> std::io::Result<()> {
        let (sender, orders) = channel();
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        let (task, cage) = (self.clone(), cage.clone());
        let work = move || {
            while let Ok(action) = orders.recv() {
                act::act(&cage, &task, action);
                if matches!(action, Action::Finish(_)) {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("task".into()).stack_size(512 * 1024).spawn(work).map(drop)
    }

    /// Its record, for a moment.
    pub fn record(&self) -> MutexGuard<'_, (Record, Now)> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands.
    pub fn state(&self) -> TaskState {
        self.record().0.state.task()
    }

    /// Something happened. What follows from it is on its way when this returns.
    pub fn happen(&self, now_ms: u64, actor: Actor, what: What) -> Result<(), Why> {
        self.happen_with(now_ms, actor, what, |_, _| {})
    }

    /// The same, with what belongs to it: `with` is done where the event counts, before what follows from it, and else not at all.
    pub fn happen_with(
        &self,
        now_ms: u64,
        actor: Actor,
        what: What,
        with: impl FnOnce(&mut Record, &mut Now),
    ) -> Result<(), Why> {
        let mut both = self.record();
        let (record, now) = &mut *both;
        let (next, actions) = step(record.state.clone(), Event { actor, now_ms, what });
        if let Some(why) = actions.rejected() {
            if what != What::Heard && what != What::Tick {
                let (what, why) = (format!("{what:?}"), format!("{why:?}"));
                log::info("task_event_refused", &[("task", &self.fixed.id), ("what", &what), ("why", &why)]);
            }
            return Err(why);
        }
        with(record, now);
        record.state = next;
        let is_small = matches!(what, What::Heard | What::Tick) && actions.iter().next().is_none();
        if !is_small {
            record.revision += 1;
            if is_over(record.state.task()) && record.ended_unix_ms.is_none() {
                record.ended_unix_ms = Some(crate::output::unix_ms());
            }
            kept::keep(self, record);
        }
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        for action in actions.iter() {
            // Nobody is left to do it when the task was over before: there is nothing to be done then.
            let _ = orders.as_ref().map(|orders| orders.send(action));
        }
        drop((orders, both));
        if !is_small {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Notes why something is as it is, of a candidate or (0) of the task.
    pub fn because(&self, candidate: u8, reason: impl Into<String>) {
        self.record().0.because(candidate, reason);
    }

    /// Nobody else decides what this task comes to while this is held: a patch that is attested or given out, an operator's cancel.
    pub fn decide(&self) -> MutexGuard<'_, ()> {
        self.deciding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its end has its receipt.
    pub fn told(&self) {
        let mut both = self.record();
        both.0.is_told = true;
        kept::keep(self, &both.0);
        drop(both);
        self.changed.notify_all();
    }

    /// Whether its end has its receipt, after `patience` at most.
    pub fn is_told(&self, patience: Duration) -> bool {
        let both = self.record();
        let waited = self.changed.wait_timeout_while(both, patience, |both| !both.0.is_told);
        waited.is_ok_and(|(both, _)| both.0.is_told)
    }

    /// Waits for a revision after this one, or for `patience`.
    pub fn wait(&self, revision: u64, patience: Duration) {
        let both = self.record();
        // A poisoned lock is only a record whose last writer stopped; waiting on it is harmless.
        let _ = self.changed.wait_timeout_while(both, patience, |both| both.0.revision <= revision);
    }

    /// Tells the waiting submit of a candidate what became of its claim.
    pub fn answer(&self, candidate: u8, judged: Judged) {
        let submit = self.record().1.submits.remove(&candidate);
        if let Some(submit) = submit {
            let _ = submit.answer.send(judged); // its life ended meanwhile
        }
    }
}

/// Characters of a reason.
pub const REASON_CHARS_MAX: usize = 2000;
