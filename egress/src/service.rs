//! The methods of egress: `net.attach`, `net.grants`, `net.denials`, `net.resolve`; the others stand in the modules below.
//!
//! Must hold: a network lives exactly as long as the connection that asked for it; its receipt is durable before it is
//! handed out. Must never: attach a network for anybody but root (cage).

mod budget;
mod exposed;
mod secrets;

use abi::control::{
    AgentGrants, Attached, Denials as DenialsPage, Grants, NetAttach, NetDenials, NetGrants, NetResolve,
    Resolved,
};
use abi::door::{Call, Handler, Outcome};
use abi::identity::{Caller, VM_UID_BASE};
use abi::ids::Instance;
use abi::ledger::Event;
use abi::manifest::Published;
use abi::rpc::{Code, RpcError};
use abi::wire::Connection;
use abi::{limits, log};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;

use crate::agent::{Agent, Node};
use crate::broker::{self, Authority};
use crate::dns_server::DnsServer;
use crate::namespace::{self, Opened};
use crate::policy::Policy;
use crate::publish::{self, Door, Firewall};
use crate::workers::Workers;
use crate::{guard, nflog, page, proxy};

mod policy;

/// How often a follower is checked for having gone.
const FOLLOW_POLL: Duration = Duration::from_secs(1);
/// How long the tasks of an agent may take to end.
const TEARDOWN: Duration = Duration::from_secs(5);

/// The service.
#[derive(Debug)]
pub struct Egress {
    node: Arc<Node>,
    firewall: Firewall,
    workers: Workers,
    agents: Mutex<BTreeMap<Instance, Arc<Agent>>>,
    ends: policy::Ends,
    secret_changes: Mutex<()>,
}

impl Egress {
    /// With what agents share and the threads their tasks run on.
    pub fn new(node: Arc<Node>, firewall: Firewall, workers: Workers) -> Egress {
        let (agents, ends, secret_changes) = Default::default();
        Egress { node, firewall, workers, agents, ends, secret_changes }
    }

    fn agents(&self) -> MutexGuard<'_, BTreeMap<Instance, Arc<Agent>>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches, answers, holds the network until the connection ends, takes all of it down.
    fn attach(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        if *call.caller != (Caller::Local { uid: 0 }) {
            return Err(RpcError::new(Code::DENIED, format!("{} may not attach networks", call.caller))
                .explained("only cage attaches networks", "there is no grant for it"));
        }
        let asked: NetAttach = call.request.params()?;
        check(&asked)?;
        let adopt = one_descriptor(call.connection)?;
        let adopted = adopt.is_some();
        let live = self.live_of(&asked.instance, asked.works_for.as_ref())?;
        let names = asked.allow.len();
        // A secret that is set meanwhile is found by this agent or finds it.
        let changing = self.changing_secrets();
        let secrets = self.credentials(&asked)?;
        let budget = asked.budget;
        let (works_for, trusted, seen) = (asked.works_for, asked.trusted, asked.seen);
        let mut policy = Policy { manifest: asked.allow, secrets, works_for, live, trusted, seen };
        if adopted {
            policy.may_have_heard();
        }
        let agent = Agent::new(asked.instance, policy, asked.publish, asked.credentials, self.node.clone());
        let agent = Arc::new(agent);
        if let Some(authority) = authority(&agent, adopted)? {
            // It is the first: the agent was made above.
            let _ = agent.desk.authority.set(authority);
        }
        let registered = self.register(&agent)?;
        drop(changing);
        self.forget_past_lives(&agent.instance);
        self.renew_one(&agent); // a change that was made before it was in the list
        let running = agent.meter.begin(budget).map_err(|error| {
            RpcError::new(Code::FAILED, format!("agent {} gets no network: {error}", agent.instance.agent))
                .explained(
                    "what was spent is known before more is",
                    format!("nullctl net budget {} --reset", agent.instance.agent),
                )
        })?;
        let ports = agent.publish.iter().map(|published| published.guest_port).collect();
        let opened = namespace::open(asked.uid, ports, adopt).map_err(|error| failed(&error))?;
        // Dropped after the tasks that serve the ports: closed first, then shut.
        let published = self.firewall.publish(&agent.instance, &agent.publish)?;
        let doors = publish::listen(&agent.publish).map_err(|error| failed(&error))?;
        let receipt = Event::NetAttached { instance: agent.instance.clone(), names };
        self.node.receipts.durable(receipt).map(drop).map_err(|error| {
            RpcError::new(Code::UNAVAILABLE, format!("no receipt, so no network: {error}")).explained(
                "a network is handed out after its receipt is durable",
                "see that ctxgraph is running",
            )
        })?;
        let namespace = opened.namespace.try_clone().map_err(|error| failed(&error))?;
        let serving = self.start(&agent, opened, doors).map_err(|error| failed(&error))?;
        log::info("attached", &[("agent", &agent.instance), ("names", &names), ("adopted", &adopted)]);
        let answer = Attached {
            env: broker::env(&agent.policy()),
            authority: agent.desk.authority.get().map(|authority| authority.pem().to_owned()),
            ..namespace::attached()
        };
        let answered = call.answer(to_value(&answer)?, &[namespace.as_fd()]);
        drop(namespace);
        if answered.is_ok() {
            hold(call.connection);
        }
        serving.stop(&agent.instance);
        drop(published);
        drop(running);
        drop(registered);
        self.node.receipts.note(Event::NetDetached { instance: agent.instance.clone() });
        log::info("detached", &[("agent", &agent.instance)]);
        Ok(Outcome::Answered)
    }

    fn register(&self, agent: &Arc<Agent>) -> Result<Registered<'_>, RpcError> {
        let mut agents = self.agents();
        if agents.contains_key(&agent.instance) {
            let message = format!("`{}` has a network already", agent.instance);
            return Err(RpcError::new(Code::CONFLICT, message)
                .explained("one network for one life of an agent", "end the other connection first"));
        }
        if agents.len() >= limits::AGENTS_RUNNING_MAX {
            let rule = format!("at most {} networks at a time", limits::AGENTS_RUNNING_MAX);
            return Err(RpcError::new(Code::LIMIT, "no room for another network")
                .explained(rule, "stop an agent first"));
        }
        agents.insert(agent.instance.clone(), agent.clone());
        Ok(Registered { egress: self, instance: agent.instance.clone() })
    }

    /// Starts an agent's tasks.
    fn start(&self, agent: &Arc<Agent>, opened: Opened, doors: Vec<Door>) -> io::Result<Serving> {
        let worker = self.workers.next();
        let _in_runtime = worker.enter();
        let dns_udp = tokio::net::UdpSocket::from_std(opened.dns_udp)?;
        let dns_tcp = tokio::net::TcpListener::from_std(opened.dns_tcp)?;
        let listener = tokio::net::TcpListener::from_std(opened.proxy)?;
        // The runtime has no type for a netlink socket; for waiting, any socket's will do.
        let refusals = UnixDatagram::from_std(opened.refusals.into())?;
        let doors = doors.into_iter().map(Door::within_runtime).collect::<io::Result<Vec<_>>>()?;
        let namespace = Arc::new(opened.namespace);
        let rules = opened.rules;
        let dns = DnsServer::new(agent.clone());
        let agent = agent.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (done, ended) = std::sync::mpsc::channel();
        worker.spawn(async move {
            tokio::select! {
                _ = stopped => {}
                () = dns.clone().udp(dns_udp) => {}
                () = dns.tcp(dns_tcp) => {}
                () = proxy::serve(agent.clone(), listener) => {}
                () = watch_refusals(&agent, &refusals) => {}
                () = guard::vm(&agent, &rules, &namespace) => {}
                () = publish::serve(agent.clone(), namespace.clone(), doors) => {}
                () = budget::spend(&agent) => {}
            }
            drop(done); // all sockets were dropped with their futures
        });
        Ok(Serving { stop, ended })
    }

    fn grants(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetGrants { agent, counters_only } = call.request.params()?;
        let lives: Vec<_> = self.agents().values().cloned().collect();
        let wanted = lives.iter().filter(|one| agent.as_ref().is_none_or(|name| one.instance.agent == *name));
        let grants = in_a_line(wanted.map(|one| one.grants(counters_only)).collect());
        Ok(Outcome::Result(to_value(&grants)?))
    }

    /// For the node's own services, which have no resolver.
    fn resolve(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let asked: NetResolve = call.request.params()?;
        let snapshot = self.node.settings.now();
        let resolved = self.node.resolver.resolve_for_node(&asked.name, &snapshot);
        let addresses = self.workers.own().block_on(resolved).map_err(|error| {
            RpcError::new(Code::UNAVAILABLE, error.to_string()).explained(
                "a name stands for what network.hosts or a resolver says, and never for the node itself",
                "set network.dns or network.hosts in nulld.toml",
            )
        })?;
        Ok(Outcome::Result(to_value(&Resolved { addresses })?))
    }

    fn denials(&self, mut call: Call<'_>) -> Result<Outcome, RpcError> {
        let asked: NetDenials = call.request.params()?;
        let denials = &self.node.denials;
        let page = denials.page(0, asked.agent.as_ref());
        let mut next = page.next;
        let (kept, left_out) = page::newest_that_fit(page.denials);
        let page = to_value(&DenialsPage { denials: kept, dropped: page.dropped + left_out })?;
        if !asked.follow {
            return Ok(Outcome::Result(page));
        }
        if call.answer(page, &[]).is_err() {
            return Ok(Outcome::Answered);
        }
        let mut pending = Vec::new();
        while !gone(call.connection) {
            for denial in pending {
                if call.notify("denial", to_value(&denial)?).is_err() {
                    return Ok(Outcome::Answered);
                }
            }
            denials.wait(next, FOLLOW_POLL);
            let page = denials.page(next, asked.agent.as_ref());
            (next, pending) = (page.next, page.denials);
        }
        Ok(Outcome::Answered)
    }
}

impl Handler for Egress {
    fn status(&self) -> Option<String> {
        Some(self.node.denials.in_words())
    }

    fn call(&self, call: Call<'_>) -> Result<Outcome, RpcError> {
        match call.request.method.as_str() {
            "net.attach" => self.attach(call),
            "net.grants" => self.grants(&call),
            "net.denials" => self.denials(call),
            "net.resolve" => self.resolve(&call),
            "net.fetch" => self.fetch(call),
            "net.expose" => self.expose(&call),
            "net.allow" => self.allow(&call),
            "net.deny" => self.deny(&call),
            "net.revoke" => self.revoke(&call),
            "net.lift" => self.lift(&call),
            "net.policy" => self.policy(&call),
            "net.explain" => self.explain(&call),
            "net.suggest" => self.suggest(&call),
            "net.watch" => self.watch(call),
            "net.forget" => self.forget(&call),
            "net.budget" => self.budgets(&call),
            "net.reset_budget" => self.reset_budget(&call),
            "secret.set" => self.set_secret(call),
            "secret.list" => self.list_secrets(&call),
            "secret.remove" => self.remove_secret(&call),
            other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("egress has no method `{other}`"))),
        }
    }
}

/// An agent in the list; it leaves the list when this is dropped, on every way out.
struct Registered<'a> {
    egress: &'a Egress,
    instance: Instance,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let agent = self.egress.agents().remove(&self.instance);
        if let Some(agent) = agent {
            agent.end();
        }
        self.egress.node.denials.forget_rate(&self.instance);
    }
}

/// Running tasks of an agent. Dropping it stops them too.
struct Serving {
    stop: oneshot::Sender<()>,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Serving {
    /// Stops the tasks and waits until their sockets are closed.
    fn stop(self, instance: &Instance) {
        drop(self.stop);
        if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(TEARDOWN) {
            log::error("teardown_slow", &[("agent", instance)]);
        }
    }
}

/// Turns logged packets into denials, for ever.
async fn watch_refusals(agent: &Agent, socket: &UnixDatagram) {
    loop {
        if socket.readable().await.is_err() {
            return std::future::pending().await; // the runtime ends
        }
        match socket.try_io(Interest::READABLE, || nflog::receive(socket)) {
            Ok(refused) => {
                for one in refused {
                    agent.deny(&one.what, one.rule, one.remedy);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // ENOBUFS: the kernel dropped some log messages, not the refusals themselves.
                log::warning("refusals_lost", &[("agent", &agent.instance), ("error", &error)]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn check(asked: &NetAttach) -> Result<(), RpcError> {
    let wrong = |message: String, rule: &str| {
        Err(RpcError::new(Code::INVALID_PARAMS, message).explained(rule, "this is an error of the caller"))
    };
    if asked.uid < VM_UID_BASE {
        return wrong(format!("uid {} cannot own a TAP", asked.uid), "a jail's uid is 100000 or above");
    }
    if asked.allow.len() > limits::NETWORK_ALLOW_MAX {
        return wrong(format!("{} grants", asked.allow.len()), "NETWORK_ALLOW_MAX is the most");
    }
    let legal = limits::PUBLISH_PORT_MIN..=limits::PUBLISH_PORT_MAX;
    let is_legal = |one: &Published| {
        one.guest_port != 0
            && legal.contains(&one.node_port)
            && (1..=limits::PUBLISH_SOURCES_MAX).contains(&one.from.len())
    };
    if asked.publish.len() > limits::PUBLISH_PER_AGENT_MAX || !asked.publish.iter().all(is_legal) {
        return wrong("a port that cannot be published".into(), "the manifest's rules for network.publish");
    }
    Ok(())
}

fn one_descriptor(connection: &mut Connection) -> Result<Option<OwnedFd>, RpcError> {
    let mut fds = connection.take_fds();
    let first = fds.pop();
    if fds.is_empty() {
        return Ok(first);
    }
    Err(RpcError::new(Code::INVALID_PARAMS, "more than one descriptor")
        .explained("one network namespace may be passed", "this is an error of the caller"))
}

fn authority(agent: &Agent, adopted: bool) -> Result<Option<Authority>, RpcError> {
    let made = Authority::new(&agent.instance, &agent.policy().manifest).map_err(|error| failed(&error))?;
    if adopted && made.is_some() {
        let effect = "its guest trusts the one before, and refuses TLS to intercepted names";
        let fields: [(&str, &dyn std::fmt::Display); 3] =
            [("agent", &agent.instance), ("effect", &effect), ("remedy", &"stop and start the agent")];
        log::warning("authority_made_anew", &fields);
    }
    Ok(made)
}

fn failed(error: &dyn std::error::Error) -> RpcError {
    log::error("attach_failed", &[("error", &error)]);
    RpcError::new(Code::FAILED, format!("the network cannot be made: {error}"))
}

/// Waits until the caller ends the connection. Whatever else it sends is not read as a call.
fn hold(connection: &mut Connection) {
    while let Ok(Some(_)) = connection.read_line() {}
}

/// Whether the peer has hung up.
fn gone(connection: &Connection) -> bool {
    let mut fds = [PollFd::new(connection.stream(), PollFlags::RDHUP)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) => {
            fds.iter().any(|fd| fd.revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR))
        }
        Err(_) => true,
    }
}

/// All agents' counters, and as much of their lists as a line has room for.
fn in_a_line(mut agents: Vec<AgentGrants>) -> Grants {
    let apart = |agent: &mut AgentGrants| {
        let AgentGrants { publish, allow, live, synthetic, .. } = agent;
        (take(publish), take(allow), take(live), take(synthetic))
    };
    let lists: Vec<_> = agents.iter_mut().map(apart).collect();
    let counters = agents.iter().map(page::bytes_of).sum();
    let (mut room, mut less) = (page::BYTES_MAX.saturating_sub(counters), [0; 4]);
    let mut left_out = 0;
    for (agent, (publish, allow, live, synthetic)) in agents.iter_mut().zip(lists) {
        (agent.publish, less[0]) = page::first_that_fit(publish, &mut room);
        (agent.allow, less[1]) = page::first_that_fit(allow, &mut room);
        (agent.live, less[2]) = page::first_that_fit(live, &mut room);
        let (fit, rest) = page::first_that_fit(synthetic, &mut room);
        (agent.synthetic, less[3]) = (fit.into_iter().collect(), rest);
        left_out += less.iter().sum::<u64>();
    }
    Grants { agents, left_out }
}

fn to_value(value: &impl serde::Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|error| RpcError::new(Code::INTERNAL, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_of_all_agents_fit_a_line_with_what_their_lists_have_room_for() {
        let mut grant: abi::network::NetworkGrant = "api.test".parse().unwrap();
        grant.paths = vec![format!("/{}", "x".repeat(250)); limits::GRANT_PATHS_MAX];
        let agent = |n: usize| AgentGrants {
            instance: format!("{}.{}", "a".repeat(32), u64::MAX - n as u64).parse().unwrap(),
            allow: vec![grant.clone(); limits::NETWORK_ALLOW_MAX],
            live: vec![grant.clone()],
            connections: u32::MAX,
            connections_total: u64::MAX,
            bytes_out: u64::MAX,
            bytes_in: u64::MAX,
            denials: u64::MAX,
            publish: vec![],
            published_connections: u32::MAX,
            published_total: u64::MAX,
            seen: Default::default(),
            is_confined: false,
            synthetic: BTreeMap::from([("api.test".parse().unwrap(), "198.18.0.1".into())]),
        };
        for agents in [1, 2, limits::AGENTS_RUNNING_MAX] {
            let grants = in_a_line((0..agents).map(agent).collect());
            assert_eq!(grants.agents.len(), agents, "the counters are always there");
            let shown: usize = grants
                .agents
                .iter()
                .map(|agent| agent.allow.len() + agent.live.len() + agent.synthetic.len())
                .sum();
            assert!(
                shown > 0
                    && shown as u64 + grants.left_out == (agents * (limits::NETWORK_ALLOW_MAX + 2)) as u64
            );
            assert!(serde_json::to_string(&grants).unwrap().len() + 512 < limits::LINE_BYTES_MAX);
        }
    }

    #[test]
    fn a_tap_never_belongs_to_a_service() {
        let asked = |uid| NetAttach {
            instance: "a.1".parse().unwrap(),
            uid,
            allow: vec![],
            publish: vec![],
            credentials: vec![],
            budget: Default::default(),
            works_for: None,
            trusted: Vec::new(),
            seen: Default::default(),
        };
        assert!(check(&asked(0)).is_err() && check(&asked(201)).is_err());
        assert!(check(&asked(VM_UID_BASE)).is_ok());
    }
}
