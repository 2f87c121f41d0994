//! `nullctl policy`: decided here as on a node, by the same library; without one.

mod fixture;

use fixture::{Scratch, nullctl};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;

struct Ran {
    status: i32,
    out: String,
    err: String,
}

const AUTHORITY: &str = "[authority]\nread = [\"/work/**\"]\nwrite = [\"/work/src/**\"]\nnever = [\"/work/.env\"]\ncommands = [\"cargo test **\"]\nnames = [\"docs.rs\", \"x.test\"]\nbudget = { calls = 3 }\nprivate = [\"/work/**\"]\n[authority.operations]\nread_files = \"always\"\nwrite_files = \"always\"\nrun_bash = \"always\"\nweb_fetch = \"always\"\n";

struct Files(Scratch);

impl Files {
    fn new() -> Files {
        Files(Scratch::new())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn run(args: &[&str], input: &str) -> Ran {
    let mut command = nullctl();
    command.arg("policy").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes()))); // it may stop reading at a wrong line
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn digest() -> String {
    format!("sha256:{}", "ab".repeat(32))
}

/// An event as the ledger has it.
fn called(
    seq: u64,
    life: u32,
    tool: &str,
    operation: &str,
    target: &str,
    verdict: &str,
    exposure: &[&str],
) -> Value {
    json!({"seq": seq, "digest": digest(), "unix_ms": 1000 + seq, "source": "cage", "event": {"event": "tool_called",
        "instance": format!("coder.{life}"), "call": seq, "tool": tool, "operation": operation, "target": target, "arguments": digest(),
        "verdict": verdict, "rule": "granted", "exposure": exposure, "labels": []}})
}

fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

#[test]
fn calls_are_decided_as_on_a_node() {
    let files = Files::new();
    let manifest = files.write("a.toml", AUTHORITY);
    let line = |operation: &str, tool: &str, target: Value, seen: &[&str]| {
        json!({"call": {"operation": operation, "tool": tool, "target": target, "arguments": digest(), "pinned": digest()},
            "situation": {"now_unix_ms": 5, "seen": seen}})
    };
    let page = json!({"page": {"name": "x.test", "port": 443, "path": "/"}});
    let input = lines(&[
        line("read_files", "read", json!({"path": "/work/a"}), &[]),
        line("read_files", "read", json!({"path": "/work/.env"}), &[]),
        line("write_files", "write", json!({"path": "/work/a"}), &[]),
        line("run_bash", "run", json!({"command": ["cargo", "test", "-q"]}), &[]),
        line("web_fetch", "fetch", page.clone(), &["private_data"]),
        line("web_fetch", "fetch", page, &["private_data", "untrusted_content"]),
    ]);
    let ran = run(&["decide", "--manifest", &manifest], &input);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let decided: Vec<String> = ran
        .out
        .lines()
        .map(|line| {
            let decision: Value = serde_json::from_str(line).unwrap();
            format!("{} {}", decision["verdict"].as_str().unwrap(), decision["rule"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        decided,
        ["allow granted", "deny never", "deny path", "allow granted", "allow granted", "ask exposure"]
    );
    let ran = run(&["decide", "--manifest", &manifest], "{\"call\": 1}\n");
    assert!(ran.status == 2 && ran.err.contains("line 1"), "{}", ran.err);
    let none = files
        .write("none.toml", "[agent]\nname = \"x\"\nversion = \"1\"\nrootfs = \"x\"\ncommand = [\"/x\"]\n");
    let ran = run(&["decide", "--manifest", &none], "");
    assert!(ran.status == 2 && ran.err.contains("has no [authority]"), "{}", ran.err);
    let wrong = files.write("wrong.toml", "[authority]\nreed = []\n");
    assert_eq!(run(&["decide", "--manifest", &wrong], "").status, 2);
}

#[test]
fn an_explanation_says_what_each_rule_says() {
    let files = Files::new();
    let manifest = files.write("a.toml", &AUTHORITY.replace("run_bash = \"always\"", "run_bash = \"ask\""));
    let said = |args: &[&str]| {
        let ran = run(&[&["explain", "--json", "--manifest", &manifest], args].concat(), "");
        let answer: Value =
            serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}{}", ran.out, ran.err));
        let rules = answer["rules"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|rule| rule["says"] != "-" && rule["says"] != "allows");
        let rules: Vec<String> = rules
            .map(|rule| format!("{} {}", rule["rule"].as_str().unwrap(), rule["says"].as_str().unwrap()))
            .collect();
        (ran.status, answer["decision"]["verdict"].as_str().unwrap().to_owned(), rules.join(", "))
    };
    let is = |status, verdict: &str, rules: &str| (status, verdict.to_owned(), rules.to_owned());
    assert_eq!(said(&["read", "/work/a"]), is(0, "allow", ""));
    // Each rule that is broken is told, not the first alone.
    assert_eq!(said(&["write", "/work/.env"]), is(1, "deny", "never denies, path denies"));
    assert_eq!(said(&["run", "rm -rf /"]), is(1, "deny", "level asks, command denies"));
    assert_eq!(said(&["edit", "/etc/passwd"]), is(1, "deny", "level denies, path denies"));
    let seen = "--seen=private_data,untrusted_content";
    assert_eq!(said(&["fetch", "https://x.test/a", seen]), is(0, "ask", "exposure asks"));
    assert_eq!(said(&["fetch", "https://y.test:444", seen]), is(1, "deny", "name denies, exposure asks"));
    let ran = run(&["explain", "--manifest", &manifest, "write", "/work/.env"], "");
    assert!(ran.out.contains("verdict") && ran.out.contains("never     denies"), "{}", ran.out);
    assert_eq!(run(&["explain", "--manifest", &manifest, "fly", "x"], "").status, 2);
    let ran = run(&["explain", "--manifest", &manifest, "read"], "");
    assert!(ran.status == 2 && ran.err.contains("`read` needs a target"), "{}", ran.err);
}

#[test]
fn a_replay_tells_what_a_manifest_decides_otherwise() {
    let files = Files::new();
    let manifest = files.write("a.toml", AUTHORITY);
    let past = [
        called(1, 1, "read", "read_files", "/work/a", "allow", &[]),
        called(2, 1, "run", "run_bash", "cargo test -q", "allow", &["private_data"]),
        called(3, 1, "write", "write_files", "/work/doc", "deny", &[]),
        called(
            4,
            2,
            "fetch",
            "web_fetch",
            "x.test:443/a",
            "ask",
            &["private_data", "untrusted_content", "exfiltration"],
        ),
        json!({"seq": 5, "digest": digest(), "unix_ms": 9, "source": "nulld", "event": {"event": "service_started", "service": "cage", "restarts": 0}}),
    ];
    let ran = run(&["replay", "--manifest", &manifest], &lines(&past));
    assert_eq!((ran.status, ran.out.as_str()), (0, "4 calls, 0 decided differently\n"), "{}", ran.err);
    let found = json!({"events": past, "next_seq": null});
    assert_eq!(run(&["replay", "--manifest", &manifest], &format!("{found}\n")).out, ran.out);
    let less = files
        .write("less.toml", &AUTHORITY.replace("calls = 3", "calls = 1").replace("/work/src/**", "/work/**"));
    let ran = run(&["replay", "--manifest", &less], &lines(&past));
    assert_eq!(ran.status, 1);
    assert!(ran.out.contains("event 2 coder.1: was allow (granted), would be deny (budget)"), "{}", ran.out);
    assert!(
        ran.out.ends_with("4 calls, 1 decided differently\n"),
        "each life has a budget of its own: {}",
        ran.out
    );
    let cut = called(6, 1, "read", "read_files", &format!("/{}", "a".repeat(600)), "allow", &[]);
    let ran = run(&["replay", "--manifest", &manifest, "--json"], &lines(&[cut]));
    assert!(ran.err.contains("event 6: its target was cut"), "{}", ran.err);
}

#[test]
fn a_diff_leaves_out_nothing_that_is_newly_permitted() {
    let files = Files::new();
    let old = files.write("old.toml", AUTHORITY);
    let diff = |new: &str| {
        let new = files.write("new.toml", new);
        let ran = run(&["diff", "--json", &old, &new], "");
        let answer: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}", ran.err));
        let kinds = |side: &str| {
            let all = answer[side].as_array().unwrap().iter();
            all.map(|one| format!("{} {}", one["kind"].as_str().unwrap(), one["what"].as_str().unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(ran.status == 1, !kinds("permits").is_empty());
        (kinds("permits"), kinds("refuses"), answer)
    };
    let (permits, refuses, _) = diff(AUTHORITY);
    assert!(permits.is_empty() && refuses.is_empty());
    for (from, to, permitted, refused) in [
        ("[\"/work/src/**\"]", "[\"/work/**\"]", &["write /work/**"][..], &[][..]),
        ("[\"/work/src/**\"]", "[\"/work/src/*.rs\"]", &[], &["write /work/src/**"]),
        ("[\"/work/.env\"]", "[]", &["never /work/.env may be touched"], &[]),
        ("[\"/work/.env\"]", "[\"/work/.*\"]", &[], &["never /work/.* may be touched"]),
        ("\"cargo test **\"", "\"cargo **\"", &["commands cargo **"], &[]),
        ("[\"docs.rs\", \"x.test\"]", "[\"docs.rs\"]", &[], &["names x.test"]),
        ("[\"docs.rs\", \"x.test\"]", "[\"*.docs.rs\", \"docs.rs\", \"x.test\"]", &["names *.docs.rs"], &[]),
        ("calls = 3", "calls = 4", &["budget calls: 4 (else 3)"], &[]),
        ("budget = { calls = 3 }", "", &["budget calls: no bound (else 3)"], &[]),
        ("read_files = \"always\"", "read_files = \"ask\"", &[], &["level read_files: always (else ask)"]),
        (
            "read_files = \"always\"",
            "read_files = \"always\"\ngit_push = \"ask\"",
            &["level git_push: ask (else never)"],
            &[],
        ),
        (
            "private = [\"/work/**\"]",
            "private = [\"/work/src/**\"]",
            &["private /work/** is not private"],
            &[],
        ),
        ("private =", "trusted_names = [\"x.test\"]\nprivate =", &["trusted_names x.test"], &[]),
        ("private =", "expires_secs = 5\nprivate =", &[], &["expires_secs no bound (else 5)"]),
        (
            "private =",
            "profile = \"read-only\"\nprivate =",
            &["level glob_search: always"],
            &["level run_bash: always", "never /**/.env"],
        ),
    ] {
        assert!(AUTHORITY.contains(from), "{from}");
        let (permits, refuses, answer) = diff(&AUTHORITY.replace(from, to));
        let holds = |found: &[String], wanted: &[&str]| {
            wanted.iter().all(|want| found.iter().any(|one| one.starts_with(want)))
                && found.is_empty() == wanted.is_empty()
        };
        assert!(holds(&permits, permitted) && holds(&refuses, refused), "{from} -> {to}: {answer}");
    }
    let (permits, _, answer) =
        diff(&AUTHORITY.replace("[\"/work/src/**\"]", "[\"/work/src/**\", \"/work/docs/*.md\"]"));
    assert_eq!(permits, ["write /work/docs/*.md"]);
    assert_eq!(answer["permits"][0]["example"], "remove /work/docs/example.md: allow (else deny)");
    let (permits, _, _) = diff(&format!(
        "{AUTHORITY}[tools]\nrun = {{ risk = \"high\" }}\nopen = {{ risk = \"low\", operation = \"create_pr\", command = [\"/app/pr\"] }}\n"
    ));
    assert_eq!(permits, ["tool open: create_pr, risk low"]);
}

#[test]
fn what_is_observed_is_a_manifest_that_allows_it_and_no_more() {
    let files = Files::new();
    let mut past = vec![
        called(1, 1, "read", "read_files", "/work/a *b", "allow", &[]),
        called(2, 1, "grep", "grep_search", "/work/src", "allow", &[]),
        called(3, 1, "run", "run_bash", "cargo test -q --  x", "allow", &["private_data"]),
        called(4, 2, "write", "write_files", "/work/\"q\"", "allow", &[]),
        called(5, 2, "fetch", "web_fetch", "docs.rs:443/serde", "allow", &["private_data", "exfiltration"]),
        called(7, 2, "write", "write_files", "/etc/passwd", "deny", &[]),
    ];
    let observe = |past: &[Value]| {
        let ran = run(&["observe"], &lines(past));
        (ran.status, ran.out)
    };
    let (status, text) = observe(&past);
    assert_eq!(status, 0, "{text}");
    assert!(!text.contains("passwd") && text.contains("calls = 3"), "{text}");
    let manifest = files.write("seen.toml", &text);
    let replayed = run(&["replay", "--manifest", &manifest], &lines(&past));
    assert_eq!((replayed.status, replayed.out.as_str()), (0, "6 calls, 0 decided differently\n"), "{text}");
    for (tool, target) in [
        ("read", "/work/b"),
        ("write", "/work/a *b"),
        ("run", "cargo build"),
        ("fetch", "https://x.test"),
        ("glob", "/work/src"),
    ] {
        let ran = run(&["explain", "--manifest", &manifest, tool, target], "");
        assert_eq!(ran.status, 1, "{tool} {target}: {}", ran.out);
    }
    // What no rules can allow is said, and the status tells.
    let all = ["private_data", "untrusted_content", "exfiltration"];
    past.push(called(8, 2, "fetch", "web_fetch", "docs.rs:443/q", "allow", &all));
    past.push(called(9, 2, "deploy", "manage_pods", "", "allow", &[]));
    let (status, text) = observe(&past);
    assert_eq!(status, 1);
    assert!(
        text.contains("# Not allowed by this: event 8, fetch: exposure")
            && text.contains("event 9, deploy: tool"),
        "{text}"
    );
    // More paths than a list may have are drawn together, and all are still allowed.
    let many: Vec<Value> = (0..200)
        .map(|n| called(n, 1, "read", "read_files", &format!("/work/d{}/f{n}", n % 90), "allow", &[]))
        .collect();
    let (status, text) = observe(&many);
    assert_eq!(status, 0, "{text}");
    let manifest = files.write("many.toml", &text);
    assert_eq!(
        run(&["replay", "--manifest", &manifest], &lines(&many)).out,
        "200 calls, 0 decided differently\n"
    );
}

/// Tools, what they do, and what they may be asked for.
const TOOLS: [(&str, &str, &[&str]); 9] = [
    ("read", "read_files", FILES),
    ("write", "write_files", FILES),
    ("edit", "edit_files", FILES),
    ("grep", "grep_search", FILES),
    ("glob", "glob_search", FILES),
    ("run", "run_bash", &["cargo test", "cargo test -q", "make"]),
    ("fetch", "web_fetch", &["docs.rs:443/a", "x.test:443/b"]),
    ("deploy", "manage_pods", &[""]),
    ("helper", "spawn_agent", &["", "other"]),
];
const FILES: &[&str] = &["/work", "/work/a", "/work/src", "/work/src/b", "/etc/x"];

/// Each built-in tool on each target, as `policy decide` takes it.
fn every_call() -> Vec<(&'static str, &'static str, Value)> {
    let mut all = Vec::new();
    for (tool, operation, targets) in &TOOLS[..7] {
        for target in *targets {
            let as_json = match *operation {
                "run_bash" => json!({"command": target.split(' ').collect::<Vec<_>>()}),
                "web_fetch" => {
                    let (name, path) = target.split_once(":443").unwrap();
                    json!({"page": {"name": name, "port": 443, "path": path}})
                }
                _ => json!({"path": target}),
            };
            let call = json!({"operation": operation, "tool": tool, "target": as_json, "arguments": digest(), "pinned": digest()});
            all.push((
                *operation,
                *target,
                json!({"call": call, "situation": {"now_unix_ms": 5, "seen": []}}),
            ));
        }
    }
    all
}

/// Whether a call is covered by others: its operation was done, and one that goes by the same list was done to its target. A search reads
/// all below it, and is covered by a search alone.
fn is_covered(operation: &str, target: &str, done: &BTreeSet<(&str, &str)>) -> bool {
    let is_search = |one: &str| matches!(one, "grep_search" | "glob_search");
    let list = |one: &str| match one {
        "read_files" | "grep_search" | "glob_search" => "read",
        "write_files" | "edit_files" => "write",
        _ => "its own",
    };
    let admits = |(by, one): &(&str, &str)| {
        let is_below = is_search(by) && target.strip_prefix(one).is_some_and(|rest| rest.starts_with('/'));
        list(by) == list(operation)
            && (is_search(by) || !is_search(operation))
            && (target == *one || is_below)
    };
    done.iter().any(|(by, _)| *by == operation) && done.iter().any(admits)
}

#[test]
fn what_is_observed_of_random_ledgers_loads_and_permits_exactly_what_was_done() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut state = now.as_nanos() as u64 | 1;
    println!("seed {state}");
    let mut random = |below: usize| {
        for shift in [13, -7, 17] {
            state ^= if shift > 0 { state << shift } else { state >> -shift };
        }
        (state % below as u64) as usize
    };
    let files = Files::new();
    for round in 0..12 {
        let (mut past, mut done, mut cannot) = (Vec::new(), BTreeSet::new(), 0);
        for seq in 0..random(12) as u64 {
            let (tool, operation, targets) = TOOLS[random(TOOLS.len())];
            let target = targets[random(targets.len())];
            let verdict = ["allow", "allow", "deny", "ask"][random(4)];
            let mut event = called(seq, random(3) as u32, tool, operation, target, verdict, &[]);
            let is_approved = verdict == "ask" && random(2) == 0;
            if is_approved {
                event["event"]["approval"] = json!("a1");
            }
            match operation {
                _ if verdict != "allow" && !is_approved => {}
                "manage_pods" | "spawn_agent" => cannot += 1,
                _ => drop(done.insert((operation, target))),
            }
            past.push(event);
        }
        let ran = run(&["observe"], &lines(&past));
        let text = &ran.out;
        assert_eq!(ran.status, i32::from(cannot > 0), "{text}{}", ran.err);
        assert_eq!(text.matches("# Not allowed by this").count(), cannot, "{text}");
        let manifest = files.write(&format!("{round}.toml"), text);
        let calls = every_call();
        let asked: Vec<Value> = calls.iter().map(|(.., asked)| asked.clone()).collect();
        let ran = run(&["decide", "--manifest", &manifest], &lines(&asked));
        assert_eq!((ran.status, ran.out.lines().count()), (0, calls.len()), "{text}{}", ran.err);
        for (line, (operation, target, _)) in ran.out.lines().zip(&calls) {
            let decision: Value = serde_json::from_str(line).unwrap();
            let expected = if is_covered(operation, target, &done) { "allow" } else { "deny" };
            assert_eq!(decision["verdict"], expected, "{operation} {target}: {decision}\n{text}");
        }
    }
}

#[test]
fn what_is_left_out_of_a_list_that_is_full_is_named() {
    let files = Files::new();
    let many: Vec<Value> =
        (0..70).map(|n| called(n, 1, "run", "run_bash", &format!("make t{n:02}"), "allow", &[])).collect();
    let ran = run(&["observe"], &lines(&many));
    assert_eq!((ran.status, ran.out.matches(", run: command: ").count()), (1, 6), "{}{}", ran.out, ran.err);
    let manifest = files.write("many.toml", &ran.out);
    let replayed = run(&["replay", "--manifest", &manifest], &lines(&many));
    assert!(replayed.out.ends_with("70 calls, 6 decided differently\n"), "{}", replayed.out);
}
