//! After an earlier life of cage, or of the node: what it left is removed, what ran is said to have ended, and runs again.
//!
//! Must hold: leftovers are gone before a new VM may start; what was running gets a receipt of its end before it starts anew.

use abi::ledger::Event;
use abi::log;
use std::fs;
use std::io;

use crate::agents::{Cage, Wanted};
use crate::jail::cgroup::Delegated;
use crate::places::Places;
use crate::{life, manifests};

/// Removes jails, scratch disks and cgroups of VMs that cannot live any more: nulld has killed all that was in cage's cgroup.
pub fn sweep(places: &Places, cgroups: &Delegated) -> io::Result<()> {
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

/// Starts again what ran before, and what the configuration wants started at boot.
pub fn resume(cage: &std::sync::Arc<Cage>, before: Wanted, first: bool) {
    let reason = if first { "the node went down" } else { "cage restarted" };
    for agent in before.agents.iter().filter(|agent| !agent.ended) {
        let instance = agent.instance.clone();
        life::record(cage, Event::AgentExited { instance, reason: reason.into(), code: None, signal: None });
    }
    cage.want(|agents| agents.iter_mut().for_each(|agent| agent.ended = true));
    let mut names: Vec<_> = before.agents.into_iter().map(|agent| agent.instance.agent).collect();
    if first {
        let known = manifests::load(&cage.places.config).known;
        names.extend(known.into_values().filter(|l| l.manifest.autostart).map(|l| l.manifest.name));
    }
    names.sort();
    names.dedup();
    for name in names {
        match cage.start(&name, "cage") {
            Ok((_, instance)) => log::info("agent_resumed", &[("instance", &instance)]),
            Err(error) => {
                log::error("agent_not_resumed", &[("agent", &name), ("error", &error)]);
                cage.want(|agents| agents.retain(|agent| agent.instance.agent != name));
            }
        }
    }
}
