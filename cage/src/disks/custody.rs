//! Who has an agent's disks: at most one life, and at most one thing that is done with them.
//!
//! Must hold: a life and a piece of work that would change or remove its disks never have them together; who has them gives them
//! back by being dropped. The state of the agent says the same; this is what a mistake there runs into.

use abi::ids::{AgentName, Digest, Instance};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::DiskError;

/// Who has the disks of all agents. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub struct Custody(Arc<Mutex<BTreeMap<AgentName, Holders>>>);

#[derive(Debug, Default)]
struct Holders {
    life: Option<Lived>,
    work: Option<&'static str>,
}

/// The workspace of a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lived {
    pub instance: Instance,
    /// The workspace's file.
    pub disk: PathBuf,
    pub size_mib: u32,
    pub rootfs: Digest,
}

/// A life has the disks until this is dropped.
#[derive(Debug)]
pub struct LifeHold {
    instance: Instance,
    custody: Custody,
}

/// Something is done with the disks until this is dropped.
#[derive(Debug)]
pub struct WorkHold {
    agent: AgentName,
    custody: Custody,
}

impl Custody {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentName, Holders>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a VM of the agent may begin to run, or go on. Asked with the agent's facts locked, so that no work begins
    /// between the answer and the new state.
    pub fn may_run(&self, agent: &AgentName) -> Result<(), DiskError> {
        match self.lock().get(agent).and_then(|holders| holders.work) {
            Some(doing) => Err(DiskError::Busy { agent: agent.clone(), doing }),
            None => Ok(()),
        }
    }

    /// Gives the disks to a life.
    pub fn begin_life(&self, lived: Lived) -> Result<LifeHold, DiskError> {
        let agent = lived.instance.agent.clone();
        self.may_run(&agent)?;
        let mut all = self.lock();
        let holders = all.entry(agent).or_default();
        match &holders.life {
            Some(before) => Err(DiskError::StillOpen(before.instance.clone())),
            None => {
                let instance = lived.instance.clone();
                holders.life = Some(lived);
                Ok(LifeHold { instance, custody: self.clone() })
            }
        }
    }

    /// Begins work on the disks of an agent whose state allows it; called with its facts locked.
    pub fn begin_work(&self, agent: &AgentName, doing: &'static str) -> Result<WorkHold, DiskError> {
        let mut all = self.lock();
        let holders = all.entry(agent.clone()).or_default();
        match holders.work {
            Some(doing) => Err(DiskError::Busy { agent: agent.clone(), doing }),
            None => {
                holders.work = Some(doing);
                Ok(WorkHold { agent: agent.clone(), custody: self.clone() })
            }
        }
    }

    /// The workspace of the agent's life, if one has it.
    pub fn lived(&self, agent: &AgentName) -> Option<Lived> {
        self.lock().get(agent)?.life.clone()
    }

    fn give_back(&self, agent: &AgentName, what: impl FnOnce(&mut Holders)) {
        let mut all = self.lock();
        if let Some(holders) = all.get_mut(agent) {
            what(holders);
            if holders.life.is_none() && holders.work.is_none() {
                all.remove(agent);
            }
        }
    }
}

impl Drop for LifeHold {
    fn drop(&mut self) {
        self.custody.give_back(&self.instance.agent, |holders| holders.life = None);
    }
}

impl Drop for WorkHold {
    fn drop(&mut self) {
        self.custody.give_back(&self.agent, |holders| holders.work = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lived(generation: u64) -> Lived {
        let instance = Instance { agent: "a".parse().unwrap(), generation };
        Lived { instance, disk: "/x".into(), size_mib: 64, rootfs: Digest([0; 32]) }
    }

    #[test]
    fn disks_are_open_in_one_vm_at_most() {
        let custody = Custody::default();
        let first = custody.begin_life(lived(1)).unwrap();
        assert!(matches!(custody.begin_life(lived(2)), Err(DiskError::StillOpen(i)) if i.generation == 1));
        assert_eq!(custody.lived(&"a".parse().unwrap()), Some(lived(1)));
        drop(first);
        drop(custody.begin_life(lived(2)).unwrap());
        // A VMM that could not be killed keeps them.
        std::mem::forget(custody.begin_life(lived(3)).unwrap());
        assert!(custody.begin_life(lived(4)).is_err());
    }

    #[test]
    fn nothing_runs_while_work_is_done_and_one_work_is_done_at_a_time() {
        let (custody, a, b) = (Custody::default(), "a".parse().unwrap(), "b".parse().unwrap());
        let frozen = custody.begin_life(lived(1)).unwrap();
        let work = custody.begin_work(&a, "a snapshot is being taken").unwrap();
        assert!(custody.may_run(&a).unwrap_err().to_string().contains("a snapshot is being taken"));
        assert!(custody.begin_work(&a, "again").is_err());
        assert!(custody.may_run(&b).is_ok() && custody.begin_work(&b, "other").is_ok());
        drop(frozen);
        assert!(custody.begin_life(lived(2)).is_err(), "work goes on");
        drop(work);
        assert!(custody.may_run(&a).is_ok());
        drop(custody.begin_life(lived(2)).unwrap());
        assert!(custody.lock().is_empty(), "nothing is left behind");
    }
}
