//! The life of agents, and what holds inside their guests.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::shared::{eventually, lab};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("agents::wrong_manifests_are_refused_with_line_field_and_remedy", wrong_manifests_are_refused),
        trial("agents::output_of_both_streams_and_the_exit_status_are_kept", output_and_exit_status_are_kept),
        trial("agents::agent_runs_without_any_privilege", agent_runs_without_any_privilege),
        trial("agents::files_are_what_the_manifest_grants", files_are_what_the_manifest_grants),
        trial(
            "agents::nothing_but_the_granted_programs_is_executed",
            nothing_but_the_granted_programs_is_executed,
        ),
        trial("agents::exec_streams_and_passes_the_exit_code", exec_streams_and_passes_the_exit_code),
        trial("agents::vsock_is_closed_to_the_agent", vsock_is_closed_to_the_agent),
        trial("agents::fork_bomb_and_hunger_stay_in_their_guest", fork_bomb_and_hunger_stay_in_their_guest),
        trial("agents::killed_vmm_is_explained_and_starts_again", killed_vmm_is_explained_and_starts_again),
        trial("agents::stop_leaves_nothing_behind", stop_leaves_nothing_behind),
        trial("agents::missing_rootfs_is_named", missing_rootfs_is_named),
    ]
}

fn wrong_manifests_are_refused() -> Result<()> {
    let list = lab()?.node.json(&["agent", "list"])?;
    let rejected = list["rejected"].as_array().context("no list of rejected manifests")?;
    for (file, line, field) in [
        ("wrong-value.toml", 7, "capabilities.max_cpu_percent"),
        ("wrong-field.toml", 6, "colour"),
        ("not-enforced.toml", 6, "tools"),
        ("no-toml.toml", 1, "agent"),
    ] {
        let error = rejected
            .iter()
            .find(|error| error["file"].as_str().is_some_and(|f| f.ends_with(file)))
            .with_context(|| format!("{file} was not rejected: {list}"))?;
        ensure!(error["field"] == field, "{error}");
        ensure!(file == "not-enforced.toml" || error["line"] == line, "{error}");
        ensure!(error["rule"].as_str().is_some_and(|rule| !rule.is_empty()), "{error}");
    }
    ensure!(rejected.len() == 4, "{list}");
    Ok(())
}

fn output_and_exit_status_are_kept() -> Result<()> {
    let lab = lab()?;
    lab.node.json(&["agent", "start", "once"])?;
    lab.wait_state("once", "exited", Duration::from_secs(60))?;
    let status = lab.node.json(&["agent", "status", "once"])?;
    ensure!(status["exit"]["code"] == 3, "{status}");
    let log = lab.node.ctl(&["agent", "logs", "once"])?.ok()?;
    ensure!(log.stdout.contains("once: out"), "{log:?}");
    ensure!(log.stdout.contains("once: err") || log.stderr.contains("once: err"), "{log:?}");
    Ok(())
}

fn agent_runs_without_any_privilege() -> Result<()> {
    let me = lab()?.probe("tester", &["whoami"])?;
    ensure!(
        me["uid"] == 1000 && me["gid"] == 1000 && me["groups"].as_array().is_some_and(Vec::is_empty),
        "{me}"
    );
    ensure!(me["caps"].as_array().is_some_and(|caps| caps.iter().all(|c| c == "0000000000000000")), "{me}");
    ensure!(me["no_new_privs"] == "1" && me["seccomp"] == "2", "{me}");
    ensure!(me["block_devices"].as_array().is_some_and(Vec::is_empty), "{me}");
    ensure!(me["env"]["GREETING"] == "hello", "{me}");
    Ok(())
}

fn files_are_what_the_manifest_grants() -> Result<()> {
    let lab = lab()?;
    let written = lab.probe("tester", &["write", "/data/out/report"])?;
    ensure!(written["written"] == "/data/out/report", "{written}");
    let written = ["/data/secret", "/etc/passwd", "/usr/bin/python3", "/app/main.py", "/root/x", "/x"];
    lab.refused_each("tester", &written.map(|path| ["write", path]))?;
    let read = [
        "/var/lib/dpkg/status",
        "/root/.bashrc",
        "/proc/1/environ",
        "/proc/1/mem",
        "/dev/vda",
        "/proc/kcore",
    ];
    lab.refused_each("tester", &read.map(|path| ["read", path]))
}

fn nothing_but_the_granted_programs_is_executed() -> Result<()> {
    let lab = lab()?;
    lab.refused_each("tester", &["/bin/sh", "/usr/bin/env", "/usr/bin/id"].map(|program| ["run", program]))?;
    let answer = lab.node.ctl(&["agent", "exec", "tester", "--", "/bin/sh", "-c", "true"])?;
    ensure!(answer.status == 125 && answer.stderr.contains("exec"), "{answer:?}");
    Ok(())
}

fn exec_streams_and_passes_the_exit_code() -> Result<()> {
    let lab = lab()?;
    lab.running("tester")?;
    let code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)";
    let answer = lab.node.ctl(&["agent", "exec", "tester", "--", "/usr/bin/python3", "-c", code])?;
    ensure!(answer.status == 7 && answer.stdout == "out\n" && answer.stderr.contains("err"), "{answer:?}");
    Ok(())
}

fn vsock_is_closed_to_the_agent() -> Result<()> {
    let lab = lab()?;
    let places = [("2", "1024"), ("2", "1025"), ("1", "1024"), ("2", "22"), ("3", "1024")];
    lab.refused_each("tester", &places.map(|(cid, port)| ["vsock", cid, port]))
}

fn fork_bomb_and_hunger_stay_in_their_guest() -> Result<()> {
    let lab = lab()?;
    lab.running("hermit")?;
    let before = crate::sound::before(&lab.node)?;
    let found = lab.probe("hermit", &["bomb"])?;
    let tasks = found["tasks"].as_u64().with_context(|| format!("{found}"))?;
    let most = u64::from(abi::limits::GUEST_PIDS_DEFAULT);
    ensure!(
        (1..most).contains(&tasks) && found["refused"].is_string(),
        "{found}, at most {most} are allowed"
    );
    // MemoryError or the guest's own out-of-memory killer; either way it is over, and only for the probe.
    let answer =
        lab.node.ctl(&["agent", "exec", "hermit", "--", "/usr/bin/python3", "/app/probe.py", "eat"])?;
    ensure!(!answer.stdout.contains("eaten"), "it was allowed all of it: {answer:?}");
    let status = lab.node.json(&["agent", "status", "hermit"])?;
    ensure!(status["summary"]["state"] == "running", "after {answer:?}: {status:#}");
    let neighbour = lab.probe("hermit", &["whoami"])?;
    ensure!(neighbour["uid"].is_u64(), "the guest is gone: {neighbour}");
    before.still_sound(&lab.node, &[], 0)
}

fn killed_vmm_is_explained_and_starts_again() -> Result<()> {
    let lab = lab()?;
    lab.running("hermit")?;
    lab.running("tester")?;
    let before = lab.node.json(&["agent", "status", "hermit"])?["summary"]["instance"].clone();
    let tester = lab.node.json(&["agent", "status", "tester"])?["summary"]["instance"].clone();
    let uid = vmm_uids(&lab)?;
    ensure!(uid.len() >= 2, "expected two VMMs with uids of their own, found {uid:?}");
    kill_vmm_of(&lab, "hermit")?;
    lab.wait_state("hermit", "failed", Duration::from_secs(30))?;
    let status = lab.node.json(&["agent", "status", "hermit"])?;
    ensure!(status["summary"]["detail"].as_str().is_some_and(|d| d.contains("signal 9")), "{status}");
    ensure!(lab.state("tester")? == "running", "a neighbour was hurt");
    lab.running("hermit")?;
    let after = lab.node.json(&["agent", "status", "hermit"])?["summary"]["instance"].clone();
    ensure!(before != after, "an instance came back from the dead: {after}");
    let same = lab.node.json(&["agent", "status", "tester"])?["summary"]["instance"].clone();
    ensure!(same == tester, "the neighbour was restarted: {tester} {same}");
    Ok(())
}

/// Uids of all VMM processes on the node.
fn vmm_uids(lab: &crate::shared::Lab) -> Result<std::collections::BTreeSet<u32>> {
    let table = lab.node.fault("ps")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(2)?.parse().ok())
        .filter(|uid| *uid >= 100_000)
        .collect())
}

/// Kills the VMM of an agent through its cgroup's process list.
fn kill_vmm_of(lab: &crate::shared::Lab, agent: &str) -> Result<()> {
    let base = "/sys/fs/cgroup/services/cage";
    let groups = lab.node.fault(&format!("list {base}"))?;
    let group = groups
        .lines()
        .find(|name| name.starts_with(&format!("vm-{agent}.")))
        .context("no cgroup of the VM")?;
    let pids = lab.node.fault(&format!("read {base}/{group}/cgroup.procs"))?;
    ensure!(!pids.trim().is_empty(), "the cgroup of {agent} is empty");
    for pid in pids.split_whitespace() {
        lab.node.fault(&format!("kill 9 {pid}"))?;
    }
    Ok(())
}

fn stop_leaves_nothing_behind() -> Result<()> {
    let lab = lab()?;
    for agent in ["tester", "neighbour", "hermit", "once"] {
        if lab.state(agent)? == "running" {
            lab.node.json(&["agent", "stop", agent])?;
        }
        ensure!(lab.state(agent)? != "running", "{agent} still runs");
    }
    eventually(Duration::from_secs(20), "no process, cgroup or scratch disk is left", || {
        let groups = lab.node.fault("list /sys/fs/cgroup/services/cage")?;
        let jails = lab.node.fault("list /run/cage").unwrap_or_default();
        Ok(vmm_uids(&lab)?.is_empty() && !groups.contains("vm-") && !jails.contains("tester"))
    })?;
    let grants = lab.node.json(&["net", "grants"])?;
    ensure!(grants["agents"].as_array().is_some_and(Vec::is_empty), "{grants}");
    Ok(())
}

fn missing_rootfs_is_named() -> Result<()> {
    let answer = lab()?.node.ctl(&["agent", "start", "no-rootfs"])?;
    ensure!(
        answer.status == 1 && answer.stderr.contains("nowhere") && answer.stderr.contains("image list"),
        "{answer:?}"
    );
    Ok(())
}
