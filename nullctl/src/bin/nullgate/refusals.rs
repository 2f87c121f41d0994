//! Refused keys in the log and the ledger, rate-limited: anybody who reaches the port can cause them.
//!
//! Must hold: a refusal never waits for the ledger; what is left out is counted, and the count is shown.

use abi::ledger::{Client, Event};
use abi::log;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals told at once; then one each [`REFILL`].
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(1);
/// Refusals waiting for the ledger.
const QUEUE_MAX: usize = 32;

/// Tells refusals.
#[derive(Debug)]
pub struct Refusals {
    bucket: Mutex<Bucket>,
    queue: Option<SyncSender<Event>>,
}

impl Refusals {
    /// Starts the thread that writes to the ledger.
    pub fn start(ledger: Client) -> Refusals {
        let (queue, events) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("refusals".into())
            .stack_size(64 * 1024)
            .spawn(move || write_all(&ledger, &events));
        if let Err(error) = &thread {
            log::error("no_ledger_for_refusals", &[("error", error)]);
        }
        Refusals { bucket: Mutex::new(Bucket::new(Instant::now())), queue: thread.is_ok().then_some(queue) }
    }

    /// Tells one: who came from where, and why it was refused.
    pub fn tell(&self, peer: SocketAddr, who: &str, reason: &str) {
        let taken = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let Some(dropped) = taken else { return };
        log::warning(
            "refused",
            &[("peer", &peer), ("key", &who), ("reason", &reason), ("dropped", &dropped)],
        );
        let event = Event::CallRefused {
            by: format!("key {who} from {peer}"),
            method: "handshake".into(),
            reason: reason.into(),
        };
        if let Some(queue) = &self.queue
            && queue.try_send(event).is_err()
        {
            log::warning("refusal_not_in_ledger", &[("key", &who)]);
        }
    }
}

fn write_all(ledger: &Client, events: &Receiver<Event>) {
    for event in events {
        if let Err(error) = ledger.note(event) {
            log::warning("refusal_not_in_ledger", &[("error", &error)]);
        }
    }
}

/// A token bucket that counts what it refused.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    refilled: Instant,
    dropped: u64,
}

impl Bucket {
    fn new(now: Instant) -> Bucket {
        Bucket { tokens: BURST, refilled: now, dropped: 0 }
    }

    /// How many were dropped since the last one that was let through; none: drop this one too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return None;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let told = (0..1000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(told, BURST as usize);
        assert_eq!(bucket.take(start + REFILL), Some(990));
        assert_eq!(bucket.take(start + REFILL), None);
    }

    #[test]
    fn a_quiet_hour_allows_one_burst_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        while bucket.take(start).is_some() {}
        let later = start + Duration::from_secs(3600);
        let told = (0..1000).filter(|_| bucket.take(later).is_some()).count();
        assert_eq!(told, BURST as usize);
    }
}
