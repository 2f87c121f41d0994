//! Whether all that one list of patterns admits another admits too, and examples of what a pattern admits.
//!
//! Must hold: a yes is certain. A no may be one because the question is too hard for these rules: then the difference is told, not hidden.

use abi::authority::{CommandPattern, NamePattern, PathPattern};
use abi::ids::AgentName;

/// A pattern, or a name that is one.
pub trait Pattern: Sized + Clone + PartialEq + std::fmt::Display {
    /// Whether it certainly admits all that `other` admits.
    fn covers_all_of(&self, other: &Self) -> bool;
}

impl Pattern for AgentName {
    fn covers_all_of(&self, other: &AgentName) -> bool {
        self == other
    }
}

impl Pattern for NamePattern {
    /// Exact.
    fn covers_all_of(&self, other: &NamePattern) -> bool {
        let (mine, theirs) = (self.as_str(), other.as_str());
        match mine.strip_prefix('*') {
            None => mine == theirs,
            // `.parent`: what ends so, and has a label before it. `*.x.parent` ends so too.
            Some(parent) => {
                mine == theirs
                    || theirs
                        .trim_start_matches('*')
                        .strip_suffix(parent)
                        .is_some_and(|rest| !rest.is_empty())
            }
        }
    }
}

impl Pattern for PathPattern {
    fn covers_all_of(&self, other: &PathPattern) -> bool {
        let parts = |pattern: &PathPattern| {
            pattern.as_str().split('/').skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        parts_cover(&parts(self), &parts(other))
    }
}

/// Component by component; `**` in the covering one stands for any number of the other's.
fn parts_cover(mine: &[String], theirs: &[String]) -> bool {
    match (mine.split_first(), theirs.split_first()) {
        (None, None) => true,
        (Some((star, mine_rest)), _) if star == "**" => {
            parts_cover(mine_rest, theirs)
                || theirs.split_first().is_some_and(|(_, rest)| parts_cover(mine, rest))
        }
        (Some((one, mine)), Some((other, theirs))) => {
            other != "**" && word_covers(one, other) && parts_cover(mine, theirs)
        }
        _ => false,
    }
}

/// Whether `*` and letters of `mine` admit all that those of `theirs` do.
fn word_covers(mine: &str, theirs: &str) -> bool {
    mine == theirs || mine == "*" || (!theirs.contains('*') && plain_matches(mine, theirs))
}

fn plain_matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter_map(|at| text.get(at..)).any(|tail| plain_matches(rest, tail))
        }),
    }
}

impl Pattern for CommandPattern {
    fn covers_all_of(&self, other: &CommandPattern) -> bool {
        let mut theirs = other.as_str().split(' ');
        for mine in self.as_str().split(' ') {
            match (mine, theirs.next()) {
                ("**", _) => return true,
                (_, None | Some("**")) => return false,
                (mine, Some(word)) if word_covers(mine, word) => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }
}

/// What of `new` is not certainly in `old`, each a list of lists that are met: one pattern of each must admit.
pub fn uncovered<T: Pattern>(old: &[Vec<T>], new: &[Vec<T>]) -> Vec<T> {
    let mut found: Vec<T> = Vec::new();
    for bound in old {
        // One of the new lists lies within this bound, or the nearest of them tells what does not: of equals the last, the manifest's own.
        let outside = new.iter().rev().map(|list| {
            list.iter()
                .filter(|one| !bound.iter().any(|other| other.covers_all_of(one)))
                .cloned()
                .collect::<Vec<T>>()
        });
        let nearest = outside.min_by_key(Vec::len).unwrap_or_default();
        nearest.into_iter().for_each(|one| {
            if !found.contains(&one) {
                found.push(one)
            }
        });
    }
    found
}

/// Texts that a pattern admits: each `**` as nothing, one and two parts, each `*` as a word of its own and as nothing.
pub fn examples(pattern: &str, by: char) -> Vec<String> {
    let mut all = vec![String::new()];
    for part in pattern.split(by) {
        let choices: Vec<String> = match part {
            "**" => vec![String::new(), "example".into(), format!("example{by}example")],
            part if part.contains('*') => vec![part.replace('*', "example"), part.replace('*', "")],
            part => vec![part.to_owned()],
        };
        let joined = |start: &String, end: &String| match (start.is_empty(), end.is_empty()) {
            (_, true) => start.clone(),
            (true, false) => end.clone(),
            (false, false) => format!("{start}{by}{end}"),
        };
        all =
            all.iter().flat_map(|start| choices.iter().map(move |end| joined(start, end))).take(64).collect();
    }
    let root = |text: String| if by == '/' { format!("/{text}") } else { text };
    all.into_iter().map(root).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_cover_is_certain_and_examples_are_admitted() {
        for (mine, theirs, covers) in [
            ("/work/**", "/work/src/*.rs", true),
            ("/work/**", "/work/**", true),
            ("/work/**", "/work", true),
            ("/work/*", "/work/**", false),
            ("/**", "/etc/**", true),
            ("/work/**/a", "/work/x/y/a", true),
            ("/work/**/a", "/work/**/b/a", true),
            ("/work/*.rs", "/work/*.r", false),
            ("/work/*s", "/work/x.rs", true),
            ("/work/src/**", "/work/**", false),
        ] {
            assert_eq!(path(mine).covers_all_of(&path(theirs)), covers, "{mine} {theirs}");
            if covers {
                let given = examples(theirs, '/');
                assert!(
                    given.iter().all(|one| path(theirs).admits(one) && path(mine).admits(one)),
                    "{mine} {theirs} {given:?}"
                );
            }
        }
        let command = |text: &str| text.parse::<CommandPattern>().unwrap();
        for (mine, theirs, covers) in [
            ("cargo **", "cargo test **", true),
            ("cargo test", "cargo test **", false),
            ("cargo test **", "cargo test", true),
            ("cargo *", "cargo test", true),
            ("cargo *", "cargo", false),
            ("cargo t*", "cargo test", true),
        ] {
            assert_eq!(command(mine).covers_all_of(&command(theirs)), covers, "{mine} {theirs}");
        }
        let name = |text: &str| text.parse::<NamePattern>().unwrap();
        for (mine, theirs, covers) in [
            ("*.a.b", "x.a.b", true),
            ("*.a.b", "*.x.a.b", true),
            ("*.a.b", "a.b", false),
            ("*.a.b", "xa.b", false),
            ("a.b", "*.a.b", false),
        ] {
            assert_eq!(name(mine).covers_all_of(&name(theirs)), covers, "{mine} {theirs}");
        }
    }

    #[test]
    fn lists_that_are_met_are_compared_as_such() {
        let lists = |all: &[&[&str]]| -> Vec<Vec<PathPattern>> {
            all.iter().map(|list| list.iter().map(|one| path(one)).collect()).collect()
        };
        let old = lists(&[&["/work/**"], &["/work/src/**", "/docs"]]);
        assert_eq!(uncovered(&old, &old), []);
        let new = lists(&[&["/work/**"], &["/work/src/a", "/work/docs/**"]]);
        assert_eq!(uncovered(&old, &new), [path("/work/docs/**")]);
        assert_eq!(uncovered(&new, &lists(&[&[]])), []);
    }
}
