//! How bytes pass and what they hold meanwhile: dials, half-closes, readers that do not read, crowds of connections. Needs what
//! network.rs needs.

mod world;

use abi::ledger::Event;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use world::{Running, World};

/// Where nothing answers: no host of the test internet has it, and its packets are dropped there.
const HOLE: &str = "203.0.113.66";
const HOST: &str = "203.0.113.10";

/// Makes packets to an address vanish, as a host that is down does.
fn black_hole(world: &World) {
    world::sh(&format!("ip -n {} route add blackhole {HOLE}/32", world.internet()));
}

/// A server on the test internet: Python with `serve(connection)` defined by `body`, on port 9000, with buffers of 64 KiB.
fn server(world: &World, body: &str) -> Running {
    let body = body.replace('\n', "\n ");
    world.spawn_on_internet(&format!(
        "exec python3 -u -c 'import socket, threading, time\n\
         l = socket.socket(); l.setsockopt(1, 2, 1); l.setsockopt(1, 8, 65536); l.bind((\"\", 9000)); l.listen(512); print(\"up\")\n\
         def serve(s):\n {body}\n\
         while True: threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()'"
    ))
}

/// The address that stands for the only name of an agent: what is spawned in a guest has no resolver.
fn address(world: &World, agent: &str) -> String {
    let grants = world.grants();
    let of = grants.agents.iter().find(|of| of.instance.to_string() == agent).unwrap();
    of.synthetic.values().next().unwrap().clone()
}

/// A field of /proc/PID/status of egress, in KiB.
fn status_kib(world: &World, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", world.egress_pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Descriptors of egress that are pipes.
fn pipes(world: &World) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", world.egress_pid())).unwrap();
    let targets = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).count()
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_second_address_answers_when_the_first_is_a_black_hole() {
    let world = World::new();
    black_hole(&world);
    world.set_dns(json!({"two.test": [HOLE, HOST], "hole.test": [HOLE, "203.0.113.67"]}));
    world::sh(&format!("ip -n {} route add blackhole 203.0.113.67/32", world.internet()));
    let lease = world.attach("a.1", &["two.test:80", "hole.test:80"], None);
    let guest = world.guest(&lease);
    // A dial gives up after 10 s: who waited for it would be too late.
    assert_eq!(guest.text("curl -sS -m 6 http://two.test/"), format!("hello from {HOST} by http\n"));
    let dialled = |world: &World, of: &str| {
        let events = world.events.lock().unwrap().clone();
        let address = |event: &Event| match event {
            Event::NetConnected { name, address, .. } if name.as_str() == of => Some(address.clone()),
            _ => None,
        };
        events.iter().filter_map(address).collect::<Vec<_>>()
    };
    assert_eq!(
        dialled(&world, "two.test"),
        [HOLE, HOST],
        "each dial has its receipt, in the order of the answer"
    );
    // The record names the address that carried the bytes.
    let ended = || {
        world.events.lock().unwrap().iter().any(|event| {
            matches!(event, Event::NetEnded { name, address, .. } if name.as_str() == "two.test" && address == HOST)
        })
    };
    wait_for("a record of the end", ended);
    ended_all(&world, 2);
    // Nobody answers: the client is told, and every address was tried.
    assert!(guest.text("curl -sS -m 20 http://hole.test/").contains("cannot be reached"));
    assert_eq!(dialled(&world, "hole.test").len(), 2);
    ended_all(&world, 4);
}

/// Waits until each of so many receipts of connections has one end.
fn ended_all(world: &World, count: usize) {
    let sorted = |mut places: Vec<u64>| {
        places.sort();
        places
    };
    wait_for("an end for each receipt", || {
        let events = world.events.lock().unwrap();
        let begun = events.iter().zip(1..).filter(|(event, _)| matches!(event, Event::NetConnected { .. }));
        let begun: Vec<u64> = begun.map(|(_, place)| place).collect();
        let ended = events.iter().filter_map(|event| match event {
            Event::NetEnded { receipt, .. } => Some(*receipt),
            _ => None,
        });
        begun.len() == count && sorted(ended.collect()) == begun
    });
}

#[test]
fn a_slow_receipt_is_no_slow_address() {
    let world = World::new();
    world.set_dns(json!({"two.test": [HOST, "203.0.113.11"]}));
    let lease = world.attach("a.1", &["two.test:80"], None);
    let guest = world.guest(&lease);
    world.receipt_ms.store(1500, Ordering::Relaxed);
    assert_eq!(guest.text("curl -sS -m 30 http://two.test/"), format!("hello from {HOST} by http\n"));
    ended_all(&world, 1);
}

#[test]
fn a_receipt_that_comes_after_the_cut_has_its_end() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    world.receipt_ms.store(3000, Ordering::Relaxed);
    let before = world.receipts_asked.load(Ordering::Relaxed);
    let mut waits = guest.spawn_python(&format!(
        "s = socket.create_connection(('{}', 80)); s.sendall(b'GET / HTTP/1.1\\r\\nHost: web.test\\r\\n\\r\\n')\n\
         try: print(s.recv(9))\n\
         except OSError: print('cut')",
        address(&world, "a.1")
    ));
    wait_for("its receipt is asked for", || world.receipts_asked.load(Ordering::Relaxed) > before);
    drop(lease); // with it the agent's network ends
    ended_all(&world, 1);
    waits.kill().unwrap();
    waits.wait().unwrap();
}

#[test]
fn who_waits_behind_others_for_a_receipt_is_told_in_time() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    world.receipt_ms.store(120_000, Ordering::Relaxed);
    // More than have a turn at a time: the last ones would wait for several times as long as the ledger may take.
    let said = guest.text(
        "for n in 1 2 3 4 5 6 7 8 9 10; do curl -sS -m 50 http://web.test/ -o /dev/null -w '%{http_code}\n' & done; wait",
    );
    assert_eq!(said, "502\n".repeat(10));
}

#[test]
fn an_agent_whose_connections_are_in_trouble_does_not_delay_another() {
    let world = World::new();
    black_hole(&world);
    world.set_dns(json!({"hole.test": [HOLE], "web.test": [HOST]}));
    let (bad, good) =
        (world.attach("bad.1", &["hole.test:9000"], None), world.attach("good.1", &["web.test:80"], None));
    let (first, second) = (world.guest(&bad), world.guest(&good));
    // Each waits for its receipt, then for the dial of an address that never answers, and comes again.
    world.receipt_ms.store(200, Ordering::Relaxed);
    let mut flood = first.spawn_python(&format!(
        "import threading\nto = '{}'\n\
         def knock():\n\
         \x20 while True:\n\
         \x20\x20 try:\n\
         \x20\x20\x20 s = socket.create_connection((to, 9000), 60); s.sendall(b'\\0x'); s.recv(9)\n\
         \x20\x20 except OSError: time.sleep(0.1)\n\
         for n in range(256): threading.Thread(target=knock, daemon=True).start()\ntime.sleep(120)",
        address(&world, "bad.1")
    ));
    wait_for("256 connections", || {
        let grants = world.grants();
        grants.agents.iter().any(|agent| agent.instance.to_string() == "bad.1" && agent.connections >= 250)
    });
    let receipts = |world: &World| {
        let events = world.events.lock().unwrap().clone();
        let name = |event: &Event| match event {
            Event::NetConnected { name, .. } => Some(name.to_string()),
            _ => None,
        };
        events.iter().filter_map(name).collect::<Vec<_>>()
    };
    let before = receipts(&world).len();
    assert_eq!(second.text("curl -sS -m 30 http://web.test/"), format!("hello from {HOST} by http\n"));
    let since = receipts(&world).split_off(before);
    let overtaken = since.iter().position(|name| name == "web.test").unwrap();
    assert!(overtaken < 60, "{overtaken} receipts of the other came first");
    assert!(before + overtaken < 200, "the other was not waiting any more");
    flood.kill().unwrap();
    flood.wait().unwrap();
}

#[test]
fn each_side_may_end_by_itself_and_the_other_goes_on() {
    let world = World::new();
    world.set_dns(json!({"far.test": [HOST]}));
    let lease = world.attach("a.1", &["far.test:9000"], None);
    let guest = world.guest(&lease);
    // The client ends; the server has all of it before it begins to answer: large both ways.
    let far = server(
        &world,
        "got = 0\nwhile part := s.recv(65536): got += len(part)\ns.sendall(b\"%08d\" % got + b\"y\" * 3000000); s.close()",
    );
    let said = guest.python(
        "s = socket.create_connection(('far.test', 9000)); s.sendall(b'\\0' + b'x' * 2999999); s.shutdown(1)\n\
         got = b''\nwhile part := s.recv(65536): got += part\nprint(got[:8], len(got))",
    );
    assert_eq!(said, "b'03000000' 3000008\n");
    drop(far);
    // The server ends; what the client says afterwards still arrives.
    let far = server(
        &world,
        "s.recv(1); s.sendall(b\"bye\"); s.shutdown(1)\ngot = 1\nwhile part := s.recv(65536): got += len(part)\n\
         open(\"/proc/self/comm\", \"w\").write(str(got))",
    );
    let said = guest.python(
        "s = socket.create_connection(('far.test', 9000)); s.sendall(b'\\0')\n\
         got = b''\nwhile part := s.recv(99): got += part\nprint(got)\ns.sendall(b'x' * 1999999); s.close()",
    );
    assert_eq!(said, "b'bye'\n");
    let counted =
        || std::fs::read_to_string(format!("/proc/{}/comm", far.0.id())).unwrap().trim() == "2000000";
    wait_for("the server counts 2000000", counted);
    let agent = &world.grants().agents[0];
    assert_eq!((agent.bytes_out, agent.bytes_in), (5_000_000, 3_000_011));
}

#[test]
fn a_slow_head_is_cut_and_a_slow_body_is_not() {
    let world = World::new();
    let lease = world.attach("a.1", &["web.test:80"], None);
    let guest = world.guest(&lease);
    let said = guest.python(
        "held = [socket.create_connection(('web.test', 80)) for n in range(50)]\n\
         body = socket.create_connection(('web.test', 80))\n\
         body.sendall(b'POST / HTTP/1.1\\r\\nHost: web.test\\r\\nContent-Length: 15\\r\\n\\r\\n')\n\
         for s in held: s.sendall(b'GET / HTTP/1.1\\r\\n')\n\
         cut = set()\n\
         for n in range(15):\n\
         \x20 time.sleep(1); body.sendall(b'b')\n\
         \x20 for i, s in enumerate(held):\n\
         \x20\x20 try: s.sendall(b'X-%d: y\\r\\n' % n)\n\
         \x20\x20 except OSError: cut.add(i)\n\
         print(len(cut), body.recv(99)[:12])",
    );
    assert_eq!(said, "50 b'HTTP/1.1 200'\n");
    world.denied("limit", "not whole in time");
    assert_eq!(world.seen().matches("connect ").count(), 1, "a head that is not whole is no connection");
}

#[test]
fn a_reader_that_does_not_read_stops_the_sender_and_holds_a_bounded_part_of_egress() {
    let world = World::new();
    world.set_dns(json!({"far.test": [HOST]}));
    let lease = world.attach("a.1", &["far.test:9000"], None);
    let guest = world.guest(&lease);
    // The server takes nothing for a while, then all: nothing was lost.
    let _far = server(
        &world,
        "time.sleep(6)\ngot = 0\nwhile part := s.recv(65536): got += len(part)\ns.sendall(b\"%d\" % got); s.close()",
    );
    let before = status_kib(&world, "VmRSS:");
    let mut sender = guest.spawn_python(&format!(
        "held = []\n\
         for n in range(64):\n\
         \x20 s = socket.create_connection(('{}', 9000))\n\
         \x20 s.setblocking(False); held.append([s, 0, 4000000])\n\
         end = time.time() + 3\n\
         while time.time() < end:\n\
         \x20 for one in held:\n\
         \x20\x20 try: one[1] += one[0].send(b'\\0' * 65536)\n\
         \x20\x20 except BlockingIOError: pass\n\
         \x20 time.sleep(0.001)\n\
         print('full', flush=True)\n\
         time.sleep(1); wrong = 0\n\
         for s, sent, _ in held:\n\
         \x20 s.setblocking(True); s.settimeout(60); s.shutdown(1)\n\
         for s, sent, _ in held: wrong += int(s.recv(99)) != sent\n\
         print('wrong', wrong, flush=True)",
        address(&world, "a.1")
    ));
    let mut out = std::io::BufReader::new(sender.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "full\n");
    let (held, grown) = (pipes(&world), status_kib(&world, "VmRSS:").saturating_sub(before));
    assert!(held <= 2 * abi::limits::PROXY_PIPES_PER_AGENT_MAX + 8, "{held} ends of pipes");
    assert!(grown < 4096, "egress grew by {grown} KiB while 64 servers did not read");
    line.clear();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "wrong 0\n");
    sender.wait().unwrap();
    wait_for("pipes that nobody uses are kept only as spare ones", || {
        pipes(&world) <= 2 * abi::limits::PROXY_PIPES_SPARE_MAX + 8
    });
}

/// What the kernel may hold of all connections that a listing of sockets (`ss -tnmH`) shows, and what it holds, in bytes.
fn kernel_bytes(listing: &[u8]) -> [u64; 2] {
    let text = String::from_utf8_lossy(listing);
    let fields = text.split(['(', ')', ',']).map(str::trim);
    let sum = |names: [&str; 2]| {
        let numbers = fields.clone().filter_map(|field| {
            let digits = field.find(|c: char| c.is_ascii_digit())?;
            names.contains(&&field[..digits]).then(|| field[digits..].parse::<u64>().ok())?
        });
        numbers.sum()
    };
    [sum(["rb", "tb"]), sum(["r", "w"])]
}

#[test]
fn a_crowd_that_neither_reads_nor_is_read_holds_a_bounded_part_of_the_kernel() {
    let world = World::new();
    world.set_dns(json!({"far.test": [HOST]}));
    let lease = world.attach("a.1", &["far.test:9000"], None);
    let guest = world.guest(&lease);
    let _far = server(&world, "s.recv(1); s.sendall(b\"y\" * 8000000); time.sleep(60)");
    let mut crowd = guest.spawn_python(&format!(
        "held = []\n\
         for n in range(256):\n\
         \x20 s = socket.socket(); s.settimeout(60); s.setsockopt(1, 8, 4096); s.connect(('{}', 9000))\n\
         \x20 s.sendall(b'\\0'); s.recv(9); s.setblocking(False); held.append(s); time.sleep(0.006)\n\
         end = time.time() + 3\n\
         while time.time() < end:\n\
         \x20 for s in held:\n\
         \x20\x20 try: s.send(b'\\0' * 65536)\n\
         \x20\x20 except BlockingIOError: pass\n\
         \x20 time.sleep(0.01)\n\
         print('full', flush=True)\ntime.sleep(30)",
        address(&world, "a.1")
    ));
    let mut line = String::new();
    let out = crowd.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert_eq!(line, "full\n");
    let sockets = "ss -tnmH state established";
    let (far, near) =
        (world.on_node(&format!("{sockets} dport = :9000")).stdout, lease.as_root(sockets).stdout);
    assert_eq!(String::from_utf8_lossy(&far).matches("skmem").count(), 256);
    let (far, near) = (kernel_bytes(&far), kernel_bytes(&near));
    let most = abi::limits::PROXY_SOCKET_BYTES_SHARED
        + abi::limits::PROXY_CONNECTIONS_PER_AGENT_MAX * abi::limits::PROXY_SOCKET_BYTES_MIN;
    assert!((far[0] + near[0]) as usize <= most, "{far:?} and {near:?} of {most}");
    // The kernel may go beyond a bound by what came in one piece.
    assert!((far[1] + near[1]) as usize <= 2 * most, "{far:?} and {near:?} of {most}");
    crowd.kill().unwrap();
    crowd.wait().unwrap();
}

#[test]
fn two_thousand_idle_connections_hold_little_and_no_pipe() {
    let world = World::new();
    world.set_dns(json!({"far.test": [HOST]}));
    let _far = server(&world, "while part := s.recv(9): s.sendall(part)");
    let leases: Vec<_> = (0..8).map(|n| world.attach(&format!("a{n}.1"), &["far.test:9000"], None)).collect();
    let guests: Vec<_> = leases.iter().map(|lease| world.guest(lease)).collect();
    let (before, pipes_before) = (status_kib(&world, "VmRSS:"), pipes(&world));
    let mut crowd: Vec<_> = guests
        .iter()
        .enumerate()
        .map(|(n, guest)| {
            guest.spawn_python(&format!(
                "to = '{}'\nheld = []\n\
                 for n in range(250):\n\
                 \x20 s = socket.create_connection((to, 9000)); s.sendall(b'\\0'); s.recv(9); held.append(s); time.sleep(0.006)\n\
                 print('held', flush=True)\ntime.sleep(3)\n\
                 for s in held: s.sendall(b'x')\n\
                 print(sum(s.recv(9) == b'x' for s in held), flush=True)",
                address(&world, &format!("a{n}.1"))
            ))
        })
        .collect();
    let mut outs: Vec<_> =
        crowd.iter_mut().map(|child| std::io::BufReader::new(child.stdout.take().unwrap())).collect();
    let mut next = |said: &str| {
        for out in &mut outs {
            let mut line = String::new();
            std::io::BufRead::read_line(out, &mut line).unwrap();
            assert_eq!(line, said);
        }
    };
    next("held\n");
    let grown = status_kib(&world, "VmRSS:").saturating_sub(before);
    assert!(grown < 2000 * 16, "2000 idle connections hold {grown} KiB in egress");
    assert!(pipes(&world) <= pipes_before + 2, "an idle connection holds a pipe");
    next("250\n");
    for mut child in crowd {
        child.wait().unwrap();
    }
}
