//! approval_single_use, and each way around it.

use crate::world::{RISKS, digest, each_seed};
use abi::authority::{
    Amounts, Authority as Policies, Call, Level, Operation, Risk, Rules, Situation, Target, Tool,
};
use abi::exposure::Exposure;
use abi::identity::Role;
use abi::limits::{APPROVAL_USE_MS_MAX, APPROVAL_WAIT_MS_MAX, APPROVALS_MAX, APPROVALS_PER_AGENT_MAX};
use std::collections::BTreeSet;
use verdict::approvals::{Actor, Approvals, CallKey, Refusal, Standing};
use verdict::authority::Authority;
use verdict::decide::{Policy, Ruling, decide, operator_step};

const ADMIN: Actor<'static> = Actor::Operator { role: Role::Admin, name: "root" };
const OPERATOR: Actor<'static> = Actor::Operator { role: Role::Operator, name: "alice" };
const READER: Actor<'static> = Actor::Operator { role: Role::Reader, name: "bob" };
const OWNER: &str = "researcher.3";

fn call(byte: u8) -> Call {
    Call {
        operation: Operation::WebFetch,
        tool: "fetch".into(),
        target: Target::Page { name: "docs.rs".parse().unwrap(), port: 443, path: "/".into() },
        arguments: digest(byte),
        pinned: digest(9),
        flows: Exposure::NONE,
        sealed: false,
    }
}

fn rule<'a>(call: &'a Call, level: Level, risk: Risk, seen: Exposure) -> Ruling<'a> {
    let rules = Rules {
        levels: [(Operation::WebFetch, level)].into(),
        names: vec!["docs.rs".parse().unwrap()],
        ..Rules::default()
    };
    let tools =
        [("fetch".parse().unwrap(), Tool { operation: Operation::WebFetch, risk, command: None })].into();
    let policy = Policy::of(&Policies { tools, ..Policies::default() });
    let none = Amounts::default();
    let situation =
        Situation { now_unix_ms: 0, seen, written: seen, left: none, needs: none, is_declassified: false };
    decide(&Authority::of(rules), &policy, &situation, call)
}

fn ask<'a>(call: &'a Call) -> Ruling<'a> {
    rule(call, Level::Ask, Risk::Low, Exposure::NONE)
}

#[test]
fn approval_single_use() {
    let call = call(1);
    let key = CallKey::of(OWNER, &call);
    let mut approvals = Approvals::beginning_at(7);
    let id = approvals.ask(Actor::Agent, OWNER, &ask(&call), 0).unwrap();
    assert_eq!((id, approvals.next()), (7, 8));
    assert_eq!(approvals.spend(Actor::Agent, id, &key, &ask(&call), 1), Err(Refusal::NotApproved));
    let decided = approvals.decide(OPERATOR, id, true, 1).unwrap();
    assert_eq!((decided.standing(), decided.decided_by()), (Standing::Approved, "alice"));
    let spent = approvals.spend(Actor::Agent, id, &key, &ask(&call), 2).unwrap();
    assert_eq!((spent.id(), spent.key(), spent.by()), (7, &key, "alice"));
    assert_eq!(approvals.spend(Actor::Agent, id, &key, &ask(&call), 2), Err(Refusal::Unknown), "used once");
    assert_eq!(approvals.decide(OPERATOR, id, true, 2), Err(Refusal::Unknown), "and never answered again");
}

#[test]
fn approval_single_use_in_every_order_of_events() {
    each_seed(1_500, |random| {
        let mut approvals = Approvals::beginning_at(0);
        let (mut approved, mut spent, mut now) = (BTreeSet::new(), BTreeSet::new(), 0);
        let calls = [call(0), call(1), call(2)];
        for _ in 0..80 {
            now += random.below(APPROVAL_USE_MS_MAX / 2);
            let actor = *random.pick(&[
                ADMIN,
                OPERATOR,
                READER,
                Actor::Agent,
                Actor::Agent,
                Actor::Service,
                Actor::Clock,
            ]);
            let call = random.pick(&calls);
            let owner = *random.pick(&["a.1", "b.1"]);
            let id = random.below(approvals.next() + 1);
            match random.below(6) {
                0 | 1 => {
                    let risk = *random.pick(&RISKS);
                    let asked =
                        approvals.ask(actor, owner, &rule(call, Level::Ask, risk, Exposure::NONE), now);
                    assert!(actor == Actor::Agent || asked == Err(Refusal::Actor), "{actor:?}");
                }
                2 | 3 => {
                    let role = approvals.question(id).map(|question| question.role());
                    if approvals
                        .decide(actor, id, !random.one_in(4), now)
                        .is_ok_and(|one| one.standing() == Standing::Approved)
                    {
                        assert!(
                            actor.is_at_least(Role::Operator) && actor.is_at_least(role.unwrap()),
                            "{actor:?}"
                        );
                        assert!(approved.insert(id), "{id} was answered twice");
                    }
                }
                4 => {
                    let key = CallKey::of(owner, call);
                    let was = approvals.question(id).cloned();
                    if let Ok(proof) = approvals.spend(actor, id, &key, &ask(call), now) {
                        let was = was.unwrap();
                        assert!(actor == Actor::Agent && was.key() == &key && now < was.until_unix_ms());
                        assert!(approved.contains(&proof.id()), "nobody approved {id}");
                        assert!(spent.insert(proof.id()), "{id} was used twice");
                    }
                }
                _ => {
                    assert_eq!(approvals.expire(actor, now).is_ok(), actor == Actor::Clock);
                    let old = approvals.iter().any(|(_, question)| question.until_unix_ms() <= now);
                    assert!(actor != Actor::Clock || !old);
                }
            }
        }
    });
}

#[test]
fn only_an_operator_answers_and_only_an_admin_what_is_critical() {
    let call = call(1);
    for (risk, role) in RISKS.into_iter().zip([Role::Operator, Role::Operator, Role::Operator, Role::Admin]) {
        let ruling = rule(&call, Level::Ask, risk, Exposure::NONE);
        let mut approvals = Approvals::beginning_at(0);
        let id = approvals.ask(Actor::Agent, OWNER, &ruling, 0).unwrap();
        let question = approvals.question(id).unwrap();
        assert_eq!((question.role(), question.is_frozen()), (role, risk == Risk::Critical));
        for actor in [Actor::Agent, Actor::Service, Actor::Clock] {
            assert_eq!(approvals.decide(actor, id, true, 1), Err(Refusal::Actor), "{actor:?}");
        }
        assert_eq!(approvals.decide(READER, id, true, 1), Err(Refusal::Role(role)));
        let answer = approvals.decide(OPERATOR, id, true, 1);
        assert_eq!(answer.is_ok(), role == Role::Operator, "{risk:?}");
        assert_eq!(approvals.decide(ADMIN, id, true, 1).is_ok(), role == Role::Admin, "{risk:?}");
        assert!(!approvals.question(id).unwrap().is_frozen(), "an answered question lets the VM go on");
    }
}

#[test]
fn an_approval_is_for_no_other_call() {
    let asked = call(1);
    let changed = [
        Call { arguments: digest(2), ..asked.clone() },
        Call { pinned: digest(2), ..asked.clone() },
        Call { tool: "other".into(), ..asked.clone() },
        Call { operation: Operation::ReadFiles, ..asked.clone() },
    ];
    let mut approvals = Approvals::beginning_at(0);
    let id = approvals.ask(Actor::Agent, OWNER, &ask(&asked), 0).unwrap();
    approvals.decide(OPERATOR, id, true, 0).unwrap();
    let key = CallKey::of(OWNER, &asked);
    for other in &changed {
        assert_eq!(
            approvals.spend(Actor::Agent, id, &key, &ask(other), 0),
            Err(Refusal::OtherCall),
            "{other:?}"
        );
        let other_key = CallKey::of(OWNER, other);
        assert_eq!(approvals.spend(Actor::Agent, id, &other_key, &ask(other), 0), Err(Refusal::OtherCall));
        assert_eq!(approvals.spend(Actor::Agent, id, &other_key, &ask(&asked), 0), Err(Refusal::OtherCall));
    }
    let elsewhere = CallKey::of("researcher.4", &asked);
    assert_eq!(approvals.spend(Actor::Agent, id, &elsewhere, &ask(&asked), 0), Err(Refusal::OtherCall));
    for actor in [Actor::Service, Actor::Clock, OPERATOR, ADMIN] {
        assert_eq!(approvals.spend(actor, id, &key, &ask(&asked), 0), Err(Refusal::Actor), "{actor:?}");
    }
    assert!(
        approvals.spend(Actor::Agent, id, &key, &ask(&asked), 0).is_ok(),
        "none of it used the approval up"
    );
}

#[test]
fn an_approval_does_not_count_for_more_than_was_shown() {
    let call = call(1);
    let key = CallKey::of(OWNER, &call);
    let (none, private) = (Exposure::NONE, Exposure::PRIVATE_DATA);
    let both = private.and(Exposure::UNTRUSTED_CONTENT);
    for (shown, fresh, outcome) in [
        ((Level::Ask, Risk::Low, none), (Level::Ask, Risk::Low, none), Ok(())),
        ((Level::Ask, Risk::High, both), (Level::Ask, Risk::Low, none), Ok(())),
        ((Level::Ask, Risk::High, both), (Level::Always, Risk::Low, none), Ok(())),
        ((Level::Ask, Risk::Low, none), (Level::Never, Risk::Low, none), Err(Refusal::Verdict)),
        ((Level::Ask, Risk::Low, none), (Level::Ask, Risk::Low, private), Err(Refusal::Changed)),
        ((Level::Ask, Risk::Low, none), (Level::Ask, Risk::Low, both), Err(Refusal::Changed)),
        ((Level::Ask, Risk::Low, none), (Level::Ask, Risk::High, none), Err(Refusal::Changed)),
        ((Level::Ask, Risk::Low, none), (Level::Ask, Risk::Medium, none), Err(Refusal::Changed)),
        ((Level::Always, Risk::High, none), (Level::Ask, Risk::High, none), Err(Refusal::Changed)),
        ((Level::Ask, Risk::High, none), (Level::Ask, Risk::Critical, none), Err(Refusal::Changed)),
    ] {
        let mut approvals = Approvals::beginning_at(0);
        let id = approvals.ask(Actor::Agent, OWNER, &rule(&call, shown.0, shown.1, shown.2), 0).unwrap();
        approvals.decide(ADMIN, id, true, 0).unwrap();
        let again = rule(&call, fresh.0, fresh.1, fresh.2);
        let spent = approvals.spend(Actor::Agent, id, &key, &again, 0);
        assert_eq!(spent.map(|_| ()), outcome, "{shown:?} {fresh:?}");
        assert!(approvals.question(id).is_none(), "either way it is over");
    }
}

#[test]
fn what_stays_in_the_cage_may_see_more_before_its_approval_is_used() {
    let call = Call {
        operation: Operation::RunBash,
        tool: "run".into(),
        target: Target::Command(vec!["x".into()]),
        ..call(1)
    };
    let rules = Rules {
        levels: [(Operation::RunBash, Level::Ask)].into(),
        commands: vec!["x".parse().unwrap()],
        ..Rules::default()
    };
    let (policy, authority, none) =
        (Policy::of(&Policies::default()), Authority::of(rules), Amounts::default());
    let at = |seen| Situation {
        now_unix_ms: 0,
        seen,
        written: seen,
        left: none,
        needs: none,
        is_declassified: false,
    };
    let (before, after) = (at(Exposure::NONE), at(Exposure::PRIVATE_DATA));
    let mut approvals = Approvals::beginning_at(0);
    let id = approvals.ask(Actor::Agent, OWNER, &decide(&authority, &policy, &before, &call), 0).unwrap();
    approvals.decide(OPERATOR, id, true, 0).unwrap();
    let fresh = decide(&authority, &policy, &after, &call);
    assert!(approvals.spend(Actor::Agent, id, &CallKey::of(OWNER, &call), &fresh, 0).is_ok());
}

#[test]
fn only_what_is_asked_for_is_a_question() {
    let call = call(1);
    let mut approvals = Approvals::beginning_at(0);
    for level in [Level::Never, Level::Always] {
        let ruling = rule(&call, level, Risk::Low, Exposure::NONE);
        assert_eq!(approvals.ask(Actor::Agent, OWNER, &ruling, 0), Err(Refusal::Verdict));
    }
    assert_eq!(
        approvals.ask(OPERATOR, OWNER, &ask(&call), 0),
        Err(Refusal::Actor),
        "an agent's call is an agent's"
    );
    let step = operator_step(&call);
    for actor in [Actor::Agent, Actor::Service, Actor::Clock, READER] {
        assert_eq!(
            approvals.ask(actor, "t12", &step, 0),
            Err(Refusal::Actor),
            "a step is an operator's: {actor:?}"
        );
    }
    let id = approvals.ask(OPERATOR, "t12", &step, 0).unwrap();
    approvals.decide(OPERATOR, id, true, 0).unwrap();
    let key = CallKey::of("t12", &call);
    assert_eq!(approvals.spend(Actor::Agent, id, &key, &step, 0), Err(Refusal::Actor));
    assert_eq!(
        approvals.spend(Actor::Agent, id, &key, &ask(&call), 0),
        Err(Refusal::Changed),
        "nor by way of a call"
    );
    let id = approvals.ask(OPERATOR, "t12", &step, 0).unwrap();
    approvals.decide(OPERATOR, id, true, 0).unwrap();
    assert!(approvals.spend(OPERATOR, id, &key, &step, 0).is_ok());
}

#[test]
fn a_question_and_an_approval_end_by_themselves() {
    let call = call(1);
    let key = CallKey::of(OWNER, &call);
    let mut approvals = Approvals::beginning_at(0);
    let late = approvals.ask(Actor::Agent, OWNER, &ask(&call), 0).unwrap();
    assert_eq!(approvals.decide(OPERATOR, late, true, APPROVAL_WAIT_MS_MAX), Err(Refusal::Expired));
    let unused = approvals.ask(Actor::Agent, OWNER, &ask(&call), 0).unwrap();
    assert!(approvals.decide(OPERATOR, unused, true, APPROVAL_WAIT_MS_MAX - 1).is_ok());
    assert_eq!(approvals.decide(OPERATOR, unused, true, APPROVAL_WAIT_MS_MAX - 1), Err(Refusal::Answered));
    assert_eq!(approvals.expire(Actor::Clock, APPROVAL_WAIT_MS_MAX - 1), Ok(vec![]));
    let ended = approvals.expire(Actor::Clock, APPROVAL_WAIT_MS_MAX).unwrap();
    assert_eq!((ended.len(), ended[0].id, ended[0].standing, &ended[0].key), (1, late, Standing::Open, &key));
    let over = APPROVAL_WAIT_MS_MAX - 1 + APPROVAL_USE_MS_MAX;
    let mut other = approvals.clone();
    assert_eq!(approvals.spend(Actor::Agent, unused, &key, &ask(&call), over), Err(Refusal::Expired));
    assert!(other.spend(Actor::Agent, unused, &key, &ask(&call), over - 1).is_ok());
    for actor in [Actor::Agent, Actor::Service, OPERATOR] {
        assert_eq!(approvals.expire(actor, over), Err(Refusal::Actor));
    }
}

#[test]
fn a_denied_question_is_over_and_a_dead_owners_are_withdrawn() {
    let call = call(1);
    let mut approvals = Approvals::beginning_at(0);
    let id = approvals.ask(Actor::Agent, OWNER, &ask(&call), 0).unwrap();
    assert_eq!(approvals.decide(OPERATOR, id, false, 0).unwrap().standing(), Standing::Denied);
    assert_eq!(
        approvals.spend(Actor::Agent, id, &CallKey::of(OWNER, &call), &ask(&call), 0),
        Err(Refusal::Unknown)
    );
    for owner in ["a.1", "a.10", "a.1"] {
        approvals.ask(Actor::Agent, owner, &ask(&call), 0).unwrap();
    }
    for actor in [Actor::Agent, Actor::Clock, ADMIN] {
        assert_eq!(approvals.withdraw(actor, "a.1"), Err(Refusal::Actor));
    }
    assert_eq!(approvals.withdraw(Actor::Service, "a.1").unwrap().len(), 2);
    assert_eq!(
        approvals.iter().map(|(_, question)| question.key().owner.as_str()).collect::<Vec<_>>(),
        ["a.10"]
    );
}

#[test]
fn questions_of_an_agent_and_of_the_node_are_bounded() {
    let call = call(1);
    let mut approvals = Approvals::beginning_at(0);
    for _ in 0..APPROVALS_PER_AGENT_MAX {
        approvals.ask(Actor::Agent, "flood.1", &ask(&call), 0).unwrap();
    }
    let refused = Err(Refusal::TooMany(APPROVALS_PER_AGENT_MAX));
    assert_eq!(approvals.ask(Actor::Agent, "flood.1", &ask(&call), 0), refused);
    for number in approvals.iter().count()..APPROVALS_MAX {
        approvals.ask(Actor::Agent, &format!("a{number}.1"), &ask(&call), 0).unwrap();
    }
    assert_eq!(approvals.ask(Actor::Agent, "late.1", &ask(&call), 0), Err(Refusal::TooMany(APPROVALS_MAX)));
    let mut last = Approvals::beginning_at(u64::MAX);
    assert!(last.ask(Actor::Agent, OWNER, &ask(&call), 0).is_err(), "a number never comes twice");
}

#[test]
fn each_refusal_says_why() {
    let all = [
        Refusal::Actor,
        Refusal::Role(Role::Admin),
        Refusal::Role(Role::Operator),
        Refusal::Verdict,
        Refusal::TooMany(1),
        Refusal::Unknown,
        Refusal::Answered,
        Refusal::NotApproved,
        Refusal::Expired,
        Refusal::OtherCall,
        Refusal::Changed,
    ];
    assert_eq!(all.map(Refusal::why).into_iter().collect::<BTreeSet<_>>().len(), all.len());
    assert!(Refusal::Role(Role::Admin).why().contains("admin") && Refusal::Expired.why().contains("time"));
}
