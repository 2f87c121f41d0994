//! The methods that change what an agent does: `agent.start`, `stop`, `kill`, `restart`, `pause`, `resume`, `quarantine`, and
//! `create` and `remove` for what it leaves behind.
//!
//! Must hold: an answer says what is so, not what was asked for; each wait has a bound.

use abi::control::{AgentCreate, AgentQuarantine, AgentRef, AgentRemoved, AgentState, Progress, Started};
use abi::door::{Call, Outcome};
use abi::ids::{AgentName, Instance};
use abi::ledger::Event;
use abi::limits;
use abi::rpc::{Code, RpcError};
use abi::wire::WireError;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::agents::{self, Cage, Cause};
use crate::life::{self, Ask, Asked, Mail};
use crate::state::{self, Illegal};
use crate::{disks, evidence, manifests};

/// Longest stop: the grace, the halt, the kill and the leases' ends.
const STOP_MS_MAX: u64 = limits::AGENT_STOP_GRACE_MS + 60_000;
/// Longest change of a life under way: writing out, freezing, the ends of its leases, and its receipt.
const CHANGE_MS_MAX: u64 =
    limits::PAUSE_SYNC_MS_MAX + 2 * limits::FREEZE_MS_MAX + 20_000 + limits::PEER_CALL_MS_MAX;

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let by = call.caller.to_string();
    match call.request.method.as_str() {
        "agent.start" => {
            let AgentRef { name } = call.request.params()?;
            start(cage, &name, &by, call)
        }
        "agent.stop" => {
            let AgentRef { name } = call.request.params()?;
            gone(cage.stop(&name, &by)?.as_ref())
        }
        "agent.kill" => {
            let AgentRef { name } = call.request.params()?;
            gone(cage.kill(&name, &by)?.as_ref())
        }
        "agent.restart" => {
            let AgentRef { name } = call.request.params()?;
            let state = cage.named(&name)?.facts().state.now();
            if state == AgentState::Quarantined {
                return Err(Illegal::Quarantined.into());
            }
            gone(cage.stop(&name, &by)?.as_ref())?;
            start(cage, &name, &by, call)
        }
        "agent.pause" => {
            let AgentRef { name } = call.request.params()?;
            change(cage, &name, Asked::Pause, by)
        }
        "agent.resume" => {
            let AgentRef { name } = call.request.params()?;
            let desk = cage.named(&name)?.facts().desk.clone();
            let role = call.caller.role();
            if let Some((desk, role)) = desk.zip(role)
                && desk.resume(&by, role)?
            {
                return Ok(Outcome::Result(json!({})));
            }
            change(cage, &name, Asked::Resume, by)
        }
        "agent.quarantine" => {
            let AgentQuarantine { name, reason } = call.request.params()?;
            change(cage, &name, Asked::Quarantine { reason: checked_reason(reason)? }, by)
        }
        "agent.create" => create(cage, call, by),
        "agent.remove" => {
            let AgentRef { name } = call.request.params()?;
            remove(cage, &name, by)
        }
        other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`"))),
    }
}

fn lost(error: WireError) -> RpcError {
    RpcError::new(Code::FAILED, format!("the caller went away: {error}"))
}

/// A reason stands in the ledger and on terminals.
pub(crate) fn checked_reason(reason: String) -> Result<String, RpcError> {
    let plain = !reason.trim().is_empty() && !reason.chars().any(char::is_control);
    if plain && reason.chars().count() <= limits::REASON_CHARS_MAX {
        return Ok(reason);
    }
    let rule = format!("1 to {} characters, none of them a control character", limits::REASON_CHARS_MAX);
    Err(RpcError::new(Code::INVALID_PARAMS, "that is no reason").explained(rule, "say why, in a sentence"))
}

/// Has something done by the life's own thread, and waits for it.
pub(crate) fn change(cage: &Cage, name: &AgentName, change: Asked, by: String) -> Result<Outcome, RpcError> {
    let agent = cage.named(name)?;
    let (answer, outcome) = sync_channel(1);
    {
        let mut facts = agent.facts();
        state::next(facts.state.now(), change.happening())?;
        let mail = facts.mail.clone().ok_or(Illegal::NotAlive)?;
        if facts.asks.len() >= life::MAIL_MAX {
            return Err(RpcError::new(Code::LIMIT, format!("{name} has more to do than it can")).explained(
                format!("{} things wait for one life at most", life::MAIL_MAX),
                "try again, or agent kill it",
            ));
        }
        facts.asks.push_back(Ask { change, by, answer });
        let _ = mail.try_send(Mail::Asked); // full: it has enough reasons to look
    }
    match outcome.recv_timeout(Duration::from_millis(CHANGE_MS_MAX)) {
        Ok(outcome) => outcome.map(|()| Outcome::Result(json!({}))),
        Err(RecvTimeoutError::Disconnected) => {
            Err(RpcError::new(Code::CONFLICT, format!("{name} has ended meanwhile")))
        }
        Err(RecvTimeoutError::Timeout) => Err(RpcError::new(Code::TIMEOUT, format!("{name} takes too long"))
            .explained(
                format!("at most {} s", CHANGE_MS_MAX / 1000),
                "see agent status and system logs cage",
            )),
    }
}

/// Begins a life and tells how far it is until the agent's command runs.
fn start(cage: &Arc<Cage>, name: &AgentName, by: &str, mut call: Call<'_>) -> Result<Outcome, RpcError> {
    let (agent, instance) = cage.start(name, Cause::asked(by))?;
    let mut told = 0;
    let mut importing = None;
    let mut ready_ms = None;
    loop {
        let (state, now, stages, detail) = {
            let facts = agent.facts();
            if facts.instance.as_ref() != Some(&instance) {
                let why = format!("{instance} has ended and a later life began");
                return Err(RpcError::new(Code::CONFLICT, why));
            }
            let new: Vec<_> = facts.stages_ms.iter().skip(told).cloned().collect();
            (facts.state.now(), facts.importing.clone(), new, facts.detail.clone())
        };
        if now != importing {
            importing = now.clone();
            if let Some(progress) = now {
                call.notify("progress", json!(progress)).map_err(lost)?;
            }
        }
        for (stage, ms) in stages {
            told += 1;
            if stage == "ready" {
                ready_ms = Some(ms);
            }
            call.notify("progress", json!(Progress { stage, done: None, total: None })).map_err(lost)?;
        }
        match (state, ready_ms) {
            (AgentState::Starting | AgentState::Stopping, _) => {}
            // Even one that has ended since: it did start.
            (
                AgentState::Running
                | AgentState::Paused
                | AgentState::Quarantined
                | AgentState::Exited
                | AgentState::Failed
                | AgentState::Stopped,
                Some(took_ms),
            ) => {
                return Ok(Outcome::Result(json!(Started { instance, took_ms })));
            }
            // The stage is told in the next round.
            (AgentState::Running | AgentState::Paused | AgentState::Quarantined, None) => continue,
            (AgentState::Stopped | AgentState::Exited | AgentState::Failed, None) => {
                return Err(not_started(&instance, state, &detail));
            }
        }
        let facts = agent.facts();
        if facts.stages_ms.len() == told && facts.importing == importing && facts.state.now() == state {
            drop(agent.wait(facts, Duration::from_millis(500)));
        }
    }
}

fn not_started(instance: &Instance, state: AgentState, detail: &str) -> RpcError {
    let why = match (state, detail.is_empty()) {
        (AgentState::Stopped, _) => "it was stopped while it started",
        (_, true) => "no reason is known",
        (_, false) => detail,
    };
    RpcError::new(Code::FAILED, format!("{instance} did not start: {why}")).explained(
        "a start ends with the agent's command running",
        "see agent status, agent logs and system logs cage",
    )
}

/// Waits until the present life is over and nothing of its VM is left.
fn gone(agent: &Agent) -> Result<Outcome, RpcError> {
    let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
    let mut facts = agent.facts();
    let instance = facts.instance.clone();
    while facts.instance == instance && state::alive(facts.state.now()) {
        if Instant::now() > deadline {
            let why = format!("{} is still stopping", agent.name);
            return Err(RpcError::new(Code::TIMEOUT, why).explained(
                format!("a stop takes at most {} s", STOP_MS_MAX / 1000),
                "agent kill ends it at once; see agent status and the log of cage",
            ));
        }
        facts = agent.wait(facts, Duration::from_millis(500));
    }
    Ok(Outcome::Result(json!({})))
}

fn create(cage: &Cage, mut call: Call<'_>, by: String) -> Result<Outcome, RpcError> {
    let want: AgentCreate = call.request.params()?;
    let loaded = agents::find(manifests::load(&cage.places.config), &want.name)?;
    let doing = "gets a workspace above it";
    let held = cage.store.hold(&loaded.manifest.rootfs, &want.name, doing);
    let (_image, rootfs, ..) = held.map_err(|error| {
        RpcError::new(Code::FAILED, format!("its rootfs is not there: {error}"))
            .explained("a workspace is written above one rootfs", "import it: nullctl image import")
    })?;
    disks::create(cage, &mut call, &loaded.manifest, rootfs, want.snapshot.as_ref())?;
    let AgentCreate { name, snapshot } = want;
    let origin = snapshot.as_ref().map_or("empty".to_owned(), |snapshot| format!("from {snapshot}"));
    cage.events.push(&name, "created", format!("workspace, {origin}"));
    life::record(cage, Event::AgentCreated { agent: name, snapshot, by });
    Ok(Outcome::Result(json!({})))
}

fn remove(cage: &Cage, name: &AgentName, by: String) -> Result<Outcome, RpcError> {
    let logs = logs_of(cage, name);
    let traces = evidence::of(&cage.places, name).map_err(|error| not_removed(name, "evidence", &error))?;
    let has_workspace = disks::usage(cage, name).iter().any(|disk| disk.name == "workspace");
    if logs.is_empty() && traces.is_empty() && !has_workspace {
        cage.named(name)?; // unknown: say so
    }
    let agent = cage.agent(name);
    agent.update(|facts| {
        if state::alive(facts.state.now()) {
            return Err(RpcError::new(Code::CONFLICT, format!("{name} is alive"))
                .explained("only what does not run is removed", "agent stop or agent kill it first"));
        }
        if facts.is_removed {
            return Err(RpcError::new(Code::CONFLICT, format!("{name} is being removed already")));
        }
        facts.restart = None;
        facts.is_removed = true;
        Ok(())
    })?;
    let removed = delete(cage, name, by, logs, traces, has_workspace);
    match &removed {
        Ok(_) => {
            // Who found the record before keeps a dead one: a life begun on it could not be found any more.
            cage.forget(name);
            cage.want(|agents| agents.retain(|agent| agent.instance.agent != *name));
            cage.events.push(name, "removed", "");
        }
        Err(_) => agent.update(|facts| facts.is_removed = false),
    }
    removed.map(|removed| Outcome::Result(json!(removed)))
}

/// The receipt first: what is deleted cannot be had back.
fn delete(
    cage: &Cage,
    name: &AgentName,
    by: String,
    logs: Vec<PathBuf>,
    evidence: Vec<Instance>,
    has_workspace: bool,
) -> Result<AgentRemoved, RpcError> {
    cage.ledger.append(Event::AgentRemoved { agent: name.clone(), by }).map_err(|error| {
        RpcError::new(Code::FAILED, format!("no receipt, so nothing is removed: {error}"))
            .explained("what is deleted has its receipt first", "see that ctxgraph is running")
    })?;
    disks::remove_workspace(cage, name).map_err(|error| not_removed(name, "workspace", &error))?;
    for log in &logs {
        fs::remove_file(log).map_err(|error| not_removed(name, "log", &error))?;
    }
    for life in &evidence {
        self::evidence::remove(&cage.places, life).map_err(|error| not_removed(name, "evidence", &error))?;
    }
    Ok(AgentRemoved { workspace: has_workspace, log: !logs.is_empty(), evidence })
}

fn not_removed(name: &AgentName, what: &str, error: &dyn std::error::Error) -> RpcError {
    RpcError::new(Code::FAILED, format!("the {what} of {name} is not removed: {error}"))
        .explained("agent remove deletes workspace, log and evidence", "try again; see system logs cage")
}

/// The files of an agent's log.
pub(crate) fn logs_of(cage: &Cage, name: &AgentName) -> Vec<PathBuf> {
    let log = cage.places.state.join("logs").join(format!("{name}.log"));
    [log.with_extension("old"), log].into_iter().filter(|path| path.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::bench;

    #[test]
    fn whoever_found_an_agent_before_it_was_removed_cannot_start_it() {
        let dir = tempfile::tempdir().unwrap();
        let (cage, name) = (bench::cage(dir.path(), &["a"]), "a".parse().unwrap());
        let found = cage.agent(&name);
        remove(&cage, &name, "alice".into()).unwrap();
        let error = cage.begin(&found, Cause::asked("bob")).unwrap_err();
        assert!(error.message.contains("removed"), "{error}");
        assert!(
            cage.begin(&cage.agent(&name), Cause::asked("bob")).is_ok(),
            "a new record is not a removed one"
        );
    }

    #[test]
    fn a_removal_that_failed_leaves_the_agent_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (cage, name) = (bench::cage(dir.path(), &["a"]), "a".parse().unwrap());
        fs::remove_file(dir.path().join("ctxgraph.sock")).unwrap();
        let found = cage.agent(&name);
        assert!(remove(&cage, &name, "alice".into()).unwrap_err().message.contains("no receipt"));
        assert!(cage.begin(&found, Cause::asked("bob")).is_ok());
    }
}
