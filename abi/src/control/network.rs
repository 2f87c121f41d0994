//! Shapes of `net.*`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::ids::{AgentName, HostName, Instance, SecretName};
use crate::network::{Budget, NamePattern, NetworkGrant, SecretPolicy};

/// Parameters of `net.resolve`: a name as the node itself sees it (`[network.hosts]`, then its resolvers).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetResolve {
    pub name: HostName,
}

/// Result of `net.resolve`: at least one address, in the order to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolved {
    pub addresses: Vec<std::net::IpAddr>,
}

/// Parameters of `net.attach`. Result: [`Attached`], with the VM's network namespace as a descriptor beside it. The network
/// lives as long as the connection: when cage closes it, or dies, all of it is torn down.
///
/// With one descriptor beside the request (a network namespace that an earlier attach returned) egress adopts it instead of
/// making one: that is how a network survives a restart of egress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAttach {
    pub instance: Instance,
    /// Owner of the TAP: the jail's uid.
    pub uid: u32,
    pub allow: Vec<NetworkGrant>,
    pub publish: Vec<crate::manifest::Published>,
    pub credentials: Vec<SecretName>,
    pub budget: Budget,
    /// It works for this agent: what is denied to that one is denied to it.
    #[serde(default)]
    pub works_for: Option<AgentName>,
    /// Names that may be sent anything, whatever the agent has seen ([`super::NetExpose`]).
    #[serde(default)]
    pub trusted: Vec<crate::authority::NamePattern>,
    /// What this life has seen so far: a network that is made again goes by no less than the one before it.
    #[serde(default)]
    pub seen: crate::exposure::Exposure,
}

/// Result of `net.attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// Name of the TAP inside the namespace, at most 15 bytes.
    pub tap: String,
    /// MAC address the guest must use, `xx:xx:xx:xx:xx:xx`.
    pub mac: String,
    pub guest: crate::guest::GuestNetwork,
    /// Added to the agent's environment where its manifest says nothing else: base URLs of brokered hosts, where the authority's
    /// certificate is. Never a secret.
    pub env: BTreeMap<String, String>,
    /// Certificate of the agent's own authority (PEM), when a grant is intercepted; for the guest's
    /// [`crate::guest::AUTHORITY_PATH`].
    pub authority: Option<String>,
}

/// Parameters of `net.grants`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetGrants {
    /// One agent; none: all.
    #[serde(default)]
    pub agent: Option<AgentName>,
    /// Leaves the lists empty: then all of the answer fits a line.
    #[serde(default)]
    pub counters_only: bool,
}

/// Result of `net.grants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    pub agents: Vec<AgentGrants>,
    /// Entries of the agents' lists that did not fit the answer, from some entry of some agent on: ask for one agent. The counters are
    /// always there.
    #[serde(default)]
    pub left_out: u64,
}

/// What one running agent may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentGrants {
    pub instance: Instance,
    /// As of now: the manifest's, live changes over it.
    pub allow: Vec<NetworkGrant>,
    /// Those of `allow` that an operator granted to the running agent.
    #[serde(default)]
    pub live: Vec<NetworkGrant>,
    pub connections: u32,
    pub connections_total: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub denials: u64,
    /// Ports of the node that lead into its guest.
    pub publish: Vec<crate::manifest::Published>,
    /// Connections to them: open now, and since the network was made. Their bytes count in `bytes_out` and `bytes_in`.
    pub published_connections: u32,
    pub published_total: u64,
    /// Synthetic address of each name.
    pub synthetic: BTreeMap<HostName, String>,
    /// What it has seen, by what [`super::NetExpose`] said and by where it connected.
    #[serde(default)]
    pub seen: crate::exposure::Exposure,
    /// By that it reaches names of `trusted_names` only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_confined: bool,
}

/// Parameters of `net.denials`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetDenials {
    #[serde(default)]
    pub agent: Option<AgentName>,
    #[serde(default)]
    pub follow: bool,
}

/// Result of `net.denials`; with follow each later one comes as notification `denial` with [`Denial`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denials {
    pub denials: Vec<Denial>,
    /// Older ones no longer kept in memory, and repeats that the rate limit folded.
    pub dropped: u64,
}

/// Parameters of `net.allow`: a live grant beside the manifest's. It ends when the agent's network does, or after `secs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAllow {
    pub agent: AgentName,
    pub grant: NetworkGrant,
    /// At most [`crate::limits::LIVE_GRANT_SECS_MAX`].
    #[serde(default)]
    pub secs: Option<u64>,
}

/// Parameters of `net.deny` (a name that is refused from now on, whatever the manifest says, until `net.lift` of the same pattern) and of
/// `net.revoke` (ends live grants of the name and refuses it for this life, whatever the manifest says). Both cut open connections at
/// once. `net.lift` of the same pattern takes either back; it cuts nothing and grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetRefuse {
    pub agent: AgentName,
    pub name: NamePattern,
}

/// Result of `net.allow`, `net.deny` and `net.revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetChanged {
    /// What holds now, in words.
    pub now: String,
    /// Open connections that were cut.
    pub cut: usize,
    /// Place of the change's receipt in the ledger.
    pub receipt: u64,
}

/// A live change, in `net.policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveChange {
    pub agent: AgentName,
    pub effect: Effect,
    pub grant: NetworkGrant,
    /// The life it is for; none: all.
    #[serde(default)]
    pub instance: Option<Instance>,
    #[serde(default)]
    pub until_unix_ms: Option<u64>,
    /// Who asked for it.
    pub by: String,
    /// Place of its receipt in the ledger.
    pub receipt: u64,
}

/// What a live change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    Allow,
    Deny,
}

/// Parameters of `net.policy`, `net.budget`, `net.suggest` and `net.watch`: one agent, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAgent {
    #[serde(default)]
    pub agent: Option<AgentName>,
}

/// Result of `net.policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveChanges {
    pub changes: Vec<LiveChange>,
    /// Changes that did not fit the answer: ask for one agent.
    pub left_out: u64,
}

/// A change of what an agent may reach, as `net.watch` streams it; as [`crate::ledger::Event::NetPolicyChanged`] records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRecord {
    pub unix_ms: u64,
    pub agent: AgentName,
    /// `allow`, `deny`, `revoke` or `expire`.
    pub change: String,
    /// The entry, as a manifest writes it.
    pub entry: String,
    pub until_unix_ms: Option<u64>,
    pub by: String,
    /// Place of its receipt in the ledger.
    pub receipt: u64,
}

/// Somebody else changed packet rules, and egress put its own back; as `net.watch` streams it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallRecord {
    pub unix_ms: u64,
    /// Whose network it was; none: the node's own rules.
    pub instance: Option<Instance>,
    /// The process that changed them, as the kernel names it.
    pub by: String,
}

/// Parameters of `net.explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetExplain {
    pub agent: AgentName,
    pub name: HostName,
    pub port: u16,
}

/// Result of `net.explain`: what egress would do now, decided by the code that decides connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    pub allowed: bool,
    /// `direct`, `broker` or `intercepted`; or the rule that refuses, as in [`Denial::rule`].
    pub rule: String,
    /// What decides: the manifest's entry, or a live change with who made it and until when; and what else must hold.
    pub because: String,
    /// How to change it.
    pub remedy: String,
}

/// Result of `net.suggest`: the smallest change of the manifest that would admit what was refused and can be admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suggestions {
    pub agents: Vec<Suggestion>,
}

/// For one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suggestion {
    pub agent: AgentName,
    /// Entries for `capabilities.network.allow`, as a manifest writes them, each with how often it was refused. A table replaces the
    /// manifest's entry of the same name and ports.
    pub add: Vec<(String, u64)>,
    /// What was refused and no entry admits, with the reason.
    pub never: Vec<(String, String)>,
    /// What did not fit the answer.
    pub left_out: u64,
}

/// Result of `net.watch`: the newest ended connections; later ones come as notifications `connection` ([`ConnectionRecord`]), denials
/// as `denial` ([`Denial`]), changes as `policy` ([`PolicyRecord`]), restored packet rules as `firewall` ([`FirewallRecord`]), in the
/// order in which they happened. Who reads too slowly loses the oldest and is told how many as `missed` ([`Missed`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watched {
    pub connections: Vec<ConnectionRecord>,
    /// Older ones that only the ledger has.
    pub dropped: u64,
}

/// What a follower of `net.watch` lost, as notification `missed`. The ledger has all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missed {
    /// Of all agents.
    pub count: u64,
}

/// An ended connection, or a call through the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionRecord {
    pub unix_ms: u64,
    pub instance: Instance,
    pub name: HostName,
    pub port: u16,
    /// The address dialled.
    pub address: String,
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub duration_ms: u64,
    /// The grant that let it through, in words.
    pub rule: String,
    /// `closed`, `revoked`, `budget`, `failed`, `refused`, or `detached` (the agent's network ended).
    pub end: String,
    /// Place in the ledger of the receipt that came before it.
    pub receipt: u64,
}

/// Result of `net.budget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    pub agents: Vec<AgentBudget>,
    /// More that do not fit a line; each can be asked for by its name.
    pub left_out: u64,
}

/// What an agent may spend and has spent; agents that do not run are listed while something is kept of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentBudget {
    pub agent: AgentName,
    /// None while the agent does not run: its bounds stand in its manifest.
    pub budget: Option<Budget>,
    /// Settled.
    pub used: Spent,
    /// Reserved by calls that are under way, or whose end nobody reported.
    pub reserved: Spent,
    pub period_ends_unix_ms: Option<u64>,
    pub hour_ends_unix_ms: Option<u64>,
    /// Why what was spent cannot be read; then the agent gets no network until it is reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// Amounts. The units are those of [`Budget`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spent {
    pub input_tokens: u64,
    pub cache_tokens: u64,
    pub output_tokens: u64,
    pub micro_dollars: u64,
    pub calls_this_hour: u64,
    pub bytes: u64,
    pub wall_secs: u64,
}

/// Parameters of `net.reset_budget`: what was spent is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetResetBudget {
    pub agent: AgentName,
}

/// Parameters of `secret.set`. The value is not in them: after the notification `ready` the caller sends one line more,
/// [`SecretValue`], which no service but egress reads. Result: [`SecretEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretSet {
    pub policy: SecretPolicy,
}

/// The line after `ready`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretValue {
    pub value: String,
}

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretValue")
    }
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretEntry {
    pub policy: SecretPolicy,
    pub set_unix_ms: u64,
    pub by: String,
    /// Running agents whose manifests refer to it.
    pub used_by: Vec<AgentName>,
    /// Why it cannot be used: its file was changed, or was sealed by another key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Result of `secret.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    pub secrets: Vec<SecretEntry>,
    /// `tpm`, `state-volume` (whoever has the disk has the secrets) or `none yet`; or why no secret can be opened.
    pub sealed_by: String,
}

/// Parameters of `secret.remove`. Connections that use it are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRemove {
    pub name: SecretName,
}

/// Something egress refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    pub unix_ms: u64,
    pub instance: Instance,
    /// What was tried: `dns A evil.example`, `tcp 8.8.8.8:443`, `sni other.example on api.exa.ai:443`.
    pub what: String,
    /// Which rule refused it: `name-not-granted`, `raw-address`, `protocol`, `sni-mismatch`, `host-mismatch`, `no-sni`,
    /// `private-address`, `port-not-granted`, `source-not-granted` (a peer at a published port), `denied`, `brokered-only`,
    /// `method-not-granted`, `path-not-granted`, `credential`, `secret-reflected`, `budget`, `unknown-model`, `limit`.
    pub rule: String,
    /// How to grant it, or that it cannot be granted.
    pub remedy: String,
    /// The same within a second, folded into this one.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    #[test]
    fn counters_of_all_agents_fit_a_line() {
        let agent = AgentGrants {
            instance: Instance { agent: "a".repeat(32).parse().unwrap(), generation: u64::MAX },
            allow: Vec::new(),
            live: Vec::new(),
            connections: u32::MAX,
            connections_total: u64::MAX,
            bytes_out: u64::MAX,
            bytes_in: u64::MAX,
            denials: u64::MAX,
            publish: Vec::new(),
            published_connections: u32::MAX,
            published_total: u64::MAX,
            seen: "private_data untrusted_content exfiltration".parse().unwrap(),
            is_confined: true,
            synthetic: BTreeMap::new(),
        };
        let all = Grants { agents: vec![agent; limits::AGENTS_RUNNING_MAX], left_out: 0 };
        assert!(serde_json::to_string(&all).unwrap().len() + 512 < limits::LINE_BYTES_MAX);
    }
}
