//! Proofs of one event and of an older ledger: taken as they are made, refused when anything in them is another.

mod book;

use abi::control::{Consistency, Proof};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use book::Book;
use ledger::keys::Signer;
use ledger::proof::Pass;
use ledger::statement::{check_consistency, check_inclusion, consistency, inclusion};
use serde_json::Value;

fn signer() -> Signer {
    Signer::from_seed(&[1; 32]).unwrap()
}

fn inclusion_of(book: &Book, seq: u64) -> Proof {
    let checkpoint = book.checkpoint();
    let mut pass = Pass::inclusion(seq, checkpoint.size).unwrap();
    book.digests().iter().for_each(|digest| pass.push(digest));
    let frames: Vec<_> =
        book.pieces().into_iter().filter(|piece| ledger::frame::decode(piece).is_ok()).collect();
    let signature = ledger::receipt::sign(&signer(), &checkpoint.root);
    let note = checkpoint.sign(&signer());
    inclusion(&note, checkpoint.size, seq, &frames[seq as usize], pass.finish().unwrap(), &signature).unwrap()
}

fn consistency_of(book: &Book, old: u64) -> Consistency {
    let checkpoint = book.checkpoint();
    let mut pass = Pass::consistency(old, checkpoint.size).unwrap();
    book.digests().iter().for_each(|digest| pass.push(digest));
    consistency(&checkpoint.sign(&signer()), old, &pass.finish().unwrap())
}

/// Every text that differs from `text` by one character's lowest bits.
fn changes(text: &str) -> impl Iterator<Item = String> + '_ {
    (0..text.len()).filter(|at| text.as_bytes()[*at].is_ascii()).flat_map(move |at| {
        (0..7).filter_map(move |bit| {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] ^= 1 << bit;
            String::from_utf8(bytes).ok()
        })
    })
}

#[test]
fn every_event_is_proved_and_every_older_ledger() {
    let book = Book::new(7, &[5, 3, 1, 4]);
    for seq in 0..13 {
        let (frame, checkpoint) = check_inclusion(&inclusion_of(&book, seq), &signer().public()).unwrap();
        assert_eq!((frame.seq, checkpoint), (seq, book.checkpoint()));
    }
    for old in 1..=13 {
        let since = book.cut(old).checkpoint();
        let proof = consistency_of(&book, old);
        assert_eq!(check_consistency(&proof, &since, &signer().public()), Ok(book.checkpoint()));
        let rewritten = book.rewritten(old - 1).cut(old).checkpoint();
        assert!(check_consistency(&proof, &rewritten, &signer().public()).is_err());
        assert!(check_consistency(&proof, &book.cut(old - 1).checkpoint(), &signer().public()).is_err());
        let other = Book::new(8, &[5, 3, 1, 4]).cut(old).checkpoint();
        assert!(check_consistency(&proof, &other, &signer().public()).is_err());
    }
}

#[test]
fn no_character_of_a_proof_of_inclusion_can_be_another() {
    let made = serde_json::to_string(&inclusion_of(&Book::new(7, &[3, 2]), 3)).unwrap();
    let right: Proof = serde_json::from_str(&made).unwrap();
    assert!(check_inclusion(&right, &signer().public()).is_ok());
    let mut tried = 0;
    for text in changes(&made) {
        let Ok(proof) = serde_json::from_str::<Proof>(&text) else { continue };
        if proof != right {
            tried += 1;
            assert!(check_inclusion(&proof, &signer().public()).is_err(), "{text}");
        }
    }
    assert!(tried > 5000, "{tried}");
}

#[test]
fn no_character_of_a_proof_of_consistency_can_be_another() {
    let book = Book::new(7, &[3, 2]);
    let since = book.cut(3).checkpoint();
    let made = serde_json::to_string(&consistency_of(&book, 3)).unwrap();
    let right: Consistency = serde_json::from_str(&made).unwrap();
    assert!(check_consistency(&right, &since, &signer().public()).is_ok());
    for text in changes(&made) {
        let Ok(proof) = serde_json::from_str::<Consistency>(&text) else { continue };
        if proof != right {
            assert!(check_consistency(&proof, &since, &signer().public()).is_err(), "{text}");
        }
    }
}

#[test]
fn parts_of_two_proofs_do_not_make_one() {
    let book = Book::new(7, &[5, 3, 1, 4]);
    let (right, other) = (inclusion_of(&book, 3), inclusion_of(&book, 4));
    let (shorter, foreign) = (inclusion_of(&book.cut(12), 3), inclusion_of(&Book::new(8, &[5, 3, 1, 4]), 3));
    let field = |proof: &Proof, name: &str| serde_json::to_value(proof).unwrap()[name].clone();
    for from in [&other, &shorter, &foreign] {
        for name in ["seq", "frame", "checkpoint", "path", "receipt"] {
            let mut mixed: Value = serde_json::to_value(&right).unwrap();
            mixed[name] = field(from, name);
            let mixed: Proof = serde_json::from_value(mixed).unwrap();
            if mixed != right {
                assert!(check_inclusion(&mixed, &signer().public()).is_err(), "{name}");
            }
        }
    }
    let longer = STANDARD.encode([STANDARD.decode(&right.frame).unwrap(), vec![0]].concat());
    assert!(check_inclusion(&Proof { frame: longer, ..right.clone() }, &signer().public()).is_err());
    let other_key = Signer::from_seed(&[2; 32]).unwrap().public();
    assert!(check_inclusion(&right, &other_key).is_err());
}
