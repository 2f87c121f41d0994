//! The ledger's key, and the newest checkpoint that was signed with it.
//!
//! Must hold: the key stands in the ledger before it signs anything; a checkpoint is durable on the node before anybody else has it.
//! Must never: replace a key, or show it.

use abi::ids::Digest;
use abi::ledger::Event;
use abi::log;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::ledger::{AppendError, Ledger, Snapshot};
use ::ledger::checkpoint::Checkpoint;
use ::ledger::frame::Source;
use ::ledger::keys::{KEY_FILE_BYTES_MAX, Signer, encode_pem, pkcs8};

const KEY: &str = "ledger.key";
const CHECKPOINT: &str = "ledger.checkpoint";

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
pub enum NotaryError {
    #[error("cannot {action} {path}: {error}")]
    File { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{0} is not an ed25519 private key in PEM (PKCS#8)")]
    NotAKey(PathBuf),
    #[error("{path} can be read by others (mode {mode:o})")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the system has no random numbers")]
    Random,
    #[error("{0} is missing, and {1} was signed with it")]
    Lost(PathBuf, &'static str),
    #[error("the new key could not be recorded in the ledger: {0}")]
    Unrecorded(AppendError),
}

/// Signs what the ledger is.
#[derive(Debug)]
pub struct Notary {
    signer: Signer,
    /// Where the newest checkpoint is kept.
    path: PathBuf,
    kept: Mutex<Option<Checkpoint>>,
}

impl Notary {
    /// The one whose key is in a state directory. None: no key was made yet.
    pub fn open(state: &Path) -> Result<Option<Notary>, NotaryError> {
        let path = state.join(KEY);
        let failed = |action, error| NotaryError::File { action, path: path.clone(), error };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", error)),
        };
        let mode = file.metadata().map_err(|error| failed("stat", error))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(NotaryError::Exposed { path, mode });
        }
        let mut text = String::new();
        file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| failed("read", error))?;
        let signer = Signer::from_pem(&text).ok_or_else(|| NotaryError::NotAKey(path.clone()))?;
        let path = state.join(CHECKPOINT);
        let kept = read_checkpoint(&path, &signer);
        Ok(Some(Notary { signer, path, kept: Mutex::new(kept) }))
    }

    /// One with a new key. Its file has its name only after the ledger has the key. None is made where another has signed: who holds that one's
    /// public key would take what comes after for a forgery.
    pub fn make(state: &Path, ledger: &Ledger) -> Result<Notary, NotaryError> {
        if state.join(CHECKPOINT).try_exists().unwrap_or(true) {
            return Err(NotaryError::Lost(state.join(KEY), CHECKPOINT));
        }
        let mut seed = [0; 32];
        match rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()) {
            Ok(32) => {}
            _ => return Err(NotaryError::Random),
        }
        let signer = Signer::from_seed(&seed).ok_or(NotaryError::Random)?;
        let path = state.join(KEY);
        let failed = |error| NotaryError::File { action: "write", path: path.clone(), error };
        let whole = Whole::write(&path, encode_pem(&pkcs8(&seed)).as_bytes()).map_err(failed)?;
        let event = Event::LedgerKeyMade { key: signer.public().to_string() };
        let source = Source::Service(abi::identity::Service::Ctxgraph);
        ledger.append(source, &[event], true).map_err(NotaryError::Unrecorded)?;
        whole.name().map_err(failed)?;
        log::info("ledger_key_made", &[("fingerprint", &signer.public().fingerprint())]);
        Ok(Notary { signer, path: state.join(CHECKPOINT), kept: Mutex::new(None) })
    }

    /// The key.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Size and root of the newest tree that was signed: the ledger must have it.
    pub fn kept(&self) -> Option<(u64, Digest)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().map(|checkpoint| (checkpoint.size, checkpoint.root))
    }

    /// Signs, after the checkpoint is on the disk.
    pub fn sign(&self, snapshot: &Snapshot) -> io::Result<(Checkpoint, String)> {
        let checkpoint = Checkpoint {
            ledger_id: snapshot.ledger_id,
            size: snapshot.size,
            root: snapshot.root,
            head: snapshot.head.unwrap_or(Digest([0; 32])),
            unix_ms: snapshot.unix_ms,
        };
        let note = checkpoint.sign(&self.signer);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|kept| kept.size < checkpoint.size) {
            Whole::write(&self.path, note.as_bytes())?.name()?;
            *kept = Some(checkpoint.clone());
        }
        Ok((checkpoint, note))
    }
}

/// The checkpoint that was kept. One that cannot be read shows nothing, as if it were not there: whoever can write there can remove it too.
fn read_checkpoint(path: &Path, signer: &Signer) -> Option<Checkpoint> {
    let note = match fs::read_to_string(path) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            log::error("ledger_checkpoint_unreadable", &[("error", &error)]);
            return None;
        }
    };
    Checkpoint::open(&note, &signer.public())
        .inspect_err(|error| log::error("ledger_checkpoint_unreadable", &[("error", error)]))
        .ok()
}

/// A durable file beside the name that it will have.
struct Whole {
    beside: PathBuf,
    path: PathBuf,
}

impl Whole {
    fn write(path: &Path, bytes: &[u8]) -> io::Result<Whole> {
        let beside = path.with_extension("new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {} // of a start that was cut short
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(Whole { beside, path: path.to_owned() })
    }

    fn name(self) -> io::Result<()> {
        fs::rename(&self.beside, &self.path)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    }
}
