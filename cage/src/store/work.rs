//! A task's tree: the tar that somebody sent, and the read-only disk that shows a tree at `/work`.
//!
//! Must hold: what is listed is what the tar holds, by digest; no entry lies below something that is no directory; a disk has each
//! content once more under the digest that was computed while it was written. Must never: extract a file onto the host, or follow a
//! link of a tree.

use abi::ids::Digest;
use abi::limits;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::error::{ImportError, shown};
use super::squashfs::{WriteError, Writer};
use super::tar::{self, Input, Kind};
use super::tree::{IMPLIED, Node, NodeId, Owner, Refusal, Tree};

/// Times of a tree's files: none is newer than another, and none is older than what tools can name.
const MODIFIED_UNIX_S: u32 = 1_000_000_000;
/// Name of the directory at the root that a tree stands in (`abi::tools::WORK_PATH`).
const TOP: &[u8] = b"work";

/// What stands at a path of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory,
    File {
        is_executable: bool,
        bytes: u64,
        sha256: Digest,
        /// Where its content begins in the tar.
        at: u64,
    },
    Link {
        target: String,
    },
}

impl Entry {
    /// As it is to be written.
    pub fn piece(&self) -> Piece {
        match self {
            Entry::Directory => Piece::Directory,
            Entry::File { is_executable, bytes, .. } => {
                Piece::File { is_executable: *is_executable, bytes: *bytes }
            }
            Entry::Link { target } => Piece::Link { target: target.clone() },
        }
    }
}

/// Entries by their path below the tree; directories are named, whether the tar had them or not.
pub type Listing = BTreeMap<String, Entry>;

fn refused(path: &[u8], at: u64, rule: impl Into<String>, remedy: &'static str) -> ImportError {
    ImportError::Archive { place: format!("{} at byte {at}", shown(path)), rule: rule.into(), remedy }
}

/// A tar that is read where it lies.
struct InFile(BufReader<File>);

impl Read for InFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Input for InFile {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        tar::skip_by_reading(&mut self.0, bytes)
    }
}

/// Reads a tree's tar to its end. Files, directories and symbolic links only, each path once, all text.
pub fn list(path: &Path) -> Result<Listing, ImportError> {
    let contents = File::open(path).map_err(ImportError::host("open", path))?;
    let file = contents.try_clone().map_err(ImportError::host("open", path))?;
    let mut reader = tar::Reader::new(InFile(BufReader::with_capacity(64 * 1024, file)), true);
    let mut listing = Listing::new();
    let mut text_bytes = 0;
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Err(ImportError::archive("tree", error.to_string(), "send the tree's tar")),
        };
        let wrong = |rule: &str, remedy| refused(&entry.path, entry.at, rule, remedy);
        let name = super::path::RootfsPath::parse(&entry.path)
            .map_err(|rule| wrong(rule, "name paths relative to the tree's root"))?;
        let Some((parents, last)) = name.split() else {
            match entry.kind {
                Kind::Directory => continue,
                _ => return Err(wrong("the tree's root can only be a directory", "send a directory")),
            }
        };
        let text = |parts: &[&[u8]]| String::from_utf8(parts.join(&b'/')).ok();
        let not_text = || wrong("its name is not UTF-8", "rename it");
        let path = text(&[parents, &[last]].concat()).ok_or_else(not_text)?;
        text_bytes += path.len() + entry.link.len();
        let found = match entry.kind {
            Kind::Directory => Entry::Directory,
            Kind::File => Entry::File {
                is_executable: entry.mode & 0o100 != 0,
                bytes: entry.size,
                sha256: digest_at(&contents, entry.data_at, entry.size)
                    .map_err(|error| wrong(&error.to_string(), "send the whole tar"))?,
                at: entry.data_at,
            },
            Kind::Symlink => Entry::Link {
                target: String::from_utf8(entry.link.clone())
                    .ok()
                    .filter(|target| !target.is_empty() && target.len() <= limits::COPY_PATH_BYTES_MAX)
                    .ok_or_else(|| wrong("its target is empty, too long or not UTF-8", "leave it out"))?,
            },
            _ => {
                let rule = "only files, directories and symbolic links make a tree";
                return Err(wrong(rule, "leave it out"));
            }
        };
        text_bytes += above(&mut listing, &path)
            .ok_or_else(|| wrong("a part of its path is not a directory", "leave it out"))?;
        match (listing.get(&path), &found) {
            (None, _) | (Some(Entry::Directory), Entry::Directory) => listing.insert(path, found),
            (Some(_), _) => return Err(wrong("it stands in the tar twice", "leave one out")),
        };
        if listing.len() > limits::TREE_ENTRIES_MAX || text_bytes > limits::TREE_TEXT_BYTES_MAX {
            let rule = format!(
                "a tree has at most {} files and directories, and {} bytes of names",
                limits::TREE_ENTRIES_MAX,
                limits::TREE_TEXT_BYTES_MAX
            );
            return Err(ImportError::archive("tree", rule, "leave build results out"));
        }
    }
    Ok(listing)
}

/// Names the directories that a path lies in; the bytes of those that are new. None: one of them is something else.
fn above(listing: &mut Listing, path: &str) -> Option<usize> {
    let mut text_bytes = 0;
    for end in path.match_indices('/').map(|(at, _)| at) {
        let above = path.get(..end).unwrap_or_default();
        match listing.get(above) {
            Some(Entry::Directory) => {}
            Some(_) => return None,
            None => {
                text_bytes += above.len();
                listing.insert(above.to_owned(), Entry::Directory);
            }
        }
    }
    Some(text_bytes)
}

fn digest_at(file: &File, at: u64, bytes: u64) -> io::Result<Digest> {
    let mut hashed = Hashed { inner: ContentAt { file, at, left: bytes }, hash: Sha256::new() };
    let copied = io::copy(&mut hashed, &mut io::sink())?;
    if copied < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Digest(hashed.hash.finalize().into()))
}

/// A file's content where it lies in a tar.
#[derive(Debug)]
pub struct ContentAt<'a> {
    pub file: &'a File,
    pub at: u64,
    pub left: u64,
}

impl Read for ContentAt<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let got = self.file.read_at(out.get_mut(..want).unwrap_or_default(), self.at)?;
        (self.at, self.left) = (self.at + got as u64, self.left - got as u64);
        Ok(got)
    }
}

/// What is to be written at a path of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Directory,
    File { is_executable: bool, bytes: u64 },
    Link { target: String },
}

/// Gives a file's content, by its path.
pub type Open<'a> = &'a mut dyn FnMut(&str) -> io::Result<Box<dyn Read + 'a>>;

/// Writes a tree as a disk, all of it owned by `uid`, the directory it stands in with this mode. Directories come before what is in
/// them. Returns the digest of each file's content, as it was written.
pub fn write_disk<'a>(
    path: &Path,
    uid: u32,
    mode: u16,
    pieces: &BTreeMap<String, Piece>,
    open: Open<'a>,
) -> Result<BTreeMap<String, Digest>, ImportError> {
    let owner = |mode| Owner { mode, uid, gid: uid, mtime: MODIFIED_UNIX_S };
    let too_large = |refusal: Refusal| ImportError::archive("tree", refusal.rule, refusal.remedy);
    let mut tree = Tree::default();
    tree.set_owner(NodeId::ROOT, IMPLIED);
    let top = tree.insert(Node::Directory(Default::default()), owner(mode)).map_err(too_large)?;
    tree.put(NodeId::ROOT, TOP, top);
    let mut places: BTreeMap<&str, NodeId> = BTreeMap::from([("", top)]);
    let mut files = Vec::new();
    for (name, piece) in pieces {
        let (above, last) = name.rsplit_once('/').unwrap_or(("", name));
        let no_directory =
            || ImportError::archive(name, "it stands in no directory of the tree", "leave it out");
        let above = *places.get(above).ok_or_else(no_directory)?;
        let (node, mode) = match piece {
            Piece::Directory => (Node::Directory(Default::default()), 0o755),
            Piece::File { is_executable, bytes } => {
                let content = super::tree::Content { layer: 0, at: 0, size: *bytes };
                (Node::File(content), if *is_executable { 0o755 } else { 0o644 })
            }
            Piece::Link { target } => (Node::Symlink(target.as_bytes().into()), 0o777),
        };
        let id = tree.insert(node, owner(mode)).map_err(too_large)?;
        tree.put(above, last.as_bytes(), id);
        match piece {
            Piece::Directory => drop(places.insert(name, id)),
            Piece::File { bytes, .. } => files.push((name, id, *bytes)),
            Piece::Link { .. } => {}
        }
    }
    let mut digests = BTreeMap::new();
    write(path, &tree, |writer| {
        for (name, id, bytes) in files {
            let content = open(name).map_err(WriteError::Input)?;
            let mut hashed = Hashed { inner: content, hash: Sha256::new() };
            writer.file(id, bytes, &mut hashed)?;
            digests.insert(name.clone(), Digest(hashed.hash.finalize().into()));
        }
        Ok(())
    })?;
    Ok(digests)
}

/// Writes the disk that lies below a tree's and hides what the rootfs has at its place, so that the tree is all that stands there.
pub fn write_mask(path: &Path) -> Result<(), ImportError> {
    let mut tree = Tree::default();
    let refusal = |refusal: Refusal| ImportError::archive("mask", refusal.rule, refusal.remedy);
    let hidden = tree.insert(Node::Whiteout, Owner { mode: 0, ..IMPLIED }).map_err(refusal)?;
    tree.put(NodeId::ROOT, TOP, hidden);
    write(path, &tree, |_| Ok(()))
}

/// A disk's file, whole and durable, in place of what is there.
fn write(
    path: &Path,
    tree: &Tree,
    contents: impl FnOnce(&mut Writer<BufWriter<File>>) -> Result<(), WriteError>,
) -> Result<(), ImportError> {
    let failed = |error: WriteError| match error {
        WriteError::Output(source) => ImportError::host("write", path)(source),
        WriteError::Input(source) => ImportError::host("read the content for", path)(source),
        WriteError::Limit(rule) => ImportError::archive("tree", rule, "make the tree smaller"),
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ImportError::host("remove", path)(error));
        }
        _ => {}
    }
    let file = File::create_new(path).map_err(ImportError::host("create", path))?;
    let mut writer = Writer::new(BufWriter::with_capacity(256 * 1024, file)).map_err(failed)?;
    contents(&mut writer).map_err(failed)?;
    let buffered = writer.finish(tree).map_err(failed)?;
    let file = buffered.into_inner().map_err(|error| ImportError::host("write", path)(error.into_error()))?;
    file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(ImportError::host("chmod", path))?;
    file.sync_all().map_err(ImportError::host("sync", path))
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(out)?;
        self.hash.update(out.get(..got).unwrap_or_default());
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Kind, path, content or target, mode.
    type Given<'a> = (::tar::EntryType, &'a str, &'a str, u32);

    fn tar_of(entries: &[Given<'_>]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (kind, path, data, mode) in entries {
            let mut header = ::tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            let name = &mut header.as_gnu_mut().unwrap().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            let is_link = matches!(kind, ::tar::EntryType::Symlink | ::tar::EntryType::Link);
            if is_link {
                header.as_gnu_mut().unwrap().linkname[..data.len()].copy_from_slice(data.as_bytes());
            }
            header.set_size(if is_link { 0 } else { data.len() as u64 });
            header.set_cksum();
            builder.append(&header, if is_link { &b""[..] } else { data.as_bytes() }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn listed(entries: &[Given<'_>]) -> Result<Listing, ImportError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree.tar");
        fs::write(&path, tar_of(entries)).unwrap();
        list(&path)
    }

    const FILE: ::tar::EntryType = ::tar::EntryType::Regular;
    const LINK: ::tar::EntryType = ::tar::EntryType::Symlink;

    #[test]
    fn a_tree_is_listed_with_its_digests_and_all_its_directories() {
        let listing = listed(&[(FILE, "./a/b/x", "hello", 0o755), (LINK, "a/l", "b/x", 0o777)]).unwrap();
        let paths: Vec<&str> = listing.keys().map(String::as_str).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/x", "a/l"]);
        let Entry::File { is_executable, bytes, sha256, .. } = &listing["a/b/x"] else { panic!() };
        assert!(is_executable & (*bytes == 5));
        assert_eq!(*sha256, Digest(Sha256::digest("hello").into()));
    }

    #[test]
    fn what_makes_no_tree_is_refused_by_name() {
        let cases: &[(&[Given<'_>], &str)] = &[
            (&[(FILE, "../x", "", 0o644)], "leads out"),
            (&[(FILE, "a/../../x", "", 0o644)], "leads out"),
            (&[(LINK, "a", "/etc", 0o777), (FILE, "a/passwd", "", 0o644)], "not a directory"),
            (&[(FILE, "a", "", 0o644), (FILE, "a", "", 0o644)], "twice"),
            (&[(FILE, "a/b", "", 0o644), (LINK, "a", "b", 0o777)], "twice"),
            (&[(::tar::EntryType::Link, "b", "a", 0o644)], "only files"),
            (&[(::tar::EntryType::Fifo, "p", "", 0o644)], "only files"),
            (&[(::tar::EntryType::Block, "dev/sda", "", 0o644)], "only files"),
            (&[(LINK, "l", "", 0o777)], "target is empty"),
            (&[(FILE, ".", "", 0o644)], "root can only be a directory"),
        ];
        for (entries, rule) in cases {
            let error = listed(entries).unwrap_err().to_string();
            assert!(error.contains(rule), "{entries:?}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut");
        let mut cut = tar_of(&[(FILE, "a", "content", 0o644)]);
        cut.truncate(515);
        fs::write(&path, cut).unwrap();
        assert!(list(&path).is_err());
    }

    /// The kernel's own reader of the format is the judge, by unsquashfs where it is there.
    #[test]
    fn a_disk_shows_the_tree_at_its_place_and_hides_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (tar, disk, mask) =
            (dir.path().join("t.tar"), dir.path().join("d.squashfs"), dir.path().join("m"));
        let long = "x".repeat(300_000);
        fs::write(
            &tar,
            tar_of(&[
                (FILE, "src/main.rs", "fn main() {}", 0o644),
                (FILE, "run", &long, 0o755),
                (LINK, "l", "src", 0o777),
                (FILE, ".wh.odd", "", 0o644),
            ]),
        )
        .unwrap();
        let listing = list(&tar).unwrap();
        let file = File::open(&tar).unwrap();
        let pieces = listing.iter().map(|(path, entry)| (path.clone(), entry.piece())).collect();
        let digests = write_disk(&disk, 1001, 0o700, &pieces, &mut |path| match &listing[path] {
            Entry::File { at, bytes, .. } => {
                Ok(Box::new(ContentAt { file: &file, at: *at, left: *bytes }) as Box<dyn Read>)
            }
            _ => panic!("{path} has no content"),
        })
        .unwrap();
        for (path, digest) in &digests {
            assert!(matches!(&listing[path], Entry::File { sha256, .. } if sha256 == digest), "{path}");
        }
        assert_eq!(digests.len(), 3);
        write_mask(&mask).unwrap();
        let lines = |disk: &Path| {
            let out = Command::new("unsquashfs").args(["-lln", "-d", ""]).arg(disk).output();
            out.ok().map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        };
        let (Some(shown), Some(hidden)) = (lines(&disk), lines(&mask)) else {
            panic!("unsquashfs (squashfs-tools) is needed");
        };
        for line in [
            "drwx------ 1001/1001",
            "-rw-r--r-- 1001/1001",
            "-rwxr-xr-x 1001/1001",
            "/work/.wh.odd",
            "l -> src",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(hidden.lines().any(|l| l.starts_with("c---------") && l.ends_with("/work")), "{hidden}");
    }
}
