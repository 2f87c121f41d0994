//! The table of all commands, a file for each group.

use crate::cli::{Command, Opt, switch, valued};

mod agent;
mod approvals;
mod bundle;
mod disks;
mod evidence;
mod exec;
mod files;
mod image;
mod local;
mod memory;
mod net;
#[cfg(feature = "policy")]
mod policy;
mod services;
mod spend;
mod system;
mod task;
mod watch;

const FOLLOW: Opt = switch("follow", Some('f'), "go on as more comes");
const LINES: Opt = Opt { short: Some('n'), ..valued("lines", "N", "begin with the newest N") };
const SINCE: Opt = valued("since", "TIME", "from then on: an age (10m, 2h) or 2026-11-22T10:00:00Z");
const AGENT: Opt = valued("agent", "NAME", "of this agent");
const PAGE: [Opt; 3] = [
    AGENT,
    valued("limit", "N", "at most N entries"),
    valued("cursor", "TEXT", "go on where an earlier answer ended"),
];
const RAW: Opt = switch("raw", None, "control characters as they are, to a terminal too");

const GROUPS: &[&[Command]] = &[
    system::COMMANDS,
    agent::COMMANDS,
    evidence::COMMANDS,
    exec::COMMANDS,
    files::COMMANDS,
    approvals::COMMANDS,
    task::COMMANDS,
    watch::COMMANDS,
    disks::COMMANDS,
    image::COMMANDS,
    net::COMMANDS,
    spend::COMMANDS,
    memory::COMMANDS,
    services::COMMANDS,
    bundle::COMMANDS,
    #[cfg(feature = "sync")]
    bundle::SYNC,
    #[cfg(feature = "policy")]
    policy::COMMANDS,
    local::COMMANDS,
];

/// All commands, in the order of the help.
pub static COMMANDS: &[Command] = &joined::<{ count(GROUPS) }>(GROUPS);

const fn count(groups: &[&[Command]]) -> usize {
    let (mut total, mut group) = (0, 0);
    while group < groups.len() {
        total += groups[group].len();
        group += 1;
    }
    total
}

const fn joined<const N: usize>(groups: &[&[Command]]) -> [Command; N] {
    let mut all = [groups[0][0]; N];
    let (mut filled, mut group) = (0, 0);
    while group < groups.len() {
        let mut index = 0;
        while index < groups[group].len() {
            all[filled] = groups[group][index];
            (filled, index) = (filled + 1, index + 1);
        }
        group += 1;
    }
    all
}
