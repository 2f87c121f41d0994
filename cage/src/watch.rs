//! `agent.top`, `agent.events` and `agent.metrics`: what agents use and what happened to them.
//!
//! Must hold: numbers come from the node (cgroups, egress, cage itself), but for those that are said to be the guest's; a service
//! that does not answer makes an answer poorer, not absent.

use abi::control::{
    AgentEventList, AgentEvents, AgentGrants, AgentTop, AgentUse, Denial, Grants, Metrics, Nothing,
};
use abi::door::{Call, Outcome};
use abi::ids::{AgentName, Instance};
use abi::rpc::{Code, Incoming, Request, RpcError};
use abi::wire::Connection;
use abi::{limits, log, metrics as text};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::agents::Cage;
use crate::caller::hung_up;
use crate::output::unix_ms;
use crate::{metrics, state};

/// Events in one answer: what fits a line of the control protocol.
const PAGE_BYTES_MAX: usize = limits::LINE_BYTES_MAX - 4096;
/// How often a follower is checked for having gone.
const FOLLOW_POLL: Duration = Duration::from_secs(1);
/// Pause before egress is asked again for what it refuses.
const DENIALS_PAUSE: Duration = Duration::from_secs(2);

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    match call.request.method.as_str() {
        "agent.top" => {
            let Nothing {} = call.request.params()?;
            Ok(Outcome::Result(json!(AgentTop { unix_ms: unix_ms(), agents: top(cage) })))
        }
        "agent.events" => events(cage, call),
        "agent.metrics" => {
            let Nothing {} = call.request.params()?;
            in_parts(&metrics::page(cage).text(), call)
        }
        other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`"))),
    }
}

fn gone(error: abi::wire::WireError) -> RpcError {
    RpcError::new(Code::FAILED, format!("the caller went away: {error}"))
}

fn in_parts(whole: &str, mut call: Call<'_>) -> Result<Outcome, RpcError> {
    let mut parts = text::parts(whole, limits::METRICS_PART_BYTES_MAX);
    let last = parts.pop().unwrap_or_default().to_owned();
    for part in parts {
        call.notify("metrics", json!(Metrics { text: part.to_owned() })).map_err(gone)?;
    }
    Ok(Outcome::Result(json!(Metrics { text: last })))
}

fn events(cage: &Arc<Cage>, mut call: Call<'_>) -> Result<Outcome, RpcError> {
    let want: AgentEvents = call.request.params()?;
    let page = cage.events.page(0, want.name.as_ref());
    let (mut bytes, mut kept) = (0, Vec::new());
    for event in page.events.iter().rev() {
        bytes += json!(event).to_string().len() + 1;
        if bytes > PAGE_BYTES_MAX {
            break;
        }
        kept.push(event.clone());
    }
    kept.reverse();
    let left_out = (page.events.len() - kept.len()) as u64;
    let first = json!(AgentEventList { events: kept, dropped: page.dropped + left_out });
    if !want.follow {
        return Ok(Outcome::Result(first));
    }
    call.answer(first, &[]).map_err(gone)?;
    let mut next = page.next;
    while !hung_up(call.connection.stream()) {
        cage.events.wait(next, FOLLOW_POLL);
        let page = cage.events.page(next, want.name.as_ref());
        next = page.next;
        for event in page.events {
            call.notify("event", json!(event)).map_err(gone)?;
        }
    }
    Ok(Outcome::Answered)
}

/// What each living agent uses, by name.
pub fn top(cage: &Cage) -> Vec<AgentUse> {
    let mut networks = networks(&cage.places.egress);
    let living = cage.known_agents().into_iter().filter_map(|agent| {
        let (mut used, instance, cgroup) = {
            let facts = agent.facts();
            let state = facts.state.now();
            let loaded = facts.loaded.as_ref().filter(|_| state::alive(state))?;
            let used = AgentUse {
                name: agent.name.to_string(),
                state: metrics::word(state).to_owned(),
                cpu_percent_max: loaded.manifest.cpu_percent,
                execs: facts.session.as_ref().map_or(0, |session| session.execs_running()),
                execs_total: facts.session.as_ref().map_or(0, |session| session.execs_total()),
                restarts: facts.restarts,
                ..AgentUse::default()
            };
            (used, facts.instance.clone(), facts.cgroup.clone())
        };
        used.guest_denials = cage.events.count(&agent.name, "denied");
        if let Some(cgroup) = cgroup {
            measure(cgroup.dir(), &mut used);
        }
        if let Some(network) = instance.and_then(|instance| networks.remove(&instance)) {
            used.net_out_bytes = network.bytes_out;
            used.net_in_bytes = network.bytes_in;
            used.connections = network.connections + network.published_connections;
            used.net_denials = network.denials;
        }
        Some(used)
    });
    living.collect()
}

/// Reads a cgroup's counters (Documentation/admin-guide/cgroup-v2.rst). What the kernel does not count stays 0.
fn measure(dir: &Path, used: &mut AgentUse) {
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let number = |file: &str| read(file).trim().parse::<u64>().unwrap_or(0);
    used.cpu_ms = keyed(&read("cpu.stat"), "usage_usec") / 1000;
    used.memory_kib = number("memory.current") / 1024;
    used.memory_max_kib = number("memory.max") / 1024;
    used.tasks = u32::try_from(number("pids.current")).unwrap_or(u32::MAX);
    (used.disk_read_bytes, used.disk_written_bytes) = traffic(&read("io.stat"));
}

/// A value of a flat keyed file.
fn keyed(text: &str, key: &str) -> u64 {
    let value = text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key);
    value.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// Bytes read and written, over all devices of io.stat: lines of `8:0 rbytes=1 wbytes=2 ...`.
fn traffic(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let words = text.split_whitespace().filter_map(|word| word.split_once('='));
        words.filter(|(name, _)| *name == key).filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    };
    (sum("rbytes"), sum("wbytes"))
}

/// What egress counts, by life; nothing when it does not answer in time.
fn networks(egress: &str) -> BTreeMap<Instance, AgentGrants> {
    let patience = Some(Duration::from_millis(limits::NET_USE_MS_MAX));
    let asked = ask(egress, "net.grants", json!({}), patience)
        .and_then(|(_, answer)| serde_json::from_value::<Grants>(answer).map_err(|error| error.to_string()));
    match asked {
        Ok(grants) => grants.agents.into_iter().map(|agent| (agent.instance.clone(), agent)).collect(),
        Err(error) => {
            log::warning("network_use_unknown", &[("error", &error)]);
            BTreeMap::new()
        }
    }
}

/// One call, up to its answer; the connection lives on for what follows.
fn ask(
    socket: &str,
    method: &str,
    params: serde_json::Value,
    patience: Option<Duration>,
) -> Result<(Connection, serde_json::Value), String> {
    let mut connection = Connection::connect(socket).map_err(|error| error.to_string())?;
    connection.set_timeout(patience).map_err(|error| error.to_string())?;
    connection.write_line(&Request::call(1, method, params)).map_err(|error| error.to_string())?;
    let line = connection.read_line().map_err(|error| error.to_string())?.ok_or("the connection ended")?;
    match serde_json::from_str::<Incoming>(&line).map_err(|error| error.to_string())? {
        Incoming::Response(response) => match (response.result, response.error) {
            (Some(result), None) => Ok((connection, result)),
            (_, error) => Err(error.map_or_else(|| "no result".into(), |error| error.message)),
        },
        Incoming::Notification(note) => Err(format!("`{}` was not asked for", note.method)),
    }
}

/// Makes events of what egress refuses agents, as long as cage lives. On a thread of its own.
pub fn follow_denials(cage: &Cage) {
    loop {
        // What was refused before cage asked is egress's to tell.
        if let Ok((mut connection, _)) =
            ask(&cage.places.egress, "net.denials", json!({"follow": true}), None)
        {
            while let Ok(Some(line)) = connection.read_line() {
                let note = serde_json::from_str::<Request>(&line).ok().filter(|note| note.method == "denial");
                if let Some(denial) = note.and_then(|note| note.params::<Denial>().ok()) {
                    let name: &AgentName = &denial.instance.agent;
                    cage.events.push(name, "net_denied", format!("{}: {}", denial.what, denial.rule));
                }
            }
        }
        std::thread::sleep(DENIALS_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::rpc::Response;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    #[test]
    fn cgroup_files_become_numbers_and_missing_ones_zero() {
        let dir = tempfile::tempdir().unwrap();
        for (file, content) in [
            ("cpu.stat", "usage_usec 1234567\nuser_usec 1\n"),
            ("memory.current", "1048576\n"),
            ("memory.max", "max\n"),
            ("pids.current", "7\n"),
            ("io.stat", "8:0 rbytes=100 wbytes=20 rios=1\n253:1 rbytes=1 wbytes=2 dbytes=9\n"),
        ] {
            fs::write(dir.path().join(file), content).unwrap();
        }
        let mut used = AgentUse::default();
        measure(dir.path(), &mut used);
        assert_eq!((used.cpu_ms, used.memory_kib, used.memory_max_kib, used.tasks), (1234, 1024, 0, 7));
        assert_eq!((used.disk_read_bytes, used.disk_written_bytes), (101, 22));
        let mut nothing = AgentUse::default();
        measure(&dir.path().join("gone"), &mut nothing);
        assert_eq!(nothing, AgentUse::default());
    }

    #[test]
    fn an_egress_that_is_away_or_silent_makes_the_answer_poorer_and_not_late() {
        assert!(networks("/nonexistent").is_empty());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("egress.sock");
        let silent = UnixListener::bind(&path).unwrap();
        let begun = Instant::now();
        assert!(networks(path.to_str().unwrap()).is_empty());
        assert!(begun.elapsed() < Duration::from_millis(3 * limits::NET_USE_MS_MAX));
        drop(silent);
    }

    #[test]
    fn egress_counts_are_found_by_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("egress.sock");
        let service = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let mut connection = Connection::new(service.accept().unwrap().0);
            let line = connection.read_line().unwrap().unwrap();
            assert!(line.contains("net.grants"), "{line}");
            let grants = json!({"agents": [{
                "instance": "a.3", "allow": [], "connections": 1, "connections_total": 4, "bytes_out": 5,
                "bytes_in": 6, "denials": 7, "publish": [], "published_connections": 0, "published_total": 0,
                "synthetic": {},
            }]});
            connection.write_line(&Response::of(Some(1), Ok(grants))).unwrap();
        });
        let networks = networks(path.to_str().unwrap());
        assert_eq!(networks[&"a.3".parse().unwrap()].bytes_in, 6);
    }
}
