//! nulld.toml and operators.toml: what a node is told. The reference is docs/nulld.toml.md.
//!
//! The image brings a nulld.toml with all services; the configuration volume's file is laid over it, table by table, key by
//! key. nulld checks the result and writes it, as JSON, to [`NODE_CONFIG_PATH`] for the services.

mod memory;
mod service;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use crate::config_error::{ConfigError, Source};
use crate::identity::{Role, Service};
use crate::ids::{HostName, Source as SourceRange};
use crate::limits;
use crate::network::Price;
use service::PartialService;

pub use memory::{Conflicts, Memory};
pub use service::{
    CallSet, OPEN_FILES_DEFAULT, Port, PortName, Proc, RESTART_MS_DEFAULT, Restart, ServiceConfig,
    TASKS_DEFAULT,
};

/// The checked configuration as JSON, world-readable, without secrets.
pub const NODE_CONFIG_PATH: &str = "/run/nullbox/node.json";
/// Where configuration stands on a node.
pub const CONFIG_DIR: &str = "/system/config";
/// State that outlives a boot, when the node has a NULLBOX-STATE partition.
pub const STATE_DIR: &str = "/state";
/// nulld's one control socket.
pub const CONTROL_SOCKET: &str = "/run/nulld.sock";
/// TCP port of nullgate.
pub const GATE_PORT: u16 = 4466;

/// The whole node configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    pub node: Node,
    pub network: Network,
    pub gate: Gate,
    pub clock: Clock,
    pub logs: Logs,
    pub metrics: Metrics,
    pub memory: Memory,
    /// `[prices."MODEL"]`: what calls to metered APIs cost. A model that is not here is refused to agents with a bound of tokens or money.
    pub prices: BTreeMap<String, Price>,
    pub services: BTreeMap<String, ServiceConfig>,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    pub name: String,
    /// Directories of shared libraries that every service may execute from. Empty in the image, whose programs are static.
    pub libraries: Vec<String>,
}

impl Default for Node {
    fn default() -> Node {
        Node { name: "nullbox".into(), libraries: Vec::new() }
    }
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub mode: NetworkMode,
    /// Uplink; empty: the first Ethernet interface with a carrier.
    pub interface: String,
    /// Static mode: address in CIDR form, like `192.0.2.10/24`.
    pub address: String,
    /// Static mode.
    pub gateway: Option<Ipv4Addr>,
    /// Resolvers of the node (never of a guest); dhcp mode: used before the lease's.
    pub dns: Vec<IpAddr>,
    /// Static names for closed networks. What stands here is the operator's word: such an address may be private, but
    /// never loopback, link-local, multicast, unspecified or the node's own.
    pub hosts: BTreeMap<HostName, Vec<IpAddr>>,
    /// Certificates (PEM, one a text) that the broker trusts beside the web's: an authority of your own.
    pub authorities: Vec<String>,
}

/// How the uplink gets its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    #[default]
    Dhcp,
    Static,
    None,
}

/// `[gate]`: nullgate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// TCP port on all of the uplink's addresses.
    pub port: u16,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { port: GATE_PORT }
    }
}

/// `[clock]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Clock {
    /// Time servers, by name or address; empty: those of the DHCP lease, or none.
    pub servers: Vec<String>,
}

/// `[logs]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// Where every log line is sent as well (RFC 5424): `udp://HOST:PORT` or `tcp://HOST:PORT`; empty: nowhere.
    pub forward: String,
}

/// `[metrics]`: Prometheus's text over plain HTTP, for who may only read it. Off unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// IPv4 address and port, `0.0.0.0` for all of the uplink's addresses; empty: nothing listens.
    pub listen: String,
    /// Who may connect; needed where something listens.
    pub from: Vec<SourceRange>,
}

impl Metrics {
    /// Where to listen; none: nowhere.
    pub fn address(&self) -> Option<SocketAddrV4> {
        self.listen.parse().ok()
    }
}

type Checked<T> = Result<T, Box<ConfigError>>;

/// Parses the files, each laid over the ones before it, and checks the result.
pub fn parse(files: &[Source<'_>]) -> Checked<NodeConfig> {
    let mut merged = toml::Table::new();
    for source in files {
        if source.text.len() as u64 > limits::CONFIG_FILE_BYTES_MAX {
            let rule = format!("at most {} bytes are allowed", limits::CONFIG_FILE_BYTES_MAX);
            return Err(Box::new(source.wrong(0..0, "", rule, "make the file smaller")));
        }
        // Shape errors are found file by file, where a line can be named.
        toml::from_str::<Partial>(source.text).map_err(|error| Box::new(source.malformed(&error)))?;
        let table = toml::from_str(source.text).map_err(|error| Box::new(source.malformed(&error)))?;
        lay_over(&mut merged, table);
    }
    let last = files.last().copied().unwrap_or(Source { file: "nulld.toml", text: "" });
    let mut config: NodeConfig =
        toml::Value::Table(merged).try_into().map_err(|error: toml::de::Error| {
            Box::new(last.wrong(0..0, "", error.message().to_owned(), "see docs/nulld.toml.md"))
        })?;
    check(&config, last)?;
    service::resolve(&mut config);
    Ok(config)
}

/// The same shape with every service field optional: what one file may hold.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Partial {
    node: Node,
    network: Network,
    gate: Gate,
    clock: Clock,
    logs: Logs,
    metrics: Metrics,
    memory: Memory,
    prices: BTreeMap<String, Price>,
    services: BTreeMap<String, PartialService>,
}

fn lay_over(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => lay_over(old, new),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

fn check(config: &NodeConfig, source: Source<'_>) -> Checked<()> {
    let wrong = |field: String, rule: &str, remedy: &str| -> Checked<()> {
        let last_part = field.rsplit('.').next().unwrap_or_default().to_owned();
        let offset = source.text.find(&last_part).unwrap_or(0);
        let mut error = source.wrong(offset..offset, &field, rule, remedy);
        error.value.clear();
        Err(Box::new(error))
    };
    let name = &config.node.name;
    if name.is_empty() || name.len() > 63 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return wrong(
            "node.name".into(),
            "must be 1 to 63 of A-Z a-z 0-9 -",
            "write for example name = \"node-1\"",
        );
    }
    if config.network.mode == NetworkMode::Static && parse_cidr(&config.network.address).is_none() {
        return wrong(
            "network.address".into(),
            "static mode needs an IPv4 address in CIDR form",
            "write for example address = \"192.0.2.10/24\"",
        );
    }
    for (host, addresses) in &config.network.hosts {
        if addresses.is_empty() || addresses.iter().any(never_a_host) {
            let rule = "needs addresses, none of them loopback, link-local, multicast or unspecified";
            return wrong(format!("network.hosts.{host}"), rule, "write the address the name stands for");
        }
    }
    service::check_libraries(&config.node.libraries, &wrong)?;
    for (name, service) in &config.services {
        service::check(name, &config.services, service, &wrong)?;
    }
    check_helpers(config, &wrong)?;
    match start_order(&config.services) {
        Ok(_) => Ok(()),
        Err(circle) => {
            wrong(format!("services.{circle}.needs"), "is part of a circle of needs", "break the circle")
        }
    }
}

/// `[clock]` and `[logs]`.
fn check_helpers(config: &NodeConfig, wrong: &dyn Fn(String, &str, &str) -> Checked<()>) -> Checked<()> {
    let servers = &config.clock.servers;
    if servers.len() > limits::CLOCK_SERVERS_MAX || servers.iter().any(|server| !is_host(server)) {
        let rule = format!("must be at most {} names or addresses", limits::CLOCK_SERVERS_MAX);
        return wrong("clock.servers".into(), &rule, "write for example servers = [\"time.example.org\"]");
    }
    let forward = &config.logs.forward;
    if !forward.is_empty() && parse_forward(forward).is_none() {
        let rule = "must be udp://HOST:PORT or tcp://HOST:PORT";
        return wrong("logs.forward".into(), rule, "write for example forward = \"udp://192.0.2.5:514\"");
    }
    check_broker(config, wrong)?;
    memory::check(config, wrong)?;
    check_metrics(config, wrong)
}

/// `network.authorities` and `[prices]`.
fn check_broker(config: &NodeConfig, wrong: &dyn Fn(String, &str, &str) -> Checked<()>) -> Checked<()> {
    let is_pem = |text: &String| {
        text.trim_start().starts_with("-----BEGIN CERTIFICATE-----")
            && text.matches("-----BEGIN").count() == 1
    };
    let authorities = &config.network.authorities;
    if authorities.len() > limits::AUTHORITIES_MAX || !authorities.iter().all(is_pem) {
        let rule = format!("must be at most {} certificates in PEM, one a text", limits::AUTHORITIES_MAX);
        return wrong(
            "network.authorities".into(),
            &rule,
            "write authorities = [\"\"\"-----BEGIN CERTIFICATE-----...\"\"\"]",
        );
    }
    if config.prices.len() > limits::PRICES_MAX {
        return wrong("prices".into(), &format!("at most {} models", limits::PRICES_MAX), "remove some");
    }
    for (model, price) in &config.prices {
        let amounts = [price.input, price.cache_read, price.cache_write, price.output];
        if amounts.iter().any(|amount| *amount > limits::PRICE_MAX) {
            let rule = format!("a price is at most {} micro-dollars for a million tokens", limits::PRICE_MAX);
            return wrong(format!("prices.{model}"), &rule, "write what the provider asks");
        }
        let bounds = [price.input_tokens_max, price.output_tokens_max];
        if bounds.iter().any(|tokens| !(1..=limits::CALL_TOKENS_MAX).contains(tokens)) {
            let rule = format!("the tokens of one call must be 1 to {}", limits::CALL_TOKENS_MAX);
            return wrong(format!("prices.{model}"), &rule, "write the model's context and longest answer");
        }
    }
    Ok(())
}

/// `[metrics]`.
fn check_metrics(config: &NodeConfig, wrong: &dyn Fn(String, &str, &str) -> Checked<()>) -> Checked<()> {
    let Metrics { listen, from } = &config.metrics;
    if listen.is_empty() {
        return match from.is_empty() {
            true => Ok(()),
            false => {
                wrong("metrics.from".into(), "nothing listens", "set metrics.listen, or remove the line")
            }
        };
    }
    let published = limits::PUBLISH_PORT_MIN..=limits::PUBLISH_PORT_MAX;
    let free = |address: &SocketAddrV4| {
        let port = address.port();
        port != 0 && port != config.gate.port && !published.contains(&port)
    };
    if config.metrics.address().filter(free).is_none() {
        let rule = format!(
            "must be an IPv4 address and a port that is neither gate.port nor one of {} to {}",
            published.start(),
            published.end()
        );
        return wrong("metrics.listen".into(), &rule, "write for example listen = \"0.0.0.0:9464\"");
    }
    if from.is_empty() || from.len() > limits::METRICS_SOURCES_MAX {
        let rule = format!("must have 1 to {} ranges: it is read without a key", limits::METRICS_SOURCES_MAX);
        return wrong("metrics.from".into(), &rule, "write for example from = [\"192.0.2.0/24\"]");
    }
    Ok(())
}

/// Whether a text is an IP address or a host name.
fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.parse::<HostName>().is_ok()
}

/// How log lines travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// RFC 5426.
    Udp,
    /// RFC 6587, octet counting.
    Tcp,
}

/// `udp://HOST:PORT` or `tcp://HOST:PORT`; an IPv6 address stands in brackets.
pub fn parse_forward(text: &str) -> Option<(Transport, String, u16)> {
    let (transport, rest) = match text.split_once("://")? {
        ("udp", rest) => (Transport::Udp, rest),
        ("tcp", rest) => (Transport::Tcp, rest),
        _ => return None,
    };
    let (host, port) = rest.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port != 0)?;
    is_host(host).then(|| (transport, host.to_owned(), port))
}

fn never_a_host(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_unspecified()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified()
        }
    }
}

/// An IPv4 address and prefix length from `a.b.c.d/n`.
pub fn parse_cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|p| (1..=32).contains(p))?;
    Some((address.parse().ok()?, prefix))
}

/// Services in the one order in which they may start: needs first, names in alphabetical order among equals. The error
/// is a service on a circle.
pub fn start_order(services: &BTreeMap<String, ServiceConfig>) -> Result<Vec<String>, String> {
    let mut order: Vec<String> = Vec::new();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    while placed.len() < services.len() {
        let next = services.iter().find(|(name, service)| {
            !placed.contains(name.as_str()) && service.needs.iter().all(|need| placed.contains(need.as_str()))
        });
        match next {
            Some((name, _)) => {
                placed.insert(name);
                order.push(name.clone());
            }
            None => {
                let stuck = services.keys().find(|name| !placed.contains(name.as_str()));
                return Err(stuck.cloned().unwrap_or_default());
            }
        }
    }
    Ok(order)
}

/// operators.toml: `[[operator]]` with name, key and role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Operators {
    pub operator: Vec<Operator>,
}

/// One operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    pub name: String,
    /// `ed25519:` and base64 of the 32 bytes of the public key, as `nullctl key gen` prints it.
    pub key: String,
    pub role: Role,
}

/// Parses operators.toml. Keys are checked for their form by nullgate, which knows the format.
pub fn parse_operators(source: Source<'_>) -> Checked<Operators> {
    let operators: Operators =
        toml::from_str(source.text).map_err(|error| Box::new(source.malformed(&error)))?;
    if operators.operator.len() > limits::OPERATORS_MAX {
        let rule = format!("{} operators: at most {}", operators.operator.len(), limits::OPERATORS_MAX);
        return Err(Box::new(source.wrong(0..0, "operator", rule, "remove some")));
    }
    let mut seen = BTreeSet::new();
    for operator in &operators.operator {
        for text in [&operator.name, &operator.key] {
            if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) || !seen.insert(text)
            {
                let offset = source.text.find(text.as_str()).unwrap_or(0);
                let rule = "each operator needs a name and a key of its own, of 1 to 128 characters";
                return Err(Box::new(source.wrong(
                    offset..offset + text.len(),
                    "operator",
                    rule,
                    "remove the second one",
                )));
            }
        }
    }
    Ok(operators)
}

/// Whether a service name is one the node knows a socket for.
pub fn known_service(name: &str) -> Option<Service> {
    Service::ALL.into_iter().find(|service| service.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str =
        "[services.a]\npath = \"/system/bin/a\"\nneeds = [\"b\"]\n[services.b]\npath = \"/system/bin/b\"\n";

    fn source<'a>(file: &'a str, text: &'a str) -> Source<'a> {
        Source { file, text }
    }

    #[test]
    fn a_volume_is_laid_over_the_image_key_by_key() {
        let volume = "[node]\nname = \"n1\"\n[services.a]\nrestart = \"never\"\n[network.hosts]\n\"x.test\" = [\"10.0.2.4\"]\n";
        let config = parse(&[source("image", IMAGE), source("volume", volume)]).unwrap();
        assert_eq!((config.node.name.as_str(), config.services["a"].restart), ("n1", Restart::Never));
        assert_eq!(config.services["a"].needs, ["b"]);
        assert_eq!(start_order(&config.services).unwrap(), ["b", "a"]);
    }

    #[test]
    fn mistakes_name_file_line_and_remedy() {
        for (text, line, rule) in [
            ("[node]\nnam = 1\n", 2, "unknown field"),
            ("[services.a]\nneeds = [\"zz\"]\n", 2, "not a service"),
            ("[services.b]\nneeds = [\"a\"]\n", 0, "circle"),
            ("[services.a]\npath = \"/bin/sh\"\n", 2, "below /system/bin"),
            ("[network]\nmode = \"static\"\n", 0, "CIDR"),
            ("[clock]\nservers = [\"not a host\"]\n", 2, "names or addresses"),
            ("[logs]\nforward = \"http://x.test\"\n", 2, "udp://"),
            ("[metrics]\nlisten = \"9464\"\nfrom = [\"192.0.2.0/24\"]\n", 2, "IPv4 address and a port"),
            ("[metrics]\nlisten = \"0.0.0.0:4466\"\nfrom = [\"192.0.2.0/24\"]\n", 2, "neither gate.port"),
            ("[metrics]\nlisten = \"0.0.0.0:30001\"\nfrom = [\"192.0.2.0/24\"]\n", 2, "neither gate.port"),
            ("[metrics]\nlisten = \"0.0.0.0:9464\"\n", 0, "1 to 16 ranges"),
            ("[metrics]\nfrom = [\"192.0.2.0/24\"]\n", 2, "nothing listens"),
            ("[metrics]\nlisten = \"0.0.0.0:9464\"\nfrom = [\"192.0.2.1/24\"]\n", 3, "source range"),
            ("[network.hosts]\n\"m.test\" = [\"169.254.169.254\"]\n", 0, "link-local"),
        ] {
            let error = parse(&[source("image", IMAGE), source("volume", text)]).unwrap_err();
            assert_eq!(error.file, "volume");
            assert!(error.rule.contains(rule) && (line == 0 || error.line == line), "{error}");
        }
    }

    #[test]
    fn a_forward_is_a_transport_a_host_and_a_port() {
        assert_eq!(parse_forward("udp://192.0.2.5:514"), Some((Transport::Udp, "192.0.2.5".into(), 514)));
        assert_eq!(parse_forward("tcp://[2001:db8::1]:601").unwrap().1, "2001:db8::1");
        for bad in ["192.0.2.5:514", "udp://192.0.2.5", "udp://:514", "tls://a.test:1", "udp://a.test:0"] {
            assert_eq!(parse_forward(bad), None, "{bad}");
        }
    }

    #[test]
    fn operators_need_distinct_names_and_keys() {
        let one = "[[operator]]\nname = \"a\"\nkey = \"ed25519:AAAA\"\nrole = \"admin\"\n";
        assert_eq!(parse_operators(source("o", one)).unwrap().operator.len(), 1);
        assert!(parse_operators(source("o", &format!("{one}{one}"))).is_err());
        assert!(parse_operators(source("o", &one.replace("admin", "root"))).is_err());
    }
}
