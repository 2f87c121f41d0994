//! How a task goes on: `step(State, Event)` gives the next state and what cage must do for it.
//!
//! Must hold: it is total and deterministic; each event names its actor and an event of a wrong one changes nothing; what ran in a VM that
//! is gone is stale and changes nothing; a task is verified only by the [`Proof`] of a patch that a verify VM ran; attempts and recoveries
//! are bounded; what is over stays over. Must never: say that something happened that nobody said.

mod actor;
mod table;

use abi::identity::Role;
use abi::ids::Digest;
use abi::limits;
use abi::task::{CandidateState, TaskState};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::patch::Proof;

/// Times that one verification is made again because its VM was lost.
pub const VERIFY_LOSSES_MAX: u8 = 2;
/// What one event can ask of cage at most: two of each candidate, and the end.
pub const ACTIONS_MAX: usize = 2 * limits::CANDIDATES_MAX as usize + 1;

/// One life of a candidate's cage. A candidate that is begun again has the next number; what an earlier life did is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Life {
    /// From 1 on.
    pub candidate: u8,
    /// From 0 on: the recoveries before it.
    pub number: u8,
}

/// One VM that runs the verify or the score command for a candidate. Numbers count up over the whole task and never come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub candidate: u8,
    /// From 1 on.
    pub number: u32,
}

/// Who says it. Cage fills it in from what it knows by itself: by which VM's socket, by which caller that nulld vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    Operator(Role),
    /// That life's VM: untrusted.
    Agent(Life),
    /// Cage, of what it did or saw itself.
    Cage,
    /// What the host saw of this verify VM.
    VerifyVm(Run),
    Clock,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub actor: Actor,
    /// Milliseconds of a clock that does not go back while cage runs. After [`What::Restarted`] it may be another.
    pub now_ms: u64,
    pub what: What,
}

/// What happened. Who may say it stands in `step/actor.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Cage: the receipt `task_accepted` is durable.
    Accepted,
    /// Cage: the VM of this life runs its agent.
    Started(Life),
    /// Agent: that VM was heard of (a frame, a heartbeat).
    Heard,
    /// Cage: a call of this life waits for a human; and: none does any more.
    Asks(Life),
    Answered(Life),
    /// Agent: it says that the tree is done. `is_end`: its command has ended with code 0, there is nobody to be told.
    Claimed {
        is_end: bool,
    },
    /// Cage: the change set was read and is legal.
    ClaimRead {
        life: Life,
        patch: Digest,
    },
    /// Cage: the change set was read and is not legal.
    ClaimRefused(Life),
    /// Cage: this life's command ended without a claim.
    Ended(Life),
    /// Cage: this life's VM is gone.
    Lost(Life),
    /// Cage: the verify VM runs.
    VerifyBegan(Run),
    /// Verify VM: the command ended well on this base with this patch.
    Verified {
        base: Digest,
        patch: Digest,
    },
    /// Verify VM: the command ended otherwise, or a bound was passed.
    VerifyFailed,
    /// Verify VM: it was lost before its command ended (also while scoring).
    VerifyLost,
    /// Cage: the patch was minted, and its receipt and attestation are durable.
    Minted {
        run: Run,
        proof: Proof,
    },
    /// Cage: `patch::mint` refused.
    MintRefused(Run),
    /// Verify VM: what the score command said; none: nothing that is a number.
    Scored(Option<i64>),
    /// Cage: a bound of the budget is used up.
    Spent,
    /// Cage: no receipt could be stored for too long.
    NoReceipts,
    /// Clock: time went on.
    Tick,
    /// Cage: it was begun again; every VM is gone.
    Restarted,
    /// Operator.
    Pause,
    /// Operator: go on, with more budget or without.
    Resume,
    /// Operator.
    Cancel,
    /// Operator: `patch::integrate` took the winner's patch and an approval.
    Integrated {
        proof: Proof,
    },
}

/// What cage must do. It reports each outcome as an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a cage from the base. Answer: `Started` or `Lost`.
    StartCandidate(Life),
    /// End its cage, frozen or not, wherever it is. No answer.
    StopCandidate(Life),
    FreezeCandidate(Life),
    ThawCandidate(Life),
    /// Read and check the change set. Answer: `ClaimRead`, `ClaimRefused` or `Lost`.
    ReadClaim(Life),
    /// Start a verify VM on base and claim. Answer: `VerifyBegan`, then `Verified`, `VerifyFailed` or `VerifyLost`.
    StartVerify(Run),
    /// The same with the score command. Answer: `Scored` or `VerifyLost`.
    StartScore(Run),
    /// End it, whatever it does; a patch of it that is not minted yet is not to be. No answer.
    StopVerify(Run),
    /// Mint the patch that this run verified, and have it attested. Answer: `Minted` or `MintRefused`.
    Mint(Run),
    /// Answer the `submit` of this life.
    TellAgent(Life, Outcome),
    /// The task is over, with this state: write its receipt.
    Finish(TaskState),
    /// Nothing was changed: this is not its actor's to say, or not now.
    Reject(Why),
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Verified,
    /// The change set is not legal.
    Refused,
    /// The command did not end well.
    NotVerified,
    /// Verify VMs were lost, or the patch could not be minted: nothing is known of the claim.
    CouldNotVerify,
}

/// Why an event changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// This actor may never say this.
    Actor,
    /// The operator's role is less than `operator`.
    Role,
    /// There is no such candidate.
    Candidate,
    /// It is of a life or a verify VM that is over.
    Stale,
    /// Not in this state.
    State,
    /// Another base, patch or result than the one that is judged.
    Mismatch,
}

/// At most [`ACTIONS_MAX`] actions, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actions {
    list: [Option<Action>; ACTIONS_MAX],
    length: usize,
}

impl Actions {
    fn push(&mut self, action: Action) {
        if let Some(place) = self.list.get_mut(self.length) {
            *place = Some(action);
            self.length += 1;
        }
    }

    fn extend(&mut self, action: Option<Action>) {
        if let Some(action) = action {
            self.push(action);
        }
    }

    /// In the order in which they are to be done.
    pub fn iter(&self) -> impl Iterator<Item = Action> + '_ {
        self.list.iter().flatten().copied()
    }

    /// Why nothing was changed, if nothing was.
    pub fn rejected(&self) -> Option<Why> {
        self.iter().find_map(|action| match action {
            Action::Reject(why) => Some(why),
            _ => None,
        })
    }
}

/// What is fixed for a task when it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Digest of the base tree.
    pub base: Digest,
    /// 1 to [`limits::CANDIDATES_MAX`]; others are taken as the nearest.
    pub candidates: u8,
    /// 1 to [`limits::ATTEMPTS_MAX`]; others are taken as the nearest.
    pub attempts: u8,
    /// All candidates go on, and the best score wins.
    pub is_scored: bool,
}

/// One task. Only [`step`] changes it; cage keeps it on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    terms: Terms,
    task: TaskState,
    candidates: Vec<Candidate>,
    winner: Option<u8>,
    /// Verify VMs that were begun.
    runs: u32,
}

/// One candidate of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    number: u8,
    /// While the task is paused: the state it goes on from.
    state: CandidateState,
    cage: Cage,
    /// Claims that came to nothing.
    attempts: u8,
    recoveries: u8,
    /// Of the present verification's VMs.
    losses: u8,
    lease_until_ms: u64,
    /// The present claim's.
    patch: Option<Digest>,
    /// The verify VM that is awaited.
    run: Option<Run>,
    proof: Option<Proof>,
    scoring: Scoring,
}

/// How a candidate's own cage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cage {
    /// It can be told something.
    Alive,
    /// Its command ended after its claim.
    Ended,
    /// It was lost, or stopped.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Scoring {
    Open,
    Done(Option<i64>),
}

impl State {
    /// A task that is accepted as soon as its receipt is durable.
    pub fn new(terms: Terms) -> State {
        let terms = Terms {
            candidates: terms.candidates.clamp(1, limits::CANDIDATES_MAX),
            attempts: terms.attempts.clamp(1, limits::ATTEMPTS_MAX),
            ..terms
        };
        let candidates = (1..=terms.candidates).map(Candidate::new).collect();
        State { terms, task: TaskState::Accepted, candidates, winner: None, runs: 0 }
    }

    /// How the task stands.
    pub fn task(&self) -> TaskState {
        self.task
    }

    /// What was fixed when it was accepted, within the bounds.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// By number, from 1 on.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Whose patch is the task's.
    pub fn winner(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| Some(candidate.number) == self.winner)
    }

    /// How a candidate stands for those who look: with its task it is paused.
    pub fn shown(&self, candidate: &Candidate) -> CandidateState {
        use CandidateState::{Asking, Claimed, Starting, Verifying, Waiting, Working};
        match candidate.state {
            Waiting | Starting | Working | Asking | Claimed | Verifying if self.task == TaskState::Paused => {
                CandidateState::Paused
            }
            state => state,
        }
    }
}

impl Candidate {
    fn new(number: u8) -> Candidate {
        Candidate {
            number,
            state: CandidateState::Waiting,
            cage: Cage::Gone,
            attempts: 0,
            recoveries: 0,
            losses: 0,
            lease_until_ms: 0,
            patch: None,
            run: None,
            proof: None,
            scoring: Scoring::Open,
        }
    }

    /// From 1 on.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// While its task is paused: the state it goes on from. [`State::shown`] says `paused` then.
    pub fn state(&self) -> CandidateState {
        self.state
    }

    /// Its present life.
    pub fn life(&self) -> Life {
        Life { candidate: self.number, number: self.recoveries }
    }

    /// The verify VM that is awaited.
    pub fn run(&self) -> Option<Run> {
        self.run
    }

    /// Claims of it that were judged, whatever came of them.
    pub fn attempts(&self) -> u8 {
        self.attempts.saturating_add(self.proof.is_some().into())
    }

    /// Times that it was begun again.
    pub fn recoveries(&self) -> u8 {
        self.recoveries
    }

    /// When it is begun again, unless it is heard of; only while it starts or works.
    pub fn lease_until_ms(&self) -> u64 {
        self.lease_until_ms
    }

    /// Digest of the patch that it claims, or that was verified.
    pub fn patch(&self) -> Option<Digest> {
        self.patch
    }

    /// That its patch was verified and minted.
    pub fn proof(&self) -> Option<Proof> {
        self.proof
    }

    /// What the score command said.
    pub fn score(&self) -> Option<i64> {
        match self.scoring {
            Scoring::Done(score) => score,
            Scoring::Open => None,
        }
    }
}

/// The next state, and what to do. A rejected event gives the same state and one [`Action::Reject`].
pub fn step(state: State, event: Event) -> (State, Actions) {
    let mut actions = Actions::default();
    let after = actor::check(&event).and_then(|()| {
        let mut next = state.clone();
        table::apply(&mut next, &event, &mut actions)?;
        Ok(next)
    });
    match after {
        Ok(next) => (next, actions),
        Err(why) => {
            let mut rejected = Actions::default();
            rejected.push(Action::Reject(why));
            (state, rejected)
        }
    }
}
