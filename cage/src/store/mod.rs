//! The rootfs store: OCI archives go in, images of SquashFS disks come out, each disk known by the SHA-256 of its bytes and stored
//! once, however many images have it.
//!
//! Owns: the directory it was opened on (docs/rootfs.md describes it).
//! Must hold: an import happens as a whole or not at all, power cuts included; the same archive gives the same digest; what an
//! image's name leads to was checked against every digest the archive states.
//! Must never: extract a file onto the host, mount an image, or trust a path, a size or a count that an archive states.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable
    )
)]

mod archive;
#[cfg(test)]
#[path = "../../tests/archives/mod.rs"]
#[allow(dead_code, reason = "tests outside use all of it")]
pub(crate) mod archives;
mod chain;
mod convert;
mod error;
mod holds;
mod index;
mod layer;
mod oci;
mod path;
mod squashfs;
mod tar;
mod tree;
mod upper;
pub mod work;

pub use error::{ImportError, StoreError};
pub use holds::{Hold, Holds};

use abi::control::Image;
use abi::ids::{AgentName, Digest};
use abi::limits;
use abi::manifest::{RootfsRef, rootfs_name_ok};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use archive::Archive;
use chain::Chain;
use convert::Known;
use index::Index;

/// Where an archive comes from.
#[expect(missing_debug_implementations, reason = "a reader says nothing about itself")]
pub enum Source<'a> {
    /// A file that stays as it is while it is imported, as on the configuration volume.
    File(&'a Path),
    /// This many bytes of a connection; kept in the store's directory until they are converted.
    Stream { reader: &'a mut dyn Read, bytes: u64 },
}

/// What an import is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Receive,
    Hash,
    /// So many layers of so many, from the bottom, are in the store already.
    Known {
        layers: usize,
        all: usize,
    },
    Merge,
    Write,
}

/// The stage's name for `progress`; the unit of all of them is bytes.
impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stage::Receive => f.write_str("receive"),
            Stage::Hash => f.write_str("hash"),
            Stage::Known { layers, all } => write!(f, "{layers} of {all} layers known"),
            Stage::Merge => f.write_str("merge layers"),
            Stage::Write => f.write_str("write squashfs"),
        }
    }
}

/// Told how far an import is: the stage, bytes done, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(Stage, u64, u64);

/// The store. One per directory; it may be shared between threads, and imports wait for one another.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    index: Mutex<Index>,
    /// One conversion at a time: its memory and disk are what the limits are about.
    importing: Mutex<()>,
    /// Who needs an image that nobody must remove meanwhile.
    pub holds: Holds,
}

impl Store {
    /// Opens the store, making it where there is none. Left-overs of an import that was cut off are removed.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        for part in
            [dir.to_path_buf(), temporary(dir), squashfs_dir(dir), dir.join("chains"), dir.join("meta")]
        {
            fs::create_dir_all(&part).map_err(StoreError::host("create", &part))?;
        }
        Ok(Store {
            dir: dir.to_path_buf(),
            index: Mutex::new(Index::open(dir)?),
            importing: Mutex::new(()),
            holds: Holds::default(),
        })
    }

    /// Brings an archive in and lets `name` mean it. An archive that is known already only gets the name.
    pub fn import(
        &self,
        source: Source<'_>,
        name: &str,
        progress: Progress<'_>,
    ) -> Result<Image, ImportError> {
        if !rootfs_name_ok(name) {
            return Err(ImportError::Name(error::shown(name.as_bytes())));
        }
        let _turn = self.importing.lock().unwrap_or_else(PoisonError::into_inner);
        match source {
            Source::File(path) => self.import_file(path, name, progress),
            Source::Stream { reader, bytes } => self.import_stream(reader, bytes, name, progress),
        }
    }

    /// All images, by digest.
    pub fn list(&self) -> Vec<Image> {
        self.index().images()
    }

    /// The image a manifest means: its digest, its disks (read-only, multiples of 4096 bytes), bottom to top, and the rest.
    pub fn resolve(&self, reference: &RootfsRef) -> Result<(Digest, Vec<PathBuf>, Image), StoreError> {
        self.find(&self.index(), reference)
    }

    /// The same for an agent that needs the image: nobody removes it while the hold lasts.
    pub fn hold(
        &self,
        reference: &RootfsRef,
        agent: &AgentName,
        doing: &'static str,
    ) -> Result<(Hold, Digest, Vec<PathBuf>, Image), StoreError> {
        // Until it is held, no removal that has begun can end.
        let index = self.index();
        let (digest, disks, image) = self.find(&index, reference)?;
        Ok((self.holds.keep(digest, agent, doing)?, digest, disks, image))
    }

    fn find(
        &self,
        index: &Index,
        reference: &RootfsRef,
    ) -> Result<(Digest, Vec<PathBuf>, Image), StoreError> {
        let digest = match reference {
            RootfsRef::Digest(digest) => *digest,
            RootfsRef::Name(name) => {
                index.named(name).ok_or_else(|| StoreError::UnknownName(error::shown(name.as_bytes())))?
            }
        };
        let image = index.image(&digest).ok_or(StoreError::UnknownDigest(digest))?;
        let disks = image.layers.iter().map(|layer| squashfs_path(&self.dir, &layer.digest)).collect();
        Ok((digest, disks, image))
    }

    /// Command of the OCI image; empty where none is known.
    pub fn entrypoint(&self, digest: &Digest) -> Vec<String> {
        self.index().entrypoint(digest)
    }

    /// Removes a name; the image stays.
    pub fn forget(&self, name: &str) -> Result<(), StoreError> {
        self.index().forget_name(name)
    }

    /// Lets a name mean an image, unless that is being removed.
    fn name(&self, index: &mut Index, name: &str, digest: Digest) -> Result<Image, StoreError> {
        self.holds.may_be_used(&digest)?;
        index.name(name, digest)
    }

    /// Removes an image with all its names, and the disks that no other image has; returns their bytes. A VM that has them open
    /// keeps them. Who else may want it is kept away by [`Holds::take_away`].
    pub fn remove(&self, digest: &Digest) -> Result<u64, StoreError> {
        self.index().remove(digest)
    }

    /// The documents of an archive fix its content by digest, so a known set of them is a known image, whatever the file's time
    /// and place: at each boot this costs a few reads and no hashing.
    fn import_file(&self, path: &Path, name: &str, progress: Progress<'_>) -> Result<Image, ImportError> {
        let kind = fs::metadata(path).map_err(ImportError::host("open", path))?;
        if !kind.is_file() {
            return Err(ImportError::archive(
                path.as_os_str().as_encoded_bytes(),
                "is not a file",
                "name an archive",
            ));
        }
        let file = File::open(path).map_err(ImportError::host("open", path))?;
        let archive = Archive::scan(file, path)?;
        let plan = oci::plan(&archive)?;
        let known = self.index().with_fingerprint(&plan.fingerprint);
        if let Some(digest) = known {
            return self.name(&mut self.index(), name, digest).map_err(ImportError::from);
        }
        let total = archive.size();
        let archive_digest = archive.digest(archive.whole(), throttle(Stage::Hash, total, progress))?;
        self.convert(&archive, &plan, archive_digest, name, progress)
    }

    fn import_stream(
        &self,
        reader: &mut dyn Read,
        bytes: u64,
        name: &str,
        progress: Progress<'_>,
    ) -> Result<Image, ImportError> {
        if bytes > limits::ARCHIVE_BYTES_MAX {
            let rule = format!("{bytes} bytes, more than the limit of {}", limits::ARCHIVE_BYTES_MAX);
            return Err(ImportError::archive("", rule, "make the image smaller"));
        }
        let spool = Scratch::new(temporary(&self.dir).join("upload"))?;
        let archive_digest = receive(reader, bytes, &spool, progress)?;
        let known = self.index().with_archive(&archive_digest);
        if let Some(digest) = known {
            return self.name(&mut self.index(), name, digest).map_err(ImportError::from);
        }
        let file = File::open(&spool.path).map_err(ImportError::host("open", &spool.path))?;
        let archive = Archive::scan(file, &spool.path)?;
        let plan = oci::plan(&archive)?;
        self.convert(&archive, &plan, archive_digest, name, progress)
    }

    fn convert(
        &self,
        archive: &Archive,
        plan: &oci::Plan,
        archive_digest: Digest,
        name: &str,
        progress: Progress<'_>,
    ) -> Result<Image, ImportError> {
        if self.index().is_full() {
            return Err(ImportError::Full { max: limits::STORE_IMAGES_MAX });
        }
        let dir = temporary(&self.dir);
        let made = self.known(archive, plan, progress).and_then(|known| {
            convert::convert(archive, plan, known, &dir, limits::ROOTFS_DISKS_MAX, progress)
        });
        let mut index = self.index();
        let named = made.and_then(|made| {
            let digest = index.add(made, archive_digest, plan)?;
            Ok(self.name(&mut index, name, digest)?)
        });
        index.release()?;
        named
    }

    /// The most layers from the bottom that were converted before; their disks are held until the import is over. The archive's own
    /// are hashed all the same: a damaged archive is told as such, and a file below that a layer changes is read from there.
    fn known(
        &self,
        archive: &Archive,
        plan: &oci::Plan,
        progress: Progress<'_>,
    ) -> Result<Option<Known>, ImportError> {
        let ids = chain::ids(&plan.layers);
        for (at, id) in ids.iter().enumerate().rev() {
            let count = at + 1;
            let all = count == plan.layers.len();
            let layers = plan.layers.get(..count).unwrap_or_default();
            let (chain, path) = {
                let mut index = self.index();
                match index.chain(id) {
                    Some((chain, path)) if chain.packed.len() == count && (all || chain.has_tree) => {
                        index.hold(&chain.disks);
                        (chain, path)
                    }
                    _ => continue,
                }
            };
            if !layer::packed_as_known(archive, layers, &chain.packed, progress)? {
                continue;
            }
            let tree = if all { None } else { Chain::read_tree(&path) };
            if all || tree.is_some() {
                let bytes = layers.iter().map(|layer| layer.extent.size).sum();
                progress(Stage::Known { layers: count, all: plan.layers.len() }, bytes, bytes);
                return Ok(Some(Known { chain, tree }));
            }
        }
        self.index().hold(&[]);
        Ok(None)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic aborts the process; the index holds nothing half-changed between its writes either way.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the archive off the connection, into the spool and the hash.
fn receive(
    reader: &mut dyn Read,
    bytes: u64,
    spool: &Scratch,
    progress: Progress<'_>,
) -> Result<Digest, ImportError> {
    let mut file = File::create(&spool.path).map_err(ImportError::host("create", &spool.path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 64 * 1024];
    let mut tell = throttle(Stage::Receive, bytes, progress);
    let mut got = 0u64;
    while got < bytes {
        let want = usize::try_from(bytes - got).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        let cut = |source| ImportError::Receive { got, want: bytes, source };
        let read = match reader.read(part) {
            Ok(0) => return Err(cut(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(cut(io::Error::new(io::ErrorKind::TimedOut, "the sender stood still")));
            }
            Err(error) => return Err(cut(error)),
        };
        let part = part.get(..read).unwrap_or_default();
        hash.update(part);
        file.write_all(part).map_err(ImportError::host("write", &spool.path))?;
        got += read as u64;
        tell(got);
    }
    Ok(Digest(hash.finalize().into()))
}

/// Tells at most once a megabyte, and the end.
fn throttle<'a>(stage: Stage, total: u64, progress: Progress<'a>) -> impl FnMut(u64) + 'a {
    let mut next = 0;
    move |done| {
        if done >= next || done >= total {
            next = done + 1024 * 1024;
            progress(stage, done, total);
        }
    }
}

/// A file that is gone when this is dropped, unless it was moved away.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, ImportError> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImportError::host("remove", &path)(error))
            }
            _ => Ok(Scratch { path }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Moved away, or never made; what cannot be removed now is removed when the store is opened next.
        let _ = fs::remove_file(&self.path);
    }
}

fn temporary(dir: &Path) -> PathBuf {
    dir.join("tmp")
}

fn squashfs_dir(dir: &Path) -> PathBuf {
    dir.join("squashfs")
}

fn squashfs_path(dir: &Path, digest: &Digest) -> PathBuf {
    squashfs_dir(dir).join(format!("{}.squashfs", digest.hex()))
}
