//! `agent evidence`: what is kept of quarantined lives, here.
//!
//! Must hold: a fetched archive appears whole and durable under its name, or not at all, and replaces nothing.

use abi::control::{
    Evidence, EvidenceFile, EvidenceList, EvidenceListing, EvidenceRef, EvidenceSent, Output, Progress,
};
use abi::ids::Instance;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, RenameFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{Meter, Table, ago, size, visible};

/// The node tells how far it is every few MiB; a slow disk may take a while for those.
const COPY_SILENCE: Duration = Duration::from_secs(150);

pub fn list(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let name = given.at(0).map(id).transpose()?;
    let mut params = EvidenceListing { name, after: None };
    let mut table = Table::new(&["LIFE", "QUARANTINED", "BY", "REASON", "ENDED", "FILES"]);
    loop {
        let result = context.ask("agent.evidence", &params, Silence::Ordinary)?.result(&mut |_| Ok(()))?;
        let page: EvidenceList = typed(&result)?;
        context.result_or_json(result)?;
        page.lives.iter().for_each(|life| row(&mut table, life));
        params.after = page.next;
        if params.after.is_none() {
            break;
        }
    }
    if !context.json {
        say(&table.render())?;
    }
    Ok(0)
}

fn row(table: &mut Table, life: &Evidence) {
    let why = life.quarantine.as_ref();
    let files = life.files.iter().map(|file| format!("{} {}", file.name, size(file.bytes)));
    table.row(&[
        &life.instance.to_string(),
        &why.map_or("-".into(), |why| ago(why.unix_ms)),
        why.map_or("-", |why| &why.by),
        why.map_or("-", |why| &why.reason),
        if life.has_ended { "yes" } else { "not yet" },
        &files.collect::<Vec<_>>().join(", "),
    ]);
}

pub fn fetch(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let instance: Instance = id(given.required(0))?;
    let to = given.required(1);
    let mut part = Part::create(Path::new(to)).map_err(|error| local(to, &error))?;
    let mut meter = Meter::new(context.json);
    let params = EvidenceRef { instance: instance.clone() };
    let mut next = 0;
    let mut link = context.ask("agent.read_evidence", &params, Silence::AtMost(COPY_SILENCE))?;
    let result = link.result(&mut |request| {
        if let Some(progress) = note::<Progress>(request, "progress")? {
            meter.show(&instance.to_string(), &progress);
        }
        let Some(output) = note::<Output>(request, "output")? else { return Ok(()) };
        let bytes = STANDARD.decode(&output.data).ok().filter(|_| output.seq == next);
        next += 1;
        part.file.write_all(&bytes.ok_or_else(not_whole)?).map_err(|error| local(to, &error))
    });
    meter.done();
    let sent: EvidenceSent = typed(&result?)?;
    let bytes = part.keep().map_err(|error| local(to, &error))?;
    if context.json {
        say(&format!("{}\n", serde_json::json!(sent)))?;
    } else {
        let files: String = sent.files.iter().map(line).collect();
        say(&format!("{files}{}, {}\n", visible(to), size(bytes)))?;
    }
    Ok(0)
}

fn line(file: &EvidenceFile) -> String {
    let digest = file.digest.map_or("-".into(), |digest| digest.to_string());
    format!("{digest}  {}  {}\n", visible(&file.name), size(file.bytes))
}

pub fn remove(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = EvidenceRef { instance: id(given.required(0))? };
    if context.call("agent.remove_evidence", &params)?.is_some() {
        say(&format!("the evidence of {} is deleted\n", params.instance))?;
    }
    Ok(0)
}

fn not_whole() -> Failure {
    Failure::local(
        status::FAILED,
        "a part of the archive is missing or is not base64",
        "the node numbers them from 0 without gaps",
        "try again; use a nullctl of the node's version",
    )
}

fn local(to: &str, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => "it is not replaced: name another file, or move that one away",
        _ => "name a file in a directory that you may write to and that has room",
    };
    Failure::local(status::USAGE, format!("{to}: {error}"), "evidence is written whole or not at all", remedy)
}

/// A file that is being written under another name, and gone unless it was kept.
pub(super) struct Part {
    pub(super) file: File,
    path: PathBuf,
    to: PathBuf,
    flags: RenameFlags,
}

impl Part {
    pub(super) fn create(to: &Path) -> io::Result<Part> {
        if to.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Part::open(to, RenameFlags::NOREPLACE)
    }

    /// One that takes the place of what is there, if anything is.
    pub(super) fn replacing(to: &Path) -> io::Result<Part> {
        Part::open(to, RenameFlags::empty())
    }

    fn open(to: &Path, flags: RenameFlags) -> io::Result<Part> {
        let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let path = to.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Part { file, path, to: to.to_owned(), flags })
    }

    /// Gives it its name, durably; how long it is.
    pub(super) fn keep(self) -> io::Result<u64> {
        self.file.sync_all()?;
        rustix::fs::renameat_with(CWD, &self.path, CWD, &self.to, self.flags)?;
        let dir = self.to.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()?;
        Ok(self.file.metadata()?.len())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // kept: it has another name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("nullctl-evidence-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_is_not_kept_leaves_nothing() {
        let dir = dir("dropped");
        let mut part = Part::create(&dir.join("a.tar.gz")).unwrap();
        part.file.write_all(b"half").unwrap();
        assert_eq!(names(&dir).len(), 1);
        drop(part);
        assert_eq!(names(&dir), [] as [String; 0]);
        fs::remove_dir(dir).unwrap();
    }

    #[test]
    fn nothing_is_replaced_not_even_what_came_meanwhile() {
        let dir = dir("kept");
        let to = dir.join("a.tar.gz");
        let mut part = Part::create(&to).unwrap();
        part.file.write_all(b"whole").unwrap();
        fs::write(&to, "another's").unwrap();
        assert_eq!(part.keep().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(Part::create(&to).is_err());
        assert_eq!(fs::read_to_string(&to).unwrap(), "another's");
        fs::remove_file(&to).unwrap();
        let mut part = Part::create(&to).unwrap();
        part.file.write_all(b"whole").unwrap();
        assert_eq!(part.keep().unwrap(), 5);
        assert_eq!(names(&dir), ["a.tar.gz"]);
        Part::replacing(&to).unwrap().keep().unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "", "only who asks for it replaces");
        fs::remove_dir_all(dir).unwrap();
    }
}
