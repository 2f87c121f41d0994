//! What nullctl and nullgate share: the forms of keys, who is accepted in a TLS handshake, and the relay of bytes.
//!
//! Must hold: no byte of a request passes before both keys were proved. Must never: print or log a private key.

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

pub mod keys;
pub mod relay;
pub mod tls;
