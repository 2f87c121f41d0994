//! What ties a desk to the node: the life's VM, its network, egress.

use abi::control::{AgentState, Fetched, NetFetch, Output};
use abi::exposure::Exposure;
use abi::ids::Instance;
use abi::limits;
use abi::rpc::{Code, Incoming, Request, RpcError};
use abi::wire::Connection;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::House;
use crate::agent::Agent;
use crate::agents::Cage;
use crate::lease::Seen;
use crate::life::Asked;
use crate::{output, steer};

/// How long a life may take from its guest's first call to being said to run.
const BEGIN_MS_MAX: u64 = 5_000;

/// One life's.
#[derive(Debug)]
pub struct Home {
    pub cage: Arc<Cage>,
    pub agent: Arc<Agent>,
    pub instance: Instance,
    /// As its network goes by it.
    pub seen: Arc<Seen>,
}

impl Home {
    /// The state, as long as it is this life's.
    fn state(&self) -> Option<AgentState> {
        let facts = self.agent.facts();
        (facts.instance.as_ref() == Some(&self.instance)).then(|| facts.state.now())
    }
}

impl House for Home {
    fn raise(&self, to: Exposure) -> Result<Exposure, String> {
        self.seen.raise(to).map_err(|error| error.to_string())
    }

    fn hold(&self, why: &str) -> Result<bool, String> {
        // Its guest may call before the life has read that it is ready.
        let deadline = Instant::now() + Duration::from_millis(BEGIN_MS_MAX);
        while self.state() == Some(AgentState::Starting) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.state() {
            Some(AgentState::Running) => {
                steer::change(&self.cage, &self.agent.name, Asked::Pause, "desk".into())
                    .map_err(|error| error.to_string())?;
                self.agent.update(|facts| facts.detail = format!("stands still: {why}"));
                Ok(true)
            }
            Some(AgentState::Paused | AgentState::Quarantined) => Ok(false),
            Some(_) => Err("it is ending".into()),
            None => Err("it has ended".into()),
        }
    }

    fn release(&self, by: &str) -> Result<(), String> {
        match self.state() {
            Some(AgentState::Paused) => {
                self.agent.update(|facts| facts.detail.clear());
                steer::change(&self.cage, &self.agent.name, Asked::Resume, by.to_owned())
                    .map(drop)
                    .map_err(|error| error.to_string())
            }
            _ => Ok(()), // it ends, or somebody quarantined it
        }
    }

    fn tell(&self, what: &str, detail: &str) {
        self.cage.events.push(&self.agent.name, what, detail);
    }

    fn cpu_ms(&self) -> Option<u64> {
        let cgroup = self.agent.facts().cgroup.clone()?;
        cgroup.usage().map(|usage| usage.cpu_ms)
    }

    fn is_running(&self) -> bool {
        self.state() == Some(AgentState::Running)
    }

    fn fetch(&self, want: &NetFetch) -> Result<(Vec<u8>, Fetched), RpcError> {
        fetch(&self.cage.places.egress, want)
    }
}

/// Has egress get a page; its bytes, at most as many as were asked for.
pub fn fetch(egress: &str, want: &NetFetch) -> Result<(Vec<u8>, Fetched), RpcError> {
    let failed = |what: String| {
        RpcError::new(Code::FAILED, format!("egress: {what}")).explained("egress gets pages", "try again")
    };
    let io = |error: std::io::Error| failed(error.to_string());
    let mut connection = Connection::connect(egress).map_err(io)?;
    // Each line takes a part of it; egress itself bounds the whole.
    let patience = Duration::from_millis(want.wall_ms_max + limits::PEER_CALL_MS_MAX);
    connection.set_timeout(Some(patience)).map_err(io)?;
    let deadline = Instant::now() + patience;
    let wire = |error: abi::wire::WireError| failed(error.to_string());
    connection.write_line(&Request::call(1, "net.fetch", json!(want))).map_err(wire)?;
    let mut bytes = Vec::new();
    loop {
        let line = connection.read_line().map_err(wire)?.ok_or_else(|| failed("it hung up".into()))?;
        match serde_json::from_str(&line) {
            Ok(Incoming::Notification(note)) if note.method == "output" => {
                let output: Output = note.params()?;
                bytes.extend(output::decode(&output.data).map_err(|error| failed(error.to_string()))?);
                if bytes.len() as u64 > want.bytes_max || Instant::now() > deadline {
                    return Err(failed("more, or for longer, than was asked for".into()));
                }
            }
            Ok(Incoming::Response(response)) => {
                return match (response.result, response.error) {
                    (_, Some(error)) => Err(error),
                    (Some(result), None) => {
                        let fetched =
                            serde_json::from_value(result).map_err(|error| failed(error.to_string()))?;
                        Ok((bytes, fetched))
                    }
                    (None, None) => Err(failed("neither result nor error".into())),
                };
            }
            _ => return Err(failed(line.chars().take(200).collect())),
        }
    }
}
