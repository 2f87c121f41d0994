//! Changes of what agents may reach while they run, over their manifests: kept in one file, written whole.
//!
//! Must hold: a denial is not forgotten: what cannot be read or written fails, and says so; each change is on the disk before it is
//! in force. Must never: grow without a bound.

use abi::control::{Effect, LiveChange};
use abi::ids::{AgentName, Instance};
use abi::network::NamePattern;
use abi::{limits, log};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::kept;

/// Why a change was not kept, or none can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LiveError {
    #[error("{path} cannot be read: {why}")]
    Unreadable { path: String, why: String },
    #[error("{path} cannot be written: {why}")]
    Unwritten { path: String, why: String },
    #[error("there is no room for another live change of {0}")]
    Full(String),
    #[error("the live changes can be read")]
    Readable,
}

/// The file's form.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    changes: Vec<LiveChange>,
}

/// The live changes of a node.
#[derive(Debug)]
pub struct Live {
    path: PathBuf,
    /// Or why they are not known.
    known: Mutex<Result<Vec<LiveChange>, LiveError>>,
    /// Held by who changes them, from the check to the effect.
    turn: Mutex<()>,
}

impl Live {
    /// Reads the file. One that is not there is empty; one that cannot be read is remembered as that.
    pub fn read(path: impl Into<PathBuf>) -> Live {
        let path = path.into();
        let known = read(&path).map_err(|error| LiveError::Unreadable {
            path: path.display().to_string(),
            why: error.to_string(),
        });
        Live { path, known: Mutex::new(known), turn: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Result<Vec<LiveChange>, LiveError>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn to make a change.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub fn all(&self) -> Result<Vec<LiveChange>, LiveError> {
        self.known().clone()
    }

    /// Those that hold for a life of an agent; of another, for which it works, what that one is denied.
    pub fn of(
        &self,
        instance: &Instance,
        works_for: Option<&AgentName>,
    ) -> Result<Vec<LiveChange>, LiveError> {
        let known = self.known();
        let all = known.as_ref().map_err(LiveError::clone)?;
        let holds = |change: &&LiveChange| {
            let is_own =
                change.agent == instance.agent && change.instance.as_ref().is_none_or(|of| of == instance);
            let is_inherited = change.effect == Effect::Deny && change.instance.is_none();
            is_own || (is_inherited && Some(&change.agent) == works_for)
        };
        Ok(all.iter().filter(holds).cloned().collect())
    }

    /// Puts other changes in their place, on the disk first. The caller has the turn.
    pub fn keep(&self, changes: Vec<LiveChange>) -> Result<(), LiveError> {
        let mut known = self.known();
        if let Err(error) = &*known {
            return Err(error.clone());
        }
        let bytes = bounded(&changes)?;
        kept::replace(&self.path, &bytes).map_err(|error| self.unwritten(&error))?;
        *known = Ok(changes);
        if let Err(error) = kept::sync_dir_of(&self.path) {
            // The file holds them, and memory must hold what the file does: only a power cut could still undo them.
            log::error("live_policy_not_synced", &[("path", &self.path.display()), ("error", &error)]);
        }
        Ok(())
    }

    /// Whether these changes could be kept, so that no receipt tells of what will not be.
    pub fn fits(&self, changes: &[LiveChange]) -> Result<(), LiveError> {
        bounded(changes).map(drop)
    }

    /// Begins anew where the file cannot be read; it stays beside as `policy.json.bad`.
    pub fn forget(&self) -> Result<(), LiveError> {
        let mut known = self.known();
        if known.is_ok() {
            return Err(LiveError::Readable);
        }
        let put_aside = fs::rename(&self.path, self.path.with_extension("json.bad"));
        put_aside.and_then(|()| kept::sync_dir_of(&self.path)).map_err(|error| self.unwritten(&error))?;
        *known = Ok(Vec::new());
        Ok(())
    }

    fn unwritten(&self, error: &io::Error) -> LiveError {
        LiveError::Unwritten { path: self.path.display().to_string(), why: error.to_string() }
    }
}

/// The file's bytes, if all bounds hold.
fn bounded(changes: &[LiveChange]) -> Result<Vec<u8>, LiveError> {
    let full = |of: &str| Err(LiveError::Full(of.to_owned()));
    let of_agent = |agent: &AgentName| changes.iter().filter(|change| change.agent == *agent).count();
    if let Some(change) =
        changes.iter().find(|change| of_agent(&change.agent) > limits::LIVE_CHANGES_PER_AGENT_MAX)
    {
        return full(change.agent.as_str());
    }
    let bytes = serde_json::to_vec(&Stored { changes: changes.to_vec() }).unwrap_or_default();
    let fits = (1..=limits::LIVE_CHANGES_BYTES_MAX).contains(&(bytes.len() as u64));
    if changes.len() > limits::LIVE_CHANGES_MAX || !fits {
        return full("the node");
    }
    Ok(bytes)
}

fn read(path: &Path) -> io::Result<Vec<LiveChange>> {
    match kept::read(path, limits::LIVE_CHANGES_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        bytes => Ok(serde_json::from_slice::<Stored>(&bytes?)?.changes),
    }
}

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A grant, for a life.
    Allow(LiveChange),
    /// A denial, for a life or for all.
    Deny(LiveChange),
}

/// What a call comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// This holds already.
    Stands(LiveChange),
    /// These changes are to hold; the last one is the new one.
    Change(Vec<LiveChange>),
    /// A denial of these names, or of more, stands above it.
    Covered(LiveChange),
}

/// The changes that will hold when `wanted` does. Pure.
pub fn step(mut changes: Vec<LiveChange>, wanted: Wanted, now_unix_ms: u64) -> Step {
    let same_agent = |change: &LiveChange, new: &LiveChange| {
        let life = change.instance.is_none() || new.instance.is_none() || change.instance == new.instance;
        change.agent == new.agent && life
    };
    match wanted {
        Wanted::Allow(new) => {
            let above = changes.iter().find(|change| {
                let denies = change.effect == Effect::Deny && change.grant.name.covers(&new.grant.name);
                same_agent(change, &new) && denies
            });
            if let Some(above) = above {
                return Step::Covered(above.clone());
            }
            let stands = |change: &&LiveChange| {
                same_agent(change, &new)
                    && (change.effect, &change.grant) == (Effect::Allow, &new.grant)
                    && change.until_unix_ms.is_none_or(|until| now_unix_ms < until)
            };
            let standing = changes.iter().find(stands);
            if let Some(standing) = standing.filter(|change| change.until_unix_ms == new.until_unix_ms) {
                return Step::Stands(standing.clone());
            }
            changes.retain(|change| {
                let replaced = (change.effect, &change.grant) == (Effect::Allow, &new.grant);
                !(same_agent(change, &new) && replaced)
            });
            changes.push(new);
            Step::Change(changes)
        }
        Wanted::Deny(new) => {
            let is_it = |change: &&LiveChange| {
                same_agent(change, &new)
                    && (change.effect, &change.grant.name) == (Effect::Deny, &new.grant.name)
                    && (change.instance.is_none() || change.instance == new.instance)
            };
            if let Some(standing) = changes.iter().find(is_it) {
                return Step::Stands(standing.clone());
            }
            // What it covers is over, and does not come back when it is lifted.
            let covered = |pattern: &NamePattern| new.grant.name.covers(pattern);
            changes.retain(|change| {
                let ended = match change.effect {
                    Effect::Allow => covered(&change.grant.name),
                    Effect::Deny => change.grant.name == new.grant.name,
                };
                !(same_agent(change, &new) && ended)
            });
            changes.push(new);
            Step::Change(changes)
        }
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
