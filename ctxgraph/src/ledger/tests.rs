//! The ledger against disks that fail, forget and lie.

use super::*;
use crate::testing::Random;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A disk in memory that forgets what was not synced, in 512-byte blocks.
#[derive(Default)]
struct Disk {
    seen: Mutex<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
    fails: AtomicBool,
    syncs: AtomicU64,
    sync_ms: u64,
}

#[derive(Clone)]
struct Handle(Arc<Disk>);

impl Handle {
    fn new(bytes: Vec<u8>, sync_ms: u64) -> Handle {
        Handle(Arc::new(Disk {
            seen: Mutex::new(bytes.clone()),
            durable: Mutex::new(bytes),
            sync_ms,
            ..Disk::default()
        }))
    }
    fn empty() -> Handle {
        Handle::new(header(), 0)
    }
    fn bytes(&self) -> Vec<u8> {
        self.0.seen.lock().unwrap().clone()
    }
    /// What a power cut leaves: the synced bytes, and of the others any blocks.
    fn after_power_cut(&self, random: &mut Random) -> Vec<u8> {
        // Seen is locked first, as in sync: the two belong together.
        let seen = self.0.seen.lock().unwrap();
        let durable = self.0.durable.lock().unwrap();
        let length =
            durable.len() + random.below(1 + seen.len().saturating_sub(durable.len()) as u64) as usize;
        let mut left = durable.clone();
        left.resize(length, 0);
        for block in durable.len() / 512..length.div_ceil(512) {
            if random.below(2) == 0 {
                let range = (block * 512).max(durable.len())..((block + 1) * 512).min(length);
                left[range.clone()].copy_from_slice(&seen[range]);
            }
        }
        left
    }
}

impl Storage for Handle {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.seen.lock().unwrap().len() as u64)
    }
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let seen = self.0.seen.lock().unwrap();
        let rest = &seen[(offset as usize).min(seen.len())..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut seen = self.0.seen.lock().unwrap();
        let fails = self.0.fails.load(Ordering::SeqCst);
        let kept = if fails { bytes.len() / 2 } else { bytes.len() };
        let end = offset as usize + kept;
        if seen.len() < end {
            seen.resize(end, 0);
        }
        seen[offset as usize..end].copy_from_slice(&bytes[..kept]);
        if fails { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }
    fn sync(&self) -> io::Result<()> {
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        std::thread::sleep(Duration::from_millis(self.0.sync_ms));
        let seen = self.0.seen.lock().unwrap();
        *self.0.durable.lock().unwrap() = seen.clone();
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn cut(&self, length: u64) -> io::Result<()> {
        self.0.seen.lock().unwrap().truncate(length as usize);
        self.sync()
    }
}

fn header() -> Vec<u8> {
    frame::SegmentHeader::genesis([7; 32]).encode()
}

fn event(n: u64) -> Event {
    Event::CallMade { by: format!("admin number {n}"), method: "x".repeat(1 + (n as usize * 37) % 300) }
}

fn open(handle: &Handle) -> Ledger {
    Ledger::open(Box::new(handle.clone()), None).unwrap()
}

/// A ledger of `count` events, each in a batch of its own, as bytes.
fn written(count: u64) -> (Vec<u8>, Vec<Receipt>) {
    written_from(0, count)
}

fn written_from(first: u64, count: u64) -> (Vec<u8>, Vec<Receipt>) {
    let handle = Handle::empty();
    let ledger = open(&handle);
    let receipts =
        (first..first + count).map(|n| ledger.append(Source::Root, &[event(n)], true).unwrap()[0]).collect();
    (handle.bytes(), receipts)
}

#[test]
fn events_come_back_in_order_and_after_a_restart() {
    let handle = Handle::empty();
    let ledger = open(&handle);
    for n in 0..30 {
        let receipt = ledger.append(Source::Root, &[event(n)], n % 3 == 0).unwrap();
        assert_eq!(receipt[0].seq, n);
    }
    drop(ledger); // syncs what was only noted
    let ledger = open(&handle);
    let (events, _) = ledger.tail(10, 1 << 20).unwrap();
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (20..30).collect::<Vec<_>>());
    assert_eq!(events[9].event, event(29));
    assert_eq!(events[9].source, "root");
    let verified = ledger.verify().unwrap();
    assert_eq!((verified.events, verified.broken), (30, None));
    assert_eq!(verified.head, Some(events[9].digest));
    let (few, _) = ledger.tail(1000, 1500).unwrap();
    assert!(!few.is_empty() && few.len() < 10 && few.last().unwrap().seq == 29);
}

#[test]
fn a_note_is_durable_within_the_promised_delay() {
    let handle = Handle::empty();
    let ledger = open(&handle);
    ledger.append(Source::Root, &[event(1)], false).unwrap();
    assert_eq!(ledger.durable().seq, 0);
    std::thread::sleep(Duration::from_millis(limits::LEDGER_SYNC_DELAY_MS_MAX * 2));
    assert_eq!(ledger.durable().seq, 1);
}

#[test]
fn many_writers_share_one_sync() {
    let handle = Handle::new(header(), 5);
    let ledger = open(&handle);
    std::thread::scope(|scope| {
        for writer in 0..24 {
            let ledger = &ledger;
            scope.spawn(move || {
                for n in 0..20 {
                    let receipts = ledger.append(Source::Root, &[event(writer * 100 + n)], true).unwrap();
                    assert!(ledger.durable().seq > receipts[0].seq, "acknowledged before it was durable");
                }
            });
        }
    });
    let verified = ledger.verify().unwrap();
    assert_eq!((verified.events, verified.broken), (480, None));
    let syncs = handle.0.syncs.load(Ordering::SeqCst);
    assert!(syncs < 120, "{syncs} syncs for 480 appends");
}

#[test]
fn a_power_cut_loses_nothing_acknowledged_and_damages_nothing() {
    let mut random = Random::new();
    for round in 0..60 {
        let handle = Handle::new(header(), random.below(3));
        let ledger = open(&handle);
        let acknowledged = Mutex::new(Vec::new());
        let cut = AtomicBool::new(false);
        let left = std::thread::scope(|scope| {
            for writer in 0..4 {
                let (ledger, acknowledged, cut) = (&ledger, &acknowledged, &cut);
                scope.spawn(move || {
                    for n in 0..200 {
                        if cut.load(Ordering::SeqCst) {
                            break;
                        }
                        let durable = n % 4 == 0;
                        let receipts =
                            ledger.append(Source::Root, &[event(writer * 1000 + n)], durable).unwrap();
                        if durable && !cut.load(Ordering::SeqCst) {
                            acknowledged.lock().unwrap().push(receipts[0]);
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_micros(random.below(6000)));
            // Acknowledged first, the disk after: what is acknowledged later need not be on it.
            let sure = acknowledged.lock().unwrap().clone();
            let left = handle.after_power_cut(&mut random);
            cut.store(true, Ordering::SeqCst);
            (left, sure)
        });
        drop(ledger);
        let (left, sure) = left;
        let ledger = open(&Handle::new(left, 0));
        assert_eq!(ledger.health(), Ok(()), "round {round}");
        assert_eq!(ledger.verify().unwrap().broken, None);
        let mut digests = std::collections::BTreeMap::new();
        ledger
            .read_from(frame::SEGMENT_HEADER_BYTES as u64, |recorded| {
                digests.insert(recorded.seq, recorded.digest);
                true
            })
            .unwrap();
        for receipt in sure {
            assert_eq!(digests.get(&receipt.seq), Some(&receipt.digest), "round {round}");
        }
        ledger.append(Source::Root, &[event(1)], true).unwrap();
    }
}

#[test]
fn every_flipped_byte_is_found_where_it_is() {
    let (bytes, _) = written(6);
    let mut starts = vec![frame::SEGMENT_HEADER_BYTES];
    while *starts.last().unwrap() < bytes.len() {
        let at = *starts.last().unwrap();
        starts.push(at + frame::frame_length(&bytes[at..]).unwrap());
    }
    for index in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[index] ^= 0x40;
        let handle = Handle::new(flipped, 0);
        let scanned = scan::scan(&handle, bytes.len() as u64, |_, _| {}).unwrap();
        let broken = scanned.broken.expect("found");
        // A flip in the segment header shows there or at the first frame, which no longer follows it.
        let frame = starts.iter().rposition(|start| *start <= index).unwrap_or(0);
        let expected = if index < starts[0] { 0 } else { frame };
        assert_eq!(broken.seq, expected as u64, "byte {index}: {broken:?}");
        assert!(broken.offset == starts[expected] as u64 || index < starts[0]);
    }
}

#[test]
fn damage_before_a_later_batch_stops_effects_and_is_not_cut() {
    let (bytes, _) = written(6);
    let first = frame::frame_length(&bytes[96..]).unwrap();
    for index in [96 + 4, 96 + 40, 96 + first - 1, 96 + first + 10] {
        let mut flipped = bytes.clone();
        flipped[index] ^= 1;
        let handle = Handle::new(flipped.clone(), 0);
        let ledger = open(&handle);
        let error = ledger.append(Source::Root, &[event(9)], true).unwrap_err();
        assert!(matches!(error, AppendError::Damaged(_)), "{error}");
        let verified = ledger.verify().unwrap();
        let seq = u64::from(index >= 96 + first);
        assert_eq!(verified.broken.expect("reported").seq, seq);
        assert_eq!(ledger.tail(100, 1 << 20).unwrap().0.len() as u64, seq, "what holds is still read");
        assert_eq!(handle.bytes(), flipped, "the evidence stays");
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_length_and_recorded() {
    let (bytes, receipts) = written(3);
    let last = bytes.len() - frame::frame_length(&bytes[96..]).unwrap(); // about; every frame start is passed below
    for length in (last.saturating_sub(500).max(97)..bytes.len()).step_by(3) {
        let handle = Handle::new(bytes[..length].to_vec(), 0);
        let ledger = open(&handle);
        let (events, _) = ledger.tail(10, 1 << 20).unwrap();
        let whole = receipts.iter().take_while(|r| events.iter().any(|e| e.digest == r.digest)).count();
        let cut = events.iter().filter(|e| matches!(e.event, Event::LedgerCut { .. })).count();
        assert_eq!(events.len(), whole + cut);
        assert_eq!(ledger.verify().unwrap().broken, None);
        assert!(ledger.append(Source::Root, &[event(5)], true).is_ok());
    }
}

#[test]
fn a_witness_tells_lost_events_from_a_torn_tail() {
    let (bytes, receipts) = written(4);
    let witness = (receipts[3].seq, receipts[3].digest);
    let opened =
        |bytes: Vec<u8>, witness| Ledger::open(Box::new(Handle::new(bytes, 0)), Some(witness)).unwrap();
    assert_eq!(opened(bytes.clone(), witness).health(), Ok(()));
    let cut = bytes[..bytes.len() - 1].to_vec();
    assert!(matches!(opened(cut, witness).health(), Err(AppendError::Damaged(_))));
    // An older copy of the whole file, and another ledger.
    let (older, _) = written(2);
    assert!(matches!(opened(older, witness).health(), Err(AppendError::Damaged(_))));
    let wrong = (receipts[3].seq, receipts[2].digest);
    assert!(matches!(opened(bytes, wrong).health(), Err(AppendError::Damaged(_))));
}

#[test]
fn reordered_spliced_replayed_and_removed_frames_are_found() {
    let (bytes, _) = written(4);
    let (other, _) = written_from(100, 4);
    let frame_range = |bytes: &[u8], n: usize| {
        let mut at = 96;
        for _ in 0..n {
            at += frame::frame_length(&bytes[at..]).unwrap();
        }
        at..at + frame::frame_length(&bytes[at..]).unwrap()
    };
    let part = |bytes: &[u8], n: usize| bytes[frame_range(bytes, n)].to_vec();
    let header = bytes[..96].to_vec();
    for (name, parts, seq) in [
        ("reordered", vec![part(&bytes, 0), part(&bytes, 2), part(&bytes, 1), part(&bytes, 3)], 1),
        ("replayed", vec![part(&bytes, 0), part(&bytes, 1), part(&bytes, 1), part(&bytes, 2)], 2),
        ("removed", vec![part(&bytes, 0), part(&bytes, 2), part(&bytes, 3)], 1),
        ("spliced", vec![part(&bytes, 0), part(&bytes, 1), part(&other, 2), part(&other, 3)], 2),
    ] {
        let mut changed = header.clone();
        parts.iter().for_each(|p| changed.extend(p));
        let length = changed.len() as u64;
        let scanned = scan::scan(&Handle::new(changed, 0), length, |_, _| {}).unwrap();
        assert_eq!(scanned.broken.expect(name).seq, seq, "{name}");
    }
}

#[test]
fn a_failing_disk_refuses_and_works_again_when_it_heals() {
    let handle = Handle::empty();
    let ledger = open(&handle);
    let kept = ledger.append(Source::Root, &[event(0)], true).unwrap();
    handle.0.fails.store(true, Ordering::SeqCst);
    let error = ledger.append(Source::Root, &[event(1)], true).unwrap_err();
    assert!(matches!(error, AppendError::Disk(_)), "{error}");
    assert!(ledger.append(Source::Root, &[event(2)], false).is_err(), "no note while the disk fails");
    assert_eq!(ledger.tail(10, 1 << 20).unwrap().0.len(), 1, "reads go on");
    handle.0.fails.store(false, Ordering::SeqCst);
    let started = Instant::now();
    let after = loop {
        match ledger.append(Source::Root, &[event(3)], true) {
            Ok(receipts) => break receipts,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(5), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((kept[0].seq, after[0].seq), (0, 1));
    assert_eq!(ledger.verify().unwrap().broken, None);
    drop(ledger);
    assert_eq!(open(&handle).verify().unwrap().events, 2);
}

#[test]
fn an_event_above_the_limit_is_refused() {
    let ledger = open(&Handle::empty());
    let large = Event::CallMade { by: "x".repeat(limits::LEDGER_EVENT_BYTES_MAX), method: String::new() };
    assert!(matches!(ledger.append(Source::Root, &[large], true), Err(AppendError::TooLarge(_))));
}

#[test]
fn verify_notices_a_file_changed_behind_its_back_and_stops_effects() {
    let handle = Handle::empty();
    let ledger = open(&handle);
    for n in 0..5 {
        ledger.append(Source::Root, &[event(n)], true).unwrap();
    }
    handle.0.seen.lock().unwrap()[120] ^= 1;
    let broken = ledger.verify().unwrap().broken.unwrap();
    assert_eq!((broken.seq, broken.offset), (0, 96));
    assert!(matches!(ledger.append(Source::Root, &[event(9)], true), Err(AppendError::Damaged(_))));
}

#[test]
fn a_second_ledger_never_shares_the_header_of_the_first() {
    // SegmentFile makes the header once; an existing file is opened, not made again.
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("ledger");
    let first = storage::SegmentFile::open_or_create(&at, header).unwrap();
    assert_eq!(first.length().unwrap(), 96);
    let again = storage::SegmentFile::open_or_create(&at, || panic!("made twice")).unwrap();
    let ledger = Ledger::open(Box::new(again), None).unwrap();
    ledger.append(Source::Root, &[event(0)], true).unwrap();
    drop(ledger);
    assert!(first.length().unwrap() > 96);
}
