//! `agent.top`, `agent.events` and `agent.metrics`: what agents use and what happened to them.
//!
//! Must hold: numbers come from the node (cgroups, egress, cage itself), but for those that are said to be the guest's; a service
//! that does not answer makes an answer poorer, not absent.

use abi::control::{
    AgentEventList, AgentEvents, AgentTop, AgentUse, Denial, Denials, Metrics, NetDenials, Nothing,
};
use abi::door::{Call, Outcome};
use abi::ids::AgentName;
use abi::rpc::{Code, Request, RpcError};
use abi::{limits, metrics as text};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::agents::Cage;
use crate::caller::hung_up;
use crate::jail::cgroup::field;
use crate::output::unix_ms;
use crate::{lease, metrics, state};

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
    let mut networks = lease::network_use(&cage.places.egress).unwrap_or_default();
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
    used.cpu_ms = field(&read("cpu.stat"), "usage_usec").unwrap_or(0) / 1000;
    used.memory_kib = number("memory.current") / 1024;
    used.memory_max_kib = number("memory.max") / 1024;
    used.tasks = u32::try_from(number("pids.current")).unwrap_or(u32::MAX);
    (used.disk_read_bytes, used.disk_written_bytes) = traffic(&read("io.stat"));
}

/// Bytes read and written, over all devices of io.stat: lines of `8:0 rbytes=1 wbytes=2 ...`.
fn traffic(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let words = text.split_whitespace().filter_map(|word| word.split_once('='));
        words.filter(|(name, _)| *name == key).filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    };
    (sum("rbytes"), sum("wbytes"))
}

/// Makes events of what egress refuses agents, as long as cage lives. On a thread of its own.
pub fn follow_denials(cage: &Cage) {
    loop {
        // What was refused before cage asked is egress's to tell.
        let want = NetDenials { agent: None, follow: true };
        let asked: Result<(_, Denials), _> =
            lease::ask("egress", &cage.places.egress, "net.denials", &want, &[], limits::NET_USE_MS_MAX);
        if let Ok((mut connection, _)) = asked
            && connection.set_timeout(None).is_ok()
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
}
