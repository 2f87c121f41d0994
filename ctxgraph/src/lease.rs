//! An agent's memory port: `memory.attach` and the connections that come through it.
//!
//! Owns: the listening socket of one VM and what was accepted from it, for as long as the attach connection lives.
//! Must hold: who speaks is which socket was reached. When the lease ends all its connections end at once.
//! Must never: let one agent take more than its share of connections, time or ledger.

use abi::control::{MemoryAttach, MemoryAttached, MemoryExpose, Nothing};
use abi::door::{Call, Outcome};
use abi::identity::{Caller, Service};
use abi::ids::{AgentName, Instance};
use abi::ledger::Event;
use abi::rpc::{Code, Request, Response, RpcError};
use abi::wire::{Connection, WireError};
use abi::{limits, log};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::access::Party;
use crate::calls;
use crate::canonical;
use crate::exposure::{Exposures, Reader};
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::noted::Teller;
use crate::places::Places;
use crate::speaker::{Denied, Port, Refusal, Speaker};
use crate::watch::{Receiver, Watchers};
use crate::watching;
use ::ledger::frame::Source;

/// What all leases share.
#[derive(Debug)]
pub struct Leases {
    memory: Arc<Memory>,
    ledger: Arc<Ledger>,
    exposures: Arc<Exposures>,
    watchers: Arc<Watchers>,
    reads: Places,
    writes: Places,
    /// By agent and not by lease: a VM that is replaced does not double the share.
    agents: Mutex<HashMap<AgentName, Share>>,
    /// Of each life that has a lease, its newest.
    lives: Mutex<HashMap<Instance, Arc<Port>>>,
}

/// What one agent uses now.
#[derive(Debug, Default)]
struct Share {
    connections: usize,
    leases: usize,
    denials: Denials,
    /// Lines of the log about it.
    told: Denials,
}

/// Refusals of the running minute.
#[derive(Debug, Default)]
struct Denials {
    since: Option<Instant>,
    recorded: u32,
    dropped: u64,
}

impl Denials {
    /// Whether the next refusal is recorded, and then how many were not since the last one that was. Pure but for the clock given.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let fresh = self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(60));
        if fresh {
            self.since = Some(now);
            self.recorded = 0;
        }
        if self.recorded == limits::MEMORY_DENIALS_PER_MINUTE_MAX {
            self.dropped += 1;
            return None;
        }
        self.recorded += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

impl Leases {
    /// No leases yet.
    pub fn new(memory: Arc<Memory>, ledger: Arc<Ledger>, watchers: Arc<Watchers>) -> Leases {
        let exposures = Arc::new(Exposures::new(memory.clone(), ledger.clone()));
        // Several writes of one agent may share a receipt batch.
        let (reads, writes) = (limits::MEMORY_READS_MAX, limits::MEMORY_WRITES_MAX);
        let each = limits::MEMORY_CONNECTIONS_PER_AGENT_MAX;
        Leases {
            memory,
            ledger,
            exposures,
            watchers,
            reads: Places::new(reads, 1),
            writes: Places::new(writes, each),
            agents: Mutex::default(),
            lives: Mutex::default(),
        }
    }

    /// Serves `memory.attach` until its connection ends.
    pub fn attach(self: &Arc<Self>, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let params: MemoryAttach = call.request.params()?;
        let listener = listener(call.connection.take_fds())?;
        let attached = Event::MemoryAttached { instance: params.instance.clone() };
        self.ledger.append(Source::Service(Service::Ctxgraph), &[attached], true).map_err(|error| {
            RpcError::new(Code::FAILED, format!("no receipt, so no memory port: {error}"))
        })?;
        let MemoryAttach { instance, grants, shares, exposure, inherits } = params;
        let failed = |error: &dyn std::fmt::Display| RpcError::new(Code::FAILED, error.to_string());
        let teller = Teller::new(call.connection).map_err(|error| failed(&error))?;
        let reader = Reader::begin(self.exposures.clone(), instance.clone(), exposure, inherits, teller)
            .map_err(|error| failed(&error))?;
        let port = Port { party: Party { agent: instance.agent.clone(), grants, shares }, reader };
        let attached = serde_json::to_value(MemoryAttached { exposure: port.reader.now() })
            .map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))?;
        let port = Arc::new(port);
        let mut lease = Lease { leases: self.clone(), instance, port, open: Arc::default(), next: 0 };
        lease.enter(); // before the answer: cage may say at once what it has seen
        call.answer(attached, &[]).map_err(|error| failed(&error))?;
        log::info(
            "memory_attached",
            &[("instance", &lease.instance), ("exposure", &lease.port.reader.now())],
        );
        let why = lease.serve(&listener, call.connection);
        lease.port.reader.teller().end();
        log::info("memory_detached", &[("instance", &lease.instance), ("why", &why)]);
        drop(listener); // first, so that nobody comes in while the others go
        drop(lease);
        Ok(Outcome::Answered)
    }

    /// What cage knows of what a life has seen: from the answer on its entries carry it.
    pub fn expose(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        if *call.caller != (Caller::Local { uid: 0 }) {
            return Err(RpcError::new(Code::DENIED, format!("{} may not speak for a life", call.caller))
                .explained("only cage does", "there is no grant for it"));
        }
        let MemoryExpose { instance, seen } = call.request.params()?;
        let port = lock(&self.lives).get(&instance).cloned().ok_or_else(|| {
            RpcError::new(Code::NOT_FOUND, format!("`{instance}` has no memory port"))
                .explained("a life's memory is served while its lease lasts", "attach it again")
        })?;
        port.reader.has_seen(seen)?;
        let nothing = serde_json::to_value(Nothing {});
        nothing.map(Outcome::Result).map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AgentName, Share>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for one more connection.
    fn admit(&self, agent: &AgentName) -> bool {
        let mut agents = self.lock();
        let share = agents.entry(agent.clone()).or_default();
        let admitted = share.connections < limits::MEMORY_CONNECTIONS_PER_AGENT_MAX;
        share.connections += usize::from(admitted);
        admitted
    }

    /// Gives a place back, or a lease; forgets an agent that uses nothing.
    fn release(&self, agent: &AgentName, connections: usize, leases: usize) {
        let mut agents = self.lock();
        if let Some(share) = agents.get_mut(agent) {
            share.connections = share.connections.saturating_sub(connections);
            share.leases = share.leases.saturating_sub(leases);
            if share.connections == 0 && share.leases == 0 {
                agents.remove(agent);
            }
        }
    }

    fn record(&self, agent: &AgentName, denied: Denied) {
        let admitted = self.lock().entry(agent.clone()).or_default().denials.admit(Instant::now());
        let Some(dropped) = admitted else { return };
        let what = match dropped {
            0 => denied.what,
            count => format!("{} (and {count} refusals before it)", denied.what),
        };
        log::warning(
            "memory_denied",
            &[("agent", agent), ("what", &what), ("rule", &denied.rule), ("culprit", &"agent")],
        );
        let event = Event::MemoryDenied { agent: agent.clone(), what, rule: denied.rule.into() };
        if let Err(error) = self.ledger.append(Source::Service(Service::Ctxgraph), &[event], false) {
            log::error("memory_denied_unrecorded", &[("agent", agent), ("error", &error)]);
        }
    }

    /// Serves one connection of an agent until it ends.
    fn serve(&self, port: &Port, stream: UnixStream) -> Result<(), WireError> {
        stream.set_read_timeout(Some(Duration::from_millis(limits::MEMORY_IDLE_MS_MAX)))?;
        stream.set_write_timeout(Some(Duration::from_millis(limits::MEMORY_ANSWER_MS_MAX)))?;
        let mut connection = Connection::new(stream);
        loop {
            let line = match connection.read_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                Err(error @ (WireError::LineTooLong | WireError::NotUtf8)) => {
                    let refusal = RpcError::new(Code::LIMIT, error.to_string()).explained(
                        "a request is one line of JSON",
                        "send less in one request; connect again",
                    );
                    return connection.write_line(&Response::of(None, Err(refusal)));
                }
                Err(error) => return Err(error),
            };
            connection.take_fds(); // an agent has none to give: close them
            let Turn { answer, watch } = self.turn(port, line);
            connection.write_encoded(answer)?;
            if let Some(receiver) = watch {
                let why = watching::stream(
                    &self.memory,
                    Some(&self.reads),
                    Speaker::Agent(port),
                    &receiver,
                    &mut connection,
                );
                self.tell(&port.party.agent, "memory_watch_ended", &why);
                return Ok(());
            }
        }
    }

    /// Answers one line. What the request and the answer take in memory is gone when it returns, but for the answer's bytes: the agent
    /// may take its time to read them.
    fn turn(&self, port: &Port, line: String) -> Turn {
        let speaker = Speaker::Agent(port);
        let places = if writes(&line) { &self.writes } else { &self.reads };
        let _place = places.take(&port.party.agent);
        let parsed = parse(&line);
        drop(line);
        let mut watch = None;
        let (id, outcome) = match parsed {
            Ok(request) if request.method == "memory.watch" => {
                let begun = watching::begin(&self.watchers, speaker, &request);
                (request.id, begun.map(|receiver| watch = Some(receiver)).map(|()| "{}".to_owned()))
            }
            Ok(mut request) => (request.id, calls::answer(&self.memory, speaker, &mut request)),
            Err(error) => (None, Err(error.into())),
        };
        let outcome = outcome.map_err(|Refusal { error, denied }| {
            if let Some(denied) = denied {
                self.record(&port.party.agent, denied);
            }
            error
        });
        Turn { answer: encode(id, outcome), watch }
    }

    /// Logs what an agent brought about, so many times a minute.
    fn tell(&self, agent: &AgentName, event: &str, why: &dyn std::fmt::Display) {
        let admitted = self.lock().entry(agent.clone()).or_default().told.admit(Instant::now());
        if let Some(untold) = admitted {
            log::info(event, &[("agent", agent), ("why", why), ("untold", &untold)]);
        }
    }
}

/// What comes of one line.
struct Turn {
    answer: Vec<u8>,
    /// Present where it began a watch.
    watch: Option<Receiver>,
}

/// Whether a line asks for what waits for the writer, and so must not hold up reads.
fn writes(line: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Asked<'a> {
        #[serde(borrow)]
        method: std::borrow::Cow<'a, str>,
    }
    serde_json::from_str::<Asked<'_>>(line)
        .is_ok_and(|asked| ["memory.write", "memory.batch", "memory.forget"].contains(&&*asked.method))
}

/// An answer as it is sent, in place of one that fits no line a refusal that does.
fn encode(id: Option<u64>, outcome: Result<String, RpcError>) -> Vec<u8> {
    let refusal = |error| serde_json::to_vec(&Response::of(id, Err(error))).unwrap_or_default();
    let mut line = match outcome {
        Ok(result) => {
            let id = id.map_or("null".into(), |id| id.to_string());
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}").into_bytes()
        }
        Err(error) => refusal(error),
    };
    if line.len() < limits::LINE_BYTES_MAX {
        line.shrink_to_fit(); // it may be kept for as long as the agent does not read
        return line;
    }
    refusal(
        RpcError::new(Code::LIMIT, "the answer would not fit a line")
            .explained("an answer is one line, a refusal with what was asked in it too", "ask for less"),
    )
}

/// A request, with no key twice in any object.
fn parse(line: &str) -> Result<Request, RpcError> {
    let mut value = canonical::strict(line).map_err(|error| {
        RpcError::new(Code::PARSE, format!("not a JSON text NullBox accepts: {error}")).explained(
            "a line has no key twice in any object, and at most 8192 values",
            "send less in one request",
        )
    })?;
    // Moved, not made once more.
    let params = value.get_mut("params").map(Value::take);
    let mut request: Request = serde_json::from_value(value).map_err(|error| {
        RpcError::new(Code::INVALID_REQUEST, format!("not a JSON-RPC 2.0 request: {error}"))
    })?;
    request.params = params.unwrap_or_default();
    Ok(request)
}

/// The listening Unix socket among what came beside the request.
fn listener(fds: Vec<OwnedFd>) -> Result<UnixListener, RpcError> {
    let wrong = |what: &str| {
        RpcError::new(Code::INVALID_PARAMS, format!("memory.attach: {what}")).explained(
            "one listening Unix stream socket stands beside the request",
            "send the VM's memory socket with SCM_RIGHTS",
        )
    };
    let Ok([fd]) = <[OwnedFd; 1]>::try_from(fds) else {
        return Err(wrong("not exactly one descriptor"));
    };
    let family = rustix::net::getsockname(&fd).map(|name| name.address_family());
    if family != Ok(rustix::net::AddressFamily::UNIX) {
        return Err(wrong("the descriptor is not a Unix socket"));
    }
    if rustix::net::sockopt::socket_acceptconn(&fd) != Ok(true) {
        return Err(wrong("the socket does not listen"));
    }
    let listener = UnixListener::from(fd);
    // A peer that is gone before accept(2) must not hold the lease's thread.
    listener
        .set_nonblocking(true)
        .map_err(|error| RpcError::new(Code::FAILED, format!("memory.attach: {error}")))?;
    Ok(listener)
}

/// One lease: dropped, it shuts its connections.
struct Lease {
    leases: Arc<Leases>,
    instance: Instance,
    port: Arc<Port>,
    open: Arc<Mutex<HashMap<u64, UnixStream>>>,
    next: u64,
}

impl Lease {
    fn enter(&self) {
        lock(&self.leases.lives).insert(self.instance.clone(), self.port.clone());
        self.leases.lock().entry(self.instance.agent.clone()).or_default().leases += 1;
    }

    /// Accepts until the attach connection ends, or says anything but what the teller waits for; returns why it stopped.
    fn serve(&mut self, listener: &UnixListener, attach: &mut Connection) -> String {
        loop {
            let mut ready = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::from_borrowed_fd(attach.stream().as_fd(), PollFlags::IN | PollFlags::RDHUP),
            ];
            match poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return format!("poll: {error}"),
                Ok(_) => {}
            }
            let [listening, attached] = &ready;
            let (attached, listening) = (attached.revents(), listening.revents());
            if !attached.is_empty() && (attached != PollFlags::IN || !self.hear(attach)) {
                return "the attach connection ended".into();
            }
            if listening.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                return "the memory socket ended".into();
            }
            match listener.accept() {
                Ok((stream, _)) => self.start(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::error("memory_accept_failed", &[("instance", &self.instance), ("error", &error)]);
                    std::thread::sleep(Duration::from_millis(100)); // out of descriptors: let some close
                }
            }
        }
    }

    /// What cage says; false where that is nothing that belongs here.
    fn hear(&self, attach: &mut Connection) -> bool {
        loop {
            let line = attach.read_line().ok().flatten();
            if !line.is_some_and(|line| self.port.reader.teller().hear(&line)) {
                return false;
            }
            if !attach.has_line() {
                return true;
            }
        }
    }

    fn start(&mut self, stream: UnixStream) {
        let agent = self.instance.agent.clone();
        if !self.leases.admit(&agent) {
            let _ = refuse(stream); // an agent that does not read its refusal loses it
            return;
        }
        let number = self.next;
        self.next += 1;
        let kept = stream.set_nonblocking(false).and_then(|()| stream.try_clone());
        let Ok(clone) = kept else {
            self.leases.release(&agent, 1, 0);
            return;
        };
        lock(&self.open).insert(number, clone);
        let (leases, open) = (self.leases.clone(), self.open.clone());
        let port = self.port.clone();
        let thread =
            std::thread::Builder::new().name("agent".into()).stack_size(256 * 1024).spawn(move || {
                let agent = &port.party.agent;
                if let Err(error) = leases.serve(&port, stream) {
                    leases.tell(agent, "memory_connection_ended", &error);
                }
                lock(&open).remove(&number);
                leases.release(agent, 1, 0);
            });
        if let Err(error) = thread {
            self.leases.tell(&agent, "thread_failed", &error);
            lock(&self.open).remove(&number);
            self.leases.release(&agent, 1, 0);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut lives = lock(&self.leases.lives);
        if lives.get(&self.instance).is_some_and(|port| Arc::ptr_eq(port, &self.port)) {
            lives.remove(&self.instance);
        }
        drop(lives);
        for stream in lock(&self.open).values() {
            let _ = stream.shutdown(Shutdown::Both); // already shut by the other end
        }
        self.leases.release(&self.instance.agent, 0, 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse(stream: UnixStream) -> Result<(), WireError> {
    stream.set_nonblocking(true)?; // the refusal fits an empty socket
    let error = RpcError::new(Code::LIMIT, "too many connections to this agent's memory").explained(
        format!("{} at a time", limits::MEMORY_CONNECTIONS_PER_AGENT_MAX),
        "use one connection for many requests, or close one",
    );
    Connection::new(stream).write_line(&Response::of(None, Err(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_beyond_the_rate_are_counted_and_told() {
        let mut denials = Denials::default();
        let start = Instant::now();
        let recorded = (0..100).filter(|_| denials.admit(start).is_some()).count();
        assert_eq!(recorded, limits::MEMORY_DENIALS_PER_MINUTE_MAX as usize);
        let dropped = 100 - u64::from(limits::MEMORY_DENIALS_PER_MINUTE_MAX);
        assert_eq!(denials.admit(start + Duration::from_secs(61)), Some(dropped));
        assert_eq!(denials.admit(start + Duration::from_secs(61)), Some(0));
    }

    #[test]
    fn a_request_with_a_key_twice_is_refused() {
        let error = parse(
            r#"{"jsonrpc":"2.0","id":1,"method":"memory.write","params":{"key":"k","value":{"a":1,"a":2}}}"#,
        );
        assert_eq!(error.unwrap_err().code, Code::PARSE);
        assert!(parse(r#"{"jsonrpc":"2.0","id":1,"method":"memory.query"}"#).is_ok());
    }

    #[test]
    fn a_refusal_that_fits_no_line_is_a_short_one() {
        let long = RpcError::new(Code::INVALID_PARAMS, "\"".repeat(limits::LINE_BYTES_MAX / 2));
        let answer: Response = serde_json::from_slice(&encode(Some(7), Err(long))).unwrap();
        assert_eq!((answer.id, answer.error.unwrap().code), (Some(7), Code::LIMIT));
        let answer: Response = serde_json::from_slice(&encode(None, Ok("[1]".into()))).unwrap();
        assert_eq!((answer.id, answer.result), (None, Some(serde_json::json!([1]))));
    }

    #[test]
    fn only_a_listening_unix_socket_makes_a_memory_port() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(listener(vec![stream.into()]).is_err());
        assert!(listener(Vec::new()).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listener(vec![tcp.into()]).is_err());
        let directory = tempfile::tempdir().unwrap();
        let good = UnixListener::bind(directory.path().join("s")).unwrap();
        assert!(listener(vec![good.into()]).is_ok());
    }
}
