//! Snapshots: copies of workspaces. Taken while nothing writes to the original, and never changed.

use abi::control::Snapshot;
use abi::ids::Name;
use abi::ledger::Event;
use abi::limits;
use std::io;

use super::error::DiskError;
use super::kept::{self, Kept};
use super::{Depot, Origin, Receipt, Watch, used_kib};

impl Depot {
    fn kept_snapshot(&self, name: &Name) -> Kept {
        Kept::of(&self.snapshots, name.as_str())
    }

    /// A snapshot and what is recorded of it.
    pub(super) fn snapshot(&self, name: &Name) -> Result<(Kept, Snapshot), DiskError> {
        let kept = self.kept_snapshot(name);
        let record = kept.read::<Snapshot>()?.ok_or_else(|| DiskError::UnknownSnapshot(name.clone()))?;
        Ok((kept, record))
    }

    /// All of them, by name.
    pub(super) fn list_snapshots(&self) -> Result<Vec<Snapshot>, DiskError> {
        let mut snapshots = Vec::new();
        for name in kept::names(&self.snapshots)? {
            let Ok(name) = name.parse::<Name>() else { continue }; // none of ours
            // Removed since it was listed.
            let kept = self.kept_snapshot(&name);
            let Some(record) = kept.read::<Snapshot>()? else { continue };
            let Some(used_kib) = used_kib(&kept.disk())? else { continue };
            snapshots.push(Snapshot { used_kib, ..record });
        }
        Ok(snapshots)
    }

    /// Whether there may be a new one of that name.
    pub(super) fn may_take(&self, name: &Name) -> Result<(), DiskError> {
        if self.kept_snapshot(name).read::<Snapshot>()?.is_some() {
            return Err(DiskError::SnapshotExists(name.clone()));
        }
        match kept::names(&self.snapshots)?.len() >= limits::SNAPSHOTS_MAX {
            true => Err(DiskError::SnapshotsMax),
            false => Ok(()),
        }
    }

    /// Copies a workspace that nothing writes to. `watch` is asked a last time when all is copied.
    pub(super) fn take(
        &self,
        name: &Name,
        origin: &Origin,
        by: &str,
        watch: Watch<'_>,
        receipt: Receipt<'_>,
    ) -> Result<Snapshot, DiskError> {
        self.may_take(name)?;
        let kept = self.kept_snapshot(name);
        let from = kept::open(&origin.disk, rustix::fs::OFlags::RDONLY)?;
        let new = kept.begin().map_err(|error| match error {
            DiskError::Host { error, .. } if error.kind() == io::ErrorKind::AlreadyExists => {
                DiskError::SnapshotExists(name.clone()) // somebody else takes it just now
            }
            other => other,
        })?;
        let disk = self.copy(&from, &origin.disk, &new, origin.size_mib, watch)?;
        let event = Event::SnapshotTaken {
            agent: origin.agent.clone(),
            snapshot: name.clone(),
            disk,
            by: by.to_owned(),
        };
        receipt(event)?;
        let record = Snapshot {
            name: name.clone(),
            agent: origin.agent.clone(),
            rootfs: origin.rootfs,
            unix_ms: crate::output::unix_ms(),
            size_mib: origin.size_mib,
            used_kib: used_kib(new.path())?.unwrap_or(0),
            disk,
        };
        kept.keep(new, &record)?;
        Ok(record)
    }

    /// Deletes one.
    pub(super) fn remove_snapshot(
        &self,
        name: &Name,
        by: &str,
        receipt: Receipt<'_>,
    ) -> Result<(), DiskError> {
        let kept = self.kept_snapshot(name);
        if !kept.is_there() {
            return Err(DiskError::UnknownSnapshot(name.clone()));
        }
        receipt(Event::SnapshotRemoved { snapshot: name.clone(), by: by.to_owned() })?;
        kept.remove()
    }
}
