//! The empty file system that every disk begins as, /system/guest/scratch.ext4.
//!
//! A file on SquashFS has no holes to ask for, so it is read once, and what is not zero (under 100 KiB) is kept in memory: a start
//! writes only that.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// One block of the file systems.
const BLOCK_BYTES: usize = 4096;
/// What a template may hold beside zeroes. More: no template of ours.
const CONTENT_BYTES_MAX: usize = 1 << 20;

/// A template, read when it is first used.
#[derive(Debug)]
pub struct Template {
    path: PathBuf,
    content: OnceLock<Content>,
}

#[derive(Debug, Default)]
struct Content {
    bytes: u64,
    /// Offset and bytes of each run that is not all zeroes.
    runs: Vec<(u64, Vec<u8>)>,
}

impl Template {
    /// Of a file.
    pub fn at(path: PathBuf) -> Template {
        Template { path, content: OnceLock::new() }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty file a disk of `bytes`; a disk smaller than the template is an error.
    pub fn write_to(&self, disk: &File, bytes: u64) -> io::Result<()> {
        let content = match self.content.get() {
            Some(content) => content,
            None => {
                let read = Content::read(&mut File::open(&self.path)?)?;
                self.content.get_or_init(|| read)
            }
        };
        if bytes < content.bytes {
            return Err(io::Error::other(format!(
                "the template has {} bytes, the disk {bytes}",
                content.bytes
            )));
        }
        for (at, run) in &content.runs {
            disk.write_all_at(run, *at)?;
        }
        disk.set_len(bytes)
    }
}

impl Content {
    fn read(from: &mut impl Read) -> io::Result<Content> {
        let mut content = Content::default();
        let mut held = 0;
        let mut block = [0u8; BLOCK_BYTES];
        loop {
            let length = read_block(from, &mut block)?;
            let block = &block[..length];
            if length == 0 {
                return Ok(content);
            }
            if block.iter().any(|byte| *byte != 0) {
                held += length;
                if held > CONTENT_BYTES_MAX {
                    return Err(io::Error::other(format!(
                        "more than {CONTENT_BYTES_MAX} bytes are not zero"
                    )));
                }
                match content.runs.last_mut() {
                    Some((at, run)) if *at + run.len() as u64 == content.bytes => {
                        run.extend_from_slice(block)
                    }
                    _ => content.runs.push((content.bytes, block.to_vec())),
                }
            }
            content.bytes += length as u64;
        }
    }
}

/// A whole block, or what is left of the file.
fn read_block(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_disk_begins_as_its_template_and_is_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0u8; 1 << 20];
        (bytes[0], bytes[600_000], bytes[4096 * 147], bytes[(1 << 20) - 1]) = (1, 7, 8, 9);
        std::fs::write(dir.path().join("t"), &bytes).unwrap();
        let template = Template::at(dir.path().join("t"));
        for _ in 0..2 {
            let disk = tempfile::tempfile().unwrap();
            template.write_to(&disk, 64 << 20).unwrap();
            let mut written = vec![1u8; 1 << 20];
            disk.read_exact_at(&mut written, 0).unwrap();
            assert!(written == bytes);
            let meta = disk.metadata().unwrap();
            assert_eq!(meta.len(), 64 << 20);
            assert!(meta.blocks() * 512 < 256 * 1024, "{}", meta.blocks());
        }
        let small = tempfile::tempfile().unwrap();
        assert!(template.write_to(&small, 1 << 19).unwrap_err().to_string().contains("the template has"));
    }

    #[test]
    fn a_template_that_is_no_empty_file_system_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t"), vec![1u8; CONTENT_BYTES_MAX + 1]).unwrap();
        let disk = tempfile::tempfile().unwrap();
        assert!(Template::at(dir.path().join("t")).write_to(&disk, 1 << 30).is_err());
    }
}
