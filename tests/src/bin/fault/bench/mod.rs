//! What `make bench-cage` has measured on the node itself: one clock, one process, for every way of starting a VM.
//!
//! Must hold: a VM started here is killed and gone when the answer is given.

mod init;
mod plain;
mod rivals;

use std::fs;
use std::time::{Duration, Instant};

use abi::node::CONTROL_SOCKET;
use abi::rpc::Request;
use abi::wire::Connection;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

pub use init::main as init;
pub use plain::main as plain;

/// How long one call may take: a whole start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(50);
/// Mappings of a VMM of at least this size are the guest's memory (which is one mapping of `max_memory_mb`).
const GUEST_SHARE: u64 = 2;

/// `start AGENT`, `exec AGENT COUNT`, `memory AGENT MIB`, `plain|serial|microvm SPEC`; all answers are JSON.
pub fn obey(order: &str) -> Result<String> {
    let (what, rest) = order.split_once(' ').context("bench WHAT ...")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let answer = match (what, words.as_slice()) {
        ("start", [agent]) => start(agent)?,
        ("exec", [agent, count]) => execs(agent, count.parse()?)?,
        ("memory", [agent, mib]) => memory(agent, mib.parse()?)?,
        ("plain" | "serial" | "microvm", _) => rivals::obey(what, rest)?,
        _ => bail!(
            "bench start AGENT | exec AGENT COUNT | memory AGENT MIB | plain SPEC | serial SPEC | microvm SPEC"
        ),
    };
    Ok(answer.to_string())
}

/// A call, and the microseconds from before its line is written until its answer has been read.
fn timed(method: &str, params: Value) -> Result<(u64, Value)> {
    let began = Instant::now();
    let mut connection = Connection::connect(CONTROL_SOCKET)?;
    connection.set_timeout(Some(PATIENCE))?;
    connection.write_line(&Request::call(1, method, params))?;
    while let Some(line) = connection.read_line()? {
        let answer: Value = serde_json::from_str(&line)?;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}");
        }
        if let Some(result) = answer.get("result") {
            return Ok((u64::try_from(began.elapsed().as_micros())?, result.clone()));
        }
    }
    bail!("{method}: closed without an answer")
}

/// Request to answer: the answer comes when the agent's program runs.
fn start(agent: &str) -> Result<Value> {
    let (us, _) = timed("agent.start", json!({ "name": agent }))?;
    Ok(json!({ "us": us }))
}

/// Request to answer of a program that does nothing, so many times in a row.
fn execs(agent: &str, count: usize) -> Result<Value> {
    let mut times_us = Vec::new();
    for _ in 0..count {
        let (us, ended) = timed("agent.exec", json!({ "name": agent, "command": ["/bin/true"] }))?;
        if ended["code"] != 0 {
            bail!("the program ended with {ended}");
        }
        times_us.push(us);
    }
    Ok(json!({ "us": times_us }))
}

/// What an agent's VMM holds beside the guest's memory: private pages that were written (proc_pid_smaps(5)).
fn memory(agent: &str, guest_mib: u64) -> Result<Value> {
    let pid = vmm_of(agent)?;
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut own_kib, mut guest_kib, mut is_guest) = (0, 0, false);
    for line in smaps.lines() {
        let number = |name: &str| {
            let value = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
            value.parse::<u64>().ok()
        };
        if let Some(size_kib) = number("Size:") {
            is_guest = size_kib >= guest_mib * 1024 / GUEST_SHARE;
        }
        if let Some(dirty_kib) = number("Private_Dirty:") {
            *(if is_guest { &mut guest_kib } else { &mut own_kib }) += dirty_kib;
        }
    }
    Ok(json!({ "own_kib": own_kib, "guest_kib": guest_kib }))
}

/// The VMM: alone in its agent's cgroup. Its name is its first thread's role.
fn vmm_of(agent: &str) -> Result<i32> {
    for pid in super::pids()? {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroup.contains(&format!("/vm-{agent}.")) {
            return Ok(pid);
        }
    }
    bail!("{agent} has no VMM")
}

/// Files that a running agent's VMM has as its rootfs, bottom to top: the same are given to its rivals.
pub fn rootfs_of(agent: &str) -> Result<Vec<String>> {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", vmm_of(agent)?))?;
    // proc_pid_mountinfo(5): the fourth field is the file in its file system, the fifth where it is.
    let mut layers: Vec<(String, String)> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(3);
            let (file, place) = (fields.next()?, fields.next()?);
            place.starts_with("/rootfs").then(|| (place.to_owned(), format!("/state{file}")))
        })
        .collect();
    layers.sort();
    Ok(layers.into_iter().map(|(_, file)| file).collect())
}
