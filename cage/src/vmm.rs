//! The host's side of one VM: what is made before its process starts, the process, and what is removed after it.
//!
//! Must hold: everything made here has an owner that removes it; an owner is dropped only after the process is gone.

use abi::identity::VM_UID_BASE;
use abi::limits;
use abi::wire::{Connection, WireError};
use rustix::thread::UnshareFlags;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::jail::{JailSpec, Launch};
use crate::sys;

/// How long a VMM may take to close its jail.
const LAUNCH_MS_MAX: u64 = 30_000;
/// Console text kept of one VM.
const CONSOLE_BYTES_MAX: usize = 16 * 1024;

/// Why there is no VMM.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("{what} {}: {error}", path.display())]
    Path { what: &'static str, path: PathBuf, error: io::Error },
    #[error("{} VMs run, which is the most", limits::AGENTS_RUNNING_MAX)]
    NoSlot,
    #[error("the VMM's process could not be started: {0}")]
    NotStarted(io::Error),
    #[error("the VMM's process: {0}")]
    Process(#[from] io::Error),
    #[error("the VMM's process: {0}")]
    Wire(#[from] WireError),
    #[error("the jail was not closed: {step}: {error}")]
    Jail { step: String, error: String },
    #[error("the VMM ended while it closed its jail")]
    Silent,
}

/// Names the file of an error.
pub(crate) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmmError {
    move |error| VmmError::Path { what, path: path.to_owned(), error }
}

/// The uids of jails: at most one living VM has each.
#[derive(Debug, Clone, Default)]
pub struct Slots(Arc<Mutex<BTreeSet<u32>>>);

/// A uid that is this VM's alone until it is dropped.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    all: Slots,
}

impl Slots {
    /// Takes the lowest free slot.
    pub fn take(&self) -> Result<Slot, VmmError> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number =
            (0..limits::AGENTS_RUNNING_MAX as u32).find(|n| !taken.contains(n)).ok_or(VmmError::NoSlot)?;
        taken.insert(number);
        Ok(Slot { number, all: self.clone() })
    }
}

impl Slot {
    /// User and group id of the jail.
    pub fn uid(&self) -> u32 {
        VM_UID_BASE + self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// Whether files in a directory live in memory: then a VM's disk counts as its memory.
pub fn in_memory(dir: &Path) -> io::Result<bool> {
    const TMPFS_MAGIC: i64 = 0x0102_1994; // statfs(2)
    Ok(rustix::fs::statfs(dir)?.f_type == TMPFS_MAGIC)
}

/// The directory a jail is made in, with the two sockets its guest's vsock leads to; removed when dropped.
#[derive(Debug)]
pub struct JailDir {
    dir: PathBuf,
}

impl JailDir {
    /// Makes it, and the listening sockets for control and memory.
    pub fn create(dir: PathBuf, uid: u32) -> Result<(JailDir, UnixListener, UnixListener), VmmError> {
        fs::create_dir(&dir).map_err(at("jail", &dir))?;
        let jail = JailDir { dir };
        fs::create_dir(jail.root()).map_err(at("jail", &jail.root()))?;
        fs::create_dir(jail.vsock()).map_err(at("jail", &jail.vsock()))?;
        fs::set_permissions(jail.vsock(), Permissions::from_mode(0o711))
            .map_err(at("jail", &jail.vsock()))?;
        let control = listen(&jail.vsock().join("control"), uid)?;
        let memory = listen(&jail.vsock().join("memory"), uid)?;
        Ok((jail, control, memory))
    }

    /// Becomes the jail's root.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Holds the sockets.
    pub fn vsock(&self) -> PathBuf {
        self.dir.join("vsock")
    }
}

impl Drop for JailDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            abi::log::error("jail_not_removed", &[("path", &self.dir.display()), ("error", &error)]);
        }
    }
}

fn listen(path: &Path, uid: u32) -> Result<UnixListener, VmmError> {
    let listener = UnixListener::bind(path).map_err(at("socket", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(at("socket", path))?;
    chown(path, Some(uid), Some(uid)).map_err(at("socket", path))?;
    Ok(listener)
}

/// The newest text of a VM's serial console and of its VMM's log.
#[derive(Debug, Default)]
pub struct Console {
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    text: VecDeque<u8>,
    dropped: u64,
    /// Somebody may still write.
    open: bool,
}

impl Console {
    fn push(&self, text: &[u8]) {
        let mut kept = self.lock();
        kept.text.extend(text);
        let surplus = kept.text.len().saturating_sub(CONSOLE_BYTES_MAX);
        kept.text.drain(..surplus);
        kept.dropped += surplus as u64;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_open(&self, open: bool) {
        self.lock().open = open;
        self.changed.notify_all();
    }

    /// Waits until all writers are gone, at most `patience`: the last words of a process arrive after its end.
    pub fn await_end(&self, patience: Duration) {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |kept| kept.open);
        drop(waited);
    }

    /// The newest lines, oldest first, and how many bytes were dropped before them.
    pub fn tail(&self, lines: usize) -> (Vec<String>, u64) {
        let kept = self.lock();
        let bytes: Vec<u8> = kept.text.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut newest: Vec<String> = text
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .rev()
            .take(lines)
            .map(str::to_owned)
            .collect();
        newest.reverse();
        (newest, kept.dropped)
    }
}

/// Starts the VMM in a PID namespace of its own and waits until its jail is closed. `ended` is called once, when it has ended.
pub fn launch(
    program: &Path,
    spec: &JailSpec,
    netns: Option<&OwnedFd>,
    console: &Arc<Console>,
    ended: impl FnOnce(ExitStatus) + Send + 'static,
) -> Result<(), VmmError> {
    let (ours, theirs) = UnixStream::pair().map_err(VmmError::NotStarted)?;
    let (reader, writer) = io::pipe().map_err(VmmError::NotStarted)?;
    let mut command = Command::new(program);
    command
        .stdin(OwnedFd::from(theirs))
        .stdout(writer.try_clone().map_err(VmmError::NotStarted)?)
        .stderr(writer)
        .env_clear()
        .current_dir("/");
    start(command, ended)?;
    read_console(reader, console.clone())?;
    let mut connection = Connection::new(ours);
    connection.set_timeout(Some(Duration::from_millis(LAUNCH_MS_MAX)))?;
    let fds: Vec<_> = netns.iter().map(|fd| fd.as_fd()).collect();
    connection.write_line_with_fds(spec, &fds)?;
    let line = connection.read_line()?.ok_or(VmmError::Silent)?;
    match serde_json::from_str(&line) {
        Ok(Launch::Entered) => Ok(()),
        Ok(Launch::Failed { step, error }) => Err(VmmError::Jail { step, error }),
        Err(error) => Err(VmmError::Jail { step: "report".into(), error: error.to_string() }),
    }
}

/// A thread for the process's whole life: it leaves its PID namespace for its children (pid_namespaces(7)), so the process is
/// alone in a new one, and its own end would end the process (PR_SET_PDEATHSIG).
fn start(mut command: Command, ended: impl FnOnce(ExitStatus) + Send + 'static) -> Result<(), VmmError> {
    let (sender, started) = sync_channel(1);
    std::thread::Builder::new()
        .name("vmm".into())
        .stack_size(128 * 1024)
        .spawn(move || {
            let spawned = sys::leave_namespaces(UnshareFlags::NEWPID).and_then(|()| command.spawn());
            drop(command); // our ends of the pipes
            match spawned {
                Ok(mut child) => {
                    let _ = sender.send(Ok(())); // the receiver waits
                    match child.wait() {
                        Ok(status) => ended(status),
                        Err(error) => {
                            abi::log::error("vmm_not_awaited", &[("error", &error)]);
                            ended(ExitStatus::from_raw(1));
                        }
                    }
                }
                Err(error) => {
                    let _ = sender.send(Err(error)); // the receiver waits
                }
            }
        })
        .map_err(VmmError::NotStarted)?;
    match started.recv() {
        Ok(outcome) => outcome.map_err(VmmError::NotStarted),
        Err(_) => Err(VmmError::Silent),
    }
}

fn read_console(mut reader: PipeReader, console: Arc<Console>) -> io::Result<()> {
    console.set_open(true);
    std::thread::Builder::new().name("console".into()).stack_size(64 * 1024).spawn(move || {
        let mut chunk = [0u8; 4096];
        while let Ok(n @ 1..) = reader.read(&mut chunk) {
            console.push(&chunk[..n]);
        }
        console.set_open(false);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_distinct_bounded_and_used_again() {
        let slots = Slots::default();
        let mut taken: Vec<Slot> = (0..limits::AGENTS_RUNNING_MAX).map(|_| slots.take().unwrap()).collect();
        assert!(matches!(slots.take(), Err(VmmError::NoSlot)));
        let freed = taken.remove(7).uid();
        assert_eq!(slots.take().unwrap().uid(), freed);
    }

    #[test]
    fn a_console_keeps_the_newest_text_and_counts_the_rest() {
        let console = Console::default();
        for n in 0..5000 {
            console.push(format!("line {n}\r\n").as_bytes());
        }
        let (lines, dropped) = console.tail(2);
        assert_eq!(lines, ["line 4998", "line 4999"]);
        assert!(dropped > 0);
    }
}
