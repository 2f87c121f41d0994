//! An agent that means harm, at the tools' socket: whatever it sends, and in whatever pieces, the tools go on for others and do what the host
//! let through, nothing else.

use super::*;

const KEEP: &str = "/work/keep.txt";

impl Host {
    fn raw(&mut self, agent: &Agent, bytes: &[u8]) {
        self.input(agent.channel, bytes);
    }

    fn fault(&mut self, agent: &mut Agent, method: &str, params: Value) -> Value {
        self.say(agent, method, params);
        self.heard(agent)["error"]["code"].clone()
    }

    /// That no call has come to the host that nobody asked about.
    fn assert_nothing_asked(&mut self) {
        assert_eq!(self.run("echo alive").text(), "alive\n");
        assert!(!self.came.iter().any(|frame| frame.kind == Kind::Call), "{:?}", self.came);
    }

    /// A run that goes on until its time is over, on a connection of its own.
    fn background(&mut self, channel: u32, text: &str) -> Agent {
        let mut agent = self.agent();
        let run = json!({"command": ["sh", "-c", text], "timeout_ms": 20_000});
        self.say(&mut agent, "tool.run", run);
        self.asked(channel);
        self.decide(channel, Answer::Go(go()));
        agent
    }
}

#[test]
fn lines_in_any_pieces_reach_the_host_whole_or_not_at_all() {
    let Some(mut host) = tooled() else { return };
    let (mut half, mut agent) = (host.agent(), host.agent());
    let line = r#"{"jsonrpc":"2.0","id":1,"method":"tool.read","params":{"path":"/work/keep.txt"}}"#;
    let (first, rest) = line.split_at(40);
    host.raw(&half, first.as_bytes());
    host.done(&mut agent, 1, "tool.read", json!({"path": KEEP}));
    host.assert_nothing_asked();
    for byte in rest.bytes().chain(*b"\n") {
        host.raw(&half, &[byte]);
    }
    host.asked(2);
    host.decide(2, Answer::Go(go()));
    host.ended(2);
    assert_eq!(host.heard(&mut half)["result"]["data"]["text"], "kept\n");
    // Lines of one byte, and bytes that are no text: each has its fault, none reaches the host.
    host.raw(&half, &b"x\n".repeat(300));
    let odd: [&[u8]; 4] = [
        b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tool.read\",\"params\":{\"path\":\"/work/\xff\"}}\n",
        b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tool.read\",\"params\":{\"path\":\"/work/\0\"}}\n",
        b"\0\n",
        b"{\"jsonrpc\":\"2.0\",\"id\":2,\"id\":3,\"method\":\"tool.read\"}\n",
    ];
    odd.iter().for_each(|line| host.raw(&half, line));
    for _ in 0..304 {
        let answer = host.heard(&mut half);
        assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(-32600), &Value::Null), "{answer}");
    }
    for params in
        [json!({"path": "/work/a\0b"}), json!({"path": "/work/a\nb"}), json!({"path": "/work/../etc"})]
    {
        assert_eq!(host.fault(&mut agent, "tool.read", params), -32602);
    }
    host.raw(&half, first.as_bytes());
    host.input(half.channel, b"");
    host.assert_nothing_asked();
    host.done(&mut agent, 3, "tool.read", json!({"path": KEEP}));
}

#[test]
fn a_connection_beyond_the_bound_waits_for_one_to_go() {
    let Some(mut host) = tooled() else { return };
    let hold = "use IO::Socket::UNIX; $| = 1; my @all = map { IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $! } 1..16; \
                print qq(held\\n); <STDIN>; shift @all; sleep 1000";
    let command = ["/usr/bin/perl", "-e", hold, SOCKET].map(ToOwned::to_owned).to_vec();
    let holder = host.exec(&Exec { command, ..shell("") });
    host.until(holder, "held");
    let mut agent = host.agent();
    host.say(&mut agent, "tool.read", json!({"path": KEEP}));
    std::thread::sleep(Duration::from_millis(300));
    host.assert_nothing_asked();
    host.input(holder, b"\n");
    host.asked(1);
    host.decide(1, Answer::Go(go()));
    host.ended(1);
    assert_eq!(host.heard(&mut agent)["result"]["data"]["text"], "kept\n");
}

#[test]
fn an_answer_on_its_way_holds_up_no_other_call() {
    let Some(mut host) = tooled() else { return };
    let (mut agent, mut other) = (host.agent(), host.agent());
    host.say(&mut agent, "tool.fetch", json!({"url": "https://docs.rs/"}));
    host.asked(1);
    host.send(Frame::data(Kind::Value, 1, b"half a "));
    host.done(&mut other, 2, "tool.read", json!({"path": KEEP}));
    // The same connection, too: its answers come in the order in which they are there.
    host.done(&mut agent, 3, "tool.read", json!({"path": KEEP}));
    assert_eq!(
        host.fault(&mut agent, "tool.write", json!({"path": "/work/x", "content": {"value": 1}})),
        -32002
    );
    host.send(Frame::data(Kind::Value, 1, b"page"));
    host.decide(1, Answer::Go(go()));
    host.ended(1);
    assert_eq!(host.heard(&mut agent)["result"]["data"]["text"], "half a page");
}

#[test]
fn a_reference_reaches_results_of_this_life_that_are_kept_and_nothing_else() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    let take = |value: u64| json!({"path": "/work/taken", "content": {"value": value}});
    // The numbers of a life before this one, of none, of calls to come.
    for value in [0, 1, 2, u64::from(u32::MAX)] {
        assert_eq!(host.fault(agent, "tool.write", take(value)), -32002, "{value}");
    }
    assert_eq!(host.fault(agent, "tool.write", take(u64::from(u32::MAX) + 1)), -32602);
    let own = json!({"arguments": [{"deep": {"value": 1}}]});
    assert_eq!(host.fault(agent, "tool.deploy", own), -32002);
    host.done(agent, 1, "tool.read", json!({"path": KEEP}));
    // One that was refused and one that failed hold nothing.
    host.say(agent, "tool.read", json!({"path": KEEP}));
    host.asked(2);
    let text = String::new;
    let refused = Refused { receipt: None, rule: text(), why: text(), remedy: text() };
    host.decide(2, Answer::Refused(refused));
    host.ended(2);
    host.heard(agent);
    host.tool(agent, 3, "tool.read", json!({"path": "/work/missing"}));
    for value in [2, 3] {
        assert_eq!(host.fault(agent, "tool.write", take(value)), -32002, "{value}");
    }
    host.done(agent, 4, "tool.write", take(1));
    let last = limits::TOOL_VALUES_MAX as u32 + 3;
    for channel in 5..=last {
        host.done(agent, channel, "tool.read", json!({"path": KEEP}));
    }
    assert_eq!(host.fault(agent, "tool.write", take(1)), -32002, "it was the oldest");
    host.done(agent, last + 1, "tool.write", take(4));
    assert_eq!(host.done(agent, last + 2, "tool.read", json!({"path": "/work/taken"}))["text"], "");
}

#[test]
fn what_is_no_plain_file_is_neither_read_nor_written() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    let make = "mkfifo pipe; perl -e 'use IO::Socket::UNIX; IO::Socket::UNIX->new(Local => q(socket), Listen => 1) or die'; \
                ln -s /proc/self/root up; ls";
    let made = host.shell_run(agent, 1, make);
    assert_eq!(made["output"], "edit.txt\ngone\nkeep.txt\npipe\nsocket\nup\n");
    let mut paths: Vec<String> = [
        "/work/pipe",
        "/work/socket",
        "/work/up/etc/hostname",
        "/work/up",
        "/dev/zero",
        "/dev/null",
        "/dev/tty",
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    paths.extend(
        ["root/etc/hostname", "root", "cwd", "fd/0", "fd/4", "mem", "exe", "environ"].iter().flat_map(
            |end| ["self", "thread-self", "1", "2", "3"].map(|process| format!("/proc/{process}/{end}")),
        ),
    );
    let mut channel = 1;
    for path in &paths {
        for (method, params) in [
            ("tool.read", json!({"path": path})),
            ("tool.grep", json!({"path": path, "text": "x"})),
            ("tool.write", json!({"path": path, "content": "planted"})),
            ("tool.edit", json!({"path": path, "old": "x", "new": "y"})),
        ] {
            channel += 1;
            let answer = host.tool(agent, channel, method, params);
            assert_eq!(answer["error"]["code"], -32005, "{method} {path}: {answer}");
        }
    }
    assert_eq!(host.done(agent, channel + 1, "tool.read", json!({"path": KEEP}))["text"], "kept\n");
}

#[test]
fn a_file_that_grows_is_read_up_to_a_bound() {
    let Some(mut host) = tooled() else { return };
    let grow = "while :; do head -c 65536 /dev/zero | tr '\\0' a; echo; done > /work/log";
    let _growing = host.background(1, grow);
    let mut agent = host.agent();
    for channel in 2..42 {
        let answer = match channel % 3 {
            0 => host.tool(&mut agent, channel, "tool.read", json!({"path": "/work/log"})),
            1 => host.tool(&mut agent, channel, "tool.grep", json!({"path": "/work/log", "text": "a"})),
            _ => host.tool(
                &mut agent,
                channel,
                "tool.edit",
                json!({"path": "/work/log", "old": "b", "new": "c"}),
            ),
        };
        assert!(answer.to_string().len() < 110_000, "{}", answer.to_string().len());
        let is_edit = channel % 3 == 2;
        let is_missing = answer["error"]["message"].as_str().is_some_and(|why| why.contains("No such file"));
        assert!(is_missing || answer["result"].is_null() == is_edit, "{answer}");
    }
}

#[test]
fn a_file_swapped_for_a_link_or_a_pipe_is_neither_followed_nor_waited_for() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    host.shell_run(agent, 1, "echo whole > /srv/out/kept");
    let swap = "while :; do ln -s /srv/out/kept s; rm s; mkfifo s; rm s; echo x > s; rm s; ln -s /dev/zero s; rm s; done 2>/dev/null";
    let _swapping = host.background(2, swap);
    let mut failed = 0;
    for channel in 3..203 {
        let (method, params) = match channel % 3 {
            0 => ("tool.read", json!({"path": "/work/s"})),
            1 => ("tool.write", json!({"path": "/work/s", "content": "planted"})),
            _ => ("tool.edit", json!({"path": "/work/s", "old": "whole", "new": "planted"})),
        };
        let answer = host.tool(agent, channel, method, params);
        failed += usize::from(answer["result"].is_null());
        if let Some(text) = answer["result"]["data"]["text"].as_str() {
            assert!(!text.contains("whole") && !text.contains('\0'), "{answer}");
        }
    }
    assert!(failed > 0, "it was swapped meanwhile");
    assert_eq!(host.done(agent, 203, "tool.read", json!({"path": "/srv/out/kept"}))["text"], "whole\n");
}

#[test]
fn two_thousand_forks_end_with_the_run_that_made_them() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    let fork = "$| = 1; my $n = 0; for (1..2000) { my $pid = fork; last unless defined $pid; if (!$pid) { setpgrp; sleep 1000; exit } $n++ } print $n";
    let run = host.done(agent, 1, "tool.run", json!({"command": ["perl", "-e", fork]}));
    assert_eq!(run, json!({"code": 0, "signal": null, "output": "2000"}));
    assert_eq!(host.shell_run(agent, 2, "pgrep -u 1001 -c perl")["output"], "0\n");
}

#[test]
fn a_burst_of_output_is_cut_and_holds_up_nobody() {
    let Some(mut host) = tooled() else { return };
    let burst = "head -c 67108864 /dev/zero; sleep 0.2; echo end >&2";
    let mut bursting = host.background(1, burst);
    let mut agent = host.agent();
    for channel in 2..22 {
        host.done(&mut agent, channel, "tool.read", json!({"path": KEEP}));
    }
    assert_eq!(host.ended(1).bytes, go().output_bytes_max);
    let answer = host.heard(&mut bursting);
    let result = &answer["result"];
    assert_eq!((&result["is_cut"], &result["data"]["code"]), (&json!(true), &json!(0)));
    assert!(result["data"]["output"].as_str().unwrap().bytes().all(|byte| byte == 0));
}
