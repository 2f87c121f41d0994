//! Bundles: entries on their way from a memory to another. The format is docs/formats/ctxgraph.md.
//!
//! Must hold: an entry that comes out of a reader has its hash, its value and its vector; none is worth anything before
//! [`Reader::finish`] named the signer. Must never: hold more than a line.

use abi::ids::Digest;
use abi::limits;
use abi::memory::LABEL_VECTOR;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead, Read, Write};

use crate::canonical;
use crate::entry::{Header, sha256};
use crate::store::vector::Vector;
use ::ledger::keys::{KeyTextError, PublicKey, Signer};

pub mod transfer;

/// What a signature is over, before the digest of the lines.
const SIGNED: &[u8] = b"nullbox memory bundle\n";
/// How the last line begins, and no other.
const LAST: &[u8] = b"{\"key\":";

/// An entry with all that travels with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub hash: Digest,
    pub header: Header,
    pub content: Content,
}

/// What is there of an entry beside its header, on its way out: the value's canonical text and the vector's bytes, or why not.
#[derive(Debug, Clone, Copy)]
pub enum Held<'a> {
    Value(&'a str, Option<&'a [u8]>),
    Forgotten(&'a str),
}

/// What is there of an entry beside its header.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// The value's canonical text, and its vector.
    Whole { value: String, vector: Option<Vector> },
    /// The value is not there any more, and why.
    Forgotten(String),
}

impl Item {
    /// About how much of memory it takes.
    pub fn size(&self) -> usize {
        let Header { key, labels, links, .. } = &self.header;
        let words: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        let content = match &self.content {
            Content::Whole { value, vector } => {
                value.len() + vector.as_ref().map_or(0, |vector| vector.bytes().len())
            }
            Content::Forgotten(why) => why.len(),
        };
        256 + key.len() + words + links.len() * 96 + content
    }
}

/// Why a bundle is not one.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("line {0} of the bundle: {1}")]
    Line(u64, String),
    #[error("the bundle ends after line {0} without a signature: it was cut")]
    Cut(u64),
    #[error("the bundle's signature is not that of {0}: it was altered")]
    Signature(String),
    #[error("the bundle has {0} bytes and more, at most {max} are taken", max = limits::MEMORY_BUNDLE_BYTES_MAX)]
    Bytes(u64),
    #[error("the bundle cannot be read: {0}")]
    Io(#[from] io::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    nullbox_bundle: u32,
    node: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    key: String,
    signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawItem {
    hash: Digest,
    header: RawHeader,
    value: Value,
    forgotten: Option<String>,
    vector: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    agent: abi::ids::AgentName,
    key: String,
    labels: std::collections::BTreeMap<String, String>,
    links: Vec<abi::memory::Link>,
    parent: Option<Digest>,
    seq: u64,
    unix_ms: u64,
    value: Digest,
    version: u32,
}

/// Writes a bundle.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    lines: Sha256,
    whole: Sha256,
    bytes: u64,
    entries: u64,
}

/// A bundle that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub entries: u64,
    pub bytes: u64,
    pub digest: Digest,
}

impl<W: Write> Writer<W> {
    /// Begins a bundle of a node, by its ledger's id.
    pub fn new(out: W, ledger_id: &[u8; 32]) -> io::Result<Writer<W>> {
        let mut writer = Writer { out, lines: Sha256::new(), whole: Sha256::new(), bytes: 0, entries: 0 };
        let node = Digest(*ledger_id).hex();
        writer.line(&serde_json::to_vec(&First { nullbox_bundle: 1, node })?)?;
        Ok(writer)
    }

    /// Adds an entry: its hash, its header's canonical text, and what is there beside it.
    pub fn entry(&mut self, hash: &Digest, header: &str, held: Held<'_>) -> io::Result<()> {
        let (value, forgotten, vector) = match held {
            Held::Value(value, vector) => (value, None, vector.map(|bytes| STANDARD.encode(bytes))),
            Held::Forgotten(why) => ("null", Some(why), None),
        };
        let (forgotten, vector) = (serde_json::to_string(&forgotten)?, serde_json::to_string(&vector)?);
        // Header and value are canonical texts already, and stay as they are.
        let line = format!(
            r#"{{"hash":"{hash}","header":{header},"value":{value},"forgotten":{forgotten},"vector":{vector}}}"#
        );
        self.line(line.as_bytes())?;
        self.entries += 1;
        Ok(())
    }

    /// Signs and ends it.
    pub fn finish(mut self, signer: &Signer) -> io::Result<Written> {
        let message = message(self.lines.clone());
        let last =
            Last { key: signer.public().to_string(), signature: STANDARD.encode(signer.sign(&message)) };
        self.line(&serde_json::to_vec(&last)?)?;
        self.out.flush()?;
        Ok(Written { entries: self.entries, bytes: self.bytes, digest: Digest(self.whole.finalize().into()) })
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if line.len() >= limits::MEMORY_BUNDLE_LINE_BYTES_MAX {
            return Err(io::Error::other(format!("a line of {} bytes, more than a bundle has", line.len())));
        }
        for part in [line, b"\n"] {
            self.out.write_all(part)?;
            self.lines.update(part);
            self.whole.update(part);
            self.bytes += part.len() as u64;
        }
        Ok(())
    }
}

/// Reads a bundle and checks all of it. Nothing in it may be believed before [`Reader::item`] returned none.
#[derive(Debug)]
pub struct Reader<R: BufRead> {
    input: R,
    lines: Sha256,
    number: u64,
    signer: Option<PublicKey>,
}

impl<R: BufRead> Reader<R> {
    /// Begins with the first line.
    pub fn new(input: R) -> Result<Reader<R>, BundleError> {
        let mut reader = Reader { input, lines: Sha256::new(), number: 0, signer: None };
        let line = reader.line()?.ok_or(BundleError::Cut(0))?;
        let first: First = reader.parse(&line)?;
        if first.nullbox_bundle != 1 {
            return Err(reader.wrong(format!("version {} is not known here, 1 is", first.nullbox_bundle)));
        }
        reader.lines.update(&line);
        Ok(reader)
    }

    /// The next entry; none when the bundle ended well and its signature holds.
    pub fn item(&mut self) -> Result<Option<Item>, BundleError> {
        if self.signer.is_some() {
            return Ok(None);
        }
        let line = self.line()?.ok_or(BundleError::Cut(self.number))?;
        if line.starts_with(LAST) {
            self.end(&line)?;
            return Ok(None);
        }
        self.lines.update(&line);
        let raw: RawItem = self.parse(&line)?;
        checked(raw).map(Some).map_err(|why| self.wrong(why))
    }

    /// The signer's public key, once [`Reader::item`] returned none.
    pub fn signer(&self) -> Option<PublicKey> {
        self.signer
    }

    fn end(&mut self, line: &[u8]) -> Result<(), BundleError> {
        let last: Last = self.parse(line)?;
        let key: PublicKey = last.key.parse().map_err(|error: KeyTextError| self.wrong(error.to_string()))?;
        let signature = STANDARD.decode(&last.signature).unwrap_or_default();
        if !key.has_signed(&message(self.lines.clone()), &signature) {
            return Err(BundleError::Signature(key.to_string()));
        }
        if self.line()?.is_some() {
            return Err(self.wrong("there is more after the signature".into()));
        }
        self.signer = Some(key);
        Ok(())
    }

    /// The next line with its end, bounded.
    fn line(&mut self) -> Result<Option<Vec<u8>>, BundleError> {
        let mut line = Vec::new();
        let most = limits::MEMORY_BUNDLE_LINE_BYTES_MAX;
        (&mut self.input).take(most as u64).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        match line.last() {
            Some(b'\n') => Ok(Some(line)),
            _ if line.len() >= most => Err(self.wrong(format!("it is longer than {most} bytes"))),
            _ => Err(BundleError::Cut(self.number - 1)),
        }
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, line: &[u8]) -> Result<T, BundleError> {
        serde_json::from_slice(line).map_err(|error| self.wrong(error.to_string()))
    }

    fn wrong(&self, why: String) -> BundleError {
        BundleError::Line(self.number, why)
    }
}

/// An item whose hash, value and vector are what its header says. Pure.
fn checked(raw: RawItem) -> Result<Item, String> {
    let RawHeader { agent, key, labels, links, parent, seq, unix_ms, value, version } = raw.header;
    if version != 1 {
        return Err(format!("an entry of version {version}; 1 is known here"));
    }
    let header = Header { agent, key, parent, seq, unix_ms, labels, links, value };
    bounded(&header)?;
    let hash = header.hash().map_err(|error| error.to_string())?;
    if hash != raw.hash {
        return Err(format!("{} is named, but the header's hash is {hash}", raw.hash));
    }
    let content = match raw.forgotten {
        Some(why) if raw.value.is_null() && raw.vector.is_none() => {
            if why.len() > limits::MEMORY_LABEL_VALUE_BYTES_MAX {
                return Err(format!("{hash} is forgotten for a reason of {} bytes", why.len()));
            }
            Content::Forgotten(why)
        }
        Some(_) => return Err(format!("{hash} is forgotten, and has a value all the same")),
        None => {
            let value = canonical::text(&raw.value).map_err(|error| format!("{hash}: {error}"))?;
            if value.len() > limits::MEMORY_VALUE_BYTES_MAX {
                return Err(format!("{hash} has a value of {} bytes", value.len()));
            }
            if sha256(value.as_bytes()) != header.value {
                return Err(format!("{hash} has another value than its header says"));
            }
            Content::Whole { value, vector: vector(&header, raw.vector)? }
        }
    };
    Ok(Item { hash, header, content })
}

/// What a node never writes, a bundle may not bring.
fn bounded(header: &Header) -> Result<(), String> {
    let key = &header.key;
    if key.is_empty() || key.len() > limits::MEMORY_KEY_BYTES_MAX || key.chars().any(char::is_control) {
        return Err("a key is 1 to 256 bytes without control characters".into());
    }
    // Later writes count on from here, and JSON keeps no integer beyond 2^53.
    if header.seq > limits::MEMORY_SEQ_MAX || header.unix_ms >= 1 << 52 {
        return Err("`seq` is at most 2^48, and `unix_ms` below 2^52".into());
    }
    if header.labels.len() > limits::MEMORY_LABELS_MAX + 8 {
        return Err(format!("{} labels; a node writes fewer", header.labels.len()));
    }
    if header.links.len() > limits::MEMORY_LINKS_MAX + limits::MEMORY_HEADS_MAX {
        return Err(format!("{} links; a node writes fewer", header.links.len()));
    }
    if !header.links.is_sorted_by(|a, b| (&a.kind, &a.to) < (&b.kind, &b.to)) {
        return Err("links are sorted by type, then target, none twice".into());
    }
    let words = header.labels.keys().chain(header.links.iter().map(|link| &link.kind));
    if let Some(long) = words.into_iter().find(|word| word.len() > limits::MEMORY_WORD_BYTES_MAX) {
        return Err(format!("`{}..` is longer than a name may be", shorten(long)));
    }
    if header.labels.values().any(|value| value.len() > limits::MEMORY_LABEL_VALUE_BYTES_MAX) {
        return Err("a label's value is at most 256 bytes".into());
    }
    Ok(())
}

fn vector(header: &Header, text: Option<String>) -> Result<Option<Vector>, String> {
    let (label, text) = match (header.labels.get(LABEL_VECTOR), text) {
        (None, None) => return Ok(None),
        (Some(label), Some(text)) => (label, text),
        _ => return Err("a vector and its label come together".into()),
    };
    let bytes = STANDARD.decode(text).map_err(|error| format!("the vector: {error}"))?;
    let (numbers, []) = bytes.as_chunks::<4>() else { return Err("the vector ends within a number".into()) };
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let vector = Vector::new(&numbers).map_err(|error| error.to_string())?;
    if vector.digest().to_string() != *label {
        return Err("the vector is not the one of its label".into());
    }
    Ok(Some(vector))
}

fn message(lines: Sha256) -> Vec<u8> {
    let mut message = SIGNED.to_vec();
    message.extend(lines.finalize());
    message
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
