//! A node in namespaces: the real nulld as PID 1 of its own PID, mount, network, host name, IPC and cgroup namespace.
//!
//! nulld is told nothing of this: it finds the layout of the image below a chroot and does what it does on a real node.
//! Needs root and util-linux.

#![allow(dead_code, reason = "each test program uses what it needs of it")]

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use abi::control::{Doctor, Finding, LogLine, ServiceStatus, SystemStatus};
use abi::rpc::{Incoming, Request, Response};
use abi::wire::Connection;
use serde_json::Value;

static COUNT: AtomicU32 = AtomicU32::new(0);

const SCRIPT: &str = r#"
set -e
mount --make-rprivate /
# A root that services can leave for one of their own: a mount point.
mount --bind "$ROOT" "$ROOT"
for dir in lib lib64 usr bin; do
  [ -e /$dir ] || continue
  mkdir -p "$ROOT/$dir"
  mount --rbind /$dir "$ROOT/$dir"
done
mount -t tmpfs -o mode=0755 tmpfs "$ROOT/dev"
mknod -m 666 "$ROOT/dev/null" c 1 3
mknod -m 666 "$ROOT/dev/urandom" c 1 9
mknod -m 600 "$ROOT/dev/kmsg" c 1 11
touch "$ROOT/dev/console"
mount --bind "$CONSOLE" "$ROOT/dev/console"
eval "$PREPARE"
echo 0 > "$CGROUP/cgroup.procs"
cd "$ROOT"
exec unshare --cgroup -- env -i NULLBOX_ROOT_HASH="$HASH" NULLBOX_INITRAMFS_MS=mounts=1,verity=2 "$(command -v chroot)" "$ROOT" /system/bin/nulld
"#;

/// The hash that the tests' "initramfs" passes on.
pub const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Programs of these tests are not static. Test services look around and start shells: those that do not say how they are
/// confined are not.
fn unconfined(config: &str) -> String {
    const LIBRARIES: &str = "[node]\nlibraries = [\"/lib\", \"/lib64\", \"/usr/lib\"]\n";
    let config = match config.contains("[node]\n") {
        true => config.replacen("[node]\n", LIBRARIES, 1),
        false => format!("{LIBRARIES}{config}"),
    };
    let mut sections = config.split("[services.");
    let mut whole = sections.next().unwrap_or_default().to_owned();
    for section in sections {
        whole.push_str("[services.");
        match section.split_once('\n') {
            Some((head, rest)) if !section.contains("unconfined") => {
                whole.push_str(&format!("{head}\nunconfined = true\n{rest}"));
            }
            _ => whole.push_str(section),
        }
    }
    whole
}

pub struct Node {
    dir: PathBuf,
    cgroup: PathBuf,
    unshare: Child,
    /// PID 1, as this namespace numbers it.
    pub pid: u32,
}

impl Node {
    /// Boots with this nulld.toml and does not wait.
    pub fn start(config: &str) -> Node {
        Node::start_on(config, "")
    }

    /// The same on a machine that a shell script prepares: it runs before nulld, outside of `$ROOT`, as root in the namespaces.
    pub fn start_on(config: &str, prepare: &str) -> Node {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nulld-test-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        let root = dir.join("root");
        for part in ["system/bin", "system/config", "dev", "proc", "sys", "run", "tmp", "state"] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let nulld = PathBuf::from(env!("CARGO_BIN_EXE_nulld"));
        fs::copy(&nulld, root.join("system/bin/nulld")).unwrap();
        let probe = nulld.with_file_name("examples").join("probe");
        fs::copy(&probe, root.join("system/bin/probe")).expect("examples are built by cargo test");
        let confined = probe.with_file_name("confined");
        if confined.exists() {
            fs::copy(&confined, root.join("system/bin/confined")).unwrap();
        }
        fs::write(root.join("system/config/nulld.toml"), unconfined(config)).unwrap();
        let console = dir.join("console");
        File::create(&console).unwrap();
        let cgroup = cgroup_mount().join(&name);
        fs::create_dir(&cgroup).expect("a cgroup v2 hierarchy, as root");
        let unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc"])
            .args(["--", "/bin/sh", "-c", SCRIPT])
            .env("ROOT", &root)
            .env("CONSOLE", &console)
            .env("CGROUP", &cgroup)
            .env("HASH", HASH)
            .env("PREPARE", prepare)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("stderr")).unwrap())
            .spawn()
            .expect("unshare of util-linux, as root");
        let mut node = Node { dir, cgroup, unshare, pid: 0 };
        let parent = node.unshare.id();
        node.pid = node.until("PID 1 of the new namespace", 10, |_| child_of(parent));
        node
    }

    /// Boots and waits for `ready`.
    pub fn boot(config: &str) -> Node {
        let node = Node::start(config);
        node.wait_console("\nnullbox: ready", 20);
        node
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.dir.join("console")).unwrap()
    }

    /// What `system.doctor` finds.
    pub fn findings(&self) -> Vec<Finding> {
        let response = self.call("system.doctor", Value::Null);
        let doctor: Doctor = serde_json::from_value(response.result.expect("a diagnosis")).unwrap();
        doctor.findings
    }

    /// Waits for a text on the console.
    pub fn wait_console(&self, text: &str, seconds: u64) {
        self.until(text, seconds, |node| node.console().contains(text).then_some(()));
    }

    /// Waits for something, by asking often; fails with the console when time is up: after so many seconds, and not before a
    /// minute is over, for a busy machine may let a node stand still for many seconds.
    pub fn until<T>(&self, what: &str, seconds: u64, mut ask: impl FnMut(&Node) -> Option<T>) -> T {
        let (begin, seconds) = (Instant::now(), seconds.max(60));
        loop {
            if let Some(found) = ask(self) {
                return found;
            }
            if begin.elapsed() > Duration::from_secs(seconds) {
                let stderr = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
                panic!("no {what} within {seconds} s\n--- console\n{}\n--- stderr\n{stderr}", self.console());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A path of the node, seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// A connection to the door as root.
    pub fn connect(&self) -> Connection {
        let connection =
            self.until("door", 10, |node| UnixStream::connect(node.path("/run/nulld.sock")).ok());
        let connection = Connection::new(connection);
        connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
        connection
    }

    /// A connection to the door as another user.
    pub fn connect_as(&self, uid: u32) -> Connection {
        let run = File::open(self.path("/run")).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsRawFd;
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(uid)).unwrap();
            let path = format!("/proc/thread-self/fd/{}/nulld.sock", run.as_raw_fd());
            let connection = Connection::new(UnixStream::connect(path).unwrap());
            connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
            connection
        })
        .join()
        .unwrap()
    }

    /// Sends a signal to PID 1, from outside.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid.cast_signed()), signal).unwrap();
    }

    /// Stops PID 1 from outside, until SIGCONT.
    pub fn stop(&self) {
        self.signal(nix::sys::signal::Signal::SIGSTOP);
        self.until("a stopped nulld", 5, |node| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", node.pid)).ok()?;
            stat.rsplit(')').next()?.trim().starts_with('T').then_some(())
        });
    }

    /// The children of PID 1, as this namespace numbers them, with the letter of their state (proc(5)).
    pub fn children(&self) -> Vec<(u32, char)> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let pids = fs::read_to_string(path).unwrap();
        pids.split_whitespace()
            .filter_map(|pid| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                let state = stat.rsplit(')').next()?.trim().chars().next()?;
                Some((pid.parse().ok()?, state))
            })
            .collect()
    }

    /// The first process of a service, as this namespace numbers it.
    pub fn outside(&self, service: &str) -> i32 {
        let own = format!("/services/{service}");
        let is_its = |(pid, _): &(u32, char)| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            groups.lines().any(|line| line.ends_with(&own) || line.ends_with(&format!("{own}/self")))
        };
        self.children().iter().find(|child| is_its(child)).expect("a running service").0.cast_signed()
    }

    pub fn call(&self, method: &str, params: Value) -> Response {
        call(&mut self.connect(), method, params)
    }

    pub fn status(&self) -> SystemStatus {
        let response = self.call("system.status", Value::Null);
        serde_json::from_value(response.result.expect("a status")).unwrap()
    }

    pub fn service(&self, name: &str) -> ServiceStatus {
        let status = self.status();
        let found = status.services.iter().find(|service| service.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {status:?}")).clone()
    }

    /// Waits until a service is in a state.
    pub fn wait_state(&self, name: &str, state: &str, seconds: u64) -> ServiceStatus {
        self.until(&format!("{name} {state}"), seconds, |node| {
            let service = node.service(name);
            (service.state == state).then_some(service)
        })
    }

    pub fn logs(&self, service: &str) -> Vec<LogLine> {
        self.log_lines(serde_json::json!({ "service": service }))
    }

    /// What `system.logs` answers.
    pub fn log_lines(&self, params: serde_json::Value) -> Vec<LogLine> {
        let mut connection = self.connect();
        connection.write_line(&Request::call(1, "system.logs", params)).unwrap();
        let mut lines = Vec::new();
        loop {
            match read(&mut connection) {
                Incoming::Notification(note) => lines.push(serde_json::from_value(note.params).unwrap()),
                Incoming::Response(response) => {
                    assert!(response.error.is_none(), "{response:?}");
                    return lines;
                }
            }
        }
    }

    /// Time on a processor that PID 1 has used, in hundredths of a second (proc(5), USER_HZ).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Memory of PID 1's own, without the pages of its program, in KiB.
    pub fn own_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        own.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for the end of PID 1, as [`Node::until`] does; the signal that a PID namespace gives for reboot(2): 1 restart, 2 power-off.
    pub fn wait_end(&mut self, seconds: u64) -> i32 {
        let (begin, seconds) = (Instant::now(), seconds.max(60));
        loop {
            if let Some(status) = self.unshare.try_wait().unwrap() {
                return status.signal().unwrap_or_else(|| panic!("{status:?}\n{}", self.console()));
            }
            assert!(
                begin.elapsed() < Duration::from_secs(seconds),
                "the node does not end\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stderr = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
            eprintln!("--- console\n{}\n--- stderr\n{stderr}", self.console());
        }
        let _ = self.unshare.kill(); // it may have ended; --kill-child takes PID 1 with it
        let _ = self.unshare.wait();
        let begin = Instant::now();
        while self.cgroup.exists() && begin.elapsed() < Duration::from_secs(30) {
            let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
            remove_cgroups(&self.cgroup);
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub fn call(connection: &mut Connection, method: &str, params: Value) -> Response {
    connection.write_line(&Request::call(1, method, params)).unwrap();
    match read(connection) {
        Incoming::Response(response) => response,
        other => panic!("{other:?}"),
    }
}

pub fn read(connection: &mut Connection) -> Incoming {
    let line = connection.read_line().unwrap().expect("an answer");
    serde_json::from_str(&line).unwrap()
}

fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = words.find(|words| words.get(2) == Some(&"cgroup2"));
    PathBuf::from(found.expect("cgroup v2 is mounted somewhere")[1])
}

fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(path); // busy until its processes are gone: the caller tries again
}

fn child_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name may hold blanks; the parent is the second word after it.
        let ppid = stat.rsplit(')').next()?.split_whitespace().nth(1)?;
        let is_nulld = fs::read_to_string(entry.path().join("comm")).ok()?.trim() == "nulld";
        (ppid == parent.to_string() && is_nulld).then_some(pid)
    })
}
