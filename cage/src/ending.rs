//! What an end means, for people. Pure.

use abi::guest::{Exit, Failed};
use abi::limits;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::jail::REFUSED;

/// How an agent's command ended, for people.
pub fn of_command(exit: &Exit, memory_mib: u32) -> String {
    let mut text = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    };
    if exit.oom_killed {
        text = format!("ran out of memory inside the guest: max_memory_mb = {memory_mib} ({text})");
    }
    if exit.dropped_bytes > 0 {
        text.push_str(&format!(", {} bytes of output dropped", exit.dropped_bytes));
    }
    text
}

/// What an ended VMM's status means, for people, with what its console said last. `memory_mib`: of the manifest.
pub fn of_vmm(status: ExitStatus, out_of_memory: bool, memory_mib: u32, console: &[String]) -> String {
    let bound_mib = memory_mib + limits::VMM_OVERHEAD_MIB;
    match (status.code(), status.signal()) {
        (_, Some(libc::SIGKILL)) if out_of_memory => {
            format!(
                "the VMM used more memory than its bound of {bound_mib} MiB (guest and VMM) and was killed"
            )
        }
        (_, Some(libc::SIGKILL)) => "the VMM was killed by signal 9, not for its memory".into(),
        (_, Some(libc::SIGSYS)) => match console.iter().rev().find(|line| line.starts_with(REFUSED)) {
            Some(refused) => {
                format!("the VMM made a system call that its filter refuses, and was ended (`{refused}`)")
            }
            // Killed at once: a call of another architecture, or one that would have taken the filter's handler away.
            None => "the VMM made a system call that its filter kills for (the kernel's log has its number)"
                .into(),
        },
        (_, Some(signal)) => format!("the VMM was killed by signal {signal}: it crashed"),
        (Some(0), None) => match panic_of(console) {
            Some(panic) if panic.contains("emory") => {
                format!("the guest's kernel ran out of memory: max_memory_mb = {memory_mib} (`{panic}`)")
            }
            Some(panic) => format!("the guest's kernel panicked: `{panic}`"),
            None => "the guest halted without a word (a reset, a halt or a triple fault)".into(),
        },
        (Some(code), None) => format!("the VMM ended with code {code}"),
        (None, None) => "the VMM ended".into(),
    }
}

/// Why the guest's kernel panicked, as it says on its console (kernel/panic.c, vpanic).
fn panic_of(console: &[String]) -> Option<&str> {
    const WORDS: &str = "Kernel panic - not syncing: ";
    console.iter().rev().find_map(|line| line.split_once(WORDS)).map(|(_, why)| why.trim())
}

/// A guest's words, made short and plain: they stand in the ledger, and in answers that must fit a line.
pub fn harmless(words: &str, chars_max: usize) -> String {
    words.chars().filter(|c| !c.is_control()).take(chars_max).collect()
}

/// Why a guest could not run its agent, as it says.
pub fn of_guest(failed: &Failed) -> String {
    let stage = harmless(&failed.stage, limits::GUEST_STAGE_CHARS_MAX);
    let error = harmless(&failed.error, limits::GUEST_REASON_CHARS_MAX);
    format!("the guest could not run the agent: {stage}: {error}")
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
        let words = |raw, oom| of_vmm(ExitStatus::from_raw(raw), oom, 100, &[]);
        assert!(words(9, false).contains("signal 9, not for its memory"));
        assert!(words(9, true).contains("164 MiB"));
        assert!(words(31, false).contains("filter"));
        assert!(words(11, true).contains("signal 11: it crashed"));
        assert!(words(0, false).contains("triple fault"));
        assert!(words(256, false).contains("code 1"));
    }

    #[test]
    fn a_refused_call_is_named_only_where_the_filter_ended_the_vmm() {
        let line = "refused: system call mount (165) in thread fc_vcpu 0".to_owned();
        let console = [line.clone(), "and on".to_owned()];
        let words = |raw| of_vmm(ExitStatus::from_raw(raw), false, 64, &console);
        assert!(words(31).contains(&line), "{}", words(31));
        assert!(
            !words(0).contains("mount") && !words(11).contains("mount"),
            "a guest can write that line too"
        );
    }

    #[test]
    fn a_panic_is_told_from_an_empty_memory_and_from_a_reset() {
        let words = |line: &str| {
            let console = ["early".to_owned(), line.to_owned(), "Rebooting in 1 seconds..".to_owned()];
            of_vmm(ExitStatus::from_raw(0), false, 64, &console)
        };
        let panic = words("[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs");
        assert_eq!(panic, "the guest's kernel panicked: `VFS: Unable to mount root fs`");
        let hungry = words("[    9.1] Kernel panic - not syncing: System is deadlocked on memory");
        assert!(hungry.contains("ran out of memory: max_memory_mb = 64"), "{hungry}");
        assert!(words("nothing of the kind").contains("without a word"));
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
        assert_eq!(of_command(&exit(Some(3), None), 64), "exited with code 3");
        assert_eq!(of_command(&exit(None, Some(15)), 64), "was killed by signal 15");
        let worst = Exit { oom_killed: true, dropped_bytes: 7, ..exit(None, Some(9)) };
        let words = of_command(&worst, 64);
        assert!(
            words.starts_with("ran out of memory inside the guest: max_memory_mb = 64 (was killed"),
            "{words}"
        );
        assert!(words.ends_with("7 bytes of output dropped"));
    }

    #[test]
    fn a_guest_that_says_too_much_is_cut_short() {
        let long = "\u{1b}[2Jx\u{10ffff}".repeat(10_000);
        let words = of_guest(&Failed { stage: long.clone(), error: long });
        assert!(words.chars().count() < 800 && !words.contains('\u{1b}'), "{}", words.len());
        assert!(words.starts_with("the guest could not run the agent: [2Jx"), "{words}");
    }
}
