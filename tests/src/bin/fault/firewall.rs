//! An outsider that removes packet rules.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::{AddressFamily, SocketType, netlink};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END (linux/netfilter/nfnetlink.h); NFT_MSG_DELTABLE of NFNL_SUBSYS_NFTABLES.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const DELETE_TABLE: u16 = 10 << 8 | 2;
/// NLM_F_REQUEST, NLM_F_ACK.
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;

/// Removes all tables, as `nft flush ruleset` does, in the network namespace of a process, or in the node's.
pub fn flush(pid: &str) -> Result<String> {
    let namespace = match pid {
        "" => None,
        pid => Some(File::open(format!("/proc/{}/ns/net", pid.parse::<u32>()?)).context("namespace")?),
    };
    // A thread of its own: namespaces belong to threads.
    let flushed = std::thread::spawn(move || -> Result<()> {
        if let Some(namespace) = namespace {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("setns")?;
        }
        flush_here()
    });
    flushed.join().map_err(|_| anyhow!("the thread panicked"))?.map(|()| String::new())
}

fn flush_here() -> Result<()> {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER))?;
    let batch = [
        message(BATCH_BEGIN, REQUEST, 10),
        message(DELETE_TABLE, REQUEST | ACKNOWLEDGE, 0),
        message(BATCH_END, REQUEST, 10),
    ]
    .concat();
    rustix::net::send(&socket, &batch, rustix::net::SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())?;
    // struct nlmsgerr after the header: 0 is an acknowledgement.
    let error = answer[..length].get(16..20).context("a short answer")?;
    ensure!(error == [0; 4], "nftables: error {}", i32::from_ne_bytes(error.try_into()?));
    Ok(())
}

/// A header (netlink(7)) and a struct nfgenmsg: family unspecified, version 0, resource id.
fn message(kind: u16, flags: u16, resource: u16) -> Vec<u8> {
    let mut bytes = 20u32.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]); // sequence number, port
    bytes.extend([0, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes
}
