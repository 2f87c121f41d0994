//! The settings of the Kernel Self-Protection Project (kernel-config/kspp.toml) against the kernels that are built and the command line
//! that they are given. Whatever is recommended is in force, or excepted with a reason and the value it has instead.
//!
//! nulld/src/sysctl.rs holds the part `sysctl` of the list.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::kernel::Kind;
use crate::tree::Tree;

const FILE: &str = "kernel-config/kspp.toml";

/// The whole list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    config: Config,
    command_line: CommandLine,
    #[serde(rename = "sysctl")]
    _sysctl: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    wanted: BTreeMap<String, String>,
    /// Options of the list that this Linux does not have, with what became of them.
    gone: BTreeMap<String, String>,
    exceptions: BTreeMap<String, Exception>,
    exceptions_host: BTreeMap<String, Exception>,
    exceptions_guest: BTreeMap<String, Exception>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    value: String,
    why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandLine {
    /// Name to value; empty for a word without one.
    wanted: BTreeMap<String, String>,
    exceptions: BTreeMap<String, Unsaid>,
    never: Vec<String>,
}

/// A word that is not on the command line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unsaid {
    why: String,
    /// The option that does the same, `NAME=value`.
    config: Option<String>,
}

impl List {
    pub fn read(tree: &Tree) -> Result<List> {
        let text = std::fs::read_to_string(tree.path(FILE)).with_context(|| format!("cannot read {FILE}"))?;
        toml::from_str(&text).with_context(|| format!("{FILE} is wrong"))
    }

    /// Fails with all that is neither followed nor excepted. `options` are CONFIG_NAME to value; `known`, where the source is at hand,
    /// all names of this Linux; `command_line` is what the boot loader adds to the built-in one.
    pub fn hold(
        &self,
        kind: Kind,
        options: &BTreeMap<String, String>,
        known: Option<&BTreeSet<String>>,
        command_line: &str,
    ) -> Result<()> {
        let mut wrong = self.config.compare(kind, options);
        if let Some(known) = known {
            wrong.extend(self.config.compare_names(known));
        }
        let line = format!("{} {command_line}", option(options, "CMDLINE"));
        wrong.extend(self.command_line.forbidden(&line));
        if kind == Kind::Host {
            wrong.extend(self.command_line.compare(options, &line));
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!(
            "{} kernel: settings that are neither as recommended nor excepted with a true reason in {FILE}:\n  {}",
            kind.name(),
            wrong.join("\n  ")
        )
    }
}

impl Config {
    fn compare(&self, kind: Kind, options: &BTreeMap<String, String>) -> Vec<String> {
        let own = match kind {
            Kind::Host => &self.exceptions_host,
            Kind::Guest => &self.exceptions_guest,
        };
        let mut wrong = Vec::new();
        for (name, wanted) in &self.wanted {
            let has = option(options, name);
            match (own.get(name), self.exceptions.get(name)) {
                (Some(_), Some(_)) => wrong.push(format!("{name}: is excepted twice")),
                (None, None) if has != wanted => {
                    wrong.push(format!("{name}: is {has}, {wanted} is recommended: set it or write why not"));
                }
                (None, None) => {}
                (Some(exception), None) | (None, Some(exception)) => {
                    if exception.value == *wanted || has != exception.value {
                        let said = &exception.value;
                        wrong.push(format!(
                            "{name}: is {has}, its exception says {said}, {wanted} is recommended"
                        ));
                    }
                    if exception.why.trim().is_empty() {
                        wrong.push(format!("{name}: its exception has no reason"));
                    }
                }
            }
        }
        let excepted = own.keys().chain(self.exceptions.keys());
        wrong.extend(
            excepted
                .filter(|name| !self.wanted.contains_key(*name))
                .map(|name| format!("{name}: is excepted, but nowhere recommended")),
        );
        wrong
    }

    fn compare_names(&self, known: &BTreeSet<String>) -> Vec<String> {
        let unknown = self.wanted.keys().filter(|name| !known.contains(*name));
        let unknown =
            unknown.map(|name| format!("{name}: this Linux has no such option: it belongs to `gone`"));
        let back = self.gone.keys().filter(|name| known.contains(*name));
        let back = back.map(|name| format!("{name}: is not gone, this Linux has it"));
        unknown.chain(back).collect()
    }
}

impl CommandLine {
    fn compare(&self, options: &BTreeMap<String, String>, line: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, wanted) in &self.wanted {
            let said: Vec<&str> =
                words(line).filter(|(word, _)| word == name).map(|(_, value)| value).collect();
            match self.exceptions.get(name) {
                None if said != [wanted.as_str()] => {
                    wrong.push(format!("command line: `{name}={wanted}` is recommended, it says {said:?}"));
                }
                None => {}
                Some(_) if !said.is_empty() => {
                    wrong.push(format!("command line: `{name}` is there, its exception says it is not"));
                }
                Some(unsaid) => {
                    if unsaid.why.trim().is_empty() {
                        wrong.push(format!("command line: the exception of `{name}` has no reason"));
                    }
                    if let Some((option_name, value)) =
                        unsaid.config.as_deref().and_then(|text| text.split_once('='))
                        && option(options, option_name) != value
                    {
                        wrong.push(format!(
                            "command line: `{name}` stands in no option: {option_name} is not {value}"
                        ));
                    }
                }
            }
        }
        let unknown = self.exceptions.keys().filter(|name| !self.wanted.contains_key(*name));
        wrong.extend(
            unknown.map(|name| format!("command line: `{name}` is excepted, but nowhere recommended")),
        );
        wrong
    }

    fn forbidden(&self, line: &str) -> Vec<String> {
        let found = words(line).filter(|(name, _)| self.never.iter().any(|never| never == name));
        found.map(|(name, _)| format!("command line: `{name}` undoes what is recommended")).collect()
    }
}

/// An option's value without quotes; `n` where there is none.
fn option<'a>(options: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    options.get(&format!("CONFIG_{name}")).map_or("n", |value| value.trim_matches('"'))
}

fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split_ascii_whitespace().map(|word| word.split_once('=').unwrap_or((word, "")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iso::COMMAND_LINE;
    use crate::kernel::Fragments;

    fn list() -> List {
        List::read(&Tree::find().unwrap()).unwrap()
    }

    fn options(kind: Kind) -> BTreeMap<String, String> {
        Fragments::of(&Tree::find().unwrap(), kind).unwrap().options
    }

    fn complaint(options: &BTreeMap<String, String>, kind: Kind, line: &str) -> String {
        list().hold(kind, options, None, line).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn both_kernels_follow_every_recommendation_or_say_why_not() {
        for kind in [Kind::Host, Kind::Guest] {
            assert_eq!(complaint(&options(kind), kind, COMMAND_LINE), "", "{kind:?}");
        }
        assert!(list().config.wanted.len() > 100 && list().command_line.wanted.len() > 10, "the list is cut");
    }

    #[test]
    fn any_recommended_option_that_is_turned_round_is_named() {
        let list = list();
        for kind in [Kind::Host, Kind::Guest] {
            let options = options(kind);
            for name in list.config.wanted.keys() {
                let mut options = options.clone();
                let other = if option(&options, name) == "n" { "y" } else { "n" };
                options.insert(format!("CONFIG_{name}"), other.to_owned());
                let error = list.hold(kind, &options, None, COMMAND_LINE).unwrap_err().to_string();
                assert!(error.contains(&format!("\n  {name}: is {other}")), "{kind:?} {name}: {error}");
            }
        }
    }

    #[test]
    fn an_exception_without_a_reason_or_a_recommendation_is_named() {
        let mut list = list();
        let why = |why: &str| Exception { value: "n".to_owned(), why: why.to_owned() };
        list.config.exceptions.insert("WERROR".to_owned(), why(" "));
        list.config.exceptions.insert("NOBODY_WANTS".to_owned(), why("because"));
        list.config.exceptions_host.insert("CFI_CLANG".to_owned(), why("again"));
        let error = list.hold(Kind::Host, &options(Kind::Host), None, COMMAND_LINE).unwrap_err().to_string();
        for said in
            ["WERROR: its exception has no", "NOBODY_WANTS: is excepted, but", "CFI_CLANG: is excepted twice"]
        {
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn options_that_linux_lost_or_has_again_are_named() {
        let mut known: BTreeSet<String> = list().config.wanted.into_keys().collect();
        let hold = |known: &BTreeSet<String>| {
            list()
                .hold(Kind::Host, &options(Kind::Host), Some(known), COMMAND_LINE)
                .map_err(|error| error.to_string())
        };
        hold(&known).unwrap();
        known.remove("KFENCE");
        known.insert("DEVKMEM".to_owned());
        let error = hold(&known).unwrap_err();
        assert!(error.contains("KFENCE: this Linux has no such option"), "{error}");
        assert!(error.contains("DEVKMEM: is not gone"), "{error}");
    }

    #[test]
    fn words_that_undo_it_and_words_that_are_missing_are_named() {
        let host = options(Kind::Host);
        for word in list().command_line.never {
            let line = format!("{COMMAND_LINE} {word}=off");
            assert!(complaint(&host, Kind::Host, &line).contains(&format!("`{word}` undoes")), "{word}");
            assert!(complaint(&options(Kind::Guest), Kind::Guest, &line).contains("undoes"), "{word}");
        }
        let twice = complaint(&host, Kind::Host, &format!("{COMMAND_LINE} mitigations=off"));
        assert!(twice.contains("`mitigations=auto,nosmt` is recommended"), "{twice}");
        let mut bare = host.clone();
        bare.insert("CONFIG_CMDLINE".to_owned(), "\"\"".to_owned());
        assert!(complaint(&bare, Kind::Host, COMMAND_LINE).contains("`page_alloc.shuffle=1` is recommended"));
        let mut soft = host;
        soft.insert("CONFIG_RANDOMIZE_KSTACK_OFFSET_DEFAULT".to_owned(), "n".to_owned());
        let complaint = complaint(&soft, Kind::Host, COMMAND_LINE);
        assert!(complaint.contains("`randomize_kstack_offset` stands in no option"), "{complaint}");
    }
}
