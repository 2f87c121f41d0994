//! cage's methods. What each does is elsewhere; here it is parsed, watched and answered.

use abi::control::{AgentLogs, AgentRef, AgentState, Progress, Started};
use abi::door::{Call, Handler, Outcome};
use abi::ids::Instance;
use abi::limits;
use abi::rpc::{Code, RpcError};
use abi::wire::WireError;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::agents::Cage;
use crate::caller::hung_up;
use crate::output::Chunk;
use crate::{attach, disks, exec, files, images, state, steer, watch};

/// How long a caller may leave a notification unread. Then its call ends.
const CALLER_MS_MAX: u64 = 10_000;
/// Longest stop: the grace, the halt, the kill and the leases' ends.
const STOP_MS_MAX: u64 = limits::AGENT_STOP_GRACE_MS + 60_000;

/// The handler behind the door.
#[derive(Debug)]
pub struct Door {
    pub cage: Arc<Cage>,
}

impl Handler for Door {
    fn status(&self) -> Option<String> {
        Some(self.cage.in_words())
    }

    fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
        call.connection
            .stream()
            .set_write_timeout(Some(Duration::from_millis(CALLER_MS_MAX)))
            .map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
        match call.request.method.as_str() {
            "agent.list" => Ok(Outcome::Result(json!(self.cage.list()))),
            "agent.status" => {
                let AgentRef { name } = call.request.params()?;
                Ok(Outcome::Result(json!(self.cage.status(&name)?)))
            }
            "agent.start" => self.start(call),
            "agent.stop" => self.stop(call),
            "agent.logs" => self.logs(call),
            "agent.exec" => exec::run(&self.cage, call),
            "agent.attach" => attach::run(&self.cage, call),
            "agent.create" | "agent.pause" | "agent.resume" | "agent.kill" | "agent.restart"
            | "agent.quarantine" | "agent.remove" => steer::run(&self.cage, call),
            "agent.read_files" | "agent.write_files" | "agent.diff" => files::run(&self.cage, call),
            "agent.top" | "agent.events" | "agent.metrics" => watch::run(&self.cage, call),
            "snapshot.list" | "snapshot.create" | "snapshot.remove" | "volume.list" | "volume.remove" => {
                disks::run(&self.cage, call)
            }
            "image.list" | "image.inspect" | "image.remove" | "image.prune" | "image.import" => {
                images::run(&self.cage, call)
            }
            other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`"))),
        }
    }
}

fn gone(error: WireError) -> RpcError {
    RpcError::new(Code::FAILED, format!("the caller went away: {error}"))
}

impl Door {
    fn start(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let AgentRef { name } = call.request.params()?;
        let (agent, instance) = self.cage.start(&name, &call.caller.to_string(), 0)?;
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
                    call.notify("progress", json!(progress)).map_err(gone)?;
                }
            }
            for (stage, ms) in stages {
                told += 1;
                if stage == "ready" {
                    ready_ms = Some(ms);
                }
                call.notify("progress", json!(Progress { stage, done: None, total: None })).map_err(gone)?;
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
                (AgentState::Running | AgentState::Paused | AgentState::Quarantined, None) => continue, // the stage is told in the next round
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

    fn stop(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
        let AgentRef { name } = call.request.params()?;
        let agent = self.cage.stop(&name, &call.caller.to_string())?;
        let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
        let mut facts = agent.facts();
        let instance = facts.instance.clone();
        while facts.instance == instance && state::alive(facts.state.now()) {
            if Instant::now() > deadline {
                return Err(RpcError::new(Code::TIMEOUT, format!("{name} is still stopping")).explained(
                    format!("a stop takes at most {} s", STOP_MS_MAX / 1000),
                    "see agent status and the log of cage",
                ));
            }
            facts = agent.wait(facts, Duration::from_millis(500));
        }
        Ok(Outcome::Result(json!({})))
    }

    fn logs(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let want: AgentLogs = call.request.params()?;
        let agent = self.cage.with_log(&want.name)?;
        let is_wanted = |chunk: &Chunk| want.since_unix_ms.is_none_or(|since| chunk.unix_ms >= since);
        let (chunks, mut next) = agent.log.tail(want.lines);
        for chunk in chunks.into_iter().filter(is_wanted) {
            call.notify("output", json!(chunk.to_output())).map_err(gone)?;
        }
        while want.follow && !hung_up(call.connection.stream()) {
            for chunk in agent.log.follow(next, Duration::from_millis(1000)) {
                next = chunk.seq + 1;
                if is_wanted(&chunk) {
                    call.notify("output", json!(chunk.to_output())).map_err(gone)?;
                }
            }
            if over(&agent) && agent.log.tail(Some(0)).1 <= next {
                break; // a follower sees a life to its end
            }
        }
        Ok(Outcome::Result(json!({})))
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

fn over(agent: &Agent) -> bool {
    !state::alive(agent.facts().state.now())
}
