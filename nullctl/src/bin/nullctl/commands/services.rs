//! `ledger`: what happened.

use super::FOLLOW;
use crate::cli::{Command, valued};
use crate::run::ledger;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
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
