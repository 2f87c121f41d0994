//! `agent`: start, stop, watch and enter agents.

use abi::control::{
    AgentExec, AgentList, AgentLogs, AgentRef, AgentState, AgentStatus, Nothing, Output, Progress, Started,
    StdinData, Stream,
};
use abi::guest::Exit;
use abi::manifest::{Manifest, RootfsRef};
use abi::rpc::Request;
use abi::wire::LineWriter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, IsTerminal, Read, Write};
use std::time::Duration;

use super::{id, logs, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say, terminal};
use crate::failure::{Failure, status as exit_status};
use crate::link::{Link, typed};
use crate::print::{Meter, Passage, Table, facts, size, span, visible};

/// Starting is bounded by the node (a guest's boot, 120 s); this is for a node that says nothing at all.
const START_SILENCE: Duration = Duration::from_secs(180);
/// Bytes of input in one notification (docs/control-protocol.md: 32 KiB).
const INPUT_BYTES: usize = 32 * 1024;

fn agent(given: &Arguments) -> Result<AgentRef, Failure> {
    Ok(AgentRef { name: id(given.required(0))? })
}

fn state(state: AgentState) -> &'static str {
    match state {
        AgentState::Stopped => "stopped",
        AgentState::Starting => "starting",
        AgentState::Running => "running",
        AgentState::Stopping => "stopping",
        AgentState::Exited => "exited",
        AgentState::Failed => "failed",
    }
}

pub fn list(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("agent.list", &Nothing {})? else {
        return Ok(0);
    };
    let list: AgentList = typed(&result)?;
    let mut table = Table::new(&["AGENT", "STATE", "INSTANCE", "VERSION", "ROOTFS", "UP", "DETAIL"]);
    for agent in &list.agents {
        table.row(&[
            agent.name.as_str(),
            state(agent.state),
            &agent.instance.as_ref().map_or("-".into(), ToString::to_string),
            &agent.version,
            &agent.rootfs,
            &agent.uptime_ms.map_or("-".into(), span),
            &agent.detail,
        ]);
    }
    let mut text = table.render();
    if !list.rejected.is_empty() {
        text.push_str("\nManifests that are wrong and were not loaded:\n");
        for error in &list.rejected {
            text.push_str(&format!("  {}\n", visible(&error.to_string())));
        }
    }
    say(&text)?;
    Ok(0)
}

pub fn start(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = agent(given)?;
    let mut meter = Meter::new(context.json);
    let mut link = context.ask("agent.start", &params, Silence::AtMost(START_SILENCE))?;
    let what = format!("starting {}", params.name);
    let result = link.result(&mut |request| {
        if let Some(progress) = note::<Progress>(request, "progress")? {
            meter.show(&what, &progress);
        }
        context.note(request)
    });
    meter.done();
    if let Some(result) = context.result_or_json(result?)? {
        let started: Started = typed(&result)?;
        say(&format!("{} runs, {} after the request\n", started.instance, span(started.took_ms)))?;
    }
    Ok(0)
}

pub fn stop(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = agent(given)?;
    if context.call("agent.stop", &params)?.is_some() {
        say(&format!("{} is stopped\n", params.name))?;
    }
    Ok(0)
}

pub fn status(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    if let Some(result) = context.call("agent.status", &agent(given)?)? {
        say(&in_words(&typed(&result)?))?;
    }
    Ok(0)
}

fn in_words(status: &AgentStatus) -> String {
    let summary = &status.summary;
    let mut life = state(summary.state).to_owned();
    if let Some(up) = summary.uptime_ms {
        life.push_str(&format!(", up {}", span(up)));
    }
    if !summary.detail.is_empty() {
        life.push_str(&format!(": {}", summary.detail));
    }
    let stages: Vec<String> = status.stages_ms.iter().map(|(stage, ms)| format!("{stage} {ms} ms")).collect();
    let mut pairs = vec![
        ("agent", format!("{} {}", summary.name, summary.version)),
        ("state", life),
        ("instance", summary.instance.as_ref().map_or("-".into(), ToString::to_string)),
        ("manifest", status.manifest_digest.to_string()),
        (
            "rootfs",
            status
                .rootfs_digest
                .map_or("not in the store".into(), |digest| format!("{} {digest}", summary.rootfs)),
        ),
    ];
    pairs.extend(grants(&status.manifest));
    pairs.push((
        "in use",
        match (status.memory_kib, status.cpu_ms) {
            (None, None) => "no VM".into(),
            (memory, cpu) => format!(
                "{} memory, {} cpu time, {} execs",
                size(memory.unwrap_or(0) * 1024),
                span(cpu.unwrap_or(0)),
                status.execs_running
            ),
        },
    ));
    if !stages.is_empty() {
        pairs.push(("last start", stages.join(", ")));
    }
    if let Some(exit) = &status.exit {
        pairs.push(("exit", exit_in_words(exit)));
    }
    let mut text = facts(&pairs);
    if !status.guest_denials.is_empty() {
        text.push_str("\nRefused by the sandbox in the guest, as the guest tells it:\n");
        for denial in &status.guest_denials {
            text.push_str(&format!("  {}\n", visible(denial)));
        }
    }
    if !status.console.is_empty() {
        text.push_str("\nThe console of the VM, when it broke:\n");
        for line in &status.console {
            text.push_str(&format!("  {}\n", visible(line)));
        }
    }
    text
}

fn grants(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let or_none = |list: Vec<String>| {
        if list.is_empty() { "none".into() } else { list.join(" ") }
    };
    let network = manifest.network_allow.iter().map(ToString::to_string).collect();
    let programs = if manifest.shell {
        "anything in the rootfs (shell = true)".into()
    } else {
        let own = manifest.command.first().cloned().unwrap_or_default();
        std::iter::once(own).chain(manifest.exec.iter().cloned()).collect::<Vec<_>>().join(" ")
    };
    let rootfs = match &manifest.rootfs {
        RootfsRef::Name(name) => name.clone(),
        RootfsRef::Digest(digest) => digest.to_string(),
    };
    vec![
        ("command", format!("{} (rootfs {rootfs})", manifest.command.join(" "))),
        ("programs", programs),
        ("network", or_none(network)),
        ("reads", or_none(manifest.read.clone())),
        ("writes", or_none(manifest.write.clone())),
        (
            "limits",
            format!(
                "{} MiB memory, {} % of a core, {} MiB disk, {} processes",
                manifest.memory_mib, manifest.cpu_percent, manifest.disk_mib, manifest.pids_max
            ),
        ),
    ]
}

fn exit_in_words(exit: &Exit) -> String {
    let mut text = match (exit.code, exit.signal) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown".into(),
    };
    if exit.oom_killed {
        text.push_str(", out of memory");
    }
    if exit.dropped_bytes > 0 {
        text.push_str(&format!(", {} of output dropped", size(exit.dropped_bytes)));
    }
    text
}

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
