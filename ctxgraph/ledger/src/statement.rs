//! What is told of the ledger as one JSON object: that an event stands in it, that it goes on from an older one.
//!
//! Must hold: what a check hands out was covered by the key's signature.

use abi::control::{Consistency, Proof};
use abi::ids::Digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::frame::{self, Frame, FrameError};
use crate::keys::PublicKey;
use crate::proof;
use crate::receipt::{self, ReceiptError, Standing};

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("`{0}` is not what a proof has there")]
    Field(&'static str),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the proof's event: {0}")]
    Frame(#[from] FrameError),
    #[error("the proof says event {said}, and its event says {found}")]
    Seq { said: u64, found: u64 },
    #[error("the path does not lead from event {seq} to the signed root of {size} events")]
    Inclusion { seq: u64, size: u64 },
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    #[error("the COSE receipt is of another place or tree than the proof")]
    OtherReceipt,
    #[error("the older checkpoint has {found} events, and the proof is for one with {said}")]
    Size { said: u64, found: u64 },
    #[error("the older checkpoint is of another ledger")]
    OtherLedger,
    #[error(
        "the ledger of {size} events does not go on from the older checkpoint of {old}: rewritten or set back before it"
    )]
    Consistency { old: u64, size: u64 },
}

/// A proof of inclusion, from its parts. `signature` is that of receipts with the checkpoint's root. None if a receipt cannot hold it.
pub fn inclusion(
    note: &str,
    size: u64,
    seq: u64,
    frame: &[u8],
    path: Vec<Digest>,
    signature: &[u8],
) -> Option<Proof> {
    let standing = Standing { size, seq, path };
    Some(Proof {
        nullbox_proof: "inclusion".into(),
        seq,
        frame: STANDARD.encode(frame),
        checkpoint: note.into(),
        path: standing.path.iter().map(Digest::hex).collect(),
        receipt: STANDARD.encode(receipt::encode(&standing, signature)?),
    })
}

/// A proof of consistency, from its parts.
pub fn consistency(note: &str, old: u64, path: &[Digest]) -> Consistency {
    let path = path.iter().map(Digest::hex).collect();
    Consistency { nullbox_proof: "consistency".into(), size: old, checkpoint: note.into(), path }
}

/// The event that a proof of inclusion is of, and the ledger in which it stands.
pub fn check_inclusion(proof: &Proof, key: &PublicKey) -> Result<(Frame, Checkpoint), ProofError> {
    if proof.nullbox_proof != "inclusion" {
        return Err(ProofError::Field("nullbox_proof"));
    }
    let checkpoint = Checkpoint::open(&proof.checkpoint, key)?;
    let bytes = STANDARD.decode(&proof.frame).map_err(|_| ProofError::Field("frame"))?;
    let frame = frame::decode(&bytes)?;
    if frame::frame_length(&bytes)? != bytes.len() {
        return Err(ProofError::Field("frame"));
    }
    if frame.seq != proof.seq {
        return Err(ProofError::Seq { said: proof.seq, found: frame.seq });
    }
    let path = hashes(&proof.path)?;
    if proof::root_of(&frame.digest, frame.seq, checkpoint.size, &path) != Some(checkpoint.root) {
        return Err(ProofError::Inclusion { seq: frame.seq, size: checkpoint.size });
    }
    let receipt = STANDARD.decode(&proof.receipt).map_err(|_| ProofError::Field("receipt"))?;
    let (standing, root) = receipt::open(&receipt, key, &frame.digest)?;
    if root != checkpoint.root || standing != (Standing { size: checkpoint.size, seq: frame.seq, path }) {
        return Err(ProofError::OtherReceipt);
    }
    Ok((frame, checkpoint))
}

/// The later ledger that goes on from an older one, which was opened with the same key.
pub fn check_consistency(
    proof: &Consistency,
    since: &Checkpoint,
    key: &PublicKey,
) -> Result<Checkpoint, ProofError> {
    if proof.nullbox_proof != "consistency" {
        return Err(ProofError::Field("nullbox_proof"));
    }
    let checkpoint = Checkpoint::open(&proof.checkpoint, key)?;
    if since.ledger_id != checkpoint.ledger_id {
        return Err(ProofError::OtherLedger);
    }
    if since.size != proof.size {
        return Err(ProofError::Size { said: proof.size, found: since.size });
    }
    let path = hashes(&proof.path)?;
    let (old, size) = (since.size, checkpoint.size);
    if !proof::goes_on(old, &since.root, size, &checkpoint.root, &path)
        || (old == size && since.head != checkpoint.head)
    {
        return Err(ProofError::Consistency { old, size });
    }
    Ok(checkpoint)
}

fn hashes(path: &[String]) -> Result<Vec<Digest>, ProofError> {
    let hash = |hex: &String| format!("sha256:{hex}").parse().map_err(|_| ProofError::Field("path"));
    path.iter().map(hash).collect()
}
