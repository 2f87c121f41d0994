//! The saboteur: a service that only test images carry. It breaks the node from inside, on orders from the second serial
//! port, and tells what it sees there. The product's own binaries know nothing of it.
//!
//! One order a line, one JSON answer a line: `{"ok":"text"}` or `{"error":"text"}`.
//!
//! ```text
//! signal NUMBER COMM [TEXT]   send a signal to each process named COMM (with TEXT in its command line); answers how many
//! kill NUMBER PID            send a signal to one process
//! ps                          all processes: pid, parent, uid, state, name
//! read PATH                   a file, at most 64 KiB
//! list DIR                    names in a directory
//! write PATH TEXT             write a file
//! connect HOST:PORT           open a TCP connection
//! ```

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::ToSocketAddrs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use rustix::termios::{LocalModes, OptionalActions, OutputModes};

fn main() -> Result<()> {
    let inherited = abi::door::Inherited::take()?;
    let port = OpenOptions::new().read(true).write(true).open("/dev/ttyS1").context("/dev/ttyS1")?;
    let mut modes = rustix::termios::tcgetattr(&port)?;
    modes.local_modes -= LocalModes::ECHO | LocalModes::ISIG;
    modes.output_modes -= OutputModes::OPOST;
    rustix::termios::tcsetattr(&port, OptionalActions::Now, &modes)?;
    inherited.notify.send(&abi::notice::Notice::Ready)?;
    let mut answers = port.try_clone()?;
    for line in BufReader::new(port).lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let answer = match obey(line.trim()) {
            Ok(text) => serde_json::json!({ "ok": text }),
            Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
        };
        writeln!(answers, "{answer}")?;
    }
    Ok(())
}

fn obey(line: &str) -> Result<String> {
    let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
    match order {
        "signal" => signal(rest),
        "kill" => {
            let (number, pid) = rest.split_once(' ').context("kill NUMBER PID")?;
            let signal = Signal::from_named_raw(number.parse()?).context("no such signal")?;
            rustix::process::kill_process(Pid::from_raw(pid.parse()?).context("pid 0")?, signal)?;
            Ok(String::new())
        }
        "ps" => processes(),
        "read" => {
            let mut text = Vec::new();
            File::open(rest)?.take(64 * 1024).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        "list" => {
            let mut names: Vec<String> =
                fs::read_dir(rest)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            Ok(names.join("\n"))
        }
        "write" => {
            let (path, text) = rest.split_once(' ').context("write PATH TEXT")?;
            fs::write(path, text)?;
            Ok(String::new())
        }
        "connect" => {
            let address = rest.to_socket_addrs()?.next().context("no address")?;
            std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            Ok(String::new())
        }
        _ => bail!("unknown order `{order}`"),
    }
}

fn pids() -> Result<Vec<i32>> {
    let mut found: Vec<i32> =
        fs::read_dir("/proc")?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

fn signal(arguments: &str) -> Result<String> {
    let mut words = arguments.splitn(3, ' ');
    let number: i32 = words.next().context("signal NUMBER COMM")?.parse()?;
    let comm = words.next().context("signal NUMBER COMM")?;
    let text = words.next().unwrap_or("");
    let signal = Signal::from_named_raw(number).context("no such signal")?;
    let mut sent = 0;
    for pid in pids()? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if name.trim() == comm && String::from_utf8_lossy(&line).replace('\0', " ").contains(text) {
            rustix::process::kill_process(Pid::from_raw(pid).context("pid 0")?, signal)?;
            sent += 1;
        }
    }
    Ok(sent.to_string())
}

fn processes() -> Result<String> {
    let mut table = String::new();
    for pid in pids()? {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_owned()
        };
        writeln!(table, "{pid} {} {} {} {}", field("PPid:"), field("Uid:"), field("State:"), field("Name:"))?;
    }
    Ok(table)
}
