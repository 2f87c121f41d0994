//! Unified diffs, in the form that `git apply` takes.
//!
//! Must hold: time and room are bounded by the contents' length times a constant, whatever the contents are; where two texts differ too much
//! to be compared line by line within that, what lies between their common begin and end is shown as replaced.

mod lines;

use abi::ids::Digest;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::patch::{Change, ChangeSet};
use crate::tree::{Entry, quoted};
use lines::{Edit, Line};

/// Lines around a change that are shown with it.
const CONTEXT: usize = 3;

/// A diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    pub text: Vec<u8>,
    /// Who applies it gets the files and links of the result. Not so where one is binary, or a directory is added or removed for itself
    /// (git keeps no empty ones): the change set's own records are exact.
    pub is_complete: bool,
}

/// One side of a file or a link: its mode as git has it, and its contents or target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side<'a> {
    mode: &'static str,
    /// None: nobody has the contents.
    bytes: Option<&'a [u8]>,
}

/// The diff of a change set. `contents` gives the bytes of a digest.
pub fn unified<'a>(changes: &'a ChangeSet, contents: impl Fn(&Digest) -> Option<&'a [u8]>) -> Diff {
    let mut diff = Diff { text: Vec::new(), is_complete: true };
    for (path, change) in changes.changes() {
        let (old, new) = (side(&change.old, &contents), side(&change.new, &contents));
        diff.is_complete &= !is_bare_directory(changes, path, change);
        match (old, new) {
            (None, None) => {}
            // Another kind of thing is in git a removal and an addition.
            (Some(old), Some(new)) if (old.mode == LINK) != (new.mode == LINK) => {
                diff.part(path, Some(old), None);
                diff.part(path, None, Some(new));
            }
            (old, new) => diff.part(path, old, new),
        }
    }
    diff
}

/// The hunks between two texts, as a question shows what an edit does. Binary contents: none.
pub fn of_texts(path: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> Vec<u8> {
    let mut diff = Diff { text: Vec::new(), is_complete: true };
    let side = |bytes| Side { mode: FILE, bytes: Some(bytes) };
    diff.part(path, old.map(side), new.map(side));
    diff.text
}

const FILE: &str = "100644";
const EXECUTABLE: &str = "100755";
const LINK: &str = "120000";

fn side<'a>(entry: &'a Option<Entry>, contents: &impl Fn(&Digest) -> Option<&'a [u8]>) -> Option<Side<'a>> {
    match entry.as_ref()? {
        Entry::Directory => None,
        Entry::File { is_executable, sha256, .. } => {
            let mode = if *is_executable { EXECUTABLE } else { FILE };
            Some(Side { mode, bytes: contents(sha256) })
        }
        Entry::Link { target } => Some(Side { mode: LINK, bytes: Some(target.as_bytes()) }),
    }
}

/// git knows directories by what is in them. One that is added with nothing in it, and one that is removed, which may leave one above it
/// empty or not, are not told by a diff.
fn is_bare_directory(changes: &ChangeSet, path: &str, change: &Change) -> bool {
    let prefix = format!("{path}/");
    let holds = |entry: fn(&Change) -> &Option<Entry>| {
        let mut below = changes.changes().filter(|(path, _)| path.starts_with(&prefix));
        below.any(|(_, change)| matches!(entry(change), Some(Entry::File { .. } | Entry::Link { .. })))
    };
    let is_directory = |entry: &Option<Entry>| *entry == Some(Entry::Directory);
    (is_directory(&change.new) && !holds(|change| &change.new))
        || (is_directory(&change.old) && !holds(|change| &change.old))
}

impl Diff {
    fn say(&mut self, line: &str) {
        self.text.extend_from_slice(line.as_bytes());
        self.text.push(b'\n');
    }

    /// One `diff --git`. At least one of the two is there.
    fn part(&mut self, path: &str, old: Option<Side<'_>>, new: Option<Side<'_>>) {
        let (from, to) = (quoted(&format!("a/{path}")), quoted(&format!("b/{path}")));
        self.say(&format!("diff --git {from} {to}"));
        match (old, new) {
            (None, Some(new)) => self.say(&format!("new file mode {}", new.mode)),
            (Some(old), None) => self.say(&format!("deleted file mode {}", old.mode)),
            (Some(old), Some(new)) if old.mode != new.mode => {
                self.say(&format!("old mode {}", old.mode));
                self.say(&format!("new mode {}", new.mode));
            }
            _ => {}
        }
        let from = old.map_or(String::from("/dev/null"), |_| from);
        let to = new.map_or(String::from("/dev/null"), |_| to);
        // git takes what has a NUL for binary.
        let is_text = |bytes: &&[u8]| !bytes.contains(&0);
        match (text(old).filter(is_text), text(new).filter(is_text)) {
            (Some(old), Some(new)) if old == new => {}
            (Some(old), Some(new)) => {
                self.say(&format!("--- {from}{}", end_of_name(&from)));
                self.say(&format!("+++ {to}{}", end_of_name(&to)));
                self.hunks(&lines::split(old), &lines::split(new));
            }
            _ if matches!((old, new), (Some(old), Some(new)) if old.bytes == new.bytes && old.bytes.is_some()) =>
                {}
            _ => {
                self.say(&format!("Binary files {from} and {to} differ"));
                self.is_complete = false;
            }
        }
    }

    fn hunks(&mut self, old: &[Line<'_>], new: &[Line<'_>]) {
        let edits = lines::edits(old, new);
        let mut rest = edits.as_slice();
        while let Some(first) = rest.first() {
            let near = |pair: &[Edit]| match pair {
                [one, two] => two.old.start - one.old.end <= 2 * CONTEXT,
                _ => false,
            };
            let together = 1 + rest.windows(2).take_while(|pair| near(pair)).count();
            let (hunk, after) = rest.split_at_checked(together).unwrap_or((rest, &[]));
            let last = hunk.last().unwrap_or(first);
            let before = first.old.start.min(CONTEXT);
            let behind = (old.len() - last.old.end).min(CONTEXT);
            let from = first.old.start - before..last.old.end + behind;
            let to = first.new.start - before..last.new.end + behind;
            self.say(&format!("@@ -{} +{} @@", place(&from), place(&to)));
            let mut at = from.start;
            for edit in hunk {
                self.lines(b' ', old.get(at..edit.old.start));
                self.lines(b'-', old.get(edit.old.clone()));
                self.lines(b'+', new.get(edit.new.clone()));
                at = edit.old.end;
            }
            self.lines(b' ', old.get(at..from.end));
            rest = after;
        }
    }

    fn lines(&mut self, sign: u8, lines: Option<&[Line<'_>]>) {
        for line in lines.unwrap_or_default() {
            self.text.push(sign);
            self.text.extend_from_slice(line);
            if !line.ends_with(b"\n") {
                self.text.extend_from_slice(b"\n\\ No newline at end of file\n");
            }
        }
    }
}

fn text(side: Option<Side<'_>>) -> Option<&[u8]> {
    side.map_or(Some(&[]), |side| side.bytes)
}

/// git ends a name that has a blank with a tab, so that it is seen where it ends.
fn end_of_name(name: &str) -> &'static str {
    if name.contains(' ') && !name.starts_with('"') { "\t" } else { "" }
}

fn place(range: &core::ops::Range<usize>) -> String {
    let first = if range.is_empty() { range.start } else { range.start + 1 };
    format!("{first},{}", range.len())
}
