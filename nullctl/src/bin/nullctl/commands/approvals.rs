//! `approvals`, `approve`, `deny`; what a life has seen and may still do.

use crate::cli::{Command, Opt, valued};
use crate::run::{approvals, exposure};

const REASON: Opt = valued("reason", "TEXT", "why, for those who read the ledger; needed");

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "approvals",
        arguments: &[],
        rest: "",
        about: "questions that wait: may exactly this call happen?",
        details: "Lines behind | were written by the agent or by strangers; no character of them steers the terminal.\nA question waits an hour at most, and names the least role that may answer it.",
        options: &[super::FOLLOW],
        examples: &[("nullctl approvals -f", "")],
        run: approvals::list,
    },
    Command {
        path: "approve",
        arguments: &["ID"],
        rest: "",
        about: "let exactly this call happen, once",
        details: "The answer holds for five minutes and for these arguments alone, and the call is decided again when it happens: what would then be\nrefused, or be asked for more than the question showed, does not happen. An agent cannot answer.",
        options: &[REASON],
        examples: &[("nullctl approve a7 --reason \"the release\"", "")],
        run: approvals::approve,
    },
    Command {
        path: "deny",
        arguments: &["ID"],
        rest: "",
        about: "refuse a call that waits",
        details: "",
        options: &[REASON],
        examples: &[("nullctl deny a7 --reason \"unclear what it is for\"", "")],
        run: approvals::deny,
    },
    Command {
        path: "agent exposure",
        arguments: &["NAME"],
        rest: "",
        about: "what a life has seen and spent, and what its tools may still do",
        details: "",
        options: &[],
        examples: &[("nullctl agent exposure researcher", "")],
        run: exposure::show,
    },
    Command {
        path: "agent declassify",
        arguments: &["NAME"],
        rest: "",
        about: "let exactly these bytes leave, whatever was seen; in this life alone",
        details: "",
        options: &[valued("arguments", "SHA256", "of the call's arguments, as a question shows it"), REASON],
        examples: &[(
            "nullctl agent declassify researcher --reason public --arguments sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "",
        )],
        run: exposure::declassify,
    },
    Command {
        path: "agent tighten",
        arguments: &["NAME"],
        rest: "",
        about: "narrow what a running agent's tools may do, for the rest of its life",
        details: "FILE has fields of a manifest's [authority], for example: never = [\"/work/secrets/**\"] and operations = { run_bash = \"never\" }.\nWhat it does not name stays as it is.",
        options: &[valued("rules", "FILE", "TOML")],
        examples: &[("nullctl agent tighten researcher --rules less.toml", "")],
        run: exposure::tighten,
    },
];
