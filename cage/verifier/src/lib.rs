//! The library that decides, shared by the guest's PID 1 and the host.
//!
//! Owns: what a [`abi::guest::Start`] means for a sandbox (paths, rights, programs), the system call filter as data, the frame
//! decoder, the life of a channel. Must hold: every function here is a decision on its arguments; none does I/O
//! of its own. Must never: panic, allocate by a length it has not bounded, or contain unsafe code.

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

pub mod access;
pub mod arch;
pub mod call;
pub mod channel;
pub mod elf;
pub mod etc;
pub mod frames;
pub mod health;
pub mod plan;
pub mod seccomp;
pub mod values;
