//! Attacks on what a human said: used twice, for something else, too late, by somebody else; and on budgets and on who speaks.

use crate::house::{House, Random, digest};
use abi::authority::{Amounts, Call, Operation, Situation, Target, Verdict};
use abi::exposure::Exposure;
use abi::identity::Role;
use abi::limits::{APPROVAL_USE_MS_MAX, APPROVAL_WAIT_MS_MAX};
use abi::task::TaskState;
use verdict::approvals::{Actor, Approvals, CallKey};
use verdict::authority::Authority;
use verdict::budget::Purse;
use verdict::decide::{Policy, Ruling, decide};
use verdict::step::{Actor as StepActor, Event, Life, Run, State, Terms, What, step};

fn call(arguments: &str, pinned: &str, tool: &str) -> Call {
    let operation = if tool == "publish" { Operation::GitPush } else { Operation::RunBash };
    Call {
        operation,
        tool: tool.into(),
        target: Target::Arguments,
        arguments: digest(arguments),
        pinned: digest(pinned),
        flows: Exposure::NONE,
        sealed: false,
    }
}

fn rule<'a>(call: &'a Call, seen: Exposure, policy: &Policy) -> Ruling<'a> {
    let situation = Situation {
        now_unix_ms: 5,
        seen,
        written: Exposure::NONE,
        left: Amounts::default(),
        needs: Amounts::default(),
        is_declassified: false,
    };
    decide(&Authority::of(crate::house::rules()), policy, &situation, call)
}

/// One call is approved; then everything is tried but to use it once, as it was shown, in time.
pub fn replay(random: &mut Random, breached: bool) -> Result<(), String> {
    let house = House::new(None);
    let shown = call("shown", "v1", "wipe");
    let mut approvals = Approvals::beginning_at(1);
    let ruling = rule(&shown, Exposure::NONE, house.policy());
    let id = approvals.ask(Actor::Agent, "a.1", &ruling, 0).map_err(|refusal| refusal.why().to_owned())?;
    let admin = Actor::Operator { role: Role::Admin, name: "ada" };
    approvals.decide(admin, id, true, 10).map_err(|refusal| refusal.why().to_owned())?;
    let (mut used, mut last) = (0, 10);
    for _ in 0..12 {
        // A breach: whoever keeps a copy of what was approved can use it as often as he likes.
        let mut copy = approvals.clone();
        let book = if breached { &mut copy } else { &mut approvals };
        let is_exact = random.one_in(2);
        let arguments = random.pick::<&str>(&["shown", "other"]);
        let (pinned, tool) =
            (random.pick::<&str>(&["v1", "v2"]), random.pick::<&str>(&["wipe", "publish", "lint"]));
        let one = if is_exact { shown.clone() } else { call(arguments, pinned, tool) };
        let owner = if is_exact { "a.1" } else { *random.pick::<&str>(&["a.1", "a.2", "b.1"]) };
        let seen = *random.pick(&[Exposure::NONE, Exposure::PRIVATE_DATA]);
        let now = last + *random.pick(&[0, 0, 1, 1, 7, APPROVAL_USE_MS_MAX]);
        last = now;
        let key = if random.one_in(2) { CallKey::of(owner, &one) } else { CallKey::of("a.1", &shown) };
        let fresh = rule(&one, seen, house.policy());
        let id = *random.pick(&[id, id, id, id + 1, 0]);
        if let Ok(spent) = book.spend(Actor::Agent, id, &key, &fresh, now) {
            used += 1;
            if one != shown || *spent.key() != CallKey::of("a.1", &shown) {
                return Err(format!("the approval of {shown:?} was used for {one:?}"));
            }
            if now >= 10 + APPROVAL_USE_MS_MAX {
                return Err(format!("used {} ms late", now - 10 - APPROVAL_USE_MS_MAX));
            }
        }
    }
    if used > 1 { Err(format!("one approval was used {used} times")) } else { Ok(()) }
}

/// An agent, a service, the clock, a reader, an operator below the risk: all of them answer, and then use it.
pub fn by_oneself(random: &mut Random, breached: bool) -> Result<(), String> {
    let house = House::new(None);
    let tool = *random.pick(&["wipe", "publish"]);
    let shown = call("shown", "v1", tool);
    let ruling = rule(&shown, Exposure::NONE, house.policy());
    if ruling.verdict() != Verdict::Ask {
        return Err(format!("`{tool}` is not asked for"));
    }
    let mut approvals = Approvals::beginning_at(1);
    let id = approvals.ask(Actor::Agent, "a.1", &ruling, 0).map_err(|refusal| refusal.why().to_owned())?;
    for _ in 0..8 {
        let below =
            Actor::Operator { role: if tool == "wipe" { Role::Operator } else { Role::Reader }, name: "a.1" };
        let actor = *random.pick(&[Actor::Agent, Actor::Service, Actor::Clock, below]);
        // A breach: the host takes the name that the guest gives for who it is.
        let actor = if breached { Actor::Operator { role: Role::Admin, name: "a.1" } } else { actor };
        let now = random.next() % (2 * APPROVAL_WAIT_MS_MAX);
        let _ = approvals.decide(actor, *random.pick(&[id, id + 1]), true, now);
        let spender = *random.pick(&[Actor::Agent, Actor::Service, actor]);
        if approvals.spend(spender, id, &CallKey::of("a.1", &shown), &ruling, now).is_ok() {
            return Err(format!("{actor:?} approved it"));
        }
    }
    Ok(())
}

/// Many calls at once reserve, lie about what they used, and let go: what was really used never exceeds the bound.
pub fn budget_races(random: &mut Random, breached: bool) -> Result<(), String> {
    let bound = 50 + random.next() % 100;
    let amount = |calls| Amounts { calls: Some(calls), ..Amounts::default() };
    let mut purse = Purse::new(1, amount(bound));
    let mut other = Purse::new(2, amount(1000));
    let (mut open, mut used) = (Vec::new(), 0u64);
    for _ in 0..60 {
        match random.below(5) {
            0 | 1 => {
                let wants = 1 + random.next() % 30;
                let really = random.next() % (wants + 1);
                // A breach: what is left is looked at now and taken later, when all others have looked, too.
                let room = purse.left().calls.unwrap_or(0) >= wants;
                match (breached, purse.reserve(&amount(wants))) {
                    (true, Ok(reservation)) if room => {
                        purse.release(reservation).map_err(|_| "its own reservation")?;
                        used += wants;
                    }
                    (_, Ok(reservation)) => {
                        used += really;
                        open.push((reservation, really));
                    }
                    (_, Err(_)) => {}
                }
            }
            2 if !open.is_empty() => {
                let (reservation, really) = open.swap_remove(random.below(open.len()));
                // Never less than what the host saw; more than was reserved is not believed either way.
                let said = *random.pick(&[really, u64::MAX, reservation.amounts().calls.unwrap_or(0)]);
                purse.settle(reservation, &amount(said)).map_err(|_| "its own reservation")?;
            }
            3 => {
                let foreign =
                    other.reserve(&amount(1 + random.next() % 5)).map_err(|error| error.to_string())?;
                if purse.release(foreign).is_ok() {
                    return Err("another purse's reservation was given back here".into());
                }
            }
            _ => {
                let agent = *random.pick(&[
                    Actor::Agent,
                    Actor::Service,
                    Actor::Clock,
                    Actor::Operator { role: Role::Reader, name: "r" },
                ]);
                if purse.more(agent, &amount(1000)).is_ok() {
                    return Err(format!("{agent:?} gave itself more"));
                }
            }
        }
        if used > bound {
            return Err(format!("{used} of {bound} were used"));
        }
    }
    Ok(())
}

/// Candidates and verify VMs that speak for others, for their dead, for cage and for the operator.
pub fn spoofed_identity(random: &mut Random, breached: bool) -> Result<(), String> {
    let life = |candidate, number| Life { candidate, number };
    let terms = Terms { base: digest("base"), candidates: 2, attempts: 3, is_scored: false };
    let say = |state: State, actor, what| step(state, Event { actor, now_ms: 0, what }).0;
    let mut state = say(State::new(terms), StepActor::Cage, What::Accepted);
    for candidate in [1, 2] {
        state = say(state, StepActor::Cage, What::Started(life(candidate, 0)));
    }
    // Candidate 1 is in its second life; candidate 2 is being verified.
    state = say(state, StepActor::Cage, What::Lost(life(1, 0)));
    state = say(state, StepActor::Cage, What::Started(life(1, 1)));
    state = say(state, StepActor::Agent(life(2, 0)), What::Claimed { is_end: false });
    state = say(state, StepActor::Cage, What::ClaimRead { life: life(2, 0), patch: digest("patch") });
    let run = Run { candidate: 2, number: 1 };
    state = say(state, StepActor::Cage, What::VerifyBegan(run));
    for _ in 0..20 {
        let speaker = *random.pick(&[
            StepActor::Agent(life(1, 0)),
            StepActor::Agent(life(1, 2)),
            StepActor::Agent(life(3, 0)),
            StepActor::Agent(life(2, 0)),
            StepActor::VerifyVm(Run { candidate: 2, number: 2 }),
            StepActor::VerifyVm(Run { candidate: 1, number: 1 }),
            StepActor::Clock,
            StepActor::Operator(Role::Reader),
        ]);
        let what = *random.pick(&[
            What::Claimed { is_end: true },
            What::Verified { base: digest("base"), patch: digest("patch") },
            What::VerifyFailed,
            What::ClaimRead { life: life(1, 1), patch: digest("evil") },
            What::ClaimRefused(life(1, 1)),
            What::Lost(life(1, 1)),
            What::MintRefused(run),
            What::Scored(Some(i64::MAX)),
            What::Spent,
            What::Pause,
            What::Resume,
            What::Cancel,
            What::Restarted,
        ]);
        // A breach: the host takes what is said for who says it.
        let actor = match what {
            What::Verified { .. } | What::VerifyFailed | What::Scored(_) if breached => {
                StepActor::VerifyVm(run)
            }
            What::Pause | What::Cancel if breached => StepActor::Operator(Role::Admin),
            _ => speaker,
        };
        let (next, actions) = step(state.clone(), Event { actor, now_ms: 0, what });
        if next != state || actions.rejected().is_none() {
            return Err(format!("{speaker:?} said {what:?}, and it counted"));
        }
        if next.task() != TaskState::Running {
            return Err("the task stands otherwise".into());
        }
    }
    Ok(())
}
