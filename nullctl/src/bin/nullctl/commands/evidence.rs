//! `agent evidence`: what is kept of quarantined lives.

use crate::cli::Command;
use crate::run::evidence;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "agent evidence list",
        arguments: &["[NAME]"],
        rest: "",
        about: "what is kept of quarantined lives, of all agents or one",
        details: "A life that has not ended stands frozen; its disk joins the evidence when agent stop or agent kill ends it.",
        options: &[],
        examples: &[("nullctl agent evidence list researcher", "")],
        run: evidence::list,
    },
    Command {
        path: "agent evidence get",
        arguments: &["LIFE", "FILE"],
        rest: "",
        about: "copy all that is kept of one life here, as a tar.gz",
        details: "FILE must not exist; it appears whole or not at all, readable by you alone. In it: LIFE/status.json, console.txt,\nagent.log and agent.old, workspace.ext4 once the life has ended, and SHA256SUMS, computed by the node as it read them.\nThe disk is hostile: look into it where nothing can be lost.",
        options: &[],
        examples: &[(
            "nullctl agent evidence get researcher.7 researcher.7.tar.gz",
            "with progress on standard error",
        )],
        run: evidence::fetch,
    },
    Command {
        path: "agent evidence remove",
        arguments: &["LIFE"],
        rest: "",
        about: "delete all that is kept of one life that has ended",
        details: "There is no copy of it on the node. With the last evidence of an agent its autostart works again.",
        options: &[],
        examples: &[("nullctl agent evidence remove researcher.7", "")],
        run: evidence::remove,
    },
];
