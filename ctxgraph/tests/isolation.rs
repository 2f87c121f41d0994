//! What an agent can do through its memory socket, and what it cannot.

mod node;

use abi::limits;
use abi::rpc::Code;
use node::{Node, agent, answer, call, try_answer};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn events(node: &Node) -> Vec<Value> {
    let page = call(&mut node.operator(), "ledger.tail", json!({ "limit": 1000 })).unwrap();
    page["events"].as_array().unwrap().clone()
}

#[test]
fn an_agent_writes_and_reads_its_own_memory() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease, path) = node.attach("researcher.1", directory.path());
    let mut own = agent(&path);
    let first =
        call(&mut own, "memory.write", json!({ "key": "notes/1", "value": { "b": 1.0, "a": "é" } })).unwrap();
    assert_eq!(
        (first["agent"].as_str(), &first["value"]),
        (Some("researcher"), &json!({ "a": "é", "b": 1 }))
    );
    let second =
        call(&mut own, "memory.write", json!({ "agent": "researcher", "key": "notes/1", "value": null }))
            .unwrap();
    assert_eq!(second["parent"], first["hash"]);
    assert_eq!(call(&mut own, "memory.read", json!({ "key": "notes/1" })).unwrap(), second);
    assert_eq!(call(&mut own, "memory.read", json!({ "hash": first["hash"] })).unwrap(), first);
    let history = call(&mut own, "memory.history", json!({ "key": "notes/1" })).unwrap();
    assert_eq!(history["entries"], json!([second, first]));
    let query = call(&mut own, "memory.query", json!({ "prefix": "notes/" })).unwrap();
    assert_eq!(query["entries"], json!([second]));
    // The operator sees the same, and names the agent.
    let mut operator = node.operator();
    let seen =
        call(&mut operator, "memory.read", json!({ "agent": "researcher", "key": "notes/1" })).unwrap();
    assert_eq!(seen, second);
    assert_eq!(
        call(&mut operator, "memory.read", json!({ "key": "notes/1" })).unwrap_err().code,
        Code::INVALID_PARAMS
    );
    let list = call(&mut operator, "memory.list", json!({})).unwrap();
    assert_eq!(list["agents"][0]["entries"], 2);
    let kinds: Vec<_> =
        events(&node).iter().map(|e| e["event"]["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["ledger_key_made", "memory_attached", "memory_written", "memory_written"]);
    assert!(events(&node).iter().all(|e| e["source"] == "ctxgraph"));
}

#[test]
fn no_agent_reaches_another_agents_memory_and_each_attempt_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease_a, path_a) = node.attach("a.1", directory.path());
    let (_lease_b, path_b) = node.attach("b.1", directory.path());
    let (mut a, mut b) = (agent(&path_a), agent(&path_b));
    let secret = call(&mut a, "memory.write", json!({ "key": "k", "value": "of a" })).unwrap();
    for (method, params) in [
        ("memory.read", json!({ "agent": "a", "key": "k" })),
        ("memory.forget", json!({ "agent": "a", "key": "k" })),
        ("memory.write", json!({ "agent": "a", "key": "k", "value": 1 })),
        ("memory.query", json!({ "agent": "a" })),
        ("memory.history", json!({ "agent": "a", "key": "k" })),
        ("memory.list", json!({})),
        ("ledger.tail", json!({})),
        ("ledger.append", node::append(1, true)),
        ("memory.attach", json!({ "instance": "a.1" })),
        ("agent.list", json!({})),
    ] {
        let error = call(&mut b, method, params).unwrap_err();
        assert_eq!(error.code, Code::DENIED, "{method}");
        let why = error.data.expect("explained");
        assert!(!why.rule.is_empty() && !why.remedy.is_empty());
    }
    // By hash alone the answer is the same for another's entry and for nobody's.
    let others = call(&mut b, "memory.read", json!({ "hash": secret["hash"] })).unwrap_err();
    let nobodys = format!("sha256:{}", "5".repeat(64));
    let nobodys = call(&mut b, "memory.read", json!({ "hash": nobodys })).unwrap_err();
    assert_eq!((others.code, &others.data), (nobodys.code, &nobodys.data));
    assert_eq!(others.code, Code::NOT_FOUND);
    assert_eq!(call(&mut b, "memory.query", json!({})).unwrap()["entries"], json!([]));
    assert_eq!(call(&mut b, "memory.read", json!({ "key": "k" })).unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(call(&mut a, "memory.history", json!({ "key": "k" })).unwrap()["entries"], json!([secret]));
    std::thread::sleep(Duration::from_millis(2 * limits::LEDGER_SYNC_DELAY_MS_MAX)); // denials are notes
    let denied = events(&node).iter().filter(|e| e["event"]["event"] == "memory_denied").count();
    assert_eq!(denied, 11);
    assert!(
        events(&node)
            .iter()
            .filter(|e| e["event"]["event"] == "memory_denied")
            .all(|e| e["event"]["agent"] == "b")
    );
}

#[test]
fn refusals_recorded_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease, path) = node.attach("a.1", directory.path());
    let mut a = agent(&path);
    for _ in 0..200 {
        assert!(call(&mut a, "memory.query", json!({ "agent": "b" })).is_err());
    }
    std::thread::sleep(Duration::from_millis(2 * limits::LEDGER_SYNC_DELAY_MS_MAX));
    let denied = events(&node).iter().filter(|e| e["event"]["event"] == "memory_denied").count();
    assert_eq!(denied, limits::MEMORY_DENIALS_PER_MINUTE_MAX as usize);
}

#[test]
fn bad_lines_are_refused_and_harm_nobody() {
    use std::io::Write;
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease, path) = node.attach("a.1", directory.path());
    let mut a = agent(&path);
    for bad in [
        "",
        "[]",
        "{",
        r#"{"jsonrpc":"2.0","id":1,"method":"memory.write","params":{"key":"k","value":1,"value":2}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"memory.write","params":{"key":"k","value":1,"other":2}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"memory.write","params":{"key":"k"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"memory.read","params":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"memory.write","params":{"key":"k","value":1e999}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"memory.write","params":{"key":"k","value":9007199254740993}}"#,
    ] {
        a.stream().write_all(format!("{bad}\n").as_bytes()).unwrap();
        assert!(answer(&mut a).is_err(), "{bad}");
    }
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let line = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"memory.write\",\"params\":{{\"key\":\"k\",\"value\":{deep}}}}}\n"
    );
    a.stream().write_all(line.as_bytes()).unwrap();
    assert!(answer(&mut a).is_err());
    call(&mut a, "memory.write", json!({ "key": "k", "value": "still served" })).unwrap();
    // A line without an end is answered and the connection closed.
    let mut long = agent(&path);
    let _ = long.stream().write_all(&vec![b'x'; limits::LINE_BYTES_MAX * 2]); // it may be hung up on
    if let Some(refused) = try_answer(&mut long) {
        assert_eq!(refused.unwrap_err().code, Code::LIMIT);
    }
    assert!(try_answer(&mut long).is_none());
    call(&mut a, "memory.read", json!({ "key": "k" })).unwrap();
}

#[test]
fn the_end_of_a_lease_cuts_its_connections_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (lease, path) = node.attach("a.1", directory.path());
    let mut open: Vec<_> = (0..limits::MEMORY_CONNECTIONS_PER_AGENT_MAX).map(|_| agent(&path)).collect();
    for connection in &mut open {
        call(connection, "memory.query", json!({})).unwrap();
    }
    let mut one_more = agent(&path);
    let refused = answer(&mut one_more).unwrap_err();
    assert_eq!(refused.code, Code::LIMIT);
    // A place given back can be taken again.
    drop(open.pop());
    open.push(served_soon(&path));
    drop(lease);
    let started = Instant::now();
    for connection in &mut open {
        assert!(try_answer(connection).is_none());
    }
    assert!(started.elapsed() < Duration::from_secs(30));
    let gone = std::os::unix::net::UnixStream::connect(&path);
    assert!(gone.is_err(), "nobody listens any more");
    // The next instance of the agent finds its memory, and its full share of connections as soon as the threads of those that were
    // cut have ended.
    let (_lease, path) = node.attach("a.2", directory.path());
    let open: Vec<_> = (0..limits::MEMORY_CONNECTIONS_PER_AGENT_MAX).map(|_| served_soon(&path)).collect();
    assert_eq!(answer(&mut agent(&path)).unwrap_err().code, Code::LIMIT);
    drop(open);
}

#[test]
fn an_agent_that_reads_no_answers_harms_only_its_connection() {
    use std::io::Write;
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let (_lease, path) = node.attach("a.1", directory.path());
    let (_other_lease, other_path) = node.attach("b.1", directory.path());
    let value = "x".repeat(20_000);
    call(&mut agent(&path), "memory.write", json!({ "key": "k", "value": value })).unwrap();
    let slow = agent(&path);
    slow.set_timeout(Some(Duration::from_millis(300))).unwrap();
    let line = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"memory.read\",\"params\":{\"key\":\"k\"}}\n";
    let mut sent = 0;
    while slow.stream().write_all(line.as_bytes()).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "the service buffers without bound");
    }
    for path in [&path, &other_path] {
        let started = Instant::now();
        call(&mut agent(path), "memory.write", json!({ "key": "l", "value": 1 })).unwrap();
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

/// A connection with a place, when there is one again.
fn served_soon(path: &Path) -> abi::wire::Connection {
    let started = Instant::now();
    loop {
        let mut connection = agent(path);
        if call_or_refused(&mut connection) {
            return connection;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no place is given back");
    }
}

fn call_or_refused(connection: &mut abi::wire::Connection) -> bool {
    node::try_call(connection, "memory.query", json!({})).is_some_and(|answer| answer.is_ok())
}

#[test]
fn attach_needs_one_listening_socket() {
    use std::os::fd::AsFd;
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let mut service = node.connect(abi::identity::Caller::Local { uid: 0 });
    let error = call(&mut service, "memory.attach", json!({ "instance": "a.1" })).unwrap_err();
    assert_eq!(error.code, Code::INVALID_PARAMS);
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let request = abi::rpc::Request::call(1, "memory.attach", json!({ "instance": "a.1" }));
    service.write_line_with_fds(&request, &[stream.as_fd()]).unwrap();
    assert_eq!(answer(&mut service).unwrap_err().code, Code::INVALID_PARAMS);
    // Operators hold no leases, whatever their role.
    let error = call(&mut node.operator(), "memory.attach", json!({ "instance": "a.1" })).unwrap_err();
    assert_eq!(error.code, Code::DENIED);
}
