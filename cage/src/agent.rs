//! One agent: what is known of it, and who waits for a change.
//!
//! Must hold: the state changes only by `state::next`.

use abi::control::{AgentSummary, Progress};
use abi::guest::{Denied, Exit};
use abi::ids::{AgentName, Digest, Instance};
use abi::log;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::desk::Desk;
use crate::ending::harmless;
use crate::guest::Session;
use crate::jail::cgroup::VmCgroup;
use crate::life::{Ask, Mail};
use crate::manifests::Loaded;
use crate::output::Log;
use crate::state::{self, Happening, Stateful};
use crate::tasks::Errand;

/// Refusals of a guest's sandbox that are kept, and their bytes: whatever a guest says, `agent.status` fits a line.
const GUEST_DENIALS_KEPT: usize = 64;
const GUEST_DENIALS_BYTES_MAX: usize = 12 * 1024;
/// Characters kept of what a guest says about one of them.
const GUEST_DENIAL_CHARS: usize = 200;

/// One agent, as long as cage runs.
#[derive(Debug)]
pub struct Agent {
    pub name: AgentName,
    pub log: Log,
    facts: Mutex<Facts>,
    changed: Condvar,
    attached: AtomicUsize,
}

/// Somebody is attached to an agent, until this is dropped.
#[derive(Debug)]
pub struct Attendance(Arc<Agent>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.attached.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of an agent.
#[derive(Debug, Default)]
pub struct Facts {
    pub state: Stateful,
    pub instance: Option<Instance>,
    /// The manifest of the present or last life.
    pub loaded: Option<Loaded>,
    pub rootfs_digest: Option<Digest>,
    pub asked: Option<Instant>,
    pub running_since: Option<Instant>,
    /// How long the command of the last life ran.
    pub ran_ms: Option<u64>,
    /// When the guest last answered that its disks are written out.
    pub heard: Option<Instant>,
    pub stages_ms: Vec<(String, u64)>,
    /// As the guest says.
    pub guest_stages_us: Vec<(String, u64)>,
    /// By its restart policy.
    pub restarts: u32,
    /// Of the last health check.
    pub healthy: Option<bool>,
    pub importing: Option<Progress>,
    pub detail: String,
    pub exit: Option<Exit>,
    /// What the console of the last life ended with, if its VM broke.
    pub console: Vec<String>,
    pub session: Option<Arc<Session>>,
    /// What the present or last life does for a task.
    pub errand: Option<Arc<Errand>>,
    /// What decides its tools' calls, where it has tools.
    pub desk: Option<Arc<Desk>>,
    pub cgroup: Option<Arc<VmCgroup>>,
    pub mail: Option<SyncSender<Mail>>,
    /// What is asked of the present life, first come first; beside its mailbox, which a guest can fill.
    pub asks: VecDeque<Ask>,
    /// Who, or which bound, asked for the present life to end.
    pub stopped_by: String,
    /// Somebody asked for it, so no restart policy has a say.
    pub is_unwanted: bool,
    /// Somebody asked for its end at once.
    pub is_killed: bool,
    /// When its restart policy starts it again; taken away by who stops or starts it meanwhile.
    pub restart: Option<Due>,
    /// It is being deleted: this record is not to be used again.
    pub is_removed: bool,
    denials: VecDeque<String>,
    denials_dropped: u64,
}

/// A restart that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub at: Instant,
    /// From 1, in a row.
    pub attempt: u32,
    /// The most in a row.
    pub max: u32,
}

impl Agent {
    /// One of which nothing is known yet; its log is what an earlier life of cage left.
    pub fn new(name: AgentName, logs: &Path) -> Agent {
        let log = Log::open(logs.join(format!("{name}.log")));
        Agent { name, log, facts: Mutex::default(), changed: Condvar::new(), attached: AtomicUsize::new(0) }
    }

    /// Somebody attaches: as long as he stays the agent is not idle.
    pub fn attend(self: &Arc<Agent>) -> Attendance {
        self.attached.fetch_add(1, Ordering::Relaxed);
        Attendance(self.clone())
    }

    /// Whether somebody is attached.
    pub fn is_attended(&self) -> bool {
        self.attached.load(Ordering::Relaxed) > 0
    }

    /// What is known, for a moment.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known and wakes who waits for it.
    pub fn update<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        let result = change(&mut self.facts());
        self.changed.notify_all();
        self.log.wake();
        result
    }

    /// Waits for the next change, or for `patience`.
    pub fn wait<'a>(&self, facts: MutexGuard<'a, Facts>, patience: Duration) -> MutexGuard<'a, Facts> {
        self.changed.wait_timeout(facts, patience).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Notes that a stage of the start was reached.
    pub fn reached(&self, stage: &str) {
        self.update(|facts| {
            let since = facts.asked.map_or(0, |asked| asked.elapsed().as_millis() as u64);
            facts.stages_ms.push((stage.to_owned(), since));
        });
    }

    /// Notes what the guest's sandbox refused.
    pub fn denied(&self, denied: &Denied) {
        let short = |text: &str| harmless(text, GUEST_DENIAL_CHARS);
        self.update(|facts| {
            facts.denials.push_back(format!("{}: {}", short(&denied.what), short(&denied.rule)));
            let bytes = |denials: &VecDeque<String>| denials.iter().map(String::len).sum::<usize>();
            while facts.denials.len() > GUEST_DENIALS_KEPT || bytes(&facts.denials) > GUEST_DENIALS_BYTES_MAX
            {
                facts.denials.pop_front();
                facts.denials_dropped += 1;
            }
        });
    }
}

impl Facts {
    /// A new life begins, as the `restarts`th that its restart policy began in a row.
    pub fn begin(
        &mut self,
        instance: Instance,
        loaded: Loaded,
        mail: SyncSender<Mail>,
        asked: Instant,
        restarts: u32,
    ) {
        self.instance = Some(instance);
        self.loaded = Some(loaded);
        self.mail = Some(mail);
        self.asked = Some(asked);
        (self.rootfs_digest, self.running_since, self.importing, self.exit) = (None, None, None, None);
        (self.stages_ms, self.detail, self.denials, self.denials_dropped) = Default::default();
        (self.console, self.guest_stages_us, self.healthy, self.restart) = Default::default();
        (self.is_unwanted, self.is_killed, self.stopped_by) = Default::default();
        self.asks.clear();
        (self.errand, self.ran_ms, self.heard) = (None, None, None);
        self.restarts = restarts;
    }

    /// The life is over.
    pub fn end(&mut self, happening: Happening, detail: String) {
        if let Err(illegal) = self.state.let_happen(happening) {
            log::error("state_table_disagrees", &[("illegal", &format!("{illegal:?}"))]);
        }
        self.detail = detail;
        (self.session, self.cgroup, self.mail, self.importing, self.running_since) =
            (None, None, None, None, None);
        self.desk = None;
        self.asks.clear(); // who waits for an answer hears that it has ended
    }

    /// One line of `agent.list`; none if there is no manifest to tell of.
    pub fn summary(&self, name: &AgentName, configured: Option<&Loaded>) -> Option<AgentSummary> {
        let own = self.loaded.as_ref().filter(|_| state::alive(self.state.now()));
        let manifest = &own.or(configured).or(self.loaded.as_ref())?.manifest;
        Some(AgentSummary {
            name: name.clone(),
            version: manifest.version.clone(),
            state: self.state.now(),
            instance: self.instance.clone(),
            rootfs: match &manifest.rootfs {
                abi::manifest::RootfsRef::Name(name) => name.clone(),
                abi::manifest::RootfsRef::Digest(digest) => digest.to_string(),
            },
            uptime_ms: self.running_since.map(|since| since.elapsed().as_millis() as u64),
            detail: self.explanation(),
            restarts: self.restarts,
            healthy: self.healthy,
        })
    }

    /// How it ended, and whether it will be started again.
    fn explanation(&self) -> String {
        match &self.restart {
            None => self.detail.clone(),
            Some(due) => {
                let seconds = due.at.saturating_duration_since(Instant::now()).as_millis().div_ceil(1000);
                format!("{}; starts again in {seconds} s, {} of {}", self.detail, due.attempt, due.max)
            }
        }
    }

    /// What the guest's sandbox refused, newest last.
    pub fn guest_denials(&self) -> Vec<String> {
        let dropped =
            (self.denials_dropped > 0).then(|| format!("{} earlier ones are not kept", self.denials_dropped));
        dropped.into_iter().chain(self.denials.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_a_talkative_guest_leave_room_for_the_rest_of_the_status() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::new("a".parse().unwrap(), dir.path());
        for text in ["\u{10ffff}", "\"", "\u{1b}"] {
            let text = text.repeat(10_000);
            (0..100).for_each(|_| agent.denied(&Denied { what: text.clone(), rule: text.clone() }));
            let told = agent.facts().guest_denials();
            assert!(told[0].contains("are not kept"), "{}", told[0]);
            let line = serde_json::json!(told).to_string();
            assert!(line.len() < abi::limits::LINE_BYTES_MAX / 2, "{}", line.len());
        }
        agent.denied(&Denied { what: "/bin/x".into(), rule: "shell = false".into() });
        assert_eq!(agent.facts().guest_denials().pop().unwrap(), "/bin/x: shell = false");
    }
}
