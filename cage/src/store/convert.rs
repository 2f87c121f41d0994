//! One archive into SquashFS disks: merge the layers in memory, keep what each disk adds, then copy the contents that are left.
//!
//! Must hold: every digest was right before the first byte is written; laid over one another the disks show exactly the merge.
//! Must never: leave a result that was not fsynced.

use abi::ids::Digest;
use abi::limits;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

use super::archive::Archive;
use super::chain::{self, Chain, Disk};
use super::error::ImportError;
use super::layer::{self, Allowance};
use super::oci::Plan;
use super::squashfs::{WriteError, Writer};
use super::tree::{Content, Node, NodeId, Tree};
use super::{Progress, Scratch, Stage, throttle, upper};

const SMALLER: &str = "make the image smaller";

/// Layers that need no conversion, from the bottom.
#[derive(Debug)]
pub struct Known {
    pub chain: Chain,
    /// What they merge to; none if they are all.
    pub tree: Option<Tree>,
}

/// The finished files, and what they are.
#[derive(Debug, Default)]
pub struct Made {
    /// All disks of the image, bottom to top.
    pub disks: Vec<Disk>,
    /// Those that were made now.
    pub files: Vec<(Digest, Scratch)>,
    /// Chains to be remembered, by ChainID.
    pub chains: Vec<(Digest, Chain, Scratch)>,
}

/// The layers up to `end`, and the disk they become on top of those before.
#[derive(Debug)]
struct Step {
    end: usize,
    /// None: nothing changed.
    disk: Option<Rc<Tree>>,
    /// What all layers so far merge to, if a disk can come on top.
    tree: Option<Rc<Tree>>,
    unpacked_bytes: u64,
}

/// Writes the disks into `dir`. The lowest `disks_max - 1` layers that change something are a disk each, so that images share them;
/// all above are one.
pub fn convert(
    archive: &Archive,
    plan: &Plan,
    known: Option<Known>,
    dir: &Path,
    disks_max: usize,
    progress: Progress<'_>,
) -> Result<Made, ImportError> {
    let mut made = Made::default();
    let known_disks = known.as_ref().map_or(0, |known| known.chain.disks.len());
    if let Some(known) = &known {
        made.disks.clone_from(&known.chain.disks);
    }
    let steps = merge(archive, plan, known, known_disks, disks_max, progress)?;
    let total = total_bytes(&steps)?;
    let ids = chain::ids(&plan.layers);
    let mut tell = throttle(Stage::Write, total, progress);
    let mut done = 0;
    for (number, step) in steps.iter().enumerate() {
        if let Some(tree) = &step.disk {
            let scratch = Scratch::new(dir.join(format!("disk{number}")))?;
            let disk = write_disk(archive, plan, tree, &scratch.path, &mut |bytes| tell(done + bytes))?;
            done += tree.content_bytes();
            made.files.push((disk.digest, scratch));
            made.disks.push(disk);
        }
        let layers = plan.layers.get(..step.end).unwrap_or_default();
        let chain = Chain::new(made.disks.clone(), layers, step.unpacked_bytes, step.tree.is_some());
        let scratch = Scratch::new(dir.join(format!("chain{number}")))?;
        chain.write(step.tree.as_deref(), &scratch.path)?;
        if let Some(id) = step.end.checked_sub(1).and_then(|last| ids.get(last)) {
            made.chains.push((*id, chain, scratch));
        }
    }
    Ok(made)
}

/// First reading: all layers that are not known, and what each disk adds.
fn merge(
    archive: &Archive,
    plan: &Plan,
    known: Option<Known>,
    mut disks: usize,
    disks_max: usize,
    progress: Progress<'_>,
) -> Result<Vec<Step>, ImportError> {
    let mut begin = known.as_ref().map_or(0, |known| known.chain.packed.len());
    let mut allowance = Allowance::after(known.as_ref().map_or(0, |known| known.chain.unpacked_bytes));
    let mut tree = known.and_then(|known| known.tree).unwrap_or_default();
    let total: u64 = plan.layers.iter().skip(begin).map(|layer| layer.extent.size).sum();
    let mut before = 0;
    let mut below = (disks > 0).then(|| Rc::new(tree.snapshot()));
    let mut steps = Vec::new();
    while begin < plan.layers.len() {
        let single = disks + 1 < disks_max;
        let end = if single { begin + 1 } else { plan.layers.len() };
        for number in begin..end {
            let Some(layer) = plan.layers.get(number) else { break };
            let mut throttled = throttle(Stage::Merge, total, progress);
            let mut tell = |done: u64| throttled(before + done);
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            layer::merge(archive, number, layer, &mut tree, &mut allowance, &mut tell)?;
            before += layer.extent.size;
        }
        let now = Rc::new(tree.snapshot());
        let disk = match &below {
            None => Some(now.clone()),
            Some(below) => upper::upper(below, &now)
                .map_err(|refusal| ImportError::archive("", refusal.rule, refusal.remedy))?
                .map(Rc::new),
        };
        disks += usize::from(disk.is_some());
        let tree = single.then(|| now.clone());
        steps.push(Step { end, disk, tree, unpacked_bytes: allowance.used() });
        (below, begin) = (Some(now), end);
    }
    Ok(steps)
}

/// Bytes of all files to be written. What a layer changes of a file below is in its disk once more.
fn total_bytes(steps: &[Step]) -> Result<u64, ImportError> {
    let total = steps.iter().flat_map(|step| &step.disk).map(|tree| tree.content_bytes());
    let total = total.fold(0, u64::saturating_add);
    if total > limits::ROOTFS_BYTES_MAX {
        let rule = format!("its disks hold more than {} bytes", limits::ROOTFS_BYTES_MAX);
        return Err(ImportError::archive("", rule, SMALLER));
    }
    Ok(total)
}

fn write_disk(
    archive: &Archive,
    plan: &Plan,
    tree: &Tree,
    path: &Path,
    tell: &mut dyn FnMut(u64),
) -> Result<Disk, ImportError> {
    let file = File::create_new(path).map_err(ImportError::host("create", path))?;
    let file = write(archive, plan, tree, file, path, tell)?;
    file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(ImportError::host("chmod", path))?;
    file.sync_all().map_err(ImportError::host("sync", path))?;
    digest(path)
}

/// Second reading: the contents, and then the tables.
fn write(
    archive: &Archive,
    plan: &Plan,
    tree: &Tree,
    file: File,
    path: &Path,
    tell: &mut dyn FnMut(u64),
) -> Result<File, ImportError> {
    let failed = |error: WriteError| match error {
        WriteError::Output(source) => ImportError::host("write", path)(source),
        WriteError::Input(source) => ImportError::archive(
            "",
            source.to_string(),
            "the archive changed while it was read; import it again",
        ),
        WriteError::Limit(rule) => ImportError::archive("", rule, SMALLER),
    };
    let mut writer = Writer::new(BufWriter::with_capacity(256 * 1024, file)).map_err(failed)?;
    let mut done = 0;
    for (layer, wanted) in plan.layers.iter().zip(wanted(tree, plan.layers.len())) {
        if wanted.is_empty() {
            continue;
        }
        let mut each = |node: NodeId, size: u64, content: &mut dyn Read| {
            writer.file(node, size, content).map_err(failed)?;
            done += size;
            tell(done);
            Ok(())
        };
        layer::extract(archive, layer, &wanted, &mut each)?;
    }
    let buffered = writer.finish(tree).map_err(failed)?;
    buffered.into_inner().map_err(|error| ImportError::host("write", path)(error.into_error()))
}

/// The contents each layer still has a part in, by offset.
fn wanted(tree: &Tree, layers: usize) -> Vec<Vec<(Content, NodeId)>> {
    let mut wanted = vec![Vec::new(); layers];
    for (id, inode) in tree.inodes() {
        if let Node::File(content) = inode.node
            && let Some(list) = wanted.get_mut(usize::from(content.layer))
        {
            list.push((content, id));
        }
    }
    for list in &mut wanted {
        list.sort_unstable_by_key(|(content, _)| (content.at, content.size));
    }
    wanted
}

fn digest(path: &Path) -> Result<Disk, ImportError> {
    let mut file = File::open(path).map_err(ImportError::host("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 64 * 1024];
    let mut bytes = 0;
    loop {
        let got = file.read(&mut buffer).map_err(ImportError::host("read", path))?;
        if got == 0 {
            break;
        }
        hash.update(buffer.get(..got).unwrap_or_default());
        bytes += got as u64;
    }
    Ok(Disk { digest: Digest(hash.finalize().into()), bytes })
}
