//! A VM's network namespace: made or adopted, its TAP, its rules, and the sockets egress keeps in it.
//!
//! Must hold: the rules stand before the TAP is up; the sockets belong to the namespace, so which agent speaks is which
//! socket was reached. Nothing in the namespace has a route out of it.
//! Must never: leave the service's own threads in a VM's namespace (each visit has a thread of its own).

use abi::control::Attached;
use abi::guest::GuestNetwork;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::guard::Guard;
use crate::link::{self, Links, Mac};
use crate::nflog;
use crate::nft::{self, NftError};
use crate::sys;
use crate::wall::{self, Chain, DNS_PORT, GATEWAY, GUEST, LINK_PREFIX, PROXY_PORT, TAP};

/// Hardware addresses of the link; each VM is alone on its own, so all may use the same.
const NODE_MAC: Mac = [0x02, 0x6e, 0x62, 0x00, 0x00, 0x01];
const GUEST_MAC: Mac = [0x02, 0x6e, 0x62, 0x00, 0x00, 0x02];
const MTU: u16 = 1500;
/// Kernel buffer of each direction of a guest's connection: the link is local, so more would only be memory.
const SOCKET_BYTES: usize = 256 * 1024;

/// Why a VM has no network.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("{step}: {source}")]
    Step { step: &'static str, source: io::Error },
    #[error(transparent)]
    Rules(#[from] NftError),
    #[error("the thread that makes the namespace ended without a word")]
    Thread,
}

/// A namespace with the sockets that serve it.
#[derive(Debug)]
pub struct Opened {
    pub namespace: OwnedFd,
    pub dns_udp: UdpSocket,
    pub dns_tcp: TcpListener,
    pub proxy: TcpListener,
    pub refusals: OwnedFd,
    pub rules: Rules,
}

/// The packet rules of a namespace, as they must stand, and the watch over them.
#[derive(Debug)]
pub struct Rules {
    pub guard: Guard,
    chains: Arc<Vec<Chain>>,
}

impl Rules {
    /// Puts the rules up in the calling thread's namespace.
    fn up(chains: Vec<Chain>) -> Result<Rules, NamespaceError> {
        let guard = at("watch the packet rules", Guard::here())?;
        nft::replace(&chains, at("mark the packet rules", guard.mark())?)?;
        Ok(Rules { guard, chains: Arc::new(chains) })
    }

    /// Puts them back, in their namespace, on a thread of its own; returns the tables that stand beside them still.
    pub async fn restore(&self, namespace: Arc<OwnedFd>) -> io::Result<Vec<String>> {
        let (chains, mark) = (self.chains.clone(), self.guard.mark()?);
        let replace = move || nft::replace(&chains, mark).and_then(|()| nft::others());
        within(namespace, move || replace().map_err(io::Error::other)).await
    }
}

/// Does something in a namespace, on a thread of its own that ends with it.
async fn within<T: Send + 'static>(
    namespace: Arc<OwnedFd>,
    run: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let visit = move || {
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        run()
    };
    std::thread::Builder::new().name("visit".into()).stack_size(64 * 1024).spawn(move || {
        let _ = tell.send(visit()); // nobody waits for it any more
    })?;
    told.await.map_err(io::Error::other)?
}

fn at<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, NamespaceError> {
    result.map_err(|source| NamespaceError::Step { step, source: source.into() })
}

/// Makes a namespace, or with `adopt` takes an earlier one over, on a thread of its own. `ports`: the guest's published ones.
pub fn open(uid: u32, ports: Vec<u16>, adopt: Option<OwnedFd>) -> Result<Opened, NamespaceError> {
    let thread = std::thread::Builder::new().name("namespace".into()).spawn(move || {
        let rules = wall::of_vm(&ports, rustix::process::geteuid().as_raw());
        match adopt {
            None => make(uid, rules),
            Some(namespace) => take_over(namespace, rules),
        }
    });
    at("start a thread", thread)?.join().unwrap_or(Err(NamespaceError::Thread))
}

/// Bounds what the kernel holds of a connection; a listening socket passes it on to those it accepts.
pub fn bound_buffers(socket: impl AsFd) -> io::Result<()> {
    set_socket_send_buffer_size(&socket, SOCKET_BYTES)?;
    Ok(set_socket_recv_buffer_size(&socket, SOCKET_BYTES)?)
}

/// Makes a TCP socket in a namespace, on a thread of its own that ends with it.
pub async fn socket_in(namespace: Arc<OwnedFd>) -> io::Result<TcpStream> {
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        bound_buffers(&socket)?;
        Ok(TcpStream::from(socket))
    };
    within(namespace, make).await
}

fn make(uid: u32, rules: Vec<Chain>) -> Result<Opened, NamespaceError> {
    at("make a network namespace", sys::new_network_namespace())?;
    let namespace = at("open the namespace", File::open("/proc/thread-self/ns/net"))?;
    let rules = Rules::up(rules)?;
    for (path, value) in SETTINGS {
        at("set the namespace's rules for addresses", link::setting(path, value))?;
    }
    make_tap(uid)?;
    sockets(namespace.into(), rules)
}

fn take_over(namespace: OwnedFd, rules: Vec<Chain>) -> Result<Opened, NamespaceError> {
    let entered =
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    at("enter the namespace", entered)?;
    // The TAP kept its owner and its address: a namespace without it was never ours, and its rules are not touched.
    at("find the TAP in the namespace", Links::here().up(TAP))?;
    let rules = Rules::up(rules)?;
    sockets(namespace, rules)
}

/// No IPv6, no answers but for the TAP's own address, no source routing or redirects, no forwarding.
const SETTINGS: [(&str, &str); 11] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/default/arp_ignore", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
];

fn make_tap(uid: u32) -> Result<(), NamespaceError> {
    let tun = at("open /dev/net/tun", OpenOptions::new().read(true).write(true).open("/dev/net/tun"))?;
    at("make the TAP", sys::tun_set_interface(&tun, TAP))?;
    at("give the TAP to the jail's user", sys::tun_set_owner(&tun, uid))?;
    at("give the TAP to the jail's group", sys::tun_set_group(&tun, uid))?;
    at("keep the TAP", sys::tun_set_persistent(&tun))?;
    let mut links = Links::here();
    at("bring lo up", links.up("lo"))?;
    at("configure the TAP", links.configure(TAP, NODE_MAC, MTU))?;
    at("give the TAP its address", links.address(TAP, GATEWAY, LINK_PREFIX))?;
    at("bring the TAP up", links.up(TAP))?;
    at("fix the guest's hardware address", links.neighbour(TAP, GUEST, GUEST_MAC))
}

fn sockets(namespace: OwnedFd, rules: Rules) -> Result<Opened, NamespaceError> {
    let dns = SocketAddrV4::new(GATEWAY, DNS_PORT);
    let dns_udp = at("listen for DNS over UDP", UdpSocket::bind(dns))?;
    let dns_tcp = at("listen for DNS over TCP", TcpListener::bind(dns))?;
    let proxy = at("listen for the proxy", TcpListener::bind(SocketAddrV4::new(GATEWAY, PROXY_PORT)))?;
    let refusals = at("listen for refused packets", nflog::open(wall::LOG_GROUP))?;
    at("bound the proxy's buffers", bound_buffers(&proxy))?;
    for done in [dns_udp.set_nonblocking(true), dns_tcp.set_nonblocking(true), proxy.set_nonblocking(true)] {
        at("make the sockets non-blocking", done)?;
    }
    Ok(Opened { namespace, dns_udp, dns_tcp, proxy, refusals, rules })
}

/// What cage and the guest have to know.
pub fn attached() -> Attached {
    Attached {
        tap: TAP.into(),
        mac: link::mac_text(GUEST_MAC),
        guest: GuestNetwork {
            address: GUEST.to_string(),
            prefix: LINK_PREFIX,
            gateway: GATEWAY.to_string(),
            mtu: MTU,
        },
        env: BTreeMap::new(),
        authority: None,
    }
}
