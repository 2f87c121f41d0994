//! Amounts on the command line (`calls=500,wall_secs=1800`) and in words. The names are those of `[authority] budget`.

use abi::authority::Amounts;

use crate::cli::Arguments;
use crate::failure::Failure;
use crate::print::{size, span};

/// A name, the amount it stands for, and what of it one is.
type Named = (&'static str, fn(&mut Amounts) -> &mut Option<u64>, u64);

/// In the order they are shown.
const NAMES: &[Named] = &[
    ("wall_secs", |all| &mut all.wall_ms, 1000),
    ("cpu_secs", |all| &mut all.cpu_ms, 1000),
    ("memory_mib", |all| &mut all.memory_mib, 1),
    ("disk_mib", |all| &mut all.disk_mib, 1),
    ("output_bytes", |all| &mut all.output_bytes, 1),
    ("tokens", |all| &mut all.tokens, 1),
    ("micro_dollars", |all| &mut all.micro_dollars, 1),
    ("calls", |all| &mut all.calls, 1),
];

/// What a task is held to.
pub const OF_TASK: &[&str] =
    &["calls", "tokens", "micro_dollars", "wall_secs", "cpu_secs", "output_bytes", "memory_mib", "disk_mib"];
/// What of it can be more later: a VM keeps the memory and the disk that it began with.
pub const OF_MORE: &[&str] = &["calls", "tokens", "micro_dollars", "wall_secs", "cpu_secs", "output_bytes"];
/// What a life's tools are held to; all else has fields of its own in the manifest.
pub const OF_LIFE: &[&str] = &["calls", "wall_secs", "cpu_secs", "output_bytes"];

/// Sets one bound by its name, if it is one of these.
pub fn set(amounts: &mut Amounts, of: &[&str], name: &str, value: u64) -> Result<(), String> {
    let named = NAMES.iter().find(|(known, _, _)| *known == name && of.contains(known));
    let Some((_, field, unit)) = named else {
        return Err(format!("`{name}` is no bound: {}", of.join(", ")));
    };
    let value = value.checked_mul(*unit).ok_or_else(|| format!("{name}={value} is too large"))?;
    *field(amounts) = Some(value);
    Ok(())
}

/// The value of `--budget`, of these bounds.
pub fn of_option(given: &Arguments, of: &[&str]) -> Result<Amounts, Failure> {
    let mut amounts = Amounts::default();
    for part in given.values("budget").iter().flat_map(|text| text.split(',')) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value: Result<u64, _> = value.trim().parse();
        value
            .map_err(|_| format!("`{part}`: the amount is not a number"))
            .and_then(|value| set(&mut amounts, of, name.trim(), value))
            .map_err(|why| {
                Failure::usage(format!("--budget {why}"), "write --budget calls=500,wall_secs=1800")
            })?;
    }
    Ok(amounts)
}

/// What is there, in words.
pub fn in_words(amounts: &Amounts) -> String {
    let mut all = *amounts;
    let told = NAMES.iter().filter_map(|(name, field, unit)| {
        let value = (*field(&mut all))?;
        Some(match (*name, unit) {
            ("output_bytes", _) => format!("{} of output", size(value)),
            ("wall_secs", _) => format!("{} wall time", span(value)),
            ("cpu_secs", _) => format!("{} CPU time", span(value)),
            ("micro_dollars", _) => format!("${}.{:06}", value / 1_000_000, value % 1_000_000),
            (name, _) => format!("{value} {}", name.replace('_', " ").replace("mib", "MiB")),
        })
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { "-".into() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_has_a_name_and_a_unit() {
        let mut amounts = Amounts::default();
        let all: Vec<&str> = NAMES.iter().map(|(name, _, _)| *name).collect();
        for name in &all {
            set(&mut amounts, &all, name, 2).unwrap();
        }
        for of in [OF_MORE, OF_LIFE] {
            assert!(of.iter().all(|name| set(&mut amounts, of, name, 2).is_ok()));
            assert!(set(&mut amounts, of, "memory_mib", 2).unwrap_err().contains("calls"));
        }
        let json = serde_json::to_value(amounts).unwrap();
        assert_eq!(json.as_object().unwrap().len(), NAMES.len());
        assert_eq!((amounts.wall_ms, amounts.calls), (Some(2000), Some(2)));
        assert!(set(&mut amounts, OF_TASK, "wall_secs", u64::MAX).is_err());
        let words =
            in_words(&Amounts { micro_dollars: Some(1_500_000), calls: Some(3), ..Amounts::default() });
        assert_eq!(words, "$1.500000, 3 calls");
        assert_eq!(in_words(&Amounts::default()), "-");
    }
}
