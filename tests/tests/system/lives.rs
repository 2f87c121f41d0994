//! Lives of agents as operators steer them and as their manifests bound them, on a node of their own.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::fixture::{self, Config};
use system_tests::node::{Firmware, Machine, Node};

use crate::shared::eventually;
use crate::slot::{self, Slot};
use crate::trial;

pub struct Bench {
    node: Node,
    _config: Config,
    open: Arc<AtomicUsize>,
}

impl slot::Bench for Bench {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Their node.
pub static BENCH: Slot<Bench> = Slot::new(start);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("lives::paused_agent_does_nothing_and_goes_on_with_the_right_time", paused_agent_does_nothing),
        trial("lives::kill_and_restart_are_what_they_say", kill_and_restart),
        trial("lives::crashing_agent_is_started_again_so_often_and_no_more", crashing_agent_is_started_again),
        trial("lives::stop_ends_the_wait_for_a_restart", stop_ends_the_wait),
        trial("lives::lifetime_and_idle_time_end_a_life", lifetime_and_idle_time_end_a_life),
        trial("lives::unhealthy_agent_is_started_anew", unhealthy_agent_is_started_anew),
        trial("lives::empty_memory_is_explained", empty_memory_is_explained),
        trial("lives::quarantine_cuts_keeps_and_never_ends_by_itself", quarantine_cuts_and_keeps),
        trial("lives::quarantine_outlives_cage", quarantine_outlives_cage),
        trial("lives::removal_leaves_nothing_and_says_so", removal_leaves_nothing),
    ]
}

/// Name, what it does, fields of `[agent]`, fields of `[capabilities]`.
const AGENTS: &[(&str, &str, &str, &str)] = &[
    ("ticker", "tick", "", ""),
    ("crasher", "crash", "restart = \"on-failure\"\nmax_restarts = 2", ""),
    ("mortal", "idle", "max_lifetime_secs = 3\nrestart = \"on-failure\"", ""),
    ("bored", "idle", "idle_timeout_secs = 4\nrestart = \"always\"", ""),
    (
        "patient",
        "web",
        "restart = \"on-failure\"",
        "[capabilities.health_check]\nport = 8080\npath = \"/health\"\ninterval_secs = 1\nmax_failures = 2",
    ),
    ("hungry", "eat", "", ""),
    ("suspect", "hold", "restart = \"always\"", "max_disk_mb = 64\nnetwork.allow = [\"web.test:80\"]"),
];

fn start() -> Result<Bench> {
    let config = Config::new("lives")?;
    config.file("nulld.toml", "[node]\nname = \"lives\"\n[network.hosts]\n\"web.test\" = [\"10.0.2.100\"]\n[services.fault]\npath = \"/system/bin/fault\"\nunconfined = true\nneeds = [\"cage\"]\ncapabilities = [\"dac_read_search\", \"dac_override\", \"kill\"]\n")?;
    for (name, does, life, capabilities) in AGENTS {
        let manifest = format!(
            "[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"python\"\ncommand = [\"/usr/bin/python3\", \"/app/lives.py\", \"{does}\"]\n{life}\n[capabilities]\nmax_memory_mb = 160\n{capabilities}\n"
        );
        config.file(&format!("agents/{name}.toml"), &manifest)?;
    }
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let open = Arc::new(AtomicUsize::new(0));
    let port = listen(open.clone())?;
    let machine = Machine {
        name: "lives".into(),
        iso: system_tests::test_iso()?,
        firmware: Firmware::Uefi,
        config: Some(config.volume()?),
        state: Some(config.state("1G")?),
        memory_mib: 2048,
        cpus: 2,
        forwards: vec![("10.0.2.100:80".into(), port)],
        uplink: false,
        key: config.keys.operator.clone(),
    };
    Ok(Bench { node: Node::boot(machine)?, _config: config, open })
}

/// A server that never answers and counts who is connected to it.
fn listen(open: Arc<AtomicUsize>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let open = open.clone();
            std::thread::spawn(move || {
                open.fetch_add(1, Ordering::SeqCst);
                while stream.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0) {}
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Ok(port)
}

fn status(node: &Node, agent: &str) -> Result<Value> {
    node.json(&["agent", "status", agent])
}

fn state(node: &Node, agent: &str) -> Result<String> {
    Ok(status(node, agent)?["summary"]["state"].as_str().unwrap_or_default().to_owned())
}

fn detail(node: &Node, agent: &str) -> Result<String> {
    Ok(status(node, agent)?["summary"]["detail"].as_str().unwrap_or_default().to_owned())
}

fn wait_state(node: &Node, agent: &str, wanted: &str, limit: Duration) -> Result<()> {
    eventually(limit, &format!("{agent} is {wanted}"), || Ok(state(node, agent)? == wanted))
        .with_context(|| status(node, agent).map(|s| s["summary"].to_string()).unwrap_or_default())
}

/// The agent's ticks: number, wall clock, seconds.
fn ticks(node: &Node) -> Result<Vec<(u64, f64)>> {
    let log = node.ctl(&["agent", "logs", "ticker"])?.ok()?.stdout;
    let parse = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    Ok(log.lines().filter_map(parse).collect())
}

/// How many of the newest ledger entries are this event of this agent.
fn receipts(node: &Node, agent: &str, event: &str) -> Result<usize> {
    let tail = node.ctl(&["ledger", "tail", "--limit", "400", "--json"])?.ok()?.stdout;
    let is_one = |line: &&str| line.contains(&format!("\"{event}\"")) && line.contains(&format!("\"{agent}"));
    let all: Vec<Value> = tail.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let entries =
        all.iter().flat_map(|value| match value["entries"].as_array().or(value["events"].as_array()) {
            Some(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>(),
            None => vec![value.to_string()],
        });
    Ok(entries.collect::<Vec<_>>().iter().map(String::as_str).filter(is_one).count())
}

/// So many receipts, by now or soon, and no more.
fn noted(node: &Node, agent: &str, event: &str, count: usize) -> Result<()> {
    eventually(Duration::from_secs(10), &format!("{count} x {event} of {agent} in the ledger"), || {
        Ok(receipts(node, agent, event)? == count)
    })
}

fn refused(node: &Node, arguments: &[&str], why: &str) -> Result<()> {
    let answer = node.ctl(arguments)?;
    ensure!(answer.status != 0 && answer.stderr.contains(why), "{arguments:?}: {answer:?}");
    Ok(())
}

fn paused_agent_does_nothing() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        node.json(&["agent", "start", "ticker"])?;
        eventually(Duration::from_secs(20), "it ticks", || Ok(ticks(node)?.len() > 3))?;
        node.json(&["agent", "pause", "ticker"])?;
        ensure!(state(node, "ticker")? == "paused");
        // What it said before is still being written.
        std::thread::sleep(Duration::from_secs(1));
        let (before, cpu) = (ticks(node)?, status(node, "ticker")?["cpu_ms"].clone());
        std::thread::sleep(Duration::from_secs(4));
        ensure!(ticks(node)?.len() == before.len(), "it ticked while it was paused");
        ensure!(cpu.is_u64() && status(node, "ticker")?["cpu_ms"] == cpu, "it used CPU while it was paused");
        refused(node, &["agent", "exec", "ticker", "--", "/usr/bin/python3", "-c", "1"], "paused")?;
        refused(node, &["agent", "pause", "ticker"], "paused")?;
        node.json(&["agent", "resume", "ticker"])?;
        eventually(Duration::from_secs(20), "it ticks again", || Ok(ticks(node)?.len() > before.len() + 3))?;
        let after = ticks(node)?;
        ensure!(
            after.windows(2).all(|two| two[1].0 == two[0].0 + 1),
            "its work went on elsewhere: {after:?}"
        );
        // A tick of before the pause can still be on its way out of the guest, and is told afterwards.
        let since = &after[before.len() - 1..];
        ensure!(since.windows(2).any(|two| two[1].1 - two[0].1 > 3.5), "its clock stood still: {since:?}");
        let now = || anyhow::Ok(node.fault("now")?.parse::<f64>()?);
        let from = now()?;
        eventually(Duration::from_secs(20), "it ticks on", || Ok(ticks(node)?.len() > after.len() + 3))?;
        let (last, to) = (ticks(node)?.last().context("it has no ticks")?.1, now()?);
        ensure!((from - 1.0..to + 1.0).contains(&last), "{last} is not between {from} and {to}");
        refused(node, &["agent", "resume", "ticker"], "not paused")?;
        noted(node, "ticker", "agent_paused", 1)?;
        noted(node, "ticker", "agent_resumed", 1)?;
        // A paused one stops in order.
        node.json(&["agent", "pause", "ticker"])?;
        node.json(&["agent", "stop", "ticker"])?;
        ensure!(state(node, "ticker")? == "stopped");
        Ok(())
    })
}

fn kill_and_restart() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        node.json(&["agent", "start", "ticker"])?;
        let before = status(node, "ticker")?["summary"]["instance"].clone();
        node.json(&["agent", "restart", "ticker"])?;
        let after = status(node, "ticker")?["summary"]["instance"].clone();
        ensure!(state(node, "ticker")? == "running" && before != after, "{before} {after}");
        for paused in [false, true] {
            node.json(&["agent", if paused { "pause" } else { "restart" }, "ticker"])?;
            let since = Instant::now();
            node.json(&["agent", "kill", "ticker"])?;
            ensure!(since.elapsed() < Duration::from_secs(10), "a kill waited for something");
            ensure!(state(node, "ticker")? == "stopped");
            node.json(&["agent", "start", "ticker"])?;
        }
        node.json(&["agent", "kill", "ticker"])?;
        noted(node, "ticker", "agent_killed", 3)?;
        refused(node, &["agent", "pause", "ticker"], "does not run")
    })
}

fn crashing_agent_is_started_again() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        node.json(&["agent", "start", "crasher"])?;
        eventually(Duration::from_secs(30), "it says when", || {
            Ok(detail(node, "crasher")?.contains("starts again in"))
        })?;
        eventually(Duration::from_secs(120), "it gives up", || {
            Ok(detail(node, "crasher")?.contains("not started again: 2 restarts"))
        })?;
        let end = status(node, "crasher")?;
        ensure!(end["summary"]["restarts"] == 2 && end["exit"]["code"] == 7, "{end}");
        noted(node, "crasher", "agent_restarting", 2)
    })
}

fn stop_ends_the_wait() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        node.json(&["agent", "start", "crasher"])?;
        eventually(Duration::from_secs(30), "it says when", || {
            Ok(detail(node, "crasher")?.contains("starts again in"))
        })?;
        node.json(&["agent", "stop", "crasher"])?;
        std::thread::sleep(Duration::from_secs(4));
        let end = status(node, "crasher")?["summary"].clone();
        let quiet = !end["detail"].as_str().unwrap_or_default().contains("starts again");
        ensure!(end["state"] == "stopped" && quiet, "{end}");
        Ok(())
    })
}

fn lifetime_and_idle_time_end_a_life() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        for (agent, why) in [("mortal", "lifetime of 3 s"), ("bored", "nobody used it for 4 s")] {
            node.json(&["agent", "start", agent])?;
            wait_state(node, agent, "stopped", Duration::from_secs(40))?;
            ensure!(detail(node, agent)?.contains(why), "{}", detail(node, agent)?);
            std::thread::sleep(Duration::from_secs(2));
            ensure!(state(node, agent)? == "stopped", "{agent} was started again");
            noted(node, agent, "agent_stopping", 1)?;
        }
        Ok(())
    })
}

fn unhealthy_agent_is_started_anew() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        node.json(&["agent", "start", "patient"])?;
        let is_healthy = || Ok(status(node, "patient")?["summary"]["healthy"] == true);
        eventually(Duration::from_secs(40), "it is healthy", is_healthy)?;
        let before = status(node, "patient")?["summary"]["instance"].clone();
        let sick = "open('/tmp/sick', 'w')";
        node.ctl(&["agent", "exec", "patient", "--", "/usr/bin/python3", "-c", sick])?.ok()?;
        eventually(Duration::from_secs(90), "it runs anew", || {
            let now = status(node, "patient")?["summary"].clone();
            Ok(now["instance"] != before && now["state"] == "running" && now["restarts"].as_u64() >= Some(1))
        })?;
        eventually(Duration::from_secs(40), "it is healthy again", is_healthy)?;
        ensure!(receipts(node, "patient", "agent_unhealthy")? >= 1);
        node.json(&["agent", "stop", "patient"]).map(|_| ())
    })
}

fn empty_memory_is_explained() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        node.json(&["agent", "start", "hungry"])?;
        eventually(Duration::from_secs(120), "it has ended", || Ok(state(node, "hungry")? != "running"))?;
        let why = detail(node, "hungry")?;
        ensure!(why.contains("ran out of memory") && why.contains("max_memory_mb = 160"), "{why}");
        Ok(())
    })
}

const REASON: &str = "it looks at us strangely";

/// Starts the suspect and quarantines it once it holds a connection.
fn quarantined(Bench { node, open, .. }: &Bench) -> Result<String> {
    node.json(&["agent", "start", "suspect"])?;
    eventually(Duration::from_secs(40), "it is connected", || Ok(open.load(Ordering::SeqCst) == 1))?;
    node.json(&["agent", "quarantine", "suspect", "--reason", REASON])?;
    eventually(Duration::from_secs(15), "its connection is cut", || Ok(open.load(Ordering::SeqCst) == 0))?;
    let now = status(node, "suspect")?;
    ensure!(now["summary"]["state"] == "quarantined", "{now}");
    Ok(now["summary"]["instance"].as_str().unwrap_or_default().to_owned())
}

fn quarantine_cuts_and_keeps() -> Result<()> {
    BENCH.on(|bench| {
        let node = &bench.node;
        let life = quarantined(bench)?;
        let grants = node.json(&["net", "grants"])?.to_string();
        ensure!(!grants.contains(&life), "it still has a network: {grants}");
        for order in ["resume", "pause", "restart", "start"] {
            refused(node, &["agent", order, "suspect"], "quarantined")?;
        }
        let cpu = status(node, "suspect")?["cpu_ms"].clone();
        std::thread::sleep(Duration::from_secs(2));
        ensure!(status(node, "suspect")?["cpu_ms"] == cpu, "it does not stand still");
        let frozen = listed(node, &life)?.context("its evidence is not listed")?;
        ensure!(frozen["has_ended"] == false && frozen["quarantine"]["reason"] == REASON, "{frozen}");
        refused(node, &["agent", "evidence", "remove", &life], "has not ended")?;
        node.json(&["agent", "stop", "suspect"])?;
        std::thread::sleep(Duration::from_secs(3));
        let end = status(node, "suspect")?;
        ensure!(end["summary"]["state"] == "stopped" && end["evidence"][0] == life.as_str(), "{end}");
        let kept = node.fault(&format!("list /state/cage/evidence/{life}"))?;
        for file in ["status.json", "console.txt", "agent.log", "workspace.ext4"] {
            ensure!(kept.contains(file), "{file} is not among {kept}");
        }
        noted(node, "suspect", "agent_quarantined", 1)?;
        fetch_evidence(node, &life)?;
        node.json(&["agent", "evidence", "remove", &life])?;
        ensure!(listed(node, &life)?.is_none(), "it is still listed");
        let left = node.fault("list /state/cage/evidence")?;
        ensure!(!left.contains(&life), "{left}");
        let to = system_tests::workspace()?.join("no-evidence.tar.gz");
        refused(
            node,
            &["agent", "evidence", "get", &life, &to.display().to_string()],
            "there is no evidence",
        )?;
        ensure!(!to.exists(), "a refused copy left a file");
        refused(node, &["agent", "evidence", "remove", &life], "there is no evidence")?;
        noted(node, &life, "evidence_read", 1)?;
        noted(node, &life, "evidence_removed", 1)
    })
}

/// What is kept of one life, as the node lists it.
fn listed(node: &Node, life: &str) -> Result<Option<Value>> {
    let list = node.json(&["agent", "evidence", "list", "suspect"])?;
    let lives = list["lives"].as_array().cloned().unwrap_or_default();
    Ok(lives.into_iter().find(|one| one["instance"] == life))
}

/// Fetches a life's evidence and looks into it with other programs than ours: every file is there, as long as listed, with the
/// digest that the node told.
fn fetch_evidence(node: &Node, life: &str) -> Result<()> {
    let dir = system_tests::workspace()?.join(format!("evidence-{life}-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let archive = dir.join("suspect.tar.gz");
    let to = archive.to_str().context("a path that is not UTF-8")?;
    let sent = node.json(&["agent", "evidence", "get", life, to])?;
    refused(node, &["agent", "evidence", "get", life, to], "not replaced")?;
    let run = |program: &str, arguments: &[&str], within: &Path| -> Result<String> {
        let ran = Command::new(program).args(arguments).current_dir(within).output()?;
        ensure!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
        Ok(String::from_utf8(ran.stdout)?)
    };
    run("tar", &["xzf", to], &dir)?;
    let kept = dir.join(life);
    let checked = run("sha256sum", &["--strict", "--check", "SHA256SUMS"], &kept)?;
    let listed = listed(node, life)?.context("its evidence is not listed")?;
    ensure!(listed["has_ended"] == true, "{listed}");
    for file in ["status.json", "console.txt", "agent.log", "workspace.ext4"] {
        ensure!(checked.contains(&format!("{file}: OK")), "{file}: {checked}");
        let of = |all: &Value| all["files"].as_array()?.iter().find(|one| one["name"] == file).cloned();
        let (told, known) = of(&sent).zip(of(&listed)).with_context(|| format!("{file}: {sent} {listed}"))?;
        let bytes = std::fs::metadata(kept.join(file))?.len();
        ensure!(told["bytes"] == bytes && known["bytes"] == bytes, "{file}: {bytes} {told} {known}");
        let sum = run("sha256sum", &[file], &kept)?;
        let digest = told["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        ensure!(digest.is_some_and(|digest| sum.starts_with(digest)), "{sum} {told}");
    }
    let status: Value = serde_json::from_slice(&std::fs::read(kept.join("status.json"))?)?;
    ensure!(status["reason"] == REASON && status["instance"] == life, "{status}");
    let disk = run("dumpe2fs", &["-h", "workspace.ext4"], &kept)?;
    ensure!(disk.contains("Filesystem magic number:  0xEF53"), "{disk}");
    Ok(std::fs::remove_dir_all(dir)?)
}

fn quarantine_outlives_cage() -> Result<()> {
    BENCH.on(|bench| {
        let node = &bench.node;
        let life = quarantined(bench)?;
        node.fault("signal 9 cage")?;
        eventually(Duration::from_secs(60), "cage is back and has told of the end", || {
            Ok(receipts(node, &life, "agent_exited")? == 1)
        })?;
        std::thread::sleep(Duration::from_secs(5));
        let now = status(node, "suspect")?;
        ensure!(now["summary"]["state"] == "stopped", "it runs again by itself: {now}");
        ensure!(now["evidence"].to_string().contains(&life), "{now}");
        let kept = node.fault(&format!("list /state/cage/evidence/{life}"))?;
        ensure!(kept.contains("workspace.ext4") && kept.contains("status.json"), "{kept}");
        let cgroups = node.fault("list /sys/fs/cgroup/services/cage")?;
        ensure!(!cgroups.contains("vm-suspect"), "its frozen VM was left behind: {cgroups}");
        Ok(())
    })
}

fn removal_leaves_nothing() -> Result<()> {
    BENCH.on(|Bench { node, .. }| {
        node.json(&["agent", "start", "ticker"])?;
        refused(node, &["agent", "remove", "ticker"], "alive")?;
        node.json(&["agent", "kill", "ticker"])?;
        for agent in ["ticker", "suspect"] {
            let removed = node.json(&["agent", "remove", agent])?;
            ensure!(removed["log"] == true, "{removed}");
            for dir in ["evidence", "logs"] {
                let left = node.fault(&format!("list /state/cage/{dir}"))?;
                ensure!(!left.contains(agent), "{dir}: {left}");
            }
            noted(node, agent, "agent_removed", 1)?;
        }
        ensure!(status(node, "suspect")?["evidence"].as_array().is_some_and(Vec::is_empty));
        node.json(&["agent", "start", "ticker"])?;
        node.json(&["agent", "kill", "ticker"]).map(|_| ())
    })
}
