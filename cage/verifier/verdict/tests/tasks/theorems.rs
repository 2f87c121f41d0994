//! The theorems about tasks, over random lives: each is watched by a witness that knows nothing but what was said and what was asked for.
//! `NULLBOX_SEED=N` runs one life.

use super::support::{FOREIGN, Random, World, is_over, seeds};
use abi::ids::Digest;
use abi::limits;
use abi::task::TaskState as T;
use std::collections::{BTreeMap, BTreeSet};
use verdict::step::{Action, Actor, Event, Life, Outcome, Run, State, What, step};

/// What somebody who only listens knows of one task.
#[derive(Debug, Default)]
struct Witness {
    /// Claims as cage read them, by candidate.
    read: BTreeMap<u8, Digest>,
    /// What each verify VM was started for, and what it said was well.
    asked: BTreeMap<u32, Digest>,
    verified: BTreeMap<u32, Digest>,
    minted: BTreeSet<u8>,
    cancelled: bool,
    told: BTreeMap<u8, u32>,
    lives: BTreeMap<u8, BTreeSet<u8>>,
    /// Cages and verify VMs that run, as far as actions and losses say.
    cages: BTreeSet<Life>,
    vms: BTreeSet<Run>,
    last_run: u32,
    finished: Vec<T>,
}

impl Witness {
    fn hears(&mut self, event: &Event) {
        match (event.actor, event.what) {
            (_, What::ClaimRead { life, patch }) => {
                self.read.insert(life.candidate, patch);
            }
            (Actor::VerifyVm(run), What::Verified { patch, .. }) => {
                self.verified.insert(run.number, patch);
            }
            (Actor::VerifyVm(run), What::VerifyFailed | What::VerifyLost | What::Scored(_)) => {
                self.vms.remove(&run);
            }
            (_, What::Minted { run, proof }) => {
                assert_eq!(
                    self.verified.get(&run.number),
                    Some(&proof.patch()),
                    "minted what no VM verified"
                );
                self.minted.insert(run.candidate);
                self.vms.remove(&run);
            }
            (_, What::MintRefused(run)) => {
                self.vms.remove(&run);
            }
            (_, What::Lost(life)) => {
                self.cages.remove(&life);
            }
            (_, What::Restarted) => {
                self.cages.clear();
                self.vms.clear();
            }
            (_, What::Cancel) => self.cancelled = true,
            _ => {}
        }
    }

    fn sees(&mut self, action: Action) {
        let may_follow = matches!(action, Action::Finish(T::Integrated) | Action::Reject(_));
        assert!(self.finished.is_empty() || may_follow, "{action:?} after the end");
        match action {
            Action::StartCandidate(life) => {
                assert!(
                    self.lives.entry(life.candidate).or_default().insert(life.number),
                    "{life:?} came twice"
                );
                assert!(
                    self.cages.iter().all(|cage| cage.candidate != life.candidate),
                    "two cages of one candidate"
                );
                self.cages.insert(life);
            }
            Action::StopCandidate(life) => assert!(self.cages.remove(&life), "{life:?} does not run"),
            Action::FreezeCandidate(life) | Action::ThawCandidate(life) | Action::ReadClaim(life) => {
                assert!(self.cages.contains(&life), "{action:?} of a cage that does not run");
            }
            Action::StartVerify(run) | Action::StartScore(run) => {
                assert!(run.number > self.last_run, "{run:?} came twice");
                assert!(self.vms.iter().all(|vm| vm.candidate != run.candidate), "two VMs for one candidate");
                self.last_run = run.number;
                self.vms.insert(run);
                if matches!(action, Action::StartVerify(_)) {
                    self.asked.insert(run.number, self.read[&run.candidate]);
                }
            }
            Action::StopVerify(run) => assert!(self.vms.remove(&run), "{run:?} does not run"),
            Action::Mint(run) => assert_eq!(self.verified.get(&run.number), self.asked.get(&run.number)),
            Action::TellAgent(life, outcome) => {
                assert!(self.cages.contains(&life), "nobody is there to be told");
                *self.told.entry(life.candidate).or_default() += u32::from(outcome != Outcome::Verified);
            }
            Action::Finish(task) => self.finished.push(task),
            Action::Reject(_) => {}
        }
    }

    fn agrees(&self, world: &World, state: &State) {
        for candidate in state.candidates() {
            let number = candidate.number();
            let told = self.told.get(&number).copied().unwrap_or(0);
            assert!(candidate.attempts() <= state.terms().attempts, "attempts above their bound");
            assert!(told <= u32::from(candidate.attempts()), "told more often than tried");
            let lives = self.lives.get(&number).map_or(0, BTreeSet::len);
            assert!(lives <= usize::from(limits::RECOVERIES_MAX) + 1, "more lives than recoveries allow");
            assert!(candidate.recoveries() <= limits::RECOVERIES_MAX);
            assert_eq!(
                candidate.proof().is_some(),
                self.minted.contains(&number),
                "a proof without its mint"
            );
        }
        if matches!(state.task(), T::Verified | T::Integrated) {
            let winner = state.winner().expect("a verified task has a winner");
            let proof = winner.proof().expect("a winner has a proof");
            assert_eq!(proof.base(), world.base());
            assert_eq!(Some(proof.patch()), winner.patch());
            assert_eq!(self.read.get(&winner.number()), Some(&proof.patch()), "not the claim that was read");
            assert!(self.verified.values().any(|patch| *patch == proof.patch()), "no VM verified it");
            assert!(!self.cancelled, "a cancelled task is verified");
        }
        if is_over(state.task()) {
            assert!(
                self.cages.is_empty() && self.vms.is_empty(),
                "left behind: {:?} {:?}",
                self.cages,
                self.vms
            );
            assert_eq!(self.finished.last(), Some(&state.task()));
        } else {
            assert!(self.finished.is_empty());
            assert!(!self.cancelled);
        }
    }
}

/// How many lives ended how.
fn live(count: u64, likely: bool) -> BTreeMap<T, u32> {
    let world = World::new();
    let mut ends = BTreeMap::new();
    for seed in seeds(count) {
        let mut random = Random::new(seed);
        let mut state = State::new(world.random_terms(&mut random));
        let mut witness = Witness::default();
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..200 {
                let event = if likely || random.chance(2) {
                    world.likely_event(&state, &mut random)
                } else {
                    *random.pick(&world.every_event(&state))
                };
                let (next, actions) = step(state.clone(), event);
                if actions.rejected().is_none() {
                    witness.hears(&event);
                }
                for action in actions.iter() {
                    witness.sees(action);
                }
                state = next;
                witness.agrees(&world, &state);
            }
        }));
        if let Err(panic) = told {
            println!("NULLBOX_SEED={seed}: {state:?}\n{witness:?}");
            std::panic::resume_unwind(panic);
        }
        *ends.entry(state.task()).or_default() += 1;
    }
    println!("{ends:?}");
    ends
}

#[test]
fn complete_implies_verified_same_tree() {
    let ends = live(300, true);
    for end in [T::Integrated, T::Failed, T::Cancelled] {
        assert!(
            std::env::var("NULLBOX_SEED").is_ok() || ends.get(&end).is_some_and(|count| *count > 3),
            "{ends:?}"
        );
    }
}

#[test]
fn attempts_and_recoveries_are_bounded_whatever_is_said() {
    live(20, false);
}

#[test]
fn cancelled_never_completes() {
    let world = World::new();
    for seed in seeds(100) {
        let mut random = Random::new(seed);
        let mut state = State::new(world.random_terms(&mut random));
        for _ in 0..random.below(60) {
            state = step(state.clone(), world.likely_event(&state, &mut random)).0;
        }
        let cancel =
            Event { actor: Actor::Operator(abi::identity::Role::Admin), now_ms: 0, what: What::Cancel };
        let (cancelled, actions) = step(state.clone(), cancel);
        if is_over(state.task()) {
            assert!(actions.rejected().is_some(), "NULLBOX_SEED={seed}");
            continue;
        }
        for event in world.every_event(&cancelled) {
            let (after, actions) = step(cancelled.clone(), event);
            assert_eq!(
                (after.task(), actions.iter().count()),
                (T::Cancelled, 1),
                "NULLBOX_SEED={seed}: {event:?}"
            );
        }
    }
}

/// All orders of events without a verify VM's own word, up to a depth: breadth first over the states that they reach.
#[test]
fn without_a_verify_vms_word_nothing_is_ever_minted_or_verified() {
    let world = World::new();
    for is_scored in [false, true] {
        let mut seen = BTreeSet::new();
        let mut states = vec![State::new(world.terms(1, 2, is_scored))];
        for _ in 0..7 {
            let mut next = Vec::new();
            for state in &states {
                for event in world.every_event(state) {
                    if matches!((event.actor, event.what), (Actor::VerifyVm(_), What::Verified { .. })) {
                        continue;
                    }
                    let (after, actions) = step(state.clone(), event);
                    if actions.rejected().is_some() && after == *state {
                        continue;
                    }
                    assert!(
                        !actions
                            .iter()
                            .any(|action| matches!(action, Action::Mint(_) | Action::StartScore(_)))
                    );
                    assert!(!matches!(after.task(), T::Verified | T::Integrated), "{event:?}");
                    assert!(after.candidates().iter().all(|candidate| candidate.proof().is_none()));
                    if seen.insert(serde_json::to_string(&after).unwrap()) {
                        next.push(after);
                    }
                }
            }
            states = next;
        }
        println!("{} states", seen.len());
        assert!(seen.len() > 100);
    }
}

#[test]
fn a_proof_of_another_base_or_patch_counts_for_nothing() {
    let world = World::new();
    for seed in seeds(60) {
        let mut random = Random::new(seed);
        let mut state = State::new(world.random_terms(&mut random));
        for _ in 0..80 {
            for run in state.candidates().iter().filter_map(|candidate| candidate.run()).collect::<Vec<_>>() {
                let what = What::Minted { run, proof: world.proof(FOREIGN) };
                let (after, actions) = step(state.clone(), Event { actor: Actor::Cage, now_ms: 0, what });
                assert!(actions.rejected().is_some() && after == state, "NULLBOX_SEED={seed}");
                for (base, patch) in
                    [(world.proof(FOREIGN).base(), world.patch(0)), (world.base(), world.patch(FOREIGN))]
                {
                    let event = Event {
                        actor: Actor::VerifyVm(run),
                        now_ms: 0,
                        what: What::Verified { base, patch },
                    };
                    assert!(step(state.clone(), event).1.rejected().is_some(), "NULLBOX_SEED={seed}");
                }
            }
            state = step(state.clone(), world.likely_event(&state, &mut random)).0;
        }
    }
}
