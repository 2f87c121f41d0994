//! Who speaks: a service, an operator or a local user. Never a name that a caller carries with it: it comes from
//! SO_PEERCRED, from the key of a TLS session, or from which VM's socket the bytes came.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What an operator may do. Each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees: status, lists, logs, denials, the ledger.
    Reader,
    /// Also acts on agents: start, stop, exec, import.
    Operator,
    /// Also acts on the node: power, configuration, secrets.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Reader => "reader",
            Role::Operator => "operator",
            Role::Admin => "admin",
        })
    }
}

/// A component of the node with a socket of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Nulld,
    Egress,
    Ctxgraph,
    Cage,
    Nullgate,
}

impl Service {
    /// All, in start order.
    pub const ALL: [Service; 5] =
        [Service::Nulld, Service::Ctxgraph, Service::Egress, Service::Cage, Service::Nullgate];

    /// The name in nulld.toml, logs and socket paths.
    pub fn name(self) -> &'static str {
        match self {
            Service::Nulld => "nulld",
            Service::Egress => "egress",
            Service::Ctxgraph => "ctxgraph",
            Service::Cage => "cage",
            Service::Nullgate => "nullgate",
        }
    }

    /// The user a service runs as. nulld and cage are root: cage makes jails.
    pub fn uid(self) -> u32 {
        match self {
            Service::Nulld | Service::Cage => 0,
            Service::Egress => 201,
            Service::Ctxgraph => 202,
            Service::Nullgate => 203,
        }
    }

    /// The Unix socket where other services reach this one; nulld makes and keeps it, so that a caller waits in the
    /// backlog while the service restarts.
    pub fn socket_path(self) -> String {
        format!("/run/nullbox/{}.sock", self.name())
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The user of nulld's uplink service, which speaks DHCP (UDP 68 to 67) in the node's network namespace. It calls nobody.
pub const UPLINK_UID: u32 = 204;

/// The user of nulld's clock service, which asks time servers (UDP 123). It calls egress to resolve their names.
pub const CLOCK_UID: u32 = 205;

/// The user of nulld's log forwarder, which sends log lines to one configured host. It calls egress to resolve its name.
pub const FORWARD_UID: u32 = 206;

/// First uid of a VM's jail; the jail in slot n has `VM_UID_BASE + n` as uid and gid.
pub const VM_UID_BASE: u32 = 100_000;

/// Who made a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Caller {
    /// Another service, by uid.
    Service { service: Service },
    /// A local process on nulld's socket, by uid. Uid 0 is an admin; any other uid is refused.
    Local { uid: u32 },
    /// A remote operator whose key nullgate has checked.
    Operator { name: String, key: String, role: Role },
}

impl Caller {
    /// The caller behind a Unix socket's peer uid. Root is `Local`: cage and nulld call as root too.
    pub fn from_uid(uid: u32) -> Caller {
        match Service::ALL.into_iter().find(|service| service.uid() == uid && uid != 0) {
            Some(service) => Caller::Service { service },
            None => Caller::Local { uid },
        }
    }

    /// The role at the door; none means refused.
    pub fn role(&self) -> Option<Role> {
        match self {
            Caller::Operator { role, .. } => Some(*role),
            Caller::Local { uid: 0 } => Some(Role::Admin),
            Caller::Local { .. } | Caller::Service { .. } => None,
        }
    }

    /// Whether this is a part of the node itself: a service, one of nulld's helpers, or root.
    pub fn is_node(&self) -> bool {
        matches!(self, Caller::Service { .. } | Caller::Local { uid: 0 | CLOCK_UID | FORWARD_UID })
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Service { service } => write!(f, "service {service}"),
            Caller::Local { uid } => write!(f, "local uid {uid}"),
            Caller::Operator { name, role, .. } => write!(f, "{role} {name}"),
        }
    }
}
