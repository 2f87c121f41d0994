//! The image builder. Runs on the build machine, never on a node; `docs/image.md` says what it makes.

mod binaries;
mod cpio;
mod elf;
mod esp;
mod hardening;
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
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use tree::Tree;

const USAGE: &str = "\
usage: image COMMAND
  iso [--out FILE] [--overlay DIR]        build everything; default build/nullbox.iso; DIR is laid over the root
  kernel host|guest [--print-path|--check]  build a kernel (cached), or only check its configuration
  toolchain                               prepare the static musl toolchain
  binaries                                build the node's binaries and check that they are static
  config-volume --from DIR --out FILE     a disk labelled NULLBOX-CONFIG
  state-volume --size 1G --out FILE       an empty disk labelled NULLBOX-STATE
  sizes [--iso FILE]                      sizes of the ISO, the binaries and the kernels";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let tree = Tree::find()?;
    match words.as_slice() {
        ["iso", options @ ..] => {
            let [out, overlay] = parse_options(options, ["--out", "--overlay"])?;
            iso::build(&tree, &out.unwrap_or(tree.build().join("nullbox.iso")), overlay.as_deref())
        }
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
        ["sizes", options @ ..] => {
            let [iso] = parse_options(options, ["--iso"])?;
            sizes::print(&tree, &iso.unwrap_or(tree.build().join("nullbox.iso")))
        }
        _ => bail!("unknown command `{}`\n{USAGE}", words.join(" ")),
    }
}

/// Each of `names` at most once, with a path behind it.
fn parse_options<const N: usize>(words: &[&str], names: [&str; N]) -> Result<[Option<PathBuf>; N]> {
    let mut values = [const { None }; N];
    for pair in words.chunks(2) {
        let ([name, value], Some(slot)) = (pair, names.iter().position(|known| Some(known) == pair.first()))
        else {
            bail!("`{}` is not understood\n{USAGE}", pair.join(" "));
        };
        if values[slot].replace(absolute(value)?).is_some() {
            bail!("`{name}` is given twice");
        }
    }
    Ok(values)
}

/// Paths are the caller's; the builder itself works in the tree.
fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("bad path `{path}`"))
}
