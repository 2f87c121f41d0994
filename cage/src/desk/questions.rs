//! The questions of the node that wait for a human, and who waits for their answers.
//!
//! Must hold: a question is shown when its receipt is durable, and an answer takes effect when its own is; a number never comes twice on
//! the node's state. A question lives as long as who waits for it: with a life, or with cage, its questions are gone.
//! Must never: hold up who asks for the list while the ledger is waited for.

use abi::authority::Verdict;
use abi::control::Approval;
use abi::identity::Caller;
use abi::ids::{Instance, Name};
use abi::ledger::{Client, Event};
use abi::limits;
use abi::log;
use abi::rpc::{Code, RpcError};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use verdict::approvals::{Actor, Approvals, CallKey, Ended, Refusal, Spent, Standing};
use verdict::decide::Ruling;

use crate::agents::write_whole;
use crate::output::unix_ms;

/// How often who waits looks whether he still wants to.
const STEP: Duration = Duration::from_millis(500);

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Approved {
        by: String,
    },
    Denied {
        by: String,
        reason: String,
    },
    /// Who asked has gone.
    Withdrawn,
}

/// What people are shown beside the ruling.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    pub instance: Option<Instance>,
    pub task: Option<Name>,
    pub what: String,
    pub shown: String,
    pub is_cut: bool,
}

#[derive(Debug)]
struct Inner {
    approvals: Approvals,
    /// Those that are open, as they are shown.
    shown: BTreeMap<u64, Approval>,
    /// Not yet taken by who waits.
    answers: BTreeMap<u64, Answer>,
}

/// The questions of the node.
#[derive(Debug)]
pub struct Questions {
    file: PathBuf,
    ledger: Client,
    inner: Mutex<Inner>,
    /// Held by the one who changes them, while he waits for his receipt.
    changing: Mutex<()>,
    changed: Condvar,
}

/// The name of a question.
pub fn name(id: u64) -> Result<Name, RpcError> {
    format!("a{id}").parse().map_err(|error| RpcError::new(Code::INTERNAL, format!("a{id}: {error}")))
}

fn number(name: &Name) -> Option<u64> {
    let digits = name.as_str().strip_prefix('a')?;
    digits.parse().ok().filter(|id: &u64| id.to_string() == digits)
}

/// A refusal of `verdict`, for the one it concerns.
pub fn refused(refusal: Refusal) -> RpcError {
    let code = match refusal {
        Refusal::Actor | Refusal::Role(_) => Code::DENIED,
        Refusal::Unknown => Code::NOT_FOUND,
        Refusal::TooMany(_) => Code::LIMIT,
        _ => Code::CONFLICT,
    };
    let remedy = match refusal {
        Refusal::TooMany(most) => format!("answer some: {most} wait at most; see nullctl approvals"),
        Refusal::Role(role) => format!("ask somebody with the role {role}"),
        _ => "see nullctl approvals for what waits".into(),
    };
    RpcError::new(code, refusal.why()).explained("an approval is for one exact call, used once", remedy)
}

impl Questions {
    /// The node's, whose next number stands in a file.
    pub fn open(file: PathBuf, ledger: Client) -> io::Result<Questions> {
        let next = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
            Err(error) => return Err(error),
        };
        let inner = Inner {
            approvals: Approvals::beginning_at(next),
            shown: BTreeMap::new(),
            answers: BTreeMap::new(),
        };
        let (changing, changed) = (Mutex::default(), Condvar::new());
        Ok(Questions { file, ledger, inner: Mutex::new(inner), changing, changed })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a question: its number, once its receipt is durable and it is shown. Who asks must [`Questions::wait`] for it.
    pub fn ask(
        &self,
        actor: Actor<'_>,
        owner: &str,
        ruling: &Ruling<'_>,
        shown: Shown,
    ) -> Result<u64, RpcError> {
        let _changing = self.change();
        let now = unix_ms();
        // Tried on a copy: an answer that may come meanwhile must not be lost, and nothing else is added.
        let mut tried = self.inner().approvals.clone();
        let id = tried.ask(actor, owner, ruling, now).map_err(refused)?;
        let call = ruling.call();
        let question = tried.question(id).ok_or_else(|| refused(Refusal::Unknown))?;
        let approval = Approval {
            id: name(id)?,
            instance: shown.instance.clone(),
            task: shown.task,
            tool: call.tool.clone(),
            what: shown.what,
            shown: shown.shown,
            is_cut: shown.is_cut,
            decision: ruling.explained(),
            arguments: call.arguments,
            pinned: call.pinned,
            role: question.role(),
            asked_unix_ms: now,
            until_unix_ms: question.until_unix_ms(),
            is_frozen: question.is_frozen(),
        };
        let failed = |what: String| {
            RpcError::new(Code::FAILED, what).explained(
                "a question has its number and its receipt on disk before it is shown",
                "try again",
            )
        };
        write_whole(&self.file, tried.next().to_string().as_bytes())
            .map_err(|error| failed(format!("the question's number is not on disk: {error}")))?;
        let event = Event::ApprovalAsked {
            id: approval.id.clone(),
            instance: shown.instance,
            tool: call.tool.clone(),
            arguments: call.arguments,
            pinned: call.pinned,
            rule: approval.decision.rule.clone(),
            exposure: ruling.exposure(),
        };
        self.ledger.append(event).map_err(|error| failed(format!("no receipt, so no question: {error}")))?;
        let mut inner = self.inner();
        let asked = inner.approvals.ask(actor, owner, ruling, now).map_err(refused)?;
        if asked != id {
            return Err(RpcError::new(Code::INTERNAL, "two questions at the same time"));
        }
        inner.shown.insert(id, approval);
        drop(inner);
        self.changed.notify_all();
        Ok(id)
    }

    /// Waits until it is answered, or its time is over, or it is not wanted any more.
    pub fn wait(&self, id: u64, is_wanted: &dyn Fn() -> bool) -> Answer {
        loop {
            let mut inner = self.inner();
            if let Some(answer) = inner.answers.remove(&id) {
                return answer;
            }
            if !inner.shown.contains_key(&id) {
                return Answer::Withdrawn;
            }
            inner = self.changed.wait_timeout(inner, STEP).unwrap_or_else(PoisonError::into_inner).0;
            let is_answered = inner.answers.contains_key(&id);
            drop(inner);
            if !is_answered && !is_wanted() {
                self.forget(id);
                return Answer::Withdrawn;
            }
            self.expire();
        }
    }

    /// Nobody waits for it any more: it is not shown, and cannot be answered.
    pub fn forget(&self, id: u64) {
        let mut inner = self.inner();
        inner.shown.remove(&id);
        inner.answers.remove(&id);
        drop(inner);
        self.changed.notify_all();
    }

    /// What waited too long is denied, by the clock.
    fn expire(&self) {
        let is_due = |inner: &Inner| inner.approvals.iter().any(|(_, one)| unix_ms() >= one.until_unix_ms());
        if !is_due(&self.inner()) {
            return;
        }
        let _changing = self.change();
        let ended = self.inner().approvals.expire(Actor::Clock, unix_ms()).unwrap_or_default();
        for Ended { id, standing, .. } in ended {
            let minutes = limits::APPROVAL_WAIT_MS_MAX / 60_000;
            let reason = match standing {
                Standing::Open => format!("nobody answered within {minutes} minutes"),
                _ => "the approval was not used in time".to_owned(),
            };
            let by = "clock".to_owned();
            let noted = name(id).map_err(|error| error.to_string()).and_then(|id| {
                let (by, reason) = (by.clone(), reason.clone());
                let event = Event::ApprovalDecided { id, approved: false, by, reason };
                self.ledger.append(event).map_err(|error| error.to_string())
            });
            if let Err(error) = noted {
                // It is denied all the same.
                log::error("receipt_missing", &[("approval", &id), ("error", &error)]);
            }
            let mut inner = self.inner();
            if inner.shown.remove(&id).is_some() {
                inner.answers.insert(id, Answer::Denied { by, reason });
            }
        }
        self.changed.notify_all();
    }

    /// An operator answers.
    pub fn decide(&self, caller: &Caller, id: &Name, approve: bool, reason: &str) -> Result<(), RpcError> {
        let by = caller.to_string();
        let role = caller.role().ok_or_else(|| refused(Refusal::Actor))?;
        let actor = Actor::Operator { role, name: &by };
        let number = number(id).ok_or_else(|| refused(Refusal::Unknown))?;
        let _changing = self.change();
        let now = unix_ms();
        {
            let inner = self.inner();
            if !inner.shown.contains_key(&number) {
                return Err(refused(Refusal::Unknown));
            }
            inner.approvals.clone().decide(actor, number, approve, now).map_err(refused)?;
        }
        let event = Event::ApprovalDecided {
            id: id.clone(),
            approved: approve,
            by: by.clone(),
            reason: reason.to_owned(),
        };
        self.ledger.append(event).map_err(|error| {
            RpcError::new(Code::FAILED, format!("no receipt, so no answer: {error}")).explained(
                "an answer takes effect when its receipt is durable",
                "see that ctxgraph is running",
            )
        })?;
        let mut inner = self.inner();
        inner.approvals.decide(actor, number, approve, now).map_err(refused)?;
        if inner.shown.remove(&number).is_some() {
            let reason = reason.to_owned();
            let answer = if approve { Answer::Approved { by } } else { Answer::Denied { by, reason } };
            inner.answers.insert(number, answer);
        }
        drop(inner);
        self.changed.notify_all();
        Ok(())
    }

    /// Uses an approval, by a ruling made now.
    pub fn spend(
        &self,
        actor: Actor<'_>,
        id: u64,
        owner: &str,
        fresh: &Ruling<'_>,
    ) -> Result<Spent, Refusal> {
        let key = CallKey::of(owner, fresh.call());
        self.inner().approvals.spend(actor, id, &key, fresh, unix_ms())
    }

    /// A life or a task is over.
    pub fn withdraw(&self, owner: &str) {
        let mut inner = self.inner();
        let ended = inner.approvals.withdraw(Actor::Service, owner).unwrap_or_default();
        for ended in ended {
            inner.shown.remove(&ended.id);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// What waits, oldest first.
    pub fn list(&self) -> Vec<Approval> {
        self.inner().shown.values().cloned().collect()
    }

    /// The questions numbered from `from` on that are open; waits for one at most `patience`. And the number after the last ever asked.
    pub fn follow(&self, from: u64, patience: Duration) -> (Vec<Approval>, u64) {
        let deadline = Instant::now() + patience;
        let mut inner = self.inner();
        loop {
            let next = inner.approvals.next();
            let new: Vec<Approval> = inner.shown.range(from..).map(|(_, one)| one.clone()).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if !new.is_empty() || left.is_zero() {
                return (new, next);
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Whether a ruling is one to ask for.
pub fn is_asked(ruling: &Ruling<'_>) -> bool {
    ruling.verdict() == Verdict::Ask
}
