//! The archive file itself: a tar whose members are found once and then read in place, by offset.
//!
//! Must hold: a name means one member; a member's bytes all lie inside the file. Must never: write.

use abi::ids::Digest;
use abi::limits;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{ImportError, shown};
use super::tar::{self, Input, Kind, TarError};

const BUFFER_BYTES: usize = 64 * 1024;
const AGAIN: &str = "write the archive again";

/// A run of bytes in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub at: u64,
    pub size: u64,
}

#[derive(Debug)]
enum Member {
    File(Extent),
    /// Older `docker save` writes a layer that two images share as a link to the first.
    Link(Vec<u8>),
}

/// An opened archive with its table of members.
#[derive(Debug)]
pub struct Archive {
    file: File,
    size: u64,
    members: BTreeMap<Vec<u8>, Member>,
}

impl Archive {
    /// Finds the members. `path` is for messages only.
    pub fn scan(file: File, path: &Path) -> Result<Self, ImportError> {
        let size = file.metadata().map_err(ImportError::host("stat", path))?.len();
        if size > limits::ARCHIVE_BYTES_MAX {
            let rule = format!("{size} bytes, more than the limit of {}", limits::ARCHIVE_BYTES_MAX);
            return Err(ImportError::archive("", rule, "make the image smaller"));
        }
        let mut members = BTreeMap::new();
        let whole = Extent { at: 0, size };
        let mut reader = tar::Reader::new(ExtentReader::new(&file, whole), true);
        let mut entries = 0;
        while let Some(entry) = reader.next_entry().map_err(|error| not_a_tar(error, path))? {
            entries += 1;
            if entries > limits::ARCHIVE_ENTRIES_MAX {
                let rule = format!("more than {} members", limits::ARCHIVE_ENTRIES_MAX);
                return Err(ImportError::archive("", rule, "save one image into it"));
            }
            let Some(name) = plain_name(&entry.path) else {
                return Err(ImportError::archive(&entry.path, "leads out of the archive", AGAIN));
            };
            let member = match entry.kind {
                Kind::File => Member::File(Extent { at: entry.data_at, size: entry.size }),
                Kind::Symlink | Kind::HardLink => Member::Link(link_target(&name, &entry)),
                _ => continue,
            };
            if members.insert(name, member).is_some() {
                let rule = "stands in the archive twice, and only one can be meant";
                return Err(ImportError::archive(&entry.path, rule, AGAIN));
            }
        }
        Ok(Archive { file, size, members })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// A member's place, through one link at most.
    pub fn find(&self, name: &str) -> Result<Extent, ImportError> {
        let missing = |name: &[u8]| ImportError::archive(name, "is missing from the archive", AGAIN);
        let key = plain_name(name.as_bytes()).ok_or_else(|| missing(name.as_bytes()))?;
        let target = match self.members.get(&key) {
            Some(Member::File(extent)) => return Ok(*extent),
            Some(Member::Link(target)) => target,
            None => return Err(missing(&key)),
        };
        match self.members.get(target) {
            Some(Member::File(extent)) => Ok(*extent),
            _ => Err(missing(target)),
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.members.contains_key(name.as_bytes())
    }

    /// A small member's bytes.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let extent = self.find(name)?;
        if extent.size > limits::OCI_JSON_BYTES_MAX {
            let rule =
                format!("{} bytes, more than the limit of {}", extent.size, limits::OCI_JSON_BYTES_MAX);
            return Err(ImportError::archive(name, rule, "a JSON document is expected here"));
        }
        let mut bytes = Vec::new();
        self.open(extent)
            .read_to_end(&mut bytes)
            .map_err(|error| ImportError::archive(name, error.to_string(), AGAIN))?;
        if bytes.len() as u64 != extent.size {
            return Err(ImportError::archive(name, "the archive is cut", AGAIN));
        }
        Ok(bytes)
    }

    pub fn open(&self, extent: Extent) -> ExtentReader<'_> {
        ExtentReader::new(&self.file, extent)
    }

    /// The whole file.
    pub fn whole(&self) -> Extent {
        Extent { at: 0, size: self.size }
    }

    /// SHA-256 of a part.
    pub fn digest(&self, extent: Extent, mut progress: impl FnMut(u64)) -> Result<Digest, ImportError> {
        let mut reader = self.open(extent);
        let mut hash = Sha256::new();
        let mut buffer = vec![0u8; BUFFER_BYTES];
        let mut done = 0;
        loop {
            let got = reader
                .read(&mut buffer)
                .map_err(|error| ImportError::archive("", error.to_string(), AGAIN))?;
            if got == 0 {
                return Ok(Digest(hash.finalize().into()));
            }
            hash.update(buffer.get(..got).unwrap_or_default());
            done += got as u64;
            progress(done);
        }
    }
}

/// Reads an extent in place; never beyond it.
#[derive(Debug)]
pub struct ExtentReader<'a> {
    file: &'a File,
    /// Where the next byte that is not in the buffer lies, and where the extent ends.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl<'a> ExtentReader<'a> {
    pub(super) fn new(file: &'a File, extent: Extent) -> Self {
        ExtentReader {
            file,
            at: extent.at,
            end: extent.at.saturating_add(extent.size),
            buffer: Vec::new(),
            used: 0,
        }
    }

    fn buffered(&self) -> &[u8] {
        self.buffer.get(self.used..).unwrap_or_default()
    }

    fn fill(&mut self) -> io::Result<()> {
        let want = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        self.buffer.resize(want, 0);
        self.used = 0;
        let got = loop {
            match self.file.read_at(&mut self.buffer, self.at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.buffer.truncate(got);
        self.at += got as u64;
        Ok(())
    }
}

impl Read for ExtentReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffered().is_empty() {
            self.fill()?;
        }
        let got = self.buffered().read(out)?;
        self.used += got;
        Ok(got)
    }
}

impl Input for ExtentReader<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let buffered = self.buffered().len() as u64;
        if bytes <= buffered {
            self.used += usize::try_from(bytes).unwrap_or(0);
            return Ok(());
        }
        self.buffer.clear();
        self.used = 0;
        match self.at.checked_add(bytes - buffered) {
            Some(at) if at <= self.end => {
                self.at = at;
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn not_a_tar(error: TarError, path: &Path) -> ImportError {
    let remedy = match error {
        TarError::Cut { .. } => "copy it again, whole",
        _ => "an OCI archive or the output of docker save is expected, not compressed as a whole",
    };
    match error {
        TarError::Read(source) => ImportError::host("read", path)(source),
        other => ImportError::archive("", other.to_string(), remedy),
    }
}

/// A member's name without `./`; none if it leads out.
fn plain_name(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// What a link means: symbolic ones from its own directory, hard ones from the top. A target outside means no member.
fn link_target(name: &[u8], entry: &tar::Entry) -> Vec<u8> {
    let from = match entry.kind {
        Kind::Symlink => name.rsplitn(2, |b| *b == b'/').nth(1).unwrap_or_default(),
        _ => b"",
    };
    plain_name(&[from, b"/", entry.link.as_slice()].concat()).unwrap_or_default()
}

/// How a wrong digest is told.
pub(super) fn digest_differs(place: &str, want: &Digest, got: &Digest) -> ImportError {
    ImportError::archive(
        place,
        format!("its content is {got}, not {}", shown(want.to_string().as_bytes())),
        "the archive is damaged or was changed: fetch or write it again",
    )
}
