//! The secrets of the node: sealed on the disk, opened for the moment of a call.
//!
//! Must hold: a value is on the disk only sealed, with the place it may go to bound to it; a secret goes to no host but that of the policy
//! it was asked for by; without the key that sealed them nothing is opened and nothing overwritten. Must never: print a value.

mod seal;
pub mod tpm;

use abi::ids::SecretName;
use abi::limits;
use abi::log;
use abi::network::SecretPolicy;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

use crate::kept;
pub use seal::SealError;
use seal::{Place, Sealed};

/// A secret's file, in bytes. Larger: damaged.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// The kernel's resource manager for the TPM (tpm(4), drivers/char/tpm).
pub const TPM_PATH: &str = "/dev/tpmrm0";
/// After a failure the TPM is left alone for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// The store.
#[derive(Debug)]
pub struct Secrets {
    dir: PathBuf,
    place: Place,
    /// Held while a file and then the state change, so that only those wait for the disk who change something.
    changing: Mutex<()>,
    /// Held while the key is fetched: a TPM takes its time.
    fetching: Mutex<()>,
    /// Held for moments only: a call's thread waits for it.
    state: Mutex<State>,
}

struct State {
    key: Option<(Arc<LessSafeKey>, Sealed)>,
    /// When and why the key could not be had.
    failed: Option<(Instant, SealError)>,
    stored: BTreeMap<SecretName, Stored>,
    /// Files that hold nothing that can be read, and why.
    damaged: BTreeMap<SecretName, String>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("stored", &self.stored.keys()).finish_non_exhaustive()
    }
}

/// The form of a secret's file.
const VERSION: u32 = 1;

/// A secret's file. The version and the face, byte for byte as they stand there, are bound to the sealed bytes: members that a later
/// version adds, or orders in another way, change nothing of what was set before.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    face: Box<RawValue>,
    /// Base64.
    nonce: String,
    sealed: String,
}

/// A secret as it was read or set.
#[derive(Clone)]
struct Stored {
    face: Face,
    /// The face as its file has it.
    raw: Box<RawValue>,
    /// Base64.
    nonce: String,
    sealed: String,
}

/// What everybody may know of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Face {
    pub policy: SecretPolicy,
    pub set_unix_ms: u64,
    pub by: String,
}

/// An opened secret. It is overwritten when dropped.
pub struct Secret {
    policy: SecretPolicy,
    value: Zeroizing<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.policy.name)
    }
}

impl Secret {
    /// The value alone: what must not come back.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The header field's value, as the policy formats it.
    pub fn field(&self) -> Zeroizing<String> {
        let (before, after) = self.policy.format.split_once("{}").unwrap_or_default();
        let mut field = Zeroizing::new(String::with_capacity(self.policy.format.len() + self.value.len()));
        field.push_str(before);
        field.push_str(&self.value);
        field.push_str(after);
        field
    }
}

/// Why there is no secret to use, or why one cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret {0} is not set")]
    NotSet(SecretName),
    /// Its policy is another than that by which it was asked for.
    #[error("the secret {0} was set anew for another place")]
    Changed(SecretName),
    #[error("the secret {0} cannot be opened: its file was changed, or was sealed by another key")]
    Damaged(SecretName),
    #[error("secrets are unavailable: {0}")]
    NoKey(String),
    #[error("at most {} secrets", limits::SECRETS_MAX)]
    TooMany,
    #[error("{0}")]
    Wrong(#[from] WrongSecret),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

/// A policy or a value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongSecret {
    #[error("the port must be 1 to 65535")]
    Port,
    #[error(
        "`{0}` cannot carry a secret: use a header field of lower-case letters, digits and -, none that frames a message"
    )]
    Header(String),
    #[error(
        "the format must hold `{{}}` once, in at most {} printable ASCII characters",
        limits::SECRET_FORMAT_BYTES_MAX
    )]
    Format,
    #[error(
        "the value must be {} to {} printable ASCII characters without a line end",
        limits::SECRET_BYTES_MIN,
        limits::SECRET_BYTES_MAX
    )]
    Value,
}

impl Secrets {
    /// Reads what is in `state/secrets`; the key is fetched when it is first needed. `tpm`: the device, if the machine has one.
    pub fn open(state: &Path, tpm: &Path) -> io::Result<Secrets> {
        let dir = state.join("secrets");
        kept::make_dir(&dir)?;
        let (mut stored, mut damaged) = (BTreeMap::new(), BTreeMap::new());
        for name in kept::names(&dir)? {
            let Ok(name) = name.parse::<SecretName>() else { continue };
            match read(&dir, &name) {
                Ok(found) => drop(stored.insert(name, found)),
                Err(why) => {
                    log::error("secret_damaged", &[("name", &name), ("error", &why)]);
                    damaged.insert(name, why);
                }
            }
        }
        let state_now = State { key: None, failed: None, stored, damaged };
        let (place, state) = (Place::new(state, tpm), Mutex::new(state_now));
        Ok(Secrets { dir, place, changing: Mutex::default(), fetching: Mutex::default(), state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Where the key is: `tpm`, `state-volume`, `none yet`; or why it cannot be had.
    pub fn sealed_by(&self) -> String {
        let (no_key, nothing) = {
            let state = self.state();
            (state.key.is_none(), state.is_empty())
        };
        if no_key && nothing && (self.place.has_tpm() && !self.place.is_sealed() || !self.place.is_taken()) {
            return "none yet".to_owned();
        }
        match self.key(false) {
            Ok((_, sealed)) => sealed.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// What everybody may know of all secrets, and why one cannot be used.
    pub fn list(&self) -> Vec<(Face, Option<String>)> {
        let key = self.key(false).ok();
        let state = self.state();
        let shown = |stored: &Stored| {
            let broken = key.as_ref().is_some_and(|(key, _)| opened(key, stored).is_err());
            let name = &stored.face.policy.name;
            (stored.face.clone(), broken.then(|| SecretError::Damaged(name.clone()).to_string()))
        };
        state.stored.values().map(shown).collect()
    }

    /// The policy of a secret that can be opened.
    pub fn policy(&self, name: &SecretName) -> Result<SecretPolicy, SecretError> {
        let stored = self.state().found(name)?;
        opened(&self.key(false)?.0, &stored)?;
        Ok(stored.face.policy)
    }

    /// Opens a secret for the place of a policy; one that was meanwhile set for another place is not given out.
    pub fn reveal(&self, policy: &SecretPolicy) -> Result<Secret, SecretError> {
        let stored = self.state().found(&policy.name)?;
        if stored.face.policy != *policy {
            return Err(SecretError::Changed(policy.name.clone()));
        }
        let value = opened(&self.key(false)?.0, &stored)?;
        Ok(Secret { policy: stored.face.policy, value })
    }

    /// Whether a secret could be set: what must be known before its receipt.
    pub fn check(&self, policy: &SecretPolicy, value: &str) -> Result<(), SecretError> {
        check_policy(policy)?;
        check_value(value)?;
        {
            let state = self.state();
            if !state.stored.contains_key(&policy.name) && state.stored.len() >= limits::SECRETS_MAX {
                return Err(SecretError::TooMany);
            }
        }
        self.sealing_key().map(drop)
    }

    /// Seals and keeps a secret; it is on the disk when this returns.
    pub fn set(&self, face: Face, value: &str) -> Result<(), SecretError> {
        let _changing = lock(&self.changing);
        self.check(&face.policy, value)?;
        let name = face.policy.name.clone();
        let stored = sealed(&*self.sealing_key()?, face, value)?;
        let path = self.dir.join(format!("{name}.json"));
        let bytes = serde_json::to_vec(&stored.file())
            .map_err(|error| SecretError::Io { path: path.clone(), error: error.into() })?;
        kept::write(&path, &bytes).map_err(|error| SecretError::Io { path, error })?;
        let mut state = self.state();
        state.damaged.remove(&name);
        state.stored.insert(name, stored);
        Ok(())
    }

    /// Whether there is such a file, readable or not.
    pub fn has(&self, name: &SecretName) -> bool {
        let state = self.state();
        state.stored.contains_key(name) || state.damaged.contains_key(name)
    }

    /// Deletes a secret; needs no key.
    pub fn remove(&self, name: &SecretName) -> Result<(), SecretError> {
        let _changing = lock(&self.changing);
        if !self.has(name) {
            return Err(SecretError::NotSet(name.clone()));
        }
        let path = self.dir.join(format!("{name}.json"));
        kept::remove(&path).map_err(|error| SecretError::Io { path, error })?;
        let mut state = self.state();
        state.stored.remove(name);
        state.damaged.remove(name);
        if state.is_empty() && matches!(state.key, Some((_, Sealed::StateVolume))) {
            // The next one may be the TPM's.
            state.key = None;
        }
        Ok(())
    }

    /// The key that may seal a new secret.
    fn sealing_key(&self) -> Result<Arc<LessSafeKey>, SecretError> {
        let (key, sealed) = self.key(true)?;
        if sealed == Sealed::StateVolume && self.place.has_tpm() {
            return Err(SecretError::NoKey(self.place.unsealed().to_string()));
        }
        Ok(key)
    }

    /// The key, fetched once. `make`: there may be none yet, and then one is made, unless there are secrets that another sealed.
    fn key(&self, make: bool) -> Result<(Arc<LessSafeKey>, Sealed), SecretError> {
        if let Some(key) = &self.state().key {
            return Ok(key.clone());
        }
        let _fetching = lock(&self.fetching);
        let make = {
            let state = self.state();
            if let Some(key) = &state.key {
                return Ok(key.clone());
            }
            if let Some((when, error)) = &state.failed
                && when.elapsed() < PAUSE
            {
                return Err(SecretError::NoKey(error.to_string()));
            }
            make && state.is_empty()
        };
        let fetched = self.place.key(make).and_then(|(bytes, sealed)| {
            let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).map_err(|_| SealError::Length)?;
            Ok((Arc::new(LessSafeKey::new(key)), sealed))
        });
        let mut state = self.state();
        match fetched {
            Ok((key, sealed)) => {
                if sealed == Sealed::StateVolume {
                    log::warning(
                        "secrets_unsealed",
                        &[(
                            "why",
                            &"no TPM seals the key, so it lies beside the secrets: who has the disk has them",
                        )],
                    );
                }
                (state.key, state.failed) = (Some((key.clone(), sealed)), None);
                Ok((key, sealed))
            }
            Err(error) => {
                log::error("secrets_unavailable", &[("error", &error)]);
                let message = error.to_string();
                state.failed = error.is_of_the_tpm().then(|| (Instant::now(), error));
                Err(SecretError::NoKey(message))
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stored {
    fn file(&self) -> File {
        let Stored { raw, nonce, sealed, .. } = self.clone();
        File { version: VERSION, face: raw, nonce, sealed }
    }

    fn of(File { version, face: raw, nonce, sealed }: File) -> Result<Stored, String> {
        if version != VERSION {
            return Err(format!("it is of version {version}, and this egress knows {VERSION}"));
        }
        let face = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
        Ok(Stored { face, raw, nonce, sealed })
    }
}

impl State {
    /// Nothing is sealed. A file that this version cannot read may be.
    fn is_empty(&self) -> bool {
        self.stored.is_empty() && self.damaged.is_empty()
    }

    fn found(&self, name: &SecretName) -> Result<Stored, SecretError> {
        match self.stored.get(name) {
            Some(stored) => Ok(stored.clone()),
            None if self.damaged.contains_key(name) => Err(SecretError::Damaged(name.clone())),
            None => Err(SecretError::NotSet(name.clone())),
        }
    }
}

fn read(dir: &Path, name: &SecretName) -> Result<Stored, String> {
    let bytes =
        kept::read(&dir.join(format!("{name}.json")), FILE_BYTES_MAX).map_err(|error| error.to_string())?;
    let stored = Stored::of(serde_json::from_slice(&bytes).map_err(|error| error.to_string())?)?;
    if stored.face.policy.name != *name {
        return Err(format!("it is the file of {}", stored.face.policy.name));
    }
    check_policy(&stored.face.policy).map_err(|error| error.to_string())?;
    Ok(stored)
}

/// What the sealed bytes are bound to.
fn bound(face: &RawValue) -> Aad<String> {
    Aad::from(format!("nullbox secret {VERSION} {}", face.get()))
}

fn sealed(key: &LessSafeKey, face: Face, value: &str) -> Result<Stored, SecretError> {
    let refused = || SecretError::NoKey("the machine's cryptography refused to seal".to_owned());
    let raw = serde_json::value::to_raw_value(&face).map_err(|_| refused())?;
    let mut nonce = [0; 12];
    SystemRandom::new().fill(&mut nonce).map_err(|_| refused())?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(value.len() + AES_256_GCM.tag_len()));
    bytes.extend_from_slice(value.as_bytes());
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), bound(&raw), bytes.as_mut_slice())
        .map_err(|_| refused())?;
    bytes.extend_from_slice(tag.as_ref());
    Ok(Stored { face, raw, nonce: STANDARD.encode(nonce), sealed: STANDARD.encode(bytes.as_slice()) })
}

fn opened(key: &LessSafeKey, stored: &Stored) -> Result<Zeroizing<String>, SecretError> {
    let damaged = || SecretError::Damaged(stored.face.policy.name.clone());
    let nonce = STANDARD.decode(&stored.nonce).map_err(|_| damaged())?;
    let nonce = Nonce::try_assume_unique_for_key(&nonce).map_err(|_| damaged())?;
    let mut bytes = Zeroizing::new(STANDARD.decode(&stored.sealed).map_err(|_| damaged())?);
    let value = key.open_in_place(nonce, bound(&stored.raw), bytes.as_mut_slice()).map_err(|_| damaged())?;
    let text = std::str::from_utf8(value).map_err(|_| damaged())?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Fields that frame a message or belong to the connection; who may set them may say where a message ends.
const FRAMING: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "te",
    "trailer",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "expect",
    "accept-encoding",
    "via",
    "date",
    "range",
];

fn check_policy(policy: &SecretPolicy) -> Result<(), WrongSecret> {
    if policy.port == 0 {
        return Err(WrongSecret::Port);
    }
    let header = &policy.header;
    let is_token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if !(1..=64).contains(&header.len())
        || !header.bytes().all(is_token)
        || FRAMING.contains(&header.as_str())
    {
        return Err(WrongSecret::Header(header.chars().take(64).flat_map(char::escape_default).collect()));
    }
    let format = &policy.format;
    let rest = format.replacen("{}", "", 1);
    let fits = (2..=limits::SECRET_FORMAT_BYTES_MAX).contains(&format.len());
    if !fits
        || rest.len() + 2 != format.len()
        || rest.contains("{}")
        || !is_printable(format)
        || format.trim() != format
    {
        return Err(WrongSecret::Format);
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), WrongSecret> {
    let length = limits::SECRET_BYTES_MIN..=limits::SECRET_BYTES_MAX;
    // White space at an end would not arrive: header fields are trimmed.
    if length.contains(&value.len()) && is_printable(value) && value.trim() == value {
        return Ok(());
    }
    Err(WrongSecret::Value)
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

#[cfg(test)]
mod tests;
