//! All that is kept of one life as one stream: a gzipped tar archive (POSIX ustar), with a `SHA256SUMS` at its end.
//!
//! Must hold: bounded in memory, whatever a disk's size; the digests are of the bytes that were sent. Packed, since most of a
//! disk is holes.

use abi::control::EvidenceFile;
use abi::ids::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::Piece;

/// What is read in one piece.
const PIECE_BYTES: usize = 128 * 1024;
/// A tar archive consists of these.
const BLOCK_BYTES: usize = 512;
/// How often is told how far it is.
const TOLD_BYTES: u64 = 8 << 20;
/// The first size that eleven octal digits do not hold.
const OCTAL_END: u64 = 1 << 33;

/// Where an archive goes.
pub trait Taker: Write {
    /// So many bytes of a file are done, of so many.
    fn reached(&mut self, file: &str, done: u64, total: u64) -> io::Result<()>;
}

/// Sends all files, below a directory `top`; what was sent.
pub fn pack<T: Taker>(top: &str, unix_secs: u64, pieces: &[Piece], to: T) -> io::Result<Vec<EvidenceFile>> {
    let mut archive = GzEncoder::new(to, Compression::fast());
    let (mut sent, mut sums) = (Vec::new(), String::new());
    for piece in pieces {
        archive.write_all(&header(&format!("{top}/{}", piece.name), piece.bytes, unix_secs)?)?;
        let digest = content(piece, &mut archive)?;
        archive.write_all(padding(piece.bytes))?;
        sums.push_str(&format!("{}  {}\n", digest.hex(), piece.name));
        sent.push(EvidenceFile { name: piece.name.into(), bytes: piece.bytes, digest: Some(digest) });
    }
    let bytes = sums.len() as u64;
    archive.write_all(&header(&format!("{top}/SHA256SUMS"), bytes, unix_secs)?)?;
    archive.write_all(sums.as_bytes())?;
    archive.write_all(padding(bytes))?;
    archive.write_all(&[0; 2 * BLOCK_BYTES])?;
    archive.finish()?.flush()?;
    Ok(sent)
}

/// Sends as much of a file as its header said, or fails.
fn content<T: Taker>(piece: &Piece, archive: &mut GzEncoder<T>) -> io::Result<Digest> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0u8; PIECE_BYTES]);
    let (mut at, mut told) = (0, 0);
    archive.get_mut().reached(piece.name, 0, piece.bytes)?;
    while at < piece.bytes {
        let length = usize::try_from(piece.bytes - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let part = &mut buffer[..length];
        piece.file.read_exact_at(part, at)?;
        hash.update(&*part);
        archive.write_all(part)?;
        at += length as u64;
        if at - told >= TOLD_BYTES || at == piece.bytes {
            told = at;
            archive.get_mut().reached(piece.name, at, piece.bytes)?;
        }
    }
    Ok(Digest(hash.finalize().into()))
}

/// What fills the last block of a file.
fn padding(bytes: u64) -> &'static [u8] {
    static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let over = (bytes % BLOCK_BYTES as u64) as usize;
    if over == 0 { &[] } else { &ZEROES[over..] }
}

/// The header of a file that only its owner may read. A size that octal digits do not hold is binary, as GNU tar, star and BSD
/// have it.
fn header(name: &str, bytes: u64, unix_secs: u64) -> io::Result<[u8; BLOCK_BYTES]> {
    let mut block = [0u8; BLOCK_BYTES];
    let mut put = |at: usize, field: &[u8]| block[at..at + field.len()].copy_from_slice(field);
    if name.len() > 100 {
        return Err(io::Error::other(format!("{name}: too long a name for a tar header")));
    }
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if bytes < OCTAL_END {
        put(124, format!("{bytes:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &bytes.to_be_bytes());
    }
    put(136, format!("{:011o}\0", unix_secs.min(OCTAL_END - 1)).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[derive(Default)]
    struct Kept {
        bytes: Vec<u8>,
        told: Vec<(String, u64, u64)>,
        room: Option<usize>,
    }

    impl Write for &mut Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room.is_some_and(|room| self.bytes.len() + bytes.len() > room) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Taker for &mut Kept {
        fn reached(&mut self, file: &str, done: u64, total: u64) -> io::Result<()> {
            self.told.push((file.into(), done, total));
            Ok(())
        }
    }

    fn piece(name: &'static str, content: &[u8]) -> Piece {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Piece { name, file, bytes: content.len() as u64 }
    }

    /// What does not pack.
    fn noise() -> Vec<u8> {
        (0..700_001u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    #[test]
    fn another_reader_of_tar_finds_every_file_and_its_digest() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(40 << 20).unwrap();
        disk.write_all_at(b"in the middle", 20 << 20).unwrap();
        let pieces = [
            piece("status.json", b"{}"),
            piece("console.txt", b""),
            piece("agent.log", &noise()),
            Piece { name: "workspace.ext4", file: disk, bytes: 40 << 20 },
        ];
        let mut kept = Kept::default();
        let sent = pack("a.7", 1_000_000_000, &pieces, &mut kept).unwrap();
        assert!(kept.bytes.len() < 2 << 20, "holes cost {} bytes", kept.bytes.len());
        assert_eq!(kept.told.last().unwrap(), &("workspace.ext4".to_owned(), 40 << 20, 40 << 20));
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(kept.bytes.as_slice()));
        let mut sums = String::new();
        for (number, entry) in archive.entries().unwrap().enumerate() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let (mode, mtime) = (entry.header().mode().unwrap(), entry.header().mtime().unwrap());
            assert_eq!((mode, mtime), (0o600, 1_000_000_000));
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            match sent.get(number) {
                Some(file) => {
                    assert_eq!((path, content.len() as u64), (format!("a.7/{}", file.name), file.bytes));
                    let digest = Digest(Sha256::digest(&content).into());
                    assert_eq!(file.digest, Some(digest));
                    sums.push_str(&format!("{}  {}\n", digest.hex(), file.name));
                }
                None => assert_eq!((path.as_str(), content), ("a.7/SHA256SUMS", sums.clone().into_bytes())),
            }
        }
        assert_eq!(sums.lines().count(), 4);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error_and_no_short_archive() {
        let mut piece = piece("agent.log", b"short");
        piece.bytes = 6;
        let error = pack("a.7", 0, &[piece], &mut Kept::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_caller_who_has_gone_ends_it() {
        let mut kept = Kept { room: Some(10_000), ..Kept::default() };
        assert!(pack("a.7", 0, &[piece("agent.log", &noise())], &mut kept).is_err());
    }

    #[test]
    fn a_size_beyond_octal_is_understood() {
        for bytes in [0, 511, OCTAL_END - 1, OCTAL_END, 64 << 30] {
            let block = header("a.7/workspace.ext4", bytes, 5).unwrap();
            let header = tar::Header::from_byte_slice(&block);
            assert_eq!(header.size().unwrap(), bytes);
            let sum = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]).map(|byte| u32::from(*byte));
            assert_eq!(header.cksum().unwrap(), sum.sum::<u32>());
        }
        let longest = format!("{}.{}/workspace.ext4", "x".repeat(32), u64::MAX);
        assert!(header(&longest, 0, 0).is_ok());
    }
}
