//! `task.integrate`: an approved step takes a verified patch, by value, and gives it out once.
//!
//! Must hold: a question is asked each time, and answered by somebody; the receipt is durable before the first byte goes out; the patch
//! that goes out is the one that the ledger says was verified. Must never: give a patch out by an approval of another step.

use abi::authority::{Call as Judged, Operation, Target};
use abi::control::{Integrated, IntegrationStep, TaskIntegrate, TaskState};
use abi::door::{Call, Outcome};
use abi::exposure::Exposure;
use abi::ledger::Event;
use abi::limits;
use abi::rpc::{Code, RpcError};
use serde_json::json;
use std::fs::File;
use std::sync::Arc;
use verdict::approvals::Actor as Asker;
use verdict::decide::{Ruling, operator_step};
use verdict::patch::{self, Recorded, VerifiedPatch};
use verdict::step::{Actor, What};

use super::base::Base;
use super::task::Task;
use super::{calls, candidate, claim, kept, records};
use crate::agents::Cage;
use crate::caller::hung_up;
use crate::desk::questions::{self, Answer, Shown};

/// Bytes of each name in a step.
const STEP_BYTES_MAX: usize = 256;

/// Answers the call.
pub fn integrate(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let TaskIntegrate { id, step } = call.request.params()?;
    let task = cage.tasks.find(&id)?;
    let (operation, words) = in_words(&step)?;
    may_go(&task)?;
    let patch = verified(&task)?;
    let proof = patch.proof();
    let judged = Judged {
        operation,
        tool: operation.word().into(),
        target: Target::Arguments,
        arguments: patch::step_arguments(&proof, &words),
        pinned: proof.patch(),
        flows: if task.fixed.run.is_public { Exposure::NONE } else { Exposure::PRIVATE_DATA },
        sealed: false,
    };
    let by = call.caller.to_string();
    let asked = Asked {
        ruling: operator_step(&judged),
        asker: Asker::Operator { role: calls::role(&call), name: &by },
        words: &words,
    };
    let number = ask(cage, &task, &call, &asked)?;
    let (given, mut records) = take(cage, &task, &call, patch, &asked, number)?;
    kept::tidy(&task);
    if let Err(error) = calls::pour(&call, &mut records) {
        return Err(cut_short(&task, &words, &error));
    }
    Ok(Outcome::Result(json!(given)))
}

/// Whether its patch has not gone anywhere yet.
fn may_go(task: &Task) -> Result<(), RpcError> {
    let state = task.state();
    if state == TaskState::Verified {
        return Ok(());
    }
    let why = format!("{} is {}", task.fixed.id, format!("{state:?}").to_lowercase());
    Err(RpcError::new(Code::CONFLICT, why).explained(
        "only a verified patch goes anywhere, and once",
        "see task status; task export gives the records of one that was integrated",
    ))
}

/// What the step is, and how it is shown.
fn in_words(step: &IntegrationStep) -> Result<(Operation, String), RpcError> {
    let (operation, names, words) = match step {
        IntegrationStep::Commit { branch } => {
            (Operation::GitCommit, vec![branch], format!("commit to branch {branch}"))
        }
        IntegrationStep::Push { remote, branch } => {
            (Operation::GitPush, vec![remote, branch], format!("push branch {branch} to {remote}"))
        }
        IntegrationStep::PullRequest { remote, branch, base, forge } => (
            Operation::CreatePr,
            vec![remote, branch, base, forge],
            format!("push branch {branch} to {remote}, and open a pull request into {base} at {forge}"),
        ),
    };
    let plain = |name: &&String| {
        !name.trim().is_empty() && name.len() <= STEP_BYTES_MAX && !name.chars().any(char::is_control)
    };
    if !names.iter().all(plain) {
        let rule = format!("each name is 1 to {STEP_BYTES_MAX} bytes, without control characters");
        return Err(RpcError::new(Code::INVALID_PARAMS, "that is no step")
            .explained(rule, "name each branch and where it goes"));
    }
    Ok((operation, words))
}

/// The patch, whole: the one that was minted, or, after cage was begun again, made anew from cage's disk and what was attested.
fn verified(task: &Task) -> Result<VerifiedPatch, RpcError> {
    let failed = |why: String| {
        RpcError::new(Code::FAILED, format!("the patch of {} cannot be given out: {why}", task.fixed.id))
            .explained("the patch on disk must be the one that was verified", "run the task again")
    };
    let (winner, facts) = {
        let mut both = task.record();
        let (record, now) = &mut *both;
        let winner = record.state.winner().map(|winner| winner.number());
        let winner = winner.ok_or_else(|| failed("nobody won".into()))?;
        if let Some(patch) = now.patches.remove(&winner) {
            return Ok(patch);
        }
        let minted = record.minted.get(&winner).ok_or_else(|| failed("its facts are missing".into()))?;
        (winner, minted.facts.clone())
    };
    let base = Base::read(&task.dir.join(kept::TREE)).map_err(failed)?;
    let raw =
        std::fs::read(task.dir.join(kept::claim_file(winner))).map_err(|error| failed(error.to_string()))?;
    let (claimed, _) = records::claimed(claim::records(&raw).map_err(|error| failed(error.to_string()))?);
    let protect = candidate::protect(task).map_err(failed)?;
    let changes = patch::check(&base.tree, claimed, &protect).map_err(|error| failed(error.to_string()))?;
    let recorded = Recorded { base: facts.base, patch: facts.patch, result: facts.result };
    patch::reminted(changes, &recorded).map_err(|error| failed(error.to_string()))
}

/// A step as it is asked for.
struct Asked<'a> {
    ruling: Ruling<'a>,
    asker: Asker<'a>,
    words: &'a str,
}

/// Asks, and waits for a yes: the question's number.
fn ask(cage: &Cage, task: &Task, call: &Call<'_>, asked: &Asked<'_>) -> Result<u64, RpcError> {
    let (shown, is_cut) = diff(task);
    let patch = asked.ruling.call().pinned;
    let what = format!("{}: the verified patch of {}, {patch}", asked.words, task.fixed.id);
    let shown = Shown { instance: None, task: Some(task.fixed.id.clone()), what, shown, is_cut };
    let number = cage.questions.ask(asked.asker, task.fixed.id.as_str(), &asked.ruling, shown)?;
    let stream = call.connection.stream();
    let denied = |why: String| {
        RpcError::new(Code::DENIED, why)
            .explained("each step with a verified patch is approved by somebody", "see nullctl approvals")
    };
    match cage.questions.wait(number, &|| !hung_up(stream)) {
        Answer::Approved { .. } => Ok(number),
        Answer::Denied { by, reason } => Err(denied(format!("{by} denied it: {reason}"))),
        Answer::Withdrawn => Err(denied("the question was withdrawn".into())),
    }
}

/// What people see of the patch, as much as a question shows.
fn diff(task: &Task) -> (String, bool) {
    let winner = task.record().0.state.winner().map(|winner| winner.number());
    let text = winner.and_then(|winner| std::fs::read(task.dir.join(kept::diff_file(winner))).ok());
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    let end = text.floor_char_boundary(limits::APPROVAL_SHOWN_BYTES_MAX.min(text.len()));
    (text.get(..end).unwrap_or_default().to_owned(), end < text.len())
}

/// Takes the patch for good: looks whether it may still go and can, uses the approval up, and has the receipt. What fails before that
/// leaves the patch for another step.
fn take(
    cage: &Cage,
    task: &Task,
    call: &Call<'_>,
    patch: VerifiedPatch,
    asked: &Asked<'_>,
    number: u64,
) -> Result<(Integrated, File), RpcError> {
    let failed = |why: String| {
        RpcError::new(Code::FAILED, why).explained(
            "every effect leaves a receipt first; the patch went nowhere",
            "ask for the step again, and see nullctl system doctor",
        )
    };
    let _deciding = task.decide();
    may_go(task)?;
    let winner = task.record().0.state.winner().map(|winner| winner.number()).unwrap_or_default();
    let records = File::open(task.dir.join(kept::claim_file(winner)))
        .map_err(|error| failed(format!("the records of {}: {error}", task.fixed.id)))?;
    if hung_up(call.connection.stream()) {
        return Err(failed("the caller went away".into()));
    }
    let owner = task.fixed.id.as_str();
    let spent =
        cage.questions.spend(asked.asker, number, owner, &asked.ruling).map_err(questions::refused)?;
    let integration = patch::integrate(patch, spent, owner, asked.words)
        .map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
    let (proof, approval) = (integration.proof(), questions::name(integration.approval())?);
    let event = Event::TaskIntegrated {
        task: task.fixed.id.clone(),
        patch: proof.patch(),
        step: asked.words.to_owned(),
        approval: approval.clone(),
        by: format!("{}, approved by {}", call.caller, integration.by()),
    };
    let receipt =
        cage.ledger.append(event).map_err(|error| failed(format!("no receipt, so no patch: {error}")))?;
    let actor = Actor::Operator(calls::role(call));
    let what = What::Integrated { proof };
    task.happen_with(cage.tasks.now_ms(), actor, what, |record, _| record.because(0, asked.words)).map_err(
        |why| RpcError::new(Code::INTERNAL, format!("{owner} was verified, and is not ({why:?})")),
    )?;
    Ok((Integrated { receipt: receipt.seq, approval, patch: proof.patch() }, records))
}

/// The step has its receipt, and not all of the patch went out.
fn cut_short(task: &Task, words: &str, error: &RpcError) -> RpcError {
    let why = format!("{words}: has its receipt, but not all of the patch went out: {error}");
    let mut both = task.record();
    // Who asked may be gone: people find it where they look.
    both.0.because(0, format!("{why}; task export gives it"));
    kept::keep(task, &both.0);
    RpcError::new(Code::FAILED, why)
        .explained("a patch is given out once", "task export gives the same records; commit them by hand")
}
