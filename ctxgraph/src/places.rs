//! Places in which agents' requests are served: so many at a time, one of each agent, given in turn.
//!
//! What a request and its answer take in memory is taken only in a place. Must hold: an agent that asks a lot waits behind itself.

use abi::ids::AgentName;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Places of one kind.
#[derive(Debug)]
pub struct Places {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// Whose turn is next; an agent that waits and has no place is there once.
    turns: VecDeque<AgentName>,
    agents: HashMap<AgentName, Line>,
}

/// What one agent has, and waits for.
#[derive(Debug, Default)]
struct Line {
    waiting: usize,
    held: bool,
    /// It has a place that none of those who wait has taken yet.
    given: bool,
    more: Arc<Condvar>,
}

/// One place; dropped, it is the next one's.
#[derive(Debug)]
pub struct Place<'a> {
    places: &'a Places,
    agent: AgentName,
}

impl Places {
    pub fn new(count: usize) -> Places {
        Places { state: Mutex::new(State { free: count, ..State::default() }) }
    }

    /// Waits for a place.
    pub fn take(&self, agent: &AgentName) -> Place<'_> {
        let mut state = self.lock();
        let line = state.agents.entry(agent.clone()).or_default();
        line.waiting += 1;
        let more = line.more.clone();
        if line.waiting == 1 && !line.held {
            state.turns.push_back(agent.clone());
            state.give();
        }
        loop {
            if let Some(line) = state.agents.get_mut(agent).filter(|line| line.given) {
                line.given = false;
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
    fn give(&mut self) {
        while self.free > 0 {
            let Some(agent) = self.turns.pop_front() else { return };
            let Some(line) = self.agents.get_mut(&agent) else { continue };
            self.free -= 1;
            (line.held, line.given) = (true, true);
            line.more.notify_one();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.free += 1;
        let waits = state.agents.get_mut(&self.agent).is_some_and(|line| {
            line.held = false;
            line.waiting > 0
        });
        if waits {
            state.turns.push_back(self.agent.clone());
        } else {
            state.agents.remove(&self.agent);
        }
        state.give();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn an_agent_has_one_place_and_waits_behind_itself() {
        let places = Places::new(2);
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
}
