//! What differs between the agent's root and its rootfs: the overlay's upper directory, read against the layers below it.
//!
//! Must hold: what the verifier itself put there is left out; nothing is followed, and nothing of the agent's is opened but
//! directories. A file counts as changed when its kind, mode, size or time differs, a directory when its mode does.

use rustix::fs::{Dir, FileType, OFlags, Stat};
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::files::{Content, Record, Writer, path_ok};
use abi::tools::WORK_PATH;
use verifier::plan::{HOME, Plan, TOOLS_HOME};

use crate::copy::{Complaints, CopyError, DEPTH_MAX, join, kind, link_target, open_beneath, record};
use crate::disks::View;

/// Made or changed in every guest, whatever the agent does (mounts.rs, network.rs).
const SYSTEM: [&str; 11] = [
    "proc",
    "run",
    "dev",
    "tmp",
    "home",
    "etc/resolv.conf",
    "etc/hosts",
    "etc/hostname",
    "etc/passwd",
    "etc/group",
    "etc/nullbox-authority.pem",
];
/// overlayfs.rst: nothing below a directory with this shows through.
const OPAQUE: &CStr = c"trusted.overlay.opaque";
const BUFFER_BYTES: usize = 32 * 1024;

/// What the verifier put into the agent's root, by path below it.
#[derive(Debug, Clone)]
pub struct Own {
    /// Never told.
    files: BTreeSet<String>,
    /// Not told themselves; what is in them is.
    directories: BTreeSet<String>,
}

impl Own {
    /// Of a plan, and of loaders that were sealed.
    pub fn new<'a>(plan: &Plan, sealed: impl Iterator<Item = &'a std::path::Path>) -> Own {
        let below = |path: &str| path.trim_start_matches('/').to_owned();
        let mut files: BTreeSet<String> = SYSTEM.iter().skip(5).map(ToString::to_string).collect();
        files.extend(sealed.map(|path| below(&path.to_string_lossy())));
        let mut directories: BTreeSet<String> = SYSTEM.iter().take(5).map(ToString::to_string).collect();
        let granted = plan.written().chain(plan.volumes.iter().map(|volume| volume.path.as_str()));
        let homes = [HOME.to_owned(), format!("{TOOLS_HOME}/tmp")];
        for path in granted.chain(homes.iter().map(String::as_str)) {
            let path = below(path);
            // Their parents were made with them.
            directories
                .extend(path.match_indices('/').filter_map(|(at, _)| path.get(..at)).map(str::to_owned));
            directories.insert(path);
        }
        Own { files, directories }
    }
}

/// Sends the differences to standard output; the answer is the exit code.
pub fn run(view: &View, own: &Own) -> i32 {
    let mut complaints = Complaints::new(io::stderr().lock());
    let out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    let ended = send(view, own, out, &mut complaints);
    complaints.finish(ended)
}

/// Sends the differences as records without contents.
pub fn send<W: Write, E: Write>(
    view: &View,
    own: &Own,
    out: W,
    complaints: &mut Complaints<E>,
) -> Result<(), CopyError> {
    let mut comparison = Comparison { own, out: Writer::new(out), complaints, contents: false };
    let (upper, lower) = (view.upper.try_clone()?, view.lower.try_clone()?);
    comparison.directory(upper, Some(lower), "", false, 0)?;
    Ok(comparison.out.out().flush()?)
}

/// Sends the differences of a task's tree to standard output, with contents; the answer is the exit code.
pub fn claim(view: &View) -> i32 {
    let mut complaints = Complaints::new(io::stderr().lock());
    let out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    let ended = send_tree(view, out, &mut complaints);
    complaints.finish(ended)
}

/// Sends what differs below [`WORK_PATH`], relative to it. Nothing may write there meanwhile.
fn send_tree<W: Write, E: Write>(
    view: &View,
    out: W,
    complaints: &mut Complaints<E>,
) -> Result<(), CopyError> {
    let own = Own { files: BTreeSet::new(), directories: BTreeSet::new() };
    let mut comparison = Comparison { own: &own, out: Writer::new(out), complaints, contents: true };
    let name = WORK_PATH.trim_start_matches('/');
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match open_beneath(&view.upper, name, flags) {
        Ok(upper) => {
            let lower = open_beneath(&view.lower, name, flags)?;
            comparison.directory(upper, Some(lower), "", false, 0)?;
        }
        // Nothing was ever changed there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(comparison.out.out().flush()?)
}

struct Comparison<'a, W, E: Write> {
    own: &'a Own,
    out: Writer<W>,
    complaints: &'a mut Complaints<E>,
    /// Of files too, after their records.
    contents: bool,
}

impl<W: Write, E: Write> Comparison<'_, W, E> {
    /// `alone`: what the rootfs has in this directory does not show.
    fn directory(
        &mut self,
        upper: OwnedFd,
        lower: Option<OwnedFd>,
        path: &str,
        alone: bool,
        depth: usize,
    ) -> Result<(), CopyError> {
        if depth > DEPTH_MAX {
            self.complaints.say(path, format_args!("lies more than {DEPTH_MAX} directories deep"));
            return Ok(());
        }
        let entries = match Dir::read_from(&upper) {
            Ok(entries) => entries,
            Err(error) => return self.pass_over(path, error.into()),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.pass_over(path, error.into()),
            };
            let name = entry.file_name();
            if let Some(below) = self.named(path, name) {
                self.entry(upper.as_fd(), lower.as_ref().map(AsFd::as_fd), name, &below, alone, depth)?;
            }
        }
        match lower {
            Some(lower) if alone => self.hidden(&lower, &upper, path),
            _ => Ok(()),
        }
    }

    fn entry(
        &mut self,
        upper: BorrowedFd<'_>,
        lower: Option<BorrowedFd<'_>>,
        name: &CStr,
        path: &str,
        alone: bool,
        depth: usize,
    ) -> Result<(), CopyError> {
        let opened =
            open_beneath(upper, name, OFlags::PATH).and_then(|place| Ok((rustix::fs::fstat(&place)?, place)));
        let (stat, place) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.pass_over(path, error),
        };
        let below = match lower.map(|lower| open_beneath(lower, name, OFlags::PATH)) {
            Some(Ok(place)) => Some((rustix::fs::fstat(&place).map_err(io::Error::from)?, place)),
            _ => None,
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::CharacterDevice && stat.st_rdev == 0 {
            // A whiteout; over nothing it tells of something that came and went.
            return if below.is_some() && !alone { self.removed(path) } else { Ok(()) };
        }
        if file_type != FileType::Directory {
            let content = match content(&place, &stat) {
                Ok(content) => content,
                Err(error) => return self.pass_over(path, error),
            };
            let same =
                below.as_ref().is_some_and(|(old, old_place)| is_same(&stat, &content, old, old_place));
            if same || self.own.files.contains(path) {
                return Ok(());
            }
            if self.contents && is_special(&stat) && matches!(content, Content::File { .. }) {
                return self.special(path, &stat, below.is_some());
            }
            if self.contents && matches!(content, Content::File { .. }) {
                return self.file(upper, name, path, below.is_some());
            }
            return self.tell(path, &stat, content, below.is_some());
        }
        let old = below.filter(|(old, _)| FileType::from_raw_mode(old.st_mode) == FileType::Directory);
        match &old {
            Some((old, _)) if old.st_mode == stat.st_mode => {}
            _ if self.own.directories.contains(path) => {}
            old if self.contents && is_special(&stat) => self.special(path, &stat, old.is_some())?,
            old => self.tell(path, &stat, Content::Directory, old.is_some())?,
        }
        let alone = match is_opaque(upper, name) {
            Ok(opaque) => alone || opaque,
            Err(error) => return self.pass_over(path, error), // the agent removed it meanwhile
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let lower = match (old, lower) {
            (Some(_), Some(lower)) => Some(open_beneath(lower, name, flags)?),
            _ => None,
        };
        match open_beneath(upper, name, flags) {
            Ok(dir) => self.directory(dir, lower, path, alone, depth + 1),
            Err(error) => self.pass_over(path, error),
        }
    }

    /// In a claim, what has more than permission bits: it is named, so that it is refused rather than taken for less than it is.
    fn special(&mut self, path: &str, stat: &Stat, in_rootfs: bool) -> Result<(), CopyError> {
        let kind = "set-id or sticky entry".to_owned();
        self.tell(path, stat, Content::Other { kind }, in_rootfs)
    }

    /// A file with its bytes. It has as many as its own descriptor says.
    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &str,
        in_rootfs: bool,
    ) -> Result<(), CopyError> {
        let file = open_beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        self.tell(path, &stat, Content::File { bytes }, in_rootfs)?;
        let mut rest = std::fs::File::from(file).take(bytes);
        match io::copy(&mut rest, self.out.out())? {
            sent if sent < bytes => Err(CopyError::Shrunk(path.to_owned())),
            _ => Ok(()),
        }
    }

    /// What a directory that shows nothing of the rootfs hides.
    fn hidden(&mut self, lower: &OwnedFd, upper: &OwnedFd, path: &str) -> Result<(), CopyError> {
        for entry in Dir::read_from(lower).map_err(io::Error::from)? {
            let entry = entry.map_err(io::Error::from)?;
            let name = entry.file_name();
            let gone = open_beneath(upper, name, OFlags::PATH).is_err();
            if let Some(below) = self.named(path, name).filter(|_| gone) {
                self.removed(&below)?;
            }
        }
        Ok(())
    }

    /// The path of an entry, unless it cannot be said.
    fn named(&mut self, path: &str, name: &CStr) -> Option<String> {
        if [c".", c".."].contains(&name) {
            return None;
        }
        let below = join(path, &name.to_string_lossy());
        if name.to_str().is_ok() && path_ok(&below) {
            return Some(below);
        }
        self.complaints.say(&below, "its name is not UTF-8, or its path is too long");
        None
    }

    fn tell(&mut self, path: &str, stat: &Stat, content: Content, in_rootfs: bool) -> Result<(), CopyError> {
        Ok(self.out.record(&Record { in_rootfs, ..record(path, stat, content) })?)
    }

    fn removed(&mut self, path: &str) -> Result<(), CopyError> {
        let (path, content) = (path.to_owned(), Content::Removed);
        Ok(self.out.record(&Record { path, mode: 0, modified_unix_s: 0, content, in_rootfs: true })?)
    }

    fn pass_over(&mut self, path: &str, error: io::Error) -> Result<(), CopyError> {
        self.complaints.say(path, error);
        Ok(())
    }
}

fn content(place: &OwnedFd, stat: &Stat) -> io::Result<Content> {
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Content::File { bytes: u64::try_from(stat.st_size).unwrap_or(0) },
        FileType::Symlink => Content::Link { target: link_target(place)? },
        other => Content::Other { kind: kind(other).to_owned() },
    })
}

/// Whether its mode has set-id or sticky bits.
fn is_special(stat: &Stat) -> bool {
    stat.st_mode & 0o7000 != 0
}

/// Whether a copy in the upper directory is what the rootfs has. A program that the verifier took from its owner
/// (sandbox.rs, `protect`) is.
fn is_same(stat: &Stat, now: &Content, old: &Stat, old_place: &OwnedFd) -> bool {
    let mode_kept = stat.st_mode == old.st_mode
        || (stat.st_uid == 0 && stat.st_mode & 0o7777 == old.st_mode & 0o755 | 0o555);
    let time_kept = (stat.st_mtime, stat.st_mtime_nsec) == (old.st_mtime, old.st_mtime_nsec);
    FileType::from_raw_mode(stat.st_mode) == FileType::from_raw_mode(old.st_mode)
        && mode_kept
        && time_kept
        && content(old_place, old).is_ok_and(|before| before == *now)
}

fn is_opaque(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    let opened = open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut value = [0; 8];
    let length = rustix::fs::fgetxattr(&opened, OPAQUE, &mut value[..]);
    Ok(length.is_ok_and(|length| value.get(..length) == Some(b"y")))
}
