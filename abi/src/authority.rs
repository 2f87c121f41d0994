//! What an agent may do with tools, as manifests, cage, the decision and `nullctl policy` speak of it.
//!
//! Must hold: values here are checked (patterns parsed, lists bounded); deciding is the business of `verdict`, never of this module.
//! The page is docs/authority.md.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::exposure::Exposure;
use crate::ids::{AgentName, Digest, HostName, Instance, Name};

mod pattern;
pub use pattern::{CommandPattern, NamePattern, PathPattern, is_plain};

macro_rules! operations {
    ($($name:ident = $word:literal, $about:literal;)*) => {
        /// What a tool does, whatever it is called.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Operation { $(#[doc = $about] $name,)* }
        impl Operation {
            /// Each one, in order.
            pub const ALL: [Operation; operations!(@count $($name)*)] = [$(Operation::$name,)*];
            /// As manifests and the ledger write it.
            pub const fn word(self) -> &'static str {
                match self { $(Operation::$name => $word,)* }
            }
        }
    };
    (@count $($name:ident)*) => { <[&str]>::len(&[$(stringify!($name),)*]) };
}

operations! {
    ReadFiles = "read_files", "Read a file.";
    WriteFiles = "write_files", "Make or replace a file.";
    EditFiles = "edit_files", "Change a part of a file.";
    RunBash = "run_bash", "Run a program.";
    GlobSearch = "glob_search", "List paths by a pattern.";
    GrepSearch = "grep_search", "Search the text of files.";
    WebSearch = "web_search", "Ask a search service.";
    WebFetch = "web_fetch", "GET of a page. A sink: what is asked for tells the host something.";
    GitCommit = "git_commit", "Commit a verified patch.";
    GitPush = "git_push", "Push a branch.";
    CreatePr = "create_pr", "Open a pull request.";
    ManagePods = "manage_pods", "Start, stop or change machines elsewhere.";
    SpawnAgent = "spawn_agent", "Let another agent work.";
}

impl Operation {
    /// Its place in [`Operation::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether something leaves the box by it.
    pub const fn is_sink(self) -> bool {
        use Operation::{CreatePr, GitPush, ManagePods, WebFetch, WebSearch};
        matches!(self, WebSearch | WebFetch | GitPush | CreatePr | ManagePods)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Operation {
    type Err = String;
    fn from_str(text: &str) -> Result<Operation, String> {
        let found = Operation::ALL.into_iter().find(|operation| operation.word() == text);
        found.ok_or_else(|| {
            let all: Vec<&str> = Operation::ALL.iter().map(|one| one.word()).collect();
            format!("`{text}` is not an operation: {}", all.join(", "))
        })
    }
}

/// How far an operation may be used. In this order: a meet takes the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    #[default]
    Never,
    /// A human decides each call.
    Ask,
    Always,
}

/// What a manifest says of a tool. Each is at most a [`Level`]: low and medium allow, high asks, critical asks and freezes the VM until
/// somebody decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Risk {
    Low,
    Medium,
    High,
    Critical,
}

macro_rules! amounts {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// Amounts that are bounded. As JSON only what is there; absent: no bound of its own (for what was spent: nothing).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Amounts {
            $($(#[$doc])* #[serde(default, skip_serializing_if = "Option::is_none")] pub $field: Option<u64>,)*
        }
        impl Amounts {
            /// The names, in order.
            pub const NAMES: [&'static str; <[&str]>::len(&[$(stringify!($field),)*])] = [$(stringify!($field),)*];
            /// The amounts in the order of their names.
            pub const fn list(&self) -> [Option<u64>; Amounts::NAMES.len()] {
                [$(self.$field,)*]
            }
            /// Of each amount of two what `both` makes of them.
            #[must_use]
            pub fn zip(&self, other: &Amounts, both: impl Fn(Option<u64>, Option<u64>) -> Option<u64>) -> Amounts {
                Amounts { $($field: both(self.$field, other.$field),)* }
            }
        }
    };
}

amounts! {
    wall_ms,
    cpu_ms,
    memory_mib,
    disk_mib,
    /// Of tools' results.
    output_bytes,
    /// Of models, in and out.
    tokens,
    micro_dollars,
    /// Of tools.
    calls,
}

impl Amounts {
    /// As bounds: of each the lesser.
    #[must_use]
    pub fn lesser(&self, other: &Amounts) -> Amounts {
        self.zip(other, |one, two| match (one, two) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        })
    }
}

/// What an agent may do. What is not named may not be done: a level that is absent is `never`, an empty list admits nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    #[serde(default)]
    pub levels: BTreeMap<Operation, Level>,
    /// Paths that may be read, listed and searched.
    #[serde(default)]
    pub read: Vec<PathPattern>,
    /// Paths that may be written and edited.
    #[serde(default)]
    pub write: Vec<PathPattern>,
    /// Paths that no tool touches, whatever else stands here.
    #[serde(default)]
    pub never: Vec<PathPattern>,
    /// Programs that may be run.
    #[serde(default)]
    pub commands: Vec<CommandPattern>,
    /// Names that may be fetched, searched at, pushed to.
    #[serde(default)]
    pub names: Vec<NamePattern>,
    /// Agents that may be spawned.
    #[serde(default)]
    pub agents: Vec<AgentName>,
    /// Absent: no end of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
    #[serde(default)]
    pub budget: Amounts,
    /// How many agents may stand in a row below this one; 0: it may not delegate.
    #[serde(default)]
    pub depth: u8,
}

/// Where values come from that are not public, or not to be trusted. Patterns of paths; all else is neither.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    #[serde(default)]
    pub private: Vec<PathPattern>,
    #[serde(default)]
    pub untrusted: Vec<PathPattern>,
    /// Names that may be sent anything, and whose answers are no strangers' text: the model's, for example.
    #[serde(default)]
    pub trusted_names: Vec<NamePattern>,
}

/// A tool as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    pub operation: Operation,
    pub risk: Risk,
    /// Program and first arguments; absent for the tools that the verifier has itself. Its arguments are one JSON object on standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
}

/// All that a manifest says of tools. Present: the agent's files are reached through tools alone (docs/authority.md).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// To be met: the profile's, if there is one, then the manifest's own. Never empty.
    pub rules: Vec<Rules>,
    /// A life's authority ends so long after it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_secs: Option<u32>,
    #[serde(default)]
    pub sources: Sources,
    /// By name: further tools, and the risk of those that every agent has.
    #[serde(default)]
    pub tools: BTreeMap<Name, Tool>,
    /// The profile it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

impl Authority {
    /// The rules of a life that begins now, with the end that the manifest gives it.
    pub fn rules_of_life(&self, now_unix_ms: u64) -> Vec<Rules> {
        let mut rules = self.rules.clone();
        if let (Some(last), Some(seconds)) = (rules.last_mut(), self.expires_secs) {
            last.until_unix_ms = Some(now_unix_ms.saturating_add(u64::from(seconds).saturating_mul(1000)));
        }
        rules
    }
}

/// What a call is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// One absolute path, in its one spelling. Of a search: the directory it begins at.
    Path(String),
    /// Program and arguments.
    Command(Vec<String>),
    /// A page.
    Page {
        name: HostName,
        port: u16,
        path: String,
    },
    Agent(AgentName),
    /// Nothing that rules are written about: arguments of a manifest's own tool.
    Arguments,
}

/// One call of a tool, as the host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub operation: Operation,
    /// The tool's name.
    pub tool: String,
    pub target: Target,
    /// SHA-256 of the arguments' bytes.
    pub arguments: Digest,
    /// What computes: the rootfs, for programs of the agent's image; the verifier, for tools of its own.
    pub pinned: Digest,
    /// What flows into it by reference, beside what the agent has seen.
    #[serde(default)]
    pub flows: Exposure,
    /// The agent gets a reference to the result, not the result.
    #[serde(default)]
    pub sealed: bool,
}

/// What the decision must know beside the rules and the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Situation {
    pub now_unix_ms: u64,
    /// What the agent has seen in this life.
    #[serde(default)]
    pub seen: Exposure,
    /// What went into the files that tools wrote.
    #[serde(default)]
    pub written: Exposure,
    /// What is left of each bound.
    #[serde(default)]
    pub left: Amounts,
    /// What it will use at most.
    #[serde(default)]
    pub needs: Amounts,
    /// A human said that exactly these bytes may leave: the call is judged as if what was seen did not flow in. What it takes by reference
    /// is not among the bytes, and still counts.
    #[serde(default)]
    pub is_declassified: bool,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Deny,
    Ask,
    Allow,
}

/// A verdict that explains itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub verdict: Verdict,
    /// Which rule: `expired`, `tool`, `level`, `path`, `never`, `command`, `name`, `agent`, `depth`, `budget`, `risk`, `exposure`,
    /// `step`, `granted`. Of several that ask, the first in the order of docs/authority.md; `why` names all.
    pub rule: String,
    /// In words, with the values.
    pub why: String,
    /// How it could be had; empty where it is allowed.
    pub remedy: String,
    pub risk: Risk,
    /// By what the sink was judged.
    pub exposure: Exposure,
    /// What the result carries.
    pub labels: Exposure,
}

/// What one block of a delegation's token says. As JSON, and as exactly the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The life that delegates; in the first block, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Instance>,
    pub rules: Rules,
}

impl Grant {
    /// Its bytes; empty should they not be to be had, which no reader takes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads bytes that somebody signed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Grant, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}
