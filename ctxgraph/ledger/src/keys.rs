//! ed25519 keys in their forms: public text, SubjectPublicKeyInfo, fingerprint, PEM of the private key. docs/nullgate.md has them.
//!
//! Must never: show a private key through `Debug` or an error.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// DER before the 32 bytes of an ed25519 public key (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// DER before the 32 bytes of an ed25519 seed (RFC 8410 section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";
/// A key file is about 120 bytes; more than this is not one.
pub const KEY_FILE_BYTES_MAX: u64 = 4096;

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyTextError {
    #[error("`{0}` is not a public key: use ed25519: and base64 of its 32 bytes, as nullctl prints it")]
    Public(String),
    #[error("`{0}` is not a fingerprint: use SHA256: and 43 characters, as the node's console shows it")]
    Fingerprint(String),
}

/// An ed25519 public key. As text: `ed25519:` and base64 of its 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The key in a SubjectPublicKeyInfo, or none when it holds anything but ed25519 in its one DER form.
    pub fn from_spki(der: &[u8]) -> Option<PublicKey> {
        der.strip_prefix(SPKI_PREFIX.as_slice())?.try_into().ok().map(PublicKey)
    }

    /// The SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), &self.0].concat()
    }

    /// The SubjectPublicKeyInfo as PEM, as other tools want it.
    pub fn pem(&self) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(self.spki()))
    }

    /// What people compare.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(Sha256::digest(self.spki()).into())
    }

    /// Whether a signature is this key's over these bytes.
    pub fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(bytes, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", STANDARD.encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = KeyTextError;
    fn from_str(text: &str) -> Result<PublicKey, KeyTextError> {
        let bytes = text.strip_prefix("ed25519:").and_then(|rest| STANDARD.decode(rest).ok());
        let key = bytes.and_then(|bytes| bytes.try_into().ok()).map(PublicKey);
        key.ok_or_else(|| KeyTextError::Public(text.chars().take(80).collect()))
    }
}

/// `SHA256:` and base64 without padding, over the SubjectPublicKeyInfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", STANDARD_NO_PAD.encode(self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = KeyTextError;
    fn from_str(text: &str) -> Result<Fingerprint, KeyTextError> {
        let bytes = text.strip_prefix("SHA256:").and_then(|rest| STANDARD_NO_PAD.decode(rest).ok());
        let print = bytes.and_then(|bytes| bytes.try_into().ok()).map(Fingerprint);
        print.ok_or_else(|| KeyTextError::Fingerprint(text.chars().take(80).collect()))
    }
}

/// The PKCS#8 form of a seed.
pub fn pkcs8(seed: &[u8; 32]) -> Vec<u8> {
    [PKCS8_PREFIX.as_slice(), seed].concat()
}

/// The file of a private key.
pub fn encode_pem(pkcs8: &[u8]) -> String {
    format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", STANDARD.encode(pkcs8))
}

/// The PKCS#8 inside the one PEM block of a text.
pub fn decode_pem(text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(PEM_BEGIN)?;
    let (body, _) = rest.split_once(PEM_END)?;
    let compact: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(compact).ok()
}

/// An ed25519 private key, ready to sign.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer of {}", self.public)
    }
}

impl Signer {
    /// The key with a seed.
    pub fn from_seed(seed: &[u8; 32]) -> Option<Signer> {
        Signer::from_pkcs8(&pkcs8(seed))
    }

    /// The key in the text of a key file.
    pub fn from_pem(text: &str) -> Option<Signer> {
        Signer::from_pkcs8(&decode_pem(text)?)
    }

    fn from_pkcs8(der: &[u8]) -> Option<Signer> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Signer { pair, public })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The 64 bytes of a signature.
    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_test_vector_gives_its_public_key_and_signature() {
        // RFC 8032 section 7.1, test 1.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&seed[2 * i..2 * i + 2], 16).unwrap()).collect();
        let signer = Signer::from_seed(&seed.clone().try_into().unwrap()).unwrap();
        assert_eq!(signer.public().to_string(), "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
        let signature = signer.sign(b"");
        assert_eq!(signature[..4], [0xe5, 0x56, 0x43, 0x00]);
        assert!(signer.public().has_signed(b"", &signature));
        assert!(!signer.public().has_signed(b"x", &signature));
        let pem = encode_pem(&pkcs8(&seed.try_into().unwrap()));
        assert_eq!(Signer::from_pem(&pem).unwrap().public(), signer.public());
        assert!(!format!("{signer:?}").contains(&pem[40..60]));
    }

    #[test]
    fn texts_read_back_and_wrong_ones_are_refused() {
        let key = Signer::from_seed(&[7; 32]).unwrap().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        let print = key.fingerprint();
        assert_eq!(print.to_string().parse(), Ok(print));
        assert_eq!(PublicKey::from_spki(&key.spki()), Some(key));
        for bad in [
            "",
            "ed25519:",
            "ed25519:AAAA",
            "rsa:AAAA",
            "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        ] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        for bad in ["", "SHA256:", "SHA256:AAAA", "sha256:AAAA", "MD5:00"] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
        assert!(PublicKey::from_spki(&[0; 44]).is_none());
        assert!(PublicKey::from_spki(&[key.spki(), vec![0]].concat()).is_none());
        assert!(Signer::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_none());
    }
}
