//! DNS: questions a second by dnsperf, of egress and of dnsmasq in turn.
//!
//! egress answers an agent 200 questions a second and no more, so its server runs in this process with that one bound lifted: the
//! same code from socket to socket.

use crate::field::{Field, within};
use crate::figures::Figures;
use crate::world::Running;
use egress::agent::{Agent, Node};
use egress::dns_server::DnsServer;
use egress::policy::Policy;
use egress::receipts::Receipts;
use egress::settings::Settings;
use egress::workers::Workers;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const NAMES: usize = 32;
const ADDRESS: &str = "100.64.0.1";
const OWN_PORT: u16 = 5301;
const PEER_PORT: u16 = 5302;
/// Of one run of dnsperf.
const SECONDS: &str = "2";

/// Both servers in the router's namespace, dnsperf in the client's.
pub fn measure(field: &Field, rounds: usize, figures: &mut Figures) -> Result<(), String> {
    for (program, package) in [("/usr/bin/dnsperf", "dnsperf"), ("/usr/sbin/dnsmasq", "dnsmasq-base")] {
        if !Path::new(program).exists() {
            return Err(format!("{program} is missing: apt-get install {package}"));
        }
    }
    let (router, client) = field.router();
    let dir = std::env::temp_dir().join(format!("{router}-dns"));
    fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let names: Vec<String> = (0..NAMES).map(|n| format!("host-{n}.bench.test")).collect();
    let asked: String = names.iter().map(|name| format!("{name} A\n")).collect();
    fs::write(dir.join("asked"), asked).map_err(|error| error.to_string())?;
    let workers = Workers::start(1).map_err(|error| error.to_string())?;
    let server = own(&names, &dir)?;
    let socket =
        within(&router, || UdpSocket::bind((ADDRESS, OWN_PORT))).map_err(|error| error.to_string())?;
    socket.set_nonblocking(true).map_err(|error| error.to_string())?;
    workers
        .next()
        .spawn(async move { server.udp(tokio::net::UdpSocket::from_std(socket).expect("a socket")).await });
    let _peer = dnsmasq(&router, &names)?;
    std::thread::sleep(Duration::from_millis(500));
    for round in 0..rounds {
        eprintln!("dns: round {} of {rounds}", round + 1);
        figures.dns_s.push(dnsperf(&client, OWN_PORT, &dir)?);
        figures.dnsmasq_s.push(dnsperf(&client, PEER_PORT, &dir)?);
    }
    fs::remove_dir_all(&dir).map_err(|error| error.to_string())
}

/// egress' own server, for an agent with these names.
fn own(names: &[String], dir: &Path) -> Result<Arc<DnsServer>, String> {
    let config =
        serde_json::to_string(&abi::node::NodeConfig::default()).map_err(|error| error.to_string())?;
    fs::write(dir.join("node.json"), config).map_err(|error| error.to_string())?;
    let settings =
        Settings::read(dir.join("node.json"), dir.join("none")).map_err(|error| error.to_string())?;
    let receipts = Receipts::of_node().map_err(|error| error.to_string())?;
    let node = Node::new(settings, receipts, dir, &dir.join("no-tpm")).map_err(|error| error.to_string())?;
    let manifest: Result<_, _> = names.iter().map(|name| name.parse()).collect();
    let policy = Policy { manifest: manifest.map_err(|_| "a name")?, ..Policy::default() };
    let agent = Agent::new(
        "bench.1".parse().map_err(|_| "an agent")?,
        policy,
        Vec::new(),
        Vec::new(),
        Arc::new(node),
    );
    Ok(DnsServer::with_rate(Arc::new(agent), u32::MAX / 4))
}

fn dnsmasq(namespace: &str, names: &[String]) -> Result<Running, String> {
    let child = Command::new("ip")
        .args([
            "netns",
            "exec",
            namespace,
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
        ])
        .args(["--no-hosts", "--bind-interfaces", "--pid-file=", "--user=root", "--local-ttl=60"])
        .args([format!("--port={PEER_PORT}"), format!("--listen-address={ADDRESS}")])
        .args(names.iter().enumerate().map(|(n, name)| format!("--host-record={name},198.18.0.{}", n + 1)))
        .stderr(Stdio::null())
        .spawn();
    child.map(Running).map_err(|error| error.to_string())
}

/// Questions a second, all answered.
fn dnsperf(namespace: &str, port: u16, dir: &Path) -> Result<f64, String> {
    let output = Command::new("timeout")
        .args(["60", "ip", "netns", "exec", namespace, "dnsperf", "-s", ADDRESS, "-p", &port.to_string()])
        .args(["-l", SECONDS, "-c", "4", "-q", "100", "-d"])
        .arg(dir.join("asked"))
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let all_well =
        text.contains("NOERROR") && !["NXDOMAIN", "REFUSED", "SERVFAIL"].iter().any(|bad| text.contains(bad));
    let lost = field("Queries lost:").unwrap_or(f64::MAX);
    match field("Queries per second:") {
        Some(rate) if all_well && lost < 1000.0 => Ok(rate),
        _ => Err(format!("dnsperf at port {port}: {text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}
