//! QEMU's control socket, one order a connection: power button, keys, screen.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Gives one order and waits until QEMU has taken it.
pub fn order(socket: &Path, order: &str, arguments: Value) -> Result<()> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    answer(&mut reader, "greeting")?;
    for (name, arguments) in [("qmp_capabilities", json!({})), (order, arguments)] {
        let line = json!({ "execute": name, "arguments": arguments });
        writeln!(reader.get_mut(), "{line}")?;
        answer(&mut reader, name)?;
    }
    Ok(())
}

/// Reads past events to the next answer.
fn answer(reader: &mut BufReader<UnixStream>, what: &str) -> Result<()> {
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let said: Value = serde_json::from_str(&line)?;
        match (said.get("error"), said.get("return").or(said.get("QMP"))) {
            (Some(error), _) => bail!("{what}: {error}"),
            (None, Some(_)) => return Ok(()),
            (None, None) => line.clear(), // an event
        }
    }
    bail!("{what}: QEMU closed the socket")
}
