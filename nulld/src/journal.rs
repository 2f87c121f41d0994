//! Where lines go: into the rings and, in short form, to the consoles.
//!
//! Must hold: what callers, agents or the kernel can cause is kept at a bounded rate, and what is dropped is counted.

use std::fmt::Display;

use abi::control::KERNEL_LOG;
use abi::limits;
use abi::log::{self, Level};

use crate::clock;
use crate::console::Console;
use crate::logs::{Gate, Logs};

/// The name under which nulld's own lines are kept.
pub const OWN: &str = "nulld";

/// Rings and consoles together.
#[derive(Debug)]
pub struct Journal {
    pub logs: Logs,
    pub console: Console,
    /// For what callers can cause.
    pub quiet_gate: Gate,
}

impl Default for Journal {
    fn default() -> Journal {
        let quiet_gate = Gate::new(limits::OWN_LOG_LINES_PER_SECOND_MAX);
        Journal { logs: Logs::default(), console: Console::default(), quiet_gate }
    }
}

impl Journal {
    /// A line that a service wrote.
    pub fn service(&mut self, name: &str, line: &str) {
        self.logs.push(name, clock::unix_ms(), line);
        self.console.mirror(name, line);
    }

    /// A record of the kernel's log with its number, kept and not shown: the consoles have the kernel's own.
    pub fn kernel(&mut self, unix_ms: u64, number: u64, line: &str) {
        self.logs.push_marked(KERNEL_LOG, unix_ms, number, line);
    }

    /// A line of nulld, kept and shown.
    pub fn own(&mut self, level: Level, event: &str, fields: &[(&str, &dyn Display)]) {
        let line = log::format(level, event, fields);
        let line = line.trim_end();
        self.logs.push(OWN, clock::unix_ms(), line);
        self.console.mirror(OWN, line);
    }

    /// A line of nulld that is kept at a bounded rate and not shown: what callers can cause.
    pub fn quiet(&mut self, level: Level, event: &str, fields: &[(&str, &dyn Display)]) {
        if self.quiet_gate.pass(clock::now_ms()) {
            let line = log::format(level, event, fields);
            self.logs.push(OWN, clock::unix_ms(), line.trim_end());
        }
    }

    /// nulld's own line in another's log: so many lines are not there.
    pub fn dropped(&mut self, name: &str, lines: u64, reason: &str) {
        let fields: [(&str, &dyn Display); 2] = [("lines", &lines), ("reason", &reason)];
        let line = log::format(Level::Warning, "log_dropped", &fields);
        self.logs.push(name, clock::unix_ms(), line.trim_end());
    }

    /// Tells what was dropped of nulld's own lines, when it is time.
    pub fn tick(&mut self, now_ms: u64) {
        if let Some(dropped) = self.quiet_gate.take_dropped(now_ms) {
            self.dropped(OWN, dropped, "rate");
        }
    }

    /// When [`Journal::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        self.quiet_gate.next_deadline()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_cannot_push_everything_else_out_of_nullds_log() {
        let mut journal = Journal::default();
        journal.own(Level::Info, "before", &[]);
        for _ in 0..limits::SERVICE_LOG_LINES_MAX * 4 {
            journal.quiet(Level::Warning, "refused", &[("by", &"nobody")]);
        }
        let mut cursor = journal.logs.cursor(Some(OWN), 0, usize::MAX);
        assert_eq!(journal.logs.next(&mut cursor, None).unwrap().line, "info before");
        journal.tick(u64::MAX);
        let last = std::iter::from_fn(|| journal.logs.next(&mut cursor, None)).last().unwrap();
        assert!(last.line.starts_with("warning log_dropped lines="), "{}", last.line);
    }
}
