//! `secret.set`, `secret.list`, `secret.remove`, and which secrets an agent's network comes with.
//!
//! Must hold: a change is in the ledger before it is in the store, and running agents have it before it is answered; a value is in no
//! answer, error, log or receipt.

use abi::control::{NetAttach, SecretEntry, SecretRemove, SecretSet, SecretValue, Secrets as SecretsPage};
use abi::door::{Call, Outcome};
use abi::ids::{AgentName, SecretName};
use abi::ledger::Event;
use abi::network::SecretPolicy;
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use serde_json::json;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

use super::{Egress, to_value};
use crate::agent::{Agent, unix_ms_now};
use crate::secrets::{Face, SecretError};

/// How long a caller may take to send the value.
const VALUE_PATIENCE: Duration = Duration::from_secs(30);

impl Egress {
    /// Held while the store and the agents' policies change together.
    pub(super) fn changing_secrets(&self) -> MutexGuard<'_, ()> {
        self.secret_changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_secret(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let SecretSet { policy } = call.request.params()?;
        let ended = |error| RpcError::new(Code::INVALID_REQUEST, format!("no value came: {error}"));
        call.notify("ready", json!({})).map_err(ended)?;
        call.connection.set_timeout(Some(VALUE_PATIENCE)).map_err(|error| ended(error.into()))?;
        let line = call.connection.read_secret_line().map_err(ended)?.unwrap_or_default();
        call.connection.set_timeout(None).map_err(|error| ended(error.into()))?;
        // What is wrong with it is not said: it might be the value.
        let value = serde_json::from_str::<SecretValue>(&line).map_err(|_| {
            RpcError::new(Code::INVALID_PARAMS, "the line after `ready` is not a secret's value")
                .explained("it is one line {\"value\":\"...\"}", "use nullctl secret set")
        })?;
        let value = Zeroizing::new(value.value);
        let value = value
            .strip_suffix('\n')
            .map_or(value.as_str(), |value| value.strip_suffix('\r').unwrap_or(value));
        let secrets = &self.node.secrets;
        secrets.check(&policy, value).map_err(refused)?;
        self.check_hosts(&policy)?;
        let by = call.caller.to_string();
        let (name, host) = (policy.name.clone(), policy.host.clone());
        self.receipt(Event::SecretSet { name, host, by: by.clone() })?;
        let face = Face { policy, set_unix_ms: unix_ms_now(), by };
        let _changing = self.changing_secrets();
        // Another may have been set for the host meanwhile.
        self.check_hosts(&face.policy)?;
        secrets.set(face.clone(), value).map_err(refused)?;
        let users = self.users(&face.policy.name);
        let cut: usize = users.iter().map(|agent| agent.credential_set(&face.policy)).sum();
        log::info(
            "secret_set",
            &[("name", &face.policy.name), ("host", &face.policy.host), ("by", &face.by), ("cut", &cut)],
        );
        Ok(Outcome::Result(to_value(&entry(face, None, &users))?))
    }

    pub(super) fn list_secrets(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let abi::control::Nothing {} = call.request.params()?;
        let list = self.node.secrets.list().into_iter();
        let secrets = list.map(|(face, problem)| {
            let users = self.users(&face.policy.name);
            entry(face, problem, &users)
        });
        let page = SecretsPage { secrets: secrets.collect(), sealed_by: self.node.secrets.sealed_by() };
        Ok(Outcome::Result(to_value(&page)?))
    }

    pub(super) fn remove_secret(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let SecretRemove { name } = call.request.params()?;
        if !self.node.secrets.has(&name) {
            return Err(refused(SecretError::NotSet(name)));
        }
        let by = call.caller.to_string();
        self.receipt(Event::SecretRemoved { name: name.clone(), by: by.clone() })?;
        let _changing = self.changing_secrets();
        self.node.secrets.remove(&name).map_err(refused)?;
        let cut: usize = self.users(&name).iter().map(|agent| agent.credential_removed(&name)).sum();
        log::info("secret_removed", &[("name", &name), ("by", &by), ("cut", &cut)]);
        Ok(Outcome::Result(json!({})))
    }

    /// Running agents that refer to a secret.
    fn users(&self, name: &SecretName) -> Vec<Arc<Agent>> {
        self.agents().values().filter(|agent| agent.credentials.contains(name)).cloned().collect()
    }

    /// No running agent gets two secrets for one host.
    fn check_hosts(&self, policy: &SecretPolicy) -> Result<(), RpcError> {
        for agent in self.users(&policy.name) {
            let others = agent.policy().secrets.into_iter().filter(|other| other.name != policy.name);
            if let Some(other) = others.into_iter().find(|other| other.host == policy.host) {
                let message =
                    format!("agent {} has {} for {} already", agent.instance.agent, other.name, other.host);
                return Err(RpcError::new(Code::CONFLICT, message)
                    .explained(ONE_FOR_A_HOST, "remove the other secret, or stop the agent first"));
            }
        }
        Ok(())
    }

    /// Waits until a change is in the ledger.
    pub(super) fn receipt(&self, event: Event) -> Result<(), RpcError> {
        self.node.receipts.durable(event).map(drop).map_err(|error| {
            RpcError::new(Code::UNAVAILABLE, format!("no receipt, so no change: {error}"))
                .explained("a change is in the ledger before it is in force", "see that ctxgraph is running")
        })
    }

    /// The policies of an agent's secrets, if each can be used.
    pub(super) fn credentials(&self, asked: &NetAttach) -> Result<Vec<SecretPolicy>, RpcError> {
        let agent = &asked.instance.agent;
        if asked.credentials.len() > limits::CREDENTIALS_PER_AGENT_MAX {
            return Err(RpcError::new(
                Code::INVALID_PARAMS,
                format!("{} credentials", asked.credentials.len()),
            )
            .explained("CREDENTIALS_PER_AGENT_MAX is the most", "this is an error of the caller"));
        }
        let mut found: Vec<SecretPolicy> = Vec::new();
        for name in &asked.credentials {
            let policy = self.node.secrets.policy(name).map_err(|error| unusable(agent, name, error))?;
            if let Some(other) = found.iter().find(|other| other.host == policy.host) {
                let message = format!("{} and {name} are both for {}", other.name, policy.host);
                return Err(RpcError::new(Code::CONFLICT, message).explained(
                    ONE_FOR_A_HOST,
                    format!("leave one out of credential_refs of agent {agent}"),
                ));
            }
            let admits = |grant: &abi::network::NetworkGrant| {
                grant.name.admits(&policy.host) && grant.ports.contains(&policy.port)
            };
            if !asked.allow.iter().any(admits) {
                let (host, port) = (&policy.host, policy.port);
                let message = format!(
                    "agent {agent} has the credential {name} for {host}:{port}, which it may not reach"
                );
                return Err(RpcError::new(Code::CONFLICT, message).explained(
                    "a credential grants no name",
                    format!("add \"{host}:{port}\" to capabilities.network.allow, or take {name} out of credential_refs"),
                ));
            }
            found.push(policy);
        }
        Ok(found)
    }
}

const ONE_FOR_A_HOST: &str = "an agent has one credential for a host";

fn entry(face: Face, problem: Option<String>, users: &[Arc<Agent>]) -> SecretEntry {
    let Face { policy, set_unix_ms, by } = face;
    let mut used_by: Vec<AgentName> = users.iter().map(|agent| agent.instance.agent.clone()).collect();
    used_by.sort();
    used_by.dedup();
    SecretEntry { policy, set_unix_ms, by, used_by, problem }
}

fn unusable(agent: &AgentName, name: &SecretName, error: SecretError) -> RpcError {
    let (code, remedy) = match &error {
        SecretError::NoKey(_) => {
            (Code::UNAVAILABLE, "see nullctl secret list, and nullctl system logs egress".into())
        }
        _ => (Code::CONFLICT, format!("set it: nullctl secret set {name} --host HOST --file PATH")),
    };
    RpcError::new(code, format!("agent {agent} refers to {name}: {error}"))
        .explained("each of credential_refs is set before the agent starts", remedy)
}

fn refused(error: SecretError) -> RpcError {
    let (code, rule, remedy) = match &error {
        SecretError::NotSet(_) => (Code::NOT_FOUND, "a secret has a name", "see nullctl secret list"),
        SecretError::Wrong(_) => (
            Code::INVALID_PARAMS,
            "a secret goes into one header field of one host",
            "see nullctl secret set --help",
        ),
        SecretError::TooMany => (Code::LIMIT, "SECRETS_MAX", "remove one: nullctl secret rm NAME"),
        SecretError::Changed(_) | SecretError::Damaged(_) => {
            (Code::CONFLICT, "a secret is used as it was set", "set it anew, or remove it")
        }
        SecretError::NoKey(_) => {
            (Code::UNAVAILABLE, "nothing is stored without its key", "see nullctl system logs egress")
        }
        SecretError::Io { .. } => {
            (Code::FAILED, "a secret is on the disk before it is used", "see nullctl system doctor")
        }
    };
    RpcError::new(code, error.to_string()).explained(rule, remedy)
}
