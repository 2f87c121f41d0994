//! `agent`: start, stop and look at agents.

use abi::control::{
    AgentCreate, AgentList, AgentQuarantine, AgentRef, AgentRemoved, AgentState, AgentStatus, Nothing,
    Progress, Started,
};
use abi::guest::Exit;
use abi::manifest::{Manifest, RootfsRef};
use std::time::Duration;

use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Meter, Table, facts, size, span, visible};

/// Starting is bounded by the node (a guest's boot, 120 s); this is for a node that says nothing at all.
const START_SILENCE: Duration = Duration::from_secs(180);
/// A stop, a pause and a quarantine are bounded by the node too (65 s).
const CHANGE_SILENCE: Duration = Duration::from_secs(90);

fn agent(given: &Arguments) -> Result<AgentRef, Failure> {
    Ok(AgentRef { name: id(given.required(0))? })
}

fn state(state: AgentState) -> &'static str {
    match state {
        AgentState::Stopped => "stopped",
        AgentState::Starting => "starting",
        AgentState::Running => "running",
        AgentState::Paused => "paused",
        AgentState::Quarantined => "quarantined",
        AgentState::Stopping => "stopping",
        AgentState::Exited => "exited",
        AgentState::Failed => "failed",
    }
}

fn health(healthy: Option<bool>) -> &'static str {
    match healthy {
        None => "-",
        Some(true) => "healthy",
        Some(false) => "unhealthy",
    }
}

pub fn list(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("agent.list", &Nothing {})? else {
        return Ok(0);
    };
    let list: AgentList = typed(&result)?;
    let mut table = Table::new(&[
        "AGENT", "STATE", "INSTANCE", "VERSION", "ROOTFS", "UP", "HEALTH", "RESTARTS", "DETAIL",
    ]);
    for agent in &list.agents {
        table.row(&[
            agent.name.as_str(),
            state(agent.state),
            &agent.instance.as_ref().map_or("-".into(), ToString::to_string),
            &agent.version,
            &agent.rootfs,
            &agent.uptime_ms.map_or("-".into(), span),
            health(agent.healthy),
            &agent.restarts.to_string(),
            &agent.detail,
        ]);
    }
    let mut text = table.render();
    if !list.rejected.is_empty() {
        text.push_str("\nManifests that are wrong and were not loaded:\n");
        for error in &list.rejected {
            text.push_str(&format!("  {}\n", visible(&error.to_string())));
        }
    }
    say(&text)?;
    Ok(0)
}

pub fn start(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    begin(context, given, "agent.start", "starting")
}

pub fn restart(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    begin(context, given, "agent.restart", "restarting")
}

fn begin(context: &Context, given: &Arguments, method: &str, doing: &str) -> Result<u8, Failure> {
    let params = agent(given)?;
    let what = format!("{doing} {}", params.name);
    if let Some(result) = with_progress(context, method, &params, &what)? {
        let started: Started = typed(&result)?;
        say(&format!("{} runs, {} after the request\n", started.instance, span(started.took_ms)))?;
    }
    Ok(0)
}

/// A call that tells how far it is.
fn with_progress(
    context: &Context,
    method: &str,
    params: &impl serde::Serialize,
    what: &str,
) -> Result<Option<serde_json::Value>, Failure> {
    let mut meter = Meter::new(context.json);
    let mut link = context.ask(method, params, Silence::AtMost(START_SILENCE))?;
    let result = link.result(&mut |request| {
        if let Some(progress) = note::<Progress>(request, "progress")? {
            meter.show(what, &progress);
        }
        context.note(request)
    });
    meter.done();
    context.result_or_json(result?)
}

/// A call that answers with nothing, once the agent is as asked.
fn change(
    context: &Context,
    method: &str,
    params: &impl serde::Serialize,
    done: &str,
) -> Result<u8, Failure> {
    let mut link = context.ask(method, params, Silence::AtMost(CHANGE_SILENCE))?;
    let result = link.result(&mut |request| context.note(request))?;
    if context.result_or_json(result)?.is_some() {
        say(&format!("{done}\n"))?;
    }
    Ok(0)
}

pub fn stop(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = agent(given)?;
    change(context, "agent.stop", &params, &format!("{} is stopped", params.name))
}

pub fn kill(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = agent(given)?;
    change(context, "agent.kill", &params, &format!("{} is dead", params.name))
}

pub fn pause(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = agent(given)?;
    change(context, "agent.pause", &params, &format!("{} is paused", params.name))
}

pub fn resume(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = agent(given)?;
    change(context, "agent.resume", &params, &format!("{} goes on", params.name))
}

pub fn quarantine(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let reason = given.value("reason").unwrap_or("no reason was given").to_owned();
    let params = AgentQuarantine { name: id(given.required(0))?, reason };
    let done =
        format!("{} is frozen, its network is cut; agent stop ends it and keeps the evidence", params.name);
    change(context, "agent.quarantine", &params, &done)
}

pub fn create(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let snapshot = given.value("from").map(id).transpose()?;
    let params = AgentCreate { name: id(given.required(0))?, snapshot };
    if with_progress(context, "agent.create", &params, &format!("creating {}", params.name))?.is_some() {
        say(&format!("the workspace of {} is there\n", params.name))?;
    }
    Ok(0)
}

pub fn remove(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = agent(given)?;
    let mut link = context.ask("agent.remove", &params, Silence::AtMost(CHANGE_SILENCE))?;
    let result = link.result(&mut |request| context.note(request))?;
    if let Some(result) = context.result_or_json(result)? {
        let removed: AgentRemoved = typed(&result)?;
        say(&format!("{}: {}\n", params.name, deleted(&removed)))?;
    }
    Ok(0)
}

/// What was deleted.
fn deleted(removed: &AgentRemoved) -> String {
    let own = [(removed.workspace, "its workspace"), (removed.log, "its log")];
    let mut things: Vec<String> =
        own.iter().filter(|(was, _)| *was).map(|(_, what)| (*what).into()).collect();
    things.extend(removed.evidence.iter().map(|life| format!("the evidence of {life}")));
    match things.is_empty() {
        true => "there was nothing to delete".into(),
        false => format!("deleted {}", things.join(", ")),
    }
}

pub fn status(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    if let Some(result) = context.call("agent.status", &agent(given)?)? {
        say(&in_words(&typed(&result)?))?;
    }
    Ok(0)
}

fn in_words(status: &AgentStatus) -> String {
    let summary = &status.summary;
    let mut life = state(summary.state).to_owned();
    if let Some(up) = summary.uptime_ms {
        life.push_str(&format!(", up {}", span(up)));
    }
    if !summary.detail.is_empty() {
        life.push_str(&format!(": {}", summary.detail));
    }
    let stages: Vec<String> = status.stages_ms.iter().map(|(stage, ms)| format!("{stage} {ms} ms")).collect();
    let mut pairs = vec![
        ("agent", format!("{} {}", summary.name, summary.version)),
        ("state", life),
        ("instance", summary.instance.as_ref().map_or("-".into(), ToString::to_string)),
        ("manifest", status.manifest_digest.to_string()),
        (
            "rootfs",
            status
                .rootfs_digest
                .map_or("not in the store".into(), |digest| format!("{} {digest}", summary.rootfs)),
        ),
    ];
    pairs.extend(grants(&status.manifest));
    pairs.push((
        "in use",
        match (status.memory_kib, status.cpu_ms) {
            (None, None) => "no VM".into(),
            (memory, cpu) => format!(
                "{} memory, {} cpu time, {} execs",
                size(memory.unwrap_or(0) * 1024),
                span(cpu.unwrap_or(0)),
                status.execs_running
            ),
        },
    ));
    if !stages.is_empty() {
        pairs.push(("last start", stages.join(", ")));
    }
    if !status.guest_stages_us.is_empty() {
        let stages = status.guest_stages_us.iter().map(|(stage, us)| format!("{stage} {} ms", us / 1000));
        pairs.push(("in the guest", stages.collect::<Vec<_>>().join(", ")));
    }
    pairs.extend(history(status));
    if let Some(exit) = &status.exit {
        pairs.push(("exit", exit_in_words(exit)));
    }
    let mut text = facts(&pairs);
    if !status.guest_denials.is_empty() {
        text.push_str("\nRefused by the sandbox in the guest, as the guest tells it:\n");
        for denial in &status.guest_denials {
            text.push_str(&format!("  {}\n", visible(denial)));
        }
    }
    if !status.console.is_empty() {
        text.push_str("\nThe console of the VM, when it broke:\n");
        for line in &status.console {
            text.push_str(&format!("  {}\n", visible(line)));
        }
    }
    text
}

/// What lives of it have left behind, and how it fares.
fn history(status: &AgentStatus) -> Vec<(&'static str, String)> {
    let summary = &status.summary;
    let mut pairs = Vec::new();
    if summary.healthy.is_some() {
        pairs.push(("health", health(summary.healthy).to_owned()));
    }
    if summary.restarts > 0 {
        pairs.push(("restarts", format!("{} in a row", summary.restarts)));
    }
    let disks = status.disks.iter().map(|disk| {
        format!("{} {} of {}", disk.name, size(disk.used_kib * 1024), size(u64::from(disk.size_mib) << 20))
    });
    if !status.disks.is_empty() {
        pairs.push(("disks", disks.collect::<Vec<_>>().join(", ")));
    }
    if !status.evidence.is_empty() {
        let lives: Vec<String> = status.evidence.iter().map(ToString::to_string).collect();
        pairs.push(("evidence", lives.join(", ")));
    }
    pairs
}

fn grants(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let or_none = |list: Vec<String>| {
        if list.is_empty() { "none".into() } else { list.join(" ") }
    };
    let network = manifest.network_allow.iter().map(ToString::to_string).collect();
    let programs = if manifest.shell {
        "anything in the rootfs (shell = true)".into()
    } else {
        let own = manifest.command.first().cloned().unwrap_or_default();
        std::iter::once(own).chain(manifest.exec.iter().cloned()).collect::<Vec<_>>().join(" ")
    };
    let rootfs = match &manifest.rootfs {
        RootfsRef::Name(name) => name.clone(),
        RootfsRef::Digest(digest) => digest.to_string(),
    };
    vec![
        ("command", format!("{} (rootfs {rootfs})", manifest.command.join(" "))),
        ("programs", programs),
        ("network", or_none(network)),
        ("reads", or_none(manifest.read.clone())),
        ("writes", or_none(manifest.write.clone())),
        (
            "limits",
            format!(
                "{} MiB memory, {} % of a core, {} MiB disk, {} processes",
                manifest.memory_mib, manifest.cpu_percent, manifest.disk_mib, manifest.pids_max
            ),
        ),
    ]
}

fn exit_in_words(exit: &Exit) -> String {
    let mut text = match (exit.code, exit.signal) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown".into(),
    };
    if exit.oom_killed {
        text.push_str(", out of memory");
    }
    if exit.dropped_bytes > 0 {
        text.push_str(&format!(", {} of output dropped", size(exit.dropped_bytes)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_says_what_is_gone() {
        let nothing = AgentRemoved { workspace: false, log: false, evidence: Vec::new() };
        assert_eq!(deleted(&nothing), "there was nothing to delete");
        let all = AgentRemoved { workspace: true, log: true, evidence: vec!["a.7".parse().unwrap()] };
        assert_eq!(deleted(&all), "deleted its workspace, its log, the evidence of a.7");
    }
}
