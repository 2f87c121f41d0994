//! Which servers are asked: those of nulld.toml, else those of the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use abi::limits;
use serde::Deserialize;

use crate::{names, uplink};

/// Larger: not read.
const UPLINK_BYTES_MAX: u64 = 64 * 1024;
/// How long a name may take: what egress allows itself, and a moment for egress to be there.
const RESOLVE: Duration = Duration::from_millis(limits::RESOLVE_MS_MAX + 1_500);

/// The servers and where they are.
#[derive(Debug)]
pub struct Servers {
    configured: Vec<String>,
    /// Address in use of each name. Kept until it fails: another one would have another error.
    addresses: BTreeMap<String, IpAddr>,
    /// Servers that do not want to be asked, in this life of the service (RFC 4330, section 8).
    denied: BTreeSet<IpAddr>,
}

/// One that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    pub address: IpAddr,
}

/// Whom to ask in a round.
#[derive(Debug, Default)]
pub struct Round {
    pub servers: Vec<Server>,
    /// How many there should be.
    pub known: usize,
    /// Names without an address, and why.
    pub problems: Vec<String>,
}

impl Servers {
    /// Those of `[clock]`; none: the lease's.
    pub fn new(configured: Vec<String>) -> Servers {
        Servers { configured, addresses: BTreeMap::new(), denied: BTreeSet::new() }
    }

    /// The servers of this round. Takes as long as egress takes for names without an address.
    pub fn round(&mut self) -> Round {
        let names = match self.configured.is_empty() {
            false => self.configured.clone(),
            true => of_lease(&read_uplink()),
        };
        let mut round = Round { known: names.len(), ..Round::default() };
        for name in names {
            match self.address(&name) {
                Ok(address) if self.denied.contains(&address) => {
                    round.problems.push(format!("{name} refuses to serve this node"));
                }
                Ok(address) if round.servers.iter().any(|server| server.address == address) => {
                    round.problems.push(format!("{name} is a server that has another name here"));
                }
                Ok(address) => round.servers.push(Server { name, address }),
                Err(why) => round.problems.push(format!("{name}: {why}")),
            }
        }
        round
    }

    fn address(&mut self, name: &str) -> Result<IpAddr, String> {
        if let Some(address) = self.addresses.get(name) {
            return Ok(*address);
        }
        let found = names::resolve(name, RESOLVE).map_err(|error| error.to_string())?;
        let address = found.first().copied().ok_or_else(|| "has no address".to_owned())?;
        self.addresses.insert(name.to_owned(), address);
        Ok(address)
    }

    /// It did not answer, or not well: its name may have another address by now.
    pub fn failed(&mut self, server: &Server) {
        self.addresses.remove(&server.name);
    }

    /// It does not want to be asked.
    pub fn denied(&mut self, server: &Server) {
        self.denied.insert(server.address);
        self.addresses.remove(&server.name);
    }
}

/// The part of uplink.json that is of use here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Uplink {
    ntp: Vec<IpAddr>,
}

fn of_lease(uplink: &str) -> Vec<String> {
    let uplink: Uplink = serde_json::from_str(uplink).unwrap_or_default();
    uplink.ntp.iter().take(limits::CLOCK_SERVERS_MAX).map(IpAddr::to_string).collect()
}

/// Empty while there is no uplink.
fn read_uplink() -> String {
    match fs::metadata(uplink::FILE) {
        Ok(found) if found.len() <= UPLINK_BYTES_MAX => fs::read_to_string(uplink::FILE).unwrap_or_default(),
        Ok(_) | Err(_) => String::new(),
    }
}

/// Changes when the uplink changes; none while there is no uplink.
pub fn uplink_stamp() -> Option<(u64, i64, i64)> {
    let found = fs::metadata(uplink::FILE).ok()?;
    Some((found.ino(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leases_servers_are_bounded_and_nonsense_is_none() {
        assert_eq!(
            of_lease(r#"{"interface":"eth0","ntp":["192.0.2.1","192.0.2.2"]}"#),
            ["192.0.2.1", "192.0.2.2"]
        );
        for none in ["", "{}", "[]", r#"{"ntp":["time.test"]}"#, r#"{"ntp":5}"#] {
            assert!(of_lease(none).is_empty(), "{none}");
        }
        let many = format!(r#"{{"ntp":[{}]}}"#, vec!["\"192.0.2.1\""; 100].join(","));
        assert_eq!(of_lease(&many).len(), limits::CLOCK_SERVERS_MAX);
    }

    #[test]
    fn a_server_counts_once_and_one_that_refuses_is_asked_no_more() {
        let mut servers = Servers::new(["192.0.2.1", "192.0.2.2", "192.0.2.1"].map(str::to_owned).into());
        let round = servers.round();
        assert_eq!((round.servers.len(), round.known, round.problems.len()), (2, 3, 1));
        servers.denied(&round.servers[0]);
        servers.failed(&round.servers[1]);
        let round = servers.round();
        assert_eq!(round.servers.len(), 1);
        assert_eq!(round.servers[0].name, "192.0.2.2");
        assert!(round.problems[0].contains("refuses to serve"));
    }
}
