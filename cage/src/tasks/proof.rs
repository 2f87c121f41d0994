//! The verify VM: the base with a claimed change set, in a cage that never ran a byte of an agent; and the patch that comes of it.
//!
//! Must hold: what stands in its tree is what the host wrote there; its command's end is the guest kernel's word, and nothing else in it is
//! listened to; a patch is told of only when its receipt and its attestation are on disk. Must never: give it a lease or a secret.

use abi::control::{AgentState, Attest, Attested, ChangedFile, PatchFacts, PatchSummary};
use abi::guest::{Exit, GUEST_UID};
use abi::ids::{Digest, Instance};
use abi::ledger::Event;
use abi::limits;
use abi::manifest::Manifest;
use abi::tools::WORK_PATH;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};
use verdict::patch::{self, ChangeSet, Verification, VerifiedPatch};
use verdict::step::{Actor, Run, What, Why};
use verdict::tree::Entry;

use super::act::{self, BY};
use super::base::Owner;
use super::candidate::ephemeral;
use super::errand::{Errand, Output, cage_name};
use super::kept;
use super::task::{MintedPatch, ReadClaim, Task};
use crate::agents::Cage;
use crate::desk::Mandate;
use crate::lease;
use crate::manifests::Loaded;
use crate::state;

/// Characters of a verification's reason in the ledger.
const REASON_CHARS_MAX: usize = 200;

/// A verification that ended well.
#[derive(Debug)]
pub struct Proven {
    seen: Verification,
    verifier: Instance,
    output: Digest,
}

#[cfg(test)]
impl Proven {
    /// For tests: as if a VM had said so.
    pub fn of(seen: Verification, verifier: Instance) -> Proven {
        Proven { seen, verifier, output: Digest([0; 32]) }
    }
}

/// How a command ended in a fresh VM.
#[derive(Debug)]
pub struct Ran {
    instance: Instance,
    exit: Option<Exit>,
    output: Output,
    wall_ms: u64,
    /// Of the tree that it ran on.
    result: Digest,
    /// It passed a bound, in words.
    bound: Option<String>,
    detail: String,
}

/// Runs the verify command on a candidate's claim.
pub fn verify(cage: &Arc<Cage>, task: &Arc<Task>, run: Run) {
    let claim = task.record().1.claims.get(&run.candidate).cloned();
    let Some(claim) = claim else { return lost(cage, task, run, "its claim is not known any more") };
    let began = || {
        // An event of a verify VM that is not awaited any more changes nothing.
        let _ = task.happen(cage.tasks.now_ms(), Actor::Cage, What::VerifyBegan(run));
    };
    match in_fresh_vm(cage, task, run, &claim, &task.fixed.run.verify, &began) {
        Ok(ran) => judge(cage, task, run, &claim, &ran),
        Err(why) => lost(cage, task, run, &format!("the verify VM was lost: {why}")),
    }
}

/// Nothing is known of a claim by this verify VM, and why.
fn lost(cage: &Cage, task: &Task, run: Run, why: &str) {
    // An event of a verify VM that is not awaited any more changes nothing.
    let _ = task.happen_with(cage.tasks.now_ms(), Actor::VerifyVm(run), What::VerifyLost, |record, _| {
        record.because(run.candidate, why);
    });
}

/// Tells what the end of a verify command means for the claim that it ran on.
pub fn judge(cage: &Arc<Cage>, task: &Arc<Task>, run: Run, claim: &ReadClaim, ran: &Ran) {
    if let Err(error) = std::fs::write(task.dir.join(kept::output_file(run.candidate)), &ran.output.bytes) {
        return lost(cage, task, run, &format!("what the verify command wrote could not be kept: {error}"));
    }
    let patch = claim.changes.digest();
    match (ran.failure(), &ran.exit) {
        (None, Some(exit)) => verified(cage, task, run, patch, ran, exit),
        (None, None) | (Some(None), _) => {
            lost(cage, task, run, &format!("the verify VM was lost: {}", ran.detail));
        }
        (Some(Some(why)), _) => {
            let end = ran.output.bytes.len().saturating_sub(limits::VERIFY_TOLD_BYTES_MAX);
            let told = String::from_utf8_lossy(ran.output.bytes.get(end..).unwrap_or_default()).into_owned();
            let event = Event::VerifyFailed {
                task: task.fixed.id.clone(),
                verifier: ran.instance.clone(),
                patch,
                reason: why.chars().take(REASON_CHARS_MAX).collect(),
            };
            if !act::receipt(cage, task, &event) {
                return;
            }
            let (now_ms, what) = (cage.tasks.now_ms(), What::VerifyFailed);
            // An event of a verify VM that is not awaited any more changes nothing.
            let _ = task.happen_with(now_ms, Actor::VerifyVm(run), what, |record, now| {
                record.because(run.candidate, format!("not verified: {why}"));
                now.told.insert(run.candidate, (why, told));
            });
        }
    }
}

/// The command ended well: on the claim that is judged, or it says nothing of it.
fn verified(cage: &Cage, task: &Task, run: Run, patch: Digest, ran: &Ran, exit: &Exit) {
    let seen = Verification {
        base: task.fixed.base,
        result: ran.result,
        exit: exit.clone(),
        output_bytes: ran.output.bytes.len() as u64,
        wall_ms: ran.wall_ms,
        wall_ms_max: wall_ms_max(task),
    };
    let output = Digest(Sha256::digest(&ran.output.bytes).into());
    let proven = Proven { seen, verifier: ran.instance.clone(), output };
    let what = What::Verified { base: task.fixed.base, patch };
    let said = task.happen_with(cage.tasks.now_ms(), Actor::VerifyVm(run), what, |_, now| {
        now.proven.insert(run.number, proven);
    });
    // Every other refusal means that it is not awaited any more.
    if said == Err(Why::Mismatch) {
        let why = format!("what the verify VM ran is {patch}, which is not the claim that is judged");
        lost(cage, task, run, &why);
    }
}

impl Ran {
    /// For tests: as if it had ended well on this tree.
    #[cfg(test)]
    pub fn well(instance: Instance, result: Digest) -> Ran {
        let exit = Some(Exit { code: Some(0), signal: None, oom_killed: false, dropped_bytes: 0 });
        let output = Output::default();
        Ran { instance, exit, output, wall_ms: 1, result, bound: None, detail: String::new() }
    }

    /// Why it did not end well; inner none: its VM was lost, so nothing is known.
    fn failure(&self) -> Option<Option<String>> {
        if let Some(bound) = &self.bound {
            return Some(Some(bound.clone()));
        }
        match &self.exit {
            Some(exit) if exit.code == Some(0) && !exit.oom_killed => None,
            Some(_) => Some(Some(self.detail.clone())),
            None => Some(None),
        }
    }
}

fn wall_ms_max(task: &Task) -> u64 {
    task.fixed.run.verify_ms.unwrap_or(limits::VERIFY_WALL_MS_DEFAULT).min(limits::VERIFY_WALL_MS_MAX)
}

/// Runs the score command on a verified claim.
pub fn score(cage: &Arc<Cage>, task: &Arc<Task>, run: Run) {
    let claim = task.record().1.claims.get(&run.candidate).cloned();
    let command = task.fixed.run.score.clone().unwrap_or_default();
    let ran = match &claim {
        Some(claim) => in_fresh_vm(cage, task, run, claim, &command, &|| {}),
        None => Err("cage was begun again".into()),
    };
    let what = match &ran {
        Ok(ran) if ran.failure().is_none() => What::Scored(number(&ran.output.bytes)),
        Ok(ran) if ran.failure() == Some(None) => What::VerifyLost,
        Err(_) => What::VerifyLost,
        Ok(_) => What::Scored(None),
    };
    // An event of a verify VM that is not awaited any more changes nothing.
    let _ = task.happen(cage.tasks.now_ms(), Actor::VerifyVm(run), what);
}

/// The number on the last line that is not empty.
fn number(output: &[u8]) -> Option<i64> {
    let text = String::from_utf8_lossy(output);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty())?.parse().ok()
}

/// A command in a VM of its own on the base with a claim, to its end and the VM's.
fn in_fresh_vm(
    cage: &Arc<Cage>,
    task: &Arc<Task>,
    run: Run,
    claim: &ReadClaim,
    command: &[String],
    began: &dyn Fn(),
) -> Result<Ran, String> {
    let base = task.record().1.base.clone().ok_or("the task is over")?;
    let disk = Disk(task.dir.join(format!("verify-{}.squashfs", run.number)));
    let owner = Owner { uid: GUEST_UID, mode: 0o755 };
    let result = base.write_changed(&disk.0, owner, &claim.changes, &claim.contents)?;
    let disks = vec![cage.tasks.mask(), disk.0.clone()];
    let errand = Arc::new(Errand::verify(task.fixed.id.clone(), disks));
    let manifest = manifest(task, run, command)?;
    let name = manifest.name.clone();
    let loaded =
        Loaded { manifest, digest: task.fixed.manifest_digest, file: format!("task {}", task.fixed.id) };
    let begun = cage.start_errand(loaded, BY, Mandate::default(), errand.clone());
    let (agent, instance) = begun.map_err(|error| error.to_string())?;
    let (mut since, mut bound) = (None, None);
    let wall = Duration::from_millis(wall_ms_max(task));
    loop {
        let facts = agent.facts();
        if !state::alive(facts.state.now()) || facts.instance.as_ref() != Some(&instance) {
            break;
        }
        if facts.state.now() == AgentState::Running && since.is_none() {
            since = Some(Instant::now());
            drop(facts);
            began();
            continue;
        }
        let facts = agent.wait(facts, Duration::from_millis(200));
        drop(facts);
        let passed = if errand.is_flood() {
            Some(format!("it wrote more than {} bytes", limits::VERIFY_OUTPUT_BYTES_MAX))
        } else if since.is_some_and(|since: Instant| since.elapsed() > wall) {
            Some(format!("it ran longer than {} s", wall.as_secs()))
        } else {
            None
        };
        if bound.is_none() && passed.is_some() {
            bound = passed;
            if let Err(error) = cage.kill(&name, BY) {
                abi::log::info("verify_not_killed", &[("cage", &name), ("why", &error)]); // it was quicker
            }
        }
    }
    let (exit, detail, running_since) = {
        let facts = agent.facts();
        (facts.exit.clone(), facts.detail.clone(), facts.ran_ms)
    };
    if exit.is_some() && since.is_none() {
        began(); // its command was quicker than this thread
    }
    let output = errand.output();
    if output.is_flood && bound.is_none() {
        bound = Some(format!("it wrote more than {} bytes", limits::VERIFY_OUTPUT_BYTES_MAX));
    }
    let wall_ms = running_since.or(since.map(|since| since.elapsed().as_millis() as u64)).unwrap_or(0);
    super::forget(cage, &name);
    Ok(Ran { instance, exit, output, wall_ms, result, bound, detail })
}

/// A verify VM's tree, removed with it.
struct Disk(std::path::PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        // One that stays is removed with its task.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The manifest of a verify VM: the agent's machine, and nothing of what the agent may.
fn manifest(task: &Task, run: Run, command: &[String]) -> Result<Manifest, String> {
    let name = cage_name(&task.fixed.id, 'v', run.number).ok_or("its cage has no name")?;
    let of = &task.fixed.manifest;
    Ok(Manifest {
        name,
        command: resolved(command),
        env: Default::default(),
        workdir: Some(WORK_PATH.into()),
        shell: true,
        exec: Vec::new(),
        network_allow: Vec::new(),
        credential_refs: Vec::new(),
        read: Vec::new(),
        write: Vec::new(),
        lifetime_secs_max: None,
        memory: Default::default(),
        authority: None,
        ..ephemeral(of)
    })
}

/// A program by its name is looked up by `env` along PATH; one by a relative path stands in the tree.
pub fn resolved(command: &[String]) -> Vec<String> {
    let (program, arguments) = command.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let mut all = match program {
        path if path.starts_with('/') => vec![path.to_owned()],
        path if path.contains('/') => vec![format!("{WORK_PATH}/{}", path.trim_start_matches("./"))],
        name => vec!["/usr/bin/env".to_owned(), name.to_owned()],
    };
    all.extend(arguments.iter().cloned());
    all
}

/// Makes the verified patch, has it attested, and keeps what people get of it.
pub fn mint(cage: &Arc<Cage>, task: &Arc<Task>, run: Run) {
    let minted = make(cage, task, run);
    let minted = minted.and_then(|(patch, facts)| attest(cage, task, run, patch, facts));
    if let Err(why) = minted {
        // An event of a verify VM that is not awaited any more changes nothing.
        let _ = task.happen_with(cage.tasks.now_ms(), Actor::Cage, What::MintRefused(run), |record, _| {
            record.because(run.candidate, format!("no patch was minted: {why}"));
        });
    }
}

/// The patch, what is attested of it, and its diff on disk.
fn make(cage: &Arc<Cage>, task: &Task, run: Run) -> Result<(VerifiedPatch, PatchFacts), String> {
    let (claim, proven) = {
        let mut both = task.record();
        (both.1.claims.get(&run.candidate).cloned(), both.1.proven.remove(&run.number))
    };
    let (Some(claim), Some(proven)) = (claim, proven) else {
        return Err("its verification is not known any more".into());
    };
    let patch = patch::mint(claim.changes.clone(), &proven.seen).map_err(|error| error.to_string())?;
    let facts = facts(cage, task, &patch, &proven)?;
    write_diff(task, run, &claim)?;
    Ok((patch, facts))
}

/// Has a patch attested, and counts it. Between the two nobody ends the task: what the ledger calls verified is.
fn attest(
    cage: &Arc<Cage>,
    task: &Arc<Task>,
    run: Run,
    patch: VerifiedPatch,
    facts: PatchFacts,
) -> Result<(), String> {
    let (proof, files) = (patch.proof(), files(patch.changes()));
    let (want, mut patch) = (Attest { facts: facts.clone() }, Some(patch));
    let attested = act::until_done(cage, task, || {
        let _deciding = task.decide();
        if !awaits(task, run, proof.patch()) {
            return Ok(Err("it is not the patch that is awaited".to_owned()));
        }
        let ms_max = limits::PEER_CALL_MS_MAX;
        let (_, attested) =
            lease::ask::<Attested>("ctxgraph", &cage.places.ctxgraph, "ledger.attest", &want, &[], ms_max)
                .map_err(|error| error.to_string())?;
        let summary = PatchSummary {
            candidate: run.candidate,
            digest: facts.patch,
            result: facts.result,
            files: files.clone(),
            receipt: attested.receipt.seq,
        };
        let minted = MintedPatch { summary, facts: facts.clone(), envelope: attested.envelope };
        let what = What::Minted { run, proof };
        let said = task.happen_with(cage.tasks.now_ms(), Actor::Cage, what, |record, now| {
            record.minted.insert(run.candidate, minted);
            now.patches.extend(patch.take().map(|patch| (run.candidate, patch)));
            record.because(run.candidate, "verified");
        });
        Ok(said.map_err(|why| format!("it is not awaited any more ({why:?})")))
    });
    attested.unwrap_or(Ok(())) // none: the task is over
}

/// Whether this is the patch that this run is to give.
fn awaits(task: &Task, run: Run, patch: Digest) -> bool {
    let both = task.record();
    let mut candidates = both.0.state.candidates().iter();
    candidates.any(|one| one.run() == Some(run) && one.patch() == Some(patch))
}

fn facts(
    cage: &Arc<Cage>,
    task: &Task,
    patch: &VerifiedPatch,
    proven: &Proven,
) -> Result<PatchFacts, String> {
    let unreadable = |error: std::io::Error| format!("the guest's own programs cannot be read: {error}");
    let kernel = cage.tasks.kernel(&cage.places).map_err(unreadable)?;
    let init = cage.verifier().map_err(unreadable)?;
    let (fixed, changes) = (&task.fixed, patch.changes());
    Ok(PatchFacts {
        task: fixed.id.clone(),
        agent: fixed.run.agent.clone(),
        verifier: proven.verifier.clone(),
        base: changes.base(),
        patch: changes.digest(),
        result: changes.result(),
        command: fixed.run.verify.clone(),
        rootfs: fixed.rootfs,
        kernel,
        init,
        protect: fixed.run.protect.clone(),
        source: fixed.run.source.clone(),
        output: proven.output,
        wall_ms: proven.seen.wall_ms,
    })
}

/// What of a change set people are shown.
fn files(changes: &ChangeSet) -> Vec<ChangedFile> {
    let shown = changes.changes().map(|(path, change)| {
        let word = match (&change.old, &change.new) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        let bytes = match &change.new {
            Some(Entry::File { bytes, .. }) => *bytes,
            _ => 0,
        };
        ChangedFile { path: path.to_owned(), change: word.into(), bytes }
    });
    shown.collect()
}

fn write_diff(task: &Task, run: Run, claim: &ReadClaim) -> Result<(), String> {
    let base = task.record().1.base.clone().ok_or("the task is over")?;
    let diff = super::diff::of(&claim.changes, &base, &claim.contents).map_err(|error| error.to_string())?;
    std::fs::write(task.dir.join(kept::diff_file(run.candidate)), diff).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_number_on_the_last_line() {
        for (text, want) in [
            ("1\n2\n", Some(2)),
            ("score:\n -7 \n\n", Some(-7)),
            ("3.5\n", None),
            ("", None),
            ("9\nnot a number", None),
        ] {
            assert_eq!(number(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn programs_are_found_along_the_path_in_the_tree_or_where_they_stand() {
        let of = |words: &[&str]| resolved(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&["cargo", "test"]), ["/usr/bin/env", "cargo", "test"]);
        assert_eq!(of(&["./check.sh", "-v"]), ["/work/check.sh", "-v"]);
        assert_eq!(of(&["/bin/true"]), ["/bin/true"]);
    }
}
