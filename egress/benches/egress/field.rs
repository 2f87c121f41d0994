//! The namespaces: a node with egress and agents, and beside it a plain router, both before the same test internet.
//!
//! An agent's TAP is replaced by a veth of the same name, since what moves frames between a TAP and a guest here would be what is
//! measured. The router has the same links; it forwards and masquerades with nftables, and nothing else.

use crate::traffic;
use crate::world::{Lease, World, sh};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// A host of the test internet, and what serves there.
const HOST: &str = "203.0.113.10";
pub const PORT: u16 = 9000;

/// Which way a client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Proxy,
    Nat,
}

/// A client's namespace, and the address that leads to the server from there.
#[derive(Debug, Clone)]
pub struct Path {
    pub kind: Kind,
    namespace: String,
    to: SocketAddr,
}

impl Path {
    /// Does something in the client's namespace.
    pub fn within<T: Send>(&self, call: impl FnOnce(SocketAddr) -> T + Send) -> T {
        within(&self.namespace, || call(self.to))
    }
}

/// Does something in a namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &str, call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let file = File::open(format!("/run/netns/{namespace}")).expect("a namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
            call()
        });
        there.join().expect("a client")
    })
}

/// All namespaces; gone when dropped.
pub struct Field {
    world: World,
    leases: Vec<Lease>,
    paths: Vec<Path>,
    name: String,
}

impl Field {
    /// A node without agents, the router, the server.
    pub fn new() -> Field {
        let world = World::new();
        world.set_dns(json!({"bench.test": [HOST]}));
        let name = world.node().trim_end_matches('n').to_owned();
        let (router, client, internet) = (format!("{name}r"), format!("{name}c"), world.internet());
        sh(&format!(
            "ip netns add {router}; ip netns add {client}
             ip link add up0 netns {router} type veth peer name in1 netns {internet}
             ip link add eth0 netns {client} type veth peer name down0 netns {router}
             ip -n {router} link set lo up; ip -n {client} link set lo up
             ip -n {router} link set up0 up; ip -n {internet} link set in1 up
             ip -n {router} link set down0 up; ip -n {client} link set eth0 up
             ip -n {router} addr add 192.0.3.2/24 dev up0; ip -n {internet} addr add 192.0.3.1/24 dev in1
             ip -n {router} addr add 100.64.0.1/30 dev down0; ip -n {client} addr add 100.64.0.2/30 dev eth0
             ip -n {router} route add default via 192.0.3.1; ip -n {client} route add default via 100.64.0.1
             ip netns exec {router} sysctl -q net.ipv4.ip_forward=1
             ip netns exec {router} nft 'table ip nat {{ chain out {{ type nat hook postrouting priority srcnat; \
               oifname up0 masquerade; }}; }}'"
        ));
        within(&internet, || traffic::serve(PORT));
        Field { world, leases: Vec::new(), paths: Vec::new(), name }
    }

    /// The router's namespace and the client's behind it.
    pub fn router(&self) -> (String, String) {
        (format!("{}r", self.name), format!("{}c", self.name))
    }

    /// One agent more.
    pub fn agent(&mut self) {
        let number = self.leases.len();
        let lease = self.world.attach(&format!("a{number}.1"), &["bench.test:9000"], None);
        let (client, inside) = (format!("{}a{number}", self.name), format!("{}v{number}", self.name));
        let tap = &lease.attached.tap;
        sh(&format!(
            "ip netns add {client}; touch /run/netns/{inside}; mount --bind {} /run/netns/{inside}
             ip -n {inside} link del {tap}
             ip link add eth0 netns {client} address {} type veth peer name {tap} netns {inside}
             ip -n {inside} link set {tap} up; ip -n {inside} addr add 100.64.0.1/30 dev {tap}
             ip -n {client} link set lo up; ip -n {client} link set eth0 up
             ip -n {client} addr add 100.64.0.2/30 dev eth0; ip -n {client} route add default via 100.64.0.1",
            lease.namespace_path(),
            lease.attached.mac
        ));
        let grants = self.world.grants();
        let of = grants.agents.iter().find(|of| of.instance.to_string() == format!("a{number}.1"));
        let synthetic = &of.expect("the agent").synthetic[&"bench.test".parse().expect("a name")];
        let to = SocketAddr::new(synthetic.parse().expect("an address"), PORT);
        self.paths.push(Path { kind: Kind::Proxy, namespace: client, to });
        self.leases.push(lease);
    }

    /// How many agents there are.
    pub fn agents(&self) -> usize {
        self.leases.len()
    }

    /// Each agent's way.
    pub fn proxies(&self) -> Vec<Path> {
        self.paths.clone()
    }

    /// The first agent's way.
    pub fn proxy(&self) -> Path {
        self.paths[0].clone()
    }

    /// The way through the router.
    pub fn nat(&self) -> Path {
        let to = SocketAddr::new(HOST.parse().expect("an address"), PORT);
        Path { kind: Kind::Nat, namespace: self.router().1, to }
    }

    /// What egress has in memory.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.world.egress_pid())).expect("egress");
        kib(&status, "VmRSS:")
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        let (router, client) = self.router();
        let mut gone = format!("ip netns del {router}; ip netns del {client}");
        for number in 0..self.leases.len() {
            gone += &format!("; ip netns del {0}a{number}; ip netns del {0}v{number}", self.name);
        }
        sh(&gone);
    }
}

/// The kernel's own memory, sockets among it.
pub fn slab_kib() -> u64 {
    kib(&fs::read_to_string("/proc/meminfo").expect("meminfo"), "Slab:")
}

fn kib(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("a field of proc(5)");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
