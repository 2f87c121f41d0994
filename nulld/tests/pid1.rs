//! nulld as PID 1, against services that misbehave. Each test boots a node of its own in namespaces.

mod node;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use abi::door::Vouch;
use abi::identity::{Caller, Role};
use abi::limits;
use abi::rpc::{Code, Incoming, Request};
use node::{Node, call, read};
use serde_json::{Value, json};

/// A configuration without a network, with these services.
fn config(services: &str) -> String {
    format!("[node]\nname = \"test-node\"\n[network]\nmode = \"none\"\n{services}")
}

fn service(name: &str, mode: &str, rest: &str) -> String {
    format!("[services.{name}]\npath = \"/system/bin/probe\"\nargs = [\"{mode}\"]\n{rest}\n")
}

#[test]
fn boot_shows_its_phases_and_says_ready_once() {
    let node = Node::boot(&config(
        &(service("cage", "good", "needs = [\"ctxgraph\"]\ndelegate_cgroup = true")
            + &service("ctxgraph", "good", "uid = 202")),
    ));
    let status = node.status();
    let names: Vec<&str> = status.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "initramfs.mounts",
            "initramfs.verity",
            "mounts",
            "hardening",
            "config",
            "state",
            "network",
            "services"
        ]
    );
    for phase in &status.phases {
        assert!(!phase.outcome.starts_with("failed"), "{phase:?}");
    }
    assert_eq!((status.node.as_str(), status.ephemeral), ("test-node", true));
    assert_eq!(status.root_hash, node::HASH);
    assert!(status.ready_ms.is_some() && status.problems.is_empty());
    // A debug build with glibc, whose threads have arenas of their own; the bound on a node is 5 MiB.
    assert!(status.nulld_rss_kib < 12 * 1024, "{} KiB", status.nulld_rss_kib);
    let console = node.console();
    for name in ["mounts", "config", "state", "network", "services"] {
        assert!(console.contains(&format!("] phase {name} ")), "{console}");
    }
    // The services printed a forged line; it is shown with their name and without its escape codes.
    let ready = console.lines().filter(|line| line.starts_with("nullbox: ready"));
    assert_eq!(ready.count(), 1, "{console}");
    assert!(console.contains("cage: nullbox: ready (forged)\\u{1b}[2J"), "{console}");
    // Needs first.
    assert!(node.service("ctxgraph").ready_ms.unwrap() <= node.service("cage").ready_ms.unwrap());
    let cage = node.call("agent.list", Value::Null).result.unwrap();
    assert_eq!(cage["host"], "test-node\n");
}

#[test]
fn a_service_gets_what_it_is_granted_and_no_more() {
    let node = Node::boot(&config(
        &(service("egress", "good", "uid = 201\ncapabilities = [\"net_admin\"]")
            + &service("cage", "good", "delegate_cgroup = true\ncapabilities = [\"sys_admin\"]")),
    ));
    let egress = node.call("net.grants", Value::Null).result.unwrap();
    let seen = egress["seen"].as_str().unwrap();
    for line in [
        "Uid:\t201\t201\t201\t201",
        "Gid:\t201\t201\t201\t201",
        "Groups:\t \n",
        "NoNewPrivs:\t1",
        "CapInh:\t0000000000001000",
        "CapPrm:\t0000000000001000",
        "CapEff:\t0000000000001000",
        "CapBnd:\t0000000000001000",
        "CapAmb:\t0000000000001000",
        "SigBlk:\t0000000000000000",
    ] {
        assert!(seen.contains(line), "{line:?} is not in {seen}");
    }
    assert_eq!(egress["env"], json!([["NULLBOX_SERVICE", "egress"]]));
    // 0 to 5, the connection being answered and the folder being listed.
    assert!(egress["fds"].as_array().unwrap().len() <= 8, "{}", egress["fds"]);
    assert!(egress["cgroup"].as_str().unwrap().trim().ends_with("/services/egress"));
    let cage = node.call("agent.list", Value::Null).result.unwrap();
    let seen = cage["seen"].as_str().unwrap();
    assert!(
        seen.contains("CapEff:\t0000000000200000") && seen.contains("CapBnd:\t0000000000200000"),
        "{seen}"
    );
    assert!(cage["cgroup"].as_str().unwrap().trim().ends_with("/services/cage/self"));
    let state = node.path("/state/egress");
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(state).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o700, 201, 201));
}

#[test]
fn a_crashing_service_comes_back_with_growing_pauses_and_stops_nobody() {
    let node = Node::boot(&config(
        &(service("ctxgraph", "good", "") + &service("nullgate", "crash-ready", "uid = 203")),
    ));
    let begin = Instant::now();
    // Pauses of 1 s and 2 s lie before the second restart.
    node.until("second restart", 15, |node| (node.service("nullgate").restarts >= 2).then_some(()));
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(2_800), "{took:?}");
    assert_eq!(node.service("ctxgraph").state, "ready");
    assert_eq!(node.service("ctxgraph").restarts, 0);
    let log: Vec<String> = node.logs("nulld").into_iter().map(|line| line.line).collect();
    assert!(
        log.iter().any(|line| line.contains("service_ended") && line.contains("exited with code 4")),
        "{log:?}"
    );
}

#[test]
fn restart_policies_are_kept() {
    let node = Node::start(&config(
        &(service("a", "once", "restart = \"on-failure\"")
            + &service("b", "crash", "restart = \"never\"")
            + &service("c", "good", "needs = [\"b\"]")
            + &service("d", "nonsense", "restart = \"on-failure\"")
            + "[services.e]\npath = \"/system/bin/missing\"\nrestart = \"never\"\n"),
    ));
    node.wait_state("a", "stopped", 10);
    let b = node.wait_state("b", "failed", 10);
    assert!(b.detail.contains("code 3"), "{b:?}");
    node.wait_state("d", "backoff", 10);
    let e = node.wait_state("e", "failed", 10);
    assert!(e.detail.contains("could not be started"), "{e:?}");
    assert!(node.logs("e").iter().any(|line| line.line.contains("launch_failed")));
    // Its need is not ready: it waits, and the boot is not held up by it for ever.
    assert_eq!(node.service("c").state, "waiting");
    assert!(!node.console().contains("\nnullbox: ready"));
}

#[test]
fn a_service_that_is_never_ready_is_killed_and_tried_again() {
    let node = Node::start(&config(&service("cage", "silent", "ready_secs_max = 1")));
    let late = node.wait_state("cage", "backoff", 10);
    assert!(late.detail.contains("not ready within 1 s"), "{late:?}");
    let again = node.until("restart", 10, |node| {
        let cage = node.service("cage");
        (cage.restarts >= 1 && cage.state == "starting").then_some(cage)
    });
    assert!(again.pid.is_some());
    let refused = call(&mut node.connect(), "net.grants", Value::Null).error.unwrap();
    assert_eq!(refused.code, Code::UNAVAILABLE);
    assert!(refused.data.unwrap().remedy.contains("system status"));
}

#[test]
fn a_killed_service_takes_what_it_left_with_it() {
    let node = Node::boot(&config(&service("cage", "leftover", "")));
    node.wait_state("cage", "backoff", 10);
    // `sleep 1000` ran in a session of its own, and in the cgroup.
    node.until("end of the leftover", 5, |node| {
        let events = node.path("/sys/fs/cgroup/services/cage/cgroup.events");
        fs::read_to_string(events).unwrap().contains("populated 0").then_some(())
    });
}

#[test]
fn orphans_are_reaped() {
    let node = Node::boot(&config(&service("cage", "orphans", "")));
    node.until("reaped orphans", 10, |node| {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", node.pid)).unwrap();
        (children.split_whitespace().count() == 1).then_some(())
    });
    assert_eq!(node.service("cage").state, "ready");
}

#[test]
fn calls_reach_their_service_with_the_caller_and_the_line_unread() {
    let node = Node::boot(&config(&service("cage", "good", "")));
    let answer = node.call("agent.list", json!({})).result.unwrap();
    assert_eq!(
        (answer["caller"].as_str(), answer["method"].as_str()),
        (Some("local uid 0"), Some("agent.list"))
    );
    assert_eq!(answer["pid"].as_u64(), node.service("cage").pid.map(u64::from));
    // The first line in pieces, and two requests on one connection.
    let mut connection = node.connect();
    let line = serde_json::to_string(&Request::call(1, "agent.list", Value::Null)).unwrap() + "\n";
    for piece in line.as_bytes().chunks(7) {
        connection.stream().write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(matches!(read(&mut connection), Incoming::Response(r) if r.result.is_some()));
    let second = call(&mut connection, "agent.list", Value::Null);
    assert_eq!(second.result.unwrap()["method"], "agent.list");
}

#[test]
fn only_root_and_vouched_operators_come_in_with_their_role() {
    let node = Node::boot(&config(&service("cage", "good", "")));
    for uid in [1000, 201, 100_000] {
        let refused = call(&mut node.connect_as(uid), "system.status", Value::Null).error.unwrap();
        assert_eq!(refused.code, Code::DENIED, "{uid}");
    }
    let vouch =
        |role| Vouch { vouch: Caller::Operator { name: "alice".into(), key: "ed25519:AAAA".into(), role } };
    let mut gate = node.connect_as(203);
    gate.write_line(&vouch(Role::Reader)).unwrap();
    let answer = call(&mut gate, "agent.list", Value::Null).result.unwrap();
    assert_eq!(answer["caller"], "reader alice");
    let mut gate = node.connect_as(203);
    gate.write_line(&vouch(Role::Reader)).unwrap();
    let refused = call(&mut gate, "agent.start", json!({ "name": "x" })).error.unwrap();
    assert_eq!(refused.code, Code::DENIED);
    assert!(refused.data.unwrap().rule.contains("needs the role operator"));
    let mut gate = node.connect_as(203);
    gate.write_line(&vouch(Role::Operator)).unwrap();
    assert_eq!(call(&mut gate, "system.reboot", Value::Null).error.unwrap().code, Code::DENIED);
    // Without a vouch nullgate is nobody, and nobody else may vouch.
    assert!(call(&mut node.connect_as(203), "agent.list", Value::Null).error.is_some());
    for uid in [0, 1000, 201] {
        let mut connection = node.connect_as(uid);
        connection.write_line(&vouch(Role::Admin)).unwrap();
        assert!(matches!(read(&mut connection), Incoming::Response(r) if r.error.is_some()), "{uid}");
    }
    let log: Vec<String> = node.logs("nulld").into_iter().map(|line| line.line).collect();
    assert!(log.iter().any(|line| line.contains("call method=agent.list by=\"reader alice\"")), "{log:?}");
    assert!(
        log.iter().any(|line| line.contains("refused method=agent.start by=\"reader alice\"")),
        "{log:?}"
    );
}

#[test]
fn idle_and_slow_callers_hold_nobody_up() {
    let node = Node::boot(&config(&service("cage", "good", "")));
    let idle: Vec<_> = (0..limits::DOOR_PENDING_MAX + 40).map(|_| node.connect()).collect();
    let half = node.connect();
    half.stream().write_all(b"{\"jsonrpc\":").unwrap();
    let begin = Instant::now();
    assert_eq!(node.status().services.len(), 1);
    assert!(
        begin.elapsed() < Duration::from_millis(limits::FIRST_LINE_MS_MAX / 2),
        "it waited for an idle one"
    );
    // The oldest were crowded out; a closed one reads as ended.
    let mut first = idle.into_iter().next().unwrap();
    assert!(!matches!(first.read_line(), Ok(Some(_))));
    // Too long a line is answered and closed.
    let mut long = node.connect();
    long.stream().write_all(&vec![b'x'; limits::LINE_BYTES_MAX + 10]).unwrap();
    assert!(
        matches!(read(&mut long), Incoming::Response(r) if r.error.as_ref().is_some_and(|e| e.code == Code::LIMIT))
    );
    // The half line ends after its time.
    let mut half = half;
    half.set_timeout(Some(Duration::from_millis(limits::FIRST_LINE_MS_MAX + 15_000))).unwrap();
    let begin = Instant::now();
    assert!(!matches!(half.read_line(), Ok(Some(_))));
    assert!(begin.elapsed() < Duration::from_millis(limits::FIRST_LINE_MS_MAX + 10_000));
}

#[test]
fn logs_are_kept_bounded_followed_and_survive_a_flood() {
    let node = Node::boot(&config(&service("cage", "flood", "")));
    node.wait_state("cage", "ready", 20);
    let lines = node.logs("cage");
    assert!(lines.len() <= limits::SERVICE_LOG_LINES_MAX && lines.len() > 100, "{}", lines.len());
    assert!(lines.iter().any(|line| line.line.ends_with("cut=1")));
    assert!(lines.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert!(node.status().nulld_rss_kib < 12 * 1024);
    let mut follower = node.connect();
    let params = json!({ "service": "nulld", "lines": 0, "follow": true });
    follower.write_line(&Request::call(1, "system.logs", params)).unwrap();
    node.call("net.grants", Value::Null); // refused: there is no egress
    let Incoming::Notification(note) = read(&mut follower) else {
        panic!("no line came");
    };
    assert_eq!(note.method, "log");
    // A follower that reads nothing is dropped and costs nothing.
    let unknown = node.call("system.logs", json!({ "service": "nobody" })).error.unwrap();
    assert_eq!(unknown.code, Code::NOT_FOUND);
}

#[test]
fn a_wrong_config_stops_the_boot_with_the_door_open() {
    let node = Node::start("[node]\nnam = \"x\"\n");
    node.wait_console("nullbox: halted in phase config", 10);
    let status = node.status();
    let last = status.phases.last().unwrap();
    assert!(last.name == "config" && last.outcome.starts_with("failed: "), "{last:?}");
    assert!(status.services.is_empty() && status.ready_ms.is_none());
    assert!(!node.path("/run/nullbox/node.json").exists());
}

#[test]
fn power_off_is_ordered_bounded_and_answers_first() {
    let mut node = Node::boot(&config(
        &(service("ctxgraph", "good", "")
            + &service("cage", "stubborn", "needs = [\"ctxgraph\"]\nstop_secs_max = 1")
            + &service("egress", "good", "needs = [\"cage\"]")),
    ));
    let begin = Instant::now();
    let answer = node.call("system.poweroff", Value::Null);
    assert_eq!(answer.result, Some(json!({})));
    assert_eq!(node.wait_end(20), 2, "SIGINT stands for power-off");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    let console = node.console();
    let at = |text: &str| console.find(text).unwrap_or_else(|| panic!("no {text} in {console}"));
    assert!(at("service_stopped service=egress") < at("service_ignored_sigterm service=cage"));
    assert!(at("service_stopped service=cage") < at("service_stopped service=ctxgraph"));
    assert!(at("service_stopped service=ctxgraph") < at("state unmounted, poweroff"));
}

#[test]
fn the_ledger_hears_of_boot_services_calls_and_the_end() {
    let mut node = Node::boot(&config(
        &(service("ctxgraph", "good", "uid = 202") + &service("cage", "crash-ready", "restart = \"never\"")),
    ));
    node.wait_state("cage", "failed", 10);
    let refused = call(&mut node.connect_as(1000), "agent.list", Value::Null).error;
    assert!(refused.is_some());
    node.until("events", 5, |node| node.console().contains("call_refused").then_some(()));
    node.call("system.reboot", Value::Null);
    assert_eq!(node.wait_end(20), 1);
    let console = node.console();
    let at = |text: &str| console.find(text).unwrap_or_else(|| panic!("no {text} in {console}"));
    let order = [
        at("\"event\":\"node_booted\""),
        at("\"event\":\"service_started\",\"service\":\"ctxgraph\""),
        at("\"event\":\"service_exited\",\"service\":\"cage\""),
        at("\"event\":\"call_refused\",\"by\":\"local uid 1000\",\"method\":\"agent.list\""),
        at("\"event\":\"call_made\",\"by\":\"local uid 0\",\"method\":\"system.reboot\""),
        at("\"event\":\"node_stopping\",\"action\":\"reboot\""),
        at("service_stopped service=ctxgraph"),
    ];
    assert!(order.is_sorted(), "{order:?} {console}");
    assert!(console.contains(&format!("\"root_hash\":\"{}\"", node::HASH)));
}

#[test]
fn a_reader_that_takes_nothing_is_closed() {
    let node = Node::boot(&config(&service("cage", "flood", "")));
    let mut slow = node.connect();
    slow.write_line(&Request::call(1, "system.logs", json!({ "service": "cage" }))).unwrap();
    std::thread::sleep(Duration::from_millis(limits::FIRST_LINE_MS_MAX + 1_500));
    // What its socket had taken can still be read; the answer never comes.
    let end = loop {
        match slow.read_line() {
            Ok(Some(line)) => assert!(!line.contains("\"result\""), "{line}"),
            other => break other,
        }
    };
    assert!(!matches!(end, Ok(Some(_))));
    assert_eq!(node.status().services.len(), 1);
}

#[test]
fn sigint_reboots_and_sigterm_powers_off() {
    for (signal, end) in [("INT", 1), ("TERM", 2)] {
        let mut node = Node::boot(&config(&service("cage", "good", "")));
        let sent = std::process::Command::new("/bin/kill")
            .args([&format!("-{signal}"), &node.pid.to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        assert_eq!(node.wait_end(20), end, "{signal}");
    }
}

/// A DHCP server that knows nothing of this project, in a network namespace of its own, and a cable to the node.
struct DhcpServer(std::process::Child);

impl DhcpServer {
    fn start(node: &Node) -> DhcpServer {
        let script = "until ip link show srv >/dev/null 2>&1; do sleep 0.02; done; ip link set lo up; \
            ip addr add 192.0.2.1/24 dev srv; ip link set srv up; \
            exec dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=srv --bind-interfaces \
            --dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m --dhcp-option=3,192.0.2.1 --dhcp-option=6,192.0.2.1 \
            --leasefile-ro --user=root --pid-file= --log-facility=/dev/null --no-ping";
        let child = std::process::Command::new("unshare")
            .args(["--net", "--", "/bin/sh", "-c", script])
            .spawn()
            .unwrap();
        let server = DhcpServer(child);
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        node.until("namespace of the server", 5, |_| {
            let its = fs::read_link(format!("/proc/{}/ns/net", server.0.id())).ok()?;
            (its != own).then_some(())
        });
        let cable = std::process::Command::new("ip")
            .args(["link", "add", "srv", "netns", &server.0.id().to_string(), "type", "veth"])
            .args(["peer", "name", "eth0", "netns", &node.pid.to_string()])
            .status()
            .unwrap();
        assert!(cable.success());
        server
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have failed to start
        let _ = self.0.wait();
    }
}

const DHCP: &str = "[network]\nmode = \"dhcp\"\ninterface = \"eth0\"\n";

#[test]
fn uplink_takes_a_lease_as_a_user_of_its_own_and_survives_its_death() {
    let node = Node::start(&(DHCP.to_owned() + &service("cage", "good", "")));
    let _server = DhcpServer::start(&node);
    node.wait_console("\nnullbox: ready", 20);
    let status = node.status();
    let network = status.phases.iter().find(|phase| phase.name == "network").unwrap();
    assert_eq!(network.outcome, "ok", "{}", node.console());
    let address = &status.addresses["eth0"];
    let offered = (50..=60).map(|last| format!("192.0.2.{last}/24"));
    assert!(address.len() == 1 && offered.into_iter().any(|one| one == address[0]), "{address:?}");
    let read = || -> Value {
        serde_json::from_slice(&fs::read(node.path("/run/nullbox/uplink/uplink.json")).unwrap()).unwrap()
    };
    assert_eq!(
        read(),
        json!({ "interface": "eth0", "address": address[0], "gateway": "192.0.2.1", "dns": ["192.0.2.1"] })
    );
    let link = fs::read_link(node.path("/run/nullbox/uplink.json")).unwrap();
    assert_eq!(link.to_str(), Some("uplink/uplink.json"));
    let routes = fs::read_to_string(format!("/proc/{}/net/route", node.pid)).unwrap();
    assert!(routes.lines().any(|line| line.starts_with("eth0\t00000000\t010200C0")), "{routes}");
    let uplink = node.service("uplink");
    let seen = fs::read_to_string(node.path(&format!("/proc/{}/status", uplink.pid.unwrap()))).unwrap();
    assert!(
        seen.contains("Uid:\t204\t204\t204\t204") && seen.contains("CapBnd:\t0000000000001400"),
        "{seen}"
    );
    // It dies; the address stays, and a new one takes over.
    let pid = fs::read_to_string(node.path("/sys/fs/cgroup/services/uplink/cgroup.procs")).unwrap();
    fs::write(node.path("/sys/fs/cgroup/services/uplink/cgroup.kill"), "1").unwrap();
    node.until("a second uplink", 15, |node| {
        let uplink = node.service("uplink");
        (uplink.state == "ready" && uplink.restarts == 1).then_some(())
    });
    assert_ne!(fs::read_to_string(node.path("/sys/fs/cgroup/services/uplink/cgroup.procs")).unwrap(), pid);
    assert_eq!(node.status().addresses["eth0"].len(), 1);
    assert_eq!(read()["gateway"], "192.0.2.1");
}

#[test]
fn a_missing_lease_delays_the_boot_by_a_bound_and_does_not_stop_it() {
    let begin = Instant::now();
    let node = Node::boot(&(DHCP.to_owned() + &service("cage", "good", "")));
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(limits::UPLINK_WAIT_MS_MAX - 500), "{took:?}");
    assert!(took < Duration::from_millis(limits::UPLINK_WAIT_MS_MAX + 20_000), "{took:?}");
    let status = node.status();
    let network = status.phases.iter().find(|phase| phase.name == "network").unwrap();
    assert!(network.outcome.starts_with("degraded: "), "{network:?}");
    // The service did not wait for it, and the address still comes when there is one to be had.
    assert!(status.services.iter().any(|s| s.name == "cage" && s.ready_ms < status.ready_ms));
    let _server = DhcpServer::start(&node);
    node.until("a late address", 80, |node| {
        node.status().addresses.get("eth0").is_some_and(|list| !list.is_empty()).then_some(())
    });
}

#[test]
fn a_static_address_is_set_without_asking_anyone() {
    let network = "[network]\nmode = \"static\"\ninterface = \"lo\"\naddress = \"192.0.2.7/24\"\n";
    let node = Node::boot(&(network.to_owned() + &service("cage", "good", "")));
    assert_eq!(node.status().addresses["lo"], ["192.0.2.7/24"]);
}

#[test]
fn peers_wait_while_a_service_restarts() {
    let node = Node::boot(&config(&service("ctxgraph", "crash-ready", "")));
    node.wait_state("ctxgraph", "backoff", 10);
    // The listening socket is nulld's: connecting works although nobody accepts yet.
    let stream = std::os::unix::net::UnixStream::connect(node.path("/run/nullbox/ctxgraph.sock")).unwrap();
    assert!(stream.as_fd().try_clone_to_owned().is_ok());
}
