//! COSE receipts (RFC 9942): that a frame is in the tree, in a form that others' verifiers read.
//!
//! Must hold: a receipt is taken only in the one form that is written here, so no byte of it can be another.

use abi::ids::Digest;
use abi::limits;
use coset::cbor::Value;
use coset::{
    CborSerializable, CoseError, CoseSign1, CoseSign1Builder, HeaderBuilder, Label, TaggedCborSerializable,
    iana,
};

use crate::keys::{PublicKey, Signer};
use crate::proof;

/// Header parameter: kind of verifiable data structure.
const STRUCTURE: i64 = 395;
/// ... which is RFC9162_SHA256.
const RFC9162_SHA256: i64 = 1;
/// Header parameter: proofs in it.
const PROOFS: i64 = 396;
/// ... of which these are of inclusion.
const INCLUSION: i64 = -1;

/// Why bytes are no receipt for a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    #[error("not a COSE receipt with one RFC9162_SHA256 inclusion proof")]
    Form,
    #[error("the path in the receipt does not lead from this event to a root")]
    Path,
    #[error("the receipt's signature is not the key's over the root that its path leads to")]
    Signature,
}

/// Where a frame stands, as a receipt says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub size: u64,
    pub seq: u64,
    pub path: Vec<Digest>,
}

/// The signature that all receipts with this root have.
pub fn sign(signer: &Signer, root: &Digest) -> Vec<u8> {
    let message = CoseSign1Builder::new().protected(protected());
    message.create_detached_signature(&root.0, b"", |bytes| signer.sign(bytes)).build().signature
}

/// Whether a signature is one for receipts with this root.
pub fn has_signed(key: &PublicKey, root: &Digest, signature: &[u8]) -> bool {
    let message = CoseSign1Builder::new().protected(protected()).signature(signature.to_vec()).build();
    message
        .verify_detached_signature(&root.0, b"", |signature, bytes| {
            key.has_signed(bytes, signature).then_some(()).ok_or(())
        })
        .is_ok()
}

/// The receipt's bytes. None only where CBOR cannot hold it.
pub fn encode(standing: &Standing, signature: &[u8]) -> Option<Vec<u8>> {
    let path = standing.path.iter().map(|hash| Value::Bytes(hash.0.to_vec())).collect();
    let proof = Value::Array(vec![standing.size.into(), standing.seq.into(), Value::Array(path)]);
    let proofs = Value::Array(vec![Value::Bytes(proof.to_vec().ok()?)]);
    let unprotected =
        HeaderBuilder::new().value(PROOFS, Value::Map(vec![(INCLUSION.into(), proofs)])).build();
    let message = CoseSign1Builder::new().protected(protected()).unprotected(unprotected);
    message.signature(signature.to_vec()).build().to_tagged_vec().ok()
}

fn protected() -> coset::Header {
    HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).value(STRUCTURE, RFC9162_SHA256.into()).build()
}

/// Where the frame with this digest stands, if the key says so in this receipt; and the root.
pub fn open(bytes: &[u8], key: &PublicKey, frame: &Digest) -> Result<(Standing, Digest), ReceiptError> {
    if bytes.len() > limits::LEDGER_RECEIPT_BYTES_MAX {
        return Err(ReceiptError::Form);
    }
    let message = CoseSign1::from_tagged_slice(bytes).map_err(|_: CoseError| ReceiptError::Form)?;
    let standing = standing_of(&message).ok_or(ReceiptError::Form)?;
    // All that was not looked at, the headers among it, is as it is written here.
    if encode(&standing, &message.signature).as_deref() != Some(bytes) {
        return Err(ReceiptError::Form);
    }
    let root =
        proof::root_of(frame, standing.seq, standing.size, &standing.path).ok_or(ReceiptError::Path)?;
    if !has_signed(key, &root, &message.signature) {
        return Err(ReceiptError::Signature);
    }
    Ok((standing, root))
}

fn standing_of(message: &CoseSign1) -> Option<Standing> {
    let rest = &message.unprotected.rest;
    let (_, proofs) = rest.iter().find(|(label, _)| *label == Label::Int(PROOFS))?;
    let [(_, proofs)] = proofs.as_map()?.as_slice() else { return None };
    let [proof] = proofs.as_array()?.as_slice() else { return None };
    let proof = Value::from_slice(proof.as_bytes()?).ok()?;
    let [size, seq, path] = proof.as_array()?.as_slice() else { return None };
    let number = |value: &Value| u64::try_from(value.as_integer()?).ok();
    let hash = |value: &Value| Some(Digest(value.as_bytes()?.as_slice().try_into().ok()?));
    Some(Standing {
        size: number(size)?,
        seq: number(seq)?,
        path: path.as_array()?.iter().map(hash).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Frontier;
    use crate::proof::Pass;
    use proptest::prelude::*;

    fn signer() -> Signer {
        Signer::from_seed(&[1; 32]).unwrap()
    }

    fn receipt(seq: u64, size: u64) -> (Vec<u8>, Digest) {
        let (mut pass, mut tree) = (Pass::inclusion(seq, size).unwrap(), Frontier::default());
        for n in 0..size {
            pass.push(&Digest([n as u8; 32]));
            tree.push(&Digest([n as u8; 32]));
        }
        let standing = Standing { size, seq, path: pass.finish().unwrap() };
        (encode(&standing, &sign(&signer(), &tree.root())).unwrap(), tree.root())
    }

    #[test]
    fn a_receipt_reads_back_for_its_event_and_key_only() {
        for (seq, size) in [(0, 1), (3, 7), (6, 7), (100, 200)] {
            let (bytes, root) = receipt(seq, size);
            let frame = Digest([seq as u8; 32]);
            let (standing, found) = open(&bytes, &signer().public(), &frame).unwrap();
            assert_eq!((standing.seq, standing.size, found), (seq, size, root));
            assert_eq!(
                open(&bytes, &signer().public(), &Digest([99; 32])).unwrap_err(),
                ReceiptError::Signature,
                "another event"
            );
            let other = Signer::from_seed(&[2; 32]).unwrap();
            assert_eq!(open(&bytes, &other.public(), &frame).unwrap_err(), ReceiptError::Signature);
        }
    }

    #[test]
    fn no_bit_of_a_receipt_can_be_another_but_of_the_size() {
        let (bytes, root) = receipt(3, 7);
        let take = |bytes: &[u8]| open(bytes, &signer().public(), &Digest([3; 32]));
        let (right, _) = take(&bytes).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                // A tree of 6 has the same path for event 3, and a receipt signs the root only; the checkpoint signs the size.
                if let Ok((found, same)) = take(&changed) {
                    assert_eq!(
                        (found.seq, &found.path, same),
                        (3, &right.path, root),
                        "bit {bit} of byte {at}"
                    );
                    assert_ne!(found.size, 7);
                }
            }
            assert!(take(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(take(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn it_is_what_rfc_9942_says_byte_by_byte() {
        let (bytes, _) = receipt(0, 1);
        // 18([<<{1: -8, 395: 1}>>, {396: {-1: [<<[1, 0, []]>>]}}, nil, signature])
        let due = [
            0xd2, 0x84, 0x47, 0xa2, 0x01, 0x27, 0x19, 0x01, 0x8b, 0x01, // protected
            0xa1, 0x19, 0x01, 0x8c, 0xa1, 0x20, 0x81, 0x44, 0x83, 0x01, 0x00, 0x80, // unprotected
            0xf6, 0x58, 0x40, // payload, and the signature's length
        ];
        assert_eq!(bytes[..due.len()], due);
        assert_eq!(bytes.len(), due.len() + 64);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(&bytes, &signer().public(), &Digest([3; 32])).is_err());
        }
    }
}
