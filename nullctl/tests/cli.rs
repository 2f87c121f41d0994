//! nullctl as scripts and people use it: exit statuses, JSON, messages, streams.

mod fixture;

use fixture::*;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Ran {
    status: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ran {
        status: status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

fn with_input(command: &mut Command, input: &[u8]) -> Ran {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    Ran {
        status: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn help_lists_every_command_and_is_as_recorded() {
    let ran = run(nullctl().arg("help"));
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help.txt");
    if std::env::var_os("NULLBOX_RECORD").is_some() {
        std::fs::write(&recorded, &ran.out).unwrap();
    }
    assert_eq!(ran.out, std::fs::read_to_string(recorded).unwrap(), "NULLBOX_RECORD=1 records it anew");
    assert!(ran.out.lines().all(|line| line.chars().count() <= 120));
    let one = run(nullctl().args(["help", "agent", "exec"]));
    assert!(one.out.starts_with("nullctl agent exec NAME [OPTIONS] -- PROGRAM"), "{}", one.out);
}

#[test]
fn each_failure_has_its_status_rule_and_remedy() {
    let gate = Gate::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases: Vec<(&str, Command, i32, &str)> = vec![
        (
            "refused by role",
            with(&gate, "rita", &["agent", "start", "researcher"]),
            4,
            "needs the role operator",
        ),
        ("unknown key", with(&gate, "eve", &["agent", "list"]), 4, "operators.toml"),
        ("not found", with(&gate, "olga", &["agent", "stop", "nobody"]), 5, "nullctl agent list"),
        ("failed", with(&gate, "rita", &["net", "grants"]), 1, "the fixture has no net.grants"),
        ("timeout", with(&gate, "olga", &["agent", "start", "slow", "--timeout", "1"]), 6, "--timeout"),
        ("usage", with(&gate, "rita", &["agent", "fly"]), 2, "agent start"),
        ("bad name", with(&gate, "rita", &["agent", "status", "a b"]), 2, "agent name"),
        (
            "wrong pin",
            {
                let mut command = with(&gate, "rita", &["agent", "list"]);
                command.args(["--pin", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]);
                command
            },
            3,
            "not the pinned",
        ),
        (
            "unreachable",
            {
                let mut command = with(&gate, "rita", &["agent", "list"]);
                command.args(["--node", &closed.to_string()]);
                command
            },
            3,
            "cannot reach",
        ),
        (
            "no key",
            {
                let mut command = with(&gate, "rita", &["agent", "list"]);
                command.args(["--key", "/nonexistent/key"]);
                command
            },
            2,
            "nullctl key gen",
        ),
        (
            "internal method",
            with(&gate, "alice", &["call", "ledger.append", "{}"]),
            4,
            "for services of the node",
        ),
        (
            "exec refused",
            with(&gate, "olga", &["agent", "exec", "researcher", "--", "/bin/sh"]),
            125,
            "capabilities.exec",
        ),
        ("broken ledger", with(&gate, "rita", &["ledger", "verify"]), 1, "event 4, segment 0, byte 412"),
    ];
    for (case, mut command, status, text) in cases {
        let ran = run(&mut command);
        assert_eq!(ran.status, status, "{case}: {}", ran.err);
        assert!(ran.err.contains(text), "{case}: {}", ran.err);
        let json = run(command.arg_before_dashes("--json"));
        assert_eq!(json.status, status, "{case} with --json");
        let error: Value =
            serde_json::from_str(json.err.trim()).unwrap_or_else(|_| panic!("{case}: {}", json.err));
        assert!(error["error"]["code"].is_i64(), "{case}: {error}");
    }
}

/// A command with an option put right after the program's name.
trait ArgBefore {
    fn arg_before_dashes(&mut self, option: &str) -> &mut Command;
}

impl ArgBefore for Command {
    fn arg_before_dashes(&mut self, option: &str) -> &mut Command {
        let args: Vec<_> = self.get_args().map(ToOwned::to_owned).collect();
        let envs: Vec<_> = self.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
        *self = Command::new(env!("CARGO_BIN_EXE_nullctl"));
        for (name, value) in envs {
            match value {
                Some(value) => self.env(name, value),
                None => self.env_remove(name),
            };
        }
        self.stdin(Stdio::null()).arg(option).args(args)
    }
}

fn with(gate: &Gate, name: &str, args: &[&str]) -> Command {
    let mut command = gate.nullctl(name);
    command.args(args);
    command
}

#[test]
fn results_are_tables_for_people_and_the_nodes_object_for_scripts() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "rita", &["agent", "list"]));
    assert_eq!(ran.status, 0, "{}", ran.err);
    let line = ran.out.lines().find(|line| line.starts_with("researcher")).unwrap();
    assert!(
        line.contains("running") && line.contains("researcher.3") && line.contains("1 min 1 s"),
        "{line}"
    );
    assert!(ran.out.contains("agents/x.toml:3"), "{}", ran.out);
    let json = objects(&run(&mut with(&gate, "rita", &["agent", "list", "--json"])).out);
    assert_eq!((json.len(), &json[0]["agents"][0]["uptime_ms"]), (1, &Value::from(61000)));
}

#[test]
fn what_is_written_to_memory_is_what_was_given() {
    let gate = Gate::start();
    let json = |args: &[&str]| {
        let ran = run(with(&gate, "olga", args).arg("--json"));
        assert_eq!(ran.status, 0, "{}", ran.err);
        objects(&ran.out).remove(0)
    };
    let hash = format!("sha256:{}", "ef".repeat(32));
    let link = format!("about={hash}");
    let written = json(&[
        "memory",
        "write",
        "--agent",
        "researcher",
        "topics/1",
        "{\"q\":1}",
        "--label",
        "a=b=c",
        "--link",
        &link,
    ]);
    assert_eq!((&written["key"], &written["value"]["q"]), (&"topics/1".into(), &1.into()));
    assert_eq!((&written["agent"], &written["labels"]["a"]), (&"researcher".into(), &"b=c".into()));
    assert_eq!(written["links"][0], serde_json::json!({"type": "about", "to": hash}));
    let text = json(&["memory", "write", "--agent", "researcher", "hint", "hello", "--text"]);
    assert_eq!((&text["key"], &text["value"]), (&"hint".into(), &"hello".into()));
    let fact = json(&[
        "memory",
        "fact",
        "set",
        "--agent",
        "researcher",
        "goal",
        "ship",
        "by May",
        "--confidence",
        "80",
    ]);
    assert_eq!((&fact["key"], &fact["labels"]["fact"]), (&"facts/goal/ship".into(), &"goal".into()));
    assert_eq!(fact["value"], serde_json::json!({"fact": "by May", "confidence": 80}));
    for wrong in [
        &["memory", "fact", "set", "--agent", "researcher", "wish", "x", "y"][..],
        &["memory", "fact", "set", "--agent", "researcher", "goal", "x", "y", "--confidence", "101"],
        &["memory", "write", "--agent", "researcher", "k", "not json"],
        &["memory", "write", "--agent", "researcher", "k", "1", "--label", "no-value"],
        &["memory", "read", "k"],
        &["memory", "forget"],
    ] {
        let ran = run(&mut with(&gate, "olga", wrong));
        assert_eq!(ran.status, 2, "{wrong:?} {}", ran.err);
        assert!(ran.err.contains("remedy:"), "{}", ran.err);
    }
    let lines = b"{\"key\":\"one\",\"value\":1}\n\n{\"agent\":\"other\",\"key\":\"two\",\"value\":2}\n";
    let ran = with_input(&mut with(&gate, "olga", &["memory", "batch", "--agent", "researcher", "-"]), lines);
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("researcher") && ran.err.contains("one, Some") && ran.err.contains("two"),
        "{}",
        ran.err
    );
}

#[test]
fn a_watch_shows_entries_and_why_it_ended() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "rita", &["memory", "watch", "--agent", "researcher", "notes/"]));
    assert_eq!(ran.status, 1);
    assert!(ran.out.starts_with("notes/7") && ran.out.lines().count() == 1, "{}", ran.out);
    assert!(ran.err.contains("it read too slowly"), "{}", ran.err);
}

#[test]
fn progress_goes_to_standard_error_and_into_json() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "olga", &["agent", "start", "researcher"]));
    assert_eq!(ran.out, "researcher.7 runs, 1.2 s after the request\n");
    assert_eq!(ran.err, "starting researcher: network\nstarting researcher: vm\n");
    let json = objects(&run(&mut with(&gate, "olga", &["agent", "start", "researcher", "--json"])).out);
    assert_eq!(json[0]["progress"]["stage"], "network");
    assert_eq!(json.last().unwrap()["instance"], "researcher.7");
}

#[test]
fn streams_of_an_agent_stay_apart_and_unchanged_in_a_pipe() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "rita", &["agent", "logs", "researcher"]));
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("line \x1b[1mone\n", "oops\n"));
}

#[test]
fn exec_passes_input_output_and_status() {
    let gate = Gate::start();
    let input: Vec<u8> = (0..300_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let ran = with_input(&mut with(&gate, "olga", &["agent", "exec", "researcher", "--", "/echo"]), &input);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_eq!(ran.out.as_bytes(), input);
    for (args, status) in [(["/status", "0"], 0), (["/status", "7"], 7), (["/signal", "9"], 137)] {
        let mut command = with(&gate, "olga", &["agent", "exec", "researcher", "--"]);
        assert_eq!(run(command.args(args)).status, status, "{args:?}");
    }
    let none = run(&mut with(&gate, "olga", &["agent", "exec", "researcher", "-n", "--", "/echo"]));
    assert_eq!((none.status, none.out.as_str()), (0, ""));
}

#[test]
fn import_sends_the_whole_file_and_shows_progress() {
    let gate = Gate::start();
    let path = gate.scratch.path("rootfs.tar");
    let bytes: Vec<u8> = (0..3u32 << 20).map(|n| (n >> 3) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let file = path.to_str().unwrap();
    let ran = run(&mut with(&gate, "olga", &["image", "import", file, "--name", "python"]));
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_eq!(ran.out, format!("python is {}, 3.0 MiB\n", sum_of(&bytes)));
    assert!(ran.err.contains("importing: reading 30 %"), "{}", ran.err);
    eventually("the session ends, and is not cut", || {
        (gate.log().contains("info disconnected operator=olga") && !gate.log().contains("info cut"))
            .then_some(())
    });
    let piped = with_input(&mut with(&gate, "olga", &["image", "import", "-", "--name", "python"]), &bytes);
    assert_eq!(piped.out, ran.out);
    let refused = run(&mut with(&gate, "rita", &["image", "import", file, "--name", "python"]));
    assert_eq!(refused.status, 4, "{}", refused.err);
}

#[test]
fn evidence_comes_whole_or_not_at_all() {
    use std::os::unix::fs::PermissionsExt;
    let (gate, dir) = (Gate::start(), Scratch::new());
    let get = |life: &str, file: &str| {
        let to = dir.0.join(file).display().to_string();
        run(&mut with(&gate, "olga", &["agent", "evidence", "get", life, &to]))
    };
    let whole = get("researcher.7", "whole");
    assert_eq!(whole.status, 0, "{}", whole.err);
    assert!(whole.out.contains(&format!("sha256:{}  agent.log", "ab".repeat(32))), "{}", whole.out);
    assert!(whole.err.contains("researcher.7: agent.log"), "{}", whole.err);
    let kept = dir.0.join("whole");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "the beginning and the end");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    for (life, file, status, why) in [
        ("cut.1", "other", 1, "the disk broke"),
        ("gap.1", "other", 1, "a part of the archive is missing"),
        ("researcher.7", "whole", 2, "not replaced"),
        ("researcher.7", "no/such/place", 2, "No such file"),
        ("researcher", "other", 2, "correct it"),
    ] {
        let failed = get(life, file);
        assert_eq!(failed.status, status, "{life}: {}", failed.err);
        assert!(failed.err.contains(why), "{life}: {}", failed.err);
    }
    let to = dir.0.join("other").display().to_string();
    let refused = run(&mut with(&gate, "rita", &["agent", "evidence", "get", "researcher.7", &to]));
    assert_eq!(refused.status, 4, "a reader may list it and no more: {}", refused.err);
    let left: Vec<_> = std::fs::read_dir(&dir.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["whole"]);
}

#[test]
fn following_shows_what_comes_later() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "rita", &["net", "denials", "-f"]));
    assert!(
        ran.out.contains("dns A evil.example") && ran.out.contains("1970-01-01 00:00:01 researcher.3"),
        "{}",
        ran.out
    );
    assert_eq!(ran.status, 1, "the fixture closes the connection");
    let json = objects(&run(&mut with(&gate, "rita", &["net", "denials", "-f", "--json"])).out);
    assert!(json[0]["denials"].is_array() && json[1]["denial"]["rule"] == "name-not-granted");
}

#[test]
fn live_policy_is_changed_explained_and_watched() {
    let gate = Gate::start();
    let allow =
        |words: &[&str]| run(&mut with(&gate, "olga", &[&["net", "allow", "researcher"], words].concat()));
    let ran =
        allow(&["api.test:443", "--for", "10m", "--method", "GET", "--path", "/v1", "--address", "10.0.0.7"]);
    let entry = r#"researcher { name = "api.test", ports = [443], methods = ["GET"], paths = ["/v1"], addresses = ["10.0.0.7"] } Some(600)"#;
    assert_eq!(
        (ran.status, ran.out),
        (0, format!("{entry}\n1 open connection cut; receipt 7 of the ledger\n"))
    );
    assert!(allow(&["*.api.test"]).out.starts_with("researcher \"*.api.test\" None"));
    for wrong in [
        &["api.test:0"][..],
        &["8.8.8.8"],
        &["api.test", "--for", "soon"],
        &["api.test", "--for", "0s"],
        &["api.test", "--method", "get"],
        &["api.test", "--path", "v1"],
        &["*.api.test", "--intercept"],
        &["api.test:22", "--intercept"],
    ] {
        assert_eq!(allow(wrong).status, 2, "{wrong:?}");
    }
    assert_eq!(run(&mut with(&gate, "rita", &["net", "allow", "researcher", "api.test"])).status, 4);
    let explain =
        |words: &[&str]| run(&mut with(&gate, "rita", &[&["net", "explain", "researcher"], words].concat()));
    let passes = explain(&["api.test"]);
    assert!(passes.status == 0 && passes.out.starts_with("passes        direct\n"), "{}", passes.out);
    assert!(passes.out.contains("add\\u{1b}[1m it"), "{}", passes.out);
    let refused = explain(&["api.test:22", "--json"]);
    assert_eq!((refused.status, &objects(&refused.out)[0]["rule"]), (1, &Value::from("port-not-granted")));
    let watched = run(&mut with(&gate, "rita", &["net", "watch", "researcher"]));
    let ended = "1970-01-01 00:00:01 researcher.3: api.test:443 at 203.0.113.1, 10 B out, 2.0 KiB in, 1.5 s, closed (manifest: api.test; receipt 6)";
    let lines: Vec<&str> = watched.out.lines().collect();
    assert_eq!(lines[..3], ["3 earlier ones are not kept; the ledger has them", ended, ended]);
    assert!(lines[3].contains("dns A evil.example refused by name-not-granted"), "{lines:?}");
    let changed = "1970-01-01 00:00:01 researcher: expire \"x.test\" until 1970-01-01 00:00:02 by operator olga (receipt 8)";
    let restored =
        "1970-01-01 00:00:01 packet rules of the node were changed by nft (process 7), and put back";
    assert_eq!(lines[4..], [changed, restored, "-- 5 are lost here; the ledger has them --"]);
}

#[test]
fn what_agents_use_is_compared_between_two_samples() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "rita", &["agent", "top"]));
    assert_eq!(ran.status, 0, "{}", ran.err);
    let row: Vec<&str> =
        ran.out.lines().find(|line| line.starts_with("researcher")).unwrap().split("  ").collect();
    assert!(
        row.iter().any(|cell| cell.trim() == "50.0 %") && row.iter().any(|cell| cell.trim() == "64.0 MiB"),
        "{row:?}"
    );
    let json = objects(&run(&mut with(&gate, "rita", &["agent", "top", "--json"])).out);
    assert!(json.len() == 1 && json[0]["agents"][0]["memory_kib"] == 65_536, "{json:?}");
}

#[test]
fn events_come_as_a_list_and_then_as_they_happen() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "rita", &["agent", "events", "researcher"]));
    assert!(ran.out.starts_with("4 earlier ones are not kept"), "{}", ran.out);
    assert!(ran.out.contains("1970-01-01 00:00:01 researcher: ready by \\u{1b}[1m olga\n"), "{}", ran.out);
    let ran = run(&mut with(&gate, "rita", &["agent", "events", "-f"]));
    assert!(ran.out.contains(": starting ") && ran.out.contains(": ended "), "{}", ran.out);
    assert_eq!(ran.status, 1, "the fixture closes the connection");
    let json = objects(&run(&mut with(&gate, "rita", &["agent", "events", "-f", "--json"])).out);
    assert!(json[0]["events"].is_array() && json[1]["event"]["seq"] == 6, "{json:?}");
}

#[test]
fn metrics_of_several_parts_are_one_text() {
    let gate = Gate::start();
    let ran = run(&mut with(&gate, "rita", &["agent", "metrics"]));
    assert_eq!(ran.out, "# TYPE x gauge\nx 1\nx 2\n", "{}", ran.err);
    let json = objects(&run(&mut with(&gate, "rita", &["agent", "metrics", "--json"])).out);
    assert!(json.len() == 1 && json[0]["text"].as_str().unwrap().ends_with("x 2\n"), "{json:?}");
}

#[test]
fn a_unix_socket_does_without_keys() {
    let scratch = Scratch::new();
    let socket = scratch.path("nulld.sock");
    let _upstream = Upstream::start(&socket, false);
    let ran = run(nullctl().env_remove("HOME").arg("--socket").arg(&socket).args(["agent", "list"]));
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(ran.out.contains("researcher.3"));
}

#[test]
fn nothing_is_trusted_because_it_was_seen_first() {
    let gate = Gate::start();
    let address = format!("127.0.0.1:{}", gate.port);
    let print = gate.fingerprint().to_string();
    let config = gate.scratch.path("xdg");
    let key = gate.scratch.path("rita.key");
    let nullctl = |args: &[&str]| {
        let mut command = nullctl();
        run(command.env("XDG_CONFIG_HOME", &config).arg("--key").arg(&key).args(args))
    };
    // Without a pin: refused, and the message holds what is needed to go on.
    for args in [&["agent", "list", "--node", address.as_str()][..], &["node", "trust", address.as_str()]] {
        let ran = nullctl(args);
        assert_eq!(ran.status, 3, "{}", ran.err);
        assert!(ran.err.contains(&print) && ran.err.contains("console"), "{}", ran.err);
    }
    assert!(gate.upstream.callers.lock().unwrap().is_empty(), "a request left before the key was compared");
    // A wrong pin is not stored.
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    assert_eq!(nullctl(&["node", "trust", &address, "--pin", wrong]).status, 3);
    assert!(!config.join("nullbox/nodes.toml").exists());
    // The right one is, and is then enough.
    let ran = nullctl(&["node", "trust", &address, "--pin", &print, "--name", "lab"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    for args in
        [&["agent", "list"][..], &["agent", "list", "--node", "lab"], &["agent", "list", "--node", &address]]
    {
        let ran = nullctl(args);
        assert_eq!(ran.status, 0, "{args:?}: {}", ran.err);
    }
    assert!(nullctl(&["node", "list"]).out.contains(&print));
    assert_eq!(nullctl(&["node", "forget", "lab"]).status, 0);
    assert_eq!(nullctl(&["node", "forget", "lab"]).status, 5);
    assert_eq!(nullctl(&["agent", "list"]).status, 2);
}

#[test]
fn keys_are_made_once_and_shown_as_operators_toml_wants_them() {
    let scratch = Scratch::new();
    let nullctl = |args: &[&str]| run(nullctl().env("XDG_CONFIG_HOME", &scratch.0).args(args));
    let made = nullctl(&["key", "gen"]);
    assert_eq!(made.status, 0, "{}", made.err);
    let start = made.out.find("[[operator]]").unwrap();
    let source = abi::config_error::Source { file: "o", text: &made.out[start..] };
    let operators = abi::node::parse_operators(source).unwrap();
    let shown = objects(&nullctl(&["key", "show", "--json"]).out);
    assert_eq!(shown[0]["key"], operators.operator[0].key.as_str());
    let again = nullctl(&["key", "gen"]);
    assert_eq!(again.status, 2);
    assert!(again.err.contains("never replaced"));
    let named = scratch.path("lab.key");
    let other = nullctl(&["--json", "key", "gen", "--out", named.to_str().unwrap()]);
    assert!(objects(&other.out)[0]["key"].as_str().unwrap().starts_with("ed25519:"));
    // openssl reads the same key.
    let file = scratch.path("nullbox/operator.key");
    let text = Command::new("openssl").args(["pkey", "-noout", "-text", "-in"]).arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&text.stdout).contains("ED25519 Private-Key"));
}

#[test]
fn a_key_of_openssl_is_accepted() {
    let scratch = Scratch::new();
    let file = scratch.path("op.key");
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "ed25519", "-out"])
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success());
    let ran = run(nullctl().args(["key", "show"]).arg(&file));
    assert_eq!(ran.status, 0, "{}", ran.err);
}

#[test]
fn a_wrong_manifest_is_told_with_line_field_and_remedy() {
    let scratch = Scratch::new();
    let file = scratch.path("AGENT.toml");
    let good = "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"python\"\ncommand = [\"/bin/x\"]\n";
    std::fs::write(&file, good).unwrap();
    let right = run(nullctl().args(["manifest", "check"]).arg(&file));
    assert_eq!(right.status, 0, "{}", right.err);
    let allow = "network.allow = [\"x.test\", \"*.y.test:22\", { name = \"z.test\", ports = [443], methods = [\"GET\"], intercept = true }]";
    std::fs::write(&file, format!("{good}[capabilities]\n{allow}\n")).unwrap();
    let right = run(nullctl().args(["manifest", "check"]).arg(&file));
    for line in ["x.test", "*.y.test:22 (one label more)", "z.test:443 (GET only, intercepted)"] {
        assert!(right.out.contains(&format!("  may reach {line}\n")), "{}{}", right.out, right.err);
    }
    std::fs::write(&file, format!("{good}[capabilities]\nmax_memory_mb = 1\n")).unwrap();
    let wrong = run(nullctl().args(["manifest", "check"]).arg(&file));
    assert_eq!(wrong.status, 1);
    for part in ["line 7", "capabilities.max_memory_mb", "must be 32 to", "remedy:"] {
        assert!(wrong.err.contains(part), "{part}: {}", wrong.err);
    }
    let json = run(nullctl().args(["manifest", "check", "--json"]).arg(&file));
    assert_eq!((json.status, &objects(&json.out)[0]["wrong"]["line"]), (1, &Value::from(7)));
}

#[test]
fn a_reader_that_goes_away_is_no_error_message() {
    let mut child = nullctl().arg("help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn doctor_says_what_to_do_and_fails_only_when_something_is_wrong() {
    let gate = Gate::start();
    let sound = run(&mut with(&gate, "olga", &["system", "doctor"]));
    assert_eq!(sound.status, 0, "{}", sound.err);
    assert_eq!(sound.out, "info: state: there is no state volume\n  effect: it matters\n  remedy: mend it\n");
    let wrong = run(&mut with(&gate, "rita", &["system", "doctor"]));
    assert_eq!((wrong.status, wrong.err.as_str()), (1, ""));
    assert!(wrong.out.starts_with("error: state: the disk is full\n"), "{}", wrong.out);
    let json = run(&mut with(&gate, "rita", &["system", "doctor", "--json"]));
    assert_eq!(json.status, 1);
    assert_eq!(objects(&json.out)[0]["findings"][0]["severity"], "error");
}

#[test]
fn a_node_with_another_key_may_be_in_rescue_and_the_message_says_so() {
    let gate = Gate::start();
    let mut command = with(&gate, "rita", &["agent", "list"]);
    command.args(["--pin", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]);
    let ran = run(&mut command);
    assert_eq!(ran.status, 3);
    assert!(ran.err.contains("in rescue, call with --pin SHA256:"), "{}", ran.err);
}
