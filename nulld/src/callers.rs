//! The sockets at the door: who is connected, what they sent, what they still have to be sent.
//!
//! Must hold: no peer can make nulld wait. Reads peek and writes take what fits (MSG_DONTWAIT; O_NONBLOCK would follow the
//! connection to the service it is handed to); a peer that sends no line, or takes no bytes, is closed after
//! FIRST_LINE_MS_MAX. Must never: read past the line it owns.

use std::collections::{BTreeMap, VecDeque};
use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use abi::identity::Caller;
use abi::limits;
use abi::rpc::{Request, Response, RpcError};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;
use serde_json::Value;

use crate::door::{self, Peer, Turn};
use crate::logs::{Cursor, Logs};
use crate::{clock, poll};

/// Bytes prepared for a reader of logs at a time.
const OUT_BYTES_MAX: usize = 64 * 1024;
/// Bytes sent to one reader before the others have their turn.
const TURN_BYTES_MAX: usize = 256 * 1024;
/// Connections that nulld serves itself. One more is refused.
pub const OWN_MAX: usize = limits::SERVICE_CONNECTIONS_MAX;

/// A `system.logs` under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStream {
    pub request_id: Option<u64>,
    pub cursor: Cursor,
    /// None: follows for ever.
    pub end_seq: Option<u64>,
    /// It may take nothing for as long as it likes: one of nulld's own services.
    pub is_patient: bool,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    peer: Peer,
    /// Since when nothing was achieved: no line came, or no byte was taken.
    stuck_since_ms: u64,
    out: VecDeque<u8>,
    logs: Option<LogStream>,
    close_when_sent: bool,
    peer_ended: bool,
    /// Its turn ended before all was sent that could be.
    is_hungry: bool,
}

/// All connections that nulld holds.
#[derive(Debug)]
pub struct Callers {
    listener: UnixListener,
    connections: BTreeMap<u32, Connection>,
    next_id: u32,
    buffer: Vec<u8>,
    /// Closed because too many waited.
    pub crowded_out: u64,
}

impl Callers {
    /// Binds the control socket; anyone may connect, SO_PEERCRED says who it is.
    pub fn bind(path: &str, epoll: &OwnedFd) -> io::Result<Callers> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o666))?;
        Callers::serve(listener, epoll)
    }

    /// Takes up a listening socket that was kept over a crash of nulld; whoever waits in its backlog is accepted.
    pub fn resume(listener: UnixListener, epoll: &OwnedFd) -> io::Result<Callers> {
        Callers::serve(listener, epoll)
    }

    /// The listening socket, to be kept.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    fn serve(listener: UnixListener, epoll: &OwnedFd) -> io::Result<Callers> {
        listener.set_nonblocking(true)?;
        poll::watch(epoll, &listener, poll::Token::Door, EventFlags::IN | EventFlags::ET)?;
        Ok(Callers {
            listener,
            connections: BTreeMap::new(),
            next_id: 0,
            buffer: vec![0; limits::LINE_BYTES_MAX + 1],
            crowded_out: 0,
        })
    }

    /// Takes new connections; returns their numbers, as their first line may be there already.
    pub fn accept(&mut self, epoll: &OwnedFd) -> Vec<u32> {
        let mut fresh = Vec::new();
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // No descriptor free cannot be: connections are bounded far below the limit. Else: none is left.
                Err(_) => return fresh,
            };
            // unix(7). The pid in it may be 0 (a caller outside nulld's PID namespace) and is not used.
            let Ok(credentials) = getsockopt(&stream, sockopt::PeerCredentials) else {
                continue;
            };
            let socket = Caller::from_uid(credentials.uid());
            self.make_room();
            self.next_id = self.next_id.wrapping_add(1);
            let id = self.next_id;
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if poll::watch(epoll, &stream, poll::Token::Connection(id), flags).is_err() {
                continue;
            }
            let peer = Peer { socket, vouched: None, is_own: false };
            self.connections.insert(id, Connection::new(stream, peer));
            fresh.push(id);
        }
    }

    /// Takes one end of a socket pair that nulld made itself, to stream logs into it.
    pub fn adopt(&mut self, stream: UnixStream, logs: LogStream, epoll: &OwnedFd) -> io::Result<u32> {
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        let flags = EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        poll::watch(epoll, &stream, poll::Token::Connection(id), flags)?;
        let peer = Peer { socket: Caller::Local { uid: 0 }, vouched: None, is_own: true };
        self.connections.insert(id, Connection { logs: Some(logs), ..Connection::new(stream, peer) });
        Ok(id)
    }

    /// Whether a connection is still there.
    pub fn is_open(&self, id: u32) -> bool {
        self.connections.contains_key(&id)
    }

    /// Whether a turn ended before all was sent that could be.
    pub fn is_hungry(&self) -> bool {
        self.connections.values().any(|connection| connection.is_hungry)
    }

    /// Closes the oldest connection whose first line is missing when too many wait.
    fn make_room(&mut self) {
        let mut waiting = self.connections.iter().filter(|(_, c)| !c.peer.is_own);
        let oldest = waiting.next().map(|(id, _)| *id);
        if let (Some(oldest), true) = (oldest, waiting.count() + 1 >= limits::DOOR_PENDING_MAX) {
            self.connections.remove(&oldest);
            self.crowded_out += 1;
        }
    }

    /// Notes what epoll said of a connection.
    pub fn note_events(&mut self, id: u32, flags: EventFlags) {
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.connections.remove(&id);
        } else if let Some(connection) = self.connections.get_mut(&id) {
            connection.peer_ended |= flags.contains(EventFlags::RDHUP);
        }
    }

    /// Sends what can be sent, then looks at what has come. None: nothing to do.
    pub fn next_turn(&mut self, id: u32, logs: &Logs) -> Option<(Peer, Turn)> {
        let connection = self.connections.get_mut(&id)?;
        if !connection.pump(logs) {
            self.connections.remove(&id);
            return None;
        }
        if connection.is_sending() {
            return None;
        }
        let turn = match peek(&connection.stream, &mut self.buffer) {
            Ok(0) => Turn::Close,
            Ok(count) => door::examine(
                &connection.peer,
                self.buffer.get(..count).unwrap_or_default(),
                connection.peer_ended,
            ),
            Err(Errno::AGAIN) => Turn::Wait,
            Err(_) => Turn::Close,
        };
        Some((connection.peer.clone(), turn))
    }

    /// Takes nullgate's vouch line out of the stream.
    pub fn vouch(&mut self, id: u32, bytes: usize, caller: Caller) {
        match self.connections.get_mut(&id) {
            Some(connection) if consume(&connection.stream, &mut self.buffer, bytes) => {
                connection.peer.vouched = Some(caller);
            }
            _ => self.close(id),
        }
    }

    /// Takes a request line for nulld. False: the connection is gone, or there are too many.
    pub fn own(&mut self, id: u32, bytes: usize) -> bool {
        let others = self.connections.values().filter(|c| c.peer.is_own).count();
        match self.connections.get_mut(&id) {
            Some(connection)
                if (connection.peer.is_own || others < OWN_MAX)
                    && consume(&connection.stream, &mut self.buffer, bytes) =>
            {
                connection.peer.is_own = true;
                connection.stuck_since_ms = clock::now_ms();
                true
            }
            _ => false,
        }
    }

    /// Queues an answer.
    pub fn answer(&mut self, id: u32, request_id: Option<u64>, outcome: Result<Value, RpcError>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.queue(&Response::of(request_id, outcome));
        }
    }

    /// Queues a refusal; the connection ends with it.
    pub fn refuse(&mut self, id: u32, request_id: Option<u64>, error: RpcError, logs: &Logs) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.queue(&Response::of(request_id, Err(error)));
            connection.close_when_sent = true;
            if !connection.pump(logs) {
                self.connections.remove(&id);
            }
        }
    }

    /// Begins to stream logs.
    pub fn stream(&mut self, id: u32, logs: LogStream) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.logs = Some(logs);
        }
    }

    /// The stream of a connection, to hand it over.
    pub fn stream_of(&self, id: u32) -> Option<&UnixStream> {
        self.connections.get(&id).map(|connection| &connection.stream)
    }

    /// Lets go of a connection.
    pub fn close(&mut self, id: u32) {
        self.connections.remove(&id);
    }

    /// Those that follow logs, to be given the new lines.
    pub fn followers(&self) -> Vec<u32> {
        self.connections
            .iter()
            .filter(|(_, connection)| connection.logs.is_some() || connection.is_hungry)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Closes those that achieved nothing for too long; returns how many.
    pub fn expire(&mut self, now_ms: u64) -> usize {
        let before = self.connections.len();
        self.connections
            .retain(|_, connection| connection.deadline().is_none_or(|deadline| deadline > now_ms));
        before - self.connections.len()
    }

    /// The next one to expire.
    pub fn next_deadline(&self) -> Option<u64> {
        self.connections.values().filter_map(Connection::deadline).min()
    }
}

impl Connection {
    fn new(stream: UnixStream, peer: Peer) -> Connection {
        Connection {
            stream,
            peer,
            stuck_since_ms: clock::now_ms(),
            out: VecDeque::new(),
            logs: None,
            close_when_sent: false,
            peer_ended: false,
            is_hungry: false,
        }
    }

    fn is_sending(&self) -> bool {
        !self.out.is_empty() || self.logs.is_some() || self.close_when_sent
    }

    /// A follower with nothing to take may sit for ever; everyone else must get somewhere.
    fn deadline(&self) -> Option<u64> {
        let is_excused = self.logs.as_ref().is_some_and(|logs| logs.is_patient || self.out.is_empty());
        (!is_excused).then_some(self.stuck_since_ms + limits::FIRST_LINE_MS_MAX)
    }

    fn queue(&mut self, value: &impl Serialize) {
        // Encoding nulld's own types cannot fail; if it did, the caller would see its connection end.
        match serde_json::to_vec(value) {
            Ok(line) => {
                if self.out.is_empty() {
                    self.stuck_since_ms = clock::now_ms();
                }
                self.out.extend(line);
                self.out.push_back(b'\n');
            }
            Err(_) => self.close_when_sent = true,
        }
    }

    /// Prepares log lines and sends. False: the connection is over.
    fn pump(&mut self, logs: &Logs) -> bool {
        let mut sent_now = 0;
        self.is_hungry = false;
        loop {
            self.prepare(logs);
            if self.out.is_empty() {
                return !self.close_when_sent;
            }
            if sent_now >= TURN_BYTES_MAX {
                self.is_hungry = true;
                return true;
            }
            let (front, _) = self.out.as_slices();
            match rustix::net::send(&self.stream, front, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.out.drain(..sent);
                    sent_now += sent;
                    self.stuck_since_ms = clock::now_ms();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }

    fn prepare(&mut self, logs: &Logs) {
        while self.out.len() < OUT_BYTES_MAX {
            let Some(stream) = &mut self.logs else { return };
            match logs.next(&mut stream.cursor, stream.end_seq) {
                Some(line) => match serde_json::to_value(&line) {
                    Ok(value) => self.queue(&Request::notification("log", value)),
                    Err(_) => return,
                },
                None if stream.end_seq.is_some() => {
                    let id = stream.request_id;
                    self.logs = None;
                    self.queue(&Response::of(id, Ok(Value::Object(Default::default()))));
                }
                None => return,
            }
        }
    }
}

fn peek(stream: &UnixStream, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match rustix::net::recv(stream, &mut *buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            other => return other.map(|(count, _)| count),
        }
    }
}

/// Takes exactly so many bytes, which were peeked at before.
fn consume(stream: &UnixStream, buffer: &mut [u8], bytes: usize) -> bool {
    let mut left = bytes;
    while left > 0 {
        let Some(space) = buffer.get_mut(..left) else {
            return false;
        };
        match rustix::net::recv(stream, space, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return false,
            Ok((count, _)) => left -= count,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
