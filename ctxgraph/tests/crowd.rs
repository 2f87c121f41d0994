//! 24 agents with all their connections at their quota: fair, bounded, nothing lost. `CROWD_SECONDS` makes it long (`make soak`).

mod node;

use abi::limits;
use abi::rpc::{Code, Incoming, Request};
use abi::wire::{Connection, WireError};
use node::{Node, agent, call};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const AGENTS: usize = 24;
/// Resident memory of the service, at its most.
const RESIDENT_KIB_MAX: u64 = 64 * 1024;
/// The same where everybody does what takes most memory.
const RESIDENT_WORST_KIB_MAX: u64 = 96 * 1024;

fn life() -> Duration {
    let seconds = std::env::var("CROWD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

fn resident_kib_max(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn attach(node: &Node, directory: &Path) -> Vec<(node::Lease, PathBuf)> {
    (0..AGENTS).map(|n| node.attach(&format!("agent-{n:02}.1"), directory)).collect()
}

/// Values of all sizes; now and then as large as there may be.
fn value(number: u64, chance: u64) -> Value {
    let words = match chance % 50 {
        0 => 4000,
        1..10 => 200,
        _ => 10,
    };
    let text: Vec<_> = (0..words).map(|word| format!("w{}", (number * 7 + word) % 997)).collect();
    json!({ "number": number, "text": text.join(" ") })
}

/// One agent floods with all its connections while the others write one entry at a time.
#[test]
fn a_flood_of_one_agent_leaves_the_others_their_share() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let leases = attach(&node, directory.path());
    let counts: Vec<AtomicU64> = (0..AGENTS).map(|_| AtomicU64::new(0)).collect();
    let enough = AGENTS as u64 * 40;
    let all = || counts.iter().map(|count| count.load(SeqCst)).sum::<u64>();
    let deadline = Instant::now() + Duration::from_secs(120);
    std::thread::scope(|scope| {
        for (n, (_, path)) in leases.iter().enumerate() {
            let connections = if n == 0 { limits::MEMORY_CONNECTIONS_PER_AGENT_MAX } else { 1 };
            for writer in 0..connections {
                let (counts, all) = (&counts, &all);
                scope.spawn(move || {
                    let mut own = agent(path);
                    let mut number = 0u64;
                    while all() < enough {
                        assert!(Instant::now() < deadline, "{} of {enough} writes in 120 s", all());
                        let params = json!({ "key": format!("k{writer}/{number}"), "value": number });
                        call(&mut own, "memory.write", params).unwrap();
                        counts[n].fetch_add(1, SeqCst);
                        number += 1;
                    }
                });
            }
        }
    });
    let counts: Vec<u64> = counts.iter().map(|count| count.load(SeqCst)).collect();
    let others = &counts[1..];
    let (least, most) = (*others.iter().min().unwrap(), *others.iter().max().unwrap());
    // By connections, each of the others has 1 of 31 writes.
    let share = enough / (AGENTS - 1 + limits::MEMORY_CONNECTIONS_PER_AGENT_MAX) as u64;
    assert!(least >= share / 4, "shares of {share}: {counts:?}");
    assert!(counts[0] <= most * 4 * limits::MEMORY_CONNECTIONS_PER_AGENT_MAX as u64, "{counts:?}");
}

/// Values that take far more in memory than as text, and readers that do not read.
#[test]
fn wide_values_and_readers_that_do_not_read_take_a_bounded_part_of_memory() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path());
    let leases = attach(&node, directory.path());
    let wide = |count: usize| Value::Array(vec![json!({ "": 0 }); count]);
    let stalled: Vec<_> = std::thread::scope(|scope| {
        let agents: Vec<_> = leases
            .iter()
            .map(|(_, path)| {
                scope.spawn(move || {
                    let mut own = agent(path);
                    let refused = call(&mut own, "memory.write", json!({ "key": "k", "value": wide(1024) }));
                    let error = refused.unwrap_err();
                    assert_eq!(error.code, Code::INVALID_PARAMS);
                    assert!(error.message.contains("2049 values"), "{error}");
                    for key in 0..8 {
                        let params = json!({ "key": format!("k{key}"), "value": wide(1023) });
                        call(&mut own, "memory.write", params).unwrap();
                    }
                    let asks = |mut reader: Connection| {
                        // The first is too wide to be looked at; some of the others fill the socket.
                        reader.write_line(&Request::call(1, "memory.write", wide(8000))).unwrap();
                        for _ in 0..8 {
                            reader.write_line(&Request::call(1, "memory.query", json!({}))).unwrap();
                        }
                        reader
                    };
                    let others = (1..limits::MEMORY_CONNECTIONS_PER_AGENT_MAX).map(|_| agent(path));
                    std::iter::once(own).chain(others).map(asks).collect::<Vec<_>>()
                })
            })
            .collect();
        agents.into_iter().flat_map(|agent| agent.join().unwrap()).collect()
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        call(&mut node.operator(), "memory.list", json!({})).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    let resident = resident_kib_max(&node);
    println!("{} readers that do not read: {resident} KiB resident at most", stalled.len());
    assert!(resident < RESIDENT_WORST_KIB_MAX, "{resident} KiB");
    for mut reader in stalled.into_iter().step_by(23) {
        let refused = node::answer(&mut reader).unwrap_err();
        assert!(refused.code == Code::PARSE && refused.message.contains("8192 values"), "{refused}");
        assert_eq!(node::answer(&mut reader).unwrap()["entries"].as_array().unwrap().len(), 8);
    }
    drop(leases);
    node.stop();
}

/// What happened to one agent.
#[derive(Default)]
struct Story {
    /// Key to the hash of its newest acknowledged entry, and how many were acknowledged in all.
    newest: BTreeMap<String, String>,
    written: u64,
    refused: u64,
    read: u64,
    /// Seqs that a watcher of all the agent's keys heard of, and whether it was told that it missed some.
    heard: Vec<u64>,
    dropped: bool,
}

#[test]
fn a_crowd_at_its_quota_loses_nothing_and_stays_small() {
    let (life, quota) = (life(), 4 * life().as_secs());
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start_with(directory.path(), &["--agent-entries", &quota.to_string()]).unwrap();
    let leases = attach(&node, directory.path());
    let stories: Vec<Mutex<Story>> = (0..AGENTS).map(|_| Mutex::default()).collect();
    let (over, writing) = (AtomicBool::new(false), AtomicUsize::new(AGENTS * 3));
    std::thread::scope(|scope| {
        let (over, writing) = (&over, &writing);
        let mut watchers = Vec::new();
        for ((_, path), story) in leases.iter().zip(&stories) {
            watchers.push(watcher(path));
            // It watches before the first entry is written, or it would not hear of that one.
            let hears = watcher(path);
            scope.spawn(move || watch(hears, story, writing));
            for n in 0..3 {
                scope.spawn(move || {
                    write(path, n, story, over);
                    writing.fetch_sub(1, SeqCst);
                });
                scope.spawn(move || read(path, n, story, over));
            }
        }
        // At least so long, and until everybody has come to its quota.
        let begun = Instant::now();
        let refused = || stories.iter().all(|story| story.lock().unwrap().refused > 0);
        while begun.elapsed() < life || (!refused() && begun.elapsed() < life + Duration::from_secs(120)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, SeqCst);
        drop(watchers); // one each that never read
    });
    let stories: Vec<Story> = stories.into_iter().map(|story| story.into_inner().unwrap()).collect();
    let (written, read): (u64, u64) =
        (stories.iter().map(|story| story.written).sum(), stories.iter().map(|story| story.read).sum());
    let resident = resident_kib_max(&node);
    println!("{written} entries, {read} answers, {resident} KiB resident at most");
    assert!(resident < RESIDENT_KIB_MAX, "{resident} KiB");
    check(&node, &stories, quota);
    drop(leases);
    node.stop();
    // The same after a restart.
    let node = Node::start(directory.path());
    check(&node, &stories, quota);
    node.stop();
}

/// A connection that watches, has its answer, and is not read any more.
fn watcher(path: &Path) -> abi::wire::Connection {
    let mut own = agent(path);
    call(&mut own, "memory.watch", json!({})).unwrap();
    own
}

fn write(path: &Path, writer: u64, story: &Mutex<Story>, over: &AtomicBool) {
    let mut own = agent(path);
    for number in 0.. {
        if over.load(SeqCst) {
            return;
        }
        // Some keys have many entries, most have one.
        let key = format!("w{writer}/{}", if number % 3 == 0 { 0 } else { number });
        let params = json!({ "key": key, "value": value(number, number * 31 + writer) });
        match call(&mut own, "memory.write", params) {
            Ok(entry) => {
                let mut story = story.lock().unwrap();
                story.written += 1;
                story.newest.insert(key, entry["hash"].as_str().unwrap().to_owned());
            }
            Err(error) if error.code == Code::LIMIT => {
                story.lock().unwrap().refused += 1;
                std::thread::sleep(Duration::from_millis(20)); // it goes on asking
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn read(path: &Path, reader: u64, story: &Mutex<Story>, over: &AtomicBool) {
    let mut own = agent(path);
    for number in 0.. {
        if over.load(SeqCst) {
            return;
        }
        let known = story.lock().unwrap().newest.iter().next_back().map(|(_, hash)| hash.clone());
        let answer = match (number + reader) % 4 {
            0 => known.map(|hash| ("memory.read", json!({ "hash": hash }))),
            1 => Some(("memory.query", json!({ "prefix": "w1/", "limit": 20 }))),
            2 => Some((
                "memory.search",
                json!({ "text": format!("w{} w{}*", number % 997, number % 90 + 10) }),
            )),
            _ => Some(("memory.history", json!({ "key": "w0/0", "limit": 5 }))),
        };
        let Some((method, params)) = answer else { continue };
        call(&mut own, method, params).unwrap_or_else(|error| panic!("{method}: {error}"));
        story.lock().unwrap().read += 1;
    }
}

/// Hears of every entry of the agent, or that it missed some.
fn watch(mut own: abi::wire::Connection, story: &Mutex<Story>, writing: &AtomicUsize) {
    own.set_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut silent = 0;
    // All is written, and it heard of all, or of nothing more for 20 s.
    while writing.load(SeqCst) > 0 || (story.lock().unwrap().missing() && silent < 100) {
        let line = match own.read_line() {
            Ok(Some(line)) => line,
            Ok(None) => {
                story.lock().unwrap().dropped = true;
                return;
            }
            Err(WireError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                silent += 1;
                continue;
            }
            // Let go in the middle of a line.
            Err(_) => {
                story.lock().unwrap().dropped = true;
                return;
            }
        };
        silent = 0;
        let Incoming::Notification(note) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        match note.method.as_str() {
            "entry" => story.lock().unwrap().heard.push(note.params["seq"].as_u64().unwrap()),
            _ => story.lock().unwrap().dropped = true,
        }
    }
}

impl Story {
    fn missing(&self) -> bool {
        !self.dropped && (self.heard.len() as u64) < self.written
    }
}

/// Everything acknowledged is there, and nothing else; every watcher heard of all of it in order, or was told.
fn check(node: &Node, stories: &[Story], quota: u64) {
    let mut operator = node.operator();
    let verified = call(&mut operator, "ledger.verify", json!({})).unwrap();
    assert_eq!(verified["broken"], Value::Null);
    let list = call(&mut operator, "memory.list", json!({})).unwrap();
    for (n, story) in stories.iter().enumerate() {
        let name = format!("agent-{n:02}");
        let used = &list["agents"][n];
        assert_eq!(
            (used["agent"].as_str().unwrap(), used["entries"].as_u64().unwrap()),
            (name.as_str(), story.written)
        );
        assert!(story.refused > 0 && story.written == quota, "{name} wrote {} of {quota}", story.written);
        for (key, hash) in &story.newest {
            let read = call(&mut operator, "memory.read", json!({ "agent": name, "key": key })).unwrap();
            assert_eq!(read["hash"].as_str(), Some(hash.as_str()), "{name} {key}");
        }
        let expected: Vec<u64> = (0..story.heard.len() as u64).collect();
        assert_eq!(story.heard, expected, "{name} heard in order, without a gap");
        assert!(
            story.dropped || story.heard.len() as u64 == story.written,
            "{name} heard of {} of {}",
            story.heard.len(),
            story.written
        );
    }
}
