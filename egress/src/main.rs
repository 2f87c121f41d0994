//! egress: wires the parts, puts the node's firewall up, serves.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use abi::door::{self, Inherited};
use abi::identity::Service;
use abi::node::{NODE_CONFIG_PATH, parse_forward};
use abi::{limits, log};
use egress::agent::Node;
use egress::broker::Trust;
use egress::budget::Meters;
use egress::denials::Denials;
use egress::live::{Live, POLICY_PATH};
use egress::pipe::Pipes;
use egress::publish::Firewall;
use egress::receipts::Receipts;
use egress::records::Records;
use egress::resolve::Resolver;
use egress::secrets::{Secrets, TPM_PATH};
use egress::service::Egress;
use egress::settings::{Settings, UPLINK_PATH};
use egress::wall::{self, Doors, OpenPort};
use egress::workers::Workers;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::Semaphore;

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
    let receipts = Arc::new(Receipts::of_node()?);
    let state = Path::new(STATE_DIR);
    let node = Arc::new(Node {
        settings,
        receipts: receipts.clone(),
        denials: Denials::new(receipts),
        records: Records::default(),
        live: Live::read(POLICY_PATH),
        resolver: Resolver::default(),
        trust: Trust::default(),
        receipt_turns: Semaphore::new(limits::RECEIPTS_WAITING_MAX),
        pipes: Pipes::default(),
        secrets: Secrets::open(state, Path::new(TPM_PATH))?,
        meters: Meters::open(&state.join("meters"))?,
    });
    let service = Arc::new(Egress::new(node, firewall, Workers::start(WORKERS)?));
    for (name, run) in [("ends", Egress::end_grants as fn(&Egress)), ("guard", Egress::guard_node)] {
        let service = service.clone();
        std::thread::Builder::new().name(name.into()).stack_size(256 * 1024).spawn(move || run(&service))?;
    }
    door::serve(Service::Egress, inherited, service)?;
    Ok(())
}
