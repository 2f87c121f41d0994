//! `agent.evidence`, `agent.read_evidence` and `agent.remove_evidence`.
//!
//! Must hold: what leaves the node, and what is deleted, has its receipt first; what marks a life that has not ended stays.

use abi::control::{Evidence, EvidenceList, EvidenceListing, EvidenceRef, EvidenceSent, Progress, Stream};
use abi::door::{Call, Outcome};
use abi::ids::Instance;
use abi::ledger::Event;
use abi::limits;
use abi::rpc::{Code, RpcError};
use abi::wire::WireError;
use serde_json::json;
use std::io::{self, Write};

use super::archive::{self, Taker};
use crate::agents::Cage;
use crate::caller::{STALL_MAX, Teller};
use crate::exec::receipt;
use crate::output::{CHUNK_BYTES_MAX, unix_ms};

/// Bytes of lives in one answer.
const PAGE_BYTES_MAX: usize = limits::LINE_BYTES_MAX / 2;

/// Answers a call.
pub fn run(cage: &Cage, call: Call<'_>) -> Result<Outcome, RpcError> {
    match call.request.method.as_str() {
        "agent.evidence" => {
            let want: EvidenceListing = call.request.params()?;
            Ok(Outcome::Result(json!(list(cage, &want)?)))
        }
        "agent.read_evidence" => read(cage, call),
        "agent.remove_evidence" => remove(cage, call),
        other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`"))),
    }
}

fn unreadable(error: io::Error) -> RpcError {
    RpcError::new(Code::FAILED, format!("the evidence cannot be read: {error}")).explained(
        "nobody but cage writes it",
        "see nullctl system logs cage, and whether /state can be read",
    )
}

fn unknown(instance: &Instance) -> RpcError {
    RpcError::new(Code::NOT_FOUND, format!("there is no evidence of {instance}"))
        .explained("evidence is of one quarantined life, NAME.GENERATION", "see nullctl agent evidence list")
}

fn list(cage: &Cage, want: &EvidenceListing) -> Result<EvidenceList, RpcError> {
    let mut lives = super::all(&cage.places).map_err(unreadable)?;
    lives.retain(|life| {
        want.name.as_ref().is_none_or(|name| life.agent == *name)
            && want.after.as_ref().is_none_or(|after| life.generation > after.generation)
    });
    let described = lives.iter().filter_map(|life| super::describe(&cage.places, life).transpose());
    Ok(page(described.collect::<io::Result<Vec<_>>>().map_err(unreadable)?))
}

/// As many as fit.
fn page(lives: Vec<Evidence>) -> EvidenceList {
    let mut list = EvidenceList { lives: Vec::new(), next: None };
    let mut bytes = 0;
    for life in lives {
        bytes += serde_json::to_string(&life).map_or(PAGE_BYTES_MAX, |text| text.len());
        if let Some(last) = list.lives.last().filter(|_| bytes > PAGE_BYTES_MAX) {
            list.next = Some(last.instance.clone());
            break;
        }
        list.lives.push(life);
    }
    list
}

fn read(cage: &Cage, call: Call<'_>) -> Result<Outcome, RpcError> {
    let EvidenceRef { instance } = call.request.params()?;
    let opened = super::open(&cage.places, &instance).map_err(unreadable)?;
    let pieces = opened.ok_or_else(|| unknown(&instance))?;
    let by = call.caller.to_string();
    receipt(cage, Event::EvidenceRead { instance: instance.clone(), by }, "copy")?;
    cage.events.push(&instance.agent, "evidence_read", &instance);
    let to = Out { teller: Teller::new(&call, STALL_MAX)?, waiting: Vec::with_capacity(CHUNK_BYTES_MAX) };
    let sent = archive::pack(&instance.to_string(), unix_ms() / 1000, &pieces, to);
    let files = sent.map_err(|error| {
        RpcError::new(Code::FAILED, format!("the evidence of {instance} was not sent whole: {error}"))
            .explained("a file is sent as long as it was, or not at all", "try again; see system logs cage")
    })?;
    Ok(Outcome::Result(json!(EvidenceSent { files })))
}

fn remove(cage: &Cage, call: Call<'_>) -> Result<Outcome, RpcError> {
    let EvidenceRef { instance } = call.request.params()?;
    if !super::dir(&cage.places, &instance).exists() {
        return Err(unknown(&instance));
    }
    if !super::has_ended(&cage.places, &instance) {
        return Err(RpcError::new(Code::CONFLICT, format!("{instance} has not ended")).explained(
            "its evidence is the mark of its quarantine, and of a disk that is not moved there yet",
            "agent stop or agent kill it first; if it has ended, see system logs cage",
        ));
    }
    let by = call.caller.to_string();
    receipt(cage, Event::EvidenceRemoved { instance: instance.clone(), by }, "removal")?;
    super::remove(&cage.places, &instance).map_err(|error| {
        RpcError::new(Code::FAILED, format!("the evidence of {instance} is not all removed: {error}"))
            .explained("nobody but cage writes it", "try again; see nullctl system logs cage")
    })?;
    cage.events.push(&instance.agent, "evidence_removed", &instance);
    Ok(Outcome::Result(json!({})))
}

/// The caller as one who takes an archive.
struct Out {
    teller: Teller,
    /// At most [`CHUNK_BYTES_MAX`].
    waiting: Vec<u8>,
}

fn broken(error: WireError) -> io::Error {
    match error {
        WireError::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES_MAX - self.waiting.len());
        self.waiting.extend(bytes.iter().take(taken));
        if self.waiting.len() == CHUNK_BYTES_MAX {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.teller.output(Stream::Stdout, &self.waiting).map_err(broken)?;
        self.waiting.clear();
        Ok(())
    }
}

impl Taker for Out {
    fn reached(&mut self, file: &str, done: u64, total: u64) -> io::Result<()> {
        let progress = Progress { stage: file.to_owned(), done: Some(done), total: Some(total) };
        self.teller.progress(&progress).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::control::{EvidenceFile, Quarantine};

    #[test]
    fn the_longest_reasons_of_all_lives_fit_their_pages() {
        let life = |generation| Evidence {
            instance: Instance { agent: "a".repeat(32).parse().unwrap(), generation },
            quarantine: Some(Quarantine {
                by: "operator ".to_owned() + &"x".repeat(64),
                reason: "\u{10ffff}".repeat(limits::REASON_CHARS_MAX),
                unix_ms: u64::MAX,
            }),
            has_ended: true,
            files: super::super::FILES
                .iter()
                .map(|name| EvidenceFile { name: (*name).into(), bytes: u64::MAX, digest: None })
                .collect(),
        };
        let all: Vec<Evidence> = (0..limits::EVIDENCE_MAX as u64).map(life).collect();
        let (mut seen, mut rest) = (0, all.clone());
        loop {
            let list = page(rest.clone());
            assert!(json!(list).to_string().len() + 512 < limits::LINE_BYTES_MAX);
            assert!(!list.lives.is_empty());
            seen += list.lives.len();
            match list.next {
                Some(next) => rest.retain(|life| life.instance.generation > next.generation),
                None => break,
            }
        }
        assert_eq!(seen, all.len());
    }
}
