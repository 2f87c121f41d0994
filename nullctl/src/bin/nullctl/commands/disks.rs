//! `snapshot` and `volume`.

use crate::cli::Command;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[];
