//! What nulld.toml says of memory, as nulld hands it over.
//!
//! Must hold: where it cannot be read, nothing is forgotten and nobody is trusted.

use abi::log;
use abi::node::{Memory, NodeConfig};
use std::path::Path;

/// The `[memory]` of the node's checked configuration; the defaults, which forget nothing and trust nobody, where it cannot be read:
/// the ledger is served all the same.
pub fn read(node: &Path) -> Memory {
    let parsed = std::fs::read(node)
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_slice::<NodeConfig>(&text).map_err(|error| error.to_string()));
    match parsed {
        Ok(config) => config.memory,
        Err(error) => {
            log::error(
                "settings_unreadable",
                &[
                    ("file", &node.display()),
                    ("error", &error),
                    ("effect", &"nothing is forgotten by policy, and no other node is trusted"),
                ],
            );
            Memory::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::node::Conflicts;

    #[test]
    fn settings_are_those_of_the_node_or_the_careful_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.json");
        assert_eq!(read(&file), Memory::default());
        std::fs::write(&file, "{").unwrap();
        assert_eq!(read(&file), Memory::default());
        let memory = Memory { conflicts: Conflicts::Refuse, keep_versions: 3, ..Memory::default() };
        let config = NodeConfig { memory: memory.clone(), ..NodeConfig::default() };
        std::fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(read(&file), memory);
    }
}
