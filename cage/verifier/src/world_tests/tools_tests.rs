//! Tools in the world: the agent's side is a real process as the agent's user, that passes lines to the tools socket and back (perl, which
//! every Debian has). The host's side decides as each test says.

mod hostile_tests;

use super::*;
use abi::exposure::Exposure;
use abi::tools::{Answer, Call, Done, Go, Refused, TOOLS_UID, Tools};
use serde_json::{Value, json};
use std::io::Write as _;

const SPEAKER: &str = r#"use IO::Socket::UNIX; use IO::Select;
my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!\n"; my $all = IO::Select->new($s, \*STDIN);
while (1) { for my $from ($all->can_read) { my $n = sysread($from, my $bytes, 65536);
  if (!$n) { exit 0 if $from == $s; $all->remove($from); shutdown($s, 1); next }
  my $to = $from == $s ? \*STDOUT : $s; my $sent = 0;
  while ($sent < length $bytes) { $sent += syswrite($to, $bytes, length($bytes) - $sent, $sent) || die "write: $!\n" } } }"#;
const SOCKET: &str = abi::tools::TOOLS_SOCKET;

/// A connection of the agent: its exec's channel, what came of an unfinished line.
struct Agent {
    channel: u32,
    text: Vec<u8>,
    said: u64,
}

fn go() -> Go {
    Go {
        receipt: 7,
        labels: Exposure::PRIVATE_DATA,
        output_bytes_max: 100_000,
        wall_ms_max: 30_000,
        pass_over: Vec::new(),
        result: None,
    }
}

fn order() -> Start {
    let mut order = start(&["/bin/sleep", "1000"]);
    let own = vec!["/bin/sh".to_owned(), "-c".to_owned(), "echo own; cat".to_owned()];
    order.tools = Some(Tools { programs: vec![("deploy".into(), own)] });
    order.has_tree = true;
    order.write = vec!["/srv/out".into()];
    order.read = vec!["/opt".into()];
    order
}

fn tooled() -> Option<Host> {
    let mut host = Host::new(order())?;
    host.last = 1000; // calls have lower numbers
    Some(host)
}

impl Host {
    fn agent(&mut self) -> Agent {
        let command = ["/usr/bin/perl", "-e", SPEAKER, SOCKET].map(ToOwned::to_owned).to_vec();
        let channel = self.exec(&Exec { command, ..shell("") });
        Agent { channel, text: Vec::new(), said: 0 }
    }

    fn say(&mut self, agent: &mut Agent, method: &str, params: Value) {
        agent.said += 1;
        let line =
            json!({"jsonrpc": "2.0", "id": agent.said, "method": method, "params": params}).to_string();
        self.input(agent.channel, format!("{line}\n").as_bytes());
    }

    fn heard(&mut self, agent: &mut Agent) -> Value {
        loop {
            if let Some(end) = agent.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = agent.text.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = self.frame_of(agent.channel);
            match frame.kind {
                Kind::Stdout => {
                    self.widen(agent.channel, frame.payload.len() as u32);
                    agent.text.extend(frame.payload);
                }
                Kind::Window => {}
                other => panic!("{other:?}: {}", String::from_utf8_lossy(&frame.payload)),
            }
        }
    }

    fn asked(&mut self, channel: u32) -> Call {
        let frame = self.frame_of(channel);
        assert_eq!(frame.kind, Kind::Call);
        frame.parse().unwrap()
    }

    fn decide(&mut self, channel: u32, answer: Answer) {
        self.send(Frame::json(Kind::Answer, channel, &answer).unwrap());
    }

    fn ended(&mut self, channel: u32) -> abi::tools::Ended {
        let frame = self.frame_of(channel);
        assert_eq!(frame.kind, Kind::Ended);
        frame.parse().unwrap()
    }

    /// A call that the host lets through: the next one, with this number.
    fn tool(&mut self, agent: &mut Agent, channel: u32, method: &str, params: Value) -> Value {
        self.say(agent, method, params);
        self.asked(channel);
        self.decide(channel, Answer::Go(go()));
        let _ = self.ended(channel);
        self.heard(agent)
    }

    /// The same of a call that must do what it should: its data.
    fn done(&mut self, agent: &mut Agent, channel: u32, method: &str, params: Value) -> Value {
        let answer = self.tool(agent, channel, method, params);
        let done: Done =
            serde_json::from_value(answer["result"].clone()).unwrap_or_else(|_| panic!("{answer}"));
        assert_eq!((done.value, done.receipt, done.labels), (channel, 7, Exposure::PRIVATE_DATA));
        done.data.unwrap_or_default()
    }

    fn shell_run(&mut self, agent: &mut Agent, channel: u32, text: &str) -> Value {
        self.done(agent, channel, "tool.run", json!({"command": ["sh", "-c", text]}))
    }

    fn claimed(&mut self) -> BTreeMap<String, (Content, u32, Vec<u8>)> {
        let ended = self.files(FilesJob::Claim, b"");
        assert_eq!((ended.exit.code, ended.stderr.as_str()), (Some(0), ""));
        let mut reader = Reader::new(ended.stdout.as_slice());
        let mut records = BTreeMap::new();
        while let Some(record) = reader.next(true).unwrap() {
            let mut bytes = Vec::new();
            reader.content().read_to_end(&mut bytes).unwrap();
            records.insert(record.path, (record.content, record.mode, bytes));
        }
        records
    }
}

#[test]
fn each_tool_does_its_work_as_the_tools_user() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    let wrote = host.done(agent, 1, "tool.write", json!({"path": "/work/new/x.txt", "content": "one two"}));
    assert_eq!(wrote["bytes"], 7);
    host.done(agent, 2, "tool.edit", json!({"path": "/work/new/x.txt", "old": "two", "new": "three"}));
    assert_eq!(host.done(agent, 3, "tool.read", json!({"path": "/work/new/x.txt"}))["text"], "one three");
    let found = host.done(agent, 4, "tool.glob", json!({"path": "/work", "pattern": "**/*.txt"}));
    assert_eq!(found["paths"], json!(["/work/edit.txt", "/work/keep.txt", "/work/new/x.txt"]));
    let found = host.done(agent, 5, "tool.grep", json!({"path": "/work", "text": "three"}));
    assert_eq!(found["matches"], json!([{"path": "/work/new/x.txt", "line": 1, "text": "one three"}]));
    let run = host.done(
        agent,
        6,
        "tool.run",
        json!({
            "command": ["sh", "-c", "pwd; id -u; echo err >&2; echo $HOME; cat; exit 3"],
            "stdin": {"value": 3},
        }),
    );
    let output = format!("/work\n{TOOLS_UID}\nerr\n/home/tools\none three");
    assert_eq!(run, json!({"code": 3, "signal": null, "output": output}));
    let own = host.done(agent, 7, "tool.deploy", json!({"arguments": {"to": {"value": 3}, "n": 1}}));
    assert_eq!(own["output"], "own\n{\"n\":1,\"to\":\"one three\"}");
    host.done(agent, 8, "tool.remove", json!({"path": "/work/new/x.txt"}));
    assert!(host.tool(agent, 9, "tool.read", json!({"path": "/work/new/x.txt"}))["error"]["code"] == -32005);
    // What the host does itself.
    host.say(agent, "tool.fetch", json!({"url": "https://docs.rs/"}));
    let asked = host.asked(10);
    assert_eq!((asked.tool.as_str(), asked.params.as_str()), ("fetch", r#"{"url":"https://docs.rs/"}"#));
    for part in ["<p>", "page"] {
        host.send(Frame::data(Kind::Value, 10, part.as_bytes()));
    }
    host.decide(10, Answer::Go(Go { result: Some(json!({"status": 200})), ..go() }));
    assert_eq!(host.ended(10).bytes, 7);
    assert_eq!(host.heard(agent)["result"]["data"], json!({"status": 200, "text": "<p>page"}));
    host.done(agent, 11, "tool.write", json!({"path": "/srv/out/page", "content": {"value": 10}}));
    assert_eq!(host.done(agent, 12, "tool.read", json!({"path": "/srv/out/page"}))["text"], "<p>page");
    // A program's input may be larger than what is taken at once, and its output is cut at the bound.
    let big = host.done(agent, 13, "tool.run", json!({"command": ["head", "-c", "90000", "/dev/zero"]}));
    assert_eq!(big["output"].as_str().unwrap().len(), 90_000);
    let sizes = [(14, 13, "90000\n"), (15, 3, "9\n")];
    for (channel, value, counted) in sizes {
        let run = json!({"command": ["wc", "-c"], "stdin": {"value": value}});
        assert_eq!(host.done(agent, channel, "tool.run", run)["output"], counted);
    }
    let cut = host.tool(agent, 16, "tool.run", json!({"command": ["head", "-c", "2000000", "/dev/zero"]}));
    assert_eq!((&cut["result"]["is_cut"], &cut["result"]["data"]["code"]), (&json!(true), &json!(0)));
    let gone = host.tool(agent, 17, "tool.memory", json!({"method": "memory.get", "params": {"key": "k"}}));
    assert!(gone["error"]["message"].as_str().unwrap().contains("memory"), "{gone}");
}

#[test]
fn nothing_is_done_before_the_host_says_so_or_when_it_refuses() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    host.say(agent, "tool.write", json!({"path": "/work/refused", "content": "x"}));
    assert_eq!(host.asked(1).tool, "write");
    host.say(agent, "tool.run", json!({"command": ["touch", "/work/waits"]}));
    host.asked(2);
    let refused = Refused {
        receipt: Some(9),
        rule: "path".into(),
        why: "not granted".into(),
        remedy: "grant it".into(),
    };
    host.decide(1, Answer::Refused(refused.clone()));
    assert!(host.ended(1).failed.is_some());
    let answer = host.heard(agent);
    assert_eq!(answer["error"]["code"], -32001);
    assert_eq!(serde_json::from_value::<Refused>(answer["error"]["data"].clone()).unwrap(), refused);
    let names = host.done(agent, 3, "tool.glob", json!({"path": "/work", "pattern": "*"}));
    assert_eq!(names["paths"], json!(["/work/edit.txt", "/work/gone/", "/work/keep.txt"]));
    host.decide(2, Answer::Go(go()));
    host.ended(2);
    host.heard(agent);
    let names = host.done(agent, 4, "tool.glob", json!({"path": "/work", "pattern": "w*"}));
    assert_eq!(names["paths"], json!(["/work/waits"]));
    // What is wrong never reaches the host: the next call has the next number.
    for (method, params, code) in [
        ("tool.write", json!({"path": "../x", "content": "x"}), -32602),
        ("tool.write", json!({"path": "/work/x", "content": {"value": 99}}), -32002),
        ("tool.shell", json!({}), -32601),
    ] {
        host.say(agent, method, params);
        assert_eq!(host.heard(agent)["error"]["code"], code, "{method}");
    }
    host.done(agent, 5, "tool.read", json!({"path": "/work/keep.txt"}));
}

#[test]
fn a_sealed_result_reaches_later_calls_and_not_the_agent() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    let sealed = host.tool(agent, 1, "tool.read", json!({"path": "/work/keep.txt", "sealed": true}));
    assert_eq!(
        sealed["result"],
        json!({"value": 1, "receipt": 7, "labels": ["private_data"], "is_cut": false})
    );
    host.done(agent, 2, "tool.write", json!({"path": "/srv/out/copy", "content": {"value": 1}}));
    assert_eq!(host.done(agent, 3, "tool.read", json!({"path": "/srv/out/copy"}))["text"], "kept\n");
    let run = json!({"command": ["cat", "/work/keep.txt"], "sealed": true});
    let sealed = host.tool(agent, 4, "tool.run", run);
    assert!(!sealed.to_string().contains("kept") && sealed["result"]["data"].is_null(), "{sealed}");
    let failed = host.tool(agent, 5, "tool.read", json!({"path": "/work/missing", "sealed": true}));
    assert!(!failed.to_string().contains("missing"), "{failed}");
}

#[test]
fn the_agent_reaches_nothing_of_the_tools() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    host.shell_run(
        agent,
        1,
        "chmod 777 /work /work/keep.txt; echo s > /tmp/of-tools; echo t > ~/x; chmod 777 ~",
    );
    let script = "for p in /work /work/keep.txt /srv/out /home/tools /home/tools/x /tmp/of-tools; do \
         cat $p 2>/dev/null && echo read $p; ls $p 2>/dev/null; touch $p/new 2>/dev/null && echo wrote $p; done; \
         for pid in /proc/[0-9]*; do stat -c %u $pid; done | sort -u; \
         for n in $(seq 1 60); do kill -0 $n 2>/dev/null && [ -z \"$(ls -d /proc/$n 2>/dev/null)\" ] && echo signals $n; done; echo end";
    let seen = host.run(script);
    assert_eq!(seen.text(), format!("{GUEST_UID}\nend\n"), "{}", seen.stderr);
    // A socket that a run makes, even one that is open to all, is not there for the agent; nor the other way round.
    let listen = "use IO::Socket::UNIX; my $l = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 1) or die $!; \
                  chmod 0777, $ARGV[0]; chmod 0777, '/work'; alarm 5; $l->accept; print 'somebody came'";
    let run = json!({"command": ["perl", "-e", listen, "/work/socket"], "timeout_ms": 1500});
    host.say(agent, "tool.run", run);
    host.asked(2);
    host.decide(2, Answer::Go(go()));
    std::thread::sleep(Duration::from_millis(500));
    let tried = host.exec(&Exec {
        command: ["/usr/bin/perl", "-e", SPEAKER, "/work/socket"].map(ToOwned::to_owned).to_vec(),
        ..shell("")
    });
    assert!(host.end_of(tried).stderr.contains("connect"), "no way to a run but its output");
    host.ended(2);
    let answer = host.heard(agent);
    assert_eq!(
        (&answer["result"]["data"]["output"], &answer["result"]["data"]["timed_out"]),
        (&json!(""), &json!(true))
    );
    host.run("echo of-agent > /tmp/of-agent; echo x > /dev/shm/of-agent; mkdir -m 777 /tmp/open");
    let seen = host.shell_run(
        agent,
        3,
        "ls -A /tmp /dev/shm /tmp/open /home/agent 2>/dev/null; cat /dev/pts/0 /dev/tty",
    );
    assert!(!seen["output"].as_str().unwrap().contains("of-agent"), "{seen}");
}

#[test]
fn a_run_has_no_network_and_reaches_nobody_else() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    let sockets = "use Socket; for my $f (AF_UNIX, AF_INET, AF_INET6, 16, 17, 40) { \
                   print $f, socket(my $s, $f, SOCK_STREAM, 0) ? 'yes ' : 'no ' }";
    let seen = host.done(agent, 1, "tool.run", json!({"command": ["perl", "-e", sockets]}));
    assert_eq!(seen["output"], "1yes 2no 10no 16no 17no 40no ");
    for (channel, socket) in [(2, SOCKET), (3, abi::guest::GUEST_MEMORY_SOCKET)] {
        let speak = json!({"command": ["perl", "-e", SPEAKER, socket], "stdin": "{}\n"});
        let seen = host.done(agent, channel, "tool.run", speak);
        let output = seen["output"].as_str().unwrap();
        assert!(output.is_empty() || output.contains("write"), "closed without a word: {seen}");
    }
    let others = "for n in $(seq 1 60); do [ $n != $$ ] && kill -9 $n 2>/dev/null && echo killed $n; done; \
                  cat /proc/1/environ /proc/*/mem 2>/dev/null | head -c 10; touch /usr/x /etc/x /opt/x /work/ok /home/agent/x 2>/dev/null; \
                  ls /usr/x /etc/x /opt/x /home/agent/x 2>/dev/null; echo end";
    assert_eq!(host.shell_run(agent, 4, others)["output"], "end\n");
    assert_eq!(host.done(agent, 5, "tool.read", json!({"path": "/work/ok"}))["text"], "");
}

#[test]
fn what_a_run_leaves_is_killed_and_a_run_that_takes_too_long_too() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    let leave = "(trap '' HUP TERM; while :; do sleep 0.05; echo x >> /work/alive; done) & setsid sh -c 'sleep 1000' & while ! [ -s /work/alive ]; do :; done; echo left";
    assert_eq!(host.shell_run(agent, 1, leave)["output"], "left\n");
    let size = |host: &mut Host, agent: &mut Agent, channel| {
        host.shell_run(agent, channel, "wc -c < /work/alive; pgrep -u 1001 -x sleep")["output"].clone()
    };
    let before = size(&mut host, agent, 2);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(size(&mut host, agent, 3), before, "nothing writes any more");
    let slow = json!({"command": ["sh", "-c", "echo begun; sleep 1000"], "timeout_ms": 300});
    let slow = host.done(agent, 4, "tool.run", slow);
    assert_eq!(slow, json!({"code": null, "signal": 9, "output": "begun\n", "timed_out": true}));
    host.say(agent, "tool.run", json!({"command": ["sleep", "1000"]}));
    host.asked(5);
    host.decide(5, Answer::Go(Go { wall_ms_max: 200, ..go() }));
    assert!(host.ended(5).wall_ms >= 200);
    assert_eq!(host.heard(agent)["result"]["data"]["timed_out"], true);
    // The agent that asked leaves: its run ends with it. A call that waits for the host ends at its answer and is not done.
    let mut other = host.agent();
    host.say(&mut other, "tool.run", json!({"command": ["sleep", "1000"]}));
    host.asked(6);
    host.decide(6, Answer::Go(go()));
    host.say(&mut other, "tool.write", json!({"path": "/work/late", "content": "x"}));
    host.asked(7);
    host.send(Frame::json(Kind::Signal, other.channel, &Signal { signal: 9 }).unwrap());
    assert_eq!(host.ended(6).failed, None);
    assert_eq!(host.run("echo alive").text(), "alive\n");
    assert!(
        !host.came.iter().any(|frame| frame.kind == Kind::Ended),
        "the host ends a guest that ends a call before its answer"
    );
    host.decide(7, Answer::Go(go()));
    assert!(host.ended(7).failed.unwrap().contains("hung up"));
    let found = host.done(agent, 8, "tool.glob", json!({"path": "/work", "pattern": "late"}));
    assert_eq!(found["paths"], json!([]));
}

#[test]
fn a_path_swapped_for_a_link_leads_nowhere() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    let agent = &mut agent;
    host.shell_run(
        agent,
        1,
        "mkdir -p d e; echo inside > d/hostname; echo inside > e/hostname; ln -s /etc/hostname l",
    );
    for path in ["/work/l", "/work/swapped/hostname"] {
        let answer =
            host.tool(agent, if path == "/work/l" { 2 } else { 3 }, "tool.read", json!({"path": path}));
        assert!(answer["error"]["code"] == -32005, "{answer}");
    }
    let mut swapper = host.agent();
    let swap = "while :; do mv -T d s 2>/dev/null; mv -T s d; ln -sfn /etc s; rm s; mv -T e s; rm -rf s; ln -s /etc s; rm s; mkdir e; echo inside > e/hostname; done";
    host.say(&mut swapper, "tool.run", json!({"command": ["sh", "-c", swap], "timeout_ms": 20_000}));
    host.asked(4);
    host.decide(4, Answer::Go(go()));
    let mut outcomes = [0, 0];
    for channel in 5..305 {
        let answer = host.tool(agent, channel, "tool.read", json!({"path": "/work/s/hostname"}));
        match answer["result"]["data"]["text"].as_str() {
            Some(text) => {
                assert!(text == "inside\n" || text.is_empty(), "{text}");
                outcomes[0] += 1;
            }
            None => outcomes[1] += 1,
        }
    }
    assert!(outcomes[1] > 0, "it was swapped while it was read: {outcomes:?}");
}

#[test]
fn a_flood_waits_unread_and_a_slow_reader_holds_up_nobody_for_ever() {
    let Some(mut host) = tooled() else { return };
    let (mut flooder, mut other) = (host.agent(), host.agent());
    let most = limits::TOOL_CALLS_AT_ONCE_MAX as u32;
    for _ in 0..3 * most {
        host.say(&mut flooder, "tool.read", json!({"path": "/work/keep.txt"}));
    }
    for channel in 1..=most {
        host.asked(channel);
    }
    assert_eq!(host.run("echo alive").text(), "alive\n");
    assert!(!host.came.iter().any(|frame| frame.kind == Kind::Call), "no more than the bound");
    for channel in 1..=3 * most {
        if channel > most {
            host.asked(channel);
        }
        host.decide(channel, Answer::Go(go()));
        host.ended(channel);
        assert_eq!(host.heard(&mut flooder)["result"]["data"]["text"], "kept\n");
    }
    let mut last = 3 * most;
    // A line without an end: told, and nothing behind it is read.
    let mut long = host.agent();
    for _ in 0..5 {
        host.input(long.channel, &[b'x'; 16 * 1024]);
    }
    assert_eq!(host.heard(&mut long)["error"]["code"], -32004);
    // Somebody who asks and never reads: the room he takes is bounded, and comes back when he is gone.
    host.shell_run(&mut other, last + 1, "head -c 99000 /dev/zero | tr '\\0' a > big");
    last += 1;
    let deaf = Exec {
        command: ["/usr/bin/perl", "-e", "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; \
            print $s qq({\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tool.read\",\"params\":{\"path\":\"/work/big\"}}\\n) for 1..60; $s->flush; sleep 1000", SOCKET]
            .map(ToOwned::to_owned).to_vec(),
        ..shell("")
    };
    let deaf = host.exec(&deaf);
    let mut let_through = 0;
    loop {
        // Whatever comes is let through, until no more comes.
        let alive = host.run("echo alive");
        assert_eq!(alive.text(), "alive\n");
        let calls: Vec<u32> =
            host.came.iter().filter(|frame| frame.kind == Kind::Call).map(|frame| frame.channel).collect();
        if calls.is_empty() && let_through >= most {
            break;
        }
        for channel in calls {
            host.asked(channel);
            host.decide(channel, Answer::Go(go()));
            host.ended(channel);
            let_through += 1;
            last = last.max(channel);
        }
    }
    assert!(let_through < 60, "{let_through} results were made for somebody who takes none");
    host.send(Frame::json(Kind::Signal, deaf, &Signal { signal: 9 }).unwrap());
    host.done(&mut other, last + 1, "tool.read", json!({"path": "/work/keep.txt"}));
}

#[test]
fn a_tree_is_read_while_it_stands_still_and_exactly() {
    let Some(mut host) = tooled() else { return };
    let (mut agent, mut worker) = (host.agent(), host.agent());
    let agent = &mut agent;
    let early = host.open(Kind::Files, &Files { job: FilesJob::Claim, window_bytes: 1 << 18 });
    assert!(host.frame_of(early).parse::<Failed>().unwrap().error.contains("no submit"));
    let work = "echo new > new; chmod 755 new; rm -r gone; mkdir -p deep/er; echo x > su; chmod 4755 su; mkdir sticky; chmod 1755 sticky; ln -s ../new deep/link; printf changed > edit.txt; touch /srv/out/elsewhere";
    host.shell_run(agent, 1, work);
    host.say(
        &mut worker,
        "tool.run",
        json!({"command": ["sh", "-c", "trap '' TERM; while :; do date +%N > /work/restless; done"]}),
    );
    host.asked(2);
    host.decide(2, Answer::Go(go()));
    host.say(agent, "tool.submit", json!({"note": "done, believe me"}));
    assert_eq!(host.asked(3).tool, "submit");
    host.send(Frame::data(Kind::Still, 3, b""));
    let claim = host.claimed();
    assert_eq!(host.ended(2).failed, None, "what ran was killed");
    assert_eq!(host.heard(&mut worker)["result"]["data"]["signal"], 9);
    let (content, mode, bytes) = &claim["new"];
    assert_eq!((content, *mode, bytes.as_slice()), (&Content::File { bytes: 4 }, 0o755, &b"new\n"[..]));
    assert_eq!(claim["edit.txt"].2, b"changed");
    assert_eq!(claim["gone"].0, Content::Removed);
    assert_eq!(claim["deep/link"].0, Content::Link { target: "../new".into() });
    for path in ["su", "sticky"] {
        let kind = "set-id or sticky entry".to_owned();
        assert_eq!(claim[path].0, Content::Other { kind }, "{path} is not taken for less than it is");
    }
    let mut names: Vec<_> = claim.keys().map(String::as_str).collect();
    names.retain(|name| *name != "restless"); // it may have been killed before its first line
    assert_eq!(names, ["deep", "deep/er", "deep/link", "edit.txt", "gone", "new", "sticky", "su"]);
    assert_eq!(host.claimed().keys().collect::<Vec<_>>(), claim.keys().collect::<Vec<_>>(), "nothing moves");
    host.say(agent, "tool.write", json!({"path": "/work/late", "content": "x"}));
    let refused = host.heard(agent);
    assert!(
        refused["error"]["code"] == -32003
            && refused["error"]["message"].as_str().unwrap().contains("stands still")
    );
    host.decide(3, Answer::Go(Go { result: Some(json!({"verified": false, "why": "tests fail"})), ..go() }));
    host.ended(3);
    assert_eq!(host.heard(agent)["result"]["data"]["verified"], false);
    host.done(agent, 4, "tool.write", json!({"path": "/work/late", "content": "x"}));
    let after = host.open(Kind::Files, &Files { job: FilesJob::Claim, window_bytes: 1 << 18 });
    assert_eq!(host.frame_of(after).kind, Kind::Failed);
}

#[test]
fn what_was_let_through_while_the_tree_stands_still_is_not_done() {
    let Some(mut host) = tooled() else { return };
    let (mut agent, mut other) = (host.agent(), host.agent());
    host.say(&mut agent, "tool.submit", json!({}));
    host.asked(1);
    host.say(&mut other, "tool.write", json!({"path": "/work/raced", "content": "x"}));
    host.asked(2);
    host.send(Frame::data(Kind::Still, 1, b""));
    host.decide(2, Answer::Go(go()));
    assert!(host.ended(2).failed.unwrap().contains("stands still"));
    assert_eq!(host.heard(&mut other)["error"]["code"], -32005);
    assert!(host.claimed().is_empty());
    host.decide(1, Answer::Go(go()));
    host.ended(1);
}

#[test]
fn without_tools_the_tree_is_the_agents_and_is_read_when_its_command_has_ended() {
    let mut order = start(&["/bin/sh", "-c", "read go; cd /work && echo mine > new && rm keep.txt"]);
    (order.has_tree, order.write, order.stdin) = (true, vec![], true);
    let Some(mut host) = Host::new(order) else { return };
    let early = host.open(Kind::Files, &Files { job: FilesJob::Claim, window_bytes: 1 << 18 });
    assert!(host.frame_of(early).parse::<Failed>().unwrap().error.contains("something runs"));
    host.input(0, b"\n");
    assert_eq!(host.end_of(0).exit.code, Some(0));
    let claim = host.claimed();
    assert_eq!(claim.keys().collect::<Vec<_>>(), ["keep.txt", "new"]);
    assert_eq!((&claim["keep.txt"].0, claim["new"].2.as_slice()), (&Content::Removed, &b"mine\n"[..]));
    let mut host = idle().unwrap();
    let none = host.open(Kind::Files, &Files { job: FilesJob::Claim, window_bytes: 1 });
    assert!(host.frame_of(none).parse::<Failed>().unwrap().error.contains("no task's tree"));
}

#[test]
fn files_that_an_operator_copies_are_the_tools() {
    let Some(mut host) = tooled() else { return };
    let wire = stream(&[("in", 0o644, Content::File { bytes: 2 }, b"in")]);
    let written = host.files(FilesJob::Write { path: "/work".into() }, &wire);
    assert_eq!((written.exit.code, written.stderr.as_str()), (Some(0), ""));
    let mut agent = host.agent();
    assert_eq!(host.shell_run(&mut agent, 1, "stat -c %u in")["output"], format!("{TOOLS_UID}\n"));
    assert!(host.changes().contains_key("work/in"));
}

#[test]
fn a_host_that_breaks_the_protocol_of_calls_ends_the_guest() {
    type Breach = fn(&mut Host);
    let breaches: [Breach; 6] = [
        |host| host.decide(0, Answer::Go(go())),
        |host| host.decide(2, Answer::Go(go())),
        |host| {
            host.decide(1, Answer::Go(Go { output_bytes_max: 10, ..go() }));
            host.decide(1, Answer::Go(go()));
        },
        |host| {
            for _ in 0..=limits::TOOL_RESULT_BYTES_MAX / 60_000 {
                // The guest may end before the last.
                let _ = Frame::data(Kind::Value, 1, &[0; 60_000]).write_to(&mut host.writer);
            }
        },
        |host| {
            host.send(Frame::data(Kind::Still, 1, b""));
            host.send(Frame::data(Kind::Still, 1, b""));
        },
        |host| host.send(Frame::data(Kind::Answer, 1, b"{\"go\":1}")),
    ];
    for breach in breaches {
        let Some(mut host) = tooled() else { return };
        let mut agent = host.agent();
        host.say(&mut agent, "tool.run", json!({"command": ["sleep", "1000"]}));
        host.asked(1);
        breach(&mut host);
        host.assert_ended();
    }
    let Some(mut host) = idle() else { return };
    host.decide(1, Answer::Go(go()));
    host.assert_ended();
}

#[test]
fn without_its_tools_process_the_guest_ends_and_a_shutdown_ends_both() {
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    host.done(&mut agent, 1, "tool.read", json!({"path": "/work/keep.txt"}));
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let group = format!("{}/tools/cgroup.kill", host.base.file_name().unwrap().to_str().unwrap());
    let kill = rustix::fs::openat(
        cgroups(),
        group,
        flags.union(rustix::fs::OFlags::WRONLY),
        rustix::fs::Mode::empty(),
    );
    std::fs::File::from(kill.unwrap()).write_all(b"1").unwrap();
    host.assert_ended();
    let Some(mut host) = tooled() else { return };
    let mut agent = host.agent();
    host.say(&mut agent, "tool.run", json!({"command": ["sleep", "1000"]}));
    host.asked(1);
    host.decide(1, Answer::Go(go()));
    // A grace beyond all patience: it ends as soon as nothing is left.
    host.send(Frame::json(Kind::Shutdown, 0, &Shutdown { grace_ms: 600_000 }).unwrap());
    host.assert_ended();
}
