//! `memory export`, `import`, `verify` and `sync`, against real ctxgraph services and a real S3 server on loopback.

#![cfg(feature = "sync")]

use abi::door;
use abi::identity::{Caller, Role, Service};
use abi::rpc::{Incoming, Request};
use abi::wire::Connection;
use ctxgraph::service::{self, Ctxgraph};
use ctxgraph::store::Quotas;
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// No command here takes longer, or it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A ctxgraph with a state of its own, behind a socket as nulld's.
struct Node {
    directory: tempfile::TempDir,
    ctxgraph: Arc<Ctxgraph>,
    _lock: std::fs::File,
}

impl Node {
    fn start(trust: &[&Node]) -> Node {
        Node::over(tempfile::tempdir().unwrap(), trust)
    }

    /// On a state that may be there.
    fn over(directory: tempfile::TempDir, trust: &[&Node]) -> Node {
        let trust = trust.iter().map(|node| node.key()).collect();
        let settings = abi::node::Memory { trust, ..abi::node::Memory::default() };
        let (ctxgraph, lock) =
            service::open(&directory.path().join("state"), &settings, 64 << 20, Quotas::default()).unwrap();
        let ctxgraph = Arc::new(ctxgraph);
        let listener = UnixListener::bind(directory.path().join("door.sock")).unwrap();
        let serving = ctxgraph.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let handler = serving.clone();
                std::thread::spawn(move || {
                    let caller =
                        Caller::Operator { name: "alice".into(), key: "k".into(), role: Role::Admin };
                    let mut connection = Connection::new(stream.unwrap());
                    // A nullctl that was killed cuts its connection.
                    let _ = door::answer_all(Service::Ctxgraph, &caller, &mut connection, handler.as_ref());
                });
            }
        });
        Node { directory, ctxgraph, _lock: lock }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("door.sock")
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// The public key of its ledger, as its first event has it.
    fn key(&self) -> String {
        let events = self.call("ledger.tail", json!({}));
        let events = events["events"].as_array().unwrap();
        let made = events.iter().find(|event| event["event"]["event"] == "ledger_key_made").unwrap();
        made["event"]["key"].as_str().unwrap().to_owned()
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let mut connection = Connection::connect(self.socket()).unwrap();
        connection.set_timeout(Some(PATIENCE)).unwrap();
        connection.write_line(&Request::call(1, method, params)).unwrap();
        let line = connection.read_line().unwrap().unwrap();
        match serde_json::from_str(&line).unwrap() {
            Incoming::Response(response) => match response.error {
                None => response.result.unwrap(),
                Some(error) => panic!("{method}: {error:?}"),
            },
            Incoming::Notification(note) => panic!("{note:?}"),
        }
    }

    fn write(&self, key: &str, value: Value) -> String {
        let entry = self.call("memory.write", json!({ "agent": "shared", "key": key, "value": value }));
        entry["hash"].as_str().unwrap().to_owned()
    }

    fn read(&self, key: &str) -> Value {
        self.call("memory.read", json!({ "agent": "shared", "key": key }))
    }

    /// Every hash, and whether it is forgotten.
    fn all(&self) -> BTreeSet<(String, bool)> {
        let (mut all, mut cursor) = (BTreeSet::new(), Value::Null);
        loop {
            let page = self.call("memory.hashes", json!({ "cursor": cursor }));
            let forgotten = page["forgotten"].as_array().unwrap();
            for hash in page["hashes"].as_array().unwrap() {
                all.insert((hash.as_str().unwrap().to_owned(), forgotten.contains(hash)));
            }
            cursor = page["cursor"].clone();
            if cursor.is_null() {
                return all;
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nullctl"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command.env("NULLBOX_CONFIG", self.directory.path()).env("HOME", self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn nullctl(&self, arguments: &[&str]) -> Output {
        finish(self.command(arguments).spawn().unwrap())
    }

    fn syncing(&self, store: &Store, more: &[&str]) -> Child {
        let mut arguments =
            vec!["--json", "memory", "sync", "s3://memories/fleet", "--endpoint", &store.endpoint];
        arguments.extend(more);
        let mut command = self.command(&arguments);
        command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command.spawn().unwrap()
    }

    fn sync(&self, store: &Store, more: &[&str]) -> (Option<i32>, Value, String) {
        let output = finish(self.syncing(store, more));
        let summary = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), summary, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.ctxgraph.close();
    }
}

fn finish(mut child: Child) -> Output {
    let until = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("nullctl did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

const ACCESS: &str = "operator";
const SECRET: &str = "a secret of this test";

/// An S3 server over a directory.
struct Store {
    directory: tempfile::TempDir,
    endpoint: String,
    _runtime: tokio::runtime::Runtime,
}

impl Store {
    fn start() -> Store {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("memories")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        let service = builder.build();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A client that went away is its own affair.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Store { directory, endpoint, _runtime: runtime }
    }

    /// The objects of a kind.
    fn objects(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(listed) = std::fs::read_dir(self.directory.path().join("memories/fleet")) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == kind));
        paths.sort();
        paths
    }
}

fn seed() -> impl FnMut(usize) -> usize {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("NULLBOX_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let mut state: u64 = seed.unwrap_or(now.as_nanos() as u64);
    println!("NULLBOX_TEST_SEED={state}");
    state |= 1;
    move |bound| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        ((state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound as u64) as usize
    }
}

#[test]
fn nodes_that_sync_in_any_order_end_up_equal() {
    let store = Store::start();
    let a = Node::start(&[]);
    let b = Node::start(&[&a]);
    let c = Node::start(&[&a, &b]);
    let nodes = [&a, &b, &c];
    let keys: Vec<String> = nodes.iter().map(|node| node.key()).collect();
    let from: Vec<&str> = keys.iter().flat_map(|key| ["--from", key.as_str()]).collect();
    let mut random = seed();
    for round in 0..12 {
        let node = nodes[random(3)];
        for n in 0..random(4) {
            node.write(&format!("notes/{}", random(6)), json!({ "round": round, "n": n }));
        }
        if random(4) == 0
            && let Some((hash, _)) = node.all().first()
        {
            node.call("memory.forget", json!({ "hash": hash }));
        }
        let (code, summary, error) = node.sync(&store, &from);
        assert_eq!(code, Some(0), "{summary} {error}");
    }
    // All have all once each was told by each.
    for node in [&a, &b, &c, &a, &b] {
        assert_eq!(node.sync(&store, &from).0, Some(0));
    }
    assert!(!a.all().is_empty());
    assert_eq!(a.all(), b.all());
    assert_eq!(a.all(), c.all());
    // Nothing is left to be done: nothing is sent or fetched.
    for node in nodes {
        let (_, summary, _) = node.sync(&store, &from);
        assert_eq!((&summary["sent"], &summary["fetched"]), (&json!(0), &json!(0)), "{summary}");
        assert_eq!(node.nullctl(&["memory", "verify"]).status.code(), Some(0));
    }
    for n in 0..6 {
        let heads = |node: &Node| {
            let params = json!({ "agent": "shared", "key": format!("notes/{n}") });
            node.call("memory.history", params)["entries"].as_array().unwrap().len()
        };
        assert_eq!(heads(&a), heads(&b));
        if heads(&a) > 0 {
            let key = format!("notes/{n}");
            assert_eq!(a.read(&key)["hash"], b.read(&key)["hash"]);
            assert_eq!(a.read(&key)["conflicts"], c.read(&key)["conflicts"]);
        }
    }
}

#[test]
fn two_writes_to_one_key_are_two_heads_until_the_next_write() {
    let store = Store::start();
    let a = Node::start(&[]);
    let b = Node::start(&[&a]);
    let (one, other) = (a.write("plan", json!("of a")), b.write("plan", json!("of b")));
    let from = b.key();
    let trusting = ["--from", from.as_str()];
    for _ in 0..2 {
        assert_eq!(a.sync(&store, &trusting).0, Some(0));
        assert_eq!(b.sync(&store, &[]).0, Some(0));
    }
    let both = |node: &Node| {
        let read = node.read("plan");
        let mut heads = vec![read["hash"].as_str().unwrap().to_owned()];
        heads.extend(
            read["conflicts"].as_array().unwrap().iter().map(|hash| hash.as_str().unwrap().to_owned()),
        );
        heads
    };
    assert_eq!(both(&a), both(&b));
    assert_eq!(both(&a).into_iter().collect::<BTreeSet<_>>(), [one, other].into());
    let resolved = b.write("plan", json!("of both"));
    assert_eq!(both(&b), std::slice::from_ref(&resolved));
    b.sync(&store, &[]);
    let (_, summary, _) = a.sync(&store, &trusting);
    assert_eq!((&summary["entries"], &summary["conflicts"]), (&json!(1), &json!(0)), "{summary}");
    assert_eq!(both(&a), [resolved]);
}

#[test]
fn a_bundle_of_the_store_has_an_entry_after_its_parent() {
    let store = Store::start();
    let node = Node::start(&[]);
    let hashes: Vec<String> = (0..40).map(|n| node.write("k", json!(n))).collect();
    assert_eq!(node.sync(&store, &[]).0, Some(0));
    let bundle = std::fs::read_to_string(&store.objects("bundle")[0]).unwrap();
    let lines: Vec<Value> = bundle.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sent: Vec<&str> = lines.iter().filter_map(|line| line["hash"].as_str()).collect();
    assert_eq!(sent, hashes);
}

#[test]
fn what_was_forgotten_anywhere_is_forgotten_everywhere_and_stays_so() {
    let store = Store::start();
    let a = Node::start(&[]);
    let b = Node::start(&[&a]);
    let from = b.key();
    let hash = a.write("secret", json!("do not keep"));
    a.sync(&store, &[]);
    b.sync(&store, &[]);
    assert_eq!(b.read("secret")["value"], "do not keep");
    b.call("memory.forget", json!({ "hash": hash }));
    b.sync(&store, &[]);
    a.sync(&store, &["--from", &from]);
    assert_eq!(a.read("secret")["value"], Value::Null);
    // The bundle with the value is still there, and a third node that takes all of them forgets it too, in any order.
    let c = Node::start(&[&a, &b]);
    assert_eq!(c.sync(&store, &[]).0, Some(0));
    assert_eq!(c.read("secret")["value"], Value::Null);
    assert_eq!(c.all(), a.all());
}

#[test]
fn altered_and_untrusted_bundles_are_refused_by_name_and_the_rest_is_taken() {
    let store = Store::start();
    let a = Node::start(&[]);
    let b = Node::start(&[&a]);
    let stranger = Node::start(&[]);
    a.write("one", json!(1));
    a.sync(&store, &[]);
    let good = store.objects("bundle");
    stranger.write("two", json!(2));
    stranger.sync(&store, &["--from", &a.key()]);
    a.write("three", json!(3));
    let (code, ..) = a.sync(&store, &["--from", &stranger.key()]);
    assert_eq!(code, Some(0));
    let all = store.objects("bundle");
    assert_eq!((good.len(), all.len()), (1, 3));
    let strange = all.iter().find(|path| std::fs::read_to_string(path).unwrap().contains(&stranger.key()));
    let strange = strange.unwrap().file_name().unwrap().to_str().unwrap();
    // A byte of a value in the first bundle.
    let text = std::fs::read_to_string(&good[0]).unwrap();
    std::fs::write(&good[0], text.replace("\"value\":1,", "\"value\":9,")).unwrap();
    let (code, summary, error) = b.sync(&store, &[]);
    assert_eq!(code, Some(1), "{error}");
    let refused = summary["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 2, "{summary}");
    let said = |name: &str, why: &str| {
        let found = refused.iter().find(|one| one["object"].as_str().unwrap().contains(name));
        assert!(found.unwrap()["why"].as_str().unwrap().contains(why), "{summary}");
    };
    said(good[0].file_name().unwrap().to_str().unwrap(), "altered");
    said(strange, "not trusted");
    assert_eq!(b.read("three")["value"], 3);
    assert_eq!(b.all().len(), 1);
}

#[test]
fn two_syncs_at_once_and_one_that_was_killed_do_no_harm() {
    let store = Store::start();
    let a = Node::start(&[]);
    let b = Node::start(&[&a]);
    for n in 0..40 {
        a.write(&format!("k/{n}"), json!("x".repeat(2000)));
    }
    for after_ms in [5, 20, 40, 80] {
        let mut cut = a.syncing(&store, &[]);
        std::thread::sleep(Duration::from_millis(after_ms));
        let _ = cut.kill(); // it may have ended
        cut.wait().unwrap();
    }
    let running: Vec<Child> = (0..3).map(|_| a.syncing(&store, &[])).collect();
    for child in running {
        let output = finish(child);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(store.objects("bundle").len(), 1);
    let both: Vec<Child> = (0..2).map(|_| b.syncing(&store, &[])).collect();
    for output in both.into_iter().map(finish) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(b.sync(&store, &[]).0, Some(0));
    assert_eq!(a.all(), b.all());
}

/// Passes bytes on to the store, so many of the answers in all, then cuts every connection.
fn stumbling(endpoint: &str, bytes: u64) -> String {
    let to = endpoint.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let left = Arc::new(AtomicU64::new(bytes));
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (mut near, mut far) = (near.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            let left = left.clone();
            std::thread::spawn(move || std::io::copy(&mut near, &mut far));
            std::thread::spawn(move || {
                let mut byte = [0; 64];
                while let Ok(read @ 1..) = back_from.read(&mut byte) {
                    let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                        left.checked_sub(read as u64)
                    });
                    if taken.is_err() || back_to.write_all(&byte[..read]).is_err() {
                        break;
                    }
                }
                let _ = back_to.shutdown(Shutdown::Both); // the other side may have done so
                let _ = back_from.shutdown(Shutdown::Both);
            });
        }
    });
    format!("http://{address}")
}

#[test]
fn a_connection_lost_in_the_middle_is_told_and_the_next_sync_finishes() {
    let store = Store::start();
    let a = Node::start(&[]);
    let b = Node::start(&[&a]);
    a.write("long", json!("y".repeat(20_000)));
    a.sync(&store, &[]);
    // Enough for the list and the index, not for the bundle.
    let broken = stumbling(&store.endpoint, 6_000);
    let (code, _, error) = b.sync(&store, &["--endpoint", &broken, "--timeout", "20"]);
    assert_eq!(code, Some(3), "{error}");
    assert!(b.all().is_empty());
    assert_eq!(b.sync(&store, &[]).0, Some(0));
    assert_eq!(a.all(), b.all());
}

#[test]
fn credentials_come_from_the_environment_and_wrong_ones_are_refused() {
    let (store, a) = (Store::start(), Node::start(&[]));
    a.write("one", json!(1));
    let arguments = ["memory", "sync", "s3://memories/fleet", "--endpoint", &store.endpoint];
    let mut command = a.command(&arguments);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let output = finish(command.spawn().unwrap());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("AWS_ACCESS_KEY_ID"));
    let mut command = a.command(&arguments);
    command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", "another");
    let output = finish(command.spawn().unwrap());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(!said.contains("another"), "{said}");
    assert!(store.objects("bundle").is_empty());
}

#[test]
fn a_backup_comes_back_into_a_fresh_node_and_to_import_twice_changes_nothing() {
    let a = Node::start(&[]);
    let b = Node::start(&[]);
    for n in 0..20 {
        a.write(&format!("k/{n}"), json!({ "n": n }));
    }
    let gone = a.write("gone", json!("x"));
    a.call("memory.forget", json!({ "hash": gone }));
    let file = a.path("monday.bundle");
    let output = a.nullctl(&["memory", "export", &file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(a.nullctl(&["memory", "export", &file]).status.code(), Some(2), "a bundle was overwritten");
    let untrusted = b.nullctl(&["memory", "import", &file]);
    assert_eq!(untrusted.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&untrusted.stderr).contains(&a.key()));
    assert!(b.all().is_empty());
    for entries in [21, 0] {
        let output = b.nullctl(&["--json", "memory", "import", &file, "--from", &a.key()]);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["entries"], entries, "{said}");
    }
    assert_eq!(a.all(), b.all());
    assert_eq!(b.nullctl(&["memory", "verify"]).status.code(), Some(0));
    let part = a.path("part.bundle");
    a.nullctl(&["memory", "export", "--agent", "shared", "--prefix", "k/1", &part]);
    let text = std::fs::read_to_string(&part).unwrap();
    assert_eq!(text.lines().count(), 11 + 2, "k/1 and k/10 to k/19, a first and a last line");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn nobody_else_says_what_this_node_wrote() {
    let a = Node::start(&[]);
    let b = Node::start(&[]);
    let set_back = tempfile::tempdir().unwrap();
    copy(&a.directory.path().join("state"), &set_back.path().join("state"));
    a.write("one", json!(1));
    let (of_a, of_b) = (a.path("a.bundle"), b.path("b.bundle"));
    assert!(a.nullctl(&["memory", "export", &of_a]).status.success());
    assert!(b.nullctl(&["memory", "import", &of_a, "--from", &a.key()]).status.success());
    assert!(b.nullctl(&["memory", "export", &of_b]).status.success());
    // The same node as it was before: what it wrote since it takes from itself, and not from another.
    let earlier = Node::over(set_back, &[&b]);
    let imported = |file: &str| -> Value {
        let output = earlier.nullctl(&["--json", "memory", "import", file]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let said = imported(&of_b);
    assert_eq!((&said["entries"], &said["refused"]), (&json!(0), &json!(1)), "{said}");
    let said = imported(&of_a);
    assert_eq!((&said["entries"], &said["refused"]), (&json!(1), &json!(0)), "{said}");
}
