//! How a service meets its callers: the connections nulld hands over, and those of other services.
//!
//! nulld starts a service with three descriptors: [`DOOR_FD`], a SEQPACKET socket on which each message is a
//! [`Handoff`] with one connection beside it; [`NOTIFY_FD`], a pipe for its notices ([`crate::notice`]); [`PEERS_FD`], the listening socket of [`Service::socket_path`]. [`serve`] runs both.
//!
//! Must hold: a caller's identity comes from nulld (which had it from SO_PEERCRED or nullgate) or from SO_PEERCRED,
//! never from the request; each call is checked against [`control::METHODS`] again, here.
//! Must never: read from a connection before its identity is known.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::control::{self, Audience};
use crate::identity::{Caller, Service};
use crate::notice::{Notice, Notifier};
use crate::rpc::{Code, Request, Response, RpcError};
use crate::wire::{Connection, WireError};
use crate::{limits, log, sys, wire};

/// SEQPACKET socket on which nulld hands over connections.
pub const DOOR_FD: i32 = 3;
/// Pipe for notices: ready, alive, status.
pub const NOTIFY_FD: i32 = 4;
/// Listening socket for other services.
pub const PEERS_FD: i32 = 5;

/// The message beside a connection that is handed over. The connection's first line is still unread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handoff {
    pub caller: Caller,
}

/// The first line nullgate writes on each connection to nulld: who the TLS key behind it belongs to. nulld takes it only
/// from nullgate's uid, only as the first line, only with a [`Caller::Operator`], and consumes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vouch {
    pub vouch: Caller,
}

/// Sends a connection to the service behind `door`.
pub fn hand_over(door: BorrowedFd<'_>, handoff: &Handoff, connection: BorrowedFd<'_>) -> io::Result<()> {
    let message = serde_json::to_vec(handoff)?;
    wire::send(door, &message, &[connection]).map(|_| ())
}

/// Takes the next connection from nulld; `None` when nulld has gone.
pub fn take_over(door: BorrowedFd<'_>) -> io::Result<Option<(Handoff, UnixStream)>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut message = [0u8; 2048];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut message)];
        match rustix::net::recvmsg(door, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            other => break other?,
        }
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = part {
            fds.extend(passed);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let handoff = serde_json::from_slice(message.get(..received.bytes).unwrap_or_default())?;
    match fds.pop() {
        Some(fd) => Ok(Some((handoff, UnixStream::from(fd)))),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "a hand-over without a connection")),
    }
}

/// What a service inherited from nulld.
#[derive(Debug)]
pub struct Inherited {
    pub door: OwnedFd,
    pub notify: Notifier,
    pub peers: UnixListener,
}

impl Inherited {
    /// Takes the three descriptors. Call once, first thing in `main`; the error names what is missing. From then on the process
    /// cannot be traced or dumped by others of its user; exec(2) had undone what `nulld launch` could set (prctl(2)).
    pub fn take() -> io::Result<Inherited> {
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        let missing = |what: &str, number: i32| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("descriptor {number} ({what}) is not open: a service is started by nulld"),
            )
        };
        let door = sys::take_inherited(DOOR_FD).ok_or_else(|| missing("door", DOOR_FD))?;
        let notify = sys::take_inherited(NOTIFY_FD).ok_or_else(|| missing("notify", NOTIFY_FD))?;
        let peers = sys::take_inherited(PEERS_FD).ok_or_else(|| missing("peers", PEERS_FD))?;
        for fd in [door.as_fd(), notify.as_fd(), peers.as_fd()] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(Inherited { door, notify: Notifier::new(notify)?, peers: peers.into() })
    }
}

/// One call being answered.
#[derive(Debug)]
pub struct Call<'a> {
    pub caller: &'a Caller,
    pub request: &'a Request,
    pub connection: &'a mut Connection,
}

impl Call<'_> {
    /// Sends a notification that belongs to this call.
    pub fn notify(&mut self, method: &str, params: Value) -> Result<(), WireError> {
        self.connection.write_line(&Request::notification(method, params))
    }

    /// Sends the result now, for calls whose connection lives on (a lease). Return [`Outcome::Answered`] after.
    pub fn answer(&mut self, result: Value, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        self.connection.write_line_with_fds(&Response::of(self.request.id, Ok(result)), fds)
    }
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
    /// Answer with this; the connection may carry a further request.
    Result(Value),
    /// The handler has answered; the connection is closed now.
    Answered,
}

/// A service's methods.
pub trait Handler: Send + Sync + 'static {
    /// Serves one call. Runs on a thread of its own and may take its time; who may call was checked before.
    fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError>;

    /// Whether it still does its work; asked every [`limits::SERVICE_ALIVE_MS`] on the thread that serves the door. A false
    /// answer, or none, is not passed on, and nulld restarts the service when its `watchdog_secs_max` is over.
    fn is_alive(&self) -> bool {
        true
    }

    /// What an operator should see of it at a glance; asked on the same thread, at most once in [`STATUS_MS_MIN`], and told
    /// nulld when it changed. It may hold texts from elsewhere: nulld escapes and cuts what it shows.
    fn status(&self) -> Option<String> {
        None
    }
}

/// Shortest pause between two questions for a service's status.
const STATUS_MS_MIN: Duration = Duration::from_secs(1);

/// Tells nulld a service's status when it changed.
struct Teller<'a> {
    notify: &'a Notifier,
    told: Option<String>,
    asked: Option<Instant>,
}

impl Teller<'_> {
    fn tell(&mut self, handler: &dyn Handler) {
        if self.asked.is_some_and(|asked| asked.elapsed() < STATUS_MS_MIN) {
            return;
        }
        self.asked = Some(Instant::now());
        let Some(status) = handler.status() else { return };
        if self.told.as_ref() != Some(&status) && self.notify.send(&Notice::Status(status.clone())).is_ok() {
            self.told = Some(status);
        }
    }
}

/// Serves the door and the peers until nulld closes the door. Says `ready` first, and `alive` from then on.
pub fn serve(service: Service, inherited: Inherited, handler: Arc<dyn Handler>) -> io::Result<()> {
    let Inherited { door, notify, peers } = inherited;
    let busy = Arc::new(AtomicUsize::new(0));
    let (peer_handler, peer_busy) = (handler.clone(), busy.clone());
    std::thread::Builder::new().name("peers".into()).stack_size(128 * 1024).spawn(move || {
        loop {
            match peers.accept() {
                Ok((stream, _)) => match peer_identity(&stream) {
                    Ok(caller) if caller.is_node() => {
                        start(service, caller, stream, &peer_handler, &peer_busy)
                    }
                    Ok(caller) => log::warning("peer_refused", &[("caller", &caller)]),
                    Err(error) => log::warning("peer_unknown", &[("error", &error)]),
                },
                Err(error) => {
                    log::error("peers_accept_failed", &[("error", &error)]);
                    std::thread::sleep(Duration::from_millis(100)); // out of descriptors: let some close
                }
            }
        }
    })?;
    notify.send(&Notice::Ready)?;
    let mut teller = Teller { notify: &notify, told: None, asked: None };
    loop {
        teller.tell(handler.as_ref());
        if handler.is_alive() {
            let _ = notify.send(&Notice::Alive); // nulld is slow: the next one is as good
        }
        if !wait_readable(&door, limits::SERVICE_ALIVE_MS)? {
            continue;
        }
        match take_over(door.as_fd())? {
            Some((handoff, stream)) => start(service, handoff.caller, stream, &handler, &busy),
            None => return Ok(()),
        }
    }
}

/// Whether something can be read within so many milliseconds.
fn wait_readable(fd: &OwnedFd, ms: u64) -> io::Result<bool> {
    let timeout = rustix::time::Timespec::try_from(Duration::from_millis(ms)).ok();
    let mut polled = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The peer of a Unix socket, by SO_PEERCRED (unix(7)).
pub fn peer_identity(stream: &UnixStream) -> io::Result<Caller> {
    let credentials = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Caller::from_uid(credentials.uid.as_raw()))
}

fn start(
    service: Service,
    caller: Caller,
    stream: UnixStream,
    handler: &Arc<dyn Handler>,
    busy: &Arc<AtomicUsize>,
) {
    let mut connection = Connection::new(stream);
    let most = match service {
        Service::Cage => limits::CAGE_CONNECTIONS_MAX,
        _ => limits::SERVICE_CONNECTIONS_MAX,
    };
    if busy.fetch_add(1, Ordering::Relaxed) >= most {
        busy.fetch_sub(1, Ordering::Relaxed);
        let error = RpcError::new(Code::LIMIT, format!("{service} is busy"))
            .explained(format!("{most} connections at a time"), "try again");
        let _ = connection.write_line(&Response::of(None, Err(error))); // the caller may be gone
        return;
    }
    let (handler, on_thread) = (handler.clone(), busy.clone());
    let thread = std::thread::Builder::new().name("call".into()).stack_size(256 * 1024).spawn(move || {
        if let Err(error) = answer_all(service, &caller, &mut connection, handler.as_ref()) {
            log::info("connection_ended", &[("caller", &caller), ("error", &error)]);
        }
        on_thread.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = thread {
        busy.fetch_sub(1, Ordering::Relaxed);
        log::error("thread_failed", &[("error", &error)]);
    }
}

/// Answers the requests of one connection, one after the other.
pub fn answer_all(
    service: Service,
    caller: &Caller,
    connection: &mut Connection,
    handler: &dyn Handler,
) -> Result<(), WireError> {
    while let Some(line) = connection.read_line()? {
        let request = match Request::parse(&line) {
            Ok(request) => request,
            Err(error) => {
                connection.write_line(&Response::of(None, Err(error)))?;
                continue;
            }
        };
        let outcome = match check(service, caller, &request.method) {
            Ok(()) => handler.call(Call { caller, request: &request, connection }),
            Err(error) => Err(error),
        };
        let outcome = match outcome {
            Ok(Outcome::Result(value)) => Ok(value),
            Ok(Outcome::Answered) => return Ok(()),
            Err(error) => Err(error),
        };
        match connection.write_line(&Response::of(request.id, outcome)) {
            // Nothing of it was written.
            Err(WireError::LineTooLong) => {
                log::error("answer_too_long", &[("method", &request.method), ("caller", caller)]);
                connection.write_line(&Response::of(request.id, Err(too_long(&request.method))))?;
            }
            written => written?,
        }
    }
    Ok(())
}

fn too_long(method: &str) -> RpcError {
    RpcError::new(Code::LIMIT, format!("the answer of `{method}` is too long")).explained(
        format!("an answer is one line of at most {} bytes", limits::LINE_BYTES_MAX),
        "ask for less of it at a time",
    )
}

/// Whether a caller may call a method of a service. Pure; nulld asks it first, the service again.
pub fn check(service: Service, caller: &Caller, method: &str) -> Result<(), RpcError> {
    let known = control::method(method).ok_or_else(|| {
        RpcError::new(Code::UNKNOWN_METHOD, format!("there is no method `{}`", shorten(method)))
            .explained("the methods are listed in docs/control-protocol.md", "see nullctl help")
    })?;
    if known.service != service {
        return Err(RpcError::new(Code::INVALID_REQUEST, format!("`{method}` belongs to {}", known.service))
            .explained("one connection reaches one service", "open a new connection for it"));
    }
    match known.audience {
        Audience::Services if caller.is_node() => Ok(()),
        Audience::Services => {
            Err(RpcError::new(Code::DENIED, format!("`{method}` is for services of the node"))
                .explained("no operator may call it", "there is no grant for it"))
        }
        Audience::Operators(needed) => match caller.role() {
            Some(role) if role >= needed => Ok(()),
            Some(role) => Err(RpcError::new(Code::DENIED, format!("{caller} may not call `{method}`"))
                .explained(
                    format!("`{method}` needs the role {needed}, this key has {role}"),
                    "ask an admin for a key with that role",
                )),
            None => Err(RpcError::new(Code::DENIED, format!("{caller} may not call `{method}`")).explained(
                "only root and operators with a key may call",
                "use nullctl with an operator key",
            )),
        },
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;
    use serde_json::json;

    struct Echo;
    impl Handler for Echo {
        fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
            Ok(Outcome::Result(json!({ "caller": call.caller.to_string(), "params": call.request.params })))
        }
    }

    fn operator(role: Role) -> Caller {
        Caller::Operator { name: "alice".into(), key: "k".into(), role }
    }

    #[test]
    fn roles_are_enforced_and_refusals_explain_themselves() {
        assert!(check(Service::Cage, &operator(Role::Operator), "agent.start").is_ok());
        assert!(check(Service::Cage, &operator(Role::Admin), "agent.start").is_ok());
        let refused = check(Service::Cage, &operator(Role::Reader), "agent.start").unwrap_err();
        assert_eq!(refused.code, Code::DENIED);
        assert!(refused.data.unwrap().rule.contains("operator"));
        assert_eq!(
            check(Service::Ctxgraph, &operator(Role::Admin), "ledger.append").unwrap_err().code,
            Code::DENIED
        );
        assert!(check(Service::Cage, &Caller::Local { uid: 1000 }, "agent.list").is_err());
        assert_eq!(
            check(Service::Cage, &operator(Role::Admin), "agent.fly").unwrap_err().code,
            Code::UNKNOWN_METHOD
        );
        assert_eq!(
            check(Service::Egress, &operator(Role::Admin), "agent.list").unwrap_err().code,
            Code::INVALID_REQUEST
        );
    }

    #[test]
    fn an_answer_too_long_for_a_line_is_an_error_and_the_connection_goes_on() {
        struct Long;
        impl Handler for Long {
            fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
                let bytes = call.request.params.as_u64().unwrap_or(0) as usize;
                Ok(Outcome::Result(json!("x".repeat(bytes))))
            }
        }
        let (near, far) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            answer_all(Service::Cage, &operator(Role::Reader), &mut Connection::new(near), &Long)
        });
        let mut far = Connection::new(far);
        far.set_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut ask = |bytes: usize| -> Response {
            far.write_line(&Request::call(1, "agent.list", json!(bytes))).unwrap();
            serde_json::from_str(&far.read_line().unwrap().expect("an answer")).unwrap()
        };
        let refused = ask(limits::LINE_BYTES_MAX).error.unwrap();
        assert_eq!(refused.code, Code::LIMIT);
        assert!(refused.message.contains("agent.list"), "{refused}");
        assert_eq!(ask(10).result, Some(json!("xxxxxxxxxx")));
        drop(far);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_connection_is_handed_over_with_its_first_line_unread() {
        let (near, far) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        let mut client = Connection::new(client);
        client.write_line(&Request::call(9, "agent.list", Value::Null)).unwrap();
        let handoff = Handoff { caller: operator(Role::Reader) };
        hand_over(near.as_fd(), &handoff, server.as_fd()).unwrap();
        drop(server);
        let (taken, stream) = take_over(far.as_fd()).unwrap().unwrap();
        assert_eq!(taken, handoff);
        let mut connection = Connection::new(stream);
        let server = std::thread::spawn(move || {
            answer_all(Service::Cage, &taken.caller, &mut connection, &Echo).map_err(|e| e.to_string())
        });
        let answer: Response = serde_json::from_str(&client.read_line().unwrap().unwrap()).unwrap();
        assert_eq!(answer.result.unwrap()["caller"], "reader alice");
        drop(client);
        server.join().unwrap().unwrap();
        drop(near);
        assert!(take_over(far.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_status_is_told_when_it_changed_and_at_most_once_a_second() {
        struct Says(std::sync::Mutex<&'static str>);
        impl Handler for Says {
            fn call(&self, _: Call<'_>) -> Result<Outcome, RpcError> {
                Err(RpcError::new(Code::FAILED, "nothing"))
            }
            fn status(&self) -> Option<String> {
                Some((*self.0.lock().unwrap()).to_owned())
            }
        }
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let notify = Notifier::new(write).unwrap();
        let mut teller = Teller { notify: &notify, told: None, asked: None };
        let says = Says(std::sync::Mutex::new("one"));
        let mut told = |rest: bool| {
            if rest {
                teller.asked = None; // the pause is over
            }
            teller.tell(&says);
            let mut bytes = [0u8; 256];
            let count = rustix::io::read(&read, &mut bytes).unwrap_or(0);
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        };
        assert_eq!(told(false), "status one\n");
        assert_eq!(told(true), "", "it did not change");
        *says.0.lock().unwrap() = "two";
        assert_eq!(told(false), "", "too soon");
        assert_eq!(told(true), "status two\n");
    }
}
