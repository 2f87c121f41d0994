//! Tools that work on one file.
//!
//! Must hold: the host decided on the path as it is spelled, so nothing on it may be a link (openat2); only regular files are read and
//! written, and none waits for anybody. Whatever else is tried is an error in words.

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use abi::limits;
use abi::tools::{Edit, Read, Remove, Write};
use verifier::call::said;

use super::calls::Outcome;

/// Opens a path that was decided on. `path` is absolute and in its one spelling.
pub fn open(root: impl AsFd, path: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, String> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // What only stands for a place takes no flags of an open file; the others wait for nobody.
    let wait = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
    let flags = flags | OFlags::CLOEXEC | wait;
    let below = match path.trim_start_matches('/') {
        "" => ".",
        below => below,
    };
    rustix::fs::openat2(root, below, flags, Mode::from_raw_mode(mode), resolve).map_err(|error| match error {
        Errno::LOOP => {
            format!("`{path}`: a symbolic link is on the way, and none is followed: name the real path")
        }
        Errno::NXIO => format!("`{path}`: it is no regular file"),
        Errno::ISDIR => format!("`{path}`: it is a directory; glob lists one"),
        error => at(path, error.into()),
    })
}

fn at(path: &str, error: io::Error) -> String {
    format!("`{path}`: {error}")
}

fn regular(file: File, path: &str) -> Result<(File, u64), String> {
    let metadata = file.metadata().map_err(|error| at(path, error))?;
    match (metadata.is_file(), metadata.is_dir()) {
        (true, _) => Ok((file, metadata.len())),
        (_, true) => Err(format!("`{path}`: it is a directory; glob lists one")),
        _ => Err(format!("`{path}`: it is no regular file")),
    }
}

/// A file opened for reading, with its length.
pub fn to_read(root: &OwnedFd, path: &str) -> Result<(File, u64), String> {
    regular(File::from(open(root, path, OFlags::RDONLY, 0)?), path)
}

/// `tool.read`, at most so many bytes.
pub fn read(root: &OwnedFd, read: &Read, most: u64) -> Result<Outcome, String> {
    let (file, bytes) = to_read(root, &read.path)?;
    let wanted = read.length.unwrap_or(u64::MAX);
    let mut value = vec![0; usize::try_from(wanted.min(most).min(bytes)).unwrap_or(0)];
    let mut filled = 0;
    // The kernel counts in signed numbers; nothing lies behind the end.
    let offset = read.offset.min(bytes);
    while let Some(rest) = value.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(at(&read.path, error)),
        }
    }
    value.truncate(filled);
    let is_cut = wanted > most && offset + (filled as u64) < bytes;
    // A character that the bound cuts in two belongs to the next read.
    if let Err(error) = std::str::from_utf8(&value)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
    {
        value.truncate(error.valid_up_to());
    }
    let (name, content) = said(&value);
    Ok(Outcome { data: json!({ name: content }), value, is_cut })
}

/// `tool.write`.
pub fn write(root: &OwnedFd, write: &Write, content: &[u8]) -> Result<Outcome, String> {
    let path = &write.path;
    make_parents(root, path)?;
    let how = if write.append { OFlags::APPEND } else { OFlags::empty() };
    let mode = if write.executable { 0o755 } else { 0o644 };
    let opened = open(root, path, OFlags::WRONLY | OFlags::CREATE | how, mode)?;
    let (mut file, _) = regular(File::from(opened), path)?;
    let mut written = || -> io::Result<()> {
        if !write.append {
            file.set_len(0)?;
        }
        file.write_all(content)?;
        if write.executable {
            let mode = file.metadata()?.permissions().mode() & 0o777 | 0o111;
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    };
    written().map_err(|error| at(path, error))?;
    Ok(Outcome { data: json!({ "bytes": content.len() }), value: Vec::new(), is_cut: false })
}

fn make_parents(root: &OwnedFd, path: &str) -> Result<(), String> {
    let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
    if open(root, parent, OFlags::PATH | OFlags::DIRECTORY, 0).is_ok() {
        return Ok(());
    }
    let mut dir = open(root, "/", OFlags::PATH | OFlags::DIRECTORY, 0)?;
    for name in parent.split('/').filter(|name| !name.is_empty()) {
        match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Landlock says so of what it does not name, there or not.
            Err(Errno::ACCESS | Errno::ROFS) if open(&dir, name, OFlags::PATH, 0).is_ok() => {}
            Err(error) => return Err(at(parent, error.into())),
        }
        dir = open(&dir, name, OFlags::PATH | OFlags::DIRECTORY, 0).map_err(|_| {
            format!("`{parent}`: `{name}` on the way is no directory, and no link is followed")
        })?;
    }
    Ok(())
}

/// `tool.edit`.
pub fn edit(root: &OwnedFd, edit: &Edit, new: &[u8]) -> Result<Outcome, String> {
    let path = &edit.path;
    let (mut file, bytes) = regular(File::from(open(root, path, OFlags::RDWR, 0)?), path)?;
    if bytes > limits::TOOL_GREP_BYTES_MAX {
        let most = limits::TOOL_GREP_BYTES_MAX;
        return Err(format!("`{path}`: it has {bytes} bytes; at most {most} are edited"));
    }
    let mut old = Vec::new();
    (&mut file).take(limits::TOOL_GREP_BYTES_MAX).read_to_end(&mut old).map_err(|error| at(path, error))?;
    let wanted = edit.old.as_bytes();
    let (found, expected) = (places(&old, wanted).count() as u64, edit.count.unwrap_or(1));
    if found != u64::from(expected) {
        return Err(format!(
            "`{path}`: the text stands there {found} times, not {expected}; nothing was changed"
        ));
    }
    let kept = (old.len() as u64).saturating_sub(found.saturating_mul(wanted.len() as u64));
    let (length, most) =
        (kept.saturating_add(found.saturating_mul(new.len() as u64)), limits::TOOL_GREP_BYTES_MAX);
    if length > most {
        return Err(format!(
            "`{path}`: it would have {length} bytes; at most {most} are edited; nothing was changed"
        ));
    }
    let edited = replaced(&old, wanted, new);
    let written = file.rewind().and_then(|()| file.set_len(0)).and_then(|()| file.write_all(&edited));
    written.map_err(|error| at(path, error))?;
    Ok(Outcome { data: json!({ "replaced": found }), value: Vec::new(), is_cut: false })
}

/// Where `old` stands, from the left, none within another. It is not empty.
fn places<'a>(text: &'a [u8], old: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + text.get(from..)?.windows(old.len().max(1)).position(|window| window == old)?;
        from = at + old.len();
        Some(at)
    })
}

fn replaced(text: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let (mut out, mut from) = (Vec::new(), 0);
    for at in places(text, old) {
        out.extend_from_slice(text.get(from..at).unwrap_or_default());
        out.extend_from_slice(new);
        from = at + old.len();
    }
    out.extend_from_slice(text.get(from..).unwrap_or_default());
    out
}

/// `tool.remove`. A link is removed, not what it leads to.
pub fn remove(root: &OwnedFd, remove: &Remove) -> Result<Outcome, String> {
    let path = &remove.path;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = open(root, parent, OFlags::PATH | OFlags::DIRECTORY, 0)?;
    let removed = match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR),
        other => other,
    };
    removed.map_err(|error| at(path, error.into()))?;
    Ok(Outcome { data: json!({}), value: Vec::new(), is_cut: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::tools::Text;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn place(name: &str) -> (PathBuf, OwnedFd) {
        let path = std::env::temp_dir().join(format!("tools-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("d")).unwrap();
        let root = File::open(&path).unwrap();
        (path, root.into())
    }

    fn read_of(
        root: &OwnedFd,
        path: &str,
        offset: u64,
        length: Option<u64>,
        most: u64,
    ) -> Result<Outcome, String> {
        read(root, &Read { path: path.into(), offset, length, sealed: false }, most)
    }

    fn write_of(
        root: &OwnedFd,
        path: &str,
        text: &str,
        append: bool,
        executable: bool,
    ) -> Result<Outcome, String> {
        let order = Write { path: path.into(), content: Text::Clear(text.into()), append, executable };
        write(root, &order, text.as_bytes())
    }

    #[test]
    fn reads_are_bounded_say_so_and_never_cut_a_character() {
        let (path, root) = place("read");
        std::fs::write(path.join("f"), "aüü").unwrap();
        std::fs::write(path.join("b"), [0xff, 0xfe]).unwrap();
        let seen = |offset, length, most| {
            let outcome = read_of(&root, "/f", offset, length, most).unwrap();
            (outcome.data["text"].as_str().unwrap().to_owned(), outcome.is_cut)
        };
        assert_eq!(seen(0, None, 100), ("aüü".into(), false));
        assert_eq!(seen(0, None, 4), ("aü".into(), true));
        assert_eq!(seen(0, Some(3), 100), ("aü".into(), false), "as asked for");
        assert_eq!(seen(3, None, 100), ("ü".into(), false));
        assert_eq!(seen(99, None, 100), (String::new(), false));
        assert_eq!(seen(u64::MAX, Some(u64::MAX), 100), (String::new(), false));
        assert_eq!(read_of(&root, "/b", 0, None, 100).unwrap().data["base64"], "//4=");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn no_link_is_followed_and_nothing_but_files_is_opened() {
        let (path, root) = place("links");
        std::fs::write(path.join("d/f"), "x").unwrap();
        symlink("d", path.join("inside")).unwrap();
        symlink("/etc/passwd", path.join("outside")).unwrap();
        rustix::fs::mknodat(&root, "pipe", rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        for wrong in ["/inside/f", "/inside", "/outside", "/pipe", "/d", "/missing"] {
            assert!(read_of(&root, wrong, 0, None, 10).is_err(), "{wrong}");
            if wrong != "/missing" {
                assert!(write_of(&root, wrong, "planted", false, false).is_err(), "{wrong}");
            }
        }
        assert!(write_of(&root, "/inside/new", "x", false, false).unwrap_err().contains("link"));
        assert_eq!(std::fs::read(path.join("d/f")).unwrap(), b"x");
        remove(&root, &Remove { path: "/outside".into() }).unwrap();
        assert!(!path.join("outside").is_symlink(), "the link itself");
        assert!(remove(&root, &Remove { path: "/d".into() }).unwrap_err().contains("empty"));
        remove(&root, &Remove { path: "/d/f".into() }).unwrap();
        remove(&root, &Remove { path: "/d".into() }).unwrap();
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_file_is_made_with_its_directories_replaced_and_added_to() {
        let (path, root) = place("write");
        assert_eq!(write_of(&root, "/a/b/c", "long text", false, true).unwrap().data["bytes"], 9);
        write_of(&root, "/a/b/c", "one", false, false).unwrap();
        write_of(&root, "/a/b/c", "two", true, false).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("a/b/c")).unwrap(), "onetwo");
        let mode = path.join("a/b/c").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "what it is stays");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn an_edit_wants_its_text_exactly_so_often() {
        let (path, root) = place("edit");
        let edited = |old: &str, new: &str, count| {
            std::fs::write(path.join("f"), "aaa bab").unwrap();
            let order = Edit { path: "/f".into(), old: old.into(), new: Text::Clear(new.into()), count };
            let outcome = edit(&root, &order, new.as_bytes());
            (outcome.is_ok(), std::fs::read_to_string(path.join("f")).unwrap())
        };
        assert_eq!(edited("bab", "x", None), (true, "aaa x".into()));
        assert_eq!(edited("aa", "x", None), (true, "xa bab".into()), "none within another");
        assert_eq!(edited("a", "", Some(4)), (true, " bb".into()));
        assert_eq!(edited("a", "x", None), (false, "aaa bab".into()));
        assert_eq!(edited("zz", "x", None), (false, "aaa bab".into()));
        assert_eq!(edited("aaa bab", "x", None), (true, "x".into()));
        // What comes of it is bounded as what it is made of.
        std::fs::write(path.join("f"), vec![b'a'; 1 << 20]).unwrap();
        let order = |new: &str| Edit {
            path: "/f".into(),
            old: "a".into(),
            new: Text::Clear(new.into()),
            count: Some(1 << 20),
        };
        let error = edit(&root, &order(""), &[b'x'; 1 << 18]).unwrap_err();
        assert!(error.contains("at most"), "{error}");
        assert_eq!(path.join("f").metadata().unwrap().len(), 1 << 20, "nothing was changed");
        assert_eq!(edit(&root, &order(""), b"bbbb").unwrap().data["replaced"], 1 << 20);
        assert_eq!(path.join("f").metadata().unwrap().len(), 4 << 20);
        std::fs::remove_dir_all(path).unwrap();
    }
}
