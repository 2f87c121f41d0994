//! The ledger's format and its proofs: what ctxgraph writes, and what a stranger checks with nothing but a public key.
//! The format is docs/formats/ctxgraph.md.
//!
//! Must hold: everything here is decided from bytes alone: no clock, no file, no randomness.
//! Must never: panic on any bytes.

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

pub mod attestation;
pub mod chain;
pub mod checkpoint;
pub mod export;
pub mod frame;
pub mod keys;
pub mod merkle;
pub mod proof;
pub mod receipt;
pub mod statement;
