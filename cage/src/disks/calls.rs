//! `snapshot.*`, `volume.*`, and what `agent.create` and `agent.remove` do to disks: the agent's state is asked, its disks are
//! held, and the caller is told how far a copy is.

use abi::control::{
    AgentState, DiskUse, Progress, Snapshot, SnapshotCreate, SnapshotList, SnapshotRef, VolumeList, VolumeRef,
};
use abi::door::{Call, Outcome};
use abi::ids::{AgentName, Digest, Name};
use abi::ledger::Event;
use abi::log;
use abi::manifest::Manifest;
use abi::rpc::{Code, RpcError};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::custody::{Lived, WorkHold};
use super::error::DiskError;
use super::{Origin, WorkspaceRecord};
use crate::agent::{Agent, Facts};
use crate::agents::Cage;
use crate::caller::hung_up;
use crate::state;
use crate::turns::Turn;

/// Told how many bytes of a copy are done, of how many; its error ends the copy.
pub(super) type Watch<'a> = &'a mut dyn FnMut(u64, u64) -> Result<(), DiskError>;

/// How often one who waits for his turn is told so.
const WAIT_TOLD: Duration = Duration::from_secs(5);

/// Receipts of a node.
pub(super) fn receipt(cage: &Cage) -> impl Fn(Event) -> Result<(), DiskError> + '_ {
    |event| cage.ledger.append(event).map(|_| ()).map_err(DiskError::NoReceipt)
}

/// Tells a caller how far a copy is, a hundred times at most. A caller who has gone ends the copy.
fn progress<'a>(call: &'a mut Call<'_>) -> impl FnMut(u64, u64) -> Result<(), DiskError> + 'a {
    let mut told = None;
    move |done, total| {
        let percent = done.saturating_mul(100) / total.max(1);
        if told == Some(percent) {
            return Ok(());
        }
        told = Some(percent);
        let progress = Progress { stage: "copy".into(), done: Some(done), total: Some(total) };
        call.notify("progress", json!(progress)).map_err(|_| DiskError::CallerGone)
    }
}

/// Answers `snapshot.*` and `volume.*`.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    let by = call.caller.to_string();
    let answer = match call.request.method.as_str() {
        "snapshot.list" => json!(SnapshotList { snapshots: cage.disks.list_snapshots()? }),
        "snapshot.create" => json!(take(cage, call)?),
        "snapshot.remove" => {
            let SnapshotRef { name } = call.request.params()?;
            cage.disks.remove_snapshot(&name, &by, &receipt(cage))?;
            json!({})
        }
        "volume.list" => json!(VolumeList { volumes: cage.disks.list_volumes()? }),
        "volume.remove" => {
            let VolumeRef { agent, name } = call.request.params()?;
            remove_volume(cage, &agent, &name, &by)?;
            json!({})
        }
        other => return Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`"))),
    };
    Ok(Outcome::Result(answer))
}

/// `agent.create`: makes the kept workspace of an agent that does not run. The receipt is for who asks here.
pub fn create(
    cage: &Cage,
    call: &mut Call<'_>,
    manifest: &Manifest,
    rootfs: Digest,
    snapshot: Option<&Name>,
) -> Result<(), DiskError> {
    let _work = hold(cage, &manifest.name, "its workspace is being made")?;
    let _turn = snapshot.map(|_| turn(cage, call)).transpose()?;
    cage.disks.create(manifest, rootfs, snapshot, &mut progress(call))
}

/// A turn to copy. Who waits for it is told so now and then; who has gone waits no more.
fn turn(cage: &Cage, call: &mut Call<'_>) -> Result<Turn, DiskError> {
    let mut waited = Instant::now();
    let turn = cage.disks.copies.take(&mut || {
        if waited.elapsed() < WAIT_TOLD {
            return !hung_up(call.connection.stream());
        }
        waited = Instant::now();
        let progress = Progress { stage: "wait for another copy".into(), done: None, total: None };
        call.notify("progress", json!(progress)).is_ok()
    });
    turn.ok_or(DiskError::CallerGone)
}

/// For `agent.remove`: deletes the kept workspace of an agent that does not run, if there is one. Its volumes stay.
pub fn remove_workspace(cage: &Cage, agent: &AgentName) -> Result<(), DiskError> {
    let _work = hold(cage, agent, "its workspace is being removed")?;
    cage.disks.kept_workspace(agent).remove()
}

/// What an agent's disks take on the node's disk.
pub fn usage(cage: &Cage, agent: &AgentName) -> Vec<DiskUse> {
    cage.disks.usage(agent).unwrap_or_else(|error| {
        log::error("disks_not_measured", &[("agent", agent), ("error", &error)]);
        Vec::new()
    })
}

/// Rootfs that a kept workspace or a snapshot is useless without, each with one of those.
pub fn above(cage: &Cage) -> Result<BTreeMap<Digest, String>, DiskError> {
    cage.disks.above()
}

fn remove_volume(cage: &Cage, agent: &AgentName, name: &Name, by: &str) -> Result<(), DiskError> {
    if !cage.disks.kept_volume(agent, name).is_there() {
        return Err(DiskError::UnknownVolume { agent: agent.clone(), volume: name.clone() });
    }
    let _work = hold(cage, agent, "a volume of it is being removed")?;
    cage.disks.remove_volume(agent, name, by, &receipt(cage))?;
    cage.events.push(agent, "volume_removed", name);
    Ok(())
}

/// Holds the disks of an agent that does not run.
fn hold(cage: &Cage, name: &AgentName, doing: &'static str) -> Result<WorkHold, DiskError> {
    let agent = cage.agent(name);
    let facts = agent.facts();
    match state::alive(facts.state.now()) {
        true => Err(DiskError::Changing(name.clone())),
        false => cage.disks.custody.begin_work(name, doing),
    }
}

fn take(cage: &Cage, mut call: Call<'_>) -> Result<Snapshot, RpcError> {
    let SnapshotCreate { agent: name, name: snapshot } = call.request.params()?;
    cage.disks.may_take(&snapshot)?;
    let by = call.caller.to_string();
    let _turn = turn(cage, &mut call)?;
    let (agent, origin, still, _work) = origin(cage, &name)?;
    let image = cage.store.holds.keep(origin.rootfs, &name, "is being copied above it");
    let _image = image.map_err(DiskError::Image)?;
    let mut tell = progress(&mut call);
    let taken = cage.disks.take(
        &snapshot,
        &origin,
        &by,
        &mut |done, total| match still == Still::of(&agent.facts()) {
            true => tell(done, total),
            false => Err(DiskError::Moved(name.clone())),
        },
        &receipt(cage),
    )?;
    cage.events.push(&name, "snapshot", &snapshot);
    Ok(taken)
}

/// What must not change while a disk is copied.
#[derive(Debug, PartialEq, Eq)]
struct Still {
    stands: Stands,
    generation: Option<u64>,
}

/// Why nothing writes to a disk, if so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Frozen,
    Ended,
    /// It may be written to.
    No,
}

impl Still {
    fn of(facts: &Facts) -> Still {
        let stands = match facts.state.now() {
            AgentState::Paused | AgentState::Quarantined => Stands::Frozen,
            AgentState::Stopped | AgentState::Exited | AgentState::Failed => Stands::Ended,
            AgentState::Starting | AgentState::Running | AgentState::Stopping => Stands::No,
        };
        Still { stands, generation: facts.instance.as_ref().map(|instance| instance.generation) }
    }
}

/// The workspace to be copied, held: of a frozen life, or the kept one of an agent that does not run.
fn origin(cage: &Cage, name: &AgentName) -> Result<(Arc<Agent>, Origin, Still, WorkHold), DiskError> {
    let kept = cage.disks.kept_workspace(name);
    let recorded = kept.read::<WorkspaceRecord>()?;
    let lived = cage.disks.custody.lived(name);
    if recorded.is_none() && lived.is_none() {
        return Err(DiskError::NoWorkspace(name.clone()));
    }
    let agent = cage.agent(name);
    let facts = agent.facts();
    let still = Still::of(&facts);
    let agent_name = name.clone();
    let origin = match (still.stands, lived, recorded) {
        (Stands::Frozen, Some(Lived { disk, size_mib, rootfs, .. }), _) => {
            Origin { agent: agent_name, disk, size_mib, rootfs }
        }
        (Stands::Ended, None, Some(record)) => {
            let (size_mib, rootfs) = (record.size_mib, record.rootfs);
            Origin { agent: agent_name, disk: kept.disk(), size_mib, rootfs }
        }
        _ => return Err(DiskError::Changing(agent_name)),
    };
    let work = cage.disks.custody.begin_work(name, "a snapshot is being taken")?;
    drop(facts);
    Ok((agent, origin, still, work))
}
