//! Many agents on one node: a crowd at once, and lives one after the other. What they leave behind is nothing: censuses of the whole
//! node (src/bin/fault/census.rs) before and after are the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::fixture::{self, Config};
use system_tests::node::{Machine, Node};

use crate::shared::eventually;
use crate::slot::{Own, Slot};
use crate::trial;

/// How many at once: two dozen in `make soak`.
fn crowd() -> usize {
    if system_tests::is_soak() { 24 } else { 12 }
}
/// Under emulation two guests boot at a time, and each takes its seconds.
const ALL_READY_MAX: Duration = Duration::from_secs(600);
/// Lives in a row; CYCLES in the environment asks for more (1,000 in the long run).
const CYCLES_DEFAULT: u32 = 4;
/// How long the last threads and descriptors of what has ended may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(60);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("many::starts_and_stops_leave_nothing_behind", starts_and_stops_leave_nothing_behind),
        trial("many::crowd_runs_at_once_and_leaves_nothing", crowd_at_once),
    ]
}

/// What there is on a node: lines with their counts.
#[derive(Debug)]
pub struct Census(BTreeMap<String, u64>);

impl Census {
    /// Takes one.
    pub fn of(node: &Node) -> Result<Census> {
        let text = node.fault("census")?;
        let line = |line: &str| {
            let (what, count) = line.rsplit_once(" = ")?;
            Some((what.to_owned(), count.parse().ok()?))
        };
        let found: BTreeMap<String, u64> = text.lines().filter_map(line).collect();
        ensure!(found.len() > 100, "this is no census: {text}");
        Ok(Census(found))
    }

    /// What is other now than in `self`, a line each.
    fn changes(&self, now: &Census) -> Vec<String> {
        let all = self.0.keys().chain(now.0.keys().filter(|key| !self.0.contains_key(*key)));
        let of = |census: &Census, key: &String| census.0.get(key).copied().unwrap_or(0);
        let other = |key: &&String| {
            // Connections rest, and with them a thread: fewer of them is no change.
            let may_rest = ["descriptor of ", "thread of ", "unix "].iter().any(|kind| key.starts_with(kind));
            if may_rest { of(self, key) < of(now, key) } else { of(self, key) != of(now, key) }
        };
        all.filter(other)
            .map(|key| format!("{key}: {} before, {} now", of(self, key), of(now, key)))
            .collect()
    }

    /// Waits until all is as it was.
    pub fn is_as_before(&self, node: &Node) -> Result<()> {
        let mut changes = Vec::new();
        let same = eventually(GONE_MAX, "the node is as before", || {
            changes = self.changes(&Census::of(node)?);
            Ok(changes.is_empty())
        });
        same.with_context(|| changes.join("\n"))
    }
}

/// Their node.
pub static NODE: Slot<Own> = Slot::new(start);

fn name(number: usize) -> String {
    format!("crowd-{number}")
}

fn start() -> Result<Own> {
    let config = Config::new("many")?;
    config.file("nulld.toml", crate::faults::SABOTEUR)?;
    for number in 0..crowd() {
        // Every other one has a network, and so a TAP and a namespace.
        let allow = if number % 2 == 0 { "network.allow = [\"web.test:80\"]\n" } else { "" };
        let manifest = format!(
            "[agent]\nname = \"{}\"\nversion = \"1.0.0\"\nrootfs = \"python\"\n\
             command = [\"/usr/bin/python3\", \"/app/idle.py\"]\n[capabilities]\nmax_memory_mb = 64\nmax_disk_mb = 64\n{allow}",
            name(number)
        );
        config.file(&format!("agents/{}.toml", name(number)), &manifest)?;
    }
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("2G")?),
        memory_mib: 4096,
        cpus: system_tests::accel::cpus_for_a_crowd(),
        ..Machine::bare("many", system_tests::test_iso()?, &config)
    };
    Ok(Own { node: Node::boot(machine)?, config })
}

/// Agents in a state.
fn count(node: &Node, state: &str) -> Result<usize> {
    let list = node.json(&["agent", "list"])?;
    let agents = list["agents"].as_array().context("no agents")?;
    Ok(agents.iter().filter(|agent| agent["state"] == state).count())
}

fn starts_and_stops_leave_nothing_behind() -> Result<()> {
    let cycles = match std::env::var("CYCLES") {
        Ok(cycles) => cycles.parse().context("CYCLES")?,
        Err(_) => CYCLES_DEFAULT,
    };
    let node = NODE.hold()?;
    let life = |number: usize| -> Result<()> {
        node.json(&["agent", "start", &name(number)])?;
        node.json(&["agent", "stop", &name(number)]).map(drop)
    };
    // What the first lives make and later ones use again (folders, the import's image) is no leftover.
    (0..2).try_for_each(life)?;
    let census = Census::of(&node)?;
    for cycle in 0..cycles {
        life(cycle as usize % 2).with_context(|| format!("cycle {cycle} of {cycles}"))?;
    }
    census.is_as_before(&node).with_context(|| format!("after {cycles} cycles"))
}

fn crowd_at_once() -> Result<()> {
    let agents = crowd();
    let node = NODE.hold()?;
    node.json(&["agent", "start", &name(0)])?;
    node.json(&["agent", "stop", &name(0)])?;
    let census = Census::of(&node)?;
    let sound = crate::sound::before(&node)?;
    std::thread::scope(|scope| {
        for number in 0..agents {
            // A caller that gives up leaves its start going on: how all of them are is asked below.
            let node = &node;
            scope.spawn(move || node.ctl(&["agent", "start", &name(number)]).map(drop));
        }
    });
    let mut lost = 0;
    eventually(ALL_READY_MAX, "all agents run", || {
        lost = count(&node, "failed")?;
        Ok(lost > 0 || count(&node, "running")? == agents)
    })?;
    ensure!(lost == 0, "{lost} agents failed: {}", node.json(&["agent", "list"])?);
    for number in [0, agents / 2, agents - 1] {
        let name = name(number);
        let code = "print(open('/proc/sys/kernel/hostname').read().strip() or 'here')";
        node.ctl(&["agent", "exec", &name, "--", "/usr/bin/python3", "-c", code])?.ok().context(name)?;
    }
    std::thread::scope(|scope| {
        let node = &node;
        let all: Vec<_> = (0..agents)
            .map(|number| scope.spawn(move || node.json(&["agent", "stop", &name(number)])))
            .collect();
        all.into_iter().try_for_each(|one| match one.join() {
            Ok(outcome) => outcome.map(drop),
            Err(_) => anyhow::bail!("a caller panicked"),
        })
    })?;
    census.is_as_before(&node)?;
    sound.still_sound(&node, &[], 0)
}
