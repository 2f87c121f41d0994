//! What a test node is given: operator keys, a configuration volume with manifests and a real Python rootfs, a state volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::ctl;
use std::time::Duration;

/// One key pair per role, and one that no node knows.
#[derive(Debug, Clone)]
pub struct Keys {
    pub admin: PathBuf,
    pub operator: PathBuf,
    pub reader: PathBuf,
    pub stranger: PathBuf,
}

/// A configuration volume being put together.
#[derive(Debug)]
pub struct Config {
    dir: PathBuf,
    pub keys: Keys,
}

impl Config {
    /// An empty configuration with three operators in a folder of its own.
    pub fn new(name: &str) -> Result<Config> {
        let dir = crate::workspace()?.join(format!("{name}-{}", std::process::id()));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(dir.join("volume/agents"))?;
        fs::create_dir_all(dir.join("volume/rootfs"))?;
        let mut operators = String::new();
        let mut key = |name: &str| -> Result<PathBuf> {
            let path = dir.join(format!("{name}.key"));
            let public = generate_key(&path)?;
            if name != "stranger" {
                operators.push_str(&format!(
                    "[[operator]]\nname = \"{name}\"\nkey = \"{public}\"\nrole = \"{name}\"\n\n"
                ));
            }
            Ok(path)
        };
        let keys = Keys {
            admin: key("admin")?,
            operator: key("operator")?,
            reader: key("reader")?,
            stranger: key("stranger")?,
        };
        let config = Config { dir, keys };
        config.file("operators.toml", &operators)?;
        Ok(config)
    }

    /// Writes a file of the volume.
    pub fn file(&self, path: &str, text: &str) -> Result<()> {
        let path = self.dir.join("volume").join(path);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// Puts an OCI archive on the volume as rootfs `name`.
    pub fn rootfs(&self, name: &str, archive: &Path) -> Result<()> {
        fs::copy(archive, self.dir.join("volume/rootfs").join(format!("{name}.tar")))?;
        Ok(())
    }

    /// The volume as a disk.
    pub fn volume(&self) -> Result<PathBuf> {
        let out = self.dir.join("config.img");
        let from = self.dir.join("volume");
        crate::image(&[
            "config-volume",
            "--from",
            &from.display().to_string(),
            "--out",
            &out.display().to_string(),
        ])?;
        Ok(out)
    }

    /// An empty state disk.
    pub fn state(&self, size: &str) -> Result<PathBuf> {
        let out = self.dir.join("state.img");
        crate::image(&["state-volume", "--size", size, "--out", &out.display().to_string()])?;
        Ok(out)
    }

    /// Folder for whatever else the test needs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir); // only space is lost
    }
}

/// Makes an operator key with nullctl; the public half as operators.toml wants it.
pub fn generate_key(path: &Path) -> Result<String> {
    let mut command = Command::new(crate::nullctl()?);
    command.args(["--json", "key", "gen", "--out"]).arg(path);
    let answer = ctl::run(command, Duration::from_secs(30))?.ok()?.json()?;
    let public = answer["key"].as_str().context("nullctl key gen printed no key")?;
    Ok(public.to_owned())
}

/// An OCI archive of Debian's python3 with a folder of programs on top, as /app. Made once per content.
pub fn python_archive(app: &Path) -> Result<PathBuf> {
    let layer = crate::workspace()?.join(format!("layer-{}", std::process::id()));
    copy_files(app, &layer.join("app"))?;
    let archive = rootfs_archive(&layer);
    fs::remove_dir_all(&layer)?;
    archive
}

/// An OCI archive of Debian's python3 with one more layer: what stands in `layer`, at the root.
pub fn rootfs_archive(layer: &Path) -> Result<PathBuf> {
    archive("rootfs-python.sh", layer)
}

/// The same with the coding agent in it, and a folder of programs as /app.
pub fn coder_archive(app: &Path) -> Result<PathBuf> {
    let layer = crate::workspace()?.join(format!("coder-layer-{}", std::process::id()));
    copy_files(app, &layer.join("app"))?;
    let archive = archive("rootfs-coder.sh", &layer);
    fs::remove_dir_all(&layer)?;
    archive
}

fn archive(script: &str, layer: &Path) -> Result<PathBuf> {
    let out = crate::workspace()?.join(format!("{script}-{}.tar", std::process::id()));
    let output = Command::new(crate::tree().join("scripts").join(script))
        .arg(&out)
        .arg("--add")
        .arg(layer)
        .output()
        .with_context(|| format!("scripts/{script}"))?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(out)
}

/// Copies the files of a folder; folders in it are left out.
pub fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Files and folders, but what git and Python keep for themselves.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        if name == ".git" || name == "__pycache__" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to.join(name))?;
        } else {
            fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}
