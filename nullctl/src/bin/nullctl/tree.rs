//! Files of this machine, on their way to an agent or made of what an agent sent.
//!
//! Must hold: every path is resolved beneath one directory and through no symbolic link (openat2(2)), whoever wrote the tree; a file
//! is whole before it has its name; nothing that exists is written through. Must never: make a device, a set-id file, or, unless
//! asked to, a link that leads out of the copy.

use abi::files::{Content, FilesError, Record, Writer};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, fstat, futimens,
    mkdirat, openat2, readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a copy came to.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    pub files: u64,
    pub directories: u64,
    pub links: u64,
    pub bytes: u64,
    /// Each thing that was not copied, and why.
    pub left_out: Vec<String>,
    /// Further ones.
    pub more_left_out: u64,
}

/// So many things that were not copied are named; the rest is counted.
const LEFT_OUT_MAX: usize = 100;

impl Tally {
    /// Notes that something was not copied.
    pub fn leave_out(&mut self, path: &str, why: impl std::fmt::Display) {
        match self.left_out.len() < LEFT_OUT_MAX {
            true => self.left_out.push(format!("{path}: {why}")),
            false => self.more_left_out += 1,
        }
    }

    /// Whether everything was copied.
    pub fn is_whole(&self) -> bool {
        self.left_out.is_empty()
    }
}

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens what is beneath `root`, through no symbolic link.
pub fn open_beneath(root: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
            Err(Errno::INTR | Errno::AGAIN) => {} // a rename elsewhere crossed it (openat2(2))
            other => return other,
        }
    }
}

/// Opens the directory that a copy goes into or comes from: the operator's own word, resolved as any path.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Directory and name of a relative path; none of the root itself.
pub fn split(path: &str) -> Option<(&str, &str)> {
    match path.rsplit_once('/') {
        Some(parts) => Some(parts),
        None if path.is_empty() => None,
        None => Some(("", path)),
    }
}

/// Whether a link at `path` leads no further up than the copy reaches: `..` stands only in front, where directories of the copy
/// itself are climbed, and no more often than there are. Each link of a copy keeps to it, so no chain of them leads out. Where the
/// link is the whole copy, whatever it leads to lies outside.
fn stays_inside(path: &str, target: &str) -> bool {
    let depth = path.matches('/').count();
    let mut parts = target.split('/').filter(|part| !part.is_empty() && *part != ".").peekable();
    let mut climbs = 0;
    while parts.next_if_eq(&"..").is_some() {
        climbs += 1;
    }
    let is_relative = !target.starts_with('/') && !target.is_empty();
    !path.is_empty() && is_relative && climbs <= depth && parts.all(|part| part != "..")
}

/// Makes files of records, below one directory.
#[derive(Debug)]
pub struct Maker {
    root: OwnedFd,
    /// Name below `root` that the copy gets; none: its contents go into `root` itself.
    name: Option<String>,
    any_links: bool,
    /// Makes temporary names differ.
    made: u64,
    pub tally: Tally,
}

impl Maker {
    /// Below `root`, as `name`. `any_links`: links that lead out of the copy, too.
    pub fn new(root: OwnedFd, name: Option<String>, any_links: bool) -> Maker {
        Maker { root, name, any_links, made: 0, tally: Tally::default() }
    }

    /// Makes what a record says. What could not be made is in the tally; an error is the stream's, and ends the copy.
    pub fn make(&mut self, record: &Record, content: &mut dyn Read) -> Result<(), FilesError> {
        let path = match (&self.name, record.path.as_str()) {
            (Some(name), "") => name.clone(),
            (Some(name), path) => format!("{name}/{path}"),
            (None, path) => path.to_owned(),
        };
        let made = match &record.content {
            Content::Directory => self.directory(&path, record.mode),
            Content::Link { target } => self.link(record, &path, target),
            Content::File { .. } => match self.file(&path, record, content) {
                Err(Failed::Stream(error)) => return Err(error.into()),
                Err(Failed::Here(error)) => Err(error),
                Ok(bytes) => {
                    (self.tally.files, self.tally.bytes) = (self.tally.files + 1, self.tally.bytes + bytes);
                    Ok(())
                }
            },
            Content::Other { kind } => {
                self.tally.leave_out(&path, format!("a {kind} is not copied"));
                Ok(())
            }
            Content::Removed => Err(io::Error::other("it says that it was removed, in a copy")),
        };
        if let Err(error) = made {
            self.tally.leave_out(&path, error);
        }
        Ok(())
    }

    fn parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let (parent, name) =
            split(path).ok_or_else(|| io::Error::other("it would replace the destination"))?;
        Ok((open_beneath(&self.root, parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        if !path.is_empty() {
            let (parent, name) = self.parent(path)?;
            // Its owner can always fill and remove it, whatever the agent says.
            match mkdirat(&parent, name, Mode::from_raw_mode(mode | 0o700)) {
                Err(Errno::EXIST) => drop(open_beneath(&parent, name, OFlags::PATH | OFlags::DIRECTORY)?),
                other => other?,
            }
        }
        self.tally.directories += 1;
        Ok(())
    }

    fn temporary(&mut self) -> String {
        self.made += 1;
        format!(".nullctl-{}-{}", std::process::id(), self.made)
    }

    fn link(&mut self, record: &Record, path: &str, target: &str) -> io::Result<()> {
        if !self.any_links && !stays_inside(&record.path, target) {
            let target: String = target.chars().take(200).collect();
            return Err(io::Error::other(format!(
                "a link to `{target}` leads out of the copy (see --links)"
            )));
        }
        let temporary = self.temporary();
        let (parent, name) = self.parent(path)?;
        symlinkat(target, &parent, &temporary)?;
        self.name_it(&parent, &temporary, name)?;
        self.tally.links += 1;
        Ok(())
    }

    fn file(&mut self, path: &str, record: &Record, content: &mut dyn Read) -> Result<u64, Failed> {
        let temporary = self.temporary();
        let (parent, name) = self.parent(path).map_err(Failed::Here)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(record.mode & 0o777); // less the umask
        let file =
            rustix::fs::openat(&parent, &temporary, flags, mode).map_err(|e| Failed::Here(e.into()))?;
        let written = write_out(&mut File::from(file), content, record.modified_unix_s);
        let named = written.and_then(|bytes| {
            self.name_it(&parent, &temporary, name).map_err(Failed::Here)?;
            Ok(bytes)
        });
        if named.is_err() {
            let _ = unlinkat(&parent, &temporary, AtFlags::empty()); // it may have its name already
        }
        named
    }

    fn name_it(&self, parent: &OwnedFd, temporary: &str, name: &str) -> io::Result<()> {
        renameat(parent, temporary, parent, name).map_err(|error| {
            let _ = unlinkat(parent, temporary, AtFlags::empty()); // the first error is told
            error.into()
        })
    }
}

/// Why a file could not be made.
enum Failed {
    /// What it is made of broke off.
    Stream(io::Error),
    Here(io::Error),
}

fn write_out(file: &mut File, content: &mut dyn Read, modified_unix_s: i64) -> Result<u64, Failed> {
    let mut chunk = vec![0u8; 64 * 1024];
    let mut written = 0;
    loop {
        let read = match content.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failed::Stream(error)),
        };
        file.write_all(chunk.get(..read).unwrap_or_default()).map_err(Failed::Here)?;
        written += read as u64;
    }
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let modified = Timespec { tv_sec: modified_unix_s, tv_nsec: 0 };
    let times = Timestamps { last_access: now, last_modification: modified };
    futimens(file.as_fd(), &times).map_err(|error| Failed::Here(error.into()))?;
    Ok(written)
}

/// Sends a tree: `path` below `root`, named `name` in the records (empty: what is in a directory). `told` hears of each step.
pub fn send<W: Write>(
    root: &OwnedFd,
    path: &str,
    name: &str,
    out: &mut Writer<W>,
    told: &mut dyn FnMut(&Tally),
) -> Result<Tally, FilesError> {
    let mut tally = Tally::default();
    let mut waiting = vec![(path.to_owned(), name.to_owned())];
    while let Some((path, name)) = waiting.pop() {
        let below = match send_one(root, &path, &name, out, &mut tally) {
            Ok(below) => below,
            Err(Failed::Here(error)) => {
                tally.leave_out(&name, error);
                continue;
            }
            Err(Failed::Stream(error)) => return Err(error.into()),
        };
        let joined =
            |start: &str, end: &str| if start.is_empty() { end.to_owned() } else { format!("{start}/{end}") };
        waiting.extend(below.iter().rev().map(|entry| (joined(&path, entry), joined(&name, entry))));
        told(&tally);
    }
    Ok(tally)
}

/// Sends one entry; what is in it, if it is a directory, in order.
fn send_one<W: Write>(
    root: &OwnedFd,
    path: &str,
    name: &str,
    out: &mut Writer<W>,
    tally: &mut Tally,
) -> Result<Vec<String>, Failed> {
    let here = |error: Errno| Failed::Here(error.into());
    let parent = split(path).map(|(parent, last)| {
        open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY).map(|parent| (parent, last))
    });
    let (stat, parent) = match parent.transpose().map_err(here)? {
        Some((parent, last)) => {
            (statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW).map_err(here)?, Some((parent, last)))
        }
        None => (fstat(root).map_err(here)?, None),
    };
    let record = |content| Record {
        path: name.to_owned(),
        mode: stat.st_mode & 0o777,
        modified_unix_s: stat.st_mtime,
        content,
        in_rootfs: false,
    };
    let stream = |error: FilesError| match error {
        FilesError::Io(error) => Failed::Stream(error),
        other => Failed::Stream(io::Error::other(other.to_string())),
    };
    match (FileType::from_raw_mode(stat.st_mode), parent) {
        (FileType::Directory, _) => {
            let names = names_in(root, path, name, tally)?;
            out.record(&record(Content::Directory)).map_err(stream)?;
            tally.directories += 1;
            Ok(names)
        }
        (FileType::Symlink, Some((parent, last))) => {
            let target = readlinkat(&parent, last, Vec::new()).map_err(here)?;
            let target = target.into_string().map_err(|_| Failed::Here(not_text()))?;
            out.record(&record(Content::Link { target })).map_err(stream)?;
            tally.links += 1;
            Ok(Vec::new())
        }
        (FileType::RegularFile, _) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = open_beneath(root, path, flags).map_err(here)?;
            let now = fstat(&file).map_err(here)?;
            if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
                return Err(Failed::Here(io::Error::other("it changed its kind meanwhile")));
            }
            let bytes = u64::try_from(now.st_size).unwrap_or(0);
            out.record(&record(Content::File { bytes })).map_err(stream)?;
            send_bytes(&mut File::from(file), bytes, out.out(), name)?;
            (tally.files, tally.bytes) = (tally.files + 1, tally.bytes + bytes);
            Ok(Vec::new())
        }
        (other, _) => Err(Failed::Here(io::Error::other(format!("a {other:?} is not copied")))),
    }
}

fn not_text() -> io::Error {
    io::Error::other("its name or target is not UTF-8")
}

fn names_in(root: &OwnedFd, path: &str, shown: &str, tally: &mut Tally) -> Result<Vec<String>, Failed> {
    let here = |error: Errno| Failed::Here(error.into());
    let dir = open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(here)?;
    let mut names = Vec::new();
    for entry in Dir::new(dir).map_err(here)? {
        let entry = entry.map_err(here)?;
        match std::str::from_utf8(entry.file_name().to_bytes()) {
            Ok("." | "..") => {}
            Ok(name) => names.push(name.to_owned()),
            Err(_) => {
                let lossy = OsStr::from_bytes(entry.file_name().to_bytes()).to_string_lossy().into_owned();
                tally.leave_out(&format!("{shown}/{lossy}"), not_text());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Sends exactly so many bytes: the record has promised them.
fn send_bytes(file: &mut File, bytes: u64, out: &mut impl Write, name: &str) -> Result<(), Failed> {
    let mut chunk = vec![0u8; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        let read = match file.read(chunk.get_mut(..most).unwrap_or_default()) {
            Ok(0) => {
                let what = format!("{name} became shorter while it was copied");
                return Err(Failed::Stream(io::Error::other(what)));
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failed::Stream(error)),
        };
        out.write_all(chunk.get(..read).unwrap_or_default()).map_err(Failed::Stream)?;
        left -= read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::files::Reader;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Scratch(PathBuf);
    impl Scratch {
        fn new() -> Scratch {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("nullctl-tree-{}-{number}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
        fn dir(&self, name: &str) -> PathBuf {
            fs::create_dir_all(self.0.join(name)).unwrap();
            self.0.join(name)
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0); // what is left in /tmp hurts nobody
        }
    }

    fn record(path: &str, content: Content) -> Record {
        Record { path: path.into(), mode: 0o644, modified_unix_s: 1_000_000, content, in_rootfs: false }
    }

    fn file(path: &str, bytes: &[u8]) -> (Record, Vec<u8>) {
        (record(path, Content::File { bytes: bytes.len() as u64 }), bytes.to_vec())
    }

    fn link(path: &str, target: &str) -> (Record, Vec<u8>) {
        (record(path, Content::Link { target: target.into() }), vec![])
    }

    fn directory(path: &str) -> (Record, Vec<u8>) {
        (record(path, Content::Directory), vec![])
    }

    fn make(root: &Path, name: Option<&str>, any_links: bool, records: &[(Record, Vec<u8>)]) -> Tally {
        let mut maker = Maker::new(open_root(root).unwrap(), name.map(str::to_owned), any_links);
        for (record, bytes) in records {
            maker.make(record, &mut bytes.as_slice()).unwrap();
        }
        maker.tally
    }

    #[test]
    fn a_tree_arrives_as_it_was_sent() {
        let scratch = Scratch::new();
        let (from, to) = (scratch.dir("from/tree"), scratch.dir("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), vec![7; 200_000]).unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(from.join("empty"), b"").unwrap();
        symlink("a/b/file", from.join("inside")).unwrap();
        symlink("/etc/passwd", from.join("outside")).unwrap();
        let mut wire = Vec::new();
        let root = open_root(&scratch.0.join("from")).unwrap();
        let sent = send(&root, "tree", "tree", &mut Writer::new(&mut wire), &mut |_| ()).unwrap();
        assert_eq!((sent.files, sent.directories, sent.links, sent.bytes), (2, 3, 2, 200_000));
        let mut reader = Reader::new(wire.as_slice());
        let mut maker = Maker::new(open_root(&to).unwrap(), None, false);
        while let Some(record) = reader.next(true).unwrap() {
            maker.make(&record, &mut reader.content()).unwrap();
        }
        assert_eq!((maker.tally.files, maker.tally.links, maker.tally.left_out.len()), (2, 1, 1));
        assert!(maker.tally.left_out[0].contains("tree/outside"), "{:?}", maker.tally);
        let made = to.join("tree/a/b/file");
        assert_eq!(fs::read(&made).unwrap(), vec![7; 200_000]);
        let meta = fs::metadata(&made).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7700, 0o700, "no set-id bit arrives");
        assert_eq!(meta.mtime(), fs::metadata(from.join("a/b/file")).unwrap().mtime());
        assert_eq!(fs::read_link(to.join("tree/inside")).unwrap(), Path::new("a/b/file"));
    }

    #[test]
    fn no_record_reaches_out_of_the_destination() {
        let scratch = Scratch::new();
        let (to, outside) = (scratch.dir("to"), scratch.dir("outside"));
        fs::write(outside.join("kept"), b"kept").unwrap();
        symlink(&outside, to.join("users-own-link")).unwrap();
        symlink(outside.join("kept"), to.join("file")).unwrap();
        let target = outside.to_str().unwrap();
        let tally = make(
            &to,
            None,
            true,
            &[
                link("a", target),
                file("a/through-a-new-link", b"x"),
                directory("a/dir"),
                link("a/link", "x"),
                file("users-own-link/x", b"x"),
                file("file", b"replaced"),
                link("up", ".."),
                file("up/x", b"x"),
                directory("users-own-link"),
            ],
        );
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{tally:?}");
        assert_eq!(tally.left_out.len(), 6, "{tally:?}");
        assert_eq!(fs::read(to.join("file")).unwrap(), b"replaced");
        assert!(
            fs::symlink_metadata(to.join("file")).unwrap().is_file(),
            "the link was replaced, not written through"
        );
        assert!(!scratch.0.join("x").exists());
    }

    #[test]
    fn links_that_lead_out_are_left_out_unless_asked_for() {
        for (path, target, stays) in [
            ("a", "b", true),
            ("a", "b/c", true),
            ("a", "..", false),
            ("d/a", "..", true),
            ("d/a", "../b/./c", true),
            ("d/a", "../../b", false),
            ("d/a", "x/../../..", false),
            ("d/a", "x/..", false),
            ("a", "/etc/passwd", false),
            ("a", "", false),
            ("", "x", false),
            ("", "../x", false),
        ] {
            assert_eq!(stays_inside(path, target), stays, "{path} -> {target}");
        }
        let scratch = Scratch::new();
        let tally = make(&scratch.dir("to"), Some("copy"), false, &[directory(""), link("l", "/etc/passwd")]);
        assert_eq!((tally.links, tally.left_out.len()), (0, 1));
        let tally = make(&scratch.dir("to"), Some("copy"), true, &[directory(""), link("l", "/etc/passwd")]);
        assert_eq!((tally.links, tally.left_out.len()), (1, 0));
    }

    #[test]
    fn a_file_that_breaks_off_leaves_nothing() {
        let scratch = Scratch::new();
        let to = scratch.dir("to");
        let mut maker = Maker::new(open_root(&to).unwrap(), None, false);
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broke off"))
            }
        }
        let (whole, _) = file("a", b"whole");
        assert!(maker.make(&whole, &mut Broken).is_err());
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    }

    #[test]
    fn a_name_in_use_by_the_other_kind_is_left_out() {
        let scratch = Scratch::new();
        let to = scratch.dir("to");
        fs::create_dir(to.join("dir")).unwrap();
        fs::write(to.join("file"), b"").unwrap();
        let tally = make(
            &to,
            None,
            false,
            &[file("dir", b"x"), directory("file"), file("none/x", b"x"), link("dir", "x")],
        );
        assert_eq!(tally.left_out.len(), 4, "{tally:?}");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 2, "no temporary name is left");
    }

    #[test]
    fn special_files_are_named_and_never_opened() {
        let scratch = Scratch::new();
        let from = scratch.dir("from");
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        fs::write(from.join("x"), b"x").unwrap();
        let mut wire = Vec::new();
        let tally =
            send(&open_root(&from).unwrap(), "", "", &mut Writer::new(&mut wire), &mut |_| ()).unwrap();
        assert_eq!((tally.files, tally.left_out.len()), (1, 1));
        assert!(tally.left_out[0].contains("Socket"), "{tally:?}");
    }
}
