//! How a task goes on, written down a second time from docs/tasks.md and the words of the events: event by event, over what cage keeps on
//! disk. `step` must agree: in the state that follows, in what is asked of cage and its order, and in why something is refused.

use super::support::{is_over, may_say};
use abi::identity::Role;
use abi::ids::Digest;
use abi::limits;
use abi::task::{CandidateState as C, TaskState as T};
use serde::Deserialize;
use serde_json::{Value, json};
use verdict::patch::Proof;
use verdict::step::{Action, Actor, Event, Life, Outcome, Run, State, Terms, What as W, Why};

/// A task as its JSON has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Task {
    terms: Terms,
    task: T,
    candidates: Vec<Candidate>,
    winner: Option<u8>,
    runs: u32,
    /// Asked of cage by the last event.
    #[serde(skip)]
    actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Candidate {
    number: u8,
    state: C,
    cage: String,
    attempts: u8,
    recoveries: u8,
    losses: u8,
    lease_until_ms: u64,
    patch: Option<Digest>,
    run: Option<Run>,
    proof: Option<Proof>,
    scoring: Value,
}

impl Candidate {
    fn life(&self) -> Life {
        Life { candidate: self.number, number: self.recoveries }
    }

    /// It says what it does, or does it.
    fn is_at_work(&self) -> bool {
        matches!(self.state, C::Working | C::Asking)
    }

    fn is_scored(&self) -> bool {
        self.scoring != "open"
    }

    /// Of which life or which verify VM the event is, if it is not of the present one.
    fn is_stale(&self, life: Option<Life>, run: Option<Run>) -> bool {
        life.is_some_and(|life| life.number != self.recoveries || self.cage == "gone")
            || (run.is_some() && run != self.run)
    }

    /// When each thing may be said of a candidate.
    fn may_be(&self, what: W) -> bool {
        let (is_read, is_minted) = (self.patch.is_some(), self.proof.is_some());
        match what {
            W::Heard | W::Lost(_) => true,
            W::Started(_) => self.state == C::Starting,
            W::Asks(_) | W::Claimed { .. } => self.is_at_work(),
            W::Answered(_) => self.state == C::Asking,
            W::Ended(_) => self.state != C::Starting,
            W::ClaimRead { .. } | W::ClaimRefused(_) => self.state == C::Claimed && !is_read,
            W::VerifyBegan(_) => self.state == C::Claimed,
            W::Verified { .. } | W::VerifyFailed => self.state == C::Verifying,
            W::VerifyLost => is_minted || self.state != C::Verified,
            W::Minted { .. } | W::MintRefused(_) => self.state == C::Verified && !is_minted,
            W::Scored(_) => is_minted,
            _ => false,
        }
    }
}

impl Task {
    pub fn of(state: &State) -> Task {
        serde_json::from_value(serde_json::to_value(state).unwrap()).unwrap()
    }

    pub fn asking(self, actions: Vec<Action>) -> Task {
        Task { actions, ..self }
    }

    /// What the state says to those who ask is what it keeps.
    pub fn is_shown_by(&self, state: &State) {
        assert_eq!((state.task(), state.terms()), (self.task, &self.terms));
        assert_eq!(state.winner().map(|winner| winner.number()), self.winner);
        assert_eq!(state.candidates().len(), self.candidates.len());
        for (shown, one) in state.candidates().iter().zip(&self.candidates) {
            assert_eq!((shown.number(), shown.state(), shown.life()), (one.number, one.state, one.life()));
            assert_eq!((shown.run(), shown.patch(), shown.proof()), (one.run, one.patch, one.proof));
            assert_eq!((shown.recoveries(), shown.lease_until_ms()), (one.recoveries, one.lease_until_ms));
            assert_eq!(shown.attempts(), one.attempts + u8::from(one.proof.is_some()));
            assert_eq!(shown.score(), one.scoring["done"].as_i64());
            let stands = self.task == T::Paused && !matches!(one.state, C::Verified | C::Failed);
            assert_eq!(state.shown(shown), if stands { C::Paused } else { one.state });
        }
    }

    /// The same task after the event, or why nothing changes.
    pub fn after(&self, event: &Event) -> Result<Task, Why> {
        let is_of_operators = matches!(event.what, W::Pause | W::Resume | W::Cancel | W::Integrated { .. });
        match event.actor {
            Actor::Operator(Role::Reader) if is_of_operators => return Err(Why::Role),
            _ if !may_say(event) => return Err(Why::Actor),
            _ => {}
        }
        let mut task = Task { actions: vec![], ..self.clone() };
        match (event.what, self.task) {
            (W::Accepted, T::Accepted) | (W::Resume, T::Paused) => task.go_on(event.now_ms),
            (W::Cancel, state) if !is_over(state) => task.end(T::Cancelled),
            (W::Pause | W::Spent | W::NoReceipts, T::Running) => task.pause(),
            (W::Spent | W::NoReceipts, T::Paused) => {}
            (W::Restarted | W::Tick, T::Accepted) | (W::Tick, T::Paused) => {}
            (W::Restarted, T::Running | T::Paused) => task.restart(event.now_ms),
            (W::Tick, T::Running) => task.tick(event.now_ms),
            (W::Integrated { proof }, T::Verified) => task.integrate(proof)?,
            (W::Accepted | W::Resume | W::Cancel | W::Pause, _) => return Err(Why::State),
            (W::Spent | W::NoReceipts | W::Restarted | W::Tick | W::Integrated { .. }, _) => {
                return Err(Why::State);
            }
            (_, T::Running | T::Paused) => task.candidate(event)?,
            _ => return Err(Why::State),
        }
        task.decide();
        Ok(task)
    }

    fn candidate(&mut self, event: &Event) -> Result<(), Why> {
        let life = match (event.actor, event.what) {
            (Actor::Agent(life), _) | (_, W::Started(life) | W::Asks(life) | W::Answered(life)) => Some(life),
            (_, W::ClaimRead { life, .. } | W::ClaimRefused(life) | W::Ended(life) | W::Lost(life)) => {
                Some(life)
            }
            _ => None,
        };
        let run = match (event.actor, event.what) {
            (Actor::VerifyVm(run), _) => Some(run),
            (_, W::VerifyBegan(run) | W::Minted { run, .. } | W::MintRefused(run)) => Some(run),
            _ => None,
        };
        let number = life.map(|life| life.candidate).or(run.map(|run| run.candidate)).unwrap();
        let at = self.candidates.iter().position(|one| one.number == number).ok_or(Why::Candidate)?;
        let one = &self.candidates[at];
        if one.is_stale(life, run) {
            return Err(Why::Stale);
        }
        if !one.may_be(event.what) {
            return Err(Why::State);
        }
        let judged = match event.what {
            W::Verified { base, patch } => Some((base, patch)),
            W::Minted { proof, .. } => Some((proof.base(), proof.patch())),
            _ => None,
        };
        if judged.is_some_and(|(base, patch)| base != self.terms.base || Some(patch) != one.patch) {
            return Err(Why::Mismatch);
        }
        self.happens(at, event.what, event.now_ms);
        Ok(())
    }

    /// It may be, and is of the candidate's present life or verify VM.
    fn happens(&mut self, at: usize, what: W, now_ms: u64) {
        let is_running = self.task == T::Running;
        let one = &mut self.candidates[at];
        match what {
            W::Started(life) => {
                self.work(at, now_ms);
                self.actions.extend((!is_running).then_some(Action::FreezeCandidate(life)));
            }
            W::Heard if matches!(one.state, C::Starting | C::Working) => self.lease(at, now_ms),
            W::Asks(_) => one.state = C::Asking,
            W::Answered(_) => self.work(at, now_ms),
            W::Claimed { is_end } => {
                (one.state, one.losses) = (C::Claimed, 0);
                if is_end {
                    one.cage = "ended".into();
                }
                self.actions.extend(is_running.then_some(Action::ReadClaim(one.life())));
            }
            W::ClaimRead { patch, .. } => {
                one.patch = Some(patch);
                self.verify(at);
            }
            W::ClaimRefused(_) => self.came_to_nothing(at, Outcome::Refused, now_ms),
            W::Ended(_) if one.is_at_work() => self.fail(at),
            W::Ended(_) => one.cage = "ended".into(),
            W::Lost(_) => {
                one.cage = "gone".into();
                if one.patch.is_none() {
                    self.begin_again(at, now_ms);
                }
            }
            W::VerifyBegan(_) => one.state = C::Verifying,
            W::Verified { .. } => {
                one.state = C::Verified;
                self.actions.push(Action::Mint(one.run.unwrap()));
            }
            W::VerifyFailed => self.came_to_nothing(at, Outcome::NotVerified, now_ms),
            W::VerifyLost => self.lose(at, now_ms),
            W::Minted { proof, .. } => self.minted(at, proof),
            W::MintRefused(_) => self.came_to_nothing(at, Outcome::CouldNotVerify, now_ms),
            W::Scored(score) => (one.run, one.scoring) = (None, json!({ "done": score })),
            _ => {}
        }
    }

    fn lease(&mut self, at: usize, now_ms: u64) {
        self.candidates[at].lease_until_ms = now_ms.saturating_add(limits::TASK_LEASE_MS);
    }

    fn work(&mut self, at: usize, now_ms: u64) {
        self.candidates[at].state = C::Working;
        self.lease(at, now_ms);
    }

    fn start(&mut self, at: usize, now_ms: u64) {
        self.lease(at, now_ms);
        let one = &mut self.candidates[at];
        (one.state, one.cage) = (C::Starting, "alive".into());
        self.actions.push(Action::StartCandidate(one.life()));
    }

    fn next_run(&mut self, at: usize) -> Run {
        self.runs += 1;
        let run = Run { candidate: self.candidates[at].number, number: self.runs };
        self.candidates[at].run = Some(run);
        run
    }

    fn verify(&mut self, at: usize) {
        self.candidates[at].state = C::Claimed;
        if self.task == T::Running {
            let run = self.next_run(at);
            self.actions.push(Action::StartVerify(run));
        }
    }

    /// With a score command: what was minted gets a score.
    fn score(&mut self, at: usize) {
        if self.task == T::Running && self.terms.is_scored && !self.candidates[at].is_scored() {
            let run = self.next_run(at);
            self.actions.push(Action::StartScore(run));
        }
    }

    fn minted(&mut self, at: usize, proof: Proof) {
        let one = &mut self.candidates[at];
        (one.proof, one.run, one.losses) = (Some(proof), None, 0);
        if one.cage == "alive" {
            self.actions.push(Action::TellAgent(one.life(), Outcome::Verified));
        }
        self.stop(at);
        self.score(at);
    }

    /// A verification is made again twice; then nothing is known of the claim, or of the score.
    fn lose(&mut self, at: usize, now_ms: u64) {
        let one = &mut self.candidates[at];
        (one.run, one.losses) = (None, one.losses + 1);
        match (one.proof.is_some(), one.losses) {
            (false, ..=2) => self.verify(at),
            (false, _) => self.came_to_nothing(at, Outcome::CouldNotVerify, now_ms),
            (true, ..=2) => self.score(at),
            (true, _) => one.scoring = json!({ "done": null }),
        }
    }

    fn came_to_nothing(&mut self, at: usize, outcome: Outcome, now_ms: u64) {
        let one = &mut self.candidates[at];
        (one.patch, one.run, one.attempts) = (None, None, one.attempts + 1);
        let is_alive = one.cage == "alive";
        self.actions.extend(is_alive.then_some(Action::TellAgent(one.life(), outcome)));
        if one.attempts == self.terms.attempts || one.cage == "ended" {
            self.fail(at);
        } else if is_alive {
            self.work(at, now_ms);
        } else {
            self.begin_again(at, now_ms);
        }
    }

    fn begin_again(&mut self, at: usize, now_ms: u64) {
        self.stop(at);
        let one = &mut self.candidates[at];
        one.patch = None;
        if one.recoveries == limits::RECOVERIES_MAX {
            one.state = C::Failed;
            return;
        }
        (one.state, one.recoveries) = (C::Waiting, one.recoveries + 1);
        if self.task == T::Running {
            self.start(at, now_ms);
        }
    }

    fn fail(&mut self, at: usize) {
        self.stop(at);
        self.candidates[at].state = C::Failed;
    }

    /// Ends what runs for a candidate.
    fn stop(&mut self, at: usize) {
        let one = &mut self.candidates[at];
        self.actions.extend(one.run.take().map(Action::StopVerify));
        self.actions.extend((one.cage != "gone").then_some(Action::StopCandidate(one.life())));
        one.cage = "gone".into();
    }

    fn go_on(&mut self, now_ms: u64) {
        self.task = T::Running;
        self.decide();
        for at in 0..self.candidates.len() {
            let one = &self.candidates[at];
            if self.task != T::Running {
                return;
            }
            self.actions.extend((one.cage != "gone").then_some(Action::ThawCandidate(one.life())));
            match one.state {
                C::Waiting => self.start(at, now_ms),
                C::Starting | C::Working => self.lease(at, now_ms),
                C::Claimed if one.patch.is_some() => self.verify(at),
                C::Claimed => self.actions.push(Action::ReadClaim(one.life())),
                C::Verified if one.proof.is_some() => self.score(at),
                _ => {}
            }
        }
    }

    /// All stands still. A patch that is verified may still be minted; no other verify VM is awaited.
    fn pause(&mut self) {
        self.task = T::Paused;
        for one in &mut self.candidates {
            if one.state != C::Verified || one.proof.is_some() {
                self.actions.extend(one.run.take().map(Action::StopVerify));
            }
            if one.state == C::Verifying {
                one.state = C::Claimed;
            }
            self.actions.extend((one.cage != "gone").then_some(Action::FreezeCandidate(one.life())));
        }
    }

    /// Cage was begun again: no VM is there, and what was not minted is forgotten.
    fn restart(&mut self, now_ms: u64) {
        for at in 0..self.candidates.len() {
            let one = &mut self.candidates[at];
            (one.cage, one.run) = ("gone".into(), None);
            match (one.state, one.proof) {
                (C::Waiting | C::Failed, _) => {}
                (_, Some(_)) => self.score(at),
                (_, None) => self.begin_again(at, now_ms),
            }
        }
    }

    fn tick(&mut self, now_ms: u64) {
        for at in 0..self.candidates.len() {
            let one = &self.candidates[at];
            if matches!(one.state, C::Starting | C::Working) && now_ms >= one.lease_until_ms {
                self.begin_again(at, now_ms);
            }
        }
    }

    fn integrate(&mut self, proof: Proof) -> Result<(), Why> {
        let winner = self.candidates.iter().find(|one| Some(one.number) == self.winner).unwrap();
        if winner.proof != Some(proof) {
            return Err(Why::Mismatch);
        }
        self.task = T::Integrated;
        self.actions.push(Action::Finish(T::Integrated));
        Ok(())
    }

    /// The first that is minted wins; with a score, when each has one or failed, the best, and of equals the lower number.
    fn decide(&mut self) {
        let minted = self.candidates.iter().filter(|one| one.proof.is_some());
        let is_over = |one: &Candidate| one.state == C::Failed || one.is_scored();
        let all_over = self.candidates.iter().all(is_over);
        let best = match self.terms.is_scored {
            false => minted.map(|one| one.number).next(),
            true if !all_over => None,
            true => minted
                .map(|one| (one.scoring["done"].as_i64(), -i16::from(one.number)))
                .max()
                .map(|best| -best.1 as u8),
        };
        if self.task != T::Running {
        } else if best.is_some() {
            self.winner = best;
            self.end(T::Verified);
        } else if all_over {
            self.end(T::Failed);
        }
    }

    fn end(&mut self, state: T) {
        self.task = state;
        for at in 0..self.candidates.len() {
            self.stop(at);
            let one = &mut self.candidates[at];
            if one.proof.is_none() && one.state != C::Failed {
                one.state = C::Cancelled;
            }
        }
        self.actions.push(Action::Finish(state));
    }
}
