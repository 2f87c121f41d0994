//! Carries bytes both ways, with the guard on the way out, until both sides have ended or nothing moves any more.

use abi::limits;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout_at};

use crate::agent::{Agent, Cut};
use crate::proxy::Flow;
use crate::sniff::{Guard, Refusal, Speaks};

/// Bytes of one read.
const CHUNK: usize = 16 * 1024;

/// Why a connection ended before its time.
#[derive(Debug)]
pub enum End {
    /// Nobody has to be told.
    Closed,
    Refused(Refusal),
    Failed {
        why: String,
        speaks: Speaks,
    },
    /// What let it through holds no more.
    Cut(Cut),
}

impl End {
    /// The end in a word ([`abi::control::ConnectionRecord::end`]).
    pub fn word(&self) -> &'static str {
        match self {
            End::Closed => "closed",
            End::Refused(_) => "refused",
            End::Failed { .. } => "failed",
            End::Cut(Cut::Revoked) => "revoked",
            End::Cut(Cut::Budget) => "budget",
        }
    }

    /// The same, to be told in a protocol.
    pub fn spoken(self, speaks: Speaks) -> End {
        match self {
            End::Refused(refusal) => End::Refused(Refusal { speaks, ..refusal }),
            End::Failed { why, .. } => End::Failed { why, speaks },
            other => other,
        }
    }
}

/// When bytes last moved, in either direction.
struct Moved {
    start: Instant,
    millis: AtomicU64,
}

impl Moved {
    fn now(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// When the connection is idle for too long if nothing moves.
    fn deadline(&self) -> Instant {
        let idle = self.millis.load(Ordering::Relaxed).saturating_add(limits::PROXY_IDLE_MS_MAX);
        self.start + Duration::from_millis(idle)
    }

    /// Reads a chunk, empty at the end; gives up when neither direction moved for too long, or at `until`. Waits without a
    /// buffer, so that idle connections cost next to nothing.
    async fn read(&self, from: &mut ReadHalf<'_>, until: Option<Instant>) -> io::Result<Vec<u8>> {
        loop {
            let deadline = until.map_or(self.deadline(), |until| until.min(self.deadline()));
            match timeout_at(deadline, from.readable()).await {
                Ok(ready) => ready?,
                Err(_)
                    if until.is_some_and(|until| until <= Instant::now())
                        || self.deadline() <= Instant::now() =>
                {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(_) => continue, // the other direction moved meanwhile
            }
            let mut chunk = Vec::with_capacity(CHUNK);
            match from.try_read_buf(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    self.now();
                    return read.map(|_| chunk);
                }
            }
        }
    }

    /// Writes; a side that takes nothing for too long is given up.
    async fn write(&self, to: &mut WriteHalf<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let deadline = Instant::now() + Duration::from_millis(limits::PROXY_IDLE_MS_MAX);
            let written =
                timeout_at(deadline, to.write(rest)).await.map_err(|_| io::ErrorKind::TimedOut)??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.now();
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Runs until both sides have ended. `first` was read, and passed by the guard, before the server was there.
pub async fn run(
    agent: &Agent,
    flow: &Flow,
    client: &mut TcpStream,
    mut server: TcpStream,
    guard: Guard,
    first: Vec<u8>,
) -> Result<(), End> {
    // Latency matters more than packets saved; a socket that refuses the option still works.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let moved = Moved { start: Instant::now(), millis: AtomicU64::new(0) };
    let (mut client_read, mut client_write) = client.split();
    let (mut server_read, mut server_write) = server.split();
    let out = outward(&moved, agent, flow, &mut client_read, &mut server_write, guard, first);
    let inward =
        inward(&moved, [&agent.counters.bytes_in, &flow.bytes_in], &mut server_read, &mut client_write);
    tokio::try_join!(out, inward).map(|_| ())
}

/// Runs a connection to a published port until both sides have ended. Nothing in it is looked at: what a guest serves is its own.
pub async fn through(agent: &Agent, peer: &mut TcpStream, mut guest: TcpStream) -> Result<(), End> {
    // As above.
    let _ = (peer.set_nodelay(true), guest.set_nodelay(true));
    let moved = Moved { start: Instant::now(), millis: AtomicU64::new(0) };
    let (mut peer_read, mut peer_write) = peer.split();
    let (mut guest_read, mut guest_write) = guest.split();
    let flow = Flow::default(); // such a connection has a receipt, and no record of its end
    let out = inward(&moved, [&agent.counters.bytes_out, &flow.bytes_out], &mut guest_read, &mut peer_write);
    let inward = inward(&moved, [&agent.counters.bytes_in, &flow.bytes_in], &mut peer_read, &mut guest_write);
    tokio::try_join!(out, inward).map(|_| ())
}

async fn outward(
    moved: &Moved,
    agent: &Agent,
    flow: &Flow,
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    mut guard: Guard,
    first: Vec<u8>,
) -> Result<(), End> {
    let (mut out, mut whole_by) = (first, None);
    loop {
        moved.write(to, &out).await.map_err(|_| End::Closed)?;
        agent.counters.bytes_out.fetch_add(out.len() as u64, Ordering::Relaxed);
        flow.bytes_out.fetch_add(out.len() as u64, Ordering::Relaxed);
        out = Vec::new();
        let chunk = match moved.read(from, whole_by).await {
            Ok(chunk) if chunk.is_empty() => break,
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::TimedOut && guard.within() => {
                return Err(End::Refused(Refusal { speaks: Speaks::Neither, ..guard.late() }));
            }
            Err(_) => return Err(End::Closed),
        };
        // The server may have answered by now: a refusal in the middle can only cut the connection.
        guard
            .push(&chunk, &mut out)
            .map_err(|refusal| End::Refused(Refusal { speaks: Speaks::Neither, ..refusal }))?;
        let by = Instant::now() + Duration::from_millis(limits::PROXY_FIRST_BYTES_MS_MAX);
        whole_by = guard.within().then(|| whole_by.unwrap_or(by));
    }
    to.shutdown().await.map_err(|_| End::Closed)
}

async fn inward(
    moved: &Moved,
    counters: [&AtomicU64; 2],
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
) -> Result<(), End> {
    loop {
        let chunk = moved.read(from, None).await.map_err(|_| End::Closed)?;
        if chunk.is_empty() {
            return to.shutdown().await.map_err(|_| End::Closed);
        }
        moved.write(to, &chunk).await.map_err(|_| End::Closed)?;
        for counter in counters {
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }
}
