//! One question to one server, over UDP.
//!
//! Must hold: bounded in time and in datagrams; a question has a socket, so a source port, and a random number of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::judge::SECOND_NS;
use super::packet::{self, MESSAGE_BYTES, Refusal, Sample, Times};

/// Port of a time server.
const PORT: u16 = 123;
/// How long an answer may take. A later one would say little.
const ANSWER: Duration = Duration::from_millis(1500);
/// Datagrams looked at for one question: more is somebody guessing.
const DATAGRAMS_MAX: usize = 32;

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no answer")]
    Silent,
    /// The question did not leave.
    #[error("{0}")]
    Unsent(io::Error),
    #[error("{0}")]
    Network(io::Error),
    #[error("{0}")]
    Refused(Refusal),
}

/// Asks a server once. At most [`ANSWER`].
pub fn ask(server: IpAddr, floor_s: u64) -> Result<Sample, AskError> {
    let (socket, cookie) = prepare(server).map_err(AskError::Unsent)?;
    let begin = Instant::now();
    socket.send(&packet::question(cookie)).map_err(AskError::Unsent)?;
    let mut buffer = [0u8; MESSAGE_BYTES * 4];
    for _ in 0..DATAGRAMS_MAX {
        let left = ANSWER.saturating_sub(begin.elapsed());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left)).map_err(AskError::Network)?;
        let read = match socket.recv(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(AskError::Network(error)),
        };
        let took_ns = i64::try_from(begin.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let times = Times { took_ns, came_unix_ns: unix_ns() };
        match packet::sample(buffer.get(..read).unwrap_or_default(), cookie, times, floor_s) {
            Err(Refusal::NotOurs) => {}
            answered => return answered.map_err(AskError::Refused),
        }
    }
    Err(AskError::Silent)
}

fn prepare(server: IpAddr) -> io::Result<(UdpSocket, u64)> {
    let any = match server {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // From here on the kernel passes on only what comes from this server.
    socket.connect((server, PORT))?;
    Ok((socket, u64::from_ne_bytes(super::random()?)))
}

/// Wall clock, in nanoseconds since 1970.
pub fn unix_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(SECOND_NS).saturating_add(now.tv_nsec)
}
