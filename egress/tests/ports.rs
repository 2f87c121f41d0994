//! Published ports: who gets into a guest through the node, who does not, and what a guest gets out of it. Needs what network.rs
//! needs.

mod world;

use abi::ledger::Event;
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use world::{Guest, Lease, World};

/// The test internet's machine, and another one behind it.
const PEER: &str = "192.0.2.1";
const STRANGER: &str = "203.0.113.10";
const ONE: &[(u16, u16, &[&str])] = &[(30_080, 8080, &["192.0.2.1/32"])];

/// A server in a guest that answers with what it got, and says `end` when the other side has ended.
fn serve(guest: &Guest, port: u16) -> Child {
    let mut child = guest.spawn_python(&format!(
        "import threading\nserver = socket.create_server(('', {port}))\nprint('up', flush=True)\n\
         def talk(s):\n\
         \x20 while (got := s.recv(99)): s.sendall(b'guest ' + got)\n\
         \x20 s.sendall(b' end'); s.close()\n\
         while True: threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()"
    ));
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    std::mem::forget(out); // a closed pipe would end the helper
    child
}

/// What the test internet's machine gets that says hello to a port and half-closes: `guest hello end`, or why not.
///
/// A reset that arrives between the hello and the half-close makes shutdown(2) fail with ENOTCONN; recv(2) still tells the reset.
fn visit(world: &World, port: u16) -> String {
    say(
        world,
        &format!(
            "s = socket.create_connection((\"192.0.2.2\", {port}), 30)\n  s.sendall(b\"hello\")\n  try: s.shutdown(1)\n  \
             except OSError as e:\n    if e.errno != errno.ENOTCONN: raise\n  got = b\"\"\n  while True:\n    \
             part = s.recv(99)\n    if not part: break\n    got += part\n  print(got)"
        ),
    )
}

/// What one who is shut out sees: why no connection came about within 3 s.
fn knock(world: &World, from: &str, to: &str, port: u16) -> String {
    say(world, &format!("socket.create_connection((\"{to}\", {port}), 3, (\"{from}\", 0)); print(\"in\")"))
}

/// What a program in the test internet prints, or what it fails with.
fn say(world: &World, code: &str) -> String {
    let code = format!("import errno, socket\ntry:\n  {code}\nexcept OSError as e: print(repr(e))");
    let output = world.on_internet(&format!("python3 -c '{code}'"));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Ends a server with the timeout(1) around it, which passes the signal on.
fn end(mut child: Child) {
    world::sh(&format!("kill {}", child.id()));
    child.wait().unwrap();
}

#[test]
fn a_published_port_leads_into_the_guest_for_its_sources_alone() {
    let world = World::new();
    let lease = world.try_publish("a.1", &[], ONE, None).unwrap();
    let guest = world.guest(&lease);
    let server = serve(&guest, 8080);
    assert_eq!(visit(&world, 30_080), "b'guest hello end'\n", "both ways, and half-closed");
    let events = world.events.lock().unwrap().clone();
    let came = |event: &Event| {
        matches!(event, Event::PortConnected { instance, node_port: 30_080, from }
            if instance.to_string() == "a.1" && from.starts_with("192.0.2.1:"))
    };
    assert!(events.iter().any(came), "{events:?}");
    // The peer sees the end before its place is given back.
    world.eventually(|| world.grants().agents[0].published_connections == 0);
    let grants = world.grants();
    let agent = &grants.agents[0];
    assert_eq!(agent.published_total, 1);
    assert_eq!((agent.bytes_in, agent.bytes_out), (5, 15));
    assert_eq!(agent.publish[0].node_port, 30_080);
    // Another source meets the node's firewall, and sees what a port shows that nobody publishes.
    let shut = knock(&world, PEER, "192.0.2.2", 30_081);
    assert!(shut.contains("TimeoutError"), "{shut}");
    assert_eq!(knock(&world, STRANGER, "192.0.2.2", 30_080), shut);
    // Who comes past it, over the loopback, meets egress.
    let said = world.on_node("timeout 5 bash -c 'exec 3<> /dev/tcp/127.0.0.1/30080; cat <&3' 2>&1 || true");
    assert!(!String::from_utf8_lossy(&said.stdout).contains("guest"), "{said:?}");
    let denial = world.denied("source-not-granted", "127.0.0.1 to port 30080");
    assert!(denial.remedy.contains("network.publish") && denial.instance.to_string() == "a.1");
    assert_eq!(world.grants().agents[0].published_total, 1);
    end(server);
}

#[test]
fn nothing_but_the_published_port_leads_to_the_guest_and_nothing_leads_around_egress() {
    let world = World::new();
    let lease = world.try_publish("a.1", &[], ONE, None).unwrap();
    let guest = world.guest(&lease);
    let (server, other) = (serve(&guest, 8080), serve(&guest, 9090));
    // The node does not forward, whatever route a peer has.
    world::sh(&format!("ip -n {} route add 100.64.0.0/30 via 192.0.2.2", world.internet()));
    for port in [8080, 9090] {
        let said = knock(&world, PEER, "100.64.0.2", port);
        assert!(said.contains("Error"), "{said}");
    }
    // A VMM that was taken over, and root in its namespace, are not egress.
    for (who, run) in [("vmm", Lease::as_vmm as fn(&Lease, &str) -> _), ("root", Lease::as_root)] {
        for port in [8080, 9090] {
            let knock = format!("timeout 2 bash -c ': < /dev/tcp/100.64.0.2/{port}' && echo in || echo kept");
            let said: std::process::Output = run(&lease, &knock);
            assert!(String::from_utf8_lossy(&said.stdout).contains("kept"), "{who} {port}: {said:?}");
        }
    }
    end(server);
    end(other);
    // Nobody serves: the peer is told, and does not hang.
    assert!(visit(&world, 30_080).contains("ConnectionReset"));
}

#[test]
fn a_guest_does_not_reach_the_node_through_its_port() {
    let world = World::new();
    let lease = world.try_publish("a.1", &[], ONE, None).unwrap();
    let guest = world.guest(&lease);
    let knock = |to: &str, port: u16| {
        guest.python(&format!(
            "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.bind(('', 8080))\n\
             try:\n  s.connect(('{to}', {port}))\n  print('connected')\nexcept OSError as e: print(repr(e))"
        ))
    };
    for (to, port) in [("100.64.0.1", 30_080), ("192.0.2.2", 30_080), ("100.64.0.1", 22), ("8.8.8.8", 443)] {
        let said = knock(to, port);
        assert!(said.contains("Refused"), "{to}:{port} {said}");
        world.denied("raw-address", &format!("tcp {to}:{port}"));
    }
    // A segment that looks like an answer, to a connection that nobody began.
    let said = guest.python(
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)\n\
         for flags in (0x12, 0x10, 0x18, 0x14):\n\
         \x20 head = struct.pack('!HHIIBBHHH', 8080, 40000, 1, 1, 0x50, flags, 999, 0, 0)\n\
         \x20 pseudo = socket.inet_aton('100.64.0.2') + socket.inet_aton('100.64.0.1') + struct.pack('!BBH', 0, 6, 20)\n\
         \x20 total = sum(struct.unpack('!16H', pseudo + head))\n\
         \x20 total = (total >> 16) + (total & 0xffff); total += total >> 16\n\
         \x20 s.sendto(head[:16] + struct.pack('!H', ~total & 0xffff) + head[18:], ('100.64.0.1', 0))\n\
         time.sleep(0.3); print('sent')",
    );
    assert_eq!(said, "sent\n");
    let passed = lease.as_root("nft list chain inet nullbox input");
    let rules = String::from_utf8_lossy(&passed.stdout).into_owned();
    assert!(rules.contains("sport 8080"), "the rule is there: {rules}");
    assert!(rules.contains("counter packets 0 bytes 0"), "a forged answer came as far as the input: {rules}");
}

#[test]
fn a_port_belongs_to_one_agent_and_is_shut_when_its_network_ends() {
    let world = World::new();
    let first = world.try_publish("a.1", &[], ONE, None).unwrap();
    let refused = world.try_publish("b.1", &[], &[(30_080, 80, &["0.0.0.0/0"])], None).err().unwrap();
    assert!(refused.message.contains("port 30080 of the node is published by a.1"), "{refused}");
    let open = || {
        let rules = world.on_node("nft list chain inet nullbox input");
        String::from_utf8_lossy(&rules.stdout).contains("dport 30080")
    };
    assert!(open());
    let guest = world.guest(&first);
    let server = serve(&guest, 8080);
    let held = world.spawn_on_internet(
        "exec python3 -u -c 'import socket\ns = socket.create_connection((\"192.0.2.2\", 30080))\n\
         s.sendall(b\"x\"); print(s.recv(99)); s.recv(99)'",
    );
    assert_eq!(world.grants().agents[0].published_connections, 1);
    let Lease { connection, namespace, .. } = first;
    drop(connection);
    let until = Instant::now() + Duration::from_secs(60);
    let mut held = held;
    while open() || held.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "open: {}, connection: {:?}", open(), held.0.try_wait());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(knock(&world, PEER, "192.0.2.2", 30_080).contains("TimeoutError"));
    world.try_publish("b.1", &[], &[(30_080, 80, &["0.0.0.0/0"])], None).unwrap();
    end(server);
    drop(namespace);
}

#[test]
fn without_a_receipt_nobody_comes_in() {
    let world = World::new();
    let lease = world.try_publish("a.1", &[], ONE, None).unwrap();
    let guest = world.guest(&lease);
    let server = serve(&guest, 8080);
    world.refuse_receipts.store(true, Ordering::Relaxed);
    assert!(visit(&world, 30_080).contains("ConnectionReset"));
    assert_eq!(world.grants().agents[0].bytes_in, 0);
    end(server);
}

#[test]
fn published_ports_are_back_after_egress_was_killed_and_no_stranger_came_in_meanwhile() {
    let mut world = World::new();
    let lease = world.try_publish("a.1", &[], ONE, None).unwrap();
    let guest = world.guest(&lease);
    let server = serve(&guest, 8080);
    assert!(visit(&world, 30_080).contains("guest hello"));
    world.kill_egress();
    assert!(visit(&world, 30_080).contains("Refused"));
    world.start_egress();
    assert!(knock(&world, PEER, "192.0.2.2", 30_080).contains("Timeout"), "shut until it is published again");
    let again = world.try_publish("a.1", &[], ONE, Some(&lease.namespace)).unwrap();
    assert!(visit(&world, 30_080).contains("guest hello"));
    end(server);
    drop(again);
}

#[test]
fn connections_and_sources_are_bounded() {
    let world = World::new();
    let many: Vec<String> = (0..16).map(|n| format!("10.{n}.0.0/16")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let ports: Vec<(u16, u16, &[&str])> = (0..8).map(|n| (30_000 + n, 80, many.as_slice())).collect();
    let most = world.try_publish("full.1", &[], &ports, None).unwrap();
    let refused = world.try_publish("b.1", &[], ONE, None).err().unwrap();
    assert!(refused.message.contains("no room for the sources"), "{refused}");
    drop(most);
    let until = Instant::now() + Duration::from_secs(60);
    let lease = loop {
        match world.try_publish("b.1", &[], ONE, None) {
            Ok(lease) => break lease,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let guest = world.guest(&lease);
    let server = serve(&guest, 8080);
    let said = world.on_internet(
        "python3 -c 'import socket, time\nheld = []\n\
         for n in range(128):\n  s = socket.create_connection((\"192.0.2.2\", 30080)); s.sendall(b\"x\"); held.append(s)\n  time.sleep(0.01)\n\
         print(sum(1 for s in held if s.recv(99) == b\"guest x\"))\n\
         s = socket.create_connection((\"192.0.2.2\", 30080))\n\
         try: print(s.recv(9))\nexcept OSError as e: print(repr(e))\n\
         held[0].sendall(b\"y\"); print(held[0].recv(99))'",
    );
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.starts_with("128\nConnectionResetError") && said.contains("guest y"), "{said}");
    world.denied("limit", "too many connections to port 30080");
    end(server);
}

#[test]
fn a_connection_to_the_gate_that_is_older_than_the_firewall_goes_on() {
    let mut world = World::new();
    world.kill_egress();
    world::sh(&format!("ip netns exec {} nft delete table inet nullbox", world.node()));
    // A server that speaks when told to, and a client that waits for it: as in the instant in which a node boots.
    let mut server = world.spawn_within(
        &world.node(),
        "exec python3 -u -c 'import os, socket, time\nl = socket.create_server((\"\", 4466)); print(\"up\")\n\
         s, _ = l.accept()\nwhile not os.path.exists(os.environ[\"GO\"]): time.sleep(0.02)\n\
         s.sendall(b\"hello\"); print(s.recv(9)); s.sendall(b\"bye\"); time.sleep(1)'",
    );
    let mut client = world.spawn_on_internet(
        "exec python3 -u -c 'import socket\ns = socket.create_connection((\"192.0.2.2\", 4466), 20); print(\"in\")\n\
         ok = s.recv(9) == b\"hello\"; s.sendall(b\"again\"); ok = ok and s.recv(9) == b\"bye\"\nraise SystemExit(0 if ok else 3)'",
    );
    world.start_egress();
    std::fs::write(world.dir.join("go"), "").unwrap();
    assert_eq!(client.0.wait().unwrap().code(), Some(0), "the connection hangs: {}", world.log());
    server.0.wait().unwrap();
    // The same port begins nothing: a first segment from it is refused like any other.
    let said = world.on_node(
        "python3 -c 'import socket\ns = socket.socket(); s.setsockopt(1, 2, 1); s.bind((\"\", 4466)); s.settimeout(2)\n\
         try:\n  s.connect((\"203.0.113.10\", 80)); print(\"left\")\nexcept OSError as e: print(\"kept\", e)'",
    );
    assert!(String::from_utf8_lossy(&said.stdout).contains("kept"), "{said:?}");
}
