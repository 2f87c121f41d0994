//! What an operator asks of a life under way: to pause, to go on, to be quarantined. Done on the life's own thread, so that
//! nothing else changes its VM meanwhile.
//!
//! Must hold: an agent is said to be frozen when the kernel says so; nobody goes on without a receipt. A quarantine waits for
//! nothing, not for its receipt either: it only takes authority away. A VM that cannot be frozen for it is killed.

use abi::control::AgentState;
use abi::ledger::Event;
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::vigil::Vigil;
use super::{Life, Mail, note, record};
use crate::guest::Said;
use crate::output::unix_ms;
use crate::state::{self, Happening};
use crate::{evidence, freezer, order};

/// Something asked of a life.
#[derive(Debug)]
pub struct Ask {
    pub change: Change,
    /// Who asks.
    pub by: String,
    /// Takes the outcome; nobody may be left to take it.
    pub answer: SyncSender<Result<(), RpcError>>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Pause,
    Resume,
    Quarantine { reason: String },
}

impl Change {
    /// As the table of states has it.
    pub fn happening(&self) -> Happening {
        match self {
            Change::Pause => Happening::PauseAsked,
            Change::Resume => Happening::ResumeAsked,
            Change::Quarantine { .. } => Happening::QuarantineAsked,
        }
    }
}

impl Ask {
    /// Says that it is not legal in this state.
    pub(super) fn refuse(self, state: AgentState) {
        let why = match state::next(state, self.change.happening()) {
            Err(illegal) => illegal.into(),
            Ok(_) => RpcError::new(Code::CONFLICT, "the agent is ending"),
        };
        let _ = self.answer.send(Err(why)); // the caller went away
    }
}

impl Life<'_> {
    /// Does what is asked, and answers.
    pub(super) fn steered(&mut self, ask: Ask, vigil: &mut Vigil) {
        let state = self.agent.facts().state.now();
        if state::next(state, ask.change.happening()).is_err() {
            return ask.refuse(state);
        }
        let outcome = match &ask.change {
            Change::Pause => self.pause(&ask.by),
            Change::Resume => self.resume(&ask.by, vigil),
            Change::Quarantine { reason } => self.quarantine(&ask.by, reason),
        };
        let _ = ask.answer.send(outcome); // the caller went away
    }

    fn cgroup(&self) -> Result<PathBuf, RpcError> {
        let cgroup = self.held.cgroup.as_ref().map(|cgroup| cgroup.dir().to_owned());
        cgroup.ok_or_else(|| RpcError::new(Code::INTERNAL, "a running VM without a cgroup"))
    }

    /// The state's next, unless somebody asked for the end meanwhile.
    fn becomes(&self, happening: Happening) -> Result<(), RpcError> {
        Ok(self.agent.update(|facts| facts.state.let_happen(happening)).map(|_| ())?)
    }

    fn pause(&mut self, by: &str) -> Result<(), RpcError> {
        let cgroup = self.cgroup()?;
        let session = self.held.session.clone();
        let synced = match &session {
            Some(session) => {
                // Asked before it is held: a guest that reads nothing is found out by the time this write takes.
                let is_asked = session.sync().is_ok();
                session.hold();
                is_asked && self.await_sync()
            }
            None => false,
        };
        let frozen = match self.is_pressed() {
            true => Err(RpcError::new(Code::CONFLICT, "the agent is ending")),
            false => freezer::freeze(&cgroup)
                .map_err(|error| RpcError::new(Code::FAILED, format!("it could not be frozen: {error}"))),
        };
        let paused = frozen.and_then(|()| {
            self.held.frozen = Some(Instant::now());
            self.becomes(Happening::PauseAsked)
        });
        if let Err(error) = paused {
            self.go_on_again()?;
            return Err(error);
        }
        let detail =
            if synced { "disks written out" } else { "the guest did not write its disks out in time" };
        log::info("agent_paused", &[("instance", self.instance()), ("by", &by), ("synced", &synced)]);
        self.cage.events.push(&self.agent.name, "paused", detail);
        note(self.cage, Event::AgentPaused { instance: self.instance().clone(), by: by.to_owned() });
        Ok(())
    }

    /// Waits until the guest has written its disks out; no longer than it may take, nor when something more urgent comes.
    fn await_sync(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_millis(limits::PAUSE_SYNC_MS_MAX);
        while !self.is_pressed() && Instant::now() < deadline {
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.order.mail.recv_timeout(patience) {
                Ok(Mail::Guest(Said::Synced)) => return true,
                // A guest may send any number of them, and they are not kept.
                Ok(Mail::Guest(Said::Health(_)) | Mail::Asked) => {}
                Ok(other) => self.waiting.push_back(other),
                Err(_) => return false,
            }
        }
        false
    }

    /// Something came that does not wait for a pause.
    fn is_pressed(&self) -> bool {
        let urgent = |mail: &Mail| match mail {
            Mail::Stop | Mail::VmmEnded(_) => true,
            Mail::Guest(said) => matches!(said, Said::Exited(_) | Said::Failed(_) | Said::Ended(_)),
            Mail::Connected(_) | Mail::Asked => false,
        };
        let is_quarantine = |ask: &Ask| matches!(ask.change, Change::Quarantine { .. });
        self.asked_to_stop()
            || self.waiting.iter().any(urgent)
            || self.agent.facts().asks.iter().any(is_quarantine)
    }

    fn resume(&mut self, by: &str, vigil: &mut Vigil) -> Result<(), RpcError> {
        // No copy of its disks is under way, and none begins before the state says that it runs.
        let _still = self.cage.disks.custody.begin_work(&self.agent.name, "it is being resumed")?;
        let event = Event::AgentResumed { instance: self.instance().clone(), by: by.to_owned() };
        self.cage.ledger.append(event).map_err(|error| {
            RpcError::new(Code::FAILED, format!("no receipt, so it does not go on: {error}"))
                .explained("an agent goes on after its receipt is durable", "see that ctxgraph is running")
        })?;
        let since = self.held.frozen;
        self.go_on_again()?;
        self.becomes(Happening::ResumeAsked)?;
        let paused = since.map_or(Duration::ZERO, |since| since.elapsed());
        vigil.resumed(paused);
        log::info("agent_resumed", &[("instance", self.instance()), ("by", &by)]);
        self.cage.events.push(&self.agent.name, "resumed", format!("after {} s", paused.as_secs()));
        Ok(())
    }

    /// Lets the VM go on, if it stands still, and tells the guest what time it is.
    pub(super) fn go_on_again(&mut self) -> Result<(), RpcError> {
        if self.held.frozen.is_some() {
            freezer::thaw(&self.cgroup()?).map_err(|error| {
                RpcError::new(Code::FAILED, format!("it could not be let go on: {error}"))
                    .explained("the kernel lets a frozen VM go on", "agent kill ends it all the same")
            })?;
            self.held.frozen = None;
        }
        if let Some(session) = &self.held.session {
            session.release();
            if let Err(error) = session.clock(order::clock_unix_ns()) {
                log::warning("clock_not_told", &[("instance", self.instance()), ("error", &error)]);
            }
        }
        Ok(())
    }

    fn quarantine(&mut self, by: &str, reason: &str) -> Result<(), RpcError> {
        let (cage, instance) = (self.cage, self.instance().clone());
        let failed = |what: String| RpcError::new(Code::FAILED, what);
        let cgroup = self.cgroup()?;
        // The mark on disk comes first: an agent that is quarantined must not be forgotten by who comes after.
        evidence::begin(&cage.places, &instance).map_err(|error| {
            RpcError::new(Code::LIMIT, format!("there is no place for its evidence: {error}")).explained(
                "a quarantine keeps everything, and deletes no older evidence for it",
                "agent evidence remove what is not needed; until then agent pause freezes it, agent kill ends it",
            )
        })?;
        // Before its state says so, which lets copies begin: none may before it stands still. One under way is of a paused VM.
        let _still = cage.disks.custody.begin_work(&self.agent.name, "it is being quarantined").ok();
        if let Err(ending) = self.becomes(Happening::QuarantineAsked) {
            if let Err(error) = evidence::remove(&cage.places, &instance) {
                log::error("evidence_not_removed", &[("instance", &instance), ("error", &error)]);
            }
            return Err(ending);
        }
        self.held.is_quarantined = true;
        if let Some(session) = self.held.session.as_ref().filter(|_| self.held.frozen.is_none()) {
            session.hold();
        }
        let frozen = freezer::freeze(&cgroup);
        match &frozen {
            Ok(()) => self.held.frozen = Some(Instant::now()),
            Err(_) => self.kill_unfrozen(by),
        }
        self.held.keeper = None; // its network and its memory end here, frozen or not
        cage.want(|agents| agents.retain(|agent| agent.instance != instance));
        let (by, reason) = (by.to_owned(), reason.to_owned());
        log::warning("agent_quarantined", &[("instance", &instance), ("by", &by), ("reason", &reason)]);
        cage.events.push(&self.agent.name, "quarantined", &reason);
        self.agent.update(|facts| facts.detail = format!("quarantined by {by}: {reason}"));
        record(
            cage,
            Event::AgentQuarantined { instance: instance.clone(), by: by.clone(), reason: reason.clone() },
        );
        let status = cage.status(&instance.agent)?;
        let known = evidence::Record {
            instance: &instance,
            by: &by,
            reason: &reason,
            unix_ms: unix_ms(),
            status: &status,
        };
        let log = cage.places.state.join("logs").join(format!("{}.log", instance.agent));
        evidence::write(&cage.places, &known, &self.console.tail(usize::MAX).0, &log).map_err(|error| {
            failed(format!("it is quarantined, but its evidence is not all kept: {error}"))
        })?;
        frozen.map_err(|error| {
            failed(format!("it could not be frozen, so it was killed: {error}")).explained(
                "a quarantined VM stands still, or ends",
                "nothing: its network is cut, and its disk becomes evidence; see agent evidence list",
            )
        })
    }

    /// Ends a VM that was to stand still and does not. Its state says so first, so that nobody copies a disk that is written to.
    fn kill_unfrozen(&mut self, by: &str) {
        let ends = self.agent.update(|facts| {
            (facts.is_killed, facts.is_unwanted) = (true, true);
            if facts.stopped_by.is_empty() {
                facts.stopped_by = by.to_owned();
            }
            facts.state.let_happen(Happening::KillAsked)
        });
        if let Err(illegal) = ends {
            log::error("state_table_disagrees", &[("illegal", &format!("{illegal:?}"))]);
        }
        if let Some(Err(error)) = self.held.cgroup.as_ref().map(|cgroup| cgroup.kill()) {
            // It is killed again when it is torn down.
            log::error("agent_not_killed", &[("instance", self.instance()), ("error", &error)]);
        }
        self.waiting.push_back(Mail::Stop); // so that it is torn down, whether its VMM ends or not
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::bench;
    use crate::agents::{Cage, Cause};
    use crate::disks::Disks;
    use crate::life::{End, MAIL_MAX, Order};
    use abi::guest::Health;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const BY: &str = "alice";

    fn life<'a>(cage: &'a Arc<Cage>, agent: &'a Arc<crate::agent::Agent>) -> Life<'a> {
        let order = cage.begin(agent, Cause::asked(BY)).unwrap();
        agent.update(|facts| facts.state.let_happen(Happening::Ready)).unwrap();
        Life {
            cage,
            agent,
            order,
            console: Arc::default(),
            held: crate::life::Held::default(),
            waiting: Default::default(),
            ran_since: None,
        }
    }

    /// A guest that says nothing but how well it is, as fast as it is heard, until told to end.
    fn flood(order: &Order) -> (Arc<AtomicBool>, std::thread::JoinHandle<()>) {
        let (mailbox, ends) = (order.mailbox.clone(), Arc::new(AtomicBool::new(false)));
        let told = ends.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let health = Health { healthy: true, detail: String::new() };
                if mailbox.send(Mail::Guest(Said::Health(health))).is_err() {
                    return;
                }
            }
        });
        (ends, thread)
    }

    #[test]
    fn a_guest_that_floods_draws_no_wait_out_and_fills_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let cage = bench::cage(dir.path(), &["a"]);
        let agent = cage.agent(&"a".parse().unwrap());
        let mut life = life(&cage, &agent);
        let (ends, thread) = flood(&life.order);
        assert!(!life.await_sync());
        assert!(life.waiting.len() <= 1, "{}", life.waiting.len());
        life.await_vmm(Duration::from_millis(200));
        ends.store(true, Ordering::Relaxed);
        drop(life);
        thread.join().unwrap();
    }

    #[test]
    fn a_guest_that_floods_keeps_nobody_from_asking() {
        let dir = tempfile::tempdir().unwrap();
        let cage = bench::cage(dir.path(), &["a"]);
        let name = "a".parse().unwrap();
        let agent = cage.agent(&name);
        let mut life = life(&cage, &agent);
        for _ in 0..MAIL_MAX {
            let health = Health { healthy: true, detail: String::new() };
            life.order.mailbox.try_send(Mail::Guest(Said::Health(health))).unwrap();
        }
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| crate::steer::change(&cage, &name, Change::Pause, BY.into()));
            let going = scope.spawn(|| life.go_on());
            // This life has no VM, so it cannot be paused; but it is heard.
            let error = asking.join().unwrap().map(drop).unwrap_err();
            assert!(error.message.contains("cgroup"), "{error}");
            cage.stop(&name, BY).unwrap();
            assert!(matches!(going.join().unwrap(), End::Stopped));
        });
    }

    #[test]
    fn a_vm_that_cannot_be_frozen_for_a_quarantine_is_killed_and_its_disk_is_evidence() {
        let dir = tempfile::tempdir().unwrap();
        let cage = bench::cage(dir.path(), &["a"]);
        let agent = cage.agent(&"a".parse().unwrap());
        let mut life = life(&cage, &agent);
        let (instance, manifest) = (life.instance().clone(), life.order.loaded.manifest.clone());
        let cgroup = bench::vm(&cage, &instance);
        let killed = cgroup.dir().join("cgroup.kill");
        life.held.cgroup = Some(Arc::new(cgroup));
        let rootfs = abi::ids::Digest([0; 32]);
        life.held.disks = Some(Disks::prepare(&cage, &instance, &manifest, rootfs, 0).unwrap());
        let error = life.quarantine(BY, "odd").unwrap_err();
        assert!(error.message.contains("so it was killed"), "{error}");
        assert_eq!(std::fs::read_to_string(&killed).unwrap(), "1");
        assert_eq!(agent.facts().state.now(), AgentState::Stopping, "so no disk of it is copied");
        let end = life.go_on();
        assert!(matches!(end, End::Stopped), "{end:?}");
        life.wind_down(&end);
        let problems = life.tear_down();
        life.conclude(end, &problems);
        assert!(evidence::dir(&cage.places, &instance).join("workspace.ext4").exists());
        let facts = agent.facts();
        assert_eq!((facts.state.now(), facts.restart), (AgentState::Stopped, None));
        assert!(facts.detail.contains("quarantined by alice: odd"), "{}", facts.detail);
    }

    #[test]
    fn who_asks_when_it_ends_hears_that_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let cage = bench::cage(dir.path(), &["a"]);
        let name = "a".parse().unwrap();
        let agent = cage.agent(&name);
        let life = life(&cage, &agent);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| crate::steer::change(&cage, &name, Change::Pause, BY.into()));
            while agent.facts().asks.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            agent.update(|facts| facts.end(Happening::Broke, String::new()));
            let error = asking.join().unwrap().map(drop).unwrap_err();
            assert!(error.message.contains("ended meanwhile"), "{error}");
        });
        drop(life);
    }
}
