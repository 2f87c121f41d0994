//! Proves that a binary is static: an x86-64 ELF executable without an interpreter and without needed libraries.

use anyhow::{Result, bail};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const PROGRAM_HEADER_BYTES: usize = 56;
const EM_X86_64: u16 = 62;

pub fn check_static(file: &[u8]) -> Result<()> {
    if file.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit little-endian ELF file");
    }
    if u16_at(file, 18)? != EM_X86_64 {
        bail!("not an x86-64 binary");
    }
    if u16_at(file, 54)? as usize != PROGRAM_HEADER_BYTES {
        bail!("unknown program header size");
    }
    let (start, count) = (u64_at(file, 32)?, u64::from(u16_at(file, 56)?));
    for index in 0..count {
        let header = start.saturating_add(index * PROGRAM_HEADER_BYTES as u64);
        match u32_at(file, header)? {
            PT_INTERP => bail!("has an interpreter (PT_INTERP): it is dynamically linked"),
            PT_DYNAMIC => check_dynamic(file, u64_at(file, header + 8)?, u64_at(file, header + 32)?)?,
            _ => {}
        }
    }
    Ok(())
}

/// A static-pie has a dynamic section for its own relocations; it may need nothing.
fn check_dynamic(file: &[u8], offset: u64, length: u64) -> Result<()> {
    for index in 0..length / 16 {
        if u64_at(file, offset.saturating_add(index * 16))? == DT_NEEDED {
            bail!("needs a shared library (DT_NEEDED)");
        }
    }
    Ok(())
}

fn field<const N: usize>(file: &[u8], at: u64) -> Result<[u8; N]> {
    let bytes = usize::try_from(at).ok().and_then(|at| file.get(at..at.checked_add(N)?));
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Ok(bytes),
        None => bail!("truncated: nothing at byte {at}"),
    }
}

fn u16_at(file: &[u8], at: u64) -> Result<u16> {
    Ok(u16::from_le_bytes(field(file, at)?))
}

fn u32_at(file: &[u8], at: u64) -> Result<u32> {
    Ok(u32::from_le_bytes(field(file, at)?))
}

fn u64_at(file: &[u8], at: u64) -> Result<u64> {
    Ok(u64::from_le_bytes(field(file, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF with one program header of `kind` that covers a dynamic entry with `tag`.
    fn elf(kind: u32, tag: u64) -> Vec<u8> {
        let mut file = vec![0; 64 + 56 + 16];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&kind.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file[96..104].copy_from_slice(&16u64.to_le_bytes());
        file[120..128].copy_from_slice(&tag.to_le_bytes());
        file
    }

    #[test]
    fn static_and_static_pie_pass() {
        check_static(&elf(1, 0)).unwrap();
        check_static(&elf(PT_DYNAMIC, 5)).unwrap();
    }

    #[test]
    fn interpreter_is_refused() {
        assert!(check_static(&elf(PT_INTERP, 0)).unwrap_err().to_string().contains("PT_INTERP"));
    }

    #[test]
    fn needed_library_is_refused() {
        assert!(check_static(&elf(PT_DYNAMIC, DT_NEEDED)).unwrap_err().to_string().contains("DT_NEEDED"));
    }

    #[test]
    fn real_dynamic_binary_is_refused() {
        assert!(check_static(&std::fs::read("/proc/self/exe").unwrap()).is_err());
    }

    #[test]
    fn truncated_or_foreign_files_are_refused() {
        let file = elf(PT_DYNAMIC, 5);
        for length in 0..file.len() - 8 {
            assert!(check_static(&file[..length]).is_err(), "{length} bytes");
        }
        assert!(check_static(b"#!/bin/sh\n").is_err());
    }
}
