//! Facts: a convention on top of memory, for what an agent knows of somebody or something (docs/facts.md). Memory itself keeps a
//! fact like any other value.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::limits;

/// What all facts' keys begin with.
pub const PREFIX: &str = "facts/";
/// The label whose value is the fact's kind.
pub const LABEL: &str = "fact";

/// What a fact says something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What somebody likes to have.
    Preference,
    /// Who somebody is.
    Profile,
    /// What is to be reached.
    Goal,
    /// What must not be broken on the way.
    Constraint,
    /// What is the case around it.
    Context,
}

impl Kind {
    /// Each one, with its name.
    pub const ALL: [(Kind, &'static str); 5] = [
        (Kind::Preference, "preference"),
        (Kind::Profile, "profile"),
        (Kind::Goal, "goal"),
        (Kind::Constraint, "constraint"),
        (Kind::Context, "context"),
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Kind::ALL.into_iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Kind {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Kind, &'static str> {
        let found = Kind::ALL.into_iter().find(|(_, name)| *name == text);
        found.map(|(kind, _)| kind).ok_or("must be preference, profile, goal, constraint or context")
    }
}

/// The value of a fact's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    pub fact: String,
    /// Percent: how sure the writer is. A claim like any other value.
    pub confidence: u8,
    /// Where it is from, in the writer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl Fact {
    /// Reads an entry's value; an error says what is wrong with it.
    pub fn of(value: &serde_json::Value) -> Result<Fact, String> {
        let fact = Fact::deserialize(value).map_err(|error| error.to_string())?;
        fact.check().map(|()| fact).map_err(str::to_owned)
    }

    /// Whether it keeps to the convention.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.fact.trim().is_empty() {
            return Err("`fact` is empty");
        }
        if self.confidence > 100 {
            return Err("`confidence` must be 0 to 100, in percent");
        }
        Ok(())
    }
}

/// The key of a fact: `facts/KIND/NAME`.
pub fn key(kind: Kind, name: &str) -> Result<String, &'static str> {
    let key = format!("{PREFIX}{kind}/{name}");
    if name.is_empty() || name.chars().any(char::is_control) || key.len() > limits::MEMORY_KEY_BYTES_MAX {
        return Err("a fact's name has 1 byte or more without control characters; its key at most 256 bytes");
    }
    Ok(key)
}

/// Kind and name of a key; none where it is not a fact's.
pub fn parts(key: &str) -> Option<(Kind, &str)> {
    let (kind, name) = key.strip_prefix(PREFIX)?.split_once('/')?;
    Some((kind.parse().ok()?, name)).filter(|(_, name)| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_of_facts_read_back() {
        for (kind, name) in Kind::ALL {
            let text = key(kind, "user/tone").unwrap();
            assert_eq!(text, format!("facts/{name}/user/tone"));
            assert_eq!(parts(&text), Some((kind, "user/tone")));
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
        for wrong in ["facts/goal/", "facts/goal", "facts/wish/x", "fact/goal/x", ""] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
        assert!(key(Kind::Goal, "").is_err() && key(Kind::Goal, "a\nb").is_err());
        assert!(key(Kind::Goal, &"x".repeat(250)).is_err());
    }

    #[test]
    fn a_value_that_breaks_the_convention_is_told_why() {
        let good = json!({ "fact": "likes short answers", "confidence": 80, "source": "asked" });
        assert_eq!(serde_json::to_value(Fact::of(&good).unwrap()).unwrap(), good);
        for (wrong, why) in [
            (json!("likes short answers"), "struct"),
            (json!({ "fact": " ", "confidence": 1 }), "empty"),
            (json!({ "fact": "x", "confidence": 101 }), "0 to 100"),
            (json!({ "fact": "x", "confidence": 0.5 }), "0.5"),
            (json!({ "fact": "x", "confidence": -1 }), "-1"),
            (json!({ "fact": "x", "confidence": 1, "kind": "goal" }), "kind"),
            (json!({ "fact": "x" }), "confidence"),
        ] {
            let told = Fact::of(&wrong).unwrap_err();
            assert!(told.contains(why), "{wrong}: {told}");
        }
    }
}
