//! Files on the way between a guest and an operator: a stream of records, each a line of JSON and, for a file, its bytes.
//!
//! Must hold: a record's path is relative, without empty, `.` or `..` parts; directories come before what is in them; nothing
//! names an owner or a device. Who makes files of a stream resolves each path beneath one directory, through no symbolic link.

use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read, Write};

use crate::limits;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Below the directory that is copied; empty: that directory, or the one file, itself.
    pub path: String,
    /// Permission bits; no set-id, no sticky bit.
    pub mode: u32,
    /// Seconds since 1970.
    pub modified_unix_s: i64,
    pub content: Content,
    /// Only in an answer of `agent.diff`: the rootfs has something at this path, so it was changed and not added.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_rootfs: bool,
}

/// What a record is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// So many bytes follow the line; none do in an answer of `agent.diff`.
    File {
        bytes: u64,
    },
    Directory,
    Link {
        target: String,
    },
    /// Only in an answer of `agent.diff`: it stands in the rootfs and not in the agent's root.
    Removed,
    /// Something that is not copied (a socket, a pipe, a device), named so that nobody misses it in silence.
    Other {
        kind: String,
    },
}

/// What is wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("record {0}: {1}")]
    Record(u64, String),
}

/// Bytes of one record's line.
const LINE_BYTES_MAX: u64 = 32 * 1024;

/// Whether a path may stand in a record.
pub fn path_ok(path: &str) -> bool {
    let part_ok = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    path.is_empty()
        || (path.len() <= limits::COPY_PATH_BYTES_MAX && !path.contains('\0') && path.split('/').all(part_ok))
}

/// Writes records.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// To a stream.
    pub fn new(out: W) -> Writer<W> {
        Writer { out, written: 0 }
    }

    /// Writes a record's line. The bytes of a file are the caller's to write to [`Writer::out`] next.
    pub fn record(&mut self, record: &Record) -> Result<(), FilesError> {
        self.written += 1;
        if self.written > limits::COPY_ENTRIES_MAX {
            let rule = format!("a copy has at most {} entries", limits::COPY_ENTRIES_MAX);
            return Err(FilesError::Record(self.written, rule));
        }
        let mut line = serde_json::to_vec(record).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(self.out.write_all(&line)?)
    }

    /// The stream.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }
}

/// Reads records from a stream that nobody vouches for.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    read: u64,
    /// Of the last record's file.
    unread: u64,
}

impl<R: BufRead> Reader<R> {
    /// From a stream.
    pub fn new(input: R) -> Reader<R> {
        Reader { input, read: 0, unread: 0 }
    }

    /// The next record; none at a clean end. What was left unread of the last file is passed over. `contents`: false for the
    /// answer of `agent.diff`, whose files have no bytes.
    pub fn next(&mut self, contents: bool) -> Result<Option<Record>, FilesError> {
        let left = io::copy(&mut (&mut self.input).take(self.unread), &mut io::sink())?;
        if left < self.unread {
            return Err(FilesError::Record(self.read, "the stream ends within a file".into()));
        }
        self.unread = 0;
        let mut line = Vec::new();
        (&mut self.input).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        self.read += 1;
        let wrong = |rule: String| FilesError::Record(self.read, rule);
        if self.read > limits::COPY_ENTRIES_MAX {
            return Err(wrong(format!("a copy has at most {} entries", limits::COPY_ENTRIES_MAX)));
        }
        if line.pop() != Some(b'\n') {
            return Err(wrong(format!("its line is cut, or longer than {LINE_BYTES_MAX} bytes")));
        }
        let record: Record = serde_json::from_slice(&line).map_err(|error| wrong(error.to_string()))?;
        if !path_ok(&record.path) {
            let shown: String = record.path.chars().take(64).flat_map(char::escape_default).collect();
            return Err(wrong(format!("`{shown}` is not a relative path without empty, `.` or `..` parts")));
        }
        if record.mode > 0o777 {
            return Err(wrong(format!("mode {:o} has more than permission bits", record.mode)));
        }
        if let (Content::File { bytes }, true) = (&record.content, contents) {
            self.unread = *bytes;
        }
        Ok(Some(record))
    }

    /// The stream, wherever it stands.
    pub fn into_input(self) -> R {
        self.input
    }

    /// The bytes of the last record's file.
    pub fn content(&mut self) -> impl Read + '_ {
        Bytes { reader: self }
    }
}

struct Bytes<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: BufRead> Read for Bytes<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = (&mut self.reader.input).take(self.reader.unread).read(out)?;
        if n == 0 && self.reader.unread > 0 && !out.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends within a file"));
        }
        self.reader.unread -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &str, content: Content) -> Record {
        Record { path: path.into(), mode: 0o644, modified_unix_s: 5, content, in_rootfs: false }
    }

    #[test]
    fn a_stream_reads_as_it_was_written() {
        let mut wire = Vec::new();
        let mut writer = Writer::new(&mut wire);
        let records = [
            record("", Content::Directory),
            record("a", Content::File { bytes: 3 }),
            record("b", Content::Link { target: "../../etc".into() }),
            record("c", Content::File { bytes: 0 }),
        ];
        for one in &records {
            writer.record(one).unwrap();
            if one.path == "a" {
                writer.out().write_all(b"xyz").unwrap();
            }
        }
        let mut reader = Reader::new(wire.as_slice());
        let mut text = String::new();
        for one in &records {
            assert_eq!(reader.next(true).unwrap().as_ref(), Some(one));
            if one.path == "a" {
                reader.content().read_to_string(&mut text).unwrap();
            }
        }
        assert_eq!((reader.next(true).unwrap(), text.as_str()), (None, "xyz"));
        let mut skipping = Reader::new(wire.as_slice());
        let count = std::iter::from_fn(|| skipping.next(true).unwrap()).count();
        assert_eq!(count, records.len());
    }

    #[test]
    fn paths_that_lead_out_modes_and_cuts_are_refused() {
        for path in ["/etc", "..", "a/../b", "a//b", "./a", "a/", "a\0b"] {
            let mut wire = Vec::new();
            Writer::new(&mut wire).record(&record(path, Content::Directory)).unwrap();
            let error = Reader::new(wire.as_slice()).next(true).unwrap_err();
            assert!(error.to_string().contains("relative path"), "{path}: {error}");
        }
        let mut wire = Vec::new();
        let mut set_id = record("a", Content::Directory);
        set_id.mode = 0o4755;
        Writer::new(&mut wire).record(&set_id).unwrap();
        assert!(Reader::new(wire.as_slice()).next(true).is_err());
        let mut wire = Vec::new();
        Writer::new(&mut wire).record(&record("a", Content::File { bytes: 10 })).unwrap();
        wire.extend_from_slice(b"short");
        let mut reader = Reader::new(wire.as_slice());
        reader.next(true).unwrap();
        assert!(reader.next(true).is_err());
        let mut reader = Reader::new(wire.as_slice());
        reader.next(true).unwrap();
        assert!(reader.content().read_to_end(&mut Vec::new()).is_err());
        assert!(Reader::new(&b"{\"path\":\"a\""[..]).next(true).is_err());
        assert!(Reader::new(vec![b'x'; 100_000].as_slice()).next(true).is_err());
    }
}
