//! What a node does with a network that only has a time server and a log host: it takes the time, not a liar's, and sends its log.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::fixture::Config;
use system_tests::node::{Machine, Node, Oddities};
use system_tests::wire::{Datagram, Wire};

use crate::shared::eventually;
use crate::trial;

const TIME_SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 123);
const LOG_HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 54);
/// How far the time server is ahead of the machine's own clock.
const AHEAD_S: u64 = 40 * 86_400;
/// Seconds from 1900, where NTP begins, to 1970 (RFC 868).
const NTP_TO_UNIX_S: u64 = 2_208_988_800;

pub fn trials() -> Vec<Trial> {
    vec![trial(
        "time::node_takes_the_servers_time_and_no_liars_and_sends_its_log",
        node_takes_the_servers_time,
    )]
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A server's answer (RFC 5905, section 7.3) that says it is `unix_s`, to the question with this transmit time.
fn answer(origin: &[u8], unix_s: u64) -> Vec<u8> {
    let time = ((unix_s + NTP_TO_UNIX_S) << 32).to_be_bytes();
    let head = [0x24, 2, 6, 0xec, 0, 0, 0, 16, 0, 0, 0, 16];
    [&head, &[192, 0, 2, 1][..], &time, origin, &time, &time].concat()
}

/// First somebody who guesses, then one who answers a question that was not asked, then the server.
fn time_server(question: &[u8]) -> Vec<Vec<u8>> {
    let Some(origin) = question.get(40..48) else { return Vec::new() };
    let mut guessed = origin.to_vec();
    guessed[7] ^= 1;
    vec![
        answer(&guessed, now_s() + 10 * AHEAD_S),
        answer(&[0; 8], now_s() + 20 * AHEAD_S),
        answer(origin, now_s() + AHEAD_S),
    ]
}

fn node_takes_the_servers_time() -> Result<()> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let received = lines.clone();
    let wire = Wire::start(move |datagram: Datagram| match datagram.to {
        (TIME_SERVER, 123) => time_server(&datagram.payload),
        (LOG_HOST, 514) => {
            let line = String::from_utf8_lossy(&datagram.payload).into_owned();
            received.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            Vec::new()
        }
        _ => Vec::new(),
    })?;
    let config = Config::new("time")?;
    let own = format!(
        "{}\n[node]\nname = \"time\"\n[network]\nmode = \"static\"\naddress = \"192.0.2.5/24\"\ngateway = \"192.0.2.1\"\n\
         [clock]\nservers = [\"{TIME_SERVER}\"]\n[logs]\nforward = \"udp://{LOG_HOST}:514\"\n",
        crate::faults::SABOTEUR
    );
    config.file("nulld.toml", &own)?;
    let machine = Machine {
        config: Some(config.volume()?),
        memory_mib: 768,
        ..Machine::bare("time", system_tests::test_iso()?, &config)
    };
    let odd = Oddities { network: Some(wire.netdev.clone()), ..Oddities::default() };
    let node = Node::boot_odd(machine, &odd)?;
    let mut ahead = 0;
    eventually(Duration::from_secs(90), "the node has the server's time", || {
        ahead = node.fault("now")?.parse::<u64>()?.abs_diff(now_s());
        Ok(ahead.abs_diff(AHEAD_S) < 3)
    })
    .with_context(|| format!("it is {ahead} s ahead, the server {AHEAD_S} s"))?;
    let status = crate::sound::status(&node)?;
    ensure!(status["clock"].as_str().is_some_and(|c| c.contains("synchron")), "{}", status["clock"]);
    eventually(Duration::from_secs(60), "the log host has the boot's log", || {
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(lines
            .iter()
            .any(|line| is_syslog(line) && line.contains("service_ready") && line.contains("ctxgraph")))
    })
    .with_context(|| format!("{:?}", lines.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// `<PRI>1 TIMESTAMP HOST APP ...` (RFC 5424, section 6) of this node.
fn is_syslog(line: &str) -> bool {
    let Some((priority, rest)) = line.strip_prefix('<').and_then(|line| line.split_once('>')) else {
        return false;
    };
    let fields: Vec<&str> = rest.split(' ').collect();
    priority.parse::<u8>().is_ok_and(|p| p < 192)
        && fields.len() > 6
        && fields[0] == "1"
        && fields[1].contains('T')
        && fields[2] == "time"
}
