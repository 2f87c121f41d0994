//! Very many restarts of services, and what they leave behind in PID 1: nothing.
//!
//! `RESTARTS=100000` is the long run of `make soak`; without it the run takes seconds.

mod node;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use node::Node;

const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
/// After so many restarts every log ring is full.
const RINGS_FULL: u64 = 12_000;
/// What the index of a ring may still take until it is full.
const RING_INDEX_KIB: u64 = 48;

/// What must not grow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    rss_kib: u64,
    /// Memory of its own, without the pages of its program.
    own_kib: u64,
    descriptors: usize,
    threads: usize,
    children: usize,
}

fn held(node: &Node) -> Held {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid)).unwrap();
    let fields: BTreeMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
    let kib = |field: &str| fields[field].trim().trim_end_matches(" kB").parse().unwrap();
    Held {
        rss_kib: kib("VmRSS"),
        own_kib: kib("RssAnon"),
        descriptors: fs::read_dir(format!("/proc/{}/fd", node.pid)).unwrap().count(),
        threads: fields["Threads"].trim().parse().unwrap(),
        children: node.children().len(),
    }
}

fn restarts(node: &Node) -> u64 {
    node.status().services.iter().filter(|s| NAMES.contains(&s.name.as_str())).map(|s| s.restarts).sum()
}

/// Descriptors come and go with the processes: the least of some looks counts.
fn least(node: &Node) -> Held {
    let looks = (0..200).map(|_| {
        std::thread::sleep(Duration::from_millis(5));
        held(node)
    });
    looks.min_by_key(|held| (held.descriptors, held.own_kib)).unwrap()
}

#[test]
fn restarts_leave_nothing_behind() {
    let wanted: u64 = std::env::var("RESTARTS").ok().map_or(1_500, |count| count.parse().unwrap());
    let mut services = String::new();
    for (name, mode) in NAMES.iter().zip(["once", "once", "crash", "once", "once", "flaky"].iter().cycle()) {
        services += &format!(
            "[services.{name}]\npath = \"/system/bin/probe\"\nargs = [\"{mode}\"]\nunconfined = true\nrestart_ms_min = 1\n"
        );
    }
    // A service that stands by, and needs one that comes and goes.
    services += "[services.cage]\npath = \"/system/bin/probe\"\nargs = [\"good\"]\nunconfined = true\nneeds = [\"a\"]\n";
    let node = Node::start(&format!("[node]\nname = \"soak\"\n[network]\nmode = \"none\"\n{services}"));
    let cage = node.wait_state("cage", "ready", 20);
    let warm = (wanted / 4).min(RINGS_FULL);
    let limit = Duration::from_secs(120) + Duration::from_millis(wanted * 50);
    let begin = Instant::now();
    let reach = |count: u64| {
        while restarts(&node) < count {
            assert!(begin.elapsed() < limit, "{} of {count} restarts in {limit:?}", restarts(&node));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    reach(warm);
    let before = least(&node);
    reach(wanted);
    let after = least(&node);
    let took = begin.elapsed();
    println!("{} restarts in {took:?}\nbefore {before:?}\nafter  {after:?}", restarts(&node));
    let filling = if warm < RINGS_FULL { RING_INDEX_KIB * (NAMES.len() as u64 + 2) } else { 0 };
    assert!(after.own_kib <= before.own_kib + 64 + filling, "memory grew");
    // A running process has a door and a notice pipe in nulld; how many run at a look is chance.
    assert!(after.descriptors <= before.descriptors + 2 * NAMES.len(), "descriptors are left");
    assert_eq!(after.threads, before.threads, "threads are left");
    assert!(after.children <= NAMES.len() + 1, "processes are left");
    let now = node.service("cage");
    assert_eq!((now.pid, now.restarts, now.state.as_str()), (cage.pid, 0, "ready"));
}
