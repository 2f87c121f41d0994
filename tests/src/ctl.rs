//! nullctl, run as an operator runs it: the static binary, a key file, a pinned node.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::node::Node;

/// What a command gave.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// The last JSON object of standard output: the result.
    pub fn json(&self) -> Result<Value> {
        let line = self.stdout.lines().last().with_context(|| format!("no output; {}", self.stderr))?;
        serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
    }

    /// Fails with what nullctl said unless it ended with 0.
    pub fn ok(self) -> Result<Answer> {
        ensure!(self.status == 0, "nullctl ended with {}: {}", self.status, self.stderr);
        Ok(self)
    }
}

impl Node {
    /// nullctl with the machine's operator key and the fingerprint from the console.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Answer> {
        self.ctl_as(&self.machine.key, &self.fingerprint()?, arguments)
    }

    /// nullctl that must succeed; its result.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        self.ctl(&all)?.ok().with_context(|| arguments.join(" "))?.json()
    }

    /// nullctl with another key or pin.
    pub fn ctl_as(&self, key: &Path, pin: &str, arguments: &[&str]) -> Result<Answer> {
        self.is_asked(&arguments.join(" "))?;
        let limit = Duration::from_secs(240);
        run(self.command(key, pin, arguments)?, limit)
            .with_context(|| format!("nullctl {}", arguments.join(" ")))
    }

    /// The command, to be run by the caller.
    pub fn command(&self, key: &Path, pin: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(crate::nullctl()?);
        command.args(["--node", &format!("127.0.0.1:{}", self.port), "--pin", pin, "--key"]).arg(key);
        command.env("XDG_CONFIG_HOME", &self.dir).args(arguments);
        Ok(command)
    }
}

/// Runs a command to its end, or kills it.
pub fn run(mut command: Command, limit: Duration) -> Result<Answer> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = child.id();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let started = Instant::now();
    match receive.recv_timeout(limit) {
        Ok(output) => {
            let Output { status, stdout, stderr } = output?;
            Ok(Answer {
                status: status.code().unwrap_or(-1),
                stdout: String::from_utf8_lossy(&stdout).into_owned(),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            })
        }
        Err(_) => {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("no pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            bail!("still running after {} s", started.elapsed().as_secs())
        }
    }
}
