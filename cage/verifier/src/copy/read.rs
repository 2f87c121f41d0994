//! A file or a tree becomes records.

use rustix::fs::{Dir, FileType, OFlags, Stat};
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, OwnedFd};

use abi::files::{Content, Record, Writer, path_ok};

use super::{Complaints, CopyError, DEPTH_MAX, open_asked, open_beneath};

const CHUNK_BYTES: usize = 32 * 1024;

/// Sends `path` and all below it.
pub fn send<W: Write, E: Write>(
    root: &OwnedFd,
    path: &str,
    out: W,
    complaints: &mut Complaints<E>,
) -> Result<(), CopyError> {
    let mut sender = Sender { out: Writer::new(out), complaints };
    let open = |flags| open_asked(root, path, flags);
    match open(OFlags::PATH) {
        Ok(place) => sender.item(place, &open, "", 0)?,
        Err(error) => return Err(CopyError::Place(format!("`{path}`: {error}"))),
    }
    Ok(sender.out.out().flush()?)
}

struct Sender<'a, W, E: Write> {
    out: Writer<W>,
    complaints: &'a mut Complaints<E>,
}

/// Opens an entry again, with other flags. Between two calls the agent may put something else there.
type Open<'a> = &'a dyn Fn(OFlags) -> io::Result<OwnedFd>;

impl<W: Write, E: Write> Sender<'_, W, E> {
    fn item(&mut self, place: OwnedFd, open: Open<'_>, path: &str, depth: usize) -> Result<(), CopyError> {
        let stat = match rustix::fs::fstat(&place) {
            Ok(stat) => stat,
            Err(error) => return self.pass_over(path, io::Error::from(error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth > DEPTH_MAX => {
                self.complaints.say(path, format_args!("lies more than {DEPTH_MAX} directories deep"));
                Ok(())
            }
            FileType::Directory => self.directory(&stat, open, path, depth),
            FileType::RegularFile => self.file(open, path),
            FileType::Symlink => match link_target(&place) {
                Ok(target) => self.record(path, &stat, Content::Link { target }),
                Err(error) => self.pass_over(path, error),
            },
            other => self.record(path, &stat, Content::Other { kind: kind(other).to_owned() }),
        }
    }

    fn directory(&mut self, stat: &Stat, open: Open<'_>, path: &str, depth: usize) -> Result<(), CopyError> {
        let opened =
            open(OFlags::RDONLY | OFlags::DIRECTORY).and_then(|dir| Ok((Dir::read_from(&dir)?, dir)));
        let (entries, dir) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.pass_over(path, error),
        };
        self.record(path, stat, Content::Directory)?;
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.pass_over(path, io::Error::from(error)),
            };
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            let below = join(path, &name.to_string_lossy());
            if name.to_str().is_err() || !path_ok(&below) {
                self.complaints.say(&below, "its name is not UTF-8, or its path is too long");
                continue;
            }
            let open = |flags| open_beneath(dir.as_fd(), name, flags);
            match open(OFlags::PATH) {
                Ok(place) => self.item(place, &open, &below, depth + 1)?,
                Err(error) => self.pass_over(&below, error)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, open: Open<'_>, path: &str) -> Result<(), CopyError> {
        // Should it be a pipe or a device by now, opening it waits for nobody.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = open(flags).and_then(|file| Ok((rustix::fs::fstat(&file)?, file)));
        let (stat, file) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.pass_over(path, error),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.complaints.say(path, "it was a file, and is none any more");
            return Ok(());
        }
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        self.record(path, &stat, Content::File { bytes })?;
        // What is added while it is read is not announced, so not sent.
        let mut rest = std::fs::File::from(file).take(bytes);
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut sent = 0;
        loop {
            match rest.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    sent += count as u64;
                    self.out.out().write_all(chunk.get(..count).unwrap_or_default())?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Place(format!("`{path}`: {error}: the copy ends here"))),
            }
        }
        if sent < bytes { Err(CopyError::Shrunk(path.to_owned())) } else { Ok(()) }
    }

    fn record(&mut self, path: &str, stat: &Stat, content: Content) -> Result<(), CopyError> {
        Ok(self.out.record(&record(path, stat, content))?)
    }

    fn pass_over(&mut self, path: &str, error: io::Error) -> Result<(), CopyError> {
        self.complaints.say(path, error);
        Ok(())
    }
}

/// A record of what stat(2) says.
pub fn record(path: &str, stat: &Stat, content: Content) -> Record {
    let (mode, modified_unix_s) = (stat.st_mode & 0o777, stat.st_mtime);
    Record { path: path.to_owned(), mode, modified_unix_s, content, in_rootfs: false }
}

/// The path of an entry of a directory.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// What an O_PATH descriptor of a symbolic link leads to, as text.
pub fn link_target(link: &OwnedFd) -> io::Result<String> {
    let target = rustix::fs::readlinkat(link, "", Vec::new())?;
    target.into_string().map_err(|_| io::Error::other("the link's target is not UTF-8"))
}

/// What is not copied, in a word.
pub fn kind(file: FileType) -> &'static str {
    match file {
        FileType::Socket => "socket",
        FileType::Fifo => "pipe",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "unknown",
    }
}
