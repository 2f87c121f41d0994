//! An entry of an agent's memory and its hash. The format is docs/formats/ctxgraph.md.
//!
//! Must hold: the hash covers everything a reader is shown. Must never: change for an entry that exists.

use abi::control::Entry;
use abi::exposure::Exposure;
use abi::ids::{AgentName, Digest};
use abi::memory::{LABEL_EXPOSURE, Link};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

use crate::canonical::{self, CanonicalError};

/// Keeps hashes of entries apart from hashes of values, which are JSON texts.
const PREFIX: &str = "nullbox memory entry\n";

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// What the hash of an entry covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub agent: AgentName,
    pub key: String,
    pub parent: Option<Digest>,
    pub seq: u64,
    pub unix_ms: u64,
    pub labels: BTreeMap<String, String>,
    /// Sorted by type, then target; none twice.
    pub links: Vec<Link>,
    /// SHA-256 of the value's canonical text.
    pub value: Digest,
}

impl Header {
    /// The canonical text.
    pub fn text(&self) -> Result<String, CanonicalError> {
        let (labels, links) = (self.labels_text(), self.links_text());
        self.parts(&labels, &links).text()
    }

    /// The entry's hash.
    pub fn hash(&self) -> Result<Digest, CanonicalError> {
        let (labels, links) = (self.labels_text(), self.links_text());
        self.parts(&labels, &links).hash()
    }

    /// The canonical text of the labels.
    pub fn labels_text(&self) -> String {
        let mut sorted: Vec<_> = self.labels.iter().collect();
        // RFC 8785 3.2.3; the order of UTF-8 is another one only beyond ASCII, which only an import can bring.
        if sorted.iter().any(|(name, _)| !name.is_ascii()) {
            sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
        }
        let mut out = String::from("{");
        for (number, (name, value)) in sorted.into_iter().enumerate() {
            out.push_str(if number == 0 { "" } else { "," });
            canonical::write_string(&mut out, name);
            out.push(':');
            canonical::write_string(&mut out, value);
        }
        out.push('}');
        out
    }

    /// The canonical text of the links.
    pub fn links_text(&self) -> String {
        let mut out = String::from("[");
        for (number, link) in self.links.iter().enumerate() {
            out.push_str(if number == 0 { "{\"to\":\"" } else { ",{\"to\":\"" });
            write_digest(&mut out, &link.to);
            out.push_str("\",\"type\":");
            canonical::write_string(&mut out, &link.kind);
            out.push('}');
        }
        out.push(']');
        out
    }

    fn parts<'a>(&'a self, labels: &'a str, links: &'a str) -> Parts<'a> {
        Parts {
            agent: self.agent.as_str(),
            key: &self.key,
            labels,
            links,
            parent: self.parent,
            seq: self.seq,
            unix_ms: self.unix_ms,
            value: self.value,
        }
    }

    /// The entry as it goes out.
    pub fn entry(self, hash: Digest, value: Value) -> Entry {
        let exposure = self.labels.get(LABEL_EXPOSURE).and_then(|text| text.parse().ok()).unwrap_or_default();
        Entry {
            hash,
            agent: self.agent,
            key: self.key,
            value,
            parent: self.parent,
            seq: self.seq,
            unix_ms: self.unix_ms,
            labels: self.labels,
            links: self.links,
            exposure,
            forgotten: None,
            conflicts: Vec::new(),
            reader_exposure: Exposure::NONE,
        }
    }
}

/// A header as it lies in memory.db: labels and links are canonical texts already, so its hash costs no parsing.
#[derive(Debug)]
pub struct Parts<'a> {
    pub agent: &'a str,
    pub key: &'a str,
    pub labels: &'a str,
    pub links: &'a str,
    pub parent: Option<Digest>,
    pub seq: u64,
    pub unix_ms: u64,
    pub value: Digest,
}

impl Parts<'_> {
    /// The header's canonical text: members in the order of their names.
    pub fn text(&self) -> Result<String, CanonicalError> {
        let mut out = String::with_capacity(320 + self.key.len() + self.labels.len() + self.links.len());
        self.write(&mut out)?;
        Ok(out)
    }

    fn write(&self, out: &mut String) -> Result<(), CanonicalError> {
        out.push_str("{\"agent\":");
        canonical::write_string(out, self.agent);
        out.push_str(",\"key\":");
        canonical::write_string(out, self.key);
        out.push_str(",\"labels\":");
        out.push_str(self.labels);
        out.push_str(",\"links\":");
        out.push_str(self.links);
        out.push_str(",\"parent\":");
        match &self.parent {
            None => out.push_str("null"),
            Some(parent) => {
                out.push('"');
                write_digest(out, parent);
                out.push('"');
            }
        }
        out.push_str(",\"seq\":");
        canonical::write_integer(out, self.seq)?;
        out.push_str(",\"unix_ms\":");
        canonical::write_integer(out, self.unix_ms)?;
        out.push_str(",\"value\":\"");
        write_digest(out, &self.value);
        out.push_str("\",\"version\":1}");
        Ok(())
    }

    /// The entry's hash.
    pub fn hash(&self) -> Result<Digest, CanonicalError> {
        let room = 320 + PREFIX.len() + self.key.len() + self.labels.len() + self.links.len();
        let mut out = String::with_capacity(room);
        out.push_str(PREFIX);
        self.write(&mut out)?;
        Ok(sha256(out.as_bytes()))
    }
}

fn write_digest(out: &mut String, digest: &Digest) {
    out.push_str("sha256:");
    for byte in digest.0 {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_of_the_format_page_holds() {
        let page = include_str!("../../docs/formats/ctxgraph.md");
        let value: Value = serde_json::from_str(r#"{"b":1.0,"a":"é"}"#).unwrap();
        let text = canonical::text(&value).unwrap();
        let header = Header {
            agent: "researcher".parse().unwrap(),
            key: "notes/1".into(),
            parent: None,
            seq: 0,
            unix_ms: 1_700_000_000_000,
            labels: BTreeMap::new(),
            links: Vec::new(),
            value: sha256(text.as_bytes()),
        };
        for line in [
            format!("    JCS(value)  {text}\n"),
            format!("    H           {}\n", header.value.hex()),
            format!("    JCS(header) {}\n", header.text().unwrap()),
            format!("    hash        {}\n", header.hash().unwrap().hex()),
        ] {
            assert!(page.contains(&line), "the page lacks {line}");
        }
    }

    #[test]
    fn the_text_written_straight_is_the_canonical_one() {
        let strange = "a\"\\\n\u{1}é\u{fb33}😀";
        let mut header = Header {
            agent: "a".parse().unwrap(),
            key: strange.into(),
            parent: Some(sha256(b"2")),
            seq: 7,
            unix_ms: 1 << 53,
            labels: [("b", "1"), ("a.b", strange), ("\u{fb33}", "x"), ("😀", "y")]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            links: [("x", b"1"), ("y", b"0")]
                .map(|(kind, to)| Link { kind: kind.into(), to: sha256(to) })
                .into(),
            value: sha256(b"1"),
        };
        let json = serde_json::json!({
            "agent": header.agent,
            "key": header.key,
            "labels": header.labels,
            "links": header.links,
            "parent": header.parent,
            "seq": header.seq,
            "unix_ms": header.unix_ms,
            "value": header.value,
            "version": 1,
        });
        assert_eq!(header.text(), canonical::text(&json));
        header.unix_ms += 1;
        assert!(header.hash().is_err(), "a time that JSON would change");
    }

    #[test]
    fn every_member_changes_the_hash() {
        let header = Header {
            agent: "a".parse().unwrap(),
            key: "k".into(),
            parent: None,
            seq: 0,
            unix_ms: 5,
            labels: BTreeMap::new(),
            links: Vec::new(),
            value: sha256(b"1"),
        };
        let link = |kind: &str| Link { kind: kind.into(), to: sha256(b"3") };
        let mut hashes = std::collections::BTreeSet::from([header.hash().unwrap()]);
        for changed in [
            Header { agent: "b".parse().unwrap(), ..header.clone() },
            Header { key: "l".into(), ..header.clone() },
            Header { parent: Some(sha256(b"2")), ..header.clone() },
            Header { seq: 1, ..header.clone() },
            Header { unix_ms: 6, ..header.clone() },
            Header { value: sha256(b"2"), ..header.clone() },
            Header { labels: [("a".into(), "b".into())].into(), ..header.clone() },
            Header { links: vec![link("about")], ..header.clone() },
            Header { links: vec![link("from")], ..header.clone() },
        ] {
            assert!(hashes.insert(changed.hash().unwrap()), "{changed:?}");
        }
    }
}
