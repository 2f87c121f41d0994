//! The memory methods, for whoever speaks: the rules on whose memory is meant, and the shapes of answers and refusals.
//!
//! Must hold: an agent reaches its own memory only, whatever its parameters say.
//! Must never: tell an agent whether another agent's entry exists.

use abi::control::{MemoryHistory, MemoryList, MemoryQuery, MemoryRead, MemoryWrite};
use abi::exposure::Exposure;
use abi::ids::{AgentName, Digest};
use abi::rpc::{Code, Request, RpcError};
use serde::Serialize;
use serde_json::Value;

use crate::draft::{Author, DraftError};
use crate::memory::{Memory, MemoryError};

/// Who speaks. For an agent it is known from the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaker {
    Agent(AgentName),
    /// An operator (or root) through the door; the role was checked there.
    Operator,
}

/// A call that was not served.
#[derive(Debug)]
pub struct Refusal {
    pub error: RpcError,
    /// Present when it reached for what is another's: to be recorded.
    pub denied: Option<Denied>,
}

/// A denial as the ledger records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    pub what: String,
    pub rule: &'static str,
}

impl From<RpcError> for Refusal {
    fn from(error: RpcError) -> Refusal {
        Refusal { error, denied: None }
    }
}

impl From<MemoryError> for Refusal {
    fn from(error: MemoryError) -> Refusal {
        explain(&error).into()
    }
}

/// The rule that refuses another agent's memory.
pub const OWN_MEMORY_ONLY: &str = "own-memory-only";
/// The rule that refuses methods of the control protocol on an agent's memory socket.
pub const MEMORY_METHODS_ONLY: &str = "memory-methods-only";

/// Serves one call.
pub fn answer(memory: &Memory, speaker: &Speaker, request: &Request) -> Result<Value, Refusal> {
    match (request.method.as_str(), speaker) {
        ("memory.write", _) => {
            let mut params: MemoryWrite = request.params()?;
            let owner = whose(speaker, params.agent.take(), &request.method)?;
            let author = match speaker {
                Speaker::Agent(own) => Author::Agent(own.clone()),
                Speaker::Operator => Author::Operator("operator".into()),
            };
            params.agent = Some(owner.clone());
            let may_read = |agent: &AgentName, _: &str| *agent == owner;
            value_of(memory.write(&author, Exposure::NONE, params, &may_read)?)
        }
        ("memory.read", _) => {
            let params: MemoryRead = request.params()?;
            let agent = whose(speaker, params.agent, &request.method)?;
            match (&params.hash, &params.key) {
                (Some(hash), None) => match memory.by_hash(hash)? {
                    Some(entry) if entry.agent == agent => value_of(entry),
                    _ => Err(no_entry(memory, speaker, &agent, hash)),
                },
                (None, Some(key)) => match memory.newest(&agent, key)? {
                    Some(entry) => value_of(entry),
                    None => Err(no_key(&agent, key).into()),
                },
                _ => Err(RpcError::new(Code::INVALID_PARAMS, "give `hash` or `key`, one of them")
                    .explained("an entry is read by its hash, or as the newest of its key", "leave one out")
                    .into()),
            }
        }
        ("memory.query", _) => {
            let mut params: MemoryQuery = request.params()?;
            let agent = whose(speaker, params.agent.take(), &request.method)?;
            value_of(memory.query(&agent, &params)?)
        }
        ("memory.history", _) => {
            let mut params: MemoryHistory = request.params()?;
            let agent = whose(speaker, params.agent.take(), &request.method)?;
            value_of(memory.history(&agent, &params)?)
        }
        ("memory.list", Speaker::Operator) => value_of(MemoryList { agents: memory.list()? }),
        (method, Speaker::Agent(_)) => Err(not_for_agents(method)),
        (method, Speaker::Operator) => {
            Err(RpcError::new(Code::UNKNOWN_METHOD, format!("there is no method `{}`", shorten(method)))
                .into())
        }
    }
}

/// Whose memory is meant. Pure.
fn whose(speaker: &Speaker, named: Option<AgentName>, method: &str) -> Result<AgentName, Refusal> {
    match (speaker, named) {
        (Speaker::Agent(own), None) => Ok(own.clone()),
        (Speaker::Agent(own), Some(named)) if *own == named => Ok(named),
        (Speaker::Agent(own), Some(named)) => Err(Refusal {
            error: RpcError::new(Code::DENIED, format!("`{own}` may not reach the memory of `{named}`"))
                .explained(
                    format!(
                        "{OWN_MEMORY_ONLY}: an agent is known by its socket and reaches its own memory only"
                    ),
                    "leave `agent` out; memory cannot be shared between agents yet",
                ),
            denied: Some(Denied { what: format!("{method} as {named}"), rule: OWN_MEMORY_ONLY }),
        }),
        (Speaker::Operator, Some(named)) => Ok(named),
        (Speaker::Operator, None) => {
            Err(RpcError::new(Code::INVALID_PARAMS, format!("{method}: `agent` is missing"))
                .explained("an operator names the agent whose memory is meant", "add `agent`")
                .into())
        }
    }
}

/// An agent gets the same answer whether the entry is another's or nobody's; the ledger knows the difference.
fn no_entry(memory: &Memory, speaker: &Speaker, agent: &AgentName, hash: &Digest) -> Refusal {
    let reached =
        matches!(speaker, Speaker::Agent(_)) && memory.by_hash(hash).is_ok_and(|found| found.is_some());
    Refusal {
        error: RpcError::new(Code::NOT_FOUND, format!("the memory of `{agent}` has no entry {hash}"))
            .explained(
                format!("{OWN_MEMORY_ONLY}: only entries of that agent are read"),
                "memory.history lists the entries of a key; memory cannot be shared between agents yet",
            ),
        denied: reached.then(|| Denied { what: format!("memory.read {hash}"), rule: OWN_MEMORY_ONLY }),
    }
}

fn no_key(agent: &AgentName, key: &str) -> RpcError {
    RpcError::new(Code::NOT_FOUND, format!("the memory of `{agent}` has nothing under `{}`", shorten(key)))
        .explained("keys are compared byte by byte", "memory.query lists the keys with a prefix")
}

fn not_for_agents(method: &str) -> Refusal {
    let method = shorten(method);
    let known = abi::control::method(&method).is_some();
    let code = if known { Code::DENIED } else { Code::UNKNOWN_METHOD };
    Refusal {
        error: RpcError::new(code, format!("an agent's memory socket has no method `{method}`")).explained(
            format!("{MEMORY_METHODS_ONLY}: memory.write, memory.read, memory.query, memory.history"),
            "there is no grant for other methods",
        ),
        denied: known.then_some(Denied { what: method, rule: MEMORY_METHODS_ONLY }),
    }
}

/// A memory error as an answer that says which rule and what to do.
pub fn explain(error: &MemoryError) -> RpcError {
    let (code, rule, remedy) = match error {
        MemoryError::Draft(draft) => return explain_draft(draft),
        MemoryError::BatchCount(_) | MemoryError::BatchBytes => {
            (Code::INVALID_PARAMS, "a batch and its answer are one line each", "send several batches")
        }
        MemoryError::Link(_) => (
            Code::INVALID_PARAMS,
            "a link leads to an entry that its writer may read",
            "memory.query lists entries with their hashes",
        ),
        MemoryError::Conflict { .. } => (
            Code::CONFLICT,
            "a write with `parent` happens only where that is the newest entry",
            "read the key again, and write on what is there",
        ),
        MemoryError::Heads(_) => (
            Code::CONFLICT,
            "this node refuses to write to a key with several heads ([memory] conflicts in nulld.toml)",
            "look at memory.conflicts, then write with the newest as `parent`: the others are superseded",
        ),
        MemoryError::Target => (
            Code::INVALID_PARAMS,
            "one entry is forgotten by its hash, or all of a key",
            "leave one of them out",
        ),
        MemoryError::Quota(_) => (
            Code::LIMIT,
            "entries are never removed, and each agent may own so many; values can be forgotten",
            "forget values (for bytes); an operator can give the agent another name (for entries)",
        ),
        MemoryError::Busy(_) => (Code::LIMIT, "writes wait in a bounded queue", "try again"),
        MemoryError::Cursor(_) => {
            (Code::INVALID_PARAMS, "a cursor comes from the answer before", "start without a cursor")
        }
        MemoryError::Receipt(_) => (
            Code::FAILED,
            "a write happens only when its receipt is durable in the ledger",
            "an operator sees the cause with nullctl ledger verify",
        ),
        MemoryError::Store(_) | MemoryError::Closed => (
            Code::FAILED,
            "the node's memory does not work",
            "an operator sees the cause in the log of ctxgraph",
        ),
    };
    RpcError::new(code, error.to_string()).explained(rule, remedy)
}

fn explain_draft(error: &DraftError) -> RpcError {
    let (rule, remedy) = match error {
        DraftError::Owner => ("an operator names the agent whose memory is meant", "add `agent`"),
        DraftError::KeyLength(_) | DraftError::KeyControl => {
            ("a key is 1 to 256 bytes of UTF-8 without control characters", "use another key")
        }
        DraftError::ValueLength(_) => {
            ("a value is at most 32 KiB of canonical JSON", "split it over several keys")
        }
        DraftError::Value(_) => {
            ("a value is kept exactly, as RFC 8785 writes it", "write large integers as strings; nest less")
        }
        DraftError::TooMany(..) => ("an entry has so many at most", "link from several entries; label less"),
        DraftError::Word(..) => ("labels and link types are short words", "use another word"),
        DraftError::Reserved(..) => ("the node's labels and links come from the node", "use another word"),
        DraftError::LabelValue(_) => ("a label's value is a short text", "put long texts into the value"),
        DraftError::Ttl(_) => {
            ("a time to live is one second to ten years", "leave `ttl_secs` out to keep it")
        }
        DraftError::Vector(_) => {
            ("a vector has a direction, which is what is compared", "send finite numbers")
        }
    };
    RpcError::new(Code::INVALID_PARAMS, error.to_string()).explained(rule, remedy)
}

/// A result as JSON.
pub fn value_of(result: impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(result).map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()).into())
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_itself_whatever_it_says() {
        let agent = |name: &str| -> AgentName { name.parse().unwrap() };
        let own = Speaker::Agent(agent("a"));
        assert_eq!(whose(&own, None, "m").unwrap(), agent("a"));
        assert_eq!(whose(&own, Some(agent("a")), "m").unwrap(), agent("a"));
        let refusal = whose(&own, Some(agent("b")), "memory.write").unwrap_err();
        assert_eq!(refusal.error.code, Code::DENIED);
        assert_eq!(refusal.denied.unwrap().what, "memory.write as b");
        assert_eq!(whose(&Speaker::Operator, Some(agent("b")), "m").unwrap(), agent("b"));
        assert_eq!(whose(&Speaker::Operator, None, "m").unwrap_err().error.code, Code::INVALID_PARAMS);
    }

    #[test]
    fn methods_of_the_control_protocol_are_denied_to_agents_and_recorded() {
        for method in abi::control::METHODS {
            let refusal = not_for_agents(method.name);
            assert_eq!(refusal.error.code, Code::DENIED);
            assert!(refusal.denied.is_some());
        }
        let unknown = not_for_agents("memory.fly");
        assert_eq!(unknown.error.code, Code::UNKNOWN_METHOD);
        assert!(unknown.denied.is_none());
    }
}
