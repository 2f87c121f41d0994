//! What the kernel needs besides a program's own file to execute it, and a loader that cannot be a program itself.
//!
//! The kernel opens a program's loader (PT_INTERP, elf(5)) with the same right it opens a program with, so a loader that
//! serves one program could be called by name to start any other: `ld.so /bin/sh`. [`seal`] closes that: the copy it makes asks,
//! as a program, for a loader that can never be executed, while as a loader its own PT_INTERP is not looked at.
//! Must hold: every offset of the untrusted file is checked before use.

use std::io;

use crate::arch;

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const SEGMENTS_MAX: usize = 128;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PT_GNU_STACK: u32 = 0x6474_e551;
/// The kernel's BINPRM_BUF_SIZE: where a `#!` line must have named its interpreter.
const SCRIPT_LINE_BYTES: usize = 256;
const PATH_BYTES: usize = 4096;
/// The loader that a sealed loader asks for: not a regular file, so the kernel never executes it (EACCES).
const NO_LOADER: &[u8] = b"/dev/null\0";

/// What else must be executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// A static program.
    Nothing,
    /// A dynamic program and its loader.
    Loader(String),
    /// A script and its interpreter, a program with needs of its own.
    Interpreter(String),
}

/// Why a file is not a program that this kernel runs.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error("it is neither a 64-bit program of this machine nor a `#!` script")]
    Kind,
    #[error("its {0} is out of bounds")]
    Bounds(&'static str),
    #[error("its interpreter must be an absolute path")]
    Relative,
    #[error(
        "this loader has no segment that can be sealed; use a rootfs with glibc or musl, or shell = true"
    )]
    Unsealable,
}

struct Segment {
    /// Where its header stands in the file.
    at: usize,
    kind: u32,
    offset: u64,
    bytes: u64,
}

/// What `read(offset, length)` of a program's file tells about its needs. `read` may return less at the end of the file.
pub fn needs(read: impl Fn(u64, usize) -> io::Result<Vec<u8>>) -> Result<Needs, ElfError> {
    let head = read(0, SCRIPT_LINE_BYTES)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        return absolute(script_interpreter(line)).map(Needs::Interpreter);
    }
    let table = segment_table(&head)?;
    let bytes = read(table.0 as u64, table.1 * SEGMENT_BYTES)?;
    let Some(interp) = segments(&bytes, 0, table.1)?.into_iter().find(|s| s.kind == PT_INTERP) else {
        return Ok(Needs::Nothing);
    };
    if !(2..=PATH_BYTES as u64).contains(&interp.bytes) {
        return Err(ElfError::Bounds("interpreter"));
    }
    let path = read(interp.offset, interp.bytes as usize)?;
    let path = path.strip_suffix(b"\0").ok_or(ElfError::Bounds("interpreter"))?;
    absolute(path).map(Needs::Loader)
}

/// A copy of a loader that serves programs as before and cannot be executed itself.
pub fn seal(mut loader: Vec<u8>) -> Result<Vec<u8>, ElfError> {
    let (at, count) = segment_table(&loader)?;
    let segments = segments(&loader, at, count)?;
    let interpreter = |segment: &Segment| {
        let at = usize::try_from(segment.offset).ok()?;
        loader.get(at..at.checked_add(usize::try_from(segment.bytes).ok()?)?)
    };
    if segments.iter().any(|segment| segment.kind == PT_INTERP && interpreter(segment) == Some(NO_LOADER)) {
        return Ok(loader); // a workspace that is kept has it from an earlier life
    }
    // The stack's and the notes' segments of a loader are read by nobody; those of the program count.
    let spare = [PT_INTERP, PT_GNU_STACK, PT_NOTE]
        .iter()
        .find_map(|kind| segments.iter().find(|segment| segment.kind == *kind))
        .ok_or(ElfError::Unsealable)?;
    let (offset, bytes) = (loader.len() as u64, NO_LOADER.len() as u64);
    let mut header = Vec::with_capacity(SEGMENT_BYTES);
    header.extend_from_slice(&PT_INTERP.to_le_bytes());
    header.extend_from_slice(&4u32.to_le_bytes()); // PF_R
    for value in [offset, 0, 0, bytes, bytes, 1] {
        header.extend_from_slice(&value.to_le_bytes());
    }
    let place =
        loader.get_mut(spare.at..spare.at + SEGMENT_BYTES).ok_or(ElfError::Bounds("segment table"))?;
    place.copy_from_slice(&header);
    loader.extend_from_slice(NO_LOADER);
    Ok(loader)
}

fn script_interpreter(line: &[u8]) -> &[u8] {
    let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let start = line.iter().position(|b| !blank(b)).unwrap_or(line.len());
    let rest = line.get(start..).unwrap_or_default();
    rest.split(blank).next().unwrap_or_default()
}

fn absolute(path: &[u8]) -> Result<String, ElfError> {
    match std::str::from_utf8(path) {
        Ok(path) if path.starts_with('/') && !path.contains('\0') => Ok(path.to_owned()),
        _ => Err(ElfError::Relative),
    }
}

/// Offset and number of the program headers.
fn segment_table(head: &[u8]) -> Result<(usize, usize), ElfError> {
    let head = head.get(..HEADER_BYTES).ok_or(ElfError::Kind)?;
    // 64 bit, little endian, version 1.
    let right =
        head.starts_with(b"\x7fELF\x02\x01\x01") && number::<2>(head, 18)? == u64::from(arch::ELF_MACHINE);
    if !right || number::<2>(head, 54)? != SEGMENT_BYTES as u64 {
        return Err(ElfError::Kind);
    }
    let offset = usize::try_from(number::<8>(head, 32)?).map_err(|_| ElfError::Bounds("segment table"))?;
    let count = number::<2>(head, 56)? as usize;
    if count > SEGMENTS_MAX || offset.checked_add(count * SEGMENT_BYTES).is_none() {
        return Err(ElfError::Bounds("segment table"));
    }
    Ok((offset, count))
}

fn segments(bytes: &[u8], at: usize, count: usize) -> Result<Vec<Segment>, ElfError> {
    (0..count)
        .map(|index| {
            let at = at + index * SEGMENT_BYTES;
            Ok(Segment {
                at,
                kind: number::<4>(bytes, at)? as u32,
                offset: number::<8>(bytes, at + 8)?,
                bytes: number::<8>(bytes, at + 32)?,
            })
        })
        .collect()
}

/// A little-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<u64, ElfError> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).ok_or(ElfError::Bounds("header"))?;
    Ok(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs_of(bytes: &[u8]) -> Result<Needs, ElfError> {
        needs(|offset, length| {
            let start = (offset as usize).min(bytes.len());
            Ok(bytes[start..(start + length).min(bytes.len())].to_vec())
        })
    }

    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn a_dynamic_program_names_its_loader() {
        match needs_of(&own()).unwrap() {
            Needs::Loader(path) => assert!(std::path::Path::new(&path).exists(), "{path}"),
            Needs::Nothing => {} // this test itself was built static
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scripts_name_their_interpreter_as_the_kernel_reads_it() {
        for (text, interpreter) in [
            ("#!/bin/sh\necho", "/bin/sh"),
            ("#! \t/usr/bin/env  python3\n", "/usr/bin/env"),
            ("#!/bin/sh", "/bin/sh"),
        ] {
            assert_eq!(needs_of(text.as_bytes()).unwrap(), Needs::Interpreter(interpreter.into()));
        }
        for text in ["#!sh\n", "#!\n/bin/sh", "#!"] {
            assert!(matches!(needs_of(text.as_bytes()), Err(ElfError::Relative)), "{text}");
        }
        assert!(matches!(needs_of(b"echo hi\n"), Err(ElfError::Kind)));
        assert!(matches!(needs_of(b""), Err(ElfError::Kind)));
    }

    #[test]
    fn no_damage_to_a_program_panics() {
        let good = own();
        let head = &good[..4096.min(good.len())];
        for at in 0..512 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = head.to_vec();
                bytes[at] = value;
                let _ = needs_of(&bytes); // any answer, no panic
                let _ = seal(bytes);
            }
        }
        for length in 0..512 {
            let _ = needs_of(&head[..length]);
            let _ = seal(head[..length].to_vec());
        }
    }

    #[test]
    fn a_sealed_loader_serves_programs_and_does_not_run_itself() {
        use std::os::unix::fs::PermissionsExt;
        let Needs::Loader(loader) = needs_of(&own()).unwrap() else {
            panic!("run this test on a dynamic build")
        };
        let directory = std::env::temp_dir().join(format!("seal-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let sealed = directory.join("ld.so");
        std::fs::write(&sealed, seal(std::fs::read(&loader).unwrap()).unwrap()).unwrap();
        std::fs::set_permissions(&sealed, std::fs::Permissions::from_mode(0o755)).unwrap();
        let once = std::fs::read(&sealed).unwrap();
        assert!(seal(once.clone()).unwrap() == once, "sealed again, it stays as it is");
        // Unsealed, it runs a program by name; sealed, the kernel refuses it.
        assert!(std::process::Command::new(&loader).arg("/bin/true").status().unwrap().success());
        let error = std::process::Command::new(&sealed).arg("/bin/true").status().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        // A program whose PT_INTERP is the sealed copy runs.
        let path = sealed.to_str().unwrap();
        let mut program = std::fs::read("/bin/true").unwrap();
        let (at, count) = segment_table(&program).unwrap();
        let interp =
            segments(&program, at, count).unwrap().into_iter().find(|s| s.kind == PT_INTERP).unwrap();
        let offset = program.len() as u64;
        program.extend_from_slice(path.as_bytes());
        program.push(0);
        program[interp.at + 8..interp.at + 16].copy_from_slice(&offset.to_le_bytes());
        program[interp.at + 32..interp.at + 40].copy_from_slice(&(path.len() as u64 + 1).to_le_bytes());
        let copy = directory.join("true");
        std::fs::write(&copy, program).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        let status = std::process::Command::new(&copy).status();
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(status.unwrap().success());
    }
}
