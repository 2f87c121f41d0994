//! What somebody has been exposed to, and what it can do with it (the three that must not meet unseen).
//!
//! Must hold: exposure only grows; a value carries its writer's to its readers.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// A set of exposures. As JSON: an array of names, in the order of [`Exposure::ALL`]; as text: the same, joined by blanks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Exposure(u8);

impl Exposure {
    /// Nothing yet.
    pub const NONE: Exposure = Exposure(0);
    /// Has seen data that is not public: files of the operator, answers to a credential.
    pub const PRIVATE_DATA: Exposure = Exposure(1);
    /// Has seen text of strangers: pages, answers, files from outside.
    pub const UNTRUSTED_CONTENT: Exposure = Exposure(2);
    /// Can send to somebody outside.
    pub const EXFILTRATION: Exposure = Exposure(4);
    /// Each one, with its name.
    pub const ALL: [(Exposure, &'static str); 3] = [
        (Exposure::PRIVATE_DATA, "private_data"),
        (Exposure::UNTRUSTED_CONTENT, "untrusted_content"),
        (Exposure::EXFILTRATION, "exfiltration"),
    ];

    /// Both.
    #[must_use]
    pub const fn and(self, other: Exposure) -> Exposure {
        Exposure(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    pub const fn has(self, other: Exposure) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        Exposure::ALL.into_iter().filter(move |(one, _)| self.has(*one)).map(|(_, name)| name)
    }
}

/// The names joined by blanks; empty for none.
impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, name) in self.names().enumerate() {
            write!(f, "{}{name}", if number == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl FromStr for Exposure {
    type Err = String;
    fn from_str(text: &str) -> Result<Exposure, String> {
        text.split_whitespace().try_fold(Exposure::NONE, |all, word| Ok(all.and(one(word)?)))
    }
}

fn one(word: &str) -> Result<Exposure, String> {
    let found = Exposure::ALL.into_iter().find(|(_, name)| *name == word);
    found.map(|(one, _)| one).ok_or_else(|| {
        format!("`{word}` is not an exposure: private_data, untrusted_content or exfiltration")
    })
}

impl Serialize for Exposure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for Exposure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exposure, D::Error> {
        let words: Vec<String> = Vec::deserialize(deserializer)?;
        words.iter().try_fold(Exposure::NONE, |all, word| Ok(all.and(one(word).map_err(de::Error::custom)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_reads_back_as_text_and_as_json() {
        for bits in 0..8 {
            let set = Exposure(bits);
            assert_eq!(set.to_string().parse(), Ok(set));
            let json = serde_json::to_string(&set).unwrap();
            assert_eq!(serde_json::from_str::<Exposure>(&json).unwrap(), set, "{json}");
        }
        assert!("private_data secrets".parse::<Exposure>().unwrap_err().contains("`secrets`"));
    }
}
