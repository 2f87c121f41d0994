//! Paths that git itself acts on, in every spelling that some file system takes for them.
//!
//! A patch that could write there would run programs of its own choosing wherever it is applied: hooks, filters, a configuration.

use alloc::string::String;

/// Names that git reads in any directory, and two that hooks are kept under.
const NAMES: [&str; 5] = [".git", ".gitmodules", ".gitattributes", ".githooks", ".husky"];
/// Beginnings of the short names that NTFS gives them: `GIT~1`, and the hashed forms (git's path.c, `is_ntfs_dotgit` and its kin).
const SHORT: [&str; 5] = ["git", "gitmod", "gi7eba", "gitatt", "gi7d29"];

/// Whether a path has a part that git, on some file system, takes for one of its own.
pub(super) fn is_gits(path: &str) -> bool {
    // A backslash divides paths where NTFS is.
    path.split(['/', '\\']).any(part_is_gits)
}

fn part_is_gits(part: &str) -> bool {
    let name = plain(part);
    NAMES.contains(&name.as_str())
        || name.split_once('~').is_some_and(|(begin, number)| {
            SHORT.contains(&begin) && !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        })
}

/// As a file system may read it: without what HFS+ ignores, in small letters, without an NTFS stream and without trailing dots and blanks.
fn plain(part: &str) -> String {
    let seen: String = part.chars().filter(|c| !is_ignored(*c)).flat_map(char::to_lowercase).collect();
    let name = seen.split(':').next().unwrap_or_default();
    name.trim_end_matches(['.', ' ']).into()
}

/// Apple's technical note 1150 and git's utf8.c, `next_hfs_char`; and other code points that are shown as nothing.
fn is_ignored(c: char) -> bool {
    matches!(
        u32::from(c),
        0x00ad | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x2064 | 0x206a..=0x206f | 0xfe00..=0xfe0f | 0xfeff
    )
}
