//! What differs between two lists of lines: Myers' algorithm (An O(ND) difference algorithm, 1986), within bounds.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// With its newline, if it has one.
pub(super) type Line<'a> = &'a [u8];

/// Lines of the old text that lines of the new one replace; one of the two may be empty. Between two edits both are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    pub old: Range<usize>,
    pub new: Range<usize>,
}

/// Lines removed and added together, above which texts are not compared further: it bounds the room that the search takes.
const DIFFERENCES_MAX: usize = 600;
/// Steps of the search.
const STEPS_MAX: usize = 8_000_000;

/// A text as lines.
pub(super) fn split(text: &[u8]) -> Vec<Line<'_>> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

/// The edits, in order.
pub(super) fn edits(old: &[Line<'_>], new: &[Line<'_>]) -> Vec<Edit> {
    let begin = old.iter().zip(new).take_while(|(one, two)| one == two).count();
    let (old, new) = (old.get(begin..).unwrap_or_default(), new.get(begin..).unwrap_or_default());
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(one, two)| one == two).count();
    let old = old.get(..old.len() - end).unwrap_or_default();
    let new = new.get(..new.len() - end).unwrap_or_default();
    let (gone, come) =
        compared(old, new).unwrap_or_else(|| (alloc::vec![true; old.len()], alloc::vec![true; new.len()]));
    joined(&gone, &come, begin)
}

/// Which lines are gone and which have come; none beyond the bounds.
fn compared(old: &[Line<'_>], new: &[Line<'_>]) -> Option<(Vec<bool>, Vec<bool>)> {
    // Lines as numbers: two are compared in one step, however long they are.
    let mut numbers = BTreeMap::new();
    let mut number = |line| {
        let next = numbers.len();
        *numbers.entry(line).or_insert(next)
    };
    let old: Vec<usize> = old.iter().map(|line| number(*line)).collect();
    let new: Vec<usize> = new.iter().map(|line| number(*line)).collect();
    let furthest = search(&old, &new)?;
    let (mut gone, mut come) = (alloc::vec![false; old.len()], alloc::vec![false; new.len()]);
    let (mut x, mut y) = (old.len(), new.len());
    for d in (1..furthest.len()).rev() {
        let before = furthest.get(d - 1)?;
        let k = diagonal(x, y);
        let (is_down, start) = step(before, d, k);
        if is_down {
            (x, y) = (start, from_diagonal(start, k + 1)?);
            *come.get_mut(y)? = true;
        } else {
            (x, y) = (start - 1, from_diagonal(start - 1, k - 1)?);
            *gone.get_mut(x)? = true;
        }
    }
    Some((gone, come))
}

fn diagonal(x: usize, y: usize) -> isize {
    x.cast_signed() - y.cast_signed()
}

fn from_diagonal(x: usize, k: isize) -> Option<usize> {
    usize::try_from(x.cast_signed() - k).ok()
}

/// For 0, 1, 2... differences how far one comes on each diagonal, from the lowest up; ends with the number that reaches the end of both.
fn search(old: &[usize], new: &[usize]) -> Option<Vec<Vec<usize>>> {
    let mut furthest: Vec<Vec<usize>> = Vec::new();
    let mut steps = 0usize;
    for d in 0..=DIFFERENCES_MAX.min(old.len() + new.len()) {
        let mut row = Vec::with_capacity(2 * d + 1);
        for k in -d.cast_signed()..=d.cast_signed() {
            let mut x = match furthest.last() {
                // Every other diagonal is reached with d differences; the ones between keep their place.
                Some(_) if (k + d.cast_signed()) % 2 != 0 => {
                    row.push(0);
                    continue;
                }
                Some(before) => step(before, d, k).1,
                None => 0,
            };
            while let Some(y) = from_diagonal(x, k) {
                match (old.get(x), new.get(y)) {
                    (Some(one), Some(two)) if one == two => x += 1,
                    _ => break,
                }
                steps += 1;
            }
            steps += 1;
            if steps > STEPS_MAX {
                return None;
            }
            row.push(x);
            if x >= old.len() && from_diagonal(x, k).is_some_and(|y| y >= new.len()) {
                row.resize(2 * d + 1, 0);
                furthest.push(row);
                return Some(furthest);
            }
        }
        furthest.push(row);
    }
    None
}

/// How diagonal `k` is reached with `d` differences from the row before: down, by a line that has come, or right, by one that is gone; and `x` then.
fn step(before: &[usize], d: usize, k: isize) -> (bool, usize) {
    // The row before has the diagonals -(d - 1) to d - 1.
    let at =
        |k: isize| usize::try_from(k + d.cast_signed() - 1).ok().and_then(|place| before.get(place)).copied();
    match (at(k - 1), at(k + 1)) {
        (Some(right), Some(down)) if right < down => (true, down),
        (Some(right), _) => (false, right + 1),
        (None, down) => (true, down.unwrap_or(0)),
    }
}

fn joined(gone: &[bool], come: &[bool], begin: usize) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    let (mut x, mut y) = (0, 0);
    loop {
        let run =
            |list: &[bool], from: usize| list.iter().skip(from).take_while(|is_changed| **is_changed).count();
        let (old, new) = (run(gone, x), run(come, y));
        if old + new > 0 {
            edits.push(Edit { old: begin + x..begin + x + old, new: begin + y..begin + y + new });
        } else if x >= gone.len() && y >= come.len() {
            return edits;
        } else {
            (x, y) = (x + 1, y + 1);
        }
        (x, y) = (x + old, y + new);
    }
}
