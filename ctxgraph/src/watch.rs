//! Watchers: who wants to hear of new entries, and what waits for each.
//!
//! The writer publishes what it committed, in the order of the commits; a watcher's thread takes it from a queue of its own and reads
//! the entry. Queues hold hashes: what waits for slow watchers is small, whatever the values are.
//!
//! Must hold: what is committed after [`Watchers::watch`] returned is heard of, in order, or the watcher is told `dropped`.
//! Must never: let a writer wait for a watcher.

use abi::ids::{AgentName, Digest};
use abi::limits;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An entry that was committed.
#[derive(Debug, Clone, Copy)]
pub struct Committed<'a> {
    pub agent: &'a AgentName,
    pub key: &'a str,
    pub hash: Digest,
}

/// One more watcher than may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{max} watches are open already", max = limits::MEMORY_WATCHERS_MAX)]
pub struct TooMany;

/// All watchers.
#[derive(Debug, Default)]
pub struct Watchers {
    open: Mutex<Vec<Watcher>>,
}

/// Whether a watcher hears of an entry of an agent under a key.
type Wants = Box<dyn Fn(&AgentName, &str) -> bool + Send>;

struct Watcher {
    who: Option<AgentName>,
    wants: Wants,
    queue: Arc<Queue>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("who", &self.who).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Digest>,
    /// There was no place for an entry.
    dropped: bool,
    /// There will be no more entries.
    closed: bool,
    /// The receiver has gone.
    gone: bool,
}

/// What a watcher hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The hash of the next entry.
    Entry(Digest),
    /// Nothing yet: time to see whether the connection lives.
    Silence,
    /// It took its entries too slowly and missed one. The end.
    Dropped,
    /// The service ends. The end.
    Closed,
}

/// A watcher's end of its queue. Dropped, the watch ends.
#[derive(Debug)]
pub struct Receiver {
    queue: Arc<Queue>,
}

impl Watchers {
    /// Begins a watch of the entries for which `wants` (prefix and right to read) holds; `who` is the agent that watches, none for an
    /// operator: each agent, and all operators together, may have [`limits::MEMORY_WATCHERS_MAX`]. `wants` is asked by the writer's
    /// thread and must not wait for anything.
    pub fn watch(
        &self,
        who: Option<AgentName>,
        wants: impl Fn(&AgentName, &str) -> bool + Send + 'static,
    ) -> Result<Receiver, TooMany> {
        let mut open = self.lock();
        open.retain(|watcher| !watcher.queue.lock().gone);
        if open.iter().filter(|watcher| watcher.who == who).count() >= limits::MEMORY_WATCHERS_MAX {
            return Err(TooMany);
        }
        let queue = Arc::new(Queue::default());
        open.push(Watcher { who, wants: Box::new(wants), queue: queue.clone() });
        Ok(Receiver { queue })
    }

    /// Tells of entries, after their commit and in its order. Returns how many watchers were dropped by it.
    pub fn publish<'a>(&self, entries: impl Iterator<Item = Committed<'a>> + Clone) -> usize {
        let mut open = self.lock();
        let before = open.len();
        let mut ended = 0;
        open.retain(|watcher| {
            let wanted = entries.clone().filter(|entry| (watcher.wants)(entry.agent, entry.key));
            let mut hashes = wanted.map(|entry| entry.hash).peekable();
            if hashes.peek().is_none() {
                return true;
            }
            let mut state = watcher.queue.lock();
            if state.gone {
                ended += 1;
                return false;
            }
            for hash in hashes {
                if state.waiting.len() == limits::MEMORY_WATCH_QUEUE_MAX {
                    state.dropped = true;
                    break;
                }
                state.waiting.push_back(hash);
            }
            watcher.queue.more.notify_one();
            !state.dropped
        });
        before - open.len() - ended
    }

    /// Ends all watches; what waits for them is still heard.
    pub fn close(&self) {
        for watcher in self.lock().drain(..) {
            watcher.queue.lock().closed = true;
            watcher.queue.more.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver {
    /// The next thing, waiting for it at most so long.
    pub fn next(&self, timeout: Duration) -> Heard {
        let deadline = Instant::now() + timeout;
        let mut state = self.queue.lock();
        loop {
            if let Some(hash) = state.waiting.pop_front() {
                return Heard::Entry(hash);
            }
            if state.dropped {
                return Heard::Dropped;
            }
            if state.closed {
                return Heard::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Silence;
            }
            state = self.queue.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.gone = true;
        state.waiting = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentName {
        name.parse().unwrap()
    }

    fn publish(watchers: &Watchers, name: &str, key: &str, number: u8) -> usize {
        let agent = agent(name);
        let entry = Committed { agent: &agent, key, hash: Digest([number; 32]) };
        watchers.publish([entry].into_iter())
    }

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn a_watcher_hears_what_it_wants_in_order_and_nothing_else() {
        let watchers = Watchers::default();
        let own = agent("a");
        let watch = watchers
            .watch(Some(own.clone()), move |agent, key| *agent == own && key.starts_with("n/"))
            .unwrap();
        for (number, (name, key)) in
            [("a", "n/1"), ("b", "n/1"), ("a", "m"), ("a", "n/2")].into_iter().enumerate()
        {
            assert_eq!(publish(&watchers, name, key, number as u8), 0);
        }
        assert_eq!(watch.next(NOW), Heard::Entry(Digest([0; 32])));
        assert_eq!(watch.next(NOW), Heard::Entry(Digest([3; 32])));
        assert_eq!(watch.next(NOW), Heard::Silence);
        publish(&watchers, "a", "n/", 4);
        watchers.close();
        assert_eq!(watch.next(NOW), Heard::Entry(Digest([4; 32])), "what waits is heard before the end");
        assert_eq!(watch.next(NOW), Heard::Closed);
    }

    #[test]
    fn a_slow_watcher_is_told_and_the_writer_and_others_go_on() {
        let watchers = Watchers::default();
        let (slow, quick) =
            (watchers.watch(None, |_, _| true).unwrap(), watchers.watch(None, |_, _| true).unwrap());
        let mut dropped = 0;
        for number in 0..limits::MEMORY_WATCH_QUEUE_MAX * 4 {
            dropped += publish(&watchers, "a", "k", number as u8);
            assert_eq!(quick.next(NOW), Heard::Entry(Digest([number as u8; 32])));
        }
        assert_eq!(dropped, 1);
        for number in 0..limits::MEMORY_WATCH_QUEUE_MAX {
            assert_eq!(slow.next(NOW), Heard::Entry(Digest([number as u8; 32])), "no gap before the end");
        }
        assert_eq!((slow.next(NOW), slow.next(NOW)), (Heard::Dropped, Heard::Dropped));
    }

    #[test]
    fn places_are_counted_by_agent_and_come_back() {
        let watchers = Watchers::default();
        let take = |who: Option<&str>| watchers.watch(who.map(agent), |_, _| false);
        let mut held: Vec<_> = (0..limits::MEMORY_WATCHERS_MAX).map(|_| take(Some("a")).unwrap()).collect();
        assert_eq!(take(Some("a")).unwrap_err(), TooMany);
        assert!(take(Some("b")).is_ok() && take(None).is_ok());
        held.pop();
        assert!(take(Some("a")).is_ok());
    }

    /// Writers that publish under one lock, as the writer's thread does, while watchers begin at any time: each hears every entry from
    /// some point on, without a gap.
    #[test]
    fn nothing_is_missed_from_the_beginning_of_a_watch() {
        let watchers = Watchers::default();
        let committed = Mutex::new(0u32);
        let hash = |number: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            Digest(bytes)
        };
        const LAST: u32 = 20_000;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let agent = agent("a");
                    loop {
                        let mut next = committed.lock().unwrap();
                        if *next == LAST {
                            return;
                        }
                        *next += 1;
                        watchers
                            .publish([Committed { agent: &agent, key: "k", hash: hash(*next) }].into_iter());
                    }
                });
            }
            for _ in 0..4 {
                scope.spawn(|| {
                    let deadline = Instant::now() + Duration::from_secs(60);
                    while Instant::now() < deadline {
                        let watch = watchers.watch(None, |_, _| true).unwrap();
                        // What is known now was committed before; the next heard of is the next one or, at most, known already.
                        let known = *committed.lock().unwrap();
                        let mut expected = None;
                        loop {
                            match watch.next(Duration::from_millis(200)) {
                                Heard::Entry(found) => {
                                    let number = u32::from_le_bytes(found.0[..4].try_into().unwrap());
                                    assert!(number <= expected.unwrap_or(known + 1), "a gap before {number}");
                                    assert!(expected.is_none_or(|expected| number == expected));
                                    expected = Some(number + 1);
                                }
                                Heard::Dropped => break,
                                Heard::Silence if *committed.lock().unwrap() == LAST => return,
                                Heard::Silence | Heard::Closed => {}
                            }
                        }
                    }
                    panic!("the watch did not end in 60 s");
                });
            }
        });
    }
}
