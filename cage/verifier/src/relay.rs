//! The agent's memory: a Unix socket in the guest, each connection relayed byte by byte to the host's memory port.
//!
//! Must hold: at most [`limits::MEMORY_CONNECTIONS_PER_AGENT_MAX`] connections; a further one waits in the backlog. Each
//! direction buffers one chunk, so a reader that stops makes its writer stop. Must never: look at what passes.

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::process::Pid;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use abi::guest::{GUEST_MEMORY_SOCKET, GUEST_UID, MEMORY_PORT};
use abi::limits;

use crate::console;
use crate::sys;

const CHUNK_BYTES: usize = 16 * 1024;

/// Listener and links.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
    links: Vec<Link>,
    /// The tools process, which speaks for the agent; what it runs does not.
    pub tools: Option<Pid>,
}

#[derive(Debug, Default)]
struct Flow {
    chunk: Vec<u8>,
    sent: usize,
    ended: bool,
    closed: bool,
}

#[derive(Debug)]
struct Link {
    agent: OwnedFd,
    host: OwnedFd,
    up: Flow,
    down: Flow,
}

impl Relay {
    /// Binds the agent's memory socket. Before any agent code runs.
    pub fn bind() -> io::Result<Relay> {
        let listener = UnixListener::bind(GUEST_MEMORY_SOCKET)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(GUEST_MEMORY_SOCKET, fs::Permissions::from_mode(0o666))?;
        Ok(Relay { listener, links: Vec::new(), tools: None })
    }

    /// The listener, to poll while there is room for one more.
    pub fn listening(&self) -> Option<BorrowedFd<'_>> {
        (self.links.len() < limits::MEMORY_CONNECTIONS_PER_AGENT_MAX).then(|| self.listener.as_fd())
    }

    /// Every end that waits for something, with its link and what to poll for. An end that waits for nothing is left out: a
    /// hang-up there would wake the loop for ever.
    pub fn interests(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, PollFlags)> {
        let ends = self.links.iter().enumerate().flat_map(|(index, link)| {
            [
                (index, link.agent.as_fd(), interest(&link.up, &link.down)),
                (index, link.host.as_fd(), interest(&link.down, &link.up)),
            ]
        });
        ends.filter(|(_, _, flags)| !flags.is_empty())
    }

    /// Takes one waiting connection and links it.
    pub fn accept(&mut self) {
        let link = self.listener.accept().and_then(|(agent, _)| {
            agent.set_nonblocking(true)?;
            let peer = rustix::net::sockopt::socket_peercred(&agent)?;
            if peer.uid.as_raw() != GUEST_UID && Some(peer.pid) != self.tools {
                return Err(io::Error::other("a run has no memory of its own: the agent uses tool.memory"));
            }
            let host = sys::vsock(true)?;
            match sys::vsock_connect(host.as_fd(), MEMORY_PORT) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Ok(Link { agent: agent.into(), host, up: Flow::default(), down: Flow::default() }),
            }
        });
        match link {
            Ok(link) => self.links.push(link),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => console::say_of_agent(format_args!("memory connection: {error}")),
        }
    }

    /// Moves what can be moved on one link after poll said so; ends it on an error.
    pub fn serve(&mut self, index: usize) {
        let Some(link) = self.links.get_mut(index) else { return };
        if let Err(error) = link.pump() {
            console::say_of_agent(format_args!("memory connection: {error}"));
            (link.up.closed, link.down.closed) = (true, true);
        }
    }

    /// Forgets links that ended in both directions. After all of a poll's events were served, since it moves indexes.
    pub fn sweep(&mut self) {
        self.links.retain(|link| !(link.up.closed && link.down.closed));
    }
}

impl Link {
    fn pump(&mut self) -> io::Result<()> {
        // A connection that was refused shows only here; reading from it would say "not connected", as before it was made.
        rustix::net::sockopt::socket_error(&self.host)??;
        pump(&self.agent, &self.host, &mut self.up)?;
        pump(&self.host, &self.agent, &mut self.down)
    }
}

/// An end is read when its flow's chunk is empty, written when the other flow's is not.
fn interest(reads: &Flow, writes: &Flow) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, reads.chunk.is_empty() && !reads.ended);
    flags.set(PollFlags::OUT, !writes.chunk.is_empty());
    flags
}

fn pump(from: &OwnedFd, to: &OwnedFd, flow: &mut Flow) -> io::Result<()> {
    if flow.chunk.is_empty() && !flow.ended {
        let mut chunk = vec![0; CHUNK_BYTES];
        match rustix::io::read(from, &mut chunk) {
            Ok(0) => flow.ended = true,
            Ok(count) => {
                chunk.truncate(count);
                (flow.chunk, flow.sent) = (chunk, 0);
            }
            // NOTCONN: the host's end is still connecting.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    while let Some(rest) = flow.chunk.get(flow.sent..).filter(|rest| !rest.is_empty()) {
        match rustix::net::send(to, rest, rustix::net::SendFlags::NOSIGNAL) {
            Ok(count) => flow.sent += count,
            Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    flow.chunk.clear();
    if flow.ended && !flow.closed {
        flow.closed = true;
        match rustix::net::shutdown(to, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    fn link() -> (UnixStream, UnixStream, Link) {
        let ((agent, near), (far, host)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        for socket in [&near, &far] {
            socket.set_nonblocking(true).unwrap();
        }
        let link = Link { agent: near.into(), host: far.into(), up: Flow::default(), down: Flow::default() };
        (agent, host, link)
    }

    #[test]
    fn bytes_and_ends_pass_in_both_directions() {
        let (mut agent, mut host, mut link) = link();
        agent.write_all(b"question").unwrap();
        agent.shutdown(std::net::Shutdown::Write).unwrap();
        link.pump().unwrap();
        link.pump().unwrap();
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), link.up.closed, link.down.closed), ("question", true, false));
        host.write_all(b"answer").unwrap();
        drop(host);
        link.pump().unwrap();
        link.pump().unwrap();
        text.clear();
        agent.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), link.down.closed), ("answer", true));
    }

    #[test]
    fn a_reader_that_stops_makes_its_writer_stop() {
        let (agent, _host, mut link) = link();
        agent.set_nonblocking(true).unwrap();
        let mut written = 0;
        // Ends only if the relay stops taking: an unbounded one would go on for ever.
        for _ in 0..10_000 {
            match (&agent).write(&[b'x'; 4096]) {
                Ok(count) => written += count,
                Err(_) => break,
            }
            link.pump().unwrap();
        }
        assert!(written < 4 * 1024 * 1024, "{written} bytes were taken for a reader that took none");
        assert!(link.up.chunk.len() <= CHUNK_BYTES);
        assert!(!interest(&link.up, &link.down).contains(PollFlags::IN));
    }

    #[test]
    fn an_end_that_waits_for_nothing_is_not_polled() {
        let (agent, _host, mut link) = link();
        drop(agent);
        link.pump().unwrap();
        let relay = Relay {
            listener: UnixListener::bind(std::env::temp_dir().join(format!("relay-{}", std::process::id())))
                .unwrap(),
            links: vec![link],
            tools: None,
        };
        assert_eq!(relay.interests().count(), 1, "the agent's end is gone, the host's may still speak");
        let _ = fs::remove_file(std::env::temp_dir().join(format!("relay-{}", std::process::id())));
    }
}
