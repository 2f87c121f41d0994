//! Log rings: what each service wrote last, with one sequence over all of them.
//!
//! Must hold: a ring keeps at most SERVICE_LOG_LINES_MAX lines and SERVICE_LOG_BYTES_MAX bytes; the oldest go first, and a
//! reader is told how many it missed. There are at most LOG_RINGS_MAX rings. They outlive a crash of nulld, and no sequence
//! number is given twice. Must never: interpret what a service wrote.

mod intake;
mod ring;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use abi::control::LogLine;
use abi::limits;

pub use intake::{Gate, Intake};
use ring::{Place, Ring};

/// Where a reader stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// None: all.
    service: Option<String>,
    since_unix_ms: u64,
    next_seq: u64,
    /// What the next line counts as if none was missed; none before the first one.
    expected: Option<u64>,
    missed: u64,
}

/// All rings.
#[derive(Debug, Default)]
pub struct Logs {
    rings: BTreeMap<String, Ring>,
    next_seq: u64,
    unkept: u64,
}

impl Logs {
    /// Takes up the rings that an earlier nulld kept, by name. Those that cannot be read are left out and named, with why.
    pub fn restore(kept: Vec<(String, OwnedFd)>) -> (Logs, Vec<(String, io::Error)>) {
        let (mut logs, mut broken) = (Logs::default(), Vec::new());
        let mut at_most = 0u64;
        for (name, file) in kept.into_iter().take(limits::LOG_RINGS_MAX) {
            at_most = at_most.saturating_add(ring::lines_at_most(&file));
            match Ring::restore(file) {
                Ok(ring) => {
                    logs.next_seq = logs.next_seq.max(ring.places().back().map_or(0, |last| last.seq + 1));
                    logs.rings.insert(name, ring);
                }
                Err(error) => broken.push((name, error)),
            }
        }
        if !broken.is_empty() {
            // The highest number may have stood in a ring that is lost: go beyond all that can have been given.
            logs.next_seq = logs.next_seq.max(at_most);
        }
        (logs, broken)
    }

    /// The rings' files by name, for [`Logs::restore`].
    pub fn kept(&self) -> Vec<(&str, BorrowedFd<'_>)> {
        self.rings.iter().map(|(name, ring)| (name.as_str(), ring.file())).collect()
    }

    /// Keeps a line, cut to LOG_LINE_BYTES_MAX.
    pub fn push(&mut self, service: &str, unix_ms: u64, text: &str) {
        self.push_marked(service, unix_ms, 0, text);
    }

    /// Keeps a line with a mark: a number of its source, by which the source goes on after a crash.
    pub fn push_marked(&mut self, service: &str, unix_ms: u64, mark: u64, text: &str) {
        let text = text.get(..text.floor_char_boundary(limits::LOG_LINE_BYTES_MAX)).unwrap_or_default();
        let seq = self.next_seq;
        let Some(ring) = self.ring_of(service) else {
            self.unkept += 1;
            return;
        };
        match ring.push(seq, unix_ms, mark, text) {
            Ok(()) => self.next_seq += 1,
            Err(_) => self.unkept += 1,
        }
    }

    fn ring_of(&mut self, service: &str) -> Option<&mut Ring> {
        if !self.rings.contains_key(service) {
            if self.rings.len() >= limits::LOG_RINGS_MAX {
                return None;
            }
            self.rings.insert(service.to_owned(), Ring::new(service).ok()?);
        }
        self.rings.get_mut(service)
    }

    /// The sequence number that the next line will get.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether a service has a log.
    pub fn knows(&self, service: &str) -> bool {
        self.rings.contains_key(service)
    }

    /// The highest mark of a service's lines.
    pub fn mark(&self, service: &str) -> u64 {
        self.rings.get(service).map_or(0, Ring::mark)
    }

    /// Lines of a service that its ring no longer keeps.
    #[cfg(test)]
    pub fn forgotten(&self, service: &str) -> u64 {
        self.rings.get(service).map_or(0, Ring::forgotten)
    }

    /// Lines that could not be kept at all (no memory, too many rings) since the last call.
    pub fn take_unkept(&mut self) -> u64 {
        std::mem::take(&mut self.unkept)
    }

    /// A reader of the newest `count` lines of one service, or of all, from a time on, and of all that follow.
    pub fn cursor(&self, service: Option<&str>, since_unix_ms: u64, count: usize) -> Cursor {
        let places = self.selected(service).flat_map(|(_, ring)| ring.places());
        let mut seqs: Vec<u64> =
            places.filter(|place| place.unix_ms >= since_unix_ms).map(|place| place.seq).collect();
        seqs.sort_unstable();
        let skipped = seqs.len().saturating_sub(count);
        Cursor {
            service: service.map(str::to_owned),
            since_unix_ms,
            next_seq: seqs.get(skipped).copied().unwrap_or(self.next_seq),
            expected: None,
            missed: 0,
        }
    }

    /// The next line for a reader, of those before `end_seq`.
    pub fn next(&self, cursor: &mut Cursor, end_seq: Option<u64>) -> Option<LogLine> {
        loop {
            let (name, ring, index, place) = self
                .selected(cursor.service.as_deref())
                .filter_map(|(name, ring)| {
                    ring.first_from(cursor.next_seq).map(|(index, place)| (name, ring, index, place))
                })
                .min_by_key(|(.., place)| place.seq)?;
            if end_seq.is_some_and(|end| place.seq >= end) {
                return None;
            }
            let number = match cursor.service {
                Some(_) => ring.forgotten() + index as u64,
                None => place.seq,
            };
            cursor.missed += cursor.expected.map_or(0, |expected| number.saturating_sub(expected));
            (cursor.next_seq, cursor.expected) = (place.seq + 1, Some(number + 1));
            if place.unix_ms >= cursor.since_unix_ms {
                return Some(line(name, ring, &place, std::mem::take(&mut cursor.missed)));
            }
        }
    }

    /// The newest line of a service.
    pub fn newest(&self, service: &str) -> Option<LogLine> {
        self.next(&mut self.cursor(Some(service), 0, 1), None)
    }

    fn selected<'a>(&'a self, service: Option<&'a str>) -> impl Iterator<Item = (&'a String, &'a Ring)> {
        self.rings.iter().filter(move |(name, _)| service.is_none_or(|wanted| wanted == name.as_str()))
    }
}

fn line(name: &str, ring: &Ring, place: &Place, missed: u64) -> LogLine {
    let text = ring.text(place).unwrap_or_else(|error| format!("error log_unreadable error={error:?}"));
    LogLine { seq: place.seq, unix_ms: place.unix_ms, service: name.to_owned(), line: text, missed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(logs: &Logs, cursor: &mut Cursor) -> Vec<String> {
        std::iter::from_fn(|| logs.next(cursor, None)).map(|line| line.line).collect()
    }

    /// What exec leaves of the rings.
    fn files(logs: &Logs) -> Vec<(String, OwnedFd)> {
        let kept = logs.kept().into_iter();
        kept.map(|(name, fd)| (name.to_owned(), fd.try_clone_to_owned().unwrap())).collect()
    }

    #[test]
    fn ring_drops_the_oldest_at_either_bound() {
        let mut logs = Logs::default();
        for n in 0..limits::SERVICE_LOG_LINES_MAX + 10 {
            logs.push("a", 0, &n.to_string());
        }
        let first = logs.next(&mut logs.cursor(Some("a"), 0, usize::MAX), None).unwrap();
        assert_eq!((first.seq, logs.forgotten("a")), (10, 10));
        let long = "x".repeat(limits::LOG_LINE_BYTES_MAX * 2);
        for _ in 0..limits::SERVICE_LOG_LINES_MAX {
            logs.push("b", 0, &long);
        }
        assert!(logs.rings["b"].bytes() <= limits::SERVICE_LOG_BYTES_MAX as u64);
        let first = logs.next(&mut logs.cursor(Some("b"), 0, usize::MAX), None).unwrap();
        assert_eq!(first.line.len(), limits::LOG_LINE_BYTES_MAX);
    }

    #[test]
    fn lines_of_all_services_come_in_order() {
        let mut logs = Logs::default();
        for (service, text) in [("b", "0"), ("a", "1"), ("b", "2"), ("c", "3")] {
            logs.push(service, 0, text);
        }
        assert_eq!(read(&logs, &mut logs.cursor(None, 0, 3)), ["1", "2", "3"]);
        assert_eq!(read(&logs, &mut logs.cursor(Some("b"), 0, 1)), ["2"]);
        assert!(read(&logs, &mut logs.cursor(Some("none"), 0, 5)).is_empty());
    }

    #[test]
    fn since_shows_that_time_and_later_whatever_the_clock_did() {
        let mut logs = Logs::default();
        for (unix_ms, text) in [(100, "a"), (500, "b"), (200, "set back"), (600, "c")] {
            logs.push("s", unix_ms, text);
        }
        assert_eq!(read(&logs, &mut logs.cursor(None, 300, usize::MAX)), ["b", "c"]);
        assert_eq!(read(&logs, &mut logs.cursor(Some("s"), 300, 1)), ["c"]);
        let mut cursor = logs.cursor(None, 700, usize::MAX);
        logs.push("s", 650, "old");
        logs.push("s", 700, "new");
        assert_eq!(read(&logs, &mut cursor), ["new"]);
    }

    #[test]
    fn a_reader_that_is_too_slow_is_told_how_much_it_missed() {
        for service in [None, Some("a")] {
            let mut logs = Logs::default();
            logs.push("a", 0, "first");
            let mut cursor = logs.cursor(service, 0, usize::MAX);
            assert_eq!(logs.next(&mut cursor, None).unwrap().missed, 0);
            for n in 0..limits::SERVICE_LOG_LINES_MAX + 7 {
                logs.push("b", 0, "other");
                logs.push("a", 0, &n.to_string());
            }
            let mut lines = std::iter::from_fn(|| logs.next(&mut cursor, None));
            let missed: u64 = lines.by_ref().map(|line| line.missed).sum();
            assert_eq!(missed, if service.is_some() { 7 } else { 14 });
        }
    }

    #[test]
    fn rings_are_bounded_in_number_and_what_is_not_kept_is_counted() {
        let mut logs = Logs::default();
        for n in 0..limits::LOG_RINGS_MAX + 5 {
            logs.push(&n.to_string(), 0, "x");
        }
        assert_eq!((logs.rings.len(), logs.take_unkept(), logs.take_unkept()), (limits::LOG_RINGS_MAX, 5, 0));
        assert_eq!(logs.next_seq(), limits::LOG_RINGS_MAX as u64);
    }

    #[test]
    fn restored_logs_go_on_where_they_were() {
        let mut logs = Logs::default();
        for (service, text) in [("a", "1"), ("kernel", "2"), ("a", "3")] {
            logs.push_marked(service, 7, 40, text);
        }
        let kept = files(&logs);
        drop(logs);
        let (mut logs, broken) = Logs::restore(kept);
        assert!(broken.is_empty());
        assert_eq!((logs.next_seq(), logs.mark("kernel")), (3, 40));
        logs.push("a", 8, "4");
        assert_eq!(read(&logs, &mut logs.cursor(None, 0, usize::MAX)), ["1", "2", "3", "4"]);
    }

    #[test]
    fn a_damaged_ring_is_named_and_its_numbers_are_not_given_again() {
        let mut logs = Logs::default();
        logs.push("a", 0, "kept");
        for _ in 0..50 {
            logs.push("b", 0, &"y".repeat(200));
        }
        let before = logs.next_seq();
        let kept = files(&logs);
        let (_, file) = kept.iter().find(|(name, _)| name == "b").unwrap();
        rustix::io::pwrite(file, b"damage", 4096 + 300).unwrap();
        let (logs, broken) = Logs::restore(kept);
        assert_eq!(broken.len(), 1);
        assert!(broken[0].0 == "b" && broken[0].1.to_string().contains("damaged"), "{broken:?}");
        assert!(logs.next_seq() >= before && logs.knows("a") && !logs.knows("b"));
    }
}
