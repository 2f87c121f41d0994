//! A request's body as JSON that has one reading: members in their order, no name twice, bounded depth.
//!
//! Must hold: what is found here is what any parser finds; what is not changed keeps its bytes (the order of a schema's members means
//! something to models). Must never: build a tree of what a guest sent.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::fmt;

/// Members of the outermost object, members of one within it, how deep values nest, and bytes of the names of all objects that one
/// value lies in: what is held to see a name that stands there twice. More: refused.
const MEMBERS_MAX: usize = 128;
const INNER_MEMBERS_MAX: usize = 1_000;
const DEPTH_MAX: usize = 48;
const NAMES_BYTES_MAX: usize = 64 * 1024;

/// The outermost object: its members' names and their texts.
#[derive(Debug)]
pub struct Object<'a>(pub Vec<(String, &'a RawValue)>);

impl<'a> Object<'a> {
    /// Reads an object.
    pub fn parse(text: &'a [u8]) -> Result<Object<'a>, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// A member's text.
    pub fn member(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// A member's value, none if it is not there or null.
    pub fn value<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.member(name) else { return Ok(None) };
        serde_json::from_str(text.get()).map_err(|error| format!("`{name}`: {error}"))
    }

    /// The object with some members replaced or added, each given as JSON.
    pub fn with(&self, changed: &[(&str, String)]) -> Vec<u8> {
        let kept = self
            .0
            .iter()
            .filter(|(name, _)| !changed.iter().any(|(new, _)| new == name))
            .map(|(name, value)| (name.as_str(), value.get()));
        let members = kept.chain(changed.iter().map(|(name, value)| (*name, value.as_str())));
        let mut out = b"{".to_vec();
        for (n, (name, value)) in members.enumerate() {
            if n > 0 {
                out.push(b',');
            }
            // A text always becomes JSON.
            out.extend(serde_json::to_vec(name).unwrap_or_default());
            out.push(b':');
            out.extend(value.as_bytes());
        }
        out.push(b'}');
        out
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<'a>, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Self::Value = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if members.len() >= MEMBERS_MAX {
                        return Err(A::Error::custom(format!("more than {MEMBERS_MAX} members")));
                    }
                    if members.iter().any(|(known, _)| *known == name) {
                        return Err(twice(&name));
                    }
                    members.push((name, value));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(Object)
    }
}

fn twice<E: Error>(name: &str) -> E {
    let shown: String = name.chars().take(64).collect();
    E::custom(format!("the member `{shown}` stands there twice"))
}

/// What was found anywhere in a value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// A member `type` with a text that is no kind of plain text.
    pub unknown_kind: bool,
    /// An object that only points to something by its `id`: it has little else, is a message without content, or a reasoning without
    /// its `encrypted_content`, which the provider keeps.
    pub reference: bool,
    /// A member `cache_control`.
    pub cache_control: bool,
}

/// Looks through a value. `is_text`: which texts of members `type` stand for plain text.
pub fn survey(text: &RawValue, is_text: fn(&str) -> bool, found: &mut Found) -> Result<(), String> {
    let mut deserializer = serde_json::Deserializer::from_str(text.get());
    let survey = Survey { is_text, found, depth: 0, names_bytes: 0 };
    survey.deserialize(&mut deserializer).map(drop).map_err(|error| error.to_string())
}

struct Survey<'f> {
    is_text: fn(&str) -> bool,
    found: &'f mut Found,
    depth: usize,
    /// Names of the objects around this value, and of this one.
    names_bytes: usize,
}

impl Survey<'_> {
    fn deeper<E: Error>(&mut self) -> Result<Survey<'_>, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format!("values nest deeper than {DEPTH_MAX}")));
        }
        Ok(Survey { found: self.found, depth: self.depth + 1, ..*self })
    }
}

/// What a value is.
enum Shape {
    /// Null, or a list or object with nothing in it but empty values and a kind.
    Empty,
    Text(String),
    Other,
}

impl Shape {
    fn is_full(&self) -> bool {
        match self {
            Shape::Empty => false,
            Shape::Text(text) => !text.is_empty(),
            Shape::Other => true,
        }
    }
}

/// What says whether an object holds its content or points to it.
#[derive(Default)]
struct Item {
    has_id: bool,
    speaks: bool,
    reasons: bool,
    has_content: bool,
    has_sealed_content: bool,
    /// A member besides its kind holds something.
    full: bool,
    members: usize,
}

impl Item {
    fn take(&mut self, name: &str, value: &Shape) {
        let full = value.is_full();
        let is_kind = |kind: &str| matches!(value, Shape::Text(text) if text == kind);
        self.members += 1;
        self.full |= full && name != "type";
        match name {
            "id" => self.has_id = true,
            "type" => {
                self.speaks |= is_kind("message");
                self.reasons |= is_kind("reasoning");
            }
            "role" => self.speaks = true,
            "summary" => self.reasons = true,
            "content" => self.has_content = full,
            "encrypted_content" => self.has_sealed_content = full,
            _ => {}
        }
    }

    fn points(&self) -> bool {
        let elsewhere = self.speaks && !self.has_content || self.reasons && !self.has_sealed_content;
        self.has_id && (self.members <= 2 || elsewhere)
    }
}

impl<'de> DeserializeSeed<'de> for Survey<'_> {
    type Value = Shape;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A member `type` is remembered, other texts are passed over.
const KIND_BYTES_MAX: usize = 64;

impl<'de> Visitor<'de> for Survey<'_> {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Shape::Other)
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Shape::Other)
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Shape::Other)
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Shape::Other)
    }
    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Shape::Empty)
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        // A kind that is longer is none that is known.
        let end = text.char_indices().map(|(at, _)| at).find(|at| *at > KIND_BYTES_MAX);
        Ok(Shape::Text(text.get(..end.unwrap_or(text.len())).unwrap_or_default().to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut full = false;
        while let Some(value) = list.next_element_seed(self.deeper()?)? {
            full |= value.is_full();
        }
        Ok(if full { Shape::Other } else { Shape::Empty })
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut names = BTreeSet::new();
        let mut item = Item::default();
        while let Some(name) = map.next_key::<String>()? {
            self.names_bytes = self.names_bytes.saturating_add(name.len());
            if names.len() >= INNER_MEMBERS_MAX {
                return Err(A::Error::custom(format!("an object has more than {INNER_MEMBERS_MAX} members")));
            }
            if self.names_bytes > NAMES_BYTES_MAX {
                return Err(A::Error::custom(format!(
                    "an object and those around it have more than {NAMES_BYTES_MAX} bytes in the names of its members"
                )));
            }
            let value = map.next_value_seed(self.deeper()?)?;
            item.take(&name, &value);
            match name.as_str() {
                "type" => {
                    self.found.unknown_kind |= matches!(&value, Shape::Text(kind) if !(self.is_text)(kind));
                }
                "cache_control" => self.found.cache_control = true,
                _ => {}
            }
            if !names.insert(name.clone()) {
                return Err(twice(&name));
            }
        }
        self.found.reference |= item.points();
        Ok(if item.full { Shape::Other } else { Shape::Empty })
    }
}

/// Shows each value of a list; anything else has none. The list is never held as a whole.
pub fn each<'a>(
    text: &'a RawValue,
    see: &mut dyn FnMut(&'a RawValue) -> Result<(), String>,
) -> Result<(), String> {
    struct Each<'s, 'a>(&'s mut dyn FnMut(&'a RawValue) -> Result<(), String>);
    impl<'de> Visitor<'de> for Each<'_, 'de> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
            while let Some(value) = list.next_element::<&RawValue>()? {
                (self.0)(value).map_err(A::Error::custom)?;
            }
            Ok(())
        }
    }
    if !text.get().starts_with('[') {
        return Ok(());
    }
    serde_json::Deserializer::from_str(text.get())
        .deserialize_seq(Each(see))
        .map_err(|error| error.to_string())
}

/// A value as JSON.
pub fn text_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() // numbers and texts always become JSON
}
