//! default_deny, deny_dominates, authority_never_rises, and that the decision is total, deterministic and what the page says.

use crate::oracle;
use crate::world::*;
use abi::authority::{
    Amounts, Authority as Policies, Call, Level, Operation, Risk, Rules, Situation, Target, Tool, Verdict,
};
use abi::exposure::Exposure;
use std::panic::AssertUnwindSafe;
use verdict::authority::{Authority, TooMany};
use verdict::decide::{Asks, Policy, decide, operator_step, passed_over};
use verdict::exposure::EVERYTHING;

pub fn at_rest() -> Situation {
    let none = Exposure::NONE;
    let amounts = Amounts::default();
    Situation {
        now_unix_ms: 0,
        seen: none,
        written: none,
        left: amounts,
        needs: amounts,
        is_declassified: false,
    }
}

pub fn all_always() -> Rules {
    Rules {
        levels: Operation::ALL.into_iter().map(|operation| (operation, Level::Always)).collect(),
        read: vec!["/**".parse().unwrap()],
        write: vec!["/**".parse().unwrap()],
        commands: vec!["x **".parse().unwrap()],
        names: vec!["docs.rs".parse().unwrap(), "evil.test".parse().unwrap()],
        agents: vec!["reviewer".parse().unwrap()],
        depth: 1,
        ..Rules::default()
    }
}

/// A call of each operation that [`all_always`] admits, by a tool of the manifest's own or of the verifier.
pub fn admitted(operation: Operation, risk: Risk, name: &str) -> (Policies, Call) {
    use Operation::*;
    let page = Target::Page { name: name.parse().unwrap(), port: 443, path: "/".into() };
    let (tool, target, command) = match operation {
        ReadFiles => ("read", Target::Path("/a".into()), None),
        WriteFiles => ("write", Target::Path("/a".into()), None),
        EditFiles => ("edit", Target::Path("/a".into()), None),
        GlobSearch => ("glob", Target::Path("/a".into()), None),
        GrepSearch => ("grep", Target::Path("/a".into()), None),
        RunBash => ("run", Target::Command(vec!["x".into()]), None),
        WebFetch => ("fetch", page, None),
        WebSearch => ("search", page, Some(vec!["/x".into()])),
        SpawnAgent => ("spawn", Target::Agent("reviewer".parse().unwrap()), Some(vec!["/x".into()])),
        GitCommit | GitPush | CreatePr | ManagePods => ("own", Target::Arguments, Some(vec!["/x".into()])),
    };
    let tools = [(tool.parse().unwrap(), Tool { operation, risk, command })].into();
    let policies = Policies { tools, ..Policies::default() };
    let (arguments, pinned) = (digest(0), digest(1));
    let call = Call {
        operation,
        tool: tool.into(),
        target,
        arguments,
        pinned,
        flows: Exposure::NONE,
        sealed: false,
    };
    (policies, call)
}

#[test]
fn default_deny() {
    for operation in Operation::ALL {
        let (policies, call) = admitted(operation, Risk::Low, "docs.rs");
        let policy = Policy::of(&policies);
        let full = Authority::of(all_always());
        assert_eq!(decide(&full, &policy, &at_rest(), &call).verdict(), Verdict::Allow, "{operation}");
        let nothing = decide(&Authority::nothing(), &policy, &at_rest(), &call);
        assert_eq!((nothing.verdict(), nothing.rule()), (Verdict::Deny, "level"), "{operation}");
        let mut unnamed = all_always();
        unnamed.levels.remove(&operation);
        assert_eq!(
            decide(&Authority::of(unnamed), &policy, &at_rest(), &call).rule(),
            "level",
            "{operation}"
        );
        let listless = Rules { levels: all_always().levels, ..Rules::default() };
        let verdict = decide(&Authority::of(listless), &policy, &at_rest(), &call).verdict();
        let has_list = !matches!(call.target, Target::Arguments);
        assert_eq!(verdict == Verdict::Deny, has_list, "{operation} without lists");
        let unknown = Call { tool: "no-such".into(), ..call.clone() };
        assert_eq!(decide(&full, &policy, &at_rest(), &unknown).rule(), "tool", "{operation}");
        for other in Operation::ALL.into_iter().filter(|other| *other != operation) {
            let lie = Call { operation: other, ..call.clone() };
            assert_eq!(decide(&full, &policy, &at_rest(), &lie).rule(), "tool", "{operation} as {other}");
        }
    }
    assert_eq!(Authority::of_all(&[]), Ok(Authority::nothing()));
}

#[test]
fn every_level_risk_and_exposure_of_every_operation_is_as_the_page_says() {
    let mut cases = 0;
    for operation in Operation::ALL {
        for (level, risk, name) in LEVELS
            .iter()
            .flat_map(|level| RISKS.iter().map(move |risk| (*level, *risk)))
            .flat_map(|(level, risk)| ["docs.rs", "evil.test"].map(|name| (level, risk, name)))
        {
            let (mut policies, call) = admitted(operation, risk, name);
            policies.sources.trusted_names.push("docs.rs".parse().unwrap());
            let policy = Policy::of(&policies);
            let mut rules = all_always();
            rules.levels.insert(operation, level);
            let authority = Authority::of(rules.clone());
            for (seen, flows, is_declassified) in EXPOSURES
                .into_iter()
                .flat_map(|seen| EXPOSURES.map(|flows| (seen, flows)))
                .flat_map(|(seen, flows)| [false, true].map(|declassified| (seen, flows, declassified)))
            {
                let situation = Situation { seen, is_declassified, ..at_rest() };
                let call = Call { flows, ..call.clone() };
                let ruling = decide(&authority, &policy, &situation, &call);
                let (verdict, asked) =
                    oracle::judge(std::slice::from_ref(&rules), &policies, &situation, &call);
                let context =
                    format!("{operation} {level:?} {risk:?} {name} {seen} / {flows} {is_declassified}");
                assert_eq!(ruling.verdict(), verdict, "{context}");
                match verdict {
                    Verdict::Deny => assert_eq!(ruling.rule(), "level", "{context}"),
                    _ => assert_eq!(ruling.asks().rules().collect::<Vec<_>>(), asked, "{context}"),
                }
                assert_eq!(ruling.freezes(), verdict == Verdict::Ask && risk == Risk::Critical, "{context}");
                let sent = if operation.is_sink() { Exposure::EXFILTRATION } else { Exposure::NONE };
                let flowing = if is_declassified { flows } else { flows.and(seen) };
                assert_eq!((ruling.exposure(), ruling.risk()), (flowing.and(sent), risk), "{context}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 13 * 3 * 4 * 2 * 4 * 4 * 2);
}

#[test]
fn decision_is_total_deterministic_and_what_the_page_says() {
    let order = ["expired", "tool", "level", "never", "path", "command", "name", "agent", "depth", "budget"];
    let counts = std::cell::RefCell::new(std::collections::BTreeMap::new());
    let counted = AssertUnwindSafe(&counts);
    each_seed(25_000, |random| {
        let policies = policies(random);
        let all: Vec<Rules> = (0..=random.below(3)).map(|_| rules(random)).collect();
        let authority = Authority::of_all(&all).unwrap();
        let policy = Policy::of(&policies);
        let (situation, call) = (situation(random), call(random, &policies));
        let ruling = decide(&authority, &policy, &situation, &call);
        assert_eq!(ruling, decide(&authority.clone(), &policy.clone(), &situation.clone(), &call));
        let (verdict, rules) = oracle::judge(&all, &policies, &situation, &call);
        assert_eq!(ruling.verdict(), verdict, "{rules:?} {} {all:?} {situation:?} {call:?}", ruling.rule());
        let explained = ruling.explained();
        assert_eq!((explained.verdict, explained.rule.as_str()), (verdict, ruling.rule()));
        assert_eq!(explained.remedy.is_empty(), verdict == Verdict::Allow);
        assert!(
            explained.why.len() < 4096 && !explained.why.contains(|c: char| c.is_control()),
            "{explained:?}"
        );
        match verdict {
            Verdict::Allow => assert_eq!((ruling.rule(), ruling.denial()), ("granted", None)),
            Verdict::Ask => {
                assert_eq!((ruling.asks().rules().collect::<Vec<_>>(), ruling.denial()), (rules, None));
            }
            Verdict::Deny => {
                assert_eq!(ruling.denial().map(|denial| denial.rule()), Some(ruling.rule()));
                let first = order.into_iter().find(|rule| rules.contains(rule));
                assert_eq!(Some(ruling.rule()), first, "{rules:?} {call:?}");
            }
        }
        *counted.borrow_mut().entry(ruling.rule()).or_insert(0) += 1;
    });
    let counts = counts.into_inner();
    if std::env::var("NULLBOX_SEED").is_err() {
        let missing: Vec<&str> = order
            .into_iter()
            .chain(["granted", "risk", "exposure"])
            .filter(|rule| !counts.contains_key(rule))
            .collect();
        assert!(missing.is_empty(), "no case for {missing:?}: {counts:?}");
    }
}

#[test]
fn deny_dominates() {
    each_seed(8_000, |random| {
        let policies = policies(random);
        let policy = Policy::of(&policies);
        let [one, two] = [(); 2].map(|()| Authority::of(rules(random)));
        let (both, reverse) = (one.meet(&two).unwrap(), two.meet(&one).unwrap());
        let (situation, call) = (situation(random), call(random, &policies));
        let verdict = |authority: &Authority| decide(authority, &policy, &situation, &call).verdict();
        assert_eq!(
            verdict(&both),
            verdict(&one).min(verdict(&two)),
            "a meet is as strict as its stricter part"
        );
        assert_eq!(verdict(&both), verdict(&reverse));
        assert_eq!(verdict(&one.meet(&one).unwrap()), verdict(&one));
        assert_eq!(verdict(&one.meet(&Authority::nothing()).unwrap()), Verdict::Deny);
        let third = Authority::of(rules(random));
        let (left, right) = (both.meet(&third).unwrap(), one.meet(&two.meet(&third).unwrap()).unwrap());
        assert_eq!(left, right);
    });
}

#[test]
fn authority_never_rises() {
    each_seed(3_000, |random| {
        let policies = policies(random);
        let policy = Policy::of(&policies);
        let mut authority = Authority::of(rules(random));
        let calls: Vec<_> = (0..20).map(|_| (situation(random), call(random, &policies))).collect();
        for _ in 0..10 {
            let given = Authority::of(rules(random));
            let next = match random.below(2) {
                0 => authority.meet(&given),
                _ => match authority.delegate(&given) {
                    Ok(None) => {
                        assert_eq!(authority.depth(), 0);
                        continue;
                    }
                    Ok(Some(next)) => {
                        assert!(next.depth() < authority.depth());
                        let rules: Vec<u8> = next.rules().iter().map(|rules| rules.depth).collect();
                        assert!(
                            rules.iter().any(|depth| *depth < authority.depth()),
                            "the rules alone say so: {rules:?}"
                        );
                        Ok(next)
                    }
                    Err(error) => Err(error),
                },
            };
            let Ok(next) = next else {
                assert_eq!((next, authority.rules().len()), (Err(TooMany), abi::limits::RULES_MEETS_MAX));
                break;
            };
            assert!(next.is_below(&authority) && next.is_below(&next));
            assert_eq!(
                Authority::of_all(next.rules()).as_ref(),
                Ok(&next),
                "what was written down is what it was"
            );
            for (situation, call) in &calls {
                let verdict = |authority: &Authority| decide(authority, &policy, situation, call).verdict();
                assert!(verdict(&next) <= verdict(&authority), "{call:?}");
            }
            authority = next;
        }
    });
}

#[test]
fn what_is_not_below_is_not_said_to_be() {
    let rules = Rules {
        until_unix_ms: Some(10),
        budget: Amounts { calls: Some(5), ..Amounts::default() },
        ..all_always()
    };
    let base = Authority::of(rules.clone());
    let mut later = rules.clone();
    later.until_unix_ms = Some(11);
    let mut endless = rules.clone();
    endless.until_unix_ms = None;
    let mut richer = rules.clone();
    richer.budget.calls = Some(6);
    let mut boundless = rules.clone();
    boundless.budget.calls = None;
    let mut deeper = rules.clone();
    deeper.depth = 2;
    let mut wider = rules.clone();
    wider.commands.push("sh **".parse().unwrap());
    for other in [later, endless, richer, boundless, deeper, wider] {
        assert!(!Authority::of(other.clone()).is_below(&base), "{other:?}");
    }
    let deep = Authority::of(Rules { depth: u8::MAX, ..all_always() });
    assert_eq!(deep.depth(), abi::limits::DELEGATION_DEPTH_MAX);
}

#[test]
fn more_exposure_never_helps_a_call() {
    each_seed(8_000, |random| {
        let policies = policies(random);
        let (policy, authority) = (Policy::of(&policies), Authority::of(rules(random)));
        let (less, call) = (situation(random), call(random, &policies));
        let more = Situation {
            seen: less.seen.and(*random.pick(&EXPOSURES)),
            written: less.written.and(*random.pick(&EXPOSURES)),
            is_declassified: false,
            ..less.clone()
        };
        let (before, after) =
            (decide(&authority, &policy, &less, &call), decide(&authority, &policy, &more, &call));
        assert!(after.verdict() <= before.verdict());
        assert!(after.exposure().has(before.exposure()) && after.labels().has(before.labels()));
    });
}

#[test]
fn labels_say_where_a_result_comes_from() {
    let (private, untrusted) = (Exposure::PRIVATE_DATA, Exposure::UNTRUSTED_CONTENT);
    let mut policies = Policies::default();
    policies.sources.private.push("/data/customers".parse().unwrap());
    policies.sources.untrusted.push("/work/issues/**".parse().unwrap());
    policies.sources.trusted_names.push("docs.rs".parse().unwrap());
    let own = Tool { operation: Operation::ReadFiles, risk: Risk::Low, command: Some(vec!["/x".into()]) };
    policies.tools.insert("own".parse().unwrap(), own);
    let policy = Policy::of(&policies);
    let authority = Authority::of(all_always());
    let labels = |operation, tool: &str, target, flows, written| {
        let call = Call {
            operation,
            tool: tool.into(),
            target,
            arguments: digest(0),
            pinned: digest(0),
            flows,
            sealed: false,
        };
        let situation = Situation { written, ..at_rest() };
        decide(&authority, &policy, &situation, &call).labels()
    };
    let path = |text: &str| Target::Path(text.into());
    let page = |name: &str| Target::Page { name: name.parse().unwrap(), port: 443, path: "/".into() };
    let none = Exposure::NONE;
    use Operation::*;
    for (operation, tool, target, flows, written, expected) in [
        (ReadFiles, "read", path("/data/customers/a"), none, none, private),
        (ReadFiles, "read", path("/work/issues/1"), none, none, untrusted),
        (ReadFiles, "read", path("/work/src"), none, none, none),
        (ReadFiles, "read", path("/work/src"), none, private, private),
        (EditFiles, "edit", path("/data/customers"), private, none, private),
        (EditFiles, "edit", path("/work/a"), private, none, none),
        (WriteFiles, "write", path("/data/customers/a"), private, untrusted, none),
        (GlobSearch, "glob", path("/"), none, none, EVERYTHING),
        (GrepSearch, "grep", path("/work"), none, none, untrusted),
        (GrepSearch, "grep", path("/data/customers/x"), none, none, private),
        (GrepSearch, "grep", path("/etc"), none, untrusted, untrusted),
        (ReadFiles, "read", path("/work"), none, none, none),
        (RunBash, "run", Target::Command(vec!["x".into()]), none, none, EVERYTHING),
        (ReadFiles, "own", Target::Arguments, none, none, EVERYTHING),
        (WebFetch, "fetch", page("docs.rs"), none, none, none),
        (WebFetch, "fetch", page("docs.rs"), private, none, private),
        (WebFetch, "fetch", page("evil.test"), none, none, untrusted),
        (WebSearch, "own", page("docs.rs"), none, none, EVERYTHING),
        (SpawnAgent, "spawn", Target::Agent("reviewer".parse().unwrap()), none, none, EVERYTHING),
        (GitPush, "push", page("docs.rs"), none, none, EVERYTHING),
    ] {
        let context = format!("{operation} {target:?} {flows} {written}");
        assert_eq!(labels(operation, tool, target, flows, written), expected, "{context}");
    }
    let bare = Policy::of(&Policies::default());
    let run = Call {
        operation: RunBash,
        tool: "run".into(),
        target: Target::Command(vec!["x".into()]),
        arguments: digest(0),
        pinned: digest(0),
        flows: private,
        sealed: false,
    };
    assert_eq!(decide(&authority, &bare, &at_rest(), &run).labels(), private, "what it is fed it may print");
    let (own, call) = admitted(GitPush, Risk::Low, "docs.rs");
    let ruling = decide(&authority, &Policy::of(&own), &at_rest(), &call);
    assert_eq!(ruling.labels(), none, "a program that can read nothing labelled labels nothing");
    let with_tree = bare.with_private("/work/**".parse().unwrap());
    let read =
        Call { operation: ReadFiles, tool: "read".into(), target: path("/work/a"), flows: none, ..run };
    assert_eq!(decide(&authority, &with_tree, &at_rest(), &read).labels(), private);
    assert_eq!(with_tree.sources().private.len(), 1);
}

#[test]
fn a_step_of_an_operator_is_always_asked_for() {
    let (_, call) = admitted(Operation::GitPush, Risk::Low, "docs.rs");
    let ruling = operator_step(&call);
    assert_eq!((ruling.verdict(), ruling.rule(), ruling.asks()), (Verdict::Ask, "step", Asks::STEP));
    assert!(ruling.is_question() && !ruling.freezes() && ruling.exposure().has(Exposure::EXFILTRATION));
    assert!(std::ptr::eq(ruling.call(), &call) && ruling.risk() == Risk::High && ruling.labels().is_none());
}

#[test]
fn an_explanation_names_the_value_and_cuts_what_an_agent_wrote() {
    let (policies, call) = admitted(Operation::ReadFiles, Risk::Critical, "docs.rs");
    let (policy, full) = (Policy::of(&policies), Authority::of(all_always()));
    let asked = decide(&full, &policy, &at_rest(), &call).explained();
    assert!(asked.why.contains("critical") && asked.remedy.contains("nullctl approve"), "{asked:?}");
    let long = Call { target: Target::Path(format!("/{}\u{202e}", "x".repeat(3000))), ..call.clone() };
    let denied = decide(&Authority::of(Rules { read: vec![], ..all_always() }), &policy, &at_rest(), &long)
        .explained();
    assert!(
        denied.why.len() < 400 && denied.why.contains("xxx...") && !denied.why.contains('\u{202e}'),
        "{denied:?}"
    );
    let exhausted = Situation { needs: Amounts { calls: Some(2), ..Amounts::default() }, ..at_rest() };
    let poor =
        Authority::of(Rules { budget: Amounts { calls: Some(1), ..Amounts::default() }, ..all_always() });
    let why = decide(&poor, &policy, &exhausted, &call).explained().why;
    assert!(why.contains("`calls` has 1 left") && why.contains("2 would be needed"), "{why}");
}

#[test]
fn a_search_passes_over_what_any_of_the_rules_keeps_from_tools() {
    let one = Rules { never: vec!["/a".parse().unwrap()], ..Rules::default() };
    let two = Rules { never: vec!["/b/**".parse().unwrap()], ..Rules::default() };
    let both = Authority::of_all(&[one, two]).unwrap();
    assert_eq!(passed_over(&both).map(|pattern| pattern.as_str()).collect::<Vec<_>>(), ["/a", "/b/**"]);
}
