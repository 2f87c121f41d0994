//! The library that decides: what a tool may do, how a task goes on, what a verified patch is.
//!
//! Owns: the lattice of authority, the decision on a call, approvals, budgets, the states of tasks, the check of a change set.
//! Must hold: everything here is a function of its arguments. There is no clock, no file, no randomness: the crate has no `std` (time,
//! random numbers and signatures come in as values). Must never: panic, or let two states be reached where one was written down.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable
    )
)]

extern crate alloc;

pub mod approvals;
pub mod authority;
pub mod budget;
pub mod decide;
pub mod diff;
pub mod exposure;
pub mod patch;
pub mod step;
pub mod token;
pub mod tree;
