//! What an emulated machine loses by a fault of its emulator (docs/decisions/0007): a guest, or the whole node. It is noted when it is
//! seen, so that a test that failed beside such a loss can be run once more, which the run says.
//!
//! Must hold: a test that fails without a loss fails at once; one that fails twice fails; where there is KVM nothing is excused.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::accel;

/// What a node's console says of a kernel that was lost: of its own, or, in cage's words, of a guest's. Only what a CPU that computes wrong
/// does: a panic because PID 1 ended or a disk is not there is ours.
const SIGNS: [&str; 3] = [
    "Kernel panic - not syncing: Fatal exception",
    "Kernel panic - not syncing: corrupted stack end",
    "the guest halted without a word",
];
/// What QEMU's log of resets says when a machine's CPU finds no way to tell of a fault, and the machine goes off by it (`-d cpu_reset`,
/// target/i386/tcg of QEMU). Of the machine itself: a guest in it that does the same ends by an exit of its VM.
const TRIPLE_FAULT: &str = "Triple fault";
/// Tests of one run that may be run once more. What is lost more often is no accident.
const EXCUSES_MAX: u32 = 2;

/// What was lost since the last test began, and the tests that were excused in this run.
static SEEN: Mutex<Seen> = Mutex::new(Seen { loss: None, excused: 0 });

#[derive(Debug)]
struct Seen {
    loss: Option<String>,
    excused: u32,
}

/// A node that answers nothing any more. Waiting for it goes no further.
#[derive(Debug)]
pub enum Gone {
    /// No answer to this in the time that its slowest answer takes.
    StandsStill(String),
    /// Its machine is off, so it is not asked this.
    Off(String),
}

impl std::error::Error for Gone {}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gone::StandsStill(order) => write!(f, "the node stands still: no answer to `{order}`"),
            Gone::Off(order) => write!(f, "the machine is off: `{order}` is not asked"),
        }
    }
}

impl Seen {
    fn look(&mut self, line: &str) {
        if SIGNS.iter().any(|sign| line.contains(sign)) {
            self.note(line);
        }
    }

    fn look_at_resets(&mut self, log: &str) {
        if log.lines().any(|line| line == TRIPLE_FAULT) {
            self.note("the machine went off by a triple fault");
        }
    }

    fn note(&mut self, loss: &str) {
        self.loss.get_or_insert_with(|| loss.trim().to_owned());
    }

    fn excuse(&mut self, is_emulated: bool) -> Option<String> {
        if !is_emulated || self.excused >= EXCUSES_MAX {
            return None;
        }
        let loss = self.loss.take()?;
        self.excused += 1;
        Some(loss)
    }
}

fn seen() -> MutexGuard<'static, Seen> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A test begins: what was lost before is not its own.
pub fn forget() {
    seen().loss = None;
}

/// Notes that a node stands still.
pub fn stands_still(order: &str) -> Gone {
    let gone = Gone::StandsStill(order.into());
    seen().note(&gone.to_string());
    gone
}

/// Notes what a line of a node's console says of a loss. The first of a test counts.
pub fn look(line: &str) {
    seen().look(line);
}

/// Notes what QEMU's log of resets says of a machine that is off.
pub fn look_at_resets(log: &str) {
    seen().look_at_resets(log);
}

/// Whether one was noted since the last test began.
pub fn is_noted() -> bool {
    seen().loss.is_some()
}

/// The loss that excuses the test that just failed, if there is one, the machines are emulated and not too many were excused.
pub fn excuse() -> Option<String> {
    seen().excuse(accel::is_emulated())
}

/// Tests of this run that were run once more.
pub fn excused() -> u32 {
    seen().excused
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANIC: &str = r#"[163.957] cage: warning console instance=a.7 line="[    1.222781] Kernel panic - not syncing: Fatal exception""#;

    fn after(lines: &[&str]) -> Seen {
        let mut seen = Seen { loss: None, excused: 0 };
        lines.iter().for_each(|line| seen.look(line));
        seen
    }

    #[test]
    fn test_without_a_loss_is_not_excused() {
        let ours = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100";
        let lines = ["[164.022] nullgate: info connected", "[165.0] cage: error agent_ended", ours];
        assert_eq!(after(&lines).excuse(true), None);
    }

    #[test]
    fn first_loss_is_told_and_excuses_once() {
        let mut seen = after(&["[1.0] cage: info", PANIC, "the guest halted without a word"]);
        assert_eq!(seen.excuse(true).as_deref(), Some(PANIC));
        assert_eq!(seen.excuse(true), None);
    }

    #[test]
    fn a_machine_that_a_triple_fault_ended_is_lost_and_one_that_was_reset_is_not() {
        let state = "CPU Reset (CPU 0)\nEAX=00000000 EBX=00000000\n";
        let mut seen = after(&[]);
        seen.look_at_resets(state);
        assert_eq!(seen.excuse(true), None);
        seen.look_at_resets(&format!("{state}Triple fault\n{state}"));
        assert_eq!(seen.excuse(true).as_deref(), Some("the machine went off by a triple fault"));
    }

    #[test]
    fn nothing_is_excused_where_nothing_is_emulated() {
        assert_eq!(after(&[PANIC]).excuse(false), None);
    }

    #[test]
    fn losses_beyond_the_bound_are_faults() {
        let mut seen = after(&[]);
        for _ in 0..EXCUSES_MAX {
            seen.look(PANIC);
            assert!(seen.excuse(true).is_some());
        }
        seen.look(PANIC);
        assert_eq!(seen.excuse(true), None);
    }
}
