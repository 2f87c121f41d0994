//! Prints the sizes that the project promises to keep small, of what was last built.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::binaries;
use crate::iso;
use crate::kernel::{self, Kind};
use crate::tree::Tree;

pub fn print(tree: &Tree, iso: &Path) -> Result<()> {
    line("iso", iso)?;
    for file in ["root.img", "nullbox.efi", "initramfs.cpio.zst"] {
        line(file, &iso::parts(iso).join(file))?;
    }
    for name in binaries::names() {
        line(name, &binaries::path_of(tree, name))?;
    }
    line("host kernel", &kernel::build(tree, Kind::Host)?)?;
    line("guest kernel", &kernel::build(tree, Kind::Guest)?)
}

fn line(name: &str, path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) => println!("{name:<20} {:>9.1} KiB", metadata.len() as f64 / 1024.0),
        Err(_) => println!("{name:<20} not built; run `make iso`"),
    }
    Ok(())
}
