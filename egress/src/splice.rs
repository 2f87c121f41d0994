//! Carries bytes both ways, with the guard on the way out, until both sides have ended or nothing moves any more.
//!
//! Must hold: a byte is read only when the other side has room for it, or a pipe (of which an agent has few), so who does not read
//! stops who sends, and a connection that waits for bytes holds no buffer and no pipe. What nobody looks at passes by splice(2) as soon as more than a buffer of it waits.

use abi::limits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::consume_budget;
use tokio::time::{Instant, timeout_at};

use crate::agent::Agent;
use crate::buffers::First;
use crate::moved::Moved;
use crate::open::Cut;
use crate::pipe::Taken;
use crate::proxy::Flow;
use crate::sniff::{Guard, Refusal, Speaks, too_much};

/// Bytes of one read. More than that at once goes through a pipe.
const CHUNK: usize = limits::PROXY_READ_BYTES_MAX;
/// Pipefuls that one direction moves before other connections have their turn.
const TURN: usize = 16;

thread_local! {
    /// What is copied passes here; nothing stays in it from one step to the next.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

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

/// Runs until both sides have ended. `looked_at`: the guard of what `client` sends, and what it passed before the server was there;
/// without one nothing is looked at.
pub async fn run(
    agent: &Arc<Agent>,
    flow: &Flow,
    client: &TcpStream,
    server: TcpStream,
    looked_at: Option<(Guard, First)>,
) -> Result<(), End> {
    let moved = Moved::begin();
    let (out, inward) = (
        Lane::new(agent, &moved, client, &server, [&agent.counters.bytes_out, &flow.bytes_out]),
        Lane::new(agent, &moved, &server, client, [&agent.counters.bytes_in, &flow.bytes_in]),
    );
    let outward = async {
        match looked_at {
            Some((guard, first)) => out.guarded(guard, first).await,
            None => out.open().await,
        }
    };
    tokio::select! {
        ended = async { tokio::try_join!(outward, inward.open()).map(|_| ()) } => ended,
        () = moved.idle() => Err(End::Closed),
    }
}

/// One direction of a connection.
struct Lane<'a> {
    agent: &'a Arc<Agent>,
    moved: &'a Moved,
    from: &'a TcpStream,
    to: &'a TcpStream,
    counters: [&'a AtomicU64; 2],
}

/// What one step found.
enum Step {
    /// Nothing waits.
    Nothing,
    /// The sender has ended.
    Ended,
    /// Bytes were taken; these were not sent yet, and perhaps there are more at once.
    Taken { left: Vec<u8>, more: bool },
}

impl<'a> Lane<'a> {
    fn new(
        agent: &'a Arc<Agent>,
        moved: &'a Moved,
        from: &'a TcpStream,
        to: &'a TcpStream,
        counters: [&'a AtomicU64; 2],
    ) -> Lane<'a> {
        // Latency matters more than packets saved; a socket that refuses the option still works.
        let _ = to.set_nodelay(true);
        Lane { agent, moved, from, to, counters }
    }

    /// The one place that every byte of a direction passes, after it was taken and before it is sent on.
    fn pass(&self, bytes: usize) -> Result<(), End> {
        self.agent.take_bytes(bytes as u64).map_err(End::Cut)?;
        self.moved.now();
        for counter in self.counters {
            counter.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Carries what is looked at until nothing needs to be any more; then the rest.
    async fn guarded(&self, mut guard: Guard, first: First) -> Result<(), End> {
        let First { bytes, mut held } = first;
        self.pass(bytes.len())?;
        self.send(&bytes).await?;
        drop(bytes);
        held.set(guard.held(), 0);
        // The server may have answered by now: a refusal in the middle can only cut the connection.
        let cut = |refusal| End::Refused(Refusal { speaks: Speaks::Neither, ..refusal });
        let mut whole_by = None;
        while !guard.is_open() {
            consume_budget().await; // neither waiting for a ready socket nor reading it ever yields by itself
            let Some(ready) = until(whole_by, self.from.readable()).await else {
                return Err(cut(guard.late()));
            };
            ready.map_err(closed)?;
            self.room().await?;
            let mut out = Vec::new();
            match read_into(self.from, &mut guard, &mut out).map_err(|end| end.spoken(Speaks::Neither))? {
                None => continue,
                Some(0) => return self.end(),
                Some(_) if !held.set(guard.held(), out.len()) => return Err(cut(too_much(Speaks::Neither))),
                Some(_) => {}
            }
            self.pass(out.len())?;
            self.send(&out).await?;
            held.set(guard.held(), 0);
            let by = Instant::now() + Duration::from_millis(limits::PROXY_FIRST_BYTES_MS_MAX);
            whole_by = guard.within().then(|| whole_by.unwrap_or(by));
        }
        drop(held);
        self.open().await
    }

    /// Carries what nobody looks at, until its end.
    async fn open(&self) -> Result<(), End> {
        loop {
            consume_budget().await; // as above
            self.from.readable().await.map_err(closed)?;
            self.room().await?;
            match self.copy()? {
                Step::Nothing => {}
                Step::Ended => return self.end(),
                Step::Taken { left, more } => {
                    self.send(&left).await?;
                    // An agent with so many waiting bytes that it has no pipe more goes on with copies.
                    let slot = if more { self.agent.pipe_slot() } else { None };
                    if let Some(pipe) = slot.and_then(|slot| self.agent.node.pipes.take(slot))
                        && let Step::Ended = self.splice(pipe).await?
                    {
                        return self.end();
                    }
                }
            }
        }
    }

    /// Copies what waits, a buffer at most.
    fn copy(&self) -> Result<Step, End> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Some(read) = read_now(self.from, scratch).map_err(closed)? else { return Ok(Step::Nothing) };
            if read == 0 {
                return Ok(Step::Ended);
            }
            self.pass(read)?;
            let bytes = scratch.get(..read).unwrap_or_default();
            let sent = match self.to.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                sent => sent.map_err(closed)?,
            };
            let left = bytes.get(sent..).unwrap_or_default().to_vec();
            Ok(Step::Taken { left, more: read == CHUNK })
        })
    }

    /// Moves what waits through a pipe, while there is more and for a turn at most. The pipe is the bound: it is filled again when
    /// the receiver has taken all of it.
    async fn splice(&self, mut pipe: Taken<'_>) -> Result<Step, End> {
        for _ in 0..TURN {
            consume_budget().await; // many short turns are a long one
            match now(self.from, Interest::READABLE, || pipe.fill(self.from)).map_err(closed)? {
                None => return Ok(Step::Nothing),
                Some(0) => return Ok(Step::Ended),
                Some(read) => self.pass(read)?,
            }
            while pipe.waiting() > 0 {
                if now(self.to, Interest::WRITABLE, || pipe.drain(self.to)).map_err(closed)?.is_none() {
                    self.to.writable().await.map_err(closed)?;
                }
            }
            self.moved.now();
        }
        drop(pipe);
        tokio::task::yield_now().await;
        Ok(Step::Nothing)
    }

    /// Waits until the receiver has room. Asked of the kernel each time: what the runtime knows is when there was room last.
    async fn room(&self) -> Result<(), End> {
        while now(self.to, Interest::WRITABLE, || has_room(self.to)).map_err(closed)?.is_none() {
            self.to.writable().await.map_err(closed)?;
        }
        Ok(())
    }

    /// Sends all of it.
    async fn send(&self, bytes: &[u8]) -> Result<(), End> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.to.try_write(rest) {
                Ok(0) => return Err(End::Closed),
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.to.writable().await.map_err(closed)?;
                }
                Err(error) => return Err(closed(error)),
            }
            self.moved.now();
        }
        Ok(())
    }

    /// Tells the receiver that there is no more; it may still answer.
    fn end(&self) -> Result<(), End> {
        rustix::net::shutdown(self.to, Shutdown::Write).map_err(|_| End::Closed)
    }
}

fn closed(_: io::Error) -> End {
    End::Closed
}

/// Waits until a time, if there is one; none: it is over.
async fn until<F: Future>(by: Option<Instant>, future: F) -> Option<F::Output> {
    match by {
        Some(by) => timeout_at(by, future).await.ok(),
        None => Some(future.await),
    }
}

/// Tries now; none: it would block, and the runtime was told to wait.
fn now<T>(
    socket: &TcpStream,
    interest: Interest,
    call: impl FnOnce() -> io::Result<T>,
) -> io::Result<Option<T>> {
    match socket.try_io(interest, call) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}

/// Reads what waits; none: nothing. A buffer that was not filled is all there is: the next wait costs no read in vain.
fn read_now(from: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut read = None;
    let whole = buffer.len();
    let done = now(from, Interest::READABLE, || {
        let bytes = loop {
            match rustix::io::read(from, &mut *buffer) {
                Err(rustix::io::Errno::INTR) => {}
                bytes => break bytes?,
            }
        };
        read = Some(bytes);
        if (1..whole).contains(&bytes) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    done.map(|_| read)
}

/// Reads what waits, a buffer at most, and has it looked at; what may pass is appended to `out`. None: nothing waits; 0: the end.
pub(crate) fn read_into(
    from: &TcpStream,
    guard: &mut Guard,
    out: &mut Vec<u8>,
) -> Result<Option<usize>, End> {
    SCRATCH.with_borrow_mut(|scratch| {
        let read = read_now(from, scratch).map_err(closed)?;
        let bytes = scratch.get(..read.unwrap_or(0)).unwrap_or_default();
        guard.push(bytes, out).map_err(End::Refused)?;
        Ok(read)
    })
}

fn has_room(to: &TcpStream) -> io::Result<()> {
    let mut polled = [PollFd::new(to, PollFlags::OUT)];
    match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
        // One that failed has room for the write that says so.
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
