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
        details: "Standard input is passed on; the exit status is the program's own (128 + n after signal n, 124 when its time was up, 125\nwhen it could not run). The manifest decides which programs may run. With --tty what it writes reaches the terminal as it is.",
        options: &[
            switch(
                "tty",
                Some('t'),
                "a terminal of this one's size, which follows it; keys go through as they are",
            ),
            valued("timeout", "SECONDS", "kill it then"),
            valued("env", "NAME=VALUE", "a further variable; may be given again"),
            valued("workdir", "DIR", "instead of the agent's"),
            switch("no-stdin", Some('n'), "do not read standard input"),
            RAW,
        ],
        examples: &[
            ("nullctl agent exec researcher -- /usr/bin/python3 -V", ""),
            ("nullctl agent exec a -- /usr/bin/wc -l < notes", "with input"),
            ("nullctl agent exec -t a -- /bin/sh", "by hand"),
        ],
        run: exec::exec,
    },
    Command {
        path: "agent attach",
        arguments: &["NAME"],
        rest: "",
        about: "an agent's own command: what it writes, and its input",
        details: "Ends with the agent's life, with its command's exit status. Leaving ends nothing: ctrl-p ctrl-q where the agent has a\nterminal, ctrl-c elsewhere. Input needs stdin = true in the manifest; one caller at a time writes, any number watch.",
        options: &[
            switch("no-stdin", Some('n'), "only watch"),
            switch("replay", None, "begin with what the log still has"),
            switch(
                "close-stdin",
                None,
                "pass the end of standard input on; the command can be told nothing after it",
            ),
            RAW,
        ],
        examples: &[
            ("nullctl agent attach researcher", ""),
            ("nullctl agent attach -n researcher", "only watch"),
        ],
        run: exec::attach,
    },
];
