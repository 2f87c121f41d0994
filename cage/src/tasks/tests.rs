//! Tests of tasks: a real ledger's place, real trees and disks, guests of the test's own. VMs are the system tests' business.

mod ends;

use super::candidate::{Following, read_claim};
use super::errand::Errand;
use super::proof::Proven;
use super::task::{Fixed, Now, Record, Seat, Task};
use super::*;
use crate::agents::bench;
use crate::caller::fake::heard_out;
use crate::desk::{self, Follower, Judged};
use crate::guest::fake::{SOON, ready_session, sent};
use crate::store::{Source, archives};
use abi::control::{IntegrationStep, TaskExport, TaskIntegrate, TaskPart, TaskRun, TaskState};
use abi::door::Call;
use abi::files::{Content, Record as FileRecord, Writer};
use abi::guest::{Exit, Frame, Kind};
use abi::identity::Caller;
use abi::rpc::{Incoming, Request};
use abi::wire::Connection;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use verdict::patch::Verification;
use verdict::step::{Actor, Life, Run, State, Terms, What};

const LIFE: Life = Life { candidate: 1, number: 0 };
const RUN: Run = Run { candidate: 1, number: 1 };

/// A cage that knows the agent `a` and its rootfs, and all that its ledger is told.
fn cage(dir: &Path) -> (Arc<Cage>, Receiver<String>) {
    let (told, lines) = channel();
    (cage_telling(dir, move |line| told.send(line.to_owned()).unwrap_or(())), lines)
}

/// The same; its ledger does something with each line before it answers.
fn cage_telling(dir: &Path, before: impl FnMut(&str) + Send + 'static) -> Arc<Cage> {
    let cage = bench::cage_with(dir, &["a"], before);
    for name in ["vmlinux", "initramfs.cpio"] {
        fs::write(cage.places.guest.join(name), name).unwrap();
    }
    let mut layer = archives::Layer::default();
    layer.file("x", 0o755, b"x");
    let archive = archives::Archive::of(vec![layer], archives::Packing::Plain).oci();
    let source = Source::Stream { reader: &mut &archive[..], bytes: archive.len() as u64 };
    cage.store.import(source, "r", &mut |_, _, _| {}).unwrap();
    cage
}

fn events(lines: &Receiver<String>) -> Vec<String> {
    let parsed = lines.try_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    parsed.filter_map(|line| Some(line["params"]["event"]["event"].as_str()?.to_owned())).collect()
}

fn tar() -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (path, content) in [("src/lib.rs", "old\n"), ("README", "read me\n"), ("tests/t.rs", "a test\n")] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn terms() -> TaskRun {
    let text = json!({
        "agent": "a", "goal": "mend it", "verify": ["/bin/check"], "protect": ["/work/tests/**"],
        "tree_bytes": tar().len(),
    });
    serde_json::from_value(text).unwrap()
}

/// A call of somebody with all rights: his end of the connection, and how it ended.
fn call(cage: &Arc<Cage>, method: &str, params: Value) -> (Connection, JoinHandle<()>) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_read_timeout(Some(SOON)).unwrap();
    let (cage, request) = (cage.clone(), Request::call(1, method, params));
    let served = std::thread::spawn(move || {
        let mut connection = Connection::new(far);
        let caller = Caller::Local { uid: 0 };
        let outcome = run(&cage, Call { caller: &caller, request: &request, connection: &mut connection });
        let answer = match outcome {
            Ok(abi::door::Outcome::Result(value)) => Ok(value),
            Ok(abi::door::Outcome::Answered) => return,
            Err(error) => Err(error),
        };
        let _ = connection.write_line(&abi::rpc::Response::of(Some(1), answer)); // the caller went away
    });
    (Connection::new(near), served)
}

/// The answer, whatever was told before.
fn answer(caller: &mut Connection) -> Result<Value, RpcError> {
    loop {
        match serde_json::from_str(&caller.read_line().unwrap().expect("an answer")).unwrap() {
            Incoming::Notification(_) => {}
            Incoming::Response(response) => match response.error {
                Some(error) => return Err(error),
                None => return Ok(response.result.unwrap()),
            },
        }
    }
}

fn ask(cage: &Arc<Cage>, method: &str, params: Value) -> Result<Value, RpcError> {
    answer(&mut call(cage, method, params).0)
}

/// Runs a task by its method, with a tree of its own.
fn submitted(cage: &Arc<Cage>, terms: &TaskRun, tree: &[u8]) -> Result<Value, RpcError> {
    let (caller, _served) = call(cage, "task.run", json!(terms));
    let mut caller = caller;
    let first = caller.read_line().unwrap().unwrap();
    if first.contains("\"ready\"") {
        caller.stream().write_all(tree).unwrap();
        caller.stream().shutdown(std::net::Shutdown::Write).unwrap();
        return answer(&mut caller);
    }
    match serde_json::from_str(&first).unwrap() {
        Incoming::Response(response) => Err(response.error.unwrap()),
        Incoming::Notification(note) => panic!("{note:?}"),
    }
}

/// A task whose only candidate works, with nobody to do what follows from what happens: the test does.
fn working(cage: &Arc<Cage>) -> Arc<Task> {
    let (number, dir) = cage.tasks.next().unwrap();
    fs::write(dir.join(kept::TREE), tar()).unwrap();
    let base = base::Base::read(&dir.join(kept::TREE)).unwrap();
    let loaded = crate::manifests::load(&cage.places.config).known.remove(&"a".parse().unwrap()).unwrap();
    let fixed = Fixed {
        id: format!("t{number}").parse().unwrap(),
        run: terms(),
        by: "alice".into(),
        base: base.tree.digest(),
        manifest: loaded.manifest,
        manifest_digest: loaded.digest,
        rootfs: cage.store.list()[0].digest,
        begun_unix_ms: 5,
    };
    kept::begin(&dir, &fixed).unwrap();
    let terms = Terms { base: fixed.base, candidates: 1, attempts: 2, is_scored: false };
    let seat = Seat { instance: Some("t1-c1.1".parse().unwrap()), ..Seat::default() };
    let record = Record {
        state: State::new(terms),
        revision: 0,
        reason: String::new(),
        ended_unix_ms: None,
        seats: vec![seat],
        budget: Default::default(),
        spent: Default::default(),
        is_told: false,
        is_exported: false,
        minted: Default::default(),
    };
    let now = Now { base: Some(Arc::new(base)), ..Now::default() };
    let task = Arc::new(Task::new(fixed, dir, record, now));
    cage.tasks.add(number, task.clone());
    happens(cage, &task, Actor::Cage, What::Accepted);
    happens(cage, &task, Actor::Cage, What::Started(LIFE));
    task
}

fn happens(cage: &Cage, task: &Task, actor: Actor, what: What) {
    task.happen(cage.tasks.now_ms(), actor, what).unwrap();
}

/// The agent submits; its guest says that these files changed. What it is told comes on the thread.
fn claims(cage: &Arc<Cage>, task: &Arc<Task>, files: &[(&str, &str)]) -> JoinHandle<Judged> {
    let (guest, session, _said) = ready_session();
    let following = Following { cage: cage.clone(), task: task.clone(), life: LIFE };
    let told = std::thread::spawn(move || {
        let instance = "t1-c1.1".parse().unwrap();
        following.judge(desk::Claim { instance: &instance, session: &session, note: "done!", receipt: 1 })
    });
    let until = Instant::now() + SOON;
    while task.record().1.submits.is_empty()
        || task.record().0.state.candidates()[0].state() != abi::control::CandidateState::Claimed
    {
        assert!(Instant::now() < until, "no submit came");
        std::thread::yield_now();
    }
    let speaking = speaks(guest, files);
    read_claim(cage, task, LIFE);
    drop(speaking.join().unwrap());
    told
}

/// A guest is asked for its claim, and says that these files changed.
fn speaks(mut guest: UnixStream, files: &[(&str, &str)]) -> JoinHandle<UnixStream> {
    let files: Vec<(String, String)> = files.iter().map(|(p, c)| (p.to_string(), c.to_string())).collect();
    std::thread::spawn(move || {
        let asked = sent(&mut guest);
        assert_eq!(asked.kind, Kind::Files);
        let mut wire = Vec::new();
        let mut writer = Writer::new(&mut wire);
        for (path, content) in &files {
            let content_of = Content::File { bytes: content.len() as u64 };
            let record = FileRecord {
                path: path.clone(),
                mode: 0o644,
                modified_unix_s: 5,
                content: content_of,
                in_rootfs: false,
            };
            writer.record(&record).unwrap();
            writer.out().write_all(content.as_bytes()).unwrap();
        }
        Frame::data(Kind::Stdout, asked.channel, &wire).write_to(&mut guest).unwrap();
        let end = Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 };
        Frame::json(Kind::Exit, asked.channel, &end).unwrap().write_to(&mut guest).unwrap();
        guest
    })
}

/// The verify VM ends well, with these bytes on its disk.
fn verified(cage: &Arc<Cage>, task: &Arc<Task>) {
    let claim = task.record().1.claims[&1].clone();
    let base = task.record().1.base.clone().unwrap();
    let owner = base::Owner { uid: 1000, mode: 0o755 };
    let disk = task.dir.join("verify-1.squashfs");
    let result = base.write_changed(&disk, owner, &claim.changes, &claim.contents).unwrap();
    happens(cage, task, Actor::Cage, What::VerifyBegan(RUN));
    let exit = Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 };
    let seen =
        Verification { base: task.fixed.base, result, exit, output_bytes: 3, wall_ms: 5, wall_ms_max: 10 };
    fs::write(task.dir.join(kept::output_file(1)), "ok\n").unwrap();
    task.record().1.proven.insert(1, Proven::of(seen, "t1-v1.2".parse().unwrap()));
    let patch = claim.changes.digest();
    happens(cage, task, Actor::VerifyVm(RUN), What::Verified { base: task.fixed.base, patch });
    proof::mint(cage, task, RUN);
}

#[test]
fn a_claim_becomes_a_patch_that_goes_out_once_for_an_approval() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    let told = claims(&cage, &task, &[("src/lib.rs", "new\n"), ("src/more.rs", "more\n")]);
    assert_eq!(events(&lines), ["task_claimed"]);
    verified(&cage, &task);
    assert_eq!(task.state(), TaskState::Verified);
    act::act(&cage, &task, verdict::step::Action::TellAgent(LIFE, verdict::step::Outcome::Verified));
    assert!(told.join().unwrap().verified);
    candidate::note_end(&task, LIFE, &"t1-c1.1".parse().unwrap(), "");
    act::act(&cage, &task, verdict::step::Action::Finish(TaskState::Verified));
    assert_eq!(events(&lines).last().unwrap(), "task_ended");
    let id = task.fixed.id.clone();
    let status = ask(&cage, "task.status", json!({"id": id})).unwrap();
    assert_eq!(status["patch"]["files"].as_array().unwrap().len(), 2);
    let candidate = &status["candidates"][0];
    assert_eq!((&candidate["note"], &candidate["reason"]), (&json!("done!"), &json!("verified")));
    assert_eq!(candidate["attempts"], 1, "the one that was verified");
    let part =
        |what| heard_out(&mut call(&cage, "task.export", json!(TaskExport { id: id.clone(), what })).0).0;
    let diff = String::from_utf8(part(TaskPart::Diff)).unwrap();
    assert!(diff.contains("-old\n+new\n") && diff.contains("new file mode 100644"), "{diff}");
    assert_eq!((part(TaskPart::Attestation), part(TaskPart::Output)), (b"{}".to_vec(), b"ok\n".to_vec()));
    let commit = IntegrationStep::Commit { branch: "mended".into() };
    let (remote, forge) = ("https://forge.test/a/b", "api.forge.test");
    let (branch, base) = ("mended".into(), "main".into());
    let pull = IntegrationStep::PullRequest { remote: remote.into(), branch, base, forge: forge.into() };
    let want = |step: &IntegrationStep| json!(TaskIntegrate { id: id.clone(), step: step.clone() });
    // Denied: the patch stays where it is. Then as after a restart: it is made anew from the disk.
    for (step, approve, what) in [
        (&commit, false, vec!["commit to branch mended"]),
        (&pull, true, vec!["push branch mended to https://forge.test/a/b", "into main at api.forge.test"]),
    ] {
        if approve {
            task.record().1.patches.clear();
        }
        let (mut caller, served) = call(&cage, "task.integrate", want(step));
        let until = Instant::now() + SOON;
        let question = loop {
            match cage.questions.list().pop() {
                Some(question) => break question,
                None => assert!(Instant::now() < until, "nothing was asked"),
            }
        };
        assert!(what.iter().all(|words| question.what.contains(words)), "{question:?}");
        assert_eq!(question.tool, if approve { "create_pr" } else { "git_commit" });
        assert!(question.shown.contains("+new"), "{question:?}");
        assert_eq!(question.task.as_ref(), Some(&id));
        cage.questions.decide(&Caller::Local { uid: 0 }, &question.id, approve, "because").unwrap();
        let (bytes, answer) = heard_out(&mut caller);
        served.join().unwrap();
        match approve {
            false => assert!(bytes.is_empty() && answer.unwrap_err().message.contains("denied")),
            true => {
                assert_eq!(answer.unwrap()["approval"], json!(question.id));
                assert_eq!(claim::records(&bytes).unwrap().len(), 2);
            }
        }
    }
    assert_eq!(task.state(), TaskState::Integrated);
    assert!(events(&lines).contains(&"task_integrated".to_owned()));
    assert!(ask(&cage, "task.integrate", want(&commit)).unwrap_err().message.contains("integrated"));
}

#[test]
fn a_claim_that_is_not_legal_is_refused_whole_with_its_rule() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    let told =
        claims(&cage, &task, &[("tests/a.rs", "x"), ("src/lib.rs", "new\n"), ("tests/t.rs", "weaker\n")]);
    assert_eq!(events(&lines), ["claim_refused"]);
    act::act(&cage, &task, verdict::step::Action::TellAgent(LIFE, verdict::step::Outcome::Refused));
    let told = told.join().unwrap();
    assert!(!told.verified && told.why.contains("tests/t.rs") && told.why.contains("protected"), "{told:?}");
    assert!(told.why.contains("; ") && !told.why.contains('\n'), "all of it is one line: {told:?}");
    assert_eq!(task.record().0.state.candidates()[0].attempts(), 1);
    assert!(task.record().1.claims.is_empty(), "nothing of it is kept");
}

#[test]
fn while_a_claim_is_judged_no_other_takes_its_place_or_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, _lines) = cage(dir.path());
    let task = working(&cage);
    let told = claims(&cage, &task, &[("src/lib.rs", "new\n")]);
    let on_disk = || fs::read(task.dir.join(kept::claim_file(1))).unwrap();
    let (judged, file) = (task.record().1.claims[&1].changes.digest(), on_disk());
    // A second submit of the same life.
    let (guest, session, _said) = ready_session();
    let following = Following { cage: cage.clone(), task: task.clone(), life: LIFE };
    let instance = "t1-c1.1".parse().unwrap();
    let again = desk::Claim { instance: &instance, session: &session, note: "", receipt: 2 };
    assert!(following.judge(again).why.contains("no claim now"));
    // A second reader, as a pause and a resume begin one, hears of another tree.
    let waiting = task.record().1.submits.remove(&1).unwrap();
    let (answer, _judged) = channel();
    task.record().1.submits.insert(1, task::Submit { life: LIFE, session, answer });
    let speaking = speaks(guest, &[("src/lib.rs", "evil\n")]);
    read_claim(&cage, &task, LIFE);
    drop(speaking.join().unwrap());
    assert_eq!((task.record().1.claims[&1].changes.digest(), on_disk()), (judged, file));
    let names = fs::read_dir(&task.dir).unwrap().map(|entry| entry.unwrap().file_name());
    let claims: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("claim-")).collect();
    assert_eq!(claims, ["claim-1"]);
    task.record().1.submits.insert(1, waiting);
    verified(&cage, &task);
    act::act(&cage, &task, verdict::step::Action::TellAgent(LIFE, verdict::step::Outcome::Verified));
    assert!(told.join().unwrap().verified);
}

#[test]
fn a_life_that_ends_at_its_work_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, _lines) = cage(dir.path());
    let task = working(&cage);
    let instance = "t1-c1.1".parse().unwrap();
    candidate::note_end(&task, Life { number: 1, ..LIFE }, &instance, "late");
    assert_eq!(task.record().0.seats[0].reason, "", "of another life");
    candidate::note_end(&task, LIFE, &instance, "exited with code 1");
    assert!(task.record().0.seats[0].reason.ends_with("without a claim: exited with code 1"));
}

#[test]
fn another_tree_than_was_judged_mints_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    let told = claims(&cage, &task, &[("src/lib.rs", "new\n")]);
    let patch = task.record().1.claims[&1].changes.digest();
    happens(&cage, &task, Actor::Cage, What::VerifyBegan(RUN));
    let exit = Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 };
    let result = Digest([7; 32]);
    let seen =
        Verification { base: task.fixed.base, result, exit, output_bytes: 0, wall_ms: 1, wall_ms_max: 9 };
    task.record().1.proven.insert(1, Proven::of(seen, "t1-v1.2".parse().unwrap()));
    happens(&cage, &task, Actor::VerifyVm(RUN), What::Verified { base: task.fixed.base, patch });
    proof::mint(&cage, &task, RUN);
    assert!(task.record().0.minted.is_empty());
    assert!(!events(&lines).contains(&"patch_verified".to_owned()));
    assert!(task.record().0.seats[0].reason.contains("no patch was minted"));
    task.record().1.submits.clear();
    assert!(!told.join().unwrap().verified);
}

#[test]
fn a_task_whose_cages_cannot_start_fails_with_the_reason_and_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let id = submitted(&cage, &terms(), &tar()).unwrap()["id"].clone();
    assert_eq!(id, "t1");
    let over = ask(&cage, "task.watch", json!({"id": id})).unwrap();
    assert_eq!(over["state"], "failed");
    assert_eq!(over["candidates"][0]["recoveries"], limits::RECOVERIES_MAX);
    let task = cage.tasks.find(&"t1".parse().unwrap()).unwrap();
    let until = Instant::now() + SOON;
    let mut told = Vec::new();
    while !told.contains(&"task_ended".to_owned()) {
        assert!(Instant::now() < until, "{told:?}");
        told.extend(events(&lines));
    }
    assert_eq!(told[0], "task_accepted");
    assert_eq!(told.iter().filter(|event| *event == "agent_starting").count(), 4);
    while task.dir.join(kept::BASE_DISK).exists() {
        assert!(Instant::now() < until, "the base is no more needed");
    }
    assert!(ask(&cage, "task.export", json!({"id": id, "what": "patch"})).is_err());
    ask(&cage, "task.remove", json!({"id": id})).unwrap();
    assert!(!task.dir.exists());
    assert_eq!(ask(&cage, "task.status", json!({"id": id})).unwrap_err().code, Code::NOT_FOUND);
}

#[test]
fn what_is_not_accepted_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let mut cut = terms();
    cut.tree_bytes += 10;
    assert!(submitted(&cage, &cut, &tar()).unwrap_err().message.contains("of the tree came"));
    let mut garbage = terms();
    garbage.tree_bytes = 1024;
    assert!(submitted(&cage, &garbage, &[b'x'; 1024]).unwrap_err().message.contains("not a tar header"));
    let wrong: [(&str, Value); 10] = [
        ("verify", json!([])),
        ("verify", json!(["-x"])),
        ("goal", json!(" ")),
        ("tree_bytes", json!(limits::TREE_BYTES_MAX + 1)),
        ("candidates", json!(0)),
        ("candidates", json!(limits::CANDIDATES_MAX + 1)),
        ("protect", json!(["/etc/**"])),
        ("budget", json!({ "memory_mib": limits::MEMORY_MIB_MIN - 1 })),
        ("budget", json!({ "disk_mib": limits::DISK_MIB_MIN - 1 })),
        ("verify", json!(["x", "y".repeat(4000), "z".repeat(4000)])),
    ];
    for (field, value) in wrong {
        let mut want = json!(terms());
        want[field] = value;
        let error = ask(&cage, "task.run", want).unwrap_err();
        assert_eq!(error.code, Code::INVALID_PARAMS, "{field}: {error}");
    }
    let mut nobody = terms();
    nobody.agent = "nobody".parse().unwrap();
    assert_eq!(ask(&cage, "task.run", json!(nobody)).unwrap_err().code, Code::NOT_FOUND);
    assert!(events(&lines).is_empty());
    assert!(cage.tasks.all().is_empty());
    let left = fs::read_dir(cage.places.state.join("tasks")).unwrap().filter_map(Result::ok);
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with('t')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_task_that_ran_begins_again_from_its_base_and_ids_never_come_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, _lines) = cage(dir.path());
    let task = working(&cage);
    let (state, id) = (cage.places.state.clone(), task.fixed.id.clone());
    let again = Tasks::open(&state).unwrap();
    let found = again.find(&id).unwrap();
    assert_eq!(found.record().0.state, task.record().0.state);
    kept::recover(&found, 0);
    let candidate = found.record().0.state.candidates()[0].clone();
    assert_eq!((found.state(), candidate.recoveries()), (TaskState::Running, 1));
    assert!(again.next().unwrap().0 > number(&id).unwrap());
    // A base that is not the one that was accepted is nobody's.
    fs::write(task.dir.join(kept::TREE), [0; 1024]).unwrap();
    assert!(Tasks::open(&state).unwrap().find(&id).is_err());
    assert!(task.dir.with_extension("damaged").exists());
}

#[test]
fn an_operator_pauses_resumes_and_cancels_and_nobody_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, lines) = cage(dir.path());
    let task = working(&cage);
    let id = json!({"id": task.fixed.id});
    ask(&cage, "task.pause", json!({"id": "t1", "reason": "lunch"})).unwrap();
    assert_eq!(task.state(), TaskState::Paused);
    assert!(ask(&cage, "task.status", id.clone()).unwrap()["reason"].as_str().unwrap().contains("lunch"));
    assert_eq!(ask(&cage, "task.pause", id.clone()).unwrap_err().code, Code::CONFLICT);
    ask(&cage, "task.resume", json!({"id": "t1", "more": {"wall_ms": 5}})).unwrap();
    assert_eq!(task.state(), TaskState::Running);
    ask(&cage, "task.cancel", id.clone()).unwrap();
    assert_eq!(task.state(), TaskState::Cancelled);
    assert_eq!(ask(&cage, "task.cancel", id).unwrap_err().code, Code::CONFLICT);
    assert_eq!(events(&lines), ["task_paused", "task_resumed"]);
}

#[test]
fn a_silent_candidate_loses_its_lease_and_a_spent_budget_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, _lines) = cage(dir.path());
    let task = working(&cage);
    let lease = limits::TASK_LEASE_MS;
    watch::look(&cage, &task, cage.tasks.now_ms() + lease + 1000);
    assert_eq!(task.record().0.state.candidates()[0].recoveries(), 1);
    task.record().0.budget.wall_ms = Some(1);
    watch::look(&cage, &task, cage.tasks.now_ms() + lease + 2000);
    assert_eq!(task.state(), TaskState::Paused);
    assert!(task.record().0.reason.contains("wall time"));
}

#[test]
fn the_largest_status_fits_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let (cage, _lines) = cage(dir.path());
    let mut task = working(&cage);
    cage.tasks.list().tasks.clear();
    let most = Arc::get_mut(&mut task).unwrap();
    most.fixed.run.goal = "\u{1}".repeat(limits::GOAL_BYTES_MAX);
    most.fixed.run.verify = vec!["\u{1}".repeat(3000); 2];
    {
        let mut both = most.record();
        let seat = Seat {
            instance: None,
            reason: "\u{1}".repeat(task::REASON_CHARS_MAX),
            note: Some("\u{1}".repeat(limits::NOTE_BYTES_MAX)),
        };
        both.0.seats = vec![seat; limits::CANDIDATES_MAX.into()];
        both.0.reason = "\u{1}".repeat(task::REASON_CHARS_MAX);
    }
    let text = json!(calls::status(&task)).to_string();
    assert!(text.len() + 512 < limits::LINE_BYTES_MAX, "{}", text.len());
}

#[test]
fn a_verify_vm_gets_nothing_but_its_command_and_its_tree() {
    let errand = Errand::verify("t1".parse().unwrap(), vec!["a".into(), "b".into()]);
    let mut start = crate::order::start(
        &"t1-v1.2".parse().unwrap(),
        &abi::manifest::parse(
            "a.toml",
            "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\nenv = { SECRET = \"1\" }\n[capabilities]\nfilesystem.write = [\"/data\"]\n",
        )
        .unwrap(),
        &abi::control::Image {
            digest: Digest([0; 32]),
            names: vec![],
            bytes: 0,
            layers: vec![],
            archive: Digest([0; 32]),
            env: vec!["PATH=/image/bin".into(), "LD_PRELOAD=/x".into()],
            workdir: None,
        },
        None,
    );
    errand.shape(&mut start);
    assert_eq!(start.env, ["HOME=/tmp/home", "LANG=C.UTF-8", "TERM=dumb", "PATH=/image/bin"]);
    assert_eq!((start.write, start.workdir.as_str()), (vec!["/tmp/home".to_owned()], "/work"));
    assert!(start.has_tree && start.tools.is_none() && start.network.is_none() && start.rootfs_disks == 2);
}
