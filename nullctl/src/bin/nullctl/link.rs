//! One connection to a node, and one call over it.
//!
//! TLS runs on a thread of its own that relays to a Unix socket pair, so that both ways of reaching a node look the same from here.
//! Must hold: no request leaves before the node's key was compared with the pin.

use abi::rpc::{Incoming, Request, Response};
use abi::wire::{Connection, LineWriter, WireError};
use nullctl::keys::PrivateKey;
use nullctl::relay::{self, RelayError};
use nullctl::tls;
use rustls::{AlertDescription, CertificateError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::failure::{Failure, status};
use crate::nodes::Target;

/// How long connecting and the handshake may take, each.
const CONNECT: Duration = Duration::from_secs(10);
/// How long nullctl tries again where the gate has no place for one more handshake, and its first pause; the longest is 16 of it.
const CROWDED: Duration = Duration::from_secs(15);
const CROWDED_PAUSE: Duration = Duration::from_millis(50);
/// How long the TLS thread may take to say why it ended.
const LAST_WORD: Duration = Duration::from_secs(3);
/// How long closing a session may take.
const FAREWELL: Duration = Duration::from_millis(500);
/// The id of the one call a connection carries.
const CALL_ID: u64 = 1;

/// A connection to a node.
pub struct Link {
    connection: Connection,
    /// How the TLS session ended; absent on a Unix socket.
    ended: Option<Receiver<RelayError>>,
    /// Said in messages.
    target: String,
}

impl Drop for Link {
    /// Closes the session, so that the node sees an end and not a cut; waits for it, within bounds.
    fn drop(&mut self) {
        let _ = self.connection.stream().shutdown(Shutdown::Both); // it may have ended
        if let Some(ended) = &self.ended {
            let _ = ended.recv_timeout(FAREWELL); // the thread's end closes the channel
        }
    }
}

/// What came.
pub enum Event {
    Notification(Request),
    Result(Value),
}

impl Link {
    /// Connects and proves both sides. `silence` bounds each wait for the node.
    pub fn open(target: &Target, silence: Option<Duration>) -> Result<Link, Failure> {
        let link = match target {
            Target::Socket(path) => Link {
                connection: Connection::connect(path)
                    .map_err(|error| unreachable(&path.display().to_string(), &error))?,
                ended: None,
                target: path.display().to_string(),
            },
            Target::Tls { address, key, pin } => {
                let key = read_key(key)?;
                let (connection, ended) = dial(address, &key, *pin)?;
                Link { connection, ended: Some(ended), target: address.clone() }
            }
        };
        link.connection.set_timeout(silence).map_err(|error| unreachable(&link.target, &error))?;
        Ok(link)
    }

    /// Sends the request.
    pub fn ask(&mut self, method: &str, params: &impl Serialize) -> Result<(), Failure> {
        let params = serde_json::to_value(params)
            .map_err(|error| Failure::usage(error.to_string(), "check the arguments"))?;
        match self.connection.write_line(&Request::call(CALL_ID, method, params)) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// The next notification, or the result.
    pub fn next(&mut self) -> Result<Event, Failure> {
        let line = match self.connection.read_line() {
            Ok(Some(line)) => line,
            Ok(None) => return Err(self.broken(WireError::CutLine)),
            Err(error) => return Err(self.broken(error)),
        };
        match serde_json::from_str::<Incoming>(&line) {
            Ok(Incoming::Notification(request)) if request.id.is_none() => Ok(Event::Notification(request)),
            Ok(Incoming::Response(Response { error: Some(error), .. })) => Err(Failure::node(error)),
            Ok(Incoming::Response(Response { id: Some(CALL_ID), result, error: None, .. })) => {
                Ok(Event::Result(result.unwrap_or(Value::Null)))
            }
            _ => Err(Failure::local(
                status::FAILED,
                "the node answered what was not asked",
                line.chars().take(200).collect::<String>(),
                "use a nullctl of the node's version",
            )),
        }
    }

    /// Waits for the result; notifications go to `on`.
    pub fn result(&mut self, on: &mut dyn FnMut(&Request) -> Result<(), Failure>) -> Result<Value, Failure> {
        loop {
            match self.next()? {
                Event::Notification(note) => on(&note)?,
                Event::Result(value) => return Ok(value),
            }
        }
    }

    /// Follows: notifications after the result, until the connection or the command ends.
    pub fn follow(&mut self, on: &mut dyn FnMut(&Request) -> Result<(), Failure>) -> Result<u8, Failure> {
        loop {
            if let Event::Notification(note) = self.next()? {
                on(&note)?;
            }
        }
    }

    /// A handle that writes further lines from another thread.
    pub fn writer(&self) -> Result<LineWriter, Failure> {
        self.connection.writer().map_err(|error| unreachable(&self.target, &error))
    }

    /// A handle that writes raw bytes after the request line.
    pub fn body(&self) -> Result<UnixStream, Failure> {
        self.connection.stream().try_clone().map_err(|error| unreachable(&self.target, &error))
    }

    /// Why the connection broke, as far as it can be known: the TLS side knows more than the pipe to it.
    fn broken(&self, error: WireError) -> Failure {
        if let WireError::Io(io) = &error
            && matches!(io.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        {
            return Failure::local(
                status::TIMEOUT,
                format!("{} did not answer in time", self.target),
                "--timeout bounds how long the node may be silent",
                "look at nullctl system status, or give it more time",
            );
        }
        let _ = self.connection.stream().shutdown(Shutdown::Both); // ends the TLS thread, if it has not ended
        match self.ended.as_ref().map(|ended| ended.recv_timeout(LAST_WORD)) {
            Some(Ok(error)) => session_failure(&self.target, &error),
            _ => Failure::local(
                status::FAILED,
                format!("{} closed the connection: {error}", self.target),
                "a call ends with its result",
                "the service may have restarted; try again, or look at nullctl system logs",
            ),
        }
    }
}

/// A node's answer as its type.
pub fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    T::deserialize(value).map_err(|error| {
        Failure::local(
            status::FAILED,
            format!("the node's answer has another shape than this nullctl knows: {error}"),
            "nullctl and node speak one version of the protocol",
            "use --json, or a nullctl of the node's version",
        )
    })
}

/// Reads the private key; without one it says how to make one.
pub fn read_key(path: &Path) -> Result<PrivateKey, Failure> {
    PrivateKey::read(path).map_err(|error| {
        Failure::local(
            status::USAGE,
            error.to_string(),
            "a node admits only known keys",
            "make one with nullctl key gen, or name one with --key",
        )
    })
}

fn unreachable(target: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::local(
        status::UNREACHABLE,
        format!("cannot reach {target}: {error}"),
        "",
        "check the address, and that the node's console says `nullbox: ready`",
    )
}

fn connect(address: &str) -> Result<TcpStream, Failure> {
    let found = address.to_socket_addrs().map_err(|error| unreachable(address, &error))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in found {
        match TcpStream::connect_timeout(&candidate, CONNECT) {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error,
        }
    }
    Err(unreachable(address, &last))
}

/// One try to connect and to prove both keys.
fn shake_hands(
    address: &str,
    key: &PrivateKey,
    pin: Option<nullctl::keys::Fingerprint>,
) -> Result<(TcpStream, rustls::Connection, tls::Offered, Result<(), RelayError>), Failure> {
    let tcp = connect(address)?;
    let (tls, offered) = tls::client(key, pin).map_err(|error| unreachable(address, &error))?;
    let mut tls = rustls::Connection::Client(tls);
    let proved = relay::expect_a_living_peer(&tcp)
        .map_err(RelayError::from)
        .and_then(|()| relay::handshake(&mut tls, &tcp, CONNECT));
    Ok((tcp, tls, offered, proved))
}

/// Whether the gate closed a connection before it said a word, which it does when too many knock at once.
fn is_crowded(error: &RelayError) -> bool {
    match error {
        RelayError::HandshakeCut => true,
        RelayError::Io(error) => {
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        }
        _ => false,
    }
}

/// Connects, compares keys, and starts the thread that carries the session. Where the gate is crowded it tries again for a while:
/// nothing was asked of it yet.
fn dial(
    address: &str,
    key: &PrivateKey,
    pin: Option<nullctl::keys::Fingerprint>,
) -> Result<(Connection, Receiver<RelayError>), Failure> {
    let (begun, mut pause) = (Instant::now(), CROWDED_PAUSE);
    let (tcp, tls, offered, proved) = loop {
        let tried = shake_hands(address, key, pin)?;
        match &tried.3 {
            Err(error) if is_crowded(error) && begun.elapsed() < CROWDED => {}
            _ => break tried,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(CROWDED_PAUSE * 16);
    };
    if let Err(error) = proved {
        let seen = offered.key().map(|key| key.fingerprint().to_string());
        return Err(match (seen, pin, &error) {
            (Some(seen), None, RelayError::Tls(rustls::Error::InvalidCertificate(_))) => {
                untrusted(address, &seen)
            }
            (
                Some(seen),
                Some(pin),
                RelayError::Tls(rustls::Error::InvalidCertificate(
                    CertificateError::ApplicationVerificationFailure,
                )),
            ) => another_node(address, &seen, &pin.to_string()),
            _ => session_failure(address, &error),
        });
    }
    let (near, far) = UnixStream::pair().map_err(|error| unreachable(address, &error))?;
    let (tell, ended) = channel();
    std::thread::Builder::new()
        .name("tls".into())
        .spawn(move || {
            if let Err(error) = relay::relay(tls, &tcp, &far) {
                let _ = tell.send(error); // the command may have ended
            }
        })
        .map_err(|error| unreachable(address, &error))?;
    Ok((Connection::new(near), ended))
}

fn untrusted(address: &str, seen: &str) -> Failure {
    Failure::local(
        status::UNREACHABLE,
        format!("{address} is not known here; it shows the key {seen}"),
        "nothing is trusted because it was seen first",
        format!(
            "compare it with `node_key fingerprint=` on the node's console; if they are equal: nullctl node trust {address} --pin {seen}"
        ),
    )
}

fn another_node(address: &str, seen: &str, pin: &str) -> Failure {
    Failure::local(
        status::UNREACHABLE,
        format!("{address} shows the key {seen}, not the pinned {pin}"),
        "a node's key does not change while its state partition lives",
        format!(
            "somebody may be in between, or the node lost its state, or it is in rescue, with a key that lasts until its next boot: \
             look at its console; if that shows {seen}: in rescue, call with --pin {seen}; else nullctl node trust it anew"
        ),
    )
}

fn session_failure(target: &str, error: &RelayError) -> Failure {
    match error {
        RelayError::Tls(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => Failure::local(
            status::DENIED,
            format!("{target} does not know this key"),
            "keys of operators stand in operators.toml of the node's configuration",
            "nullctl key show prints what to add there",
        ),
        RelayError::HandshakeTimeout(_) => Failure::local(
            status::TIMEOUT,
            format!("{target}: {error}"),
            "",
            "check that nullgate listens there, and the network between",
        ),
        RelayError::HandshakeCut => Failure::local(
            status::UNREACHABLE,
            format!("{target}: {error}"),
            "nullgate closes connections above its limits before the handshake",
            "try again; check that nullgate listens there",
        ),
        _ => unreachable(target, error),
    }
}
