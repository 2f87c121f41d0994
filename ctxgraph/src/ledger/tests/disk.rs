//! A disk in memory with several files that fails when told to, and forgets what was not synced: bytes and names.

use crate::ledger::storage::{Directory, Storage, segment_name};
use crate::testing::Random;
use ::ledger::frame::SegmentHeader;
use abi::ledger::Receipt;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A block of it is kept or lost as a whole.
const BLOCK: usize = 512;

#[derive(Default, Clone)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// A sync has failed: the kernel takes what is seen for written, until it is written again.
    dropped: bool,
}

#[derive(Default, Clone)]
struct State {
    files: Vec<File>,
    /// Which file a name is, as seen and as durable.
    seen: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
}

/// The disk before an operation, and what had been acknowledged by then.
pub struct Image {
    state: State,
    pub acknowledged: Vec<Receipt>,
}

#[derive(Default)]
pub struct Disk {
    state: Mutex<State>,
    pub fails: AtomicBool,
    /// One operation of so many fails; 0: none.
    fails_one_of: u64,
    random: Mutex<Option<Random>>,
    pub syncs: AtomicU64,
    sync_ms: u64,
    /// A file's bytes that cannot be read: its segment and their offsets.
    pub unreadable: Mutex<Option<(u64, std::ops::Range<u64>)>>,
    /// A segment that cannot be opened.
    pub unopenable: Mutex<Option<u64>>,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    watched: bool,
    images: Mutex<Vec<Image>>,
    acknowledged: Mutex<Vec<Receipt>>,
}

#[derive(Clone)]
pub struct Handle(pub Arc<Disk>);

struct Opened(Arc<Disk>, usize);

pub fn header() -> Vec<u8> {
    SegmentHeader::genesis([7; 32]).encode()
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.state.lock().unwrap();
        f.debug_map()
            .entries(state.seen.iter().map(|(name, id)| (name, state.files[*id].seen.len())))
            .finish()
    }
}

impl Handle {
    fn from(state: State) -> Handle {
        Handle(Arc::new(Disk { state: Mutex::new(state), ..Disk::default() }))
    }

    /// No file at all.
    pub fn bare() -> Handle {
        Handle::from(State::default())
    }

    /// One segment with these bytes.
    pub fn of(first_seq: u64, bytes: Vec<u8>) -> Handle {
        Handle::bare().with(first_seq, bytes)
    }

    pub fn empty() -> Handle {
        Handle::of(0, header())
    }

    /// An empty ledger on a disk that takes its time.
    pub fn slow(sync_ms: u64) -> Handle {
        let state = Mutex::new(Handle::empty().0.state.lock().unwrap().clone());
        Handle(Arc::new(Disk { state, sync_ms, ..Disk::default() }))
    }

    /// An empty ledger on a disk that keeps an image of each moment, and fails one operation of so many.
    pub fn watched(seed: u64, fails_one_of: u64) -> Handle {
        let state = Mutex::new(Handle::empty().0.state.lock().unwrap().clone());
        let random = Mutex::new(Some(Random::from(seed)));
        Handle(Arc::new(Disk { state, random, fails_one_of, watched: true, ..Disk::default() }))
    }

    /// A copy with other bytes in a segment, all of it durable.
    pub fn with(&self, first_seq: u64, bytes: Vec<u8>) -> Handle {
        let mut state = self.0.state.lock().unwrap().clone();
        let id = state.files.len();
        state.files.push(File { seen: bytes.clone(), durable: bytes, dropped: false });
        state.seen.insert(segment_name(first_seq), id);
        state.durable = state.seen.clone();
        Handle::from(state)
    }

    /// A copy without a segment.
    pub fn without(&self, first_seq: u64) -> Handle {
        let mut state = self.0.state.lock().unwrap().clone();
        state.seen.remove(&segment_name(first_seq));
        Handle::from(state)
    }

    /// A copy that nobody else changes.
    pub fn snapshot(&self) -> Handle {
        Handle::from(self.0.state.lock().unwrap().clone())
    }

    pub fn file(&self, first_seq: u64) -> Vec<u8> {
        let state = self.0.state.lock().unwrap();
        state.files[state.seen[&segment_name(first_seq)]].seen.clone()
    }

    /// Writes to the end of a segment, and nobody syncs.
    pub fn note(&self, first_seq: u64, bytes: &[u8]) {
        let length = self.file(first_seq).len() as u64;
        self.open(&segment_name(first_seq)).unwrap().write_at(bytes, length).unwrap();
    }

    /// As after a sync of a segment that failed.
    pub fn drop_unsynced(&self, first_seq: u64) {
        let mut state = self.0.state.lock().unwrap();
        let id = state.seen[&segment_name(first_seq)];
        state.files[id].dropped = true;
    }

    /// The disk of now.
    pub fn image(&self) -> Image {
        Image { state: self.0.state.lock().unwrap().clone(), acknowledged: Vec::new() }
    }

    pub fn flip(&self, first_seq: u64, index: usize) {
        let mut state = self.0.state.lock().unwrap();
        let id = state.seen[&segment_name(first_seq)];
        state.files[id].seen[index] ^= 1;
    }

    pub fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::SeqCst)
    }

    pub fn bytes_read(&self) -> u64 {
        self.0.bytes_read.load(Ordering::SeqCst)
    }

    pub fn acknowledge(&self, receipts: &[Receipt]) {
        self.0.acknowledged.lock().unwrap().extend(receipts);
    }

    pub fn images(&self) -> Vec<Image> {
        std::mem::take(&mut self.0.images.lock().unwrap())
    }
}

impl Image {
    /// What a power cut at this moment leaves: what was synced, and of all else any part.
    pub fn after_power_cut(&self, random: &mut Random) -> Handle {
        let mut state = State::default();
        for file in &self.state.files {
            let left = torn(file, random);
            state.files.push(File { seen: left.clone(), durable: left, dropped: false });
        }
        let names: BTreeSet<&String> = self.state.seen.keys().chain(self.state.durable.keys()).collect();
        for name in names {
            let from = if random.below(2) == 0 { &self.state.seen } else { &self.state.durable };
            if let Some(id) = from.get(name) {
                state.seen.insert(name.clone(), *id);
            }
        }
        state.durable = state.seen.clone();
        Handle::from(state)
    }
}

fn torn(file: &File, random: &mut Random) -> Vec<u8> {
    let (short, long) = (file.seen.len().min(file.durable.len()), file.seen.len().max(file.durable.len()));
    let length = short + random.below(1 + (long - short) as u64) as usize;
    let mut left = vec![0; length];
    for start in (0..length).step_by(BLOCK) {
        let from = if random.below(2) == 0 { &file.seen } else { &file.durable };
        let end = (start + BLOCK).min(length);
        // What was synced and is the same in both is the same in any choice.
        for (at, byte) in left.iter_mut().enumerate().take(end).skip(start) {
            *byte = from.get(at).copied().unwrap_or(0);
            if at < short && file.seen[at] == file.durable[at] {
                *byte = file.seen[at];
            }
        }
    }
    left
}

impl Disk {
    /// Before each operation that changes something: keeps the moment, and says whether the operation fails.
    fn operation(&self, state: &State) -> bool {
        if self.watched {
            let acknowledged = self.acknowledged.lock().unwrap().clone();
            self.images.lock().unwrap().push(Image { state: state.clone(), acknowledged });
        }
        let by_chance = self.fails_one_of > 0
            && self
                .random
                .lock()
                .unwrap()
                .as_mut()
                .is_some_and(|random| random.below(self.fails_one_of) == 0);
        by_chance || self.fails.load(Ordering::SeqCst)
    }
}

fn failed<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(5))
}

impl Directory for Handle {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.state.lock().unwrap().seen.keys().cloned().collect())
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        if self.0.unopenable.lock().unwrap().is_some_and(|segment| segment_name(segment) == name) {
            return failed();
        }
        match self.0.state.lock().unwrap().seen.get(name) {
            Some(id) => Ok(Arc::new(Opened(self.0.clone(), *id))),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
    fn make(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let mut state = self.0.state.lock().unwrap();
        if self.0.operation(&state) {
            return failed();
        }
        let id = match state.seen.get(name) {
            Some(id) => *id,
            None => state.files.len(),
        };
        if id == state.files.len() {
            state.files.push(File::default());
        }
        state.files[id].seen.clear();
        state.seen.insert(name.into(), id);
        Ok(Arc::new(Opened(self.0.clone(), id)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.state.lock().unwrap();
        let fails = self.0.operation(&state);
        // A rename that is told to have failed may have happened.
        if let Some(id) = state.seen.remove(from) {
            state.seen.insert(to.into(), id);
        }
        if fails { failed() } else { Ok(()) }
    }
    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.state.lock().unwrap();
        if self.0.operation(&state) {
            return failed();
        }
        state.durable = state.seen.clone();
        Ok(())
    }
}

impl Storage for Opened {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.state.lock().unwrap().files[self.1].seen.len() as u64)
    }
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.0.state.lock().unwrap();
        if let Some((segment, bad)) = self.0.unreadable.lock().unwrap().as_ref()
            && state.seen.get(&segment_name(*segment)) == Some(&self.1)
            && offset < bad.end
            && offset + out.len() as u64 > bad.start
        {
            return failed();
        }
        let seen = &state.files[self.1].seen;
        let rest = &seen[(offset as usize).min(seen.len())..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        self.0.bytes_read.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.state.lock().unwrap();
        let fails = self.0.operation(&state);
        let kept = if fails { bytes.len() / 2 } else { bytes.len() };
        let end = offset as usize + kept;
        state.files[self.1].dropped = false;
        let seen = &mut state.files[self.1].seen;
        if seen.len() < end {
            seen.resize(end, 0);
        }
        seen[offset as usize..end].copy_from_slice(&bytes[..kept]);
        if fails { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }
    fn sync(&self) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.0.sync_ms));
        let mut state = self.0.state.lock().unwrap();
        if self.0.operation(&state) {
            return failed();
        }
        let file = &mut state.files[self.1];
        if !file.dropped {
            file.durable = file.seen.clone();
        }
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn cut(&self, length: u64) -> io::Result<()> {
        {
            let mut state = self.0.state.lock().unwrap();
            if self.0.operation(&state) {
                return failed();
            }
            state.files[self.1].seen.truncate(length as usize);
        }
        self.sync()
    }
}
