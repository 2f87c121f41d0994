//! Follows the requests of an HTTP/1 client (RFC 9110, RFC 9112), so that each one asks for the name it was connected to. Pure.
//!
//! Must hold: every request on a connection is checked before a byte of its head leaves, not only the first. What two
//! parsers could read in two ways (bare line ends, folded fields, two lengths, length beside chunked) is refused.
//! Must never: change a byte; upgrades and CONNECT, after which the bytes are no longer HTTP, do not pass in the clear.

use abi::limits;

/// Why a request does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// It asks for another name; the text is what it asked for.
    Host(String),
    /// It cannot be followed; the text says why.
    Protocol(&'static str),
}

/// A client's side of one connection.
#[derive(Debug)]
pub struct Requests {
    name: String,
    port: u16,
    head: Vec<u8>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body {
        left: u64,
    },
    /// In a line of a chunked body that holds a size.
    ChunkSize,
    ChunkData {
        left: u64,
    },
    /// At the empty line after a chunk's data.
    ChunkEnd,
    /// After the last chunk, until the empty line.
    Trailer,
}

const TOO_LONG: Wrong = Wrong::Protocol("an HTTP head that is too long");
/// A chunk-size or trailer line, in bytes.
const LINE_BYTES_MAX: usize = 4096;

impl Requests {
    /// For a connection to this name and port.
    pub fn new(name: &str, port: u16) -> Requests {
        Requests { name: name.to_owned(), port, head: Vec::new(), state: State::Head }
    }

    /// Takes bytes from the client; what may go to the server is appended to `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Head => self.head(bytes, out)?,
                State::Body { left } => {
                    let (now, rest) = split(bytes, left);
                    out.extend_from_slice(now);
                    let left = left - now.len() as u64;
                    self.state = if left == 0 { State::Head } else { State::Body { left } };
                    rest
                }
                State::ChunkData { left } => {
                    let (now, rest) = split(bytes, left);
                    out.extend_from_slice(now);
                    let left = left - now.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData { left } };
                    rest
                }
                State::ChunkSize | State::ChunkEnd | State::Trailer => self.line(bytes, out)?,
            };
        }
        Ok(())
    }

    /// Whether a head has begun and is not whole: its time is bounded.
    pub fn within_head(&self) -> bool {
        self.state == State::Head && !self.head.is_empty()
    }

    /// Bytes of memory that wait to be judged.
    pub fn held(&self) -> usize {
        self.head.capacity()
    }

    /// Collects a head; when it is whole, checks it and lets it out.
    fn head<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Wrong> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let found = self.head.get(from..).and_then(|new| new.windows(4).position(|w| w == b"\r\n\r\n"));
        let Some(found) = found else {
            return if self.head.len() > limits::PROXY_FIRST_BYTES_MAX { Err(TOO_LONG) } else { Ok(&[]) };
        };
        let end = from + found + 4;
        if end > limits::PROXY_FIRST_BYTES_MAX {
            return Err(TOO_LONG); // whole, but the same bytes in pieces were refused
        }
        self.head.truncate(end);
        let length = check(&self.head, &self.name, self.port)?;
        out.append(&mut self.head);
        self.state = match length {
            Length::Bytes(0) => State::Head,
            Length::Bytes(left) => State::Body { left },
            Length::Chunked => State::ChunkSize,
        };
        Ok(bytes.get(end - before..).unwrap_or_default())
    }

    /// Collects one line of a chunked body.
    fn line<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Wrong> {
        let (now, rest) = match bytes.iter().position(|b| *b == b'\n') {
            Some(end) => bytes.split_at(end + 1),
            None => (bytes, &[][..]),
        };
        self.head.extend_from_slice(now);
        if self.head.len() > LINE_BYTES_MAX {
            return Err(Wrong::Protocol("a line of a chunked body that is too long"));
        }
        if self.head.last() != Some(&b'\n') {
            return Ok(rest);
        }
        let Some(line) = self.head.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r')) else {
            return Err(Wrong::Protocol("a bare line end in a chunked body"));
        };
        self.state = match (self.state, line) {
            (State::Trailer, b"") => State::Head,
            (State::Trailer, _) => State::Trailer,
            (State::ChunkEnd, b"") => State::ChunkSize,
            (State::ChunkEnd, _) => return Err(Wrong::Protocol("a chunk longer than its size")),
            (_, line) => match chunk_size(line)? {
                0 => State::Trailer,
                left => State::ChunkData { left },
            },
        };
        out.append(&mut self.head);
        Ok(rest)
    }
}

fn split(bytes: &[u8], left: u64) -> (&[u8], &[u8]) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_checked(count).unwrap_or((bytes, &[]))
}

/// The size of a chunk, 0 for the last.
fn chunk_size(line: &[u8]) -> Result<u64, Wrong> {
    let wrong = Wrong::Protocol("a chunk size that cannot be read");
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    let text = std::str::from_utf8(digits).map_err(|_| wrong.clone())?;
    if text.is_empty() || text.len() > 15 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong);
    }
    u64::from_str_radix(text, 16).map_err(|_| wrong)
}

enum Length {
    Bytes(u64),
    Chunked,
}

/// Checks a whole head; says how long its body is.
fn check(head: &[u8], name: &str, port: u16) -> Result<Length, Wrong> {
    let unreadable = || Wrong::Protocol("an HTTP head that cannot be read");
    let text =
        std::str::from_utf8(head).ok().and_then(|t| t.strip_suffix("\r\n\r\n")).ok_or_else(unreadable)?;
    let mut lines = text.split("\r\n");
    if text.replace("\r\n", "").contains(|c: char| c.is_control() && c != '\t') {
        return Err(Wrong::Protocol("a control character or bare line end in an HTTP head"));
    }
    let request_line = lines.next().ok_or_else(unreadable)?;
    let [method, target, version] = request_line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(unreadable());
    };
    let one_zero = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return Err(Wrong::Protocol("an HTTP version other than 1.0 and 1.1 in the clear")),
    };
    if !is_token(method) || target.is_empty() {
        return Err(unreadable());
    }
    if method.eq_ignore_ascii_case("CONNECT") {
        return Err(Wrong::Protocol("CONNECT: the proxy needs no other proxy"));
    }
    let fields = Fields::read(lines)?;
    let host = fields.host.ok_or_else(|| Wrong::Host(String::new()))?;
    if !agrees(&host, name, port) {
        return Err(Wrong::Host(host.to_owned()));
    }
    if let Some(authority) = absolute_authority(target)?
        && !agrees(authority, name, port)
    {
        return Err(Wrong::Host(authority.to_owned()));
    }
    match (fields.chunked, fields.length) {
        (true, Some(_)) => Err(Wrong::Protocol("both a content length and chunks")),
        (true, None) if one_zero => Err(Wrong::Protocol("chunks in HTTP/1.0")),
        (true, None) => Ok(Length::Chunked),
        (false, length) => Ok(Length::Bytes(length.unwrap_or(0))),
    }
}

/// The header fields that decide.
#[derive(Default)]
struct Fields {
    host: Option<String>,
    length: Option<u64>,
    chunked: bool,
}

impl Fields {
    fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Fields, Wrong> {
        let mut fields = Fields::default();
        for line in lines {
            let (field, value) =
                line.split_once(':').ok_or(Wrong::Protocol("an HTTP field without a colon"))?;
            if !is_token(field) {
                return Err(Wrong::Protocol("an HTTP field name that cannot be read, or a folded field"));
            }
            let value = value.trim_matches([' ', '\t']);
            match field.to_ascii_lowercase().as_str() {
                "host" if fields.host.is_some() => return Err(Wrong::Protocol("two Host fields")),
                "host" => fields.host = Some(value.to_owned()),
                "content-length" => {
                    let digits =
                        !value.is_empty() && value.len() < 19 && value.bytes().all(|b| b.is_ascii_digit());
                    let length = value.parse().ok().filter(|_| digits);
                    if fields
                        .length
                        .replace(length.ok_or(Wrong::Protocol("a wrong content length"))?)
                        .is_some()
                    {
                        return Err(Wrong::Protocol("two content lengths"));
                    }
                }
                "transfer-encoding" => {
                    if fields.chunked || !value.eq_ignore_ascii_case("chunked") {
                        return Err(Wrong::Protocol("a transfer encoding other than chunked"));
                    }
                    fields.chunked = true;
                }
                "upgrade" => return Err(Wrong::Protocol("an upgrade to another protocol in the clear")),
                _ => {}
            }
        }
        Ok(fields)
    }
}

fn is_token(text: &str) -> bool {
    let admitted = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(admitted)
}

/// The authority of a target in absolute form (RFC 9112 section 3.2.2); none for `/path` and `*`.
fn absolute_authority(target: &str) -> Result<Option<&str>, Wrong> {
    if target.starts_with('/') || target == "*" {
        return Ok(None);
    }
    let (scheme, rest) =
        target.split_once("://").ok_or(Wrong::Protocol("a request target that cannot be read"))?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(Wrong::Protocol("a request target with a scheme other than http"));
    }
    Ok(rest.split(['/', '?', '#']).next())
}

/// Whether a Host or authority is this name, with this port or none.
fn agrees(host: &str, name: &str, port: u16) -> bool {
    let (host, port_ok) = match host.rsplit_once(':') {
        Some((host, given)) => (host, given == port.to_string()),
        None => (host, true),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    port_ok && host.eq_ignore_ascii_case(name)
}

/// What was refused and why, in words.
pub fn refusal_text(rule: &str, what: &str, remedy: &str) -> String {
    let clean = |text: &str| text.replace(|c: char| c.is_control(), " ");
    format!("NullBox refused this request.\nwhat: {}\nrule: {rule}\nremedy: {}\n", clean(what), clean(remedy))
}

/// An answer that says what was refused and why, and ends the connection.
pub fn refusal(status: &str, rule: &str, what: &str, remedy: &str) -> Vec<u8> {
    let body = refusal_text(rule, what, remedy);
    format!(
        "HTTP/1.1 {status}\r\nServer: nullbox-egress\r\nX-NullBox-Rule: {rule}\r\nContent-Type: text/plain; \
         charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bytes: &str) -> Result<String, Wrong> {
        let mut whole = Vec::new();
        let judged = Requests::new("api.test", 80).push(bytes.as_bytes(), &mut whole);
        // The same bytes one at a time must be judged the same way.
        let (mut single, mut requests) = (Vec::new(), Requests::new("api.test", 80));
        let each = bytes.as_bytes().iter().try_for_each(|byte| requests.push(&[*byte], &mut single));
        assert_eq!((&judged, &whole), (&each, &single), "{bytes:?}");
        judged.map(|()| String::from_utf8(whole).unwrap())
    }

    #[test]
    fn requests_to_the_name_pass_unchanged() {
        for good in [
            "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:  API.Test.:80 \r\nAccept: */*\r\n\r\n",
            "GET http://api.test/x HTTP/1.1\r\nHost: api.test\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\nhello\r\n0\r\nT: 1\r\n\r\nGET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: api.test\r\n\r\n",
        ] {
            assert_eq!(run(good).as_deref(), Ok(good));
        }
    }

    #[test]
    fn another_host_is_refused_on_any_request() {
        let second = |first: &str| format!("{first}GET /secret HTTP/1.1\r\nHost: other.test\r\n\r\n");
        for bad in [
            second(""),
            second("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"),
            second("POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\n\r\nab"),
            second(
                "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            ),
            "GET http://other.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n".into(),
            "GET http://api.test@other.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: api.test:81\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: api.test.evil\r\n\r\n".into(),
            "GET / HTTP/1.0\r\n\r\n".into(),
        ] {
            assert!(matches!(run(&bad), Err(Wrong::Host(_))), "{bad:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: api.test\r\n{fields}\r\n\r\n");
        for bad in [
            with("Content-Length: 1\r\nContent-Length: 2"),
            with("Content-Length: 1\r\nTransfer-Encoding: chunked"),
            with("Content-Length: +1"),
            with("Content-Length: 99999999999999999999"),
            with("Transfer-Encoding: gzip, chunked"),
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            with("Host: other.test"),
            with("X: 1\r\n folded: 2"),
            with("X: 1\nHost: other.test"),
            with("Host : other.test"),
            with("X: 1\rY"),
            with("Upgrade: h2c"),
            with("nocolon"),
            "CONNECT api.test:443 HTTP/1.1\r\nHost: api.test\r\n\r\n".into(),
            "PRI * HTTP/2.0\r\n\r\n".into(),
            "GET  / HTTP/1.1\r\nHost: api.test\r\n\r\n".into(),
            "GET https://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n".into(),
            "GET api.test HTTP/1.1\r\nHost: api.test\r\n\r\n".into(),
            "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n".into(),
            "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n1\na\n".into(),
            "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n".into(),
            "POST / HTTP/1.0\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        ] {
            assert!(matches!(run(&bad), Err(Wrong::Protocol(_))), "{bad:?} {:?}", run(&bad));
        }
    }

    #[test]
    fn nothing_of_a_refused_head_leaves() {
        let mut out = Vec::new();
        let bytes = b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n";
        assert!(Requests::new("api.test", 80).push(bytes, &mut out).is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn an_endless_head_is_refused() {
        let mut out = Vec::new();
        let mut requests = Requests::new("api.test", 80);
        let line = b"GET / HTTP/1.1\r\nX: "
            .iter()
            .copied()
            .chain(std::iter::repeat_n(b'a', limits::PROXY_FIRST_BYTES_MAX));
        assert!(requests.push(&line.collect::<Vec<_>>(), &mut out).is_err());
    }

    #[test]
    fn any_bytes_are_survived_and_judged_alike_in_any_pieces() {
        let whole = "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n\
                     PUT /2 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
        for at in 0..whole.len() {
            for byte in b"\r\n\0 :;0fz\x7f" {
                let mut bent = whole.as_bytes().to_vec();
                bent[at] = *byte;
                if let Ok(bent) = String::from_utf8(bent) {
                    let _ = run(&bent); // compares one push with many
                }
            }
        }
    }

    #[test]
    fn a_refusal_cannot_be_bent_by_what_was_asked() {
        let text =
            String::from_utf8(refusal("403 Forbidden", "host-mismatch", "host a\r\nX: y", "b")).unwrap();
        assert!(text.contains("what: host a  X: y\n"));
    }
}
