//! `task`: goals that are done when a fresh VM proved it.

mod apply;
mod attest;
mod begin;
mod change;
mod export;
#[cfg(feature = "forge")]
mod forge;
mod integrate;

pub use apply::apply;
pub use attest::verify_attestation;
pub use begin::run;
pub use export::{attest, export};
pub use integrate::integrate;

use abi::control::{
    CandidateStatus, Nothing, PatchSummary, TaskList, TaskRef, TaskResume, TaskState, TaskStatus, TaskSteer,
};
use serde_json::Value;

use super::{amounts, id, note, word};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::{Link, typed};
use crate::print::{Table, ago, facts, size, span, visible};
use crate::words;

pub fn list(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("task.list", &Nothing {})? else { return Ok(0) };
    let list: TaskList = typed(&result)?;
    let mut table = Table::new(&["TASK", "AGENT", "STATE", "BEGAN", "GOAL", "REASON"]);
    for task in &list.tasks {
        let goal: String = task.goal.chars().take(60).collect();
        table.row(&[
            task.id.as_str(),
            task.agent.as_str(),
            &word(&task.state),
            &ago(task.begun_unix_ms),
            &goal,
            &task.reason,
        ]);
    }
    say(&table.render()).map(|()| 0)
}

pub fn show(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    if let Some(result) = context.call("task.status", &task(given)?)? {
        say(&in_words(&typed(&result)?))?;
    }
    Ok(0)
}

pub fn watch(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    follow(context, &task(given)?)
}

pub fn cancel(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    steer(context, given, "task.cancel", "is cancelled")
}

pub fn pause(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    steer(context, given, "task.pause", "stands still")
}

fn steer(context: &Context, given: &Arguments, method: &str, done: &str) -> Result<u8, Failure> {
    let reason = given.value("reason").unwrap_or_default().to_owned();
    let params = TaskSteer { id: id(given.required(0))?, reason };
    if context.call(method, &params)?.is_some() {
        say(&format!("{} {done}\n", params.id))?;
    }
    Ok(0)
}

pub fn resume(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params =
        TaskResume { id: id(given.required(0))?, more: amounts::of_option(given, amounts::OF_MORE)? };
    if context.call("task.resume", &params)?.is_some() {
        say(&format!("{} goes on\n", params.id))?;
    }
    Ok(0)
}

pub fn remove(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = task(given)?;
    if context.call("task.remove", &params)?.is_some() {
        say(&format!("{} and its files are gone; the ledger keeps what happened\n", params.id))?;
    }
    Ok(0)
}

fn task(given: &Arguments) -> Result<TaskRef, Failure> {
    Ok(TaskRef { id: id(given.required(0))? })
}

/// How a task stands, as the node says.
fn status_of(context: &Context, task: &TaskRef) -> Result<TaskStatus, Failure> {
    typed(&context.ask("task.status", task, Silence::Ordinary)?.result(&mut |_| Ok(()))?)
}

/// What was verified, with the status it is part of.
fn verified(context: &Context, task: &TaskRef) -> Result<(TaskStatus, PatchSummary), Failure> {
    let status = status_of(context, task)?;
    match (&status.patch, status.state) {
        (Some(patch), TaskState::Verified | TaskState::Integrated) => Ok((status.clone(), patch.clone())),
        _ => Err(Failure::local(
            status::FAILED,
            format!("{} is {}: {}", task.id, word(&status.state), status.reason),
            "only what a fresh VM verified is given out",
            format!("nullctl task watch {}", task.id),
        )),
    }
}

/// Shows a task until it is over; the exit status says whether it was verified.
fn follow(context: &Context, task: &TaskRef) -> Result<u8, Failure> {
    let mut link: Link = context.ask("task.watch", task, Silence::Unbounded)?;
    let mut last = String::new();
    let mut show = |status: &TaskStatus| {
        let now = line(status);
        if now != last {
            say(&now)?;
            last = now;
        }
        Ok(())
    };
    let result = link.result(&mut |request| {
        if context.json {
            return context.note(request);
        }
        note::<TaskStatus>(request, "task")?.map_or(Ok(()), |status| show(&status))
    })?;
    let end: TaskStatus = typed(&result)?;
    if context.result_or_json(result)?.is_some() {
        show(&end)?;
        say(&in_words(&end))?;
    }
    Ok(if matches!(end.state, TaskState::Verified | TaskState::Integrated) { 0 } else { status::FAILED })
}

/// What changed, on a line.
fn line(status: &TaskStatus) -> String {
    let candidates = status.candidates.iter().map(|one| {
        let reason = if one.reason.is_empty() { String::new() } else { format!(" ({})", one.reason) };
        format!("c{} {}{reason}", one.number, word(&one.state))
    });
    let candidates: Vec<String> = candidates.collect();
    let reason = if status.reason.is_empty() { String::new() } else { format!(" ({})", status.reason) };
    let text = format!("{} {}{reason}: {}", status.id, word(&status.state), candidates.join(", "));
    format!("{}\n", visible(text.trim_end_matches([' ', ':'])))
}

fn in_words(status: &TaskStatus) -> String {
    let took = status.ended_unix_ms.map(|end| span(end.saturating_sub(status.begun_unix_ms)));
    let mut pairs = vec![
        ("task", status.id.to_string()),
        ("agent", status.agent.to_string()),
        ("state", word(&status.state)),
        ("reason", status.reason.clone()),
        ("goal", status.goal.clone()),
        ("verify", words::shown(&status.verify)),
        ("by", status.by.clone()),
        (
            "began",
            format!(
                "{}{}",
                ago(status.begun_unix_ms),
                took.map(|t| format!(", took {t}")).unwrap_or_default()
            ),
        ),
        ("base", status.base.to_string()),
        ("spent", amounts::in_words(&status.spent)),
        ("budget", amounts::in_words(&status.budget)),
    ];
    pairs.extend(status.protect.iter().map(|pattern| ("protect", pattern.to_string())));
    let mut text = facts(&pairs);
    let mut table = Table::new(&["CANDIDATE", "STATE", "CAGE", "ATTEMPTS", "RECOVERIES", "SCORE", "REASON"]);
    status.candidates.iter().for_each(|candidate| row(&mut table, candidate));
    text.push('\n');
    text.push_str(&table.render());
    for candidate in &status.candidates {
        if let Some(note) = &candidate.note {
            text.push_str(&format!("\nc{} says, which proves nothing:\n", candidate.number));
            text.push_str(&crate::print::quoted(note, "  | "));
        }
    }
    if let Some(patch) = &status.patch {
        text.push('\n');
        text.push_str(&facts(&[
            ("verified patch", patch.digest.to_string()),
            ("of candidate", patch.candidate.to_string()),
            ("tree with it", patch.result.to_string()),
            ("receipt", patch.receipt.to_string()),
        ]));
        for file in &patch.files {
            let (change, path) = (visible(&file.change), visible(&file.path));
            text.push_str(&format!("  {change:<8} {path} ({})\n", size(file.bytes)));
        }
    }
    text
}

fn row(table: &mut Table, candidate: &CandidateStatus) {
    let dash = || "-".to_owned();
    table.row(&[
        &candidate.number.to_string(),
        &word(&candidate.state),
        &candidate.instance.as_ref().map_or_else(dash, ToString::to_string),
        &candidate.attempts.to_string(),
        &candidate.recoveries.to_string(),
        &candidate.score.map_or_else(dash, |score| score.to_string()),
        &candidate.reason,
    ]);
}

/// Prints a result of nullctl's own making.
fn told(context: &Context, json: &Value, words: &str) -> Result<u8, Failure> {
    if context.json { say(&format!("{json}\n")) } else { say(words) }.map(|()| 0)
}
