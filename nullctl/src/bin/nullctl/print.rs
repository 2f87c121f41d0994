//! What people read: tables, sizes, times, and text from elsewhere made harmless for a terminal.
//!
//! Must never: let a control character from a node or an agent reach a terminal, unless `--raw` was given.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether a character may stand on a terminal: no control character, nothing that turns the writing direction, nothing that a
/// person cannot see (soft hyphen, zero width, line and paragraph separators, joiners, tags).
fn harmless(c: char) -> bool {
    let is_unseen = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !is_unseen
}

/// One line of text from elsewhere, with everything that is not plain written as an escape.
pub fn visible(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if harmless(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        out
    })
}

/// Several lines of text from elsewhere, each behind `margin`, so that none can pass for one of nullctl's own.
pub fn quoted(text: &str, margin: &str) -> String {
    let shown = |line: &str| line.split('\t').map(visible).collect::<Vec<_>>().join("\t");
    text.lines().map(|line| format!("{margin}{}\n", shown(line))).collect()
}

/// A stream of bytes from an agent on its way to standard output or error.
pub struct Passage {
    clean: bool,
    /// The first bytes of a character that the last chunk cut.
    carry: Vec<u8>,
}

impl Passage {
    /// Cleans if `terminal`, unless `raw`.
    pub fn new(terminal: bool, raw: bool) -> Passage {
        Passage { clean: terminal && !raw, carry: Vec::new() }
    }

    /// What to write for a chunk.
    pub fn take(&mut self, chunk: &[u8]) -> Vec<u8> {
        if !self.clean {
            return chunk.to_vec();
        }
        let mut bytes = std::mem::take(&mut self.carry);
        bytes.extend_from_slice(chunk);
        let mut out = String::new();
        let mut rest = bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    clean_into(&mut out, text);
                    return out.into_bytes();
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    clean_into(&mut out, &String::from_utf8_lossy(good));
                    let Some(length) = error.error_len() else {
                        self.carry = bad.to_vec();
                        return out.into_bytes();
                    };
                    let (bad, after) = bad.split_at(length);
                    for byte in bad {
                        let _ = write!(out, "\\x{byte:02x}"); // a String takes everything
                    }
                    rest = after;
                }
            }
        }
    }
}

fn clean_into(out: &mut String, text: &str) {
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' if characters.peek() == Some(&'\n') => {}
            c if harmless(c) => out.push(c),
            c => out.extend(c.escape_default()),
        }
    }
}

/// Rows under a heading, columns aligned, two blanks between them. The last column is not padded.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(heading: &[&str]) -> Table {
        Table { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row; cells are made visible here.
    pub fn row(&mut self, cells: &[&str]) {
        self.rows.push(cells.iter().map(|cell| visible(cell)).collect());
    }

    /// The text.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  "); // a String takes everything
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `name: value` lines, values aligned.
pub fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let line = format!("{name:<width$}  {}", visible(value));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A span of time.
pub fn span(ms: u64) -> String {
    let (s, min, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", s, ms % 1000 / 100),
        60_000..3_600_000 => format!("{min} min {} s", s % 60),
        3_600_000..86_400_000 => format!("{h} h {} min", min % 60),
        _ => format!("{d} d {} h", h % 24),
    }
}

/// A size.
pub fn size(bytes: u64) -> String {
    let scaled = |unit: u64, name: &str| format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => scaled(1024, "KiB"),
        1_048_576..1_073_741_824 => scaled(1 << 20, "MiB"),
        _ => scaled(1 << 30, "GiB"),
    }
}

/// A moment, relative to now by this machine's clock.
pub fn ago(unix_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    match now_ms.checked_sub(unix_ms) {
        Some(ms) if ms < 1000 => "now".into(),
        Some(ms) => format!("{} ago", span(ms)),
        None => moment(unix_ms),
    }
}

/// A moment in UTC: `2026-01-02 03:04:05`. Days to date as in Howard Hinnant's `civil_from_days`.
pub fn moment(unix_ms: u64) -> String {
    let secs = unix_ms / 1000;
    let z = secs / 86_400 + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let time = secs % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

/// Unix milliseconds of a time in UTC, `2026-01-02T03:04:05Z` (RFC 3339 without a fraction; a blank may stand for the T, and the
/// Z may be left out). Date to days as in Howard Hinnant's `days_from_civil`.
pub fn unix_ms_of(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' '])?;
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let is_plain = text.split(by).all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let parts: Option<Vec<u64>> = text.split(by).map(|part| part.parse().ok()).collect();
        parts.filter(|_| is_plain)?.try_into().ok()
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(time, ':')?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59
    {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=longest).contains(&day) {
        return None;
    }
    let shifted_year = year - u64::from(month <= 2);
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second) * 1000)
}

/// Progress of a long call on standard error: one line that changes on a terminal, lines elsewhere.
pub struct Meter {
    terminal: bool,
    quiet: bool,
    last: String,
}

impl Meter {
    /// Shows nothing when `quiet`.
    pub fn new(quiet: bool) -> Meter {
        Meter { terminal: io::stderr().is_terminal(), quiet, last: String::new() }
    }

    /// Shows a stage, with its share when the amount is known.
    pub fn show(&mut self, what: &str, progress: &abi::control::Progress) {
        if self.quiet {
            return;
        }
        let stage = visible(&progress.stage);
        let share = match (progress.done, progress.total) {
            (Some(done), Some(total)) if total > 0 => Some((done.min(total), total)),
            _ => None,
        };
        let text = match (share, self.terminal) {
            (Some((done, total)), true) => {
                let filled = usize::try_from(u128::from(done) * 24 / u128::from(total)).unwrap_or(0);
                let bar = format!("{}{}", "#".repeat(filled), ".".repeat(24 - filled));
                format!("\r\x1b[K{what}: {stage} [{bar}] {} of {}", size(done), size(total))
            }
            // Elsewhere a line for each tenth is enough.
            (Some((done, total)), false) => {
                format!("{what}: {stage} {} %\n", u128::from(done) * 10 / u128::from(total) * 10)
            }
            (None, true) => format!("\r\x1b[K{what}: {stage}"),
            (None, false) => format!("{what}: {stage}\n"),
        };
        if text != self.last {
            let _ = io::stderr().write_all(text.as_bytes()); // progress is a courtesy
            self.last = text;
        }
    }

    /// Clears the line.
    pub fn done(&mut self) {
        if self.terminal && !self.last.is_empty() {
            let _ = io::stderr().write_all(b"\r\x1b[K"); // progress is a courtesy
        }
        self.last.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_escape_sequence_reaches_a_terminal() {
        let mut passage = Passage::new(true, false);
        let shown = passage.take(b"a\x1b]0;title\x07b\xc2\x9bc\r\nd\xff\n");
        assert_eq!(String::from_utf8(shown).unwrap(), "a\\u{1b}]0;title\\u{7}b\\u{9b}c\nd\\xff\n");
    }

    #[test]
    fn what_nobody_sees_is_shown() {
        for c in
            ['\u{200b}', '\u{2060}', '\u{feff}', '\u{e0041}', '\u{202e}', '\u{ad}', '\u{2028}', '\u{61c}']
        {
            let shown = visible(&format!("a{c}b"));
            assert!(shown.is_ascii() && shown.contains("\\u{"), "{shown}");
        }
        assert_eq!(quoted("a\tb\nnullctl approve\x1b[2J\r\n", "| "), "| a\tb\n| nullctl approve\\u{1b}[2J\n");
        assert_eq!(quoted("a\rb", "| "), "| a\\rb\n", "a carriage return overwrites nothing");
    }

    #[test]
    fn a_character_cut_by_a_chunk_stays_whole() {
        let mut passage = Passage::new(true, false);
        let bytes = "grün €".as_bytes();
        let mut shown = Vec::new();
        for byte in bytes {
            shown.extend(passage.take(&[*byte]));
        }
        assert_eq!(shown, bytes);
    }

    #[test]
    fn a_pipe_gets_the_bytes_as_they_are() {
        for (terminal, raw) in [(false, false), (true, true)] {
            assert_eq!(Passage::new(terminal, raw).take(b"\x1b[1m\xff"), b"\x1b[1m\xff");
        }
    }

    #[test]
    fn columns_align_by_characters() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(&["größer", "running"]);
        table.row(&["b", "x\ny"]);
        assert_eq!(table.render(), "NAME    STATE\ngrößer  running\nb       x\\ny\n");
    }

    #[test]
    fn every_moment_is_read_back() {
        for day in 0..47_000 {
            let ms = day * 86_400_000 + day % 86_400 * 1000;
            assert_eq!(unix_ms_of(&moment(ms)), Some(ms), "{}", moment(ms));
            assert_eq!(unix_ms_of(&format!("{}Z", moment(ms).replace(' ', "T"))), Some(ms));
        }
        for bad in [
            "",
            "2026-11-22",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "x",
            "1969-12-31T23:59:59Z",
            "+026-11-22T10:00:00Z",
            "2026-11-22T10:00:00+01:00",
        ] {
            assert_eq!(unix_ms_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(moment(0), "1970-01-01 00:00:00");
        assert_eq!(moment(951_827_696_000), "2000-02-29 12:34:56");
        assert_eq!(moment(4_102_444_799_999), "2099-12-31 23:59:59");
        for (ms, text) in [
            (5, "5 ms"),
            (1_250, "1.2 s"),
            (61_000, "1 min 1 s"),
            (3_660_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(ms), text);
        }
        for (bytes, text) in [(12, "12 B"), (1536, "1.5 KiB"), (30 << 20, "30.0 MiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
