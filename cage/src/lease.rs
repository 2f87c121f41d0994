//! What egress and ctxgraph hold for a VM: its network and its memory port. Each lives as long as a connection to them.
//!
//! Must hold: while the VM runs, a lease that ended is made again, with the same namespace and the same listening socket, after a
//! growing pause; when the VM ends, so do they; what a life has seen is in its network's next lease before it is in this one, and
//! ctxgraph hears that a rise was noted only when whoever bounds the life goes by it. Must never: give one VM's namespace or socket to
//! another's lease.

use abi::control::{
    AgentGrants, Attached, Grants, MemoryAttach, MemoryAttached, MemoryExpose, MemoryExposure, MemoryNoted,
    NetAttach, NetExpose, NetExposed, NetGrants, Nothing,
};
use abi::exposure::Exposure;
use abi::ids::Instance;
use abi::rpc::{Incoming, Request, RpcError};
use abi::wire::{Connection, WireError};
use abi::{limits, log};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::shares::Wish;

const PAUSE_MS_FIRST: u64 = 200;
const PAUSE_MS_MAX: u64 = 5_000;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("{service} cannot be reached: {error}")]
    Unreachable { service: &'static str, error: io::Error },
    #[error("{service}: {error}")]
    Wire { service: &'static str, error: WireError },
    #[error("{service} refused: {error}")]
    Refused { service: &'static str, error: RpcError },
    #[error("{service} was not waited for: the VM ends")]
    Stopped { service: &'static str },
    #[error("what the life has seen is not in force: {error}")]
    Unnoted { error: String },
    #[error("{service} answered what was not asked: {what}")]
    Protocol { service: &'static str, what: String },
}

/// Calls a peer and keeps the connection open: it is the lease. Gives up when `stop` becomes readable.
fn attach<T: DeserializeOwned>(
    service: &'static str,
    path: &str,
    method: &str,
    params: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    stop: Option<&OwnedFd>,
) -> Result<(Connection, T), LeaseError> {
    let connection = send(service, path, method, params, fds, limits::ATTACH_MS_MAX)?;
    if let Some(stop) = stop {
        let mut either = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(connection.stream().as_fd(), PollFlags::IN),
        ];
        let patience = Timespec::try_from(Duration::from_millis(limits::ATTACH_MS_MAX)).ok();
        // A signal or a failure only means that the answer is waited for below.
        let polled = poll(&mut either, patience.as_ref());
        if polled.is_ok() && !either[0].revents().is_empty() {
            return Err(LeaseError::Stopped { service });
        }
    }
    receive(service, connection)
}

/// One call, up to its answer; the connection lives on for what follows.
pub fn ask<T: DeserializeOwned>(
    service: &'static str,
    path: &str,
    method: &str,
    params: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    ms_max: u64,
) -> Result<(Connection, T), LeaseError> {
    receive(service, send(service, path, method, params, fds, ms_max)?)
}

fn send(
    service: &'static str,
    path: &str,
    method: &str,
    params: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    ms_max: u64,
) -> Result<Connection, LeaseError> {
    let unreachable = |error| LeaseError::Unreachable { service, error };
    let what = |error: serde_json::Error| LeaseError::Protocol { service, what: error.to_string() };
    let params = serde_json::to_value(params).map_err(what)?;
    let mut connection = Connection::connect(path).map_err(unreachable)?;
    connection.set_timeout(Some(Duration::from_millis(ms_max))).map_err(unreachable)?;
    let sent = connection.write_line_with_fds(&Request::call(1, method, params), fds);
    sent.map_err(|error| LeaseError::Wire { service, error })?;
    Ok(connection)
}

fn receive<T: DeserializeOwned>(
    service: &'static str,
    mut connection: Connection,
) -> Result<(Connection, T), LeaseError> {
    let wire = |error| LeaseError::Wire { service, error };
    let protocol = |what: String| LeaseError::Protocol { service, what };
    let line = connection.read_line().map_err(wire)?.ok_or_else(|| wire(WireError::CutLine))?;
    let response = match serde_json::from_str(&line) {
        Ok(Incoming::Response(response)) => response,
        _ => return Err(protocol(line.chars().take(200).collect())),
    };
    match (response.result, response.error) {
        (Some(value), None) => {
            let result = serde_json::from_value(value).map_err(|error| protocol(error.to_string()))?;
            Ok((connection, result))
        }
        (_, Some(error)) => Err(LeaseError::Refused { service, error }),
        (None, None) => Err(protocol("neither result nor error".into())),
    }
}

/// A VM's network.
#[derive(Debug)]
pub struct Network {
    connection: Connection,
    pub attached: Attached,
    pub netns: Arc<OwnedFd>,
}

/// Asks egress for a network, in `kept` if there is one from before; gives up when `stop` becomes readable.
pub fn attach_network(
    egress: &str,
    want: &NetAttach,
    kept: Option<&Arc<OwnedFd>>,
    stop: Option<&OwnedFd>,
) -> Result<Network, LeaseError> {
    let fds: Vec<BorrowedFd<'_>> = kept.iter().map(|fd| fd.as_fd()).collect();
    let (mut connection, attached) = attach("egress", egress, "net.attach", want, &fds, stop)?;
    let netns = match (connection.take_fds().pop(), kept) {
        (_, Some(kept)) => kept.clone(),
        (Some(made), None) => Arc::new(made),
        (None, None) => {
            return Err(LeaseError::Protocol {
                service: "egress",
                what: "no namespace beside the answer".into(),
            });
        }
    };
    Ok(Network { connection, attached, netns })
}

/// Asks ctxgraph to serve a VM's memory on a listening socket; gives up when `stop` becomes readable. Says what the life has seen so far.
pub fn attach_memory(
    ctxgraph: &str,
    want: &MemoryAttach,
    listener: BorrowedFd<'_>,
    stop: Option<&OwnedFd>,
) -> Result<(Connection, Exposure), LeaseError> {
    let (connection, MemoryAttached { exposure }) =
        attach("ctxgraph", ctxgraph, "memory.attach", want, &[listener], stop)?;
    Ok((connection, exposure))
}

/// What a life has seen, as its network and its memory go by it.
#[derive(Debug)]
pub struct Seen {
    instance: Instance,
    /// egress' socket; none: the life has no network.
    egress: Option<String>,
    ctxgraph: String,
    now: Mutex<Exposure>,
}

impl Seen {
    /// Nothing yet. `egress`: where its network is, if it has one.
    pub fn new(instance: Instance, egress: Option<String>, ctxgraph: String) -> Seen {
        Seen { instance, egress, ctxgraph, now: Mutex::default() }
    }

    /// What was told so far.
    pub fn now(&self) -> Exposure {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bounds the network by this and all before. `Ok`: no connection goes by less, and no entry that it writes carries less; what it has
    /// seen in all, by connections of its own too. On an error nothing that raises its exposure may be shown to the agent.
    pub fn raise(&self, to: Exposure) -> Result<Exposure, LeaseError> {
        // First where the next lease finds it: egress may be starting again.
        let seen = self.join(to);
        let seen = match &self.egress {
            Some(egress) => {
                let want = NetExpose { instance: self.instance.clone(), seen };
                let (_, told): (_, NetExposed) =
                    ask("egress", egress, "net.expose", &want, &[], limits::NET_EXPOSE_MS_MAX)?;
                self.join(told.seen)
            }
            None => seen,
        };
        let want = MemoryExpose { instance: self.instance.clone(), seen };
        let (_, Nothing {}) =
            ask("ctxgraph", &self.ctxgraph, "memory.expose", &want, &[], limits::MEMORY_EXPOSE_MS_MAX)?;
        Ok(seen)
    }

    fn join(&self, more: Exposure) -> Exposure {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.and(more);
        *now
    }
}

/// What happens before an agent is shown memory that raises its exposure; on an error it is not shown.
pub type Raised = Box<dyn Fn(Exposure) -> Result<(), String> + Send>;

/// What egress counts, by life; none when it does not answer soon.
pub fn network_use(egress: &str) -> Option<BTreeMap<Instance, AgentGrants>> {
    let want = NetGrants { agent: None, counters_only: true };
    let asked = ask("egress", egress, "net.grants", &want, &[], limits::NET_USE_MS_MAX);
    let (_, grants): (_, Grants) =
        asked.inspect_err(|error| log::warning("network_use_unknown", &[("error", error)])).ok()?;
    Some(grants.agents.into_iter().map(|agent| (agent.instance.clone(), agent)).collect())
}

/// What a keeper needs to make a VM's leases again.
pub struct Leases {
    pub wish: Wish,
    pub egress: String,
    pub ctxgraph: String,
    /// Absent: the VM has no network.
    pub network: Option<(NetAttach, Network)>,
    pub memory: Connection,
    pub listener: UnixListener,
    pub seen: Arc<Seen>,
    /// Called on the keeper's thread, which does nothing else meanwhile.
    pub raised: Raised,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("wish", &self.wish).field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// Watches a VM's leases on a thread of its own until it is dropped; then the leases end.
#[derive(Debug)]
pub struct Keeper {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts watching.
    pub fn start(leases: Leases) -> io::Result<Keeper> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let watched = stop.clone();
        let thread = std::thread::Builder::new()
            .name("leases".into())
            .stack_size(512 * 1024) // it parses manifests
            .spawn(move || keep(leases, &watched))?;
        Ok(Keeper { stop, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    /// Returns when the leases have ended; an attach under way is given up.
    fn drop(&mut self) {
        let told = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take())
            && thread.join().is_err()
        {
            log::error("lease_keeper_failed", &[]);
        }
    }
}

/// One lease: held, or due again at some time.
#[derive(Debug)]
enum Lease {
    Held(Connection),
    Due { at: Instant, pause_ms: u64 },
}

impl Lease {
    fn lost() -> Lease {
        Lease::Due { at: Instant::now(), pause_ms: PAUSE_MS_FIRST }
    }

    /// Makes it again if its time has come.
    fn renew(
        &mut self,
        what: &str,
        instance: &Instance,
        make: impl FnOnce() -> Result<Connection, LeaseError>,
    ) {
        let Lease::Due { at, pause_ms } = *self else { return };
        if at > Instant::now() {
            return;
        }
        *self = match make() {
            Ok(connection) => {
                log::info("lease_made_again", &[("lease", &what), ("instance", instance)]);
                Lease::Held(connection)
            }
            Err(error) => {
                log::warning(
                    "lease_not_made",
                    &[("lease", &what), ("instance", instance), ("error", &error)],
                );
                let pause = Duration::from_millis(pause_ms);
                Lease::Due { at: Instant::now() + pause, pause_ms: (pause_ms * 2).min(PAUSE_MS_MAX) }
            }
        };
    }

    /// What ctxgraph has to say: a rise of the agent's exposure, which is answered when it was noted. Anything else ends the lease.
    fn hear(&mut self, instance: &Instance, raised: &Raised) {
        let Lease::Held(connection) = self else { return };
        let rise = match connection.read_line().ok().flatten().map(|line| Request::parse(&line)) {
            Some(Ok(note)) if note.method == "exposure" => note.params::<MemoryExposure>().ok(),
            _ => None,
        };
        let Some(rise) = rise else {
            *self = Lease::lost();
            return;
        };
        if let Err(error) = raised(rise.to) {
            // No word to ctxgraph: it shows nothing, and the agent is told to try again.
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("instance", instance), ("to", &rise.to), ("error", &error)];
            return log::error("exposure_not_noted", &fields);
        }
        let noted = serde_json::to_value(MemoryNoted { number: rise.number }).unwrap_or_default();
        if connection.write_line(&Request::notification("noted", noted)).is_err() {
            *self = Lease::lost();
        }
    }

    fn due(&self) -> Option<Instant> {
        match self {
            Lease::Held(_) => None,
            Lease::Due { at, .. } => Some(*at),
        }
    }
}

fn keep(leases: Leases, stop: &OwnedFd) {
    let Leases { wish, egress, ctxgraph, network, memory, listener, seen, raised } = leases;
    let instance = &wish.instance;
    let mut memory = Lease::Held(memory);
    let (mut want, mut network) = match network {
        Some((want, network)) => (Some((want, network.netns)), Some(Lease::Held(network.connection))),
        None => (None, None),
    };
    loop {
        let due = [Some(&memory), network.as_ref()].into_iter().flatten().filter_map(Lease::due).min();
        let mut all = vec![PollFd::new(stop, PollFlags::IN)];
        let held = |lease: &Lease| matches!(lease, Lease::Held(_));
        for lease in [Some(&memory), network.as_ref()].into_iter().flatten() {
            if let Lease::Held(connection) = lease {
                all.push(PollFd::from_borrowed_fd(connection.stream().as_fd(), PollFlags::IN));
            }
        }
        let patience = due.map(|at| at.saturating_duration_since(Instant::now()));
        let patience = patience.and_then(|d| Timespec::try_from(d).ok());
        match poll(&mut all, patience.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                log::error("lease_keeper_failed", &[("error", &error)]);
                return;
            }
        }
        let mut ended = all.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
        drop(all);
        if ended.next() == Some(true) {
            return;
        }
        if held(&memory) && ended.next() == Some(true) {
            memory.hear(instance, &raised);
        }
        // egress never speaks first on a lease: whatever came means that it is over.
        if let Some(lease) = network.as_mut().filter(|lease| held(lease))
            && ended.next() == Some(true)
        {
            *lease = Lease::lost();
        }
        memory.renew("memory", instance, || {
            let want = wish.now();
            let (connection, before) = attach_memory(&ctxgraph, &want, listener.as_fd(), Some(stop))?;
            // It remembers what was told on earlier leases, and may have told a rise that nobody noted.
            let all = before.and(seen.now());
            match want.exposure.has(all) {
                true => Ok(connection),
                false => match raised(all) {
                    Ok(()) => Ok(connection),
                    Err(error) => Err(LeaseError::Unnoted { error }),
                },
            }
        });
        if let (Some(lease), Some((want, netns))) = (&mut network, &mut want) {
            lease.renew("network", instance, || {
                want.seen = seen.now();
                attach_network(&egress, want, Some(netns), Some(stop)).map(|network| network.connection)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::rpc::Response;
    use serde_json::json;
    use std::sync::mpsc::channel;

    /// A wish of `a.1`, whose configuration is below a directory.
    fn wish(config: &std::path::Path) -> Wish {
        let text = "[agent]\nname = \"a\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n";
        let manifest = abi::manifest::parse("AGENT.toml", text).unwrap();
        Wish { instance: "a.1".parse().unwrap(), manifest, config: config.to_path_buf(), reads_as: None }
    }

    fn leases(
        wish: Wish,
        ctxgraph: String,
        memory: Connection,
        listener: UnixListener,
        raised: Raised,
    ) -> Leases {
        let seen = Arc::new(Seen::new(wish.instance.clone(), None, ctxgraph.clone()));
        Leases { wish, egress: String::new(), ctxgraph, network: None, memory, listener, seen, raised }
    }

    #[test]
    fn a_rise_is_noted_only_when_whoever_bounds_the_life_goes_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("memory")).unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ctxgraph = Connection::new(far);
        let (sender, rises) = channel();
        let raised = move |to: Exposure| {
            sender.send(to).unwrap();
            if to.has(Exposure::UNTRUSTED_CONTENT) { Err("egress is away".to_owned()) } else { Ok(()) }
        };
        let memory = Connection::new(near);
        let leases = leases(wish(dir.path()), "/nonexistent".into(), memory, listener, Box::new(raised));
        let _keeper = Keeper::start(leases).unwrap();
        let mut say = |number: u64, to: &str| {
            let params = json!({ "number": number, "to": [to] });
            ctxgraph.write_line(&Request::notification("exposure", params)).unwrap();
            ctxgraph.set_timeout(Some(Duration::from_millis(400))).unwrap();
            ctxgraph.read_line()
        };
        let noted = say(1, "private_data").unwrap().unwrap();
        assert!(noted.contains("\"noted\"") && noted.contains("\"number\":1"), "{noted}");
        assert!(say(2, "untrusted_content").is_err(), "nothing is said of a rise that nobody goes by");
        assert_eq!(
            rises.iter().take(2).collect::<Vec<_>>(),
            [Exposure::PRIVATE_DATA, Exposure::UNTRUSTED_CONTENT]
        );
        assert!(say(3, "private_data").unwrap().unwrap().contains("\"number\":3"), "the lease goes on");
        assert!(!matches!(say(4, "everything"), Ok(Some(_))), "what is no exposure ends the lease");
    }

    #[test]
    fn what_a_life_has_seen_only_grows_and_is_kept_when_egress_is_away() {
        let seen = Seen::new("a.1".parse().unwrap(), Some("/nonexistent".into()), "/nonexistent".into());
        assert!(seen.raise(Exposure::PRIVATE_DATA).is_err());
        assert_eq!(seen.now(), Exposure::PRIVATE_DATA, "for the network's next lease");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctxgraph.sock");
        let service = UnixListener::bind(&path).unwrap();
        let ctxgraph = path.to_string_lossy().into_owned();
        let without = Seen::new("a.1".parse().unwrap(), None, ctxgraph);
        let asked = std::thread::spawn(move || {
            let answer = |stream: io::Result<std::os::unix::net::UnixStream>| {
                let mut connection = Connection::new(stream.unwrap());
                let line = connection.read_line().unwrap().unwrap();
                connection.write_line(&Response::of(Some(1), Ok(json!({})))).unwrap();
                line
            };
            service.incoming().take(2).map(answer).collect::<Vec<_>>()
        });
        without.raise(Exposure::PRIVATE_DATA).unwrap();
        assert!(without.raise(Exposure::UNTRUSTED_CONTENT).unwrap().has(Exposure::PRIVATE_DATA));
        let asked = asked.join().unwrap();
        assert!(asked[0].contains("memory.expose") && !asked[0].contains("untrusted"), "{asked:?}");
        assert!(asked[1].contains(r#"["private_data","untrusted_content"]"#), "{asked:?}");
    }

    #[test]
    fn a_lost_lease_is_made_again_with_the_same_socket_and_ends_with_its_keeper() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctxgraph.sock");
        let service = UnixListener::bind(&path).unwrap();
        let listener = UnixListener::bind(dir.path().join("memory")).unwrap();
        let (sender, accepted) = channel();
        std::thread::spawn(move || {
            for stream in service.incoming() {
                let mut connection = Connection::new(stream.unwrap());
                let line = connection.read_line().unwrap().unwrap();
                assert!(line.contains("memory.attach") && line.contains("a.1"), "{line}");
                assert_eq!(connection.take_fds().len(), 1);
                connection.write_line(&Response::of(Some(1), Ok(json!({})))).unwrap();
                sender.send((connection, line)).unwrap();
            }
        });
        let ctxgraph = path.to_string_lossy().into_owned();
        let wish = wish(dir.path());
        let (memory, _) = attach_memory(&ctxgraph, &wish.now(), listener.as_fd(), None).unwrap();
        let (first, asked) = accepted.recv().unwrap();
        assert!(!asked.contains("b:notes/"), "{asked}");
        let keeper = Keeper::start(leases(wish, ctxgraph, memory, listener, Box::new(|_| Ok(())))).unwrap();
        // Another agent shares something meanwhile: the next lease knows.
        let shares = "[agent]\nname = \"b\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n\
                      [capabilities]\nmemory.share_read = [\"a:notes/\"]\n";
        std::fs::create_dir(dir.path().join("agents")).unwrap();
        std::fs::write(dir.path().join("agents/b.toml"), shares).unwrap();
        drop(first);
        let (mut second, asked) = accepted.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(asked.contains("\"b:notes/\""), "{asked}");
        drop(keeper);
        // A reset where the keeper had not read the answer yet: an end like any other.
        assert!(matches!(second.read_line(), Ok(None) | Err(_)));
    }

    #[test]
    fn an_attach_without_an_answer_ends_with_its_vm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctxgraph.sock");
        let silent = UnixListener::bind(&path).unwrap();
        let listener = UnixListener::bind(dir.path().join("memory")).unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(far);
        let (ctxgraph, memory) = (path.to_string_lossy().into_owned(), Connection::new(near));
        let leases = leases(wish(dir.path()), ctxgraph, memory, listener, Box::new(|_| Ok(())));
        let keeper = Keeper::start(leases).unwrap();
        let mut asked = Connection::new(silent.accept().unwrap().0);
        asked.read_line().unwrap().unwrap();
        let begun = Instant::now();
        drop(keeper);
        assert!(begun.elapsed() < Duration::from_millis(limits::ATTACH_MS_MAX / 2));
    }

    #[test]
    fn an_absent_service_is_an_error_that_names_it() {
        let error =
            attach_memory("/nonexistent", &wish("/nonexistent".as_ref()).now(), io::stdin().as_fd(), None)
                .unwrap_err();
        assert!(error.to_string().contains("ctxgraph cannot be reached"));
    }

    #[test]
    fn an_egress_that_is_away_or_silent_is_not_waited_for() {
        assert!(network_use("/nonexistent").is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("egress.sock");
        let silent = UnixListener::bind(&path).unwrap();
        let begun = Instant::now();
        assert!(network_use(path.to_str().unwrap()).is_none());
        assert!(begun.elapsed() < Duration::from_millis(3 * limits::NET_USE_MS_MAX));
        drop(silent);
    }

    #[test]
    fn egress_counts_are_found_by_life_and_asked_for_without_lists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("egress.sock");
        let service = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let mut connection = Connection::new(service.accept().unwrap().0);
            let line = connection.read_line().unwrap().unwrap();
            assert!(line.contains("net.grants") && line.contains("\"counters_only\":true"), "{line}");
            let grants = json!({"agents": [{
                "instance": "a.3", "allow": [], "connections": 1, "connections_total": 4, "bytes_out": 5,
                "bytes_in": 6, "denials": 7, "publish": [], "published_connections": 0, "published_total": 0,
                "synthetic": {},
            }]});
            connection.write_line(&Response::of(Some(1), Ok(grants))).unwrap();
        });
        let networks = network_use(path.to_str().unwrap()).unwrap();
        assert_eq!(networks[&"a.3".parse().unwrap()].bytes_in, 6);
    }
}
