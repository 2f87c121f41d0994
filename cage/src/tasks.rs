//! Verified tasks: a tree, a goal, candidates that work on it, and a fresh VM that says what is done (docs/tasks.md).
//!
//! Owns: /state/cage/tasks. Decides nothing: what follows from what is `verdict::step`, what may be in a patch is `verdict::patch`.
//! Must hold: a task's id never comes twice; everything of it is bounded (abi/src/limits/tasks.rs).

mod accept;
mod act;
mod base;
mod calls;
mod candidate;
mod claim;
mod diff;
mod errand;
mod integrate;
mod kept;
mod proof;
mod records;
mod task;
#[cfg(test)]
mod tests;
mod watch;

pub use calls::run;
pub use errand::{Errand, is_cage_name};
pub use watch::watch;

use abi::ids::{AgentName, Digest, Instance, Name};
use abi::limits;
use abi::log;
use abi::rpc::{Code, RpcError};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::agents::{Cage, write_whole};
use crate::places::Places;
use crate::steer;
use crate::store::work;
use task::{Task, is_over};

/// A result that was not exported may be forgotten for a new task after so long.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The disk that hides what a rootfs has at the tree's place.
const MASK: &str = "mask.squashfs";

/// All tasks of the node.
#[derive(Debug)]
pub struct Tasks {
    dir: PathBuf,
    list: Mutex<List>,
    began: Instant,
    kernel: OnceLock<Digest>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    tasks: BTreeMap<u64, Arc<Task>>,
    /// Being received.
    coming: usize,
}

/// Room for one more task, until it is dropped or taken.
struct Room<'a>(&'a Tasks);

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.list().coming -= 1;
    }
}

fn number(id: &Name) -> Option<u64> {
    let digits = id.as_str().strip_prefix('t')?;
    digits.parse().ok().filter(|number: &u64| number.to_string() == digits)
}

fn not_found(id: &Name) -> RpcError {
    RpcError::new(Code::NOT_FOUND, format!("there is no task `{id}`"))
        .explained("a task has an id like t12", "see task list")
}

impl Tasks {
    /// Opens what is on disk.
    pub fn open(state: &Path) -> io::Result<Tasks> {
        let dir = state.join("tasks");
        fs::create_dir_all(&dir)?;
        work::write_mask(&dir.join(MASK)).map_err(io::Error::other)?;
        let next = match fs::read_to_string(dir.join("next")) {
            Ok(text) => text.trim().parse().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
            Err(error) => return Err(error),
        };
        let mut tasks = BTreeMap::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let Some(number) = id.as_ref().and_then(number) else { continue };
            match kept::load(&path) {
                Ok(Some(task)) => drop(tasks.insert(number, Arc::new(task))),
                Ok(None) => fs::remove_dir_all(&path)?, // nobody was told of it
                Err(error) => {
                    log::error("task_unreadable", &[("path", &path.display()), ("error", &error)]);
                    fs::rename(&path, path.with_extension("damaged"))?;
                }
            }
        }
        let list = Mutex::new(List { next, tasks, coming: 0 });
        Ok(Tasks { dir, list, began: Instant::now(), kernel: OnceLock::new() })
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since cage began: the clock of `verdict::step`.
    pub fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// The disk that hides what a rootfs has at the tree's place.
    pub fn mask(&self) -> PathBuf {
        self.dir.join(MASK)
    }

    /// Digest of the guest's kernel, with which every guest of this node begins.
    fn kernel(&self, places: &Places) -> io::Result<Digest> {
        if let Some(digest) = self.kernel.get() {
            return Ok(*digest);
        }
        let digest = digest(&places.guest.join("vmlinux"))?;
        Ok(*self.kernel.get_or_init(|| digest))
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<Task>> {
        self.list().tasks.values().cloned().collect()
    }

    /// The task of an id.
    pub fn find(&self, id: &Name) -> Result<Arc<Task>, RpcError> {
        let found = number(id).and_then(|number| self.list().tasks.get(&number).cloned());
        found.ok_or_else(|| not_found(id))
    }

    /// Room for one more, or why there is none.
    fn room(&self) -> Result<Room<'_>, RpcError> {
        let full = |what: &str, most: usize, remedy: &str| {
            Err(RpcError::new(Code::LIMIT, what).explained(format!("at most {most}"), remedy))
        };
        let forgotten = {
            let mut list = self.list();
            let running = list.tasks.values().filter(|task| !is_over(task.state())).count();
            if running + list.coming >= limits::TASKS_RUNNING_MAX {
                let remedy = "wait for one to end, or task cancel one";
                return full("too many tasks run", limits::TASKS_RUNNING_MAX, remedy);
            }
            let mut forgotten = None;
            if list.tasks.len() + list.coming >= limits::TASKS_MAX {
                let now = crate::output::unix_ms();
                let is_old = |task: &Task| {
                    let both = task.record();
                    let since = both.0.ended_unix_ms.map(|ended| now.saturating_sub(ended));
                    let is_done = |ms| both.0.is_exported || u128::from(ms) > FORGET_AFTER.as_millis();
                    both.0.is_told && since.is_some_and(is_done)
                };
                let oldest = list.tasks.iter().find(|(_, task)| is_old(task)).map(|(number, _)| *number);
                let Some(oldest) = oldest else {
                    let remedy = "task remove one that is over";
                    return full("the node remembers too many tasks", limits::TASKS_MAX, remedy);
                };
                forgotten = list.tasks.remove(&oldest);
            }
            list.coming += 1;
            forgotten
        };
        if let Some(task) = forgotten {
            remove_files(&task);
        }
        Ok(Room(self))
    }

    /// A number that never comes twice, and the directory of its task.
    fn next(&self) -> io::Result<(u64, PathBuf)> {
        let mut list = self.list();
        let number = list.next;
        write_whole(&self.dir.join("next"), (number + 1).to_string().as_bytes())?;
        list.next = number + 1;
        let dir = self.dir.join(format!("t{number}"));
        fs::create_dir(&dir)?;
        Ok((number, dir))
    }

    fn add(&self, number: u64, task: Arc<Task>) {
        self.list().tasks.insert(number, task);
    }

    /// Forgets a task that is over.
    fn remove(&self, cage: &Cage, id: &Name) -> Result<(), RpcError> {
        let task = self.find(id)?;
        if !is_over(task.state()) {
            return Err(RpcError::new(Code::CONFLICT, format!("{id} is not over"))
                .explained("only a task that is over is removed", "task cancel it first"));
        }
        if !task.is_told(Duration::from_millis(limits::PEER_CALL_MS_MAX)) {
            return Err(RpcError::new(Code::CONFLICT, format!("the end of {id} has no receipt yet"))
                .explained("what is forgotten has its end in the ledger", "see that ctxgraph is running"));
        }
        if let Some(number) = number(id) {
            self.list().tasks.remove(&number);
        }
        for candidate in 1..=task.fixed.run.candidates {
            if let Some(name) = errand::cage_name(id, 'c', candidate.into()) {
                forget(cage, &name);
            }
        }
        remove_files(&task);
        Ok(())
    }

    /// What a life used is known no more when its cgroup is gone: notes what was last seen of it.
    pub(crate) fn spent_by(&self, cage: &Cage, task: &Task, instance: &Instance) {
        let cpu_ms = cage.known_cpu_ms(instance);
        let mut both = task.record();
        let seen = both.1.cpu_ms.remove(instance).unwrap_or(0).max(cpu_ms.unwrap_or(0));
        let so_far = both.0.spent.cpu_ms.unwrap_or(0);
        both.0.spent.cpu_ms = Some(so_far.saturating_add(seen));
    }

    /// Goes on with the tasks of an earlier life of cage.
    pub fn recover(&self, cage: &Arc<Cage>) {
        for task in self.all() {
            if is_over(task.state()) {
                if !task.record().0.is_told {
                    act::finish_again(cage, &task);
                }
                continue;
            }
            let hold = cage.store.holds.keep(task.fixed.rootfs, &task.fixed.run.agent, "has a task");
            match hold {
                Ok(hold) => task.record().1.hold = Some(hold),
                Err(error) => task.because(0, error.to_string()), // its candidates will say so
            }
            task.record().1.counted_ms = self.now_ms();
            match task.work(cage) {
                Ok(()) => kept::recover(&task, self.now_ms()),
                Err(error) => {
                    log::error("task_not_resumed", &[("task", &task.fixed.id), ("error", &error)]);
                }
            }
        }
    }
}

fn remove_files(task: &Task) {
    if let Err(error) = fs::remove_dir_all(&task.dir) {
        log::warning("task_files_not_removed", &[("task", &task.fixed.id), ("error", &error)]);
    }
}

/// Forgets the record and the log of a cage that was a task's.
fn forget(cage: &Cage, name: &AgentName) {
    cage.forget(name);
    for path in steer::logs_of(cage, name) {
        if let Err(error) = fs::remove_file(&path) {
            log::warning("log_not_removed", &[("path", &path.display()), ("error", &error)]);
        }
    }
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = fs::File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 * 1024]);
    loop {
        let got = file.read(&mut buffer)?;
        if got == 0 {
            return Ok(Digest(hash.finalize().into()));
        }
        hash.update(buffer.get(..got).unwrap_or_default());
    }
}
