//! An entry of an agent's memory and its hash. The format is docs/formats/ctxgraph.md.
//!
//! Must hold: the hash covers everything a reader is shown. Must never: change for an entry that exists.

use abi::control::Entry;
use abi::exposure::Exposure;
use abi::ids::{AgentName, Digest};
use abi::memory::{LABEL_EXPOSURE, Link};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

use crate::canonical::{self, CanonicalError};

/// Keeps hashes of entries apart from hashes of values, which are JSON texts.
const PREFIX: &[u8] = b"nullbox memory entry\n";

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
        canonical::text(&json!({
            "agent": self.agent,
            "key": self.key,
            "labels": self.labels,
            "links": self.links,
            "parent": self.parent,
            "seq": self.seq,
            "unix_ms": self.unix_ms,
            "value": self.value,
            "version": 1,
        }))
    }

    /// The entry's hash.
    pub fn hash(&self) -> Result<Digest, CanonicalError> {
        let mut hasher = Sha256::new();
        hasher.update(PREFIX);
        hasher.update(self.text()?);
        Ok(Digest(hasher.finalize().into()))
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
