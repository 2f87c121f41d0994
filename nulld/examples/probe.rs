//! A service for nulld's tests that does what its first argument says: behaves, crashes, ignores SIGTERM, forks orphans, or
//! shows what it was started with.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use abi::door::{Call, Handler, Inherited, Outcome};
use abi::identity::Service;
use abi::rpc::{Request, RpcError};
use serde_json::json;

struct Echo;

impl Handler for Echo {
    fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
        if call.request.method == "ledger.append" {
            let append: abi::ledger::Append = call.request.params()?;
            println!("event {}", serde_json::to_string(&append.event).unwrap());
            let digest = "0".repeat(64);
            return Ok(Outcome::Result(json!({ "seq": 0, "digest": format!("sha256:{digest}") })));
        }
        Ok(Outcome::Result(json!({
            "caller": call.caller.to_string(),
            "method": call.request.method,
            "pid": std::process::id(),
            "seen": std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
            "fds": fds(),
            "host": std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
            "env": std::env::vars().collect::<Vec<_>>(),
            "cgroup": std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        })))
    }
}

fn fds() -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

fn service() -> Service {
    let name = std::env::var("NULLBOX_SERVICE").unwrap();
    abi::node::known_service(&name).unwrap_or(Service::Cage)
}

fn main() {
    let mode = std::env::args().nth(1).unwrap_or_default();
    println!("probe {mode} starts with descriptors {}", fds().join(","));
    match mode.as_str() {
        "good" => {
            // An evil line among the good ones.
            println!("nullbox: ready (forged)\x1b[2J");
            serve();
        }
        "crash" => std::process::exit(3),
        "crash-ready" => {
            announce();
            std::thread::sleep(Duration::from_millis(300));
            std::process::exit(4);
        }
        "once" => {
            announce();
            std::process::exit(0);
        }
        "silent" => wait(),
        "slow" => {
            std::thread::sleep(Duration::from_millis(1_500));
            serve();
        }
        // Ready, and then no sign of life.
        "hung" => {
            announce();
            wait();
        }
        "chatty" => chat(),
        "flaky" => flicker(),
        "call" => {
            announce();
            for method in std::env::args().skip(2) {
                let mut door = abi::wire::Connection::connect(abi::node::CONTROL_SOCKET).unwrap();
                door.write_line(&Request::call(1, &method, serde_json::Value::Null)).unwrap();
                let answer = door.read_line().unwrap().unwrap_or_default();
                for piece in answer.as_bytes().chunks(200) {
                    println!("{}", String::from_utf8_lossy(piece));
                }
            }
            wait();
        }
        other => misbehave(other),
    }
}

fn misbehave(mode: &str) {
    match mode {
        "stubborn" => {
            // A shell ignores SIGTERM for itself and its children, without unsafe code here.
            ignore_sigterm();
        }
        "stubborn-child" => {
            announce();
            wait();
        }
        "orphans" => {
            // Each shell leaves a hundred behind, which end all at once when the last one is there.
            let count: u32 = std::env::args().nth(2).map_or(50, |count| count.parse().unwrap());
            let fork = "n=0; while [ $n -lt 100 ]; do (read x < /tmp/gate) & n=$((n + 1)); done";
            Command::new("/usr/bin/mkfifo").arg("/tmp/gate").status().unwrap();
            for _ in 0..count.div_ceil(100) {
                Command::new("/bin/sh").args(["-c", fork]).status().unwrap();
            }
            println!("{count} orphans wait");
            // Again and again: one that comes late finds the gate closed.
            std::thread::spawn(|| {
                loop {
                    std::fs::write("/tmp/gate", "").unwrap();
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            serve();
        }
        "leftover" => {
            // Stays in the cgroup, in a session of its own, when its parent dies.
            Command::new("/usr/bin/setsid").args(["/bin/sleep", "1000"]).spawn().unwrap();
            announce();
            std::thread::sleep(Duration::from_millis(200));
            std::process::exit(1);
        }
        "flood" => {
            let noise = "x".repeat(2000);
            for n in 0..20_000 {
                println!("{n} {noise}");
            }
            serve();
        }
        other => {
            eprintln!("unknown mode `{other}`");
            std::process::exit(9);
        }
    }
}

/// Says much, most of it not to be understood, and what it is at the end.
fn chat() {
    let junk = "n=0; while [ $n -lt 1000 ]; do echo \"$0 $n\" >&4; echo \"status number $n\" >&4; n=$((n + 1)); done";
    Command::new("/bin/sh").args(["-c", junk, &"x".repeat(60)]).status().unwrap();
    let inherited = Inherited::take().unwrap();
    inherited.notify.send(&abi::notice::Notice::Ready).unwrap();
    loop {
        inherited.notify.status("at rest");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Ready or not, for a while or not, ending well or badly, as its pid falls.
fn flicker() {
    let dice = std::process::id().wrapping_mul(2_654_435_761) >> 8;
    std::thread::sleep(Duration::from_millis(u64::from(dice % 5) * 20));
    if dice & 0x100 != 0 {
        std::process::exit(5);
    }
    announce();
    std::thread::sleep(Duration::from_millis(u64::from(dice % 7) * 50));
    std::process::exit(if dice & 0x200 != 0 { 0 } else { 6 });
}

fn serve() {
    let inherited = Inherited::take().unwrap();
    assert_eq!(inherited.door.as_raw_fd(), 3);
    abi::door::serve(service(), inherited, Arc::new(Echo)).unwrap();
}

fn announce() {
    let inherited = Inherited::take().unwrap();
    inherited.notify.send(&abi::notice::Notice::Ready).unwrap();
    std::mem::forget(inherited);
}

fn wait() {
    let (mut reader, _writer) = std::io::pipe().unwrap();
    let _ = reader.read(&mut [0]);
}

fn ignore_sigterm() {
    use std::os::unix::process::CommandExt;
    let own = std::env::current_exe().unwrap();
    let error = Command::new("/bin/sh")
        .args(["-c", "trap '' TERM; exec \"$0\" stubborn-child"])
        .arg(own)
        .env("NULLBOX_SERVICE", std::env::var("NULLBOX_SERVICE").unwrap())
        .exec();
    panic!("{error}");
}
