//! `system doctor`: what is wrong with the node, in words and as an exit status.

use abi::control::{Doctor, Finding, Nothing, Severity};

use crate::cli::Arguments;
use crate::context::{Context, Silence, say, terminal};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::visible;

pub fn doctor(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let result = context
        .ask("system.doctor", &Nothing {}, Silence::Ordinary)?
        .result(&mut |request| context.note(request))?;
    let doctor: Doctor = typed(&result)?;
    if context.result_or_json(result)?.is_some() {
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        say(&in_words(&doctor.findings, terminal() && !is_plain))?;
    }
    Ok(exit_of(&doctor.findings))
}

/// 0: nothing worse than worth knowing.
fn exit_of(findings: &[Finding]) -> u8 {
    let is_sound = findings.iter().all(|finding| finding.severity == Severity::Info);
    if is_sound { 0 } else { status::FAILED }
}

fn in_words(findings: &[Finding], colours: bool) -> String {
    if findings.is_empty() {
        return "nothing is wrong with the node\n".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        let (word, colour) = match finding.severity {
            Severity::Error => ("error", "\x1b[1;31m"),
            Severity::Warning => ("warning", "\x1b[1;33m"),
            Severity::Info => ("info", "\x1b[1m"),
        };
        let word = if colours { format!("{colour}{word}\x1b[0m") } else { word.to_owned() };
        text.push_str(&format!("{word}: {}: {}\n", visible(&finding.area), visible(&finding.what)));
        for (label, line) in [("effect: ", &finding.effect), ("remedy: ", &finding.remedy)] {
            if !line.is_empty() {
                text.push_str(&format!("  {label}{}\n", visible(line)));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        let text = |text: &str| text.to_owned();
        Finding {
            severity,
            area: text("state"),
            what: text("evil \x1b[2J"),
            effect: String::new(),
            remedy: text("r\nerror: forged"),
        }
    }

    #[test]
    fn warnings_and_errors_fail_the_command_and_information_does_not() {
        assert_eq!(exit_of(&[]), 0);
        assert_eq!(exit_of(&[finding(Severity::Info)]), 0);
        assert_eq!(exit_of(&[finding(Severity::Info), finding(Severity::Warning)]), 1);
        assert_eq!(exit_of(&[finding(Severity::Error)]), 1);
    }

    #[test]
    fn a_finding_cannot_forge_another_nor_move_the_cursor() {
        let shown = in_words(&[finding(Severity::Error)], false);
        assert_eq!(shown, "error: state: evil \\u{1b}[2J\n  remedy: r\\nerror: forged\n");
        let coloured = in_words(&[finding(Severity::Warning)], true);
        assert!(coloured.starts_with("\x1b[1;33mwarning\x1b[0m: state: "), "{coloured:?}");
        assert_eq!(coloured.matches('\x1b').count(), 2);
    }
}
