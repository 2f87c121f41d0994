//! What an end means, for people. Pure.

use abi::guest::Exit;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How an agent's command ended, for people.
pub fn of_command(exit: &Exit) -> String {
    let mut text = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    };
    if exit.oom_killed {
        text.push_str(" (out of memory in the guest)");
    }
    if exit.dropped_bytes > 0 {
        text.push_str(&format!(", {} bytes of output dropped", exit.dropped_bytes));
    }
    text
}

/// What an ended process's status means, for people.
pub fn of_vmm(status: ExitStatus, out_of_memory: bool) -> String {
    match (status.code(), status.signal()) {
        (_, Some(libc::SIGKILL)) if out_of_memory => "the VMM used more memory than its bound and was killed".into(),
        (_, Some(libc::SIGSYS)) => {
            "the VMM made a system call that its filter refuses and was killed (the kernel's log has its number)".into()
        }
        (_, Some(signal)) => format!("the VMM was killed by signal {signal}"),
        (Some(0), None) => "the guest halted".into(),
        (Some(code), None) => format!("the VMM ended with code {code}"),
        (None, None) => "the VMM ended".into(),
    }
}

/// Why a VM did not come up, with what its console said last.
pub fn with_last_words(why: String, console: &[String]) -> String {
    match console.last() {
        Some(line) => format!("{why}; its console ends with `{line}`"),
        None => format!("{why}; its console said nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_a_vmm_has_its_words() {
        assert!(of_vmm(ExitStatus::from_raw(9), false).contains("signal 9"));
        assert!(of_vmm(ExitStatus::from_raw(9), true).contains("memory"));
        assert!(of_vmm(ExitStatus::from_raw(31), false).contains("filter"));
        assert!(of_vmm(ExitStatus::from_raw(0), false).contains("halted"));
        assert!(of_vmm(ExitStatus::from_raw(256), false).contains("code 1"));
    }

    #[test]
    fn a_guest_that_did_not_come_up_is_explained_by_its_console() {
        let said = ["one".to_owned(), "Kernel panic - not syncing".to_owned()];
        assert_eq!(
            with_last_words("the guest halted".into(), &said),
            "the guest halted; its console ends with `Kernel panic - not syncing`"
        );
        assert!(with_last_words("the guest halted".into(), &[]).ends_with("said nothing"));
    }

    #[test]
    fn every_end_of_a_command_has_its_words() {
        let exit = |code, signal| Exit { code, signal, oom_killed: false, dropped_bytes: 0 };
        assert_eq!(of_command(&exit(Some(3), None)), "exited with code 3");
        assert_eq!(of_command(&exit(None, Some(15))), "was killed by signal 15");
        let worst = Exit { oom_killed: true, dropped_bytes: 7, ..exit(None, Some(9)) };
        assert!(of_command(&worst).contains("out of memory") && of_command(&worst).contains("7 bytes"));
    }
}
