//! From the words of the command line to one command of the table and its arguments.
//!
//! Must hold: help and parser read the same table, so neither can know an option the other does not.

use lexopt::{Arg, Parser};
use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::context::Context;
use crate::failure::Failure;

/// One command.
#[derive(Clone, Copy)]
pub struct Command {
    /// `agent start`.
    pub path: &'static str,
    /// Arguments as the usage line shows them; an optional one in brackets.
    pub arguments: &'static [&'static str],
    /// What stands after `--`; empty: nothing may.
    pub rest: &'static str,
    /// One line.
    pub about: &'static str,
    /// What one has to know beyond that; may be empty.
    pub details: &'static str,
    pub options: &'static [Opt],
    /// Command line and what it does.
    pub examples: &'static [(&'static str, &'static str)],
    pub run: fn(&Context, &Arguments) -> Result<u8, Failure>,
}

/// One option.
#[derive(Clone, Copy)]
pub struct Opt {
    pub long: &'static str,
    pub short: Option<char>,
    /// Name of its value; none: a switch.
    pub value: Option<&'static str>,
    pub about: &'static str,
}

/// A switch.
pub const fn switch(long: &'static str, short: Option<char>, about: &'static str) -> Opt {
    Opt { long, short, value: None, about }
}

/// An option with a value.
pub const fn valued(long: &'static str, value: &'static str, about: &'static str) -> Opt {
    Opt { long, short: None, value: Some(value), about }
}

/// Options of every command.
pub const GLOBAL: &[Opt] = &[
    valued("node", "NODE", "a name of nodes.toml or HOST[:PORT] (NULLBOX_NODE)"),
    valued("key", "FILE", "private key (NULLBOX_KEY; ~/.config/nullbox/operator.key)"),
    valued("pin", "SHA256:...", "the node's fingerprint (NULLBOX_PIN; nodes.toml)"),
    valued("socket", "PATH", "a Unix socket instead of TLS"),
    valued("timeout", "SECONDS", "longest silence of the node"),
    switch("json", None, "results as JSON, one object a line"),
    switch("help", Some('h'), "explain the command"),
];

/// What was given to a command.
#[derive(Debug, Default)]
pub struct Arguments {
    positional: Vec<String>,
    options: BTreeMap<&'static str, Vec<String>>,
    /// After `--`.
    pub rest: Vec<String>,
}

impl Arguments {
    /// A positional argument; the parser has made sure of the required ones.
    pub fn at(&self, index: usize) -> Option<&str> {
        self.positional.get(index).map(String::as_str)
    }

    /// A required positional argument.
    pub fn required(&self, index: usize) -> &str {
        self.at(index).unwrap_or_default()
    }

    /// Whether a switch was given.
    pub fn has(&self, long: &str) -> bool {
        self.options.contains_key(long)
    }

    /// The last value of an option.
    pub fn value(&self, long: &str) -> Option<&str> {
        self.options.get(long)?.last().map(String::as_str)
    }

    /// All values of an option.
    pub fn values(&self, long: &str) -> &[String] {
        self.options.get(long).map(Vec::as_slice).unwrap_or_default()
    }

    /// A number.
    pub fn number<T: std::str::FromStr>(&self, long: &str) -> Result<Option<T>, Failure> {
        let Some(text) = self.value(long) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            Failure::usage(
                format!("--{long} {text}: not a number"),
                format!("write for example --{long} 100"),
            )
        })
    }
}

/// What the command line asks for.
pub enum Wanted {
    Run(&'static Command, Arguments),
    /// Of a command, of a group, or of everything.
    Help(String),
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Run(command, arguments) => write!(f, "Run({}, {arguments:?})", command.path),
            Wanted::Help(topic) => write!(f, "Help({topic})"),
        }
    }
}

/// Parses the command line.
pub fn parse(
    commands: &'static [Command],
    words: impl IntoIterator<Item = OsString>,
) -> Result<Wanted, Failure> {
    let mut parser = Parser::from_args(words);
    let mut command: Option<&'static Command> = None;
    let mut path = String::new();
    let mut given = Arguments::default();
    let bad = |error: lexopt::Error| Failure::usage(error.to_string(), "see nullctl help");
    loop {
        if let Some(command) = command.filter(|command| !command.rest.is_empty())
            && let Some(rest) = after_dashes(&mut parser)
        {
            given.rest = rest.map_err(bad)?;
            return finish(command, path, given);
        }
        let Some(argument) = parser.next().map_err(bad)? else {
            break;
        };
        match argument {
            Arg::Value(word) => {
                let word = text(word).map_err(bad)?;
                match command {
                    Some(_) => given.positional.push(word),
                    None => {
                        path = format!("{path} {word}").trim_start().to_owned();
                        command = commands.iter().find(|command| command.path == path);
                        let begun = commands.iter().any(|known| starts(known.path, &path));
                        if command.is_none() && path == "help" {
                            path.clear();
                            while let Some(word) = parser.next().map_err(bad)? {
                                if let Arg::Value(word) = word {
                                    path = format!("{path} {}", text(word).map_err(bad)?);
                                }
                            }
                            return Ok(Wanted::Help(path.trim().to_owned()));
                        }
                        if command.is_none() && !begun {
                            return Err(unknown_command(commands, &path));
                        }
                    }
                }
            }
            Arg::Long(name) => {
                let option = find(command, |option| option.long == name)
                    .ok_or_else(|| unknown_option(command, &format!("--{name}")))?;
                take(option, &mut parser, &mut given).map_err(bad)?;
            }
            Arg::Short(letter) => {
                let option = find(command, |option| option.short == Some(letter))
                    .ok_or_else(|| unknown_option(command, &format!("-{letter}")))?;
                take(option, &mut parser, &mut given).map_err(bad)?;
            }
        }
    }
    match command {
        Some(command) => finish(command, path, given),
        None if path.is_empty() || given.has("help") => Ok(Wanted::Help(path)),
        None => Err(unknown_command(commands, &path)),
    }
}

/// Everything after `--`, if that is what comes next.
fn after_dashes(parser: &mut Parser) -> Option<Result<Vec<String>, lexopt::Error>> {
    let mut raw = parser.try_raw_args()?;
    raw.next_if(|word| word == "--")?;
    Some(raw.map(text).collect())
}

fn starts(known: &str, path: &str) -> bool {
    known.strip_prefix(path).is_some_and(|rest| rest.starts_with(' '))
}

fn text(word: OsString) -> Result<String, lexopt::Error> {
    word.into_string().map_err(lexopt::Error::NonUnicodeValue)
}

fn find(command: Option<&'static Command>, is: impl Fn(&Opt) -> bool) -> Option<&'static Opt> {
    let own = command.map(|command| command.options).unwrap_or_default();
    own.iter().chain(GLOBAL).find(|option| is(option))
}

fn take(option: &'static Opt, parser: &mut Parser, given: &mut Arguments) -> Result<(), lexopt::Error> {
    let values = given.options.entry(option.long).or_default();
    if option.value.is_some() {
        values.push(text(parser.value()?)?);
    }
    Ok(())
}

fn finish(command: &'static Command, path: String, given: Arguments) -> Result<Wanted, Failure> {
    if given.has("help") {
        return Ok(Wanted::Help(path));
    }
    let needed = command.arguments.iter().filter(|name| !name.starts_with('[')).count();
    let usage = || format!("usage: {}", crate::help::usage(command));
    if given.positional.len() < needed {
        let missing = command.arguments.get(given.positional.len()).copied().unwrap_or_default();
        return Err(Failure::usage(format!("{path}: {missing} is missing"), usage()));
    }
    if let Some(extra) = given.positional.get(command.arguments.len()) {
        let remedy =
            if command.rest.is_empty() { usage() } else { format!("put -- before the program; {}", usage()) };
        return Err(Failure::usage(format!("{path}: `{extra}` is one argument too many"), remedy));
    }
    if !command.rest.is_empty() && given.rest.is_empty() {
        return Err(Failure::usage(
            format!("{path}: the program is missing"),
            format!("put it after --; {}", usage()),
        ));
    }
    Ok(Wanted::Run(command, given))
}

fn unknown_command(commands: &[Command], path: &str) -> Failure {
    let incomplete = commands.iter().any(|command| starts(command.path, path));
    let message = if incomplete {
        format!("`{path}` needs one more word")
    } else {
        format!("there is no command `{path}`")
    };
    let first = path.split(' ').next().unwrap_or_default();
    let near: Vec<&str> = commands
        .iter()
        .map(|command| command.path)
        .filter(|known| starts(known, first) || *known == first)
        .collect();
    let remedy = if near.is_empty() {
        "nullctl help lists all commands".to_owned()
    } else {
        format!("one of: {}", near.join(", "))
    };
    Failure::usage(message, remedy)
}

fn unknown_option(command: Option<&Command>, option: &str) -> Failure {
    match command {
        Some(command) => Failure::usage(
            format!("{} has no option {option}", command.path),
            format!("see nullctl help {}", command.path),
        ),
        None => Failure::usage(
            format!("there is no option {option} before the command"),
            "options of a command go after it; see nullctl help",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::COMMANDS;

    fn parse_line(line: &str) -> Result<Wanted, Failure> {
        parse(COMMANDS, line.split_whitespace().map(OsString::from))
    }

    fn arguments(line: &str) -> (&'static str, Arguments) {
        match parse_line(line) {
            Ok(Wanted::Run(command, arguments)) => (command.path, arguments),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_may_stand_anywhere_before_the_dashes() {
        let (path, given) =
            arguments("--json --node n1 agent exec a --env A=1 --env=B=2 -- /bin/x --json -f");
        assert_eq!(path, "agent exec");
        assert_eq!((given.required(0), given.value("node")), ("a", Some("n1")));
        assert_eq!(given.values("env"), ["A=1", "B=2"]);
        assert!(given.has("json"));
        assert_eq!(given.rest, ["/bin/x", "--json", "-f"]);
    }

    #[test]
    fn short_options_and_numbers() {
        let (_, given) = arguments("agent logs -f a --lines 5");
        assert!(given.has("follow"));
        assert_eq!(given.number::<u32>("lines").unwrap(), Some(5));
        let (_, given) = arguments("agent logs a --lines five");
        assert!(given.number::<u32>("lines").is_err());
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        for (line, message, remedy) in [
            ("agent", "needs one more word", "agent start"),
            ("agent fly", "no command `agent fly`", "agent start"),
            ("fly", "no command `fly`", "nullctl help"),
            ("agent start", "NAME is missing", "usage: nullctl agent start NAME"),
            ("agent start a b", "too many", "usage:"),
            ("agent exec a ls", "too many", "put -- before the program"),
            ("agent exec a", "program is missing", "--"),
            ("agent start --fly a", "no option --fly", "nullctl help agent start"),
        ] {
            let error = parse_line(line).unwrap_err().error.unwrap();
            assert!(error.message.contains(message), "{line}: {}", error.message);
            assert!(error.data.unwrap().remedy.contains(remedy), "{line}");
        }
    }

    #[test]
    fn help_is_had_in_each_way() {
        for (line, topic) in [
            ("", ""),
            ("help", ""),
            ("--help", ""),
            ("help agent start", "agent start"),
            ("agent start --help", "agent start"),
            ("agent start -h x", "agent start"),
            ("agent --help", "agent"),
        ] {
            match parse_line(line) {
                Ok(Wanted::Help(found)) => assert_eq!(found, topic, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn paths_are_distinct_and_each_command_has_an_example() {
        let mut paths: Vec<&str> = COMMANDS.iter().map(|command| command.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), COMMANDS.len());
        for command in COMMANDS {
            assert!(!command.examples.is_empty(), "{}", command.path);
            for (line, _) in command.examples {
                let words = line.strip_prefix("nullctl ").unwrap().split(['|', '>', '<']).next().unwrap();
                let words = crate::words::split(words).unwrap();
                match parse(COMMANDS, words.into_iter().map(OsString::from)) {
                    Ok(Wanted::Run(found, _)) => assert_eq!(found.path, command.path, "{line}"),
                    other => panic!("{line}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn every_method_of_operators_has_a_command() {
        use abi::control::{Audience, METHODS};
        for method in METHODS {
            let command = match method.name {
                "agent.read_files" | "agent.write_files" => "agent cp".to_owned(),
                "agent.evidence" => "agent evidence list".to_owned(),
                "agent.read_evidence" => "agent evidence get".to_owned(),
                "agent.remove_evidence" => "agent evidence remove".to_owned(),
                "approval.list" => "approvals".to_owned(),
                "approval.decide" => "approve".to_owned(),
                "exposure.status" => "agent exposure".to_owned(),
                "exposure.declassify" => "agent declassify".to_owned(),
                "task.status" => "task show".to_owned(),
                "net.reset_budget" => "net budget".to_owned(),
                "secret.remove" => "secret rm".to_owned(),
                "memory.hashes" => "memory sync".to_owned(),
                "ledger.consistency" => "ledger prove".to_owned(),
                name => name.replace('.', " "),
            };
            if matches!(method.audience, Audience::Operators(_)) {
                assert!(COMMANDS.iter().any(|known| known.path == command), "{command}");
            }
        }
    }
}
