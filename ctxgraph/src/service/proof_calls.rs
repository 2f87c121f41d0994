//! The ledger's methods that hand out what is checked elsewhere: checkpoints, proofs, exports.
//!
//! Must hold: what is signed was read back from the disk and has the root that was chained.
//! Must never: let a reader slow a writer: everything is read from the files, as far as one snapshot.

use abi::control::{
    Attest, Attested, Exported, LedgerConsistency, LedgerExport, LedgerProve, MemoryChunk, Nothing, Progress,
};
use abi::door::{Call, Outcome};
use abi::identity::{Caller, Service};
use abi::ids::Digest;
use abi::ledger::Event;
use abi::limits;
use abi::rpc::{Code, RpcError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::io;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use super::ledger_calls::{no_receipt, unreadable};
use super::{Ctxgraph, result};
use crate::counted::Counted;
use crate::notary::Notary;
use ::ledger::attestation::{self, Predicate};
use ::ledger::checkpoint::Checkpoint;
use ::ledger::frame::Source;
use ::ledger::merkle::Frontier;
use ::ledger::proof::Pass;
use ::ledger::{export, receipt, statement};

const PROGRESS_EVERY_BYTES: u64 = 8 << 20;

/// What was signed for one call.
struct Signed<'a> {
    notary: &'a Notary,
    checkpoint: Checkpoint,
    note: String,
}

impl Ctxgraph {
    pub(super) fn checkpoint(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let Nothing {} = call.request.params()?;
        let Signed { notary, note, .. } = self.signed()?;
        result(abi::control::Checkpoint { note, key: notary.signer().public().to_string() })
    }

    pub(super) fn prove(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let LedgerProve { seq } = call.request.params()?;
        let _place = reader(&self.readers)?;
        let Signed { notary, checkpoint, note } = self.signed()?;
        let pass = Pass::inclusion(seq, checkpoint.size).ok_or_else(|| {
            RpcError::new(
                Code::NOT_FOUND,
                format!("there is no event {seq}: the ledger has {}", checkpoint.size),
            )
            .explained("events are numbered from 0, and proved when they are durable", "nullctl ledger tail")
        })?;
        let path = self.path(pass, &checkpoint)?;
        let frame = self.ledger.frame(seq).map_err(unreadable)?.ok_or_else(changed)?;
        let receipts = receipt::sign(notary.signer(), &checkpoint.root);
        let proof = statement::inclusion(&note, checkpoint.size, seq, &frame, path, &receipts);
        result(proof.ok_or_else(changed)?)
    }

    pub(super) fn consistency(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let LedgerConsistency { size } = call.request.params()?;
        let _place = reader(&self.readers)?;
        let Signed { checkpoint, note, .. } = self.signed()?;
        let pass = Pass::consistency(size, checkpoint.size).ok_or_else(|| {
            let message =
                format!("the ledger has {} events and cannot go on from one of {size}", checkpoint.size);
            RpcError::new(Code::INVALID_PARAMS, message).explained(
                "an older ledger has at least one event, and not more than this one",
                "if the checkpoint is this node's, its ledger was set back: keep the disk as evidence",
            )
        })?;
        result(statement::consistency(&note, size, &self.path(pass, &checkpoint)?))
    }

    /// What cage verified: in the ledger, durable, before it is signed.
    pub(super) fn attest(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        if *call.caller != (Caller::Local { uid: 0 }) {
            return Err(RpcError::new(Code::DENIED, format!("{} verifies no patches", call.caller))
                .explained("only cage has patches attested", "there is no grant for it"));
        }
        let Attest { facts } = call.request.params()?;
        // Nothing is recorded that could not be signed.
        self.notary()?;
        let event = Event::PatchVerified { facts: Box::new(facts.clone()) };
        let receipts = self.ledger.append(Source::Service(Service::Ctxgraph), &[event], true);
        let receipt = receipts.map_err(|error| no_receipt(&error))?.into_iter().next().ok_or_else(changed)?;
        let Signed { notary, checkpoint, note } = self.signed()?;
        if checkpoint.size <= receipt.seq {
            return Err(changed());
        }
        let predicate = Predicate { facts, receipt, checkpoint: note };
        let envelope = attestation::sign(notary.signer(), predicate);
        let envelope =
            envelope.filter(|text| text.len() <= limits::ATTESTATION_BYTES_MAX).ok_or_else(changed)?;
        result(Attested { receipt, envelope })
    }

    pub(super) fn export(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let LedgerExport {} = call.request.params()?;
        let _place = reader(&self.readers)?;
        let Signed { notary, checkpoint, .. } = self.signed()?;
        let segments = self.ledger.segments(checkpoint.size).map_err(unreadable)?;
        // A reader that takes nothing for so long has its connection closed.
        let stall = Duration::from_millis(limits::LEDGER_FOLLOWER_STALL_MS_MAX);
        call.connection.stream().set_write_timeout(Some(stall)).map_err(|error| gone(&error))?;
        let head = export::head(&checkpoint, notary.signer());
        let total = head.len() as u64 + segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let begun = Instant::now();
        let mut out = Stream { call: &mut call, hash: Sha256::new(), bytes: 0, told: 0, total, begun };
        let sent = out.send(head.as_bytes()).and_then(|()| {
            segments.iter().try_for_each(|(first_seq, bytes)| self.send_segment(&mut out, *first_seq, *bytes))
        });
        let (bytes, digest) = (out.bytes, Digest(out.hash.finalize().into()));
        match sent {
            Ok(()) => result(Exported { entries: checkpoint.size, bytes, digest }),
            Err(error) => {
                abi::log::info("export_ended", &[("why", &error), ("bytes", &bytes)]);
                Ok(Outcome::Answered) // a line may be half written: the connection is closed
            }
        }
    }

    fn send_segment(&self, out: &mut Stream<'_, '_>, first_seq: u64, bytes: u64) -> io::Result<()> {
        let mut chunk = vec![0; limits::MEMORY_CHUNK_BYTES_MAX];
        let mut offset = 0;
        while offset < bytes {
            let left = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(chunk.len());
            let wanted = chunk.get_mut(..left).unwrap_or_default();
            let read = self.ledger.read_segment(first_seq, offset, wanted)?;
            if read == 0 {
                return Err(io::Error::other(format!("segment {first_seq} ends at its byte {offset}")));
            }
            out.send(wanted.get(..read).unwrap_or_default())?;
            offset += read as u64;
        }
        Ok(())
    }

    fn notary(&self) -> Result<&Notary, RpcError> {
        self.notary.as_deref().map_err(|why| {
            RpcError::new(Code::FAILED, format!("the ledger has no key to sign with: {why}")).explained(
                "checkpoints and proofs are signed with ledger.key, which is made at the first start and never replaced",
                "bring the file back; the ledger itself goes on",
            )
        })
    }

    /// The ledger of now.
    fn signed(&self) -> Result<Signed<'_>, RpcError> {
        let notary = self.notary()?;
        let snapshot = self.ledger.snapshot().map_err(|error| no_receipt(&error))?;
        let (checkpoint, note) = notary.sign(&snapshot).map_err(|error| {
            RpcError::new(Code::FAILED, format!("ledger.checkpoint cannot be written: {error}")).explained(
                "a checkpoint is kept on the node before it is handed out",
                "free space on the state partition, or replace its disk",
            )
        })?;
        Ok(Signed { notary, checkpoint, note })
    }

    /// Makes a path from the files, and makes sure that they have the tree that was signed.
    fn path(&self, mut pass: Pass, checkpoint: &Checkpoint) -> Result<Vec<Digest>, RpcError> {
        let mut tree = Frontier::default();
        let read = self.ledger.digests(checkpoint.size, |digest| {
            pass.push(&digest);
            tree.push(&digest);
        });
        read.map_err(unreadable)?;
        if tree.size() != checkpoint.size || tree.root() != checkpoint.root {
            return Err(changed());
        }
        pass.finish().ok_or_else(changed)
    }
}

fn changed() -> RpcError {
    RpcError::new(Code::FAILED, "the ledger's files are not what was written").explained(
        "a proof is made from the files, and its root compared with what was chained",
        "nullctl ledger verify tells the first wrong place",
    )
}

fn gone(error: &io::Error) -> RpcError {
    RpcError::new(Code::UNAVAILABLE, error.to_string()).explained("", "try again")
}

/// An export on its way.
struct Stream<'a, 'b> {
    call: &'a mut Call<'b>,
    hash: Sha256,
    bytes: u64,
    told: u64,
    total: u64,
    begun: Instant,
}

impl Stream<'_, '_> {
    /// At most [`limits::MEMORY_CHUNK_BYTES_MAX`] bytes.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        let chunk = MemoryChunk { data: STANDARD.encode(bytes) };
        self.call.notify("output", json!(chunk)).map_err(io::Error::other)?;
        if is_too_slow(self.bytes, self.begun.elapsed()) {
            return Err(io::Error::other("the reader is too slow"));
        }
        if self.bytes >= self.told + PROGRESS_EVERY_BYTES {
            self.told = self.bytes;
            let progress =
                Progress { stage: "export".into(), done: Some(self.bytes), total: Some(self.total) };
            self.call.notify("progress", json!(progress)).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Whether an export has taken too long for its bytes. A reader that takes a little before each stall would keep its place for ever.
fn is_too_slow(bytes: u64, taken: Duration) -> bool {
    let due = taken.as_secs().saturating_sub(limits::LEDGER_EXPORT_GRACE_S);
    bytes < due.saturating_mul(limits::LEDGER_EXPORT_BYTES_PER_S_MIN)
}

/// A place among those that read the ledger as a whole.
pub(super) fn reader(count: &AtomicUsize) -> Result<Counted<'_>, RpcError> {
    Counted::take(count, limits::LEDGER_READERS_MAX, || {
        RpcError::new(Code::LIMIT, "enough proofs, exports and checks are under way").explained(
            format!("each reads the whole ledger: {} at a time", limits::LEDGER_READERS_MAX),
            "try again when one is done",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_goes_on_only_as_fast_as_the_slowest_allowed_reader() {
        let at = |bytes, seconds| is_too_slow(bytes, Duration::from_secs(seconds));
        let (grace, rate) = (limits::LEDGER_EXPORT_GRACE_S, limits::LEDGER_EXPORT_BYTES_PER_S_MIN);
        assert!(!at(0, grace), "a stall ends it before");
        assert!(at(0, grace + 1) && at(rate - 1, grace + 1) && !at(rate, grace + 1));
        assert!(!at(rate * 100_000, grace + 100_000), "a long ledger takes its time");
        assert!(at(u64::MAX - 1, u64::MAX));
    }
}
