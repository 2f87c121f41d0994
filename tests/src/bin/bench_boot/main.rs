//! `make bench-boot`: boots the product's image many times in a row, with a Debian of the same machine's in between, and compares
//! kernel start to ready. docs/benchmarks.md says what exactly is compared.
//!
//! ```text
//! bench_boot --peer-disk FILE [--boots N] [--peers N] [--iso FILE] [--json]
//! ```
//!
//! Ends with 1 when a boot failed or the aim was missed. One machine at a time; each ends with its own [`Node`].

mod figures;

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use figures::{Comparison, Side, peer_ms, schedule};
use system_tests::fixture::Config;
use system_tests::node::{BOOT_TIME_MAX, Firmware, Machine, Node};

/// What scripts/debian-peer.sh has the peer print last, behind systemd's own account, its state and its kernel.
const PEER_REPORT: &str = "boot-report";
/// As the nodes of the system tests.
const MEMORY_MIB: u32 = 2048;
const BOOTS_MAX: usize = 1000;
const BAR_CELLS: usize = 30;

/// What was asked for.
struct Options {
    boots: usize,
    peers: usize,
    iso: PathBuf,
    peer_disk: PathBuf,
    json: bool,
}

fn options() -> Result<Options> {
    let (mut boots, mut peers, mut iso, mut peer_disk, mut json) = (50, 10, None, None, false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--boots" => boots = count(&value()?)?,
            "--peers" => peers = count(&value()?)?,
            "--iso" => iso = Some(PathBuf::from(value()?)),
            "--peer-disk" => peer_disk = Some(PathBuf::from(value()?)),
            "--json" => json = true,
            other => bail!(
                "`{other}` is not an option; there are --boots N, --peers N, --iso FILE, --peer-disk FILE and --json"
            ),
        }
    }
    let peer_disk = peer_disk.context("--peer-disk FILE is missing: `make bench-boot` makes one")?;
    let exists = |path: PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    Ok(Options {
        boots,
        peers,
        iso: exists(iso.map_or_else(system_tests::iso, Ok)?)?,
        peer_disk: exists(peer_disk)?,
        json,
    })
}

fn count(text: &str) -> Result<usize> {
    let count: usize = text.parse().with_context(|| format!("`{text}` is no number of boots"))?;
    ensure!((1..=BOOTS_MAX).contains(&count), "{count} boots: 1 to {BOOTS_MAX} are possible");
    Ok(count)
}

fn main() -> ExitCode {
    match options().and_then(|options| compare(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench_boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All boots and the table. False: a boot failed or the aim was missed.
fn compare(options: &Options) -> Result<bool> {
    let config = Config::new("bench-boot")?;
    let config_disk = config.volume()?;
    let order = schedule(options.boots, options.peers);
    let mut comparison = Comparison::default();
    let mut last = "starting".to_owned();
    for (done, side) in order.iter().enumerate() {
        progress(done, order.len(), &last);
        let mut machine = Machine {
            firmware: Firmware::UefiDisk,
            memory_mib: MEMORY_MIB,
            ..Machine::bare(&format!("bench-{}", side.name().to_lowercase()), options.iso.clone(), &config)
        };
        match side {
            Side::NullBox => {
                machine.config = Some(config_disk.clone());
                machine.state = Some(config.state("256M")?);
            }
            Side::Debian => machine.iso = options.peer_disk.clone(),
        }
        match boot_ms(*side, machine, &mut comparison.peer) {
            Ok(ms) => {
                comparison.side(*side).times_ms.push(ms);
                last = format!("{} {:.1} s", side.name(), ms as f64 / 1000.0);
            }
            Err(error) => {
                comparison.side(*side).failures += 1;
                last = format!("{} failed", side.name());
                eprintln!("\nboot {} of {}, {}: {error:#}", done + 1, order.len(), side.name());
            }
        }
    }
    progress(order.len(), order.len(), &last);
    if options.json {
        println!("{:#}", comparison.json());
    } else {
        print!("\n{}", comparison.table());
    }
    let shortfalls = comparison.shortfalls();
    for shortfall in &shortfalls {
        eprintln!("bench_boot: {shortfall}");
    }
    Ok(shortfalls.is_empty())
}

/// One boot: kernel start to ready. The machine is off when this returns; a failed one leaves its console log.
fn boot_ms(side: Side, machine: Machine, peer: &mut String) -> Result<u64> {
    let node = Node::power_on(machine)?;
    let time = match side {
        Side::NullBox => node.ready_ms(BOOT_TIME_MAX),
        Side::Debian => peer_boot_ms(&node, peer),
    };
    time.inspect_err(|_| node.keep_logs())
}

/// The peer's time, once it has given its account and nothing of it has failed.
fn peer_boot_ms(node: &Node, peer: &mut String) -> Result<u64> {
    let line = node.wait_for(PEER_REPORT, BOOT_TIME_MAX)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["running", kernel, PEER_REPORT] = words[..] else {
        bail!("the peer is not as it has to be: `{line}`");
    };
    kernel.clone_into(peer);
    peer_ms(&node.console())
}

/// Where the run is: a bar on a terminal, a line each elsewhere.
fn progress(done: usize, all: usize, last: &str) {
    let filled = done * BAR_CELLS / all;
    let mut line = String::new();
    for cell in 0..BAR_CELLS {
        line.push(if cell < filled { '#' } else { '.' });
    }
    let _ = write!(line, " {done}/{all}  {last}"); // a String takes everything
    match std::io::stderr().is_terminal() {
        true => eprint!("\r\x1b[K{line}"),
        false => eprintln!("{line}"),
    }
}
