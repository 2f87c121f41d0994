//! What happened on the network, in order and as it happens: ended connections, denials, changes, restored packet rules.
//!
//! Must hold: memory is bounded, and a follower who is too slow loses the oldest and is told how many; he slows nobody down.
//! Must never: stand in for the ledger, which has all of it.

use abi::control::{ConnectionRecord, Denial, FirewallRecord, Missed, PolicyRecord};
use abi::ids::AgentName;
use abi::limits;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Connection(ConnectionRecord),
    Denial(Denial),
    Policy(PolicyRecord),
    Firewall(FirewallRecord),
    /// For followers only: so many are lost.
    Missed(Missed),
}

impl Item {
    /// Name and parameters of its notification.
    pub fn notification(&self) -> Result<(&'static str, Value), serde_json::Error> {
        Ok(match self {
            Item::Connection(record) => ("connection", serde_json::to_value(record)?),
            Item::Denial(denial) => ("denial", serde_json::to_value(denial)?),
            Item::Policy(change) => ("policy", serde_json::to_value(change)?),
            Item::Firewall(record) => ("firewall", serde_json::to_value(record)?),
            Item::Missed(missed) => ("missed", serde_json::to_value(missed)?),
        })
    }

    /// Whether it is about an agent; what is about the node is about each.
    fn concerns(&self, agent: &AgentName) -> bool {
        match self {
            Item::Connection(record) => record.instance.agent == *agent,
            Item::Denial(denial) => denial.instance.agent == *agent,
            Item::Policy(change) => change.agent == *agent,
            Item::Firewall(record) => record.instance.as_ref().is_none_or(|of| of.agent == *agent),
            Item::Missed(_) => true,
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    /// Newest last; `next` less their number is the place of the first.
    items: VecDeque<Item>,
    next: u64,
    connections: VecDeque<ConnectionRecord>,
    connections_dropped: u64,
}

/// The records of the node.
#[derive(Debug, Default)]
pub struct Records {
    kept: Mutex<Kept>,
    changed: Condvar,
}

impl Records {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an item in, and tells followers.
    pub fn push(&self, item: Item) {
        let mut kept = self.kept();
        if let Item::Connection(record) = &item {
            if kept.connections.len() >= limits::CONNECTIONS_KEPT_MAX {
                kept.connections.pop_front();
                kept.connections_dropped += 1;
            }
            kept.connections.push_back(record.clone());
        }
        if kept.items.len() >= limits::WATCH_KEPT_MAX {
            kept.items.pop_front();
        }
        kept.items.push_back(item);
        kept.next += 1;
        drop(kept);
        self.changed.notify_all();
    }

    /// Ended connections that are kept, how many are not, and where a follower goes on.
    pub fn connections(&self, agent: Option<&AgentName>) -> (Vec<ConnectionRecord>, u64, u64) {
        let kept = self.kept();
        let wanted = kept
            .connections
            .iter()
            .filter(|record| agent.is_none_or(|agent| record.instance.agent == *agent));
        (wanted.cloned().collect(), kept.connections_dropped, kept.next)
    }

    /// What came since place `next`, which moves on; first how many of it are lost. Waits up to `time` for the first.
    pub fn since(&self, next: &mut u64, agent: Option<&AgentName>, time: Duration) -> Vec<Item> {
        let kept = self.kept();
        let waited = self.changed.wait_timeout_while(kept, time, |kept| kept.next <= *next);
        let (kept, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let first = kept.next - kept.items.len() as u64;
        let lost = first.saturating_sub(*next);
        let skip = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
        *next = kept.next;
        let new = kept.items.iter().skip(skip).filter(|item| agent.is_none_or(|agent| item.concerns(agent)));
        let missed = (lost > 0).then_some(Item::Missed(Missed { count: lost }));
        missed.into_iter().chain(new.cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(agent: &str, receipt: u64) -> Item {
        Item::Policy(PolicyRecord {
            unix_ms: 1,
            agent: agent.parse().unwrap(),
            change: "deny".into(),
            entry: "x.test".into(),
            until_unix_ms: None,
            by: "operator x".into(),
            receipt,
        })
    }

    fn connection(n: u64) -> Item {
        Item::Connection(ConnectionRecord {
            unix_ms: n,
            instance: "a.1".parse().unwrap(),
            name: "x.test".parse().unwrap(),
            port: 443,
            address: "203.0.113.1".into(),
            bytes_out: 0,
            bytes_in: 0,
            duration_ms: 0,
            rule: String::new(),
            end: "closed".into(),
            receipt: n,
        })
    }

    #[test]
    fn followers_get_everything_once_in_order_and_their_agent_only() {
        let records = Records::default();
        let (mut all, mut one) = (0, 0);
        for n in 0..3 {
            records.push(change("a", n));
            records.push(change("b", n));
        }
        let b = "b".parse().unwrap();
        assert_eq!(records.since(&mut all, None, Duration::ZERO).len(), 6);
        assert_eq!(
            records.since(&mut one, Some(&b), Duration::ZERO),
            (0..3).map(|n| change("b", n)).collect::<Vec<_>>()
        );
        assert_eq!(records.since(&mut all, None, Duration::ZERO), []);
        records.push(change("b", 9));
        assert_eq!(records.since(&mut all, None, Duration::ZERO), [change("b", 9)]);
    }

    #[test]
    fn a_slow_follower_loses_the_oldest_and_is_told_how_many() {
        let records = Records::default();
        let mut next = 0;
        let most = limits::WATCH_KEPT_MAX as u64;
        for n in 0..most + 7 {
            records.push(change("a", n));
        }
        let got = records.since(&mut next, None, Duration::ZERO);
        assert_eq!(got.len() as u64, most + 1);
        assert_eq!(got[..2], [Item::Missed(Missed { count: 7 }), change("a", 7)]);
        assert_eq!(records.since(&mut next, None, Duration::ZERO), []);
    }

    #[test]
    fn connections_are_kept_beside_a_flood_of_other_things() {
        let records = Records::default();
        for n in 0..limits::CONNECTIONS_KEPT_MAX as u64 + 5 {
            records.push(connection(n));
        }
        for n in 0..2 * limits::WATCH_KEPT_MAX as u64 {
            records.push(change("b", n));
        }
        let (kept, dropped, next) = records.connections(Some(&"a".parse().unwrap()));
        assert_eq!((kept.len(), dropped, kept[0].unix_ms), (limits::CONNECTIONS_KEPT_MAX, 5, 5));
        assert_eq!(next, (limits::CONNECTIONS_KEPT_MAX + 5 + 2 * limits::WATCH_KEPT_MAX) as u64);
        assert_eq!(records.connections(Some(&"b".parse().unwrap())).0, []);
    }
}
