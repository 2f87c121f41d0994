//! `[memory]`: how ctxgraph treats what agents remember.

use serde::{Deserialize, Serialize};

use super::{Checked, NodeConfig};
use crate::limits;

/// `[memory]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// What a write does under a key that has several newest entries.
    pub conflicts: Conflicts,
    /// Values kept under a key, the newest ones; 0: all.
    pub keep_versions: u32,
    /// How long the value of an entry that is not a key's newest is kept; 0: for ever.
    pub keep_days: u32,
    /// Public ledger keys of nodes whose bundles are imported.
    pub trust: Vec<String>,
}

/// What a write does under a key that has several newest entries (they come by import).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conflicts {
    /// Goes on from the newest and supersedes the others.
    #[default]
    Newest,
    /// Is refused until somebody says which one to go on from (`parent`).
    Refuse,
}

pub(super) fn check(config: &NodeConfig, wrong: &dyn Fn(String, &str, &str) -> Checked<()>) -> Checked<()> {
    let memory = &config.memory;
    if memory.keep_days > limits::MEMORY_KEEP_DAYS_MAX {
        let rule = format!("must be 0 to {} days", limits::MEMORY_KEEP_DAYS_MAX);
        return wrong("memory.keep_days".into(), &rule, "write 0 to keep old values for ever");
    }
    let is_key = |key: &String| {
        let base64 = key.strip_prefix("ed25519:").and_then(|text| text.strip_suffix('='));
        base64.is_some_and(|text| {
            text.len() == 43 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b))
        })
    };
    if memory.trust.len() > limits::MEMORY_TRUST_MAX || !memory.trust.iter().all(is_key) {
        let rule =
            format!("must be at most {} keys: `ed25519:` and base64 of 32 bytes", limits::MEMORY_TRUST_MAX);
        return wrong(
            "memory.trust".into(),
            &rule,
            "copy the key that nullctl ledger checkpoint shows there",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_error::Source;
    use crate::node::parse;

    #[test]
    fn memory_is_kept_whole_and_trusts_nobody_unless_told() {
        let parsed = |text: &str| parse(&[Source { file: "nulld.toml", text }]);
        assert_eq!(parsed("").unwrap().memory, Memory::default());
        let key = format!("ed25519:{}=", "A".repeat(43));
        let text = format!(
            "[memory]\nconflicts = \"refuse\"\nkeep_versions = 3\nkeep_days = 30\ntrust = [\"{key}\"]\n"
        );
        let memory = parsed(&text).unwrap().memory;
        assert_eq!((memory.conflicts, memory.keep_versions, memory.keep_days), (Conflicts::Refuse, 3, 30));
        assert_eq!(memory.trust, [key]);
        for (text, rule) in [
            ("[memory]\ntrust = [\"ed25519:AAAA\"]\n", "32 bytes"),
            ("[memory]\nkeep_days = 40000\n", "days"),
            ("[memory]\nkeep_versions = -1\n", "invalid value"),
            ("[memory]\nconflicts = \"oldest\"\n", "unknown variant"),
            ("[memory]\nkeep = 1\n", "unknown field"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.rule.contains(rule) && error.line == 2, "{text}: {error}");
        }
    }
}
