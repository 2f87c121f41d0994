//! `task export` and `task attest`: parts of a verified task, as files.
//!
//! Must hold: a part appears whole, with the digest that the node gave for it, or not at all.

use abi::control::{Output, TaskExport, TaskExported, TaskPart};
use abi::limits;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::cli::Arguments;
use crate::context::{Context, Silence, terminal};
use crate::failure::{Failure, status};
use crate::link::{Link, typed};
use crate::pack::sum;
use crate::print::{Passage, size, visible};
use crate::run::evidence::Part;
use crate::run::{id, note};

/// A large patch takes its time to be read.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of any part: the contents of a patch, and its records. A path in a diff or a record takes its room too.
const PART_BYTES_MAX: usize = 4 * limits::CHANGES_BYTES_MAX as usize;

const PARTS: &[(&str, TaskPart)] = &[
    ("patch", TaskPart::Patch),
    ("diff", TaskPart::Diff),
    ("attestation", TaskPart::Attestation),
    ("output", TaskPart::Output),
];

pub fn export(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let asked: Vec<TaskPart> =
        PARTS.iter().filter(|(name, _)| given.has(name)).map(|(_, part)| *part).collect();
    match asked.as_slice() {
        [] => write(context, given, TaskPart::Diff),
        [part] => write(context, given, *part),
        _ => {
            Err(Failure::usage("more than one part", "write one of --diff, --patch, --attestation, --output"))
        }
    }
}

pub fn attest(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    write(context, given, TaskPart::Attestation)
}

fn write(context: &Context, given: &Arguments, what: TaskPart) -> Result<u8, Failure> {
    let params = TaskExport { id: id(given.required(0))?, what };
    let to = given.value("out");
    if context.json && to.is_none() {
        return Err(Failure::usage("--json without --out", "name a file for the bytes with --out"));
    }
    let part = to.map(|to| Part::create(Path::new(to)).map_err(|error| local(to, &error))).transpose()?;
    let (bytes, _) = fetch(context, &params)?;
    let sha256 = sum(&bytes);
    match (to, part) {
        (Some(to), Some(mut part)) => {
            part.file.write_all(&bytes).and_then(|()| part.keep()).map_err(|error| local(to, &error))?;
            let words = format!("{}: {}, {sha256}\n", visible(to), size(bytes.len() as u64));
            super::told(context, &json!({ "file": to, "bytes": bytes.len(), "sha256": sha256 }), &words)
        }
        _ => {
            let shown = Passage::new(terminal(), given.has("raw")).take(&bytes);
            let mut out = io::stdout().lock();
            out.write_all(&shown).and_then(|()| out.flush())?;
            Ok(0)
        }
    }
}

fn local(to: &str, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => "it is not replaced: name another file, or move that one away",
        _ => "name a file in a directory that you may write to and that has room",
    };
    Failure::usage(format!("{}: {error}", visible(to)), remedy)
}

/// One part of a task, whole.
pub fn fetch(context: &Context, params: &TaskExport) -> Result<(Vec<u8>, TaskExported), Failure> {
    let link = context.ask("task.export", params, Silence::AtMost(SILENCE))?;
    let (bytes, result) = receive(link, &mut |_| Ok(()))?;
    let exported: TaskExported = typed(&result)?;
    match exported.bytes == bytes.len() as u64 && exported.sha256 == sum(&bytes) {
        true => Ok((bytes, exported)),
        false => Err(not_whole()),
    }
}

/// The bytes that a call streams, and its result. Other notifications go to `on`.
pub fn receive(
    mut link: Link,
    on: &mut dyn FnMut(&abi::rpc::Request) -> Result<(), Failure>,
) -> Result<(Vec<u8>, Value), Failure> {
    let (mut bytes, mut next) = (Vec::new(), 0);
    let result = link.result(&mut |request| {
        let Some(output) = note::<Output>(request, "output")? else { return on(request) };
        let part = STANDARD.decode(&output.data).ok().filter(|_| output.seq == next).ok_or_else(not_whole)?;
        next += 1;
        bytes.extend_from_slice(&part);
        if bytes.len() > PART_BYTES_MAX { Err(not_whole()) } else { Ok(()) }
    })?;
    Ok((bytes, result))
}

fn not_whole() -> Failure {
    Failure::local(
        status::FAILED,
        "what came is not what the node said it sends",
        "parts are numbered from 0 without gaps, bounded, and have the digest of the result",
        "try again; use a nullctl of the node's version",
    )
}
