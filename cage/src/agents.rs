//! All agents of the node: what is known of each, and who starts and stops them.
//!
//! Must hold: the states change only by `state::next`; a generation is on disk before it is used, so it never comes twice.
//! Must never: hold an agent's record or the list of them while it waits for a guest, a peer or a disk: whether cage is alive is told
//! with both.

use abi::control::{AgentState, AgentStatus};
use abi::ids::{AgentName, Digest, Instance};
use abi::ledger::Client;
use abi::log;
use abi::rpc::{Code, RpcError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::{Agent, Facts};
use crate::desk;
use crate::desk::Mandate;
use crate::desk::questions::Questions;
use crate::disks::Depot;
use crate::events::Events;
use crate::evidence;
use crate::imports::Imports;
use crate::jail::cgroup::{Delegated, VmCgroup};
use crate::life::{self, Mail, Order};
use crate::manifests::{self, Loaded};
use crate::places::Places;
use crate::state::{self, Happening};
use crate::store::Store;
use crate::tasks::{Errand, Tasks};
use crate::turns::Turns;
use crate::vmm::{self, Slots};

/// What should run, for the next life of cage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    pub agents: Vec<WantedAgent>,
}

/// One agent that should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedAgent {
    pub instance: Instance,
    /// Its life has ended and has its receipt; it should run again all the same.
    pub ended: bool,
    /// It is a task's: the task decides what becomes of it.
    #[serde(default)]
    pub errand: bool,
}

/// Why a life begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Who asked for it.
    pub by: String,
    /// How often the caller begins another one if this one breaks before the agent runs.
    pub tries_left: usize,
    /// Begun by the restart policy, so many times in a row; 0: by somebody.
    pub restarts: u32,
}

impl Cause {
    /// Somebody asked.
    pub fn asked(by: &str) -> Cause {
        Cause { by: by.to_owned(), tries_left: 0, restarts: 0 }
    }
}

/// All of cage.
#[derive(Debug)]
pub struct Cage {
    pub places: Places,
    pub store: Store,
    pub ledger: Client,
    pub imports: Imports,
    pub cgroups: Delegated,
    pub slots: Slots,
    pub turns: Turns,
    pub events: Events,
    pub disks: Depot,
    pub tasks: Tasks,
    pub questions: Arc<Questions>,
    /// Of the guest's first program: what a question about the verifier's own tools is bound to.
    verifier: OnceLock<Digest>,
    /// Scratch disks live in memory, so they count as their VM's.
    pub disks_in_memory: bool,
    /// The node is going down: what is stopped now should run again.
    leaving: AtomicBool,
    generation: Mutex<u64>,
    wanted: Mutex<Wanted>,
    agents: Mutex<BTreeMap<AgentName, Arc<Agent>>>,
}

impl Cage {
    /// Opens the state. What an earlier life of cage left is returned: what should run.
    pub fn open(places: Places, cgroups: Delegated) -> io::Result<(Cage, Wanted)> {
        fs::create_dir_all(places.state.join("logs"))?;
        fs::create_dir_all(places.run.join("jails"))?;
        let generation = match fs::read_to_string(places.state.join("generation")) {
            Ok(text) => text.trim().parse().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let before: Wanted = match fs::read(places.state.join("running.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Wanted::default(),
            Err(error) => return Err(error),
        };
        let questions = Questions::open(places.state.join("approvals"), Client::at(places.ctxgraph.clone()))?;
        let cage = Cage {
            questions: Arc::new(questions),
            verifier: OnceLock::new(),
            store: Store::open(&places.state.join("store")).map_err(io::Error::other)?,
            ledger: Client::at(places.ctxgraph.clone()),
            imports: Imports::default(),
            cgroups,
            slots: Slots::default(),
            turns: Turns::of_machine(),
            events: Events::default(),
            disks: Depot::open(&places).map_err(io::Error::other)?,
            tasks: Tasks::open(&places.state)?,
            disks_in_memory: vmm::in_memory(&places.state)?,
            leaving: AtomicBool::new(false),
            generation: Mutex::new(generation),
            wanted: Mutex::new(before.clone()),
            agents: Mutex::default(),
            places,
        };
        Ok((cage, before))
    }

    /// The record of an agent, made when it is new.
    pub fn agent(&self, name: &AgentName) -> Arc<Agent> {
        if let Some(agent) = self.known(name) {
            return agent;
        }
        // Made before the list is locked, since its log is read from the disk.
        let new = Arc::new(Agent::new(name.clone(), &self.places.state.join("logs")));
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.entry(name.clone()).or_insert(new).clone()
    }

    /// Digest of the guest's first program, with which every guest of this node begins.
    pub fn verifier(&self) -> io::Result<Digest> {
        if let Some(digest) = self.verifier.get() {
            return Ok(*digest);
        }
        let digest = desk::digest_of(&fs::read(self.places.guest.join("initramfs.cpio"))?);
        Ok(*self.verifier.get_or_init(|| digest))
    }

    /// The agents that cage has had to do with since it began, by name.
    pub fn known_agents(&self) -> Vec<Arc<Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The record of an agent that cage has had to do with.
    pub fn known(&self, name: &AgentName) -> Option<Arc<Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// CPU time that a life under way has used.
    pub fn known_cpu_ms(&self, instance: &Instance) -> Option<u64> {
        let agent = self.known(&instance.agent)?;
        let facts = agent.facts();
        let cgroup = facts.cgroup.clone().filter(|_| facts.instance.as_ref() == Some(instance))?;
        drop(facts);
        cgroup.usage().map(|used| used.cpu_ms)
    }

    fn next_generation(&self) -> io::Result<u64> {
        let mut generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        let next = *generation + 1;
        write_whole(&self.places.state.join("generation"), next.to_string().as_bytes())?;
        *generation = next;
        Ok(next)
    }

    /// Notes on disk what should run.
    pub fn want(&self, change: impl FnOnce(&mut Vec<WantedAgent>)) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut wanted.agents);
        let written = serde_json::to_vec(&*wanted)
            .map_err(io::Error::from)
            .and_then(|text| write_whole(&self.places.state.join("running.json"), &text));
        if let Err(error) = written {
            log::error("running_not_recorded", &[("error", &error)]);
        }
    }

    /// A life has ended and has its receipt. `again`: the agent should run again all the same.
    pub fn ended(&self, instance: &Instance, again: bool) {
        self.want(|agents| match again {
            true => agents.iter_mut().filter(|a| a.instance == *instance).for_each(|a| a.ended = true),
            // A later life may have begun meanwhile.
            false => agents.retain(|a| {
                a.instance.agent != instance.agent || a.instance.generation > instance.generation
            }),
        });
    }

    /// Whether the node is going down.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Begins a life of an agent. Whether it comes up shows in its facts.
    pub fn start(
        self: &Arc<Self>,
        name: &AgentName,
        cause: Cause,
    ) -> Result<(Arc<Agent>, Instance), RpcError> {
        let agent = self.agent(name);
        let order = self.begin(&agent, cause)?;
        self.live(agent, order)
    }

    /// Begins a life of a task: by a manifest of its own making.
    pub fn start_errand(
        self: &Arc<Self>,
        loaded: Loaded,
        by: &str,
        mandate: Mandate,
        errand: Arc<Errand>,
    ) -> Result<(Arc<Agent>, Instance), RpcError> {
        let agent = self.agent(&loaded.manifest.name);
        let mut order = self.begin_with(&agent, loaded, Cause::asked(by))?;
        agent.update(|facts| facts.errand = Some(errand.clone()));
        (order.mandate, order.errand) = (mandate, Some(errand));
        self.live(agent, order)
    }

    fn live(self: &Arc<Self>, agent: Arc<Agent>, order: Order) -> Result<(Arc<Agent>, Instance), RpcError> {
        let name = &agent.name;
        let instance = order.instance.clone();
        self.events.push(name, "starting", format!("{instance}, asked for by {}", order.cause.by));
        let (cage, alive) = (self.clone(), agent.clone());
        std::thread::Builder::new()
            .name("life".into())
            .stack_size(256 * 1024)
            .spawn(move || life::run(&cage, &alive, order))
            .map_err(|error| {
                agent.update(|facts| facts.end(Happening::Broke, error.to_string()));
                RpcError::new(Code::FAILED, format!("no thread for {instance}: {error}"))
            })?;
        Ok((agent, instance))
    }

    /// The record of an agent becomes that of a new life.
    pub(crate) fn begin(&self, agent: &Agent, cause: Cause) -> Result<Order, RpcError> {
        let loaded = find(manifests::load(&self.places.config), &agent.name)?;
        self.begin_with(agent, loaded, cause)
    }

    fn begin_with(&self, agent: &Agent, loaded: Loaded, cause: Cause) -> Result<Order, RpcError> {
        let (name, asked) = (&agent.name, Instant::now());
        let (mailbox, mail) = std::sync::mpsc::sync_channel(life::MAIL_MAX);
        self.may_start(&agent.facts(), &cause)?;
        // On the disk before the record is locked. One that is not used then never comes again.
        let generation = self.next_generation().map_err(|error| {
            RpcError::new(Code::FAILED, format!("no generation for {name}: {error}"))
                .explained("a life has a generation that never repeats", "look at /state: is it full?")
        })?;
        let mut facts = agent.facts();
        self.may_start(&facts, &cause)?;
        if facts.instance.as_ref().is_some_and(|last| last.generation > generation) {
            return Err(RpcError::new(Code::CONFLICT, "the agent was started and ended meanwhile"));
        }
        self.disks.custody.may_run(name)?;
        facts.state.let_happen(Happening::StartAsked)?;
        let instance = Instance { agent: name.clone(), generation };
        facts.begin(instance.clone(), loaded.clone(), mailbox.clone(), asked, cause.restarts);
        Ok(Order { instance, loaded, cause, mandate: Mandate::default(), errand: None, mailbox, mail })
    }

    fn may_start(&self, facts: &Facts, cause: &Cause) -> Result<(), RpcError> {
        let conflict = |why: &str| Err(RpcError::new(Code::CONFLICT, why));
        if self.is_leaving() {
            return conflict("the node is going down");
        }
        if facts.is_removed {
            return conflict("the agent is being removed");
        }
        state::next(facts.state.now(), Happening::StartAsked)?;
        if cause.restarts > 0 && facts.restart.is_none() {
            return conflict("the agent was stopped before its restart");
        }
        Ok(())
    }

    /// Asks for the present life to end; its facts show when it has. Ends the wait for a restart too.
    pub fn stop(&self, name: &AgentName, by: &str) -> Result<Arc<Agent>, RpcError> {
        Ok(self.end(name, by, Happening::StopAsked)?.0)
    }

    /// Ends the present life at once; its facts show when it has.
    pub fn kill(&self, name: &AgentName, by: &str) -> Result<Arc<Agent>, RpcError> {
        let (agent, cgroup) = self.end(name, by, Happening::KillAsked)?;
        match cgroup.map(|cgroup| cgroup.kill()) {
            // Its life was quicker.
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            // Its life kills it again when it is torn down.
            Some(Err(error)) => log::error("agent_not_killed", &[("agent", name), ("error", &error)]),
            Some(Ok(())) | None => {}
        }
        Ok(agent)
    }

    /// Tells the present life to end. The cgroup is that life's: by the time anybody uses it the next one may have begun.
    fn end(
        &self,
        name: &AgentName,
        by: &str,
        how: Happening,
    ) -> Result<(Arc<Agent>, Option<Arc<VmCgroup>>), RpcError> {
        let agent = self.named(name)?;
        let (after, cgroup) = agent.update(|facts| {
            let after = facts.state.let_happen(how)?;
            facts.restart = None;
            (facts.stopped_by, facts.is_unwanted) = (by.to_owned(), true);
            facts.is_killed |= how == Happening::KillAsked;
            if let Some(mail) = &facts.mail {
                let _ = mail.try_send(Mail::Stop); // full: it has enough reasons to look at its state
            }
            Ok::<_, state::Illegal>((after, facts.cgroup.clone()))
        })?;
        if after == AgentState::Stopped {
            self.want(|agents| agents.retain(|a| a.instance.agent != *name)); // it may have waited for its next try
        }
        Ok((agent, cgroup))
    }

    /// The record of an agent that is known or configured.
    pub fn named(&self, name: &AgentName) -> Result<Arc<Agent>, RpcError> {
        match self.known(name) {
            Some(agent) => Ok(agent),
            None => {
                find(manifests::load(&self.places.config), name)?; // unknown or wrong: say which
                Ok(self.agent(name))
            }
        }
    }

    /// Forgets the record of an agent that was removed.
    pub fn forget(&self, name: &AgentName) {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Stops everything, for the node to go down; at most `patience`.
    pub fn leave(&self, patience: Duration) {
        self.leaving.store(true, Ordering::Relaxed);
        let agents: Vec<_> =
            self.agents.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let deadline = Instant::now() + patience;
        let living: Vec<_> =
            agents.into_iter().filter(|agent| state::alive(agent.facts().state.now())).collect();
        for agent in &living {
            if let Err(error) = self.stop(&agent.name, "cage") {
                log::error("agent_not_stopped", &[("agent", &agent.name), ("error", &error)]);
            }
        }
        for agent in living {
            let mut facts = agent.facts();
            while state::alive(facts.state.now()) && Instant::now() < deadline {
                facts = agent.wait(facts, Duration::from_millis(100));
            }
        }
    }

    /// The agents that run, for the node's screen.
    pub fn in_words(&self) -> String {
        let known = self.agents.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let alive = known.iter().filter(|(_, agent)| state::alive(agent.facts().state.now()));
        let names: Vec<&str> = alive.map(|(name, _)| name.as_str()).collect();
        match names.len() {
            0 => "none runs".to_owned(),
            count => format!("{count} run: {}", names.join(", ")),
        }
    }

    /// `agent.list`.
    pub fn list(&self) -> abi::control::AgentList {
        let manifests = manifests::load(&self.places.config);
        let known = self.agents.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut agents = BTreeMap::new();
        for (name, loaded) in &manifests.known {
            let summary = match known.get(name) {
                Some(agent) => agent.facts().summary(name, Some(loaded)),
                None => Facts::default().summary(name, Some(loaded)),
            };
            agents.extend(summary.map(|summary| (name.clone(), summary)));
        }
        // An agent whose manifest has gone is shown as long as it lives.
        for (name, agent) in known.iter().filter(|(name, _)| !manifests.known.contains_key(*name)) {
            let facts = agent.facts();
            if state::alive(facts.state.now()) {
                agents.extend(facts.summary(name, None).map(|summary| (name.clone(), summary)));
            }
        }
        abi::control::AgentList { agents: agents.into_values().collect(), rejected: manifests.rejected }
    }

    /// `agent.status`.
    pub fn status(&self, name: &AgentName) -> Result<AgentStatus, RpcError> {
        let known = self.known(name);
        let configured = find(manifests::load(&self.places.config), name);
        let disks = crate::disks::usage(self, name);
        let evidence = evidence::of(&self.places, name).unwrap_or_default();
        let facts = known.as_ref().map(|agent| agent.facts());
        let facts = facts.as_deref();
        let living =
            facts.filter(|facts| state::alive(facts.state.now())).and_then(|facts| facts.loaded.clone());
        let loaded = match living {
            Some(loaded) => loaded,
            None => configured?,
        };
        let nothing = Facts::default();
        let facts = facts.unwrap_or(&nothing);
        let summary = facts.summary(name, Some(&loaded)).ok_or_else(|| not_found(name))?;
        let usage = facts.cgroup.as_ref().and_then(|cgroup| cgroup.usage());
        Ok(AgentStatus {
            summary,
            manifest_digest: loaded.digest,
            manifest: loaded.manifest,
            rootfs_digest: facts.rootfs_digest,
            memory_kib: usage.map(|usage| usage.memory_kib),
            cpu_ms: usage.map(|usage| usage.cpu_ms),
            stages_ms: facts.stages_ms.clone(),
            guest_stages_us: facts.guest_stages_us.clone(),
            disks,
            evidence,
            exit: facts.exit.clone(),
            execs_running: facts.session.as_ref().map_or(0, |session| session.execs_running()),
            guest_denials: facts.guest_denials(),
            console: facts.console.clone(),
        })
    }

    /// The agent for reading its log: one that lives, is configured, or has left a log.
    pub fn with_log(&self, name: &AgentName) -> Result<Arc<Agent>, RpcError> {
        match self.known(name) {
            Some(agent) => Ok(agent),
            None => {
                let left: PathBuf = self.places.state.join("logs").join(format!("{name}.log"));
                if !left.exists() {
                    find(manifests::load(&self.places.config), name)?;
                }
                Ok(self.agent(name))
            }
        }
    }
}

/// The manifest of a name, or why there is none.
pub fn find(mut manifests: manifests::Manifests, name: &AgentName) -> Result<Loaded, RpcError> {
    if let Some(loaded) = manifests.known.remove(name) {
        return Ok(loaded);
    }
    let quoted = format!("\"{name}\"");
    let own = [format!("agents/{name}.toml"), format!("agents/{name}/AGENT.toml")];
    match manifests.rejected.iter().find(|wrong| wrong.value == quoted || own.contains(&wrong.file)) {
        Some(wrong) => Err(RpcError::new(Code::FAILED, format!("the manifest of {name} is wrong: {wrong}"))
            .explained(wrong.rule.clone(), wrong.remedy.clone())),
        None => Err(not_found(name)),
    }
}

fn not_found(name: &AgentName) -> RpcError {
    RpcError::new(Code::NOT_FOUND, format!("there is no agent `{name}`")).explained(
        "an agent is a manifest in the configuration",
        format!("put it into agents/{name}.toml of the configuration volume"),
    )
}

/// Replaces a small file, durably: after a power cut it holds the old or the new content.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life under way in a cgroup of its own.
    fn live(cage: &Cage, agent: &Agent) -> Order {
        let order = cage.begin(agent, Cause::asked("alice")).unwrap();
        let cgroup = bench::vm(cage, &order.instance);
        agent.update(|facts| facts.cgroup = Some(Arc::new(cgroup)));
        order
    }

    #[test]
    fn a_kill_hits_the_life_that_it_ended_and_none_that_began_since() {
        let dir = tempfile::tempdir().unwrap();
        let (cage, name) = (bench::cage(dir.path(), &["a"]), "a".parse().unwrap());
        let agent = cage.agent(&name);
        let _first = live(&cage, &agent);
        let (_, taken) = cage.end(&name, "bob", Happening::KillAsked).unwrap();
        agent.update(|facts| facts.end(Happening::Broke, String::new()));
        let _second = live(&cage, &agent);
        let of = |cgroup: Option<Arc<VmCgroup>>| cgroup.unwrap().dir().to_owned();
        assert!(of(taken).ends_with("vm-a.1"));
        cage.kill(&name, "bob").unwrap();
        let second = of(agent.facts().cgroup.clone());
        assert!(second.ends_with("vm-a.2"));
        assert_eq!(fs::read_to_string(second.join("cgroup.kill")).unwrap(), "1");
        assert_eq!(fs::read_to_string(second.with_file_name("vm-a.1").join("cgroup.kill")).unwrap(), "");
    }
}

#[cfg(test)]
pub(crate) mod bench {
    use super::*;
    use abi::ledger::Receipt;
    use abi::rpc::Response;
    use abi::wire::Connection;
    use serde_json::json;
    use std::os::unix::net::UnixListener;

    /// A cage below a directory that knows these agents. Its ledger answers; no VM can start.
    pub fn cage(dir: &Path, names: &[&str]) -> Arc<Cage> {
        cage_with(dir, names, |_| {})
    }

    /// The same; its ledger does something with each line before it answers.
    pub fn cage_with(dir: &Path, names: &[&str], before: impl FnMut(&str) + Send + 'static) -> Arc<Cage> {
        let ctxgraph = dir.join("ctxgraph.sock");
        let mut places = Places::of_node();
        (places.config, places.state, places.run) = (dir.join("config"), dir.join("state"), dir.join("run"));
        places.guest = dir.join("guest");
        fs::create_dir(&places.guest).unwrap();
        fs::write(places.guest.join("scratch.ext4"), [1; 4096]).unwrap();
        places.ctxgraph = ctxgraph.to_string_lossy().into_owned();
        fs::create_dir_all(places.config.join("agents")).unwrap();
        for name in names {
            let text =
                format!("[agent]\nname = \"{name}\"\nversion = \"1\"\nrootfs = \"r\"\ncommand = [\"/x\"]\n");
            fs::write(places.config.join(format!("agents/{name}.toml")), text).unwrap();
        }
        let cgroups = cgroups(dir);
        let ledger = UnixListener::bind(ctxgraph).unwrap();
        let before = Arc::new(Mutex::new(before));
        std::thread::spawn(move || {
            for stream in ledger.incoming() {
                let (mut connection, before) = (Connection::new(stream.unwrap()), before.clone());
                std::thread::spawn(move || answer(&mut connection, &before));
            }
        });
        Arc::new(Cage::open(places, cgroups).unwrap().0)
    }

    /// The ledger's side of one connection.
    fn answer(connection: &mut Connection, before: &Mutex<impl FnMut(&str)>) {
        while let Ok(Some(line)) = connection.read_line() {
            (before.lock().unwrap_or_else(PoisonError::into_inner))(&line);
            let receipt = Receipt { seq: 0, digest: abi::ids::Digest([0; 32]) };
            let answer = match line.contains("ledger.attest") {
                true => json!(abi::control::Attested { receipt, envelope: "{}".into() }),
                false => json!(receipt),
            };
            connection.write_line(&Response::of(Some(1), Ok(answer))).unwrap();
        }
    }

    /// What looks like the cgroup of a VM, which nobody can freeze.
    pub fn vm(cage: &Cage, instance: &Instance) -> VmCgroup {
        let dir = cage.places.run.with_file_name("cgroup").join(format!("vm-{instance}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cgroup.kill"), "").unwrap();
        let found = cage.cgroups.leftovers().unwrap();
        found.into_iter().find(|cgroup| cgroup.dir() == dir).unwrap()
    }

    /// What looks like a cgroup that is cage's.
    pub fn cgroups(dir: &Path) -> Delegated {
        let cgroup = dir.join("cgroup");
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.controllers"), "cpu memory pids").unwrap();
        fs::write(cgroup.join("cgroup.subtree_control"), "").unwrap();
        Delegated::at(cgroup).unwrap()
    }
}
