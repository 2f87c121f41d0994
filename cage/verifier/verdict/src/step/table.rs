//! The two tables: of the task, and of a candidate. What they say is done by the verbs below them.

use super::{Action, Actions, Actor, Cage, Candidate, Event, Life, Outcome, Run, Scoring, State, Why};
use super::{VERIFY_LOSSES_MAX, What};
use abi::limits;
use abi::task::{CandidateState as C, TaskState as T};

/// One event on its way through the tables.
struct Turn<'a> {
    state: &'a mut State,
    now_ms: u64,
    actions: &'a mut Actions,
}

/// The task's table. A state that is over stands in no row, but for the integration of a verified one.
pub(super) fn apply(state: &mut State, event: &Event, actions: &mut Actions) -> Result<(), Why> {
    use What as W;
    let mut turn = Turn { state, now_ms: event.now_ms, actions };
    match (turn.state.task, event.what) {
        (T::Accepted, W::Accepted) => turn.go_on(),
        (T::Accepted, W::Restarted | W::Tick) | (T::Paused, W::Spent | W::NoReceipts | W::Tick) => {}
        (T::Accepted | T::Running | T::Paused, W::Cancel) => turn.end(T::Cancelled),
        (T::Running, W::Pause | W::Spent | W::NoReceipts) => turn.pause(),
        (T::Paused, W::Resume) => turn.go_on(),
        (T::Running | T::Paused, W::Restarted) => turn.each(Turn::begin_again_after_restart),
        (T::Running, W::Tick) => turn.each(Turn::end_lease),
        (T::Verified, W::Integrated { proof }) => {
            if turn.state.winner().and_then(Candidate::proof) != Some(proof) {
                return Err(Why::Mismatch);
            }
            turn.state.task = T::Integrated;
            turn.actions.push(Action::Finish(T::Integrated));
        }
        (T::Running | T::Paused, what) => {
            let number = addressed(event).ok_or(Why::State)?;
            let place = usize::from(number).wrapping_sub(1);
            let mut candidate = turn.state.candidates.get(place).cloned().ok_or(Why::Candidate)?;
            turn.candidate(&mut candidate, event.actor, what)?;
            turn.put_back(place, candidate);
        }
        _ => return Err(Why::State),
    }
    turn.settle();
    Ok(())
}

/// Whose event it is.
fn addressed(event: &Event) -> Option<u8> {
    match (event.actor, life_of(event.what), run_of(event.what)) {
        (Actor::Agent(life), ..) | (Actor::Cage, Some(life), _) => Some(life.candidate),
        (Actor::VerifyVm(run), ..) | (Actor::Cage, _, Some(run)) => Some(run.candidate),
        _ => None,
    }
}

fn life_of(what: What) -> Option<Life> {
    use What as W;
    match what {
        W::Started(life) | W::Asks(life) | W::Answered(life) | W::ClaimRefused(life) => Some(life),
        W::Ended(life) | W::Lost(life) | W::ClaimRead { life, .. } => Some(life),
        _ => None,
    }
}

fn run_of(what: What) -> Option<Run> {
    match what {
        What::VerifyBegan(run) | What::MintRefused(run) | What::Minted { run, .. } => Some(run),
        _ => None,
    }
}

impl Turn<'_> {
    /// A candidate's table. What is of an earlier life or of a verify VM that is not awaited is stale before it is looked at.
    fn candidate(&mut self, c: &mut Candidate, actor: Actor, what: What) -> Result<(), Why> {
        use What as W;
        let life = if let Actor::Agent(life) = actor { Some(life) } else { life_of(what) };
        let run = if let Actor::VerifyVm(run) = actor { Some(run) } else { run_of(what) };
        if life.is_some_and(|life| life != c.life() || c.cage == Cage::Gone)
            || run.is_some_and(|run| Some(run) != c.run)
        {
            return Err(Why::Stale);
        }
        let (is_read, is_minted) = (c.patch.is_some(), c.proof.is_some());
        match (c.state, what) {
            (C::Starting, W::Started(_)) => self.started(c),
            (C::Starting | C::Working, W::Heard) => self.renew(c),
            (C::Asking | C::Claimed | C::Verifying | C::Verified, W::Heard) => {}
            (C::Working | C::Asking, W::Asks(_)) => c.state = C::Asking,
            (C::Asking, W::Answered(_)) => self.work(c),
            (C::Working | C::Asking, W::Claimed { is_end }) => self.claimed(c, is_end),
            (C::Claimed, W::ClaimRead { patch, .. }) if !is_read => {
                c.patch = Some(patch);
                self.verify(c);
            }
            (C::Claimed, W::ClaimRefused(_)) if !is_read => self.concluded(c, Outcome::Refused),
            (C::Working | C::Asking, W::Ended(_)) => self.fail(c),
            (C::Starting | C::Working | C::Asking, W::Lost(_)) => self.lost(c),
            (C::Claimed, W::Lost(_)) if !is_read => self.lost(c),
            // The host has the claim: it is judged without its VM.
            (C::Claimed | C::Verifying | C::Verified, W::Lost(_)) => c.cage = Cage::Gone,
            (C::Claimed | C::Verifying | C::Verified, W::Ended(_)) => c.cage = Cage::Ended,
            (C::Claimed, W::VerifyBegan(_)) => c.state = C::Verifying,
            (C::Verifying, W::Verified { base, patch }) => {
                if base != self.state.terms.base || Some(patch) != c.patch {
                    return Err(Why::Mismatch);
                }
                c.state = C::Verified;
                self.actions.extend(c.run.map(Action::Mint));
            }
            (C::Verifying, W::VerifyFailed) => self.concluded(c, Outcome::NotVerified),
            (C::Claimed | C::Verifying, W::VerifyLost) => self.verify_lost(c),
            (C::Verified, W::Minted { proof, .. }) if !is_minted => {
                if proof.base() != self.state.terms.base || Some(proof.patch()) != c.patch {
                    return Err(Why::Mismatch);
                }
                c.proof = Some(proof);
                self.minted(c);
            }
            (C::Verified, W::MintRefused(_)) if !is_minted => self.concluded(c, Outcome::CouldNotVerify),
            (C::Verified, W::Scored(score)) if is_minted => self.scored(c, score),
            (C::Verified, W::VerifyLost) if is_minted => self.verify_lost(c),
            _ => return Err(Why::State),
        }
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.state.task == T::Running
    }

    fn put_back(&mut self, place: usize, candidate: Candidate) {
        if let Some(old) = self.state.candidates.get_mut(place) {
            *old = candidate;
        }
    }

    fn each(&mut self, verb: fn(&mut Self, &mut Candidate)) {
        for place in 0..self.state.candidates.len() {
            if let Some(mut candidate) = self.state.candidates.get(place).cloned() {
                verb(self, &mut candidate);
                self.put_back(place, candidate);
            }
        }
    }

    // ---- of the task ----

    /// Begins or resumes. What was decided while it was paused comes first.
    fn go_on(&mut self) {
        self.state.task = T::Running;
        self.settle();
        if self.is_running() {
            self.each(Turn::take_up);
        }
    }

    fn pause(&mut self) {
        self.state.task = T::Paused;
        self.each(Turn::put_down);
    }

    /// Ends the task when it is decided: the first minted patch, or with a score the best when all are over.
    fn settle(&mut self) {
        if !self.is_running() {
            return;
        }
        let is_scored = self.state.terms.is_scored;
        let is_over = |c: &Candidate| {
            c.state == C::Failed || (c.proof.is_some() && (!is_scored || c.scoring != Scoring::Open))
        };
        let candidates = &self.state.candidates;
        if is_scored && !candidates.iter().all(is_over) {
            return;
        }
        // `max_by_key` gives the last of equals: the lowest number, from behind.
        let best = candidates.iter().rev().filter(|c| c.proof.is_some()).max_by_key(|c| c.score());
        if let Some(best) = best.map(Candidate::number) {
            self.state.winner = Some(best);
            self.end(T::Verified);
        } else if candidates.iter().all(is_over) {
            self.end(T::Failed);
        }
    }

    fn end(&mut self, state: T) {
        self.state.task = state;
        self.each(Turn::stop);
        self.actions.push(Action::Finish(state));
    }

    // ---- of one candidate, because of its task ----

    /// Does what its state asks for, after a pause or at the begin.
    fn take_up(&mut self, c: &mut Candidate) {
        if c.cage != Cage::Gone {
            self.actions.push(Action::ThawCandidate(c.life()));
        }
        match c.state {
            C::Waiting => self.start(c),
            C::Starting | C::Working => self.renew(c),
            C::Claimed if c.patch.is_none() => self.actions.push(Action::ReadClaim(c.life())),
            C::Claimed => self.verify(c),
            C::Verified if c.proof.is_some() => self.score(c),
            _ => {}
        }
    }

    fn put_down(&mut self, c: &mut Candidate) {
        if c.state != C::Verified || c.proof.is_some() {
            self.actions.extend(c.run.take().map(Action::StopVerify));
        }
        if c.state == C::Verifying {
            c.state = C::Claimed;
        }
        if c.cage != Cage::Gone {
            self.actions.push(Action::FreezeCandidate(c.life()));
        }
    }

    fn begin_again_after_restart(&mut self, c: &mut Candidate) {
        let is_minted = c.proof.is_some();
        c.cage = Cage::Gone;
        c.run = None;
        match c.state {
            C::Starting | C::Working | C::Asking | C::Claimed | C::Verifying => self.recover(c),
            C::Verified if !is_minted => self.recover(c),
            C::Verified if self.is_running() => self.score(c),
            _ => {}
        }
    }

    fn end_lease(&mut self, c: &mut Candidate) {
        if matches!(c.state, C::Starting | C::Working) && c.lease_until_ms <= self.now_ms {
            self.recover(c);
        }
    }

    /// Its task is over.
    fn stop(&mut self, c: &mut Candidate) {
        self.stop_vms(c);
        if c.state != C::Failed && c.proof.is_none() {
            c.state = C::Cancelled;
        }
    }

    // ---- of one candidate ----

    fn stop_vms(&mut self, c: &mut Candidate) {
        self.actions.extend(c.run.take().map(Action::StopVerify));
        if c.cage != Cage::Gone {
            c.cage = Cage::Gone;
            self.actions.push(Action::StopCandidate(c.life()));
        }
    }

    fn start(&mut self, c: &mut Candidate) {
        c.state = C::Starting;
        c.cage = Cage::Alive;
        self.renew(c);
        self.actions.push(Action::StartCandidate(c.life()));
    }

    fn started(&mut self, c: &mut Candidate) {
        self.work(c);
        if !self.is_running() {
            self.actions.push(Action::FreezeCandidate(c.life()));
        }
    }

    fn work(&mut self, c: &mut Candidate) {
        c.state = C::Working;
        self.renew(c);
    }

    fn renew(&self, c: &mut Candidate) {
        c.lease_until_ms = self.now_ms.saturating_add(limits::TASK_LEASE_MS);
    }

    fn claimed(&mut self, c: &mut Candidate, is_end: bool) {
        c.state = C::Claimed;
        c.losses = 0;
        if is_end {
            c.cage = Cage::Ended;
        }
        if self.is_running() {
            self.actions.push(Action::ReadClaim(c.life()));
        }
    }

    fn next_run(&mut self, c: &mut Candidate) -> Run {
        self.state.runs = self.state.runs.saturating_add(1);
        let run = Run { candidate: c.number, number: self.state.runs };
        c.run = Some(run);
        run
    }

    fn verify(&mut self, c: &mut Candidate) {
        c.state = C::Claimed;
        if self.is_running() {
            let run = self.next_run(c);
            self.actions.push(Action::StartVerify(run));
        }
    }

    /// The verify VM was lost: another one, or nothing is known.
    fn verify_lost(&mut self, c: &mut Candidate) {
        c.run = None;
        c.losses = c.losses.saturating_add(1);
        match (c.proof, c.losses > VERIFY_LOSSES_MAX) {
            (None, false) => self.verify(c),
            (None, true) => self.concluded(c, Outcome::CouldNotVerify),
            (Some(_), false) => self.score(c),
            (Some(_), true) => self.scored(c, None),
        }
    }

    /// A claim came to nothing.
    fn concluded(&mut self, c: &mut Candidate, outcome: Outcome) {
        c.attempts = c.attempts.saturating_add(1);
        (c.patch, c.run) = (None, None);
        if c.cage == Cage::Alive {
            self.actions.push(Action::TellAgent(c.life(), outcome));
        }
        match c.cage {
            _ if c.attempts >= self.state.terms.attempts => self.fail(c),
            Cage::Alive => self.work(c),
            Cage::Ended => self.fail(c),
            Cage::Gone => self.recover(c),
        }
    }

    fn lost(&mut self, c: &mut Candidate) {
        c.cage = Cage::Gone;
        self.recover(c);
    }

    /// A new life from the base, or the end.
    fn recover(&mut self, c: &mut Candidate) {
        self.stop_vms(c);
        (c.patch, c.run) = (None, None);
        if c.recoveries >= limits::RECOVERIES_MAX {
            c.state = C::Failed;
            return;
        }
        c.recoveries += 1;
        c.state = C::Waiting;
        if self.is_running() {
            self.start(c);
        }
    }

    fn fail(&mut self, c: &mut Candidate) {
        self.stop_vms(c);
        c.state = C::Failed;
    }

    fn minted(&mut self, c: &mut Candidate) {
        (c.run, c.losses) = (None, 0);
        if c.cage == Cage::Alive {
            self.actions.push(Action::TellAgent(c.life(), Outcome::Verified));
        }
        self.stop_vms(c);
        if self.is_running() {
            self.score(c);
        }
    }

    fn score(&mut self, c: &mut Candidate) {
        if self.state.terms.is_scored && c.scoring == Scoring::Open {
            let run = self.next_run(c);
            self.actions.push(Action::StartScore(run));
        }
    }

    fn scored(&mut self, c: &mut Candidate, score: Option<i64>) {
        c.run = None;
        c.scoring = Scoring::Done(score);
    }
}
