//! What a ruling says to people: of each rule the sentence, with the values, and how the call could be had.

use crate::decision::{admitted, all_always, at_rest};
use crate::world::RISKS;
use abi::authority::{Amounts, Call, Level, Operation, Risk, Rules, Situation, Target, Verdict};
use abi::limits::RULES_MEETS_MAX;
use std::collections::BTreeSet;
use verdict::authority::{Authority, TooMany};
use verdict::decide::{Asks, Policy, decide, operator_step};
use verdict::exposure::EVERYTHING;

const HOW_TO_APPROVE: &str = "nullctl approvals; nullctl approve ID --reason TEXT";

/// What is said of the call of an operation that all else allows.
fn said(operation: Operation, risk: Risk, rules: Rules, situation: &Situation) -> [String; 3] {
    let (policies, call) = admitted(operation, risk, "evil.test");
    let authority = Authority::of(rules);
    let said = decide(&authority, &Policy::of(&policies), situation, &call).explained();
    [said.rule, said.why, said.remedy]
}

#[test]
fn a_denial_says_which_rule_with_which_value_and_how_it_could_be_had() {
    use Operation::*;
    let late = Situation { now_unix_ms: 7, ..at_rest() };
    let two = Situation { needs: Amounts { calls: Some(2), ..Amounts::default() }, ..at_rest() };
    let one = Amounts { calls: Some(1), ..Amounts::default() };
    let path = "use a path that `read` or `write` admits; a search needs the whole directory admitted";
    for (operation, situation, rules, said_of_it) in [
        (
            ReadFiles,
            &late,
            Rules { until_unix_ms: Some(7), ..all_always() },
            ["expired", "the authority ended at 7 ms", "a life begun anew has a new end"],
        ),
        (
            ReadFiles,
            &late,
            Rules { levels: [].into(), ..all_always() },
            [
                "level",
                "`read_files` is `never`",
                "the manifest's [authority.operations] and its profile would have to allow it",
            ],
        ),
        (
            ReadFiles,
            &late,
            Rules { never: vec!["/a".parse().unwrap()], ..all_always() },
            [
                "never",
                "`/a` is a path that no tool touches",
                "leave it alone; `never` in the manifest or the profile names it",
            ],
        ),
        (
            GlobSearch,
            &late,
            Rules { read: vec![], ..all_always() },
            ["path", "`/a` is in no list of paths for `glob_search`, or not a plain absolute path", path],
        ),
        (
            RunBash,
            &late,
            Rules { commands: vec![], ..all_always() },
            [
                "command",
                "no pattern in `commands` admits `x`",
                "use a command that `commands` of the manifest and its profile admit",
            ],
        ),
        (
            WebFetch,
            &late,
            Rules { names: vec![], ..all_always() },
            [
                "name",
                "no pattern in `names` admits `evil.test:443/`",
                "use a name that `names` of the manifest and its profile admit",
            ],
        ),
        (
            SpawnAgent,
            &late,
            Rules { agents: vec![], ..all_always() },
            ["agent", "`reviewer` is not among `agents`", "use an agent that `agents` of the manifest names"],
        ),
        (
            SpawnAgent,
            &late,
            Rules { depth: 0, ..all_always() },
            ["depth", "no agent may stand below this one", "`depth` in the manifest says how many may"],
        ),
        (
            ReadFiles,
            &two,
            Rules { budget: one, ..all_always() },
            [
                "budget",
                "the budget `calls` has 1 left, and 2 would be needed",
                "ask for less, or have an operator add to the budget",
            ],
        ),
    ] {
        assert_eq!(said(operation, Risk::Low, rules, situation), said_of_it);
    }
    let (policies, call) = admitted(ReadFiles, Risk::Low, "docs.rs");
    let unknown = Call { tool: "no-such\u{202e}".into(), ..call };
    let told = decide(&Authority::of(all_always()), &Policy::of(&policies), &late, &unknown).explained();
    assert_eq!(told.why, "there is no tool `no-such\\u{202e}` that does `read_files`");
    assert_eq!(TooMany.to_string(), format!("more than {RULES_MEETS_MAX} rules would have to be met"));
    assert_eq!(told.remedy, "name it in [tools] of the manifest with its operation and command");
}

#[test]
fn a_question_names_all_that_ask_and_leave_says_what_for() {
    use Operation::{GitPush, ReadFiles, WebFetch};
    let mut asking = all_always();
    asking.levels.insert(WebFetch, Level::Ask);
    let exposed = Situation { seen: EVERYTHING, ..at_rest() };
    let level = "`web_fetch` is asked for each time";
    let exposure = "what has seen private data, under the influence of strangers' text, would go to `evil.test:443/`, which is not trusted";
    for risk in RISKS {
        let high = match risk {
            Risk::Low | Risk::Medium => None,
            Risk::High => Some("`fetch` is a tool of high risk"),
            Risk::Critical => Some("`fetch` is a tool of critical risk"),
        };
        let [rule, why, remedy] = said(WebFetch, risk, asking.clone(), &exposed);
        let all: Vec<&str> = [Some(level), high, Some(exposure)].into_iter().flatten().collect();
        assert_eq!([rule, why, remedy], ["level", &all.join("; "), HOW_TO_APPROVE]);
    }
    let (_, push) = admitted(GitPush, Risk::Low, "docs.rs");
    let step = operator_step(&push).explained();
    assert_eq!((step.verdict, step.why.as_str()), (Verdict::Ask, "a verified patch leaves the node"));
    let allowed = |operation| said(operation, Risk::Low, all_always(), &at_rest());
    assert_eq!(allowed(ReadFiles), ["granted", "`read_files` is allowed on `/a`", ""]);
    assert_eq!(allowed(GitPush), ["granted", "`git_push` is allowed on its arguments", ""]);
    assert!(!decide(&Authority::nothing(), &Policy::default(), &at_rest(), &push).is_question());
}

#[test]
fn what_an_agent_wrote_is_repeated_up_to_200_characters() {
    let (policies, call) = admitted(Operation::ReadFiles, Risk::Low, "docs.rs");
    for (length, end) in [(199, "x`"), (200, "x...`")] {
        let text = format!("/{}", "x".repeat(length));
        let long = Call { target: Target::Path(text), ..call.clone() };
        let why =
            decide(&Authority::of(all_always()), &Policy::of(&policies), &at_rest(), &long).explained().why;
        assert_eq!(why, format!("`read_files` is allowed on `/{}{end}", "x".repeat(198)));
    }
}

#[test]
fn what_asks_is_a_set() {
    let all = [Asks::LEVEL, Asks::RISK, Asks::EXPOSURE, Asks::STEP];
    let of = |bits: usize| -> (Asks, BTreeSet<usize>) {
        let members: BTreeSet<usize> = (0..4).filter(|bit| bits >> bit & 1 == 1).collect();
        (members.iter().fold(Asks::NONE, |set, member| set.and(all[*member])), members)
    };
    for ((one, mine), (two, others)) in (0..16).flat_map(|one| (0..16).map(move |two| (of(one), of(two)))) {
        assert_eq!(one == two, mine == others);
        assert_eq!(one.has(two), mine.is_superset(&others));
        assert_eq!(one.is_none(), mine.is_empty());
        assert_eq!(one.and(two), of(mine.union(&others).map(|member| 1 << member).sum()).0);
        let names: Vec<&str> =
            mine.iter().map(|member| ["level", "risk", "exposure", "step"][*member]).collect();
        assert_eq!(one.rules().collect::<Vec<_>>(), names);
    }
}

#[test]
fn the_verifiers_tools_and_the_manifests_are_known_by_operation_and_risk() {
    let (policies, _) = admitted(Operation::GitPush, Risk::High, "docs.rs");
    let policy = Policy::of(&policies);
    assert_eq!(policy.tool("own"), Some((Operation::GitPush, Risk::High)));
    for (name, operation) in abi::tools::BUILT_IN {
        assert_eq!(policy.tool(name), operation.map(|operation| (operation, Risk::Low)), "{name}");
    }
    assert_eq!(policy.tool("no-such"), None);
}
