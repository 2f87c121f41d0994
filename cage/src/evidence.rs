//! What is kept of quarantined lives: a directory `evidence/NAME.GENERATION` each, with `status.json`, `console.txt`, the agent's
//! log and, once its VM is gone, the disk it wrote.
//!
//! Must hold: evidence is deleted by `agent.remove` alone; there is room for it before an agent is quarantined. Its directory on
//! disk is the mark of the quarantine, so it outlives cage. Must never: look into a disk.

use abi::control::AgentStatus;
use abi::ids::{AgentName, Instance};
use abi::limits;
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::agents::write_whole;
use crate::disks;
use crate::places::Places;

/// Why, by whom and when, and all that was known of the agent then.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    pub instance: &'a Instance,
    pub by: &'a str,
    pub reason: &'a str,
    pub unix_ms: u64,
    pub status: &'a AgentStatus,
}

/// A file in a directory of evidence: its life is over.
const ENDED: &str = "ended";

fn root(places: &Places) -> PathBuf {
    places.state.join("evidence")
}

/// The directory of one life's evidence.
pub fn dir(places: &Places, instance: &Instance) -> PathBuf {
    root(places).join(instance.to_string())
}

/// All lives that there is evidence of, oldest first.
pub fn all(places: &Places) -> io::Result<Vec<Instance>> {
    let entries = match fs::read_dir(root(places)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Instance>().ok()));
    }
    found.sort_by_key(|instance| instance.generation);
    Ok(found)
}

/// Those of one agent.
pub fn of(places: &Places, agent: &AgentName) -> io::Result<Vec<Instance>> {
    let mut found = all(places)?;
    found.retain(|instance| instance.agent == *agent);
    Ok(found)
}

/// Makes the directory of a life's evidence, which marks it as quarantined.
pub fn begin(places: &Places, instance: &Instance) -> io::Result<PathBuf> {
    if all(places)?.len() >= limits::EVIDENCE_MAX {
        let rule = format!("evidence of {} lives is kept, which is the most", limits::EVIDENCE_MAX);
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, rule));
    }
    let dir = dir(places, instance);
    fs::create_dir_all(&dir)?;
    fs::File::open(root(places))?.sync_all()?;
    Ok(dir)
}

/// Writes what is known while the VM stands still.
pub fn write(places: &Places, record: &Record<'_>, console: &[String], log: &Path) -> io::Result<()> {
    let dir = dir(places, record.instance);
    write_whole(&dir.join("status.json"), &serde_json::to_vec_pretty(record)?)?;
    write_whole(&dir.join("console.txt"), (console.join("\n") + "\n").as_bytes())?;
    for (from, to) in [(log.to_owned(), "agent.log"), (log.with_extension("old"), "agent.old")] {
        match fs::copy(&from, dir.join(to)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// After a cage or a node that died: takes disks of quarantined lives out of the way of the sweep, and of the agent's next life.
pub fn rescue(places: &Places) -> io::Result<()> {
    for instance in all(places)? {
        let dir = dir(places, &instance);
        if !dir.join(ENDED).exists() && disks::rescue(places, &instance, &dir)? {
            abi::log::warning("evidence_rescued", &[("instance", &instance)]);
        }
    }
    Ok(())
}

/// Notes that a quarantined life has ended and that its receipt says so.
pub fn end(places: &Places, instance: &Instance) -> io::Result<()> {
    fs::File::create(dir(places, instance).join(ENDED)).map(|_| ())
}

/// The quarantined lives of which nobody has noted the end: they ended with the cage they were in. From now on it is noted.
pub fn close(places: &Places) -> io::Result<Vec<Instance>> {
    let mut open = all(places)?;
    open.retain(|instance| !dir(places, instance).join(ENDED).exists());
    for instance in &open {
        end(places, instance)?;
    }
    Ok(open)
}

/// Deletes one life's.
pub fn remove(places: &Places, instance: &Instance) -> io::Result<()> {
    fs::remove_dir_all(dir(places, instance))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        let mut places = Places::of_node();
        (places.state, places.run) = (dir.join("state"), dir.join("run"));
        fs::create_dir_all(places.state.join("scratch")).unwrap();
        places
    }

    #[test]
    fn evidence_is_found_by_its_agent_and_removed_alone() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        assert_eq!(all(&places).unwrap(), []);
        let lives: Vec<Instance> = ["a.9", "b.2", "a.10"].map(|life| life.parse().unwrap()).to_vec();
        for life in &lives {
            begin(&places, life).unwrap();
        }
        assert_eq!(of(&places, &"a".parse().unwrap()).unwrap(), [lives[0].clone(), lives[2].clone()]);
        remove(&places, &lives[0]).unwrap();
        assert_eq!(all(&places).unwrap(), [lives[1].clone(), lives[2].clone()]);
    }

    #[test]
    fn an_end_that_nobody_noted_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let (noted, lost): (Instance, Instance) = ("a.1".parse().unwrap(), "b.2".parse().unwrap());
        begin(&places, &noted).unwrap();
        begin(&places, &lost).unwrap();
        end(&places, &noted).unwrap();
        assert_eq!(close(&places).unwrap(), [lost]);
        assert_eq!(close(&places).unwrap(), []);
    }

    #[test]
    fn a_full_store_refuses_and_deletes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        for generation in 0..limits::EVIDENCE_MAX as u64 {
            begin(&places, &Instance { agent: "a".parse().unwrap(), generation }).unwrap();
        }
        let error = begin(&places, &"b.100".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("the most"), "{error}");
        assert_eq!(all(&places).unwrap().len(), limits::EVIDENCE_MAX);
    }

    #[test]
    fn a_quarantined_lifes_disk_survives_the_sweep() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let (kept, other): (Instance, Instance) = ("a.1".parse().unwrap(), "b.1".parse().unwrap());
        let evidence = begin(&places, &kept).unwrap();
        fs::write(places.scratch(&kept), "what it wrote").unwrap();
        fs::write(places.scratch(&other), "another's").unwrap();
        rescue(&places).unwrap();
        rescue(&places).unwrap();
        assert_eq!(fs::read_to_string(evidence.join("workspace.ext4")).unwrap(), "what it wrote");
        assert!(places.scratch(&other).exists() && !places.scratch(&kept).exists());
    }
}
