//! `task apply`: a verified patch into a directory.
//!
//! Must hold: the directory is the task's base, path by path, when it is begun; then all of the patch is there, or nothing of it. Every
//! path is resolved beneath the directory and through no symbolic link; nothing that is not part of the tree is replaced or removed.

use abi::control::{TaskExport, TaskPart, TaskRef};
use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, chmodat, mkdirat, openat, readlinkat, renameat_with, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use verdict::patch::Change;
use verdict::tree::Entry;

use super::change::{self, Patch};
use super::export::fetch;
use crate::cli::Arguments;
use crate::context::Context;
use crate::failure::{Failure, status};
use crate::pack::{self, Tree};
use crate::print::visible;
use crate::run::id;
use crate::tree::{open_beneath, split};

pub fn apply(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let task = TaskRef { id: id(given.required(0))? };
    let into = given.value("into").unwrap_or(".");
    let (now, summary) = super::verified(context, &task)?;
    let found = Tree::of_directory(into)?;
    let base = found.digested()?;
    change::same_base(&base, &now, into)?;
    let (bytes, _) = fetch(context, &TaskExport { id: task.id, what: TaskPart::Patch })?;
    let patch = change::read(&bytes, &base, &now, &summary)?;
    let root =
        found.root().ok_or_else(|| Failure::usage(format!("{into} is no directory"), "name a directory"))?;
    let left = put(root, &patch).map_err(|(error, stays)| {
        let (stands, remedy) = match stays.as_slice() {
            [] => ("nothing was changed".to_owned(), "move away what is in its way, and try again"),
            stays => (
                format!("not all could be put back: {}", stays.join("; ")),
                "put these right by hand; everything else is as it was",
            ),
        };
        let message = format!("{}: {error}; {stands}", visible(into));
        Failure::local(status::FAILED, message, "a patch is applied whole or not at all", remedy)
    })?;
    let count = patch.set.changes().count();
    for path in &left {
        eprintln!("{}: not empty, so it stays", visible(path));
    }
    let words = format!("{count} paths changed; the tree is {}\n", patch.set.result());
    super::told(context, &json!({ "changed": count, "result": patch.set.result(), "stay": left }), &words)
}

/// Applies it; directories that should go and are not empty. Else why not, and what of it could not be put back.
fn put(root: &OwnedFd, patch: &Patch) -> Result<Vec<String>, (io::Error, Vec<String>)> {
    let mut stage = Stage::create(root).map_err(|error| (error, Vec::new()))?;
    match stage.prepare(patch).and_then(|()| stage.exchange(patch)) {
        Ok(left) => {
            stage.discard();
            Ok(left)
        }
        Err(error) => Err((error, stage.undo())),
    }
}

/// A directory in the tree where new files wait and old ones are kept until all is done.
struct Stage<'a> {
    root: &'a OwnedFd,
    dir: OwnedFd,
    name: String,
    done: Vec<Done>,
}

/// A step that can be taken back.
enum Done {
    /// What was at the path lies in the stage.
    Away {
        path: String,
        kept: String,
    },
    RemovedDirectory {
        path: String,
        mode: Mode,
    },
    Made {
        path: String,
        is_directory: bool,
    },
}

impl<'a> Stage<'a> {
    fn create(root: &'a OwnedFd) -> io::Result<Stage<'a>> {
        let name = format!(".nullctl-apply-{}", std::process::id());
        mkdirat(root, &name, Mode::RWXU).map_err(|error| at(&name, error))?;
        let dir = open_beneath(root, &name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Stage { root, dir, name, done: Vec::new() })
    }

    /// Writes what is new, whole and durable.
    fn prepare(&self, patch: &Patch) -> io::Result<()> {
        for (number, (path, change)) in patch.set.changes().enumerate() {
            let name = format!("new-{number}");
            match &change.new {
                Some(Entry::File { is_executable, .. }) => {
                    let flags =
                        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let mode = Mode::from_raw_mode(if *is_executable { 0o777 } else { 0o666 }); // less the umask
                    let mut file = File::from(openat(&self.dir, &name, flags, mode)?);
                    file.write_all(patch.content(path))?;
                    file.sync_all()?;
                }
                Some(Entry::Link { target }) => symlinkat(target, &self.dir, &name)?,
                Some(Entry::Directory) | None => {}
            }
        }
        Ok(())
    }

    fn exchange(&mut self, patch: &Patch) -> io::Result<Vec<String>> {
        let changes: Vec<(usize, &str, &Change)> =
            patch.set.changes().enumerate().map(|(number, (path, change))| (number, path, change)).collect();
        let mut left = Vec::new();
        for (number, path, change) in changes.iter().rev() {
            match (&change.old, &change.new) {
                (Some(Entry::Directory), Some(Entry::Directory)) | (None, _) => {}
                (Some(Entry::Directory), new) => {
                    if !self.remove_directory(path)? {
                        match new {
                            None => left.push((*path).to_owned()),
                            Some(_) => {
                                return Err(at(path, "a directory that should become a file is not empty"));
                            }
                        }
                    }
                }
                (Some(old), _) => self.put_away(path, &format!("old-{number}"), old)?,
            }
        }
        for (number, path, change) in &changes {
            match &change.new {
                Some(Entry::Directory) if change.old != Some(Entry::Directory) => {
                    self.make_directory(path)?
                }
                Some(Entry::Directory) | None => {}
                Some(_) => self.put_there(path, &format!("new-{number}"))?,
            }
        }
        Ok(left)
    }

    fn parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let (parent, name) = split(path).ok_or_else(|| at(path, "it is the tree itself"))?;
        let dir = open_beneath(self.root, parent, OFlags::PATH | OFlags::DIRECTORY);
        Ok((dir.map_err(|error| at(path, error))?, name))
    }

    /// Moves what is at the path into the stage, and makes sure that it is what the base has there.
    fn put_away(&mut self, path: &str, kept: &str, old: &Entry) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        renameat_with(&parent, name, &self.dir, kept, RenameFlags::NOREPLACE)
            .map_err(|error| at(path, error))?;
        self.done.push(Done::Away { path: path.to_owned(), kept: kept.to_owned() });
        let is_same = match old {
            Entry::File { is_executable, sha256, .. } => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(
                    openat(&self.dir, kept, flags, Mode::empty()).map_err(|error| at(path, error))?,
                );
                (file.metadata()?.mode() & 0o100 != 0) == *is_executable && pack::sum_of(file)? == *sha256
            }
            Entry::Link { target } => readlinkat(&self.dir, kept, Vec::new())
                .is_ok_and(|found| found.to_bytes() == target.as_bytes()),
            Entry::Directory => false,
        };
        if is_same { Ok(()) } else { Err(at(path, "it changed meanwhile")) }
    }

    fn put_there(&mut self, path: &str, new: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        renameat_with(&self.dir, new, &parent, name, RenameFlags::NOREPLACE).map_err(
            |error| match error {
                Errno::EXIST => at(path, "something is there that is no part of the tree"),
                error => at(path, error),
            },
        )?;
        self.done.push(Done::Made { path: path.to_owned(), is_directory: false });
        Ok(())
    }

    fn make_directory(&mut self, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o777)) {
            Ok(()) => self.done.push(Done::Made { path: path.to_owned(), is_directory: true }),
            // One that git ignores, or that was empty.
            Err(Errno::EXIST) => {
                drop(
                    open_beneath(&parent, name, OFlags::PATH | OFlags::DIRECTORY)
                        .map_err(|error| at(path, error))?,
                );
            }
            Err(error) => return Err(at(path, error)),
        }
        Ok(())
    }

    /// False: it is not empty.
    fn remove_directory(&mut self, path: &str) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| at(path, error))?;
        let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
        match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => self.done.push(Done::RemovedDirectory { path: path.to_owned(), mode }),
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(false),
            Err(error) => return Err(at(path, error)),
        }
        Ok(true)
    }

    /// Takes every step back, the last first, also those before one that cannot be. What stays, each with where it is.
    fn undo(&mut self) -> Vec<String> {
        let mut stays = Vec::new();
        while let Some(step) = self.done.pop() {
            stays.extend(self.take_back(&step).err());
        }
        if stays.is_empty() {
            self.discard();
        }
        stays
    }

    /// Nothing that somebody put there meanwhile is replaced.
    fn take_back(&self, step: &Done) -> Result<(), String> {
        let parent = |path| self.parent(path).map_err(|error| error.to_string());
        match step {
            Done::Away { path, kept } => {
                let (parent, name) = parent(path)?;
                renameat_with(&self.dir, kept, &parent, name, RenameFlags::NOREPLACE)
                    .map_err(|error| format!("{} lies in {}/{kept} ({error})", visible(path), self.name))
            }
            Done::RemovedDirectory { path, mode } => {
                let (parent, name) = parent(path)?;
                mkdirat(&parent, name, *mode)
                    .and_then(|()| chmodat(&parent, name, *mode, AtFlags::empty())) // the umask took some of it
                    .map_err(|error| format!("the directory {} is gone ({error})", visible(path)))
            }
            Done::Made { path, is_directory } => {
                let (parent, name) = parent(path)?;
                let flags = if *is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                unlinkat(&parent, name, flags)
                    .map_err(|error| format!("{} was made and is there ({error})", visible(path)))
            }
        }
    }

    /// Removes the stage with what is left in it.
    fn discard(&self) {
        for entry in rustix::fs::Dir::read_from(self.dir.as_fd()).into_iter().flatten().flatten() {
            let _ = unlinkat(&self.dir, entry.file_name(), AtFlags::empty()); // `.` and `..` stay
        }
        let _ = unlinkat(self.root, &self.name, AtFlags::REMOVEDIR); // one that stays is seen, and hurts nobody
    }
}

fn at(path: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", visible(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_undo_that_fails_takes_the_rest_back_and_tells_what_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b", "c"] {
            fs::write(path(name), name).unwrap();
        }
        fs::create_dir(path("d")).unwrap();
        fs::set_permissions(path("d"), fs::Permissions::from_mode(0o771)).unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let mut stage = Stage::create(&root).unwrap();
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            let sha256 = pack::sum(name.as_bytes());
            let old = Entry::File { is_executable: false, sha256, bytes: 1 };
            stage.put_away(name, &format!("old-{number}"), &old).unwrap();
        }
        assert!(stage.remove_directory("d").unwrap());
        stage.make_directory("made").unwrap();
        // Somebody else is at work there meanwhile.
        fs::write(path("b"), "theirs").unwrap();
        fs::write(path("made/more"), "theirs").unwrap();
        let stays = stage.undo();
        let [made, b] = stays.as_slice() else { panic!("{stays:?}") };
        assert!(made.starts_with("made was made and is there"), "{made}");
        let kept = format!("{}/old-1", stage.name);
        assert!(b.starts_with(&format!("b lies in {kept} ")), "{b}");
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();
        assert_eq!(
            (read("a"), read("c"), read("b"), read(&kept)),
            ("a".into(), "c".into(), "theirs".into(), "b".into())
        );
        assert_eq!(fs::metadata(path("d")).unwrap().permissions().mode() & 0o7777, 0o771);
    }

    #[test]
    fn a_file_whose_executable_bit_changed_meanwhile_is_not_taken_for_the_bases() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "a").unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let mut stage = Stage::create(&root).unwrap();
        let old = Entry::File { is_executable: true, sha256: pack::sum(b"a"), bytes: 1 };
        assert!(stage.put_away("a", "old-0", &old).unwrap_err().to_string().contains("changed meanwhile"));
        assert!(stage.undo().is_empty() && dir.path().join("a").exists());
    }
}
