//! A disk that outlives a life: NAME.ext4, and NAME.json, which says what the node decided about it.
//!
//! Must hold: the pair is there as a whole or not at all, power cuts included: the record is written last and durably, so a disk
//! without one is a leftover, and so is a record whose disk has gone. Files are root's, but for the life they are lent to.
//! Must never: follow a link, or open what is no plain file.

use abi::log;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::{DiskError, at};
use crate::agents::write_whole;

/// A record, in bytes. Longer: damaged.
const RECORD_BYTES_MAX: u64 = 4096;

/// The pair of one disk.
#[derive(Debug, Clone)]
pub struct Kept {
    dir: PathBuf,
    name: String,
}

/// A disk that is being made; removed when dropped before [`Kept::keep`].
#[derive(Debug)]
pub struct NewDisk {
    pub file: File,
    path: PathBuf,
    kept: bool,
}

impl Kept {
    /// The pair of that name in that directory, there or not.
    pub fn of(dir: &Path, name: &str) -> Kept {
        Kept { dir: dir.to_owned(), name: name.to_owned() }
    }

    /// The disk's file.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(format!("{}.ext4", self.name))
    }

    fn record(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }

    /// Whether there is one, however damaged its record may be.
    pub fn is_there(&self) -> bool {
        self.record().symlink_metadata().is_ok()
    }

    /// What is recorded; none: there is no such disk.
    pub fn read<R: DeserializeOwned>(&self) -> Result<Option<R>, DiskError> {
        let path = self.record();
        let file = match open(&path, OFlags::RDONLY) {
            Ok(file) => file,
            Err(DiskError::Host { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut text).map_err(at("read", &path))?;
        let damaged = |why: String| DiskError::Damaged { path: path.clone(), why };
        if text.len() as u64 > RECORD_BYTES_MAX {
            return Err(damaged(format!("longer than {RECORD_BYTES_MAX} bytes")));
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Writes the record anew, durably.
    pub fn write<R: Serialize>(&self, record: &R) -> Result<(), DiskError> {
        let path = self.record();
        let text = serde_json::to_vec(record).map_err(|error| at("write", &path)(error.into()))?;
        write_whole(&path, &text).map_err(at("write", &path))
    }

    /// An empty file under a temporary name, for what will be this disk.
    pub fn begin(&self) -> Result<NewDisk, DiskError> {
        let path = self.dir.join(format!("{}.ext4.new", self.name));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|error| at("make", &path)(error.into()))?);
        Ok(NewDisk { file, path, kept: false })
    }

    /// Makes a new disk this one, durably; there was none of the name.
    pub fn keep<R: Serialize>(&self, mut new: NewDisk, record: &R) -> Result<(), DiskError> {
        new.file.sync_all().map_err(at("write", &new.path))?;
        fs::rename(&new.path, self.disk()).map_err(at("rename", &new.path))?;
        new.kept = true;
        self.write(record).inspect_err(|_| {
            // Without its record it is a leftover; the next life of cage would remove it too.
            if let Err(error) = fs::remove_file(self.disk()) {
                log::error("disk_not_removed", &[("path", &self.disk().display()), ("error", &error)]);
            }
        })
    }

    /// The disk, open for reading.
    pub fn open(&self) -> Result<File, DiskError> {
        open(&self.disk(), OFlags::RDONLY)
    }

    /// Makes the disk as long as the node decided, whatever a VM left; what is new is a hole.
    pub fn set_size(&self, mib: u32) -> Result<(), DiskError> {
        let file = open(&self.disk(), OFlags::RDWR)?;
        let bytes = u64::from(mib) << 20;
        let length = file.metadata().map_err(at("look at", &self.disk()))?.len();
        if length != bytes {
            file.set_len(bytes).and_then(|()| file.sync_all()).map_err(at("resize", &self.disk()))?;
        }
        Ok(())
    }

    /// Deletes the pair, durably.
    pub fn remove(&self) -> Result<(), DiskError> {
        for path in [self.disk(), self.record()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at("remove", &path)(error));
                }
                _ => {}
            }
        }
        sync_dir(&self.dir)
    }
}

impl NewDisk {
    /// Where it stands while it is made.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NewDisk {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::error("disk_not_removed", &[("path", &self.path.display()), ("error", &error)]);
        }
    }
}

/// Opens a plain file that has one name; no link is followed.
pub fn open(path: &Path, flags: OFlags) -> Result<File, DiskError> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::LOOP) => return Err(damaged(path, "is a link")),
        Err(error) => return Err(at("open", path)(error.into())),
    };
    let meta = file.metadata().map_err(at("look at", path))?;
    match (meta.is_file(), meta.nlink()) {
        (true, 1) => Ok(file),
        (true, _) => Err(damaged(path, "has a second name")),
        (false, _) => Err(damaged(path, "is no plain file")),
    }
}

fn damaged(path: &Path, why: &str) -> DiskError {
    DiskError::Damaged { path: path.to_owned(), why: why.into() }
}

/// Lets a uid alone have a file: to write, or only to read.
pub fn give(path: &Path, uid: u32, read_only: bool) -> Result<(), DiskError> {
    let file = open(path, OFlags::RDONLY)?;
    let mode = Permissions::from_mode(if read_only { 0o400 } else { 0o600 });
    file.set_permissions(mode)
        .and_then(|()| Ok(rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?))
        .map_err(at("change the owner of", path))
}

/// Takes a file back from whoever had it.
pub fn take_back(path: &Path) -> Result<(), DiskError> {
    give(path, rustix::process::geteuid().as_raw(), false)
}

fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("write", dir))
}

/// Makes a directory that only root enters, or makes it so.
pub fn private_dir(dir: &Path) -> Result<(), DiskError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at("make", dir)(error)),
        _ => {}
    }
    let meta = fs::symlink_metadata(dir).map_err(at("look at", dir))?;
    if !meta.is_dir() {
        return Err(damaged(dir, "is no directory"));
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(at("change the mode of", dir))
}

/// Names of the disks in a directory that have a record; none if there is no such directory.
pub fn names(dir: &Path) -> Result<Vec<String>, DiskError> {
    let mut names = Vec::new();
    for path in entries(dir)? {
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// What stands in a directory, in no order; nothing if there is no such directory. A link to one is refused.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>, DiskError> {
    match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(damaged(dir, "is no directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at("look at", dir)(error)),
    }
    let entries = fs::read_dir(dir).map_err(at("list", dir))?;
    entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>().map_err(at("list", dir))
}

/// Removes what a power cut left half made or half removed, and takes back what lives had. For when nothing runs. What cannot be
/// mended is told, and harms its own agent only, whose start will say the same.
pub fn sweep(dir: &Path) -> Result<(), DiskError> {
    for path in entries(dir)? {
        let other = match path.extension().and_then(|extension| extension.to_str()) {
            Some("ext4") => Some(path.with_extension("json")),
            Some("json") => Some(path.with_extension("ext4")),
            _ => None,
        };
        let is_whole = other.is_some_and(|other| other.symlink_metadata().is_ok());
        let mended = match is_whole {
            true => take_back(&path),
            false => {
                log::warning("leftover_removed", &[("path", &path.display())]);
                fs::remove_file(&path).map_err(at("remove", &path))
            }
        };
        if let Err(error) = mended {
            log::error("disk_damaged", &[("error", &error)]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn make(kept: &Kept, content: &[u8]) {
        let new = kept.begin().unwrap();
        io::Write::write_all(&mut &new.file, content).unwrap();
        kept.keep(new, &7u32).unwrap();
    }

    #[test]
    fn a_disk_is_kept_as_a_whole_or_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::of(dir.path(), "a");
        assert_eq!(kept.read::<u32>().unwrap(), None);
        drop(kept.begin().unwrap());
        assert!(entries(dir.path()).unwrap().is_empty(), "given up");
        make(&kept, b"content");
        assert_eq!(kept.read::<u32>().unwrap(), Some(7));
        assert_eq!(fs::read(kept.disk()).unwrap(), b"content");
        assert_eq!(fs::metadata(kept.disk()).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(dir.path()).unwrap(), ["a"]);
        kept.remove().unwrap();
        assert!(entries(dir.path()).unwrap().is_empty());
        kept.remove().unwrap();
    }

    /// All that a power cut can leave between two of the steps of `keep`, `write` and `remove`.
    #[test]
    fn each_leftover_of_a_power_cut_is_removed_and_no_whole_disk_is() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Kept::of(dir.path(), "whole");
        make(&whole, b"content");
        for leftover in ["a.ext4.new", "b.ext4", "c.json", "whole.new", "d.json.new"] {
            fs::write(dir.path().join(leftover), b"x").unwrap();
        }
        sweep(dir.path()).unwrap();
        let mut left = entries(dir.path()).unwrap();
        left.sort();
        assert_eq!(left, [whole.disk(), whole.record()]);
        assert_eq!(
            (whole.read::<u32>().unwrap(), fs::read(whole.disk()).unwrap()),
            (Some(7), b"content".to_vec())
        );
    }

    /// This program itself is the maker, told so by a variable.
    #[test]
    fn a_maker_killed_at_any_moment_leaves_whole_disks_or_none() {
        const DIR: &str = "NULLBOX_TEST_MAKER";
        let content = vec![9u8; 300_000];
        if let Some(dir) = std::env::var_os(DIR) {
            for number in (0..8).cycle() {
                let kept = Kept::of(Path::new(&dir), &format!("d{number}"));
                kept.remove().unwrap();
                make(&kept, &content);
                kept.write(&8u32).unwrap();
            }
        }
        let seed = crate::output::unix_ms();
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let mut seen = 0;
        for round in 0..10 {
            let mut maker = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "disks::kept::tests::a_maker_killed_at_any_moment_leaves_whole_disks_or_none",
                ])
                .env(DIR, dir.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            while !Kept::of(dir.path(), "d1").record().exists() {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis((seed >> round) % 40));
            maker.kill().unwrap();
            maker.wait().unwrap();
            sweep(dir.path()).unwrap();
            let names = names(dir.path()).unwrap();
            assert_eq!(entries(dir.path()).unwrap().len(), names.len() * 2, "round {round} of seed {seed}");
            for name in names {
                let kept = Kept::of(dir.path(), &name);
                assert!(matches!(kept.read::<u32>(), Ok(Some(7 | 8))), "round {round} of seed {seed}");
                assert!(fs::read(kept.disk()).unwrap() == content, "round {round} of seed {seed}");
                kept.remove().unwrap();
                seen += 1;
            }
        }
        assert!(seen > 0, "no disk was made");
    }

    #[test]
    fn links_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, b"secret").unwrap();
        let below = dir.path().join("disks");
        private_dir(&below).unwrap();
        let kept = Kept::of(&below, "a");
        kept.write(&7u32).unwrap();
        symlink(&secret, kept.disk()).unwrap();
        assert!(kept.open().unwrap_err().to_string().contains("is a link"));
        assert!(give(&kept.disk(), 0, false).is_err() && kept.set_size(1).is_err());
        fs::remove_file(kept.disk()).unwrap();
        fs::hard_link(&secret, kept.disk()).unwrap();
        assert!(kept.open().unwrap_err().to_string().contains("second name"));
        fs::remove_file(kept.disk()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, kept.disk(), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(kept.open().unwrap_err().to_string().contains("no plain file"));
        // A link in the place of a new disk is not written through, one in the place of a directory not entered.
        symlink(&secret, below.join("b.ext4.new")).unwrap();
        assert!(Kept::of(&below, "b").begin().is_err());
        symlink(dir.path(), dir.path().join("linked")).unwrap();
        assert!(private_dir(&dir.path().join("linked")).is_err());
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        // The sweep leaves what it does not know how to mend, and goes on.
        sweep(&below).unwrap();
        assert!(!below.join("b.ext4.new").exists() && secret.exists());
    }

    #[test]
    fn a_record_that_is_not_ours_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::of(dir.path(), "a");
        for text in [&b"{"[..], &[b' '; 5000]] {
            fs::write(kept.record(), text).unwrap();
            let error = kept.read::<u32>().unwrap_err().to_string();
            assert!(error.contains("a.json") && error.contains("begin anew"), "{error}");
        }
    }

    #[test]
    fn the_length_is_what_the_node_decided() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::of(dir.path(), "a");
        make(&kept, &[9; 5 << 20]);
        for mib in [8, 3] {
            kept.set_size(mib).unwrap();
            assert_eq!(fs::metadata(kept.disk()).unwrap().len(), u64::from(mib) << 20);
        }
    }
}
