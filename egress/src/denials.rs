//! What was refused: kept in a bounded ring, told to followers, the log and the ledger.
//!
//! Must hold: whatever a guest does, at most [`limits::DENIALS_PER_AGENT_SECOND_MAX`] denials of an agent by one rule are
//! recorded in a second; the rest is counted, so a flood of one kind does not hide another kind. The same denial within a second is folded into one.

use abi::control::Denial;
use abi::ids::{AgentName, Instance};
use abi::{limits, log};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::agent::unix_ms_now;
use crate::receipts::Receipts;

/// Denials on the node's screen, and characters of what each was about.
const SHOWN_MAX: usize = 2;
const SHOWN_CHARS_MAX: usize = 60;

/// Which rule of the contract refused ([`Denial::rule`]).
pub type Rule = &'static str;

/// A denial with its place in the order of all.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    seq: u64,
    denial: Denial,
}

/// What became of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Recorded,
    Folded,
    Dropped,
}

/// The ring. Pure but for nothing: the clock comes in.
#[derive(Debug, Default)]
pub struct Ring {
    kept: VecDeque<Kept>,
    next_seq: u64,
    dropped: u64,
    /// Of each agent and rule: the second that is running and the denials recorded in it.
    rates: BTreeMap<(Instance, String), (u64, u32)>,
}

impl Ring {
    /// Takes a denial in.
    pub fn record(&mut self, denial: Denial) -> Fate {
        let since = denial.unix_ms.saturating_sub(1000);
        let same = self.kept.iter_mut().rev().take_while(|kept| kept.denial.unix_ms >= since).find(|kept| {
            kept.denial.instance == denial.instance
                && kept.denial.what == denial.what
                && kept.denial.rule == denial.rule
        });
        if let Some(kept) = same {
            kept.denial.count += denial.count;
            return Fate::Folded;
        }
        let second = denial.unix_ms / 1000;
        let rate = self.rates.entry((denial.instance.clone(), denial.rule.clone())).or_insert((second, 0));
        if rate.0 != second {
            *rate = (second, 0);
        }
        rate.1 = rate.1.saturating_add(1);
        if rate.1 > limits::DENIALS_PER_AGENT_SECOND_MAX {
            self.dropped += 1;
            return Fate::Dropped;
        }
        if self.kept.len() >= limits::DENIALS_KEPT_MAX {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(Kept { seq: self.next_seq, denial });
        self.next_seq += 1;
        Fate::Recorded
    }

    /// Forgets what is only kept of an agent while it runs.
    pub fn forget_rate(&mut self, instance: &Instance) {
        self.rates.retain(|(of, _), _| of != instance);
    }

    /// The newest denials on one line.
    fn in_words(&self) -> String {
        let newest = self.kept.iter().rev().take(SHOWN_MAX).map(|kept| {
            let denial = &kept.denial;
            let what: String = denial.what.chars().take(SHOWN_CHARS_MAX).collect();
            let s = denial.unix_ms / 1000;
            let (agent, rule) = (&denial.instance.agent, &denial.rule);
            format!("{agent}: {what} ({rule}, {:02}:{:02}:{:02} UTC)", s / 3600 % 24, s / 60 % 60, s % 60)
        });
        let newest: Vec<String> = newest.collect();
        if newest.is_empty() { "nothing was refused".to_owned() } else { newest.join("; ") }
    }

    fn since(&self, seq: u64, agent: Option<&AgentName>) -> Vec<Denial> {
        let wanted =
            |kept: &&Kept| kept.seq >= seq && agent.is_none_or(|agent| kept.denial.instance.agent == *agent);
        self.kept.iter().filter(wanted).map(|kept| kept.denial.clone()).collect()
    }
}

/// The denials of the node.
#[derive(Debug)]
pub struct Denials {
    ring: Mutex<Ring>,
    changed: Condvar,
    receipts: std::sync::Arc<Receipts>,
}

/// A page of denials and where the next begins.
#[derive(Debug)]
pub struct Page {
    pub denials: Vec<Denial>,
    pub dropped: u64,
    pub next: u64,
}

impl Denials {
    /// Empty, with the ledger they are noted in.
    pub fn new(receipts: std::sync::Arc<Receipts>) -> Denials {
        Denials { ring: Mutex::default(), changed: Condvar::new(), receipts }
    }

    /// Records a denial now, and returns it unless it is a repeat or one too many.
    pub fn record(&self, instance: &Instance, what: &str, rule: Rule, remedy: &str) -> Option<Denial> {
        let denial = Denial {
            unix_ms: unix_ms_now(),
            instance: instance.clone(),
            what: what.chars().take(400).collect(),
            rule: rule.to_owned(),
            remedy: remedy.to_owned(),
            count: 1,
        };
        if self.ring().record(denial.clone()) != Fate::Recorded {
            return None;
        }
        self.changed.notify_all();
        log::warning(
            "denied",
            &[("agent", &denial.instance), ("what", &denial.what), ("rule", &rule), ("remedy", &remedy)],
        );
        self.receipts.note_denial(denial.instance.clone(), denial.what.clone(), denial.rule.clone());
        Some(denial)
    }

    /// The newest denials, for the node's screen.
    pub fn in_words(&self) -> String {
        self.ring().in_words()
    }

    /// What is kept from `seq` on.
    pub fn page(&self, seq: u64, agent: Option<&AgentName>) -> Page {
        let ring = self.ring();
        Page { denials: ring.since(seq, agent), dropped: ring.dropped, next: ring.next_seq }
    }

    /// Waits until there is something from `seq` on, or the time is over.
    pub fn wait(&self, seq: u64, time: Duration) {
        let ring = self.ring();
        // A poisoned lock is only a ring whose last writer stopped; waiting on it is harmless.
        let _ = self.changed.wait_timeout_while(ring, time, |ring| ring.next_seq <= seq);
    }

    /// An agent's network has gone.
    pub fn forget_rate(&self, instance: &Instance) {
        self.ring().forget_rate(instance);
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(unix_ms: u64, what: &str) -> Denial {
        Denial {
            unix_ms,
            instance: "a.1".parse().unwrap(),
            what: what.into(),
            rule: "raw-address".into(),
            remedy: String::new(),
            count: 1,
        }
    }

    #[test]
    fn repeats_within_a_second_are_folded_and_later_ones_are_not() {
        let mut ring = Ring::default();
        assert_eq!(ring.record(denial(5_000, "x")), Fate::Recorded);
        assert_eq!(ring.record(denial(5_900, "x")), Fate::Folded);
        assert_eq!(ring.record(denial(6_100, "x")), Fate::Recorded);
        assert_eq!(ring.since(0, None).iter().map(|d| d.count).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn a_flood_is_counted_and_does_not_push_out_the_past() {
        let mut ring = Ring::default();
        for n in 0..10_000 {
            ring.record(denial(5_000, &n.to_string()));
        }
        assert_eq!(ring.kept.len(), limits::DENIALS_PER_AGENT_SECOND_MAX as usize);
        assert_eq!(ring.dropped, 10_000 - u64::from(limits::DENIALS_PER_AGENT_SECOND_MAX));
        assert_eq!(ring.record(denial(6_001, "later")), Fate::Recorded);
    }

    #[test]
    fn the_ring_is_bounded_and_says_what_it_lost() {
        let mut ring = Ring::default();
        for second in 0..2 * limits::DENIALS_KEPT_MAX as u64 {
            ring.record(denial(second * 2000, "x"));
        }
        assert_eq!(ring.kept.len(), limits::DENIALS_KEPT_MAX);
        assert_eq!(ring.dropped, limits::DENIALS_KEPT_MAX as u64);
        assert_eq!(ring.since(2 * limits::DENIALS_KEPT_MAX as u64 - 1, None).len(), 1);
        assert_eq!(ring.since(0, Some(&"b".parse().unwrap())), []);
    }

    #[test]
    fn the_screen_gets_the_newest_in_a_bounded_line() {
        let mut ring = Ring::default();
        assert_eq!(ring.in_words(), "nothing was refused");
        ring.record(denial(1_000, "dns A old.example"));
        ring.record(denial(3_661_000, "dns A evil.example"));
        assert_eq!(
            ring.in_words(),
            "a: dns A evil.example (raw-address, 01:01:01 UTC); a: dns A old.example (raw-address, 00:00:01 UTC)"
        );
        ring.record(denial(9_000_000, &"x".repeat(5_000)));
        assert!(ring.in_words().len() < 250, "{}", ring.in_words());
    }
}
