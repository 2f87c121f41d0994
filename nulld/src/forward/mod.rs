//! The log forwarder: a service of its own that sends every log line of the node to one configured host, as syslog.
//!
//! nulld hands it, over its door, a stream of all lines from the oldest one kept, and again when the stream broke. It reads a line
//! only when the way to the host is open: until then lines wait in nulld's rings, and those that the rings drop meanwhile are
//! told to the host as a count. What agents write is not among them: that is cage's.
//!
//! Must hold: a host that is slow, dead or hostile costs log lines and nothing else; its own log is at most a line in
//! [`TELL_MS`], as each is itself forwarded. A line may be sent twice, never left out untold.
//! Must never: take a word from the host.

mod feed;
mod link;
mod message;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use abi::control::LogLine;
use abi::door::{self, Inherited};
use abi::identity::{FORWARD_UID, Service};
use abi::limits;
use abi::log;
use abi::node::{CallSet, NODE_CONFIG_PATH, NodeConfig, Port, ServiceConfig, Transport, parse_forward};
use abi::notice::Notice;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::{clock, config};
use feed::{Feed, Next};
use link::{Link, Step, Target};
use message::Origin;

/// Its own directory; it lasts as long as the boot whose lines it counts.
const DIR: &str = "/run/nullbox/forward";
/// How far it got: [`Position`] as JSON.
const FILE: &str = "/run/nullbox/forward/position.json";
/// How often that is written, at most.
const SAVE_MS: u64 = 2_000;
/// How often it writes a line about the way to the host, at most.
const TELL_MS: u64 = 10_000;
/// Lines sent before the door and the signs of life have their turn.
const LINES_PER_TURN: usize = 64;

/// The first line that may not have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    next_seq: u64,
}

/// The service, where the configuration asks for it, with no more than it needs: its host, and egress for the host's name.
pub fn service(config: &NodeConfig, program: ServiceConfig) -> Option<ServiceConfig> {
    let (transport, _, port) = parse_forward(&config.logs.forward)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut args = program.args.clone();
    args.push(boot.trim().to_owned());
    Some(ServiceConfig {
        uid: FORWARD_UID,
        args,
        system_calls: vec![CallSet::Files, CallSet::Network],
        read: vec![NODE_CONFIG_PATH.to_owned(), Service::Egress.socket_path()],
        write: vec![DIR.to_owned()],
        network: true,
        tcp_connect: if transport == Transport::Tcp { vec![Port::Number(port)] } else { Vec::new() },
        memory_mib_max: 16,
        watchdog_secs_max: 60,
        // The rescue has no egress, and its lines are read at the door.
        rescue: false,
        ..program
    })
}

/// Entry of the service. Its argument is the id of this boot.
pub fn main() -> i32 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            log::error("forward_failed", &[("error", &error)]);
            1
        }
    }
}

fn run() -> io::Result<()> {
    let inherited = Inherited::take()?;
    let node: NodeConfig = serde_json::from_slice(&fs::read(NODE_CONFIG_PATH)?)?;
    let name = node.logs.forward;
    let (transport, host, port) =
        parse_forward(&name).ok_or_else(|| io::Error::other("logs.forward names no host"))?;
    let origin = Origin { node: node.node.name, boot: std::env::args().nth(2).unwrap_or_default() };
    let saved = fs::read(FILE).ok().and_then(|bytes| serde_json::from_slice::<Position>(&bytes).ok());
    let mut forwarder = Forwarder {
        name,
        origin,
        link: Link::new(Target { transport, host, port }),
        feed: None,
        next_seq: saved.map(|position| position.next_seq),
        saved,
        save_ms: 0,
        told: None,
        tell_ms: 0,
        trouble: String::new(),
    };
    inherited.notify.send(&Notice::Ready)?;
    let mut alive_ms = 0;
    loop {
        let now = clock::now_ms();
        if now >= alive_ms {
            alive_ms = now + limits::SERVICE_ALIVE_MS;
            // nulld is slow: the next one is as good.
            let _ = inherited.notify.send(&Notice::Alive);
        }
        let wait_ms = forwarder.turn();
        forwarder.save(clock::now_ms());
        if let Some(says) = forwarder.tell(clock::now_ms()) {
            inherited.notify.status(&says);
        }
        if !forwarder.wait(&inherited, wait_ms)? {
            return Ok(());
        }
    }
}

#[derive(Debug)]
struct Forwarder {
    /// The host as the configuration names it.
    name: String,
    origin: Origin,
    link: Link,
    feed: Option<Feed>,
    /// The line expected next; none: whichever comes.
    next_seq: Option<u64>,
    saved: Option<Position>,
    save_ms: u64,
    /// Whether the way was open when its log last said so.
    told: Option<bool>,
    tell_ms: u64,
    /// Why it is not open.
    trouble: String,
}

impl Forwarder {
    /// Sends what can be sent now; returns how long there is nothing to do but wait.
    fn turn(&mut self) -> u64 {
        match self.link.step() {
            Step::Up | Step::Restored => self.trouble.clear(),
            Step::Waits(until_ms) => return until_ms.saturating_sub(clock::now_ms()),
            Step::Broke(error) => {
                self.trouble = error.to_string();
                return 0;
            }
        }
        for _ in 0..LINES_PER_TURN {
            let Some(feed) = &mut self.feed else { return limits::SERVICE_ALIVE_MS };
            match feed.next_line() {
                Next::Line(line) => {
                    if let Err(error) = self.send(&line) {
                        self.trouble = error.to_string();
                        return 0;
                    }
                }
                Next::Nothing => return limits::SERVICE_ALIVE_MS,
                // nulld hands over another one.
                Next::Ended => self.feed = None,
            }
        }
        self.link.pace();
        0
    }

    fn send(&mut self, line: &LogLine) -> io::Result<()> {
        let expected = self.next_seq.unwrap_or(line.seq);
        if line.seq < expected {
            return Ok(()); // sent from an earlier stream
        }
        self.next_seq = Some(line.seq + 1);
        let mut outcome = Ok(());
        if line.seq > expected {
            let lost = message::lost(&self.origin, line, line.seq - expected);
            outcome = self.link.send(line.seq, lost);
        }
        // After an error both are kept and sent again.
        outcome.and(self.link.send(line.seq, message::message(&self.origin, line)))
    }

    /// What a next forwarder begins with: everything that may not have arrived.
    fn save(&mut self, now_ms: u64) {
        let next_seq = self.link.oldest_unsure().or(self.next_seq);
        let position = next_seq.map(|next_seq| Position { next_seq });
        if now_ms < self.save_ms || position == self.saved {
            return;
        }
        self.save_ms = now_ms + SAVE_MS;
        // Not kept: the next forwarder sends more lines twice.
        if let Ok(text) = serde_json::to_vec(&position)
            && config::write_whole(FILE, &text).is_ok()
        {
            self.saved = position;
        }
    }

    /// Writes a line when the way opened or closed, and returns what an operator should see of it.
    fn tell(&mut self, now_ms: u64) -> Option<String> {
        let is_open = self.trouble.is_empty();
        if self.told == Some(is_open) || now_ms < self.tell_ms {
            return None;
        }
        (self.told, self.tell_ms) = (Some(is_open), now_ms + TELL_MS);
        if is_open {
            log::info("forward_open", &[("host", &self.name)]);
            return Some(format!("sends log lines to {}", self.name));
        }
        log::warning("forward_broken", &[("host", &self.name), ("error", &self.trouble)]);
        Some(format!("log lines wait for {}: {}", self.name, self.trouble))
    }

    /// Waits for a line, the door, the host's end, or the time. False: nulld has gone.
    fn wait(&mut self, inherited: &Inherited, wait_ms: u64) -> io::Result<bool> {
        let wait_ms = wait_ms.min(limits::SERVICE_ALIVE_MS);
        let timeout = rustix::time::Timespec::try_from(Duration::from_millis(wait_ms)).ok();
        let mut watched = vec![PollFd::new(&inherited.door, PollFlags::IN)];
        let host = self.link.fd();
        let is_open = host.is_some();
        watched.extend(host.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if let (Some(feed), true) = (&self.feed, is_open) {
            watched.push(PollFd::new(feed, PollFlags::IN));
        }
        match rustix::event::poll(&mut watched, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            other => other?,
        };
        let has_call = watched.first().is_some_and(|door| !door.revents().is_empty());
        drop(watched);
        if has_call {
            match door::take_over(inherited.door.as_fd())? {
                Some((_, stream)) => self.feed = Some(Feed::new(stream)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::node::Transport;
    use abi::rpc::Request;
    use std::io::Write;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    fn forwarder(port: u16, next_seq: Option<u64>) -> Forwarder {
        Forwarder {
            name: "udp://x".into(),
            origin: Origin { node: "n".into(), boot: "b".into() },
            link: Link::new(Target { transport: Transport::Udp, host: "127.0.0.1".into(), port }),
            feed: None,
            next_seq,
            saved: None,
            save_ms: u64::MAX,
            told: None,
            tell_ms: 0,
            trouble: String::new(),
        }
    }

    fn stream(seqs: &[u64]) -> (UnixStream, Feed) {
        let (mut near, far) = UnixStream::pair().unwrap();
        for seq in seqs {
            let line = LogLine {
                seq: *seq,
                unix_ms: 0,
                service: "s".into(),
                line: format!("info {seq}"),
                missed: 0,
            };
            let note = Request::notification("log", serde_json::to_value(line).unwrap());
            writeln!(near, "{}", serde_json::to_string(&note).unwrap()).unwrap();
        }
        (near, Feed::new(far))
    }

    #[test]
    fn a_new_stream_repeats_nothing_and_a_gap_is_told() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut forwarder = forwarder(receiver.local_addr().unwrap().port(), None);
        let mut said = Vec::new();
        for seqs in [&[3u64, 4, 5][..], &[4, 5, 6], &[9, 10]] {
            let (_near, feed) = stream(seqs);
            forwarder.feed = Some(feed);
            forwarder.turn();
        }
        receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buffer = [0u8; 4096];
        while let Ok(count) = receiver.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            said.push(text.split_once("] ").unwrap().1.to_owned());
        }
        assert_eq!(
            said,
            [
                "info 3",
                "info 4",
                "info 5",
                "info 6",
                "warning log_lost lines=2 before=9",
                "info 9",
                "info 10"
            ]
        );
        assert_eq!(forwarder.link.oldest_unsure(), Some(3), "a next forwarder would send these again");
    }

    #[test]
    fn a_flapping_host_makes_few_lines() {
        let mut forwarder = forwarder(1, None);
        let mut told = 0;
        for now in 0..60_000u64 {
            forwarder.trouble = if now % 2 == 0 { "broken".into() } else { String::new() };
            told += usize::from(forwarder.tell(now).is_some());
        }
        assert!(told <= 7, "{told}");
    }
}
