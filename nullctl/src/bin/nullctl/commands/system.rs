//! `system`: the node itself.

use super::{FOLLOW, LINES, SINCE};
use crate::cli::Command;
use crate::run::{doctor, logs, system};

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "system status",
        arguments: &[],
        rest: "",
        about: "boot phases, services, addresses, memory, problems",
        details: "",
        options: &[],
        examples: &[
            ("nullctl system status", "the pinned default node"),
            ("nullctl system status --node lab --json", "for a script"),
        ],
        run: system::status,
    },
    Command {
        path: "system doctor",
        arguments: &[],
        rest: "",
        about: "what is wrong with the node, and what to do; status 1 if anything is",
        details: "Each finding is an error (agents cannot run, or something may be lost), a warning (the node runs with less \
            than it should) or information. With information only, the status is 0.",
        options: &[],
        examples: &[
            ("nullctl system doctor", "worst first, each with its remedy"),
            ("nullctl system doctor --json | jq -r '.findings[].what'", "for a script"),
        ],
        run: doctor::doctor,
    },
    Command {
        path: "system logs",
        arguments: &["[SERVICE]"],
        rest: "",
        about: "log of one service or of all",
        details: "SERVICE is a service, nulld or kernel. A line of two dashes says how many lines are no longer kept.",
        options: &[FOLLOW, LINES, SINCE],
        examples: &[
            ("nullctl system logs egress -f", "watch egress"),
            ("nullctl system logs -n 50", "the newest 50 lines of all"),
            ("nullctl system logs --since 10m", "the last ten minutes"),
        ],
        run: logs::logs,
    },
    Command {
        path: "system dmesg",
        arguments: &[],
        rest: "",
        about: "the kernel's log",
        details: "What the kernel said begins with its level and `kernel:`, what a process wrote into its log with another name.",
        options: &[FOLLOW, LINES, SINCE],
        examples: &[("nullctl system dmesg -f", "watch"), ("nullctl system dmesg --since 1h", "")],
        run: logs::dmesg,
    },
    Command {
        path: "system reboot",
        arguments: &[],
        rest: "",
        about: "stop everything in order and reboot (admin)",
        details: "",
        options: &[],
        examples: &[("nullctl system reboot", "")],
        run: system::reboot,
    },
    Command {
        path: "system poweroff",
        arguments: &[],
        rest: "",
        about: "stop everything in order and power off (admin)",
        details: "",
        options: &[],
        examples: &[("nullctl system poweroff", "")],
        run: system::poweroff,
    },
];
