//! What an agent's connections may hold: of the kernel's memory, and of first bytes that are not judged yet.
//!
//! Must hold: both sockets of a connection have bounds before a byte of the other side's choosing can fill them; the bounds of all
//! connections of an agent together stay below [`limits::PROXY_SOCKET_BYTES_SHARED`] and a fixed part for each. The kernel charges all of
//! it to egress, which would else be killed for what its agents do not read.

use abi::limits;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::agent::Slot;

/// What is left of an agent's shared part, in bytes.
#[derive(Debug)]
pub struct Shared(AtomicUsize);

impl Default for Shared {
    fn default() -> Shared {
        Shared(AtomicUsize::new(limits::PROXY_SOCKET_BYTES_SHARED))
    }
}

impl Shared {
    /// A quarter of what is left, so that a few connections are fast and one more always finds something.
    pub fn take(self: &Arc<Shared>) -> Share {
        let quarter = |left: usize| left / 4;
        let left =
            self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| Some(left - quarter(left)));
        Share { of: self.clone(), bytes: left.map_or(0, quarter) }
    }
}

/// A connection's part; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shared>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

/// A counted connection, with what the kernel may hold of it.
#[derive(Debug)]
pub struct Place {
    _slot: Slot,
    share: Share,
}

impl Place {
    /// With a part of what is shared.
    pub fn new(slot: Slot, shared: &Arc<Shared>) -> Place {
        Place { _slot: slot, share: shared.take() }
    }

    /// Bounds of its sockets.
    pub fn buffers(&self) -> Buffers {
        Buffers { floor: limits::PROXY_SOCKET_BYTES_MIN / 4, share: self.share.bytes }
    }
}

/// First bytes of an agent's connections that are not judged yet.
#[derive(Debug, Default)]
pub struct Undecided(AtomicUsize);

/// What a client sent, and may pass, before the server is there.
#[derive(Debug)]
pub struct First {
    pub bytes: Vec<u8>,
    pub held: Held,
}

/// A connection's part of them; given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    of: Arc<Undecided>,
    bytes: usize,
}

impl Undecided {
    /// Nothing yet.
    pub fn held(self: &Arc<Undecided>) -> Held {
        Held { of: self.clone(), bytes: 0 }
    }
}

impl Held {
    /// What a guard holds now and let out to be sent; whether the agent may hold it.
    pub fn set(&mut self, guarded: usize, out: usize) -> bool {
        // A read's bytes are counted for each connection anyway.
        let bytes = guarded + out.saturating_sub(limits::PROXY_READ_BYTES_MAX);
        let before = self.of.0.fetch_add(bytes, Ordering::AcqRel);
        self.of.0.fetch_sub(self.bytes, Ordering::AcqRel);
        let others = before.saturating_sub(self.bytes);
        self.bytes = bytes;
        bytes == 0 || others.saturating_add(bytes) <= limits::PROXY_UNDECIDED_BYTES_MAX
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Bounds of one connection's sockets, in bytes of the kernel's memory.
#[derive(Debug, Clone, Copy)]
pub struct Buffers {
    floor: usize,
    share: usize,
}

impl Buffers {
    /// The guest's side: its link is local, so little of it is enough.
    pub fn near(&self, socket: impl AsFd) -> io::Result<()> {
        self.set(socket, self.share / 8, self.share / 8)
    }

    /// The other side, before it is connected: the window that is offered then is never more.
    pub fn far(&self, socket: impl AsFd) -> io::Result<()> {
        self.set(socket, self.share / 4, self.share / 2)
    }

    /// The kernel doubles what it is told (socket(7)).
    fn set(&self, socket: impl AsFd, send: usize, receive: usize) -> io::Result<()> {
        set_socket_send_buffer_size(&socket, (self.floor + send) / 2)?;
        Ok(set_socket_recv_buffer_size(&socket, (self.floor + receive) / 2)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_takes_no_more_than_the_shared_part_and_gives_it_back() {
        let shared = Arc::new(Shared::default());
        let crowd: Vec<Share> = (0..1000).map(|_| shared.take()).collect();
        assert!(crowd.iter().map(|share| share.bytes).sum::<usize>() <= limits::PROXY_SOCKET_BYTES_SHARED);
        assert_eq!(crowd[0].bytes, limits::PROXY_SOCKET_BYTES_SHARED / 4);
        drop(crowd);
        assert_eq!(shared.take().bytes, limits::PROXY_SOCKET_BYTES_SHARED / 4);
    }

    #[test]
    fn first_bytes_of_many_connections_are_bounded_together() {
        let undecided = Arc::new(Undecided::default());
        let (mut one, mut other) = (undecided.held(), undecided.held());
        assert!(one.set(limits::PROXY_UNDECIDED_BYTES_MAX, 9));
        assert!(!other.set(1, 0));
        assert!(other.set(0, 0) && one.set(10, 0) && other.set(1, 0));
        drop(one);
        assert!(other.set(limits::PROXY_UNDECIDED_BYTES_MAX, 0));
    }

    #[test]
    fn the_image_gives_egress_the_memory_that_its_limits_need() {
        let config = include_str!("../../image/config/nulld.toml");
        let egress = config.split("[services.egress]").nth(1).unwrap();
        let own = egress.split("\n[").next().unwrap();
        assert!(own.contains(&format!("\nmemory_mib_max = {}\n", limits::EGRESS_MEMORY_MIB)), "{own}");
    }
}
