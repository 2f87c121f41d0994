//! What the node remembers: the memory of agents, and the ledger. The page is docs/ctxgraph.md.

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
pub mod bundle;
pub mod calls;
pub mod canonical;
mod counted;
mod cursor;
pub mod draft;
pub mod entry;
pub mod exposure;
pub mod lease;
pub mod ledger;
pub mod memory;
pub mod notary;
pub mod noted;
mod places;
pub mod scrub;
pub mod service;
pub mod settings;
pub mod speaker;
pub mod store;
#[cfg(test)]
mod testing;
pub mod watch;
pub mod watching;
pub mod words;
