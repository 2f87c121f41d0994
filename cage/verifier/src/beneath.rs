//! Paths of the agent's root, resolved beneath it and through no symbolic link (openat2(2)).
//!
//! Must hold: nothing here can be led out of the root, or to another place in it, by what an image contains.

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

fn open(dir: impl AsFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::LOOP) => {
            let rule = format!("`{name}` is a symbolic link in this rootfs: name the real path");
            Err(io::Error::other(rule))
        }
        Err(rustix::io::Errno::NOTDIR) => {
            Err(io::Error::other(format!("`{name}` is not a directory in this rootfs")))
        }
        other => Ok(other?),
    }
}

/// A directory, made with its parents (root's, 0755) where it is missing. `path` may start with `/`.
pub fn directory(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let mut at = open(root, ".", OFlags::DIRECTORY)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = match open(&at, name, OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                open(&at, name, OFlags::DIRECTORY)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// The path itself, file or directory, owned by `owner`; a directory is made where nothing is.
pub fn granted(root: impl AsFd, path: &str, owner: u32) -> io::Result<OwnedFd> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = directory(root, parent)?;
    let place = match open(&parent, name, OFlags::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => directory(&parent, name)?,
        other => other?,
    };
    chown(&place, owner)?;
    Ok(place)
}

/// The path itself, as it is.
pub fn granted_place(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    open(root, path.trim_start_matches('/'), OFlags::empty())
}

/// Gives what an O_PATH descriptor stands for to a user and its group.
pub fn chown(place: impl AsFd, owner: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    Ok(rustix::fs::chownat(place, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// A new file in a directory, in place of whatever had that name.
pub fn write_file(dir: impl AsFd, name: &str, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644))?;
    std::fs::File::from(file).write_all(text.as_bytes())
}

/// Adds to a regular file of a directory what `addition` makes of its text; nothing when it makes none.
/// A file that is missing counts as empty; one above 1 MiB, or not a file, is left alone.
pub fn amend_file(dir: impl AsFd, name: &str, addition: impl Fn(&str) -> Option<String>) -> io::Result<()> {
    use std::io::{Read as _, Write as _};
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::openat2(dir, name, flags, Mode::from_raw_mode(0o644), resolve)?;
    let mut file = std::fs::File::from(opened);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > 1024 * 1024 {
        return Ok(());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    match addition(&String::from_utf8_lossy(&text)) {
        Some(addition) => file.write_all(addition.as_bytes()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn root(name: &str) -> (PathBuf, std::fs::File) {
        let path = std::env::temp_dir().join(format!("beneath-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("a")).unwrap();
        let fd = std::fs::File::open(&path).unwrap();
        (path, fd)
    }

    fn is_dir(path: &Path) -> bool {
        path.symlink_metadata().is_ok_and(|m| m.is_dir())
    }

    #[test]
    fn missing_directories_are_made() {
        let (path, fd) = root("made");
        directory(&fd, "/a/b/c").unwrap();
        granted(&fd, "/x/y", rustix::process::getuid().as_raw()).unwrap();
        assert!(is_dir(&path.join("a/b/c")) && is_dir(&path.join("x/y")));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_symbolic_link_is_never_followed() {
        let (path, fd) = root("link");
        std::os::unix::fs::symlink("a", path.join("inside")).unwrap();
        std::os::unix::fs::symlink("/tmp", path.join("outside")).unwrap();
        for link in ["/inside/x", "/outside/x", "/outside", "/inside"] {
            let error = granted(&fd, link, 0).unwrap_err().to_string();
            assert!(error.contains("side` is a symbolic link"), "{link}: {error}");
        }
        assert!(directory(&fd, "/a/../../x").is_err());
        write_file(&fd, "outside", "text").unwrap();
        assert!(path.join("outside").symlink_metadata().unwrap().is_file(), "replaced, not followed");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn amending_adds_and_leaves_odd_files_alone() {
        let (path, fd) = root("amend");
        std::fs::write(path.join("f"), "x\n").unwrap();
        amend_file(&fd, "f", |text| Some(format!("after {text}"))).unwrap();
        amend_file(&fd, "f", |_| None).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("f")).unwrap(), "x\nafter x\n");
        std::os::unix::fs::symlink("f", path.join("l")).unwrap();
        assert!(amend_file(&fd, "l", |_| Some("y".into())).is_err());
        std::fs::remove_dir_all(path).unwrap();
    }
}
