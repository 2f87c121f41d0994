//! The agent's cgroups (cgroup-v2.rst): one tree with the bounds of all, one leaf for each channel, for the tools process
//! and for each run of a tool.
//!
//! Must hold: the file system is mounted nowhere, so an agent cannot even name it. The verifier itself stays in the root group, outside
//! every bound.

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use crate::mounts::{Step, StepError, detached};

/// RAM that agents cannot take: the verifier, page tables, network buffers. Of a small guest at most a quarter.
const RESERVE_BYTES: u64 = 12 * 1024 * 1024;
const CONTROL_FILE_BYTES_MAX: u64 = 4096;

/// `memory.max` of the agent's tree in a guest with so much RAM.
pub fn memory_max(total_bytes: u64) -> u64 {
    total_bytes - RESERVE_BYTES.min(total_bytes / 4)
}

/// The tree of all channels.
#[derive(Debug)]
pub struct Tree {
    agent: Rc<OwnedFd>,
}

/// One channel's leaf.
#[derive(Debug)]
pub struct Group {
    tree: Rc<OwnedFd>,
    name: String,
    dir: OwnedFd,
}

impl Tree {
    /// Makes the tree with its bounds.
    pub fn new(pids_max: u32, total_bytes: u64) -> Result<Tree, StepError> {
        let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = detached("cgroup2", &[], quiet).step("mount cgroup2")?;
        write(&root, "cgroup.subtree_control", "+memory +pids").step("cgroup controllers memory and pids")?;
        let agent = make(&root, "agent").step("make the agent's cgroup")?;
        write(&agent, "cgroup.subtree_control", "+memory +pids").step("cgroup controllers of the agent")?;
        write(&agent, "pids.max", &pids_max.to_string()).step("pids.max")?;
        write(&agent, "memory.max", &memory_max(total_bytes).to_string()).step("memory.max")?;
        Ok(Tree::of(agent))
    }

    /// A tree with the bounds that its directory has.
    pub fn of(agent: OwnedFd) -> Tree {
        Tree { agent: Rc::new(agent) }
    }

    /// A leaf.
    pub fn group(&self, name: String) -> io::Result<Group> {
        Ok(Group { dir: make(&self.agent, &name)?, tree: Rc::clone(&self.agent), name })
    }

    /// SIGKILL to everything in every channel.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.agent, "cgroup.kill", "1")
    }
}

impl Group {
    /// Moves the calling process here. For a child before it gives up root.
    pub fn join(&self) -> io::Result<()> {
        write(&self.dir, "cgroup.procs", "0")
    }

    /// SIGKILL to everything here (no fork can outrun it).
    pub fn kill(&self) -> io::Result<()> {
        write(&self.dir, "cgroup.kill", "1")
    }

    /// Whether the OOM killer ended something here.
    pub fn oom_killed(&self) -> bool {
        read(&self.dir, "memory.events").is_ok_and(|events| verifier::channel::oom_killed(&events))
    }

    /// Removes the group; fails with EBUSY while something in it is not reaped.
    pub fn remove(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&*self.tree, self.name.as_str(), AtFlags::REMOVEDIR)?)
    }
}

fn make(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn write(dir: impl AsFd, name: &str, text: &str) -> io::Result<()> {
    let file = rustix::fs::openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::File::from(file).write_all(text.as_bytes())
}

fn read(dir: impl AsFd, name: &str) -> io::Result<String> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).take(CONTROL_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_keeps_memory_and_the_agent_most_of_it() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(memory_max(512 * MIB), 500 * MIB);
        assert_eq!(memory_max(20 * MIB), 15 * MIB);
        assert_eq!(memory_max(0), 0);
    }
}
