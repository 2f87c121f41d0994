//! What happened to agents, newest last, for who watches. The ledger keeps what must not be lost.

use abi::ids::AgentName;

/// The newest events of all agents.
#[derive(Debug, Default)]
pub struct Events {}

impl Events {
    /// Adds one.
    pub fn push(&self, agent: &AgentName, what: &str, detail: impl std::fmt::Display) {
        let _ = (agent, what, detail.to_string());
    }
}
