//! Words of the agents' memory that manifests, cage and ctxgraph share: whose, which keys, and who let whom.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::ids::{AgentName, Digest};
use crate::limits;

/// Keys of one agent's memory, as manifests write it: `AGENT:PREFIX`. An empty prefix means all keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MemoryScope {
    pub agent: AgentName,
    pub prefix: String,
}

impl MemoryScope {
    /// Whether a key is in it, or all keys with a prefix.
    pub fn has(&self, agent: &AgentName, key: &str) -> bool {
        self.agent == *agent && key.starts_with(&self.prefix)
    }
}

impl fmt::Display for MemoryScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.agent, self.prefix)
    }
}

impl From<MemoryScope> for String {
    fn from(scope: MemoryScope) -> String {
        scope.to_string()
    }
}

impl FromStr for MemoryScope {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<MemoryScope, &'static str> {
        let (agent, prefix) = text.split_once(':').ok_or("must be AGENT:PREFIX")?;
        let agent = agent.parse().map_err(|_| "begins with an agent's name, 1 to 32 of A-Z a-z 0-9 _ -")?;
        if prefix.len() > limits::MEMORY_KEY_BYTES_MAX || prefix.chars().any(char::is_control) {
            return Err("the prefix is at most 256 bytes without control characters");
        }
        Ok(MemoryScope { agent, prefix: prefix.to_owned() })
    }
}

impl TryFrom<String> for MemoryScope {
    type Error = &'static str;
    fn try_from(text: String) -> Result<MemoryScope, &'static str> {
        text.parse()
    }
}

/// What a manifest says of memory beyond the agent's own, which is always its own. Sharing needs both sides: the reader's `read` and
/// the owner's `share_read` must meet (`write` and `share_write` likewise).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryGrants {
    /// Keys of other agents that this one wants to read.
    #[serde(default)]
    pub read: Vec<MemoryScope>,
    /// Keys of other agents that this one wants to write.
    #[serde(default)]
    pub write: Vec<MemoryScope>,
    /// Agents that may read this one's keys: the agent named is the reader, the prefix is of this agent's keys.
    #[serde(default)]
    pub share_read: Vec<MemoryScope>,
    /// Agents that may write this one's keys.
    #[serde(default)]
    pub share_write: Vec<MemoryScope>,
}

/// What other manifests let one agent have: the agent named is the owner.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryShares {
    #[serde(default)]
    pub read: Vec<MemoryScope>,
    #[serde(default)]
    pub write: Vec<MemoryScope>,
}

/// A typed edge from an entry to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// 1 to 64 of a-z 0-9 . _ -; names that begin with `nullbox.` are the node's.
    #[serde(rename = "type")]
    pub kind: String,
    pub to: Digest,
}

/// The head that a write expects under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// This entry is the newest.
    Entry(Digest),
    /// `"none"`: the key has no entry yet.
    None(NoEntry),
}

/// The word `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoEntry {
    None,
}

/// Labels and link types that begin with this are the node's: nobody else may set them.
pub const NODE_PREFIX: &str = "nullbox.";
/// Label: who wrote an entry, where it was not the agent whose memory it is in: `agent NAME` or `operator NAME`.
pub const LABEL_WRITER: &str = "nullbox.writer";
/// Label: the writer's exposure, as [`crate::exposure::Exposure`] writes it; absent when there was none.
pub const LABEL_EXPOSURE: &str = "nullbox.exposure";
/// Label: the node that wrote an entry: the first 16 hex digits of its ledger's id.
pub const LABEL_NODE: &str = "nullbox.node";
/// Label: when the value is forgotten, in milliseconds since 1970.
pub const LABEL_EXPIRES: &str = "nullbox.expires";
/// Label: `sha256:` and hex of the vector's little-endian f32.
pub const LABEL_VECTOR: &str = "nullbox.vector";
/// Link type: this head is superseded by the entry that has the link.
pub const LINK_SUPERSEDES: &str = "nullbox.supersedes";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_read_back_and_say_what_they_have() {
        let scope: MemoryScope = "librarian:notes/".parse().unwrap();
        assert_eq!(scope.to_string(), "librarian:notes/");
        let owner = "librarian".parse().unwrap();
        assert!(scope.has(&owner, "notes/1") && !scope.has(&owner, "note"));
        assert!(!scope.has(&"other".parse().unwrap(), "notes/1"));
        assert!("librarian:".parse::<MemoryScope>().unwrap().has(&owner, "anything"));
        for wrong in ["notes/", ":notes/", "a b:notes/", "a:x\ny"] {
            assert!(wrong.parse::<MemoryScope>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_expected_head_is_an_entry_or_none() {
        assert_eq!(serde_json::from_str::<Expected>("\"none\"").unwrap(), Expected::None(NoEntry::None));
        let digest = Digest([7; 32]);
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<Expected>(&text).unwrap(), Expected::Entry(digest));
        assert!(serde_json::from_str::<Expected>("\"nothing\"").is_err());
    }
}
