//! The end of a life: the guest is let go, everything is given back, and what happened is told.
//!
//! Must hold: nothing of the VM is left when the agent's state says that it ended; an end that will be tried again stays wanted;
//! a quarantined VM is killed where it stands, and what it wrote is kept.

use abi::guest::Exit;
use abi::ids::Instance;
use abi::ledger::Event;
use abi::manifest::RestartPolicy;
use abi::{limits, log};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::again::{Outcome, Verdict, decide};
use super::{End, Life, Mail, note, record};
use crate::agent::{Agent, Due};
use crate::agents::{Cage, Cause};
use crate::guest::Said;
use crate::state::Happening;
use crate::{ending, evidence};

/// How long to wait for a better reason than a closed connection.
const REASON_MS_MAX: u64 = 2_000;
/// How long a guest has to halt after its grace.
const HALT_MS_MAX: u64 = 5_000;
/// Grace for execs once the agent's command has ended.
const EXEC_GRACE_MS: u64 = 1_000;
/// How long a killed VMM may take to be gone.
const KILL_MS_MAX: u64 = 10_000;
/// How long its console's last text may take to arrive.
const LAST_WORDS_MS_MAX: u64 = 500;

impl Life<'_> {
    /// A candidate without tools claims by ending well; what it left is read while its guest still serves.
    pub(super) fn take_claim(&self, end: &End) {
        if let (End::ByItself(exit), Some(errand), Some(session)) =
            (end, &self.order.errand, &self.held.session)
            && exit.code == Some(0)
            && self.order.loaded.manifest.authority.is_none()
        {
            errand.take_left(session);
        }
    }

    /// What an ending mail means.
    pub(super) fn ended_by(&mut self, mail: Mail) -> End {
        match mail {
            Mail::Stop => End::Stopped,
            Mail::VmmEnded(status) => {
                self.held.vmm_ended = Some(status);
                End::Broken(self.explain(status))
            }
            Mail::Asked => End::Broken("asked for what is not legal now".into()),
            Mail::Guest(Said::Exited(exit)) => End::ByItself(exit),
            Mail::Guest(Said::Failed(failed)) => End::Broken(ending::of_guest(&failed)),
            Mail::Guest(Said::Ended(why)) => self.better_reason(why),
            Mail::Connected(_)
            | Mail::Guest(Said::Hello(_) | Said::Ready(_) | Said::Synced | Said::Health(_)) => {
                End::Broken("the guest spoke out of turn".into())
            }
        }
    }

    fn explain(&self, status: ExitStatus) -> String {
        let oom = self.held.cgroup.as_ref().is_some_and(|cgroup| cgroup.out_of_memory());
        ending::of_vmm(status, oom, self.order.loaded.manifest.memory_mib, &self.last_words())
    }

    /// A closed connection is often the first sign of a VMM's end, and the lesser one.
    fn better_reason(&mut self, why: String) -> End {
        let deadline = Instant::now() + Duration::from_millis(REASON_MS_MAX);
        match self.mail(deadline) {
            Some(Mail::VmmEnded(status)) => {
                self.held.vmm_ended = Some(status);
                let explained = self.explain(status);
                if status.success() {
                    End::Broken(format!("{why}; {explained}"))
                } else {
                    End::Broken(explained)
                }
            }
            Some(Mail::Stop) => End::Stopped,
            _ => End::Broken(why),
        }
    }

    /// Lets the guest halt by itself, if it still listens and nobody is in a hurry.
    pub(super) fn wind_down(&mut self, end: &End) {
        let grace_ms = match end {
            End::Stopped | End::Expired(..) | End::Unhealthy(_) => limits::AGENT_STOP_GRACE_MS,
            End::ByItself(_) => EXEC_GRACE_MS,
            End::Broken(_) => return,
        };
        let (by, is_killed) = {
            let facts = self.agent.facts();
            (facts.stopped_by.clone(), facts.is_killed)
        };
        if !matches!(end, End::ByItself(_)) && self.held.receipt && !is_killed {
            self.cage.events.push(&self.agent.name, "stopping", format!("asked for by {by}"));
            note(self.cage, Event::AgentStopping { instance: self.instance().clone(), by });
        }
        if is_killed || self.held.is_quarantined || self.held.vmm_ended.is_some() {
            return;
        }
        if self.held.frozen.is_some() && !self.is_let_go() {
            return;
        }
        let Some(session) = &self.held.session else { return };
        if session.shutdown(grace_ms).is_err() {
            return;
        }
        self.await_vmm(Duration::from_millis(grace_ms + HALT_MS_MAX));
    }

    /// Lets a paused VM go on, to end in order; not while its disks are being copied: then it is ended where it stands.
    fn is_let_go(&mut self) -> bool {
        let still = self.cage.disks.custody.begin_work(&self.agent.name, "it is being stopped");
        let let_go = match &still {
            Ok(_) => self.go_on_again().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = &let_go {
            log::warning("not_let_go", &[("instance", self.instance()), ("why", why)]);
        }
        let_go.is_ok()
    }

    pub(super) fn await_vmm(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.held.vmm_ended.is_none() {
            match self.mail(deadline) {
                Some(Mail::VmmEnded(status)) => self.held.vmm_ended = Some(status),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Gives everything back; says what could not be.
    pub(super) fn tear_down(&mut self) -> String {
        let mut problems = Vec::new();
        self.agent.update(|facts| (facts.session, facts.cgroup, facts.desk) = (None, None, None));
        if let Some(desk) = self.held.desk.take() {
            desk.close();
        }
        if let Some(Err(error)) = self.held.cgroup.as_ref().map(|cgroup| cgroup.kill()) {
            problems.push(format!("cgroup not killed: {error}"));
        }
        if self.held.launched {
            self.await_vmm(Duration::from_millis(KILL_MS_MAX));
        }
        self.held.listening = None;
        self.held.keeper = None;
        if let Some(Err(error)) = self.held.cgroup.as_ref().map(|cgroup| cgroup.remove()) {
            problems.push(format!("cgroup not removed: {error}"));
        }
        self.held.jail = None;
        let is_out_of_hand = self.held.launched && self.held.vmm_ended.is_none();
        match self.held.disks.take() {
            Some(disks) if is_out_of_hand => disks.abandon(),
            Some(disks) if self.held.is_quarantined => {
                let dir = evidence::dir(&self.cage.places, self.instance());
                if let Err(error) = disks.keep_as_evidence(&dir) {
                    problems.push(format!("its disk is not with its evidence yet: {error}"));
                }
            }
            disks => drop(disks),
        }
        match (self.held.slot.take(), self.held.image.take()) {
            // Its uid must not go to another VM while the process may still live, nor its image.
            (Some(slot), image) if is_out_of_hand => {
                problems.push("the VMM could not be killed; its uid is not used again".into());
                std::mem::forget((slot, image));
            }
            both => drop(both),
        }
        problems.join(", ")
    }

    /// Tells the agent's facts, the log, the ledger and the next life of cage how it ended; and when it begins again, if it does.
    pub(super) fn conclude(&mut self, end: End, problems: &str) -> Option<Due> {
        let console = if matches!(end, End::Broken(_)) { self.last_words() } else { Vec::new() };
        let ran = self.ran_since.is_some();
        let (happening, mut outcome, mut detail, exit) = self.meaning(end, &console);
        let instance = self.instance().clone();
        let reason = if detail.is_empty() { "stopped".to_owned() } else { detail.clone() };
        log::info("agent_ended", &[("instance", &instance), ("reason", &reason), ("left", &problems)]);
        for line in &console {
            log::warning("console", &[("instance", &instance), ("line", line)]);
        }
        if self.held.is_quarantined {
            outcome = Outcome::Asked;
            let why = self.agent.facts().detail.clone();
            let how = if detail.is_empty() { String::new() } else { format!("; {detail}") };
            detail = format!("{why}{how}; its evidence is kept");
        }
        let broke = happening == Happening::Broke && outcome == Outcome::Badly;
        let (code, signal) = exit.as_ref().map_or((None, None), |exit| (exit.code, exit.signal));
        let by_itself = exit.is_some();
        let (due, again, is_killed, by) = self.agent.update(|facts| {
            if facts.is_unwanted {
                outcome = Outcome::Asked;
            }
            let again = broke && !facts.is_unwanted && !ran && self.order.cause.tries_left > 0;
            if again {
                detail.push_str("; it will be tried again");
            }
            let due = if again { None } else { self.due(outcome, facts.restarts, &mut detail) };
            (facts.exit, facts.console) = (exit, console);
            facts.end(happening, detail);
            facts.restart = due;
            (due, again, facts.is_killed, facts.stopped_by.clone())
        });
        self.agent.log.rest();
        self.cage.events.push(&self.agent.name, "ended", format!("{instance}: {reason}"));
        if self.held.receipt {
            if is_killed {
                note(self.cage, Event::AgentKilled { instance: instance.clone(), by });
            }
            let (instance, reason) = (instance.clone(), reason.clone());
            record(self.cage, Event::AgentExited { instance, reason, code, signal });
        }
        if self.held.is_quarantined
            && let Err(error) = evidence::end(&self.cage.places, &instance)
        {
            log::error("evidence_not_closed", &[("instance", &instance), ("error", &error)]);
        }
        if let Some(due) = due {
            self.cage.events.push(&self.agent.name, "restarting", format!("{} of {}", due.attempt, due.max));
            let (instance, attempt) = (instance.clone(), due.attempt);
            record(self.cage, Event::AgentRestarting { instance, reason, attempt });
        }
        let stays_wanted = again || due.is_some() || (self.cage.is_leaving() && !by_itself);
        let is_errand = self.order.errand.is_some();
        self.cage.ended(&instance, stays_wanted && !self.held.is_quarantined && !is_errand);
        due
    }

    /// What an end means for the state, the restart policy and people.
    fn meaning(&self, end: End, console: &[String]) -> (Happening, Outcome, String, Option<Exit>) {
        match end {
            End::Stopped => (Happening::Broke, Outcome::Asked, String::new(), None),
            End::Expired(outcome, why) => (Happening::Broke, outcome, why, None),
            End::Unhealthy(why) => (Happening::Unhealthy, Outcome::Badly, why, None),
            End::ByItself(exit) => {
                let outcome = if exit.code == Some(0) { Outcome::Well } else { Outcome::Badly };
                let words = ending::of_command(&exit, self.order.loaded.manifest.memory_mib);
                (Happening::EndedByItself, outcome, words, Some(exit))
            }
            // Before the agent ran, what its console says is the guest's own word about what went wrong.
            End::Broken(why) if self.ran_since.is_none() => {
                (Happening::Broke, Outcome::Badly, ending::with_last_words(why, console), None)
            }
            End::Broken(why) => (Happening::Broke, Outcome::Badly, why, None),
        }
    }

    /// When the restart policy begins the next life; says in `detail` why it does not, where one would expect it.
    fn due(&self, outcome: Outcome, restarts: u32, detail: &mut String) -> Option<Due> {
        let restart = self.order.loaded.manifest.restart;
        let ran = self.ran_since.map(|since| since.elapsed());
        match decide(restart, outcome, restarts, ran) {
            Verdict::Again { attempt, pause } => {
                Some(Due { at: Instant::now() + pause, attempt, max: restart.max })
            }
            Verdict::GiveUp => {
                detail.push_str(&format!(
                    "; not started again: {} restarts in a row are the most",
                    restart.max
                ));
                None
            }
            Verdict::Rest if outcome == Outcome::Idle && restart.policy != RestartPolicy::Never => {
                detail.push_str("; not started again until somebody asks");
                None
            }
            Verdict::Rest => None,
        }
    }

    /// The last lines of the console, once all of it has arrived.
    pub(super) fn last_words(&self) -> Vec<String> {
        self.console.await_end(Duration::from_millis(LAST_WORDS_MS_MAX));
        let lines = self.console.tail(limits::VM_CONSOLE_LINES_MAX).0;
        lines.iter().map(|line| ending::harmless(line, limits::VM_CONSOLE_CHARS_MAX)).collect()
    }
}

/// Waits until a restart is due, on the ended life's own thread, and begins the next life; unless somebody stopped, started or
/// removed the agent meanwhile, or the node goes down.
pub(super) fn start_again(cage: &Arc<Cage>, agent: &Arc<Agent>, ended: &Instance, due: Due) {
    let mut facts = agent.facts();
    loop {
        if facts.instance.as_ref() != Some(ended) || facts.restart != Some(due) || cage.is_leaving() {
            return; // who did that has said what is wanted
        }
        let patience = due.at.saturating_duration_since(Instant::now());
        if patience.is_zero() {
            break;
        }
        facts = agent.wait(facts, patience);
    }
    drop(facts);
    let cause = Cause { by: "restart policy".into(), tries_left: 0, restarts: due.attempt };
    let Err(error) = cage.start(&agent.name, cause) else { return };
    log::error("agent_not_restarted", &[("agent", &agent.name), ("error", &error)]);
    let is_over = agent.update(|facts| {
        let is_over = facts.instance.as_ref() == Some(ended) && facts.restart.take().is_some();
        if is_over {
            facts.detail.push_str(&format!("; not started again: {error}"));
        }
        is_over
    });
    if is_over && !cage.is_leaving() {
        cage.ended(ended, false);
    }
}
