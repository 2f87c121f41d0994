//! The desk between a guest that says what it wants and a ledger that hears all: what is answered, in which order, and what is not.

mod redteam;

use abi::control::{Fetched, NetFetch};
use abi::exposure::Exposure;
use abi::guest::{Denied, Frame, FrameError, Kind};
use abi::identity::{Caller, Role};
use abi::ids::{Digest, Instance};
use abi::ledger::{Append, Event, Receipt};
use abi::rpc::{Code, Request, Response, RpcError};
use abi::tools::{self, Answer, Ended, Go, Refused};
use abi::wire::Connection;
use abi::{authority, limits};
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::questions::Questions;
use super::{Beginning, Claim, Desk, Follower, House, Judged, Mandate, Pinned, Standing, digest_of};
use crate::guest::fake::{SOON, hello, ready};
use crate::guest::{Session, Sink, listen};

const PRIVATE: Exposure = Exposure::PRIVATE_DATA;
const STRANGE: Exposure = Exposure::UNTRUSTED_CONTENT;

/// What the house and the ledger did, in order.
#[derive(Debug, Clone, PartialEq)]
enum Did {
    Wrote(Box<Append>),
    Raised(Exposure),
    Held,
    Released(String),
}

#[derive(Debug, Default)]
struct Log(Mutex<Vec<Did>>);

impl Log {
    fn push(&self, did: Did) {
        self.0.lock().unwrap().push(did);
    }
    fn all(&self) -> Vec<Did> {
        self.0.lock().unwrap().clone()
    }
    fn events(&self) -> Vec<Event> {
        let wrote = |did| if let Did::Wrote(append) = did { Some(append.event) } else { None };
        self.all().into_iter().filter_map(wrote).collect()
    }
}

#[derive(Debug, Default)]
struct Fake {
    log: Arc<Log>,
    egress_is_away: AtomicBool,
    cannot_hold: AtomicBool,
    with_credential: AtomicBool,
    held: AtomicUsize,
    cpu_ms: AtomicUsize,
    fetched: Mutex<Vec<String>>,
}

impl House for Fake {
    fn raise(&self, to: Exposure) -> Result<Exposure, String> {
        if self.egress_is_away.load(Ordering::SeqCst) {
            return Err("egress is away".into());
        }
        self.log.push(Did::Raised(to));
        Ok(to)
    }
    fn hold(&self, _: &str) -> Result<bool, String> {
        if self.cannot_hold.load(Ordering::SeqCst) {
            return Err("it cannot be frozen".into());
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        self.log.push(Did::Held);
        Ok(true)
    }
    fn release(&self, by: &str) -> Result<(), String> {
        self.held.fetch_sub(1, Ordering::SeqCst);
        self.log.push(Did::Released(by.to_owned()));
        Ok(())
    }
    fn tell(&self, _: &str, _: &str) {}
    fn cpu_ms(&self) -> Option<u64> {
        Some(self.cpu_ms.load(Ordering::SeqCst) as u64)
    }
    fn is_running(&self) -> bool {
        self.held.load(Ordering::SeqCst) == 0
    }
    fn fetch(&self, want: &NetFetch) -> Result<(Vec<u8>, Fetched), RpcError> {
        if want.url.contains("forbidden") {
            return Err(RpcError::new(Code::DENIED, "no grant").explained("network.allow", "grant it"));
        }
        self.fetched.lock().unwrap().push(want.url.clone());
        let page = b"a page".to_vec();
        let fetched = Fetched {
            status: 200,
            media_type: "text/html\u{1b}".into(),
            bytes: page.len() as u64,
            is_cut: false,
            with_credential: self.with_credential.load(Ordering::SeqCst),
            location: if want.url.contains("moved") { "/\u{1b}".repeat(5000) } else { String::new() },
        };
        Ok((page, fetched))
    }
}

#[derive(Debug)]
struct Judge {
    standings: Mutex<Vec<Standing>>,
}

impl Follower for Judge {
    fn judge(&self, claim: Claim<'_>) -> Judged {
        Judged {
            verified: false,
            why: format!("{} said {}", claim.instance, claim.note),
            output: "E\u{1b}[1m\nend".into(),
        }
    }
    fn stands(&self, _: &Instance, standing: Standing) {
        self.standings.lock().unwrap().push(standing);
    }
}

/// Has calls put to a desk.
struct ToDesk(Arc<Desk>);

impl Sink for ToDesk {
    fn output(&mut self, _: abi::control::Stream, _: &[u8]) {}
    fn denied(&mut self, _: Denied) {}
    fn called(&mut self, channel: u32, call: tools::Call) -> Result<(), FrameError> {
        self.0.take(channel, call);
        Ok(())
    }
    fn call_ended(&mut self, channel: u32, ended: Ended) {
        self.0.ended(channel, &ended);
    }
}

struct Bench {
    guest: UnixStream,
    desk: Arc<Desk>,
    house: Arc<Fake>,
    judge: Arc<Judge>,
    questions: Arc<Questions>,
    log: Arc<Log>,
    ledger_is_away: Arc<AtomicBool>,
    ended: std::sync::mpsc::Receiver<String>,
    next: u32,
    _dir: Arc<tempfile::TempDir>,
}

/// What lives of one node share.
#[derive(Clone)]
struct Node {
    questions: Arc<Questions>,
    log: Arc<Log>,
    ledger_is_away: Arc<AtomicBool>,
    ctxgraph: String,
    dir: Arc<tempfile::TempDir>,
}

const RULES: &str = r#"
[authority]
read = ["/work/**", "/data/**"]
write = ["/work/**"]
never = ["/work/.env"]
commands = ["cargo test **"]
names = ["docs.rs", "forbidden.example", "api.example.org"]
private = ["/data/**"]
untrusted = ["/work/issues/**"]
trusted_names = ["api.example.org"]
budget = { calls = 100, output_bytes = 1000000 }
[authority.operations]
read_files = "always"
write_files = "always"
edit_files = "ask"
run_bash = "always"
grep_search = "always"
web_fetch = "always"
[tools]
delete = { risk = "critical", operation = "write_files", command = ["/app/delete"] }
"#;

fn manifest(rules: &str) -> abi::manifest::Manifest {
    let text = format!(
        "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n\
         [capabilities]\nnetwork.allow = [\"docs.rs\", \"api.example.org\", \"forbidden.example\"]\n{rules}"
    );
    abi::manifest::parse("AGENT.toml", &text).unwrap()
}

/// A ledger that notes what it is told, in order with what the house does.
fn ledger(path: &std::path::Path, log: Arc<Log>, is_away: Arc<AtomicBool>) {
    let listener = UnixListener::bind(path).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (log, is_away, count) = (log.clone(), is_away.clone(), count.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::new(stream.unwrap());
                while let Ok(Some(line)) = connection.read_line() {
                    if is_away.load(Ordering::SeqCst) {
                        return;
                    }
                    let append: Append = Request::parse(&line).unwrap().params().unwrap();
                    log.push(Did::Wrote(Box::new(append)));
                    let seq = count.fetch_add(1, Ordering::SeqCst) as u64;
                    let receipt = Receipt { seq, digest: Digest([0; 32]) };
                    connection.write_line(&Response::of(Some(1), Ok(json!(receipt)))).unwrap();
                }
            });
        }
    });
}

fn bench(rules: &str) -> Bench {
    life(&node(), "a.7", rules)
}

fn node() -> Node {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = dir.path().join("ctxgraph.sock");
    let (log, ledger_is_away): (Arc<Log>, Arc<AtomicBool>) = Default::default();
    ledger(&path, log.clone(), ledger_is_away.clone());
    let ctxgraph = path.to_string_lossy().into_owned();
    let questions = Arc::new(
        Questions::open(dir.path().join("approvals"), abi::ledger::Client::at(ctxgraph.clone())).unwrap(),
    );
    Node { questions, log, ledger_is_away, ctxgraph, dir }
}

fn life(node: &Node, instance: &str, rules: &str) -> Bench {
    let Node { questions, log, ledger_is_away, ctxgraph, dir } = node.clone();
    let house = Arc::new(Fake { log: log.clone(), ..Fake::default() });
    let judge = Arc::new(Judge { standings: Mutex::default() });
    let mandate = Mandate { follower: Some(judge.clone()), ..Mandate::default() };
    let manifest = manifest(rules);
    let desk = Desk::begin(Beginning {
        instance: &instance.parse().unwrap(),
        authority: manifest.authority.as_ref().unwrap(),
        mandate: &mandate,
        pinned: Pinned { rootfs: Digest([1; 32]), verifier: Digest([2; 32]) },
        questions: questions.clone(),
        ctxgraph: &ctxgraph,
        house: house.clone(),
    })
    .unwrap();
    let (mut guest, host) = UnixStream::pair().unwrap();
    guest.set_read_timeout(Some(SOON)).unwrap();
    let session = Arc::new(Session::new(&host).unwrap());
    hello().write_to(&mut guest).unwrap();
    ready().write_to(&mut guest).unwrap();
    desk.open(&session);
    let (sender, ended) = std::sync::mpsc::channel();
    let mut sink = ToDesk(desk.clone());
    std::thread::spawn(move || {
        listen(host, &session, &mut sink, &|said| {
            if let crate::guest::Said::Ended(why) = said {
                sender.send(why).unwrap_or(());
            }
        });
    });
    Bench { guest, desk, house, judge, questions, log, ledger_is_away, ended, next: 1, _dir: dir }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.desk.close();
    }
}

fn admin() -> Caller {
    Caller::Local { uid: 0 }
}

fn operator() -> Caller {
    Caller::Operator { name: "olga".into(), key: "k".into(), role: Role::Operator }
}

impl Bench {
    fn call(&mut self, tool: &str, params: Value) -> u32 {
        let call = tools::Call { tool: tool.into(), params: params.to_string() };
        Frame::json(Kind::Call, self.next, &call).unwrap().write_to(&mut self.guest).unwrap();
        self.next += 1;
        self.next - 1
    }

    /// The next answer: of which call, and the bytes before it.
    fn answer(&mut self) -> (u32, Answer, Vec<u8>) {
        let mut bytes = Vec::new();
        loop {
            let frame = Frame::read_from(&mut self.guest).unwrap().unwrap();
            match frame.kind {
                Kind::Value => bytes.extend(frame.payload),
                Kind::Still => bytes.extend(b"still "),
                Kind::Answer => return (frame.channel, frame.parse().unwrap(), bytes),
                other => panic!("{other:?}"),
            }
        }
    }

    fn end(&mut self, channel: u32, bytes: u64) {
        let ended = Ended { bytes, wall_ms: 1, failed: None };
        Frame::json(Kind::Ended, channel, &ended).unwrap().write_to(&mut self.guest).unwrap();
    }

    fn go(&mut self, tool: &str, params: Value) -> Go {
        let channel = self.call(tool, params);
        match self.answer() {
            (answered, Answer::Go(go), _) if answered == channel => {
                self.end(channel, 10);
                go
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, tool: &str, params: Value) -> Refused {
        let channel = self.call(tool, params);
        match self.answer() {
            (answered, Answer::Refused(refused), _) if answered == channel => {
                self.end(channel, 0);
                refused
            }
            other => panic!("{other:?}"),
        }
    }

    /// The first question, when it is there.
    fn question(&self) -> abi::control::Approval {
        let (mut questions, _) = self.questions.follow(0, SOON);
        questions.remove(0)
    }

    fn decide(&self, approve: bool) -> Result<(), RpcError> {
        self.questions.decide(&admin(), &self.question().id, approve, "as it should be")
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_call_has_its_receipt_before_its_answer_and_what_no_rule_gives_is_refused_with_one() {
    let mut bench = bench(RULES);
    let go = bench.go("read", json!({"path": "/work/a"}));
    let refused = bench.refused("read", json!({"path": "/etc/shadow"}));
    assert_eq!((refused.rule.as_str(), refused.receipt), ("path", Some(go.receipt + 1)));
    assert_eq!(bench.refused("read", json!({"path": "/work/.env"})).rule, "never");
    assert_eq!(bench.refused("run", json!({"command": ["sh", "-c", "x"]})).rule, "command");
    assert_eq!(bench.refused("glob", json!({"path": "/work", "pattern": "*"})).rule, "level");
    for (tool, params) in
        [("read", json!({"path": "/work/../etc"})), ("nothing", json!({})), ("read", json!([]))]
    {
        let refused = bench.refused(tool, params);
        assert_eq!((refused.rule.as_str(), refused.receipt), ("parameters", None), "{refused:?}");
    }
    let events = bench.log.events();
    assert_eq!(events.len(), 5, "{events:?}");
    let Event::ToolCalled { call: 1, ref target, verdict: authority::Verdict::Allow, arguments, .. } =
        events[0]
    else {
        panic!("{events:?}")
    };
    assert_eq!((target.as_str(), arguments), ("/work/a", digest_of(br#"{"path":"/work/a"}"#)));
}

#[test]
fn without_a_receipt_nothing_is_done() {
    let mut bench = bench(RULES);
    bench.ledger_is_away.store(true, Ordering::SeqCst);
    for (tool, params) in [
        ("read", json!({"path": "/work/a"})),
        ("fetch", json!({"url": "https://docs.rs/"})),
        ("submit", json!({})),
    ] {
        let refused = bench.refused(tool, params);
        assert_eq!((refused.rule.as_str(), refused.receipt), ("receipt", None));
    }
    bench.call("edit", json!({"path": "/work/a", "old": "a", "new": "b"}));
    assert!(matches!(bench.answer().1, Answer::Refused(refused) if refused.rule == "approval"));
    assert!(bench.questions.list().is_empty(), "no receipt, so no question");
    bench.ledger_is_away.store(false, Ordering::SeqCst);
    bench.go("read", json!({"path": "/work/a"}));
}

#[test]
fn exposure_is_in_force_everywhere_before_the_answer_and_a_failure_refuses() {
    let mut bench = bench(RULES);
    bench.house.egress_is_away.store(true, Ordering::SeqCst);
    assert_eq!(bench.refused("read", json!({"path": "/data/x"})).rule, "exposure");
    assert_eq!(bench.desk.status().seen, PRIVATE, "it is judged by that all the same");
    bench.house.egress_is_away.store(false, Ordering::SeqCst);
    let go = bench.go("read", json!({"path": "/data/x"}));
    assert_eq!(go.labels, PRIVATE);
    let done = bench.log.all();
    let [.., Did::Wrote(called), Did::Wrote(exposed), Did::Raised(to)] = done.as_slice() else {
        panic!("{done:?}")
    };
    assert!(matches!(called.event, Event::ToolCalled { .. }) && !called.durable);
    assert!(matches!(exposed.event, Event::ToolExposed { to: PRIVATE, .. }) && exposed.durable);
    assert_eq!(*to, PRIVATE);
    bench.go("read", json!({"path": "/data/y"}));
    assert_eq!(bench.log.events().len(), 5, "no rise, no receipt of one");
}

#[test]
fn private_data_and_strangers_text_together_are_asked_for_before_anything_leaves() {
    let mut bench = bench(RULES);
    bench.go("read", json!({"path": "/data/x"}));
    bench.go("fetch", json!({"url": "https://docs.rs/a"}));
    assert_eq!(bench.desk.status().seen, PRIVATE.and(STRANGE));
    bench.go("fetch", json!({"url": "https://api.example.org/"}));
    let channel = bench.call("fetch", json!({"url": "https://docs.rs/?q=stolen"}));
    let question = bench.question();
    assert_eq!(
        (question.decision.rule.as_str(), question.shown.as_str()),
        ("exposure", "https://docs.rs:443/?q=stolen")
    );
    assert_eq!(question.role, Role::Operator);
    assert!(
        bench
            .questions
            .decide(&Caller::Service { service: abi::identity::Service::Cage }, &question.id, true, "me")
            .is_err()
    );
    assert_eq!(bench.decide(false), Ok(()));
    let (answered, answer, bytes) = bench.answer();
    assert!(
        matches!(answer, Answer::Refused(refused) if refused.rule == "approval" && refused.why.contains("as it should be"))
    );
    assert_eq!((answered, bytes.len()), (channel, 0), "nothing was fetched");
}

#[test]
fn a_sealed_page_raises_nothing_until_it_is_used() {
    let mut bench = bench(RULES);
    bench.go("read", json!({"path": "/data/x"}));
    let page = bench.call("fetch", json!({"url": "https://docs.rs/a", "sealed": true}));
    let (_, answer, bytes) = bench.answer();
    assert!(
        matches!(answer, Answer::Go(go) if go.labels == STRANGE && go.result.as_ref().unwrap()["type"] == "text/html\u{fffd}")
    );
    assert_eq!((bytes.as_slice(), bench.desk.status().seen), (b"a page".as_slice(), PRIVATE));
    bench.end(page, 6);
    bench.go("fetch", json!({"url": "https://docs.rs/b", "sealed": true}));
    bench.go("write", json!({"path": "/work/page", "content": {"value": page}}));
    assert!(bench.desk.status().written.has(STRANGE));
    assert_eq!(
        bench.go("read", json!({"path": "/work/page"})).labels,
        PRIVATE.and(STRANGE),
        "the file carries it on"
    );
    bench.go("write", json!({"path": "/work/x", "content": {"value": 9999}}));
    assert!(bench.desk.status().written.has(PRIVATE.and(STRANGE)), "what is not known carries everything");
}

#[test]
fn what_is_written_while_a_program_reads_is_in_what_it_shows() {
    let mut bench = bench(RULES);
    let page = bench.call("fetch", json!({"url": "https://docs.rs/a", "sealed": true}));
    bench.answer();
    bench.end(page, 6);
    bench.desk.note(Exposure::NONE).unwrap();
    // A grep that takes its time: at its begin no file carried anything.
    let slow = bench.call("grep", json!({"path": "/work/src", "text": "x"}));
    let (_, answer, _) = bench.answer();
    assert!(matches!(answer, Answer::Go(go) if go.labels.is_none()));
    bench.go("write", json!({"path": "/work/src/x", "content": {"value": page}}));
    assert!(bench.desk.status().seen.has(STRANGE), "the search may show it");
    bench.end(slow, 10);
}

#[test]
fn an_approval_is_for_one_exact_call_and_used_once() {
    let mut bench = bench(RULES);
    let edit = json!({"path": "/work/a", "old": "a", "new": "b"});
    bench.call("edit", edit.clone());
    let question = bench.question();
    assert_eq!((question.shown.as_str(), question.pinned), ("-a\n+b\n", Digest([2; 32])));
    assert_eq!(question.arguments, digest_of(edit.to_string().as_bytes()));
    bench.questions.decide(&operator(), &question.id, true, "fine").unwrap();
    assert!(matches!(bench.answer().1, Answer::Go(_)));
    assert!(bench.questions.decide(&operator(), &question.id, true, "again").is_err());
    // The same call again is another question; other arguments are too.
    for params in [edit, json!({"path": "/work/a", "old": "a", "new": "evil"})] {
        bench.call("edit", params);
        let next = bench.question();
        assert_ne!(next.id, question.id);
        bench.decide(false).unwrap();
        assert!(matches!(bench.answer().1, Answer::Refused(_)));
    }
    let events = bench.log.events();
    let used: Vec<_> =
        events.iter().filter(|e| matches!(e, Event::ToolCalled { approval: Some(_), .. })).collect();
    assert_eq!(used.len(), 1);
    let place = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted).unwrap();
    let asked = place(&|e| matches!(e, Event::ApprovalAsked { .. }));
    let decided = place(&|e| matches!(e, Event::ApprovalDecided { .. }));
    let called = place(&|e| matches!(e, Event::ToolCalled { approval: Some(_), .. }));
    assert!(asked < decided && decided < called);
}

#[test]
fn an_approval_of_less_than_is_asked_now_does_not_count() {
    let ask_fetch = RULES.replace("web_fetch = \"always\"", "web_fetch = \"ask\"");
    let mut bench = bench(&ask_fetch);
    bench.go("read", json!({"path": "/work/issues/1"}));
    let fetch = bench.call("fetch", json!({"url": "https://docs.rs/?q=1"}));
    let question = bench.question();
    // Meanwhile the agent is shown private data.
    bench.go("read", json!({"path": "/data/x"}));
    bench.questions.decide(&admin(), &question.id, true, "it saw nothing private").unwrap();
    let (answered, answer, _) = bench.answer();
    assert!(
        answered == fetch
            && matches!(answer, Answer::Refused(refused) if refused.why.contains("more than was shown"))
    );
}

#[test]
fn tightening_takes_an_approval_away_and_is_never_undone() {
    let mut bench = bench(RULES);
    bench.call("edit", json!({"path": "/work/a", "old": "a", "new": "b"}));
    let question = bench.question();
    let mut rules = authority::Rules { read: vec!["/**".parse().unwrap()], ..Default::default() };
    rules.levels = authority::Operation::ALL.map(|one| (one, authority::Level::Always)).into();
    bench.desk.tighten(&rules, "olga").unwrap();
    bench.questions.decide(&admin(), &question.id, true, "go on").unwrap();
    assert!(matches!(bench.answer().1, Answer::Refused(refused) if refused.rule == "path"));
    assert_eq!(bench.refused("write", json!({"path": "/work/a", "content": ""})).rule, "path");
    bench.go("read", json!({"path": "/work/a"}));
    let wide: authority::Rules = manifest(RULES).authority.unwrap().rules.pop().unwrap();
    bench.desk.tighten(&wide, "olga").unwrap();
    assert_eq!(bench.refused("write", json!({"path": "/work/a", "content": ""})).rule, "path");
    for n in 0..limits::RULES_MEETS_MAX {
        let more = authority::Rules { depth: n as u8, ..rules.clone() };
        if let Err(error) = bench.desk.tighten(&more, "olga") {
            assert_eq!(error.code, Code::LIMIT);
            return;
        }
    }
    panic!("rules without bound");
}

#[test]
fn a_critical_call_freezes_the_vm_and_only_an_admin_lets_it_go() {
    let mut bench = bench(RULES);
    let delete = bench.call("delete", json!({"arguments": {"all": true}}));
    let question = bench.question();
    assert!(question.is_frozen && question.role == Role::Admin && question.pinned == Digest([1; 32]));
    until("it stands still", || bench.house.held.load(Ordering::SeqCst) == 1);
    assert_eq!(bench.questions.decide(&operator(), &question.id, true, "x").unwrap_err().code, Code::DENIED);
    let error = bench.desk.resume("olga", Role::Operator).unwrap_err();
    assert!(error.code == Code::CONFLICT && error.message.contains(question.id.as_str()), "{error}");
    assert!(bench.desk.keeps_still(), "whatever its task says");
    bench.decide(true).unwrap();
    let (answered, answer, _) = bench.answer();
    assert!(answered == delete && matches!(answer, Answer::Go(_)));
    assert!(bench.house.held.load(Ordering::SeqCst) == 0 && !bench.desk.keeps_still());
    // One that cannot be frozen is refused, whoever would approve.
    bench.house.cannot_hold.store(true, Ordering::SeqCst);
    assert_eq!(bench.refused("delete", json!({"arguments": {}})).rule, "risk");
    assert!(bench.questions.list().is_empty());
}

#[test]
fn sixteen_calls_at_once_take_no_more_than_the_budget_and_wait_for_more() {
    let small = RULES.replace("calls = 100, output_bytes = 1000000", "calls = 5, output_bytes = 1000000");
    let mut bench = bench(&small);
    for n in 0..limits::TOOL_CALLS_AT_ONCE_MAX {
        bench.call("read", json!({"path": format!("/work/{n}")}));
    }
    // Three whole results are reserved of a million bytes, then the rest; the others wait for those, and nothing stands still for that.
    let answered: Vec<u32> = (0..4).map(|_| bench.answer().0).collect();
    let left = bench.desk.status().left;
    assert!(left.output_bytes == Some(0) && left.calls == Some(1), "{left:?}");
    assert_eq!(bench.house.held.load(Ordering::SeqCst), 0);
    for channel in answered {
        bench.end(channel, 100);
    }
    let (fifth, ..) = bench.answer();
    bench.end(fifth, 100);
    until("it stands still", || bench.house.held.load(Ordering::SeqCst) == 1);
    let last_standing = || bench.judge.standings.lock().unwrap().last().cloned();
    until("its task knows", || matches!(last_standing(), Some(Standing::Exhausted(_))));
    let spent = bench.desk.spent();
    assert_eq!((spent.calls, spent.output_bytes), (Some(5), Some(500)));
    // An operator lets it go on: as much again, and no more.
    assert!(bench.desk.resume("olga", Role::Reader).is_err());
    assert!(bench.desk.resume("olga", Role::Operator).unwrap());
    for _ in 0..5 {
        let (channel, answer, _) = bench.answer();
        assert!(matches!(answer, Answer::Go(_)));
        bench.end(channel, 1);
    }
    until("it stands still again", || bench.house.held.load(Ordering::SeqCst) == 1);
    let exhausted = bench.log.events().iter().filter(|e| matches!(e, Event::BudgetExhausted { .. })).count();
    assert_eq!((exhausted, bench.desk.spent().calls), (2, Some(10)));
}

#[test]
fn an_end_that_claims_more_than_was_reserved_is_not_believed() {
    let mut bench = bench(RULES);
    let channel = bench.call("read", json!({"path": "/work/a"}));
    bench.answer();
    bench.end(channel, u64::MAX);
    until("settled", || bench.desk.spent().output_bytes == Some(limits::TOOL_RESULT_BYTES_MAX));
}

#[test]
fn a_guest_that_forges_channels_or_floods_is_ended() {
    for frames in [vec![(1, true), (1, true)], vec![(2, true), (1, true)], vec![(1, false)], vec![(0, true)]]
    {
        let mut bench = bench(RULES);
        let call = tools::Call { tool: "read".into(), params: r#"{"path":"/work/a"}"#.into() };
        for (channel, is_call) in frames {
            let ended = Ended { bytes: 0, wall_ms: 0, failed: None };
            let frame = match is_call {
                true => Frame::json(Kind::Call, channel, &call),
                false => Frame::json(Kind::Ended, channel, &ended),
            };
            let _ = bench.guest.write_all(&{
                let mut bytes = Vec::new();
                frame.unwrap().write_to(&mut bytes).unwrap();
                bytes
            });
        }
        let why = bench.ended.recv_timeout(SOON).unwrap();
        assert!(why.contains("protocol"), "{why}");
    }
    let mut bench = bench(&RULES.replace("read_files = \"always\"", "read_files = \"ask\""));
    for n in 0..=limits::TOOL_CALLS_AT_ONCE_MAX {
        bench.call("read", json!({"path": format!("/work/{n}")}));
    }
    assert!(bench.ended.recv_timeout(SOON).unwrap().contains("calls under way"));
    until("its questions are gone", || bench.questions.list().is_empty());
}

#[test]
fn the_end_of_a_life_withdraws_its_questions() {
    let mut bench = bench(RULES);
    bench.call("edit", json!({"path": "/work/a", "old": "a", "new": "b"}));
    let question = bench.question();
    bench.desk.close();
    assert!(bench.questions.list().is_empty());
    assert_eq!(bench.decide_id(&question.id).unwrap_err().code, Code::NOT_FOUND);
}

impl Bench {
    fn decide_id(&self, id: &abi::ids::Name) -> Result<(), RpcError> {
        self.questions.decide(&admin(), id, true, "too late")
    }
}

#[test]
fn declassified_bytes_leave_and_no_others() {
    let mut bench = bench(RULES);
    bench.go("read", json!({"path": "/data/x"}));
    bench.go("read", json!({"path": "/work/issues/1"}));
    let fit = json!({"url": "https://docs.rs/?q=fit"});
    bench.desk.declassify(digest_of(fit.to_string().as_bytes()), "alice", "read it").unwrap();
    bench.go("fetch", fit);
    bench.call("fetch", json!({"url": "https://docs.rs/?q=fit&more"}));
    assert_eq!(bench.question().decision.rule, "exposure");
    for n in 1..limits::DECLASSIFIED_MAX as u8 {
        bench.desk.declassify(Digest([n; 32]), "alice", "x").unwrap();
    }
    assert_eq!(bench.desk.declassify(Digest([255; 32]), "alice", "x").unwrap_err().code, Code::LIMIT);
}

#[test]
fn a_claim_stands_still_and_is_answered_with_what_it_came_to() {
    let mut bench = bench(RULES);
    let claim = bench.call("submit", json!({"note": "done"}));
    let (answered, answer, bytes) = bench.answer();
    let Answer::Go(go) = answer else { panic!("{answer:?}") };
    assert_eq!((answered, bytes.as_slice()), (claim, b"still ".as_slice()));
    let result = go.result.unwrap();
    assert_eq!(result, json!({"verified": false, "why": "a.7 said done", "output": "E\u{fffd}[1m\nend"}));
    let done = bench.log.all();
    assert!(matches!(&done[0], Did::Wrote(append) if append.durable), "a claim's receipt is durable");
}

#[test]
fn what_egress_refuses_is_refused_with_its_reason() {
    let mut bench = bench(RULES);
    let refused = bench.refused("fetch", json!({"url": "https://forbidden.example/"}));
    assert_eq!((refused.rule.as_str(), refused.remedy.as_str()), ("network.allow", "grant it"));
    assert!(bench.desk.status().seen.is_none());
    bench.house.with_credential.store(true, Ordering::SeqCst);
    assert_eq!(bench.go("fetch", json!({"url": "https://api.example.org/"})).labels, PRIVATE);
}

#[test]
fn where_a_redirect_leads_is_bounded_and_steers_nothing() {
    let mut bench = bench(RULES);
    let told = bench.go("fetch", json!({"url": "https://docs.rs/moved"})).result.unwrap();
    let location = told["location"].as_str().unwrap();
    assert_eq!(location.chars().count(), limits::FETCH_LOCATION_BYTES_MAX);
    assert!(!location.contains('\u{1b}'));
}

#[test]
fn memory_raises_what_calls_go_by() {
    let mut bench = bench(RULES);
    bench.desk.note(PRIVATE.and(STRANGE)).unwrap();
    assert!(matches!(bench.log.all().as_slice(), [Did::Raised(_)]), "ctxgraph wrote the receipt");
    bench.call("fetch", json!({"url": "https://docs.rs/"}));
    assert_eq!(bench.question().decision.rule, "exposure");
}

#[test]
fn question_numbers_never_come_twice_and_their_bound_denies() {
    let mut bench = bench(RULES);
    let file = bench._dir.path().join("approvals");
    for n in 1..=limits::TOOL_CALLS_AT_ONCE_MAX {
        bench.call("edit", json!({"path": "/work/a", "old": format!("{n}"), "new": "b"}));
    }
    until("all are asked", || bench.questions.list().len() == limits::APPROVALS_PER_AGENT_MAX);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "17");
    let ctxgraph = bench._dir.path().join("ctxgraph.sock").to_string_lossy().into_owned();
    let again = Questions::open(file, abi::ledger::Client::at(ctxgraph)).unwrap();
    assert!(again.list().is_empty());
    assert_eq!(again.follow(0, Duration::ZERO).1, 17);
}

#[test]
fn time_and_cpu_are_taken_off_the_budget_and_end_in_a_standstill() {
    for (bound, name) in [("wall_secs = 1", "wall_ms"), ("cpu_secs = 1", "cpu_ms")] {
        let mut bench = bench(&RULES.replace("budget = { ", &format!("budget = {{ {bound}, ")));
        bench.house.cpu_ms.store(1_500, Ordering::SeqCst);
        until("it stands still", || bench.house.held.load(Ordering::SeqCst) == 1);
        let events = bench.log.events();
        assert!(
            matches!(&events[..], [Event::BudgetExhausted { what, bound: 1000, .. }] if what == name),
            "{events:?}"
        );
        bench.call("read", json!({"path": "/work/a"}));
        assert!(bench.desk.resume("olga", Role::Operator).unwrap());
        assert!(matches!(bench.answer().1, Answer::Go(_)), "the call waited for it");
    }
}

#[test]
fn what_was_used_up_before_there_was_more_holds_nothing_up() {
    let bench = bench(RULES);
    let before = bench.desk.state().refills;
    let more = authority::Amounts { calls: Some(1), ..Default::default() };
    bench.desk.more(&more, "olga", Role::Operator).unwrap();
    bench.desk.exhaust("calls", before);
    assert!(bench.desk.await_room("calls", before), "it is decided again");
    assert_eq!((bench.house.held.load(Ordering::SeqCst), bench.log.events().len()), (0, 0));
    // The operator is faster than the receipt and the hold.
    for _ in 0..50 {
        let now = bench.desk.state().refills;
        std::thread::scope(|scope| {
            scope.spawn(|| bench.desk.exhaust("calls", now));
            while bench.desk.state().exhausted.is_none() {
                std::thread::yield_now();
            }
            bench.desk.more(&more, "olga", Role::Operator).unwrap();
        });
        assert_eq!(bench.house.held.load(Ordering::SeqCst), 0, "{:?}", bench.log.events());
    }
}

#[test]
fn bounds_that_the_desk_does_not_hold_are_refused() {
    let bench = bench(RULES);
    for budget in [
        authority::Amounts { tokens: Some(1), ..Default::default() },
        authority::Amounts { memory_mib: Some(1), ..Default::default() },
        authority::Amounts { micro_dollars: Some(1), ..Default::default() },
    ] {
        let rules = authority::Rules { budget, ..Default::default() };
        assert_eq!(bench.desk.tighten(&rules, "olga").unwrap_err().code, Code::INVALID_PARAMS);
    }
    assert!(bench.log.events().is_empty());
}

impl Bench {
    /// Calls under way that hold all of the output there may be.
    fn hold_all(&mut self) -> Vec<u32> {
        let paths = (0..4).map(|n| format!("/work/{n}"));
        let mut hold = |path| {
            self.call("read", json!({"path": path}));
            self.answer().0
        };
        paths.map(&mut hold).collect()
    }
}

#[test]
fn what_was_full_before_a_call_ended_is_decided_again() {
    let mut bench = bench(RULES);
    let under_way = bench.hold_all();
    let before = bench.desk.state().refills;
    bench.desk.exhaust("output_bytes", before);
    assert_eq!(bench.house.held.load(Ordering::SeqCst), 0, "what they hold may come back");
    under_way.into_iter().for_each(|channel| bench.end(channel, 1));
    until("they are settled", || bench.desk.spent().output_bytes == Some(4));
    assert!(bench.desk.await_room("output_bytes", before));
    bench.go("read", json!({"path": "/work/a"}));
    assert_eq!((bench.house.held.load(Ordering::SeqCst), bench.desk.state().exhausted), (0, None));
}

#[test]
fn a_call_waits_however_often_too_little_comes_back() {
    let mut bench = bench(RULES);
    let under_way = bench.hold_all();
    let waits = bench.call("read", json!({"path": "/work/waits"}));
    for _ in 0..5_000 {
        let mut state = bench.desk.state();
        let nothing = state.purse.reserve(&authority::Amounts::default()).unwrap();
        state.settle(nothing, &authority::Amounts::default());
        drop(state);
        bench.desk.changed.notify_all();
        std::thread::sleep(Duration::from_micros(20));
    }
    under_way.into_iter().for_each(|channel| bench.end(channel, 1));
    assert_eq!(bench.answer().0, waits);
}

#[test]
fn a_call_that_waits_for_others_is_refused_when_an_operator_tightens() {
    let mut bench = bench(RULES);
    bench.hold_all();
    let waits = bench.call("read", json!({"path": "/work/waits"}));
    let never = authority::Rules { never: vec!["/work/waits".parse().unwrap()], ..Default::default() };
    bench.desk.tighten(&never, "olga").unwrap();
    let (answered, answer, _) = bench.answer();
    assert!(answered == waits && matches!(answer, Answer::Refused(_)), "{answer:?}");
}

/// A figure, not a check: `cargo test -p cage --release -- --ignored --nocapture round_trip`.
#[test]
#[ignore = "measures"]
fn round_trip_of_a_call_between_guest_and_desk() {
    let mut bench = bench(&RULES.replace("calls = 100, output_bytes = 1000000", "calls = 2000"));
    let mut took: Vec<Duration> = (0..900)
        .map(|_| {
            let begun = Instant::now();
            bench.go("read", json!({"path": "/work/a"}));
            begun.elapsed()
        })
        .collect();
    took.sort();
    println!("call to go, with a note to the ledger's socket: p50 {:?} p99 {:?}", took[450], took[891]);
}
