//! What the ledger hands out, made by the real service in small segments and checked with nothing but its public key.

mod node;

use abi::control::{Consistency, MemoryChunk, Proof};
use abi::identity::Service;
use abi::rpc::{Code, Incoming, Request};
use abi::wire::Connection;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ledger::checkpoint::Checkpoint;
use ledger::export::{ExportError, Opened};
use ledger::keys::PublicKey;
use ledger::statement::{check_consistency, check_inclusion};
use node::{Node, append, call};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

fn start(directory: &Path) -> Node {
    Node::start_with(directory, &["--segment-bytes", "1500"]).expect("ready")
}

fn write(node: &Node, count: u64) {
    let mut egress = node.service(Service::Egress);
    for n in 0..count {
        call(&mut egress, "ledger.append", append(n, true)).unwrap();
    }
}

fn checkpoint(node: &Node) -> (Checkpoint, PublicKey) {
    let said = call(&mut node.operator(), "ledger.checkpoint", json!({})).unwrap();
    let key: PublicKey = said["key"].as_str().unwrap().parse().unwrap();
    (Checkpoint::open(said["note"].as_str().unwrap(), &key).unwrap(), key)
}

/// The export, and the result that came with it.
fn export(connection: &mut Connection) -> (Vec<u8>, Value) {
    connection.write_line(&Request::call(1, "ledger.export", json!({}))).unwrap();
    let mut bytes = Vec::new();
    loop {
        let line = connection.read_line().unwrap().expect("a line");
        match serde_json::from_str(&line).unwrap() {
            Incoming::Notification(note) if note.method == "output" => {
                let chunk: MemoryChunk = serde_json::from_value(note.params).unwrap();
                bytes.extend(STANDARD.decode(chunk.data).unwrap());
            }
            Incoming::Notification(_) => {}
            Incoming::Response(response) => return (bytes, response.result.unwrap()),
        }
    }
}

fn check(export: &[u8], key: &PublicKey, since: Option<&Checkpoint>) -> Result<u64, ExportError> {
    Opened::open(export, key)?.check(since, |_, _| {}).map(|checked| checked.segments)
}

#[test]
fn the_first_start_makes_a_key_that_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/ledger.key");
    let node = start(directory.path());
    let (_, key) = checkpoint(&node);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let page = call(&mut node.operator(), "ledger.tail", json!({ "limit": 1000 })).unwrap();
    let made: Vec<_> = page["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["event"]["event"] == "ledger_key_made")
        .collect();
    assert_eq!(made.len(), 1);
    assert_eq!((&made[0]["source"], &made[0]["event"]["key"]), (&json!("ctxgraph"), &json!(key.to_string())));
    node.kill();
    let node = start(directory.path());
    assert_eq!(checkpoint(&node).1, key);
    node.stop();
    let kept = std::fs::read(&path).unwrap();
    for (broken, mode) in [(b"no key".as_slice(), 0o600), (kept.as_slice(), 0o644)] {
        std::fs::write(&path, broken).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let node = start(directory.path());
        write(&node, 1); // the ledger goes on
        let refused = call(&mut node.operator(), "ledger.checkpoint", json!({})).unwrap_err();
        assert!(refused.message.contains("ledger.key"), "{refused:?}");
        node.stop();
        assert_eq!(std::fs::read(&path).unwrap(), broken, "it is not replaced");
    }
}

#[test]
fn a_key_that_is_missing_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/ledger.key");
    start(directory.path()).stop();
    std::fs::remove_file(&path).unwrap();
    let node = start(directory.path());
    write(&node, 1); // the ledger goes on
    let refused = call(&mut node.operator(), "ledger.checkpoint", json!({})).unwrap_err();
    assert!(refused.message.contains("is missing"), "{refused:?}");
    let asked = json!({ "events": ["ledger_key_made"] });
    let made = call(&mut node.operator(), "ledger.query", asked).unwrap();
    assert_eq!(made["events"].as_array().unwrap().len(), 1);
    node.stop();
    assert!(!path.exists());
}

#[test]
fn every_event_every_older_ledger_and_the_whole_hold_off_the_node() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path());
    write(&node, 20);
    let (old, key) = checkpoint(&node);
    write(&node, 21);
    let mut operator = node.operator();
    let (now, _) = checkpoint(&node);
    assert!(now.size > old.size && now.size > 40, "{}", now.size);
    for seq in 0..now.size {
        let proof: Proof =
            serde_json::from_value(call(&mut operator, "ledger.prove", json!({ "seq": seq })).unwrap())
                .unwrap();
        let (frame, _) = check_inclusion(&proof, &key).unwrap();
        assert_eq!(frame.seq, seq);
    }
    let proof = call(&mut operator, "ledger.consistency", json!({ "size": old.size })).unwrap();
    let proof: Consistency = serde_json::from_value(proof).unwrap();
    assert_eq!(check_consistency(&proof, &old, &key).unwrap().root, now.root);
    let (bytes, said) = export(&mut operator);
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    assert_eq!(said["digest"], abi::ids::Digest(digest).to_string());
    assert_eq!(
        (said["entries"].as_u64(), said["bytes"].as_u64()),
        (Some(now.size), Some(bytes.len() as u64))
    );
    assert!(check(&bytes, &key, Some(&old)).unwrap() > 4, "several segments");
    // The connection goes on after a stream.
    let refused = call(&mut operator, "ledger.prove", json!({ "seq": now.size })).unwrap_err();
    assert_eq!(refused.code, Code::NOT_FOUND);
    for size in [0, now.size + 1] {
        let refused = call(&mut operator, "ledger.consistency", json!({ "size": size })).unwrap_err();
        assert_eq!(refused.code, Code::INVALID_PARAMS);
    }
    node.stop();
}

#[test]
fn every_changed_byte_of_a_real_export_is_found_in_its_frame() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path());
    write(&node, 12);
    let (_, key) = checkpoint(&node);
    let (bytes, _) = export(&mut node.operator());
    node.stop();
    let mut begins = vec![0];
    let mut at = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    while at < bytes.len() {
        begins.push(at);
        at += match ledger::frame::begins_segment(&bytes[at..]) {
            true => ledger::frame::SegmentHeader::length(&bytes[at..]).unwrap(),
            false => ledger::frame::frame_length(&bytes[at..]).unwrap(),
        };
    }
    assert!(check(&bytes, &key, None).unwrap() > 1);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        let place = check(&changed, &key, None).unwrap_err().place().unwrap();
        let due = begins.iter().rev().find(|begin| **begin <= at).unwrap();
        assert_eq!(place.offset, *due as u64, "byte {at}");
        let place = check(&bytes[..at], &key, None).unwrap_err().place().unwrap();
        assert_eq!(place.offset, *due as u64, "cut at {at}");
    }
}

#[test]
fn a_ledger_that_was_set_back_behind_its_checkpoint_takes_no_events() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    let node = start(directory.path());
    write(&node, 5);
    node.stop();
    let before = directory.path().join("before");
    copy(&state.join("ledger"), &before);
    let node = start(directory.path());
    write(&node, 20);
    let (kept, key) = checkpoint(&node);
    node.stop();
    let file = std::fs::read_to_string(state.join("ledger.checkpoint")).unwrap();
    assert_eq!(Checkpoint::open(&file, &key).unwrap(), kept, "kept before it was answered");
    std::fs::remove_dir_all(state.join("ledger")).unwrap();
    copy(&before, &state.join("ledger"));
    let node = start(directory.path());
    let refused = call(&mut node.service(Service::Egress), "ledger.append", append(1, true)).unwrap_err();
    assert!(refused.message.contains("damaged") && refused.message.contains("signed"), "{refused:?}");
    let refused = call(&mut node.operator(), "ledger.checkpoint", json!({})).unwrap_err();
    assert!(refused.message.contains("damaged"), "{refused:?}");
    node.stop();
}

#[test]
fn a_full_segment_is_signed_though_nobody_asks() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path());
    write(&node, 30);
    let path = directory.path().join("state/ledger.checkpoint");
    // One is kept from the start on, of the event that the key was made.
    let kept = || std::fs::read_to_string(&path).unwrap_or_default();
    let size = |note: String| note.lines().nth(1).and_then(|line| line.parse::<u64>().ok());
    let found = (0..100).find(|_| {
        std::thread::sleep(Duration::from_millis(100));
        size(kept()) > Some(1)
    });
    assert!(found.is_some(), "{}", kept());
    node.stop();
}

#[test]
fn a_verified_patch_is_recorded_and_attested_for_cage_alone() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path());
    write(&node, 12);
    let (_, key) = checkpoint(&node);
    let digest = |byte: u8| abi::ids::Digest([byte; 32]).to_string();
    let facts = json!({
        "task": "t1", "agent": "fixer", "verifier": "t1-v1.1", "base": digest(1), "patch": digest(2),
        "result": digest(3), "command": ["cargo", "test"], "rootfs": digest(4), "kernel": digest(5),
        "init": digest(6), "protect": ["/work/tests/**"], "output": digest(7), "wall_ms": 900,
    });
    let asked = json!({ "facts": facts });
    for other in [Service::Egress, Service::Nullgate] {
        let refused = call(&mut node.service(other), "ledger.attest", asked.clone()).unwrap_err();
        assert_eq!(refused.code, Code::DENIED, "{other}");
    }
    assert_eq!(call(&mut node.operator(), "ledger.attest", asked.clone()).unwrap_err().code, Code::DENIED);
    let mut cage = node.connect(abi::identity::Caller::Local { uid: 0 });
    let attested = call(&mut cage, "ledger.attest", asked.clone()).unwrap();
    let found = ledger::attestation::open(attested["envelope"].as_str().unwrap(), &key).unwrap();
    assert_eq!(serde_json::to_value(&found.facts).unwrap(), facts);
    assert_eq!(serde_json::to_value(found.receipt).unwrap(), attested["receipt"]);

    // The receipt's event stands in the ledger as ctxgraph's own, and in the very tree that the attestation names.
    let seq = found.receipt.seq;
    let proof: Proof =
        serde_json::from_value(call(&mut node.operator(), "ledger.prove", json!({ "seq": seq })).unwrap())
            .unwrap();
    let (frame, later) = check_inclusion(&proof, &key).unwrap();
    assert_eq!((frame.digest, frame.source.name()), (found.receipt.digest, "ctxgraph"));
    let kept: Value = serde_json::from_slice(&frame.body).unwrap();
    assert_eq!((kept["event"].as_str(), &kept["facts"]), (Some("patch_verified"), &facts));
    let goes_on =
        call(&mut node.operator(), "ledger.consistency", json!({ "size": found.checkpoint.size })).unwrap();
    let goes_on: Consistency = serde_json::from_value(goes_on).unwrap();
    assert_eq!(check_consistency(&goes_on, &found.checkpoint, &key).unwrap().root, later.root);

    // One that a service writes by itself is that service's, not ctxgraph's.
    let forged = json!({ "event": { "event": "patch_verified", "facts": facts }, "durable": true });
    let written = call(&mut node.service(Service::Egress), "ledger.append", forged).unwrap();
    let page = call(&mut node.operator(), "ledger.tail", json!({ "limit": 1 })).unwrap();
    assert_eq!(
        (&page["events"][0]["seq"], &page["events"][0]["source"]),
        (&written["seq"], &json!("egress"))
    );
    let mut long = asked;
    long["facts"]["command"] = json!(vec!["x".repeat(1000); 20]);
    assert!(call(&mut cage, "ledger.attest", long).is_err(), "an event has a bound");
    node.stop();
}

#[test]
fn a_reader_that_takes_nothing_slows_no_writer_and_is_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut egress = node.service(Service::Egress);
    let long = "x".repeat(12_000);
    for _ in 0..100 {
        let event = json!({ "event": { "event": "call_made", "by": "b", "method": long }, "durable": false });
        call(&mut egress, "ledger.append", event).unwrap();
    }
    call(&mut egress, "ledger.append", append(1, true)).unwrap();
    let mut stuck: Vec<_> = (0..abi::limits::LEDGER_READERS_MAX)
        .map(|_| {
            let mut connection = node.operator();
            connection.write_line(&Request::call(1, "ledger.export", json!({}))).unwrap();
            connection
        })
        .collect();
    for connection in &mut stuck {
        connection.read_line().unwrap().expect("it has begun");
    }
    call(&mut egress, "ledger.append", append(2, true)).unwrap();
    for (method, params) in [("ledger.prove", json!({ "seq": 0 })), ("ledger.verify", json!({}))] {
        let refused = call(&mut node.operator(), method, params).unwrap_err();
        assert_eq!(refused.code, Code::LIMIT, "{method}");
    }
    // A line that was taken in part is waited for once more.
    let mut operator = node.operator();
    let freed = (0..60).find(|_| {
        std::thread::sleep(Duration::from_secs(1));
        call(&mut operator, "ledger.prove", json!({ "seq": 0 })).is_ok()
    });
    assert!(freed.is_some(), "their places are free");
    for connection in &mut stuck {
        let mut lines = 0;
        while let Ok(Some(line)) = connection.read_line() {
            lines += 1;
            assert!(!line.contains("\"result\""), "after {lines} lines");
        }
    }
    node.stop();
}
