//! Finds the boot medium: the block device whose NullBox root partition carries the image that belongs to this boot
//! image.
//!
//! Must hold: bounded in time; a device that cannot be read, or carries another image, is passed over and named when
//! nothing else is found. Must never do: write, or mount what it looks at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::dm::DeviceNumber;
use crate::gpt::{self, Extent, GptError};
use crate::image::{BLOCK_BYTES, Image};

/// Slow USB sticks and optical drives need seconds to appear.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// An optical drive may say "no medium" until it has spun up.
const RETRY_EVERY: Duration = Duration::from_millis(500);
const DEVICES_MAX: usize = 256;
const BLOCK_DEVICES: &str = "/sys/class/block";

#[derive(Debug, Error)]
pub enum MediumError {
    #[error("no boot medium within {} s; looked at: {seen}", WAIT_MAX.as_secs())]
    NotFound { seen: String },
    #[error("{BLOCK_DEVICES} cannot be listed: {0}")]
    List(io::Error),
}

/// Why a device is not the medium.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error("{0}")]
    Table(#[from] GptError),
    #[error("no NullBox partition")]
    NoPartition,
    #[error("unreadable ({0})")]
    Read(#[from] io::Error),
    #[error("partition too small for the image")]
    Short,
    #[error(
        "another or a changed image: the top of its hash tree is {found}, this boot image wants {wanted}"
    )]
    OtherImage { found: String, wanted: String },
}

/// Where the image lies: a whole device (`extent` none) or a piece of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Medium {
    pub name: String,
    pub number: DeviceNumber,
    pub extent: Option<Extent>,
}

impl Medium {
    pub fn describe(&self) -> String {
        match self.extent {
            None => format!("/dev/{}", self.name),
            Some(extent) => format!("/dev/{} at byte {}", self.name, extent.offset_bytes),
        }
    }
}

/// Waits until a device carries the image.
pub fn find(image: &Image) -> Result<Medium, MediumError> {
    let start = Instant::now();
    let mut refused: BTreeMap<String, (Instant, Refusal)> = BTreeMap::new();
    loop {
        for name in whole_devices().map_err(MediumError::List)? {
            let again = match refused.get(&name) {
                Some((at, Refusal::Read(_))) => at.elapsed() > RETRY_EVERY,
                Some(_) => false,
                None => true,
            };
            if !again {
                continue;
            }
            match probe(&name, image) {
                Ok(medium) => return Ok(medium),
                Err(refusal) => refused.insert(name, (Instant::now(), refusal)),
            };
        }
        if start.elapsed() > WAIT_MAX {
            return Err(MediumError::NotFound { seen: list(&refused) });
        }
        std::thread::sleep(POLL);
    }
}

fn list(refused: &BTreeMap<String, (Instant, Refusal)>) -> String {
    if refused.is_empty() {
        return "no block device at all".to_owned();
    }
    let lines = refused.iter().map(|(name, (_, refusal))| format!("/dev/{name}: {refusal}"));
    lines.collect::<Vec<_>>().join("; ")
}

/// Devices that are not partitions, in a fixed order.
fn whole_devices() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(BLOCK_DEVICES)?.take(DEVICES_MAX) {
        let entry = entry?;
        if !entry.path().join("partition").exists() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort();
    Ok(names)
}

fn probe(name: &str, image: &Image) -> Result<Medium, Refusal> {
    let device = File::open(Path::new("/dev").join(name))?;
    let extent = root_extent(&device)?;
    check_top(&device, extent, image)?;
    let sys = Path::new(BLOCK_DEVICES).join(name);
    match partition_at(&sys, extent)? {
        Some(partition) => {
            let number = device_number(&sys.join(&partition))?;
            Ok(Medium { name: partition, number, extent: None })
        }
        None => Ok(Medium { name: name.to_owned(), number: device_number(&sys)?, extent: Some(extent) }),
    }
}

fn root_extent(device: &File) -> Result<Extent, Refusal> {
    let mut sector = [0; gpt::HEADER_BYTES];
    device.read_exact_at(&mut sector, gpt::HEADER_OFFSET)?;
    let header = gpt::parse_header(&sector)?;
    let mut entries = vec![0; header.entries_bytes];
    device.read_exact_at(&mut entries, header.entries_offset)?;
    gpt::find_root(&header, &entries)?.ok_or(Refusal::NoPartition)
}

/// The top block of the hash tree must hash to the root hash. dm-verity would find it out too, later and as an I/O error.
fn check_top(device: &File, extent: Extent, image: &Image) -> Result<(), Refusal> {
    if extent.length_bytes < image.total_blocks * BLOCK_BYTES {
        return Err(Refusal::Short);
    }
    let mut top = vec![0; BLOCK_BYTES as usize];
    let at = extent.offset_bytes.checked_add(image.hash_start_block * BLOCK_BYTES).ok_or(Refusal::Short)?;
    device.read_exact_at(&mut top, at)?;
    let found = hex(&Sha256::new().chain_update(unhex(&image.salt)).chain_update(&top).finalize());
    if found == image.root_hash {
        return Ok(());
    }
    Err(Refusal::OtherImage { found, wanted: image.root_hash.clone() })
}

/// The kernel's own partition device for `extent`, if it made one: mapping the whole disk would keep its other
/// partitions (state, config) from being mounted.
fn partition_at(sys: &Path, extent: Extent) -> io::Result<Option<String>> {
    for entry in fs::read_dir(sys)?.take(DEVICES_MAX) {
        let path: PathBuf = entry?.path();
        if !path.join("partition").exists() {
            continue;
        }
        let sectors = |file: &str| fs::read_to_string(path.join(file)).ok()?.trim().parse::<u64>().ok();
        let found = (sectors("start"), sectors("size"));
        if found == (Some(extent.offset_bytes / 512), Some(extent.length_bytes / 512)) {
            return Ok(path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    Ok(None)
}

fn device_number(sys: &Path) -> io::Result<DeviceNumber> {
    let text = fs::read_to_string(sys.join("dev"))?;
    let number = text.trim().split_once(':').and_then(|(major, minor)| {
        Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    });
    number.ok_or_else(|| io::Error::other(format!("`{}` is no device number", text.trim())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `text` was checked to be hexadecimal when the image file was parsed.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, half| (byte << 4) | digit(*half)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_round_trips() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), bytes);
    }

    fn device(name: &str, top: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("nullbox-medium-{}-{name}", std::process::id()));
        let mut bytes = vec![0; 4096 * 2];
        bytes.extend(top);
        fs::write(&path, bytes).unwrap();
        let file = File::open(&path).unwrap();
        fs::remove_file(path).unwrap();
        file
    }

    fn image(top: &[u8]) -> Image {
        let salt = "5a".repeat(32);
        let root_hash = hex(&Sha256::new().chain_update([0x5a; 32]).chain_update(top).finalize());
        Image { root_hash, salt, data_blocks: 1, hash_start_block: 1, total_blocks: 2 }
    }

    #[test]
    fn matching_top_block_is_accepted() {
        let top = [7; 4096];
        let extent = Extent { offset_bytes: 4096, length_bytes: 8192 };
        assert!(check_top(&device("good", &top), extent, &image(&top)).is_ok());
    }

    #[test]
    fn flipped_bit_in_top_block_is_refused_by_name() {
        let mut top = [7; 4096];
        let image = image(&top);
        top[4095] ^= 1;
        let extent = Extent { offset_bytes: 4096, length_bytes: 8192 };
        let refusal = check_top(&device("bad", &top), extent, &image);
        assert!(matches!(refusal, Err(Refusal::OtherImage { .. })), "{refusal:?}");
    }

    #[test]
    fn short_partition_is_refused() {
        let top = [7; 4096];
        let extent = Extent { offset_bytes: 4096, length_bytes: 4096 };
        let refusal = check_top(&device("short", &top), extent, &image(&top));
        assert!(matches!(refusal, Err(Refusal::Short)), "{refusal:?}");
    }
}
