//! Builds the programs that go on a node, and nullctl, as static musl binaries, and proves that they are static.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::elf;
use crate::process::{run, tool};
use crate::progress::Step;
use crate::tree::Tree;

const TARGET: &str = "x86_64-unknown-linux-musl";
/// Package and binary.
const BINARIES: [(&str, &str); 9] = [
    ("nulld", "nulld"),
    ("cage", "cage"),
    ("cage", "cage-vmm"),
    ("egress", "egress"),
    ("ctxgraph", "ctxgraph"),
    ("nullctl", "nullgate"),
    ("nullctl", "nullctl"),
    ("verifier", "verifier"),
    ("initramfs", "initramfs"),
];

/// Binaries by name.
pub type Built = BTreeMap<&'static str, PathBuf>;

/// The environment in which cargo makes static binaries.
pub fn toolchain(tree: &Tree) -> Result<Vec<(String, String)>> {
    let script = tree.path("scripts/musl-env.sh");
    let output = Command::new(&script)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} failed; its reason is above", script.display());
    }
    parse_exports(&String::from_utf8(output.stdout)?)
}

fn parse_exports(text: &str) -> Result<Vec<(String, String)>> {
    let parse = |line: &str| {
        let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    };
    text.lines().map(|line| parse(line).with_context(|| format!("`{line}` is no export line"))).collect()
}

/// All binaries by name.
pub fn build(tree: &Tree) -> Result<Built> {
    let environment = toolchain(tree)?;
    let step = Step::start("binaries");
    let cargo = environment.iter().find(|(name, _)| name == "CARGO").map_or("cargo", |(_, path)| path);
    let target = target_folder(tree);
    let mut command = tool(tree, cargo);
    command.current_dir(tree.path("")).envs(environment.iter().map(|(name, value)| (name, value)));
    // What `cargo run` set for us is not meant for the cargo below us.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_")
            || name_text.starts_with("CARGO_MANIFEST")
            || name_text == "CARGO_BIN_NAME"
        {
            command.env_remove(name);
        }
    }
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    // No binary has a date in it, and cargo would build all C code again at each commit.
    command.env_remove("SOURCE_DATE_EPOCH");
    command.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(&target);
    for (package, binary) in BINARIES {
        command.args(["-p", package, "--bin", binary]);
    }
    // nullctl's `memory sync` is the operator's (docs/decisions/0010).
    command.args(["--no-default-features", "--features", "cage/vmm"]);
    let result = run(&mut command);
    result.context("the node's binaries do not build")?;
    let mut built = BTreeMap::new();
    for (_, binary) in BINARIES {
        let path = target.join(TARGET).join("release").join(binary);
        let file = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        elf::check_static(&file).with_context(|| format!("{} is not static", path.display()))?;
        built.insert(binary, path);
    }
    step.done("all static");
    Ok(built)
}

/// Apart from the folder of ordinary builds, so that the two do not undo each other's work.
pub fn target_folder(tree: &Tree) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| tree.path("target"), PathBuf::from).join("node")
}

/// Where `build` leaves a binary.
pub fn path_of(tree: &Tree, binary: &str) -> PathBuf {
    target_folder(tree).join(TARGET).join("release").join(binary)
}

pub fn names() -> impl Iterator<Item = &'static str> {
    BINARIES.iter().map(|(_, binary)| *binary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_lines_become_variables() {
        let parsed = parse_exports("export CARGO=/usr/bin/cargo\nexport FLAGS='-C a=b -C c'\n").unwrap();
        assert_eq!(parsed[0], ("CARGO".to_owned(), "/usr/bin/cargo".to_owned()));
        assert_eq!(parsed[1], ("FLAGS".to_owned(), "-C a=b -C c".to_owned()));
        assert!(parse_exports("hello").is_err());
    }
}
