//! After an earlier life of cage, or of the node: what it left is removed, what ran is said to have ended, and runs again.
//!
//! Must hold: leftovers are gone before a new VM may start; what was running gets a receipt of its end before it starts anew;
//! an agent stays wanted until it runs, its last try broke, or somebody stops it.

use abi::control::AgentState;
use abi::ids::{AgentName, Instance};
use abi::ledger::Event;
use abi::{limits, log};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::agents::{Cage, Cause, Wanted, WantedAgent};
use crate::jail::cgroup::Delegated;
use crate::places::Places;
use crate::{evidence, life, manifests};

/// Removes jails, scratch disks and cgroups of VMs that cannot live any more: nulld has killed all that was in cage's cgroup,
/// frozen or not. What a quarantined agent wrote is evidence, and stays.
pub fn sweep(places: &Places, cgroups: &Delegated) -> io::Result<()> {
    evidence::rescue(places);
    for cgroup in cgroups.leftovers()? {
        log::warning("leftover_removed", &[("cgroup", &cgroup.dir().display())]);
        cgroup.kill()?;
        cgroup.remove()?;
    }
    for dir in [places.run.join("jails"), places.state.join("scratch")] {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if evidence::claims(places, &path) {
                continue;
            }
            log::warning("leftover_removed", &[("path", &path.display())]);
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
    }
    Ok(())
}

/// Whether this is cage's first life since the node booted: `autostart` is for that one.
pub fn first_since_boot(places: &Places) -> io::Result<bool> {
    fs::create_dir_all(&places.run)?;
    match fs::File::create_new(places.run.join("started")) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Starts again what ran before, and what the configuration wants started at boot. What breaks before its agent runs is tried
/// again a few times: a node that has just come up is a busy one.
pub fn resume(cage: &Arc<Cage>, before: Wanted, first: bool) {
    let reason = if first { "the node went down" } else { "cage restarted" };
    let ran = before.agents.iter().filter(|agent| !agent.ended).map(|agent| agent.instance.clone());
    let frozen = evidence::close(&cage.places).unwrap_or_else(|error| {
        log::error("evidence_unreadable", &[("error", &error)]);
        Vec::new()
    });
    for instance in ran.chain(frozen).collect::<BTreeSet<_>>() {
        life::record(cage, Event::AgentExited { instance, reason: reason.into(), code: None, signal: None });
    }
    // Between the mark of a quarantine and the note that nobody wants it any more, cage may die.
    let is_quarantined = |agent: &WantedAgent| evidence::dir(&cage.places, &agent.instance).exists();
    cage.want(|agents| {
        agents.retain(|agent| {
            let is_tasks = agent.errand && before.agents.contains(agent);
            !is_quarantined(agent) && !is_tasks
        });
        agents.iter_mut().filter(|agent| before.agents.contains(agent)).for_each(|agent| agent.ended = true);
    });
    let wanted = before.agents.into_iter().filter(|agent| !is_quarantined(agent) && !agent.errand);
    let mut names: Vec<_> = wanted.map(|agent| agent.instance.agent).collect();
    if first {
        let known = manifests::load(&cage.places.config).known;
        let autostart = known.into_values().filter(|l| l.manifest.autostart).map(|l| l.manifest.name);
        names.extend(autostart.filter(|name| !is_suspect(cage, name)));
    }
    names.sort();
    names.dedup();
    let names = names.into_iter().map(|name| (name, None)).collect();
    rounds(names, &limits::AGENT_RESUME_PAUSES_MS, std::thread::sleep, |names, tries_left| {
        let begun: Vec<_> = names.into_iter().filter_map(|name| begin(cage, name, tries_left)).collect();
        begun.into_iter().filter_map(|(agent, instance)| broke_early(&agent, &instance)).collect()
    });
}

/// Whether there is evidence of a quarantined life. Such an agent starts when somebody asks, not by itself.
fn is_suspect(cage: &Cage, name: &AgentName) -> bool {
    // What cannot be read may hold anything.
    let is_suspect = evidence::of(&cage.places, name).map_or(true, |lives| !lives.is_empty());
    if is_suspect {
        let remedy = "agent start runs it; agent evidence remove deletes what is kept of it";
        log::warning("quarantined_not_started", &[("agent", name), ("remedy", &remedy)]);
    }
    is_suspect
}

/// Tries all names, pauses, tries those that the last round gave back, and so on; each pause is followed by one round.
fn rounds<T>(
    mut left: Vec<T>,
    pauses_ms: &[u64],
    mut sleep: impl FnMut(Duration),
    mut attempt: impl FnMut(Vec<T>, usize) -> Vec<T>,
) {
    for (round, pause_ms) in pauses_ms.iter().enumerate() {
        if left.is_empty() {
            return;
        }
        sleep(Duration::from_millis(*pause_ms));
        left = attempt(left, pauses_ms.len() - 1 - round);
    }
}

/// An agent to be started, and the life that broke before, if one did.
type Pending = (AgentName, Option<Instance>);

fn begin(cage: &Arc<Cage>, pending: Pending, tries_left: usize) -> Option<(Arc<Agent>, Instance)> {
    let (name, broken) = pending;
    if let Some(broken) = broken {
        let agent = cage.agent(&name);
        let facts = agent.facts();
        // Somebody has stopped it, or started it, meanwhile.
        if facts.instance.as_ref() != Some(&broken) || facts.state.now() != AgentState::Failed {
            return None;
        }
    }
    match cage.start(&name, Cause { by: "cage".into(), tries_left, restarts: 0 }) {
        Ok((agent, instance)) => {
            log::info("agent_resumed", &[("instance", &instance), ("tries_left", &tries_left)]);
            Some((agent, instance))
        }
        // The next life of cage will want it.
        Err(_) if cage.is_leaving() => None,
        Err(error) => {
            log::error("agent_not_resumed", &[("agent", &name), ("error", &error)]);
            cage.want(|agents| agents.retain(|agent| agent.instance.agent != name));
            None
        }
    }
}

/// Waits until a life has come up or ended; gives it back if its VM broke before the agent ran.
fn broke_early(agent: &Agent, instance: &Instance) -> Option<Pending> {
    let mut facts = agent.facts();
    while facts.instance.as_ref() == Some(instance) && facts.state.now() == AgentState::Starting {
        facts = agent.wait(facts, Duration::from_secs(1));
    }
    let broke = facts.instance.as_ref() == Some(instance)
        && facts.state.now() == AgentState::Failed
        && !facts.stages_ms.iter().any(|(stage, _)| stage == "ready");
    broke.then(|| (agent.name.clone(), Some(instance.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_is_tried_again_as_often_as_there_are_pauses() {
        let (mut pauses, mut tries) = (Vec::new(), Vec::new());
        rounds(
            vec!["sound", "late", "broken"],
            &limits::AGENT_RESUME_PAUSES_MS,
            |pause| pauses.push(pause.as_millis() as u64),
            |names, tries_left| {
                tries.push((names.clone(), tries_left));
                names.into_iter().filter(|n| *n == "broken" || (*n == "late" && tries_left > 2)).collect()
            },
        );
        assert_eq!(pauses, limits::AGENT_RESUME_PAUSES_MS);
        assert_eq!(tries[0], (vec!["sound", "late", "broken"], 3));
        assert_eq!(tries[1], (vec!["late", "broken"], 2));
        assert_eq!(tries[2..], [(vec!["broken"], 1), (vec!["broken"], 0)]);
    }

    #[test]
    fn nothing_is_waited_for_when_all_run() {
        let mut slept = 0;
        rounds(vec![1], &[0, 1000], |_| slept += 1, |_, _| Vec::new());
        assert_eq!(slept, 1);
        rounds(Vec::<u8>::new(), &[0], |_| panic!("nobody is left"), |_, _| panic!("nobody is left"));
    }
}
