//! egress: wires the parts, puts the node's firewall up, serves.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use abi::door::{self, Inherited};
use abi::identity::Service;
use abi::log;
use abi::node::{NODE_CONFIG_PATH, parse_forward};
use egress::agent::Node;
use egress::publish::Firewall;
use egress::receipts::Receipts;
use egress::secrets::TPM_PATH;
use egress::service::Egress;
use egress::settings::{Settings, UPLINK_PATH};
use egress::wall::{self, Doors, OpenPort};
use egress::workers::Workers;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Threads that move bytes.
const WORKERS: usize = 2;
/// Secrets, and what agents have spent.
const STATE_DIR: &str = "/state/egress";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error("egress_ended", &[("error", &error)]);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let inherited = Inherited::take()?;
    let settings = Settings::read(NODE_CONFIG_PATH, UPLINK_PATH)?;
    let uid = rustix::process::geteuid().as_raw();
    let config = &settings.now().config;
    let mut gate = vec![OpenPort { port: config.gate.port, from: Vec::new() }];
    gate.extend(
        config
            .metrics
            .address()
            .map(|address| OpenPort { port: address.port(), from: config.metrics.from.clone() }),
    );
    let logs = parse_forward(&config.logs.forward).map(|(transport, _, port)| (transport, port));
    let firewall = Firewall::up(Doors { gate, published: Vec::new(), egress_uid: uid, logs })?;
    log::info("firewall_up", &[("table", &wall::TABLE)]);
    let node = Node::new(settings, Receipts::of_node()?, Path::new(STATE_DIR), Path::new(TPM_PATH))?;
    let service = Arc::new(Egress::new(Arc::new(node), firewall, Workers::start(WORKERS)?));
    for (name, run) in [("ends", Egress::end_grants as fn(&Egress)), ("guard", Egress::guard_node)] {
        let service = service.clone();
        std::thread::Builder::new().name(name.into()).stack_size(256 * 1024).spawn(move || run(&service))?;
    }
    door::serve(Service::Egress, inherited, service)?;
    Ok(())
}
