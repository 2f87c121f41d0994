//! Writes a [`Tree`] as SquashFS 4.0: contents first as they come, then the tables.
//!
//! Must hold: the same tree and contents give the same bytes; contents are never held beyond one block and one fragment.
//! Must never: put the time of writing, a host path or an unordered map's order into the file.
//!
//! Source: Linux fs/squashfs/squashfs_fs.h, Documentation/filesystems/squashfs.rst.

mod inodes;
mod metadata;

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::tree::{NodeId, Tree};
use metadata::{Packer, Table};

/// Data and fragment blocks.
pub const BLOCK_BYTES: usize = 128 * 1024;
const BLOCK_LOG: u16 = 17;
/// In a data block's or a fragment's size: it is stored as it is.
const STORED: u32 = 1 << 24;
const SUPERBLOCK_BYTES: u64 = 96;
/// A block device's size is a whole number of sectors: the file is padded to pages.
const PAD_BYTES: u64 = 4096;
const NO_TABLE: u64 = u64::MAX;
const COMPRESSION_ZSTD: u16 = 6;
const FLAG_NO_XATTRS: u16 = 0x0200;

/// Why no file system came out.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0}")]
    Output(#[source] io::Error),
    #[error("{0}")]
    Input(#[source] io::Error),
    /// The format's own bound, by name.
    #[error("{0}")]
    Limit(&'static str),
}

/// Where a file's content went.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    start: u64,
    size: u64,
    /// As in the format: packed size of each block, 0 for one of zeros.
    blocks: Box<[u32]>,
    fragment: Option<(u32, u32)>,
}

/// A SquashFS in the making.
pub struct Writer<W> {
    out: W,
    position: u64,
    packer: Packer,
    block: Vec<u8>,
    fragment: Vec<u8>,
    /// Start and size field of each fragment block.
    fragments: Vec<(u64, u32)>,
    stored: BTreeMap<NodeId, Stored>,
}

impl<W> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<W: Write + Seek> Writer<W> {
    pub fn new(mut out: W) -> Result<Self, WriteError> {
        out.write_all(&[0; SUPERBLOCK_BYTES as usize]).map_err(WriteError::Output)?;
        Ok(Writer {
            out,
            position: SUPERBLOCK_BYTES,
            packer: Packer::new().map_err(WriteError::Output)?,
            block: Vec::with_capacity(BLOCK_BYTES),
            fragment: Vec::with_capacity(BLOCK_BYTES),
            fragments: Vec::new(),
            stored: BTreeMap::new(),
        })
    }

    /// Stores the content of a file: `size` bytes of `content`, which must have them.
    pub fn file(&mut self, node: NodeId, size: u64, content: &mut dyn Read) -> Result<(), WriteError> {
        let mut stored = Stored { start: self.position, size, ..Stored::default() };
        let mut blocks = Vec::new();
        let mut left = size;
        while left > 0 {
            let want = left.min(BLOCK_BYTES as u64);
            self.block.clear();
            content.take(want).read_to_end(&mut self.block).map_err(WriteError::Input)?;
            if self.block.len() as u64 != want {
                return Err(WriteError::Input(io::ErrorKind::UnexpectedEof.into()));
            }
            left -= want;
            if size < BLOCK_BYTES as u64 {
                stored.fragment = Some(self.append_fragment()?);
            } else {
                let block = std::mem::take(&mut self.block);
                blocks.push(self.data_block(&block)?);
                self.block = block;
            }
        }
        stored.blocks = blocks.into();
        self.stored.insert(node, stored);
        Ok(())
    }

    /// Writes the tables. Contents of every file of the tree must have been stored.
    pub fn finish(mut self, tree: &Tree) -> Result<W, WriteError> {
        self.flush_fragment()?;
        let tables = inodes::encode(tree, &self.stored, &mut self.packer)?;
        let inode_table = self.position;
        self.write(&tables.inodes.bytes)?;
        let directory_table = self.position;
        self.write(&tables.directories.bytes)?;
        let fragment_table = match self.fragments.len() {
            0 => NO_TABLE,
            _ => {
                let entries = std::mem::take(&mut self.fragments);
                let rows = entries.iter().flat_map(|(start, size)| {
                    let mut row = start.to_le_bytes().to_vec();
                    row.extend(size.to_le_bytes());
                    row.extend(0u32.to_le_bytes());
                    row
                });
                let table = self.packer.table(rows)?;
                let at = self.indexed_table(&table)?;
                self.fragments = entries;
                at
            }
        };
        let ids = self.packer.table(tables.ids.iter().flat_map(|id| id.to_le_bytes()))?;
        let id_table = self.indexed_table(&ids)?;
        let bytes_used = self.position;
        let padding = self.position.next_multiple_of(PAD_BYTES) - self.position;
        self.write(&vec![0; usize::try_from(padding).unwrap_or(0)])?;

        let mut superblock = Vec::with_capacity(96);
        superblock.extend(b"hsqs");
        superblock.extend(tables.inode_count.to_le_bytes());
        superblock.extend(0u32.to_le_bytes()); // time of writing
        superblock.extend((BLOCK_BYTES as u32).to_le_bytes());
        superblock.extend(count(self.fragments.len())?.to_le_bytes());
        superblock.extend(COMPRESSION_ZSTD.to_le_bytes());
        superblock.extend(BLOCK_LOG.to_le_bytes());
        superblock.extend(FLAG_NO_XATTRS.to_le_bytes());
        let ids = u16::try_from(tables.ids.len()).map_err(|_| WriteError::Limit(inodes::TOO_MANY_IDS))?;
        superblock.extend(ids.to_le_bytes());
        superblock.extend(4u16.to_le_bytes());
        superblock.extend(0u16.to_le_bytes());
        for word in [
            tables.root,
            bytes_used,
            id_table,
            NO_TABLE, // extended attributes
            inode_table,
            directory_table,
            fragment_table,
            NO_TABLE, // export
        ] {
            superblock.extend(word.to_le_bytes());
        }
        self.out.seek(SeekFrom::Start(0)).map_err(WriteError::Output)?;
        self.write(&superblock)?;
        self.out.flush().map_err(WriteError::Output)?;
        Ok(self.out)
    }

    /// Writes one block of content and returns its size field.
    fn data_block(&mut self, block: &[u8]) -> Result<u32, WriteError> {
        if block.iter().all(|b| *b == 0) {
            return Ok(0);
        }
        let packed = self.packer.pack(block).map_err(WriteError::Output)?;
        let (bytes, flag) = match &packed {
            Some(packed) => (packed.as_slice(), 0),
            None => (block, STORED),
        };
        self.out.write_all(bytes).map_err(WriteError::Output)?;
        self.position += bytes.len() as u64;
        Ok(count(bytes.len())? | flag)
    }

    /// Moves a small file's content into the present fragment; returns the fragment's index and the offset in it.
    fn append_fragment(&mut self) -> Result<(u32, u32), WriteError> {
        if self.fragment.len() + self.block.len() > BLOCK_BYTES {
            self.flush_fragment()?;
        }
        let place = (count(self.fragments.len())?, count(self.fragment.len())?);
        self.fragment.extend_from_slice(&self.block);
        Ok(place)
    }

    fn flush_fragment(&mut self) -> Result<(), WriteError> {
        if self.fragment.is_empty() {
            return Ok(());
        }
        let start = self.position;
        let fragment = std::mem::take(&mut self.fragment);
        // A fragment of size 0 would mean none: one of zeros is packed like any other.
        let packed = self.packer.pack(&fragment).map_err(WriteError::Output)?;
        let (bytes, flag) = match &packed {
            Some(packed) => (packed.as_slice(), 0),
            None => (fragment.as_slice(), STORED),
        };
        self.write(bytes)?;
        self.fragments.push((start, count(bytes.len())? | flag));
        self.fragment = fragment;
        self.fragment.clear();
        Ok(())
    }

    /// Writes a table's blocks and after them their places; the place of that list stands in the superblock.
    fn indexed_table(&mut self, table: &Table) -> Result<u64, WriteError> {
        let start = self.position;
        self.write(&table.bytes)?;
        let at = self.position;
        for offset in &table.block_starts {
            self.write(&(start + offset).to_le_bytes())?;
        }
        Ok(at)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.out.write_all(bytes).map_err(WriteError::Output)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

fn count(length: usize) -> Result<u32, WriteError> {
    u32::try_from(length).map_err(|_| WriteError::Limit("a table is larger than SquashFS can hold"))
}
