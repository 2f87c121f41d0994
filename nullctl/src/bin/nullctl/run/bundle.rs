//! `memory export`, `memory import`, `memory verify`: memory as a whole.
//!
//! Must never: leave half a bundle under the name that was asked for.

use abi::control::{
    Exported, Imported, MemoryChunk, MemoryExport, MemoryImport, MemoryVerified, Nothing, Progress,
};
use abi::limits;
use abi::rpc::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::evidence::Part;
use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{Meter, Table, size, visible};

/// A large memory takes its time to be read or stored.
pub const SILENCE: Duration = Duration::from_secs(600);
const PROGRESS: Duration = Duration::from_millis(100);

pub fn export(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let to = given.required(0);
    let params = MemoryExport {
        agent: given.value("agent").map(id).transpose()?,
        prefix: given.value("prefix").unwrap_or_default().to_owned(),
        hashes: Vec::new(),
    };
    let mut part = Part::create(Path::new(to)).map_err(|error| local(to, &error))?;
    let mut meter = Shown::new(context.json);
    let result = receive(context, &params, &mut |bytes| {
        meter.add(to, bytes.len());
        part.file.write_all(bytes).map_err(|error| local(to, &error))
    });
    meter.meter.done();
    let exported: Exported = typed(&result?)?;
    part.keep().map_err(|error| local(to, &error))?;
    if context.json {
        say(&format!("{}\n", json!(exported)))?;
    } else {
        let Exported { entries, bytes, digest } = exported;
        say(&format!("{}: {entries} entries, {}, {digest}\n", visible(to), size(bytes)))?;
    }
    Ok(0)
}

/// Asks for a bundle; its bytes go to `sink`.
pub fn receive(
    context: &Context,
    params: &MemoryExport,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Value, Failure> {
    context.ask("memory.export", params, Silence::AtMost(SILENCE))?.result(&mut |request| {
        let Some(chunk) = note::<MemoryChunk>(request, "output")? else { return Ok(()) };
        let bytes = STANDARD.decode(&chunk.data).map_err(|error| {
            Failure::local(
                status::FAILED,
                format!("the bundle is not base64: {error}"),
                "",
                "use a nullctl of the node's version",
            )
        })?;
        sink(&bytes)
    })
}

pub fn import(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let from = given.required(0);
    let mut file = File::open(from).map_err(|error| local(from, &error))?;
    let mut meter = Shown::new(context.json);
    let mut shown = Counted { inner: &mut file, add: &mut |bytes| meter.add(from, bytes) };
    let imported = send(context, given.value("from"), &mut shown);
    meter.meter.done();
    let imported = imported?;
    if context.json {
        say(&format!("{}\n", json!(imported)))?;
    } else {
        let Imported { entries, known, refused, conflicts } = imported;
        say(&format!("{entries} entries are new, {known} were here\n"))?;
        if refused > 0 {
            say(&format!("{refused} values were forgotten here and stay so\n"))?;
        }
        if conflicts > 0 {
            say(&format!("{conflicts} keys have several newest entries: nullctl memory conflicts\n"))?;
        }
    }
    Ok(0)
}

/// Hands a bundle to the node.
pub fn send(context: &Context, from: Option<&str>, bundle: &mut dyn Read) -> Result<Imported, Failure> {
    let params = MemoryImport { from: from.map(str::to_owned) };
    let mut link = context.ask("memory.import", &params, Silence::AtMost(SILENCE))?;
    let mut writer = link.writer()?;
    let mut say = |bytes: &[u8]| {
        let params = serde_json::to_value(MemoryChunk { data: STANDARD.encode(bytes) })?;
        let line = Request::notification("input", params);
        writer.write_line(&line).map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error.to_string()))
    };
    let mut chunk = vec![0; limits::MEMORY_CHUNK_BYTES_MAX];
    loop {
        let read = match bundle.read(&mut chunk) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The node forgets what came so far when the connection ends.
            Err(error) => return Err(local("the bundle", &error)),
        };
        if say(&chunk[..read]).is_err() || read == 0 {
            break; // where the node closed, its answer says why
        }
    }
    typed(&link.result(&mut |_| Ok(()))?)
}

pub fn verify(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let mut meter = Meter::new(context.json);
    let result =
        context.ask("memory.verify", &Nothing {}, Silence::AtMost(SILENCE))?.result(&mut |request| {
            if let Some(progress) = note::<Progress>(request, "progress")? {
                meter.show("verify", &progress);
            }
            Ok(())
        });
    meter.done();
    let result = result?;
    let verified: MemoryVerified = typed(&result)?;
    if context.result_or_json(result)?.is_some() {
        say(&format!("{} entries, {}\n", verified.entries, size(verified.bytes)))?;
        let mut table = Table::new(&["PLACE", "WHAT IS WRONG", "WHAT IS LOST"]);
        for damage in &verified.damages {
            table.row(&[&damage.place, &damage.why, &damage.lost]);
        }
        let holds = verified.damaged == 0;
        say(&if holds { "every entry has its hash\n".into() } else { table.render() })?;
    }
    if verified.damaged == 0 {
        return Ok(0);
    }
    Err(Failure::local(
        status::FAILED,
        format!("memory is damaged in {} places", verified.damaged),
        "an entry that does not have its hash is not shown; all others are",
        "docs/memory-sync.md says how lost entries come back from an export or another node",
    ))
}

fn local(path: &str, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => "name a file that does not exist",
        _ => "check the path and its permissions",
    };
    Failure::local(status::USAGE, format!("{}: {error}", visible(path)), "", remedy)
}

/// What goes through is counted.
struct Counted<'a> {
    inner: &'a mut dyn Read,
    add: &'a mut dyn FnMut(usize),
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        (self.add)(read);
        Ok(read)
    }
}

/// Bytes so far.
struct Shown {
    meter: Meter,
    bytes: u64,
    last: Instant,
}

impl Shown {
    fn new(quiet: bool) -> Shown {
        Shown { meter: Meter::new(quiet), bytes: 0, last: Instant::now() }
    }

    fn add(&mut self, what: &str, bytes: usize) {
        self.bytes += bytes as u64;
        if self.last.elapsed() >= PROGRESS {
            self.last = Instant::now();
            let stage = size(self.bytes);
            self.meter.show(&visible(what), &Progress { stage, done: None, total: None });
        }
    }
}
