//! All services together: who may start, who may stop, whose time is up.
//!
//! Must hold: a service starts when all it needs are ready, and stops after all that need it have ended; the order
//! does not depend on hash order. Must never: stop a service because one that it needs is being restarted.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use abi::node::{NodeConfig, ServiceConfig, start_order};
use nix::sys::wait::WaitStatus;

use crate::service::{Around, Unit};
use crate::table::{Event, State};

/// The units, in start order.
#[derive(Debug, Default)]
pub struct Supervisor {
    pub units: Vec<Unit>,
}

impl Supervisor {
    /// Makes the units of a configuration, and those that nulld brings itself.
    pub fn new(
        config: &NodeConfig,
        builtin: &BTreeMap<String, ServiceConfig>,
        epoll: &OwnedFd,
        socket_dir: &str,
    ) -> io::Result<Supervisor> {
        let mut services = config.services.clone();
        services.extend(builtin.clone());
        let order = start_order(&services)
            .map_err(|circle| io::Error::other(format!("service {circle} is part of a circle of needs")))?;
        let mut units = Vec::new();
        for (index, name) in (0u32..).zip(&order) {
            if let Some(service) = services.get(name) {
                let unit = Unit::new(index, name, service, epoll, socket_dir)
                    .map_err(|error| io::Error::new(error.kind(), format!("service {name}: {error}")))?;
                units.push(unit);
            }
        }
        Ok(Supervisor { units })
    }

    /// A service by name.
    pub fn unit(&self, name: &str) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.name == name)
    }

    /// Starts every waiting service whose needs are met. Repeats, since starting may fail at once.
    pub fn start_waiting(&mut self, around: &mut Around<'_>) {
        let ready: Vec<bool> = self
            .units
            .iter()
            .map(|unit| {
                unit.state == State::Waiting
                    && unit
                        .config
                        .needs
                        .iter()
                        .all(|need| self.unit(need).is_some_and(|needed| needed.state == State::Ready))
            })
            .collect();
        for (unit, may_start) in self.units.iter_mut().zip(ready) {
            if may_start {
                unit.apply(Event::NeedsMet, around);
            }
        }
    }

    /// Stops every service that none still running needs, except those that `keep` names.
    pub fn stop_eligible(&mut self, keep: Option<&str>, around: &mut Around<'_>) {
        let eligible: Vec<bool> = self
            .units
            .iter()
            .map(|unit| {
                let is_needed = self
                    .units
                    .iter()
                    .any(|other| !other.state.is_over() && other.config.needs.contains(&unit.name));
                !is_needed && !unit.state.is_over() && keep != Some(unit.name.as_str())
            })
            .collect();
        for (unit, may_stop) in self.units.iter_mut().zip(eligible) {
            if may_stop && !matches!(unit.state, State::Stopping | State::KillingStop) {
                unit.apply(Event::Stop, around);
            }
        }
    }

    /// Raises the timeouts that are due.
    pub fn time_out(&mut self, now_ms: u64, around: &mut Around<'_>) {
        for unit in &mut self.units {
            if unit.deadline.is_some_and(|deadline| deadline <= now_ms) {
                unit.timed_out(around);
            }
        }
    }

    /// The next timeout.
    pub fn next_deadline(&self) -> Option<u64> {
        self.units.iter().filter_map(|unit| unit.deadline).min()
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
