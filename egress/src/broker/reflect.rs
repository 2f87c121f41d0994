//! Finds a secret in what a host answers: as it is, in base64 (both alphabets, at any alignment), in hex, and each of these with any
//! of its characters percent-encoded or escaped as JSON, JavaScript or HTML do. Pure.
//!
//! Must hold: no byte of a match leaves; what cannot be the beginning of one leaves at once; how the bytes are cut into pieces changes
//! nothing. Must never: show what it looks for.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The longest escape of one character: `\u002f`, `&#x002f;`.
const ESCAPE_BYTES_MAX: usize = 8;
/// Partial matches above which equal ones are merged.
const MERGE_ABOVE: usize = 64;

/// What is looked for. Cheap to clone.
#[derive(Clone)]
pub struct Needle {
    patterns: Arc<[Pattern]>,
    /// Bytes that a match can begin with.
    starts: Arc<[bool; 256]>,
}

struct Pattern {
    bytes: Zeroizing<Vec<u8>>,
    /// Letters count in either case: hex.
    any_case: bool,
}

impl fmt::Debug for Needle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Needle")
    }
}

impl Needle {
    /// For a secret of [`abi::limits::SECRET_BYTES_MIN`] bytes or more.
    pub fn new(secret: &[u8]) -> Needle {
        let pattern = |bytes, any_case| Pattern { bytes: Zeroizing::new(bytes), any_case };
        let mut patterns = vec![pattern(secret.to_vec(), false)];
        patterns.push(pattern(secret.iter().flat_map(|byte| hex(*byte)).collect(), true));
        for before in 0..3 {
            let padded: Zeroizing<Vec<u8>> =
                Zeroizing::new(std::iter::repeat_n(0, before).chain(secret.iter().copied()).collect());
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let text = Zeroizing::new(engine.encode(&*padded));
                // Characters whose six bits all are the secret's.
                let (first, end) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
                let bytes = text.as_bytes().get(first..end).unwrap_or_default().to_vec();
                if !patterns.iter().any(|known| *known.bytes == bytes) {
                    patterns.push(pattern(bytes, false));
                }
            }
        }
        patterns.retain(|pattern| !pattern.bytes.is_empty());
        let starts = std::array::from_fn(|byte| {
            let byte = u8::try_from(byte).unwrap_or_default();
            is_escape(byte) || patterns.iter().any(|pattern| pattern.is(0, byte))
        });
        Needle { patterns: patterns.into(), starts: Arc::new(starts) }
    }

    /// Whether a text holds it, as the value of a header field does.
    pub fn is_in(&self, text: &[u8]) -> bool {
        Scan::new(self.clone()).push(text, &mut Vec::new()).is_err()
    }
}

impl Pattern {
    fn is(&self, at: usize, byte: u8) -> bool {
        let byte = if self.any_case { byte.to_ascii_lowercase() } else { byte };
        self.bytes.get(at) == Some(&byte)
    }
}

fn hex(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 })
}

/// The secret was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found;

/// Looks through one stream.
pub struct Scan {
    needle: Needle,
    begun: Vec<Begun>,
    spare: Vec<Begun>,
    /// The end of what came, as long as the longest of `begun`.
    held: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scan")
    }
}

/// A match that may become whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Begun {
    pattern: usize,
    at: usize,
    escape: Escape,
    /// Bytes of the stream that it has taken.
    taken: usize,
}

/// An escape that is not whole; empty outside of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Escape {
    bytes: [u8; ESCAPE_BYTES_MAX],
    length: usize,
}

impl Scan {
    /// At the beginning of a stream.
    pub fn new(needle: Needle) -> Scan {
        Scan { needle, begun: Vec::new(), spare: Vec::new(), held: Zeroizing::default() }
    }

    /// Takes bytes; what may be passed on is appended to `out`. After `Found` the stream must be cut.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Found> {
        let starts = self.needle.starts.clone();
        let may_begin = |byte: &u8| starts.get(usize::from(*byte)).is_none_or(|starts| *starts);
        let mut rest = bytes.iter();
        loop {
            // Most bytes begin nothing.
            let next = if self.begun.is_empty() { rest.find(|byte| may_begin(byte)) } else { rest.next() };
            let Some(byte) = next else { break };
            self.step(*byte, may_begin(byte))?;
        }
        let hold = self.begun.iter().map(|begun| begun.taken).max().unwrap_or(0);
        let free = (self.held.len() + bytes.len()).saturating_sub(hold);
        let (old, new) = (free.min(self.held.len()), free.saturating_sub(self.held.len()));
        out.extend(self.held.drain(..old));
        out.extend_from_slice(bytes.get(..new).unwrap_or_default());
        self.held.extend_from_slice(bytes.get(new..).unwrap_or_default());
        Ok(())
    }

    /// At the end of the stream: what was held back is no match.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.begun.clear();
        out.append(&mut self.held);
    }

    fn step(&mut self, byte: u8, may_begin: bool) -> Result<(), Found> {
        // Two lists that take turns, so that a step allocates nothing.
        let mut before = std::mem::replace(&mut self.begun, std::mem::take(&mut self.spare));
        let fresh = (0..self.needle.patterns.len()).filter(|_| may_begin).map(Begun::at_start);
        for begun in before.drain(..).chain(fresh) {
            let Some(pattern) = self.needle.patterns.get(begun.pattern) else { continue };
            for next in begun.after(byte, pattern).into_iter().flatten() {
                if next.at == pattern.bytes.len() {
                    return Err(Found);
                }
                self.begun.push(next);
            }
        }
        self.spare = before;
        if self.begun.len() > MERGE_ABOVE {
            // Of those that differ only in where they began, the first in this order began first.
            self.begun.sort_unstable_by(|a, b| b.cmp(a));
            self.begun.dedup_by_key(|begun| (begun.pattern, begun.at, begun.escape));
        }
        Ok(())
    }
}

impl Begun {
    fn at_start(pattern: usize) -> Begun {
        Begun { pattern, at: 0, escape: Escape::default(), taken: 0 }
    }

    /// What it becomes by one more byte: the character itself, the beginning of an escape, both, or nothing.
    fn after(self, byte: u8, pattern: &Pattern) -> [Option<Begun>; 2] {
        let taken = self.taken + 1;
        let further = Begun { at: self.at + 1, escape: Escape::default(), taken, ..self };
        if self.escape.length == 0 {
            let within = || self.escape.with(byte).map(|escape| Begun { escape, taken, ..self });
            return [pattern.is(self.at, byte).then_some(further), is_escape(byte).then(within).flatten()];
        }
        let Some(escape) = self.escape.with(byte) else { return [None, None] };
        match escape.read() {
            Read::More => [Some(Begun { escape, taken, ..self }), None],
            Read::Byte(read) => [pattern.is(self.at, read).then_some(further), None],
            Read::Nothing => [None, None],
        }
    }
}

fn is_escape(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | b'&')
}

enum Read {
    More,
    Byte(u8),
    Nothing,
}

impl Escape {
    fn with(mut self, byte: u8) -> Option<Escape> {
        *self.bytes.get_mut(self.length)? = byte;
        self.length += 1;
        Some(self)
    }

    fn read(&self) -> Read {
        let text = self.bytes.get(..self.length).unwrap_or_default();
        match text {
            [b'%', digits @ ..] => number(digits, 16, 2),
            [b'\\', b'u', digits @ ..] => number(digits, 16, 4),
            [b'\\', b'x', digits @ ..] => number(digits, 16, 2),
            [b'\\', other] => Read::Byte(*other),
            [b'&', name @ ..] => entity(name),
            _ => Read::Nothing,
        }
    }
}

/// A number of exactly `count` digits.
fn number(digits: &[u8], radix: u32, count: usize) -> Read {
    match std::str::from_utf8(digits) {
        Ok(text) if !text.bytes().all(|byte| char::from(byte).is_digit(radix)) => Read::Nothing,
        Ok(text) if text.len() < count => Read::More,
        Ok(text) => u8::from_str_radix(text, radix).map_or(Read::Nothing, Read::Byte),
        Err(_) => Read::Nothing,
    }
}

/// A character reference of HTML, without its `&`.
fn entity(name: &[u8]) -> Read {
    let Some(whole) = name.strip_suffix(b";") else {
        let goes_on = name.len() + 1 < ESCAPE_BYTES_MAX
            && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'#');
        return if goes_on { Read::More } else { Read::Nothing };
    };
    match whole {
        b"amp" => Read::Byte(b'&'),
        b"lt" => Read::Byte(b'<'),
        b"gt" => Read::Byte(b'>'),
        b"quot" => Read::Byte(b'"'),
        b"apos" => Read::Byte(b'\''),
        [b'#', b'x' | b'X', digits @ ..] if !digits.is_empty() => number(digits, 16, digits.len()),
        [b'#', digits @ ..] if !digits.is_empty() => number(digits, 10, digits.len()),
        _ => Read::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "sk-Te/st+\"K3y&x%7\\Z";

    fn scan(text: &[u8], piece: usize) -> Result<Vec<u8>, Found> {
        let (mut scan, mut out) = (Scan::new(Needle::new(SECRET.as_bytes())), Vec::new());
        for piece in text.chunks(piece) {
            scan.push(piece, &mut out)?;
        }
        scan.finish(&mut out);
        Ok(out)
    }

    fn each(secret: &str, form: impl Fn(u8) -> String) -> String {
        secret.bytes().map(form).collect()
    }

    #[test]
    fn a_secret_is_found_in_every_form_and_in_any_pieces() {
        let base64 = |before: &str, engine: &dyn Fn(&str) -> String| engine(&format!("{before}{SECRET}tail"));
        let standard = |text: &str| STANDARD_NO_PAD.encode(text);
        let url = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let mut forms = vec![
            SECRET.to_owned(),
            each(SECRET, |b| format!("{b:02x}")),
            each(SECRET, |b| format!("{b:02X}")),
            each(SECRET, |b| format!("%{b:02x}")),
            each(
                SECRET,
                |b| if b.is_ascii_alphanumeric() { char::from(b).into() } else { format!("%{b:02X}") },
            ),
            each(SECRET, |b| format!("\\u{b:04x}")),
            each(SECRET, |b| format!("\\x{b:02x}")),
            each(SECRET, |b| format!("&#{b};")),
            each(SECRET, |b| format!("&#x{b:x};")),
            SECRET.replace('&', "&amp;").replace('"', "&quot;"),
            SECRET.replace('\\', "\\\\").replace('"', "\\\"").replace('/', "\\/"),
            serde_json::to_string(SECRET).unwrap(),
        ];
        for before in ["", "a", "ab", "abc"] {
            forms.push(base64(before, &standard));
            forms.push(base64(before, &url));
            forms.push(base64(before, &standard).replace('/', "\\/").replace('+', "%2B"));
        }
        for form in forms {
            for around in ["", "s", "sk-Te", "%", "\\", "&amp", "%7"] {
                let text = format!("data: {around}{form}{around}\n\n");
                for piece in [1, 2, 3, 7, text.len()] {
                    assert_eq!(scan(text.as_bytes(), piece), Err(Found), "{text} in pieces of {piece}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_secret_passes_unchanged() {
        let near = &SECRET[..SECRET.len() - 1];
        for text in [
            "",
            "hello",
            near,
            &format!("{near}{near}"),
            "%%%%%2",
            "\\u00",
            "&&amp;&#x",
            &each(near, |b| format!("{b:02x}")),
            "data: {\"a\": \"sk-\"}\n\n",
        ] {
            for piece in [1, 2, 5, 1000] {
                assert_eq!(scan(text.as_bytes(), piece).as_deref(), Ok(text.as_bytes()), "{text}");
            }
        }
        let all: Vec<u8> = (0..=255).cycle().take(4096).collect();
        assert_eq!(scan(&all, 17), Ok(all));
    }

    #[test]
    fn an_event_is_not_held_back() {
        let (mut scan, mut out) = (Scan::new(Needle::new(SECRET.as_bytes())), Vec::new());
        scan.push(b"data: sk-\n\n", &mut out).unwrap();
        assert_eq!(out, b"data: sk-\n\n");
        scan.push(b"data: sk-", &mut out).unwrap();
        assert_eq!(out, b"data: sk-\n\ndata: ", "only what may begin a match is held");
    }

    #[test]
    fn a_secret_that_repeats_itself_costs_a_bounded_amount() {
        let (mut scan, mut out) = (Scan::new(Needle::new(&[b'\\'; 4096])), Vec::new());
        for _ in 0..200 {
            scan.push(b"\\\\%5c\\u005", &mut out).unwrap();
            assert!(scan.begun.len() <= 4096, "{}", scan.begun.len());
        }
        assert!(Needle::new(&[b'a'; 8192]).is_in(&[b'a'; 8192]));
        assert!(!Needle::new(&[b'a'; 8192]).is_in(&[b'a'; 8191]));
        let shown = format!("{:?} {:?}", Needle::new(SECRET.as_bytes()), scan);
        assert_eq!(shown, "Needle Scan");
    }
}
