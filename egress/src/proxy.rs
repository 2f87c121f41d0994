//! The name-bound proxy: from a guest's connection to a synthetic address to a connection of the node's own.
//!
//! Must hold: the name comes from the address the guest connected to, and what the guest then asks for must agree with it; the
//! far address is judged after resolution; the receipt is durable before the dial; no receipt, no connection.
//! Must never: take a name, address or port from what a guest says inside a connection.

use abi::control::ConnectionRecord;
use abi::ids::HostName;
use abi::ledger::Event;
use abi::{limits, log};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::agent::{Agent, unix_ms_now};
use crate::broker;
use crate::buffers::{Buffers, First, Place};
use crate::http;
use crate::open::Entry;
use crate::policy::{Admission, Way};
use crate::resolve::ResolveError;
use crate::sniff::{Guard, Refusal, Speaks, too_much};
use crate::splice::{self, End};
use crate::tls;

/// How long a refused client may take to read its refusal.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause when the process is out of descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a connection did, readable after it was cut.
#[derive(Debug, Default)]
pub struct Flow {
    pub bytes_out: AtomicU64,
    pub bytes_in: AtomicU64,
    attempts: Mutex<Attempts>,
}

/// Addresses that were tried for a connection, each with the place of its receipt in the ledger, and which one carries it.
#[derive(Debug, Default)]
struct Attempts {
    begun: Vec<(IpAddr, u64)>,
    won: Option<u64>,
}

impl Flow {
    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts for ever. Dropping the future closes all connections of the agent.
pub async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => admit(&agent, client, &mut connections),
                Err(error) => {
                    log::error("accept_failed", &[("agent", &agent.instance), ("error", &error)]);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {} // a finished task gives its memory back
        }
    }
}

fn admit(agent: &Arc<Agent>, client: TcpStream, connections: &mut JoinSet<()>) {
    match agent.connection_place() {
        Some(place) => {
            let agent = agent.clone();
            connections.spawn(async move { connection(agent, client, place).await });
        }
        None => {
            let most = limits::PROXY_CONNECTIONS_PER_AGENT_MAX;
            agent.deny(
                &format!("more than {most} connections"),
                "limit",
                "close some: there is no grant for more",
            );
            reset(&client);
        }
    }
}

async fn connection(agent: Arc<Agent>, mut client: TcpStream, place: Place) {
    let buffers = place.buffers();
    let asked = buffers.near(&client).and_then(|()| Ok(rustix::net::sockopt::ip_original_dst(&client)?));
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            log::error("original_destination_unknown", &[("agent", &agent.instance), ("error", &error)]);
            return reset(&client);
        }
    };
    let (name, port) = (agent.name_at(*asked.ip()), asked.port());
    let entered = match &name {
        Some(name) => agent.enter(name, port).map_err(|refused| Refusal {
            what: format!("tcp {name}:{port}"),
            rule: refused.rule,
            remedy: refused.remedy,
            speaks: Speaks::Neither,
        }),
        None => Err(Refusal {
            what: format!("tcp {asked}"),
            rule: "raw-address",
            remedy: "connect to a name: this address stands for no name of this agent".into(),
            speaks: Speaks::Neither,
        }),
    };
    let ended = match entered {
        Ok((admission, entry)) => carry_to_its_end(&agent, &mut client, &admission, entry, buffers).await,
        Err(mut refusal) => {
            if matches!(refusal.rule, "brokered-only" | "denied" | "budget" | "exposure") {
                // A reason that only this connection can tell: worth waiting for how the client speaks.
                refusal.speaks = language(&agent, &mut client, name.as_ref(), port).await;
            }
            Err(End::Refused(refusal))
        }
    };
    match ended {
        Ok(()) | Err(End::Closed) => {}
        Err(End::Cut(_)) => reset(&client),
        Err(End::Refused(refusal)) => {
            agent.deny(&refusal.what, refusal.rule, &refusal.remedy);
            tell(&mut client, refusal.speaks, Some(&refusal), "").await;
        }
        Err(End::Failed { why, speaks }) => {
            let target = name.map(|name| format!("{name}:{port}")).unwrap_or_default();
            log::info("connection_failed", &[("agent", &agent.instance), ("to", &target), ("why", &why)]);
            tell(&mut client, speaks, None, &why).await;
        }
    }
}

/// Carries a connection until it ends or is cut, and records it.
async fn carry_to_its_end(
    agent: &Arc<Agent>,
    client: &mut TcpStream,
    admission: &Admission,
    mut entry: Entry,
    buffers: Buffers,
) -> Result<(), End> {
    if admission.way != Way::Direct {
        // It records each call by itself. Boxed: its state is large, and a connection that is not its holds none of it.
        return Box::pin(broker::serve(agent, client, admission, entry, buffers)).await;
    }
    let flow = Flow::default();
    let mut ending = Ending { agent, admission, flow: &flow, begun: Instant::now(), end: "detached" };
    let ended = tokio::select! {
        ended = carry(agent, client, admission, &flow, buffers) => ended,
        cut = entry.cut() => Err(End::Cut(cut)),
    };
    ending.end = ended.as_ref().err().map_or("closed", End::word);
    ended
}

/// A connection that will have a record for each of its receipts when this is dropped, also with the agent's network.
struct Ending<'a> {
    agent: &'a Agent,
    admission: &'a Admission,
    flow: &'a Flow,
    begun: Instant,
    end: &'static str,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let Attempts { begun, won } = std::mem::take(&mut *self.flow.attempts());
        for (address, receipt) in begun {
            let carried = won == Some(receipt);
            let bytes = |counter: &AtomicU64| if carried { counter.load(Ordering::Relaxed) } else { 0 };
            // The dial of another than the one that won came to nothing.
            let end = if carried || won.is_none() { self.end } else { "failed" };
            self.agent.node.ended(ConnectionRecord {
                unix_ms: unix_ms_now(),
                instance: self.agent.instance.clone(),
                name: self.admission.name.clone(),
                port: self.admission.port,
                address: address.to_string(),
                bytes_out: bytes(&self.flow.bytes_out),
                bytes_in: bytes(&self.flow.bytes_in),
                duration_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                rule: self.admission.rule.clone(),
                end: end.to_owned(),
                receipt,
            });
        }
    }
}

/// Looks, resolves, gets a receipt, dials, splices.
async fn carry(
    agent: &Arc<Agent>,
    client: &mut TcpStream,
    admission: &Admission,
    flow: &Flow,
    buffers: Buffers,
) -> Result<(), End> {
    let mut guard = Guard::new(admission.name.as_str(), admission.port, admission.without_sni());
    let first = first_bytes(agent, client, &mut guard, admission.port).await?;
    let speaks = guard.speaks();
    let server = connect(agent, admission, speaks, flow, buffers).await?;
    splice::run(agent, flow, client, server, Some((guard, first))).await
}

/// How a client that is refused in any case speaks.
async fn language(agent: &Agent, client: &mut TcpStream, name: Option<&HostName>, port: u16) -> Speaks {
    let mut guard = Guard::new(name.map_or("", HostName::as_str), port, true);
    match first_bytes(agent, client, &mut guard, port).await {
        Err(End::Refused(refusal)) => refusal.speaks,
        _ => guard.speaks(),
    }
}

/// What the client sends before the server does; empty when it waits for the server.
pub(crate) async fn first_bytes(
    agent: &Agent,
    client: &mut TcpStream,
    guard: &mut Guard,
    port: u16,
) -> Result<First, End> {
    let client_first = matches!(port, 80 | 443);
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(limits::PROXY_FIRST_BYTES_MS_MAX);
    let silence = begun + Duration::from_millis(limits::PROXY_SILENCE_MS);
    let mut first = First { bytes: Vec::new(), held: agent.undecided.held() };
    while first.bytes.is_empty() {
        let until = if client_first || guard.within() { deadline } else { silence };
        match timeout_at(until, client.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(End::Closed),
            Err(_) if guard.within() => return Err(End::Refused(guard.late())),
            Err(_) if client_first => return Err(End::Closed),
            Err(_) => break,
        }
        match splice::read_into(client, guard, &mut first.bytes)? {
            Some(0) => return Err(End::Closed),
            _ if !first.held.set(guard.held(), first.bytes.len()) => {
                return Err(End::Refused(too_much(guard.speaks())));
            }
            _ => {}
        }
    }
    Ok(first)
}

/// The node's own connection to the name, its receipt first.
async fn connect(
    agent: &Arc<Agent>,
    admission: &Admission,
    speaks: Speaks,
    flow: &Flow,
    buffers: Buffers,
) -> Result<TcpStream, End> {
    let (name, port) = (&admission.name, admission.port);
    let addresses = dial_list(agent, admission).await.map_err(|refusal| refusal.spoken(speaks))?;
    let receipt = |address: IpAddr| {
        let event = Event::NetConnected {
            instance: agent.instance.clone(),
            name: name.clone(),
            port,
            address: address.to_string(),
            rule: admission.rule.clone(),
        };
        async move {
            let receipt = agent.receipt(event).await?;
            flow.attempts().begun.push((address, receipt));
            Ok(receipt)
        }
    };
    match dial(&addresses, port, buffers, &receipt).await {
        Ok(found) => {
            flow.attempts().won = Some(found.receipt);
            Ok(found.server)
        }
        Err(why) => Err(End::Failed { why: format!("`{name}` cannot be reached: {why}"), speaks }),
    }
}

/// A connection of the node's own.
pub(crate) struct Dialled {
    pub server: TcpStream,
    pub address: IpAddr,
    /// The place of its receipt in the ledger.
    pub receipt: u64,
}

/// Dials addresses that were judged, in this order: the next one when one fails, or beside it when it takes long (RFC 8305). The first
/// that answers wins. `receipt` is awaited before each dial; without one that address is not dialled. The error says why the last
/// one failed. The kernel may hold of each what `buffers` says.
pub(crate) fn dial<'a, R, F>(
    addresses: &'a [IpAddr],
    port: u16,
    buffers: Buffers,
    receipt: &'a R,
) -> Pin<Box<dyn Future<Output = Result<Dialled, String>> + Send + 'a>>
where
    R: Fn(IpAddr) -> F + Sync,
    F: Future<Output = Result<u64, String>> + Send,
{
    Box::pin(async move {
        let Some((first, others)) = addresses.split_first() else { return Err("no address".into()) };
        let place = receipt(*first).await?; // the wait for it says nothing about the address
        let mut attempt = pin!(dial_one(*first, port, buffers, place));
        match timeout(Duration::from_millis(limits::DIAL_STAGGER_MS), &mut attempt).await {
            Ok(Err(_)) if !others.is_empty() => return dial(others, port, buffers, receipt).await,
            Ok(ended) => return ended,
            Err(_) if others.is_empty() => return attempt.await,
            Err(_) => {}
        }
        let mut rest = dial(others, port, buffers, receipt);
        tokio::select! {
            ended = &mut attempt => if ended.is_ok() { ended } else { rest.await },
            ended = &mut rest => if ended.is_ok() { ended } else { attempt.await },
        }
    })
}

async fn dial_one(address: IpAddr, port: u16, buffers: Buffers, receipt: u64) -> Result<Dialled, String> {
    let dial = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        buffers.far(&socket)?;
        socket.connect(SocketAddr::new(address, port)).await
    };
    match timeout(Duration::from_millis(limits::DIAL_MS_MAX), dial).await {
        Ok(Ok(server)) => Ok(Dialled { server, address, receipt }),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer within {} ms", limits::DIAL_MS_MAX)),
    }
}

/// Addresses that may be dialled for an admission, in the order to try; each was judged now.
pub(crate) async fn dial_list(agent: &Agent, admission: &Admission) -> Result<Vec<IpAddr>, End> {
    let snapshot = agent.node.settings.now();
    let private = admission.private_addresses();
    let resolved = agent.node.resolver.resolve(&admission.name, &private, &snapshot).await;
    resolved.map_err(|error| match error {
        ResolveError::Refused { name, address, why } => End::Refused(Refusal {
            what: format!("tcp {name}:{} at {address}", admission.port),
            rule: "private-address",
            remedy: format!(
                "{why} is never dialled for a resolved name; add it to addresses of the entry in \
                 capabilities.network.allow, or set [network.hosts] in nulld.toml"
            ),
            speaks: Speaks::Neither,
        }),
        other => End::Failed { why: other.to_string(), speaks: Speaks::Neither },
    })
}

/// Tells the client in its own protocol why it ends, then ends it.
async fn tell(client: &mut TcpStream, speaks: Speaks, refusal: Option<&Refusal>, failure: &str) {
    let bytes = match (speaks, refusal) {
        (Speaks::Neither, _) => return reset(client),
        (Speaks::Tls, Some(refusal)) if refusal.rule == "sni-mismatch" => tls::UNRECOGNIZED_NAME.to_vec(),
        (Speaks::Tls, Some(_)) => tls::ACCESS_DENIED.to_vec(),
        (Speaks::Tls, None) => tls::INTERNAL_ERROR.to_vec(),
        (Speaks::Http, Some(refusal)) => {
            http::refusal("403 Forbidden", refusal.rule, &refusal.what, &refusal.remedy)
        }
        (Speaks::Http, None) => {
            http::refusal("502 Bad Gateway", "unreachable", failure, "try again, or ask the operator")
        }
    };
    farewell(client, &bytes).await;
}

/// Says a last word and ends the connection. A client that is gone or does not read is let go; unread bytes would turn the end into a
/// reset that overtakes the answer.
pub(crate) async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S, bytes: &[u8]) {
    let farewell = async {
        client.write_all(bytes).await?;
        client.shutdown().await?;
        let mut sink = [0; 4096];
        for _ in 0..64 {
            if client.read(&mut sink).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(FAREWELL, farewell).await;
}

/// Ends a connection with a reset, which a client sees as a refusal at once.
pub(crate) fn reset(client: &TcpStream) {
    // The connection ends either way.
    let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
}
