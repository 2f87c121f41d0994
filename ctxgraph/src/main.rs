//! `ctxgraph [--state DIR] [--node FILE] [--segment-bytes N]`: opens the state, then serves the door until nulld closes it or sends SIGTERM.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use abi::door::{self, Inherited};
use abi::identity::Service;
use abi::node::{Memory, NODE_CONFIG_PATH};
use abi::{limits, log};
use ctxgraph::service::{self, Ctxgraph};
use ctxgraph::settings;
use ctxgraph::store::Quotas;
use nix::sys::signal::{SigSet, Signal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

const STATE: &str = "/state/ctxgraph";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error("ctxgraph_failed", &[("error", &error)]);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let inherited = Inherited::take()?;
    let Arguments { state, node, segment_bytes, quotas } = arguments(std::env::args().skip(1))?;
    let memory = node.map_or_else(Memory::default, |file| settings::read(&file));
    let stop = SigSet::from_iter([Signal::SIGTERM]);
    stop.thread_block()?; // before the first thread, so that all inherit it
    let (ctxgraph, _lock) = service::open(&state, &memory, segment_bytes, quotas)?;
    let ctxgraph = Arc::new(ctxgraph);
    stop_on_signal(stop, ctxgraph.clone())?;
    let served = door::serve(Service::Ctxgraph, inherited, ctxgraph.clone());
    ctxgraph.close();
    Ok(served?)
}

fn stop_on_signal(stop: SigSet, ctxgraph: Arc<Ctxgraph>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("signals".into()).stack_size(64 * 1024);
    thread.spawn(move || {
        let waited = stop.wait();
        ctxgraph.close();
        std::process::exit(i32::from(waited.is_err()));
    })?;
    Ok(())
}

struct Arguments {
    state: PathBuf,
    /// None: the defaults.
    node: Option<PathBuf>,
    /// The tests make small ones.
    segment_bytes: u64,
    /// Likewise.
    quotas: Quotas,
}

/// Without arguments, those of a node.
fn arguments(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let usage = || {
        String::from("usage: ctxgraph [--state DIR] [--node FILE] [--segment-bytes N] [--agent-entries N]")
    };
    let (mut state, mut node, mut segment_bytes) = (None, None, limits::LEDGER_SEGMENT_BYTES_MAX);
    let mut quotas = Quotas::default();
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(usage)?;
        match name.as_str() {
            "--state" => state = Some(PathBuf::from(value)),
            "--node" => node = Some(PathBuf::from(value)),
            "--segment-bytes" => segment_bytes = value.parse().map_err(|_| usage())?,
            "--agent-entries" => quotas.entries = value.parse().map_err(|_| usage())?,
            _ => return Err(usage()),
        }
    }
    let node = node.or_else(|| state.is_none().then(|| NODE_CONFIG_PATH.into()));
    Ok(Arguments { state: state.unwrap_or_else(|| STATE.into()), node, segment_bytes, quotas })
}
