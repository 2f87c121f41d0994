//! Attestations of verified patches: an in-toto Statement v1 in a DSSE envelope, signed with the ledger's key. docs/tasks.md says what it means.
//!
//! Must hold: an [`Attestation`] comes out of a text only if the key signed it, and only out of the one form that is written here; what it
//! says of the ledger is signed with the same key. Must never: hold what an agent said.

use abi::control::PatchFacts;
use abi::ids::Digest;
use abi::ledger::Receipt;
use abi::limits;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::keys::{Fingerprint, PublicKey, Signer};

/// Type of the payload (in-toto's, for DSSE).
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Type of the predicate.
pub const PREDICATE_TYPE: &str = "https://nullbox.dev/attestation/verified-patch/v1";
/// Names of the subjects: the first lines of the texts whose SHA-256 the digests are.
const SUBJECTS: [&str; 2] = ["nullbox-tree-1", "nullbox-patch-1"];

/// What was verified, and where the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicate {
    pub facts: PatchFacts,
    /// Of the event `patch_verified`.
    pub receipt: Receipt,
    /// The ledger with that event in it: a signed note, as `ledger.checkpoint` gives it.
    pub checkpoint: String,
}

/// An attestation that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    pub facts: PatchFacts,
    pub receipt: Receipt,
    pub checkpoint: Checkpoint,
}

/// Why a text is no attestation.
#[derive(Debug, thiserror::Error)]
pub enum AttestationError {
    #[error("not a DSSE envelope: {0}")]
    Envelope(String),
    #[error("the payload is `{0}`, and an attestation's is `{PAYLOAD_TYPE}`")]
    PayloadType(String),
    #[error("the attestation is not signed with the key {0}")]
    OtherKey(Fingerprint),
    #[error("the attestation was changed: its signature is not over this text")]
    Forged,
    #[error("not a statement of a verified patch: {0}")]
    Statement(String),
    #[error("the ledger in it: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("the ledger in it has {size} events, and the receipt is of event {seq}")]
    Receipt { size: u64, seq: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: String,
    sig: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

/// The envelope, as JSON text. None only where JSON cannot hold it.
pub fn sign(signer: &Signer, predicate: Predicate) -> Option<String> {
    let payload = serde_json::to_vec(&statement(predicate)).ok()?;
    let sig = STANDARD.encode(signer.sign(&pre_authentication(PAYLOAD_TYPE, &payload)));
    let envelope = Envelope {
        payload: STANDARD.encode(&payload),
        payload_type: PAYLOAD_TYPE.to_owned(),
        signatures: vec![Signature { keyid: signer.public().to_string(), sig }],
    };
    serde_json::to_string(&envelope).ok()
}

/// The attestation that a text is, if it has this key's signature. Signatures of others beside it are passed over.
pub fn open(text: &str, key: &PublicKey) -> Result<Attestation, AttestationError> {
    if text.len() > limits::ATTESTATION_BYTES_MAX {
        return Err(AttestationError::Envelope(format!("more than {} bytes", limits::ATTESTATION_BYTES_MAX)));
    }
    let envelope: Envelope =
        serde_json::from_str(text).map_err(|error| AttestationError::Envelope(error.to_string()))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(AttestationError::PayloadType(envelope.payload_type.chars().take(100).collect()));
    }
    let decoded = |field: &str, text: &str| {
        STANDARD.decode(text).map_err(|error| AttestationError::Envelope(format!("{field}: {error}")))
    };
    let payload = decoded("payload", &envelope.payload)?;
    let signed = pre_authentication(PAYLOAD_TYPE, &payload);
    let own = envelope.signatures.iter().find(|signature| signature.keyid == key.to_string());
    let own = own.ok_or_else(|| AttestationError::OtherKey(key.fingerprint()))?;
    if !key.has_signed(&signed, &decoded("sig", &own.sig)?) {
        return Err(AttestationError::Forged);
    }
    let predicate = predicate_of(&payload)?;
    let checkpoint = Checkpoint::open(&predicate.checkpoint, key)?;
    if predicate.receipt.seq >= checkpoint.size {
        return Err(AttestationError::Receipt { size: checkpoint.size, seq: predicate.receipt.seq });
    }
    Ok(Attestation { facts: predicate.facts, receipt: predicate.receipt, checkpoint })
}

fn predicate_of(payload: &[u8]) -> Result<Predicate, AttestationError> {
    let wrong = |why: String| AttestationError::Statement(why);
    let found: Statement = serde_json::from_slice(payload).map_err(|error| wrong(error.to_string()))?;
    // Types, subjects and the order of all follow from the predicate: what is written otherwise says something else to somebody.
    let expected = statement(found.predicate);
    let again = serde_json::to_vec(&expected).map_err(|error| wrong(error.to_string()))?;
    if again != payload {
        return Err(wrong("its types, subjects or form are not those of its predicate".into()));
    }
    Ok(expected.predicate)
}

fn statement(predicate: Predicate) -> Statement {
    let digests = [&predicate.facts.result, &predicate.facts.patch];
    let subject = |(name, digest): (&str, &Digest)| Subject {
        name: name.to_owned(),
        digest: BTreeMap::from([("sha256".to_owned(), digest.hex())]),
    };
    Statement {
        statement_type: STATEMENT_TYPE.to_owned(),
        subject: SUBJECTS.into_iter().zip(digests).map(subject).collect(),
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate,
    }
}

/// DSSE's PAE: what is signed.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_the_encoding_of_dsses_own_example() {
        // secure-systems-lab/dsse, protocol.md.
        let encoded = pre_authentication("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }
}
