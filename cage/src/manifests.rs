//! The manifests of the configuration: `agents/*.toml` and `agents/NAME/AGENT.toml`.
//!
//! Must hold: a name means one file; where two files claim a name, neither counts. What is wrong is listed, with its reason.

use abi::config_error::ConfigError;
use abi::ids::{AgentName, Digest};
use abi::limits;
use abi::manifest::{self, Manifest};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::tasks;

/// A manifest and the file it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub manifest: Manifest,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// The file as the operator knows it, below the configuration.
    pub file: String,
}

/// All manifests, good and bad.
#[derive(Debug, Default)]
pub struct Manifests {
    pub known: BTreeMap<AgentName, Loaded>,
    pub rejected: Vec<ConfigError>,
}

/// A candidate: path on disk, name in messages, and the directory name that the manifest's name must equal.
type Candidate = (PathBuf, String, Option<String>);

/// Reads all manifests below `config`. A missing directory has none.
pub fn load(config: &Path) -> Manifests {
    let mut manifests = Manifests::default();
    let candidates = match candidates(&config.join("agents")) {
        Ok(candidates) => candidates,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return manifests,
        Err(error) => {
            manifests.rejected.push(wrong("agents", format!("cannot be listed: {error}"), ""));
            return manifests;
        }
    };
    let mut claimed: BTreeMap<AgentName, Vec<Loaded>> = BTreeMap::new();
    for (index, (path, file, must_be)) in candidates.into_iter().enumerate() {
        if index >= limits::MANIFESTS_MAX {
            let rule = format!("more than {} manifests: not loaded", limits::MANIFESTS_MAX);
            manifests.rejected.push(wrong(&file, rule, "remove some"));
            continue;
        }
        match read(&path, &file, must_be.as_deref()) {
            Ok(loaded) => claimed.entry(loaded.manifest.name.clone()).or_default().push(loaded),
            Err(error) => manifests.rejected.push(*error),
        }
    }
    for (name, mut claims) in claimed {
        match (claims.pop(), claims.is_empty()) {
            (Some(only), true) => {
                manifests.known.insert(name, only);
            }
            (last, _) => manifests.rejected.extend(claims.iter().chain(last.iter()).map(|claim| {
                let others: Vec<&str> = claims
                    .iter()
                    .chain(last.iter())
                    .filter(|o| o.file != claim.file)
                    .map(|o| o.file.as_str())
                    .collect();
                ConfigError {
                    field: "agent.name".into(),
                    value: format!("\"{name}\""),
                    ..wrong(
                        &claim.file,
                        format!("the name is also claimed by {}; neither is loaded", others.join(", ")),
                        "rename one of them",
                    )
                }
            })),
        }
    }
    manifests
}

fn candidates(dir: &Path) -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue; // what editors and volumes leave around
        }
        if entry.file_type()?.is_dir() {
            found.push((entry.path().join("AGENT.toml"), format!("agents/{name}/AGENT.toml"), Some(name)));
        } else if name.ends_with(".toml") {
            found.push((entry.path(), format!("agents/{name}"), None));
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path, file: &str, must_be: Option<&str>) -> Result<Loaded, Box<ConfigError>> {
    let mut text = String::new();
    let unreadable = |error: io::Error| {
        Box::new(wrong(file, format!("cannot be read: {error}"), "check the configuration volume"))
    };
    let opened = fs::File::open(path).map_err(unreadable)?;
    let most = limits::CONFIG_FILE_BYTES_MAX + 1; // one more than allowed, so that too large is seen by the parser
    opened.take(most).read_to_string(&mut text).map_err(unreadable)?;
    let manifest = manifest::parse(file, &text)?;
    if tasks::is_cage_name(&manifest.name) {
        return Err(Box::new(ConfigError {
            field: "agent.name".into(),
            value: format!("\"{}\"", manifest.name),
            ..wrong(file, "names like t12-c1 are those of tasks' cages", "choose another name")
        }));
    }
    if let Some(dir) = must_be.filter(|dir| *dir != manifest.name.as_str()) {
        return Err(Box::new(ConfigError {
            field: "agent.name".into(),
            value: format!("\"{}\"", manifest.name),
            ..wrong(file, format!("the directory is named `{dir}`"), "give both the same name")
        }));
    }
    Ok(Loaded { manifest, digest: Digest(Sha256::digest(text.as_bytes()).into()), file: file.to_owned() })
}

fn wrong(file: &str, rule: impl Into<String>, remedy: &str) -> ConfigError {
    ConfigError {
        file: file.to_owned(),
        line: 0,
        field: String::new(),
        value: String::new(),
        rule: rule.into(),
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str) -> String {
        format!("[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/bin/x\"]\n")
    }

    fn config(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join("agents").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn both_layouts_are_read_and_other_files_left_alone() {
        let dir = config(&[
            ("a.toml", manifest("a")),
            ("b/AGENT.toml", manifest("b")),
            ("README", "hello".into()),
            (".hidden.toml", "x".into()),
        ]);
        let all = load(dir.path());
        assert_eq!(all.known.keys().map(AgentName::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(all.rejected, []);
    }

    #[test]
    fn two_files_for_one_name_are_both_rejected() {
        let dir = config(&[("a.toml", manifest("x")), ("b.toml", manifest("x")), ("c.toml", manifest("c"))]);
        let all = load(dir.path());
        assert_eq!(all.known.len(), 1);
        assert_eq!(all.rejected.len(), 2);
        assert!(all.rejected[0].to_string().contains("agents/a.toml"));
        assert!(all.rejected[0].rule.contains("agents/b.toml"));
        assert!(all.rejected[1].rule.contains("agents/a.toml"));
    }

    #[test]
    fn a_directory_must_bear_its_agents_name() {
        let dir = config(&[("b/AGENT.toml", manifest("other"))]);
        let all = load(dir.path());
        assert!(all.known.is_empty());
        assert!(all.rejected[0].rule.contains("`b`"));
    }

    #[test]
    fn wrong_unreadable_and_too_large_files_are_listed_not_fatal() {
        let dir = config(&[
            ("bad.toml", "[agent]\nname = 3\n".into()),
            ("big.toml", "#".repeat(limits::CONFIG_FILE_BYTES_MAX as usize + 10)),
            ("good.toml", manifest("good")),
        ]);
        fs::create_dir(dir.path().join("agents/empty")).unwrap();
        let all = load(dir.path());
        assert_eq!(all.known.len(), 1);
        let files: Vec<_> = all.rejected.iter().map(|e| e.file.as_str()).collect();
        assert_eq!(files, ["agents/bad.toml", "agents/big.toml", "agents/empty/AGENT.toml"]);
        assert!(all.rejected[1].rule.contains("at most"), "{}", all.rejected[1]);
    }

    #[test]
    fn no_configuration_is_no_agent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).known.is_empty());
    }
}
