//! nulld's own crashes: how it leaves, what it knows when it begins again, and when it gives up trying.
//!
//! A panic or a fault of any thread replaces the process by a fresh nulld (execve(2) keeps the pid, the children and the
//! descriptors), which takes the running services over ([`crate::saved`]). Two crashes in a row cost a growing pause;
//! NULLD_CRASHES_MAX within NULLD_CRASH_WINDOW_MS, and nulld holds: it starts, stops and hands over nothing, and says why.
//!
//! Must hold: the count of crashes passes through the arguments of the exec, so that a nulld that crashes before it has read
//! its state is counted too.

use std::ffi::CString;
use std::fmt::Write as _;
use std::os::fd::RawFd;

use abi::limits;

use crate::sys::{self, Text};

/// First argument of a nulld that begins again.
const WORD: &str = "crashed";
/// Times of crashes that are passed on.
const TIMES_MAX: usize = 8;
/// Pauses before the second and each further crash within the window is worked on, doubled each time.
const PAUSE_MS_MIN: u64 = 500;
/// Far below the time of the hardware watchdog.
const PAUSE_MS_MAX: u64 = 8_000;

/// The crashes of this boot so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub count: u32,
    /// Of the last ones, in milliseconds since kernel start.
    times_ms: Vec<u64>,
    /// Too many at one time. It stays so until the node is restarted.
    pub is_held: bool,
}

/// What the nulld that crashed last passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    pub reason: String,
    pub history: History,
    /// Number of the descriptor of the state file.
    pub state: Option<RawFd>,
}

/// Reads the arguments. None: nulld was started by the initramfs, not by itself.
pub fn parse(arguments: &[String]) -> Option<Crash> {
    let mut words = arguments.iter().skip(1);
    if words.next()? != WORD {
        return None;
    }
    let reason = words.next().cloned().unwrap_or_default();
    let mut numbers = words.next().map(String::as_str).unwrap_or_default().split(' ');
    let count = numbers.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    let was_held = numbers.next() == Some("held");
    let times_ms: Vec<u64> = numbers.filter_map(|time| time.parse().ok()).collect();
    let state = words.next().and_then(|number| number.parse().ok());
    let mut history = History { count, times_ms, is_held: was_held };
    history.is_held |= history.recent() >= limits::NULLD_CRASHES_MAX as usize;
    Some(Crash { reason, history, state })
}

impl History {
    /// Crashes within the window before the last one, that one included.
    fn recent(&self) -> usize {
        let Some(last) = self.times_ms.last() else { return 0 };
        let begin = last.saturating_sub(limits::NULLD_CRASH_WINDOW_MS);
        self.times_ms.iter().filter(|time| (begin..=*last).contains(*time)).count()
    }

    /// How long to wait before going on, so that crashes in a row do not burn the processor.
    pub fn pause_ms(&self) -> u64 {
        match u32::try_from(self.recent()).unwrap_or(u32::MAX) {
            0 | 1 => 0,
            crashes => (PAUSE_MS_MIN << (crashes - 2).min(16)).min(PAUSE_MS_MAX),
        }
    }

    /// Whether holding did not help: the state itself may be what nulld crashes on.
    pub fn is_hopeless(&self) -> bool {
        self.recent() > 2 * limits::NULLD_CRASHES_MAX as usize
    }

    /// Why nulld holds, in words, if it does.
    pub fn held(&self) -> Option<String> {
        self.is_held.then(|| {
            format!(
                "nulld crashed {} times in this boot, {} times within {} s at the worst: it starts, stops and hands over \
                 nothing more; look at `nullctl system logs nulld`, then `nullctl system reboot`",
                self.count,
                limits::NULLD_CRASHES_MAX,
                limits::NULLD_CRASH_WINDOW_MS / 1000,
            )
        })
    }

    /// For the next crash, whose time the handler adds.
    fn legacy(&self) -> String {
        let mut text = format!("{} {}", self.count + 1, if self.is_held { "held" } else { "sound" });
        let skipped = self.times_ms.len().saturating_sub(TIMES_MAX - 1);
        for time in self.times_ms.iter().skip(skipped) {
            let _ = write!(text, " {time}"); // a String takes everything
        }
        text
    }
}

/// From now on a panic or a fault of any thread makes nulld begin again. Once.
pub fn arm(history: &History) -> std::io::Result<()> {
    sys::catch_faults(CString::new(history.legacy()).map_err(std::io::Error::other)?)?;
    std::panic::set_hook(Box::new(|panic| {
        // Nothing is allocated: memory may be what ran out.
        let mut reason = Text::new();
        reason.push(b"panic ");
        let _ = write!(reason, "{panic}"); // a Text cuts and takes everything
        sys::begin_again(&reason)
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the next nulld reads after a crash at this time.
    fn after(history: &History, ms: u64) -> Crash {
        let line = format!("{} {ms}", history.legacy());
        assert!(line.len() < 255, "it fits what the handler can hold: {line}");
        parse(&["nulld".into(), WORD.into(), "why".into(), line, "7".into()]).unwrap()
    }

    #[test]
    fn crashes_count_through_the_arguments() {
        assert_eq!(parse(&["/system/bin/nulld".into()]), None);
        let first = after(&History::default(), 1_000);
        assert_eq!((first.history.count, first.reason.as_str(), first.state), (1, "why", Some(7)));
        assert_eq!((first.history.is_held, first.history.pause_ms()), (false, 0));
        let second = after(&first.history, 2_000).history;
        assert_eq!((second.count, second.is_held, second.pause_ms()), (2, false, PAUSE_MS_MIN));
        let third = after(&second, 3_000).history;
        assert!(third.is_held && !third.is_hopeless() && third.held().unwrap().contains("system reboot"));
    }

    #[test]
    fn crashes_far_apart_never_hold() {
        let mut history = History::default();
        for n in 1..1_000u64 {
            history = after(&history, n * limits::NULLD_CRASH_WINDOW_MS).history;
            assert!(!history.is_held && history.times_ms.len() <= TIMES_MAX, "{n}");
        }
        assert_eq!(history.count, 999);
    }

    #[test]
    fn holding_lasts_and_pauses_are_bounded() {
        let mut history = History::default();
        let mut now = u64::MAX / 4; // the largest numbers fit, too
        for _ in 0..100 {
            history = after(&history, now).history;
            now += 10;
        }
        assert!(history.is_held && history.is_hopeless() && history.pause_ms() == PAUSE_MS_MAX);
        assert!(after(&history, now + 10 * limits::NULLD_CRASH_WINDOW_MS).history.is_held);
    }

    #[test]
    fn broken_arguments_count_as_one_crash_without_a_state() {
        for words in [vec![], vec!["x", "y z", "w"], vec!["", "", "-"]] {
            let mut arguments = vec!["nulld".to_owned(), WORD.to_owned()];
            arguments.extend(words.into_iter().map(str::to_owned));
            let crash = parse(&arguments).unwrap();
            assert_eq!((crash.history.count, crash.history.is_held, crash.state), (1, false, None));
        }
    }
}
