//! What happened to agents, newest last, for who watches. The ledger keeps what must not be lost.
//!
//! Must hold: the ring is bounded, and what an agent can cause again and again pushes out neither another kind nor another agent's
//! events; what is left out is counted. Must never: hold up who tells it something.

use abi::control::AgentEvent;
use abi::ids::AgentName;
use abi::limits::{AGENT_EVENT_CHARS_MAX, AGENT_EVENTS_KEPT_MAX, AGENT_EVENTS_PER_SECOND_MAX};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::output::unix_ms;

/// The newest events of all agents.
#[derive(Debug, Default)]
pub struct Events {
    ring: Mutex<Ring>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<AgentEvent>,
    next_seq: u64,
    dropped: u64,
    /// Of each agent and kind.
    tallies: BTreeMap<(AgentName, String), Tally>,
}

/// How often something happened.
#[derive(Debug, Default)]
struct Tally {
    total: u64,
    /// The second that is running, and how often within it.
    second: u64,
    within: u32,
}

impl Ring {
    fn push(&mut self, event: AgentEvent) {
        let second = event.unix_ms / 1000;
        let tally = self.tallies.entry((event.agent.clone(), event.what.clone())).or_default();
        tally.total += 1;
        if tally.second != second {
            (tally.second, tally.within) = (second, 0);
        }
        tally.within = tally.within.saturating_add(1);
        if tally.within > AGENT_EVENTS_PER_SECOND_MAX {
            self.dropped += 1;
            return;
        }
        if self.kept.len() >= AGENT_EVENTS_KEPT_MAX {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(AgentEvent { seq: self.next_seq, ..event });
        self.next_seq += 1;
    }
}

/// Events and where the next ones begin.
#[derive(Debug)]
pub struct Page {
    pub events: Vec<AgentEvent>,
    pub dropped: u64,
    pub next: u64,
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one. `what` is one of a few words (docs/metrics.md); `detail` is cut and loses its control characters.
    pub fn push(&self, agent: &AgentName, what: &str, detail: impl Display) {
        let detail =
            detail.to_string().chars().filter(|c| !c.is_control()).take(AGENT_EVENT_CHARS_MAX).collect();
        let (agent, what) = (agent.clone(), what.to_owned());
        self.ring().push(AgentEvent { seq: 0, unix_ms: unix_ms(), agent, what, detail });
        self.grown.notify_all();
    }

    /// What is kept from `seq` on, of one agent or of all.
    pub fn page(&self, seq: u64, agent: Option<&AgentName>) -> Page {
        let ring = self.ring();
        let wanted =
            |event: &&AgentEvent| event.seq >= seq && agent.is_none_or(|agent| event.agent == *agent);
        Page {
            events: ring.kept.iter().filter(wanted).cloned().collect(),
            dropped: ring.dropped,
            next: ring.next_seq,
        }
    }

    /// Waits until there is something from `seq` on, or for `patience`.
    pub fn wait(&self, seq: u64, patience: Duration) {
        let ring = self.ring();
        // A poisoned lock is only a ring whose last writer stopped; waiting on it is harmless.
        let _ = self.grown.wait_timeout_while(ring, patience, |ring| ring.next_seq <= seq);
    }

    /// How often something happened to an agent since cage began, kept or not.
    pub fn count(&self, agent: &AgentName, what: &str) -> u64 {
        self.ring().tallies.get(&(agent.clone(), what.to_owned())).map_or(0, |tally| tally.total)
    }

    /// All that was counted: agent, kind, how often.
    pub fn counts(&self) -> Vec<(AgentName, String, u64)> {
        let all = self.ring();
        all.tallies.iter().map(|((agent, what), tally)| (agent.clone(), what.clone(), tally.total)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(unix_ms: u64, what: &str) -> AgentEvent {
        AgentEvent { seq: 0, unix_ms, agent: "a".parse().unwrap(), what: what.into(), detail: String::new() }
    }

    #[test]
    fn a_flood_is_counted_and_pushes_out_nothing() {
        let mut ring = Ring::default();
        ring.push(event(1_000, "ready"));
        for _ in 0..10_000 {
            ring.push(event(1_500, "denied"));
        }
        ring.push(event(1_600, "ended"));
        let most = AGENT_EVENTS_PER_SECOND_MAX as usize;
        assert_eq!((ring.kept.len(), ring.dropped), (most + 2, 10_000 - most as u64));
        let seqs: Vec<u64> = ring.kept.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (0..most as u64 + 2).collect::<Vec<_>>(), "no gap");
        assert_eq!(
            (ring.kept.front().unwrap().what.as_str(), ring.kept.back().unwrap().what.as_str()),
            ("ready", "ended")
        );
        ring.push(event(2_000, "denied"));
        assert_eq!(ring.kept.back().unwrap().what, "denied", "a second later there is room again");
    }

    #[test]
    fn the_ring_is_bounded_and_says_what_it_lost() {
        let mut ring = Ring::default();
        for second in 0..2 * AGENT_EVENTS_KEPT_MAX as u64 {
            ring.push(event(second * 1000, "ready"));
        }
        assert_eq!((ring.kept.len(), ring.dropped), (AGENT_EVENTS_KEPT_MAX, AGENT_EVENTS_KEPT_MAX as u64));
        assert_eq!(ring.kept.front().unwrap().seq, AGENT_EVENTS_KEPT_MAX as u64);
    }

    #[test]
    fn readers_see_one_agent_or_all_and_wake_when_something_happens() {
        let events = std::sync::Arc::new(Events::default());
        let (a, b): (AgentName, AgentName) = ("a".parse().unwrap(), "b".parse().unwrap());
        events.push(&a, "ready", "x\u{1b}[2J".repeat(400));
        let detail = &events.page(0, None).events[0].detail;
        assert!(detail.chars().count() == AGENT_EVENT_CHARS_MAX && !detail.contains('\u{1b}'));
        let (writer, other) = (events.clone(), b.clone());
        let thread = std::thread::spawn(move || writer.push(&other, "denied", "y"));
        events.wait(1, Duration::from_secs(60));
        thread.join().unwrap();
        let page = events.page(1, None);
        assert_eq!((page.events.len(), page.next, page.events[0].what.as_str()), (1, 2, "denied"));
        assert_eq!(events.page(0, Some(&b)).events.len(), 1);
        assert_eq!((events.count(&b, "denied"), events.count(&a, "denied")), (1, 0));
        assert_eq!(events.counts().len(), 2);
    }
}
