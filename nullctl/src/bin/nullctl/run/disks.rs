//! `snapshot` and `volume`: the disks of agents.

use abi::control::{
    Nothing, Progress, Snapshot, SnapshotCreate, SnapshotList, SnapshotRef, VolumeList, VolumeRef,
};
use std::time::Duration;

use super::{id, note};
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Meter, Table, ago, size};

/// A copy ends with a write to the node's disk, of which nothing is told.
const COPY_SILENCE: Duration = Duration::from_secs(600);

fn mib(mib: u32) -> String {
    size(u64::from(mib) << 20)
}

pub fn list_snapshots(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("snapshot.list", &Nothing {})? else {
        return Ok(0);
    };
    let list: SnapshotList = typed(&result)?;
    let mut table = Table::new(&["NAME", "AGENT", "TAKEN", "SIZE", "USED", "ROOTFS", "DISK"]);
    for snapshot in &list.snapshots {
        table.row(&[
            snapshot.name.as_str(),
            snapshot.agent.as_str(),
            &ago(snapshot.unix_ms),
            &mib(snapshot.size_mib),
            &size(snapshot.used_kib.saturating_mul(1024)),
            &snapshot.rootfs.to_string(),
            &snapshot.disk.to_string(),
        ]);
    }
    say(&table.render())?;
    Ok(0)
}

pub fn create_snapshot(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params = SnapshotCreate { agent: id(given.required(0))?, name: id(given.required(1))? };
    let mut meter = Meter::new(context.json);
    let result =
        context.ask("snapshot.create", &params, Silence::AtMost(COPY_SILENCE))?.result(&mut |request| {
            if let Some(progress) = note::<Progress>(request, "progress")? {
                meter.show("taking the snapshot", &progress);
            }
            context.note(request)
        });
    meter.done();
    if let Some(result) = context.result_or_json(result?)? {
        let snapshot: Snapshot = typed(&result)?;
        let used = size(snapshot.used_kib.saturating_mul(1024));
        say(&format!("{} is {}, {used} of {}\n", snapshot.name, snapshot.disk, mib(snapshot.size_mib)))?;
    }
    Ok(0)
}

pub fn remove_snapshot(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    context.call("snapshot.remove", &SnapshotRef { name: id(given.required(0))? })?;
    Ok(0)
}

pub fn list_volumes(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let Some(result) = context.call("volume.list", &Nothing {})? else {
        return Ok(0);
    };
    let list: VolumeList = typed(&result)?;
    let mut table = Table::new(&["AGENT", "NAME", "SIZE", "USED", "IN USE"]);
    for volume in &list.volumes {
        table.row(&[
            volume.agent.as_str(),
            volume.name.as_str(),
            &mib(volume.size_mib),
            &size(volume.used_kib.saturating_mul(1024)),
            if volume.in_use { "yes" } else { "-" },
        ]);
    }
    say(&table.render())?;
    Ok(0)
}

pub fn remove_volume(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    context
        .call("volume.remove", &VolumeRef { agent: id(given.required(0))?, name: id(given.required(1))? })?;
    Ok(0)
}
