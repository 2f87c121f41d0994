//! Time. Milliseconds since kernel start drive everything; the wall clock only dates log lines.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since kernel start (CLOCK_MONOTONIC).
pub fn now_ms() -> u64 {
    millis(ClockId::Monotonic)
}

/// Milliseconds since 1970 (CLOCK_REALTIME).
pub fn unix_ms() -> u64 {
    millis(ClockId::Realtime)
}

fn millis(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1000 + nanos / 1_000_000
}
