//! Logs of a node: floods, slow readers, the kernel's log, a crash of nulld, and a log host that comes and goes.

mod node;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use abi::control::LogLine;
use abi::rpc::Request;
use abi::wire::Connection;
use node::{Node, call};
use serde_json::{Value, json};

fn config(logs: &str, services: &str) -> String {
    format!("[node]\nname = \"test-node\"\n[network]\nmode = \"none\"\n{logs}\n{services}")
}

fn service(name: &str, mode: &str, rest: &str) -> String {
    format!("[services.{name}]\npath = \"/system/bin/probe\"\nargs = [\"{mode}\"]\n{rest}\n")
}

fn forward_to(host: &str) -> String {
    config(&format!("[logs]\nforward = \"{host}\""), &service("cage", "good", ""))
}

/// A call's lines, up to its answer.
fn next(connection: &mut Connection) -> Option<LogLine> {
    let line = connection.read_line().ok()??;
    let note: Request = serde_json::from_str(&line).unwrap();
    assert_eq!(note.method, "log");
    Some(serde_json::from_value(note.params).unwrap())
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Makes something in the node's network.
fn inside<T: Send + 'static>(node: &Node, make: impl FnOnce() -> T + Send + 'static) -> T {
    let network = File::open(format!("/proc/{}/ns/net", node.pid)).unwrap();
    let enter = move || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), Some(kind)).unwrap();
        make()
    };
    std::thread::spawn(enter).join().unwrap()
}

/// Causes lines in nulld's log: each call is one.
fn chatter(node: &Node, count: usize) {
    let mut connection = node.connect();
    for _ in 0..count {
        assert!(call(&mut connection, "system.status", Value::Null).error.is_none());
    }
}

/// The sequence number of a message, whose form is checked.
fn seq_of(message: &str) -> u64 {
    let (head, text) = message.split_once("] ").unwrap_or_else(|| panic!("{message:?}"));
    let words: Vec<&str> = head.split(' ').collect();
    assert!(words[0].starts_with('<') && words[0].ends_with(">1"), "{message:?}");
    assert!(words[1].len() == 24 && words[1].ends_with('Z'), "{message:?}");
    assert_eq!((words[2], words[4], words[5], words[6]), ("test-node", "-", "-", "[nullbox@32473"));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(words[8], format!("boot=\"{}\"", boot.trim()));
    assert!(!text.is_empty() && message.len() <= 2048 && !message.chars().any(char::is_control));
    words[7].strip_prefix("seq=\"").unwrap().strip_suffix('"').unwrap().parse().unwrap()
}

/// Everything up to `last` is there, or a message says how much is not.
fn assert_whole(seqs: &BTreeSet<u64>, last: u64) {
    let missing: Vec<u64> = (0..=last).filter(|seq| !seqs.contains(seq)).collect();
    assert!(missing.is_empty(), "missing {missing:?} of {last}");
}

#[test]
fn a_flood_is_dropped_and_counted_while_the_door_answers_and_others_keep_their_log() {
    let node = Node::boot(&config("", &(service("cage", "flood", "") + &service("egress", "good", ""))));
    let begin = node.log_lines(json!({ "service": "egress" }));
    let dropped = node.until("a count of dropped lines", 20, |node| {
        let log = node.log_lines(json!({ "service": "cage" }));
        let mut counts = log.iter().filter_map(|line| line.line.strip_prefix("warning log_dropped lines="));
        counts.next_back().map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap())
    });
    assert!(dropped > 100, "{dropped}");
    assert_eq!(node.log_lines(json!({ "service": "egress" })), begin);
    let rss = node.status().nulld_rss_kib;
    // With debug code; the measure of the release build is the soak's.
    assert!(rss < 12 * 1024, "{rss} KiB");
}

#[test]
fn a_slow_reader_is_told_what_it_missed_and_holds_up_nobody() {
    let node = Node::start(&config("", &(service("cage", "flood", "ready_secs_max = 60"))));
    let mut slow = node.connect();
    slow.write_line(&Request::call(1, "system.logs", json!({ "service": "cage", "follow": true }))).unwrap();
    // It takes nothing while the ring turns over, and the door answers all the time.
    let first = node.until("a ring that has turned over", 30, |node| {
        let oldest = node.log_lines(json!({ "service": "cage" })).first().map(|line| line.seq)?;
        (oldest > 1500).then_some(oldest)
    });
    let mut before: Option<LogLine> = None;
    let mut missed = 0;
    while before.as_ref().is_none_or(|line| line.seq < first) {
        let Some(line) = next(&mut slow) else { break };
        assert!(before.as_ref().is_none_or(|before| before.seq < line.seq));
        missed += line.missed;
        before = Some(line);
    }
    // Either it was told, or it was closed because it took nothing for 10 s.
    assert!(missed > 0 || before.unwrap().seq < first);
}

#[test]
fn lines_are_asked_for_by_number_and_by_time() {
    let node = Node::boot(&config("", &service("cage", "good", "")));
    chatter(&node, 20);
    let begin = unix_ms();
    std::thread::sleep(Duration::from_millis(5));
    chatter(&node, 3);
    let all = node.log_lines(json!({ "service": "nulld" }));
    let newest = node.log_lines(json!({ "service": "nulld", "lines": 4 }));
    assert_eq!(newest.len(), 4);
    assert!(newest[0].seq > all[0].seq && newest.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let later = node.log_lines(json!({ "service": "nulld", "since_unix_ms": begin }));
    assert!(later.len() >= 3 && later.len() < all.len(), "{later:?}");
    assert!(later.iter().all(|line| line.unix_ms >= begin));
    assert!(node.log_lines(json!({ "since_unix_ms": unix_ms() + 3_600_000 })).is_empty());
}

#[test]
fn the_kernels_log_is_kept_and_a_process_cannot_speak_for_the_kernel() {
    let node = Node::boot(&config("", &service("cage", "good", "")));
    let word = format!("nullbox-test-{}", std::process::id());
    let mut kmsg = fs::OpenOptions::new().write(true).open("/dev/kmsg").unwrap();
    kmsg.write_all(format!("<4>{word} kernel: forged\n").as_bytes()).unwrap();
    let found = node.until("the record", 10, |node| {
        let log = node.log_lines(json!({ "service": "kernel" }));
        log.into_iter().find(|line| line.line.contains(&word))
    });
    assert_eq!(found.line, format!("warning user: {word} kernel: forged"));
    assert!(unix_ms().abs_diff(found.unix_ms) < 60_000, "{found:?}");
}

#[test]
fn a_crash_of_nulld_keeps_the_logs_and_repeats_nothing() {
    let node = Node::boot(&config("", &service("cage", "good", "")));
    chatter(&node, 30);
    let word = format!("nullbox-crash-{}", std::process::id());
    let mut kmsg = fs::OpenOptions::new().write(true).open("/dev/kmsg").unwrap();
    kmsg.write_all(format!("<6>{word}\n").as_bytes()).unwrap();
    node.until("the record", 10, |node| {
        node.log_lines(json!({ "service": "kernel" })).iter().any(|l| l.line.contains(&word)).then_some(())
    });
    let before = node.log_lines(json!({}));
    let pid = nix::unistd::Pid::from_raw(node.pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSEGV).unwrap();
    node.until("a nulld that began again", 20, |node| (node.status().crashes == 1).then_some(()));
    let after = node.log_lines(json!({}));
    let oldest = after[0].seq;
    let kept: Vec<&LogLine> = before.iter().filter(|line| line.seq >= oldest).collect();
    assert!(kept.len() > 30 && after.iter().zip(&kept).all(|(new, old)| new == *old));
    assert!(after.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let records = after.iter().filter(|line| line.service == "kernel" && line.line.contains(&word));
    assert_eq!(records.count(), 1);
}

/// A log host that takes datagrams.
struct UdpHost {
    seqs: Arc<Mutex<BTreeSet<u64>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl UdpHost {
    fn start(node: &Node, seqs: &Arc<Mutex<BTreeSet<u64>>>) -> UdpHost {
        let socket = inside(node, || UdpSocket::bind("127.0.0.1:5514").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // A busy machine may leave the thread waiting.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20).unwrap();
        let (is_over, seqs) = (Arc::new(AtomicBool::new(false)), seqs.clone());
        let (over, kept) = (is_over.clone(), seqs.clone());
        let thread = std::thread::spawn(move || {
            let (mut buffer, mut count) = ([0u8; 4096], 0);
            while !over.load(Ordering::Relaxed) {
                if let Ok(bytes) = socket.recv(&mut buffer) {
                    count += 1;
                    kept.lock().unwrap().insert(seq_of(std::str::from_utf8(&buffer[..bytes]).unwrap()));
                }
            }
            count
        });
        UdpHost { seqs, is_over, thread: Some(thread) }
    }

    fn wait(&self, last: u64) {
        let begin = Instant::now();
        while self.seqs.lock().unwrap().last().is_none_or(|seq| *seq < last) {
            assert!(begin.elapsed() < Duration::from_secs(40), "line {last} does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it; returns how many datagrams it took.
    fn stop(mut self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn newest(node: &Node) -> u64 {
    node.log_lines(json!({})).last().unwrap().seq
}

#[test]
fn lines_reach_a_host_over_udp_once_it_listens_and_feed_on_nothing() {
    let node = Node::start(&forward_to("udp://127.0.0.1:5514"));
    let seqs = Arc::default();
    let host = UdpHost::start(&node, &seqs);
    node.wait_console("\nnullbox: ready", 20);
    chatter(&node, 20);
    let last = newest(&node);
    host.wait(last);
    assert_whole(&seqs.lock().unwrap(), last);
    let took = host.stop();
    // Nobody listens: the host's own machine says so, and what it missed is sent again.
    chatter(&node, 20);
    std::thread::sleep(Duration::from_secs(1));
    let host = UdpHost::start(&node, &seqs);
    chatter(&node, 20);
    host.wait(newest(&node));
    let last = *seqs.lock().unwrap().last().unwrap();
    assert_whole(&seqs.lock().unwrap(), last);
    let took = took + host.stop();
    // Sending makes no lines to send: each came once, and a few twice.
    assert!(took < 2 * last as usize, "{took} datagrams for {last} lines");
}

#[test]
fn lines_reach_a_host_over_tcp_through_its_restarts_and_the_forwarders() {
    let node = Node::start(&forward_to("tcp://127.0.0.1:5601"));
    let mut host = Host { seqs: BTreeSet::new(), messages: 0, carry: Vec::new() };
    node.wait_console("\nnullbox: ready", 20);
    for round in 0..3 {
        let listener = inside(&node, || TcpListener::bind("127.0.0.1:5601").unwrap());
        // What this host took and never read is bounded, so that what a forwarder keeps to send again covers it.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 8 << 10).unwrap();
        chatter(&node, 20);
        if round == 2 {
            let pid = node.service("forward").pid.unwrap();
            kill_inside(&node, pid);
        }
        let last = newest(&node);
        host.take(&listener, last);
    }
    let last = *host.seqs.last().unwrap();
    assert_whole(&host.seqs, last);
    assert!(host.messages < 4 * host.seqs.len(), "{} messages for {} lines", host.messages, host.seqs.len());
    assert_eq!(node.service("forward").state, "ready");
}

#[test]
fn a_host_that_takes_nothing_disturbs_nobody_and_is_told_what_was_lost() {
    let node = Node::start(&config(
        "[logs]\nforward = \"tcp://127.0.0.1:5601\"",
        &(service("cage", "good", "") + &service("egress", "flood", "ready_secs_max = 60")),
    ));
    let listener = inside(&node, || TcpListener::bind("127.0.0.1:5601").unwrap());
    let (stuck, _) = listener.accept().unwrap();
    // It is connected and reads nothing, while a service floods.
    node.until("a ring that has turned over", 60, |node| {
        let oldest = node.log_lines(json!({ "service": "egress" })).first().map(|line| line.seq)?;
        (oldest > 3000).then_some(())
    });
    assert_eq!(node.service("forward").state, "ready");
    drop(stuck);
    let mut host = Host { seqs: BTreeSet::new(), messages: 0, carry: Vec::new() };
    let text = host.take(&listener, newest(&node));
    assert!(text.contains("] warning log_lost lines="), "{} bytes", text.len());
}

/// A log host: takes messages with their counted octets.
struct Host {
    seqs: BTreeSet<u64>,
    messages: usize,
    carry: Vec<u8>,
}

impl Host {
    /// Accepts connections until a line at or after `last` has come.
    fn take(&mut self, listener: &TcpListener, last: u64) -> String {
        let begin = Instant::now();
        let mut text = String::new();
        listener.set_nonblocking(true).unwrap();
        while self.seqs.last().is_none_or(|seq| *seq < last) {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "line {last} does not come: {:?}",
                self.seqs.last()
            );
            match listener.accept() {
                Ok((stream, _)) => self.read(stream, last, &mut text),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        text
    }

    fn read(&mut self, mut stream: TcpStream, last: u64, text: &mut String) {
        self.carry.clear();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut chunk = [0u8; 8192];
        while self.seqs.last().is_none_or(|seq| *seq < last) {
            let count = match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            self.carry.extend(&chunk[..count]);
            while let Some(message) = self.frame() {
                self.seqs.insert(seq_of(&message));
                self.messages += 1;
                text.push_str(&message);
                text.push('\n');
            }
        }
    }

    fn frame(&mut self) -> Option<String> {
        let blank = self.carry.iter().position(|byte| *byte == b' ')?;
        let bytes: usize = std::str::from_utf8(&self.carry[..blank]).unwrap().parse().unwrap();
        let message = self.carry.get(blank + 1..blank + 1 + bytes)?.to_vec();
        self.carry.drain(..blank + 1 + bytes);
        Some(String::from_utf8(message).unwrap())
    }
}

/// Kills a process that the node numbers so.
fn kill_inside(node: &Node, pid: u32) {
    let kill = format!("kill -KILL {pid}");
    let done = std::process::Command::new("nsenter")
        .args(["--pid", &format!("--target={}", node.pid), "--", "/bin/sh", "-c", &kill])
        .status()
        .unwrap();
    assert!(done.success());
}
