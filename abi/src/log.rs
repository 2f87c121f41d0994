//! Structured log lines on standard error, `LEVEL EVENT key=value ...`; nulld adds time, sequence and service.
//!
//! Must hold: one event is one line of at most [`limits::LOG_LINE_BYTES_MAX`]; a value can never forge a second line
//! or a further field. Must never: be given a secret.

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;

use crate::limits;

/// How much it matters. The names are syslog's (RFC 5424).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl Level {
    /// The first word of a line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// Writes one line; a full or broken pipe loses it silently, since a log must not stop its writer.
pub fn log(level: Level, event: &str, fields: &[(&str, &dyn Display)]) {
    let line = format(level, event, fields);
    let _ = std::io::stderr().lock().write_all(line.as_bytes()); // nobody is left to tell
}

/// An ordinary event.
pub fn info(event: &str, fields: &[(&str, &dyn Display)]) {
    log(Level::Info, event, fields);
}

/// Something refused, lost or retried.
pub fn warning(event: &str, fields: &[(&str, &dyn Display)]) {
    log(Level::Warning, event, fields);
}

/// Something the service could not do.
pub fn error(event: &str, fields: &[(&str, &dyn Display)]) {
    log(Level::Error, event, fields);
}

/// The line, with its end.
pub fn format(level: Level, event: &str, fields: &[(&str, &dyn Display)]) -> String {
    let mut line = format!("{} {event}", level.name());
    for (key, value) in fields {
        // Writing to a String cannot fail.
        let _ = write!(line, " {key}=");
        let _ = write_value(&mut line, &value.to_string());
    }
    if line.len() >= limits::LOG_LINE_BYTES_MAX {
        let mut end = limits::LOG_LINE_BYTES_MAX - 8;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push_str(" cut=1");
    }
    line.push('\n');
    line
}

fn write_value(out: &mut String, value: &str) -> fmt::Result {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\' && c != '=';
    if !value.is_empty() && value.chars().all(plain) {
        out.write_str(value)
    } else {
        write!(out, "{value:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line_or_a_field() {
        let line = format(Level::Info, "x", &[("name", &"a\nerror y=1"), ("n", &3)]);
        assert_eq!(line, "info x name=\"a\\nerror y=1\" n=3\n");
    }

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let line = format(Level::Info, "x", &[("v", &"é".repeat(5000))]);
        assert!(line.len() <= limits::LOG_LINE_BYTES_MAX && line.ends_with(" cut=1\n"));
    }
}
