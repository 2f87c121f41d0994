//! Budgets: what is used is reserved before, and settled after.
//!
//! Must hold: at any time, what was spent and what is reserved are together within the bound. A reservation is settled once, by value;
//! one that is dropped stays reserved, so a mistake costs the agent, never the operator.

use crate::approvals::Actor;
use abi::authority::Amounts;
use abi::identity::Role;
use core::fmt;

/// The bounds of one life or task, and how far they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purse {
    tag: u64,
    bound: Amounts,
    spent: Amounts,
    reserved: Amounts,
}

/// Amounts that are set aside. Given back by [`Purse::settle`] or [`Purse::release`], once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is reserved stays reserved until it is settled"]
pub struct Reservation {
    tag: u64,
    amounts: Amounts,
}

impl Reservation {
    /// What is set aside.
    pub fn amounts(&self) -> &Amounts {
        &self.amounts
    }
}

/// A bound has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted {
    /// Of [`Amounts::NAMES`].
    pub bound: &'static str,
    pub left: u64,
    pub needed: u64,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` has {} left, and {} would be needed", self.bound, self.left, self.needed)
    }
}

impl core::error::Error for Exhausted {}

/// A reservation of another purse: nothing was settled, and there it stays reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign;

/// Only an operator makes a budget larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOperator;

/// The first of `needed` for which there is not as much `left`. A bound that is absent has room.
pub fn exhausted(left: &Amounts, needed: &Amounts) -> Option<Exhausted> {
    let pairs = left.list().into_iter().zip(needed.list());
    Amounts::NAMES.into_iter().zip(pairs).find_map(|(bound, pair)| match pair {
        (Some(left), Some(needed)) if needed > left => Some(Exhausted { bound, left, needed }),
        _ => None,
    })
}

fn sum(one: &Amounts, two: &Amounts) -> Amounts {
    one.zip(two, |one, two| match (one, two) {
        (Some(one), Some(two)) => Some(one.saturating_add(two)),
        (one, two) => one.or(two),
    })
}

fn difference(one: &Amounts, two: &Amounts) -> Amounts {
    one.zip(two, |one, two| Some(one?.saturating_sub(two.unwrap_or(0))))
}

impl Purse {
    /// A purse of which nothing is spent. `tag` tells it from others: a life's generation, a task's number.
    pub fn new(tag: u64, bound: Amounts) -> Purse {
        Purse { tag, bound, spent: Amounts::default(), reserved: Amounts::default() }
    }

    /// A purse of which something was spent before, as far as somebody wrote it down.
    pub fn resumed(tag: u64, bound: Amounts, spent: Amounts) -> Purse {
        Purse { spent, ..Purse::new(tag, bound) }
    }

    pub fn bound(&self) -> &Amounts {
        &self.bound
    }

    pub fn spent(&self) -> &Amounts {
        &self.spent
    }

    pub fn reserved(&self) -> &Amounts {
        &self.reserved
    }

    /// Of each bound what is neither spent nor reserved; of what is not bounded, nothing is said.
    pub fn left(&self) -> Amounts {
        difference(&difference(&self.bound, &self.spent), &self.reserved)
    }

    /// Whether some bound is used up: what that was.
    pub fn is_empty_of(&self) -> Option<&'static str> {
        Amounts::NAMES
            .into_iter()
            .zip(self.left().list())
            .find_map(|(name, left)| (left == Some(0)).then_some(name))
    }

    /// Sets amounts aside: all of them, or none.
    pub fn reserve(&mut self, amounts: &Amounts) -> Result<Reservation, Exhausted> {
        if let Some(exhausted) = exhausted(&self.left(), amounts) {
            return Err(exhausted);
        }
        self.overflowing(amounts)?;
        self.reserved = sum(&self.reserved, amounts);
        Ok(Reservation { tag: self.tag, amounts: *amounts })
    }

    /// Also where nothing bounds an amount, what is counted of it stays a number.
    fn overflowing(&self, amounts: &Amounts) -> Result<(), Exhausted> {
        let used = sum(&self.spent, &self.reserved);
        let room = amounts.zip(&used, |_, used| Some(u64::MAX - used.unwrap_or(0)));
        exhausted(&room, amounts).map_or(Ok(()), Err)
    }

    /// What was used of it is spent, the rest is free again. More than was reserved is not believed; what is not said was used whole.
    pub fn settle(&mut self, reservation: Reservation, used: &Amounts) -> Result<(), Foreign> {
        if reservation.tag != self.tag {
            return Err(Foreign);
        }
        let spent = reservation.amounts.zip(used, |reserved, used| {
            let reserved = reserved?;
            Some(used.unwrap_or(reserved).min(reserved))
        });
        self.spent = sum(&self.spent, &spent);
        self.reserved = difference(&self.reserved, &reservation.amounts);
        Ok(())
    }

    /// Nothing was done: all of it is free again.
    pub fn release(&mut self, reservation: Reservation) -> Result<(), Foreign> {
        let nothing = reservation.amounts.zip(&Amounts::default(), |reserved, _| reserved.map(|_| 0));
        self.settle(reservation, &nothing)
    }

    /// Something that was measured rather than asked for, as time is: spent up to the bound. Says which bound that used up.
    pub fn charge(&mut self, used: &Amounts) -> Result<(), Exhausted> {
        let left = self.left();
        let charged = used.zip(&left, |used, left| Some(used?.min(left.unwrap_or(u64::MAX))));
        self.spent = sum(&self.spent, &charged);
        exhausted(&left, used).map_or(Ok(()), Err)
    }

    /// The bounds become the lesser of both.
    pub fn tighten(&mut self, bound: &Amounts) {
        self.bound = self.bound.lesser(bound);
    }

    /// An operator adds to bounds that there are.
    pub fn more(&mut self, actor: Actor<'_>, added: &Amounts) -> Result<(), NotOperator> {
        if !actor.is_at_least(Role::Operator) {
            return Err(NotOperator);
        }
        self.bound = self.bound.zip(added, |bound, added| Some(bound?.saturating_add(added.unwrap_or(0))));
        Ok(())
    }
}

/// What is in order to show: the amounts by name.
pub fn named(amounts: &Amounts) -> impl Iterator<Item = (&'static str, u64)> {
    Amounts::NAMES.into_iter().zip(amounts.list()).filter_map(|(name, amount)| Some((name, amount?)))
}
