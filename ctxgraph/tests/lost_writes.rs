//! Power cuts under memory.db: real SQLite over a disk that forgets what was not synced, at thousands of points.
//!
//! Every write, cut and sync of a run is recorded. For a point of the log each file is what was synced before it, and of what was not
//! any part: each 512 bytes of each write reached the disk or did not. That is opened by the real store, and must be exactly the state
//! after the last acknowledged transaction, or after the one that was under way.

#[path = "disk/sys.rs"]
mod sys;

use abi::control::MemoryWrite;
use abi::exposure::Exposure;
use abi::node::Conflicts;
use ctxgraph::draft::{Author, Draft};
use ctxgraph::store::{Quotas, Rules, Store};
use rusqlite::types::ValueRef;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use sys::Op;

const SECTOR: usize = 512;

/// xorshift64*, seeded from NULLBOX_TEST_SEED.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("NULLBOX_TEST_SEED").map_or(now, |text| text.parse().unwrap());
    println!("NULLBOX_TEST_SEED={seed}");
    seed | 1
}

/// Everything that memory.db says.
fn state(store: &Store) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for sql in [
        "SELECT hash, agent, seq, key, parent, unix_ms, links, labels, value, forgotten, expires_unix_ms FROM entry ORDER BY id",
        "SELECT * FROM head",
        "SELECT * FROM label",
        "SELECT * FROM link",
        "SELECT * FROM vector",
        "SELECT * FROM agent",
        "SELECT rowid FROM search ORDER BY rowid",
    ] {
        let mut statement = store.db().prepare(sql).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                match row.get_ref(column).unwrap() {
                    ValueRef::Null => hasher.update(b"null"),
                    ValueRef::Integer(number) => hasher.update(number.to_le_bytes()),
                    ValueRef::Real(number) => hasher.update(number.to_le_bytes()),
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => hasher.update(bytes),
                }
                hasher.update(b";");
            }
        }
    }
    hasher.finalize().into()
}

fn transaction(store: &mut Store, random: &mut Random, number: u64) {
    let rules = Rules { node: "0".repeat(16), conflicts: Conflicts::Newest };
    let batch = store.begin().unwrap();
    for _ in 0..=random.below(3) {
        let write = MemoryWrite {
            agent: Some(["a", "b"][random.below(2) as usize].parse().unwrap()),
            key: format!("k{}", random.below(12)),
            value: json!({ "text": "words of it ".repeat(random.below(3) as usize * random.below(200) as usize), "n": number }),
            parent: None,
            labels: BTreeMap::from([("topic".into(), format!("t{}", random.below(3)))]),
            links: Vec::new(),
            ttl_secs: None,
            vector: (random.below(3) == 0).then(|| vec![1.0; 100]),
        };
        let draft = Draft::new(&Author::Operator("o".into()), Exposure::NONE, write).unwrap();
        batch.write(&draft, &rules, number).unwrap();
    }
    if number % 5 == 4 {
        let id = 1 + random.below(number) as i64;
        batch.erase(id, "forgotten").unwrap();
    }
    batch.commit(None).unwrap();
}

/// What a run did, and what memory.db said after each transaction.
struct Run {
    log: Vec<Op>,
    states: Vec<[u8; 32]>,
}

fn run(directory: &Path, random: &mut Random, transactions: usize, synchronous: &str) -> Run {
    sys::begin();
    let mut store = Store::open(&directory.join("memory.db"), Quotas::default()).unwrap();
    // The log is brought into the file often, so that points within that are many too.
    store
        .db()
        .execute_batch(&format!("PRAGMA wal_autocheckpoint=24; PRAGMA synchronous={synchronous}"))
        .unwrap();
    let mut states = vec![state(&store)];
    sys::record(Op::Acknowledged(0));
    for number in 1..=transactions {
        transaction(&mut store, random, number as u64);
        states.push(state(&store));
        sys::record(Op::Acknowledged(number));
        if number % 17 == 0 {
            store.forgot();
            store.clear_log().unwrap();
        }
    }
    drop(store);
    Run { log: sys::end(), states }
}

/// A file as the disk has it, and what is on its way there.
#[derive(Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Op>,
}

fn place(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    if bytes.len() < offset + part.len() {
        bytes.resize(offset + part.len(), 0);
    }
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

impl File {
    fn sync(&mut self) {
        for op in self.pending.drain(..) {
            match op {
                Op::Write { offset, bytes, .. } => place(&mut self.durable, offset as usize, &bytes),
                Op::Cut { length, .. } => self.durable.truncate(length as usize),
                _ => unreachable!("only these wait"),
            }
        }
    }

    /// After a power cut: what was not synced is there in part.
    fn after_cut(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        // None, all, or about half.
        let kept = [0, 4, 2, 2][random.below(4) as usize];
        for op in &self.pending {
            match op {
                Op::Write { offset, bytes: written, .. } => {
                    for (n, sector) in written.chunks(SECTOR).enumerate() {
                        if random.below(4) < kept {
                            place(&mut bytes, *offset as usize + n * SECTOR, sector);
                        }
                    }
                }
                Op::Cut { length, .. } if random.below(4) < kept => bytes.truncate(*length as usize),
                _ => {}
            }
        }
        bytes
    }
}

/// Cuts the power at random points of a run; returns how many there were and what was wrong.
fn cuts(run: &Run, random: &mut Random, points: usize) -> (usize, Vec<String>) {
    let first = run.log.iter().position(|op| matches!(op, Op::Acknowledged(0))).unwrap();
    let span = run.log.len() - first;
    let mut at: Vec<usize> = (0..points).map(|_| first + 1 + random.below(span as u64) as usize).collect();
    at.sort();
    let (mut files, mut acknowledged) = (BTreeMap::<String, File>::new(), 0);
    let (mut next, mut wrong) = (0, Vec::new());
    let scratch = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    for point in at {
        for op in &run.log[next..point] {
            match op {
                Op::Write { file, .. } | Op::Cut { file, .. } => {
                    files.entry(file.clone()).or_default().pending.push(op.clone());
                }
                Op::Sync { file } => files.entry(file.clone()).or_default().sync(),
                Op::Delete { file } => drop(files.remove(file)),
                Op::Acknowledged(number) => acknowledged = *number,
            }
        }
        next = point;
        let directory = tempfile::tempdir_in(&scratch).unwrap();
        for (name, file) in &files {
            std::fs::write(directory.path().join(name), file.after_cut(random)).unwrap();
        }
        if let Err(why) = check(directory.path(), run, acknowledged) {
            wrong.push(format!("after {point} of {} operations: {why}", run.log.len()));
        }
    }
    (points, wrong)
}

/// Whether what the disk has is the state that was acknowledged last, or the one after it, in all its parts.
fn check(directory: &Path, run: &Run, acknowledged: usize) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let store = Store::open(&directory.join("memory.db"), Quotas::default()).map_err(|error| told(&error))?;
    let sound: String =
        store.db().query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(|error| told(&error))?;
    if sound != "ok" {
        return Err(sound);
    }
    let found = state(&store);
    let may = &run.states[acknowledged..run.states.len().min(acknowledged + 2)];
    if !may.contains(&found) {
        let is = run.states.iter().position(|state| *state == found);
        return Err(format!(
            "{acknowledged} transactions were acknowledged, and the state is that of {is:?}"
        ));
    }
    for owner in ["a", "b"] {
        let owner = owner.parse().unwrap();
        let query = abi::control::MemoryQuery::default();
        store.query(&owner, &query).map_err(|error| told(&error))?; // each against its hash
    }
    Ok(())
}

#[test]
fn memory_db_survives_a_power_cut_at_any_point_and_a_store_that_does_not_sync_is_caught() {
    sys::install();
    let mut random = Random(seed());
    let points = if std::env::var_os("NULLBOX_SOAK").is_some() { 10_000 } else { 600 };
    let directory = tempfile::tempdir().unwrap();
    let recorded = run(directory.path(), &mut random, 120, "FULL");
    let checkpoints =
        recorded.log.iter().filter(|op| matches!(op, Op::Write { file, .. } if file == "memory.db"));
    assert!(checkpoints.count() > 100, "the run wrote into the file itself");
    let (count, wrong) = cuts(&recorded, &mut random, points);
    assert!(wrong.is_empty(), "{} of {count}, first {}", wrong.len(), wrong[0]);
    println!("{count} power cuts within {} operations", recorded.log.len());
    // The same check, where there is something to find.
    let directory = tempfile::tempdir().unwrap();
    let careless = run(directory.path(), &mut random, 40, "OFF");
    let (count, wrong) = cuts(&careless, &mut random, 100);
    assert!(wrong.len() > count / 4, "only {} of {count} losses were seen", wrong.len());
}
