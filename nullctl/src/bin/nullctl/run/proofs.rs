//! `ledger export`, `prove`, `checkpoint`, `key`: what a node hands out to be checked without it.
//!
//! Must never: leave half a file under the name that was asked for, or replace one unasked.

use abi::control::{
    Checkpoint, Exported, LedgerConsistency, LedgerExport, LedgerProve, MemoryChunk, Nothing, Progress,
};
use abi::ids::Digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nullctl::keys::PublicKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::{self, Write};
use std::path::Path;

use super::evidence::Part;
use super::ledger::VERIFY_SILENCE;
use super::{note, offbox};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::typed;
use crate::print::{Meter, facts, size, visible};

pub fn export(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let to = given.required(0);
    let mut part = part(given, to)?;
    let mut meter = Meter::new(context.json);
    let mut hash = Sha256::new();
    let mut link = context.ask("ledger.export", &LedgerExport {}, Silence::AtMost(VERIFY_SILENCE))?;
    let result = link.result(&mut |request| {
        if let Some(progress) = note::<Progress>(request, "progress")? {
            meter.show(&visible(to), &progress);
        }
        let Some(chunk) = note::<MemoryChunk>(request, "output")? else { return Ok(()) };
        let bytes = STANDARD.decode(&chunk.data).map_err(|_| not_whole())?;
        hash.update(&bytes);
        part.file.write_all(&bytes).map_err(|error| local(to, &error))
    });
    meter.done();
    let result = result?;
    let exported: Exported = typed(&result)?;
    if exported.digest != Digest(hash.finalize().into()) {
        return Err(not_whole());
    }
    part.keep().map_err(|error| local(to, &error))?;
    if context.result_or_json(result)?.is_some() {
        say(&format!("{}: {} events, {}\n", visible(to), exported.entries, size(exported.bytes)))?;
    }
    Ok(0)
}

pub fn prove(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let wanted = match (given.at(0), given.value("since")) {
        (Some(seq), None) => offbox::Wanted::Event(seq.parse().map_err(|_| {
            Failure::usage(
                format!("`{}` is not an event's number", visible(seq)),
                "nullctl ledger tail shows the numbers",
            )
        })?),
        (None, Some(file)) => offbox::Wanted::Since(offbox::note_in(file)?),
        _ => {
            return Err(Failure::usage(
                "give SEQ or --since CHECKPOINT, one of them",
                "write for example nullctl ledger prove 42",
            ));
        }
    };
    let proof = match (given.value("export"), &wanted) {
        (Some(export), _) => offbox::prove(context, given, export, &wanted)?,
        (None, offbox::Wanted::Event(seq)) => ask(context, "ledger.prove", &LedgerProve { seq: *seq })?,
        (None, offbox::Wanted::Since(note)) => {
            let size = offbox::size_in(note)?;
            ask(context, "ledger.consistency", &LedgerConsistency { size })?
        }
    };
    hand_out(context, given, &proof, &format!("{proof}\n"))
}

pub fn checkpoint(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let result = ask(context, "ledger.checkpoint", &Nothing {})?;
    let checkpoint: Checkpoint = typed(&result)?;
    hand_out(context, given, &result, &checkpoint.note)
}

pub fn key(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let checkpoint: Checkpoint = typed(&ask(context, "ledger.checkpoint", &Nothing {})?)?;
    let key: PublicKey = checkpoint.key.parse().map_err(|error: nullctl::keys::KeyTextError| {
        Failure::local(status::FAILED, error.to_string(), "", "use a nullctl of the node's version")
    })?;
    let (text, print) = (key.to_string(), key.fingerprint().to_string());
    if context.json {
        say(&format!("{}\n", json!({ "key": text, "fingerprint": print, "pem": key.pem() })))?;
    } else if given.has("pem") {
        say(&key.pem())?;
    } else {
        say(&facts(&[("key", text), ("fingerprint", print)]))?;
    }
    Ok(0)
}

fn ask(context: &Context, method: &str, params: &impl serde::Serialize) -> Result<Value, Failure> {
    context.ask(method, params, Silence::AtMost(VERIFY_SILENCE))?.result(&mut |_| Ok(()))
}

/// Writes a text where `--out` says, or prints it.
fn hand_out(context: &Context, given: &Arguments, result: &Value, text: &str) -> Result<u8, Failure> {
    if let Some(to) = given.value("out") {
        let mut part = part(given, to)?;
        part.file.write_all(text.as_bytes()).map_err(|error| local(to, &error))?;
        part.keep().map_err(|error| local(to, &error))?;
    }
    match (context.json, given.value("out")) {
        (true, _) => say(&format!("{result}\n"))?,
        (false, None) => say(text)?,
        (false, Some(to)) => say(&format!("{}\n", visible(to)))?,
    }
    Ok(0)
}

fn part(given: &Arguments, to: &str) -> Result<Part, Failure> {
    let made = if given.has("force") { Part::replacing(Path::new(to)) } else { Part::create(Path::new(to)) };
    made.map_err(|error| local(to, &error))
}

fn not_whole() -> Failure {
    Failure::local(
        status::FAILED,
        "the export did not come whole",
        "the node says its SHA-256 at the end",
        "try again; use a nullctl of the node's version",
    )
}

/// A file of this machine that cannot be read or written.
pub fn local(path: &str, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => "name another file, or give --force to replace it",
        _ => "check the path, its permissions and the room there",
    };
    Failure::local(status::USAGE, format!("{}: {error}", visible(path)), "", remedy)
}
