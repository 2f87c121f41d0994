//! Memory against a model, quotas, damage and a ledger that refuses.

use super::*;
use crate::ledger::Setup;
use crate::ledger::scan::Anchors;
use crate::ledger::storage::RealDirectory;
use abi::control::MemoryHistory;
use abi::ledger::Event;
use serde_json::Value;
use serde_json::json;
use std::collections::BTreeMap;

mod model;

struct Place {
    directory: tempfile::TempDir,
    memory: Option<(Memory, Arc<Ledger>)>,
    quotas: Quotas,
    clock: fn() -> u64,
}

impl Place {
    fn new(quotas: Quotas) -> Place {
        let mut place =
            Place { directory: tempfile::tempdir().unwrap(), memory: None, quotas, clock: unix_ms };
        place.restart();
        place
    }

    fn restart(&mut self) {
        self.memory = None;
        let state = self.directory.path();
        let store = open_store(state, self.quotas).unwrap();
        let files = RealDirectory::open_or_create(&state.join("ledger")).unwrap();
        let anchors = Anchors { witness: store.witness().unwrap(), checkpoint: None };
        let setup = Setup { anchors, ..Setup::default() };
        let ledger = Arc::new(Ledger::open(Box::new(files), setup).unwrap());
        ledger.health().unwrap();
        let settings = Settings { clock: self.clock, ..Settings::of("03".repeat(8)) };
        self.memory =
            Some((Memory::start(store, &database(state), ledger.clone(), settings).unwrap(), ledger));
    }

    fn memory(&self) -> &Memory {
        &self.memory.as_ref().unwrap().0
    }

    fn ledger(&self) -> &Ledger {
        &self.memory.as_ref().unwrap().1
    }
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn draft(agent: &str, key: &str, value: Value) -> MemoryWrite {
    MemoryWrite {
        agent: Some(agent.parse().unwrap()),
        key: key.into(),
        value,
        parent: None,
        labels: BTreeMap::new(),
        links: Vec::new(),
        ttl_secs: None,
        vector: None,
    }
}

/// As an agent writes to its own memory.
fn write(memory: &Memory, agent: &AgentName, key: &str, value: &Value) -> Result<Entry, MemoryError> {
    let author = Author::Agent(agent.clone());
    memory.write(&author, Exposure::NONE, draft(agent.as_str(), key, value.clone()), &|_, _| true)
}

fn chain(key: &str, limit: Option<u32>, cursor: Option<String>) -> MemoryHistory {
    MemoryHistory { agent: None, key: key.into(), limit, cursor }
}

fn ask(prefix: &str, limit: Option<u32>, cursor: Option<String>) -> MemoryQuery {
    MemoryQuery { prefix: prefix.into(), limit, cursor, ..MemoryQuery::default() }
}

/// All pages of a query or history.
fn pages(mut page: impl FnMut(Option<String>) -> Entries) -> Vec<Entry> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let next = page(cursor);
        assert!(serde_json::to_vec(&next).unwrap().len() < limits::LINE_BYTES_MAX - 1024);
        all.extend(next.entries);
        match next.cursor {
            Some(more) => cursor = Some(more),
            None => return all,
        }
    }
}

#[test]
fn the_third_write_of_a_b_a_is_an_entry_of_its_own() {
    let place = Place::new(Quotas::default());
    let (a, memory) = (agent("a"), place.memory());
    let entries: Vec<Entry> = [1, 2, 1].map(|n| write(memory, &a, "k", &json!(n)).unwrap()).into();
    assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(entries[0].hash != entries[2].hash && entries[0].value == entries[2].value);
    assert_eq!(entries[0].parent, None);
    assert_eq!(entries[1].parent, Some(entries[0].hash));
    assert_eq!(entries[2].parent, Some(entries[1].hash));
    let history = memory.history(&a, &chain("k", None, None)).unwrap();
    assert_eq!(history.entries, entries.iter().rev().cloned().collect::<Vec<_>>());
    // The other chain under another key begins anew, in the same sequence.
    let other = write(memory, &a, "l", &json!(1)).unwrap();
    assert_eq!((other.parent, other.seq), (None, 3));
}

#[test]
fn every_write_has_its_receipt_in_the_ledger() {
    let place = Place::new(Quotas::default());
    let entry = write(place.memory(), &agent("a"), "k", &json!("secret text")).unwrap();
    let (events, _) = place.ledger().tail(10, 1 << 20).unwrap();
    let expected =
        Event::MemoryWritten { agent: agent("a"), key: "k".into(), entry: entry.hash, writer: None };
    assert_eq!(events.last().unwrap().event, expected);
    assert!(!serde_json::to_string(&events).unwrap().contains("secret text"));
}

#[test]
fn no_receipt_no_write() {
    let place = Place::new(Quotas::default());
    let a = agent("a");
    write(place.memory(), &a, "k", &json!(1)).unwrap();
    place.ledger().close();
    let error = write(place.memory(), &a, "k", &json!(2)).unwrap_err();
    assert!(matches!(error, MemoryError::Receipt(_)), "{error}");
    assert_eq!(place.memory().newest(&a, "k").unwrap().unwrap().value, json!(1));
}

#[test]
fn quotas_of_entries_and_bytes_refuse_one_agent_and_not_the_other() {
    let place = Place::new(Quotas { entries: 3, bytes: 1000 });
    let memory = place.memory();
    for n in 0..3 {
        write(memory, &agent("a"), "k", &json!(n)).unwrap();
    }
    let error = write(memory, &agent("a"), "k", &json!(3)).unwrap_err();
    assert!(error.to_string().contains("3 entries, the quota is 3"), "{error}");
    write(memory, &agent("b"), "k", &json!("x".repeat(900))).unwrap();
    let error = write(memory, &agent("b"), "k", &json!("x".repeat(200))).unwrap_err();
    assert!(error.to_string().contains("bytes, the quota is 1000"), "{error}");
    write(memory, &agent("b"), "k", &json!(1)).unwrap();
}

#[test]
fn keys_and_values_hold_their_limits() {
    let place = Place::new(Quotas::default());
    let (a, memory) = (agent("a"), place.memory());
    for bad in ["", "a\nb", "a\0", &"x".repeat(limits::MEMORY_KEY_BYTES_MAX + 1)] {
        assert!(write(memory, &a, bad, &json!(1)).is_err(), "{bad:?}");
    }
    let largest = json!("x".repeat(limits::MEMORY_VALUE_BYTES_MAX - 2));
    assert_eq!(write(memory, &a, "k", &largest).unwrap().value, largest);
    let error = write(memory, &a, "k", &json!("x".repeat(limits::MEMORY_VALUE_BYTES_MAX - 1)));
    assert_eq!(error, Err(DraftError::ValueLength(limits::MEMORY_VALUE_BYTES_MAX + 1).into()));
    assert!(write(memory, &a, "k", &json!(9_007_199_254_740_993_u64)).is_err());
    assert_eq!(write(memory, &a, "k", &json!(1.0)).unwrap().value, json!(1));
    assert!(memory.history(&a, &chain("k", None, Some("x".into()))).is_err());
}

#[test]
fn twenty_four_writers_lose_nothing() {
    let place = Place::new(Quotas::default());
    std::thread::scope(|scope| {
        for writer in 0..24 {
            let memory = place.memory();
            scope.spawn(move || {
                let own = agent(&format!("agent-{}", writer % 12));
                for n in 0..10 {
                    write(memory, &own, &format!("k{writer}"), &json!(n)).unwrap();
                }
            });
        }
    });
    for used in place.memory().list().unwrap() {
        assert_eq!((used.entries, used.keys), (20, 2));
    }
    for writer in 0..24 {
        let own = agent(&format!("agent-{}", writer % 12));
        let history = place.memory().history(&own, &chain(&format!("k{writer}"), None, None)).unwrap();
        let values: Vec<_> = history.entries.iter().map(|e| e.value.clone()).collect();
        assert_eq!(values, (0..10).rev().map(|n| json!(n)).collect::<Vec<_>>());
    }
    assert_eq!(place.ledger().verify().unwrap().events, 240);
}

#[test]
fn a_changed_row_is_not_shown() {
    let place = Place::new(Quotas::default());
    let a = agent("a");
    for (n, sql) in ["value = '2'", "unix_ms = 1", "seq = 77", "parent = zeroblob(32)"].iter().enumerate() {
        let key = format!("k{n}");
        let entry = write(place.memory(), &a, &key, &json!(1)).unwrap();
        let db = rusqlite::Connection::open(database(place.directory.path())).unwrap();
        db.execute(&format!("UPDATE entry SET {sql} WHERE hash = ?1"), [entry.hash.0]).unwrap();
        let error = place.memory().newest(&a, &key).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{sql}: {error}");
    }
}

#[test]
fn another_database_is_not_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let db = rusqlite::Connection::open(database(directory.path())).unwrap();
    db.execute_batch("PRAGMA user_version = 9").unwrap();
    let error = open_store(directory.path(), Quotas::default()).unwrap_err();
    assert!(matches!(error, StoreError::Foreign(0, 9)), "{error}");
}

/// A file of version 1, as the code of version 1 left it.
fn version_1(state: &Path) {
    let db = rusqlite::Connection::open(database(state)).unwrap();
    db.execute_batch(include_str!("../../tests/files/memory-1.sql")).unwrap();
}

fn count(state: &Path, sql: &str) -> i64 {
    let db = rusqlite::Connection::open(database(state)).unwrap();
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_file_of_version_1_becomes_one_of_version_2_with_the_same_hashes() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    version_1(state);
    let hashes = |state| {
        let db = rusqlite::Connection::open(database(state)).unwrap();
        let mut statement = db.prepare("SELECT hash FROM entry ORDER BY id").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, [u8; 32]>(0)).unwrap();
        rows.map(|row| Digest(row.unwrap())).collect::<Vec<_>>()
    };
    let before = hashes(state);
    let mut store = open_store(state, Quotas::default()).unwrap();
    assert_eq!(hashes(state), before);
    assert_eq!(before.len(), 7);
    for hash in &before {
        assert_eq!(
            store.by_hash(hash).unwrap().map(|entry| entry.hash),
            Some(*hash),
            "checked against its hash"
        );
    }
    let (researcher, librarian) = (agent("researcher"), agent("librarian"));
    let newest = store.newest(&researcher, "notes/1").unwrap().unwrap();
    assert_eq!((newest.seq, newest.value, newest.parent), (3, json!({"a":"é","b":1}), Some(before[2])));
    let found = store.query(&researcher, &ask("", None, None)).unwrap();
    assert_eq!(found.entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 1, 4]);
    assert_eq!(store.history(&librarian, &chain("index", None, None)).unwrap().entries.len(), 2);
    assert_eq!(store.witness().unwrap(), Some((6, Digest([6; 32]))));
    assert_eq!(count(state, "PRAGMA user_version"), 2);
    assert_eq!(count(state, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'"), 0);
    // Its tables are those of a fresh file, and its words are in the index.
    let fresh = tempfile::tempdir().unwrap();
    open_store(fresh.path(), Quotas::default()).unwrap();
    let schema = |state| {
        let db = rusqlite::Connection::open(database(state)).unwrap();
        let mut statement =
            db.prepare("SELECT name FROM sqlite_schema WHERE name <> 'entry' ORDER BY name").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(schema(state), schema(fresh.path()));
    assert_eq!(count(state, "SELECT count(*) FROM search"), 4);
    let use_before = store.agents().unwrap();
    assert_eq!((use_before[1].entries, use_before[1].keys), (5, 3));
    // And it goes on where it was.
    let rules = crate::store::Rules { node: "0".repeat(16), conflicts: Conflicts::Newest };
    let next = Draft::new(&Author::Agent(librarian), Exposure::NONE, draft("librarian", "index", json!(3)));
    let batch = store.begin().unwrap();
    let (_, header) = batch.write(&next.unwrap(), &rules, 1).unwrap();
    batch.commit(None).unwrap();
    assert_eq!((header.seq, header.parent), (2, Some(before[6])));
}

#[test]
fn a_migration_that_is_cut_short_leaves_version_1() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    version_1(state);
    // Something that makes it fail at its end: the name of the last table it makes is taken.
    let db = rusqlite::Connection::open(database(state)).unwrap();
    db.execute_batch("CREATE TABLE vector (x)").unwrap();
    assert!(open_store(state, Quotas::default()).is_err());
    assert_eq!(count(state, "PRAGMA user_version"), 1);
    assert_eq!(count(state, "SELECT count(*) FROM sqlite_schema WHERE name = 'link'"), 0);
    db.execute_batch("DROP TABLE vector").unwrap();
    drop(db);
    open_store(state, Quotas::default()).unwrap();
}
