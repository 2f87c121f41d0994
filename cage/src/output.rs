//! What agents wrote: a bounded log each, in memory and in two bounded files.
//!
//! Must hold: an agent that floods loses its own oldest output, counted, and nothing else suffers. A reader that is slow sees
//! a gap in `seq`; it never holds up the agent or other readers.

use abi::control::{Output, Stream};
use abi::{limits, log};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of one chunk, so that it fits a line of the control protocol in base64.
pub const CHUNK_BYTES_MAX: usize = 32 * 1024;
/// Chunks that a follower takes at a time: what he holds while a slow caller reads them.
const FOLLOW_CHUNKS_MAX: usize = 8;
/// What a chunk costs beside its data.
const CHUNK_OVERHEAD: usize = 64;

const _: () = assert!(CHUNK_BYTES_MAX / 3 * 4 + 256 < limits::LINE_BYTES_MAX);

/// Bytes an agent wrote in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub stream: Stream,
    pub seq: u64,
    pub unix_ms: u64,
    pub data: Vec<u8>,
}

impl Chunk {
    /// As a notification.
    pub fn to_output(&self) -> Output {
        Output { stream: self.stream, seq: self.seq, unix_ms: self.unix_ms, data: BASE64.encode(&self.data) }
    }
}

/// Decodes `data` of a notification.
pub fn decode(data: &str) -> Result<Vec<u8>, base64::DecodeError> {
    BASE64.decode(data)
}

/// Now, in Unix milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The newest chunks within a bound.
#[derive(Debug, Default)]
struct Ring {
    chunks: VecDeque<Chunk>,
    cost: usize,
    next_seq: u64,
}

impl Ring {
    fn push(&mut self, chunk: Chunk) {
        self.next_seq = chunk.seq + 1;
        self.cost += chunk.data.len() + CHUNK_OVERHEAD;
        self.chunks.push_back(chunk);
        while self.cost > limits::AGENT_LOG_BYTES_MAX {
            let Some(oldest) = self.chunks.pop_front() else { break };
            self.cost -= oldest.data.len() + CHUNK_OVERHEAD;
        }
    }

    fn from(&self, seq: u64) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().filter(move |chunk| chunk.seq >= seq)
    }

    /// The newest `lines` lines; the first chunk is cut where they begin.
    fn tail(&self, lines: u32) -> Vec<Chunk> {
        let mut wanted = lines as usize;
        let mut found = VecDeque::new();
        let mut newest = true;
        for chunk in self.chunks.iter().rev() {
            if wanted == 0 {
                break;
            }
            // A line end at the very end of the log ends its last line; it does not begin another one.
            let body = match (newest, chunk.data.split_last()) {
                (true, Some((b'\n', body))) => body,
                _ => chunk.data.as_slice(),
            };
            newest = false;
            let starts: Vec<usize> =
                body.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
            if starts.len() >= wanted {
                let from = starts.get(starts.len() - wanted).copied().unwrap_or(0);
                let mut cut = chunk.clone();
                cut.data.drain(..from.min(cut.data.len()));
                found.push_front(cut);
                wanted = 0;
            } else {
                wanted -= starts.len();
                found.push_front(chunk.clone());
            }
        }
        found.into()
    }
}

/// One agent's log. Shared by its writer and any number of readers.
#[derive(Debug)]
pub struct Log {
    inner: Mutex<Inner>,
    grown: Condvar,
}

#[derive(Debug)]
struct Inner {
    ring: Ring,
    files: Kept,
}

/// The files of a log, by the path of the newer one.
#[derive(Debug)]
enum Kept {
    Closed(PathBuf),
    Open(Files),
    /// They could not be written, which was told; the ring still holds what came since.
    Lost(PathBuf),
}

impl Kept {
    fn append(&mut self, chunk: &Chunk) -> io::Result<()> {
        if let Kept::Closed(path) = self {
            *self = Kept::Open(Files::open(path.clone())?);
        }
        match self {
            Kept::Open(files) => files.append(chunk),
            Kept::Closed(_) | Kept::Lost(_) => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Kept::Closed(path) | Kept::Lost(path) => path.clone(),
            Kept::Open(files) => files.path.clone(),
        }
    }
}

impl Log {
    /// The log kept at `path`, with what earlier lives left in it.
    pub fn open(path: PathBuf) -> Log {
        let mut ring = Ring::default();
        for file in [path.with_extension("old"), path.clone()] {
            read_into(&mut ring, &file);
        }
        Log { inner: Mutex::new(Inner { ring, files: Kept::Closed(path) }), grown: Condvar::new() }
    }

    /// A life is over: closes the file until something is written again, or tries it again if it could not be written.
    pub fn rest(&self) {
        let mut inner = self.lock();
        inner.files = Kept::Closed(inner.files.path());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what an agent wrote.
    pub fn append(&self, stream: Stream, data: &[u8]) {
        let mut inner = self.lock();
        for part in data.chunks(CHUNK_BYTES_MAX) {
            let chunk = Chunk { stream, seq: inner.ring.next_seq, unix_ms: unix_ms(), data: part.to_vec() };
            if let Err(error) = inner.files.append(&chunk) {
                log::error("agent_log_not_kept", &[("error", &error)]);
                inner.files = Kept::Lost(inner.files.path());
            }
            inner.ring.push(chunk);
        }
        drop(inner);
        self.grown.notify_all();
    }

    /// Wakes followers, to let them see that the agent's state has changed.
    pub fn wake(&self) {
        self.grown.notify_all();
    }

    /// The newest lines (none: everything kept), and the position to follow from.
    pub fn tail(&self, lines: Option<u32>) -> (Vec<Chunk>, u64) {
        let inner = self.lock();
        let chunks = match lines {
            Some(lines) => inner.ring.tail(lines),
            None => inner.ring.from(0).cloned().collect(),
        };
        (chunks, inner.ring.next_seq)
    }

    /// The next few chunks from `seq` on, waiting for one if there is none; empty after `patience`, or when woken.
    pub fn follow(&self, seq: u64, patience: Duration) -> Vec<Chunk> {
        let inner = self.lock();
        let (inner, _) = self
            .grown
            .wait_timeout_while(inner, patience, |inner| inner.ring.next_seq <= seq)
            .unwrap_or_else(PoisonError::into_inner);
        inner.ring.from(seq).take(FOLLOW_CHUNKS_MAX).cloned().collect()
    }
}

fn read_into(ring: &mut Ring, path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    // A line that a power cut left half written does not parse, and is left out.
    for output in lines.filter_map(|line| serde_json::from_str::<Output>(&line).ok()) {
        if let Ok(data) = decode(&output.data) {
            ring.push(Chunk { stream: output.stream, seq: output.seq, unix_ms: output.unix_ms, data });
        }
    }
}

/// The file being written and the one before it, each of at most [`limits::AGENT_LOG_BYTES_MAX`] bytes.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    current: File,
    bytes: u64,
}

impl Files {
    fn open(path: PathBuf) -> io::Result<Files> {
        let mut current = OpenOptions::new().create(true).append(true).open(&path)?;
        let bytes = current.metadata()?.len();
        if bytes > 0 {
            current.write_all(b"\n")?; // ends a line that a power cut left half written; an empty line is skipped
        }
        Ok(Files { path, current, bytes: bytes + 1 })
    }

    fn append(&mut self, chunk: &Chunk) -> io::Result<()> {
        let mut line = serde_json::to_vec(&chunk.to_output())?;
        line.push(b'\n');
        if self.bytes + line.len() as u64 > limits::AGENT_LOG_BYTES_MAX as u64 {
            fs::rename(&self.path, self.path.with_extension("old"))?;
            *self = Files::open(self.path.clone())?;
        }
        self.current.write_all(&line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(chunks: &[Chunk]) -> String {
        chunks.iter().map(|chunk| String::from_utf8_lossy(&chunk.data).into_owned()).collect()
    }

    #[test]
    fn a_flood_loses_the_oldest_and_keeps_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("a.log"));
        for _ in 0..100 {
            log.append(Stream::Stdout, &[b'x'; 40_000]);
        }
        let (chunks, next) = log.tail(None);
        assert_eq!(next, 200);
        assert!(chunks.iter().map(|c| c.data.len()).sum::<usize>() <= limits::AGENT_LOG_BYTES_MAX);
        assert!(chunks[0].seq > 0);
        assert!(chunks.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
        let kept: u64 = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(kept <= 2 * limits::AGENT_LOG_BYTES_MAX as u64, "{kept}");
    }

    #[test]
    fn single_bytes_do_not_cost_more_than_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("a.log"));
        for _ in 0..30_000 {
            log.append(Stream::Stderr, b"x");
        }
        assert!(log.tail(None).0.len() <= limits::AGENT_LOG_BYTES_MAX / CHUNK_OVERHEAD);
    }

    #[test]
    fn a_log_survives_its_process_and_a_cut_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        Log::open(path.clone()).append(Stream::Stdout, b"one\ntwo\n");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"stream\":\"std").unwrap();
        let log = Log::open(path.clone());
        log.append(Stream::Stdout, b"thr");
        log.rest();
        log.append(Stream::Stdout, b"ee\n");
        let again = Log::open(path);
        let (chunks, next) = again.tail(None);
        assert_eq!(text(&chunks), "one\ntwo\nthree\n");
        assert_eq!(next, 3);
    }

    #[test]
    fn tails_are_counted_in_lines_across_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("a.log"));
        for part in ["one\ntw", "o\nthr", "ee\nfour\n"] {
            log.append(Stream::Stdout, part.as_bytes());
        }
        assert_eq!(text(&log.tail(Some(0)).0), "");
        assert_eq!(text(&log.tail(Some(1)).0), "four\n");
        assert_eq!(text(&log.tail(Some(2)).0), "three\nfour\n");
        assert_eq!(text(&log.tail(Some(3)).0), "two\nthree\nfour\n");
        assert_eq!(text(&log.tail(Some(9)).0), "one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn a_follower_wakes_on_output_and_gives_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let log = std::sync::Arc::new(Log::open(dir.path().join("a.log")));
        assert!(log.follow(0, Duration::from_millis(5)).is_empty());
        let writer = log.clone();
        let thread = std::thread::spawn(move || writer.append(Stream::Stdout, b"x"));
        assert_eq!(text(&log.follow(0, Duration::from_secs(60))), "x");
        thread.join().unwrap();
    }
}
