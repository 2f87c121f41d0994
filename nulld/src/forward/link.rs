//! The way to the log host: UDP (RFC 5426) or TCP with octet counting (RFC 6587 section 3.4.1).
//!
//! Neither tells whether a message arrived. What was sent in the last [`UNSURE_MS`], up to [`UNSURE_BYTES_MAX`], is kept, and sent
//! again when the way turns out to be broken: a line may arrive twice, with the same `seq`, rather than not at all.
//!
//! Must hold: every wait is bounded. Must never: make sense of what the host sends.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use abi::limits;
use abi::node::Transport;
use rustix::net::RecvFlags;

use super::LINES_PER_TURN;
use crate::{clock, names};

/// How long each read and write to egress may take.
const RESOLVE: Duration = Duration::from_secs(10);
/// How long connecting to one address, or one write, may take.
const STEP: Duration = Duration::from_secs(5);
/// Pause between two batches of datagrams: nothing else keeps a burst from overrunning the host's socket.
const UDP_PAUSE: Duration = Duration::from_millis(20);
/// Pause before a first new try; it doubles.
const PAUSE_MS_MIN: u64 = 500;
const PAUSE_MS_MAX: u64 = 30_000;
/// Longer than the kernel goes on trying ([`GIVE_UP_MS`]).
const UNSURE_MS: u64 = 60_000;
/// More than the kernel holds back ([`IN_FLIGHT_BYTES`], which it doubles for its own needs, socket(7)).
const UNSURE_BYTES_MAX: usize = 64 * 1024;
const IN_FLIGHT_BYTES: usize = 16 * 1024;
/// How long a host may leave sent bytes unconfirmed.
const GIVE_UP_MS: u32 = 30_000;

/// Who is sent to.
#[derive(Debug, Clone)]
pub struct Target {
    pub transport: Transport,
    pub host: String,
    pub port: u16,
}

/// A message that may not have arrived.
#[derive(Debug)]
struct Sent {
    at_ms: u64,
    seq: u64,
    message: String,
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Socket {
    fn connect(target: &Target) -> io::Result<Socket> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in names::resolve(&target.host, RESOLVE)?.into_iter().take(limits::DIAL_ADDRESSES_MAX) {
            match Socket::dial(target.transport, SocketAddr::new(address, target.port)) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn dial(transport: Transport, address: SocketAddr) -> io::Result<Socket> {
        match transport {
            Transport::Udp => {
                let any: IpAddr = match address {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(address)?;
                socket.set_write_timeout(Some(STEP))?;
                Ok(Socket::Udp(socket))
            }
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&address, STEP)?;
                stream.set_write_timeout(Some(STEP))?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                rustix::net::sockopt::set_socket_send_buffer_size(&stream, IN_FLIGHT_BYTES)?;
                rustix::net::sockopt::set_tcp_user_timeout(&stream, GIVE_UP_MS)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }

    fn send(&mut self, message: &str) -> io::Result<()> {
        match self {
            Socket::Udp(socket) => socket.send(message.as_bytes()).map(|_| ()),
            Socket::Tcp(stream) => stream.write_all(format!("{} {message}", message.len()).as_bytes()),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Udp(socket) => socket.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }

    /// Throws away what the host sent; an error, or its end, is an error here.
    fn check(&self) -> io::Result<()> {
        let mut junk = [0u8; 4096];
        for _ in 0..16 {
            match rustix::net::recv(self.fd(), &mut junk, RecvFlags::DONTWAIT) {
                Ok((0, _)) if matches!(self, Socket::Tcp(_)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the host closed the connection",
                    ));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The way, broken or not.
#[derive(Debug)]
pub struct Link {
    target: Target,
    socket: Option<Socket>,
    unsure: VecDeque<Sent>,
    unsure_bytes: usize,
    /// Messages of `unsure` that have to be sent again before anything new.
    again: usize,
    pause_ms: u64,
    retry_ms: u64,
}

/// What a step did.
#[derive(Debug)]
pub enum Step {
    /// It was and is usable.
    Up,
    /// It is usable again.
    Restored,
    /// It is not usable yet; come back then.
    Waits(u64),
    /// It broke now.
    Broke(io::Error),
}

impl Link {
    /// Not connected yet.
    pub fn new(target: Target) -> Link {
        Link {
            target,
            socket: None,
            unsure: VecDeque::new(),
            unsure_bytes: 0,
            again: 0,
            pause_ms: PAUSE_MS_MIN,
            retry_ms: 0,
        }
    }

    /// Connects when it is time, and sends again what may not have arrived.
    pub fn step(&mut self) -> Step {
        let now = clock::now_ms();
        if let Some(socket) = &self.socket {
            return match socket.check() {
                Ok(()) => {
                    self.forget(now);
                    Step::Up
                }
                Err(error) => self.broke(error),
            };
        }
        if now < self.retry_ms {
            return Step::Waits(self.retry_ms);
        }
        match Socket::connect(&self.target) {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => return self.broke(error),
        }
        while let (Some(socket), true) = (&mut self.socket, self.again > 0) {
            let at = self.unsure.len().saturating_sub(self.again);
            let Some(Sent { message, .. }) = self.unsure.get(at) else { break };
            // A datagram that nobody takes shows at the next one: look before each.
            if let Err(error) = socket.check().and_then(|()| socket.send(message)) {
                return self.broke(error);
            }
            self.again -= 1;
            if self.again.is_multiple_of(LINES_PER_TURN) {
                self.pace();
            }
        }
        Step::Restored
    }

    /// Sends a message; legal after a step that was [`Step::Up`] or [`Step::Restored`]. An error: it will be sent again.
    pub fn send(&mut self, seq: u64, message: String) -> io::Result<()> {
        let at_ms = clock::now_ms();
        let sent = match &mut self.socket {
            Some(socket) => socket.send(&message),
            None => Err(io::Error::from(io::ErrorKind::NotConnected)),
        };
        self.unsure_bytes += message.len();
        self.unsure.push_back(Sent { at_ms, seq, message });
        self.forget(at_ms);
        match sent {
            Ok(()) => {
                self.pause_ms = PAUSE_MS_MIN;
                Ok(())
            }
            Err(error) => match self.broke(error) {
                Step::Broke(error) => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn forget(&mut self, now: u64) {
        while let Some(oldest) = self.unsure.front() {
            let is_old = now.saturating_sub(oldest.at_ms) > UNSURE_MS;
            if !is_old && self.unsure_bytes <= UNSURE_BYTES_MAX {
                return;
            }
            self.unsure_bytes -= oldest.message.len();
            self.unsure.pop_front();
        }
    }

    /// The first line that may not have arrived.
    pub fn oldest_unsure(&self) -> Option<u64> {
        self.unsure.front().map(|sent| sent.seq)
    }

    fn broke(&mut self, error: io::Error) -> Step {
        self.socket = None;
        self.again = self.unsure.len();
        self.retry_ms = clock::now_ms() + self.pause_ms;
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
        Step::Broke(error)
    }

    /// After a batch of messages: UDP has no other brake.
    pub fn pace(&self) {
        if self.target.transport == Transport::Udp {
            std::thread::sleep(UDP_PAUSE);
        }
    }

    /// What to wait on beside new lines: the host's end, or its error.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(Socket::fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn target(transport: Transport, port: u16) -> Target {
        Target { transport, host: "127.0.0.1".into(), port }
    }

    fn up(link: &mut Link) {
        for _ in 0..500 {
            match link.step() {
                Step::Up | Step::Restored => return,
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("{link:?}");
    }

    #[test]
    fn octets_are_counted_and_what_a_closed_connection_took_is_sent_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut link = Link::new(target(Transport::Tcp, listener.local_addr().unwrap().port()));
        up(&mut link);
        let first = listener.accept().unwrap().0;
        link.send(1, "<1>one".into()).unwrap();
        drop(first);
        // The end of the connection is seen before something new is sent into it.
        let begin = std::time::Instant::now();
        while !matches!(link.step(), Step::Broke(_)) {
            assert!(begin.elapsed() < Duration::from_secs(5));
        }
        up(&mut link);
        link.send(2, "<1>zwölf".into()).unwrap();
        drop(link);
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "6 <1>one9 <1>zwölf");
    }

    #[test]
    fn a_datagram_that_nobody_took_is_sent_again() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = receiver.local_addr().unwrap();
        drop(receiver);
        let mut link = Link::new(target(Transport::Udp, address.port()));
        up(&mut link);
        link.send(1, "one".into()).unwrap();
        let begin = std::time::Instant::now();
        while !matches!(link.step(), Step::Broke(_)) {
            assert!(begin.elapsed() < Duration::from_secs(5), "loopback tells at once that nobody listens");
        }
        let receiver = UdpSocket::bind(address).unwrap();
        up(&mut link);
        link.send(2, "two".into()).unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0u8; 100];
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        while seen.len() < 2 {
            let count = receiver.recv(&mut buffer).unwrap();
            seen.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        assert_eq!(seen, ["one", "two"]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut link = Link::new(target(Transport::Tcp, 1));
        for _ in 0..1000 {
            assert!(link.send(1, "x".repeat(1000)).is_err());
        }
        assert!(link.unsure_bytes <= UNSURE_BYTES_MAX && link.pause_ms == PAUSE_MS_MAX);
    }
}
