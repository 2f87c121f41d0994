//! `agent cp` and `agent diff`.

use crate::cli::Command;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[];
