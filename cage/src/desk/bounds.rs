//! What lets a life stand still: a bound that is reached, a question of critical risk.
//!
//! Must hold: it goes on when the last reason is gone, and not before; a reached bound has its receipt. Must never: hold up the thread
//! that decides, which a pause can take long to answer.

use abi::authority::Amounts;
use abi::identity::Role;
use abi::ledger::Event;
use abi::log;
use abi::rpc::{Code, RpcError};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use verdict::approvals::Actor;
use verdict::budget::{NotOperator, named};

use super::{Desk, THREAD_STACK_BYTES};

/// How often time and CPU are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// How often who waits here looks whether the life is over.
const STEP: Duration = Duration::from_millis(500);

/// Why the VM stands still.
#[derive(Debug, Default)]
pub(super) struct Holds {
    reasons: BTreeSet<String>,
    /// The desk let it stand still; somebody else may have before.
    is_ours: bool,
}

/// What time and CPU were when they were last looked at.
#[derive(Debug)]
pub(super) struct Watch {
    at: Instant,
    was_running: bool,
    cpu_ms: u64,
}

impl Watch {
    pub(super) fn begin() -> Watch {
        Watch { at: Instant::now(), was_running: false, cpu_ms: 0 }
    }
}

impl Desk {
    /// Lets the VM stand still until [`Desk::unhold`] with the same reason.
    pub(super) fn hold(&self, why: &str) -> Result<(), String> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if !holds.is_ours {
            // One that stands still already, by an operator's word, stays so; agent.resume asks here first.
            holds.is_ours = self.house.hold(why)?;
        }
        holds.reasons.insert(why.to_owned());
        Ok(())
    }

    /// A reason is gone. Says whether it goes on by that.
    pub(super) fn unhold(&self, why: &str, by: &str) -> bool {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if !holds.reasons.remove(why) || !holds.reasons.is_empty() || !holds.is_ours {
            return false;
        }
        holds.is_ours = false;
        let released = self.house.release(by);
        if let Err(error) = &released {
            log::error("not_let_go", &[("instance", &self.instance), ("error", error)]);
        }
        released.is_ok()
    }

    /// An operator lets the life go on. A question keeps it where it is; a bound that is reached gives as much again.
    /// Says whether it goes on by that.
    pub fn resume(&self, by: &str, role: Role) -> Result<bool, RpcError> {
        let question = {
            let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
            holds.reasons.iter().find(|reason| reason.as_str() != BUDGET).cloned()
        };
        if let Some(question) = question {
            let why = format!("{} stands still: {question}", self.instance);
            return Err(RpcError::new(Code::CONFLICT, why)
                .explained("a call of critical risk waits for an answer", "nullctl approve or deny it"));
        }
        let (exhausted, budget) = {
            let state = self.state();
            (state.exhausted, *state.authority.budget())
        };
        let Some(exhausted) = exhausted else { return Ok(false) };
        let again = named(&budget).find(|(name, _)| *name == exhausted);
        self.more(&once_more(again), by, role)
    }

    /// Its task lets the life go on. A question that it stands still for keeps it where it is, and its answer lets it go on then.
    pub fn keeps_still(&self) -> bool {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let is_kept = holds.reasons.iter().any(|reason| reason != BUDGET);
        holds.is_ours |= is_kept;
        is_kept
    }

    /// An operator adds to its budget, which lets it go on where it stood still for that. Says whether it goes on by that.
    pub fn more(&self, more: &Amounts, by: &str, role: Role) -> Result<bool, RpcError> {
        {
            let mut state = self.state();
            state.purse.more(Actor::Operator { role, name: by }, more).map_err(|NotOperator| {
                RpcError::new(Code::DENIED, "that caller gives no budget")
                    .explained("operators do", "ask one")
            })?;
            if state.exhausted.is_some_and(|bound| named(&state.purse.left()).any(|left| left == (bound, 0)))
            {
                return Ok(false); // it was another bound that there is more of now
            }
            state.exhausted = None;
            state.refills += 1;
        }
        let goes_on = self.unhold(BUDGET, by);
        self.changed.notify_all();
        self.house.tell("budget", "has more of it");
        self.stands();
        Ok(goes_on)
    }

    /// The bound that is reached, and would be with so much more.
    pub fn lacks(&self, more: &Amounts) -> Option<&'static str> {
        let state = self.state();
        let mut purse = state.purse.clone();
        // Tried on a copy, which nobody spends from.
        purse.more(Actor::Operator { role: Role::Operator, name: "" }, more).ok()?;
        state.exhausted.filter(|bound| named(&purse.left()).any(|left| left == (*bound, 0)))
    }

    /// A bound had no room when there had come to be more so often. Unless there is more by now, or calls under way hold some that may
    /// come back, it is reached: the life stands still until there is.
    pub(super) fn exhaust(&self, what: &'static str, refills: u64) {
        let bound = {
            let mut state = self.state();
            let may_have_room = state.refills != refills || state.has_reserved(what);
            if state.exhausted.is_some() || may_have_room || state.is_over {
                return;
            }
            state.exhausted = Some(what);
            named(state.purse.bound()).find(|(name, _)| *name == what).map_or(0, |(_, bound)| bound)
        };
        let (instance, what) = (self.instance.clone(), what.to_owned());
        let words = format!("{what} = {bound} is used up");
        log::warning("budget_exhausted", &[("instance", &instance), ("what", &words)]);
        if let Err(error) = self.receipts.append(Event::BudgetExhausted { instance, what, bound }) {
            log::error("receipt_missing", &[("event", &"budget_exhausted"), ("error", &error)]);
        }
        self.house.tell("exhausted", &words);
        if let Err(error) = self.hold(BUDGET) {
            // Its calls wait all the same: nothing is left for them.
            log::error("not_held", &[("instance", &self.instance), ("error", &error)]);
        }
        let is_past = self.state().exhausted.is_none();
        if is_past {
            self.unhold(BUDGET, "more of its budget");
        }
        self.stands();
    }

    /// Waits until a call that found no room is to be decided again; false when the life is over. Where calls under way are waited for that
    /// is after a moment in any case: the end of its time, or an operator, may refuse it meanwhile.
    pub(super) fn await_room(&self, bound: &'static str, refills: u64) -> bool {
        self.exhaust(bound, refills);
        let asked = Instant::now();
        loop {
            if self.is_over() {
                return false;
            }
            let state = self.state();
            if state.exhausted.is_none() && (state.refills != refills || asked.elapsed() >= STEP) {
                return true;
            }
            drop(self.changed.wait_timeout(state, STEP).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Takes time and CPU off the budget.
    pub(super) fn look(self: &Arc<Desk>, watch: &mut Watch) {
        if watch.at.elapsed() < LOOK {
            return;
        }
        let is_running = self.house.is_running();
        let passed = std::mem::replace(&mut watch.at, Instant::now()).elapsed();
        let wall_ms = if watch.was_running && is_running { passed.as_millis() as u64 } else { 0 };
        watch.was_running = is_running;
        let cpu_ms = self.house.cpu_ms().unwrap_or(watch.cpu_ms);
        let used = Amounts {
            wall_ms: Some(wall_ms),
            cpu_ms: Some(cpu_ms.saturating_sub(watch.cpu_ms)),
            ..Amounts::default()
        };
        watch.cpu_ms = watch.cpu_ms.max(cpu_ms);
        let (empty, refills) = {
            let mut state = self.state();
            let charged = state.purse.charge(&used);
            let left = state.purse.left();
            let is_empty = |name: &&str| named(&left).any(|one| one == (*name, 0));
            let full = charged.err().map(|full| full.bound);
            (full.or_else(|| ["wall_ms", "cpu_ms"].into_iter().find(is_empty)), state.refills)
        };
        let Some(bound) = empty else { return };
        let desk = self.clone();
        let thread = std::thread::Builder::new().name("budget".into()).stack_size(THREAD_STACK_BYTES);
        if let Err(error) = thread.spawn(move || desk.exhaust(bound, refills)) {
            log::error("no_thread", &[("instance", &self.instance), ("error", &error)]);
        }
    }
}

/// The reason that a budget is.
pub(super) const BUDGET: &str = "its budget is used up";

/// As much of one bound as it had.
fn once_more(bound: Option<(&'static str, u64)>) -> Amounts {
    let Some((name, amount)) = bound else { return Amounts::default() };
    let mut more = Amounts::default();
    match name {
        "wall_ms" => more.wall_ms = Some(amount),
        "cpu_ms" => more.cpu_ms = Some(amount),
        "output_bytes" => more.output_bytes = Some(amount),
        "calls" => more.calls = Some(amount),
        "tokens" => more.tokens = Some(amount),
        "micro_dollars" => more.micro_dollars = Some(amount),
        _ => {}
    }
    more
}
