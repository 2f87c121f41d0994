//! Copies of disks: what has data is copied, what is a hole stays one. Bounded in memory, whatever the disk's size.

use abi::ids::Digest;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is read and looked at in one piece; one of only zeroes becomes a hole.
const PIECE_BYTES: usize = 128 * 1024;
static ZEROES: [u8; PIECE_BYTES] = [0; PIECE_BYTES];

/// Why a copy ended early.
#[derive(Debug)]
pub enum Broken<E> {
    Io(io::Error),
    /// The step said so.
    Step(E),
}

impl<E> From<io::Error> for Broken<E> {
    fn from(error: io::Error) -> Broken<E> {
        Broken::Io(error)
    }
}

/// Copies the first `bytes` of a file into an empty one, and says the SHA-256 of them; holes count as zeroes, so does what
/// lies behind the file's end. `step` is told after each piece how many bytes are done; its error ends the copy.
pub fn copy<E>(
    from: &File,
    to: &File,
    bytes: u64,
    step: &mut dyn FnMut(u64) -> Result<(), E>,
) -> Result<Digest, Broken<E>> {
    let mut hash = Sha256::new();
    let mut piece = vec![0u8; PIECE_BYTES];
    let mut at = 0;
    while at < bytes {
        let data = next(from, SeekFrom::Data(at))?.unwrap_or(bytes).min(bytes);
        while at < data {
            let zeroes = piece_of(&ZEROES, data - at);
            hash.update(zeroes);
            at += zeroes.len() as u64;
            step(at).map_err(Broken::Step)?;
        }
        let hole = if at < bytes { next(from, SeekFrom::Hole(at))?.unwrap_or(bytes).min(bytes) } else { at };
        while at < hole {
            let length = piece_of(&ZEROES, hole - at).len();
            let read = &mut piece[..length];
            from.read_exact_at(read, at)?;
            hash.update(&*read);
            if *read != ZEROES[..length] {
                to.write_all_at(read, at)?;
            }
            at += length as u64;
            step(at).map_err(Broken::Step)?;
        }
    }
    to.set_len(bytes)?;
    Ok(Digest(hash.finalize().into()))
}

/// As much of a piece as is wanted.
fn piece_of(piece: &[u8], wanted: u64) -> &[u8] {
    &piece[..usize::try_from(wanted).unwrap_or(usize::MAX).min(piece.len())]
}

/// Where data or a hole begins, lseek(2); none: neither comes any more.
fn next(file: &File, from: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, from) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a file takes on its disk, in bytes (`st_blocks` of stat(2) counts 512 bytes each).
pub fn used_bytes(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    /// xorshift64*: enough for places and sizes.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
        }
    }

    #[test]
    fn a_copy_of_random_extents_is_equal_sparse_and_has_the_digest_of_the_whole() {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
        println!("seed {seed}");
        let mut random = Random(seed);
        for round in 0..40 {
            let bytes = 1 + random.below(9 << 20);
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            from.set_len(bytes).unwrap();
            for _ in 0..random.below(12) {
                let at = random.below(bytes);
                let length = (1 + random.below(300_000)).min(bytes - at) as usize;
                // Some extents are of zeroes: data for the file system, a hole for the copy.
                let fill = (random.below(4) != 0) as u8 * (1 + random.below(255) as u8);
                from.write_all_at(&vec![fill; length], at).unwrap();
            }
            let mut last = 0;
            let digest = copy::<&str>(&from, &to, bytes, &mut |done| {
                assert!(done > last && done <= bytes);
                last = done;
                Ok(())
            })
            .unwrap();
            assert_eq!(last, bytes);
            let whole = |file: &File| {
                let mut all = vec![0; bytes as usize];
                file.read_exact_at(&mut all, 0).unwrap();
                all
            };
            assert!(whole(&from) == whole(&to), "round {round} of seed {seed}");
            assert_eq!(
                digest.0,
                <[u8; 32]>::from(Sha256::digest(whole(&from))),
                "round {round} of seed {seed}"
            );
            assert!(used_bytes(&to).unwrap() <= used_bytes(&from).unwrap() + PIECE_BYTES as u64 * 16);
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_zeroes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"short", 0).unwrap();
        let digest = copy::<&str>(&from, &to, 1 << 20, &mut |_| Ok(())).unwrap();
        let mut whole = vec![0u8; 1 << 20];
        whole[..5].copy_from_slice(b"short");
        assert_eq!(digest.0, <[u8; 32]>::from(Sha256::digest(&whole)));
        assert_eq!(to.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn the_first_refusal_ends_the_copy() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        let mut steps = 0;
        let outcome = copy::<&str>(&from, &to, 64 << 20, &mut |_| {
            steps += 1;
            if steps == 3 { Err("enough") } else { Ok(()) }
        });
        assert!(matches!(outcome, Err(Broken::Step("enough"))) && steps == 3);
    }
}
