//! Ways around the network's rules, one test each, tried by an agent in a real guest. The node's uplink leads to a test internet
//! (src/internet.rs) that has every address an attack could want, and tells what reached it. What needs frames no agent can send is in
//! egress' tests/bypass.rs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::fixture::{self, Config};
use system_tests::internet::Internet;
use system_tests::node::{Machine, Node, Oddities};

use crate::shared::eventually;
use crate::slot::{self, Slot};
use crate::trial;

mod rows;

use rows::{
    ADDRESS_ROWS, BROKER, BROKER_ROWS, DNS_ROWS, PROTOCOL_ROWS, Row, SECRET, fails, http_refused, served,
    unanswered,
};

/// A node, the internet it sees, and what it was made from.
pub struct Bench {
    pub node: Node,
    pub internet: Internet,
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
    let mut all = vec![trial("bypass::what_is_granted_works", what_is_granted_works)];
    let groups = [
        ("dns", DNS_ROWS, "prey"),
        ("address", ADDRESS_ROWS, "prey"),
        ("protocol", PROTOCOL_ROWS, "prey"),
        ("broker", BROKER_ROWS, "client"),
    ];
    for (group, rows, agent) in groups {
        all.extend(
            rows.iter().map(|row| trial(&format!("bypass::{group}_{}", row.name), || row.try_it(agent))),
        );
    }
    all.extend([
        trial("bypass::secret_reaches_its_host_and_nothing_else_has_it", secret_reaches_its_host_only),
        trial("bypass::budget_holds_however_many_ask_at_once", budget_holds),
        trial("bypass::revoked_grant_cuts_an_open_flow", revoked_grant),
        trial("bypass::egress_killed_with_an_open_flow", killed_egress),
        trial("bypass::rules_flushed_by_an_outsider_come_back", flushed_rules),
        trial("bypass::tunnel_through_an_allowed_wildcard_is_bounded", tunnel_through_a_wildcard),
        trial("bypass::name_that_turns_inward_is_refused_when_it_does", rebinding),
        trial("bypass::another_agents_synthetic_address", another_agents_address),
        trial("bypass::slow_head_is_cut", slow_head),
        trial("bypass::flood_of_connections_is_bounded", flood_of_connections),
    ]);
    all
}

impl Row {
    fn try_it(&self, agent: &str) -> Result<()> {
        let bench = BENCH.hold()?;
        let before = bench.internet.seen()?.len();
        let found = bench.attempt(agent, self.attempt)?;
        ensure!((self.holds)(&found), "{found}");
        ensure!(!found.to_string().contains(SECRET), "the guest has the secret: {found}");
        if let Some((what, rule)) = self.denied {
            bench.denied(agent, what, rule)?;
        }
        let seen = bench.internet.seen()?;
        let reached: Vec<_> =
            seen[before..].iter().filter(|line| self.unseen.iter().any(|text| line.contains(text))).collect();
        ensure!(reached.is_empty(), "the internet saw {reached:?}");
        Ok(())
    }
}

const NULLD_TOML: &str = r#"
[prices."paid"]
input = 1000000
cache_read = 100000
cache_write = 1250000
output = 4000000
input_tokens_max = 8000
output_tokens_max = 1000
[node]
name = "bypass"
[network]
mode = "static"
address = "192.0.2.5/24"
gateway = "192.0.2.1"
dns = ["203.0.113.53"]
"#;

fn start() -> Result<Bench> {
    let config = Config::new("bypass")?;
    let dns = json!({
        "web.test": [["203.0.113.10"]], "other.test": [["203.0.113.11"]], "api.test": [["203.0.113.20"]],
        "evil.test": [["203.0.113.66"]], "rebind.test": [["203.0.113.10"], ["10.9.9.9"]],
        "alias.test": [["=cdn.example", "203.0.113.10"]], "inward.test": [["=internal.example", "10.9.9.9"]],
        "loop.test": [["=a.example", "=b.example", "=c.example", "=d.example", "=e.example", "=f.example", "=g.example",
                       "=h.example", "=i.example", "=j.example", "203.0.113.10"]],
        "metadata.test": [["169.254.169.254"]],
    });
    let internet = Internet::start(config.dir().join("internet"), &dns)?;
    let authority = internet.authority()?;
    let nulld = format!("{NULLD_TOML}authorities = ['''{authority}''']\n{}", crate::faults::SABOTEUR);
    config.file("nulld.toml", &nulld)?;
    let manifest = |name: &str, allow: &str| {
        format!(
            "[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"python\"\n\
             command = [\"/usr/bin/python3\", \"/app/idle.py\"]\n\
             [capabilities]\nmax_memory_mb = 160\nnetwork.allow = [{allow}]\n"
        )
    };
    let prey = "\"web.test\", \"*.cdn.test\", \"rebind.test:80\", \"alias.test:80\", \"inward.test:80\", \"loop.test:80\", \
                \"metadata.test:80\"";
    config.file("agents/prey.toml", &manifest("prey", prey))?;
    let client = "\"api.test\", \"evil.test\", \"web.test\"";
    let spends = "credential_refs = [\"API_KEY\"]\nmax_api_calls_per_hour = 1000\n\
                  budget = { period = \"total\", max_output_tokens = 5000, max_micro_dollars = 1000000 }\n";
    config.file("agents/client.toml", &format!("{}{spends}", manifest("client", client)))?;
    config.file("agents/neighbour.toml", &manifest("neighbour", "\"other.test\", \"*.cdn.test\""))?;
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("1G")?),
        memory_mib: 2048,
        key: config.keys.admin.clone(),
        ..Machine::bare("bypass", system_tests::test_iso()?, &config)
    };
    let odd = Oddities {
        network: Some(internet.netdev()),
        gate_port: Some(internet.gate_port),
        ..Oddities::default()
    };
    let node = Node::boot_odd(machine, &odd)?;
    let file = config.dir().join("api.key");
    std::fs::write(&file, SECRET)?;
    let file = file.display().to_string();
    node.json(&["secret", "set", "API_KEY", "--host", "api.test", "--api", "openai", "--file", &file])?;
    Ok(Bench { node, internet, _config: config })
}

impl Bench {
    /// Runs one of /app/bypass.py's attempts in an agent's guest; what it printed last.
    pub fn attempt(&self, agent: &str, arguments: &[&str]) -> Result<Value> {
        let status = self.node.json(&["agent", "status", agent])?;
        if status["summary"]["state"] != "running" {
            self.node.json(&["agent", "start", agent])?;
        }
        let mut all = vec!["agent", "exec", agent, "--", "/usr/bin/python3", "/app/bypass.py"];
        all.extend(arguments);
        let answer = self.node.ctl(&all)?.ok()?;
        let line = answer.stdout.lines().last().with_context(|| format!("silence: {}", answer.stderr))?;
        serde_json::from_str(line).with_context(|| format!("attempt: {line}"))
    }

    /// Waits for a denial of an agent by this rule that mentions `what`.
    pub fn denied(&self, agent: &str, what: &str, rule: &str) -> Result<()> {
        let mut last = Value::Null;
        let found = eventually(Duration::from_secs(20), "the denial is listed", || {
            last = self.node.json(&["net", "denials", "--agent", agent])?;
            let has = |denial: &Value, field: &str, text: &str| {
                denial[field].as_str().is_some_and(|v| v.contains(text))
            };
            let denials = last["denials"].as_array().context("no denials")?;
            Ok(denials.iter().any(|d| has(d, "what", what) && d["rule"] == rule && d["remedy"] != ""))
        });
        found.with_context(|| format!("no denial `{rule}` of `{what}` in {last}"))
    }
}

/// The rows below mean nothing if nothing works.
fn what_is_granted_works() -> Result<()> {
    let bench = BENCH.hold()?;
    let get = "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nConnection: close\\r\\n\\r\\n";
    let plain = bench.attempt("prey", &["raw", "web.test", "80", get, "3"])?;
    ensure!(
        plain["response"].as_str().is_some_and(|r| r.contains("hello from 203.0.113.10 by http")),
        "{plain}"
    );
    let tls = bench.attempt("prey", &["tls", "web.test", "443", "web.test"])?;
    ensure!(tls["response"].as_str().is_some_and(|r| r.contains("hello from 203.0.113.10 by tls")), "{tls}");
    let alias = "GET / HTTP/1.1\\r\\nHost: alias.test\\r\\n\\r\\n";
    let alias = bench.attempt("prey", &["raw", "alias.test", "80", alias, "3"])?;
    ensure!(alias["response"].as_str().is_some_and(|r| r.contains("hello from 203.0.113.10")), "{alias}");
    let seen = bench.internet.seen()?;
    ensure!(seen.iter().any(|line| line == "dns web.test"), "{seen:?}");
    let back = bench.attempt("prey", &["dns", "web.test"])?["addresses"].clone();
    ensure!(
        back[0].as_str().is_some_and(|a| a.starts_with("198.1")) && back[1].is_null(),
        "a real address leaked: {back}"
    );
    Ok(())
}

fn tunnel_through_a_wildcard() -> Result<()> {
    let bench = BENCH.hold()?;
    let before = bench.internet.seen()?.len();
    let found = bench.attempt("neighbour", &["tunnel", "cdn.test", "150"])?;
    ensure!(found["there"].as_u64() == Some(64) && found["refused"].as_u64() == Some(86), "{found}");
    bench.denied("neighbour", "cdn.test", "limit")?;
    let seen = bench.internet.seen()?;
    ensure!(!seen[before..].iter().any(|line| line.contains("cdn.test")), "{:?}", &seen[before..]);
    Ok(())
}

fn rebinding() -> Result<()> {
    let bench = BENCH.hold()?;
    let get = "GET / HTTP/1.1\\r\\nHost: rebind.test\\r\\nConnection: close\\r\\n\\r\\n";
    let first = bench.attempt("prey", &["raw", "rebind.test", "80", get, "3"])?;
    ensure!(first["response"].as_str().is_some_and(|r| r.contains("hello from 203.0.113.10")), "{first}");
    let before = bench.internet.seen()?.len();
    let second = bench.attempt("prey", &["raw", "rebind.test", "80", get, "3"])?;
    ensure!(http_refused(&second), "{second}");
    bench.denied("prey", "rebind.test:80 at 10.9.9.9", "private-address")?;
    let seen = bench.internet.seen()?;
    ensure!(!seen[before..].iter().any(|line| line.contains("connect")), "{:?}", &seen[before..]);
    Ok(())
}

fn another_agents_address() -> Result<()> {
    let bench = BENCH.hold()?;
    let theirs = bench.attempt("neighbour", &["dns", "other.test"])?["addresses"][0]
        .as_str()
        .context("no address")?
        .to_owned();
    let before = bench.internet.seen()?.len();
    let get = "GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n";
    let found = bench.attempt("prey", &["raw", &theirs, "80", get, "3"])?;
    ensure!(unanswered(&found), "{found}");
    bench.denied("prey", &format!("{theirs}:80"), "raw-address")?;
    let seen = bench.internet.seen()?;
    ensure!(!seen[before..].iter().any(|line| line.contains("connect")), "{:?}", &seen[before..]);
    Ok(())
}

fn slow_head() -> Result<()> {
    let bench = BENCH.hold()?;
    let before = bench.internet.seen()?.len();
    let found = bench.attempt("prey", &["slowloris", "web.test", "80", "web.test"])?;
    ensure!(found["cut_after"].as_f64().is_some_and(|after| after < 45.0), "{found}");
    bench.denied("prey", "not whole in time", "limit")?;
    let seen = bench.internet.seen()?;
    ensure!(!seen[before..].iter().any(|line| line.contains("connect")), "{:?}", &seen[before..]);
    Ok(())
}

fn flood_of_connections() -> Result<()> {
    let bench = BENCH.hold()?;
    let found = bench.attempt("prey", &["flood", "web.test", "80", "300", "256"])?;
    ensure!(found["kept"].as_u64().is_some_and(|kept| (1..=256).contains(&kept)), "{found}");
    ensure!(found["reset"].as_u64() > Some(0), "{found}");
    bench.denied("prey", "connections", "limit")?;
    // The neighbour is served all the same.
    let get = "GET / HTTP/1.1\\r\\nHost: other.test\\r\\nConnection: close\\r\\n\\r\\n";
    let found = bench.attempt("neighbour", &["raw", "other.test", "80", get, "3"])?;
    ensure!(found["response"].as_str().is_some_and(|r| r.contains("hello from 203.0.113.11")), "{found}");
    Ok(())
}

/// A call works, its host has the secret, and it stands nowhere else: guest, logs, ledger, answers.
fn secret_reaches_its_host_only() -> Result<()> {
    let bench = BENCH.hold()?;
    let body = "{\"model\":\"paid\",\"max_tokens\":10,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
    let call = format!(
        "POST /v1/chat/completions HTTP/1.1\\r\\nHost: {BROKER}\\r\\nContent-Type: application/json\\r\\nContent-Length: {}\\r\\n\\r\\n{body}",
        body.len()
    );
    let found = bench.attempt("client", &["raw", BROKER, "80", &call])?;
    ensure!(served(&found), "{found}");
    ensure!(
        bench
            .internet
            .seen()?
            .iter()
            .any(|line| line.contains("/v1/chat/completions") && line.contains(SECRET)),
        "no key"
    );
    let spent = bench.node.json(&["net", "budget", "client"])?;
    ensure!(
        spent["agents"][0]["used"]["output_tokens"] == 5 && spent["agents"][0]["used"]["input_tokens"] == 7,
        "{spent}"
    );
    let environment = bench.attempt("client", &["environment"])?;
    ensure!(environment["OPENAI_BASE_URL"] == format!("http://{BROKER}/v1"), "{environment}");
    let told = [
        vec!["ledger", "tail", "--limit", "1000"],
        vec!["system", "logs", "egress", "-n", "1000"],
        vec!["system", "logs", "nulld", "-n", "1000"],
        vec!["system", "logs", "nullgate", "-n", "1000"],
        vec!["secret", "list"],
        vec!["net", "denials"],
        vec!["net", "budget"],
        vec!["agent", "status", "client"],
        vec!["agent", "logs", "client"],
    ];
    for command in told {
        let answer = bench.node.ctl(&[vec!["--json"], command.clone()].concat())?.ok()?;
        ensure!(
            !answer.stdout.contains(SECRET) && !answer.stderr.contains(SECRET),
            "{command:?} tells the secret"
        );
    }
    ensure!(
        !environment.to_string().contains(SECRET) && !bench.node.console().contains(SECRET),
        "the secret is told"
    );
    let files = bench.node.fault("list /state/egress/secrets")?;
    ensure!(files.contains("API_KEY"), "{files}");
    let kept = bench.node.fault("read /state/egress/secrets/API_KEY.json")?;
    ensure!(!kept.contains(SECRET) && kept.contains("api.test"), "{kept}");
    Ok(())
}

/// 16 at once want more than there is.
fn budget_holds() -> Result<()> {
    let bench = BENCH.hold()?;
    let found = bench.attempt("client", &["spend", BROKER, "16", "800"])?;
    let spent = bench.node.json(&["net", "budget", "client"])?;
    let spent = &spent["agents"][0];
    let sum = |of: &str| spent[of]["output_tokens"].as_u64().unwrap_or(u64::MAX);
    ensure!(sum("used") + sum("reserved") <= 5000, "{spent}");
    ensure!(found["refused"].as_u64() > Some(0) && found["served"].as_u64() > Some(0), "{found}");
    bench.denied("client", "output", "budget")
}

/// Begins `hold` in a guest and returns when the connection stands; what it finds comes over the channel.
fn held(bench: &Bench, agent: &str, arguments: &[&str]) -> Result<std::sync::mpsc::Receiver<Value>> {
    let status = bench.node.json(&["agent", "status", agent])?;
    if status["summary"]["state"] != "running" {
        bench.node.json(&["agent", "start", agent])?;
    }
    let mut all = vec!["agent", "exec", agent, "--", "/usr/bin/python3", "/app/bypass.py", "hold"];
    all.extend(arguments);
    let mut command = bench.node.command(&bench.node.machine.key, &bench.node.fingerprint()?, &all)?;
    let mut child =
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).spawn()?;
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().context("no output")?));
    let (send, receive) = std::sync::mpsc::channel();
    let first = lines.next().context("no word of the guest")??;
    ensure!(first.contains("held"), "{first}");
    std::thread::spawn(move || {
        let last = lines.map_while(std::io::Result::ok).last().unwrap_or_default();
        let _ = child.wait(); // its output has ended
        let _ = send.send(serde_json::from_str(&last).unwrap_or(Value::Null)); // the test may have failed
    });
    Ok(receive)
}

const SLOW: &str = "GET /slow HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n";

fn revoked_grant() -> Result<()> {
    let bench = BENCH.hold()?;
    let flow = held(&bench, "prey", &["web.test", "80", SLOW])?;
    eventually(Duration::from_secs(20), "the flow stands", || {
        Ok(bench.internet.seen()?.iter().any(|line| line.contains("/slow")))
    })?;
    let changed = bench.node.json(&["net", "revoke", "prey", "web.test"])?;
    ensure!(changed["cut"] == 1, "{changed}");
    let found = flow.recv_timeout(Duration::from_secs(30)).context("the flow goes on")?;
    ensure!(found["cut"].is_string() && found["cut"] != "data", "{found}");
    let explained = bench.node.ctl(&["--json", "net", "explain", "prey", "web.test:80"])?;
    ensure!(explained.status == 1 && explained.json()?["allowed"] == false, "{}", explained.stdout);
    let gone = bench.attempt("prey", &["dns", "web.test"])?;
    ensure!(gone["code"] == 3, "{gone}");
    bench.node.json(&["net", "lift", "prey", "web.test"])?;
    let get = "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nConnection: close\\r\\n\\r\\n";
    let back = bench.attempt("prey", &["raw", "web.test", "80", get, "3"])?;
    ensure!(back["response"].as_str().is_some_and(|r| r.contains("hello")), "{back}");
    Ok(())
}

fn killed_egress() -> Result<()> {
    let bench = BENCH.hold()?;
    let flow = held(&bench, "prey", &["web.test", "80", SLOW])?;
    let before = bench.node.json(&["net", "budget", "client"])?["agents"][0]["used"].clone();
    ensure!(bench.node.fault("signal 9 egress")? == "1", "egress is not one process");
    let found = flow.recv_timeout(Duration::from_secs(30)).context("the flow outlives egress")?;
    ensure!(found["cut"].is_string() && found["cut"] != "data", "{found}");
    let get = "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nConnection: close\\r\\n\\r\\n";
    eventually(Duration::from_secs(90), "the granted name is reached again", || {
        let found = bench.attempt("prey", &["raw", "web.test", "80", get, "3"])?;
        Ok(found["response"].as_str().is_some_and(|r| r.contains("hello")))
    })?;
    let refused = bench.attempt("prey", &["raw", "8.8.8.8", "443", "x"])?;
    ensure!(fails(&refused), "{refused}");
    let grants = bench.node.json(&["net", "grants"])?;
    let prey = grants["agents"]
        .as_array()
        .context("no agents")?
        .iter()
        .find(|a| a["instance"].as_str().is_some_and(|name| name.starts_with("prey.")));
    let prey = prey.context("prey has no network")?;
    ensure!(prey["connections"] == 0 && prey["connections_total"].as_u64() > Some(0), "{prey}");
    let after = &bench.node.json(&["net", "budget", "client"])?["agents"][0]["used"];
    ensure!(
        after["output_tokens"] == before["output_tokens"]
            && after["micro_dollars"] == before["micro_dollars"],
        "{before} {after}"
    );
    Ok(())
}

/// In the node's namespace and in the guest's.
fn flushed_rules() -> Result<()> {
    let bench = BENCH.hold()?;
    let get = "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nConnection: close\\r\\n\\r\\n";
    bench.attempt("prey", &["raw", "web.test", "80", get, "3"])?;
    let processes = bench.node.fault("ps")?;
    let vmms: Vec<&str> = processes
        .lines()
        .filter(|line| line.ends_with("libkrun"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(!vmms.is_empty(), "no VMM in {processes}");
    bench.node.fault("flush-rules")?;
    for pid in vmms {
        bench.node.fault(&format!("flush-rules {pid}"))?;
    }
    eventually(Duration::from_secs(30), "the ledger tells of it", || {
        let page = bench.node.json(&["ledger", "tail", "--limit", "200"])?;
        Ok(page.to_string().matches("firewall_restored").count() >= 2)
    })?;
    let before = bench.internet.seen()?.len();
    for (host, port) in
        [("8.8.8.8", "443"), ("203.0.113.10", "80"), ("100.64.0.1", "4466"), ("192.0.2.5", "4466")]
    {
        let found = bench.attempt("prey", &["raw", host, port, "x"])?;
        ensure!(fails(&found), "{host}:{port} {found}");
    }
    let seen = bench.internet.seen()?;
    ensure!(!seen[before..].iter().any(|line| line.contains("connect")), "{:?}", &seen[before..]);
    let back = bench.attempt("prey", &["raw", "web.test", "80", get, "3"])?;
    ensure!(back["response"].as_str().is_some_and(|r| r.contains("hello")), "{back}");
    Ok(())
}
