//! The methods about what tools may do: `agent.tighten`, `exposure.*`, `approval.*`.

use abi::control::{Approval, ApprovalDecide, ApprovalList, Approvals, Declassify, ExposureOf, Tighten};
use abi::door::{Call, Outcome};
use abi::ids::AgentName;
use abi::limits;
use abi::rpc::{Code, RpcError};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

use super::Desk;
use crate::agent::Agent;
use crate::agents::Cage;
use crate::caller::hung_up;
use crate::steer::checked_reason;

/// How often a follower's connection is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let by = call.caller.to_string();
    match call.request.method.as_str() {
        "agent.tighten" => {
            let Tighten { agent, rules } = call.request.params()?;
            for desk in bound_by(cage, &agent)? {
                desk.tighten(&rules, &by)?;
            }
        }
        "exposure.status" => {
            let ExposureOf { agent } = call.request.params()?;
            return Ok(Outcome::Result(json!(desk(cage, &agent)?.status())));
        }
        "exposure.declassify" => {
            let Declassify { agent, arguments, reason } = call.request.params()?;
            desk(cage, &agent)?.declassify(arguments, &by, &checked_reason(reason)?)?;
        }
        "approval.list" => return list(cage, call),
        "approval.decide" => {
            let ApprovalDecide { id, approve, reason } = call.request.params()?;
            cage.questions.decide(call.caller, &id, approve, &checked_reason(reason)?)?;
        }
        other => {
            return Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`")));
        }
    }
    Ok(Outcome::Result(json!({})))
}

/// The desk of an agent's present life.
pub fn desk(cage: &Cage, name: &AgentName) -> Result<Arc<Desk>, RpcError> {
    let agent = cage.named(name)?;
    let desk = agent.facts().desk.clone();
    desk.ok_or_else(|| {
        RpcError::new(Code::CONFLICT, format!("{name} has no life with tools")).explained(
            "an agent has tools while it runs, and when its manifest has [authority]",
            "start it, or give its manifest [authority]",
        )
    })
}

/// The desks of what may do no more than an agent may: its own life's, and those of candidates that work for it.
fn bound_by(cage: &Cage, name: &AgentName) -> Result<Vec<Arc<Desk>>, RpcError> {
    let of_candidate = |agent: Arc<Agent>| {
        let facts = agent.facts();
        let works_for_it = facts.errand.as_ref().is_some_and(|errand| errand.works_for() == Some(name));
        facts.desk.clone().filter(|_| works_for_it)
    };
    let mut desks: Vec<_> = cage.known_agents().into_iter().filter_map(of_candidate).collect();
    match desk(cage, name) {
        Ok(own) => desks.push(own),
        Err(none) if desks.is_empty() => return Err(none),
        Err(_) => {} // its candidates alone live
    }
    Ok(desks)
}

fn list(cage: &Cage, mut call: Call<'_>) -> Result<Outcome, RpcError> {
    let ApprovalList { follow } = call.request.params()?;
    let mut from = 0;
    while follow && !hung_up(call.connection.stream()) {
        let (questions, next) = cage.questions.follow(from, LOOK);
        for question in questions {
            call.notify("approval", json!(question))
                .map_err(|error| RpcError::new(Code::FAILED, format!("the caller went away: {error}")))?;
        }
        from = next;
    }
    Ok(Outcome::Result(json!(Approvals { approvals: fitting(cage.questions.list()) })))
}

/// As many as a line has room for, oldest first; before one is left out, the newest lose what they show.
fn fitting(mut approvals: Vec<Approval>) -> Vec<Approval> {
    let length =
        |approval: &Approval| serde_json::to_string(approval).map_or(usize::MAX, |text| text.len() + 1);
    let mut left = limits::LINE_BYTES_MAX - 1024;
    let mut rest: usize = approvals.iter().map(length).fold(0, usize::saturating_add);
    for approval in approvals.iter_mut().rev() {
        if rest <= left {
            break;
        }
        rest = rest.saturating_sub(length(approval));
        (approval.shown, approval.is_cut) = (String::new(), true);
        rest = rest.saturating_add(length(approval));
    }
    approvals.retain(|approval| {
        let length = length(approval);
        let fits = length <= left;
        left = if fits { left - length } else { 0 };
        fits
    });
    approvals
}
