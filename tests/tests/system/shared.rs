//! The node that most tests share: the test image, UEFI, three operators, four agents, a state disk.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use system_tests::fixture::{self, Config};
use system_tests::losses::Gone;
use system_tests::node::{Machine, Node};
use system_tests::web::Web;

use crate::slot::{self, Slot};

pub const PAGE: &str = "the page that the test internet serves";

/// A node and what it was made from.
pub struct Lab {
    pub node: Node,
    pub config: Config,
    pub web: Web,
}

/// The place of the shared node.
pub static LAB: Slot<Lab> = Slot::new(start);

/// The shared node, held by one test.
pub type Guard = slot::Guard<Lab>;

/// The shared node, booted when first asked for.
pub fn lab() -> Result<Guard> {
    LAB.hold()
}

impl slot::Bench for Lab {
    fn node(&self) -> &Node {
        &self.node
    }
}

fn start() -> Result<Lab> {
    let web = Web::start(PAGE)?;
    let config = Config::new("lab")?;
    config.file("nulld.toml", NULLD_TOML)?;
    for (path, manifest) in MANIFESTS {
        config.file(path, manifest)?;
    }
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("2G")?),
        memory_mib: 2048,
        forwards: vec![("10.0.2.100:80".into(), web.port)],
        key: config.keys.operator.clone(),
        ..Machine::bare("lab", system_tests::test_iso()?, &config)
    };
    let node = Node::boot(machine)?;
    Ok(Lab { node, config, web })
}

impl Lab {
    /// Starts an agent unless it runs.
    pub fn running(&self, agent: &str) -> Result<()> {
        if self.state(agent)? != "running" {
            self.node.json(&["agent", "start", agent])?;
        }
        Ok(())
    }

    /// The agent's state.
    pub fn state(&self, agent: &str) -> Result<String> {
        let status = self.node.json(&["agent", "status", agent])?;
        Ok(status["summary"]["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until an agent is in a state.
    pub fn wait_state(&self, agent: &str, state: &str, limit: Duration) -> Result<()> {
        eventually(limit, &format!("{agent} is {state}"), || Ok(self.state(agent)? == state))
    }

    /// Runs the probe inside an agent's guest; what it printed last.
    pub fn probe(&self, agent: &str, arguments: &[&str]) -> Result<Value> {
        self.running(agent)?;
        let mut all = vec!["agent", "exec", agent, "--", "/usr/bin/python3", "/app/probe.py"];
        all.extend(arguments);
        let answer = self.node.ctl(&all)?.ok()?;
        let line = answer
            .stdout
            .lines()
            .last()
            .with_context(|| format!("the probe was silent: {}", answer.stderr))?;
        serde_json::from_str(line).with_context(|| format!("probe: {line}"))
    }

    /// The same for several attempts, in one process: in an emulated guest, Python takes seconds to start.
    pub fn probe_each<const N: usize>(&self, agent: &str, attempts: &[[&str; N]]) -> Result<Vec<Value>> {
        let all: Vec<&[&str]> = attempts.iter().map(<[&str; N]>::as_slice).collect();
        let found = self.probe(agent, &["each", &serde_json::to_string(&all)?])?;
        let each = found["each"].as_array().with_context(|| format!("no answers: {found}"))?;
        ensure!(each.len() == all.len(), "{found}");
        Ok(each.clone())
    }

    /// Each of several attempts is refused.
    pub fn refused_each<const N: usize>(&self, agent: &str, attempts: &[[&str; N]]) -> Result<()> {
        for (attempt, found) in attempts.iter().zip(self.probe_each(agent, attempts)?) {
            refused(&found).with_context(|| attempt.join(" "))?;
        }
        Ok(())
    }

    /// Whether a denial of an agent holds both texts, by now or soon.
    pub fn denied(&self, agent: &str, what: &str, rule: &str) -> Result<()> {
        let mut last = Value::Null;
        let found = eventually(Duration::from_secs(20), "the denial is listed", || {
            last = self.node.json(&["net", "denials", "--agent", agent])?;
            let list = last["denials"].as_array().cloned().unwrap_or_default();
            Ok(list.iter().any(|denial| {
                let has = |field: &str, text: &str| {
                    denial[field].as_str().is_some_and(|value| value.contains(text))
                };
                let named = denial["instance"].as_str().is_some_and(|i| i.starts_with(&format!("{agent}.")));
                has("what", what)
                    && has("rule", rule)
                    && named
                    && denial["remedy"].as_str().is_some_and(|r| !r.is_empty())
            }))
        });
        found.with_context(|| format!("no denial of {agent} with `{what}` by `{rule}` in {last}"))
    }
}

/// How much longer than on an idle machine something may take: others run beside, and each of a guest's steps is emulated twice.
const SLOW_MACHINE: u32 = 3;

/// Asks again, five times a second, until the answer is yes; `limit` is an idle machine's. The first error that persists to the end
/// is told, and at once if it is a node that answers nothing any more.
pub fn eventually(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit * SLOW_MACHINE;
    loop {
        let answer = ask();
        match answer {
            Ok(true) => return Ok(()),
            Err(error) if error.is::<Gone>() => return Err(error),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not in time: {what}")));
            }
            Ok(false) if Instant::now() >= deadline => bail!("not in time: {what}"),
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Fails unless a probe ended in an error, and soon: a refusal must not be a hang.
pub fn refused(found: &Value) -> Result<()> {
    ensure!(found["error"].is_string(), "it went through: {found}");
    ensure!(found["ms"].as_u64().is_some_and(|ms| ms < 10_000), "it hung: {found}");
    Ok(())
}

const NULLD_TOML: &str = r#"
[node]
name = "lab"

[network.hosts]
"web.test" = ["10.0.2.100"]
"other.test" = ["10.0.2.100"]

[services.fault]
path = "/system/bin/fault"
unconfined = true
needs = ["cage"]
capabilities = ["kill", "dac_read_search", "dac_override", "sys_admin", "sys_ptrace", "sys_tty_config"]
"#;

const MANIFESTS: &[(&str, &str)] = &[
    (
        "agents/tester/AGENT.toml",
        r#"
[agent]
name = "tester"
version = "1.0.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/idle.py"]
env = { GREETING = "hello" }

[capabilities]
shell = false
max_cpu_percent = 100
max_memory_mb = 192
network.allow = ["web.test:80"]
filesystem.read = ["/data"]
filesystem.write = ["/data/out"]
memory.share_read = ["neighbour:shared/", "hermit:offered/"]
memory.share_write = ["neighbour:inbox/"]
"#,
    ),
    (
        "agents/neighbour.toml",
        r#"
[agent]
name = "neighbour"
version = "1.0.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/idle.py"]

[capabilities]
max_memory_mb = 160
network.allow = ["other.test:80"]
memory.read = ["tester:shared/", "tester:wished/"]
memory.write = ["tester:inbox/"]
"#,
    ),
    (
        "agents/hermit.toml",
        r#"
[agent]
name = "hermit"
version = "1.0.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/idle.py"]

[capabilities]
max_memory_mb = 160
"#,
    ),
    (
        "agents/once.toml",
        r#"
[agent]
name = "once"
version = "1.0.0"
rootfs = "python"
command = ["/usr/bin/python3", "/app/once.py"]

[capabilities]
max_memory_mb = 160
"#,
    ),
    (
        "agents/wrong-value.toml",
        "[agent]\nname = \"wrong-value\"\nversion = \"1\"\nrootfs = \"python\"\ncommand = [\"/x\"]\n[capabilities]\nmax_cpu_percent = 0\n",
    ),
    (
        "agents/wrong-field.toml",
        "[agent]\nname = \"wrong-field\"\nversion = \"1\"\nrootfs = \"python\"\ncommand = [\"/x\"]\ncolour = \"red\"\n",
    ),
    (
        "agents/not-enforced.toml",
        "[agent]\nname = \"not-enforced\"\nversion = \"1\"\nrootfs = \"python\"\ncommand = [\"/x\"]\n[tools]\nrm = { risk = \"low\" }\n",
    ),
    ("agents/no-toml.toml", "[agent\n"),
    (
        "agents/no-rootfs.toml",
        "[agent]\nname = \"no-rootfs\"\nversion = \"1\"\nrootfs = \"nowhere\"\ncommand = [\"/x\"]\n",
    ),
];
