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
            // In this order: who then waits has nothing decrypted left behind `inbound`. It would stay there until the peer says
            // more, and a few of these rounds fill what rustls keeps, which is an error.
            self.send_inbound()?;
            self.take_plaintext()?;
            flush(self.tls, self.tcp)?;
            let outbound_done = !self.local_reads && !self.tls.wants_write();
            if outbound_done && (!self.local_writes || !self.tls_reads && self.inbound.is_empty()) {
                return Ok(self.totals);
            }
            self.wait_and_read()?;
        }
    }

    /// Passes decrypted bytes on through `inbound`, until `local` takes no more or there are none.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PrivateKey;
    use crate::tls;
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    const SOON: Duration = Duration::from_secs(20);

    fn key(name: &str) -> PrivateKey {
        let path = std::env::temp_dir().join(format!("relay-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path); // of an earlier process with this id
        let key = PrivateKey::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        key
    }

    /// What nullctl and a service hold of one session: two relays with TLS between them, each with little room for what its side
    /// has not read. Also how each relay ended.
    fn session(name: &str) -> (UnixStream, UnixStream, Receiver<Result<Totals, RelayError>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let taken = listener.accept().unwrap().0;
        let (ours, theirs) = (key(&format!("{name}-client")), key(&format!("{name}-server")));
        let (client, _) = tls::client(&ours, Some(theirs.public().fingerprint())).unwrap();
        let (server, _) = tls::server(&theirs, |_| true).unwrap();
        let (told, ended) = channel();
        let mut ends = Vec::new();
        for (tls, tcp) in [(Connection::Client(client), dialled), (Connection::Server(server), taken)] {
            let (outer, inner) = UnixStream::pair().unwrap();
            rustix::net::sockopt::set_socket_send_buffer_size(&inner, 16 * 1024).unwrap();
            outer.set_read_timeout(Some(SOON)).unwrap();
            let (told, mut tls) = (told.clone(), tls);
            thread::spawn(move || {
                let outcome = handshake(&mut tls, &tcp, SOON).and_then(|()| relay(tls, &tcp, &inner));
                told.send(outcome).unwrap_or(());
            });
            ends.push(outer);
        }
        let service = ends.pop().unwrap();
        (ends.pop().unwrap(), service, ended)
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at / 251 + at) as u8).collect()
    }

    #[test]
    fn the_last_bytes_reach_a_reader_who_came_late() {
        // Which of these lengths ends where there is no more room depends on the kernel.
        let late = (16..96).step_by(4).map(|kib| {
            thread::spawn(move || {
                let (mut operator, mut service, _ended) = session(&format!("late-{kib}"));
                let sent = pattern(kib << 10);
                let feeding = sent.clone();
                let feeder = thread::spawn(move || operator.write_all(&feeding).map(|()| operator));
                thread::sleep(Duration::from_millis(300)); // all that can be on its way is on it
                let mut came = vec![0; sent.len()];
                let read = service.read_exact(&mut came);
                feeder.join().unwrap().unwrap(); // it was open, and said no more
                (kib, read.is_ok() && came == sent)
            })
        });
        let late: Vec<_> = late.collect();
        let cut: Vec<_> =
            late.into_iter().map(|one| one.join().unwrap()).filter(|(_, whole)| !whole).collect();
        assert!(cut.is_empty(), "of these KiB the last never came: {cut:?}");
    }

    #[test]
    fn both_ways_at_once_arrive_whole_where_both_are_held_up() {
        let (mut operator, mut service, ended) = session("both");
        let sent = pattern(4 << 20);
        let echo = thread::spawn(move || {
            let mut piece = [0u8; 3000];
            loop {
                match service.read(&mut piece)? {
                    0 => return service.shutdown(Shutdown::Write),
                    n => service.write_all(&piece[..n])?,
                }
                thread::sleep(Duration::from_micros(100)); // the relay finds no room, and is woken by what goes back
            }
        });
        let (feeding, mut to) = (sent.clone(), operator.try_clone().unwrap());
        let feeder = thread::spawn(move || {
            to.write_all(&feeding)?;
            to.shutdown(Shutdown::Write)
        });
        let (mut came, mut piece) = (Vec::new(), [0u8; 5000]);
        loop {
            match operator.read(&mut piece).unwrap() {
                0 => break,
                n => came.extend_from_slice(&piece[..n]),
            }
        }
        for _ in 0..2 {
            let totals = ended.recv_timeout(SOON).unwrap().unwrap();
            assert_eq!((totals.from_tls, totals.to_tls), (sent.len() as u64, sent.len() as u64));
        }
        assert!(came == sent);
        feeder.join().unwrap().unwrap();
        echo.join().unwrap().unwrap();
    }
}
