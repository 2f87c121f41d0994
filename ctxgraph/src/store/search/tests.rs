//! Full text against a naive search, and against queries made to break it.

use super::*;
use crate::testing::{Random, property, seed};
use proptest::prelude::*;
use serde_json::json;

fn database() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(&format!("{ENTRY} {SCHEMA}")).unwrap();
    db
}

/// As much of the store's tables as a search looks at.
const ENTRY: &str =
    "CREATE TABLE entry (id INTEGER PRIMARY KEY, agent TEXT, key TEXT, labels TEXT, value TEXT);
CREATE VIEW head AS SELECT agent, key, id AS entry, 1 AS newest FROM entry;";

fn put(db: &Connection, id: i64, agent: &str, key: &str, labels: &BTreeMap<String, String>, value: &Value) {
    let values = params![id, agent, key, serde_json::to_string(labels).unwrap(), value.to_string()];
    db.execute("INSERT INTO entry VALUES (?1, ?2, ?3, ?4, ?5)", values).unwrap();
    index(db, id, &agent.parse().unwrap(), key, labels, value).unwrap();
}

fn take_out(db: &Connection, id: i64) {
    let [agent, key, labels, value] = ["agent", "key", "labels", "value"].map(|column| {
        let sql = format!("SELECT {column} FROM entry WHERE id = ?1");
        db.query_row(&sql, [id], |row| row.get::<_, String>(0)).unwrap()
    });
    let (labels, value) = (serde_json::from_str(&labels).unwrap(), serde_json::from_str(&value).unwrap());
    unindex(db, id, &agent.parse().unwrap(), &key, &labels, &value).unwrap();
}

fn rows(db: &Connection, agent: &str, prefix: &str, text: &str) -> Vec<i64> {
    let query = Query::parse(text).unwrap();
    let found = find(db, &agent.parse().unwrap(), prefix, &query, usize::MAX).unwrap();
    assert!(!found.truncated);
    found.rows.into_iter().map(|(id, _)| id).collect()
}

/// Strings of an entry, each as its words; all letters are ASCII here, so that no table is needed.
fn naive_words(key: &str, labels: &BTreeMap<String, String>, value: &Value) -> Vec<Vec<String>> {
    fn strings(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::String(text) => into.push(text.clone()),
            Value::Array(values) => values.iter().for_each(|value| strings(value, into)),
            Value::Object(members) => members.values().for_each(|value| strings(value, into)),
            _ => {}
        }
    }
    let mut all = vec![key.to_owned()];
    all.extend(labels.values().cloned());
    strings(value, &mut all);
    let cut = |text: &String| {
        let words = text.split(|char: char| !char.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_ascii_lowercase).collect()
    };
    all.iter().map(cut).collect()
}

/// How often a phrase, whose last word may be a beginning, is in the strings.
fn naive_times(strings: &[Vec<String>], phrase: &[String], begins: bool) -> usize {
    let is = |window: &[String]| {
        window.iter().zip(phrase).enumerate().all(|(n, (word, wanted))| {
            match begins && n + 1 == phrase.len() {
                true => word.starts_with(wanted),
                false => word == wanted,
            }
        })
    };
    strings.iter().map(|words| words.windows(phrase.len()).filter(|window| is(window)).count()).sum()
}

#[test]
fn what_is_found_and_its_distance_are_those_of_a_naive_search() {
    let mut random = Random::new();
    let vocabulary = ["fox", "foxes", "dog", "Quick", "brown", "lazy", "over", "x1", "f"];
    let mut text = move |most: u64| {
        let count = random.below(most);
        let words: Vec<_> =
            (0..count).map(|_| vocabulary[random.below(vocabulary.len() as u64) as usize]).collect();
        (words.join([" ", ", ", "-", "\""][random.below(4) as usize]), random.below(1000))
    };
    let db = database();
    let mut model = BTreeMap::new();
    for id in 1..=300 {
        let (key, choice) = text(3);
        let agent = ["a", "A", "b"][choice as usize % 3];
        let key = format!("{}{key}{id}", ["n/", "m/"][choice as usize % 2]);
        let labels = BTreeMap::from([("l".to_owned(), text(3).0)]);
        let value = json!({ "t": text(40).0, "list": [text(4).0, 7, null, [text(4).0]] });
        put(&db, id, agent, &key, &labels, &value);
        model.insert(id, (agent, key, labels, value));
        if choice % 5 == 0 {
            take_out(&db, id);
            model.remove(&id);
        }
    }
    let mut answered = 0;
    for _ in 0..400 {
        let ((phrase, choice), (word, other), (begin, _)) = (text(4), text(3), text(2));
        let begin = begin.get(..2).filter(|_| other % 2 == 0).unwrap_or_default().to_owned();
        let words = |text: &str| naive_words(text, &BTreeMap::new(), &Value::Null).remove(0);
        let mut terms: Vec<(Vec<String>, bool)> = vec![(words(&phrase), false)];
        terms.extend(words(&word).into_iter().map(|word| (vec![word], false)));
        terms.extend(words(&begin).into_iter().map(|word| (vec![word], true)));
        terms.retain(|(words, _)| !words.is_empty());
        let asked =
            format!("\"{}\" {} {begin}*", phrase.replace('"', "-"), word.replace(['"', '-', ','], " "));
        let (agent, prefix) = (["a", "A", "b"][choice as usize % 3], ["", "n/", "m/f"][other as usize % 3]);
        let Ok(query) = Query::parse(&asked) else {
            assert!(terms.is_empty(), "{asked}");
            continue;
        };
        let mut expected = Vec::new();
        for (id, (owner, key, labels, value)) in &model {
            let strings = naive_words(key, labels, value);
            let length = strings.iter().flatten().count() as f64;
            let times: Vec<_> =
                terms.iter().map(|(words, begins)| naive_times(&strings, words, *begins) as f64).collect();
            if *owner == agent && key.starts_with(prefix) && times.iter().all(|times| *times > 0.0) {
                let score = |times: &f64| times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / 64.0));
                expected.push((*id, -times.iter().map(score).sum::<f64>()));
            }
        }
        let mut found = find(&db, &agent.parse().unwrap(), prefix, &query, usize::MAX).unwrap().rows;
        assert!(found.is_sorted_by(|one, other| one.1 <= other.1), "best first: {found:?}");
        answered += found.len();
        found.sort_by_key(|(id, _)| *id);
        let close =
            |(one, other): (&(i64, f64), &(i64, f64))| one.0 == other.0 && (one.1 - other.1).abs() < 1e-9;
        assert!(
            found.len() == expected.len() && found.iter().zip(&expected).all(close),
            "`{asked}` of {agent} under `{prefix}`: {found:?} instead of {expected:?}"
        );
    }
    assert!(answered > 500, "the trace asks for what is there: {answered}");
}

#[test]
fn no_text_reaches_the_grammar_of_fts5() {
    let db = database();
    put(&db, 1, "a", "k", &BTreeMap::new(), &json!("words and or not near col x"));
    for (text, found) in [
        ("words AND \"or\"", true),
        ("NEAR(words x, 5)", false), // `5` is a word and not there
        ("NOT words", true),
        ("words: x", true),
        ("{words} : ^x", true),
        ("- words : \"x", true),
        ("search MATCH 'words'", false),
        ("\"words and\" OR \"not near\"", true),
        ("'); DROP TABLE search; --", false),
    ] {
        assert_eq!(rows(&db, "a", "", text), if found { vec![1] } else { vec![] }, "{text}");
    }
    for nothing in ["", "   ", "***", "\"\"", "\"*\" -", "\u{301}"] {
        assert_eq!(Query::parse(nothing), Err(QueryError::NoWord), "{nothing}");
    }
    assert_eq!(Query::parse("a*"), Err(QueryError::ShortPrefix("a".into())));
    let many = "w ".repeat(limits::MEMORY_SEARCH_WORDS_MAX + 1);
    assert_eq!(Query::parse(&many), Err(QueryError::Words(limits::MEMORY_SEARCH_WORDS_MAX + 1)));
}

#[test]
fn any_text_is_answered_or_refused_and_finds_itself() {
    let text = prop_oneof![any::<String>(), "[ \"*:^(){}+\\-a-cA-Zé東NEARORNOT0-9\u{0}\u{301}]{0,40}"];
    property(400, (text.clone(), text), |(kept, asked)| {
        let db = database();
        put(&db, 1, "a", "k", &BTreeMap::new(), &json!(kept));
        if let Ok(query) = Query::parse(&asked) {
            find(&db, &"a".parse().unwrap(), "", &query, 10).unwrap();
        }
        if let Ok(query) = Query::parse(&format!("\"{}\"", kept.replace('"', " "))) {
            assert_eq!(find(&db, &"a".parse().unwrap(), "", &query, 10).unwrap().rows.len(), 1, "{kept:?}");
        }
    });
}

#[test]
fn another_agents_entries_are_not_found_and_move_nothing() {
    let db = database();
    put(&db, 1, "a", "k1", &BTreeMap::new(), &json!("secret plan of ours"));
    put(&db, 2, "a", "k2", &BTreeMap::new(), &json!("a plan"));
    let (agent, query) = ("a".parse().unwrap(), Query::parse("pl*").unwrap());
    let before = find(&db, &agent, "", &query, 10).unwrap();
    assert_eq!(before.rows.len(), 2);
    for id in 10..500 {
        put(&db, id, "b", "k1", &BTreeMap::new(), &json!("plan plan planet secret"));
    }
    assert_eq!(find(&db, &agent, "", &query, 10).unwrap(), before);
    assert_eq!(rows(&db, "a", "k2", "secret"), [0; 0]);
    assert_eq!(rows(&db, "b", "", "ours"), [0; 0]);
    assert_eq!(rows(&db, "B", "", "plan"), [0; 0], "names are case-sensitive");
}

#[test]
fn a_search_looks_at_the_newest_rows_only_and_says_so() {
    let db = database();
    let _ = seed();
    db.execute_batch("BEGIN").unwrap();
    let more = limits::MEMORY_SEARCH_ROWS_MAX as i64 + 5;
    for id in 1..=more {
        put(&db, id, "a", "k", &BTreeMap::new(), &json!("common"));
    }
    db.execute_batch("COMMIT").unwrap();
    let query = Query::parse("common").unwrap();
    let found = find(&db, &"a".parse().unwrap(), "", &query, 3).unwrap();
    assert_eq!(found.rows.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [more, more - 1, more - 2]);
    assert!(found.truncated);
    // A row of great values each: bounded in bytes too.
    let db = database();
    let long = json!("common ".repeat(4000));
    let fit = limits::MEMORY_SEARCH_BYTES_MAX / long.to_string().len() + 1;
    for id in 1..=fit as i64 + 3 {
        put(&db, id, "a", "k", &BTreeMap::new(), &long);
    }
    let found = find(&db, &"a".parse().unwrap(), "", &query, usize::MAX).unwrap();
    assert_eq!((found.rows.len(), found.truncated), (fit, true));
}

#[test]
fn what_was_taken_out_is_not_in_the_file_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let held = |word: &[u8]| std::fs::read(&path).unwrap().windows(word.len()).any(|window| window == word);
    let db = Connection::open(&path).unwrap();
    db.execute_batch(&format!("PRAGMA secure_delete=ON; {ENTRY} {SCHEMA}")).unwrap();
    for id in 1..=200 {
        put(&db, id, "a", "k", &BTreeMap::new(), &json!(format!("zebra{id} common")));
    }
    assert!(held(b"zebra77") || held(b"common"), "words are in the file as they are");
    for id in 1..=200 {
        take_out(&db, id);
        db.execute("DELETE FROM entry WHERE id = ?1", [id]).unwrap();
    }
    assert!(!held(b"zebra") && !held(b"common"));
    db.execute("INSERT INTO search (search) VALUES ('integrity-check')", []).unwrap();
    assert_eq!(rows(&db, "a", "", "common"), [0; 0]);
}
