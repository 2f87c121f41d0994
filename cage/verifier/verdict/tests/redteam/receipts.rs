//! Attacks on what was written down: frames of the ledger changed, cut, doubled, put in another order or made anew; a receipt of one patch
//! shown for another.

use crate::house::{Random, digest};
use abi::ids::Digest;
use ledger::chain::Chain;
use ledger::frame::{self, SegmentHeader, Source};
use verdict::patch::{Claimed, ClaimedChange, ClaimedContent, Protect, Recorded, check, reminted};
use verdict::tree::{Entry, Tree};

/// A ledger of one segment: its header, its frames, its head.
fn book(random: &mut Random) -> (Vec<u8>, Vec<Vec<u8>>, Digest) {
    let header = SegmentHeader::genesis(random.bytes());
    let mut chain = Chain::begin(&header).unwrap();
    let frames = (0..3 + random.below(8) as u64).map(|seq| {
        let mut out = Vec::new();
        let body = format!("{{\"tool_decided\":{{\"call\":{seq},\"verdict\":\"deny\"}}}}");
        chain.append(seq, 1000 + seq, Source::Root, body.as_bytes(), &mut out);
        out
    });
    let frames = frames.collect();
    (header.encode(), frames, chain.head().unwrap())
}

/// Reads it as an auditor does, who holds the head. `breached`: one who believes each frame without asking for its digest.
fn holds(bytes: &[u8], head: &Digest, breached: bool) -> bool {
    let Ok(header) = SegmentHeader::decode(bytes) else { return false };
    let Ok(mut chain) = Chain::begin(&header) else { return false };
    let mut rest = &bytes[SegmentHeader::length(bytes).unwrap()..];
    while !rest.is_empty() {
        let Ok(length) = frame::frame_length(rest) else { return false };
        match frame::decode(rest) {
            Ok(frame) if chain.push(&frame).is_ok() => {}
            _ if breached && rest.len() >= length => {}
            _ => return false,
        }
        rest = &rest[length..];
    }
    breached || chain.head() == Some(*head)
}

pub fn tampered(random: &mut Random, breached: bool) -> Result<(), String> {
    let (header, frames, head) = book(random);
    let whole = [header.clone(), frames.concat()].concat();
    if !holds(&whole, &head, breached) {
        return Err("the untouched ledger does not hold".into());
    }
    for _ in 0..12 {
        let mut pieces = frames.clone();
        let at = random.below(pieces.len());
        let other = random.below(pieces.len());
        let mut bytes = match random.below(7) {
            0 => {
                let bit = random.below(pieces[at].len() * 8);
                pieces[at][bit / 8] ^= 1 << (bit % 8);
                pieces.concat()
            }
            1 => {
                pieces.remove(at);
                pieces.concat()
            }
            2 => {
                pieces.swap(at, other);
                pieces.concat()
            }
            3 => {
                let copy = pieces[other].clone();
                pieces.insert(at, copy);
                pieces.concat()
            }
            4 => {
                let whole = pieces.concat();
                whole[..random.below(whole.len())].to_vec()
            }
            // The whole ledger made anew from a verdict that was another, by someone who can do all but sign its head.
            5 => {
                let mut chain = Chain::begin(&SegmentHeader::decode(&header).unwrap()).unwrap();
                let mut out = Vec::new();
                for (seq, piece) in (0u64..).zip(&pieces) {
                    let body = String::from_utf8(frame::decode(piece).unwrap().body).unwrap();
                    let body = if seq == at as u64 { body.replace("deny", "allow") } else { body };
                    chain.append(seq, 1000 + seq, Source::Root, body.as_bytes(), &mut out);
                }
                out
            }
            _ => book(random).1.concat(),
        };
        bytes.splice(0..0, header.iter().copied());
        if bytes != whole && holds(&bytes, &head, breached) {
            return Err("a ledger that was tampered with holds".into());
        }
    }
    replayed(random)
}

fn replayed(random: &mut Random) -> Result<(), String> {
    let file =
        |text: &str| Entry::File { is_executable: false, sha256: digest(text), bytes: text.len() as u64 };
    let base = Tree::new([("a".to_owned(), file("old"))]).unwrap();
    let set = |text: &str| {
        let content = ClaimedContent::File { sha256: digest(text), bytes: text.len() as u64 };
        let changes = vec![ClaimedChange { path: "a".into(), mode: 0o644, content }];
        check(&base, Claimed { changes }, &Protect::default()).unwrap()
    };
    let verified = set("good");
    let mut recorded =
        Recorded { base: verified.base(), patch: verified.digest(), result: verified.result() };
    let other = set(&format!("evil {}", random.next()));
    match random.below(3) {
        0 => {}
        1 => recorded.result = other.result(),
        _ => recorded.patch = other.digest(),
    }
    match reminted(other, &recorded) {
        Ok(_) => Err("the receipt of one patch counted for another".into()),
        Err(_) => Ok(()),
    }
}
