//! What this boot image was built to boot: the root hash and the layout of the SquashFS that belongs to it.
//!
//! The file is part of the initramfs, so it is as trusted as this program. Format: one `key=value` a line, each of the
//! four keys once.

use thiserror::Error;

const PATH: &str = "/image.verity";
/// Block size of data and hashes, in bytes.
pub const BLOCK_BYTES: u64 = 4096;

#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    /// SHA-256 at the top of the hash tree, 64 hexadecimal digits.
    pub root_hash: String,
    /// Salt of every hash, hexadecimal.
    pub salt: String,
    /// Blocks of the SquashFS.
    pub data_blocks: u64,
    /// Where the hash tree's top begins, in blocks; the tree lies behind the data.
    pub hash_start_block: u64,
    /// SquashFS and hash tree together, in blocks.
    pub total_blocks: u64,
}

#[derive(Debug, Error)]
pub enum ImageError {
    #[error("{PATH} in the boot image cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("{PATH} in the boot image has no valid `{0}`")]
    Field(&'static str),
}

impl Image {
    pub fn data_bytes(&self) -> u64 {
        self.data_blocks * BLOCK_BYTES
    }
}

pub fn load() -> Result<Image, ImageError> {
    parse(&std::fs::read_to_string(PATH)?)
}

pub fn parse(text: &str) -> Result<Image, ImageError> {
    let field = |key: &'static str| {
        let mut values =
            text.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| *name == key);
        match (values.next(), values.next()) {
            (Some((_, value)), None) => Ok(value),
            _ => Err(ImageError::Field(key)),
        }
    };
    let number = |key: &'static str| -> Result<u64, ImageError> {
        // The bound keeps every product with BLOCK_BYTES in range.
        field(key)?.parse().ok().filter(|number| *number < 1 << 40).ok_or(ImageError::Field(key))
    };
    let digest = |key: &'static str| {
        let value = field(key)?;
        let good = value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
        if good { Ok(value.to_owned()) } else { Err(ImageError::Field(key)) }
    };
    let image = Image {
        root_hash: digest("root_hash")?,
        salt: digest("salt")?,
        data_blocks: number("data_blocks")?,
        hash_start_block: number("hash_start_block")?,
        total_blocks: number("total_blocks")?,
    };
    if image.data_blocks == 0 || image.hash_start_block < image.data_blocks {
        return Err(ImageError::Field("hash_start_block"));
    }
    if image.total_blocks <= image.hash_start_block {
        return Err(ImageError::Field("total_blocks"));
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        let digest = "ab".repeat(32);
        format!("root_hash={digest}\nsalt={digest}\ndata_blocks=10\nhash_start_block=11\ntotal_blocks=12\n")
    }

    #[test]
    fn well_formed_file_is_parsed() {
        let image = parse(&text()).unwrap();
        assert_eq!((image.data_blocks, image.hash_start_block, image.total_blocks), (10, 11, 12));
    }

    #[test]
    fn missing_double_or_wrong_fields_are_refused() {
        for (from, to) in [
            ("salt=", "sold="),
            ("data_blocks=10", "data_blocks=0"),
            ("data_blocks=10", "data_blocks=-1"),
            ("data_blocks=10", "data_blocks=12"),
            ("hash_start_block=11", "hash_start_block=18446744073709551615"),
            ("total_blocks=12", "total_blocks=11"),
            ("total_blocks=12", "total_blocks=12\ntotal_blocks=13"),
            ("root_hash=ab", "root_hash=a"),
            ("root_hash=ab", "root_hash=zz"),
        ] {
            assert!(parse(&text().replacen(from, to, 1)).is_err(), "{from} -> {to}");
        }
    }
}
