//! The node's configuration on its way from two files to the services.
//!
//! Must hold: a wrong file on the volume is reported, with its place, and the node runs with the image's; a wrong file in
//! the image stops the boot. What the services read is the checked result.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;

use abi::config_error::{ConfigError, Source};
use abi::limits;
use abi::node::{self, CONFIG_DIR, NODE_CONFIG_PATH, NodeConfig};

use crate::launch;

/// What a volume's file is called in messages.
const VOLUME_FILE: &str = "nulld.toml (configuration volume)";
const IMAGE_FILE: &str = "nulld.toml (image)";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {error}")]
    Read { path: String, error: io::Error },
    #[error("the image's own configuration is wrong: {0}")]
    Image(Box<ConfigError>),
    #[error("cannot write {NODE_CONFIG_PATH}: {0}")]
    Write(io::Error),
}

/// A configuration, and what is wrong with the volume's file.
#[derive(Debug)]
pub struct Loaded {
    pub config: NodeConfig,
    pub problems: Vec<ConfigError>,
}

/// The image's file. Read before the volume is laid over it.
pub fn image() -> Result<String, LoadError> {
    let path = format!("{CONFIG_DIR}/nulld.toml");
    read(&path).map_err(|error| LoadError::Read { path, error })
}

/// Reads at most one byte more than a file may have; the parser refuses it then.
pub fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limits::CONFIG_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Pure: what holds, given the two texts.
pub fn merge(image: &str, volume: Option<&str>) -> Result<Loaded, LoadError> {
    let image = Source { file: IMAGE_FILE, text: image };
    let base = parse(&[image]).map_err(LoadError::Image)?;
    let Some(text) = volume else {
        return Ok(Loaded { config: base, problems: Vec::new() });
    };
    let volume = Source { file: VOLUME_FILE, text };
    Ok(match parse(&[image, volume]) {
        Ok(config) => Loaded { config, problems: Vec::new() },
        Err(problem) => Loaded { config: base, problems: vec![*problem] },
    })
}

fn parse(files: &[Source<'_>]) -> Result<NodeConfig, Box<ConfigError>> {
    let config = node::parse(files)?;
    for (name, service) in &config.services {
        if let Err(error) = launch::privileges::parse_capabilities(&service.capabilities) {
            let last = files.last().map_or(IMAGE_FILE, |source| source.file);
            return Err(Box::new(ConfigError {
                file: last.to_owned(),
                line: 0,
                field: format!("services.{name}.capabilities"),
                value: String::new(),
                rule: error.to_string(),
                remedy: "write for example capabilities = [\"net_admin\"]".to_owned(),
            }));
        }
    }
    Ok(config)
}

/// Writes the configuration for the services.
pub fn publish(config: &NodeConfig) -> Result<(), LoadError> {
    let text = serde_json::to_vec(config).map_err(|error| LoadError::Write(error.into()))?;
    write_whole(NODE_CONFIG_PATH, &text).map_err(LoadError::Write)
}

/// Reads what was published at boot, for a nulld that begins again.
pub fn published() -> io::Result<NodeConfig> {
    let file = File::open(NODE_CONFIG_PATH)?;
    // Written by nulld from at most two files; as JSON they grow, and never tenfold.
    Ok(serde_json::from_reader(io::BufReader::new(file.take(20 * limits::CONFIG_FILE_BYTES_MAX)))?)
}

/// Writes a world-readable file so that a reader sees the old or the new one, whole.
pub fn write_whole(path: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = format!("{path}.new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "[services.cage]\npath = \"/system/bin/cage\"\ncapabilities = [\"sys_admin\"]\n";

    #[test]
    fn a_wrong_volume_is_reported_and_the_image_holds() {
        for text in [
            "[node]\nname = 5\n",
            "not toml",
            "[services.cage]\ncapabilities = [\"root\"]\n",
            "[services.cage]\npath = \"/state/evil\"\n",
        ] {
            let loaded = merge(IMAGE, Some(text)).unwrap();
            assert_eq!(loaded.config, merge(IMAGE, None).unwrap().config, "{text}");
            assert_eq!(loaded.problems.len(), 1);
            assert_eq!(loaded.problems[0].file, VOLUME_FILE);
        }
    }

    #[test]
    fn a_right_volume_is_laid_over_the_image() {
        let loaded = merge(IMAGE, Some("[node]\nname = \"n7\"\n")).unwrap();
        assert_eq!((loaded.config.node.name.as_str(), loaded.problems.len()), ("n7", 0));
    }

    #[test]
    fn a_wrong_image_is_an_error() {
        assert!(matches!(merge("[services.x]\n", None), Err(LoadError::Image(_))));
    }

    #[test]
    fn the_images_own_configuration_holds_and_gives_each_service_its_uid() {
        let text = include_str!("../../image/config/nulld.toml");
        let config = merge(text, None).unwrap().config;
        for (name, service) in &config.services {
            let known = node::known_service(name).unwrap_or_else(|| panic!("{name} has no socket"));
            assert_eq!(service.uid, known.uid(), "{name}");
        }
        let names: Vec<&str> = config.services.keys().map(String::as_str).collect();
        assert_eq!(names, ["cage", "ctxgraph", "egress", "nullgate"]);
    }

    #[test]
    fn the_example_of_the_page_is_right() {
        let page = include_str!("../../docs/nulld.toml.md");
        let example = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next());
        let image = include_str!("../../image/config/nulld.toml");
        let loaded = merge(image, example).unwrap();
        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.config.node.name, "node-1");
    }
}
