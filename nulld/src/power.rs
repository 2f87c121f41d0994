//! Going down: in which order, within which time, and the last system call.
//!
//! Must hold: every wait is bounded, so an order always ends in reboot(2), and the loop turns while it waits. Must never: skip
//! the sync for a service that does not stop, or start anything again once an order was given.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use abi::limits;
use rustix::system::RebootCommand;

use crate::mounts;

/// Time for the answer of `system.poweroff` to leave before the services that carry it are stopped.
pub const ANSWER_MS: u64 = 300;
/// How long the ledger is kept for events that are under way.
pub const LEDGER_MS_MAX: u64 = 3_000;
/// How often /state is tried to be unmounted, 100 ms apart.
const UNMOUNT_TRIES: u32 = 10;
/// Pause before reboot(2) is called again after the kernel refused it.
const REFUSED_PAUSE_MS: u64 = 5_000;

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
    /// The order whose action has this name ([`Action::name`]).
    pub fn named(action: &str, by: String) -> Option<Order> {
        let all = [Action::Reboot, Action::Poweroff];
        all.into_iter().find(|one| one.name() == action).map(|action| Order { action, by })
    }

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
    /// The last part: services are over, disks are let go.
    release: Option<Release>,
}

impl GoingDown {
    /// An order that was given at a time, in milliseconds since kernel start.
    pub fn new(order: Order, since_ms: u64) -> GoingDown {
        GoingDown { order, since_ms, release: None }
    }

    /// When even an order that hangs must be over: from then on the watchdog is left to end it.
    pub fn until_ms(&self) -> u64 {
        self.since_ms + limits::SHUTDOWN_MS_MAX + limits::SYNC_MS_MAX
    }

    /// How soon the loop must look again.
    pub fn pause_ms(&self) -> u64 {
        if self.release.is_some() { 10 } else { 100 }
    }

    /// What is to be done now, while services stop; `release` says what is to be done after that.
    pub fn step(&self, now_ms: u64, services_over: bool, ledger_idle: bool) -> Step {
        match self.release {
            Some(_) => Step::AwaitDisks,
            None => step(self.since_ms, now_ms, services_over, ledger_idle),
        }
    }

    /// Begins to write everything out and to let go of /state, on a thread that may hang.
    pub fn release_disks(&mut self, now_ms: u64) {
        self.release = Some(Release::begin(now_ms));
    }

    /// How the disks were let go, once: when it is over or its time is up.
    pub fn released(&mut self, now_ms: u64) -> Option<String> {
        self.release.as_mut()?.outcome(now_ms)
    }

    /// The kernel refused the last call: once more after a while.
    pub fn try_again(&mut self, now_ms: u64) {
        self.release = Some(Release { outcome: None, until_ms: now_ms + REFUSED_PAUSE_MS });
    }
}

/// Disks being let go.
#[derive(Debug)]
struct Release {
    /// None: nothing is under way, only the time is waited for.
    outcome: Option<Receiver<String>>,
    until_ms: u64,
}

impl Release {
    fn begin(now_ms: u64) -> Release {
        let (sender, receiver) = mpsc::channel();
        let worker = std::thread::Builder::new().name("sync".into()).stack_size(64 * 1024).spawn(move || {
            rustix::fs::sync();
            let outcome = release_state();
            rustix::fs::sync();
            let _ = sender.send(outcome); // the loop may have given up
        });
        if worker.is_err() {
            // Out of memory or processes: here and now then; should it hang, the watchdog ends it.
            rustix::fs::sync();
            let (sender, receiver) = mpsc::channel();
            let _ = sender.send(release_state()); // the receiver is below
            return Release { outcome: Some(receiver), until_ms: now_ms };
        }
        Release { outcome: Some(receiver), until_ms: now_ms + limits::SYNC_MS_MAX }
    }

    fn outcome(&mut self, now_ms: u64) -> Option<String> {
        match self.outcome.as_ref().map(Receiver::try_recv) {
            Some(Ok(outcome)) => Some(outcome),
            Some(Err(_)) if now_ms >= self.until_ms => {
                Some(format!("disks did not answer within {} ms", limits::SYNC_MS_MAX))
            }
            None if now_ms >= self.until_ms => Some("once more".to_owned()),
            Some(Err(_)) | None => None,
        }
    }
}

/// /state goes as far as it will: unmounted, else read-only, else left with everything written. A process that was killed
/// a moment ago may still hold it, so this is tried for a second.
fn release_state() -> String {
    let mut last = String::new();
    for _ in 0..UNMOUNT_TRIES {
        last = match mounts::release_state() {
            Ok("unmounted") => return "state unmounted".to_owned(),
            Ok(how) => format!("state {how}: something still holds it"),
            Err(error) => format!("state is written out but still mounted: {error}"),
        };
        std::thread::sleep(Duration::from_millis(100));
    }
    last
}

/// What the loop must do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet; look again at this time.
    Wait(u64),
    /// Stop the services that none needs any more; `keep_ledger`: but not the ledger.
    Stop { keep_ledger: bool },
    /// All have ended, or their time is up: kill the rest and let go of the disks.
    Finish { in_time: bool },
    /// See whether the disks are let go.
    AwaitDisks,
}

/// Pure: what to do at a time.
fn step(since_ms: u64, now_ms: u64, services_over: bool, ledger_idle: bool) -> Step {
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

/// Presses of ctrl-alt-del and the power button, counted together: who presses that often wants no order kept.
#[derive(Debug, Default)]
pub struct Presses {
    times_ms: VecDeque<u64>,
}

impl Presses {
    /// One press. True: it was the last of [`limits::FORCE_PRESSES`] within [`limits::FORCE_WINDOW_MS`].
    pub fn count(&mut self, now_ms: u64) -> bool {
        self.times_ms.push_back(now_ms);
        let is_old = |time: &u64| now_ms.saturating_sub(*time) > limits::FORCE_WINDOW_MS;
        while self.times_ms.len() > limits::FORCE_PRESSES || self.times_ms.front().is_some_and(is_old) {
            self.times_ms.pop_front();
        }
        self.times_ms.len() >= limits::FORCE_PRESSES
    }
}

/// Goes down at once: no service is asked or waited for, disks have [`limits::FORCE_SYNC_MS_MAX`]. Returns only if the kernel
/// refuses.
pub fn force(action: Action) -> String {
    let (sender, receiver) = mpsc::channel();
    let worker = std::thread::Builder::new().name("sync".into()).stack_size(64 * 1024).spawn(move || {
        rustix::fs::sync();
        let _ = sender.send(()); // nobody waits any more
    });
    if worker.is_ok() {
        // Whether it ends in time changes nothing.
        let _ = receiver.recv_timeout(Duration::from_millis(limits::FORCE_SYNC_MS_MAX));
    }
    go(action)
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
        let mut going = GoingDown::new(Order::reboot("a test".into()), 1_000);
        // A disk that never answers: its thread never sends.
        let (_sender, receiver) = mpsc::channel();
        going.release = Some(Release { outcome: Some(receiver), until_ms: 1_000 + limits::SYNC_MS_MAX });
        assert_eq!(going.step(2_000, true, true), Step::AwaitDisks);
        assert_eq!(going.released(limits::SYNC_MS_MAX), None);
        assert!(going.released(1_000 + limits::SYNC_MS_MAX).unwrap().contains("did not answer"));
        going.try_again(20_000);
        assert_eq!(going.released(20_000 + REFUSED_PAUSE_MS - 1), None);
        assert!(going.released(20_000 + REFUSED_PAUSE_MS).is_some());
    }

    #[test]
    fn seven_presses_in_the_window_force_and_fewer_or_slower_ones_do_not() {
        let pressed = |pause_ms: u64, count: u64| {
            let mut presses = Presses::default();
            (0..count).filter(|n| presses.count(100_000 + n * pause_ms)).count()
        };
        assert_eq!(pressed(100, 6), 0);
        assert_eq!(pressed(100, 7), 1);
        assert_eq!(pressed(limits::FORCE_WINDOW_MS / 6, 7), 1);
        assert_eq!(pressed(limits::FORCE_WINDOW_MS / 6 + 1, 10_000), 0);
        // Six early ones do not count for ever.
        let mut presses = Presses::default();
        assert!((0..6).all(|n| !presses.count(n)));
        assert!(!presses.count(limits::FORCE_WINDOW_MS + 10));
        assert!(presses.times_ms.len() <= limits::FORCE_PRESSES);
    }
}
