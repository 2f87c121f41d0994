//! `make bench-ctxgraph`: durable writes beside plain SQLite and Redis, reads, pages, searches, and the ledger; in one run and in turn.
//! docs/benchmarks.md says what exactly is compared.
//!
//! ```text
//! bench [--rounds N] [--seconds N] [--millions N] [--small] [--json]
//! ```
//!
//! Ends with 1 when an aim was missed or something could not be measured. Needs redis-server.

#[path = "../../tests/node/mod.rs"]
mod node;

mod chain;
mod figures;
mod peers;
mod pile;
mod writers;

use figures::Figures;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Writers at a time.
const WRITERS: [usize; 3] = [1, 8, 64];

/// What was asked for.
struct Options {
    rounds: usize,
    seconds: u64,
    /// Entries of the two piles that are read from.
    piles: [u64; 2],
    /// Bytes of the ledger that is verified.
    ledger_bytes: u64,
    json: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        rounds: 5,
        seconds: 3,
        piles: [1_000_000, 10_000_000],
        ledger_bytes: 128 << 20,
        json: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or(format!("{word} needs a value"))?;
            value.parse().map_err(|_| format!("`{value}` is no number for {word}"))
        };
        match word.as_str() {
            "--rounds" => options.rounds = number()?.clamp(1, 1000) as usize,
            "--seconds" => options.seconds = number()?.clamp(1, 600),
            "--millions" => options.piles[1] = number()?.clamp(1, 100) * 1_000_000,
            "--small" => (options.piles, options.ledger_bytes) = ([10_000, 100_000], 8 << 20),
            "--json" => options.json = true,
            "--bench" => {} // cargo says so
            other => {
                return Err(format!(
                    "`{other}` is not an option; there are --rounds N, --seconds N, --millions N, --small, --json"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let measured = options().and_then(|options| Ok((measure(&options)?, options.json)));
    match measured {
        Ok((figures, json)) => {
            match json {
                true => println!("{:#}", figures.json()),
                false => print!("{}", figures.table()),
            }
            let shortfalls = figures.shortfalls();
            shortfalls.iter().for_each(|shortfall| eprintln!("bench-ctxgraph: {shortfall}"));
            if shortfalls.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("bench-ctxgraph: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All of it, in a directory that goes away with everything in it.
fn measure(options: &Options) -> Result<Figures, String> {
    let mut figures = Figures::default();
    let directory = || tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"));
    for round in 0..options.rounds {
        eprintln!("writes: round {} of {}", round + 1, options.rounds);
        writes(&mut figures, directory()?.path(), Duration::from_secs(options.seconds))?;
        chain::appends(&mut figures, directory()?.path(), Duration::from_secs(options.seconds))?;
    }
    chain::verify(&mut figures, directory()?.path(), options.ledger_bytes, options.rounds)?;
    pile::measure(&mut figures, directory()?.path(), &options.piles, options.rounds)?;
    Ok(figures)
}

/// Each way of writing durably, each in a directory of its own.
fn writes(figures: &mut Figures, directory: &Path, time: Duration) -> Result<(), String> {
    let fresh = |name: String| -> Result<_, String> {
        let path = directory.join(name);
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    };
    for count in WRITERS {
        let rate = writers::service(&fresh(format!("service-{count}"))?, count, time);
        figures.push(&format!("writes, {count} writers"), "1/s", rate);
        let rate = peers::sqlite(&fresh(format!("sqlite-{count}"))?, count, 1, time);
        figures.push(&format!("SQLite, a transaction each, {count} threads"), "1/s", rate);
        let redis = peers::Redis::start(&fresh(format!("redis-{count}"))?)?;
        figures.push(&format!("Redis, appendfsync always, {count} clients"), "1/s", redis.rate(count, time));
    }
    let rate = peers::sqlite(&fresh("batched".into())?, 1, 64, time);
    figures.push("SQLite, 64 in a transaction, 1 thread", "1/s", rate);
    Ok(())
}
