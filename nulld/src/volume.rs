//! Volumes by label: which block device is NULLBOX-STATE, which is NULLBOX-CONFIG.
//!
//! Reads a few superblock bytes, read-only, and leaves parsing file systems to the kernel. Sources: ext4 (kernel doc
//! filesystems/ext4/super), FAT (Microsoft's fatgen103), ISO 9660 (ECMA-119, 8.4), partition names (uevent of a block device).
//!
//! Must hold: devices are looked at in the order of their names, so the same disks give the same answer; a disk that does not
//! answer holds nobody up, and is named. Must never: take a disk that could not be read for one without a label.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use abi::limits;

/// Label of the volume that keeps state.
pub const STATE: &str = "NULLBOX-STATE";
/// Label of the volume that brings configuration.
pub const CONFIG: &str = "NULLBOX-CONFIG";
/// The same on FAT, where a label has 11 characters.
pub const CONFIG_FAT: &str = "NULLBOX-CFG";
/// Block devices looked at. More are not.
const DEVICES_MAX: usize = 256;

/// File systems a volume may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Vfat,
    Iso9660,
    /// A partition with the name of a volume, and nothing on it that nulld knows.
    Unknown,
}

impl Kind {
    /// The kernel's name of the file system.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Vfat => "vfat",
            Kind::Iso9660 => "iso9660",
            Kind::Unknown => "unknown",
        }
    }
}

/// A volume that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub device: PathBuf,
    pub kind: Kind,
    pub label: String,
    /// Name of its partition, where it has one.
    pub partition: String,
}

impl Volume {
    /// Whether it answers to a label, its own or its partition's.
    pub fn is(&self, label: &str) -> bool {
        let is_config_fat = label == CONFIG && self.kind == Kind::Vfat && self.label == CONFIG_FAT;
        self.label == label || self.partition == label || is_config_fat
    }
}

/// The disks of a node, as far as they answer.
#[derive(Debug, Default)]
pub struct Disks {
    /// Names of those that did not, and how. They are not asked again.
    pub silent: BTreeMap<String, String>,
}

impl Disks {
    /// Volumes with a label; waits up to `wait` for the first one to appear.
    pub fn find(&mut self, label: &str, wait: Duration) -> Vec<Volume> {
        let begin = Instant::now();
        loop {
            let found: Vec<Volume> = self.all().into_iter().filter(|volume| volume.is(label)).collect();
            if !found.is_empty() || begin.elapsed() >= wait {
                return found;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All volumes, in the order of their devices' names. Each is read by a thread of its own: a read that the device never
    /// ends cannot be given up, only left behind.
    fn all(&mut self) -> Vec<Volume> {
        let (sender, receiver) = mpsc::channel();
        let mut asked: Vec<String> = Vec::new();
        let mut names = names();
        names.retain(|name| !self.silent.contains_key(name));
        for name in names.into_iter().take(DEVICES_MAX) {
            let (sender, own) = (sender.clone(), name.clone());
            let thread = std::thread::Builder::new().name("disk".into()).stack_size(64 * 1024);
            match thread.spawn(move || drop(sender.send((own.clone(), look(&own))))) {
                Ok(_) => asked.push(name),
                Err(error) => drop(self.silent.insert(name, format!("could not be asked: {error}"))),
            }
        }
        drop(sender);
        let until = Instant::now() + Duration::from_millis(limits::DISK_ANSWER_MS_MAX);
        let mut found = BTreeMap::new();
        while let Ok((name, answer)) = receiver.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            asked.retain(|other| *other != name);
            match answer {
                Ok(Some(volume)) => drop(found.insert(name, volume)),
                Ok(None) => {}
                Err(error) => drop(self.silent.insert(name, format!("cannot be read: {error}"))),
            }
        }
        for name in asked {
            self.silent
                .insert(name, format!("did not answer within {} s", limits::DISK_ANSWER_MS_MAX / 1000));
        }
        found.into_values().collect()
    }
}

/// Block devices of the node, but for those that are made of other ones.
fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !["loop", "ram", "zram", "dm-", "nbd"].iter().any(|skip| name.starts_with(skip)))
        .collect();
    names.sort();
    names
}

/// The volume on a device, if there is one. An error is a disk that fails (EIO): an empty drive, or an optical disc without
/// data, is only not a volume.
fn look(name: &str) -> io::Result<Option<Volume>> {
    let device = PathBuf::from("/dev").join(name.replace('!', "/"));
    // Without O_NONBLOCK a drive that is empty says so here; with it, each read would fail slowly (open(2), cdrom.c).
    let probed = match File::open(&device) {
        Ok(file) => probe(&file),
        Err(error) => Err(error),
    };
    let fails = |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    let probed = match probed {
        Err(error) if fails(&error) && !name.starts_with("sr") => return Err(error),
        Err(_) => return Ok(None),
        Ok(probed) => probed,
    };
    let uevent = fs::read_to_string(format!("/sys/class/block/{name}/uevent")).unwrap_or_default();
    let partition = uevent.lines().find_map(|line| line.strip_prefix("PARTNAME="));
    let partition = partition.unwrap_or_default().to_owned();
    Ok(match probed {
        Some((kind, label)) => Some(Volume { device, kind, label, partition }),
        None if [STATE, CONFIG].contains(&partition.as_str()) => {
            Some(Volume { device, kind: Kind::Unknown, label: String::new(), partition })
        }
        None => None,
    })
}

/// File system and label. Too short a device has neither; any other failure to read is an error.
pub fn probe(file: &File) -> io::Result<Option<(Kind, String)>> {
    let read = |offset: u64| -> io::Result<[u8; 512]> {
        let mut sector = [0u8; 512];
        match file.read_exact_at(&mut sector, offset) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            Err(_) => Ok([0; 512]),
            Ok(()) => Ok(sector),
        }
    };
    if let Some(label) = ext4(&read(1024)?) {
        return Ok(Some((Kind::Ext4, label)));
    }
    if let Some(label) = iso9660(&read(16 * 2048)?) {
        return Ok(Some((Kind::Iso9660, label)));
    }
    Ok(vfat(&read(0)?).map(|label| (Kind::Vfat, label)))
}

fn ext4(superblock: &[u8; 512]) -> Option<String> {
    (superblock.get(56..58)? == [0x53, 0xef]).then_some(())?;
    text(superblock.get(120..136)?)
}

fn iso9660(descriptor: &[u8; 512]) -> Option<String> {
    (descriptor.get(0..6)? == b"\x01CD001").then_some(())?;
    text(descriptor.get(40..72)?)
}

fn vfat(boot: &[u8; 512]) -> Option<String> {
    (boot.get(510..512)? == [0x55, 0xaa]).then_some(())?;
    // FAT32 has zero 16-bit sectors per FAT, and its extended boot record 28 bytes later.
    let signature = match boot.get(22..24)? {
        [0, 0] => 66,
        _ => 38,
    };
    (*boot.get(signature)? == 0x29).then_some(())?;
    (boot.get(signature + 16..signature + 19)? == b"FAT").then_some(())?;
    text(boot.get(signature + 5..signature + 16)?)
}

fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn image(name: &str, bytes: u64, tool: &[&str]) -> (PathBuf, File) {
        let path = std::env::temp_dir().join(format!("nulld-volume-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(bytes).unwrap();
        let output = Command::new(tool[0])
            .args(&tool[1..])
            .arg(&path)
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}; run scripts/deps.sh", tool[0]));
        assert!(output.status.success(), "{output:?}");
        let file = File::open(&path).unwrap();
        (path, file)
    }

    #[test]
    fn labels_are_read_from_real_file_systems() {
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        let mke2fs = path
            .split(':')
            .map(|dir| format!("{dir}/mke2fs"))
            .find(|p| PathBuf::from(p).exists())
            .expect("mke2fs, see scripts/deps.sh");
        let mkfs_vfat = mke2fs.replace("mke2fs", "mkfs.vfat");
        for (name, tool, expected) in [
            ("ext4", vec![mke2fs.as_str(), "-q", "-F", "-t", "ext4", "-L", STATE], (Kind::Ext4, STATE)),
            ("ext4n", vec![mke2fs.as_str(), "-q", "-F", "-t", "ext4"], (Kind::Ext4, "")),
            ("fat32", vec![mkfs_vfat.as_str(), "-F", "32", "-n", CONFIG_FAT], (Kind::Vfat, CONFIG_FAT)),
            ("fat16", vec![mkfs_vfat.as_str(), "-F", "16", "-n", CONFIG_FAT], (Kind::Vfat, CONFIG_FAT)),
        ] {
            let (path, file) = image(name, 64 << 20, &tool);
            let (kind, label) = probe(&file).unwrap().unwrap_or_else(|| panic!("{name}: nothing found"));
            assert_eq!((kind, label.as_str()), expected, "{name}");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn noise_is_not_a_volume() {
        let path = std::env::temp_dir().join(format!("nulld-noise-{}", std::process::id()));
        for bytes in [vec![], vec![0u8; 100], vec![0u8; 70_000], vec![0xff; 70_000]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(probe(&File::open(&path).unwrap()).unwrap(), None);
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn iso9660_label_is_padded_with_blanks() {
        let mut descriptor = [b' '; 512];
        descriptor[..6].copy_from_slice(b"\x01CD001");
        descriptor[40..54].copy_from_slice(CONFIG.as_bytes());
        assert_eq!(iso9660(&descriptor).as_deref(), Some(CONFIG));
    }

    #[test]
    fn a_volume_answers_to_its_label_or_its_partition() {
        let volume = |kind, label: &str, partition: &str| Volume {
            device: "/dev/x".into(),
            kind,
            label: label.into(),
            partition: partition.into(),
        };
        assert!(volume(Kind::Ext4, STATE, "").is(STATE));
        assert!(volume(Kind::Vfat, "X", CONFIG).is(CONFIG));
        assert!(volume(Kind::Vfat, CONFIG_FAT, "").is(CONFIG));
        assert!(!volume(Kind::Ext4, CONFIG_FAT, "").is(CONFIG));
        assert!(!volume(Kind::Ext4, CONFIG, "").is(STATE));
    }
}
