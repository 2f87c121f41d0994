//! What the benchmark decides, without any I/O: the order of the boots, the time in a peer's words, percentiles, the verdict.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// The aim: NullBox's median under this part of the peer's.
pub const RATIO_P50_MAX: f64 = 0.25;

/// Which of the two is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    NullBox,
    Debian,
}

impl Side {
    /// The name in tables and progress.
    pub fn name(self) -> &'static str {
        match self {
            Side::NullBox => "NullBox",
            Side::Debian => "Debian",
        }
    }
}

/// The order of the boots: the peer's lie evenly among NullBox's, so that a slow quarter of an hour of the machine meets both.
pub fn schedule(boots: usize, peers: usize) -> Vec<Side> {
    let mut order = Vec::with_capacity(boots + peers);
    let mut done = 0;
    for boot in 1..=boots {
        order.push(Side::NullBox);
        while done < boot * peers / boots {
            order.push(Side::Debian);
            done += 1;
        }
    }
    order
}

/// Kernel start to multi-user.target in milliseconds, from `systemd-analyze time`: the kernel's and the initrd's part of its first
/// line, and of its second when the target was reached after that. Firmware and loader, where it lists them, are not counted.
pub fn peer_ms(report: &str) -> Result<u64> {
    let line = |start: &str| {
        let found = report.lines().find_map(|line| line.trim().strip_prefix(start));
        found.with_context(|| format!("no `{start}` in what systemd-analyze printed"))
    };
    let parts = line("Startup finished in ")?;
    let (parts, _) = parts.split_once(" = ").with_context(|| format!("no sum in `{parts}`"))?;
    let mut total = Duration::ZERO;
    let mut has_kernel = false;
    for part in parts.split(" + ") {
        let (time, name) = part.rsplit_once(" (").with_context(|| format!("`{part}` has no name"))?;
        match name {
            "kernel)" => has_kernel = true,
            "initrd)" => {}
            "firmware)" | "loader)" | "userspace)" => continue,
            _ => bail!("`{part}` is no part of a start that is known here"),
        }
        total += systemd_time(time)?;
    }
    ensure!(has_kernel, "no time of the kernel in `{parts}`");
    let reached = line("multi-user.target reached after ")?;
    let reached = reached.strip_suffix(" in userspace.").with_context(|| format!("`{reached}`"))?;
    Ok(u64::try_from((total + systemd_time(reached)?).as_millis())?)
}

/// A time as systemd prints it: `1min 2.345s`, `812ms`, `90us`.
fn systemd_time(text: &str) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for word in text.split_whitespace() {
        let (number, unit) = word.split_at(word.find(char::is_alphabetic).unwrap_or(word.len()));
        let unit_s = match unit {
            "min" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            _ => bail!("`{word}` is no time with min, s, ms or us"),
        };
        let number: f64 = number.parse().with_context(|| format!("`{word}` is no time"))?;
        total += Duration::try_from_secs_f64(number * unit_s).with_context(|| format!("`{word}`"))?;
    }
    ensure!(!total.is_zero(), "`{text}` is no time");
    Ok(total)
}

/// The boots of one side.
#[derive(Debug, Default)]
pub struct Sample {
    /// Of the boots that reached ready, in their order.
    pub times_ms: Vec<u64>,
    pub failures: usize,
}

impl Sample {
    /// The smallest time that at least `percent` of the boots did not exceed (nearest rank); none without a boot that succeeded.
    pub fn percentile_ms(&self, percent: usize) -> Option<u64> {
        let mut sorted = self.times_ms.clone();
        sorted.sort_unstable();
        let rank = (percent * sorted.len()).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    fn json(&self) -> Value {
        json!({
            "boots": self.times_ms.len() + self.failures,
            "failures": self.failures,
            "p50_ms": self.percentile_ms(50),
            "p99_ms": self.percentile_ms(99),
            "min_ms": self.percentile_ms(0),
            "max_ms": self.percentile_ms(100),
            "times_ms": self.times_ms,
        })
    }

    fn row(&self, name: &str) -> String {
        let ms = |percent| self.percentile_ms(percent).map_or("-".to_owned(), |ms| ms.to_string());
        let boots = self.times_ms.len() + self.failures;
        let (p50, p99, min, max) = (ms(50), ms(99), ms(0), ms(100));
        format!("{name:<34} {boots:>6} {:>7} {p50:>7} {p99:>7} {min:>7} {max:>7}\n", self.failures)
    }
}

/// Both sides.
#[derive(Debug, Default)]
pub struct Comparison {
    pub nullbox: Sample,
    pub debian: Sample,
    /// What the peer runs, in its own words.
    pub peer: String,
}

impl Comparison {
    /// The boots of one side.
    pub fn side(&mut self, side: Side) -> &mut Sample {
        match side {
            Side::NullBox => &mut self.nullbox,
            Side::Debian => &mut self.debian,
        }
    }

    /// NullBox's percentile as a part of the peer's.
    pub fn ratio(&self, percent: usize) -> Option<f64> {
        let (own, peer) = (self.nullbox.percentile_ms(percent)?, self.debian.percentile_ms(percent)?);
        (peer > 0).then(|| own as f64 / peer as f64)
    }

    /// Why the run did not show what it has to; empty when it did.
    pub fn shortfalls(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, sample) in [("NullBox", &self.nullbox), ("Debian", &self.debian)] {
            if sample.failures > 0 {
                found.push(format!("{} boots of {name} did not reach ready", sample.failures));
            }
        }
        match self.ratio(50) {
            None => {
                found.push("there is nothing to compare: each side needs a boot that reached ready".into())
            }
            Some(ratio) if ratio > RATIO_P50_MAX => {
                found.push(format!("p50 is {ratio:.3} of the peer's; the aim is {RATIO_P50_MAX} at most"));
            }
            Some(_) => {}
        }
        found
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<34} {:>6} {:>7} {:>7} {:>7} {:>7} {:>7}\n",
            "kernel start to ready, ms", "boots", "failed", "p50", "p99", "min", "max"
        );
        table.push_str(&self.nullbox.row("NullBox"));
        table.push_str(&self.debian.row(&format!("Debian 12, {}", self.peer)));
        let ratio = |percent| self.ratio(percent).map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        let (p50, p99) = (ratio(50), ratio(99));
        table.push_str(&format!("{:<34} {:>6} {:>7} {p50:>7} {p99:>7}\n", "NullBox / Debian", "", ""));
        table
    }

    /// For programs; times in milliseconds, ratios as fractions.
    pub fn json(&self) -> Value {
        json!({
            "nullbox": self.nullbox.json(),
            "debian": self.debian.json(),
            "peer": self.peer,
            "ratio_p50": self.ratio(50),
            "ratio_p99": self.ratio(99),
            "ratio_p50_max": RATIO_P50_MAX,
            "shortfalls": self.shortfalls(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(times_ms: &[u64], failures: usize) -> Sample {
        Sample { times_ms: times_ms.to_vec(), failures }
    }

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let hundred = sample(&hundred, 0);
        assert_eq!([0, 1, 50, 99, 100].map(|p| hundred.percentile_ms(p)), [1, 1, 50, 99, 100].map(Some));
        // The usual worked example: 15, 20, 35, 40, 50.
        let five = sample(&[35, 50, 15, 40, 20], 0);
        assert_eq!([5, 30, 40, 50, 100].map(|p| five.percentile_ms(p)), [15, 20, 20, 35, 50].map(Some));
        assert_eq!(sample(&[7], 0).percentile_ms(99), Some(7));
        assert_eq!(sample(&[], 3).percentile_ms(50), None);
    }

    #[test]
    fn percentile_is_the_smallest_time_that_covers_its_part() {
        for length in 1..=60_u64 {
            let times: Vec<u64> = (0..length).map(|i| i * 37 % 61).collect();
            let sample = sample(&times, 0);
            for percent in 1..=100 {
                let found = sample.percentile_ms(percent).expect("there are times");
                let covered = |limit: u64, strict: bool| {
                    times.iter().filter(|t| if strict { **t < limit } else { **t <= limit }).count() * 100
                };
                assert!(covered(found, false) >= percent * times.len(), "{percent} % of {length}");
                assert!(covered(found, true) < percent * times.len(), "{percent} % of {length}");
            }
        }
    }

    #[test]
    fn peers_lie_evenly_among_the_boots() {
        use Side::{Debian as D, NullBox as N};
        assert_eq!(schedule(5, 2), [N, N, N, D, N, N, D]);
        assert_eq!(schedule(1, 3), [N, D, D, D]);
        assert_eq!(schedule(3, 0), [N, N, N]);
        let long = schedule(50, 10);
        assert!(long.chunks(6).all(|chunk| chunk == [N, N, N, N, N, D]), "{long:?}");
        for (boots, peers) in [(7, 3), (50, 11), (1, 1), (1000, 999)] {
            let order = schedule(boots, peers);
            assert_eq!(order.iter().filter(|side| **side == D).count(), peers, "{boots} {peers}");
            assert_eq!(order.len(), boots + peers);
        }
    }

    #[test]
    fn peers_time_is_kernel_initrd_and_userspace_up_to_the_target() {
        let report = "noise\r\nStartup finished in 7.188s (kernel) + 10.027s (userspace) = 17.216s \r\n\
                      multi-user.target reached after 9.645s in userspace.\r\n";
        assert_eq!(peer_ms(report).expect("a whole report"), 16_833);
        let report = "Startup finished in 3.1s (firmware) + 900ms (loader) + 812ms (kernel) + 1.5s (initrd) + \
                      1min 2.345s (userspace) = 1min 8.657s \nmulti-user.target reached after 1min 2.340s in userspace.\n";
        assert_eq!(peer_ms(report).expect("a whole report"), 812 + 1_500 + 62_340);
    }

    #[test]
    fn report_with_a_part_missing_or_unknown_is_refused() {
        let target = "\nmulti-user.target reached after 2s in userspace.\n";
        for (report, reason) in [
            (String::new(), "no `Startup finished in `"),
            (target.to_owned(), "no `Startup finished in `"),
            (format!("Startup finished in 1s (kernel) + 2s (userspace){target}"), "no sum"),
            (format!("Startup finished in 2s (userspace) = 2s{target}"), "no time of the kernel"),
            (format!("Startup finished in 1s (kernel) + 2s (suspend) = 3s{target}"), "no part of a start"),
            (format!("Startup finished in 1h (kernel) + 2s (userspace) = 3s{target}"), "`1h` is no time"),
            (format!("Startup finished in s (kernel) + 2s (userspace) = 3s{target}"), "`s` is no time"),
            (format!("Startup finished in -1s (kernel) + 2s (userspace) = 3s{target}"), "`-1s`"),
            ("Startup finished in 1s (kernel) + 2s (userspace) = 3s\n".to_owned(), "no `multi-user.target"),
            (
                "Startup finished in 1s (kernel) = 1s\ngraphical.target reached after 1s in userspace."
                    .to_owned(),
                "no `multi-user.target",
            ),
        ] {
            let error = format!("{:#}", peer_ms(&report).expect_err(&report));
            assert!(error.contains(reason), "{report:?}: {error}");
        }
    }

    #[test]
    fn failed_boot_or_a_ratio_above_the_aim_is_a_shortfall() {
        let of = |nullbox, debian| Comparison { nullbox, debian, peer: String::new() }.shortfalls();
        assert_eq!(of(sample(&[250], 0), sample(&[1000], 0)), Vec::<String>::new());
        assert!(of(sample(&[251], 0), sample(&[1000], 0))[0].contains("0.251"));
        assert!(of(sample(&[250], 1), sample(&[1000], 0))[0].contains("1 boots of NullBox"));
        assert!(of(sample(&[250], 0), sample(&[1000], 2))[0].contains("2 boots of Debian"));
        assert_eq!(of(sample(&[], 5), sample(&[1000], 0)).len(), 2);
        assert!(of(sample(&[250], 0), sample(&[], 0))[0].contains("nothing to compare"));
    }

    #[test]
    fn table_and_json_name_every_figure() {
        let comparison = Comparison {
            nullbox: sample(&[300, 200, 400], 1),
            debian: sample(&[2000, 1000], 0),
            peer: "6.1.0-cloud".into(),
        };
        let words: Vec<Vec<String>> = comparison
            .table()
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        assert_eq!(words[1], ["NullBox", "4", "1", "300", "400", "200", "400"]);
        assert_eq!(words[2], ["Debian", "12,", "6.1.0-cloud", "2", "0", "1000", "2000", "1000", "2000"]);
        assert_eq!(words[3], ["NullBox", "/", "Debian", "0.300", "0.200"]);
        let json = comparison.json();
        assert_eq!(json["nullbox"]["times_ms"], json!([300, 200, 400]));
        assert_eq!((json["debian"]["p99_ms"].as_u64(), json["ratio_p50"].as_f64()), (Some(2000), Some(0.3)));
        assert!(
            Comparison::default().table().contains('-')
                && Comparison::default().json()["ratio_p50"].is_null()
        );
    }
}
