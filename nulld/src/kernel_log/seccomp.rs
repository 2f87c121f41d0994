//! The kernel's audit record of a system call that a seccomp filter refused (type 1326, include/uapi/linux/audit.h).

use std::fmt::Display;

use abi::identity::VM_UID_BASE;
use abi::log::Level;

use crate::journal::Journal;

/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 (include/uapi/linux/audit.h).
const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_AARCH64: u32 = 0xc000_00b7;

/// What the record says. Its program is a claim only where somebody could write it: the kernel quotes or hex-encodes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    pub pid: u32,
    pub uid: u32,
    program: &'a str,
    call: u32,
    arch: u32,
}

impl<'a> Refusal<'a> {
    /// None: the text is another record.
    pub fn parse(text: &'a str) -> Option<Refusal<'a>> {
        let rest = text.strip_prefix("audit: type=1326 ")?;
        let field = |name: &str| {
            rest.split(' ').find_map(|word| word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')))
        };
        Some(Refusal {
            pid: field("pid")?.parse().ok()?,
            uid: field("uid")?.parse().ok()?,
            program: field("exe").unwrap_or("?").trim_matches('"'),
            call: field("syscall")?.parse().ok()?,
            arch: u32::from_str_radix(field("arch")?, 16).ok()?,
        })
    }

    fn name(&self) -> &'static str {
        let name = match self.arch {
            ARCH_X86_64 => syscalls::x86_64::Sysno::new(self.call as usize).map(|call| call.name()),
            ARCH_AARCH64 => syscalls::aarch64::Sysno::new(self.call as usize).map(|call| call.name()),
            _ => None,
        };
        name.unwrap_or("unknown")
    }

    /// Writes it into nulld's own log.
    pub fn tell(&self, journal: &mut Journal, level: Level, service: Option<&str>) {
        let (who, whose): (&str, &dyn Display) = match (service, self.uid.checked_sub(VM_UID_BASE)) {
            (Some(name), _) => ("service", &{ name }),
            (None, Some(ref slot)) => ("vm_slot", &{ *slot }),
            (None, None) => ("uid", &self.uid),
        };
        let fields: [(&str, &dyn Display); 5] = [
            (who, whose),
            ("pid", &self.pid),
            ("program", &self.program),
            ("call", &self.call),
            ("name", &self.name()),
        ];
        journal.own(level, "system_call_refused", &fields);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_architectures_have_names() {
        let record = |arch: &str, call: u32| {
            format!(
                "audit: type=1326 audit(1.0:1): auid=0 uid=100003 gid=0 ses=0 pid=9 comm=6120 exe=\"/x\" sig=31 arch={arch} syscall={call} compat=0"
            )
        };
        for (arch, call, name) in [
            ("c000003e", 101, "ptrace"),
            ("c00000b7", 117, "ptrace"),
            ("c000003e", 99_999, "unknown"),
            ("40000003", 26, "unknown"),
        ] {
            let text = record(arch, call);
            let refusal = Refusal::parse(&text).unwrap();
            assert_eq!((refusal.name(), refusal.uid, refusal.pid), (name, 100_003, 9));
        }
        assert_eq!(Refusal::parse("audit: type=1400 uid=1"), None);
        assert_eq!(Refusal::parse("audit: type=1326 uid=x pid=1"), None);
    }
}
