//! The few TPM 2.0 commands that keep a key: a storage key from the owner's seed, and an object sealed under it.
//! Source: TCG "TPM 2.0 Library", Part 2 (structures) and Part 3 (commands), 1.59; the storage key is the template of the TCG
//! "EK Credential Profile", 2.1.5.2, for NIST P-256, with the unique field empty as for a storage key.
//!
//! Must hold: an answer is bounded, and read as what it is or refused; what was loaded is flushed. The sealed object needs no
//! password: who has the machine, running as it is, has the key; who has only its disk has not.

use ring::rand::{SecureRandom, SystemRandom};
use std::io::{self, Read, Write};
use zeroize::Zeroizing;

use super::seal::Key;

/// An answer, in bytes: what the kernel's resource manager passes at most (TPM_BUFSIZE).
const ANSWER_BYTES_MAX: usize = 4096;
const HEADER_BYTES: usize = 10;

const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
const CC_CREATE_PRIMARY: u32 = 0x131;
const CC_CREATE: u32 = 0x153;
const CC_LOAD: u32 = 0x157;
const CC_UNSEAL: u32 = 0x15e;
const CC_FLUSH_CONTEXT: u32 = 0x165;
const RH_OWNER: u32 = 0x4000_0001;
const RS_PW: u32 = 0x4000_0009;
const ALG_AES: u16 = 0x0006;
const ALG_KEYEDHASH: u16 = 0x0008;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
const ECC_NIST_P256: u16 = 0x0003;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt.
const STORAGE_ATTRIBUTES: u32 = 0x0003_0472;
/// fixedTPM, fixedParent, userWithAuth, noDA.
const SEALED_ATTRIBUTES: u32 = 0x0000_0452;
/// Answers that ask to send the command again (Part 2, 6.6.3): yielded, testing, retry.
const RC_AGAIN: [u32; 3] = [0x908, 0x90a, 0x922];
const TRIES: usize = 50;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Why the TPM did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    #[error("the TPM cannot be reached: {0}")]
    Io(#[from] io::Error),
    #[error("the TPM refused {command} with {code:#x}: {}", meaning(*code))]
    Refused { command: &'static str, code: u32 },
    #[error("the TPM's answer to {0} is malformed")]
    Malformed(&'static str),
    #[error("the machine's source of random bytes failed")]
    Random,
}

fn meaning(code: u32) -> &'static str {
    // Format one codes carry the number of what they are about in bits 6 and 8 to 11 (Part 2, 6.6.2).
    match code {
        0x921 => "it is locked against guessing for a while",
        0x120 => "it is disabled",
        0x101 => "it has failed",
        0x100 => "it was not started",
        _ if code & 0xbf == 0xa2 => "its owner has a password; clear the TPM in the firmware's setup",
        _ if code & 0xbf == 0x85 => "the hierarchy is disabled; enable it in the firmware's setup",
        _ if code & 0xbf == 0x9f => "the sealed key is of another TPM, or the TPM was cleared",
        _ => "see the TCG's Part 2, 6.6",
    }
}

/// A sealed key as it is kept: TPM2B_PRIVATE and TPM2B_PUBLIC, each with its size before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

/// A TPM behind a device or socket that takes a command and gives its answer.
pub struct Tpm<D> {
    device: D,
}

impl<D> std::fmt::Debug for Tpm<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tpm")
    }
}

impl<D: Read + Write> Tpm<D> {
    /// At a device.
    pub fn new(device: D) -> Tpm<D> {
        Tpm { device }
    }

    /// Makes a key and seals it.
    pub fn create(&mut self) -> Result<(Key, Blob), TpmError> {
        let mut key = Key::default();
        SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| TpmError::Random)?;
        let parent = self.storage_key()?;
        let sealed = self.seal(parent, &key);
        self.flush(parent)?;
        Ok((key, sealed?))
    }

    /// Opens a sealed key.
    pub fn open(&mut self, blob: &Blob) -> Result<Key, TpmError> {
        let parent = self.storage_key()?;
        let key = self.unseal(parent, blob);
        self.flush(parent)?;
        key
    }

    /// TPM2_CreatePrimary: the same key each time, from the owner's seed and the template.
    fn storage_key(&mut self) -> Result<u32, TpmError> {
        let mut public = Bytes::default();
        public.u16(ALG_ECC).u16(ALG_SHA256).u32(STORAGE_ATTRIBUTES).sized(&[]);
        public.u16(ALG_AES).u16(128).u16(ALG_CFB).u16(ALG_NULL); // symmetric, scheme
        public.u16(ECC_NIST_P256).u16(ALG_NULL).sized(&[]).sized(&[]); // curve, kdf, unique
        let mut body = Bytes::default();
        // TPM2B_SENSITIVE_CREATE with neither password nor data; no outside info, no PCRs.
        body.sized(&[0; 4]).sized(&public.0).sized(&[]).u32(0);
        let answer = self.call("CreatePrimary", CC_CREATE_PRIMARY, &[RH_OWNER], Some(&body))?;
        Answer(&answer).u32().ok_or(TpmError::Malformed("CreatePrimary"))
    }

    /// TPM2_Create of a keyed-hash object that only holds the key.
    fn seal(&mut self, parent: u32, key: &Key) -> Result<Blob, TpmError> {
        let mut sensitive = Bytes::default();
        sensitive.sized(&[]).sized(key.as_slice());
        let mut public = Bytes::default();
        public.u16(ALG_KEYEDHASH).u16(ALG_SHA256).u32(SEALED_ATTRIBUTES).sized(&[]).u16(ALG_NULL).sized(&[]);
        let mut body = Bytes::default();
        body.sized(&sensitive.0).sized(&public.0).sized(&[]).u32(0);
        let answer = self.call("Create", CC_CREATE, &[parent], Some(&body))?;
        let mut parts = Answer(&answer);
        let malformed = TpmError::Malformed("Create");
        let (Some(_), Some(private), Some(public)) = (parts.u32(), parts.sized(), parts.sized()) else {
            return Err(malformed);
        };
        let mut blob = Bytes::default();
        blob.sized(private).sized(public);
        Ok(Blob(blob.0.to_vec()))
    }

    /// TPM2_Load and TPM2_Unseal.
    fn unseal(&mut self, parent: u32, blob: &Blob) -> Result<Key, TpmError> {
        let mut body = Bytes::default();
        body.0.extend_from_slice(&blob.0);
        let answer = self.call("Load", CC_LOAD, &[parent], Some(&body))?;
        let object = Answer(&answer).u32().ok_or(TpmError::Malformed("Load"))?;
        let unsealed = self.call("Unseal", CC_UNSEAL, &[object], Some(&Bytes::default()));
        self.flush(object)?;
        let unsealed = unsealed?;
        let mut parts = Answer(&unsealed);
        let (Some(_), Some(data)) = (parts.u32(), parts.sized()) else {
            return Err(TpmError::Malformed("Unseal"));
        };
        let mut key = Key::default();
        if data.len() != key.len() {
            return Err(TpmError::Malformed("Unseal"));
        }
        key.copy_from_slice(data);
        Ok(key)
    }

    fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        self.call("FlushContext", CC_FLUSH_CONTEXT, &[handle], None).map(drop)
    }

    /// Sends a command; with parameters it is authorized by the empty password. The answer: everything after its header.
    fn call(
        &mut self,
        command: &'static str,
        code: u32,
        handles: &[u32],
        parameters: Option<&Bytes>,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let mut body = Bytes::default();
        for handle in handles {
            body.u32(*handle);
        }
        if let Some(parameters) = parameters {
            let mut session = Bytes::default();
            session.u32(RS_PW).sized(&[]).u8(0).sized(&[]); // nonce, attributes, password
            body.u32(session.0.len() as u32);
            body.0.extend_from_slice(&session.0);
            body.0.extend_from_slice(&parameters.0);
        }
        let mut message = Bytes::default();
        message.u16(if parameters.is_some() { ST_SESSIONS } else { ST_NO_SESSIONS });
        message.u32((HEADER_BYTES + body.0.len()) as u32).u32(code);
        message.0.extend_from_slice(&body.0);
        for _ in 0..TRIES {
            let (status, answer) = self.exchange(command, &message)?;
            match status {
                0 => return Ok(answer),
                again if RC_AGAIN.contains(&again) => std::thread::sleep(PAUSE),
                code => return Err(TpmError::Refused { command, code }),
            }
        }
        Err(TpmError::Refused { command, code: RC_AGAIN[0] })
    }

    fn exchange(
        &mut self,
        command: &'static str,
        message: &Bytes,
    ) -> Result<(u32, Zeroizing<Vec<u8>>), TpmError> {
        let malformed = || TpmError::Malformed(command);
        self.device.write_all(&message.0)?; // the device wants a command in one write
        let mut answer = Zeroizing::new(vec![0; ANSWER_BYTES_MAX]);
        let (mut read, mut size) = (0, HEADER_BYTES);
        while read < size {
            match self.device.read(answer.get_mut(read..).unwrap_or_default())? {
                0 => return Err(malformed()),
                more => read += more,
            }
            if let Some(stated) = answer.get(2..6).filter(|_| read >= HEADER_BYTES) {
                size = Answer(stated).u32().unwrap_or(0) as usize;
                if !(HEADER_BYTES..=ANSWER_BYTES_MAX).contains(&size) || size < read {
                    return Err(malformed());
                }
            }
        }
        answer.truncate(read);
        let mut header = Answer(&answer);
        let (Some(_), Some(_), Some(status)) = (header.u16(), header.u32(), header.u32()) else {
            return Err(malformed());
        };
        answer.drain(..HEADER_BYTES);
        Ok((status, answer))
    }
}

/// Big-endian bytes of a command.
#[derive(Default)]
struct Bytes(Zeroizing<Vec<u8>>);

impl Bytes {
    fn u8(&mut self, value: u8) -> &mut Bytes {
        self.0.push(value);
        self
    }
    fn u16(&mut self, value: u16) -> &mut Bytes {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    fn u32(&mut self, value: u32) -> &mut Bytes {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    /// A TPM2B: its size, then itself. Everything here is far below 64 KiB.
    fn sized(&mut self, bytes: &[u8]) -> &mut Bytes {
        self.u16(bytes.len() as u16);
        self.0.extend_from_slice(bytes);
        self
    }
}

/// What is left of an answer.
struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }
    fn sized(&mut self) -> Option<&'a [u8]> {
        let size = self.u16()?;
        self.take(size.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each command with the next of a list.
    struct Canned(Vec<Vec<u8>>, Vec<u8>);

    impl Write for Canned {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = if self.0.is_empty() { Vec::new() } else { self.0.remove(0) };
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Canned {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.1.len().min(out.len()).min(7);
            out[..count].copy_from_slice(&self.1[..count]);
            self.1.drain(..count);
            Ok(count)
        }
    }

    fn answer(size: u32, status: u32, body: &[u8]) -> Vec<u8> {
        [&[0x80, 0x01][..], &size.to_be_bytes(), &status.to_be_bytes(), body].concat()
    }

    #[test]
    fn answers_that_lie_about_themselves_are_refused() {
        for bad in [
            Vec::new(),
            vec![0x80],
            answer(9, 0, &[]),
            answer(5000, 0, &[]),
            answer(u32::MAX, 0, &[]),
            answer(14, 0, &[0; 3]),
            answer(12, 0, &[0; 2]),
        ] {
            let error = Tpm::new(Canned(vec![bad.clone()], Vec::new())).open(&Blob(Vec::new())).unwrap_err();
            assert!(matches!(error, TpmError::Malformed("CreatePrimary")), "{bad:?} {error}");
        }
        let whole = answer(14, 0, &[0x80, 0, 0, 1]);
        let cut = answer(16, 0, &[0, 0, 0, 4, 0, 99]);
        let done = answer(10, 0, &[]);
        let answers = vec![whole.clone(), whole, cut, done.clone(), done];
        let error = Tpm::new(Canned(answers, Vec::new())).open(&Blob(Vec::new())).unwrap_err();
        assert!(matches!(error, TpmError::Malformed("Unseal")), "{error}");
    }

    #[test]
    fn a_refusal_says_what_it_means_and_a_busy_tpm_is_asked_again() {
        let busy = answer(10, 0x922, &[]);
        let refused = answer(10, 0x9a2, &[]);
        let error = Tpm::new(Canned(vec![busy, refused], Vec::new())).create().unwrap_err();
        assert!(error.to_string().contains("CreatePrimary with 0x9a2: its owner has a password"), "{error}");
    }
}
