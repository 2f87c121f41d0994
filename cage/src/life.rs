//! One life of an agent, from the request to the receipt of its end. One thread each.
//!
//! Must hold: every step has a bound in time; whatever happened, the life ends with nothing of the VM left; no VM starts
//! without its receipt. Must never: leave the agent in a state that is not true.

mod again;
mod going;
mod parting;
mod steering;
mod tools;
mod vigil;

use abi::control::{Attached, NetAttach};
use abi::exposure::Exposure;
use abi::guest::{Exit, PROTOCOL};
use abi::ids::Instance;
use abi::ledger::Event;
use abi::manifest::RootfsRef;
use abi::{limits, log};
use std::collections::VecDeque;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::agents::{Cage, Cause, WantedAgent};
use crate::desk::{Desk, Mandate};
use crate::disks::Disks;
use crate::guest::{Said, Session};
use crate::jail::cgroup::{Bounds, IoBound, VmCgroup};
use crate::jail::{JailNetwork, JailSpec};
use crate::lease::{self, Keeper, Leases, Seen};
use crate::manifests::Loaded;
use crate::shares::Wish;
use crate::state::Happening;
use crate::store::Hold;
use crate::tasks::Errand;
use crate::turns::Turn;
use crate::vmm::{self, Console, JailDir, Slot};
use crate::{ending, meet, order};

pub use steering::{Ask, Change as Asked};

/// Mail that may wait for a life.
pub const MAIL_MAX: usize = 32;

/// What a life waits for.
#[derive(Debug)]
pub enum Mail {
    Connected(Arc<Session>),
    Guest(Said),
    VmmEnded(ExitStatus),
    Stop,
    /// There is an [`Ask`].
    Asked,
}

/// A life to be lived.
#[derive(Debug)]
pub struct Order {
    pub instance: Instance,
    pub loaded: Loaded,
    pub cause: Cause,
    /// What it is to do beside its manifest.
    pub mandate: Mandate,
    /// For a task.
    pub errand: Option<Arc<Errand>>,
    pub mailbox: SyncSender<Mail>,
    pub mail: Receiver<Mail>,
}

/// Why a life ends.
#[derive(Debug)]
enum End {
    /// Somebody asked.
    Stopped,
    /// It reached a bound of its manifest, its lifetime or its idle time.
    Expired(again::Outcome, String),
    Unhealthy(String),
    ByItself(Exit),
    Broken(String),
}

/// Everything of a VM that must be given back.
#[derive(Debug, Default)]
struct Held {
    image: Option<Hold>,
    receipt: bool,
    slot: Option<Slot>,
    disks: Option<Disks>,
    jail: Option<JailDir>,
    cgroup: Option<Arc<VmCgroup>>,
    keeper: Option<Keeper>,
    desk: Option<Arc<Desk>>,
    /// Its end ends the wait for the guest's connection.
    listening: Option<PipeWriter>,
    session: Option<Arc<Session>>,
    launched: bool,
    /// Since when its tasks stand still.
    frozen: Option<Instant>,
    /// It never goes on, and what it wrote is evidence.
    is_quarantined: bool,
    vmm_ended: Option<ExitStatus>,
}

struct Life<'a> {
    cage: &'a Arc<Cage>,
    agent: &'a Arc<Agent>,
    order: Order,
    console: Arc<Console>,
    held: Held,
    /// Mail that came while something else was waited for.
    waiting: VecDeque<Mail>,
    /// When the agent's command began to run.
    ran_since: Option<Instant>,
}

/// Lives one life, to its end.
pub fn run(cage: &Arc<Cage>, agent: &Arc<Agent>, order: Order) {
    let mut life = Life {
        cage,
        agent,
        order,
        console: Arc::default(),
        held: Held::default(),
        waiting: VecDeque::new(),
        ran_since: None,
    };
    let end = match life.come_up() {
        Ok(()) => life.go_on(),
        Err(end) => end,
    };
    let ran_ms = life.ran_since.map(|since| since.elapsed().as_millis() as u64);
    agent.update(|facts| facts.ran_ms = ran_ms);
    life.take_claim(&end);
    life.wind_down(&end);
    let problems = life.tear_down();
    let (due, ended) = (life.conclude(end, &problems), life.order.instance.clone());
    drop(life); // whoever asked it for something at the last moment hears that it has ended
    if let Some(due) = due {
        parting::start_again(cage, agent, &ended, due);
    }
}

/// Appends a receipt for something that has happened: if it cannot be stored, that is said, not undone.
pub fn record(cage: &Cage, event: Event) {
    let what = format!("{event:?}");
    if let Err(error) = cage.ledger.append(event) {
        log::error("receipt_missing", &[("event", &what), ("error", &error)]);
    }
}

/// Chains a receipt that nothing waits for; it is durable soon.
fn note(cage: &Cage, event: Event) {
    let what = format!("{event:?}");
    if let Err(error) = cage.ledger.note(event) {
        log::error("receipt_missing", &[("event", &what), ("error", &error)]);
    }
}

fn broken(error: impl std::fmt::Display) -> End {
    End::Broken(error.to_string())
}

impl Life<'_> {
    fn instance(&self) -> &Instance {
        &self.order.instance
    }

    /// Whether somebody asked for the end meanwhile.
    fn asked_to_stop(&self) -> bool {
        self.agent.facts().state.now() == abi::control::AgentState::Stopping
    }

    fn reached(&self, stage: &str) -> Result<(), End> {
        self.agent.reached(stage);
        if self.asked_to_stop() { Err(End::Stopped) } else { Ok(()) }
    }

    /// All stages of a start, in order.
    fn come_up(&mut self) -> Result<(), End> {
        self.reached("manifest")?;
        let (rootfs, image) = self.rootfs()?;
        let _turn = self.turn()?; // given back when the guest is ready, or has failed to be
        self.receipt()?;
        let (control, memory, uid) = self.disk_and_jail()?;
        let (network, netns, attached) = self.leases(memory, uid)?;
        self.launch(rootfs, uid, control, network, netns)?;
        let (manifest, has_tree) = (&self.order.loaded.manifest, self.order.mandate.has_tree);
        let start = order::start(self.instance(), manifest, &image, attached.as_ref());
        let mut start = abi::guest::Start { has_tree, ..start };
        if let Some(errand) = &self.order.errand {
            errand.shape(&mut start);
        }
        self.greet(start)
    }

    fn rootfs(&mut self) -> Result<(Vec<std::path::PathBuf>, abi::control::Image), End> {
        let reference = self.order.loaded.manifest.rootfs.clone();
        if let RootfsRef::Name(name) = &reference {
            let agent = self.agent;
            let waited = self.cage.imports.wait(name, &mut |progress| {
                agent.update(|facts| facts.importing = progress);
                !self.asked_to_stop()
            });
            agent.update(|facts| facts.importing = None);
            waited.map_err(|why| End::Broken(format!("rootfs `{name}`: {why}")))?;
        }
        let held = self.cage.store.hold(&reference, &self.agent.name, "runs from it");
        let (hold, digest, mut disks, image) = held.map_err(broken)?;
        disks.extend(self.order.errand.iter().flat_map(|errand| errand.disks.clone()));
        self.held.image = Some(hold);
        self.agent.update(|facts| facts.rootfs_digest = Some(digest));
        self.reached("rootfs")?;
        Ok((disks, image))
    }

    /// Waits until few enough guests boot beside this one.
    fn turn(&self) -> Result<Turn, End> {
        let turn = self.cage.turns.take(&mut || !self.asked_to_stop()).ok_or(End::Stopped)?;
        self.reached("turn")?;
        Ok(turn)
    }

    /// No receipt, no VM.
    fn receipt(&mut self) -> Result<(), End> {
        let rootfs = self.agent.facts().rootfs_digest;
        let Some(rootfs) = rootfs else { return Err(End::Broken("the rootfs has no digest".into())) };
        let event = Event::AgentStarting {
            instance: self.instance().clone(),
            manifest: self.order.loaded.digest,
            rootfs,
            by: self.order.cause.by.clone(),
        };
        self.cage
            .ledger
            .append(event)
            .map_err(|error| End::Broken(format!("no receipt, so no VM: {error}")))?;
        self.held.receipt = true;
        let wanted = WantedAgent {
            instance: self.instance().clone(),
            ended: false,
            errand: self.order.errand.is_some(),
        };
        self.cage.want(|agents| {
            agents.retain(|other| other.instance.agent != wanted.instance.agent);
            agents.push(wanted);
        });
        self.reached("receipt")
    }

    fn disk_and_jail(&mut self) -> Result<(UnixListener, UnixListener, u32), End> {
        let (cage, manifest) = (self.cage, &self.order.loaded.manifest);
        let slot = cage.slots.take().map_err(broken)?;
        let uid = slot.uid();
        self.held.slot = Some(slot);
        let rootfs = self.agent.facts().rootfs_digest;
        let rootfs = rootfs.ok_or_else(|| broken("the rootfs has no digest"))?;
        let disks = Disks::prepare(cage, self.instance(), manifest, rootfs, uid).map_err(broken)?;
        let disk_in_memory_mib = if cage.disks_in_memory { disks.size_mib() } else { 0 };
        self.held.disks = Some(disks);
        self.reached("disk")?;
        let io = manifest.disk_mb_per_sec.map(|rate| IoBound::of(&cage.places.state, rate));
        let io = io.transpose().map_err(|error| End::Broken(format!("cgroup: {error}")))?;
        let (cpu_percent, memory_mib) = (manifest.cpu_percent, manifest.memory_mib);
        let bounds = Bounds { cpu_percent, memory_mib, disk_in_memory_mib, io };
        let made = cage.cgroups.create(self.instance(), bounds);
        let cgroup = Arc::new(made.map_err(|error| End::Broken(format!("cgroup: {error}")))?);
        self.held.cgroup = Some(cgroup.clone());
        self.agent.update(|facts| facts.cgroup = Some(cgroup));
        let (jail, control, memory) =
            JailDir::create(cage.places.jail(self.instance()), uid).map_err(broken)?;
        self.held.jail = Some(jail);
        self.reached("jail")?;
        Ok((control, memory, uid))
    }

    /// The VM's network, unless it may reach nothing, and its memory.
    #[expect(clippy::type_complexity, reason = "three parts of one answer, taken apart at once")]
    fn leases(
        &mut self,
        listener: UnixListener,
        uid: u32,
    ) -> Result<(Option<JailNetwork>, Option<Arc<OwnedFd>>, Option<Attached>), End> {
        if self.order.errand.as_ref().is_some_and(|errand| errand.is_verify()) {
            return Ok((None, None, None)); // nobody listens behind its sockets
        }
        let places = &self.cage.places;
        let works_for = self.order.errand.as_ref().and_then(|errand| errand.works_for()).cloned();
        let allow = self.order.loaded.manifest.network_allow.clone();
        let network = match allow.is_empty() && self.order.loaded.manifest.publish.is_empty() {
            true => None,
            false => {
                let publish = self.order.loaded.manifest.publish.clone();
                let manifest = &self.order.loaded.manifest;
                let (credentials, budget) = (manifest.credential_refs.clone(), manifest.budget);
                let instance = self.instance().clone();
                let trusted =
                    manifest.authority.as_ref().map(|authority| authority.sources.trusted_names.clone());
                let trusted = trusted.unwrap_or_default();
                let want = NetAttach {
                    instance,
                    uid,
                    allow,
                    publish,
                    credentials,
                    budget,
                    works_for: works_for.clone(),
                    trusted,
                    seen: Exposure::NONE,
                };
                let network = lease::attach_network(&places.egress, &want, None, None).map_err(broken)?;
                self.reached("network")?;
                Some((want, network))
            }
        };
        let (manifest, config) = (self.order.loaded.manifest.clone(), places.config.clone());
        let wish = Wish { instance: self.instance().clone(), manifest, config, reads_as: works_for };
        let memory = std::os::fd::AsFd::as_fd(&listener);
        let memory = lease::attach_memory(&places.ctxgraph, &wish.now(), memory, None);
        let (memory, before) = memory.map_err(broken)?;
        let (jail_network, netns, attached) = match &network {
            None => (None, None, None),
            Some((_, network)) => {
                let attached = &network.attached;
                let mac = order::mac(&attached.mac)
                    .ok_or_else(|| End::Broken(format!("egress: `{}` is not a MAC address", attached.mac)))?;
                let jail = JailNetwork { tap: attached.tap.clone(), mac };
                (Some(jail), Some(network.netns.clone()), Some(attached.clone()))
            }
        };
        let (egress, ctxgraph) = (places.egress.clone(), places.ctxgraph.clone());
        let reached = network.as_ref().map(|_| egress.clone());
        let seen = Arc::new(Seen::new(self.instance().clone(), reached, ctxgraph.clone()));
        self.held.desk = self.desk(&seen)?;
        // Without tools nobody decides by what was seen: what bounds such an agent is its manifest alone.
        let goes_by = self.held.desk.clone();
        let raised = Box::new(move |to| goes_by.as_ref().map_or(Ok(()), |desk| desk.note(to)));
        // What it finds of earlier lives: nothing of it is shown before this holds.
        if !before.is_none() {
            raised(before).map_err(broken)?;
        }
        let leases = Leases { wish, egress, ctxgraph, network, memory, listener, seen, raised };
        self.held.keeper = Some(Keeper::start(leases).map_err(broken)?);
        self.reached("memory")?;
        Ok((jail_network, netns, attached))
    }

    fn launch(
        &mut self,
        rootfs: Vec<std::path::PathBuf>,
        uid: u32,
        control: UnixListener,
        network: Option<JailNetwork>,
        netns: Option<Arc<OwnedFd>>,
    ) -> Result<(), End> {
        let (Some(cgroup), Some(jail), Some(disks)) = (&self.held.cgroup, &self.held.jail, &self.held.disks)
        else {
            return Err(End::Broken("a VM without cgroup, jail or disk".into()));
        };
        let (places, manifest) = (&self.cage.places, &self.order.loaded.manifest);
        let spec = JailSpec {
            instance: self.order.instance.clone(),
            uid,
            cgroup: cgroup.dir().to_owned(),
            root: jail.root(),
            kernel: places.guest.join("vmlinux"),
            initramfs: places.guest.join("initramfs.cpio"),
            rootfs,
            scratch: disks.workspace().to_owned(),
            volumes: disks.volumes(),
            vsock: jail.vsock(),
            scratch_bytes: disks.workspace_bytes(),
            vcpus: order::vcpus(manifest.cpu_percent),
            memory_mib: manifest.memory_mib,
            network,
        };
        let (until, listening) = io::pipe().map_err(broken)?;
        let guest_said = self.order.mailbox.clone();
        let sink = meet::Recorder {
            cage: self.cage.clone(),
            agent: self.agent.clone(),
            errand: self.order.errand.clone(),
            desk: self.held.desk.clone(),
        };
        std::thread::Builder::new()
            .name("guest".into())
            .stack_size(256 * 1024)
            .spawn(move || meet::serve(control, until, uid, sink, &guest_said))
            .map_err(broken)?;
        self.held.listening = Some(listening);
        self.held.launched = true;
        let mailbox = self.order.mailbox.clone();
        let ended = move |status| {
            let _ = mailbox.send(Mail::VmmEnded(status)); // the life is over already
        };
        match vmm::launch(&places.vmm, &spec, netns.as_deref(), &self.console, ended) {
            Ok(()) => self.reached("vm"),
            Err(error) => {
                // Without a process there will be no mail of its end.
                self.held.launched = !matches!(error, vmm::VmmError::NotStarted(_));
                Err(broken(error))
            }
        }
    }

    /// From the guest's hello to its ready.
    fn greet(&mut self, mut start: abi::guest::Start) -> Result<(), End> {
        let deadline = Instant::now() + Duration::from_millis(limits::GUEST_BOOT_MS_MAX);
        loop {
            match self.mail(deadline) {
                Some(Mail::Connected(session)) => self.held.session = Some(session),
                Some(Mail::Guest(Said::Hello(hello))) => {
                    if hello.protocol != PROTOCOL {
                        let why =
                            format!("the guest speaks protocol {}, this node {PROTOCOL}", hello.protocol);
                        return Err(End::Broken(why));
                    }
                    let session = self.held.session.as_ref().ok_or_else(|| broken("a hello from nowhere"))?;
                    start.clock_unix_ns = order::clock_unix_ns();
                    session.start(&start).map_err(broken)?;
                    self.reached("guest")?;
                }
                Some(Mail::Guest(Said::Ready(ready))) => {
                    self.run_began(&ready)?;
                    return Ok(());
                }
                Some(Mail::Asked) => {} // nothing may be asked of it yet
                Some(other) => return Err(self.ended_by(other)),
                None => {
                    let why =
                        format!("the guest was not ready within {} s", limits::GUEST_BOOT_MS_MAX / 1000);
                    return Err(End::Broken(why));
                }
            }
        }
    }

    fn run_began(&mut self, ready: &abi::guest::Ready) -> Result<(), End> {
        self.agent.reached("ready");
        let stages = ready.stages_us.iter().take(limits::GUEST_STAGES_MAX);
        let stages: Vec<_> =
            stages.map(|(stage, us)| (ending::harmless(stage, limits::GUEST_STAGE_CHARS_MAX), *us)).collect();
        let in_words =
            stages.iter().map(|(stage, us)| format!("{stage}={us}us")).collect::<Vec<_>>().join(" ");
        log::info("agent_ready", &[("instance", self.instance()), ("guest", &in_words)]);
        self.ran_since = Some(Instant::now());
        let boot_ms = self.agent.update(|facts| {
            facts.session = self.held.session.clone();
            facts.guest_stages_us = stages;
            facts.running_since = Some(Instant::now());
            let boot_ms = facts.asked.map_or(0, |asked| asked.elapsed().as_millis() as u64);
            facts.state.let_happen(Happening::Ready).map(|_| boot_ms)
        });
        let boot_ms =
            boot_ms.map_err(|illegal| End::Broken(format!("ready in the wrong state: {illegal:?}")))?;
        self.cage.events.push(&self.agent.name, "ready", format!("{} after {boot_ms} ms", self.instance()));
        note(self.cage, Event::AgentReady { instance: self.instance().clone(), boot_ms });
        if self.asked_to_stop() { Err(End::Stopped) } else { Ok(()) }
    }

    /// The next mail, or none at the deadline, whatever still comes: a guest that floods does not draw a wait out.
    fn mail(&mut self, deadline: Instant) -> Option<Mail> {
        match Instant::now() < deadline {
            true => self.next(Some(deadline)).ok(),
            false => None,
        }
    }

    fn next(&mut self, due: Option<Instant>) -> Result<Mail, RecvTimeoutError> {
        match (self.waiting.pop_front(), due) {
            (Some(mail), _) => Ok(mail),
            (None, None) => self.order.mail.recv().map_err(RecvTimeoutError::from),
            (None, Some(due)) => self.order.mail.recv_timeout(due.saturating_duration_since(Instant::now())),
        }
    }
}
