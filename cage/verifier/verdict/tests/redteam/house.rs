//! A host around the library, as cage's desk is one (cage/src/desk), and the truth beside it: what really flowed, by value and by file, kept
//! without a look at any label.

use abi::authority::{
    Authority as Policies, Call, Level, Operation, PathPattern, Risk, Rules, Situation, Sources, Target,
    Tool, Verdict,
};
use abi::exposure::Exposure;
use abi::ids::Digest;
use sha2::Digest as _;
use std::collections::BTreeMap;
use verdict::authority::Authority;
use verdict::decide::{Policy, decide};
use verdict::exposure::Exposed;

/// splitmix64.
pub struct Random(u64);

impl Random {
    pub fn new(category: &str, seed: u64) -> Random {
        let begin =
            category.bytes().fold(seed, |sum, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        Random(begin)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    pub fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    pub fn bytes(&mut self) -> [u8; 32] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

pub fn digest(text: &str) -> Digest {
    Digest(sha2::Sha256::digest(text).into())
}

pub fn paths(list: &[&str]) -> Vec<PathPattern> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

/// What the agent of these cases may do: work on a tree, read a customer's data, run the tests, fetch from two names, store in memory.
pub fn rules() -> Rules {
    use Operation::{EditFiles, GlobSearch, GrepSearch, ReadFiles, RunBash, WebFetch, WriteFiles};
    let mut levels: BTreeMap<Operation, Level> =
        [ReadFiles, WriteFiles, EditFiles, GlobSearch, GrepSearch, RunBash, WebFetch]
            .map(|one| (one, Level::Always))
            .into();
    levels.insert(Operation::GitPush, Level::Ask);
    Rules {
        levels,
        read: paths(&["/work/**", "/data/**"]),
        write: paths(&["/work/**"]),
        never: paths(&["/work/.env", "/data/keys/**"]),
        commands: vec!["cargo test **".parse().unwrap()],
        names: vec!["docs.rs".parse().unwrap(), "api.model.test".parse().unwrap()],
        agents: vec![],
        until_unix_ms: Some(1_000_000),
        budget: Default::default(),
        depth: 1,
    }
}

pub fn policies() -> Policies {
    let own = |operation, risk| Tool { operation, risk, command: Some(vec!["/app/tool".into()]) };
    Policies {
        rules: vec![rules()],
        sources: Sources {
            private: paths(&["/data/**"]),
            untrusted: paths(&["/work/issues/**"]),
            trusted_names: vec!["api.model.test".parse().unwrap()],
        },
        tools: [
            ("lint".parse().unwrap(), own(Operation::RunBash, Risk::Low)),
            ("wipe".parse().unwrap(), own(Operation::RunBash, Risk::Critical)),
            ("publish".parse().unwrap(), own(Operation::GitPush, Risk::Low)),
        ]
        .into(),
        ..Policies::default()
    }
}

/// Whether something holds a secret, and whether it holds a stranger's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taint {
    pub secret: bool,
    pub strange: bool,
}

impl Taint {
    pub fn and(self, other: Taint) -> Taint {
        Taint { secret: self.secret || other.secret, strange: self.strange || other.strange }
    }

    fn exposure(self) -> Exposure {
        let one = |is: bool, exposure| if is { exposure } else { Exposure::NONE };
        one(self.secret, Exposure::PRIVATE_DATA).and(one(self.strange, Exposure::UNTRUSTED_CONTENT))
    }
}

/// Where the library's answer is made wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// Labels of results of this tool are lost.
    Labels(&'static str),
    /// Memory's exposure is not told.
    Memory,
    /// A denial counts for nothing.
    Denial,
}

/// One life.
pub struct House {
    authority: Authority,
    policy: Policy,
    exposed: Exposed,
    breach: Option<Breach>,
    next: u32,
    /// The truth.
    seen: Taint,
    values: BTreeMap<u32, Taint>,
    files: BTreeMap<String, Taint>,
}

/// A call of a tool.
pub struct Ask {
    pub tool: &'static str,
    pub operation: Operation,
    pub target: Target,
    pub references: Vec<u32>,
    pub sealed: bool,
}

impl House {
    pub fn new(breach: Option<Breach>) -> House {
        let files = [
            ("/work/src/lib.rs", Taint::default()),
            ("/work/issues/1.md", Taint { strange: true, ..Taint::default() }),
            ("/data/customers", Taint { secret: true, ..Taint::default() }),
        ];
        House {
            authority: Authority::of(rules()),
            policy: Policy::of(&policies()),
            exposed: Exposed::beginning(Exposure::NONE, Exposure::NONE),
            breach,
            next: 0,
            seen: Taint::default(),
            values: BTreeMap::new(),
            files: files.map(|(path, taint)| (path.to_owned(), taint)).into(),
        }
    }

    pub fn file_names(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }

    pub fn value_numbers(&self) -> Vec<u32> {
        self.values.keys().copied().collect()
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn flows(&self, references: &[u32]) -> Taint {
        references
            .iter()
            .filter_map(|value| self.values.get(value))
            .fold(Taint::default(), |all, one| all.and(*one))
    }

    /// Puts a call to the library and does what it allows. An escape: something left for a name that nobody trusts, by nobody's leave, while a
    /// stranger's words and a secret had both come to whoever sent it.
    pub fn call(&mut self, ask: &Ask) -> Result<Verdict, String> {
        let call = Call {
            operation: ask.operation,
            tool: ask.tool.into(),
            target: ask.target.clone(),
            arguments: digest("arguments"),
            pinned: digest("pinned"),
            flows: self.exposed.flows(ask.references.iter().copied()),
            sealed: ask.sealed,
        };
        let situation = Situation {
            now_unix_ms: 5,
            seen: self.exposed.seen(),
            written: self.exposed.written(),
            left: Default::default(),
            needs: Default::default(),
            is_declassified: false,
        };
        let ruling = decide(&self.authority, &self.policy, &situation, &call);
        let mut verdict = ruling.verdict();
        if self.breach == Some(Breach::Denial) && verdict == Verdict::Deny {
            verdict = Verdict::Allow;
        }
        if verdict != Verdict::Allow {
            return Ok(verdict);
        }
        let mut labels = ruling.labels();
        if self.breach == Some(Breach::Labels(ask.tool)) {
            labels = Exposure::NONE;
        }
        self.next += 1;
        self.exposed.keep(self.next, labels);
        if matches!(ask.operation, Operation::WriteFiles | Operation::EditFiles | Operation::RunBash) {
            self.exposed.write(call.flows.and(labels));
        }
        if !ask.sealed {
            let _ = self.exposed.see(labels);
        }
        self.happens(ask)?;
        Ok(verdict)
    }

    /// What the call does in truth.
    fn happens(&mut self, ask: &Ask) -> Result<(), String> {
        let from_values = self.flows(&ask.references);
        let by_agent = self.seen.and(from_values);
        let everything = self.files.values().fold(Taint::default(), |all, one| all.and(*one));
        let result = match (&ask.target, ask.operation) {
            (Target::Path(path), Operation::WriteFiles | Operation::EditFiles) => {
                let old = self.files.get(path).copied().unwrap_or_default();
                self.files.insert(path.clone(), old.and(by_agent));
                if ask.operation == Operation::EditFiles { old } else { Taint::default() }
            }
            (Target::Path(path), Operation::ReadFiles) => self.files.get(path).copied().unwrap_or_default(),
            (Target::Path(path), _) => {
                let below = self.files.iter().filter(|(file, _)| file.starts_with(&format!("{path}/")));
                below.fold(Taint::default(), |all, (_, one)| all.and(*one))
            }
            (Target::Command(_) | Target::Arguments, Operation::RunBash) => {
                let all = everything.and(by_agent);
                let writable: Vec<String> =
                    self.files.keys().filter(|path| path.starts_with("/work")).cloned().collect();
                for path in writable {
                    self.files.insert(path, all);
                }
                self.files.insert("/work/out".into(), all);
                everything.and(from_values)
            }
            (Target::Page { name, .. }, _) => {
                let is_trusted = name.as_str() == "api.model.test";
                if by_agent.secret && by_agent.strange && !is_trusted {
                    return Err(format!(
                        "a stranger's words had a secret sent to `{name}` ({:?})",
                        ask.operation
                    ));
                }
                by_agent.and(Taint { strange: !is_trusted, secret: false })
            }
            (target, Operation::GitPush) => return Err(format!("pushed without being asked: {target:?}")),
            _ => Taint::default(),
        };
        self.values.insert(self.next, result);
        if !ask.sealed {
            self.seen = self.seen.and(result);
        }
        Ok(())
    }

    /// Memory answers with what another agent wrote after it had seen this; ctxgraph says so before the answer goes out.
    pub fn remembers(&mut self, written_by: Taint) {
        if self.breach != Some(Breach::Memory) {
            let _ = self.exposed.see(written_by.exposure());
        }
        self.seen = self.seen.and(written_by);
    }
}
