//! What of an answer fits one line of the control protocol.

use abi::limits;
use serde::Serialize;

/// Bytes that the lists of one answer may have together.
pub const BYTES_MAX: usize = limits::LINE_BYTES_MAX - 4096;

/// The first that fit the room, which becomes less by them, and how many do not.
pub fn first_that_fit<T: Serialize>(list: impl IntoIterator<Item = T>, room: &mut usize) -> (Vec<T>, u64) {
    let (mut kept, mut left_out) = (Vec::new(), 0);
    for one in list {
        if left_out == 0
            && let Some(rest) = room.checked_sub(bytes_of(&one))
        {
            *room = rest;
            kept.push(one);
        } else {
            left_out += 1;
        }
    }
    (kept, left_out)
}

/// The last that fit a line, in their order, and how many do not.
pub fn newest_that_fit<T: Serialize>(list: Vec<T>) -> (Vec<T>, u64) {
    let (mut kept, left_out) = first_that_fit(list.into_iter().rev(), &mut { BYTES_MAX });
    kept.reverse();
    (kept, left_out)
}

/// With the comma behind it.
pub fn bytes_of(value: &impl Serialize) -> usize {
    serde_json::to_string(value).map_or(usize::MAX, |text| text.len().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_its_end_without_gaps_and_counts_the_rest() {
        let list: Vec<String> = (0..1000).map(|n| format!("{n}{}", "\"".repeat(200))).collect();
        let mut room = 5_000;
        let (first, left_out) = first_that_fit(list.clone(), &mut room);
        assert_eq!(first, list[..first.len()]);
        assert_eq!(first.len() as u64 + left_out, 1000);
        assert_eq!(serde_json::to_string(&first).unwrap().len() + room, 5_001);
        // A short one behind a long one that does not fit would be a gap.
        let mixed = ["a".to_owned(), "b".repeat(50), "c".to_owned()];
        assert_eq!(first_that_fit(mixed, &mut 20), (vec!["a".to_owned()], 2));
        let (newest, left_out) = newest_that_fit(list.clone());
        assert_eq!(newest, list[left_out as usize..]);
        assert!(left_out > 0 && serde_json::to_string(&newest).unwrap().len() <= BYTES_MAX + 1);
    }
}
