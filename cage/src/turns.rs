//! Turns: how many guests boot at one time. What boots side by side on too few CPUs is late for its own timers, and all are
//! late together.
//!
//! Must hold: turns are given in the order in which they were asked for; one that is not wanted any more holds up nobody.

use abi::limits;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often one that waits looks whether it is still wanted.
const LOOK_MS: u64 = 200;

/// The places. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Turns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    places: usize,
    line: Mutex<Line>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    booting: usize,
    next: u64,
    waiting: VecDeque<u64>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Inner>);

impl Turns {
    /// As many as this machine has CPUs, within [`limits::GUESTS_BOOTING_MAX`].
    pub fn of_machine() -> Turns {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Turns::new(cpus.min(limits::GUESTS_BOOTING_MAX))
    }

    /// As many as that.
    pub fn new(places: usize) -> Turns {
        Turns { inner: Arc::new(Inner { places, line: Mutex::default(), changed: Condvar::new() }) }
    }

    /// Waits in line for a place; none once `wanted` says no.
    pub fn take(&self, wanted: &mut dyn FnMut() -> bool) -> Option<Turn> {
        let inner = &self.inner;
        let mut line = inner.lock();
        let ticket = line.next;
        line.next += 1;
        line.waiting.push_back(ticket);
        while line.booting >= inner.places || line.waiting.front() != Some(&ticket) {
            // Not under the lock: what it asks may take a lock itself.
            drop(line);
            let go_on = wanted();
            line = inner.lock();
            if !go_on {
                line.waiting.retain(|waiting| *waiting != ticket);
                inner.changed.notify_all();
                return None;
            }
            if line.booting < inner.places && line.waiting.front() == Some(&ticket) {
                break;
            }
            let patience = Duration::from_millis(LOOK_MS);
            line = inner.changed.wait_timeout(line, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
        line.waiting.pop_front();
        line.booting += 1;
        inner.changed.notify_all();
        Some(Turn(inner.clone()))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().booting -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn never_more_than_the_places_and_everybody_gets_one() {
        let turns = Turns::new(2);
        let (now, most, all) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let turn = turns.take(&mut || true).unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                    now.fetch_sub(1, Ordering::SeqCst);
                    all.fetch_add(1, Ordering::SeqCst);
                    drop(turn);
                });
            }
        });
        assert_eq!((most.into_inner(), all.into_inner()), (2, 20));
    }

    #[test]
    fn one_that_is_stopped_while_it_waits_holds_up_nobody() {
        let turns = Turns::new(1);
        let first = turns.take(&mut || true).unwrap();
        assert!(turns.take(&mut || false).is_none());
        let later = turns.clone();
        let waiting = std::thread::spawn(move || later.take(&mut || true).is_some());
        drop(first);
        assert!(waiting.join().unwrap());
        assert_eq!(turns.inner.lock().waiting.len(), 0);
    }

    #[test]
    fn turns_come_in_the_order_they_were_asked_for() {
        let turns = Turns::new(1);
        let first = turns.take(&mut || true).unwrap();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for number in 0..5 {
                while turns.inner.lock().waiting.len() < number {
                    std::thread::yield_now();
                }
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take(&mut || true);
                    order.lock().unwrap().push(number);
                });
            }
            while turns.inner.lock().waiting.len() < 5 {
                std::thread::yield_now();
            }
            drop(first);
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3, 4]);
    }
}
