//! A life while the agent's command runs: what is asked of it, what the guest says, and the bounds that time alone reaches.
//!
//! Must hold: whatever comes is answered within a bounded time; a quarantined guest's words count for nothing.

use abi::guest::Health;
use abi::ledger::Event;
use abi::log;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;

use super::vigil::{Change, Verdict, Vigil};
use super::{End, Life, Mail, again, note};
use crate::guest::Said;
use crate::lease;
use crate::state::Happening;

impl Life<'_> {
    /// The agent runs until something ends it.
    pub(super) fn go_on(&mut self) -> End {
        let mut vigil = Vigil::new(&self.order.loaded.manifest, Instant::now());
        loop {
            if let Some(verdict) = self.watch(&mut vigil) {
                return self.expire(verdict);
            }
            let due = if self.held.is_quarantined { None } else { vigil.due(self.held.frozen.is_some()) };
            let mail = self.next(due);
            // The mailbox may have been too full to tell of either.
            if self.asked_to_stop() {
                return End::Stopped;
            }
            let ask = self.agent.facts().asks.pop_front();
            if let Some(ask) = ask {
                mail.into_iter().for_each(|mail| self.waiting.push_front(mail));
                self.steered(ask, &mut vigil);
                continue;
            }
            match mail {
                Ok(Mail::Asked | Mail::Connected(_) | Mail::Guest(Said::Hello(_) | Said::Ready(_))) => {}
                Ok(Mail::Guest(Said::Synced)) => self.agent.facts().heard = Some(Instant::now()),
                Ok(Mail::Guest(_)) if self.held.is_quarantined => {} // said before it was frozen
                Ok(Mail::Guest(Said::Health(health))) => {
                    if let Some(verdict) = self.checked(&mut vigil, &health) {
                        return self.expire(verdict);
                    }
                }
                Ok(other) => return self.ended_by(other),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return End::Broken("nobody is left to tell how it ends".into());
                }
            }
        }
    }

    /// Looks at the bounds that time alone reaches.
    fn watch(&mut self, vigil: &mut Vigil) -> Option<Verdict> {
        let now = Instant::now();
        if self.held.is_quarantined {
            return None;
        }
        if let Some(verdict) = vigil.age(now) {
            return Some(verdict);
        }
        if self.held.frozen.is_some() {
            return None;
        }
        if vigil.is_look_due(now) {
            let session = self.held.session.as_ref();
            let used = session.and_then(|session| now.checked_sub(session.idle())).unwrap_or(now);
            let runs_execs = session.is_some_and(|session| session.execs_running() > 0);
            let asks = self.held.desk.as_ref().is_some_and(|desk| desk.asking() > 0);
            let is_attended = runs_execs || asks || self.agent.is_attended();
            let bytes = self.network_bytes();
            if let Some(verdict) = vigil.saw(now, used, is_attended, bytes) {
                return Some(verdict);
            }
        }
        let detail = vigil.silence(now)?;
        self.checked(vigil, &Health { healthy: false, detail })
    }

    /// What went over its network, if it has one and egress says so.
    fn network_bytes(&self) -> Option<u64> {
        let manifest = &self.order.loaded.manifest;
        let is_connected = !manifest.network_allow.is_empty() || !manifest.publish.is_empty();
        let used = is_connected.then(|| lease::network_use(&self.cage.places.egress)).flatten()?;
        used.get(self.instance()).map(|own| own.bytes_out.saturating_add(own.bytes_in))
    }

    /// Tells of a health check's outcome, where it changed something.
    fn checked(&mut self, vigil: &mut Vigil, health: &Health) -> Option<Verdict> {
        let (change, verdict) = vigil.checked(Instant::now(), health.healthy, &health.detail);
        if change != Change::None {
            self.agent.update(|facts| facts.healthy = vigil.healthy());
        }
        match change {
            Change::None => {}
            Change::BecameHealthy => self.cage.events.push(&self.agent.name, "healthy", &health.detail),
            Change::BecameUnhealthy => {
                self.cage.events.push(&self.agent.name, "unhealthy", &health.detail);
                note(
                    self.cage,
                    Event::AgentUnhealthy {
                        instance: self.instance().clone(),
                        detail: health.detail.clone(),
                    },
                );
            }
        }
        verdict
    }

    /// The life is to end by a bound of its manifest.
    fn expire(&mut self, verdict: Verdict) -> End {
        let (by, end) = match verdict {
            Verdict::Lifetime(why) => ("lifetime", End::Expired(again::Outcome::Lifetime, why)),
            Verdict::Idle(why) => ("idle", End::Expired(again::Outcome::Idle, why)),
            Verdict::Unhealthy(why) => ("health check", End::Unhealthy(why)),
        };
        self.agent.update(|facts| {
            if facts.stopped_by.is_empty() {
                facts.stopped_by = by.to_owned();
            }
            if let Err(illegal) = facts.state.let_happen(Happening::StopAsked) {
                log::error("state_table_disagrees", &[("illegal", &format!("{illegal:?}"))]);
            }
        });
        end
    }
}
