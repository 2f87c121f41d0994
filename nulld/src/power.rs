//! Going down: in which order, within which time, and the last system call.
//!
//! Must hold: every wait is bounded, so an order always ends in reboot(2). Must never: skip the sync for a service that
//! does not stop.

use std::sync::mpsc;
use std::time::Duration;

use abi::limits;
use rustix::system::RebootCommand;

use crate::mounts;

/// Time for the answer of `system.poweroff` to leave before the services that carry it are stopped.
pub const ANSWER_MS: u64 = 300;
/// How long the ledger is kept for events that are under way.
pub const LEDGER_MS_MAX: u64 = 3_000;

/// What was ordered, by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub action: Action,
    pub by: String,
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Reboot,
    Poweroff,
}

impl Action {
    /// The word in the ledger and on the console.
    pub fn name(self) -> &'static str {
        match self {
            Action::Reboot => "reboot",
            Action::Poweroff => "poweroff",
        }
    }
}

impl Order {
    pub fn reboot(by: String) -> Order {
        Order { action: Action::Reboot, by }
    }

    pub fn poweroff(by: String) -> Order {
        Order { action: Action::Poweroff, by }
    }
}

/// A node on its way down.
#[derive(Debug)]
pub struct GoingDown {
    pub order: Order,
    pub since_ms: u64,
}

/// What the loop must do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet; look again at this time.
    Wait(u64),
    /// Stop the services that none needs any more; `keep_ledger`: but not the ledger.
    Stop { keep_ledger: bool },
    /// All have ended, or their time is up: kill the rest and go.
    Finish { in_time: bool },
}

/// Pure: what to do at a time.
pub fn step(since_ms: u64, now_ms: u64, services_over: bool, ledger_idle: bool) -> Step {
    let elapsed = now_ms.saturating_sub(since_ms);
    if elapsed >= limits::SHUTDOWN_MS_MAX {
        return Step::Finish { in_time: services_over };
    }
    if services_over {
        return Step::Finish { in_time: true };
    }
    if elapsed < ANSWER_MS {
        return Step::Wait(since_ms + ANSWER_MS);
    }
    Step::Stop { keep_ledger: !ledger_idle && elapsed < LEDGER_MS_MAX }
}

/// Writes everything out and lets go of /state. Says how it went; gives up after SYNC_MS_MAX.
pub fn release_disks() -> String {
    let (sender, receiver) = mpsc::channel();
    let worker = std::thread::Builder::new().name("sync".into()).stack_size(64 * 1024).spawn(move || {
        rustix::fs::sync();
        let outcome = match mounts::release_state() {
            Ok(how) => format!("state {how}"),
            Err(error) => format!("state could not be released: {error}"),
        };
        rustix::fs::sync();
        let _ = sender.send(outcome); // the receiver may have given up
    });
    if let Err(error) = worker {
        rustix::fs::sync();
        return format!("synced without unmounting: {error}");
    }
    receiver
        .recv_timeout(Duration::from_millis(limits::SYNC_MS_MAX))
        .unwrap_or_else(|_| format!("disks did not answer within {} ms", limits::SYNC_MS_MAX))
}

/// The last system call. Returns only if the kernel refuses.
pub fn go(action: Action) -> String {
    let command = match action {
        Action::Reboot => RebootCommand::Restart,
        Action::Poweroff => RebootCommand::PowerOff,
    };
    match rustix::system::reboot(command) {
        Ok(()) => "the kernel went on after reboot(2)".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_stop_after_the_answer_and_the_ledger_last() {
        assert_eq!(step(1000, 1000, false, true), Step::Wait(1000 + ANSWER_MS));
        assert_eq!(step(1000, 1000 + ANSWER_MS, false, false), Step::Stop { keep_ledger: true });
        assert_eq!(step(1000, 1000 + ANSWER_MS, false, true), Step::Stop { keep_ledger: false });
        assert_eq!(step(1000, 1000 + LEDGER_MS_MAX, false, false), Step::Stop { keep_ledger: false });
    }

    #[test]
    fn going_down_always_ends() {
        assert_eq!(step(0, 5_000, true, false), Step::Finish { in_time: true });
        assert_eq!(step(0, limits::SHUTDOWN_MS_MAX, false, false), Step::Finish { in_time: false });
    }
}
