//! Volumes: disks of an agent's own beside its workspace. They outlive its lives, its workspace and its manifest.

use abi::control::Volume;
use abi::ids::{AgentName, Name};
use abi::ledger::Event;
use abi::limits;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;

use super::error::{DiskError, at};
use super::kept::{self, Kept};
use super::{Depot, Receipt, fill, grows, used_kib};

/// What the node decided about a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeRecord {
    size_mib: u32,
}

impl Depot {
    pub(super) fn kept_volume(&self, agent: &AgentName, name: &Name) -> Kept {
        Kept::of(&self.volumes.join(agent.as_str()), name.as_str())
    }

    /// Finds a volume and gives it its size, or makes it.
    pub(super) fn volume(
        &self,
        agent: &AgentName,
        name: &Name,
        size_mib: u32,
        receipt: Receipt<'_>,
    ) -> Result<Kept, DiskError> {
        kept::private_dir(&self.volumes.join(agent.as_str()))?;
        let kept = self.kept_volume(agent, name);
        match kept.read::<VolumeRecord>()? {
            Some(record) => {
                grows(|| format!("the volume {agent}/{name}"), record.size_mib, size_mib)?;
                if size_mib > record.size_mib {
                    kept.write(&VolumeRecord { size_mib })?;
                }
                kept.set_size(size_mib)?;
            }
            None => {
                if self.count_volumes()? >= limits::VOLUMES_MAX {
                    return Err(DiskError::VolumesMax);
                }
                let new = kept.begin()?;
                fill(&self.template, &new, size_mib)?;
                receipt(Event::VolumeCreated { agent: agent.clone(), volume: name.clone(), size_mib })?;
                kept.keep(new, &VolumeRecord { size_mib })?;
            }
        }
        Ok(kept)
    }

    /// One agent's volumes, by name.
    pub(super) fn volumes_of(&self, agent: &AgentName) -> Result<Vec<Volume>, DiskError> {
        let in_use = self.custody.lived(agent).is_some();
        let mut volumes = Vec::new();
        for name in kept::names(&self.volumes.join(agent.as_str()))? {
            let Ok(name) = name.parse::<Name>() else { continue }; // none of ours
            let kept = self.kept_volume(agent, &name);
            // Removed since it was listed.
            let Some(VolumeRecord { size_mib }) = kept.read()? else { continue };
            let Some(used_kib) = used_kib(&kept.disk())? else { continue };
            volumes.push(Volume { agent: agent.clone(), name, size_mib, used_kib, in_use });
        }
        Ok(volumes)
    }

    /// How many there are. What is damaged is another agent's trouble.
    pub(super) fn count_volumes(&self) -> Result<usize, DiskError> {
        let dirs = kept::entries(&self.volumes)?;
        Ok(dirs.iter().map(|dir| kept::names(dir).map_or(0, |names| names.len())).sum())
    }

    /// All agents' volumes, by agent and name.
    pub(super) fn list_volumes(&self) -> Result<Vec<Volume>, DiskError> {
        let mut dirs = kept::entries(&self.volumes)?;
        dirs.sort();
        let mut volumes = Vec::new();
        for dir in dirs {
            let agent = dir.file_name().and_then(|name| name.to_str()?.parse().ok());
            volumes.extend(agent.map_or(Ok(Vec::new()), |agent| self.volumes_of(&agent))?);
        }
        Ok(volumes)
    }

    /// Deletes a volume, with its agent's disks held.
    pub(super) fn remove_volume(
        &self,
        agent: &AgentName,
        name: &Name,
        by: &str,
        receipt: Receipt<'_>,
    ) -> Result<(), DiskError> {
        let kept = self.kept_volume(agent, name);
        if !kept.is_there() {
            return Err(DiskError::UnknownVolume { agent: agent.clone(), volume: name.clone() });
        }
        receipt(Event::VolumeRemoved { agent: agent.clone(), volume: name.clone(), by: by.to_owned() })?;
        kept.remove()?;
        let dir = self.volumes.join(agent.as_str());
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(at("remove", &dir)(error)),
            _ => Ok(()),
        }
    }
}
