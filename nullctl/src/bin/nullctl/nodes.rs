//! Which node is meant, with which key and pin: options, then environment, then nodes.toml (docs/nullctl.md).
//!
//! Must hold: a pin is only ever what somebody gave; nothing is trusted because it was seen.

use nullctl::keys::Fingerprint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, status};

/// nodes.toml.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nodes {
    /// The node used when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    #[serde(default)]
    pub nodes: BTreeMap<String, Node>,
}

/// One known node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub address: String,
    pub pin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// What was asked for by option or environment.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub node: Option<String>,
    pub key: Option<PathBuf>,
    pub pin: Option<String>,
    pub socket: Option<PathBuf>,
}

/// How to reach the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Socket(PathBuf),
    Tls {
        /// HOST:PORT.
        address: String,
        key: PathBuf,
        pin: Option<Fingerprint>,
    },
}

/// The directory of nodes.toml and operator.key.
pub fn config_dir() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|dir| dir.join("nullbox"))
        .ok_or_else(|| {
            Failure::usage("neither HOME nor XDG_CONFIG_HOME is set", "give --key, --node and --pin")
        })
}

impl Nodes {
    /// Reads nodes.toml; a missing file is an empty one.
    pub fn read(path: &Path) -> Result<Nodes, Failure> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Nodes::default()),
            Err(error) => return Err(wrong_file(path, &error.to_string())),
        };
        toml::from_str(&text).map_err(|error| wrong_file(path, error.to_string().trim()))
    }

    /// Replaces nodes.toml in one step.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).map_err(|error| wrong_file(path, &error.to_string()))?;
        let beside = path.with_extension("toml.new");
        let write = || -> std::io::Result<()> {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            let mut file = std::fs::File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, path)
        };
        write().map_err(|error| {
            Failure::local(
                status::USAGE,
                format!("cannot write {}: {error}", path.display()),
                "",
                "check the directory",
            )
        })
    }

    /// The node that is meant. `local` is the control socket if this machine is a node.
    pub fn target(&self, asked: &Asked, default_key: &Path, local: Option<&Path>) -> Result<Target, Failure> {
        if let Some(socket) = &asked.socket {
            return Ok(Target::Socket(socket.clone()));
        }
        let name = asked.node.as_ref().or(self.default.as_ref());
        let Some(name) = name else {
            return match local {
                Some(socket) => Ok(Target::Socket(socket.to_owned())),
                None => Err(Failure::usage(
                    "no node is named",
                    "give --node HOST[:PORT], set NULLBOX_NODE, or trust one: nullctl node trust HOST --pin SHA256:...",
                )),
            };
        };
        let address = self.nodes.get(name).map_or(name, |known| &known.address);
        let address = with_port(address)?;
        // A node is also known by its address.
        let known = self.nodes.get(name).or_else(|| {
            self.nodes.values().find(|known| with_port(&known.address).ok().as_ref() == Some(&address))
        });
        let pin = asked.pin.as_ref().or(known.map(|known| &known.pin));
        let pin = pin
            .map(|text| text.parse::<Fingerprint>())
            .transpose()
            .map_err(|error| Failure::usage(error.to_string(), "copy it from the node's console"))?;
        let key =
            asked.key.as_deref().or(known.and_then(|known| known.key.as_deref())).unwrap_or(default_key);
        Ok(Target::Tls { address, key: key.to_owned(), pin })
    }
}

fn wrong_file(path: &Path, why: &str) -> Failure {
    Failure::local(
        status::USAGE,
        format!("{}: {why}", path.display()),
        "nodes.toml is described in docs/nullctl.md",
        "correct or remove the file",
    )
}

/// HOST:PORT, with nullgate's port when none is given. An IPv6 address with a port stands in brackets.
pub fn with_port(text: &str) -> Result<String, Failure> {
    let bare_v6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    let wrong = || {
        Failure::usage(
            format!("`{text}` is not a node"),
            "write a name of nodes.toml, HOST, HOST:PORT or [IPv6]:PORT",
        )
    };
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c == '/') {
        return Err(wrong());
    }
    if bare_v6 {
        return Ok(format!("[{text}]:{}", abi::node::GATE_PORT));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !(host.ends_with(':')) => match port.parse::<u16>() {
            Ok(1..) => Ok(text.to_owned()),
            _ => Err(wrong()),
        },
        Some(_) => Err(wrong()),
        None => Ok(format!("{text}:{}", abi::node::GATE_PORT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";

    fn lab() -> Nodes {
        toml::from_str(&format!(
            "default = \"lab\"\n[nodes.lab]\naddress = \"192.0.2.7\"\npin = \"{PIN}\"\nkey = \"/k\"\n"
        ))
        .unwrap()
    }

    fn asked(node: &str) -> Asked {
        Asked { node: Some(node.into()), ..Asked::default() }
    }

    #[test]
    fn a_known_node_brings_its_address_key_and_pin() {
        let by_default = lab().target(&Asked::default(), Path::new("/d"), None).unwrap();
        let expected = Target::Tls {
            address: "192.0.2.7:4466".into(),
            key: "/k".into(),
            pin: Some(PIN.parse().unwrap()),
        };
        assert_eq!(by_default, expected);
        for name in ["lab", "192.0.2.7", "192.0.2.7:4466"] {
            assert_eq!(lab().target(&asked(name), Path::new("/d"), None).unwrap(), expected);
        }
    }

    #[test]
    fn another_port_is_another_node_and_has_no_pin() {
        let target = lab().target(&asked("192.0.2.7:99"), Path::new("/d"), None).unwrap();
        assert!(matches!(target, Target::Tls { pin: None, .. }), "{target:?}");
    }

    #[test]
    fn an_option_goes_before_the_file() {
        let other = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let asked = Asked {
            node: Some("lab".into()),
            key: Some("/mine".into()),
            pin: Some(other.into()),
            socket: None,
        };
        match lab().target(&asked, Path::new("/d"), None).unwrap() {
            Target::Tls { key, pin, .. } => {
                assert_eq!((key, pin), ("/mine".into(), Some(other.parse().unwrap())));
            }
            Target::Socket(_) => panic!("a socket"),
        }
    }

    #[test]
    fn without_a_node_the_local_socket_is_meant_if_there_is_one() {
        let none = Nodes::default();
        let socket = Path::new("/run/nulld.sock");
        assert_eq!(
            none.target(&Asked::default(), Path::new("/d"), Some(socket)).unwrap(),
            Target::Socket(socket.into())
        );
        assert_eq!(none.target(&Asked::default(), Path::new("/d"), None).unwrap_err().exit, 2);
    }

    #[test]
    fn addresses_get_their_port() {
        for (text, full) in [("h", "h:4466"), ("h:1", "h:1"), ("::1", "[::1]:4466"), ("[::1]:7", "[::1]:7")] {
            assert_eq!(with_port(text).unwrap(), full);
        }
        for bad in ["", "h:", "h:0", "h:70000", ":1", "a b", "a/b"] {
            assert!(with_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nodes_toml_round_trips_and_refuses_what_it_does_not_know() {
        let text = toml::to_string(&lab()).unwrap();
        assert_eq!(toml::from_str::<Nodes>(&text).unwrap(), lab());
        assert!(toml::from_str::<Nodes>("tofu = true\n").is_err());
    }
}
