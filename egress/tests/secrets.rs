//! Secrets and budgets through the door of the real binary, over its restarts, with a guest that spends.
//! Needs what tests/network.rs needs.

mod world;

use abi::control::{AgentBudget, Budgets, SecretEntry, Secrets};
use abi::identity::Role;
use abi::ledger::Event;
use abi::network::{Budget, NetworkGrant};
use abi::rpc::{Code, RpcError};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use world::{Lease, World, result, wanted};

const VALUE: &str = "sk-test-0123456789-abcdefghij";

fn policy(name: &str, host: &str) -> Value {
    json!({"name": name, "host": host, "port": 443, "header": "authorization", "format": "Bearer {}", "api": "plain"})
}

/// As nullctl does: the value after `ready`.
fn set_as(world: &World, role: Role, policy: Value, line: &Value) -> Result<SecretEntry, RpcError> {
    let mut connection = world.open_as(role, "secret.set", json!({ "policy": policy }));
    let first = connection.read_line().unwrap().expect("a line");
    if !first.contains("\"ready\"") {
        let answer: abi::rpc::Response = serde_json::from_str(&first).unwrap();
        return Err(answer.error.expect("an error"));
    }
    connection.write_line(line).unwrap();
    result(&mut connection).map(|entry| serde_json::from_value(entry).unwrap())
}

fn set(world: &World, name: &str, host: &str) -> Result<SecretEntry, RpcError> {
    set_as(world, Role::Admin, policy(name, host), &json!({ "value": format!("{VALUE}\n") }))
}

fn remove(world: &World, name: &str) -> Result<Value, RpcError> {
    result(&mut world.open_as(Role::Admin, "secret.remove", json!({ "name": name })))
}

fn list(world: &World) -> Secrets {
    serde_json::from_value(world.call("secret.list", json!({}))).unwrap()
}

fn grants(list: &[&str]) -> Vec<NetworkGrant> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn attach(world: &World, instance: &str, allow: &[&str], credentials: &[&str]) -> Result<Lease, RpcError> {
    let credentials = credentials.iter().map(|name| name.parse().unwrap()).collect();
    world
        .ask_network(&abi::control::NetAttach { allow: grants(allow), credentials, ..wanted(instance) }, None)
}

fn spending(world: &World, instance: &str, budget: Budget) -> Lease {
    let asked = abi::control::NetAttach { allow: grants(&["web.test"]), budget, ..wanted(instance) };
    world.ask_network(&asked, None).unwrap()
}

fn budget(world: &World, agent: &str) -> AgentBudget {
    let page: Budgets = serde_json::from_value(world.call("net.budget", json!({ "agent": agent }))).unwrap();
    page.agents.into_iter().next().expect("the agent's budget")
}

/// Everything that somebody could read afterwards.
fn readable(world: &World) -> String {
    let mut all = format!("{}\n{:?}\n{}", world.log(), world.events.lock().unwrap(), world.seen());
    let files = std::process::Command::new("grep")
        .args(["-rl", VALUE])
        .arg(world.dir.join("state"))
        .arg(world.dir.join("run"))
        .output()
        .unwrap();
    all.push_str(&String::from_utf8_lossy(&files.stdout));
    all
}

#[test]
fn a_secret_is_set_listed_and_removed_by_role_and_its_value_is_nowhere() {
    let mut world = World::new();
    assert_eq!(list(&world).sealed_by, "none yet");
    let entry = set(&world, "KEY", "web.test").unwrap();
    assert_eq!((entry.policy.host.as_str(), entry.by.as_str()), ("web.test", "admin test"));
    for role in [Role::Reader, Role::Operator] {
        let refused =
            set_as(&world, role, policy("KEY", "evil.test"), &json!({ "value": VALUE })).unwrap_err();
        assert_eq!(refused.code, Code::DENIED, "{refused}");
        let refused =
            result(&mut world.open_as(role, "secret.remove", json!({ "name": "KEY" }))).unwrap_err();
        assert_eq!(refused.code, Code::DENIED, "{refused}");
    }
    world.kill_egress();
    world.start_egress();
    let page = list(&world);
    assert_eq!(page.sealed_by, "state-volume");
    assert_eq!(page.secrets.len(), 1);
    assert_eq!((page.secrets[0].policy.host.as_str(), page.secrets[0].problem.clone()), ("web.test", None));
    assert!(!serde_json::to_string(&page).unwrap().contains(VALUE));
    let has = |wanted: fn(&Event) -> bool| world.events.lock().unwrap().iter().any(wanted);
    assert!(has(|event| matches!(event, Event::SecretSet { by, .. } if by == "admin test")));
    remove(&world, "KEY").unwrap();
    assert_eq!(remove(&world, "KEY").unwrap_err().code, Code::NOT_FOUND);
    assert!(has(|event| matches!(event, Event::SecretRemoved { .. })));
    assert!(list(&world).secrets.is_empty());
    assert!(!readable(&world).contains(VALUE) && !readable(&world).contains(".json"), "{}", readable(&world));
}

#[test]
fn a_value_that_is_wrong_is_refused_without_being_repeated() {
    let world = World::new();
    let short = "v4lue";
    for line in [
        json!({ "value": short }),
        json!({ "value": format!("{VALUE}\n\n") }),
        json!({ "value": format!("{VALUE}\r\nx-evil: {VALUE}") }),
        json!({ "value": VALUE, "host": VALUE }),
        json!({ VALUE: VALUE }),
        json!(VALUE),
    ] {
        let refused = set_as(&world, Role::Admin, policy("KEY", "web.test"), &line).unwrap_err();
        let text = serde_json::to_string(&refused).unwrap();
        assert!(!text.contains(VALUE) && !text.contains(short), "{text}");
    }
    let framing = json!({"name": "KEY", "host": "web.test", "port": 443, "header": "content-length", "format": "{}", "api": "plain"});
    let refused = set_as(&world, Role::Admin, framing, &json!({ "value": VALUE })).unwrap_err();
    assert!(refused.message.contains("`content-length` cannot carry a secret"), "{refused}");
    assert!(list(&world).secrets.is_empty());
    assert!(!readable(&world).contains(VALUE));
}

#[test]
fn without_a_receipt_no_secret_is_stored_or_removed() {
    let world = World::new();
    set(&world, "KEPT", "web.test").unwrap();
    world.refuse_receipts.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(set(&world, "KEY", "web.test").unwrap_err().message.contains("no receipt, so no change"));
    assert!(remove(&world, "KEPT").unwrap_err().message.contains("no receipt, so no change"));
    let names: Vec<String> =
        list(&world).secrets.iter().map(|secret| secret.policy.name.to_string()).collect();
    assert_eq!(names, ["KEPT"]);
}

#[test]
fn an_agent_starts_with_all_of_its_credentials_or_not_at_all() {
    let world = World::new();
    set(&world, "KEY", "web.test").unwrap();
    set(&world, "SAME", "web.test").unwrap();
    for (allow, credentials, says, remedy) in [
        (&["web.test"][..], &["OTHER"][..], "OTHER is not set", "nullctl secret set OTHER --host HOST"),
        (&["other.test"], &["KEY"], "web.test:443, which it may not reach", "\"web.test:443\""),
        (&["web.test:80"], &["KEY"], "which it may not reach", "\"web.test:443\""),
        (&["web.test"], &["KEY", "SAME"], "both for web.test", "credential_refs"),
    ] {
        let refused = attach(&world, "a.1", allow, credentials).err().expect("a refusal");
        assert!(refused.message.contains(says), "{refused}");
        let data = refused.data.unwrap();
        assert!(data.remedy.contains(remedy), "{data:?}");
    }
    let lease = attach(&world, "a.1", &["web.test"], &["KEY"]).unwrap();
    assert_eq!(list(&world).secrets[0].used_by, ["a".parse().unwrap()]);
    drop(lease);
}

#[test]
fn a_change_of_a_secret_reaches_running_agents_before_it_is_answered() {
    let world = World::new();
    set(&world, "KEY", "web.test").unwrap();
    let lease = attach(&world, "a.1", &["web.test", "other.test"], &["KEY"]).unwrap();
    let guest = world.guest(&lease);
    let direct = |host: &str| guest.text(&format!("curl -sS -m 10 -k https://{host}/"));
    assert!(direct("web.test").contains("curl: ("), "a host with a credential is the broker's alone");
    assert!(direct("other.test").contains("hello from 203.0.113.11"));
    let entry = set(&world, "KEY", "other.test").unwrap();
    assert_eq!(entry.used_by, ["a".parse().unwrap()]);
    assert!(direct("other.test").contains("curl: ("), "set for another host, it is that host's");
    assert!(direct("web.test").contains("hello from 203.0.113.10"));
    remove(&world, "KEY").unwrap();
    assert!(direct("other.test").contains("curl: ("), "a removal opens no other way to the host");
    world.denied("brokered-only", "other.test");
}

#[test]
fn a_changed_file_is_a_secret_that_is_not_used() {
    let mut world = World::new();
    set(&world, "KEY", "web.test").unwrap();
    world.kill_egress();
    let path = world.dir.join("state/secrets/KEY.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("web.test", "bad.test")).unwrap();
    world.start_egress();
    assert!(list(&world).secrets[0].problem.clone().unwrap().contains("cannot be opened"));
    let refused = attach(&world, "a.1", &["bad.test"], &["KEY"]).err().expect("a refusal");
    assert!(refused.message.contains("its file was changed"), "{refused}");
}

#[test]
fn a_budget_of_bytes_cuts_a_flow_and_survives_a_kill() {
    let mut world = World::new();
    let bytes = |most| Budget { bytes_max: Some(most), ..Budget::default() };
    let lease = spending(&world, "a.1", bytes(1_000_000));
    let guest = world.guest(&lease);
    let got: u64 = guest.text("curl -s -m 15 http://web.test/big | wc -c").trim().parse().unwrap();
    assert!((1..=1_000_000).contains(&got), "{got}");
    let denial = world.denied("budget", "more than 1000000 bytes");
    assert!(denial.remedy.contains("capabilities.budget.max_bytes"), "{denial:?}");
    let spent = budget(&world, "a").used.bytes;
    assert!(spent <= 1_000_000 && spent >= got, "{spent} {got}");
    let ended = |event: &Event| matches!(event, Event::NetEnded { end, .. } if end == "budget");
    let until = Instant::now() + Duration::from_secs(60);
    while !world.events.lock().unwrap().iter().any(ended) {
        assert!(Instant::now() < until, "no record of the cut");
        std::thread::sleep(Duration::from_millis(20));
    }
    // What is written meanwhile; then the process dies without a word.
    std::thread::sleep(Duration::from_millis(abi::limits::METERS_WRITTEN_MS + 2_000));
    drop((guest, lease));
    world.kill_egress();
    world.start_egress();
    let kept = budget(&world, "a");
    assert_eq!((kept.used.bytes, kept.budget), (spent, None));
    let lease = spending(&world, "a.2", bytes(spent));
    let guest = world.guest(&lease);
    let said = guest.text("curl -sS -m 10 http://web.test/");
    assert!(said.contains("403") || said.contains("budget"), "{said}");
    assert!(!said.contains("hello"), "{said}");
    let explained = world.call("net.explain", json!({"agent": "a", "name": "web.test", "port": 80}));
    assert_eq!((explained["allowed"].clone(), explained["rule"].clone()), (json!(false), json!("budget")));
    let reader = result(&mut world.open("net.reset_budget", json!({ "agent": "a" }))).unwrap_err();
    assert_eq!(reader.code, Code::DENIED);
    world.order("net.reset_budget", json!({ "agent": "a" })).unwrap();
    assert!(guest.text("curl -sS -m 10 http://web.test/").contains("hello"));
    let reset = |event: &Event| matches!(event, Event::BudgetReset { by, .. } if by == "operator test");
    assert!(world.events.lock().unwrap().iter().any(reset));
    let nobody = world.order("net.reset_budget", json!({ "agent": "nobody" })).unwrap_err();
    assert_eq!(nobody.code, Code::NOT_FOUND);
}

#[test]
fn seconds_that_are_over_cut_what_is_open_and_admit_nothing_more() {
    // Long enough for a busy machine to start a guest in it, and less than first bytes may take.
    const SECONDS: u64 = 8;
    let world = World::new();
    let lease = spending(&world, "a.1", Budget { wall_secs_max: Some(SECONDS), ..Budget::default() });
    let guest = world.guest(&lease);
    let said = guest.python(
        "s = socket.create_connection(('web.test', 80))\ns.sendall(b'GET / HTTP/1.1\\r\\nHost: web.test\\r\\n')\n\
         t = time.time()\ntry:\n  print('end', len(s.recv(9)))\nexcept OSError as e: print(repr(e))\n",
    );
    assert!(said.contains("end 0") || said.contains("ConnectionReset"), "{said}");
    world.denied("budget", &format!("more than {SECONDS} seconds"));
    assert!(!guest.text("curl -sS -m 10 http://web.test/").contains("hello"));
    assert_eq!(budget(&world, "a").used.wall_secs, SECONDS);
}

#[test]
fn what_was_spent_and_cannot_be_read_is_not_nothing() {
    let mut world = World::new();
    drop(spending(&world, "a.1", Budget::default()));
    world.kill_egress();
    std::fs::write(world.dir.join("state/meters/a.json"), "{\"agent\":\"a\"").unwrap();
    world.start_egress();
    let refused = attach(&world, "a.2", &["web.test"], &[]).err().expect("a refusal");
    assert!(refused.message.contains("what was spent cannot be read"), "{refused}");
    assert!(refused.data.unwrap().remedy.contains("nullctl net budget a --reset"));
    assert!(budget(&world, "a").damaged.is_some());
    world.order("net.reset_budget", json!({ "agent": "a" })).unwrap();
    attach(&world, "a.2", &["web.test"], &[]).unwrap();
}

#[test]
fn two_secrets_set_at_once_for_one_host_do_not_both_hold() {
    let world = World::new();
    set(&world, "ONE", "web.test").unwrap();
    set(&world, "TWO", "other.test").unwrap();
    let _lease = attach(&world, "a.1", &["web.test", "other.test"], &["ONE", "TWO"]).unwrap();
    // Each is checked before the other's receipt is there.
    world.receipt_ms.store(1_500, std::sync::atomic::Ordering::Relaxed);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let both = ["ONE", "TWO"].map(|name| scope.spawn(|| set(&world, name, "third.test")));
        both.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].code, Code::CONFLICT, "{refused:?}");
    let hosts: Vec<_> =
        list(&world).secrets.into_iter().map(|secret| secret.policy.host.to_string()).collect();
    assert_eq!(hosts.iter().filter(|host| *host == "third.test").count(), 1, "{hosts:?}");
}
