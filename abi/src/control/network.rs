//! Shapes of `net.*`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::ids::{AgentName, Destination, HostName, Instance};

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
    pub allow: Vec<Destination>,
    pub publish: Vec<crate::manifest::Published>,
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
}

/// Parameters of `net.grants`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetGrants {
    /// Leaves the lists empty: then the answer fits a line, however many agents there are and whatever they were granted.
    #[serde(default)]
    pub counters_only: bool,
}

/// Result of `net.grants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    pub agents: Vec<AgentGrants>,
}

/// What one running agent may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentGrants {
    pub instance: Instance,
    pub allow: Vec<Destination>,
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

/// Something egress refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    pub unix_ms: u64,
    pub instance: Instance,
    /// What was tried: `dns A evil.example`, `tcp 8.8.8.8:443`, `sni other.example on api.exa.ai:443`.
    pub what: String,
    /// Which rule refused it: `name-not-granted`, `raw-address`, `protocol`, `sni-mismatch`, `host-mismatch`, `no-sni`,
    /// `private-address`, `port-not-granted`, `source-not-granted` (a peer at a published port), `limit`.
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
            connections: u32::MAX,
            connections_total: u64::MAX,
            bytes_out: u64::MAX,
            bytes_in: u64::MAX,
            denials: u64::MAX,
            publish: Vec::new(),
            published_connections: u32::MAX,
            published_total: u64::MAX,
            synthetic: BTreeMap::new(),
        };
        let all = Grants { agents: vec![agent; limits::AGENTS_RUNNING_MAX] };
        assert!(serde_json::to_string(&all).unwrap().len() + 512 < limits::LINE_BYTES_MAX);
    }
}
