//! The harness of the whole-system tests: boots the real ISO in QEMU and talks to the node as an operator would, through
//! nullgate with nullctl.
//!
//! Must hold: every wait ends on an event or a time limit; a node that fails leaves its console log behind; only
//! processes that were started here are killed; nothing reaches a real network (`restrict=on`).

pub mod accel;
pub mod ctl;
pub mod fixture;
pub mod internet;
pub mod losses;
pub mod node;
pub mod qmp;
pub mod rules;
pub mod web;
pub mod wire;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// Whether this is `make soak`: what tests take a short cut of is done whole.
pub fn is_soak() -> bool {
    std::env::var_os("NULLBOX_SOAK").is_some()
}

/// The top of the source tree.
pub fn tree() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where tests keep their volumes and logs: below build/, which git ignores.
pub fn workspace() -> Result<PathBuf> {
    let dir = tree().join("build/tests");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    dir.canonicalize().with_context(|| dir.display().to_string())
}

/// A built thing, from the environment or from where `make iso` leaves it.
fn built(variable: &str, default: PathBuf) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or(default, PathBuf::from);
    ensure!(path.exists(), "{} is missing: run `make iso` first", path.display());
    path.canonicalize().with_context(|| path.display().to_string())
}

/// The product's image.
pub fn iso() -> Result<PathBuf> {
    built("NULLBOX_ISO", tree().join("build/nullbox.iso"))
}

/// The same image with the saboteur added (src/bin/fault.rs).
pub fn test_iso() -> Result<PathBuf> {
    built("NULLBOX_TEST_ISO", tree().join("build/nullbox-test.iso"))
}

/// The static nullctl, as users get it.
pub fn nullctl() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| tree().join("target"), PathBuf::from);
    built("NULLBOX_NULLCTL", target.join("node/x86_64-unknown-linux-musl/release/nullctl"))
}

/// Runs the image builder, from the same build as the tests where it stands beside them.
pub fn image(arguments: &[&str]) -> Result<String> {
    let output = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(tree())
        .args(["run", "--quiet", "--package", "image", "--target-dir", "target/image", "--"])
        .args(arguments)
        .output()
        .context("cannot run the image builder")?;
    ensure!(
        output.status.success(),
        "image {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
