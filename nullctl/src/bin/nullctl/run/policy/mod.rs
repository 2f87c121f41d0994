//! `policy`: what a manifest would decide, by the library that decides on a node, and without one.

mod cover;
mod diff;
mod explain;
mod observe;
mod recorded;

pub use diff::diff;
pub use explain::explain;
pub use observe::observe;
pub use recorded::replay;

use abi::authority::{Call, Situation};
use serde::Deserialize;
use serde_json::json;
use std::io::{self, BufRead, IsTerminal};
use std::time::{SystemTime, UNIX_EPOCH};
use verdict::authority::Authority;
use verdict::decide::{Policy, decide as decide_one};

use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::{Failure, status};
use crate::print::visible;

/// Bytes of one line on standard input.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// A table that a file may leave out when it holds nothing but `[authority]` and `[tools]`.
const AGENT: &str =
    "\n[agent]\nname = \"policy\"\nversion = \"0\"\nrootfs = \"policy\"\ncommand = [\"/policy\"]\n";

/// What a manifest says of tools.
pub struct Loaded {
    pub said: abi::authority::Authority,
    pub policy: Policy,
}

impl Loaded {
    /// Of a file: an AGENT.toml, or `[authority]` and `[tools]` alone.
    pub fn of(path: &str) -> Result<Loaded, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("{}: {error}", visible(path)), "name an AGENT.toml"))?;
        Loaded::parse(path, text)
    }

    fn parse(path: &str, mut text: String) -> Result<Loaded, Failure> {
        if !text.lines().any(|line| line.trim() == "[agent]") {
            text.push_str(AGENT);
        }
        let manifest = abi::manifest::parse(path, &text).map_err(|error| {
            Failure::local(status::USAGE, error.to_string(), error.rule.clone(), error.remedy.clone())
        })?;
        let said = manifest.authority.ok_or_else(|| {
            Failure::usage(
                format!("{}: has no [authority]", visible(path)),
                "an agent without it has no tools to decide on",
            )
        })?;
        Ok(Loaded { policy: Policy::of(&said), said })
    }

    /// Its rules for a life that began at a time.
    pub fn authority(&self, began_unix_ms: u64) -> Result<Authority, Failure> {
        Authority::of_all(&self.said.rules_of_life(began_unix_ms))
            .map_err(|error| Failure::usage(error.to_string(), "leave some rules out"))
    }
}

fn manifest(given: &Arguments) -> Result<Loaded, Failure> {
    let path = given
        .value("manifest")
        .ok_or_else(|| Failure::usage("--manifest is missing", "write --manifest and an AGENT.toml"))?;
    Loaded::of(path)
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Each line of standard input that is not empty, with its number.
fn lines(on: &mut dyn FnMut(usize, &str) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut input = io::stdin().lock();
    if input.is_terminal() {
        eprintln!("reading JSON lines from the terminal, to ctrl-d; a file is given with < calls.jsonl");
    }
    for number in 1.. {
        let mut line = Vec::new();
        let read = io::Read::take(&mut input, LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let wrong = |why: String| line_wrong(number, why);
        read.map_err(|error| wrong(error.to_string()))?;
        match line.last() {
            None => break,
            Some(b'\n') => {}
            Some(_) if line.len() as u64 == LINE_BYTES_MAX => return Err(wrong("it is too long".into())),
            Some(_) => {}
        }
        let line = std::str::from_utf8(&line).map_err(|error| wrong(error.to_string()))?.trim();
        if !line.is_empty() {
            on(number, line)?;
        }
    }
    Ok(())
}

fn line_wrong(number: usize, why: impl std::fmt::Display) -> Failure {
    Failure::usage(
        format!("standard input, line {number}: {why}"),
        "write one JSON object a line; nullctl help policy has examples",
    )
}

/// A line of `policy decide`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    call: Call,
    situation: Situation,
}

pub fn decide(_: &Context, given: &Arguments) -> Result<u8, Failure> {
    let loaded = manifest(given)?;
    lines(&mut |number, line| {
        let Asked { call, situation } =
            serde_json::from_str(line).map_err(|error| line_wrong(number, error))?;
        // A life that begins with the call: its end lies ahead.
        let authority = loaded.authority(situation.now_unix_ms)?;
        let decision = decide_one(&authority, &loaded.policy, &situation, &call).explained();
        say(&format!("{}\n", json!(decision)))
    })?;
    Ok(0)
}
