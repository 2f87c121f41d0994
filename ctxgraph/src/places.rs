//! Places in which agents' requests are served: so many at a time, and so many of each agent, given in turn.
//!
//! What a request and its answer take in memory is taken only in a place. Must hold: an agent that asks a lot waits behind itself.

use abi::ids::AgentName;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Places of one kind.
#[derive(Debug)]
pub struct Places {
    /// Of one agent at most.
    each: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// Whose turn is next; an agent that waits and may have one more is there once.
    turns: VecDeque<AgentName>,
    agents: HashMap<AgentName, Line>,
}

/// What one agent has, and waits for.
#[derive(Debug, Default)]
struct Line {
    waiting: usize,
    held: usize,
    /// Of those held, the ones that none of those who wait has taken yet.
    given: usize,
    has_turn: bool,
    more: Arc<Condvar>,
}

/// One place; dropped, it is the next one's.
#[derive(Debug)]
pub struct Place<'a> {
    places: &'a Places,
    agent: AgentName,
}

impl Places {
    pub fn new(count: usize, each: usize) -> Places {
        Places { each, state: Mutex::new(State { free: count, ..State::default() }) }
    }

    /// Waits for a place.
    pub fn take(&self, agent: &AgentName) -> Place<'_> {
        let mut state = self.lock();
        let line = state.agents.entry(agent.clone()).or_default();
        line.waiting += 1;
        let more = line.more.clone();
        state.queue(agent, self.each);
        state.give(self.each);
        loop {
            if let Some(line) = state.agents.get_mut(agent).filter(|line| line.given > 0) {
                line.given -= 1;
                line.waiting -= 1;
                return Place { places: self, agent: agent.clone() };
            }
            state = more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives an agent its turn, where it waits and may have one more.
    fn queue(&mut self, agent: &AgentName, each: usize) {
        let Some(line) = self.agents.get_mut(agent) else { return };
        if line.waiting > line.given && line.held < each && !line.has_turn {
            line.has_turn = true;
            self.turns.push_back(agent.clone());
        }
    }

    fn give(&mut self, each: usize) {
        while self.free > 0 {
            let Some(agent) = self.turns.pop_front() else { return };
            let Some(line) = self.agents.get_mut(&agent) else { continue };
            self.free -= 1;
            line.has_turn = false;
            line.held += 1;
            line.given += 1;
            line.more.notify_one();
            self.queue(&agent, each);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.free += 1;
        let line = state.agents.entry(self.agent.clone()).or_default();
        line.held = line.held.saturating_sub(1);
        if line.held == 0 && line.waiting == 0 {
            state.agents.remove(&self.agent);
        }
        state.queue(&self.agent, self.places.each);
        state.give(self.places.each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn an_agent_has_one_place_and_waits_behind_itself() {
        let places = Places::new(2, 1);
        let agent = |name: &str| -> AgentName { name.parse().unwrap() };
        let (told, hear) = channel();
        std::thread::scope(|scope| {
            let first = places.take(&agent("flood"));
            for _ in 0..5 {
                let (told, places) = (told.clone(), &places);
                scope.spawn(move || {
                    let _place = places.take(&agent("flood"));
                    told.send("flood").unwrap();
                });
            }
            let quiet = || hear.recv_timeout(Duration::from_millis(100)).is_err();
            assert!(quiet(), "an agent has one place");
            let other = places.take(&agent("b"));
            let (told, waits) = (told.clone(), &places);
            scope.spawn(move || {
                let _place = waits.take(&agent("c"));
                told.send("c").unwrap();
            });
            assert!(quiet(), "all places are taken");
            drop(first);
            let heard: Vec<_> = (0..6).map(|_| hear.recv().unwrap()).collect();
            assert_eq!(heard[0], "c", "{heard:?}");
            drop(other);
        });
        let state = places.lock();
        assert!(state.free == 2 && state.agents.is_empty() && state.turns.is_empty(), "{state:?}");
    }

    #[test]
    fn places_are_never_more_than_there_are_nor_than_each_may_have() {
        let places = Places::new(3, 2);
        let now: Vec<_> = (0..4).map(|_| std::sync::atomic::AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (places, now) = (&places, &now);
                scope.spawn(move || {
                    use std::sync::atomic::Ordering::SeqCst;
                    let number = thread % 4;
                    for _ in 0..200 {
                        let _place = places.take(&format!("a{number}").parse().unwrap());
                        assert!(now[number].fetch_add(1, SeqCst) < 2);
                        assert!(now.iter().map(|count| count.load(SeqCst)).sum::<usize>() <= 3);
                        std::thread::yield_now();
                        now[number].fetch_sub(1, SeqCst);
                    }
                });
            }
        });
        let state = places.lock();
        assert!(state.free == 3 && state.agents.is_empty() && state.turns.is_empty(), "{state:?}");
    }
}
