//! Metadata blocks: runs of 8 KiB, each packed by itself, addressed by (start of the packed block, offset when unpacked).

use std::io;
use zstd::bulk::Compressor;

use super::WriteError;

/// Unpacked bytes of a metadata block.
const METADATA_BYTES: usize = 8192;
/// In a metadata block's header: it is stored as it is.
const STORED: u16 = 1 << 15;
/// The fastest of zstd's levels that still packs well: measured in docs/decisions/0004.
const LEVEL: i32 = 1;

/// The compressor with its memory, used again for every block.
pub struct Packer(Compressor<'static>);

impl Packer {
    pub fn new() -> io::Result<Self> {
        Ok(Packer(Compressor::new(LEVEL)?))
    }

    /// None: packing does not make it smaller.
    pub fn pack(&mut self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let packed = self.0.compress(bytes)?;
        Ok((packed.len() < bytes.len()).then_some(packed))
    }

    /// A whole table at once.
    pub fn table(&mut self, bytes: impl IntoIterator<Item = u8>) -> Result<Table, WriteError> {
        let mut table = Table::default();
        let bytes: Vec<u8> = bytes.into_iter().collect();
        table.push(&bytes, self)?;
        table.flush(self)?;
        Ok(table)
    }
}

/// A run of metadata blocks.
#[derive(Debug, Default)]
pub struct Table {
    /// Packed blocks with their headers.
    pub bytes: Vec<u8>,
    /// Where each block begins in `bytes`.
    pub block_starts: Vec<u64>,
    pending: Vec<u8>,
}

impl Table {
    /// Address of the next byte: the block's start in the table, and the offset in the unpacked block.
    pub fn address(&self) -> Result<(u32, u16), WriteError> {
        let start = super::count(self.bytes.len())?;
        Ok((start, u16::try_from(self.pending.len()).unwrap_or(0)))
    }

    pub fn push(&mut self, mut bytes: &[u8], packer: &mut Packer) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = METADATA_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            // Full blocks leave at once, so that an address never stands at a block's end.
            if self.pending.len() == METADATA_BYTES {
                self.flush(packer)?;
            }
        }
        Ok(())
    }

    pub fn flush(&mut self, packer: &mut Packer) -> Result<(), WriteError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.block_starts.push(self.bytes.len() as u64);
        let packed = packer.pack(&self.pending).map_err(WriteError::Output)?;
        let (bytes, flag) = match &packed {
            Some(packed) => (packed.as_slice(), 0),
            None => (self.pending.as_slice(), STORED),
        };
        let header = u16::try_from(bytes.len()).unwrap_or(0) | flag;
        self.bytes.extend(header.to_le_bytes());
        self.bytes.extend_from_slice(bytes);
        self.pending.clear();
        Ok(())
    }
}
