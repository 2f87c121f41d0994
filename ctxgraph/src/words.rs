//! Words of a text, as they are indexed and looked for: the one place where both are made, so that they agree.
//!
//! A word is a run of letters, digits and marks: compatibility forms and diacritics folded (`Café` is `cafe`), in lower case, its first
//! [`limits::MEMORY_SEARCH_WORD_CHARS_MAX`] characters. A Han or kana character is a word by itself.

use abi::limits;
use abi::memory::NODE_PREFIX;
use serde_json::Value;
use std::collections::BTreeMap;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Hands on a text's words, in order.
pub fn of_text(text: &str, mut sink: impl FnMut(&str)) {
    let mut word = Word::default();
    if text.is_ascii() {
        // The same as below, without the tables.
        text.bytes().for_each(|byte| word.push(char::from(byte.to_ascii_lowercase()), &mut sink));
    } else {
        for char in text.nfkd().flat_map(char::to_lowercase).filter(|char| !is_diacritic(*char)) {
            word.push(char, &mut sink);
        }
    }
    word.end(&mut sink);
}

/// What [`of_entry`] hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Word(&'a str),
    /// Here a string ends: no phrase goes over it.
    End,
}

/// Hands on the words that an entry is found by: those of its key, its labels' values (not the node's) and all strings of its value.
pub fn of_entry(
    key: &str,
    labels: &BTreeMap<String, String>,
    value: &Value,
    sink: &mut dyn FnMut(Piece<'_>),
) {
    of_string(key, sink);
    for (_, text) in labels.iter().filter(|(name, _)| !name.starts_with(NODE_PREFIX)) {
        of_string(text, sink);
    }
    of_value(value, sink);
}

fn of_string(text: &str, sink: &mut dyn FnMut(Piece<'_>)) {
    of_text(text, |word| sink(Piece::Word(word)));
    sink(Piece::End);
}

/// Nests no deeper than a value may.
fn of_value(value: &Value, sink: &mut dyn FnMut(Piece<'_>)) {
    match value {
        Value::String(text) => of_string(text, sink),
        Value::Array(values) => values.iter().for_each(|value| of_value(value, sink)),
        Value::Object(members) => members.values().for_each(|value| of_value(value, sink)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The word under construction.
#[derive(Default)]
struct Word {
    text: String,
    chars: usize,
}

impl Word {
    fn push(&mut self, char: char, sink: &mut impl FnMut(&str)) {
        if stands_alone(char) {
            self.end(sink);
            self.text.push(char);
            self.end(sink);
        } else if char.is_alphanumeric() || is_combining_mark(char) {
            self.chars += 1;
            if self.chars <= limits::MEMORY_SEARCH_WORD_CHARS_MAX {
                self.text.push(char);
            }
        } else {
            self.end(sink);
        }
    }

    fn end(&mut self, sink: &mut impl FnMut(&str)) {
        if !self.text.is_empty() {
            sink(&self.text);
        }
        self.text.clear();
        self.chars = 0;
    }
}

/// Combining Diacritical Marks. Other marks are vowels in their scripts and stay.
fn is_diacritic(char: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&char)
}

/// Written without blanks between words.
fn stands_alone(char: char) -> bool {
    matches!(char, '\u{3041}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        of_text(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn words_are_folded_alike_however_they_are_written() {
        assert_eq!(words("Café, naïve CAFE\u{301}!"), ["cafe", "naive", "cafe"]);
        assert_eq!(words("ﬁle İstanbul Ångström"), ["file", "istanbul", "angstrom"]);
        assert_eq!(words("a_b-c.d 12\"x*"), ["a", "b", "c", "d", "12", "x"]);
        assert_eq!(words("東京tower"), ["東", "京", "tower"]);
        assert_eq!(words("हिन्दी").len(), 1, "marks do not cut a word");
        assert!(words(" \u{301} \n*\"").is_empty());
        let long = "x".repeat(1000);
        assert_eq!(words(&long), [&long[..limits::MEMORY_SEARCH_WORD_CHARS_MAX]]);
    }

    #[test]
    fn ascii_goes_the_short_way_to_the_same_words() {
        let ascii: String = (0..=127u8).map(char::from).chain("Two WORDS".chars()).collect();
        let mut long_way = words(&format!("{ascii} é"));
        assert_eq!(long_way.pop().as_deref(), Some("e"));
        assert_eq!(words(&ascii), long_way);
    }

    #[test]
    fn an_entry_is_found_by_key_labels_and_strings() {
        let labels =
            [("topic", "big cats"), ("nullbox.node", "0123")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let mut found = Vec::new();
        of_entry("notes/1", &labels.into(), &json!({ "b": ["x y", 7], "a": { "n": "z" } }), &mut |piece| {
            found.push(match piece {
                Piece::Word(word) => word.to_owned(),
                Piece::End => "|".to_owned(),
            });
        });
        assert_eq!(found.join(" "), "notes 1 | big cats | z | x y |");
    }
}
