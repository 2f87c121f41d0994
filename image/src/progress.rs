//! Says on standard error what is being built, for how long, and how far it is: one rewritten line on a terminal, plain
//! lines elsewhere. Of steps side by side one has the line of the terminal until it is done.

use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The step that has the line of the terminal; 0: none.
static LINE: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(1);

const PLAIN_EVERY: Duration = Duration::from_secs(30);
const TERMINAL_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Step {
    number: u64,
    name: String,
    start: Instant,
    shown: Instant,
    terminal: bool,
}

impl Step {
    pub fn start(name: impl Into<String>) -> Step {
        let (name, now, terminal) = (name.into(), Instant::now(), stderr().is_terminal());
        if !terminal {
            eprintln!("image: {name} ...");
        }
        let number = STEPS.fetch_add(1, Ordering::Relaxed);
        let step = Step { number, name, start: now, shown: now, terminal };
        step.show("");
        step
    }

    /// `done` of about `expected` units; the estimate may be wrong, so it never shows more than 99 %.
    pub fn at(&mut self, done: usize, expected: usize) {
        let every = if self.terminal { TERMINAL_EVERY } else { PLAIN_EVERY };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let percent = (done * 100 / expected.max(1)).min(99);
        if self.terminal {
            let bar = "#".repeat(percent * 30 / 100);
            self.show(&format!("[{bar:<30}] {percent:>2} %  {:>4} s", self.start.elapsed().as_secs()));
        } else {
            eprintln!("image: {} ... {percent} %, {} s", self.name, self.start.elapsed().as_secs());
        }
    }

    pub fn done(self, result: &str) {
        let begin = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{begin}image: {} ({:.1} s) {result}", self.name, self.start.elapsed().as_secs_f32());
    }

    fn show(&self, text: &str) {
        if !self.terminal {
            return;
        }
        let had = LINE.compare_exchange(0, self.number, Ordering::Relaxed, Ordering::Relaxed);
        if had.is_ok() || had == Err(self.number) {
            eprint!("\r\x1b[Kimage: {} {text}", self.name);
            // A terminal that cannot be written to is no reason to stop building.
            let _ = stderr().flush();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // Another may have the line now; one that had none gives none back.
        let _ = LINE.compare_exchange(self.number, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}
