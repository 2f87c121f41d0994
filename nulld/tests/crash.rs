//! nulld crashes and goes on: by signals, by real faults and panics, out of memory, at random moments, and again and again.
//!
//! Nothing in nulld knows of these tests. After each crash: the same services under the same pids, a door that answers, the
//! logs of before, no zombie, and one more crash counted.

mod node;
#[path = "node/trace.rs"]
mod trace;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use abi::rpc::{Code, Request};
use nix::sys::signal::Signal;
use node::{Node, call, read};
use rustix::process::{Resource, Rlimit};
use serde_json::{Value, json};

fn service(name: &str, mode: &str, rest: &str) -> String {
    format!("[services.{name}]\npath = \"/system/bin/probe\"\nargs = [\"{mode}\"]\n{rest}\n")
}

fn config(services: &str) -> String {
    format!("[node]\nname = \"test-node\"\n[network]\nmode = \"none\"\n{services}")
}

fn sound() -> String {
    config(
        &(service("ctxgraph", "good", "uid = 202")
            + &service("cage", "good", "needs = [\"ctxgraph\"]\ndelegate_cgroup = true")
            + &service("egress", "good", "uid = 201")),
    )
}

/// Of each service what a crash of nulld must not change.
fn services(node: &Node) -> BTreeMap<String, (Option<u32>, u64, Option<u64>, String)> {
    let status = node.status();
    status.services.into_iter().map(|s| (s.name, (s.pid, s.restarts, s.ready_ms, s.state))).collect()
}

/// Waits until the nulld after `count` crashes answers.
fn wait_crashes(node: &Node, count: u32) {
    node.until(&format!("{count} crashes"), 20, |node| {
        let told = node.console().matches("nullbox: nulld crashed and begins again").count();
        (told >= count as usize).then_some(())
    });
    assert_eq!(node.status().crashes, count);
}

/// Crashes a sound node in a way and checks everything that must hold after it.
fn crash_changes_nothing(how: &str, crash: impl FnOnce(&Node), reason: &str) {
    let mut node = Node::boot(&sound());
    let before = services(&node);
    assert!(node.call("agent.list", Value::Null).result.is_some());
    let marker = node.logs("cage").first().unwrap().clone();
    let own = node.logs("nulld");
    crash(&node);
    wait_crashes(&node, 1);
    assert_eq!(services(&node), before, "{how}");
    let status = node.status();
    assert_eq!((status.crashes, status.held), (1, None), "{how}");
    assert!(status.ready_ms.is_some() && status.root_hash == node::HASH && status.ephemeral);
    // Logs: what was there is there, with its numbers, and the numbers go on.
    assert_eq!(*node.logs("cage").first().unwrap(), marker, "{how}");
    let after = node.logs("nulld");
    assert_eq!(after[..own.len()], own[..], "{how}");
    assert!(after.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let told = after.iter().find(|line| line.line.contains("nulld_crashed")).unwrap();
    assert!(told.line.contains(reason) && told.line.contains("count=1"), "{told:?}");
    assert!(node.console().contains(reason), "{}", node.console());
    assert_eq!(node.console().matches("\nnullbox: ready").count(), 1, "ready is said once");
    // It works: hand over, supervise, reap, stop.
    assert!(node.call("agent.list", Value::Null).result.is_some(), "{how}");
    assert!(node.children().iter().all(|(_, state)| *state != 'Z'), "{:?}", node.children());
    fs::write(node.path("/sys/fs/cgroup/services/egress/cgroup.kill"), "1").unwrap();
    node.until("another egress", 10, |node| {
        let egress = node.service("egress");
        (egress.state == "ready" && egress.restarts == 1 && egress.pid != before["egress"].0).then_some(())
    });
    assert!(node.call("net.grants", Value::Null).result.is_some());
    node.call("system.poweroff", Value::Null);
    assert_eq!(node.wait_end(20), 2, "{how}");
    assert!(node.console().contains("\"event\":\"nulld_crashed\""), "the ledger heard of it");
}

#[test]
fn deadly_signals_change_nothing() {
    for (signal, reason) in [
        (Signal::SIGSEGV, "SIGSEGV sent"),
        (Signal::SIGABRT, "SIGABRT sent"),
        (Signal::SIGBUS, "SIGBUS sent"),
    ] {
        crash_changes_nothing(signal.as_str(), |node| node.signal(signal), reason);
    }
}

#[test]
fn a_real_fault_changes_nothing() {
    crash_changes_nothing("jump to 0", |node| trace::jump_to_nowhere(node.pid), "SIGSEGV at address 0x0,");
}

#[test]
fn a_fault_with_a_broken_stack_changes_nothing() {
    crash_changes_nothing("stack at 8", |node| trace::break_the_stack(node.pid), "SIGSEGV at address 0x0,");
}

#[test]
fn a_fault_of_another_thread_changes_nothing() {
    let jump = |node: &Node| {
        let tasks = fs::read_dir(format!("/proc/{}/task", node.pid)).unwrap().flatten();
        let mut ids = tasks.map(|task| task.file_name().to_str().unwrap().parse::<u32>().unwrap());
        let other = ids.find(|id| *id != node.pid).expect("the thread of the ledger");
        trace::jump_to_nowhere(other);
    };
    crash_changes_nothing("thread", jump, "SIGSEGV at address 0x0, instruction 0x0, thread ");
}

#[test]
fn a_real_panic_changes_nothing() {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_nulld"));
    let panic = |node: &Node| trace::panic(node.pid, &program);
    crash_changes_nothing("panic", panic, "panic panicked at called by a test:1:2");
}

#[test]
fn running_out_of_memory_changes_nothing() {
    let exhaust = |node: &Node| {
        let pid = rustix::process::Pid::from_raw(node.pid.cast_signed());
        let limit = |bytes| {
            let limit = Rlimit { current: bytes, maximum: None };
            rustix::process::prlimit(pid, Resource::As, limit).unwrap();
        };
        let statm = fs::read_to_string(format!("/proc/{}/statm", node.pid)).unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        // Not one page more than it has.
        limit(Some(pages * 4096));
        let held = std::cell::RefCell::new(Vec::new());
        node.until("a failed allocation", 20, |node| {
            // Each reader of logs costs nulld a buffer.
            let path = node.path("/run/nulld.sock");
            if let Ok(stream) = std::os::unix::net::UnixStream::connect(path) {
                let mut connection = abi::wire::Connection::new(stream);
                let _ = connection.write_line(&Request::call(1, "system.logs", json!({})));
                held.borrow_mut().push(connection);
            }
            node.console().contains("begins again").then_some(())
        });
        limit(None);
    };
    crash_changes_nothing("memory", exhaust, "SIGABRT");
}

#[test]
fn a_signal_from_inside_that_ends_anyone_else_ends_nobody() {
    let node = Node::boot(&sound());
    let before = services(&node);
    for signal in ["KILL", "STOP"] {
        let sent = Command::new("nsenter")
            .args(["--target", &node.pid.to_string(), "--pid", "--mount", "/bin/kill", "-s", signal, "1"])
            .status()
            .unwrap();
        assert!(sent.success(), "{signal}");
    }
    assert_eq!(services(&node), before);
    assert_eq!(node.status().crashes, 0);
}

#[test]
fn what_happens_while_nulld_is_away_is_seen_after_it() {
    let node = Node::boot(&config(
        &(service("ctxgraph", "good", "")
            + &service("cage", "good", "needs = [\"ctxgraph\"]")
            + &service("egress", "slow", "")),
    ));
    let before = services(&node);
    node.stop();
    fs::write(node.path("/sys/fs/cgroup/services/cage/cgroup.kill"), "1").unwrap();
    // These wait in the backlog of the door.
    let mut callers: Vec<_> = (0..5).map(|_| node.connect()).collect();
    for caller in &mut callers {
        caller.write_line(&Request::call(1, "system.status", Value::Null)).unwrap();
    }
    // Its first thread, so that it cannot accept them before another one has crashed.
    trace::jump_to_nowhere(node.pid);
    node.signal(Signal::SIGCONT);
    for caller in &mut callers {
        let abi::rpc::Incoming::Response(answer) = read(caller) else { panic!("no answer") };
        assert_eq!(answer.result.unwrap()["crashes"], 1);
    }
    node.until("another cage", 10, |node| {
        let cage = node.service("cage");
        (cage.state == "ready" && cage.restarts == 1).then_some(())
    });
    let after = services(&node);
    assert_eq!((&after["ctxgraph"], &after["egress"]), (&before["ctxgraph"], &before["egress"]));
}

#[test]
fn a_service_that_is_starting_goes_on() {
    let node = Node::start(&config(&service("cage", "slow", "")));
    let starting = node.wait_state("cage", "starting", 10);
    node.signal(Signal::SIGSEGV);
    wait_crashes(&node, 1);
    let ready = node.wait_state("cage", "ready", 10);
    assert_eq!((ready.pid, ready.restarts), (starting.pid, 0));
    node.wait_console("\nnullbox: ready", 10);
}

#[test]
fn an_order_to_power_off_outlives_a_crash() {
    let mut node = Node::boot(&config(
        &(service("ctxgraph", "good", "")
            + &service("cage", "stubborn", "needs = [\"ctxgraph\"]\nstop_secs_max = 2")),
    ));
    node.call("system.poweroff", Value::Null);
    node.wait_state("cage", "stopping", 10);
    node.signal(Signal::SIGABRT);
    assert_eq!(node.wait_end(20), 2);
    let console = node.console();
    let at = |text: &str| console.find(text).unwrap_or_else(|| panic!("no {text} in {console}"));
    assert!(at("poweroff ordered by") < at("begins again"));
    assert!(at("service_ignored_sigterm service=cage") < at("service_stopped service=ctxgraph"));
}

#[test]
fn a_crash_in_the_middle_of_the_boot_halts_it_with_the_door_open() {
    let mut halted = 0;
    for pause_ms in [0, 2, 4, 6, 8, 12, 16, 24] {
        let node = Node::start(&sound());
        std::thread::sleep(Duration::from_millis(pause_ms));
        node.signal(Signal::SIGSEGV);
        node.until("an outcome", 20, |node| {
            let console = node.console();
            (console.contains("\nnullbox: ready") || console.contains("halted in phase boot")).then_some(())
        });
        let status = node.status();
        if let Some(boot) = status.phases.iter().find(|phase| phase.name == "boot") {
            halted += 1;
            assert!(boot.outcome.starts_with("failed: nulld crashed: SIGSEGV"), "{boot:?}");
            assert!(status.services.is_empty() && status.ready_ms.is_none() && status.crashes == 1);
        } else {
            // It had not begun, or it had ended.
            assert!(status.ready_ms.is_some(), "{status:?}");
        }
    }
    println!("{halted} of 8 were halted");
}

#[test]
fn crashes_in_a_row_hold_the_node_and_the_door_says_why() {
    let mut node = Node::boot(&sound());
    let before = services(&node);
    for count in 1..=3 {
        node.signal(Signal::SIGSEGV);
        wait_crashes(&node, count);
    }
    let status = node.status();
    let held = status.held.expect("held");
    assert!(held.contains("3 times") && held.contains("system reboot"), "{held}");
    assert!(node.console().contains(&format!("nullbox: held: {held}")));
    assert_eq!(services(&node), before, "what runs runs on");
    let refused = call(&mut node.connect(), "agent.list", Value::Null).error.unwrap();
    assert_eq!(refused.code, Code::UNAVAILABLE);
    assert!(refused.data.unwrap().remedy.contains("system reboot"));
    // It reaps, and starts nothing.
    fs::write(node.path("/sys/fs/cgroup/services/egress/cgroup.kill"), "1").unwrap();
    node.wait_state("egress", "backoff", 10);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!((node.service("egress").state.as_str(), node.children().len()), ("backoff", 2));
    // It sleeps meanwhile: the pause of the service is over, and nobody acts on it.
    let before = node.cpu_ticks();
    std::thread::sleep(Duration::from_secs(2));
    assert!(node.cpu_ticks() - before < 50, "a node that holds burns its processor");
    // One more changes nothing, and power is still to be had.
    node.signal(Signal::SIGSEGV);
    wait_crashes(&node, 4);
    assert!(node.status().held.is_some());
    assert_eq!(node.call("system.reboot", Value::Null).result, Some(json!({})));
    assert_eq!(node.wait_end(20), 1);
}

/// The memory file in which nulld keeps its state, as its descriptors show it.
fn state_file(node: &Node) -> File {
    let fds = fs::read_dir(format!("/proc/{}/fd", node.pid)).unwrap().flatten();
    let is_state = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("nulld-state"))
    };
    let path = fds.map(|entry| entry.path()).find(is_state).expect("a state file");
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

const SLOT_BYTES: u64 = 512 * 1024;

/// Rewrites the newest state, with a checksum that fits.
fn forge(node: &Node, change: impl FnOnce(&mut Value)) {
    let file = state_file(node);
    let word = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).map(|()| u64::from_le_bytes(bytes)).unwrap_or(0)
    };
    let slot = [0, SLOT_BYTES].into_iter().max_by_key(|slot| word(slot + 8)).unwrap();
    let mut body = vec![0; word(slot + 16) as usize];
    file.read_exact_at(&mut body, slot + 32).unwrap();
    let mut state: Value = serde_json::from_slice(&body).unwrap();
    change(&mut state);
    let body = serde_json::to_vec(&state).unwrap();
    let seq = word(slot + 8);
    let sum = seq.to_le_bytes().iter().chain(&body).fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    file.write_all_at(&(body.len() as u64).to_le_bytes(), slot + 16).unwrap();
    file.write_all_at(&sum.to_le_bytes(), slot + 24).unwrap();
    file.write_all_at(&body, slot + 32).unwrap();
}

/// Stops nulld while its state is changed, crashes it, and waits for all three services to be ready again.
fn crash_on(change: impl FnOnce(&Node)) -> (Node, Vec<String>) {
    let node = Node::boot(&sound());
    let before = services(&node);
    node.stop();
    change(&node);
    node.signal(Signal::SIGSEGV);
    node.signal(Signal::SIGCONT);
    wait_crashes(&node, 1);
    for name in ["ctxgraph", "cage", "egress"] {
        node.wait_state(name, "ready", 20);
        // One first process in each group, and nothing beside it.
        let seat = if name == "cage" { "cage/self" } else { name };
        let procs = fs::read_to_string(node.path(&format!("/sys/fs/cgroup/services/{seat}/cgroup.procs")));
        assert_eq!(procs.unwrap().lines().count(), 1, "{name}");
    }
    assert!(node.call("agent.list", Value::Null).result.is_some());
    node.until("no zombie and no stranger", 10, |node| {
        let children = node.children();
        (children.len() == 3 && children.iter().all(|(_, state)| *state != 'Z')).then_some(())
    });
    let after = services(&node);
    let kept = before.keys().filter(|name| before[*name].0 == after[*name].0).cloned().collect();
    (node, kept)
}

#[test]
fn without_a_state_everything_is_killed_and_starts_anew() {
    let (node, kept) = crash_on(|node| {
        let file = state_file(node);
        file.write_all_at(&[0xff; 4096], 0).unwrap();
        file.write_all_at(&[0xff; 4096], SLOT_BYTES).unwrap();
    });
    assert_eq!(kept, [""; 0]);
    let log: Vec<String> = node.logs("nulld").into_iter().map(|line| line.line).collect();
    assert!(log.iter().any(|line| line.contains("state_lost")), "{log:?}");
}

#[test]
fn a_state_that_lies_is_not_believed() {
    let unit = |state: &mut Value, name: &str| -> usize {
        let units = state["units"].as_array().unwrap();
        units.iter().position(|unit| unit["name"] == name).unwrap()
    };
    // The pids of two services are exchanged: neither is in the other's cgroup.
    let (node, kept) = crash_on(|node| {
        forge(node, |state| {
            let (a, b) = (unit(state, "cage"), unit(state, "egress"));
            let pids = (state["units"][a]["pid"].clone(), state["units"][b]["pid"].clone());
            state["units"][a]["pid"] = pids.1;
            state["units"][b]["pid"] = pids.0;
        });
    });
    assert_eq!(kept, ["ctxgraph"], "{:?}", node.logs("nulld"));
    // A process that is nobody's child, one that is gone, and one without a number.
    for pid in [json!(1), json!(99_999), Value::Null] {
        let (_, kept) = crash_on(|node| {
            forge(node, |state| {
                let cage = unit(state, "cage");
                state["units"][cage]["pid"] = pid;
            });
        });
        assert_eq!(kept, ["ctxgraph", "egress"]);
    }
    // Descriptors that are another, claimed twice, closed, or none.
    for (name, number) in [
        ("door.cage", "input.cage"),
        ("output.cage", "input.cage"),
        ("peers.cage", "control"),
        ("notices.cage", "door.cage"),
        ("input.cage", ""),
    ] {
        let (_, kept) = crash_on(|node| {
            forge(node, |state| {
                let other = state["kept"].get(number).cloned().unwrap_or(json!(3999));
                state["kept"][name] = other;
            });
        });
        assert_eq!(kept, ["ctxgraph", "egress"], "{name}");
    }
    // A service that is not in it.
    let (_, kept) = crash_on(|node| {
        forge(node, |state| {
            let cage = unit(state, "cage");
            state["units"].as_array_mut().unwrap().remove(cage);
        });
    });
    assert_eq!(kept, ["ctxgraph", "egress"]);
}

/// xorshift64*: enough to spread crashes over time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }
}

#[test]
fn crashes_at_random_moments_never_run_a_service_twice() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1
    });
    println!("SEED={seed}");
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6);
    let mut dice = Dice(seed);
    for round in 0..rounds {
        random_round(&mut dice, &format!("round {round} of SEED={seed}"));
    }
}

fn random_round(dice: &mut Dice, what: &str) {
    let quick = "restart_ms_min = 1";
    let node = Node::start(&config(
        &(service("ctxgraph", "good", quick)
            + &service("cage", "flaky", &format!("{quick}\nneeds = [\"ctxgraph\"]"))
            + &service("egress", "flaky", quick)
            + &service("nullgate", "slow", quick)),
    ));
    node.wait_console("phase network ok", 20);
    // Two crashes a node: a third one would hold it.
    for count in 1..=2 {
        std::thread::sleep(Duration::from_micros(dice.roll(700_000)));
        for _ in 0..dice.roll(3) {
            let name = ["ctxgraph", "cage", "egress", "nullgate"][dice.roll(4) as usize];
            // It may not be there yet.
            let _ = fs::write(node.path(&format!("/sys/fs/cgroup/services/{name}/cgroup.kill")), "1");
        }
        match dice.roll(3) {
            0 => trace::jump_to_nowhere(node.pid),
            1 => node.signal(Signal::SIGABRT),
            _ => node.signal(Signal::SIGSEGV),
        }
        wait_crashes(&node, count);
        one_process_each(&node, what);
    }
    for name in ["ctxgraph", "nullgate"] {
        node.wait_state(name, "ready", 40);
    }
    // The flaky ones come up again and again.
    for name in ["cage", "egress"] {
        let before = node.service(name).restarts;
        node.until(&format!("{name} again ({what})"), 40, |node| {
            (node.service(name).restarts > before).then_some(())
        });
    }
    one_process_each(&node, what);
}

/// No service ever has two processes, and none is outside its group.
fn one_process_each(node: &Node, what: &str) {
    for name in ["ctxgraph", "cage", "egress", "nullgate"] {
        let path = node.path(&format!("/sys/fs/cgroup/services/{name}/cgroup.procs"));
        let procs = fs::read_to_string(path).unwrap_or_default();
        assert!(procs.lines().count() <= 1, "{name} runs twice, {what}: {procs}");
    }
    assert!(node.children().len() <= 4 + 2, "strangers, {what}: {:?}", node.children());
}
