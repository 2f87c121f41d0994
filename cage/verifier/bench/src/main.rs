//! `make bench-verifier`: the decision beside cedar-policy, regorus and biscuit-auth deciding the same in one run and in turn; a step, a frame of the
//! ledger, a decision with its receipt, a token. docs/benchmarks.md says what exactly is compared.
//!
//! ```text
//! bench-verifier [--rounds N] [--ms N] [--json]
//! ```
//!
//! Each call is timed by itself; `the clock` is what reading the time twice costs, and is in every figure. Ends with 1 when an aim was missed or two
//! engines disagree.

#[cfg(feature = "peers")]
mod peers;
mod shape;
mod tools;

use shape::{CASES, Engine};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Times of single calls, in nanoseconds.
pub struct Times(Vec<u64>);

impl Times {
    fn percentile(&mut self, percent: usize) -> u64 {
        self.0.sort_unstable();
        let place = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(place).copied().unwrap_or(0)
    }
}

/// Calls `one` again and again for so long, and adds what each call took.
pub fn measure(times: &mut Times, time: Duration, mut one: impl FnMut(usize)) {
    let end = Instant::now() + time;
    for number in 0.. {
        let begun = Instant::now();
        one(number);
        let ended = Instant::now();
        times.0.push((ended - begun).as_nanos() as u64);
        if ended >= end {
            return;
        }
    }
}

/// A line of the table.
pub struct Figure {
    what: String,
    p50_ns: u64,
    p99_ns: u64,
    calls: usize,
}

/// What something takes, in bytes.
pub type Size = (&'static str, usize);

fn figure(what: &str, mut times: Times) -> Figure {
    Figure {
        what: what.into(),
        p50_ns: times.percentile(50),
        p99_ns: times.percentile(99),
        calls: times.0.len(),
    }
}

/// All engines, round after round, so that what disturbs one disturbs all.
fn decisions(engines: &mut [Box<dyn Engine>], rounds: usize, time: Duration) -> Vec<Figure> {
    let mut all: Vec<Times> = engines.iter().map(|_| Times(Vec::new())).collect();
    for _ in 0..rounds {
        for (engine, times) in engines.iter_mut().zip(&mut all) {
            measure(times, time, |number| {
                std::hint::black_box(engine.allows(number % CASES.len()));
            });
        }
    }
    engines.iter().zip(all).map(|(engine, times)| figure(engine.name(), times)).collect()
}

/// Engines that answer a case in another way than the page says.
fn disagreements(engines: &mut [Box<dyn Engine>]) -> Vec<String> {
    let mut wrong = Vec::new();
    for engine in engines {
        for (place, case) in CASES.iter().enumerate() {
            if engine.allows(place) != case.is_allowed {
                wrong.push(format!("{} decides {} {} otherwise", engine.name(), case.action, case.target));
            }
        }
    }
    wrong
}

struct Options {
    rounds: usize,
    time: Duration,
    json: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options { rounds: 5, time: Duration::from_millis(400), json: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or(format!("{word} needs a value"))?;
            value.parse().map_err(|_| format!("`{value}` is no number for {word}"))
        };
        match word.as_str() {
            "--rounds" => options.rounds = number()?.clamp(1, 1000) as usize,
            "--ms" => options.time = Duration::from_millis(number()?.clamp(10, 60_000)),
            "--json" => options.json = true,
            other => return Err(format!("`{other}` is not an option; there are --rounds N, --ms N, --json")),
        }
    }
    Ok(options)
}

fn show(figures: &[Figure], sizes: &[Size], json: bool) {
    if json {
        let times = figures.iter().map(|one| {
            serde_json::json!({ "what": one.what, "p50_ns": one.p50_ns, "p99_ns": one.p99_ns, "calls": one.calls })
        });
        let sizes: Vec<_> =
            sizes.iter().map(|(what, bytes)| serde_json::json!({ "what": what, "bytes": bytes })).collect();
        println!("{:#}", serde_json::json!({ "times": times.collect::<Vec<_>>(), "sizes": sizes }));
        return;
    }
    println!("{:<46} {:>10} {:>10} {:>10}", "", "p50 ns", "p99 ns", "calls");
    for one in figures {
        println!("{:<46} {:>10} {:>10} {:>10}", one.what, one.p50_ns, one.p99_ns, one.calls);
    }
    for (what, bytes) in sizes {
        println!("{what:<46} {bytes:>10} bytes");
    }
}

/// The aims: the median decision below 300 ns and below every peer's; a decision with its receipt below 10 us in 99 of 100 calls.
fn shortfalls(decided: &[Figure], others: &[Figure]) -> Vec<String> {
    let mut missed = Vec::new();
    let own = decided.iter().find(|one| one.what == shape::OWN).map_or(u64::MAX, |one| one.p50_ns);
    if own >= 300 {
        missed.push(format!("the median decision took {own} ns; the aim is 300"));
    }
    for peer in decided.iter().filter(|peer| peer.what != shape::OWN && peer.p50_ns <= own) {
        missed.push(format!("{} was faster: {} ns", peer.what, peer.p50_ns));
    }
    let receipt =
        others.iter().find(|one| one.what == tools::DECISION_AND_RECEIPT).map_or(u64::MAX, |one| one.p99_ns);
    if receipt >= 10_000 {
        missed.push(format!(
            "a decision with its receipt took {receipt} ns at the 99th of 100; the aim is 10000"
        ));
    }
    missed
}

fn run(options: &Options) -> Result<Vec<String>, String> {
    let mut engines = vec![shape::own()?];
    #[cfg(feature = "peers")]
    engines.extend([peers::cedar()?, peers::rego()?, peers::biscuit()?]);
    let mut missed = disagreements(&mut engines);
    let mut clock = Times(Vec::new());
    measure(&mut clock, options.time, |_| ());
    let decided = decisions(&mut engines, options.rounds, options.time);
    let time = options.time * options.rounds as u32;
    #[cfg_attr(not(feature = "peers"), expect(unused_mut))]
    let (mut others, mut sizes) = tools::all(time)?;
    #[cfg(feature = "peers")]
    {
        let (figure, size) = peers::token(time)?;
        others.push(figure);
        sizes.push(size);
    }
    missed.extend(shortfalls(&decided, &others));
    let figures: Vec<Figure> =
        std::iter::once(figure("the clock", clock)).chain(decided).chain(others).collect();
    show(&figures, &sizes, options.json);
    Ok(missed)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            missed.iter().for_each(|one| eprintln!("bench-verifier: {one}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench-verifier: {error}");
            ExitCode::FAILURE
        }
    }
}
