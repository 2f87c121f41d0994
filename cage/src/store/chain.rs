//! What the store knows of layers, from the bottom of an image up: which disks they became, and what tree they merge to.
//!
//! A chain is named as OCI names it (image-spec config.md, "Layer ChainID"): by the digests of all its unpacked layers in order. A
//! layer alone names nothing that could be kept: what it hides, and where its links lead, depends on those below.
//! Must hold: what a chain says was made from layers whose digests were right. Must never: be the only place of anything; a chain
//! that is lost or not understood costs a conversion.

use abi::ids::Digest;
use abi::limits;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::error::ImportError;
use super::layer::Layer;
use super::tree::Tree;

/// Of the files this module writes, and of what [`super::upper`] makes of layers.
const VERSION: u32 = 1;
/// The first line of a chain's file.
const HEADER_BYTES_MAX: u64 = 64 * 1024;
/// Names that compress well, written once in a while.
const LEVEL: i32 = 1;

/// One disk of an image: a SquashFS of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub digest: Digest,
    pub bytes: u64,
}

/// The first line of a chain's file, as JSON; the tree follows it in postcard, packed with zstd, a checksum at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    version: u32,
    /// Bottom to top.
    pub disks: Vec<Disk>,
    /// Digest of each layer as it lay in the archive: packed so, it need not be unpacked to be known.
    pub packed: Vec<Digest>,
    /// Unpacked bytes of all layers.
    pub unpacked_bytes: u64,
    /// Whether a tree follows: none where no disk can come on top.
    pub has_tree: bool,
}

/// ChainIDs of the layers from the bottom: the first alone, the first two, and so on.
pub fn ids(layers: &[Layer]) -> Vec<Digest> {
    let mut ids: Vec<Digest> = Vec::new();
    for layer in layers {
        let id = match ids.last() {
            None => layer.diff_id,
            Some(below) => Digest(Sha256::digest(format!("{below} {}", layer.diff_id)).into()),
        };
        ids.push(id);
    }
    ids
}

impl Chain {
    pub fn new(disks: Vec<Disk>, layers: &[Layer], unpacked_bytes: u64, has_tree: bool) -> Chain {
        // docker save states no digest of the packed layer; what it writes now is not packed.
        let packed = layers.iter().map(|layer| layer.blob.unwrap_or(layer.diff_id)).collect();
        Chain { version: VERSION, disks, packed, unpacked_bytes, has_tree }
    }

    /// Reads the first line. None: not one of ours, or not understood any more.
    pub fn read(path: &Path) -> Option<Chain> {
        let mut line = Vec::new();
        BufReader::new(File::open(path).ok()?).take(HEADER_BYTES_MAX).read_until(b'\n', &mut line).ok()?;
        let chain: Chain = serde_json::from_slice(&line).ok()?;
        let sized = (1..=limits::ROOTFS_DISKS_MAX).contains(&chain.disks.len())
            && (1..=limits::OCI_LAYERS_MAX).contains(&chain.packed.len());
        (chain.version == VERSION && sized).then_some(chain)
    }

    /// Reads the tree. None: it is damaged.
    pub fn read_tree(path: &Path) -> Option<Tree> {
        let mut file = BufReader::new(File::open(path).ok()?);
        let mut line = Vec::new();
        (&mut file).take(HEADER_BYTES_MAX).read_until(b'\n', &mut line).ok()?;
        let mut bytes = Vec::new();
        zstd::Decoder::with_buffer(file).ok()?.take(TREE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        postcard::from_bytes(&bytes).ok()
    }

    /// Writes a chain's file, durably.
    pub fn write(&self, tree: Option<&Tree>, path: &Path) -> Result<(), ImportError> {
        let host = |operation| ImportError::host(operation, path);
        let write = || -> io::Result<File> {
            let mut file = BufWriter::new(File::create_new(path)?);
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            if let Some(tree) = tree {
                let mut packer = zstd::Encoder::new(&mut file, LEVEL)?;
                packer.include_checksum(true)?;
                postcard::to_io(tree, &mut packer).map_err(io::Error::other)?;
                packer.finish()?;
            }
            file.into_inner().map_err(io::IntoInnerError::into_error)
        };
        write().map_err(host("write"))?.sync_all().map_err(host("sync"))
    }
}

/// A tree in postcard: numbers of each entry, and all names.
const TREE_BYTES_MAX: u64 = limits::ROOTFS_ENTRIES_MAX * 64 + 2 * limits::ROOTFS_TEXT_BYTES_MAX;

#[cfg(test)]
mod tests {
    use super::super::tar::{Entry, Kind};
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let digest = |byte| Digest([byte; 32]);
        let layer = |byte| Layer {
            member: String::new(),
            extent: super::super::archive::Extent { at: 0, size: 0 },
            blob: None,
            diff_id: digest(byte),
        };
        let found = ids(&[layer(1), layer(2)]);
        let text = format!("sha256:{} sha256:{}", "01".repeat(32), "02".repeat(32));
        assert_eq!(found, [digest(1), Digest(Sha256::digest(text).into())]);
    }

    #[test]
    fn a_tree_comes_back_as_it_was_and_a_damaged_one_does_not() {
        let mut tree = Tree::default();
        for (number, path) in (0..).zip(["a/b", "a/c", "d"]) {
            let entry = Entry {
                kind: Kind::File,
                path: path.into(),
                link: Vec::new(),
                mode: 0o644,
                uid: number,
                gid: 70_000,
                mtime: 9,
                size: 1 << 33,
                data_at: 512,
                at: 0,
            };
            tree.apply(&entry).unwrap();
        }
        let tree = tree.snapshot();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chain");
        let disk = Disk { digest: Digest([1; 32]), bytes: 4096 };
        let chain = Chain {
            version: VERSION,
            disks: vec![disk],
            packed: vec![disk.digest],
            unpacked_bytes: 7,
            has_tree: true,
        };
        chain.write(Some(&tree), &path).unwrap();
        assert_eq!(Chain::read(&path), Some(chain));
        let read = Chain::read_tree(&path).unwrap();
        assert_eq!(format!("{read:?}"), format!("{tree:?}"));
        let whole = std::fs::read(&path).unwrap();
        let begin = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for at in begin..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let same = Chain::read_tree(&path).is_none_or(|read| format!("{read:?}") == format!("{tree:?}"));
            assert!(same, "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Chain::read_tree(&path).is_none(), "cut at {at}");
        }
    }
}
