//! Where things lie: the source tree, its build folder, the cache outside the tree, and the one time stamp of a build.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    cache: PathBuf,
    /// Seconds since 1970 that every time stamp in the image carries.
    pub epoch_s: u64,
}

impl Tree {
    /// The tree this builder was compiled from.
    pub fn find() -> Result<Tree> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the image crate lies in no tree")?
            .to_owned();
        if !root.join("kernel-config").is_dir() {
            bail!("{} is no NullBox source tree any more; build the image builder again", root.display());
        }
        let epoch_s = epoch(&root)?;
        Ok(Tree { root, cache: cache()?, epoch_s })
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Outputs; ignored by git.
    pub fn build(&self) -> PathBuf {
        self.root.join("build")
    }

    /// What is worth keeping over clones: kernels, toolchain. Keyed by content.
    pub fn cache(&self, relative: &str) -> PathBuf {
        self.cache.join(relative)
    }
}

/// SOURCE_DATE_EPOCH, else the time of the last commit, else the first second after the FAT epoch (1980).
fn epoch(root: &Path) -> Result<u64> {
    if let Ok(value) = std::env::var("SOURCE_DATE_EPOCH") {
        return value
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is `{value}`; it must be seconds since 1970"));
    }
    let log = Command::new("git").arg("-C").arg(root).args(["log", "-1", "--format=%ct"]).output();
    let seconds =
        log.ok().filter(|out| out.status.success()).and_then(|out| String::from_utf8(out.stdout).ok());
    Ok(seconds.and_then(|text| text.trim().parse().ok()).unwrap_or(315_532_800))
}

fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("NULLBOX_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("nullbox")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/nullbox")))
        .context("no place for the cache: set NULLBOX_CACHE to a folder")
}
