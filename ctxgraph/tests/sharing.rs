//! Memory that agents share, and what reading it does: the real service, as cage and agents speak to it.

mod node;

use abi::control::MemoryAttach;
use abi::exposure::Exposure;
use abi::memory::{MemoryGrants, MemoryScope, MemoryShares};
use abi::rpc::{Code, Request, RpcError};
use abi::wire::Connection;
use node::{Node, agent, call};
use serde_json::{Value, json};
use std::path::Path;

fn scopes(list: &[&str]) -> Vec<MemoryScope> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

/// What cage asks for a life: by default nothing is shared and nothing was seen.
fn life(instance: &str) -> MemoryAttach {
    MemoryAttach {
        instance: instance.parse().unwrap(),
        grants: MemoryGrants::default(),
        shares: MemoryShares::default(),
        exposure: Exposure::NONE,
        inherits: false,
    }
}

/// `reader.1` asks for and is given `a:shared/` to read and `a:inbox/` to write.
fn reader() -> MemoryAttach {
    MemoryAttach {
        grants: MemoryGrants {
            read: scopes(&["a:shared/"]),
            write: scopes(&["a:inbox/"]),
            ..MemoryGrants::default()
        },
        shares: MemoryShares { read: scopes(&["a:shared/"]), write: scopes(&["a:inbox/"]) },
        ..life("reader.1")
    }
}

fn attach(node: &Node, want: MemoryAttach, directory: &Path) -> (node::Lease, Connection) {
    let (lease, path) = node.attach_as(want, directory);
    (lease, agent(&path))
}

fn events(node: &Node, kind: &str) -> Vec<Value> {
    let page = call(&mut node.operator(), "ledger.tail", json!({ "limit": 1000 })).unwrap();
    let events = page["events"].as_array().unwrap().iter().map(|event| event["event"].clone());
    events.filter(|event| event["event"] == kind).collect()
}

fn write(connection: &mut Connection, key: &str, value: Value) -> Value {
    call(connection, "memory.write", json!({ "key": key, "value": value })).unwrap()
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn sharing_needs_both_sides_and_the_missing_one_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease, mut a) = attach(&node, life("a.1"), directory.path());
    let shared = write(&mut a, "shared/1", json!("for b"));
    write(&mut a, "private/1", json!("not for b"));
    let grants = MemoryGrants { read: scopes(&["a:shared/"]), ..MemoryGrants::default() };
    let shares = MemoryShares { read: scopes(&["a:shared/"]), ..MemoryShares::default() };
    let cases = [
        (
            grants.clone(),
            MemoryShares::default(),
            Some("the manifest of `a` lacks it"),
            "memory.share_read = [\"b:shared/1\"]",
        ),
        (
            MemoryGrants::default(),
            shares.clone(),
            Some("the manifest of `b` lacks it"),
            "memory.read = [\"a:shared/1\"]",
        ),
        (
            MemoryGrants::default(),
            MemoryShares::default(),
            Some("the manifests of `b` and `a` lack it"),
            "memory.read",
        ),
        (grants, shares, None, ""),
    ];
    for (number, (grants, shares, lacking, line)) in cases.into_iter().enumerate() {
        let want = MemoryAttach { grants, shares, ..life(&format!("b.{}", number + 1)) };
        let (_lease, mut b) = attach(&node, want, directory.path());
        let read = call(&mut b, "memory.read", json!({ "agent": "a", "key": "shared/1" }));
        let by_hash = call(&mut b, "memory.read", json!({ "hash": shared["hash"] }));
        let page = call(&mut b, "memory.query", json!({ "agent": "a", "prefix": "shared/" }));
        match lacking {
            None => {
                assert_eq!(read.unwrap()["value"], "for b");
                assert_eq!(by_hash.unwrap()["value"], "for b");
                assert_eq!(page.unwrap()["entries"].as_array().unwrap().len(), 1);
            }
            Some(lacking) => {
                let error = read.unwrap_err();
                let why = error.data.unwrap();
                assert_eq!(error.code, Code::DENIED);
                assert!(why.rule.ends_with(lacking), "{}", why.rule);
                assert!(why.remedy.contains(line), "{}", why.remedy);
                assert_eq!(by_hash.unwrap_err().code, Code::NOT_FOUND);
                assert_eq!(page.unwrap_err().code, Code::DENIED);
            }
        }
        // A shared prefix is no more than itself, and to read is not to write.
        for (method, params) in [
            ("memory.query", json!({ "agent": "a" })),
            ("memory.query", json!({ "agent": "a", "prefix": "shared" })),
            ("memory.read", json!({ "agent": "a", "key": "private/1" })),
            ("memory.write", json!({ "agent": "a", "key": "shared/1", "value": 1 })),
            ("memory.forget", json!({ "agent": "a", "key": "shared/1" })),
        ] {
            assert_eq!(call(&mut b, method, params).unwrap_err().code, Code::DENIED, "{method}");
        }
    }
}

#[test]
fn a_write_into_anothers_inbox_carries_its_writer_and_tells_nothing_of_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease_a, mut a) = attach(&node, life("a.1"), directory.path());
    let mut want = reader();
    want.exposure = Exposure::UNTRUSTED_CONTENT;
    let (_lease_b, mut b) = attach(&node, want, directory.path());
    let before = write(&mut a, "inbox/1", json!("of a"));
    let put = json!({ "agent": "a", "key": "inbox/1", "value": "of b" });
    let written = call(&mut b, "memory.write", put.clone()).unwrap();
    let fresh =
        call(&mut b, "memory.write", json!({ "agent": "a", "key": "inbox/new", "value": "of b" })).unwrap();
    assert_eq!((&written["parent"], &written["seq"]), (&fresh["parent"], &fresh["seq"]));
    assert_eq!((&written["parent"], &written["seq"]), (&json!(null), &json!(0)));
    let seen = call(&mut a, "memory.read", json!({ "key": "inbox/1" })).unwrap();
    // By its hash the writer could find parent and seq, by trying.
    assert_eq!(written["hash"], format!("sha256:{}", "0".repeat(64)));
    assert_eq!((&seen["value"], &seen["parent"]), (&json!("of b"), &before["hash"]));
    let written = seen.clone();
    assert_eq!(seen["labels"]["nullbox.writer"], "agent reader");
    assert_eq!(seen["labels"]["nullbox.exposure"], "untrusted_content");
    assert_eq!(names(&seen["reader_exposure"]), ["untrusted_content"]);
    let by: Vec<_> = events(&node, "memory_written").iter().map(|event| event["writer"].clone()).collect();
    assert_eq!(by, [json!(null), json!("agent reader"), json!("agent reader")]);
    // Whether an expectation is met, and what is there to forget, is for readers.
    for parent in [json!("none"), before["hash"].clone(), written["hash"].clone()] {
        let expecting = json!({ "agent": "a", "key": "inbox/1", "value": 1, "parent": parent });
        assert_eq!(call(&mut b, "memory.write", expecting).unwrap_err().code, Code::DENIED);
    }
    assert_eq!(
        call(&mut b, "memory.forget", json!({ "agent": "a", "key": "inbox/1" })).unwrap_err().code,
        Code::DENIED
    );
    assert_eq!(
        call(&mut b, "memory.forget", json!({ "hash": written["hash"] })).unwrap_err().code,
        Code::NOT_FOUND
    );
    assert_eq!(
        call(&mut b, "memory.read", json!({ "hash": written["hash"] })).unwrap_err().code,
        Code::NOT_FOUND
    );
    // Nobody says who it is.
    for labels in [json!({ "nullbox.writer": "agent a" }), json!({ "nullbox.exposure": "" })] {
        let forged = json!({ "agent": "a", "key": "inbox/2", "value": 1, "labels": labels });
        assert_eq!(call(&mut b, "memory.write", forged).unwrap_err().code, Code::INVALID_PARAMS);
    }
    let operators = json!({ "agent": "a", "key": "inbox/3", "value": 1 });
    let written = call(&mut node.operator(), "memory.write", operators).unwrap();
    assert_eq!(written["labels"]["nullbox.writer"], "operator alice");
}

#[test]
fn what_is_read_raises_the_readers_exposure_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let attached = |node: &Node, want| attach(node, want, directory.path());
    let mut private = life("a.1");
    private.exposure = Exposure::PRIVATE_DATA;
    {
        let (_lease_a, mut a) = attached(&node, private);
        let (_lease_b, mut b) = attached(&node, reader());
        let secret = write(&mut a, "shared/1", json!("seen"));
        assert_eq!(names(&secret["exposure"]), ["private_data"]);
        let own = write(&mut b, "own", json!(1));
        assert!(names(&own["reader_exposure"]).is_empty() && names(&own["exposure"]).is_empty());
        let read = call(&mut b, "memory.read", json!({ "agent": "a", "key": "shared/1" })).unwrap();
        assert_eq!(names(&read["reader_exposure"]), ["private_data"]);
        // From now on its writes carry it, and a second reading is nothing new.
        assert_eq!(names(&write(&mut b, "own", json!(2))["exposure"]), ["private_data"]);
        call(&mut b, "memory.read", json!({ "agent": "a", "key": "shared/1" })).unwrap();
        let raised = events(&node, "exposure_raised");
        assert_eq!(raised.len(), 1);
        assert_eq!((&raised[0]["instance"], &raised[0]["entry"]), (&json!("reader.1"), &secret["hash"]));
        assert_eq!(names(&raised[0]["to"]), ["private_data"]);
    }
    node.kill();
    let node = Node::start(directory.path());
    {
        let (_lease, mut b) = attached(&node, reader());
        let page = call(&mut b, "memory.query", json!({ "prefix": "nothing" })).unwrap();
        assert_eq!(names(&page["reader_exposure"]), ["private_data"], "a restart forgets nothing");
    }
    // The next life begins anew, unless it finds what the last one left; what it reads of its own memory counts.
    {
        let next = MemoryAttach { instance: "reader.2".parse().unwrap(), ..reader() };
        let (_lease, mut b) = attached(&node, next);
        let page = call(&mut b, "memory.query", json!({ "prefix": "nothing" })).unwrap();
        assert!(names(&page["reader_exposure"]).is_empty());
        let page = call(&mut b, "memory.query", json!({})).unwrap();
        assert_eq!(names(&page["reader_exposure"]), ["private_data"]);
    }
    let heir = MemoryAttach { instance: "reader.3".parse().unwrap(), inherits: true, ..reader() };
    let (_lease, mut b) = attached(&node, heir);
    let page = call(&mut b, "memory.query", json!({ "prefix": "nothing" })).unwrap();
    assert_eq!(names(&page["reader_exposure"]), ["private_data"]);
}

#[test]
fn a_cursor_says_nothing_and_goes_on_for_its_reader_alone() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease_a, mut a) = attach(&node, life("a.1"), directory.path());
    let (lease_b, mut b) = attach(&node, reader(), directory.path());
    for number in 0..3 {
        write(&mut a, &format!("shared/{number}"), json!(1));
        write(&mut a, "shared/0", json!(number));
    }
    let ask = |cursor: &Value| json!({ "agent": "a", "prefix": "shared/", "limit": 1, "cursor": cursor });
    let page = call(&mut b, "memory.query", ask(&json!(null))).unwrap();
    let cursor = page["cursor"].clone();
    assert!(!cursor.as_str().unwrap().contains("shared"), "{cursor}");
    let next = call(&mut b, "memory.query", ask(&cursor)).unwrap();
    assert_eq!(next["entries"][0]["key"], "shared/1");
    let chain = |cursor: &Value| json!({ "agent": "a", "key": "shared/0", "limit": 2, "cursor": cursor });
    let page = call(&mut b, "memory.history", chain(&json!(null))).unwrap();
    let places = page["cursor"].clone();
    assert_eq!(page["cursor"].as_str().unwrap().len(), cursor.as_str().unwrap().len(), "nor does its length");
    assert_eq!(
        call(&mut b, "memory.history", chain(&places)).unwrap()["entries"].as_array().unwrap().len(),
        2
    );
    let refused = |answer: Result<Value, RpcError>| {
        let error = answer.unwrap_err();
        assert_eq!(error.code, Code::INVALID_PARAMS);
        assert!(error.data.unwrap().remedy.contains("begin again"));
    };
    refused(call(&mut a, "memory.query", ask(&cursor)));
    refused(call(&mut b, "memory.history", chain(&cursor)));
    refused(call(&mut b, "memory.query", ask(&json!("shared/0"))));
    refused(call(&mut b, "memory.query", json!({ "cursor": cursor })));
    drop((lease_b, b));
    node.kill();
    let node = Node::start(directory.path());
    let (_lease_b, mut b) = attach(&node, reader(), directory.path());
    refused(call(&mut b, "memory.query", ask(&cursor)));
}

#[test]
fn a_prefix_or_key_that_can_be_none_is_refused_in_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease, mut a) = attach(&node, life("a.1"), directory.path());
    for long in ["\"".repeat(25_000), "\u{1}".into()] {
        for method in ["query", "conflicts", "search", "nearest", "watch"] {
            let params = json!({ "agent": "b", "prefix": long, "text": "t", "vector": [1.0] });
            let keep = |name: &str| match name {
                "text" => method == "search",
                "vector" => method == "nearest",
                _ => true,
            };
            let params: Value =
                params.as_object().unwrap().clone().into_iter().filter(|(name, _)| keep(name)).collect();
            assert_eq!(
                call(&mut a, &format!("memory.{method}"), params).unwrap_err().code,
                Code::INVALID_PARAMS
            );
        }
        for method in ["read", "history", "forget"] {
            let params = json!({ "agent": "b", "key": long });
            assert_eq!(
                call(&mut a, &format!("memory.{method}"), params).unwrap_err().code,
                Code::INVALID_PARAMS
            );
        }
    }
    // A refusal with a text in it that fits no line as JSON.
    let odd = json!({ ("\"".repeat(32_700)): 1 });
    assert_eq!(call(&mut a, "memory.query", odd).unwrap_err().code, Code::LIMIT);
}

/// Makes a key's oldest entry a head beside the newest, as an import of another node's does.
fn fork(directory: &Path, key: &str) {
    let db = rusqlite::Connection::open(directory.join("state/memory.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let sql = "INSERT INTO head (agent, key, entry, newest) SELECT agent, key, min(id), 0 FROM entry WHERE agent = 'a' AND key = ?1";
    assert_eq!(db.execute(sql, [key]).unwrap(), 1);
}

#[test]
fn every_way_to_see_an_entry_counts_as_reading_it() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut outside = life("a.1");
    outside.exposure = Exposure::UNTRUSTED_CONTENT;
    let (_lease, mut a) = attach(&node, outside, directory.path());
    write(&mut a, "shared/1", json!("before"));
    let first =
        call(&mut a, "memory.write", json!({ "key": "shared/1", "value": "needle", "vector": [1.0, 0.0] }))
            .unwrap();
    let linked =
        json!({ "key": "shared/2", "value": 2, "links": [{ "type": "about", "to": first["hash"] }] });
    let second = call(&mut a, "memory.write", linked).unwrap();
    fork(directory.path(), "shared/1");
    let ways = [
        ("memory.read", json!({ "agent": "a", "key": "shared/1" })),
        ("memory.read", json!({ "hash": first["hash"] })),
        ("memory.query", json!({ "agent": "a", "prefix": "shared/" })),
        ("memory.history", json!({ "agent": "a", "key": "shared/1" })),
        ("memory.conflicts", json!({ "agent": "a", "prefix": "shared/" })),
        ("memory.neighbours", json!({ "hash": second["hash"] })),
        ("memory.traverse", json!({ "hash": first["hash"], "direction": "in", "depth": 2 })),
        ("memory.search", json!({ "agent": "a", "prefix": "shared/", "text": "needle" })),
        ("memory.nearest", json!({ "agent": "a", "prefix": "shared/", "vector": [1.0, 0.1] })),
    ];
    for (number, (method, params)) in ways.into_iter().enumerate() {
        let want = MemoryAttach { instance: format!("reader.{}", number + 1).parse().unwrap(), ..reader() };
        let (_lease, mut b) = attach(&node, want, directory.path());
        let answer = call(&mut b, method, params).unwrap();
        assert_eq!(names(&answer["reader_exposure"]), ["untrusted_content"], "{method} {answer}");
    }
    // A watch too: before the entry goes out.
    let want = MemoryAttach { instance: "reader.99".parse().unwrap(), ..reader() };
    let (_lease, path) = node.attach_as(want, directory.path());
    let (mut b, mut watcher) = (agent(&path), agent(&path));
    call(&mut watcher, "memory.watch", json!({ "agent": "a", "prefix": "shared/" })).unwrap();
    write(&mut a, "private/1", json!("not for the watcher"));
    let third = write(&mut a, "shared/3", json!("watched"));
    let line = watcher.read_line().unwrap().unwrap();
    let note: Request = serde_json::from_str(&line).unwrap();
    assert_eq!((note.method.as_str(), &note.params["hash"]), ("entry", &third["hash"]));
    assert_eq!(names(&note.params["reader_exposure"]), ["untrusted_content"]);
    let page = call(&mut b, "memory.query", json!({})).unwrap();
    assert_eq!(names(&page["reader_exposure"]), ["untrusted_content"]);
    assert_eq!(events(&node, "exposure_raised").len(), 10);
}

/// The next line of a lease, which must be a rise: its number and what to.
fn rise(lease: &mut Connection) -> (u64, String) {
    let note = Request::parse(&lease.read_line().unwrap().expect("a rise")).unwrap();
    assert_eq!((note.method.as_str(), note.id), ("exposure", None));
    let to: Exposure = serde_json::from_value(note.params["to"].clone()).unwrap();
    (note.params["number"].as_u64().unwrap(), to.to_string())
}

fn noted(lease: &mut Connection, number: u64) {
    lease.write_line(&Request::notification("noted", json!({ "number": number }))).unwrap();
}

#[test]
fn an_agent_is_shown_nothing_that_cage_has_not_noted() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut outside = life("a.1");
    outside.exposure = Exposure::UNTRUSTED_CONTENT;
    let (_lease, mut a) = attach(&node, outside, directory.path());
    write(&mut a, "shared/1", json!("strangers' text"));
    let read = || Request::call(1, "memory.read", json!({ "agent": "a", "key": "shared/1" }));
    let silent = Some(std::time::Duration::from_millis(300));

    let (mut lease, path) = node.attach_with(reader(), directory.path());
    let mut b = agent(&path);
    call(&mut b, "memory.query", json!({})).unwrap();
    b.write_line(&read()).unwrap();
    assert_eq!(rise(&mut lease), (1, "untrusted_content".into()));
    assert_eq!(events(&node, "exposure_raised").len(), 1, "on record before cage hears");
    b.set_timeout(silent).unwrap();
    assert!(b.read_line().is_err(), "shown before it was noted");
    noted(&mut lease, 1);
    b.set_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    assert!(b.read_line().unwrap().unwrap().contains("strangers' text"));
    // What was noted is not asked again.
    call(&mut b, "memory.read", json!({ "agent": "a", "key": "shared/1" })).unwrap();
    lease.set_timeout(silent).unwrap();
    assert!(lease.read_line().is_err());

    // A cage that does not answer: nothing is shown, and other memory is served. The lease goes on, and the next try asks again.
    let want = MemoryAttach { instance: "reader.2".parse().unwrap(), ..reader() };
    let (mut lease, path) = node.attach_with(want, directory.path());
    let mut b = agent(&path);
    let begun = std::time::Instant::now();
    let refused = call(&mut b, "memory.read", json!({ "agent": "a", "key": "shared/1" })).unwrap_err();
    assert!(refused.message.contains("cage did not note it"), "{refused}");
    assert!(begun.elapsed().as_millis() >= u128::from(abi::limits::MEMORY_NOTED_MS_MAX));
    assert_eq!(rise(&mut lease).0, 1);
    call(&mut b, "memory.query", json!({})).unwrap();
    b.write_line(&read()).unwrap();
    assert_eq!(rise(&mut lease).0, 2);
    noted(&mut lease, 1); // late
    noted(&mut lease, 2);
    assert!(b.read_line().unwrap().unwrap().contains("strangers' text"));
    assert_eq!(events(&node, "exposure_raised").len(), 2, "a rise is one event, however often it is tried");

    // A lease made again begins with what is on record, and trusts nobody to have noted it before.
    drop((lease, b));
    let want = MemoryAttach { instance: "reader.2".parse().unwrap(), ..reader() };
    let path = directory.path().join("again.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut lease = node.connect(abi::identity::Caller::Local { uid: 0 });
    let request = Request::call(1, "memory.attach", serde_json::to_value(want).unwrap());
    lease.write_line_with_fds(&request, &[std::os::fd::AsFd::as_fd(&listener)]).unwrap();
    assert_eq!(node::answer(&mut lease).unwrap(), json!({ "exposure": ["untrusted_content"] }));
    let mut b = agent(&path);
    b.write_line(&read()).unwrap();
    let (number, _) = rise(&mut lease);
    // What says anything else ends the lease, and with it the question.
    noted(&mut lease, number + 1);
    let ended = b.read_line();
    assert!(!matches!(&ended, Ok(Some(line)) if line.contains("strangers' text")), "{ended:?}");
}

#[test]
fn what_a_life_has_seen_by_other_ways_is_carried_by_what_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (mut lease, path) = node.attach_with(life("a.1"), directory.path());
    let mut a = agent(&path);
    assert_eq!(write(&mut a, "k", json!(1))["exposure"], json!([]));
    let seen = json!({ "instance": "a.1", "seen": ["private_data"] });
    for caller in [node.service(abi::identity::Service::Egress), node.operator()].iter_mut() {
        assert_eq!(call(caller, "memory.expose", seen.clone()).unwrap_err().code, Code::DENIED);
    }
    let mut cage = node.connect(abi::identity::Caller::Local { uid: 0 });
    call(&mut cage, "memory.expose", seen.clone()).unwrap();
    let entry = write(&mut a, "k", json!(2));
    assert_eq!(
        (&entry["exposure"], &entry["reader_exposure"]),
        (&json!(["private_data"]), &json!(["private_data"]))
    );
    // It only grows, and what cage said itself it is not asked for.
    call(&mut cage, "memory.expose", json!({ "instance": "a.1", "seen": [] })).unwrap();
    assert_eq!(
        names(&call(&mut a, "memory.read", json!({ "key": "k" })).unwrap()["reader_exposure"]),
        ["private_data"]
    );
    lease.set_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    assert!(lease.read_line().is_err());
    // Cage can say something while it is waited for: nobody waits for somebody who waits.
    let mut stranger = life("b.1");
    stranger.exposure = Exposure::UNTRUSTED_CONTENT;
    let (_lease, mut b) = attach(&node, stranger, directory.path());
    write(&mut b, "shared/1", json!("x"));
    let shares = || scopes(&["b:shared/"]);
    let want = MemoryAttach {
        grants: MemoryGrants { read: shares(), ..MemoryGrants::default() },
        shares: MemoryShares { read: shares(), write: Vec::new() },
        ..life("c.1")
    };
    let (mut lease, path) = node.attach_with(want, directory.path());
    let mut c = agent(&path);
    c.write_line(&Request::call(1, "memory.read", json!({ "agent": "b", "key": "shared/1" }))).unwrap();
    let (number, to) = rise(&mut lease);
    call(&mut cage, "memory.expose", json!({ "instance": "c.1", "seen": [to, "private_data"] })).unwrap();
    noted(&mut lease, number);
    assert!(c.read_line().unwrap().unwrap().contains("\"x\""));
    // The life ends, and comes back with what it had.
    drop((lease, c));
    let gone = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let params = json!({ "instance": "c.1", "seen": [] });
        call(&mut cage, "memory.expose", params).is_err_and(|error| error.code == Code::NOT_FOUND)
    });
    assert!(gone, "a life without a lease has no memory port");
}

/// An answer without what the question itself said.
fn bare(answer: Result<Value, RpcError>, words: &[&str]) -> String {
    let mut text = match answer {
        Ok(value) => value.to_string(),
        Err(error) => serde_json::to_string(&error).unwrap(),
    };
    for word in words {
        text = text.replace(word, "*");
    }
    text
}

#[test]
fn a_denial_is_the_same_for_what_is_there_and_what_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease_a, mut a) = attach(&node, life("a.1"), directory.path());
    let (_lease_b, mut b) = attach(&node, reader(), directory.path());
    let there = write(&mut a, "private/there", json!("4711"));
    call(&mut node.operator(), "memory.write", json!({ "agent": "nobody", "key": "k", "value": 1 })).unwrap();
    let hash = there["hash"].as_str().unwrap();
    let none = format!("sha256:{}", "5".repeat(64));
    let cases = [
        ("memory.read", json!({ "agent": "a", "key": "KEY" })),
        ("memory.read", json!({ "agent": "a", "hash": "HASH" })),
        ("memory.read", json!({ "hash": "HASH" })),
        ("memory.query", json!({ "agent": "a", "prefix": "KEY" })),
        ("memory.history", json!({ "agent": "a", "key": "KEY" })),
        ("memory.conflicts", json!({ "agent": "a", "prefix": "KEY" })),
        ("memory.neighbours", json!({ "hash": "HASH", "direction": "both" })),
        ("memory.traverse", json!({ "hash": "HASH", "depth": 3 })),
        ("memory.search", json!({ "agent": "a", "prefix": "KEY", "text": "4711" })),
        ("memory.nearest", json!({ "agent": "a", "prefix": "KEY", "vector": [1.0] })),
        ("memory.watch", json!({ "agent": "a", "prefix": "KEY" })),
        ("memory.forget", json!({ "agent": "a", "key": "KEY" })),
        ("memory.forget", json!({ "hash": "HASH" })),
        ("memory.write", json!({ "agent": "a", "key": "KEY", "value": 1 })),
        ("memory.write", json!({ "agent": "a", "key": "KEY", "value": 1, "parent": "HASH" })),
        ("memory.write", json!({ "agent": "a", "key": "inbox/x", "value": 1, "parent": "HASH" })),
        ("memory.write", json!({ "key": "own", "value": 1, "links": [{ "type": "t", "to": "HASH" }] })),
        (
            "memory.batch",
            json!({ "writes": [{ "key": "own", "value": 1, "links": [{ "type": "t", "to": "HASH" }] }] }),
        ),
    ];
    for (method, params) in cases {
        let filled = |key: &str, hash: &str| -> Value {
            serde_json::from_str(&params.to_string().replace("KEY", key).replace("HASH", hash)).unwrap()
        };
        let found = call(&mut b, method, filled("private/there", hash));
        let missing = call(&mut b, method, filled("private/nowhr", &none));
        let other = call(&mut b, method, filled("private/there", hash));
        assert!(found.is_err(), "{method} {params}: {found:?}");
        let words = ["private/there", "private/nowhr", hash, &none];
        assert_eq!(bare(found.clone(), &words), bare(missing, &words), "{method} {params}");
        assert_eq!(bare(found, &words), bare(other, &words), "{method} {params}");
    }
    let of_nobody = call(&mut b, "memory.read", json!({ "agent": "nobody", "key": "k" }));
    let of_no_one = call(&mut b, "memory.read", json!({ "agent": "no_one", "key": "k" }));
    assert_eq!(bare(of_nobody, &["nobody"]), bare(of_no_one, &["no_one"]));
    // A filter on a link to it finds nothing either way, and its own memory is as it was.
    for to in [hash, none.as_str()] {
        assert_eq!(call(&mut b, "memory.query", json!({ "linked_to": to })).unwrap()["entries"], json!([]));
    }
    assert_eq!(call(&mut a, "memory.read", json!({ "key": "private/there" })).unwrap(), there);
}

#[test]
fn no_method_reaches_anothers_memory_by_any_parameter() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease_a, mut a) = attach(&node, life("a.1"), directory.path());
    let (_lease_b, mut b) = attach(&node, reader(), directory.path());
    // Round the shared prefix, on both sides of it in the order of keys, and linked with what is shared.
    let secrets: Vec<Value> = ["a", "shared", "shared.", "shared0", "sharee/", "z"]
        .iter()
        .map(|key| {
            // Of two heads, so that memory.conflicts has something to show.
            write(&mut a, key, json!("secret 4711 before"));
            let params = json!({ "key": key, "value": "secret 4711", "labels": { "l": "4711" }, "vector": [1.0, 0.0] });
            call(&mut a, "memory.write", params).unwrap()
        })
        .collect();
    secrets.iter().for_each(|secret| fork(directory.path(), secret["key"].as_str().unwrap()));
    let own = call(&mut a, "memory.conflicts", json!({})).unwrap();
    assert_eq!(own["entries"].as_array().unwrap().len(), 12);
    let links: Vec<Value> = secrets.iter().map(|to| json!({ "type": "t", "to": to["hash"] })).collect();
    let open = call(&mut a, "memory.write", json!({ "key": "shared/open", "value": "open", "links": links }))
        .unwrap();
    let hashes: Vec<Value> = secrets.iter().map(|secret| secret["hash"].clone()).collect();
    let words =
        ["", "a", "shared", "shared.", "shared/", "shared/open", "shared0", "z", "k\u{fffd}", "0", "9999"];
    let mut tried = 0;
    let mut try_it = |method: &str, params: Value| {
        tried += 1;
        let answer = call(&mut b, method, params.clone());
        let text = bare(answer, &[]);
        assert!(!text.contains("4711"), "{method} {params}: {text}");
    };
    for method in ["memory.query", "memory.history", "memory.conflicts", "memory.search", "memory.nearest"] {
        for agent in [json!(null), json!("a"), json!("reader")] {
            for first in words {
                for cursor in words.iter().map(|word| json!(word)).chain([json!(null)]) {
                    let mut params = json!({ "agent": agent });
                    match method {
                        "memory.history" => params["key"] = json!(first),
                        _ => params["prefix"] = json!(first),
                    }
                    match method {
                        "memory.search" => params["text"] = json!("secret 47*"),
                        "memory.nearest" => params["vector"] = json!([1.0, 0.0]),
                        _ => params["cursor"] = cursor,
                    }
                    try_it(method, params);
                }
            }
        }
    }
    for agent in [json!(null), json!("a"), json!("reader")] {
        for hash in hashes.iter().chain([&open["hash"]]) {
            try_it("memory.read", json!({ "agent": agent, "hash": hash }));
            try_it("memory.forget", json!({ "agent": agent, "hash": hash }));
            try_it("memory.query", json!({ "agent": agent, "prefix": "shared/", "linked_to": hash }));
            for direction in ["out", "in", "both"] {
                for method in ["memory.neighbours", "memory.traverse"] {
                    try_it(
                        method,
                        json!({ "agent": agent, "hash": hash, "direction": direction, "depth": 3 }),
                    );
                }
            }
            for key in ["own", "inbox/1", "shared/open"] {
                let links = json!([{ "type": "t", "to": hash }]);
                let write = json!({ "agent": agent, "key": key, "value": 1, "parent": hash, "links": links });
                try_it("memory.write", write.clone());
                try_it("memory.batch", json!({ "writes": [{ "key": "first", "value": 1 }, write] }));
            }
        }
        for key in words {
            try_it("memory.read", json!({ "agent": agent, "key": key }));
            try_it("memory.forget", json!({ "agent": agent, "key": key }));
            try_it("memory.write", json!({ "agent": agent, "key": key, "value": 1, "parent": hashes[0] }));
        }
    }
    assert!(tried > 1500, "{tried}");
    for secret in secrets {
        let kept = call(&mut a, "memory.read", json!({ "key": secret["key"] })).unwrap();
        assert_eq!(kept["hash"], secret["hash"], "it was written over, or forgotten");
        assert_eq!(kept["value"], "secret 4711");
    }
    let found = call(&mut b, "memory.query", json!({ "agent": "a", "prefix": "shared/" })).unwrap();
    assert_eq!(found["entries"].as_array().unwrap().len(), 1, "what is shared was to be seen all the time");
}
