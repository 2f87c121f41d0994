//! nullctl: the command line of a NullBox node. docs/nullctl.md is its page.
//!
//! Must hold: help, parser and commands read one table; each failure has the exit status that the page gives it.

mod cli;
mod commands;
mod context;
mod failure;
mod git;
mod help;
mod link;
mod nodes;
mod pack;
mod print;
mod run;
mod screen;
mod tree;
mod words;

use std::process::ExitCode;

use cli::Wanted;
use commands::COMMANDS;
use context::{Context, say};
use failure::Failure;

fn main() -> ExitCode {
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    match wanted() {
        Ok(exit) => ExitCode::from(exit),
        Err(failure) => {
            failure.show(json);
            ExitCode::from(failure.exit)
        }
    }
}

fn wanted() -> Result<u8, Failure> {
    match cli::parse(COMMANDS, std::env::args_os().skip(1))? {
        Wanted::Help(topic) => say(&help::topic(COMMANDS, &topic)?).map(|()| 0),
        Wanted::Run(command, given) => (command.run)(&Context::new(&given)?, &given),
    }
}
