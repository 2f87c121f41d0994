//! Verified tasks from a repository to a patch that works elsewhere, and the agents that say so and have not: one node, a model in the
//! test internet behind the broker (internet/model.py), real candidates and real verifications.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::ctl::{self, Answer};
use system_tests::fixture::{self, Config};
use system_tests::internet::Internet;
use system_tests::node::{Machine, Node, Oddities};

use crate::shared::eventually;
use crate::slot::{self, Slot};
use crate::trial;

/// What the model's host gets and no guest has.
const SECRET: &str = "sk-tasks-e1b0c7d94f";
/// One task with all its verifications, each in a VM of its own within an emulated node.
const TASK_TIME_MAX: Duration = Duration::from_secs(600);
const VERIFY: &str = "python3 -m unittest";
const STRANGER: &str = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A node, the internet it sees, and the repository that tasks are about.
pub struct Bench {
    pub node: Node,
    internet: Internet,
    config: Config,
    repo: PathBuf,
}

impl slot::Bench for Bench {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Their node.
pub static BENCH: Slot<Bench> = Slot::new(start);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("tasks::repository_is_fixed_verified_and_works_elsewhere", fixed_and_applied),
        trial("tasks::the_other_api_does_it_too", the_other_api),
        trial("tasks::claims_that_break_a_rule_are_refused_each_with_its_reason", lying_claims),
        trial("tasks::verification_is_not_deceived", lying_proofs),
        trial("tasks::questions_are_asked_and_a_critical_one_freezes", questions),
        trial("tasks::spent_budget_pauses_and_more_of_it_goes_on", spent_budget),
    ]
}

const NULLD_TOML: &str = r#"
[prices."scripted"]
input = 1000000
cache_read = 100000
cache_write = 1250000
output = 4000000
input_tokens_max = 100000
output_tokens_max = 16000
[node]
name = "tasks"
[network]
mode = "static"
address = "192.0.2.5/24"
gateway = "192.0.2.1"
dns = ["203.0.113.53"]
"#;

/// Name, and what follows `[agent]`'s first lines.
const AGENTS: &[(&str, &str)] = &[
    (
        "coder",
        r#"command = ["/usr/bin/coder"]
env = { NULLBOX_MODEL = "scripted", NULLBOX_PAUSE_MS = "20" }
[capabilities]
max_memory_mb = 192
network.allow = ["model.test"]
credential_refs = ["MODEL_KEY"]
budget = { period = "total", max_output_tokens = 1000000, max_micro_dollars = 100000000 }
[authority]
profile = "safe-pr-fixer"
untrusted = ["/work/reports/**"]
trusted_names = ["model.test"]
"#,
    ),
    (
        "claude",
        r#"command = ["/usr/bin/coder"]
env = { NULLBOX_MODEL = "scripted", NULLBOX_PAUSE_MS = "20" }
[capabilities]
max_memory_mb = 192
network.allow = ["claude.test"]
credential_refs = ["CLAUDE_KEY"]
budget = { period = "total", max_output_tokens = 1000000 }
[authority]
profile = "codegen"
trusted_names = ["claude.test"]
"#,
    ),
    ("liar", ""),
    ("asker", "[tools]\nrun = { risk = \"high\" }\nremove = { risk = \"critical\" }\n"),
    ("spender", "budget = { calls = 6 }\n"),
];

/// Of the agents that are Python scripts.
const LIAR: &str = r#"command = ["/usr/bin/python3", "/app/liar.py"]
[capabilities]
max_memory_mb = 192
[authority]
read = ["/work/**"]
write = ["/work/**"]
commands = ["python3 **"]
operations = { read_files = "always", write_files = "always", edit_files = "always", run_bash = "always" }
"#;

fn start() -> Result<Bench> {
    let config = Config::new("tasks")?;
    let dns = json!({"model.test": [["203.0.113.30"]], "claude.test": [["203.0.113.31"]], "web.test": [["203.0.113.10"]]});
    let internet = Internet::start(config.dir().join("internet"), &dns)?;
    let tree = system_tests::tree();
    std::fs::copy(tree.join("tests/data/scripts.json"), config.dir().join("internet/scripts.json"))?;
    let authority = internet.authority()?;
    let nulld = format!("{NULLD_TOML}authorities = ['''{authority}''']\n{}", crate::faults::SABOTEUR);
    config.file("nulld.toml", &nulld)?;
    for (name, rest) in AGENTS {
        let body = if rest.starts_with("command") { (*rest).to_owned() } else { format!("{LIAR}{rest}") };
        let manifest = format!("[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"coder\"\n{body}");
        config.file(&format!("agents/{name}.toml"), &manifest)?;
    }
    config.rootfs("coder", &fixture::coder_archive(&tree.join("tests/app"))?)?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("2G")?),
        memory_mib: 2048,
        key: config.keys.admin.clone(),
        ..Machine::bare("tasks", system_tests::test_iso()?, &config)
    };
    let odd = Oddities {
        network: Some(internet.netdev()),
        gate_port: Some(internet.gate_port),
        ..Oddities::default()
    };
    let node = Node::boot_odd(machine, &odd)?;
    let file = config.dir().join("model.key");
    std::fs::write(&file, SECRET)?;
    let file = file.display().to_string();
    for (name, host, api) in
        [("MODEL_KEY", "model.test", "openai"), ("CLAUDE_KEY", "claude.test", "anthropic")]
    {
        node.json(&["secret", "set", name, "--host", host, "--api", api, "--file", &file])?;
    }
    let repo = config.dir().join("repo");
    fixture::copy_tree(&tree.join("tests/data/tally"), &repo)?;
    for arguments in [
        &["init", "-q"][..],
        &["add", "-A"],
        &["-c", "user.name=t", "-c", "user.email=t@test", "commit", "-qm", "tally"],
    ] {
        let status = Command::new("git").arg("-C").arg(&repo).args(arguments).status()?;
        ensure!(status.success(), "git {arguments:?}");
    }
    Ok(Bench { node, internet, config, repo })
}

/// The repository's own tests, run here.
fn tests_pass(repo: &Path) -> Result<bool> {
    let mut command = Command::new("python3");
    command.args(["-B", "-m", "unittest"]).current_dir(repo);
    Ok(ctl::run(command, Duration::from_secs(60))?.status == 0)
}

impl Bench {
    /// nullctl with as much time as a task may take.
    fn ctl(&self, arguments: &[&str]) -> Result<Answer> {
        let command = self.node.command(&self.node.machine.key, &self.node.fingerprint()?, arguments)?;
        ctl::run(command, TASK_TIME_MAX).with_context(|| format!("nullctl {}", arguments.join(" ")))
    }

    fn begin(&self, agent: &str, goal: &str, more: &[&str]) -> Vec<String> {
        let repo = self.repo.display().to_string();
        let given = ["task", "run", "--agent", agent, "--repo", &repo, "--goal", goal, "--verify", VERIFY];
        given.iter().chain(&["--protect", "tests/**"]).chain(more).map(|one| (*one).to_owned()).collect()
    }

    /// Runs a task to its end: how it stands then, and all that was said on the way.
    fn run(&self, agent: &str, goal: &str, more: &[&str]) -> Result<(Value, String)> {
        let given = self.begin(agent, goal, more);
        let mut all = vec!["--json"];
        all.extend(given.iter().map(String::as_str));
        all.push("--follow");
        let answer = self.ctl(&all)?;
        let status = answer.json().with_context(|| answer.stderr.clone())?;
        Ok((status, answer.stdout))
    }

    /// Begins a task and does not wait for it; its id.
    fn spawn(&self, agent: &str, goal: &str) -> Result<String> {
        let given = self.begin(agent, goal, &[]);
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        Ok(self.node.json(&given)?["id"].as_str().context("no id")?.to_owned())
    }

    fn status(&self, id: &str) -> Result<Value> {
        self.node.json(&["task", "show", id])
    }

    /// Ledger events of a task or of its cages, oldest first.
    fn events(&self, id: &str) -> Result<Vec<Value>> {
        let page = self.node.json(&["ledger", "tail", "--limit", "1000"])?;
        let events = page["events"].as_array().context("no events")?;
        let cage = format!("{id}-");
        let is_its = |event: &&Value| {
            event["task"] == id
                || event["facts"]["task"] == id
                || event["instance"].as_str().is_some_and(|instance| instance.starts_with(&cage))
        };
        Ok(events.iter().map(|event| &event["event"]).filter(is_its).cloned().collect())
    }

    /// What a lying agent printed, by what it tried.
    fn told(&self, id: &str) -> Result<Vec<(String, Value)>> {
        let logs = self.node.ctl(&["agent", "logs", &format!("{id}-c1")])?.ok()?;
        let lines = logs.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let all: Vec<_> = lines
            .filter_map(|line| Some((line["tried"].as_str()?.to_owned(), line["answer"].clone())))
            .collect();
        ensure!(!all.is_empty(), "it told nothing: {}", logs.stdout);
        Ok(all)
    }

    /// A copy of what the tasks began from: a repository, or one around these tests might ignore it.
    fn base(&self, name: &str) -> Result<PathBuf> {
        let copy = self.config.dir().join(name);
        fixture::copy_tree(&self.repo, &copy)?;
        let status = Command::new("git").args(["init", "-q"]).arg(&copy).status()?;
        ensure!(status.success(), "git init {name}");
        Ok(copy)
    }
}

#[track_caller]
fn ends_as(status: &Value, state: &str) -> Result<()> {
    ensure!(status["state"] == state, "not {state}: {status:#}");
    Ok(())
}

fn said<'a>(told: &'a [(String, Value)], tried: &str) -> Result<&'a Value> {
    let found = told.iter().find(|(name, _)| name == tried);
    found.map(|(_, answer)| answer).with_context(|| format!("`{tried}` is not in {told:?}"))
}

fn fixed_and_applied() -> Result<()> {
    let bench = BENCH.hold()?;
    ensure!(!tests_pass(&bench.repo)?, "there is nothing to fix");
    let (status, _) = bench.run("coder", "Make the tests pass. [script fix]", &[])?;
    ends_as(&status, "verified")?;
    let id = status["id"].as_str().context("no id")?;
    ensure!(status["patch"]["files"].as_array().is_some_and(|files| files.len() == 1), "{status:#}");
    ensure!(status["patch"]["files"][0]["path"] == "tally/ranges.py", "{status:#}");
    let seen = bench.internet.seen()?;
    ensure!(!seen.iter().any(|line| line.starts_with("problem")), "{seen:?}");
    let asked: Vec<_> = seen.iter().filter(|line| line.contains("/v1/chat/completions HTTP")).collect();
    ensure!(!asked.is_empty() && asked.iter().all(|line| line.contains(SECRET)), "no key came: {asked:?}");
    // What happened stands in the ledger in the order in which it had to happen. That a task is over is noted once it is shown.
    let mut events = Vec::new();
    eventually(Duration::from_secs(20), "the task's end in the ledger", || {
        events = bench.events(id)?;
        Ok(events.iter().any(|event| event["event"] == "task_ended"))
    })?;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    let mut rest = kinds.iter();
    for wanted in
        ["task_accepted", "agent_starting", "tool_called", "task_claimed", "patch_verified", "task_ended"]
    {
        ensure!(rest.any(|kind| *kind == wanted), "no {wanted} in its place: {kinds:?}");
    }
    ensure!(
        !bench.node.ctl(&["ledger", "tail", "--limit", "1000"])?.stdout.contains(SECRET),
        "the ledger has the secret"
    );
    apply_elsewhere(&bench, id)?;
    check_attestation(&bench, id)
}

/// The patch works where the node never was, as a diff of git's and by nullctl; elsewhere it is refused whole.
fn apply_elsewhere(bench: &Bench, id: &str) -> Result<()> {
    let diff = bench.config.dir().join("fix.diff").display().to_string();
    bench.node.ctl(&["task", "export", id, "--diff", "--out", &diff])?.ok()?;
    let by_git = bench.base("by-git")?;
    let status = Command::new("git").current_dir(&by_git).args(["apply", &diff]).status()?;
    ensure!(status.success() && tests_pass(&by_git)?, "git apply: {}", std::fs::read_to_string(&diff)?);
    let applied = bench.base("applied")?;
    let into = applied.display().to_string();
    bench.node.ctl(&["task", "apply", id, "--into", &into])?.ok()?;
    ensure!(tests_pass(&applied)?, "the tests fail after apply");
    let changed = bench.base("changed")?;
    std::fs::write(changed.join("tally/ranges.py"), "something else")?;
    let refused = bench.node.ctl(&["task", "apply", id, "--into", &changed.display().to_string()])?;
    ensure!(refused.status != 0, "applied to another tree: {}", refused.stdout);
    ensure!(std::fs::read_to_string(changed.join("tally/ranges.py"))? == "something else", "and changed it");
    Ok(())
}

/// With files and the node's key alone.
fn check_attestation(bench: &Bench, id: &str) -> Result<()> {
    let file = bench.config.dir().join("fix.attestation");
    let path = file.display().to_string();
    bench.node.ctl(&["task", "attest", id, "--out", &path])?.ok()?;
    let key = bench.node.json(&["ledger", "key"])?["key"].as_str().context("no key")?.to_owned();
    let nullctl = system_tests::nullctl()?;
    let applied = bench.config.dir().join("applied").display().to_string();
    let check = |key: &str, repo: &str| -> Result<Answer> {
        let mut command = Command::new(&nullctl);
        command.args(["task", "verify-attestation", &path, "--key", key, "--repo", repo]);
        ctl::run(command, Duration::from_secs(30))
    };
    check(&key, &applied)?.ok()?;
    ensure!(check(STRANGER, &applied)?.status != 0, "by a stranger's key");
    let unfixed = bench.repo.display().to_string();
    ensure!(check(&key, &unfixed)?.status != 0, "of a tree that was not verified");
    let mut envelope: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let payload = envelope["payload"].as_str().context("no payload")?.to_owned();
    let at = payload.len() / 2;
    let other = if &payload[at..=at] == "A" { "B" } else { "A" };
    envelope["payload"] = format!("{}{other}{}", &payload[..at], &payload[at + 1..]).into();
    std::fs::write(&file, envelope.to_string())?;
    ensure!(check(&key, &applied)?.status != 0, "with a changed byte");
    Ok(())
}

fn the_other_api() -> Result<()> {
    let bench = BENCH.hold()?;
    let (status, _) = bench.run("claude", "Make the tests pass. [script talk]", &["--attempts", "3"])?;
    ends_as(&status, "verified")?;
    let seen = bench.internet.seen()?;
    ensure!(!seen.iter().any(|line| line.starts_with("problem")), "{seen:?}");
    ensure!(seen.iter().any(|line| line == "turn talk 3 /v1/messages served"), "{seen:?}");
    // It said that it was done before it was: that was a claim, refused for its emptiness.
    let events = bench.events(status["id"].as_str().context("no id")?)?;
    ensure!(
        events.iter().any(|event| event["event"] == "claim_refused" && event["rule"] == "empty"),
        "{events:?}"
    );
    Ok(())
}

/// What is tried, the rule that refuses it.
const CLAIMS: &[(&str, &str)] = &[
    ("nothing", "empty"),
    ("tests", "protected"),
    ("hook", "git"),
    ("git-config", "git"),
    ("git-in-capitals", "git"),
    ("attributes", "git"),
    ("link-out", "link"),
    ("link-up", "link"),
    ("pipe", "mode"),
    ("set-id", "mode"),
    ("steering", "build-steering"),
    ("verify-named", "build-steering"),
];

fn lying_claims() -> Result<()> {
    let bench = BENCH.hold()?;
    let (status, _) = bench.run("liar", "Lie. [claims]", &["--attempts", "16"])?;
    let id = status["id"].as_str().context("no id")?;
    let told = bench.told(id)?;
    let mut wrong = Vec::new();
    for (tried, rule) in CLAIMS {
        let answer = said(&told, tried)?;
        let why = answer["data"]["why"].as_str().unwrap_or_default();
        if answer["data"]["verified"] != false || !why.contains(rule) {
            wrong.push(format!("{tried} by `{rule}`: {answer}"));
        }
    }
    for path in ["/work/../etc/passwd", "/etc/passwd", "/home/agent/x"] {
        let answer = said(&told, &format!("write {path}"))?;
        if answer["refused"]["code"].as_i64().is_none() {
            wrong.push(format!("write {path}: {answer}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The same reasons for people, in the same order; and nothing of it was run.
    let events = bench.events(id)?;
    let refused: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "claim_refused")
        .filter_map(|event| event["rule"].as_str())
        .collect();
    let wanted: Vec<&str> = CLAIMS.iter().map(|(_, rule)| *rule).collect();
    ensure!(refused == wanted, "the ledger has {refused:?}");
    ensure!(!events.iter().any(|event| event["event"] == "verify_failed"), "{events:?}");
    // What the lies left is nothing: the honest claim holds. Of its modes only that a file may be executed is part of it.
    ends_as(&status, "verified")?;
    ensure!(status["patch"]["files"].as_array().is_some_and(|files| files.len() == 2), "{status:#}");
    let diff = bench.node.ctl(&["task", "export", id, "--diff", "--raw"])?.ok()?.stdout;
    ensure!(diff.contains("new file mode 100755"), "{diff}");
    Ok(())
}

fn lying_proofs() -> Result<()> {
    let bench = BENCH.hold()?;
    let before = bench.internet.seen()?.len();
    let (status, followed) =
        bench.run("liar", "Lie. [proofs]", &["--attempts", "16", "--verify-secs", "120"])?;
    let id = status["id"].as_str().context("no id")?;
    let told = bench.told(id)?;
    let mut wrong = Vec::new();
    for (tried, why, output) in [
        ("nothing-fixed", "1", "FAILED"),
        ("flood", "wrote more than", "xxxx"),
        ("phones-home", "1", "Error"),
        ("survives", "1", "FAILED"),
        ("exits-early", "9", ""),
    ] {
        let data = &said(&told, tried)?["data"];
        let has = |name: &str, text: &str| data[name].as_str().is_some_and(|said| said.contains(text));
        if data["verified"] != false || !has("why", why) || !has("output", output) {
            wrong.push(format!("{tried}: {data}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let environment = said(&told, "phones-home")?["data"]["output"].as_str().unwrap_or_default().to_owned();
    ensure!(!environment.contains("NULLBOX") && !environment.contains("KEY"), "not clean: {environment}");
    let seen = bench.internet.seen()?;
    ensure!(!seen[before..].iter().any(|line| line.contains("web.test")), "it phoned: {:?}", &seen[before..]);
    let events = bench.events(id)?;
    ensure!(events.iter().filter(|event| event["event"] == "verify_failed").count() == 5, "{events:?}");
    ensure!(followed.contains("verifying"), "nullctl told nothing of it: {followed}");
    // The daemon died with the run that began it, and the tests are the operator's.
    ensure!(
        said(&told, "daemon")?["data"]["text"].as_str().is_some_and(|text| text.contains("unittest")),
        "{told:?}"
    );
    ends_as(&status, "verified")
}

/// The question that a task waits with.
fn question(bench: &Bench, id: &str, tool: &str) -> Result<Value> {
    let mut found = Value::Null;
    eventually(Duration::from_secs(120), &format!("a question about {tool}"), || {
        let list = bench.node.json(&["approvals"])?;
        let all = list["approvals"].as_array().context("no list")?;
        let its = all.iter().find(|one| one["task"] == id && one["tool"] == tool);
        found = its.cloned().unwrap_or_default();
        Ok(!found.is_null())
    })?;
    Ok(found)
}

fn questions() -> Result<()> {
    let bench = BENCH.hold()?;
    let id = bench.spawn("asker", "Ask. [asks]")?;
    let high = question(&bench, &id, "run")?;
    ensure!(
        high["is_frozen"] == false && high["shown"].as_str().is_some_and(|s| s.contains("unittest")),
        "{high:#}"
    );
    let name = high["id"].as_str().context("no id")?;
    bench.node.json(&["approve", name, "--reason", "the tests may run"])?;
    let critical = question(&bench, &id, "remove")?;
    ensure!(critical["is_frozen"] == true && critical["role"] == "admin", "{critical:#}");
    let cage = format!("{id}-c1");
    // The guest has a moment to write out its disks first.
    eventually(Duration::from_secs(60), "the cage stands still", || {
        Ok(bench.node.json(&["agent", "status", &cage])?["summary"]["state"] == "paused")
    })?;
    let again = bench.node.ctl(&["approve", name, "--reason", "twice"])?;
    ensure!(again.status != 0, "an answered question was answered again");
    let name = critical["id"].as_str().context("no id")?;
    let (operator, pin) = (&bench.config.keys.operator, bench.node.fingerprint()?);
    let lesser = bench.node.ctl_as(operator, &pin, &["approve", name, "--reason", "I would like to"])?;
    ensure!(lesser.status != 0, "an operator decided what an admin must");
    bench.node.json(&["deny", name, "--reason", "the readme stays"])?;
    let answer = bench.ctl(&["--json", "task", "watch", &id])?;
    ends_as(&answer.json()?, "verified")?;
    let told = bench.told(&id)?;
    ensure!(said(&told, "run")?["data"]["code"] == 1, "{told:?}");
    let refused = said(&told, "remove")?["refused"].to_string();
    ensure!(refused.contains("the readme stays"), "not told why: {refused}");
    let events = bench.node.json(&["ledger", "tail", "--limit", "1000"])?;
    let decided = events["events"]
        .as_array()
        .context("no events")?
        .iter()
        .filter(|e| e["event"]["event"] == "approval_decided");
    ensure!(decided.count() >= 2, "decisions without receipts");
    Ok(())
}

fn spent_budget() -> Result<()> {
    let bench = BENCH.hold()?;
    let id = bench.spawn("spender", "Spend. [spends]")?;
    let mut status = Value::Null;
    eventually(Duration::from_secs(180), "the task is paused", || {
        status = bench.status(&id)?;
        if ["failed", "verified", "cancelled"].iter().any(|end| status["state"] == *end) {
            bail!("it ended: {status:#}");
        }
        Ok(status["state"] == "paused")
    })?;
    ensure!(status["reason"].as_str().is_some_and(|why| why.contains("calls")), "{status:#}");
    ensure!(bench.events(&id)?.iter().any(|event| event["event"] == "budget_exhausted"), "no receipt of it");
    bench.node.json(&["task", "resume", &id, "--budget", "calls=100"])?;
    let answer = bench.ctl(&["--json", "task", "watch", &id])?;
    ends_as(&answer.json()?, "verified")
}
