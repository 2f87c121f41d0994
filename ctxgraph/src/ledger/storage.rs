//! Where a segment's bytes live. A trait, because the tests need a disk that fills up, fails, and forgets what was not
//! synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One segment's bytes.
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

/// A segment in the file system.
#[derive(Debug)]
pub struct SegmentFile(File);

impl SegmentFile {
    /// Opens the first segment of the ledger in `directory`; makes it, durably and whole or not at all, if there is none.
    pub fn open_or_create(directory: &Path, header: impl FnOnce() -> Vec<u8>) -> io::Result<SegmentFile> {
        std::fs::create_dir_all(directory)?;
        let path = segment_path(directory, 0);
        if !path.try_exists()? {
            let fresh = path.with_extension("new");
            let mut file = options().create(true).truncate(true).open(&fresh)?;
            file.write_all(&header())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)?;
            File::open(directory)?.sync_all()?;
            if let Some(parent) = directory.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        options().open(&path).map(SegmentFile)
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// The file of the segment that begins at `first_seq`.
pub fn segment_path(directory: &Path, first_seq: u64) -> PathBuf {
    directory.join(format!("{first_seq:020}.log"))
}

impl Storage for SegmentFile {
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
