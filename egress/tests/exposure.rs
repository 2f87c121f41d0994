//! What an agent has seen bounds where it may connect, and pages that cage fetches for it. Needs what tests/network.rs needs.

mod world;

use abi::control::{Explanation, Fetched, NetAttach, NetExposed};
use abi::ledger::Event;
use abi::network::{Api, NetworkGrant, SecretPolicy};
use abi::node::NodeConfig;
use abi::rpc::{Code, Incoming, Request, RpcError};
use abi::wire::Connection;
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout};
use std::time::{Duration, Instant};
use world::{World, wanted};

const SECRET: &str = "sk-live/4f9Q+fetch-Zx81";

fn asked(instance: &str, allow: &[&str], trusted: &[&str]) -> NetAttach {
    NetAttach {
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        trusted: trusted.iter().map(|text| text.parse().unwrap()).collect(),
        ..wanted(instance)
    }
}

/// The next line of a helper; empty at its end.
fn line_of(out: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    line
}

fn expose(world: &World, instance: &str, seen: &[&str]) -> Result<NetExposed, RpcError> {
    let told = world.ask_as(0, "net.expose", json!({ "instance": instance, "seen": seen }))?;
    Ok(serde_json::from_value(told).unwrap())
}

fn explain(world: &World, name: &str) -> Explanation {
    let asked = json!({ "agent": "a", "name": name, "port": 80 });
    serde_json::from_value(world.call("net.explain", asked)).unwrap()
}

/// A page as cage gets it: its bytes and what is said of them.
fn fetch(world: &World, instance: &str, url: &str, bytes_max: u64) -> Result<(Vec<u8>, Fetched), RpcError> {
    let params = json!({ "instance": instance, "url": url, "bytes_max": bytes_max, "wall_ms_max": 10_000 });
    let mut connection = Connection::connect(world.dir.join("run/egress.sock")).unwrap();
    connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
    connection.write_line(&Request::call(1, "net.fetch", params)).unwrap();
    let mut body = Vec::new();
    loop {
        let line = connection.read_line().unwrap().expect("an answer");
        match serde_json::from_str(&line).unwrap() {
            Incoming::Notification(note) => {
                let data = note.params["data"].as_str().unwrap();
                body.extend(base64::engine::general_purpose::STANDARD.decode(data).unwrap());
            }
            Incoming::Response(response) => {
                let fetched = match response.error {
                    Some(error) => return Err(error),
                    None => serde_json::from_value::<Fetched>(response.result.unwrap()).unwrap(),
                };
                assert_eq!(fetched.bytes, body.len() as u64);
                return Ok((body, fetched));
            }
        }
    }
}

#[test]
fn private_data_cuts_strangers_and_leaves_trusted_names() {
    let world = World::new();
    let lease = world.ask_network(&asked("a.1", &["web.test", "other.test"], &["other.test"]), None).unwrap();
    let guest = world.guest(&lease);
    assert!(guest.text("curl -sS -m 10 http://web.test/").contains("hello"));
    let told = expose(&world, "a.1", &[]).unwrap();
    assert_eq!(told.seen.to_string(), "untrusted_content", "a stranger's answer was heard");

    // Two connections are open when the private file is read; the trusted one goes on.
    let talk = |name: &str| {
        guest.spawn_python(&format!(
            "s = socket.create_connection(('{name}', 80), 60)\n\
             req = b'GET / HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n'\n\
             s.sendall(req); s.recv(4096); print('open', flush=True)\n\
             while not os.path.exists(os.environ['GO']): time.sleep(0.02)\n\
             try:\n  s.sendall(req); print('got', len(s.recv(4096)), flush=True)\n\
             except OSError as e: print('cut', flush=True)"
        ))
    };
    let mut talking = ["web.test", "other.test"].map(|name| {
        let mut child = talk(name);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line_of(&mut out), "open\n", "{name}");
        (child, out)
    });
    let before = world.seen().matches("GET /").count();
    let told = expose(&world, "a.1", &["private_data"]).unwrap();
    assert_eq!((told.cut, told.seen.to_string()), (1, "private_data untrusted_content".into()));
    fs::write(world.dir.join("go"), "").unwrap();
    let last = |(child, out): &mut (Child, BufReader<ChildStdout>)| {
        let line = line_of(out);
        child.wait().unwrap();
        line
    };
    let [cut, kept] = talking.each_mut().map(last);
    assert!(cut == "cut\n" || cut == "got 0\n", "{cut}");
    assert!(kept.starts_with("got ") && kept != "got 0\n", "{kept}");
    assert_eq!(
        world.seen().matches("GET /").count(),
        before + 1,
        "the cut one said nothing more: {}",
        world.seen()
    );

    // New ones: refused with the reason, and the agent is told it.
    let said = guest.text("curl -sS -m 10 -i http://web.test/");
    assert!(
        said.contains("403 Forbidden") && said.contains("rule: exposure") && said.contains("trusted_names"),
        "{said}"
    );
    world.denied("exposure", "web.test:80");
    assert!(guest.text("curl -sS -m 10 http://other.test/").contains("hello"));
    let why = explain(&world, "web.test");
    assert!(!why.allowed && why.rule == "exposure" && why.because.contains("private data"), "{why:?}");
    assert!(explain(&world, "other.test").allowed);
    let line = &world.grants().agents[0];
    assert!(line.is_confined && line.seen == told.seen);

    // It only grows, and is of this life: another one has seen nothing.
    assert_eq!(expose(&world, "a.1", &[]).unwrap().seen, told.seen);
    drop((guest, lease));
    world.eventually(|| world.grants().agents.is_empty());
    let lease = world.ask_network(&asked("a.2", &["web.test"], &[]), None).unwrap();
    let guest = world.guest(&lease);
    assert!(guest.text("curl -sS -m 10 http://web.test/").contains("hello"));
}

#[test]
fn what_was_seen_outlives_a_restart_of_egress() {
    let mut world = World::new();
    let mut want = asked("a.1", &["web.test"], &[]);
    let lease = world.ask_network(&want, None).unwrap();
    let guest = world.guest(&lease);
    expose(&world, "a.1", &["private_data"]).unwrap();
    world.kill_egress();
    assert!(!guest.text("curl -sS -m 2 http://web.test/").contains("hello"));
    world.start_egress();
    assert_eq!(expose(&world, "a.1", &["private_data"]).unwrap_err().code, Code::NOT_FOUND);
    want.seen = "private_data".parse().unwrap();
    let again = world.ask_network(&want, Some(&lease.namespace)).unwrap();
    let said = guest.text("curl -sS -m 10 -i http://web.test/");
    assert!(said.contains("rule: exposure"), "{said}");
    let told = expose(&world, "a.1", &[]).unwrap();
    assert_eq!(told.seen.to_string(), "private_data untrusted_content", "whom it heard before is not known");
    drop(again);
}

#[test]
fn a_published_port_serves_nobody_once_private_data_was_seen() {
    let world = World::new();
    let lease = world.try_publish("a.1", &[], &[(30080, 8080, &["192.0.2.0/24"])], None).unwrap();
    let guest = world.guest(&lease);
    let mut server = guest.spawn_python(
        "s = socket.create_server(('0.0.0.0', 8080)); print('up', flush=True)\n\
         while True:\n  c, _ = s.accept()\n  try:\n    with c:\n      while d := c.recv(100): c.sendall(d)\n  except OSError: pass",
    );
    assert_eq!(line_of(&mut BufReader::new(server.stdout.take().unwrap())), "up\n");
    // Says x, and y once there is a file `go`; prints what comes back.
    let visit = "import os, socket, time\ntry:\n  s = socket.create_connection((\"192.0.2.2\", 30080), 30); s.sendall(b\"x\")\n  \
                 print(s.recv(9), flush=True)\n  while not os.path.exists(os.environ[\"GO\"]): time.sleep(0.02)\n  \
                 s.sendall(b\"y\"); print(s.recv(9) or \"end\", flush=True)\nexcept OSError: print(\"end\")";
    let visit = || world.spawn_saying(&world.internet(), &format!("exec python3 -c '{visit}'"));
    let go = world.dir.join("go");
    let (_visitor, mut out) = visit();
    assert_eq!(line_of(&mut out), "b'x'\n");
    fs::write(&go, "").unwrap();
    assert_eq!(line_of(&mut out), "b'y'\n");
    world.eventually(|| world.grants().agents[0].published_connections == 0);
    fs::remove_file(&go).unwrap();
    let (_visitor, mut out) = visit();
    assert_eq!(line_of(&mut out), "b'x'\n");
    let told = expose(&world, "a.1", &["private_data"]).unwrap();
    fs::write(&go, "").unwrap();
    assert_eq!(line_of(&mut out), "end\n");
    assert_eq!((told.cut, told.seen.to_string()), (1, "private_data untrusted_content".into()));
    let (_visitor, mut out) = visit();
    let said = line_of(&mut out);
    assert_ne!(said, "b'x'\n");
    world.denied("exposure", "to port 30080");
    drop(guest); // and what runs in it
    server.wait().unwrap();
}

#[test]
fn nobody_but_cage_exposes_or_fetches() {
    let world = World::new();
    let _lease = world.attach("a.1", &["web.test"], None);
    let params = [
        ("net.expose", json!({ "instance": "a.1", "seen": ["private_data"] })),
        (
            "net.fetch",
            json!({ "instance": "a.1", "url": "http://web.test/", "bytes_max": 9, "wall_ms_max": 9 }),
        ),
    ];
    for (method, params) in params {
        for uid in [201, 202] {
            assert_eq!(
                world.ask_as(uid, method, params.clone()).unwrap_err().code,
                Code::DENIED,
                "{method} {uid}"
            );
        }
        assert_eq!(world.order(method, params.clone()).unwrap_err().code, Code::DENIED, "{method}");
        let mut other: Value = params;
        other["instance"] = "a.2".into();
        assert_eq!(
            world.ask_as(0, method, other).unwrap_err().code,
            Code::NOT_FOUND,
            "{method}: no life, no network"
        );
    }
    assert!(!world.grants().agents[0].is_confined);
}

/// A world with two hosts behind TLS that the node believes.
fn tls_world() -> World {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let mut config = NodeConfig::default();
    config.network.authorities = vec![params.self_signed(&key).unwrap().pem()];
    let issuer = Issuer::new(params, key);
    let world = World::with(config);
    fs::create_dir_all(world.dir.join("certs")).unwrap();
    for host in ["api.test", "page.test"] {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        fs::write(
            world.dir.join(format!("certs/{host}.pem")),
            format!("{}{}", leaf.pem(), key.serialize_pem()),
        )
        .unwrap();
    }
    world.set_dns(json!({
        "api.test": ["203.0.113.10"], "page.test": ["203.0.113.11"], "web.test": ["203.0.113.10"],
        "inside.test": ["10.9.9.9"], "forged.test": ["203.0.113.10"],
    }));
    world
}

#[test]
fn a_page_is_fetched_under_the_agents_own_grants() {
    let world = tls_world();
    let policy = SecretPolicy {
        name: "API_KEY".parse().unwrap(),
        host: "api.test".parse().unwrap(),
        port: 443,
        header: "authorization".into(),
        format: "Bearer {}".into(),
        api: Api::Plain,
    };
    world.set_secret(&policy, SECRET);
    let names = ["page.test", "web.test", "inside.test", "forged.test"];
    let mut want = asked("a.1", &names, &[]);
    let narrow = r#"{"name":"api.test","ports":[80,443],"paths":["/v1"]}"#;
    want.allow.push(serde_json::from_str::<NetworkGrant>(narrow).unwrap());
    want.credentials = vec!["API_KEY".parse().unwrap()];
    let lease = world.ask_network(&want, None).unwrap();
    expose(&world, "a.1", &["private_data"]).unwrap(); // cage decided the call: the page is fetched all the same

    let (body, page) = fetch(&world, "a.1", "https://page.test/a?b=c", 100_000).unwrap();
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(text.contains("page.test got GET /a?b=c"), "{text}");
    assert!(page.status == 200 && !page.with_credential && !page.is_cut, "{page:?}");
    let (body, _) = fetch(&world, "a.1", "http://web.test/plain", 100_000).unwrap();
    assert!(String::from_utf8_lossy(&body).contains("by http"), "{}", String::from_utf8_lossy(&body));
    let (body, page) = fetch(&world, "a.1", "http://web.test/big", 70_000).unwrap();
    assert!(body.len() == 70_000 && page.is_cut, "{page:?}");

    // The credential goes along, and never in the clear; a redirect is an answer.
    let (_, page) = fetch(&world, "a.1", "https://api.test/v1/x", 1000).unwrap();
    assert!(page.with_credential && world.seen().contains(&format!("Bearer {SECRET}")));
    let error = fetch(&world, "a.1", "http://api.test:443/v1/x", 1000).unwrap_err();
    assert!(error.code == Code::DENIED && error.message.contains("over TLS only"), "{error}");
    let (_, page) = fetch(&world, "a.1", "https://page.test/redirect?to=https://evil.test/x", 1000).unwrap();
    assert_eq!((page.status, page.location.as_str()), (302, "https://evil.test/x"));
    assert!(!world.seen().contains("dns evil.test"), "{}", world.seen());

    // What the agent could not reach is not fetched for it either.
    let refused = |url: &str, rule: &str| {
        let error = fetch(&world, "a.1", url, 1000).unwrap_err();
        let data = format!("{:?}", error.data);
        assert!(error.code == Code::DENIED && data.contains(rule), "{url}: {error} {data}");
    };
    refused("https://evil.test/", "name-not-granted");
    refused("https://page.test:8443/", "port-not-granted");
    refused("http://api.test/v1/x", "brokered-only");
    refused("https://api.test/v2", "path-not-granted");
    refused("http://inside.test/", "private-address");
    refused("https://page.test/?api_key=1", "credential");
    let failed = fetch(&world, "a.1", "https://forged.test/", 1000).unwrap_err();
    assert!(
        failed.code == Code::UNAVAILABLE && failed.message.contains("TLS"),
        "a certificate of nobody: {failed}"
    );
    for bad in ["https://evil.test@page.test/", "ftp://page.test/", "https://203.0.113.10/"] {
        assert_eq!(fetch(&world, "a.1", bad, 1000).unwrap_err().code, Code::INVALID_PARAMS, "{bad}");
    }
    world.order("net.deny", json!({ "agent": "a", "name": "page.test" })).unwrap();
    refused("https://page.test/a", "denied");

    // Each has its receipt, before it went out, and its end.
    let events = world.events.lock().unwrap().clone();
    let called = |wanted: &str| {
        events
            .iter()
            .filter(|event| matches!(event, Event::BrokerCalled { name, .. } if name.as_str() == wanted))
            .count()
    };
    assert_eq!(
        (called("page.test"), called("web.test"), called("api.test"), called("evil.test")),
        (2, 2, 1, 0)
    );
    let ends = events.iter().filter(|event| matches!(event, Event::NetEnded { .. })).count();
    assert_eq!(ends, events.iter().filter(|event| matches!(event, Event::BrokerCalled { .. })).count());
    let all = format!("{}{events:?}{:?}", world.log(), world.grants());
    assert!(!all.contains("sk-live"), "a secret leaked");
    drop(lease);
}

#[test]
fn a_fetch_ends_with_its_grant_its_time_and_its_network() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test"], None);
    let _slow = world.spawn_within(
        &world.internet(),
        "exec python3 -c \"
import socket, time
s = socket.create_server(('203.0.113.11', 8088)); print('up', flush=True)
held = []
while True:
  c, _ = s.accept(); held.append(c)
  c.recv(4096); c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nx')
\"",
    );
    drop(lease);
    world.eventually(|| world.grants().agents.is_empty());
    let lease = world.attach("a.1", &["other.test:8088"], None);
    let begun = Instant::now();
    let params = |ms: u64| json!({ "instance": "a.1", "url": "http://other.test:8088/", "bytes_max": 9, "wall_ms_max": ms });
    let late = world.ask_as(0, "net.fetch", params(700)).unwrap_err();
    assert!(late.message.contains("within 700 ms") && begun.elapsed() < Duration::from_secs(15), "{late}");
    let ended_by = |how: &mut dyn FnMut()| {
        let socket = world.dir.join("run/egress.sock");
        let mut connection = Connection::connect(socket).unwrap();
        connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
        connection.write_line(&Request::call(1, "net.fetch", params(60_000))).unwrap();
        let first = connection.read_line().unwrap().unwrap();
        assert!(first.contains("output"), "{first}");
        how();
        world::result(&mut connection).unwrap_err()
    };
    let error = ended_by(&mut || {
        world.order("net.revoke", json!({ "agent": "a", "name": "other.test" })).unwrap();
    });
    assert!(error.message.contains("cut"), "{error}");
    world.order("net.lift", json!({ "agent": "a", "name": "other.test" })).unwrap();
    let mut lease = Some(lease);
    let error = ended_by(&mut || lease = None);
    assert!(error.message.contains("cut"), "{error}");
    world.eventually(|| world.grants().agents.is_empty());
}
