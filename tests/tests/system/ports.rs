//! Published ports and metrics, from outside the node: who gets in, what is counted, and what is shut again.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::fixture::{self, Config};
use system_tests::node::{Firmware, Machine, Node, Oddities};

use crate::shared::eventually;
use crate::slot::{self, Slot};
use crate::trial;

/// Ports of the node: published for this machine (as the node sees it), published for others, and of the metrics.
const OPEN: u16 = 30_080;
const ELSEWHERE: u16 = 30_081;
const METRICS: u16 = 9464;

pub struct Bench {
    node: Node,
    /// Ports of this machine that lead to the node's.
    open: u16,
    elsewhere: u16,
    metrics: u16,
    _config: Config,
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
        trial("ports::published_port_reaches_the_agent_with_a_receipt", published_port_reaches_the_agent),
        trial("ports::other_sources_see_nothing", other_sources_see_nothing),
        trial("ports::what_agents_use_is_told_at_the_door", use_is_told_at_the_door),
        trial("ports::metrics_are_scraped_and_nothing_else_is_there", metrics_are_scraped),
        trial("ports::taken_port_is_refused_with_its_holder", taken_port_is_refused),
        trial("ports::stopped_agent_leaves_no_port_open", stopped_agent_leaves_no_port_open),
    ]
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start() -> Result<Bench> {
    let config = Config::new("ports")?;
    // QEMU's user networking shows this machine to the node as 10.0.2.2.
    let nulld = format!(
        "[node]\nname = \"ports\"\n[metrics]\nlisten = \"0.0.0.0:{METRICS}\"\nfrom = [\"10.0.2.2\"]\n"
    );
    config.file("nulld.toml", &nulld)?;
    let manifest = |name: &str, publish: &str| {
        format!(
            "[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"python\"\n\
             command = [\"/usr/bin/python3\", \"-m\", \"http.server\", \"8080\", \"--directory\", \"/app\"]\n\
             [capabilities]\nmax_memory_mb = 160\nfilesystem.read = [\"/app\"]\nnetwork.publish = [{publish}]\n"
        )
    };
    let open = format!("{{ guest_port = 8080, node_port = {OPEN}, from = [\"10.0.2.2/32\"] }}");
    let other = format!("{{ guest_port = 8080, node_port = {ELSEWHERE}, from = [\"192.0.2.0/24\"] }}");
    config.file("agents/web.toml", &manifest("web", &format!("{open}, {other}")))?;
    config.file("agents/rival.toml", &manifest("rival", &open))?;
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        name: "ports".into(),
        iso: system_tests::test_iso()?,
        firmware: Firmware::Uefi,
        config: Some(config.volume()?),
        state: Some(config.state("1G")?),
        memory_mib: 1536,
        cpus: 2,
        forwards: Vec::new(),
        uplink: false,
        key: config.keys.operator.clone(),
    };
    let (open, elsewhere, metrics) = (free_port()?, free_port()?, free_port()?);
    let entrances = vec![(open, OPEN), (elsewhere, ELSEWHERE), (metrics, METRICS)];
    let node = Node::boot_odd(machine, &Oddities { entrances, ..Oddities::default() })?;
    node.json(&["agent", "start", "web"])?;
    Ok(Bench { node, open, elsewhere, metrics, _config: config })
}

/// What an HTTP server at a port of this machine answers; empty when nothing comes.
fn get(port: u16, path: &str) -> Result<String> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(tcp, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    let _ = tcp.read_to_string(&mut answer); // a reset, or nothing, is an answer too
    Ok(answer)
}

fn published_port_reaches_the_agent() -> Result<()> {
    BENCH.on(|bench| {
        eventually(Duration::from_secs(60), "the agent's server answers", || {
            Ok(get(bench.open, "/")?.contains("200 OK"))
        })?;
        let listing = get(bench.open, "/")?;
        ensure!(listing.contains("probe.py"), "{listing}");
        let tail = bench.node.ctl(&["ledger", "tail", "--json"])?.ok()?.stdout;
        ensure!(tail.contains("port_connected") && tail.contains("10.0.2.2:"), "no receipt: {tail}");
        Ok(())
    })
}

fn other_sources_see_nothing() -> Result<()> {
    BENCH.on(|bench| {
        ensure!(get(bench.elsewhere, "/")?.is_empty(), "a source that was not granted got in");
        let grants = bench.node.json(&["net", "grants"])?;
        let ports = grants["agents"][0]["publish"].as_array().context("no published ports")?;
        ensure!(ports.len() == 2 && grants["agents"][0]["published_total"].as_u64() > Some(0), "{grants}");
        Ok(())
    })
}

fn use_is_told_at_the_door() -> Result<()> {
    BENCH.on(|bench| {
        let top = bench.node.json(&["agent", "top"])?;
        let web = &top["agents"][0];
        ensure!(web["name"] == "web" && web["state"] == "running", "{top}");
        for counted in ["cpu_ms", "memory_kib", "memory_max_kib", "net_out_bytes", "net_in_bytes", "tasks"] {
            ensure!(web[counted].as_u64() > Some(0), "{counted}: {top}");
        }
        let table = bench.node.ctl(&["agent", "top"])?.ok()?.stdout;
        ensure!(table.contains("web") && table.contains(" %"), "{table}");
        let events = bench.node.ctl(&["agent", "events", "web"])?.ok()?.stdout;
        ensure!(events.contains("web: starting") && events.contains("web: ready"), "{events}");
        let text = bench.node.ctl(&["agent", "metrics"])?.ok()?.stdout;
        ensure!(text.contains("nullbox_agent_state{agent=\"web\",state=\"running\"} 1"), "{text}");
        ensure!(text.contains("nullbox_agent_start_stage_seconds{agent=\"web\",stage=\"ready\"}"), "{text}");
        Ok(())
    })
}

fn metrics_are_scraped() -> Result<()> {
    BENCH.on(|bench| {
        let page = get(bench.metrics, "/metrics")?;
        for line in [
            "nullbox_agent_state{agent=\"web\",state=\"running\"} 1",
            "nullbox_service_up{service=\"cage\"} 1",
            "nullbox_scrape_up{part=\"node\"} 1",
            "nullbox_scrape_up{part=\"agents\"} 1",
            "nullbox_images 1",
        ] {
            ensure!(page.lines().any(|found| found == line), "`{line}` is not in\n{page}");
        }
        ensure!(
            page.starts_with("HTTP/1.1 200 OK")
                && page.contains("# TYPE nullbox_agent_cpu_seconds_total counter")
        );
        ensure!(get(bench.metrics, "/")?.starts_with("HTTP/1.1 404"), "something else is there");
        Ok(())
    })
}

fn taken_port_is_refused() -> Result<()> {
    BENCH.on(|bench| {
        let answer = bench.node.ctl(&["agent", "start", "rival"])?;
        ensure!(answer.status != 0 && answer.stderr.contains("published by web."), "{answer:?}");
        ensure!(get(bench.open, "/")?.contains("200 OK"), "the holder lost its port");
        Ok(())
    })
}

fn stopped_agent_leaves_no_port_open() -> Result<()> {
    BENCH.on(|bench| {
        bench.node.json(&["agent", "stop", "web"])?;
        ensure!(get(bench.open, "/")?.is_empty(), "a port outlived its agent");
        bench.node.json(&["agent", "start", "rival"])?;
        eventually(Duration::from_secs(60), "the port leads to the other agent now", || {
            Ok(get(bench.open, "/")?.contains("200 OK"))
        })
    })
}
