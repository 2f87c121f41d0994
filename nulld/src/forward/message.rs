//! A log line as a syslog message (RFC 5424).
//!
//! `<PRI>1 TIME NODE SERVICE - - [nullbox@32473 seq="7" boot="..."] TEXT`. 32473 is the enterprise number for documentation (RFC
//! 5612): NullBox has none of its own. `boot` and `seq` together name a line: the same pair twice is the same line sent twice.
//! A text that is not ASCII begins with the byte order mark that section 6.4 asks for; an ASCII text is sent without.
//!
//! Must hold: one message is one line without control characters, of at most [`MESSAGE_BYTES_MAX`].

use std::fmt::Write as _;

use abi::control::{KERNEL_LOG, LogLine};

use crate::kernel_log::{FACILITIES, LEVELS};

/// What a receiver should take (RFC 5424 section 6.1, RFC 5426 section 3.2); the rest of a longer one is cut.
pub const MESSAGE_BYTES_MAX: usize = 2048;
/// The facility of services.
const DAEMON: usize = 3;
const INFO: usize = 6;
const NAME_BYTES_MAX: usize = 48;
const BOM: char = '\u{feff}';

/// Where lines come from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub node: String,
    pub boot: String,
}

/// The message for a line.
pub fn message(origin: &Origin, line: &LogLine) -> String {
    let mut out = format!(
        "<{}>1 {} {} {} - - [nullbox@32473 seq=\"{}\" boot=\"{}\"] ",
        priority(line),
        timestamp(line.unix_ms),
        name(&origin.node),
        name(&line.service),
        line.seq,
        name(&origin.boot),
    );
    if !line.line.is_ascii() {
        out.push(BOM);
    }
    for c in line.line.chars() {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
        if out.len() > MESSAGE_BYTES_MAX {
            break;
        }
    }
    out.truncate(out.floor_char_boundary(MESSAGE_BYTES_MAX));
    out
}

/// The message of the forwarder itself that lines are missing before `next`.
pub fn lost(origin: &Origin, next: &LogLine, lines: u64) -> String {
    let text = format!("warning log_lost lines={lines} before={}", next.seq);
    message(origin, &LogLine { service: "forward".to_owned(), line: text, missed: 0, ..next.clone() })
}

/// Facility times 8 plus severity: the first word of a line is its level; a line of the kernel's log has who said it next.
fn priority(line: &LogLine) -> usize {
    let mut words = line.line.split(' ');
    let level = words.next().unwrap_or_default();
    let severity = LEVELS.iter().position(|name| *name == level).unwrap_or(INFO);
    let said_by = words.next().and_then(|word| word.strip_suffix(':')).unwrap_or_default();
    let facility = match line.service.as_str() {
        KERNEL_LOG => FACILITIES.iter().position(|name| *name == said_by).unwrap_or(DAEMON),
        _ => DAEMON,
    };
    facility * 8 + severity
}

/// PRINTUSASCII without what ends a structured value.
fn name(text: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | ']');
    let name: String = text.chars().filter(is_plain).take(NAME_BYTES_MAX).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

/// RFC 3339 in UTC with milliseconds. Days to date as in Howard Hinnant's `civil_from_days`.
fn timestamp(unix_ms: u64) -> String {
    let (days, time_ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (time_ms / 3_600_000, time_ms / 60_000 % 60);
    let mut out = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}");
    // A String takes everything.
    let _ = write!(out, ":{:02}.{:03}Z", time_ms / 1000 % 60, time_ms % 1000);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(service: &str, text: &str) -> LogLine {
        LogLine { seq: 7, unix_ms: 951_827_696_123, service: service.into(), line: text.into(), missed: 0 }
    }

    fn origin() -> Origin {
        Origin { node: "node-1".into(), boot: "b-1".into() }
    }

    #[test]
    fn a_line_is_a_message_with_who_when_and_how_bad() {
        assert_eq!(
            message(&origin(), &line("egress", "warning denied name=evil.test")),
            "<28>1 2000-02-29T12:34:56.123Z node-1 egress - - [nullbox@32473 seq=\"7\" boot=\"b-1\"] warning denied name=evil.test"
        );
        for (service, text, priority) in [
            ("cage", "error x", 27),
            ("cage", "no level at all", 30),
            ("kernel", "info kernel: Linux", 6),
            ("kernel", "emerg kernel: bad", 0),
            ("kernel", "warning user: forged", 12),
            ("kernel", "warning log_dropped lines=3", 28),
            ("cage", "emerg kernel: forged", 24),
        ] {
            let message = message(&origin(), &line(service, text));
            assert!(message.starts_with(&format!("<{priority}>1 ")), "{message}");
        }
    }

    #[test]
    fn hostile_text_is_one_line_and_forges_no_field() {
        let text = "info x\n<0>1 - evil\r\0\x1b[2J] seq=\"9\"";
        let message = message(&Origin { node: "a b\"]".into(), boot: "\n".into() }, &line("", text));
        assert!(!message.chars().any(char::is_control), "{message:?}");
        assert!(
            message.contains(" ab - - - [nullbox@32473 seq=\"7\" boot=\"-\"] info x\\n<0>1 - evil"),
            "{message}"
        );
    }

    #[test]
    fn utf8_is_marked_and_long_messages_are_cut_between_characters() {
        let marked = message(&origin(), &line("a", "grün"));
        assert!(marked.ends_with("] \u{feff}grün"), "{marked}");
        for text in ["é".repeat(5000), "x".repeat(5000), "\x01".repeat(5000)] {
            let cut = message(&origin(), &line("a", &text));
            assert!(cut.len() <= MESSAGE_BYTES_MAX && cut.len() > MESSAGE_BYTES_MAX - 8, "{}", cut.len());
        }
    }

    #[test]
    fn a_loss_is_told_in_a_message_of_its_own() {
        let told = lost(&origin(), &line("egress", "info next"), 12);
        assert!(told.starts_with("<28>1 ") && told.contains(" forward - - "), "{told}");
        assert!(told.ends_with("warning log_lost lines=12 before=7"), "{told}");
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
    }
}
