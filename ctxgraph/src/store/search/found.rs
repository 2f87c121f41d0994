//! What the store finds, by words and by vectors, is the newest of each key, with a value.

use crate::draft::{Author, Draft};
use crate::store::search::{self, Query};
use crate::store::vector::Vector;
use crate::store::{Quotas, Rules, Store, StoreError};
use abi::control::{Hits, MemoryWrite};
use abi::exposure::Exposure;
use abi::limits;
use abi::node::Conflicts;
use serde_json::{Value, json};

struct Place {
    store: Store,
    _directory: tempfile::TempDir,
    clock: u64,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("memory.db"), Quotas::default()).unwrap();
        Place { store, _directory: directory, clock: 0 }
    }

    fn write(&mut self, agent: &str, key: &str, value: Value, vector: Option<Vec<f32>>) -> i64 {
        let write = json!({ "agent": agent, "key": key, "value": value, "vector": vector, "labels": { "l": "tagged" } });
        let write: MemoryWrite = serde_json::from_value(write).unwrap();
        let draft = Draft::new(&Author::Agent(agent.parse().unwrap()), Exposure::NONE, write).unwrap();
        let rules = Rules { node: "00".repeat(8), conflicts: Conflicts::Newest };
        self.clock += 1;
        let batch = self.store.begin().unwrap();
        let (hash, _) = batch.write(&draft, &rules, self.clock).unwrap();
        let sql = "SELECT id FROM entry WHERE hash = ?1";
        let id = batch.db().query_row(sql, [hash.0], |row| row.get(0)).unwrap();
        batch.commit(None).unwrap();
        id
    }

    fn search(&self, agent: &str, prefix: &str, text: &str) -> Vec<Value> {
        let query = Query::parse(text).unwrap();
        let found = self.store.search(&agent.parse().unwrap(), prefix, &query, None).unwrap();
        found.hits.into_iter().map(|hit| hit.entry.value).collect()
    }

    fn nearest_of(&self, agent: &str, prefix: &str, vector: [f32; 2]) -> Hits {
        let to = Vector::new(&vector).unwrap();
        self.store.nearest(&agent.parse().unwrap(), prefix, &to, Some(2)).unwrap()
    }

    fn nearest(&self, agent: &str, vector: [f32; 2]) -> Result<Vec<Value>, StoreError> {
        let to = Vector::new(&vector).unwrap();
        let found = self.store.nearest(&agent.parse().unwrap(), "", &to, Some(2))?;
        Ok(found.hits.into_iter().map(|hit| hit.entry.value).collect())
    }
}

#[test]
fn the_newest_entries_with_a_value_are_found_and_no_others() {
    let mut place = Place::new();
    place.write("a", "n/1", json!("red fox"), Some(vec![1.0, 0.0]));
    let fox = place.write("a", "n/2", json!({ "of": ["Réd", "foxes"] }), Some(vec![0.0, 1.0]));
    place.write("b", "n/1", json!("red fox of b"), Some(vec![1.0, 0.0]));
    assert_eq!(
        place.search("a", "", "red"),
        [json!({ "of": ["Réd", "foxes"] }), json!("red fox")],
        "of two as good, the newer"
    );
    assert_eq!(place.search("a", "n/2", "tagged fox*").len(), 1, "labels are words too");
    assert_eq!(place.nearest("a", [0.9, 0.1]).unwrap()[0], json!("red fox"));
    // Overwritten: the older one is history.
    place.write("a", "n/1", json!("blue"), None);
    assert_eq!(place.search("a", "", "red").len(), 1);
    assert_eq!(place.search("a", "", "blue"), [json!("blue")]);
    assert_eq!(place.nearest("a", [0.9, 0.1]).unwrap(), [json!({ "of": ["Réd", "foxes"] })]);
    // Forgotten.
    let batch = place.store.begin().unwrap();
    batch.erase(fox, "test").unwrap();
    batch.commit(None).unwrap();
    assert!(place.search("a", "", "red").is_empty() && place.nearest("a", [1.0, 1.0]).unwrap().is_empty());
    assert_eq!(place.search("b", "", "red").len(), 1);
}

#[test]
fn an_index_that_says_what_is_not_so_is_not_believed() {
    let mut place = Place::new();
    let first = place.write("a", "k", json!("red"), Some(vec![1.0, 0.0]));
    place.write("a", "k", json!("blue"), Some(vec![0.0, 1.0]));
    // A row of the index for what is not the newest, under another agent's mark too.
    for name in ["a", "b"] {
        let agent = name.parse().unwrap();
        search::unindex(place.store.db(), first, &agent, "k", &Default::default(), &json!("red")).unwrap();
        search::index(place.store.db(), first, &agent, "k", &Default::default(), &json!("red")).unwrap();
        assert!(place.search(name, "", "red").is_empty(), "{name}");
    }
    // A vector that was changed behind our back.
    place.store.db().execute("UPDATE vector SET data = ?1", [[1u8; 8]]).unwrap();
    place.write("a", "other", json!("green"), Some(vec![0.0, 1.0]));
    let found = place.nearest_of("a", "", [0.0, 1.0]);
    assert_eq!((found.damaged, found.hits.len()), (1, 1), "it is left out, and said so");
    assert_eq!(found.hits[0].entry.value, json!("green"));
    // A row of the index that stands under another's name, or prefix, shows nothing of it.
    place.store.db().execute("UPDATE vector SET agent = 'b', key = 'n/x' WHERE dimensions = 2", []).unwrap();
    assert!(place.nearest_of("b", "n/", [0.0, 1.0]).hits.is_empty());
    // So do rows of heads and labels.
    place.store.db().execute_batch("PRAGMA foreign_keys=OFF; UPDATE head SET agent = 'b', key = 'n/' || key; UPDATE label SET agent = 'b'").unwrap();
    let b = "b".parse().unwrap();
    for labels in [json!({}), json!({ "l": "tagged" })] {
        let query = serde_json::from_value(json!({ "labels": labels })).unwrap();
        assert!(place.store.query(&b, &query).unwrap().entries.is_empty());
    }
    assert_eq!(place.store.newest(&b, "n/k").unwrap(), None);
}

#[test]
fn hits_end_where_a_line_would() {
    let mut place = Place::new();
    for number in 0..40 {
        place.write("a", &format!("k{number}"), json!("large ".repeat(5000)), None);
    }
    let query = Query::parse("large").unwrap();
    let found = place.store.search(&"a".parse().unwrap(), "", &query, Some(256)).unwrap();
    assert!(found.truncated && !found.hits.is_empty() && found.hits.len() < 40);
    assert!(serde_json::to_vec(&found).unwrap().len() < limits::LINE_BYTES_MAX);
}
