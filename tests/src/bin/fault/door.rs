//! Bad callers of the node's control socket, and a good one.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use abi::node::CONTROL_SOCKET;
use abi::rpc::Request;
use abi::wire::Connection;
use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(20);

/// One call, as root, which is an admin: `METHOD PARAMS`. Notifications before the answer are left out.
pub fn call(rest: &str) -> Result<String> {
    let (method, params) = rest.split_once(' ').unwrap_or((rest, "{}"));
    let mut connection = Connection::connect(CONTROL_SOCKET)?;
    connection.set_timeout(Some(PATIENCE))?;
    connection.write_line(&Request::call(1, method, serde_json::from_str(params)?))?;
    while let Some(line) = connection.read_line()? {
        let answer: serde_json::Value = serde_json::from_str(&line)?;
        if answer.get("id").is_some_and(|id| !id.is_null()) || answer.get("error").is_some() {
            return match answer.get("result") {
                Some(result) => Ok(result.to_string()),
                None => bail!("{}", answer["error"]),
            };
        }
    }
    bail!("closed without an answer")
}

/// One line of `bytes` bytes, its end included, that says nothing sensible.
pub fn line(bytes: usize) -> Result<String> {
    let mut stream = connect()?;
    let mut text = vec![b'a'; bytes.saturating_sub(1)];
    text.push(b'\n');
    // It may be closed before all is sent: the answer tells.
    let sent = stream.write_all(&text);
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset && !answer.is_empty() => {}
        Err(error) => bail!("sent: {sent:?}; no answer: {error}"),
    }
    Ok(answer)
}

/// A line without an end. Answers how many bytes were taken before the node closed the connection.
pub fn endless(bytes: usize) -> Result<String> {
    let mut stream = connect()?;
    let chunk = [b'a'; 4096];
    let mut sent = 0;
    while sent < bytes {
        match stream.write(&chunk) {
            Ok(count) => sent += count,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(format!("closed after {sent}"));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("held open after {sent} bytes"),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("all {sent} bytes were taken")
}

/// Connections on which nothing is said. Fewer than asked for when the node takes no more.
pub fn idle(count: usize) -> Result<Vec<UnixStream>> {
    let mut open = Vec::new();
    for _ in 0..count {
        match UnixStream::connect(CONTROL_SOCKET) {
            Ok(stream) => open.push(stream),
            Err(error) => return Err(error).with_context(|| format!("after {} connections", open.len())),
        }
    }
    Ok(open)
}

/// Closes connections; how many the other side had closed.
pub fn hangups(connections: Vec<UnixStream>) -> usize {
    let closed = |mut stream: &UnixStream| {
        // It may have been told why before it was closed.
        let mut text = [0u8; 4096];
        stream.set_nonblocking(true).is_ok()
            && loop {
                match stream.read(&mut text) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) => break error.kind() == ErrorKind::ConnectionReset,
                }
            }
    };
    connections.iter().filter(|stream| closed(stream)).count()
}

fn connect() -> Result<UnixStream> {
    let stream = UnixStream::connect(CONTROL_SOCKET)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
