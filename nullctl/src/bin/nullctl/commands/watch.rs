//! `agent top`, `events` and `metrics`.

use crate::cli::Command;

/// In the order of the help.
pub const COMMANDS: &[Command] = &[];
