//! Which entries a bundle has: its `.hashes` object, so that a sync reads no bundle that has nothing new.
//!
//! It is a hint. A wrong one makes a sync fetch too much, or leave something out, as a missing bundle does; what is imported is
//! checked by the node.

use abi::ids::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The first line.
const HEAD: &str = "nullbox bundle hashes 1";
const FORGOTTEN: &str = " forgotten";

/// Entries by hash, and whether each is forgotten.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Index(BTreeMap<Digest, bool>);

/// What is read of a bundle's line: the rest is for the node.
#[derive(Deserialize)]
struct Line {
    hash: Digest,
    forgotten: Option<String>,
}

#[derive(Deserialize)]
struct Last {
    key: String,
}

impl Index {
    /// Reads the text of an object; none when it is not one.
    pub fn parse(text: &str) -> Option<Index> {
        let rest = text.strip_prefix(HEAD)?.strip_prefix('\n')?;
        let line = |line: &str| {
            let (hex, forgotten) = line.strip_suffix(FORGOTTEN).map_or((line, false), |hex| (hex, true));
            Some((format!("sha256:{hex}").parse().ok()?, forgotten))
        };
        rest.lines().map(line).collect::<Option<_>>().map(Index)
    }

    /// The text of the object.
    pub fn text(&self) -> String {
        let line = |(hash, forgotten): (Digest, bool)| {
            format!("{}{}\n", hash.hex(), if forgotten { FORGOTTEN } else { "" })
        };
        format!("{HEAD}\n{}", self.iter().map(line).collect::<String>())
    }

    /// The entries that a bundle names.
    pub fn of_bundle(bundle: &[u8]) -> Result<Index, String> {
        let mut index = BTreeMap::new();
        let body = bundle.strip_suffix(b"\n").ok_or("it was cut")?;
        let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
        let [_, items @ .., _] = lines.as_slice() else { return Err("it was cut".into()) };
        for (number, line) in items.iter().enumerate() {
            let line: Line =
                serde_json::from_slice(line).map_err(|error| format!("line {}: {error}", number + 2))?;
            *index.entry(line.hash).or_default() |= line.forgotten.is_some();
        }
        Ok(Index(index))
    }

    pub fn iter(&self) -> impl Iterator<Item = (Digest, bool)> {
        self.0.iter().map(|(hash, forgotten)| (*hash, *forgotten))
    }

    /// Whether an entry is there, and forgotten if it is to be.
    pub fn has(&self, hash: Digest, forgotten: bool) -> bool {
        self.0.get(&hash).is_some_and(|there| *there || !forgotten)
    }

    /// Takes in another.
    pub fn join(&mut self, other: Index) {
        for (hash, forgotten) in other.0 {
            *self.0.entry(hash).or_default() |= forgotten;
        }
    }
}

/// Whether a bundle says that this key signed it. The node checks whether that is so.
pub fn signed_by(bundle: &[u8], key: &str) -> bool {
    let body = bundle.strip_suffix(b"\n").unwrap_or(bundle);
    let last = body.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice::<Last>(last).is_ok_and(|last| last.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_reads_back_and_garbage_is_none() {
        let mut index = Index::default();
        index.join(Index([(Digest([1; 32]), false), (Digest([2; 32]), true)].into()));
        assert_eq!(Index::parse(&index.text()), Some(index.clone()));
        index.join(Index([(Digest([1; 32]), true)].into()));
        assert!(index.has(Digest([1; 32]), true) && !index.has(Digest([3; 32]), false));
        for wrong in ["", "hashes", "nullbox bundle hashes 1\nabc\n", "nullbox bundle hashes 2\n"] {
            assert_eq!(Index::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_cut_bundle_has_no_index() {
        for cut in ["", "\n", "{\"nullbox_bundle\":1,\"node\":\"\"}\n", "{}\n{}\n{\"key\":\"k\"}\n", "{}\n{}"]
        {
            assert!(Index::of_bundle(cut.as_bytes()).is_err(), "{cut}");
        }
        assert!(signed_by(b"{}\n{\"key\":\"k\",\"signature\":\"\"}\n", "k"));
        assert!(!signed_by(b"{}\n{\"key\":\"k\",\"signature\":\"\"}\n", "l") && !signed_by(b"", "k"));
    }
}
