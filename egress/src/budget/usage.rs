//! What an answer says it used, read as it passes: JSON, or server-sent events (WHATWG HTML, 9.2).
//!
//! Must hold: the result depends on the bytes and not on how they came in pieces; memory is bounded; usage that is missing, malformed
//! or not final is unknown, and the reservation stays. Must never: hold a byte back.

use abi::control::Spent;
use serde::Deserialize;
use std::fmt;

use super::prices::Tokens;
use super::request::{Kind, Plan};

/// A captured member's text, in bytes. Longer: malformed.
const CAPTURED_BYTES_MAX: usize = 16 * 1024;
/// Bytes of one token's events that nobody needs more of: above that, for all reserved tokens, a stream is no answer to its request.
const EVENT_BYTES_OF_A_TOKEN_MAX: u64 = 8 * 1024;
const EVENT_BYTES_BASE: u64 = 1024 * 1024;
/// Statuses by which a host says that it did not begin: nothing was used.
const NOT_BEGUN: [u16; 9] = [400, 401, 403, 404, 405, 413, 415, 422, 429];

/// Reads one answer.
#[derive(Debug)]
pub struct Usage {
    plan: Plan,
    status: u16,
    events: Option<Events>,
    members: Members,
    seen: Seen,
    bytes: u64,
}

/// An answer uses more than was reserved for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    pub what: &'static str,
    pub reserved: u64,
    pub found: u64,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer has {} {}, and {} were reserved", self.found, self.what, self.reserved)
    }
}

/// What was reported so far. Counts within one answer only grow: the largest of each holds.
#[derive(Debug, Default)]
struct Seen {
    tokens: Option<Tokens>,
    malformed: bool,
    /// The answer says that it ends here.
    last: bool,
}

impl Usage {
    /// For the answer to a planned request, from its head.
    pub fn of(plan: &Plan, status: u16, content_type: Option<&str>) -> Usage {
        let is_stream = content_type.is_some_and(|kind| {
            kind.trim_start().get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"))
        });
        Usage {
            plan: plan.clone(),
            status,
            events: is_stream.then(Events::default),
            members: Members::default(),
            seen: Seen::default(),
            bytes: 0,
        }
    }

    /// Takes the next bytes of the body. An error: what came is more than was reserved, and the connection must be cut.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Over> {
        if self.plan.kind == Kind::Unmetered {
            return Ok(());
        }
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let (kind, seen, members) = (self.plan.kind, &mut self.seen, &mut self.members);
        match &mut self.events {
            None => bytes
                .iter()
                .for_each(|byte| members.push(*byte, &mut |name, text| seen.take(kind, name, text))),
            Some(events) => {
                for byte in bytes {
                    match events.push(*byte) {
                        Step::Nothing => {}
                        Step::Data(byte) => {
                            members.push(byte, &mut |name, text| seen.take(kind, name, text));
                        }
                        Step::End { done } => {
                            seen.last |= done;
                            *members = Members::default();
                        }
                    }
                }
            }
        }
        self.check()
    }

    fn check(&self) -> Result<(), Over> {
        let wanted = &self.plan.wanted;
        if !self.plan.bounded {
            return Ok(());
        }
        let over = |what, reserved, found| Err(Over { what, reserved, found });
        if let Some(tokens) = self.seen.tokens {
            let read = tokens.input.saturating_add(tokens.cache_read).saturating_add(tokens.cache_write);
            if tokens.output > wanted.output_tokens {
                return over("output tokens", wanted.output_tokens, tokens.output);
            }
            if read > wanted.input_tokens {
                return over("input tokens", wanted.input_tokens, read);
            }
            let cached = tokens.cache_read.saturating_add(tokens.cache_write);
            if cached > wanted.cache_tokens {
                return over("cache tokens", wanted.cache_tokens, cached);
            }
        }
        let bytes_max =
            wanted.output_tokens.saturating_mul(EVENT_BYTES_OF_A_TOKEN_MAX).saturating_add(EVENT_BYTES_BASE);
        if self.events.is_some() && self.bytes > bytes_max {
            return over("bytes", bytes_max, self.bytes);
        }
        Ok(())
    }

    /// What the call used, once its body ended. `whole`: it ended as its framing says, and was not cut. None: nobody knows, and the
    /// reservation is what it used.
    pub fn finish(mut self, whole: bool) -> Option<Spent> {
        if self.plan.kind == Kind::Unmetered {
            return Some(Spent::default());
        }
        if self.events.as_mut().is_some_and(Events::finish) {
            self.seen.last = true;
        }
        let price = self.plan.price.as_ref();
        // A stream's framing may end well where its text was broken off: only its own mark says that no more was used.
        let ended = self.seen.last || whole && self.events.is_none();
        match self.seen.tokens {
            _ if self.seen.malformed => None,
            Some(tokens) if ended => Some(tokens.spent(price)),
            None if whole && NOT_BEGUN.contains(&self.status) => Some(Spent::default()),
            _ => None,
        }
    }

    /// The least that is known to have been used, for one that was cut because it used too much.
    pub fn seen(&self) -> Spent {
        self.seen.tokens.unwrap_or_default().spent(self.plan.price.as_ref())
    }
}

impl Seen {
    fn take(&mut self, kind: Kind, name: Name, text: Option<&[u8]>) {
        match (name, text) {
            (_, None) => self.malformed = true,
            (Name::Type, Some(text)) => {
                let last: [&[u8]; 4] = [
                    b"\"message_stop\"",
                    b"\"response.completed\"",
                    b"\"response.incomplete\"",
                    b"\"response.failed\"",
                ];
                // With the usage beside it, or before it.
                self.last |= last.contains(&text.trim_ascii());
            }
            (Name::Usage, Some(text)) => match parse(kind, text) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    let known = self.tokens.get_or_insert_default();
                    known.input = known.input.max(found.input);
                    known.cache_read = known.cache_read.max(found.cache_read);
                    known.cache_write = known.cache_write.max(found.cache_write);
                    known.output = known.output.max(found.output);
                }
                Err(()) => self.malformed = true,
            },
        }
    }
}

#[derive(Deserialize)]
struct OpenaiUsage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
    #[serde(default, alias = "input_tokens_details")]
    prompt_tokens_details: Option<OpenaiDetails>,
}

#[derive(Deserialize)]
struct OpenaiDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// The final event of a stream leaves out what an earlier one said.
#[derive(Deserialize)]
struct AnthropicUsage {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: u64,
}

/// Ok(None): null, as streams have it before their end.
fn parse(kind: Kind, text: &[u8]) -> Result<Option<Tokens>, ()> {
    if kind == Kind::Messages {
        let usage: Option<AnthropicUsage> = serde_json::from_slice(text).map_err(|_| ())?;
        return Ok(usage.map(|usage| Tokens {
            input: usage.input_tokens.unwrap_or(0),
            cache_read: usage.cache_read_input_tokens.unwrap_or(0),
            cache_write: usage.cache_creation_input_tokens.unwrap_or(0),
            output: usage.output_tokens,
        }));
    }
    let usage: Option<OpenaiUsage> = serde_json::from_slice(text).map_err(|_| ())?;
    let Some(usage) = usage else { return Ok(None) };
    let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
    // Some compatible hosts leave the model's thoughts out of the answer's tokens, and have them in the total.
    let rest = usage.total_tokens.unwrap_or(0).saturating_sub(usage.prompt_tokens);
    Ok(Some(Tokens {
        input: usage.prompt_tokens.checked_sub(cached).ok_or(())?,
        cache_read: cached,
        cache_write: 0,
        output: usage.completion_tokens.unwrap_or(0).max(rest),
    }))
}

/// A member that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Usage,
    Type,
}

/// Finds members of a JSON document as its bytes come: `usage` and `type` of the outermost object, `usage` of its members `message`
/// and `response`. Everything else is only followed.
#[derive(Debug, Default)]
struct Members {
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// The text that ended last, or is running, at a depth that is looked at.
    text: Vec<u8>,
    /// The member of the outermost object whose value is running is one whose `usage` counts.
    within: bool,
    capture: Option<Capture>,
}

#[derive(Debug)]
struct Capture {
    name: Name,
    depth: usize,
    text: Vec<u8>,
    too_long: bool,
}

/// Names are no longer than this.
const NAME_BYTES_MAX: usize = 16;

impl Members {
    /// Takes a byte; `found` gets each member's text, or none if it is too long.
    fn push(&mut self, byte: u8, found: &mut dyn FnMut(Name, Option<&[u8]>)) {
        let ends_value = !self.in_text && matches!(byte, b',' | b'}' | b']');
        if ends_value && let Some(capture) = self.capture.take_if(|capture| capture.depth == self.depth) {
            found(capture.name, (!capture.too_long).then_some(capture.text.as_slice()));
        }
        if let Some(capture) = &mut self.capture {
            capture.too_long |= capture.text.len() >= CAPTURED_BYTES_MAX;
            if !capture.too_long {
                capture.text.push(byte);
            }
        }
        if self.in_text {
            return self.text_byte(byte);
        }
        match byte {
            b'"' => {
                self.in_text = true;
                self.text.clear();
            }
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b':' => self.name_ended(),
            _ => {}
        }
    }

    fn text_byte(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_text = false,
            // One byte more than a name has, so that a longer one is none.
            _ if self.depth <= 2 && self.text.len() <= NAME_BYTES_MAX => self.text.push(byte),
            _ => {}
        }
    }

    fn name_ended(&mut self) {
        let name = match (self.depth, self.text.as_slice()) {
            (1, b"usage") => Some(Name::Usage),
            (1, b"type") => Some(Name::Type),
            (2, b"usage") if self.within => Some(Name::Usage),
            _ => None,
        };
        if self.depth == 1 {
            self.within = matches!(self.text.as_slice(), b"message" | b"response");
        }
        if self.capture.is_none()
            && let Some(name) = name
        {
            self.capture = Some(Capture { name, depth: self.depth, text: Vec::new(), too_long: false });
        }
    }
}

/// Splits a stream into its events and their data.
#[derive(Debug, Default)]
struct Events {
    /// The line's field name, until its colon.
    field: Vec<u8>,
    in_value: bool,
    /// The colon was the last byte: one space after it is none of the value.
    after_colon: bool,
    after_cr: bool,
    is_data: bool,
    /// The event's data so far, as far as it takes to know the end's mark.
    start: Vec<u8>,
}

enum Step {
    Nothing,
    Data(u8),
    /// An event is over. `done`: it was OpenAI's mark of the end.
    End {
        done: bool,
    },
}

const DONE: &[u8] = b"[DONE]";
const BOM: &[u8] = &[0xef, 0xbb, 0xbf];

impl Events {
    fn push(&mut self, byte: u8) -> Step {
        if std::mem::take(&mut self.after_cr) && byte == b'\n' {
            return Step::Nothing;
        }
        if matches!(byte, b'\r' | b'\n') {
            self.after_cr = byte == b'\r';
            return self.line_ended();
        }
        if !self.in_value {
            match byte {
                b':' => {
                    let name = self.field.strip_prefix(BOM).unwrap_or(&self.field);
                    self.is_data = name == b"data";
                    (self.in_value, self.after_colon) = (true, true);
                }
                // A longer name is none that matters; one byte of it makes the line no blank one.
                _ if self.field.len() < 8 => self.field.push(byte),
                _ => {}
            }
            return Step::Nothing;
        }
        if std::mem::take(&mut self.after_colon) && byte == b' ' {
            return Step::Nothing;
        }
        if !self.is_data {
            return Step::Nothing;
        }
        if self.start.len() <= DONE.len() {
            self.start.push(byte);
        }
        Step::Data(byte)
    }

    fn line_ended(&mut self) -> Step {
        let blank = self.field.is_empty() && !self.in_value;
        let was_data = std::mem::take(&mut self.is_data) && self.in_value;
        self.field.clear();
        (self.in_value, self.after_colon) = (false, false);
        if blank {
            return Step::End { done: self.finish() };
        }
        // Lines of data are joined by a line end, which is white space to JSON.
        if was_data { Step::Data(b'\n') } else { Step::Nothing }
    }

    /// Whether the event that is running is the end's mark.
    fn finish(&mut self) -> bool {
        std::mem::take(&mut self.start) == DONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::network::Price;
    use proptest::prelude::*;

    fn plan(kind: Kind) -> Plan {
        let price = Price {
            input: 1_000_000,
            cache_read: 100_000,
            cache_write: 2_000_000,
            output: 3_000_000,
            input_tokens_max: 1000,
            output_tokens_max: 100,
        };
        let wanted = Spent { input_tokens: 1000, cache_tokens: 1000, output_tokens: 100, ..Spent::default() };
        Plan { model: None, price: Some(price), wanted, body: Vec::new(), kind, bounded: true }
    }

    fn read(kind: Kind, content_type: &str, body: &str, piece: usize, whole: bool) -> Option<Spent> {
        let mut usage = Usage::of(&plan(kind), 200, Some(content_type));
        for piece in body.as_bytes().chunks(piece) {
            usage.push(piece).unwrap();
        }
        usage.finish(whole)
    }

    /// The same, however it comes in pieces.
    fn spent(kind: Kind, content_type: &str, body: &str) -> Option<Spent> {
        let at_once = read(kind, content_type, body, usize::MAX, true);
        for piece in [1, 2, 3, 7] {
            assert_eq!(read(kind, content_type, body, piece, true), at_once, "pieces of {piece}");
        }
        at_once
    }

    fn amounts(spent: Option<Spent>) -> (u64, u64, u64, u64) {
        let spent = spent.unwrap();
        (spent.input_tokens, spent.cache_tokens, spent.output_tokens, spent.micro_dollars)
    }

    const JSON: &str = "application/json";
    const SSE: &str = "text/event-stream; charset=utf-8";

    #[test]
    fn json_answers_say_what_they_used() {
        let chat = r#"{"id":"x","type":"y","choices":[{"message":{"content":"say \"usage\":{\"prompt_tokens\":1}","usage":{}}}],
            "usage": {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57, "prompt_tokens_details": {"cached_tokens": 30}}}"#;
        assert_eq!(amounts(spent(Kind::Chat, JSON, chat)), (20, 30, 7, 20 + 3 + 21));
        let responses = r#"{"object":"response","usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":0},"output_tokens":6,"total_tokens":11}}"#;
        assert_eq!(amounts(spent(Kind::Responses, JSON, responses)), (5, 0, 6, 23));
        let embeddings =
            r#"{"data":[{"embedding":[0.1,-2e-5]}],"usage":{"prompt_tokens":8,"total_tokens":8}}"#;
        assert_eq!(amounts(spent(Kind::Embeddings, JSON, embeddings)), (8, 0, 0, 8));
        let messages = r#"{"type":"message","usage":{"input_tokens":1,"cache_creation_input_tokens":2,"cache_read_input_tokens":10,"output_tokens":3,"service_tier":"standard"}}"#;
        assert_eq!(amounts(spent(Kind::Messages, JSON, messages)), (1, 12, 3, 1 + 4 + 1 + 9));
        let thoughts = r#"{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":40}}"#;
        assert_eq!(amounts(spent(Kind::Chat, JSON, thoughts)).2, 30);
    }

    #[test]
    fn streams_say_what_they_used_at_their_end() {
        let chat = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}],\"usage\":null}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        assert_eq!(amounts(spent(Kind::Chat, SSE, chat)), (9, 0, 2, 15));
        let crlf = chat.replace('\n', "\r\n");
        assert_eq!(spent(Kind::Chat, SSE, &crlf), spent(Kind::Chat, SSE, chat));
        assert_eq!(spent(Kind::Chat, SSE, &chat.replace('\n', "\r")), spent(Kind::Chat, SSE, chat));
        let messages = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":4,\"output_tokens\":1}}}\n\n\
            : a comment\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\n\
            event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":15}}\n\n\
            event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
        assert_eq!(amounts(spent(Kind::Messages, SSE, messages)), (25, 4, 15, 25 + 1 + 45));
        let responses = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n\
            data: {\"type\":\"response.completed\",\ndata: \"response\":{\"output\":[{\"usage\":{}}],\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}}\n\n";
        assert_eq!(amounts(spent(Kind::Responses, SSE, responses)), (3, 0, 4, 15));
    }

    #[test]
    fn usage_that_is_missing_malformed_or_not_final_is_unknown() {
        let started = "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n";
        assert_eq!(read(Kind::Messages, SSE, started, 5, false), None);
        let chat = "data: {\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n";
        assert_eq!(read(Kind::Chat, SSE, chat, 5, false), None, "a stream that broke before its end");
        assert!(read(Kind::Chat, SSE, &format!("{chat}data: [DONE]\n\n"), 5, false).is_some());
        assert_eq!(
            read(Kind::Chat, SSE, chat, 5, true),
            None,
            "a stream whose connection ended well, but not its text"
        );
        assert_eq!(read(Kind::Messages, SSE, started, 5, true), None);
        for body in [
            "{}",
            r#"{"usage":null}"#,
            r#"{"usage":{"prompt_tokens":-1,"completion_tokens":2}}"#,
            r#"{"usage":{"prompt_tokens":1.5,"completion_tokens":2}}"#,
            r#"{"usage":{"prompt_tokens":"9","completion_tokens":2}}"#,
            r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":10}}}"#,
            r#"{"usage":{"prompt_tokens":99999999999999999999999}}"#,
            r#"{"usage":[]}"#,
            "not json at all",
        ] {
            assert_eq!(spent(Kind::Chat, JSON, body), None, "{body}");
        }
        let long = format!(r#"{{"usage":{{"x":"{}","prompt_tokens":1}}}}"#, "x".repeat(CAPTURED_BYTES_MAX));
        assert_eq!(spent(Kind::Chat, JSON, &long), None);
    }

    #[test]
    fn a_refused_call_used_nothing_and_a_failed_one_may_have() {
        let error = r#"{"error":{"message":"no"}}"#;
        for (status, used) in
            [(429, Some(Spent::default())), (400, Some(Spent::default())), (500, None), (200, None)]
        {
            let mut usage = Usage::of(&plan(Kind::Chat), status, Some(JSON));
            usage.push(error.as_bytes()).unwrap();
            assert_eq!(usage.finish(true), used, "{status}");
        }
        let cut = Usage::of(&plan(Kind::Chat), 429, None);
        assert_eq!(cut.finish(false), None);
    }

    #[test]
    fn a_stream_above_its_reservation_is_cut_where_it_shows() {
        let mut usage = Usage::of(&plan(Kind::Messages), 200, Some(SSE));
        usage.push(b"data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":100}}\n\n").unwrap();
        let over = usage
            .push(b"data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":101}}\n\n")
            .unwrap_err();
        assert_eq!((over.what, over.reserved, over.found), ("output tokens", 100, 101));
        assert_eq!(usage.seen().output_tokens, 101);
        let mut usage = Usage::of(&plan(Kind::Messages), 200, Some(SSE));
        let start = b"data: {\"message\":{\"usage\":{\"input_tokens\":600,\"cache_read_input_tokens\":401,\"output_tokens\":1}}}\n\n";
        assert_eq!(usage.push(start).unwrap_err().what, "input tokens");
        // Within the input that was reserved, but from a cache that was not.
        let uncached = Plan {
            wanted: Spent { cache_tokens: 400, ..plan(Kind::Messages).wanted },
            ..plan(Kind::Messages)
        };
        let mut usage = Usage::of(&uncached, 200, Some(SSE));
        let start = b"data: {\"message\":{\"usage\":{\"input_tokens\":1,\"cache_read_input_tokens\":200,\"cache_creation_input_tokens\":201,\"output_tokens\":1}}}\n\n";
        assert_eq!(usage.push(start).unwrap_err().what, "cache tokens");
        let mut usage = Usage::of(&plan(Kind::Chat), 200, Some(SSE));
        let flood = vec![b'x'; 100_000];
        let cut = (0..100).find_map(|_| usage.push(&flood).err()).unwrap();
        assert_eq!(cut.what, "bytes");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm_and_pieces_do_not_matter(
            body in prop::collection::vec(prop::sample::select(b"{}[]:,\"\\ \n\rdata:usage01".to_vec()), 0..400),
            cut in 0usize..400,
        ) {
            for content_type in [JSON, SSE] {
                let mut whole = Usage::of(&plan(Kind::Chat), 200, Some(content_type));
                let mut pieces = Usage::of(&plan(Kind::Chat), 200, Some(content_type));
                let (one, two) = body.split_at(cut.min(body.len()));
                let at_once = whole.push(&body).is_ok();
                let in_pieces = pieces.push(one).is_ok() & pieces.push(two).is_ok();
                prop_assert_eq!(at_once, in_pieces);
                prop_assert_eq!(whole.finish(true), pieces.finish(true));
            }
        }
    }
}
