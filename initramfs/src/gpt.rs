//! Finds NullBox's root partition in a GUID partition table (UEFI 2.10, 5.3), at byte 512 of the medium.
//!
//! The kernel does not look for partitions on optical drives, so this does, the same way on every medium. The table is
//! an untrusted claim of where the image lies: dm-verity judges what is there. Must never do: trust a length.

use thiserror::Error;

/// Where the header lies; images are laid out for 512-byte sectors.
pub const HEADER_OFFSET: u64 = 512;
pub const HEADER_BYTES: usize = 92;
const SECTOR_BYTES: u64 = 512;
const ENTRY_BYTES: u32 = 128;
/// What every known tool writes at most; a larger table is refused unread.
const ENTRIES_MAX: u32 = 256;

/// Partition type of the NullBox root image, fab3b0bf-9d4b-4b05-8d3c-0a1e6f6e7862, as it lies on disk.
pub const ROOT_TYPE: [u8; 16] =
    [0xbf, 0xb0, 0xb3, 0xfa, 0x4b, 0x9d, 0x05, 0x4b, 0x8d, 0x3c, 0x0a, 0x1e, 0x6f, 0x6e, 0x78, 0x62];

#[derive(Debug, Error, PartialEq, Eq)]
pub enum GptError {
    #[error("no partition table")]
    Missing,
    #[error("the partition table's {0} does not match its checksum")]
    Checksum(&'static str),
    #[error("the partition table's {0} is out of bounds")]
    Bounds(&'static str),
}

/// Where the entries lie, checked against the header's own checksum.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    pub entries_offset: u64,
    pub entries_bytes: usize,
    entries_crc: u32,
}

/// A byte range of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset_bytes: u64,
    pub length_bytes: u64,
}

pub fn parse_header(sector: &[u8]) -> Result<Header, GptError> {
    let header = sector.get(..HEADER_BYTES).ok_or(GptError::Missing)?;
    if !header.starts_with(b"EFI PART") {
        return Err(GptError::Missing);
    }
    let mut unsigned = header.to_vec();
    if let Some(crc) = unsigned.get_mut(16..20) {
        crc.fill(0);
    }
    if u32_at(header, 12)? != HEADER_BYTES as u32 || u32_at(header, 16)? != crc32(&unsigned) {
        return Err(GptError::Checksum("header"));
    }
    let (count, size) = (u32_at(header, 80)?, u32_at(header, 84)?);
    if size != ENTRY_BYTES || count == 0 || count > ENTRIES_MAX {
        return Err(GptError::Bounds("entry count"));
    }
    let entries_offset =
        u64_at(header, 72)?.checked_mul(SECTOR_BYTES).ok_or(GptError::Bounds("entry position"))?;
    Ok(Header { entries_offset, entries_bytes: (count * size) as usize, entries_crc: u32_at(header, 88)? })
}

/// The root partition's extent, none when the medium has no such partition.
pub fn find_root(header: &Header, entries: &[u8]) -> Result<Option<Extent>, GptError> {
    if entries.len() != header.entries_bytes || crc32(entries) != header.entries_crc {
        return Err(GptError::Checksum("entries"));
    }
    let Some(entry) = entries.chunks_exact(ENTRY_BYTES as usize).find(|entry| entry.starts_with(&ROOT_TYPE))
    else {
        return Ok(None);
    };
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    let sectors = last.checked_sub(first).and_then(|count| count.checked_add(1));
    let extent = sectors.zip(first.checked_mul(SECTOR_BYTES)).and_then(|(sectors, offset_bytes)| {
        let length_bytes = sectors.checked_mul(SECTOR_BYTES)?;
        offset_bytes.checked_add(length_bytes)?;
        Some(Extent { offset_bytes, length_bytes })
    });
    extent.map(Some).ok_or(GptError::Bounds("root partition"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, GptError> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map(u32::from_le_bytes).ok_or(GptError::Bounds("field"))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, GptError> {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    field.map(u64::from_le_bytes).ok_or(GptError::Bounds("field"))
}

/// CRC-32 as in IEEE 802.3, bit by bit: at most 32 KiB once per medium.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(first: u64, last: u64, kind: [u8; 16]) -> (Vec<u8>, Vec<u8>) {
        let mut entries = vec![0u8; 128 * 128];
        entries[128..144].copy_from_slice(&kind);
        entries[160..168].copy_from_slice(&first.to_le_bytes());
        entries[168..176].copy_from_slice(&last.to_le_bytes());
        let mut header = vec![0u8; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[72..80].copy_from_slice(&2u64.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        sign(&mut header);
        (header, entries)
    }

    fn sign(header: &mut [u8]) {
        header[16..20].fill(0);
        let crc = crc32(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn crc_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn root_partition_is_found_by_type() {
        let (header, entries) = table(2048, 4095, ROOT_TYPE);
        let header = parse_header(&header).unwrap();
        assert_eq!(header.entries_offset, 1024);
        let extent = find_root(&header, &entries).unwrap().unwrap();
        assert_eq!(extent, Extent { offset_bytes: 2048 * 512, length_bytes: 2048 * 512 });
    }

    #[test]
    fn other_partition_types_are_passed_over() {
        let (header, entries) = table(2048, 4095, [7; 16]);
        assert_eq!(find_root(&parse_header(&header).unwrap(), &entries), Ok(None));
    }

    #[test]
    fn a_sector_without_signature_is_no_table() {
        assert_eq!(parse_header(&[0; 512]), Err(GptError::Missing));
        assert_eq!(parse_header(b"EFI PART"), Err(GptError::Missing));
    }

    #[test]
    fn any_changed_header_byte_is_refused() {
        let (header, _) = table(2048, 4095, ROOT_TYPE);
        for at in 0..HEADER_BYTES {
            let mut bad = header.clone();
            bad[at] ^= 0x10;
            assert!(parse_header(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn changed_entries_are_refused() {
        let (header, mut entries) = table(2048, 4095, ROOT_TYPE);
        entries[165] ^= 1;
        let header = parse_header(&header).unwrap();
        assert_eq!(find_root(&header, &entries), Err(GptError::Checksum("entries")));
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        for (first, last) in
            [(10, 9 - 1), (0, u64::MAX), (u64::MAX / 512, u64::MAX / 512 + 8), (u64::MAX, u64::MAX)]
        {
            let (header, entries) = table(first, last, ROOT_TYPE);
            let found = find_root(&parse_header(&header).unwrap(), &entries);
            assert_eq!(found, Err(GptError::Bounds("root partition")), "{first}..={last}");
        }
    }

    #[test]
    fn too_many_entries_are_refused_unread() {
        let (mut header, _) = table(2048, 4095, ROOT_TYPE);
        header[80..84].copy_from_slice(&100_000u32.to_le_bytes());
        sign(&mut header);
        assert_eq!(parse_header(&header), Err(GptError::Bounds("entry count")));
    }
}
