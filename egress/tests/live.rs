//! What operators change while agents run, and what outsiders do to packet rules. Needs what network.rs needs.

mod world;

use abi::control::{
    ConnectionRecord, Denial, Effect, Explanation, FirewallRecord, LiveChanges, NetChanged, PolicyRecord,
    Suggestions, Watched,
};
use abi::identity::Role;
use abi::ledger::Event;
use abi::rpc::{Code, Incoming, RpcError};
use abi::wire::Connection;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use world::{Guest, Lease, World};

fn allow(world: &World, agent: &str, entry: &str, secs: Option<u64>) -> Result<NetChanged, RpcError> {
    let grant: abi::network::NetworkGrant = entry.parse().unwrap();
    let changed = world.order("net.allow", json!({ "agent": agent, "grant": grant, "secs": secs }))?;
    Ok(serde_json::from_value(changed).unwrap())
}

fn refuse(world: &World, how: &str, agent: &str, name: &str) -> NetChanged {
    serde_json::from_value(world.order(how, json!({ "agent": agent, "name": name })).unwrap()).unwrap()
}

fn explain(world: &World, name: &str, port: u16) -> Explanation {
    let asked = json!({ "agent": "a", "name": name, "port": port });
    serde_json::from_value(world.call("net.explain", asked)).unwrap()
}

fn changes(world: &World) -> Vec<(Effect, String)> {
    let found: LiveChanges = serde_json::from_value(world.call("net.policy", json!({}))).unwrap();
    found.changes.into_iter().map(|change| (change.effect, change.grant.to_string())).collect()
}

/// `hello` or why not.
fn fetch(guest: &Guest, name: &str) -> String {
    guest.text(&format!("curl -sS -m 10 http://{name}/"))
}

/// Changes of policy in the ledger, with the word of each.
fn receipts(world: &World) -> Vec<String> {
    let events = world.events.lock().unwrap().clone();
    let word = |event: &Event| match event {
        Event::NetPolicyChanged { change, entry, .. } => Some(format!("{change} {entry}")),
        _ => None,
    };
    events.iter().filter_map(word).collect()
}

fn until(what: &str, world: &World, mut there: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < end, "not within 10 s: {what}\n{}", world.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection that is held open, until it says `cut`.
struct Held(Child, Box<dyn Iterator<Item = String>>);

impl Held {
    fn open(world: &World, guest: &Guest, name: &str) -> Held {
        let address = world.grants().agents[0].synthetic[&name.parse().unwrap()].clone();
        let mut child = guest.spawn_python(&format!(
            "s = socket.create_connection(('{address}', 22)); print(s.recv(99), flush=True)\n\
             try: r = s.recv(9)\nexcept OSError as e: r = e\nprint('cut', r, flush=True)"
        ));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.next().unwrap().contains("SSH-2.0"));
        Held(child, Box::new(lines))
    }

    fn ends(mut self) {
        assert!(self.1.next().is_some_and(|line| line.starts_with("cut")), "it was not cut");
        self.0.wait().unwrap();
    }
}

/// The next notification of a follower.
fn next(follower: &mut Connection) -> (String, Value) {
    let line = follower.read_line().unwrap().unwrap();
    match serde_json::from_str(&line).unwrap() {
        Incoming::Notification(request) => (request.method, request.params),
        other => panic!("{other:?}"),
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn an_allowed_name_is_reached_and_the_same_call_again_changes_nothing() {
    let world = World::new();
    let lease = world.attach("a.1", &[], None);
    let guest = world.guest(&lease);
    assert!(fetch(&guest, "web.test").contains("Could not resolve"));
    let first = allow(&world, "a", "web.test:80", None).unwrap();
    assert!(first.now.contains("web.test:80") && first.cut == 0, "{first:?}");
    assert!(fetch(&guest, "web.test").contains("hello"));
    assert_eq!(allow(&world, "a", "web.test:80", None).unwrap(), first);
    assert_eq!(receipts(&world), ["allow \"web.test:80\""]);
    let grants = world.grants();
    assert_eq!(grants.agents[0].live.len(), 1);
    assert_eq!(grants.agents[0].live, grants.agents[0].allow);
    // Connected by what, is in the record; and it is over with the network.
    let by = |event: &Event| matches!(event, Event::NetConnected { rule, .. } if rule.contains("allowed by operator test"));
    assert!(world.events.lock().unwrap().iter().any(by));
    drop(lease);
    until("the grant ends with its network", &world, || changes(&world).is_empty());
    let lease = world.attach("a.2", &[], None);
    assert!(explain(&world, "web.test", 80).rule == "name-not-granted");
    drop(lease);
}

#[test]
fn a_grant_for_a_time_ends_by_itself_and_cuts_what_it_let_through() {
    let world = World::new();
    let lease = world.attach("a.1", &[], None);
    let guest = world.guest(&lease);
    allow(&world, "a", "web.test:22", Some(10)).unwrap();
    let held = Held::open(&world, &guest, "web.test");
    held.ends();
    let said = guest.text("dig +short +time=2 web.test A");
    assert_eq!(said.trim(), "", "the name is gone");
    until("the end has a receipt and is forgotten", &world, || {
        changes(&world).is_empty() && receipts(&world).last().is_some_and(|word| word.starts_with("expire"))
    });
    let ended =
        |event: &Event| matches!(event, Event::NetEnded { end, bytes_in: 1.., .. } if end == "revoked");
    until("the record of its end", &world, || world.events.lock().unwrap().iter().any(ended));
}

#[test]
fn an_end_has_one_receipt_also_when_it_cannot_be_written() {
    let world = World::new();
    let _lease = world.attach("a.1", &[], None);
    allow(&world, "a", "web.test:80", Some(8)).unwrap();
    let in_the_way = world.dir.join("state/policy.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let failed = || world.log().matches("grant_not_ended").count();
    until("the first try", &world, || failed() >= 1);
    until("the second try", &world, || failed() >= 2);
    assert!(explain(&world, "web.test", 80).rule == "name-not-granted");
    std::fs::remove_dir(&in_the_way).unwrap();
    until("the end is kept", &world, || changes(&world).is_empty());
    let ends = receipts(&world).iter().filter(|word| word.starts_with("expire")).count();
    assert_eq!(ends, 1, "{:?}", receipts(&world));
}

#[test]
fn a_denial_cuts_at_once_beats_the_manifest_and_survives_a_restart() {
    let mut world = World::new();
    let mut lease = world.attach("a.1", &["web.test:22", "web.test:80"], None);
    let guest = world.guest(&lease);
    let held = Held::open(&world, &guest, "web.test");
    let denied = refuse(&world, "net.deny", "a", "web.test");
    assert_eq!(denied.cut, 1, "{denied:?}");
    held.ends();
    assert!(fetch(&guest, "web.test").contains("curl: ("));
    assert_eq!(refuse(&world, "net.deny", "a", "web.test"), NetChanged { cut: 0, ..denied });
    world.denied("denied", "web.test");
    world.kill_egress();
    assert!(matches!(lease.connection.read_line(), Ok(None) | Err(_)));
    world.start_egress();
    let again = world.attach("a.1", &["web.test:22", "web.test:80"], Some(&lease.namespace));
    assert_eq!(explain(&world, "web.test", 80).rule, "denied");
    assert!(fetch(&guest, "web.test").contains("curl: ("));
    drop((lease, again));
    until("the network ends", &world, || world.grants().agents.is_empty());
    let _next_life = world.attach("a.2", &["web.test:80"], None);
    assert_eq!(explain(&world, "web.test", 80).rule, "denied", "a denial is for all lives");
    refuse(&world, "net.lift", "a", "web.test");
    assert!(explain(&world, "web.test", 80).allowed, "until it is lifted");
}

#[test]
fn what_an_agent_is_denied_is_denied_at_once_to_what_works_for_it() {
    let world = World::new();
    let mut asked = world::wanted("t1-c1.4");
    asked.allow = vec!["web.test:22".parse().unwrap(), "web.test:80".parse().unwrap()];
    asked.works_for = Some("a".parse().unwrap());
    let lease = world.ask_network(&asked, None).unwrap();
    let guest = world.guest(&lease);
    let held = Held::open(&world, &guest, "web.test");
    assert_eq!(refuse(&world, "net.deny", "a", "web.test").cut, 1);
    held.ends();
    assert!(fetch(&guest, "web.test").contains("curl: ("));
    let refused = allow(&world, "t1-c1", "web.test:80", None);
    assert!(fetch(&guest, "web.test").contains("curl: ("), "no grant of its own undoes it: {refused:?}");
    refuse(&world, "net.lift", "a", "web.test");
    assert!(fetch(&guest, "web.test").contains("hello"));
}

#[test]
fn an_authority_that_its_guest_does_not_know_is_told() {
    let mut world = World::new();
    let mut asked = world::wanted("a.1");
    let grant = abi::network::NetworkGrant { intercept: true, ..("web.test:443".parse().unwrap()) };
    asked.allow = vec![grant];
    let lease = world.ask_network(&asked, None).unwrap();
    assert!(!world.log().contains("authority_made_anew"), "{}", world.log());
    world.kill_egress();
    world.start_egress();
    let again = world.ask_network(&asked, Some(&lease.namespace)).unwrap();
    assert_ne!(lease.attached.authority, again.attached.authority);
    assert!(world.log().contains("authority_made_anew"), "{}", world.log());
}

#[test]
fn a_live_grant_survives_a_restart_of_egress_within_its_life() {
    let mut world = World::new();
    let lease = world.attach("a.1", &[], None);
    let guest = world.guest(&lease);
    allow(&world, "a", "web.test:80", Some(600)).unwrap();
    world.kill_egress();
    world.start_egress();
    let _again = world.attach("a.1", &[], Some(&lease.namespace));
    assert!(fetch(&guest, "web.test").contains("hello"));
}

#[test]
fn a_revocation_is_for_this_life_and_cuts_the_manifests_grants_too() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:22", "*.web.test:80", "other.test:80"], None);
    let guest = world.guest(&lease);
    let held = Held::open(&world, &guest, "web.test");
    let revoked = refuse(&world, "net.revoke", "a", "web.test");
    assert_eq!(revoked.cut, 1, "{revoked:?}");
    held.ends();
    assert_eq!(refuse(&world, "net.revoke", "a", "web.test"), NetChanged { cut: 0, ..revoked });
    assert!(fetch(&guest, "other.test").contains("hello"), "nothing else is touched");
    assert!(explain(&world, "x.web.test", 80).allowed);
    // No grant undoes a denial; lifting one grants nothing that was not granted before.
    refuse(&world, "net.revoke", "a", "*.web.test");
    for name in ["x.web.test", "*.web.test"] {
        let refused = allow(&world, "a", name, None).unwrap_err();
        assert_eq!(refused.code, Code::CONFLICT);
        assert!(refused.data.unwrap().remedy.contains("nullctl net lift a '*.web.test'"));
    }
    refuse(&world, "net.lift", "a", "*.web.test");
    assert!(explain(&world, "x.web.test", 80).allowed && !explain(&world, "x.web.test", 443).allowed);
    let gone = world.order("net.lift", json!({ "agent": "a", "name": "*.web.test" })).unwrap_err();
    assert_eq!(gone.code, Code::NOT_FOUND);
    let brokers =
        world.order("net.deny", json!({ "agent": "a", "name": "web.test.broker.internal" })).unwrap_err();
    assert_eq!(brokers.code, Code::INVALID_PARAMS);
    drop(lease);
    until("the network ends", &world, || world.grants().agents.is_empty());
    let _next_life = world.attach("a.2", &["web.test:22"], None);
    assert!(explain(&world, "web.test", 22).allowed);
    assert_eq!(changes(&world), []);
}

#[test]
fn a_revocation_holds_when_its_life_attaches_again_however_often() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    refuse(&world, "net.revoke", "a", "web.test");
    let Lease { connection, namespace, .. } = lease;
    drop(connection);
    until("the network ends", &world, || world.grants().agents.is_empty());
    assert_eq!(changes(&world), [], "what holds for nobody is not told");
    world.refuse_receipts.store(true, Ordering::Relaxed);
    assert!(world.try_attach("a.1", &["web.test:80"], Some(&namespace)).is_err());
    world.refuse_receipts.store(false, Ordering::Relaxed);
    let again = world.attach("a.1", &["web.test:80"], Some(&namespace));
    assert_eq!(explain(&world, "web.test", 80).rule, "denied");
    assert!(fetch(&guest, "web.test").contains("curl: ("));
    drop(again);
    until("the network ends", &world, || world.grants().agents.is_empty());
    let _next_life = world.attach("a.2", &["web.test:80"], None);
    assert!(explain(&world, "web.test", 80).allowed);
    let file = std::fs::read_to_string(world.dir.join("state/policy.json")).unwrap();
    assert!(!file.contains("web.test"), "it is forgotten: {file}");
}

#[test]
fn lives_that_ended_make_room_and_denials_do_not() {
    let mut world = World::new();
    world.kill_egress();
    let change = |n: usize| {
        let (agent, life) = (format!("a{}", n % 16), format!("a{}.1", n % 16));
        let (effect, life) = if n == 0 { ("deny", None) } else { ("allow", Some(life)) };
        let grant = json!({ "name": format!("n{n}.test"), "ports": [80] });
        json!({ "agent": agent, "effect": effect, "grant": grant, "instance": life, "by": "x", "receipt": 1 })
    };
    let full: Vec<Value> = (0..abi::limits::LIVE_CHANGES_MAX).map(change).collect();
    let path = world.dir.join("state/policy.json");
    std::fs::write(&path, json!({ "changes": full }).to_string()).unwrap();
    world.start_egress();
    refuse(&world, "net.deny", "b", "web.test");
    assert_eq!(changes(&world).len(), 2, "{:?}", changes(&world));
    let file = std::fs::read_to_string(&path).unwrap();
    assert!(file.contains("n0.test") && !file.contains("n1.test") && file.contains("web.test"), "{file}");
}

#[test]
fn without_a_receipt_nothing_changes_and_only_operators_may_change() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    world.refuse_receipts.store(true, Ordering::Relaxed);
    for (method, name) in [("net.deny", "web.test"), ("net.revoke", "web.test")] {
        let refused = world.order(method, json!({ "agent": "a", "name": name })).unwrap_err();
        assert!(refused.message.contains("no receipt, so no change"), "{refused}");
    }
    assert!(allow(&world, "a", "other.test:80", None).unwrap_err().message.contains("no receipt"));
    world.refuse_receipts.store(false, Ordering::Relaxed);
    assert_eq!(changes(&world), []);
    assert!(fetch(&guest, "web.test").contains("hello"));
    let grant = json!({ "name": "other.test", "ports": [80] });
    for (method, params) in [
        ("net.allow", json!({ "agent": "a", "grant": grant })),
        ("net.deny", json!({ "agent": "a", "name": "web.test" })),
        ("net.revoke", json!({ "agent": "a", "name": "web.test" })),
        ("net.forget", json!({})),
    ] {
        let refused = world::result(&mut world.open_as(Role::Reader, method, params)).unwrap_err();
        assert_eq!(refused.code, Code::DENIED, "{method}");
    }
    assert_eq!(world.order("net.forget", json!({})).unwrap_err().code, Code::DENIED, "for admins");
    assert_eq!(allow(&world, "b", "other.test", None).unwrap_err().code, Code::NOT_FOUND);
    for bad in
        [json!({ "name": "x.test", "ports": [] }), json!({ "name": "x.test", "ports": [80], "paths": ["x"] })]
    {
        let refused = world.order("net.allow", json!({ "agent": "a", "grant": bad })).unwrap_err();
        assert_eq!(refused.code, Code::INVALID_PARAMS, "{refused}");
    }
    let forever = json!({ "agent": "a", "grant": grant, "secs": u64::MAX });
    assert_eq!(world.order("net.allow", forever).unwrap_err().code, Code::INVALID_PARAMS);
    assert_eq!(changes(&world), []);
}

#[test]
fn denials_that_cannot_be_read_stop_networks_until_an_admin_gives_them_up() {
    let mut world = World::new();
    refuse(&world, "net.deny", "a", "web.test");
    world.kill_egress();
    let path = world.dir.join("state/policy.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    world.start_egress();
    let refused = world.try_attach("a.1", &["web.test:80"], None).err().unwrap();
    assert!(refused.message.contains("policy.json cannot be read"), "{refused}");
    assert!(refused.data.unwrap().remedy.contains("nullctl net forget"));
    assert!(world.order("net.deny", json!({ "agent": "a", "name": "web.test" })).is_err());
    let forgotten = world::result(&mut world.open_as(Role::Admin, "net.forget", json!({}))).unwrap();
    assert!(typed::<NetChanged>(forgotten).now.contains("policy.json.bad"));
    let _lease = world.attach("a.1", &["web.test:80"], None);
    assert!(explain(&world, "web.test", 80).allowed);
    let told = |event: &Event| matches!(event, Event::NetPolicyForgotten { by } if by == "operator test" || by == "admin test");
    assert!(world.events.lock().unwrap().iter().any(told));
}

#[test]
fn explain_agrees_with_what_happens() {
    let world = World::new();
    let allow_list = ["web.test:80", "other.test:22", "*.cdn.test:80"];
    let lease = world.attach("a.1", &allow_list, None);
    let guest = world.guest(&lease);
    world.set_dns(json!({
        "web.test": ["203.0.113.10"], "other.test": ["203.0.113.11"], "a.cdn.test": ["203.0.113.10"],
        "b.cdn.test": ["203.0.113.10"], "live.test": ["203.0.113.10"], "none.test": ["203.0.113.10"],
    }));
    allow(&world, "a", "live.test:80", Some(600)).unwrap();
    refuse(&world, "net.deny", "a", "b.cdn.test");
    let mut passed = 0;
    for name in [
        "web.test",
        "other.test",
        "cdn.test",
        "a.cdn.test",
        "b.cdn.test",
        "a.b.cdn.test",
        "live.test",
        "none.test",
    ] {
        for port in [22, 80, 443] {
            let said = explain(&world, name, port);
            let code = format!(
                "try:\n  s = socket.create_connection(('{name}', {port}))\n  s.sendall(b'GET / HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n')\n\
                 \x20 print('got', s.recv(99))\nexcept OSError as e: print('not', e)"
            );
            let got = guest.python(&code);
            let happened = got.starts_with("got b'HTTP/1.1 200") || got.starts_with("got b'SSH");
            assert_eq!(said.allowed, happened, "{name}:{port} {said:?} {got}");
            assert!(said.allowed || !said.remedy.is_empty(), "{said:?}");
            if !said.allowed {
                world.denied(&said.rule, name);
            }
            passed += u32::from(happened);
        }
    }
    assert_eq!(passed, 4);
    assert!(
        explain(&world, "live.test", 80).because.contains("allowed by operator test: live.test:80; ends in ")
    );
}

#[test]
fn watch_sees_connections_denials_and_changes_in_order() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    assert!(fetch(&guest, "web.test").contains("hello"));
    let has_one = || {
        typed::<Watched>(world::result(&mut world.open("net.watch", json!({}))).unwrap()).connections.len()
            == 1
    };
    until("the first connection is recorded", &world, has_one);
    let mut follower = world.open("net.watch", json!({ "agent": "a" }));
    let mut stranger = world.open("net.watch", json!({ "agent": "b" }));
    let first: Watched = typed(world::result(&mut follower).unwrap());
    let record = first.connections.first().unwrap();
    assert_eq!((record.end.as_str(), record.address.as_str(), record.port), ("closed", "203.0.113.10", 80));
    assert!(record.bytes_in > 20 && record.rule == "manifest: web.test:80", "{record:?}");
    assert_eq!(typed::<Watched>(world::result(&mut stranger).unwrap()).connections, []);
    guest.text("dig evil.example");
    let (kind, denial) = next(&mut follower);
    assert_eq!((kind.as_str(), typed::<Denial>(denial).what.as_str()), ("denial", "dns A evil.example"));
    allow(&world, "a", "other.test:80", None).unwrap();
    let (kind, change) = next(&mut follower);
    let change: PolicyRecord = typed(change);
    assert_eq!(
        (kind.as_str(), change.change.as_str(), change.entry.as_str()),
        ("policy", "allow", "\"other.test:80\"")
    );
    assert_eq!(change.by, "operator test");
    fetch(&guest, "other.test");
    let (kind, record) = next(&mut follower);
    assert_eq!(
        (kind.as_str(), typed::<ConnectionRecord>(record).name.as_str()),
        ("connection", "other.test")
    );
    refuse(&world, "net.deny", "b", "web.test");
    let (kind, change) = next(&mut stranger);
    assert_eq!((kind.as_str(), typed::<PolicyRecord>(change).agent.as_str()), ("policy", "b"));
}

#[test]
fn each_dialled_connection_has_a_record_of_its_end_also_when_its_network_ends() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:22", "web.test:80"], None);
    let guest = world.guest(&lease);
    let said = guest.python("for n in range(100): s = socket.create_connection(('web.test', 22)); s.recv(99); s.close()\nprint('done')");
    assert_eq!(said, "done\n");
    let held = Held::open(&world, &guest, "web.test");
    drop(lease.connection);
    held.ends();
    let count = || {
        let events = world.events.lock().unwrap();
        let connected = events.iter().filter(|event| matches!(event, Event::NetConnected { .. })).count();
        let ends: Vec<&str> = events
            .iter()
            .filter_map(|event| match event {
                Event::NetEnded { end, .. } => Some(end.as_str()),
                _ => None,
            })
            .collect();
        (connected, ends.len(), ends.contains(&"detached"))
    };
    until("a record of each", &world, || count() == (101, 101, true));
}

#[test]
fn records_wait_for_a_ledger_that_is_away() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:22"], None);
    let guest = world.guest(&lease);
    let go = world.dir.join("go").display().to_string();
    let address = world.grants().agents[0].synthetic[&"web.test".parse().unwrap()].clone();
    let mut child = guest.spawn_python(&format!(
        "import os\nheld = [socket.create_connection(('{address}', 22)) for n in range(40)]\n[s.recv(99) for s in held]\n\
         print('held', flush=True)\nwhile not os.path.exists('{go}'): time.sleep(0.05)\n[s.close() for s in held]\nprint('closed', flush=True)"
    ));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().unwrap(), "held");
    world.refuse_all.store(true, Ordering::Relaxed);
    std::fs::write(&go, "").unwrap();
    assert_eq!(lines.next().unwrap(), "closed");
    until("the connections are closed", &world, || world.grants().agents[0].connections == 0);
    let ended = || {
        let events = world.events.lock().unwrap();
        events.iter().filter(|event| matches!(event, Event::NetEnded { .. })).count()
    };
    until("the ledger refuses", &world, || world.log().contains("record_not_taken"));
    assert_eq!(ended(), 0);
    world.refuse_all.store(false, Ordering::Relaxed);
    until("each record is there", &world, || ended() == 40);
    child.wait().unwrap();
}

#[test]
fn suggestions_are_the_smallest_change_and_stop_when_it_is_made() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:443"], None);
    let guest = world.guest(&lease);
    guest.text("dig new.test; dig new.test AAAA; curl -m 5 http://web.test/; curl -m 5 http://8.8.8.8/");
    world.denied("raw-address", "tcp 8.8.8.8:80");
    let suggested = || -> Suggestions { typed(world.call("net.suggest", json!({ "agent": "a" }))) };
    let found = suggested();
    let entries: Vec<&str> = found.agents[0].add.iter().map(|(entry, _)| entry.as_str()).collect();
    assert_eq!(entries, ["\"new.test\"", "\"web.test:80\""], "{found:?}");
    assert!(found.agents[0].never.iter().any(|(what, _)| what == "tcp 8.8.8.8:80"), "{found:?}");
    for entry in &entries {
        allow(&world, "a", entry.trim_matches('"'), None).unwrap();
    }
    assert_eq!(suggested().agents[0].add, []);
}

/// `nft list ruleset` without what counts.
fn rules(world: &World, lease: Option<&Lease>) -> String {
    let list = "nft -s list ruleset";
    let output = lease.map_or_else(|| world.on_node(list), |lease| lease.as_root(list));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn rules_that_an_outsider_changes_are_put_back_and_told() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    assert!(fetch(&guest, "web.test").contains("hello"));
    let mut follower = world.open("net.watch", json!({}));
    world::result(&mut follower).unwrap();
    let attacks = [
        "nft flush ruleset",
        "nft delete table inet nullbox",
        "nft flush chain inet nullbox input",
        "nft insert rule inet nullbox output accept",
        "nft 'table ip other { chain c { type nat hook prerouting priority -150; }; }'",
    ];
    let before = [rules(&world, None), rules(&world, Some(&lease))];
    assert!(before.iter().all(|rules| rules.contains("table inet nullbox")), "{before:?}");
    for attack in attacks {
        for (place, whole) in [None, Some(&lease)].into_iter().zip(&before) {
            let done = place.map_or_else(|| world.on_node(attack), |lease| lease.as_root(attack));
            assert!(done.status.success(), "{attack}: {}", String::from_utf8_lossy(&done.stderr));
            until(attack, &world, || rules(&world, place) == *whole);
            let record = loop {
                match next(&mut follower) {
                    (kind, params) if kind == "firewall" => break typed::<FirewallRecord>(params),
                    _ => continue,
                }
            };
            assert_eq!(record.instance.is_some(), place.is_some(), "{record:?}");
            assert!(record.by.starts_with("nft (process "), "{record:?}");
        }
    }
    let restored = |event: &&Event| matches!(event, Event::FirewallRestored { .. });
    until("the ledger has them", &world, || {
        world.events.lock().unwrap().iter().filter(restored).count() >= 2 * attacks.len()
    });
    assert!(world.log().contains("firewall_restored of=a.1"), "{}", world.log());
    assert!(fetch(&guest, "web.test").contains("hello"), "what was granted still passes");
    assert!(guest.text("curl -sS -m 5 http://8.8.8.8/").contains("curl: (7)"));
    // Our own changes are no outsider's.
    let before = world.events.lock().unwrap().iter().filter(restored).count();
    let published = world.try_publish("b.1", &[], &[(30_080, 8080, &["192.0.2.1/32"])], None).unwrap();
    drop(published);
    until("the port is shut", &world, || !rules(&world, None).contains("30080"));
    assert_eq!(world.events.lock().unwrap().iter().filter(restored).count(), before);
}

#[test]
fn a_table_that_only_its_owner_can_remove_is_told() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let place = lease.namespace_path();
    let hold = "(echo 'add table ip stranger { flags owner; }'; sleep 12) | nft -i >/dev/null";
    let mut owner = std::process::Command::new("timeout")
        .args(["20", "nsenter", &format!("--net={place}"), "bash", "-c", hold])
        .spawn()
        .unwrap();
    until("it is told", &world, || world.log().contains("firewall_tables_remain of=a.1 tables=stranger"));
    assert!(world.log().contains("firewall_restored of=a.1"), "{}", world.log());
    owner.wait().unwrap();
}

/// Between a flush and the restoration the proxy listens: it carries nothing that did not come by a synthetic address.
#[test]
fn an_outsider_who_never_stops_opens_nothing() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    let child = guest.spawn_python(
        "n = 0\nwhile n <= 20 or not os.path.exists(os.environ['GO']):\n\
         \x20 for to in [('100.64.0.1', 15001), ('203.0.113.11', 80), ('192.0.2.2', 22), ('198.18.0.9', 80)]:\n\
         \x20   s = socket.socket(); s.settimeout(0.05); n += 1\n\
         \x20   try: s.connect(to); s.sendall(b'GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n'); assert not s.recv(99).startswith(b'HTTP/1.1 200')\n\
         \x20   except OSError: pass\n\x20   s.close()\nprint('tried', flush=True)",
    );
    let flushes = "for n in $(seq 40); do nft flush ruleset; sleep 0.1; done";
    assert!(lease.as_root(flushes).status.success());
    std::fs::write(world.dir.join("go"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "tried\n");
    assert!(!world.seen().contains("connect "), "{}", world.seen());
    until("the rules are back", &world, || rules(&world, Some(&lease)).contains("table inet nullbox"));
    assert!(fetch(&guest, "web.test").contains("hello"));
}

/// While the rules are away: the namespace has no route and forwards nothing, and the proxy knows only synthetic addresses.
#[test]
fn without_its_rules_a_namespace_leads_nowhere() {
    let mut world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    assert!(fetch(&guest, "web.test").contains("hello"));
    // Nobody puts them back.
    world.kill_egress();
    assert!(lease.as_root("nft flush ruleset").status.success());
    assert_eq!(rules(&world, Some(&lease)), "");
    let before = world.seen();
    for (address, port) in [("203.0.113.10", 80), ("8.8.8.8", 53), ("192.0.2.2", 22), ("198.18.0.9", 80)] {
        let said = guest.python(&format!(
            "try:\n  socket.create_connection(('{address}', {port}), 2); print('connected')\nexcept OSError as e: print('not')"
        ));
        assert_eq!(said, "not\n", "{address}:{port}");
    }
    let route = lease.as_root("cat /proc/sys/net/ipv4/ip_forward; ip route show default; ip -o addr show");
    let route = String::from_utf8_lossy(&route.stdout).into_owned();
    assert!(route.starts_with("0\n") && !route.contains("default"), "{route}");
    assert_eq!(world.seen(), before);
}
