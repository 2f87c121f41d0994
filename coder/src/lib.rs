//! A small coding agent: a model behind the broker, the verifier's tools, and a loop that ends.
//!
//! It is a guest's program like any other and nobody trusts it: what it may do is decided by the node, and whether it did its job by a
//! fresh VM. The page is docs/coder.md.

pub mod conversation;
pub mod model;
pub mod provider;
pub mod settings;
pub mod shown;
pub mod sse;
pub mod tools;
pub mod work;
