//! The whole program against a scripted model that speaks both wire formats (tests/internet/model.py) and a double of the tools' socket
//! that works on a real tree. The real tools are the guest's: the system tests have them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use abi::tools::{self, Text};
use serde_json::{Value, json};

const TIME_MAX: Duration = Duration::from_secs(60);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

/// A provider, a tree, its tools, and a way to run the agent on them.
struct Bench {
    dir: tempfile::TempDir,
    model: Child,
    port: String,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.model.kill(); // it ends with the test
        let _ = self.model.wait();
    }
}

/// How the agent ended.
struct Ended {
    code: Option<i32>,
    log: String,
    /// What the model's host saw.
    seen: String,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        copy(&repository().join("data/tally"), &dir.path().join("work"));
        let mut scripts: Value =
            serde_json::from_slice(&fs::read(repository().join("data/scripts.json")).unwrap()).unwrap();
        let table: String = (0..6000).map(|row| format!("({row}, \"é\"),\n")).collect();
        scripts["long"][0]["calls"][0]["arguments"]["content"] = format!("TABLE = [\n{table}]\n").into();
        fs::write(dir.path().join("scripts.json"), scripts.to_string()).unwrap();
        fs::write(dir.path().join("seen"), "").unwrap();
        let mut model = Command::new("python3")
            .arg(repository().join("internet/model.py"))
            .args([dir.path().join("scripts.json"), dir.path().join("seen")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(model.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Bench { dir, model, port: port.trim().to_owned() }
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn run(&self, script: &str, api: &str, more: &[(&str, &str)]) -> Ended {
        let socket = self.dir.path().join("tools.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let work = self.work();
        std::thread::spawn(move || serve(listener.accept().unwrap().0, &work));
        let (variable, base) = match api {
            "openai" => ("OPENAI", format!("http://127.0.0.1:{}/v1", self.port)),
            _ => ("ANTHROPIC", format!("http://127.0.0.1:{}", self.port)),
        };
        let log = self.dir.path().join("log");
        let mut agent = Command::new(env!("CARGO_BIN_EXE_coder"))
            .env_clear()
            .env("NULLBOX_GOAL", format!("Make the tests pass. [script {script}]"))
            .env("NULLBOX_TOOLS", &socket)
            .env("NULLBOX_MODEL", "m")
            .env("NULLBOX_PAUSE_MS", "1")
            .env(format!("{variable}_BASE_URL"), base)
            .env(format!("{variable}_API_KEY"), "provided-by-nullbox")
            .envs(more.iter().copied())
            .stdout(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let code = loop {
            if let Some(status) = agent.try_wait().unwrap() {
                break status.code();
            }
            if started.elapsed() > TIME_MAX {
                agent.kill().unwrap();
                panic!("still running: {}", fs::read_to_string(&log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        fs::remove_file(&socket).unwrap();
        Ended {
            code,
            log: fs::read_to_string(&log).unwrap(),
            seen: fs::read_to_string(self.dir.path().join("seen")).unwrap(),
        }
    }
}

impl Ended {
    #[track_caller]
    fn expect(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.log, self.seen);
        assert!(!self.seen.contains("problem"), "{}", self.seen);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Answers one connection's calls.
fn serve(stream: UnixStream, work: &Path) {
    let mut out = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        assert!(line.len() < abi::limits::TOOL_LINE_BYTES_MAX, "{} bytes", line.len());
        let call: Value = serde_json::from_str(&line).unwrap();
        let tool = call["method"].as_str().unwrap().strip_prefix("tool.").unwrap();
        let answer = match perform(tool, &call["params"], work) {
            Ok(data) => json!({"jsonrpc": "2.0", "id": call["id"], "result":
                {"value": 1, "receipt": 5, "labels": ["private_data"], "data": data, "is_cut": false}}),
            Err(error) => json!({"jsonrpc": "2.0", "id": call["id"], "error": error}),
        };
        if out.write_all(format!("{answer}\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// Parameters as the verifier reads them.
fn params<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Value> {
    serde_json::from_value(value.clone())
        .map_err(|error| json!({"code": -32602, "message": error.to_string()}))
}

fn place(path: &str, work: &Path) -> Result<PathBuf, Value> {
    let inside = path.strip_prefix("/work").filter(|rest| !rest.contains(".."));
    inside.map(|rest| work.join(rest.trim_start_matches('/'))).ok_or_else(|| {
        let data = json!({"receipt": 4, "rule": "path", "why": format!("{path} is in no list"), "remedy": "read = [...]"});
        json!({"code": -32001, "message": "refused", "data": data})
    })
}

fn clear(text: Text) -> String {
    match text {
        Text::Clear(text) => text,
        Text::Reference { .. } => panic!("the agent makes no references"),
    }
}

fn perform(tool: &str, given: &Value, work: &Path) -> Result<Value, Value> {
    let failed = |error: std::io::Error| json!({"code": -32005, "message": error.to_string()});
    match tool {
        "read" => {
            let read: tools::Read = params(given)?;
            Ok(json!({"text": fs::read_to_string(place(&read.path, work)?).map_err(failed)?}))
        }
        "write" => {
            let write: tools::Write = params(given)?;
            let path = place(&write.path, work)?;
            let mut options = fs::OpenOptions::new();
            options.create(true).append(write.append).truncate(!write.append).write(true);
            let content = clear(write.content);
            options.open(path).and_then(|mut file| file.write_all(content.as_bytes())).map_err(failed)?;
            Ok(json!({"bytes": content.len()}))
        }
        "edit" => {
            let edit: tools::Edit = params(given)?;
            let path = place(&edit.path, work)?;
            let text = fs::read_to_string(&path).map_err(failed)?;
            if text.matches(&edit.old).count() != edit.count.unwrap_or(1) as usize {
                return Err(json!({"code": -32602, "message": "`old` does not stand there so often"}));
            }
            fs::write(&path, text.replace(&edit.old, &clear(edit.new))).map_err(failed)?;
            Ok(json!({"replaced": 1}))
        }
        "glob" => {
            let _: tools::Glob = params(given)?;
            Ok(json!({"paths": ["/work/tally/__init__.py", "/work/tally/ranges.py"]}))
        }
        "grep" => {
            let _: tools::Grep = params(given)?;
            Ok(
                json!({"matches": [{"path": "/work/tally/ranges.py", "line": 10, "text": "numbers.extend(range("}]}),
            )
        }
        "run" => {
            let run: tools::Run = params(given)?;
            assert_eq!(run.command, ["python3", "-m", "unittest"]);
            let (code, output) = unittest(work);
            Ok(json!({"code": code, "signal": null, "output": output}))
        }
        "submit" => {
            let _: tools::Submit = params(given)?;
            let (code, output) = unittest(work);
            Ok(json!({"verified": code == 0, "why": format!("exit code {code}"), "output": output}))
        }
        other => panic!("{other}"),
    }
}

fn unittest(tree: &Path) -> (i32, String) {
    let output = Command::new("python3").args(["-B", "-m", "unittest"]).current_dir(tree).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_failing_repository_is_fixed_over_both_wire_formats_through_broken_streams() {
    for api in ["openai", "anthropic"] {
        let bench = Bench::new();
        let ended = bench.run("fix", api, &[]);
        ended.expect(0);
        assert_eq!(unittest(&bench.work()).0, 0);
        for word in ["status 503", "before the answer did", "Overloaded", "submit", "verified"] {
            assert!(ended.log.contains(word), "{word}: {}", ended.log);
        }
        assert_eq!(ended.seen.lines().filter(|line| line.ends_with("served")).count(), 6, "{}", ended.seen);
    }
}

#[test]
fn words_alone_are_a_claim_and_what_the_verifier_says_is_gone_on_with() {
    for api in ["openai", "anthropic"] {
        let bench = Bench::new();
        bench.run("talk", api, &[]).expect(0);
        assert_eq!(unittest(&bench.work()).0, 0);
    }
}

#[test]
fn wrong_calls_are_explained_and_the_loop_ends_at_its_bound() {
    for api in ["openai", "anthropic"] {
        let bench = Bench::new();
        let ended = bench.run("stumble", api, &[("NULLBOX_STEPS", "5")]);
        ended.expect(1);
        assert!(ended.log.contains("5 answers are used up"), "{}", ended.log);
        assert_ne!(unittest(&bench.work()).0, 0);
    }
}

#[test]
fn a_file_longer_than_a_call_is_written_whole_and_its_reading_is_shortened() {
    for api in ["openai", "anthropic"] {
        let bench = Bench::new();
        bench.run("long", api, &[("NULLBOX_CONTEXT_BYTES", "262144")]).expect(0);
        let table = fs::read_to_string(bench.work().join("tally/table.py")).unwrap();
        assert!(
            table.len() > 2 * abi::limits::TOOL_PARAMS_BYTES_MAX && table.ends_with("(5999, \"é\"),\n]\n")
        );
    }
}

#[test]
fn a_refusal_of_the_provider_ends_it_at_once_and_failures_after_a_bounded_number_of_tries() {
    let bench = Bench::new();
    let ended = bench.run("refused", "openai", &[]);
    ended.expect(3);
    assert!(ended.log.contains("status 401") && !ended.log.contains("again in"), "{}", ended.log);
    let ended = bench.run("down", "anthropic", &[]);
    ended.expect(3);
    assert_eq!(
        ended.log.matches("again in").count(),
        abi::limits::CODER_TRIES_MAX as usize - 1,
        "{}",
        ended.log
    );
}

#[test]
fn without_tools_or_settings_it_says_what_is_missing() {
    let bench = Bench::new();
    let ended = bench.run("fix", "openai", &[("NULLBOX_TOOLS", "/nonexistent/tools.sock")]);
    ended.expect(4);
    assert!(ended.log.contains("[authority]"), "{}", ended.log);
    let ended = bench.run("fix", "openai", &[("NULLBOX_MODEL", "")]);
    ended.expect(2);
    assert!(ended.log.contains("NULLBOX_MODEL"), "{}", ended.log);
}
