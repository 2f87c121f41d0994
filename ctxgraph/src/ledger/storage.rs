//! Where the ledger's bytes live. Traits, because the tests need a disk that fills up, fails, and forgets what was not
//! synced: bytes of files and names of files alike.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

/// Whether a file that is not opened is itself the reason, and not that the process has no descriptor or no memory for it.
pub fn is_of_the_file(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let wanting = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
    error.raw_os_error().is_none_or(|errno| !wanting.contains(&errno))
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

/// A file whose unreadable blocks read as zeros, so that what is beside them is still read. For reading only.
pub struct Lenient {
    file: Arc<dyn Storage>,
    unreadable: Mutex<Option<(u64, String)>>,
}

/// Bytes that are given up where the disk cannot read them.
const BLOCK_BYTES: u64 = 4096;

impl std::fmt::Debug for Lenient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lenient").finish_non_exhaustive()
    }
}

impl Lenient {
    pub fn new(file: Arc<dyn Storage>) -> Lenient {
        Lenient { file, unreadable: Mutex::new(None) }
    }

    /// The first bytes that could not be read, in words.
    pub fn unreadable(&self) -> Option<String> {
        let first = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        first
            .as_ref()
            .map(|(offset, error)| format!("the disk cannot read the bytes from {offset} on: {error}"))
    }
}

impl Storage for Lenient {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let error = match self.file.read_at(out, offset) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => error,
            read => return read,
        };
        // To the end of this block; what is asked for beyond it is asked for again.
        let block = usize::try_from(BLOCK_BYTES - offset % BLOCK_BYTES).unwrap_or(out.len());
        let here = out.len().min(block);
        let piece = out.get_mut(..here).unwrap_or_default();
        if let Ok(count) = self.file.read_at(piece, offset) {
            return Ok(count);
        }
        piece.fill(0);
        let mut first = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(known, _)| offset < *known) {
            *first = Some((offset, error.to_string()));
        }
        Ok(here)
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn cut(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// A file in the file system; none to write to where that is read-only.
#[derive(Debug)]
struct RealFile {
    file: File,
    writable: bool,
}

impl RealFile {
    fn to_write(&self) -> io::Result<&File> {
        self.writable.then_some(&self.file).ok_or(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

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

    /// A file that cannot be written.
    pub(super) fn read_only(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let file = File::open(self.0.join(name))?;
        Ok(Arc::new(RealFile { file, writable: false }))
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
        let path = self.0.join(name);
        let file = match options().open(&path) {
            // After an error the kernel may have made the file system read-only: what is there is read all the same.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return self.read_only(name),
            file => file?,
        };
        Ok(Arc::new(RealFile { file, writable: true }))
    }
    fn make(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let file = options().create(true).truncate(true).open(self.0.join(name))?;
        Ok(Arc::new(RealFile { file, writable: true }))
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
        Ok(self.file.metadata()?.len())
    }
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.file, out, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.to_write()?.write_all_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.to_write()?.sync_data()
    }
    fn cut(&self, length: u64) -> io::Result<()> {
        self.to_write()?.set_len(length)?;
        self.file.sync_all()
    }
}
