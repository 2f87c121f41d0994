//! Runs the tools that the builder stands on, with the environment that makes their output the same every time.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Step;
use crate::tree::Tree;

/// How much of a failed tool's output is shown.
const TAIL_LINES: usize = 40;

/// A tool in a fixed locale, time zone and epoch.
pub fn tool(tree: &Tree, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").env("TZ", "UTC").env("SOURCE_DATE_EPOCH", tree.epoch_s.to_string());
    command.stdin(Stdio::null());
    command
}

/// Runs to the end; the error carries what the tool printed.
pub fn run(command: &mut Command) -> Result<String> {
    let name = display(command);
    let output = command.output().with_context(|| format!("cannot start {name}: {}", install_hint()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    bail!("{name} failed ({}):\n{}", output.status, tail(&format!("{text}{errors}")))
}

/// Runs a long tool; every line that it prints is a unit of progress. The whole output goes to `log`.
pub fn run_watched(command: &mut Command, step: &mut Step, expected_lines: usize, log: &Path) -> Result<()> {
    let name = display(command);
    let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut writer = std::io::BufWriter::new(&file);
    command.stdout(Stdio::piped()).stderr(file.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}: {}", install_hint()))?;
    let stdout = child.stdout.take().context("the tool has no output")?;
    for (number, line) in BufReader::new(stdout).split(b'\n').enumerate() {
        let line = line?;
        std::io::Write::write_all(&mut writer, &line)?;
        std::io::Write::write_all(&mut writer, b"\n")?;
        step.at(number, expected_lines);
    }
    std::io::Write::flush(&mut writer)?;
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    bail!("{name} failed ({status}); all of its output is in {}:\n{}", log.display(), tail(&text))
}

fn display(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn install_hint() -> &'static str {
    "is it installed? scripts/deps.sh installs everything the build needs"
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
