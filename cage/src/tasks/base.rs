//! A task's base tree: the tar it came as, and the disks that are made of it.
//!
//! Must hold: a disk shows exactly the tree that `verdict` speaks of; the two digests are compared each time one is written.

use abi::ids::Digest;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use verdict::patch::ChangeSet;
use verdict::tree::{Entry, Tree};

use super::records::Contents;
use crate::store::work::{self, ContentAt, Listing, Piece};

/// A base tree.
#[derive(Debug)]
pub struct Base {
    tar: PathBuf,
    listing: Listing,
    pub tree: Tree,
}

/// Whose a tree is inside a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    /// Of the directory that the tree stands in.
    pub mode: u16,
}

impl Base {
    /// Reads the tar of a tree.
    pub fn read(tar: &Path) -> Result<Base, String> {
        let listing = work::list(tar).map_err(|error| error.to_string())?;
        let entries = listing.iter().map(|(path, entry)| (path.clone(), known(entry)));
        let tree = Tree::new(entries).map_err(|error| error.to_string())?;
        Ok(Base { tar: tar.to_owned(), listing, tree })
    }

    /// Writes the disk of the base itself.
    pub fn write(&self, disk: &Path, owner: Owner) -> Result<(), String> {
        self.write_tree(disk, owner, &self.tree, None)
    }

    /// Writes the disk of the base with a change set whose new contents lie in `contents`.
    pub fn write_changed(
        &self,
        disk: &Path,
        owner: Owner,
        changes: &ChangeSet,
        contents: &Contents,
    ) -> Result<Digest, String> {
        let tree = changes.apply(&self.tree).ok_or("the changes are of another base")?;
        self.write_tree(disk, owner, &tree, Some(contents))?;
        Ok(tree.digest())
    }

    fn write_tree(
        &self,
        disk: &Path,
        owner: Owner,
        tree: &Tree,
        contents: Option<&Contents>,
    ) -> Result<(), String> {
        let pieces: BTreeMap<String, Piece> =
            tree.entries().map(|(path, entry)| (path.to_owned(), piece(entry))).collect();
        let tar = File::open(&self.tar).map_err(|error| format!("the base's tar: {error}"))?;
        let mut open = |path: &str| -> io::Result<Box<dyn Read + '_>> {
            if let Some(content) = contents.and_then(|contents| contents.open(path)) {
                return Ok(Box::new(content));
            }
            match self.listing.get(path) {
                Some(work::Entry::File { at, bytes, .. }) => {
                    Ok(Box::new(ContentAt { file: &tar, at: *at, left: *bytes }))
                }
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        };
        let written = work::write_disk(disk, owner.uid, owner.mode, &pieces, &mut open)
            .map_err(|error| error.to_string())?;
        let as_written = pieces.into_iter().map(|(path, piece)| {
            let entry = match piece {
                Piece::Directory => Entry::Directory,
                Piece::Link { target } => Entry::Link { target },
                Piece::File { is_executable, bytes } => {
                    let sha256 = written.get(&path).copied().unwrap_or(Digest([0; 32]));
                    Entry::File { is_executable, sha256, bytes }
                }
            };
            (path, entry)
        });
        let as_written = Tree::new(as_written).map_err(|error| error.to_string())?;
        if as_written.digest() != tree.digest() {
            return Err("the disk that was written is not the tree that it should be".into());
        }
        Ok(())
    }

    /// A file's content in the base, for a diff; at most `bytes_max`.
    pub fn content(&self, path: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let Some(work::Entry::File { at, bytes, .. }) = self.listing.get(path) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let tar = File::open(&self.tar)?;
        let mut content = Vec::new();
        ContentAt { file: &tar, at: *at, left: (*bytes).min(bytes_max) }.read_to_end(&mut content)?;
        Ok(content)
    }
}

fn known(entry: &work::Entry) -> Entry {
    match entry {
        work::Entry::Directory => Entry::Directory,
        work::Entry::File { is_executable, bytes, sha256, .. } => {
            Entry::File { is_executable: *is_executable, sha256: *sha256, bytes: *bytes }
        }
        work::Entry::Link { target } => Entry::Link { target: target.clone() },
    }
}

fn piece(entry: &Entry) -> Piece {
    match entry {
        Entry::Directory => Piece::Directory,
        Entry::File { is_executable, bytes, .. } => {
            Piece::File { is_executable: *is_executable, bytes: *bytes }
        }
        Entry::Link { target } => Piece::Link { target: target.clone() },
    }
}
