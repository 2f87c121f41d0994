//! All services together: who may start, who must stop, whose time is up.
//!
//! Must hold: a service starts when all it needs are ready, and stops after all that need it have ended; one that fails for
//! good stops only what depends on it; the order does not depend on hash order. [`decide`] decides all of it and does nothing.
//! Must never: stop a service because one that it needs is being restarted.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use abi::node::{NodeConfig, ServiceConfig, start_order};
use nix::sys::wait::WaitStatus;

use crate::saved::{Kept, SavedUnit, Taken};
use crate::service::{Around, Lasting, Unit};
use crate::table::{Event, State};

/// The units, in start order.
#[derive(Debug, Default)]
pub struct Supervisor {
    pub units: Vec<Unit>,
    /// Of each unit, the places of those it needs; each is smaller than its own.
    needs: Vec<Vec<usize>>,
}

fn make(
    config: &NodeConfig,
    builtin: &BTreeMap<String, ServiceConfig>,
    mut unit: impl FnMut(u32, &str, &ServiceConfig) -> io::Result<Unit>,
) -> io::Result<Supervisor> {
    let mut services = config.services.clone();
    services.extend(builtin.clone());
    let order = start_order(&services)
        .map_err(|circle| io::Error::other(format!("service {circle} is part of a circle of needs")))?;
    let mut supervisor = Supervisor::default();
    for (index, name) in (0u32..).zip(&order) {
        if let Some(service) = services.get(name) {
            let made = unit(index, name, service)
                .map_err(|error| io::Error::new(error.kind(), format!("service {name}: {error}")))?;
            let place = |need: &String| order.iter().position(|other| other == need);
            supervisor.needs.push(service.needs.iter().filter_map(place).collect());
            supervisor.units.push(made);
        }
    }
    Ok(supervisor)
}

/// What is wanted of all services together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Run,
    /// End, except the one at this place and what it needs.
    End {
        keep: Option<usize>,
    },
}

/// Pure: what the state of each says to the others. `needs` holds places smaller than a service's own.
pub fn decide(states: &[State], needs: &[Vec<usize>], goal: Goal) -> Vec<(usize, Event)> {
    let state = |place: usize| states.get(place).copied().unwrap_or(State::Failed);
    let needs_of = |place: usize| needs.get(place).map(Vec::as_slice).unwrap_or_default();
    let is_needed = |place: usize, by: fn(State) -> bool| {
        (0..states.len()).any(|other| by(state(other)) && needs_of(other).contains(&place))
    };
    // What a service needs stands before it, so one pass finds what is lost over any number of steps.
    let mut lost: Vec<bool> = Vec::with_capacity(states.len());
    for place in 0..states.len() {
        let is_lost = |need: &usize| state(*need).is_over() || lost.get(*need).copied().unwrap_or(true);
        lost.push(needs_of(place).iter().any(is_lost));
    }
    let mut events = Vec::new();
    for (place, is_lost) in lost.into_iter().enumerate() {
        let event = match (goal, state(place)) {
            (Goal::Run, State::Waiting)
                if needs_of(place).iter().all(|need| state(*need) == State::Ready) =>
            {
                (!is_lost).then_some(Event::NeedsMet)
            }
            (Goal::Run, State::Starting | State::Ready) if is_lost => {
                (!is_needed(place, State::has_process)).then_some(Event::NeedsLost)
            }
            (Goal::Run, _) => None,
            (Goal::End { .. }, State::Stopping | State::KillingStop) => None,
            (Goal::End { .. }, now) if now == State::Stopped || now == State::Failed => None,
            (Goal::End { keep }, _) => {
                let is_kept = keep == Some(place) || is_needed(place, |other| !other.is_over());
                (!is_kept).then_some(Event::Stop)
            }
        };
        events.extend(event.map(|event| (place, event)));
    }
    events
}

impl Supervisor {
    /// Makes the units of a configuration, and those that nulld brings itself.
    pub fn new(
        config: &NodeConfig,
        builtin: &BTreeMap<String, ServiceConfig>,
        epoll: &OwnedFd,
        socket_dir: &str,
    ) -> io::Result<Supervisor> {
        make(config, builtin, |index, name, service| {
            Unit::new(index, name, service, epoll, Lasting::make(name, socket_dir)?)
        })
    }

    /// After a crash of nulld: takes over what runs, and kills what cannot be verified. The answer names who was taken over.
    pub fn adopt(
        config: &NodeConfig,
        builtin: &BTreeMap<String, ServiceConfig>,
        socket_dir: &str,
        saved: &[SavedUnit],
        taken: &mut Taken,
        around: &mut Around<'_>,
    ) -> io::Result<(Supervisor, Vec<String>)> {
        let mut adopted = Vec::new();
        let supervisor = make(config, builtin, |index, name, service| {
            let (lasting, outlived) = match Lasting::adopt(name, socket_dir, taken) {
                Ok(lasting) => (lasting, Ok(())),
                Err(why) => (Lasting::make(name, socket_dir)?, Err(why)),
            };
            let mut unit = Unit::new(index, name, service, around.epoll, lasting)?;
            let known = saved.iter().find(|one| one.name == name);
            if unit.adopt(known, outlived, taken, around) {
                adopted.push(name.to_owned());
            }
            Ok(unit)
        })?;
        Ok((supervisor, adopted))
    }

    /// What must be known of it after a crash.
    pub fn save(&self, kept: &mut Kept) -> Vec<SavedUnit> {
        self.units.iter().map(|unit| unit.save(kept)).collect()
    }

    /// A service by name.
    pub fn unit(&self, name: &str) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.name == name)
    }

    /// Takes every unit one step towards a goal.
    fn pursue(&mut self, goal: Goal, around: &mut Around<'_>) {
        let states: Vec<State> = self.units.iter().map(|unit| unit.state).collect();
        for (place, event) in decide(&states, &self.needs, goal) {
            match (self.units.get_mut(place), event) {
                (Some(unit), Event::NeedsMet) => unit.start(around),
                (Some(unit), event) => unit.apply(event, around),
                (None, _) => {}
            }
        }
    }

    /// Starts every service whose needs are met, and stops those whose needs have failed.
    pub fn run(&mut self, around: &mut Around<'_>) {
        self.pursue(Goal::Run, around);
        for place in 0..self.units.len() {
            let waits_for = self.waits_for(place);
            if let Some(unit) = self.units.get_mut(place).filter(|unit| unit.state == State::Waiting) {
                unit.note_waiting(waits_for);
            }
        }
    }

    fn waits_for(&self, place: usize) -> Option<String> {
        let needs = self.needs.get(place)?;
        let mut units = needs.iter().filter_map(|need| self.units.get(*need));
        let lacking = units.find(|unit| unit.state != State::Ready)?;
        Some(format!("needs {}, which is {}", lacking.name, lacking.state.name()))
    }

    /// Stops every service that none still running needs, except the one that `keep` names.
    pub fn stop_eligible(&mut self, keep: Option<&str>, around: &mut Around<'_>) {
        let keep = keep.and_then(|name| self.units.iter().position(|unit| unit.name == name));
        self.pursue(Goal::End { keep }, around);
    }

    /// Raises the timeouts that are due.
    pub fn time_out(&mut self, now_ms: u64, around: &mut Around<'_>) {
        for unit in &mut self.units {
            unit.time_out(now_ms, around);
        }
    }

    /// nulld itself stood still: no service can be blamed for silence.
    pub fn forgive_silence(&mut self, now_ms: u64) {
        for unit in &mut self.units {
            unit.forgive_silence(now_ms);
        }
    }

    /// The next timeout.
    pub fn next_deadline(&self) -> Option<u64> {
        self.units.iter().filter_map(Unit::next_deadline).min()
    }

    /// What is due with the services' logs.
    pub fn tick_logs(&mut self, epoll: &OwnedFd, journal: &mut crate::journal::Journal) {
        for unit in &mut self.units {
            unit.tick_log(epoll, journal);
        }
    }

    /// When [`Supervisor::tick_logs`] has something to do.
    pub fn next_log_deadline(&self) -> Option<u64> {
        self.units.iter().filter_map(Unit::log_deadline).min()
    }

    /// A process ended. False: it was nobody's, an orphan that PID 1 inherited.
    pub fn exited(&mut self, pid: u32, status: &WaitStatus, around: &mut Around<'_>) -> bool {
        match self.units.iter_mut().find(|unit| unit.pid == Some(pid)) {
            Some(unit) => {
                unit.exited(status, around);
                true
            }
            None => false,
        }
    }

    /// Names and states of those that are not ready.
    pub fn unready(&self) -> Vec<String> {
        self.units
            .iter()
            .filter(|unit| unit.state != State::Ready)
            .map(|unit| format!("{} is {}", unit.name, unit.state.name()))
            .collect()
    }

    /// Whether nothing runs any more.
    pub fn is_over(&self) -> bool {
        self.units.iter().all(|unit| unit.state.is_over())
    }
}

#[cfg(test)]
mod model_tests;
