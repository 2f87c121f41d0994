//! Whether an agent may read or write what is under a key: the one decision.
//!
//! Must hold: an agent's own memory is always its own; another's needs both sides, the speaker's manifest and the owner's.
//! Must never: look at what memory holds. A denial is the same whether something is there or not.

use abi::ids::AgentName;
use abi::memory::{MemoryGrants, MemoryScope, MemoryShares};
use abi::rpc::{Code, RpcError};
use std::fmt;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Read,
    Write,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Read => "read",
            What::Write => "write",
        })
    }
}

/// Who asks, with what manifests say of it. Fixed for the time of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    pub agent: AgentName,
    pub grants: MemoryGrants,
    pub shares: MemoryShares,
}

/// Why it is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    Own,
    /// The scope of the speaker's manifest and the one of the owner's (its agent is the owner in both).
    Shared {
        wanted: MemoryScope,
        shared: MemoryScope,
    },
}

/// Why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub speaker: AgentName,
    pub what: What,
    pub owner: AgentName,
    pub key: String,
    /// The speaker's manifest does not ask for it.
    pub not_wanted: bool,
    /// The owner's manifest does not give it.
    pub not_shared: bool,
}

/// The rule as the ledger and answers name it.
pub const NEEDS_BOTH: &str = "memory-needs-both-sides";

/// Decides on one key, or on all keys with a prefix: both are within a scope that is a prefix of them. Pure.
pub fn decide(who: &Party, what: What, owner: &AgentName, key: &str) -> Result<Rule, Denial> {
    if who.agent == *owner {
        return Ok(Rule::Own);
    }
    let (wanted, shared) = match what {
        What::Read => (&who.grants.read, &who.shares.read),
        What::Write => (&who.grants.write, &who.shares.write),
    };
    let within = |scopes: &[MemoryScope]| scopes.iter().find(|scope| scope.has(owner, key)).cloned();
    match (within(wanted), within(shared)) {
        (Some(wanted), Some(shared)) => Ok(Rule::Shared { wanted, shared }),
        (wanted, shared) => Err(Denial {
            speaker: who.agent.clone(),
            what,
            owner: owner.clone(),
            key: key.to_owned(),
            not_wanted: wanted.is_none(),
            not_shared: shared.is_none(),
        }),
    }
}

impl Denial {
    /// The lines that would allow it: whose manifest, and what to add to its `[capabilities]`.
    pub fn lines(&self) -> Vec<(AgentName, String)> {
        let line = |field: &str, agent: &AgentName| {
            // A JSON string is a TOML basic string, and a key has no control characters.
            let scope = MemoryScope { agent: agent.clone(), prefix: self.key.clone() };
            format!("memory.{field} = [{}]", serde_json::Value::String(scope.to_string()))
        };
        let (want, share) = match self.what {
            What::Read => ("read", "share_read"),
            What::Write => ("write", "share_write"),
        };
        let wants = self.not_wanted.then(|| (self.speaker.clone(), line(want, &self.owner)));
        let shares = self.not_shared.then(|| (self.owner.clone(), line(share, &self.speaker)));
        wants.into_iter().chain(shares).collect()
    }

    /// What the speaker is told: which side lacks it, and the line to add.
    pub fn error(&self) -> RpcError {
        let Denial { speaker, what, owner, .. } = self;
        let lacking = match (self.not_wanted, self.not_shared) {
            (true, true) => format!("the manifests of `{speaker}` and `{owner}` lack"),
            (true, false) => format!("the manifest of `{speaker}` lacks"),
            (false, _) => format!("the manifest of `{owner}` lacks"),
        };
        let lines: Vec<String> = self
            .lines()
            .into_iter()
            .map(|(agent, line)| format!("{line} to [capabilities] of the manifest of `{agent}`"))
            .collect();
        let shown: String = self.key.chars().take(64).collect();
        RpcError::new(Code::DENIED, format!("`{speaker}` may not {what} `{shown}` of `{owner}`")).explained(
            format!("{NEEDS_BOTH}: {lacking} it"),
            format!("an operator adds {}, and starts `{speaker}` again", lines.join(" and ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::collections::{BTreeMap, BTreeSet};

    const AGENTS: [&str; 3] = ["a", "b", "c"];

    fn name(text: &str) -> AgentName {
        text.parse().unwrap()
    }

    /// What all manifests say: by agent.
    type Policy = BTreeMap<AgentName, MemoryGrants>;

    fn party(policy: &Policy, agent: &AgentName) -> Party {
        let from = |pick: fn(&MemoryGrants) -> &Vec<MemoryScope>| {
            let mut shared = Vec::new();
            for (owner, grants) in policy {
                for scope in pick(grants).iter().filter(|scope| scope.agent == *agent) {
                    shared.push(MemoryScope { agent: owner.clone(), prefix: scope.prefix.clone() });
                }
            }
            shared
        };
        let shares = MemoryShares { read: from(|g| &g.share_read), write: from(|g| &g.share_write) };
        Party { agent: agent.clone(), grants: policy[agent].clone(), shares }
    }

    fn random_policy(random: &mut Random) -> Policy {
        let prefixes = ["", "x", "x/", "x/y", "x/y/z", "y", "é"];
        let mut scopes = || -> Vec<MemoryScope> {
            (0..random.below(4))
                .map(|_| MemoryScope {
                    agent: name(AGENTS[random.below(3) as usize]),
                    prefix: prefixes[random.below(7) as usize].to_owned(),
                })
                .collect()
        };
        let mut grants =
            || MemoryGrants { read: scopes(), write: scopes(), share_read: scopes(), share_write: scopes() };
        AGENTS.iter().map(|agent| (name(agent), grants())).collect()
    }

    /// Every key of up to four characters of a small alphabet: the model's world.
    fn world() -> Vec<String> {
        let mut all = vec![String::new()];
        let mut last = all.clone();
        for _ in 0..4 {
            last = last.iter().flat_map(|key| ["x", "/", "y", "é"].map(|c| format!("{key}{c}"))).collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    /// The model: a set of (speaker, what, owner, key), filled by walking all keys for each pair of lines.
    fn allowed(policy: &Policy, world: &[String]) -> BTreeSet<(AgentName, bool, AgentName, String)> {
        let mut set = BTreeSet::new();
        for (speaker, wants) in policy {
            for (owner, gives) in policy {
                for (write, wants, gives) in
                    [(false, &wants.read, &gives.share_read), (true, &wants.write, &gives.share_write)]
                {
                    for want in wants.iter().filter(|want| want.agent == *owner) {
                        for give in gives.iter().filter(|give| give.agent == *speaker) {
                            let both = |key: &&String| {
                                key.as_bytes().starts_with(want.prefix.as_bytes())
                                    && key.as_bytes().starts_with(give.prefix.as_bytes())
                            };
                            for key in world.iter().filter(both) {
                                set.insert((speaker.clone(), write, owner.clone(), key.clone()));
                            }
                        }
                    }
                    if speaker == owner {
                        set.extend(
                            world.iter().map(|key| (speaker.clone(), write, owner.clone(), key.clone())),
                        );
                    }
                }
            }
        }
        set
    }

    #[test]
    fn the_decision_agrees_with_a_model_over_random_policies() {
        let mut random = Random::new();
        let world = world();
        for _ in 0..2000 {
            let policy = random_policy(&mut random);
            let parties: Vec<Party> = policy.keys().map(|agent| party(&policy, agent)).collect();
            let model = allowed(&policy, &world);
            for _ in 0..40 {
                let who = &parties[random.below(3) as usize];
                let owner = name(AGENTS[random.below(3) as usize]);
                let what = if random.below(2) == 0 { What::Read } else { What::Write };
                let key = &world[random.below(world.len() as u64) as usize];
                let place =
                    |key: &String| (who.agent.clone(), what == What::Write, owner.clone(), key.clone());
                let decided = decide(who, what, &owner, key);
                assert_eq!(decided.is_ok(), model.contains(&place(key)), "{who:?} {what} {owner} {key}");
                if decided.is_ok() {
                    // A prefix that is allowed is so for every key below it.
                    let below = world.iter().filter(|other| other.starts_with(key.as_str()));
                    assert!(below.into_iter().all(|key| model.contains(&place(key))), "{who:?} {key}");
                }
            }
        }
    }

    #[test]
    fn the_lines_of_a_denial_are_what_is_missing_and_enough() {
        let mut random = Random::new();
        let (mut reader, mut owner_only, mut both) = (0, 0, 0);
        for _ in 0..4000 {
            let mut policy = random_policy(&mut random);
            let speaker = name("a");
            let owner = name("b");
            let what = if random.below(2) == 0 { What::Read } else { What::Write };
            let Err(denial) = decide(&party(&policy, &speaker), what, &owner, "x/\"y\\") else { continue };
            match (denial.not_wanted, denial.not_shared) {
                (true, true) => both += 1,
                (true, false) => reader += 1,
                (false, true) => owner_only += 1,
                (false, false) => panic!("denied, and nobody lacks a thing"),
            }
            let lines = denial.lines();
            for (number, (whose, line)) in lines.iter().enumerate() {
                let text = format!(
                    "[agent]\nname = \"{whose}\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n[capabilities]\n{line}\n"
                );
                let added = abi::manifest::parse("AGENT.toml", &text).unwrap().memory;
                let has = policy.get_mut(whose).unwrap();
                has.read.extend(added.read);
                has.write.extend(added.write);
                has.share_read.extend(added.share_read);
                has.share_write.extend(added.share_write);
                let now = decide(&party(&policy, &speaker), what, &owner, "x/\"y\\");
                assert_eq!(now.is_ok(), number + 1 == lines.len(), "each line is needed, and all are enough");
            }
        }
        assert!(reader > 10 && owner_only > 10 && both > 10, "{reader} {owner_only} {both}");
    }

    #[test]
    fn a_denial_names_the_side_and_its_line() {
        let b_wants = Party {
            agent: name("b"),
            grants: MemoryGrants { read: vec!["a:notes/".parse().unwrap()], ..MemoryGrants::default() },
            shares: MemoryShares::default(),
        };
        let error = decide(&b_wants, What::Read, &name("a"), "notes/1").unwrap_err().error();
        let why = error.data.unwrap();
        assert_eq!(error.message, "`b` may not read `notes/1` of `a`");
        assert!(why.rule.ends_with("the manifest of `a` lacks it"), "{}", why.rule);
        assert!(why.remedy.contains("memory.share_read = [\"b:notes/1\"]"), "{}", why.remedy);
        // A grant to read is none to write, and the whole of a memory is more than a part of it.
        assert!(decide(&b_wants, What::Write, &name("a"), "notes/1").unwrap_err().not_wanted);
        assert!(decide(&b_wants, What::Read, &name("a"), "").unwrap_err().not_wanted);
        assert_eq!(decide(&b_wants, What::Write, &name("b"), "k"), Ok(Rule::Own));
    }
}
