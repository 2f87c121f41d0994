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

/// An attack and what must come of it.
struct Row {
    name: &'static str,
    /// What the guest's /app/bypass.py is asked to do.
    attempt: &'static [&'static str],
    /// Whether what it found is what a refusal looks like.
    holds: fn(&Value) -> bool,
    /// A denial that must be recorded: what it is about, and its rule.
    denied: Option<(&'static str, &'static str)>,
    /// What must not have reached the internet.
    unseen: &'static [&'static str],
}

/// It ended in an error, and soon.
fn fails(found: &Value) -> bool {
    found["error"].is_string() && found["ms"].as_u64().is_some_and(|ms| ms < 15_000)
}

/// The name does not exist, and the answer says why.
fn explained(found: &Value) -> bool {
    found["code"] == 3
        && found["records"] == 0
        && found["error"].as_str().is_some_and(|why| why.contains("network.allow"))
}

/// Refused over HTTP with the reason, and nothing from the host.
fn http_refused(found: &Value) -> bool {
    let response = found["response"].as_str().unwrap_or_default();
    response.contains("NullBox refused") && response.contains("remedy: ") && !response.contains("hello from")
}

/// Ended, without an answer of any host.
fn unanswered(found: &Value) -> bool {
    fails(found) || found["response"].as_str().is_some_and(|response| !response.contains("hello from"))
}

/// A TLS alert: unrecognized_name or access_denied, fatal (RFC 8446 section 6).
fn alerted(found: &Value) -> bool {
    fails(found) || found["alert"].as_str().is_some_and(|alert| matches!(alert, "0270" | "0231"))
}

const fn row(
    name: &'static str,
    attempt: &'static [&'static str],
    holds: fn(&Value) -> bool,
    denied: Option<(&'static str, &'static str)>,
    unseen: &'static [&'static str],
) -> Row {
    Row { name, attempt, holds, denied, unseen }
}

const DNS_ROWS: &[Row] = &[
    row(
        "name_without_a_grant",
        &["dns", "evil.test"],
        explained,
        Some(("evil.test", "name-not-granted")),
        &["dns "],
    ),
    row(
        "tunnel_through_a_denied_suffix",
        &["tunnel", "evil.test", "60"],
        |found| found["there"] == 0 && found["refused"] == 60,
        Some(("evil.test", "name-not-granted")),
        &["dns "],
    ),
    row(
        "long_label_under_a_wildcard",
        &["dns", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.cdn.test"],
        explained,
        Some(("cdn.test", "name-not-granted")),
        &["dns "],
    ),
    row("labels_below_a_wildcards_label", &["dns", "data.more.cdn.test"], explained, None, &["dns "]),
    row(
        "text_record_of_a_granted_name",
        &["dns", "web.test", "16"],
        |f| f["code"] == 0 && f["records"] == 0,
        None,
        &["dns "],
    ),
    row(
        "ipv6_record_of_a_granted_name",
        &["dns", "web.test", "28"],
        |f| f["code"] == 0 && f["records"] == 0,
        None,
        &["dns "],
    ),
    row(
        "https_record_of_a_granted_name",
        &["dns", "web.test", "65"],
        |f| f["code"] == 0 && f["records"] == 0,
        None,
        &["dns "],
    ),
    row(
        "direct_dns_to_8_8_8_8",
        &["dns", "web.test", "1", "8.8.8.8"],
        fails,
        Some(("udp 8.8.8.8:53", "protocol")),
        &["8.8.8.8"],
    ),
    row(
        "direct_dns_to_the_uplinks_resolver",
        &["dns", "web.test", "1", "203.0.113.53"],
        fails,
        None,
        &["dns ", "203.0.113.53"],
    ),
    row(
        "dns_over_tcp_to_8_8_8_8",
        &["dns_tcp", "web.test", "8.8.8.8"],
        fails,
        Some(("8.8.8.8:53", "raw-address")),
        &["8.8.8.8"],
    ),
    row(
        "dns_over_https",
        &["tls", "8.8.8.8", "443", "dns.google"],
        fails,
        Some(("8.8.8.8:443", "raw-address")),
        &["8.8.8.8"],
    ),
    row(
        "dns_over_https_by_name",
        &["tls", "dns.google", "443", "dns.google"],
        fails,
        Some(("dns.google", "name-not-granted")),
        &["dns "],
    ),
    row(
        "dns_over_tls",
        &["raw", "8.8.8.8", "853", "x"],
        fails,
        Some(("8.8.8.8:853", "raw-address")),
        &["8.8.8.8"],
    ),
    row(
        "dns_over_tls_to_a_granted_name",
        &["raw", "web.test", "853", "x"],
        unanswered,
        Some(("web.test:853", "port-not-granted")),
        &[":853"],
    ),
    row("dns_over_quic", &["dns", "web.test", "1", "8.8.8.8", "853"], fails, None, &[":853"]),
    row("multicast_dns", &["multicast", "224.0.0.251", "5353"], fails, None, &[":5353"]),
    row(
        "link_local_multicast_name_resolution",
        &["multicast", "224.0.0.252", "5355"],
        fails,
        None,
        &[":5355"],
    ),
];

const ADDRESS_ROWS: &[Row] = &[
    row(
        "raw_ipv4",
        &["raw", "203.0.113.10", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row(
        "decimal_ipv4",
        &["raw", "3405803786", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row(
        "hexadecimal_ipv4",
        &["raw", "0xcb.0x0.0x71.0xa", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row(
        "octal_ipv4",
        &["raw", "0313.0.0161.012", "80", "x"],
        fails,
        Some(("203.0.113.10:80", "raw-address")),
        &["connect"],
    ),
    row("mapped_ipv4", &["raw", "::ffff:203.0.113.10", "80", "x"], fails, None, &["connect"]),
    row("ipv6", &["raw", "2001:db8::1", "80", "x"], fails, None, &["connect"]),
    row("link_local_ipv6", &["raw", "fe80::1%eth0", "80", "x"], fails, None, &["connect"]),
    row("icmp", &["icmp", "203.0.113.10"], fails, None, &["connect"]),
    row("packet_socket", &["packet_socket"], fails, None, &[]),
    row("quic_to_a_granted_name", &["dns", "web.test", "1", "web.test", "443"], fails, None, &["udp "]),
    row(
        "metadata_service",
        &["raw", "169.254.169.254", "80", "x"],
        fails,
        Some(("169.254.169.254:80", "raw-address")),
        &["169.254"],
    ),
    row("metadata_service_of_another_cloud", &["raw", "168.63.129.16", "80", "x"], fails, None, &["168.63"]),
    row(
        "metadata_service_in_carrier_space",
        &["raw", "100.100.100.200", "80", "x"],
        fails,
        None,
        &["100.100"],
    ),
    row(
        "granted_name_that_is_the_metadata_service",
        &["raw", "metadata.test", "80", "GET / HTTP/1.1\\r\\nHost: metadata.test\\r\\n\\r\\n"],
        http_refused,
        Some(("169.254.169.254", "private-address")),
        &["connect"],
    ),
    row(
        "granted_name_whose_alias_leads_inward",
        &["raw", "inward.test", "80", "GET / HTTP/1.1\\r\\nHost: inward.test\\r\\n\\r\\n"],
        http_refused,
        Some(("10.9.9.9", "private-address")),
        &["connect"],
    ),
    row(
        "granted_name_with_endless_aliases",
        &["raw", "loop.test", "80", "GET / HTTP/1.1\\r\\nHost: loop.test\\r\\n\\r\\n"],
        unanswered,
        None,
        &["connect"],
    ),
    row(
        "gate_of_the_node",
        &["raw", "100.64.0.1", "4466", "x"],
        fails,
        Some(("100.64.0.1:4466", "raw-address")),
        &[],
    ),
    row("proxy_of_the_node", &["raw", "100.64.0.1", "15001", "x"], fails, None, &["connect"]),
    row(
        "uplink_address_of_the_node",
        &["raw", "192.0.2.5", "4466", "x"],
        fails,
        Some(("192.0.2.5:4466", "raw-address")),
        &[],
    ),
    row("neighbour_on_the_uplink", &["raw", "192.0.2.1", "80", "x"], fails, None, &["connect"]),
    row(
        "port_without_a_grant",
        &["raw", "web.test", "22", "x"],
        unanswered,
        Some(("web.test:22", "port-not-granted")),
        &["connect"],
    ),
];

const PROTOCOL_ROWS: &[Row] = &[
    row(
        "sni_of_another_name",
        &["tls", "web.test", "443", "other.test"],
        fails,
        Some(("sni other.test", "sni-mismatch")),
        &["connect"],
    ),
    row("no_sni", &["tls", "web.test", "443", ""], fails, Some(("web.test:443", "no-sni")), &["connect"]),
    row(
        "sni_of_another_name_in_many_packets",
        &["split_hello", "web.test", "443", "other.test"],
        alerted,
        Some(("sni other.test", "sni-mismatch")),
        &["connect"],
    ),
    row(
        "encrypted_client_hello",
        &["ech", "web.test", "443", "web.test"],
        alerted,
        Some(("encrypted client hello", "protocol")),
        &["connect"],
    ),
    row(
        "no_tls_on_443",
        &["raw", "web.test", "443", "GET / HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n"],
        unanswered,
        Some(("web.test:443", "protocol")),
        &["connect"],
    ),
    row(
        "no_http_on_80",
        &["raw", "web.test", "80", "SSH-2.0-x\\r\\n"],
        unanswered,
        Some(("web.test:80", "protocol")),
        &["connect"],
    ),
    row(
        "host_of_another_name",
        &["raw", "web.test", "80", "GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n"],
        http_refused,
        Some(("host other.test", "host-mismatch")),
        &["connect"],
    ),
    row(
        "host_of_another_name_in_the_second_request",
        &[
            "raw",
            "web.test",
            "80",
            "GET / HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\nGET /second HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n",
        ],
        |found| !found["response"].as_str().unwrap_or("for other.test").contains("for other.test"),
        Some(("host other.test", "host-mismatch")),
        &["/second"],
    ),
    row(
        "absolute_form_of_another_name",
        &["raw", "web.test", "80", "GET http://other.test/ HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n"],
        http_refused,
        Some(("host other.test", "host-mismatch")),
        &["connect"],
    ),
    row(
        "connect_method",
        &["raw", "web.test", "80", "CONNECT other.test:443 HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n"],
        http_refused,
        Some(("CONNECT", "protocol")),
        &["connect"],
    ),
    row(
        "http2_by_prior_knowledge",
        &["raw", "web.test", "80", "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"],
        http_refused,
        Some(("HTTP version", "protocol")),
        &["connect"],
    ),
    row(
        "upgrade_to_another_protocol",
        &[
            "raw",
            "web.test",
            "80",
            "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nUpgrade: h2c\\r\\nConnection: upgrade\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("upgrade", "protocol")),
        &["connect"],
    ),
    row(
        "two_lengths_of_one_request",
        &[
            "raw",
            "web.test",
            "80",
            "POST / HTTP/1.1\\r\\nHost: web.test\\r\\nContent-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("content length and chunks", "protocol")),
        &["connect"],
    ),
    row(
        "folded_field",
        &[
            "raw",
            "web.test",
            "80",
            "GET / HTTP/1.1\\r\\nHost: web.test\\r\\nX: 1\\r\\n Host: other.test\\r\\n\\r\\n",
        ],
        http_refused,
        Some(("web.test:80", "protocol")),
        &["connect"],
    ),
];

pub fn trials() -> Vec<Trial> {
    let mut all = vec![trial("bypass::what_is_granted_works", what_is_granted_works)];
    for (group, rows) in [("dns", DNS_ROWS), ("address", ADDRESS_ROWS), ("protocol", PROTOCOL_ROWS)] {
        all.extend(rows.iter().map(|row| trial(&format!("bypass::{group}_{}", row.name), || row.try_it())));
    }
    all.extend([
        trial("bypass::tunnel_through_an_allowed_wildcard_is_bounded", tunnel_through_a_wildcard),
        trial("bypass::name_that_turns_inward_is_refused_when_it_does", rebinding),
        trial("bypass::another_agents_synthetic_address", another_agents_address),
        trial("bypass::slow_head_is_cut", slow_head),
        trial("bypass::flood_of_connections_is_bounded", flood_of_connections),
    ]);
    all
}

impl Row {
    fn try_it(&self) -> Result<()> {
        let bench = BENCH.hold()?;
        let before = bench.internet.seen()?.len();
        let found = bench.attempt("prey", self.attempt)?;
        ensure!((self.holds)(&found), "{found}");
        if let Some((what, rule)) = self.denied {
            bench.denied("prey", what, rule)?;
        }
        let seen = bench.internet.seen()?;
        let reached: Vec<_> =
            seen[before..].iter().filter(|line| self.unseen.iter().any(|text| line.contains(text))).collect();
        ensure!(reached.is_empty(), "the internet saw {reached:?}");
        Ok(())
    }
}

const NULLD_TOML: &str = r#"
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
    let found = bench.attempt("prey", &["flood", "web.test", "80", "300"])?;
    ensure!(found["kept"].as_u64().is_some_and(|kept| (1..=256).contains(&kept)), "{found}");
    bench.denied("prey", "connections", "limit")?;
    // The neighbour is served all the same.
    let get = "GET / HTTP/1.1\\r\\nHost: other.test\\r\\nConnection: close\\r\\n\\r\\n";
    let found = bench.attempt("neighbour", &["raw", "other.test", "80", get, "3"])?;
    ensure!(found["response"].as_str().is_some_and(|r| r.contains("hello from 203.0.113.11")), "{found}");
    Ok(())
}
