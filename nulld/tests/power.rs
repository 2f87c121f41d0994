//! Going down: by order, by force, and with disks that are held. Each test boots a node of its own in namespaces.

mod node;

use std::fs::File;
use std::time::{Duration, Instant};

use abi::limits;
use nix::sys::signal::Signal;
use node::Node;
use serde_json::Value;

fn config(services: &str) -> String {
    format!("[node]\nname = \"test-node\"\n[network]\nmode = \"none\"\n{services}")
}

fn service(name: &str, mode: &str, rest: &str) -> String {
    format!(
        "[services.{name}]\npath = \"/system/bin/probe\"\nargs = [\"{mode}\"]\nunconfined = true\n{rest}\n"
    )
}

/// What the kernel sends for ctrl-alt-del.
fn press(node: &Node, times: usize) {
    for _ in 0..times {
        node.signal(Signal::SIGINT);
        // Two signals of one kind that wait together are one signal.
        std::thread::sleep(Duration::from_millis(150));
    }
}

#[test]
fn one_press_waits_for_services_and_seven_wait_for_nobody() {
    let stubborn = service("cage", "stubborn", "stop_secs_max = 40");
    let mut node = Node::boot(&config(&stubborn));
    let begin = Instant::now();
    press(&node, 1);
    node.wait_console("nullbox: reboot ordered by ", 5);
    std::thread::sleep(Duration::from_millis(limits::FORCE_WINDOW_MS + 500));
    // The order hangs on the service; one press more, or six, change nothing.
    press(&node, limits::FORCE_PRESSES - 1);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(node.service("cage").state, "stopping");
    std::thread::sleep(Duration::from_millis(limits::FORCE_WINDOW_MS));
    // As somebody who means it: on a busy machine so many presses may come slower than the window is long.
    node.until("a forced reboot", 60, |node| {
        let is_forced = || node.console().contains("nullbox: reboot forced by");
        for _ in 0..limits::FORCE_PRESSES {
            if !is_forced() {
                press(node, 1);
            }
        }
        is_forced().then_some(())
    });
    assert_eq!(node.wait_end(10), 1, "SIGHUP stands for a restart");
    assert!(begin.elapsed() < Duration::from_secs(30), "it waited for the service: {:?}", begin.elapsed());
    let console = node.console();
    assert_eq!(console.matches("nullbox: reboot ordered by").count(), 1, "{console}");
    assert_eq!(console.matches("nullbox: reboot forced by").count(), 1, "{console}");
    assert!(!console.contains("services stopped"), "{console}");
}

#[test]
fn state_that_somebody_holds_is_left_as_clean_as_it_can_be_and_holds_nobody_up() {
    for (write, said) in [(false, "state made read-only"), (true, "state is written out but still mounted")] {
        let mut node = Node::boot(&config(&service("cage", "good", "")));
        // A file that is open outside of every service, as one of a process that the kernel does not end.
        let path = node.path("/state/held");
        std::fs::write(&path, "x").unwrap();
        let held = File::options().read(true).write(write).open(&path).unwrap();
        let begin = Instant::now();
        node.call("system.poweroff", Value::Null);
        assert_eq!(node.wait_end(60), 2);
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        let console = node.console();
        assert!(
            console.lines().any(|line| line.starts_with("nullbox: ") && line.contains(said)),
            "{console}"
        );
        drop(held);
    }
}

#[test]
fn while_disks_are_let_go_the_door_still_answers_and_nothing_starts_again() {
    let mut node = Node::boot(&config(&service("cage", "good", "")));
    let path = node.path("/state/held");
    std::fs::write(&path, "x").unwrap();
    let held = File::options().write(true).open(&path).unwrap();
    node.call("system.reboot", Value::Null);
    node.wait_console("nullbox: services stopped in ", 10);
    // /state is tried for a second; the loop turns meanwhile.
    let status = node.status();
    assert!(status.services.iter().all(|service| service.state == "stopped"), "{status:?}");
    let refused = node.call("system.poweroff", Value::Null).error.unwrap();
    assert!(refused.message.contains("going down already"), "{refused}");
    drop(held);
    assert_eq!(node.wait_end(10), 1);
    assert!(node.console().contains("nullbox: state unmounted, reboot"), "{}", node.console());
}

#[test]
fn a_node_without_a_watchdog_says_so() {
    let node = Node::boot(&config(&service("cage", "good", "")));
    let status = node.status();
    assert!(!status.watchdog.is_empty() && !status.clock.is_empty(), "{status:?}");
}
