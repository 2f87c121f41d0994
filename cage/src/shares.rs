//! What a life may have of other agents' memory, as cage tells ctxgraph.
//!
//! Must hold: a manifest that is wrong shares nothing. Must never: take an agent's word for a grant.

use abi::control::MemoryAttach;
use abi::exposure::Exposure;
use abi::ids::{AgentName, Instance};
use abi::limits;
use abi::log;
use abi::manifest::{Manifest, Workspace};
use abi::memory::{MemoryGrants, MemoryScope, MemoryShares};
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::manifests::{self, Loaded};

/// What it takes to ask for a life's memory, now and each time ctxgraph has been away.
#[derive(Debug)]
pub struct Wish {
    pub instance: Instance,
    /// The manifest that the life began with.
    pub manifest: Manifest,
    /// Where the others' manifests are.
    pub config: PathBuf,
    /// A candidate of a task works by this agent's manifest.
    pub reads_as: Option<AgentName>,
}

impl Wish {
    /// With the manifests of others as they are now.
    pub fn now(&self) -> MemoryAttach {
        let mut want = want(&self.instance, &self.manifest, &manifests::load(&self.config).known);
        if let Some(agent) = &self.reads_as {
            as_candidate(&mut want, agent);
        }
        want
    }
}

/// What is asked of ctxgraph for a life: grants and exposure of the manifest it began with, shares of the manifests of now.
pub fn want(instance: &Instance, own: &Manifest, known: &BTreeMap<AgentName, Loaded>) -> MemoryAttach {
    let others = known.iter().map(|(name, loaded)| (name, &loaded.manifest.memory));
    let (shares, left_out) = shares(&own.name, &own.memory, others);
    if left_out > 0 {
        log::warning(
            "memory_shares_left_out",
            &[("agent", &own.name), ("entries", &left_out), ("bytes_max", &limits::MEMORY_SHARES_BYTES_MAX)],
        );
    }
    MemoryAttach {
        instance: instance.clone(),
        grants: own.memory.clone(),
        shares,
        // With tools the desk knows what was seen, and says it (`memory.expose`).
        exposure: if own.authority.is_some() { Exposure::NONE } else { own.exposure() },
        inherits: own.workspace == Workspace::Kept || !own.volumes.is_empty(),
    }
}

/// A candidate has memory of its own, empty, and reads that of the agent it works for, which it never writes; nobody reads its own.
fn as_candidate(want: &mut MemoryAttach, agent: &AgentName) {
    let all = MemoryScope { agent: agent.clone(), prefix: String::new() };
    want.grants = MemoryGrants { read: vec![all.clone()], ..MemoryGrants::default() };
    want.shares = MemoryShares { read: vec![all], write: Vec::new() };
}

/// What others' manifests let `reader` have, and how many entries there was no room for. Those that meet a wish of the reader's come
/// first: the others only help to say which side lacks something. Pure.
pub fn shares<'a>(
    reader: &AgentName,
    wants: &MemoryGrants,
    others: impl Iterator<Item = (&'a AgentName, &'a MemoryGrants)>,
) -> (MemoryShares, usize) {
    let (mut read, mut write) = (Vec::new(), Vec::new());
    for (owner, gives) in others.filter(|(owner, _)| *owner != reader) {
        let given = |scopes: &[MemoryScope], to: &mut Vec<MemoryScope>| {
            let mine = scopes.iter().filter(|scope| scope.agent == *reader);
            to.extend(mine.map(|scope| MemoryScope { agent: owner.clone(), prefix: scope.prefix.clone() }));
        };
        given(&gives.share_read, &mut read);
        given(&gives.share_write, &mut write);
    }
    let left_out = fit(&mut read, &wants.read) + fit(&mut write, &wants.write);
    (MemoryShares { read, write }, left_out)
}

/// Sorts what meets a wish first, and cuts what would not fit.
fn fit(shares: &mut Vec<MemoryScope>, wants: &[MemoryScope]) -> usize {
    let meets = |share: &MemoryScope| {
        wants.iter().any(|want| {
            want.agent == share.agent
                && (want.prefix.starts_with(&share.prefix) || share.prefix.starts_with(&want.prefix))
        })
    };
    shares.sort_by_key(|share| (!meets(share), share.clone()));
    let mut bytes = 0;
    let fits = shares.iter().take_while(|share| {
        bytes += serde_json::to_string(share).map_or(usize::MAX / 2, |text| text.len() + 1);
        bytes <= limits::MEMORY_SHARES_BYTES_MAX
    });
    let (count, all) = (fits.count(), shares.len());
    shares.truncate(count);
    all - count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> AgentName {
        text.parse().unwrap()
    }

    fn scopes(list: &[&str]) -> Vec<MemoryScope> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn loaded(lines: &str, agent: &str) -> (AgentName, Loaded) {
        let text = format!(
            "[agent]\nname = \"{agent}\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n[capabilities]\n{lines}"
        );
        let manifest = abi::manifest::parse("AGENT.toml", &text).unwrap();
        (name(agent), Loaded { manifest, digest: abi::ids::Digest([0; 32]), file: String::new() })
    }

    #[test]
    fn an_agent_has_what_the_others_share_with_it_and_no_more() {
        let known: BTreeMap<_, _> = [
            loaded("memory.share_read = [\"b:notes/\", \"c:\"]\nmemory.share_write = [\"b:inbox/\"]", "a"),
            loaded("memory.read = [\"a:notes/\"]\nnetwork.allow = [\"x.test\"]", "b"),
            loaded("memory.share_read = [\"b:all\"]\nmemory.read = [\"a:\"]", "c"),
        ]
        .into();
        let want = |agent: &str| {
            super::want(&format!("{agent}.7").parse().unwrap(), &known[&name(agent)].manifest, &known)
        };
        let b = want("b");
        assert_eq!(b.shares.read, scopes(&["a:notes/", "c:all"]));
        assert_eq!(b.shares.write, scopes(&["a:inbox/"]));
        assert_eq!(b.grants.read, scopes(&["a:notes/"]));
        assert_eq!(b.exposure.to_string(), "untrusted_content exfiltration");
        assert!(!b.inherits);
        assert_eq!(want("c").shares, MemoryShares { read: scopes(&["a:"]), write: Vec::new() });
        assert_eq!(want("a").shares, MemoryShares::default());
        let (_, keeps) = loaded("volumes.v = { path = \"/data\", max_mb = 64 }", "d");
        assert!(super::want(&"d.1".parse().unwrap(), &keeps.manifest, &known).inherits);
    }

    #[test]
    fn a_candidate_reads_its_agents_memory_and_writes_only_its_own() {
        let (_, mut own) = loaded("memory.write = [\"b:inbox/\"]", "a");
        own.manifest.name = name("t1-c1");
        let wish = Wish {
            instance: "t1-c1.3".parse().unwrap(),
            manifest: own.manifest,
            config: "/nonexistent".into(),
            reads_as: Some(name("a")),
        };
        let want = wish.now();
        assert_eq!((want.grants.read, want.grants.write), (scopes(&["a:"]), vec![]));
        assert_eq!(want.shares, MemoryShares { read: scopes(&["a:"]), write: vec![] });
    }

    #[test]
    fn a_manifest_that_is_wrong_shares_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("agents")).unwrap();
        let write = |agent: &str, lines: &str| {
            let text = format!(
                "[agent]\nname = \"{agent}\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n[capabilities]\n{lines}"
            );
            std::fs::write(dir.path().join(format!("agents/{agent}.toml")), text).unwrap();
        };
        write("b", "");
        write("good", "memory.share_read = [\"b:\"]");
        write("wrong", "memory.share_read = [\"b:\", \"wrong:x\"]");
        let known = crate::manifests::load(dir.path()).known;
        let want = super::want(&"b.1".parse().unwrap(), &known[&name("b")].manifest, &known);
        assert_eq!(want.shares.read, scopes(&["good:"]));
    }

    #[test]
    fn what_does_not_fit_a_line_is_left_out_from_its_useless_end() {
        let long = "x".repeat(240);
        let gives: Vec<(AgentName, MemoryGrants)> = (0..limits::MANIFESTS_MAX)
            .map(|n| {
                let share_read = (0..4).map(|m| format!("b:{long}{m}").parse().unwrap()).collect();
                (name(&format!("owner{n}")), MemoryGrants { share_read, ..MemoryGrants::default() })
            })
            .collect();
        let wants = MemoryGrants { read: scopes(&["owner200:"]), ..MemoryGrants::default() };
        let others = gives.iter().map(|(name, grants)| (name, grants));
        let (shares, left_out) = shares(&name("b"), &wants, others);
        assert_eq!(shares.read.len() + left_out, limits::MANIFESTS_MAX * 4);
        assert!(shares.read[..4].iter().all(|share| share.agent == name("owner200")));
        assert!(serde_json::to_string(&shares).unwrap().len() <= limits::MEMORY_SHARES_BYTES_MAX + 32);
    }
}
