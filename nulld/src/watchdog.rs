//! The hardware watchdog (kernel doc watchdog/watchdog-api.rst): restarts a node whose nulld no longer turns its loop.
//!
//! Must hold: only [`Watchdog::turn`], which the loop calls, gives a sign of life; after an order to go down the signs end when
//! the order's time is over, so that a stop that hangs is ended as well. Must never: write the letter that disarms it (`V`).
//!
//! A crash of nulld leaves the device open and armed; the nulld that begins again takes it up.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use abi::limits;
use rustix::fs::{Mode, OFlags};

use crate::sys;

/// Devices as the kernel lists them.
const CLASS: &str = "/sys/class/watchdog";
/// A sign of life is any byte but `V`.
const ALIVE: &[u8] = b"\0";

/// The open device, if there is one.
#[derive(Debug, Default)]
pub struct Watchdog {
    device: Option<OwnedFd>,
    signs: Signs,
    says: String,
}

impl Watchdog {
    /// Opens the first one that can be had, hardware before software, and sets its time. From here on it is armed. A device
    /// that was kept over a crash of nulld is taken up instead.
    pub fn open(kept: Option<OwnedFd>) -> Watchdog {
        let found = list(Path::new(CLASS));
        if let Some(device) = kept {
            let path = fs::read_link(format!("/proc/self/fd/{}", device.as_raw_fd())).unwrap_or_default();
            if let Some(one) = found.iter().find(|one| path == Path::new("/dev").join(&one.name)) {
                return Watchdog::arm(device, one);
            }
        }
        if found.is_empty() {
            return Watchdog::none("this machine has none".to_owned());
        }
        let mut refusals = Vec::new();
        for one in found {
            let path = format!("/dev/{}", one.name);
            match rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(device) => return Watchdog::arm(device, &one),
                Err(error) => refusals.push(format!("{path}: {error}")),
            }
        }
        Watchdog::none(refusals.join(", "))
    }

    /// The open device, to be kept.
    pub fn device(&self) -> Option<&OwnedFd> {
        self.device.as_ref()
    }

    fn none(why: String) -> Watchdog {
        Watchdog { says: format!("none: {why}"), ..Watchdog::default() }
    }

    fn arm(device: OwnedFd, found: &Found) -> Watchdog {
        // A driver that takes no time of ours says which it has; one that says nothing is taken at the shortest usual time.
        let timeout_s = sys::watchdog_set_timeout(&device, limits::WATCHDOG_S)
            .or_else(|_| sys::watchdog_timeout(&device))
            .unwrap_or(TIMEOUT_S_UNKNOWN)
            .max(1);
        let identity = sys::watchdog_identity(&device).unwrap_or_else(|_| found.name.clone());
        let kind = if found.is_hardware { "hardware" } else { "software" };
        Watchdog {
            device: Some(device),
            signs: Signs { timeout_ms: u64::from(timeout_s) * 1000, ..Signs::default() },
            says: format!("{identity} ({kind}), {timeout_s} s"),
        }
    }

    /// Called by each turn of the loop: a sign of life when one is due. The answer is a device that stopped taking them, once.
    pub fn turn(&mut self, now_ms: u64) -> Option<String> {
        let device = self.device.as_ref()?;
        if !self.signs.is_due(now_ms) {
            return None;
        }
        self.signs.last_ms = Some(now_ms);
        let error = rustix::io::write(device, ALIVE).err()?;
        let first = !self.signs.is_failing;
        self.signs.is_failing = true;
        self.says = format!("{}, which takes no sign of life: {error}", self.says);
        first.then(|| self.says.clone())
    }

    /// The node was ordered to go down: signs of life end at this time, in milliseconds since kernel start.
    pub fn end_at(&mut self, until_ms: u64) {
        self.signs.until_ms = Some(until_ms);
    }

    /// When the loop must turn next, in milliseconds since kernel start.
    pub fn next_deadline(&self) -> Option<u64> {
        self.device.as_ref().and_then(|_| self.signs.next_ms())
    }

    /// For `system.status`: what it is and its time, or why there is none.
    pub fn describe(&self) -> String {
        self.says.clone()
    }
}

/// Seconds assumed of a driver that does not say.
const TIMEOUT_S_UNKNOWN: u32 = 10;

/// When signs of life are due.
#[derive(Debug, Default)]
struct Signs {
    timeout_ms: u64,
    last_ms: Option<u64>,
    until_ms: Option<u64>,
    is_failing: bool,
}

impl Signs {
    fn next_ms(&self) -> Option<u64> {
        let next = self.last_ms.map_or(0, |last| last + self.timeout_ms / 3);
        // A device that takes none is tried at the same pace; after the end there is no next one.
        self.until_ms.is_none_or(|until| next < until).then_some(next)
    }

    fn is_due(&self, now_ms: u64) -> bool {
        let is_over = self.until_ms.is_some_and(|until| now_ms >= until);
        !is_over && self.next_ms().is_some_and(|next| now_ms >= next)
    }
}

/// A watchdog of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    /// `watchdog0`
    name: String,
    is_hardware: bool,
}

/// All, in the order to try: hardware first (softdog has no device behind it), then by number.
fn list(class: &Path) -> Vec<Found> {
    let mut found: Vec<(bool, u32, String)> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let number = name.strip_prefix("watchdog")?.parse().ok()?;
            Some((!class.join(&name).join("device").exists(), number, name))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(is_software, _, name)| Found { name, is_hardware: !is_software }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(timeout_ms: u64) -> Signs {
        Signs { timeout_ms, ..Signs::default() }
    }

    /// Turns a loop that wakes at each deadline and every `step_ms`; the times of the signs it gave.
    fn run(signs: &mut Signs, step_ms: u64, end_ms: u64) -> Vec<u64> {
        let mut given = Vec::new();
        let mut now = 1;
        while now < end_ms {
            if signs.is_due(now) {
                signs.last_ms = Some(now);
                given.push(now);
            }
            now = signs.next_ms().filter(|next| *next > now).unwrap_or(u64::MAX).min(now + step_ms);
        }
        given
    }

    #[test]
    fn signs_of_life_come_every_third_of_the_time_however_often_the_loop_turns() {
        for step_ms in [1, 700, 60_000] {
            let given = run(&mut signs(60_000), step_ms, 600_000);
            assert!(given.len() <= 31, "{} signs", given.len());
            assert!(given.windows(2).all(|pair| pair[1] - pair[0] >= 20_000));
            assert!(given.windows(2).all(|pair| pair[1] - pair[0] <= 20_000 + step_ms.min(20_000)));
        }
    }

    #[test]
    fn after_an_order_the_signs_end_with_its_time() {
        let mut signs = signs(60_000);
        signs.until_ms = Some(130_000);
        let given = run(&mut signs, 100, 600_000);
        assert!(given.last().is_some_and(|last| (100_000..130_000).contains(last)), "{given:?}");
        assert_eq!(signs.next_ms(), None, "the loop need not wake for it");
    }

    #[test]
    fn hardware_comes_before_software_and_numbers_count_as_numbers() {
        let dir = std::env::temp_dir().join(format!("nulld-watchdog-{}", std::process::id()));
        for name in ["watchdog0", "watchdog10/device", "watchdog2/device", "wdt7", "watchdogs"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let order: Vec<String> = list(&dir).into_iter().map(|found| found.name).collect();
        assert_eq!(order, ["watchdog2", "watchdog10", "watchdog0"]);
        assert!(!list(&dir)[2].is_hardware);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_machine_without_one_says_so_and_wakes_nobody() {
        let mut none = Watchdog::none("this machine has none".into());
        assert_eq!((none.turn(1_000_000), none.next_deadline()), (None, None));
        assert_eq!(none.describe(), "none: this machine has none");
    }

    #[test]
    fn a_device_that_takes_no_sign_is_told_once() {
        // Reading ends refuse to be written.
        let (refuses, _write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut watchdog =
            Watchdog { device: Some(refuses), signs: signs(3_000), says: "a test, 3 s".into() };
        assert!(watchdog.turn(5_000).is_some_and(|why| why.contains("takes no sign of life")));
        assert_eq!(watchdog.turn(9_000), None);
        assert_eq!(watchdog.next_deadline(), Some(10_000));
        // And the letter that disarms is never among what is written.
        assert!(!ALIVE.contains(&b'V'));
    }
}
