//! Time. Milliseconds since kernel start drive everything; the wall clock only dates log lines.
//!
//! The wall clock is never below the image's own time: files of the image carry the time of its commit, under dm-verity.

use std::os::unix::fs::MetadataExt;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// A file of the image; each of them carries the image's time.
const DATED: &str = "/system/bin/nulld";

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

/// The time of the image, in seconds since 1970: before that this software cannot be running.
pub fn floor_s() -> u64 {
    std::fs::metadata(DATED).ok().and_then(|found| u64::try_from(found.mtime()).ok()).unwrap_or(0)
}

/// What the wall clock was at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtBoot {
    /// The machine's clock was at or after the image's time.
    Kept,
    /// It was before it, at this many milliseconds since 1970, and was set to the image's time.
    Raised { from_unix_ms: u64 },
    /// It was before it, and the kernel did not let it be set.
    Low { from_unix_ms: u64 },
}

impl AtBoot {
    /// For `system.status`, until the clock service knows better.
    pub fn words(self) -> &'static str {
        match self {
            AtBoot::Kept => "the machine's own clock, not compared with any other",
            AtBoot::Raised { .. } => {
                "wrong: the machine's own clock was before the image was built, and was set to that time"
            }
            AtBoot::Low { .. } => "wrong: before the image was built, and it cannot be set",
        }
    }
}

/// Sets the wall clock up to the image's time if it is behind it.
pub fn raise_to_floor() -> AtBoot {
    let (floor_s, from_unix_ms) = (floor_s(), unix_ms());
    if from_unix_ms >= floor_s.saturating_mul(1000) {
        return AtBoot::Kept;
    }
    let floor = Timespec { tv_sec: i64::try_from(floor_s).unwrap_or(0), tv_nsec: 0 };
    match clock_settime(ClockId::Realtime, floor) {
        Ok(()) => AtBoot::Raised { from_unix_ms },
        Err(_) => AtBoot::Low { from_unix_ms },
    }
}
