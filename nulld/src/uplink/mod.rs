//! The uplink: a service of its own that gives the node its address. PID 1 parses nothing from a network.
//!
//! Runs as uid 204 with CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, in the node's network namespace. DHCP goes over a UDP socket
//! bound to the interface; no raw sockets.
//!
//! Must hold: `/run/nullbox/uplink.json` says what is in use, whole or not at all; every wait is bounded.
//! Must never: touch any interface but the uplink (and, from PID 1, loopback).

mod dhcp;
mod lease;
mod netlink;

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use abi::door::Inherited;
use abi::limits;
use abi::log;
use abi::node::{NODE_CONFIG_PATH, Network, NetworkMode, NodeConfig, parse_cidr};
use abi::notice::{Notice, Notifier};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::Serialize;

use crate::{clock, config};
use dhcp::Client;
use lease::{Dhcp, Do, Lease};
use netlink::Netlink;

/// Its own directory.
pub const DIR: &str = "/run/nullbox/uplink";
/// What is in use: [`InUse`] as JSON.
pub const FILE: &str = "/run/nullbox/uplink/uplink.json";
/// The name under which other services read it.
const LINK: &str = "/run/nullbox/uplink.json";
/// How long a carrier is waited for before the first message.
const CARRIER_WAIT_MS_MAX: u64 = 5_000;

/// What the uplink uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct InUse {
    interface: String,
    /// CIDR form.
    address: String,
    gateway: Option<Ipv4Addr>,
    dns: Vec<IpAddr>,
    /// Time servers of the lease; the file does not mention none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ntp: Vec<IpAddr>,
}

impl InUse {
    /// For the node's screen.
    fn in_words(&self) -> String {
        let gateway = self.gateway.map_or("no gateway".to_owned(), |gateway| format!("gateway {gateway}"));
        let dns: Vec<String> = self.dns.iter().map(ToString::to_string).collect();
        let dns = if dns.is_empty() { "none of its own".to_owned() } else { dns.join(" ") };
        format!("{} {}, {gateway}, DNS {dns}", self.interface, self.address)
    }
}

/// In PID 1, before the service: loopback, and a place that only the service may write.
pub fn prepare(uid: u32) -> io::Result<()> {
    let within = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    Netlink::open().and_then(|mut netlink| netlink.link_up(1)).map_err(|error| within("loopback", error))?;
    fs::create_dir_all(DIR).map_err(|error| within(DIR, error))?;
    fs::set_permissions(DIR, Permissions::from_mode(0o755)).map_err(|error| within(DIR, error))?;
    std::os::unix::fs::chown(DIR, Some(uid), Some(uid)).map_err(|error| within(DIR, error))?;
    match std::os::unix::fs::symlink("uplink/uplink.json", LINK) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(within(LINK, error)),
        _ => Ok(()),
    }
}

/// Whether the uplink has an address now.
pub fn has_address() -> bool {
    Path::new(FILE).exists()
}

/// Entry of the service.
pub fn main() -> i32 {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            log::error("uplink_failed", &[("error", &error)]);
            1
        }
    }
}

fn run() -> io::Result<std::convert::Infallible> {
    let inherited = Inherited::take()?;
    let node: NodeConfig = serde_json::from_slice(&fs::read(NODE_CONFIG_PATH)?)?;
    let status = inherited.notify.clone();
    status.status("no address yet");
    let mut ready =
        Ready { notify: Some(inherited.notify), until_ms: clock::now_ms() + limits::UPLINK_WAIT_MS_MAX };
    let interface = wait_for_interface(&node.network, &mut ready);
    let mut uplink = Uplink { index: index_of(&interface)?, netlink: Netlink::open()?, interface, status };
    uplink.netlink.link_up(uplink.index)?;
    let carrier = uplink.wait_for_carrier();
    log::info("interface_up", &[("interface", &uplink.interface), ("carrier", &carrier)]);
    if !carrier {
        uplink.status.status(&format!("{} has no carrier", uplink.interface));
    }
    match node.network.mode {
        NetworkMode::Static => uplink.keep_static(&node.network, &mut ready),
        NetworkMode::Dhcp | NetworkMode::None => uplink.keep_lease(&node, &mut ready),
    }
}

/// The readiness line, written once: with the first address, or when boot has waited long enough.
#[derive(Debug)]
struct Ready {
    notify: Option<Notifier>,
    until_ms: u64,
}

impl Ready {
    fn announce(&mut self) {
        if let Some(notify) = self.notify.take() {
            // nulld has gone if this fails, and with it everything.
            let _ = notify.send(&Notice::Ready);
        }
    }

    fn announce_if_late(&mut self) {
        if self.notify.is_some() && clock::now_ms() >= self.until_ms {
            log::warning("no_address_yet", &[]);
            self.announce();
        }
    }
}

/// The configured interface, or the first Ethernet device, those with a carrier first. Waits until there is one.
fn wait_for_interface(network: &Network, ready: &mut Ready) -> String {
    let mut is_told = false;
    loop {
        let found = interfaces();
        let chosen = match network.interface.as_str() {
            "" => found.first().cloned(),
            wanted => Path::new("/sys/class/net").join(wanted).exists().then(|| wanted.to_owned()),
        };
        if let Some(name) = chosen {
            return name;
        }
        if !is_told {
            is_told = true;
            log::warning("no_interface", &[("wanted", &network.interface)]);
        }
        ready.announce_if_late();
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Ethernet devices (ARPHRD_ETHER with hardware behind them), with a carrier first, else by name.
fn interfaces() -> Vec<String> {
    let mut names: Vec<(bool, String)> = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            read_attribute(name, "type") == "1"
                && Path::new(&format!("/sys/class/net/{name}/device")).exists()
        })
        .map(|name| (read_attribute(&name, "carrier") != "1", name))
        .collect();
    names.sort();
    names.into_iter().map(|(_, name)| name).collect()
}

/// A file of the interface in sysfs; empty when it cannot be read.
fn read_attribute(interface: &str, file: &str) -> String {
    fs::read_to_string(format!("/sys/class/net/{interface}/{file}")).unwrap_or_default().trim().to_owned()
}

fn index_of(interface: &str) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

fn mac_of(interface: &str) -> io::Result<dhcp::Mac> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/address"))?;
    let bytes: Option<Vec<u8>> =
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| io::Error::other(format!("{interface} has no Ethernet address")))
}

#[derive(Debug)]
struct Uplink {
    interface: String,
    index: u32,
    netlink: Netlink,
    status: Notifier,
}

impl Uplink {
    /// Copper takes a moment to agree on a speed; what is sent before is lost, and the next try is later than this.
    fn wait_for_carrier(&self) -> bool {
        let until = clock::now_ms() + CARRIER_WAIT_MS_MAX;
        loop {
            if read_attribute(&self.interface, "carrier") == "1" {
                return true;
            }
            if clock::now_ms() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn keep_static(&mut self, network: &Network, ready: &mut Ready) -> io::Result<std::convert::Infallible> {
        let (address, prefix) = parse_cidr(&network.address).ok_or_else(|| {
            io::Error::other(format!("network.address `{}` is not in CIDR form", network.address))
        })?;
        self.use_address(address, prefix, network.gateway, &[], &[])?;
        ready.announce();
        loop {
            std::thread::park();
        }
    }

    fn keep_lease(&mut self, node: &NodeConfig, ready: &mut Ready) -> io::Result<std::convert::Infallible> {
        let client = Client { mac: mac_of(&self.interface)?, host_name: node.node.name.clone() };
        let socket = socket_on(&self.interface)?;
        let xid = random()?;
        let begin_ms = clock::now_ms();
        let mut dhcp = Dhcp::new(begin_ms);
        let mut buffer = [0u8; 2048];
        loop {
            let now = clock::now_ms();
            let mut all = Vec::new();
            if now >= dhcp.deadline_ms {
                all = dhcp.on_time(now);
            } else {
                let mut wait = dhcp.deadline_ms - now;
                if ready.notify.is_some() {
                    wait = wait.min(ready.until_ms.saturating_sub(now)).max(1);
                }
                socket.set_read_timeout(Some(Duration::from_millis(wait)))?;
                if let Ok((count, _)) = socket.recv_from(&mut buffer) {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if let Some(reply) = dhcp::decode(bytes, &client.mac, xid) {
                        all = dhcp.on_reply(clock::now_ms(), &reply);
                    }
                }
            }
            for one in all {
                let elapsed_s = u16::try_from(now.saturating_sub(begin_ms) / 1000).unwrap_or(u16::MAX);
                match one {
                    Do::Send { say, to } => {
                        let message = dhcp::encode(&client, xid, elapsed_s, say);
                        let to = SocketAddrV4::new(to.unwrap_or(Ipv4Addr::BROADCAST), 67);
                        // Without a carrier sending fails; the next try comes by itself.
                        if let Err(error) = socket.send_to(&message, to) {
                            log::warning("dhcp_send_failed", &[("error", &error)]);
                        }
                    }
                    Do::Apply(lease) => {
                        self.apply(&lease)?;
                        ready.announce();
                    }
                    Do::Drop(lease) => self.drop_address(&lease)?,
                }
            }
            ready.announce_if_late();
        }
    }

    fn apply(&mut self, lease: &Lease) -> io::Result<()> {
        let seconds = lease.expire_ms.saturating_sub(clock::now_ms()) / 1000;
        log::info(
            "lease",
            &[
                ("address", &lease.address),
                ("prefix", &lease.prefix),
                ("server", &lease.server),
                ("seconds", &seconds),
            ],
        );
        self.use_address(lease.address, lease.prefix, lease.gateway, &lease.dns, &lease.ntp)
    }

    /// Sets the address and the route, removes other addresses of an earlier life, and writes the file.
    fn use_address(
        &mut self,
        address: Ipv4Addr,
        prefix: u8,
        gateway: Option<Ipv4Addr>,
        dns: &[Ipv4Addr],
        ntp: &[Ipv4Addr],
    ) -> io::Result<()> {
        self.netlink.add_address(self.index, address, prefix)?;
        for (other, other_prefix) in addresses_of(&self.interface) {
            if (other, other_prefix) != (address, prefix) {
                self.netlink.remove_address(self.index, other, other_prefix)?;
            }
        }
        if let Some(gateway) = gateway {
            self.netlink.set_default_route(self.index, gateway)?;
        }
        let all = |list: &[Ipv4Addr]| list.iter().copied().map(IpAddr::V4).collect();
        let in_use = InUse {
            interface: self.interface.clone(),
            address: format!("{address}/{prefix}"),
            gateway,
            dns: all(dns),
            ntp: all(ntp),
        };
        config::write_whole(FILE, &serde_json::to_vec(&in_use)?)?;
        self.status.status(&in_use.in_words());
        Ok(())
    }

    fn drop_address(&mut self, lease: &Lease) -> io::Result<()> {
        log::warning("lease_lost", &[("address", &lease.address)]);
        self.status.status(&format!("{} lost its address: the lease ended", self.interface));
        // The file first: nobody should begin to use what is about to go.
        match fs::remove_file(FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.netlink.remove_address(self.index, lease.address, lease.prefix)
    }
}

/// UDP port 68, on one interface only.
fn socket_on(interface: &str) -> io::Result<UdpSocket> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::sockopt::set_socket_broadcast(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68))?;
    Ok(UdpSocket::from(socket))
}

fn random() -> io::Result<u32> {
    let mut bytes = [0u8; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

fn addresses_of(interface: &str) -> Vec<(Ipv4Addr, u8)> {
    let ip = |address: &Option<nix::sys::socket::SockaddrStorage>| {
        address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip())
    };
    nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let mask = ip(&entry.netmask)?.to_bits().count_ones();
            Some((ip(&entry.address)?, u8::try_from(mask).ok()?))
        })
        .collect()
}
