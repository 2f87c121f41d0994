//! Where the key of the secrets is: sealed by the machine's TPM, or, without one, in a file.
//!
//! Must hold: a key is made once, and on the disk before it is used; a sealed key whose TPM is gone is an error, and no reason for
//! another key.

use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

use crate::kept;

/// A key.
pub type Key = Zeroizing<[u8; 32]>;

/// What protects the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    Tpm,
    StateVolume,
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sealed::Tpm => "tpm",
            Sealed::StateVolume => "state-volume",
        })
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "{0} does not hold a key of 32 bytes: put the right one back, or remove it and all secrets, and set them anew"
    )]
    Damaged(PathBuf),
    #[error("a key must have 32 bytes")]
    Length,
    #[error(
        "no key was made yet, and secrets are there: put back the key that sealed them, or remove them and set them anew"
    )]
    Gone,
    #[error("the machine's source of random bytes failed")]
    Random,
}

impl SealError {
    /// Whether asking again costs the TPM's time.
    pub fn is_of_the_tpm(&self) -> bool {
        false
    }
}

/// The files and the device.
#[derive(Debug)]
pub struct Place {
    file: PathBuf,
}

impl Place {
    /// In the service's state.
    pub fn new(state: &Path, _tpm: &Path) -> Place {
        Place { file: state.join("key") }
    }

    /// Whether there is a key.
    pub fn is_taken(&self) -> bool {
        self.file.exists()
    }

    /// Fetches the key. `make`: if there is none, it is made.
    pub fn key(&self, make: bool) -> Result<(Key, Sealed), SealError> {
        let at = |error| SealError::Io { path: self.file.clone(), error };
        match kept::read(&self.file, 32) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                let mut key = Key::default();
                let fits = bytes.len() == key.len();
                fits.then(|| key.copy_from_slice(&bytes))
                    .ok_or_else(|| SealError::Damaged(self.file.clone()))?;
                Ok((key, Sealed::StateVolume))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                let mut key = Key::default();
                SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| SealError::Random)?;
                kept::write(&self.file, key.as_slice()).map_err(at)?;
                Ok((key, Sealed::StateVolume))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SealError::Gone),
            Err(error) => Err(at(error)),
        }
    }
}
