//! The ledger as other services and operators meet it.

mod node;

use abi::identity::Service;
use abi::ledger::{Client, Event};
use abi::limits;
use abi::rpc::{Code, Incoming, Request};
use node::{Node, append, call};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

fn segment(directory: &Path) -> std::path::PathBuf {
    directory.join("state/ledger/00000000000000000000.log")
}

fn notification(connection: &mut abi::wire::Connection) -> Option<Request> {
    let line = connection.read_line().ok()??;
    match serde_json::from_str(&line).unwrap() {
        Incoming::Notification(note) => Some(note),
        Incoming::Response(response) => panic!("{response:?}"),
    }
}

#[test]
fn receipts_are_in_order_and_say_who_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut egress = node.service(Service::Egress);
    let first = call(&mut egress, "ledger.append", append(1, true)).unwrap();
    let second = call(&mut egress, "ledger.append", append(2, true)).unwrap();
    assert_eq!((first["seq"].as_u64(), second["seq"].as_u64()), (Some(1), Some(2)), "after the key");
    let mut root = node.connect(abi::identity::Caller::Local { uid: 0 });
    call(&mut root, "ledger.append", append(3, true)).unwrap();
    let started =
        json!({ "event": { "event": "agent_stopping", "instance": "a.1", "by": "x" }, "durable": true });
    call(&mut root, "ledger.append", started).unwrap();
    let page = call(&mut node.operator(), "ledger.tail", json!({ "limit": 3 })).unwrap();
    let sources: Vec<_> = page["events"].as_array().unwrap().iter().map(|e| e["source"].clone()).collect();
    assert_eq!(sources, ["egress", "nulld", "cage"]);
    assert_eq!(page["events"][0]["digest"], second["digest"]);
    assert_eq!(call(&mut node.operator(), "ledger.append", append(1, true)).unwrap_err().code, Code::DENIED);
}

#[test]
fn the_client_of_abi_gets_receipts_across_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    if !rustix::process::geteuid().is_root() {
        return; // the peers socket takes services and root, by uid
    }
    let client = Client::at(node.peers().to_str().unwrap());
    let event = |n: u64| Event::CallMade { by: n.to_string(), method: "m".into() };
    assert_eq!(client.append(event(0)).unwrap().seq, 1);
    assert_eq!(client.note(event(1)).unwrap().seq, 2);
    node.stop();
    assert!(client.append(event(9)).is_err(), "fail closed");
    let node = Node::start(directory.path());
    assert_eq!(client.append(event(2)).unwrap().seq, 3);
    node.stop();
}

#[test]
fn an_orderly_stop_keeps_notes() {
    let directory = tempfile::tempdir().unwrap();
    for (round, by_signal) in [true, false].into_iter().enumerate() {
        let mut node = Node::start(directory.path());
        let noted = call(&mut node.service(Service::Cage), "ledger.append", append(1, false)).unwrap();
        assert_eq!(noted["seq"].as_u64(), Some(1 + round as u64));
        if by_signal {
            let pid = rustix::process::Pid::from_child(&node.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            assert!(node.child.wait().unwrap().success());
        } else {
            node.stop();
        }
    }
    let node = Node::start(directory.path());
    let verified = call(&mut node.operator(), "ledger.verify", json!({})).unwrap();
    assert_eq!((verified["events"].as_u64(), &verified["broken"]), (Some(3), &Value::Null));
}

#[test]
fn a_follower_sees_each_event_once() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut cage = node.service(Service::Cage);
    call(&mut cage, "ledger.append", append(0, true)).unwrap();
    let mut follower = node.operator();
    let page = call(&mut follower, "ledger.tail", json!({ "follow": true, "limit": 5 })).unwrap();
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
    for n in 1..50 {
        call(&mut cage, "ledger.append", append(n, n % 2 == 0)).unwrap();
    }
    for n in 1..50 {
        let note = notification(&mut follower).unwrap();
        assert_eq!((note.method.as_str(), note.params["seq"].as_u64()), ("event", Some(n + 1)));
    }
    drop(follower);
}

#[test]
fn followers_tail_and_query_go_across_segments_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let small = ["--segment-bytes", "1000"];
    let node = Node::start_with(directory.path(), &small).unwrap();
    let mut cage = node.service(Service::Cage);
    let mut follower = node.operator();
    call(&mut follower, "ledger.tail", json!({ "follow": true })).unwrap();
    for n in 0..40 {
        call(&mut cage, "ledger.append", append(n, n % 4 == 0)).unwrap();
    }
    for n in 0..40 {
        let note = notification(&mut follower).unwrap();
        assert_eq!((note.method.as_str(), note.params["seq"].as_u64()), ("event", Some(n + 1)));
    }
    node.stop();
    let files = std::fs::read_dir(directory.path().join("state/ledger")).unwrap().count();
    assert!(files > 5, "{files} segments");
    let node = Node::start_with(directory.path(), &small).unwrap();
    let mut operator = node.operator();
    let page = call(&mut operator, "ledger.tail", json!({ "limit": 30 })).unwrap();
    assert_eq!(page["events"].as_array().unwrap().len(), 30);
    let asked = json!({ "source": "cage", "events": ["call_made"], "from_seq": 5, "limit": 20 });
    let found = call(&mut operator, "ledger.query", asked).unwrap();
    let seqs: Vec<u64> =
        found["events"].as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!((seqs, found["next_seq"].as_u64()), ((5..25).collect(), Some(25)));
    let refused = call(&mut operator, "ledger.query", json!({ "source": "nobody" })).unwrap_err();
    assert_eq!(refused.code, Code::INVALID_PARAMS);
    assert_eq!(call(&mut operator, "ledger.verify", json!({})).unwrap()["events"].as_u64(), Some(41));
}

#[test]
fn damage_in_an_older_segment_is_found_after_the_start_and_all_else_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let small = ["--segment-bytes", "1000"];
    let node = Node::start_with(directory.path(), &small).unwrap();
    let mut operator = node.operator();
    for n in 0..20 {
        call(&mut operator, "memory.write", json!({ "agent": "a", "key": "k", "value": n })).unwrap();
    }
    node.kill();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(segment(directory.path())).unwrap();
    file.write_at(&[0xff], 150).unwrap();
    let node = Node::start_with(directory.path(), &small).unwrap();
    let mut operator = node.operator();
    let started = Instant::now();
    let refused = loop {
        assert!(started.elapsed() < Duration::from_secs(60));
        match call(&mut node.service(Service::Egress), "ledger.append", append(1, true)) {
            Ok(_) => std::thread::sleep(Duration::from_millis(20)),
            Err(refused) => break refused,
        }
    };
    assert!(refused.message.contains("segment 0, offset 96"), "{refused}");
    let verified = call(&mut operator, "ledger.verify", json!({})).unwrap();
    assert_eq!(verified["broken"]["lost"], "events 0");
    let found = call(&mut operator, "ledger.query", json!({})).unwrap();
    assert_eq!(found["events"][0]["seq"], 1);
    let read = call(&mut operator, "memory.read", json!({ "agent": "a", "key": "k" })).unwrap();
    assert_eq!(read["value"], 19);
}

#[test]
fn followers_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut followers: Vec<_> = (0..limits::LEDGER_FOLLOWERS_MAX).map(|_| node.operator()).collect();
    for follower in &mut followers {
        call(follower, "ledger.tail", json!({ "follow": true })).unwrap();
    }
    let error = call(&mut node.operator(), "ledger.tail", json!({ "follow": true })).unwrap_err();
    assert_eq!(error.code, Code::LIMIT);
    drop(followers); // a place is free again within a second or so
    let started = Instant::now();
    while call(&mut node.operator(), "ledger.tail", json!({ "follow": true })).is_err() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_slow_follower_is_told_and_dropped_and_nobody_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut slow = node.operator();
    call(&mut slow, "ledger.tail", json!({ "follow": true })).unwrap();
    let mut cage = node.service(Service::Cage);
    let large =
        json!({ "event": { "event": "call_made", "by": "x".repeat(8000), "method": "m" }, "durable": true });
    let stall = Duration::from_millis(limits::LEDGER_FOLLOWER_STALL_MS_MAX);
    for _ in 0..200 {
        let started = Instant::now();
        call(&mut cage, "ledger.append", large.clone()).unwrap();
        assert!(started.elapsed() < stall, "an append waited for the follower");
    }
    std::thread::sleep(stall + Duration::from_secs(1));
    let mut last = None;
    while let Some(note) = notification(&mut slow) {
        last = Some(note);
    }
    assert_eq!(last.expect("notifications").method, "dropped");
}

#[test]
fn only_one_service_works_on_a_state() {
    let directory = tempfile::tempdir().unwrap();
    let _node = Node::start(directory.path());
    assert!(Node::try_start(directory.path()).is_none());
}

/// A file system of its own for the state.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn run(program: &str, arguments: &[&str], on: &Path) -> bool {
        let said = std::process::Command::new(program).args(arguments).arg(on).output();
        said.is_ok_and(|said| said.status.success())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        assert!(Mounted::run("umount", &["-l"], self.0));
    }
}

#[test]
fn of_a_file_system_that_has_become_read_only_the_ledger_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    if !Mounted::run("mount", &["-t", "tmpfs", "none"], &state) {
        return; // only root mounts
    }
    let _mounted = Mounted(&state);
    let node = Node::start(directory.path());
    call(&mut node.service(Service::Egress), "ledger.append", append(1, true)).unwrap();
    node.kill();
    // With a torn tail, which cannot be cut either.
    for torn in [false, true] {
        if torn {
            assert!(Mounted::run("mount", &["-o", "remount,rw"], &state));
            let path = segment(directory.path());
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, [&bytes, &bytes[96..150]].concat()).unwrap();
        }
        assert!(Mounted::run("mount", &["-o", "remount,ro"], &state));
        let node = Node::start(directory.path());
        let page = call(&mut node.operator(), "ledger.tail", json!({})).unwrap();
        assert_eq!(page["events"].as_array().unwrap().len(), 2);
        let refused = call(&mut node.service(Service::Egress), "ledger.append", append(2, true)).unwrap_err();
        assert!(refused.message.contains("disk failed"), "{refused}");
        assert!(Node::try_start(directory.path()).is_none(), "the lock holds there too");
        node.kill();
    }
}

#[test]
fn a_damaged_ledger_stops_writes_names_the_place_and_memory_is_still_read() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut operator = node.operator();
    for n in 0..5 {
        call(&mut operator, "memory.write", json!({ "agent": "a", "key": "k", "value": n })).unwrap();
    }
    node.kill();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(segment(directory.path())).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, 150).unwrap();
    file.write_at(&[byte[0] ^ 4], 150).unwrap();
    let node = Node::start(directory.path());
    let mut operator = node.operator();
    let verified = call(&mut operator, "ledger.verify", json!({})).unwrap();
    assert_eq!(
        (verified["broken"]["seq"].as_u64(), verified["broken"]["offset"].as_u64()),
        (Some(0), Some(96))
    );
    let refused =
        call(&mut operator, "memory.write", json!({ "agent": "a", "key": "k", "value": 9 })).unwrap_err();
    assert!(
        refused.message.contains("no receipt, so nothing changed") && refused.message.contains("offset 96"),
        "{refused}"
    );
    let refused = call(&mut node.service(Service::Egress), "ledger.append", append(1, true)).unwrap_err();
    assert_eq!(refused.code, Code::FAILED);
    let read = call(&mut operator, "memory.read", json!({ "agent": "a", "key": "k" })).unwrap();
    assert_eq!(read["value"], 4);
}

#[test]
fn a_torn_tail_is_cut_recorded_and_the_service_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    call(&mut node.service(Service::Egress), "ledger.append", append(1, true)).unwrap();
    node.kill();
    let path = segment(directory.path());
    let whole = std::fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn.extend(&whole[96..150]);
    std::fs::write(&path, torn).unwrap();
    let node = Node::start(directory.path());
    let page = call(&mut node.operator(), "ledger.tail", json!({})).unwrap();
    assert_eq!(page["events"][2]["event"]["event"], "ledger_cut");
    assert_eq!(page["events"][2]["event"]["bytes"], 54);
    assert_eq!(call(&mut node.operator(), "ledger.verify", json!({})).unwrap()["broken"], Value::Null);
}

#[test]
fn an_unusable_memory_leaves_the_ledger_served() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("state")).unwrap();
    std::fs::write(directory.path().join("state/memory.db"), "x".repeat(5000)).unwrap();
    let node = Node::start(directory.path());
    let error = call(&mut node.operator(), "memory.list", json!({})).unwrap_err();
    assert!(error.message.contains("memory cannot be used"), "{error}");
    call(&mut node.service(Service::Egress), "ledger.append", append(1, true)).unwrap();
}
