//! A [`VerifiedPatch`]: the only thing that makes a task done, and the only ways to one.

use abi::authority::Operation;
use abi::guest::Exit;
use abi::ids::Digest;
use abi::limits;
use alloc::format;
use alloc::string::String;
use serde::{Deserialize, Serialize};

use super::ChangeSet;
use crate::approvals::Spent;

/// What the host saw of the VM that ran the verify command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Digest of the base that stood in its layer.
    pub base: Digest,
    /// Digest of all that the layer's writer wrote: the tree that the command ran on.
    pub result: Digest,
    pub exit: Exit,
    /// Of both outputs.
    pub output_bytes: u64,
    pub wall_ms: u64,
    pub wall_ms_max: u64,
}

/// A change set that a fresh VM ran the verify command on, and it ended well. Not `Clone`: what uses it up takes it by value.
#[derive(Debug, PartialEq, Eq)]
pub struct VerifiedPatch {
    changes: ChangeSet,
}

/// That a [`VerifiedPatch`] with these digests was made. Only from one, or from the state that cage keeps on its own disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    base: Digest,
    patch: Digest,
    result: Digest,
}

/// What the ledger's `patch_verified` holds of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub base: Digest,
    pub patch: Digest,
    pub result: Digest,
}

/// Why no patch was minted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MintError {
    /// The command ran on another base.
    Base { ran: Digest, judged: Digest },
    /// The command ran on another tree than base and change set make.
    Result { ran: Digest, judged: Digest },
    /// It did not end with code 0, in these words.
    Exit(String),
    /// It wrote more than [`limits::VERIFY_OUTPUT_BYTES_MAX`], or not all of it was taken.
    Output { bytes: u64, dropped: u64 },
    /// It took longer than it may.
    Time { wall_ms: u64, wall_ms_max: u64 },
    /// The ledger speaks of another patch.
    Recorded,
}

impl core::fmt::Display for MintError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            MintError::Base { ran, judged } => {
                write!(f, "the command ran on base {ran}, the change set is of {judged}")
            }
            MintError::Result { ran, judged } => {
                write!(f, "the command ran on tree {ran}, base and change set make {judged}")
            }
            MintError::Exit(how) => write!(f, "the verify command {how}"),
            MintError::Output { bytes, dropped } => write!(
                f,
                "the verify command wrote {bytes} bytes, {dropped} of them lost; at most {} may be",
                limits::VERIFY_OUTPUT_BYTES_MAX
            ),
            MintError::Time { wall_ms, wall_ms_max } => {
                write!(f, "the verify command ran {wall_ms} ms, at most {wall_ms_max} ms may be")
            }
            MintError::Recorded => write!(f, "the ledger's receipt is of another patch"),
        }
    }
}

impl core::error::Error for MintError {}

/// Makes a verified patch of a change set and what the host saw of its verification.
pub fn mint(changes: ChangeSet, seen: &Verification) -> Result<VerifiedPatch, MintError> {
    if seen.base != changes.base {
        return Err(MintError::Base { ran: seen.base, judged: changes.base });
    }
    if seen.result != changes.result {
        return Err(MintError::Result { ran: seen.result, judged: changes.result });
    }
    if let Some(how) = ended_badly(&seen.exit) {
        return Err(MintError::Exit(how));
    }
    if seen.output_bytes > limits::VERIFY_OUTPUT_BYTES_MAX || seen.exit.dropped_bytes > 0 {
        return Err(MintError::Output { bytes: seen.output_bytes, dropped: seen.exit.dropped_bytes });
    }
    if seen.wall_ms > seen.wall_ms_max {
        return Err(MintError::Time { wall_ms: seen.wall_ms, wall_ms_max: seen.wall_ms_max });
    }
    Ok(VerifiedPatch { changes })
}

fn ended_badly(exit: &Exit) -> Option<String> {
    match (exit.code, exit.signal) {
        _ if exit.oom_killed => Some("ran out of memory".into()),
        (Some(0), None) => None,
        (_, Some(signal)) => Some(format!("was ended by signal {signal}")),
        (Some(code), None) => Some(format!("ended with code {code}")),
        (None, None) => Some("has no exit code".into()),
    }
}

/// The same patch again after cage was begun again: its change set from cage's disk, and what the ledger holds of its verification.
pub fn reminted(changes: ChangeSet, recorded: &Recorded) -> Result<VerifiedPatch, MintError> {
    let same = changes.base == recorded.base
        && changes.result == recorded.result
        && changes.digest() == recorded.patch;
    if same { Ok(VerifiedPatch { changes }) } else { Err(MintError::Recorded) }
}

impl VerifiedPatch {
    /// What it changes.
    pub fn changes(&self) -> &ChangeSet {
        &self.changes
    }

    /// What `step` wants to see of it.
    pub fn proof(&self) -> Proof {
        Proof { base: self.changes.base, patch: self.changes.digest(), result: self.changes.result }
    }
}

impl Proof {
    /// Digest of the base tree.
    pub fn base(&self) -> Digest {
        self.base
    }

    /// Digest of the patch.
    pub fn patch(&self) -> Digest {
        self.patch
    }

    /// Digest of the base with the patch.
    pub fn result(&self) -> Digest {
        self.result
    }
}

/// A patch that may go to one place, once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the approval is used up"]
pub struct Integration {
    proof: Proof,
    approval: u64,
    by: String,
}

/// Why a patch may not go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegrateError {
    /// What was approved is no step with a patch.
    Operation(Operation),
    /// The approval is for another patch, another place or another task.
    Other,
}

impl core::fmt::Display for IntegrateError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            IntegrateError::Operation(operation) => write!(f, "`{operation}` is no step with a patch"),
            IntegrateError::Other => write!(f, "the approval is not for this step with this patch"),
        }
    }
}

impl core::error::Error for IntegrateError {}

/// What a question about a step with a patch has as its arguments: nothing but this patch to this place. `step`: its words, as the ledger has them.
pub fn step_arguments(proof: &Proof, step: &str) -> Digest {
    crate::tree::sha256(format!("nullbox-step-1\n{}\n{step}\n", proof.patch.hex()).as_bytes())
}

/// Uses up the patch and the approval. What is refused is used up too: whoever may try twice could try until it fits.
pub fn integrate(
    patch: VerifiedPatch,
    spent: Spent,
    task: &str,
    step: &str,
) -> Result<Integration, IntegrateError> {
    let (key, proof) = (spent.key(), patch.proof());
    if !matches!(key.operation, Operation::GitCommit | Operation::GitPush | Operation::CreatePr) {
        return Err(IntegrateError::Operation(key.operation));
    }
    if key.owner != task || key.arguments != step_arguments(&proof, step) {
        return Err(IntegrateError::Other);
    }
    Ok(Integration { proof, approval: spent.id(), by: spent.by().into() })
}

impl Integration {
    /// Of the patch.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// The question's number.
    pub fn approval(&self) -> u64 {
        self.approval
    }

    /// Who approved.
    pub fn by(&self) -> &str {
        &self.by
    }
}
