//! Watches the packet rules of one network namespace: who changes them, by the kernel's own notification (NFNLGRP_NFTABLES,
//! linux/netfilter/nfnetlink.h).
//!
//! Must hold: after each transaction that is not ours, also when its notification was lost, the rules are put back in one
//! transaction, and who did it is told, with the tables that could not be removed. Must never: give up.

use abi::{limits, log};
use netlink_bindings::utils::chop_header;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::agent::{Agent, Node};
use crate::namespace::Rules;
use crate::publish::Firewall;

/// Bit of NFNLGRP_NFTABLES (7).
const GROUP: u32 = 1 << 6;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN: the last message of each transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// NFTA_GEN_PROC_PID and NFTA_GEN_PROC_NAME.
const PROCESS: u16 = 2;
const PROCESS_NAME: u16 = 3;
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;
/// Kernel memory for notifications: those of several whole rulesets. More at once: they are lost, and that is told.
const NOTIFICATIONS_BYTES: usize = 1024 * 1024;

/// Own transactions whose notification has not come: ports are opened and shut while the watch waits.
const AWAITED_MAX: usize = 64;

/// The watch over one namespace.
#[derive(Debug)]
pub struct Guard {
    socket: OwnedFd,
    /// Marks of our own transactions that the kernel has not notified yet.
    awaited: Mutex<VecDeque<u32>>,
}

impl Guard {
    /// Begins to watch the calling thread's namespace. To be made before the rules: what comes between is a change, too.
    pub fn here() -> io::Result<Guard> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, NOTIFICATIONS_BYTES)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        Ok(Guard { socket, awaited: Mutex::default() })
    }

    /// A number by which the kernel's notification tells one transaction of ours ([`crate::nft::replace`]). It is accepted once: who
    /// reads it there cannot use it.
    pub fn mark(&self) -> io::Result<u32> {
        let mut mark = [0; 4];
        getrandom(&mut mark, GetRandomFlags::empty())?;
        // Sequence numbers count up from it within a transaction.
        let mark = u32::from_ne_bytes(mark) >> 1;
        let mut awaited = self.awaited();
        if awaited.len() >= AWAITED_MAX {
            awaited.pop_front(); // of a transaction that failed, or whose notification was lost
        }
        awaited.push_back(mark);
        Ok(mark)
    }

    fn awaited(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that changed the rules since the last call, if it was another than ours. Does not wait.
    fn changed(&self) -> Option<String> {
        let (mut by, mut buffer) = (None, vec![0u8; 64 * 1024]);
        loop {
            match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return by,
                Ok((read, _)) => {
                    let messages = buffer.get(..read).unwrap_or_default();
                    by = strangers(messages, &mut self.awaited()).pop().or(by);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return by,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::NOBUFS) => by = Some("a process whose notification was lost".into()),
                Err(error) => return Some(format!("a process that could not be told: {error}")),
            }
        }
    }
}

impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Tables named in one log line.
const REMAINING_SHOWN_MAX: usize = 8;
/// Pause before rules that could not be put back are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Shortest pause between two restorations, so that a process that never stops does not keep egress busy.
const PAUSE: Duration = Duration::from_millis(limits::FIREWALL_RESTORE_PAUSE_MS);

/// Guards the node's own rules, for ever. Call in the node's namespace.
pub fn node(firewall: &Firewall, node: &Node) {
    let mut changed = None;
    loop {
        changed = changed.or(firewall.guard().changed());
        let Some(by) = &changed else {
            let mut fds = [PollFd::new(firewall.guard(), PollFlags::IN)];
            if poll(&mut fds, None).is_err() {
                std::thread::sleep(PAUSE); // a signal, or no memory
            }
            continue;
        };
        match firewall.restore() {
            Ok(remaining) => {
                node.restored(None, by);
                tell_remaining("node", &remaining);
                changed = None;
                std::thread::sleep(PAUSE);
            }
            Err(error) => {
                log::error(
                    "firewall_not_restored",
                    &[("of", &"node"), ("changed_by", by), ("error", &error)],
                );
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// Guards the rules of an agent's namespace, for ever.
pub async fn vm(agent: &Agent, rules: &Rules, namespace: &Arc<OwnedFd>) {
    let guard = &rules.guard;
    // The runtime has no type for a netlink socket; for waiting, any socket's will do.
    let watched = match guard.socket.try_clone().and_then(|socket| UnixDatagram::from_std(socket.into())) {
        Ok(watched) => watched,
        Err(error) => {
            log::error("firewall_not_watched", &[("agent", &agent.instance), ("error", &error)]);
            return std::future::pending().await;
        }
    };
    let mut changed = None;
    loop {
        changed = changed.or(guard.changed());
        let Some(by) = &changed else {
            if watched.readable().await.is_err() {
                return std::future::pending().await; // the runtime ends
            }
            let told = || guard.changed().ok_or(io::Error::from(io::ErrorKind::WouldBlock));
            changed = watched.try_io(Interest::READABLE, told).ok();
            continue;
        };
        match rules.restore(namespace.clone()).await {
            Ok(remaining) => {
                agent.node.restored(Some(&agent.instance), by);
                tell_remaining(&agent.instance, &remaining);
                changed = None;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                let of = &agent.instance;
                log::error("firewall_not_restored", &[("of", of), ("changed_by", by), ("error", &error)]);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Tables that their owners alone can delete (NFT_TABLE_F_OWNER) stand beside ours until their processes end.
fn tell_remaining(of: impl std::fmt::Display, tables: &[String]) {
    if !tables.is_empty() {
        let shown: Vec<String> = tables.iter().take(REMAINING_SHOWN_MAX).cloned().collect();
        log::error(
            "firewall_tables_remain",
            &[("of", &of), ("tables", &shown.join(", ")), ("count", &tables.len())],
        );
    }
}

/// The processes of the transactions in a datagram that do not carry one of our marks, each of which counts once.
fn strangers(mut messages: &[u8], marks: &mut VecDeque<u32>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(length) = word(messages, 0) {
        let length = length as usize;
        let (Some(message), true) = (messages.get(..length), length >= NETLINK_HEADER) else {
            break;
        };
        let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        // The kernel repeats the number of the batch's first message, or of the one after it, as it counts the batch's begin.
        let mark =
            word(message, 8).and_then(|seq| marks.iter().position(|mark| seq.wrapping_sub(*mark) <= 1));
        match (kind, mark) {
            (Some(NEW_GENERATION), Some(ours)) => drop(marks.remove(ours)),
            (Some(NEW_GENERATION), None) => {
                found.push(process(message.get(NETLINK_HEADER + NETFILTER_HEADER..).unwrap_or_default()));
            }
            _ => {}
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
}

fn process(attributes: &[u8]) -> String {
    let (mut pid, mut name, mut position) = (None, String::new(), 0);
    while let Some((header, value)) = chop_header(attributes, &mut position) {
        match header.r#type {
            PROCESS => pid = value.try_into().ok().map(u32::from_be_bytes),
            PROCESS_NAME => {
                let plain = value.iter().filter(|byte| byte.is_ascii_graphic()).take(16);
                name = plain.map(|byte| char::from(*byte)).collect();
            }
            _ => {}
        }
    }
    match pid {
        Some(pid) => format!("{name} (process {pid})"),
        None => "a process without a name".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_bindings::utils::push_header;

    fn generation(seq: u32, pid: u32, name: &[u8]) -> Vec<u8> {
        let mut body = vec![0; NETFILTER_HEADER];
        push_header(&mut body, PROCESS, 4);
        body.extend(pid.to_be_bytes());
        push_header(&mut body, PROCESS_NAME, name.len() as u16);
        body.extend(name);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut message = ((NETLINK_HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(NEW_GENERATION.to_ne_bytes());
        message.extend([0; 2]);
        message.extend(seq.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    #[test]
    fn transactions_of_others_are_told_and_ours_are_not() {
        let ours = [generation(7, 1, b"egress\0"), generation(21, 1, b"egress\0")].concat();
        let theirs = generation(9, 42, b"n\x1b[ft\0");
        let marks = || VecDeque::from([7, 20]);
        assert_eq!(strangers(&ours, &mut marks()), Vec::<String>::new());
        assert_eq!(strangers(&[ours, theirs].concat(), &mut marks()), ["n[ft (process 42)"]);
    }

    #[test]
    fn a_mark_that_was_seen_is_worth_nothing_to_another() {
        let (ours, theirs) = (generation(7, 1, b"egress\0"), generation(7, 42, b"nft\0"));
        let mut marks = VecDeque::from([7]);
        assert_eq!(strangers(&[ours, theirs.clone()].concat(), &mut marks), ["nft (process 42)"]);
        assert_eq!(strangers(&theirs, &mut marks), ["nft (process 42)"]);
    }

    #[test]
    fn cut_notifications_are_skipped() {
        let whole = generation(9, 42, b"nft\0");
        for end in 0..whole.len() {
            assert_eq!(strangers(&whole[..end], &mut VecDeque::from([7])), Vec::<String>::new());
        }
        assert_eq!(strangers(&[255; 64], &mut VecDeque::from([7])), Vec::<String>::new());
    }
}
