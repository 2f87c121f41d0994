//! What nulld has to know again after a crash, in a memory file that lives as long as one of its descriptors.
//!
//! Two slots are written in turn, each with a sequence number and a checksum, so that a crash in the middle of a write leaves
//! the state before it. Whoever owns a descriptor that must live on names it with [`Kept::keep`] each time the state is
//! written, and has it back from [`Taken::take`] in the nulld that begins again.
//!
//! Must hold: what is read here is a claim. Whoever takes it checks it against the kernel before he relies on it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use abi::control::Phase;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::system::Facts;
use crate::table::State;

/// One slot. A state that is larger is not written; the one before it holds.
const SLOT_BYTES: usize = 512 * 1024;
const MAGIC: u64 = u64::from_le_bytes(*b"NBSTATE1");
/// Magic, sequence, length and checksum of a slot, each a little-endian u64.
const HEAD_BYTES: usize = 32;

/// Descriptors that live on, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept(BTreeMap<String, RawFd>);

impl Kept {
    /// Names a descriptor. Its owner goes on owning it.
    pub fn keep(&mut self, name: &str, fd: impl AsFd) {
        self.0.insert(name.to_owned(), fd.as_fd().as_raw_fd());
    }
}

/// The descriptors that came over a crash. What nobody takes is closed with this.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<String, OwnedFd>);

impl Taken {
    /// The descriptor of a name, once. It is what it is said to be only after a check.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// All whose names begin so, without that beginning.
    pub fn take_all(&mut self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let names: Vec<String> = self.0.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        let one = |name: &String| {
            let rest = name.strip_prefix(prefix)?.to_owned();
            Some((rest, self.0.remove(name)?))
        };
        names.iter().filter_map(one).collect()
    }
}

/// A service as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedUnit {
    pub name: String,
    pub state: State,
    pub pid: Option<u32>,
    pub spawned: u64,
    pub backoff_ms: u64,
    pub deadline: Option<u64>,
    pub ready_ms: Option<u64>,
    pub detail: String,
    pub says: String,
    /// Its notice pipe was open.
    pub notices: bool,
}

/// An order to go down that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedOrder {
    /// As [`crate::power::Action::name`] names it.
    pub action: String,
    pub by: String,
    pub since_ms: u64,
}

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The phases before `services` have ended: there is a configuration and everything is mounted.
    pub booted: bool,
    pub facts: Facts,
    pub phases: Vec<Phase>,
    pub units: Vec<SavedUnit>,
    pub going_down: Option<SavedOrder>,
    pub kept: Kept,
}

/// The memory file.
#[derive(Debug)]
pub struct StateFile {
    fd: OwnedFd,
    seq: u64,
    last: Vec<u8>,
}

impl StateFile {
    /// An empty one.
    pub fn create() -> io::Result<StateFile> {
        let fd = rustix::fs::memfd_create("nulld-state", MemfdFlags::CLOEXEC)?;
        Ok(StateFile { fd, seq: 0, last: Vec::new() })
    }

    /// The number of its descriptor, for the nulld that begins again.
    pub fn number(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Writes the state, if it is another than the last one.
    pub fn write(&mut self, saved: &Saved) -> io::Result<()> {
        let body = serde_json::to_vec(saved)?;
        if body == self.last {
            return Ok(());
        }
        if body.len() + HEAD_BYTES > SLOT_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the state does not fit its slot"));
        }
        let seq = self.seq + 1;
        let length = body.len() as u64;
        let mut slot = Vec::with_capacity(HEAD_BYTES + body.len());
        for word in [MAGIC, seq, length, checksum(seq, &body)] {
            slot.extend(word.to_le_bytes());
        }
        slot.extend(&body);
        let offset = (seq % 2) * SLOT_BYTES as u64;
        match rustix::io::pwrite(&self.fd, &slot, offset)? {
            written if written == slot.len() => {}
            _ => return Err(io::Error::new(io::ErrorKind::WriteZero, "the state was cut")),
        }
        (self.seq, self.last) = (seq, body);
        Ok(())
    }

    /// Reads what a nulld that crashed had written into `fd`.
    pub fn read(fd: OwnedFd) -> io::Result<(StateFile, Saved)> {
        let slots = [0, SLOT_BYTES as u64].map(|offset| read_slot(&fd, offset));
        let newest = slots.into_iter().flatten().max_by_key(|(seq, _)| *seq);
        let (seq, body) = newest.ok_or_else(|| io::Error::other("neither slot holds a whole state"))?;
        let saved = serde_json::from_slice(&body)?;
        Ok((StateFile { fd, seq, last: body }, saved))
    }
}

/// Takes all descriptors that a state names, and closes every other one above standard error.
///
/// Only at the start of a nulld that begins again, before it opens anything.
pub fn take_over(kept: &Kept, state: &StateFile) -> Taken {
    let mut numbers = vec![state.number()];
    let mut taken = Taken::default();
    for (name, number) in &kept.0 {
        // A number that is claimed twice would have two owners.
        if *number > 2
            && !numbers.contains(number)
            && let Some(fd) = sys::take_inherited(*number)
        {
            numbers.push(*number);
            taken.0.insert(name.clone(), fd);
        }
    }
    numbers.sort_unstable();
    sys::close_all_but(&numbers);
    taken
}

fn read_slot(fd: &OwnedFd, offset: u64) -> Option<(u64, Vec<u8>)> {
    let head = read_exactly(fd, offset, HEAD_BYTES)?;
    let mut words = head.chunks_exact(8).map(|chunk| chunk.try_into().map(u64::from_le_bytes));
    let mut next = || words.next()?.ok();
    let (magic, seq, length, sum) = (next()?, next()?, next()?, next()?);
    let length = usize::try_from(length).ok().filter(|length| *length <= SLOT_BYTES - HEAD_BYTES)?;
    if magic != MAGIC {
        return None;
    }
    let body = read_exactly(fd, offset + HEAD_BYTES as u64, length)?;
    (checksum(seq, &body) == sum).then_some((seq, body))
}

fn read_exactly(fd: &OwnedFd, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0u8; length];
    let count = rustix::io::pread(fd, &mut bytes[..], offset).ok()?;
    (count == length).then_some(bytes)
}

/// FNV-1a: it finds a torn write, and guards against nothing else.
fn checksum(seq: u64, body: &[u8]) -> u64 {
    let words = seq.to_le_bytes();
    words.iter().chain(body).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(units: usize, detail: &str) -> Saved {
        let unit = |n: usize| SavedUnit {
            name: format!("s{n}"),
            state: State::Ready,
            pid: Some(n as u32 + 2),
            spawned: 1,
            backoff_ms: 1000,
            deadline: None,
            ready_ms: Some(5),
            detail: detail.into(),
            says: String::new(),
            notices: true,
        };
        Saved { booted: true, units: (0..units).map(unit).collect(), ..Saved::default() }
    }

    fn reread(file: &StateFile) -> io::Result<Saved> {
        StateFile::read(file.fd.try_clone().unwrap()).map(|(_, saved)| saved)
    }

    #[test]
    fn the_newest_whole_state_is_read() {
        let mut file = StateFile::create().unwrap();
        assert!(reread(&file).is_err());
        for n in 1..6 {
            file.write(&saved(n, "")).unwrap();
            assert_eq!(reread(&file).unwrap().units.len(), n);
        }
        let seq = file.seq;
        file.write(&saved(5, "")).unwrap();
        assert_eq!(file.seq, seq, "the same state is not written again");
    }

    #[test]
    fn a_torn_write_anywhere_leaves_the_state_before_it() {
        let mut file = StateFile::create().unwrap();
        file.write(&saved(3, "")).unwrap();
        file.write(&saved(4, "")).unwrap();
        let offset = (file.seq % 2) * SLOT_BYTES as u64;
        let length = HEAD_BYTES + file.last.len();
        for at in 0..length as u64 {
            let mut byte = [0u8];
            rustix::io::pread(&file.fd, &mut byte, offset + at).unwrap();
            rustix::io::pwrite(&file.fd, &[byte[0] ^ 0x10], offset + at).unwrap();
            assert_eq!(reread(&file).unwrap().units.len(), 3, "byte {at}");
            rustix::io::pwrite(&file.fd, &byte, offset + at).unwrap();
        }
        assert_eq!(reread(&file).unwrap().units.len(), 4);
    }

    #[test]
    fn whatever_the_slots_hold_is_read_without_harm() {
        let mut file = StateFile::create().unwrap();
        file.write(&saved(1, "")).unwrap();
        file.write(&saved(2, "")).unwrap();
        for fill in [0x00, 0x7f, 0xff] {
            for at in [8, 16, 24, 32] {
                rustix::io::pwrite(&file.fd, &[fill; 8], at).unwrap();
                rustix::io::pwrite(&file.fd, &[fill; 8], SLOT_BYTES as u64 + at).unwrap();
                assert!(reread(&file).is_err(), "{fill} at {at}");
            }
        }
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_and_the_last_one_holds() {
        let mut file = StateFile::create().unwrap();
        file.write(&saved(2, "")).unwrap();
        assert!(file.write(&saved(10, &"x".repeat(SLOT_BYTES / 8))).is_err());
        assert_eq!(reread(&file).unwrap().units.len(), 2);
    }

    #[test]
    fn descriptors_are_taken_once_and_by_their_beginning() {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap().0;
        let mut taken = Taken::default();
        for name in ["log.a", "log.b", "watchdog"] {
            taken.0.insert(name.into(), pipe());
        }
        let logs: Vec<String> = taken.take_all("log.").into_iter().map(|(name, _)| name).collect();
        assert_eq!(logs, ["a", "b"]);
        assert!(taken.take("watchdog").is_some() && taken.take("watchdog").is_none());
    }
}
