//! Memory against a model, quotas, damage and a ledger that refuses.

use super::*;
use crate::ledger::storage::SegmentFile;
use crate::testing::Random;
use ::ledger::frame::SegmentHeader;
use abi::control::MemoryHistory;
use serde_json::json;
use std::collections::BTreeMap;

struct Place {
    directory: tempfile::TempDir,
    memory: Option<(Memory, Arc<Ledger>)>,
    quotas: Quotas,
}

impl Place {
    fn new(quotas: Quotas) -> Place {
        let mut place = Place { directory: tempfile::tempdir().unwrap(), memory: None, quotas };
        place.restart();
        place
    }

    fn restart(&mut self) {
        self.memory = None;
        let state = self.directory.path();
        let store = open_store(state, self.quotas).unwrap();
        let header = || SegmentHeader::genesis([3; 32]).encode();
        let segment = SegmentFile::open_or_create(&state.join("ledger"), header).unwrap();
        let ledger = Arc::new(Ledger::open(Box::new(segment), store.witness().unwrap()).unwrap());
        ledger.health().unwrap();
        self.memory = Some((Memory::start(store, &database(state), ledger.clone()).unwrap(), ledger));
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
    let entries: Vec<Entry> = [1, 2, 1].map(|n| memory.write(&a, "k", &json!(n)).unwrap()).into();
    assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(entries[0].hash != entries[2].hash && entries[0].value == entries[2].value);
    assert_eq!(entries[0].parent, None);
    assert_eq!(entries[1].parent, Some(entries[0].hash));
    assert_eq!(entries[2].parent, Some(entries[1].hash));
    let history = memory.history(&a, &chain("k", None, None)).unwrap();
    assert_eq!(history.entries, entries.iter().rev().cloned().collect::<Vec<_>>());
    // The other chain under another key begins anew, in the same sequence.
    let other = memory.write(&a, "l", &json!(1)).unwrap();
    assert_eq!((other.parent, other.seq), (None, 3));
}

#[test]
fn every_write_has_its_receipt_in_the_ledger() {
    let place = Place::new(Quotas::default());
    let entry = place.memory().write(&agent("a"), "k", &json!("secret text")).unwrap();
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
    place.memory().write(&a, "k", &json!(1)).unwrap();
    place.ledger().close();
    let error = place.memory().write(&a, "k", &json!(2)).unwrap_err();
    assert!(matches!(error, MemoryError::Receipt(_)), "{error}");
    assert_eq!(place.memory().newest(&a, "k").unwrap().unwrap().value, json!(1));
}

#[test]
fn memory_agrees_with_a_model_over_random_traces_and_restarts() {
    let mut random = Random::new();
    let mut place = Place::new(Quotas::default());
    let agents = ["a", "b", "A-1"].map(agent);
    let keys = ["k", "k/1", "k/2", "k/10", "é", "z\u{10ffff}", "zz", "K"];
    let mut model: BTreeMap<(AgentName, String), Vec<Entry>> = BTreeMap::new();
    for step in 0..400 {
        let who = agents[random.below(3) as usize].clone();
        let key = keys[random.below(8) as usize].to_owned();
        match random.below(10) {
            0..5 => {
                let size = random.below(4) * random.below(9000);
                let value = json!({ "step": step, "pad": "p".repeat(size as usize) });
                let entry = place.memory().write(&who, &key, &value).unwrap();
                let chain = model.entry((who, key)).or_default();
                assert_eq!(entry.parent, chain.last().map(|e| e.hash));
                chain.push(entry);
            }
            5 => place.restart(),
            6 => {
                let newest = place.memory().newest(&who, &key).unwrap();
                assert_eq!(newest.as_ref(), model.get(&(who.clone(), key)).and_then(|c| c.last()));
                if let Some(entry) = newest {
                    assert_eq!(place.memory().by_hash(&who, &entry.hash).unwrap().as_ref(), Some(&entry));
                    let other = agents.iter().find(|a| **a != who).unwrap();
                    assert_eq!(place.memory().by_hash(other, &entry.hash).unwrap(), None);
                }
            }
            7 => {
                let limit = Some(1 + random.below(5) as u32);
                let found =
                    pages(|cursor| place.memory().history(&who, &chain(&key, limit, cursor)).unwrap());
                let mut expected = model.get(&(who, key)).cloned().unwrap_or_default();
                expected.reverse();
                assert_eq!(found, expected);
            }
            _ => {
                let prefix = ["", "k", "k/", "k/1", "z", "é", "nothing"][random.below(7) as usize];
                let limit = Some(1 + random.below(5) as u32);
                let found = pages(|cursor| place.memory().query(&who, &ask(prefix, limit, cursor)).unwrap());
                let expected: Vec<Entry> = model
                    .iter()
                    .filter(|((owner, key), _)| *owner == who && key.starts_with(prefix))
                    .map(|(_, chain)| chain.last().unwrap().clone())
                    .collect();
                assert_eq!(found, expected);
            }
        }
    }
    for used in place.memory().list().unwrap() {
        let own: Vec<_> = model.iter().filter(|((owner, _), _)| *owner == used.agent).collect();
        assert_eq!(used.keys, own.len() as u64);
        assert_eq!(used.entries, own.iter().map(|(_, c)| c.len() as u64).sum::<u64>());
    }
}

#[test]
fn quotas_of_entries_and_bytes_refuse_one_agent_and_not_the_other() {
    let place = Place::new(Quotas { entries: 3, bytes: 1000 });
    let memory = place.memory();
    for n in 0..3 {
        memory.write(&agent("a"), "k", &json!(n)).unwrap();
    }
    let error = memory.write(&agent("a"), "k", &json!(3)).unwrap_err();
    assert!(error.to_string().contains("3 entries, the quota is 3"), "{error}");
    memory.write(&agent("b"), "k", &json!("x".repeat(900))).unwrap();
    let error = memory.write(&agent("b"), "k", &json!("x".repeat(200))).unwrap_err();
    assert!(error.to_string().contains("bytes, the quota is 1000"), "{error}");
    memory.write(&agent("b"), "k", &json!(1)).unwrap();
}

#[test]
fn keys_and_values_hold_their_limits() {
    let place = Place::new(Quotas::default());
    let (a, memory) = (agent("a"), place.memory());
    for bad in ["", "a\nb", "a\0", &"x".repeat(limits::MEMORY_KEY_BYTES_MAX + 1)] {
        assert!(memory.write(&a, bad, &json!(1)).is_err(), "{bad:?}");
    }
    let largest = json!("x".repeat(limits::MEMORY_VALUE_BYTES_MAX - 2));
    assert_eq!(memory.write(&a, "k", &largest).unwrap().value, largest);
    let error = memory.write(&a, "k", &json!("x".repeat(limits::MEMORY_VALUE_BYTES_MAX - 1)));
    assert_eq!(error, Err(MemoryError::ValueLength(limits::MEMORY_VALUE_BYTES_MAX + 1)));
    assert!(memory.write(&a, "k", &json!(9_007_199_254_740_993_u64)).is_err());
    assert_eq!(memory.write(&a, "k", &json!(1.0)).unwrap().value, json!(1));
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
                    memory.write(&own, &format!("k{writer}"), &json!(n)).unwrap();
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
        let entry = place.memory().write(&a, &key, &json!(1)).unwrap();
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
