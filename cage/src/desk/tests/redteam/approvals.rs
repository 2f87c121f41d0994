//! What a human said, used twice, for something else, in another life, after something changed; and said by who is none.

use super::*;
use abi::control::Approval;

/// Callers that let nothing through, whatever they call themselves.
fn nobodies() -> Vec<Caller> {
    let reader = |name: &str| Caller::Operator { name: name.into(), key: "k".into(), role: Role::Reader };
    vec![
        Caller::Local { uid: abi::guest::GUEST_UID },
        Caller::Local { uid: abi::identity::VM_UID_BASE },
        Caller::Service { service: abi::identity::Service::Cage },
        Caller::Service { service: abi::identity::Service::Nullgate },
        reader("a.7"),
        reader("admin"),
    ]
}

/// Sends a call and waits for its question.
fn question_of(bench: &mut Bench, tool: &str, params: &Value) -> Approval {
    bench.call(tool, params.clone());
    let arguments = digest_of(params.to_string().as_bytes());
    let deadline = Instant::now() + SOON;
    loop {
        let (questions, _) = bench.questions.follow(0, SOON);
        let is_this = |one: &Approval| {
            one.instance.as_ref() == Some(&bench.desk.instance) && one.arguments == arguments
        };
        if let Some(question) = questions.into_iter().find(is_this) {
            return question;
        }
        assert!(Instant::now() < deadline, "no question for {params}");
    }
}

fn went(bench: &mut Bench) -> bool {
    let (channel, answer, _) = bench.answer();
    bench.end(channel, 1);
    matches!(answer, Answer::Go(_))
}

/// Calls of two lives are asked for; old answers are tried on them, something changes, somebody answers.
pub(super) fn play(random: &mut Random, breached: bool) -> Result<(), String> {
    let node = node();
    let mut lives = [life(&node, "a.7", RULES), life(&node, "a.8", RULES)];
    let (mut old, mut is_tight): (Vec<abi::ids::Name>, _) = (Vec::new(), [false; 2]);
    for _ in 0..6 {
        let which = random.below(2);
        let bench = &mut lives[which];
        let is_edit = random.one_in(2);
        let (tool, params) = match is_edit {
            true => ("edit", json!({"path": "/work/a", "old": random.pick(&["a", "b"]), "new": "x"})),
            false => ("publish", json!({"arguments": {"text": "out"}})),
        };
        // A sink is asked for when both have been seen.
        bench.desk.note(PRIVATE.and(STRANGE)).unwrap();
        if is_tight[which] {
            if allowed(bench, tool, &params.to_string()) {
                return Err(format!("{tool} after it was taken away"));
            }
            continue;
        }
        let question = question_of(bench, tool, &params);
        let pinned = Digest([if is_edit { 2 } else { 1 }; 32]);
        if question.pinned != pinned || question.tool != tool {
            return Err(format!("asked for something else: {question:?}"));
        }
        if let Some(id) = old.iter().find(|id| node.questions.decide(&admin(), id, true, "again").is_ok()) {
            return Err(format!("{id} was answered twice"));
        }
        if random.one_in(4) {
            let rules = authority::Rules { read: vec!["/work/**".parse().unwrap()], ..Default::default() };
            bench.desk.tighten(&rules, "olga").unwrap();
            is_tight[which] = true;
        }
        // A breach: somebody whom nobody counts says yes first.
        if breached {
            node.questions.decide(&admin(), &question.id, true, "unasked").unwrap();
        }
        let says = random.one_in(2);
        let said = node.questions.decide(&operator(), &question.id, says, "as it is");
        assert!(said.is_ok() || breached, "{said:?}");
        old.push(question.id);
        let is_right = says && !is_tight[which];
        if went(bench) != is_right && !(breached && is_right) {
            return Err(format!("{tool}; said: {says}, taken away: {}", is_tight[which]));
        }
    }
    Ok(())
}

/// The agent, or who speaks for it, answers its own questions; and the question of a life that is over is answered.
pub(super) fn by_oneself(random: &mut Random, breached: bool) -> Result<(), String> {
    let node = node();
    let mut bench = life(&node, "a.7", RULES);
    let mut callers = nobodies();
    let (tool, params) = match random.below(2) {
        0 => ("edit", json!({"path": "/work/a", "old": "a", "new": "b"})),
        _ => {
            callers.push(operator()); // critical: an admin's to answer
            ("wipe", json!({"arguments": {"approved": true}}))
        }
    };
    let question = question_of(&mut bench, tool, &params);
    for _ in 0..6 {
        // A breach: the name that the guest gives is taken for who it is.
        let caller = if breached { admin() } else { random.pick(&callers).clone() };
        let id = if random.one_in(3) { "a2".parse().unwrap() } else { question.id.clone() };
        if node.questions.decide(&caller, &id, true, "I may").is_ok() {
            return Err(format!("{caller} approved {id}"));
        }
    }
    if bench.desk.resume("a.7", Role::Reader).is_ok_and(|goes_on| goes_on) {
        return Err("a reader let it go on".into());
    }
    bench.desk.close();
    if node.questions.decide(&admin(), &question.id, true, "too late").is_ok() {
        return Err("the question of a life that is over was answered".into());
    }
    // The next life's first call has the same channel and the same bytes, and no leave.
    let mut next = life(&node, "a.8", RULES);
    let again = question_of(&mut next, tool, &params);
    if again.id == question.id {
        return Err(format!("{} came twice", again.id));
    }
    node.questions.decide(&admin(), &again.id, false, "no").unwrap();
    if went(&mut next) { Err(format!("{tool} happened")) } else { Ok(()) }
}
