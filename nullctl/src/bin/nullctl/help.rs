//! Help texts, made from the command table.

use std::fmt::Write as _;

use crate::cli::{Command, GLOBAL, Opt};
use crate::failure::Failure;

const INTRODUCTION: &str = "\
nullctl speaks to one NullBox node.

  nullctl key gen                                  make your key
  nullctl node trust HOST --pin SHA256:...         pin a node; the fingerprint is on its console
  nullctl agent start NAME                         then work

";

const STATUSES: &str = "
Exit status: 0 done, 1 refused or failed, 2 usage, 3 node not reached, 4 denied, 5 not found, 6 took too long;
agent exec: the program's own, 125 if it could not run.
";

/// The usage line.
pub fn usage(command: &Command) -> String {
    let mut line = format!("nullctl {}", command.path);
    for argument in command.arguments {
        line.push(' ');
        line.push_str(argument);
    }
    if !command.options.is_empty() {
        line.push_str(" [OPTIONS]");
    }
    if !command.rest.is_empty() {
        line.push_str(" -- ");
        line.push_str(command.rest);
    }
    line
}

/// Help for a topic: nothing, a group or a command.
pub fn topic(commands: &[Command], topic: &str) -> Result<String, Failure> {
    if let Some(command) = commands.iter().find(|command| command.path == topic) {
        return Ok(of_command(command));
    }
    let group = format!("{topic} ");
    let chosen: Vec<&Command> =
        commands.iter().filter(|command| topic.is_empty() || command.path.starts_with(&group)).collect();
    if chosen.is_empty() {
        return Err(Failure::usage(
            format!("there is no help on `{topic}`"),
            "nullctl help lists all commands",
        ));
    }
    let mut text = String::new();
    if topic.is_empty() {
        text.push_str(INTRODUCTION);
    }
    text.push_str("Commands:\n");
    let lines: Vec<(String, &str)> = chosen
        .iter()
        .map(|command| {
            let words = std::iter::once(command.path).chain(command.arguments.iter().copied());
            let mut left = words.collect::<Vec<_>>().join(" ");
            if !command.rest.is_empty() {
                left.push_str(" -- ");
                left.push_str(command.rest);
            }
            (left, command.about)
        })
        .collect();
    columns(&mut text, &lines);
    if topic.is_empty() {
        text.push_str("\nOptions of every command:\n");
        options(&mut text, GLOBAL);
        text.push_str(STATUSES);
    }
    text.push_str("\nnullctl help COMMAND explains one, with examples.\n");
    Ok(text)
}

fn of_command(command: &Command) -> String {
    let mut text = format!("{}\n\n  {}\n", usage(command), command.about);
    if !command.details.is_empty() {
        let _ = write!(text, "\n{}\n", command.details); // a String takes everything
    }
    if !command.options.is_empty() {
        text.push_str("\nOptions:\n");
        options(&mut text, command.options);
    }
    text.push_str("\nExamples:\n");
    let lines: Vec<(String, &str)> =
        command.examples.iter().map(|(line, about)| ((*line).to_owned(), *about)).collect();
    columns(&mut text, &lines);
    text
}

fn options(text: &mut String, options: &[Opt]) {
    let lines: Vec<(String, &str)> = options
        .iter()
        .map(|option| {
            let short = option.short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
            let value = option.value.map(|value| format!(" {value}")).unwrap_or_default();
            (format!("{short}--{}{value}", option.long), option.about)
        })
        .collect();
    columns(text, &lines);
}

fn columns(text: &mut String, lines: &[(String, &str)]) {
    let width = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    for (left, right) in lines {
        let line = format!("  {left:<width$}  {right}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
}
