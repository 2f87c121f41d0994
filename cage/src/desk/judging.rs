//! What a call may have, as things are at one moment.
//!
//! Must hold: what is decided and what is reserved for it is one step, so that calls at the same time take no more than there is. Must
//! never: wait for anything.

use abi::authority::{Amounts, Call, Decision, Operation, PathPattern, Situation, Verdict};
use abi::exposure::Exposure;
use abi::ids::Name;
use abi::limits;
use verdict::approvals::Actor;
use verdict::budget::exhausted;
use verdict::decide::{Denial, Ruling, decide, passed_over};

use super::course::{Course, Grant, Next, refusal};
use super::questions;
use super::reading::Job;
use super::{Desk, State};
use crate::output::unix_ms;

/// What a result has room for at least, while others have reserved what is left.
const OUTPUT_BYTES_MIN: u64 = 32 * 1024;
/// What an answer has room for of what a search passes over.
const PASS_OVER_BYTES_MAX: usize = 32 * 1024;
impl Desk {
    /// Decides on it as things are now, and reserves what it may have. `approved`: the question that was answered with yes.
    pub(super) fn next(&self, course: &Course, approved: Option<u64>) -> Next {
        let mut state = self.state();
        let (left, refills) = (state.purse.left(), state.refills);
        let output_bytes_max = left.output_bytes.unwrap_or(u64::MAX).clamp(1, limits::TOOL_RESULT_BYTES_MAX);
        let is_worth_it = output_bytes_max >= OUTPUT_BYTES_MIN || !state.has_reserved("output_bytes");
        let needs = Amounts {
            calls: Some(1),
            // Where only calls under way are in the way of a sensible result, they are waited for.
            output_bytes: Some(if is_worth_it { output_bytes_max } else { OUTPUT_BYTES_MIN }),
            wall_ms: Some(1),
            cpu_ms: Some(1),
            ..Amounts::default()
        };
        let now_unix_ms = unix_ms();
        let (decision, approval) = match &course.call {
            None => match self.claim_or_memory(&state, course, now_unix_ms) {
                Ok(decision) => match exhausted(&left.lesser(state.authority.budget()), &needs) {
                    Some(full) => return Next::Wait(full, refills),
                    None => (decision, None),
                },
                Err(decision) => return Next::Refuse(decision),
            },
            Some(call) => {
                let flows = state.exposed.flows(course.reading.references.iter().copied());
                let call = Call { flows, ..call.clone() };
                let situation = self.situation(&state, course, now_unix_ms, needs);
                let ruling = decide(&state.authority, &self.policy, &situation, &call);
                if let Some(Denial::Budget(full)) = ruling.denial() {
                    return Next::Wait(full, refills);
                }
                match self.use_up(&ruling, approved) {
                    Ok(approval) => (ruling.explained(), approval),
                    Err(next) => return next,
                }
            }
        };
        let amounts = Amounts { wall_ms: None, cpu_ms: None, ..needs };
        let reservation = match state.purse.reserve(&amounts) {
            Ok(reservation) => reservation,
            Err(full) => return Next::Wait(full, refills),
        };
        let rest = state.authority.until_unix_ms().unwrap_or(u64::MAX).saturating_sub(now_unix_ms);
        let wall_ms_max = left.wall_ms.unwrap_or(u64::MAX).min(rest).clamp(1, limits::TOOL_RUN_MS_MAX);
        let is_search =
            matches!(course.reading.operation, Some(Operation::GlobSearch | Operation::GrepSearch));
        let passed = passed_over(&state.authority).filter(|_| is_search);
        let pass_over: Vec<PathPattern> = passed.cloned().collect();
        if pass_over.iter().map(|pattern| pattern.as_str().len() + 8).sum::<usize>() > PASS_OVER_BYTES_MAX {
            let used = Amounts { calls: Some(1), output_bytes: Some(0), ..Amounts::default() };
            state.settle(reservation, &used);
            let remedy =
                format!("`never` of all rules together has at most {PASS_OVER_BYTES_MAX} bytes for a search");
            return Next::Refuse(refusal(
                "never",
                "there is too much that a search would have to pass over",
                remedy,
            ));
        }
        Next::Go(Box::new(Grant {
            reservation,
            decision,
            output_bytes_max,
            wall_ms_max,
            pass_over,
            approval,
        }))
    }

    pub(super) fn situation(
        &self,
        state: &State,
        course: &Course,
        now_unix_ms: u64,
        needs: Amounts,
    ) -> Situation {
        Situation {
            now_unix_ms,
            seen: state.exposed.seen(),
            written: state.exposed.written(),
            left: state.purse.left(),
            needs,
            is_declassified: state.declassified.contains(&course.arguments),
        }
    }

    /// What a ruling leads to: leave (with the approval that it used up), or what comes instead.
    fn use_up(&self, ruling: &Ruling<'_>, approved: Option<u64>) -> Result<Option<Name>, Next> {
        let owner = self.instance.to_string();
        match (ruling.verdict(), approved) {
            (Verdict::Deny, _) => Err(Next::Refuse(ruling.explained())),
            (Verdict::Allow, None) => Ok(None),
            (Verdict::Ask, None) => Err(Next::Ask),
            (Verdict::Ask | Verdict::Allow, Some(id)) => {
                let spent = self.questions.spend(Actor::Agent, id, &owner, ruling).map_err(|refused| {
                    let why = format!("the approval a{id} does not count: {}", refused.why());
                    Next::Refuse(refusal("approval", why, "call it again, and it is asked again"))
                })?;
                questions::name(spent.id())
                    .map(Some)
                    .map_err(|error| Next::Refuse(refusal("approval", error.message, "try again")))
            }
        }
    }

    /// Of what no rule is written about only the end in time is looked at here.
    fn claim_or_memory(
        &self,
        state: &State,
        course: &Course,
        now_unix_ms: u64,
    ) -> Result<Decision, Decision> {
        if state.authority.until_unix_ms().is_some_and(|until| now_unix_ms >= until) {
            let remedy = "start the agent anew, with an authority that lasts longer";
            return Err(refusal("expired", "the time of this life's authority is over", remedy));
        }
        let sources = self.policy.sources();
        let labels = match course.reading.job {
            // ctxgraph raises the life's exposure before it shows more than that.
            Job::Memory => state.exposed.seen(),
            _ => {
                let when = |any: bool, label| if any { label } else { Exposure::NONE };
                state
                    .exposed
                    .written()
                    .and(when(!sources.private.is_empty(), Exposure::PRIVATE_DATA))
                    .and(when(!sources.untrusted.is_empty(), Exposure::UNTRUSTED_CONTENT))
            }
        };
        if matches!(course.reading.job, Job::Submit { .. }) && self.follower.is_none() {
            let remedy = "`nullctl task run` gives an agent a tree to work on";
            return Err(refusal("task", "this life works for no task, so nobody waits for its tree", remedy));
        }
        let why = "memory's own grants decide, and a claim is judged".to_owned();
        Ok(Decision { verdict: Verdict::Allow, rule: "granted".into(), why, labels, ..refusal("", "", "") })
    }
}
