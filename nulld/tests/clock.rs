//! The clock service against time servers of all kinds, in a network namespace where nobody else is.
//!
//! The wall clock belongs to the whole machine, also in namespaces, so the service runs here without CAP_SYS_TIME: what it would
//! do stands in what it says. Setting the clock is tested on a booted node. Needs root, util-linux and, for the lease, dnsmasq.

mod node;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use abi::notice::Notice;
use abi::rpc::{Request, Response};
use abi::wire::Connection;
use node::Node;
use serde_json::{Value, json};

/// What a server does with a question.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Its clock is so many seconds ahead of this machine's.
    Ahead(f64),
    Silent,
    /// Answers to another question.
    WrongOrigin,
    /// Guesses at the question's number first, often, and then answers.
    GuessesFirst,
    Kiss(&'static [u8; 4]),
    Unsynchronised,
    /// Its answer comes after nobody waits for it any more.
    Late,
}

struct Server {
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start(address: &str, kind: Kind) -> Server {
        let socket = UdpSocket::bind((address, 123)).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        std::thread::spawn(move || {
            let mut question = [0u8; 128];
            while let Ok((read, from)) = socket.recv_from(&mut question) {
                count.fetch_add(1, Ordering::Relaxed);
                assert_eq!((read, question[0]), (48, 0x23), "version 4, client, nothing else");
                assert!(question[1..40].iter().all(|byte| *byte == 0), "nothing of the node in it");
                let send = |message: &[u8]| drop(socket.send_to(message, from));
                match kind {
                    Kind::Silent => {}
                    Kind::Ahead(seconds) => send(&answer(&question, seconds)),
                    Kind::WrongOrigin => {
                        let mut message = answer(&question, 5000.0);
                        message[31] ^= 1;
                        send(&message);
                    }
                    Kind::GuessesFirst => {
                        for guess in 0..10u64 {
                            let mut message = answer(&question, 5000.0);
                            message[24..32].copy_from_slice(&guess.to_be_bytes());
                            send(&message);
                        }
                        send(&answer(&question, 7.0));
                    }
                    Kind::Kiss(code) => {
                        let mut message = answer(&question, 5000.0);
                        message[1] = 0;
                        message[12..16].copy_from_slice(code);
                        send(&message);
                    }
                    Kind::Unsynchronised => {
                        let mut message = answer(&question, 5000.0);
                        message[0] |= 0xc0;
                        send(&message);
                    }
                    Kind::Late => {
                        let message = answer(&question, 5000.0);
                        std::thread::sleep(Duration::from_secs(2));
                        send(&message);
                    }
                }
            }
        });
        Server { asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A good answer of a server whose clock is so many seconds ahead.
fn answer(question: &[u8], ahead_s: f64) -> [u8; 48] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() + ahead_s + 2_208_988_800.0;
    let time = ((now.trunc() as u64) << 32 | (now.fract() * 4_294_967_296.0) as u64).to_be_bytes();
    let mut message = [0u8; 48];
    message[0] = 0x24;
    message[1] = 2;
    message[11] = 100;
    message[24..32].copy_from_slice(&question[40..48]);
    message[32..40].copy_from_slice(&time);
    message[40..48].copy_from_slice(&time);
    message
}

/// Runs the test again as root of a network and a mount namespace of its own; false: that has been done.
fn in_namespace(test: &str) -> bool {
    if std::env::var_os("NULLD_TEST_NAMESPACE").is_none() {
        let output = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("NULLD_TEST_NAMESPACE", "1")
            .output()
            .expect("unshare of util-linux, as root");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        return false;
    }
    let ready = Command::new("sh")
        .args(["-c", "ip link set lo up && mount -t tmpfs tmpfs /run && mkdir -p /run/nullbox/uplink"])
        .status();
    assert!(ready.unwrap().success());
    true
}

/// `nulld clock` as nulld starts it, less the capability to set the clock.
struct Service {
    child: Child,
    says: Arc<Mutex<Vec<Notice>>>,
    _kept: Vec<OwnedFd>,
}

impl Service {
    fn start(servers: &[&str]) -> Service {
        let config = json!({ "clock": { "servers": servers } });
        fs::write("/run/nullbox/node.json", config.to_string()).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_nulld"), "/run/nulld").unwrap();
        let (notices, far) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (door, door_far) = UnixStream::pair().unwrap();
        let peers = UnixListener::bind("/run/nullbox/clock.sock").unwrap();
        let passed = [door_far.as_fd(), far.as_fd(), peers.as_fd()]
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 20).unwrap());
        for fd in &passed {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        }
        let [door_fd, notify_fd, peers_fd] = passed.each_ref().map(AsRawFd::as_raw_fd);
        let script = format!(
            "exec setpriv --reuid=205 --regid=205 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
             /run/nulld clock 3<&{door_fd} 4>&{notify_fd} 5<&{peers_fd} {door_fd}<&- {notify_fd}<&- {peers_fd}<&-"
        );
        let log = File::create("/run/log").unwrap();
        let child = Command::new("bash")
            .args(["-c", &script])
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        drop((passed, far));
        let says: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let kept = says.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(File::from(notices)).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(Notice::parse(&line).unwrap_or_else(|| panic!("{line:?}")));
            }
        });
        Service { child, says, _kept: vec![door.into(), peers.into()] }
    }

    /// Waits for a status that holds this text.
    fn until(&self, text: &str, seconds: u64) -> String {
        let begin = Instant::now();
        loop {
            let all = self.statuses();
            if let Some(found) = all.iter().find(|status| status.contains(text)) {
                return found.clone();
            }
            let log = fs::read_to_string("/run/log").unwrap_or_default();
            assert!(begin.elapsed() < Duration::from_secs(seconds), "no {text:?} in {all:#?}\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn statuses(&self) -> Vec<String> {
        let said = self.says.lock().unwrap();
        said.iter()
            .filter_map(|n| if let Notice::Status(text) = n { Some(text.clone()) } else { None })
            .collect()
    }

    fn stop(mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
        fs::remove_file("/run/nullbox/clock.sock").unwrap();
    }
}

/// The offset in a status: `... says +12.3 ms, but ...`.
fn seconds(said: &str) -> f64 {
    let (number, rest) = said.split_once(" says ").unwrap().1.split_once(' ').unwrap();
    let number: f64 = number.parse().unwrap();
    if rest.starts_with("ms,") { number / 1000.0 } else { number }
}

/// Wall clock less time since the machine started: changes only when somebody sets the clock.
fn ahead_ms() -> i64 {
    use rustix::time::{ClockId, clock_gettime};
    let ms = |id| {
        let time = clock_gettime(id);
        time.tv_sec * 1000 + time.tv_nsec / 1_000_000
    };
    ms(ClockId::Realtime) - ms(ClockId::Monotonic)
}

#[test]
fn a_server_is_believed_within_its_word_and_the_clock_is_not_touched_without_the_right_to() {
    if !in_namespace("a_server_is_believed_within_its_word_and_the_clock_is_not_touched_without_the_right_to")
    {
        return;
    }
    let before = ahead_ms();
    let _good = Server::start("127.0.0.1", Kind::Ahead(0.0));
    let _ahead = Server::start("127.0.0.2", Kind::Ahead(3600.0));
    let _guesses = Server::start("127.0.0.3", Kind::GuessesFirst);
    for (server, ahead_s) in [("127.0.0.1", 0.0), ("127.0.0.2", 3600.0), ("127.0.0.3", 7.0)] {
        let service = Service::start(&[server]);
        let said = service.until(&format!("{server} says "), 10);
        // Half of the way there and back cannot be known; a loaded machine is slow on one of them.
        assert!((seconds(&said) - ahead_s).abs() < 1.0, "{said}");
        assert!(
            said.ends_with(", but the clock cannot be set: Operation not permitted (os error 1)"),
            "{said}"
        );
        assert!(said.starts_with("not synchronised: "), "{said}");
        let first = service.says.lock().unwrap()[0].clone();
        assert_eq!(first, Notice::Ready, "nobody waits for the time");
        service.stop();
    }
    assert!((ahead_ms() - before).abs() < 100, "this machine's clock was moved");
}

#[test]
fn what_is_no_good_answer_is_none() {
    if !in_namespace("what_is_no_good_answer_is_none") {
        return;
    }
    let kinds = [
        (Kind::Silent, "127.0.0.1: no answer"),
        (Kind::WrongOrigin, "127.0.0.2: no answer"),
        (Kind::Late, "127.0.0.3: no answer"),
        (Kind::Unsynchronised, "127.0.0.4: the server's own clock is not synchronised"),
        (Kind::Kiss(b"DENY"), "127.0.0.5: the server refuses to serve this node"),
    ];
    let servers: Vec<Server> = kinds
        .iter()
        .enumerate()
        .map(|(n, (kind, _))| Server::start(&format!("127.0.0.{}", n + 1), *kind))
        .collect();
    for (n, (_, says)) in kinds.iter().enumerate() {
        let service = Service::start(&[&format!("127.0.0.{}", n + 1)]);
        let said = service.until("no time server answers", 15);
        assert!(said.contains(says), "{said}");
        if n == 4 {
            // Rounds go on; a server that refused is not asked again.
            std::thread::sleep(Duration::from_secs(20));
            assert_eq!(servers[4].asked(), 1);
        }
        service.stop();
    }
    let nobody = Service::start(&["127.0.0.9"]);
    nobody.until("127.0.0.9: Connection refused", 10);
    nobody.stop();
}

#[test]
fn most_of_several_servers_are_believed_and_two_that_differ_are_not() {
    if !in_namespace("most_of_several_servers_are_believed_and_two_that_differ_are_not") {
        return;
    }
    let _servers: Vec<Server> = [Kind::Ahead(0.0), Kind::Ahead(5000.0), Kind::Ahead(0.0), Kind::Silent]
        .into_iter()
        .enumerate()
        .map(|(n, kind)| Server::start(&format!("127.0.0.{}", n + 1), kind))
        .collect();
    let three = Service::start(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let said = three.until(" says ", 10);
    assert!(seconds(&said).abs() < 1.0 && !said.contains("127.0.0.2"), "the liar was believed: {said}");
    three.stop();
    // One that is silent changes nothing.
    let four = Service::start(&["127.0.0.4", "127.0.0.3", "127.0.0.2", "127.0.0.1"]);
    let said = four.until(" says ", 10);
    assert!(seconds(&said).abs() < 1.0 && !said.contains("127.0.0.2"), "{said}");
    four.stop();
    let two = Service::start(&["127.0.0.1", "127.0.0.2"]);
    two.until("time servers contradict each other: 1 of 2 agree", 10);
    two.stop();
}

#[test]
fn names_are_asked_of_egress_and_without_it_tried_again() {
    if !in_namespace("names_are_asked_of_egress_and_without_it_tried_again") {
        return;
    }
    let _server = Server::start("127.0.0.1", Kind::Ahead(60.0));
    let service = Service::start(&["time.test"]);
    service.until("time.test: egress cannot be asked", 10);
    let listener = UnixListener::bind("/run/nullbox/egress.sock").unwrap();
    fs::set_permissions("/run/nullbox/egress.sock", PermissionsExt::from_mode(0o666)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut connection = Connection::new(stream);
            let request = Request::parse(&connection.read_line().unwrap().unwrap()).unwrap();
            assert_eq!(
                (request.method.as_str(), &request.params["name"]),
                ("net.resolve", &json!("time.test"))
            );
            let result = json!({ "addresses": ["127.0.0.1", "127.0.0.2"] });
            connection.write_line(&Response::of(request.id, Ok(result))).unwrap();
        }
    });
    let said = service.until("time.test says ", 30);
    assert!((seconds(&said) - 60.0).abs() < 1.0, "{said}");
    let alive = service.says.lock().unwrap().iter().filter(|notice| **notice == Notice::Alive).count();
    assert!(alive > 0);
    service.stop();
}

#[test]
fn the_leases_servers_are_used_as_soon_as_there_is_a_lease() {
    if !in_namespace("the_leases_servers_are_used_as_soon_as_there_is_a_lease") {
        return;
    }
    let server = Server::start("127.0.0.1", Kind::Ahead(60.0));
    let service = Service::start(&[]);
    service.until("the machine's own clock", 5);
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(server.asked(), 0);
    let uplink = json!({ "interface": "lo", "address": "127.0.0.1/8", "dns": [], "ntp": ["127.0.0.1"] });
    fs::write("/run/nullbox/uplink/new", uplink.to_string()).unwrap();
    fs::rename("/run/nullbox/uplink/new", "/run/nullbox/uplink/uplink.json").unwrap();
    let said = service.until("127.0.0.1 says ", 10);
    assert!((seconds(&said) - 60.0).abs() < 1.0, "{said}");
    service.stop();
}

/// A DHCP server that names a time server which is not there.
struct Lease(Child);

impl Lease {
    fn start(node: &Node) -> Lease {
        let script = "until ip link show srv >/dev/null 2>&1; do sleep 0.02; done; ip link set lo up; \
            ip addr add 192.0.2.1/24 dev srv; ip link set srv up; \
            exec dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=srv --bind-interfaces \
            --dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m --dhcp-option=42,192.0.2.1,192.0.2.2 \
            --leasefile-ro --user=root --pid-file= --log-facility=/dev/null --no-ping";
        let lease =
            Lease(Command::new("unshare").args(["--net", "--", "/bin/sh", "-c", script]).spawn().unwrap());
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        node.until("namespace of the server", 5, |_| {
            let its = fs::read_link(format!("/proc/{}/ns/net", lease.0.id())).ok()?;
            (its != own).then_some(())
        });
        let cable = Command::new("ip")
            .args(["link", "add", "srv", "netns", &lease.0.id().to_string(), "type", "veth"])
            .args(["peer", "name", "eth0", "netns", &node.pid.to_string()])
            .status();
        assert!(cable.unwrap().success());
        lease
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have failed to start
        let _ = self.0.wait();
    }
}

#[test]
fn on_a_node_the_service_has_its_servers_from_the_lease_and_holds_no_boot_up() {
    let node = Node::start(
        "[network]\nmode = \"dhcp\"\ninterface = \"eth0\"\n[services.cage]\npath = \"/system/bin/probe\"\n\
         args = [\"good\"]\nunconfined = true\n",
    );
    let _lease = Lease::start(&node);
    node.wait_console("\nnullbox: ready", 20);
    let uplink: Value =
        serde_json::from_slice(&fs::read(node.path("/run/nullbox/uplink/uplink.json")).unwrap()).unwrap();
    assert_eq!(uplink["ntp"], json!(["192.0.2.1", "192.0.2.2"]));
    let clock = node.until("the service's word", 20, |node| {
        let clock = node.service("clock");
        clock.says.contains("192.0.2.1: Connection refused").then_some(clock)
    });
    assert!(clock.says.starts_with("not synchronised: no time server answers: "), "{clock:?}");
    assert_eq!((clock.state.as_str(), clock.restarts), ("ready", 0));
    let seen = fs::read_to_string(node.path(&format!("/proc/{}/status", clock.pid.unwrap()))).unwrap();
    assert!(
        seen.contains("Uid:\t205\t205\t205\t205") && seen.contains("CapBnd:\t0000000002000000"),
        "{seen}"
    );
    let shown = node.status().clock;
    assert!(shown.contains("no time server answers"), "{shown}");
}
