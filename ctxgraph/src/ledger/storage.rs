//! Where the ledger's bytes live. Traits, because the tests need a disk that fills up, fails, and forgets what was not
//! synced: bytes of files and names of files alike.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One file's bytes.
pub trait Storage: Send + Sync + 'static {
    /// Bytes there are.
    fn length(&self) -> io::Result<u64>;
    /// Reads up to `out.len()` bytes at an offset; 0 at the end.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes at an offset.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written is durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts to a length.
    fn cut(&self, length: u64) -> io::Result<()>;
}

/// The ledger's directory.
pub trait Directory: Send + Sync + 'static {
    /// Names of the files in it, in any order.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Arc<dyn Storage>>;
    /// Makes an empty file, or empties the one that is there.
    fn make(&self, name: &str) -> io::Result<Arc<dyn Storage>>;
    /// Gives a file another name, in place of the file that had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Returns when all names are durable.
    fn sync(&self) -> io::Result<()>;
}

/// The name of the segment that begins at `first_seq`.
pub fn segment_name(first_seq: u64) -> String {
    format!("{first_seq:020}.log")
}

/// First seqs of the segments in a directory, in order. Other names are none of the ledger's.
pub fn segments(directory: &dyn Directory) -> io::Result<Vec<u64>> {
    let names = directory.names()?;
    let mut found: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_suffix(".log")?.parse().ok().filter(|seq| segment_name(*seq) == *name))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Makes a segment with these first bytes, durably, and whole or not at all. To make it again after a failure is the same.
pub fn make_segment(
    directory: &dyn Directory,
    first_seq: u64,
    header: &[u8],
) -> io::Result<Arc<dyn Storage>> {
    let name = segment_name(first_seq);
    let fresh = format!("{name}.new");
    let file = directory.make(&fresh)?;
    file.write_at(header, 0)?;
    file.sync()?;
    directory.rename(&fresh, &name)?;
    directory.sync()?;
    Ok(file)
}

/// A file in the file system.
#[derive(Debug)]
struct RealFile(File);

/// A directory in the file system.
#[derive(Debug)]
pub struct RealDirectory(PathBuf);

impl RealDirectory {
    /// Opens a directory; makes it, durably, if there is none.
    pub fn open_or_create(path: &Path) -> io::Result<RealDirectory> {
        if !path.try_exists()? {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(RealDirectory(path.into()))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Directory for RealDirectory {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(RealFile(options().open(self.0.join(name))?)))
    }
    fn make(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(RealFile(options().create(true).truncate(true).open(self.0.join(name))?)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }
    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

impl Storage for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, out, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn cut(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)?;
        self.0.sync_all()
    }
}
