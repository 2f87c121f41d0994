//! `agent logs`, `exec`, `attach`: what agents say, and programs beside them.

use super::{FOLLOW, LINES, RAW, SINCE};
use crate::cli::{Command, switch, valued};
use crate::run::exec;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "agent logs",
        arguments: &["NAME"],
        rest: "",
        about: "what an agent wrote",
        details: "Its standard output goes to standard output, its standard error to standard error. On a terminal control characters\nare shown as escapes.",
        options: &[FOLLOW, LINES, SINCE, RAW],
        examples: &[
            ("nullctl agent logs researcher -f", "watch"),
            ("nullctl agent logs researcher > report.txt", "the bytes as they are"),
        ],
        run: exec::logs,
    },
    Command {
        path: "agent exec",
        arguments: &["NAME"],
        rest: "PROGRAM [ARGUMENT...]",
        about: "run a program in an agent's sandbox, with its user, limits and grants",
        details: "Standard input is passed on; the exit status is the program's own (128 + n after signal n, 125 when it could not run).\nThe manifest decides which programs may run.",
        options: &[
            valued("env", "NAME=VALUE", "a further variable; may be given again"),
            valued("workdir", "DIR", "instead of the agent's"),
            switch("no-stdin", Some('n'), "do not read standard input"),
            RAW,
        ],
        examples: &[
            ("nullctl agent exec researcher -- /usr/bin/python3 -V", ""),
            ("nullctl agent exec a -- /usr/bin/wc -l < notes", "with input"),
        ],
        run: exec::exec,
    },
];
