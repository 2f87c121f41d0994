//! The health check: one connection at a time from PID 1 to the agent's port, within the guest's loop.
//!
//! Must hold: it never blocks and never takes longer than [`limits::HEALTH_TIMEOUT_MS`]; of an answer only the first line is read.

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use abi::guest::{Health, HealthProbe};
use abi::limits;
use verifier::health::{STATUS_LINE_BYTES_MAX, judge, request};

const TIMEOUT: Duration = Duration::from_millis(limits::HEALTH_TIMEOUT_MS);

/// The check and where it stands.
#[derive(Debug)]
pub struct Probe {
    probe: HealthProbe,
    /// When the next check begins.
    next: Instant,
    check: Option<Check>,
}

#[derive(Debug)]
struct Check {
    socket: OwnedFd,
    until: Instant,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Probe {
    /// The first check comes after one interval.
    pub fn new(probe: HealthProbe) -> Probe {
        let next = Instant::now() + interval(&probe);
        Probe { probe, next, check: None }
    }

    /// After the guest stood still: what was under way says nothing, and the agent gets one interval to come to itself.
    pub fn restart(&mut self) {
        self.check = None;
        self.next = Instant::now() + interval(&self.probe);
    }

    /// When [`Probe::advance`] must be called even if nothing happened.
    pub fn deadline(&self) -> Instant {
        self.check.as_ref().map_or(self.next, |check| check.until)
    }

    /// What to poll for.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let check = self.check.as_ref()?;
        let flags = if check.request.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        Some((check.socket.as_fd(), flags))
    }

    /// Takes the check as far as it goes now, or begins the next one. Gives the outcome once.
    pub fn advance(&mut self) -> Option<Health> {
        let now = Instant::now();
        if self.check.is_none() && self.next <= now {
            self.next = now + interval(&self.probe);
            match Check::new(&self.probe, now + TIMEOUT) {
                Ok(check) => self.check = Some(check),
                Err(error) => return Some(unhealthy(error)),
            }
        }
        let check = self.check.as_mut()?;
        let outcome = match check.advance() {
            Ok(None) if check.until <= now => {
                Some(unhealthy(format_args!("no answer within {} s", TIMEOUT.as_secs())))
            }
            Ok(outcome) => outcome,
            Err(error) => Some(unhealthy(error)),
        };
        if outcome.is_some() {
            self.check = None;
        }
        outcome
    }
}

impl Check {
    fn new(probe: &HealthProbe, until: Instant) -> io::Result<Check> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, probe.port)) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Check { socket, until, request: request(probe).into_bytes(), answer: Vec::new() })
    }

    fn advance(&mut self) -> io::Result<Option<Health>> {
        rustix::net::sockopt::socket_error(&self.socket)??;
        while !self.request.is_empty() {
            match rustix::net::send(&self.socket, &self.request, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.request.drain(..count)),
                // NOTCONN: still connecting.
                Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            let mut chunk = [0; STATUS_LINE_BYTES_MAX];
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(count) => {
                    self.answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
                    if let Some(health) = judge(&self.answer, count == 0) {
                        return Ok(Some(health));
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn interval(probe: &HealthProbe) -> Duration {
    Duration::from_secs(probe.interval_secs.into())
}

fn unhealthy(why: impl std::fmt::Display) -> Health {
    Health { healthy: false, detail: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    /// One check of a listener that answers so.
    fn checked(port: u16) -> Health {
        let probe = HealthProbe { port, path: "/up".into(), interval_secs: 1 };
        let mut probe = Probe { probe, next: Instant::now(), check: None };
        loop {
            if let Some(health) = probe.advance() {
                assert!(
                    probe.interest().is_none() && probe.deadline() > Instant::now(),
                    "it is over until the next"
                );
                return health;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn answered(answer: &'static [u8]) -> Health {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 512];
            let count = stream.read(&mut asked).unwrap();
            for part in answer.chunks(7) {
                stream.write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
            String::from_utf8_lossy(&asked[..count]).into_owned()
        });
        let health = checked(port);
        assert!(agent.join().unwrap().starts_with("GET /up HTTP/1.1\r\n"));
        health
    }

    #[test]
    fn a_real_listener_is_judged_by_its_status_line() {
        assert_eq!(
            answered(b"HTTP/1.1 200 OK\r\n"),
            Health { healthy: true, detail: "HTTP/1.1 200 OK".into() }
        );
        assert!(!answered(b"HTTP/1.1 503 busy\r\n").healthy);
        assert!(answered(b"").detail.contains("without an answer"));
    }

    #[test]
    fn nobody_there_and_nobody_answering_are_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert!(checked(port).detail.contains("refused"));
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let probe =
            HealthProbe { port: silent.local_addr().unwrap().port(), path: "/".into(), interval_secs: 1 };
        let mut probe = Probe { probe, next: Instant::now(), check: None };
        assert_eq!(probe.advance(), None);
        probe.check.as_mut().unwrap().until = Instant::now();
        assert!(probe.advance().unwrap().detail.contains("no answer within"));
    }

    #[test]
    fn the_first_check_waits_an_interval_and_a_pause_begins_it_anew() {
        let mut probe = Probe::new(HealthProbe { port: 1, path: "/".into(), interval_secs: 60 });
        assert_eq!(probe.advance(), None);
        assert!(probe.interest().is_none());
        probe.next = Instant::now();
        probe.restart();
        assert_eq!(probe.advance(), None);
        assert!(probe.deadline() > Instant::now() + Duration::from_secs(59));
    }
}
