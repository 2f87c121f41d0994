//! The metrics listener: Prometheus's text over plain HTTP, where `[metrics]` of nulld.toml wants it (docs/metrics.md).
//!
//! Must hold: only who is in `from` is answered, only GET of one path, and every connection is bounded in bytes and time.
//! Must never: ask the node as more than a reader, or pass anything of a request on.

use abi::control::{Metrics, Nothing, SystemStatus};
use abi::door::Vouch;
use abi::identity::{Caller, Role};
use abi::ids::Source;
use abi::limits;
use abi::log;
use abi::metrics::{CONTENT_TYPE, Page};
use abi::rpc::{Incoming, Request};
use abi::wire::Connection;
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::node_metrics;

/// How nulld and the services see the listener.
const NAME: &str = "metrics";
/// How long a refused client may take to take its answer's end.
const LINGER: Duration = Duration::from_millis(500);

/// What the listener needs.
#[derive(Debug)]
pub struct Listener {
    pub from: Vec<Source>,
    pub nulld: PathBuf,
    busy: AtomicUsize,
}

impl Listener {
    /// For these sources, asking behind this socket.
    pub fn new(from: Vec<Source>, nulld: PathBuf) -> Listener {
        Listener { from, nulld, busy: AtomicUsize::new(0) }
    }

    fn admits(&self, peer: SocketAddr) -> bool {
        match peer.ip() {
            IpAddr::V4(address) => self.from.iter().any(|range| range.holds(address)),
            IpAddr::V6(_) => false,
        }
    }
}

/// Serves for ever.
pub fn serve(listener: &Arc<Listener>, tcp: &TcpListener) {
    loop {
        match tcp.accept() {
            Ok((stream, peer)) => start(listener, stream, peer),
            Err(error) => {
                log::error("accept_failed", &[("error", &error)]);
                std::thread::sleep(Duration::from_millis(100)); // out of descriptors: let some close
            }
        }
    }
}

/// A connection's place; given back on drop.
struct Place(Arc<Listener>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start(listener: &Arc<Listener>, stream: TcpStream, peer: SocketAddr) {
    let place = Place(listener.clone());
    let busy = listener.busy.fetch_add(1, Ordering::Relaxed);
    if !listener.admits(peer) || busy >= limits::METRICS_CONNECTIONS_MAX {
        return; // closed by being dropped; who scrapes tries again
    }
    let thread = std::thread::Builder::new().name("metrics".into()).stack_size(256 * 1024).spawn(move || {
        // A client that went away needs no answer.
        let _ = answer(&place.0, &stream);
    });
    if let Err(error) = thread {
        log::error("thread_failed", &[("error", &error)]);
    }
}

fn answer(listener: &Listener, stream: &TcpStream) -> io::Result<()> {
    let patience = Duration::from_millis(limits::METRICS_HTTP_MS_MAX);
    let reply = match head(stream, Instant::now() + patience)? {
        Some(head) => match asked(&head) {
            Ok(()) => page(listener),
            Err(refusal) => refusal,
        },
        None => Reply::refusal("431 Request Header Fields Too Large", "the head is too long"),
    };
    send(stream, &reply.to_bytes(), Instant::now() + patience)?;
    // Closing with unread bytes would reset the connection before the answer was read.
    stream.shutdown(Shutdown::Write)?;
    let deadline = Instant::now() + LINGER;
    while read(stream, &mut [0u8; 1024], deadline)? > 0 {}
    Ok(())
}

/// What is left until a deadline; an error when it has passed. Each read and write is bounded by it anew, so that a client who
/// gives or takes a byte at a time gains nothing.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn read(mut stream: &TcpStream, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
    stream.set_read_timeout(Some(left(deadline)?))?;
    stream.read(into)
}

fn send(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            taken => bytes = bytes.get(taken..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// A request up to its empty line; none if it is too long.
fn head(stream: &TcpStream, deadline: Instant) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        if bytes.len() >= limits::METRICS_HEAD_BYTES_MAX {
            return Ok(None);
        }
        let mut chunk = [0u8; 1024];
        match read(stream, &mut chunk, deadline)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend(chunk.iter().take(n)),
        }
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: &'static str,
    content: &'static str,
    body: String,
}

impl Reply {
    fn refusal(status: &'static str, why: &str) -> Reply {
        Reply { status, content: "text/plain; charset=utf-8", body: format!("{why}\n") }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Reply { status, content, body } = self;
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nAllow: GET\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Whether the first line of a head asks for the page.
fn asked(head: &str) -> Result<(), Reply> {
    let line = head.lines().next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words.as_slice() else {
        return Err(Reply::refusal("400 Bad Request", "not a request of HTTP/1.1"));
    };
    let path = target.split('?').next().unwrap_or_default();
    match (*method, path) {
        ("GET", "/metrics") => Ok(()),
        (_, "/metrics") => Err(Reply::refusal("405 Method Not Allowed", "only GET /metrics is answered")),
        _ => Err(Reply::refusal("404 Not Found", "only /metrics is here")),
    }
}

fn page(listener: &Listener) -> Reply {
    let node = ask(listener, "system.status").and_then(|(_, status)| {
        serde_json::from_value::<SystemStatus>(status).map_err(|error| error.to_string())
    });
    let agents = ask(listener, "agent.metrics").and_then(|(mut text, last)| {
        let last: Metrics = serde_json::from_value(last).map_err(|error| error.to_string())?;
        text.push_str(&last.text);
        Ok(text)
    });
    let mut page = Page::default();
    for (part, error) in [("node", node.as_ref().err()), ("agents", agents.as_ref().err())] {
        if let Some(error) = error {
            log::warning("metrics_part_missing", &[("part", &part), ("error", error)]);
        }
        node_metrics::scrape(&mut page, part, error.is_none());
    }
    if let (Err(_), Err(_)) = (&node, &agents) {
        return Reply::refusal("503 Service Unavailable", "the node's services do not answer");
    }
    if let Ok(status) = &node {
        node_metrics::add(&mut page, status);
    }
    let body = page.text() + agents.as_deref().unwrap_or_default();
    Reply { status: "200 OK", content: CONTENT_TYPE, body }
}

/// Asks the node, as a reader: the texts that came before the result, and the result.
fn ask(listener: &Listener, method: &str) -> Result<(String, Value), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let deadline = Instant::now() + Duration::from_millis(limits::METRICS_ANSWER_MS_MAX);
    let mut connection = Connection::connect(&listener.nulld).map_err(|error| text(&error))?;
    let caller = Caller::Operator { name: NAME.into(), key: NAME.into(), role: Role::Reader };
    connection.write_line(&Vouch { vouch: caller }).map_err(|error| text(&error))?;
    let params = serde_json::to_value(Nothing {}).map_err(|error| text(&error))?;
    connection.write_line(&Request::call(1, method, params)).map_err(|error| text(&error))?;
    let mut before = String::new();
    loop {
        let left = left(deadline).map_err(|_| "no answer in time")?;
        connection.set_timeout(Some(left)).map_err(|error| text(&error))?;
        let line = connection.read_line().map_err(|error| text(&error))?.ok_or("the connection ended")?;
        match serde_json::from_str::<Incoming>(&line).map_err(|error| text(&error))? {
            Incoming::Notification(note) => {
                let part: Metrics = note.params().map_err(|error| text(&error))?;
                before.push_str(&part.text);
            }
            Incoming::Response(response) => {
                return match (response.result, response.error) {
                    (Some(result), None) => Ok((before, result)),
                    (_, error) => Err(error.map_or_else(|| "no result".into(), |error| error.message)),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_is_answered_to_one_method() {
        assert_eq!(asked("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Ok(()));
        assert_eq!(asked("GET /metrics?x=1 HTTP/1.0\r\n\r\n"), Ok(()));
        for (head, status) in [
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/../x HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET  /metrics HTTP/1.1\r\n\r\n", "400"),
            ("GET /metrics HTTP/2.0\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
        ] {
            let refused = asked(head).unwrap_err();
            assert!(refused.status.starts_with(status), "{head:?}: {refused:?}");
        }
    }

    #[test]
    fn only_the_sources_are_admitted() {
        let listener = Listener::new(vec!["192.0.2.0/24".parse().unwrap()], PathBuf::new());
        assert!(listener.admits("192.0.2.9:1".parse().unwrap()));
        for stranger in ["192.0.3.1:1", "127.0.0.1:1", "[::ffff:192.0.2.9]:1"] {
            assert!(!listener.admits(stranger.parse().unwrap()), "{stranger}");
        }
    }

    #[test]
    fn a_client_that_goes_on_talking_or_takes_nothing_is_let_go() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (stream, _) = tcp.accept().unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let talking = std::thread::spawn(move || {
            // Far longer than it may linger, and always sooner than one read may wait.
            (0..100).all(|_| {
                std::thread::sleep(LINGER / 5);
                client.write_all(b"x").is_ok()
            })
        });
        let listener = Listener::new(Vec::new(), PathBuf::from("/nonexistent"));
        // Its own clock ended it, or on a busy machine one read that waited too long.
        let ended = answer(&listener, &stream).unwrap_err().kind();
        assert!(matches!(ended, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{ended:?}");
        drop(stream);
        assert!(!talking.join().unwrap(), "it talked to its end");
        let deaf = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (stream, _) = tcp.accept().unwrap();
        let much = vec![b'x'; 64 << 20];
        assert!(send(&stream, &much, Instant::now() + LINGER).is_err());
        drop(deaf);
    }
}
