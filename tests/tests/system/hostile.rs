//! Guests that are enemies: kernels that attack every device of their VM with ring 0, in the real jail (src/bin/fault/hostile), and
//! agents that abuse all that user space has. After each the node is as sound as before and nothing outside the jail has changed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::fixture::{self, Config};
use system_tests::node::{Firmware, Machine, Node};

use crate::many::Census;
use crate::shared::eventually;
use crate::slot::{Own, Slot};
use crate::sound::before;
use crate::trial;

/// Each attack and how long it may go on, in seconds, five times as long in `make soak`: then the VMM is killed, which is an end like any other.
const ATTACKS: &[(&str, u64)] = &[
    ("registers", 20),
    ("states", 20),
    ("rings", 20),
    ("descriptors", 8),
    ("loops", 8),
    ("resets", 8),
    ("notify-storm", 20),
    ("block-requests", 20),
    ("block-beyond-the-end", 20),
    ("block-floods", 8),
    ("vsock-ports", 30),
    ("vsock-tsi", 20),
    ("vsock-packets", 20),
    ("vsock-half-open", 20),
    ("vsock-credit", 20),
    ("net-frames", 20),
    ("balloon", 20),
    ("entropy", 8),
    ("serial-flood", 8),
    ("ports", 30),
    ("model-specific-registers", 20),
    ("interrupt-controllers", 20),
    ("memory", 20),
    ("halt", 3),
    ("spin", 3),
    ("triple-fault", 10),
    ("reset", 10),
    ("everything", 15),
];
/// Attacks that the seed lets begin at one device or another, and how many seeds in a row are tried, five times as many in `make soak`.
const AT_EVERY_DEVICE: [&str; 6] = ["registers", "states", "rings", "descriptors", "loops", "resets"];
const DEVICE_RUNS: u64 = 2;
/// The scratch disk that the saboteur gives a hostile guest.
const SCRATCH_BYTES: u64 = 8 << 20;

/// How much more is done in `make soak`.
fn times() -> u64 {
    if system_tests::is_soak() { 5 } else { 1 }
}

pub fn trials() -> Vec<Trial> {
    let mut all = vec![trial("hostile::every_attack_is_tried", every_attack_is_tried)];
    for (name, seconds) in ATTACKS {
        all.push(trial(
            &format!("hostile::kernel_{}_stays_in_its_jail", name.replace('-', "_")),
            move || kernel(name, times() * seconds),
        ));
    }
    all.extend([
        trial("hostile::console_flood_is_bounded", console_flood_is_bounded),
        trial("hostile::full_disk_is_the_agents_own", full_disk_is_the_agents_own),
        trial("hostile::fork_bomb_is_the_agents_own", fork_bomb_is_the_agents_own),
        trial("hostile::power_clock_and_kernel_are_not_the_agents", power_and_clock),
        trial("hostile::trees_links_and_holes_hurt_nobody", trees_hurt_nobody),
        trial("hostile::execs_side_by_side_all_end", execs_side_by_side),
    ]);
    all
}

/// Their node.
pub static NODE: Slot<Own> = Slot::new(start);

fn start() -> Result<Own> {
    let config = Config::new("hostile")?;
    config.file("nulld.toml", SABOTEUR)?;
    config.file("agents/brute.toml", BRUTE)?;
    config.file("agents/bystander.toml", BYSTANDER)?;
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        firmware: Firmware::Uefi,
        config: Some(config.volume()?),
        state: Some(config.state("2G")?),
        memory_mib: 2048,
        ..Machine::bare("hostile", system_tests::test_iso()?, &config)
    };
    let node = Node::boot(machine)?;
    // Whose life goes on beside all attacks. It waits for the import of the rootfs, after which the node is at rest.
    running(&node, "bystander")?;
    // Its first line opens its log, which a census counts.
    eventually(Duration::from_secs(30), "the bystander has said something", || {
        Ok(!node.ctl(&["agent", "logs", "bystander"])?.ok()?.stdout.is_empty())
    })?;
    Ok(Own { node, config })
}

/// The saboteur with what cage has, to make jails of its own.
const SABOTEUR: &str = r#"
[node]
name = "hostile"

[services.fault]
path = "/system/bin/fault"
needs = ["cage"]
capabilities = [
    "chown", "dac_override", "dac_read_search", "fowner", "kill", "mknod", "net_admin", "setgid", "setpcap", "setuid",
    "sys_admin", "sys_ptrace", "sys_resource", "sys_tty_config",
]
unconfined = true
makes_mounts = true
tasks_max = 4096
open_files_max = 4096
oom_score = 500
"#;

const BRUTE: &str = r#"
[agent]
name = "brute"
version = "1.0.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/idle.py"]

[capabilities]
shell = true
max_memory_mb = 160
max_disk_mb = 128
max_pids = 64
"#;

const BYSTANDER: &str = r#"
[agent]
name = "bystander"
version = "1.0.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/idle.py"]

[capabilities]
max_memory_mb = 128
"#;

fn every_attack_is_tried() -> Result<()> {
    let known = NODE.hold()?.fault("guest attacks")?;
    let tried: Vec<&str> = ATTACKS.iter().map(|(name, _)| *name).collect();
    ensure!(known.split(' ').collect::<Vec<_>>() == tried, "there are {known}, tried are {tried:?}");
    Ok(())
}

/// SEED of the environment, else another one each time; it is told.
fn seed() -> Result<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().context("SEED"),
        Err(_) => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64 % 1_000_000),
    }
}

/// One attack of a hostile kernel, and the node after it.
fn kernel(attack: &str, seconds: u64) -> Result<()> {
    let node = NODE.hold()?;
    let seed = seed()?;
    let (sound, census) = (before(&node)?, Census::of(&node)?);
    let runs = if AT_EVERY_DEVICE.contains(&attack) { times() * DEVICE_RUNS } else { 1 };
    for seed in seed..seed + runs {
        let outcome = node.fault(&format!("guest {attack} {seed} {seconds}"));
        let outcome: Value = serde_json::from_str(&outcome.with_context(|| format!("seed {seed}"))?)?;
        tell(attack, seed, &outcome)?;
        judge(attack, &outcome).with_context(|| format!("seed {seed}: {outcome:#}"))?;
    }
    census.is_as_before(&node).with_context(|| format!("seed {seed}"))?;
    sound.still_sound(&node, &[], 0).with_context(|| format!("seed {seed}"))
}

/// An outcome in a line. A VMM that panics is told apart by its own last words; as the first process of its namespace it cannot be
/// aborted, so the C library ends it by an instruction that is not allowed: signal 11.
fn tell(attack: &str, seed: u64, outcome: &Value) -> Result<()> {
    let lines = outcome["console"].as_array().context("console")?;
    let is_telling =
        |line: &&str| ["panicked", "refused", "allocation"].iter().any(|word| line.contains(word));
    let words = lines.iter().rev().filter_map(Value::as_str).find(is_telling);
    eprintln!(
        "hostile kernel: {attack}, seed {seed}: {} after {} ms, out of memory {}; {}",
        outcome["end"],
        outcome["ms"],
        outcome["out_of_memory"],
        words.unwrap_or("no last words")
    );
    Ok(())
}

/// What must be true of any outcome, and of this attack's.
fn judge(attack: &str, outcome: &Value) -> Result<()> {
    let lines: Vec<&str> =
        outcome["console"].as_array().context("console")?.iter().filter_map(Value::as_str).collect();
    let says = |text: &str| lines.iter().any(|line| line.contains(text));
    ensure!(outcome["rootfs_intact"] == true, "the guest wrote to the read-only disk");
    ensure!(outcome["scratch_bytes"].as_u64() <= Some(SCRATCH_BYTES), "the guest's disk grew");
    let (begun, over) = (says(&format!("{attack} begins")), says(&format!("{attack} is over")));
    // Some attacks drown their own beginning in text, or end the VMM before a word is out.
    ensure!(
        begun || over || attack == "serial-flood" || outcome["end"] != "exit 0" || lines.len() >= 40,
        "it did not begin"
    );
    match attack {
        "vsock-ports" => {
            ensure!(
                says("vsock port 1024 answered"),
                "the control port must answer, else nothing was tested"
            );
            let strangers: Vec<_> = lines
                .iter()
                .filter(|line| line.contains("answered") && line.contains("vsock port"))
                .filter(|line| !line.contains("port 1024 ") && !line.contains("port 1025 "))
                .collect();
            ensure!(strangers.is_empty(), "{strangers:?}");
        }
        "vsock-tsi" => ensure!(says("0 answers to datagrams") || !over, "TSI is alive"),
        "block-beyond-the-end" => {
            ensure!(says("sectors; read 0"), "a sound request must work, else nothing was tested")
        }
        "halt" | "spin" => ensure!(outcome["end"] == "killed", "{}", outcome["end"]),
        "triple-fault" | "reset" => ensure!(outcome["end"] != "killed", "{}", outcome["end"]),
        _ => {}
    }
    Ok(())
}

/// Runs an attack in the agent `brute`, with the agent `bystander` beside it, and looks at both and at the node afterwards.
fn from_user_space(arguments: &[&str], judge: impl Fn(&Value) -> Result<()>) -> Result<()> {
    let node = NODE.hold()?;
    running(&node, "bystander")?;
    running(&node, "brute")?;
    let sound = before(&node)?;
    let instance = instance(&node, "bystander")?;
    let mut command = vec!["agent", "exec", "brute", "--", "/usr/bin/python3", "/app/hostile.py"];
    command.extend(arguments);
    let answer = node.ctl(&command)?;
    let last = answer.stdout.lines().last().unwrap_or_default();
    let found: Value =
        serde_json::from_str(last).with_context(|| format!("{} {}", tail(last), tail(&answer.stderr)))?;
    judge(&found).with_context(|| format!("{found:#}"))?;
    ensure!(is_still(&node, "bystander", &instance)?, "the bystander was hurt");
    let quick =
        node.ctl(&["agent", "exec", "bystander", "--", "/usr/bin/python3", "-c", "print('well')"])?.ok()?;
    ensure!(quick.stdout.trim() == "well", "{quick:?}");
    sound.still_sound(&node, &[], 0)
}

fn tail(text: &str) -> String {
    text.chars().rev().take(400).collect::<Vec<_>>().into_iter().rev().collect()
}

/// Starts an agent unless it runs.
pub fn running(node: &Node, agent: &str) -> Result<()> {
    if node.json(&["agent", "status", agent])?["summary"]["state"] != "running" {
        node.json(&["agent", "start", agent])?;
    }
    Ok(())
}

fn instance(node: &Node, agent: &str) -> Result<Value> {
    Ok(node.json(&["agent", "status", agent])?["summary"]["instance"].clone())
}

fn is_still(node: &Node, agent: &str, before: &Value) -> Result<bool> {
    Ok(instance(node, agent)? == *before)
}

fn console_flood_is_bounded() -> Result<()> {
    from_user_space(&["flood", "24"], |found| {
        ensure!(found["written_mib"] == 24);
        Ok(())
    })
}

fn full_disk_is_the_agents_own() -> Result<()> {
    from_user_space(&["fill"], |found| {
        ensure!(found["why"] == "ENOSPC" && found["written_mib"].as_u64() < Some(128));
        Ok(())
    })?;
    from_user_space(&["inodes"], |found| {
        ensure!(found["made"].as_u64() > Some(100));
        Ok(())
    })
}

fn fork_bomb_is_the_agents_own() -> Result<()> {
    from_user_space(&["forks"], |found| {
        ensure!(found["refused"].as_u64() > Some(0) && found["made"].as_u64() < Some(64));
        Ok(())
    })
}

fn power_and_clock() -> Result<()> {
    from_user_space(&["vsock"], |found| {
        let all = found.as_object().context("no answers")?;
        ensure!(all.values().all(|value| value.as_str().is_some_and(|text| text.starts_with('E'))));
        Ok(())
    })?;
    from_user_space(&["power"], |found| {
        let all = found.as_object().context("no answers")?;
        ensure!(
            all.len() > 12
                && all.values().all(|value| value.as_str().is_some_and(|text| text.starts_with('E')))
        );
        Ok(())
    })?;
    from_user_space(&["clock"], |found| {
        ensure!(found["set"] == "EPERM" && found["slept"] == 2000);
        Ok(())
    })
}

fn trees_hurt_nobody() -> Result<()> {
    from_user_space(&["trees"], |found| {
        ensure!(found["links"] == 3000 && found["device"].as_str().is_some_and(|text| text.starts_with('E')));
        Ok(())
    })?;
    let node = NODE.hold()?;
    // What is left of it is looked at from the host, which must not follow anything.
    node.ctl(&["agent", "status", "brute"])?.ok()?;
    node.json(&["agent", "stop", "brute"])?;
    node.json(&["agent", "start", "brute"]).map(drop)
}

/// Programs side by side in one agent, each with a caller of its own; all end well and none is left.
fn execs_side_by_side() -> Result<()> {
    const CALLERS: usize = 24;
    let node = NODE.hold()?;
    running(&node, "brute")?;
    let sound = before(&node)?;
    let command = ["agent", "exec", "brute", "--", "/usr/bin/python3", "-c", "import time; time.sleep(3)"];
    let results = std::thread::scope(|scope| {
        let all: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| node.ctl(&command))).collect();
        all.into_iter().map(|caller| caller.join()).collect::<Vec<_>>()
    });
    let ended =
        results.iter().filter(|result| matches!(result, Ok(Ok(answer)) if answer.status == 0)).count();
    ensure!(ended == CALLERS, "{ended} of {CALLERS} ended well: {results:?}");
    eventually(Duration::from_secs(30), "no exec is left", || {
        Ok(node.json(&["agent", "status", "brute"])?["execs"].as_u64().unwrap_or(0) == 0)
    })?;
    sound.still_sound(&node, &[], 0)
}
