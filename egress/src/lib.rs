//! Default deny: a network namespace for each VM, DNS with synthetic addresses, the name-bound proxy, the node's firewall.
//!
//! Owns: networks of VMs, what leaves the node, and who was refused what.
//! Must hold: nothing leaves without a granted name, a judged address and a durable receipt; what is refused says why.
//! Must never: take an identity, a name or an address from what a guest says about itself.

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

pub mod addresses;
pub mod agent;
pub mod broker;
pub mod bucket;
pub mod budget;
pub mod buffers;
pub mod denials;
pub mod dns;
pub mod dns_server;
pub mod ends;
pub mod guard;
pub mod http;
pub mod kept;
pub mod link;
pub mod live;
mod moved;
pub mod names;
pub mod namespace;
pub mod nflog;
pub mod nft;
pub mod open;
pub mod page;
pub mod pipe;
pub mod policy;
pub mod proxy;
pub mod publish;
pub mod receipts;
pub mod records;
pub mod resolve;
pub mod secrets;
pub mod service;
pub mod settings;
pub mod sniff;
pub mod splice;
pub mod suggest;
pub mod sys;
pub mod tls;
pub mod wall;
pub mod workers;
