//! What a candidate claims to have changed, checked into a [`ChangeSet`], and what a verify VM proved, as a [`VerifiedPatch`].
//!
//! Must hold: a `ChangeSet` is made by [`check`] alone, so each passed every rule of docs/tasks.md; a `VerifiedPatch` is made by [`mint`]
//! (or, after a restart, [`reminted`] from what the ledger holds), is not `Clone`, and what integrates takes it by value.
//! Must never: take a path, a mode or a digest of a claim for more than what somebody in a guest said.

mod git;
mod links;
mod mint;
mod rules;
pub mod steering;

pub use mint::{
    IntegrateError, Integration, MintError, Proof, Recorded, Verification, VerifiedPatch, integrate, mint,
    reminted, step_arguments,
};
pub use rules::{Protect, ProtectError, check};

use abi::ids::Digest;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use sha2::{Digest as _, Sha256};

use crate::tree::{Entry, Tree, line};

/// What a guest says was changed. Untrusted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claimed {
    pub changes: Vec<ClaimedChange>,
}

/// One path of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedChange {
    /// Below the tree.
    pub path: String,
    /// Permission bits, and what else stands in a mode. Of files and directories alone.
    pub mode: u32,
    pub content: ClaimedContent,
}

/// What it says stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimedContent {
    Directory,
    /// The host read these bytes and took their digest.
    File {
        sha256: Digest,
        bytes: u64,
    },
    Link {
        target: String,
    },
    Removed,
    /// A socket, a pipe, a device.
    Other {
        kind: String,
    },
}

/// What changes at one path; at least one of the two is there, and they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub old: Option<Entry>,
    pub new: Option<Entry>,
}

/// A claim that passed every rule, over one base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSet {
    base: Digest,
    result: Digest,
    changes: BTreeMap<String, Change>,
    left_out: usize,
}

impl ChangeSet {
    /// Digest of the tree it changes.
    pub fn base(&self) -> Digest {
        self.base
    }

    /// Digest of that tree with the changes.
    pub fn result(&self) -> Digest {
        self.result
    }

    /// Entries of the claim that are a tool's caches (docs/tasks.md): neither verified nor applied.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// By path, in byte order.
    pub fn changes(&self) -> impl Iterator<Item = (&str, &Change)> {
        self.changes.iter().map(|(path, change)| (path.as_str(), change))
    }

    /// The patch's digest.
    pub fn digest(&self) -> Digest {
        let mut sha = Sha256::new();
        sha.update(b"nullbox-patch-1\n");
        sha.update(self.base.hex());
        sha.update(b"\n");
        for (path, change) in &self.changes {
            for (sign, entry) in [(b"-", &change.old), (b"+", &change.new)] {
                if let Some(entry) = entry {
                    sha.update(sign);
                    sha.update(line(path, entry));
                }
            }
        }
        Digest(sha.finalize().into())
    }

    /// The base with the changes; none if it is another base.
    pub fn apply(&self, base: &Tree) -> Option<Tree> {
        (base.digest() == self.base).then(|| applied(base, &self.changes))
    }
}

fn applied(base: &Tree, changes: &BTreeMap<String, Change>) -> Tree {
    let mut tree = base.clone();
    for (path, change) in changes {
        match &change.new {
            Some(entry) => tree.entries.insert(path.clone(), entry.clone()),
            None => tree.entries.remove(path),
        };
    }
    tree
}

/// The rules of docs/tasks.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    Path,
    Link,
    Mode,
    Git,
    Protected,
    BuildSteering,
    Size,
    Empty,
}

impl Rule {
    /// As refusals and the ledger write it.
    pub const fn word(self) -> &'static str {
        match self {
            Rule::Path => "path",
            Rule::Link => "link",
            Rule::Mode => "mode",
            Rule::Git => "git",
            Rule::Protected => "protected",
            Rule::BuildSteering => "build-steering",
            Rule::Size => "size",
            Rule::Empty => "empty",
        }
    }
}

/// Why one path of a claim is not legal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub rule: Rule,
    /// As it came, cut to [`REFUSAL_PATH_CHARS_MAX`] characters; empty where the rule is about the whole.
    pub path: String,
    /// In words.
    pub why: String,
}

/// Refusals that are told of one claim; the others are counted.
pub const REFUSALS_MAX: usize = 32;
/// Characters of a path in a refusal.
pub const REFUSAL_PATH_CHARS_MAX: usize = 200;

/// Why a claim is refused whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals {
    /// Never empty, at most [`REFUSALS_MAX`].
    pub list: Vec<Refusal>,
    /// Those that did not fit.
    pub more: usize,
}

impl core::fmt::Display for Refusals {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (number, refusal) in self.list.iter().enumerate() {
            let end = if number == 0 { "" } else { "; " };
            let path = refusal.path.escape_debug();
            let at = if refusal.path.is_empty() { "" } else { " " };
            write!(f, "{end}{}{at}{path}: {}", refusal.rule.word(), refusal.why)?;
        }
        if self.more > 0 {
            write!(f, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

impl core::error::Error for Refusals {}
