//! What the store holds, on disk and in memory.
//!
//! `meta/HEX.json` describes `squashfs/HEX.squashfs`, which never changes; `names.json` says what names mean. Every write is a new
//! file that is fsynced and renamed. Must hold: an image counts once its SquashFS, then its description are durable. Must never:
//! name an image that is not there.

use abi::control::{Image, Layer};
use abi::ids::Digest;
use abi::limits;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::convert::Made;
use super::error::StoreError;
use super::oci::Plan;
use super::{squashfs_dir, squashfs_path, temporary};

/// Of the files this module writes. Another one: an image is forgotten and imported again.
const VERSION: u32 = 1;

/// One image's description.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    version: u32,
    bytes: u64,
    /// Archives that gave this image, first come first; never empty.
    sources: Vec<Source>,
    env: Vec<String>,
    workdir: Option<String>,
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
    names: BTreeMap<String, Digest>,
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
        remove_all(&squashfs_dir(dir), |path| {
            !metas.keys().any(|digest| squashfs_path(dir, digest) == *path)
        })?;
        let names: Names = read_json(&dir.join("names.json"))?.unwrap_or_default();
        let names = names.names.into_iter().filter(|(_, digest)| metas.contains_key(digest)).collect();
        Ok(Index { dir: dir.to_path_buf(), metas, names })
    }

    pub fn images(&self) -> Vec<Image> {
        self.metas.keys().filter_map(|digest| self.image(digest)).collect()
    }

    pub fn image(&self, digest: &Digest) -> Option<Image> {
        let meta = self.metas.get(digest)?;
        let names = self.names.iter().filter(|(_, named)| *named == digest);
        Some(Image {
            digest: *digest,
            names: names.map(|(name, _)| name.clone()).collect(),
            bytes: meta.bytes,
            layers: vec![Layer { digest: *digest, bytes: meta.bytes, images: 1 }],
            archive: meta.sources.first()?.archive,
            env: meta.env.clone(),
            workdir: meta.workdir.clone(),
        })
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

    /// Moves a finished, fsynced SquashFS into the store.
    pub fn add(&mut self, from: &Path, made: Made, archive: Digest, plan: &Plan) -> Result<(), StoreError> {
        let mut sources = match self.metas.get(&made.digest) {
            Some(known) => known.sources.clone(),
            None => Vec::new(),
        };
        if sources.len() >= SOURCES_MAX {
            sources.remove(1);
        }
        sources.push(Source { archive, fingerprint: plan.fingerprint });
        let meta = Meta {
            version: VERSION,
            bytes: made.bytes,
            sources,
            env: plan.env.clone(),
            workdir: plan.workdir.clone(),
        };
        let to = squashfs_path(&self.dir, &made.digest);
        fs::rename(from, &to).map_err(StoreError::host("rename", &to))?;
        sync_dir(&squashfs_dir(&self.dir))?;
        write_json(&self.dir, &meta_path(&self.dir, &made.digest), &meta)?;
        self.metas.insert(made.digest, meta);
        Ok(())
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

    /// Names first, then the description, then the file: whatever is cut off, nothing points at what is gone.
    pub fn remove(&mut self, digest: &Digest) -> Result<(), StoreError> {
        if !self.metas.contains_key(digest) {
            return Err(StoreError::UnknownDigest(*digest));
        }
        let mut names = self.names.clone();
        names.retain(|_, named| named != digest);
        if names.len() != self.names.len() {
            self.write_names(names)?;
        }
        let meta = meta_path(&self.dir, digest);
        fs::remove_file(&meta).map_err(StoreError::host("remove", &meta))?;
        self.metas.remove(digest);
        sync_dir(&self.dir.join("meta"))?;
        let path = squashfs_path(&self.dir, digest);
        fs::remove_file(&path).map_err(StoreError::host("remove", &path))
    }

    fn write_names(&mut self, names: BTreeMap<String, Digest>) -> Result<(), StoreError> {
        let document = Names { version: VERSION, names };
        write_json(&self.dir, &self.dir.join("names.json"), &document)?;
        self.names = document.names;
        Ok(())
    }
}

/// The description at `path` if it is one of ours and its SquashFS is whole; none: it is of no use.
fn read_meta(dir: &Path, path: &Path) -> Result<Option<(Digest, Meta)>, StoreError> {
    let hex = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
    let Some(digest) = hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()) else {
        return Ok(None);
    };
    let Ok(Some(meta)) = read_json::<Meta>(path) else {
        return Ok(None);
    };
    let squashfs = squashfs_path(dir, &digest);
    let whole = fs::metadata(&squashfs).is_ok_and(|file| file.is_file() && file.len() == meta.bytes);
    Ok((whole && meta.version == VERSION).then_some((digest, meta)))
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
