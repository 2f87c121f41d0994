//! `agent logs` and `agent exec`: what agents say, and programs beside them.

use abi::control::{AgentExec, AgentLogs, Output, StdinData, Stream};
use abi::guest::Exit;
use abi::rpc::Request;
use abi::wire::LineWriter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, IsTerminal, Read, Write};

use super::{id, logs, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, terminal};
use crate::failure::{Failure, status as exit_status};
use crate::link::{Link, typed};
use crate::print::Passage;

/// Bytes of input in one notification (docs/control-protocol.md: 32 KiB).
const INPUT_BYTES: usize = 32 * 1024;

/// Where output goes: standard output and error, each made harmless if it is a terminal.
struct Outlet {
    out: Passage,
    err: Passage,
}

impl Outlet {
    fn new(given: &Arguments) -> Outlet {
        let raw = given.has("raw");
        Outlet { out: Passage::new(terminal(), raw), err: Passage::new(io::stderr().is_terminal(), raw) }
    }

    fn write(&mut self, output: &Output) -> Result<(), Failure> {
        let bytes = STANDARD.decode(&output.data).map_err(|error| {
            Failure::local(
                exit_status::FAILED,
                format!("output of the agent is not base64: {error}"),
                "",
                "use a nullctl of the node's version",
            )
        })?;
        match output.stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&self.out.take(&bytes))?;
                out.flush()?;
            }
            Stream::Stderr => io::stderr().write_all(&self.err.take(&bytes))?,
        }
        Ok(())
    }

    fn take(&mut self, context: &Context, request: &Request) -> Result<(), Failure> {
        if context.json {
            return context.note(request);
        }
        match note::<Output>(request, "output")? {
            Some(output) => self.write(&output),
            None => Ok(()),
        }
    }
}

pub fn logs(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let follow = given.has("follow");
    let params = AgentLogs {
        name: id(given.required(0))?,
        lines: given.number("lines")?,
        since_unix_ms: logs::since(given)?,
        follow,
    };
    let silence = if follow { Silence::Unbounded } else { Silence::Ordinary };
    let mut outlet = Outlet::new(given);
    let mut link = context.ask("agent.logs", &params, silence)?;
    let mut expected = None;
    let result = link.result(&mut |request| {
        if let (false, Some(output)) = (context.json, note::<Output>(request, "output")?) {
            let missed = expected.map_or(0, |expected| output.seq.saturating_sub(expected));
            if missed > 0 {
                eprintln!("-- {missed} pieces of output are no longer kept --");
            }
            expected = Some(output.seq + 1);
        }
        outlet.take(context, request)
    })?;
    context.result_or_json(result)?;
    Ok(0)
}

pub fn exec(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let exit = run(context, given).map_err(|failure| match failure.exit {
        exit_status::USAGE | exit_status::UNREACHABLE => failure,
        _ if failure.error.is_none() => failure,
        _ => failure.with_exit(exit_status::EXEC),
    })?;
    Ok(match (exit.code, exit.signal) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        (None, Some(signal)) => u8::try_from((128 + signal) & 0xff).unwrap_or(u8::MAX),
        (None, None) => exit_status::EXEC,
    })
}

fn run(context: &Context, given: &Arguments) -> Result<Exit, Failure> {
    let mut env = std::collections::BTreeMap::new();
    for variable in given.values("env") {
        let (name, value) = variable.split_once('=').ok_or_else(|| {
            Failure::usage(format!("--env {variable}: there is no `=`"), "write --env NAME=VALUE")
        })?;
        env.insert(name.to_owned(), value.to_owned());
    }
    let params = AgentExec {
        name: id(given.required(0))?,
        command: given.rest.clone(),
        env,
        workdir: given.value("workdir").map(str::to_owned),
        terminal: None,
        timeout_ms: None,
    };
    let mut link = context.ask("agent.exec", &params, Silence::Unbounded)?;
    feed(&link, given.has("no-stdin"))?;
    let mut outlet = Outlet::new(given);
    let result = link.result(&mut |request| outlet.take(context, request))?;
    let exit = typed(&result)?;
    context.result_or_json(result)?;
    Ok(exit)
}

/// Passes standard input on, from a thread that ends with the process.
fn feed(link: &Link, nothing: bool) -> Result<(), Failure> {
    let mut writer = link.writer()?;
    if nothing {
        let _ = send(&mut writer, &[]); // a call that has ended needs no end of input
        return Ok(());
    }
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut chunk = vec![0u8; INPUT_BYTES];
        loop {
            let read = match io::stdin().lock().read(&mut chunk) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0, // closed: the program gets its end of file
            };
            let sent = send(&mut writer, chunk.get(..read).unwrap_or_default());
            if read == 0 || sent.is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn send(writer: &mut LineWriter, bytes: &[u8]) -> Result<(), Failure> {
    let params = serde_json::to_value(StdinData { data: STANDARD.encode(bytes) }).unwrap_or_default();
    writer
        .write_line(&Request::notification("stdin", params))
        .map_err(|_| Failure::quiet(exit_status::FAILED))
}
