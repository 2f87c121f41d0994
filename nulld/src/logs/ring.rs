//! One ring: the newest lines of one writer, in a memfd (memfd_create(2)) that outlives a crash of nulld.
//!
//! The file grows at its end and is given back to the kernel at its beginning (fallocate(2), PUNCH_HOLE). Nothing is ever
//! written over, so a reader that walks from the first record cannot come upon remains of older ones. Layout, little endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `NBRING01` |
//! | 8 | 8 | where a record starts at or before the oldest one kept |
//! | 4096 | | records, one after the other: length of the text (4), FNV-1a of all else (4), sequence number (8), Unix ms (8), mark (8), text |
//!
//! Must hold: at most SERVICE_LOG_LINES_MAX lines and SERVICE_LOG_BYTES_MAX bytes, records whole; a record that a crash cut
//! is dropped. Must never: interpret what was written.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use abi::limits;
use rustix::fs::{FallocateFlags, FileType, MemfdFlags};

const MAGIC: &[u8; 8] = b"NBRING01";
/// Where the first record stands.
const DATA: u64 = 4096;
/// Bytes of a record before its text. Part of the bound, so that empty lines are bounded too.
pub const RECORD_HEAD: usize = 32;
const RECORD_MAX: usize = RECORD_HEAD + limits::LOG_LINE_BYTES_MAX;
/// Forgotten bytes that are given back at a time.
const GIVE_BACK: u64 = 64 * 1024;

/// What nulld keeps in memory of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub seq: u64,
    pub unix_ms: u64,
    at: u64,
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    file: OwnedFd,
    places: VecDeque<Place>,
    end: u64,
    /// Bytes before it are given back.
    given_back: u64,
    forgotten: u64,
    mark: u64,
}

impl Ring {
    /// An empty ring.
    pub fn new(name: &str) -> io::Result<Ring> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
        let file = match rustix::fs::memfd_create(name, flags) {
            // Before Linux 6.3 there is no such flag.
            Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?,
            other => other?,
        };
        write_all(&file, MAGIC, 0)?;
        write_all(&file, &DATA.to_le_bytes(), 8)?;
        rustix::fs::ftruncate(&file, DATA)?;
        let places = VecDeque::new();
        Ok(Ring { file, places, end: DATA, given_back: DATA, forgotten: 0, mark: 0 })
    }

    /// The ring in a file that an earlier nulld wrote. The error says why it is none.
    pub fn restore(file: OwnedFd) -> io::Result<Ring> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(wrong("it is not a file"));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut head = [0u8; 16];
        if read_at(&file, &mut head, 0)? != head.len() || !head.starts_with(MAGIC) {
            return Err(wrong("it does not begin as a ring does"));
        }
        let first = number(&head, 8);
        if first < DATA || first > size {
            return Err(wrong("its first record lies outside of it"));
        }
        let given_back = first.max(DATA) / DATA * DATA;
        if given_back > DATA {
            punch(&file, DATA, given_back)?; // a crash may have come before it was done
        }
        let mut ring = Ring { file, places: VecDeque::new(), end: first, given_back, forgotten: 0, mark: 0 };
        let mut buffer = [0u8; RECORD_MAX];
        while ring.end < size {
            let count = read_at(&ring.file, &mut buffer, ring.end)?;
            let last = ring.places.back().map(|place| place.seq);
            match Record::parse(buffer.get(..count).unwrap_or_default()) {
                Some(record) if last.is_none_or(|last| record.seq > last) => {
                    let place = Place { seq: record.seq, unix_ms: record.unix_ms, at: ring.end };
                    ring.remember(place, record.mark, RECORD_HEAD + record.text.len());
                }
                // Only the last record can be cut: each is written in one go, after the one before it.
                _ if size - ring.end <= RECORD_MAX as u64 => {
                    rustix::fs::ftruncate(&ring.file, ring.end)?;
                    break;
                }
                _ => return Err(wrong("a record within it is damaged")),
            }
        }
        Ok(ring)
    }

    /// Adds a line of at most LOG_LINE_BYTES_MAX bytes. An error (no memory) leaves the ring as it was.
    pub fn push(&mut self, seq: u64, unix_ms: u64, mark: u64, text: &str) -> io::Result<()> {
        let record = Record { seq, unix_ms, mark, text: text.as_bytes() }.encode();
        if let Err(error) = write_all(&self.file, &record, self.end) {
            rustix::fs::ftruncate(&self.file, self.end)?;
            return Err(error);
        }
        self.remember(Place { seq, unix_ms, at: self.end }, mark, record.len());
        self.give_back()
    }

    fn remember(&mut self, place: Place, mark: u64, bytes: usize) {
        self.places.push_back(place);
        self.mark = self.mark.max(mark);
        self.end += bytes as u64;
        while self.places.len() > limits::SERVICE_LOG_LINES_MAX
            || self.bytes() > limits::SERVICE_LOG_BYTES_MAX as u64
        {
            self.places.pop_front();
            self.forgotten += 1;
        }
    }

    /// First the note of where records begin, then the hole: a crash between the two loses nothing.
    fn give_back(&mut self) -> io::Result<()> {
        let first = self.places.front().map_or(self.end, |place| place.at);
        if first - self.given_back < GIVE_BACK {
            return Ok(());
        }
        write_all(&self.file, &first.to_le_bytes(), 8)?;
        let upto = first / DATA * DATA;
        punch(&self.file, self.given_back, upto)?;
        self.given_back = upto;
        Ok(())
    }

    /// The lines kept, oldest first.
    pub fn places(&self) -> &VecDeque<Place> {
        &self.places
    }

    /// Index of the first kept line from a sequence number on, and the line's place.
    pub fn first_from(&self, seq: u64) -> Option<(usize, Place)> {
        let index = self.places.partition_point(|place| place.seq < seq);
        self.places.get(index).map(|place| (index, *place))
    }

    /// The text of a line. Bytes that are not UTF-8 are replaced.
    pub fn text(&self, place: &Place) -> io::Result<String> {
        let mut buffer = [0u8; RECORD_MAX];
        let count = read_at(&self.file, &mut buffer, place.at)?;
        match Record::parse(buffer.get(..count).unwrap_or_default()) {
            Some(record) if record.seq == place.seq => Ok(String::from_utf8_lossy(record.text).into_owned()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a record changed under nulld")),
        }
    }

    /// Lines that were here and are no longer.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The highest mark of a line.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// Bytes of the lines kept, their heads included.
    pub fn bytes(&self) -> u64 {
        self.places.front().map_or(0, |first| self.end - first.at)
    }

    /// The file, to be kept over a crash.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// More lines than a file can have held: what a ring that cannot be read may have counted to.
pub fn lines_at_most(file: &OwnedFd) -> u64 {
    let size = rustix::fs::fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    size / RECORD_HEAD as u64
}

/// One line as it stands in the file.
struct Record<'a> {
    seq: u64,
    unix_ms: u64,
    mark: u64,
    text: &'a [u8],
}

impl<'a> Record<'a> {
    fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.text.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut rest = Vec::with_capacity(RECORD_MAX);
        for value in [self.seq, self.unix_ms, self.mark] {
            rest.extend(value.to_le_bytes());
        }
        rest.extend(self.text);
        let check = fnv1a(&[&length, &rest]).to_le_bytes();
        let mut bytes = Vec::with_capacity(RECORD_HEAD + self.text.len());
        bytes.extend(length);
        bytes.extend(check);
        bytes.extend(rest);
        bytes
    }

    /// None: the bytes do not begin with a whole record.
    fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (check, rest) = rest.split_first_chunk::<4>()?;
        let text_bytes = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        if text_bytes > limits::LOG_LINE_BYTES_MAX {
            return None;
        }
        let rest = rest.get(..RECORD_HEAD - 8 + text_bytes)?;
        if fnv1a(&[length, rest]) != u32::from_le_bytes(*check) {
            return None;
        }
        let text = rest.get(24..)?;
        Some(Record { seq: number(rest, 0), unix_ms: number(rest, 8), mark: number(rest, 16), text })
    }
}

/// FNV-1a, 32 bits: finds a cut or damaged record. Nobody but nulld writes the file.
fn fnv1a(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    found.map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Gives the pages between two offsets back to the kernel.
fn punch(file: &OwnedFd, from: u64, to: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, from, to.saturating_sub(from))?)
}

fn write_all(file: &OwnedFd, bytes: &[u8], at: u64) -> io::Result<()> {
    let (mut rest, mut at) = (bytes, at);
    while !rest.is_empty() {
        match rustix::io::pwrite(file, rest, at) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(count) => {
                rest = rest.get(count..).unwrap_or_default();
                at += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Fills as much of the buffer as the file has.
fn read_at(file: &OwnedFd, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(space) = buffer.get_mut(filled..).filter(|space| !space.is_empty()) {
        match rustix::io::pread(file, space, at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: enough to make traces.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
        }
    }

    fn lines(ring: &Ring) -> Vec<(u64, u64, String)> {
        ring.places().iter().map(|p| (p.seq, p.unix_ms, ring.text(p).unwrap())).collect()
    }

    fn crashed(ring: Ring) -> OwnedFd {
        ring.file.try_clone().unwrap()
    }

    /// What a ring should hold, kept in the plainest way.
    #[derive(Default)]
    struct Model(Vec<(u64, u64, String)>);

    impl Model {
        fn push(&mut self, seq: u64, unix_ms: u64, text: &str) {
            self.0.push((seq, unix_ms, text.to_owned()));
            let cost = |lines: &[(u64, u64, String)]| -> usize {
                lines.iter().map(|line| RECORD_HEAD + line.2.len()).sum()
            };
            while self.0.len() > limits::SERVICE_LOG_LINES_MAX
                || cost(&self.0) > limits::SERVICE_LOG_BYTES_MAX
            {
                self.0.remove(0);
            }
        }
    }

    #[test]
    fn random_traces_with_crashes_agree_with_a_model() {
        let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
        println!("seed {seed}");
        let mut random = Random(seed);
        for _ in 0..6 {
            let (mut ring, mut model) = (Ring::new("test").unwrap(), Model::default());
            let (mut seq, mut cut) = (random.below(1 << 40), 0);
            let long = random.below(2) == 0;
            for _ in 0..3000 {
                let bytes = random.below(if long { limits::LOG_LINE_BYTES_MAX as u64 + 1 } else { 60 });
                let text: String = (0..bytes).map(|n| char::from(b'a' + ((n + seq) % 26) as u8)).collect();
                seq += 1 + random.below(3);
                let unix_ms = random.below(1 << 42);
                ring.push(seq, unix_ms, seq * 2, &text).unwrap();
                model.push(seq, unix_ms, &text);
                match random.below(400) {
                    0 => ring = Ring::restore(crashed(ring)).unwrap(),
                    1 => {
                        // A crash within the last write: some of its bytes never came.
                        let last = RECORD_HEAD as u64 + text.len() as u64;
                        let end = ring.end - 1 - random.below(last);
                        let file = crashed(ring);
                        rustix::fs::ftruncate(&file, end).unwrap();
                        ring = Ring::restore(file).unwrap();
                        model.0.pop();
                        cut += 1;
                    }
                    _ => {}
                }
                if random.below(200) == 0 {
                    // What a crash brings back may be older than what was kept, never less.
                    let (have, want) = (lines(&ring), &model.0);
                    assert!(have.ends_with(want), "seed {seed}, after {cut} cuts");
                    assert!(have.len() <= limits::SERVICE_LOG_LINES_MAX && have.len() >= want.len());
                }
            }
            assert!(lines(&ring).ends_with(&model.0), "seed {seed}");
            assert!(ring.bytes() <= limits::SERVICE_LOG_BYTES_MAX as u64, "seed {seed}");
            assert_eq!(ring.mark(), ring.places().back().unwrap().seq * 2, "seed {seed}");
            let stat = rustix::fs::fstat(&ring.file).unwrap();
            let held = stat.st_blocks as u64 * 512;
            assert!(
                held <= limits::SERVICE_LOG_BYTES_MAX as u64 + GIVE_BACK + 4 * DATA,
                "{held}, seed {seed}"
            );
        }
    }

    #[test]
    fn any_damaged_byte_costs_the_last_line_or_the_ring_and_never_shows_a_wrong_one() {
        let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
        println!("seed {seed}");
        let mut random = Random(seed);
        for _ in 0..300 {
            let mut ring = Ring::new("test").unwrap();
            for seq in 0..40 {
                ring.push(seq, seq, 0, &"x".repeat(100)).unwrap();
            }
            let whole = lines(&ring);
            let at = DATA + random.below(ring.end - DATA);
            let file = crashed(ring);
            let mut byte = [0u8];
            read_at(&file, &mut byte, at).unwrap();
            write_all(&file, &[byte[0] ^ (1 << random.below(8))], at).unwrap();
            if let Ok(ring) = Ring::restore(file) {
                assert!(whole.starts_with(&lines(&ring)), "seed {seed}, byte {at}");
                assert!(ring.places().len() >= 30, "seed {seed}, byte {at}");
            }
        }
    }

    #[test]
    fn what_is_no_ring_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Ring::restore(null.into()).is_err());
        let empty = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
        assert!(Ring::restore(empty).is_err());
        let mut ring = Ring::new("x").unwrap();
        ring.push(1, 1, 0, "one").unwrap();
        let file = crashed(ring);
        write_all(&file, &u64::MAX.to_le_bytes(), 8).unwrap();
        assert!(Ring::restore(file).is_err());
    }

    #[test]
    fn a_ring_that_cannot_grow_stays_whole() {
        let mut ring = Ring::new("x").unwrap();
        ring.push(1, 1, 0, "one").unwrap();
        ring.file = rustix::fs::open(
            format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&ring.file)),
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        assert!(ring.push(2, 2, 0, "two").is_err());
        assert_eq!(lines(&ring), [(1, 1, "one".to_owned())]);
    }
}
