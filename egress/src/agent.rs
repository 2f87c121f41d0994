//! One attached agent: its grants and its counters, and the node-wide parts its tasks use.

use abi::control::AgentGrants;
use abi::ids::{Destination, Instance};
use abi::ledger::Event;
use abi::manifest::Published;
use abi::{limits, log};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Semaphore;

use crate::denials::{Denials, Rule};
use crate::names::Names;
use crate::receipts::Receipts;
use crate::resolve::Resolver;
use crate::settings::Settings;

/// What all agents share.
#[derive(Debug)]
pub struct Node {
    pub settings: Settings,
    pub receipts: Arc<Receipts>,
    pub denials: Denials,
    pub resolver: Resolver,
    /// Bounds the threads that wait for receipts.
    pub receipt_turns: Semaphore,
}

/// One attached agent.
#[derive(Debug)]
pub struct Agent {
    pub instance: Instance,
    pub allow: Vec<Destination>,
    pub publish: Vec<Published>,
    pub names: Names,
    pub counters: Counters,
    pub node: Arc<Node>,
    /// How fast its published ports may be connected to.
    knocks: Mutex<Bucket>,
}

/// Numbers for `net.grants`.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections: AtomicU32,
    pub connections_total: AtomicU64,
    pub bytes_out: AtomicU64,
    pub bytes_in: AtomicU64,
    pub denials: AtomicU64,
    pub published_connections: AtomicU32,
    pub published_total: AtomicU64,
}

impl Agent {
    /// An agent with the addresses of its names.
    pub fn new(
        instance: Instance,
        allow: Vec<Destination>,
        publish: Vec<Published>,
        node: Arc<Node>,
    ) -> Agent {
        let names = Names::assign(&instance.agent, &allow);
        let knocks = Mutex::new(Bucket::new(limits::PUBLISH_CONNECTIONS_PER_SECOND_MAX, Instant::now()));
        Agent { instance, allow, publish, names, counters: Counters::default(), node, knocks }
    }

    /// Counts and records a denial.
    pub fn deny(&self, what: &str, rule: Rule, remedy: &str) {
        self.counters.denials.fetch_add(1, Ordering::Relaxed);
        self.node.denials.record(&self.instance, what, rule, remedy);
    }

    /// One connection more, if there is room; it is given back when the slot is dropped.
    pub fn connection_slot(self: &Arc<Agent>) -> Option<Slot> {
        let most = limits::PROXY_CONNECTIONS_PER_AGENT_MAX;
        let slot = self.slot(|counters| &counters.connections, most)?;
        self.counters.connections_total.fetch_add(1, Ordering::Relaxed);
        Some(slot)
    }

    /// The same for a connection to a published port, if they do not come too fast.
    pub fn published_slot(self: &Arc<Agent>) -> Option<Slot> {
        if !self.knocks.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return None;
        }
        let most = limits::PUBLISH_CONNECTIONS_PER_AGENT_MAX;
        let slot = self.slot(|counters| &counters.published_connections, most)?;
        self.counters.published_total.fetch_add(1, Ordering::Relaxed);
        Some(slot)
    }

    fn slot(self: &Arc<Agent>, of: fn(&Counters) -> &AtomicU32, most: usize) -> Option<Slot> {
        let slot = Slot { agent: self.clone(), of };
        let before = of(&self.counters).fetch_add(1, Ordering::Relaxed);
        ((before as usize) < most).then_some(slot) // else dropping it takes the count back
    }

    /// Waits for the receipt without which a connection is not made; the error says that there is none.
    pub async fn receipt(&self, event: Event) -> Result<(), String> {
        let _turn = self.node.receipt_turns.acquire().await.map_err(|error| error.to_string())?;
        let receipts = self.node.receipts.clone();
        let error = match tokio::task::spawn_blocking(move || receipts.durable(event)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        log::error("no_receipt", &[("agent", &self.instance), ("error", &error)]);
        Err(format!("no receipt, so no connection: {error}"))
    }

    /// The agent's line in `net.grants`, with its lists or without.
    pub fn grants(&self, counters_only: bool) -> AgentGrants {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let names = self.names.iter().filter(|_| !counters_only);
        AgentGrants {
            instance: self.instance.clone(),
            allow: if counters_only { Vec::new() } else { self.allow.clone() },
            connections: self.counters.connections.load(Ordering::Relaxed),
            connections_total: count(&self.counters.connections_total),
            bytes_out: count(&self.counters.bytes_out),
            bytes_in: count(&self.counters.bytes_in),
            denials: count(&self.counters.denials),
            publish: if counters_only { Vec::new() } else { self.publish.clone() },
            published_connections: self.counters.published_connections.load(Ordering::Relaxed),
            published_total: count(&self.counters.published_total),
            synthetic: names.map(|(name, grant)| (name.clone(), grant.address.to_string())).collect(),
        }
    }
}

/// A counted connection.
#[derive(Debug)]
pub struct Slot {
    agent: Arc<Agent>,
    /// The counter it stands in.
    of: fn(&Counters) -> &AtomicU32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.of)(&self.agent.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A token bucket that fills `per_second` and holds twice as much.
#[derive(Debug)]
pub struct Bucket {
    per_second: u32,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_second: u32, now: Instant) -> Bucket {
        Bucket { per_second, tokens: f64::from(per_second) * 2.0, filled: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(self.per_second);
        self.filled = now;
        self.tokens = (self.tokens + gained).min(f64::from(self.per_second) * 2.0);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_holds_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, start);
        assert_eq!((0..1000).filter(|_| bucket.take(start)).count(), 200);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..1000).filter(|_| bucket.take(later)).count(), 50);
    }
}
