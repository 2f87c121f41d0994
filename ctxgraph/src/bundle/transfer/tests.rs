//! Bundles between real services: what one entry's refusal, what was forgotten, and a damaged index do to the others.

use super::*;
use crate::service::{self, Ctxgraph};
use crate::store::Quotas;
use abi::door::Handler;
use abi::identity::Caller;
use abi::rpc::Incoming;
use abi::wire::Connection;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;

struct Node {
    directory: tempfile::TempDir,
    service: Option<(Ctxgraph, File)>,
}

impl Node {
    fn new(quotas: Quotas) -> Node {
        Node::over(tempfile::tempdir().unwrap(), quotas)
    }

    fn over(directory: tempfile::TempDir, quotas: Quotas) -> Node {
        let settings = abi::node::Memory::default();
        let service = service::open(directory.path(), &settings, 64 << 20, quotas).unwrap();
        Node { directory, service: Some(service) }
    }

    fn close(mut self) -> tempfile::TempDir {
        let (service, lock) = self.service.take().unwrap();
        service.close();
        drop((service, lock));
        self.directory
    }

    /// Calls with `input` sent behind, and returns the answer and what came as `output`.
    fn exchange(&self, method: &str, params: Value, input: &[u8]) -> (Result<Value, RpcError>, Vec<u8>) {
        let (near, far) = UnixStream::pair().unwrap();
        let request = Request::call(1, method, params);
        std::thread::scope(|scope| {
            let mut near = Connection::new(near);
            let other = scope.spawn(move || {
                for part in input.chunks(limits::MEMORY_CHUNK_BYTES_MAX).chain([&[][..]]) {
                    let data = json!({ "data": STANDARD.encode(part) });
                    near.write_line(&Request::notification("input", data)).ok(); // not every call reads it
                }
                let mut output = Vec::new();
                while let Ok(Some(line)) = near.read_line() {
                    if let Ok(Incoming::Notification(note)) = serde_json::from_str(&line)
                        && note.method == "output"
                    {
                        let data = note.params["data"].as_str().unwrap().to_owned();
                        output.extend(STANDARD.decode(data).unwrap());
                    }
                }
                output
            });
            let mut connection = Connection::new(far);
            let caller = Caller::Local { uid: 0 };
            let call = Call { caller: &caller, request: &request, connection: &mut connection };
            let outcome = self.service.as_ref().unwrap().0.call(call).map(|outcome| match outcome {
                Outcome::Result(value) => value,
                Outcome::Answered => panic!("answered"),
            });
            drop(connection);
            (outcome, other.join().unwrap())
        })
    }

    fn call(&self, method: &str, params: Value) -> Value {
        self.exchange(method, params, &[]).0.unwrap()
    }

    fn export(&self, params: Value) -> Vec<u8> {
        let (done, bytes) = self.exchange("memory.export", params, &[]);
        done.unwrap();
        bytes
    }

    fn import(&self, bundle: &[u8]) -> Value {
        let last = bundle.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap();
        let last: Value = serde_json::from_slice(last).unwrap();
        self.exchange("memory.import", json!({ "from": last["key"] }), bundle).0.unwrap()
    }

    fn write(&self, agent: &str, key: &str, value: Value) -> String {
        let entry = self.call("memory.write", json!({ "agent": agent, "key": key, "value": value }));
        entry["hash"].as_str().unwrap().to_owned()
    }

    /// All hashes in the order of their pages.
    fn hashes(&self) -> Vec<String> {
        let (mut all, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let page = self.call("memory.hashes", json!({ "cursor": cursor }));
            all.extend(
                page["hashes"].as_array().unwrap().iter().map(|hash| hash.as_str().unwrap().to_owned()),
            );
            cursor = page["cursor"].clone();
            if cursor.is_null() {
                return all;
            }
        }
    }
}

fn hashes_of(bundle: &[u8]) -> BTreeSet<String> {
    let mut reader = Reader::new(bundle).unwrap();
    let mut hashes = BTreeSet::new();
    while let Some(item) = reader.item().unwrap() {
        hashes.insert(item.hash.to_string());
    }
    hashes
}

#[test]
fn one_agent_over_its_quota_does_not_keep_the_others_out() {
    let a = Node::new(Quotas::default());
    for n in 0..5 {
        a.write("full", &format!("k{n}"), json!(n));
        a.write("other", &format!("k{n}"), json!(n));
    }
    let bundle = a.export(json!({}));
    let b = Node::new(Quotas { entries: 3, ..Quotas::default() });
    let imported = b.import(&bundle);
    assert_eq!((&imported["entries"], &imported["refused"]), (&json!(6), &json!(4)), "{imported}");
    let again = b.import(&bundle);
    assert_eq!((&again["known"], &again["refused"]), (&json!(6), &json!(4)), "{again}");
}

#[test]
fn what_an_import_forgets_is_gone_from_the_disk() {
    let (a, b) = (Node::new(Quotas::default()), Node::new(Quotas::default()));
    let secret = crate::entry::sha256(b"a secret").hex();
    let hash = a.write("a", "k", json!(secret));
    b.import(&a.export(json!({})));
    let on_disk = |node: &Node| {
        ["memory.db", "memory.db-wal"].iter().any(|file| {
            let bytes = std::fs::read(node.directory.path().join(file)).unwrap_or_default();
            bytes.windows(48).any(|window| window == &secret.as_bytes()[16..])
        })
    };
    assert!(on_disk(&b), "it is there before");
    a.call("memory.forget", json!({ "hash": hash }));
    b.import(&a.export(json!({})));
    assert!(!on_disk(&b));
    assert_eq!(b.call("memory.read", json!({ "agent": "a", "key": "k" }))["value"], Value::Null);
}

#[test]
fn any_number_of_forgotten_entries_is_imported() {
    let (a, b) = (Node::new(Quotas::default()), Node::new(Quotas::default()));
    // Long when escaped: the receipts of all of them are more than one append takes.
    let key = "\"".repeat(limits::MEMORY_KEY_BYTES_MAX);
    let one = json!({ "agent": "a", "key": key, "value": 1 });
    for _ in 0..40 {
        a.call("memory.batch", json!({ "writes": vec![one.clone(); 35] }));
    }
    b.import(&a.export(json!({})));
    let forgot = a.call("memory.forget", json!({ "agent": "a", "key": key }));
    assert_eq!(forgot["values"], 1400);
    let imported = b.import(&a.export(json!({})));
    assert_eq!((&imported["known"], &imported["refused"]), (&json!(1400), &json!(0)), "{imported}");
    assert_eq!(b.call("memory.forget", json!({ "agent": "a", "key": key }))["values"], 0);
}

#[test]
fn hashes_come_with_parents_first_and_a_bundle_has_them_so() {
    let a = Node::new(Quotas::default());
    let one = json!({ "agent": "a", "key": "k", "value": 1 });
    for _ in 0..9 {
        a.call("memory.batch", json!({ "writes": vec![one.clone(); 50] }));
    }
    let hashes = a.hashes();
    assert_eq!(hashes.len(), 450, "more than a page");
    let bundle = a.export(json!({ "hashes": hashes[..limits::MEMORY_HASHES_MAX] }));
    let mut reader = Reader::new(bundle.as_slice()).unwrap();
    let mut before = None;
    while let Some(item) = reader.item().unwrap() {
        assert_eq!(item.header.parent, before);
        before = Some(item.hash);
    }
    for cursor in ["x", "-1", "0", &hashes[0]] {
        assert!(a.exchange("memory.hashes", json!({ "cursor": cursor }), &[]).0.is_err(), "{cursor}");
    }
}

#[test]
fn with_damaged_indices_everything_is_still_exported() {
    let a = Node::new(Quotas::default());
    let mut written: Vec<String> = (0..200).map(|n| a.write("a", &format!("k/{n}"), json!(n))).collect();
    assert_eq!(a.hashes(), written);
    written.sort();
    let directory = a.close();
    let path = memory::database(directory.path());
    let db = rusqlite::Connection::open(&path).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let roots: Vec<u64> = ["sqlite_autoindex_entry_1", "entry_key", "entry_parent"]
        .iter()
        .map(|name| {
            let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
            db.query_row(sql, [name], |row| row.get(0)).unwrap()
        })
        .collect();
    drop(db);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for root in roots {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; 4096], (root - 1) * 4096).unwrap();
    }
    let a = Node::over(directory, Quotas::default());
    let all: BTreeSet<String> = written.iter().cloned().collect();
    assert_eq!(hashes_of(&a.export(json!({}))), all);
    assert_eq!(hashes_of(&a.export(json!({ "hashes": written }))), all);
    assert_eq!(a.hashes().len(), 200);
    // And so it comes to a fresh node.
    let b = Node::new(Quotas::default());
    assert_eq!(b.import(&a.export(json!({})))["entries"], 200);
}

#[test]
fn beside_a_damaged_ledger_nothing_is_exported_and_a_fresh_one_takes_the_memory_over() {
    let a = Node::new(Quotas::default());
    let hash = a.write("a", "k", json!("kept"));
    a.write("a", "k2", json!(2));
    let directory = a.close();
    let state = directory.path().to_owned();
    let segment = state.join("ledger").join(format!("{:020}.log", 0));
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let a = Node::over(directory, Quotas::default());
    assert!(a.exchange("memory.export", json!({}), &[]).0.is_err(), "no receipt, so nothing leaves");
    // What docs/memory-sync.md says.
    let directory = a.close();
    std::fs::rename(state.join("ledger"), state.join("ledger.old")).unwrap();
    // A checkpoint is there only where one was asked for.
    std::fs::remove_file(state.join("ledger.checkpoint")).ok();
    let db = rusqlite::Connection::open(memory::database(&state)).unwrap();
    db.execute("DELETE FROM witness", []).unwrap();
    drop(db);
    let a = Node::over(directory, Quotas::default());
    assert_eq!(a.call("memory.read", json!({ "agent": "a", "key": "k" }))["hash"], hash);
    a.write("a", "k", json!("more"));
    assert_eq!(hashes_of(&a.export(json!({}))).len(), 3);
}
