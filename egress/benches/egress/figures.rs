//! What was measured, what it has to be, and how it is told.

use crate::field::Kind;
use serde_json::{Value, json};

/// Throughput through the proxy, of plain NAT's.
const THROUGHPUT_MIN: f64 = 0.9;
/// What the proxy may add to a small request's round trip.
const ADDED_US_MAX: f64 = 100.0;

/// Figures of one way, in the order they were taken.
#[derive(Debug, Default)]
pub struct Way {
    pub down_mb_s: Vec<f64>,
    pub up_mb_s: Vec<f64>,
    pub trip_us: Vec<f64>,
    pub connections_s: Vec<f64>,
}

/// Everything of one run.
#[derive(Debug, Default)]
pub struct Figures {
    pub proxy: Way,
    pub nat: Way,
    pub dns_s: Vec<f64>,
    pub dnsmasq_s: Vec<f64>,
    pub idle: usize,
    pub idle_kib: Option<u64>,
    pub idle_kernel_kib: Option<u64>,
    /// What could not be measured, and why.
    pub missing: Vec<String>,
}

/// The middle one of all: a figure that was measured.
fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

fn ratio(one: &[f64], other: &[f64]) -> Option<f64> {
    Some(median(one)? / median(other)?)
}

impl Figures {
    /// Of one way.
    pub fn of(&mut self, kind: Kind) -> &mut Way {
        match kind {
            Kind::Proxy => &mut self.proxy,
            Kind::Nat => &mut self.nat,
        }
    }

    fn added_us(&self) -> Option<f64> {
        Some(median(&self.proxy.trip_us)? - median(&self.nat.trip_us)?)
    }

    /// Aims that were missed, and what was not measured; empty when all is well.
    pub fn shortfalls(&self) -> Vec<String> {
        let mut found = self.missing.clone();
        let (down, up) = (
            ratio(&self.proxy.down_mb_s, &self.nat.down_mb_s),
            ratio(&self.proxy.up_mb_s, &self.nat.up_mb_s),
        );
        for (what, ratio) in [("to the guest", down), ("from the guest", up)] {
            match ratio {
                None => found.push(format!("throughput {what} was not measured")),
                Some(ratio) if ratio < THROUGHPUT_MIN => {
                    found.push(format!(
                        "throughput {what} is {ratio:.2} of plain NAT's; the aim is {THROUGHPUT_MIN}"
                    ));
                }
                Some(_) => {}
            }
        }
        match self.added_us() {
            None => found.push("latency was not measured".into()),
            Some(us) if us > ADDED_US_MAX => {
                found.push(format!("the proxy adds {us:.0} us; the aim is below {ADDED_US_MAX:.0}"));
            }
            Some(_) => {}
        }
        match ratio(&self.dns_s, &self.dnsmasq_s) {
            None => found.push("DNS was not measured".into()),
            Some(ratio) if ratio <= 1.0 => {
                found.push(format!("DNS is {ratio:.2} of dnsmasq; the aim is to be faster"))
            }
            Some(_) => {}
        }
        found
    }

    /// For people.
    pub fn table(&self) -> String {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        let mut text = format!("{:<36} {:>12} {:>12} {:>8}\n", "medians", "egress", "peer", "ratio");
        let (proxy, nat) = (&self.proxy, &self.nat);
        for (name, own, peer) in [
            ("to the guest, MB/s (NAT)", &proxy.down_mb_s, &nat.down_mb_s),
            ("from the guest, MB/s (NAT)", &proxy.up_mb_s, &nat.up_mb_s),
            ("round trip, us (NAT)", &proxy.trip_us, &nat.trip_us),
            ("connections/s (NAT)", &proxy.connections_s, &nat.connections_s),
            ("DNS questions/s (dnsmasq)", &self.dns_s, &self.dnsmasq_s),
        ] {
            let ratio = ratio(own, peer).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let (own, peer) = (number(median(own)), number(median(peer)));
            text += &format!("{name:<36} {own:>12} {peer:>12} {ratio:>8}\n");
        }
        let each = |kib: Option<u64>| number(kib.map(|kib| kib as f64 / self.idle.max(1) as f64));
        let (own, kernel) = (each(self.idle_kib), each(self.idle_kernel_kib));
        text + &format!(
            "{} idle connections: {own} KiB each in egress, {kernel} in the kernel (all four ends)\n",
            self.idle
        )
    }

    /// For programs, with every single figure.
    pub fn json(&self) -> Value {
        let way = |way: &Way| {
            json!({
                "down_mb_s": way.down_mb_s, "up_mb_s": way.up_mb_s, "connections_s": way.connections_s,
                "trip_median_us": median(&way.trip_us),
            })
        };
        json!({
            "egress": way(&self.proxy), "nat": way(&self.nat), "added_us": self.added_us(),
            "ratio_down": ratio(&self.proxy.down_mb_s, &self.nat.down_mb_s),
            "ratio_up": ratio(&self.proxy.up_mb_s, &self.nat.up_mb_s),
            "dns_s": self.dns_s, "dnsmasq_s": self.dnsmasq_s, "ratio_dns": ratio(&self.dns_s, &self.dnsmasq_s),
            "idle": { "connections": self.idle, "egress_kib": self.idle_kib, "kernel_kib": self.idle_kernel_kib },
            "shortfalls": self.shortfalls(),
        })
    }
}
