//! Tasks on disk: `/state/cage/tasks/tN/`.
//!
//! `fixed.json` is written once, `record.json` whole with each change; `tree.tar` and `base.squashfs` are there until the task is over;
//! `claim-C` are the records of candidate C's last claim, `diff-C` and `output-C` what people get beside them. Must hold: a task that was
//! answered for is found again with what was decided. Must never: take a task for another's after a power cut (ids never come twice).

use abi::control::TaskState;
use abi::log;
use std::fs;
use std::io;
use std::path::Path;
use verdict::step::{Actor, What};

use super::base::Base;
use super::task::{Fixed, Now, Record, Task, is_over};
use crate::agents::write_whole;

/// The tar of the base.
pub const TREE: &str = "tree.tar";
/// The disk of the base.
pub const BASE_DISK: &str = "base.squashfs";
const FIXED: &str = "fixed.json";
const RECORD: &str = "record.json";

/// Records of a candidate's last claim.
pub fn claim_file(candidate: u8) -> String {
    format!("claim-{candidate}")
}

/// Its diff.
pub fn diff_file(candidate: u8) -> String {
    format!("diff-{candidate}")
}

/// What the verify command wrote.
pub fn output_file(candidate: u8) -> String {
    format!("output-{candidate}")
}

/// Writes what is fixed.
pub fn begin(dir: &Path, fixed: &Fixed) -> io::Result<()> {
    write_whole(&dir.join(FIXED), &serde_json::to_vec(fixed)?)
}

/// Writes what changes. That it could not be written is told; what is done next has its receipt in the ledger all the same.
pub fn keep(task: &Task, record: &Record) {
    let written = serde_json::to_vec(record)
        .map_err(io::Error::from)
        .and_then(|text| write_whole(&task.dir.join(RECORD), &text));
    if let Err(error) = written {
        log::error("task_not_recorded", &[("task", &task.fixed.id), ("error", &error)]);
    }
}

/// A task of an earlier life of cage; none if it never got its record.
pub fn load(dir: &Path) -> io::Result<Option<Task>> {
    let read = |name| match fs::read(dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(fixed), Some(record)) = (read(FIXED)?, read(RECORD)?) else { return Ok(None) };
    let (fixed, record): (Fixed, Record) =
        (serde_json::from_slice(&fixed)?, serde_json::from_slice(&record)?);
    if record.state.task() == TaskState::Accepted {
        return Ok(None); // nobody was told of it
    }
    let mut now = Now::default();
    if !is_over(record.state.task()) {
        let base = Base::read(&dir.join(TREE)).map_err(io::Error::other)?;
        if base.tree.digest() != fixed.base {
            return Err(io::Error::other("its base tree is not the one that was accepted"));
        }
        now.base = Some(std::sync::Arc::new(base));
    }
    Ok(Some(Task::new(fixed, dir.to_owned(), record, now)))
}

/// A task that is over needs neither its base's disk nor, but for an integration, the base; of claims only the winner's.
pub fn tidy(task: &Task) {
    let (state, winner) = {
        let both = task.record();
        (both.0.state.task(), both.0.state.winner().map(|winner| winner.number()))
    };
    let keeps = |name: &str| {
        let of = |file: fn(u8) -> String| winner.is_some_and(|winner| file(winner) == name);
        let last_words = name.starts_with("output-") && winner.is_none();
        [FIXED, RECORD].contains(&name)
            || (name == TREE && state == TaskState::Verified)
            || [claim_file, diff_file, output_file].into_iter().any(of)
            || last_words
    };
    let entries = fs::read_dir(&task.dir).into_iter().flatten().filter_map(Result::ok);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !keeps(&name)
            && let Err(error) = fs::remove_file(entry.path())
        {
            log::warning("task_file_not_removed", &[("path", &entry.path().display()), ("error", &error)]);
        }
    }
}

/// Tells a task of an earlier life that every VM is gone.
pub fn recover(task: &Task, now_ms: u64) {
    // Refused: it is over.
    let _ = task.happen(now_ms, Actor::Cage, What::Restarted);
}
