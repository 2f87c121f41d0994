//! Every byte that crosses a boundary between two components, and every limit.
//!
//! Owns: names and ids, limits, the manifest, the node's configuration, the control protocol (JSON-RPC over a
//! Unix socket), the hand-off of connections, the ledger's events and the guest protocol.
//! Must hold: whatever arrives is parsed once, here, into a type that cannot hold a wrong value.
//! Must never: decide anything, or know how a component does its work.

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

pub mod authority;
pub mod exposure;
pub mod files;
pub mod guest;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod task;
pub mod tools;

#[cfg(feature = "node")]
pub mod config_error;
#[cfg(feature = "node")]
pub mod control;
#[cfg(feature = "node")]
pub mod door;
#[cfg(feature = "node")]
pub mod facts;
#[cfg(feature = "node")]
pub mod ledger;
#[cfg(feature = "node")]
pub mod log;
#[cfg(feature = "node")]
pub mod manifest;
#[cfg(feature = "node")]
pub mod memory;
#[cfg(feature = "node")]
pub mod metrics;
#[cfg(feature = "node")]
pub mod network;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "node")]
pub mod notice;
#[cfg(feature = "node")]
pub mod page;
pub mod rpc;
#[cfg(feature = "node")]
mod sys;
#[cfg(feature = "node")]
pub mod wire;
