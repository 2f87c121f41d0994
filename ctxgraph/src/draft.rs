//! A write before it is an entry: parsed once, from what an agent or an operator sent.
//!
//! Must hold: the node's labels and link types come from the node. Must never: take a number that JSON or a vector would change.

use abi::control::MemoryWrite;
use abi::exposure::Exposure;
use abi::ids::AgentName;
use abi::limits;
use abi::memory::{Expected, LABEL_EXPOSURE, LABEL_VECTOR, LABEL_WRITER, Link, NODE_PREFIX};
use std::collections::BTreeMap;
use std::fmt;

use crate::canonical::{self, CanonicalError};
use crate::store::vector::{Vector, VectorError};

/// Who writes or forgets; for an agent known from its socket, for an operator from the door.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Author {
    Agent(AgentName),
    Operator(String),
}

/// As the label `nullbox.writer` has it.
impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Author::Agent(name) => write!(f, "agent {name}"),
            Author::Operator(name) => write!(f, "operator {name}"),
        }
    }
}

/// Why a write cannot become an entry. The writer's to put right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    #[error("`agent` is missing: whose memory is meant")]
    Owner,
    #[error("the key has {0} bytes, 1 to {max} are kept", max = limits::MEMORY_KEY_BYTES_MAX)]
    KeyLength(usize),
    #[error("the key has a control character")]
    KeyControl,
    #[error("the value has {0} bytes as canonical JSON, at most {max} are kept", max = limits::MEMORY_VALUE_BYTES_MAX)]
    ValueLength(usize),
    #[error("the value holds {0} values, itself counted, at most {max} are kept", max = limits::MEMORY_VALUE_NODES_MAX)]
    ValueNodes(usize),
    #[error(transparent)]
    Value(#[from] CanonicalError),
    #[error("the entry has {0} {1}, at most {2} are kept")]
    TooMany(usize, &'static str, usize),
    #[error("the {0} `{1}` is not 1 to {max} of a-z 0-9 . _ -", max = limits::MEMORY_WORD_BYTES_MAX)]
    Word(&'static str, String),
    #[error("the {0} `{1}` begins with `{NODE_PREFIX}`, which is the node's")]
    Reserved(&'static str, String),
    #[error("the value of label `{0}` is over {max} bytes or has a control character", max = limits::MEMORY_LABEL_VALUE_BYTES_MAX)]
    LabelValue(String),
    #[error("`ttl_secs` is {0}, 1 to {max} are kept", max = limits::MEMORY_TTL_SECS_MAX)]
    Ttl(u64),
    #[error(transparent)]
    Vector(#[from] VectorError),
}

/// What becomes an entry once its place in the chain is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub agent: AgentName,
    pub key: String,
    /// The value's canonical text.
    pub text: String,
    /// With the node's that are known by now: writer, exposure, vector.
    pub labels: BTreeMap<String, String>,
    /// Sorted, none twice.
    pub links: Vec<Link>,
    pub expected: Option<Expected>,
    pub ttl_secs: Option<u64>,
    pub vector: Option<Vector>,
}

impl Draft {
    /// Checks what was sent. An agent's own memory is meant where none is named.
    pub fn new(author: &Author, exposure: Exposure, write: MemoryWrite) -> Result<Draft, DraftError> {
        let agent = match (write.agent, author) {
            (Some(agent), _) => agent,
            (None, Author::Agent(own)) => own.clone(),
            (None, Author::Operator(_)) => return Err(DraftError::Owner),
        };
        check_key(&write.key)?;
        let text = canonical::text(&write.value)?;
        if text.len() > limits::MEMORY_VALUE_BYTES_MAX {
            return Err(DraftError::ValueLength(text.len()));
        }
        // Of new ones only: an entry that is there already stays what it is, on every node.
        let nodes = canonical::count(&write.value);
        if nodes > limits::MEMORY_VALUE_NODES_MAX {
            return Err(DraftError::ValueNodes(nodes));
        }
        check_labels(&write.labels)?;
        let mut labels = write.labels;
        if *author != Author::Agent(agent.clone()) {
            labels.insert(LABEL_WRITER.into(), author.to_string());
        }
        if !exposure.is_none() {
            labels.insert(LABEL_EXPOSURE.into(), exposure.to_string());
        }
        let vector = write.vector.map(|numbers| Vector::new(&numbers)).transpose()?;
        if let Some(vector) = &vector {
            labels.insert(LABEL_VECTOR.into(), vector.digest().to_string());
        }
        if write.ttl_secs.is_some_and(|secs| secs == 0 || secs > limits::MEMORY_TTL_SECS_MAX) {
            return Err(DraftError::Ttl(write.ttl_secs.unwrap_or(0)));
        }
        Ok(Draft {
            agent,
            key: write.key,
            text,
            labels,
            links: check_links(write.links)?,
            expected: write.parent,
            ttl_secs: write.ttl_secs,
            vector,
        })
    }
}

impl Draft {
    /// What its entry takes in an answer at most, as JSON.
    pub fn answer_bytes_max(&self) -> usize {
        let escaped = |text: &str| serde_json::to_string(text).map_or(0, |json| json.len());
        let labels: usize = self.labels.iter().map(|(name, value)| name.len() + escaped(value) + 8).sum();
        800 + escaped(&self.key) + self.text.len() + labels + self.links.len() * 200
    }
}

/// Whether a prefix may be one: as a key, or empty.
pub fn check_prefix(prefix: &str) -> Result<(), DraftError> {
    if prefix.is_empty() { Ok(()) } else { check_key(prefix) }
}

/// Whether a key may be one.
pub fn check_key(key: &str) -> Result<(), DraftError> {
    if key.is_empty() || key.len() > limits::MEMORY_KEY_BYTES_MAX {
        return Err(DraftError::KeyLength(key.len()));
    }
    if key.chars().any(char::is_control) {
        return Err(DraftError::KeyControl);
    }
    Ok(())
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), DraftError> {
    if labels.len() > limits::MEMORY_LABELS_MAX {
        return Err(DraftError::TooMany(labels.len(), "labels", limits::MEMORY_LABELS_MAX));
    }
    for (name, value) in labels {
        check_word("label", name)?;
        if value.len() > limits::MEMORY_LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(DraftError::LabelValue(name.clone()));
        }
    }
    Ok(())
}

fn check_links(mut links: Vec<Link>) -> Result<Vec<Link>, DraftError> {
    if links.len() > limits::MEMORY_LINKS_MAX {
        return Err(DraftError::TooMany(links.len(), "links", limits::MEMORY_LINKS_MAX));
    }
    for link in &links {
        check_word("link type", &link.kind)?;
    }
    links.sort();
    links.dedup();
    Ok(links)
}

fn check_word(what: &'static str, word: &str) -> Result<(), DraftError> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if word.is_empty() || word.len() > limits::MEMORY_WORD_BYTES_MAX || !word.bytes().all(fits) {
        return Err(DraftError::Word(what, word.chars().take(64).collect()));
    }
    if word.starts_with(NODE_PREFIX) {
        return Err(DraftError::Reserved(what, word.to_owned()));
    }
    Ok(())
}
