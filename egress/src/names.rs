//! The synthetic addresses that stand for an agent's names.
//!
//! Must hold: an address stands for the same name as long as the agent has it, and for no other after egress was restarted under a
//! running guest that remembers answers (but for accidents of the hash); then exact names have theirs at once, names under wildcards
//! when the guest asks for them again; two agents' addresses for one name differ (but for accidents of the hash).
//! Must never: know a real address, or whether a name is granted (policy.rs does).

use abi::ids::{AgentName, HostName};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::wall::SYNTHETIC;

/// Bits of a synthetic address that are free: a /15.
const FREE_BITS: u32 = 0x1_ffff;

/// The names of one agent that have an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    agent: AgentName,
    addresses: BTreeMap<HostName, Ipv4Addr>,
    names: BTreeMap<Ipv4Addr, HostName>,
}

impl Names {
    /// None yet.
    pub fn new(agent: AgentName) -> Names {
        Names { agent, addresses: BTreeMap::new(), names: BTreeMap::new() }
    }

    /// The address of a name; made from agent and name when it is first asked for.
    pub fn address(&mut self, name: &HostName) -> Ipv4Addr {
        if let Some(known) = self.addresses.get(name) {
            return *known;
        }
        let address = self.free_address(name);
        self.names.insert(address, name.clone());
        self.addresses.insert(name.clone(), address);
        address
    }

    fn free_address(&self, name: &HostName) -> Ipv4Addr {
        let digest = Sha256::new()
            .chain_update(self.agent.as_str())
            .chain_update([0])
            .chain_update(name.as_str())
            .finalize();
        let start = digest.iter().take(4).fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
        (start..)
            .map(|step| Ipv4Addr::from(u32::from(SYNTHETIC) | step & FREE_BITS))
            // .0 and .255 look like a network and a broadcast to some stacks.
            .find(|address| {
                !matches!(address.octets(), [_, _, _, 0 | 255]) && !self.names.contains_key(address)
            })
            .unwrap_or(SYNTHETIC) // unreachable: an agent has far fewer names than there are addresses
    }

    /// Whether a name has an address.
    pub fn has(&self, name: &HostName) -> bool {
        self.addresses.contains_key(name)
    }

    /// The name an address stands for.
    pub fn at(&self, address: Ipv4Addr) -> Option<&HostName> {
        self.names.get(&address)
    }

    /// All names with their addresses.
    pub fn iter(&self) -> impl Iterator<Item = (&HostName, &Ipv4Addr)> {
        self.addresses.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::limits;

    fn of(agent: &str, list: &[&str]) -> Names {
        let mut names = Names::new(agent.parse().unwrap());
        for name in list {
            names.address(&name.parse().unwrap());
        }
        names
    }

    #[test]
    fn addresses_are_stable_distinct_and_each_agents_own() {
        let names = of("a", &["x.test", "y.test"]);
        assert_eq!(names, of("a", &["y.test", "x.test", "x.test"]));
        let x = *names.addresses.get(&"x.test".parse().unwrap()).unwrap();
        assert_eq!(names.at(x).unwrap().as_str(), "x.test");
        assert_eq!(of("b", &["x.test"]).at(x), None);
    }

    #[test]
    fn as_many_names_as_an_agent_can_have_get_an_address_each() {
        let most =
            2 * limits::NETWORK_ALLOW_MAX + limits::LIVE_CHANGES_PER_AGENT_MAX + limits::WILDCARD_NAMES_MAX;
        let list: Vec<String> = (0..most).map(|n| format!("n{n}.test")).collect();
        let names = of("a", &list.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(names.names.len(), most);
        for address in names.names.keys() {
            assert!(address.octets()[0] == 198 && (18..=19).contains(&address.octets()[1]), "{address}");
        }
    }
}
