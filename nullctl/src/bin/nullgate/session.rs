//! One remote connection: handshake, the line that vouches, relay, end.
//!
//! Must hold: nulld hears of a connection only after its key was proved and found in the list.

use abi::door::Vouch;
use abi::identity::Caller;
use abi::rpc::{Code, Response, RpcError};
use abi::{limits, log};
use nullctl::keys::{PrivateKey, PublicKey};
use nullctl::relay::{self, RelayError};
use nullctl::tls::{self, Offered};
use rustls::Connection;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::operators::{Keyring, Operator};
use crate::places::{Full, Place, Places};
use crate::refusals::Refusals;

/// What all sessions share.
#[derive(Debug)]
pub struct Gate {
    pub key: PrivateKey,
    pub keyring: Arc<Keyring>,
    pub nulld: PathBuf,
    pub refusals: Refusals,
    pub places: Places,
}

/// Serves a connection on a thread of its own, if there is place for it.
pub fn start(gate: &Arc<Gate>, tcp: TcpStream, peer: SocketAddr) {
    let place = match gate.places.take() {
        Ok(place) => place,
        Err(full) => return gate.refusals.tell(peer, "-", &full.to_string()),
    };
    let gate = gate.clone();
    let thread = std::thread::Builder::new()
        .name("session".into())
        .stack_size(256 * 1024)
        .spawn(move || serve(&gate, &tcp, peer, place));
    if let Err(error) = thread {
        log::error("thread_failed", &[("error", &error)]);
    }
}

fn serve(gate: &Gate, tcp: &TcpStream, peer: SocketAddr, mut place: Place) {
    let Some((tls, key)) = authenticate(gate, tcp, peer) else {
        return;
    };
    let Some(operator) = gate.keyring.operator(&key) else {
        return; // cannot be: the handshake admits listed keys only
    };
    let (begun, name) = (Instant::now(), &operator.name);
    log::info("connected", &[("peer", &peer), ("operator", name), ("role", &operator.role)]);
    let local = match place.belongs_to(key) {
        Ok(()) => upstream(gate, operator, &key),
        Err(full) => refuse_full(full),
    };
    let local = match local {
        Ok(local) => local,
        Err(error) => return log::error("no_upstream", &[("operator", name), ("error", &error)]),
    };
    let ended = relay::relay(tls, tcp, &local);
    let took = begun.elapsed().as_millis();
    match ended {
        Ok(totals) => log::info(
            "disconnected",
            &[("operator", name), ("ms", &took), ("in", &totals.from_tls), ("out", &totals.to_tls)],
        ),
        Err(error) => log::info("cut", &[("operator", name), ("ms", &took), ("error", &error)]),
    }
}

/// The handshake. `None`: refused, and told.
fn authenticate(gate: &Gate, tcp: &TcpStream, peer: SocketAddr) -> Option<(Connection, PublicKey)> {
    let keyring = gate.keyring.clone();
    let admits = move |key: &PublicKey| keyring.operator(key).is_some();
    let (tls, offered) = match tls::server(&gate.key, admits) {
        Ok(pair) => pair,
        Err(error) => {
            log::error("tls_config", &[("error", &error)]);
            return None;
        }
    };
    let mut tls = Connection::Server(tls);
    let limit = Duration::from_millis(limits::GATE_HANDSHAKE_MS_MAX);
    let outcome = relay::expect_a_living_peer(tcp)
        .map_err(RelayError::from)
        .and_then(|()| relay::handshake(&mut tls, tcp, limit));
    match (outcome, offered.key()) {
        (Ok(()), Some(key)) => Some((tls, key)),
        (Ok(()), None) => None, // cannot be: a client key is mandatory
        (Err(error), key) => {
            relay::linger(&mut tls, tcp);
            let who = key.map_or_else(|| "-".to_owned(), |key| key.fingerprint().to_string());
            gate.refusals.tell(peer, &who, &reason(&gate.keyring, &offered, &error));
            None
        }
    }
}

fn reason(keyring: &Keyring, offered: &Offered, error: &RelayError) -> String {
    match offered.key() {
        Some(key) if keyring.operator(&key).is_none() => "the key is not in operators.toml".into(),
        _ => error.to_string(),
    }
}

fn vouch(operator: &Operator, key: &PublicKey) -> Vouch {
    Vouch {
        vouch: Caller::Operator {
            name: operator.name.clone(),
            key: key.fingerprint().to_string(),
            role: operator.role,
        },
    }
}

/// A connection to nulld on which the vouch line was written; when nulld is not there, one that says so.
fn upstream(gate: &Gate, operator: &Operator, key: &PublicKey) -> io::Result<UnixStream> {
    let mut line = serde_json::to_vec(&vouch(operator, key))?;
    line.push(b'\n');
    let connected = UnixStream::connect(&gate.nulld).and_then(|mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(limits::GATE_HANDSHAKE_MS_MAX)))?;
        stream.write_all(&line)?;
        Ok(stream)
    });
    connected.or_else(|error| {
        log::error("nulld_unreachable", &[("error", &error)]);
        let refusal = RpcError::new(Code::UNAVAILABLE, format!("nulld cannot be reached: {error}"))
            .explained("nulld answers on its control socket", "try again, or look at the console");
        canned(refusal)
    })
}

fn refuse_full(full: Full) -> io::Result<UnixStream> {
    canned(
        RpcError::new(Code::LIMIT, "the key has too many connections")
            .explained(full.to_string(), "close some, then try again"),
    )
}

/// A stream that holds one answer and then ends.
fn canned(refusal: RpcError) -> io::Result<UnixStream> {
    let (mut near, far) = UnixStream::pair()?;
    let mut line = serde_json::to_vec(&Response::of(None, Err(refusal)))?;
    line.push(b'\n');
    near.write_all(&line)?;
    Ok(far)
}
