//! The keys that may come in, from operators.toml.
//!
//! Must hold: each key is one operator with one role. Must never: let anybody in because a file is missing or wrong.

use abi::config_error::{ConfigError, Source};
use abi::identity::Role;
use abi::{limits, log, node};
use nullctl::keys::PublicKey;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Who a key belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    pub name: String,
    pub role: Role,
}

/// All operators by key.
#[derive(Debug, Default)]
pub struct Keyring {
    operators: HashMap<PublicKey, Operator>,
}

impl Keyring {
    /// Reads the file. What is wrong with it is logged, and then nobody is let in.
    pub fn load(path: &Path) -> Keyring {
        let mut text = String::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(limits::CONFIG_FILE_BYTES_MAX + 1).read_to_string(&mut text));
        if let Err(error) = read {
            log::warning("nobody_is_let_in", &[("file", &path.display()), ("error", &error)]);
            return Keyring::default();
        }
        match parse(&path.display().to_string(), &text) {
            Ok(keyring) => keyring,
            Err(error) => {
                log::error("nobody_is_let_in", &[("error", &error)]);
                Keyring::default()
            }
        }
    }

    /// Whose key this is.
    pub fn operator(&self, key: &PublicKey) -> Option<&Operator> {
        self.operators.get(key)
    }

    /// How many operators there are.
    pub fn len(&self) -> usize {
        self.operators.len()
    }
}

fn parse(file: &str, text: &str) -> Result<Keyring, Box<ConfigError>> {
    let source = Source { file, text };
    if text.len() as u64 > limits::CONFIG_FILE_BYTES_MAX {
        let rule = format!("at most {} bytes are allowed", limits::CONFIG_FILE_BYTES_MAX);
        return Err(Box::new(source.wrong(0..0, "", rule, "remove some operators")));
    }
    let mut operators = HashMap::new();
    for operator in node::parse_operators(source)?.operator {
        let start = text.find(operator.key.as_str()).unwrap_or(0);
        let span = start..start + operator.key.len();
        let key: PublicKey = match operator.key.parse() {
            Ok(key) => key,
            Err(_) => {
                let rule = "must be ed25519: and base64 of the key's 32 bytes";
                return Err(Box::new(source.wrong(
                    span,
                    "operator.key",
                    rule,
                    "copy it from nullctl key show",
                )));
            }
        };
        let (name, role) = (operator.name, operator.role);
        if operators.insert(key, Operator { name, role }).is_some() {
            return Err(Box::new(source.wrong(
                span,
                "operator.key",
                "belongs to two operators",
                "remove one of the two",
            )));
        }
    }
    Ok(Keyring { operators })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    #[test]
    fn a_key_has_its_name_and_role() {
        let text = format!("[[operator]]\nname = \"alice\"\nkey = \"{KEY}\"\nrole = \"reader\"\n");
        let keyring = parse("o", &text).unwrap();
        let alice = keyring.operator(&KEY.parse().unwrap()).unwrap();
        assert_eq!((alice.name.as_str(), alice.role), ("alice", Role::Reader));
    }

    #[test]
    fn a_key_that_is_none_is_named_with_its_line() {
        let text = "[[operator]]\nname = \"alice\"\nkey = \"ed25519:AAAA\"\nrole = \"reader\"\n";
        let error = parse("operators.toml", text).unwrap_err();
        assert_eq!((error.line, error.field.as_str()), (3, "operator.key"));
    }

    #[test]
    fn without_a_file_nobody_is_let_in() {
        let keyring = Keyring::load(Path::new("/nonexistent/operators.toml"));
        assert_eq!(keyring.len(), 0);
        assert!(keyring.operator(&KEY.parse().unwrap()).is_none());
    }
}
