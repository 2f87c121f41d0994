//! What may come between two steps of a task: another caller, an end of cage, a ledger that is away, a budget that is spent.

use super::*;
use crate::desk::{Beginning, Desk, House, Mandate, Pinned};
use abi::control::{Fetched, NetFetch};
use abi::exposure::Exposure;
use abi::identity::Role;

/// A task that is verified, with its end told.
fn verified_task(cage: &Arc<Cage>) -> Arc<Task> {
    let task = working(cage);
    let told = claims(cage, &task, &[("src/lib.rs", "new\n")]);
    verified(cage, &task);
    task.record().1.submits.clear();
    drop(told.join().unwrap());
    act::act(cage, &task, verdict::step::Action::Finish(TaskState::Verified));
    task
}

/// So many questions are there; the newest.
fn questions(cage: &Cage, count: usize) -> Vec<abi::control::Approval> {
    let until = Instant::now() + SOON;
    loop {
        let all = cage.questions.list();
        if all.len() == count {
            return all;
        }
        assert!(Instant::now() < until, "{} questions of {count}", all.len());
        std::thread::yield_now();
    }
}

#[test]
fn of_two_approved_steps_at_once_one_has_a_receipt_and_the_patch() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = verified_task(&cage);
    let step = IntegrationStep::Commit { branch: "mended".into() };
    let want = json!(TaskIntegrate { id: task.fixed.id.clone(), step });
    let mut calls = [call(&cage, "task.integrate", want.clone()), call(&cage, "task.integrate", want)];
    let asked = questions(&cage, 2);
    let held = task.decide(); // both are approved before either is looked at
    for question in asked {
        cage.questions.decide(&Caller::Local { uid: 0 }, &question.id, true, "yes").unwrap();
    }
    std::thread::sleep(Duration::from_millis(700)); // both have taken their answers
    drop(held);
    let answers = calls.each_mut().map(|(caller, _)| heard_out(caller));
    let given: Vec<_> =
        answers.iter().filter(|(bytes, answer)| answer.is_ok() && !bytes.is_empty()).collect();
    let refused: Vec<_> = answers.iter().filter_map(|(_, answer)| answer.as_ref().err()).collect();
    assert_eq!((given.len(), refused.len()), (1, 1), "{answers:?}");
    assert!(refused[0].message.contains("t1 is integrated"), "{refused:?}");
    assert_eq!(events(&lines).iter().filter(|event| *event == "task_integrated").count(), 1);
}

#[test]
fn a_step_that_fails_before_its_receipt_leaves_the_patch_and_one_that_is_cut_short_says_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = verified_task(&cage);
    let want = json!({"id": "t1", "step": {"commit": {"branch": "mended"}}});
    let approve = || {
        let id = questions(&cage, 1).remove(0).id;
        cage.questions.decide(&Caller::Local { uid: 0 }, &id, true, "yes").unwrap();
    };
    let records = task.dir.join(kept::claim_file(1));
    let (mut caller, _served) = call(&cage, "task.integrate", want.clone());
    questions(&cage, 1);
    fs::rename(&records, records.with_extension("away")).unwrap();
    approve();
    let refused = heard_out(&mut caller).1.unwrap_err();
    assert!(refused.message.contains("the records of t1"), "{refused:?}");
    fs::rename(records.with_extension("away"), &records).unwrap();
    assert_eq!(task.state(), TaskState::Verified);
    // The caller goes while the step waits for its turn.
    let (caller, served) = call(&cage, "task.integrate", want.clone());
    questions(&cage, 1);
    let held = task.decide();
    approve();
    std::thread::sleep(Duration::from_millis(700));
    drop(caller);
    drop(held);
    served.join().unwrap();
    assert_eq!(task.state(), TaskState::Verified);
    assert!(!events(&lines).contains(&"task_integrated".to_owned()));
    // One who takes nothing any more, and is still there.
    let (caller, served) = call(&cage, "task.integrate", want);
    caller.stream().shutdown(std::net::Shutdown::Read).unwrap();
    approve();
    served.join().unwrap();
    assert_eq!(task.state(), TaskState::Integrated);
    assert_eq!(events(&lines).last().unwrap(), "task_integrated");
    let status = ask(&cage, "task.status", json!({"id": "t1"})).unwrap();
    assert!(status["reason"].as_str().unwrap().contains("task export gives it"), "{status}");
    let (mut caller, _served) = call(&cage, "task.export", json!({"id": "t1", "what": "patch"}));
    assert_eq!(claim::records(&heard_out(&mut caller).0).unwrap().len(), 1);
}

#[test]
fn the_end_of_a_task_is_told_by_the_next_life_of_cage_and_none_is_removed_before() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    ask(&cage, "task.cancel", json!({"id": "t1"})).unwrap();
    // Cage dies here: nobody did what follows from it.
    assert!(!events(&lines).contains(&"task_ended".to_owned()));
    assert!(!task.is_told(Duration::ZERO));
    let again = Tasks::open(&cage.places.state).unwrap();
    again.recover(&cage);
    let found = again.find(&task.fixed.id).unwrap();
    assert!(found.is_told(SOON));
    assert_eq!(events(&lines), ["task_ended"]);
    assert!(!task.dir.join(kept::TREE).exists(), "what only candidates needed is gone");
    let third = Tasks::open(&cage.places.state).unwrap();
    third.recover(&cage);
    std::thread::sleep(Duration::from_millis(300));
    assert!(events(&lines).is_empty(), "it is told once");
    third.remove(&cage, &task.fixed.id).unwrap();
}

#[test]
fn an_end_without_a_receipt_is_tried_again_and_its_task_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    let ctxgraph = dir.path().join("ctxgraph.sock");
    happens(&cage, &task, Actor::Operator(Role::Operator), What::Cancel);
    fs::rename(&ctxgraph, ctxgraph.with_extension("away")).unwrap();
    let (for_cage, for_task) = (cage.clone(), task.clone());
    let finish = verdict::step::Action::Finish(TaskState::Cancelled);
    let finished = std::thread::spawn(move || act::act(&for_cage, &for_task, finish));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!task.is_told(Duration::ZERO));
    fs::rename(ctxgraph.with_extension("away"), &ctxgraph).unwrap();
    finished.join().unwrap();
    assert!(task.is_told(Duration::ZERO));
    assert_eq!(events(&lines), ["task_ended"]);
}

#[test]
fn a_cancel_that_comes_while_the_patch_is_attested_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (told, lines) = channel();
    let (attesting, attested) = channel();
    let (go_on, may) = channel::<()>();
    let cage = cage_telling(dir.path(), move |line| {
        if line.contains("ledger.attest") {
            attesting.send(()).unwrap();
            may.recv().unwrap();
        }
        told.send(line.to_owned()).unwrap_or(());
    });
    let task = working(&cage);
    let told = claims(&cage, &task, &[("src/lib.rs", "new\n")]);
    let (for_cage, for_task) = (cage.clone(), task.clone());
    let verifying = std::thread::spawn(move || verified(&for_cage, &for_task));
    attested.recv_timeout(SOON).unwrap();
    let (mut caller, _served) = call(&cage, "task.cancel", json!({"id": "t1"}));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(task.state(), TaskState::Running, "it waits");
    go_on.send(()).unwrap();
    assert!(answer(&mut caller).unwrap_err().message.contains("t1 is verified"));
    verifying.join().unwrap();
    task.record().1.submits.clear();
    drop(told.join().unwrap());
    drop(lines);
    // And the other way round: what was cancelled first is not attested.
    let other = working(&cage);
    let told = claims(&cage, &other, &[("src/lib.rs", "new\n")]);
    let cancel = json!({"id": other.fixed.id, "reason": "enough"});
    ask(&cage, "task.cancel", cancel).unwrap();
    proof::mint(&cage, &other, RUN);
    assert!(attested.try_recv().is_err());
    other.record().1.submits.clear();
    drop(told.join().unwrap());
}

#[test]
fn a_verification_of_another_claim_than_is_judged_is_lost_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, _lines) = cage(dir.path());
    let (task, other) = (working(&cage), working(&cage));
    let waiting = [
        claims(&cage, &task, &[("src/lib.rs", "new\n")]),
        claims(&cage, &other, &[("src/lib.rs", "evil\n")]),
    ];
    let wrong = other.record().1.claims[&1].clone();
    happens(&cage, &task, Actor::Cage, What::VerifyBegan(RUN));
    let ran = proof::Ran::well("t1-v1.2".parse().unwrap(), Digest([7; 32]));
    proof::judge(&cage, &task, RUN, &wrong, &ran);
    {
        let both = task.record();
        let candidate = &both.0.state.candidates()[0];
        assert_eq!(candidate.run(), Some(Run { number: 2, ..RUN }), "it is verified again");
        assert!(both.0.seats[0].reason.contains("not the claim that is judged"), "{:?}", both.0.seats);
        assert!(both.1.proven.is_empty());
    }
    for (task, told) in [task, other].iter().zip(waiting) {
        task.record().1.submits.clear();
        drop(told.join().unwrap());
    }
}

/// A VM that has used so much CPU time, and lets itself be held.
#[derive(Debug)]
struct Busy;

impl House for Busy {
    fn raise(&self, to: Exposure) -> Result<Exposure, String> {
        Ok(to)
    }
    fn hold(&self, _: &str) -> Result<bool, String> {
        Ok(true)
    }
    fn release(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
    fn tell(&self, _: &str, _: &str) {}
    fn cpu_ms(&self) -> Option<u64> {
        Some(5_000)
    }
    fn is_running(&self) -> bool {
        true
    }
    fn fetch(&self, _: &NetFetch) -> Result<(Vec<u8>, Fetched), RpcError> {
        Err(RpcError::new(Code::FAILED, "no page"))
    }
}

/// The candidate's life has a desk, which followed its budget from the start.
fn desk(cage: &Arc<Cage>, task: &Arc<Task>, budget: &str) -> Arc<Desk> {
    let text = format!(
        "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n\
         [authority]\nread = [\"/work/**\"]\nbudget = {{ {budget} }}\n[authority.operations]\nread_files = \"always\"\n"
    );
    let manifest = abi::manifest::parse("AGENT.toml", &text).unwrap();
    let follower = Following { cage: cage.clone(), task: task.clone(), life: LIFE };
    let mandate = Mandate { follower: Some(Arc::new(follower)), ..Mandate::default() };
    let name = errand::cage_name(&task.fixed.id, 'c', 1).unwrap();
    let instance = Instance { agent: name.clone(), generation: 1 };
    let desk = Desk::begin(Beginning {
        instance: &instance,
        authority: manifest.authority.as_ref().unwrap(),
        mandate: &mandate,
        pinned: Pinned { rootfs: Digest([1; 32]), verifier: Digest([2; 32]) },
        questions: cage.questions.clone(),
        ctxgraph: &cage.places.ctxgraph,
        house: Arc::new(Busy),
    })
    .unwrap();
    let errand = Errand::candidate(task.fixed.id.clone(), "a".parse().unwrap(), vec![]);
    cage.agent(&name).update(|facts| {
        facts.instance = Some(instance.clone());
        facts.errand = Some(Arc::new(errand));
        facts.desk = Some(desk.clone());
    });
    desk
}

#[test]
fn a_share_that_is_spent_pauses_with_its_reason_and_goes_on_with_more_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    task.record().0.budget.cpu_ms = Some(3_000);
    let desk = desk(&cage, &task, "cpu_secs = 3");
    let revision = task.record().0.revision;
    let until = Instant::now() + SOON;
    while task.record().0.revision == revision {
        assert!(Instant::now() < until, "nobody saw that it is spent");
        std::thread::yield_now();
    }
    // Whoever sees it paused sees why, also on disk.
    assert_eq!(task.state(), TaskState::Paused);
    assert!(task.record().0.reason.contains("cpu_ms"), "{}", task.record().0.reason);
    let kept = fs::read_to_string(task.dir.join("record.json")).unwrap();
    assert!(kept.contains("the budget is spent: cpu_ms"), "{kept}");
    for more in [json!({}), json!({"calls": 5})] {
        let refused = ask(&cage, "task.resume", json!({"id": "t1", "more": more})).unwrap_err();
        assert!(refused.message.contains("candidate 1's share of cpu_ms is used up"), "{refused:?}");
        assert!(format!("{refused:?}").contains("--budget"));
    }
    assert_eq!(task.state(), TaskState::Paused);
    assert!(!events(&lines).contains(&"task_resumed".to_owned()), "no receipt of what was not done");
    ask(&cage, "task.resume", json!({"id": "t1", "more": {"cpu_ms": 60_000}})).unwrap();
    assert_eq!(task.state(), TaskState::Running);
    assert_eq!(desk.lacks(&Default::default()), None);
    // And the whole task's.
    task.record().0.budget.wall_ms = Some(1);
    watch::look(&cage, &task, cage.tasks.now_ms() + 1000);
    assert_eq!(task.state(), TaskState::Paused);
    let refused = ask(&cage, "task.resume", json!({"id": "t1", "more": {}})).unwrap_err();
    assert!(refused.message.contains("wall time is used up"), "{refused:?}");
    ask(&cage, "task.resume", json!({"id": "t1", "more": {"wall_ms": 3_600_000}})).unwrap();
    desk.close();
}

#[test]
fn a_reason_comes_with_the_pause_and_a_second_bound_does_not_replace_an_operators() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    ask(&cage, "task.pause", json!({"id": "t1", "reason": "lunch"})).unwrap();
    act::spent(&cage, &task, "calls");
    std::thread::sleep(Duration::from_millis(200));
    assert!(task.record().0.reason.contains("lunch"), "{}", task.record().0.reason);
    assert_eq!(events(&lines), ["task_paused"], "it is paused once");
}

#[test]
fn what_an_agent_is_tightened_to_binds_its_candidates() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    let tighten = |agent: &str| {
        let params = json!({"agent": agent, "rules": {"never": ["/work/secret/**"]}});
        let request = Request::call(1, "agent.tighten", params);
        let (near, _far) = UnixStream::pair().unwrap();
        let (caller, mut connection) = (Caller::Local { uid: 0 }, Connection::new(near));
        let call = Call { caller: &caller, request: &request, connection: &mut connection };
        desk::calls::run(&cage, call).map(drop)
    };
    assert!(tighten("a").unwrap_err().message.contains("no life with tools"));
    let desk = desk(&cage, &task, "calls = 9");
    tighten("a").unwrap();
    let rules = json!(desk.status().rules).to_string();
    assert!(rules.contains("/work/secret/**"), "{rules}");
    assert_eq!(events(&lines), ["authority_tightened"]);
    desk.close();
}
