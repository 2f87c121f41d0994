//! `snapshot` and `volume`.

use crate::cli::Command;
use crate::run::disks;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "snapshot list",
        arguments: &[],
        rest: "",
        about: "copies of workspaces",
        details: "",
        options: &[],
        examples: &[("nullctl snapshot list", "")],
        run: disks::list_snapshots,
    },
    Command {
        path: "snapshot create",
        arguments: &["AGENT", "NAME"],
        rest: "",
        about: "copy the workspace of a stopped, paused or quarantined agent",
        details: "Meanwhile the agent does not start or go on. agent create --from NAME begins with the copy.",
        options: &[],
        examples: &[("nullctl snapshot create researcher before-update", "with progress on standard error")],
        run: disks::create_snapshot,
    },
    Command {
        path: "snapshot remove",
        arguments: &["NAME"],
        rest: "",
        about: "delete a copy; what was made from it stays",
        details: "",
        options: &[],
        examples: &[("nullctl snapshot remove before-update", "")],
        run: disks::remove_snapshot,
    },
    Command {
        path: "volume list",
        arguments: &[],
        rest: "",
        about: "volumes of all agents",
        details: "",
        options: &[],
        examples: &[("nullctl volume list", "")],
        run: disks::list_volumes,
    },
    Command {
        path: "volume remove",
        arguments: &["AGENT", "NAME"],
        rest: "",
        about: "delete a volume of an agent that does not run, with all in it",
        details: "",
        options: &[],
        examples: &[("nullctl volume remove researcher data", "")],
        run: disks::remove_volume,
    },
];
