//! What a life of a task is beside an agent's own: the disks above its rootfs, and what the host keeps of it.
//!
//! Must hold: a verify VM has no lease, and runs nothing but its one command; what is kept of a guest's words is bounded.

use abi::guest::{FilesJob, Start};
use abi::ids::{AgentName, Name};
use abi::limits;
use abi::tools::WORK_PATH;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::claim::{self, Unread};
use crate::guest::Session;

/// HOME of a verify command: its own, below no tree.
pub const VERIFY_HOME: &str = "/tmp/home";

/// What a life does for a task.
#[derive(Debug)]
pub struct Errand {
    pub task: Name,
    /// Read-only disks above the rootfs's, bottom to top; the last holds the tree.
    pub disks: Vec<PathBuf>,
    pub role: Role,
}

/// As what it does it.
#[derive(Debug)]
pub enum Role {
    /// It works on the tree, by another agent's manifest.
    Candidate {
        of: AgentName,
        /// What it left in the tree when its command ended well, as records; only without tools.
        left: Mutex<Option<Result<Vec<u8>, Unread>>>,
    },
    /// It runs one command on a tree that is not its own work.
    Verify { output: Mutex<Output> },
}

/// What a verify command wrote, both streams as they came.
#[derive(Debug, Default, Clone)]
pub struct Output {
    pub bytes: Vec<u8>,
    /// It wrote more than the bound.
    pub is_flood: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Errand {
    /// Of a candidate.
    pub fn candidate(task: Name, of: AgentName, disks: Vec<PathBuf>) -> Errand {
        Errand { task, disks, role: Role::Candidate { of, left: Mutex::default() } }
    }

    /// Of a verify VM.
    pub fn verify(task: Name, disks: Vec<PathBuf>) -> Errand {
        Errand { task, disks, role: Role::Verify { output: Mutex::default() } }
    }

    /// Whether it is a verify VM: nobody else runs anything in it, and it reaches nobody.
    pub fn is_verify(&self) -> bool {
        matches!(self.role, Role::Verify { .. })
    }

    /// The agent whose memory it reads, and whose authority it never exceeds.
    pub fn works_for(&self) -> Option<&AgentName> {
        match &self.role {
            Role::Candidate { of, .. } => Some(of),
            Role::Verify { .. } => None,
        }
    }

    /// Makes a guest's order one of a life with a tree.
    pub fn shape(&self, start: &mut Start) {
        start.rootfs_disks = start.rootfs_disks.saturating_add(self.disks.len() as u8); // at most GUEST_LAYERS_MAX
        start.has_tree = true;
        if !self.is_verify() {
            return;
        }
        let path = start.env.iter().find(|pair| pair.starts_with("PATH=")).cloned();
        start.env = vec![format!("HOME={VERIFY_HOME}"), "LANG=C.UTF-8".into(), "TERM=dumb".into()];
        start.env.extend(path);
        start.write = vec![VERIFY_HOME.into()];
        start.workdir = WORK_PATH.into();
        (start.tools, start.network, start.authority, start.health) = (None, None, None, None);
    }

    /// Takes what the command wrote.
    pub fn wrote(&self, data: &[u8]) {
        let Role::Verify { output } = &self.role else { return };
        let mut output = lock(output);
        let room = (limits::VERIFY_OUTPUT_BYTES_MAX as usize).saturating_sub(output.bytes.len());
        output.is_flood |= data.len() > room;
        output.bytes.extend(data.iter().take(room));
    }

    /// What a verify command wrote so far.
    pub fn output(&self) -> Output {
        match &self.role {
            Role::Verify { output } => lock(output).clone(),
            Role::Candidate { .. } => Output::default(),
        }
    }

    /// Whether a verify command wrote more than it may.
    pub fn is_flood(&self) -> bool {
        matches!(&self.role, Role::Verify { output } if lock(output).is_flood)
    }

    /// The command of a candidate without tools ended well: that is its claim. Reads what it left while the guest still serves.
    pub fn take_left(&self, session: &Arc<Session>) {
        let Role::Candidate { left, .. } = &self.role else { return };
        let read = session
            .files(FilesJob::Claim)
            .map_err(|error| Unread::Lost(error.to_string()))
            .and_then(|channel| claim::read(session, &channel));
        *lock(left) = Some(read);
    }

    /// What it left, once.
    pub fn left(&self) -> Option<Result<Vec<u8>, Unread>> {
        match &self.role {
            Role::Candidate { left, .. } => lock(left).take(),
            Role::Verify { .. } => None,
        }
    }
}

/// The name of a task's candidate or verify VM, as cages go by it: `t12-c1`, `t12-v3`.
pub fn cage_name(task: &Name, letter: char, number: u32) -> Option<AgentName> {
    format!("{task}-{letter}{number}").parse().ok()
}

/// Whether a name is one of a task's cages: no manifest may have it.
pub fn is_cage_name(name: &AgentName) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parts = name.as_str().strip_prefix('t').and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(task, cage)| digits(task) && cage.strip_prefix(['c', 'v', 's']).is_some_and(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_beyond_the_bound_is_dropped_and_said() {
        let errand = Errand::verify("t1".parse().unwrap(), vec![]);
        errand.wrote(&vec![1; limits::VERIFY_OUTPUT_BYTES_MAX as usize]);
        assert!(!errand.is_flood());
        errand.wrote(b"x");
        assert!(errand.is_flood() && errand.output().bytes.len() as u64 == limits::VERIFY_OUTPUT_BYTES_MAX);
    }

    #[test]
    fn names_of_cages_are_told_from_agents() {
        for name in ["t1-c1", "t12-v3", "t7-s1"] {
            assert!(is_cage_name(&name.parse().unwrap()), "{name}");
        }
        for name in ["t1", "t1-c", "tx-c1", "t1-x1", "at1-c1", "t1-c1x", "t-c1"] {
            assert!(!is_cage_name(&name.parse().unwrap()), "{name}");
        }
        assert_eq!(cage_name(&"t12".parse().unwrap(), 'c', 2).unwrap().as_str(), "t12-c2");
    }
}
