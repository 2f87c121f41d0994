//! `system logs`, `system dmesg`, and the options that all logs share.

use abi::control::{KERNEL_LOG, LogLine, SystemLogs};
use std::time::{SystemTime, UNIX_EPOCH};

use super::note;
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::print::{moment, unix_ms_of, visible};

pub fn logs(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    show(context, given, given.at(0).map(str::to_owned), |line| {
        format!("{} {:<9} {}\n", moment(line.unix_ms), visible(&line.service), visible(&line.line))
    })
}

pub fn dmesg(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    show(context, given, Some(KERNEL_LOG.to_owned()), |line| {
        format!("{} {}\n", moment(line.unix_ms), visible(&line.line))
    })
}

fn show(
    context: &Context,
    given: &Arguments,
    service: Option<String>,
    in_words: impl Fn(&LogLine) -> String,
) -> Result<u8, Failure> {
    let follow = given.has("follow");
    let params = SystemLogs { service, lines: given.number("lines")?, since_unix_ms: since(given)?, follow };
    let silence = if follow { Silence::Unbounded } else { Silence::Ordinary };
    let mut link = context.ask("system.logs", &params, silence)?;
    let result = link.result(&mut |request| {
        if context.json {
            return context.note(request);
        }
        match note::<LogLine>(request, "log")? {
            Some(line) => {
                if line.missed > 0 {
                    say(&format!("-- {} lines are no longer kept --\n", line.missed))?;
                }
                say(&in_words(&line))
            }
            None => Ok(()),
        }
    })?;
    context.result_or_json(result)?;
    Ok(0)
}

/// `--since` in Unix milliseconds.
pub fn since(given: &Arguments) -> Result<Option<u64>, Failure> {
    time(given, "since")
}

/// An option's time in Unix milliseconds; an age counts from now by this machine's clock.
pub fn time(given: &Arguments, option: &str) -> Result<Option<u64>, Failure> {
    let Some(text) = given.value(option) else {
        return Ok(None);
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let found = age_ms(text).map(|age| now_ms.saturating_sub(age)).or_else(|| unix_ms_of(text));
    found.map(Some).ok_or_else(|| {
        Failure::usage(
            format!("--{option} {text}: neither an age nor a time"),
            format!(
                "write for example --{option} 10m (s, m, h or d), or --{option} 2026-11-22T10:00:00Z (UTC)"
            ),
        )
    })
}

/// `90s`, `10m`, `2h`, `1d` in milliseconds.
pub fn age_ms(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let ms = match unit {
        's' => 1000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_numbers_with_a_unit() {
        for (text, ms) in
            [("0s", Some(0)), ("90s", Some(90_000)), ("10m", Some(600_000)), ("2d", Some(172_800_000))]
        {
            assert_eq!(age_ms(text), ms, "{text}");
        }
        for bad in ["", "10", "m", "-1m", "1.5h", "10M", "99999999999999999d", "1\u{e9}"] {
            assert_eq!(age_ms(bad), None, "{bad}");
        }
    }
}
