//! What follows from a step: each action of `verdict::step` is done here, or on a thread of its own, and its outcome is told as an event.

use abi::authority::Amounts;
use abi::control::TaskState;
use abi::identity::Role;
use abi::ledger::Event;
use abi::limits;
use abi::log;
use std::sync::Arc;
use std::time::Duration;
use verdict::step::{Action, Actor, Life, Outcome, What};

use super::task::Task;
use super::{candidate, errand, kept, proof, watch};
use crate::agents::Cage;
use crate::desk::{Desk, Judged};
use crate::life::Asked;
use crate::steer;

/// Pause between two tries to store a receipt.
const RECEIPT_PAUSE: Duration = Duration::from_secs(2);
/// Tries before the task is paused.
const RECEIPT_TRIES: u32 = 15;
/// Who steers the cages of a task.
pub const BY: &str = "task";

/// Does it.
pub fn act(cage: &Arc<Cage>, task: &Arc<Task>, action: Action) {
    match action {
        Action::StartCandidate(life) => spawn(cage, task, "candidate", move |cage, task| {
            candidate::live(cage, task, life);
        }),
        Action::ReadClaim(life) => {
            spawn(cage, task, "claim", move |cage, task| candidate::read_claim(cage, task, life));
        }
        Action::StartVerify(run) => {
            spawn(cage, task, "verify", move |cage, task| proof::verify(cage, task, run));
        }
        Action::StartScore(run) => {
            spawn(cage, task, "score", move |cage, task| proof::score(cage, task, run));
        }
        Action::Mint(run) => spawn(cage, task, "mint", move |cage, task| proof::mint(cage, task, run)),
        Action::StopCandidate(life) => {
            task.record().1.submits.remove(&life.candidate);
            kill(cage, task, 'c', life.candidate.into());
        }
        Action::StopVerify(run) => kill(cage, task, 'v', run.number),
        Action::FreezeCandidate(life) => steer(cage, task, life, Asked::Pause),
        Action::ThawCandidate(life) => steer(cage, task, life, Asked::Resume),
        Action::TellAgent(life, outcome) => tell(task, life, outcome),
        Action::Finish(state) => finish(cage, task, state),
        Action::Reject(_) => {} // told where it happened
    }
}

fn spawn(
    cage: &Arc<Cage>,
    task: &Arc<Task>,
    name: &str,
    work: impl FnOnce(&Arc<Cage>, &Arc<Task>) + Send + 'static,
) {
    let (for_cage, for_task) = (cage.clone(), task.clone());
    let spawned = std::thread::Builder::new().name(name.into()).spawn(move || work(&for_cage, &for_task));
    if let Err(error) = spawned {
        // The lease of the candidate ends, and with it what was to be done.
        log::error("task_thread_missing", &[("task", &task.fixed.id), ("what", &name), ("error", &error)]);
    }
}

fn kill(cage: &Arc<Cage>, task: &Task, letter: char, number: u32) {
    let Some(name) = errand::cage_name(&task.fixed.id, letter, number) else { return };
    if let Err(error) = cage.kill(&name, BY) {
        log::info("task_cage_not_killed", &[("cage", &name), ("why", &error)]); // it may not have begun, or be over
    }
}

fn steer(cage: &Arc<Cage>, task: &Task, life: Life, change: Asked) {
    let Some(name) = errand::cage_name(&task.fixed.id, 'c', life.candidate.into()) else { return };
    let desk = cage.known(&name).and_then(|agent| agent.facts().desk.clone());
    if change == Asked::Resume && desk.is_some_and(|desk| desk.keeps_still()) {
        return;
    }
    if let Err(error) = steer::change(cage, &name, change, BY.into()) {
        log::info("task_cage_not_steered", &[("cage", &name), ("why", &error)]);
    }
}

fn tell(task: &Task, life: Life, outcome: Outcome) {
    let (why, output) = task.record().1.told.remove(&life.candidate).unwrap_or_default();
    let words = match outcome {
        Outcome::Verified => "the verify command ended well on this tree in a fresh cage",
        Outcome::Refused => "the changes are refused",
        Outcome::NotVerified => "the verify command did not end well on this tree",
        Outcome::CouldNotVerify => "it could not be verified; nothing is known of the claim",
    };
    let why = if why.is_empty() { words.to_owned() } else { format!("{words}: {why}") };
    task.answer(life.candidate, Judged { verified: outcome == Outcome::Verified, why, output });
}

/// Ends a task of an earlier life of cage that was over before its receipt was there.
pub fn finish_again(cage: &Arc<Cage>, task: &Arc<Task>) {
    // One that was integrated was verified first, and that is what its end says.
    let state = match task.state() {
        TaskState::Integrated => TaskState::Verified,
        state => state,
    };
    spawn(cage, task, "end", move |cage, task| finish(cage, task, state));
}

/// The task is over: its receipt, and nothing is kept that only candidates needed.
fn finish(cage: &Arc<Cage>, task: &Arc<Task>, state: TaskState) {
    let reason = {
        let mut both = task.record();
        let (record, now) = &mut *both;
        (now.base, now.hold) = (None, None);
        now.submits.clear();
        now.claims.clear();
        if record.reason.is_empty() {
            record.reason =
                summary(state, &record.seats.iter().map(|s| s.reason.clone()).collect::<Vec<_>>());
        }
        record.reason.clone()
    };
    let short: String = reason.chars().take(limits::REASON_CHARS_MAX).collect();
    let event =
        Event::TaskEnded { task: task.fixed.id.clone(), state, reason: short, by: task.fixed.by.clone() };
    kept::tidy(task);
    if !ended(cage, &event) {
        return; // the next life of cage tells it
    }
    task.told();
    log::info("task_over", &[("task", &task.fixed.id), ("state", &format!("{state:?}"))]);
}

/// Tries until the end of a task has its receipt; false: the node goes down first.
fn ended(cage: &Cage, event: &Event) -> bool {
    let mut is_first = true;
    while let Err(error) = cage.ledger.append(event.clone()) {
        if std::mem::replace(&mut is_first, false) {
            log::error("receipt_missing", &[("event", &"task_ended"), ("error", &error)]);
        }
        if cage.is_leaving() {
            return false;
        }
        std::thread::sleep(RECEIPT_PAUSE);
    }
    true
}

fn summary(state: TaskState, reasons: &[String]) -> String {
    match state {
        TaskState::Verified => {
            "a fresh cage ran the verify command on the tree with the patch, and it ended well".into()
        }
        TaskState::Failed => {
            let all =
                reasons.iter().enumerate().map(|(at, reason)| format!("candidate {}: {reason}", at + 1));
            all.collect::<Vec<_>>().join("; ")
        }
        _ => String::new(),
    }
}

/// A bound of the budget is used up: the task is paused, and says so.
pub fn spent(cage: &Arc<Cage>, task: &Arc<Task>, what: &str) {
    let why = format!("the budget is spent: {what}; task resume --budget goes on");
    let mut is_paused = false;
    // Refused: it is over.
    let _ = task.happen_with(cage.tasks.now_ms(), Actor::Cage, What::Spent, |record, _| {
        is_paused = record.state.task() == TaskState::Running;
        if is_paused {
            record.because(0, why.clone());
        }
    });
    if is_paused {
        spawn(cage, task, "receipt", move |cage, task| {
            let event = Event::TaskPaused { task: task.fixed.id.clone(), reason: why, by: "budget".into() };
            crate::life::record(cage, event);
        });
    }
}

/// Waits until an event has its receipt. After a while without one the task is paused, once; false: the task is over, or the node goes
/// down, and nothing may follow.
pub fn receipt(cage: &Arc<Cage>, task: &Arc<Task>, event: &Event) -> bool {
    until_done(cage, task, || cage.ledger.append(event.clone()).map_err(|error| error.to_string())).is_some()
}

/// Tries something of ctxgraph's until it is done.
pub fn until_done<T>(
    cage: &Arc<Cage>,
    task: &Arc<Task>,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> Option<T> {
    let mut tries = 0;
    while !super::task::is_over(task.state()) && !cage.is_leaving() {
        match attempt() {
            Ok(done) => return Some(done),
            Err(error) => {
                tries += 1;
                if tries == RECEIPT_TRIES {
                    let why = format!("no receipt could be stored: {error}; task resume goes on");
                    // Refused: it is over.
                    let _ =
                        task.happen_with(cage.tasks.now_ms(), Actor::Cage, What::NoReceipts, |record, _| {
                            record.because(0, why);
                        });
                }
            }
        }
        std::thread::sleep(RECEIPT_PAUSE);
    }
    None
}

/// The desks of candidates that live, with their numbers.
fn desks(cage: &Cage, task: &Task) -> Vec<(u8, Arc<Desk>)> {
    let desk = |number: u8| {
        let name = errand::cage_name(&task.fixed.id, 'c', number.into())?;
        let desk = cage.known(&name)?.facts().desk.clone();
        desk.map(|desk| (number, desk))
    };
    (1..=task.fixed.run.candidates).filter_map(desk).collect()
}

/// What is used up, in words, and would be with so much more: nothing would come of going on.
pub fn lacks(cage: &Cage, task: &Task, more: &Amounts) -> Option<String> {
    let budget = task.record().0.raised(more);
    let share = candidate::share(more, task.fixed.run.candidates.max(1));
    let of_all = || watch::spent(task, &budget);
    let of_one = || {
        let desks = desks(cage, task);
        let lacking = desks.iter().find_map(|(number, desk)| Some((number, desk.lacks(&share)?)));
        lacking.map(|(number, bound)| format!("candidate {number}'s share of {bound}"))
    };
    of_all().or_else(of_one)
}

/// Gives living candidates their share of what was added to the budget.
pub fn give_more(cage: &Cage, task: &Task, more: &Amounts, by: &str, role: Role) {
    let share = candidate::share(more, task.fixed.run.candidates.max(1));
    for (_, desk) in desks(cage, task) {
        if let Err(error) = desk.more(&share, by, role) {
            log::info("budget_not_raised", &[("task", &task.fixed.id), ("why", &error)]);
        }
    }
}
