//! `agent`: lives of agents.

use crate::cli::Command;
use crate::run::agent;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "agent list",
        arguments: &[],
        rest: "",
        about: "all agents with their state, and manifests that are wrong",
        details: "",
        options: &[],
        examples: &[("nullctl agent list", "")],
        run: agent::list,
    },
    Command {
        path: "agent start",
        arguments: &["NAME"],
        rest: "",
        about: "start an agent; returns when its command runs",
        details: "",
        options: &[],
        examples: &[("nullctl agent start researcher", "with progress on standard error")],
        run: agent::start,
    },
    Command {
        path: "agent stop",
        arguments: &["NAME"],
        rest: "",
        about: "stop an agent: SIGTERM, after 5 s SIGKILL, then the VM",
        details: "",
        options: &[],
        examples: &[("nullctl agent stop researcher", "")],
        run: agent::stop,
    },
    Command {
        path: "agent status",
        arguments: &["NAME"],
        rest: "",
        about: "one agent: state, grants, limits, use, how it started and ended",
        details: "",
        options: &[],
        examples: &[("nullctl agent status researcher", "")],
        run: agent::status,
    },
];
