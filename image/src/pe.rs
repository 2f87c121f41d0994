//! Reads as much of a PE file as it takes to add sections to a UKI stub: image base, alignment, end of the last section.

use anyhow::{Context, Result, ensure};

#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    pub image_base: u64,
    pub alignment: u64,
    /// First address behind the last section, relative to the image base.
    pub end: u64,
}

impl Layout {
    /// Absolute addresses for sections of the given lengths, one behind the other.
    pub fn place(&self, lengths: &[u64]) -> Vec<u64> {
        let mut at = self.end;
        lengths
            .iter()
            .map(|length| {
                let start = at.next_multiple_of(self.alignment);
                at = start + length;
                self.image_base + start
            })
            .collect()
    }
}

pub fn layout(file: &[u8]) -> Result<Layout> {
    ensure!(file.get(..2) == Some(b"MZ"), "not a PE file");
    let pe = number(file, 0x3c, 4)?;
    ensure!(number(file, pe, 4)? == 0x4550, "no PE signature");
    let (sections, optional_bytes) = (number(file, pe + 6, 2)?, number(file, pe + 20, 2)?);
    let optional = pe + 24;
    ensure!(number(file, optional, 2)? == 0x20b, "not a 64-bit PE file");
    let table = optional + optional_bytes;
    let mut end = 0;
    for index in 0..sections {
        let section = table + index * 40;
        end = end.max(number(file, section + 8, 4)? + number(file, section + 12, 4)?);
    }
    let alignment = number(file, optional + 32, 4)?;
    ensure!(alignment.is_power_of_two(), "section alignment {alignment} is no power of two");
    // The kernel wants page alignment at least.
    Ok(Layout { image_base: number(file, optional + 24, 8)?, alignment: alignment.max(4096), end })
}

/// Zeroes the header's time stamp and checksum, which depends on it; firmware reads neither.
pub fn clear_time(file: &mut [u8]) -> Result<()> {
    let pe = usize::try_from(number(file, 0x3c, 4)?)?;
    for at in [pe + 8, pe + 24 + 64] {
        file.get_mut(at..at + 4).context("truncated PE file")?.fill(0);
    }
    Ok(())
}

fn number(file: &[u8], at: u64, bytes: usize) -> Result<u64> {
    let at = usize::try_from(at)?;
    let field =
        file.get(at..at + bytes).with_context(|| format!("truncated PE file: nothing at byte {at}"))?;
    Ok(field.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_placed_behind_each_other_and_aligned() {
        let layout = Layout { image_base: 0x1000_0000, alignment: 4096, end: 0x1001 };
        assert_eq!(layout.place(&[1, 4096, 10]), [0x1000_2000, 0x1000_3000, 0x1000_4000]);
    }

    #[test]
    fn debians_stub_is_understood() {
        let stub =
            std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").expect("package systemd-boot-efi");
        let layout = layout(&stub).unwrap();
        assert!(layout.end > 0x1000 && layout.end < 0x100_0000, "{layout:?}");
    }

    #[test]
    fn other_files_are_refused() {
        assert!(layout(b"\x7fELF").is_err());
        assert!(layout(&std::fs::read("/proc/self/exe").unwrap()).is_err());
    }
}
