//! `agent cp` and `agent diff`.

use crate::cli::{Command, switch};
use crate::run::files;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "agent cp",
        arguments: &["SOURCE", "DESTINATION"],
        rest: "",
        about: "copy files out of a running agent or into it",
        details: "One side is AGENT:/absolute/path. A destination that is a directory gets the copy below it, another one becomes it; SOURCE/.\nis what is in a directory. Nothing is written through a link: what exists is replaced, a directory is kept and filled.\nInside the agent it is done with the agent's own user and grants. Permission bits and files' times are kept; no owner,\nno set-id bit, no device. A link that leads out of the copy is left out, unless --links.",
        options: &[switch(
            "links",
            None,
            "make links that lead out of the copy, too; they are never followed here",
        )],
        examples: &[
            ("nullctl agent cp researcher:/data/out ./results", "a directory, out"),
            ("nullctl agent cp notes.txt researcher:/data/out/", "a file, in"),
            ("nullctl agent cp src/. researcher:/home/agent", "what is in a directory, in"),
        ],
        run: files::cp,
    },
    Command {
        path: "agent diff",
        arguments: &["NAME"],
        rest: "",
        about: "what a running agent changed against its rootfs",
        details: "A: added, C: changed, D: deleted.",
        options: &[],
        examples: &[("nullctl agent diff researcher", "")],
        run: files::diff,
    },
];
