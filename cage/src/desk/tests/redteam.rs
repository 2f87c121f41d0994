//! The red team at the desk itself: hostile guests on real sessions, and an oracle beside them that keeps what really flowed, who really
//! said yes and what was really used, without a look at a label. `NULLBOX_SEED=N` plays one seed of each category; that the oracle sees an
//! escape is tested with a breach of each.

mod approvals;
mod budgets;
mod flows;
mod forged;

use super::*;

/// splitmix64.
struct Random(u64);

impl Random {
    fn new(category: &str, seed: u64) -> Random {
        Random(category.bytes().fold(seed, |sum, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte)))
    }
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }
    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// What the agent of these cases may do, with a sink of its own and a tool that wipes.
const RULES: &str = r#"
[authority]
read = ["/work/**", "/data/**"]
write = ["/work/**"]
never = ["/work/.env", "/data/keys/**"]
commands = ["cargo test **"]
names = ["docs.rs", "api.example.org"]
private = ["/data/**"]
untrusted = ["/work/issues/**"]
trusted_names = ["api.example.org"]
budget = { calls = 1000, output_bytes = 100000000 }
[authority.operations]
read_files = "always"
write_files = "always"
edit_files = "ask"
run_bash = "always"
grep_search = "always"
web_fetch = "always"
create_pr = "always"
[tools]
publish = { risk = "low", operation = "create_pr", command = ["/app/pr"] }
lint = { risk = "low", operation = "run_bash", command = ["/app/lint"] }
wipe = { risk = "critical", operation = "write_files", command = ["/app/wipe"] }
"#;

/// One way to attack. `breached`: the node around the desk is wrong in one place. An escape is told in words.
struct Category {
    name: &'static str,
    cases: u64,
    play: fn(random: &mut Random, breached: bool) -> Result<(), String>,
}

const CATEGORIES: [Category; 5] = [
    Category { name: "flows", cases: 120, play: flows::play },
    Category { name: "forged calls", cases: 60, play: forged::play },
    Category { name: "approvals", cases: 120, play: approvals::play },
    Category { name: "self-approval", cases: 60, play: approvals::by_oneself },
    Category { name: "budget races", cases: 40, play: budgets::play },
];

#[test]
fn no_hostile_guest_escapes_the_desk() {
    let only: Option<u64> = std::env::var("NULLBOX_SEED").ok().and_then(|text| text.parse().ok());
    let mut escapes = Vec::new();
    for category in &CATEGORIES {
        for seed in only.map_or(0..category.cases, |seed| seed..seed + 1) {
            if let Err(how) = (category.play)(&mut Random::new(category.name, seed), false) {
                escapes.push(format!("{}: NULLBOX_SEED={seed}: {how}", category.name));
            }
        }
    }
    assert!(escapes.is_empty(), "{}", escapes.join("\n"));
}

#[test]
fn the_oracle_sees_each_breach() {
    for category in &CATEGORIES {
        let sees = |seed| (category.play)(&mut Random::new(category.name, seed), true).is_err();
        assert!((0..category.cases).any(sees), "{}: nothing noticed", category.name);
    }
}

/// A person who answers every question in the same way, until the end of the case.
struct Person {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Person {
    fn who(questions: &Arc<Questions>, says: bool) -> Person {
        let (is_over, questions) = (Arc::new(AtomicBool::new(false)), questions.clone());
        let until = is_over.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                for question in questions.follow(0, Duration::from_millis(20)).0 {
                    // It may have been withdrawn with its life.
                    let _ = questions.decide(&admin(), &question.id, says, "always the same");
                }
            }
        });
        Person { is_over, thread: Some(thread) }
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.take().map(std::thread::JoinHandle::join).transpose().unwrap();
    }
}

/// A call and whether it may happen.
fn allowed(bench: &mut Bench, tool: &str, params: &str) -> bool {
    let call = tools::Call { tool: tool.into(), params: params.into() };
    let channel = bench.next;
    bench.next += 1;
    Frame::json(Kind::Call, channel, &call).unwrap().write_to(&mut bench.guest).unwrap();
    let (answered, answer, _) = bench.answer();
    assert_eq!(answered, channel);
    bench.end(channel, 10);
    matches!(answer, Answer::Go(_))
}

/// Each call that happened has its receipt, with the digest of exactly its arguments; and no other has one.
fn receipted(bench: &Bench, happened: &[(u32, String)]) -> Result<(), String> {
    let mut receipts: Vec<(u32, Digest)> = Vec::new();
    for event in bench.log.events() {
        if let Event::ToolCalled { instance, call, verdict: authority::Verdict::Allow, arguments, .. } = event
            && instance == bench.desk.instance
        {
            receipts.push((call, arguments));
        }
    }
    let expected: Vec<(u32, Digest)> =
        happened.iter().map(|(call, params)| (*call, digest_of(params.as_bytes()))).collect();
    if receipts == expected { Ok(()) } else { Err(format!("receipts {receipts:?}, calls {expected:?}")) }
}
