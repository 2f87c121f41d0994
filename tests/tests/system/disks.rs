//! What agents write and what stays of it: kept workspaces, volumes, snapshots, on a node of their own with a state disk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::fixture::{self, Config};
use system_tests::node::{Firmware, Machine, Node};

use crate::shared::{eventually, refused};
use crate::slot::{Own, Slot};
use crate::trial;

/// Their node.
pub static BENCH: Slot<Own> = Slot::new(start);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("disks::what_is_kept_goes_on_and_what_is_not_is_gone", what_is_kept_goes_on),
        trial("disks::full_volume_is_the_agents_own_trouble", full_volume_is_the_agents_own_trouble),
        trial("disks::read_only_volume_refuses_writes", read_only_volume_refuses_writes),
        trial("disks::snapshot_of_a_paused_agent_is_forked_and_restored", snapshot_is_forked_and_restored),
        trial("disks::what_does_not_fit_is_refused_with_its_reason", what_does_not_fit_is_refused),
        trial("disks::pulled_plug_keeps_workspaces_volumes_and_snapshots", pulled_plug_keeps_disks),
        trial("disks::nothing_is_left_when_all_is_removed", nothing_is_left),
    ]
}

const AGENTS: &[(&str, &str, &str)] = &[
    ("keeper", "workspace = \"kept\"", "max_disk_mb = 80\nvolumes.data = { path = \"/vol\", max_mb = 64 }"),
    ("forked", "workspace = \"kept\"", "max_disk_mb = 96"),
    ("narrow", "workspace = \"kept\"", "max_disk_mb = 64"),
    ("passing", "", "max_disk_mb = 64\nvolumes.data = { path = \"/vol\", max_mb = 64, read_only = true }"),
];

fn start() -> Result<Own> {
    let config = Config::new("disks")?;
    config.file("nulld.toml", "[node]\nname = \"disks\"\n[services.fault]\npath = \"/system/bin/fault\"\nunconfined = true\nneeds = [\"cage\"]\ncapabilities = [\"dac_read_search\", \"dac_override\"]\n")?;
    for (name, life, disks) in AGENTS {
        let manifest = format!(
            "[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"python\"\ncommand = [\"/usr/bin/python3\", \"/app/idle.py\"]\n{life}\n[capabilities]\nmax_memory_mb = 160\nfilesystem.write = [\"/data/out\"]\n{disks}\n"
        );
        config.file(&format!("agents/{name}.toml"), &manifest)?;
    }
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        name: "disks".into(),
        iso: system_tests::test_iso()?,
        firmware: Firmware::Uefi,
        config: Some(config.volume()?),
        state: Some(config.state("1G")?),
        memory_mib: 2048,
        cpus: 2,
        forwards: Vec::new(),
        uplink: false,
        key: config.keys.operator.clone(),
    };
    Ok(Own { node: Node::boot(machine)?, config })
}

/// Runs Python inside an agent's guest; what it printed.
fn python(node: &Node, agent: &str, code: &str) -> Result<String> {
    run(node, agent)?;
    let answer = node.ctl(&["agent", "exec", agent, "--", "/usr/bin/python3", "-c", code])?.ok()?;
    Ok(answer.stdout.trim().to_owned())
}

fn run(node: &Node, agent: &str) -> Result<()> {
    if node.json(&["agent", "status", agent])?["summary"]["state"] != "running" {
        node.json(&["agent", "start", agent])?;
    }
    Ok(())
}

fn stop(node: &Node, agent: &str) -> Result<()> {
    node.json(&["agent", "stop", agent]).map(|_| ())
}

fn write(node: &Node, agent: &str, path: &str, text: &str) -> Result<()> {
    python(node, agent, &format!("open('{path}', 'w').write('{text}')")).map(|_| ())
}

fn read(node: &Node, agent: &str, path: &str) -> Result<String> {
    let code = format!("import os; print(open('{path}').read() if os.path.exists('{path}') else 'none')");
    python(node, agent, &code)
}

fn what_is_kept_goes_on() -> Result<()> {
    BENCH.on(|node| {
        for (agent, path) in
            [("keeper", "/data/out/file"), ("keeper", "/vol/file"), ("passing", "/data/out/file")]
        {
            write(node, agent, path, "first life")?;
        }
        for agent in ["keeper", "passing"] {
            stop(node, agent)?;
        }
        ensure!(read(node, "keeper", "/data/out/file")? == "first life", "the workspace was not kept");
        ensure!(read(node, "keeper", "/vol/file")? == "first life", "the volume was not kept");
        ensure!(read(node, "passing", "/data/out/file")? == "none", "an ephemeral workspace was kept");
        let status = node.json(&["agent", "status", "keeper"])?;
        let disks = status["disks"].as_array().context("no disks")?;
        let sizes: Vec<_> =
            disks.iter().map(|disk| (disk["name"].as_str(), disk["size_mib"].as_u64())).collect();
        ensure!(sizes == [(Some("workspace"), Some(80)), (Some("data"), Some(64))], "{status}");
        ensure!(
            disks.iter().all(|disk| (1..40_000).contains(&disk["used_kib"].as_u64().unwrap_or(0))),
            "{status}"
        );
        Ok(())
    })
}

fn full_volume_is_the_agents_own_trouble() -> Result<()> {
    BENCH.on(|node| {
        let fill = "import errno\nf = open('/vol/fill', 'wb')\nn = 0\ntry:\n  while True: n += f.write(b'x' * 65536); f.flush()\nexcept OSError as e: print(errno.errorcode[e.errno], n >> 20)";
        let said = python(node, "keeper", fill)?;
        let mib: u64 = said.strip_prefix("ENOSPC ").with_context(|| said.clone())?.parse()?;
        ensure!((30..64).contains(&mib), "{mib} MiB went into a volume of 64");
        write(node, "keeper", "/data/out/other", "there is room")?;
        python(node, "keeper", "import os; os.remove('/vol/fill')").map(|_| ())
    })
}

fn read_only_volume_refuses_writes() -> Result<()> {
    BENCH.on(|node| {
        run(node, "passing")?;
        let probe =
            ["agent", "exec", "passing", "--", "/usr/bin/python3", "/app/probe.py", "write", "/vol/x"];
        let answer = node.ctl(&probe)?.ok()?;
        let found: Value = serde_json::from_str(answer.stdout.lines().last().context("silent")?)?;
        refused(&found)?;
        ensure!(found["errno"] == 30, "not EROFS: {found}");
        Ok(())
    })
}

fn snapshot_is_forked_and_restored() -> Result<()> {
    BENCH.on(|node| {
        write(node, "keeper", "/data/out/file", "before")?;
        let early = node.ctl(&["snapshot", "create", "keeper", "one"])?;
        ensure!(early.status != 0 && early.stderr.contains("agent pause keeper"), "{early:?}");
        node.json(&["agent", "pause", "keeper"])?;
        let taken = node.json(&["snapshot", "create", "keeper", "one"])?;
        ensure!(taken["size_mib"] == 80 && taken["agent"] == "keeper", "{taken}");
        node.json(&["agent", "resume", "keeper"])?;
        write(node, "keeper", "/data/out/file", "after")?;
        node.ctl(&["agent", "create", "forked", "--from", "one"])?.ok()?;
        ensure!(read(node, "forked", "/data/out/file")? == "before", "the fork has something else");
        ensure!(read(node, "keeper", "/data/out/file")? == "after", "the original was changed");
        stop(node, "keeper")?;
        node.ctl(&["agent", "remove", "keeper"])?.ok()?;
        node.ctl(&["agent", "create", "keeper", "--from", "one"])?.ok()?;
        ensure!(read(node, "keeper", "/data/out/file")? == "before", "the restored one has something else");
        ensure!(read(node, "keeper", "/vol/file")? == "first life", "the volume went with the workspace");
        let receipts = node.json(&["ledger", "tail", "--limit", "200"])?.to_string();
        let digest = taken["disk"].as_str().context("no digest")?;
        ensure!(receipts.contains("snapshot_taken") && receipts.contains(digest), "{receipts}");
        Ok(())
    })
}

fn what_does_not_fit_is_refused() -> Result<()> {
    BENCH.on(|node| {
        stop(node, "passing")?; // what runs is refused for that
        for (command, reason) in [
            (&["agent", "create", "narrow", "--from", "one"][..], "at least 80 MiB"),
            (&["agent", "create", "narrow", "--from", "none"], "no snapshot `none`"),
            (&["agent", "create", "forked", "--from", "one"], "in use"),
            (&["agent", "create", "passing"], "workspace = \"kept\""),
            (&["snapshot", "create", "keeper", "one"], "already"),
            (&["snapshot", "create", "narrow", "two"], "no workspace"),
            (&["volume", "remove", "keeper", "data"], "in use"),
            (&["volume", "remove", "keeper", "none"], "no volume `keeper/none`"),
        ] {
            let answer = node.ctl(command)?;
            ensure!(answer.status != 0 && answer.stderr.contains(reason), "{command:?}: {answer:?}");
        }
        Ok(())
    })
}

fn pulled_plug_keeps_disks() -> Result<()> {
    BENCH.on(|node| {
        python(node, "keeper", "import os\nfor p in ('/data/out/plug', '/vol/plug'):\n  f = open(p, 'w'); f.write('pulled'); f.flush(); os.fsync(f.fileno())").map(|_| ())
    })?;
    let mut bench = BENCH.hold()?;
    let Own { node, config } = bench.take();
    bench.put(Own { node: Node::boot(node.pull_plug()?)?, config });
    drop(bench);
    BENCH.on(|node| {
        eventually(Duration::from_secs(240), "what ran runs again", || {
            Ok(node.json(&["agent", "status", "keeper"])?["summary"]["state"] == "running")
        })?;
        ensure!(read(node, "keeper", "/data/out/plug")? == "pulled", "the workspace lost what was synced");
        ensure!(read(node, "keeper", "/vol/plug")? == "pulled", "the volume lost what was synced");
        let snapshots = node.json(&["snapshot", "list"])?;
        ensure!(snapshots["snapshots"][0]["name"] == "one", "{snapshots}");
        let scratch = node.fault("list /state/cage/scratch")?;
        ensure!(scratch.lines().all(|name| name.starts_with("passing.")), "{scratch}");
        Ok(())
    })
}

fn nothing_is_left() -> Result<()> {
    BENCH.on(|node| {
        for (agent, ..) in AGENTS {
            stop(node, agent)?;
            let removed = node.ctl(&["agent", "remove", agent])?;
            ensure!(removed.status == 0 || *agent == "narrow", "{removed:?}");
        }
        node.ctl(&["snapshot", "remove", "one"])?.ok()?;
        for agent in ["keeper", "passing"] {
            node.ctl(&["volume", "remove", agent, "data"])?.ok()?;
        }
        for dir in ["scratch", "workspaces", "volumes", "snapshots"] {
            let left = node.fault(&format!("list /state/cage/{dir}"))?;
            ensure!(left.trim().is_empty(), "{dir}: {left}");
        }
        let volumes = node.json(&["volume", "list"])?;
        ensure!(volumes["volumes"].as_array().is_some_and(Vec::is_empty), "{volumes}");
        Ok(())
    })
}
