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
        // Without its number, which counts everybody's entries.
        assert_eq!(error.to_string(), "an entry of memory.db is damaged", "{sql}");
    }
    // A page goes on without them, and says so.
    write(place.memory(), &a, "whole", &json!(1)).unwrap();
    let page = place.memory().query(&a, &ask("", None, None)).unwrap();
    assert_eq!((page.entries.len(), page.damaged, page.cursor), (1, 4, None));
    let page = place.memory().history(&a, &chain("k0", None, None)).unwrap();
    assert_eq!((page.entries.len(), page.damaged), (0, 1));
    let query = crate::store::search::Query::parse("whole").unwrap();
    let found = place.memory().read(|store| store.search(&a, "", &query, None)).unwrap();
    assert_eq!((found.hits.len(), found.damaged), (1, 0));
}

#[test]
fn a_cursor_of_a_settled_conflict_goes_on_with_all_heads_of_the_next_key() {
    let place = Place::new(Quotas::default());
    let a = agent("a");
    for key in ["k2", "k2", "k1", "k1"] {
        write(place.memory(), &a, key, &json!(1)).unwrap();
    }
    let db = rusqlite::Connection::open(database(place.directory.path())).unwrap();
    let sql =
        "INSERT INTO head (agent, key, entry, newest) SELECT agent, key, min(id), 0 FROM entry GROUP BY key";
    db.execute(sql, []).unwrap();
    let ask = |limit, cursor| MemoryConflicts { agent: None, prefix: String::new(), limit, cursor };
    let first = place.memory().conflicts(&a, &ask(Some(1), None)).unwrap();
    assert_eq!(first.entries[0].key, "k1");
    db.execute("DELETE FROM head WHERE key = 'k1' AND newest = 0", []).unwrap();
    let rest = place.memory().conflicts(&a, &ask(None, first.cursor)).unwrap();
    assert_eq!(rest.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["k2", "k2"]);
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

/// Whether a text stands anywhere in the files of memory.db.
fn on_disk(state: &Path, text: &str) -> bool {
    ["memory.db", "memory.db-wal"].iter().any(|file| {
        let bytes = std::fs::read(state.join(file)).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[test]
fn what_is_forgotten_is_gone_from_the_disk_and_its_entry_proves_the_chain() {
    let place = Place::new(Quotas::default());
    let (a, memory, state) = (agent("a"), place.memory(), place.directory.path());
    let author = Author::Agent(a.clone());
    // Words that begin alike would be stored without what they share.
    let secret = |n: u64| crate::entry::sha256(&n.to_le_bytes()).hex();
    let rest = |n: u64| secret(n)[16..].to_owned();
    let mut entries = Vec::new();
    for n in 0..40 {
        // Some were replaced before they are forgotten: their words had left the index then.
        let mut write = draft("a", &format!("k{}", n % 30), json!({ "text": secret(n) }));
        write.vector = Some(vec![n as f32 + 0.123_456, 1.0]);
        entries.push(memory.write(&author, Exposure::NONE, write, &|_, _| true).unwrap());
    }
    memory
        .exclusively(&author, |store, _| {
            store.forgot();
            store.clear_log()
        })
        .unwrap()
        .unwrap();
    assert!((0..40).all(|n| on_disk(state, &secret(n))), "they are there before");
    let used = memory.list().unwrap()[0].bytes;
    for entry in &entries[..39] {
        let ask = MemoryForget { agent: None, hash: Some(entry.hash), key: None };
        assert_eq!(memory.forget(&author, &ask).unwrap().values, 1);
        assert_eq!(memory.forget(&author, &ask).unwrap().values, 0, "there is nothing left to forget");
    }
    for n in 0..39 {
        assert!(!on_disk(state, &rest(n)), "{n} is still on the disk");
    }
    assert!(on_disk(state, &rest(39)), "what was not forgotten");
    let left = memory.by_hash(&entries[3].hash).unwrap().unwrap();
    assert_eq!((left.value, left.forgotten.as_deref()), (Value::Null, Some("forgotten by agent a")));
    assert_eq!((left.labels, left.parent), (entries[3].labels.clone(), entries[3].parent));
    let saved = used - memory.list().unwrap()[0].bytes;
    assert_eq!(
        saved,
        39 * 8 + (0..39).map(|n| json!({ "text": secret(n) }).to_string().len() as u64).sum::<u64>()
    );
    let (events, _) = place.ledger().tail(1000, 1 << 20).unwrap();
    let told = events.iter().filter(|e| matches!(e.event, Event::MemoryForgotten { .. })).count();
    assert_eq!(told, 39, "each with its receipt");
    assert_eq!(count(state, "SELECT count(*) FROM vector"), 1);
}

#[test]
fn no_receipt_and_nothing_is_forgotten() {
    let place = Place::new(Quotas::default());
    let (a, memory) = (agent("a"), place.memory());
    let entry = write(memory, &a, "k", &json!(1)).unwrap();
    place.ledger().close();
    let ask = MemoryForget { agent: Some(a.clone()), hash: None, key: Some("k".into()) };
    let error = memory.forget(&Author::Agent(a.clone()), &ask).unwrap_err();
    assert!(matches!(error, MemoryError::Receipt(_)), "{error}");
    assert_eq!(memory.newest(&a, "k").unwrap(), Some(entry));
}

#[test]
fn a_batch_stands_whole_or_not_at_all_and_others_beside_it_stand() {
    let place = Place::new(Quotas { entries: 5, bytes: 100_000 });
    let (a, memory) = (agent("a"), place.memory());
    let author = Author::Agent(a.clone());
    let batch = |writes: Vec<MemoryWrite>| memory.batch(&author, Exposure::NONE, writes, &|_, _| true);
    let made =
        batch(vec![draft("a", "k", json!(1)), draft("a", "k", json!(2)), draft("b", "k", json!(3))]).unwrap();
    let hashes: Vec<_> = made.entries.iter().map(|e| e.hash).collect();
    assert_eq!(made.entries[1].parent, Some(hashes[0]), "in order");
    assert_eq!(made.entries[2].labels["nullbox.writer"], "agent a");
    // The last one is refused: by its parent, by the quota, by its shape.
    let mut stale = draft("a", "k", json!(4));
    stale.parent = Some(abi::memory::Expected::Entry(hashes[0]));
    let error = batch(vec![draft("a", "new", json!(4)), stale.clone()]).unwrap_err();
    assert!(matches!(&error, MemoryError::Conflict { newest, .. } if *newest == Some(hashes[1])), "{error}");
    let error = batch((0..4).map(|n| draft("a", "new", json!(n))).collect()).unwrap_err();
    assert!(matches!(error, MemoryError::Quota(_)), "{error}");
    assert!(batch(vec![draft("a", "new", json!(1)), draft("a", "", json!(1))]).is_err());
    assert!(batch(Vec::new()).is_err());
    let events = place.ledger().verify().unwrap().events;
    assert_eq!((memory.newest(&a, "new").unwrap(), events), (None, 3), "no entry, no receipt");
    // A refused batch and a good write that share a transaction.
    std::thread::scope(|scope| {
        for n in 0..8 {
            let stale = stale.clone();
            scope.spawn(move || {
                let author = Author::Agent(agent(&format!("w{n}")));
                let first = draft("c", &format!("k{n}"), json!(n));
                let second = if n % 2 == 0 { stale } else { draft("d", &format!("k{n}"), json!(n)) };
                memory.batch(&author, Exposure::NONE, vec![first, second], &|_, _| true).is_ok()
            });
        }
    });
    for n in 0..8 {
        let there =
            [agent("c"), agent("d")].map(|who| memory.newest(&who, &format!("k{n}")).unwrap().is_some());
        assert_eq!(there, [n % 2 == 1; 2]);
    }
}

#[test]
fn links_lead_only_to_what_the_writer_may_read() {
    let place = Place::new(Quotas::default());
    let memory = place.memory();
    let secret = write(memory, &agent("b"), "secret", &json!(1)).unwrap();
    let author = Author::Agent(agent("a"));
    let link = |to| {
        let mut write = draft("a", "k", json!(2));
        write.links = vec![abi::memory::Link { kind: "about".into(), to }];
        memory.write(&author, Exposure::NONE, write, &|owner, _| owner.as_str() == "a")
    };
    let denied = link(secret.hash).unwrap_err().to_string();
    let nothing = link(Digest([9; 32])).unwrap_err().to_string();
    let shown = |error: &str, hash: &Digest| error.replace(&hash.to_string(), "HASH");
    assert_eq!(shown(&denied, &secret.hash), shown(&nothing, &Digest([9; 32])), "another's looks like none");
    let own = write(memory, &agent("a"), "own", &json!(1)).unwrap();
    assert_eq!(link(own.hash).unwrap().links[0].to, own.hash);
}

#[test]
fn what_the_node_says_of_an_entry_cannot_be_said_by_its_writer() {
    let place = Place::new(Quotas::default());
    let (memory, author) = (place.memory(), Author::Agent(agent("a")));
    let base = || draft("a", "k", json!(1));
    let link = |kind: &str| vec![abi::memory::Link { kind: kind.into(), to: Digest([1; 32]) }];
    let labels = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let many = (0..=limits::MEMORY_LABELS_MAX).map(|n| (format!("l{n}"), String::new())).collect();
    for wrong in [
        MemoryWrite { labels: labels("nullbox.writer", "operator root"), ..base() },
        MemoryWrite { labels: labels("Upper", ""), ..base() },
        MemoryWrite { labels: labels("", ""), ..base() },
        MemoryWrite { labels: labels("l", "a\nb"), ..base() },
        MemoryWrite { labels: labels("l", &"x".repeat(limits::MEMORY_LABEL_VALUE_BYTES_MAX + 1)), ..base() },
        MemoryWrite { labels: many, ..base() },
        MemoryWrite { links: link(abi::memory::LINK_SUPERSEDES), ..base() },
        MemoryWrite { links: vec![link("x").remove(0); limits::MEMORY_LINKS_MAX + 1], ..base() },
        MemoryWrite { ttl_secs: Some(0), ..base() },
        MemoryWrite { ttl_secs: Some(limits::MEMORY_TTL_SECS_MAX + 1), ..base() },
        MemoryWrite { vector: Some(vec![0.0]), ..base() },
    ] {
        let shown = format!("{wrong:?}");
        let refused = memory.write(&author, Exposure::NONE, wrong, &|_, _| true);
        assert!(matches!(refused, Err(MemoryError::Draft(_))), "{shown}: {refused:?}");
    }
    let exposure = Exposure::PRIVATE_DATA.and(Exposure::EXFILTRATION);
    let entry = memory.write(&author, exposure, base(), &|_, _| true).unwrap();
    assert_eq!(
        (entry.exposure, entry.labels["nullbox.exposure"].as_str()),
        (exposure, "private_data exfiltration")
    );
}

#[test]
fn a_key_with_several_heads_is_written_on_or_refused_by_policy() {
    for conflicts in [Conflicts::Newest, Conflicts::Refuse] {
        let directory = tempfile::tempdir().unwrap();
        let mut store = open_store(directory.path(), Quotas::default()).unwrap();
        let a = agent("a");
        let batch = store.begin().unwrap();
        let hashes = [1, 2, 3].map(|n: u64| {
            let header = crate::entry::Header {
                agent: a.clone(),
                key: "k".into(),
                parent: None,
                seq: 0,
                unix_ms: n,
                labels: BTreeMap::new(),
                links: Vec::new(),
                value: crate::entry::sha256(b"1"),
            };
            let hash = header.hash().unwrap();
            assert!(batch.put(&header, hash, &crate::store::Held::Value("1"), None).unwrap());
            hash
        });
        let rules = crate::store::Rules { node: "0".repeat(16), conflicts };
        let mut next = draft("a", "k", json!(2));
        let write = |next: &MemoryWrite| {
            let drafted = Draft::new(&Author::Agent(a.clone()), Exposure::NONE, next.clone()).unwrap();
            batch.write(&drafted, &rules, 9)
        };
        next.parent = Some(abi::memory::Expected::Entry(hashes[0]));
        assert!(matches!(write(&next), Err(StoreError::Conflict { .. })), "a head, and not the newest");
        next.parent = None;
        if conflicts == Conflicts::Refuse {
            assert!(matches!(write(&next), Err(StoreError::Heads { heads, .. }) if heads.len() == 3));
            next.parent = Some(abi::memory::Expected::Entry(hashes[2]));
        }
        let (hash, header) = write(&next).unwrap();
        batch.commit(None).unwrap();
        assert_eq!(header.parent, Some(hashes[2]));
        let mut superseded: Vec<_> = header.links.iter().map(|link| link.to).collect();
        superseded.sort();
        let mut others = hashes[..2].to_vec();
        others.sort();
        assert_eq!(superseded, others);
        let newest = store.newest(&a, "k").unwrap().unwrap();
        assert_eq!((newest.hash, newest.conflicts.len()), (hash, 0));
    }
}

/// An entry of another node.
fn foreign(key: &str, parent: Option<Digest>, n: u64) -> (Digest, crate::entry::Header) {
    let header = crate::entry::Header {
        agent: agent("a"),
        key: key.into(),
        parent,
        seq: n,
        unix_ms: n,
        labels: BTreeMap::new(),
        links: Vec::new(),
        value: crate::entry::sha256(b"1"),
    };
    (header.hash().unwrap(), header)
}

#[test]
fn a_write_supersedes_as_many_heads_as_fit_an_answer_and_the_next_the_rest() {
    let place = Place::new(Quotas::default());
    let (a, memory) = (agent("a"), place.memory());
    let put = |store: &mut Store, _: &Ledger| {
        let batch = store.begin().unwrap();
        for n in 1..=200 {
            let (hash, header) = foreign("k", None, n);
            batch.put(&header, hash, &crate::store::Held::Value("1"), None).unwrap();
        }
        batch.commit(None).unwrap();
    };
    memory.exclusively(&Author::Operator("o".into()), put).unwrap();
    assert_eq!(memory.newest(&a, "k").unwrap().unwrap().unix_ms, 200);
    let mut superseded = std::collections::BTreeSet::new();
    for count in [64, 64, 64, 7, 0] {
        let value = json!("x".repeat(limits::MEMORY_VALUE_BYTES_MAX - 2));
        let entry = write(memory, &a, "k", &value).unwrap();
        assert_eq!(entry.links.len(), count);
        assert!(serde_json::to_vec(&entry).unwrap().len() < limits::LINE_BYTES_MAX - 1024);
        superseded.extend(entry.links.iter().map(|link| link.to));
        assert_eq!(memory.newest(&a, "k").unwrap().unwrap().hash, entry.hash);
    }
    assert_eq!(superseded.len(), 199);
    assert_eq!(count(place.directory.path(), "SELECT count(*) FROM head"), 1);
}

#[test]
fn a_chain_that_comes_in_any_order_ends_with_its_last_entry_as_the_head() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open_store(directory.path(), Quotas::default()).unwrap();
    let mut chain = Vec::new();
    let mut parent = None;
    for n in 1..=60 {
        chain.push(foreign("k", parent, n));
        parent = chain.last().map(|(hash, _)| *hash);
    }
    let last = parent.unwrap();
    chain.sort_by_key(|(hash, _)| *hash);
    let batch = store.begin().unwrap();
    for (hash, header) in &chain {
        batch.put(header, *hash, &crate::store::Held::Value("1"), None).unwrap();
        let newest = "SELECT count(*) FROM head WHERE newest = 1";
        assert_eq!(batch.db().query_row(newest, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }
    batch.commit(None).unwrap();
    let newest = store.newest(&agent("a"), "k").unwrap().unwrap();
    assert_eq!((newest.hash, newest.conflicts.len()), (last, 0));
    assert_eq!(count(directory.path(), "SELECT count(*) FROM head"), 1);
    assert_eq!(count(directory.path(), "SELECT count(*) FROM search"), 1, "only its words are there");
}

#[test]
fn others_write_while_a_key_of_many_entries_is_forgotten() {
    let place = Place::new(Quotas::default());
    let memory = place.memory();
    let author = Author::Agent(agent("a"));
    for _ in 0..20 {
        let writes = (0..64).map(|n| draft("a", "k", json!(n))).collect();
        memory.batch(&author, Exposure::NONE, writes, &|_, _| true).unwrap();
    }
    let begun = place.ledger().verify().unwrap().events;
    let ask = MemoryForget { agent: Some(agent("a")), hash: None, key: Some("k".into()) };
    let done = std::sync::atomic::AtomicBool::new(false);
    let forgot = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                write(memory, &agent("b"), "k", &json!(1)).unwrap();
            }
        });
        let forgot = memory.forget(&author, &ask).unwrap();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        forgot
    });
    assert_eq!(forgot.values, 20 * 64);
    let (events, _) = place.ledger().tail(2000, 1 << 20).unwrap();
    let kinds = events.iter().filter(|event| event.seq >= begun);
    let kinds: Vec<bool> = kinds.map(|e| matches!(e.event, Event::MemoryForgotten { .. })).collect();
    let first = kinds.iter().position(|forgotten| *forgotten).unwrap();
    let last = kinds.iter().rposition(|forgotten| *forgotten).unwrap();
    let between = kinds[first..last].iter().filter(|forgotten| !**forgotten).count();
    assert!(between >= 5, "{between} writes of another had their turn");
    assert_eq!(memory.forget(&author, &ask).unwrap().values, 0);
}

#[test]
fn overlapping_readers_do_not_let_the_log_grow() {
    let place = Place::new(Quotas::default());
    let (memory, state) = (place.memory(), place.directory.path());
    let author = Author::Operator("o".into());
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut before, mut emptied) = (0, false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = Store::open_reader(&database(state)).unwrap();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _view = store.snapshot().unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            });
        }
        // Several times: on a busy machine a reader may stand there for longer than the writer waits.
        for _ in 0..120 {
            memory
                .exclusively(&author, |store, _| {
                    let table = "CREATE TABLE IF NOT EXISTS filler (data BLOB)";
                    store.db().execute_batch(table).unwrap();
                    store.db().execute("INSERT INTO filler VALUES (randomblob(1000000))", []).unwrap();
                })
                .unwrap();
            let log = std::fs::metadata(state.join("memory.db-wal")).unwrap().len();
            emptied = log < before;
            before = log;
            if emptied {
                break;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(emptied, "the log has {before} bytes");
}

#[test]
fn a_damaged_row_does_not_keep_others_from_being_forgotten() {
    let place = Place::new(Quotas::default());
    let memory = place.memory();
    let author = Author::Agent(agent("a"));
    for n in 0..200 {
        let mut short = draft("a", &format!("short/{n}"), json!(n));
        short.ttl_secs = Some(1);
        let writes = vec![short, draft("a", "many", json!(n))];
        memory.batch(&author, Exposure::NONE, writes, &|_, _| true).unwrap();
    }
    let db = rusqlite::Connection::open(database(place.directory.path())).unwrap();
    // More of them than one round takes, so that none is got past by luck.
    for damage in [
        "UPDATE entry SET hash = randomblob(8) WHERE id % 2 = 1 AND id < 160",
        "UPDATE entry SET agent = 'A B' WHERE id IN (166, 168)",
    ] {
        db.execute(damage, []).unwrap();
    }
    drop(db);
    let due = |store: &mut Store, ledger: &Ledger| {
        let retention = Retention { keep_versions: 3, keep_days: 0 };
        let mut looked = writer::Looked::default();
        while writer::forget_due(store, ledger, retention, unix_ms() + 10_000, &mut looked).unwrap() {}
    };
    memory.exclusively(&author, due).unwrap();
    let left = |what: &str| {
        count(
            place.directory.path(),
            &format!("SELECT count(*) FROM entry WHERE value IS NOT NULL AND {what}"),
        )
    };
    assert_eq!(left("key LIKE 'short/%'"), 80, "those that cannot be read");
    assert_eq!(left("key = 'many'"), 3 + 2);
}

#[test]
fn a_value_that_cannot_be_deleted_does_not_keep_others_from_being_forgotten() {
    let place = Place::new(Quotas::default());
    let memory = place.memory();
    let author = Author::Agent(agent("a"));
    for n in 0..100 {
        let mut short = draft("a", &format!("k/{n}"), json!(n));
        short.ttl_secs = Some(1);
        memory.write(&author, Exposure::NONE, short, &|_, _| true).unwrap();
    }
    let due = |store: &mut Store, ledger: &Ledger| {
        let fails = "CREATE TEMP TRIGGER fails BEFORE UPDATE ON entry WHEN old.id IN (5, 70)
            BEGIN SELECT raise(ABORT, 'a page that cannot be read'); END";
        store.db().execute_batch(fails).unwrap();
        let mut looked = writer::Looked::default();
        writer::forget_due(store, ledger, Retention::default(), unix_ms() + 10_000, &mut looked).unwrap();
        store.db().execute_batch("DROP TRIGGER fails").unwrap();
    };
    memory.exclusively(&author, due).unwrap();
    let left = "SELECT group_concat(id) FROM entry WHERE value IS NOT NULL";
    let db = rusqlite::Connection::open(database(place.directory.path())).unwrap();
    assert_eq!(db.query_row(left, [], |row| row.get::<_, String>(0)).unwrap(), "5,70");
    let (events, _) = place.ledger().tail(1000, 1 << 20).unwrap();
    let told = events.iter().filter(|e| matches!(e.event, Event::MemoryForgotten { .. })).count();
    assert_eq!(told, 98, "a receipt for each that went");
}

#[test]
fn what_is_forgotten_while_it_is_checked_is_not_called_damaged() {
    let place = Place::new(Quotas::default());
    let memory = place.memory();
    let author = Author::Agent(agent("a"));
    for n in 0..2 {
        let mut write = draft("a", &format!("k/{n}"), json!("x".repeat(100)));
        write.vector = Some(vec![1.0; 100]);
        memory.write(&author, Exposure::NONE, write, &|_, _| true).unwrap();
    }
    let store = Store::open_reader(&database(place.directory.path())).unwrap();
    let (mut lost, mut sizes) = (Vec::new(), Vec::new());
    let forget_the_second = |size| {
        let ask = MemoryForget { agent: Some(agent("a")), hash: None, key: Some("k/1".into()) };
        memory.forget(&author, &ask).unwrap();
        sizes.push(size);
        true
    };
    store.check_rows(1..=2, |one| lost.push(one), forget_the_second).unwrap();
    // One view of both its value and its vector: neither is gone before the check is over.
    assert_eq!((sizes[0], lost), (sizes[1], Vec::new()));
}
