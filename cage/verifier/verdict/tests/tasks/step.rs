//! The states of tasks: every state against every event and every actor, random lives against a reference, and what must never come about.

use super::model::Task;
use super::support::{Random, World, is_over, seeds};
use abi::identity::Role;
use abi::limits;
use abi::task::{CandidateState as C, TaskState as T};
use verdict::step::{ACTIONS_MAX, Action, Actor, Event, Life, Outcome, Run, State, Terms, What, Why, step};

fn say(state: &State, actor: Actor, now_ms: u64, what: What) -> (State, Vec<Action>, Option<Why>) {
    let (next, actions) = step(state.clone(), Event { actor, now_ms, what });
    let list: Vec<Action> = actions.iter().collect();
    (next, list, actions.rejected())
}

fn must(state: &mut State, actor: Actor, what: What) -> Vec<Action> {
    let (next, actions, why) = say(state, actor, 0, what);
    assert_eq!(why, None, "{what:?} in {state:?}");
    *state = next;
    actions
}

const OPERATOR: Actor = Actor::Operator(Role::Operator);

fn life(candidate: u8, number: u8) -> Life {
    Life { candidate, number }
}

/// A task whose candidate 1 has a verify VM that is awaited.
fn verifying(world: &World, terms: Terms) -> (State, Run) {
    let mut state = State::new(terms);
    must(&mut state, Actor::Cage, What::Accepted);
    must(&mut state, Actor::Cage, What::Started(life(1, 0)));
    must(&mut state, Actor::Agent(life(1, 0)), What::Claimed { is_end: false });
    let actions = must(&mut state, Actor::Cage, What::ClaimRead { life: life(1, 0), patch: world.patch(0) });
    let [Action::StartVerify(run)] = actions[..] else { panic!("{actions:?}") };
    must(&mut state, Actor::Cage, What::VerifyBegan(run));
    (state, run)
}

#[test]
fn a_verified_claim_ends_its_task_and_the_other_candidates() {
    let world = World::new();
    let (mut state, run) = verifying(&world, world.terms(3, 2, false));
    let verified = What::Verified { base: world.base(), patch: world.patch(0) };
    assert_eq!(must(&mut state, Actor::VerifyVm(run), verified), [Action::Mint(run)]);
    assert_eq!(state.task(), T::Running, "no patch is minted yet");
    let actions = must(&mut state, Actor::Cage, What::Minted { run, proof: world.proof(0) });
    assert_eq!(
        actions,
        [
            Action::TellAgent(life(1, 0), Outcome::Verified),
            Action::StopCandidate(life(1, 0)),
            Action::StopCandidate(life(2, 0)),
            Action::StopCandidate(life(3, 0)),
            Action::Finish(T::Verified)
        ]
    );
    assert_eq!((state.task(), state.winner().unwrap().number()), (T::Verified, 1));
    let states: Vec<C> = state.candidates().iter().map(|c| state.shown(c)).collect();
    assert_eq!(states, [C::Verified, C::Cancelled, C::Cancelled]);
    let (_, _, why) = say(&state, OPERATOR, 0, What::Integrated { proof: world.proof(1) });
    assert_eq!(why, Some(Why::Mismatch));
    let actions = must(&mut state, OPERATOR, What::Integrated { proof: world.proof(0) });
    assert_eq!((actions, state.task()), (vec![Action::Finish(T::Integrated)], T::Integrated));
}

#[test]
fn a_failed_verification_is_told_and_tried_again_until_the_attempts_are_used_up() {
    let world = World::new();
    let (mut state, run) = verifying(&world, world.terms(1, 2, false));
    let actions = must(&mut state, Actor::VerifyVm(run), What::VerifyFailed);
    assert_eq!(actions, [Action::TellAgent(life(1, 0), Outcome::NotVerified)]);
    assert_eq!(state.candidates()[0].state(), C::Working);
    must(&mut state, Actor::Agent(life(1, 0)), What::Claimed { is_end: false });
    let actions = must(&mut state, Actor::Cage, What::ClaimRefused(life(1, 0)));
    assert_eq!(
        actions,
        [
            Action::TellAgent(life(1, 0), Outcome::Refused),
            Action::StopCandidate(life(1, 0)),
            Action::Finish(T::Failed)
        ]
    );
    assert_eq!((state.task(), state.candidates()[0].attempts()), (T::Failed, 2));
}

#[test]
fn a_claim_of_a_command_that_ended_has_one_attempt() {
    let world = World::new();
    let mut state = State::new(world.terms(1, 3, false));
    must(&mut state, Actor::Cage, What::Accepted);
    must(&mut state, Actor::Cage, What::Started(life(1, 0)));
    must(&mut state, Actor::Agent(life(1, 0)), What::Claimed { is_end: true });
    let actions = must(&mut state, Actor::Cage, What::ClaimRefused(life(1, 0)));
    assert_eq!(actions, [Action::StopCandidate(life(1, 0)), Action::Finish(T::Failed)]);
}

#[test]
fn a_lease_that_ends_begins_a_new_life_three_times() {
    let world = World::new();
    let mut state = State::new(world.terms(1, 1, false));
    must(&mut state, Actor::Cage, What::Accepted);
    let mut now = 0;
    for number in 0..limits::RECOVERIES_MAX {
        let (_, actions, _) = say(&state, Actor::Clock, now + limits::TASK_LEASE_MS - 1, What::Tick);
        assert_eq!(actions, [], "the lease still holds");
        now += limits::TASK_LEASE_MS;
        let (next, actions, why) = say(&state, Actor::Clock, now, What::Tick);
        let (old, new) = (life(1, number), life(1, number + 1));
        assert_eq!((actions, why), (vec![Action::StopCandidate(old), Action::StartCandidate(new)], None));
        state = next;
        let (_, _, why) = say(&state, Actor::Cage, now, What::Started(old));
        assert_eq!(why, Some(Why::Stale), "what an earlier life did is stale");
        let (next, ..) = say(&state, Actor::Cage, now, What::Started(new));
        now += 1;
        (state, ..) = say(&next, Actor::Agent(new), now, What::Heard);
    }
    let (state, actions, _) = say(&state, Actor::Clock, now + limits::TASK_LEASE_MS, What::Tick);
    assert_eq!(actions, [Action::StopCandidate(life(1, limits::RECOVERIES_MAX)), Action::Finish(T::Failed)]);
    assert_eq!(state.task(), T::Failed);
}

#[test]
fn a_lease_does_not_end_while_a_human_is_waited_for() {
    let world = World::new();
    let mut state = State::new(world.terms(1, 1, false));
    must(&mut state, Actor::Cage, What::Accepted);
    must(&mut state, Actor::Cage, What::Started(life(1, 0)));
    must(&mut state, Actor::Cage, What::Asks(life(1, 0)));
    assert_eq!(state.candidates()[0].state(), C::Asking);
    let (state, actions, _) = say(&state, Actor::Clock, 50 * limits::TASK_LEASE_MS, What::Tick);
    assert_eq!(actions, []);
    let (state, ..) = say(&state, Actor::Cage, 50 * limits::TASK_LEASE_MS, What::Answered(life(1, 0)));
    assert_eq!(state.candidates()[0].state(), C::Working);
    let (_, actions, _) = say(&state, Actor::Clock, 51 * limits::TASK_LEASE_MS, What::Tick);
    assert_eq!(actions, [Action::StopCandidate(life(1, 0)), Action::StartCandidate(life(1, 1))]);
}

#[test]
fn a_lost_verify_vm_is_begun_again_twice() {
    let world = World::new();
    let (mut state, mut run) = verifying(&world, world.terms(1, 2, false));
    for _ in 0..verdict::step::VERIFY_LOSSES_MAX {
        let actions = must(&mut state, Actor::VerifyVm(run), What::VerifyLost);
        let [Action::StartVerify(next)] = actions[..] else { panic!("{actions:?}") };
        let (_, _, why) = say(&state, Actor::VerifyVm(run), 0, What::VerifyFailed);
        assert_eq!(why, Some(Why::Stale));
        must(&mut state, Actor::Cage, What::VerifyBegan(next));
        run = next;
    }
    let actions = must(&mut state, Actor::VerifyVm(run), What::VerifyLost);
    assert_eq!(actions, [Action::TellAgent(life(1, 0), Outcome::CouldNotVerify)]);
    assert_eq!((state.candidates()[0].state(), state.candidates()[0].attempts()), (C::Working, 1));
}

#[test]
fn a_paused_task_stands_still_and_goes_on_where_it_stood() {
    let world = World::new();
    let (mut state, run) = verifying(&world, world.terms(3, 2, false));
    must(&mut state, Actor::Cage, What::Started(life(2, 0)));
    let actions = must(&mut state, Actor::Cage, What::Spent);
    assert_eq!(
        actions,
        [
            Action::StopVerify(run),
            Action::FreezeCandidate(life(1, 0)),
            Action::FreezeCandidate(life(2, 0)),
            Action::FreezeCandidate(life(3, 0))
        ]
    );
    assert!(state.candidates().iter().all(|c| state.shown(c) == C::Paused));
    let verified = What::Verified { base: world.base(), patch: world.patch(0) };
    assert_eq!(say(&state, Actor::VerifyVm(run), 0, verified).2, Some(Why::Stale), "its VM was stopped");
    assert_eq!(say(&state, Actor::Clock, u64::MAX, What::Tick).1, [], "no lease ends meanwhile");
    assert_eq!(
        must(&mut state, Actor::Cage, What::Started(life(3, 0))),
        [Action::FreezeCandidate(life(3, 0))]
    );
    assert_eq!(must(&mut state, Actor::Agent(life(2, 0)), What::Claimed { is_end: false }), []);
    let actions = must(&mut state, OPERATOR, What::Resume);
    let next = Run { candidate: 1, number: 2 };
    assert_eq!(
        actions,
        [
            Action::ThawCandidate(life(1, 0)),
            Action::StartVerify(next),
            Action::ThawCandidate(life(2, 0)),
            Action::ReadClaim(life(2, 0)),
            Action::ThawCandidate(life(3, 0))
        ]
    );
    assert_eq!(state.task(), T::Running);
}

#[test]
fn a_patch_minted_while_its_task_is_paused_wins_when_it_goes_on() {
    let world = World::new();
    let (mut state, run) = verifying(&world, world.terms(2, 1, false));
    must(&mut state, Actor::VerifyVm(run), What::Verified { base: world.base(), patch: world.patch(0) });
    must(&mut state, OPERATOR, What::Pause);
    must(&mut state, Actor::Cage, What::Minted { run, proof: world.proof(0) });
    assert_eq!(state.task(), T::Paused);
    let actions = must(&mut state, OPERATOR, What::Resume);
    assert_eq!(actions, [Action::StopCandidate(life(2, 0)), Action::Finish(T::Verified)]);
}

#[test]
fn a_restart_begins_candidates_again_and_forgets_what_was_not_minted() {
    let world = World::new();
    let (mut state, run) = verifying(&world, world.terms(2, 2, true));
    must(&mut state, Actor::VerifyVm(run), What::Verified { base: world.base(), patch: world.patch(0) });
    let mut minted = state.clone();
    let actions = must(&mut state, Actor::Cage, What::Restarted);
    assert_eq!(actions, [Action::StartCandidate(life(1, 1)), Action::StartCandidate(life(2, 1))]);
    let minting = What::Minted { run, proof: world.proof(0) };
    assert_eq!(say(&state, Actor::Cage, 0, minting).2, Some(Why::Stale));
    must(&mut minted, Actor::Cage, minting);
    let actions = must(&mut minted, Actor::Cage, What::Restarted);
    let score = Run { candidate: 1, number: 3 };
    assert_eq!(actions, [Action::StartScore(score), Action::StartCandidate(life(2, 1))]);
    must(&mut minted, OPERATOR, What::Pause);
    assert_eq!(must(&mut minted, Actor::Cage, What::Restarted), []);
    let actions = must(&mut minted, OPERATOR, What::Resume);
    let score = Run { candidate: 1, number: 4 };
    assert_eq!(actions, [Action::StartScore(score), Action::StartCandidate(life(2, 2))]);
}

#[test]
fn the_best_score_wins_and_of_equals_the_lower_number() {
    let world = World::new();
    for (scores, winner) in [
        ([Some(1), Some(5), Some(2)], 2),
        ([Some(7), Some(7), Some(2)], 1),
        ([None, Some(-9), None], 2),
        ([None, None, None], 1),
        ([None, Some(i64::MIN), Some(i64::MIN)], 2),
    ] {
        let mut state = State::new(world.terms(3, 1, true));
        must(&mut state, Actor::Cage, What::Accepted);
        for (candidate, score) in (1u8..).zip(scores) {
            let (life, index) = (life(candidate, 0), usize::from(candidate) - 1);
            must(&mut state, Actor::Cage, What::Started(life));
            must(&mut state, Actor::Agent(life), What::Claimed { is_end: false });
            let read = What::ClaimRead { life, patch: world.patch(index) };
            let [Action::StartVerify(run)] = must(&mut state, Actor::Cage, read)[..] else { panic!() };
            must(&mut state, Actor::Cage, What::VerifyBegan(run));
            let verified = What::Verified { base: world.base(), patch: world.patch(index) };
            must(&mut state, Actor::VerifyVm(run), verified);
            let minted = must(&mut state, Actor::Cage, What::Minted { run, proof: world.proof(index) });
            let Some(Action::StartScore(run)) = minted.last() else { panic!("{minted:?}") };
            assert_eq!(state.task(), T::Running);
            must(&mut state, Actor::VerifyVm(*run), What::Scored(score));
        }
        assert_eq!(
            (state.task(), state.winner().map(|c| c.number())),
            (T::Verified, Some(winner)),
            "{scores:?}"
        );
        assert_eq!(state.winner().and_then(|c| c.score()), scores[usize::from(winner) - 1]);
    }
}

/// No event asks for more: `step_total_and_deterministic` has tasks of eight, and would miss what is cut.
#[test]
fn the_end_of_a_task_of_eight_verify_vms_asks_for_the_most() {
    let world = World::new();
    let mut state = State::new(world.terms(limits::CANDIDATES_MAX, 1, false));
    must(&mut state, Actor::Cage, What::Accepted);
    for candidate in 1..=limits::CANDIDATES_MAX {
        let life = life(candidate, 0);
        must(&mut state, Actor::Cage, What::Started(life));
        must(&mut state, Actor::Agent(life), What::Claimed { is_end: false });
        must(&mut state, Actor::Cage, What::ClaimRead { life, patch: world.patch(0) });
    }
    let actions = must(&mut state, OPERATOR, What::Cancel);
    assert_eq!((actions.len(), actions.last()), (ACTIONS_MAX, Some(&Action::Finish(T::Cancelled))));
}

#[test]
fn a_claim_whose_cage_is_gone_is_judged_all_the_same() {
    let world = World::new();
    let (mut state, run) = verifying(&world, world.terms(1, 2, false));
    must(&mut state, Actor::Cage, What::Lost(life(1, 0)));
    let mut failed = state.clone();
    must(&mut state, Actor::VerifyVm(run), What::Verified { base: world.base(), patch: world.patch(0) });
    let actions = must(&mut state, Actor::Cage, What::Minted { run, proof: world.proof(0) });
    assert_eq!(actions, [Action::Finish(T::Verified)]);
    let actions = must(&mut failed, Actor::VerifyVm(run), What::VerifyFailed);
    assert_eq!(actions, [Action::StartCandidate(life(1, 1))], "an attempt is left, and a recovery");
}

#[test]
fn terms_beyond_their_bounds_are_taken_as_the_nearest() {
    let world = World::new();
    let low = State::new(world.terms(0, 0, false));
    assert_eq!((low.candidates().len(), low.terms().attempts), (1, 1));
    let high = State::new(world.terms(255, 255, false));
    assert_eq!(high.candidates().len(), usize::from(limits::CANDIDATES_MAX));
    assert_eq!(high.terms().attempts, limits::ATTEMPTS_MAX);
}

#[test]
fn a_state_comes_back_from_disk_as_it_was() {
    let world = World::new();
    let (mut state, run) = verifying(&world, world.terms(2, 2, true));
    must(&mut state, Actor::VerifyVm(run), What::Verified { base: world.base(), patch: world.patch(0) });
    must(&mut state, Actor::Cage, What::Minted { run, proof: world.proof(0) });
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state);
    assert!(serde_json::from_str::<State>(&json.replace("\"runs\"", "\"walks\"")).is_err());
}

/// Each state that random lives come through, with every event by every actor, beside the second writing.
#[test]
fn step_total_and_deterministic() {
    let world = World::new();
    let mut kinds = std::collections::BTreeSet::new();
    for seed in seeds(40) {
        let mut random = Random::new(seed);
        let mut state = State::new(world.random_terms(&mut random));
        for _ in 0..40 {
            let task = Task::of(&state);
            task.is_shown_by(&state);
            kinds.extend(state.candidates().iter().map(|candidate| (state.task(), candidate.state())));
            for event in world.every_event(&state) {
                let (next, actions) = step(state.clone(), event);
                let again = step(state.clone(), event);
                assert_eq!((&next, &actions), (&again.0, &again.1), "NULLBOX_SEED={seed}: {event:?}");
                let asked: Vec<Action> = actions.iter().collect();
                match task.after(&event) {
                    Ok(after) => {
                        assert_eq!(Task::of(&next).asking(asked), after, "NULLBOX_SEED={seed}: {event:?}");
                    }
                    Err(why) => {
                        let refused = (vec![Action::Reject(why)], Some(why), &state);
                        assert_eq!(
                            (asked, actions.rejected(), &next),
                            refused,
                            "NULLBOX_SEED={seed}: {event:?}"
                        );
                    }
                }
                if is_over(state.task()) && next != state {
                    let last = (state.task(), next.task());
                    assert_eq!(last, (T::Verified, T::Integrated), "NULLBOX_SEED={seed}: {event:?}");
                }
            }
            state = step(state.clone(), world.likely_event(&state, &mut random)).0;
        }
    }
    if std::env::var("NULLBOX_SEED").is_ok() {
        return;
    }
    use C::{Asking, Cancelled, Claimed, Failed, Starting, Verified, Verifying, Waiting, Working};
    for (task, states) in [
        (T::Accepted, vec![Waiting]),
        (T::Running, vec![Starting, Working, Asking, Claimed, Verifying, Verified, Failed]),
        (T::Paused, vec![Waiting, Starting, Working, Asking, Claimed, Verified, Failed]),
        (T::Verified, vec![Verified, Failed, Cancelled]),
        (T::Integrated, vec![Verified]),
        (T::Failed, vec![Failed]),
        (T::Cancelled, vec![Cancelled]),
    ] {
        for state in states {
            assert!(kinds.contains(&(task, state)), "no life came through {task:?} with {state:?}");
        }
    }
}
