//! The ledger against disks that fail, forget and lie.

use super::*;
use crate::testing::Random;
use std::sync::atomic::Ordering;

mod disk;
use disk::Handle;

fn event(n: u64) -> Event {
    Event::CallMade { by: format!("admin number {n}"), method: "x".repeat(1 + (n as usize * 37) % 300) }
}

/// Small segments, so that few events fill many; a failed disk is tried again at once.
fn setup(segment_bytes: u64) -> Setup {
    Setup { segment_bytes, retry_every: Duration::from_millis(5), ..Setup::default() }
}

fn open(handle: &Handle) -> Ledger {
    Ledger::open(Box::new(handle.clone()), setup(limits::LEDGER_SEGMENT_BYTES_MAX)).unwrap()
}

fn open_small(handle: &Handle) -> Ledger {
    Ledger::open(Box::new(handle.clone()), setup(SMALL)).unwrap()
}

/// Bytes of a small segment: three events or so.
const SMALL: u64 = 900;

/// A ledger of `count` events, each in a batch of its own, as bytes.
fn written(count: u64) -> (Vec<u8>, Vec<Receipt>) {
    let (handle, receipts) = written_to(Handle::empty(), 0, count, limits::LEDGER_SEGMENT_BYTES_MAX);
    (handle.file(0), receipts)
}

fn written_to(handle: Handle, first: u64, count: u64, segment_bytes: u64) -> (Handle, Vec<Receipt>) {
    let ledger = Ledger::open(Box::new(handle.clone()), setup(segment_bytes)).unwrap();
    let receipts =
        (first..first + count).map(|n| ledger.append(Source::Root, &[event(n)], true).unwrap()[0]).collect();
    drop(ledger);
    (handle, receipts)
}

/// A ledger of several segments.
fn several(count: u64) -> (Handle, Vec<Receipt>) {
    written_to(Handle::empty(), 0, count, SMALL)
}

/// What is wrong with the bytes, before anything is opened or cut.
fn first_wrong(handle: &Handle) -> Option<Broken> {
    check::survey(handle, Anchors::default()).unwrap()
}

/// Seq and digest of all events that can be read.
fn digests(ledger: &Ledger) -> std::collections::BTreeMap<u64, Digest> {
    let mut digests = std::collections::BTreeMap::new();
    ledger
        .read_from(ledger.point_of(0), |recorded| {
            assert!(digests.insert(recorded.seq, recorded.digest).is_none(), "told twice");
            true
        })
        .unwrap();
    digests
}

/// Offsets of the frames in a segment.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![frame::SegmentHeader::length(bytes).unwrap()];
    loop {
        let at = *starts.last().unwrap();
        match frame::frame_length(&bytes[at..]) {
            Ok(length) => starts.push(at + length),
            Err(_) => {
                starts.pop();
                return starts;
            }
        }
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
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
    let handle = Handle::slow(5);
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

/// Writes events to small segments, some batches of several, some not waited for, while operations of the disk fail one time in
/// `fails` (0: never). Returns the disk as it was before each operation, with what had been acknowledged.
fn images(random: &mut Random, events: u64, fails: u64) -> Vec<disk::Image> {
    let handle = Handle::watched(random.below(u64::MAX), fails);
    let ledger = open_small(&handle);
    let mut n = 0;
    while n < events {
        let batch: Vec<Event> = (0..1 + random.below(3)).map(|k| event(n + k)).collect();
        n += batch.len() as u64;
        let durable = random.below(4) != 0;
        match ledger.append(Source::Root, &batch, durable) {
            Ok(receipts) if durable => handle.acknowledge(&receipts),
            Ok(_) => {}
            Err(AppendError::Disk(_)) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
    drop(ledger);
    handle.images()
}

/// Opens what a power cut left and checks it.
fn survives(image: &disk::Image, random: &mut Random) {
    let left = image.after_power_cut(random);
    let ledger = open_small(&left);
    assert_eq!(ledger.health(), Ok(()), "{left:?}");
    let verified = ledger.verify().unwrap();
    assert_eq!(verified.broken, None);
    let found = digests(&ledger);
    assert_eq!(found.len() as u64, verified.events, "no gap and nothing half there");
    for receipt in &image.acknowledged {
        assert_eq!(found.get(&receipt.seq), Some(&receipt.digest), "{left:?}");
    }
    ledger.append(Source::Root, &[event(1)], true).unwrap();
    drop(ledger);
    assert_eq!(first_wrong(&left), None);
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_acknowledged_and_damages_nothing() {
    let mut random = Random::new();
    let long = std::env::var_os("NULLBOX_SOAK").is_some();
    let (runs, cuts) = if long { (40, 20) } else { (2, 2) };
    let mut points = 0;
    for run in 0..runs {
        // Every other run on a disk that fails now and then.
        let images = images(&mut random, 100, if run % 2 == 0 { 0 } else { 12 });
        assert!(images.len() > 20, "{} operations", images.len());
        for image in &images {
            (0..cuts).for_each(|_| survives(image, &mut random));
        }
        points += images.len() * cuts;
    }
    println!("{points} power cuts survived");
}

#[test]
fn frames_that_were_seen_and_never_synced_are_durable_once_they_were_built_on() {
    let mut random = Random::new();
    let (bytes, receipts) = written(6);
    let starts = starts(&bytes);
    for kept in 1..6 {
        for _ in 0..4 {
            // Killed between write and sync: the next start sees all six.
            let handle = Handle::of(0, bytes[..starts[kept]].to_vec());
            handle.note(0, &bytes[starts[kept]..]);
            if kept == 5 {
                handle.drop_unsynced(0); // only a last batch can be in doubt
            }
            let ledger = open_small(&handle);
            assert_eq!(ledger.durable().seq, 6);
            let signed = ledger.snapshot().unwrap();
            wait_until("a full segment is followed by another", || {
                storage::segments(&handle).unwrap().len() > 1
            });
            let left = handle.image().after_power_cut(&mut random);
            drop(ledger);
            assert_eq!(first_wrong(&left), None, "{kept} had been synced");
            let anchors = Anchors { witness: None, checkpoint: Some((signed.size, signed.root)) };
            let ledger = Ledger::open(Box::new(left), Setup { anchors, ..setup(SMALL) }).unwrap();
            assert_eq!(ledger.health(), Ok(()), "what was signed is there");
            assert_eq!(ledger.snapshot().unwrap().head, Some(receipts[5].digest));
        }
    }
}

#[test]
fn a_disk_that_takes_nothing_at_the_start_is_read_and_tried_again() {
    let (bytes, receipts) = written(4);
    let synced = starts(&bytes)[2];
    for length in [bytes.len(), bytes.len() - 3] {
        let handle = Handle::of(0, bytes[..synced].to_vec());
        handle.note(0, &bytes[synced..length]);
        handle.drop_unsynced(0);
        handle.0.fails.store(true, Ordering::SeqCst);
        let ledger = open(&handle);
        assert!(matches!(ledger.append(Source::Root, &[event(9)], true), Err(AppendError::Disk(_))));
        let whole = receipts.len() - usize::from(length < bytes.len());
        assert_eq!(digests(&ledger).len(), whole, "reads go on");
        assert_eq!(ledger.verify().unwrap().broken, None);
        handle.0.fails.store(false, Ordering::SeqCst);
        wait_until("it works again", || ledger.health().is_ok());
        for _ in 0..8 {
            let left = open(&handle.image().after_power_cut(&mut Random::new()));
            assert!(digests(&left).len() >= whole, "what was read is durable before more is taken");
        }
        wait_until("events are taken", || ledger.append(Source::Root, &[event(9)], true).is_ok());
        assert_eq!(ledger.verify().unwrap().broken, None);
        drop(ledger);
        assert_eq!(first_wrong(&handle), None);
    }
}

#[test]
fn a_file_on_a_read_only_file_system_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let files = storage::RealDirectory::open_or_create(directory.path()).unwrap();
    let (bytes, _) = written(3);
    std::fs::write(directory.path().join(storage::segment_name(0)), &bytes).unwrap();
    let shown = storage::RealDirectory::open_or_create(directory.path()).unwrap();
    let file = shown.read_only(&storage::segment_name(0)).unwrap();
    let mut read = vec![0; bytes.len()];
    assert_eq!(scan::read_full(file.as_ref(), &mut read, 0).unwrap(), bytes.len());
    assert_eq!(read, bytes);
    for refused in [file.write_at(b"x", 0), file.sync(), file.cut(0)] {
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    assert_eq!(Ledger::open(Box::new(files), setup(SMALL)).unwrap().durable().seq, 3);
}

#[test]
fn a_follower_goes_on_beyond_a_last_event_that_is_rotten() {
    let handle = Handle::empty();
    let ledger = open(&handle);
    (0..4).for_each(|n| drop(ledger.append(Source::Root, &[event(n)], true).unwrap()));
    let bytes = handle.file(0);
    handle.flip(0, bytes.len() - 1);
    let mut told = Vec::new();
    let next = ledger
        .read_from(ledger.point_of(0), |recorded| {
            told.push(recorded.seq);
            true
        })
        .unwrap();
    assert_eq!((told, next), (vec![0, 1, 2], ledger.durable()), "there is nothing to ask for again");
}

#[test]
fn a_segment_that_cannot_be_opened_is_damage_and_hides_nothing_else() {
    let (handle, receipts) = several(20);
    let segments = storage::segments(&handle).unwrap();
    for (at, segment) in segments.iter().enumerate().take(segments.len() - 1) {
        let handle = handle.snapshot();
        *handle.0.unopenable.lock().unwrap() = Some(*segment);
        let broken = first_wrong(&handle).expect("found");
        assert_eq!((broken.segment, broken.seq), (*segment, *segment), "{broken:?}");
        assert!(broken.why.contains("cannot be opened"), "{}", broken.why);
        let ledger = open_small(&handle);
        wait_until("the start or the check after it finds it", || ledger.health().is_err());
        assert_eq!(ledger.verify().unwrap().broken.unwrap().seq, *segment);
        let left: Vec<u64> = digests(&ledger).into_keys().collect();
        let lost = *segment..segments[at + 1];
        let whole: Vec<u64> = (0..receipts.len() as u64).filter(|seq| !lost.contains(seq)).collect();
        assert_eq!(left, whole);
    }
}

#[test]
fn a_changed_header_without_frames_is_found_at_the_start() {
    let (handle, _) = several(10);
    let (head, _) = open::read(&handle.snapshot(), &setup(SMALL)).unwrap();
    let (seq, header) = (head.durable.chain.seq(), head.durable.chain.next_header().encode());
    drop(head);
    assert_eq!(open_small(&handle.with(seq, header.clone())).health(), Ok(()));
    for at in 0..header.len() {
        let mut changed = header.clone();
        changed[at] ^= 1;
        let ledger = open_small(&handle.with(seq, changed));
        let Err(AppendError::Damaged(broken)) = ledger.append(Source::Root, &[event(1)], true) else {
            panic!("byte {at}: taken");
        };
        assert_eq!((broken.segment, broken.offset), (seq, 0), "byte {at}");
    }
}

#[test]
fn the_check_after_the_start_names_a_lost_last_event_of_the_last_older_segment() {
    let (handle, _) = several(14);
    let segments = storage::segments(&handle).unwrap();
    let (last, newest) = (segments[segments.len() - 2], segments[segments.len() - 1]);
    let mut bytes = handle.file(last);
    // In its body: the digest, which the next header has, stays.
    let at = *starts(&bytes).last().unwrap() + frame::HEAD_BYTES + 2;
    bytes[at] ^= 1;
    let ledger = open_small(&handle.with(last, bytes));
    wait_until("found", || ledger.health().is_err());
    let Err(AppendError::Damaged(broken)) = ledger.health() else { panic!() };
    assert_eq!((broken.seq, broken.lost), (newest - 1, format!("events {}", newest - 1)));
}

#[test]
fn every_flipped_byte_of_several_segments_is_found_where_it_is() {
    let (handle, _) = several(10);
    let segments = storage::segments(&handle).unwrap();
    assert!(segments.len() > 2, "{segments:?}");
    for first_seq in &segments {
        let bytes = handle.file(*first_seq);
        let starts = starts(&bytes);
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 0x40;
            let changed = handle.with(*first_seq, flipped);
            let broken = first_wrong(&changed).expect("found");
            // A flip in the first header shows there or at the first frame, which no longer follows it; in a later one at once.
            let frame = starts.iter().rposition(|start| *start <= index);
            let expected = *first_seq + frame.unwrap_or(0) as u64;
            assert_eq!((broken.segment, broken.seq), (*first_seq, expected), "byte {index}: {broken:?}");
            match frame {
                Some(frame) => assert_eq!(broken.offset, starts[frame] as u64),
                None if *first_seq > 0 => assert_eq!(broken.offset, 0),
                None => assert!(broken.offset == 0 || broken.offset == starts[0] as u64),
            }
            // That there was something after the last whole frame, only the running ledger knows.
            let lost =
                if frame.is_some() && expected < 9 { format!("events {expected}") } else { String::new() };
            assert_eq!(broken.lost, lost, "byte {index} of {first_seq}");
        }
    }
}

#[test]
fn every_cut_of_an_older_segment_is_found_where_it_is() {
    let (handle, receipts) = several(10);
    let segments = storage::segments(&handle).unwrap();
    let (middle, next) = (segments[1], segments[2]);
    let bytes = handle.file(middle);
    let starts = starts(&bytes);
    for length in 0..bytes.len() {
        let cut = handle.with(middle, bytes[..length].to_vec());
        let broken = first_wrong(&cut).expect("found");
        let whole = starts.iter().filter(|start| **start <= length && **start > starts[0]).count() as u64;
        // A cut between two frames shows where the next segment does not follow.
        let between = starts.contains(&length);
        let place = if between { (next, middle + whole) } else { (middle, middle + whole) };
        assert_eq!((broken.segment, broken.seq), place, "cut to {length}: {broken:?}");
        let (first, last) = (middle + whole, next - 1);
        let lost =
            if first == last { format!("events {first}") } else { format!("events {first} to {last}") };
        assert_eq!(broken.lost, lost, "cut to {length}");
        let ledger = open_small(&cut);
        wait_until("the start or the check after it finds it", || {
            matches!(ledger.health(), Err(AppendError::Damaged(_)))
        });
        assert_eq!(digests(&ledger).len(), receipts.len() - (next - first) as usize);
        assert!(ledger.snapshot().is_err(), "a damaged ledger is not signed");
    }
}

#[test]
fn a_removed_exchanged_or_foreign_segment_is_found() {
    let (handle, _) = several(14);
    let segments = storage::segments(&handle).unwrap();
    assert!(segments.len() > 3);
    let (other, _) = written_to(Handle::empty(), 500, 14, SMALL);
    let found = |changed: &Handle| {
        let broken = first_wrong(changed).expect("found");
        let ledger = open_small(changed);
        wait_until("the start or the check after it finds it", || ledger.health().is_err());
        assert_eq!(ledger.verify().unwrap().broken.map(|b| b.seq), Some(broken.seq));
        (broken.segment, broken.offset, broken.seq)
    };
    for (index, removed) in segments.iter().enumerate().take(segments.len() - 1) {
        let next = segments[index + 1];
        assert_eq!(found(&handle.without(*removed)), (next, 0, *removed), "segment {removed} removed");
    }
    let (a, b) = (segments[1], segments[2]);
    let exchanged = handle.with(a, handle.file(b)).with(b, handle.file(a));
    assert_eq!(found(&exchanged), (a, 0, a));
    let replayed = handle.with(b, handle.file(a));
    assert_eq!(found(&replayed), (b, 0, b));
    // Of another ledger with the same id, in the same place.
    if other.names().unwrap().contains(&storage::segment_name(b)) {
        assert_eq!(found(&handle.with(b, other.file(b))), (b, 0, b));
    }
}

#[test]
fn damage_before_a_later_batch_stops_effects_and_is_not_cut() {
    let (bytes, _) = written(6);
    let first = frame::frame_length(&bytes[96..]).unwrap();
    for index in [96 + 4, 96 + 40, 96 + first - 1, 96 + first + 10] {
        let mut flipped = bytes.clone();
        flipped[index] ^= 1;
        let handle = Handle::of(0, flipped.clone());
        let ledger = open(&handle);
        let error = ledger.append(Source::Root, &[event(9)], true).unwrap_err();
        assert!(matches!(error, AppendError::Damaged(_)), "{error}");
        let broken = ledger.verify().unwrap().broken.expect("reported");
        let seq = u64::from(index >= 96 + first);
        assert_eq!((broken.seq, broken.lost), (seq, format!("events {seq}")));
        let left: Vec<u64> = (0..6).filter(|n| *n != seq).collect();
        let told: Vec<u64> = ledger.tail(100, 1 << 20).unwrap().0.iter().map(|event| event.seq).collect();
        assert_eq!(told, left, "every frame that is whole is still read");
        let found = ledger.query(&Default::default(), 1 << 20).unwrap();
        assert_eq!(found.events.iter().map(|event| event.seq).collect::<Vec<_>>(), left);
        assert_eq!(handle.file(0), flipped, "the evidence stays");
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_length_and_recorded() {
    let (handle, receipts) = several(8);
    let newest = *storage::segments(&handle).unwrap().last().unwrap();
    let bytes = handle.file(newest);
    let header = frame::SegmentHeader::length(&bytes).unwrap();
    assert!(header < bytes.len());
    for length in (header..bytes.len()).step_by(3) {
        let handle = handle.with(newest, bytes[..length].to_vec());
        let ledger = open_small(&handle);
        let (events, _) = ledger.tail(10, 1 << 20).unwrap();
        let whole = receipts.iter().take_while(|r| events.iter().any(|e| e.digest == r.digest)).count();
        // A frame ends where the next begins, and the last where the file did.
        let ends = starts(&bytes).into_iter().skip(1).filter(|end| *end <= length).count();
        let cut = events.iter().filter(|e| matches!(e.event, Event::LedgerCut { .. })).count();
        assert_eq!(events.len(), whole + cut);
        assert_eq!(whole as u64, newest + ends as u64, "cut to {length}");
        assert_eq!(ledger.verify().unwrap().broken, None);
        assert!(ledger.append(Source::Root, &[event(5)], true).is_ok());
    }
}

#[test]
fn a_witness_and_a_checkpoint_tell_lost_and_rewritten_events_from_a_torn_tail() {
    let (handle, receipts) = several(12);
    let segments = storage::segments(&handle).unwrap();
    let newest = *segments.last().unwrap();
    let mut tree = ::ledger::merkle::Frontier::default();
    let roots: Vec<Digest> = receipts
        .iter()
        .map(|receipt| {
            tree.push(&receipt.digest);
            tree.root()
        })
        .collect();
    let open_with = |handle: &Handle, anchors| {
        Ledger::open(Box::new(handle.snapshot()), Setup { anchors, ..setup(SMALL) }).unwrap()
    };
    let is_good = |handle: &Handle, anchors| {
        let ledger = open_with(handle, anchors);
        assert_eq!((ledger.verify().unwrap().broken, ledger.health()), (None, Ok(())));
    };
    let is_damaged = |handle: &Handle, anchors| {
        let ledger = open_with(handle, anchors);
        // What anchors say of older segments shows after the start.
        wait_until("found", || matches!(ledger.health(), Err(AppendError::Damaged(_))));
        ledger.verify().unwrap().broken.expect("found again")
    };
    let witness =
        |n: usize| Anchors { witness: Some((receipts[n].seq, receipts[n].digest)), checkpoint: None };
    let signed = |n: usize| Anchors { witness: None, checkpoint: Some((n as u64 + 1, roots[n])) };
    let bytes = handle.file(newest);
    let torn = handle.with(newest, bytes[..bytes.len() - 1].to_vec());
    let last = receipts.len() - 1;
    for n in 0..receipts.len() {
        is_good(&handle, witness(n));
        is_good(&handle, signed(n));
        is_damaged(&handle, Anchors { witness: Some((n as u64, Digest([1; 32]))), checkpoint: None });
        is_damaged(&handle, Anchors { witness: None, checkpoint: Some((n as u64 + 1, Digest([1; 32]))) });
    }
    is_damaged(&torn, witness(last));
    is_damaged(&torn, signed(last));
    // An older copy of all files, and no files at all.
    let (older, _) = several(4);
    let broken = is_damaged(&older, witness(last));
    assert_eq!((broken.seq, broken.lost), (4, format!("events 4 to {last}")));
    is_damaged(&older, signed(last));
    is_damaged(&Handle::bare(), signed(0));
}

#[test]
fn reordered_spliced_replayed_and_removed_frames_are_found() {
    let (bytes, _) = written(4);
    let (other, _) = written_to(Handle::empty(), 100, 4, limits::LEDGER_SEGMENT_BYTES_MAX);
    let other = other.file(0);
    let part = |bytes: &[u8], n: usize| {
        let at = starts(bytes)[n];
        bytes[at..at + frame::frame_length(&bytes[at..]).unwrap()].to_vec()
    };
    let header = bytes[..96].to_vec();
    for (name, parts, seq) in [
        ("reordered", vec![part(&bytes, 0), part(&bytes, 2), part(&bytes, 1), part(&bytes, 3)], 1),
        ("replayed", vec![part(&bytes, 0), part(&bytes, 1), part(&bytes, 1), part(&bytes, 2)], 2),
        ("removed", vec![part(&bytes, 0), part(&bytes, 2), part(&bytes, 3)], 1),
        ("spliced", vec![part(&bytes, 0), part(&bytes, 1), part(&other, 2), part(&other, 3)], 2),
    ] {
        let mut changed = header.clone();
        parts.iter().for_each(|p| changed.extend(p));
        let handle = Handle::of(0, changed);
        assert_eq!(first_wrong(&handle).expect(name).seq, seq, "{name}");
        let ledger = open(&handle);
        let mut told = Vec::new();
        ledger
            .read_from(ledger.point_of(0), |recorded| {
                told.push(recorded.seq);
                true
            })
            .unwrap();
        assert!(told.is_sorted_by(|one, next| one < next), "{name}: {told:?}");
    }
}

#[test]
fn a_first_segment_of_format_1_goes_on_in_segments_of_format_2() {
    let old = frame::SegmentHeader { version: 1, ..frame::SegmentHeader::genesis([7; 32]) };
    let (handle, receipts) = written_to(Handle::of(0, old.encode()), 0, 12, SMALL);
    assert!(storage::segments(&handle).unwrap().len() > 2);
    assert_eq!(handle.file(0)[8], 1);
    let ledger = open_small(&handle);
    assert_eq!(ledger.verify().unwrap().broken, None);
    assert_eq!(digests(&ledger).len(), receipts.len());
}

#[test]
fn tail_follow_and_query_go_across_segments() {
    let (handle, receipts) = several(40);
    let ledger = open_small(&handle);
    let seqs = |events: &[abi::control::Recorded]| events.iter().map(|e| e.seq).collect::<Vec<_>>();
    for count in [1, 5, 30, 1000] {
        let (events, end) = ledger.tail(count, 1 << 20).unwrap();
        assert_eq!(seqs(&events), (40 - (count as u64).min(40)..40).collect::<Vec<_>>());
        assert_eq!(end.seq, 40);
    }
    for from in 0..40 {
        let mut told = Vec::new();
        let mut at = ledger.point_of(from);
        while at.seq < 40 {
            at = ledger
                .read_from(at, |event| {
                    told.push(event.seq);
                    event.seq % 3 != 0
                })
                .unwrap();
        }
        assert_eq!(told, (from..40).collect::<Vec<_>>());
    }
    let query = |from_seq, limit| abi::control::LedgerQuery { from_seq, limit, ..Default::default() };
    let (mut told, mut from) = (Vec::new(), Some(0));
    while let Some(from_seq) = from {
        let found = ledger.query(&query(from_seq, Some(7)), 1 << 20).unwrap();
        assert!(found.events.len() <= 7);
        told.extend(seqs(&found.events));
        from = found.next_seq;
    }
    assert_eq!(told, (0..40).collect::<Vec<_>>());
    let few = ledger.query(&query(3, None), 1000).unwrap();
    assert!(few.next_seq.is_some_and(|next| next == 3 + few.events.len() as u64));
    let mut read = Vec::new();
    ledger.digests(40, |digest| read.push(digest)).unwrap();
    assert_eq!(read, receipts.iter().map(|r| r.digest).collect::<Vec<_>>());
}

#[test]
fn a_query_finds_by_agent_kind_source_and_time() {
    let handle = Handle::empty();
    let ledger = open_small(&handle);
    let cage = Source::Service(abi::identity::Service::Cage);
    for n in 0..20_u64 {
        let instance = format!("a{}.{n}", n % 2).parse().unwrap();
        let events = [
            Event::AgentReady { instance, boot_ms: n },
            Event::MemoryDenied { agent: "a1".parse().unwrap(), what: "w".into(), rule: "r".into() },
        ];
        ledger.append(cage, &events[..1], true).unwrap();
        ledger.append(Source::Root, &events[1..], true).unwrap();
    }
    let ask = |asked: abi::control::LedgerQuery| {
        let found = ledger.query(&asked, 1 << 20).unwrap();
        assert_eq!(found.next_seq, None);
        found.events
    };
    let query = abi::control::LedgerQuery::default;
    assert_eq!(ask(query()).len(), 40);
    let agent = |name: &str| Some(name.parse().unwrap());
    assert_eq!(ask(abi::control::LedgerQuery { agent: agent("a0"), ..query() }).len(), 10);
    assert_eq!(ask(abi::control::LedgerQuery { agent: agent("a1"), ..query() }).len(), 30);
    assert_eq!(ask(abi::control::LedgerQuery { agent: agent("a"), ..query() }).len(), 0);
    let kinds = vec!["agent_ready".to_owned()];
    assert_eq!(ask(abi::control::LedgerQuery { agent: agent("a1"), events: kinds, ..query() }).len(), 10);
    assert_eq!(ask(abi::control::LedgerQuery { source: Some("root".into()), ..query() }).len(), 20);
    let all = ask(query());
    let (since, until) = (all[15].unix_ms, all[25].unix_ms);
    let span =
        abi::control::LedgerQuery { since_unix_ms: Some(since), until_unix_ms: Some(until), ..query() };
    let expected = all.iter().filter(|e| (since..=until).contains(&e.unix_ms)).count();
    assert_eq!(ask(span).len(), expected);
    let past = abi::control::LedgerQuery { until_unix_ms: Some(all[0].unix_ms - 1), ..query() };
    let reads = handle.reads();
    assert_eq!(ask(past).len(), 0);
    assert_eq!(handle.reads(), reads, "no segment is read whose time is known to be another");
}

#[test]
fn a_query_by_agent_finds_what_it_did_to_others() {
    let ledger = open(&Handle::empty());
    let (agent, entry) = (|name: &str| name.parse::<abi::ids::AgentName>().unwrap(), Digest([1; 32]));
    let written = |owner, writer: Option<&str>| {
        let (agent, writer) = (agent(owner), writer.map(str::to_owned));
        Event::MemoryWritten { agent, key: "k".into(), entry, writer }
    };
    let forgotten = |owner, why: &str| Event::MemoryForgotten {
        agent: agent(owner),
        key: "k".into(),
        entry,
        why: why.into(),
    };
    let events = [
        written("a", None),
        written("b", Some("agent a")),
        written("b", Some("agent ab")),
        written("b", Some("operator a")),
        forgotten("b", "forgotten by agent a"),
        forgotten("b", "forgotten by operator a"),
    ];
    ledger.append(Source::Service(abi::identity::Service::Ctxgraph), &events, true).unwrap();
    let asked = abi::control::LedgerQuery { agent: Some(agent("a")), ..Default::default() };
    let found = ledger.query(&asked, 1 << 20).unwrap();
    assert_eq!(found.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [0, 1, 4]);
}

#[test]
fn a_snapshot_gives_the_bytes_it_is_of() {
    let (handle, receipts) = several(9);
    let ledger = open_small(&handle);
    let snapshot = ledger.snapshot().unwrap();
    assert_eq!((snapshot.size, snapshot.head), (9, Some(receipts[8].digest)));
    ledger.append(Source::Root, &[event(9), event(10)], true).unwrap();
    for size in 1..=11 {
        let mut tree = ::ledger::merkle::Frontier::default();
        ledger.digests(size, |digest| tree.push(&digest)).unwrap();
        assert_eq!(tree.size(), size);
        if size == snapshot.size {
            assert_eq!(tree.root(), snapshot.root);
        }
        let mut count = 0;
        for (first_seq, bytes) in ledger.segments(size).unwrap() {
            let mut read = vec![0; bytes as usize];
            assert_eq!(ledger.read_segment(first_seq, 0, &mut read).unwrap(), read.len());
            let scanned = scan::scan(
                Handle::of(0, read).open(&storage::segment_name(0)).unwrap().as_ref(),
                bytes,
                first_seq,
                None,
                |_, _, _| count += 1,
            );
            assert_eq!(scanned.unwrap().broken, None);
        }
        assert_eq!(count, size);
    }
    let frame = ledger.frame(4).unwrap().unwrap();
    assert_eq!(frame::decode(&frame).unwrap().digest, receipts[4].digest);
    assert_eq!(ledger.frame(99).unwrap(), None);
}

#[test]
fn only_the_newest_segment_is_read_before_events_are_taken() {
    let (handle, _) = several(300);
    let segments = storage::segments(&handle).unwrap();
    assert!(segments.len() > 60);
    let shown = handle.snapshot();
    let (head, _) = open::read(&shown, &setup(SMALL)).unwrap();
    assert_eq!(head.durable.chain.seq(), 300);
    assert!(shown.bytes_read() < 16 * 1024, "{} bytes", shown.bytes_read());
    // The others are read then, and a change in any of them stops effects.
    let mut bytes = handle.file(segments[20]);
    bytes[200] ^= 1;
    let ledger = open_small(&handle.with(segments[20], bytes));
    wait_until("found", || ledger.health().is_err());
    let Err(AppendError::Damaged(broken)) = ledger.append(Source::Root, &[event(1)], true) else {
        panic!("taken");
    };
    assert_eq!((broken.segment, broken.seq), (segments[20], segments[20]));
    assert_eq!(broken.lost, format!("events {}", segments[20]));
}

#[test]
fn what_the_disk_cannot_read_is_told_and_all_else_is_served() {
    let (handle, receipts) = written_to(Handle::empty(), 0, 120, 16_000);
    let segments = storage::segments(&handle).unwrap();
    assert!(segments.len() > 2);
    for segment in [segments[1], *segments.last().unwrap()] {
        let handle = handle.snapshot();
        let bytes = handle.file(segment);
        *handle.0.unreadable.lock().unwrap() = Some((segment, 4096..4097));
        let mut ends = starts(&bytes);
        ends.push(bytes.len());
        let bad: Vec<u64> = ends
            .windows(2)
            .enumerate()
            .filter(|(_, ends)| ends[0] < 8192 && ends[1] > 4096)
            .map(|(index, _)| segment + index as u64)
            .collect();
        if bad.is_empty() {
            continue; // the newest may be short
        }
        let ledger = Ledger::open(Box::new(handle.clone()), setup(16_000)).unwrap();
        wait_until("found", || ledger.health().is_err());
        let broken = ledger.verify().unwrap().broken.unwrap();
        assert_eq!((broken.segment, broken.seq), (segment, bad[0]));
        assert!(broken.why.contains("from 4096 on"), "{}", broken.why);
        let lost = match segment == segments[1] {
            true => format!("events {} to {}", bad[0], bad[bad.len() - 1]),
            false => format!("events from {} on", bad[0]),
        };
        assert_eq!(broken.lost, lost);
        let told: Vec<u64> = digests(&ledger).into_keys().collect();
        let whole: Vec<u64> = (0..receipts.len() as u64).filter(|seq| !bad.contains(seq)).collect();
        assert_eq!(told, whole);
        assert_eq!(handle.file(segment), bytes, "nothing is cut off");
    }
}

#[test]
fn who_signs_hears_of_each_new_segment() {
    let handle = Handle::empty();
    let ledger = open_small(&handle);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    ledger.on_rotated(move |snapshot| sink.lock().unwrap().push(snapshot.size));
    (0..20).for_each(|n| drop(ledger.append(Source::Root, &[event(n)], true).unwrap()));
    drop(ledger);
    let heard = heard.lock().unwrap();
    assert!(heard.len() > 3);
    let segments = storage::segments(&handle).unwrap();
    assert_eq!(heard[..], segments[1..1 + heard.len()]);
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
            Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error}"),
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
    handle.flip(0, 120);
    let broken = ledger.verify().unwrap().broken.unwrap();
    assert_eq!((broken.seq, broken.offset), (0, 96));
    assert!(matches!(ledger.append(Source::Root, &[event(9)], true), Err(AppendError::Damaged(_))));
}

#[test]
fn a_second_ledger_never_shares_the_id_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let id = |name: &str| {
        let files = storage::RealDirectory::open_or_create(&directory.path().join(name)).unwrap();
        let ledger = Ledger::open(Box::new(files), setup(SMALL)).unwrap();
        (0..10).for_each(|n| drop(ledger.append(Source::Root, &[event(n)], true).unwrap()));
        ledger.snapshot().unwrap().ledger_id
    };
    let first = id("a");
    assert_eq!(first, id("a"), "an existing ledger is opened, not made again");
    assert_ne!(first, id("b"));
    let files = storage::RealDirectory::open_or_create(&directory.path().join("a")).unwrap();
    assert!(storage::segments(&files).unwrap().len() > 3);
    assert_eq!(Ledger::open(Box::new(files), setup(SMALL)).unwrap().verify().unwrap().events, 20);
}

/// What this thread has used of a processor: other programs on the machine do not count.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// How long an append takes without its fsync: `cargo test --release -p ctxgraph appends_per -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn appends_per_second_without_fsync() {
    let handle = Handle::slow(20);
    let ledger = open(&handle);
    let started = cpu();
    let count = 5_000;
    for n in 0..count {
        ledger.append(Source::Root, &[event(n % 4)], false).unwrap();
    }
    println!("{:?} an append", (cpu() - started) / count as u32);
}

/// How fast a ledger is verified; see above.
#[test]
#[ignore = "a measurement"]
fn megabytes_verified_per_second() {
    let handle = Handle::empty();
    let ledger = open(&handle);
    for n in 0..60_000 {
        let entry = Digest([n as u8; 32]);
        let written = Event::MemoryWritten {
            agent: "researcher".parse().unwrap(),
            key: format!("notes/{n}"),
            entry,
            writer: None,
        };
        ledger.append(Source::Root, &[written], false).unwrap();
    }
    ledger.append(Source::Root, &[event(0)], true).unwrap();
    let started = cpu();
    let verified = ledger.verify().unwrap();
    let seconds = (cpu() - started).as_secs_f64();
    println!(
        "{} bytes an event, {:.0} MB/s",
        verified.bytes / verified.events,
        verified.bytes as f64 / 1e6 / seconds
    );
}
