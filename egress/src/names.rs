//! The names one agent was granted and the synthetic addresses that stand for them.
//!
//! Must hold: an address stands for the same name as long as the agent has it, also after egress was restarted under a
//! running guest that remembers answers; two agents' addresses for one name differ (but for accidents of the hash).
//! Must never: know a real address.

use abi::ids::{AgentName, Destination, HostName};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::wall::SYNTHETIC;

/// Bits of a synthetic address that are free: a /15.
const FREE_BITS: u32 = 0x1_ffff;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub address: Ipv4Addr,
    pub ports: BTreeSet<u16>,
}

/// The names of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    grants: BTreeMap<HostName, Grant>,
    by_address: BTreeMap<Ipv4Addr, HostName>,
}

impl Names {
    /// Gives each allowed name its address. Depends on nothing but its arguments.
    pub fn assign(agent: &AgentName, allow: &[Destination]) -> Names {
        let mut ports: BTreeMap<&HostName, BTreeSet<u16>> = BTreeMap::new();
        for destination in allow {
            ports.entry(&destination.name).or_default().insert(destination.port);
        }
        let mut names = Names::default();
        for (name, ports) in ports {
            let address = names.free_address(agent, name);
            names.by_address.insert(address, name.clone());
            names.grants.insert(name.clone(), Grant { address, ports });
        }
        names
    }

    fn free_address(&self, agent: &AgentName, name: &HostName) -> Ipv4Addr {
        let digest = Sha256::new()
            .chain_update(agent.as_str())
            .chain_update([0])
            .chain_update(name.as_str())
            .finalize();
        let start = digest.iter().take(4).fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
        (start..)
            .map(|step| Ipv4Addr::from(u32::from(SYNTHETIC) | step & FREE_BITS))
            // .0 and .255 look like a network and a broadcast to some stacks.
            .find(|address| {
                !matches!(address.octets(), [_, _, _, 0 | 255]) && !self.by_address.contains_key(address)
            })
            .unwrap_or(SYNTHETIC) // unreachable: an agent has at most NETWORK_ALLOW_MAX names
    }

    /// What a name was granted.
    pub fn grant(&self, name: &HostName) -> Option<&Grant> {
        self.grants.get(name)
    }

    /// The name an address stands for.
    pub fn at(&self, address: Ipv4Addr) -> Option<&HostName> {
        self.by_address.get(&address)
    }

    /// All names with their grants.
    pub fn iter(&self) -> impl Iterator<Item = (&HostName, &Grant)> {
        self.grants.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::limits;

    fn allow(names: &[(&str, u16)]) -> Vec<Destination> {
        names.iter().map(|(name, port)| Destination { name: name.parse().unwrap(), port: *port }).collect()
    }

    #[test]
    fn addresses_are_stable_distinct_and_each_agents_own() {
        let agent: AgentName = "a".parse().unwrap();
        let list = allow(&[("x.test", 443), ("x.test", 80), ("y.test", 22)]);
        let names = Names::assign(&agent, &list);
        assert_eq!(names, Names::assign(&agent, &list.iter().rev().cloned().collect::<Vec<_>>()));
        let x = names.grant(&"x.test".parse().unwrap()).unwrap();
        assert_eq!(x.ports, BTreeSet::from([80, 443]));
        assert_eq!(names.at(x.address).unwrap().as_str(), "x.test");
        let other = Names::assign(&"b".parse().unwrap(), &list);
        assert_eq!(other.at(x.address), None);
    }

    #[test]
    fn as_many_names_as_allowed_get_an_address_each() {
        let list: Vec<Destination> = (0..limits::NETWORK_ALLOW_MAX)
            .map(|n| Destination { name: format!("n{n}.test").parse().unwrap(), port: 443 })
            .collect();
        let names = Names::assign(&"a".parse().unwrap(), &list);
        assert_eq!(names.by_address.len(), limits::NETWORK_ALLOW_MAX);
        for address in names.by_address.keys() {
            assert!(
                (198..=198).contains(&address.octets()[0]) && (18..=19).contains(&address.octets()[1]),
                "{address}"
            );
        }
    }

    #[test]
    fn nothing_allowed_is_nothing_named() {
        let names = Names::assign(&"a".parse().unwrap(), &[]);
        assert_eq!(names, Names::default());
    }
}
