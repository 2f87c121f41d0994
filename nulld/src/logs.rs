//! Log rings: what each service wrote last, with one sequence over all of them.
//!
//! Must hold: a ring keeps at most SERVICE_LOG_LINES_MAX lines and SERVICE_LOG_BYTES_MAX bytes; the oldest go first, and
//! a reader sees the loss as a gap in the sequence. Must never: interpret what a service wrote.

use std::collections::{BTreeMap, VecDeque};

use abi::control::LogLine;
use abi::limits;

/// One kept line.
#[derive(Debug)]
struct Line {
    seq: u64,
    unix_ms: u64,
    text: String,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Ring {
    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > limits::SERVICE_LOG_LINES_MAX || self.bytes > limits::SERVICE_LOG_BYTES_MAX {
            match self.lines.pop_front() {
                Some(oldest) => self.bytes -= oldest.text.len(),
                None => break,
            }
        }
    }

    fn first_from(&self, seq: u64) -> Option<&Line> {
        self.lines.get(self.lines.partition_point(|line| line.seq < seq))
    }
}

/// All rings.
#[derive(Debug, Default)]
pub struct Logs {
    rings: BTreeMap<String, Ring>,
    next_seq: u64,
}

impl Logs {
    /// Keeps a line; returns it as it is kept, cut to LOG_LINE_BYTES_MAX.
    pub fn push(&mut self, service: &str, unix_ms: u64, text: &str) {
        let mut end = text.len().min(limits::LOG_LINE_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let line = Line { seq: self.next_seq, unix_ms, text: text.get(..end).unwrap_or_default().to_owned() };
        self.next_seq += 1;
        if let Some(ring) = self.rings.get_mut(service) {
            ring.push(line);
        } else {
            let mut ring = Ring::default();
            ring.push(line);
            self.rings.insert(service.to_owned(), ring);
        }
    }

    /// The sequence number that the next line will get.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether a service has a log.
    pub fn knows(&self, service: &str) -> bool {
        self.rings.contains_key(service)
    }

    /// Where to begin for the newest `count` lines of one service, or of all.
    pub fn start_of_newest(&self, service: Option<&str>, count: usize) -> u64 {
        let mut seqs: Vec<u64> =
            self.selected(service).flat_map(|(_, ring)| ring.lines.iter().map(|line| line.seq)).collect();
        seqs.sort_unstable();
        let skipped = seqs.len().saturating_sub(count);
        seqs.get(skipped).copied().unwrap_or(self.next_seq)
    }

    /// The first kept line from a sequence number on, of one service or of all.
    pub fn line_from(&self, service: Option<&str>, seq: u64) -> Option<LogLine> {
        let (name, line) = self
            .selected(service)
            .filter_map(|(name, ring)| ring.first_from(seq).map(|line| (name, line)))
            .min_by_key(|(_, line)| line.seq)?;
        Some(LogLine { seq: line.seq, unix_ms: line.unix_ms, service: name.clone(), line: line.text.clone() })
    }

    fn selected<'a>(&'a self, service: Option<&'a str>) -> impl Iterator<Item = (&'a String, &'a Ring)> {
        self.rings.iter().filter(move |(name, _)| service.is_none_or(|wanted| wanted == name.as_str()))
    }
}

/// Cuts a byte stream into lines of bounded length.
#[derive(Debug, Default)]
pub struct LineCutter {
    partial: Vec<u8>,
    /// The present line is longer than allowed; its rest is skipped.
    skipping: bool,
}

impl LineCutter {
    /// Takes bytes; calls `line` for each whole line. Bytes that are not UTF-8 are replaced.
    pub fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = limits::LOG_LINE_BYTES_MAX.saturating_sub(self.partial.len());
            if text.len() > room {
                self.skipping = true;
            }
            self.partial.extend(text.iter().take(room));
            if ended {
                self.flush(&mut line);
            }
        }
    }

    /// Gives out an unfinished line: its writer has gone.
    pub fn flush(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            if self.skipping {
                self.partial.truncate(limits::LOG_LINE_BYTES_MAX - 6);
                self.partial.extend(b" cut=1");
            }
            line(&String::from_utf8_lossy(&self.partial));
        }
        self.partial.clear();
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_drops_the_oldest_at_either_bound() {
        let mut logs = Logs::default();
        for n in 0..limits::SERVICE_LOG_LINES_MAX + 10 {
            logs.push("a", 0, &n.to_string());
        }
        assert_eq!(logs.line_from(Some("a"), 0).unwrap().seq, 10);
        let long = "x".repeat(limits::LOG_LINE_BYTES_MAX * 2);
        for _ in 0..limits::SERVICE_LOG_LINES_MAX {
            logs.push("b", 0, &long);
        }
        assert!(logs.rings["b"].bytes <= limits::SERVICE_LOG_BYTES_MAX);
        assert_eq!(logs.line_from(Some("b"), 0).unwrap().line.len(), limits::LOG_LINE_BYTES_MAX);
    }

    #[test]
    fn lines_of_all_services_come_in_order() {
        let mut logs = Logs::default();
        for (service, text) in [("b", "0"), ("a", "1"), ("b", "2"), ("c", "3")] {
            logs.push(service, 0, text);
        }
        let mut from = logs.start_of_newest(None, 3);
        let mut seen = Vec::new();
        while let Some(line) = logs.line_from(None, from) {
            from = line.seq + 1;
            seen.push(line.line);
        }
        assert_eq!(seen, ["1", "2", "3"]);
        assert_eq!(logs.start_of_newest(Some("b"), 1), 2);
        assert_eq!(logs.start_of_newest(Some("none"), 5), logs.next_seq());
    }

    #[test]
    fn cutter_joins_pieces_and_bounds_lines() {
        let mut cutter = LineCutter::default();
        let mut seen = Vec::new();
        cutter.feed(b"one\ntw", |line| seen.push(line.to_owned()));
        cutter.feed(b"o\n\n\xff\n", |line| seen.push(line.to_owned()));
        cutter.feed(&[b'x'; 100_000], |line| seen.push(line.to_owned()));
        assert!(cutter.partial.len() <= limits::LOG_LINE_BYTES_MAX);
        cutter.feed(b"\nrest", |line| seen.push(line.to_owned()));
        cutter.flush(|line| seen.push(line.to_owned()));
        assert_eq!(seen[..3], ["one", "two", "\u{fffd}"]);
        assert!(seen[3].ends_with("x cut=1") && seen[3].len() == limits::LOG_LINE_BYTES_MAX);
        assert_eq!(seen[4], "rest");
    }
}
