//! The image builder. Runs on the build machine, never on a node; `docs/image.md` says what it makes.

mod binaries;
mod cpio;
mod elf;
mod esp;
mod iso;
mod kernel;
mod pe;
mod process;
mod progress;
mod root;
mod sizes;
mod tree;
mod verity;
mod volume;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use tree::Tree;

const USAGE: &str = "\
usage: image COMMAND
  iso [--out FILE]                        build everything; default build/nullbox.iso
  kernel host|guest [--print-path|--check]  build a kernel (cached), or only check its configuration
  toolchain                               prepare the static musl toolchain
  binaries                                build the node's binaries and check that they are static
  config-volume --from DIR --out FILE     a disk labelled NULLBOX-CONFIG
  state-volume --size 1G --out FILE       an empty disk labelled NULLBOX-STATE
  sizes                                   sizes of the ISO, the binaries and the kernels";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let tree = Tree::find()?;
    match words.as_slice() {
        ["iso"] => iso::build(&tree, &tree.build().join("nullbox.iso")),
        ["iso", "--out", file] => iso::build(&tree, &absolute(file)?),
        ["kernel", kind] => kernel::build(&tree, kernel::Kind::parse(kind)?).map(drop),
        ["kernel", kind, "--print-path"] => {
            println!("{}", kernel::build(&tree, kernel::Kind::parse(kind)?)?.display());
            Ok(())
        }
        ["kernel", kind, "--check"] => kernel::check_only(&tree, kernel::Kind::parse(kind)?),
        ["toolchain"] => binaries::toolchain(&tree).map(drop),
        ["binaries"] => binaries::build(&tree).map(drop),
        ["config-volume", "--from", from, "--out", out] => volume::config(&absolute(from)?, &absolute(out)?),
        ["state-volume", "--size", size, "--out", out] => {
            volume::state(volume::parse_size(size)?, &absolute(out)?)
        }
        ["sizes"] => sizes::print(&tree),
        _ => bail!("unknown command `{}`\n{USAGE}", words.join(" ")),
    }
}

/// Paths are the caller's; the builder itself works in the tree.
fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("bad path `{path}`"))
}
