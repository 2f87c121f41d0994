//! The ledger, in process.

use crate::figures::{Figures, rank};
use crate::writers::rate;
use abi::identity::Service;
use abi::ids::Digest;
use abi::ledger::Event;
use ctxgraph::ledger::storage::RealDirectory;
use ctxgraph::ledger::{Ledger, Setup};
use ledger::frame::Source;
use std::path::Path;
use std::time::{Duration, Instant};

/// Appends whose time is taken one by one.
const TIMED: usize = 2000;
/// Whose memory the events are about.
const AGENT: &str = "researcher";
/// Writers that wait for one fsync together.
const THREADS: usize = 64;

fn open(path: &Path) -> Result<Ledger, String> {
    let directory = RealDirectory::open_or_create(path).map_err(|error| error.to_string())?;
    Ledger::open(Box::new(directory), Setup::default()).map_err(|error| error.to_string())
}

fn append(ledger: &Ledger, number: u64, durable: bool) {
    // What a node records most.
    let event = Event::MemoryWritten {
        agent: AGENT.parse().expect("a name"),
        key: format!("notes/{number:012}"),
        entry: Digest([7; 32]),
        writer: None,
    };
    let source = Source::Service(Service::Cage);
    ledger.append(source, &[event], durable).expect("a receipt");
}

/// Appends a second, and the time of one, with fsync and without.
pub fn appends(figures: &mut Figures, directory: &Path, time: Duration) -> Result<(), String> {
    for (durable, what) in [(false, "append, not waited for"), (true, "append, waited for")] {
        let ledger = open(&directory.join(format!("ledger-{durable}")))?;
        let timed = |number: usize| {
            let begun = Instant::now();
            append(&ledger, number as u64, durable);
            begun.elapsed().as_secs_f64() * 1e6
        };
        let count = if durable { TIMED / 10 } else { TIMED * 10 };
        let times: Vec<f64> = (0..count).map(timed).collect();
        for percent in [50, 99] {
            let value = rank(&times, percent).unwrap_or(f64::NAN);
            figures.push(&format!("{what}, p{percent}"), "us", value);
        }
        for threads in [1, THREADS] {
            let rate = rate(threads, time, |_| (), |(), _, number| append(&ledger, number, durable));
            figures.push(&format!("{what}, {threads} threads"), "1/s", rate);
        }
        ledger.close();
    }
    Ok(())
}

/// Bytes of a ledger read and checked in a second.
pub fn verify(figures: &mut Figures, directory: &Path, bytes: u64, rounds: usize) -> Result<(), String> {
    eprintln!("verify: a ledger of {} MiB is written", bytes >> 20);
    let ledger = open(&directory.join("ledger"))?;
    let mut number = 0;
    while ledger.bytes() < bytes {
        (0..1000).for_each(|more| append(&ledger, number + more, false));
        number += 1000;
    }
    append(&ledger, number, true);
    for _ in 0..rounds {
        let begun = Instant::now();
        let verified = ledger.verify().map_err(|error| error.to_string())?;
        if let Some(broken) = verified.broken {
            return Err(format!("the ledger is wrong: {broken:?}"));
        }
        let rate = verified.bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
        figures.push("verify of the ledger", "MB/s", rate);
    }
    Ok(())
}
