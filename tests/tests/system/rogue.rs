//! Agents with tools that try to get around them, from inside a real guest (app/rogue.py): the tools' files and processes, the network once
//! private data was seen, questions to people, the programs that tools run, and the tools themselves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::fixture::{self, Config};
use system_tests::node::{Machine, Node};
use system_tests::web::Web;

use crate::hostile::running;
use crate::shared::{PAGE, eventually};
use crate::slot::{self, Slot};
use crate::trial;

/// A node with the agent, and the web that it may reach.
pub struct Bench {
    node: Node,
    web: Web,
    _config: Config,
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
        trial("rogue::files_and_processes_of_the_tools_are_out_of_reach", files),
        trial("rogue::programs_of_tools_have_no_way_out", inside),
        trial("rogue::lines_that_are_no_calls_are_refused", lines),
        trial("rogue::swapped_directories_are_not_written_through", swaps),
        trial("rogue::nothing_of_a_run_survives_it", survivor),
        trial("rogue::bombs_in_runs_leave_the_tools_serving", bomb),
        trial("rogue::questions_are_answered_by_people_alone", forge),
        trial("rogue::private_data_does_not_leave_by_a_connection", leak),
    ]
}

const NULLD_TOML: &str = r#"
[node]
name = "rogue"

[network.hosts]
"web.test" = ["10.0.2.100"]
"other.test" = ["10.0.2.100"]
"#;

const ROGUE: &str = r#"
[agent]
name = "rogue"
version = "1"
rootfs = "python"
command = ["/usr/bin/python3", "/app/idle.py"]
env = { GREETING = "hello" }

[capabilities]
max_memory_mb = 192
max_pids = 96
network.allow = ["web.test:80", "other.test:80"]
filesystem.write = ["/data/out", "/data/private"]

[authority]
read = ["/data/**"]
write = ["/data/**"]
commands = ["/usr/bin/python3 **"]
private = ["/data/private/**"]
trusted_names = ["other.test"]

[authority.operations]
read_files = "always"
write_files = "always"
edit_files = "always"
run_bash = "always"

[tools]
remove = { risk = "high" }
"#;

/// What programs that tools run find in their environment.
const ENVIRONMENT: [&str; 4] = ["HOME", "LANG", "PATH", "TERM"];

fn start() -> Result<Bench> {
    let web = Web::start(PAGE)?;
    let config = Config::new("rogue")?;
    config.file("nulld.toml", NULLD_TOML)?;
    config.file("agents/rogue.toml", ROGUE)?;
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("2G")?),
        memory_mib: 2048,
        forwards: vec![("10.0.2.100:80".into(), web.port)],
        key: config.keys.operator.clone(),
        ..Machine::bare("rogue", system_tests::test_iso()?, &config)
    };
    Ok(Bench { node: Node::boot(machine)?, web, _config: config })
}

impl Bench {
    /// What the agent says came of an attack.
    fn attack(&self, name: &str) -> Result<Value> {
        running(&self.node, "rogue")?;
        let all = ["agent", "exec", "rogue", "--", "/usr/bin/python3", "/app/rogue.py", name];
        let answer = self.node.ctl(&all).with_context(|| format!("the attack `{name}`"))?;
        let last = answer.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("{name}: {last} {}", answer.stderr))
    }

    /// Events of one kind, oldest first.
    fn events(&self, kind: &str) -> Result<Vec<Value>> {
        let page = self.node.json(&["ledger", "tail", "--limit", "1000"])?;
        let events = page["events"].as_array().context("no events")?;
        Ok(events.iter().map(|one| one["event"].clone()).filter(|event| event["event"] == kind).collect())
    }
}

/// An error, by its name.
fn is_error(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with('E') && text.bytes().all(|b| b.is_ascii_uppercase()))
}

fn files() -> Result<()> {
    let bench = BENCH.hold()?;
    let told = bench.attack("files")?;
    let found = told["found"].as_object().context("nothing found")?;
    // Empty, where what stands there for the agent is a directory of its own.
    let through: Vec<_> = found.iter().filter(|(_, came)| !is_error(came) && **came != "[]").collect();
    ensure!(through.is_empty(), "{through:?}");
    ensure!(told["works"] == true, "{told:#}");
    Ok(())
}

fn inside() -> Result<()> {
    let bench = BENCH.hold()?;
    let told = bench.attack("inside")?;
    ensure!(told["code"] == 0, "{told:#}");
    let said: Value = serde_json::from_str(told["said"][0].as_str().context("silent")?)?;
    for (what, came) in said.as_object().context("no answers")? {
        let text = came.as_str().unwrap_or_default();
        ensure!(
            !text.contains("socket.socket") && !text.contains("jsonrpc") && text != "None",
            "{what}: {came}"
        );
        ensure!(!text.starts_with("b'") && !text.starts_with('\''), "{what}: {came}");
    }
    // Nothing of the agent's, the guest's or the node's.
    let names = told["said"][1].as_str().context("no environment")?;
    let strange = names.split('\'').filter(|name| name.len() > 2 && !ENVIRONMENT.contains(name)).count();
    ensure!(strange == 0, "{names}");
    Ok(())
}

fn lines() -> Result<()> {
    let bench = BENCH.hold()?;
    let told = bench.attack("lines")?;
    for (name, came) in told["found"].as_object().context("nothing found")? {
        let refused =
            came["error"]["code"].is_i64() || came["ended"].is_boolean() || came["ended"].is_string();
        ensure!(refused && !came.to_string().contains("dear diary"), "{name}: {came}");
    }
    ensure!(told["works"] == true, "{told:#}");
    Ok(())
}

fn swaps() -> Result<()> {
    let bench = BENCH.hold()?;
    let told = bench.attack("swaps")?;
    ensure!(told["kept"] == "kept", "written through a link: {told}");
    let swaps: u64 = told["swaps"].as_str().unwrap_or_default().parse().unwrap_or(0);
    ensure!(swaps > 10 && told["wrote"].as_u64() > Some(0), "nothing was raced: {told}");
    Ok(())
}

fn survivor() -> Result<()> {
    let bench = BENCH.hold()?;
    let told = bench.attack("survivor")?;
    ensure!(told["began"] == true && told["lives"] == false, "{told}");
    Ok(())
}

fn bomb() -> Result<()> {
    let bench = BENCH.hold()?;
    let told = bench.attack("bomb")?;
    ensure!(told["works"] == true, "the tools are gone: {told}");
    ensure!(told["flooded"].as_u64() < Some(2 << 20), "a result without a bound: {told}");
    for (name, end) in told["ends"].as_object().context("no ends")? {
        ensure!(end["code"] != 0, "{name} ended well: {told}");
    }
    Ok(())
}

fn forge() -> Result<()> {
    let bench = BENCH.hold()?;
    let decided = bench.events("approval_decided")?.len();
    running(&bench.node, "rogue")?;
    let told = std::thread::scope(|scope| -> Result<Value> {
        let asking = scope.spawn(|| bench.attack("forge"));
        let mut question = Value::Null;
        eventually(Duration::from_secs(60), "the question is asked", || {
            question = bench.node.json(&["approvals"])?["approvals"][0].clone();
            Ok(question["id"].is_string())
        })?;
        // Time for all that the agent says about it.
        std::thread::sleep(Duration::from_secs(6));
        let waits = bench.node.json(&["approvals"])?["approvals"][0]["id"] == question["id"];
        let id = question["id"].as_str().context("no id")?;
        bench.node.ctl(&["deny", id, "--reason", "it asked itself"])?.ok()?;
        let told = asking.join().map_err(|_| anyhow::anyhow!("the attack panicked"))??;
        ensure!(waits, "somebody answered: {told:#}");
        Ok(told)
    })?;
    ensure!(told["outcome"]["code"] == -32001 && told["there"]["text"] == "x", "{told:#}");
    let said = told["said"].as_array().context("it said nothing")?;
    // Memory takes what is the agent's own to say; nobody takes the rest.
    ensure!(said.iter().filter(|one| **one == "taken").count() <= 1 && said.len() == 7, "{said:?}");
    let events = bench.events("approval_decided")?;
    ensure!(events.len() == decided + 1 && events[decided]["approved"] == false, "{events:?}");
    Ok(())
}

fn leak() -> Result<()> {
    let bench = BENCH.hold()?;
    // A life that has seen nothing: what others of these tests ran could have read the diary.
    bench.node.json(&["agent", "stop", "rogue"])?;
    let told = bench.attack("leak")?;
    let text = |what: &str| told[what].as_str().unwrap_or_default().to_owned();
    ensure!(text("before").contains(PAGE), "there was nothing to cut: {told:#}");
    ensure!(told["read"]["data"]["text"] == "dear diary", "{told:#}");
    ensure!(told["read"]["labels"].to_string().contains("private_data"), "{told:#}");
    ensure!(!text("held").contains(PAGE), "what was open stayed open: {told:#}");
    ensure!(text("after").contains("rule: exposure"), "not told why: {told:#}");
    ensure!(text("trusted").contains(PAGE), "{told:#}");
    let seen = bench.web.seen();
    ensure!(!seen.iter().any(|line| line.contains("/held")), "{seen:?}");
    let grants = bench.node.json(&["net", "grants"])?;
    ensure!(grants["agents"][0]["is_confined"] == true, "{grants:#}");
    let raised = bench.events("tool_exposed")?;
    ensure!(raised.iter().any(|event| event["to"].to_string().contains("private_data")), "{raised:?}");
    Ok(())
}
