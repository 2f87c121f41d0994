//! `make run`: boots the product's image in QEMU and lets three real agents work on it, driven from outside with nullctl. What is
//! shown is what the programs printed; each step is held to what it has to show.
//!
//! ```text
//! demo [--iso FILE] [--once] [--uplink]
//! ```
//!
//! `--once`: power off at the end, and exit with 0 only if every step showed what it has to. `--uplink`: give the node this
//! machine's network; without it nothing leaves.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use system_tests::ctl::Answer;
use system_tests::fixture::{self, Config};
use system_tests::node::{BOOT_TIME_MAX, Machine, Node, READY};
use system_tests::web::Web;

const PAGE: &str = "Welcome to api.exa.test, served by the machine that runs this demo.\n";
/// Until an agent's report is complete, under emulation.
const REPORT_TIME_MAX: Duration = Duration::from_secs(240);
/// Until a task is over: three microVMs, one after the other.
const TASK_TIME_MAX: Duration = Duration::from_secs(280);
const NULLD_TOML: &str = "[node]\nname = \"demo\"\n\n[network.hosts]\n\"api.exa.test\" = [\"10.0.2.100\"]\n";

/// What was asked for.
struct Options {
    iso: PathBuf,
    once: bool,
    uplink: bool,
}

fn options() -> Result<Options> {
    let mut options = Options { iso: PathBuf::new(), once: false, uplink: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--iso" => options.iso = words.next().context("--iso FILE")?.into(),
            "--once" => options.once = true,
            "--uplink" => options.uplink = true,
            other => bail!("`{other}` is not an option; there are --iso FILE, --once and --uplink"),
        }
    }
    if options.iso.as_os_str().is_empty() {
        options.iso = system_tests::iso()?;
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| play(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole story. False: something was not as it has to be.
fn play(options: &Options) -> Result<bool> {
    let web = Web::start(PAGE)?;
    title("A configuration volume: one operator key, a Python rootfs from Debian packages, three manifests");
    let config = configuration()?;
    let machine = Machine {
        config: Some(config.volume()?),
        state: Some(config.state("2G")?),
        memory_mib: 2048,
        forwards: vec![("10.0.2.100:80".into(), web.port)],
        uplink: options.uplink,
        ..Machine::bare(
            "demo",
            options.iso.canonicalize().with_context(|| options.iso.display().to_string())?,
            &config,
        )
    };
    title("Booting the image (UEFI)");
    let node = boot(machine)?;
    let mut story = Story { node, missing: Vec::new() };
    let told = tell(&mut story, &web, &config);
    if let Err(error) = &told {
        println!("\ndemo: {error:#}\n\nThe console ended with:\n{}", last_lines(&story.node.console(), 30));
    }
    story.close(told.is_ok());
    if options.once {
        story.power_off()?;
    } else if told.is_ok() {
        story.stay(&config)?;
    }
    Ok(told.is_ok() && story.missing.is_empty())
}

fn configuration() -> Result<Config> {
    let config = Config::new("demo")?;
    config.file("nulld.toml", NULLD_TOML)?;
    let demo = system_tests::tree().join("demo");
    let layer = config.dir().join("layer");
    fs::create_dir_all(layer.join("app"))?;
    fs::copy(demo.join("agents/checks.py"), layer.join("app/checks.py"))?;
    for agent in ["researcher", "neighbour", "fixer"] {
        let from = demo.join("agents").join(agent);
        fs::copy(from.join("main.py"), layer.join(format!("app/{agent}.py")))?;
        config.file(&format!("agents/{agent}/AGENT.toml"), &fs::read_to_string(from.join("AGENT.toml"))?)?;
    }
    fixture::copy_files(&demo.join("data"), &layer.join("data"))?;
    fixture::copy_files(&demo.join("data/research"), &layer.join("data/research"))?;
    let archive = fixture::rootfs_archive(&layer)?;
    config.rootfs("python", &archive)?;
    println!("  rootfs python: an OCI archive of {} MiB", fs::metadata(&archive)?.len() >> 20);
    fs::remove_file(archive)?;
    Ok(config)
}

/// Powers on and shows the phases as they come.
fn boot(machine: Machine) -> Result<Node> {
    let node = Node::power_on(machine)?;
    let (deadline, mut shown) = (Instant::now() + BOOT_TIME_MAX, 0);
    loop {
        let waited = node.wait_for(READY, Duration::from_secs(1));
        let console = node.console();
        let complete = console.rfind('\n').map_or(0, |end| end + 1);
        for line in console[shown..complete].lines() {
            if ["phase ", "nullbox:", "node_key"].iter().any(|mark| line.contains(mark)) {
                println!("  {}", line.trim());
            }
        }
        shown = complete;
        match waited {
            Ok(_) => return Ok(node),
            Err(error) if Instant::now() > deadline || error.to_string().contains("went off") => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
}

/// The steps, in order.
fn tell(story: &mut Story, web: &Web, config: &Config) -> Result<()> {
    title("The node, from outside: TLS 1.3, keys pinned on both sides");
    story.show(&["system", "status"], &["phase", "nullgate"])?;

    title("Agent researcher, in a microVM of its own");
    story.show(&["agent", "start", "researcher"], &["researcher.", "runs"])?;
    story.follow_report("researcher")?;
    let seen = web.seen();
    let only_its_own = seen.iter().all(|request| request == "GET / api.exa.test") && !seen.is_empty();
    story.expect(
        only_its_own,
        &format!("the server on this machine saw only the granted request, not {seen:?}"),
    );
    story.show(&["agent", "status", "researcher"], &["running", "api.exa.test"])?;
    story.show(&["image", "list"], &["python", "sha256:"])?;
    story.show(&["net", "grants"], &["api.exa.test", "198.1"])?;
    story
        .show(&["net", "denials"], &["evil.example", "name-not-granted", "169.254.169.254", "raw-address"])?;
    story
        .show(&["memory", "history", "--agent", "researcher", "notes/first"], &["notes/first", "sha256:"])?;

    title("Agent neighbour cannot see what the researcher remembers");
    story.show(&["agent", "start", "neighbour"], &["neighbour.", "runs"])?;
    story.follow_report("neighbour")?;
    let entry = story.node.json(&["memory", "read", "--agent", "researcher", "notes/first"])?;
    let hash = entry["hash"].as_str().context("no hash")?.to_owned();
    let variable = format!("ENTRY={hash}");
    let python = ["/usr/bin/python3", "/app/neighbour.py"];
    story.show(
        &["agent", "exec", "neighbour", "--env", &variable, "--", python[0], python[1]],
        &["REFUSED  read an entry of the researcher by its hash", "1 of 1 as they should be"],
    )?;
    story.show(&["agent", "list"], &["researcher", "neighbour", "running"])?;

    verified_task(story, config)?;

    title("What happened, on the record");
    story.show(&["ledger", "query", "--event", "memory_denied"], &["memory_denied", "agent=neighbour"])?;
    story.show(&["ledger", "tail", "--limit", "12"], &["call_made"])?;
    story.show(&["ledger", "verify"], &["the chain holds"])?;
    let status = story.node.json(&["system", "status"])?;
    story.expect(
        all_ready(&status),
        &format!("every service is ready and none was restarted: {}", status["services"]),
    );
    Ok(())
}

/// An agent that says "done" twice; once it is so.
fn verified_task(story: &mut Story, config: &Config) -> Result<()> {
    title("Agent fixer says that it is done: a fresh microVM, which never ran it, decides");
    let repo = config.dir().join("tally");
    fixture::copy_tree(&system_tests::tree().join("tests/data/tally"), &repo)?;
    let status = Command::new("git").args(["init", "--quiet"]).arg(&repo).status()?;
    ensure!(status.success(), "git init: {status}");
    let repo = repo.display().to_string();
    let goal = ["--goal", "make the tests pass", "--verify", "python3 -m unittest", "--protect", "tests/**"];
    let run = [&["task", "run", "--agent", "fixer", "--repo", &repo][..], &goal, &["--follow"]].concat();
    story.follow(&run, TASK_TIME_MAX, |_| false)?;
    story.show(&["agent", "logs", "t1-c1"], &["all the same: not verified: "])?;
    story.show(
        &["task", "export", "t1", "--diff"],
        &["-            numbers.extend(range(int(first), int(last)))"],
    )?;
    story.show(&["task", "apply", "t1", "--into", &repo], &["sha256:"])?;
    let attestation = config.dir().join("t1.attestation").display().to_string();
    story.show(&["task", "attest", "t1", "--out", &attestation], &[])?;
    let key = story.node.json(&["ledger", "key"])?["key"].as_str().context("no key")?.to_owned();
    story.show(
        &["task", "verify-attestation", &attestation, "--key", &key, "--repo", &repo],
        &["the attestation holds", "is the tree that was verified"],
    )
}

fn all_ready(status: &Value) -> bool {
    let services = status["services"].as_array().cloned().unwrap_or_default();
    !services.is_empty() && services.iter().all(|s| s["state"] == "ready" && s["restarts"] == 0)
}

/// The node, and what was not as it has to be.
struct Story {
    node: Node,
    missing: Vec<String>,
}

impl Story {
    fn expect(&mut self, held: bool, what: &str) {
        if !held {
            println!("  !! not so: {what}");
            self.missing.push(what.to_owned());
        }
    }

    /// Runs nullctl as the operator would, shows what it prints, and looks for what has to be in it.
    fn show(&mut self, arguments: &[&str], has: &[&str]) -> Result<()> {
        println!("\n$ nullctl {}", arguments.join(" "));
        let Answer { status, stdout, stderr } = self.node.ctl(arguments)?;
        for line in stderr.lines().chain(stdout.lines()) {
            println!("  {line}");
        }
        self.expect(status == 0, &format!("nullctl {} ends with 0, not {status}", arguments.join(" ")));
        let all = stdout.to_lowercase();
        for text in has {
            let held = all.contains(&text.to_lowercase());
            self.expect(held, &format!("nullctl {} shows `{text}`", arguments.join(" ")));
        }
        Ok(())
    }

    /// Shows an agent's output as it comes, until its report is complete, and holds it to what it says of itself.
    fn follow_report(&mut self, agent: &str) -> Result<()> {
        let state = self.node.json(&["agent", "status", agent])?["summary"].clone();
        ensure!(state["state"] == "running", "{agent} does not run: {state}");
        let start = format!("{agent}: ");
        let is_end = |line: &str| line.starts_with(&start) && line.ends_with("as they should be");
        let verdict = self.follow(&["agent", "logs", agent, "-f"], REPORT_TIME_MAX, is_end)?;
        let numbers: Vec<u32> = verdict.split(' ').filter_map(|word| word.parse().ok()).collect();
        self.expect(
            matches!(numbers.as_slice(), [held, all] if held == all && *all > 0),
            &format!("everything {agent} tried went as its manifest says: {verdict}"),
        );
        Ok(())
    }

    /// Shows what nullctl prints as it comes, to the line that ends it, or to its own end, which then is success. The last line.
    fn follow(
        &mut self,
        arguments: &[&str],
        patience: Duration,
        is_end: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let words = arguments.join(" ");
        println!("\n$ nullctl {words}");
        let pin = self.node.fingerprint()?;
        let mut command = self.node.command(&self.node.machine.key, &pin, arguments)?;
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let (deadline, mut last) = (Instant::now() + patience, String::new());
        let ended = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    println!("  {line}");
                    last = line;
                    if is_end(&last) {
                        break Ok(false);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    break Err(format!("no end within {} s", patience.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => break Ok(true),
            }
        };
        if ended != Ok(true) {
            let _ = child.kill(); // it may have ended
        }
        let status = child.wait()?;
        let by_itself = ended.map_err(|why| anyhow::anyhow!("nullctl {words}: {why}"))?;
        if by_itself {
            self.expect(status.success(), &format!("nullctl {words} ends with 0, not {status}"));
        }
        Ok(last)
    }

    fn close(&self, told: bool) {
        title(match (told, self.missing.is_empty()) {
            (true, true) => "Everything went as it has to",
            _ => "Not everything went as it has to",
        });
        for what in &self.missing {
            println!("  not so: {what}");
        }
    }

    fn power_off(&mut self) -> Result<()> {
        self.show(&["system", "poweroff"], &["powers off"])?;
        self.node.wait_off(Duration::from_secs(90))?;
        println!("  the machine is off");
        Ok(())
    }

    /// Leaves the node running until it is powered off or this program is ended.
    fn stay(&mut self, config: &Config) -> Result<()> {
        let nullctl = system_tests::nullctl()?;
        ensure!(config.keys.admin.exists(), "the operator's key is gone");
        println!("  The node goes on running. In another terminal:\n");
        println!("    export NULLBOX_NODE=127.0.0.1:{}", self.node.port);
        println!("    export NULLBOX_PIN={}", self.node.fingerprint()?);
        println!("    export NULLBOX_KEY={}", config.keys.admin.display());
        println!("    alias nullctl={}\n", nullctl.display());
        println!("    nullctl help");
        println!(
            "    nullctl agent exec researcher -- /usr/bin/python3 -c 'print(open(\"/etc/os-release\").read())'"
        );
        println!("    nullctl net denials -f\n");
        println!(
            "  `nullctl system poweroff`, or Ctrl-C here, ends it. Its console: {}/console.log",
            self.node.dir.display()
        );
        loop {
            match self.node.wait_off(Duration::from_secs(3600)) {
                Ok(()) => break,
                Err(error) if error.to_string().contains("still on") => {}
                Err(error) => return Err(error),
            }
        }
        println!("  the machine is off");
        Ok(())
    }
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
