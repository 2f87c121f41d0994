//! `make bench-egress`: what the name-bound proxy costs beside plain NAT, and its DNS beside dnsmasq, in network namespaces of one
//! machine and in turn. docs/benchmarks.md says what exactly is compared.
//!
//! ```text
//! bench [--rounds N] [--mib N] [--agents N] [--idle N] [--json]
//! ```
//!
//! Ends with 1 when an aim was missed or something could not be measured. Needs root, dnsperf, dnsmasq-base, and what the tests need.

#[path = "../../tests/world/mod.rs"]
mod world;

mod field;
mod figures;
mod names;
mod traffic;

use field::{Field, Path};
use figures::Figures;
use std::process::ExitCode;
use std::time::Duration;
use traffic::Held;

/// Round trips of one round.
const TRIPS: usize = 1000;
/// Connections of one agent in one round; its packet rules let 400 begin at once.
const OPENED: usize = 60;
/// Descriptors that this process and egress need beside two for each idle connection.
const DESCRIPTORS: u64 = 1000;

/// What was asked for.
struct Options {
    rounds: usize,
    mib: usize,
    agents: usize,
    idle: usize,
    json: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options { rounds: 9, mib: 512, agents: 16, idle: 10_000, json: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<usize, String> {
            let value = words.next().ok_or(format!("{word} needs a value"))?;
            value.parse().map_err(|_| format!("`{value}` is no number for {word}"))
        };
        match word.as_str() {
            "--rounds" => options.rounds = number()?.clamp(1, 1000),
            "--mib" => options.mib = number()?.clamp(1, 65_536),
            "--agents" => options.agents = number()?.clamp(1, abi::limits::AGENTS_RUNNING_MAX),
            "--idle" => options.idle = number()?,
            "--json" => options.json = true,
            "--bench" => {} // cargo says so
            other => {
                return Err(format!(
                    "`{other}` is not an option; there are --rounds N, --mib N, --agents N, --idle N, --json"
                ));
            }
        }
    }
    let most = abi::limits::AGENTS_RUNNING_MAX * abi::limits::PROXY_CONNECTIONS_PER_AGENT_MAX;
    if options.idle > most {
        return Err(format!("{} idle connections: a node takes {most} at most", options.idle));
    }
    Ok(options)
}

fn main() -> ExitCode {
    let measured = options().map(|options| (measure(&options), options.json));
    match measured {
        Ok((figures, json)) => {
            match json {
                true => println!("{:#}", figures.json()),
                false => print!("{}", figures.table()),
            }
            let shortfalls = figures.shortfalls();
            shortfalls.iter().for_each(|shortfall| eprintln!("bench-egress: {shortfall}"));
            if shortfalls.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("bench-egress: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All of it. What cannot be measured is named among the figures.
fn measure(options: &Options) -> Figures {
    let most = idle_most();
    let _awake: Vec<_> =
        (0..std::thread::available_parallelism().map_or(1, usize::from)).map(|_| awake()).collect();
    let mut figures = Figures::default();
    let mut field = Field::new();
    field.agent();
    let bytes = (options.mib << 20) as u64;
    for round in 0..options.rounds {
        eprintln!("bytes and round trips: round {} of {}", round + 1, options.rounds);
        for path in [field.proxy(), field.nat()] {
            let (down, up) = (
                path.within(|to| traffic::download(to, bytes)),
                path.within(|to| traffic::upload(to, bytes)),
            );
            let trips = path.within(|to| traffic::round_trips(to, TRIPS));
            let of = figures.of(path.kind);
            of.down_mb_s.push(down);
            of.up_mb_s.push(up);
            of.trip_us.extend(trips);
        }
    }
    if let Err(error) = names::measure(&field, options.rounds.min(5), &mut figures) {
        figures.missing.push(format!("dns: {error}"));
    }
    while field.agents() < options.agents {
        field.agent();
    }
    for round in 0..options.rounds.min(5) {
        eprintln!("connections: round {}", round + 1);
        for paths in [field.proxies(), vec![field.nat(); options.agents]] {
            let kind = paths[0].kind;
            let rate = connections(&paths);
            figures.of(kind).connections_s.push(rate);
            std::thread::sleep(Duration::from_millis(700)); // the packet rules' buckets fill again
        }
    }
    if options.idle > most {
        eprintln!("idle connections: {most}, since this user may have no more descriptors");
    }
    idle(&mut field, options.idle.min(most), &mut figures);
    figures
}

/// Keeps a CPU from sleeping, with what gives way to everything else: or a round trip says how long a CPU of this machine, or of its
/// hypervisor, takes to wake, and how often two programs happened to share one that was awake.
fn awake() -> world::Running {
    let spin = ["--idle", "0", "bash", "-c", "while :; do :; done"];
    world::Running(std::process::Command::new("chrt").args(spin).spawn().expect("chrt of util-linux"))
}

/// Takes as many descriptors as there may be, for egress too; returns how many idle connections they are enough for.
fn idle_most() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("descriptors");
    maximum.map_or(usize::MAX, |most| usize::try_from(most.saturating_sub(DESCRIPTORS) / 2).expect("few"))
}

/// Connections a second: as many clients at a time as there are agents; each opens, asks once and ends.
fn connections(paths: &[Path]) -> f64 {
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for path in paths {
            scope.spawn(|| path.within(|to| (0..OPENED).for_each(|_| drop(traffic::round_trips(to, 1)))));
        }
    });
    (paths.len() * OPENED) as f64 / begun.elapsed().as_secs_f64()
}

/// Connections over which nothing passes, until there are as many as asked for.
fn idle(field: &mut Field, wanted: usize, figures: &mut Figures) {
    if wanted == 0 {
        return;
    }
    let each = wanted.div_ceil(abi::limits::AGENTS_RUNNING_MAX).max(1);
    while field.agents() * each < wanted {
        field.agent();
    }
    std::thread::sleep(Duration::from_secs(1));
    let before = (field.resident_kib(), field::slab_kib());
    let mut held: Vec<Held> = Vec::new();
    for path in field.proxies() {
        let more = each.min(wanted - held.len());
        held.extend(path.within(|to| (0..more).map(|_| traffic::hold(to)).collect::<Vec<_>>()));
    }
    std::thread::sleep(Duration::from_secs(1));
    let alive = held.iter_mut().map(Held::is_alive).filter(|alive| *alive).count();
    if alive != wanted {
        figures.missing.push(format!("{alive} of {wanted} idle connections were open"));
    }
    figures.idle = wanted;
    figures.idle_kib = Some(field.resident_kib().saturating_sub(before.0));
    figures.idle_kernel_kib = Some(field::slab_kib().saturating_sub(before.1));
}
