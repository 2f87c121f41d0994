//! Makes the dm-verity hash tree of an image: format 1, SHA-256, blocks of 4096, as `veritysetup format` does
//! (cryptsetup's "DMVerity" on-disk format).
//!
//! Layout of the result: the data, one superblock (for veritysetup; a node never reads it), the tree from its top level
//! down.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

pub const BLOCK: usize = 4096;
const DIGEST: usize = 32;
const DIGESTS_PER_BLOCK: usize = BLOCK / DIGEST;

/// What the boot image must know of the image.
#[derive(Debug, PartialEq, Eq)]
pub struct Seal {
    pub root_hash: String,
    pub salt: String,
    pub data_blocks: u64,
    pub hash_start_block: u64,
    pub total_blocks: u64,
}

impl Seal {
    /// The file that initramfs/src/image.rs reads.
    pub fn to_text(&self) -> String {
        let Seal { root_hash, salt, data_blocks, hash_start_block, total_blocks } = self;
        format!(
            "root_hash={root_hash}\nsalt={salt}\ndata_blocks={data_blocks}\nhash_start_block={hash_start_block}\ntotal_blocks={total_blocks}\n"
        )
    }
}

/// Pads the file at `path` to whole blocks and appends superblock and tree.
///
/// The salt is the hash of the data: fixed for the same image, different for different ones.
pub fn seal(path: &Path) -> Result<Seal> {
    let mut data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    // With a single block the format has no tree at all; no image is that small.
    ensure!(data.len() > BLOCK, "{} is smaller than two blocks", path.display());
    let salt: [u8; DIGEST] = Sha256::digest(&data).into();
    let (root, tree) = hash_tree(&data, &salt);
    let data_blocks = (data.len() / BLOCK) as u64;
    let mut file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(&data)?;
    file.write_all(&superblock(data_blocks, &salt))?;
    file.write_all(&tree)?;
    Ok(Seal {
        root_hash: hex(&root),
        salt: hex(&salt),
        data_blocks,
        hash_start_block: data_blocks + 1,
        total_blocks: data_blocks + 1 + (tree.len() / BLOCK) as u64,
    })
}

/// The root hash and the tree's blocks, top level first.
fn hash_tree(data: &[u8], salt: &[u8]) -> ([u8; DIGEST], Vec<u8>) {
    let mut levels: Vec<Vec<u8>> = Vec::new();
    let mut below: &[u8] = data;
    loop {
        let level = hash_level(below, salt);
        let top = level.len() == BLOCK;
        levels.push(level);
        below = levels.last().map_or(&[], Vec::as_slice);
        if top {
            break;
        }
    }
    let root = digest(below, salt);
    levels.reverse();
    (root, levels.concat())
}

/// The hashes of `blocks`, in whole blocks filled up with zeroes.
fn hash_level(blocks: &[u8], salt: &[u8]) -> Vec<u8> {
    let mut level = Vec::with_capacity((blocks.len() / BLOCK).div_ceil(DIGESTS_PER_BLOCK) * BLOCK);
    for block in blocks.chunks(BLOCK) {
        level.extend(digest(block, salt));
    }
    level.resize(level.len().next_multiple_of(BLOCK), 0);
    level
}

fn digest(block: &[u8], salt: &[u8]) -> [u8; DIGEST] {
    Sha256::new().chain_update(salt).chain_update(block).finalize().into()
}

fn superblock(data_blocks: u64, salt: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    block.extend(b"verity\0\0");
    block.extend(1u32.to_le_bytes());
    block.extend(1u32.to_le_bytes());
    // The UUID only names the tree; the salt does that as well.
    block.extend(&salt[..16]);
    block.extend(b"sha256");
    block.resize(64, 0);
    block.extend((BLOCK as u32).to_le_bytes());
    block.extend((BLOCK as u32).to_le_bytes());
    block.extend(data_blocks.to_le_bytes());
    block.extend((salt.len() as u16).to_le_bytes());
    block.resize(88, 0);
    block.extend(salt);
    block.resize(BLOCK, 0);
    block
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    /// `veritysetup verify` is the independent judge.
    fn verify(path: &Path, seal: &Seal) -> bool {
        let output = Command::new("veritysetup")
            .arg("verify")
            .args([path, path])
            .arg(&seal.root_hash)
            .arg(format!("--hash-offset={}", seal.data_blocks * BLOCK as u64))
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .expect("veritysetup (package cryptsetup-bin) is installed by scripts/deps.sh");
        output.status.success()
    }

    fn sealed(name: &str, bytes: usize) -> (std::path::PathBuf, Seal) {
        let path = std::env::temp_dir().join(format!("nullbox-verity-{}-{name}", std::process::id()));
        let data: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        fs::write(&path, data).unwrap();
        let seal = seal(&path).unwrap();
        (path, seal)
    }

    #[test]
    fn veritysetup_accepts_trees_of_every_depth() {
        // Less than a level, one full level, one more than it, two full levels and one more.
        for blocks in [2, 128, 129, 128 * 128, 128 * 128 + 1] {
            let (path, seal) = sealed(&format!("depth-{blocks}"), blocks * BLOCK - 17);
            assert_eq!(seal.data_blocks, blocks as u64);
            assert_eq!(fs::metadata(&path).unwrap().len(), seal.total_blocks * BLOCK as u64);
            assert!(verify(&path, &seal), "{blocks} blocks");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn veritysetup_refuses_a_flipped_bit_anywhere() {
        let (path, seal) = sealed("flip", 300 * BLOCK);
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let tree = seal.hash_start_block * BLOCK as u64;
        for at in [0, 299 * 4096 + 4095, tree, tree + 4096 + 31] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(!verify(&path, &seal), "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        assert!(verify(&path, &seal));
        fs::remove_file(path).unwrap();
    }
}
