//! Exports that somebody changed: each change is found, at the first place that is wrong.

mod book;

use abi::ids::Digest;
use book::Book;
use ledger::checkpoint::Checkpoint;
use ledger::export::{Checked, ExportError, Opened, Place, can_go_on};
use ledger::frame::{self, Draft, Frame, SegmentHeader};
use ledger::keys::Signer;

fn signer() -> Signer {
    Signer::from_seed(&[1; 32]).unwrap()
}

fn check(export: &[u8]) -> Result<Checked, ExportError> {
    check_since(export, None)
}

fn check_since(export: &[u8], since: Option<&Checkpoint>) -> Result<Checked, ExportError> {
    Opened::open(export, &signer().public())?.check(since, |_, _| {})
}

/// Where an export that must not hold is wrong.
fn place_of(export: &[u8]) -> Place {
    check(export).expect_err("found").place().expect("with its place")
}

fn book() -> Book {
    Book::new(7, &[5, 3, 1, 4])
}

#[test]
fn an_untouched_export_holds_and_hands_out_every_event() {
    let export = book().export(&signer());
    let mut seqs = Vec::new();
    let opened = Opened::open(export.as_slice(), &signer().public()).unwrap();
    let checked = opened.check(None, |frame, bytes| {
        assert_eq!(ledger::frame::decode(bytes).as_ref(), Ok(frame));
        seqs.push(frame.seq);
    });
    let checked = checked.unwrap();
    assert_eq!(seqs, (0..13).collect::<Vec<_>>());
    assert_eq!((checked.segments, checked.bytes), (4, export.len() as u64));
    assert_eq!(checked.checkpoint, book().checkpoint());
    for size in 0..=13 {
        assert!(check(&book().cut(size).export(&signer())).is_ok(), "{size} events");
        assert!(check_since(&export, Some(&book().cut(size).checkpoint())).is_ok(), "since {size}");
    }
}

#[test]
fn pieces_of_any_size_are_read_alike() {
    struct Pieces<'a>(&'a [u8], usize);
    impl std::io::Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let count = self.1.min(self.0.len()).min(out.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    let export = Book::new(7, &[900, 900]).export(&signer());
    assert!(export.len() > 256 * 1024, "more than a window");
    for piece in [700, 200_000] {
        let opened = Opened::open(Pieces(&export, piece), &signer().public()).unwrap();
        assert!(opened.check(None, |_, _| {}).is_ok());
    }
}

#[test]
fn every_flipped_bit_is_found_in_its_frame() {
    let export = book().export(&signer());
    let places = book().places(&export);
    // `make soak` flips all of a byte's bits; else another one in each byte.
    let all = std::env::var_os("NULLBOX_EVERY_BIT").is_some();
    for at in 0..export.len() {
        for bit in (0..8).filter(|bit| all || at % 8 == *bit) {
            let mut changed = export.clone();
            changed[at] ^= 1 << bit;
            let found = place_of(&changed);
            let due = places.iter().rev().find(|place| place.offset <= at as u64).unwrap();
            assert_eq!((found.offset, found.seq), (due.offset, due.seq), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn every_cut_is_found_where_it_is() {
    let export = book().export(&signer());
    let places = book().places(&export);
    for length in 0..export.len() {
        let found = place_of(&export[..length]);
        let due = places.iter().rev().find(|place| place.offset <= length as u64).unwrap();
        assert_eq!((found.offset, found.seq), (due.offset, due.seq), "cut at {length}");
    }
    let longer = [export.as_slice(), &[0]].concat();
    assert_eq!(place_of(&longer).offset, export.len() as u64);
}

#[test]
fn a_place_names_segment_and_offset_in_it() {
    let export = book().export(&signer());
    let pieces = book().pieces();
    let head = export.len() - pieces.concat().len();
    // The second frame of the second segment: event 6.
    let before = head + pieces[..8].iter().map(Vec::len).sum::<usize>();
    let mut changed = export.clone();
    changed[before + 70] ^= 1;
    let due = Place {
        offset: before as u64,
        segment: 5,
        segment_offset: (pieces[6].len() + pieces[7].len()) as u64,
        seq: 6,
    };
    assert_eq!(place_of(&changed), due);
}

#[test]
fn pieces_in_another_order_doubled_or_missing_are_found_at_the_first() {
    let pieces = book().pieces();
    let head = ledger::export::head(&book().checkpoint(), &signer()).into_bytes();
    let made = |pieces: &[Vec<u8>]| [head.clone(), pieces.concat()].concat();
    let offset = |count: usize| (head.len() + pieces[..count].iter().map(Vec::len).sum::<usize>()) as u64;
    assert!(check(&made(&pieces)).is_ok());
    for first in 0..pieces.len() {
        let mut missing = pieces.clone();
        missing.remove(first);
        assert_eq!(place_of(&made(&missing)).offset, offset(first), "without {first}");
        let mut doubled = pieces.clone();
        doubled.insert(first, pieces[first].clone());
        assert_eq!(place_of(&made(&doubled)).offset, offset(first + 1), "{first} twice");
        for second in first + 1..pieces.len() {
            let mut swapped = pieces.clone();
            swapped.swap(first, second);
            assert_eq!(place_of(&made(&swapped)).offset, offset(first), "{first} and {second}");
            let mut replayed = pieces.clone();
            replayed.insert(second + 1, pieces[first].clone());
            assert_eq!(place_of(&made(&replayed)).offset, offset(second + 1), "{first} after {second}");
        }
    }
}

#[test]
fn segments_in_another_order_are_found_at_the_first() {
    let pieces = book().pieces();
    let head = ledger::export::head(&book().checkpoint(), &signer()).into_bytes();
    let mut segments: Vec<Vec<u8>> = Vec::new();
    for piece in pieces {
        match (ledger::frame::begins_segment(&piece), segments.last_mut()) {
            (false, Some(segment)) => segment.extend(piece),
            _ => segments.push(piece),
        }
    }
    assert_eq!(segments.len(), 4);
    for first in 0..4 {
        for second in first + 1..4 {
            let mut swapped = segments.clone();
            swapped.swap(first, second);
            let due = head.len() + segments[..first].iter().map(Vec::len).sum::<usize>();
            assert_eq!(place_of(&[head.clone(), swapped.concat()].concat()).offset, due as u64);
        }
    }
}

#[test]
fn two_ledgers_spliced_are_found_at_the_seam() {
    let (a, b) = (book().pieces(), Book::new(8, &[5, 3, 1, 4]).pieces());
    let head = ledger::export::head(&book().checkpoint(), &signer()).into_bytes();
    for seam in 0..a.len() {
        let spliced = [head.clone(), a[..seam].concat(), b[seam..].concat()].concat();
        let due = head.len() + a[..seam].iter().map(Vec::len).sum::<usize>();
        assert_eq!(place_of(&spliced).offset, due as u64, "seam at {seam}");
    }
}

#[test]
fn a_ledger_that_was_set_back_or_rewritten_is_found_by_an_old_checkpoint() {
    let set_back = book().cut(9).export(&signer());
    assert!(check(&set_back).is_ok(), "nothing in it is wrong");
    for size in 10..=13 {
        let error = check_since(&set_back, Some(&book().cut(size).checkpoint())).unwrap_err();
        assert!(matches!(&error, ExportError::Since(why) if why.contains("this one 9")), "{error}");
    }
    // Rewritten from an event on by somebody who has the key.
    for from in 0..13 {
        let rewritten = book().rewritten(from).export(&signer());
        assert!(check(&rewritten).is_ok(), "nothing in it is wrong");
        for size in 1..=13 {
            let outcome = check_since(&rewritten, Some(&book().cut(size).checkpoint()));
            assert_eq!(outcome.is_err(), size > from, "rewritten from {from}, checkpoint of {size}");
        }
    }
    let twin = book().rewritten(3).checkpoint();
    assert!(can_go_on(&twin, &book().checkpoint()).is_err(), "of the same size, and another");
    assert!(can_go_on(&book().checkpoint(), &book().checkpoint()).is_ok());
    let other = Book::new(8, &[5, 3, 1, 4]).cut(2).checkpoint();
    assert!(check_since(&book().export(&signer()), Some(&other)).is_err(), "another ledger's checkpoint");
}

#[test]
fn a_rewritten_ledger_does_not_get_through_without_the_key() {
    let head = ledger::export::head(&book().checkpoint(), &signer()).into_bytes();
    for from in 0..13 {
        let forged = [head.clone(), book().rewritten(from).pieces().concat()].concat();
        if from == 12 {
            // The checkpoint has the last event's digest: with that in its place the tree is the signed one.
            assert_eq!(place_of(&forged).seq, 12);
            continue;
        }
        assert_eq!(place_of(&forged).seq, 0, "no event before is known to be right");
        for size in 0..=from {
            let since = book().cut(size).checkpoint();
            let place = check_since(&forged, Some(&since)).unwrap_err().place().unwrap();
            assert_eq!(place.seq, size, "all before the older checkpoint are");
        }
    }
}

/// The frame with another body and the digest of that; none of a header.
fn made_anew(piece: &[u8]) -> Option<Vec<u8>> {
    let frame = frame::decode(piece).ok()?;
    let body = String::from_utf8(frame.body).unwrap().replace("call_made", "call_none");
    let Frame { seq, batch, unix_ms, source, previous, .. } = frame;
    let mut bytes = Vec::new();
    Draft { seq, batch, unix_ms, source, previous, body: body.as_bytes() }.encode(&mut bytes);
    Some(bytes)
}

#[test]
fn an_event_made_anew_with_its_digest_is_the_place() {
    let pieces = book().pieces();
    let head = ledger::export::head(&book().checkpoint(), &signer()).into_bytes();
    for at in 0..pieces.len() {
        let Some(forged) = made_anew(&pieces[at]) else { continue };
        let mut changed = pieces.clone();
        changed[at] = forged;
        let error = check(&[head.clone(), changed.concat()].concat()).unwrap_err();
        let due = head.len() + pieces[..at].iter().map(Vec::len).sum::<usize>();
        let seq = frame::decode(&pieces[at]).unwrap().seq;
        let place = error.place().unwrap();
        assert_eq!((place.offset, place.seq), (due as u64, seq), "{error}");
        assert!(error.to_string().contains("all others are those that were signed"), "{error}");
    }
}

#[test]
fn of_several_events_made_anew_the_last_is_the_place() {
    let pieces = book().pieces();
    let head = ledger::export::head(&book().checkpoint(), &signer()).into_bytes();
    for from in 0..12 {
        let anew = book().rewritten(from).pieces();
        for at in 0..pieces.len() - 1 {
            let Ok(last) = frame::decode(&pieces[at]) else { continue };
            if last.seq <= from {
                continue;
            }
            // All that was made anew holds together; the rest is what was signed.
            let forged = [head.clone(), anew[..=at].concat(), pieces[at + 1..].concat()].concat();
            let error = check(&forged).unwrap_err();
            assert_eq!(error.place().unwrap().seq, last.seq, "{from} to {}: {error}", last.seq);
            assert!(error.to_string().contains("and some before it"), "{error}");
        }
    }
}

#[test]
fn a_changed_version_of_the_first_header_is_found_there() {
    let mut pieces = book().pieces();
    let header = SegmentHeader { version: 1, ..SegmentHeader::genesis([7; 32]) };
    pieces[0] = header.encode();
    let head = ledger::export::head(&book().checkpoint(), &signer()).into_bytes();
    assert_eq!(place_of(&[head.clone(), pieces.concat()].concat()).offset, head.len() as u64);
}

#[test]
fn a_signature_that_was_put_into_the_first_line_is_found() {
    let export = String::from_utf8_lossy(&book().export(&signer())).into_owned();
    let (line, _) = export.split_once('\n').unwrap();
    let changed = line.replacen("\\n\",\"receipts", "\\n— somebody AAAAAAAA\\n\",\"receipts", 1);
    assert_ne!(changed, line);
    let body = book().pieces().concat();
    let error = check(&[changed.as_bytes(), b"\n", &body].concat()).unwrap_err();
    assert!(error.to_string().contains("not one signature"), "{error}");
}

#[test]
fn forged_checkpoints_are_refused() {
    let body = book().pieces().concat();
    let with = |checkpoint: &Checkpoint, signer: &Signer| {
        check(&[ledger::export::head(checkpoint, signer).into_bytes(), body.clone()].concat())
    };
    let right = book().checkpoint();
    assert!(with(&right, &signer()).is_ok());
    let other = Signer::from_seed(&[2; 32]).unwrap();
    assert!(matches!(with(&right, &other), Err(ExportError::Checkpoint(_))), "another key");
    for wrong in [
        Checkpoint { size: 12, ..right.clone() },
        Checkpoint { size: 14, ..right.clone() },
        Checkpoint { root: Digest([9; 32]), ..right.clone() },
        Checkpoint { head: Digest([9; 32]), ..right.clone() },
        Checkpoint { ledger_id: [9; 32], ..right.clone() },
    ] {
        assert!(matches!(with(&wrong, &signer()), Err(ExportError::Wrong { .. })), "{wrong:?}");
    }
}

#[test]
fn random_changes_of_many_bytes_are_found() {
    let given = std::env::var("NULLBOX_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed: u64 = given.unwrap_or_else(|| u64::from(now.subsec_nanos()));
    println!("NULLBOX_TEST_SEED={seed}");
    let mut state = seed | 1;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let export = book().export(&signer());
    for round in 0..2000 {
        let mut changed = export.clone();
        let (from, to, length) = (random(export.len()), random(export.len()), random(200) + 1);
        let piece = from..(from + length).min(export.len());
        match round % 3 {
            0 => drop(changed.drain(piece)),
            1 => drop(changed.splice(to..to, export[piece].iter().copied())),
            _ => {
                for _ in 0..random(8) + 1 {
                    let at = random(changed.len());
                    changed[at] = changed[at].wrapping_add(random(255) as u8 + 1);
                }
            }
        }
        // A byte that was changed twice may be what it was.
        assert!(changed == export || check(&changed).is_err(), "round {round}");
    }
}
