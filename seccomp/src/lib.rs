//! Which system calls a process may make: a table of calls, each with its reason, and the filter that is made of it.
//!
//! nulld's services and the jails of cage have each their own table; this is what the tables have in common.
//!
//! Must hold: a call that no line allows is not made. It ends the process, and the kernel's log has its number (audit record
//! 1326), or raises SIGSYS where the table's owner asks for it; a call under another architecture always ends the process.
//! Must never: allow a call whose arguments a line restricts without that restriction.

pub mod names;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// When a call is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// Argument `index`, 32 bits wide, is one of these.
    OneOf(u8, &'static [u64]),
    /// Argument `index` has exactly these bits of a mask.
    Masked(u8, u64, u64),
    /// Each of these, as in `Masked`.
    All(&'static [(u8, u64, u64)]),
}

impl When {
    /// Whether a call with these arguments is allowed: what the filter decides, told in Rust.
    pub fn admits(&self, args: &[u64; 6]) -> bool {
        let has = |&(index, mask, value): &(u8, u64, u64)| {
            args.get(usize::from(index)).is_some_and(|arg| arg & mask == value & mask)
        };
        match *self {
            When::Always => true,
            When::OneOf(index, values) => {
                args.get(usize::from(index)).is_some_and(|arg| values.contains(&(arg & 0xFFFF_FFFF)))
            }
            When::Masked(index, mask, value) => has(&(index, mask, value)),
            When::All(parts) => parts.iter().all(has),
        }
    }
}

/// One line of a table: the call's number, when it is allowed, and why it is needed.
pub type Line = (i64, When, &'static str);

/// Why a filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("system call filter: {0}")]
    Build(#[from] BackendError),
    #[error("system call filter: {0}")]
    Install(#[from] seccompiler::Error),
}

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// For clone(2), in flags at argument 0: a new thread, never a new process and never a namespace (CLONE_VM, CLONE_THREAD and
/// no CLONE_NEW*). `Masked(0, THREAD_MASK, THREAD)`.
pub const THREAD_MASK: u64 = 0x0001_0100 | NAMESPACES;
/// CLONE_VM and CLONE_THREAD.
pub const THREAD: u64 = 0x0001_0100;
/// Every flag that makes a namespace, CLONE_NEWTIME among them.
pub const NAMESPACES: u64 = 0x7E02_0000 | 0x80;

fn masked(parts: &[(u8, u64, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions = parts.iter().map(|(index, mask, value)| {
        SeccompCondition::new(*index, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(*mask), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Filters, ready to be installed one after the other.
#[derive(Debug)]
pub struct Filter {
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Allows what the lines allow. Where a call has several lines, one of them is enough. Any other call ends the process.
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Result<Filter, FilterError> {
        Filter::with(lines, SeccompAction::KillProcess, SeccompAction::Allow)
    }

    /// As `of`, but any other call is not made and raises SIGSYS (SECCOMP_RET_TRAP), so that a handler can name it.
    pub fn trapping<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Result<Filter, FilterError> {
        Filter::with(lines, SeccompAction::Trap, SeccompAction::Allow)
    }

    /// The reverse: these calls end the process, and any other is left to the other filters.
    pub fn killing<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Result<Filter, FilterError> {
        Filter::with(lines, SeccompAction::Allow, SeccompAction::KillProcess)
    }

    fn with<'a>(
        lines: impl IntoIterator<Item = &'a Line>,
        otherwise: SeccompAction,
        matching: SeccompAction,
    ) -> Result<Filter, FilterError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut always = Vec::new();
        for (call, when, _reason) in lines {
            let chain = rules.entry(*call).or_default();
            match *when {
                When::Always => always.push(*call),
                When::OneOf(index, values) => {
                    for value in values {
                        let equal =
                            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)?;
                        chain.push(SeccompRule::new(vec![equal])?);
                    }
                }
                When::Masked(index, mask, value) => chain.push(masked(&[(index, mask, value)])?),
                When::All(parts) => chain.push(masked(parts)?),
            }
        }
        for call in always {
            rules.insert(call, Vec::new()); // no condition
        }
        let filter = SeccompFilter::new(rules, otherwise, matching, ARCH)?;
        Ok(Filter { programs: vec![filter.try_into()?] })
    }

    /// Also answers these calls with ENOSYS, for libraries that then do without. They must be in the table as well: of several
    /// filters the strictest answer counts (seccomp(2)).
    pub fn without(mut self, calls: &[i64]) -> Result<Filter, FilterError> {
        let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
        let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, ARCH)?;
        self.programs.insert(0, filter.try_into()?);
        Ok(self)
    }

    /// The programs, in the order in which they are installed.
    pub fn programs(&self) -> &[BpfProgram] {
        &self.programs
    }

    /// Installs it for this thread and all that it starts, and sets no_new_privs. There is no way back.
    pub fn install(&self) -> Result<(), FilterError> {
        for program in &self.programs {
            seccompiler::apply_filter(program)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's machine, for the instructions that seccompiler makes.
    fn run(program: &BpfProgram, number: i64, args: [u64; 6]) -> u32 {
        let mut data = (number as u32).to_ne_bytes().to_vec();
        data.extend_from_slice(
            &if cfg!(target_arch = "x86_64") { 0xC000_003Eu32 } else { 0xC000_00B7 }.to_ne_bytes(),
        );
        data.extend_from_slice(&[0; 8]);
        args.iter().for_each(|arg| data.extend_from_slice(&arg.to_ne_bytes()));
        let (mut at, mut word) = (0usize, 0u32);
        loop {
            let op = &program[at];
            at += 1;
            let mut jump = |yes: bool| at += usize::from(if yes { op.jt } else { op.jf });
            match op.code {
                0x20 => word = u32::from_ne_bytes(data[op.k as usize..][..4].try_into().unwrap()),
                0x06 => return op.k,
                0x05 => at += op.k as usize,
                0x54 => word &= op.k,
                0x15 => jump(word == op.k),
                0x25 => jump(word > op.k),
                0x35 => jump(word >= op.k),
                other => panic!("instruction {other:x}"),
            }
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    #[test]
    fn a_call_passes_only_as_its_lines_say() {
        let table: &[Line] = &[
            (1, When::Always, ""),
            (2, When::OneOf(0, &[7, 9]), ""),
            (3, When::Masked(1, 0xF0, 0x30), ""),
            (4, When::All(&[(0, u64::MAX, 2), (1, 0xF, 1)]), ""),
            (4, When::All(&[(0, u64::MAX, 2), (1, 0xF, 2)]), ""),
            (5, When::OneOf(0, &[1]), ""),
            (5, When::Always, "wider than the line before"),
        ];
        let filter = Filter::of(table).unwrap();
        let admitted = |number, args: &[u64; 6]| {
            table.iter().any(|(call, when, _)| *call == number && when.admits(args))
        };
        let run = |number, a: u64, b: u64| {
            let args = [a, b, 0, 0, 0, 0];
            let answer = run(&filter.programs()[0], number, args);
            assert_eq!(answer == ALLOW, admitted(number, &args), "{number} {a} {b}");
            answer
        };
        for (number, a, b) in
            [(1, 99, 99), (2, 7, 0), (2, 9, 0), (3, 0, 0x13F), (4, 2, 0x801), (4, 2, 2), (5, 8, 8)]
        {
            assert_eq!(run(number, a, b), ALLOW, "{number} {a} {b}");
        }
        for (number, a, b) in
            [(0, 0, 0), (2, 8, 0), (3, 0, 0x70), (4, 1, 1), (4, 2, 3), (4, 1 << 32 | 2, 1), (6, 0, 0)]
        {
            assert_eq!(run(number, a, b), KILL, "{number} {a} {b}");
        }
    }

    #[test]
    fn a_trapping_table_traps_and_a_killing_one_kills_only_its_own() {
        let line: Line = (13, When::OneOf(0, &[31]), "");
        let (traps, kills) = (Filter::trapping([&line]).unwrap(), Filter::killing([&line]).unwrap());
        let run = |filter: &Filter, number, a| run(&filter.programs()[0], number, [a, 0, 0, 0, 0, 0]);
        assert_eq!((run(&traps, 13, 31), run(&traps, 13, 6)), (ALLOW, libc::SECCOMP_RET_TRAP));
        assert_eq!((run(&kills, 13, 31), run(&kills, 13, 6), run(&kills, 9, 31)), (KILL, ALLOW, ALLOW));
    }

    #[test]
    fn calls_that_are_answered_do_not_exist_and_the_rest_is_left_to_the_table() {
        let filter =
            Filter::of(&[(1, When::Always, ""), (2, When::Always, "")]).unwrap().without(&[2]).unwrap();
        let [absent, table] = filter.programs() else { panic!("two programs") };
        assert_eq!(run(absent, 2, [0; 6]), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        assert_eq!((run(absent, 1, [0; 6]), run(absent, 3, [0; 6])), (ALLOW, ALLOW));
        assert_eq!((run(table, 1, [0; 6]), run(table, 3, [0; 6])), (ALLOW, KILL));
    }
}
