//! The files of ed25519 keys, and the keys as rustls wants them. Their other forms are `ledger::keys`'.
//!
//! Must hold: a private key file is written once, whole, durable, mode 0600; it is never replaced.
//! Must never: show a private key through `Debug`, an error or a log.

pub use ledger::keys::{Fingerprint, KeyTextError, PublicKey};
use ledger::keys::{KEY_FILE_BYTES_MAX, decode_pem, encode_pem, pkcs8};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot {action} {path}: {error}")]
    File { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{path} is not an ed25519 private key in PEM (PKCS#8): make one with nullctl key gen")]
    NotAKey { path: PathBuf },
    #[error("{path} can be read by others (mode {mode:o}): chmod 600 {path}")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the system has no random numbers")]
    Random,
}

/// An ed25519 private key, ready to sign.
#[derive(Clone)]
pub struct PrivateKey {
    signing: Arc<dyn SigningKey>,
    public: PublicKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey of {}", self.public)
    }
}

impl PrivateKey {
    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The key as rustls wants it for raw public keys: the "certificate" is the SubjectPublicKeyInfo.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::new(CertifiedKey::new(vec![self.public.spki().into()], self.signing.clone()))
    }

    /// Reads a key file. It must be readable by its owner only.
    pub fn read(path: &Path) -> Result<PrivateKey, KeyError> {
        let failed = |action, error| KeyError::File { action, path: path.to_owned(), error };
        let file = File::open(path).map_err(|error| failed("open", error))?;
        let mode = rustix::fs::fstat(&file).map_err(|error| failed("stat", error.into()))?.st_mode;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode: mode & 0o777 });
        }
        let mut text = String::new();
        file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| failed("read", error))?;
        decode_pem(&text).and_then(from_pkcs8).ok_or_else(|| KeyError::NotAKey { path: path.to_owned() })
    }

    /// Makes a key and its file. The file must not exist; directories above it are made, mode 0700.
    pub fn create(path: &Path) -> Result<PrivateKey, KeyError> {
        let mut seed = [0u8; 32];
        ring::default_provider().secure_random.fill(&mut seed).map_err(|_| KeyError::Random)?;
        let der = pkcs8(&seed);
        let pem = encode_pem(&der);
        let key = from_pkcs8(der).ok_or(KeyError::Random)?;
        write_once(path, pem.as_bytes()).map_err(|error| KeyError::File {
            action: "write",
            path: path.to_owned(),
            error,
        })?;
        Ok(key)
    }
}

fn from_pkcs8(der: Vec<u8>) -> Option<PrivateKey> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der));
    let signing = ring::sign::any_eddsa_type(match &der {
        PrivateKeyDer::Pkcs8(pkcs8) => pkcs8,
        _ => return None,
    })
    .ok()?;
    let public = PublicKey::from_spki(signing.public_key()?.as_ref())?;
    Some(PrivateKey { signing, public })
}

/// A file that appears whole and durable, or not at all, and never replaces another.
fn write_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let beside = directory.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // link(2), unlike rename(2), fails when the name is taken.
    let linked = std::fs::hard_link(&beside, path);
    std::fs::remove_file(&beside)?;
    linked?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory of one test, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0); // only space is lost
        }
    }

    fn scratch(name: &str) -> Scratch {
        let directory = std::env::temp_dir().join(format!("nullbox-keys-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Scratch(directory)
    }

    #[test]
    fn a_key_round_trips_through_its_file_and_its_texts() {
        let scratch = scratch("round");
        let path = scratch.join("sub/op.key");
        let made = PrivateKey::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = PrivateKey::read(&path).unwrap();
        assert_eq!(read.public(), made.public());
        let public: PublicKey = made.public().to_string().parse().unwrap();
        assert_eq!(public, made.public());
        let print = public.fingerprint();
        assert_eq!(print.to_string().parse::<Fingerprint>().unwrap(), print);
        assert_eq!(PublicKey::from_spki(&public.spki()), Some(public));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside");
    }

    #[test]
    fn rustls_and_the_ledger_read_one_file_alike() {
        let scratch = scratch("alike");
        let path = scratch.join("op.key");
        let key = PrivateKey::create(&path).unwrap();
        let signer = ledger::keys::Signer::from_pem(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(signer.public(), key.public());
    }

    #[test]
    fn an_existing_key_is_never_replaced() {
        let scratch = scratch("once");
        let path = scratch.join("op.key");
        let first = PrivateKey::create(&path).unwrap();
        assert!(matches!(PrivateKey::create(&path), Err(KeyError::File { .. })));
        assert_eq!(PrivateKey::read(&path).unwrap().public(), first.public());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let scratch = scratch("mode");
        let path = scratch.join("op.key");
        PrivateKey::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = PrivateKey::read(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn debug_shows_no_private_key() {
        let scratch = scratch("debug");
        let path = scratch.join("op.key");
        let key = PrivateKey::create(&path).unwrap();
        let pem = std::fs::read_to_string(&path).unwrap();
        let body = pem.lines().nth(1).unwrap();
        assert!(!format!("{key:?}").contains(&body[20..40]));
    }
}
