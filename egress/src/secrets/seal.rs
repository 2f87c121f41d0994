//! Where the key of the secrets is: sealed by the machine's TPM, or, without one, in a file.
//!
//! Must hold: a key is made once, and on the disk before it is used; a sealed key whose TPM is gone or refuses is an error, and no
//! reason for another key; on a machine with a TPM no key is put beside the secrets, and none that lies there seals a new one: whoever
//! had the disk may have put it there.

use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

use super::tpm::{Blob, Tpm, TpmError};
use crate::kept;

/// A key.
pub type Key = Zeroizing<[u8; 32]>;

/// A sealed key's file, in bytes. Larger: damaged.
const BLOB_BYTES_MAX: u64 = 4096;

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
        "there is no key, and secrets are there: put back the key that sealed them, or remove them and set them anew"
    )]
    Gone,
    #[error("the machine's source of random bytes failed")]
    Random,
    #[error("the key is sealed in {blob} by a TPM, and {device} is not there: give the machine its TPM back")]
    NoTpm { blob: PathBuf, device: PathBuf },
    #[error(
        "the key lies in {0}, and this machine has a TPM: remove all secrets and set them anew, and it seals them"
    )]
    Unsealed(PathBuf),
    #[error("{0}")]
    Tpm(#[from] TpmError),
}

impl SealError {
    /// Whether asking again costs the TPM's time.
    pub fn is_of_the_tpm(&self) -> bool {
        matches!(self, SealError::Tpm(_))
    }
}

/// The files and the device.
#[derive(Debug)]
pub struct Place {
    file: PathBuf,
    blob: PathBuf,
    device: PathBuf,
}

impl Place {
    /// In the service's state.
    pub fn new(state: &Path, tpm: &Path) -> Place {
        Place { file: state.join("key"), blob: state.join("key.tpm"), device: tpm.to_owned() }
    }

    /// Whether there is a key.
    pub fn is_taken(&self) -> bool {
        self.file.exists() || self.blob.exists()
    }

    /// Whether there is a key that a TPM sealed.
    pub fn is_sealed(&self) -> bool {
        self.blob.exists()
    }

    /// Why the key seals nothing new.
    pub fn unsealed(&self) -> SealError {
        SealError::Unsealed(self.file.clone())
    }

    /// Whether the machine has a TPM.
    pub fn has_tpm(&self) -> bool {
        self.device.exists()
    }

    /// Fetches the key. `make`: nothing is sealed yet, so if there is none it is made, and with a TPM one that lies in a file is none.
    pub fn key(&self, make: bool) -> Result<(Key, Sealed), SealError> {
        let at = |path: &PathBuf| {
            let path = path.clone();
            move |error| SealError::Io { path, error }
        };
        if let Some(blob) = found(kept::read(&self.blob, BLOB_BYTES_MAX)).map_err(at(&self.blob))? {
            let tpm = self
                .tpm()?
                .ok_or_else(|| SealError::NoTpm { blob: self.blob.clone(), device: self.device.clone() });
            return Ok((tpm?.open(&Blob(blob))?, Sealed::Tpm));
        }
        let mut tpm = if make { self.tpm()? } else { None };
        if let Some(tpm) = &mut tpm {
            let (key, blob) = tpm.create()?;
            kept::write(&self.blob, &blob.0).map_err(at(&self.blob))?;
            found(kept::remove(&self.file)).map_err(at(&self.file))?;
            return Ok((key, Sealed::Tpm));
        }
        if let Some(bytes) = found(kept::read(&self.file, 32)).map_err(at(&self.file))? {
            let bytes = Zeroizing::new(bytes);
            let mut key = Key::default();
            if bytes.len() != key.len() {
                return Err(SealError::Damaged(self.file.clone()));
            }
            key.copy_from_slice(&bytes);
            return Ok((key, Sealed::StateVolume));
        }
        if !make {
            return Err(SealError::Gone);
        }
        let mut key = Key::default();
        SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| SealError::Random)?;
        kept::write(&self.file, key.as_slice()).map_err(at(&self.file))?;
        Ok((key, Sealed::StateVolume))
    }

    /// The machine's TPM, if it has one.
    fn tpm(&self) -> Result<Option<Tpm<Box<dyn Device>>>, SealError> {
        Ok(found(reach(&self.device)).map_err(TpmError::Io)?.map(Tpm::new))
    }
}

/// What takes a command and gives its answer.
trait Device: Read + Write {}
impl<T: Read + Write> Device for T {}

fn reach(path: &Path) -> io::Result<Box<dyn Device>> {
    // A simulated TPM is behind a socket.
    #[cfg(test)]
    if let Ok(socket) = std::os::unix::net::UnixStream::connect(path) {
        return Ok(Box::new(socket));
    }
    Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
}

/// None where there is no such file.
fn found<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}
