//! Who needs an image now, and which one is being removed.
//!
//! Must hold: an image that is held is not removed, and one that is being removed is not held, from the first question to the last
//! file; who has either gives it back by dropping it.

use abi::ids::{AgentName, Digest};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::StoreError;

/// All holds of a store. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub struct Holds(Arc<Mutex<BTreeMap<Digest, Vec<Holder>>>>);

/// For what an image is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// For an agent, and what is done for it: `runs from it`.
    Agent { agent: AgentName, doing: &'static str },
    /// For nothing any more. Alone.
    Removal,
}

/// An image stays, or is another's no more, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    digest: Digest,
    holder: Holder,
    holds: Holds,
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Vec<Holder>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an image is being removed.
    pub(super) fn may_be_used(&self, digest: &Digest) -> Result<(), StoreError> {
        match self.lock().get(digest).is_some_and(|holders| holders.contains(&Holder::Removal)) {
            true => Err(StoreError::BeingRemoved(*digest)),
            false => Ok(()),
        }
    }

    /// Keeps an image, in the store or not, from being removed.
    pub fn keep(&self, digest: Digest, agent: &AgentName, doing: &'static str) -> Result<Hold, StoreError> {
        self.take(digest, Holder::Agent { agent: agent.clone(), doing })
    }

    /// Takes an image that nobody needs away from everybody else.
    pub fn take_away(&self, digest: Digest) -> Result<Hold, StoreError> {
        self.take(digest, Holder::Removal)
    }

    fn take(&self, digest: Digest, holder: Holder) -> Result<Hold, StoreError> {
        let mut all = self.lock();
        let holders = all.entry(digest).or_default();
        match holders.first() {
            Some(Holder::Removal) => Err(StoreError::BeingRemoved(digest)),
            Some(Holder::Agent { agent, doing }) if holder == Holder::Removal => {
                Err(StoreError::Needed { digest, agent: agent.clone(), doing })
            }
            _ => {
                holders.push(holder.clone());
                Ok(Hold { digest, holder, holds: self.clone() })
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut all = self.holds.lock();
        let Some(holders) = all.get_mut(&self.digest) else { return };
        if let Some(at) = holders.iter().position(|holder| *holder == self.holder) {
            holders.swap_remove(at);
        }
        if holders.is_empty() {
            all.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_needed_by_many_or_removed_by_one() {
        let (holds, image, other) = (Holds::default(), Digest([1; 32]), Digest([2; 32]));
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = holds.keep(image, &a, "runs from it").unwrap();
        let second = holds.keep(image, &b, "runs from it").unwrap();
        drop(first);
        let needed = holds.take_away(image).unwrap_err();
        assert!(matches!(&needed, StoreError::Needed { agent, .. } if *agent == b), "{needed}");
        drop(second);
        let removal = holds.take_away(image).unwrap();
        assert!(matches!(holds.keep(image, &a, "runs from it"), Err(StoreError::BeingRemoved(_))));
        assert!(matches!(holds.take_away(image), Err(StoreError::BeingRemoved(_))));
        assert!(holds.may_be_used(&image).is_err() && holds.may_be_used(&other).is_ok());
        drop(holds.keep(other, &a, "runs from it").unwrap());
        drop(removal);
        drop(holds.keep(image, &a, "runs from it").unwrap());
        assert!(holds.lock().is_empty(), "nothing is left behind");
    }
}
