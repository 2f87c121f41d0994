//! SIGKILL at random points: nothing acknowledged is lost, nothing is half there.

mod node;

use abi::identity::Service;
use node::{Node, agent, append, call, try_call};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

#[derive(Default)]
struct Acknowledged {
    /// Hash to entry.
    entries: BTreeMap<String, Value>,
    /// Seq to digest.
    receipts: BTreeMap<u64, String>,
}

fn run_and_kill(directory: &std::path::Path, round: u64, life_ms: u64, acknowledged: &Mutex<Acknowledged>) {
    let node = Node::start_with(directory, &SEGMENTS).expect("ready");
    let leases: Vec<_> = (0..3).map(|n| node.attach(&format!("agent-{n}.{round}"), directory)).collect();
    std::thread::scope(|scope| {
        for (n, (_, path)) in leases.iter().enumerate() {
            let mut connection = agent(path);
            scope.spawn(move || {
                for step in 0.. {
                    let params = json!({ "key": format!("k{}", step % 3), "value": [round, n, step] });
                    match try_call(&mut connection, "memory.write", params) {
                        Some(Ok(entry)) => {
                            let hash = entry["hash"].as_str().unwrap().to_owned();
                            acknowledged.lock().unwrap().entries.insert(hash, entry);
                        }
                        Some(Err(error)) => panic!("{error}"),
                        None => return,
                    }
                }
            });
        }
        for writer in 0..2 {
            let mut connection = node.service(Service::Cage);
            scope.spawn(move || {
                for step in 0.. {
                    let durable = step % 3 != 0;
                    match try_call(
                        &mut connection,
                        "ledger.append",
                        append(writer * 1_000_000 + step, durable),
                    ) {
                        Some(Ok(receipt)) if durable => {
                            let digest = receipt["digest"].as_str().unwrap().to_owned();
                            acknowledged
                                .lock()
                                .unwrap()
                                .receipts
                                .insert(receipt["seq"].as_u64().unwrap(), digest);
                        }
                        Some(Ok(_)) => {}
                        Some(Err(error)) => panic!("{error}"),
                        None => return,
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(life_ms));
        node.kill();
    });
}

/// Everything acknowledged so far stands, and memory and ledger agree.
fn check(directory: &std::path::Path, acknowledged: &Acknowledged) {
    let node = Node::start_with(directory, &SEGMENTS).expect("ready");
    let mut operator = node.operator();
    let verified = call(&mut operator, "ledger.verify", json!({})).unwrap();
    assert_eq!(verified["broken"], Value::Null);
    for (hash, entry) in &acknowledged.entries {
        let read =
            call(&mut operator, "memory.read", json!({ "agent": entry["agent"], "hash": hash })).unwrap();
        assert_eq!(&read, entry);
    }
    node.stop();
    let (events, written) = ledger(directory);
    for (seq, digest) in &acknowledged.receipts {
        assert_eq!(events.get(seq), Some(digest), "event {seq}");
    }
    // Whatever memory holds has its receipt; chains have no gaps.
    let db = rusqlite::Connection::open(directory.join("state/memory.db")).unwrap();
    let mut statement =
        db.prepare("SELECT lower(hex(hash)), agent, seq FROM entry ORDER BY agent, seq").unwrap();
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u64>(2)?)))
        .unwrap();
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for row in rows {
        let (hash, agent, seq) = row.unwrap();
        assert!(written.contains(&format!("sha256:{hash}")), "entry {hash} has no receipt");
        let expected = next.entry(agent).or_default();
        assert_eq!(seq, *expected);
        *expected += 1;
    }
}

/// Digests by seq, and the entries with a receipt, read from the files by the library.
fn ledger(directory: &std::path::Path) -> (BTreeMap<u64, String>, std::collections::BTreeSet<String>) {
    use ctxgraph::ledger::scan::scan;
    use ctxgraph::ledger::storage::{Directory, RealDirectory, segment_name, segments};
    let files = RealDirectory::open_or_create(&directory.join("state/ledger")).unwrap();
    let (mut digests, mut written) = (BTreeMap::new(), std::collections::BTreeSet::new());
    let mut chain = None;
    for first_seq in segments(&files).unwrap() {
        let file = files.open(&segment_name(first_seq)).unwrap();
        let scanned = scan(file.as_ref(), file.length().unwrap(), first_seq, chain, |frame, _, _| {
            digests.insert(frame.seq, frame.digest.to_string());
            let event: Value = serde_json::from_slice(&frame.body).unwrap();
            if event["event"] == "memory_written" {
                written.insert(event["entry"].as_str().unwrap().to_owned());
            }
        })
        .unwrap();
        assert_eq!(scanned.broken, None);
        chain = scanned.chain;
    }
    (digests, written)
}

/// Small segments: most lives of the service begin some.
const SEGMENTS: [&str; 2] = ["--segment-bytes", "4000"];

#[test]
fn nothing_acknowledged_is_lost_when_the_service_is_killed() {
    let mut random = node::random();
    let directory = tempfile::tempdir().unwrap();
    let acknowledged = Mutex::new(Acknowledged::default());
    let rounds = if std::env::var_os("NULLBOX_SOAK").is_some() { 1000 } else { 40 };
    let wrote =
        |acknowledged: &Acknowledged| acknowledged.entries.len() > 20 && acknowledged.receipts.len() > 20;
    // On a busy machine a short life may see no write at all: then there are more lives.
    for round in 0..4 * rounds {
        run_and_kill(directory.path(), round, 1 + random(60), &acknowledged);
        if round % 10 == 9 {
            let acknowledged = acknowledged.lock().unwrap();
            check(directory.path(), &acknowledged);
            if round >= rounds - 1 && wrote(&acknowledged) {
                break;
            }
        }
    }
    let acknowledged = acknowledged.lock().unwrap();
    assert!(wrote(&acknowledged), "the writers did write");
    let segments = std::fs::read_dir(directory.path().join("state/ledger")).unwrap().count();
    assert!(segments > 5, "{segments} segments");
    println!(
        "{} entries and {} receipts survived {rounds} kills or more, in {segments} segments",
        acknowledged.entries.len(),
        acknowledged.receipts.len()
    );
}
