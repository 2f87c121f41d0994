//! The services that nulld brings itself: programs of its own binary, each under a uid of its own.

use std::collections::BTreeMap;

use abi::identity::{CLOCK_UID, Service, UPLINK_UID};
use abi::node::{CallSet, NODE_CONFIG_PATH, NetworkMode, NodeConfig, ServiceConfig};

use crate::{forward, uplink};

/// Keeps the uplink's address.
pub const UPLINK: &str = "uplink";
/// Keeps the wall clock right.
pub const CLOCK: &str = "clock";
/// Sends log lines to the configured host.
pub const FORWARD: &str = "forward";

/// Those that this configuration asks for.
pub fn services(config: &NodeConfig) -> BTreeMap<String, ServiceConfig> {
    let mut all = BTreeMap::new();
    if config.network.mode != NetworkMode::None {
        all.insert(UPLINK.to_owned(), uplink());
        // A static address comes without time servers.
        if config.network.mode == NetworkMode::Dhcp || !config.clock.servers.is_empty() {
            all.insert(CLOCK.to_owned(), clock());
        }
    }
    if let Some(service) = forward::service(config, program(FORWARD)) {
        all.insert(FORWARD.to_owned(), service);
    }
    // As the services of nulld.toml have them.
    for service in all.values_mut() {
        service.execute.extend(config.node.libraries.iter().cloned());
    }
    all
}

/// It sets addresses by netlink, finds the interface in sysfs, speaks DHCP by UDP, and writes what it got.
fn uplink() -> ServiceConfig {
    let read = [NODE_CONFIG_PATH, "/sys/class/net", "/sys/devices"];
    ServiceConfig {
        uid: UPLINK_UID,
        capabilities: vec!["net_admin".to_owned(), "net_bind_service".to_owned()],
        system_calls: vec![CallSet::Files, CallSet::Network, CallSet::Netlink],
        read: read.map(str::to_owned).to_vec(),
        write: vec![uplink::DIR.to_owned()],
        network: true,
        memory_mib_max: 16,
        ..program(UPLINK)
    }
}

/// It asks servers by UDP, reads which from the configuration and the uplink, and has their names from egress.
fn clock() -> ServiceConfig {
    ServiceConfig {
        uid: CLOCK_UID,
        capabilities: vec!["sys_time".to_owned()],
        system_calls: vec![CallSet::Network, CallSet::Clock],
        read: vec![NODE_CONFIG_PATH.to_owned(), uplink::DIR.to_owned(), Service::Egress.socket_path()],
        network: true,
        memory_mib_max: 16,
        watchdog_secs_max: 60,
        ..program(CLOCK)
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
