//! What the tests of tasks share: small trees, patches that were really minted, and events, likely and unlikely.

use abi::guest::Exit;
use abi::identity::Role;
use abi::ids::Digest;
use abi::task::{CandidateState as C, TaskState as T};
use sha2::{Digest as _, Sha256};
use verdict::patch::{
    ChangeSet, Claimed, ClaimedChange, ClaimedContent, Proof, Protect, Verification, check, mint,
};
use verdict::step::{Actor, Event, Life, Run, State, Terms, What};
use verdict::tree::{Entry, Tree};

/// splitmix64: the same numbers from the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// The seeds of a random test: one of its own if `NULLBOX_SEED` is set, else these.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("NULLBOX_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}

pub fn digest(text: &str) -> Digest {
    Digest(Sha256::digest(text).into())
}

pub fn file(text: &str) -> Entry {
    Entry::File { is_executable: false, sha256: digest(text), bytes: text.len() as u64 }
}

pub fn link(target: &str) -> Entry {
    Entry::Link { target: target.into() }
}

/// A tree of paths; directories that are not named are made.
pub fn tree(list: &[(&str, Entry)]) -> Tree {
    let mut entries = std::collections::BTreeMap::new();
    for (path, entry) in list {
        for (at, _) in path.match_indices('/') {
            entries.entry(path[..at].to_owned()).or_insert(Entry::Directory);
        }
        entries.insert((*path).to_owned(), entry.clone());
    }
    Tree::new(entries).unwrap()
}

pub fn changed(path: &str, content: ClaimedContent) -> ClaimedChange {
    let mode = if content == ClaimedContent::Directory { 0o755 } else { 0o644 };
    ClaimedChange { path: path.into(), mode, content }
}

pub fn write(path: &str, text: &str) -> ClaimedChange {
    changed(path, ClaimedContent::File { sha256: digest(text), bytes: text.len() as u64 })
}

pub fn claim(changes: Vec<ClaimedChange>) -> Claimed {
    Claimed { changes }
}

/// What the host saw of a command that ended well on exactly this.
pub fn seen(changes: &ChangeSet) -> Verification {
    Verification {
        base: changes.base(),
        result: changes.result(),
        exit: Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 },
        output_bytes: 10,
        wall_ms: 10,
        wall_ms_max: 1000,
    }
}

/// A base and proofs of patches over it, and of one over another base.
#[derive(Debug)]
pub struct World {
    base: Digest,
    proofs: [Proof; 4],
}

/// The number of the patch that is over another base.
pub const FOREIGN: usize = 3;

impl World {
    pub fn new() -> World {
        let base = tree(&[("src/lib.rs", file("wrong"))]);
        let other = tree(&[("src/lib.rs", file("quite wrong"))]);
        let proof = |tree: &Tree, text: &str| {
            let changes = check(tree, claim(vec![write("src/lib.rs", text)]), &Protect::default()).unwrap();
            let seen = seen(&changes);
            mint(changes, &seen).unwrap().proof()
        };
        let proofs = [proof(&base, "one"), proof(&base, "two"), proof(&base, "three"), proof(&other, "one")];
        World { base: base.digest(), proofs }
    }

    pub fn base(&self) -> Digest {
        self.base
    }

    pub fn proof(&self, index: usize) -> Proof {
        self.proofs[index]
    }

    pub fn patch(&self, index: usize) -> Digest {
        self.proof(index).patch()
    }

    pub fn terms(&self, candidates: u8, attempts: u8, is_scored: bool) -> Terms {
        Terms { base: self.base, candidates, attempts, is_scored }
    }

    pub fn random_terms(&self, random: &mut Random) -> Terms {
        let candidates = if random.chance(8) { 8 } else { 1 + random.below(3) as u8 };
        self.terms(candidates, 1 + random.below(3) as u8, random.chance(2))
    }

    pub fn actors(&self, lives: &[Life], runs: &[Run]) -> Vec<Actor> {
        let fixed = [Role::Reader, Role::Operator, Role::Admin].map(Actor::Operator);
        let mut actors = fixed.to_vec();
        actors.extend([Actor::Cage, Actor::Clock]);
        actors.extend(lives.iter().map(|life| Actor::Agent(*life)));
        actors.extend(runs.iter().map(|run| Actor::VerifyVm(*run)));
        actors
    }

    /// What can be said of these lives and VMs at all.
    pub fn whats(&self, lives: &[Life], runs: &[Run]) -> Vec<What> {
        let mut all = vec![
            What::Accepted,
            What::Heard,
            What::Claimed { is_end: false },
            What::Claimed { is_end: true },
            What::Verified { base: self.base, patch: self.patch(0) },
            What::Verified { base: self.base, patch: self.patch(1) },
            What::Verified { base: self.proof(FOREIGN).base(), patch: self.patch(FOREIGN) },
            What::VerifyFailed,
            What::VerifyLost,
            What::Scored(Some(4)),
            What::Scored(None),
            What::Spent,
            What::NoReceipts,
            What::Tick,
            What::Restarted,
            What::Pause,
            What::Resume,
            What::Cancel,
            What::Integrated { proof: self.proof(0) },
            What::Integrated { proof: self.proof(FOREIGN) },
        ];
        for life in lives.iter().copied() {
            all.extend([
                What::Started(life),
                What::Asks(life),
                What::Answered(life),
                What::ClaimRefused(life),
            ]);
            all.extend([What::Ended(life), What::Lost(life)]);
            all.extend([0, 1, FOREIGN].map(|index| What::ClaimRead { life, patch: self.patch(index) }));
        }
        for run in runs.iter().copied() {
            all.extend([What::VerifyBegan(run), What::MintRefused(run)]);
            all.extend([0, 1, FOREIGN].map(|index| What::Minted { run, proof: self.proof(index) }));
        }
        all
    }

    fn lives_and_runs(&self, state: &State) -> (Vec<Life>, Vec<Run>) {
        let mut lives = vec![Life { candidate: 0, number: 0 }, Life { candidate: 9, number: 0 }];
        let mut runs = vec![Run { candidate: 1, number: 0 }, Run { candidate: 9, number: 1 }];
        for candidate in state.candidates() {
            let life = candidate.life();
            lives.extend([life, Life { number: life.number.wrapping_sub(1), ..life }]);
            runs.extend(candidate.run());
            runs.extend(candidate.run().map(|run| Run { number: run.number - 1, ..run }));
        }
        (lives, runs)
    }

    /// Every event that is worth trying in a state, each by every actor, and time up to each lease and to just before it.
    pub fn every_event(&self, state: &State) -> Vec<Event> {
        let (mut lives, mut runs) = self.lives_and_runs(state);
        lives.truncate(6);
        runs.truncate(6);
        let actors = self.actors(&lives, &runs);
        let whats = self.whats(&lives, &runs);
        let pairs = whats.iter().flat_map(|what| actors.iter().map(move |actor| (*what, *actor)));
        let ends = state.candidates().iter().map(|candidate| candidate.lease_until_ms());
        let ticks = ends.flat_map(|end| [end.saturating_sub(1), end]);
        pairs
            .map(|(what, actor)| Event { actor, now_ms: 1 << 40, what })
            .chain(ticks.map(|now_ms| Event { actor: Actor::Clock, now_ms, what: What::Tick }))
            .collect()
    }

    /// Mostly what a well-behaved node says next, now and then anything by anybody.
    pub fn likely_event(&self, state: &State, random: &mut Random) -> Event {
        let (lives, runs) = self.lives_and_runs(state);
        let now_ms = random.next() % 400_000;
        if random.chance(6) {
            let actor = *random.pick(&self.actors(&lives, &runs));
            return Event { actor, now_ms, what: *random.pick(&self.whats(&lives, &runs)) };
        }
        let (actor, what) = match state.task() {
            T::Accepted => (Actor::Cage, What::Accepted),
            T::Paused if random.chance(2) => (Actor::Operator(Role::Operator), What::Resume),
            T::Verified => {
                let proof = state.winner().and_then(|c| c.proof()).unwrap();
                (Actor::Operator(Role::Admin), What::Integrated { proof })
            }
            _ if random.chance(40) => (Actor::Operator(Role::Operator), What::Cancel),
            _ if random.chance(20) => {
                (Actor::Cage, *random.pick(&[What::Spent, What::NoReceipts, What::Restarted]))
            }
            _ if random.chance(20) => (Actor::Clock, What::Tick),
            _ => self.of_candidate(state, random),
        };
        Event { actor, now_ms, what }
    }

    fn of_candidate(&self, state: &State, random: &mut Random) -> (Actor, What) {
        let candidate = random.pick(state.candidates());
        let life = candidate.life();
        let of_run = |what: What| {
            candidate.run().map_or((Actor::Clock, What::Tick), |run| (Actor::VerifyVm(run), what))
        };
        let index = random.below(2);
        match (candidate.state(), random.below(6)) {
            (C::Starting | C::Working | C::Asking | C::Claimed, 0) => (Actor::Cage, What::Lost(life)),
            (C::Starting, _) => (Actor::Cage, What::Started(life)),
            (C::Working | C::Asking, 1) => (Actor::Cage, What::Ended(life)),
            (C::Working, 2) => (Actor::Cage, What::Asks(life)),
            (C::Working, 3) => (Actor::Agent(life), What::Heard),
            (C::Working, _) => (Actor::Agent(life), What::Claimed { is_end: random.chance(5) }),
            (C::Asking, _) => (Actor::Cage, What::Answered(life)),
            (C::Claimed, 1) => (Actor::Cage, What::ClaimRefused(life)),
            (C::Claimed, _) => match (candidate.patch(), candidate.run()) {
                (None, _) => (Actor::Cage, What::ClaimRead { life, patch: self.patch(index) }),
                (_, Some(run)) => (Actor::Cage, What::VerifyBegan(run)),
                _ => (Actor::Agent(life), What::Heard),
            },
            (C::Verifying, 0 | 1) => of_run(What::VerifyFailed),
            (C::Verifying, 2) => of_run(What::VerifyLost),
            (C::Verifying, _) => {
                let patch = candidate.patch().unwrap();
                of_run(What::Verified { base: self.base, patch })
            }
            (C::Verified, n) if candidate.proof().is_none() => match candidate.run() {
                Some(run) if n == 0 => (Actor::Cage, What::MintRefused(run)),
                Some(run) => (Actor::Cage, What::Minted { run, proof: self.proof(index) }),
                None => (Actor::Clock, What::Tick),
            },
            (C::Verified, 0) => of_run(What::VerifyLost),
            (C::Verified, n) => of_run(What::Scored(if n < 3 { None } else { Some(n as i64) })),
            _ => (Actor::Clock, What::Tick),
        }
    }
}

/// The table of who may say what, written a second time, from docs/tasks.md and the events' own words.
pub fn may_say(event: &Event) -> bool {
    match event.what {
        What::Heard | What::Claimed { .. } => matches!(event.actor, Actor::Agent(_)),
        What::Verified { .. } | What::VerifyFailed | What::VerifyLost | What::Scored(_) => {
            matches!(event.actor, Actor::VerifyVm(_))
        }
        What::Tick => event.actor == Actor::Clock,
        What::Pause | What::Resume | What::Cancel | What::Integrated { .. } => {
            matches!(event.actor, Actor::Operator(Role::Operator | Role::Admin))
        }
        _ => event.actor == Actor::Cage,
    }
}

/// Whether nothing happens to a task any more, but that its patch is integrated.
pub fn is_over(task: T) -> bool {
    !matches!(task, T::Accepted | T::Running | T::Paused)
}
