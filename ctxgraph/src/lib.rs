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

pub mod canonical;
pub mod entry;
pub mod ledger;
#[cfg(test)]
mod testing;
