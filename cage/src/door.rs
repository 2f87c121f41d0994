//! cage's methods. What each does is elsewhere; here it is parsed, watched and answered.

use abi::control::{AgentLogs, AgentRef};
use abi::door::{Call, Handler, Outcome};
use abi::rpc::{Code, RpcError};
use abi::wire::WireError;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::agents::Cage;
use crate::caller::hung_up;
use crate::output::Chunk;
use crate::{attach, desk, disks, evidence, exec, files, images, state, steer, tasks, watch};

/// How long a caller may leave a notification unread. Then its call ends.
const CALLER_MS_MAX: u64 = 10_000;

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
            "agent.logs" => self.logs(call),
            "agent.exec" => exec::run(&self.cage, call),
            "agent.attach" => attach::run(&self.cage, call),
            "agent.start" | "agent.stop" | "agent.create" | "agent.pause" | "agent.resume" | "agent.kill"
            | "agent.restart" | "agent.quarantine" | "agent.remove" => steer::run(&self.cage, call),
            "agent.evidence" | "agent.read_evidence" | "agent.remove_evidence" => {
                evidence::calls::run(&self.cage, call)
            }
            "agent.read_files" | "agent.write_files" | "agent.diff" => files::run(&self.cage, call),
            "agent.tighten"
            | "exposure.status"
            | "exposure.declassify"
            | "approval.list"
            | "approval.decide" => desk::calls::run(&self.cage, call),
            "agent.top" | "agent.events" | "agent.metrics" => watch::run(&self.cage, call),
            "snapshot.list" | "snapshot.create" | "snapshot.remove" | "volume.list" | "volume.remove" => {
                disks::run(&self.cage, call)
            }
            method if method.starts_with("task.") => tasks::run(&self.cage, call),
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

fn over(agent: &Agent) -> bool {
    !state::alive(agent.facts().state.now())
}
