//! Approvals: questions about one exact call, and what became of them.
//!
//! Must hold: only an operator answers; an answer is for exactly the call that was shown, used once, and within its time; at its use the call
//! is decided again, and where it would be asked for more than was shown, the answer does not count.
//! Must never: give out a [`Spent`] that no operator stands behind.

use abi::authority::{Call, Operation, Risk, Verdict};
use abi::exposure::Exposure;
use abi::identity::Role;
use abi::ids::Digest;
use abi::limits;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::decide::{Asks, Ruling};

/// Who does something here, as the host knows it: by the socket, the VM or its own timer, never by what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor<'a> {
    /// Somebody that nulld vouches for.
    Operator { role: Role, name: &'a str },
    /// An agent, through its guest.
    Agent,
    /// A part of the node.
    Service,
    /// Time that passed.
    Clock,
}

impl Actor<'_> {
    /// Whether it is an operator of that role or a higher one.
    pub fn is_at_least(&self, least: Role) -> bool {
        matches!(self, Actor::Operator { role, .. } if *role >= least)
    }
}

/// One exact call of one life or task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallKey {
    /// The instance (`researcher.3`) or the task (`t12`).
    pub owner: String,
    pub tool: String,
    pub operation: Operation,
    pub arguments: Digest,
    pub pinned: Digest,
}

impl CallKey {
    /// The key of a call of an owner.
    pub fn of(owner: &str, call: &Call) -> CallKey {
        CallKey {
            owner: String::from(owner),
            tool: call.tool.clone(),
            operation: call.operation,
            arguments: call.arguments,
            pinned: call.pinned,
        }
    }

    fn is_of(&self, call: &Call) -> bool {
        self.tool == call.tool
            && self.operation == call.operation
            && self.arguments == call.arguments
            && self.pinned == call.pinned
    }
}

/// How a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Waits for a human.
    Open,
    Approved,
    Denied,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    key: CallKey,
    asks: Asks,
    exposure: Exposure,
    risk: Risk,
    standing: Standing,
    until_unix_ms: u64,
    decided_by: String,
}

impl Question {
    pub fn key(&self) -> &CallKey {
        &self.key
    }

    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Until it is answered, or until the answer may be used.
    pub fn until_unix_ms(&self) -> u64 {
        self.until_unix_ms
    }

    /// The least role that may answer.
    pub fn role(&self) -> Role {
        if self.risk == Risk::Critical { Role::Admin } else { Role::Operator }
    }

    /// The VM stands still until it is answered.
    pub fn is_frozen(&self) -> bool {
        self.standing == Standing::Open && self.risk == Risk::Critical
    }

    /// Who answered; empty while nobody has.
    pub fn decided_by(&self) -> &str {
        &self.decided_by
    }
}

/// Why something about a question is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not this actor's to do.
    Actor,
    /// The answer needs a higher role.
    Role(Role),
    /// There is nothing to ask, or nothing to allow: the ruling denies, or it allows without a question.
    Verdict,
    /// The bound on questions of one owner, or of the node.
    TooMany(usize),
    /// No such question, or it is over.
    Unknown,
    /// It was answered before.
    Answered,
    /// Nobody approved it.
    NotApproved,
    /// Its time is over.
    Expired,
    /// Another call than the one that was shown.
    OtherCall,
    /// It would now be asked for more than was shown.
    Changed,
}

impl Refusal {
    /// In words.
    pub fn why(self) -> &'static str {
        match self {
            Refusal::Actor => "this is not for that caller to do",
            Refusal::Role(Role::Admin) => "a call of critical risk is decided by an admin",
            Refusal::Role(_) => "a call is decided by an operator or an admin",
            Refusal::Verdict => "the call is not one that is asked for",
            Refusal::TooMany(_) => "too many questions wait already",
            Refusal::Unknown => "there is no such question, or it is over",
            Refusal::Answered => "the question was answered before",
            Refusal::NotApproved => "nobody approved it",
            Refusal::Expired => "its time is over",
            Refusal::OtherCall => "the approval was for another call",
            Refusal::Changed => "the call would now be asked for more than was shown",
        }
    }
}

/// Proof that an operator approved exactly this call, and that it was not used before. Neither `Clone` nor made anywhere else.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an approval is used by what it allows"]
pub struct Spent {
    id: u64,
    key: CallKey,
    by: String,
}

impl Spent {
    /// The question's number.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn key(&self) -> &CallKey {
        &self.key
    }

    /// Who approved.
    pub fn by(&self) -> &str {
        &self.by
    }
}

/// A question that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub id: u64,
    /// [`Standing::Open`]: nobody answered in time. [`Standing::Approved`]: the answer was not used in time.
    pub standing: Standing,
    pub key: CallKey,
}

/// The questions of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approvals {
    next: u64,
    questions: BTreeMap<u64, Question>,
}

impl Approvals {
    /// None waits; the next gets this number. Numbers never come twice where the caller keeps [`Self::next`].
    pub fn beginning_at(next: u64) -> Approvals {
        Approvals { next, questions: BTreeMap::new() }
    }

    /// The number of the next question.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A question that is not over, by its number.
    pub fn question(&self, id: u64) -> Option<&Question> {
        self.questions.get(&id)
    }

    /// All that are not over, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Question)> {
        self.questions.iter().map(|(id, question)| (*id, question))
    }

    /// An agent's call, or an operator's step, is asked for. The ruling must be one that asks.
    pub fn ask(
        &mut self,
        actor: Actor<'_>,
        owner: &str,
        ruling: &Ruling<'_>,
        now_unix_ms: u64,
    ) -> Result<u64, Refusal> {
        check_user(actor, ruling)?;
        if ruling.verdict() != Verdict::Ask {
            return Err(Refusal::Verdict);
        }
        let of_owner = self.questions.values().filter(|question| question.key.owner == owner).count();
        if of_owner >= limits::APPROVALS_PER_AGENT_MAX {
            return Err(Refusal::TooMany(limits::APPROVALS_PER_AGENT_MAX));
        }
        if self.questions.len() >= limits::APPROVALS_MAX {
            return Err(Refusal::TooMany(limits::APPROVALS_MAX));
        }
        let id = self.next;
        self.next = id.checked_add(1).ok_or(Refusal::TooMany(limits::APPROVALS_MAX))?;
        let question = Question {
            key: CallKey::of(owner, ruling.call()),
            asks: ruling.asks(),
            exposure: ruling.exposure(),
            risk: ruling.risk(),
            standing: Standing::Open,
            until_unix_ms: now_unix_ms.saturating_add(limits::APPROVAL_WAIT_MS_MAX),
            decided_by: String::new(),
        };
        self.questions.insert(id, question);
        Ok(id)
    }

    /// An operator answers. A denied question is over at once; an approved one waits for its use.
    pub fn decide(
        &mut self,
        actor: Actor<'_>,
        id: u64,
        approve: bool,
        now_unix_ms: u64,
    ) -> Result<Question, Refusal> {
        let Actor::Operator { role, name } = actor else { return Err(Refusal::Actor) };
        let question = self.questions.get_mut(&id).ok_or(Refusal::Unknown)?;
        if role < question.role() {
            return Err(Refusal::Role(question.role()));
        }
        if question.standing != Standing::Open {
            return Err(Refusal::Answered);
        }
        if now_unix_ms >= question.until_unix_ms {
            return Err(Refusal::Expired);
        }
        question.decided_by = String::from(name);
        question.standing = if approve { Standing::Approved } else { Standing::Denied };
        question.until_unix_ms = now_unix_ms.saturating_add(limits::APPROVAL_USE_MS_MAX);
        let decided = question.clone();
        if !approve {
            self.questions.remove(&id);
        }
        Ok(decided)
    }

    /// An approval is used: once, for the call that was shown, by a ruling made now. Whatever this answers but `NotApproved`, `OtherCall`
    /// and `Actor`, the approval is gone.
    pub fn spend(
        &mut self,
        actor: Actor<'_>,
        id: u64,
        key: &CallKey,
        fresh: &Ruling<'_>,
        now_unix_ms: u64,
    ) -> Result<Spent, Refusal> {
        check_user(actor, fresh)?;
        let question = self.questions.get(&id).ok_or(Refusal::Unknown)?;
        if question.key != *key || !key.is_of(fresh.call()) {
            return Err(Refusal::OtherCall);
        }
        if question.standing != Standing::Approved {
            return Err(Refusal::NotApproved);
        }
        let question = self.questions.remove(&id).ok_or(Refusal::Unknown)?;
        if now_unix_ms >= question.until_unix_ms {
            return Err(Refusal::Expired);
        }
        if fresh.verdict() == Verdict::Deny {
            return Err(Refusal::Verdict);
        }
        // What flows into something that stays in the cage harms nobody by growing.
        let is_sink = fresh.exposure().has(Exposure::EXFILTRATION);
        let is_as_shown = question.asks.has(fresh.asks())
            && (!is_sink || question.exposure.has(fresh.exposure()))
            && fresh.risk() <= question.risk;
        if !is_as_shown {
            return Err(Refusal::Changed);
        }
        Ok(Spent { id, key: question.key, by: question.decided_by })
    }

    /// Time passed: what waited or lay approved too long is over.
    pub fn expire(&mut self, actor: Actor<'_>, now_unix_ms: u64) -> Result<Vec<Ended>, Refusal> {
        if actor != Actor::Clock {
            return Err(Refusal::Actor);
        }
        Ok(self.end(|question| now_unix_ms >= question.until_unix_ms))
    }

    /// A life or a task is over, and its questions with it.
    pub fn withdraw(&mut self, actor: Actor<'_>, owner: &str) -> Result<Vec<Ended>, Refusal> {
        if actor != Actor::Service {
            return Err(Refusal::Actor);
        }
        Ok(self.end(|question| question.key.owner == owner))
    }

    fn end(&mut self, is_over: impl Fn(&Question) -> bool) -> Vec<Ended> {
        let ended: Vec<Ended> = self
            .iter()
            .filter(|(_, question)| is_over(question))
            .map(|(id, question)| Ended { id, standing: question.standing, key: question.key.clone() })
            .collect();
        self.questions.retain(|_, question| !is_over(question));
        ended
    }
}

/// Calls of tools are an agent's, steps with a verified patch an operator's.
fn check_user(actor: Actor<'_>, ruling: &Ruling<'_>) -> Result<(), Refusal> {
    let is_step = ruling.asks().has(Asks::STEP);
    let may = if is_step { actor.is_at_least(Role::Operator) } else { actor == Actor::Agent };
    if may { Ok(()) } else { Err(Refusal::Actor) }
}
