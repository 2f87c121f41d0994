//! Who speaks, and what that means for a call: whose memory is meant, what may be reached, and what reading it does.
//!
//! Must hold: an agent is known by its socket. Nothing goes out to an agent before its exposure is raised by it.

use abi::control::Entry;
use abi::exposure::Exposure;
use abi::identity::Caller;
use abi::ids::AgentName;
use abi::rpc::{Code, RpcError};

use crate::access::{self, NEEDS_BOTH, Party, What};
use crate::draft::Author;
use crate::exposure::Reader;

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

/// An agent as its socket makes it known, for the time of a lease.
#[derive(Debug)]
pub struct Port {
    pub party: Party,
    pub reader: Reader,
}

/// Who speaks.
#[derive(Debug, Clone, Copy)]
pub enum Speaker<'a> {
    Agent(&'a Port),
    /// An operator (or root) through the door; the role was checked there.
    Operator(&'a Caller),
}

impl Speaker<'_> {
    /// The agent, where it is one.
    pub fn agent(&self) -> Option<&AgentName> {
        match self {
            Speaker::Agent(port) => Some(&port.party.agent),
            Speaker::Operator(_) => None,
        }
    }

    /// As entries and the ledger name it.
    pub fn author(&self) -> Author {
        match self {
            Speaker::Agent(port) => Author::Agent(port.party.agent.clone()),
            Speaker::Operator(Caller::Operator { name, .. }) => Author::Operator(name.clone()),
            Speaker::Operator(other) => Author::Operator(other.to_string()),
        }
    }

    /// What its writes carry: an operator's carry nothing.
    pub fn exposure(&self) -> Exposure {
        match self {
            Speaker::Agent(port) => port.reader.now(),
            Speaker::Operator(_) => Exposure::NONE,
        }
    }

    /// Whose memory is meant: an agent's own unless it names another's.
    pub fn owner(&self, named: Option<AgentName>, method: &str) -> Result<AgentName, RpcError> {
        match (named, self.agent()) {
            (Some(named), _) => Ok(named),
            (None, Some(own)) => Ok(own.clone()),
            (None, None) => Err(RpcError::new(Code::INVALID_PARAMS, format!("{method}: `agent` is missing"))
                .explained("an operator names the agent whose memory is meant", "add `agent`")),
        }
    }

    /// Whether it may read or write a key, or all keys with a prefix.
    pub fn may(&self, what: What, owner: &AgentName, key: &str) -> Result<(), Refusal> {
        let Speaker::Agent(port) = self else { return Ok(()) };
        match access::decide(&port.party, what, owner, key) {
            Ok(_) => Ok(()),
            Err(denial) => {
                let shown: String = key.chars().take(64).collect();
                let denied = Denied { what: format!("{what} `{shown}` of {owner}"), rule: NEEDS_BOTH };
                Err(Refusal { error: denial.error(), denied: Some(denied) })
            }
        }
    }

    /// The same for reading, as a yes or no.
    pub fn may_read(&self, owner: &AgentName, key: &str) -> bool {
        match self {
            Speaker::Operator(_) => true,
            Speaker::Agent(port) => access::decide(&port.party, What::Read, owner, key).is_ok(),
        }
    }

    /// What it is exposed to once it has read these, which may go out then.
    pub fn reads<'e>(&self, entries: impl Iterator<Item = &'e Entry>) -> Result<Exposure, RpcError> {
        match self {
            Speaker::Agent(port) => port.reader.reads(entries),
            Speaker::Operator(_) => Ok(Exposure::NONE),
        }
    }
}
