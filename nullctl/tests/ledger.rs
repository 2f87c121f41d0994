//! `nullctl ledger` beside the real ctxgraph: what it fetches holds without the node, and what was changed does not.

use abi::door;
use abi::identity::{Caller, Role, Service};
use abi::ledger::Event;
use abi::wire::Connection;
use ctxgraph::service::Ctxgraph;
use serde_json::Value;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// ctxgraph behind a socket, for one operator.
struct Node {
    directory: tempfile::TempDir,
    ctxgraph: Arc<Ctxgraph>,
    _lock: std::fs::File,
}

impl Node {
    fn start() -> Node {
        let directory = tempfile::tempdir().unwrap();
        let (ctxgraph, lock) = ctxgraph::service::open(
            &directory.path().join("state"),
            &Default::default(),
            2000,
            Default::default(),
        )
        .unwrap();
        let ctxgraph = Arc::new(ctxgraph);
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let served = ctxgraph.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = served.clone();
                std::thread::spawn(move || {
                    let caller =
                        Caller::Operator { name: "rita".into(), key: "k".into(), role: Role::Reader };
                    let mut connection = Connection::new(stream.unwrap());
                    let _ = door::answer_all(Service::Ctxgraph, &caller, &mut connection, served.as_ref());
                });
            }
        });
        let node = Node { directory, ctxgraph, _lock: lock };
        node.write(12);
        node
    }

    /// Events of two agents, in turn.
    fn write(&self, count: u32) {
        for n in 0..count {
            let instance = format!("{}.{n}", ["ada", "bob"][n as usize % 2]).parse().unwrap();
            let event = Event::AgentReady { instance, boot_ms: n.into() };
            let request = abi::rpc::Request::call(
                1,
                "ledger.append",
                serde_json::to_value(abi::ledger::Append { event, durable: true }).unwrap(),
            );
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            let (mut near, mut far) = (Connection::new(near), Connection::new(far));
            near.write_line(&request).unwrap();
            let caller = Caller::Service { service: Service::Cage };
            near.stream().shutdown(std::net::Shutdown::Write).unwrap();
            door::answer_all(Service::Ctxgraph, &caller, &mut far, self.ctxgraph.as_ref()).unwrap();
        }
    }

    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// `nullctl ledger ..` with the node.
    fn ledger(&self, arguments: &[&str]) -> Ran {
        let socket = self.at("socket");
        run(nullctl().args(["ledger", arguments[0], "--socket", &socket]).args(&arguments[1..]))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.ctxgraph.close();
    }
}

struct Ran {
    status: i32,
    out: String,
    err: String,
}

fn nullctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullctl"));
    command.env_remove("NULLBOX_NODE").env_remove("NULLBOX_KEY").env("HOME", "/nonexistent");
    command
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `nullctl ledger verify ..` or `prove ..` with files only.
fn off(arguments: &[&str]) -> Ran {
    run(nullctl().arg("ledger").args(arguments))
}

fn good(ran: Ran) -> String {
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    ran.out
}

fn json(ran: Ran) -> Value {
    serde_json::from_str(&good(ran)).unwrap()
}

fn flip(file: &str, at: usize) -> PathBuf {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    let changed = PathBuf::from(format!("{file}.changed"));
    std::fs::write(&changed, bytes).unwrap();
    changed
}

#[test]
fn export_proofs_and_checkpoints_hold_without_the_node() {
    let node = Node::start();
    let (old, export, event, goes_on) = (node.at("old"), node.at("export"), node.at("event"), node.at("on"));
    let said = json(node.ledger(&["key", "--json"]));
    let key = said["key"].as_str().unwrap();
    assert!(good(node.ledger(&["key"])).contains(said["fingerprint"].as_str().unwrap()));
    assert!(good(node.ledger(&["key", "--pem"])).starts_with("-----BEGIN PUBLIC KEY-----\n"));
    good(node.ledger(&["checkpoint", "-o", &old]));
    node.write(15);
    good(node.ledger(&["prove", "3", "-o", &event]));
    good(node.ledger(&["prove", "--since", &old, "-o", &goes_on]));
    assert!(good(node.ledger(&["export", &export])).contains("28 events"));
    let key = ["--key", key];
    let verify = |more: &[&str]| off(&[&["verify"], more, &key].concat());
    let said = good(verify(&["--export", &export, "--since", &old]));
    assert!(said.contains("goes on from the checkpoint"), "{said}");
    let said = json(verify(&["--export", &export, "--json"]));
    assert_eq!((&said["holds"], &said["events"]), (&Value::Bool(true), &28.into()));
    assert!(said["segments"].as_u64() > Some(1), "{said}");
    let said = good(verify(&["--proof", &event]));
    assert!(said.contains("agent_ready") && said.contains("ledger of 28 events"), "{said}");
    assert_eq!(json(verify(&["--proof", &event, "--json"]))["event"]["seq"], 3);
    assert_eq!(good(verify(&["--proof", &goes_on, "--since", &old])), "28 events go on from 13\n");
    // The same from the export alone.
    for (wanted, since) in [(&["3"][..], &[][..]), (&["--since", &old], &["--since", &old])] {
        let proof = node.at("from-export");
        good(off(&[&["prove", "--export", &export, "-o", &proof, "--force"], wanted, &key].concat()));
        good(verify(&[&["--proof", &proof], since].concat()));
    }
    assert_eq!(off(&[&["prove", "28", "--export", &export][..], &key].concat()).status, 5);
}

#[test]
fn what_was_changed_does_not_hold_and_the_place_is_told() {
    let node = Node::start();
    let (old, export, event) = (node.at("old"), node.at("export"), node.at("event"));
    let key = json(node.ledger(&["key", "--json"]))["key"].as_str().unwrap().to_owned();
    good(node.ledger(&["export", &export]));
    good(node.ledger(&["prove", "3", "-o", &event]));
    node.write(1);
    good(node.ledger(&["checkpoint", "-o", &old]));
    let stranger = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let bytes = std::fs::read(&export).unwrap();
    let second = bytes.windows(4).enumerate().filter(|(_, four)| four == b"NBF1").nth(1).unwrap().0;
    let changed = flip(&export, second + 80).display().to_string();
    let ran = off(&["verify", "--export", &changed, "--key", &key, "--json"]);
    assert_eq!(ran.status, 1);
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&said["holds"], &said["place"]["seq"]), (&Value::Bool(false), &1.into()));
    assert_eq!(said["place"]["offset"], second);
    let error: Value = serde_json::from_str(&ran.err).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("event 1 is due"), "{error}");
    let changed_proof = flip(&event, 200).display().to_string();
    for (case, arguments) in [
        ("a stranger's key", &["--export", &export, "--key", stranger][..]),
        ("a newer checkpoint", &["--export", &export, "--key", &key, "--since", &old]),
        ("a changed proof", &["--proof", &changed_proof, "--key", &key]),
        ("a proof and a stranger's key", &["--proof", &event, "--key", stranger]),
        ("a checkpoint and a stranger's key", &["--proof", &event, "--key", stranger, "--since", &old]),
        ("no proof", &["--proof", &export, "--key", &key]),
    ] {
        let ran = off(&[&["verify"], arguments].concat());
        assert_eq!(ran.status, 1, "{case}: {}{}", ran.out, ran.err);
        assert_eq!(ran.out, "", "{case}");
    }
    let ran = off(&["prove", "--export", &export, "--since", &old, "--key", &key]);
    assert_eq!(ran.status, 1, "an export that is older than the checkpoint: {}", ran.err);
    assert!(ran.err.contains("set back"), "{}", ran.err);
    for arguments in [
        &["verify", "--export", &export][..],
        &["verify", "--export", &export, "--key", "x"],
        &["verify", "--export", "/nonexistent", "--key", &key],
        &["verify", "--export", &export, "--proof", &event],
        &["verify", "--since", &old],
        &["verify", "--proof", &event, "--key", &key, "--since", &old],
        &["prove"],
        &["prove", "x"],
        &["prove", "3", "--since", &old],
    ] {
        let ran = off(arguments);
        assert_eq!(ran.status, 2, "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn a_file_is_replaced_only_when_that_is_asked() {
    let node = Node::start();
    let file = node.at("file");
    std::fs::write(&file, "mine").unwrap();
    for arguments in [&["export", &file][..], &["checkpoint", "-o", &file], &["prove", "1", "-o", &file]] {
        let ran = node.ledger(arguments);
        assert_eq!(ran.status, 2, "{arguments:?}");
        assert!(ran.err.contains("--force"), "{}", ran.err);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
        good(node.ledger(&[arguments, &["--force"]].concat()));
        assert_ne!(std::fs::read_to_string(&file).unwrap_or_default(), "mine");
        std::fs::write(&file, "mine").unwrap();
    }
    let names = std::fs::read_dir(Path::new(&file).parent().unwrap()).unwrap().count();
    assert_eq!(names, 3, "state, socket and the file: nothing is left beside");
}

#[test]
fn a_query_goes_on_until_it_has_what_was_asked() {
    let node = Node::start();
    let of = |arguments: &[&str]| {
        let out = good(node.ledger(&[&["query"], arguments].concat()));
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of(&[]).len(), 13);
    assert_eq!(of(&["--limit", "5"]).len(), 5);
    let ada = of(&["--agent", "ada"]);
    assert_eq!(ada.len(), 6);
    assert!(ada.iter().all(|line| line.contains("ada.")));
    assert_eq!(of(&["--event", "ledger_key_made"]).len(), 1);
    assert_eq!(of(&["--event", "ledger_key_made", "--event", "agent_ready"]).len(), 13);
    assert_eq!(of(&["--source", "cage"]).len(), 12);
    assert_eq!(of(&["--since", "1h"]).len(), 13);
    assert_eq!(of(&["--until", "1h"]).len(), 0);
    let page: Value = serde_json::from_str(&of(&["--json", "--limit", "2"])[0]).unwrap();
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
}
