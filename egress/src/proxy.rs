//! The name-bound proxy: from a guest's connection to a synthetic address to a connection of the node's own.
//!
//! Must hold: the name comes from the address the guest connected to, and what the guest then asks for must agree with it; the
//! far address is judged after resolution; the receipt is durable before the dial; no receipt, no connection.
//! Must never: take a name, address or port from what a guest says inside a connection.

use abi::ids::HostName;
use abi::ledger::Event;
use abi::{limits, log};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::agent::{Agent, Slot};
use crate::http;
use crate::resolve::ResolveError;
use crate::sniff::{Guard, Refusal, Speaks};
use crate::splice::{self, End};
use crate::tls;

/// How long a refused client may take to read its refusal.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause when the process is out of descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a connection goes, by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: HostName,
    pub port: u16,
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
    match agent.connection_slot() {
        Some(slot) => {
            let agent = agent.clone();
            connections.spawn(async move { connection(agent, client, slot).await });
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

async fn connection(agent: Arc<Agent>, mut client: TcpStream, _slot: Slot) {
    let target = match rustix::net::sockopt::ip_original_dst(&client) {
        Ok(asked) => target(&agent, SocketAddr::V4(asked)),
        Err(error) => {
            log::error("original_destination_unknown", &[("agent", &agent.instance), ("error", &error)]);
            return reset(&client);
        }
    };
    let ended = match &target {
        Ok(target) => carry(&agent, &mut client, target).await,
        Err(refusal) => Err(End::Refused(refusal.clone())),
    };
    match ended {
        Ok(()) | Err(End::Closed) => {}
        Err(End::Refused(refusal)) => {
            agent.deny(&refusal.what, refusal.rule, &refusal.remedy);
            tell(&mut client, refusal.speaks, Some(&refusal), "").await;
        }
        Err(End::Failed { why, speaks }) => {
            let target = target.map(|t| format!("{}:{}", t.name, t.port)).unwrap_or_default();
            log::info("connection_failed", &[("agent", &agent.instance), ("to", &target), ("why", &why)]);
            tell(&mut client, speaks, None, &why).await;
        }
    }
}

/// What a synthetic address and port stand for.
pub fn target(agent: &Agent, asked: SocketAddr) -> Result<Target, Refusal> {
    let refused =
        |what: String, rule, remedy: String| Refusal { what, rule, remedy, speaks: Speaks::Neither };
    let named = match asked.ip() {
        IpAddr::V4(address) => agent.names.at(address),
        IpAddr::V6(_) => None,
    };
    let Some((name, grant)) = named.and_then(|name| Some((name, agent.names.grant(name)?))) else {
        return Err(refused(
            format!("tcp {asked}"),
            "raw-address",
            "connect to a name: this address stands for no name of this agent".into(),
        ));
    };
    let port = asked.port();
    if !grant.ports.contains(&port) {
        return Err(refused(
            format!("tcp {name}:{port}"),
            "port-not-granted",
            format!("add \"{name}:{port}\" to capabilities.network.allow"),
        ));
    }
    Ok(Target { name: name.clone(), port })
}

/// Looks, resolves, gets a receipt, dials, splices.
async fn carry(agent: &Arc<Agent>, client: &mut TcpStream, target: &Target) -> Result<(), End> {
    let mut guard = Guard::new(target.name.as_str(), target.port);
    let first = first_bytes(client, &mut guard, target.port).await?;
    let speaks = guard.speaks();
    let server = connect(agent, target, speaks).await?;
    splice::run(agent, client, server, guard, first).await
}

/// What the client sends before the server does; empty when it waits for the server.
async fn first_bytes(client: &mut TcpStream, guard: &mut Guard, port: u16) -> Result<Vec<u8>, End> {
    let client_first = matches!(port, 80 | 443);
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(limits::PROXY_FIRST_BYTES_MS_MAX);
    let silence = begun + Duration::from_millis(limits::PROXY_SILENCE_MS);
    let (mut out, mut buffer) = (Vec::new(), vec![0; 8192]);
    while out.is_empty() {
        let until = if client_first || guard.within() { deadline } else { silence };
        match timeout_at(until, client.read(&mut buffer)).await {
            Ok(Ok(0)) | Ok(Err(_)) => return Err(End::Closed),
            Ok(Ok(read)) => {
                let bytes = buffer.get(..read).unwrap_or_default();
                guard.push(bytes, &mut out).map_err(End::Refused)?;
            }
            Err(_) if guard.within() => return Err(End::Refused(guard.late())),
            Err(_) if client_first => return Err(End::Closed),
            Err(_) => break,
        }
    }
    Ok(out)
}

/// The node's own connection to the name.
async fn connect(agent: &Arc<Agent>, target: &Target, speaks: Speaks) -> Result<TcpStream, End> {
    let failed = |why: String| End::Failed { why, speaks };
    let snapshot = agent.node.settings.now();
    let addresses = agent.node.resolver.resolve(&target.name, &snapshot).await.map_err(|error| match error {
        ResolveError::Refused { name, address, why } => End::Refused(Refusal {
            what: format!("tcp {name}:{} at {address}", target.port),
            rule: "private-address",
            remedy: format!("{why} is never dialled for a resolved name; the operator may set [network.hosts] in nulld.toml"),
            speaks,
        }),
        other => failed(other.to_string()),
    })?;
    let mut last = String::from("no address");
    for address in addresses {
        let event = Event::NetConnected {
            instance: agent.instance.clone(),
            name: target.name.clone(),
            port: target.port,
            address: address.to_string(),
        };
        agent.receipt(event).await.map_err(failed)?;
        let dial = TcpStream::connect(SocketAddr::new(address, target.port));
        match timeout(Duration::from_millis(limits::DIAL_MS_MAX), dial).await {
            Ok(Ok(server)) => return Ok(server),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer within {} ms", limits::DIAL_MS_MAX),
        }
    }
    Err(failed(format!("`{}` cannot be reached: {last}", target.name)))
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
    // A client that is gone or does not read is let go; unread bytes would turn the end into a reset that overtakes the answer.
    let farewell = async {
        client.write_all(&bytes).await?;
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
