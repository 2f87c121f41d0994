//! A candidate's life, from its cage's start to its end, and what it claims.
//!
//! Must hold: a claim is read while nothing in the guest can write the tree; its receipt is durable before anything is made of it. Must
//! never: take the note of an agent, or its word for the end of its work, for more than a claim.

use abi::authority::Amounts;
use abi::control::{AgentState, CandidateState};
use abi::guest::FilesJob;
use abi::ids::Instance;
use abi::ledger::Event;
use abi::limits;
use abi::manifest::{Manifest, Restart, RestartPolicy, Workspace};
use abi::tools::WORK_PATH;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use verdict::patch::{self, Protect};
use verdict::step::{Actor, Candidate, Life, What};

use super::act::{self, BY};
use super::claim::Unread;
use super::errand::{Errand, cage_name};
use super::task::{ReadClaim, Submit, Task};
use super::{claim, records};
use crate::agents::Cage;
use crate::desk::{self, Follower, Judged, Mandate, Standing};
use crate::ending::harmless;
use crate::guest::Session;
use crate::manifests::Loaded;
use crate::state;

/// How long an earlier life may take to be gone.
const END_MAX: Duration = Duration::from_secs(90);

/// The manifest of a candidate: its agent's, with a name of its own, nothing that outlives it, and a share of the task's bounds.
pub fn manifest(task: &Task, number: u8) -> Result<Loaded, String> {
    let fixed = &task.fixed;
    let name = cage_name(&fixed.id, 'c', number.into()).ok_or("its cage has no name")?;
    let share = share(&task.record().0.budget, fixed.run.candidates.max(1));
    let mut own = Manifest { name, ..ephemeral(&fixed.manifest) };
    let variables = [
        ("NULLBOX_TASK", fixed.id.to_string()),
        ("NULLBOX_GOAL", fixed.run.goal.clone()),
        ("NULLBOX_WORK", WORK_PATH.to_owned()),
    ];
    own.env.extend(variables.map(|(name, value)| (name.to_owned(), value)));
    if own.authority.is_none() && own.workdir.is_none() {
        own.workdir = Some(WORK_PATH.to_owned());
    }
    let least =
        |own: u32, bound: Option<u64>| own.min(u32::try_from(bound.unwrap_or(u64::MAX)).unwrap_or(u32::MAX));
    own.memory_mib = least(own.memory_mib, share.memory_mib);
    own.disk_mib = least(own.disk_mib, share.disk_mib);
    let lesser = |own: Option<u64>, bound: Option<u64>| match (own, bound) {
        (Some(own), Some(bound)) => Some(own.min(bound)),
        (own, bound) => own.or(bound),
    };
    own.budget.micro_dollars_max = lesser(own.budget.micro_dollars_max, share.micro_dollars);
    own.budget.output_tokens_max = lesser(own.budget.output_tokens_max, share.tokens);
    own.budget.input_tokens_max = lesser(own.budget.input_tokens_max, share.tokens);
    if let Some(authority) = &mut own.authority {
        authority.rules.iter_mut().for_each(|rules| rules.budget = rules.budget.lesser(&share));
    }
    Ok(Loaded { manifest: own, digest: fixed.manifest_digest, file: format!("task {}", fixed.id) })
}

/// A manifest without what belongs to the agent alone: what is kept, published, asked about or begun by itself.
pub fn ephemeral(manifest: &Manifest) -> Manifest {
    Manifest {
        autostart: false,
        stdin: false,
        tty: false,
        workspace: Workspace::Ephemeral,
        restart: Restart { policy: RestartPolicy::Never, max: 0 },
        idle_secs_max: None,
        health_check: None,
        volumes: Default::default(),
        publish: Vec::new(),
        ..manifest.clone()
    }
}

/// What one of several candidates may use; rounded down, so that all together stay within the whole.
pub fn share(budget: &Amounts, candidates: u8) -> Amounts {
    let part = |whole: Option<u64>| whole.map(|whole| whole / u64::from(candidates));
    Amounts {
        wall_ms: budget.wall_ms,
        memory_mib: budget.memory_mib,
        disk_mib: budget.disk_mib,
        cpu_ms: part(budget.cpu_ms),
        output_bytes: part(budget.output_bytes),
        tokens: part(budget.tokens),
        micro_dollars: part(budget.micro_dollars),
        calls: part(budget.calls),
    }
}

/// The task, as the desk of one life knows it.
#[derive(Debug)]
pub struct Following {
    pub cage: Arc<Cage>,
    pub task: Arc<Task>,
    pub life: Life,
}

impl Follower for Following {
    fn judge(&self, claim: desk::Claim<'_>) -> Judged {
        let (answer, judged) = channel();
        let (life, what) = (self.life, What::Claimed { is_end: false });
        // One that is not awaited must not take the place of one that waits.
        let said =
            self.task.happen_with(self.cage.tasks.now_ms(), Actor::Agent(life), what, |record, now| {
                let submit = Submit { life, session: claim.session.clone(), answer };
                now.submits.insert(life.candidate, submit);
                if let Some(seat) = seat(&mut record.seats, life.candidate) {
                    seat.note =
                        Some(harmless(claim.note, limits::NOTE_BYTES_MAX)).filter(|note| !note.is_empty());
                }
            });
        let refused = |why: &str| Judged { verified: false, why: why.into(), output: String::new() };
        if said.is_err() {
            return refused("the task takes no claim now");
        }
        judged
            .recv()
            .unwrap_or_else(|_| refused("the task ended, or was begun again, before the claim was judged"))
    }

    fn stands(&self, _instance: &Instance, standing: Standing) {
        // What the task does not want to hear now is refused by its table.
        let _ = match standing {
            Standing::Asks(_) => self.happen(Actor::Cage, What::Asks(self.life)),
            Standing::Works => self.happen(Actor::Cage, What::Answered(self.life)),
            Standing::Exhausted(what) => {
                act::spent(&self.cage, &self.task, &what);
                Ok(())
            }
        };
    }
}

impl Following {
    fn happen(&self, actor: Actor, what: What) -> Result<(), verdict::step::Why> {
        self.task.happen(self.cage.tasks.now_ms(), actor, what)
    }
}

/// A candidate's, by its number.
pub fn seat(seats: &mut [super::task::Seat], candidate: u8) -> Option<&mut super::task::Seat> {
    seats.get_mut(usize::from(candidate).checked_sub(1)?)
}

/// Lives one life of a candidate, to its end.
pub fn live(cage: &Arc<Cage>, task: &Arc<Task>, life: Life) {
    let tell = |what| {
        // An event of a life that is over changes nothing.
        let _ = task.happen(cage.tasks.now_ms(), Actor::Cage, what);
    };
    let (agent, instance, errand) = match begin(cage, task, life) {
        Ok(begun) => begun,
        Err(why) => {
            task.because(life.candidate, why);
            return tell(What::Lost(life));
        }
    };
    if let Some(seat) = seat(&mut task.record().0.seats, life.candidate) {
        seat.instance = Some(instance.clone());
        seat.reason.clear();
    }
    let mut is_started = false;
    loop {
        let facts = agent.facts();
        let (now, is_this) = (facts.state.now(), facts.instance.as_ref() == Some(&instance));
        drop(facts);
        if !is_this || !state::alive(now) {
            break;
        }
        if now == AgentState::Running && !is_started {
            is_started = true;
            tell(What::Started(life));
        }
        let facts = agent.facts();
        if facts.state.now() == now {
            drop(agent.wait(facts, Duration::from_millis(500)));
        }
    }
    let (ended, detail) = {
        let facts = agent.facts();
        (facts.state.now(), facts.detail.clone())
    };
    cage.tasks.spent_by(cage, task, &instance);
    if super::task::is_over(task.state()) {
        cage.forget(&agent.name); // its log is on disk
    }
    if !is_started && ended == AgentState::Exited {
        tell(What::Started(life)); // its command was quicker than this thread
    }
    if let Some(left) = errand.left() {
        task.record().1.left.insert(life.candidate, left);
        let _ = task.happen(cage.tasks.now_ms(), Actor::Agent(life), What::Claimed { is_end: true });
        return;
    }
    note_end(task, life, &instance, &detail);
    // What somebody stopped, and a command that ended, is not begun again.
    tell(if ended == AgentState::Failed { What::Lost(life) } else { What::Ended(life) });
}

/// Says why a life came to nothing that ended at its work. One that had claimed, or that its task ended, has its reason already.
pub fn note_end(task: &Task, life: Life, instance: &Instance, detail: &str) {
    use CandidateState::{Asking, Starting, Working};
    let mut both = task.record();
    let (record, now) = &mut *both;
    now.submits.retain(|_, submit| submit.life != life);
    let is_at_work =
        |one: &Candidate| one.life() == life && matches!(one.state(), Starting | Working | Asking);
    if record.state.candidates().iter().any(is_at_work)
        && let Some(seat) = seat(&mut record.seats, life.candidate)
    {
        let how = if detail.is_empty() { "it was stopped" } else { detail };
        seat.reason = format!("{instance} ended without a claim: {how}");
    }
}

fn begin(
    cage: &Arc<Cage>,
    task: &Arc<Task>,
    life: Life,
) -> Result<(Arc<crate::agent::Agent>, Instance, Arc<Errand>), String> {
    let loaded = manifest(task, life.candidate)?;
    await_end(cage, &loaded)?;
    let run = &task.fixed.run;
    let disks = vec![cage.tasks.mask(), task.dir.join(super::kept::BASE_DISK)];
    let errand = Arc::new(Errand::candidate(task.fixed.id.clone(), run.agent.clone(), disks));
    let private = if run.is_public { None } else { Some(format!("{WORK_PATH}/**").parse()?) };
    let follower = Following { cage: cage.clone(), task: task.clone(), life };
    let mandate = Mandate {
        task: Some(task.fixed.id.clone()),
        rules: Vec::new(),
        private: private.into_iter().collect(),
        has_tree: true,
        follower: Some(Arc::new(follower)),
    };
    let begun = cage.start_errand(loaded, BY, mandate, errand.clone());
    let (agent, instance) = begun.map_err(|error| error.to_string())?;
    Ok((agent, instance, errand))
}

/// The life before this one has the same name: it is given the time to end.
fn await_end(cage: &Cage, loaded: &Loaded) -> Result<(), String> {
    let until = Instant::now() + END_MAX;
    let agent = cage.agent(&loaded.manifest.name);
    let mut facts = agent.facts();
    while state::alive(facts.state.now()) {
        if Instant::now() > until {
            return Err(format!("the cage of {} that was there before does not end", agent.name));
        }
        facts = agent.wait(facts, Duration::from_millis(500));
    }
    Ok(())
}

/// Reads and checks what a candidate claims.
pub fn read_claim(cage: &Arc<Cage>, task: &Arc<Task>, life: Life) {
    let tell = |what| {
        // An event of a life that is over changes nothing.
        let _ = task.happen(cage.tasks.now_ms(), Actor::Cage, what);
    };
    let (session, left, base, instance, written) = {
        let mut both = task.record();
        let (record, now) = &mut *both;
        now.written += 1;
        let session = now.submits.get(&life.candidate).map(|submit| submit.session.clone());
        let instance = seat(&mut record.seats, life.candidate).and_then(|seat| seat.instance.clone());
        (session, now.left.get(&life.candidate).cloned(), now.base.clone(), instance, now.written)
    };
    let (Some(base), Some(instance)) = (base, instance) else { return tell(What::Lost(life)) };
    let raw = left.unwrap_or_else(|| claimed_now(session.as_ref()));
    let claimed = match raw.and_then(|raw| claim::records(&raw)) {
        Ok(records) => records::claimed(records),
        Err(unread) => {
            let why = unread.to_string();
            if let Some(rule) = unread.rule() {
                return refuse(cage, task, life, &instance, rule, "", why);
            }
            task.because(life.candidate, why);
            return tell(What::Lost(life));
        }
    };
    let protect = match protect(task) {
        Ok(protect) => protect,
        Err(why) => return refuse(cage, task, life, &instance, "protected", "", why),
    };
    let (claimed, contents) = claimed;
    let changes = match patch::check(&base.tree, claimed, &protect) {
        Ok(changes) => changes,
        Err(refusals) => {
            let first = refusals.list.first();
            let (rule, path) = first.map_or(("", ""), |first| (first.rule.word(), first.path.as_str()));
            return refuse(cage, task, life, &instance, rule, path, refusals.to_string());
        }
    };
    let file = task.dir.join(super::kept::claim_file(life.candidate));
    let written = Written(file.with_extension(written.to_string()));
    let contents = match records::write(&written.0, &changes, &contents, now_s()) {
        Ok(contents) => contents,
        Err(error) => {
            task.because(life.candidate, format!("its claim could not be kept: {error}"));
            return tell(What::Lost(life));
        }
    };
    let (digest, files) = (changes.digest(), changes.changes().count() as u64);
    let event =
        Event::TaskClaimed { task: task.fixed.id.clone(), instance: instance.clone(), patch: digest, files };
    if !act::receipt(cage, task, &event) {
        return;
    }
    let read = Arc::new(ReadClaim { changes, contents, instance });
    // Another reader, or a later life, may have been quicker: what is on disk and what is judged stay one.
    let mut moved = Ok(());
    let what = What::ClaimRead { life, patch: digest };
    let _ = task.happen_with(cage.tasks.now_ms(), Actor::Cage, what, |_, now| {
        moved = std::fs::rename(&written.0, &file);
        match moved {
            Ok(()) => drop(now.claims.insert(life.candidate, read)),
            Err(_) => drop(now.claims.remove(&life.candidate)), // nothing is verified that would not go out
        }
    });
    if let Err(error) = moved {
        task.because(life.candidate, format!("its claim could not be kept: {error}"));
    }
}

/// Seconds since 1970.
fn now_s() -> i64 {
    i64::try_from(crate::output::unix_ms() / 1000).unwrap_or(i64::MAX)
}

/// What a guest that stands still claims.
fn claimed_now(session: Option<&Arc<Session>>) -> Result<Vec<u8>, Unread> {
    let Some(session) = session else {
        return Err(Unread::Lost("nobody is left to say what it is".into()));
    };
    let channel = session.files(FilesJob::Claim).map_err(|error| Unread::Lost(error.to_string()))?;
    claim::read(session, &channel)
}

/// A claim's file under the name that it has until it counts; one that never does goes.
struct Written(PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // it has its lasting name
    }
}

/// What the patches of a task must leave alone.
pub fn protect(task: &Task) -> Result<Protect, String> {
    let run = &task.fixed.run;
    let commands: Vec<String> = run.verify.iter().chain(run.score.iter().flatten()).cloned().collect();
    Protect::new(&run.protect, &run.permit, &commands).map_err(|error| error.to_string())
}

fn refuse(
    cage: &Arc<Cage>,
    task: &Arc<Task>,
    life: Life,
    instance: &Instance,
    rule: &str,
    path: &str,
    why: String,
) {
    task.because(life.candidate, format!("its claim is refused: {why}"));
    task.record().1.told.insert(life.candidate, (why, String::new()));
    let (task_id, instance) = (task.fixed.id.clone(), instance.clone());
    let event = Event::ClaimRefused { task: task_id, instance, rule: rule.into(), path: path.into() };
    if act::receipt(cage, task, &event) {
        // An event of a life that is over changes nothing.
        let _ = task.happen(cage.tasks.now_ms(), Actor::Cage, What::ClaimRefused(life));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_budget_are_never_more_than_the_whole() {
        let whole = Amounts { tokens: Some(10), calls: Some(2), wall_ms: Some(7), ..Amounts::default() };
        let part = share(&whole, 3);
        assert_eq!((part.tokens, part.calls, part.wall_ms, part.cpu_ms), (Some(3), Some(0), Some(7), None));
    }
}
