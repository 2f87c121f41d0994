//! JSON values in their one canonical text: the JSON Canonicalization Scheme (RFC 8785).
//!
//! Must hold: equal values have equal texts, and a text read back is the value that was written.
//! Must never: change a number silently; what would change is refused.

use abi::limits;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt::{self, Write as _};

/// Why a value has no canonical text here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    #[error("the number {0} would be kept as {1}")]
    Inexact(String, String),
    #[error("arrays and objects nest deeper than {}", limits::MEMORY_VALUE_DEPTH_MAX)]
    Depth,
    #[error("a number is not finite")]
    NotFinite,
}

/// Values in a value: itself, and all that it holds. No deeper than the bound on depth, beyond which it does not matter.
pub fn count(value: &Value) -> usize {
    fn below(value: &Value, depth: usize) -> usize {
        let held = |item: &Value| below(item, depth + 1);
        match value {
            _ if depth > limits::MEMORY_VALUE_DEPTH_MAX => 1,
            Value::Array(items) => 1 + items.iter().map(held).sum::<usize>(),
            Value::Object(members) => 1 + members.values().map(held).sum::<usize>(),
            _ => 1,
        }
    }
    below(value, 0)
}

/// The canonical text.
pub fn text(value: &Value) -> Result<String, CanonicalError> {
    let mut out = String::new();
    write_value(&mut out, value, 0)?;
    Ok(out)
}

fn write_value(out: &mut String, value: &Value, depth: usize) -> Result<(), CanonicalError> {
    if depth > limits::MEMORY_VALUE_DEPTH_MAX {
        return Err(CanonicalError::Depth);
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => out.push_str(&number_text(number)?),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(out, item, depth + 1)?;
            }
            out.push(']');
        }
        Value::Object(members) => write_object(out, members, depth)?,
    }
    Ok(())
}

fn write_object(out: &mut String, members: &Map<String, Value>, depth: usize) -> Result<(), CanonicalError> {
    let mut sorted: Vec<_> = members.iter().collect();
    // RFC 8785 3.2.3: by UTF-16 code units, which differs from UTF-8 order above U+FFFF.
    sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    out.push('{');
    for (index, (name, member)) in sorted.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(out, name);
        out.push(':');
        write_value(out, member, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

/// RFC 8785 3.2.2.2.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c)); // writing to a String cannot fail
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// An integer, where JSON keeps it.
pub fn write_integer(out: &mut String, integer: u64) -> Result<(), CanonicalError> {
    if integer <= 1 << 53 {
        let _ = write!(out, "{integer}"); // writing to a String cannot fail
    } else {
        out.push_str(&number_text(&integer.into())?);
    }
    Ok(())
}

fn number_text(number: &Number) -> Result<String, CanonicalError> {
    let double = number.as_f64().ok_or(CanonicalError::NotFinite)?;
    let text = double_text(double).ok_or(CanonicalError::NotFinite)?;
    if !number.is_f64() && text != number.to_string() {
        return Err(CanonicalError::Inexact(number.to_string(), text));
    }
    Ok(text)
}

/// A double as ECMAScript's Number::toString writes it (ECMA-262 6.1.6.1.20, radix 10); none when not finite.
pub fn double_text(double: f64) -> Option<String> {
    if !double.is_finite() {
        return None;
    }
    if double == 0.0 {
        return Some("0".into()); // minus zero too
    }
    // `{:e}` gives the shortest digits that read back as the same double: d.ddde-x. Where two are as short and as close,
    // ECMAScript wants the even one, which is what rounding to that many digits gives.
    let shortest = format!("{:e}", double.abs());
    let fraction = shortest.find('e')?.saturating_sub(2);
    let even = format!("{:.fraction$e}", double.abs());
    let chosen = if even.parse() == Ok(double.abs()) { &even } else { &shortest };
    let (mantissa, exponent) = chosen.split_once('e')?;
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    // The value is 0.DIGITS times 10 to the n.
    let n = exponent.parse::<i32>().ok()? + 1;
    let k = i32::try_from(digits.len()).ok()?;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    let cut = |at: i32| digits.split_at_checked(usize::try_from(at).ok()?);
    let unsigned = if k <= n && n <= 21 {
        format!("{digits}{}", zeros(n - k))
    } else if 0 < n && n <= 21 {
        let (whole, fraction) = cut(n)?;
        format!("{whole}.{fraction}")
    } else if -6 < n && n <= 0 {
        format!("0.{}{digits}", zeros(-n))
    } else {
        let (first, rest) = cut(1)?;
        let point = if rest.is_empty() { "" } else { "." };
        let sign = if n > 0 { '+' } else { '-' };
        format!("{first}{point}{rest}e{sign}{}", (n - 1).abs())
    };
    Some(if double < 0.0 { format!("-{unsigned}") } else { unsigned })
}

/// Parses a line in which no object has a key twice (serde_json alone would keep the last) and which has no more values than a line may.
pub fn strict(line: &str) -> Result<Value, serde_json::Error> {
    let left = Cell::new(limits::MEMORY_LINE_NODES_MAX);
    let mut parser = serde_json::Deserializer::from_str(line);
    let value = Strict(&left).deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// How many more values there may be.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        let Some(left) = self.0.get().checked_sub(1) else {
            return Err(de::Error::custom(format!("more than {} values", limits::MEMORY_LINE_NODES_MAX)));
        };
        self.0.set(left);
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if map.contains_key(&name) {
                let shown: String = name.chars().take(64).collect();
                return Err(de::Error::custom(format!("the key `{shown}` stands twice in one object")));
            }
            map.insert(name, members.next_value_seed(self)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_are_written_as_in_rfc_8785_appendix_b() {
        for (bits, expected) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5554, "333333333.33333325"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0x41b3_de43_5555_5556, "333333333.3333334"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            assert_eq!(double_text(f64::from_bits(bits)).as_deref(), Some(expected), "{bits:016x}");
        }
        assert_eq!(double_text(f64::NAN), None);
        assert_eq!(double_text(f64::INFINITY), None);
    }

    #[test]
    fn objects_are_written_as_in_rfc_8785() {
        // Section 3.2.2 and 3.2.3.
        let value: Value = serde_json::from_str(
            r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
                "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#,
        )
        .unwrap();
        assert_eq!(
            text(&value).unwrap(),
            "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
             \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
        let value: Value = serde_json::from_str(
            r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",
                "\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#,
        )
        .unwrap();
        assert_eq!(
            text(&value).unwrap(),
            "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\
             \"ö\":\"Latin Small Letter O With Diaeresis\",\"€\":\"Euro Sign\",\
             \"😀\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}"
        );
    }

    #[test]
    fn a_number_that_would_change_is_refused() {
        for kept in ["9007199254740992", "-9007199254740991", "100000000000000000", "1152921504606847000"] {
            let value: Value = serde_json::from_str(kept).unwrap();
            assert_eq!(text(&value).as_deref(), Ok(kept));
        }
        for changed in ["9007199254740993", "1152921504606846976", "-9223372036854775807"] {
            let value: Value = serde_json::from_str(changed).unwrap();
            assert!(matches!(text(&value), Err(CanonicalError::Inexact(..))), "{changed}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| {
            let mut value = Value::Null;
            for _ in 0..depth {
                value = Value::Array(vec![value]);
            }
            value
        };
        assert!(text(&nested(limits::MEMORY_VALUE_DEPTH_MAX)).is_ok());
        assert_eq!(text(&nested(limits::MEMORY_VALUE_DEPTH_MAX + 1)), Err(CanonicalError::Depth));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        assert!(strict(r#"{"a":{"b":1,"c":[2.5,"x",null,true,-3]}}"#).is_ok());
        let error = strict(r#"{"x":{"a":1,"a":2}}"#).unwrap_err();
        assert!(error.to_string().contains("`a` stands twice"), "{error}");
        // The same key in another spelling is the same key.
        assert!(strict(r#"{"a":1,"\u0061":2}"#).is_err());
    }

    #[test]
    fn a_line_of_more_values_than_it_may_have_is_refused() {
        let line = |count: usize| format!("[{}0]", "{\"\":0},".repeat(count));
        assert!(strict(&line(limits::MEMORY_LINE_NODES_MAX / 2 - 1)).is_ok());
        let error = strict(&line(limits::MEMORY_LINE_NODES_MAX / 2)).unwrap_err();
        assert!(error.to_string().contains("more than 8192 values"), "{error}");
        assert!(strict("1 2").is_err());
        assert_eq!(count(&serde_json::json!({ "a": [1, { "b": null }], "c": "x" })), 6);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let number = prop_oneof![
            (-(1_i64 << 53)..(1 << 53)).prop_map(Value::from),
            any::<f64>().prop_filter("finite", |d| d.is_finite()).prop_map(Value::from),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            number,
            any::<String>().prop_map(Value::String),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn a_canonical_text_reads_back_as_itself() {
        crate::testing::property(400, any_value(), |value| {
            let once = text(&value).unwrap();
            let back: Value = serde_json::from_str(&once).unwrap();
            assert_eq!(text(&back).unwrap(), once);
            assert_eq!(strict(&once).unwrap(), back);
        });
    }
}
