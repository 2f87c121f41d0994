//! The filters of a VMM's threads, made of the rows of [`super::calls`].
//!
//! Must hold: the first filter stands after the jail is closed and before the VM starts, so it need not allow any of the
//! jail's own steps; each further one only narrows. A refused call is not made: it raises SIGSYS, whose handler names it and
//! ends the process. No call can change that handler, and a call of another architecture ends the process at once.

use seccomp::When::OneOf;
use seccomp::{Filter, FilterError, Line};
use std::collections::BTreeMap;

use super::calls::{ROLES, Role, lines};

/// Ends the process whoever makes it: the handler of SIGSYS stays, and makes this very call when it has said what was refused.
const END: Line = (libc::SYS_rt_sigaction, OneOf(0, &[libc::SIGSYS as u64]), "");

/// The filters of all roles, made before they are needed: a thread that narrows itself has nothing to allocate.
#[derive(Debug)]
pub struct Filters(BTreeMap<Role, Filter>);

impl Filters {
    /// Makes them all.
    pub fn new() -> Result<Filters, FilterError> {
        let of = |role| Ok((role, Filter::trapping(lines(role))?));
        ROLES.into_iter().map(of).collect::<Result<_, _>>().map(Filters)
    }

    /// Installs the first filter, for this thread and all that it starts. There is no way back.
    pub fn install(&self, _jailed: &super::Jailed) -> Result<(), FilterError> {
        Filter::killing([&END])?.install()?;
        self.narrow(Role::Setup)
    }

    /// Narrows the calling thread, and all that it starts, to a role.
    pub fn narrow(&self, role: Role) -> Result<(), FilterError> {
        self.0.get(&role).map_or(Ok(()), Filter::install)
    }
}

#[cfg(test)]
mod tests {
    use super::super::calls::rows;
    use super::*;
    use std::collections::BTreeSet;

    fn allowed(role: Role) -> BTreeSet<i64> {
        lines(role).map(|(call, _, _)| *call).collect()
    }

    #[test]
    fn each_row_has_a_reason_and_stands_once() {
        let mut seen = BTreeSet::new();
        for (roles, _, (call, when, reason)) in rows() {
            assert!(!reason.is_empty() && !roles.is_empty(), "{call}");
            assert!(seen.insert((*call, format!("{when:?}"))) || *call == libc::SYS_prctl, "{call} {when:?}");
        }
    }

    #[test]
    fn nothing_that_leads_out_is_allowed() {
        for role in ROLES {
            let calls = allowed(role);
            for refused in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_clone3,
                libc::SYS_ptrace,
                libc::SYS_process_vm_readv,
                libc::SYS_mount,
                libc::SYS_setns,
                libc::SYS_unshare,
                libc::SYS_bind,
                libc::SYS_listen,
                libc::SYS_accept4,
                libc::SYS_sendmsg,
                libc::SYS_recvmsg,
                libc::SYS_kill,
                libc::SYS_mknodat,
                libc::SYS_setuid,
                libc::SYS_io_uring_setup,
                libc::SYS_bpf,
                libc::SYS_keyctl,
                libc::SYS_userfaultfd,
                libc::SYS_perf_event_open,
            ] {
                assert!(!calls.contains(&refused), "{role:?} {refused}");
            }
        }
    }

    #[test]
    fn a_thread_that_a_guest_drives_makes_no_vm_no_thread_and_no_socket() {
        for role in [Role::Vcpu, Role::Block, Role::Net, Role::Vsock, Role::Idle] {
            let calls = allowed(role);
            for refused in [libc::SYS_clone, libc::SYS_socket, libc::SYS_connect, libc::SYS_seccomp] {
                assert!(!calls.contains(&refused), "{role:?} {refused}");
            }
            let makes_vms = lines(role)
                .any(|(call, when, _)| *call == libc::SYS_ioctl && when.admits(&[0, 0xAE01, 0, 0, 0, 0]));
            assert!(!makes_vms, "{role:?}");
            assert_eq!(calls.contains(&libc::SYS_pwritev), role == Role::Block, "{role:?}");
        }
    }

    #[test]
    fn no_memory_becomes_code() {
        let code = [0, 0, libc::PROT_EXEC as u64 | 1, 0, 0, 0];
        for (call, when, _) in ROLES.into_iter().flat_map(lines) {
            let maps = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect].contains(call);
            assert!(!maps || !when.admits(&code), "{call}");
        }
    }

    #[test]
    fn the_programs_fit_the_kernel() {
        for filter in Filters::new().unwrap().0.values() {
            assert!(filter.programs()[0].len() < 4096);
        }
    }
}
