//! Where lines go: into the rings and, in short form, to the consoles.

use std::fmt::Display;

use abi::control::KERNEL_LOG;
use abi::log::{self, Level};

use crate::clock;
use crate::console::Console;
use crate::logs::Logs;

/// The name under which nulld's own lines are kept.
pub const OWN: &str = "nulld";

/// Rings and consoles together.
#[derive(Debug, Default)]
pub struct Journal {
    pub logs: Logs,
    pub console: Console,
}

impl Journal {
    /// A line that a service wrote.
    pub fn service(&mut self, name: &str, line: &str) {
        self.logs.push(name, clock::unix_ms(), line);
        self.console.mirror(name, line);
    }

    /// A record of the kernel's log, kept and not shown: the consoles have the kernel's own.
    pub fn kernel(&mut self, record: &str) {
        self.logs.push(KERNEL_LOG, clock::unix_ms(), record);
    }

    /// A line of nulld, kept and shown.
    pub fn own(&mut self, level: Level, event: &str, fields: &[(&str, &dyn Display)]) {
        let line = log::format(level, event, fields);
        let line = line.trim_end();
        self.logs.push(OWN, clock::unix_ms(), line);
        self.console.mirror(OWN, line);
    }

    /// A line of nulld that is kept but not shown: what callers can cause.
    pub fn quiet(&mut self, level: Level, event: &str, fields: &[(&str, &dyn Display)]) {
        let line = log::format(level, event, fields);
        self.logs.push(OWN, clock::unix_ms(), line.trim_end());
    }
}
