//! The end of a life: the guest is let go, everything is given back, and what happened is told.
//!
//! Must hold: nothing of the VM is left when the agent's state says that it ended; an end that will be tried again stays wanted.

use abi::ledger::Event;
use abi::{limits, log};
use std::time::{Duration, Instant};

use super::{End, Life, Mail, record};
use crate::ending;
use crate::state::Happening;

/// How long a guest has to halt after its grace.
const HALT_MS_MAX: u64 = 5_000;
/// Grace for execs once the agent's command has ended.
const EXEC_GRACE_MS: u64 = 1_000;
/// How long a killed VMM may take to be gone.
const KILL_MS_MAX: u64 = 10_000;
/// How long its console's last text may take to arrive.
const LAST_WORDS_MS_MAX: u64 = 500;

impl Life<'_> {
    /// Lets the guest halt by itself, if it still listens.
    pub(super) fn wind_down(&mut self, end: &End) {
        let grace_ms = match end {
            End::Stopped => limits::AGENT_STOP_GRACE_MS,
            End::ByItself(_) => EXEC_GRACE_MS,
            End::Broken(_) => return,
        };
        if matches!(end, End::Stopped) && self.held.receipt {
            let by = self.agent.facts().stopped_by.clone();
            let event = Event::AgentStopping { instance: self.instance().clone(), by };
            if let Err(error) = self.cage.ledger.note(event) {
                log::error("receipt_missing", &[("event", &"agent_stopping"), ("error", &error)]);
            }
        }
        let Some(session) = &self.held.session else { return };
        if self.held.vmm_ended.is_some() || session.shutdown(grace_ms).is_err() {
            return;
        }
        self.await_vmm(Duration::from_millis(grace_ms + HALT_MS_MAX));
    }

    fn await_vmm(&mut self, patience: Duration) {
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
        self.agent.update(|facts| (facts.session, facts.cgroup) = (None, None));
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
        self.held.disks = None;
        match self.held.slot.take() {
            // Its uid must not go to another VM while the process may still live.
            Some(slot) if self.held.launched && self.held.vmm_ended.is_none() => {
                problems.push("the VMM could not be killed; its uid is not used again".into());
                std::mem::forget(slot);
            }
            slot => drop(slot),
        }
        problems.join(", ")
    }

    /// Tells the agent's facts, the log, the ledger and the next life of cage how it ended. `ran`: the agent's command had started.
    pub(super) fn conclude(&mut self, end: End, ran: bool, problems: &str) {
        let broke = matches!(end, End::Broken(_));
        let console = if broke { self.last_words() } else { Vec::new() };
        let (happening, mut detail, exit) = match end {
            End::Stopped => (Happening::Broke, String::new(), None),
            End::ByItself(exit) => (Happening::EndedByItself, ending::of_command(&exit), Some(exit)),
            // Before the agent ran, what its console says is the guest's own word about what went wrong.
            End::Broken(why) if !ran => (Happening::Broke, ending::with_last_words(why, &console), None),
            End::Broken(why) => (Happening::Broke, why, None),
        };
        let instance = self.instance().clone();
        let reason = if detail.is_empty() { "stopped".to_owned() } else { detail.clone() };
        log::info("agent_ended", &[("instance", &instance), ("reason", &reason), ("left", &problems)]);
        for line in &console {
            log::warning("console", &[("instance", &instance), ("line", line)]);
        }
        let again = broke && !ran && self.order.tries_left > 0;
        if again {
            detail.push_str("; it will be tried again");
        }
        let (code, signal) = exit.as_ref().map_or((None, None), |exit| (exit.code, exit.signal));
        let by_itself = exit.is_some();
        self.agent.update(|facts| {
            (facts.exit, facts.console) = (exit, console);
            facts.end(happening, detail);
        });
        if self.held.receipt {
            record(self.cage, Event::AgentExited { instance: instance.clone(), reason, code, signal });
        }
        self.cage.ended(&instance, again || (self.cage.is_leaving() && !by_itself));
    }

    fn last_words(&self) -> Vec<String> {
        self.console.await_end(Duration::from_millis(LAST_WORDS_MS_MAX));
        let lines = self.console.tail(limits::VM_CONSOLE_LINES_MAX).0;
        let short = |line: &String| {
            line.chars().filter(|c| !c.is_control()).take(limits::VM_CONSOLE_CHARS_MAX).collect()
        };
        lines.iter().map(short).collect()
    }
}
