//! The methods of tasks but for `task.run` and `task.integrate`: what is told, and what an operator may change.
//!
//! Must hold: an answer fits a line; what is given out of a patch is what its receipt names.

use abi::control::{
    CandidateStatus, Nothing, Stream, TaskExport, TaskExported, TaskList, TaskPart, TaskRef, TaskResume,
    TaskState, TaskStatus, TaskSteer, TaskSummary,
};
use abi::door::{Call, Outcome};
use abi::identity::Role;
use abi::ids::Digest;
use abi::ledger::Event;
use abi::limits;
use abi::rpc::{Code, RpcError};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use verdict::step::{Actor, What};

use super::task::{Now, REASON_CHARS_MAX, Record, Task, is_over};
use super::{accept, act, integrate, kept};
use crate::agents::Cage;
use crate::caller::{STALL_MAX, Teller, hung_up};

/// Characters of a goal and a reason in a list.
const GOAL_CHARS: usize = 120;
const REASON_CHARS: usize = 160;
/// What an answer may take of a line.
const ANSWER_BYTES_MAX: usize = limits::LINE_BYTES_MAX - 2048;
/// Bytes of notes and reasons of candidates in one status.
const SEAT_BYTES_MAX: usize = 1024;

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    match call.request.method.as_str() {
        "task.run" => accept::accept(cage, call),
        "task.list" => {
            let Nothing {} = call.request.params()?;
            Ok(Outcome::Result(json!(list(cage))))
        }
        "task.status" => {
            let TaskRef { id } = call.request.params()?;
            Ok(Outcome::Result(json!(status(cage.tasks.find(&id)?.as_ref()))))
        }
        "task.watch" => watch(cage, call),
        "task.cancel" => steer(cage, &call, What::Cancel),
        "task.pause" => steer(cage, &call, What::Pause),
        "task.resume" => resume(cage, &call),
        "task.remove" => {
            let TaskRef { id } = call.request.params()?;
            cage.tasks.remove(cage, &id)?;
            Ok(Outcome::Result(json!({})))
        }
        "task.export" => export(cage, call),
        "task.integrate" => integrate::integrate(cage, call),
        other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`"))),
    }
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// The newest that fit a line.
fn list(cage: &Cage) -> TaskList {
    let mut bytes = 0;
    let mut tasks = Vec::new();
    for task in cage.tasks.all().into_iter().rev() {
        let both = task.record();
        let summary = TaskSummary {
            id: task.fixed.id.clone(),
            agent: task.fixed.run.agent.clone(),
            goal: cut(&task.fixed.run.goal, GOAL_CHARS),
            state: both.0.state.task(),
            begun_unix_ms: task.fixed.begun_unix_ms,
            ended_unix_ms: both.0.ended_unix_ms,
            reason: cut(&both.0.reason, REASON_CHARS),
        };
        bytes += json!(summary).to_string().len() + 1;
        if bytes > ANSWER_BYTES_MAX {
            break;
        }
        tasks.push(summary);
    }
    TaskList { tasks }
}

/// All of a task that fits a line: of long texts the beginning, of many changed files the first.
pub fn status(task: &Task) -> TaskStatus {
    let both = task.record();
    let (record, now) = &*both;
    let state = &record.state;
    let short = |text: &str| {
        let mut text = text.to_owned();
        text.truncate(text.floor_char_boundary(SEAT_BYTES_MAX));
        text
    };
    let candidates = state.candidates().iter().zip(&record.seats).map(|(one, seat)| CandidateStatus {
        number: one.number(),
        instance: seat.instance.clone(),
        state: state.shown(one),
        reason: short(&seat.reason),
        attempts: one.attempts(),
        recoveries: one.recoveries(),
        score: one.score(),
        note: seat.note.as_deref().map(short),
    });
    let mut spent = record.spent;
    let living: u64 = now.cpu_ms.values().sum();
    spent.cpu_ms = Some(spent.cpu_ms.unwrap_or(0).saturating_add(living));
    let winner = state.winner().and_then(|winner| record.minted.get(&winner.number()));
    let mut status = TaskStatus {
        id: task.fixed.id.clone(),
        agent: task.fixed.run.agent.clone(),
        goal: task.fixed.run.goal.clone(),
        verify: task.fixed.run.verify.clone(),
        protect: task.fixed.run.protect.clone(),
        state: state.task(),
        reason: cut(&record.reason, REASON_CHARS_MAX),
        by: task.fixed.by.clone(),
        begun_unix_ms: task.fixed.begun_unix_ms,
        ended_unix_ms: record.ended_unix_ms,
        base: task.fixed.base,
        candidates: candidates.collect(),
        spent,
        budget: record.budget,
        patch: winner.map(|minted| minted.summary.clone()),
        revision: record.revision,
    };
    drop(both);
    fit(&mut status);
    status
}

fn fit(status: &mut TaskStatus) {
    let size = |status: &TaskStatus| json!(status).to_string().len();
    while size(status) > ANSWER_BYTES_MAX {
        let goal = status.goal.floor_char_boundary(status.goal.len() / 2);
        match &mut status.patch {
            Some(patch) if !patch.files.is_empty() => patch.files.truncate(patch.files.len() / 2),
            _ if !status.goal.is_empty() => status.goal.truncate(goal),
            _ => return, // the rest is bounded when it is accepted
        }
    }
}

fn watch(cage: &Arc<Cage>, mut call: Call<'_>) -> Result<Outcome, RpcError> {
    let TaskRef { id } = call.request.params()?;
    let task = cage.tasks.find(&id)?;
    let gone = |error| RpcError::new(Code::FAILED, format!("the caller went away: {error}"));
    let mut told = None;
    loop {
        let now = status(&task);
        if is_over(now.state) {
            return Ok(Outcome::Result(json!(now)));
        }
        if told != Some(now.revision) {
            told = Some(now.revision);
            call.notify("task", json!(now)).map_err(gone)?;
        }
        if hung_up(call.connection.stream()) {
            return Err(RpcError::new(Code::FAILED, "the caller went away"));
        }
        task.wait(now.revision, Duration::from_secs(1));
    }
}

/// The role that `verdict::step` judges by.
pub fn role(call: &Call<'_>) -> Role {
    call.caller.role().unwrap_or(Role::Reader)
}

fn steer(cage: &Arc<Cage>, call: &Call<'_>, what: What) -> Result<Outcome, RpcError> {
    let TaskSteer { id, reason } = call.request.params()?;
    let task = cage.tasks.find(&id)?;
    let by = call.caller.to_string();
    if reason.chars().count() > limits::REASON_CHARS_MAX || reason.chars().any(char::is_control) {
        return Err(RpcError::new(Code::INVALID_PARAMS, "that is no reason").explained(
            format!("at most {} characters, none of them a control character", limits::REASON_CHARS_MAX),
            "say why, in a sentence",
        ));
    }
    let word = if what == What::Pause { "paused" } else { "cancelled" };
    let why = if reason.is_empty() { format!("{word} by {by}") } else { format!("{word} by {by}: {reason}") };
    // A patch that is attested now counts: what the ledger calls verified is not cancelled.
    let deciding = (what == What::Cancel).then(|| task.decide());
    let actor = Actor::Operator(role(call));
    let steered = task.happen_with(cage.tasks.now_ms(), actor, what, |record, _| record.because(0, why));
    drop(deciding);
    steered.map_err(|refused| illegal(&task, &format!("{refused:?}")))?;
    if what == What::Pause {
        crate::life::record(cage, Event::TaskPaused { task: id, reason, by });
    }
    Ok(Outcome::Result(json!({})))
}

fn illegal(task: &Task, why: &str) -> RpcError {
    let state = format!("{:?}", task.state()).to_lowercase();
    RpcError::new(Code::CONFLICT, format!("{} is {state}", task.fixed.id))
        .explained(format!("not legal now ({why})"), "see task status")
}

fn resume(cage: &Arc<Cage>, call: &Call<'_>) -> Result<Outcome, RpcError> {
    let TaskResume { id, more } = call.request.params()?;
    let task = cage.tasks.find(&id)?;
    let _deciding = task.decide();
    if task.state() != TaskState::Paused {
        return Err(illegal(&task, "only a paused task is resumed"));
    }
    if let Some(spent) = act::lacks(cage, &task, &more) {
        let hours = limits::TASK_WALL_MS_MAX / 3_600_000;
        return Err(RpcError::new(Code::CONFLICT, format!("{id} cannot go on: {spent} is used up"))
            .explained(
                format!("what is used up has more first, shared out evenly; {hours} h of wall time at most"),
                format!("nullctl task resume {id} --budget with as much more as each candidate needs"),
            ));
    }
    // It gives authority: no receipt, no step.
    let by = call.caller.to_string();
    crate::exec::receipt(cage, Event::TaskResumed { task: id, by: by.clone() }, "resume")?;
    act::give_more(cage, &task, &more, &by, role(call));
    let actor = Actor::Operator(role(call));
    let give = |record: &mut Record, _: &mut Now| {
        record.budget = record.raised(&more);
        record.reason.clear();
    };
    let resumed = task.happen_with(cage.tasks.now_ms(), actor, What::Resume, give);
    resumed.map_err(|why| illegal(&task, &format!("{why:?}")))?;
    Ok(Outcome::Result(json!({})))
}

/// A part of a verified task, or what the last verification wrote.
fn export(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let TaskExport { id, what } = call.request.params()?;
    let task = cage.tasks.find(&id)?;
    let exported = give(&task, call, what)?;
    let mut both = task.record();
    // A task may be forgotten sooner then: what somebody has must be all that is left of it, not a look at its output.
    let is_all = what == TaskPart::Patch || both.0.state.winner().is_none();
    if is_all && !both.0.is_exported && is_over(both.0.state.task()) {
        both.0.is_exported = true;
        kept::keep(&task, &both.0);
    }
    Ok(exported)
}

/// Streams a part, with its length and digest as the answer.
fn give(task: &Task, call: Call<'_>, what: TaskPart) -> Result<Outcome, RpcError> {
    let (winner, last) = {
        let both = task.record();
        let winner = both.0.state.winner().map(|winner| winner.number());
        let mut tried = both.0.state.candidates().iter().map(|one| one.number());
        let has_output = |number: &u8| task.dir.join(kept::output_file(*number)).exists();
        (winner, tried.rfind(has_output))
    };
    let none = || {
        RpcError::new(Code::NOT_FOUND, format!("{} has no such thing", task.fixed.id))
            .explained("only a verified task has a patch", "see task status")
    };
    let file = match (what, winner, last) {
        (TaskPart::Patch, Some(winner), _) => kept::claim_file(winner),
        (TaskPart::Diff, Some(winner), _) => kept::diff_file(winner),
        (TaskPart::Output, Some(winner), _) | (TaskPart::Output, None, Some(winner)) => {
            kept::output_file(winner)
        }
        (TaskPart::Attestation, Some(winner), _) => {
            let envelope = task.record().0.minted.get(&winner).map(|minted| minted.envelope.clone());
            return stream(call, envelope.ok_or_else(none)?.as_bytes());
        }
        _ => return Err(none()),
    };
    let file = File::open(task.dir.join(file))
        .map_err(|error| RpcError::new(Code::FAILED, format!("{}: {error}", task.fixed.id)))?;
    stream(call, file)
}

/// Streams bytes as standard output.
pub fn stream(call: Call<'_>, mut bytes: impl Read) -> Result<Outcome, RpcError> {
    let exported = pour(&call, &mut bytes)?;
    Ok(Outcome::Result(json!(exported)))
}

/// The same, without the answer.
pub fn pour(call: &Call<'_>, bytes: &mut dyn Read) -> Result<TaskExported, RpcError> {
    let failed = |error: &dyn std::fmt::Display| RpcError::new(Code::FAILED, error.to_string());
    let mut teller = Teller::new(call, STALL_MAX)?;
    let (mut hash, mut total, mut buffer) = (Sha256::new(), 0, vec![0; 32 * 1024]);
    loop {
        let got = bytes.read(&mut buffer).map_err(|error| failed(&error))?;
        if got == 0 {
            break;
        }
        let part = buffer.get(..got).unwrap_or_default();
        hash.update(part);
        total += got as u64;
        teller.output(Stream::Stdout, part).map_err(|error| failed(&error))?;
    }
    Ok(TaskExported { bytes: total, sha256: Digest(hash.finalize().into()) })
}
