//! What a guest says its tree is: the records of a claim, read whole and bounded. Whether they may be is `verdict::patch`'s business.

use abi::control::Stream;
use abi::files::{Content, Record};
use abi::limits;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ending::harmless;
use crate::guest::{Channel, ChannelSaid, Session};

/// How long a guest may take to say it.
const CLAIM_MS_MAX: u64 = 60_000;
/// Bytes of records and contents together.
const CLAIM_BYTES_MAX: usize = limits::CHANGES_BYTES_MAX as usize + 4 * 1024 * 1024;
/// Records that are looked at; `verdict` bounds the changes that they are.
const PATHS_MAX: usize = limits::CHANGES_MAX * 4;
/// Characters of what a guest complains of.
const COMPLAINT_CHARS_MAX: usize = 300;

/// Why a claim is not had. Which of them it is, is the host's word: what a guest complains of is quoted, and decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    #[error("the changes are more than {} bytes", limits::CHANGES_BYTES_MAX)]
    TooManyBytes,
    #[error("more than {} changed paths", PATHS_MAX)]
    TooManyPaths,
    #[error("the guest's records are none: {0}")]
    Malformed(String),
    /// It was not said to its end.
    #[error("{0}")]
    Lost(String),
}

impl Unread {
    /// The rule that the claim breaks, as the ledger has it; none: nobody said what it is.
    pub fn rule(&self) -> Option<&'static str> {
        match self {
            Unread::TooManyBytes | Unread::TooManyPaths => Some("size"),
            Unread::Malformed(_) => Some("path"),
            Unread::Lost(_) => None,
        }
    }
}

/// Reads a claim off its channel, to its end.
pub fn read(session: &Arc<Session>, channel: &Channel) -> Result<Vec<u8>, Unread> {
    let outcome = read_all(session, channel);
    if outcome.is_err() {
        // What it still says is dropped; that it cannot be told to stop is seen as its end.
        let _ = session.abandon(channel);
    }
    outcome
}

fn read_all(session: &Session, channel: &Channel) -> Result<Vec<u8>, Unread> {
    let until = Instant::now() + Duration::from_millis(CLAIM_MS_MAX);
    let (mut bytes, mut complaint) = (Vec::new(), Vec::new());
    loop {
        let patience = until.saturating_duration_since(Instant::now());
        match channel.next(64 * 1024, patience) {
            ChannelSaid::Output(stream, data) => {
                session.taken(channel, data.len()).map_err(|error| Unread::Lost(error.to_string()))?;
                match stream {
                    Stream::Stdout => bytes.extend(data),
                    Stream::Stderr => complaint.extend(data.into_iter().take(COMPLAINT_CHARS_MAX * 4)),
                }
                if bytes.len() > CLAIM_BYTES_MAX {
                    return Err(Unread::TooManyBytes);
                }
                complaint.truncate(COMPLAINT_CHARS_MAX * 4);
            }
            ChannelSaid::Exited(exit) if exit.code == Some(0) => return Ok(bytes),
            ChannelSaid::Exited(_) => {
                let said = harmless(&String::from_utf8_lossy(&complaint), COMPLAINT_CHARS_MAX);
                return Err(Unread::Lost(format!("the guest could not read its tree: {said}")));
            }
            ChannelSaid::Failed(failed) => {
                let said = harmless(&failed.error, COMPLAINT_CHARS_MAX);
                return Err(Unread::Lost(format!("the guest: {said}")));
            }
            ChannelSaid::VmEnded => return Err(Unread::Lost("its VM ended while the tree was read".into())),
            ChannelSaid::Nothing if Instant::now() >= until => {
                let seconds = CLAIM_MS_MAX / 1000;
                let why = format!("the guest took longer than {seconds} s to say what its tree is");
                return Err(Unread::Lost(why));
            }
            ChannelSaid::Nothing => {}
        }
    }
}

/// One record with its content; none for what is no file.
pub type Claimed = (Record, Option<Vec<u8>>);

/// Takes the records apart. The bounds are checked before a content is held.
pub fn records(bytes: &[u8]) -> Result<Vec<Claimed>, Unread> {
    let malformed =
        |error: &dyn std::fmt::Display| Unread::Malformed(harmless(&error.to_string(), COMPLAINT_CHARS_MAX));
    let mut reader = abi::files::Reader::new(bytes);
    let (mut all, mut held) = (Vec::new(), 0u64);
    while let Some(record) = reader.next(true).map_err(|error| malformed(&error))? {
        if all.len() >= PATHS_MAX {
            return Err(Unread::TooManyPaths);
        }
        let content = match record.content {
            Content::File { bytes } => {
                held = held.saturating_add(bytes);
                if held > limits::CHANGES_BYTES_MAX {
                    return Err(Unread::TooManyBytes);
                }
                let mut content = Vec::new();
                reader.content().read_to_end(&mut content).map_err(|error| malformed(&error))?;
                Some(content)
            }
            _ => None,
        };
        all.push((record, content));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::fake::{exit, ready_session, sent};
    use abi::guest::{Exit, FilesJob, Frame, Kind};

    fn record(path: &str, content: Content) -> Record {
        Record { path: path.into(), mode: 0o644, modified_unix_s: 5, content, in_rootfs: false }
    }

    #[test]
    fn a_claim_is_read_to_its_end_and_a_failed_one_says_why() {
        let (mut guest, session, _said) = ready_session();
        let channel = session.files(FilesJob::Claim).unwrap();
        assert_eq!(sent(&mut guest).kind, Kind::Files);
        let mut wire = Vec::new();
        let mut writer = abi::files::Writer::new(&mut wire);
        writer.record(&record("a", Content::File { bytes: 3 })).unwrap();
        std::io::Write::write_all(writer.out(), b"xyz").unwrap();
        writer.record(&record("b", Content::Removed)).unwrap();
        Frame::data(Kind::Stdout, channel.number(), &wire).write_to(&mut guest).unwrap();
        let end = Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 };
        Frame::json(Kind::Exit, channel.number(), &end).unwrap().write_to(&mut guest).unwrap();
        let all = records(&read(&session, &channel).unwrap()).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].1.as_deref(), Some(&b"xyz"[..]));
        let channel = session.files(FilesJob::Claim).unwrap();
        Frame::data(Kind::Stderr, channel.number(), b"disk\x1b broke: more than ever")
            .write_to(&mut guest)
            .unwrap();
        exit(channel.number()).write_to(&mut guest).unwrap();
        let unread = read(&session, &channel).unwrap_err();
        let why = unread.to_string();
        assert!(why.contains("broke") && !why.contains('\x1b'), "{why}");
        assert_eq!(unread.rule(), None, "what the guest says of it decides nothing");
        let channel = session.files(FilesJob::Claim).unwrap();
        drop(guest);
        assert!(read(&session, &channel).unwrap_err().to_string().contains("ended"));
    }

    #[test]
    fn contents_beyond_the_bound_are_refused_before_they_are_held() {
        let mut wire = Vec::new();
        let mut writer = abi::files::Writer::new(&mut wire);
        writer.record(&record("a", Content::File { bytes: u64::MAX })).unwrap();
        assert_eq!(records(&wire).unwrap_err(), Unread::TooManyBytes);
        let mut wire = Vec::new();
        let mut writer = abi::files::Writer::new(&mut wire);
        for number in 0..PATHS_MAX + 1 {
            writer.record(&record(&format!("{number}"), Content::Removed)).unwrap();
        }
        assert_eq!(records(&wire).unwrap_err(), Unread::TooManyPaths);
        assert_eq!(records(b"{garbage\n").unwrap_err().rule(), Some("path"));
    }
}
