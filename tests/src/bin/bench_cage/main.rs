//! `make bench-cage`: what a jail costs. One node; the same kernel and rootfs started by cage, by libkrun alone and by QEMU's microvm in
//! turn; then what an agent costs while it runs. docs/benchmarks.md says what exactly is compared.
//!
//! ```text
//! bench_cage --qemu-disk FILE [--rounds N] [--crowd N] [--iso FILE] [--json]
//! ```
//!
//! Ends with 1 when an aim was missed or something could not be measured.

mod figures;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use figures::{Figures, stage_medians};
use serde_json::Value;
use system_tests::fixture::{self, Config};
use system_tests::node::{Machine, Node, Oddities};

const MEMORY_MIB: u32 = 4096;
const AGENT_MIB: u64 = 64;
const ROUNDS_MAX: usize = 1000;
const EXECS: usize = 200;
/// Execs in one order to the saboteur, which has a minute for it.
const EXECS_AT_ONCE: usize = 20;
const COPY_BYTES: usize = 32 << 20;
/// The disk with QEMU is the node's third.
const QEMU_DISK: &str = "/dev/vdc";
/// Runs all the time; its rootfs is what the others start with.
const HOLDER: &str = "holder";
const STARTED: &str = "started";

/// What was asked for.
struct Options {
    rounds: usize,
    crowd: usize,
    iso: PathBuf,
    qemu_disk: PathBuf,
    json: bool,
}

fn options() -> Result<Options> {
    let (mut rounds, mut crowd, mut iso, mut disk, mut json) =
        (30, abi::limits::AGENTS_RUNNING_MAX, None, None, false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => rounds = value()?.parse().context("--rounds")?,
            "--crowd" => crowd = value()?.parse().context("--crowd")?,
            "--iso" => iso = Some(PathBuf::from(value()?)),
            "--qemu-disk" => disk = Some(PathBuf::from(value()?)),
            "--json" => json = true,
            other => bail!(
                "`{other}` is not an option; there are --rounds N, --crowd N, --iso FILE, --qemu-disk FILE, --json"
            ),
        }
    }
    ensure!((1..=ROUNDS_MAX).contains(&rounds), "{rounds} rounds: 1 to {ROUNDS_MAX} are possible");
    ensure!(
        crowd <= abi::limits::AGENTS_RUNNING_MAX,
        "{crowd} agents: a node takes {} at most",
        abi::limits::AGENTS_RUNNING_MAX
    );
    let disk = disk.context("--qemu-disk FILE is missing: `make bench-cage` makes one")?;
    Ok(Options { rounds, crowd, iso: iso.map_or_else(system_tests::test_iso, Ok)?, qemu_disk: disk, json })
}

fn main() -> ExitCode {
    match options().and_then(|options| measure(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench_cage: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All of it and the table. False: an aim was missed.
fn measure(options: &Options) -> Result<bool> {
    let config = Config::new("bench-cage")?;
    config.file("nulld.toml", SABOTEUR)?;
    let crowd = (0..options.crowd).map(|number| format!("idle-{number}"));
    for name in [HOLDER, STARTED].into_iter().map(str::to_owned).chain(crowd) {
        config.file(&format!("agents/{name}.toml"), &AGENT.replace("NAME", &name))?;
    }
    let archive = fixture::python_archive(&system_tests::tree().join("tests/app"))?;
    config.rootfs("python", &archive)?;
    let machine = Machine {
        name: "bench-cage".into(),
        config: Some(config.volume()?),
        state: Some(config.state("8G")?),
        memory_mib: MEMORY_MIB,
        ..Machine::bare("bench-cage", options.iso.clone(), &config)
    };
    let odd = Oddities { disks: vec![options.qemu_disk.canonicalize()?], ..Oddities::default() };
    let node = Node::boot_odd(machine, &odd)?;
    let mut figures = Figures::default();
    let outcome = all(&node, options, &mut figures);
    if outcome.is_err() {
        node.keep_logs();
    }
    outcome?;
    match options.json {
        true => println!("{:#}", figures.json()),
        false => print!("\n{}", figures.table()),
    }
    let shortfalls = figures.shortfalls();
    shortfalls.iter().for_each(|shortfall| eprintln!("bench_cage: {shortfall}"));
    Ok(shortfalls.is_empty())
}

fn all(node: &Node, options: &Options, figures: &mut Figures) -> Result<()> {
    node.json(&["agent", "start", HOLDER]).context("the agent whose rootfs the others use")?;
    starts(node, options.rounds, figures)?;
    let memory = bench(node, &format!("memory {HOLDER} {AGENT_MIB}"))?;
    figures.vmm_kib = memory["own_kib"].as_u64();
    for done in (0..EXECS).step_by(EXECS_AT_ONCE) {
        eprintln!("execs: {done} of {EXECS}");
        let found = bench(node, &format!("exec {HOLDER} {EXECS_AT_ONCE}"))?;
        let times = found["us"].as_array().context("times")?;
        figures.exec.0.extend(times.iter().filter_map(Value::as_u64));
    }
    if let Err(error) = copies(node, figures) {
        figures.missing.push(format!("copies: {error:#}"));
    }
    if let Err(error) = import(node, figures) {
        figures.missing.push(format!("import: {error:#}"));
    }
    crowd(node, options.crowd, figures);
    Ok(())
}

/// An order to the saboteur; its answer.
fn bench(node: &Node, order: &str) -> Result<Value> {
    Ok(serde_json::from_str(&node.fault(&format!("bench {order}"))?)?)
}

/// All ways of starting in turn, so that whatever else the machine does falls on all of them.
fn starts(node: &Node, rounds: usize, figures: &mut Figures) -> Result<()> {
    let (mut stages, mut guest) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut take = |order: &str, field: &str| -> Option<u64> {
            match bench(node, order) {
                Ok(found) => found[field].as_u64(),
                Err(error) => {
                    eprintln!("round {round}: {order}: {error:#}");
                    figures.missing.push(format!("round {round}: {order}: {error:#}"));
                    None
                }
            }
        };
        let agent = take(&format!("start {STARTED}"), "us");
        let status = node.json(&["agent", "status", STARTED])?;
        node.json(&["agent", "stop", STARTED])?;
        let serial = take(&format!("serial {HOLDER}"), "us");
        let microvm = take(&format!("microvm {HOLDER} {QEMU_DISK}"), "us");
        match bench(node, &format!("plain {HOLDER}")) {
            Ok(found) => {
                figures.plain.0.extend(found["us"].as_u64());
                figures.plain_hello.0.extend(found["hello_us"].as_u64());
            }
            Err(error) => {
                eprintln!("round {round}: plain: {error:#}");
                figures.missing.push(format!("round {round}: plain: {error:#}"));
            }
        }
        figures.agent.0.extend(agent);
        figures.serial.0.extend(serial);
        figures.microvm.0.extend(microvm);
        stages.push(status["stages_ms"].clone());
        guest.push(status["guest_stages_us"].clone());
        let last =
            |times: &figures::Times| times.0.last().map_or("-".into(), |us| format!("{} ms", us / 1000));
        eprintln!(
            "round {} of {rounds}: agent start {}, libkrun {}, reporting: libkrun {}, microvm {}",
            round + 1,
            last(&figures.agent),
            last(&figures.plain),
            last(&figures.serial),
            last(&figures.microvm)
        );
    }
    figures.stages_ms = stage_medians(&stages)?;
    figures.guest_us = stage_medians(&guest)?;
    Ok(())
}

/// One large file in and out again, by nullctl, over the network: what an operator gets.
fn copies(node: &Node, figures: &mut Figures) -> Result<()> {
    let file = node.dir.join("copied");
    // No two blocks alike, and nothing to compress.
    let mut state = 1_u64;
    let bytes: Vec<u8> = (0..COPY_BYTES / 8)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state ^ state >> 29).to_le_bytes()
        })
        .collect();
    fs::write(&file, &bytes)?;
    let back = node.dir.join("back");
    let (here, there) = (file.display().to_string(), format!("{HOLDER}:/tmp/copied"));
    let mb_s = |began: Instant| COPY_BYTES as f64 / 1e6 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    node.ctl(&["agent", "cp", &here, &there])?.ok()?;
    figures.copy_in_mb_s = Some(mb_s(began));
    let began = Instant::now();
    node.ctl(&["agent", "cp", &there, &back.display().to_string()])?.ok()?;
    figures.copy_out_mb_s = Some(mb_s(began));
    ensure!(fs::read(&back)? == bytes, "what came back is not what went in");
    Ok(())
}

/// An archive whose lower layers the node has and whose last one is new, over the network.
fn import(node: &Node, figures: &mut Figures) -> Result<()> {
    let archive = fixture::python_archive(&system_tests::tree().join("tests/src"))?;
    let bytes = fs::metadata(&archive)?.len();
    let began = Instant::now();
    node.ctl(&["image", "import", &archive.display().to_string(), "--name", "again"])?.ok()?;
    figures.import_mb_s = Some(bytes as f64 / 1e6 / began.elapsed().as_secs_f64());
    Ok(())
}

/// Idle agents, one more and one more, until the node refuses.
fn crowd(node: &Node, agents: usize, figures: &mut Figures) {
    for number in 0..agents {
        match bench(node, &format!("start idle-{number}")) {
            Ok(found) => figures.crowd.0.extend(found["us"].as_u64()),
            Err(error) => {
                figures.crowd_end = format!("agent {}: {error:#}", number + 1);
                return;
            }
        }
        eprintln!("idle agents: {}", number + 1);
    }
    figures.crowd_end = format!("{agents} were asked for");
}

const SABOTEUR: &str = r#"
[node]
name = "bench-cage"

[services.fault]
path = "/system/bin/fault"
needs = ["cage"]
capabilities = ["dac_override", "dac_read_search", "kill", "sys_admin", "sys_ptrace", "sys_resource", "sys_tty_config"]
unconfined = true
makes_mounts = true
tasks_max = 4096
open_files_max = 4096
"#;

const AGENT: &str = r#"
[agent]
name = "NAME"
version = "1.0.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/idle.py"]

[capabilities]
exec = ["/bin/true"]
max_memory_mb = 64
filesystem.write = ["/tmp"]
"#;
