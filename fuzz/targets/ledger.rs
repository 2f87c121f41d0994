//! Exports, checkpoints and receipts of a ledger: raw bytes, or edits of the one that was signed.
//!
//! Looks for: a panic, and anything that holds and is not what was signed.

#![no_main]

use ledger::checkpoint::Checkpoint;
use ledger::export::Opened;
use ledger::keys::Signer;
use ledger::proof::Pass;
use ledger::receipt::{self, Standing};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

#[path = "../../ctxgraph/ledger/tests/book/mod.rs"]
mod book;

/// The only things that the key ever signed.
struct Signed {
    signer: Signer,
    checkpoint: Checkpoint,
    export: Vec<u8>,
    receipt: Vec<u8>,
}

static SIGNED: LazyLock<Signed> = LazyLock::new(|| {
    let signer = Signer::from_seed(&[1; 32]).expect("a seed");
    let book = book::Book::new(7, &[5, 3, 1, 4]);
    let checkpoint = book.checkpoint();
    let mut pass = Pass::inclusion(3, 13).expect("an event");
    book.digests().iter().for_each(|digest| pass.push(digest));
    let standing = Standing { size: 13, seq: 3, path: pass.finish().expect("all events") };
    let receipt = receipt::encode(&standing, &receipt::sign(&signer, &checkpoint.root)).expect("a receipt");
    Signed { export: book.export(&signer), checkpoint, receipt, signer }
});

/// Edits: each is an offset, what to cut there and what to put there.
fn edited(bytes: &[u8], mut edits: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while let [high, low, cut, put, rest @ ..] = edits {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % (bytes.len() + 1);
        let end = (at + usize::from(*cut)).min(bytes.len());
        let (new, after) = rest.split_at(usize::from(*put).min(rest.len()));
        bytes.splice(at..end, new.iter().copied());
        edits = after;
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    let signed = &*SIGNED;
    let key = signed.signer.public();
    let of = |whole: &[u8]| if kind & 1 == 0 { rest.to_vec() } else { edited(whole, rest) };
    match kind >> 1 & 3 {
        0 => {
            let bytes = of(signed.checkpoint.sign(&signed.signer).as_bytes());
            if let Ok(found) = Checkpoint::open(&String::from_utf8_lossy(&bytes), &key) {
                assert_eq!(found, signed.checkpoint);
            }
        }
        1 => {
            let bytes = of(&signed.receipt);
            for frame in book::Book::new(7, &[5, 3, 1, 4]).digests() {
                if let Ok((standing, root)) = receipt::open(&bytes, &key, &frame) {
                    assert_eq!((standing.seq, root), (3, signed.checkpoint.root));
                }
            }
        }
        _ => {
            let bytes = of(&signed.export);
            let checked = Opened::open(bytes.as_slice(), &key).and_then(|opened| opened.check(None, |_, _| {}));
            assert!(checked.is_err() || bytes == signed.export);
        }
    }
});
