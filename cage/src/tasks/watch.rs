//! What time does to tasks: leases and their signs of life, wall time, the CPU that candidates use.
//!
//! Must hold: a candidate that was silent for a lease is told of by its silence alone; time that a task stands still is not counted.

use abi::authority::Amounts;
use abi::control::{AgentState, TaskState};
use abi::limits;
use std::sync::Arc;
use std::time::{Duration, Instant};
use verdict::step::{Actor, Life, What};

use super::act;
use super::errand::cage_name;
use super::task::Task;
use crate::agents::Cage;

const STEP: Duration = Duration::from_secs(1);
/// A sign of life is asked for three times in a lease.
const SIGN_MS: u64 = limits::TASK_LEASE_MS / 3;

/// Watches until cage ends.
pub fn watch(cage: &Arc<Cage>) {
    while !cage.is_leaving() {
        std::thread::sleep(STEP);
        for task in cage.tasks.all() {
            if matches!(task.state(), TaskState::Running | TaskState::Paused) {
                look(cage, &task, cage.tasks.now_ms());
            }
        }
    }
}

/// One look at a task.
pub fn look(cage: &Arc<Cage>, task: &Arc<Task>, now_ms: u64) {
    let (is_running, is_asking, lives) = {
        let mut both = task.record();
        let (record, now) = &mut *both;
        let is_running = record.state.task() == TaskState::Running;
        let since = now_ms.saturating_sub(std::mem::replace(&mut now.counted_ms, now_ms));
        if is_running {
            record.spent.wall_ms = Some(record.spent.wall_ms.unwrap_or(0).saturating_add(since));
        }
        let is_asking = now_ms.saturating_sub(now.asked_ms) >= SIGN_MS;
        if is_asking {
            now.asked_ms = now_ms;
        }
        let lives: Vec<Life> = record.state.candidates().iter().map(|one| one.life()).collect();
        (is_running, is_asking, lives)
    };
    for life in lives {
        if is_heard(cage, task, life, is_asking) {
            // Refused where it is not awaited.
            let _ = task.happen(now_ms, Actor::Agent(life), What::Heard);
        }
    }
    if is_running {
        let budget = task.record().0.budget;
        if let Some(why) = spent(task, &budget) {
            act::spent(cage, task, &why);
        }
        // Nothing comes of most of them.
        let _ = task.happen(now_ms, Actor::Clock, What::Tick);
    }
}

/// Whether a candidate's life gave a sign of itself within a lease; asks for the next one.
fn is_heard(cage: &Cage, task: &Task, life: Life, is_asking: bool) -> bool {
    let Some(agent) =
        cage_name(&task.fixed.id, 'c', life.candidate.into()).and_then(|name| cage.known(&name))
    else {
        return false;
    };
    let (state, session, heard, since, cgroup, instance) = {
        let facts = agent.facts();
        let session = facts.session.clone();
        (
            facts.state.now(),
            session,
            facts.heard,
            facts.running_since,
            facts.cgroup.clone(),
            facts.instance.clone(),
        )
    };
    if let (Some(used), Some(instance)) = (cgroup.and_then(|cgroup| cgroup.usage()), instance) {
        task.record().1.cpu_ms.insert(instance, used.cpu_ms);
    }
    let lease = Duration::from_millis(limits::TASK_LEASE_MS);
    match state {
        // Its stages have bounds of their own; a paused one is silent because somebody wants it so.
        AgentState::Starting | AgentState::Paused => true,
        AgentState::Running => {
            if is_asking && let Some(session) = &session {
                // An end of the connection is seen by the life itself.
                let _ = session.sync();
            }
            let is_recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < lease);
            is_recent(heard) || is_recent(since) || session.is_some_and(|session| session.idle() < lease)
        }
        _ => false,
    }
}

/// Which bound of a whole task with this budget is reached, in words.
pub fn spent(task: &Task, budget: &Amounts) -> Option<String> {
    let both = task.record();
    let (record, now) = &*both;
    let wall = budget.wall_ms.filter(|most| record.spent.wall_ms.unwrap_or(0) >= *most);
    if let Some(most) = wall {
        return Some(format!("{} s of wall time", most / 1000));
    }
    let used = record.spent.cpu_ms.unwrap_or(0).saturating_add(now.cpu_ms.values().sum());
    let cpu = budget.cpu_ms.filter(|most| used >= *most);
    cpu.map(|most| format!("{} s of CPU time", most / 1000))
}
