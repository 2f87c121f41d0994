//! QEMU's control socket, one order a connection: power button, keys, screen.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Gives one order, waits until QEMU has taken it, and returns what it answered.
pub fn order(socket: &Path, order: &str, arguments: Value) -> Result<Value> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    answer(&mut reader, "greeting")?;
    let mut answered = Value::Null;
    for (name, arguments) in [("qmp_capabilities", json!({})), (order, arguments)] {
        let line = json!({ "execute": name, "arguments": arguments });
        writeln!(reader.get_mut(), "{line}")?;
        answered = answer(&mut reader, name)?;
    }
    Ok(answered)
}

/// Where each of the machine's processors is: its number, its instruction pointer, whether it waits for an interrupt (HLT=1).
pub fn processors(socket: &Path) -> Result<String> {
    let registers = order(socket, "human-monitor-command", json!({ "command-line": "info registers -a" }))?;
    let lines = registers.as_str().unwrap_or_default().lines();
    let telling = lines.filter(|line| line.starts_with("CPU#") || line.contains("RIP="));
    Ok(telling.map(str::trim).collect::<Vec<_>>().join(" "))
}

/// Reads past events to the next answer.
fn answer(reader: &mut BufReader<UnixStream>, what: &str) -> Result<Value> {
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let said: Value = serde_json::from_str(&line)?;
        match (said.get("error"), said.get("return").or(said.get("QMP"))) {
            (Some(error), _) => bail!("{what}: {error}"),
            (None, Some(answer)) => return Ok(answer.clone()),
            (None, None) => line.clear(), // an event
        }
    }
    bail!("{what}: QEMU closed the socket")
}
