//! The services that nulld brings itself: programs of its own binary, each under a uid of its own.

use std::collections::BTreeMap;

use abi::identity::UPLINK_UID;
use abi::node::{NetworkMode, NodeConfig, ServiceConfig};

/// Keeps the uplink's address.
pub const UPLINK: &str = "uplink";
/// Sends log lines to the configured host.
pub const FORWARD: &str = "forward";

/// Those that this configuration asks for.
pub fn services(config: &NodeConfig) -> BTreeMap<String, ServiceConfig> {
    let mut all = BTreeMap::new();
    if config.network.mode != NetworkMode::None {
        all.insert(UPLINK.to_owned(), uplink());
    }
    all
}

fn uplink() -> ServiceConfig {
    ServiceConfig {
        uid: UPLINK_UID,
        capabilities: vec!["net_admin".to_owned(), "net_bind_service".to_owned()],
        memory_mib_max: 16,
        ..program("uplink")
    }
}

/// `nulld NAME` with nothing granted.
fn program(name: &str) -> ServiceConfig {
    ServiceConfig {
        args: vec![name.to_owned()],
        stop_secs_max: 3,
        restart_ms_min: 1000,
        rescue: true,
        ..ServiceConfig::denied("/system/bin/nulld")
    }
}
