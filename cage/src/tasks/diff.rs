//! A change set as a unified diff, as `git apply` takes it.
//!
//! Must hold: what cannot be shown as text is named, so that nobody takes the diff for the whole patch; the records are that.

use similar::TextDiff;
use std::io::{self, Read};
use std::time::Duration;
use verdict::patch::ChangeSet;
use verdict::tree::{Entry, quoted};

use super::base::Base;
use super::records::Contents;

/// Time for one file. What takes longer is shown coarsely.
const FILE_TIME_MAX: Duration = Duration::from_millis(500);
/// A longer file is shown as one that is not text.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The diff of a change set over its base.
pub fn of(changes: &ChangeSet, base: &Base, contents: &Contents) -> io::Result<String> {
    let mut diff = String::new();
    for (path, change) in changes.changes() {
        let old = match &change.old {
            Some(Entry::Link { target }) => Some(("120000", target.clone().into_bytes())),
            Some(Entry::File { is_executable, .. }) => {
                Some((mode(*is_executable), base.content(path, FILE_BYTES_MAX + 1)?))
            }
            Some(Entry::Directory) | None => None,
        };
        let new = match &change.new {
            Some(Entry::Link { target }) => Some(("120000", target.clone().into_bytes())),
            Some(Entry::File { is_executable, .. }) => {
                let mut content = Vec::new();
                if let Some(lying) = contents.open(path) {
                    lying.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
                }
                Some((mode(*is_executable), content))
            }
            Some(Entry::Directory) | None => None,
        };
        // A link and a file of one name are two things to git.
        match (&old, &new) {
            (Some((was, _)), Some((is, _))) if (*was == "120000") != (*is == "120000") => {
                one(&mut diff, path, old, None);
                one(&mut diff, path, None, new);
            }
            _ => one(&mut diff, path, old, new),
        }
    }
    Ok(diff)
}

const fn mode(is_executable: bool) -> &'static str {
    if is_executable { "100755" } else { "100644" }
}

type Side = Option<(&'static str, Vec<u8>)>;

fn one(diff: &mut String, path: &str, old: Side, new: Side) {
    let (from, to) = (quoted(&format!("a/{path}")), quoted(&format!("b/{path}")));
    let head = match (&old, &new) {
        (None, None) => return, // directories are nothing to git
        (None, Some((mode, _))) => format!("new file mode {mode}\n"),
        (Some((mode, _)), None) => format!("deleted file mode {mode}\n"),
        (Some((was, _)), Some((is, _))) if was != is => format!("old mode {was}\nnew mode {is}\n"),
        _ => String::new(),
    };
    diff.push_str(&format!("diff --git {from} {to}\n{head}"));
    let from = if old.is_some() { from } else { "/dev/null".into() };
    let to = if new.is_some() { to } else { "/dev/null".into() };
    let (old, new) = (bytes(old), bytes(new));
    match (text(&old), text(&new)) {
        (Some(old), Some(new)) => {
            let text = TextDiff::configure().timeout(FILE_TIME_MAX).diff_lines(old, new);
            diff.push_str(&text.unified_diff().context_radius(3).header(&from, &to).to_string());
        }
        _ if old == new => {}
        _ => diff.push_str(&format!("Binary files {from} and {to} differ\n")),
    }
}

fn bytes(side: Side) -> Vec<u8> {
    side.map(|(_, bytes)| bytes).unwrap_or_default()
}

fn text(bytes: &[u8]) -> Option<&str> {
    let is_short = bytes.len() as u64 <= FILE_BYTES_MAX;
    std::str::from_utf8(bytes).ok().filter(|text| is_short && !text.contains('\0'))
}
