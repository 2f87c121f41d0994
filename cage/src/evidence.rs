//! What is kept of quarantined lives: a directory `evidence/NAME.GENERATION` each, with `status.json`, `console.txt`, the agent's
//! log and, once its VM is gone, the disk it wrote.
//!
//! Must hold: evidence is deleted when somebody asks, and never else; there is room for it before an agent is quarantined. Its
//! directory on disk is the mark of the quarantine, so it outlives cage. Must never: look into a disk.

pub mod archive;
pub mod calls;

use abi::control::{AgentStatus, Evidence, EvidenceFile, Quarantine};
use abi::ids::{AgentName, Instance};
use abi::{limits, log};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
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

/// What of a [`Record`] a listing tells.
#[derive(Debug, Deserialize)]
struct Head {
    by: String,
    reason: String,
    unix_ms: u64,
}

/// The files that evidence may consist of.
const FILES: [&str; 5] = [STATUS, "console.txt", "agent.old", "agent.log", disks::EVIDENCE];
const STATUS: &str = "status.json";
/// More than a status can have; a listing reads no more of one.
const STATUS_BYTES_MAX: u64 = 4 << 20;

/// What the name of a directory begins with that is being deleted; no agent's name does.
const REMOVED: &str = ".removed-";
/// A file in a directory of evidence: its life is over, and has its receipt.
const TOLD: &str = "told";
/// The same, and its disk is here if it had one: nothing is left to be done.
const ENDED: &str = "ended";

/// The directory of all evidence.
pub fn root(places: &Places) -> PathBuf {
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
    mark(&dir, sync)?;
    Ok(dir)
}

/// Makes a directory, durably or not at all: a mark that is left behind would be of a quarantine that never was.
fn mark(dir: &Path, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let root = dir.parent().ok_or_else(|| io::Error::other("evidence has a directory of its own"))?;
    let state = root.parent().ok_or_else(|| io::Error::other("evidence is part of the state"))?;
    if !root.exists() {
        fs::create_dir_all(root)?;
        sync(state)?;
    }
    fs::create_dir(dir)?;
    sync(root).inspect_err(|_| {
        if let Err(error) = fs::remove_dir(dir) {
            log::error("evidence_not_removed", &[("path", &dir.display()), ("error", &error)]);
        }
    })
}

/// Makes durable what a file holds, or which names a directory has.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes what is known while the VM stands still.
pub fn write(places: &Places, record: &Record<'_>, console: &[String], log: &Path) -> io::Result<()> {
    let dir = dir(places, record.instance);
    write_whole(&dir.join(STATUS), &serde_json::to_vec_pretty(record)?)?;
    write_whole(&dir.join("console.txt"), (console.join("\n") + "\n").as_bytes())?;
    for (from, to) in [(log.to_owned(), "agent.log"), (log.with_extension("old"), "agent.old")] {
        match fs::copy(&from, dir.join(to)) {
            Ok(_) => sync(&dir.join(to))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    sync(&dir)
}

/// After a cage or a node that died: finishes removals, and takes disks of quarantined lives out of the way of the sweep and of
/// the agent's next life. What cannot be done keeps nobody from starting: it is said, nothing is deleted, and the next start of
/// cage tries again.
pub fn rescue(places: &Places) {
    if let Err(error) = sweep(places) {
        log::error("evidence_not_removed", &[("error", &error)]);
    }
    let lives = all(places).unwrap_or_else(|error| {
        log::error("evidence_unreadable", &[("error", &error)]);
        Vec::new()
    });
    for instance in lives.iter().filter(|instance| !has_ended(places, instance)) {
        match disks::rescue(places, instance, &dir(places, instance)) {
            Ok(true) => log::warning("evidence_rescued", &[("instance", instance)]),
            Ok(false) => {}
            Err(error) => {
                let remedy = "its disk stays where it is, and cage tries again when it starts";
                log::error(
                    "evidence_not_rescued",
                    &[("instance", instance), ("error", &error), ("remedy", &remedy)],
                );
            }
        }
    }
}

/// Whether a disk of one life alone is to become evidence: then no sweep may have it. What cannot be told may be.
pub fn claims(places: &Places, disk: &Path) -> bool {
    let life = disk.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
    life.is_some_and(|life| disks::stands(&dir(places, &life)))
}

/// A life of an agent that has ended and whose workspace, a kept one, is not with its evidence: no life may go on with it.
pub fn owed(places: &Places, agent: &AgentName) -> io::Result<Option<Instance>> {
    let mut lives = of(places, agent)?.into_iter();
    Ok(lives.find(|life| !has_ended(places, life) && disks::is_left(places, life, &dir(places, life))))
}

/// Notes that a quarantined life has ended and that its receipt says so. Until its disk is with its evidence it stays one that the
/// next cage looks after.
pub fn end(places: &Places, instance: &Instance) -> io::Result<()> {
    let dir = dir(places, instance);
    File::create(dir.join(TOLD))?;
    if !disks::is_left(places, instance, &dir) {
        File::create(dir.join(ENDED))?;
    }
    Ok(())
}

/// The quarantined lives of whose end nobody has told: they ended with the cage they were in. From now on it is noted.
pub fn close(places: &Places) -> io::Result<Vec<Instance>> {
    let mut open = all(places)?;
    open.retain(|instance| !has_ended(places, instance));
    let told = |instance: &Instance| dir(places, instance).join(TOLD).exists();
    let untold = open.iter().filter(|instance| !told(instance)).cloned().collect();
    for instance in &open {
        end(places, instance)?;
    }
    Ok(untold)
}

/// One file of a life's evidence, open for reading.
#[derive(Debug)]
pub struct Piece {
    pub name: &'static str,
    pub file: File,
    pub bytes: u64,
}

/// Opens all files of a life's evidence; none: there is no such evidence. No name leads out of its directory.
pub fn open(places: &Places, instance: &Instance) -> io::Result<Option<Vec<Piece>>> {
    let root = match File::open(root(places)) {
        Ok(root) => OwnedFd::from(root),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(dir) = beneath(&root, &instance.to_string(), OFlags::DIRECTORY)? else { return Ok(None) };
    let mut pieces = Vec::new();
    for name in FILES {
        // Who stands in a file's place may be a FIFO: opening it must not wait for a writer.
        let Some(file) = beneath(&dir, name, OFlags::NONBLOCK)? else { continue };
        let file = File::from(file);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other(format!("{name} is no file")));
        }
        pieces.push(Piece { name, file, bytes: meta.len() });
    }
    Ok(Some(pieces))
}

/// Opens what a directory has at a name, through no link; none: nothing.
fn beneath(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(io::Error::new(io::Error::from(error).kind(), format!("{name}: {error}"))),
    }
}

/// Whether somebody noted that a quarantined life has ended.
pub fn has_ended(places: &Places, instance: &Instance) -> bool {
    dir(places, instance).join(ENDED).exists()
}

/// What is kept of a life; none: nothing is.
pub fn describe(places: &Places, instance: &Instance) -> io::Result<Option<Evidence>> {
    let Some(pieces) = open(places, instance)? else { return Ok(None) };
    let status = pieces.iter().find(|piece| piece.name == STATUS);
    let head = status.map(|piece| {
        let mut text = Vec::new();
        (&piece.file).take(STATUS_BYTES_MAX).read_to_end(&mut text)?;
        Ok::<_, io::Error>(serde_json::from_slice::<Head>(&text)?)
    });
    let quarantine = head.transpose()?.map(|Head { by, reason, unix_ms }| Quarantine { by, reason, unix_ms });
    let file = |piece: &Piece| EvidenceFile { name: piece.name.into(), bytes: piece.bytes, digest: None };
    Ok(Some(Evidence {
        instance: instance.clone(),
        quarantine,
        has_ended: has_ended(places, instance),
        files: pieces.iter().map(file).collect(),
    }))
}

/// Deletes one life's. It loses its name first: half of it must not be taken for a life that has not ended.
pub fn remove(places: &Places, instance: &Instance) -> io::Result<()> {
    let removed = root(places).join(format!("{REMOVED}{instance}"));
    fs::rename(dir(places, instance), &removed)?;
    sync(&root(places))?;
    fs::remove_dir_all(removed)
}

/// Deletes what an earlier cage had begun to delete.
fn sweep(places: &Places) -> io::Result<()> {
    let entries = match fs::read_dir(root(places)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(REMOVED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
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
    fn a_removal_that_was_cut_short_is_no_evidence_and_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let life: Instance = "a.1".parse().unwrap();
        let evidence = begin(&places, &life).unwrap();
        fs::write(evidence.join("agent.log"), "half").unwrap();
        let cut = root(&places).join(".removed-a.1");
        fs::rename(&evidence, &cut).unwrap();
        assert_eq!((all(&places).unwrap(), close(&places).unwrap()), (vec![], vec![]));
        rescue(&places);
        assert!(!cut.exists());
    }

    #[test]
    fn a_mark_that_is_not_durable_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let life: Instance = "a.1".parse().unwrap();
        let broken = |path: &Path| match path.ends_with("evidence") {
            true => Err(io::Error::other("the disk is broken")),
            false => sync(path),
        };
        assert!(mark(&super::dir(&places, &life), broken).is_err());
        assert_eq!(all(&places).unwrap(), []);
        begin(&places, &life).unwrap();
        assert!(begin(&places, &life).is_err(), "a mark is one quarantine's");
        assert_eq!(all(&places).unwrap(), [life]);
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
    fn what_is_kept_is_described_and_what_is_not_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let life: Instance = "a.1".parse().unwrap();
        assert!(describe(&places, &life).unwrap().is_none());
        let evidence = begin(&places, &life).unwrap();
        assert_eq!(describe(&places, &life).unwrap().unwrap().quarantine, None);
        let status =
            "{\"instance\": \"a.1\", \"by\": \"olga\", \"reason\": \"odd\", \"unix_ms\": 7, \"status\": {}}";
        fs::write(evidence.join(STATUS), status).unwrap();
        File::create(evidence.join("workspace.ext4")).unwrap().set_len(1 << 30).unwrap();
        fs::write(evidence.join("other"), "not ours").unwrap();
        end(&places, &life).unwrap();
        let told = describe(&places, &life).unwrap().unwrap();
        let quarantine = told.quarantine.unwrap();
        assert_eq!(
            (quarantine.by.as_str(), quarantine.reason.as_str(), quarantine.unix_ms),
            ("olga", "odd", 7)
        );
        let files: Vec<_> = told.files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        assert_eq!(files, [(STATUS, status.len() as u64), ("workspace.ext4", 1 << 30)]);
        assert!(told.has_ended && told.files.iter().all(|file| file.digest.is_none()));
    }

    #[test]
    fn no_name_leads_out_of_the_evidence() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let life: Instance = "a.1".parse().unwrap();
        let evidence = begin(&places, &life).unwrap();
        fs::write(dir.path().join("secret"), "another's").unwrap();
        for (name, target) in [("console.txt", "../../../secret"), (STATUS, "/etc/passwd")] {
            std::os::unix::fs::symlink(target, evidence.join(name)).unwrap();
            assert!(open(&places, &life).is_err(), "{name}");
            fs::remove_file(evidence.join(name)).unwrap();
        }
        fs::create_dir(evidence.join("agent.log")).unwrap();
        assert!(open(&places, &life).unwrap_err().to_string().contains("no file"));
        // Nor does a directory that is a link.
        std::os::unix::fs::symlink(&evidence, root(&places).join("b.2")).unwrap();
        assert!(open(&places, &"b.2".parse().unwrap()).is_err());
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
        rescue(&places);
        rescue(&places);
        assert_eq!(fs::read_to_string(evidence.join("workspace.ext4")).unwrap(), "what it wrote");
        assert!(places.scratch(&other).exists() && !places.scratch(&kept).exists());
    }

    /// As cage begins: what cannot be moved has a second name.
    #[test]
    fn a_disk_that_cannot_be_moved_stays_until_it_can_and_its_end_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let (stuck, free): (Instance, Instance) = ("a.1".parse().unwrap(), "b.2".parse().unwrap());
        for life in [&stuck, &free] {
            begin(&places, life).unwrap();
            fs::write(places.scratch(life), life.to_string()).unwrap();
        }
        fs::write(places.scratch(&"c.3".parse().unwrap()), "a leftover").unwrap();
        let second = dir.path().join("second");
        fs::hard_link(places.scratch(&stuck), &second).unwrap();
        let cgroups = crate::agents::bench::cgroups(dir.path());
        for told in [vec![stuck.clone(), free.clone()], vec![]] {
            crate::recovery::sweep(&places, &cgroups).unwrap();
            assert_eq!(fs::read_to_string(places.scratch(&stuck)).unwrap(), "a.1");
            assert_eq!(fs::read_dir(places.scratch_dir()).unwrap().count(), 1, "the others go");
            assert_eq!(close(&places).unwrap(), told);
            assert!(!has_ended(&places, &stuck) && has_ended(&places, &free));
        }
        fs::remove_file(second).unwrap();
        crate::recovery::sweep(&places, &cgroups).unwrap();
        assert_eq!(fs::read_to_string(super::dir(&places, &stuck).join("workspace.ext4")).unwrap(), "a.1");
        assert_eq!((close(&places).unwrap(), has_ended(&places, &stuck)), (vec![], true));
    }

    #[test]
    fn evidence_that_cannot_be_listed_costs_no_disk_and_no_start() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        fs::write(places.state.join("evidence"), "no directory").unwrap();
        fs::write(places.scratch(&"a.1".parse().unwrap()), "may be evidence").unwrap();
        crate::recovery::sweep(&places, &crate::agents::bench::cgroups(dir.path())).unwrap();
        assert!(places.scratch(&"a.1".parse().unwrap()).exists());
    }
}
