//! Names and ids. Each type can only hold what its rule admits; untrusted text becomes one of them here, once.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::limits;

/// Why a text is not the id it should be. Messages name the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("`{0}` is not an agent name: use 1 to 32 of A-Z a-z 0-9 _ -")]
    AgentName(String),
    #[error("`{0}` is not a name: use 1 to 32 of A-Z a-z 0-9 _ -")]
    Name(String),
    #[error("`{0}` is not a source range: use ADDRESS or ADDRESS/PREFIX, like `192.0.2.0/24`")]
    Source(String),
    #[error("`{0}` is not an instance: use NAME.GENERATION, like `researcher.3`")]
    Instance(String),
    #[error("`{0}` is not a digest: use sha256: and 64 lowercase hex digits")]
    Digest(String),
    #[error("`{0}` is not a host name: use letters, digits and - in labels of 1 to 63, at most 253 in all")]
    HostName(String),
    #[error("`{0}` is not a secret's name: use 1 to 64 of A-Z 0-9 _, beginning with a letter")]
    SecretName(String),
}

/// The longest piece of untrusted text an error repeats.
fn shorten(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_default).collect()
}

macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

/// Whether a text is 1 to 32 of `A-Z a-z 0-9 _ -`.
fn is_name(text: &str) -> bool {
    let admitted = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=limits::AGENT_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(admitted)
}

/// The name of a volume or a snapshot: 1 to 32 of `A-Z a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);
text_id!(Name);

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if is_name(text) { Ok(Name(text.to_owned())) } else { Err(IdError::Name(shorten(text))) }
    }
}

/// A range of IPv4 addresses (RFC 4632): an address and how many of its bits count; the others are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Source {
    pub address: std::net::Ipv4Addr,
    pub prefix: u8,
}

impl Source {
    /// Whether the range holds an address.
    pub fn holds(&self, address: std::net::Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        u32::from(address) & mask == u32::from(self.address)
    }
}

impl FromStr for Source {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Source(shorten(text));
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: std::net::Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let plain = prefix == "0" || !prefix.starts_with(['0', '+']);
        let prefix: u8 = prefix.parse().ok().filter(|bits| plain && *bits <= 32).ok_or_else(wrong)?;
        let source = Source { address, prefix };
        if source.holds(address) { Ok(source) } else { Err(wrong()) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Source {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> String {
        source.to_string()
    }
}

/// An agent's name: 1 to 32 of `A-Z a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentName(String);
text_id!(AgentName);

impl FromStr for AgentName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if is_name(text) { Ok(AgentName(text.to_owned())) } else { Err(IdError::AgentName(shorten(text))) }
    }
}

/// One life of an agent: its name and a generation that never repeats on a node. A message to an instance that
/// has ended fails instead of reaching its successor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Instance {
    pub agent: AgentName,
    pub generation: u64,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.agent, self.generation)
    }
}

impl FromStr for Instance {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Instance(shorten(text));
        let (agent, generation) = text.rsplit_once('.').ok_or_else(wrong)?;
        let canonical = generation == "0" || !generation.starts_with(['0', '+']);
        let generation = generation.parse().map_err(|_| wrong())?;
        match (agent.parse(), canonical) {
            (Ok(agent), true) => Ok(Instance { agent, generation }),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Instance {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Instance> for String {
    fn from(instance: Instance) -> String {
        instance.to_string()
    }
}

/// A SHA-256 digest, written `sha256:` and 64 lowercase hex digits (OCI image-spec, descriptor.md).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The 64 hex digits without the prefix.
    pub fn hex(&self) -> String {
        self.with_hex(str::to_owned)
    }

    /// Every receipt has some of them, so it does without the machinery of formats.
    fn with_hex<T>(&self, take: impl FnOnce(&str) -> T) -> T {
        let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' - 10 + nibble };
        let mut hex = [0; 64];
        for (pair, byte) in hex.as_chunks_mut().0.iter_mut().zip(self.0) {
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        take(str::from_utf8(&hex).unwrap_or_default()) // they are ASCII
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_hex(|hex| write!(f, "sha256:{hex}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Digest(shorten(text));
        let hex = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        if hex.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            match pair {
                [high, low] => {
                    *byte = nibble(*high).ok_or_else(wrong)? << 4 | nibble(*low).ok_or_else(wrong)?;
                }
                _ => return Err(wrong()),
            }
        }
        Ok(Digest(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.with_hex(|hex| ["sha256:", hex].concat())
    }
}

/// A DNS host name in lower case without the final dot (RFC 1123 section 2.1; at least two labels, and not an
/// IPv4 address: the last label is not all digits).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);
text_id!(HostName);

impl FromStr for HostName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::HostName(shorten(text));
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last_is_number = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        if name.len() > 253 || !name.contains('.') || last_is_number || !name.split('.').all(label_ok) {
            return Err(wrong());
        }
        Ok(HostName(name))
    }
}

/// The name of a secret, as manifests refer to it: 1 to 64 of `A-Z 0-9 _`, beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);
text_id!(SecretName);

impl FromStr for SecretName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let admitted = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        let letter_first = text.bytes().next().is_some_and(|b| b.is_ascii_uppercase());
        if !letter_first || text.len() > limits::SECRET_NAME_BYTES_MAX || !text.bytes().all(admitted) {
            return Err(IdError::SecretName(shorten(text)));
        }
        Ok(SecretName(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_names_hold_their_rule() {
        for good in ["a", "researcher", "A_b-9", &"x".repeat(32)] {
            assert_eq!(good.parse::<AgentName>().map(|n| n.to_string()), Ok(good.to_string()));
        }
        for bad in ["", "a b", "../x", "a/b", "a.b", "é", "a\n", &"x".repeat(33)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn instances_round_trip_and_reject_second_spellings() {
        let one: Instance = "a-b.17".parse().unwrap();
        assert_eq!(one.to_string(), "a-b.17");
        for bad in ["a", "a.", ".1", "a.01", "a.+1", "a.-1", "a.b.1x", "a.18446744073709551616"] {
            assert!(bad.parse::<Instance>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_round_trip_and_reject_upper_case() {
        let text = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for bad in [text.to_uppercase(), text[..70].to_string(), format!("{text}0"), "0f".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_names_are_never_addresses() {
        assert_eq!("API.Exa.ai.".parse::<HostName>().unwrap().as_str(), "api.exa.ai");
        for bad in
            ["127.0.0.1", "1.1", "localhost", "", "a..b", "-a.b", "a-.b", "a b.c", "[::1]", "x.0", "0x7f.1"]
        {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
        let label = "a".repeat(63);
        assert!(format!("{label}.{label}.{label}.{}", "b".repeat(61)).parse::<HostName>().is_ok());
        assert!(format!("{label}.{label}.{label}.{}", "b".repeat(62)).parse::<HostName>().is_err());
    }

    #[test]
    fn a_source_range_has_one_spelling_and_holds_what_it_says() {
        let range: Source = "192.0.2.0/24".parse().unwrap();
        assert!(range.holds([192, 0, 2, 255].into()) && !range.holds([192, 0, 3, 0].into()));
        assert_eq!("192.0.2.7".parse::<Source>().unwrap().to_string(), "192.0.2.7/32");
        assert!("0.0.0.0/0".parse::<Source>().unwrap().holds([8, 8, 8, 8].into()));
        for wrong in [
            "192.0.2.1/24",
            "192.0.2.0/33",
            "192.0.2.0/024",
            "192.0.2",
            "::/0",
            "192.0.2.0/",
            "",
            "0.0.0.0/+0",
        ] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }
}
