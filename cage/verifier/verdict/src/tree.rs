//! A tree of files as a task knows it: paths, what they are, and digests of what they hold. Never the bytes themselves.
//!
//! Must hold: two trees have the same digest exactly when they have the same entries; each entry's parent is a directory of the tree.
//! The form is in docs/tasks.md.

use abi::ids::Digest;
use abi::limits;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use sha2::{Digest as _, Sha256};

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory,
    File { is_executable: bool, sha256: Digest, bytes: u64 },
    Link { target: String },
}

/// Entries by path, in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    pub(crate) entries: BTreeMap<String, Entry>,
}

/// Why entries are no tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeError {
    /// Not a relative path in its one spelling.
    Path(String),
    /// The path came twice.
    Twice(String),
    /// Its parent is no directory of the tree.
    Parent(String),
    /// More entries than [`limits::TREE_ENTRIES_MAX`].
    Entries,
}

impl core::fmt::Display for TreeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            TreeError::Path(path) => {
                write!(f, "`{}` is not a relative path without empty, `.` or `..` parts", path.escape_debug())
            }
            TreeError::Twice(path) => write!(f, "`{}` came twice", path.escape_debug()),
            TreeError::Parent(path) => {
                write!(f, "what `{}` lies in is no directory of the tree", path.escape_debug())
            }
            TreeError::Entries => write!(f, "the tree has more than {} entries", limits::TREE_ENTRIES_MAX),
        }
    }
}

impl core::error::Error for TreeError {}

impl Tree {
    /// Of entries in any order.
    pub fn new(list: impl IntoIterator<Item = (String, Entry)>) -> Result<Tree, TreeError> {
        let mut entries = BTreeMap::new();
        for (path, entry) in list {
            if path.is_empty() || !abi::files::path_ok(&path) {
                return Err(TreeError::Path(path));
            }
            if entries.len() >= limits::TREE_ENTRIES_MAX {
                return Err(TreeError::Entries);
            }
            if entries.contains_key(&path) {
                return Err(TreeError::Twice(path));
            }
            entries.insert(path, entry);
        }
        let tree = Tree { entries };
        match tree.entries.keys().find(|path| !tree.is_in_directory(path)) {
            Some(path) => Err(TreeError::Parent(path.clone())),
            None => Ok(tree),
        }
    }

    pub(crate) fn is_in_directory(&self, path: &str) -> bool {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.entries.get(parent) == Some(&Entry::Directory),
            None => true,
        }
    }

    /// What stands there.
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// All entries, in byte order of their paths.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// What is below a directory, without itself.
    pub(crate) fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a String> + use<'a> {
        let prefix = format!("{path}/");
        let range = self.entries.range(prefix.clone()..);
        range.map(|(path, _)| path).take_while(move |path| path.starts_with(&prefix))
    }

    /// SHA-256 of the tree's text.
    pub fn digest(&self) -> Digest {
        let mut sha = Sha256::new();
        sha.update(b"nullbox-tree-1\n");
        for (path, entry) in &self.entries {
            sha.update(line(path, entry));
        }
        Digest(sha.finalize().into())
    }
}

/// An entry's line in a tree's text, and behind `-` or `+` in a patch's.
pub(crate) fn line(path: &str, entry: &Entry) -> String {
    let path = quoted(path);
    match entry {
        Entry::Directory => format!("d {path}\n"),
        Entry::File { is_executable, sha256, .. } => {
            let mode = if *is_executable { "755" } else { "644" };
            format!("f {mode} {} {path}\n", sha256.hex())
        }
        Entry::Link { target } => format!("l {} {path}\n", sha256(target.as_bytes()).hex()),
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// A path as `git diff` writes it: as it is, or in quotes with C escapes if it has a byte that is not printable ASCII, a quote or a backslash.
pub fn quoted(path: &str) -> String {
    let is_plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if path.bytes().all(is_plain) {
        return path.into();
    }
    let mut out = String::from("\"");
    for byte in path.bytes() {
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            7 => out.push_str("\\a"),
            8 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            11 => out.push_str("\\v"),
            12 => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            byte if is_plain(byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out.push('"');
    out
}
