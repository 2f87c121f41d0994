//! The boot as a list of named phases that one can read on one screen.
//!
//! Must hold: a phase is listed from its beginning, with its time and its outcome; the console shows the same words.

use abi::control::Phase;

use crate::clock;
use crate::journal::{Journal, OWN};

/// The initramfs passes its own steps as `mounts=1,medium=20`.
pub const INITRAMFS_VARIABLE: &str = "NULLBOX_INITRAMFS_MS";
/// Steps taken from there. More are not shown.
const INITRAMFS_STEPS_MAX: usize = 16;

/// Outcome of a phase that is under way.
const RUNNING: &str = "running";

/// How a phase ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Ended, and the node goes on with less.
    Degraded(String),
    /// The boot ends here.
    Failed(String),
}

/// All phases so far.
#[derive(Debug, Default)]
pub struct Phases {
    list: Vec<Phase>,
}

impl Phases {
    /// Begins with the steps of the initramfs, which ended when nulld started.
    pub fn new(initramfs: &str, now_ms: u64) -> Phases {
        let steps: Vec<(&str, u64)> = initramfs
            .split(',')
            .take(INITRAMFS_STEPS_MAX)
            .filter_map(|step| step.split_once('='))
            .filter_map(|(name, ms)| Some((name, ms.parse().ok()?)))
            .collect();
        let total: u64 = steps.iter().map(|(_, ms)| ms).sum();
        let mut started_ms = now_ms.saturating_sub(total);
        let mut list = Vec::new();
        for (name, took_ms) in steps {
            list.push(Phase {
                name: format!("initramfs.{}", name.chars().take(32).collect::<String>()),
                started_ms,
                took_ms,
                outcome: "ok".to_owned(),
            });
            started_ms += took_ms;
        }
        Phases { list }
    }

    /// Goes on with the phases of a nulld before this one.
    pub fn restore(list: Vec<Phase>) -> Phases {
        Phases { list }
    }

    /// As [`Phases::restore`] takes it.
    pub fn to_keep(&self) -> Vec<Phase> {
        self.list.clone()
    }

    /// A phase begins.
    pub fn begin(&mut self, name: &str) {
        self.list.push(Phase {
            name: name.to_owned(),
            started_ms: clock::now_ms(),
            took_ms: 0,
            outcome: RUNNING.to_owned(),
        });
    }

    /// A phase ends: listed and shown.
    pub fn end(&mut self, name: &str, outcome: &Outcome, journal: &mut Journal) {
        let text = match outcome {
            Outcome::Ok => "ok".to_owned(),
            Outcome::Degraded(why) => format!("degraded: {why}"),
            Outcome::Failed(why) => format!("failed: {why}"),
        };
        let Some(phase) = self.list.iter_mut().rev().find(|phase| phase.name == name) else {
            return;
        };
        phase.took_ms = clock::now_ms().saturating_sub(phase.started_ms);
        let line = format!("phase {name} {text} {} ms", phase.took_ms);
        phase.outcome = text;
        journal.logs.push(OWN, clock::unix_ms(), &line);
        journal.console.say(&line);
    }

    /// Whether a phase has begun and not ended.
    pub fn is_running(&self, name: &str) -> bool {
        self.list.iter().any(|phase| phase.name == name && phase.outcome == RUNNING)
    }

    /// Since when a phase is running.
    pub fn started_ms(&self, name: &str) -> Option<u64> {
        self.list.iter().find(|phase| phase.name == name).map(|phase| phase.started_ms)
    }

    /// For `system.status`; a running phase shows its time so far.
    pub fn list(&self) -> Vec<Phase> {
        let now = clock::now_ms();
        let mut list = self.list.clone();
        for phase in list.iter_mut().filter(|phase| phase.outcome == RUNNING) {
            phase.took_ms = now.saturating_sub(phase.started_ms);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initramfs_steps_are_listed_before_nulld() {
        let phases = Phases::new("mounts=1,medium=20,junk,x=y", 100);
        let list = phases.list();
        assert_eq!(
            list.iter().map(|p| (p.name.as_str(), p.started_ms, p.took_ms)).collect::<Vec<_>>(),
            [("initramfs.mounts", 79, 1), ("initramfs.medium", 80, 20)]
        );
        assert!(Phases::new("", 100).list().is_empty());
    }

    #[test]
    fn outcome_and_time_are_kept() {
        let mut phases = Phases::new("", 0);
        let mut journal = Journal::default();
        phases.begin("state");
        assert!(phases.is_running("state"));
        phases.end("state", &Outcome::Degraded("no volume".into()), &mut journal);
        assert!(!phases.is_running("state"));
        assert_eq!(phases.list()[0].outcome, "degraded: no volume");
        assert!(
            journal
                .logs
                .newest(crate::journal::OWN)
                .unwrap()
                .line
                .starts_with("phase state degraded: no volume ")
        );
    }
}
