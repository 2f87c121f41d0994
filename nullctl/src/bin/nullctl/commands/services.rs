//! `memory`, `ledger`: what ctxgraph knows.

use super::{AGENT, FOLLOW, PAGE};
use crate::cli::{Command, switch, valued};
use crate::run::{ledger, memory};

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "memory list",
        arguments: &[],
        rest: "",
        about: "agents with memory, entries and bytes of each",
        details: "",
        options: &[],
        examples: &[("nullctl memory list", "")],
        run: memory::list,
    },
    Command {
        path: "memory write",
        arguments: &["KEY", "VALUE"],
        rest: "",
        about: "write an entry into an agent's memory",
        details: "VALUE is JSON; with --text it is taken as a string. VALUE - reads standard input.",
        options: &[AGENT, switch("text", None, "VALUE is plain text")],
        examples: &[
            ("nullctl memory write --agent researcher topics/1 {\"q\":\"tcg\"}", ""),
            ("nullctl memory write --agent researcher hint hello --text", ""),
        ],
        run: memory::write,
    },
    Command {
        path: "memory read",
        arguments: &["[KEY]"],
        rest: "",
        about: "one entry: the newest of a key, or by hash",
        details: "",
        options: &[AGENT, valued("hash", "sha256:...", "the entry with this hash")],
        examples: &[
            ("nullctl memory read --agent researcher notes/first", ""),
            (
                "nullctl memory read --hash sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "",
            ),
        ],
        run: memory::read,
    },
    Command {
        path: "memory query",
        arguments: &["[PREFIX]"],
        rest: "",
        about: "newest entry of each key with a prefix",
        details: "",
        options: &PAGE,
        examples: &[("nullctl memory query --agent researcher notes/", "")],
        run: memory::query,
    },
    Command {
        path: "memory history",
        arguments: &["KEY"],
        rest: "",
        about: "all entries of a key, newest first",
        details: "",
        options: &PAGE,
        examples: &[("nullctl memory history --agent researcher notes/first", "")],
        run: memory::history,
    },
    Command {
        path: "ledger tail",
        arguments: &[],
        rest: "",
        about: "newest events of the node's ledger",
        details: "",
        options: &[FOLLOW, valued("limit", "N", "begin with the newest N (100)")],
        examples: &[("nullctl ledger tail --limit 20 -f", "")],
        run: ledger::tail,
    },
    Command {
        path: "ledger verify",
        arguments: &[],
        rest: "",
        about: "check the whole chain; status 1 and the place if it is broken",
        details: "",
        options: &[],
        examples: &[("nullctl ledger verify", "")],
        run: ledger::verify,
    },
];
