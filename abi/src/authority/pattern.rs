//! Patterns of paths, commands and names, as rules write them, and what they admit.
//!
//! Must hold: a pattern is checked once, when it is read; comparing allocates nothing and takes time bounded by the product of the two lengths.
//! What compares is `inline`: it is built with `verdict`, for speed, though the rest of this crate is built for size.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::ids::HostName;
use crate::limits;

/// A pattern of absolute paths: `*` stands for any characters of one component, `**` as a whole component for any number of
/// components, none included. At most [`limits::PATH_BYTES_MAX`] bytes, no `.` or `..`, at most 4 `**`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PathPattern {
    text: String,
    /// Bytes before the first component with a `*`, without the `/` before it.
    plain: usize,
}

/// A pattern of commands, word by word, as in `cargo test *`: `*` within a word stands for any characters, `**` as the last word for any
/// number of further words. The first word is compared with the program as it was called, and is never a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CommandPattern {
    text: String,
}

/// A host name, or `*.` and a name: one or more labels below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NamePattern {
    text: String,
}

macro_rules! pattern {
    ($type:ident) => {
        impl $type {
            /// As it was written.
            pub fn as_str(&self) -> &str {
                &self.text
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }
        impl From<$type> for String {
            fn from(pattern: $type) -> String {
                pattern.text
            }
        }
        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<$type, String> {
                text.parse()
            }
        }
    };
}
pattern!(PathPattern);
pattern!(CommandPattern);
pattern!(NamePattern);

/// Whether a path is absolute and in its one spelling: no empty, `.` or `..` part, no control character, not longer than a path may be. `/` is.
#[inline]
pub fn is_plain(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let part_ok = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= limits::PATH_BYTES_MAX
        && !path.bytes().any(|byte| byte.is_ascii_control())
        && (rest.is_empty() || rest.split('/').all(part_ok))
}

/// What is left of `path` below `above`, without the `/` between; none if it is elsewhere.
#[inline]
fn below<'a>(path: &'a str, above: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(above)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

/// The parts of what stands below a directory; none of an empty text.
#[inline]
fn parts(rest: &str) -> impl Iterator<Item = &str> + Clone {
    rest.split('/').filter(|part| !part.is_empty())
}

/// Whether `*` in the pattern, for any characters, can make it the text. After a mismatch only the last `*` is tried longer: what
/// an earlier one could take, the last can take too.
#[inline]
fn word_matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    let mut last_star: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', rest)), _) => {
                last_star = Some((rest, text));
                pattern = rest;
            }
            (Some((one, rest)), Some((other, text_rest))) if one == other => {
                (pattern, text) = (rest, text_rest);
            }
            (None, None) => return true,
            _ => {
                let Some((after, from)) = last_star else { return false };
                let Some((_, from)) = from.split_first() else { return false };
                last_star = Some((after, from));
                (pattern, text) = (after, from);
            }
        }
    }
}

/// As [`word_matches`], part by part, with `**` for the star. With `or_below` a pattern that is used up before the path is enough.
#[inline]
fn parts_match(pattern: &str, path: &str, or_below: bool) -> bool {
    let (mut pattern, mut path) = (parts(pattern), parts(path));
    let mut last_wide = None;
    loop {
        let (mut next_pattern, mut next_path) = (pattern.clone(), path.clone());
        match (next_pattern.next(), next_path.next()) {
            (Some("**"), _) => {
                last_wide = Some((next_pattern.clone(), path.clone()));
                pattern = next_pattern;
            }
            (Some(one), Some(other)) if word_matches(one, other) => {
                (pattern, path) = (next_pattern, next_path);
            }
            (None, None) => return true,
            (None, Some(_)) if or_below => return true,
            _ => {
                let Some((after, mut from)) = last_wide else { return false };
                if from.next().is_none() {
                    return false;
                }
                (pattern, path) = (after.clone(), from.clone());
                last_wide = Some((after, from));
            }
        }
    }
}

impl PathPattern {
    /// The directory or file that stands before anything with a `*`; empty for `/`.
    #[inline]
    fn plain(&self) -> &str {
        self.text.get(..self.plain).unwrap_or("")
    }

    /// What stands behind [`Self::plain`], without the `/` between.
    #[inline]
    fn rest(&self) -> &str {
        self.text.get(self.plain..).unwrap_or("").trim_start_matches('/')
    }

    /// Whether it admits a path in its one spelling.
    #[inline]
    pub fn admits(&self, path: &str) -> bool {
        let Some(tail) = below(path.trim_end_matches('/'), self.plain()) else { return false };
        match self.rest() {
            "" => tail.is_empty(),
            "**" => true,
            rest => parts_match(rest, tail, false),
        }
    }

    /// Whether it admits the path or a directory above it: what `never` says of a directory it says of all in it.
    #[inline]
    pub fn covers(&self, path: &str) -> bool {
        let Some(tail) = below(path.trim_end_matches('/'), self.plain()) else { return false };
        match self.rest() {
            "" | "**" => true,
            rest => parts_match(rest, tail, true),
        }
    }

    /// Whether it admits the directory and all that could be in it.
    #[inline]
    pub fn admits_all_in(&self, directory: &str) -> bool {
        (self.text == "/**" || self.text.ends_with("/**")) && self.admits(directory)
    }

    /// Whether it could admit something in the directory, or the directory itself. Says yes where it is in doubt.
    #[inline]
    pub fn meets(&self, directory: &str) -> bool {
        let directory = directory.trim_end_matches('/');
        below(self.plain(), directory).is_some()
            || (self.plain != self.text.len() && below(directory, self.plain()).is_some())
    }
}

impl CommandPattern {
    /// Whether it admits a program with its arguments.
    #[inline]
    pub fn admits(&self, command: &[String]) -> bool {
        let mut words = self.text.split(' ');
        let mut given = command.iter();
        match (words.next(), given.next()) {
            (Some(program), Some(called)) if program == called => {}
            _ => return false,
        }
        loop {
            match (words.next(), given.next()) {
                (Some("**"), _) => return true,
                (Some(word), Some(given)) if word_matches(word, given) => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

impl NamePattern {
    /// Whether it admits a host name.
    #[inline]
    pub fn admits(&self, name: &HostName) -> bool {
        self.holds(name.as_str())
    }

    /// Whether it admits a name, or each name that another pattern (`*.SUFFIX`) admits.
    #[inline]
    pub fn holds(&self, name: &str) -> bool {
        match self.text.strip_prefix("*.") {
            None => self.text == name,
            Some(parent) => {
                name.strip_suffix(parent).is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
            }
        }
    }
}

impl FromStr for PathPattern {
    type Err = String;
    fn from_str(text: &str) -> Result<PathPattern, String> {
        let part_ok = |part: &str| part == "**" || !part.contains("**");
        let wide = text.matches("**").count();
        if text == "/" || !is_plain(text) || !text.split('/').all(part_ok) || wide > 4 {
            return Err(format!(
                "`{}` is not a pattern of paths: write an absolute path without `.` and `..`, with `*` inside a \
                 component and `**` for any number of components, like \"/work/src/**\"",
                text.escape_debug()
            ));
        }
        let plain = match text.find('*') {
            None => text.len(),
            Some(star) => text.get(..star).and_then(|before| before.rfind('/')).unwrap_or(0),
        };
        Ok(PathPattern { text: text.to_owned(), plain })
    }
}

impl FromStr for CommandPattern {
    type Err = String;
    fn from_str(text: &str) -> Result<CommandPattern, String> {
        let words: Vec<&str> = text.split(' ').collect();
        let first_ok = words.first().is_some_and(|first| !first.is_empty() && !first.contains('*'));
        let rest_ok = words.iter().enumerate().all(|(place, word)| {
            !word.is_empty() && (!word.contains("**") || (*word == "**" && place + 1 == words.len()))
        });
        if !first_ok
            || !rest_ok
            || text.len() > limits::COMMAND_ARG_BYTES_MAX
            || text.chars().any(char::is_control)
        {
            return Err(format!(
                "`{}` is not a pattern of commands: write words with one blank between, the first without `*`, \
                 `**` only as the last, like \"cargo test **\"",
                text.escape_debug()
            ));
        }
        Ok(CommandPattern { text: text.to_owned() })
    }
}

impl FromStr for NamePattern {
    type Err = String;
    fn from_str(text: &str) -> Result<NamePattern, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        match name.parse::<HostName>() {
            Ok(name) if name.as_str().contains('.') => {
                let stars = if text.starts_with("*.") { "*." } else { "" };
                Ok(NamePattern { text: format!("{stars}{name}") })
            }
            _ => Err(format!(
                "`{}` is not a name: write a host name, or `*.` and one, like \"docs.rs\"",
                text.escape_debug()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_path_pattern_admits_what_it_says_and_nothing_beside() {
        let cases = [
            (
                "/work/**",
                &["/work", "/work/a", "/work/a/b"][..],
                &["/", "/workshop", "/wor", "/a/work/b"][..],
            ),
            ("/work/a", &["/work/a"], &["/work", "/work/a/b", "/work/ab"]),
            ("/work/*.rs", &["/work/a.rs", "/work/.rs"], &["/work/a/b.rs", "/work/a.rsx", "/work"]),
            ("/**/x/*/y", &["/x/1/y", "/a/x/x/1/y", "/x/1/x/1/y"], &["/x/y", "/x/1/2/y", "/x/1/y/z"]),
            ("/a/**/b/**", &["/a/b", "/a/c/b/d", "/a/b/b"], &["/a", "/a/c", "/b/a/b"]),
            ("/**", &["/", "/a", "/a/b"], &[]),
            ("/a*b*c/**", &["/abc", "/a1b2c/d", "/abcbc"], &["/ab", "/acb"]),
        ];
        for (pattern, admitted, refused) in cases {
            admitted.iter().for_each(|text| assert!(path(pattern).admits(text), "{pattern} {text}"));
            refused.iter().for_each(|text| assert!(!path(pattern).admits(text), "{pattern} {text}"));
        }
    }

    #[test]
    fn what_never_covers_is_the_path_and_all_in_it() {
        assert!(path("/work/.env").covers("/work/.env"));
        assert!(path("/work/.env").covers("/work/.env/x"));
        assert!(path("/**/.ssh").covers("/home/agent/.ssh/key"));
        assert!(path("/work/*.pem").covers("/work/a.pem/b"));
        assert!(!path("/work/.env").covers("/work/.envrc"));
        assert!(!path("/**/.ssh").covers("/home/agent/.sshx"));
    }

    #[test]
    fn a_directory_is_admitted_whole_only_by_a_pattern_that_ends_wide() {
        assert!(path("/work/**").admits_all_in("/work/src"));
        assert!(path("/**").admits_all_in("/"));
        assert!(path("/**").admits_all_in("/etc"));
        assert!(!path("/work/*").admits_all_in("/work/src"));
        assert!(!path("/work/src/**").admits_all_in("/work"));
        assert!(!path("/work/src").admits_all_in("/work/src"));
    }

    #[test]
    fn a_pattern_meets_every_directory_it_could_admit_something_in() {
        for (pattern, directory, met) in [
            ("/work/a/b", "/work", true),
            ("/work/a/b", "/", true),
            ("/work/a", "/work/a", true),
            ("/work/a", "/work/a/b", false),
            ("/work/a/**", "/work/a/b/c", true),
            ("/work/a/**", "/work/b", false),
            ("/**/x", "/anything", true),
            ("/work/ab", "/work/a", false),
        ] {
            assert_eq!(path(pattern).meets(directory), met, "{pattern} {directory}");
        }
    }

    #[test]
    fn a_command_is_compared_word_by_word() {
        let admits = |pattern: &str, command: &[&str]| {
            let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
            pattern.parse::<CommandPattern>().unwrap().admits(&command)
        };
        assert!(admits("cargo test **", &["cargo", "test"]));
        assert!(admits("cargo test **", &["cargo", "test", "--", "a b"]));
        assert!(admits("git log --max-count=*", &["git", "log", "--max-count=3"]));
        assert!(!admits("git status", &["git", "status", "-s"]));
        assert!(!admits("git status", &["git"]));
        assert!(!admits("git status", &["git status"]));
        assert!(!admits("git status", &["/tmp/git", "status"]));
        assert!(!admits("git *", &["git"]));
        assert!(!admits("git", &[]));
    }

    #[test]
    fn a_name_below_another_is_admitted_by_its_star_alone() {
        let admits = |pattern: &str, name: &str| {
            pattern.parse::<NamePattern>().unwrap().admits(&name.parse().unwrap())
        };
        assert!(admits("docs.rs", "docs.rs"));
        assert!(admits("*.docs.rs", "a.docs.rs"));
        assert!(admits("*.docs.rs", "a.b.docs.rs"));
        assert!(!admits("*.docs.rs", "docs.rs"));
        assert!(!admits("*.docs.rs", "evildocs.rs"));
        assert!(!admits("docs.rs", "a.docs.rs"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "/", "work", "/a//b", "/a/../b", "/a/./b", "/a/", "/a**", "/**/**/**/**/**", "/a\nb"]
        {
            assert!(text.parse::<PathPattern>().is_err(), "{text:?}");
        }
        for text in ["", "*", "a  b", "a ** b", "a b**", "a\tb"] {
            assert!(text.parse::<CommandPattern>().is_err(), "{text:?}");
        }
        for text in ["", "*", "*.com", "localhost", "a.*.b", "**.a.b"] {
            assert!(text.parse::<NamePattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_hostile_pattern_and_path_are_compared_in_bounded_time() {
        let pattern = path(&format!("/**/{}/**/{}/**/z", "a/*".repeat(3), "*a*a*a*a*a*a*b/*"));
        let long = format!("/{}", "a/".repeat(2000)).trim_end_matches('/').to_owned();
        assert!(!pattern.admits(&long));
    }
}
