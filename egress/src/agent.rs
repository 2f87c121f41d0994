//! One attached agent: what it may reach, its open connections, its counters, and the node-wide parts its tasks use.
//!
//! Must hold: a change of what it may reach is in force, and connections that no longer pass are told to end, before
//! [`Agent::renew`] returns.

use abi::control::{AgentGrants, FirewallRecord, NetExposed};
use abi::exposure::Exposure;
use abi::ids::{AgentName, HostName, Instance, SecretName};
use abi::ledger::Event;
use abi::manifest::Published;
use abi::network::{NetworkGrant, SecretPolicy};
use abi::{limits, log};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

use crate::broker::{Desk, Hall, Trust};
use crate::bucket::Bucket;
use crate::budget::{Meter, Meters};
use crate::buffers::{Place, Shared, Undecided};
use crate::denials::{Denials, Rule};
use crate::ends::Unclaimed;
use crate::live::Live;
use crate::names::Names;
use crate::open::{Asked, Connections, Cut, Entry};
use crate::pipe::Pipes;
use crate::policy::{self, Admission, Policy, Refused};
use crate::receipts::Receipts;
use crate::records::{Item, Records};
use crate::resolve::Resolver;
use crate::secrets::Secrets;
use crate::settings::Settings;

/// What all agents share.
#[derive(Debug)]
pub struct Node {
    pub settings: Settings,
    pub receipts: Arc<Receipts>,
    pub denials: Denials,
    pub records: Records,
    pub live: Live,
    pub resolver: Resolver,
    /// What hosts are believed by, towards which egress makes TLS itself.
    pub trust: Trust,
    /// The broker's room.
    pub hall: Hall,
    /// Bounds the threads that wait for receipts.
    pub receipt_turns: Arc<Semaphore>,
    pub pipes: Pipes,
    pub secrets: Secrets,
    pub meters: Meters,
}

impl Node {
    /// With what is kept in `state`, and the key to its secrets in the TPM if there is one.
    pub fn new(settings: Settings, receipts: Receipts, state: &Path, tpm: &Path) -> io::Result<Node> {
        let receipts = Arc::new(receipts);
        Ok(Node {
            settings,
            receipts: receipts.clone(),
            denials: Denials::new(receipts),
            records: Records::default(),
            live: Live::read(state.join("policy.json")),
            resolver: Resolver::default(),
            trust: Trust::default(),
            hall: Hall::default(),
            receipt_turns: Arc::new(Semaphore::new(limits::RECEIPTS_WAITING_MAX)),
            pipes: Pipes::default(),
            secrets: Secrets::open(state, tpm)?,
            meters: Meters::open(&state.join("meters"))?,
        })
    }

    /// Tells that somebody else's change of packet rules was undone.
    pub fn restored(&self, instance: Option<&Instance>, by: &str) {
        let whose = instance.map_or("node".to_owned(), Instance::to_string);
        log::warning("firewall_restored", &[("of", &whose), ("changed_by", &by)]);
        let (instance, by) = (instance.cloned(), by.to_owned());
        let record = FirewallRecord { unix_ms: unix_ms_now(), instance: instance.clone(), by: by.clone() };
        self.records.push(Item::Firewall(record));
        self.receipts.note(Event::FirewallRestored { instance, by });
    }
}

/// One attached agent.
#[derive(Debug)]
pub struct Agent {
    pub instance: Instance,
    pub publish: Vec<Published>,
    /// Secrets that its manifest refers to.
    pub credentials: Vec<SecretName>,
    pub meter: Arc<Meter>,
    pub counters: Counters,
    /// Its part of the broker.
    pub desk: Desk,
    pub node: Arc<Node>,
    reach: Mutex<Reach>,
    /// Held by who waits for connections to be over.
    exposing: Mutex<()>,
    /// How fast its published ports may be connected to.
    knocks: Mutex<Bucket>,
    /// Its share of the node's turns.
    receipt_turns: Arc<Semaphore>,
    sockets: Arc<Shared>,
    /// First bytes of its connections.
    pub undecided: Arc<Undecided>,
}

/// What changes while it runs.
#[derive(Debug)]
struct Reach {
    policy: Policy,
    names: Names,
    /// Names that only a wildcard admits, of those that have an address.
    wild: usize,
    open: Connections,
    is_over: bool,
}

/// Numbers for `net.grants`.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections: AtomicU32,
    pub connections_total: AtomicU64,
    pub bytes_out: AtomicU64,
    pub bytes_in: AtomicU64,
    pub denials: AtomicU64,
    pub published_connections: AtomicU32,
    pub published_total: AtomicU64,
    /// Pipes that hold bytes of its connections.
    pub pipes: AtomicU32,
}

impl Agent {
    /// An agent whose exact names have their addresses.
    pub fn new(
        instance: Instance,
        policy: Policy,
        publish: Vec<Published>,
        credentials: Vec<SecretName>,
        node: Arc<Node>,
    ) -> Agent {
        let knocks = Mutex::new(Bucket::new(limits::PUBLISH_CONNECTIONS_PER_SECOND_MAX, Instant::now()));
        let names = Names::new(instance.agent.clone());
        let mut reach = Reach { policy, names, wild: 0, open: Connections::default(), is_over: false };
        reach.name_exact(&instance);
        let receipt_turns = Arc::new(Semaphore::new(limits::RECEIPTS_WAITING_PER_AGENT_MAX));
        let meter = node.meters.of(&instance.agent);
        let (reach, sockets, undecided) = (Mutex::new(reach), Arc::default(), Arc::default());
        let (counters, desk) = (Counters::default(), Desk::default());
        Agent {
            instance,
            publish,
            credentials,
            meter,
            counters,
            desk,
            node,
            reach,
            exposing: Mutex::default(),
            knocks,
            receipt_turns,
            sockets,
            undecided,
        }
    }

    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is this agent's, or works for it.
    pub fn is_of(&self, agent: &AgentName) -> bool {
        self.instance.agent == *agent || self.reach().policy.works_for.as_ref() == Some(agent)
    }

    /// What it may reach, as of now.
    pub fn policy(&self) -> Policy {
        self.reach().policy.clone()
    }

    /// Changes a part of what it may reach; returns how many connections were cut. Two changes at a time do not undo each other.
    pub fn renew(&self, change: impl FnOnce(&mut Policy)) -> usize {
        let mut reach = self.reach();
        change(&mut reach.policy);
        reach.name_exact(&self.instance);
        self.cut_refused(&mut reach)
    }

    /// A secret was set: where it goes is what the store has now.
    pub fn credential_set(&self, secret: &SecretPolicy) -> usize {
        self.renew(|policy| {
            policy.secrets.retain(|known| known.name != secret.name);
            policy.secrets.push(secret.clone());
        })
    }

    /// A secret was removed. Its host stays the broker's, which has nothing to add any more and refuses: to take a credential away
    /// opens no other way to the host.
    pub fn credential_removed(&self, secret: &SecretName) -> usize {
        self.reach().open.tell_users_of(secret)
    }

    /// Cuts what passes no more, a live grant whose time is over among it; returns how many.
    pub fn cut_expired(&self) -> usize {
        self.cut_refused(&mut self.reach())
    }

    fn cut_refused(&self, reach: &mut Reach) -> usize {
        self.tell_refused(reach)
    }

    /// Tells what passes no more to end; of each, what ends when it is over.
    fn tell_refused(&self, reach: &mut Reach) -> usize {
        let Reach { policy, open, .. } = reach;
        open.tell_refused(policy, &self.instance.agent, unix_ms_now())
    }

    /// The life has seen this, too. `Ok`: each connection that passes no more by it is over, and not only told, whoever told it.
    pub fn expose(&self, seen: Exposure) -> Result<NetExposed, String> {
        let (seen, cut) = {
            let mut reach = self.reach();
            reach.policy.seen = reach.policy.seen.and(seen);
            (reach.policy.seen, self.tell_refused(&mut reach) as u64)
        };
        // One at a time: what another waits for is not in the list meanwhile.
        let _turn = self.exposing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ending = self.reach().open.take_ending();
        let deadline = Instant::now() + Duration::from_millis(limits::NET_CUT_MS_MAX);
        while let Some(over) = ending.last() {
            let left = deadline.saturating_duration_since(Instant::now());
            if over.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                self.reach().open.give_back(ending);
                return Err(format!("a connection is not over within {} ms", limits::NET_CUT_MS_MAX));
            }
            ending.pop();
        }
        Ok(NetExposed { seen, cut })
    }

    /// Cuts all connections to names.
    pub fn cut_all(&self, why: Cut) {
        self.reach().open.tell_all_to_names(why);
    }

    /// The agent has no network any more: what cage fetches for it ends too, and nothing begins.
    pub fn end(&self) {
        self.reach().is_over = true;
        self.cut_all(Cut::Revoked);
    }

    /// The address that a name of the guest's question has.
    pub fn address_of(&self, name: &HostName) -> Result<Ipv4Addr, Refused> {
        let mut reach = self.reach();
        reach.policy.resolves(&self.instance.agent, name, unix_ms_now())?;
        reach.room_for(name)?;
        if !reach.names.has(name) {
            reach.wild += 1; // exact names have theirs, so a wildcard admits it
        }
        Ok(reach.names.address(name))
    }

    /// The name that an address stands for.
    pub fn name_at(&self, address: Ipv4Addr) -> Option<HostName> {
        self.reach().names.at(address).cloned()
    }

    fn decide(&self, reach: &Reach, name: &HostName, port: u16) -> Result<Admission, Refused> {
        let admission = reach.policy.decide(&self.instance.agent, name, port, unix_ms_now())?;
        self.affords().map(|()| admission)
    }

    fn affords(&self) -> Result<(), Refused> {
        self.meter.admits().map_err(|exhausted| Refused {
            rule: "budget",
            because: exhausted.to_string(),
            remedy: exhausted.remedy(),
        })
    }

    /// What would happen to a connection, before its name is asked for: whether there is room for it, too.
    pub fn foresee(&self, name: &HostName, port: u16) -> Result<Admission, Refused> {
        let reach = self.reach();
        let admission = self.decide(&reach, name, port)?;
        reach.room_for(name)?;
        Ok(admission)
    }

    /// Decides a connection, and keeps it where a change finds it until the entry is dropped.
    pub fn enter(self: &Arc<Agent>, name: &HostName, port: u16) -> Result<(Admission, Entry), Refused> {
        let mut reach = self.reach();
        let admission = self.decide(&reach, name, port)?;
        if !reach.policy.is_trusted(&admission.name) {
            reach.policy.seen = reach.policy.seen.and(Exposure::UNTRUSTED_CONTENT);
        }
        let asked = Asked::Name { name: name.clone(), port, admission: admission.clone() };
        Ok((admission, reach.open.keep(self, asked)))
    }

    /// The same for a request that cage makes for the agent.
    pub fn enter_fetch(self: &Arc<Agent>, name: &HostName, port: u16) -> Result<(Admission, Entry), Refused> {
        let mut reach = self.reach();
        if reach.is_over {
            return Err(Refused {
                rule: "limit",
                because: format!("{} has no network any more", self.instance),
                remedy: "start the agent again".into(),
            });
        }
        let admission = reach.policy.decide_fetch(&self.instance.agent, name, port, unix_ms_now())?;
        self.affords()?;
        let asked = Asked::Fetch { name: name.clone(), port, admission: admission.clone() };
        Ok((admission, reach.open.keep(self, asked)))
    }

    /// The same for a connection to a published port.
    pub fn enter_published(self: &Arc<Agent>, port: u16) -> Result<Entry, Refused> {
        let mut reach = self.reach();
        reach.policy.confine_port(port)?;
        self.affords()?;
        reach.policy.seen = reach.policy.seen.and(Exposure::UNTRUSTED_CONTENT);
        Ok(reach.open.keep(self, Asked::Published { port }))
    }

    /// A connection of its list is over.
    pub fn leave(&self, id: u64) {
        self.reach().open.remove(id);
    }

    /// Takes bytes of its connections before they pass. An error: they may not, and the denial is told.
    pub fn take_bytes(&self, bytes: u64) -> Result<(), Cut> {
        self.meter.take_bytes(bytes).map_err(|exhausted| {
            self.deny(&exhausted.what(), "budget", &exhausted.remedy());
            Cut::Budget
        })
    }

    /// Counts and records a denial.
    pub fn deny(&self, what: &str, rule: Rule, remedy: &str) {
        self.counters.denials.fetch_add(1, Ordering::Relaxed);
        if let Some(denial) = self.node.denials.record(&self.instance, what, rule, remedy) {
            self.node.records.push(Item::Denial(denial));
        }
    }

    /// One connection more, if there is room; it is given back when the place is dropped.
    pub fn connection_place(self: &Arc<Agent>) -> Option<Place> {
        let most = limits::PROXY_CONNECTIONS_PER_AGENT_MAX;
        let slot = self.slot(|counters| &counters.connections, most)?;
        self.counters.connections_total.fetch_add(1, Ordering::Relaxed);
        Some(Place::new(slot, &self.sockets))
    }

    /// The same for a connection to a published port, if they do not come too fast.
    pub fn published_place(self: &Arc<Agent>) -> Option<Place> {
        if !self.knocks.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return None;
        }
        let most = limits::PUBLISH_CONNECTIONS_PER_AGENT_MAX;
        let slot = self.slot(|counters| &counters.published_connections, most)?;
        self.counters.published_total.fetch_add(1, Ordering::Relaxed);
        Some(Place::new(slot, &self.sockets))
    }

    /// A pipe more for bytes that wait, if it has not too many.
    pub fn pipe_slot(self: &Arc<Agent>) -> Option<Slot> {
        self.slot(|counters| &counters.pipes, limits::PROXY_PIPES_PER_AGENT_MAX)
    }

    fn slot(self: &Arc<Agent>, of: fn(&Counters) -> &AtomicU32, most: usize) -> Option<Slot> {
        let slot = Slot { agent: self.clone(), of };
        let before = of(&self.counters).fetch_add(1, Ordering::Relaxed);
        ((before as usize) < most).then_some(slot) // else dropping it takes the count back
    }

    /// Waits for the receipt without which a connection is not made, and returns its place in the ledger; the error says that there
    /// is none. Its end will be a record, for which there must be room. An agent that wants many gets them in its share of turns, so
    /// that another's first one waits for few.
    pub async fn receipt(&self, event: Event) -> Result<u64, String> {
        let (node, kept) = (self.node.clone(), event.clone());
        let durable = move || {
            let receipt = node.receipts.durable(event).map_err(|error| error.to_string())?;
            Ok(Unclaimed::new(node, kept, receipt.seq))
        };
        let unclaimed = self.receipt_by(durable).await;
        unclaimed.map(Unclaimed::claim).map_err(|error| format!("no receipt, so no connection: {error}"))
    }

    /// The same for one that `durable` gets and remembers, also when nobody waits for it any more.
    pub async fn receipt_by<T: Send + 'static>(
        &self,
        durable: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let turn = async {
            self.node.receipts.room().await;
            self.in_turn(durable).await?
        };
        let waited = tokio::time::timeout(Duration::from_millis(limits::RECEIPT_MS_MAX), turn).await;
        waited.unwrap_or_else(|_| Err("it took too long".into())).inspect_err(|error| {
            log::error("no_receipt", &[("agent", &self.instance), ("error", error)]);
        })
    }

    /// Runs what waits for a disk on a thread of its own, when it is the agent's turn.
    pub async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let share = self.receipt_turns.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let turn =
            self.node.receipt_turns.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        // The turn ends with the work, which goes on when nobody waits for it any more.
        let work = move || {
            let _turns = (share, turn);
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
    }

    /// The agent's line in `net.grants`, with its lists or without.
    pub fn grants(&self, counters_only: bool) -> AgentGrants {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reach = self.reach();
        let (names, now) = (reach.names.iter().filter(|_| !counters_only), unix_ms_now());
        AgentGrants {
            instance: self.instance.clone(),
            allow: if counters_only { Vec::new() } else { reach.policy.in_force(now) },
            live: if counters_only { Vec::new() } else { reach.policy.live_grants(now) },
            connections: self.counters.connections.load(Ordering::Relaxed),
            connections_total: count(&self.counters.connections_total),
            bytes_out: count(&self.counters.bytes_out),
            bytes_in: count(&self.counters.bytes_in),
            denials: count(&self.counters.denials),
            publish: if counters_only { Vec::new() } else { self.publish.clone() },
            published_connections: self.counters.published_connections.load(Ordering::Relaxed),
            published_total: count(&self.counters.published_total),
            seen: reach.policy.seen,
            is_confined: reach.policy.is_confined(),
            synthetic: names.map(|(name, address)| (name.clone(), address.to_string())).collect(),
        }
    }
}

impl Reach {
    /// Whether a name that is admitted has an address, or may have one.
    fn room_for(&self, name: &HostName) -> Result<(), Refused> {
        let most = limits::WILDCARD_NAMES_MAX;
        if self.names.has(name) || self.wild < most {
            return Ok(());
        }
        Err(Refused {
            rule: "limit",
            because: format!("more than {most} names under wildcards in one life"),
            remedy: format!("add \"{name}\" itself to capabilities.network.allow"),
        })
    }

    /// Gives each exact name its address, the broker's name for it too, in an order that does not change.
    fn name_exact(&mut self, instance: &Instance) {
        let now = unix_ms_now();
        let mut names: Vec<HostName> =
            self.policy.in_force(now).iter().filter_map(NetworkGrant::exact).cloned().collect();
        names.sort();
        for name in names {
            self.names.address(&name);
            if let Some(broker) = policy::broker_name(&name)
                && self.policy.resolves(&instance.agent, &broker, now).is_ok()
            {
                self.names.address(&broker);
            }
        }
    }
}

/// Milliseconds since 1970 by the node's clock.
pub fn unix_ms_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A counted connection.
#[derive(Debug)]
pub struct Slot {
    agent: Arc<Agent>,
    /// The counter it stands in.
    of: fn(&Counters) -> &AtomicU32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.of)(&self.agent.counters).fetch_sub(1, Ordering::Relaxed);
    }
}
