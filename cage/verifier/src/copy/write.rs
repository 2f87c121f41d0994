//! Records become files.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use abi::files::{Content, Reader, Record};

use super::{Complaints, CopyError, open_asked, open_beneath};

/// Makes what the records say: below `path` where that is a directory, else the first record becomes `path` itself.
pub fn make<R: BufRead, E: Write>(
    root: &OwnedFd,
    path: &str,
    input: R,
    complaints: &mut Complaints<E>,
) -> Result<(), CopyError> {
    let mut records = Reader::new(input);
    let Some(first) = records.next(true)? else { return Ok(()) };
    let target =
        Target::new(root, path, &first).map_err(|error| CopyError::Place(format!("`{path}`: {error}")))?;
    let mut maker = Maker { target, open: Vec::new() };
    let mut next = Some(first);
    while let Some(record) = next {
        if let Err(error) = maker.item(&record, &mut records.content()) {
            let shown = if record.path.is_empty() { path } else { &record.path };
            complaints.say(shown, error);
        }
        next = records.next(true)?;
    }
    maker.close_all(complaints);
    Ok(())
}

/// Where the records go.
struct Target {
    base: OwnedFd,
    /// The first record's path, and the name in `base` that stands for it. None: records lie below `base` as they are.
    renamed: Option<(String, String)>,
}

impl Target {
    fn new(root: &OwnedFd, path: &str, first: &Record) -> io::Result<Target> {
        match open_asked(root, path, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(base) => return Ok(Target { base, renamed: None }),
            Err(error) if missing(&error) => {}
            Err(error) => return Err(error),
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { "/" } else { parent };
        // Directories on the way may be links of the agent's own; the sandbox says where they may lead.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve)?;
        Ok(Target { base, renamed: Some((first.path.clone(), name.to_owned())) })
    }

    /// The path below `base` that a record stands for. Empty: `base` itself.
    fn path(&self, record: &str) -> io::Result<String> {
        let Some((from, to)) = &self.renamed else { return Ok(record.to_owned()) };
        let rest = if from.is_empty() { Some(record) } else { record.strip_prefix(from.as_str()) };
        match rest {
            Some("") => Ok(to.clone()),
            Some(rest) if from.is_empty() => Ok(format!("{to}/{rest}")),
            Some(rest) if rest.starts_with('/') => Ok(format!("{to}{rest}")),
            _ => Err(io::Error::other("it does not lie below the first record")),
        }
    }
}

/// There is nothing, or something that is no directory: a file, a link.
fn missing(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

struct Maker {
    target: Target,
    /// Directories made here whose turn is not over: path, mode, time. They get both when it is.
    open: Vec<(String, u32, i64)>,
}

impl Maker {
    fn item(&mut self, record: &Record, bytes: &mut impl Read) -> io::Result<()> {
        let path = self.target.path(&record.path)?;
        let closed = self.close_others(&path);
        if path.is_empty() {
            return match record.content {
                Content::Directory => closed,
                _ => Err(io::Error::other("it is a directory: name what is to be made in it")),
            };
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path.as_str()));
        let parent = match parent {
            "" => self.target.base.as_fd().try_clone_to_owned()?,
            parent => open_beneath(&self.target.base, parent, OFlags::PATH | OFlags::DIRECTORY).map_err(
                |error| match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::LOOP | Errno::NOTDIR) => io::Error::other(
                        "a symbolic link or a file stands on the way, and nothing is made through one",
                    ),
                    _ => error,
                },
            )?,
        };
        match &record.content {
            Content::Directory => {
                if directory(&parent, name)? {
                    self.open.push((path, record.mode, record.modified_unix_s));
                }
            }
            Content::File { .. } => file(&parent, name, record, bytes)?,
            Content::Link { target } => {
                clear(&parent, name)?;
                rustix::fs::symlinkat(target.as_str(), &parent, name)?;
                rustix::fs::utimensat(
                    &parent,
                    name,
                    &times(record.modified_unix_s),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            Content::Other { kind } => return Err(io::Error::other(format!("a {kind} is not copied"))),
            Content::Removed => return Err(io::Error::other("a copy removes nothing")),
        }
        closed
    }

    /// Directories that `path` does not lie in are complete.
    fn close_others(&mut self, path: &str) -> io::Result<()> {
        let mut closed = Ok(());
        while let Some((dir, _, _)) = self.open.last() {
            if path.strip_prefix(dir.as_str()).is_some_and(|rest| rest.starts_with('/')) {
                break;
            }
            closed = closed.and(self.close_last());
        }
        closed
    }

    fn close_last(&mut self) -> io::Result<()> {
        let Some((path, mode, modified)) = self.open.pop() else { return Ok(()) };
        let dir = open_beneath(&self.target.base, path.as_str(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::futimens(&dir, &times(modified))?;
        Ok(rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o777))?)
    }

    fn close_all<E: Write>(&mut self, complaints: &mut Complaints<E>) {
        while let Some((path, _, _)) = self.open.last() {
            let path = path.clone();
            if let Err(error) = self.close_last() {
                complaints.say(&path, error);
            }
        }
    }
}

/// `true`: it was made here. One that stands there already is kept as it is.
fn directory(parent: &OwnedFd, name: &str) -> io::Result<bool> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Ok(false),
                _ => Err(io::Error::other("something stands there that is no directory")),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn file(parent: &OwnedFd, name: &str, record: &Record, bytes: &mut impl Read) -> io::Result<()> {
    clear(parent, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut made = std::fs::File::from(made);
    let written = io::copy(bytes, &mut made).and_then(|_| {
        rustix::fs::fchmod(&made, Mode::from_raw_mode(record.mode & 0o777))?;
        Ok(rustix::fs::futimens(&made, &times(record.modified_unix_s))?)
    });
    if written.is_err() {
        // Half a file is none; should it not go, the error has been said.
        let _ = rustix::fs::unlinkat(parent, name, AtFlags::empty());
    }
    written
}

/// Removes what has this name, unless it is a directory.
fn clear(parent: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(io::Error::other("a directory stands there")),
        Err(error) => Err(error.into()),
    }
}

fn times(modified_unix_s: i64) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
    Timestamps { last_access: omit, last_modification: Timespec { tv_sec: modified_unix_s, tv_nsec: 0 } }
}
