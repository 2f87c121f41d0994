//! nulld: PID 1 of a node. Mounts, supervision, the one control socket, power.
//!
//! Several programs in one binary, by who runs it: the first process is the node's [`daemon`]; `nulld launch` turns a new
//! process into a service ([`launch`]); `nulld uplink` keeps the node's address ([`uplink`]), `nulld clock` its time
//! ([`timekeeper`]), `nulld forward` sends its log elsewhere ([`forward`]).
//!
//! Must hold: PID 1 never waits without a bound, never panics, and parses nothing from a network.

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

mod boot;
mod builtin;
mod buttons;
mod callers;
mod cgroup;
mod clock;
mod clock_watch;
mod config;
mod console;
mod crash;
mod daemon;
mod doctor;
mod door;
mod forward;
mod health;
mod journal;
mod kernel_log;
mod launch;
mod ledger;
mod logs;
mod mounts;
mod names;
mod phases;
mod poll;
mod power;
mod saved;
mod screen;
mod service;
mod supervisor;
mod sys;
mod sysctl;
mod system;
mod table;
mod timekeeper;
mod uplink;
mod volume;
mod watchdog;

fn main() {
    let command = std::env::args().nth(1).unwrap_or_default();
    let code = match (std::process::id(), command.as_str()) {
        (1, _) => daemon::main(),
        (_, "launch") => launch::main(),
        (_, "uplink") => uplink::main(),
        (_, "clock") => timekeeper::main(),
        (_, "forward") => forward::main(),
        _ => {
            eprintln!("nulld is the first process of a NullBox node and does nothing anywhere else");
            2
        }
    };
    std::process::exit(code);
}
