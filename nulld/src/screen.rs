//! The status screen: facts in, lines out. Pure.
//!
//! Must hold: a line is plain ASCII and not longer than asked for, whatever an agent is called or a service says; so it can
//! neither move a cursor nor look like a line of nulld's own. Must never: read anything.

use abi::control::{Finding, Phase, Severity};

use crate::doctor::Patient;
use crate::system::Facts;

/// Columns of a row's name.
const LABEL: usize = 10;
/// Lines that one row may take; what does not fit ends in dots.
const ROW_LINES_MAX: usize = 3;
/// Characters of one row's text that are looked at.
const ROW_CHARS_MAX: usize = 600;

/// What the screen shows, row by row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Board {
    pub rows: Vec<Row>,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub label: &'static str,
    pub text: String,
    /// Whether a change of it is worth telling on a console that keeps every line.
    pub tells: bool,
}

/// What a board is made of.
#[derive(Debug)]
pub struct Sight<'a> {
    pub now_ms: u64,
    pub facts: &'a Facts,
    pub phases: &'a [Phase],
    pub patients: &'a [Patient],
    /// Of the uplink, in words.
    pub addresses: &'a str,
    pub findings: &'a [Finding],
}

impl Board {
    /// The rows of a node, the most important first; what is empty has none.
    pub fn of(sight: &Sight<'_>) -> Board {
        let facts = sight.facts;
        let says = |name: &str| {
            let patient = sight.patients.iter().find(|patient| patient.status.name == name)?;
            let status = &patient.status;
            match status.state.as_str() {
                "ready" if !status.says.is_empty() => Some(status.says.clone()),
                "ready" => None,
                state => Some(format!("{name} is {state}")),
            }
        };
        let row = |label, text: Option<String>, tells| {
            let text = text.filter(|text| !text.is_empty())?;
            Some(Row { label, text: ascii(&plain(&text, ROW_CHARS_MAX)), tells })
        };
        let address = match sight.addresses {
            "" => "none".to_owned(),
            some => some.to_owned(),
        };
        let clock = says("clock").or_else(|| Some(facts.clock.clone()));
        let rows = [
            row("node", Some(node(sight)), false),
            row("trouble", trouble(sight), true),
            row("address", Some(address), true),
            row("network", says("uplink"), true),
            row("door", says("nullgate"), true),
            row("agents", says("cage"), true),
            row("denials", says("egress"), false),
            row("ledger", says("ctxgraph"), false),
            row("state", Some(state(facts).to_owned()), true),
            row("image", Some(image(facts)), true),
            row("clock", clock, false),
            row("phases", Some(phases(sight.phases)), true),
            row("services", Some(services(sight.patients)), true),
            row("findings", Some(findings(sight.findings)), true),
        ];
        Board { rows: rows.into_iter().flatten().collect() }
    }

    /// What must change for the board to be told again.
    pub fn news(&self) -> String {
        self.rows.iter().filter(|row| row.tells).map(|row| format!("{} {}\n", row.label, row.text)).collect()
    }

    /// All rows as lines of at most so many columns.
    pub fn lines(&self, columns: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for row in &self.rows {
            let room = columns.saturating_sub(LABEL).max(1);
            for (number, part) in wrap(&row.text, room).into_iter().enumerate() {
                let label = if number == 0 { row.label } else { "" };
                lines.push(format!("{label:<LABEL$}{part}").chars().take(columns).collect());
            }
        }
        lines
    }

    /// A whole screen: the board, a rule, and the newest log lines in what is left. Exactly so many rows.
    pub fn screen(&self, columns: usize, rows: usize, log: &[String]) -> Vec<String> {
        let mut lines = self.lines(columns);
        // On a small screen the log keeps a third.
        lines.truncate(rows.saturating_sub(1).min((rows * 2 / 3).max(1)));
        lines.push("-".repeat(columns));
        let left = rows.saturating_sub(lines.len());
        let newest = log.iter().skip(log.len().saturating_sub(left));
        lines.extend(newest.map(|line| ascii(line).chars().take(columns).collect()));
        lines.resize(rows, String::new());
        lines
    }
}

fn node(sight: &Sight<'_>) -> String {
    let facts = sight.facts;
    let name = if facts.node.is_empty() { "(no name yet)" } else { facts.node.as_str() };
    let stage = match facts.ready_ms {
        Some(ms) => format!("ready after {}.{} s", ms / 1000, ms % 1000 / 100),
        None => "not ready".to_owned(),
    };
    format!("{name}, NullBox {}, {stage}, up {}", env!("CARGO_PKG_VERSION"), span(sight.now_ms))
}

/// What keeps the node from its work, if anything does.
fn trouble(sight: &Sight<'_>) -> Option<String> {
    let halted = sight.phases.iter().find_map(|phase| {
        let why = phase.outcome.strip_prefix("failed: ")?;
        Some(format!("HALTED in phase {}: {why}", phase.name))
    });
    let held = sight.facts.held.as_ref().map(|why| format!("HELD: {why}"));
    let rescue = sight.facts.rescue.as_ref().map(|why| format!("RESCUE, with a node key of its own: {why}"));
    let all: Vec<String> = [halted, held, rescue].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn state(facts: &Facts) -> &'static str {
    match (&facts.rescue, facts.ephemeral) {
        (Some(_), _) => "the state volume is not used",
        (None, true) => "ephemeral, lost at power-off (no volume NULLBOX-STATE)",
        (None, false) => "kept on NULLBOX-STATE",
    }
}

fn image(facts: &Facts) -> String {
    match facts.root_hash.as_str() {
        "" => "not checked against a hash".to_owned(),
        hash => hash.to_owned(),
    }
}

fn phases(phases: &[Phase]) -> String {
    let word = |phase: &Phase| match phase.outcome.as_str() {
        "ok" => format!("{} ms", phase.took_ms),
        outcome => outcome.split(':').next().unwrap_or_default().to_owned(),
    };
    let own = phases.iter().filter(|phase| !phase.name.starts_with("initramfs."));
    own.map(|phase| format!("{} {}", phase.name, word(phase))).collect::<Vec<_>>().join(", ")
}

fn services(patients: &[Patient]) -> String {
    let word = |patient: &Patient| {
        let status = &patient.status;
        match (status.state.as_str(), status.detail.as_str()) {
            ("ready", _) | (_, "") => format!("{} {}", status.name, status.state),
            (state, detail) => format!("{} {state} ({})", status.name, plain(detail, 60)),
        }
    };
    patients.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn findings(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match findings.iter().find(|finding| finding.severity != Severity::Info) {
        None => "none".to_owned(),
        Some(worst) => format!(
            "{errors} errors, {warnings} warnings (nullctl system doctor): {}; {}",
            worst.what, worst.remedy
        ),
    }
}

/// A span of time in the two largest units.
fn span(ms: u64) -> String {
    let minutes = ms / 60_000;
    match minutes {
        0 => "less than a minute".to_owned(),
        1..60 => format!("{minutes} min"),
        60..1440 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", minutes / 1440, minutes / 60 % 24),
    }
}

/// Text from elsewhere on one line: control characters, and those that turn the direction of writing, as escapes; cut.
pub fn plain(text: &str, chars_max: usize) -> String {
    let mut out = String::new();
    for (number, c) in text.chars().enumerate() {
        if number == chars_max {
            out.push_str("...");
            break;
        }
        let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
        if c.is_control() || turns {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// What a screen of unknown font and character set shows as it is meant.
fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' => out.push(c),
            c => out.extend(c.escape_unicode()),
        }
    }
    out
}

/// Breaks ASCII text at blanks where it can; at most [`ROW_LINES_MAX`] lines.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if rest.len() <= columns {
            lines.push(rest.to_owned());
            break;
        }
        if lines.len() + 1 == ROW_LINES_MAX {
            let cut = rest.get(..columns.saturating_sub(3)).unwrap_or_default();
            lines.push(format!("{cut}..."));
            break;
        }
        let head = rest.get(..=columns).unwrap_or(rest);
        let at = head.rfind(' ').filter(|at| *at > columns / 2).unwrap_or(columns);
        let (line, after) = rest.split_at_checked(at).unwrap_or((rest, ""));
        lines.push(line.to_owned());
        rest = after.trim_start();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patient(name: &str, state: &str, says: &str, detail: &str) -> Patient {
        let mut patient = Patient::for_test(name, state);
        (patient.status.says, patient.status.detail) = (says.into(), detail.into());
        patient
    }

    fn phase(name: &str, outcome: &str) -> Phase {
        Phase { name: name.into(), started_ms: 1, took_ms: 12, outcome: outcome.into() }
    }

    fn finding(severity: Severity, what: &str) -> Finding {
        crate::doctor::finding(severity, "x", what, "e", "r")
    }

    fn good() -> (Facts, Vec<Phase>, Vec<Patient>, Vec<Finding>) {
        let facts = Facts {
            node: "box-1".into(),
            root_hash: "ab".repeat(32),
            ready_ms: Some(3_140),
            clock: "set by nobody".into(),
            ..Facts::default()
        };
        let phases = vec![
            phase("initramfs.verity", "ok"),
            phase("mounts", "ok"),
            phase("network", "degraded: no address"),
        ];
        let patients = vec![
            patient("cage", "ready", "2 agents run: a, b", ""),
            patient("egress", "backoff", "old news", "killed by SIGSEGV"),
            patient(
                "nullgate",
                "ready",
                "node key SHA256:m9C0qP3n1Hk2yq3v4w5x6y7z8A9B0C1D2E3F4G5H6I7, port 4466",
                "",
            ),
        ];
        (
            facts,
            phases,
            patients,
            vec![finding(Severity::Warning, "the clock is odd"), finding(Severity::Info, "hm")],
        )
    }

    fn board(parts: &(Facts, Vec<Phase>, Vec<Patient>, Vec<Finding>)) -> Board {
        let (facts, phases, patients, findings) = parts;
        let addresses = "eth0 192.0.2.7/24";
        Board::of(&Sight { now_ms: 3_700_000, facts, phases, patients, addresses, findings })
    }

    #[test]
    fn a_node_is_one_screen_of_80_columns() {
        let lines = board(&good()).lines(80);
        let expected = [
            "node      box-1, NullBox 0.1.0, ready after 3.1 s, up 1 h 1 min",
            "address   eth0 192.0.2.7/24",
            "door      node key SHA256:m9C0qP3n1Hk2yq3v4w5x6y7z8A9B0C1D2E3F4G5H6I7, port 4466",
            "agents    2 agents run: a, b",
            "denials   egress is backoff",
            "state     kept on NULLBOX-STATE",
            "image     abababababababababababababababababababababababababababababababab",
            "clock     set by nobody",
            "phases    mounts 12 ms, network degraded",
            "services  cage ready, egress backoff (killed by SIGSEGV), nullgate ready",
            "findings  0 errors, 1 warnings (nullctl system doctor): the clock is odd; r",
        ];
        assert_eq!(lines, expected, "{}", lines.join("\n"));
    }

    #[test]
    fn what_keeps_the_node_from_its_work_stands_on_top() {
        let mut parts = good();
        parts.0.rescue = Some("the state volume cannot be used: no journal".into());
        parts.1.push(phase("config", "failed: no file"));
        let lines = board(&parts).lines(120);
        assert_eq!(
            lines[1],
            "trouble   HALTED in phase config: no file; RESCUE, with a node key of its own: the state volume cannot be used: no"
        );
        assert!(lines.contains(&"state     the state volume is not used".to_owned()), "{lines:?}");
    }

    #[test]
    fn hostile_and_long_texts_stay_in_their_row() {
        let mut parts = good();
        let evil = format!("evil\x1b[2J\nnullbox: ready\u{202e}\u{9b}31m é {}", "x".repeat(5_000));
        parts.2 = vec![patient("cage", "ready", &evil, ""), patient("egress", "failed", "", &evil)];
        parts.0.node = "n".repeat(63);
        for (columns, rows) in [(80, 25), (132, 60), (40, 12), (20, 5), (1, 1), (0, 0), (80, 2), (200, 3)] {
            let board = board(&parts);
            let log: Vec<String> = (0..100).map(|n| format!("{n} {evil}")).collect();
            let screen = board.screen(columns, rows, &log);
            assert_eq!(screen.len(), rows, "{columns}x{rows}");
            for line in screen.iter().chain(&board.lines(columns)) {
                assert!(line.len() <= columns, "{columns}x{rows}: {line:?}");
                assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
            }
            assert!(board.lines(columns).len() <= board.rows.len() * ROW_LINES_MAX);
        }
        let agents = board(&parts).lines(80).into_iter().find(|line| line.starts_with("agents")).unwrap();
        assert_eq!(agents, "agents    evil\\u{1b}[2J\\nnullbox: ready\\u{202e}\\u{9b}31m \\u{e9}");
    }

    #[test]
    fn the_newest_log_lines_fill_what_is_left() {
        let log: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let screen = board(&good()).screen(80, 25, &log);
        assert_eq!(screen[11], "-".repeat(80));
        assert_eq!((screen[12].as_str(), screen[24].as_str()), ("87", "99"));
        let screen = board(&good()).screen(80, 25, &log[..2]);
        assert_eq!((screen[12].as_str(), screen[13].as_str(), screen[14].as_str()), ("0", "1", ""));
    }

    #[test]
    fn only_what_matters_is_news() {
        let before = board(&good()).news();
        let mut parts = good();
        parts.0.clock = "synchronised, 3 ms off".into();
        assert_eq!(board(&parts).news(), before);
        parts.2[0].status.says = "3 agents run: a, b, c".into();
        assert_ne!(board(&parts).news(), before);
        assert!(!before.contains("up 1 h"));
    }
}
