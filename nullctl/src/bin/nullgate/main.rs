//! nullgate: the authenticated remote door. docs/nullgate.md is its page.
//!
//! Must hold: a byte reaches nulld only from a session whose key stands in operators.toml, after the line that says whose.
//! Must never: read a request, decide what a role may do, or run without showing the node's fingerprint.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable
    )
)]

mod metrics;
mod node_metrics;
mod operators;
mod places;
mod refusals;
mod session;

use abi::door::{self, Call, Handler, Inherited, Outcome};
use abi::identity::Service;
use abi::ids::Source;
use abi::node::{CONFIG_DIR, CONTROL_SOCKET, NODE_CONFIG_PATH, NodeConfig, STATE_DIR};
use abi::rpc::{Code, RpcError};
use abi::{ledger, log};
use nullctl::keys::{KeyError, PrivateKey};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use operators::Keyring;
use places::Places;
use refusals::Refusals;
use session::Gate;

/// Pause before the metrics listener's address is tried again.
const METRICS_BIND_PAUSE: Duration = Duration::from_secs(10);

/// Why nullgate cannot serve.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("argument: {0}")]
    Argument(#[from] lexopt::Error),
    #[error("started without nulld: {0}")]
    Inherited(io::Error),
    #[error("cannot read {path}: {error}")]
    NodeConfig { path: PathBuf, error: io::Error },
    #[error("node key: {0}")]
    Key(#[from] KeyError),
    #[error("cannot listen on port {port}: {error}")]
    Listen { port: u16, error: io::Error },
    #[error("door: {0}")]
    Door(io::Error),
}

/// Where things stand; the arguments exist for runs outside a node.
struct Paths {
    config: PathBuf,
    state: PathBuf,
    node: PathBuf,
    nulld: PathBuf,
    ledger: String,
}

impl Paths {
    fn from_arguments() -> Result<Paths, lexopt::Error> {
        use lexopt::prelude::*;
        let mut paths = Paths {
            config: CONFIG_DIR.into(),
            state: Path::new(STATE_DIR).join("nullgate"),
            node: NODE_CONFIG_PATH.into(),
            nulld: CONTROL_SOCKET.into(),
            ledger: Service::Ctxgraph.socket_path(),
        };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("config") => paths.config = arguments.value()?.into(),
                Long("state") => paths.state = arguments.value()?.into(),
                Long("node") => paths.node = arguments.value()?.into(),
                Long("nulld") => paths.nulld = arguments.value()?.into(),
                Long("ledger") => paths.ledger = arguments.value()?.string()?,
                other => return Err(other.unexpected()),
            }
        }
        Ok(paths)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error("start_failed", &[("error", &error)]);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), StartError> {
    let inherited = Inherited::take().map_err(StartError::Inherited)?;
    let paths = Paths::from_arguments()?;
    let node: NodeConfig = std::fs::read(&paths.node)
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from))
        .map_err(|error| StartError::NodeConfig { path: paths.node.clone(), error })?;
    let key = node_key(&paths.state.join("node.key"))?;
    let keyring = Keyring::load(&paths.config.join("operators.toml"));
    let port = node.gate.port;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(|error| StartError::Listen { port, error })?;
    if let Some(address) = node.metrics.address() {
        serve_metrics(address, node.metrics.from, paths.nulld.clone()).map_err(StartError::Door)?;
    }
    let gate = Arc::new(Gate {
        key,
        keyring: Arc::new(keyring),
        nulld: paths.nulld,
        refusals: Refusals::start(ledger::Client::at(paths.ledger)),
        places: Places::new(),
    });
    log::info("listening", &[("port", &port), ("operators", &gate.keyring.len())]);
    let status = match gate.keyring.len() {
        0 => format!(
            "node key {}, port {port}, nobody is let in: no operator is known",
            gate.key.public().fingerprint()
        ),
        count => format!("node key {}, port {port}, {count} operators", gate.key.public().fingerprint()),
    };
    std::thread::Builder::new()
        .name("accept".into())
        .stack_size(64 * 1024)
        .spawn(move || accept(&listener, &gate))
        .map_err(StartError::Door)?;
    door::serve(Service::Nullgate, inherited, Arc::new(NoMethods { status })).map_err(StartError::Door)
}

/// Starts the metrics listener, on a thread of its own. An address that is not there yet, or never, does not keep operators out: it
/// is tried again and again.
fn serve_metrics(address: SocketAddrV4, from: Vec<Source>, nulld: PathBuf) -> io::Result<()> {
    let listener = Arc::new(metrics::Listener::new(from, nulld));
    let serve = move || {
        let tcp = loop {
            match TcpListener::bind(address) {
                Ok(tcp) => break tcp,
                Err(error) => {
                    log::error("metrics_not_listening", &[("address", &address), ("error", &error)])
                }
            }
            std::thread::sleep(METRICS_BIND_PAUSE);
        };
        log::info("metrics_listening", &[("address", &address), ("sources", &listener.from.len())]);
        metrics::serve(&listener, &tcp);
    };
    std::thread::Builder::new().name("metrics".into()).stack_size(64 * 1024).spawn(serve).map(|_| ())
}

/// The node's identity. It is made once; a broken file is an error, since a new key would look like an attack.
fn node_key(path: &Path) -> Result<PrivateKey, KeyError> {
    let (key, made) = match PrivateKey::read(path) {
        Ok(key) => (key, false),
        Err(KeyError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            (PrivateKey::create(path)?, true)
        }
        Err(error) => return Err(error),
    };
    log::info("node_key", &[("fingerprint", &key.public().fingerprint()), ("made", &made)]);
    Ok(key)
}

fn accept(listener: &TcpListener, gate: &Arc<Gate>) {
    loop {
        match listener.accept() {
            Ok((tcp, peer)) => session::start(gate, tcp, peer),
            Err(error) => {
                log::error("accept_failed", &[("error", &error)]);
                std::thread::sleep(Duration::from_millis(100)); // out of descriptors: let some close
            }
        }
    }
}

/// nullgate owns no method; its door exists so that nulld can tell it from a dead one.
struct NoMethods {
    /// The node's fingerprint belongs on the screen: operators compare it.
    status: String,
}

impl Handler for NoMethods {
    fn status(&self) -> Option<String> {
        Some(self.status.clone())
    }

    fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
        Err(RpcError::new(Code::UNKNOWN_METHOD, format!("nullgate has no method `{}`", call.request.method)))
    }
}
