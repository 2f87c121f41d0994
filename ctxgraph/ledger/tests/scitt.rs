//! The same receipts and proofs before a verifier that nobody here wrote: PyPI's scitt-cose, through scitt.py.

mod book;

use abi::ids::Digest;
use book::Book;
use ledger::keys::Signer;
use ledger::merkle::Frontier;
use ledger::proof::Pass;
use ledger::receipt::{self, Standing};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

const SIZE: u64 = 21;

fn signer() -> Signer {
    Signer::from_seed(&[1; 32]).unwrap()
}

/// The verdicts on cases. None where there is no scitt-cose and nobody insists.
fn ask(cases: &[Value]) -> Option<Vec<Value>> {
    let Some(python) = std::env::var_os("NULLBOX_SCITT_PYTHON") else {
        let how = "set NULLBOX_SCITT_PYTHON to what scripts/scitt.sh prints, as `make unit` does";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "scitt-cose was not asked: {how}");
        println!("NOT TESTED with scitt-cose: {how}");
        return None;
    };
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scitt.py");
    let mut child = Command::new(python)
        .args(["-I", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the Python of scripts/scitt.sh");
    // It reads all before it writes.
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(cases).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let verdicts: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdicts.len(), cases.len());
    Some(verdicts)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hexes(path: &[Digest]) -> Vec<String> {
    path.iter().map(Digest::hex).collect()
}

fn frames() -> Vec<Digest> {
    Book::new(7, &[9, 12]).digests()
}

fn root(size: u64) -> Digest {
    let mut tree = Frontier::default();
    frames().iter().take(size as usize).for_each(|frame| tree.push(frame));
    tree.root()
}

fn path(pass: Option<Pass>, size: u64) -> Vec<Digest> {
    let mut pass = pass.unwrap();
    frames().iter().take(size as usize).for_each(|frame| pass.push(frame));
    pass.finish().unwrap()
}

/// The path with a bit flipped in its hash `at`.
fn flipped(path: &[Digest], at: usize) -> Vec<Digest> {
    let mut path = path.to_vec();
    path[at].0[at % 32] ^= 1 << (at % 8);
    path
}

#[test]
fn a_stranger_takes_our_proofs_of_inclusion_and_no_altered_one() {
    let mut cases = Vec::new();
    let case = |seq: u64, frame: &Digest, size: u64, path: &[Digest], root: &Digest| {
        json!({ "kind": "inclusion", "leaf_entry_hex": frame.hex(), "index": seq, "tree_size": size,
            "audit_path_hex": hexes(path), "root_hex": root.hex() })
    };
    let frames = frames();
    for size in 1..=SIZE {
        for seq in 0..size {
            let (frame, root, path) =
                (&frames[seq as usize], root(size), path(Pass::inclusion(seq, size), size));
            cases.push((true, case(seq, frame, size, &path, &root)));
            for at in 0..path.len() {
                cases.push((false, case(seq, frame, size, &flipped(&path, at), &root)));
            }
            if size > 1 {
                cases.push((false, case((seq + 1) % size, frame, size, &path, &root)));
                cases
                    .push((false, case(seq, &frames[(seq as usize + 1) % frames.len()], size, &path, &root)));
                cases.push((false, case(seq, frame, size, &path[1..], &root)));
            }
            cases.push((false, case(seq, frame, size, &path, &frames[0])));
        }
    }
    judge(cases);
}

#[test]
fn a_stranger_takes_our_proofs_of_consistency_and_no_altered_one() {
    let mut cases = Vec::new();
    let case = |old: u64, old_root: &Digest, size: u64, root: &Digest, path: &[Digest]| {
        json!({ "kind": "consistency", "first_root_hex": old_root.hex(), "second_root_hex": root.hex(),
            "first_size": old, "second_size": size, "proof_hex": hexes(path) })
    };
    let roots: Vec<_> = (0..=SIZE).map(root).collect();
    for size in 2..=SIZE {
        for old in 1..size {
            let (old_root, root) = (&roots[old as usize], &roots[size as usize]);
            let path = path(Pass::consistency(old, size), size);
            cases.push((true, case(old, old_root, size, root, &path)));
            for at in 0..path.len() {
                cases.push((false, case(old, old_root, size, root, &flipped(&path, at))));
            }
            cases.push((false, case(old, &roots[old as usize - 1], size, root, &path)));
            cases.push((false, case(old, old_root, size, &roots[size as usize - 1], &path)));
            cases.push((false, case(old, old_root, size, root, &path[1..])));
        }
    }
    judge(cases);
}

#[test]
fn a_stranger_takes_our_receipts_and_no_altered_one() {
    let frames = frames();
    let key = signer().public();
    let case = |receipt: &[u8], frame: &Digest, key: &str| json!({ "kind": "receipt", "receipt": hex(receipt), "leaf": frame.hex(), "key": key });
    let mut cases = Vec::new();
    for size in [1, 2, 7, SIZE] {
        let signature = receipt::sign(&signer(), &root(size));
        for seq in 0..size {
            let frame = &frames[seq as usize];
            let standing = Standing { size, seq, path: path(Pass::inclusion(seq, size), size) };
            let bytes = receipt::encode(&standing, &signature).unwrap();
            cases.push((true, case(&bytes, frame, &key.pem())));
            cases.push((false, case(&bytes, &Digest([9; 32]), &key.pem())));
            let other = Signer::from_seed(&[2; 32]).unwrap().public().pem();
            cases.push((false, case(&bytes, frame, &other)));
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                // Only a size that has the same path passes, here and there: a receipt does not sign it.
                let ours = receipt::open(&changed, &key, frame).is_ok();
                cases.push((ours, case(&changed, frame, &key.pem())));
            }
        }
    }
    assert!(cases.iter().filter(|(due, _)| !due).count() > 5000);
    judge(cases);
}

fn judge(cases: Vec<(bool, Value)>) {
    let (due, asked): (Vec<bool>, Vec<Value>) = cases.into_iter().unzip();
    let Some(verdicts) = ask(&asked) else { return };
    for ((due, case), verdict) in due.iter().zip(&asked).zip(&verdicts) {
        assert_eq!(verdict["ok"], *due, "{case}");
    }
}
