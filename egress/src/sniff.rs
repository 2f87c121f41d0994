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

/// Whether the first line is an HTTP request line; `None` while it may still become one. Leading empty lines count, since
/// servers skip them (RFC 9112 section 2.2).
fn looks_like_http(bytes: &[u8]) -> Option<bool> {
    let text: Vec<u8> = bytes.iter().copied().skip_while(|b| matches!(b, b'\r' | b'\n')).collect();
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let whole = line.len() < text.len();
    let method = line.split(|b| matches!(b, b' ' | b'\t')).next().unwrap_or_default();
    if method.len() > 32 || !method.iter().all(|b| b.is_ascii_alphabetic() || matches!(b, b'-' | b'_')) {
        return Some(false);
    }
    let upper = line.to_ascii_uppercase();
    if whole { Some(upper.windows(5).any(|part| part == b"HTTP/")) } else { None }
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
    Undecided(Vec<u8>),
    Http(Requests),
    Open(Speaks),
}

impl Guard {
    /// For a connection to this name and port.
    pub fn new(name: &str, port: u16, without_sni: bool) -> Guard {
        Guard { name: name.to_owned(), port, without_sni, stage: Stage::Undecided(Vec::new()) }
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
            Stage::Undecided(seen) => {
                seen.extend_from_slice(bytes);
                let seen = std::mem::take(seen);
                self.stage = match look(&seen, &self.name, self.port, self.without_sni) {
                    Look::Refused(refusal) => return Err(refusal),
                    Look::More => {
                        self.stage = Stage::Undecided(seen);
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

    /// Whether the client has begun something that it must end soon.
    pub fn within(&self) -> bool {
        match &self.stage {
            Stage::Undecided(seen) => !seen.is_empty(),
            Stage::Http(requests) => requests.within_head(),
            Stage::Open(_) => false,
        }
    }

    /// Which way the client can be told something.
    pub fn speaks(&self) -> Speaks {
        match &self.stage {
            Stage::Undecided(_) => Speaks::Neither,
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
