//! Attestations: taken as they are made, here and by PyPI's securesystemslib, and refused when anything in them is another.

mod book;

use abi::control::PatchFacts;
use abi::ids::Digest;
use abi::ledger::Receipt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use book::Book;
use ledger::attestation::{self, AttestationError, Predicate};
use ledger::keys::{PublicKey, Signer};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

fn signer(seed: u8) -> Signer {
    Signer::from_seed(&[seed; 32]).unwrap()
}

fn key() -> PublicKey {
    signer(1).public()
}

fn facts() -> PatchFacts {
    PatchFacts {
        task: "t12".parse().unwrap(),
        agent: "fixer".parse().unwrap(),
        verifier: "t12-v1.3".parse().unwrap(),
        base: Digest([1; 32]),
        patch: Digest([2; 32]),
        result: Digest([3; 32]),
        command: vec!["cargo".into(), "test".into(), "\u{e4} \"quoted\"".into()],
        rootfs: Digest([4; 32]),
        kernel: Digest([5; 32]),
        init: Digest([6; 32]),
        protect: vec!["/work/tests/**".parse().unwrap()],
        source: Some("https://example.org/repo at 1234".into()),
        output: Digest([7; 32]),
        wall_ms: 81_000,
    }
}

fn predicate(seq: u64) -> Predicate {
    let note = Book::new(7, &[9, 12]).checkpoint().sign(&signer(1));
    Predicate { facts: facts(), receipt: Receipt { seq, digest: Digest([8; 32]) }, checkpoint: note }
}

fn envelope() -> String {
    attestation::sign(&signer(1), predicate(20)).unwrap()
}

/// The envelope with another payload, signed again by whom it says.
fn with_payload(by: &Signer, payload: &str) -> String {
    let head = format!(
        "DSSEv1 {} {} {} ",
        attestation::PAYLOAD_TYPE.len(),
        attestation::PAYLOAD_TYPE,
        payload.len()
    );
    let sig = STANDARD.encode(by.sign(format!("{head}{payload}").as_bytes()));
    json!({
        "payload": STANDARD.encode(payload), "payloadType": attestation::PAYLOAD_TYPE,
        "signatures": [{ "keyid": by.public().to_string(), "sig": sig }],
    })
    .to_string()
}

fn payload(envelope: &str) -> String {
    let envelope: Value = serde_json::from_str(envelope).unwrap();
    String::from_utf8(STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn an_attestation_says_what_was_verified_and_where_the_ledger_has_it() {
    let found = attestation::open(&envelope(), &key()).unwrap();
    assert_eq!((found.facts, found.receipt.seq, found.checkpoint.size), (facts(), 20, 21));
    let statement: Value = serde_json::from_str(&payload(&envelope())).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(
        statement["subject"][0],
        json!({ "name": "nullbox-tree-1", "digest": { "sha256": "03".repeat(32) } })
    );
    assert_eq!(
        statement["subject"][1],
        json!({ "name": "nullbox-patch-1", "digest": { "sha256": "02".repeat(32) } })
    );
}

#[test]
fn one_with_a_changed_bit_is_refused() {
    let envelope = envelope();
    let mut refused = 0;
    for at in 0..envelope.len() {
        for bit in 0..7 {
            let mut bytes = envelope.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            // What no reader can tell apart: blanks and escapes that JSON has in other places are none in ours.
            assert!(attestation::open(&text, &key()).is_err(), "bit {bit} of byte {at}: {text}");
            refused += 1;
        }
    }
    assert!(refused > 6 * envelope.len());
}

#[test]
fn one_that_says_other_things_to_others_is_refused_though_it_is_signed() {
    let good = payload(&envelope());
    assert!(attestation::open(&with_payload(&signer(1), &good), &key()).is_ok());
    let hex = "03".repeat(32);
    for (what, bad) in [
        ("another subject", good.replacen(&hex, &"0a".repeat(32), 1)),
        ("a field more", good.replacen("\"_type\"", "\"note\":\"done\",\"_type\"", 1)),
        ("another type", good.replacen("verified-patch/v1", "verified-patch/v2", 1)),
        ("another statement", good.replacen("Statement/v1", "Statement/v0.1", 1)),
        ("another order", good.replacen("\"name\":\"nullbox-tree-1\",", "", 1)),
        ("a blank", good.replacen(":{", ": {", 1)),
        ("a key twice", good.replacen("\"wall_ms\"", "\"wall_ms\":1,\"wall_ms\"", 1)),
    ] {
        assert_ne!(good, bad, "{what}");
        let error = attestation::open(&with_payload(&signer(1), &bad), &key()).unwrap_err();
        assert!(matches!(error, AttestationError::Statement(_)), "{what}: {error}");
    }
}

#[test]
fn one_of_another_key_or_of_no_ledger_is_refused() {
    assert!(matches!(
        attestation::open(&envelope(), &signer(2).public()),
        Err(AttestationError::OtherKey(_))
    ));
    let named = envelope().replace(&signer(1).public().to_string(), &signer(2).public().to_string());
    assert!(matches!(attestation::open(&named, &signer(2).public()), Err(AttestationError::Forged)));
    // Signed by a key of another's, with this node's checkpoint in it.
    let stolen = attestation::sign(&signer(2), predicate(20)).unwrap();
    assert!(matches!(attestation::open(&stolen, &signer(2).public()), Err(AttestationError::Checkpoint(_))));
    let beyond = attestation::sign(&signer(1), predicate(21)).unwrap();
    assert!(matches!(
        attestation::open(&beyond, &key()),
        Err(AttestationError::Receipt { size: 21, seq: 21 })
    ));
    let mut untyped: Value = serde_json::from_str(&envelope()).unwrap();
    untyped["payloadType"] = "application/json".into();
    assert!(matches!(attestation::open(&untyped.to_string(), &key()), Err(AttestationError::PayloadType(_))));
    let mut unsigned: Value = serde_json::from_str(&envelope()).unwrap();
    unsigned["signatures"] = json!([]);
    assert!(matches!(attestation::open(&unsigned.to_string(), &key()), Err(AttestationError::OtherKey(_))));
    let long = format!("{}{}", envelope(), " ".repeat(abi::limits::ATTESTATION_BYTES_MAX));
    assert!(matches!(attestation::open(&long, &key()), Err(AttestationError::Envelope(_))));
    for bad in ["", "{}", "[]", "null", "{\"payload\":\"\"}"] {
        assert!(attestation::open(bad, &key()).is_err(), "{bad}");
    }
}

#[test]
fn a_stranger_takes_our_envelope_and_no_altered_one() {
    let Some(python) = std::env::var_os("NULLBOX_SCITT_PYTHON") else {
        let how = "set NULLBOX_SCITT_PYTHON to what scripts/scitt.sh prints, as `make unit` does";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "securesystemslib was not asked: {how}");
        return println!("NOT TESTED with securesystemslib: {how}");
    };
    let hex = |key: PublicKey| key.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let case = |envelope: String, key: PublicKey| json!({ "envelope": envelope, "keyid": key.to_string(), "key_hex": hex(key) });
    let altered = |field: &str, value: Value| {
        let mut envelope: Value = serde_json::from_str(&envelope()).unwrap();
        envelope[field] = value;
        envelope.to_string()
    };
    let other = STANDARD.encode(payload(&envelope()).replace("t12", "t13"));
    let cases = [
        case(envelope(), key()),
        case(altered("payload", other.into()), key()),
        case(altered("payloadType", "text/plain".into()), key()),
        case(altered("signatures", json!([])), key()),
        case(envelope(), signer(2).public()),
    ];
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dsse.py");
    let mut child = Command::new(python)
        .args(["-I", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the Python of scripts/scitt.sh");
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(&cases).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let verdicts: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdicts[0]["predicate"]["facts"]["task"], "t12");
    assert_eq!(verdicts[1..], vec![Value::Null; 4], "a changed one was taken");
}
