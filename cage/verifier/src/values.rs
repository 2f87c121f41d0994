//! Results that later calls may refer to.
//!
//! Must hold: never more than [`limits::TOOL_VALUES_MAX`] of them and [`limits::TOOL_VALUES_BYTES_MAX`] bytes; the oldest go first, and
//! nothing else ever takes a number of theirs.

use std::collections::VecDeque;
use std::rc::Rc;

use abi::limits;
use serde_json::{Map, Value};

/// The results.
#[derive(Debug, Default)]
pub struct Values {
    kept: VecDeque<(u32, Rc<[u8]>)>,
    bytes: usize,
}

impl Values {
    /// Keeps a result. One that is larger than all room is not kept.
    pub fn keep(&mut self, number: u32, bytes: Rc<[u8]>) {
        if bytes.len() > limits::TOOL_VALUES_BYTES_MAX {
            return;
        }
        self.bytes += bytes.len();
        self.kept.push_back((number, bytes));
        while self.bytes > limits::TOOL_VALUES_BYTES_MAX || self.kept.len() > limits::TOOL_VALUES_MAX {
            let Some((_, oldest)) = self.kept.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(oldest.len());
        }
    }

    /// What a reference stands for.
    pub fn of(&self, number: u32) -> Option<Rc<[u8]>> {
        self.kept.iter().find(|(kept, _)| *kept == number).map(|(_, bytes)| Rc::clone(bytes))
    }
}

/// Arguments with the text of each result in place of its reference. The error names what is no text or not there.
pub fn filled(arguments: &Value, of: &dyn Fn(u32) -> Option<Rc<[u8]>>) -> Result<Value, u32> {
    if let Some(number) = abi::tools::reference(arguments) {
        let bytes = of(number).ok_or(number)?;
        return std::str::from_utf8(&bytes).map(Value::from).map_err(|_| number);
    }
    Ok(match arguments {
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| filled(item, of)).collect::<Result<_, _>>()?)
        }
        Value::Object(members) => {
            let filled = members.iter().map(|(name, value)| Ok((name.clone(), filled(value, of)?)));
            Value::Object(filled.collect::<Result<Map<_, _>, u32>>()?)
        }
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_go_first_by_number_and_by_bytes() {
        let mut values = Values::default();
        (1..=limits::TOOL_VALUES_MAX as u32 + 1).for_each(|number| values.keep(number, Rc::from(&b"x"[..])));
        assert!(values.of(1).is_none() && values.of(2).is_some());
        values.keep(999, vec![0; limits::TOOL_VALUES_BYTES_MAX].into());
        assert!(values.of(2).is_none() && values.of(999).is_some());
        values.keep(1000, vec![0; limits::TOOL_VALUES_BYTES_MAX + 1].into());
        assert!(
            values.of(1000).is_none() && values.of(999).is_some(),
            "nothing is given up for what cannot be kept"
        );
    }

    #[test]
    fn references_are_filled_wherever_they_stand() {
        let of = |number| (number == 1).then(|| Rc::from(&b"text"[..]));
        let arguments = json!({"a": {"value": 1}, "b": [1, {"value": 1}], "c": {"value": 1, "d": 2}});
        let expected = json!({"a": "text", "b": [1, "text"], "c": {"value": 1, "d": 2}});
        assert_eq!(filled(&arguments, &of), Ok(expected));
        assert_eq!(filled(&json!([{"value": 2}]), &of), Err(2));
        assert_eq!(filled(&json!({"value": 1}), &|_| Some(Rc::from(&[0xff_u8][..]))), Err(1), "no text");
    }
}
