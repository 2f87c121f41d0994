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
        match self {
            NamePattern::Exact(exact) => exact == name,
            NamePattern::Below(suffix) => name
                .as_str()
                .strip_suffix(suffix.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(is_wildcard_label),
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

    /// The name, if it is one.
    pub fn exact(&self) -> Option<&HostName> {
        match &self.name {
            NamePattern::Exact(name) => Some(name),
            NamePattern::Below(_) => None,
        }
    }

    /// Whether requests must be readable for this grant to hold.
    pub fn is_narrowed(&self) -> bool {
        !self.methods.is_empty() || !self.paths.is_empty()
    }
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
}
