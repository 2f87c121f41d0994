//! `agent.exec`: a program in an agent's sandbox, its streams on the caller's connection.
//!
//! Must hold: the manifest lets it be executed and the receipt is durable before the guest hears of it; a caller that goes away
//! takes its exec with it.

use abi::control::{AgentExec, AgentState};
use abi::door::{Call, Outcome};
use abi::ids::{AgentName, Instance};
use abi::ledger::Event;
use abi::rpc::{Code, RpcError};
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::agents::Cage;
use crate::guest::Session;
use crate::joint::{self, Terms};
use crate::manifests::Loaded;
use crate::state::Happening;
use crate::{order, state};

/// Characters of a command that the ledger keeps, all parts together, and of one part.
const RECORDED_CHARS_MAX: usize = 1500;
const RECORDED_PART_CHARS_MAX: usize = 128;

/// An agent that runs now.
#[derive(Debug)]
pub struct Living {
    pub agent: Arc<Agent>,
    pub instance: Instance,
    pub loaded: Loaded,
    pub session: Arc<Session>,
}

impl Living {
    /// The agent of a name, if its command runs; `frozen`: or stands still.
    pub fn find(cage: &Cage, name: &AgentName, frozen: bool) -> Result<Living, RpcError> {
        let agent = cage.with_log(name)?;
        let living = {
            let facts = agent.facts();
            let now = facts.state.now();
            if facts.errand.as_ref().is_some_and(|errand| errand.is_verify()) && state::alive(now) {
                return Err(RpcError::new(Code::DENIED, format!("{name} verifies a task")).explained(
                    "a verify VM runs its one command and nothing else",
                    "agent logs and agent kill work on it; task cancel ends its task",
                ));
            }
            let may = match now {
                AgentState::Running => Ok(()),
                AgentState::Paused | AgentState::Quarantined if frozen => Ok(()),
                _ => Err(not_running(now)),
            };
            may?;
            let both = facts.session.clone().zip(facts.loaded.clone()).zip(facts.instance.clone());
            both.ok_or(state::Illegal::NotAlive)?
        };
        let ((session, loaded), instance) = living;
        Ok(Living { agent, instance, loaded, session })
    }
}

/// Why an agent in this state takes no exec, no copy and nobody who attaches: what keeps it from a start, or that it needs one.
fn not_running(now: AgentState) -> state::Illegal {
    state::next(now, Happening::StartAsked).err().unwrap_or(state::Illegal::NotAlive)
}

/// Runs it to its end.
pub fn run(cage: &Cage, call: Call<'_>) -> Result<Outcome, RpcError> {
    let want: AgentExec = call.request.params()?;
    let living = Living::find(cage, &want.name, false)?;
    let order = order::exec(&living.loaded.manifest, &want)?;
    let by = call.caller.to_string();
    let command = recorded(&want.command);
    let shown = command.join(" ");
    receipt(cage, Event::ExecStarted { instance: living.instance, command, by }, "exec")?;
    let channel = living.session.exec(&order)?;
    cage.events.push(&want.name, "exec", &shown);
    let terms = Terms {
        input: true,
        signals: true,
        resize: want.terminal.is_some(),
        time_limit: want.timeout_ms.map(Duration::from_millis),
    };
    joint::join(call, &living.session, channel, terms)
}

/// Waits until an effect has its receipt: without it there is no effect.
pub fn receipt(cage: &Cage, event: Event, effect: &str) -> Result<(), RpcError> {
    let stored = cage.ledger.append(event);
    stored.map(drop).map_err(|error| {
        RpcError::new(Code::FAILED, format!("no receipt, so no {effect}: {error}"))
            .explained("every effect leaves a receipt first", "see nullctl system logs ctxgraph")
    })
}

/// A command as the ledger keeps it: bounded.
fn recorded(command: &[String]) -> Vec<String> {
    let mut left = RECORDED_CHARS_MAX;
    let mut short = |part: &String| {
        let part: String = part.chars().take(left.min(RECORDED_PART_CHARS_MAX)).collect();
        left -= part.chars().count();
        part
    };
    command.iter().map(&mut short).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_command_fits_its_receipt() {
        let command = vec!["\u{1}".repeat(4096); 64];
        let kept = recorded(&command);
        assert_eq!(kept.len(), 64);
        let event = Event::ExecStarted {
            instance: "a.1".parse().unwrap(),
            command: kept,
            by: "operator ".to_owned() + &"x".repeat(64),
        };
        let bytes = serde_json::to_vec(&event).unwrap().len();
        assert!(bytes < abi::limits::LEDGER_EVENT_BYTES_MAX, "{bytes}");
        assert_eq!(recorded(&["/bin/x".to_owned(), "y".into()]), ["/bin/x", "y"]);
    }
}
