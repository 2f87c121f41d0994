//! `ledger verify` and `ledger prove` on files: nothing is asked of a node.
//!
//! Must hold: what is said to hold was covered by the signature of the key that was given.

use abi::control::{Consistency, Progress, Proof, Recorded};
use ledger::checkpoint::Checkpoint;
use ledger::export::{ExportError, Opened, can_go_on};
use ledger::frame::Frame;
use ledger::proof::Pass;
use ledger::statement;
use nullctl::keys::{KeyTextError, PublicKey};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read};

use super::ledger::line;
use super::proofs::local;
use crate::cli::Arguments;
use crate::context::{Context, say};
use crate::failure::{Failure, status};
use crate::print::{Meter, facts, moment, size, visible};

/// Proofs and checkpoints are a few KiB; more than this is neither.
const FILE_BYTES_MAX: u64 = 256 * 1024;
const METER_EVERY_BYTES: u64 = 4 << 20;

/// What is to be proved.
pub enum Wanted {
    Event(u64),
    /// The text of a checkpoint.
    Since(String),
}

pub fn verify_export(context: &Context, given: &Arguments, path: &str) -> Result<u8, Failure> {
    let key = key(given)?;
    let since = since(given, &key)?;
    let checked = open(context, path, &key)
        .and_then(|opened| opened.check(since.as_ref(), |_, _| {}).map_err(|error| broken(path, error)));
    let checked = match checked {
        Ok(checked) => checked,
        Err((failure, said)) => {
            if let Some(said) = said.filter(|_| context.json) {
                say(&format!("{said}\n"))?;
            }
            return Err(failure);
        }
    };
    let at = &checked.checkpoint;
    if context.json {
        let mut said = about(at);
        said["segments"] = checked.segments.into();
        said["bytes"] = checked.bytes.into();
        say(&format!("{said}\n"))?;
    } else {
        say(&facts(&[
            ("events", at.size.to_string()),
            ("segments", checked.segments.to_string()),
            ("size", size(checked.bytes)),
            ("head", at.head.to_string()),
            ("signed", format!("{} UTC by {}", moment(at.unix_ms), key.fingerprint())),
        ]))?;
        say(if since.is_some() {
            "the ledger holds and goes on from the checkpoint\n"
        } else {
            "the ledger holds\n"
        })?;
    }
    Ok(0)
}

pub fn verify_proof(context: &Context, given: &Arguments, path: &str) -> Result<u8, Failure> {
    let key = key(given)?;
    let since = since(given, &key)?;
    let text = read(path)?;
    let wrong = |why: String| {
        Failure::local(
            status::FAILED,
            format!("{}: the proof does not hold: {why}", visible(path)),
            "a proof is checked from its event up to what the ledger's key signed",
            "ask the node for a new one; compare the key with `nullctl ledger key`",
        )
    };
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("not JSON: {error}")))?;
    if value["nullbox_proof"] == "consistency" {
        let proof: Consistency = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        let since = since.ok_or_else(|| {
            Failure::usage("a proof of consistency needs the older checkpoint", "give it with --since FILE")
        })?;
        let checkpoint =
            statement::check_consistency(&proof, &since, &key).map_err(|error| wrong(error.to_string()))?;
        let said = format!("{} events go on from {}\n", checkpoint.size, since.size);
        return tell(context, about(&checkpoint), &said);
    }
    if since.is_some() {
        return Err(Failure::usage(
            "--since with the proof of an event, which shows nothing of an older ledger",
            "check it without; `nullctl ledger prove --since FILE` fetches a proof that the ledger goes on",
        ));
    }
    let proof: Proof = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    let (frame, checkpoint) =
        statement::check_inclusion(&proof, &key).map_err(|error| wrong(error.to_string()))?;
    let mut said = about(&checkpoint);
    said["event"] = json!(recorded(&frame));
    let signed = format!(
        "stands in the ledger of {} events signed {} UTC by {}\n",
        checkpoint.size,
        moment(checkpoint.unix_ms),
        key.fingerprint()
    );
    tell(
        context,
        said,
        &format!("{}{signed}", recorded(&frame).map_or_else(|| bare(&frame), |event| line(&event))),
    )
}

/// A proof from an export.
pub fn prove(context: &Context, given: &Arguments, path: &str, wanted: &Wanted) -> Result<Value, Failure> {
    let key = key(given)?;
    let opened = open(context, path, &key).map_err(|(failure, _)| failure)?;
    let checkpoint = opened.checkpoint().clone();
    let (note, receipts) = (opened.note().to_owned(), opened.receipts().to_vec());
    let (seq, since) = match wanted {
        Wanted::Event(seq) => (Some(*seq), None),
        Wanted::Since(note) => {
            let since = Checkpoint::open(note, &key).map_err(|error| wrong_checkpoint(&error))?;
            can_go_on(&since, &checkpoint).map_err(|error| broken(path, error).0)?;
            (None, Some(since))
        }
    };
    let pass = match (seq, &since) {
        (Some(seq), _) => Pass::inclusion(seq, checkpoint.size),
        (None, since) => Pass::consistency(since.as_ref().map_or(0, |since| since.size), checkpoint.size),
    };
    let mut pass = pass.ok_or_else(|| {
        Failure::local(
            status::NOT_FOUND,
            format!("the export has {} events", checkpoint.size),
            "an event is proved in a ledger that has it, and a ledger from one that is not empty or longer",
            "make a newer export",
        )
    })?;
    let mut found = Vec::new();
    opened
        .check(since.as_ref(), |frame, bytes| {
            pass.push(&frame.digest);
            if Some(frame.seq) == seq {
                found = bytes.to_vec();
            }
        })
        .map_err(|error| broken(path, error).0)?;
    let path = pass.finish().unwrap_or_default(); // every frame up to the checkpoint was pushed
    let proof = match (seq, &since) {
        (Some(seq), _) => json!(statement::inclusion(&note, checkpoint.size, seq, &found, path, &receipts)),
        (None, since) => {
            json!(statement::consistency(&note, since.as_ref().map_or(0, |since| since.size), &path))
        }
    };
    Ok(proof)
}

/// The text of a checkpoint's file.
pub fn note_in(path: &str) -> Result<String, Failure> {
    read(path)
}

/// How many events a checkpoint says that there are; its signature is checked by whoever checks the proof.
pub fn size_in(note: &str) -> Result<u64, Failure> {
    note.lines().nth(1).and_then(|line| line.parse().ok()).ok_or_else(|| {
        Failure::usage("that file is no checkpoint", "nullctl ledger checkpoint -o FILE writes one")
    })
}

fn tell(context: &Context, said: Value, words: &str) -> Result<u8, Failure> {
    say(&if context.json { format!("{said}\n") } else { words.to_owned() })?;
    Ok(0)
}

fn about(checkpoint: &Checkpoint) -> Value {
    json!({
        "holds": true,
        "ledger": abi::ids::Digest(checkpoint.ledger_id).hex(),
        "events": checkpoint.size,
        "root": checkpoint.root,
        "head": checkpoint.head,
        "signed_unix_ms": checkpoint.unix_ms,
    })
}

/// An event of this version; none of a later one's.
fn recorded(frame: &Frame) -> Option<Recorded> {
    Some(Recorded {
        seq: frame.seq,
        digest: frame.digest,
        unix_ms: frame.unix_ms,
        source: frame.source.name().into(),
        event: serde_json::from_slice(&frame.body).ok()?,
    })
}

fn bare(frame: &Frame) -> String {
    let body = String::from_utf8_lossy(&frame.body);
    format!("{:>6} {} {:<8} {}\n", frame.seq, moment(frame.unix_ms), frame.source.name(), visible(&body))
}

pub(super) fn key(given: &Arguments) -> Result<PublicKey, Failure> {
    let text = given.value("key").ok_or_else(|| {
        Failure::usage(
            "the ledger's public key is needed",
            "give --key ed25519:..., as `nullctl ledger key` printed it when you trusted the node",
        )
    })?;
    text.parse()
        .map_err(|error: KeyTextError| Failure::usage(error.to_string(), "copy it from `nullctl ledger key`"))
}

fn since(given: &Arguments, key: &PublicKey) -> Result<Option<Checkpoint>, Failure> {
    let Some(path) = given.value("since") else { return Ok(None) };
    Checkpoint::open(&read(path)?, key).map(Some).map_err(|error| wrong_checkpoint(&error))
}

fn wrong_checkpoint(error: &ledger::checkpoint::CheckpointError) -> Failure {
    Failure::local(
        status::FAILED,
        error.to_string(),
        "checkpoints count only with the signature of the ledger's key",
        "compare the key with `nullctl ledger key`, and the file with what the node handed out",
    )
}

fn read(path: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| local(path, &error))?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| local(path, &error))?;
    // What is no text does not hold, like any other change.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A failure, and what `--json` says of it.
type Broken = (Failure, Option<Value>);

fn open(context: &Context, path: &str, key: &PublicKey) -> Result<Opened<Metered>, Broken> {
    let file = File::open(path).map_err(|error| (local(path, &error), None))?;
    let total = file.metadata().map_err(|error| (local(path, &error), None))?.len();
    let input =
        Metered { file, meter: Meter::new(context.json), what: visible(path), done: 0, shown: 0, total };
    Opened::open(input, key).map_err(|error| broken(path, error))
}

fn broken(path: &str, error: ExportError) -> Broken {
    if let ExportError::Read(error) = &error {
        return (local(path, error), None);
    }
    let said = json!({ "holds": false, "place": error.place(), "why": error.to_string() });
    let failure = Failure::local(
        status::FAILED,
        format!("{}: {error}", visible(path)),
        "each event's digest covers all before it, and the ledger's key has signed the last",
        "what stands before that place holds together, but only what an older checkpoint (--since) covers is known to be right; keep the file, and compare with an earlier export",
    );
    (failure, Some(said))
}

/// A file whose reading is shown.
struct Metered {
    file: File,
    meter: Meter,
    what: String,
    done: u64,
    shown: u64,
    total: u64,
}

impl Read for Metered {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(out)?;
        self.done += read as u64;
        if self.done >= self.shown + METER_EVERY_BYTES {
            self.shown = self.done;
            let progress =
                Progress { stage: "verify".into(), done: Some(self.done), total: Some(self.total) };
            self.meter.show(&self.what, &progress);
        }
        if read == 0 {
            self.meter.done();
        }
        Ok(read)
    }
}
