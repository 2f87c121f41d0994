//! Memory against a model that keeps a plain list: random traces of several agents, with entries of another node, restarts and a clock that
//! jumps.

use super::*;
use crate::entry::Header;
use crate::memory::writer::{Looked, forget_due};
use crate::store::Held;
use crate::testing::Random;
use abi::control::{Direction, MemoryTraverse};
use abi::memory::{Expected, LINK_SUPERSEDES, Link, NoEntry};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

static CLOCK: AtomicU64 = AtomicU64::new(1_700_000_000_000);

fn clock() -> u64 {
    CLOCK.load(Ordering::Relaxed)
}

const KEYS: [&str; 8] = ["k", "k/1", "k/2", "k/10", "é", "z\u{10ffff}", "zz", "K"];
const RETENTION: Retention = Retention { keep_versions: 4, keep_days: 30 };

/// All entries there are, in the order in which they came.
#[derive(Default)]
struct Model(Vec<Entry>);

impl Model {
    fn of_key(&self, agent: &AgentName, key: &str) -> Vec<&Entry> {
        self.0.iter().filter(|e| e.agent == *agent && e.key == key).collect()
    }

    fn heads(&self, agent: &AgentName, key: &str) -> Vec<&Entry> {
        let all = self.of_key(agent, key);
        let gone: BTreeSet<Digest> = all
            .iter()
            .flat_map(|e| {
                let others = e.links.iter().filter(|link| link.kind == LINK_SUPERSEDES).map(|link| link.to);
                e.parent.into_iter().chain(others)
            })
            .collect();
        all.into_iter().filter(|e| !gone.contains(&e.hash)).collect()
    }

    fn newest(&self, agent: &AgentName, key: &str) -> Option<&Entry> {
        self.heads(agent, key).into_iter().max_by_key(|e| (e.unix_ms, e.hash))
    }

    fn read(&self, agent: &AgentName, key: &str) -> Option<Entry> {
        let mut entry = self.newest(agent, key)?.clone();
        entry.conflicts =
            self.heads(agent, key).iter().map(|e| e.hash).filter(|hash| *hash != entry.hash).collect();
        entry.conflicts.sort();
        Some(entry)
    }

    fn keys(&self, agent: &AgentName, prefix: &str) -> BTreeSet<String> {
        let own = self.0.iter().filter(|e| e.agent == *agent && e.key.starts_with(prefix));
        own.map(|e| e.key.clone()).collect()
    }

    fn forget(&mut self, why: &str, which: impl Fn(&Model, &Entry) -> bool) -> u64 {
        let doomed: Vec<usize> = (0..self.0.len())
            .filter(|n| self.0[*n].forgotten.is_none() && which(self, &self.0[*n]))
            .collect();
        for n in &doomed {
            self.0[*n].value = Value::Null;
            self.0[*n].forgotten = Some(why.into());
        }
        doomed.len() as u64
    }

    fn tick(&mut self, now: u64) {
        self.forget("its time to live is over", |_, e| {
            e.labels.get("nullbox.expires").is_some_and(|time| time.parse::<u64>().unwrap() <= now)
        });
        let replaced =
            |model: &Model, e: &Entry| model.heads(&e.agent, &e.key).iter().all(|h| h.hash != e.hash);
        let oldest = now - 30 * 24 * 60 * 60 * 1000;
        self.forget("the node keeps replaced values for 30 days", |m, e| {
            e.unix_ms < oldest && replaced(m, e)
        });
        self.forget("the node keeps 4 values of a key", |m, e| {
            let later = m.of_key(&e.agent, &e.key).iter().filter(|other| other.seq > e.seq).count();
            later >= 4 && replaced(m, e)
        });
    }

    fn find(&self, hash: &Digest) -> Option<&Entry> {
        self.0.iter().find(|e| e.hash == *hash)
    }

    /// Hashes reached, with the depth.
    fn traverse(&self, ask: &MemoryTraverse, hidden: &str) -> Option<Vec<(u32, Digest)>> {
        let shown = |e: &&Entry| e.key != hidden;
        let mut frontier = vec![self.find(&ask.hash).filter(shown)?];
        let mut seen = BTreeSet::from([ask.hash]);
        let mut reached = Vec::new();
        for depth in 1..=ask.depth.unwrap_or(1) {
            let mut next = Vec::new();
            for entry in frontier {
                let out = entry.links.iter().map(|l| (l.to, &l.kind));
                let out: Vec<_> = out.filter(|_| ask.direction != Direction::In).collect();
                let back = self.0.iter().flat_map(|e| e.links.iter().map(move |l| (e.hash, l)));
                let back = back.filter(|(_, l)| l.to == entry.hash && ask.direction != Direction::Out);
                for (to, kind) in out.into_iter().chain(back.map(|(from, l)| (from, &l.kind))) {
                    let wanted = ask.types.is_empty() || ask.types.contains(kind);
                    let Some(found) = self.find(&to).filter(shown).filter(|_| wanted) else { continue };
                    if seen.insert(to) {
                        reached.push((depth, to));
                        next.push(found);
                    }
                }
            }
            frontier = next;
        }
        Some(reached)
    }
}

/// One trace.
struct Trace {
    place: Place,
    model: Model,
    random: Random,
    step: u64,
}

impl Trace {
    fn agent(&mut self) -> AgentName {
        agent(["a", "b", "A-1"][self.random.below(3) as usize])
    }

    fn key(&mut self) -> String {
        KEYS[self.random.below(8) as usize].to_owned()
    }

    fn any(&mut self) -> Option<Entry> {
        let count = self.model.0.len() as u64;
        (count > 0).then(|| self.model.0[self.random.below(count) as usize].clone())
    }

    fn draft(&mut self, owner: &AgentName) -> MemoryWrite {
        let key = self.key();
        let pad = "p".repeat((self.random.below(4) * self.random.below(3000)) as usize);
        let mut write = draft(owner.as_str(), &key, json!({ "step": self.step, "pad": pad }));
        if self.random.below(3) == 0 {
            write.labels.insert("topic".into(), format!("t{}", self.random.below(3)));
            write.labels.insert("x.y".into(), "\"1\"".into());
        }
        for _ in 0..self.random.below(3) {
            let kind = ["about", "from"][self.random.below(2) as usize].into();
            write.links.extend(self.any().map(|to| Link { kind, to: to.hash }));
        }
        match self.random.below(6) {
            0 => write.ttl_secs = Some(1 + self.random.below(100_000)),
            1 => write.vector = Some(vec![1.0, self.step as f32]),
            2 => write.parent = Some(Expected::None(NoEntry::None)),
            3 => write.parent = self.model.newest(owner, &key).map(|e| Expected::Entry(e.hash)),
            4 => write.parent = self.any().map(|e| Expected::Entry(e.hash)),
            _ => {}
        }
        write
    }

    /// Whether it is to succeed, as things are.
    fn expected(&self, write: &MemoryWrite) -> bool {
        let newest = self.model.newest(write.agent.as_ref().unwrap(), &write.key).map(|e| e.hash);
        match write.parent {
            None => true,
            Some(Expected::None(_)) => newest.is_none(),
            Some(Expected::Entry(hash)) => newest == Some(hash),
        }
    }

    /// What an entry must be, but for its hash, which only has to be its own.
    fn learn(&mut self, entry: &Entry) {
        let chain = self.model.heads(&entry.agent, &entry.key);
        let newest = self.model.newest(&entry.agent, &entry.key);
        assert_eq!(entry.parent, newest.map(|e| e.hash));
        let superseded = entry.links.iter().filter(|l| l.kind == LINK_SUPERSEDES).count();
        assert_eq!(superseded, chain.len().saturating_sub(1));
        let seqs = self.model.0.iter().filter(|e| e.agent == entry.agent).map(|e| e.seq + 1);
        assert_eq!(entry.seq, seqs.max().unwrap_or(0));
        assert_eq!((entry.unix_ms, entry.labels["nullbox.node"].as_str()), (clock(), "0303030303030303"));
        self.model.0.push(entry.clone());
    }

    fn write(&mut self) {
        let who = self.agent();
        let owner = self.agent();
        let write = self.draft(&owner);
        let expected = self.expected(&write);
        let written =
            self.place.memory().write(&Author::Agent(who.clone()), Exposure::NONE, write, &|_, _| true);
        match written {
            Ok(entry) => {
                assert!(expected, "{entry:?}");
                let writer = entry.labels.get("nullbox.writer").cloned();
                assert_eq!(writer, (who != owner).then(|| format!("agent {who}")));
                self.learn(&entry);
            }
            Err(error) => assert!(!expected && matches!(error, MemoryError::Conflict { .. }), "{error}"),
        }
    }

    fn batch(&mut self) {
        let owner = self.agent();
        let mut writes: Vec<MemoryWrite> = (0..2).map(|_| self.draft(&owner)).collect();
        if writes[0].key == writes[1].key {
            writes[1].parent = None; // the model does not look between them
        }
        let expected = writes.iter().all(|write| self.expected(write));
        let author = Author::Operator("olga".into());
        match self.place.memory().batch(&author, Exposure::NONE, writes, &|_, _| true) {
            Ok(entries) => {
                assert!(expected);
                assert_eq!(entries.entries.len(), 2);
                entries.entries.iter().for_each(|entry| self.learn(entry));
            }
            Err(error) => assert!(!expected && matches!(error, MemoryError::Conflict { .. }), "{error}"),
        }
    }

    /// Some entries of another node that follow one another, in any order.
    fn import(&mut self) {
        let (owner, key) = (self.agent(), self.key());
        let known = self.model.of_key(&owner, &key);
        let at = self.random.below(known.len() as u64 + 1) as usize;
        let mut parent = known.get(at).map(|e| e.hash);
        let mut entries = Vec::new();
        for n in 0..=self.random.below(3) {
            let text = json!([self.step, n]).to_string();
            let mut header = Header {
                agent: owner.clone(),
                key: key.clone(),
                parent,
                seq: self.random.below(50) + n,
                unix_ms: clock() - 50_000 + self.random.below(100_000),
                labels: BTreeMap::from([("nullbox.node".into(), "f".repeat(16))]),
                links: Vec::new(),
                value: crate::entry::sha256(text.as_bytes()),
            };
            if self.random.below(3) == 0 {
                header.labels.insert("topic".into(), "t1".into());
                let other = self.model.heads(&owner, &key).first().map(|e| e.hash);
                header.links.extend(other.map(|to| Link { kind: LINK_SUPERSEDES.into(), to }));
            }
            let hash = header.hash().unwrap();
            parent = Some(hash);
            entries.insert(self.random.below(n + 1) as usize, (header, hash, text));
        }
        for (header, hash, text) in &entries {
            self.model.0.push(header.clone().entry(*hash, serde_json::from_str(text).unwrap()));
        }
        let put = move |store: &mut Store, _: &Ledger| {
            for _ in 0..2 {
                let batch = store.begin().unwrap();
                for (header, hash, text) in &entries {
                    batch.put(header, *hash, &Held::Value(text), None).unwrap(); // the second time it is there
                }
                batch.commit(None).unwrap();
            }
        };
        self.place.memory().exclusively(&Author::Operator("o".into()), put).unwrap();
    }

    fn forget(&mut self) {
        let Some(entry) = self.any() else { return };
        let author = Author::Agent(entry.agent.clone());
        let whole = self.random.below(3) == 0;
        let mut ask = MemoryForget { agent: Some(entry.agent.clone()), hash: None, key: None };
        if whole {
            ask.key = Some(entry.key.clone())
        } else {
            ask.hash = Some(entry.hash)
        }
        let forgot = self.place.memory().forget(&author, &ask).unwrap();
        let expected = self.model.forget(&format!("forgotten by {author}"), |_, e| {
            e.hash == entry.hash || (whole && e.agent == entry.agent && e.key == entry.key)
        });
        assert_eq!(forgot.values, expected);
    }

    fn tick(&mut self) {
        let now = CLOCK.fetch_add(self.random.below(200_000_000), Ordering::Relaxed);
        let tick = move |store: &mut Store, ledger: &Ledger| {
            let mut looked = Looked::default();
            while forget_due(store, ledger, RETENTION, now, &mut looked).unwrap() {}
        };
        self.place.memory().exclusively(&Author::Operator("o".into()), tick).unwrap();
        self.model.tick(now);
    }

    fn check(&mut self) {
        let (owner, key) = (self.agent(), self.key());
        let limit = Some(1 + self.random.below(7) as u32);
        let memory = self.place.memory();
        assert_eq!(memory.newest(&owner, &key).unwrap(), self.model.read(&owner, &key));
        let mut history: Vec<(usize, &Entry)> = self.model.0.iter().enumerate().collect();
        history.retain(|(_, e)| e.agent == owner && e.key == key);
        history.sort_by_key(|(n, e)| std::cmp::Reverse((e.seq, *n)));
        let expected: Vec<Entry> = history.into_iter().map(|(_, e)| e.clone()).collect();
        assert_eq!(pages(|cursor| memory.history(&owner, &chain(&key, limit, cursor)).unwrap()), expected);
        let prefix = ["", "k", "k/", "k/1", "z", "é", "nothing"][self.random.below(7) as usize];
        let expected: Vec<Entry> = self
            .model
            .keys(&owner, prefix)
            .iter()
            .map(|key| self.model.heads(&owner, key))
            .filter(|heads| heads.len() > 1)
            .flat_map(|heads| heads.into_iter().cloned())
            .collect();
        let ask = |cursor| MemoryConflicts { agent: None, prefix: prefix.into(), limit, cursor };
        assert_eq!(pages(|cursor| memory.conflicts(&owner, &ask(cursor)).unwrap()), expected);
        self.check_query(&owner, prefix, limit);
        self.check_traverse();
    }

    fn check_query(&mut self, owner: &AgentName, prefix: &str, limit: Option<u32>) {
        let mut query = ask(prefix, limit, None);
        if self.random.below(2) == 0 {
            query.labels.insert("topic".into(), format!("t{}", self.random.below(3)));
        }
        if self.random.below(3) == 0 {
            query.labels.insert("nullbox.node".into(), "f".repeat(16));
        }
        if self.random.below(3) == 0 {
            query.since_unix_ms = self.any().map(|e| e.unix_ms);
            query.until_unix_ms = self.any().map(|e| e.unix_ms);
        }
        if self.random.below(3) == 0 {
            query.linked_to = self.any().and_then(|e| e.links.first().map(|l| l.to));
        }
        let meets = |e: &Entry| {
            query.since_unix_ms.is_none_or(|since| e.unix_ms >= since)
                && query.until_unix_ms.is_none_or(|until| e.unix_ms < until)
                && query.labels.iter().all(|(name, value)| e.labels.get(name) == Some(value))
                && query.linked_to.is_none_or(|to| e.links.iter().any(|l| l.to == to))
        };
        let keys = self.model.keys(owner, prefix);
        let newest = keys.iter().map(|key| self.model.newest(owner, key).unwrap().clone());
        let expected: Vec<Entry> = newest.filter(meets).collect();
        let memory = self.place.memory();
        let page = |cursor| memory.query(owner, &MemoryQuery { cursor, ..query.clone() }).unwrap();
        assert_eq!(pages(page), expected, "{query:?}");
    }

    fn check_traverse(&mut self) {
        let Some(from) = self.any() else { return };
        let hidden = self.key();
        let ask = MemoryTraverse {
            agent: None,
            hash: from.hash,
            direction: [Direction::Out, Direction::In, Direction::Both][self.random.below(3) as usize],
            types: if self.random.below(2) == 0 { Vec::new() } else { vec!["about".into()] },
            depth: Some(1 + self.random.below(4) as u32),
            limit: None,
        };
        let found = self.place.memory().traverse(&ask, &|_, key| key != hidden).unwrap();
        let expected = self.model.traverse(&ask, &hidden);
        match (found, expected) {
            (Some(found), Some(mut expected)) => {
                for reached in &found.reached {
                    assert_eq!(Some(&reached.entry), self.model.find(&reached.entry.hash));
                }
                assert!(found.truncated || found.reached.len() == expected.len());
                expected.truncate(found.reached.len());
                let found: Vec<_> = found.reached.iter().map(|r| (r.depth, r.entry.hash)).collect();
                assert_eq!(found, expected);
            }
            (found, expected) => assert!(found.is_none() && expected.is_none(), "{found:?} {expected:?}"),
        }
    }
}

#[test]
fn memory_agrees_with_a_model_over_random_traces_and_restarts() {
    let mut place = Place { clock, ..Place::new(Quotas::default()) };
    place.restart();
    let mut trace = Trace { place, model: Model::default(), random: Random::new(), step: 0 };
    let steps = std::env::var("NULLBOX_MODEL_STEPS").map_or(300, |text| text.parse().unwrap());
    for step in 0..steps {
        trace.step = step;
        CLOCK.fetch_add(trace.random.below(2000), Ordering::Relaxed);
        match trace.random.below(20) {
            0..8 => trace.write(),
            8..10 => trace.batch(),
            10..12 => trace.import(),
            12 => trace.forget(),
            13 => trace.tick(),
            14 if trace.random.below(4) == 0 => trace.place.restart(),
            _ => trace.check(),
        }
    }
    for used in trace.place.memory().list().unwrap() {
        let own: Vec<_> = trace.model.0.iter().filter(|e| e.agent == used.agent).collect();
        assert_eq!(used.keys, trace.model.keys(&used.agent, "").len() as u64);
        assert_eq!(used.entries, own.len() as u64);
    }
    let state = trace.place.directory.path();
    let bytes = "SELECT (SELECT sum(bytes) FROM agent) - sum(octet_length(key) + octet_length(labels) + octet_length(links)
        + ifnull(octet_length(value), 0)) - (SELECT ifnull(sum(length(data)), 0) FROM vector) FROM entry";
    assert_eq!(count(state, bytes), 0, "use is what is there");
    let words =
        "SELECT (SELECT count(*) FROM search) - (SELECT count(*) FROM head JOIN entry ON id = head.entry
        WHERE newest AND value IS NOT NULL)";
    assert_eq!(count(state, words), 0, "the index has the newest values, and those alone");
}
