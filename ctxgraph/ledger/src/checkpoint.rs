//! Checkpoints: what the ledger is at one time, signed with its key. A C2SP signed note with the body of a tlog-checkpoint.
//!
//! Must hold: a [`Checkpoint`] comes out of a text only if the key signed that text, and only out of the one text that it makes.

use abi::ids::Digest;
use abi::limits;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::keys::{Fingerprint, PublicKey, Signer};

const ORIGIN: &str = "nullbox.ledger/";
/// Type of an ed25519 signature in a signed note.
const ED25519: u8 = 1;

/// What the ledger is after some frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub ledger_id: [u8; 32],
    /// Frames.
    pub size: u64,
    /// The tree's.
    pub root: Digest,
    /// Digest of the last frame; zero when there is none.
    pub head: Digest,
    /// The node's clock.
    pub unix_ms: u64,
}

/// Why a text is no checkpoint of a ledger's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error("not a checkpoint of a NullBox ledger: {0}")]
    Text(&'static str),
    #[error("the checkpoint is not signed with the key {0}")]
    OtherKey(Fingerprint),
    #[error("the checkpoint was changed: its signature is not over this text")]
    Forged,
}

impl Checkpoint {
    /// The name its key signs under.
    fn origin(&self) -> String {
        format!("{ORIGIN}{}", Digest(self.ledger_id).hex())
    }

    /// The text that is signed.
    fn text(&self) -> String {
        let root = STANDARD.encode(self.root.0);
        format!("{}\n{}\n{root}\nhead {}\ntime {}\n", self.origin(), self.size, self.head, self.unix_ms)
    }

    /// The note: the text, and the signature of it.
    pub fn sign(&self, signer: &Signer) -> String {
        let (text, origin) = (self.text(), self.origin());
        let signature =
            [key_id(&origin, &signer.public()).as_slice(), &signer.sign(text.as_bytes())].concat();
        format!("{text}\n\u{2014} {origin} {}\n", STANDARD.encode(signature))
    }

    /// The checkpoint that a note is, if it has this key's signature. Signatures of others beside it are passed over.
    pub fn open(note: &str, key: &PublicKey) -> Result<Checkpoint, CheckpointError> {
        if note.len() > limits::LEDGER_NOTE_BYTES_MAX {
            return Err(CheckpointError::Text("it is too long"));
        }
        let (text, signatures) = note
            .split_once("\n\n")
            .ok_or(CheckpointError::Text("there is no empty line before its signature"))?;
        let checkpoint = parse(text).ok_or(CheckpointError::Text(
            "its lines are origin, size, root, `head` and `time`, as docs/formats/ctxgraph.md has them",
        ))?;
        let text = format!("{text}\n");
        if checkpoint.text() != text {
            return Err(CheckpointError::Text("a number or digest is not written in its one form"));
        }
        let origin = checkpoint.origin();
        let id = key_id(&origin, key);
        let mut found = Err(CheckpointError::OtherKey(key.fingerprint()));
        let signatures =
            signatures.strip_suffix('\n').ok_or(CheckpointError::Text("its last line has no end"))?;
        for (name, signature) in signatures.split('\n').map(signature_of).collect::<Option<Vec<_>>>().ok_or(
            CheckpointError::Text("a signature's line is a dash, a name and base64, joined by blanks"),
        )? {
            match signature.split_first_chunk::<4>() {
                Some((first, rest)) if name == origin && *first == id => {
                    if !key.has_signed(text.as_bytes(), rest) {
                        return Err(CheckpointError::Forged);
                    }
                    found = Ok(());
                }
                _ => {}
            }
        }
        found.map(|()| checkpoint)
    }
}

fn parse(text: &str) -> Option<Checkpoint> {
    let mut lines = text.split('\n');
    let id: Digest = format!("sha256:{}", lines.next()?.strip_prefix(ORIGIN)?).parse().ok()?;
    let checkpoint = Checkpoint {
        ledger_id: id.0,
        size: lines.next()?.parse().ok()?,
        root: Digest(STANDARD.decode(lines.next()?).ok()?.try_into().ok()?),
        head: lines.next()?.strip_prefix("head ")?.parse().ok()?,
        unix_ms: lines.next()?.strip_prefix("time ")?.parse().ok()?,
    };
    lines.next().is_none().then_some(checkpoint)
}

/// Name and bytes of a signature's line.
fn signature_of(line: &str) -> Option<(&str, Vec<u8>)> {
    let (name, bytes) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    Some((name, STANDARD.decode(bytes).ok()?))
}

/// What tells keys of one name apart: see c2sp.org/signed-note.
fn key_id(name: &str, key: &PublicKey) -> [u8; 4] {
    let hash = Sha256::new().chain_update(name).chain_update([b'\n', ED25519]).chain_update(key.0).finalize();
    let [a, b, c, d, ..]: [u8; 32] = hash.into();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signer(seed: u8) -> Signer {
        Signer::from_seed(&[seed; 32]).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            ledger_id: [0xab; 32],
            size: 7,
            root: Digest([2; 32]),
            head: Digest([3; 32]),
            unix_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn a_note_reads_back_with_its_key_only() {
        let note = checkpoint().sign(&signer(1));
        assert_eq!(Checkpoint::open(&note, &signer(1).public()), Ok(checkpoint()));
        let other = signer(2).public();
        assert_eq!(
            Checkpoint::open(&note, &other),
            Err(CheckpointError::OtherKey(other.fingerprint())),
            "another key"
        );
    }

    #[test]
    fn no_bit_of_a_note_can_be_another() {
        let note = checkpoint().sign(&signer(1));
        for at in 0..note.len() {
            for bit in 0..8 {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                if let Ok(text) = String::from_utf8(bytes) {
                    assert!(Checkpoint::open(&text, &signer(1).public()).is_err(), "bit {bit} of byte {at}");
                }
            }
        }
        for length in 0..note.len() {
            if let Some(cut) = note.get(..length) {
                assert!(Checkpoint::open(cut, &signer(1).public()).is_err(), "cut at {length}");
            }
        }
    }

    #[test]
    fn other_numbers_and_other_forms_of_them_are_refused() {
        let key = signer(1).public();
        let (note, root) = (checkpoint().sign(&signer(1)), STANDARD.encode([2; 32]));
        let other_root = STANDARD.encode([4; 32]);
        for (from, to) in [
            ("\n7\n", "\n8\n"),
            ("\n7\n", "\n07\n"),
            ("\n7\n", "\n+7\n"),
            (root.as_str(), other_root.as_str()),
            ("time 17", "time 18"),
            ("nullbox.ledger/ab", "nullbox.ledger/AB"),
            ("head sha256:03", "head sha256:04"),
            ("\n\n", "\nextra line\n\n"),
            ("\n\n", "\n\n\n"),
        ] {
            let changed = note.replacen(from, to, 1);
            assert_ne!(changed, note);
            assert!(Checkpoint::open(&changed, &key).is_err(), "{from:?} to {to:?}");
        }
        let forged = checkpoint().sign(&signer(2)).replace(
            &STANDARD.encode(key_id(&checkpoint().origin(), &signer(2).public()))[..5],
            &STANDARD.encode(key_id(&checkpoint().origin(), &key))[..5],
        );
        assert!(Checkpoint::open(&forged, &key).is_err(), "another key under this key's id");
    }

    #[test]
    fn a_witness_may_sign_beside() {
        let note = format!("{}\u{2014} witness.example AAAAAAAA\n", checkpoint().sign(&signer(1)));
        assert_eq!(Checkpoint::open(&note, &signer(1).public()), Ok(checkpoint()));
        let long = note.clone() + &"\u{2014} witness.example AAAAAAAA\n".repeat(1000);
        assert_eq!(
            Checkpoint::open(&long, &signer(1).public()),
            Err(CheckpointError::Text("it is too long"))
        );
    }

    proptest! {
        #[test]
        fn any_checkpoint_reads_back(id: [u8; 32], size: u64, root: [u8; 32], head: [u8; 32], unix_ms: u64) {
            let made = Checkpoint { ledger_id: id, size, root: Digest(root), head: Digest(head), unix_ms };
            prop_assert_eq!(Checkpoint::open(&made.sign(&signer(1)), &signer(1).public()), Ok(made));
        }

        #[test]
        fn no_text_is_a_checkpoint_by_chance(text in "[\\PC\n]{0,300}") {
            prop_assert!(Checkpoint::open(&text, &signer(1).public()).is_err());
        }
    }
}
