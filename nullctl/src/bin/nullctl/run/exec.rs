//! `agent logs`, `exec` and `attach`: what agents say, and programs beside them.

use abi::control::{AgentAttach, AgentExec, AgentLogs, AgentRef, AgentStatus, Output, StdinData, Stream};
use abi::guest::{Exit, TerminalSize};
use abi::ids::AgentName;
use abi::rpc::Request;
use abi::wire::LineWriter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{id, logs, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, terminal};
use crate::failure::{Failure, status as exit_status};
use crate::link::{Link, typed};
use crate::print::Passage;
use crate::screen::{self, DetachKeys, Raw};

/// Bytes of input in one notification (docs/control-protocol.md: 32 KiB).
const INPUT_BYTES: usize = 32 * 1024;

/// Of a terminal nobody sees.
const SIZE_UNKNOWN: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// Where output goes: standard output and error, each made harmless if it is a terminal.
struct Outlet {
    out: Passage,
    err: Passage,
}

impl Outlet {
    /// `as_is`: what is shown is another terminal.
    fn new(given: &Arguments, as_is: bool) -> Outlet {
        let raw = given.has("raw") || as_is;
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
    let mut outlet = Outlet::new(given, false);
    let mut link = context.ask("agent.logs", &params, silence)?;
    let mut gaps = Gaps::default();
    let result = link.result(&mut |request| {
        if !context.json {
            gaps.look(request)?;
        }
        outlet.take(context, request)
    })?;
    context.result_or_json(result)?;
    Ok(0)
}

pub fn exec(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let exit = run(context, given).map_err(|failure| match failure.exit {
        exit_status::USAGE | exit_status::UNREACHABLE => failure,
        exit_status::TIMEOUT => failure.with_exit(exit_status::EXEC_TIMEOUT),
        _ if failure.error.is_none() => failure,
        _ => failure.with_exit(exit_status::EXEC),
    })?;
    Ok(status_of(&exit))
}

fn status_of(exit: &Exit) -> u8 {
    match (exit.code, exit.signal) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        (None, Some(signal)) => u8::try_from((128 + signal) & 0xff).unwrap_or(u8::MAX),
        (None, None) => exit_status::EXEC,
    }
}

fn run(context: &Context, given: &Arguments) -> Result<Exit, Failure> {
    let mut env = std::collections::BTreeMap::new();
    for variable in given.values("env") {
        let (name, value) = variable.split_once('=').ok_or_else(|| {
            Failure::usage(format!("--env {variable}: there is no `=`"), "write --env NAME=VALUE")
        })?;
        env.insert(name.to_owned(), value.to_owned());
    }
    let tty = given.has("tty");
    if tty {
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        env.entry("TERM".to_owned()).or_insert(term);
    }
    let params = AgentExec {
        name: id(given.required(0))?,
        command: given.rest.clone(),
        env,
        workdir: given.value("workdir").map(str::to_owned),
        terminal: tty.then(|| screen::size().unwrap_or(SIZE_UNKNOWN)),
        timeout_ms: given.number::<u64>("timeout")?.map(|seconds| seconds.saturating_mul(1000)),
    };
    let takes_input = !given.has("no-stdin");
    let raw = if tty && takes_input { raw_mode()? } else { None };
    let mut link = context.ask("agent.exec", &params, Silence::Never)?;
    let voice = Voice::new(&link)?;
    follow_size(raw.as_ref(), &voice)?;
    match takes_input {
        true => feed(voice, AtEnd::Tell, None)?,
        false => _ = voice.stdin(&[]), // a call that has ended needs no end of input
    }
    let mut outlet = Outlet::new(given, tty);
    let result = link.result(&mut |request| outlet.take(context, request));
    drop(raw);
    let result = result?;
    let exit = typed(&result)?;
    context.result_or_json(result)?;
    Ok(exit)
}

pub fn attach(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let name: AgentName = id(given.required(0))?;
    let status = context.ask("agent.status", &AgentRef { name: name.clone() }, Silence::Ordinary)?;
    let status: AgentStatus = typed(&{ status }.result(&mut |_| Ok(()))?)?;
    let manifest = &status.manifest;
    let writes = manifest.stdin && !given.has("no-stdin");
    let params = AgentAttach {
        name: name.clone(),
        replay: given.has("replay"),
        terminal: if manifest.tty { screen::size() } else { None },
    };
    let raw = if manifest.tty && writes { raw_mode()? } else { None };
    let mut link = context.ask("agent.attach", &params, Silence::Unbounded)?;
    let (voice, connection) = (Voice::new(&link)?, link.body()?);
    if manifest.tty {
        follow_size(raw.as_ref(), &voice)?;
    }
    let detached = Arc::new(AtomicBool::new(false));
    if writes {
        let at_end = if given.has("close-stdin") { AtEnd::Tell } else { AtEnd::Keep };
        let detaching = detached.clone();
        let detach = move || {
            detaching.store(true, Ordering::Relaxed);
            let _ = connection.shutdown(Shutdown::Both); // it may have ended by itself
        };
        feed(voice, at_end, raw.as_ref().map(|_| Box::new(detach) as Box<dyn FnOnce() + Send>))?;
    }
    let mut outlet = Outlet::new(given, manifest.tty);
    let mut gaps = Gaps::default();
    let result = link.result(&mut |request| {
        if !context.json {
            gaps.look(request)?;
        }
        outlet.take(context, request)
    });
    drop(raw);
    if detached.load(Ordering::Relaxed) {
        eprintln!("detached from {name}, which goes on");
        return Ok(0);
    }
    let result = result?;
    let exit = typed(&result)?;
    context.result_or_json(result)?;
    Ok(status_of(&exit))
}

fn raw_mode() -> Result<Option<Raw>, Failure> {
    Raw::enter().map_err(|error| {
        let what = format!("the terminal cannot be made raw: {error}");
        Failure::local(exit_status::FAILED, what, "", "run it in a terminal, or without --tty")
    })
}

fn follow_size(raw: Option<&Raw>, voice: &Voice) -> Result<(), Failure> {
    let Some(raw) = raw else { return Ok(()) };
    let voice = voice.clone();
    raw.watch(move |size| _ = voice.say("resize", &size))?; // a call that has ended has no terminal
    Ok(())
}

/// What the caller says during a call, from several threads.
#[derive(Clone)]
struct Voice(Arc<Mutex<LineWriter>>);

impl Voice {
    fn new(link: &Link) -> Result<Voice, Failure> {
        Ok(Voice(Arc::new(Mutex::new(link.writer()?))))
    }

    fn say(&self, method: &str, params: &impl serde::Serialize) -> Result<(), Failure> {
        let params = serde_json::to_value(params).unwrap_or_default();
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = writer.write_line(&Request::notification(method, params));
        said.map_err(|_| Failure::quiet(exit_status::FAILED))
    }

    fn stdin(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.say("stdin", &StdinData { data: STANDARD.encode(bytes) })
    }
}

/// What becomes of the end of standard input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Tell,
    Keep,
}

/// Passes standard input on, from a thread that ends with the process. With `detach` the keys for it are looked for.
fn feed(voice: Voice, at_end: AtEnd, mut detach: Option<Box<dyn FnOnce() + Send>>) -> Result<(), Failure> {
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let (mut chunk, mut keys) = (vec![0u8; INPUT_BYTES - 1], DetachKeys::default());
        loop {
            let read = match io::stdin().lock().read(&mut chunk) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0, // closed: the program gets its end of file
            };
            let mut bytes = chunk.get(..read).unwrap_or_default().to_vec();
            if detach.is_some() {
                let (rest, found) = keys.take(&bytes);
                bytes = rest;
                if let Some(detach) = detach.take_if(|_| found) {
                    return detach();
                }
            }
            let is_end = read == 0;
            let is_said = !bytes.is_empty() || is_end && at_end == AtEnd::Tell;
            if is_said && voice.stdin(&bytes).is_err() || is_end {
                return;
            }
        }
    })?;
    Ok(())
}

/// Finds what a slow reader missed.
#[derive(Default)]
struct Gaps {
    expected: Option<u64>,
}

impl Gaps {
    fn look(&mut self, request: &Request) -> Result<(), Failure> {
        if let Some(output) = note::<Output>(request, "output")? {
            let missed = self.expected.map_or(0, |expected| output.seq.saturating_sub(expected));
            if missed > 0 {
                eprintln!("-- {missed} pieces of output are no longer kept --");
            }
            self.expected = Some(output.seq + 1);
        }
        Ok(())
    }
}
