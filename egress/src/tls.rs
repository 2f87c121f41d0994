//! Reads the first flight of a TLS client (RFC 8446 section 4.1.2, RFC 6066 section 3), to see whom it asks for. Pure.
//!
//! Must hold: a hello that is not wholly understood is refused, never guessed at.
//! Must never: keep or change a byte; the proxy passes on exactly what it read.

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    Malformed(&'static str),
    /// A whole ClientHello.
    Whole {
        /// The one host name of server_name, in lower case.
        server_name: Option<String>,
        /// Extension encrypted_client_hello (RFC 9849) is there. A real one and a greased one look the same on purpose.
        encrypted: bool,
    },
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// A record's content, at most (RFC 8446 section 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
/// Records of a hello. Clients send one or a few; each more would have the hello read once more.
const RECORDS_MAX: usize = 16;
/// Type, version and length before a record's content.
const HEADER_BYTES: usize = 5;

/// Bytes still to be read. Each step fails instead of reading beyond the end.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    /// A vector with a length of `bytes` before it.
    fn vector(&mut self, bytes: usize) -> Option<Bytes<'a>> {
        let length = self.number(bytes)?;
        self.take(length).map(Bytes)
    }
}

/// Looks at what a client has sent so far. The first byte is known to be 22.
pub fn look(sent: &[u8]) -> Hello {
    let mut records = Bytes(sent);
    let mut handshake = Vec::new();
    for _ in 0..RECORDS_MAX {
        let mut ahead = records;
        let Some(header) = ahead.take(3) else {
            return Hello::Partial;
        };
        let &[HANDSHAKE, 3, _] = header else {
            return Hello::Malformed("not a TLS handshake record");
        };
        let Some(length) = ahead.number(2) else {
            return Hello::Partial;
        };
        if length == 0 || length > RECORD_BYTES_MAX {
            return Hello::Malformed("a TLS record of wrong length");
        }
        let Some(content) = ahead.take(length) else {
            // The whole hello may be in a record that is still coming; what is there is not judged.
            return Hello::Partial;
        };
        handshake.extend_from_slice(content);
        records = ahead;
        let mut message = Bytes(&handshake);
        if message.take(1) != Some(&[CLIENT_HELLO]) {
            return Hello::Malformed("not a TLS client hello");
        }
        if let Some(body) = message.vector(3) {
            return if message.0.is_empty() {
                hello(body).unwrap_or(Hello::Malformed("a TLS client hello that cannot be read"))
            } else {
                Hello::Malformed("something beside the TLS client hello in its record")
            };
        }
    }
    Hello::Malformed("a TLS client hello in too many records")
}

/// Where the record ends that begins at `start` of what was sent, or the header of it where that is not whole.
pub fn record_end(sent: &[u8], start: usize) -> usize {
    let header = start.saturating_add(HEADER_BYTES);
    match sent.get(start..header) {
        Some(&[_, _, _, high, low]) => header + usize::from(u16::from_be_bytes([high, low])),
        _ => header,
    }
}

fn hello(mut body: Bytes<'_>) -> Option<Hello> {
    body.take(2 + 32)?; // legacy_version, random
    body.vector(1)?; // legacy_session_id
    body.vector(2)?; // cipher_suites
    body.vector(1)?; // legacy_compression_methods
    let mut extensions = if body.0.is_empty() { Bytes(&[]) } else { body.vector(2)? };
    if !body.0.is_empty() {
        return None;
    }
    let (mut server_name, mut encrypted) = (None, false);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.vector(2)?;
        if kind == usize::from(ENCRYPTED_CLIENT_HELLO) {
            encrypted = true;
        }
        if kind == usize::from(SERVER_NAME) {
            let first = server_name.replace(host_name(content)?);
            if first.is_some() {
                return None;
            }
        }
    }
    Some(Hello::Whole { server_name, encrypted })
}

/// The one entry of a ServerNameList.
fn host_name(mut content: Bytes<'_>) -> Option<String> {
    let mut list = content.vector(2)?;
    let kind = list.number(1)?;
    let name = list.vector(2)?;
    let whole = content.0.is_empty() && list.0.is_empty() && kind == 0;
    let text = std::str::from_utf8(name.0).ok()?;
    (whole && !text.is_empty() && text.is_ascii()).then(|| text.to_ascii_lowercase())
}

/// A fatal alert, so that the client sees a refusal and not a hang: access_denied (49) before any keys.
pub const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
/// unrecognized_name (112), for a server name that does not fit.
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// internal_error (80), when the far side cannot be reached.
pub const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A hello that asks for a name.
    pub(crate) fn hello_of(name: &str) -> Vec<u8> {
        record(&handshake(&sni(name)))
    }

    fn with_length(bytes: usize, content: &[u8]) -> Vec<u8> {
        let mut out = content.len().to_be_bytes()[8 - bytes..].to_vec();
        out.extend(content);
        out
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), with_length(2, content)].concat()
    }

    fn sni(name: &str) -> Vec<u8> {
        let entry = [vec![0], with_length(2, name.as_bytes())].concat();
        extension(SERVER_NAME, &with_length(2, &entry))
    }

    fn handshake(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(with_length(1, &[1; 32]));
        body.extend(with_length(2, &[0x13, 1]));
        body.extend(with_length(1, &[0]));
        body.extend(with_length(2, extensions));
        [vec![CLIENT_HELLO], with_length(3, &body)].concat()
    }

    fn record(content: &[u8]) -> Vec<u8> {
        [vec![HANDSHAKE, 3, 1], with_length(2, content)].concat()
    }

    fn named(name: &str, encrypted: bool) -> Hello {
        Hello::Whole { server_name: Some(name.into()), encrypted }
    }

    #[test]
    fn the_server_name_is_found_also_across_records() {
        let message = handshake(&[extension(10, &[0, 2, 0, 29]), sni("API.exa.ai")].concat());
        assert_eq!(look(&record(&message)), named("api.exa.ai", false));
        let (left, right) = message.split_at(50);
        assert_eq!(look(&[record(left), record(right)].concat()), named("api.exa.ai", false));
    }

    #[test]
    fn a_hello_is_partial_until_its_last_byte() {
        let whole = record(&handshake(&sni("a.test")));
        for end in 0..whole.len() {
            assert_eq!(look(&whole[..end]), Hello::Partial, "{end}");
        }
    }

    #[test]
    fn an_encrypted_hello_is_seen_and_a_missing_name_too() {
        let greased = handshake(&[sni("a.test"), extension(ENCRYPTED_CLIENT_HELLO, &[0; 20])].concat());
        assert_eq!(look(&record(&greased)), named("a.test", true));
        assert_eq!(look(&record(&handshake(&[]))), Hello::Whole { server_name: None, encrypted: false });
    }

    #[test]
    fn two_names_or_bent_lengths_are_refused() {
        for extensions in [
            [sni("a.test"), sni("b.test")].concat(),
            extension(SERVER_NAME, &with_length(2, &[0, 0, 9, b'a'])),
            extension(SERVER_NAME, &[]),
            extension(SERVER_NAME, &with_length(2, &[0, 0, 1, 0xff])),
            vec![0, 0, 0xff, 0xff],
        ] {
            let looked = look(&record(&handshake(&extensions)));
            assert!(matches!(looked, Hello::Malformed(_)), "{looked:?}");
        }
        let trailing = [handshake(&sni("a.test")), vec![1]].concat();
        assert!(matches!(look(&record(&trailing)), Hello::Malformed(_)));
        assert!(matches!(look(&[22, 3, 1, 0, 1, 2]), Hello::Malformed(_)));
        assert!(matches!(look(&[22, 2, 1]), Hello::Malformed(_)));
    }

    #[test]
    fn any_bytes_are_survived() {
        let whole = record(&handshake(&[sni("a.test"), extension(43, &[2, 3, 4])].concat()));
        for at in 0..whole.len() {
            for byte in [0, 1, 127, 128, 255] {
                let mut bent = whole.clone();
                bent[at] = byte;
                let _ = look(&bent);
            }
        }
    }
}
