//! The guest's wall clock, which is the host's: set at the start, and stepped after the guest or the host's clock stood still.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// A smaller difference is the frame's own way through the device: a step would only disturb.
const STEP_NS: u64 = 100_000_000;

/// Sets the clock.
pub fn set(unix_ns: u64) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: (unix_ns / 1_000_000_000) as i64, tv_nsec: (unix_ns % 1_000_000_000) as _ };
    clock_settime(ClockId::Realtime, time)
}

/// Sets the clock if it is wrong by more than 100 ms.
pub fn correct(unix_ns: u64) -> rustix::io::Result<()> {
    if is_off(now_ns(), unix_ns) { set(unix_ns) } else { Ok(()) }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    (now.tv_sec.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

fn is_off(now_ns: u64, right_ns: u64) -> bool {
    now_ns.abs_diff(right_ns) > STEP_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_difference_that_shows_is_a_step() {
        let now = 1_800_000_000_000_000_000;
        assert!(!is_off(now, now) && !is_off(now, now + STEP_NS) && !is_off(now + STEP_NS, now));
        assert!(is_off(now, now + STEP_NS + 1) && is_off(now + STEP_NS + 1, now) && is_off(0, now));
    }
}
