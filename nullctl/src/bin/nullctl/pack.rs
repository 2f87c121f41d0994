//! A tree of files: what a task begins from, as a tar that is the same for the same tree, and as its digest.
//!
//! Must hold: contents are what lies on the disk, read beneath one directory and through no symbolic link; the order is that of the
//! paths' bytes; owner, times and all bits of the mode but one are left out. Must never: run anything for a repository (`git`).

use abi::ids::Digest;
use abi::limits;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, fstat, readlinkat, statat};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::git::Repository;
use crate::print::visible;
use crate::tree::{open_beneath, open_root, split};

/// A tree that was found and not yet read.
#[derive(Debug)]
pub struct Tree {
    places: BTreeMap<String, Place>,
    origin: Origin,
    /// Where it comes from, in words.
    pub source: String,
    /// What is not in it although it lies there, and why.
    pub left_out: Vec<String>,
}

#[derive(Debug)]
enum Origin {
    Disk(OwnedFd),
    Git(Box<Repository>),
}

#[derive(Debug)]
enum Place {
    Directory,
    OnDisk,
    Object { id: String, is_link: bool, executable: bool },
}

/// One entry, with its contents.
pub enum Entry<'a> {
    Directory,
    File { executable: bool, bytes: u64, content: &'a mut dyn Read },
    Link { target: &'a str },
}

fn canonical(path: &str) -> Result<PathBuf, Failure> {
    Path::new(path).canonicalize().map_err(|error| {
        Failure::usage(format!("{}: {error}", visible(path)), "name a directory or a git bundle")
    })
}

fn wrong(path: &str, error: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {error}", visible(path)), "correct it, or have git ignore it")
}

impl Tree {
    /// Of a directory or a git bundle.
    pub fn of(path: &str) -> Result<Tree, Failure> {
        let canonical = canonical(path)?;
        if canonical.is_dir() { Tree::found(&canonical) } else { Tree::of_bundle(&canonical) }
    }

    /// Of a directory.
    pub fn of_directory(path: &str) -> Result<Tree, Failure> {
        Tree::found(&canonical(path)?)
    }

    /// The directory it was found in; of a commit none.
    pub fn root(&self) -> Option<&OwnedFd> {
        match &self.origin {
            Origin::Disk(root) => Some(root),
            Origin::Git(_) => None,
        }
    }

    /// Of a directory: in a git work tree what git tracks or does not ignore, else everything but `.git`.
    fn found(path: &Path) -> Result<Tree, Failure> {
        let root = open_root(path).map_err(|error| wrong(&path.display().to_string(), error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (paths, source, is_of_git) = match Repository::around(path)? {
            Some(repository) => {
                let source = match repository.resolve("HEAD")? {
                    Some(head) if repository.is_dirty(&head)? => {
                        format!("{name}: commit {head} and what is not committed")
                    }
                    Some(head) => format!("{name}: commit {head}"),
                    None => format!("{name}: no commit yet"),
                };
                (repository.files(path)?, source, true)
            }
            None => (all_below(&root)?, format!("{name}: a directory outside git"), false),
        };
        let mut tree =
            Tree { places: BTreeMap::new(), origin: Origin::Disk(root), source, left_out: Vec::new() };
        for path in paths {
            tree.add_found(path, is_of_git)?;
        }
        let Origin::Disk(root) = &tree.origin else { return Ok(tree) };
        if is_of_git && tree.places.is_empty() && !all_below(root)?.is_empty() {
            return Err(Failure::usage(
                format!("{}: the git repository around it ignores all that is in it", visible(&name)),
                "make it a repository of its own (git init), or take it out of the .gitignore",
            ));
        }
        Ok(tree)
    }

    fn of_bundle(path: &Path) -> Result<Tree, Failure> {
        let (repository, head) = Repository::of_bundle(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Tree::of_commit(repository, &head, format!("{name}: commit {head}"))
    }

    /// Of a commit.
    pub fn of_commit(repository: Repository, commit: &str, source: String) -> Result<Tree, Failure> {
        let entries = repository.tree(commit)?;
        let mut tree = Tree {
            places: BTreeMap::new(),
            origin: Origin::Git(Box::new(repository)),
            source,
            left_out: Vec::new(),
        };
        for (mode, id, path) in entries {
            match mode.as_str() {
                "160000" => tree.left_out.push(format!("{path}: a submodule")),
                mode => {
                    let (is_link, executable) = (mode == "120000", mode == "100755");
                    tree.add(path, Place::Object { id, is_link, executable })?;
                }
            }
        }
        Ok(tree)
    }

    /// The repository a tree of a commit came from.
    pub fn into_repository(self) -> Option<Repository> {
        match self.origin {
            Origin::Git(repository) => Some(*repository),
            Origin::Disk(_) => None,
        }
    }

    /// Adds what lies at a path; what is gone from the work tree is not in it.
    fn add_found(&mut self, path: String, is_of_git: bool) -> Result<(), Failure> {
        let Origin::Disk(root) = &self.origin else { return Ok(()) };
        let Some(path) = path.strip_suffix('/').map_or(Some(path.as_str()), |_| None) else {
            self.left_out.push(format!("{path}: a repository of its own"));
            return Ok(());
        };
        let kind = match kind_of(root, path) {
            Ok(kind) => kind,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            // A directory on its way was replaced by a link: git saw through it, this does not.
            Err(error) => return Err(wrong(path, error)),
        };
        match kind {
            FileType::RegularFile | FileType::Symlink => self.add(path.to_owned(), Place::OnDisk),
            FileType::Directory if !is_of_git => self.add(path.to_owned(), Place::Directory),
            // Git lists a directory where a repository of its own begins.
            FileType::Directory => {
                self.left_out.push(format!("{path}: a repository of its own"));
                Ok(())
            }
            other => {
                self.left_out.push(format!("{path}: a {other:?}"));
                Ok(())
            }
        }
    }

    fn add(&mut self, path: String, place: Place) -> Result<(), Failure> {
        let is_git = path.split('/').any(|part| part.eq_ignore_ascii_case(".git"));
        if path.is_empty() || is_git || !abi::files::path_ok(&path) {
            return Err(wrong(&path, "a tree cannot hold this path"));
        }
        let mut below = path.as_str();
        while let Some((parent, _)) = below.rsplit_once('/') {
            match self.places.get(parent) {
                Some(Place::Directory) => break,
                Some(_) => return Err(wrong(&path, "what it lies in is no directory")),
                None => self.places.insert(parent.to_owned(), Place::Directory),
            };
            below = parent;
        }
        self.places.insert(path, place);
        if self.places.len() > limits::TREE_ENTRIES_MAX {
            return Err(Failure::usage(
                format!("the tree has more than {} entries", limits::TREE_ENTRIES_MAX),
                "have git ignore what the task does not need",
            ));
        }
        Ok(())
    }

    /// Its paths.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Reads it, entry by entry, in the order of the paths' bytes.
    pub fn each(&self, on: &mut dyn FnMut(&str, Entry<'_>) -> io::Result<()>) -> Result<(), Failure> {
        let mut objects = match &self.origin {
            Origin::Git(repository) => Some(repository.objects()?),
            Origin::Disk(_) => None,
        };
        for (path, place) in &self.places {
            match (place, &self.origin, &mut objects) {
                (Place::Object { id, is_link, executable }, _, Some(objects)) => {
                    let content = objects.content(id, limits::TREE_BYTES_MAX)?;
                    let bytes = content.len() as u64;
                    let entry = match is_link {
                        true => Entry::Link {
                            target: std::str::from_utf8(&content)
                                .map_err(|_| wrong(path, "its target is not UTF-8"))?,
                        },
                        false => {
                            Entry::File { executable: *executable, bytes, content: &mut content.as_slice() }
                        }
                    };
                    on(path, entry)
                }
                (Place::OnDisk, Origin::Disk(root), _) => read_one(root, path, on),
                _ => on(path, Entry::Directory),
            }
            .map_err(|error| wrong(path, error))?;
        }
        Ok(())
    }

    /// The tar, in a file without a name, and how long it is.
    pub fn tar(&self) -> Result<(File, u64), Failure> {
        let unwritable = |error: io::Error| {
            Failure::usage(format!("temporary file: {error}"), "set TMPDIR to a directory with room")
        };
        let mut builder = tar::Builder::new(io::BufWriter::new(unnamed().map_err(unwritable)?));
        self.each(&mut |path, entry| append(&mut builder, path, entry))?;
        let mut file = builder.into_inner().and_then(|out| Ok(out.into_inner()?)).map_err(unwritable)?;
        let bytes = file.stream_position().map_err(unwritable)?;
        file.seek(SeekFrom::Start(0)).map_err(unwritable)?;
        if bytes > limits::TREE_BYTES_MAX {
            return Err(Failure::usage(
                format!(
                    "the tree has {bytes} bytes as a tar; at most {} are allowed",
                    limits::TREE_BYTES_MAX
                ),
                "have git ignore what the task does not need",
            ));
        }
        Ok((file, bytes))
    }

    /// What `verdict` calls the tree.
    pub fn digested(&self) -> Result<verdict::tree::Tree, Failure> {
        let mut nodes = Vec::new();
        self.each(&mut |path, entry| {
            nodes.push((path.to_owned(), node(entry)?));
            Ok(())
        })?;
        verdict::tree::Tree::new(nodes).map_err(|error| Failure::usage(error.to_string(), "correct the tree"))
    }
}

/// An entry with its digest instead of its contents.
fn node(entry: Entry<'_>) -> io::Result<verdict::tree::Entry> {
    Ok(match entry {
        Entry::Directory => verdict::tree::Entry::Directory,
        Entry::Link { target } => verdict::tree::Entry::Link { target: target.to_owned() },
        Entry::File { executable, bytes, content } => {
            let mut counted = content.take(bytes.saturating_add(1));
            let sha256 = sum_of(&mut counted)?;
            if counted.limit() != 1 {
                return Err(io::Error::other("it changed while it was read"));
            }
            verdict::tree::Entry::File { is_executable: executable, sha256, bytes }
        }
    })
}

/// SHA-256 of some bytes.
pub fn sum(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// SHA-256 of all that is read.
pub fn sum_of(mut content: impl Read) -> io::Result<Digest> {
    let mut hasher = Hashing(Sha256::new());
    io::copy(&mut content, &mut hasher)?;
    Ok(Digest(hasher.0.finalize().into()))
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file without a name.
fn unnamed() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("nullctl-tree-{}", std::process::id()));
    // Nobody else opens it in the moment that it has a name.
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn append(builder: &mut tar::Builder<impl Write>, path: &str, entry: Entry<'_>) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    match entry {
        Entry::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, path, io::empty())
        }
        Entry::Link { target } => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, path, target)
        }
        Entry::File { executable, bytes, content } => {
            header.set_mode(if executable { 0o755 } else { 0o644 });
            header.set_size(bytes);
            let mut counted = content.take(bytes);
            builder.append_data(&mut header, path, &mut counted)?;
            match counted.limit() {
                0 => Ok(()),
                _ => Err(io::Error::other("it became shorter while it was read")),
            }
        }
    }
}

fn kind_of(root: &OwnedFd, path: &str) -> rustix::io::Result<FileType> {
    let (parent, name) = split(path).unwrap_or(("", "."));
    let parent = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    Ok(FileType::from_raw_mode(statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

fn read_one(
    root: &OwnedFd,
    path: &str,
    on: &mut dyn FnMut(&str, Entry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let (parent, name) = split(path).unwrap_or(("", path));
    let parent = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    if FileType::from_raw_mode(statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) == FileType::Symlink
    {
        let target = readlinkat(&parent, name, Vec::new())?;
        let target = target.to_str().map_err(|_| io::Error::other("its target is not UTF-8"))?;
        return on(path, Entry::Link { target });
    }
    let file = open_beneath(&parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it changed its kind meanwhile"));
    }
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    on(path, Entry::File { executable: stat.st_mode & 0o100 != 0, bytes, content: &mut File::from(file) })
}

/// All paths below a directory but `.git` and what is in it.
fn all_below(root: &OwnedFd) -> Result<BTreeSet<String>, Failure> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![String::new()];
    while let Some(path) = waiting.pop() {
        let here = |error: rustix::io::Errno| wrong(&path, error);
        let dir = open_beneath(root, &path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(here)?;
        for entry in Dir::new(dir).map_err(here)? {
            let entry = entry.map_err(here)?;
            let name = entry.file_name().to_str().map_err(|_| wrong(&path, "a name in it is not UTF-8"))?;
            if matches!(name, "." | "..") || name.eq_ignore_ascii_case(".git") {
                continue;
            }
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            if kind_of(root, &below).map_err(here)? == FileType::Directory {
                waiting.push(below.clone());
            }
            found.insert(below);
            if found.len() > limits::TREE_ENTRIES_MAX {
                return Err(wrong(
                    &path,
                    format!("the tree has more than {} entries", limits::TREE_ENTRIES_MAX),
                ));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_packed_tree_is_its_owners_alone() {
        let mode = super::unnamed().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
