//! Server-sent events, as both APIs stream their answers (WHATWG HTML, section 9.2.6).
//!
//! Owns: bytes to events, wherever the bytes were split. Must hold: no more than [`limits::CODER_EVENT_BYTES_MAX`] are kept.

use abi::limits;

/// One event: its name, or empty, and its data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    pub name: String,
    pub data: String,
}

/// A stream that is read.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    next: Event,
    has_data: bool,
    /// The line before ended in CR: an LF that follows belongs to it.
    after_cr: bool,
    is_begun: bool,
}

/// An event longer than its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {} bytes", limits::CODER_EVENT_BYTES_MAX)]
pub struct TooLong;

impl Events {
    /// Takes bytes as they came; what became whole.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut whole = Vec::new();
        for &byte in bytes {
            let follows_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => whole.extend(self.end_line()),
                _ if self.line.len() + self.next.data.len() >= limits::CODER_EVENT_BYTES_MAX => {
                    return Err(TooLong);
                }
                _ => self.line.push(byte),
            }
        }
        Ok(whole)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = if self.is_begun { &line } else { line.strip_prefix('\u{feff}').unwrap_or(&line) };
        self.is_begun = true;
        if line.is_empty() {
            let event = std::mem::take(&mut self.next);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.next.data.push('\n');
                }
                self.next.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.next.name),
            _ => {} // comments, `id`, `retry`, and what nobody knows yet
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(pieces: &[&[u8]]) -> Vec<Event> {
        let mut events = Events::default();
        pieces.iter().flat_map(|piece| events.push(piece).unwrap()).collect()
    }

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn every_line_end_and_field_of_the_standard_is_read() {
        let text = "\u{feff}: hello\r\nevent: a\rdata:one\ndata: two\r\n\r\nid: 7\nretry: 5\n\ndata\n\nevent: lost\n\ndata: é\n\n";
        assert_eq!(read(&[text.as_bytes()]), [event("a", "one\ntwo"), event("", ""), event("", "é")]);
    }

    #[test]
    fn an_event_that_never_ends_is_refused_before_it_fills_the_memory() {
        let mut events = Events::default();
        let line = [b"data: ".as_slice(), &[b'x'; 4000], b"\n"].concat();
        let refused = (0..1000).find(|_| events.push(&line).is_err());
        assert!(refused.is_some_and(|count| count * 4000 <= limits::CODER_EVENT_BYTES_MAX));
    }

    proptest! {
        #[test]
        fn wherever_the_bytes_are_split_the_events_are_the_same(
            texts in proptest::collection::vec(("[a-z]{0,5}", "[ -~é\u{1F600}]{0,20}(\n[ -~]{0,9})?"), 0..6),
            end in 0..3usize,
            cuts in proptest::collection::vec(0..400usize, 0..9),
        ) {
            let end = ["\n", "\r", "\r\n"][end];
            let mut wire = String::new();
            let mut line = |text: &str| { wire.push_str(text); wire.push_str(end); };
            for (name, data) in &texts {
                if !name.is_empty() { line(&format!("event: {name}")); }
                data.split('\n').for_each(|part| line(&format!("data: {part}")));
                line("");
            }
            let wanted: Vec<Event> = texts.iter().map(|(name, data)| event(name, data)).collect();
            prop_assert_eq!(&read(&[wire.as_bytes()]), &wanted);
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < wire.len()).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &wire.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces), wanted);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut events = Events::default();
            for byte in bytes { let _ = events.push(&[byte]); }
        }
    }
}
