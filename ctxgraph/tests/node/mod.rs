//! Runs the real service with the descriptors nulld gives it, and talks to it as nulld's door would.

#![allow(dead_code, reason = "each test file uses its part")]

use abi::control::MemoryAttach;
use abi::door::{Handoff, hand_over};
use abi::identity::{Caller, Role, Service};
use abi::rpc::{Incoming, Request, RpcError};
use abi::wire::Connection;
use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running ctxgraph.
pub struct Node {
    pub child: Child,
    door: OwnedFd,
    peers: PathBuf,
}

impl Node {
    /// Starts the service on a state directory and waits until it is ready.
    pub fn start(directory: &Path) -> Node {
        Node::try_start(directory).expect("ready")
    }

    /// None when it ended before it was ready.
    pub fn try_start(directory: &Path) -> Option<Node> {
        Node::start_with(directory, &[])
    }

    /// With arguments of its own.
    pub fn start_with(directory: &Path, arguments: &[&str]) -> Option<Node> {
        let (door, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (mut ready, notify) = std::io::pipe().unwrap();
        let peers = directory.join(format!("peers-{:?}.sock", std::thread::current().id()));
        let _ = std::fs::remove_file(&peers);
        let listener = UnixListener::bind(&peers).unwrap();
        let mapping = |fd: OwnedFd, child_fd| FdMapping { parent_fd: fd, child_fd };
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctxgraph"));
        command
            .arg("--state")
            .arg(directory.join("state"))
            .args(arguments)
            // One heap for all threads, as the node's libc has it: what is resident is what is held.
            .env("MALLOC_ARENA_MAX", "1")
            .stderr(Stdio::null())
            .fd_mappings(vec![mapping(theirs, 3), mapping(notify.into(), 4), mapping(listener.into(), 5)])
            .unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut byte = [0];
        if ready.read(&mut byte).unwrap() == 0 {
            child.wait().unwrap();
            return None;
        }
        Some(Node { child, door, peers })
    }

    /// A connection through the door.
    pub fn connect(&self, caller: Caller) -> Connection {
        let (near, far) = UnixStream::pair().unwrap();
        hand_over(self.door.as_fd(), &Handoff { caller }, far.as_fd()).unwrap();
        near.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Connection::new(near)
    }

    pub fn operator(&self) -> Connection {
        self.connect(Caller::Operator { name: "alice".into(), key: "k".into(), role: Role::Admin })
    }

    pub fn service(&self, service: Service) -> Connection {
        self.connect(Caller::Service { service })
    }

    pub fn peers(&self) -> &Path {
        &self.peers
    }

    /// A memory port for an agent that shares nothing: the lease, and the socket's path.
    pub fn attach(&self, instance: &str, directory: &Path) -> (Lease, PathBuf) {
        self.attach_as(
            MemoryAttach {
                instance: instance.parse().unwrap(),
                grants: Default::default(),
                shares: Default::default(),
                exposure: Default::default(),
                inherits: false,
            },
            directory,
        )
    }

    /// A memory port as cage asks for it, with a cage that notes each rise.
    pub fn attach_as(&self, want: MemoryAttach, directory: &Path) -> (Lease, PathBuf) {
        let (lease, path) = self.attach_with(want, directory);
        (Lease::noting(lease), path)
    }

    /// The same with a cage that says nothing by itself.
    pub fn attach_with(&self, want: MemoryAttach, directory: &Path) -> (Connection, PathBuf) {
        let path = directory.join(format!("{}.sock", want.instance));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let mut lease = self.connect(Caller::Local { uid: 0 });
        let request = Request::call(1, "memory.attach", serde_json::to_value(want).unwrap());
        lease.write_line_with_fds(&request, &[listener.as_fd()]).unwrap();
        answer(&mut lease).unwrap();
        (lease, path)
    }

    /// The service ends without a chance to tidy up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// nulld closes the door.
    pub fn stop(mut self) {
        drop(self.door);
        assert!(self.child.wait().unwrap().success());
    }
}

/// A lease whose rises are noted; dropped, it ends.
pub struct Lease(UnixStream);

impl Lease {
    fn noting(mut lease: Connection) -> Lease {
        let held = lease.stream().try_clone().unwrap();
        lease.set_timeout(None).unwrap();
        std::thread::spawn(move || {
            while let Ok(Some(line)) = lease.read_line() {
                let note = Request::parse(&line).unwrap();
                assert_eq!(note.method, "exposure");
                let noted = json!({ "number": note.params["number"] });
                let _ = lease.write_line(&Request::notification("noted", noted)); // the lease may be over
            }
        });
        Lease(held)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both); // it may be over
    }
}

/// An agent's connection.
pub fn agent(path: &Path) -> Connection {
    let connection = Connection::connect(path).unwrap();
    connection.set_timeout(Some(Duration::from_secs(60))).unwrap();
    connection
}

/// The answer to the call under way; notifications before it are an error.
pub fn answer(connection: &mut Connection) -> Result<Value, RpcError> {
    try_answer(connection).expect("an answer")
}

/// None when the connection ended first.
pub fn try_answer(connection: &mut Connection) -> Option<Result<Value, RpcError>> {
    let line = connection.read_line().ok()??;
    match serde_json::from_str(&line).unwrap() {
        Incoming::Response(response) => Some(match response.error {
            Some(error) => Err(error),
            None => Ok(response.result.unwrap_or(Value::Null)),
        }),
        Incoming::Notification(note) => panic!("{note:?}"),
    }
}

/// One call.
pub fn call(connection: &mut Connection, method: &str, params: Value) -> Result<Value, RpcError> {
    connection.write_line(&Request::call(1, method, params)).unwrap();
    answer(connection)
}

/// One call that may find the service gone.
pub fn try_call(connection: &mut Connection, method: &str, params: Value) -> Option<Result<Value, RpcError>> {
    connection.write_line(&Request::call(1, method, params)).ok()?;
    try_answer(connection)
}

/// Parameters of `ledger.append`.
pub fn append(n: u64, durable: bool) -> Value {
    json!({ "event": { "event": "call_made", "by": format!("admin {n}"), "method": "agent.list" }, "durable": durable })
}

/// A number from the clock, printed, for tests that choose by chance.
pub fn random() -> impl FnMut(u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("NULLBOX_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let mut state = seed.unwrap_or(now.as_nanos() as u64);
    println!("NULLBOX_TEST_SEED={state}");
    state |= 1;
    move |bound| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}
