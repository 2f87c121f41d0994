//! What differs by architecture in the guest. The only file of this crate that may know one.

/// `AUDIT_ARCH_*` of this build (linux/audit.h): the seccomp filter kills a call made under another one.
#[cfg(target_arch = "x86_64")]
pub const AUDIT_ARCH: u32 = 0xC000_003E;
/// `AUDIT_ARCH_*` of this build (linux/audit.h).
#[cfg(target_arch = "aarch64")]
pub const AUDIT_ARCH: u32 = 0xC000_00B7;

/// Call numbers from here on belong to another ABI of the same architecture (x32) and are refused; 0: there is none.
#[cfg(target_arch = "x86_64")]
pub const FOREIGN_CALLS_FROM: u32 = 0x4000_0000;
/// Call numbers from here on belong to another ABI of the same architecture; 0: there is none.
#[cfg(target_arch = "aarch64")]
pub const FOREIGN_CALLS_FROM: u32 = 0;

/// Refused calls that only this architecture has, each with its reason.
#[cfg(target_arch = "x86_64")]
pub const REFUSED_CALLS: &[(i64, &str)] = &[
    (libc::SYS_iopl, "port I/O"),
    (libc::SYS_ioperm, "port I/O"),
    (libc::SYS_modify_ldt, "kernel attack surface"),
];
/// Refused calls that only this architecture has.
#[cfg(target_arch = "aarch64")]
pub const REFUSED_CALLS: &[(i64, &str)] = &[];

/// `e_machine` of programs this kernel runs (elf(5)).
#[cfg(target_arch = "x86_64")]
pub const ELF_MACHINE: u16 = 62;
/// `e_machine` of programs this kernel runs (elf(5)).
#[cfg(target_arch = "aarch64")]
pub const ELF_MACHINE: u16 = 183;
