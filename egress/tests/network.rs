//! What an agent can reach and what it cannot, with real clients, packets, namespaces and the real binary.
//! Needs root, iproute2, curl, dig (bind9-dnsutils), nftables, openssl and python3; without them the tests fail.

mod world;

use abi::ledger::Event;
use abi::node::NodeConfig;
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};
use world::{Lease, World};

/// The synthetic address of a name of the only agent.
fn synthetic(world: &World, name: &str) -> String {
    let grants = world.grants();
    grants.agents[0].synthetic[&name.parse().unwrap()].clone()
}

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_allowed_name_works_over_http_and_tls_with_a_receipt_first() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80", "web.test:443"], None);
    let guest = world.guest(&lease);
    assert_eq!(guest.text("curl -sS -m 10 http://web.test/"), "hello from 203.0.113.10 by http\n");
    assert_eq!(guest.text("curl -sS -m 10 -k https://web.test/"), "hello from 203.0.113.10 by tls\n");
    let big = guest.text("curl -sS -m 15 http://web.test/big | wc -c");
    assert_eq!(big.trim(), "4194304");
    let events = world.events.lock().unwrap().clone();
    let connected = |port: u16| {
        events.iter().any(|event| {
            matches!(event, Event::NetConnected { name, port: p, address, .. }
                if name.as_str() == "web.test" && *p == port && address == "203.0.113.10")
        })
    };
    assert!(matches!(events[0], Event::NetAttached { names: 2, .. }), "{events:?}");
    assert!(connected(80) && connected(443), "{events:?}");
    let grants = world.grants();
    assert_eq!(grants.agents[0].connections_total, 3);
    assert!(grants.agents[0].bytes_in > 4_194_304);
    let counters = world.call("net.grants", json!({ "counters_only": true }));
    let counters: abi::control::Grants = serde_json::from_value(counters).unwrap();
    assert_eq!(counters.agents[0].connections_total, 3);
    assert!(counters.agents[0].allow.is_empty() && counters.agents[0].synthetic.is_empty());
    let of = |agent: &str| -> abi::control::Grants {
        serde_json::from_value(world.call("net.grants", json!({ "agent": agent }))).unwrap()
    };
    assert_eq!((of("a").agents.len(), of("a").left_out, of("b").agents.len()), (1, 0, 0));
}

#[test]
fn without_a_receipt_nothing_is_dialled() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80", "web.test:443"], None);
    let guest = world.guest(&lease);
    world.refuse_receipts.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(guest.text("curl -sS -m 10 http://web.test/").contains("no receipt, so no connection"));
    assert!(guest.text("curl -sS -m 10 -k https://web.test/").contains("curl: ("));
    assert!(!world.seen().contains("connect "), "{}", world.seen());
    let refused = world.try_attach("b.1", &[], None).err().unwrap();
    assert!(refused.message.contains("no receipt, so no network"), "{refused}");
}

#[test]
fn any_other_name_does_not_exist_and_says_how_to_grant_it() {
    let world = World::new();
    let lease = world.attach("researcher.1", &["web.test:443"], None);
    let guest = world.guest(&lease);
    let answer = guest.text("dig +edns +nocookie evil.example A");
    assert!(answer.contains("status: NXDOMAIN") && answer.contains("EDE: 15 (Blocked)"), "{answer}");
    let remedy =
        "\"evil.example\" is not in network.allow of agent researcher; add it to capabilities.network.allow";
    assert!(answer.contains(remedy), "{answer}");
    assert!(guest.text("dig +tcp +edns evil.example A").contains("EDE: 15 (Blocked)"));
    let denial = world.denied("name-not-granted", "dns A evil.example");
    assert_eq!((denial.instance.to_string().as_str(), denial.remedy.as_str()), ("researcher.1", remedy));
    let address = synthetic(&world, "web.test");
    assert_eq!(guest.text("dig +short web.test A").trim(), address);
    assert_eq!(guest.text("dig +short +tcp WEB.test A").trim(), address);
    assert_eq!(guest.text(&format!("dig +short -x {address}")).trim(), "web.test.");
    for kind in ["AAAA", "HTTPS", "SVCB", "TXT"] {
        let answer = guest.text(&format!("dig web.test {kind}"));
        assert!(answer.contains("status: NOERROR") && answer.contains("ANSWER: 0"), "{answer}");
    }
    assert!(!world.seen().contains("dns"), "a guest's question reached a resolver: {}", world.seen());
    let noted = |event: &Event| matches!(event, Event::NetDenied { rule, .. } if rule == "name-not-granted");
    assert!(world.events.lock().unwrap().iter().any(noted));
}

#[test]
fn a_port_that_was_not_granted_is_refused_at_once() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:443"], None);
    let guest = world.guest(&lease);
    let refused = guest.text("curl -sS -m 30 http://web.test/");
    assert!(
        refused.contains("curl: (") && !refused.contains("curl: (28)"),
        "no answer is not a refusal: {refused}"
    );
    assert!(world.denied("port-not-granted", "tcp web.test:80").remedy.contains("\"web.test:80\""));
}

#[test]
fn addresses_other_than_synthetic_ones_are_refused_at_once_and_told() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    for (address, port) in [
        ("8.8.8.8", 443),
        ("203.0.113.10", 80),
        ("169.254.169.254", 80),
        ("10.9.9.9", 80),
        ("192.0.2.2", 4466),
        ("100.64.0.1", 22),
        ("100.64.0.1", 15001),
        ("198.20.0.1", 80),
    ] {
        let said = guest.python(&format!(
            "try:\n  socket.create_connection(('{address}', {port}))\n  print('connected')\n\
             except OSError as e: print(repr(e))"
        ));
        assert!(said.contains("ConnectionRefused"), "{address}:{port} {said}");
        world.denied("raw-address", &format!("tcp {address}:{port}"));
    }
    assert!(!world.seen().contains("connect "), "{}", world.seen());
}

#[test]
fn udp_icmp_and_ipv6_do_not_leave() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:443"], None);
    let guest = world.guest(&lease);
    let address = synthetic(&world, "web.test");
    for (host, port) in [("8.8.8.8", 53), (address.as_str(), 443), ("100.64.0.1", 123)] {
        let said = guest.python(&format!(
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('{host}', {port}))\ns.send(b'x')\n\
             try:\n  print(s.recv(9))\nexcept OSError as e: print(repr(e))"
        ));
        assert!(said.contains("No route to host") || said.contains("Refused"), "{host} {said}");
        world.denied("protocol", &format!("udp {host}:{port}"));
    }
    let ping = "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\n\
         s.sendto(b'\\x08\\0\\xf7\\xfd\\0\\x01\\0\\x01', ('8.8.8.8', 0))\ntime.sleep(0.3)";
    assert_eq!(guest.python(ping), "");
    world.denied("protocol", "icmp 8.8.8.8");
    let said = guest.text(
        "ip -6 addr add fd00::2/64 dev eth0 nodad; ip -6 route add default dev eth0
         ip -6 neigh add fd00::1 lladdr 02:6e:62:00:00:01 dev eth0
         ip -6 neigh add 2001:db8::1 lladdr 02:6e:62:00:00:01 dev eth0
         for to in fd00::1 2001:db8::1; do curl -sS -m 2 -g \"http://[$to]/\"; done",
    );
    assert_eq!(said.matches("curl: (").count(), 2, "{said}");
    assert!(text(&lease.as_root("ip -6 addr")).trim().is_empty(), "the namespace has IPv6");
    assert!(!world.seen().contains("connect "), "{}", world.seen());
}

#[test]
fn tls_must_ask_for_the_name_it_was_connected_to() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:443", "web.test:8080"], None);
    let guest = world.guest(&lease);
    let address = synthetic(&world, "web.test");
    let said =
        guest.text(&format!("curl -sS -m 10 -k --resolve other.test:443:{address} https://other.test/"));
    assert!(said.contains("unrecognized name"), "{said}");
    assert!(world.denied("sni-mismatch", "sni other.test on web.test:443").remedy.contains("network.allow"));
    let said = guest.text(&format!("openssl s_client -noservername -connect {address}:443 </dev/null"));
    assert!(said.contains("access denied"), "{said}");
    world.denied("no-sni", "web.test:443");
    let said = guest.text("curl -sS -m 10 http://web.test:443/");
    assert!(said.contains("curl: ("), "{said}");
    world.denied("protocol", "not TLS on web.test:443");
    let said =
        guest.text(&format!("openssl s_client -servername other.test -connect {address}:8080 </dev/null"));
    assert!(said.contains("unrecognized name"), "TLS on another port is checked too: {said}");
    assert!(!world.seen().contains("connect "), "{}", world.seen());
}

#[test]
fn http_must_ask_for_the_name_on_every_request() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80", "web.test:22"], None);
    let guest = world.guest(&lease);
    let said = guest.text("curl -sS -m 10 -H 'Host: other.test' http://web.test/");
    assert!(
        said.contains("rule: host-mismatch") && said.contains("host other.test on web.test:80"),
        "{said}"
    );
    assert!(guest.text("curl -sS -m 10 -p -x http://web.test:80 http://other.test/").contains("curl: ("));
    world.denied("protocol", "CONNECT");
    assert!(!world.seen().contains("connect "), "{}", world.seen());
    let said = guest.python(
        "s = socket.create_connection(('web.test', 80))\n\
         s.sendall(b'GET /one HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n'); print(s.recv(999))\n\
         s.sendall(b'GET /two HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n')\n\
         try:\n  print('end', s.recv(999))\nexcept OSError as e: print('end', e)",
    );
    assert!(said.contains("200 OK") && said.contains("end") && !said.contains("end b'HTTP"), "{said}");
    world.denied("host-mismatch", "host other.test on web.test:80");
    assert!(world.seen().contains("GET /one") && !world.seen().contains("/two"), "{}", world.seen());
    // A client that lets the server speak first is looked at all the same.
    let said = guest.python(
        "s = socket.create_connection(('web.test', 22)); print(s.recv(99))\n\
         s.sendall(b'GET /three HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n')\n\
         try:\n  print('end', s.recv(999))\nexcept OSError as e: print('end', e)",
    );
    assert!(said.contains("SSH-2.0-test") && !world.seen().contains("/three"), "{said} {}", world.seen());
    world.denied("host-mismatch", "host other.test on web.test:22");
}

#[test]
fn a_name_without_an_address_is_not_asked_for_again_at_once() {
    let world = World::new();
    let lease = world.attach("a.1", &["nowhere.test:80"], None);
    let guest = world.guest(&lease);
    let address = world.grants().agents[0].synthetic[&"nowhere.test".parse().unwrap()].clone();
    let said = guest.python(&format!(
        "for n in range(20):\n  s = socket.create_connection(('{address}', 80))\n\
         \x20 s.sendall(b'GET / HTTP/1.1\\r\\nHost: nowhere.test\\r\\n\\r\\n')\n  print(s.recv(12))"
    ));
    assert_eq!(said.matches("HTTP/1.1 502").count(), 20, "{said}");
    let asked = world.seen().matches("dns nowhere.test").count();
    assert!((1..=4).contains(&asked), "{asked} questions");
}

#[test]
fn many_connections_at_once_ask_a_resolver_once() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:22"], None);
    let guest = world.guest(&lease);
    let said = guest.python(
        "held = [socket.create_connection(('web.test', 22)) for n in range(100)]\n\
         print(sum(1 for s in held if s.recv(99).startswith(b'SSH')))",
    );
    assert_eq!(said, "100\n");
    let asked = world.seen().matches("dns web.test").count();
    assert!(asked < 100, "{asked} questions for 100 connections");
}

#[test]
fn a_protocol_in_which_the_server_speaks_first_works() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:22"], None);
    let guest = world.guest(&lease);
    let said = guest.python(
        "s = socket.create_connection(('web.test', 22)); print(s.recv(99))\n\
         s.sendall(b'SSH-2.0-me\\r\\n'); print(s.recv(99)); s.shutdown(1); print(s.recv(9))",
    );
    assert_eq!(said, "b'SSH-2.0-test\\r\\n'\nb'SSH-2.0-me\\r\\n'\nb''\n");
}

#[test]
fn a_name_that_turns_inward_is_refused_and_the_operators_word_is_not() {
    let mut config = NodeConfig::default();
    config.network.hosts.insert("closed.test".parse().unwrap(), vec!["10.9.9.9".parse().unwrap()]);
    config.network.hosts.insert("node.test".parse().unwrap(), vec!["192.0.2.2".parse().unwrap()]);
    let world = World::with(config);
    let lease = world.attach("a.1", &["web.test:80", "closed.test:80", "node.test:80"], None);
    let guest = world.guest(&lease);
    assert_eq!(guest.text("curl -sS -m 10 http://web.test/"), "hello from 203.0.113.10 by http\n");
    for inside in ["10.9.9.9", "169.254.169.254", "192.168.77.7", "127.0.0.1", "192.0.2.2", "198.18.0.5"] {
        world.set_dns(json!({"web.test": [inside]}));
        let said = guest.text("curl -sS -m 10 http://web.test/");
        assert!(said.contains("rule: private-address"), "{inside} {said}");
        world.denied("private-address", &format!("tcp web.test:80 at {inside}"));
        assert!(!world.seen().contains(&format!("connect {inside}")), "{}", world.seen());
    }
    assert_eq!(guest.text("curl -sS -m 10 http://closed.test/"), "hello from 10.9.9.9 by http\n");
    assert!(guest.text("curl -sS -m 10 http://node.test/").contains("rule: private-address"));
    world.set_dns(json!({}));
    assert!(
        guest.text("curl -sS -m 10 http://web.test/").contains("502 Bad")
            || guest.text("curl -sSi -m 10 http://web.test/").contains("502")
    );
}

#[test]
fn the_nodes_own_names_may_be_private_but_never_the_node_and_agents_cannot_ask() {
    let mut config = NodeConfig::default();
    config.network.hosts.insert("ntp.corp".parse().unwrap(), vec!["10.9.9.9".parse().unwrap()]);
    let world = World::with(config);
    world.set_dns(json!({
        "time.test": ["203.0.113.10", "203.0.113.11"], "inside.test": ["10.1.2.3"], "self.test": ["192.0.2.2"],
        "loop.test": ["127.0.0.1"],
    }));
    let ask = |uid: u32, name: &str| world.ask_as(uid, "net.resolve", json!({ "name": name }));
    // The clock's, the forwarder's and root's word is the node's.
    for uid in [205, 206, 0] {
        assert_eq!(ask(uid, "time.test").unwrap()["addresses"], json!(["203.0.113.10", "203.0.113.11"]));
    }
    assert_eq!(ask(205, "inside.test").unwrap()["addresses"], json!(["10.1.2.3"]));
    assert_eq!(ask(205, "ntp.corp").unwrap()["addresses"], json!(["10.9.9.9"]));
    for never in ["self.test", "loop.test", "nowhere.test"] {
        let refused = ask(205, never).unwrap_err();
        assert!(refused.message.contains(never), "{refused}");
    }
    // Any other user's connection is closed, and an operator is refused.
    let stranger = std::panic::AssertUnwindSafe(|| ask(1000, "time.test"));
    assert!(std::panic::catch_unwind(stranger).is_err());
    let refused = world::result(&mut world.open("net.resolve", json!({ "name": "time.test" }))).unwrap_err();
    assert!(refused.message.contains("for services of the node"), "{refused}");
}

#[test]
fn agents_do_not_share_grants() {
    let world = World::new();
    let (one, two) =
        (world.attach("a.1", &["web.test:80"], None), world.attach("b.1", &["other.test:80"], None));
    let (first, second) = (world.guest(&one), world.guest(&two));
    let grants = world.grants();
    let of_a = grants.agents[0].synthetic[&"web.test".parse().unwrap()].clone();
    assert!(first.text("curl -sS -m 10 http://web.test/").contains("203.0.113.10"));
    assert!(second.text("curl -sS -m 10 http://other.test/").contains("203.0.113.11"));
    assert!(second.text("dig web.test A").contains("NXDOMAIN"));
    let said = second.text(&format!("curl -sS -m 10 -H 'Host: web.test' http://{of_a}/"));
    assert!(said.contains("curl: ("), "{said}");
    assert_eq!(world.denied("raw-address", &format!("tcp {of_a}:80")).instance.to_string(), "b.1");
}

#[test]
fn an_empty_list_allows_nothing() {
    let world = World::new();
    let lease = world.attach("a.1", &[], None);
    let guest = world.guest(&lease);
    assert!(guest.text("dig web.test A").contains("NXDOMAIN"));
    for address in ["198.18.0.5", "203.0.113.10"] {
        assert!(guest.text(&format!("curl -sS -m 5 http://{address}/")).contains("curl: ("));
        world.denied("raw-address", &format!("tcp {address}:80"));
    }
    assert!(!world.seen().contains("connect "), "{}", world.seen());
}

#[test]
fn a_vmm_that_was_taken_over_reaches_nothing_from_its_namespace() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let address = synthetic(&world, "web.test");
    for target in
        ["100.64.0.1/53", "100.64.0.1/15001", "8.8.8.8/80", "127.0.0.1/53", &format!("{address}/80")]
    {
        let said =
            text(&lease.as_vmm(&format!(
                "timeout 2 bash -c ': < /dev/tcp/{target}' && echo connected || echo refused"
            )));
        assert!(said.contains("refused") && !said.contains("connected\n"), "{target} {said}");
    }
    let said = text(&lease.as_vmm("dig +time=1 +tries=1 @100.64.0.1 web.test; true"));
    assert!(
        said.contains("timed out") || said.contains("no servers") || said.contains("not permitted"),
        "{said}"
    );
    assert!(!text(&lease.as_vmm("ip link set lo down")).is_empty(), "the VMM may change the namespace");
    assert!(!world.seen().contains("connect "), "{}", world.seen());
}

#[test]
fn the_end_of_the_lease_cuts_open_connections_and_stops_everything() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:22"], None);
    let guest = world.guest(&lease);
    let address = synthetic(&world, "web.test");
    let mut child = guest.spawn_python(&format!(
        "s = socket.create_connection(('{address}', 22)); print(s.recv(99), flush=True)\n\
         t = time.time()\ntry: r = s.recv(9)\nexcept OSError as e: r = e\nprint('cut', r, flush=True)"
    ));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.next().unwrap().contains("SSH-2.0"));
    assert_eq!(world.grants().agents[0].connections, 1);
    let Lease { connection, namespace, .. } = lease;
    let begun = Instant::now();
    drop(connection);
    assert!(lines.next().unwrap().starts_with("cut"));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !world.events.lock().unwrap().iter().any(|event| matches!(event, Event::NetDetached { .. })) {
        assert!(Instant::now() < until, "no NetDetached");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(world.grants().agents.is_empty());
    assert!(guest.text("dig +time=1 +tries=1 web.test").contains("no servers could be reached"));
    drop(namespace);
}

#[test]
fn a_running_vm_has_its_network_back_after_egress_was_killed() {
    let mut world = World::new();
    let mut lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    assert!(guest.text("curl -sS -m 10 http://web.test/").contains("hello"));
    let before = synthetic(&world, "web.test");
    world.kill_egress();
    assert!(matches!(lease.connection.read_line(), Ok(None) | Err(_)), "cage sees the end of the lease");
    assert!(
        guest.text(&format!("curl -sS -m 3 http://{before}/")).contains("curl: ("),
        "nothing leaves meanwhile"
    );
    world.start_egress();
    let again = world.attach("a.1", &["web.test:80"], Some(&lease.namespace));
    assert_eq!(again.attached, lease.attached);
    assert_eq!(synthetic(&world, "web.test"), before, "a guest remembers addresses");
    assert!(guest.text("curl -sS -m 10 http://web.test/").contains("hello"));
    assert!(guest.text("curl -sS -m 5 http://8.8.8.8/").contains("curl: (7)"));
    world.denied("raw-address", "tcp 8.8.8.8:80");
    for tables in [world.on_node("nft list tables"), again.as_root("nft list tables")] {
        assert_eq!(text(&tables), "table inet nullbox\n");
    }
    let rules = text(&again.as_root("nft list ruleset"));
    assert_eq!(rules.matches("dnat").count(), 2, "one rule and its acceptance: {rules}");
}

#[test]
fn the_rules_stand_as_an_independent_reader_sees_them() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    for (rules, hooks) in
        [(lease.as_root("nft -j list ruleset"), 4), (world.on_node("nft -j list ruleset"), 3)]
    {
        let rules: serde_json::Value = serde_json::from_slice(&rules.stdout).unwrap();
        let chains: Vec<_> =
            rules["nftables"].as_array().unwrap().iter().filter_map(|o| o.get("chain")).collect();
        let filters: Vec<_> = chains.iter().filter(|c| c["type"] == "filter").collect();
        assert_eq!(filters.len(), hooks, "{chains:#?}");
        assert!(filters.iter().all(|chain| chain["policy"] == "drop"), "{chains:#?}");
    }
    // Without /etc/protocols nft writes numbers.
    let rules =
        text(&lease.as_root("nft list chain inet nullbox from_guest")).replace("l4proto 6", "l4proto tcp");
    for expected in [
        "iifname != \"nbtap0\" counter packets 0 bytes 0 drop",
        "ip saddr != 100.64.0.2",
        "limit rate over 200/second burst 400 packets jump flood",
        "ip daddr 100.64.0.1 udp dport 53 accept",
        "ip daddr 198.18.0.0/15 meta l4proto tcp accept",
        "log prefix \"refused\" group 1 snaplen 80",
        "meta l4proto tcp reject with tcp reset",
    ] {
        assert!(rules.contains(expected), "`{expected}` is missing in\n{rules}");
    }
}

#[test]
fn the_nodes_firewall_lets_in_the_gate_and_lets_out_egress() {
    let mut config = NodeConfig::default();
    config.logs.forward = "udp://192.0.2.1:514".into();
    let world = World::with(config);
    let serve = "timeout 60 python3 -c \"import socket, time\nservers = [socket.create_server(('', p)) for p in (9999, 4466)]\n\
         time.sleep(55)\" &\n for n in {1..500}; do : < /dev/tcp/127.0.0.1/4466 && break || sleep 0.1; done 2> /dev/null\n\
         ip netns exec";
    let internet = format!("nbx{}", world.dir.display().to_string().trim_start_matches("/tmp/nbx"));
    let knock = |port: u16, secs: u8| {
        format!(
            "timeout {secs} bash -c ': < /dev/tcp/192.0.2.2/{port}' && echo open-{port} || echo shut-{port}"
        )
    };
    let said = text(&world.on_node(&format!(
        "{serve} {internet}i bash -c '{}; {}'; kill %1",
        knock(4466, 20).replace('\'', "\""),
        knock(9999, 2).replace('\'', "\"")
    )));
    assert!(said.contains("open-4466") && said.contains("shut-9999"), "{said}");
    let said =
        text(&world.on_node("timeout 3 bash -c ': < /dev/tcp/203.0.113.10/80' && echo left || echo kept"));
    assert!(said.contains("kept"), "root on the node reached out: {said}");
    let said = text(&world.on_node(
        "setpriv --reuid=1234 --clear-groups timeout 3 bash -c ': < /dev/tcp/203.0.113.10/80' && echo left || echo kept",
    ));
    assert!(said.contains("kept"), "{said}");
    // Where others may send, a jail's user may not: not even over the loopback.
    for (uid, sent) in [(99_999, true), (100_000, false), (100_037, false), (100_063, false), (100_064, true)]
    {
        let said = text(&world.on_node(&format!(
            "python3 -c 'import os, socket\nos.seteuid({uid}); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
             os.seteuid(0)\ns.sendto(b\"x\", (\"127.0.0.1\", 9)); print(\"sent\")' || true"
        )));
        assert_eq!(said.contains("sent"), sent, "uid {uid}: {said}");
    }
    // The DHCP client's user may ask for a lease; nobody else may, and it may do nothing else.
    for (uid, port, sent) in [(204, 67, true), (204, 53, false), (0, 67, false)] {
        // A socket belongs to who made it: python itself may only be readable for root.
        let said = text(&world.on_node(&format!(
            "python3 -c 'import os, socket\nos.seteuid({uid}); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
             os.seteuid(0)\ns.setsockopt(1, 6, 1); s.bind((\"0.0.0.0\", 68))\n\
             s.sendto(b\"x\", (\"255.255.255.255\", {port})); print(\"sent\")' || true"
        )));
        assert_eq!(said.contains("sent"), sent, "uid {uid} to port {port}: {said}");
    }
    // The clock's user may ask time servers, and the answer comes in; it may do nothing else, and nobody else may ask.
    // The log's user may send to the port of [logs].
    let server = "import select, socket\nall = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for p in (123, 514)]\n\
         all[0].bind((\"192.0.2.1\", 123)); all[1].bind((\"192.0.2.1\", 514)); print(\"up\", flush=True)\n\
         while True:\n  for s in select.select(all, [], [])[0]: d, a = s.recvfrom(99); s.sendto(b\"time\", a)";
    let server = world.spawn_on_internet(&format!("exec python3 -c '{server}'"));
    for (uid, port, answered) in [
        (205, 123, true),
        (205, 514, false),
        (0, 123, false),
        (203, 123, false),
        (206, 514, true),
        (206, 123, false),
        (0, 514, false),
    ] {
        let patience = if answered { 20 } else { 2 };
        let said = text(&world.on_node(&format!(
            "python3 -c 'import os, socket\nos.seteuid({uid}); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
             os.seteuid(0)\ns.settimeout({patience}); s.connect((\"192.0.2.1\", {port}))\n\
             s.send(b\"x\"); print(s.recv(9))' || true"
        )));
        assert_eq!(said.contains("b'time'"), answered, "uid {uid} to port {port}: {said}");
    }
    drop(server);
    let said = text(&world.on_internet("ping -c 1 -W 20 192.0.2.2 || true"));
    assert!(said.contains("1 received") || said.contains("not found"), "{said}");
}

#[test]
fn one_connection_too_many_is_reset_and_the_others_live() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:22"], None);
    let guest = world.guest(&lease);
    let said = guest.python(
        "held = [socket.create_connection(('web.test', 22)) for n in range(256)]\n\
         print(sum(1 for s in held if s.recv(99).startswith(b'SSH')))\n\
         try:\n  s = socket.create_connection(('web.test', 22)); print('extra', s.recv(9))\n\
         except OSError as e: print('extra', e)\n\
         held[0].sendall(b'SSH-2.0-me\\r\\n'); print(held[0].recv(99))",
    );
    assert_eq!(said, "256\nextra [Errno 104] Connection reset by peer\nb'SSH-2.0-me\\r\\n'\n");
    world.denied("limit", "more than 256 connections");
}

#[test]
fn floods_are_bounded_and_told_once() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    let flood = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nq = b'\\0\\x07\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0'\n\
         for n in range(3000): s.sendto(q + bytes([5]) + b'%05d' % n + b'\\x04test\\0\\0\\x01\\0\\x01', ('100.64.0.1', 53))\n\
         c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         for n in range(1500):\n\
         \x20 try: c.sendto(b'x', (f'9.9.{n >> 8}.{n & 255}', 9))\n\
         \x20 except OSError: pass\nprint('sent')";
    // The guest's frames pass a Python program: on a busy machine one flood may come slower than the bound.
    let bounded =
        || world.denials().iter().any(|d| d.rule == "limit" && d.what.contains("dns questions a second"));
    for _ in 0..6 {
        assert_eq!(guest.python(flood), "sent\n");
        if bounded() {
            break;
        }
    }
    world.denied("limit", "dns questions a second");
    let kept = world.denials().len();
    assert!(kept < 200, "{kept} denials kept of 4500");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(
        guest.text("curl -sS -m 10 http://web.test/").contains("hello"),
        "the flood locked its agent out"
    );
}

#[test]
fn followers_see_denials_as_they_happen_and_strangers_see_nothing() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    let mut follower = world.open("net.denials", json!({"follow": true}));
    let page = follower.read_line().unwrap().unwrap();
    assert!(page.contains("\"result\":{\"denials\":[]"), "what is kept comes first: {page}");
    guest.text("dig one.example");
    let line = follower.read_line().unwrap().unwrap();
    assert!(line.contains("\"method\":\"denial\"") && line.contains("one.example"), "{line}");
    let refused = world.open("net.attach", json!({})).read_line().unwrap().unwrap();
    assert!(refused.contains("is for services of the node"), "{refused}");
    let twice = world.try_attach("a.1", &[], None).err().unwrap();
    assert!(twice.message.contains("has a network already"), "{twice}");
}

#[test]
fn a_guest_cannot_pass_for_another_by_its_source_address() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    let said = guest
        .text("ip addr add 100.64.0.3/32 dev eth0; dig +time=1 +tries=1 -b 100.64.0.3 @100.64.0.1 web.test");
    assert!(said.contains("timed out") || said.contains("no servers"), "{said}");
}
