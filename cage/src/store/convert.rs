//! One archive into one SquashFS file: merge all layers in memory, then copy the contents that are left, layer by layer.
//!
//! Must hold: every digest was right before the first byte is written. Must never: leave a result that was not fsynced.

use abi::ids::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::archive::Archive;
use super::error::ImportError;
use super::layer::{self, Allowance};
use super::oci::Plan;
use super::squashfs::{WriteError, Writer};
use super::tree::{Content, Node, NodeId, Tree};
use super::{Progress, Stage, throttle};

/// The finished file.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    pub digest: Digest,
    pub bytes: u64,
}

/// Writes the image to `path`.
pub fn convert(
    archive: &Archive,
    plan: &Plan,
    path: &Path,
    progress: Progress<'_>,
) -> Result<Made, ImportError> {
    let tree = merge(archive, plan, progress)?;
    let file = File::create_new(path).map_err(ImportError::host("create", path))?;
    let file = write(archive, plan, &tree, file, path, progress)?;
    file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(ImportError::host("chmod", path))?;
    file.sync_all().map_err(ImportError::host("sync", path))?;
    digest(path)
}

fn merge(archive: &Archive, plan: &Plan, progress: Progress<'_>) -> Result<Tree, ImportError> {
    let total: u64 = plan.layers.iter().map(|layer| layer.extent.size).sum();
    let mut tree = Tree::default();
    let mut allowance = Allowance::default();
    let mut before = 0;
    for (number, layer) in (0u16..).zip(&plan.layers) {
        let mut throttled = throttle(Stage::Merge, total, progress);
        let mut tell = |done: u64| throttled(before + done);
        layer::merge(archive, number, layer, &mut tree, &mut allowance, &mut tell)?;
        before += layer.extent.size;
    }
    Ok(tree)
}

fn write(
    archive: &Archive,
    plan: &Plan,
    tree: &Tree,
    file: File,
    path: &Path,
    progress: Progress<'_>,
) -> Result<File, ImportError> {
    let failed = |error: WriteError| match error {
        WriteError::Output(source) => ImportError::host("write", path)(source),
        WriteError::Input(source) => ImportError::archive(
            "",
            source.to_string(),
            "the archive changed while it was read; import it again",
        ),
        WriteError::Limit(rule) => ImportError::archive("", rule, "make the image smaller"),
    };
    let mut writer = Writer::new(BufWriter::with_capacity(256 * 1024, file)).map_err(failed)?;
    let total = tree.content_bytes();
    let mut done = 0;
    let mut tell = throttle(Stage::Write, total, progress);
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
    let buffered = writer.finish(tree, &label(plan)).map_err(failed)?;
    buffered.into_inner().map_err(|error| ImportError::host("write", path)(error.into_error()))
}

/// How the image wants to be run, inside the bytes that its digest covers: images that differ only in that are two.
fn label(plan: &Plan) -> Vec<u8> {
    let run = serde_json::json!({ "env": plan.env, "workdir": plan.workdir });
    format!("nullbox-rootfs-1 {run}\n").into_bytes()
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

fn digest(path: &Path) -> Result<Made, ImportError> {
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
    Ok(Made { digest: Digest(hash.finalize().into()), bytes })
}
