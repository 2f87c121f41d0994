//! What an agent may reach and spend: the entries of `capabilities.network.allow`, credentials, budgets. docs/egress.md says what
//! each admits.
//!
//! Must hold: a pattern admits what its text says and nothing more; a grant without a field is the least one.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::ids::{HostName, IdError, SecretName};
use crate::limits;

/// A name, or `*.SUFFIX`: any name with exactly one label more than the suffix.
///
/// A label under a wildcard is 1 to [`limits::WILDCARD_LABEL_BYTES_MAX`] of `a-z 0-9 -`: a pattern is a list of hosts, not a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NamePattern {
    Exact(HostName),
    /// The suffix, without `*.`; it has two labels or more.
    Below(HostName),
}

impl NamePattern {
    /// Whether the pattern stands for this name.
    pub fn admits(&self, name: &HostName) -> bool {
        self.label_before(name).is_none_or(is_wildcard_label) && self.refuses(name)
    }

    /// Whether the pattern, denied, refuses this name: a denied wildcard refuses any label, not only those that it would admit.
    pub fn refuses(&self, name: &HostName) -> bool {
        match self {
            NamePattern::Exact(exact) => exact == name,
            NamePattern::Below(_) => self.label_before(name).is_some_and(|label| !label.contains('.')),
        }
    }

    /// What a name has before a wildcard's suffix.
    fn label_before<'a>(&self, name: &'a HostName) -> Option<&'a str> {
        match self {
            NamePattern::Exact(_) => None,
            NamePattern::Below(suffix) => name.as_str().strip_suffix(suffix.as_str())?.strip_suffix('.'),
        }
    }

    /// Whether the pattern, denied, refuses each name that the other one stands for.
    pub fn covers(&self, other: &NamePattern) -> bool {
        match other {
            NamePattern::Exact(name) => self.refuses(name),
            NamePattern::Below(_) => self == other,
        }
    }
}

fn is_wildcard_label(label: &str) -> bool {
    (1..=limits::WILDCARD_LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl FromStr for NamePattern {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix("*.") {
            Some(suffix) => suffix.parse().map(NamePattern::Below),
            None => text.parse().map(NamePattern::Exact),
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> String {
        pattern.to_string()
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamePattern::Exact(name) => write!(f, "{name}"),
            NamePattern::Below(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// One entry of `network.allow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkGrant {
    pub name: NamePattern,
    /// TCP ports, sorted, without repeats, never empty.
    pub ports: Vec<u16>,
    /// HTTP methods in upper case; empty: all. With methods or paths the name is reached only where requests can be read: over the
    /// broker, intercepted, or in the clear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Prefixes of the request's path, whole segments; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Addresses that may be dialled for this name although they are private; never loopback, link-local, metadata or the node's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Ipv4Addr>,
    /// TLS without a server name passes (then nothing in the connection says which name it is for).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_sni: bool,
    /// egress ends the guest's TLS for this name with the agent's own authority and treats each request as the broker does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub intercept: bool,
}

/// The ports of an entry that names none.
pub const PORTS_DEFAULT: [u16; 2] = [80, 443];

impl NetworkGrant {
    /// A name with ports and nothing else.
    pub fn plain(name: NamePattern, mut ports: Vec<u16>) -> NetworkGrant {
        ports.sort_unstable();
        ports.dedup();
        NetworkGrant {
            name,
            ports,
            methods: Vec::new(),
            paths: Vec::new(),
            addresses: Vec::new(),
            without_sni: false,
            intercept: false,
        }
    }

    /// As a manifest writes it: a text, or a table where a text does not say all of it.
    pub fn entry(&self) -> String {
        let lists = !(self.methods.is_empty() && self.paths.is_empty() && self.addresses.is_empty());
        let one_port = self.ports.len() == 1 || self.ports == PORTS_DEFAULT;
        if one_port && !lists && !self.without_sni && !self.intercept {
            return format!("\"{self}\"");
        }
        let mut fields = vec![format!("name = \"{}\"", self.name)];
        if self.ports != PORTS_DEFAULT {
            fields.push(format!("ports = {:?}", self.ports));
        }
        // What a grant may hold is plain ASCII: the quotes and escapes are those of TOML.
        for (field, list) in [("methods", &self.methods), ("paths", &self.paths)] {
            if !list.is_empty() {
                fields.push(format!("{field} = {list:?}"));
            }
        }
        if !self.addresses.is_empty() {
            let addresses: Vec<String> = self.addresses.iter().map(Ipv4Addr::to_string).collect();
            fields.push(format!("addresses = {addresses:?}"));
        }
        for (field, set) in [("without_sni", self.without_sni), ("intercept", self.intercept)] {
            if set {
                fields.push(format!("{field} = true"));
            }
        }
        format!("{{ {} }}", fields.join(", "))
    }

    /// The name, if it is one.
    pub fn exact(&self) -> Option<&HostName> {
        match &self.name {
            NamePattern::Exact(name) => Some(name),
            NamePattern::Below(_) => None,
        }
    }

    /// The rule that the grant breaks, and what would be right; a manifest's entry and a live grant keep the same.
    pub fn fault(&self) -> Option<(&'static str, &'static str)> {
        let method_ok = |m: &String| (1..=16).contains(&m.len()) && m.bytes().all(|b| b.is_ascii_uppercase());
        let ports_ok =
            self.ports.is_sorted_by(|a, b| a < b) && self.ports.first().is_some_and(|port| *port > 0);
        if !ports_ok || self.ports.len() > limits::GRANT_PORTS_MAX {
            return Some(("ports are 1 to 65535, at most 16, and each stands once", "write ports = [443]"));
        }
        if self.methods.len() > limits::GRANT_METHODS_MAX || !self.methods.iter().all(method_ok) {
            return Some(("methods are HTTP methods in upper case", "write methods = [\"GET\", \"POST\"]"));
        }
        if self.paths.len() > limits::GRANT_PATHS_MAX || !self.paths.iter().all(|path| is_path_prefix(path)) {
            return Some((
                "a path begins with `/`, has no `?`, `#`, `%`, `\\` or dot segment and is at most 256 bytes",
                "write a prefix of whole segments, like paths = [\"/v1/chat\"]",
            ));
        }
        if self.addresses.len() > limits::GRANT_ADDRESSES_MAX {
            return Some(("too many addresses", "name at most 8"));
        }
        if (self.intercept || !self.addresses.is_empty()) && self.exact().is_none() {
            return Some(("addresses and intercept need one exact name", "list the name by itself"));
        }
        if self.intercept && !self.ports.contains(&443) {
            return Some(("TLS is intercepted on port 443 only", "grant port 443"));
        }
        None
    }

    /// Whether requests must be readable for this grant to hold.
    pub fn is_narrowed(&self) -> bool {
        !self.methods.is_empty() || !self.paths.is_empty()
    }
}

/// Whether a text is a path prefix of whole segments in its one spelling.
pub fn is_path_prefix(path: &str) -> bool {
    let plain = path.bytes().all(|b| b.is_ascii_graphic() && !b"?#%\\".contains(&b));
    let segments = path.strip_prefix('/').map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let segments_ok = segments
        .is_some_and(|rest| rest.is_empty() || rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
    plain && segments_ok && path.len() <= limits::GRANT_PATH_BYTES_MAX
}

/// `NAME` or `NAME:PORT`.
impl FromStr for NetworkGrant {
    type Err = GrantError;
    fn from_str(text: &str) -> Result<Self, GrantError> {
        let (name, ports) = match text.rsplit_once(':') {
            None => (text, PORTS_DEFAULT.to_vec()),
            Some((name, port)) => match port.parse::<u16>() {
                Ok(number) if number > 0 && port == number.to_string() => (name, vec![number]),
                _ => return Err(GrantError::Port),
            },
        };
        Ok(NetworkGrant::plain(name.parse()?, ports))
    }
}

/// Why a text is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("the port must be 1 to 65535")]
    Port,
    #[error(transparent)]
    Name(#[from] IdError),
}

/// As a manifest would say it in short; the narrowing parts are left out.
impl fmt::Display for NetworkGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ports == PORTS_DEFAULT {
            return write!(f, "{}", self.name);
        }
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        write!(f, "{}:{}", self.name, ports.join(","))
    }
}

/// `[capabilities.budget]`: what an agent may use up in a period, over all its lives. A field that is not given is not
/// bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    pub period: Period,
    pub input_tokens_max: Option<u64>,
    /// Tokens written to and read from a provider's cache.
    pub cache_tokens_max: Option<u64>,
    pub output_tokens_max: Option<u64>,
    /// Millionths of a US dollar, by the node's price table.
    pub micro_dollars_max: Option<u64>,
    /// Calls through the broker in an hour, which begins with the first, whatever the period is.
    pub calls_per_hour_max: Option<u64>,
    /// Bytes through egress, both ways, all connections.
    pub bytes_max: Option<u64>,
    /// Seconds the agent had a network.
    pub wall_secs_max: Option<u64>,
}

/// When what was used is forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// 3600 s from the first use.
    Hour,
    /// 86400 s from the first use.
    #[default]
    Day,
    /// 30 days from the first use.
    Month,
    /// Never, until an operator resets it.
    Total,
}

/// How a host's requests and answers are metered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Calls and bytes only.
    #[default]
    Plain,
    /// OpenAI's chat completions, completions, responses and embeddings, and what is compatible.
    Openai,
    /// Anthropic's messages.
    Anthropic,
}

/// Where a secret goes, set with it by the operator; no manifest can change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretPolicy {
    pub name: SecretName,
    /// The only host it is sent to.
    pub host: HostName,
    /// Port of the host, TLS.
    pub port: u16,
    /// Header field that carries it, in lower case.
    pub header: String,
    /// The field's value; `{}` stands once for the secret, as in `Bearer {}`.
    pub format: String,
    pub api: Api,
}

/// A price, in millionths of a US dollar for a million tokens, and the bounds of one call: `[prices."MODEL"]` of nulld.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input: u64,
    /// Tokens read from the provider's cache.
    pub cache_read: u64,
    /// Tokens written to it.
    pub cache_write: u64,
    pub output: u64,
    /// The model's context: what one call can use at most, whatever it refers to.
    pub input_tokens_max: u64,
    /// What one call may answer; asked for where a request names no bound.
    pub output_tokens_max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_admits_one_short_label_and_not_its_suffix() {
        let pattern: NamePattern = "*.Exa.ai".parse().unwrap();
        assert_eq!(pattern.to_string(), "*.exa.ai");
        for good in
            ["api.exa.ai", "a-1.exa.ai", &format!("{}.exa.ai", "a".repeat(limits::WILDCARD_LABEL_BYTES_MAX))]
        {
            assert!(pattern.admits(&good.parse().unwrap()), "{good}");
        }
        for bad in [
            "exa.ai",
            "a.b.exa.ai",
            "apiexa.ai",
            "x.exa.ai.evil.test",
            "a_b.exa.ai",
            &format!("{}.exa.ai", "a".repeat(limits::WILDCARD_LABEL_BYTES_MAX + 1)),
        ] {
            assert!(!pattern.admits(&bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn a_denied_wildcard_refuses_more_than_it_would_admit() {
        let pattern: NamePattern = "*.exa.ai".parse().unwrap();
        let long = format!("{}.exa.ai", "a".repeat(63));
        for name in ["api.exa.ai", "my_bucket.exa.ai", &long] {
            assert!(
                pattern.refuses(&name.parse().unwrap()) && pattern.covers(&name.parse().unwrap()),
                "{name}"
            );
        }
        for name in ["exa.ai", "a.b.exa.ai", "xexa.ai"] {
            assert!(!pattern.refuses(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn patterns_and_grants_have_one_meaning() {
        for bad in
            ["*", "*.", "*.com", "a.*.com", "**.exa.ai", "*.*.exa.ai", "*exa.ai", "*.8.8.8.8", "8.8.8.8"]
        {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad}");
        }
        let grant: NetworkGrant = "*.exa.ai".parse().unwrap();
        assert_eq!((grant.ports.as_slice(), grant.to_string().as_str()), (&[80, 443][..], "*.exa.ai"));
        assert_eq!("git.test:22".parse::<NetworkGrant>().unwrap().to_string(), "git.test:22");
        for bad in ["git.test:0", "git.test:022", "git.test:", "git.test:x", "[::1]:80"] {
            assert!(bad.parse::<NetworkGrant>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_is_what_a_manifest_writes_and_a_bad_one_says_why() {
        let mut grant: NetworkGrant = "api.test".parse().unwrap();
        assert_eq!((grant.entry().as_str(), grant.fault()), ("\"api.test\"", None));
        assert_eq!("git.test:22".parse::<NetworkGrant>().unwrap().entry(), "\"git.test:22\"");
        grant.methods = vec!["POST".into()];
        grant.paths = vec!["/v1/\"x\"".into()];
        grant.addresses = vec![Ipv4Addr::new(10, 0, 0, 7)];
        grant.ports = vec![443, 8443];
        grant.intercept = true;
        let entry = r#"{ name = "api.test", ports = [443, 8443], methods = ["POST"], paths = ["/v1/\"x\""], addresses = ["10.0.0.7"], intercept = true }"#;
        assert_eq!((grant.entry().as_str(), grant.fault()), (entry, None));
        let bad = |change: fn(&mut NetworkGrant)| {
            let mut grant = grant.clone();
            change(&mut grant);
            grant.fault().is_some()
        };
        assert!(bad(|grant| grant.ports = vec![]) && bad(|grant| grant.ports = vec![0, 443]));
        assert!(bad(|grant| grant.ports = vec![443, 22]) && bad(|grant| grant.ports = vec![443, 443]));
        assert!(bad(|grant| grant.ports = vec![22]), "intercepted on 443 only");
        assert!(bad(|grant| grant.methods = vec!["get".into()]));
        assert!(
            bad(|grant| grant.paths = vec!["/a/../b".into()])
                && bad(|grant| grant.paths = vec!["/a%2e".into()])
        );
        assert!(bad(|grant| grant.addresses = vec![Ipv4Addr::LOCALHOST; 9]));
        assert!(bad(|grant| grant.name = "*.api.test".parse().unwrap()));
    }
}
