//! What the node was told: its configuration and its uplink, read again when the files change.
//!
//! Must hold: a file that cannot be read later on changes nothing; at start without a configuration there is no egress.

use abi::log;
use abi::node::{NodeConfig, parse_cidr};
use serde::Deserialize;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Where nulld's uplink client writes what it got.
pub const UPLINK_PATH: &str = "/run/nullbox/uplink.json";
/// Resolvers asked, one after the other.
const RESOLVERS_MAX: usize = 4;
/// A settings file, in bytes. Larger: not read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The parts of uplink.json that egress uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Uplink {
    /// With or without a prefix length.
    address: Option<String>,
    dns: Vec<IpAddr>,
}

/// What holds now.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub config: NodeConfig,
    pub resolvers: Vec<IpAddr>,
    /// Addresses of the node that the files name.
    pub own: Vec<IpAddr>,
}

/// The files and what was in them.
#[derive(Debug)]
pub struct Settings {
    config: PathBuf,
    uplink: PathBuf,
    read: Mutex<(Stamps, Arc<Snapshot>)>,
}

/// Inode, size and time of both files.
type Stamps = [Option<(u64, u64, i64, i64)>; 2];

impl Settings {
    /// Reads both files; the configuration must be there.
    pub fn read(config: impl Into<PathBuf>, uplink: impl Into<PathBuf>) -> io::Result<Settings> {
        let settings = Settings { config: config.into(), uplink: uplink.into(), read: Mutex::default() };
        let stamps = settings.stamps();
        let snapshot = settings.load()?;
        *settings.lock() = (stamps, Arc::new(snapshot));
        Ok(settings)
    }

    /// What holds now.
    pub fn now(&self) -> Arc<Snapshot> {
        let mut read = self.lock();
        let stamps = self.stamps();
        if stamps != read.0 {
            read.0 = stamps;
            match self.load() {
                Ok(snapshot) => read.1 = Arc::new(snapshot),
                Err(error) => log::error("settings_unreadable", &[("error", &error)]),
            }
        }
        read.1.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Stamps, Arc<Snapshot>)> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamps(&self) -> Stamps {
        [&self.config, &self.uplink].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
        })
    }

    fn load(&self) -> io::Result<Snapshot> {
        let named = |path: &PathBuf, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let text = read_bounded(&self.config).map_err(|error| named(&self.config, error))?;
        let config: NodeConfig =
            serde_json::from_str(&text).map_err(|error| named(&self.config, error.into()))?;
        let uplink = match read_bounded(&self.uplink) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| named(&self.uplink, error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Uplink::default(),
            Err(error) => return Err(named(&self.uplink, error)),
        };
        Ok(combine(config, &uplink))
    }
}

fn read_bounded(path: &PathBuf) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    fs::read_to_string(path)
}

fn combine(config: NodeConfig, uplink: &Uplink) -> Snapshot {
    let mut resolvers: Vec<IpAddr> = Vec::new();
    for resolver in config.network.dns.iter().chain(&uplink.dns) {
        if !resolvers.contains(resolver) {
            resolvers.push(*resolver);
        }
    }
    resolvers.truncate(RESOLVERS_MAX);
    let bare =
        |text: &str| parse_cidr(text).map(|(address, _)| address).or_else(|| text.parse::<Ipv4Addr>().ok());
    let own = [uplink.address.as_deref(), Some(config.network.address.as_str())];
    let own = own.into_iter().flatten().filter_map(bare).map(IpAddr::V4).collect();
    Snapshot { config, resolvers, own }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configurations_resolvers_come_first_and_once() {
        let mut config = NodeConfig::default();
        config.network.dns = vec!["9.9.9.9".parse().unwrap()];
        let uplink: Uplink = serde_json::from_str(
            r#"{"interface":"eth0","address":"10.0.2.15/24","gateway":"10.0.2.2","dns":["9.9.9.9","10.0.2.3"]}"#,
        )
        .unwrap();
        let snapshot = combine(config, &uplink);
        assert_eq!(snapshot.resolvers, ["9.9.9.9", "10.0.2.3"].map(|a| a.parse::<IpAddr>().unwrap()));
        assert_eq!(snapshot.own, ["10.0.2.15".parse::<IpAddr>().unwrap()]);
    }
}
