//! `ctxgraph [--state DIR]`: opens the state, then serves the door until nulld closes it or sends SIGTERM.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use abi::door::{self, Inherited};
use abi::identity::Service;
use abi::log;
use ctxgraph::service::{self, Ctxgraph};
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
    let state = state_directory(std::env::args().skip(1))?;
    let stop = SigSet::from_iter([Signal::SIGTERM]);
    stop.thread_block()?; // before the first thread, so that all inherit it
    let (ctxgraph, _lock) = service::open(&state)?;
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

fn state_directory(mut arguments: impl Iterator<Item = String>) -> Result<PathBuf, String> {
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, _, _) => Ok(STATE.into()),
        (Some("--state"), Some(directory), None) => Ok(directory.into()),
        _ => Err("usage: ctxgraph [--state DIR]".into()),
    }
}
