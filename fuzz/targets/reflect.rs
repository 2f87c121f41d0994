//! A host's answer, in which a secret is looked for.
//!
//! Looks for: a panic, a verdict or bytes that depend on how they came in pieces, bytes that are changed, a secret that is overlooked,
//! one that is found where it is not, and a part of a match that left.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use egress::broker::reflect::{Needle, Scan};
use libfuzzer_sys::fuzz_target;

/// Begins as it ends, so that matches overlap.
const SECRET: &[u8] = b"ab/ab+ab?ab";

fuzz_target!(|input: &[u8]| {
    let Some((piece, rest)) = input.split_first() else { return };
    // The forms cannot be guessed by chance: bytes from 0xe0 on stand for them, whole or cut.
    let forms = forms();
    let mut bytes = Vec::new();
    for byte in rest {
        match usize::from(*byte).checked_sub(0xe0).map(|n| (&forms[n % forms.len()], n / forms.len())) {
            None => bytes.push(*byte),
            Some((form, 0)) => bytes.extend(form),
            Some((form, cut)) => bytes.extend(&form[..form.len() - cut.min(form.len())]),
        }
    }
    let run = |size: usize| {
        let (mut scan, mut out) = (Scan::new(Needle::new(SECRET)), Vec::new());
        let found = bytes.chunks(size.max(1)).any(|piece| scan.push(piece, &mut out).is_err());
        if !found {
            scan.finish(&mut out);
        }
        (found, out)
    };
    let (found, out) = run(bytes.len());
    let (again, in_pieces) = run(usize::from(*piece));
    assert_eq!(found, again, "in pieces of {piece}");
    assert!(bytes.starts_with(&out) && bytes.starts_with(&in_pieces));
    assert!(found || (out == bytes && in_pieces == bytes));
    let lower = bytes.to_ascii_lowercase();
    let is_there = forms.iter().enumerate().any(|(n, form)| {
        let text = if n == 1 { &lower } else { &bytes };
        text.windows(form.len()).any(|window| window == form)
    });
    assert!(found || !is_there, "overlooked");
    let escapes = bytes.iter().any(|byte| b"%\\&".contains(byte));
    assert!(!found || is_there || escapes, "found where it is not");
    assert!(!in_pieces.windows(SECRET.len()).any(|window| window == SECRET));
});

/// As it is, in hex, in base64 at each alignment: the characters that only it decides.
fn forms() -> Vec<Vec<u8>> {
    let mut forms =
        vec![SECRET.to_vec(), SECRET.iter().flat_map(|b| format!("{b:02x}").into_bytes()).collect()];
    for before in 0..3 {
        let padded = [&[0; 2][..before], SECRET].concat();
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let text = engine.encode(&padded).into_bytes();
            forms.push(text[(before * 8).div_ceil(6)..padded.len() * 8 / 6].to_vec());
        }
    }
    forms
}
