//! Messages of the device-mapper control device (Linux `include/uapi/linux/dm-ioctl.h`, interface 4.0).
//!
//! Owns the encoding, nothing else; `sys` makes the call. A message is a 312-byte header, and for a table load one
//! target behind it.

/// Control requests, by the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Create,
    LoadTable,
    /// DM_DEV_SUSPEND without the suspend flag.
    Resume,
}

const HEADER_BYTES: usize = 312;
const TARGET_BYTES: usize = 40;
const NAME_OFFSET: usize = 48;
const NAME_BYTES: usize = 128;
const DEV_OFFSET: usize = 40;
const READ_ONLY: u32 = 1;
const INTERFACE: [u32; 3] = [4, 0, 0];

/// One target over the whole device.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// Length in 512-byte sectors.
    pub sectors: u64,
    pub kind: &'static str,
    pub parameters: String,
}

/// A device number as the kernel prints it, `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Request {
    /// `_IOWR(0xfd, nr, struct dm_ioctl)`.
    pub fn code(self) -> u32 {
        let number = match self {
            Request::Create => 3,
            Request::Resume => 6,
            Request::LoadTable => 9,
        };
        0xc000_0000 | ((HEADER_BYTES as u32) << 16) | 0xfd00 | number
    }
}

/// A message about the device `name`, read-only, with a table when there is one.
pub fn message(name: &str, target: Option<&Target>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + TARGET_BYTES + 512);
    let target_bytes = target.map(encode_target).unwrap_or_default();
    for word in INTERFACE {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(((HEADER_BYTES + target_bytes.len()) as u32).to_le_bytes());
    bytes.extend((HEADER_BYTES as u32).to_le_bytes());
    bytes.extend(u32::from(target.is_some()).to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(READ_ONLY.to_le_bytes());
    bytes.resize(NAME_OFFSET, 0);
    bytes.extend(name.bytes().take(NAME_BYTES - 1));
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend(target_bytes);
    bytes
}

/// The device number that the kernel wrote into an answered message.
pub fn device_number(answer: &[u8]) -> Option<DeviceNumber> {
    let field: [u8; 8] = answer.get(DEV_OFFSET..DEV_OFFSET + 8)?.try_into().ok()?;
    // huge_encode_dev: minor's low byte, twelve bits of major, the rest of minor.
    let dev = u64::from_le_bytes(field);
    let major = ((dev >> 8) & 0xfff) as u32;
    let minor = ((dev & 0xff) | ((dev >> 12) & 0xfff_ff00)) as u32;
    (major != 0).then_some(DeviceNumber { major, minor })
}

/// A piece of `device` that starts at `start_sector`.
pub fn linear(device: DeviceNumber, start_sector: u64, sectors: u64) -> Target {
    Target { sectors, kind: "linear", parameters: format!("{device} {start_sector}") }
}

/// SquashFS and hash tree on one device, both in blocks of 4096; sha256, format 1
/// (Linux `Documentation/admin-guide/device-mapper/verity.rst`). A block that does not match its hash reads as EIO.
pub fn verity(
    device: DeviceNumber,
    data_blocks: u64,
    hash_start_block: u64,
    root_hash: &str,
    salt: &str,
) -> Target {
    Target {
        sectors: data_blocks * 8,
        kind: "verity",
        parameters: format!(
            "1 {device} {device} 4096 4096 {data_blocks} {hash_start_block} sha256 {root_hash} {salt}"
        ),
    }
}

fn encode_target(target: &Target) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(target.sectors.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    let length = (TARGET_BYTES + target.parameters.len() + 1).next_multiple_of(8);
    bytes.extend((length as u32).to_le_bytes());
    bytes.extend(target.kind.as_bytes());
    bytes.resize(TARGET_BYTES, 0);
    bytes.extend(target.parameters.as_bytes());
    bytes.resize(length, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceNumber = DeviceNumber { major: 11, minor: 0 };

    #[test]
    fn request_codes_are_the_kernels() {
        assert_eq!(Request::Create.code(), 0xc138_fd03);
        assert_eq!(Request::Resume.code(), 0xc138_fd06);
        assert_eq!(Request::LoadTable.code(), 0xc138_fd09);
    }

    #[test]
    fn linear_table_reads_as_documented() {
        let target = linear(DEVICE, 4096, 800);
        assert_eq!((target.kind, target.parameters.as_str(), target.sectors), ("linear", "11:0 4096", 800));
    }

    #[test]
    fn verity_table_reads_as_documented() {
        let target = verity(DEVICE, 10, 11, "aa", "bb");
        assert_eq!(target.sectors, 80);
        assert_eq!(target.parameters, "1 11:0 11:0 4096 4096 10 11 sha256 aa bb");
    }

    #[test]
    fn message_has_the_kernels_layout() {
        let message = message("root", Some(&linear(DEVICE, 4, 8)));
        assert_eq!(&message[12..16], &(312u32 + 40 + 8).to_le_bytes());
        assert_eq!(&message[16..20], &312u32.to_le_bytes());
        assert_eq!(&message[20..24], &1u32.to_le_bytes());
        assert_eq!(&message[28..32], &1u32.to_le_bytes(), "read-only");
        assert_eq!(&message[48..53], b"root\0");
        assert_eq!(&message[320..328], &8u64.to_le_bytes());
        assert_eq!(&message[336..343], b"linear\0");
        assert_eq!(&message[352..360], b"11:0 4\0\0");
    }

    #[test]
    fn long_names_keep_their_terminator() {
        let message = message(&"x".repeat(300), None);
        assert_eq!(message.len(), 312);
        assert_eq!(message[48 + 127], 0);
    }

    #[test]
    fn device_number_is_decoded() {
        let mut answer = message("root", None);
        assert_eq!(device_number(&answer), None);
        answer[40..48].copy_from_slice(&0xfe01u64.to_le_bytes());
        assert_eq!(device_number(&answer), Some(DeviceNumber { major: 254, minor: 1 }));
        answer[40..48].copy_from_slice(&0x10_fe01u64.to_le_bytes());
        assert_eq!(device_number(&answer), Some(DeviceNumber { major: 254, minor: 257 }));
    }
}
