//! What the store holds, on disk and in memory.
//!
//! `meta/HEX.json` describes an image: its disks are `squashfs/HEX.squashfs`, which never change and may be shared; `chains/HEX` says
//! which disks the layers of an image became, from the bottom up; `names.json` says what names mean. Every write is a new file that
//! is fsynced and renamed. Must hold: an image counts once its disks, then its description are durable. Must never: name an image
//! that is not there, or lose a disk that an image has.

use abi::control::{Image, Layer};
use abi::ids::Digest;
use abi::limits;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::chain::{Chain, Disk};
use super::convert::Made;
use super::error::StoreError;
use super::oci::Plan;
use super::{squashfs_dir, squashfs_path, temporary};

/// Of the files this module writes. Another one: an image is forgotten and imported again.
const VERSION: u32 = 2;
/// Chains that are remembered. One more: it is not, and costs a conversion when it comes again.
const CHAINS_MAX: usize = limits::STORE_IMAGES_MAX * limits::ROOTFS_DISKS_MAX;

/// One image's description.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    version: u32,
    /// Bottom to top.
    disks: Vec<Disk>,
    /// Archives that gave this image, first come first; never empty.
    sources: Vec<Source>,
    env: Vec<String>,
    workdir: Option<String>,
    entrypoint: Vec<String>,
}

/// As the first version of this store wrote it: the image is its one disk, whose digest is the image's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstMeta {
    version: u32,
    bytes: u64,
    sources: Vec<Source>,
    env: Vec<String>,
    workdir: Option<String>,
}

/// A description of either version.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum AnyMeta {
    Present(Meta),
    First(FirstMeta),
}

/// One archive: its own digest, and the fingerprint of its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    archive: Digest,
    fingerprint: Digest,
}

/// Archives remembered for one image. One more: the oldest but the first is forgotten, and converted again if it comes again.
const SOURCES_MAX: usize = 16;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    version: u32,
    names: BTreeMap<String, Digest>,
}

/// The store's contents.
#[derive(Debug)]
pub struct Index {
    dir: PathBuf,
    metas: BTreeMap<Digest, Meta>,
    chains: BTreeMap<Digest, Chain>,
    names: BTreeMap<String, Digest>,
    /// Disks that the import under way builds on: they stay, whoever else leaves.
    held: Vec<Disk>,
}

/// An image's digest: of its disks and of how it wants to be run, so that images that differ only in that are two.
pub fn image_digest(disks: &[Disk], plan: &Plan) -> Digest {
    let run = serde_json::json!({ "env": plan.env, "workdir": plan.workdir });
    let mut text = String::from("nullbox-rootfs-2\n");
    for disk in disks {
        text.push_str(&format!("{}\n", disk.digest));
    }
    text.push_str(&format!("{run}\n"));
    Digest(Sha256::digest(text).into())
}

impl Index {
    /// Reads what is there and removes what no finished import stands behind.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        remove_all(&temporary(dir), |_| true)?;
        let mut metas = BTreeMap::new();
        let meta_dir = dir.join("meta");
        for path in files(&meta_dir)? {
            if let Some((digest, meta)) = read_meta(dir, &path)? {
                metas.insert(digest, meta);
            } else {
                fs::remove_file(&path).map_err(StoreError::host("remove", &path))?;
            }
        }
        let names: Names = read_json(&dir.join("names.json"))?.unwrap_or_default();
        let names = names.names.into_iter().filter(|(_, digest)| metas.contains_key(digest)).collect();
        let chains = files(&dir.join("chains"))?.into_iter().filter_map(|path| {
            let hex = path.file_name()?.to_str()?;
            Some((format!("sha256:{hex}").parse::<Digest>().ok()?, Chain::read(&path)?))
        });
        let chains = chains.take(CHAINS_MAX).collect();
        let mut index = Index { dir: dir.to_path_buf(), metas, chains, names, held: Vec::new() };
        index.sweep()?;
        Ok(index)
    }

    /// Removes chains that no image begins with and disks that no image has.
    fn sweep(&mut self) -> Result<(), StoreError> {
        let Index { dir, metas, chains, held, .. } = self;
        chains.retain(|_, chain| metas.values().any(|meta| meta.disks.starts_with(&chain.disks)));
        remove_all(&dir.join("chains"), |path| !chains.keys().any(|id| chain_path(dir, id) == *path))?;
        let disks = metas.values().flat_map(|meta| &meta.disks).chain(held.iter());
        let wanted: BTreeSet<PathBuf> = disks.map(|disk| squashfs_path(dir, &disk.digest)).collect();
        remove_all(&squashfs_dir(dir), |path| !wanted.contains(path))
    }

    pub fn images(&self) -> Vec<Image> {
        self.metas.keys().filter_map(|digest| self.image(digest)).collect()
    }

    pub fn image(&self, digest: &Digest) -> Option<Image> {
        let meta = self.metas.get(digest)?;
        let names = self.names.iter().filter(|(_, named)| *named == digest);
        let shared = |disk: &Disk| self.metas.values().filter(|meta| meta.disks.contains(disk)).count();
        let layer = |disk: &Disk| Layer {
            digest: disk.digest,
            bytes: disk.bytes,
            images: u32::try_from(shared(disk)).unwrap_or(u32::MAX),
        };
        Some(Image {
            digest: *digest,
            names: names.map(|(name, _)| name.clone()).collect(),
            bytes: meta.disks.iter().map(|disk| disk.bytes).fold(0, u64::saturating_add),
            layers: meta.disks.iter().map(layer).collect(),
            archive: meta.sources.first()?.archive,
            env: meta.env.clone(),
            workdir: meta.workdir.clone(),
        })
    }

    pub fn entrypoint(&self, digest: &Digest) -> Vec<String> {
        self.metas.get(digest).map(|meta| meta.entrypoint.clone()).unwrap_or_default()
    }

    /// What is known of layers from the bottom up, and where.
    pub fn chain(&self, id: &Digest) -> Option<(Chain, PathBuf)> {
        Some((self.chains.get(id)?.clone(), chain_path(&self.dir, id)))
    }

    /// Keeps disks that an import builds on, until it is over.
    pub fn hold(&mut self, disks: &[Disk]) {
        self.held = disks.to_vec();
    }

    /// The import is over: what it held stays only if an image has it.
    pub fn release(&mut self) -> Result<(), StoreError> {
        match std::mem::take(&mut self.held).is_empty() {
            true => Ok(()),
            false => self.sweep(),
        }
    }

    pub fn named(&self, name: &str) -> Option<Digest> {
        self.names.get(name).copied()
    }

    pub fn with_fingerprint(&self, fingerprint: &Digest) -> Option<Digest> {
        self.with_source(|source| source.fingerprint == *fingerprint)
    }

    pub fn with_archive(&self, archive: &Digest) -> Option<Digest> {
        self.with_source(|source| source.archive == *archive)
    }

    fn with_source(&self, fits: impl Fn(&Source) -> bool) -> Option<Digest> {
        let found = self.metas.iter().find(|(_, meta)| meta.sources.iter().any(&fits));
        found.map(|(digest, _)| *digest)
    }

    pub fn is_full(&self) -> bool {
        self.metas.len() >= limits::STORE_IMAGES_MAX
    }

    /// Moves finished, fsynced files into the store and describes the image. Returns its digest.
    pub fn add(&mut self, made: Made, archive: Digest, plan: &Plan) -> Result<Digest, StoreError> {
        for (digest, scratch) in &made.files {
            let to = squashfs_path(&self.dir, digest);
            fs::rename(&scratch.path, &to).map_err(StoreError::host("rename", &to))?;
        }
        sync_dir(&squashfs_dir(&self.dir))?;
        for (id, chain, scratch) in made.chains {
            let to = chain_path(&self.dir, &id);
            if self.chains.len() < CHAINS_MAX || self.chains.contains_key(&id) {
                fs::rename(&scratch.path, &to).map_err(StoreError::host("rename", &to))?;
                self.chains.insert(id, chain);
            }
        }
        sync_dir(&self.dir.join("chains"))?;
        let digest = image_digest(&made.disks, plan);
        let mut sources = match self.metas.get(&digest) {
            Some(known) => known.sources.clone(),
            None => Vec::new(),
        };
        if sources.len() >= SOURCES_MAX {
            sources.remove(1);
        }
        sources.push(Source { archive, fingerprint: plan.fingerprint });
        let meta = Meta {
            version: VERSION,
            disks: made.disks,
            sources,
            env: plan.env.clone(),
            workdir: plan.workdir.clone(),
            entrypoint: plan.entrypoint.clone(),
        };
        write_json(&self.dir, &meta_path(&self.dir, &digest), &meta)?;
        self.metas.insert(digest, meta);
        Ok(digest)
    }

    /// Lets a name mean an image.
    pub fn name(&mut self, name: &str, digest: Digest) -> Result<Image, StoreError> {
        let image = |index: &Self| index.image(&digest).ok_or(StoreError::UnknownDigest(digest));
        image(self)?;
        if self.names.get(name) != Some(&digest) {
            let mut names = self.names.clone();
            names.insert(name.to_owned(), digest);
            if names.len() > limits::STORE_IMAGES_MAX {
                return Err(StoreError::Index {
                    path: self.dir.join("names.json"),
                    rule: format!("holds {} names already", limits::STORE_IMAGES_MAX),
                });
            }
            self.write_names(names)?;
        }
        image(self)
    }

    pub fn forget_name(&mut self, name: &str) -> Result<(), StoreError> {
        let mut names = self.names.clone();
        if names.remove(name).is_none() {
            return Err(StoreError::UnknownName(super::error::shown(name.as_bytes())));
        }
        self.write_names(names)
    }

    /// Names first, then the description, then the files: whatever is cut off, nothing points at what is gone. Returns the bytes
    /// of the disks that no other image has.
    pub fn remove(&mut self, digest: &Digest) -> Result<u64, StoreError> {
        let image = self.image(digest).ok_or(StoreError::UnknownDigest(*digest))?;
        let mut names = self.names.clone();
        names.retain(|_, named| named != digest);
        if names.len() != self.names.len() {
            self.write_names(names)?;
        }
        let meta = meta_path(&self.dir, digest);
        fs::remove_file(&meta).map_err(StoreError::host("remove", &meta))?;
        self.metas.remove(digest);
        sync_dir(&self.dir.join("meta"))?;
        self.sweep()?;
        Ok(image.layers.iter().filter(|layer| layer.images == 1).map(|layer| layer.bytes).sum())
    }

    fn write_names(&mut self, names: BTreeMap<String, Digest>) -> Result<(), StoreError> {
        let document = Names { version: VERSION, names };
        write_json(&self.dir, &self.dir.join("names.json"), &document)?;
        self.names = document.names;
        Ok(())
    }
}

/// The description at `path` if it is one of ours and its disks are whole; none: it is of no use.
fn read_meta(dir: &Path, path: &Path) -> Result<Option<(Digest, Meta)>, StoreError> {
    let hex = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
    let Some(digest) = hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()) else {
        return Ok(None);
    };
    let meta = match read_json::<AnyMeta>(path) {
        Ok(Some(AnyMeta::Present(meta))) if meta.version == VERSION => meta,
        Ok(Some(AnyMeta::First(first))) if first.version == 1 => Meta {
            version: VERSION,
            disks: vec![Disk { digest, bytes: first.bytes }],
            sources: first.sources,
            env: first.env,
            workdir: first.workdir,
            entrypoint: Vec::new(),
        },
        _ => return Ok(None),
    };
    let whole = |disk: &Disk| {
        fs::metadata(squashfs_path(dir, &disk.digest))
            .is_ok_and(|file| file.is_file() && file.len() == disk.bytes)
    };
    let bounded = (1..=limits::ROOTFS_DISKS_MAX).contains(&meta.disks.len());
    Ok((bounded && meta.disks.iter().all(whole)).then_some((digest, meta)))
}

fn chain_path(dir: &Path, id: &Digest) -> PathBuf {
    dir.join("chains").join(id.hex())
}

fn meta_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("meta").join(format!("{}.json", digest.hex()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::host("read", path)(error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| StoreError::Index { path: path.to_path_buf(), rule: error.to_string() })
}

/// Writes a document under a temporary name, makes it durable, and only then gives it its own.
fn write_json(dir: &Path, path: &Path, document: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(document)
        .map_err(|error| StoreError::Index { path: path.to_path_buf(), rule: error.to_string() })?;
    let scratch = temporary(dir).join("document");
    let mut file = File::create(&scratch).map_err(StoreError::host("create", &scratch))?;
    file.write_all(&bytes).map_err(StoreError::host("write", &scratch))?;
    file.sync_all().map_err(StoreError::host("sync", &scratch))?;
    fs::rename(&scratch, path).map_err(StoreError::host("rename", path))?;
    sync_dir(path.parent().unwrap_or(dir))
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::host("sync", dir))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(StoreError::host("list", dir))
}

fn remove_all(dir: &Path, mut unwanted: impl FnMut(&PathBuf) -> bool) -> Result<(), StoreError> {
    for path in files(dir)?.into_iter().filter(|path| unwanted(path)) {
        fs::remove_file(&path).map_err(StoreError::host("remove", &path))?;
    }
    Ok(())
}
