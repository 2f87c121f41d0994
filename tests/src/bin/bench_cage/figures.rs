//! What was measured, what it has to be, and how it is told.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// `agent start` may take so much longer than libkrun without any jail.
pub const RATIO_PLAIN_MAX: f64 = 1.15;
/// What a VMM may hold in memory beside its guest's.
pub const VMM_KIB_MAX: u64 = 5 * 1024;

/// Times of one thing, in microseconds, in the order they were taken.
#[derive(Debug, Default, Clone)]
pub struct Times(pub Vec<u64>);

impl Times {
    /// Nearest rank: a time that was measured. None without times.
    pub fn percentile_us(&self, percent: usize) -> Option<u64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (percent * sorted.len()).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    /// The median.
    pub fn median_us(&self) -> Option<u64> {
        self.percentile_us(50)
    }

    fn json(&self) -> Value {
        json!({ "median_us": self.median_us(), "p90_us": self.percentile_us(90), "times_us": self.0 })
    }
}

/// Everything of one run.
#[derive(Debug, Default)]
pub struct Figures {
    /// Request for an agent to its answer: the agent's program runs.
    pub agent: Times,
    /// libkrun without a jail, to the same point by the same protocol.
    pub plain: Times,
    /// The same to the verifier's first word.
    pub plain_hello: Times,
    /// libkrun without a jail, the agent's program started by the reporting init.
    pub serial: Times,
    /// QEMU's microvm, to the same point as `serial`.
    pub microvm: Times,
    /// Why something could not be measured.
    pub missing: Vec<String>,
    pub vmm_kib: Option<u64>,
    /// Starts of idle agents of 64 MiB, one after the other, until one was refused.
    pub crowd: Times,
    pub crowd_end: String,
    pub exec: Times,
    /// MB (1,000,000 bytes) a second.
    pub copy_in_mb_s: Option<f64>,
    pub copy_out_mb_s: Option<f64>,
    pub import_mb_s: Option<f64>,
    /// Milliseconds of an agent's start by stage, the median of each, as cage tells them.
    pub stages_ms: Vec<(String, u64)>,
    /// The same of the guest's own, since its kernel started, in microseconds.
    pub guest_us: Vec<(String, u64)>,
}

impl Figures {
    fn ratio(one: &Times, other: &Times) -> Option<f64> {
        let (one, other) = (one.median_us()?, other.median_us()?);
        (other > 0).then(|| one as f64 / other as f64)
    }

    /// Aims that were missed, and what was not measured; empty when all is well.
    pub fn shortfalls(&self) -> Vec<String> {
        let mut found = self.missing.clone();
        match Self::ratio(&self.agent, &self.plain) {
            None => found.push("agent start and plain libkrun were not both measured".into()),
            Some(ratio) if ratio > RATIO_PLAIN_MAX => {
                found.push(format!(
                    "agent start is {ratio:.2} of plain libkrun; the aim is {RATIO_PLAIN_MAX} at most"
                ));
            }
            Some(_) => {}
        }
        match Self::ratio(&self.agent, &self.microvm) {
            None => found.push("agent start and QEMU's microvm were not both measured".into()),
            Some(ratio) if ratio >= 1.0 => {
                found.push(format!("agent start is {ratio:.2} of QEMU's microvm; the aim is to be faster"));
            }
            Some(_) => {}
        }
        match self.vmm_kib {
            None => found.push("the VMM's memory was not measured".into()),
            Some(kib) if kib > VMM_KIB_MAX => {
                found.push(format!(
                    "the VMM holds {kib} KiB beside its guest's memory; the aim is {VMM_KIB_MAX} at most"
                ));
            }
            Some(_) => {}
        }
        found
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("{:<44} {:>6} {:>9} {:>9}\n", "start, ms", "runs", "median", "p90");
        for (name, times) in [
            ("agent start", &self.agent),
            ("libkrun without a jail", &self.plain),
            ("libkrun without a jail, to the first word", &self.plain_hello),
            ("libkrun without a jail, reporting init", &self.serial),
            ("QEMU microvm, reporting init", &self.microvm),
            ("exec of a program that does nothing", &self.exec),
        ] {
            let ms = |us: Option<u64>| us.map_or("-".to_owned(), |us| format!("{:.1}", us as f64 / 1000.0));
            let (median, p90) = (ms(times.median_us()), ms(times.percentile_us(90)));
            text.push_str(&format!("{name:<44} {:>6} {median:>9} {p90:>9}\n", times.0.len()));
        }
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let ends = (self.crowd.0.first(), self.crowd.0.last());
        let crowd = match ends {
            (Some(first), Some(last)) if *first > 0 => Some(*last as f64 / *first as f64),
            _ => None,
        };
        for (name, value) in [
            ("agent start / libkrun without a jail", number(Self::ratio(&self.agent, &self.plain))),
            ("agent start / QEMU microvm", number(Self::ratio(&self.agent, &self.microvm))),
            ("VMM beside its guest's memory, KiB", self.vmm_kib.map_or("-".into(), |kib| kib.to_string())),
            ("idle agents of 64 MiB on 4 GiB", self.crowd.0.len().to_string()),
            ("  start of the last / of the first", number(crowd)),
            ("copy in, MB/s", number(self.copy_in_mb_s)),
            ("copy out, MB/s", number(self.copy_out_mb_s)),
            ("import of an OCI archive, MB/s", number(self.import_mb_s)),
        ] {
            text.push_str(&format!("{name:<44} {value:>26}\n"));
        }
        text.push_str(&format!("  the crowd ended because: {}\n", self.crowd_end));
        let stages: Vec<String> = self.stages_ms.iter().map(|(name, ms)| format!("{name} {ms}")).collect();
        text.push_str(&format!("stages of an agent's start, ms: {}\n", stages.join(", ")));
        let stages: Vec<String> =
            self.guest_us.iter().map(|(name, us)| format!("{name} {}", us / 1000)).collect();
        text.push_str(&format!("of its guest, ms since its kernel began: {}\n", stages.join(", ")));
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "agent": self.agent.json(),
            "plain": self.plain.json(),
            "plain_hello": self.plain_hello.json(),
            "serial": self.serial.json(),
            "microvm": self.microvm.json(),
            "ratio_plain": Self::ratio(&self.agent, &self.plain),
            "ratio_plain_max": RATIO_PLAIN_MAX,
            "ratio_microvm": Self::ratio(&self.agent, &self.microvm),
            "vmm_kib": self.vmm_kib,
            "vmm_kib_max": VMM_KIB_MAX,
            "crowd": { "agents": self.crowd.0.len(), "starts": self.crowd.json(), "end": self.crowd_end },
            "exec": self.exec.json(),
            "copy_in_mb_s": self.copy_in_mb_s,
            "copy_out_mb_s": self.copy_out_mb_s,
            "import_mb_s": self.import_mb_s,
            "stages_ms": self.stages_ms,
            "guest_us": self.guest_us,
            "shortfalls": self.shortfalls(),
        })
    }
}

/// Median of each stage over all starts: how long it took since the stage before. `starts` as `agent.status` lists them.
pub fn stage_medians(starts: &[Value]) -> Result<Vec<(String, u64)>> {
    let mut found: Vec<(String, Times)> = Vec::new();
    for start in starts {
        let mut before = 0;
        for stage in start.as_array().context("stages are a list")? {
            let (name, at) = (stage[0].as_str().context("stage")?, stage[1].as_u64().context("time")?);
            let took = at.saturating_sub(before);
            before = at;
            match found.iter_mut().find(|(known, _)| known == name) {
                Some((_, times)) => times.0.push(took),
                None => found.push((name.to_owned(), Times(vec![took]))),
            }
        }
    }
    Ok(found.into_iter().map(|(name, times)| (name, times.median_us().unwrap_or(0))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Figures {
        Figures {
            agent: Times(vec![115, 300, 100]),
            plain: Times(vec![100, 100, 100]),
            microvm: Times(vec![200]),
            vmm_kib: Some(5120),
            ..Figures::default()
        }
    }

    #[test]
    fn medians_are_of_nearest_rank() {
        assert_eq!(Times(vec![3, 1, 2]).median_us(), Some(2));
        assert_eq!(Times(vec![4, 1, 2, 3]).median_us(), Some(2));
        assert_eq!(Times(vec![4, 1, 2, 3]).percentile_us(90), Some(4));
        assert_eq!(Times(vec![]).median_us(), None);
    }

    #[test]
    fn each_missed_aim_is_named() {
        assert_eq!(sound().shortfalls(), Vec::<String>::new());
        let missed = |change: fn(&mut Figures)| {
            let mut figures = sound();
            change(&mut figures);
            figures.shortfalls().join("; ")
        };
        assert!(missed(|f| f.agent = Times(vec![116])).contains("1.16 of plain"));
        assert!(missed(|f| f.microvm = Times(vec![115])).contains("to be faster"));
        assert!(missed(|f| f.vmm_kib = Some(5121)).contains("5121 KiB"));
        assert!(missed(|f| f.missing.push("no disk".into())).contains("no disk"));
        assert_eq!(Figures::default().shortfalls().len(), 3);
    }

    #[test]
    fn stages_are_told_by_what_each_took() {
        let starts = [json!([["a", 1], ["b", 5]]), json!([["a", 3], ["b", 9]]), json!([["a", 2], ["b", 3]])];
        assert_eq!(stage_medians(&starts).expect("stages"), [("a".to_owned(), 2), ("b".to_owned(), 4)]);
        assert!(stage_medians(&[json!([["a"]])]).is_err());
    }

    #[test]
    fn table_and_json_hold_every_figure() {
        let (table, json) = (sound().table(), sound().json());
        assert!(table.contains("agent start / libkrun without a jail") && table.contains("1.15"));
        assert_eq!(json["ratio_plain"], 1.15);
        assert_eq!(json["crowd"]["agents"], 0);
        assert!(Figures::default().table().contains('-'));
    }
}
