//! One TLS connection over TCP on one side, one Unix stream on the other, and the bytes between them.
//!
//! Must hold: at most [`CHUNK_BYTES`] wait in each direction; a side that ends cleanly half-closes the other; a TLS peer that
//! vanishes without `close_notify` is an error, never an end of file. Must never: read plaintext before the handshake is over.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustls::Connection;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes that may wait in each direction: two TLS records.
pub const CHUNK_BYTES: usize = 32 * 1024;
/// How long a peer that is still sending may take to read what was said last.
const LINGER: Duration = Duration::from_secs(2);

/// Why a session ended badly.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("no complete handshake within {0} ms")]
    HandshakeTimeout(u128),
    #[error("the peer closed the connection during the handshake")]
    HandshakeCut,
    #[error("the peer vanished without closing the session")]
    Truncated,
}

impl From<Errno> for RelayError {
    fn from(errno: Errno) -> RelayError {
        RelayError::Io(errno.into())
    }
}

/// Runs the handshake to its end within `limit`. The socket is non-blocking afterwards.
pub fn handshake(tls: &mut Connection, tcp: &TcpStream, limit: Duration) -> Result<(), RelayError> {
    tcp.set_nonblocking(true)?;
    let deadline = Instant::now() + limit;
    while tls.is_handshaking() || tls.wants_write() {
        flush(tls, tcp)?;
        if !tls.is_handshaking() && !tls.wants_write() {
            break;
        }
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, tls.is_handshaking());
        interest.set(PollFlags::OUT, tls.wants_write());
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait(&mut [PollFd::new(tcp, interest)], Some(left))? {
            return Err(RelayError::HandshakeTimeout(limit.as_millis()));
        }
        if tls.is_handshaking() && receive(tls, tcp)? == Received::End {
            return Err(RelayError::HandshakeCut);
        }
    }
    Ok(())
}

/// Gives a peer that is still sending the time to read its alert or last answer: closing with unread bytes would reset the
/// connection under it.
pub fn linger(tls: &mut Connection, tcp: &TcpStream) {
    let deadline = Instant::now() + LINGER;
    let mut rest = [0u8; 4096];
    // Each failure means that the peer has gone, which is what is waited for.
    let _ = flush(tls, tcp);
    let _ = tcp.shutdown(Shutdown::Write);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !matches!(wait(&mut [PollFd::new(tcp, PollFlags::IN)], Some(left)), Ok(true)) {
            return;
        }
        match (&mut &*tcp).read(&mut rest) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// Bytes relayed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    pub from_tls: u64,
    pub to_tls: u64,
}

/// Relays until both directions have ended.
pub fn relay(mut tls: Connection, tcp: &TcpStream, local: &UnixStream) -> Result<Totals, RelayError> {
    tcp.set_nonblocking(true)?;
    local.set_nonblocking(true)?;
    let mut relay = Relay {
        tls: &mut tls,
        tcp,
        local,
        inbound: Vec::with_capacity(CHUNK_BYTES),
        tls_reads: true,
        local_reads: true,
        local_writes: true,
        totals: Totals::default(),
    };
    let ended = relay.run();
    let still_sending = relay.tls_reads;
    // What was cut short must not look complete to the other side; already closed is as good.
    let _ = local.shutdown(Shutdown::Both);
    if still_sending {
        linger(&mut tls, tcp);
    }
    ended
}

struct Relay<'a> {
    tls: &'a mut Connection,
    tcp: &'a TcpStream,
    local: &'a UnixStream,
    /// Plaintext from TLS that `local` has not taken.
    inbound: Vec<u8>,
    /// The TLS peer may still send.
    tls_reads: bool,
    /// `local` may still send.
    local_reads: bool,
    /// `local` still takes bytes.
    local_writes: bool,
    totals: Totals,
}

impl Relay<'_> {
    fn run(&mut self) -> Result<Totals, RelayError> {
        loop {
            self.take_plaintext()?;
            self.send_inbound()?;
            flush(self.tls, self.tcp)?;
            let outbound_done = !self.local_reads && !self.tls.wants_write();
            if outbound_done && (!self.local_writes || !self.tls_reads && self.inbound.is_empty()) {
                return Ok(self.totals);
            }
            self.wait_and_read()?;
        }
    }

    /// Moves decrypted bytes to `inbound`, when that is empty.
    fn take_plaintext(&mut self) -> Result<(), RelayError> {
        while self.tls_reads && self.inbound.is_empty() {
            let mut chunk = [0u8; 8192];
            match self.tls.reader().read(&mut chunk) {
                Ok(0) => self.tls_reads = false,
                Ok(n) => {
                    self.totals.from_tls += n as u64;
                    self.inbound.extend(chunk.iter().take(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(RelayError::Truncated);
                }
                Err(error) => return Err(error.into()),
            }
            self.send_inbound()?;
        }
        Ok(())
    }

    fn send_inbound(&mut self) -> Result<(), RelayError> {
        while self.local_writes && !self.inbound.is_empty() {
            match (&mut &*self.local).write(&self.inbound) {
                Ok(n) => {
                    self.inbound.drain(..n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.local_writes = false, // it has closed; what it wrote may still be read
            }
        }
        if !self.local_writes {
            self.inbound.clear();
        } else if !self.tls_reads && self.inbound.is_empty() {
            let _ = self.local.shutdown(Shutdown::Write); // a second time, or after its end, changes nothing
        }
        Ok(())
    }

    fn wait_and_read(&mut self) -> Result<(), RelayError> {
        let mut tcp_interest = PollFlags::empty();
        tcp_interest.set(PollFlags::IN, self.tls_reads && self.inbound.is_empty());
        tcp_interest.set(PollFlags::OUT, self.tls.wants_write());
        let mut local_interest = PollFlags::empty();
        local_interest.set(PollFlags::IN, self.local_reads && !self.tls.wants_write());
        local_interest.set(PollFlags::OUT, self.local_writes && !self.inbound.is_empty());
        // A side that nothing is wanted from is left out: poll would report its hang-up again and again. One exception: when
        // `local` has sent all, its hang-up is what ends the session.
        let watch_local = !local_interest.is_empty() || !self.local_reads && self.local_writes;
        let mut polled = Vec::with_capacity(2);
        if !tcp_interest.is_empty() {
            polled.push(PollFd::new(self.tcp, tcp_interest));
        }
        if watch_local {
            polled.push(PollFd::new(self.local, local_interest));
        }
        wait(&mut polled, None)?;
        let (mut tcp_ready, mut local_ready) = (PollFlags::empty(), PollFlags::empty());
        let mut events = polled.iter().map(PollFd::revents);
        if !tcp_interest.is_empty() {
            tcp_ready = events.next().unwrap_or(PollFlags::empty());
        }
        if watch_local {
            local_ready = events.next().unwrap_or(PollFlags::empty());
        }
        let gone = PollFlags::HUP | PollFlags::ERR;
        if tcp_interest.contains(PollFlags::IN) && tcp_ready.intersects(PollFlags::IN | gone) {
            // An end without close_notify shows when the plaintext is taken.
            receive(self.tls, self.tcp)?;
        } else if tcp_ready.contains(PollFlags::ERR) {
            return Err(RelayError::Truncated);
        }
        if local_interest.contains(PollFlags::IN) && local_ready.intersects(PollFlags::IN | gone) {
            self.read_local()?;
        } else if !self.local_reads && local_ready.intersects(gone) {
            self.local_writes = false;
        }
        Ok(())
    }

    fn read_local(&mut self) -> Result<(), RelayError> {
        let mut chunk = [0u8; 16 * 1024];
        match (&mut &*self.local).read(&mut chunk) {
            Ok(0) => self.end_of_local(),
            Ok(n) => {
                self.totals.to_tls += n as u64;
                self.tls.writer().write_all(chunk.get(..n).unwrap_or_default())?;
            }
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {
            }
            Err(_) => self.end_of_local(), // reset: it has said all it will say
        }
        Ok(())
    }

    fn end_of_local(&mut self) {
        self.local_reads = false;
        self.tls.send_close_notify();
    }
}

#[derive(PartialEq, Eq)]
enum Received {
    Bytes,
    End,
}

/// Reads what the socket has, and lets TLS digest it.
fn receive(tls: &mut Connection, tcp: &TcpStream) -> Result<Received, RelayError> {
    let received = match tls.read_tls(&mut &*tcp) {
        Ok(0) => Received::End,
        Ok(_) => Received::Bytes,
        Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {
            return Ok(Received::Bytes);
        }
        Err(error) => return Err(error.into()),
    };
    if let Err(error) = tls.process_new_packets() {
        let _ = flush(tls, tcp); // the alert; the peer may have gone
        return Err(error.into());
    }
    Ok(received)
}

/// Writes what TLS has to say until the socket is full.
fn flush(tls: &mut Connection, tcp: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut &*tcp) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// poll(2); false when the time is over.
fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    loop {
        match poll(fds, limit.as_ref()) {
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}

/// Bounds how long a peer that is gone without a word keeps its connection: docs/nullgate.md, limits.
pub fn expect_a_living_peer(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let fd = tcp.as_fd();
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(fd, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(fd, 4)?;
    sockopt::set_tcp_user_timeout(fd, 120_000)?;
    Ok(())
}
