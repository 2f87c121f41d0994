//! A change set's file: the records of `abi::files` that people get as the patch, and where each new content lies in it.
//!
//! Must hold: it is written by the host from a change set that was checked, never as a guest sent it.

use abi::files::{Content, Record, Writer};
use abi::ids::Digest;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use verdict::patch::{ChangeSet, Claimed, ClaimedChange, ClaimedContent};
use verdict::tree::Entry;

use super::claim;

/// Contents by path, in a file of records.
#[derive(Debug)]
pub struct Contents {
    file: File,
    places: BTreeMap<String, (u64, u64)>,
}

/// A content where it lies.
#[derive(Debug)]
pub struct Lying<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl io::Read for Lying<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let got = self.file.read_at(out.get_mut(..want).unwrap_or_default(), self.at)?;
        (self.at, self.left) = (self.at + got as u64, self.left - got as u64);
        Ok(got)
    }
}

impl Contents {
    /// A path's new content, if it has one.
    pub fn open(&self, path: &str) -> Option<Lying<'_>> {
        let (at, left) = *self.places.get(path)?;
        Some(Lying { file: &self.file, at, left })
    }
}

/// What a guest claims, for `verdict`, with digests that the host took; and the contents.
pub fn claimed(records: Vec<claim::Claimed>) -> (Claimed, BTreeMap<Digest, Vec<u8>>) {
    let mut contents = BTreeMap::new();
    let changes = records.into_iter().map(|(record, bytes)| {
        let content = match record.content {
            Content::File { .. } => {
                let bytes = bytes.unwrap_or_default();
                let sha256 = Digest(Sha256::digest(&bytes).into());
                let length = bytes.len() as u64;
                contents.insert(sha256, bytes);
                ClaimedContent::File { sha256, bytes: length }
            }
            Content::Directory => ClaimedContent::Directory,
            Content::Link { target } => ClaimedContent::Link { target },
            Content::Removed => ClaimedContent::Removed,
            Content::Other { kind } => ClaimedContent::Other { kind },
        };
        ClaimedChange { path: record.path, mode: record.mode, content }
    });
    let changes = changes.collect();
    (Claimed { changes }, contents)
}

/// Writes a change set's file, durably.
pub fn write(
    path: &Path,
    changes: &ChangeSet,
    contents: &BTreeMap<Digest, Vec<u8>>,
    modified_unix_s: i64,
) -> io::Result<Contents> {
    let file = File::create(path)?;
    let mut writer = Writer::new(Counted { out: BufWriter::new(file), bytes: 0 });
    let mut places = BTreeMap::new();
    for (name, change) in changes.changes() {
        let (mode, content) = match &change.new {
            Some(Entry::Directory) => (0o755, Content::Directory),
            Some(Entry::File { is_executable, bytes, .. }) => {
                (if *is_executable { 0o755 } else { 0o644 }, Content::File { bytes: *bytes })
            }
            Some(Entry::Link { target }) => (0o777, Content::Link { target: target.clone() }),
            None => (0, Content::Removed),
        };
        let in_rootfs = change.old.is_some();
        let record = Record { path: name.into(), mode, modified_unix_s, content, in_rootfs };
        writer.record(&record).map_err(io::Error::other)?;
        if let Some(Entry::File { sha256, bytes, .. }) = &change.new {
            let content = contents.get(sha256).ok_or_else(|| io::Error::other("a content is missing"))?;
            places.insert(name.to_owned(), (writer.out().bytes, *bytes));
            writer.out().write_all(content)?;
        }
    }
    let file = {
        let out = writer.out();
        out.flush()?;
        out.out.get_ref().sync_all()?;
        File::open(path)?
    };
    Ok(Contents { file, places })
}

/// Knows how far it is.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.out.write(data)?;
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
