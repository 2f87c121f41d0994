//! Programs beside an agent, people at its command, and files in and out, on a node of their own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use system_tests::ctl::Answer;
use system_tests::fixture::{self, Config};
use system_tests::node::{Firmware, Machine, Node};

use crate::shared::eventually;
use crate::slot::{self, Slot};
use crate::trial;

pub struct Bench {
    node: Node,
    config: Config,
}

impl slot::Bench for Bench {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Their node.
pub static BENCH: Slot<Bench> = Slot::new(start);
const PYTHON: &str = "/usr/bin/python3";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("execs::codes_signals_time_limits_environment_and_directory", codes_signals_limits),
        trial("execs::terminal_is_real_and_follows_its_size", terminal_follows_its_size),
        trial("execs::ten_megabytes_go_through_both_ways", ten_megabytes_both_ways),
        trial("execs::slow_reader_holds_up_nobody", slow_reader_holds_up_nobody),
        trial("execs::two_hundred_and_fifty_six_at_a_time_and_no_more", as_many_as_allowed),
        trial("execs::caller_that_goes_takes_his_program_with_him", caller_takes_program),
        trial("execs::attach_writes_detaches_and_ends_with_the_command", attach_and_detach),
        trial("execs::copies_keep_trees_and_cross_no_link", copies_cross_no_link),
        trial("execs::file_of_many_windows_is_copied_both_ways", file_both_ways),
        trial("execs::diff_tells_added_changed_and_removed", diff_tells_changes),
    ]
}

const AGENTS: &[(&str, &str, &str)] = &[
    (
        "worker",
        "idle.py\"]",
        "shell = true\nmax_memory_mb = 448\nmax_pids = 1024\nfilesystem.write = [\"/data\"]",
    ),
    ("talker", "talk.py\"]\nstdin = true", "max_memory_mb = 128"),
    ("screen", "talk.py\"]\nstdin = true\ntty = true", "max_memory_mb = 128"),
];

fn start() -> Result<Bench> {
    let config = Config::new("execs")?;
    config.file("nulld.toml", "[node]\nname = \"execs\"\n")?;
    for (name, command, capabilities) in AGENTS {
        let text = format!(
            "[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"python\"\ncommand = [\"{PYTHON}\", \"/app/{command}\n[capabilities]\n{capabilities}\n"
        );
        config.file(&format!("agents/{name}.toml"), &text)?;
    }
    config.rootfs("python", &fixture::python_archive(&system_tests::tree().join("tests/app"))?)?;
    let machine = Machine {
        name: "execs".into(),
        iso: system_tests::test_iso()?,
        firmware: Firmware::Uefi,
        config: Some(config.volume()?),
        state: Some(config.state("2G")?),
        memory_mib: 2560,
        cpus: 2,
        forwards: Vec::new(),
        uplink: false,
        key: config.keys.operator.clone(),
    };
    Ok(Bench { node: Node::boot(machine)?, config })
}

impl Bench {
    fn running(&self, agent: &str) -> Result<()> {
        let status = self.node.json(&["agent", "status", agent])?;
        if status["summary"]["state"] != "running" {
            self.node.json(&["agent", "start", agent])?;
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        self.node.command(&self.node.machine.key, &self.node.fingerprint()?, arguments)
    }

    /// Python in the worker.
    fn python(&self, options: &[&str], code: &str) -> Result<Answer> {
        let mut all = vec!["agent", "exec", "worker"];
        all.extend(options);
        all.extend(["--", PYTHON, "-c", code]);
        self.node.ctl(&all)
    }

    fn execs_running(&self, agent: &str) -> Result<u64> {
        let status = self.node.json(&["agent", "status", agent])?;
        status["execs_running"].as_u64().context("no execs_running")
    }

    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.config.dir().join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

fn codes_signals_limits() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let answer = bench.python(&[], "import sys; print('out'); sys.stderr.write('err'); sys.exit(7)")?;
        ensure!(
            (answer.status, answer.stdout.as_str()) == (7, "out\n") && answer.stderr.contains("err"),
            "{answer:?}"
        );
        let answer = bench.python(&[], "import os; os.kill(os.getpid(), 15)")?;
        ensure!(answer.status == 128 + 15, "{answer:?}");
        let answer = bench.python(
            &["--env", "WORD=a b", "--workdir", "/data"],
            "import os; print(os.environ['WORD'], os.getcwd())",
        )?;
        ensure!(answer.stdout == "a b /data\n", "{answer:?}");
        let begun = Instant::now();
        let answer =
            bench.python(&["--timeout", "2"], "import time; print('there', flush=True); time.sleep(300)")?;
        ensure!(
            answer.status == 124 && answer.stdout == "there\n" && answer.stderr.contains("2000 ms"),
            "{answer:?}"
        );
        ensure!(begun.elapsed() < Duration::from_secs(60), "it was not killed");
        let answer = bench.node.ctl(&["agent", "exec", "worker", "--", "/no/such/program"])?;
        ensure!(answer.status == 125, "{answer:?}");
        let answer = bench.node.ctl(&["agent", "exec", "nobody", "--", "/bin/true"])?;
        ensure!(answer.status == 125 && answer.stderr.contains("nobody"), "{answer:?}");
        eventually(Duration::from_secs(20), "no exec is left", || Ok(bench.execs_running("worker")? == 0))
    })
}

/// nullctl in a terminal of this machine.
struct Seat {
    child: Child,
    screen: File,
    master: File,
    shown: Arc<Mutex<String>>,
}

impl Seat {
    fn take(mut command: Command, rows: u16, columns: u16) -> Result<Seat> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?.into_string()?;
        let mut options = fs::OpenOptions::new();
        let screen = options.read(true).write(true).open(path)?;
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
        let child = command
            .env("TERM", "vt100")
            .stdin(screen.try_clone()?)
            .stdout(screen.try_clone()?)
            .stderr(screen.try_clone()?)
            .spawn()?;
        let (shown, master) = (Arc::new(Mutex::new(String::new())), File::from(master));
        let (keeper, mut reader) = (shown.clone(), master.try_clone()?);
        std::thread::spawn(move || {
            let mut chunk = [0u8; 4096];
            while let Ok(read @ 1..) = reader.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..read]).into_owned();
                keeper.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(Seat { child, screen, master, shown })
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        let shows = eventually(Duration::from_secs(60), text, || Ok(self.shown().contains(text)));
        shows.with_context(|| format!("the screen shows {:?}", self.shown()))
    }

    fn type_in(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.master.write_all(keys)?)
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        tcsetwinsize(&self.master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
        Ok(kill_process(Pid::from_child(&self.child), Signal::WINCH)?)
    }

    fn is_raw(&self) -> Result<bool> {
        Ok(!tcgetattr(&self.screen)?.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO))
    }

    fn status(&mut self) -> Result<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.child.kill()?;
        bail!("it still runs; the screen shows {:?}", self.shown())
    }
}

fn terminal_follows_its_size() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let code = "import os,sys,time\nprint('tty', os.ttyname(0), [os.isatty(n) for n in (0,1,2)], os.environ['TERM'], flush=True)\nfor line in sys.stdin:\n  print('size', *os.get_terminal_size(0), flush=True)";
        let command = bench.command(&["agent", "exec", "-t", "worker", "--", PYTHON, "-c", code])?;
        let mut seat = Seat::take(command, 33, 101)?;
        seat.wait_for("tty /dev/pts/")?;
        seat.wait_for("[True, True, True] vt100")?;
        ensure!(seat.is_raw()?, "keys are not passed on as they are");
        seat.type_in(b"\r")?;
        seat.wait_for("size 101 33")?;
        seat.resize(44, 122)?;
        // The size takes its time to the guest; each line that is typed asks for it.
        eventually(Duration::from_secs(60), "the other size", || {
            seat.type_in(b"\r")?;
            Ok(seat.shown().contains("size 122 44"))
        })
        .with_context(|| format!("the screen shows {:?}", seat.shown()))?;
        seat.type_in(b"\x04")?; // ctrl-d ends its input
        ensure!(seat.status()? == 0, "{}", seat.shown());
        ensure!(!seat.is_raw()?, "the terminal was not restored");
        // Ctrl-c is a key like any other, and the guest's terminal makes a signal of it.
        let code = "import time; print('here', flush=True); time.sleep(300)";
        let command = bench.command(&["agent", "exec", "-t", "worker", "--", PYTHON, "-c", code])?;
        let mut seat = Seat::take(command, 24, 80)?;
        seat.wait_for("here")?;
        seat.type_in(b"\x03")?;
        seat.wait_for("KeyboardInterrupt")?;
        ensure!([1, 130].contains(&seat.status()?) && !seat.is_raw()?, "{}", seat.shown());
        Ok(())
    })
}

/// Runs a command with input, to its end.
fn with_input(mut command: Command, input: Vec<u8>) -> Result<(i32, Vec<u8>)> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let _ = writer.join(); // what came out says whether all went in
    Ok((output.status.code().unwrap_or(-1), output.stdout))
}

/// Bytes that do not repeat soon.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn ten_megabytes_both_ways() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let input = noise(10 << 20);
        let (status, output) =
            with_input(bench.command(&["agent", "exec", "worker", "--", "/bin/cat"])?, input.clone())?;
        ensure!(
            status == 0 && output == input,
            "status {status}, {} of {} bytes came back",
            output.len(),
            input.len()
        );
        Ok(())
    })
}

fn slow_reader_holds_up_nobody() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let mut slow = bench.command(&[
            "agent",
            "exec",
            "-n",
            "worker",
            "--",
            "/usr/bin/head",
            "-c",
            "30000000",
            "/dev/zero",
        ])?;
        let mut slow = slow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        eventually(Duration::from_secs(30), "the slow one's program runs", || {
            Ok(bench.execs_running("worker")? == 1)
        })?;
        std::thread::sleep(Duration::from_secs(2)); // all that fits on its way is on its way
        let input = noise(2 << 20);
        let (status, output) =
            with_input(bench.command(&["agent", "exec", "worker", "--", "/bin/cat"])?, input.clone())?;
        ensure!(status == 0 && output == input, "the fast one was held up: {status}, {} bytes", output.len());
        std::thread::sleep(Duration::from_secs(12)); // longer than the ten seconds that once ended it
        ensure!(bench.execs_running("worker")? == 1, "the slow one was ended for being slow");
        let mut rest = Vec::new();
        slow.stdout.take().context("no output")?.read_to_end(&mut rest)?;
        ensure!(slow.wait()?.success() && rest.len() == 30_000_000, "{} bytes", rest.len());
        Ok(())
    })
}

/// Callers that come at one time.
const WAVE: usize = 32;

fn as_many_as_allowed() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let most = abi::limits::EXECS_PER_AGENT_MAX;
        let mut all = Vec::new();
        // In waves: the promise is how many run, not how many TLS handshakes an emulated node makes in one instant.
        while all.len() < most {
            for _ in 0..WAVE.min(most - all.len()) {
                let mut command = bench.command(&["agent", "exec", "worker", "--", "/bin/cat"])?;
                let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                all.push(piped.spawn()?);
            }
            let together = eventually(Duration::from_secs(60), "all run at a time", || {
                Ok(bench.execs_running("worker")? == all.len() as u64)
            });
            together
                .with_context(|| format!("{:?} of {} run", bench.execs_running("worker").ok(), all.len()))?;
        }
        let answer = bench.node.ctl(&["agent", "exec", "worker", "--", "/bin/true"])?;
        ensure!(answer.status == 125 && answer.stderr.contains("256"), "one more: {answer:?}");
        for (number, child) in all.iter_mut().enumerate() {
            child.stdin.take().context("no input")?.write_all(format!("{number}\n").as_bytes())?;
        }
        for (number, child) in all.into_iter().enumerate() {
            let output = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success() && text == format!("{number}\n"), "{number}: {text:?} {errors}");
        }
        eventually(Duration::from_secs(30), "none is left", || Ok(bench.execs_running("worker")? == 0))
    })
}

fn caller_takes_program() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let mut command = bench.command(&["agent", "exec", "-n", "worker", "--", "/bin/sleep", "1000"])?;
        let mut child = command.stdin(Stdio::null()).spawn()?;
        eventually(Duration::from_secs(30), "it runs", || Ok(bench.execs_running("worker")? == 1))?;
        child.kill()?;
        child.wait()?;
        eventually(Duration::from_secs(30), "it was killed", || Ok(bench.execs_running("worker")? == 0))
    })
}

fn attach_and_detach() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("talker")?;
        let mut first = bench.command(&["agent", "attach", "--replay", "talker"])?;
        let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut typing = first.stdin.take().context("no input")?;
        typing.write_all(b"one\n")?;
        eventually(Duration::from_secs(30), "the first is heard", || heard(bench, "talker", "heard one"))?;
        // Another one may look, and not write.
        let (status, _) = with_input(bench.command(&["agent", "attach", "talker"])?, b"two\n".to_vec())?;
        ensure!(status == 1, "two wrote at a time: {status}");
        ensure!(!heard(bench, "talker", "heard two")?, "two wrote at a time");
        first.kill()?;
        first.wait()?;
        drop(typing);
        ensure!(
            bench.node.json(&["agent", "status", "talker"])?["summary"]["state"] == "running",
            "leaving ended it"
        );
        // With the place free, the next one writes, to the command's end.
        let mut last = 0;
        eventually(Duration::from_secs(30), "the next one writes", || {
            let (status, output) =
                with_input(bench.command(&["agent", "attach", "talker"])?, b"three\nquit\n".to_vec())?;
            last = status;
            Ok(String::from_utf8_lossy(&output).contains("heard three"))
        })?;
        ensure!(last == 5, "the command's status is the answer: {last}");
        bench.running("screen")?;
        let mut seat = Seat::take(bench.command(&["agent", "attach", "screen"])?, 30, 90)?;
        std::thread::sleep(Duration::from_secs(2));
        seat.type_in(b"size\r")?;
        seat.wait_for("talk: size 90 30")?;
        seat.type_in(b"\x10\x11")?;
        seat.wait_for("which goes on")?;
        ensure!(seat.status()? == 0 && !seat.is_raw()?, "{}", seat.shown());
        ensure!(
            bench.node.json(&["agent", "status", "screen"])?["summary"]["state"] == "running",
            "detaching ended it"
        );
        Ok(())
    })
}

fn heard(bench: &Bench, agent: &str, text: &str) -> Result<bool> {
    Ok(bench.node.ctl(&["agent", "logs", agent])?.ok()?.stdout.contains(text))
}

fn copies_cross_no_link() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let code = "import os\nos.makedirs('/data/tree/sub/deep')\nopen('/data/tree/sub/deep/file','w').write('deep')\nopen('/data/tree/run','w').write('#!/bin/sh')\nos.chmod('/data/tree/run',0o755)\nos.symlink('/etc/passwd','/data/tree/passwd')\nos.symlink('../../../../../../tmp','/data/tree/sub/out')\nos.symlink('sub/deep/file','/data/tree/inside')\nos.mkfifo('/data/tree/pipe')";
        ensure!(bench.python(&[], code)?.status == 0, "the tree was not planted");
        let to = bench.dir("copied")?;
        let target = to.display().to_string();
        let answer = bench.node.ctl(&["agent", "cp", "worker:/data/tree", &target])?;
        ensure!(answer.status == 1, "what was left out is no success: {answer:?}");
        for name in ["passwd", "out"] {
            ensure!(answer.stderr.contains(name), "{name} is not named: {answer:?}");
            ensure!(fs::symlink_metadata(to.join("tree").join(name)).is_err(), "{name} was made");
        }
        let copied = to.join("tree");
        ensure!(fs::read(copied.join("sub/deep/file"))? == b"deep", "the deep file");
        ensure!(fs::read_link(copied.join("inside"))? == Path::new("sub/deep/file"), "the link inside");
        ensure!(
            !fs::symlink_metadata(copied.join("pipe")).is_ok_and(|meta| meta.file_type().is_fifo()),
            "a pipe"
        );
        // Back in, over links that stand in the way on the agent's side: nothing is written through them.
        let back = bench.dir("back")?;
        fs::create_dir_all(back.join("tree/sub"))?;
        fs::write(back.join("tree/sub/new"), b"new")?;
        fs::write(back.join("tree/passwd"), b"mine")?;
        symlink("sub/new", back.join("tree/again"))?;
        let source = back.join("tree").display().to_string();
        let answer = bench.node.ctl(&["agent", "cp", &source, "worker:/data"])?.ok()?;
        ensure!(answer.stdout.contains("2 files"), "{answer:?}");
        let code = "import os; print(open('/data/tree/passwd').read(), os.path.islink('/data/tree/passwd'), open('/data/tree/again').read(), open('/etc/passwd').read().startswith('mine'))";
        let answer = bench.python(&[], code)?;
        ensure!(answer.stdout == "mine False new False\n", "{answer:?}");
        // A directory that becomes the name asked for, a file into a directory, and what the agent may not write.
        let answer = bench.node.ctl(&["agent", "cp", &source, "worker:/data/renamed"])?.ok()?;
        ensure!(answer.stderr.is_empty(), "{answer:?}");
        let file = back.join("tree/sub/new").display().to_string();
        bench.node.ctl(&["agent", "cp", &file, "worker:/data/renamed"])?.ok()?;
        let answer = bench.python(&[], "import os; print(sorted(os.listdir('/data/renamed')))")?;
        ensure!(answer.stdout == "['again', 'new', 'passwd', 'sub']\n", "{answer:?}");
        for forbidden in ["worker:/etc/passwd", "worker:/usr/bin/"] {
            let answer = bench.node.ctl(&["agent", "cp", &file, forbidden])?;
            ensure!(answer.status == 1 && !answer.stderr.is_empty(), "{forbidden}: {answer:?}");
        }
        let answer = bench.node.ctl(&["agent", "cp", "worker:/proc/1/environ", &target])?;
        ensure!(answer.status == 1, "{answer:?}");
        Ok(())
    })
}

fn file_both_ways() -> Result<()> {
    let mebibytes = if system_tests::is_soak() { 50 } else { 16 };
    BENCH.on(|bench| {
        bench.running("worker")?;
        let dir = bench.dir("large")?;
        let (there, back) = (dir.join("there"), dir.join("back"));
        let bytes = noise(mebibytes << 20);
        fs::write(&there, &bytes)?;
        let begun = Instant::now();
        bench.node.ctl(&["agent", "cp", &there.display().to_string(), "worker:/data/large"])?.ok()?;
        let in_ms = begun.elapsed().as_millis();
        let begun = Instant::now();
        bench.node.ctl(&["agent", "cp", "worker:/data/large", &back.display().to_string()])?.ok()?;
        println!("{mebibytes} MiB: {in_ms} ms in, {} ms out", begun.elapsed().as_millis());
        ensure!(fs::read(&back)? == bytes, "it came back different");
        Ok(())
    })
}

fn diff_tells_changes() -> Result<()> {
    BENCH.on(|bench| {
        bench.running("worker")?;
        let code = "import os\nos.makedirs('/data/fresh')\nopen('/data/fresh/added','w').write('x')";
        ensure!(bench.python(&[], code)?.status == 0, "nothing was changed");
        let answer = bench.node.ctl(&["agent", "diff", "worker"])?.ok()?;
        let lines: BTreeMap<&str, &str> = answer
            .stdout
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(kind, path)| (path, kind))
            .collect();
        for path in ["/data/fresh", "/data/fresh/added"] {
            ensure!(lines.get(path) == Some(&"A"), "{path}: {answer:?}");
        }
        ensure!(
            !lines.contains_key("/etc/passwd.none") && !lines.keys().any(|path| path.starts_with("/proc/")),
            "{answer:?}"
        );
        Ok(())
    })
}
