//! `task.run`: from an operator's words and a tar to a task that has its receipt.
//!
//! Must hold: nothing is answered before `task_accepted` is durable; what was not accepted leaves nothing behind.

use abi::authority::Amounts;
use abi::control::{Progress, TaskRef, TaskRun};
use abi::door::{Call, Outcome};
use abi::guest::GUEST_UID;
use abi::ids::{Digest, Name};
use abi::ledger::Event;
use abi::limits;
use abi::manifest::{Manifest, RootfsRef};
use abi::rpc::{Code, RpcError};
use abi::tools::TOOLS_UID;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use verdict::patch::Protect;
use verdict::step::{Actor, State, Terms, What};

use super::base::{Base, Owner};
use super::kept;
use super::task::{Fixed, Now, Record, Seat, Task};
use crate::agents::{Cage, find};
use crate::manifests::{self, Loaded};
use crate::store::Hold;

/// Bytes of all commands and patterns of a task together: what its receipts and its status have room for.
const WORDS_BYTES_MAX: usize = 6 * 1024;
/// Bytes of what the operator says the tree is.
const SOURCE_BYTES_MAX: usize = 256;

fn invalid(what: impl Into<String>, rule: impl Into<String>, remedy: impl Into<String>) -> RpcError {
    RpcError::new(Code::INVALID_PARAMS, what.into()).explained(rule, remedy)
}

fn failed(what: impl std::fmt::Display) -> RpcError {
    RpcError::new(Code::FAILED, what.to_string())
}

/// A task's directory, removed unless the task was accepted.
struct Coming(Option<PathBuf>);

impl Drop for Coming {
    fn drop(&mut self) {
        if let Some(dir) = &self.0
            && let Err(error) = fs::remove_dir_all(dir)
        {
            abi::log::warning("task_files_not_removed", &[("path", &dir.display()), ("error", &error)]);
        }
    }
}

/// Answers the call.
pub fn accept(cage: &Arc<Cage>, mut call: Call<'_>) -> Result<Outcome, RpcError> {
    let run: TaskRun = call.request.params()?;
    let by = call.caller.to_string();
    check(&run)?;
    let loaded = find(manifests::load(&cage.places.config), &run.agent)?;
    let room = cage.tasks.room()?;
    let (hold, rootfs) = rootfs(cage, &loaded.manifest, &mut call)?;
    let (number, dir) = cage.tasks.next().map_err(failed)?;
    let mut coming = Coming(Some(dir.clone()));
    let base = receive(&dir, &run, &loaded.manifest, &mut call)?;
    let task = begin(cage, number, dir, run, by, loaded, rootfs, base, hold)?;
    coming.0 = None;
    cage.tasks.add(number, task.clone());
    drop(room);
    task.work(cage).map_err(failed)?;
    let begun = task.happen(cage.tasks.now_ms(), Actor::Cage, What::Accepted);
    begun.map_err(|why| failed(format!("the task did not begin: {why:?}")))?;
    Ok(Outcome::Result(json!(TaskRef { id: task.fixed.id.clone() })))
}

/// The terms of a task, before anything is received.
pub fn check(run: &TaskRun) -> Result<(), RpcError> {
    let commands = || run.verify.iter().chain(run.score.iter().flatten());
    let program = |command: &[String]| {
        command.first().is_some_and(|p| !p.is_empty() && !p.starts_with('-') && !p.contains('='))
    };
    if !program(&run.verify) || run.score.as_ref().is_some_and(|score| !program(score)) {
        let rule = "a command begins with a program, by a path or by its name";
        return Err(invalid("the verify command is not a command", rule, "write for example: cargo test"));
    }
    let is_long = |command: &[String]| command.len() >= limits::COMMAND_ARGS_MAX; // one more may come in front
    if commands().any(|word| word.contains('\0') || word.len() > limits::COMMAND_ARG_BYTES_MAX)
        || is_long(&run.verify)
        || run.score.as_ref().is_some_and(|score| is_long(score))
    {
        let rule = format!(
            "less than {} parts of at most {} bytes, without NUL",
            limits::COMMAND_ARGS_MAX,
            limits::COMMAND_ARG_BYTES_MAX
        );
        return Err(invalid("a command is too long", rule, "put it into a program of the rootfs"));
    }
    let patterns = run.protect.iter().chain(&run.permit).map(|pattern| pattern.as_str().len() + 4);
    let words: usize = commands().map(|word| word.len() + 4).chain(patterns).sum();
    if words > WORDS_BYTES_MAX {
        let rule = format!("at most {WORDS_BYTES_MAX} bytes of commands and patterns together");
        return Err(invalid(format!("{words} bytes of commands and patterns"), rule, "use shorter patterns"));
    }
    let all: Vec<String> = commands().cloned().collect();
    Protect::new(&run.protect, &run.permit, &all).map_err(|error| {
        invalid(error.to_string(), "patterns of a task are of its tree", "like /work/tests/**")
    })?;
    let plain =
        |text: &str| !text.chars().any(|c| c.is_control() && !"\n\t".contains(c)) && !text.trim().is_empty();
    if !plain(&run.goal) || run.goal.len() > limits::GOAL_BYTES_MAX {
        let rule = format!(
            "a goal is 1 to {} bytes, no control characters but line ends and tabs",
            limits::GOAL_BYTES_MAX
        );
        return Err(invalid("that is no goal", rule, "say what is to be done"));
    }
    if run.source.as_ref().is_some_and(|s| s.len() > SOURCE_BYTES_MAX || s.chars().any(char::is_control)) {
        let rule = format!("at most {SOURCE_BYTES_MAX} bytes, no control characters");
        return Err(invalid("the tree's source is too long", rule, "name the commit"));
    }
    numbers(run)
}

fn numbers(run: &TaskRun) -> Result<(), RpcError> {
    let bounds: [(&str, u64, u64); 5] = [
        ("tree_bytes", run.tree_bytes, limits::TREE_BYTES_MAX),
        ("candidates", run.candidates.into(), limits::CANDIDATES_MAX.into()),
        ("attempts", run.attempts.unwrap_or(1).into(), limits::ATTEMPTS_MAX.into()),
        ("verify_ms", run.verify_ms.unwrap_or(1), limits::VERIFY_WALL_MS_MAX),
        ("budget.wall_ms", run.budget.wall_ms.unwrap_or(1), limits::TASK_WALL_MS_MAX),
    ];
    if let Some((name, value, most)) =
        bounds.into_iter().find(|(_, value, most)| !(1..=*most).contains(value))
    {
        return Err(invalid(format!("{name} is {value}"), format!("1 to {most}"), "see docs/tasks.md"));
    }
    let rooms = [
        ("budget.memory_mib", run.budget.memory_mib, limits::MEMORY_MIB_MIN),
        ("budget.disk_mib", run.budget.disk_mib, limits::DISK_MIB_MIN),
    ];
    let too_little = |(name, value, least): (_, Option<u64>, u32)| {
        let value = value.filter(|value| *value < least.into())?;
        Some(invalid(format!("{name} is {value}"), format!("at least {least}"), "no VM begins with less"))
    };
    match rooms.into_iter().find_map(too_little) {
        Some(refused) => Err(refused),
        None => Ok(()),
    }
}

/// The agent's rootfs as it is now, held for the task.
fn rootfs(cage: &Cage, manifest: &Manifest, call: &mut Call<'_>) -> Result<(Hold, Digest), RpcError> {
    if let RootfsRef::Name(name) = &manifest.rootfs {
        let mut told = None;
        let waited = cage.imports.wait(name, &mut |progress| {
            if let Some(progress) = progress.filter(|progress| told.as_ref() != Some(progress)) {
                told = Some(progress.clone());
                return call.notify("progress", json!(progress)).is_ok();
            }
            true
        });
        waited.map_err(|why| failed(format!("rootfs `{name}`: {why}")))?;
    }
    let held = cage.store.hold(&manifest.rootfs, &manifest.name, "has a task");
    let (hold, digest, _, _) = held.map_err(failed)?;
    Ok((hold, digest))
}

/// Takes the tree off the connection and makes the candidates' disk of it.
fn receive(dir: &Path, run: &TaskRun, manifest: &Manifest, call: &mut Call<'_>) -> Result<Base, RpcError> {
    let tell = |call: &mut Call<'_>, stage: &str| {
        let progress = Progress { stage: stage.into(), done: None, total: None };
        call.notify("progress", json!(progress))
            .map_err(|error| failed(format!("the caller went away: {error}")))
    };
    let patience = Duration::from_millis(limits::CALLER_STALL_MS_MAX);
    call.connection.stream().set_read_timeout(Some(patience)).map_err(failed)?;
    call.notify("ready", json!({})).map_err(failed)?;
    let tar = dir.join(kept::TREE);
    let mut file = File::create_new(&tar).map_err(failed)?;
    let got = io::copy(&mut call.connection.take(run.tree_bytes), &mut file).map_err(failed)?;
    if got < run.tree_bytes {
        return Err(failed(format!("{got} of {} bytes of the tree came", run.tree_bytes)));
    }
    file.sync_all().map_err(failed)?;
    tell(call, "tree")?;
    let wrong =
        |why: String| invalid(why, "a tree is a tar of files, directories and links", "see docs/tasks.md");
    let base = Base::read(&tar).map_err(wrong)?;
    tell(call, "disk")?;
    base.write(&dir.join(kept::BASE_DISK), owner(manifest)).map_err(failed)?;
    Ok(base)
}

/// Whose the tree is in a candidate's guest.
fn owner(manifest: &Manifest) -> Owner {
    match manifest.authority {
        Some(_) => Owner { uid: TOOLS_UID, mode: 0o700 },
        None => Owner { uid: GUEST_UID, mode: 0o755 },
    }
}

#[expect(clippy::too_many_arguments, reason = "all that a task is made of, once")]
fn begin(
    cage: &Cage,
    number: u64,
    dir: PathBuf,
    run: TaskRun,
    by: String,
    loaded: Loaded,
    rootfs: Digest,
    base: Base,
    hold: Hold,
) -> Result<Arc<Task>, RpcError> {
    let id: Name = format!("t{number}").parse().map_err(failed)?;
    let manifest = Manifest { rootfs: RootfsRef::Digest(rootfs), ..loaded.manifest };
    let fixed = Fixed {
        id: id.clone(),
        base: base.tree.digest(),
        manifest_digest: loaded.digest,
        rootfs,
        begun_unix_ms: crate::output::unix_ms(),
        by: by.clone(),
        manifest,
        run,
    };
    let terms = Terms {
        base: fixed.base,
        candidates: fixed.run.candidates,
        attempts: fixed.run.attempts.unwrap_or(limits::ATTEMPTS_DEFAULT),
        is_scored: fixed.run.score.is_some(),
    };
    let wall_ms = fixed.run.budget.wall_ms.or(Some(limits::TASK_WALL_MS_DEFAULT));
    let record = Record {
        state: State::new(terms),
        revision: 0,
        reason: String::new(),
        ended_unix_ms: None,
        seats: vec![Seat::default(); fixed.run.candidates.into()],
        budget: Amounts { wall_ms, ..fixed.run.budget },
        spent: Amounts::default(),
        is_told: false,
        is_exported: false,
        minted: Default::default(),
    };
    kept::begin(&dir, &fixed).map_err(failed)?;
    let event = Event::TaskAccepted {
        task: id,
        agent: fixed.run.agent.clone(),
        goal: Digest(Sha256::digest(fixed.run.goal.as_bytes()).into()),
        base: fixed.base,
        command: fixed.run.verify.clone(),
        by,
    };
    crate::exec::receipt(cage, event, "task")?;
    let counted_ms = cage.tasks.now_ms();
    let now = Now { base: Some(Arc::new(base)), hold: Some(hold), counted_ms, ..Now::default() };
    Ok(Arc::new(Task::new(fixed, dir, record, now)))
}
