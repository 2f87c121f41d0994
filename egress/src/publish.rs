//! Published ports: from a peer on the uplink to a port of one guest, and the node's firewall that has a gap for each.
//!
//! Must hold: a port is open only while its agent's network lives, and only for the sources its manifest names; who came is in
//! the ledger before a byte passes. Must never: let a guest reach the node through a port, or give one port to two agents.

use abi::ids::Instance;
use abi::ledger::Event;
use abi::manifest::Published;
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::buffers::Place;
use crate::guard::Guard;
use crate::namespace;
use crate::nft::{self, NftError};
use crate::open::Entry;
use crate::policy::Refused;
use crate::proxy::{ACCEPT_PAUSE, Flow, reset};
use crate::splice;
use crate::wall::{self, Doors, GUEST, OpenPort};

/// The node's packet rules, with the published ports that stand in them.
#[derive(Debug)]
pub struct Firewall {
    /// Without published ports.
    base: Doors,
    held: Mutex<BTreeMap<u16, Held>>,
    guard: Guard,
}

/// A published port.
#[derive(Debug)]
struct Held {
    by: Instance,
    door: OpenPort,
}

impl Firewall {
    /// Puts the rules up, in the node's namespace, where the caller must be. Ports that an earlier egress left open are shut.
    pub fn up(base: Doors) -> Result<Firewall, Box<dyn std::error::Error>> {
        let guard = Guard::here()?;
        nft::replace(&wall::of_node(&base), guard.mark()?)?;
        Ok(Firewall { base, held: Mutex::default(), guard })
    }

    /// The watch over the rules.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Puts the rules back, with the published ports of now; returns the tables that stand beside them still. Call in the node's
    /// namespace.
    pub fn restore(&self) -> Result<Vec<String>, NftError> {
        self.replace(&self.held())?;
        nft::others()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u16, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an agent's ports until the answer is dropped; all of them or none. Call in the node's namespace.
    pub fn publish(&self, instance: &Instance, ports: &[Published]) -> Result<Opened<'_>, RpcError> {
        let opened = Opened { firewall: self, instance: instance.clone(), any: !ports.is_empty() };
        if ports.is_empty() {
            return Ok(opened);
        }
        let mut held = self.held();
        if let Some((port, other)) = ports.iter().find_map(|one| held.get_key_value(&one.node_port)) {
            let message = format!("port {port} of the node is published by {}", other.by);
            return Err(RpcError::new(Code::CONFLICT, message).explained(
                "a port of the node leads to one agent",
                "choose another node_port, or stop that agent",
            ));
        }
        let sources = held.values().map(|held| held.door.from.len()).sum::<usize>()
            + ports.iter().map(|one| one.from.len()).sum::<usize>();
        if sources > limits::PUBLISH_SOURCES_NODE_MAX {
            let rule = format!("at most {} sources in all", limits::PUBLISH_SOURCES_NODE_MAX);
            return Err(RpcError::new(Code::LIMIT, "no room for the sources of another published port")
                .explained(rule, "name fewer ranges in `from`, or stop an agent"));
        }
        for one in ports {
            let door = OpenPort { port: one.node_port, from: one.from.clone() };
            held.insert(one.node_port, Held { by: instance.clone(), door });
        }
        if let Err(error) = self.replace(&held) {
            held.retain(|_, held| held.by != *instance);
            return Err(RpcError::new(Code::FAILED, format!("the node's firewall: {error}")));
        }
        drop(held);
        Ok(opened)
    }

    fn replace(&self, held: &BTreeMap<u16, Held>) -> Result<(), NftError> {
        let published = held.values().map(|held| held.door.clone()).collect();
        let mark = self.guard.mark().map_err(NftError::of)?;
        nft::replace(&wall::of_node(&Doors { published, ..self.base.clone() }), mark)
    }
}

/// An agent's open ports; dropping it shuts them.
#[derive(Debug)]
pub struct Opened<'a> {
    firewall: &'a Firewall,
    instance: Instance,
    any: bool,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if !self.any {
            return;
        }
        let mut held = self.firewall.held();
        let before = held.len();
        held.retain(|_, held| held.by != self.instance);
        if held.len() != before
            && let Err(error) = self.firewall.replace(&held)
        {
            // Nothing listens there any more, and the next change of the rules shuts it.
            log::error("port_not_shut", &[("agent", &self.instance), ("error", &error)]);
        }
    }
}

/// A published port and its listening socket.
#[derive(Debug)]
pub struct Door<L = std::net::TcpListener> {
    published: Published,
    listener: L,
}

/// Listens on the node's ports, in the caller's namespace.
pub fn listen(ports: &[Published]) -> io::Result<Vec<Door>> {
    let listen = |published: &Published| {
        let port = published.node_port;
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("listen on port {port}: {error}"));
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(named)?;
        listener.set_nonblocking(true)?;
        namespace::bound_buffers(&listener)?;
        Ok(Door { published: published.clone(), listener })
    };
    ports.iter().map(listen).collect()
}

impl Door {
    /// For the runtime in whose context it is called.
    pub fn within_runtime(self) -> io::Result<Door<TcpListener>> {
        Ok(Door { published: self.published, listener: TcpListener::from_std(self.listener)? })
    }
}

/// Serves an agent's ports for ever. Dropping the future closes all of their connections.
pub async fn serve(agent: Arc<Agent>, namespace: Arc<OwnedFd>, doors: Vec<Door<TcpListener>>) {
    let mut serving = JoinSet::new();
    for door in doors {
        serving.spawn(accept(agent.clone(), namespace.clone(), door));
    }
    while serving.join_next().await.is_some() {}
    std::future::pending().await // without a port there is nothing to do, and never an end
}

async fn accept(agent: Arc<Agent>, namespace: Arc<OwnedFd>, door: Door<TcpListener>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = door.listener.accept() => match accepted {
                Ok((peer, from)) => match admit(&agent, &door.published, from) {
                    Some((place, entry)) => {
                        let visit = Visit {
                            agent: agent.clone(),
                            namespace: namespace.clone(),
                            node_port: door.published.node_port,
                            guest_port: door.published.guest_port,
                            from,
                            place,
                        };
                        connections.spawn(visit.run(peer, entry));
                    }
                    None => reset(&peer),
                },
                Err(error) => {
                    log::error("accept_failed", &[("agent", &agent.instance), ("error", &error)]);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {} // a finished task gives its memory back
        }
    }
}

/// A place for a peer that may come in; else the refusal is told.
fn admit(agent: &Arc<Agent>, published: &Published, peer: SocketAddr) -> Option<(Place, Entry)> {
    let port = published.node_port;
    let granted = match peer.ip() {
        IpAddr::V4(address) => published.from.iter().any(|range| range.holds(address)),
        IpAddr::V6(_) => false,
    };
    if !granted {
        agent.deny(
            &format!("{} to port {port}", peer.ip()),
            "source-not-granted",
            "add its range to `from` of the port in capabilities.network.publish",
        );
        return None;
    }
    let entry = agent.enter_published(port).map_err(|Refused { rule, because, remedy }| {
        agent.deny(&format!("{} to port {port}: {because}", peer.ip()), rule, &remedy);
    });
    let entry = entry.ok()?;
    let place = agent.published_place();
    if place.is_none() {
        agent.deny(
            &format!("too many connections to port {port}"),
            "limit",
            "open fewer at a time, and more slowly: there is no grant for more",
        );
    }
    Some((place?, entry))
}

/// One connection from outside.
struct Visit {
    agent: Arc<Agent>,
    namespace: Arc<OwnedFd>,
    node_port: u16,
    guest_port: u16,
    from: SocketAddr,
    place: Place,
}

impl Visit {
    /// Until it ends or is cut.
    async fn run(self, peer: TcpStream, mut entry: Entry) {
        tokio::select! {
            () = self.carry(peer) => {}
            _ = entry.cut() => {} // both sides are closed with it
        }
    }

    /// Receipt, dial, splice.
    async fn carry(&self, peer: TcpStream) {
        let event = Event::PortConnected {
            instance: self.agent.instance.clone(),
            node_port: self.node_port,
            from: self.from.to_string(),
        };
        if self.agent.receipt(event).await.is_err() {
            return reset(&peer); // told by who asked for it
        }
        let dialled = match self.place.buffers().far(&peer) {
            Ok(()) => self.dial().await,
            Err(error) => Err(error),
        };
        match dialled {
            // However it ends, both sides see it.
            Ok(guest) => {
                let flow = Flow::default(); // such a connection has a receipt, and no record of its end
                drop(splice::run(&self.agent, &flow, &guest, peer, None).await);
            }
            Err(error) => {
                let to = format!("port {} of the guest", self.guest_port);
                log::info(
                    "connection_failed",
                    &[("agent", &self.agent.instance), ("to", &to), ("why", &error)],
                );
                reset(&peer);
            }
        }
    }

    /// From inside the VM's namespace, as the rules there want it.
    async fn dial(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::from_std_stream(namespace::socket_in(self.namespace.clone()).await?);
        self.place.buffers().near(&socket)?;
        let dial = socket.connect(SocketAddr::from((GUEST, self.guest_port)));
        let patience = Duration::from_millis(limits::DIAL_MS_MAX);
        timeout(patience, dial).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}
