//! `net budget` and `secret`.
//!
//! Must never: show a secret's value, or take it from the command line, which other programs of this machine can read.

use abi::control::{
    AgentBudget, Budgets, NetAgent, NetResetBudget, Nothing, SecretEntry, SecretRemove, SecretSet,
    SecretValue, Secrets,
};
use abi::limits;
use abi::network::{Api, Budget, SecretPolicy};
use std::fs::File;
use std::io::{BufRead, IsTerminal, Read, Write, stdin};
use zeroize::Zeroizing;

use super::id;
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::link::{Event, typed};
use crate::print::{Table, ago, moment};
use crate::screen::Raw;

pub fn budget(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let result = match (given.at(0), given.has("reset")) {
        (None, true) => {
            return Err(Failure::usage(
                "net budget: --reset needs an agent",
                "write nullctl net budget NAME --reset",
            ));
        }
        (Some(name), true) => context.call("net.reset_budget", &NetResetBudget { agent: id(name)? })?,
        (name, false) => context.call("net.budget", &NetAgent { agent: name.map(id).transpose()? })?,
    };
    if let Some(result) = result {
        say(&budgets_in_words(&typed(&result)?))?;
    }
    Ok(0)
}

fn budgets_in_words(page: &Budgets) -> String {
    let mut table = Table::new(&["AGENT", "UNIT", "USED", "RESERVED", "BOUND", "FORGOTTEN"]);
    for agent in &page.agents {
        let mut name = agent.agent.as_str();
        for (unit, used, reserved, bound, ends) in units(agent) {
            let bound = match (agent.budget, bound) {
                (None, _) => "not running".to_owned(),
                (Some(_), None) => "-".to_owned(),
                (Some(_), Some(bound)) => bound.to_string(),
            };
            let ends = ends.map_or("-".to_owned(), moment);
            table.row(&[name, unit, &used.to_string(), &reserved.to_string(), &bound, &ends]);
            name = "";
        }
        if !name.is_empty() {
            table.row(&[name, "-"]);
        }
    }
    let mut text = table.render();
    for agent in &page.agents {
        if let Some(damaged) = &agent.damaged {
            let name = &agent.agent;
            text.push_str(&format!(
                "{name}: what it spent cannot be read ({damaged}); nullctl net budget {name} --reset\n"
            ));
        }
    }
    if page.left_out > 0 {
        text.push_str(&format!("{} more: ask for an agent by its name\n", page.left_out));
    }
    text
}

/// A unit's name, used, reserved, bound, and when what was used is forgotten.
type Line = (&'static str, u64, u64, Option<u64>, Option<u64>);

/// The units that are bounded or used.
fn units(agent: &AgentBudget) -> Vec<Line> {
    let AgentBudget { used, reserved, period_ends_unix_ms: period, hour_ends_unix_ms: hour, .. } = *agent;
    let bound = agent.budget.unwrap_or_default();
    let Budget { input_tokens_max, cache_tokens_max, output_tokens_max, micro_dollars_max, .. } = bound;
    let all = [
        ("input tokens", used.input_tokens, reserved.input_tokens, input_tokens_max, period),
        ("cache tokens", used.cache_tokens, reserved.cache_tokens, cache_tokens_max, period),
        ("output tokens", used.output_tokens, reserved.output_tokens, output_tokens_max, period),
        ("micro-dollars", used.micro_dollars, reserved.micro_dollars, micro_dollars_max, period),
        ("calls in an hour", used.calls_this_hour, 0, bound.calls_per_hour_max, hour),
        ("bytes", used.bytes, 0, bound.bytes_max, period),
        ("seconds", used.wall_secs, 0, bound.wall_secs_max, period),
    ];
    all.into_iter()
        .filter(|(_, used, reserved, bound, _)| *used > 0 || *reserved > 0 || bound.is_some())
        .collect()
}

pub fn set(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let policy = policy(given)?;
    let value = value(given, policy.name.as_str())?;
    let mut link = context.ask("secret.set", &SecretSet { policy }, Silence::Ordinary)?;
    loop {
        match link.next()? {
            Event::Notification(note) if note.method == "ready" => break,
            Event::Notification(note) => context.note(&note)?,
            Event::Result(_) => {
                return Err(Failure::local(
                    crate::failure::status::FAILED,
                    "the node answered before it had the value",
                    "a value is sent after `ready`",
                    "use a nullctl of the node's version",
                ));
            }
        }
    }
    // Room for every byte escaped, so that growing leaves no copy behind.
    let mut line = Zeroizing::new(Vec::with_capacity(value.value.len() * 6 + 32));
    serde_json::to_writer(&mut *line, &*value).map_err(std::io::Error::from)?;
    line.push(b'\n');
    link.body()?.write_all(&line)?;
    drop((line, value));
    let result = link.result(&mut |note| context.note(note))?;
    if let Some(result) = context.result_or_json(result)? {
        let SecretEntry { policy, used_by, .. } = typed(&result)?;
        let SecretPolicy { name, host, port, header, format, .. } = policy;
        let users: Vec<&str> = used_by.iter().map(|agent| agent.as_str()).collect();
        let users = match users.is_empty() {
            true => String::new(),
            false => format!("; running agents have it: {}", users.join(" ")),
        };
        say(&format!("{name} is set for {host}:{port}, as {header}: {format}{users}\n"))?;
    }
    Ok(0)
}

fn policy(given: &Arguments) -> Result<SecretPolicy, Failure> {
    let host = given.value("host").ok_or_else(|| {
        Failure::usage(
            "secret set: --host is missing",
            "write --host HOST: the only host that gets the secret",
        )
    })?;
    let (api, header, format) = match given.value("api").unwrap_or("plain") {
        "plain" => (Api::Plain, "authorization", "Bearer {}"),
        "openai" => (Api::Openai, "authorization", "Bearer {}"),
        "anthropic" => (Api::Anthropic, "x-api-key", "{}"),
        other => {
            return Err(Failure::usage(
                format!("--api {other}: no such API"),
                "one of plain, openai, anthropic",
            ));
        }
    };
    Ok(SecretPolicy {
        name: id(given.required(0))?,
        host: id(host)?,
        port: given.number("port")?.unwrap_or(443),
        header: given.value("header").unwrap_or(header).to_ascii_lowercase(),
        format: given.value("format").unwrap_or(format).to_owned(),
        api,
    })
}

/// Overwrites the value when it is dropped.
struct Value(SecretValue);

impl std::ops::Deref for Value {
    type Target = SecretValue;
    fn deref(&self) -> &SecretValue {
        &self.0
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0.value);
    }
}

/// From the file, the terminal, or what is piped in.
fn value(given: &Arguments, name: &str) -> Result<Value, Failure> {
    // A line end, and one byte more to see that it is too long.
    let most = limits::SECRET_BYTES_MAX as u64 + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most as usize));
    let from = given.value("file").unwrap_or("standard input");
    let unreadable = |error: std::io::Error| {
        Failure::usage(format!("{from}: {error}"), "give a value by file or standard input")
    };
    match given.value("file") {
        Some(path) => {
            File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(unreadable)?
        }
        None if stdin().is_terminal() => {
            eprint!("value of {name} (not shown): ");
            let hidden = Raw::hidden().map_err(unreadable)?;
            let read = stdin().lock().take(most).read_until(b'\n', &mut bytes);
            drop(hidden);
            eprintln!();
            read.map_err(unreadable)?
        }
        None => stdin().lock().take(most).read_to_end(&mut bytes).map_err(unreadable)?,
    };
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(value) => Ok(Value(SecretValue { value })),
        Err(error) => {
            drop(Zeroizing::new(error.into_bytes()));
            Err(Failure::usage(
                format!("{from}: the value is not plain text"),
                "a secret is printable ASCII characters",
            ))
        }
    }
}

pub fn list(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("secret.list", &Nothing {})? else {
        return Ok(0);
    };
    say(&secrets_in_words(&typed(&result)?))?;
    Ok(0)
}

fn secrets_in_words(page: &Secrets) -> String {
    let mut table = Table::new(&["NAME", "HOST", "AS", "API", "SET", "BY", "USED BY"]);
    for secret in &page.secrets {
        let SecretPolicy { name, host, port, header, format, api } = &secret.policy;
        let host = if *port == 443 { host.to_string() } else { format!("{host}:{port}") };
        let api = match api {
            Api::Plain => "plain",
            Api::Openai => "openai",
            Api::Anthropic => "anthropic",
        };
        let users: Vec<&str> = secret.used_by.iter().map(|agent| agent.as_str()).collect();
        let users = if users.is_empty() { "-".to_owned() } else { users.join(" ") };
        let carried = format!("{header}: {format}");
        table.row(&[name.as_str(), &host, &carried, api, &ago(secret.set_unix_ms), &secret.by, &users]);
    }
    let mut text = table.render();
    for secret in &page.secrets {
        if let Some(problem) = &secret.problem {
            text.push_str(&format!("{problem}; set it anew, or remove it\n"));
        }
    }
    text.push_str(&match page.sealed_by.as_str() {
        "tpm" => "sealed by the node's TPM\n".to_owned(),
        "state-volume" => "the node has no TPM: their key lies on the state volume, and whoever has the disk has the secrets\n".to_owned(),
        "none yet" => "no secret was ever set\n".to_owned(),
        other => format!("{other}\n"),
    });
    text
}

pub fn remove(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let name = id(given.required(0))?;
    if context.call("secret.remove", &SecretRemove { name })?.is_some() {
        say(&format!("{} is removed\n", given.required(0)))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::control::Spent;

    #[test]
    fn a_budget_shows_what_is_bounded_or_used() {
        let used = Spent { output_tokens: 5, bytes: 7, ..Spent::default() };
        let reserved = Spent { output_tokens: 3, ..Spent::default() };
        let budget =
            Some(Budget { output_tokens_max: Some(10), micro_dollars_max: Some(0), ..Budget::default() });
        let agent = AgentBudget {
            agent: "a".parse().unwrap(),
            budget,
            used,
            reserved,
            period_ends_unix_ms: Some(0),
            hour_ends_unix_ms: None,
            damaged: None,
        };
        let text = budgets_in_words(&Budgets { agents: vec![agent], left_out: 2 });
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..6], ["a", "output", "tokens", "5", "3", "10"]);
        assert_eq!(lines[2][..4], ["micro-dollars", "0", "0", "0"]);
        assert_eq!(lines[3][..4], ["bytes", "7", "0", "-"]);
        assert!(text.contains("2 more"), "{text}");
    }
}
