//! A node, a test internet and guests, each in a network namespace of its own: what leaves egress ends here.
//!
//! egress runs as on a node: its own binary, user 201, four capabilities, descriptors 3 to 5, /run/nullbox, /state/egress. The guest's frames
//! go through the TAP that a process without privileges opened by name.

#![allow(dead_code, reason = "each file of tests uses a part of it")]

use abi::control::{Attached, Denial, Denials, Grants, NetAttach, SecretValue};
use abi::door::{Handoff, hand_over};
use abi::identity::{Caller, Role};
use abi::ledger::{Append, Event, Receipt};
use abi::manifest::Published;
use abi::network::{Budget, SecretPolicy};
use abi::node::NodeConfig;
use abi::rpc::{Code, Incoming, Request, Response, RpcError};
use abi::wire::Connection;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The jail's user.
pub const VM_UID: u32 = 100_007;
const CAPABILITIES: &str = "-all,+net_admin,+net_raw,+net_bind_service,+sys_admin";
/// Addresses of the test internet.
const INTERNET: [&str; 7] = [
    "203.0.113.10",
    "203.0.113.11",
    "203.0.113.53",
    "8.8.8.8",
    "169.254.169.254",
    "10.9.9.9",
    "192.168.77.7",
];
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Descriptors are made inheritable for a moment: one start at a time.
static STARTING: Mutex<()> = Mutex::new(());

pub fn sh(command: &str) {
    let output = Command::new("bash").args(["-euc", command]).output().unwrap();
    assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Kills its process when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

fn ready(child: &mut Child) {
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "a helper did not start");
    std::mem::forget(out); // a closed pipe would end the helper
}

pub struct World {
    pub dir: PathBuf,
    name: String,
    door: OwnedFd,
    door_far: OwnedFd,
    peers: UnixListener,
    egress: Option<Running>,
    _internet: Running,
    pub events: Arc<Mutex<Vec<Event>>>,
    pub refuse_receipts: Arc<AtomicBool>,
    /// The ledger takes nothing at all.
    pub refuse_all: Arc<AtomicBool>,
    /// How long a durable receipt takes, in milliseconds.
    pub receipt_ms: Arc<AtomicU64>,
    /// Durable receipts that were asked for.
    pub receipts_asked: Arc<AtomicU64>,
    log: Arc<Mutex<String>>,
}

impl World {
    pub fn new() -> World {
        World::with(NodeConfig::default())
    }

    pub fn with(config: NodeConfig) -> World {
        let name = format!("nbx{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = PathBuf::from(format!("/tmp/{name}"));
        fs::create_dir_all(dir.join("run")).unwrap();
        // NULLBOX_TEST_EGRESS: the same tests for another build, such as the static one of the image.
        let binary = std::env::var("NULLBOX_TEST_EGRESS").unwrap_or(env!("CARGO_BIN_EXE_egress").into());
        fs::copy(binary, dir.join("egress")).unwrap();
        let at = dir.display();
        let addresses =
            INTERNET.map(|address| format!("ip -n {name}i addr add {address}/32 dev lo")).join("\n");
        sh(&format!(
            "install -d -o 201 -g 201 -m 700 {at}/state
             mknod {at}/tun c 10 200; chmod 666 {at}/tun; chmod 755 {at} {at}/run
             echo 'nameserver 100.64.0.1' > {at}/resolv.conf
             ip netns add {name}n; ip netns add {name}i
             ip link add up0 netns {name}n type veth peer name in0 netns {name}i
             ip -n {name}n link set lo up; ip -n {name}i link set lo up
             ip -n {name}n link set up0 up; ip -n {name}i link set in0 up
             ip -n {name}n addr add 192.0.2.2/24 dev up0; ip -n {name}i addr add 192.0.2.1/24 dev in0
             ip -n {name}n route add default via 192.0.2.1
             {addresses}
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test \
               -keyout {at}/key.pem -out {at}/cert.pem 2>/dev/null"
        ));
        fs::write(dir.join("run/node.json"), serde_json::to_string(&config).unwrap()).unwrap();
        let uplink =
            json!({"interface":"up0","address":"192.0.2.2/24","gateway":"192.0.2.1","dns":["203.0.113.53"]});
        fs::write(dir.join("run/uplink.json"), uplink.to_string()).unwrap();
        set_dns(&dir, json!({"web.test": ["203.0.113.10"], "other.test": ["203.0.113.11"]}));
        let internet = start_internet(&name, &dir);
        let (events, refuse_receipts, refuse_all) = (Arc::default(), Arc::default(), Arc::default());
        let (receipt_ms, receipts_asked) = (Arc::default(), Arc::default());
        start_ledger(&dir, &events, [&refuse_receipts, &refuse_all], [&receipt_ms, &receipts_asked]);
        let socket = dir.join("run/egress.sock");
        let peers = UnixListener::bind(&socket).unwrap();
        let (door, door_far) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let log = Arc::default();
        let egress = None;
        let mut world = World {
            dir,
            name,
            door,
            door_far,
            peers,
            egress,
            _internet: internet,
            events,
            refuse_receipts,
            refuse_all,
            receipt_ms,
            receipts_asked,
            log,
        };
        world.start_egress();
        world
    }

    /// Starts egress as nulld does, and waits for its readiness line.
    pub fn start_egress(&mut self) {
        let (notify, far) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let at = self.dir.display();
        let _one = STARTING.lock().unwrap_or_else(|e| e.into_inner());
        let passed = [self.door_far.as_fd(), far.as_fd(), self.peers.as_fd()]
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 20).unwrap());
        for fd in &passed {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        }
        let [door, ready, peers] = passed.each_ref().map(AsRawFd::as_raw_fd);
        let script = format!(
            "mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir /run/nullbox; mount --bind {at}/run /run/nullbox
             mount --bind {at}/tun /dev/net/tun; mkdir -p /state/egress; mount --bind {at}/state /state/egress
             exec setpriv --reuid=201 --regid=201 --clear-groups --no-new-privs --inh-caps={CAPABILITIES} \
               --ambient-caps={CAPABILITIES} --bounding-set={CAPABILITIES} {at}/egress 3<&{door} 4>&{ready} 5<&{peers} \
               {door}<&- {ready}<&- {peers}<&-"
        );
        let mut child = Command::new("ip")
            .args(["netns", "exec", &format!("{}n", self.name), "unshare", "-m", "bash", "-euc", &script])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        collect(child.stderr.take().unwrap(), &self.log);
        drop((passed, far));
        self.egress = Some(Running(child));
        let mut line = [0; 8];
        rustix::event::poll(
            &mut [rustix::event::PollFd::new(&notify, rustix::event::PollFlags::IN)],
            Some(&rustix::event::Timespec { tv_sec: 120, tv_nsec: 0 }),
        )
        .unwrap();
        let read = rustix::io::read(&notify, &mut line).unwrap();
        assert!(line[..read].starts_with(b"ready\n"), "egress is not ready: {}", self.log());
    }

    pub fn kill_egress(&mut self) {
        self.egress = None;
    }

    pub fn egress_pid(&self) -> u32 {
        self.egress.as_ref().unwrap().0.id()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn set_dns(&self, table: Value) {
        set_dns(&self.dir, table);
    }

    /// What the test internet saw.
    pub fn seen(&self) -> String {
        fs::read_to_string(self.dir.join("seen.log")).unwrap_or_default()
    }

    /// Attaches as cage does.
    pub fn attach(&self, instance: &str, allow: &[&str], adopt: Option<&OwnedFd>) -> Lease {
        self.try_attach(instance, allow, adopt).unwrap()
    }

    pub fn try_attach(
        &self,
        instance: &str,
        allow: &[&str],
        adopt: Option<&OwnedFd>,
    ) -> Result<Lease, RpcError> {
        self.try_publish(instance, allow, &[], adopt)
    }

    /// Attaches with published ports: node port, guest port, source ranges.
    pub fn try_publish(
        &self,
        instance: &str,
        allow: &[&str],
        publish: &[(u16, u16, &[&str])],
        adopt: Option<&OwnedFd>,
    ) -> Result<Lease, RpcError> {
        let publish = publish.iter().map(|(node_port, guest_port, from)| Published {
            node_port: *node_port,
            guest_port: *guest_port,
            from: from.iter().map(|range| range.parse().unwrap()).collect(),
        });
        let allow = allow.iter().map(|text| text.parse().unwrap());
        let asked = NetAttach { allow: allow.collect(), publish: publish.collect(), ..wanted(instance) };
        self.ask_network(&asked, adopt)
    }

    /// Attaches with whatever is asked for.
    pub fn ask_network(&self, asked: &NetAttach, adopt: Option<&OwnedFd>) -> Result<Lease, RpcError> {
        let mut connection = Connection::connect(self.dir.join("run/egress.sock")).unwrap();
        connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
        let request = Request::call(1, "net.attach", serde_json::to_value(asked).unwrap());
        let fds: Vec<_> = adopt.iter().map(|fd| fd.as_fd()).collect();
        connection.write_line_with_fds(&request, &fds).unwrap();
        let attached: Attached = serde_json::from_value(result(&mut connection)?).unwrap();
        let namespace = connection.take_fds().pop().unwrap();
        Ok(Lease { connection, namespace, attached })
    }

    /// Calls through the door, as nulld hands a reader over.
    pub fn call(&self, method: &str, params: Value) -> Value {
        result(&mut self.open(method, params)).unwrap()
    }

    /// The same as an operator.
    pub fn order(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        result(&mut self.open_as(Role::Operator, method, params))
    }

    pub fn open(&self, method: &str, params: Value) -> Connection {
        self.open_as(Role::Reader, method, params)
    }

    pub fn open_as(&self, role: Role, method: &str, params: Value) -> Connection {
        let (near, far) = UnixStream::pair().unwrap();
        let caller = Caller::Operator { name: "test".into(), key: "k".into(), role };
        hand_over(self.door.as_fd(), &Handoff { caller }, far.as_fd()).unwrap();
        let mut connection = Connection::new(near);
        connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
        connection.write_line(&Request::call(7, method, params)).unwrap();
        connection
    }

    pub fn grants(&self) -> Grants {
        serde_json::from_value(self.call("net.grants", json!({}))).unwrap()
    }

    pub fn denials(&self) -> Vec<Denial> {
        let page: Denials = serde_json::from_value(self.call("net.denials", json!({}))).unwrap();
        page.denials
    }

    /// Waits for a denial by this rule that mentions `what`.
    pub fn denied(&self, rule: &str, what: &str) -> Denial {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let denials = self.denials();
            let found = denials.iter().find(|denial| denial.rule == rule && denial.what.contains(what));
            if let Some(found) = found {
                return found.clone();
            }
            assert!(Instant::now() < until, "no denial `{rule}` of `{what}` in {denials:#?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sets a secret.
    pub fn set_secret(&self, policy: &SecretPolicy, value: &str) {
        let mut connection = self.open_as(Role::Admin, "secret.set", json!({ "policy": policy }));
        let ready = connection.read_line().unwrap().expect("ready");
        assert!(ready.contains("ready"), "{ready}");
        connection.write_line(&SecretValue { value: value.to_owned() }).unwrap();
        result(&mut connection).unwrap();
    }

    /// Waits until something is so.
    pub fn eventually(&self, is_so: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < until, "it did not come: {}\n{}", self.log(), self.seen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Calls egress's own socket as a user of the node.
    pub fn ask_as(&self, uid: u32, method: &str, params: Value) -> Result<Value, RpcError> {
        let socket = self.dir.join("run/egress.sock");
        fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
        let connect = move || {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(uid)).unwrap();
            Connection::connect(socket).unwrap()
        };
        let mut connection = std::thread::spawn(connect).join().unwrap();
        connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
        connection.write_line(&Request::call(1, method, params)).unwrap();
        result(&mut connection)
    }

    /// The namespace of the node.
    pub fn node(&self) -> String {
        format!("{}n", self.name)
    }

    /// The namespace of the test internet.
    pub fn internet(&self) -> String {
        format!("{}i", self.name)
    }

    /// Starts a program on the test internet and waits for its first line. It ends when the answer is dropped.
    pub fn spawn_on_internet(&self, command: &str) -> Running {
        self.spawn_within(&self.internet(), command)
    }

    /// The same in a namespace.
    pub fn spawn_within(&self, namespace: &str, command: &str) -> Running {
        let (running, mut out) = self.spawn_saying(namespace, command);
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "a helper did not start");
        std::mem::forget(out); // a closed pipe would end the helper
        running
    }

    /// The same, with what it prints.
    pub fn spawn_saying(&self, namespace: &str, command: &str) -> (Running, BufReader<ChildStdout>) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace, "bash", "-euc", command])
            .env("GO", self.dir.join("go"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (Running(child), out)
    }

    /// Runs a program in the node's namespace.
    pub fn on_node(&self, command: &str) -> Output {
        self.within(&self.node(), command)
    }

    pub fn on_internet(&self, command: &str) -> Output {
        self.within(&self.internet(), command)
    }

    fn within(&self, namespace: &str, command: &str) -> Output {
        Command::new("timeout")
            .args(["60", "ip", "netns", "exec", namespace, "bash", "-euc", command])
            .output()
            .unwrap()
    }

    /// A guest behind a lease's TAP.
    pub fn guest(&self, lease: &Lease) -> Guest {
        let name = format!("{}g{}", self.name, NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world/vm.py");
        let at = self.dir.display();
        let namespace = lease.namespace_path();
        let tap = &lease.attached.tap;
        let command = format!(
            "mount --make-rprivate /; mount --bind {at}/tun /dev/net/tun; exec python3 {script} {namespace} {tap} {VM_UID}"
        );
        let mut vm = Command::new("ip")
            .args(["netns", "exec", &name, "unshare", "-m", "bash", "-euc", &command])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        ready(&mut vm);
        let network = &lease.attached.guest;
        sh(&format!(
            "ip -n {name} link set lo up
             ip -n {name} link set eth0 address {} mtu {}; ip -n {name} link set eth0 up
             ip -n {name} addr add {}/{} dev eth0; ip -n {name} route add default via {}",
            lease.attached.mac, network.mtu, network.address, network.prefix, network.gateway
        ));
        Guest { name, dir: self.dir.clone(), vm: Some(Running(vm)) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- egress\n{}--- internet\n{}", self.log(), self.seen());
        }
        self.egress = None;
        end_namespace(&self.node());
        end_namespace(&self.internet());
        let _ = fs::remove_dir_all(&self.dir); // left over only if something still writes there
    }
}

/// Takes a namespace away, with whatever still runs in it: it would outlive the test and hold what the tests print to.
fn end_namespace(name: &str) {
    let script = format!("ip netns pids {name} | xargs --no-run-if-empty kill -KILL; ip netns del {name}");
    let _ = Command::new("bash").args(["-c", &script]).status(); // a process may end by itself
}

fn collect(from: ChildStderr, log: &Arc<Mutex<String>>) {
    let log = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
}

fn set_dns(dir: &Path, table: Value) {
    fs::write(dir.join("dns.new"), table.to_string()).unwrap();
    fs::rename(dir.join("dns.new"), dir.join("dns.json")).unwrap();
}

fn start_internet(name: &str, dir: &Path) -> Running {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world/internet.py");
    let mut child = Command::new("ip")
        .args(["netns", "exec", &format!("{name}i"), "python3", script])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    ready(&mut child);
    Running(child)
}

/// The ledger's socket, with a ledger behind it that remembers, and refuses when told to.
fn start_ledger(
    dir: &Path,
    events: &Arc<Mutex<Vec<Event>>>,
    refuse: [&Arc<AtomicBool>; 2],
    [ms, asked]: [&Arc<AtomicU64>; 2],
) {
    let path = dir.join("run/ctxgraph.sock");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let (events, refuse, ms, asked) = (events.clone(), refuse.map(Arc::clone), ms.clone(), asked.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (events, refuse, ms, asked) = (events.clone(), refuse.clone(), ms.clone(), asked.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::new(stream);
                while let Ok(Some(line)) = connection.read_line() {
                    let request = Request::parse(&line).unwrap();
                    let append: Append = request.params().unwrap();
                    if append.durable {
                        asked.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(ms.load(Ordering::Relaxed)));
                    }
                    let [durable, all] = refuse.each_ref().map(|refuse| refuse.load(Ordering::Relaxed));
                    let outcome = if all || append.durable && durable {
                        Err(RpcError::new(Code::UNAVAILABLE, "the disk is full"))
                    } else {
                        let mut events = events.lock().unwrap();
                        events.push(append.event);
                        let receipt = Receipt { seq: events.len() as u64, digest: abi::ids::Digest([0; 32]) };
                        Ok(serde_json::to_value(receipt).unwrap())
                    };
                    if connection.write_line(&Response::of(request.id, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A network with nothing in it.
pub fn wanted(instance: &str) -> NetAttach {
    NetAttach {
        instance: instance.parse().unwrap(),
        uid: VM_UID,
        allow: Vec::new(),
        publish: Vec::new(),
        credentials: Vec::new(),
        budget: Budget::default(),
        works_for: None,
        trusted: Vec::new(),
        seen: Default::default(),
    }
}

/// Reads up to the answer; notifications before it are skipped.
pub fn result(connection: &mut Connection) -> Result<Value, RpcError> {
    loop {
        let line = connection.read_line().unwrap().expect("an answer");
        if let Incoming::Response(response) = serde_json::from_str(&line).unwrap() {
            return match response.error {
                Some(error) => Err(error),
                None => Ok(response.result.unwrap()),
            };
        }
    }
}

/// A network, as cage holds it.
pub struct Lease {
    pub connection: Connection,
    pub namespace: OwnedFd,
    pub attached: Attached,
}

impl Lease {
    pub fn namespace_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// Runs a program in the VM's namespace as the VMM: the jail's user, no capabilities.
    pub fn as_vmm(&self, command: &str) -> Output {
        let net = format!("--net={}", self.namespace_path());
        let drop = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--clear-groups"];
        let user = [format!("--reuid={VM_UID}"), format!("--regid={VM_UID}")];
        Command::new("timeout")
            .args(["60", "nsenter", &net, "setpriv"])
            .args(user)
            .args(drop)
            .args(["bash", "-euc", command])
            .output()
            .unwrap()
    }

    pub fn as_root(&self, command: &str) -> Output {
        let net = format!("--net={}", self.namespace_path());
        Command::new("timeout").args(["60", "nsenter", &net, "bash", "-euc", command]).output().unwrap()
    }
}

/// A machine behind a TAP.
pub struct Guest {
    name: String,
    dir: PathBuf,
    vm: Option<Running>,
}

impl Guest {
    /// Runs a shell line in the guest; `$?` is part of the output.
    pub fn run(&self, command: &str) -> Output {
        let resolv = self.dir.join("resolv.conf");
        let script =
            format!("mount --make-rprivate /; mount --bind {} /etc/resolv.conf; {command}", resolv.display());
        Command::new("timeout")
            .args(["300", "ip", "netns", "exec", &self.name, "unshare", "-m", "bash", "-uc", &script])
            .output()
            .unwrap()
    }

    /// Standard output and error of a shell line.
    pub fn text(&self, command: &str) -> String {
        let output = self.run(command);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// Runs Python with `socket`, `ssl`, `time` at hand.
    pub fn python(&self, code: &str) -> String {
        let file = self.dir.join(format!("guest{}.py", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::write(
            &file,
            format!("import socket, ssl, struct, sys, time\nsocket.setdefaulttimeout(60)\n{code}\n"),
        )
        .unwrap();
        self.text(&format!("python3 {}", file.display()))
    }

    pub fn spawn_python(&self, code: &str) -> Child {
        let file = self.dir.join(format!("guest{}.py", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::write(&file, format!("import os, socket, sys, time\n{code}\n")).unwrap();
        let resolv = self.dir.join("resolv.conf");
        let script = format!(
            "mount --make-rprivate /; mount --bind {} /etc/resolv.conf; exec python3 {}",
            resolv.display(),
            file.display()
        );
        Command::new("timeout")
            .args(["300", "ip", "netns", "exec", &self.name, "unshare", "-m", "bash", "-euc", &script])
            .env("GO", self.dir.join("go"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.vm = None;
        end_namespace(&self.name);
    }
}
