//! The parts of a manifest that concern tools: `[authority]`, `[tools]`, and the profiles that are built in.
//!
//! Must hold: a profile is read by the same parser as a manifest; what either leaves out is what the other says; what both say is met.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use toml::Spanned;

use super::network::AMOUNT_MAX;
use super::{Checked, Checker};
use crate::authority::{
    Amounts, Authority, CommandPattern, Level, NamePattern, Operation, PathPattern, Risk, Rules, Sources,
    Tool,
};
use crate::config_error::Source;
use crate::ids::Name;
use crate::limits;
use crate::tools::BUILT_IN;

/// Name and text of each profile.
pub const PROFILES: [(&str, &str); 10] = [
    ("safe-pr-fixer", include_str!("../../profiles/safe-pr-fixer.toml")),
    ("doc-editor", include_str!("../../profiles/doc-editor.toml")),
    ("test-runner", include_str!("../../profiles/test-runner.toml")),
    ("triage-bot", include_str!("../../profiles/triage-bot.toml")),
    ("code-review", include_str!("../../profiles/code-review.toml")),
    ("codegen", include_str!("../../profiles/codegen.toml")),
    ("release", include_str!("../../profiles/release.toml")),
    ("research-web", include_str!("../../profiles/research-web.toml")),
    ("read-only", include_str!("../../profiles/read-only.toml")),
    ("local-dev", include_str!("../../profiles/local-dev.toml")),
];

type List = Option<Spanned<Vec<Spanned<String>>>>;

/// `[authority]`; a profile's file is one too, without `profile`, an end and sources.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAuthority {
    profile: Option<Spanned<String>>,
    read: List,
    write: List,
    never: List,
    commands: List,
    names: List,
    agents: Option<Spanned<toml::Value>>,
    depth: Option<Spanned<toml::Value>>,
    #[serde(default)]
    budget: RawBudget,
    #[serde(default)]
    operations: BTreeMap<Spanned<String>, Spanned<String>>,
    expires_secs: Option<Spanned<i64>>,
    private: List,
    untrusted: List,
    trusted_names: List,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawBudget {
    calls: Option<Spanned<i64>>,
    output_bytes: Option<Spanned<i64>>,
    wall_secs: Option<Spanned<i64>>,
    cpu_secs: Option<Spanned<i64>>,
    subagents: Option<Spanned<toml::Value>>,
    tokens: Option<Spanned<i64>>,
    micro_dollars: Option<Spanned<i64>>,
    memory_mib: Option<Spanned<i64>>,
    disk_mib: Option<Spanned<i64>>,
}

/// `[tools]`, by name.
pub(super) type RawTools = BTreeMap<Spanned<String>, Spanned<RawTool>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTool {
    risk: Spanned<String>,
    operation: Option<Spanned<String>>,
    command: Option<Spanned<Vec<Spanned<String>>>>,
}

/// Rules with what was left out still to be seen.
#[derive(Default)]
struct Said {
    levels: BTreeMap<Operation, Level>,
    read: Option<Vec<PathPattern>>,
    write: Option<Vec<PathPattern>>,
    never: Vec<PathPattern>,
    commands: Option<Vec<CommandPattern>>,
    names: Option<Vec<NamePattern>>,
    budget: Amounts,
}

impl Said {
    /// As rules; what it leaves out is what the other says, and nothing where neither says it.
    fn rules(&self, other: &Said) -> Rules {
        fn either<T: Clone>(own: &Option<Vec<T>>, other: &Option<Vec<T>>) -> Vec<T> {
            own.as_ref().or(other.as_ref()).cloned().unwrap_or_default()
        }
        let mut levels = other.levels.clone();
        levels.extend(&self.levels);
        Rules {
            levels,
            read: either(&self.read, &other.read),
            write: either(&self.write, &other.write),
            never: self.never.clone(),
            commands: either(&self.commands, &other.commands),
            names: either(&self.names, &other.names),
            budget: self.budget,
            ..Rules::default()
        }
    }
}

/// The rules of a built-in profile, as they stand alone.
pub fn profile(name: &str) -> Option<Rules> {
    profile_said(name).ok().flatten().map(|said| said.rules(&Said::default()))
}

fn profile_said(name: &str) -> Checked<Option<Said>> {
    let Some((_, text)) = PROFILES.into_iter().find(|(known, _)| *known == name) else { return Ok(None) };
    let source = Source { file: name, text };
    let mut raw = toml::from_str(text).map_err(|error| Box::new(source.malformed(&error)))?;
    Checker { source }.said(&mut raw).map(Some)
}

impl Checker<'_> {
    /// `[authority]` and `[tools]`; none without either.
    pub(super) fn authority(
        &self,
        raw: Option<RawAuthority>,
        tools: Option<Spanned<RawTools>>,
    ) -> Checked<Option<Authority>> {
        let Some(mut raw) = raw else {
            return match tools {
                None => Ok(None),
                Some(tools) => self.wrong(
                    tools.span(),
                    "tools",
                    "stands without [authority]: an agent that has none has no tools",
                    "add [authority], or remove [tools]",
                ),
            };
        };
        let own = self.said(&mut raw)?;
        let rules = match &raw.profile {
            None => Vec::from([own.rules(&Said::default())]),
            Some(name) => {
                let Some(profile) = profile_said(name.get_ref())? else {
                    let known: Vec<&str> = PROFILES.iter().map(|(name, _)| *name).collect();
                    let remedy = format!("use one of {}", known.join(", "));
                    return self.wrong(name.span(), "authority.profile", "is not a profile", remedy);
                };
                // A level that only the manifest names is not the profile's to give.
                let mut of_profile = profile.rules(&own);
                of_profile.levels.clone_from(&profile.levels);
                Vec::from([of_profile, own.rules(&profile)])
            }
        };
        Ok(Some(Authority {
            rules,
            expires_secs: self.seconds(raw.expires_secs, "authority.expires_secs")?,
            sources: Sources {
                private: self.entries(raw.private, "private", "\"/data/customers/**\"")?,
                untrusted: self.entries(raw.untrusted, "untrusted", "\"/work/issues/**\"")?,
                trusted_names: self.entries(raw.trusted_names, "trusted_names", "\"api.openai.com\"")?,
            },
            tools: self.tools(tools.map(Spanned::into_inner).unwrap_or_default())?,
            profile: raw.profile.map(Spanned::into_inner),
        }))
    }

    fn said(&self, raw: &mut RawAuthority) -> Checked<Said> {
        let of_spawning = [
            ("agents", raw.agents.take()),
            ("depth", raw.depth.take()),
            ("budget.subagents", raw.budget.subagents.take()),
        ];
        for (field, value) in of_spawning {
            if let Some(value) = value {
                return self.spawning(value.span(), &format!("authority.{field}"));
            }
        }
        Ok(Said {
            levels: self.operations(std::mem::take(&mut raw.operations))?,
            read: self.said_list(raw.read.take(), "read", "\"/work/**\"")?,
            write: self.said_list(raw.write.take(), "write", "\"/work/src/**\"")?,
            never: self.entries(raw.never.take(), "never", "\"/work/.env\"")?,
            commands: self.said_list(raw.commands.take(), "commands", "\"cargo test **\"")?,
            names: self.said_list(raw.names.take(), "names", "\"docs.rs\"")?,
            budget: self.bounds(std::mem::take(&mut raw.budget))?,
        })
    }

    /// What would be a promise that nobody keeps.
    fn spawning<T>(&self, span: std::ops::Range<usize>, field: &str) -> Checked<T> {
        let rule =
            "this version has no tool by which an agent lets another one work, so it refuses this field";
        self.wrong(span, field, rule, "remove it; a task's candidates are started by `nullctl task run`")
    }

    fn said_list<T: FromStr<Err: Display> + PartialEq>(
        &self,
        list: List,
        field: &str,
        example: &str,
    ) -> Checked<Option<Vec<T>>> {
        list.map(|list| self.entries(Some(list), field, example)).transpose()
    }

    /// A list of patterns or names without repeats.
    fn entries<T: FromStr<Err: Display> + PartialEq>(
        &self,
        list: List,
        field: &str,
        example: &str,
    ) -> Checked<Vec<T>> {
        let field = format!("authority.{field}");
        let mut entries = Vec::new();
        for entry in self.list(list, &field, limits::RULES_LIST_MAX)? {
            let parsed = match entry.get_ref().parse::<T>() {
                Ok(parsed) => parsed,
                Err(rule) => {
                    return self.wrong(
                        entry.span(),
                        &field,
                        rule.to_string(),
                        format!("write for example {example}"),
                    );
                }
            };
            if entries.contains(&parsed) {
                return self.wrong(entry.span(), &field, "stands in the list twice", "remove one of the two");
            }
            entries.push(parsed);
        }
        Ok(entries)
    }

    fn operations(
        &self,
        raw: BTreeMap<Spanned<String>, Spanned<String>>,
    ) -> Checked<BTreeMap<Operation, Level>> {
        let mut levels = BTreeMap::new();
        for (name, level) in raw {
            let field = format!("authority.operations.{}", name.get_ref());
            let operation = name.get_ref().parse::<Operation>();
            let operation = operation.or_else(|rule| {
                self.wrong(name.span(), "authority.operations", rule, "write for example run_bash = \"ask\"")
            })?;
            let word = match level.get_ref().as_str() {
                "never" => Level::Never,
                "ask" => Level::Ask,
                "always" => Level::Always,
                _ => {
                    return self.wrong(
                        level.span(),
                        &field,
                        "must be never, ask or always",
                        "write for example \"ask\"",
                    );
                }
            };
            if operation == Operation::SpawnAgent && word != Level::Never {
                return self.spawning(level.span(), &field);
            }
            levels.insert(operation, word);
        }
        Ok(levels)
    }

    /// Bounds that a life's desk keeps. What another field bounds already is refused here, with that field.
    fn bounds(&self, raw: RawBudget) -> Checked<Amounts> {
        let elsewhere = [
            ("tokens", raw.tokens, "capabilities.budget.max_input_tokens and max_output_tokens"),
            ("micro_dollars", raw.micro_dollars, "capabilities.budget.max_micro_dollars"),
            ("memory_mib", raw.memory_mib, "capabilities.max_memory_mb"),
            ("disk_mib", raw.disk_mib, "capabilities.max_disk_mb"),
        ];
        for (field, value, place) in elsewhere {
            if let Some(value) = value {
                let rule = "is bounded by another field, so that it is bounded whether tools are used or not";
                return self.wrong(
                    value.span(),
                    &format!("authority.budget.{field}"),
                    rule,
                    format!("use {place}"),
                );
            }
        }
        let thousand = |seconds: Option<u64>| seconds.map(|seconds| seconds.saturating_mul(1000));
        Ok(Amounts {
            wall_ms: thousand(self.bound(raw.wall_secs, "wall_secs")?),
            cpu_ms: thousand(self.bound(raw.cpu_secs, "cpu_secs")?),
            output_bytes: self.bound(raw.output_bytes, "output_bytes")?,
            calls: self.bound(raw.calls, "calls")?,
            ..Amounts::default()
        })
    }

    fn bound(&self, value: Option<Spanned<i64>>, field: &str) -> Checked<Option<u64>> {
        let Some(value) = value else { return Ok(None) };
        match *value.get_ref() {
            bound @ 0..=AMOUNT_MAX => Ok(u64::try_from(bound).ok()),
            _ => {
                let rule = format!("must be 0 to {}", AMOUNT_MAX);
                self.wrong(
                    value.span(),
                    &format!("authority.budget.{field}"),
                    rule,
                    "leave it out for no bound",
                )
            }
        }
    }

    fn tools(&self, raw: RawTools) -> Checked<BTreeMap<Name, Tool>> {
        let mut tools = BTreeMap::new();
        for (name, tool) in raw {
            if tools.len() >= limits::TOOLS_PER_AGENT_MAX {
                let rule = format!("more than {} tools", limits::TOOLS_PER_AGENT_MAX);
                return self.wrong(name.span(), "tools", rule, "remove some");
            }
            let field = format!("tools.{}", name.get_ref());
            let key: Name = match name.get_ref().parse() {
                Ok(key) => key,
                Err(_) => {
                    let rule = "must be a name of 1 to 32 of A-Z a-z 0-9 _ -";
                    return self.wrong(
                        name.span(),
                        "tools",
                        rule,
                        "write for example delete_files = { ... }",
                    );
                }
            };
            tools.insert(key, self.tool(name.get_ref(), &field, tool)?);
        }
        Ok(tools)
    }

    fn tool(&self, name: &str, field: &str, tool: Spanned<RawTool>) -> Checked<Tool> {
        let span = tool.span();
        let raw = tool.into_inner();
        let risk = match raw.risk.get_ref().as_str() {
            "low" => Risk::Low,
            "medium" => Risk::Medium,
            "high" => Risk::High,
            "critical" => Risk::Critical,
            _ => {
                let rule = "must be low, medium, high or critical";
                return self.wrong(
                    raw.risk.span(),
                    &format!("{field}.risk"),
                    rule,
                    "write for example \"high\"",
                );
            }
        };
        let built_in = BUILT_IN.into_iter().find(|(known, _)| *known == name);
        match (built_in, raw.operation, raw.command) {
            (Some((_, Some(operation))), None, None) => Ok(Tool { operation, risk, command: None }),
            (Some((_, None)), _, _) => {
                let rule = "is a tool whose calls are not judged by a risk";
                self.wrong(span, field, rule, "remove it: memory's grants, and the verification, decide")
            }
            (Some(_), _, _) => {
                let rule =
                    "is a tool that the verifier has itself: its operation and its command are what they are";
                self.wrong(span, field, rule, "write only its risk, like run = { risk = \"high\" }")
            }
            (None, Some(operation), Some(command)) => {
                let parsed = operation.get_ref().parse::<Operation>().or_else(|rule| {
                    self.wrong(
                        operation.span(),
                        &format!("{field}.operation"),
                        rule,
                        "write for example \"run_bash\"",
                    )
                })?;
                let command = Some(self.program(command, &format!("{field}.command"))?);
                Ok(Tool { operation: parsed, risk, command })
            }
            (None, ..) => {
                let rule = "is no tool of the verifier, so it needs an `operation` and a `command`";
                self.wrong(
                    span,
                    field,
                    rule,
                    "write { risk = \"high\", operation = \"write_files\", command = [\"/app/bin/x\"] }",
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposure::Exposure;
    use crate::manifest::{Manifest, parse};

    const HEAD: &str = "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n";

    fn with(lines: &str) -> Checked<Manifest> {
        parse("AGENT.toml", &format!("{HEAD}{lines}"))
    }

    fn authority(lines: &str) -> Authority {
        with(lines).unwrap().authority.unwrap()
    }

    #[test]
    fn the_documented_authority_parses_whole() {
        let page = include_str!("../../../docs/authority.md");
        let toml = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let authority = authority(toml);
        assert_eq!(authority.profile.as_deref(), Some("safe-pr-fixer"));
        assert_eq!((authority.rules.len(), authority.expires_secs), (2, Some(3600)));
        let [profile, own] = authority.rules.as_slice() else { panic!("two rules") };
        assert_eq!(own.budget.wall_ms, Some(1_800_000));
        assert_eq!(own.levels.get(&Operation::RunBash), Some(&Level::Always));
        assert_eq!(own.write.iter().map(PathPattern::as_str).collect::<Vec<_>>(), ["/work/src/**"]);
        assert_eq!(profile.write.iter().map(PathPattern::as_str).collect::<Vec<_>>(), ["/work/**"]);
        let names: Vec<&str> = authority.tools.keys().map(Name::as_str).collect();
        assert_eq!(names, ["delete_files", "run"]);
        let text = serde_json::to_string(&authority).unwrap();
        assert_eq!(serde_json::from_str::<Authority>(&text).unwrap(), authority);
    }

    #[test]
    fn without_authority_there_are_no_tools() {
        assert_eq!(with("").unwrap().authority, None);
        let error = with("[tools]\nrun = { risk = \"high\" }").unwrap_err();
        assert_eq!((error.line, error.field.as_str()), (6, "tools"));
        assert!(error.rule.contains("without [authority]"), "{error}");
    }

    #[test]
    fn an_empty_authority_allows_nothing() {
        assert_eq!(authority("[authority]").rules, [Rules::default()]);
    }

    #[test]
    fn every_profile_parses_and_is_narrow() {
        for (name, text) in PROFILES {
            assert!(text.starts_with("# "), "{name} says what it is for");
            let rules = profile(name).unwrap_or_else(|| panic!("{name} does not parse: {text}"));
            assert_eq!(rules.levels.get(&Operation::ReadFiles), Some(&Level::Always), "{name}");
            assert!(!rules.never.is_empty(), "{name} keeps keys out of reach");
            for outwards in
                [Operation::GitPush, Operation::CreatePr, Operation::ManagePods, Operation::SpawnAgent]
            {
                assert_ne!(rules.levels.get(&outwards), Some(&Level::Always), "{name} {outwards}");
            }
            let raw: RawAuthority = toml::from_str(text).unwrap();
            assert!(raw.profile.is_none() && raw.expires_secs.is_none(), "{name}");
            assert!(
                raw.private.is_none() && raw.untrusted.is_none() && raw.trusted_names.is_none(),
                "{name}"
            );
            let alone = authority(&format!("[authority]\nprofile = \"{name}\""));
            assert_eq!(
                alone.rules,
                [rules.clone(), Rules { never: vec![], budget: Amounts::default(), ..rules }]
            );
        }
        let writes = |name: &str| !profile(name).unwrap().write.is_empty();
        let runs = |name: &str| profile(name).unwrap().levels.contains_key(&Operation::RunBash);
        assert!(!writes("read-only") && !runs("read-only") && !writes("test-runner") && !runs("code-review"));
    }

    #[test]
    fn what_a_manifest_leaves_out_is_the_profiles_and_what_it_says_is_met() {
        let authority = authority(
            "[authority]\nprofile = \"research-web\"\nnames = [\"docs.rs\"]\noperations.run_bash = \"always\"",
        );
        let [profile, own] = authority.rules.as_slice() else { panic!("two rules") };
        assert_eq!(
            (profile.names.len(), own.names.len()),
            (1, 1),
            "the profile leaves the names to the manifest"
        );
        assert_eq!(own.read, profile.read);
        assert_eq!(profile.levels.get(&Operation::RunBash), None, "a manifest gives its profile no level");
        assert_eq!(own.levels.get(&Operation::WebFetch), Some(&Level::Always));
    }

    #[test]
    fn each_mistake_in_authority_is_refused_with_line_field_value_and_remedy() {
        let many = (0..=limits::RULES_LIST_MAX).map(|n| format!("\"/a{n}\"")).collect::<Vec<_>>().join(",");
        let cases = [
            ("profile = \"root\"".to_owned(), "authority.profile", "not a profile"),
            ("read = [\"work\"]".to_owned(), "authority.read", "not a pattern of paths"),
            ("write = [\"/a/../b\"]".to_owned(), "authority.write", "not a pattern of paths"),
            ("never = [\"/a**\"]".to_owned(), "authority.never", "not a pattern of paths"),
            ("commands = [\"*\"]".to_owned(), "authority.commands", "not a pattern of commands"),
            ("names = [\"*.com\"]".to_owned(), "authority.names", "not a name"),
            ("agents = [\"b\"]".to_owned(), "authority.agents", "no tool by which"),
            (
                "operations.spawn_agent = \"ask\"".to_owned(),
                "authority.operations.spawn_agent",
                "no tool by which",
            ),
            ("budget.subagents = 1".to_owned(), "authority.budget.subagents", "no tool by which"),
            ("private = [\"/\"]".to_owned(), "authority.private", "not a pattern of paths"),
            ("untrusted = [\"x\"]".to_owned(), "authority.untrusted", "not a pattern of paths"),
            ("trusted_names = [\"localhost\"]".to_owned(), "authority.trusted_names", "not a name"),
            ("read = [\"/a\", \"/a\"]".to_owned(), "authority.read", "twice"),
            (format!("read = [{many}]"), "authority.read", "at most 64"),
            ("depth = 1".to_owned(), "authority.depth", "no tool by which"),
            ("expires_secs = 0".to_owned(), "authority.expires_secs", "1 to"),
            ("budget.calls = -1".to_owned(), "authority.budget.calls", "0 to"),
            ("budget.tokens = 5".to_owned(), "authority.budget.tokens", "another field"),
            ("budget.micro_dollars = 5".to_owned(), "authority.budget.micro_dollars", "another field"),
            ("budget.memory_mib = 5".to_owned(), "authority.budget.memory_mib", "another field"),
            ("budget.disk_mib = 5".to_owned(), "authority.budget.disk_mib", "another field"),
            ("operations.sudo = \"ask\"".to_owned(), "authority.operations", "not an operation"),
            (
                "operations.run_bash = \"yes\"".to_owned(),
                "authority.operations.run_bash",
                "never, ask or always",
            ),
        ];
        for (line, field, rule) in cases {
            let error = with(&format!("[authority]\n{line}")).unwrap_err();
            assert_eq!((error.line, error.field.as_str()), (7, field), "{error}");
            assert!(error.rule.contains(rule), "{error}");
            assert!(!error.value.is_empty() && !error.remedy.is_empty(), "{error}");
        }
        assert!(with("[authority]\nreads = []").is_err());
        assert!(with("[authority]\nbudget.dollars = 1").is_err());
    }

    #[test]
    fn each_mistake_in_tools_is_refused_with_line_field_value_and_remedy() {
        let cases = [
            ("run = { risk = \"none\" }", "tools.run.risk", "low, medium"),
            ("run = { risk = \"low\", command = [\"/x\"] }", "tools.run", "has itself"),
            ("run = { risk = \"low\", operation = \"read_files\" }", "tools.run", "has itself"),
            ("memory = { risk = \"low\" }", "tools.memory", "not judged by a risk"),
            ("submit = { risk = \"low\" }", "tools.submit", "not judged by a risk"),
            ("deploy = { risk = \"low\" }", "tools.deploy", "needs an `operation`"),
            ("d = { risk = \"low\", command = [\"/x\"] }", "tools.d", "needs an `operation`"),
            (
                "d = { risk = \"low\", operation = \"run\", command = [\"/x\"] }",
                "tools.d.operation",
                "not an operation",
            ),
            (
                "d = { risk = \"low\", operation = \"run_bash\", command = [\"x\"] }",
                "tools.d.command",
                "absolute",
            ),
            ("d = { risk = \"low\", operation = \"run_bash\", command = [] }", "tools.d.command", "1 to"),
            ("\"a b\" = { risk = \"low\" }", "tools", "1 to 32"),
        ];
        for (line, field, rule) in cases {
            let error = with(&format!("[authority]\n[tools]\n{line}")).unwrap_err();
            assert_eq!((error.line, error.field.as_str()), (8, field), "{error}");
            assert!(error.rule.contains(rule), "{error}");
            assert!(!error.value.is_empty() && !error.remedy.is_empty(), "{error}");
        }
        assert!(with("[authority]\n[tools]\nrun = {}").is_err());
        let many: String = (0..=limits::TOOLS_PER_AGENT_MAX)
            .map(|n| format!("t{n} = {{ risk = \"low\", operation = \"run_bash\", command = [\"/x\"] }}\n"))
            .collect();
        assert!(with(&format!("[authority]\n[tools]\n{many}")).unwrap_err().rule.contains("more than 64"));
    }

    #[test]
    fn the_end_of_a_life_is_counted_from_its_beginning() {
        let authority = authority("[authority]\nprofile = \"read-only\"\nexpires_secs = 60");
        let until: Vec<_> = authority.rules_of_life(1000).iter().map(|rules| rules.until_unix_ms).collect();
        assert_eq!(until, [None, Some(61_000)]);
    }

    #[test]
    fn with_authority_only_names_that_are_not_trusted_expose() {
        let network = "[capabilities]\nnetwork.allow = [\"api.openai.com\", \"*.a.test\"]\ncredential_refs = [\"KEY\"]\n";
        let all = "[authority]\ntrusted_names = [\"api.openai.com\", \"*.a.test\"]";
        let some = "[authority]\ntrusted_names = [\"api.openai.com\"]";
        let both = Exposure::PRIVATE_DATA.and(Exposure::UNTRUSTED_CONTENT);
        let exposure = |text: &str| with(&format!("{network}{text}")).unwrap().exposure();
        assert_eq!(exposure(all), Exposure::EXFILTRATION);
        assert_eq!(exposure(some), both.and(Exposure::EXFILTRATION));
        assert_eq!(exposure(""), both.and(Exposure::EXFILTRATION));
        assert_eq!(
            with("[capabilities]\nfilesystem.read = [\"/data\"]\n[authority]").unwrap().exposure(),
            Exposure::NONE
        );
    }
}
