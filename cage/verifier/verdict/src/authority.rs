//! Authority: rules that were met.
//!
//! Must hold: what one of the rules does not admit is not admitted. There is no way from an authority to one that admits more.

use abi::authority::{Amounts, Level, Operation, Rules};
use abi::limits;
use alloc::vec::Vec;
use core::fmt;

/// What may be done: a conjunction of rules, with their common level, end, bounds and depth worked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    rules: Vec<Rules>,
    levels: [Level; Operation::ALL.len()],
    until_unix_ms: Option<u64>,
    budget: Amounts,
    depth: u8,
}

/// The meet of more than [`limits::RULES_MEETS_MAX`] different rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} rules would have to be met", limits::RULES_MEETS_MAX)
    }
}

impl core::error::Error for TooMany {}

impl Authority {
    /// What one set of rules allows.
    pub fn of(rules: Rules) -> Authority {
        let levels =
            Operation::ALL.map(|operation| rules.levels.get(&operation).copied().unwrap_or_default());
        Authority {
            levels,
            until_unix_ms: rules.until_unix_ms,
            budget: rules.budget,
            depth: rules.depth.min(limits::DELEGATION_DEPTH_MAX),
            rules: Vec::from([rules]),
        }
    }

    /// What nobody gave anything.
    pub fn nothing() -> Authority {
        Authority::of(Rules::default())
    }

    /// The meet of a list; nothing, of an empty one.
    pub fn of_all(rules: &[Rules]) -> Result<Authority, TooMany> {
        let mut all = rules.iter().cloned().map(Authority::of);
        let Some(first) = all.next() else { return Ok(Authority::nothing()) };
        all.try_fold(first, |met, one| met.meet(&one))
    }

    /// What both allow.
    pub fn meet(&self, other: &Authority) -> Result<Authority, TooMany> {
        let mut met = self.clone();
        for (level, other) in met.levels.iter_mut().zip(other.levels) {
            *level = (*level).min(other);
        }
        met.until_unix_ms = match (self.until_unix_ms, other.until_unix_ms) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        met.budget = self.budget.lesser(&other.budget);
        met.depth = self.depth.min(other.depth);
        let further = other.rules.iter().filter(|rules| !self.rules.contains(rules));
        met.rules.extend(further.cloned());
        if met.rules.len() > limits::RULES_MEETS_MAX { Err(TooMany) } else { Ok(met) }
    }

    /// What an agent that this one spawns has at most: the meet with what is given to it, one less deep. None at depth 0.
    pub fn delegate(&self, given: &Authority) -> Result<Option<Authority>, TooMany> {
        let Some(deeper) = self.depth.checked_sub(1) else { return Ok(None) };
        let mut given: Vec<Rules> = given.rules.clone();
        given.iter_mut().for_each(|rules| rules.depth = rules.depth.min(deeper));
        self.meet(&Authority::of_all(&given)?).map(Some)
    }

    /// The rules, in the order in which they were met.
    pub fn rules(&self) -> &[Rules] {
        &self.rules
    }

    /// The least level that one of the rules gives.
    pub fn level(&self, operation: Operation) -> Level {
        self.levels.get(operation.index()).copied().unwrap_or_default()
    }

    /// The earliest end.
    pub fn until_unix_ms(&self) -> Option<u64> {
        self.until_unix_ms
    }

    /// The least of each bound.
    pub fn budget(&self) -> &Amounts {
        &self.budget
    }

    /// Agents that may stand in a row below.
    pub fn depth(&self) -> u8 {
        self.depth
    }

    /// Whether everything that binds `other` binds this one too: same rules or more of them, and no level, end, bound or depth above. What
    /// this allows, `other` allows. (Not the reverse: two spellings of one thing are not compared.)
    pub fn is_below(&self, other: &Authority) -> bool {
        let no_higher = |mine: Option<u64>, theirs: Option<u64>| match (mine, theirs) {
            (_, None) => true,
            (Some(mine), Some(theirs)) => mine <= theirs,
            (None, Some(_)) => false,
        };
        other.rules.iter().all(|rules| self.rules.contains(rules))
            && self.levels.iter().zip(other.levels).all(|(mine, theirs)| *mine <= theirs)
            && no_higher(self.until_unix_ms, other.until_unix_ms)
            && self
                .budget
                .list()
                .into_iter()
                .zip(other.budget.list())
                .all(|(mine, theirs)| no_higher(mine, theirs))
            && self.depth <= other.depth
    }
}
