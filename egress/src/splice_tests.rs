//! Lanes between real sockets.

use super::*;
use crate::agent::Node;
use crate::policy::Policy;
use crate::receipts::Receipts;
use crate::settings::Settings;
use abi::network::Budget;
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::task::Poll;
use tokio::time::timeout;

const BYTES: usize = 12 * 1024 * 1024;
/// More than all of it, whatever the kernel counts besides.
const ROOM: usize = 64 * 1024 * 1024;

fn agent(dir: &std::path::Path) -> Arc<Agent> {
    std::fs::write(dir.join("node.json"), "{}").unwrap();
    let settings = Settings::read(dir.join("node.json"), dir.join("uplink.json")).unwrap();
    let node = Node::new(settings, Receipts::of_node().unwrap(), dir, &dir.join("no-tpm")).unwrap();
    let instance = "a.1".parse().unwrap();
    let agent = Agent::new(instance, Policy::default(), Vec::new(), Vec::new(), Arc::new(node));
    std::mem::forget(agent.meter.begin(Budget::default()).unwrap()); // attached for good: else no byte passes
    Arc::new(agent)
}

/// Two ends of a connection; all bytes fit between them.
fn pair() -> (std::net::TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    set_socket_recv_buffer_size_force(&listener, ROOM).unwrap();
    let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    for socket in [&far, &near] {
        set_socket_recv_buffer_size_force(socket, ROOM).unwrap();
        set_socket_send_buffer_size_force(socket, ROOM).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    (far, TcpStream::from_std(near).unwrap())
}

/// Carries bytes that all wait to one who has room for them; the most that one poll moved.
async fn most_at_once(agent: &Arc<Agent>, guard: Guard) -> u64 {
    let (mut guest, client) = pair();
    let (server, _host) = pair();
    let server = TcpStream::from_std(server).unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: {BYTES}\r\n\r\n");
    guest.write_all(head.as_bytes()).unwrap();
    guest.write_all(&vec![0; BYTES]).unwrap();
    let (flow, whole) = (Flow::default(), (head.len() + BYTES) as u64);
    let first = First { bytes: Vec::new(), held: agent.undecided.held() };
    let mut running = pin!(run(agent, &flow, &client, server, Some((guard, first))));
    let (mut before, mut most) = (0, 0);
    let turns = poll_fn(|cx| {
        let ended = running.as_mut().poll(cx);
        let now = flow.bytes_out.load(Ordering::Relaxed);
        (most, before) = (most.max(now - before), now);
        assert!(ended.is_pending(), "{ended:?}");
        if now < whole { Poll::Pending } else { Poll::Ready(()) }
    });
    timeout(Duration::from_secs(20), turns).await.unwrap();
    most
}

#[tokio::test]
async fn a_lane_whose_sockets_are_always_ready_leaves_others_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let copied = most_at_once(&agent, Guard::new("api.test", 80, false)).await;
    assert!(copied <= 4 * 1024 * 1024, "{copied} bytes of HTTP at once");
    let open = || {
        let mut guard = Guard::new("api.test", 9000, false);
        guard.push(b"SSH-", &mut Vec::new()).unwrap();
        guard.push(b"2.0\r\n", &mut Vec::new()).unwrap();
        assert!(guard.is_open());
        guard
    };
    let spliced = most_at_once(&agent, open()).await;
    assert!(spliced <= 10 * 1024 * 1024, "{spliced} bytes through a pipe at once");
    let _all: Vec<_> = std::iter::from_fn(|| agent.pipe_slot()).collect();
    let copied = most_at_once(&agent, open()).await;
    assert!(copied <= 4 * 1024 * 1024, "{copied} bytes copied at once");
}
