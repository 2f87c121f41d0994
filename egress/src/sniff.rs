//! Decides what a client's first bytes are and whether they ask for the name they were connected to. Pure.
//!
//! Must hold: on port 443 only TLS passes, on port 80 only HTTP and TLS; on other ports anything may, but what looks like TLS or
//! HTTP is checked there too.

use abi::limits;

use crate::denials::Rule;
use crate::http::{Requests, Wrong};
use crate::tls::{self, Hello};

/// What is known after some first bytes.
#[derive(Debug)]
pub enum Look {
    /// Not enough bytes yet.
    More,
    /// TLS for the right name: pass everything.
    Tls,
    /// HTTP: each request is checked.
    Http(Requests),
    /// Neither, on a port where that may be.
    Opaque,
    Refused(Refusal),
}

/// Which way a refusal is told to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Tls,
    Http,
    Neither,
}

/// Why a connection does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub what: String,
    pub rule: Rule,
    pub remedy: String,
    pub speaks: Speaks,
}

/// Looks at the first bytes of a connection to `name:port`.
pub fn look(bytes: &[u8], name: &str, port: u16, without_sni: bool) -> Look {
    match bytes.first() {
        None => Look::More,
        Some(22) => look_tls(bytes, name, port, without_sni),
        Some(_) if port == 443 => Look::Refused(Refusal {
            what: format!("not TLS on {name}:443"),
            rule: "protocol",
            remedy: "port 443 carries TLS only; grant another port for another protocol".into(),
            speaks: Speaks::Neither,
        }),
        Some(_) => match looks_like_http(bytes) {
            Some(true) => Look::Http(Requests::new(name, port)),
            None => too_long(bytes, name, port),
            Some(false) if port == 80 => Look::Refused(Refusal {
                what: format!("not HTTP on {name}:80"),
                rule: "protocol",
                remedy: "port 80 carries HTTP only; grant another port for another protocol".into(),
                speaks: Speaks::Neither,
            }),
            Some(false) => Look::Opaque,
        },
    }
}

fn too_long(bytes: &[u8], name: &str, port: u16) -> Look {
    if bytes.len() < limits::PROXY_FIRST_BYTES_MAX {
        return Look::More;
    }
    Look::Refused(Refusal {
        what: format!("first bytes on {name}:{port} longer than {}", limits::PROXY_FIRST_BYTES_MAX),
        rule: "limit",
        remedy: "send a shorter head: there is no grant for more".into(),
        speaks: Speaks::Neither,
    })
}

fn look_tls(bytes: &[u8], name: &str, port: u16, without_sni: bool) -> Look {
    let refused = |what: String, rule: Rule, remedy: &str| {
        Look::Refused(Refusal { what, rule, remedy: remedy.into(), speaks: Speaks::Tls })
    };
    match tls::look(bytes) {
        Hello::Partial => too_long(bytes, name, port),
        Hello::Malformed(why) => {
            refused(format!("{why}, on {name}:{port}"), "protocol", "send a TLS client hello")
        }
        Hello::Whole { encrypted: true, .. } => refused(
            format!("tls encrypted client hello on {name}:{port}"),
            "protocol",
            "switch encrypted client hello and its grease off: the name must be readable",
        ),
        Hello::Whole { server_name: None, .. } if without_sni => Look::Tls,
        Hello::Whole { server_name: None, .. } => refused(
            format!("tls without a server name on {name}:{port}"),
            "no-sni",
            "send the server name you were granted, or grant the name with without_sni = true",
        ),
        Hello::Whole { server_name: Some(sni), .. } if sni != name => refused(
            format!("sni {} on {name}:{port}", sni.chars().take(253).collect::<String>()),
            "sni-mismatch",
            "ask for the name you connected to, or add the other name to capabilities.network.allow",
        ),
        Hello::Whole { .. } => Look::Tls,
    }
}

/// A longer first word is no method.
const METHOD_CHARS_MAX: usize = 32;

fn is_of_method(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_')
}

/// Whether the first line is an HTTP request line; `None` while it may still become one. Leading empty lines count, since
/// servers skip them (RFC 9112 section 2.2).
fn looks_like_http(bytes: &[u8]) -> Option<bool> {
    let text: Vec<u8> = bytes.iter().copied().skip_while(|b| matches!(b, b'\r' | b'\n')).collect();
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let whole = line.len() < text.len();
    let method = line.split(|b| matches!(b, b' ' | b'\t')).next().unwrap_or_default();
    if method.len() > METHOD_CHARS_MAX || !method.iter().copied().all(is_of_method) {
        return Some(false);
    }
    let upper = line.to_ascii_uppercase();
    if whole { Some(upper.windows(5).any(|part| part == b"HTTP/")) } else { None }
}

/// How far first bytes were read to see whether they can be judged, so that each is read once however they arrive.
#[derive(Debug, Default, Clone, Copy)]
struct Scan {
    read: usize,
    /// Characters of the method so far.
    method: usize,
    in_target: bool,
    /// Where the last TLS record that was seen begins.
    record: usize,
}

impl Scan {
    /// Whether the bytes so far may be judged otherwise than those before them.
    fn is_worth_a_look(&mut self, seen: &[u8], port: u16) -> bool {
        let full = seen.len() >= limits::PROXY_FIRST_BYTES_MAX;
        match seen.first() {
            Some(22) => self.record_ends(seen) || full,
            _ if port == 443 => true, // refused by its first byte
            _ => self.line_ends(seen) || full,
        }
    }

    /// TLS: a record is whole that was not before.
    fn record_ends(&mut self, seen: &[u8]) -> bool {
        let begun = self.record;
        loop {
            let end = tls::record_end(seen, self.record);
            if end > seen.len() || end == self.record {
                break;
            }
            self.record = end;
        }
        // A header is judged before its content is there.
        let header = seen.len().saturating_sub(self.record) >= 3 && self.read < self.record + 5;
        self.read = seen.len();
        begun != self.record || header
    }

    /// Anything else: its first line ends, or can be none of a request.
    fn line_ends(&mut self, seen: &[u8]) -> bool {
        let new = seen.get(self.read..).unwrap_or_default();
        self.read = seen.len();
        new.iter().any(|byte| match byte {
            b'\r' | b'\n' if self.method == 0 && !self.in_target => false,
            b'\n' => true,
            _ if self.in_target => false,
            b' ' | b'\t' => {
                self.in_target = true;
                false
            }
            byte => {
                self.method += 1;
                self.method > METHOD_CHARS_MAX || !is_of_method(*byte)
            }
        })
    }
}

/// Stands between a client and its server: what leaves was looked at.
#[derive(Debug)]
pub struct Guard {
    name: String,
    port: u16,
    /// TLS without a server name passes.
    without_sni: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Undecided(Vec<u8>, Scan),
    Http(Requests),
    Open(Speaks),
}

impl Guard {
    /// For a connection to this name and port.
    pub fn new(name: &str, port: u16, without_sni: bool) -> Guard {
        Guard {
            name: name.to_owned(),
            port,
            without_sni,
            stage: Stage::Undecided(Vec::new(), Scan::default()),
        }
    }

    /// Takes bytes from the client; what may go to the server is appended to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        match &mut self.stage {
            Stage::Open(_) => {
                out.extend_from_slice(bytes);
                Ok(())
            }
            Stage::Http(requests) => {
                requests.push(bytes, out).map_err(|wrong| wrong_request(&wrong, &self.name, self.port))
            }
            Stage::Undecided(seen, scan) => {
                seen.extend_from_slice(bytes);
                if !scan.is_worth_a_look(seen, self.port) {
                    return Ok(());
                }
                let (seen, scan) = (std::mem::take(seen), *scan);
                self.stage = match look(&seen, &self.name, self.port, self.without_sni) {
                    Look::Refused(refusal) => return Err(refusal),
                    Look::More => {
                        self.stage = Stage::Undecided(seen, scan);
                        return Ok(());
                    }
                    Look::Tls => Stage::Open(Speaks::Tls),
                    Look::Opaque => Stage::Open(Speaks::Neither),
                    Look::Http(requests) => Stage::Http(requests),
                };
                self.push(&seen, out)
            }
        }
    }

    /// Whether nothing has to be looked at any more.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Bytes of memory that wait to be judged.
    pub fn held(&self) -> usize {
        match &self.stage {
            Stage::Undecided(seen, _) => seen.capacity(),
            Stage::Http(requests) => requests.held(),
            Stage::Open(_) => 0,
        }
    }

    /// Whether the client has begun something that it must end soon.
    pub fn within(&self) -> bool {
        match &self.stage {
            Stage::Undecided(seen, _) => !seen.is_empty(),
            Stage::Http(requests) => requests.within_head(),
            Stage::Open(_) => false,
        }
    }

    /// Which way the client can be told something.
    pub fn speaks(&self) -> Speaks {
        match &self.stage {
            Stage::Undecided(..) => Speaks::Neither,
            Stage::Http(_) => Speaks::Http,
            Stage::Open(speaks) => *speaks,
        }
    }

    /// A refusal for a client that did not end what it began in time.
    pub fn late(&self) -> Refusal {
        Refusal {
            what: format!("first bytes on {}:{} not whole in time", self.name, self.port),
            rule: "limit",
            remedy: "send the hello or head in one go: there is no grant for more time".into(),
            speaks: self.speaks(),
        }
    }
}

/// A refusal for an agent whose connections begin too much at a time.
pub fn too_much(speaks: Speaks) -> Refusal {
    let most = limits::PROXY_UNDECIDED_BYTES_MAX;
    Refusal {
        what: format!("more than {most} first bytes of connections at a time"),
        rule: "limit",
        remedy: "send each hello or head in one go: there is no grant for more".into(),
        speaks,
    }
}

/// A refusal for a request that does not pass.
pub fn wrong_request(wrong: &Wrong, name: &str, port: u16) -> Refusal {
    match wrong {
        Wrong::Host(host) => Refusal {
            what: format!("host {} on {name}:{port}", host.chars().take(253).collect::<String>()),
            rule: "host-mismatch",
            remedy: "ask for the name you connected to, or add the other name to capabilities.network.allow"
                .into(),
            speaks: Speaks::Http,
        },
        Wrong::Protocol(why) => Refusal {
            what: format!("{why}, on {name}:{port}"),
            rule: "protocol",
            remedy: "send plain HTTP/1.1, or use TLS".into(),
            speaks: Speaks::Http,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(bytes: &[u8], port: u16) -> String {
        match look(bytes, "api.test", port, false) {
            Look::Refused(refusal) => refusal.rule.to_owned(),
            other => format!("{other:?}").split(['(', ' ']).next().unwrap().to_lowercase(),
        }
    }

    #[test]
    fn each_port_carries_its_protocol() {
        assert_eq!(rule(b"", 443), "more");
        assert_eq!(rule(b"GET / HTTP/1.1\r\n", 443), "protocol");
        assert_eq!(rule(b"SSH-2.0-x\r\n", 80), "protocol");
        assert_eq!(rule(b"SSH-2.0-x\r\n", 22), "opaque");
        assert_eq!(rule(b"GET / HTTP/1.1\r\n", 80), "http");
        assert_eq!(rule(b"GET / HTTP/1.1\r\n", 8080), "http");
        assert_eq!(rule(b"\r\n\r\nget /\tHTTP/1.1\r\n", 22), "http");
    }

    #[test]
    fn a_guard_lets_nothing_out_before_it_has_decided() {
        let mut out = Vec::new();
        let mut guard = Guard::new("api.test", 80, false);
        guard.push(b"GET / HTTP/1.1\r\nHost: ", &mut out).unwrap();
        assert!(out.is_empty() && guard.within());
        guard.push(b"api.test\r\n\r\n", &mut out).unwrap();
        assert!(out.starts_with(b"GET /") && !guard.within());
        let refused = guard.push(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", &mut Vec::new()).unwrap_err();
        assert_eq!((refused.rule, refused.speaks), ("host-mismatch", Speaks::Http));
        let mut ssh = Guard::new("api.test", 22, false);
        ssh.push(b"SSH-2.0-x", &mut out).unwrap();
        assert!(out.ends_with(b"SSH-2.0-x"));
    }

    #[test]
    fn first_bytes_are_judged_alike_however_they_arrive() {
        let hello = crate::tls::tests::hello_of("api.test");
        let other = crate::tls::tests::hello_of("b.test");
        let long = vec![b'a'; limits::PROXY_FIRST_BYTES_MAX + 9];
        let cases: [&[u8]; 14] = [
            &hello,
            &other,
            b"\x16\x03\x01\x00\x00",
            b"\x16\x02",
            b"\x16\x03\x01\xff\xff",
            b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\n",
            b"SSH-2.0-x\r\n",
            b"EHLO me\r\n",
            b"A B\r\n",
            b" x\n",
            b"A\n",
            b"G\r\n",
            &long,
        ];
        for (case, port) in cases.iter().flat_map(|case| [22, 80, 443].map(|port| (case, port))) {
            let end = |pieces: &mut dyn Iterator<Item = &[u8]>| {
                let mut guard = Guard::new("api.test", port, false);
                for piece in pieces {
                    if let Err(refusal) = guard.push(piece, &mut Vec::new()) {
                        return (refusal.rule, refusal.speaks, false);
                    }
                }
                ("", guard.speaks(), guard.is_open())
            };
            let (whole, pieces) = (end(&mut std::iter::once(*case)), end(&mut case.chunks(1)));
            assert_eq!(whole, pieces, "{:?} on {port}", &case[..case.len().min(40)]);
        }
    }

    #[test]
    fn what_arrives_byte_by_byte_is_looked_at_a_few_times() {
        let count = |bytes: &[u8]| {
            let mut scan = Scan::default();
            (1..=bytes.len()).filter(|end| scan.is_worth_a_look(&bytes[..*end], 80)).count()
        };
        let blank = vec![b'\n'; 20_000];
        assert_eq!(count(&blank), 0);
        assert_eq!(count(&[b"GET ".to_vec(), vec![b'x'; 20_000]].concat()), 0);
        let hello = [&[22, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
        assert!(count(&hello) < 8);
        // A record for each byte: refused before it is read again and again.
        let mut bytes = Vec::new();
        for byte in [1, 0, 0xf0, 0].iter().chain(&[0; 100]) {
            bytes.extend([22, 3, 1, 0, 1, *byte]);
        }
        let Look::Refused(refusal) = look(&bytes, "api.test", 443, false) else { panic!("not refused") };
        assert!(refusal.what.contains("too many records"));
    }

    #[test]
    fn a_first_line_is_judged_only_when_whole() {
        for end in 0..b"EHLO me\r".len() {
            assert_eq!(rule(&b"EHLO me\r"[..end], 25), "more");
        }
        assert_eq!(rule(b"EHLO me\r\n", 25), "opaque");
        assert_eq!(rule(&vec![b'a'; limits::PROXY_FIRST_BYTES_MAX], 25), "opaque");
        let endless = [b"A ".to_vec(), vec![b'a'; limits::PROXY_FIRST_BYTES_MAX]].concat();
        assert_eq!(rule(&endless, 25), "limit");
    }
}
