//! Supervision as PID 1: services that hang, chatter or cannot be ended, needs that fail for good, orphans by the thousand,
//! callers by the thousand.

mod node;

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use abi::limits;
use abi::rpc::{Code, Incoming, Request};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use node::{Node, call, read};
use rustix::process::{Resource, Rlimit};
use serde_json::{Value, json};

fn config(services: &str) -> String {
    format!("[node]\nname = \"test-node\"\n[network]\nmode = \"none\"\n{services}")
}

fn service(name: &str, args: &[&str], rest: &str) -> String {
    format!("[services.{name}]\npath = \"/system/bin/probe\"\nargs = {}\n{rest}\n", json!(args))
}

fn log_of(node: &Node, service: &str) -> Vec<String> {
    node.logs(service).into_iter().map(|line| line.line).collect()
}

/// A tracer that does not collect it keeps a killed process from its parent, as a disk that does not answer would.
struct Tracer {
    let_go: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Tracer {
    fn hold(pid: i32) -> Tracer {
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        let (traced, is_traced) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let pid = Pid::from_raw(pid);
            nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).unwrap();
            traced.send(()).unwrap();
            wait.recv().unwrap();
            nix::sys::wait::waitpid(pid, None).unwrap();
        });
        is_traced.recv().unwrap();
        Tracer { let_go, thread }
    }

    fn let_go(self) {
        self.let_go.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

#[test]
fn a_service_without_a_sign_of_life_is_killed_and_started_again() {
    let node = Node::boot(&config(
        &(service("cage", &["hung"], "watchdog_secs_max = 5")
            + &service("egress", &["good"], "watchdog_secs_max = 5")
            + &service("nullgate", &["hung"], "")),
    ));
    let begin = Instant::now();
    let hung = node.until("hung cage", 20, |node| {
        let cage = node.service("cage");
        (cage.state == "backoff").then_some(cage)
    });
    assert!(begin.elapsed() > Duration::from_millis(4_500), "not before its time");
    assert_eq!(hung.detail, "no sign of life for 5 s");
    node.until("another cage", 10, |node| {
        let cage = node.service("cage");
        (cage.state == "ready" && cage.restarts == 1).then_some(())
    });
    for untouched in ["egress", "nullgate"] {
        let service = node.service(untouched);
        assert_eq!((service.state.as_str(), service.restarts), ("ready", 0), "{untouched}");
    }
    assert!(log_of(&node, "nulld").iter().any(|line| line.contains("service_hung service=cage")));
}

#[test]
fn a_frozen_nulld_blames_no_service_for_the_silence() {
    let node = Node::boot(&config(&service("egress", &["good"], "watchdog_secs_max = 5")));
    let before = node.service("egress").pid;
    // Everything stands still, as on a machine that was suspended.
    let service = Pid::from_raw(before_outside(&node));
    nix::sys::signal::kill(service, Signal::SIGSTOP).unwrap();
    node.stop();
    std::thread::sleep(Duration::from_secs(6));
    node.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(500));
    nix::sys::signal::kill(service, Signal::SIGCONT).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let after = node.service("egress");
    assert_eq!((after.pid, after.restarts, after.state.as_str()), (before, 0, "ready"));
}

/// The only child of PID 1, as this namespace numbers it.
fn before_outside(node: &Node) -> i32 {
    let children = node.children();
    assert_eq!(children.len(), 1, "{children:?}");
    children[0].0.cast_signed()
}

#[test]
fn what_a_service_says_of_itself_is_shown_and_its_chatter_is_bounded() {
    let node = Node::boot(&config(&(service("cage", &["chatty"], "") + &service("egress", &["good"], ""))));
    node.until("the last word", 20, |node| (node.service("cage").says == "at rest").then_some(()));
    let unknown = log_of(&node, "nulld").iter().filter(|line| line.contains("notice_unknown")).count();
    assert_eq!(unknown, 1, "junk is told once");
    assert_eq!((node.service("cage").restarts, node.service("egress").state.as_str()), (0, "ready"));
}

#[test]
fn a_need_that_fails_for_good_stops_only_what_depends_on_it() {
    let node = Node::start(&config(
        &(service("ctxgraph", &["crash-ready"], "restart = \"never\"")
            + &service("cage", &["good"], "needs = [\"ctxgraph\"]")
            + &service("nullgate", &["good"], "needs = [\"cage\"]")
            + &service("egress", &["good"], "")),
    ));
    node.wait_state("ctxgraph", "failed", 10);
    let cage = node.until("a cage that waits", 10, |node| {
        let cage = node.service("cage");
        (cage.state == "waiting" && cage.detail.contains("ctxgraph")).then_some(cage)
    });
    assert_eq!((cage.detail.as_str(), cage.pid), ("needs ctxgraph, which is failed", None));
    assert_eq!(node.wait_state("nullgate", "waiting", 10).pid, None);
    assert_eq!((node.service("egress").state.as_str(), node.service("egress").restarts), ("ready", 0));
    // They may never have been started: the need lives for 300 ms. If they were, the last one stopped first.
    let log = log_of(&node, "nulld");
    let at = |text: &str| log.iter().position(|line| line.contains(text));
    if let (Some(gate), Some(cage)) =
        (at("service_paused service=nullgate"), at("service_paused service=cage"))
    {
        assert!(gate < cage, "{log:?}");
    }
    assert_eq!(node.children().len(), 1);
}

#[test]
fn a_process_that_the_kernel_keeps_is_abandoned_named_and_started_again_when_it_is_gone() {
    let node = Node::boot(&config(
        &(service("cage", &["hung"], "watchdog_secs_max = 5")
            + &service("nullgate", &["good"], "needs = [\"cage\"]")
            + &service("egress", &["good"], "")),
    ));
    let inside = node.service("cage").pid.unwrap();
    let outside = node.outside("cage");
    let tracer = Tracer::hold(outside);
    let abandoned = node.wait_state("cage", "failed", 25);
    assert!(abandoned.detail.contains(&format!("does not end process {inside} (state ")), "{abandoned:?}");
    assert!(log_of(&node, "nulld").iter().any(|line| line.contains("service_abandoned service=cage")));
    // What needs it stops; the rest of the node goes on; nothing is started beside it.
    assert_eq!(node.wait_state("nullgate", "waiting", 10).detail, "needs cage, which is failed");
    assert_eq!(node.service("egress").restarts, 0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((node.service("cage").state.as_str(), node.service("cage").restarts), ("failed", 0));
    tracer.let_go();
    node.until("both again", 20, |node| {
        let (cage, gate) = (node.service("cage"), node.service("nullgate"));
        (cage.restarts >= 1 && cage.state == "ready" && gate.state == "ready").then_some(())
    });
}

#[test]
fn an_abandoned_process_holds_no_power_off_up() {
    let mut node = Node::boot(&config(&service("cage", &["good"], "stop_secs_max = 1")));
    let outside = node.outside("cage");
    let tracer = Tracer::hold(outside);
    node.call("system.poweroff", Value::Null);
    node.wait_console("service_abandoned service=cage", 20);
    node.wait_console("nullbox: services stopped", 10);
    // The end of the PID namespace waits for its last process; the node's kernel would not.
    tracer.let_go();
    assert_eq!(node.wait_end(20), 2);
}

#[test]
fn a_start_that_fails_is_tried_again() {
    let node = Node::boot(&config(&(service("cage", &["good"], "") + &service("egress", &["good"], ""))));
    let pid = rustix::process::Pid::from_raw(node.pid.cast_signed());
    let limit = |most| {
        let limit = Rlimit { current: Some(most), maximum: Some(4096) };
        rustix::process::prlimit(pid, Resource::Nofile, limit).unwrap();
    };
    // nulld cannot make a descriptor any more.
    limit(5);
    fs::write(node.path("/sys/fs/cgroup/services/cage/cgroup.kill"), "1").unwrap();
    node.wait_console("detail=\"cannot make a door", 15);
    node.until("a second try", 15, |node| {
        (node.console().matches("detail=\"cannot make a door").count() >= 2).then_some(())
    });
    limit(1024);
    let cage = node.wait_state("cage", "ready", 40);
    assert!(cage.pid.is_some());
    assert_eq!(node.service("egress").restarts, 0);
}

#[test]
fn ten_thousand_orphans_are_reaped_and_nobody_starves() {
    let node = Node::start(&config(
        &(service("cage", &["orphans", "10000"], "ready_secs_max = 120") + &service("egress", &["good"], "")),
    ));
    node.wait_state("egress", "ready", 20);
    let mut most = 0;
    let mut slowest = Duration::ZERO;
    node.until("the end of the orphans", 120, |node| {
        most = most.max(node.children().len());
        let begin = Instant::now();
        let is_ready = node.service("cage").state == "ready";
        slowest = slowest.max(begin.elapsed());
        (is_ready && node.children().len() == 2).then_some(())
    });
    println!("at most {most} children at a time, slowest answer {slowest:?}");
    assert!(most > 5_000, "{most}");
    assert_eq!(node.service("egress").restarts, 0);
    assert!(node.children().iter().all(|(_, state)| *state != 'Z'));
}

#[test]
fn a_thousand_idle_callers_and_endless_lines_hold_nobody_up() {
    let node = Node::boot(&config(&service("cage", &["good"], "")));
    let idle: Vec<_> = (0..1_000).map(|_| node.connect()).collect();
    assert_eq!(node.status().services.len(), 1);
    assert!(fs::read_dir(format!("/proc/{}/fd", node.pid)).unwrap().count() < 64 + limits::DOOR_PENDING_MAX);
    // A line of exactly the longest length is read to its end, and refused for what it says.
    let mut longest = node.connect();
    let mut line = vec![b'x'; limits::LINE_BYTES_MAX - 1];
    line.push(b'\n');
    longest.stream().write_all(&line).unwrap();
    let Incoming::Response(refused) = read(&mut longest) else { panic!("no answer") };
    assert!(refused.error.is_some());
    // Lines that never end, from many at a time: each is answered with the limit and closed.
    let endless: Vec<_> = (0..20)
        .map(|_| {
            let mut connection = node.connect();
            std::thread::spawn(move || {
                let junk = vec![b'y'; 16 * 1024];
                while connection.stream().write_all(&junk).is_ok() {}
                connection.read_line()
            })
        })
        .collect();
    for thread in endless {
        // The answer, or the reset that follows bytes that nobody read.
        if let Ok(Some(line)) = thread.join().unwrap() {
            assert!(line.contains(&format!("{}", Code::LIMIT.0)), "{line}");
        }
    }
    let mut caller = node.connect();
    let answer = call(&mut caller, "agent.list", Value::Null);
    assert!(answer.result.is_some());
    drop(idle);
    let refused = call(&mut node.connect(), "net.grants", Value::Null).error.unwrap();
    assert_eq!(refused.code, Code::UNAVAILABLE);
    let request = Request::call(1, "system.status", Value::Null);
    let mut caller = node.connect();
    caller.write_line(&request).unwrap();
    assert!(matches!(read(&mut caller), Incoming::Response(answer) if answer.result.is_some()));
}

#[test]
fn a_node_with_nothing_to_do_sleeps() {
    let node = Node::boot(&config(
        &(service("cage", &["good"], "") + &service("egress", &["good"], "watchdog_secs_max = 60")),
    ));
    std::thread::sleep(Duration::from_secs(1));
    let before = node.cpu_ticks();
    std::thread::sleep(Duration::from_secs(3));
    let used = node.cpu_ticks() - before;
    assert!(used < 50, "{used} of 300 ticks");
}
