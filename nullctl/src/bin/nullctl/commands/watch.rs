//! `agent top`, `events` and `metrics`.

use super::FOLLOW;
use crate::cli::{Command, switch};
use crate::run::watch;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "agent top",
        arguments: &[],
        rest: "",
        about: "what each living agent uses",
        details: "CPU is the share of one core since the sample before; the first sample is taken twice, a second apart. On a terminal -f shows\nthe table anew every 2 seconds; into a pipe it writes one table after the other.",
        options: &[switch("follow", Some('f'), "go on, every 2 seconds")],
        examples: &[
            ("nullctl agent top -f", ""),
            ("nullctl agent top --json", "one sample, counters as they are"),
        ],
        run: watch::top,
    },
    Command {
        path: "agent events",
        arguments: &["[NAME]"],
        rest: "",
        about: "what happened to agents: starts, ends, pauses, execs, denials",
        details: "",
        options: &[FOLLOW],
        examples: &[("nullctl agent events -f", "watch all"), ("nullctl agent events researcher", "of one")],
        run: watch::events,
    },
    Command {
        path: "agent metrics",
        arguments: &[],
        rest: "",
        about: "all of it in Prometheus's text format",
        details: "The same text is on the node's metrics listener, if nulld.toml has one ([metrics]).",
        options: &[],
        examples: &[("nullctl agent metrics > agents.prom", "")],
        run: watch::metrics,
    },
];
