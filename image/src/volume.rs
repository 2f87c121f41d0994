//! Volumes beside the image: the operator's configuration (NULLBOX-CONFIG) and the node's state (NULLBOX-STATE), both
//! ext4 on a whole disk, made without root.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::run;

const MIB: u64 = 1 << 20;
const SIZE_MIN: u64 = 16 * MIB;
const SIZE_MAX: u64 = 16 << 40;

/// A read-mostly disk with the content of `from`.
pub fn config(from: &Path, out: &Path) -> Result<()> {
    ensure!(from.is_dir(), "{} is no folder", from.display());
    let mut total = Total::default();
    total.add(from)?;
    // ext4's own tables, a block's slack for each file, and some room.
    let size = total.bytes + total.files * 8192 + (total.bytes / 20) + 16 * MIB;
    let mut mke2fs = mke2fs("NULLBOX-CONFIG");
    mke2fs.args(["-O", "^has_journal", "-m", "0", "-N"]).arg((total.files + 64).to_string());
    mke2fs.args(["-E", "root_owner=0:0", "-d"]).arg(from);
    make(&mut mke2fs, size.next_multiple_of(MIB), out)
}

/// An empty disk, sparse on the build machine.
pub fn state(size: u64, out: &Path) -> Result<()> {
    let mut mke2fs = mke2fs("NULLBOX-STATE");
    mke2fs.args(["-m", "1", "-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1"]);
    make(&mut mke2fs, size, out)
}

/// `512M`, `1G`, or bytes.
pub fn parse_size(text: &str) -> Result<u64> {
    let units = [("K", 1 << 10), ("M", MIB), ("G", 1 << 30), ("T", 1 << 40)];
    let unit = units.into_iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)));
    let (digits, unit) = unit.unwrap_or((text, 1));
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    match size {
        Some(size) if (SIZE_MIN..=SIZE_MAX).contains(&size) => Ok(size),
        Some(_) => bail!("size `{text}` is out of range: 16M to 16T"),
        None => bail!("size `{text}` is not a number with K, M, G or T behind it, as in 1G"),
    }
}

fn mke2fs(label: &str) -> Command {
    let mut command = Command::new("/usr/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-L", label]);
    command
}

/// The volume appears whole or not at all.
fn make(mke2fs: &mut Command, size: u64, out: &Path) -> Result<()> {
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = out.with_extension("partial");
    let file = fs::File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    file.set_len(size)?;
    run(mke2fs.arg(&partial)).with_context(|| format!("the volume {}", out.display()))?;
    fs::rename(&partial, out).with_context(|| format!("cannot write {}", out.display()))
}

#[derive(Debug, Default)]
struct Total {
    files: u64,
    bytes: u64,
}

impl Total {
    fn add(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            ensure!(
                kind.is_dir() || kind.is_file(),
                "{} is neither a file nor a folder",
                entry.path().display()
            );
            self.files += 1;
            if kind.is_dir() {
                self.add(&entry.path())?;
            } else {
                self.bytes += entry.metadata()?.len();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded_and_explained() {
        assert_eq!(parse_size("1G").unwrap(), 1 << 30);
        assert_eq!(parse_size("512M").unwrap(), 512 * MIB);
        assert_eq!(parse_size("33554432").unwrap(), 32 * MIB);
        for bad in ["", "G", "-1G", "1M", "99999999T", "1 G", "1g"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    fn label(path: &Path) -> String {
        let output = Command::new("/usr/sbin/e2label").arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn clean(path: &Path) -> bool {
        Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(path).output().unwrap().status.success()
    }

    #[test]
    fn config_volume_holds_the_folder() {
        let folder = std::env::temp_dir().join(format!("nullbox-volume-{}", std::process::id()));
        fs::create_dir_all(folder.join("in/agents")).unwrap();
        fs::write(folder.join("in/nulld.toml"), "x = 1\n").unwrap();
        fs::write(folder.join("in/agents/big.toml"), vec![b'#'; 3_000_000]).unwrap();
        let out = folder.join("out.img");
        config(&folder.join("in"), &out).unwrap();
        assert_eq!(label(&out), "NULLBOX-CONFIG");
        assert!(clean(&out));
        let cat =
            Command::new("/usr/sbin/debugfs").args(["-R", "cat /nulld.toml"]).arg(&out).output().unwrap();
        assert_eq!(cat.stdout, b"x = 1\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn state_volume_is_an_empty_labelled_disk() {
        let out = std::env::temp_dir().join(format!("nullbox-state-{}.img", std::process::id()));
        state(64 * MIB, &out).unwrap();
        assert_eq!(label(&out), "NULLBOX-STATE");
        assert!(clean(&out));
        fs::remove_file(out).unwrap();
    }
}
